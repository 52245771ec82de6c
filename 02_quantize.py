"""02: embeddings -> five codes a track, by k-means for each modality (paper, section 2.1).

A track's code is the number of the nearest centroid, by Euclidean distance to the row as
01_extract_embeddings.py wrote it. The paper does not say whether it normalises. Here 02 does not:
playlist and text rows come with length 1, so that k-means groups them as the cosine would; audio rows
come standardised, and dividing them by their length would blow up what little an average track differs
from the mean. So plain nearest centroid is the whole assignment, for new tracks too.

Each codebook is fitted on the tracks that have the modality (for playlist those in training playlists,
the only ones with a row), and its centroids are means. Codes come from `assign`, never from the fit, so
that the saved codebooks give the same codes again. Embeddings stay on disk and are read in chunks; how
k-means copes with 1.7 million rows of 4,096 numbers stands in steps/quantize/kmeans.py. Under torchrun each
process reads and assigns its share of the rows. A killed run goes on with the modalities that are not fitted yet.

--assign-only gives codes from the saved codebooks to the embeddings that are there now: for a catalogue
that has grown. It is right for text rows, and for audio rows scaled with the codebooks'
audio_scaling.npy; item2vec, trained anew, is another space, and its codebook has to be fitted again.

Reads   tracks.jsonl, embeddings/<modality>.npy (one that is missing gives a column of -1);
        with --assign-only also codebooks/*
Writes  codebooks/<modality>.npy (K, D) float32, codes.npy (N, 5) int16, -1 where missing,
        codebooks/info.json (K, diagnostics), codebooks/examples.jsonl (what each token means)

Demo        python 02_quantize.py
Full scale  python 02_quantize.py --data-dir data/mpd --k 1024 --device cuda
            Eight GPUs: torchrun --nproc-per-node 8 02_quantize.py --data-dir data/mpd --k 1024 --device cuda
"""

import argparse
import os
import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from common import data, runs
from common.process import agree, current_process, end_process, resolve_device, start_process
from common.tokens import MODALITIES, token_string
from steps.quantize.kmeans import fit_codebook, over_rows

NAME = "02_quantize"
LARGEST_K = 32767       # codes are int16
TINY = 3                # a cluster with fewer tracks teaches a token next to nothing
EXAMPLES = 5            # tracks kept for each cluster
SHOWN = 3               # clusters, and tracks of each, that are printed for a modality


# ---------------------------------------------------------------- reading

def load_embeddings(data_dir, modality, n_tracks):
    """Embeddings of one modality, checked: (N, D) float32 memory map, or None if no track has it.

    Raises SystemExit: foreign shape, dtype or row count, a row that is partly NaN, an infinite value.
    """
    path, made_by = Path(data_dir) / "embeddings" / f"{modality}.npy", f"python 01_extract_embeddings.py --data-dir {data_dir}"
    if not path.is_file():
        print(f"{modality}: {path} is not there; its column of codes is -1")
        return None
    array, present = data.load_npy(path, made_by, n_tracks, np.float32), 0
    for first in range(0, n_tracks, 8192):
        rows = array[first:first + 8192]
        missing = np.isnan(rows).all(1)
        bad = ~missing & ~np.isfinite(rows).all(1)
        if bad.any():
            raise SystemExit(f"{path}: row {first + bad.argmax()} has values that are not finite; a row is whole, or NaN "
                             f"throughout where the track lacks the modality. Make the file again with: {made_by}")
        present += (~missing).sum()
    if not present:
        print(f"{modality}: no track has it; its column of codes is -1")
        return None
    return array


