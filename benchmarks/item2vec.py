"""item2vec on playlists like the Million Playlist Dataset's: tokens per second, memory, hours.

    python benchmarks/item2vec.py --scale 0.01               a hundredth of the playlists
    python benchmarks/item2vec.py --scale 0.01 --share 0.1   a tenth of their pairs
    python benchmarks/item2vec.py                            all of them: 1 million playlists, 66
                                                             million tokens, 2.2 million tracks

The playlists are invented: 5 to 250 tracks, 66 on average, drawn from 2.26 million with a long tail
(Zipf). They are written to a file, then read and trained on as 01_extract_embeddings.py does, for
one epoch. Time is extrapolated with the tokens; memory with the tokens while reading, and with the
tracks while training. At a small scale fewer tracks occur, and more of their vectors stay in the
processor's cache: the whole set is slower than extrapolated.
"""

import argparse
import importlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the repository

import numpy as np

from common.flags import check_ranges
from common.runs import peak_memory_gib

extract = importlib.import_module("01_extract_embeddings")
PLAYLISTS = 1_000_000
TRACKS = 2_260_000
TOKENS = 66_000_000
EPOCHS = 10  # of the hours that are printed; one is run


def write_playlists(path, n, rng):
    """Write n training playlists; returns the numbers of the tracks that occur."""
    popularity = np.cumsum(1 / (np.arange(TRACKS) + 100.0))
    popularity /= popularity[-1]
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
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--scale", type=float, default=1.0, help="share of the million playlists (default 1)")
    add("--workers", type=int, default=os.cpu_count(),
        help="threads, 01's --item2vec-workers (default: cores)")
    add("--share", type=float, help="of the pairs, 01's --item2vec-share (default: all)")
    args = parser.parse_args()
    check_ranges(args, scale=(1e-4, 1), workers=1, share=(0.001, 1))

    extract.item2vec([[0, 1]], 2, epochs=1)  # gensim loads things at its first use
    with tempfile.TemporaryDirectory() as folder:
        occur = write_playlists(Path(folder) / "playlists.jsonl", int(PLAYLISTS * args.scale),
                                np.random.default_rng(0))
        tracks = [{"track_id": f"spotify{row:015d}"} for row in occur.tolist()]
        before = peak_memory_gib()
        start = time.perf_counter()
        training = extract.training_rows(folder, tracks)
        reading = time.perf_counter() - start
    after_reading = peak_memory_gib()
    lengths = np.array([len(rows) for rows in training])
    tokens = lengths.sum()
    neighbours = (lengths * (lengths - 1)).sum() / tokens
    print(f"{len(training):,} playlists, {tokens:,} tokens (mean {lengths.mean():.1f}, most "
          f"{lengths.max()}), {len(tracks):,} tracks; {neighbours:.0f} neighbours per token; "
          f"{args.workers} threads, {args.share or 'all'} of the pairs")

    start = time.perf_counter()
    extract.item2vec(training, len(tracks), epochs=1, workers=args.workers, share=args.share)
    seconds = time.perf_counter() - start
    peak = peak_memory_gib()
    whole = (before + (after_reading - before) * TOKENS / tokens
             + (peak - after_reading) * TRACKS / len(tracks))
    print(f"reading: {reading:.1f} s; one epoch, with the vocabulary: {seconds:.1f} s, "
          f"{tokens / seconds:,.0f} tokens per second\nmemory: {before:.2f} GiB before, "
          f"{after_reading:.2f} while reading, {peak:.2f} while training\n"
          f"the whole set, extrapolated: {TOKENS / tokens * seconds * EPOCHS / 3600:.1f} hours for "
          f"{EPOCHS} epochs, {whole:.1f} GiB at most")


if __name__ == "__main__":
    main()
