"""02: embeddings -> five codes per track, by k-means for each modality (paper, section 2.1).

A track's code is the number of the nearest centroid, by Euclidean distance to the row as
01_extract_embeddings.py wrote it. The paper does not say whether it normalises; here 02 does not.
Playlist and text rows come with length 1, so that k-means groups them as the cosine would. Audio
rows come standardised: to divide them by their length would magnify the little by which an average
track differs from the mean. So plain nearest centroid is the whole assignment, for new tracks too.

Each codebook is fitted on the tracks that have the modality. Codes come from `assign`, never from
the fit, so that the saved codebooks give the same codes again.

K-means is the same for every size of catalogue. Most passes are made where they are cheap: on a
sample, then on one GROWTH times as large that contains it, in the end on all rows. A catalogue that
fits in the first sample, such as the demo, gets scikit-learn's draws, passes and codes. Embeddings
stay on disk (steps/quantize/rows.py); under torchrun each process reads and assigns its share.

--assign-only gives codes from the saved codebooks to the embeddings that are there now: for a
catalogue that has grown. It is right for text rows, and for audio rows scaled with the codebooks'
audio_scaling.npy. Item2vec trained anew is another space: fit its codebook again.

Reads   tracks.jsonl, embeddings/<modality>.npy (one that is missing gives a column of -1);
        with --assign-only also codebooks/*
Writes  codebooks/<modality>.npy (K, D) float32, codes.npy (N, 5) int16, -1 where missing,
        codebooks/info.json (K, diagnostics), codebooks/examples.jsonl (what each token means)

Demo        python 02_quantize.py                                    (1 s)
Full scale  python 02_quantize.py --data-dir data/mpd --k 1024 --device cuda
            Eight GPUs: torchrun --nproc-per-node 8 02_quantize.py --data-dir data/mpd --k 1024 \
                --device cuda

A killed run goes on with the modalities that are not fitted yet.
"""

import argparse
import os
import sys

import numpy as np
import torch
from tqdm import tqdm

from common import data, runs
from common.flags import add_shared, check_ranges
from common.process import agree, current_process, end_process, start_process
from common.tokens import MODALITIES
from steps.quantize import report
from steps.quantize.read import load_codebook, load_embeddings, saved_k
from steps.quantize.rows import Rows, farthest, same_for_all, share_rows, sum_over_processes

NAME = "02_quantize"
LARGEST_K = 32767    # codes are int16
SAMPLE = 8192        # rows of the first sample, or PER_CODE times K if that is more
PER_CODE = 20        # with 8, benchmarks/kmeans.py ends with 2% more inertia
GROWTH = 4           # each sample is so many times as large as the one before
STEP = 1.8           # beyond the first sample; in benchmarks/kmeans.py 1.5 and 1 ended with more
MOVED = 0.001        # the last sample is done when a pass moves a smaller share of the rows,
MOVED_BEFORE = 0.01  # a sample before it with this share,
PASSES = 100         # each after so many passes at the latest


# ---------------------------------------------------------------- k-means

def choose_k(n_tracks):
    """The power of two nearest to 2 sqrt(N), from 8 to the paper's 1024: 64 for 1,000 tracks."""
    powers = 2 ** np.arange(3, 11)
    return int(powers[np.abs(powers - 2 * np.sqrt(n_tracks)).argmin()])


def count_distinct(rows, enough):
    """How many different rows an array has, but for those of NaN; counting stops at `enough`."""
    seen = set()
    for row in rows:
        if not np.isnan(row[0]):
            seen.add(row.tobytes())
        if len(seen) == enough:
            break
    return len(seen)


def first_centroids(rows, k, random_state):
    """Greedy k-means++ (Arthur & Vassilvitskii 2007).

    A few candidates are drawn in proportion to their squared distance to the nearest centroid so
    far. The one that lowers the sum of these distances most becomes the next centroid.

    rows: (n, D) float32 tensor.
    random_state: np.random.RandomState; the draws are those of scikit-learn.
    Returns: (k, D) float32.
    """
    norms = (rows**2).sum(1)  # (n,)
    trials = 2 + int(np.log(k))

    def distances(candidates):  # c row numbers -> (c, n)
        return (norms[candidates, None] + norms - 2 * rows[candidates] @ rows.T).clamp(min=0)

    chosen = [random_state.choice(len(rows), p=np.full(len(rows), 1 / len(rows)))]
    nearest = distances(chosen)[0]  # (n,)
    for _ in range(1, k):
        reached = nearest.double().cumsum(0)
        drawn = torch.as_tensor(random_state.uniform(size=trials), device=rows.device) * reached[-1]
        candidates = torch.searchsorted(reached, drawn).clamp(max=len(rows) - 1)
        after = torch.minimum(distances(candidates), nearest)  # (trials, n)
        best = after.double().sum(1).argmin()
        chosen.append(int(candidates[best]))
        nearest = after[best]
    return rows[chosen]


