"""Playlists as the sentences that item2vec (in 01_extract_embeddings.py) learns from.

A playlist of L tracks has L (L - 1) pairs, so an epoch over the Million Playlist Dataset has 7.5
billion. With a share below 1 an epoch learns that share of the pairs, drawn anew each time: the
playlist is shuffled, and tracks that are near each other in a shuffled playlist are random pairs.
Every pair of every playlist, short or long, is equally likely, so what is learnt stays the same.
Only the epochs are shorter.
"""

import numpy as np

SENTENCE = 10_000  # tracks; gensim silently drops the rest of a longer sentence
NEAR = 5           # with a share below 1: the largest distance of a pair in a shuffled playlist


def cut_playlists(playlists):
    """Playlists in pieces of at most SENTENCE tracks; a piece of one track has no pair and goes."""
    pieces = [playlist[first:first + SENTENCE]
              for playlist in playlists for first in range(0, len(playlist), SENTENCE)]
    return [piece for piece in pieces if len(piece) > 1]


def copies_for(lengths, share):
    """How often to draw each playlist so that each of its pairs is learnt `share` times on average.

    lengths: tracks per playlist, (n,) int. Returns: (n,) float.
    """
    near = np.minimum(NEAR, lengths - 1)
    near_pairs = 2 * near * lengths - near * (near + 1)  # in one shuffled playlist
    return share * lengths * (lengths - 1) / near_pairs


class Sentences:
    """Playlists as gensim reads them, again in each epoch: lists of words, one word per track."""

    def __init__(self, playlists, words, copies=None, seed=0):
        """playlists: int arrays of track rows. words: the word of each row, list of str.

        copies: how often each playlist is drawn on average, and then shuffled; None = once, as it
        is.
        """
        self.playlists = playlists
        self.words = words
        self.copies = copies
        self.random = np.random.default_rng(seed)

    def __iter__(self):
        for i, playlist in enumerate(self.playlists):
            if self.copies is None:
                yield [self.words[row] for row in playlist]
                continue
            for _ in range(int(self.copies[i] + self.random.random())):
                yield [self.words[row] for row in self.random.permutation(playlist)]
