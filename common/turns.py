"""What a baseline needs besides its own scores: the turns to rank for, the rankings' score, the prediction files.

A system is a function of a turn's past and query that gives every track a score. `rank` and `write_predictions` do
with the scores what the rules of the evaluation say (common/metrics.py), the same for every system.
"""

from typing import NamedTuple

import numpy as np

from common import data, metrics

FOLDERS = {"valid": "predictions_valid", "test": "predictions"}  # choices are made on valid, test is looked at last


class Turn(NamedTuple):
    """A turn that has targets, as the systems that rank for it and the evaluation see it."""
    dialogue_id: str
    number: int       # from 1
    past: list        # the turns before: query, music, response, rejected ...
    query: str        # what the listener says now; nothing that follows it may be looked at
    played: list      # rows of the music of the turns before
    # what follows is for scoring only
    targets: list     # rows that count as a hit
    rejected: bool = False  # the listener turns this music down
    kind: str | None = None  # what the query asks by
    template: str | None = None  # "seen" or "unseen" in training
    group: str = ""   # what the bootstrap draws: the playlist, or the dialogue that was made from none

    @property
    def key(self):
        return self.dialogue_id, self.number


def collect_turns(dialogues, row_of):
    """The turns of the dialogues that have targets, in file order: list of Turn."""
    turns = []
    for dialogue in dialogues:
        if dialogue["playlist_id"] is not None:
            group = f"playlist {dialogue['playlist_id']}"
        else:
            group = f"dialogue {dialogue['dialogue_id']}"
        for t, turn in enumerate(dialogue["turns"]):
            past = dialogue["turns"][:t]
            if turn["targets"]:
                turns.append(Turn(
                    dialogue["dialogue_id"], t + 1, past, turn["query"],
                    played=[row_of[before["music"]] for before in past if before["music"]],
                    targets=[row_of[track_id] for track_id in turn["targets"]],
                    rejected=bool(turn["rejected"]), kind=turn["kind"],
                    template=turn.get("template"), group=group))
    return turns


def load_turns(data_dir, row_of):
    """{split: list of Turn} of the valid and the test dialogues."""
    return {split: collect_turns(data.load_dialogues(data_dir / f"dialogues_{split}.jsonl", row_of), row_of) for split in FOLDERS}


def rank(scores, turn, seed, depth=None):
    """The rows of the best tracks for one turn, best first, ties by a draw of the turn's own.

    scores: (N,), higher is better; depth: how many (default: what the evaluation asks for).
    """
    depth = metrics.ranking_depth(len(scores)) if depth is None else depth
    return metrics.rank_rows(np.asarray(scores), metrics.turn_rng(seed, turn.dialogue_id, turn.number), depth)


def mrr(scores, turns, seed):
    """MRR of an iterable of (N,) scores, one a turn; played tracks left out, as 06_evaluate.py does."""
    return metrics.mrr([metrics.rank_of_first_hit(metrics.filter_played(rank(s, turn, seed), turn.played, turn.targets),
                                                  turn.targets) for s, turn in zip(scores, turns, strict=True)])


def write_predictions(data_dir, split, name, scores, turns, track_ids, seed):
    """predictions/<name>.jsonl (valid: predictions_valid/) from an iterable of (N,) scores, one a turn."""
    data.write_jsonl(data_dir / FOLDERS[split] / f"{name}.jsonl", (
        {"dialogue_id": turn.dialogue_id, "turn": turn.number, "track_ids": [track_ids[row] for row in rank(s, turn, seed)],
         "response": None} for s, turn in zip(scores, turns, strict=True)))


def prediction_files(name):
    """The two files of a system, relative to the data directory: valid, then test."""
    return [f"{folder}/{name}.jsonl" for folder in FOLDERS.values()]


def dialogue_files(*splits):
    return [f"dialogues_{split}.jsonl" for split in splits or FOLDERS]
