"""Run by test_04_train.py in a process of its own: the gradients of one step, split in many ways.

    python tests/worlds.py FOLDER      writes FOLDER/<processes>x<micro-batch>[-fsdp].pt

Processes are forked, not started by torchrun: that saves importing torch eight times.
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
from steps.train import packing
from steps.train.base_models import tiny_llama, tiny_tokenizer
from steps.train.parallel import accumulate, distribute

train = importlib.import_module("04_train")
WORLDS = ((1, 48, False), (1, 5, False), (2, 24, False), (8, 6, False), (2, 5, False),
          (2, 24, True))  # processes, micro-batch, FSDP
SEQUENCES, CONTEXT = 48, 160


def gradients(rank, world, micro_batch, fsdp, folder):
    name = f"{world}x{micro_batch}{'-fsdp' * fsdp}"
    if world > 1:
        dist.init_process_group("gloo", rank=rank, world_size=world,
                                init_method=f"file://{folder}/store-{name}")
    dialogues = make_dialogues(200, 30)
    tokenizer = tiny_tokenizer([turn["query"] for d in dialogues for turn in d["turns"]], 400)
    lm = tiny_llama(tokenizer)
    train.expand_vocabulary(lm, tokenizer, K)
    codes_of = {f"t{i}": codes for i, codes in enumerate(make_codes(30))}
    segments, _, _ = packing.encode_all(tokens.DialogueTokenizer(tokenizer), dialogues,
                                        codes_of, CONTEXT)
    sequences = packing.pack(segments.lengths(), CONTEXT)[:SEQUENCES]
    assert len(sequences) == SEQUENCES
    # with these parts alone, sequences have very different numbers of labels
    packed = packing.Packed(segments, sequences, CONTEXT, 0, learnt=(MUSIC, RESPONSE))
    model = distribute(train.LossModel(lm), "cpu", fsdp)
    loss = accumulate(model, packed, np.arange(SEQUENCES), micro_batch,
                      int(packed.count_labels().sum()), "cpu")
    result = {name: weight.grad.full_tensor() if fsdp else weight.grad
              for name, weight in lm.named_parameters()}
    if rank == 0:
        torch.save({"loss": loss, "gradients": result}, Path(folder) / f"{name}.pt")
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    for world, micro_batch, fsdp in WORLDS:
        mp.start_processes(gradients, (world, micro_batch, fsdp, sys.argv[1]), nprocs=world,
                           start_method="fork")
