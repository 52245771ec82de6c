"""Embeddings made chunk by chunk, by one process or by several that torchrun started, so that a killed run can go on.

All processes write <modality>.part.npy through a memory map, each its own chunks, so nothing has to be merged and
no process holds more than a chunk (and, of audio, the next one). Each keeps a journal, <modality>.progress.jsonl
(others than the first <modality>.progress.<rank>.jsonl): a line for every chunk that is on disk. The next run, of
however many processes, shares out the chunks that no journal has.
"""

import json
import os

import numpy as np
from tqdm import tqdm

from common import data
from common.process import agree, current_process, wait_for_all

def check_one_machine():
    """Raises SystemExit: torchrun has started processes on several machines."""
    world = os.environ.get("WORLD_SIZE", "1")
    if os.environ.get("LOCAL_WORLD_SIZE", world) != world:
        raise SystemExit("torchrun --nnodes: all processes write one memory map, so they have to be on one machine. "
                         "Accepted: torchrun --nproc-per-node N, N the number of its GPUs")


def journals(folder, modality):
    return sorted(folder.glob(f"{modality}.progress*.jsonl"))


def progress_of(folder, modality):
    """The chunks that are on disk, in row order: dicts {first, stop, notes}, rows first to stop - 1."""
    done = {}
    for path in journals(folder, modality):
        with open(path, encoding="utf-8", errors="replace") as f:
            for line in f:
                if line.endswith("\n"):  # the kill may have cut the last line; its chunk is then done again
                    step = json.loads(line)
                    done[step["first"]] = step
    return [done[first] for first in sorted(done)]


def forget_progress(folder, modality):
    for path in journals(folder, modality):
        path.unlink()


def is_finished(folder, modality, n_tracks):
    """Whether an earlier, killed try of this run has finished the modality."""
    whole = (folder / f"{modality}.npy").is_file() and not (folder / f"{modality}.part.npy").is_file()
    return whole and sum(step["stop"] - step["first"] for step in progress_of(folder, modality)) == n_tracks


def begin_part(folder, modality, shape, chunk):
    """Make <modality>.part.npy, unless a killed run has left it, and put all journals into one.

    Returns: the first rows of the chunks that are still to do.
    """
    part = folder / f"{modality}.part.npy"
    done = progress_of(folder, modality) if part.is_file() else []
    done = [step for step in done if step["first"] % chunk == 0 and step["stop"] == min(step["first"] + chunk, shape[0])]
    if not done:
        np.lib.format.open_memmap(part, mode="w+", dtype=np.float32, shape=shape)
    merged = folder / f"{modality}.progress.jsonl"
    data.write_jsonl(merged, done)
    for path in journals(folder, modality):
        if path != merged:
            path.unlink()
    return sorted({*range(0, shape[0], chunk)} - {step["first"] for step in done})


def fill_in_chunks(folder, modality, shape, chunk, encode, start=lambda rows: rows):
    """Fill <modality>.part.npy, an (N, D) float32 array of that shape, from where a killed run stopped.

    encode: function of start(rows), rows a slice -> ((n, D) float32, list of notes). start: is called a chunk
    ahead, for work that others may do meanwhile.
    Returns: the path of the part and, in the first process, the notes of all chunks in row order.
    """
    rank, world = current_process()
    todo = agree(lambda: begin_part(folder, modality, shape, chunk))
    mine = [slice(first, min(first + chunk, shape[0])) for first in todo[rank::world]]
    part = folder / f"{modality}.part.npy"
    array = np.lib.format.open_memmap(part, mode="r+")
    begun = [start(rows) for rows in mine[:1]]
    with (tqdm(total=sum(rows.stop - rows.start for rows in mine), desc=modality, unit="track", disable=rank > 0) as bar,
          open(folder / f"{modality}.progress{f'.{rank}' * (rank > 0)}.jsonl", "a") as journal):
        for i, rows in enumerate(mine):
            begun += [start(ahead) for ahead in mine[i + 1:i + 2]]
            array[rows], notes = encode(begun.pop(0))
            array.flush()
            journal.write(json.dumps({"first": rows.start, "stop": rows.stop, "notes": notes}) + "\n")
            journal.flush()
            bar.update(rows.stop - rows.start)
    wait_for_all()
    steps = progress_of(folder, modality) if rank == 0 else []  # which may soon delete the journals
    return part, [note for step in steps for note in step["notes"]]
