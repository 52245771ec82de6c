"""Raw data -> tracks.jsonl and playlists.jsonl, with the split (the paper's Table 1).

Ids, row order and split come from this script alone. Test playlists are those modified last, as in
the paper. A track that is in no training playlist is "cold". data/README.md describes the files.
  demo          a fictional catalogue, made here: tracks of which all is known, audio, playlists
  mpd           the Million Playlist Dataset's slices, whole or with fewer fields, and what you have
                besides: annotations (JSONL by track_id) and audio files (named by track_id)
  cpcd          the Conversational Playlist Curation Dataset, whose dialogues replace 03's
  talkplaydata  TalkPlayData-1, TalkPlayData-2 or the Music-CRS challenge set, whose dialogues and
                embeddings replace those of 03 and 01

Reads   demo: nothing. The others: the files that their flags name
Writes  tracks.jsonl, playlists.jsonl; audio/*.flac (demo), annotations/*.jsonl (mpd),
        dialogues_*.jsonl (cpcd, talkplaydata), embeddings/*.npy (talkplaydata)

Demo        python 00_prepare_data.py demo                           (7 s)
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
from common.flags import add_shared, check_ranges
from common.tokens import MODALITIES
from steps.prepare_data import cpcd, mpd, talkplaydata, talkplaydata_files
from steps.prepare_data.foreign import dialogue_table, print_known, print_problems, print_table

NAME = "00_prepare_data"
TRAIN, VALID, TEST = range(3)  # positions in data.SPLITS
NO_DATE = -1
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
    order = [*earlier[:1], *dates[dates >= first_test_day], *earlier[1:], NO_DATE]
    free = split == TRAIN
    split[sample((np.flatnonzero((days == d) & free) for d in order), n_valid, rng)] = VALID
    return split


def at_most_a_tenth(flag, n, n_playlists):
    most = n_playlists // 10
    if n > most:
        print(f"{flag} {n:,} is more than a tenth of the {n_playlists:,} playlists: cut to "
              f"{most:,}")
    return min(n, most)


# ---------------------------------------------------------------- what each split holds

def table_1(playlists, n_tracks):
    """The paper's Table 1: what each split holds. Cold: in no training playlist.

    playlists: lines of playlists.jsonl. n_tracks: size of the candidate pool, which is all tracks
        of the catalogue.
    Returns: list of dicts: each split, "all", and "pool" (every track, in a playlist or not).
    """
    warm = {t for p in playlists if p["split"] == "train" for t in p["track_ids"]}
    rows = []
    for name in (*data.SPLITS, "all"):
        own = [p["track_ids"] for p in playlists if name in (p["split"], "all")]
        used = {t for track_ids in own for t in track_ids}
        rows.append({"split": name, "playlists": len(own),
                     "mean_length": sum(map(len, own)) / max(1, len(own)),
                     "tracks": len(used), "warm": len(used & warm), "cold": len(used - warm)})
    return [*rows, {"split": "pool", "tracks": n_tracks, "warm": len(warm),
                    "cold": n_tracks - len(warm)}]


def print_tables(tracks, playlists, splits=(), counts=()):
    """Print what each split holds of playlists, and of dialogues that came with the data.

    tracks, playlists: lines of their files. splits, counts: as in `dialogue_table`.
    Returns: {"table_1": its rows, "dialogues": rows of `dialogue_table`, where there are any}.
    """
    tables = {"table_1": table_1(playlists, len(tracks))}
    *rows, pool = tables["table_1"]
    print_table(rows)
    print(f"candidate pool: {pool['tracks']:,} tracks, {pool['warm']:,} warm and {pool['cold']:,} "
          f"cold (in no training playlist)\n")
    if counts:
        tables["dialogues"] = dialogue_table(splits, counts)
        print_table(tables["dialogues"])
        print_known(tracks)
    return tables


# ---------------------------------------------------------------- the run's record

def fingerprint(strings):
    """16 hex digits that stand for many strings, so that a changed input is noticed."""
    return hashlib.sha256("\n".join(strings).encode("utf-8", "replace")).hexdigest()[:16]


def begin(args, writes=(), audio=()):
    """The run, not on record yet since the input must be checked first; None where all is done.

    audio: further files that a finished run has left; those of another run are removed.
    """
    writes = ["tracks.jsonl", "playlists.jsonl", *writes]
    run, state = runs.begin_run(args.data_dir, NAME, args, [], writes, args.resume, record=False)
    if state == "done" and all(path.is_file() for path in audio):
        print(f"{NAME}: already done (--no-resume does it again)")
        return None
    if state == "new":
        for path in audio:
            path.unlink(missing_ok=True)
    return run


def write_files(data_dir, run, files):
    """Put the run on record, now that its input is known to be good, and write {name: rows}.

    Removes what an earlier run of this script wrote and this one will not: an annotation file that
    stayed behind would be laid over the new tracks.
    """
    earlier = runs.read_run(data_dir, NAME)
    for name in set(earlier["writes"] if earlier else ()) - set(run["writes"]):
        (data_dir / name).unlink(missing_ok=True)
    runs.record_run(run)
    for name, rows in files.items():
        data.write_jsonl(data_dir / name, rows)


def write_dialogues(data_dir, run, tracks, playlists, dialogues, splits):
    """`write_files` where dialogues came with the data. splits: None for one that is left out."""
    files = {"tracks.jsonl": tracks, "playlists.jsonl": playlists}
    for name, file in DIALOGUES.items():
        files[file] = [d for d, split in zip(dialogues, splits, strict=True) if split == name]
    write_files(data_dir, run, files)


def finish(data_dir, run, tables, next_script, **facts):
    """Close the record; say what was written and what comes next. tables: from `print_tables`."""
    runs.finish_run(run, **tables, **facts)
    *_, every, pool = tables["table_1"]
    dialogues = ""
    if "dialogues" in tables:
        dialogues = (f", {tables['dialogues'][-1]['dialogues']:,} dialogues (leave out "
                     f"03_synthesize.py, which refuses to replace them)")
    print(f"wrote {pool['tracks']:,} tracks, {every['playlists']:,} playlists{dialogues} to "
          f"{data_dir}; next: python {next_script} --data-dir {data_dir}")


# ---------------------------------------------------------------- the four sources

def prepare_demo(args):
    """Make the fictional catalogue, its playlists and its audio."""
    from steps.prepare_data.demo import catalogue, render  # only this source needs soundfile
    tracks, playlists = catalogue.make_catalogue(args.n_tracks, args.n_playlists, args.seed)
    args.catalogue = fingerprint(json.dumps(row) for row in [*tracks, *playlists])
    jobs = [(track.pop("audio"), args.data_dir / track["audio_path"]) for track in tracks]
    run = begin(args, audio=[path for _, path in jobs])
    if run is None:
        return

    write_files(args.data_dir, run, {"playlists.jsonl": playlists})
    (args.data_dir / "audio").mkdir(exist_ok=True)
    render.render_all(jobs, args.workers)
    data.write_jsonl(args.data_dir / "tracks.jsonl", tracks)
    finish(args.data_dir, run, print_tables(tracks, playlists), "01_extract_embeddings.py")


def prepare_mpd(args):
    """Turn MPD slices into tracks.jsonl and playlists.jsonl."""
    problems = {}
    if args.require_audio and not args.audio_dir:
        raise SystemExit("--require-audio needs --audio-dir, the folder with the audio files")
    slices, annotations = mpd.find_slices(args.mpd_dir), mpd.annotation_files(args.annotations)
    audio = mpd.find_audio(args.audio_dir, args.data_dir, problems) if args.audio_dir else {}
    args.slices = fingerprint(f"{path.name} {path.stat().st_size}" for path in slices)
    hashes = [f"{name} {runs.file_hash(path)}" for name, path in annotations.items()]
    args.joined = fingerprint([*hashes, *audio.values()])
    run = begin(args, annotations)
    if run is None:
        return

    tracks, playlists = mpd.read(slices, audio, args.require_audio, args.min_count, args.min_length,
                                 problems)
    if len(playlists) < 10:
        raise SystemExit(f"{args.mpd_dir}: {len(playlists)} playlists are left; a split needs at "
                         f"least 10. Give more slices, or lower --min-count or --min-length")
    dates = np.array([playlist["modified_at"] for playlist in playlists], "datetime64[D]")
    days = np.where(np.isnat(dates), NO_DATE, dates.astype(int))
    if n_undated := int((days == NO_DATE).sum()):
        print(f"{n_undated:,} of {len(days):,} playlists have no modified_at: they are held out "
              f"last, by a seeded draw")
    split = split_by_date(days, at_most_a_tenth("--n-test", args.n_test, len(days)),
                          at_most_a_tenth("--n-valid", args.n_valid, len(days)), args.seed)
    for playlist, position in zip(playlists, split, strict=True):
        playlist["split"] = data.SPLITS[position]

    files = {"tracks.jsonl": tracks, "playlists.jsonl": playlists}
    track_ids, annotation_problems = {track["track_id"] for track in tracks}, {}
    for name, path in annotations.items():
        files[name] = mpd.read_annotations(path, track_ids, annotation_problems)
    print_problems(annotation_problems)
    tables = print_tables(tracks, playlists)
    write_files(args.data_dir, run, files)
    finish(args.data_dir, run, tables, "01_extract_embeddings.py",
           left_out=problems | annotation_problems)


def prepare_cpcd(args):
    """Turn CPCD's conversations into tracks, playlists and the dialogues of the three splits."""
    problems = {}
    if not args.cpcd_file.is_file():
        raise SystemExit(f"{args.cpcd_file} is missing; --cpcd-file takes a file of the dataset's "
                         f"conversations, such as dialogs.dev.train.jsonl")
    args.conversations = runs.file_hash(args.cpcd_file)
    run = begin(args, DIALOGUES.values())
    if run is None:
        return

    tracks, playlists, dialogues, splits, counts = cpcd.read(
        args.cpcd_file, args.n_valid, args.n_test, args.seed, problems)
    tables = print_tables(tracks, playlists, splits, counts)
    write_dialogues(args.data_dir, run, tracks, playlists, dialogues, splits)
    finish(args.data_dir, run, tables, "01_extract_embeddings.py", left_out=problems)


