"""Baseline: the same tracks for everyone, the most popular first (the paper's section 5).

Popularity is the number of training playlists that contain a track. Tracks with equal counts, such
as all cold tracks (count 0), are ordered by a draw, a fresh one for each turn.

Reads   tracks.jsonl, annotations/, playlists.jsonl, dialogues_valid.jsonl, dialogues_test.jsonl
Writes  predictions/popularity.jsonl (test), predictions_valid/popularity.jsonl (valid)
Demo    python baselines/popularity.py
Full    python baselines/popularity.py --data-dir data/mpd
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # common/ lies beside baselines/
from baselines import shared
from common import data, flags

NAME = "popularity"


def count_tracks(playlists, row_of):
    """How many training playlists contain each track: (N,) int64."""
    counts = np.zeros(len(row_of), np.int64)
    for playlist in playlists:
        if playlist["split"] == "train":
            counts[[row_of[track_id] for track_id in set(playlist["track_ids"])]] += 1
    return counts


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n")[0])
    flags.add_shared(parser, "data-dir", "seed", "resume")
    args = parser.parse_args()
    flags.check_ranges(args)
    tracks = data.load_tracks(args.data_dir)
    row_of = {track["track_id"]: row for row, track in enumerate(tracks)}
    counts = count_tracks(data.load_playlists(args.data_dir, row_of), row_of)
    shared.run_baseline(args, NAME, tracks, lambda turn: counts, reads=["playlists.jsonl"])


if __name__ == "__main__":
    main()
