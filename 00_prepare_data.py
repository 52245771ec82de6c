"""Raw data -> tracks.jsonl and playlists.jsonl, with the split (the paper's Table 1).

Ids, row order and split come from this script alone. Test playlists are those modified last, as in
the paper. A track that is in no training playlist is "cold". data/README.md describes the files.

Four sources:
  demo          a fictional catalogue, made here: tracks of which all is known, audio, playlists
  mpd           the Million Playlist Dataset's slices, whole or with fewer fields, and what you have
                besides: annotations (JSONL by track_id) and audio files (named by track_id)
  cpcd          the Conversational Playlist Curation Dataset, whose dialogues replace 03's
  talkplaydata  TalkPlayData-1, TalkPlayData-2 or the Music-CRS challenge set, whose dialogues and
                embeddings replace those of 03 and 01

Reads   demo: nothing. mpd: mpd.slice.*.json in --mpd-dir, --annotations, the names in --audio-dir.
        cpcd: --cpcd-file. talkplaydata: the files of --parts
Writes  tracks.jsonl, playlists.jsonl; audio/*.flac (demo), annotations/*.jsonl (mpd),
        dialogues_*.jsonl (cpcd, talkplaydata), embeddings/*.npy (talkplaydata)

Demo        python 00_prepare_data.py demo    (20 s)
Full scale  python 00_prepare_data.py mpd --mpd-dir ~/mpd/data --min-count 5 --data-dir data/mpd
Dialogues   python 00_prepare_data.py cpcd --cpcd-file ~/cpcd/dialogs.dev.train.jsonl    (1 s)
            python 00_prepare_data.py talkplaydata --parts TalkPlayData-2 \\
                TalkPlayData-2-Track-Metadata TalkPlayData-2-Track-Embeddings

Another source is a file like steps/prepare_data/mpd.py, a function like prepare_mpd here that calls
it, its flags in parse_args, and a line in SOURCES.
"""

import argparse
import hashlib
import json
import os
from pathlib import Path

import numpy as np

from common import data, runs
from common.tokens import MODALITIES
from steps.prepare_data import cpcd, mpd, talkplaydata, talkplaydata_files
from steps.prepare_data.foreign import dialogue_table, print_dialogue_table, print_problems

NAME = "00_prepare_data"
TRAIN, VALID, TEST = range(3)  # positions in data.SPLITS
NO_DATE = mpd.NO_DATE
DIALOGUES = {split: f"dialogues_{split}.jsonl" for split in data.SPLITS}


# ---------------------------------------------------------------- the split

