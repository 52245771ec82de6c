"""TalkPlayData-1, TalkPlayData-2 and the Music-CRS challenge set, for 00_prepare_data.py.

A row of the published files is
  1                 pid, cid, conversations [{role, content}]: in a turn user, assistant, music
  2 and challenge   session_id, user_id, session_date, conversation_goal, goal_progress_assessments,
                    conversations [{turn_number, role, content}]: in a turn user, music, assistant
  tracks            names, artists, albums and tags are lists; date, duration (ms), popularity not
docs/real_data.md says what becomes of them. Other columns are left out without being counted:
thoughts, profiles of listeners, ISRC, ids of artists and albums, chords.
"""

import re

import numpy as np

from common import data
from steps.prepare_data.foreign import clean_text, note, print_problems
from steps.prepare_data.talkplaydata_files import numbered_rows

FIELD_OF = {"user": "query", "music": "music", "assistant": "response"}
AGAINST = "DOES_NOT_MOVE_TOWARD_GOAL"
LABELS = ("MOVES_TOWARD_GOAL", AGAINST)


def read(files, n_valid, played_only, seed, problems):
    """What becomes of the files, but for the embeddings: what `cpcd.read` returns.

    files: from `sort_files`. played_only: keep only tracks that a dialogue plays.
    """
    dialogues, splits, labels = read_conversations(files["conversations"], problems)
    splits = split_dialogues(dialogues, splits, n_valid, seed, problems)
    played = {turn["music"] for dialogue in dialogues for turn in dialogue["turns"]}
    tracks = read_tracks(files["tracks"], played if played_only else None, problems)
    annotate(tracks, files["annotations"], problems)
    counts = [add_targets(dialogue, own, tracks, problems)
              for dialogue, own in zip(dialogues, labels, strict=True)]
    print_problems(problems)
    playlists = make_playlists(dialogues, splits)
    return list(tracks.values()), playlists, dialogues, splits, counts


# ---------------------------------------------------------------- conversations

def identify(row):
    """(dialogue_id, group, meta) of a row; the ids are None where they are missing."""
    session_id, pid, cid = (row.get(column) for column in ("session_id", "pid", "cid"))
    if isinstance(session_id, str) and session_id.strip():
        return session_id, session_id, {
            "backend": "talkplaydata-2", "user_id": str(row.get("user_id") or ""),
            "session_date": release_date(row.get("session_date")),
            "goal": row.get("conversation_goal")}
    if pid is not None and cid is not None:
        meta = {"backend": "talkplaydata-1", "pid": str(pid), "cid": str(cid)}
        return f"{pid}-{cid}", str(pid), meta
    return None, None, {}


def read_labels(assessments, where, problems):
    """{turn: label}. A label judges the music of the turn before the one that it is given in."""
    labels = {}
    for item in assessments if isinstance(assessments, list) else ():
        if not isinstance(item, dict):
            note(problems, "assessments that are no objects", f"{where}: {item}")
            continue
        label, number = item.get("goal_progress_assessment"), item.get("turn_number")
        if label in LABELS and type(number) is int:
            labels[number - 1] = label
        elif label is not None:
            note(problems, "assessments with an unknown label or turn_number",
                 f"{where}: {label}, {number!r}")
    return labels


def make_turns(messages, where, problems):
    """The messages as a list of {query, music, response}; None if they make no dialogue."""
    turns = []
    for message in messages:
        role, number = message.get("role"), message.get("turn_number")
        if role == "user":
            turns.append({"query": None, "music": None, "response": None})
        here = f"{where}, turn {len(turns)}"
        if role not in FIELD_OF:
            note(problems, "messages of an unknown role", f"{where}: {role}")
        elif not turns:
            note(problems, "messages before the listener's first", where)
        elif turns[-1][FIELD_OF[role]] is not None:
            note(problems, f"messages of the role {role} after the first one of a turn", here)
        else:
            turns[-1][FIELD_OF[role]] = clean_text(message.get("content"))
            if not isinstance(message.get("content"), str | None):
                note(problems, f"messages of the role {role} whose content is no text", here)
        if number is not None and number != len(turns):
            note(problems, "conversations whose turns are not numbered 1, 2, ...", where)
            return None
    if not turns or any(turn["query"] is None for turn in turns):
        note(problems, "conversations with a turn in which the listener says nothing", where)
        return None
    return turns


