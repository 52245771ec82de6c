"""Where a script computes: its --device, and its place among the processes that torchrun started.

--device is the same everywhere: add("--device", type=find_device, default="auto"). torch is imported in the functions, since some
scripts that use them start worker processes which need none.
"""

import os
from datetime import timedelta
from typing import NamedTuple


def find_device(name):
    """"auto" -> "cuda" if there is one, else "cpu"; other names as they are. Raises SystemExit: no device, or not there."""
    import torch
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise SystemExit(f"--device {name}: torch knows no such device. Accepted: auto, cpu, cuda, cuda:1, mps ...") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SystemExit(f"--device {name}: torch {torch.__version__} sees {torch.cuda.device_count() or 'no'} GPU here. Leave --device "
                         f"out to use what there is, or install a CUDA build of torch")
    return name


class Process(NamedTuple):
    rank: int
    world: int   # how many there are
    device: str


def start_process(device):
    """This process's place among the others, with torch.distributed started where torchrun runs us; its own GPU for "cuda"."""
    import torch
    import torch.distributed as dist
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:
        if device == "cuda":
            device = f"cuda:{os.environ['LOCAL_RANK']}"
            torch.cuda.set_device(device)
        # the others wait while rank 0 works alone
        dist.init_process_group("nccl" if "cuda" in device else "gloo", timeout=timedelta(hours=2))
    torch.set_flush_denormal(True)  # on CPU, tiny numbers would slow everything down
    return Process(rank, world, device)


def end_process(world):
    """The last call of each of several processes."""
    import torch.distributed as dist
    if world > 1:
        dist.barrier()  # nobody leaves while another still talks to it
        dist.destroy_process_group()