def sample(groups, n, rng):
    """n members of the groups, in the groups' order; at random from the last one that is needed."""
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

    days: days since 1970-01-01, or NO_DATE, (P,) int.
    Returns: positions in data.SPLITS, (P,) int8.
    """
    rng = np.random.default_rng(seed)
    split = np.full(len(days), TRAIN, np.int8)
    dates = np.unique(days[days != NO_DATE])[::-1]  # the last one first
    split[sample((np.flatnonzero(days == d) for d in [*dates, NO_DATE]), n_test, rng)] = TEST

    # validation: the last date before all of test, then the dates that test has begun, then earlier
    first_test_day = days[split == TEST].min(initial=days.max() + 1)
    earlier = dates[dates < first_test_day]
    begun = dates[:len(dates) - len(earlier)]
    order = [*earlier[:1], *begun, *earlier[1:], NO_DATE]
    free = split == TRAIN
    split[sample((np.flatnonzero((days == d) & free) for d in order), n_valid, rng)] = VALID
    return split


def at_most_a_tenth(flag, n, n_playlists):
    if n > n_playlists // 10:
        print(f"{flag} {n:,} is more than a tenth of the {n_playlists:,} playlists: cut to "
              f"{n_playlists // 10:,}")
    return min(n, n_playlists // 10)


# ---------------------------------------------------------------- what each split holds

def table_1(items, lengths, split, n_tracks):
    """The paper's Table 1: what each split holds. Cold: in no training playlist.

    items: rows of the tracks, playlist after playlist, (sum of lengths,) int.
    lengths: tracks per playlist, (P,) int.
    split: positions in data.SPLITS, (P,) int.
    n_tracks: size of the candidate pool, which is all tracks of the catalogue.

    Returns: list of dicts: each split, "all", and "pool" (every track, in a playlist or not).
    """
    split_of_item = np.repeat(split, lengths)  # (sum of lengths,)
    warm = np.zeros(n_tracks, bool)
    warm[items[split_of_item == TRAIN]] = True

    rows = []
    groups = {"train": [TRAIN], "valid": [VALID], "test": [TEST], "all": [TRAIN, VALID, TEST]}
    for name, splits in groups.items():
        own_lengths = lengths[np.isin(split, splits)]
        used = np.zeros(n_tracks, bool)
        used[items[np.isin(split_of_item, splits)]] = True
        rows.append({"split": name, "playlists": len(own_lengths),
                     "mean_length": float(own_lengths.sum() / max(1, len(own_lengths))),
                     "tracks": int(used.sum()), "warm": int((used & warm).sum()),
                     "cold": int((used & ~warm).sum())})
    n_warm = int(warm.sum())
    return [*rows, {"split": "pool", "tracks": n_tracks, "warm": n_warm, "cold": n_tracks - n_warm}]


def table_1_of(playlists, tracks):
    """`table_1` of the lines of playlists.jsonl and tracks.jsonl."""
    row_of = {track["track_id"]: row for row, track in enumerate(tracks)}
    items = np.array([row_of[t] for p in playlists for t in p["track_ids"]], np.int32)
    lengths = np.array([len(p["track_ids"]) for p in playlists], np.int32)
    split = np.array([data.SPLITS.index(p["split"]) for p in playlists], np.int8)
    return table_1(items, lengths, split, len(tracks))


def print_table_1(rows):
    print(f"\n{'split':<6}{'playlists':>11}{'mean length':>13}{'tracks':>11}{'warm':>11}"
          f"{'cold':>11}")
    *splits, pool = rows
    for r in splits:
        print(f"{r['split']:<6}{r['playlists']:>11,}{r['mean_length']:>13.1f}"
              f"{r['tracks']:>11,}{r['warm']:>11,}{r['cold']:>11,}")
    print(f"candidate pool: {pool['tracks']:,} tracks, {pool['warm']:,} warm and {pool['cold']:,} "
          f"cold (in no training playlist)\n")


# ---------------------------------------------------------------- the run's record

def fingerprint(strings):
    """16 hex digits that stand for many strings, so that a changed input is noticed."""
    return hashlib.sha256("\n".join(strings).encode("utf-8", "replace")).hexdigest()[:16]


def begin(args, writes):
    """(run, state) from `runs.begin_run`, not on record yet: the input must be checked first."""
    writes = ["tracks.jsonl", "playlists.jsonl", *writes]
    return runs.begin_run(args.data_dir, NAME, args, [], writes, args.resume, record=False)


def already_done(state):
    if state == "done":
        print(f"{NAME}: already done, nothing changed")
    return state == "done"


def start_writing(data_dir, run):
    """Put the run on record, now that its input is known to be good.

    Removes what an earlier run of this script wrote and this one will not: an annotation file that
    stayed behind would be laid over the new tracks.
    """
    earlier = runs.read_run(data_dir, NAME)
    for name in set(earlier["writes"] if earlier else ()) - set(run["writes"]):
        (data_dir / name).unlink(missing_ok=True)
    runs.record_run(run)


# ---------------------------------------------------------------- the four sources

def prepare_demo(args):
    """Make the fictional catalogue, its playlists and its audio."""
    from steps.prepare_data.demo import catalogue, render  # only this source needs soundfile
    data_dir = Path(args.data_dir)
    if args.workers < 1:
        raise SystemExit("--workers must be at least 1")
    tracks, playlists = catalogue.make_catalogue(args.n_tracks, args.n_playlists, args.seed)
    args.catalogue = fingerprint(json.dumps(row, default=str) for row in [*tracks, *playlists])
    jobs = [(track.pop("audio"), data_dir / track["audio_path"]) for track in tracks]
    run, state = begin(args, [])
    if all(path.is_file() for _, path in jobs) and already_done(state):
        return

    if state == "new":  # audio of another catalogue must not pass for this one's
        for _, path in jobs:
            path.unlink(missing_ok=True)
    start_writing(data_dir, run)
    (data_dir / "audio").mkdir(exist_ok=True)
    render.render_all(jobs, args.workers)
    table = table_1_of(playlists, tracks)
    print_table_1(table)
    data.write_jsonl(data_dir / "tracks.jsonl", tracks)
    data.write_jsonl(data_dir / "playlists.jsonl", playlists)
    runs.finish_run(run, table_1=table)
    print(f"wrote {len(tracks):,} tracks with audio and {len(playlists):,} playlists to "
          f"{data_dir}; next: python 01_extract_embeddings.py --data-dir {data_dir}")


def prepare_mpd(args):
    """Turn MPD slices into tracks.jsonl and playlists.jsonl."""
    data_dir = Path(args.data_dir)
    problems, annotation_problems = {}, {}
    if min(args.min_count, args.min_length) < 1 or min(args.n_test, args.n_valid) < 0:
        raise SystemExit("--min-count and --min-length must be at least 1, --n-test and --n-valid "
                         "at least 0")
    if args.require_audio and not args.audio_dir:
        raise SystemExit("--require-audio needs --audio-dir, the folder with the audio files")

    slices, annotations = mpd.find_slices(args.mpd_dir), mpd.annotation_files(args.annotations)
    audio = mpd.find_audio(args.audio_dir, data_dir, problems) if args.audio_dir else {}
    args.slices = fingerprint(f"{path.name} {path.stat().st_size}" for path in slices)
    hashes = [f"{name} {runs.file_hash(path)}" for name, path in annotations.items()]
    args.joined = fingerprint([*hashes, *audio.values()])
    run, state = begin(args, annotations)
    if already_done(state):
        return

    # read, filter, split
    allowed = set(audio) if args.require_audio else None
    track_ids, details, heads, items, lengths = mpd.kept_playlists(
        slices, allowed, args.min_count, args.min_length, problems)
    if len(heads) < 10:
        raise SystemExit(f"{args.mpd_dir}: {len(heads)} playlists are left; a split needs at least "
                         f"10. Give more slices, or lower --min-count or --min-length")
    days = np.array([day for *_, day in heads])
    if n_undated := int((days == NO_DATE).sum()):
        print(f"{n_undated:,} of {len(days):,} playlists have no modified_at: they are held out "
              f"last, by a seeded draw")
    split = split_by_date(days, at_most_a_tenth("--n-test", args.n_test, len(days)),
                          at_most_a_tenth("--n-valid", args.n_valid, len(days)), args.seed)
    catalogue = set(track_ids)
    mpd.check_annotations(annotations, catalogue, annotation_problems)
    print_problems(annotation_problems)
    table = table_1(items, lengths, split, len(track_ids))
    print_table_1(table)

    start_writing(data_dir, run)
    data.write_jsonl(data_dir / "tracks.jsonl", mpd.track_rows(track_ids, details, audio))
    data.write_jsonl(data_dir / "playlists.jsonl",
                     mpd.playlist_rows(heads, items, lengths, split, track_ids))
    for name, path in annotations.items():
        data.write_jsonl(data_dir / name, mpd.read_annotations(path, catalogue, {}))
    runs.finish_run(run, table_1=table, left_out=problems | annotation_problems)
    print(f"wrote {len(track_ids):,} tracks and {len(heads):,} playlists to {data_dir}; "
          f"next: python 01_extract_embeddings.py --data-dir {data_dir}")


def prepare_cpcd(args):
    """Turn CPCD's conversations into tracks, playlists and the dialogues of the three splits."""
    data_dir, path, problems = Path(args.data_dir), Path(args.cpcd_file), {}
    if min(args.n_test, args.n_valid) < 1:
        raise SystemExit("--n-test and --n-valid must be at least 1")
    if not path.is_file():
        raise SystemExit(f"{path} is missing; --cpcd-file takes a file of the dataset's "
                         f"conversations, such as dialogs.dev.train.jsonl")
    args.conversations = runs.file_hash(path)
    run, state = begin(args, DIALOGUES.values())
    if already_done(state):
        return

    tracks, playlists, dialogues, splits = cpcd.read(path, args.n_valid, args.n_test, args.seed,
                                                     problems)
    table = table_1_of(playlists, tracks)
    print_table_1(table)
    dialogues_by_split = dialogue_table(splits, cpcd.count(dialogues))
    print_dialogue_table(dialogues_by_split, tracks)

    start_writing(data_dir, run)
    data.write_jsonl(data_dir / "tracks.jsonl", tracks)
    data.write_jsonl(data_dir / "playlists.jsonl", playlists)
    for name, file in DIALOGUES.items():
        own = (dialogue for dialogue, split in zip(dialogues, splits, strict=True) if split == name)
        data.write_jsonl(data_dir / file, own)
    runs.finish_run(run, table_1=table, dialogues=dialogues_by_split, left_out=problems)
    print(f"wrote {len(tracks):,} tracks, {len(playlists):,} playlists and {len(dialogues):,} "
          f"dialogues to {data_dir}; leave out 03_synthesize.py, which refuses to replace these "
          f"dialogues. Next: python 01_extract_embeddings.py --data-dir {data_dir}, or at once "
          f"python baselines/bm25.py --data-dir {data_dir}")


