"""What ranking and scoring share: the turns, the random draw of ties, the prediction files.

A baseline is a function of a turn's past and query that gives every track a score. `rank` and
`write_predictions` turn the scores into rankings by the rules of the evaluation
(common/metrics.py), which are the same for every system.
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
        if dialogue["playlist_id"] is not None:
            group = f"playlist {dialogue['playlist_id']}"
        else:
            group = f"dialogue {dialogue['dialogue_id']}"
        for t, turn in enumerate(dialogue["turns"]):
            if not turn["targets"]:
                continue
            past = dialogue["turns"][:t]
            turns.append(Turn(
                dialogue_id=dialogue["dialogue_id"],
                number=t + 1,
                past=past,
                query=turn["query"],
                played=[row_of[before["music"]] for before in past if before["music"]],
                targets=[row_of[track_id] for track_id in turn["targets"]],
                rejected=bool(turn["rejected"]),
                kind=turn["kind"],
                template=turn.get("template"),
                group=group))
    return turns


def load_turns(data_dir, row_of):
    """{split: list of Turn} of the valid and the test dialogues."""
    dialogues = {split: data.load_dialogues(data_dir / f"dialogues_{split}.jsonl", row_of)
                 for split in FOLDERS}
    return {split: collect_turns(dialogues[split], row_of) for split in FOLDERS}


def rank(scores, turn, seed, depth=None):
    """The rows of the best tracks for one turn, best first, ties by the turn's own draw.

    scores: higher is better, (N,).
    depth: how many rows; None: as many as the evaluation asks for.
    """
    scores = np.asarray(scores)
    depth = metrics.ranking_depth(len(scores)) if depth is None else depth
    return metrics.rank_rows(scores, metrics.turn_rng(seed, *turn.key), depth)


def target_rank(ranked, turn):
    """1-based rank of the turn's target, tracks already played left out; 0 where it is not ranked.

    ranked: catalogue rows, best first, (D,).
    """
    candidates = metrics.filter_played(ranked, turn.played, turn.targets)
    return metrics.rank_of_first_hit(candidates, turn.targets)


def mrr(scores, turns, seed):
    """MRR of an iterable of (N,) scores, one per turn, as 06_evaluate.py counts it."""
    return metrics.mrr([target_rank(rank(turn_scores, turn, seed), turn)
                        for turn_scores, turn in zip(scores, turns, strict=True)])


def write_predictions(data_dir, split, name, scores, turns, track_ids, seed):
    """Write predictions/<name>.jsonl (valid: predictions_valid/), from (N,) scores per turn."""
    rows = ({"dialogue_id": turn.dialogue_id,
             "turn": turn.number,
             "track_ids": [track_ids[row] for row in rank(turn_scores, turn, seed)],
             "response": None}
            for turn_scores, turn in zip(scores, turns, strict=True))
    data.write_jsonl(data_dir / FOLDERS[split] / f"{name}.jsonl", rows)


def prediction_files(name):
    """The two files of a system, relative to the data directory: valid, then test."""
    return [f"{folder}/{name}.jsonl" for folder in FOLDERS.values()]


def dialogue_files(*splits):
    """The dialogue files of these splits, by default valid and test."""
    return [f"dialogues_{split}.jsonl" for split in splits or FOLDERS]
