"""runs/<script>.json: what a script was asked to do, what it read and what it wrote.

A script opens its record with `begin_run` and closes it with `finish_run`. So a rerun skips what is
finished, goes on with what is half done, and refuses when an argument or an input has changed.

A script that depends on what another one did reads that record with `read_run` or
`check_unchanged`. Scripts look at each other's records in no other way (data/README.md, "runs").
"""

import hashlib
import json
import os
import platform
import resource
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from common import data

PLACE = ("data_dir", "resume", "device", "workers")  # arguments that do not change a result
PACKAGES = ("torch", "transformers", "numpy", "scikit-learn", "gensim", "librosa", "bm25s")
WHOLE_HASH_BYTES = 256 * 2**20  # a larger file is hashed by its size and as many bytes


def begin_run(data_dir, name, args, reads, writes, resume=True, record=True, ignore=PLACE):
    """Open runs/<name>.json.

    args: the argparse namespace.
    reads, writes: files, relative to data_dir. A read file that is missing is skipped here, since
        its reader names the mend.
    record: whether to write the record now. False where the input must be checked first, and on
        ranks other than 0; call `record_run` later.
    ignore: arguments that do not change the result.

    Returns: (run, state). state is "new", "resume" (begun before with the same arguments and
        inputs) or "done" (finished, and every output is as it was left).
    Raises SystemExit: resume is on and an argument or an input has changed since.
    """
    data_dir = Path(data_dir)
    arguments = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()
                 if k not in ignore}
    run = {
        "script": name,
        "path": str(data_dir / "runs" / f"{name}.json"),
        "state": "running",
        "arguments": json.loads(json.dumps(arguments)),  # as they will be read back
        "inputs": {str(r): file_hash(data_dir / r) for r in reads if (data_dir / r).is_file()},
        "writes": [str(w) for w in writes],
        "versions": package_versions(),
        "seconds": 0.0,
    }
    old = read_run(data_dir, name) if resume else None
    state = "new"
    if old is not None:
        refuse_changes(data_dir, name, run, old)
        whole = all((data_dir / w).is_file() and file_hash(data_dir / w) == h
                    for w, h in old.get("outputs", {}).items())
        state = "done" if old["state"] == "finished" and whole else "resume"
        run["seconds"] = old.get("seconds", 0.0)
    if state != "done" and record:
        record_run(run)
    run["_started"] = time.time()
    return run, state


def refuse_changes(data_dir, name, run, old):
    """Raises SystemExit: an argument or an input of `run` is not that of the earlier run `old`."""
    gone = sorted(set(old["inputs"]) - set(run["inputs"]))
    if gone:
        raise SystemExit(f"{data_dir / gone[0]} is missing; {name} read it when it ran here. Make "
                         f"it again with the script that data/README.md names")
    for what, now, before in (("argument", run["arguments"], old["arguments"]),
                              ("input", run["inputs"], old["inputs"])):
        changed = [f"{k} (was {before.get(k)}, is {now.get(k)})" for k in sorted({*now, *before})
                   if now.get(k) != before.get(k)]
        if changed:
            raise SystemExit(f"{name} has been run in {data_dir} with another {what}: "
                             f"{', '.join(changed)}. Start it afresh with --no-resume (its output "
                             f"is replaced), or use another --data-dir")


def record_run(run):
    """Write the record of a run that has begun; `begin_run` does it unless record=False."""
    row = {k: v for k, v in run.items() if k != "path" and not k.startswith("_")}
    data.write_text(run["path"], json.dumps(row, indent=1) + "\n")


def finish_run(run, **facts):
    """Close runs/<name>.json: hashes of the outputs, time (s, over all tries), peak memory (GiB).

    facts: anything else that is worth keeping, by name.
    """
    data_dir = Path(run["path"]).parent.parent
    run["state"] = "finished"
    run["outputs"] = {w: file_hash(data_dir / w) for w in run["writes"] if (data_dir / w).is_file()}
    run["seconds"] = round(run["seconds"] + time.time() - run.pop("_started"), 1)
    run["peak_memory_gib"] = round(peak_memory_gib(), 2)
    run.update(facts)
    record_run(run)
    print(f"{run['script']}: {run['seconds']:.0f} s, peak memory {run['peak_memory_gib']:.1f} GiB")


def read_run(data_dir, name):
    """The record of a script's run, or None where the script has not been run there.

    Raises SystemExit: the file is not JSON.
    """
    path = Path(data_dir) / "runs" / f"{name}.json"
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError:
        raise SystemExit(f"{path}: not JSON. Delete it, or start afresh with --no-resume") from None


def check_unchanged(data_dir, name, file, mend):
    """Check that a file is still as the script `name` read it. No record, no check.

    file: relative to data_dir. mend: what to do if it has changed, the end of the message.
    Raises SystemExit: it has changed.
    """
    run = read_run(data_dir, name)
    before = run["inputs"].get(file) if run else None
    if before is not None and before != file_hash(Path(data_dir) / file):
        raise SystemExit(f"{Path(data_dir) / file} has changed since {name} read it: {mend}")


def file_hash(path):
    """The first 16 hex digits of a file's sha256.

    Above 256 MiB: of its size and 256 blocks of 1 MiB, evenly spaced from the first to the last.
    """
    digest = hashlib.sha256()
    size = os.path.getsize(path)
    with open(path, "rb") as f:
        if size <= WHOLE_HASH_BYTES:
            while block := f.read(2**20):
                digest.update(block)
        else:
            digest.update(str(size).encode())
            for block in range(256):
                f.seek((size - 2**20) * block // 255)
                digest.update(f.read(2**20))
    return digest.hexdigest()[:16]


def peak_memory_gib():
    """Largest resident memory of this process and of its largest child so far, in GiB."""
    unit = 2**30 if sys.platform == "darwin" else 2**20  # ru_maxrss: bytes on macOS, KiB on Linux
    return sum(resource.getrusage(who).ru_maxrss
               for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / unit


def package_versions():
    """{package: version} of those packages that are installed, and of Python."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
