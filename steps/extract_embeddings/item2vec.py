"""Item2vec (Barkan & Koenigstein 2016): skip-gram in which all tracks of a playlist are neighbours. By gensim.

A playlist of L tracks has L (L - 1) pairs, so an epoch over the Million Playlist Dataset has 7.5 thousand million.
With a share below 1 an epoch learns that share of them, drawn afresh each time: a playlist is shuffled, and in a
shuffled playlist tracks that stand near each other are pairs drawn by lot. Each pair of each playlist, short or long,
is as likely as any other, so what is learnt stays the same; only the epochs are shorter.
"""

import numpy as np
from tqdm import tqdm

SENTENCE = 10_000  # gensim silently drops what a sentence has beyond this
NEAR = 5           # with a share below 1: how far apart, in a shuffled playlist, the tracks of a pair may be


class Sentences:
    """Playlists as gensim reads them, again for each epoch: lists of track numbers as words."""

    def __init__(self, parts, names, copies=None, seed=0):
        """parts: int arrays of track rows. copies: how often each is drawn in the mean, then shuffled; None = each
        once, as it is."""
        self.parts, self.names, self.copies, self.random = parts, names, copies, np.random.default_rng(seed)

    def __iter__(self):
        for i, part in enumerate(self.parts):
            if self.copies is None:
                yield [self.names[row] for row in part]
            else:
                for _ in range(int(self.copies[i] + self.random.random())):
                    yield [self.names[row] for row in self.random.permutation(part)]


def copies_for(lengths, share):
    """How often playlists have to be drawn, so that each of their pairs is learnt `share` times in the mean: (n,) float."""
    near = np.minimum(NEAR, lengths - 1)
    return share * lengths * (lengths - 1) / (2 * near * lengths - near * (near + 1))  # all pairs / those at most `near` apart


def item2vec(playlists, n_tracks, dim=128, epochs=40, seed=0, workers=1, share=None):
    """One vector a track, by the tracks that it shares playlists with.

    playlists: lists or int arrays of track rows, of training playlists only. workers: threads; only 1 is reproducible.
    share: of the pairs, that an epoch learns; None = all.
    Returns: (n_tracks, dim) float32, L2 norm 1; NaN for a track that has no neighbour in any playlist.
    """
    from gensim.models import Word2Vec
    from gensim.models.callbacks import CallbackAny2Vec
    parts = [playlist[first:first + SENTENCE] for playlist in playlists for first in range(0, len(playlist), SENTENCE)]
    parts = [part for part in parts if len(part) > 1]
    if not parts:
        return np.full((n_tracks, dim), np.nan, np.float32)
    lengths, names = np.array([len(part) for part in parts]), [str(row) for row in range(n_tracks)]
    copies = None if share is None else copies_for(lengths, share)
    # By default gensim draws a smaller window for each word, and drops words at random that make up more
    # than a thousandth of the text: most tracks of a small catalogue.
    model = Word2Vec(sg=1, vector_size=dim, negative=5, window=int(lengths.max()) if share is None else NEAR,
                     shrink_windows=False, min_count=1, sample=0, epochs=epochs, seed=seed, workers=workers)
    model.build_vocab(Sentences(parts, names))
    tick = CallbackAny2Vec()
    with tqdm(total=epochs, desc="playlist", unit="epoch") as bar:
        tick.on_epoch_end = lambda model: bar.update()
        model.train(Sentences(parts, names, copies, seed), epochs=epochs, callbacks=[tick],
                    total_examples=len(parts) if share is None else max(round(copies.sum()), 1))
    learnt = model.wv
    del model  # its second matrix, which is as large as the one that counts
    vectors = np.full((n_tracks, dim), np.nan, np.float32)
    vectors[np.array(learnt.index_to_key, dtype=int)] = learnt.vectors
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors
