"""Raw data -> tracks.jsonl and playlists.jsonl, with the split (the paper's Table 1).

Two sources:
  demo  a fictional catalogue, made here: tracks of which everything is known, audio, playlists
  mpd   the Million Playlist Dataset's slices, whole or with fewer fields, and what you have besides:
        annotations (JSONL by track_id) and audio files (named by track_id)

Ids, row order and split come from this script alone. Test playlists are those modified last, as in
the paper; a track that is in no training playlist is "cold". data/README.md describes the files.

Reads   demo: nothing. mpd: mpd.slice.*.json of --mpd-dir, --annotations, the names in --audio-dir
Writes  tracks.jsonl, playlists.jsonl, audio/*.flac (demo), annotations/*.jsonl (mpd)

Demo        python 00_prepare_data.py demo
Full scale  python 00_prepare_data.py mpd --mpd-dir ~/mpd/data --min-count 5 --data-dir data/mpd

Another source is one more function like prepare_mpd, its parser in parse_args, a line in SOURCES.
"""

import argparse
import hashlib
import html
import json
import multiprocessing
import os
import re
import sys
import threading
from array import array
from concurrent.futures import ProcessPoolExecutor
from datetime import date, timedelta
from pathlib import Path

import numpy as np
from tqdm import tqdm

from common import data

NAME = "00_prepare_data"
TRAIN, VALID, TEST = range(3)  # positions in data.SPLITS
SAMPLE_RATE = 22_050  # Hz, of the demo's audio
AUDIO_SUFFIXES = (".mp3", ".flac", ".ogg", ".wav")
TRACK_URI = re.compile(r"spotify:track:([A-Za-z0-9]+)")
ANNOTATION_TYPES = {"title": str, "artist": str, "album": str, "release_date": str, "duration_ms": int,
                    "popularity": (int, float), "tags": list, "lyrics": str, "caption": str,
                    "tempo": (int, float), "key": str, "audio_path": str}
NO_DATE, LAST_DAY = -1, 2_932_896  # in days since 1970-01-01; the last is 9999-12-31, the end of ISO dates


# ---------------------------------------------------------------- what the sources share

def table_1(items, lengths, split, n_tracks):
    """The paper's Table 1: what each split holds. Cold: in no training playlist.

    items: (sum of lengths,) int, rows of the tracks, playlist after playlist.
    lengths: (P,) int, tracks of each playlist. split: (P,) int, positions in data.SPLITS.
    n_tracks: size of the candidate pool, which is all tracks of the catalogue.

    Returns: list of dicts: each split, "all", and "pool" (every track, in a playlist or not).
    """
    split_of_item = np.repeat(split, lengths)
    warm = np.zeros(n_tracks, bool)
    warm[items[split_of_item == TRAIN]] = True
    rows = []
    for name, splits in (("train", [TRAIN]), ("valid", [VALID]), ("test", [TEST]), ("all", [TRAIN, VALID, TEST])):
        members = lengths[np.isin(split, splits)]
        used = np.zeros(n_tracks, bool)
        used[items[np.isin(split_of_item, splits)]] = True
        rows.append({"split": name, "playlists": len(members), "mean_length": float(members.sum() / max(1, len(members))),
                     "tracks": int(used.sum()), "warm": int((used & warm).sum()), "cold": int((used & ~warm).sum())})
    return rows + [{"split": "pool", "tracks": n_tracks, "warm": int(warm.sum()), "cold": int((~warm).sum())}]


def print_table_1(rows):
    print(f"\n{'split':<6}{'playlists':>11}{'mean length':>13}{'tracks':>11}{'warm':>11}{'cold':>11}")
    for r in rows[:-1]:
        print(f"{r['split']:<6}{r['playlists']:>11,}{r['mean_length']:>13.1f}{r['tracks']:>11,}{r['warm']:>11,}{r['cold']:>11,}")
    pool = rows[-1]
    print(f"candidate pool: {pool['tracks']:,} tracks, {pool['warm']:,} warm and {pool['cold']:,} cold (in no training playlist)\n")


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


def fingerprint(parts):
    """16 hex digits that stand for many strings, so that a changed input is noticed."""
    return hashlib.sha256("\n".join(parts).encode("utf-8", "replace")).hexdigest()[:16]


def record_file(data_dir):
    return data_dir / "runs" / f"{NAME}.json"


def remove_stale(data_dir, writes):
    """Remove what an earlier run of this script wrote and this one will not.

    An annotation file that stayed behind would be laid over the new tracks.
    """
    try:
        old = json.loads(record_file(data_dir).read_text())["writes"]
    except (FileNotFoundError, ValueError, KeyError):
        return
    for name in set(old) - set(writes):
        (data_dir / name).unlink(missing_ok=True)


# ---------------------------------------------------------------- demo

