"""What may be overwritten in a data folder, and by whom: the refusals of 03_synthesize.py."""

import errno
from contextlib import contextmanager

from filelock import FileLock, Timeout

from common import data, runs

WRITERS = ("simulate", "gemini", "local")
ACCESS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)


def dialogue_paths(folder):
    return {split: folder / f"dialogues_{split}.jsonl" for split in data.SPLITS}


def journal_paths(folder):
    """The answers of language models. They stay: another number of dialogues makes use of them."""
    return {split: folder / f"answers_{split}.jsonl" for split in data.SPLITS}


@contextmanager
def folder_lock(folder):
    """Within it this process is the only one that writes the folder's dialogues.

    Raises SystemExit: another process does, or something cannot be written.
    """
    lock = folder / "runs" / "03_synthesize.lock"
    try:
        lock.parent.mkdir(exist_ok=True)
        with FileLock(lock, timeout=0):
            yield
    except Timeout:
        raise SystemExit(f"another 03_synthesize.py is at work in {folder}; wait for it to end, or "
                         f"give another --data-dir") from None
    except OSError as error:
        if error.errno not in ACCESS:
            raise
        raise SystemExit(f"{error.filename or folder}: {error.strerror}. Make room or mend its "
                         f"rights, or give another --data-dir; what is written is kept, and the "
                         f"same command goes on from there") from error


def begin_run(args, ignore, more_writes=()):
    """runs.begin_run for 03_synthesize.py; the record is not written yet.

    ignore: arguments that change no dialogue
    more_writes: files besides the dialogues
    Raises SystemExit: the folder has dialogues that must not be replaced.
    """
    folder = args.data_dir
    refuse_others(folder, args.command, args.resume)
    reads = [*data.catalogue_files(folder), "playlists.jsonl"]
    writes = [*(path.name for path in dialogue_paths(folder).values()), *more_writes]
    return runs.begin_run(folder, "03_synthesize", args, reads, writes, args.resume,
                          record=False, ignore=ignore)


def refuse_others(folder, writer, resume):
    """Raises SystemExit: the folder has dialogues or answers that must not be lost.

    Those are dialogues from an adapter of 00, from elsewhere, or by another writer, and answers
    without a record of what they were asked for.

    writer: the subcommand, of WRITERS
    """
    record = folder / "runs" / "03_synthesize.json"
    for path in dialogue_paths(folder).values():
        if not path.is_file():
            continue
        _, first = next(data.read_jsonl(path, "the script that wrote it"), (1, {}))
        before = (first.get("meta") or {}).get("backend")
        if before not in WRITERS or not record.is_file():
            why = f"{record} is missing"
            if before not in WRITERS:
                why = f"its meta says backend: {before}"
            raise SystemExit(f"{path} was not made by 03_synthesize here ({why}) and is not "
                             f"overwritten. Leave 03 out and go on with python 04_train.py "
                             f"--data-dir {folder}, or give another --data-dir; to have it "
                             f"replaced, delete it")
        if resume and before != writer:
            raise SystemExit(f"{folder} has dialogues by {before}; one folder holds one set. Copy "
                             f"tracks.jsonl and playlists.jsonl to another folder and name it with "
                             f"--data-dir (--no-resume replaces those here)")
    for journal in journal_paths(folder).values():
        if resume and journal.is_file() and not record.is_file():
            raise SystemExit(f"{journal} holds answers that may have been paid for, but {record} "
                             f"is missing: put it back, give another --data-dir, or start afresh "
                             f"with --no-resume, which deletes them")


def refuse_changed(folder):
    """Raises SystemExit: going on would overwrite changed dialogues, or pay for them twice."""
    outputs = runs.read_run(folder, "03_synthesize").get("outputs", {})
    journals = journal_paths(folder)
    for split, path in dialogue_paths(folder).items():
        if not path.is_file():
            continue
        if not journals[split].is_file():
            raise SystemExit(f"{journals[split]} is missing, from which {path.name} was made. "
                             f"Going on would ask, and pay, for all of it anew: put the file back, "
                             f"or say so with --no-resume")
        now = runs.file_hash(path)
        if outputs.get(path.name, now) != now:
            raise SystemExit(f"{path} is not as 03_synthesize left it and is not overwritten. Put "
                             f"the file back, or delete it: it is then written anew from "
                             f"{journals[split].name}, which costs nothing (--no-resume would pay "
                             f"again)")


def remove_old(folder):
    """Delete what an earlier run left: dialogues, answers, half-written files."""
    paths = dialogue_paths(folder).values()
    parts = [path.with_name(path.name + ".part") for path in paths]
    aside = folder / "dialogues_rejected.jsonl"
    for path in [*paths, *parts, *journal_paths(folder).values(), aside]:
        path.unlink(missing_ok=True)
