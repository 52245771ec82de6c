"""03_synthesize.py audit: what there is to doubt in a file of dialogues, whoever wrote it.

Everything is counted from words, with rules that are meant to be read (here and in audit_words.py);
they miss what is said in other words. So the shares serve to compare files and to find examples,
not as truths about single dialogues.
"""

import json
from collections import Counter
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from common import data
from steps.synthesize import audit_words
from steps.synthesize.audit_words import all_turns, share
from steps.synthesize.spoken import words_of

SHINGLE = 5  # words in a row that count as the same text
NEAR = 0.5   # share of a dialogue's shingles, or tracks, that makes another one its near-duplicate


class Turn(NamedTuple):
    query: str
    music: str | None     # a track_id of the catalogue
    response: str
    rejected: bool
    kind: str | None


# ---------------------------------------------------------------- the files

def is_type(value, *types):
    return value is None or type(value) in types


def text_of(value):
    return value if isinstance(value, str) else ""


def schema_faults(dialogues, track_of):
    """{fault: how often} of a list of dialogues as the file has them."""
    faults = Counter()
    for dialogue in dialogues:
        turns = dialogue.get("turns")
        faults["dialogue without an id"] += not text_of(dialogue.get("dialogue_id"))
        faults["field of another type"] += not is_type(dialogue.get("playlist_id"), str, int)
        if not isinstance(turns, list) or not turns or not all(isinstance(t, dict) for t in turns):
            faults["dialogue without turns"] += 1
            continue
        music = [turn["music"] for turn in turns if text_of(turn.get("music"))]
        rejected = [turn.get("rejected") is True for turn in turns]
        faults["dialogue that plays a track twice"] += len(set(music)) < len(music)
        faults["dialogue that ends on a rejected track"] += rejected[-1]
        for turn in turns:
            faults.update(turn_faults(turn, track_of))
        faults["two rejections in a row"] += sum(a and b for a, b in pairwise(rejected))
    ids = Counter(text_of(dialogue.get("dialogue_id")) for dialogue in dialogues)
    faults["dialogue id that occurs twice"] = sum(n > 1 for i, n in ids.items() if i)
    return dict(faults)


def turn_faults(turn, track_of):
    """{fault: how often} of one turn."""
    targets = turn.get("targets") or []
    typed = isinstance(targets, list) and all(is_type(t, str) for t in targets)
    wrong_types = [not is_type(turn.get(f), str) for f in ("query", "music", "response", "kind")]
    wrong_types += [not is_type(turn.get("rejected"), bool), not typed]
    named = {text_of(turn.get("music")), *(targets if typed else ())} - {"", None}
    return {"turn without a query": not text_of(turn.get("query")).strip(),
            "turn without a track": not text_of(turn.get("music")),
            "turn without an answer": not text_of(turn.get("response")).strip(),
            "field of another type": sum(wrong_types),
            "track that the catalogue does not have": sum(t not in track_of for t in named)}


def usable(dialogues, track_of):
    """What of the dialogues can be measured: [{playlist_id, turns: list of Turn}]."""
    kept = []
    for dialogue in dialogues:
        rows = dialogue.get("turns")
        rows = rows if isinstance(rows, list) else []
        turns = [Turn(row["query"], track_of.get(text_of(row.get("music")), {}).get("track_id"),
                      text_of(row.get("response")), row.get("rejected") is True,
                      text_of(row.get("kind")) or None)
                 for row in rows if isinstance(row, dict) and text_of(row.get("query")).strip()]
        playlist_id = dialogue.get("playlist_id")
        if turns:
            kept.append({"playlist_id": playlist_id if is_type(playlist_id, str, int) else None,
                         "turns": turns})
    return kept


def predicted_answers(folder, system, track_of):
    """[(query, response, track)] of predictions/<system>.jsonl: the first track not played yet.

    Raises SystemExit: a line is of other dialogues, or none has a response.
    """
    asked = {}
    for dialogue in data.load_dialogues(folder / "dialogues_test.jsonl", track_of):
        played = set()
        for number, turn in enumerate(dialogue["turns"], 1):
            asked[dialogue["dialogue_id"], number] = turn["query"], set(played)
            played.add(turn["music"])

    path = folder / "predictions" / f"{system}.jsonl"
    made_by = f"python 05_infer.py predict --data-dir {folder}, or the baseline of that name"
    answers = []
    for number, row in data.read_jsonl(path, made_by):
        query, played = asked.get((row.get("dialogue_id"), row.get("turn")), (None, None))
        if played is None or not set(row.get("track_ids") or ["-"]) <= set(track_of):
            raise SystemExit(f"{path}:{number}: a dialogue_id and turn of dialogues_test.jsonl and "
                             f"track_ids of tracks.jsonl are expected; make the file again")
        if row.get("response"):
            first = next((t for t in row["track_ids"] if t not in played), row["track_ids"][0])
            answers.append((query, row["response"], track_of[first]))
    if not answers:
        raise SystemExit(f"{path}: no responses in it; talkplay and two_stage write some")
    return answers


# ---------------------------------------------------------------- counts, cold tracks, duplicates

def describe(dialogues):
    """The paper's Table 1, and the lengths of what is said."""
    turns = all_turns(dialogues)
    words = {w for turn in turns for w in f"{turn.query} {turn.response}".lower().split()}
    queries = Counter(words_of(turn.query) for turn in turns)
    return {"dialogues": len(dialogues),
            "tracks": len({turn.music for turn in turns} - {None}),
            "vocabulary": len(words),
            "turns": len(turns),
            "turns per dialogue": len(turns) / len(dialogues),
            "words per query": float(np.mean([len(turn.query.split()) for turn in turns])),
            "words per answer": float(np.mean([len(turn.response.split()) for turn in turns])),
            "queries that are said once only": sum(n == 1 for n in queries.values()) / len(turns)}


def cold(dialogues, warm):
    """Shares of the tracks, and of the turns, whose track is not in `warm`: a set of track ids."""
    music = [turn.music for turn in all_turns(dialogues) if turn.music]
    return {"tracks": share([track_id not in warm for track_id in set(music)]),
            "turns": share([track_id not in warm for track_id in music])}


def shingles(dialogue):
    """The set of SHINGLE words in a row in what is said in a dialogue."""
    said = [words_of(text).split() for turn in dialogue["turns"]
            for text in (turn.query, turn.response)]
    return {" ".join(words[i:i + SHINGLE]) for words in said
            for i in range(len(words) - SHINGLE + 1)}


def journey(dialogue):
    """The set of tracks that a dialogue plays."""
    return {turn.music for turn in dialogue["turns"]} - {None}


def near(sets, train_sets, of_both):
    """Which of the sets share NEAR of their items, or of both's items, with one set of train."""
    having = {}  # {item: which of the sets have it}
    for i, items in enumerate(sets):
        for item in items:
            having.setdefault(item, []).append(i)
    is_near = [False] * len(sets)
    for items in train_sets:
        common = Counter(i for item in items for i in having.get(item, ()))
        for i, n in common.items():
            is_near[i] |= n / len(sets[i] | items if of_both else sets[i]) >= NEAR
    return is_near


def duplicates(train, dialogues):
    """Shares of `dialogues` (of another file) that repeat what is in `train`.

    Only what `dialogues` have is kept in memory.
    """
    playlists = {dialogue["playlist_id"] for dialogue in train} - {None}
    queries = {words_of(turn.query) for turn in all_turns(dialogues)}
    repeated = {words_of(turn.query) for d in train for turn in d["turns"]
                if words_of(turn.query) in queries}
    near_text = near([shingles(d) for d in dialogues], map(shingles, train), of_both=False)
    near_journey = near([journey(d) for d in dialogues], map(journey, train), of_both=True)
    return {
        "playlist in both": share([d["playlist_id"] in playlists for d in dialogues]),
        f"queries of {SHINGLE} words or more said in train": share(
            [words_of(turn.query) in repeated for turn in all_turns(dialogues)
             if len(turn.query.split()) >= SHINGLE]),
        "dialogues with half their wording from one of train": share(near_text),
        "dialogues with half their tracks from one of train": share(near_journey)}


# ---------------------------------------------------------------- the page

SECTIONS = {"What there is": "table_1",
            "Schema and order: faults": "schema",
            "Requests that name the track before it is played": "give_away",
            "What requests speak of": "coverage",
            "Rejections and changes of direction": "directions",
            "Tracks that no training playlist has": "cold",
            "Repeated from train": "duplicates",
            "What answers say of their track": "truth",
            "Does the next track obey?": "obedience"}


def as_text(value, key=""):
    if value is None:
        return "-"
    if isinstance(value, dict):  # of obedience
        return (f"{as_text(value['obeyed'])} of {value['checked']} "
                f"(chance {as_text(value['chance'])})")
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.1f}" if " per " in key else f"{value:.1%}"


def markdown(report):
    """The report as a Markdown page, files side by side. report: from `examine`"""
    lines = ["# Audit of the dialogues", "", "By `python 03_synthesize.py audit`. Shares are "
             "counted from words (the rules are in `steps/synthesize/audit.py`)."]
    for title, section in SECTIONS.items():
        by_file = {name: sections[section] for name, sections in report.items()
                 if section in sections}
        keys = dict.fromkeys(key for numbers in by_file.values() for key, value in numbers.items()
                             if section == "obedience" or not isinstance(value, dict))
        if not keys:
            continue
        lines += ["", f"## {title}", ""]
        if section == "obedience":
            lines += ["Asked for in words; the share of obeyed requests among those where both "
                      "tracks' fields are known; the share by chance.", ""]
        align = " --- |" if section == "obedience" else " ---: |"
        lines += ["| | " + " | ".join(by_file) + " |", "| --- |" + align * len(by_file)]
        for key in keys:
            cells = [as_text(numbers.get(key), key) for numbers in by_file.values()]
            lines.append(f"| {key} | {' | '.join(cells)} |")

    lines += ["", "Kinds, as the files name them:", ""]
    for name, sections in report.items():
        kinds = sections.get("coverage", {}).get("kinds, as the file names them", {})
        if kinds:
            lines.append(f"- {name}: " + ", ".join(f"{kind} {n:.0%}" for kind, n in kinds.items()))
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------- the report

def read_files(folder, files):
    """{name of a file: its rows}. Raises SystemExit: one is missing, or holds no dialogues."""
    rows = {}
    made_by = f"python 03_synthesize.py simulate --data-dir {folder}"
    for path in files:
        if path.name in rows:
            raise SystemExit(f"--file: two files are called {path.name}; rename one of them")
        rows[path.name] = [row for _, row in data.read_jsonl(path, made_by)]
        if rows[path.name] and not any("turns" in row for row in rows[path.name]):
            raise SystemExit(f"{path} holds no dialogues (lines with turns), as has for instance "
                             f"{folder}/dialogues_test.jsonl")
    return rows


def examine(folder, files, predictions=()):
    """{name of a file: {section: numbers}}. predictions: names of systems"""
    tracks = data.load_tracks(folder)
    track_of = {track["track_id"]: track for track in tracks}
    warm = None  # not known
    if (folder / "playlists.jsonl").is_file():
        warm = {t for playlist in data.load_playlists(folder, track_of)
                if playlist["split"] == "train" for t in playlist["track_ids"]}
    rows = read_files(folder, files)
    usable_of = {name: usable(file_rows, track_of) for name, file_rows in rows.items()}
    train = next((name for name in rows if "train" in name), None)

    report = {name: {"schema": schema_faults(file_rows, track_of)}
              for name, file_rows in rows.items()}
    for name, dialogues in usable_of.items():
        if not dialogues:
            continue
        report[name] |= {"table_1": describe(dialogues),
                         "give_away": audit_words.give_away(dialogues, track_of),
                         "coverage": audit_words.coverage(dialogues, track_of),
                         "directions": audit_words.directions(dialogues, track_of),
                         "obedience": audit_words.obedience(dialogues, track_of, tracks)}
        if warm is not None:
            report[name]["cold"] = cold(dialogues, warm)
        if train and name != train:
            report[name]["duplicates"] = duplicates(usable_of[train], dialogues)
        answers = [(turn.query, turn.response, track_of[turn.music])
                   for turn in all_turns(dialogues) if turn.music and turn.response]
        report[name]["truth"] = audit_words.truth(answers, tracks)
    for system in predictions:
        answers = predicted_answers(folder, system, track_of)
        report[f"predictions/{system}"] = {"truth": audit_words.truth(answers, tracks)}
    return report


def run(folder, files, predictions=()):
    """Print the report, and write it to results/. Arguments as in `examine`."""
    report = examine(folder, files, predictions)
    page = markdown(report)
    data.write_text(folder / "results" / "audit.md", page)
    data.write_text(folder / "results" / "audit.json", json.dumps(report, indent=1) + "\n")
    print(page)
    print(f"wrote {folder}/results/audit.md and {folder}/results/audit.json")
