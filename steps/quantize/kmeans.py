"""K-means for catalogues of any size: k-means++ on a sample, then Lloyd's passes over more and more of the rows.

A pass over 1.7 million rows of 4,096 numbers reads 28 GB, so most passes are made where they are cheap: on a sample,
then on one GROWTH times as large that contains it, in the end on all rows. Beyond the first sample each centroid
makes STEP times the step to the mean of its rows; any step under 2 lowers the inertia too, and this one gets there in
fewer passes. Rows are read a chunk at a time, to the device that is asked for; what is kept for every row is some
40 bytes, whatever its length. Under torchrun each process has its share of the rows, and their sums are joined. Up to SAMPLE rows, one sample is all, and draws and passes are those of scikit-learn's KMeans:
the same codes on the demo; on 8,000 rows of noise, where it makes more passes, an inertia 0.05% to 0.15% higher than its.
"""

import numpy as np
import torch
import torch.distributed as dist

from common.process import current_process, gather

SAMPLE, PER_CODE = 8192, 20  # the first sample has so many rows, or so many times K; with 8 times, benchmarks/kmeans.py ends 2% higher
GROWTH = 4
STEP = 1.8                  # of benchmarks/kmeans.py's data, 1.5 and 1 ended higher, 1 after as many passes
MOVED = 0.001               # the last sample is done when a pass moves less than this share of its rows to another cluster,
MOVED_BEFORE = 0.01         # a sample before it with this share,
PASSES = 100                # each after so many passes at the latest
CHUNK = 2048                # rows a step; their distances to all centroids should fit in a CPU's cache
HELD = 2**30                # bytes of rows that stay in memory between passes (on a GPU half of what is free)


# ---------------------------------------------------------------- one or more processes

def joined(tensor):
    """The sum of a tensor over all processes."""
    if current_process()[1] > 1:
        dist.all_reduce(tensor)
    return tensor


def same(tensor):
    """The first process's tensor, for all: on GPUs, equal work need not end in equal bits."""
    if current_process()[1] > 1:
        dist.broadcast(tensor, 0)
    return tensor


