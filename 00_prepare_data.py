"""Raw data -> tracks.jsonl and playlists.jsonl, with the split (the paper's Table 1).

Four sources:
  demo  a fictional catalogue, made here: tracks of which everything is known, audio, playlists
  mpd   the Million Playlist Dataset's slices, whole or with fewer fields, and what you have besides:
        annotations (JSONL by track_id) and audio files (named by track_id)
  cpcd  the Conversational Playlist Curation Dataset: tracks, playlists and dialogues between people,
        so that 03_synthesize.py is left out
  talkplaydata  TalkPlayData-1, TalkPlayData-2 or the Music-CRS challenge set: tracks, dialogues, and the embeddings that come
        with them, so that 01_extract_embeddings.py is left out too

Ids, row order and split come from this script alone. Test playlists are those modified last, as in
the paper; a track that is in no training playlist is "cold". data/README.md describes the files.

Reads   demo: nothing. mpd: mpd.slice.*.json of --mpd-dir, --annotations, the names in --audio-dir. cpcd: --cpcd-file.
        talkplaydata: the files of --parts
Writes  tracks.jsonl, playlists.jsonl, audio/*.flac (demo), annotations/*.jsonl (mpd), dialogues_*.jsonl (cpcd, talkplaydata),
        embeddings/*.npy (talkplaydata)

Demo        python 00_prepare_data.py demo
Full scale  python 00_prepare_data.py mpd --mpd-dir ~/mpd/data --min-count 5 --data-dir data/mpd
Dialogues   python 00_prepare_data.py cpcd --cpcd-file ~/cpcd/dialogs.dev.train.jsonl --data-dir data/cpcd    (1 s)
            python 00_prepare_data.py talkplaydata --parts TalkPlayData-2 TalkPlayData-2-Track-Metadata \
                TalkPlayData-2-Track-Embeddings

Another source is a file like steps/prepare_data/mpd.py, a function like prepare_mpd here that calls it, its flags
in parse_args, a line in SOURCES.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import threading
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from common import data, runs
from common.tokens import MODALITIES
from steps.prepare_data import cpcd, mpd, talkplaydata

NAME = "00_prepare_data"
TRAIN, VALID, TEST = range(3)  # positions in data.SPLITS
SAMPLE_RATE = 22_050  # Hz, of the demo's audio


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


def table_1_of(playlists, tracks):
    """table_1 of the lines of playlists.jsonl and tracks.jsonl."""
    row_of = {track["track_id"]: row for row, track in enumerate(tracks)}
    items = np.array([row_of[t] for p in playlists for t in p["track_ids"]], np.int32)
    lengths = np.array([len(p["track_ids"]) for p in playlists], np.int32)
    split = np.array([data.SPLITS.index(p["split"]) for p in playlists], np.int8)
    return table_1(items, lengths, split, len(tracks))


def print_table_1(rows):
    print(f"\n{'split':<6}{'playlists':>11}{'mean length':>13}{'tracks':>11}{'warm':>11}{'cold':>11}")
    for r in rows[:-1]:
        print(f"{r['split']:<6}{r['playlists']:>11,}{r['mean_length']:>13.1f}{r['tracks']:>11,}{r['warm']:>11,}{r['cold']:>11,}")
    pool = rows[-1]
    print(f"candidate pool: {pool['tracks']:,} tracks, {pool['warm']:,} warm and {pool['cold']:,} cold (in no training playlist)\n")


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
    from steps.prepare_data.demo import render  # only this source needs soundfile
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
    from steps.prepare_data.demo import catalogue
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
    run, state = runs.begin_run(data_dir, NAME, args, [], writes, args.resume)
    if state == "done" and all(path.is_file() for _, path in jobs):
        print(f"{NAME}: already done, nothing changed")
        return

    (data_dir / "audio").mkdir(exist_ok=True)
    render_all(jobs, args.workers)
    table = table_1_of(playlists, tracks)
    print_table_1(table)
    data.write_jsonl(data_dir / "tracks.jsonl", ({f: t.get(f) for f in data.TRACK_FIELDS} for t in tracks))
    data.write_jsonl(data_dir / "playlists.jsonl", playlists)
    runs.finish_run(run, table_1=table)
    print(f"wrote {len(tracks):,} tracks with audio and {len(playlists):,} playlists to {data_dir}; "
          f"next: python 01_extract_embeddings.py --data-dir {data_dir}")


# ---------------------------------------------------------------- mpd

def prepare_mpd(args):
    """Turn MPD slices into tracks.jsonl and playlists.jsonl."""
    data_dir, problems = Path(args.data_dir), {}
    if min(args.min_count, args.min_length) < 1 or min(args.n_test, args.n_valid) < 0:
        raise SystemExit("--min-count and --min-length must be at least 1, --n-test and --n-valid at least 0")
    if args.require_audio and not args.audio_dir:
        raise SystemExit("--require-audio needs --audio-dir, the folder with the audio files")
    slices, annotations = mpd.find_slices(args.mpd_dir), mpd.annotation_files(args.annotations)
    audio = mpd.find_audio(args.audio_dir, data_dir, problems) if args.audio_dir else {}
    args.slices = fingerprint(f"{p.name} {p.stat().st_size}" for p in slices)
    args.joined = fingerprint([*(f"{k} {runs.file_hash(p)}" for k, p in annotations.items()), *audio.values()])
    writes = ["tracks.jsonl", "playlists.jsonl", *annotations]
    run, state = runs.begin_run(data_dir, NAME, args, [], writes, args.resume, record=False)
    if state == "done":
        print(f"{NAME}: already done, nothing changed")
        return

    allowed = set(audio) if args.require_audio else None
    track_ids, known, heads, items, lengths = mpd.kept_playlists(slices, allowed, args.min_count, args.min_length, problems)
    if len(heads) < 10:
        raise SystemExit(f"{args.mpd_dir}: {len(heads)} playlists are left; a split needs at least 10. Give more slices, or "
                         f"a lower --min-count or --min-length. Nothing was written")
    days = np.array([head[3] for head in heads])
    if n_undated := int((days == mpd.NO_DATE).sum()):
        print(f"{n_undated:,} of {len(days):,} playlists have no modified_at: "
              + ("test and valid are a seeded sample" if n_undated == len(days) else "held out only after those with a date"))
    n_test = mpd.at_most_a_tenth("--n-test", args.n_test, len(heads))
    split = mpd.split_by_date(days, n_test, mpd.at_most_a_tenth("--n-valid", args.n_valid, len(heads)), args.seed)
    in_annotations, catalogue = {}, set(track_ids)
    mpd.check_annotations(annotations, catalogue, in_annotations)
    mpd.print_problems(in_annotations)
    table = table_1(items, lengths, split, len(known))
    print_table_1(table)

    remove_stale(data_dir, writes)
    runs.begin_run(data_dir, NAME, args, [], writes, args.resume)  # on record now that the input is known to be good
    data.write_jsonl(data_dir / "tracks.jsonl", mpd.track_rows(track_ids, known, audio))
    data.write_jsonl(data_dir / "playlists.jsonl", mpd.playlist_rows(heads, items, lengths, split, track_ids))
    for name, path in annotations.items():
        data.write_jsonl(data_dir / name, mpd.read_annotations(path, catalogue, {}))
    runs.finish_run(run, table_1=table, left_out=problems | in_annotations)
    print(f"wrote {len(known):,} tracks and {len(heads):,} playlists to {data_dir}; "
          f"next: python 01_extract_embeddings.py --data-dir {data_dir}")


# ---------------------------------------------------------------- cpcd

def prepare_cpcd(args):
    """Turn CPCD's conversations into tracks.jsonl, playlists.jsonl and the dialogues of the three splits."""
    data_dir, path, problems = Path(args.data_dir), Path(args.cpcd_file), {}
    if min(args.n_test, args.n_valid) < 1:
        raise SystemExit("--n-test and --n-valid must be at least 1")
    if not path.is_file():
        raise SystemExit(f"{path} is missing; --cpcd-file takes a file of the dataset's conversations, such as "
                         f"dialogs.dev.train.jsonl")
    args.conversations = runs.file_hash(path)
    writes = ["tracks.jsonl", "playlists.jsonl", *(f"dialogues_{name}.jsonl" for name in data.SPLITS)]
    run, state = runs.begin_run(data_dir, NAME, args, [], writes, args.resume, record=False)
    if state == "done":
        print(f"{NAME}: already done, nothing changed")
        return

    conversations = cpcd.read_conversations(path, problems)
    tracks = cpcd.read_tracks(conversations, problems)
    cpcd.note_unknown(conversations, tracks, problems)
    dialogues, goals = cpcd.make_dialogues(conversations, tracks, problems)
    mpd.print_problems(problems)
    if len(dialogues) <= args.n_test + args.n_valid:
        raise SystemExit(f"{path}: {len(dialogues)} conversations can be used, not more than --n-test {args.n_test} and --n-valid "
                         f"{args.n_valid} take together. Lower them, or give another file. Nothing was written")
    split = cpcd.split_dialogues(len(dialogues), args.n_valid, args.n_test, args.seed)
    playlists = [{"playlist_id": dialogue["dialogue_id"], "title": None, "modified_at": None, "split": s, "track_ids": goal}
                 for dialogue, goal, s in zip(dialogues, goals, split) if goal]
    table_of_dialogues, table = cpcd.table(dialogues, split), table_1_of(playlists, list(tracks.values()))
    print_table_1(table)
    cpcd.print_table(table_of_dialogues, tracks.values())

    remove_stale(data_dir, writes)
    runs.begin_run(data_dir, NAME, args, [], writes, args.resume)  # on record now that the input is known to be good
    data.write_jsonl(data_dir / "tracks.jsonl", tracks.values())
    data.write_jsonl(data_dir / "playlists.jsonl", playlists)
    for name in data.SPLITS:
        data.write_jsonl(data_dir / f"dialogues_{name}.jsonl", (d for d, s in zip(dialogues, split) if s == name))
    runs.finish_run(run, table_1=table, dialogues=table_of_dialogues, left_out=problems)
    print(f"wrote {len(tracks):,} tracks, {len(playlists):,} playlists and {len(dialogues):,} dialogues to {data_dir}; leave out "
          f"03_synthesize.py, which refuses to replace these dialogues. Next: python 01_extract_embeddings.py --data-dir {data_dir}, "
          f"or at once python baselines/bm25.py --data-dir {data_dir}")


# ---------------------------------------------------------------- talkplaydata

def prepare_talkplaydata(args):
    """Turn TalkPlayData's files into tracks.jsonl, playlists.jsonl, the dialogues of the three splits and embeddings."""
    data_dir, of_files, problems = Path(args.data_dir), {}, {}
    if args.n_valid < 1:
        raise SystemExit("--n-valid must be at least 1")
    paths = talkplaydata.find_files(args.parts)
    args.files = fingerprint(f"{path.name} {runs.file_hash(path)}" for path in paths)
    files = talkplaydata.sort_files(paths, of_files)
    modalities = [m for m in MODALITIES if any(m in columns.values() for _, columns in files["vectors"])]
    writes = ["tracks.jsonl", "playlists.jsonl", *(f"dialogues_{name}.jsonl" for name in data.SPLITS),
              *(f"embeddings/{modality}.npy" for modality in modalities)]
    run, state = runs.begin_run(data_dir, NAME, args, [], writes, args.resume, record=False)
    if state == "done":
        print(f"{NAME}: already done, nothing changed")
        return

    mpd.print_problems(of_files)  # at once, since they tell why conversations may be missing
    heads = [head for head, _, _ in talkplaydata.read_conversations(files["conversations"], problems)]
    splits = talkplaydata.split_dialogues(heads, args.n_valid, args.seed, problems)
    played = {track_id for head in heads for track_id in head.music} if args.played_only else None
    tracks = talkplaydata.read_tracks(files["tracks"], played, problems)
    talkplaydata.annotate(tracks, files["annotations"], problems)
    talkplaydata.note_unknown(heads, tracks, problems)
    playlists = talkplaydata.playlist_rows(heads, splits, tracks)
    mpd.print_problems(problems)
    if not playlists:
        raise SystemExit("--parts: none of the tracks that the conversations play is among the tracks; do the files belong "
                         "together? Nothing was written")
    table_of_dialogues, table = talkplaydata.table(heads, splits, tracks), table_1_of(playlists, list(tracks.values()))
    print_table_1(table)
    talkplaydata.print_table(table_of_dialogues, tracks.values())

    remove_stale(data_dir, writes)
    runs.begin_run(data_dir, NAME, args, [], writes, args.resume)  # on record now that the input is known to be good
    data.write_jsonl(data_dir / "tracks.jsonl", tracks.values())
    data.write_jsonl(data_dir / "playlists.jsonl", playlists)
    ids = {playlist["playlist_id"] for playlist in playlists}
    for name in data.SPLITS:
        data.write_jsonl(data_dir / f"dialogues_{name}.jsonl",
                         talkplaydata.dialogue_rows(files["conversations"], splits, name, tracks, ids))
    of_vectors, row_of = {}, {track_id: row for row, track_id in enumerate(tracks)}
    present = talkplaydata.write_embeddings(data_dir / "embeddings", files["vectors"], row_of, of_vectors)
    mpd.print_problems(of_vectors)
    for modality, (shape, n) in present.items():
        print(f"  {modality:9s} {str(shape):>14s}  {n:,} tracks have it, {shape[0] - n:,} do not")
    runs.finish_run(run, table_1=table, dialogues=table_of_dialogues, left_out=of_files | problems | of_vectors)
    missing = [modality for modality in MODALITIES if modality not in present]
    print(f"wrote {len(tracks):,} tracks, {len(playlists):,} playlists, {sum(s is not None for s in splits):,} dialogues and "
          f"{len(present)} embeddings to {data_dir}; leave out 03_synthesize.py, which refuses to replace these dialogues. Next: "
          + (f"python 01_extract_embeddings.py --data-dir {data_dir} --modalities {' '.join(missing)} (what did not come with the "
             "data), or at once " if missing else "") + f"python 02_quantize.py --data-dir {data_dir}")


