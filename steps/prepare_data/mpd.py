"""The Million Playlist Dataset, for 00_prepare_data.py: slices, audio and annotations -> lines."""

import html
import json
import os
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from tqdm import tqdm

from common import data
from steps.prepare_data.foreign import clean_text, note, print_problems, read_lines

AUDIO_SUFFIXES = (".mp3", ".flac", ".ogg", ".wav")
TRACK_URI = re.compile(r"spotify:track:([A-Za-z0-9]+)")
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
            if not path.is_file():
                note(problems, "audio files that are not there: links to nothing", str(path))
            elif path.stat().st_size == 0:
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
        except (ValueError, RecursionError) as error:  # from the decoder or from json
            note(problems, "slices that are not JSON in UTF-8", f"{path.name}: {error}")
            continue
        playlists = content.get("playlists") if isinstance(content, dict) else None
        if not isinstance(playlists, list):
            note(problems, "slices without a list of playlists", path.name)
            continue
        for position, playlist in enumerate(playlists, 1):
            yield f"{path.name}: playlist {position}", playlist
        content = playlists = playlist = None  # free it before the next slice is read


def read_tracks(given, where, details, problems):
    """The track_ids of a playlist, each once, in order. Adds new tracks to `details`."""
    track_ids = {}  # a dict keeps the order and holds each once
    for position, track in enumerate(given if isinstance(given, list) else (), 1):
        uri = track.get("track_uri") if isinstance(track, dict) else None
        match = TRACK_URI.fullmatch(str(uri))
        if match is None:
            note(problems, "tracks without a spotify:track: uri", f"{where}, track {position}")
            continue
        track_id = sys.intern(match[1])  # playlists share the string
        if track_id not in details:
            duration = track.get("duration_ms")
            details[track_id] = (
                clean_text(track.get("track_name")),
                sys.intern(clean_text(track.get("artist_name")) or "") or None,
                sys.intern(clean_text(track.get("album_name")) or "") or None,
                duration if type(duration) is int and duration > 0 else None)
        elif track_id in track_ids:
            note(problems, "repeats of a track inside its playlist", f"{where}, track {position}")
        track_ids[track_id] = None
    return list(track_ids)


def iso_date(seconds, where, problems):
    """The date of modified_at (epoch seconds); None where it is missing."""
    if type(seconds) is int and 0 <= seconds // 86_400 <= LAST_DAY:
        return sys.intern(str(np.datetime64(seconds // 86_400, "D")))
    if seconds is not None:
        note(problems, "dates that are not epoch seconds", where)
    return None


def read_playlists(paths, problems):
    """Every playlist and track.

    Returns: lines of playlists.jsonl, but for the split; {track_id: (title, artist, album, duration
        in ms)}, by first appearance.
    """
    playlists, details = {}, {}
    for where, row in read_slices(paths, problems):
        pid = row.get("pid") if isinstance(row, dict) else None
        if type(pid) not in (int, str) or pid == "":
            note(problems, "playlists without a pid", where)
            continue
        where = f"{where} (pid {pid})"
        if str(pid) in playlists:
            note(problems, "playlists with the pid of an earlier one", where)
            continue
        playlists[str(pid)] = None  # the pid is taken, even if the playlist has no tracks
        track_ids = read_tracks(row.get("tracks"), where, details, problems)
        if not track_ids:
            note(problems, "playlists without tracks", where)
            continue
        description = row.get("description")
        if isinstance(description, str):
            description = html.unescape(description)  # MPD has &#x27; and &amp;
        playlists[str(pid)] = {
            "playlist_id": str(pid), "title": clean_text(row.get("name")),
            "description": clean_text(description),
            "modified_at": iso_date(row.get("modified_at"), where, problems),
            "split": None, "track_ids": track_ids}
    return list(filter(None, playlists.values())), details


# ---------------------------------------------------------------- filters

def filter_tracks(playlists, allowed, min_count, min_length):
    """The playlists without tracks that are not allowed or rare, if they are long enough then.

    Rare is counted once, over all playlists. Over the training playlists alone, no cold track
    would be left.

    playlists: lines of playlists.jsonl. allowed: set of track_ids, or None for all.
    """
    counts = Counter(track_id for playlist in playlists for track_id in playlist["track_ids"])
    stay = {track_id for track_id, n in counts.items()
            if n >= min_count and (allowed is None or track_id in allowed)}
    left = (playlist | {"track_ids": [t for t in playlist["track_ids"] if t in stay]}
            for playlist in playlists)
    return [playlist for playlist in left if len(playlist["track_ids"]) >= min_length]


def read(slices, audio, require_audio, min_count, min_length, problems):
    """The lines of tracks.jsonl and of playlists.jsonl that the filters leave: two lists.

    audio: {track_id: path}. Popularity is null: who needs it counts it in training playlists.
    """
    given, details = read_playlists(slices, problems)
    print_problems(problems)
    playlists = filter_tracks(given, set(audio) if require_audio else None, min_count, min_length)
    used = {track_id for playlist in playlists for track_id in playlist["track_ids"]}
    print(f"kept {len(playlists):,} of {len(given):,} playlists (with {min_length} tracks or more) "
          f"and {len(used):,} of {len(details):,} tracks (in {min_count} playlists or more"
          f"{', with audio' if require_audio else ''})")
    tracks = [dict.fromkeys(data.TRACK_FIELDS) | {
        "track_id": track_id, "title": title, "artist": artist, "album": album,
        "duration_ms": duration_ms, "tags": [], "audio_path": audio.get(track_id)}
        for track_id, (title, artist, album, duration_ms) in details.items() if track_id in used]
    return tracks, playlists


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
    """[{track_id and fields of tracks.jsonl}] of the lines about tracks of the catalogue.

    Raises SystemExit: there is none.
    """
    seen, rows = set(), []
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
                rows.append({"track_id": track_id, **good})
    if not rows:
        raise SystemExit(f"{path}: no line has a field for a track of this catalogue; a line needs "
                         f"track_id (the id in Spotify's uri) and fields of tracks.jsonl")
    counts = Counter(field for row in rows for field in row if field != "track_id")
    fields = ", ".join(f"{field} {n:,}" for field, n in counts.items())
    print(f"{path}: {len(rows):,} of {len(track_ids):,} tracks ({fields})")
    return rows
