"""The Million Playlist Dataset, for 00_prepare_data.py: slices, audio and annotations -> lines."""

import html
import json
import os
import re
import sys
from array import array
from collections import Counter
from pathlib import Path

import numpy as np
from tqdm import tqdm

from common import data
from steps.prepare_data.foreign import clean_text, note, print_problems, read_lines

AUDIO_SUFFIXES = (".mp3", ".flac", ".ogg", ".wav")
TRACK_URI = re.compile(r"spotify:track:([A-Za-z0-9]+)")
NO_DATE = -1
LAST_DAY = 2_932_896  # days from 1970-01-01 to 9999-12-31, the end of ISO dates


# ---------------------------------------------------------------- which files

def find_slices(mpd_dir):
    """The slice files by the number of their first playlist: mpd.slice.0-999.json, 1000-1999 ..."""
    slices = [path for path in mpd_dir.glob("mpd.slice.*.json") if path.is_file()]
    if not slices:
        raise SystemExit(f"{mpd_dir}: no mpd.slice.*.json in it; give the folder with MPD's slices")
    return sorted(slices, key=lambda p: ([int(n) for n in re.findall(r"\d+", p.name)], p.name))


def annotation_files(paths):
    """{file to write, relative to the data dir: file to read}."""
    files = {}
    for path in map(Path, paths):
        name = f"annotations/{path.stem}.jsonl"
        if not path.is_file():
            raise SystemExit(f"{path} is missing; --annotations takes JSONL files")
        if name in files:
            raise SystemExit(f"{path} and {files[name]} would both become {name}; rename one")
        files[name] = path
    return files


def find_audio(audio_dir, data_dir, problems):
    """{track_id: path relative to data_dir} of the audio files in audio_dir, nested or not."""
    # resolved: ".." of a linked folder leads elsewhere than its name says
    base = os.path.relpath(audio_dir.resolve(), data_dir.resolve())
    audio = {}
    for folder, folders, names in os.walk(audio_dir):
        folders.sort()  # fixes the order of the walk, and so which of two files is taken
        for path in (Path(folder, name) for name in sorted(names)):
            if path.suffix.lower() not in AUDIO_SUFFIXES:
                continue
            if path.stat().st_size == 0:
                note(problems, "empty audio files", str(path))
            elif path.stem in audio:
                note(problems, "audio files of a track that has one already", str(path))
            else:
                audio[path.stem] = Path(base, path.relative_to(audio_dir)).as_posix()
    if not audio:
        raise SystemExit(f"{audio_dir}: no audio in it; files named by track_id are expected, "
                         f"ending in {', '.join(AUDIO_SUFFIXES)}")
    return audio


# ---------------------------------------------------------------- reading

def read_slices(paths, problems):
    """Yield (where it is, playlist) of all slices, holding one slice in memory at a time."""
    for path in tqdm(paths, desc="slices", unit="slice"):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:  # from the decoder or from json
            note(problems, "slices that are not JSON in UTF-8", f"{path.name}: {error}")
            continue
        playlists = content.get("playlists") if isinstance(content, dict) else None
        if not isinstance(playlists, list):
            note(problems, "slices without a list of playlists", path.name)
            continue
        for position, playlist in enumerate(playlists, 1):
            yield f"{path.name}: playlist {position}", playlist
        content = playlists = playlist = None  # free it before the next slice is read


def number_tracks(tracks, where, row_of, details, problems):
    """Rows of a playlist's tracks, each once, in order. Adds new tracks to row_of and details."""
    rows = {}  # a dict keeps the order and holds each row once
    for position, track in enumerate(tracks, 1):
        uri = track.get("track_uri") if isinstance(track, dict) else None
        match = TRACK_URI.fullmatch(str(uri))
        if match is None:
            note(problems, "tracks without a spotify:track: uri", f"{where}, track {position}")
            continue
        row = row_of.setdefault(match[1], len(details))
        if row == len(details):
            duration = track.get("duration_ms")
            details.append((
                clean_text(track.get("track_name")),
                sys.intern(clean_text(track.get("artist_name")) or ""),  # tracks share the string
                sys.intern(clean_text(track.get("album_name")) or ""),
                duration if type(duration) is int and duration > 0 else None))
        elif row in rows:
            note(problems, "repeats of a track inside its playlist", f"{where}, track {position}")
        rows[row] = None
    return list(rows)