def lloyd(rows, centroids, step=1.0, enough=MOVED, report_pass=None):
    """Lloyd's passes until one moves less than a share `enough` of the rows to another cluster.

    A cluster without rows begins again at the row that is farthest from its centroid.

    rows: a `Rows` of this process's n rows.
    centroids: (k, D) float32 tensor on their device.
    step: how far a centroid goes; 1 = to the mean of its rows. Any step under 2 lowers the inertia.
    report_pass: function of (n, share of them that moved, inertia), called after each pass.
    Returns: inertia of the last pass (float), the means of its clusters (k, D) float32.
    """
    k = len(centroids)
    device = centroids.device
    n = torch.tensor(len(rows), device=device)
    sum_over_processes(n)
    codes = torch.full((len(rows),), -1, device=device)
    distances = torch.empty(len(rows), device=device)
    scores = torch.empty(rows.chunk, k, device=device)
    idle = k
    for _ in range(PASSES):
        # the nearest centroid of each row, and the sum and number of the rows of each cluster
        sums = torch.zeros_like(centroids, dtype=torch.float64)
        counts = torch.zeros(k, device=device)
        moved = torch.zeros((), device=device)
        halves = (centroids**2).sum(1) / 2
        for where, chunk in rows:
            # |x - c|^2 = |x|^2 - 2 (x c - |c|^2 / 2): the nearest c has the largest bracket
            score, nearest = torch.addmm(halves, chunk, centroids.T, beta=-1,
                                         out=scores[:len(chunk)]).max(1)
            sums.index_add_(0, nearest, chunk.double())
            counts += torch.bincount(nearest, minlength=k)
            moved += (codes[where] != nearest).sum()
            codes[where] = nearest
            distances[where] = (chunk**2).sum(1) - 2 * score
        inertia = distances.double().sum()
        sum_over_processes(sums, counts, moved, inertia)

        # the means; clusters without rows begin again
        empty = torch.nonzero(counts == 0)[:, 0]
        was_idle, idle = idle, len(empty)
        means = torch.where(counts[:, None] > 0, sums / counts[:, None], centroids).float()
        if idle:
            means[empty] = centroids[empty] = rows.take(farthest(rows, distances, idle))

        moved_share = float(moved) / int(n)
        if report_pass:
            report_pass(int(n), moved_share, float(inertia))
        # done, unless fewer clusters are without rows than before (with fewer different rows than
        # k, some always are)
        if moved_share < enough and idle >= was_idle:
            break
        centroids = centroids + step * (means - centroids)
    return float(inertia), means


def fit_codebook(embeddings, k, n_init=1, seed=0, device="cpu", report_pass=None):
    """K-means centroids of the rows that are not NaN (paper, section 2.1).

    embeddings: (N, D) float32, a memory map or not.
    k: at most the number of different rows.
    n_init: starts on the first sample; the one with the smallest inertia there goes on.
    report_pass: see `lloyd`.
    Returns: (k, D) float32, the same in each process. On a CPU a seed always gives the same bytes.
    """
    present = np.flatnonzero(~np.isnan(embeddings[:, 0]))
    order = np.random.default_rng(seed).permutation(len(present))
    random_state = np.random.RandomState(seed)
    sizes = [max(SAMPLE, PER_CODE * k)]
    while sizes[-1] < len(present):
        sizes.append(GROWTH * sizes[-1])
    for size in sizes:
        numbers = np.sort(present[order[:size]])
        rows = Rows(embeddings, numbers, device)
        enough = MOVED if size == sizes[-1] else MOVED_BEFORE
        if size == sizes[0]:
            sample = rows.take(numbers)  # all of it, in each process
            starts = (first_centroids(sample, k, random_state) for _ in range(n_init))
            fits = (lloyd(rows, same_for_all(start), 1.0, enough, report_pass) for start in starts)
            centroids = min(fits, key=lambda fit: fit[0])[1]
        else:
            centroids = lloyd(rows, centroids, STEP, enough, report_pass)[1]
    return centroids.cpu().numpy()


