"""K-means of 02_quantize.py against scikit-learn's and faiss's, in one run: inertia, seconds,
ratios.

50,000 x 128, K = 1024:
    OMP_NUM_THREADS=2 python benchmarks/kmeans.py
Rows of your own, --n of them, drawn by lot:
    python benchmarks/kmeans.py --embeddings data/mpd/embeddings/semantic.npy
A GPU timed, without the peers:
    python benchmarks/kmeans.py --n 400000 --dim 4096 --device cuda --alone

faiss is no requirement of the project: pip install faiss-cpu (without it, its lines are left out).
It is given all rows, where its default would take at most 256 per cluster, and 25 passes, its
default, or 100. scikit-learn: one start of k-means++, passes until it stops by itself. Inertia is
computed anew from the centroids, by the same code for all.

Made rows are of two kinds, since k-means has another task on each. Clusters that lie apart, of very
different sizes: here the start decides. Clusters that overlap, in 16 dimensions that are mapped to
--dim with noise: here the passes decide.
"""

import argparse
import importlib
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from common.flags import add_shared, check_ranges

quantize = importlib.import_module("02_quantize")
BLOCK = 8192
KINDS = ("apart", "overlapping")


def make_rows(path, kind, n, dim, k, rng):
    """Write n rows to an .npy file, a block at a time, and memory-map it: (n, dim) float32.

    kind: one of KINDS.
    """
    centres = rng.normal(size=(2 * k, dim if kind == "apart" else 16)).astype(np.float32)
    spread = rng.normal(size=(16, dim)).astype(np.float32) / 4
    sizes = 1 / np.arange(1, 2 * k + 1) ** (1.0 if kind == "apart" else 0.5)
    rows = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(n, dim))
    for first in range(0, n, BLOCK):
        block = centres[rng.choice(2 * k, min(BLOCK, n - first), p=sizes / sizes.sum())]
        if kind == "apart":
            block = block + 0.7 * rng.standard_normal(block.shape, np.float32)
        else:
            block = (block + 0.5 * rng.standard_normal(block.shape, np.float32)) @ spread
            block += 0.2 * rng.standard_normal(block.shape, np.float32)
        rows[first:first + BLOCK] = block
    return np.load(path, mmap_mode="r")


def inertia_of(rows, centroids):
    codes = quantize.assign(rows, centroids)
    return float(quantize.distances_to_own(rows, centroids, codes).sum())


def ours(rows, k, n_init, device):
    """Centroids, seconds, and (seconds, inertia) after each pass over all rows."""
    trace = []
    begin = time.perf_counter()

    def report(n, moved, inertia):
        seconds = time.perf_counter() - begin
        print(f"  {seconds:7.2f} s  {n:9,d} rows  {moved:7.2%} moved", file=sys.stderr)
        if n == len(rows):
            trace.append((seconds, inertia))

    centroids = quantize.fit_codebook(rows, k, n_init, 0, device, report)
    return centroids, time.perf_counter() - begin, trace


def scikit_learn(rows, k):
    begin = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        centroids = KMeans(k, n_init=1, random_state=0).fit(rows).cluster_centers_
    return centroids, time.perf_counter() - begin


def faiss_kmeans(rows, k, passes):
    """The same as `ours`."""
    import faiss
    faiss.omp_set_num_threads(torch.get_num_threads())
    begin = time.perf_counter()
    fitted = faiss.Kmeans(rows.shape[1], k, niter=passes, seed=1234,
                          max_points_per_centroid=len(rows))
    fitted.train(rows)
    trace = [(step["time"], step["obj"]) for step in fitted.iteration_stats]
    return fitted.centroids, time.perf_counter() - begin, trace


def seconds_until(trace, inertia):
    """When a trace first has this inertia or a lower one, as text."""
    reached = (f"{seconds:.2f} s" for seconds, value in trace if value <= inertia)
    return next(reached, "never")


def compare(rows, k, args):
    mine, seconds, trace = ours(rows, k, args.n_init, args.device)
    results = {"02_quantize": (inertia_of(rows, mine), seconds)}
    if not args.alone:
        rows, traces = np.array(rows), {}
        try:
            for passes in (25, 100):
                centroids, seconds, traces[passes] = faiss_kmeans(rows, k, passes)
                results[f"faiss, {passes} passes"] = inertia_of(rows, centroids), seconds
        except ImportError:
            print("  faiss is not installed: pip install faiss-cpu")
        centroids, seconds = scikit_learn(rows, k)
        results["scikit-learn"] = inertia_of(rows, centroids), seconds
    base = results.get("scikit-learn", results["02_quantize"])
    print(f"  {'':18s}{'inertia':>14s}{'ratio':>9s}{'seconds':>10s}{'ratio':>9s}")
    for name, (inertia, seconds) in results.items():
        print(f"  {name:18s}{inertia:14.6g}{inertia / base[0]:9.4f}"
              f"{seconds:10.2f}{seconds / base[1]:9.3f}")
    if not args.alone and traces:
        goal, best = results["faiss, 25 passes"], results["02_quantize"]
        print(f"  until it has the inertia of faiss's 25 passes: 02_quantize "
              f"{seconds_until(trace, goal[0])}, faiss {goal[1]:.2f} s")
        print(f"  until it has the inertia of 02_quantize: 02_quantize {best[1]:.2f} s, "
              f"faiss in 100 passes {seconds_until(traces[100], best[0])}")


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--n", type=int, default=50_000, help="rows (default 50,000)")
    add("--dim", type=int, default=128, help="of the rows that are made (default 128)")
    add("--k", type=int, default=1024, help="clusters (default 1024)")
    add("--n-init", type=int, default=1, help="starts of 02_quantize (default 1)")
    add("--embeddings", type=Path, default=None,
        help="an .npy file of (N, D) float32 to draw rows from, instead of made ones")
    add("--kinds", nargs="+", choices=KINDS, default=KINDS, help="of made rows (default both)")
    add_shared(parser, "device")
    add("--alone", action="store_true", help="02_quantize without its peers")
    args = parser.parse_args()
    check_ranges(args, n=1, dim=1, k=1, n_init=1)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))
    print(f"{torch.get_num_threads()} threads, device {args.device}; ratios are to scikit-learn")
    rng = np.random.default_rng(0)
    if args.embeddings:
        array = np.load(args.embeddings, mmap_mode="r")
        drawn = rng.permutation(np.flatnonzero(~np.isnan(array[:, 0])))[:args.n]
        rows = array[np.sort(drawn)]
        print(f"{args.embeddings}: {rows.shape[0]:,} x {rows.shape[1]}, K = {args.k}")
        compare(rows, args.k, args)
        return
    for kind in args.kinds:
        with tempfile.TemporaryDirectory() as folder:
            print(f"{kind}: {args.n:,} x {args.dim}, K = {args.k}")
            rows = make_rows(Path(folder) / "rows.npy", kind, args.n, args.dim, args.k, rng)
            compare(rows, args.k, args)


if __name__ == "__main__":
    main()
