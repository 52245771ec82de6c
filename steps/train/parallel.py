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
    _, world = current_process()
    if not fsdp:  # FSDP moves each layer when it splits it
        model = model.to(device)
    if compiled:
        model.compile()
    if fsdp:
        mesh = init_device_mesh(device.split(":")[0], (world,))
        policy = MixedPrecisionPolicy()
        if "cuda" in device:
            policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
        for layer in model.lm.base_model.layers:
            fully_shard(layer, mesh=mesh, mp_policy=policy)
        return fully_shard(model, mesh=mesh, mp_policy=policy)
    if world > 1:
        return DistributedDataParallel(model, device_ids=[device] if "cuda" in device else None)
    return model


def micro_batches(packed, chosen, size, device):
    """This process's share of a step: list of (ids, positions, labels, counts).

    chosen: numbers of the step's sequences. size: sequences per forward pass; 0 = all at once.
    Every process gets as many batches as the others. One with counts False fills up the number and
    adds nothing to the gradients.
    """
    rank, world = current_process()
    mine = chosen[rank::world]
    most = math.ceil(len(chosen) / world)  # that any process has
    batches = []
    for start in range(0, most, size or most):
        own = mine[start:start + (size or most)]
        ids, positions, labels, _ = packed.batch(own if len(own) else chosen[:1], device)
        batches.append((ids, positions, labels, len(own) > 0))
    return batches


def accumulate(model, batches, n_labels, device):
    """Add the gradients of a step's mean loss per label, over all processes; returns that loss.

    batches: from `micro_batches`. n_labels: of the whole step, so that the gradients are the same
        however the sequences are split over processes and batches.
    """
    _, world = current_process()
    total = torch.zeros((), device=device)
    for i, (ids, positions, labels, counts) in enumerate(batches):
        waits = isinstance(model, DistributedDataParallel) and i < len(batches) - 1
        with model.no_sync() if waits else nullcontext():
            with autocast(device):
                loss = model(ids, positions, labels).sum() / n_labels * counts
            (loss * world).backward()  # DDP and FSDP average over the processes; we want the sum
        total += loss.detach()
    if world > 1:
        dist.all_reduce(total)
    return total