def fit(modality, embeddings, k, n_init, seed, device):
    """`fit_codebook` with a progress bar, and fewer clusters than k where fewer rows differ."""
    clusters = count_distinct(embeddings, k)
    if clusters < k:
        print(f"{modality}: only {clusters} different rows, so {clusters} clusters instead of {k}")
    with tqdm(desc=modality, unit="pass", disable=current_process()[0] > 0) as bar:
        def report_pass(rows, moved, inertia):
            bar.update()
            bar.set_postfix(rows=rows, moved=f"{moved:.2%}", inertia=f"{inertia:.4g}")
        return fit_codebook(embeddings, clusters, n_init, seed, device, report_pass)


# ---------------------------------------------------------------- codes

def assign(embeddings, codebook, chunk=8192):
    """The nearest centroid of each row, for any tracks, new ones too (paper, section 2.1).

    embeddings: (N, D) float; a row with NaN lacks the modality.
    codebook: (K, D) float, K <= 32,767.
    chunk: rows at a time, so that no (N, K) array is made.
    Returns: (N,) int16 codes, -1 where missing; the lower of two codes that are equally near.
    Raises ValueError: dimensions that differ, K too large.
    """
    if embeddings.shape[1] != codebook.shape[1]:
        raise ValueError(f"embeddings have {embeddings.shape[1]} dimensions, the codebook has "
                         f"{codebook.shape[1]}")
    if len(codebook) > LARGEST_K:
        raise ValueError(f"a codebook of {len(codebook)}; codes are int16, at most {LARGEST_K}")
    codes = np.empty(len(embeddings), np.int16)
    squares = (codebook**2).sum(1)  # (K,)
    for first in range(0, len(embeddings), chunk):
        rows = embeddings[first:first + chunk]
        # |x - c|^2 without |x|^2, which is the same for all c
        nearest = (squares - 2 * rows @ codebook.T).argmin(1)
        codes[first:first + chunk] = np.where(np.isnan(rows).any(1), -1, nearest)
    return codes


def distances_to_own(embeddings, codebook, codes, chunk=2048):
    """Squared distance of each row to its code's centroid: (N,) float64, NaN for code -1."""
    distances = np.empty(len(embeddings))
    for first in range(0, len(embeddings), chunk):
        rows = slice(first, first + chunk)
        difference = embeddings[rows].astype(np.float64) - codebook[codes[rows]]
        distances[rows] = (difference**2).sum(1)
    return np.where(codes < 0, np.nan, distances)


def assign_shared(embeddings, codebook):
    """`assign` and `distances_to_own`; each process does its share of the rows, all get all."""
    n = len(embeddings)
    codes = share_rows(n, lambda share: assign(embeddings[share], codebook))
    distances = share_rows(
        n, lambda share: distances_to_own(embeddings[share], codebook, codes[share]))
    return codes, distances


def make_codes(embeddings, codebooks, tracks):
    """The codes of all tracks, and what came of them. embeddings, codebooks: {modality: array}.

    Returns: (N, 5) int16; the content of codebooks/info.json; the lines of examples.jsonl.
    """
    codes = np.full((len(tracks), len(MODALITIES)), -1, np.int16)
    info = {"tracks": len(tracks), "normalised": False, "modalities": {}}
    examples = []
    for modality, codebook in codebooks.items():
        column, distances = assign_shared(embeddings[modality], codebook)
        codes[:, MODALITIES.index(modality)] = column
        info["modalities"][modality] = report.describe_codes(column, distances, len(codebook))
        nearest = report.nearest_tracks(column, distances, len(codebook))
        examples += report.example_rows(modality, column, nearest, tracks)
    return codes, info | report.describe_collisions(codes), examples


# ---------------------------------------------------------------- main