def render_one(job):
    """Render one track to a file. job: (dict for the renderer, path)."""
    from demo import render  # only this source needs soundfile
    audio, path = job
    render.write_audio(path, render.render_track(audio), SAMPLE_RATE)


def end_with_parent():
    """Let a worker end when the main process is killed; it would wait for its next job for ever."""
    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)
    threading.Thread(target=watch, daemon=True).start()


def render_all(jobs, workers):
    """Render the (audio, path) jobs that have no file yet; a file that is there is whole."""
    jobs = [(audio, path) for audio, path in jobs if not path.is_file()]
    with ProcessPoolExecutor(workers, initializer=end_with_parent) as pool:
        done = map(render_one, jobs) if workers == 1 else pool.map(render_one, jobs, chunksize=4)
        for _ in tqdm(done, total=len(jobs), desc="audio", unit="track"):
            pass


def prepare_demo(args):
    """Make the fictional catalogue, its playlists and its audio."""
    from demo import catalogue
    data_dir = Path(args.data_dir)
    if args.workers < 1:
        raise SystemExit("--workers must be at least 1")
    tracks, playlists = catalogue.make_catalogue(args.n_tracks, args.n_playlists, args.seed)
    args.catalogue = fingerprint(json.dumps(row, default=str) for row in [*tracks, *playlists])
    jobs = [(track.pop("audio"), data_dir / track["audio_path"]) for track in tracks]
    writes = ["tracks.jsonl", "playlists.jsonl"]
    if not (args.resume and record_file(data_dir).is_file()):
        remove_stale(data_dir, writes)
        for _, path in jobs:  # audio of another catalogue must not pass for this one's
            path.unlink(missing_ok=True)
    run, state = data.begin_run(data_dir, NAME, args, [], writes, args.resume)
    if state == "done" and all(path.is_file() for _, path in jobs):
        print(f"{NAME}: already done, nothing changed")
        return

    (data_dir / "audio").mkdir(exist_ok=True)
    render_all(jobs, args.workers)
    row_of = {track["track_id"]: row for row, track in enumerate(tracks)}
    items = np.array([row_of[t] for p in playlists for t in p["track_ids"]], np.int32)
    lengths = np.array([len(p["track_ids"]) for p in playlists], np.int32)
    split = np.array([data.SPLITS.index(p["split"]) for p in playlists], np.int8)
    table = table_1(items, lengths, split, len(tracks))
    print_table_1(table)
    data.write_jsonl(data_dir / "tracks.jsonl", ({f: t.get(f) for f in data.TRACK_FIELDS} for t in tracks))
    data.write_jsonl(data_dir / "playlists.jsonl", playlists)
    data.finish_run(run, table_1=table)
    print(f"wrote {len(tracks):,} tracks with audio and {len(playlists):,} playlists to {data_dir}; "
          f"next: python 01_extract_embeddings.py --data-dir {data_dir}")


# ---------------------------------------------------------------- mpd: which files

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


# ---------------------------------------------------------------- mpd: reading

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


# ---------------------------------------------------------------- mpd: filters and split

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


# ---------------------------------------------------------------- mpd: annotations

def map_annotation(row):
    """The fields of an annotation by the names of tracks.jsonl.

    `year` becomes release_date ("2002"). `decade` ("80s") becomes a tag where no year is known, since
    a date would claim more than that.

    Returns: the fields; names of the fields whose value is of the wrong type.
    """
    row = {k: v for k, v in row.items() if v is not None}
    good = {k: row[k] for k, types in ANNOTATION_TYPES.items() if isinstance(row.get(k), types)
            and not isinstance(row[k], bool) and row[k] == row[k]}  # NaN is not equal to itself
    if not all(isinstance(tag, str) for tag in good.get("tags", [])):
        del good["tags"]
    bad = [k for k in row if k in ANNOTATION_TYPES and k not in good]
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
            raise SystemExit(f"{path}: no line is about a track of this catalogue. One JSON object a line is expected, "
                             f"with track_id (the id in Spotify's uri) and fields of tracks.jsonl")
        n_tracks = counts.pop("track_id")
        print(f"{path}: {n_tracks:,} of {len(track_ids):,} tracks ({', '.join(f'{k} {n:,}' for k, n in counts.items())})")


# ---------------------------------------------------------------- mpd: all of it

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


