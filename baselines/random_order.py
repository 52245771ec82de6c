"""Baseline: all tracks in a random order, another one for each turn. This is what chance reaches.

Hit@k is k / N in expectation, slightly more once played tracks are left out. MRR is near ln(N) / N.
This file is also the recipe for a baseline of your own: copy it, change NAME and `score_tracks`.

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
from baselines import shared
from common import data, flags

NAME = "random_order"


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n")[0])
    flags.add_shared(parser, "data-dir", "seed", "resume")
    args = parser.parse_args()
    flags.check_ranges(args)
    tracks = data.load_tracks(args.data_dir)

    # turn.query: str. turn.past: dicts with query, music, response. turn.played: rows. A field of
    # tracks[row] may be None. Nothing of this is used here.
    def score_tracks(turn):
        return np.zeros(len(tracks))  # all equal, so the draw that orders ties orders everything

    shared.run_baseline(args, NAME, tracks, score_tracks)


if __name__ == "__main__":
    main()
