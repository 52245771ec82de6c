"""Playlists as the sentences that item2vec (in 01_extract_embeddings.py) learns from.

A playlist of L tracks has L (L - 1) pairs, so an epoch over the Million Playlist Dataset has 7.5
billion. With a `share` an epoch learns only that share of them, drawn anew each time: tracks that
are near each other in a shuffled playlist are random pairs. Every pair of every playlist, short or
long, is equally likely.
"""

import numpy as np

SENTENCE = 10_000  # tracks; gensim silently drops the rest of a longer sentence
NEAR = 5           # with a share below 1: the largest distance of a pair in a shuffled playlist


class Sentences:
    """Playlists as gensim reads them, again in each epoch: lists of words, one word per track."""

    def __init__(self, playlists, share=None, seed=0):
        """playlists: int arrays of track rows. share: of the pairs, per epoch; None = all."""
        pieces = [playlist[first:first + SENTENCE]
                  for playlist in playlists for first in range(0, len(playlist), SENTENCE)]
        self.playlists = [piece for piece in pieces if len(piece) > 1]  # one track has no pair
        lengths = np.array([len(playlist) for playlist in self.playlists])
        self.window = NEAR if share is not None else int(max(lengths, default=0))
        self.n_sentences = len(lengths)
        self.random = np.random.default_rng(seed)
        self.copies = None
        if share is not None:  # how often each playlist is drawn, on average, for that share
            near = np.minimum(NEAR, lengths - 1)
            near_pairs = 2 * near * lengths - near * (near + 1)  # in one shuffled playlist
            self.copies = share * lengths * (lengths - 1) / near_pairs
            self.n_sentences = max(round(self.copies.sum()), 1)

    def __iter__(self):
        for i, playlist in enumerate(self.playlists):
            if self.copies is None:
                yield [str(row) for row in playlist]
                continue
            for _ in range(int(self.copies[i] + self.random.random())):
                yield [str(row) for row in self.random.permutation(playlist)]