def prepare_talkplaydata(args):
    """Turn TalkPlayData's files into tracks, playlists, dialogues and embeddings."""
    problems, file_problems, vector_problems = {}, {}, {}
    paths = talkplaydata_files.find_files(args.parts)
    args.files = fingerprint(f"{path.name} {runs.file_hash(path)}" for path in paths)
    files = talkplaydata_files.sort_files(paths, file_problems)
    came = {modality for _, columns in files["vectors"] for modality in columns.values()}
    embeddings = [f"embeddings/{modality}.npy" for modality in MODALITIES if modality in came]
    run = begin(args, [*DIALOGUES.values(), *embeddings])
    if run is None:
        return

    print_problems(file_problems)  # at once: they tell why conversations may be missing
    tracks, playlists, dialogues, splits, counts = talkplaydata.read(
        files, args.n_valid, args.played_only, args.seed, problems)
    tables = print_tables(tracks, playlists, splits, counts)
    write_dialogues(args.data_dir, run, tracks, playlists, dialogues, splits)
    made = talkplaydata_files.write_embeddings(
        args.data_dir / "embeddings", files["vectors"], [track["track_id"] for track in tracks],
        vector_problems)
    problems = file_problems | problems | vector_problems
    finish(args.data_dir, run, tables, "02_quantize.py", left_out=problems)
    if missing := " ".join(modality for modality in MODALITIES if modality not in made):
        print(f"before it, for what did not come with the data: python 01_extract_embeddings.py "
              f"--data-dir {args.data_dir} --modalities {missing}")


