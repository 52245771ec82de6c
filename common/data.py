"""Read, write and check the files that the numbered scripts pass to each other.

data/README.md lists every file.  Row i of every array is line i of tracks.jsonl.
Writers write a temporary name and rename it, so a file that exists is whole; readers
check what they read and end with one clear line (SystemExit) when it is not as it
should be.
"""

import csv
import io
import json
import os
import re
from pathlib import Path

import numpy as np

TRACK_FIELDS = ("track_id", "title", "artist", "album", "release_date", "duration_ms", "popularity",
                "tags", "lyrics", "caption", "tempo", "key", "audio_path")
SPLITS = ("train", "valid", "test")
# what a field of a track is, where it is not null: (in words, the test)
TEXT = "a string", lambda value: isinstance(value, str)
NUMBER = "a number, 0 or more", lambda value: isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < float("inf")
FORMS = dict.fromkeys(("title", "artist", "album", "lyrics", "caption", "audio_path"), TEXT) | dict.fromkeys(
    ("duration_ms", "popularity", "tempo"), NUMBER) | {
    "tags": ("a list of strings", lambda value: isinstance(value, list) and all(isinstance(tag, str) for tag in value)),
    "release_date": ("a string YYYY-MM-DD or YYYY", lambda value: isinstance(value, str) and re.match(r"\d{4}(?!\d)", value)),
    "key": ("tonic and mode, as in G# minor", lambda value: isinstance(value, str) and re.fullmatch(r"[A-G][#b]? (major|minor)", value))}


# ---------------------------------------------------------------- files

def write_jsonl(path, rows):
    """Write an iterable of dicts to `path`, one JSON object a line, atomically. Half a surrogate pair becomes "?"."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "w", encoding="utf-8", errors="replace") as f:
        for row in rows:
            f.write(json.dumps(row, ensure_ascii=False) + "\n")
    os.replace(temporary, path)


def write_text(path, text):
    """Write a string to `path`, atomically. Half a surrogate pair becomes "?"."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8", errors="replace")
    os.replace(temporary, path)


def write_csv(path, header, rows):
    """Write a table to `path`, atomically; floats with six digits after the point."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([f"{cell:.6f}" if isinstance(cell, float) else cell for cell in row] for row in rows)
    write_text(path, text.getvalue())


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
                raise SystemExit(f"{path}:{number}: not JSON ({error.msg}); the file may be cut off or foreign. "
                                 f"Make it again with: {made_by}")
            if not isinstance(row, dict):
                raise SystemExit(f"{path}:{number}: a JSON object is expected, not {type(row).__name__}. "
                                 f"Make the file again with: {made_by}")
            yield number, row


def keep_whole_lines(part):
    """Cut a half-written last line off an append-only file; returns the number of lines left (0: no file)."""
    if not part.is_file():
        return 0
    text = part.read_bytes()
    whole = text[:text.rfind(b"\n") + 1]
    if len(whole) < len(text):
        with open(part, "r+b") as f:
            f.truncate(len(whole))
    return whole.count(b"\n")


def save_npy(path, array):
    """Write an array to `path` atomically."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as f:
        np.save(f, array)
    os.replace(temporary, path)


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
        raise SystemExit(f"{path}: not a whole .npy file ({error}). Make it again with: {made_by}")
    if array.ndim != ndim or (dtype is not None and array.dtype != dtype):
        raise SystemExit(f"{path}: {array.dtype} of shape {array.shape}; expected {np.dtype(dtype or array.dtype)} "
                         f"with {ndim} dimensions. Make it again with: {made_by}")
    if n_rows is not None and array.shape[0] != n_rows:
        raise SystemExit(f"{path}: {array.shape[0]} rows, but tracks.jsonl has {n_rows}; the file belongs to another "
                         f"catalogue. Make it again with: {made_by}")
    return array


def check_track(row, where):
    """Raises SystemExit: a field of a track (dict) is not of its form. where: the file and line, for the message."""
    for field, (form, good) in FORMS.items():
        if row.get(field) is not None and not good(row[field]):
            raise SystemExit(f"{where}: {field} is {json.dumps(row[field])[:60]}; {form} is expected, or null")


def catalogue_files(data_dir, leave_out=None):
    """The files that `load_tracks` reads, relative to data_dir: tracks.jsonl and its annotations.

    leave_out: annotation files whose names begin so are left out.
    """
    annotations = sorted((Path(data_dir) / "annotations").glob("*.jsonl"))
    return ["tracks.jsonl", *(f"annotations/{path.name}" for path in annotations
                              if not (leave_out and path.name.startswith(leave_out)))]