# ---------------------------------------------------------------- command line

SOURCES = {"demo": prepare_demo, "mpd": prepare_mpd, "cpcd": prepare_cpcd, "talkplaydata": prepare_talkplaydata}


def parse_args(argv=None):
    parser = argparse.ArgumentParser(allow_abbrev=False, description="Raw data -> tracks.jsonl and playlists.jsonl, with the split.")
    sources = parser.add_subparsers(dest="source", required=True, metavar="{" + ",".join(SOURCES) + "}")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--data-dir", help="folder to write to (default data/<source>)")
    shared.add_argument("--seed", type=int, default=0, help="seed of every draw (default 0)")
    shared.add_argument("--resume", action=argparse.BooleanOptionalAction, default=True,
                        help="skip what is done, refuse changed arguments; --no-resume starts afresh (default --resume)")

    for_demo = sources.add_parser("demo", allow_abbrev=False, parents=[shared], help="a fictional catalogue, made here")
    for_demo.add_argument("--n-tracks", type=int, default=1000, help="tracks to make (default 1000)")
    for_demo.add_argument("--n-playlists", type=int, default=2500, help="playlists to make (default 2500)")
    for_demo.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that render audio (default: one a core)")

    for_mpd = sources.add_parser("mpd", allow_abbrev=False, parents=[shared], help="the Million Playlist Dataset")
    for_mpd.add_argument("--mpd-dir", required=True, help="folder with mpd.slice.*.json")
    for_mpd.add_argument("--annotations", nargs="+", default=[], metavar="FILE",
                     help="JSONL files: track_id and any fields of tracks.jsonl, year, decade (default none)")
    for_mpd.add_argument("--audio-dir", help="folder with ID.mp3, .flac, .ogg or .wav, nested or not (default none)")
    for_mpd.add_argument("--require-audio", action="store_true", help="drop tracks without an audio file")
    for_mpd.add_argument("--min-count", type=int, default=1, metavar="N",
                     help="drop tracks in fewer than N playlists of all splits (default 1: keep all)")
    for_mpd.add_argument("--min-length", type=int, default=5, metavar="N",
                     help="drop playlists with fewer than N tracks left (default 5)")
    for_mpd.add_argument("--n-test", type=int, default=1000, help="test playlists, at most a tenth (default 1000, 0: none)")
    for_mpd.add_argument("--n-valid", type=int, default=1000, help="validation playlists, at most a tenth (default 1000, 0: none)")

    for_cpcd = sources.add_parser("cpcd", allow_abbrev=False, parents=[shared], help="the Conversational Playlist Curation Dataset")
    for_cpcd.add_argument("--cpcd-file", required=True, metavar="FILE", help="its conversations: dialogs.dev.train.jsonl")
    for_cpcd.add_argument("--n-test", type=int, default=40, help="test conversations (default 40)")
    for_cpcd.add_argument("--n-valid", type=int, default=40, help="validation conversations (default 40)")
    for_tpd = sources.add_parser("talkplaydata", allow_abbrev=False, parents=[shared], help="TalkPlayData-1, -2 or the Music-CRS challenge set")
    for_tpd.add_argument("--parts", required=True, nargs="+", metavar="PART",
                         help="conversations, tracks, embeddings: files, folders, or ids on the Hugging Face hub (talkpl-ai/...)")
    for_tpd.add_argument("--n-valid", type=int, default=500, help="training playlists (TalkPlayData-1) or sessions whose dialogues "
                         "become validation ones, where none are published (default 500)")
    for_tpd.add_argument("--played-only", action="store_true", help="keep only tracks that a dialogue plays (default: all)")
    args = parser.parse_args(argv)
    args.data_dir = args.data_dir or f"data/{args.source}"  # set_defaults would change it for all, which share the argument
    return args


def main(argv=None):
    args = parse_args(argv)
    SOURCES[args.source](args)


if __name__ == "__main__":
    main()
