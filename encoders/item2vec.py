"""Item2vec (Barkan & Koenigstein 2016): skip-gram in which all tracks of a playlist are neighbours. By gensim."""

import numpy as np
from tqdm import tqdm

SENTENCE = 10_000  # gensim silently drops what a sentence has beyond this


class Sentences:
    """Playlists as gensim reads them, again for each epoch: lists of track numbers as words, at least two a list.

    Words are looked up as they are read: lists of the words of 64 million tokens would take 0.5 GB.
    """

    def __init__(self, playlists, n_tracks):
        self.names, self.parts = [str(row) for row in range(n_tracks)], []
        for playlist in playlists:
            parts = (playlist[first:first + SENTENCE] for first in range(0, len(playlist), SENTENCE))
            self.parts += [part for part in parts if len(part) > 1]

    def __iter__(self):
        for part in self.parts:
            yield [self.names[row] for row in part]


def item2vec(playlists, n_tracks, dim=128, epochs=40, seed=0, workers=1):
    """One vector a track, by the tracks that it shares playlists with.

    playlists: lists or int arrays of track rows, of training playlists only. workers: threads; only 1 is reproducible.
    Returns: (n_tracks, dim) float32, L2 norm 1; NaN for a track that has no neighbour in any playlist.
    """
    from gensim.models import Word2Vec
    from gensim.models.callbacks import CallbackAny2Vec
    sentences = Sentences(playlists, n_tracks)
    vectors = np.full((n_tracks, dim), np.nan, np.float32)
    if not sentences.parts:
        return vectors
    tick = CallbackAny2Vec()
    with tqdm(total=epochs, desc="playlist", unit="epoch") as bar:
        tick.on_epoch_end = lambda model: bar.update()
        # By default gensim draws a smaller window for each word, and drops words at random that make up more
        # than a thousandth of the text: most tracks of a small catalogue.
        learnt = Word2Vec(sentences, sg=1, vector_size=dim, negative=5, window=max(map(len, sentences.parts)),
                          shrink_windows=False, min_count=1, sample=0, epochs=epochs, seed=seed, workers=workers,
                          callbacks=[tick]).wv
    vectors[np.array(learnt.index_to_key, dtype=int)] = learnt.vectors / np.linalg.norm(learnt.vectors, axis=1, keepdims=True)
    return vectors
