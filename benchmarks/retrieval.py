"""Ranking 1.7 million tracks: common/retrieval.py against brute force, in one run on one core.

    python benchmarks/retrieval.py                 (1.7 million tracks, K = 1024; about 1 GB of memory)

Codes are drawn with a long tail (Zipf), since real clusters are not equally large. Prints the time to build
the index, the median and the slowest hundredth of a query for the 1,000 best tracks, the same for numpy's plain
comparison of all rows, and their ratio. The two are compared: the scores of the 1,000 best are equal.

Then what the rankers of 05_infer.py do besides asking the model: `likelihood` descends the trie with a beam of 50,
here with random log-probabilities, `votes` and `expected` add five numbers for every track; each then takes the 1,000 best.
"""

import argparse
import os
import sys
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np

from common import metrics, retrieval
from steps.infer.likelihood_ranker import best_tracks, extend_beam
from steps.infer.trie import build_trie


def long_tailed_codes(n, k, rng):
    """(n, 5) int16: cluster sizes fall off as 1 / sqrt(rank); 10% of the codes are missing."""
    p = 1 / np.sqrt(np.arange(1, k + 1))
    codes = np.stack([rng.choice(k, n, p=p / p.sum()) for _ in range(5)], 1).astype(np.int16)
    codes[rng.random((n, 5)) < 0.1] = -1
    return codes


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n")[0])
    parser.add_argument("--n", type=int, default=1_700_000, help="tracks (default 1,700,000)")
    parser.add_argument("--k", type=int, default=1024, help="codes a modality (default 1024)")
    parser.add_argument("--beam", type=int, default=50, help="prefixes kept a level (default 50)")
    parser.add_argument("--queries", type=int, default=200, help="searches that are timed (default 200)")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    codes = long_tailed_codes(args.n, args.k, rng)
    begin = time.perf_counter()
    index = retrieval.build_index(codes)
    print(f"index of {args.n:,} tracks: {time.perf_counter() - begin:.1f} s")

    fast, slow = [], []
    for query in codes[rng.integers(args.n, size=args.queries)]:
        begin = time.perf_counter()
        rows, scores = retrieval.search(index, query, 1000, rng)
        fast.append(time.perf_counter() - begin)
        if len(slow) < 20:
            begin = time.perf_counter()
            plain = retrieval.overlap(codes, query)
            best = np.argpartition(-plain, 999)[:1000]
            slow.append(time.perf_counter() - begin)
            assert np.array_equal(np.floor(scores), np.sort(plain[best])[::-1]), "the two disagree"
    fast, slow = np.array(fast) * 1e3, np.array(slow) * 1e3
    print(f"inverted lists: median {np.median(fast):.2f} ms, 99% under {np.quantile(fast, 0.99):.2f} ms a query")
    print(f"brute force:    median {np.median(slow):.1f} ms a query; {np.median(slow) / np.median(fast):.0f} times as long")

    begin = time.perf_counter()
    trie = build_trie(codes)
    print(f"trie of {args.n:,} tracks: {time.perf_counter() - begin:.1f} s, nodes a level {[len(c) for c in trie.codes]}")
    logp = np.log(rng.dirichlet(np.full(args.k, 0.1), (5, args.beam)) + 1e-9).astype(np.float32)  # (5, beam, K)
    missing = np.full(args.beam, -np.log(args.k), np.float32)
    descents, sums = [], []
    for _ in range(args.queries):
        begin, nodes, levels = time.perf_counter(), (np.zeros(1, np.int64), np.zeros(1, np.float32)), []
        for level in range(5):
            (*nodes, _), lost = extend_beam(trie, level, *nodes, logp[level], missing, args.beam if level < 4 else 0)
            levels.append(lost)
        found, scores = best_tracks(trie, levels, 1000)
        found[metrics.rank_rows(scores, rng, 1000)]
        descents.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        metrics.rank_rows(retrieval.expected_overlap(codes, np.exp(logp[:, 0])), rng, 1000)
        sums.append(time.perf_counter() - begin)
    print(f"likelihood, besides the model: median {np.median(descents) * 1e3:.2f} ms a query")
    print(f"votes and expected, besides the model: median {np.median(sums) * 1e3:.1f} ms a query")


if __name__ == "__main__":
    main()
