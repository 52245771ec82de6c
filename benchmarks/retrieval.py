"""Ranking 1.7 million tracks: common/retrieval.py against brute force, in one run on one core.

    python benchmarks/retrieval.py            (1.7 million tracks, K = 1024; about 1 GB of memory)

Codes are drawn with a long tail (Zipf), since real clusters are not equally large. Prints the time
of a query for the 1,000 best tracks by the index, and by plain comparison of all rows, which must
agree. Then what the rankers of 05_infer.py do besides asking the model: `likelihood` walks down the
trie, here with random log-probabilities; `votes` and `expected` add five numbers per track.
"""

import argparse
import os
import sys
import time
from functools import partial
from pathlib import Path
from timeit import timeit

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from common import metrics, retrieval
from common.flags import check_ranges
from common.tokens import MODALITIES
from steps.infer.rankers import LAST, best_tracks, expected_overlap, extend_beam
from steps.infer.trie import build_trie


def long_tailed_codes(n, k, rng):
    """(n, 5) int16: cluster sizes fall off as 1 / sqrt(rank); 10% of the codes are missing."""
    p = 1 / np.sqrt(np.arange(1, k + 1))
    columns = [rng.choice(k, n, p=p / p.sum()) for _ in MODALITIES]
    codes = np.stack(columns, 1).astype(np.int16)
    codes[rng.random(codes.shape) < 0.1] = -1
    return codes


def time_ms(function, arguments):
    """How long each call takes, in ms."""
    return np.array([timeit(partial(function, x), number=1) for x in arguments]) * 1e3


def time_overlap(codes, queries, rng):
    """Time of a search by the index, and by brute force, per query."""
    begin = time.perf_counter()
    index = retrieval.build_index(codes)
    print(f"index of {len(codes):,} tracks: {time.perf_counter() - begin:.1f} s")

    def by_index(query):
        return retrieval.search(index, query, metrics.DEPTH, rng)[1]

    def plainly(query):
        scores = retrieval.overlap(codes, query)
        return scores[np.argpartition(-scores, metrics.DEPTH - 1)[:metrics.DEPTH]]

    for query in queries[:20]:
        if not np.array_equal(np.floor(by_index(query)), np.sort(plainly(query))[::-1]):
            raise SystemExit("the two disagree")
    return time_ms(by_index, queries), time_ms(plainly, queries[:20])


def time_rankers(codes, k, beam, n_queries, rng):
    """Time of the likelihood ranker, and of votes and expected, per query."""
    begin = time.perf_counter()
    trie = build_trie(codes)
    print(f"trie of {len(codes):,} tracks: {time.perf_counter() - begin:.1f} s, nodes per level "
          f"{[len(c) for c in trie.codes]}")
    p = rng.dirichlet(np.full(k, 0.1), (len(MODALITIES), beam))
    logp = np.log(p + 1e-9).astype(np.float32)                           # (5, beam, K)
    missing = np.full(beam, -np.log(k), np.float32)

    def likelihood(_):
        nodes = np.zeros(1, np.int64), np.zeros(1, np.float32)
        levels = []
        for level in range(LAST + 1):
            (*nodes, _), lost = extend_beam(trie, level, *nodes, logp[level], missing,
                                            beam if level < LAST else 0)
            levels.append(lost)
        rows, scores = best_tracks(trie, levels, metrics.DEPTH)
        return rows[metrics.rank_rows(scores, rng, metrics.DEPTH)]

    def sums(_):
        return metrics.rank_rows(expected_overlap(codes, np.exp(logp[:, 0])), rng, metrics.DEPTH)

    return time_ms(likelihood, range(n_queries)), time_ms(sums, range(n_queries))


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--n", type=int, default=1_700_000, help="tracks (default 1,700,000)")
    add("--k", type=int, default=1024, help="codes per modality (default 1024)")
    add("--beam", type=int, default=50, help="prefixes kept per level (default 50)")
    add("--queries", type=int, default=200, help="searches that are timed (default 200)")
    args = parser.parse_args()
    check_ranges(args, n=1, k=1, beam=1, queries=1)
    rng = np.random.default_rng(0)
    codes = long_tailed_codes(args.n, args.k, rng)

    fast, slow = time_overlap(codes, codes[rng.integers(args.n, size=args.queries)], rng)
    likelihood, sums = time_rankers(codes, args.k, args.beam, args.queries, rng)
    print("median time per query (99% of inverted lists in under "
          f"{np.quantile(fast, 0.99):.2f} ms):")
    print(f"inverted lists       {np.median(fast):.2f} ms")
    print(f"brute force          {np.median(slow):.1f} ms")
    print(f"likelihood           {np.median(likelihood):.2f} ms, besides the model")
    print(f"votes and expected   {np.median(sums):.1f} ms, besides the model")


if __name__ == "__main__":
    main()
