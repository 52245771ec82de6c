"""Baseline: the same tracks for everyone, the most popular first (the paper's section 5).

Popularity is the number of training playlists that hold a track; equal counts, such as the zeros of
all cold tracks, stand in an order drawn afresh for each turn.

Reads   tracks.jsonl, playlists.jsonl, dialogues_valid.jsonl, dialogues_test.jsonl
Writes  predictions/popularity.jsonl (test), predictions_valid/popularity.jsonl (valid)
Demo    python baselines/popularity.py
Full    python baselines/popularity.py --data-dir data/mpd
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # common/ lies beside baselines/
from common import data, runs, turns

NAME = "popularity"


def count_tracks(playlists, row_of):
    """How many training playlists hold each track: (N,) int64."""
    counts = np.zeros(len(row_of), np.int64)
    for playlist in playlists:
        if playlist["split"] == "train":
            counts[[row_of[track_id] for track_id in set(playlist["track_ids"])]] += 1
    return counts


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description="Rank all tracks by their count in training playlists.")
    parser.add_argument("--data-dir", type=Path, default=Path("data/demo"), help="folder of the data (default data/demo)")
    parser.add_argument("--seed", type=int, default=0, help="of the order of equal counts (default 0)")
    parser.add_argument("--resume", action=argparse.BooleanOptionalAction, default=True,
                        help="skip when already done (default); --no-resume predicts afresh")
    args = parser.parse_args()

    tracks = data.load_tracks(args.data_dir)
    track_ids = [track["track_id"] for track in tracks]
    row_of = {track_id: row for row, track_id in enumerate(track_ids)}
    playlists = data.load_playlists(args.data_dir, row_of)
    of_split = turns.load_turns(args.data_dir, row_of)

    reads, writes = ["tracks.jsonl", "playlists.jsonl", *turns.dialogue_files()], turns.prediction_files(NAME)
    run, state = runs.begin_run(args.data_dir, NAME, args, reads, writes, resume=args.resume)
    if state == "done":
        print(f"{NAME}: already done, nothing changed")
        return
    counts = count_tracks(playlists, row_of)
    for split, found in of_split.items():
        turns.write_predictions(args.data_dir, split, NAME, [counts] * len(found), found, track_ids, args.seed)
    runs.finish_run(run)
    print(f"Wrote {args.data_dir}/{writes[1]} and {writes[0]}. Next: python 06_evaluate.py --data-dir {args.data_dir}")


if __name__ == "__main__":
    main()