# ---------------------------------------------------------------- command line

SOURCES = {"demo": prepare_demo, "mpd": prepare_mpd, "cpcd": prepare_cpcd,
           "talkplaydata": prepare_talkplaydata}


def parse_args(argv=None):
    about = "Raw data -> tracks.jsonl and playlists.jsonl, with the split."
    parser = argparse.ArgumentParser(allow_abbrev=False, description=about)
    sources = parser.add_subparsers(dest="source", required=True)

    def add_source(name, about):
        source = sources.add_parser(name, allow_abbrev=False, help=about, description=about)
        source.add_argument("--data-dir", type=Path, default=Path(f"data/{name}"),
                            help=f"folder to write to (default data/{name})")
        add_shared(source, "seed", "resume")
        return source.add_argument

    add = add_source("demo", "a fictional catalogue, made here")
    add("--n-tracks", type=int, default=1000, help="tracks to make, 40 or more (default 1000)")
    add("--n-playlists", type=int, default=2500,
        help="playlists to make, 20 or more (default 2500)")
    add("--workers", type=int, default=os.cpu_count() or 1,
        help="processes that render audio (default: one per core)")

    add = add_source("mpd", "the Million Playlist Dataset")
    add("--mpd-dir", type=Path, required=True, help="folder with mpd.slice.*.json")
    add("--annotations", nargs="+", default=[], metavar="FILE",
        help="JSONL files: track_id and any fields of tracks.jsonl, year, decade (default none)")
    add("--audio-dir", type=Path,
        help="folder with ID.mp3, .flac, .ogg or .wav, nested or not (default none)")
    add("--require-audio", action="store_true", help="drop tracks without an audio file")
    add("--min-count", type=int, default=1, metavar="N",
        help="drop tracks in fewer than N playlists of all splits (default 1: keep all)")
    add("--min-length", type=int, default=5, metavar="N",
        help="drop playlists with fewer than N tracks left (default 5)")
    for flag, kind in (("--n-test", "test"), ("--n-valid", "validation")):
        add(flag, type=int, default=1000,
            help=f"{kind} playlists, at most a tenth (default 1000, 0: none)")

    add = add_source("cpcd", "the Conversational Playlist Curation Dataset")
    add("--cpcd-file", type=Path, required=True, metavar="FILE",
        help="its conversations: dialogs.dev.train.jsonl")
    add("--n-test", type=int, default=40, help="test conversations (default 40)")
    add("--n-valid", type=int, default=40, help="validation conversations (default 40)")

    add = add_source("talkplaydata", "TalkPlayData-1, -2 or the Music-CRS challenge set")
    add("--parts", required=True, nargs="+", metavar="PART", help="conversations, tracks, "
        "embeddings: files, folders, or ids on the Hugging Face hub (talkpl-ai/...)")
    add("--n-valid", type=int, default=500,
        help="training playlists (TalkPlayData-1) or sessions whose dialogues become validation "
             "ones, where none are published (default 500)")
    add("--played-only", action="store_true",
        help="keep only tracks that a dialogue plays (default: all)")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    least = 0 if args.source == "mpd" else 1
    check_ranges(args, n_tracks=40, n_playlists=20, workers=1, min_count=1, min_length=1,
                 n_test=least, n_valid=least)
    SOURCES[args.source](args)


if __name__ == "__main__":
    main()