def prepare_talkplaydata(args):
    """Turn TalkPlayData's files into tracks, playlists, dialogues and embeddings."""
    data_dir, problems, file_problems, vector_problems = Path(args.data_dir), {}, {}, {}
    if args.n_valid < 1:
        raise SystemExit("--n-valid must be at least 1")
    paths = talkplaydata_files.find_files(args.parts)
    args.files = fingerprint(f"{path.name} {runs.file_hash(path)}" for path in paths)
    files = talkplaydata_files.sort_files(paths, file_problems)
    came = {modality for _, columns in files["vectors"] for modality in columns.values()}
    embeddings = [f"embeddings/{modality}.npy" for modality in MODALITIES if modality in came]
    run, state = begin(args, [*DIALOGUES.values(), *embeddings])
    if already_done(state):
        return

    print_problems(file_problems)  # at once: they tell why conversations may be missing
    heads, splits, tracks, playlists = talkplaydata.read(files, args.n_valid, args.played_only,
                                                         args.seed, problems)
    table = table_1_of(playlists, tracks.values())
    print_table_1(table)
    dialogues_by_split = dialogue_table(splits, talkplaydata.count(heads, tracks))
    print_dialogue_table(dialogues_by_split, tracks.values())

    start_writing(data_dir, run)
    data.write_jsonl(data_dir / "tracks.jsonl", tracks.values())
    data.write_jsonl(data_dir / "playlists.jsonl", playlists)
    for split, file in DIALOGUES.items():
        data.write_jsonl(data_dir / file, talkplaydata.dialogue_rows(
            files["conversations"], splits, split, tracks, playlists))
    present = talkplaydata_files.write_embeddings(data_dir / "embeddings", files["vectors"],
                                                  list(tracks), vector_problems)
    print_problems(vector_problems)
    for modality, ((n, d), n_present) in present.items():
        print(f"  {modality:9s} {str((n, d)):>14s}  {n_present:,} tracks have it, "
              f"{n - n_present:,} do not")
    runs.finish_run(run, table_1=table, dialogues=dialogues_by_split,
                    left_out=file_problems | problems | vector_problems)

    print(f"wrote {len(tracks):,} tracks, {len(playlists):,} playlists, "
          f"{dialogues_by_split[-1]['dialogues']:,} dialogues and {len(present)} embeddings to "
          f"{data_dir}; leave out 03_synthesize.py, which refuses to replace these dialogues. "
          f"Next: python 02_quantize.py --data-dir {data_dir}")
    missing = " ".join(modality for modality in MODALITIES if modality not in present)
    if missing:
        print(f"before it, for what did not come with the data: python 01_extract_embeddings.py "
              f"--data-dir {data_dir} --modalities {missing}")


