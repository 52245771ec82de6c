"""TalkPlayData-1, TalkPlayData-2 and the Music-CRS challenge set, for 00_prepare_data.py: conversations, tracks and
embeddings as their authors publish them -> tracks, playlists, dialogues, embeddings.

All are parquet files on the Hugging Face hub (talkpl-ai); JSON (a list of rows, or a row a line) is read too. A file is told
by its columns, the split of conversations by the file's name. What becomes of it:

  conversations   1: pid, cid, conversations[{role, content}], and in a turn the listener (user), the answer (assistant), the track
                  (music). 2 and challenge: session_id, user_id, ..., conversations[{turn_number, role, content, thought}], in a
                  turn user, music, assistant. A turn begins where the listener speaks; music and answer come in either order
  rejected        goal_progress_assessments, where there are some: that of turn t judges the music of turn t - 1, so turn t is
                  rejected if turn t + 1 says DOES_NOT_MOVE_TOWARD_GOAL. Nobody judges the last turn
  split           as published; validation is drawn from the training conversations where none is published, by playlist (1) or
                  session (2)
  playlist        what the dialogues of a pid, or a session, play: no list of its own is published
  tracks          names, artists, albums and tags are lists, dates, durations (ms) and popularity are not: of names and albums the
                  first is taken, artists are joined
  embeddings      MODALITY_OF says which is which. A vector may have length 0: the track lacks the modality. All are divided by
                  their length (as published those of Qwen3 and cf-bpr are not), as 02_quantize.py expects

Left out without being counted: thoughts, profiles of listeners, ISRC, ids of artists and albums, chords.

It stands here in the order in which prepare_talkplaydata calls it. What else cannot be used is counted in `problems` and left
out.
"""

import json
import os
import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common import data
from steps.prepare_data.mpd import clean_text, note

SUFFIXES = (".parquet", ".json", ".jsonl")
MODALITY_OF = {"cf-bpr": "playlist", "attributes-": "semantic", "metadata-": "metadata", "lyrics-": "lyrics", "audio-": "audio"}
FIELD_OF = {"user": "query", "music": "music", "assistant": "response"}
LABELS = FOR, AGAINST = "MOVES_TOWARD_GOAL", "DOES_NOT_MOVE_TOWARD_GOAL"
CONVERSATION_COLUMNS = ("session_id", "user_id", "session_date", "conversation_goal", "pid", "cid", "conversations",
                        "goal_progress_assessments")
TRACK_COLUMNS = ("track_id", "track_name", "artist_name", "album_name", "tag_list", "release_date", "duration", "popularity")
ANNOTATION_COLUMNS = ("track_id", "caption", "tempo", "key")


# ---------------------------------------------------------------- which files

def download(repo_id):
    """The folder of a data set of the hub, fetched if need be. Raises SystemExit: it cannot be had."""
    from huggingface_hub import snapshot_download
    try:
        return Path(snapshot_download(repo_id, repo_type="dataset", allow_patterns=[f"*{suffix}" for suffix in SUFFIXES]))
    except (OSError, ValueError) as error:
        raise SystemExit(f"--parts {repo_id}: neither a file or folder here, nor to be had from the hub "
                         f"({str(error).splitlines()[0]}). Accepted: files, folders, ids such as talkpl-ai/TalkPlayData-2. Some "
                         f"need an account: hf auth login")


def find_files(parts):
    """The files of all parts, each once: list of paths, sorted within a part. Raises SystemExit: a part without any."""
    files = []
    for part in parts:
        path = Path(part) if Path(part).exists() else download(part)
        found = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES and p.is_file())
        if not found or found[0].suffix not in SUFFIXES:
            raise SystemExit(f"--parts {part}: no {', '.join(SUFFIXES)} in it; give what the hub has, such as "
                             f"TalkPlayData-2/data/train-00000-of-00001.parquet or a folder above it")
        files += found
    return list(dict.fromkeys(files))


