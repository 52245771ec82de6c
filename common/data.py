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
from pathlib import Path

import numpy as np

from common.tokens import MODALITIES

TRACK_FIELDS = ("track_id", "title", "artist", "album", "release_date", "duration_ms", "popularity",
                "tags", "lyrics", "caption", "tempo", "key", "audio_path")
TEXT_FIELDS = ("title", "artist", "album", "lyrics", "caption", "audio_path")
NUMBER_FIELDS = ("duration_ms", "popularity", "tempo")
SPLITS = ("train", "valid", "test")


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
    """Yield (line_number, dict) of a JSONL file.

    made_by: the command that makes the file, named when it is missing.
    Raises SystemExit: missing file, or a line that is not a JSON object.
    """
    path = Path(path)
    if not path.is_file():
        raise SystemExit(f"{path} is missing; make it with: {made_by}")
    with open(path, encoding="utf-8", errors="replace") as f:
        for number, line in enumerate(f, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise SystemExit(f"{path}:{number}: not JSON ({error.msg}); the file may be cut "
                                 f"off or foreign. Make it again with: {made_by}") from None
            if not isinstance(row, dict):
                raise SystemExit(f"{path}:{number}: a JSON object is expected, not "
                                 f"{type(row).__name__}. Make the file again with: {made_by}")
            yield number, row


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


def check_track(row, where):
    """Raises SystemExit: a field of a track has another form. where: file and line."""
    for field, value in row.items():
        form = expected_form(field, value)
        if form:
            raise SystemExit(f"{where}: {field} is {json.dumps(value)[:60]}; {form} is expected, "
                             f"or null")


def load_tracks(data_dir, leave_out=None):
    """Tracks in row order, with every annotations/*.jsonl laid over them.

    The row order is always that of tracks.jsonl. An annotation file holds `track_id` and the fields
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
    for number, row in read_jsonl(catalogue, made_by):
        where = f"{catalogue}:{number}"
        track_id = row.get("track_id")
        if not isinstance(track_id, str) or not track_id:
            raise SystemExit(f"{where}: no track_id; each line needs one. Make the file again "
                             f"with: {made_by}")
        if track_id in row_of:
            raise SystemExit(f"{where}: track_id {track_id} occurs twice (also line "
                             f"{row_of[track_id] + 1}); each track may occur once. Make the file "
                             f"again with: {made_by}")
        check_track(row, where)
        row_of[track_id] = len(tracks)
        tracks.append({field: row.get(field) for field in TRACK_FIELDS}
                      | {"tags": row.get("tags") or []})
    if not tracks:
        raise SystemExit(f"{catalogue}: no tracks in it. Make it again with: {made_by}")
    for path in annotations:
        for number, row in read_jsonl(path, "the script that wrote it, or remove the file"):
            if "track_id" not in row:
                raise SystemExit(f"{path}:{number}: no track_id; an annotation line needs one")
            if row["track_id"] in row_of:
                check_track(row, f"{path}:{number}")
                tracks[row_of[row["track_id"]]].update(
                    {k: v for k, v in row.items() if k in TRACK_FIELDS and v is not None})
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
        if not playlist_id or row.get("split") not in SPLITS or not track_ids:
            raise SystemExit(f"{where}: a playlist needs playlist_id, split (one of "
                             f"{', '.join(SPLITS)}) and track_ids (not empty). {mend}")
        if playlist_id in line_of:
            raise SystemExit(f"{where}: playlist_id {playlist_id} occurs twice (also line "
                             f"{line_of[playlist_id]}). {mend}")
        for track_id in track_ids:
            if track_id not in row_of:
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


def load_dialogues(path, row_of):
    """Dialogues of one split, checked: list of dicts.

    A dialogue is {dialogue_id, playlist_id, meta, turns}. A turn is the triple of the paper's
    section 3.2, {query, music, response}, and {targets, rejected, kind}. What may be absent gets
    its default here.

    Raises SystemExit: missing file, dialogue without turns, a turn without a query, a track that
    the catalogue does not have, a repeated dialogue_id.
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
        if not dialogue_id or not isinstance(turns, list) or not turns:
            raise SystemExit(f"{where}: a dialogue needs a dialogue_id and at least one turn. "
                             f"{mend}")
        if dialogue_id in line_of:
            raise SystemExit(f"{where}: dialogue_id {dialogue_id} occurs twice (also line "
                             f"{line_of[dialogue_id]}). {mend}")
        line_of[dialogue_id] = number
        for t, turn in enumerate(turns, 1):
            if not isinstance(turn.get("query"), str) or not turn["query"].strip():
                raise SystemExit(f"{where}: turn {t} has no query; each turn needs one. {mend}")
            turn.setdefault("music", None)
            turn.setdefault("response", None)
            turn.setdefault("rejected", False)
            turn.setdefault("kind", None)
            turn.setdefault("targets", [turn["music"]] if turn["music"] else [])
            for track_id in [turn["music"], *turn["targets"]]:
                if track_id is not None and track_id not in row_of:
                    raise SystemExit(f"{where}: turn {t} names track_id {track_id}, which is not "
                                     f"in tracks.jsonl. {mend}")
        row.setdefault("playlist_id", None)
        row.setdefault("meta", {})
        dialogues.append(row)
    if not dialogues:
        raise SystemExit(f"{path}: no dialogues in it. Make it again with: {made_by}")
    return dialogues
