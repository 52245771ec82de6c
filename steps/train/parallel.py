"""One step on one or more processes: the model split or copied, the gradients added up."""

import math
from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from common.process import current_process


def autocast(device):
    """bfloat16 over float32 weights on a GPU; nothing on a CPU, where bfloat16 is slower."""
    return torch.autocast("cuda", torch.bfloat16) if "cuda" in str(device) else nullcontext()


def distribute(model, device, fsdp=False, compiled=False):
    """A LossModel on its device: whole in each process (DDP), or a part of each layer (FSDP2)."""
    if compiled:
        model.compile()
    if fsdp:
        policy = MixedPrecisionPolicy()
        if "cuda" in device:
            policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
        mesh = init_device_mesh(device.split(":")[0], (current_process()[1],))
        for layer in model.lm.base_model.layers:
            fully_shard(layer, mesh=mesh, mp_policy=policy)
        return fully_shard(model, mesh=mesh, mp_policy=policy)
    model = model.to(device)
    if current_process()[1] > 1:
        return DistributedDataParallel(model, device_ids=[device] if "cuda" in device else None)
    return model


def accumulate(model, packed, chosen, size, n_labels, device):
    """Add the gradients of a step's mean loss per label, over all processes; returns that loss.

    packed: packing.Packed. chosen: numbers of the step's sequences.
    size: sequences per forward pass; 0 = all at once.
    n_labels: of the whole step, so that the gradients are the same however the sequences are split
        over processes and passes.
    """
    rank, world = current_process()
    own = chosen[rank::world]
    most = math.ceil(len(chosen) / world)  # that any process has
    size = size or most
    total = torch.zeros((), device=device)
    for start in range(0, most, size):
        # Every process makes as many passes; one that has no sequence left adds nothing.
        numbers = own[start:start + size]
        counts = len(numbers) > 0
        ids, positions, labels, _ = packed.batch(numbers if counts else chosen[:1], device)
        waits = isinstance(model, DistributedDataParallel) and start + size < most
        with model.no_sync() if waits else nullcontext():
            with autocast(device):
                loss = model(ids, positions, labels).sum() / n_labels * counts
            (loss * world).backward()  # DDP and FSDP average over the processes; we want the sum
        total += loss.detach()
    if world > 1:
        dist.all_reduce(total)
    return total
