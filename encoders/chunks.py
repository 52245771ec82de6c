"""Embeddings made chunk by chunk, by one process or by several that torchrun started, so that a killed run can go on.

All processes write <modality>.part.npy through a memory map, each its own chunks, so nothing has to be merged and
no process holds more than a chunk (and, of audio, the next one). Each keeps a journal, <modality>.progress.jsonl
(others than the first <modality>.progress.<rank>.jsonl): a line for every chunk that is on disk. The next run, of
however many processes, shares out the chunks that no journal has.
"""

import json
import os
from datetime import timedelta
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from common import data

LONGEST_WAIT = timedelta(days=7)  # of one process for another; torchrun ends all when one of them dies


# ---------------------------------------------------------------- one or more processes

class Ranks(NamedTuple):
    """This process's place among those that torchrun started. They talk through a torch.distributed store."""
    rank: int = 0
    world: int = 1   # how many there are
    store: object = None

    def agree(self, name, make):
        """What make() returns in the first process (as JSON), for all; the others wait for it. name: used once a run."""
        if self.world == 1:
            return make()
        if self.rank == 0:
            self.store.set(name, json.dumps(make()))
        return json.loads(self.store.get(name))

    def gather(self, name):
        """The first process waits until all the others have come here."""
        if self.rank:
            self.store.set(f"{name} {self.rank}", "done")
        elif self.world > 1:
            self.store.wait([f"{name} {rank}" for rank in range(1, self.world)], LONGEST_WAIT)


def start_ranks():
    """Ranks as torchrun tells them, each with a GPU of its own where there are any; Ranks() without torchrun."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return Ranks()
    if os.environ.get("LOCAL_WORLD_SIZE") != os.environ["WORLD_SIZE"]:
        raise SystemExit("torchrun --nnodes: all processes write one memory map, so they have to be on one machine. "
                         "Accepted: torchrun --nproc-per-node N, N the number of its GPUs")
    import torch
    from torch.distributed import rendezvous
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    store, rank, world = next(rendezvous("env://", timeout=LONGEST_WAIT))
    return Ranks(rank, world, store)


# ---------------------------------------------------------------- chunks

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


def fill_in_chunks(folder, modality, shape, chunk, encode, start=lambda rows: rows, ranks=Ranks()):
    """Fill <modality>.part.npy, an (N, D) float32 array of that shape, from where a killed run stopped.

    encode: function of start(rows), rows a slice -> ((n, D) float32, list of notes). start: is called a chunk
    ahead, for work that others may do meanwhile.
    Returns: the path of the part and, in the first process, the notes of all chunks in row order.
    """
    todo = ranks.agree(f"{modality} chunks", lambda: begin_part(folder, modality, shape, chunk))
    mine = [slice(first, min(first + chunk, shape[0])) for first in todo[ranks.rank::ranks.world]]
    part = folder / f"{modality}.part.npy"
    array = np.lib.format.open_memmap(part, mode="r+")
    begun = [start(rows) for rows in mine[:1]]
    with (tqdm(total=sum(rows.stop - rows.start for rows in mine), desc=modality, unit="track", disable=ranks.rank > 0) as bar,
          open(folder / f"{modality}.progress{f'.{ranks.rank}' * (ranks.rank > 0)}.jsonl", "a") as journal):
        for i, rows in enumerate(mine):
            begun += [start(ahead) for ahead in mine[i + 1:i + 2]]
            array[rows], notes = encode(begun.pop(0))
            array.flush()
            journal.write(json.dumps({"first": rows.start, "stop": rows.stop, "notes": notes}) + "\n")
            journal.flush()
            bar.update(rows.stop - rows.start)
    ranks.gather(f"{modality} filled")
    steps = progress_of(folder, modality) if ranks.rank == 0 else []  # which may soon delete the journals
    return part, [note for step in steps for note in step["notes"]]
