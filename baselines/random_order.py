"""Baseline: all tracks in a random order, drawn afresh for each turn: what chance alone reaches.

Hit@k is k / N in expectation (slightly more once played tracks are left out); MRR is near ln(N) / N.

Reads   tracks.jsonl, dialogues_valid.jsonl, dialogues_test.jsonl
Writes  predictions/random_order.jsonl (test), predictions_valid/random_order.jsonl (valid)
Demo    python baselines/random_order.py
Full    python baselines/random_order.py --data-dir data/mpd
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # common/ lies beside baselines/
from common import data, metrics

NAME = "random_order"
FOLDERS = {"valid": "predictions_valid", "test": "predictions"}


def predict(dialogues, track_ids, seed):
    """Yield one line of predictions for every turn that has targets: all scores are equal, so order is chance."""
    depth, scores = metrics.ranking_depth(len(track_ids)), np.zeros(len(track_ids))
    for dialogue in dialogues:
        for number, turn in enumerate(dialogue["turns"], 1):
            if turn["targets"]:
                rng = metrics.turn_rng(seed, dialogue["dialogue_id"], number)
                ranked = [track_ids[row] for row in metrics.rank_rows(scores, rng, depth)]
                yield {"dialogue_id": dialogue["dialogue_id"], "turn": number, "track_ids": ranked, "response": None}


def main():
    parser = argparse.ArgumentParser(description="Rank all tracks in a random order, another for each turn.")
    parser.add_argument("--data-dir", type=Path, default=Path("data/demo"), help="folder of the data (default data/demo)")
    parser.add_argument("--seed", type=int, default=0, help="of the orders (default 0)")
    parser.add_argument("--resume", action=argparse.BooleanOptionalAction, default=True,
                        help="skip when already done (default); --no-resume predicts afresh")
    args = parser.parse_args()

    tracks = data.load_tracks(args.data_dir)
    track_ids = [track["track_id"] for track in tracks]
    row_of = {track_id: row for row, track_id in enumerate(track_ids)}
    dialogues = {split: data.load_dialogues(args.data_dir / f"dialogues_{split}.jsonl", row_of) for split in FOLDERS}

    reads = ["tracks.jsonl", *(f"dialogues_{split}.jsonl" for split in FOLDERS)]
    writes = [f"{folder}/{NAME}.jsonl" for folder in FOLDERS.values()]
    run, state = data.begin_run(args.data_dir, NAME, args, reads, writes, resume=args.resume)
    if state == "done":
        print(f"{NAME}: already done, nothing changed")
        return
    for split, folder in FOLDERS.items():
        data.write_jsonl(args.data_dir / folder / f"{NAME}.jsonl", predict(dialogues[split], track_ids, args.seed))
    data.finish_run(run)
    print(f"Wrote {args.data_dir}/{writes[1]} and {writes[0]}. Next: python 06_evaluate.py --data-dir {args.data_dir}")


if __name__ == "__main__":
    main()
