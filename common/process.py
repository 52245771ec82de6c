"""Where a script computes: its --device, and its place among the processes that torchrun started.

--device is the same everywhere: add("--device", type=resolve_device, default="auto"). torch is
imported in the functions, since some scripts that use them start worker processes which need none.
"""

import multiprocessing
import os
import threading
from datetime import timedelta
from typing import NamedTuple

LONGEST_WAIT = timedelta(days=7)  # of one process for another; torchrun ends all when one dies


def resolve_device(name):
    """"auto" -> "cuda" if there is a GPU, else "cpu"; other names stay as they are.

    Raises SystemExit: there is no such device.
    """
    import torch
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise SystemExit(f"--device {name}: torch knows no such device. Accepted: auto, cpu, cuda, "
                         f"cuda:1, mps ...") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SystemExit(f"--device {name}: torch {torch.__version__} sees "
                         f"{torch.cuda.device_count() or 'no'} GPU here. Leave --device out to use "
                         f"what there is, or install a CUDA build of torch")
    return name


class Process(NamedTuple):
    """This process's place among those that torchrun started; alone without torchrun."""
    rank: int = 0
    world: int = 1   # how many there are
    device: str = "cpu"


def start_process(device="cpu"):
    """Join the other processes, where torchrun runs us; "cuda" becomes a GPU of our own."""
    import torch
    import torch.distributed as dist
    rank = int(os.environ.get("RANK", 0))
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:
        backend = "gloo"
        if device == "cuda":
            device = f"cuda:{os.environ['LOCAL_RANK']}"
            torch.cuda.set_device(device)
        if "cuda" in device:
            backend = "cpu:gloo,cuda:nccl"  # objects and waiting go over the CPU
        dist.init_process_group(backend, timeout=LONGEST_WAIT)
    return Process(rank, world, device)


def is_distributed():
    import torch.distributed as dist
    return dist.is_available() and dist.is_initialized()


def current_process():
    """(rank, world) of this process."""
    import torch.distributed as dist
    return (dist.get_rank(), dist.get_world_size()) if is_distributed() else (0, 1)


def agree(make):
    """What make() returns in the first process, for all. The others wait and do not call it."""
    import torch.distributed as dist
    values = [make() if current_process()[0] == 0 else None]
    if is_distributed():
        dist.broadcast_object_list(values, 0)
    return values[0]


def gather(value):
    """The values of all processes, in the order of their ranks: a list, the same for each."""
    import torch.distributed as dist
    values = [value]
    if is_distributed():
        values *= dist.get_world_size()
        dist.all_gather_object(values, value)
    return values


def wait_for_all():
    """Nobody goes on before all have come here."""
    import torch.distributed as dist
    if is_distributed():
        dist.barrier()


def end_process():
    """The last call of each process: nobody leaves while another still talks to it."""
    import torch.distributed as dist
    if is_distributed():
        dist.barrier()
        dist.destroy_process_group()


def end_with_parent():
    """Called in a worker: it ends when its parent is killed, and does not wait for a next job."""
    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)
    threading.Thread(target=watch, daemon=True).start()
