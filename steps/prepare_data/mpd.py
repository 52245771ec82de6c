"""The Million Playlist Dataset, for 00_prepare_data.py: slices, audio files and annotations -> tracks and playlists.

It stands here in the order in which prepare_mpd calls it: which files there are, reading the slices, filters
and the split by date, annotations, and the lines of tracks.jsonl and playlists.jsonl. What cannot be read
is counted in `problems` and left out.
"""

import html
import json
import os
import re
import sys
from array import array
from datetime import date, timedelta
from pathlib import Path

import numpy as np
from tqdm import tqdm

from common import data

TRAIN, VALID, TEST = range(3)  # positions in data.SPLITS
AUDIO_SUFFIXES = (".mp3", ".flac", ".ogg", ".wav")
TRACK_URI = re.compile(r"spotify:track:([A-Za-z0-9]+)")
NO_DATE, LAST_DAY = -1, 2_932_896  # in days since 1970-01-01; the last is 9999-12-31, the end of ISO dates


# ---------------------------------------------------------------- what is left out

def note(problems, kind, where):
    """Count a problem and remember where the first ones stand. problems: {kind: {count, first}}."""
    entry = problems.setdefault(kind, {"count": 0, "first": []})
    entry["count"] += 1
    if len(entry["first"]) < 3:
        entry["first"].append(where)


def print_problems(problems):
    for kind, entry in problems.items():
        more = "; ..." if entry["count"] > len(entry["first"]) else ""
        print(f"left out: {entry['count']:,} {kind} ({'; '.join(entry['first'])}{more})")


# ---------------------------------------------------------------- which files

def find_slices(mpd_dir):
    """The slice files by the number of their first playlist: mpd.slice.0-999.json, 1000-1999, ..."""
    slices = [p for p in Path(mpd_dir).glob("mpd.slice.*.json") if p.is_file()]
    if not slices:
        raise SystemExit(f"{mpd_dir}: no mpd.slice.*.json in it. Give the folder of the Million Playlist Dataset that "
                         f"holds the slices: --mpd-dir DIR")
    return sorted(slices, key=lambda p: ([int(n) for n in re.findall(r"\d+", p.name)], p.name))


def annotation_files(paths):
    """{file to write, relative to the data dir: file to read}."""
    files = {}
    for path in paths:
        name = f"annotations/{Path(path).stem}.jsonl"
        if not Path(path).is_file():
            raise SystemExit(f"{path} is missing; --annotations takes JSONL files with a track_id in each line")
        if name in files:
            raise SystemExit(f"{path} and {files[name]} would both become {name}; rename one of them")
        files[name] = path
    return files


def find_audio(audio_dir, data_dir, problems):
    """{track_id: path relative to data_dir} of the audio files in audio_dir, however nested."""
    # resolved, since ".." of a linked folder leads elsewhere than its name says
    base = os.path.relpath(Path(audio_dir).resolve(), data_dir.resolve())
    found = {}
    for folder, folders, files in os.walk(audio_dir):
        folders.sort()  # the walk's order, and with it which of two files is taken, is then fixed
        for name in sorted(files):
            path, (track_id, suffix) = os.path.join(folder, name), os.path.splitext(name)
            if suffix.lower() not in AUDIO_SUFFIXES:
                continue
            if os.path.getsize(path) == 0:
                note(problems, "empty audio files", path)
            elif track_id in found:
                note(problems, "audio files of a track that has one already", path)
            else:
                found[track_id] = Path(base, os.path.relpath(path, audio_dir)).as_posix()
    if not found:
        raise SystemExit(f"{audio_dir}: no audio in it. Files named by track_id are expected, in any folder below it, "
                         f"ending in {', '.join(AUDIO_SUFFIXES)}")
    return found


# ---------------------------------------------------------------- reading

def clean_text(value):
    """A string with single spaces, or None where there is nothing to read."""
    if not isinstance(value, str):
        return None
    value = value.encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair could not be written
    return " ".join(value.split()) or None


def read_slices(paths, problems):
    """Yield (where it stands, playlist) of all slices, holding one slice at a time."""
    for path in tqdm(paths, desc="slices", unit="slice"):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            note(problems, "slices that are not JSON", f"{path.name}:{error.lineno}")
            continue
        except UnicodeDecodeError as error:
            note(problems, "slices that are not UTF-8", f"{path.name}: byte {error.start}")
            continue
        playlists = content.get("playlists") if isinstance(content, dict) else None
        if not isinstance(playlists, list):
            note(problems, "slices without a list of playlists", path.name)
            continue
        for position, playlist in enumerate(playlists, 1):
            yield f"{path.name}: playlist {position}", playlist
        content = playlists = playlist = None  # free it before the next slice is read


