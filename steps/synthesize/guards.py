"""What 03_synthesize.py refuses: dialogues against the rules, and to overwrite what must stay."""

import errno
from contextlib import contextmanager

from filelock import FileLock, Timeout

from common import data, runs

WRITERS = ("simulate", "gemini", "local")
ACCESS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)


def problems(turns, sampled, negatives, least, most):
    """What is wrong with a dialogue, whoever wrote it: a list of sentences, empty if it is fine.

    turns: list of {query, music, response, rejected}
    sampled: ids of the tracks it was made from; at least half of them must be played
    negatives: ids of the tracks that may be played and rejected
    least, most: number of turns
    """
    broken = []
    played = [turn["music"] for turn in turns]
    n_sampled = len(set(played) & set(sampled))
    if 2 * n_sampled < len(sampled):
        broken.append(f"less than half: {n_sampled} of {len(sampled)} tracks are played")
    if not least <= len(turns) <= most:
        broken.append(f"length: {len(turns)} turns, not {least} to {most}")
    if len(set(played)) < len(played):
        broken.append("repeated id: a track is played twice")
    for number, turn in enumerate(turns, 1):
        music = turn["music"]
        if not turn["query"].strip() or not turn["response"].strip():
            broken.append(f"empty: turn {number} has no query or no answer")
        if turn["rejected"] and music not in negatives:
            broken.append(f"not a negative: turn {number} rejects {music}, which is not in the "
                         f"negative set")
        if not turn["rejected"] and music not in sampled:
            broken.append(f"unknown id: turn {number} plays {music}, which is not in the playlist")
        if turn["rejected"] and (number == len(turns) or turns[number]["rejected"]):
            broken.append(f"two rejections in a row: turn {number} is rejected and no accepted "
                         f"track follows")
    return broken


# ---------------------------------------------------------------- the folder

def dialogue_paths(folder):
    return {split: folder / f"dialogues_{split}.jsonl" for split in data.SPLITS}


def journal_paths(folder):
    """The answers of language models. They stay: another number of dialogues makes use of them."""
    return {split: folder / f"answers_{split}.jsonl" for split in data.SPLITS}


@contextmanager
def folder_lock(folder):
    """Within it only this process writes the folder's dialogues; SystemExit if another does."""
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
                         f"rights; the same command goes on from what is written") from error


def begin_run(args, ignore, more_writes=()):
    """runs.begin_run for 03_synthesize.py; the record is not written yet.

    ignore: arguments that change no dialogue; more_writes: files besides the dialogues
    Raises SystemExit: the folder has dialogues that must not be replaced.
    """
    folder = args.data_dir
    refuse_others(folder, args.command, args.resume)
    reads = [*data.catalogue_files(folder), "playlists.jsonl"]
    writes = [*(path.name for path in dialogue_paths(folder).values()), *more_writes]
    return runs.begin_run(folder, "03_synthesize", args, reads, writes, args.resume,
                          record=False, ignore=ignore)


def refuse_others(folder, writer, resume):
    """Raises SystemExit: the folder has dialogues or answers of others than `writer`."""
    record = folder / "runs" / "03_synthesize.json"
    for path in filter(lambda path: path.is_file(), dialogue_paths(folder).values()):
        _, first = next(data.read_jsonl(path, "the script that wrote it"), (1, {}))
        before = (first.get("meta") or {}).get("backend")
        if before not in WRITERS or not record.is_file():
            why = f"{record} is missing"
            if before not in WRITERS:
                why = f"its meta says backend: {before}"
            raise SystemExit(f"{path} was not made by 03_synthesize here ({why}) and is not "
                             f"overwritten. Leave 03 out, or delete the file to have it replaced")
        if resume and before != writer:
            raise SystemExit(f"{folder} has dialogues by {before}; one folder holds one set. Copy "
                             f"tracks.jsonl and playlists.jsonl to another --data-dir (or replace "
                             f"the dialogues with --no-resume)")
    for journal in journal_paths(folder).values():
        if resume and journal.is_file() and not record.is_file():
            raise SystemExit(f"{journal} holds answers that may have been paid for, but {record} "
                             f"is missing: put it back, or delete them with --no-resume")


def refuse_changed(folder):
    """Raises SystemExit: going on would overwrite changed dialogues, or pay for them twice."""
    outputs = runs.read_run(folder, "03_synthesize").get("outputs", {})
    for path, journal in zip(dialogue_paths(folder).values(), journal_paths(folder).values(),
                             strict=True):
        if path.is_file() and not journal.is_file():
            raise SystemExit(f"{journal} is missing, from which {path.name} was made. Put it back, "
                             f"or ask, and pay, for all of it anew with --no-resume")
        if path.is_file() and outputs.get(path.name) not in (None, runs.file_hash(path)):
            raise SystemExit(f"{path} is not as 03_synthesize left it and is not overwritten. Put "
                             f"it back, or delete it: anew from {journal.name} it costs nothing")


def remove_old(folder):
    """Delete what an earlier run left: dialogues, answers, half-written files."""
    paths = [*dialogue_paths(folder).values(), folder / "dialogues_rejected.jsonl"]
    parts = [path.with_name(path.name + ".part") for path in paths]
    for path in [*paths, *parts, *journal_paths(folder).values()]:
        path.unlink(missing_ok=True)
