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
from common import data, runs, turns

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
    add = parser.add_argument
    add("--data-dir", type=Path, default=Path("data/demo"), help="data folder (default data/demo)")
    add("--seed", type=int, default=0, help="of the order of equal counts (default 0)")
    add("--resume", action=argparse.BooleanOptionalAction, default=True,
        help="skip when already done (default); --no-resume predicts afresh")
    args = parser.parse_args()

    track_ids = [track["track_id"] for track in data.load_tracks(args.data_dir)]
    row_of = {track_id: row for row, track_id in enumerate(track_ids)}
    playlists = data.load_playlists(args.data_dir, row_of)
    turns_by_split = turns.load_turns(args.data_dir, row_of)

    reads = [*data.catalogue_files(args.data_dir), "playlists.jsonl", *turns.dialogue_files()]
    writes = turns.prediction_files(NAME)
    run, state = runs.begin_run(args.data_dir, NAME, args, reads, writes, resume=args.resume)
    if state == "done":
        print(f"{NAME}: already done, nothing changed")
        return

    counts = count_tracks(playlists, row_of)
    for split, turn_list in turns_by_split.items():
        scores = [counts] * len(turn_list)
        turns.write_predictions(args.data_dir, split, NAME, scores, turn_list, track_ids, args.seed)
    runs.finish_run(run)
    print(f"Wrote {writes[1]} and {writes[0]} in {args.data_dir}. "
          f"Next: python 06_evaluate.py --data-dir {args.data_dir}")


if __name__ == "__main__":
    main()