def load_codebook(data_dir, modality, dim):
    """A saved codebook (K, D) float32 for --assign-only, or None if the catalogue it comes from lacked the modality.

    Raises SystemExit: its dimension is not that of the embeddings.
    """
    path, made_by = Path(data_dir) / "codebooks" / f"{modality}.npy", f"python {NAME}.py --data-dir {data_dir}"
    if not path.is_file():
        print(f"{modality}: {path} is not there; its column of codes is -1")
        return None
    codebook = np.asarray(data.load_npy(path, made_by, dtype=np.float32))
    if codebook.shape[1] != dim:
        raise SystemExit(f"{path}: {codebook.shape[1]} dimensions, but embeddings/{modality}.npy has {dim}: another encoder "
                         f"made it. Fit new codebooks with: {made_by} --no-resume")
    return codebook


def saved_k(data_dir):
    """K of the saved codebooks. Raises SystemExit: there are none."""
    made_by = f"python {NAME}.py --data-dir {data_dir} (--assign-only needs saved codebooks)"
    for _, info in data.read_jsonl(Path(data_dir) / "codebooks" / "info.json", made_by):
        return info["k"]


# ---------------------------------------------------------------- codes

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


def assign(embeddings, codebook, chunk=8192):
    """The nearest centroid of each row, for any tracks, new ones too.

    embeddings: (N, D) float; a row with NaN lacks the modality. codebook: (K, D) float, K <= 32,767.
    chunk: rows a step, so that no (N, K) array is made.
    Returns: (N,) int16 codes, -1 where missing; the lower code where two centroids are equally near.
    Raises ValueError: dimensions that differ, K too large.
    """
    if embeddings.shape[1] != codebook.shape[1]:
        raise ValueError(f"embeddings have {embeddings.shape[1]} dimensions, the codebook has {codebook.shape[1]}")
    if len(codebook) > LARGEST_K:
        raise ValueError(f"a codebook of {len(codebook)}; codes are int16, at most {LARGEST_K}")
    codes, squares = np.empty(len(embeddings), np.int16), (codebook**2).sum(1)  # (K,)
    for first in range(0, len(embeddings), chunk):
        rows = embeddings[first:first + chunk]
        nearest = (squares - 2 * rows @ codebook.T).argmin(1)  # |x - c|^2 without |x|^2, which is the same for all c
        codes[first:first + chunk] = np.where(np.isnan(rows).any(1), -1, nearest)
    return codes


def distances_to_own(embeddings, codebook, codes, chunk=2048):
    """Squared distance of each row to the centroid of its code: (N,) float64, NaN where the code is -1."""
    distances = np.empty(len(embeddings))
    for first in range(0, len(embeddings), chunk):
        part = slice(first, first + chunk)
        distances[part] = ((embeddings[part].astype(np.float64) - codebook[codes[part]]) ** 2).sum(1)
    return np.where(codes < 0, np.nan, distances)


def fit(modality, embeddings, k, n_init, seed, device):
    """The codebook of a modality, (K, D) float32, with a progress bar; K is smaller where fewer rows differ."""
    clusters = count_distinct(embeddings, k)
    if clusters < k:
        print(f"{modality}: only {clusters} different rows, so {clusters} clusters instead of {k}")
    with tqdm(desc=modality, unit="pass", disable=current_process()[0] > 0) as bar:
        return fit_codebook(embeddings, clusters, n_init, seed, device, lambda rows, moved, inertia: bar.update() or
                            bar.set_postfix(rows=rows, moved=f"{moved:.2%}", inertia=f"{inertia:.4g}"))


# ---------------------------------------------------------------- what came of it

def describe_codes(codes, distances, k):
    """Diagnostics of one modality.

    codes: (N,) int16, -1 where missing. distances: (N,), squared, to the own centroid. k: clusters.
    Returns: dict. entropy: of the codes of the tracks that have the modality, in bits, log2(k) at most;
    perplexity 2^entropy is the number of equally used codes that would have the same entropy.
    """
    counts = np.bincount(codes[codes >= 0], minlength=k)
    share = counts[counts > 0] / counts.sum()
    entropy = float(-(share * np.log2(share)).sum())
    return {"clusters": k, "used": int((counts > 0).sum()), "dead": int((counts == 0).sum()),
            "tiny": int(((counts > 0) & (counts < TINY)).sum()), "largest": int(counts.max()),
            "entropy_bits": round(entropy, 4), "perplexity": round(2**entropy, 2),
            "inertia": float(np.nansum(distances)), "missing_share": float((codes < 0).mean())}


