"""Embeddings made chunk by chunk, so that a killed run can go on, by one process or by several.

All processes that torchrun started write <modality>.part.npy through a memory map, each its own
chunks. Each keeps a journal with a line for every chunk that is on disk: <modality>.progress.jsonl,
or <modality>.progress.<rank>.jsonl from the second process on. The next run, of any number of
processes, shares out the chunks that no journal has.
"""

import json
import os

import numpy as np
from tqdm import tqdm

from common import data
from common.process import agree, current_process, wait_for_all


def check_one_machine():
    """Raises SystemExit: torchrun has started processes on several machines."""
    world = os.environ.get("WORLD_SIZE")
    if os.environ.get("LOCAL_WORLD_SIZE", world) != world:
        raise SystemExit("torchrun --nnodes: all processes write one memory map, so they must be "
                         "on one machine. Accepted: torchrun --nproc-per-node N")


def journals(folder, modality):
    return sorted(folder.glob(f"{modality}.progress*.jsonl"))


def finished_chunks(folder, modality):
    """The chunks that are on disk, in row order: dicts {first, stop, notes} of rows first:stop."""
    finished = {}
    for path in journals(folder, modality):
        with open(path, encoding="utf-8", errors="replace") as f:
            for line in f:
                if line.endswith("\n"):  # else a kill has cut it, and its chunk is made again
                    chunk = json.loads(line)
                    finished[chunk["first"]] = chunk
    return [chunk for _, chunk in sorted(finished.items())]


def forget_progress(folder, modality):
    for path in journals(folder, modality):
        path.unlink()


def is_finished(folder, modality, n_tracks):
    """Whether an earlier, killed try of this run has finished the modality."""
    if (folder / f"{modality}.part.npy").is_file() or not (folder / f"{modality}.npy").is_file():
        return False
    return n_tracks == sum(chunk["stop"] - chunk["first"]
                           for chunk in finished_chunks(folder, modality))


def begin_part(folder, modality, shape, size):
    """Make <modality>.part.npy, unless a killed run has left it, and join all journals into one.

    size: rows per chunk. Returns: the first rows of the chunks that are still to do.
    """
    path = folder / f"{modality}.part.npy"
    finished = finished_chunks(folder, modality) if path.is_file() else []
    if not finished:
        np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)

    # Write the joined journal before the others go: a kill in between loses nothing.
    joined = folder / f"{modality}.progress.jsonl"
    data.write_jsonl(joined, finished)
    for journal in journals(folder, modality):
        if journal != joined:
            journal.unlink()
    return sorted({*range(0, shape[0], size)} - {chunk["first"] for chunk in finished})


def fill_in_chunks(folder, modality, shape, size, encode, start=lambda rows: rows):
    """Fill <modality>.part.npy, (N, D) float32, from where a killed run stopped.

    size: rows per chunk.
    encode: function of start(rows), rows a slice -> ((n, D) float32, list of notes).
    start: called one chunk ahead, for work that others can do meanwhile.
    Returns: the path of the file and, in the first process, the notes of all chunks in row order.
    """
    rank, world = current_process()
    todo = agree(lambda: begin_part(folder, modality, shape, size))
    mine = [slice(first, min(first + size, shape[0])) for first in todo[rank::world]]
    path = folder / f"{modality}.part.npy"
    array = np.lib.format.open_memmap(path, mode="r+")
    journal = f"{modality}.progress.{rank}.jsonl" if rank else f"{modality}.progress.jsonl"
    started = [start(rows) for rows in mine[:1]]

    n_rows = sum(rows.stop - rows.start for rows in mine)
    with (tqdm(total=n_rows, desc=modality, unit="track", disable=rank > 0) as bar,
          open(folder / journal, "a", encoding="utf-8") as f):
        for i, rows in enumerate(mine):
            started += [start(ahead) for ahead in mine[i + 1:i + 2]]
            array[rows], notes = encode(started.pop(0))
            array.flush()  # the chunk is on disk before the journal says so
            f.write(json.dumps({"first": rows.start, "stop": rows.stop, "notes": notes}) + "\n")
            f.flush()
            bar.update(rows.stop - rows.start)

    wait_for_all()
    if rank:  # only the first process reads the journals now: it may soon delete them
        return path, []
    return path, [note for chunk in finished_chunks(folder, modality) for note in chunk["notes"]]