def number_tracks(tracks, where, row_of, known, problems):
    """Rows of a playlist's tracks, each once, in order. New tracks are added to row_of and known."""
    rows = {}  # a dict keeps the order and holds each row once
    for position, track in enumerate(tracks, 1):
        uri = track.get("track_uri") if isinstance(track, dict) else None
        match = TRACK_URI.fullmatch(uri) if isinstance(uri, str) else None
        if match is None:
            note(problems, "tracks without a spotify:track: uri", f"{where}, track {position}")
            continue
        row = row_of.get(match[1])
        if row is None:
            row = row_of[match[1]] = len(known)
            duration = track.get("duration_ms")
            known.append((clean_text(track.get("track_name")),
                          sys.intern(clean_text(track.get("artist_name")) or ""),  # many tracks share one string
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

    Returns: row_of, {track_id: row}; known, (title, artist, album, duration in ms) by row; heads,
    (playlist_id, title, description, day) by playlist; items, (sum of lengths,) int32, rows of the
    tracks, playlist after playlist; lengths, (P,) int32.
    """
    row_of, known, heads, seen = {}, [], [], set()
    items, lengths = array("i"), array("i")
    for where, playlist in read_slices(paths, problems):
        pid = playlist.get("pid") if isinstance(playlist, dict) else None
        if type(pid) not in (int, str) or pid == "":
            note(problems, "playlists without a pid", where)
            continue
        where, tracks = f"{where} (pid {pid})", playlist.get("tracks")
        if str(pid) in seen:
            note(problems, "playlists with the pid of an earlier one", where)
            continue
        seen.add(str(pid))
        rows = number_tracks(tracks, where, row_of, known, problems) if isinstance(tracks, list) else []
        if not rows:
            note(problems, "playlists without tracks", where)
            continue
        description = playlist.get("description")
        description = html.unescape(description) if isinstance(description, str) else None  # MPD: &#x27;, &amp;
        heads.append((str(pid), clean_text(playlist.get("name")), clean_text(description),
                      playlist_day(playlist, where, problems)))
        items.extend(rows)
        lengths.append(len(rows))
    return row_of, known, heads, np.frombuffer(items, np.int32), np.frombuffer(lengths, np.int32)


# ---------------------------------------------------------------- filters and split

def filter_tracks(items, lengths, allowed, min_count, min_length):
    """Drop tracks that are not allowed or rare, then playlists that are short without them.

    Rare is counted once, over all playlists: over the training ones alone no cold track would be
    left. items, lengths: as of read_playlists. allowed: (N,) bool.

    Returns: items of the playlists that stay, by new rows; their lengths; old_rows, (M,) the old
    row of each new one; stays, (P,) bool.
    """
    keep_track = allowed & (np.bincount(items, minlength=len(allowed)) >= min_count)
    keep_item = keep_track[items]
    owner = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    new_lengths = np.bincount(owner[keep_item], minlength=len(lengths)).astype(np.int32)
    stays = new_lengths >= min_length
    items = items[keep_item & stays[owner]]
    used = np.zeros(len(allowed), bool)
    used[items] = True
    new_row = np.cumsum(used, dtype=np.int32) - 1
    return new_row[items], new_lengths[stays], np.flatnonzero(used), stays


def kept_playlists(slices, allowed, min_count, min_length, problems):
    """Read and filter. allowed: set of track_ids, or None for all.

    Returns: track_ids and known by row; heads, items and lengths as read_playlists has them.
    """
    row_of, known, heads, items, lengths = read_playlists(slices, problems)
    print_problems(problems)
    n_playlists, n_tracks = len(heads), len(known)
    is_allowed = np.array([allowed is None or track_id in allowed for track_id in row_of], bool)
    items, lengths, old_rows, stays = filter_tracks(items, lengths, is_allowed, min_count, min_length)
    print(f"kept {stays.sum():,} of {n_playlists:,} playlists (with {min_length} tracks or more) and {len(old_rows):,} of "
          f"{n_tracks:,} tracks (in {min_count} playlists or more{'' if allowed is None else ', with audio'})")
    track_ids = list(row_of)
    return ([track_ids[i] for i in old_rows], [known[i] for i in old_rows], [heads[i] for i in np.flatnonzero(stays)],
            items, lengths)


def sample(groups, n, rng):
    """n members of the groups in their order, at random from the last group that is needed."""
    picked = []
    for group in groups:
        if len(picked) == n:
            break
        picked.extend(rng.permutation(group)[:n - len(picked)])
    return np.array(picked, int)


def split_by_date(days, n_test, n_valid, seed):
    """Test playlists from the last date, validation from the date before, as in the paper.

    Where a date has too few, the date before it gives the rest; validation first takes what test
    left of its own. Playlists without a date come last: where all lack it, this is a seeded sample.

    days: (P,) int, days since 1970-01-01 or NO_DATE. Returns: (P,) int8, positions in data.SPLITS.
    """
    rng = np.random.default_rng(seed)
    split = np.full(len(days), TRAIN, np.int8)
    dates = np.unique(days[days != NO_DATE])[::-1]
    split[sample((np.flatnonzero(days == d) for d in [*dates, NO_DATE]), n_test, rng)] = TEST
    earlier = dates[dates < days[split == TEST].min(initial=LAST_DAY)]
    order = [*earlier[:1], *dates[:len(dates) - len(earlier)], *earlier[1:], NO_DATE]
    split[sample((np.flatnonzero((days == d) & (split == TRAIN)) for d in order), n_valid, rng)] = VALID
    return split


def at_most_a_tenth(flag, n, n_playlists):
    if n > n_playlists // 10:
        print(f"{flag} {n:,} is more than a tenth of the {n_playlists:,} playlists: cut to {n_playlists // 10:,}")
    return min(n, n_playlists // 10)


# ---------------------------------------------------------------- annotations

def map_annotation(row):
    """The fields of an annotation by the names of tracks.jsonl.

    `year` becomes release_date ("2002"). `decade` ("80s") becomes a tag where no year is known, since
    a date would claim more than that.

    Returns: the fields; names of the fields whose value is not of the form that data.FORMS says.
    """
    row = {k: v for k, v in row.items() if v is not None}
    good = {field: row[field] for field, (_, is_good) in data.FORMS.items() if field in row and is_good(row[field])}
    bad = [field for field in row if field in data.FORMS and field not in good]
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
    with open(path, encoding="utf-8", errors="replace") as f:
        for number, line in enumerate(f, 1):
            if not line.strip():
                continue
            where = f"{Path(path).name}:{number}"
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                row = None
            track_id = row.get("track_id") if isinstance(row, dict) else None
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


def check_annotations(files, track_ids, problems):
    """Read each file once before anything is written: count, and refuse a file that is of no use."""
    for path in files.values():
        counts = {}
        for row in read_annotations(path, track_ids, problems):
            for field in row:
                counts[field] = counts.get(field, 0) + 1
        if not counts:
            raise SystemExit(f"{path}: no line has a field of use for a track of this catalogue. One JSON object a line is expected, "
                             f"with track_id (the id in Spotify's uri) and fields of tracks.jsonl")
        n_tracks = counts.pop("track_id")
        print(f"{path}: {n_tracks:,} of {len(track_ids):,} tracks ({', '.join(f'{k} {n:,}' for k, n in counts.items())})")


# ---------------------------------------------------------------- the lines to write

def track_rows(track_ids, known, audio):
    """Lines of tracks.jsonl. Popularity is null: it is counted in training playlists where needed."""
    empty = dict.fromkeys(data.TRACK_FIELDS)
    for track_id, (title, artist, album, duration_ms) in zip(track_ids, known):
        yield empty | {"track_id": track_id, "title": title, "artist": artist or None, "album": album or None,
                       "duration_ms": duration_ms, "tags": [], "audio_path": audio.get(track_id)}


def playlist_rows(heads, items, lengths, split, track_ids):
    """Lines of playlists.jsonl."""
    ends = np.cumsum(lengths, dtype=np.int64)
    for (playlist_id, title, description, day), length, end, s in zip(heads, lengths, ends, split):
        modified_at = None if day == NO_DATE else (date(1970, 1, 1) + timedelta(day)).isoformat()
        yield {"playlist_id": playlist_id, "title": title, "description": description, "modified_at": modified_at,
               "split": data.SPLITS[s], "track_ids": [track_ids[row] for row in items[end - length:end]]}
