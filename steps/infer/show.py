"""What the terminal shows: a predicted dialogue, and why a track was played."""

import signal

import numpy as np

from common import data, runs
from common.metrics import filter_played, rank_of_first_hit
from common.tokens import MODALITIES
from common.turns import FOLDERS, collect_turns


def show(data_dir, split="test", dialogue_id=None):
    """Print a dialogue beside predictions/talkplay.jsonl. dialogue_id: None for the first."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # "show | head" ends quietly
    tracks = data.load_tracks(data_dir)
    row_of = {track["track_id"]: row for row, track in enumerate(tracks)}
    path = data_dir / f"dialogues_{split}.jsonl"
    dialogues = {d["dialogue_id"]: d for d in data.load_dialogues(path, row_of)}
    ids = list(dialogues)
    dialogue_id = dialogue_id or ids[0]
    if dialogue_id not in dialogues:
        raise SystemExit(f"--dialogue {dialogue_id} is not in {path}, whose ids run from {ids[0]} "
                         f"to {ids[-1]}")
    predict = f"python 05_infer.py predict --data-dir {data_dir} --split {split}"
    lines = data.read_jsonl(data_dir / FOLDERS[split] / "talkplay.jsonl", predict)
    predictions = {row["turn"]: row for _, row in lines if row["dialogue_id"] == dialogue_id}
    runs.check_unchanged(data_dir, f"05_infer.{split}", path.name,
                         f"predict again: {predict} --no-resume")

    print(f"{dialogue_id}: what the model would answer. The dialogue goes on with the track of the "
          "data, not with the model's.")
    turns = {turn.number: turn for turn in collect_turns([dialogues[dialogue_id]], row_of)}
    for number, said in enumerate(dialogues[dialogue_id]["turns"], 1):
        print(f"\nlistener  {said['query']}")
        if number not in predictions:  # a turn without targets
            continue
        turn = turns[number]
        ranked = np.array([row_of[track_id] for track_id in predictions[number]["track_ids"]])
        ranked = filter_played(ranked, turn.played, turn.targets)
        rank = rank_of_first_hit(ranked, turn.targets) or f"below {len(ranked)}"
        turned_down = "; the listener turns it down" if turn.rejected else ""
        print(f"model     {describe(tracks[ranked[0]])}")
        print(f"          \"{predictions[number]['response']}\"")
        print(f"data      {describe(tracks[turn.targets[0]])}  (the model ranks it {rank} of "
              f"{len(tracks)}{turned_down})")


def describe(track):
    text = data.item_text(track, ("title", "artist", "year"))
    return f"{text} [{', '.join(track['tags'])}]"


def why(sampled, codes):
    """Which of the sampled codes a track has, as a line of text."""
    if sampled is None:
        return "the sampled tokens were not a well-formed block"
    marks = []
    for modality, code, of_track in zip(MODALITIES, sampled, codes, strict=True):
        if code >= 0:
            has = f"(track: {of_track if of_track >= 0 else None})"
            marks.append(f"{modality}-{code} {'=' if code == of_track else has}")
    return f"sampled {', '.join(marks)}"
