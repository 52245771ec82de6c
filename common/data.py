"""Read, write and check the files that the numbered scripts pass to each other.

data/README.md lists every file. Row i of every array is line i of tracks.jsonl. Writers write under
a temporary name and rename, so a file that exists is whole. Readers check what they read, and end
with one clear line (SystemExit) when it is not as it should be.
"""

import csv
import io
import json
import os
import re
from collections import Counter
from pathlib import Path

import numpy as np

from common.tokens import MODALITIES

TRACK_FIELDS = ("track_id", "title", "artist", "album", "release_date", "duration_ms", "popularity",
                "tags", "lyrics", "caption", "tempo", "key", "audio_path")
TEXT_FIELDS = ("title", "artist", "album", "lyrics", "caption", "audio_path")
NUMBER_FIELDS = ("duration_ms", "popularity", "tempo")
SPLITS = ("train", "valid", "test")

# What data files write where nothing is known: in lower case, without outer spaces.
NO_TEXT = ("", "n/a", "none", "unknown", "unknown album", "unknown artist", "unknown title")
MEANS_UNKNOWN = dict.fromkeys((*TEXT_FIELDS, "tags"), NO_TEXT) | {
    "release_date": ("", "0000", "0000-00", "0000-00-00", "0000-01-01"),
    "duration_ms": (0,), "popularity": (-1,), "tempo": (0,), "key": ("", -1)}

# The types of a turn's fields besides the query, and what they are in words.
TURN_FORMS = {"music": (str | None, "a track_id, or null"),
              "response": (str | None, "a string, or null"),
              "targets": (list, "a list of track_ids"),
              "rejected": (bool, "true or false"),
              "kind": (str | None, "a string, or null")}


# ---------------------------------------------------------------- files

def write_text(path, text):
    """Write a string to `path`, atomically. Half a surrogate pair becomes "?"."""
    write_lines(path, [text])


