"""The data's own track and response for each test turn, for a listening survey to show.

This is no system: its track is the target, so every metric would be 1. 06_evaluate.py skips it.

Reads   tracks.jsonl, annotations/, dialogues_test.jsonl
Writes  predictions/ground_truth.jsonl, one line per turn with targets: dialogue_id, turn, track_ids
        (the track that the data play, then other targets, if any), response (null if there is none)
Demo    python baselines/ground_truth.py
Full    python baselines/ground_truth.py --data-dir data/mpd
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # common/ lies beside baselines/
from common import data, flags, runs

NAME = "ground_truth"


def truth_rows(dialogues):
    """Yield the lines of the file."""
    for dialogue in dialogues:
        for number, turn in enumerate(dialogue["turns"], 1):
            if turn["targets"]:
                shown = dict.fromkeys([turn["music"] or turn["targets"][0], *turn["targets"]])
                yield {"dialogue_id": dialogue["dialogue_id"], "turn": number,
                       "track_ids": list(shown), "response": turn["response"]}


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n")[0])
    flags.add_shared(parser, "data-dir", "resume")
    args = parser.parse_args()
    row_of = {track["track_id"]: row for row, track in enumerate(data.load_tracks(args.data_dir))}
    dialogues = data.load_dialogues(args.data_dir / "dialogues_test.jsonl", row_of)

    reads = [*data.catalogue_files(args.data_dir), "dialogues_test.jsonl"]
    output = f"predictions/{NAME}.jsonl"
    run, state = runs.begin_run(args.data_dir, NAME, args, reads, [output], resume=args.resume)
    if state == "done":
        print(f"{NAME}: already done (--no-resume does it again)")
        return
    data.write_jsonl(args.data_dir / output, truth_rows(dialogues))
    runs.finish_run(run)
    print(f"Wrote {args.data_dir / output}. It is for the survey; 06_evaluate.py does not score it")


if __name__ == "__main__":
    main()