def parse_args(argv=None):
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    add = parser.add_argument
    add_shared(parser, "data-dir", "device", "seed", "resume")
    add("--k", type=int, default=0, help="clusters per modality (paper: 1024); 0 (default): the "
        "power of two nearest to twice the root of the number of tracks, from 8 to 1024")
    add("--n-init", type=int, default=1, help="starts of k-means, the best of which is kept "
        "(default 1); they are compared on the first sample (all rows of a small catalogue)")
    add("--assign-only", action="store_true",
        help="fit nothing: codes for the present embeddings from the saved codebooks")
    args = parser.parse_args(argv)
    if args.k and not 2 <= args.k <= LARGEST_K:
        raise SystemExit(f"--k {args.k}: from 2 to {LARGEST_K} is expected (codes are int16), or 0 "
                         f"to choose by the catalogue")
    if args.k and args.assign_only:
        raise SystemExit(f"--k {args.k} with --assign-only: K is that of the saved codebooks; "
                         f"leave one of the two out")
    check_ranges(args, n_init=1)
    return args


def load_all(data_dir, n_tracks, assign_only):
    """({modality: embeddings}, {modality: saved codebook, or None where one is to be fitted}).

    Raises SystemExit: there is nothing to make codes of.
    """
    embeddings = {m: load_embeddings(data_dir, m, n_tracks) for m in MODALITIES}
    embeddings = {m: rows for m, rows in embeddings.items() if rows is not None}
    codebooks = dict.fromkeys(embeddings)
    if assign_only:
        codebooks = {m: load_codebook(data_dir, m, rows.shape[1]) for m, rows in embeddings.items()}
        codebooks = {m: codebook for m, codebook in codebooks.items() if codebook is not None}
    if not codebooks:
        raise SystemExit(f"{data_dir}/embeddings: no track has any modality. Make the embeddings "
                         f"with: python 01_extract_embeddings.py --data-dir {data_dir}")
    return embeddings, codebooks


def main(argv=None):
    args = parse_args(argv)
    rank, _, device = start_process(args.device)
    torch.set_flush_denormal(True)  # on a CPU, tiny numbers would slow everything down
    if rank:
        sys.stdout = open(os.devnull, "w")  # all do the same, one tells of it
    folder = args.data_dir / "codebooks"
    tracks = data.load_tracks(args.data_dir)
    k = saved_k(args.data_dir) if args.assign_only else args.k or choose_k(len(tracks))
    embeddings, codebooks = load_all(args.data_dir, len(tracks), args.assign_only)
    run, state = runs.begin_run(
        args.data_dir, NAME, args, resume=args.resume and not args.assign_only, record=False,
        reads=[*data.catalogue_files(args.data_dir), *(f"embeddings/{m}.npy" for m in MODALITIES)],
        writes=[*(f"codebooks/{m}.npy" for m in MODALITIES), "codebooks/info.json",
                "codebooks/examples.jsonl", "codes.npy"])
    state = agree(lambda: state)
    if state == "done":
        print(f"{NAME}: already done (--no-resume does it again)")
        return end_process()

    # a codebook per modality; what a killed run has fitted already is kept
    unfinished = {m: folder / f"{m}.part.npy" for m in MODALITIES}
    if not rank:
        if state == "new":
            for path in unfinished.values():
                path.unlink(missing_ok=True)
        runs.record_run(run)  # only now: nothing of an older run is left
    fitted = agree(lambda: [m for m in MODALITIES if unfinished[m].is_file()])
    for modality in codebooks:
        if modality in fitted:
            codebooks[modality] = np.load(unfinished[modality])
        elif not args.assign_only:
            codebooks[modality] = fit(modality, embeddings[modality], k, args.n_init, args.seed,
                                      device)
            if not rank:
                data.save_npy(unfinished[modality], codebooks[modality])

    # five codes per track, and what came of them
    codes, info, examples = make_codes(embeddings, codebooks, tracks)
    info = {"k": k, **info}
    end_process()
    if rank:
        return

    if not args.assign_only:
        for modality in MODALITIES:
            if modality in codebooks:
                data.save_npy(folder / f"{modality}.npy", codebooks[modality])
            else:  # of an earlier catalogue that had the modality
                (folder / f"{modality}.npy").unlink(missing_ok=True)
    data.write_jsonl(folder / "examples.jsonl", examples)
    data.write_jsonl(folder / "info.json", [info])
    data.save_npy(args.data_dir / "codes.npy", codes)
    report.print_report(info, examples)
    runs.finish_run(run, **info)
    for path in unfinished.values():
        path.unlink(missing_ok=True)
    print(f"wrote codes.npy and codebooks/ (K = {k}) in {args.data_dir}; next: "
          f"python 03_synthesize.py simulate --data-dir {args.data_dir}, or 04 where dialogues are")


if __name__ == "__main__":
    main()