def playlist_day(playlist, where, problems):
    """Days since 1970-01-01 of modified_at (epoch seconds); NO_DATE where it is missing."""
    seconds = playlist.get("modified_at")
    if type(seconds) is int and 0 <= seconds // 86_400 <= LAST_DAY:
        return seconds // 86_400
    if seconds is not None:
        note(problems, "dates that are not epoch seconds", where)
    return NO_DATE


def read_playlists(paths, problems):
    """Every playlist, in a form so compact that a million fit in 3 GiB.

    Returns: {track_id: row}; (title, artist, album, duration in ms) per row; (playlist_id, title,
        description, day) per playlist; rows of the tracks, playlist after playlist, (sum of
        lengths,) int32; tracks per playlist, (P,) int32.
    """
    row_of, details, heads, seen = {}, [], [], set()
    items, lengths = array("i"), array("i")
    for where, playlist in read_slices(paths, problems):
        pid = playlist.get("pid") if isinstance(playlist, dict) else None
        if type(pid) not in (int, str) or pid == "":
            note(problems, "playlists without a pid", where)
            continue
        where = f"{where} (pid {pid})"
        if str(pid) in seen:
            note(problems, "playlists with the pid of an earlier one", where)
            continue
        seen.add(str(pid))
        tracks = playlist.get("tracks")
        rows = number_tracks(tracks if isinstance(tracks, list) else [], where, row_of, details,
                             problems)
        if not rows:
            note(problems, "playlists without tracks", where)
            continue
        description = playlist.get("description")
        if isinstance(description, str):
            description = html.unescape(description)  # MPD has &#x27; and &amp;
        heads.append((str(pid), clean_text(playlist.get("name")), clean_text(description),
                      playlist_day(playlist, where, problems)))
        items.extend(rows)
        lengths.append(len(rows))
    return row_of, details, heads, np.frombuffer(items, np.int32), np.frombuffer(lengths, np.int32)


# ---------------------------------------------------------------- filters

def filter_tracks(items, lengths, allowed, min_count, min_length):
    """Drop tracks that are not allowed or rare, then playlists that are short without them.

    Rare is counted once, over all playlists. Over the training playlists alone, no cold track
    would be left.

    items, lengths: from `read_playlists`. allowed: which tracks may stay, (N,) bool.
    Returns: items of the playlists that stay, by new rows; their lengths; the old row of each new
        one, (M,); which playlists stay, (P,) bool.
    """
    keep_item = (allowed & (np.bincount(items, minlength=len(allowed)) >= min_count))[items]
    owner = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)  # playlist of each item
    new_lengths = np.bincount(owner[keep_item], minlength=len(lengths)).astype(np.int32)
    stays = new_lengths >= min_length
    items = items[keep_item & stays[owner]]

    # the rows that are left close up, in their old order
    used = np.bincount(items, minlength=len(allowed)) > 0
    new_row = np.cumsum(used, dtype=np.int32) - 1
    return new_row[items], new_lengths[stays], np.flatnonzero(used), stays


def kept_playlists(slices, allowed, min_count, min_length, problems):
    """Read and filter. allowed: set of track_ids, or None for all.

    Returns: track_ids and details by row; heads, items and lengths as in `read_playlists`.
    """
    row_of, details, heads, items, lengths = read_playlists(slices, problems)
    print_problems(problems)
    track_ids = list(row_of)
    is_allowed = np.array([allowed is None or track_id in allowed for track_id in row_of], bool)
    items, lengths, rows, stays = filter_tracks(items, lengths, is_allowed, min_count, min_length)
    print(f"kept {stays.sum():,} of {len(heads):,} playlists (with {min_length} tracks or more) "
          f"and {len(rows):,} of {len(details):,} tracks (in {min_count} playlists or more"
          f"{'' if allowed is None else ', with audio'})")
    return ([track_ids[row] for row in rows], [details[row] for row in rows],
            [heads[i] for i in np.flatnonzero(stays)], items, lengths)


