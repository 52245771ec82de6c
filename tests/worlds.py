"""Run by test_04_train.py in a process of its own: the gradients of one step, for several numbers of processes.

    python tests/worlds.py FOLDER      writes FOLDER/<processes>x<micro-batch>[-fsdp].pt

Processes are forked, not started by torchrun: eight times the time to import torch is saved.
"""

import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import K, make_codes, make_dialogues

from common import tokens
from common.tokens import MUSIC, RESPONSE
from steps.train.base_models import tiny_llama, tiny_tokenizer
from steps.train import packing

train = importlib.import_module("04_train")
WORLDS = ((1, 48, False), (1, 5, False), (2, 24, False), (8, 6, False), (2, 5, False), (2, 24, True))
SEQUENCES, CONTEXT = 48, 160


def gradients(rank, world, micro, fsdp, folder):
    if world > 1:
        dist.init_process_group("gloo", rank=rank, world_size=world, init_method=f"file://{folder}/store{world}x{micro}{fsdp}")
    dialogues = make_dialogues(200, 30)
    tokenizer = tiny_tokenizer([turn["query"] for d in dialogues for turn in d["turns"]], 400)
    lm = tiny_llama(tokenizer)
    train.expand_vocabulary(lm, tokenizer, K)
    pieces, _, _ = packing.encode_all(tokens.DialogueTokenizer(tokenizer), dialogues, {f"t{i}": c for i, c in enumerate(make_codes(30))}, CONTEXT)
    packed = packing.Packed(pieces, packing.pack(pieces.lengths(), CONTEXT)[:SEQUENCES], CONTEXT, 0)
    assert len(packed.bins) == SEQUENCES
    learnt = (MUSIC, RESPONSE)  # so that sequences have very different numbers of labels
    model = train.distribute(train.LossModel(lm), world, "cpu", fsdp)
    mine = np.arange(SEQUENCES)[rank::world]
    batches = [(*packed.batch(mine[s:s + micro], "cpu", learnt)[:3], True) for s in range(0, len(mine), micro)]
    loss = train.accumulate(model, batches, int(packed.count_labels(learnt).sum()), world, "cpu")
    found = {name: p.grad.full_tensor() if fsdp else p.grad for name, p in lm.named_parameters()}
    if rank == 0:
        torch.save({"loss": loss, "gradients": found}, Path(folder) / f"{world}x{micro}{'-fsdp' * fsdp}.pt")
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    for world, micro, fsdp in WORLDS:
        mp.start_processes(gradients, (world, micro, fsdp, sys.argv[1]), nprocs=world, start_method="fork")
