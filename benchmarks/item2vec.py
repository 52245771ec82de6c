"""item2vec on playlists in the shape of the Million Playlist Dataset: tokens a second, memory, hours for the whole set.

    python benchmarks/item2vec.py --scale 0.01                   a hundredth of the playlists
    python benchmarks/item2vec.py --scale 0.01 --share 0.1       a tenth of their pairs
    python benchmarks/item2vec.py                                all of them: 1 million playlists, 66 million tokens, 2.2 million tracks

The playlists are invented: 5 to 250 tracks, 66 in the mean, drawn from 2.26 million with a long tail (Zipf). They are
written to a file, then read and trained on as 01_extract_embeddings.py does, one epoch. Playlists are as long at every
scale, so a token has as many neighbours, and time grows with the tokens; memory with the tokens while reading and with
the tracks while training. Both are extrapolated so. At a small scale fewer tracks occur, and more of their vectors stay
in the processor's cache: the whole set is slower than extrapolated.
"""

import argparse
import importlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np

from common.runs import peak_memory_gib

extract = importlib.import_module("01_extract_embeddings")
PLAYLISTS, TRACKS = 1_000_000, 2_260_000
TOKENS = 66_000_000


def write_playlists(path, n, rng):
    """n playlists into playlists.jsonl, all of them for training; returns the numbers of the tracks that occur."""
    popularity = 1 / (np.arange(TRACKS) + 100.0)
    popularity = np.cumsum(popularity / popularity.sum())
    occur = np.zeros(TRACKS, bool)
    with open(path, "w") as f:
        for i in range(n):
            length = int(np.clip(rng.lognormal(np.log(51), 0.82), 5, 250))
            rows = np.unique(np.searchsorted(popularity, rng.random(length)).clip(max=TRACKS - 1))
            occur[rows] = True
            ids = [f"spotify{row:015d}" for row in rng.permutation(rows).tolist()]
            f.write(json.dumps({"playlist_id": str(i), "split": "train", "track_ids": ids}) + "\n")
    return np.flatnonzero(occur)


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n")[0])
    parser.add_argument("--scale", type=float, default=1.0, help="share of the million playlists (default 1)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="threads, 01's --item2vec-workers (default: cores)")
    parser.add_argument("--share", type=float, default=None, help="of the pairs, 01's --item2vec-share (default: all)")
    parser.add_argument("--epochs", type=int, default=10, help="epochs that the hours are given for (default 10; one is run)")
    args = parser.parse_args()
    extract.item2vec([[0, 1]], 2, epochs=1)  # what gensim loads when it is first used is not counted below
    with tempfile.TemporaryDirectory() as folder:
        occur = write_playlists(Path(folder) / "playlists.jsonl", int(PLAYLISTS * args.scale), np.random.default_rng(0))
        tracks, before = [{"track_id": f"spotify{row:015d}"} for row in occur.tolist()], peak_memory_gib()
        begin = time.perf_counter()
        training = extract.training_rows(folder, tracks)
        reading, after_reading = time.perf_counter() - begin, peak_memory_gib()
    lengths = np.array([len(rows) for rows in training])
    tokens, share = lengths.sum(), lengths.sum() / TOKENS
    print(f"{len(training):,} playlists, {tokens:,} tokens (mean {lengths.mean():.1f}, most {lengths.max()}), {len(tracks):,} tracks; "
          f"a token has {(lengths * (lengths - 1)).sum() / tokens:.0f} neighbours in the mean; {args.workers} threads, "
          f"{args.share or 'all'} of the pairs")
    begin = time.perf_counter()
    extract.item2vec(training, len(tracks), epochs=1, workers=args.workers, share=args.share)
    seconds, peak = time.perf_counter() - begin, peak_memory_gib()
    print(f"reading: {reading:.1f} s; one epoch, with the vocabulary: {seconds:.1f} s, {tokens / seconds:,.0f} tokens a second")
    print(f"memory: {before:.2f} GiB before, {after_reading:.2f} while reading, {peak:.2f} while training")
    whole = before + (after_reading - before) / share + (peak - after_reading) * TRACKS / len(tracks)
    print(f"the whole set, extrapolated: {TOKENS / tokens * seconds * args.epochs / 3600:.1f} hours for {args.epochs} epochs, "
          f"{whole:.1f} GiB at most")


if __name__ == "__main__":
    main()