# ---------------------------------------------------------------- command line

SOURCES = {"demo": prepare_demo, "mpd": prepare_mpd, "cpcd": prepare_cpcd,
           "talkplaydata": prepare_talkplaydata}


def parse_args(argv=None):
    about = "Raw data -> tracks.jsonl and playlists.jsonl, with the split."
    parser = argparse.ArgumentParser(allow_abbrev=False, description=about)
    sources = parser.add_subparsers(dest="source", required=True)

    def add_source(name, about):
        source = sources.add_parser(name, allow_abbrev=False, help=about, description=about)
        source.add_argument("--data-dir", default=f"data/{name}",
                            help=f"folder to write to (default data/{name})")
        source.add_argument("--seed", type=int, default=0, help="seed of every draw (default 0)")
        source.add_argument("--resume", action=argparse.BooleanOptionalAction, default=True,
                            help="skip what is done, refuse changed arguments; --no-resume starts "
                                 "afresh (default --resume)")
        return source.add_argument

    add = add_source("demo", "a fictional catalogue, made here")
    add("--n-tracks", type=int, default=1000, help="tracks to make (default 1000)")
    add("--n-playlists", type=int, default=2500, help="playlists to make (default 2500)")
    add("--workers", type=int, default=os.cpu_count() or 1,
        help="processes that render audio (default: one per core)")

    add = add_source("mpd", "the Million Playlist Dataset")
    add("--mpd-dir", required=True, help="folder with mpd.slice.*.json")
    add("--annotations", nargs="+", default=[], metavar="FILE",
        help="JSONL files: track_id and any fields of tracks.jsonl, year, decade (default none)")
    add("--audio-dir", help="folder with ID.mp3, .flac, .ogg or .wav, nested or not (default none)")
    add("--require-audio", action="store_true", help="drop tracks without an audio file")
    add("--min-count", type=int, default=1, metavar="N",
        help="drop tracks in fewer than N playlists of all splits (default 1: keep all)")
    add("--min-length", type=int, default=5, metavar="N",
        help="drop playlists with fewer than N tracks left (default 5)")
    add("--n-test", type=int, default=1000,
        help="test playlists, at most a tenth (default 1000, 0: none)")
    add("--n-valid", type=int, default=1000,
        help="validation playlists, at most a tenth (default 1000, 0: none)")

    add = add_source("cpcd", "the Conversational Playlist Curation Dataset")
    add("--cpcd-file", required=True, metavar="FILE",
        help="its conversations: dialogs.dev.train.jsonl")
    add("--n-test", type=int, default=40, help="test conversations (default 40)")
    add("--n-valid", type=int, default=40, help="validation conversations (default 40)")

    add = add_source("talkplaydata", "TalkPlayData-1, -2 or the Music-CRS challenge set")
    add("--parts", required=True, nargs="+", metavar="PART",
        help="conversations, tracks, embeddings: files, folders, or ids on the Hugging Face hub "
             "(talkpl-ai/...)")
    add("--n-valid", type=int, default=500,
        help="training playlists (TalkPlayData-1) or sessions whose dialogues become validation "
             "ones, where none are published (default 500)")
    add("--played-only", action="store_true",
        help="keep only tracks that a dialogue plays (default: all)")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    SOURCES[args.source](args)


if __name__ == "__main__":
    main()
