"""From generated codes to tracks: the weighted overlap (paper, section 2.4).

    score(track) = sum over modalities of weight x [the two codes are equal]

A missing code (-1) never matches. A track is an exact match when all five codes are equal, the same
ones missing. Exact matches come first.
"""

from typing import NamedTuple

import numpy as np

WEIGHTS = (25, 16, 9, 4, 1)  # playlist, semantic, metadata, lyrics, audio


class Index(NamedTuple):
    """Inverted lists: code c of modality m has tracks rows[m][starts[m][c]:starts[m][c + 1]]."""
    codes: np.ndarray   # (N, 5) int16
    rows: list          # per modality (N,): rows of the catalogue, sorted by code
    starts: list        # per modality (K + 1,)
    scores: np.ndarray  # (N,) float32 scratch space, all zero between two searches


def build_index(codes):
    """Index (N, 5) codes for `search`. N = 1.7 million takes a fraction of a second."""
    rows = []
    starts = []
    k = int(codes.max(initial=0)) + 1
    for column in codes.T:
        order = np.argsort(column, kind="stable").astype(np.int32)
        rows.append(order)
        starts.append(np.searchsorted(column[order], np.arange(k + 1)))
    return Index(np.ascontiguousarray(codes), rows, starts, np.zeros(len(codes), np.float32))


def search(index, query, depth, rng, weights=WEIGHTS):
    """The `depth` tracks that share most with the five codes `query`; `rng` breaks ties.

    Only tracks that share a code are looked at. If they are too few, the rest are drawn at random.

    Returns: rows (depth,) int, best first; scores (depth,) float32 (exact match: + 0.5).
    """
    # add up the weights of what each track shares
    scores = index.scores
    lists = []
    for m, code in enumerate(query):
        if 0 <= code < len(index.starts[m]) - 1:
            rows = index.rows[m][index.starts[m][code]:index.starts[m][code + 1]]
            scores[rows] += weights[m]
            lists.append(rows)

    # collect each track once: its score is set back to zero as it is read
    matching = [np.empty(0, np.int32)]
    values = [np.empty(0, np.float32)]
    for rows in lists:
        matching.append(rows[scores[rows] > 0])
        values.append(scores[matching[-1]])
        scores[rows] = 0
    matching = np.concatenate(matching)
    values = np.concatenate(values)

    # only a track with the best score can be an exact match
    best = values == values.max(initial=0)
    values[best] += 0.5 * (index.codes[matching[best]] == np.asarray(query)).all(axis=1)

    # a random number below 0.5 orders ties; whole weights keep different scores apart
    depth = min(depth, len(index.codes))
    keys = values + 0.499 * rng.random(len(values), dtype=np.float32)
    top = np.arange(len(keys))
    if len(keys) > depth:
        top = np.argpartition(-keys, depth - 1)[:depth]
    top = top[np.argsort(-keys[top])]
    others = draw_others(len(index.codes), matching[top], depth - len(top), rng)
    return np.append(matching[top], others), np.pad(values[top], (0, len(others)))


def draw_others(n, taken, count, rng):
    """`count` random rows of range(n) that are not in `taken`: int32."""
    if count == 0:
        return np.empty(0, np.int32)
    if n <= 4 * (count + len(taken)):
        free = np.ones(n, bool)
        free[taken] = False
        return rng.permutation(np.flatnonzero(free))[:count].astype(np.int32)
    # a large catalogue: draw more than needed, rather than list all that is free
    drawn = np.unique(rng.integers(n, size=3 * count + 64))
    return rng.permutation(np.setdiff1d(drawn, taken))[:count].astype(np.int32)


def overlap(codes, query, weights=WEIGHTS):
    """Weighted overlap of every track with `query`, the plain way: (N, 5), (5,) -> (N,) float32."""
    query = np.asarray(query)
    return ((codes == query) & (query >= 0)) @ np.asarray(weights, np.float32)