def read_conversations(files, problems):
    """The conversations, each id once. files: list of (path, split).

    Returns: dialogues, whose playlist_id is the playlist or session they come from; the split of
        each, as published; {turn: label} of each.
    """
    dialogues, splits, labels = {}, [], []
    for path, split in files:
        for where, row in numbered_rows([path]):
            messages, (dialogue_id, group, meta) = row.get("conversations"), identify(row)
            if (dialogue_id is None or not isinstance(messages, list)
                    or not all(isinstance(message, dict) for message in messages)):
                note(problems, "rows without session_id (or pid and cid) and messages", where)
            elif dialogue_id in dialogues:
                note(problems, "conversations with the id of an earlier one", where)
            else:
                dialogues[dialogue_id] = None  # the id is taken, even if the turns are no good
                turns = make_turns(messages, where, problems)
                own_labels = read_labels(row.get("goal_progress_assessments"), where, problems)
                if turns is not None:
                    dialogues[dialogue_id] = {"dialogue_id": dialogue_id, "playlist_id": group,
                                              "meta": meta, "turns": turns}
                    splits.append(split)
                    labels.append(own_labels)
    return list(filter(None, dialogues.values())), splits, labels


def split_dialogues(dialogues, published, n_valid, seed, problems):
    """The split of each dialogue: list of names, None for one that is left out.

    As published; where there is no validation, n_valid of the training groups (playlists or
    sessions) are drawn. A training dialogue of a playlist that test (or validation) has too would
    give that one's tracks away: it is left out.
    Raises SystemExit: a split would be empty.
    """
    last = {}  # {group: the last split that has it}
    for dialogue, split in zip(dialogues, published, strict=True):
        group = dialogue["playlist_id"]
        last[group] = max(last.get(group, "train"), split, key=data.SPLITS.index)
    final = dict(last)
    train = [group for group, split in last.items() if split == "train"]
    if train and "valid" not in last.values():
        if len(train) <= n_valid:
            raise SystemExit(f"--n-valid {n_valid}: there are {len(train)} training playlists or "
                             f"sessions; give fewer")
        for i in np.random.default_rng(seed).permutation(len(train))[:n_valid]:
            final[train[i]] = "valid"

    splits = []
    for dialogue, split in zip(dialogues, published, strict=True):
        leaks = split != last[dialogue["playlist_id"]]
        if leaks:
            note(problems, "dialogues of a playlist that a later split has too",
                 f"{dialogue['dialogue_id']} of {split}")
        splits.append(None if leaks else final[dialogue["playlist_id"]])
    for split in data.SPLITS:
        if split not in splits:
            raise SystemExit(f"--parts: no {split} conversations; give that split's file too")
    return splits


def add_targets(dialogue, labels, tracks, problems):
    """Complete the turns; one whose track the catalogue lacks stays, without music and targets.

    Returns: {what is counted: int}.
    """
    judged = 0
    for t, turn in enumerate(dialogue["turns"], 1):
        if turn["music"] and turn["music"] not in tracks:
            note(problems, "tracks of turns that the catalogue does not have (the turns stay)",
                 f"{dialogue['dialogue_id']}: {turn['music']}")
            turn["music"] = None
        label = labels.get(t) if turn["music"] else None
        judged += label is not None
        turn |= {"rejected": label == AGAINST, "targets": [turn["music"]] if turn["music"] else [],
                 "kind": None}
    turns = dialogue["turns"]
    return {"turns": len(turns), "with_targets": sum(bool(turn["targets"]) for turn in turns),
            "judged": judged, "rejected": sum(turn["rejected"] for turn in turns)}