def open_parquet(path):
    import pyarrow
    from pyarrow import parquet
    try:
        return parquet.ParquetFile(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise SystemExit(f"{path}: not a whole parquet file ({str(error).splitlines()[0]}). Download it again")


def read_rows(path, columns=None):
    """Yield the rows of a parquet or JSON file as dicts, of the named columns (those that it has; None: all).

    Lists of floats come from parquet as arrays, everything else as what JSON would hold.
    Raises SystemExit: the file cannot be read to its end.
    """
    if path.suffix == ".parquet":
        import pyarrow
        file = open_parquet(path)
        try:
            for batch in file.iter_batches(1024, columns=[c for c in file.schema_arrow.names if columns is None or c in columns]):
                cells = [column.to_numpy(zero_copy_only=False) if is_vector(column.type) else column.to_pylist()
                         for column in batch.columns]
                yield from (dict(zip(batch.schema.names, row)) for row in zip(*cells))
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise SystemExit(f"{path}: a damaged parquet file ({str(error).splitlines()[0]}). Download it again")
        return
    with open(path, encoding="utf-8", errors="replace") as f:
        if f.read(4096).lstrip()[:1] != "[":
            yield from (row for _, row in data.read_jsonl(path, "downloading it again (JSON is read as a row a line, or one list of rows)"))
            return
        f.seek(0)
        try:
            rows = json.load(f)
        except json.JSONDecodeError as error:
            raise SystemExit(f"{path}:{error.lineno}: not JSON ({error.msg}). Download it again")
    yield from (row if isinstance(row, dict) else {} for row in rows)  # {}: counted as a row without an id


def is_vector(kind):
    """Whether an Arrow type is a list of floats."""
    from pyarrow import types
    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return is_list and types.is_floating(kind.value_type)


def columns_of(path):
    """The columns of a file; of JSON, the keys that any of its rows has."""
    if path.suffix == ".parquet":
        return open_parquet(path).schema_arrow.names
    return list(dict.fromkeys(key for row in read_rows(path) for key in row))


def modality_of(column, path):
    """The modality that a column of vectors is for, or None. A mere `embedding` is told by the data set's name in the path."""
    name = column
    if column == "embedding":
        name = "-".join(re.findall(r"TalkPlayData-Extra-([\w-]+)", str(path))[-1:])
    return next((modality for key, modality in MODALITY_OF.items() if name.startswith(key)), None)


def split_of(path):
    """The split that a file's name, or else its folder's, begins with or names. Raises SystemExit: none."""
    for name in (path.stem, path.parent.name):
        if word := re.search(r"(?<![a-z])(train|valid|test)(ation)?(?![a-z])", name.lower()):
            return word[1]
    raise SystemExit(f"{path}: conversations, but of which split? Name the file or its folder so that it says train, validation "
                     f"or test")


def sort_files(files, problems):
    """What the files hold, told by their columns.

    Returns: {"conversations": [(path, split)], "tracks": [path], "annotations": [path], "vectors": [(path, {column: modality})]}.
    Raises SystemExit: no conversations, or no tracks.
    """
    found, unused = {"conversations": [], "tracks": [], "annotations": [], "vectors": []}, []
    for path in files:
        columns = columns_of(path)
        vectors = {c: modality for c in columns if (modality := modality_of(c, path))} if "track_id" in columns else {}
        if "conversations" in columns:
            found["conversations"].append((path, split_of(path)))
        elif {"track_id", "track_name"} <= set(columns):
            found["tracks"].append(path)
        elif vectors:
            found["vectors"].append((path, vectors))
            for column in set(columns) - {"track_id", *vectors}:
                note(problems, "columns of vectors that no modality here is for", f"{path.name}, {column}")
        elif {"track_id", "caption"} <= set(columns):
            found["annotations"].append(path)
        else:
            note(problems, "files with neither conversations, tracks, vectors of tracks nor captions", path.name)
            unused.append(f"{path.name}, which has {', '.join(map(repr, columns[:4])) or 'no rows'}")
    for kind, column, example in (("conversations", "conversations", "TalkPlayData-2"),
                                  ("tracks", "track_name", "TalkPlayData-2-Track-Metadata")):
        if not found[kind]:
            raise SystemExit(f"--parts: no file has {kind} (a column {column}); give such files too, as of talkpl-ai/{example}"
                             + (f". Of no use is {unused[0]} (of JSON a list of rows, or a row a line, is read)" if unused else ""))
    return found


# ---------------------------------------------------------------- conversations

class Head(NamedTuple):
    """What has to be known of a dialogue before any is written."""
    dialogue_id: str
    group: str     # the playlist or session it comes from: wholly in one split
    split: str     # as published
    date: str      # ISO, or None
    turns: int
    music: tuple   # track_ids played, in order
    labels: tuple  # of each of them: one of LABELS, or None where nobody judges it


def identify(row):
    """(dialogue_id, group, meta) of a row; ids are None where they are missing."""
    if isinstance(row.get("session_id"), str) and row["session_id"].strip():
        return row["session_id"], row["session_id"], {
            "backend": "talkplaydata-2", "user_id": str(row.get("user_id") or ""),
            "session_date": release_date(row.get("session_date")), "goal": row.get("conversation_goal")}
    if row.get("pid") is not None and row.get("cid") is not None:
        return f"{row['pid']}-{row['cid']}", str(row["pid"]), {"backend": "talkplaydata-1", "pid": str(row["pid"]),
                                                               "cid": str(row["cid"])}
    return None, None, {}


def read_labels(assessments, where, problems):
    """{turn: label} by the turn whose music is judged, which is the one before the turn that the label stands at."""
    labels = {}
    for item in assessments if isinstance(assessments, list) else ():
        label, number = (item.get(key) if isinstance(item, dict) else None for key in ("goal_progress_assessment", "turn_number"))
        if not isinstance(item, dict):
            note(problems, "assessments that are no objects", f"{where}: {item}")
        elif label in LABELS and type(number) is int:
            labels[number - 1] = label
        elif label in LABELS:
            note(problems, "assessments whose turn_number is no whole number", f"{where}: {number!r}")
        elif label is not None:
            note(problems, f"assessments that are neither {FOR} nor {AGAINST}", f"{where}: {label}")
    return labels


def make_turns(messages, where, problems):
    """The messages as a list of {query, music, response}, or None where no dialogue can be made of them."""
    turns = []
    for message in messages:
        role, number = message.get("role"), message.get("turn_number")
        if role == "user":
            turns.append({"query": None, "music": None, "response": None})
        if role not in FIELD_OF:
            note(problems, f"messages of another role than {', '.join(FIELD_OF)}", f"{where}: {role}")
        elif not turns:
            note(problems, "messages before the listener's first", where)
        elif turns[-1][FIELD_OF[role]] is not None:
            note(problems, f"messages of the role {role} after the first one of a turn", f"{where}, turn {len(turns)}")
        else:
            turns[-1][FIELD_OF[role]] = clean_text(message.get("content"))
            if not isinstance(message.get("content"), str | None):
                note(problems, f"messages of the role {role} whose content is no text", f"{where}, turn {len(turns)}")
        if number is not None and number != len(turns):
            note(problems, "conversations whose turns are not numbered 1, 2, ... in their order", where)
            return None
    if not turns or any(turn["query"] is None for turn in turns):
        note(problems, "conversations with a turn in which the listener says nothing", where)
        return None
    return turns


def read_conversations(files, problems):
    """Yield (Head, meta, turns) of the conversations, each id once. A turn has query, music, response, rejected.

    files: list of (path, split). Each call reads the files anew, in the same order.
    """
    seen = set()
    for path, split in files:
        for number, row in enumerate(read_rows(path, CONVERSATION_COLUMNS), 1):
            where, messages = f"{path.name}: row {number}", row.get("conversations")
            dialogue_id, group, meta = identify(row)
            if dialogue_id is None or not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
                note(problems, "rows without session_id (or pid and cid) and a list of messages", where)
                continue
            if dialogue_id in seen:
                note(problems, "conversations with the id of an earlier one", f"{where} ({dialogue_id})")
                continue
            seen.add(dialogue_id)
            turns = make_turns(messages, where, problems)
            labels = read_labels(row.get("goal_progress_assessments"), where, problems)
            if turns is None:
                continue
            for t, turn in enumerate(turns, 1):
                turn["rejected"] = labels.get(t) == AGAINST
            played = [(turn["music"], labels.get(t)) for t, turn in enumerate(turns, 1) if turn["music"]]
            yield Head(dialogue_id, group, split, meta.get("session_date"), len(turns), tuple(m for m, _ in played),
                       tuple(label for _, label in played)), meta, turns


def split_dialogues(heads, n_valid, seed, problems):
    """The split of each dialogue: list of names, None for one that is left out.

    As published; where there is no validation, n_valid of the training groups are drawn. A training dialogue of a playlist
    that test (or validation) has too would give that one's tracks away: it is left out.
    Raises SystemExit: a split would be empty.
    """
    published = {}  # {group: position in data.SPLITS of the last split that has it}
    for head in heads:
        published[head.group] = max(published.get(head.group, 0), data.SPLITS.index(head.split))
    final, train = dict(published), [group for group, s in published.items() if s == 0]
    if heads and not train:
        raise SystemExit("--parts: no train conversations; give that split's file too. Nothing was written")
    if 1 not in published.values():
        if len(train) <= n_valid:
            raise SystemExit(f"--n-valid {n_valid}: there are {len(train)} training playlists or sessions; give fewer. "
                             f"Nothing was written")
        final |= {train[i]: 1 for i in np.random.default_rng(seed).permutation(len(train))[:n_valid]}
    splits = []
    for head in heads:
        leaks = data.SPLITS.index(head.split) != published[head.group]
        if leaks:
            note(problems, "dialogues of a playlist that a later split has too", f"{head.dialogue_id} of {head.split}")
        splits.append(None if leaks else data.SPLITS[final[head.group]])
    if missing := [name for name in data.SPLITS if name not in splits]:
        raise SystemExit(f"--parts: no {missing[0]} conversations; give that split's file too. Nothing was written")
    return splits


# ---------------------------------------------------------------- tracks

def texts(value):
    """The strings of a list or a scalar as clean text, each once, in order."""
    found = (clean_text(x) for x in (value if isinstance(value, list) else [value]))
    return list(dict.fromkeys(filter(None, found)))


def first(value):
    """The first of a list (None of an empty one), or the scalar itself."""
    return next(iter(value), None) if isinstance(value, list | np.ndarray) else value


def positive(value):
    """A number above 0, or None: of a number or of a string that is one."""
    try:
        number = float(first(value))
    except (TypeError, ValueError):
        return None
    return number if 0 < number < float("inf") else None


def release_date(value):
    """YYYY-MM-DD or YYYY, as tracks.jsonl has it (of YYYY-MM the year), or None."""
    date = re.match(r"([1-9]\d{3})(-\d\d(-\d\d)?)?(?!\d)", str(first(value)))
    return date and (date[0] if date[3] else date[1])


def make_track(row, where, problems):
    """A line of tracks.jsonl."""
    names, albums, popularity = texts(row.get("track_name")), texts(row.get("album_name")), first(row.get("popularity"))
    for kind, found in (("names", names), ("albums", albums)):
        if len(found) > 1:
            note(problems, f"{kind} of a track after its first", where)
    track = {"title": names[0] if names else None, "artist": ", ".join(texts(row.get("artist_name"))) or None,
             "album": albums[0] if albums else None, "tags": texts(row.get("tag_list")),
             "release_date": release_date(row.get("release_date")), "duration_ms": None,
             "popularity": popularity if popularity == 0 else positive(popularity)}
    if duration := positive(row.get("duration")):
        track["duration_ms"] = int(duration)
    for field, column in (("release_date", "release_date"), ("duration_ms", "duration"), ("popularity", "popularity")):
        if track[field] is None and first(row.get(column)) not in (None, ""):
            note(problems, f"values of {field} that cannot be used", f"{where}: {first(row[column])}")
    return dict.fromkeys(data.TRACK_FIELDS) | {"track_id": row["track_id"]} | track


def read_tracks(paths, played, problems):
    """{track_id: line of tracks.jsonl}, in the order of the files. played: the tracks to keep, or None for all."""
    tracks = {}
    for path in paths:
        for number, row in enumerate(read_rows(path, TRACK_COLUMNS), 1):
            where, track_id = f"{path.name}: row {number}", row.get("track_id")
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
    """Fill in caption, tempo and key (the first of each list) of TrackDB-Pseudo-Annotation, where they have our form."""
    for path in paths:
        for number, row in enumerate(read_rows(path, ANNOTATION_COLUMNS), 1):
            if not isinstance(row.get("track_id"), str) or (track := tracks.get(row["track_id"])) is None:
                note(problems, "captions of tracks that the catalogue does not have", f"{path.name}: row {number}")
                continue
            key = clean_text(first(row.get("key")))  # "Db major" too
            good = {"caption": clean_text(row.get("caption")), "tempo": positive(row.get("tempo")),
                    "key": key if key and data.FORMS["key"][1](key) else None}
            for field in good:
                if good[field] is None and first(row.get(field)) not in (None, ""):
                    note(problems, f"values of {field} that are not of our form", f"{path.name}: row {number}: {first(row[field])}")
            track.update({field: value for field, value in good.items() if value is not None})


# ---------------------------------------------------------------- the lines to write

def note_unknown(heads, tracks, problems):
    """Count the turns whose track the catalogue does not have: they stay, without music and targets."""
    for head in heads:
        for track_id in head.music:
            if track_id not in tracks:
                note(problems, "tracks of turns that the catalogue does not have; the turns stay, without music,",
                     f"{head.dialogue_id}: {track_id}")


def playlist_rows(heads, splits, tracks):
    """Lines of playlists.jsonl: what the dialogues of each playlist or session play, each track once."""
    rows = {}
    for head, split in zip(heads, splits):
        if split is not None:
            row = rows.setdefault(head.group, {"playlist_id": head.group, "title": None, "modified_at": head.date, "split": split,
                                               "track_ids": {}})
            row["track_ids"].update((track_id, None) for track_id in head.music if track_id in tracks)
    return [row | {"track_ids": list(row["track_ids"])} for row in rows.values() if row["track_ids"]]


def dialogue_rows(files, splits, split, tracks, has_playlist):
    """Yield the lines of one split's file. splits: of split_dialogues; has_playlist: ids of playlist_rows."""
    for (head, meta, turns), own in zip(read_conversations(files, {}), splits, strict=True):
        if own != split:
            continue
        for turn in turns:
            if turn["music"] not in tracks:
                turn["music"], turn["rejected"] = None, False
            turn["targets"], turn["kind"] = [turn["music"]] if turn["music"] else [], None
        yield {"dialogue_id": head.dialogue_id, "playlist_id": head.group if head.group in has_playlist else None, "meta": meta,
               "turns": turns}


def table(heads, splits, tracks):
    """What each split holds: list of dicts."""
    rows = []
    for name in (*data.SPLITS, "all"):
        own = [head for head, s in zip(heads, splits) if s is not None and name in (s, "all")]
        labels = [label for head in own for track_id, label in zip(head.music, head.labels) if track_id in tracks]
        rows.append({"split": name, "dialogues": len(own), "turns": sum(head.turns for head in own), "with_targets": len(labels),
                     "judged": len(labels) - labels.count(None), "rejected": labels.count(AGAINST)})
    return rows


def print_table(rows, tracks):
    print(f"{'split':<6}" + "".join(f"{name.replace('_', ' '):>14}" for name in list(rows[0])[1:]))
    for split, *counts in map(dict.values, rows):
        print(f"{split:<6}" + "".join(f"{n:>14,}" for n in counts))
    print(f"{len(tracks):,} tracks: " + ", ".join(f"{field} of {sum(bool(t[field]) for t in tracks):,}" for field in
          ("title", "artist", "album", "tags", "release_date", "caption")))


# ---------------------------------------------------------------- embeddings

def vector_of(value):
    """The value of a column as (D,) float64, without an entry where there is none; (1,) NaN of what is no list of numbers."""
    try:
        vector = np.asarray([] if value is None else value, np.float64)
    except (TypeError, ValueError):
        vector = np.array([np.nan])
    return vector if vector.ndim == 1 else np.array([np.nan])


def read_vectors(sources, row_of, problems):
    """Yield (row, modality, vector, where) of what is not empty and of a track of the catalogue; of write_embeddings."""
    for path, columns in sources:
        for number, row in enumerate(read_rows(path, ["track_id", *columns]), 1):
            where = f"{path.name}: row {number}"
            if not isinstance(row.get("track_id"), str) or row["track_id"] not in row_of:
                note(problems, "rows of vectors of tracks that the catalogue does not have", where)
                continue
            for column, modality in columns.items():
                if (vector := vector_of(row.get(column))).size:
                    yield row_of[row["track_id"]], modality, vector, f"{where}, {column}"


def write_embeddings(folder, sources, row_of, problems):
    """embeddings/<modality>.npy, a row of NaN where a track has no vector; D is the size that most vectors of a modality have.

    sources: list of (path, {column: modality}), read twice. Returns: {modality: (shape, tracks that have it)}.
    """
    sizes, arrays, present = {}, {}, {}
    for _, modality, vector, _ in read_vectors(sources, row_of, {}):
        if 0 < (vector**2).sum() < np.inf:
            sizes.setdefault(modality, Counter())[len(vector)] += 1
    folder.mkdir(parents=True, exist_ok=True)
    for modality, counts in sizes.items():
        shape = len(row_of), counts.most_common(1)[0][0]
        arrays[modality] = np.lib.format.open_memmap(folder / f"{modality}.npy.tmp", "w+", np.float32, shape)
        arrays[modality][:] = np.nan
    for row, modality, vector, where in read_vectors(sources, row_of, problems):
        length = np.sqrt((vector**2).sum())
        if not 0 < length < np.inf:
            note(problems, "vectors of no length, or with values that are no numbers", where)
        elif len(vector) != arrays[modality].shape[1]:
            note(problems, f"vectors that have not the {arrays[modality].shape[1]} dimensions of most", where)
        elif not np.isnan(arrays[modality][row, 0]):
            note(problems, "vectors of a track that has one already", where)
        else:
            arrays[modality][row] = vector / length
    for modality, array in arrays.items():
        array.flush()
        present[modality] = (array.shape, int((~np.isnan(array[:, 0])).sum()))
        os.replace(folder / f"{modality}.npy.tmp", folder / f"{modality}.npy")
    return present