# ---------------------------------------------------------------- annotations

def map_annotation(row):
    """(fields of an annotation by the names of tracks.jsonl; names of those of a wrong form).

    `year` becomes release_date ("2002"). `decade` ("80s") becomes a tag where no year is known,
    since a date would claim more.
    """
    row = {field: value for field, value in row.items() if value is not None}
    known = [field for field in row if field in data.TRACK_FIELDS[1:]]
    bad = [field for field in known if data.expected_form(field, row[field])]
    good = {field: row[field] for field in data.TRACK_FIELDS if field in known and field not in bad}
    if "year" in row and "release_date" not in good:
        if re.fullmatch(r"\d{4}", str(row["year"])):
            good["release_date"] = str(row["year"])
        else:
            bad.append("year")
    if isinstance(row.get("decade"), str) and "release_date" not in good:
        good["tags"] = [*good.get("tags", []), row["decade"]]
    return good, bad


def read_annotations(path, track_ids, problems):
    """Yield {track_id and fields of tracks.jsonl} for the lines about tracks of the catalogue."""
    seen = set()
    for where, row in read_lines(path):
        track_id = row.get("track_id")
        if not isinstance(track_id, str):
            note(problems, "annotation lines that are not a JSON object with a track_id", where)
        elif track_id in seen:
            note(problems, "annotation lines with the track_id of an earlier one", where)
        elif track_id in track_ids:
            seen.add(track_id)
            good, bad = map_annotation(row)
            for field in bad:
                note(problems, f"annotated values of {field} that are of the wrong type", where)
            if good:
                yield {"track_id": track_id, **good}


def check_annotations(files, track_ids):
    """Read each file once before anything is written. Returns: the problems.

    Raises SystemExit: no line of a file has a field for a track of the catalogue.
    """
    problems = {}
    for path in files.values():
        counts = Counter(field for row in read_annotations(path, track_ids, problems)
                         for field in row)
        if not counts:
            raise SystemExit(f"{path}: no line has a field for a track of this catalogue; a line "
                             f"needs track_id (the id in Spotify's uri) and fields of tracks.jsonl")
        n_tracks = counts.pop("track_id")
        fields = ", ".join(f"{field} {n:,}" for field, n in counts.items())
        print(f"{path}: {n_tracks:,} of {len(track_ids):,} tracks ({fields})")
    print_problems(problems)
    return problems


# ---------------------------------------------------------------- the lines to write

def track_rows(track_ids, details, audio):
    """Lines of tracks.jsonl. Popularity is null: who needs it counts it in training playlists."""
    for track_id, (title, artist, album, duration_ms) in zip(track_ids, details, strict=True):
        yield dict.fromkeys(data.TRACK_FIELDS) | {
            "track_id": track_id, "title": title, "artist": artist or None, "album": album or None,
            "duration_ms": duration_ms, "tags": [], "audio_path": audio.get(track_id)}


def playlist_rows(heads, items, lengths, split, track_ids):
    """Lines of playlists.jsonl. split: positions in data.SPLITS, (P,) int."""
    ends = np.cumsum(lengths, dtype=np.int64)
    for (playlist_id, title, description, day), length, end, s in zip(heads, lengths, ends, split,
                                                                      strict=True):
        yield {"playlist_id": playlist_id, "title": title, "description": description,
               "modified_at": None if day == NO_DATE else str(np.datetime64(day, "D")),
               "split": data.SPLITS[s],
               "track_ids": [track_ids[row] for row in items[end - length:end]]}