def load_tracks(data_dir, leave_out=None):
    """Tracks in row order, with every annotations/*.jsonl laid over them.

    An annotation file holds `track_id` and the fields that it fills (not null); lines of unknown
    tracks are ignored, since an annotation file may cover more than the catalogue. The row order
    is that of tracks.jsonl, always. leave_out: annotation files whose names begin so are not laid over.

    Returns: list of dicts with all TRACK_FIELDS.
    Raises SystemExit: missing file, a line without track_id, a duplicate track_id, a field of another form (check_track).
    """
    path = Path(data_dir) / "tracks.jsonl"
    made_by = f"python 00_prepare_data.py demo --data-dir {data_dir} (or mpd, for real playlists)"
    if not Path(data_dir).is_dir():
        raise SystemExit(f"{data_dir} is no folder; is --data-dir right? A catalogue is made there with: {made_by}")
    tracks, row_of = [], {}
    for number, row in read_jsonl(path, made_by):
        track_id = row.get("track_id")
        if not isinstance(track_id, str) or not track_id:
            raise SystemExit(f"{path}:{number}: no track_id; each line needs one. Make the file again with: {made_by}")
        if track_id in row_of:
            raise SystemExit(f"{path}:{number}: track_id {track_id} stands twice (also line {row_of[track_id] + 1}); "
                             f"each track may stand once. Make the file again with: {made_by}")
        check_track(row, f"{path}:{number}")
        row_of[track_id] = len(tracks)
        tracks.append({field: row.get(field) for field in TRACK_FIELDS} | {"tags": row.get("tags") or []})
    if not tracks:
        raise SystemExit(f"{path}: no tracks in it. Make it again with: {made_by}")
    for annotation in (Path(data_dir) / name for name in catalogue_files(data_dir, leave_out)[1:]):
        for number, row in read_jsonl(annotation, "the script that wrote it, or remove the file"):
            if "track_id" not in row:
                raise SystemExit(f"{annotation}:{number}: no track_id; an annotation line needs one")
            if row["track_id"] in row_of:
                check_track(row, f"{annotation}:{number}")
                tracks[row_of[row["track_id"]]].update(
                    {k: v for k, v in row.items() if k in TRACK_FIELDS and v is not None})
    return tracks


def load_playlists(data_dir, row_of):
    """Playlists of playlists.jsonl.

    row_of: {track_id: row} of the catalogue.
    Raises SystemExit: missing file, unknown split, empty playlist, unknown or repeated id.
    """
    path = Path(data_dir) / "playlists.jsonl"
    made_by = f"python 00_prepare_data.py demo --data-dir {data_dir}"
    playlists, seen = [], {}
    for number, row in read_jsonl(path, made_by):
        playlist_id, track_ids = row.get("playlist_id"), row.get("track_ids")
        if not playlist_id or row.get("split") not in SPLITS or not track_ids:
            raise SystemExit(f"{path}:{number}: a playlist needs playlist_id, split (one of {', '.join(SPLITS)}) and "
                             f"track_ids (not empty). Make the file again with: {made_by}")
        if playlist_id in seen:
            raise SystemExit(f"{path}:{number}: playlist_id {playlist_id} stands twice (also line {seen[playlist_id]}). "
                             f"Make the file again with: {made_by}")
        unknown = [t for t in track_ids if t not in row_of]
        if unknown:
            raise SystemExit(f"{path}:{number}: track_id {unknown[0]} is not in tracks.jsonl. Make both again with: {made_by}")
        seen[playlist_id] = number
        playlists.append(row)
    return playlists


def load_codes(data_dir, n_tracks):
    """codes.npy: (N, 5) int16, columns in token order, -1 where the modality is missing."""
    path = Path(data_dir) / "codes.npy"
    made_by = f"python 02_quantize.py --data-dir {data_dir}"
    codes = load_npy(path, made_by, n_rows=n_tracks, dtype=np.int16)
    if codes.shape[1] != 5 or codes.min(initial=0) < -1:
        raise SystemExit(f"{path}: shape {codes.shape}, smallest {codes.min(initial=0)}; expected five columns of codes "
                         f">= 0, or -1 where missing. Make it again with: {made_by}")
    return np.asarray(codes)


def load_dialogues(path, row_of):
    """Dialogues of one split, checked.

    A dialogue is {dialogue_id, playlist_id, meta, turns}; a turn is the triple of the paper's
    section 2.3, {query, music, response}, and {targets, rejected, kind}.

    Raises SystemExit: missing file, dialogue without turns, a turn without a query, a track that
    the catalogue does not have, a repeated dialogue_id.
    """
    path = Path(path)
    made_by = f"python 03_synthesize.py --data-dir {path.parent}"
    dialogues, seen = [], {}
    for number, row in read_jsonl(path, made_by):
        where, mend = f"{path}:{number}", f"Mend the line, or make the file again with: {made_by}"
        dialogue_id, turns = row.get("dialogue_id"), row.get("turns")
        if not dialogue_id or not isinstance(turns, list) or not turns:
            raise SystemExit(f"{where}: a dialogue needs a dialogue_id and at least one turn. {mend}")
        if dialogue_id in seen:
            raise SystemExit(f"{where}: dialogue_id {dialogue_id} stands twice (also line {seen[dialogue_id]}). {mend}")
        seen[dialogue_id] = number
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
                    raise SystemExit(f"{where}: turn {t} names track_id {track_id}, which is not in tracks.jsonl. {mend}")
        row.setdefault("playlist_id", None)
        row.setdefault("meta", {})
        dialogues.append(row)
    if not dialogues:
        raise SystemExit(f"{path}: no dialogues in it. Make it again with: {made_by}")
    return dialogues


def item_text(track, fields=("title", "artist", "album", "tags", "year")):
    """A track as text: "title by artist from album (year), tag, tag". Unknown parts are left out.

    fields: which parts, of title, artist, album, year, tags, caption, lyrics.
    """
    parts = []
    if "title" in fields and track["title"]:
        parts.append(track["title"])
    if "artist" in fields and track["artist"]:
        parts.append(f"by {track['artist']}")
    if "album" in fields and track["album"]:
        parts.append(f"from {track['album']}")
    if "year" in fields and track["release_date"]:
        parts.append(f"({str(track['release_date'])[:4]})")
    text = " ".join(parts)
    for field in ("tags", "caption", "lyrics"):
        if field in fields and track[field]:
            text += ", " + (", ".join(track[field]) if field == "tags" else track[field])
    return text.removeprefix(", ")
