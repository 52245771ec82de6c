"""Baseline: all tracks in a random order, another one for each turn. This is what chance reaches.

Hit@k is k / N in expectation, slightly more once played tracks are left out. MRR is near ln(N) / N.

Reads   tracks.jsonl, annotations/, dialogues_valid.jsonl, dialogues_test.jsonl
Writes  predictions/random_order.jsonl (test), predictions_valid/random_order.jsonl (valid)
Demo    python baselines/random_order.py
Full    python baselines/random_order.py --data-dir data/mpd
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # common/ lies beside baselines/
from common import data, runs, turns

NAME = "random_order"


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--data-dir", type=Path, default=Path("data/demo"), help="data folder (default data/demo)")
    add("--seed", type=int, default=0, help="of the orders (default 0)")
    add("--resume", action=argparse.BooleanOptionalAction, default=True,
        help="skip when already done (default); --no-resume predicts afresh")
    args = parser.parse_args()

    tracks = data.load_tracks(args.data_dir)
    track_ids = [track["track_id"] for track in tracks]
    row_of = {track_id: row for row, track_id in enumerate(track_ids)}
    turns_by_split = turns.load_turns(args.data_dir, row_of)

    reads = [*data.catalogue_files(args.data_dir), *turns.dialogue_files()]
    writes = turns.prediction_files(NAME)
    run, state = runs.begin_run(args.data_dir, NAME, args, reads, writes, resume=args.resume)
    if state == "done":
        print(f"{NAME}: already done, nothing changed")
        return

    equal = np.zeros(len(tracks))  # ties are ordered by a draw, so the order is chance
    for split, turn_list in turns_by_split.items():
        scores = [equal] * len(turn_list)
        turns.write_predictions(args.data_dir, split, NAME, scores, turn_list, track_ids, args.seed)
    runs.finish_run(run)
    print(f"Wrote {writes[1]} and {writes[0]} in {args.data_dir}. "
          f"Next: python 06_evaluate.py --data-dir {args.data_dir}")


if __name__ == "__main__":
    main()
