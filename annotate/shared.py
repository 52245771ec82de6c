"""What the annotators share: flags, which tracks they hear, reading in worker processes, the journal, the file.

An annotator is a script with two functions: one that reads an audio file, in a worker process, and one that makes
annotations of a list of what was read. `annotate` does the rest. The journal, `annotations/<name>.jsonl.part`, has a line
for each group of tracks: a killed run loses the group in work and nothing else, and a half-written line is done again.
"""

import argparse
import json
import multiprocessing
import os
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from tqdm import tqdm

from common import data, runs
from steps.extract_embeddings.audio_workers import start_worker, try_read

ANNOTATORS = ("tempo_key", "lyrics", "captions")  # none fills a field of another's


def make_parser(description, seconds):
    """The flags of every annotator. seconds: the default of --seconds."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description=description)
    add = parser.add_argument
    add("--data-dir", type=Path, default=Path("data/demo"), help="folder of the data (default data/demo)")
    add("--seconds", type=float, default=seconds, help=f"how much of a track is heard, from its middle (default {seconds:g}; 0 = all)")
    add("--overwrite", action="store_true", help="also tracks that have it already: replace it")
    add("--shard", default="1/1", help="only each n-th track, for several GPUs or machines: 1/8 to 8/8, a file for each (default 1/1)")
    add("--workers", type=int, default=os.cpu_count(), help="processes that read audio (default: as many as cores)")
    add("--limit", type=int, default=0, help="tracks, for a trial; 0 = all (default)")
    add("--resume", action=argparse.BooleanOptionalAction, default=True, help="go on with a run that was cut (default); "
        "--no-resume starts afresh")
    return parser


def check_args(args):
    """Raises SystemExit: a flag of make_parser's has a value that it cannot have."""
    numbers = args.shard.split("/")
    if len(numbers) != 2 or not all(n.isdecimal() for n in numbers) or not 1 <= int(numbers[0]) <= int(numbers[1]):
        raise SystemExit(f"--shard {args.shard}: expected is which part of how many, such as 1/8 or 8/8")
    if not (args.seconds == 0 or args.seconds >= 1):
        raise SystemExit(f"--seconds {args.seconds:g}: 0 (the whole file) or a number from 1 on is expected")
    for name, least in (("workers", 1), ("limit", 0), ("batch_size", 1)):
        if getattr(args, name, least) < least:
            raise SystemExit(f"--{name.replace('_', '-')} {getattr(args, name)}: a number from {least} on is expected")


def choose_tracks(tracks, fields, shard, overwrite, limit):
    """The tracks of a shard ("1/8") that have audio and lack one of the fields; all that have audio with `overwrite`."""
    part, parts = map(int, shard.split("/"))
    chosen = [track for track in tracks[part - 1::parts]
              if track["audio_path"] and (overwrite or not all(track[field] for field in fields))]
    return chosen[:limit or None]


def make_rows(tracks, found, describe, fields, overwrite):
    """Annotations of a group of tracks: list of dicts.

    found: for each track, what try_read returns. describe: function of a list of (track_id, what was read) -> list of dicts.
    What the catalogue knows is left as it is, unless `overwrite`; a file of no use has the fields null and the reason.
    """
    readable = [(track["track_id"], sound) for track, (sound, _) in zip(tracks, found) if sound is not None]
    described = dict(zip([track_id for track_id, _ in readable], describe(readable) if readable else []))
    rows = []
    for track, (_, reason) in zip(tracks, found):
        row = described.get(track["track_id"], {"failed": reason})
        known = {field for field in fields if track[field] and not overwrite}
        rows.append({"track_id": track["track_id"]} | {field: None for field in fields if field not in known}
                    | {field: value for field, value in row.items() if field not in known})
    return rows


def write_journal(part, tracks, data_dir, read, describe, fields, overwrite, group, workers):
    """Append a line for each group of tracks that the journal does not have. Arguments as `annotate`'s."""
    done = data.keep_whole_lines(part) * group

    def start_reading(first):
        paths = [str(Path(data_dir) / track["audio_path"]) for track in tracks[first:first + group]]
        return pool.map(try_read, [read] * len(paths), paths)

    # spawn, not fork: a forked process may hang in a library that was running threads
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), start_worker) as pool, \
            open(part, "a", encoding="utf-8", errors="replace") as f, tqdm(total=len(tracks), initial=done, unit="track") as bar:
        ahead = start_reading(done)  # the files of the next group are read while this one is described
        for first in range(done, len(tracks), group):
            found, ahead = list(ahead), start_reading(first + group)
            rows = make_rows(tracks[first:first + group], found, describe, fields, overwrite)
            f.write(json.dumps(rows, ensure_ascii=False) + "\n")
            f.flush()
            bar.update(len(rows))


def read_journal(part):
    """All rows of a journal, one by one."""
    with open(part, encoding="utf-8", errors="replace") as f:
        for line in f:
            yield from json.loads(line)


def annotate(name, fields, args, read, load, group):
    """Annotate the tracks that lack one of `fields`; write annotations/<name>.jsonl (with --shard <name>-1of8.jsonl).

    read: function of a path, called in worker processes; a ValueError says why the file is of no use. load: loads a model
    and returns describe, which see make_rows. group: tracks that are described together.
    """
    check_args(args)
    name += "" if args.shard == "1/1" else f"-{args.shard.replace('/', 'of')}"
    output = f"annotations/{name}.jsonl"
    path = args.data_dir / output
    part = path.with_name(path.name + ".part")
    if getattr(args, "model", None):
        args.weights = " ".join(runs.file_hash(path) for path in sorted(Path(args.model).glob("*.safetensors")))  # of a folder
    others = sorted(found.name for found in path.parent.glob("*.jsonl") if not found.name.startswith(ANNOTATORS))
    run, state = runs.begin_run(args.data_dir, name, args, ["tracks.jsonl", *(f"annotations/{other}" for other in others)], [output],
                                args.resume, record=False)
    if state == "done":
        print(f"{name}: already done, nothing changed")
        return
    tracks = data.load_tracks(args.data_dir, leave_out=path.name)  # what an earlier run wrote there would pass for known
    chosen = choose_tracks(tracks, fields, args.shard, args.overwrite, args.limit)
    print(f"{name}: {len(chosen):,} of {len(tracks):,} tracks to be heard; {sum(not track['audio_path'] for track in tracks):,} have no "
          f"audio_path, {sum(all(track[field] for field in fields) for track in tracks):,} have {' and '.join(fields)} already")
    describe = load()
    if state == "new":  # only now: what the run needs is there
        part.unlink(missing_ok=True)
    runs.record_run(run)
    path.parent.mkdir(exist_ok=True)
    write_journal(part, chosen, args.data_dir, read, describe, fields, args.overwrite, group, args.workers)
    data.write_jsonl(path, read_journal(part))

    filled, failed = Counter(), Counter()
    for row in read_journal(part):
        filled.update(field for field in fields if row.get(field))
        failed.update([row["failed"]] if "failed" in row else [])
    runs.finish_run(run, filled=dict(filled), failed=dict(failed))
    part.unlink()
    print(f"wrote {path}: {', '.join(f'{field} of {filled[field]:,}' for field in fields)} tracks; {sum(failed.values()):,} files could "
          f"not be used{f' {dict(failed)}' if failed else ''}; next: python 01_extract_embeddings.py --data-dir {args.data_dir}")
