"""What ranking and scoring share: the turns, and the prediction files of a baseline.

A baseline gives every track a score, from a turn's past and query. `write_predictions` makes
rankings of the scores, by the rules of the evaluation (common/metrics.py).
"""

from typing import NamedTuple

import numpy as np

from common import data, metrics

# choices are made on valid; test is looked at last
FOLDERS = {"valid": "predictions_valid", "test": "predictions"}


class Turn(NamedTuple):
    """A turn that has targets, as the systems that rank for it and the evaluation see it."""
    dialogue_id: str
    number: int       # from 1
    past: list        # the turns before: query, music, response, rejected ...
    query: str        # what the listener says now; nothing that follows it may be looked at
    played: list      # rows of the music of the turns before
    # what follows is for scoring only
    targets: list     # rows that count as a hit
    rejected: bool = False      # the listener turns this music down
    kind: str | None = None     # what the query asks by
    template: str | None = None  # "seen" or "unseen" in training
    group: str = ""   # what the bootstrap draws: the playlist, or the dialogue where there is none

    @property
    def key(self):
        return self.dialogue_id, self.number


def collect_turns(dialogues, row_of):
    """The turns of the dialogues that have targets, in file order: list of Turn."""
    turns = []
    for dialogue in dialogues:
        group = f"playlist {dialogue['playlist_id']}"
        if dialogue["playlist_id"] is None:
            group = f"dialogue {dialogue['dialogue_id']}"
        for t, turn in enumerate(dialogue["turns"]):
            past = dialogue["turns"][:t]
            played = [row_of[before["music"]] for before in past if before["music"]]
            targets = [row_of[track_id] for track_id in turn["targets"]]
            if targets:
                turns.append(Turn(
                    dialogue["dialogue_id"], t + 1, past, turn["query"], played, targets,
                    bool(turn["rejected"]), turn["kind"], turn.get("template"), group))
    return turns


def load_turns(data_dir, row_of):
    """{split: list of Turn} of the valid and the test dialogues."""
    return {split: collect_turns(data.load_dialogues(data_dir / f"dialogues_{split}.jsonl", row_of),
                                 row_of) for split in FOLDERS}


def rank(scores, turn, seed):
    """Rows of the best of (N,) scores for one turn, ties in the order of the turn's own draw."""
    rng = metrics.turn_rng(seed, *turn.key)
    return metrics.rank_rows(np.asarray(scores), rng, metrics.DEPTH)


def target_rank(ranked, turn):
    """1-based rank of the turn's target, played tracks left out; 0 where it is not ranked."""
    unplayed = metrics.filter_played(ranked, turn.played, turn.targets)
    return metrics.rank_of_first_hit(unplayed, turn.targets)


def mrr(scores, turns, seed):
    """MRR of an iterable of (N,) scores, one per turn, as 06_evaluate.py counts it."""
    return metrics.mrr([target_rank(rank(turn_scores, turn, seed), turn)
                        for turn_scores, turn in zip(scores, turns, strict=True)])


def write_predictions(data_dir, split, name, scores, turns, track_ids, seed):
    """Write predictions/<name>.jsonl (valid: predictions_valid/), from (N,) scores per turn."""
    rows = ({"dialogue_id": turn.dialogue_id, "turn": turn.number,
             "track_ids": [track_ids[row] for row in rank(turn_scores, turn, seed)],
             "response": None} for turn_scores, turn in zip(scores, turns, strict=True))
    data.write_jsonl(data_dir / FOLDERS[split] / f"{name}.jsonl", rows)


def prediction_files(name):
    """The two files of a system, relative to the data directory: valid, then test."""
    return [f"{folder}/{name}.jsonl" for folder in FOLDERS.values()]


def dialogue_files(*splits):
    """The dialogue files of these splits, by default valid and test."""
    return [f"dialogues_{split}.jsonl" for split in splits or FOLDERS]