def describe_collisions(codes):
    """How well five codes tell tracks apart. codes: (N, 5).

    Returns: dict. unique_share: of the tracks, those that share their five codes with no other;
    largest_collision: tracks that share the most common five.
    """
    _, counts = np.unique(codes, axis=0, return_counts=True)
    return {"unique_share": float((counts == 1).sum() / len(codes)), "largest_collision": int(counts.max())}


def nearest_tracks(codes, distances, k, n=EXAMPLES):
    """For each of k codes the rows of the n tracks nearest to its centroid, nearest first: list of k arrays."""
    order = np.lexsort((distances, codes))  # by code, then by distance
    starts = np.searchsorted(codes[order], np.arange(k + 1))
    return [order[start:end][:n] for start, end in zip(starts, starts[1:])]


def example_rows(modality, codes, nearest, tracks):
    """Lines of examples.jsonl: {modality, code, token, n_tracks, track_ids, tracks}."""
    counts = np.bincount(codes[codes >= 0], minlength=len(nearest))
    return [{"modality": modality, "code": code, "token": token_string(modality, code), "n_tracks": int(counts[code]),
             "track_ids": [tracks[row]["track_id"] for row in rows],
             "tracks": [data.item_text(tracks[row], ("title", "artist")) for row in rows]} for code, rows in enumerate(nearest)]