def write_jsonl(path, rows):
    """Write an iterable of dicts, one JSON object per line, atomically."""
    write_lines(path, (json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_csv(path, header, rows):
    """Write a table, atomically; floats with six digits after the point."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        writer.writerow([f"{cell:.6f}" if isinstance(cell, float) else cell for cell in row])
    write_text(path, text.getvalue())


def write_lines(path, lines):
    """Write an iterable of strings to `path`, atomically. Half a surrogate pair becomes "?"."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", encoding="utf-8", errors="replace") as f:
        f.writelines(lines)
    os.replace(temporary, path)


def save_npy(path, array):
    """Write an array to `path`, atomically."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as f:
        np.save(f, array)
    os.replace(temporary, path)


def read_jsonl(path, made_by):
    """Yield (line_number, dict) of a JSONL file. Half a surrogate pair becomes "?", as in writers.

    made_by: the command that makes the file, named when it is missing.
    Raises SystemExit: missing file, or a line that is not a JSON object.
    """
    path = Path(path)
    if not path.is_file():
        raise SystemExit(f"{path} is missing; make it with: {made_by}")
    n_mended = 0
    with open(path, encoding="utf-8", errors="replace") as f:
        for number, line in enumerate(f, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                if "\\ud" in line.lower():  # such an escape alone is half a character
                    text = json.dumps(row, ensure_ascii=False)
                    whole = text.encode("utf-8", "replace").decode("utf-8")
                    row = json.loads(whole)
                    n_mended += whole != text
            except (ValueError, RecursionError) as error:  # also: too many digits, nested too deep
                reason = getattr(error, "msg", str(error)).partition(";")[0]
                raise SystemExit(f"{path}:{number}: not JSON ({reason}); the file may be cut "
                                 f"off or foreign. Make it again with: {made_by}") from None
            if not isinstance(row, dict):
                raise SystemExit(f"{path}:{number}: a JSON object is expected, not "
                                 f"{type(row).__name__}. Make the file again with: {made_by}")
            yield number, row
    if n_mended:
        tell(f"{path.name}: lines with half a character, which was read as ?: {n_mended}")


def tell(line):
    """Print a line, once where torchrun runs several processes."""
    if os.environ.get("RANK", "0") == "0":
        print(line)


def keep_whole_lines(part):
    """Cut a half-written last line off an append-only file; returns the number of lines left."""
    if not part.is_file():
        return 0
    text = part.read_bytes()
    whole = text[:text.rfind(b"\n") + 1]
    if len(whole) < len(text):
        os.truncate(part, len(whole))
    return whole.count(b"\n")


def load_npy(path, made_by, n_rows=None, dtype=None, ndim=2):
    """Memory-map an .npy file and check its form.

    Raises SystemExit: missing, not .npy, wrong dtype, wrong number of dimensions or rows.
    """
    path = Path(path)
    if not path.is_file():
        raise SystemExit(f"{path} is missing; make it with: {made_by}")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise SystemExit(f"{path}: not a whole .npy file ({error}). Make it again with: "
                         f"{made_by}") from None
    if array.ndim != ndim or (dtype is not None and array.dtype != dtype):
        raise SystemExit(f"{path}: {array.dtype} of shape {array.shape}; expected "
                         f"{np.dtype(dtype or array.dtype)} with {ndim} dimensions. Make it again "
                         f"with: {made_by}")
    if n_rows is not None and array.shape[0] != n_rows:
        raise SystemExit(f"{path}: {array.shape[0]} rows, but tracks.jsonl has {n_rows}; the file "
                         f"belongs to another catalogue. Make it again with: {made_by}")
    return array


# ---------------------------------------------------------------- the catalogue

def catalogue_files(data_dir, leave_out=None):
    """The files that `load_tracks` reads, relative to data_dir: tracks.jsonl and its annotations.

    leave_out: annotation files whose names begin so are left out.
    """
    annotations = sorted((Path(data_dir) / "annotations").glob("*.jsonl"))
    return ["tracks.jsonl", *(f"annotations/{path.name}" for path in annotations
                              if not (leave_out and path.name.startswith(leave_out)))]


def expected_form(field, value):
    """What a field of a track must be, in words, where `value` is not that; None where it is.

    A field that is null, or none of ours, is always accepted.
    """
    if value is None:
        return None
    if field in TEXT_FIELDS:
        good = isinstance(value, str)
        form = "a string"
    elif field in NUMBER_FIELDS:
        good = isinstance(value, (int, float)) and not isinstance(value, bool) \
            and 0 <= value < float("inf")
        form = "a number, 0 or more"
    elif field == "tags":
        good = isinstance(value, list) and all(isinstance(tag, str) for tag in value)
        form = "a list of strings"
    elif field == "release_date":
        good = isinstance(value, str) and re.match(r"\d{4}(?!\d)", value)
        form = "a string YYYY-MM-DD or YYYY"
    elif field == "key":
        good = isinstance(value, str) and re.fullmatch(r"[A-G][#b]? (major|minor)", value)
        form = "tonic and mode, as in G# minor"
    else:
        good = True
    return None if good else form


def means_unknown(field, value):
    """Whether a value stands for an unknown one, as release_date "0000" or tempo 0 do."""
    if isinstance(value, str):
        value = value.strip().lower()
    return not isinstance(value, bool) and value in MEANS_UNKNOWN.get(field, ())


def known_fields(row, where, unknown):
    """The TRACK_FIELDS of a line: null where the value means unknown, and each tag once.

    where: file and line. unknown: Counter of fields; what means unknown is counted there.
    Raises SystemExit: a field of a track has another form.
    """
    fields = {field: row.get(field) for field in TRACK_FIELDS}
    for field, value in fields.items():
        if means_unknown(field, value):
            unknown[field] += 1
            fields[field] = None
        elif form := expected_form(field, value):
            raise SystemExit(f"{where}: {field} is {json.dumps(value)[:60]}; {form} is expected, "
                             f"or null")
    if fields["tags"]:
        tags = {}
        for tag in fields["tags"]:
            if means_unknown("tags", tag):
                unknown["tags"] += 1
            else:
                tags.setdefault(tag.strip().lower(), tag)  # the first spelling stays
        fields["tags"] = list(tags.values()) or None
    return fields


def load_tracks(data_dir, leave_out=None):
    """Tracks in row order, with every annotations/*.jsonl laid over them.

    The row order is always that of tracks.jsonl. What means unknown is read as null, and one line
    per file is printed that counts it. An annotation file holds `track_id` and the fields
    that it fills (not null). Lines of unknown tracks are ignored, since an annotation file may
    cover more than the catalogue.

    leave_out: annotation files whose names begin so are not laid over.
    Returns: list of dicts with all TRACK_FIELDS.
    Raises SystemExit: missing file, a line without track_id, a duplicate, a field of another form.
    """
    data_dir = Path(data_dir)
    made_by = f"python 00_prepare_data.py demo --data-dir {data_dir} (or mpd, for real playlists)"
    if not data_dir.is_dir():
        raise SystemExit(f"{data_dir} is no folder; is --data-dir right? A catalogue is made there "
                         f"with: {made_by}")
    catalogue, *annotations = (data_dir / name for name in catalogue_files(data_dir, leave_out))
    tracks = []
    row_of = {}
    unknown = {path: Counter() for path in (catalogue, *annotations)}
    for number, row in read_jsonl(catalogue, made_by):
        where = f"{catalogue}:{number}"
        track_id = row.get("track_id")
        if not isinstance(track_id, str) or not track_id.strip():
            raise SystemExit(f"{where}: no track_id; each line needs one. Make the file again "
                             f"with: {made_by}")
        if track_id in row_of:
            raise SystemExit(f"{where}: track_id {track_id} occurs twice (also line "
                             f"{row_of[track_id] + 1}); each track may occur once. Make the file "
                             f"again with: {made_by}")
        row_of[track_id] = len(tracks)
        fields = known_fields(row, where, unknown[catalogue])
        tracks.append(fields | {"tags": fields["tags"] or []})
    if not tracks:
        raise SystemExit(f"{catalogue}: no tracks in it. Make it again with: {made_by}")
    for path in annotations:
        for number, row in read_jsonl(path, "the script that wrote it, or remove the file"):
            track_id = row.get("track_id")
            if not isinstance(track_id, str):
                raise SystemExit(f"{path}:{number}: no track_id; an annotation line needs one")
            if track_id in row_of:
                fields = known_fields(row, f"{path}:{number}", unknown[path])
                tracks[row_of[track_id]].update(
                    {field: value for field, value in fields.items() if value is not None})
    for path, counts in unknown.items():
        if counts.total():
            tell(f"{path.name}: {counts.total()} values that mean unknown were read as null: "
                 + ", ".join(f"{field} {n}" for field, n in counts.items()))
    return tracks


def item_text(track, fields=("title", "artist", "album", "tags", "year")):
    """A track as text: "title by artist from album (year), tag, tag". Unknown parts are left out.

    fields: which parts, of title, artist, album, year, tags, caption, lyrics.
    """
    head = [
        track["title"] if "title" in fields else None,
        f"by {track['artist']}" if "artist" in fields and track["artist"] else None,
        f"from {track['album']}" if "album" in fields and track["album"] else None,
        f"({track['release_date'][:4]})" if "year" in fields and track["release_date"] else None,
    ]
    text = " ".join(filter(None, head))
    for field in ("tags", "caption", "lyrics"):
        if field in fields and track[field]:
            text += ", " + (", ".join(track[field]) if field == "tags" else track[field])
    return text.removeprefix(", ")


# ---------------------------------------------------------------- playlists, codes, dialogues

def load_playlists(data_dir, row_of):
    """Playlists of playlists.jsonl: list of dicts.

    row_of: {track_id: row} of the catalogue.
    Raises SystemExit: missing file, unknown split, empty playlist, unknown or repeated id.
    """
    path = Path(data_dir) / "playlists.jsonl"
    made_by = f"python 00_prepare_data.py demo --data-dir {data_dir}"
    mend = f"Make the file again with: {made_by}"
    playlists = []
    line_of = {}
    for number, row in read_jsonl(path, made_by):
        where = f"{path}:{number}"
        playlist_id = row.get("playlist_id")
        track_ids = row.get("track_ids")
        if not isinstance(playlist_id, str) or not playlist_id.strip() \
                or row.get("split") not in SPLITS \
                or not isinstance(track_ids, list) or not track_ids:
            raise SystemExit(f"{where}: a playlist needs playlist_id (a string), split (one of "
                             f"{', '.join(SPLITS)}) and track_ids (a list, not empty). {mend}")
        if playlist_id in line_of:
            raise SystemExit(f"{where}: playlist_id {playlist_id} occurs twice (also line "
                             f"{line_of[playlist_id]}). {mend}")
        for track_id in track_ids:
            if not isinstance(track_id, str) or track_id not in row_of:
                raise SystemExit(f"{where}: track_id {track_id} is not in tracks.jsonl. Make both "
                                 f"again with: {made_by}")
        line_of[playlist_id] = number
        playlists.append(row)
    return playlists


def load_codes(data_dir, n_tracks):
    """codes.npy: (N, 5) int16, columns in token order, -1 where the modality is missing."""
    path = Path(data_dir) / "codes.npy"
    made_by = f"python 02_quantize.py --data-dir {data_dir}"
    codes = load_npy(path, made_by, n_rows=n_tracks, dtype=np.int16)
    if codes.shape[1] != len(MODALITIES) or codes.min(initial=0) < -1:
        raise SystemExit(f"{path}: shape {codes.shape}, smallest {codes.min(initial=0)}; expected "
                         f"{len(MODALITIES)} columns of codes >= 0, or -1 where missing. Make it "
                         f"again with: {made_by}")
    return np.asarray(codes)


def check_turn(turn, row_of, where, mend):
    """Give a turn its defaults. Raises SystemExit: see `load_dialogues`."""
    if not isinstance(turn, dict):
        raise SystemExit(f"{where} is no JSON object. {mend}")
    if not isinstance(turn.get("query"), str) or not turn["query"].strip():
        raise SystemExit(f"{where} has no query; each turn needs one. {mend}")
    turn.setdefault("music", None)
    turn.setdefault("response", None)
    turn.setdefault("rejected", False)
    turn.setdefault("kind", None)
    turn.setdefault("targets", [turn["music"]] if turn["music"] else [])
    for field, (type_, form) in TURN_FORMS.items():
        if not isinstance(turn[field], type_):
            raise SystemExit(f"{where}: {field} is {json.dumps(turn[field])[:60]}; {form} is "
                             f"expected. {mend}")
    played = [] if turn["music"] is None else [turn["music"]]
    for track_id in played + turn["targets"]:
        if not isinstance(track_id, str) or track_id not in row_of:
            raise SystemExit(f"{where} names track_id {track_id}, which is not in tracks.jsonl. "
                             f"{mend}")


def load_dialogues(path, row_of):
    """Dialogues of one split, checked: list of dicts.

    A dialogue is {dialogue_id, playlist_id, meta, turns}. A turn is the triple of the paper's
    section 3.2, {query, music, response}, and {targets, rejected, kind}. What may be absent gets
    its default here.

    Raises SystemExit: missing file, dialogue without turns, a turn without a query, a field of
    another type, a track that the catalogue does not have, a repeated dialogue_id.
    """
    path = Path(path)
    made_by = f"python 03_synthesize.py simulate --data-dir {path.parent}"
    mend = f"Mend the line, or make the file again with: {made_by}"
    dialogues = []
    line_of = {}
    for number, row in read_jsonl(path, made_by):
        where = f"{path}:{number}"
        dialogue_id = row.get("dialogue_id")
        turns = row.get("turns")
        row.setdefault("playlist_id", None)
        row.setdefault("meta", {})
        if not isinstance(dialogue_id, str) or not dialogue_id.strip() \
                or not isinstance(turns, list) or not turns:
            raise SystemExit(f"{where}: a dialogue needs a dialogue_id (a string) and at least one "
                             f"turn. {mend}")
        if not isinstance(row["playlist_id"], str | None) or not isinstance(row["meta"], dict):
            raise SystemExit(f"{where}: a dialogue's playlist_id must be a string or null, its "
                             f"meta a JSON object. {mend}")
        if dialogue_id in line_of:
            raise SystemExit(f"{where}: dialogue_id {dialogue_id} occurs twice (also line "
                             f"{line_of[dialogue_id]}). {mend}")
        line_of[dialogue_id] = number
        for t, turn in enumerate(turns, 1):
            check_turn(turn, row_of, f"{where}: turn {t}", mend)
        dialogues.append(row)
    if not dialogues:
        raise SystemExit(f"{path}: no dialogues in it. Make it again with: {made_by}")
    return dialogues
