"""What the annotators share: flags, the choice of tracks, reading in workers, the journal.

An annotator is two functions: `read` reads an audio file, in a worker process; `describe` makes
annotations of a group of tracks from what was read. `annotate` does the rest. The journal,
annotations/<name>.jsonl.part, has one line per group: a killed run loses only the group in work.
"""

import argparse
import json
import os
import re
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from common import data, runs
from common.flags import add_shared, check_ranges
from steps.extract_embeddings.audio import audio_pool, start_reading

ANNOTATORS = ("tempo_key", "lyrics", "captions")  # none fills a field that another one fills


def make_parser(description, seconds):
    """The flags of every annotator. seconds: the default of --seconds."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description=description)
    add_shared(parser, "data-dir", "resume")
    add = parser.add_argument
    add("--seconds", type=float, default=seconds, help=f"how much of a track is heard, from its "
        f"middle (default {seconds:g}; 0 = all, but at most 50 minutes of stereo)")
    add("--overwrite", action="store_true", help="also tracks that have it already: replace it")
    add("--shard", default="1/1", help="each n-th track, a file each: 1/8 to 8/8 (default 1/1)")
    add("--workers", type=int, default=os.cpu_count(), help="that read audio (default: cores)")
    add("--limit", type=int, default=0, help="tracks, for a trial; 0 = all (default)")
    return parser


def choose_tracks(tracks, fields, shard, overwrite, limit):
    """The tracks of a shard ("1/8") that have audio and lack a field; with `overwrite`, all."""
    number, shards = map(int, shard.split("/"))
    chosen = [track for track in tracks[number - 1::shards] if track["audio_path"]
              and (overwrite or not all(track[field] for field in fields))]
    return chosen[:limit or None]


def make_rows(tracks, results, describe, fields, overwrite):
    """Annotations of a group of tracks, list of dicts, from what try_read returns per track.

    A field that the catalogue knows is left out, unless `overwrite`. If a file could not be used,
    the fields are null and `failed` is the reason.
    """
    sounds = [(track["track_id"], sound)
              for track, (sound, _) in zip(tracks, results, strict=True) if sound is not None]
    described = iter(describe(sounds) if sounds else [])
    rows = []
    for track, (sound, reason) in zip(tracks, results, strict=True):
        row = {"track_id": track["track_id"]} | dict.fromkeys(fields)
        row |= {"failed": reason} if sound is None else next(described)
        rows.append({field: value for field, value in row.items()
                     if overwrite or field not in fields or not track[field]})
    return rows


def write_journal(journal, tracks, args, read, describe, fields, group):
    """Append a line for each group of tracks that the journal lacks. Arguments as `annotate`'s."""
    done = data.keep_whole_lines(journal) * group
    with (audio_pool(args.workers) as pool,
          open(journal, "a", encoding="utf-8", errors="replace") as f,
          tqdm(total=len(tracks), initial=done, unit="track") as bar):
        # The files of the next group are read while this group is described.
        ahead = start_reading(pool, read, args.data_dir, tracks[done:done + group])
        for first in range(done, len(tracks), group):
            last = first + group
            results = list(ahead)
            ahead = start_reading(pool, read, args.data_dir, tracks[last:last + group])
            rows = make_rows(tracks[first:last], results, describe, fields, args.overwrite)
            f.write(json.dumps(rows, ensure_ascii=False) + "\n")
            f.flush()
            bar.update(len(rows))


def annotate(name, fields, args, load, group):
    """Annotate the tracks that lack one of `fields`: write annotations/<name>.jsonl.

    args: the flags of `make_parser`, and perhaps --model. group: tracks described together.
    load: loads a model and returns `read`, a function of a path, whose ValueError says why a file
    cannot be used, and `describe`, a function of a list of (track_id, sound), to a list of dicts.
    """
    check_ranges(args, workers=1, limit=0, batch_size=1, max_new_tokens=1, seconds=0)
    shard = re.fullmatch(r"(\d+)/(\d+)", args.shard)
    if not shard or not 1 <= int(shard[1]) <= int(shard[2]):
        raise SystemExit(f"--shard {args.shard}: which part of how many, such as 1/8 or 8/8")
    name += "" if args.shard == "1/1" else f"-{args.shard.replace('/', 'of')}"
    path = args.data_dir / "annotations" / f"{name}.jsonl"
    journal = path.with_name(path.name + ".part")
    if getattr(args, "model", None):  # if it is a folder, other weights there are a change
        weights = sorted(Path(args.model).glob("*.safetensors"))
        args.weights = " ".join(runs.file_hash(file) for file in weights)
    reads = data.catalogue_files(args.data_dir, leave_out=ANNOTATORS)
    run, state = runs.begin_run(args.data_dir, name, args, reads, [f"annotations/{path.name}"],
                                args.resume, record=False)
    if state == "done":
        print(f"{name}: already done (--no-resume does it again)")
        return

    # What an earlier run wrote to this file must not pass for known.
    tracks = data.load_tracks(args.data_dir, leave_out=path.name)
    chosen = choose_tracks(tracks, fields, args.shard, args.overwrite, args.limit)
    print(f"{name}: {len(chosen):,} of {len(tracks):,} tracks to be heard; "
          f"{sum(not track['audio_path'] for track in tracks):,} have no audio_path")

    # Load the model before anything is deleted: it may be missing.
    read, describe = load()
    if state == "new":
        journal.unlink(missing_ok=True)
    runs.record_run(run)
    path.parent.mkdir(exist_ok=True)
    write_journal(journal, chosen, args, read, describe, fields, group)

    with open(journal, encoding="utf-8", errors="replace") as f:
        data.write_jsonl(path, (row for line in f for row in json.loads(line)))
    rows = [row for _, row in data.read_jsonl(path, "")]
    filled = {field: sum(bool(row.get(field)) for row in rows) for field in fields}
    failed = Counter(row["failed"] for row in rows if "failed" in row)
    runs.finish_run(run, filled=filled, failed=failed)
    journal.unlink()
    print(f"wrote {path}: {', '.join(f'{field} of {n:,}' for field, n in filled.items())} tracks; "
          f"{failed.total():,} files could not be used {dict(failed) or ''}; next: python "
          f"01_extract_embeddings.py --data-dir {args.data_dir}")
