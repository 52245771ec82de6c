"""From generated codes to tracks: the weighted overlap (paper, section 2.4).

    score(track) = sum over modalities of weight x [the two codes are equal]

A missing code (-1) never matches. A track is an exact match when all five codes are equal, the same
ones missing; exact matches come first.
"""

from typing import NamedTuple

import numpy as np

WEIGHTS = (25, 16, 9, 4, 1)  # playlist, semantic, metadata, lyrics, audio


class Index(NamedTuple):
    """Inverted lists: the tracks of modality m and code c are `rows[m][starts[m][c]:starts[m][c + 1]]`."""
    codes: np.ndarray   # (N, 5) int16
    rows: list          # five arrays of track rows, sorted by code
    starts: list        # five arrays (K + 1,)
    scores: np.ndarray  # (N,) float32, all zero between two searches: scratch space


def build_index(codes):
    """Index (N, 5) codes for `search`. N = 1.7 million takes a fraction of a second."""
    rows, starts = [], []
    k = int(codes.max(initial=0)) + 1
    for column in codes.T:
        order = np.argsort(column, kind="stable").astype(np.int32)
        bounds = np.searchsorted(column[order], np.arange(k + 1))
        rows.append(order)
        starts.append(bounds)
    return Index(np.ascontiguousarray(codes), rows, starts, np.zeros(len(codes), np.float32))


def search(index, query, depth, rng, weights=WEIGHTS):
    """The `depth` tracks that share most with the five codes `query`.

    Only tracks that share a code are looked at. Ties are broken by draws from `rng` (a numpy
    Generator), and if fewer than `depth` tracks share anything, the rest are drawn at random.

    Returns: rows (depth,) int, best first, and their scores (depth,) float32 (exact match: + 0.5).
    """
    scores, lists = index.scores, []
    for m, code in enumerate(query):
        if 0 <= code < len(index.starts[m]) - 1:
            rows = index.rows[m][index.starts[m][code]:index.starts[m][code + 1]]
            scores[rows] += weights[m]
            lists.append(rows)
    found, values = [np.empty(0, np.int32)], [np.empty(0, np.float32)]
    for rows in lists:  # collect each track once: its score is set back to zero as it is read
        value = scores[rows]
        found.append(rows[value > 0])
        values.append(value[value > 0])
        scores[rows] = 0
    found, values = np.concatenate(found), np.concatenate(values)

    depth = min(depth, len(index.codes))
    # A random number below 0.5 orders ties; whole weights keep different scores apart. Exactness is
    # worth a look only at the tracks with the best score.
    best = values == values.max(initial=0)
    values[best] += 0.5 * (index.codes[found[best]] == np.asarray(query)).all(axis=1)
    keys = values + 0.499 * rng.random(len(values), dtype=np.float32)
    top = np.argpartition(-keys, depth - 1)[:depth] if len(keys) > depth else np.arange(len(keys))
    top = top[np.argsort(-keys[top])]
    found, values = found[top], values[top]
    if len(found) < depth:
        found = np.concatenate([found, _others(len(index.codes), found, depth - len(found), rng)])
        values = np.concatenate([values, np.zeros(depth - len(values), np.float32)])
    return found, values


def _others(n, taken, count, rng):
    """`count` random rows of range(n) that are not in `taken`."""
    if n <= 4 * (count + len(taken)):
        free = np.ones(n, bool)
        free[taken] = False
        return rng.permutation(np.flatnonzero(free))[:count].astype(np.int32)
    drawn = np.unique(rng.integers(n, size=3 * count + 64))
    return rng.permutation(np.setdiff1d(drawn, taken))[:count].astype(np.int32)


def overlap(codes, query, weights=WEIGHTS):
    """Weighted overlap of every track with `query`, the plain way: codes (N, 5), query (5,) -> (N,)."""
    query = np.asarray(query)
    return ((codes == query) & (query >= 0)) @ np.asarray(weights, np.float32)


def code_shares(sequences, k):
    """Share of S sampled sequences that have each code: list of five codes or None (not valid) -> (5, k) float32."""
    shares = np.zeros((5, k), np.float32)
    for codes in sequences:
        for m, code in enumerate(codes or ()):
            if code >= 0:
                shares[m, code] += 1 / len(sequences)
    return shares


def expected_overlap(codes, p, weights=WEIGHTS):
    """Weighted overlap of every track, expected where code c of modality m has probability p[m, c].

    codes: (N, 5), -1 where missing (never matches); p: (5, K). Returns: (N,) float32. For one sequence
    (p 1 or 0) this is `overlap`; for several it counts their votes.
    """
    table = np.pad(p, ((0, 0), (0, 1))) * np.asarray(weights, np.float32)[:, None]  # code -1 finds the last column: 0
    scores = table[0][codes[:, 0]]
    for m in range(1, 5):
        scores += table[m][codes[:, m]]
    return scores
