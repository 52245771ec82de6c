"""Rows of embeddings that may be more than memory holds, shared among torchrun's processes.

A pass over 1.7 million rows of 4,096 numbers reads 28 GB. So rows are read a chunk at a time, and
as many chunks as there is room for stay on the device. Under torchrun each process has its share of
the rows, and their sums are joined.
"""

import numpy as np
import torch
import torch.distributed as dist

from common.process import current_process, gather

CHUNK = 2048   # rows at a time; their distances to all centroids should fit in a CPU's cache
HELD = 2**30   # bytes of rows that stay in memory between passes (on a GPU half of what is free)


class Rows:
    """This process's share of some rows of an array.

    Iterating yields (slice of `numbers`, (n, D) float32 tensor on the device), as often as wanted.
    """

    def __init__(self, array, numbers, device):
        """array: (N, D) float32, a memory map or not.

        numbers: those of the rows, ascending, of all processes together, (n,) int.
        """
        rank, world = current_process()
        self.array = np.asarray(array)
        self.numbers = np.array_split(numbers, world)[rank]
        self.device = device
        self.chunk = CHUNK
        self.held = {}  # {first: tensor}
        self.room = HELD
        if "cuda" in str(device):
            self.room = torch.cuda.mem_get_info(device)[0] // 2

    def __len__(self):
        return len(self.numbers)

    def __iter__(self):
        for first in range(0, len(self), self.chunk):
            where = slice(first, min(first + self.chunk, len(self)))
            chunk = self.held.get(first)
            if chunk is None:
                chunk = torch.from_numpy(self.array[self.numbers[where]]).to(self.device)
                if chunk.nbytes <= self.room:
                    self.held[first] = chunk
                    self.room -= chunk.nbytes
            yield where, chunk

    def take(self, numbers):
        """The rows with these numbers of the array, as a tensor on the device."""
        return torch.from_numpy(self.array[numbers]).to(self.device)


def farthest(rows, distances, count):
    """Numbers of the rows of all processes with the largest distances, the largest first.

    distances: of the rows of this process, (n,) float32.
    """
    largest, order = distances.topk(min(count, len(distances)))
    numbers = rows.numbers[order.cpu().numpy()].tolist()
    pairs = sum(gather(list(zip(largest.tolist(), numbers, strict=True))), [])
    return [number for _, number in sorted(pairs, key=lambda pair: -pair[0])[:count]]


def sum_over_processes(*tensors):
    """Put the sum over all processes in the place of each tensor."""
    if current_process()[1] > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)


def same_for_all(tensor):
    """The first process's tensor, for all: on GPUs, equal work need not end in equal bits."""
    if current_process()[1] > 1:
        dist.broadcast(tensor, 0)
    return tensor


def share_rows(n, function):
    """function(slice) -> array for all n rows: each process makes its share, all get the whole."""
    rank, world = current_process()
    cuts = [n * i // world for i in range(world + 1)]
    return np.concatenate(gather(function(slice(cuts[rank], cuts[rank + 1]))))
