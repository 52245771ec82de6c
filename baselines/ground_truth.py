"""The data's own track and answer for every test turn, for the listening survey to set beside the systems' ones.

This is no system: its track is the target, so every metric would be 1. 06_evaluate.py leaves this file out.

Reads   tracks.jsonl, dialogues_test.jsonl
Writes  predictions/ground_truth.jsonl, a line a turn with targets: dialogue_id, turn, track_ids (the track that the
        data play, then the other targets, if any: no ranking of the catalogue), response (null where the data have none)
Demo    python baselines/ground_truth.py
Full    python baselines/ground_truth.py --data-dir data/mpd
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # common/ lies beside baselines/
from common import data, runs

NAME = "ground_truth"


def truth_rows(dialogues):
    """Yield the lines of the file."""
    for dialogue in dialogues:
        for number, turn in enumerate(dialogue["turns"], 1):
            if turn["targets"]:
                track_ids = dict.fromkeys([turn["music"] or turn["targets"][0], *turn["targets"]])  # each once, in order
                yield {"dialogue_id": dialogue["dialogue_id"], "turn": number, "track_ids": list(track_ids),
                       "response": turn["response"]}


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description="Write the data's own tracks and answers for the listening survey.")
    parser.add_argument("--data-dir", type=Path, default=Path("data/demo"), help="folder of the data (default data/demo)")
    parser.add_argument("--resume", action=argparse.BooleanOptionalAction, default=True,
                        help="skip when already done (default); --no-resume writes afresh")
    args = parser.parse_args()

    row_of = {track["track_id"]: row for row, track in enumerate(data.load_tracks(args.data_dir))}
    dialogues = data.load_dialogues(args.data_dir / "dialogues_test.jsonl", row_of)
    written = f"predictions/{NAME}.jsonl"
    run, state = runs.begin_run(args.data_dir, NAME, args, ["tracks.jsonl", "dialogues_test.jsonl"], [written], resume=args.resume)
    if state == "done":
        print(f"{NAME}: already done, nothing changed")
        return
    data.write_jsonl(args.data_dir / written, truth_rows(dialogues))
    runs.finish_run(run)
    print(f"Wrote {args.data_dir / written}. It is for the survey; 06_evaluate.py does not score it")


if __name__ == "__main__":
    main()