def print_report(info, examples):
    """The diagnostics as a table, and what a few tokens of each modality mean."""
    columns = ("clusters", "used", "dead", "tiny", "largest", "entropy_bits", "perplexity", "inertia", "missing_share")
    print("\n" + f"{'modality':10s}" + "".join(f"{column:>14s}" for column in columns))
    for modality, row in info["modalities"].items():
        print(f"{modality:10s}" + "".join(f"{row[column]:14.6g}" for column in columns))
    print(f"\n{info['unique_share']:.1%} of {info['tracks']} tracks have five codes that no other track has; the most common "
          f"five are shared by {info['largest_collision']}\n")
    for modality in info["modalities"]:
        by_size = sorted((row for row in examples if row["modality"] == modality), key=lambda row: -row["n_tracks"])
        for row in by_size[::max(len(by_size) // SHOWN, 1)][:SHOWN]:  # the largest, and some smaller ones
            print(f"{row['token']:20s}{row['n_tracks']:5d} tracks: {'; '.join(row['tracks'][:SHOWN])}")


# ---------------------------------------------------------------- main

def parse_args(argv=None):
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data-dir", type=Path, default=Path("data/demo"), help="folder of the data (default data/demo)")
    add("--k", type=int, default=0, help="clusters a modality (paper: 1024); 0 (default): the power of two nearest to twice "
        "the root of the number of tracks, from 8 to 1024")
    add("--n-init", type=int, default=1, help="starts of k-means, the best of which is kept (default 1); they are compared "
        "on the first sample (all rows of a small catalogue)")
    add("--assign-only", action="store_true", help="fit nothing: codes for the present embeddings from the saved codebooks")
    add("--device", type=resolve_device, default="auto", help="of k-means: auto (default: cuda if there is one), cpu, cuda, ...")
    add("--seed", type=int, default=0, help="of k-means (default 0)")
    add("--resume", action=argparse.BooleanOptionalAction, default=True, help="skip what is finished (default); --no-resume "
        "makes it again")
    args = parser.parse_args(argv)
    if args.k and not 2 <= args.k <= LARGEST_K:
        raise SystemExit(f"--k {args.k}: from 2 to {LARGEST_K} is expected (codes are int16), or 0 to choose by the catalogue")
    if args.k and args.assign_only:
        raise SystemExit(f"--k {args.k} with --assign-only: K is that of the saved codebooks; leave one of the two out")
    if args.n_init < 1:
        raise SystemExit(f"--n-init {args.n_init}: a number from 1 on is expected")
    return args


def main(argv=None):
    args = parse_args(argv)
    rank, world, device = start_process(args.device)
    torch.set_flush_denormal(True)  # on a CPU, tiny numbers would slow everything down
    if rank:
        sys.stdout = open(os.devnull, "w")  # all do the same, one tells of it
    folder = args.data_dir / "codebooks"
    tracks = data.load_tracks(args.data_dir)
    k = saved_k(args.data_dir) if args.assign_only else args.k or choose_k(len(tracks))
    embeddings = {m: load_embeddings(args.data_dir, m, len(tracks)) for m in MODALITIES}
    codebooks = {m: load_codebook(args.data_dir, m, embeddings[m].shape[1]) if args.assign_only else None
                 for m in MODALITIES if embeddings[m] is not None}
    if args.assign_only:
        codebooks = {m: codebook for m, codebook in codebooks.items() if codebook is not None}
    if not codebooks:
        raise SystemExit(f"{args.data_dir}/embeddings: no track has any modality. Make the embeddings with: "
                         f"python 01_extract_embeddings.py --data-dir {args.data_dir}")
    reads = ["tracks.jsonl"] + [f"embeddings/{m}.npy" for m in MODALITIES]
    writes = [f"codebooks/{m}.npy" for m in MODALITIES] + ["codebooks/info.json", "codebooks/examples.jsonl", "codes.npy"]
    run, state = runs.begin_run(args.data_dir, NAME, args, reads, writes, args.resume and not args.assign_only, record=not rank)
    state = agree(lambda: state)
    if state == "done":
        print(f"{NAME}: already done, nothing changed")
        return end_process()

    parts = {m: folder / f"{m}.part.npy" for m in MODALITIES}  # what a killed run has fitted already
    if state == "new" and not rank:
        for part in parts.values():
            part.unlink(missing_ok=True)
    fitted = agree(lambda: [m for m in MODALITIES if parts[m].is_file()])
    codes = np.full((len(tracks), len(MODALITIES)), -1, np.int16)
    info, examples = {"k": k, "tracks": len(tracks), "normalised": False, "modalities": {}}, []
    for modality in codebooks:
        rows = embeddings[modality]
        if modality in fitted:
            codebooks[modality] = np.load(parts[modality])
        elif not args.assign_only:
            codebooks[modality] = fit(modality, rows, k, args.n_init, args.seed, device)
            if not rank:
                data.save_npy(parts[modality], codebooks[modality])
        codebook = codebooks[modality]
        column = over_rows(len(rows), lambda part: assign(rows[part], codebook))
        distances = over_rows(len(rows), lambda part: distances_to_own(rows[part], codebook, column[part]))
        if rank:
            continue
        codes[:, MODALITIES.index(modality)] = column
        info["modalities"][modality] = describe_codes(column, distances, len(codebook))
        examples += example_rows(modality, column, nearest_tracks(column, distances, len(codebook)), tracks)
    if rank:
        return end_process()
    info |= describe_collisions(codes)

    if not args.assign_only:
        for modality in MODALITIES:
            if modality in codebooks:
                data.save_npy(folder / f"{modality}.npy", codebooks[modality])
            else:
                (folder / f"{modality}.npy").unlink(missing_ok=True)  # of an earlier catalogue that had the modality
    data.write_jsonl(folder / "examples.jsonl", examples)
    data.write_jsonl(folder / "info.json", [info])
    data.save_npy(args.data_dir / "codes.npy", codes)
    print_report(info, examples)
    runs.finish_run(run, **info)
    for part in parts.values():
        part.unlink(missing_ok=True)
    end_process()
    print(f"wrote codes.npy and codebooks/ (K = {k}) in {args.data_dir}; next: python 03_synthesize.py --data-dir {args.data_dir}")


if __name__ == "__main__":
    main()