def make_playlists(dialogues, splits):
    """Lines of playlists.jsonl: what each playlist's or session's dialogues play, each track once.

    The playlist_id of dialogues that play nothing becomes None. Raises SystemExit: there is none.
    """
    rows = {}
    for dialogue, split in zip(dialogues, splits, strict=True):
        group, date = dialogue["playlist_id"], dialogue["meta"].get("session_date")
        track_ids = [track_id for turn in dialogue["turns"] for track_id in turn["targets"]]
        if split is not None:
            row = rows.setdefault(group, {"playlist_id": group, "title": None, "modified_at": date,
                                          "split": split, "track_ids": []})
            row["track_ids"] = list(dict.fromkeys(row["track_ids"] + track_ids))
    rows = {group: row for group, row in rows.items() if row["track_ids"]}
    if not rows:
        raise SystemExit("--parts: none of the tracks that the conversations play is among the "
                         "tracks; do the files belong together?")
    for dialogue in dialogues:
        if dialogue["playlist_id"] not in rows:
            dialogue["playlist_id"] = None
    return list(rows.values())


# ---------------------------------------------------------------- tracks

def texts(value):
    """The strings of a list or a scalar as clean text, each once, in order."""
    values = value if isinstance(value, list) else [value]
    return list(dict.fromkeys(filter(None, map(clean_text, values))))


def first(value):
    """The first of a list (None of an empty one), or the scalar itself."""
    return next(iter(value), None) if isinstance(value, list | np.ndarray) else value


def positive(value):
    """A number above 0 of a number or a string that is one; else None."""
    try:
        number = float(first(value))
    except (TypeError, ValueError):
        return None
    return number if 0 < number < float("inf") else None


def release_date(value):
    """YYYY-MM-DD or YYYY, as in tracks.jsonl (YYYY-MM becomes the year); else None."""
    date = re.match(r"([1-9]\d{3})(-\d\d(-\d\d)?)?(?!\d)", str(first(value)))
    return date and (date[0] if date[3] else date[1])


def note_unusable(used, row, where, problems):
    """Count the columns of which nothing was used although the row has a value there."""
    for column, value in used.items():
        given = first(row.get(column))
        if value is None and given not in (None, ""):
            note(problems, f"values of {column} that cannot be used", f"{where}: {given}")


def make_track(row, where, problems):
    """A line of tracks.jsonl."""
    names, albums = texts(row.get("track_name")), texts(row.get("album_name"))
    for kind, values in (("names", names), ("albums", albums)):
        if len(values) > 1:
            note(problems, f"{kind} of a track after its first", where)
    popularity = first(row.get("popularity"))
    used = {"release_date": release_date(row.get("release_date")),
            "duration": positive(row.get("duration")),
            "popularity": popularity if popularity == 0 else positive(popularity)}
    note_unusable(used, row, where, problems)
    duration = used.pop("duration")
    return dict.fromkeys(data.TRACK_FIELDS) | used | {
        "track_id": row["track_id"], "title": first(names), "album": first(albums),
        "artist": ", ".join(texts(row.get("artist_name"))) or None,
        "duration_ms": duration and int(duration), "tags": texts(row.get("tag_list"))}


def read_tracks(paths, played, problems):
    """{track_id: line of tracks.jsonl}, in the order of the files.

    played: the track_ids to keep, or None for all.
    """
    tracks = {}
    for where, row in numbered_rows(paths):
        track_id = row.get("track_id")
        if not isinstance(track_id, str) or not track_id:
            note(problems, "tracks without a track_id", where)
        elif track_id in tracks:
            note(problems, "rows of a track that has one already", f"{where} ({track_id})")
        elif played is not None and track_id not in played:
            note(problems, "tracks that no dialogue plays", f"{where} ({track_id})")
        else:
            tracks[track_id] = make_track(row, where, problems)
    return tracks


def annotate(tracks, paths, problems):
    """Fill in caption, tempo and key (the first of each list) of TrackDB-Pseudo-Annotation."""
    for where, row in numbered_rows(paths):
        track_id = str(row.get("track_id"))
        if track_id not in tracks:
            note(problems, "captions of tracks that the catalogue does not have", where)
            continue
        key = clean_text(first(row.get("key")))  # "Db major" too
        good = {"caption": clean_text(row.get("caption")), "tempo": positive(row.get("tempo")),
                "key": None if data.expected_form("key", key) else key}
        note_unusable(good, row, where, problems)
        tracks[track_id].update({k: v for k, v in good.items() if v is not None})