def prepare_mpd(args):
    """Turn MPD slices into tracks.jsonl and playlists.jsonl."""
    data_dir, problems = Path(args.data_dir), {}
    if min(args.min_count, args.min_length) < 1 or min(args.n_test, args.n_valid) < 0:
        raise SystemExit("--min-count and --min-length must be at least 1, --n-test and --n-valid at least 0")
    if args.require_audio and not args.audio_dir:
        raise SystemExit("--require-audio needs --audio-dir, the folder with the audio files")
    slices, annotations = find_slices(args.mpd_dir), annotation_files(args.annotations)
    audio = find_audio(args.audio_dir, data_dir, problems) if args.audio_dir else {}
    args.slices = fingerprint(f"{p.name} {p.stat().st_size}" for p in slices)
    args.joined = fingerprint([*(f"{k} {data.file_hash(p)}" for k, p in annotations.items()), *audio.values()])
    writes = ["tracks.jsonl", "playlists.jsonl", *annotations]
    run, state = data.begin_run(data_dir, NAME, args, [], writes, args.resume, record=False)
    if state == "done":
        print(f"{NAME}: already done, nothing changed")
        return

    allowed = set(audio) if args.require_audio else None
    track_ids, known, heads, items, lengths = kept_playlists(slices, allowed, args.min_count, args.min_length, problems)
    if len(heads) < 10:
        raise SystemExit(f"{args.mpd_dir}: {len(heads)} playlists are left; a split needs at least 10. Give more slices, or "
                         f"a lower --min-count or --min-length. Nothing was written")
    days = np.array([head[3] for head in heads])
    if n_undated := int((days == NO_DATE).sum()):
        print(f"{n_undated:,} of {len(days):,} playlists have no modified_at: "
              + ("test and valid are a seeded sample" if n_undated == len(days) else "held out only after those with a date"))
    n_test = at_most_a_tenth("--n-test", args.n_test, len(heads))
    split = split_by_date(days, n_test, at_most_a_tenth("--n-valid", args.n_valid, len(heads)), args.seed)
    in_annotations, catalogue = {}, set(track_ids)
    check_annotations(annotations, catalogue, in_annotations)
    print_problems(in_annotations)
    table = table_1(items, lengths, split, len(known))
    print_table_1(table)

    remove_stale(data_dir, writes)
    data.begin_run(data_dir, NAME, args, [], writes, args.resume)  # on record now that the input is known to be good
    data.write_jsonl(data_dir / "tracks.jsonl", track_rows(track_ids, known, audio))
    data.write_jsonl(data_dir / "playlists.jsonl", playlist_rows(heads, items, lengths, split, track_ids))
    for name, path in annotations.items():
        data.write_jsonl(data_dir / name, read_annotations(path, catalogue, {}))
    data.finish_run(run, table_1=table, left_out=problems | in_annotations)
    print(f"wrote {len(known):,} tracks and {len(heads):,} playlists to {data_dir}; "
          f"next: python 01_extract_embeddings.py --data-dir {data_dir}")


# ---------------------------------------------------------------- command line

SOURCES = {"demo": prepare_demo, "mpd": prepare_mpd}


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description="Raw data -> tracks.jsonl and playlists.jsonl, with the split.")
    sources = parser.add_subparsers(dest="source", required=True, metavar="{" + ",".join(SOURCES) + "}")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--data-dir", default="data/demo", help="folder to write to (default data/demo)")
    shared.add_argument("--seed", type=int, default=0, help="seed of every draw (default 0)")
    shared.add_argument("--resume", action=argparse.BooleanOptionalAction, default=True,
                        help="skip what is done, refuse changed arguments; --no-resume starts afresh (default --resume)")

    demo = sources.add_parser("demo", parents=[shared], help="a fictional catalogue, made here")
    demo.add_argument("--n-tracks", type=int, default=1000, help="tracks to make (default 1000)")
    demo.add_argument("--n-playlists", type=int, default=2500, help="playlists to make (default 2500)")
    demo.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that render audio (default: one a core)")

    mpd = sources.add_parser("mpd", parents=[shared], help="the Million Playlist Dataset")
    mpd.add_argument("--mpd-dir", required=True, help="folder with mpd.slice.*.json")
    mpd.add_argument("--annotations", nargs="+", default=[], metavar="FILE",
                     help="JSONL files: track_id and any fields of tracks.jsonl, year, decade (default none)")
    mpd.add_argument("--audio-dir", help="folder with ID.mp3, .flac, .ogg or .wav, nested or not (default none)")
    mpd.add_argument("--require-audio", action="store_true", help="drop tracks without an audio file")
    mpd.add_argument("--min-count", type=int, default=1, metavar="N",
                     help="drop tracks in fewer than N playlists of all splits (default 1: keep all)")
    mpd.add_argument("--min-length", type=int, default=5, metavar="N",
                     help="drop playlists with fewer than N tracks left (default 5)")
    mpd.add_argument("--n-test", type=int, default=1000, help="test playlists, at most a tenth (default 1000, 0: none)")
    mpd.add_argument("--n-valid", type=int, default=1000, help="validation playlists, at most a tenth (default 1000, 0: none)")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    SOURCES[args.source](args)


if __name__ == "__main__":
    main()
