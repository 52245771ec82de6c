"""The rules and the metrics of the evaluation (paper, section 4), the same for every system.

A ranking is an array of catalogue rows, best first. The candidate pool is the whole catalogue.
Every system ranks DEPTH tracks, or all where there are fewer. Tracks with equal scores are ordered
by a seeded draw, a fresh one for each turn. Tracks already played are left out after the ranking.

A *rank* is 1-based, and 0 when no target is within the depth. Metrics return one value per turn, so
that they can be averaged, compared in pairs and resampled by playlist.
"""

import zlib
from functools import partial
from itertools import pairwise

import numpy as np

DEPTH = 1000


# ---------------------------------------------------------------- rankings

# what 05_infer.py draws for a turn: one generator each, so that no draw depends on another
SAMPLE_CODES, BREAK_TIES, BREAK_OVERLAP_TIES, WRITE_RESPONSE, DRAW_MANY = range(5)


def turn_rng(seed, dialogue_id, turn, *purpose):
    """The random generator of one turn (from 1) of one dialogue, the same on every run.

    purpose: an int, such as BREAK_OVERLAP_TIES, where a turn needs several generators
    """
    return np.random.default_rng([seed, zlib.crc32(dialogue_id.encode()), turn, *purpose])


def rank_rows(scores, rng, depth):
    """The `depth` best rows of (N,) scores, best first, equal ones in an order drawn from `rng`.

    Returns: (min(depth, N),) int64.
    """
    depth = min(depth, len(scores))
    threshold = np.partition(scores, -depth)[-depth]  # the score of the last row that is ranked

    # shuffled first, sorted stably then: equal scores keep the order of the draw
    above = rng.permutation(np.flatnonzero(scores > threshold))
    above = above[np.argsort(-scores[above], kind="stable")]

    # of the rows with the threshold's score, as many as there is room for
    equal = rng.permutation(np.flatnonzero(scores == threshold))
    return np.concatenate([above, equal[:depth - len(above)]])


def filter_played(ranked, played, targets):
    """Leave out the tracks that earlier turns have played, unless this turn asks for them again."""
    keep = np.ones(len(ranked), bool)
    for row in set(played).difference(targets):  # a few only: np.isin takes five times as long
        keep &= ranked != row
    return ranked[keep]


def rank_of_first_hit(ranked, targets):
    """1-based rank of the first of the targets (rows) in a ranking (D,), 0 when none is in it."""
    hits = [np.flatnonzero(ranked == row) for row in targets]
    return min((int(at[0]) + 1 for at in hits if len(at)), default=0)


# ---------------------------------------------------------------- one value per turn

def reciprocal_rank(ranks):
    """1 / rank, 0 where there is no hit: (n,) int -> (n,) float64. Paper, section 4."""
    ranks = np.asarray(ranks)
    return np.where(ranks > 0, 1 / np.maximum(ranks, 1), 0.0)


def mrr(ranks):
    """Mean reciprocal rank over turns: (1 / n) sum of 1 / rank. Paper, section 4."""
    return float(reciprocal_rank(ranks).mean())


def hit_at(ranks, k):
    """1 where the rank is k or better, else 0: (n,) int -> (n,) float64. Paper, section 4."""
    ranks = np.asarray(ranks)
    return ((ranks > 0) & (ranks <= k)).astype(np.float64)


def ndcg_at(ranks, k):
    """nDCG@k for one relevant track, not in the paper: 1 / log2(1 + rank) if rank <= k, else 0."""
    return hit_at(ranks, k) / np.log2(1 + np.maximum(ranks, 1))


# what results/metrics.csv has: {name: function of (n,) ranks that gives (n,) values}
METRICS = {"mrr": reciprocal_rank,
           **{f"hit@{k}": partial(hit_at, k=k) for k in (1, 10, 100)},
           **{f"ndcg@{k}": partial(ndcg_at, k=k) for k in (10, 20)}}


# ---------------------------------------------------------------- one value per system

def coverage(shown, n_tracks):
    """Catalogue coverage, not in the paper: the share of the tracks that are shown to anyone."""
    return len(set(shown)) / n_tracks


def distinct_2(texts):
    """Distinct-2: different pairs of neighbouring words / all pairs, over all texts.

    Not in the paper; the Music-CRS challenge's. Words are lower-cased and separated by white space.
    It falls with the amount of text: compare like amounts only. NaN where no text has two words.
    """
    pairs = [pair for text in texts for pair in pairwise(text.lower().split())]
    return len(set(pairs)) / len(pairs) if pairs else float("nan")


# ---------------------------------------------------------------- intervals

def bootstrap_ci(values, groups, n=1000, seed=0, level=0.95):
    """Percentile interval of the mean of `values`, resampled by group (cluster bootstrap).

    Turns of one playlist resemble each other. So playlists are drawn, with replacement, and each
    brings all its turns. With S_g the sum and c_g the number of values in group g, and w_g how
    often a resample of G groups draws g, the resampled mean is  sum_g w_g S_g / sum_g w_g c_g.

    values: (m,) float; or (R, m), the same turns in R training runs, which are then drawn too
    groups: labels, (m,). n: number of resamples. level: of the interval
    Returns: (low, high); NaN with fewer than two groups, where nothing can be resampled.
    """
    _, group = np.unique(groups, return_inverse=True)
    counts = np.bincount(group)
    n_groups = len(counts)
    if n_groups < 2:
        return float("nan"), float("nan")

    # each row of `drawn` is one resample of the groups
    rng = np.random.default_rng(seed)
    drawn = rng.integers(n_groups, size=(n, n_groups))
    sums = [np.bincount(group, weights=run) for run in np.atleast_2d(values)]
    means = np.stack([of_run[drawn].sum(axis=1) for of_run in sums]) / counts[drawn].sum(axis=1)

    # several runs (R, n): R of them are drawn for each resample
    if len(means) > 1:
        means = np.take_along_axis(means, rng.integers(len(means), size=means.shape), axis=0)
    low, high = np.quantile(means.mean(axis=0), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_difference(a, b, groups, seed=0):
    """Mean of a - b over the same turns, and its interval by `bootstrap_ci`.

    a, b, groups: as the values and groups there
    Returns: (mean, low, high). The difference is significant where the interval excludes 0.
    """
    difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    return float(difference.mean()), *bootstrap_ci(difference, groups, seed=seed)