def over_rows(n, function):
    """function(slice) -> (rows of the slice, ...) array, for all n rows: each process makes its share, all get the whole."""
    rank, world = current_process()
    cuts = [n * i // world for i in range(world + 1)]
    return np.concatenate(gather(function(slice(cuts[rank], cuts[rank + 1]))))


# ---------------------------------------------------------------- k-means

class Chunks:
    """This process's share of some rows of an array, as often as wanted: yields (slice of `rows`, (n, D) float32 tensor on
    the device)."""

    def __init__(self, array, rows, device):
        """array: (N, D) float32, a memory map or not. rows: (n,) their numbers, ascending, of all processes together."""
        rank, world = current_process()
        self.array, self.rows, self.device, self.kept = np.asarray(array), np.array_split(rows, world)[rank], device, {}
        self.room = torch.cuda.mem_get_info(device)[0] // 2 if "cuda" in str(device) else HELD

    def __iter__(self):
        for first in range(0, len(self.rows), CHUNK):
            part, chunk = slice(first, min(first + CHUNK, len(self.rows))), self.kept.get(first)
            if chunk is None:
                chunk = torch.from_numpy(self.array[self.rows[part]]).to(self.device)
                if chunk.nbytes <= self.room:
                    self.kept[first], self.room = chunk, self.room - chunk.nbytes
            yield part, chunk


def first_centroids(rows, k, random):
    """Greedy k-means++ (Arthur & Vassilvitskii 2007): of a few rows, drawn in proportion to their squared distance to
    the nearest centroid so far, the one that lowers the sum of these distances most.

    rows: (n, D) float32 tensor. random: np.random.RandomState; the draws are those of scikit-learn.
    Returns: (k, D) float32.
    """
    norms, trials = (rows**2).sum(1), 2 + int(np.log(k))

    def distances(candidates):  # c row numbers -> (c, n)
        return (norms[candidates, None] + norms - 2 * rows[candidates] @ rows.T).clamp(min=0)

    chosen = [random.choice(len(rows), p=np.full(len(rows), 1 / len(rows)))]
    nearest = distances(chosen)[0]  # (n,)
    for _ in range(1, k):
        reached = nearest.double().cumsum(0)
        drawn = torch.as_tensor(random.uniform(size=trials), device=rows.device) * reached[-1]
        candidates = torch.searchsorted(reached, drawn).clamp(max=len(rows) - 1)
        after = torch.minimum(distances(candidates), nearest)  # (trials, n)
        best = after.double().sum(1).argmin()
        chosen.append(int(candidates[best]))
        nearest = after[best]
    return rows[chosen]


def farthest_rows(chunks, distances, count):
    """Numbers of the rows, of all processes, with the largest distances (n,), the largest first."""
    own, order = distances.topk(min(count, len(distances)))
    farthest = sum(gather(list(zip(own.tolist(), chunks.rows[order.cpu().numpy()].tolist()))), [])
    return [row for _, row in sorted(farthest, key=lambda pair: -pair[0])[:count]]


def lloyd(chunks, centroids, step=1.0, enough=MOVED, report=None):
    """Passes over all processes' n rows until one moves less than a share `enough` of them to another cluster. A cluster without rows
    begins again at the row that is farthest from its centroid.

    chunks: Chunks of n rows. centroids: (k, D) float32 tensor on their device. step: how far a centroid goes, 1 =
    to the mean of its rows. report: function of (n, share of them that moved, inertia), called after each pass.
    Returns: inertia in the last pass (float), the means of its clusters (k, D) float32.
    """
    k, device = len(centroids), centroids.device
    n = int(joined(torch.tensor(len(chunks.rows), device=device)))
    codes, distances = torch.full((len(chunks.rows),), -1, device=device), torch.empty(len(chunks.rows), device=device)
    scores, idle = torch.empty(CHUNK, k, device=device), k
    for _ in range(PASSES):
        sums, counts = torch.zeros_like(centroids, dtype=torch.float64), torch.zeros(k, device=device)
        halves, moved, was_idle = (centroids**2).sum(1) / 2, torch.zeros((), device=device), idle
        for part, rows in chunks:
            # |x - c|^2 = |x|^2 - 2 (x c - |c|^2 / 2), where x c - |c|^2 / 2 is largest for the nearest c
            score, nearest = torch.addmm(halves, rows, centroids.T, beta=-1, out=scores[:len(rows)]).max(1)
            sums.index_add_(0, nearest, rows.double())
            counts += torch.bincount(nearest, minlength=k)
            moved += (codes[part] != nearest).sum()
            codes[part], distances[part] = nearest, (rows**2).sum(1) - 2 * score
        inertia = distances.double().sum()
        for of_all in (sums, counts, moved, inertia):
            joined(of_all)
        empty = torch.nonzero(counts == 0)[:, 0]
        idle = len(empty)
        means = torch.where(counts[:, None] > 0, sums / counts[:, None], centroids).float()
        if idle:
            means[empty] = centroids[empty] = torch.from_numpy(chunks.array[farthest_rows(chunks, distances, idle)]).to(device)
        inertia, moved = float(inertia), float(moved) / n
        if report:
            report(n, moved, inertia)
        if moved < enough and idle >= was_idle:  # a sample may have fewer different rows than k: some stay idle
            break
        centroids = centroids + step * (means - centroids)
    return inertia, means


def fit_codebook(embeddings, k, n_init=1, seed=0, device="cpu", report=None):
    """K-means centroids of the rows that are not NaN.

    embeddings: (N, D) float32, a memory map or not. k: at most the number of different rows. n_init: starts on the
    first sample; the one with the smallest inertia there goes on. report: see lloyd. On a CPU a seed gives the same
    bytes each time.
    Returns: (k, D) float32, the same in each process.
    """
    present = np.flatnonzero(~np.isnan(embeddings[:, 0]))
    order, random = np.random.default_rng(seed).permutation(len(present)), np.random.RandomState(seed)
    sizes = [max(SAMPLE, PER_CODE * k)]
    while sizes[-1] < len(present):
        sizes.append(GROWTH * sizes[-1])
    for size in sizes:
        chunks = Chunks(embeddings, np.sort(present[order[:size]]), device)
        enough = MOVED if size == sizes[-1] else MOVED_BEFORE
        if size == sizes[0]:
            sample = torch.from_numpy(chunks.array[np.sort(present[order[:size]])]).to(device)  # all of it, in each process
            starts = (lloyd(chunks, same(first_centroids(sample, k, random)), 1.0, enough, report) for _ in range(n_init))
            centroids = min(starts, key=lambda found: found[0])[1]
        else:
            centroids = lloyd(chunks, centroids, STEP, enough, report)[1]
    return centroids.cpu().numpy()
