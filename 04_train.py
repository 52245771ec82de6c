"""04: fine-tune a causal language model on dialogues whose tracks are tokens (paper, sections 2.4 and 3.2).

The vocabulary grows by 5 K + 2 music tokens, whose embeddings are drawn from N(mean, covariance) of
the old ones. Dialogues are packed to the context, with no attention from one to another, and the loss
is taken on every token. Weights that are tied stay tied.

Reads   tracks.jsonl, codes.npy, dialogues_train.jsonl, dialogues_valid.jsonl
Writes  model/ (a Hugging Face folder, log.jsonl, loss.png, README.md); while it runs, model.part/

Demo        python 04_train.py                                       (6 to 9 minutes on two cores)
Full scale  torchrun --nproc-per-node 8 04_train.py --data-dir data/mpd \
                --base-model meta-llama/Llama-3.2-1B-Instruct        (recipe: paper)

A killed run goes on from its last checkpoint when the same command is given again.
"""

import argparse
import json
import math
import os
import shutil
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint as recompute
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from common import data, runs, tokens
from common.process import end_process, resolve_device, start_process
from common.tokens import MUSIC, REJECTED, RESPONSE, USER
from steps.train.base_models import tiny_llama, tiny_tokenizer
from steps.train import packing
from steps.train.checkpoints import (append_log, load_best, load_checkpoint, model_card, open_tensorboard, plot_loss, save_best,
                                  save_checkpoint, truncate_log, whole_weights)
from steps.train.lora import add_lora, merge_lora

# The paper gives context, lr, optimiser and global batch; the rest is our choice (see README).
RECIPES = {
    "paper": dict(context=1024, lr=1e-4, batch_size=48, epochs=1.0, warmup=0.03, weight_decay=0.01, drop_tokens=0.05,
                  indexing_repeats=0),
    "tiny": dict(context=512, lr=3e-3, batch_size=4, epochs=1.0, warmup=0.05, weight_decay=0.01, drop_tokens=0.05,
                 indexing_repeats=30),
}
# parts of a dialogue on which the loss is taken
LOSS_ON = {"all": tokens.ALL_PARTS, "assistant": (MUSIC, REJECTED, RESPONSE)}
LOGITS_AT_ONCE = 2**28  # numbers: 1 GiB of float32


# ---------------------------------------------------------------- the model

def expand_vocabulary(model, tokenizer, k, seed=0, multiple=1):
    """Add the 5 k + 2 music tokens to tokenizer and model, in place (paper, section 2.4).

    New rows e ~ N(mean, covariance) of the old rows. transformers' own mean_resizing is not used: it
    scales the covariance by 1e-9, which leaves all new rows nearly the same.
    multiple: the embedding gets rows up to a multiple of this; save_model takes the rest off again.
    """
    old = len(tokenizer)
    tokens.add_music_tokens(tokenizer, k)
    tied = model.config.tie_word_embeddings
    getters = [model.get_input_embeddings] + [model.get_output_embeddings] * (not tied)
    before = [get().weight.detach()[:old].double() for get in getters]
    rows = math.ceil(max(len(tokenizer), model.get_input_embeddings().weight.shape[0]) / multiple) * multiple
    model.resize_token_embeddings(rows, mean_resizing=False)
    with torch.no_grad():
        for i, get in enumerate(getters):
            get().weight[old:] = sample_like(before[i], rows - old, seed + i).to(get().weight)
    if tied and model.get_input_embeddings().weight.data_ptr() != model.get_output_embeddings().weight.data_ptr():
        raise SystemExit("input and output embedding came apart when the vocabulary grew; this transformers version "
                         "does not keep them tied: install the one in requirements.txt")


def sample_like(rows, n, seed):
    """n draws from the normal distribution with the mean and covariance of rows (V, d) -> (n, d)."""
    mean, covariance = rows.mean(0), torch.cov(rows.T)
    jitter = 1e-9 * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=rows.dtype)
    noise = torch.randn(n, rows.shape[1], generator=torch.Generator().manual_seed(seed), dtype=rows.dtype)
    return mean + noise @ torch.linalg.cholesky(covariance + jitter).T


def load_base(name, dialogues, seed, attention="sdpa"):
    """(model, tokenizer): the tiny Llama, or a Hugging Face id or folder."""
    if name == "tiny":
        tokenizer = tiny_tokenizer([text for d in dialogues for t in d["turns"] for text in (t["query"], t["response"] or "")])
        model = tiny_llama(tokenizer, seed)
        model.set_attn_implementation(attention)
        return model, tokenizer
    try:
        return (AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, attn_implementation=attention),
                AutoTokenizer.from_pretrained(name))
    except (OSError, ValueError, ImportError) as error:
        raise SystemExit(f"--base-model {name} cannot be loaded: {str(error).splitlines()[0]} Accepted: tiny, a folder with a "
                         f"model, or a Hugging Face id (log in with `hf auth login` for gated ones)")


# ---------------------------------------------------------------- the loss

class LossModel(nn.Module):
    """A causal LM whose forward gives the cross-entropy of each next token: (B, T - 1) float32, 0 where the label is -100.

    It is one module, so that DistributedDataParallel and FSDP see everything that happens to a batch.
    """

    def __init__(self, lm):
        super().__init__()
        self.lm = lm

    def forward(self, ids, positions, labels):
        # use_cache=False: with a cache transformers would ignore the restarting positions, and dialogues leak
        hidden = self.lm.base_model(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state[:, :-1]
        losses = chunked_losses(self.lm.get_output_embeddings(), hidden.flatten(0, 1), labels[:, 1:].flatten())
        return losses.view(len(ids), -1)


def chunked_losses(head, hidden, labels):
    """Cross-entropy of hidden (T, d) with labels (T,), -100 = none, never holding more than LOGITS_AT_ONCE logits.

    Llama's 133,000 words make 0.5 GiB of float32 logits every thousand tokens, and their gradients as
    much again. Where they do not fit at once, each chunk's logits are made again in the backward pass.
    """
    def losses(h, y):
        return F.cross_entropy(head(h).float(), y, ignore_index=-100, reduction="none")

    chunk = max(1, LOGITS_AT_ONCE // head.weight.shape[0])
    if len(hidden) <= chunk:
        return losses(hidden, labels)
    return torch.cat([recompute(losses, h, y, use_reentrant=False) for h, y in zip(hidden.split(chunk), labels.split(chunk))])


def autocast(device):
    """bfloat16 arithmetic on a GPU, over float32 weights; nothing on a CPU, where it is slower."""
    return torch.autocast("cuda", torch.bfloat16) if "cuda" in str(device) else nullcontext()


@torch.no_grad()
def validate(model, packed, device, learnt=tokens.ALL_PARTS, size=8, rank=0, world=1):
    """Mean loss (nats a token) of all tokens in the parts `learnt`, and of those of text (queries, answers) and of music."""
    model.eval()
    sums = torch.zeros(3, 2, dtype=torch.float64, device=device)
    n = len(packed.bins)
    for i in range(0, n, size * world):
        mine = list(range(i, min(i + size * world, n)))[rank::world]
        # a rank without a sequence of its own joins in with one that counts nothing
        ids, positions, labels, parts = packed.batch(mine or [0], device, learnt)
        with autocast(device):
            losses = model(ids, positions, labels)
        known, part = (labels[:, 1:] != -100) & bool(mine), parts[:, 1:]
        for row, mask in enumerate((known, known & ((part == USER) | (part == RESPONSE)),
                                    known & ((part == MUSIC) | (part == REJECTED)))):
            sums[row] += torch.stack([losses[mask].sum(), mask.sum()])
    if world > 1:
        dist.all_reduce(sums)
    if hasattr(model, "reshard"):  # FSDP leaves the outermost weights whole after a pass without a backward
        model.reshard()
    model.train()
    return {name: total / max(n, 1) for name, (total, n) in zip(("all", "text", "music"), sums.tolist())}


def learning_rate(step, steps, peak, warmup):
    """Linear warm-up, then a cosine down to a tenth of the peak."""
    warm = max(1, round(warmup * steps))
    if step < warm:
        return peak * (step + 1) / warm
    return peak * (0.1 + 0.45 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm))))


# ---------------------------------------------------------------- one or more processes

def distribute(model, world, device, fsdp=False):
    """A LossModel for `world` processes: each holds it all (DDP), or a part of every layer (FSDP2)."""
    if fsdp:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
        mesh = init_device_mesh(device.split(":")[0], (world,))
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if "cuda" in device else MixedPrecisionPolicy()
        for layer in model.lm.base_model.layers:
            fully_shard(layer, mesh=mesh, mp_policy=policy)
        return fully_shard(model, mesh=mesh, mp_policy=policy)
    if world > 1:
        return DistributedDataParallel(model, device_ids=[device] if "cuda" in device else None)
    return model


def accumulate(model, batches, n_labels, world, device):
    """Add the gradients of the mean loss over the tokens of a step, over all processes; returns that loss.

    batches: this process's micro-batches, each (ids, positions, labels, counts), as many on every process; one
        with counts 0 only keeps the others company. n_labels: of the whole step, so the mean is over tokens, and
        however the sequences are split over processes and micro-batches, the gradients are the same.
    """
    total = torch.zeros((), device=device)
    for i, (ids, positions, labels, counts) in enumerate(batches):
        last = i == len(batches) - 1
        with model.no_sync() if isinstance(model, DistributedDataParallel) and not last else nullcontext():
            with autocast(device):
                loss = model(ids, positions, labels).sum() / n_labels * counts
            (loss * world).backward()  # DDP and FSDP average over the processes, and we want their sum
        total += loss.detach()
    if world > 1:
        dist.all_reduce(total)
    return total


# ---------------------------------------------------------------- main

def parse_args():
    """(args, recipe): the recipe's values, with those given as flags laid over them."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--data-dir", type=Path, default=Path("data/demo"), help="folder of the data (default data/demo)")
    add("--base-model", default="tiny", help="tiny (built here, default), a folder, or a Hugging Face id")
    add("--recipe", choices=RECIPES, default=None, help="values of the next flags (default: tiny for the tiny model, else paper)")
    for name, what in (("context", "tokens a sequence"), ("lr", "peak learning rate"),
                       ("batch-size", "sequences a step, over all GPUs"), ("epochs", "passes over the training dialogues"),
                       ("warmup", "share of the steps with rising learning rate"), ("weight-decay", "of AdamW"),
                       ("drop-tokens", "share of music codes left out in training; 0 = none"),
                       ("indexing-repeats", "times each known track is named outside the dialogues; 0 = never, as in the paper")):
        values = ", ".join(f"{r}: {v[name.replace('-', '_')]:g}" for r, v in RECIPES.items())
        add(f"--{name}", type=int if name in ("context", "batch-size", "indexing-repeats") else float, help=f"{what} ({values})")
    add("--loss-on", choices=LOSS_ON, default="all", help="tokens that are learnt: all (paper, default), or the assistant's")
    add("--skip-rejected", action="store_true", help="do not learn the music tokens that the listener turned down")
    add("--micro-batch", type=int, default=0, help="sequences a forward pass and GPU; 0 (default) = all of a step")
    add("--grad-clip", type=float, default=1.0, help="largest norm of the gradient (default 1); 0 = no clipping")
    add("--eval-every", type=int, default=400, help="steps between validations (default 400); 0 = only at the end")
    add("--save-every", type=int, default=100, help="steps between checkpoints (default 100); 0 = none")
    add("--keep", type=int, default=2, help="checkpoints kept (default 2, the last ones)")
    add("--fsdp", action="store_true", help="under torchrun: each GPU holds a part of every layer (FSDP2), for 3B and 8B")
    add("--lora", type=int, default=0, help="rank of LoRA for one small GPU; 0 (default) = all weights are trained")
    add("--gradient-checkpointing", action="store_true", help="less memory, about a third more time")
    add("--compile", action="store_true", help="torch.compile the model")
    add("--attention", choices=("sdpa", "eager", "flex_attention"), default="sdpa", help="transformers' attn_implementation (default "
        "sdpa). Not flash_attention_2: it sees the borders of packed dialogues only in batches of one")
    add("--pad-vocabulary", type=int, default=1, help="embedding rows are made a multiple of this while training (default 1)")
    add("--tensorboard", action="store_true", help="losses also to <data-dir>/runs/tensorboard")
    add("--workers", type=int, default=min(8, os.cpu_count()), help="processes that encode the dialogues")
    add("--limit", type=int, default=0, help="training dialogues used; 0 (default) = all")
    add("--device", type=resolve_device, default="auto", help="auto (default: cuda if there is one), cpu, cuda, ...")
    add("--seed", type=int, default=0, help="of the model, the new rows and the order (default 0)")
    add("--resume", action=argparse.BooleanOptionalAction, default=True,
        help="go on with a run that was cut (default); --no-resume starts afresh")
    args = parser.parse_args()
    args.recipe = args.recipe or ("tiny" if args.base_model == "tiny" else "paper")
    recipe = RECIPES[args.recipe] | {name: getattr(args, name) for name in RECIPES[args.recipe] if getattr(args, name) is not None}
    vars(args).update(recipe)  # what is used, not what was typed, goes on record
    if min(recipe["context"] - 1, recipe["batch_size"], recipe["epochs"], recipe["lr"]) <= 0:
        raise SystemExit("--context must be above 1; --batch-size, --epochs and --lr above 0")
    if min(args.pad_vocabulary, args.keep, args.workers) < 1 or args.micro_batch < 0:
        raise SystemExit("--pad-vocabulary, --keep and --workers must be 1 or more; --micro-batch 0 or more")
    if args.fsdp and args.lora:
        raise SystemExit("--fsdp spreads a model over GPUs, --lora is for one small GPU: choose one")
    if args.fsdp and "WORLD_SIZE" not in os.environ:
        raise SystemExit("--fsdp needs several processes: torchrun --nproc-per-node 8 04_train.py ... --fsdp")
    return args, recipe


def load_data(folder, limit):
    """(K, tracks, {track_id: codes}, training dialogues, validation dialogues)."""
    tracks = data.load_tracks(folder)
    codes = data.load_codes(folder, len(tracks))
    row_of = {t["track_id"]: i for i, t in enumerate(tracks)}
    train, valid = (data.load_dialogues(folder / f"dialogues_{split}.jsonl", row_of) for split in ("train", "valid"))
    info = folder / "codebooks" / "info.json"
    k = json.loads(info.read_text())["k"] if info.is_file() else int(codes.max()) + 1
    if codes.max() >= k:
        raise SystemExit(f"{info} says K = {k}, but codes.npy has code {codes.max()}; make both again with: "
                         f"python 02_quantize.py --data-dir {folder} --no-resume")
    return k, tracks, {track_id: codes[row] for track_id, row in row_of.items()}, train[:limit or None], valid


def make_optimizer(model, recipe):
    """AdamW; matrices and embeddings decay, norms do not."""
    learnt = [p for p in model.parameters() if p.requires_grad]
    groups = [{"params": [p for p in learnt if p.ndim >= 2], "weight_decay": recipe["weight_decay"]},
              {"params": [p for p in learnt if p.ndim < 2], "weight_decay": 0.0}]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=recipe["lr"], betas=(0.9, 0.95), fused=True)


def encode_once(folder, make, process):
    """Pieces of `folder`, memory-mapped; rank 0 makes them with `make` (-> pieces, cut, short) if they are not there."""
    if process.rank == 0 and not (folder / "starts.npy").is_file():
        pieces, cut, short = make()
        print(f"{folder.name}: {len(pieces.ids):,} tokens; {cut:,} dialogues cut at a turn, {short:,} turns cut short")
        packing.save_pieces(folder, pieces)
    if process.world > 1:
        dist.barrier()
    return packing.load_pieces(folder)


def fit(args, recipe, model, lm, train, learnt, check, folder, process):
    """The training loop, from the last checkpoint in `folder` on. model: LossModel around lm, distributed.

    learnt: parts of a dialogue whose tokens count. check: function that returns the validation losses.
    Returns the losses of the best moment, whose weights lm then has.
    """
    rank, world, device = process
    labels_of, size = train.count_labels(learnt), recipe["batch_size"]
    steps = math.ceil(recipe["epochs"] * len(train.bins) / size)
    epochs = math.ceil(recipe["epochs"]) + 1  # one more, so that the last step is as full as the others
    order = np.concatenate([np.random.default_rng([args.seed, e]).permutation(len(train.bins)) for e in range(epochs)])

    optimizer = make_optimizer(lm, recipe)
    step, facts = load_checkpoint(folder, lm, optimizer)
    facts = facts or {"seconds": 0.0, "best_step": 0, "best": {}}
    if rank == 0:
        truncate_log(folder / "log.jsonl", step)
        if step:
            print(f"going on from step {step}")
    board = open_tensorboard(args.data_dir / "runs" / "tensorboard", step) if args.tensorboard and rank == 0 else None
    started = time.time() - facts["seconds"]
    bar, begun, seen = tqdm(total=steps, initial=step, disable=rank != 0, desc="train", mininterval=1), time.time(), 0
    while step < steps:
        chosen = order[step * size:(step + 1) * size]
        n_labels = max(1, int(labels_of[chosen].sum()))
        mine, each = chosen[rank::world], math.ceil(len(chosen) / world)
        micro = args.micro_batch or each
        batches = []
        for s in range(0, each, micro):
            own = mine[s:s + micro]  # where there is none, a sequence that counts nothing keeps the other ranks company
            batches.append((*train.batch(own if len(own) else chosen[:1], device, learnt)[:3], bool(len(own))))
        lr = learning_rate(step, steps, recipe["lr"], recipe["warmup"])
        for group in optimizer.param_groups:
            group["lr"] = lr
        loss = accumulate(model, batches, n_labels, world, device).item()
        norm = torch.nn.utils.clip_grad_norm_(lm.parameters(), args.grad_clip or float("inf"))
        norm = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        if not math.isfinite(loss + norm):
            raise SystemExit(f"step {step + 1}: loss {loss}, norm of the gradient {norm}; checkpoints of earlier steps are in {folder}. "
                             f"Try a smaller --lr (now {recipe['lr']:g}) with --no-resume")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step, seen = step + 1, seen + n_labels
        facts["seconds"] = time.time() - started
        row = {"step": step, "loss": round(loss, 6), "lr": lr, "norm": round(norm, 4), "tokens": n_labels,
               "seconds": round(facts["seconds"], 1)}
        if step == steps or (args.eval_every and step % args.eval_every == 0):
            losses = check()
            row |= {f"valid_{name}": round(value, 6) for name, value in losses.items()}
            if rank == 0:
                bar.write(f"step {step}: validation loss {losses['all']:.3f} (text {losses['text']:.3f}, music {losses['music']:.3f})")
            if not facts["best"] or losses["all"] < facts["best"]["all"]:
                facts |= {"best": losses, "best_step": step}
                if step < steps:
                    save_best(folder, lm, step, rank)
        if rank == 0:
            append_log(folder / "log.jsonl", row, board)
            bar.set_postfix(loss=f"{loss:.3f}", tokens_per_s=f"{seen / (time.time() - begun):,.0f}", refresh=False)
        if args.save_every and step % args.save_every == 0 and step < steps:
            save_checkpoint(folder, lm, optimizer, step, facts, args.keep, rank)  # and forgets older best weights
        bar.update()
    bar.close()
    if board:
        board.close()
    if facts["best_step"] != step:
        load_best(folder, lm, facts["best_step"])
    return facts["best"]


def save_model(folder, lm, tokenizer, rank):
    """The Hugging Face folder: no trace of LoRA, FSDP or a padded vocabulary. All ranks call it, rank 0 writes."""
    merge_lora(lm)
    weights = whole_weights(lm)
    if rank == 0:
        lm.config.vocab_size = len(tokenizer)
        for name, rows in list(weights.items()):
            if name.endswith(("embed_tokens.weight", "lm_head.weight")):
                weights[name] = rows[:len(tokenizer)].clone()
        if lm.config.tie_word_embeddings:
            weights = {name: rows for name, rows in weights.items() if not name.endswith("lm_head.weight")}
        lm.save_pretrained(folder, state_dict=weights)
        tokenizer.save_pretrained(folder)


def main():
    args, recipe = parse_args()
    process = rank, world, device = start_process(args.device)
    torch.set_flush_denormal(True)  # on a CPU, tiny numbers would slow everything down
    folder, part, final = args.data_dir, args.data_dir / "model.part", args.data_dir / "model"
    k, tracks, codes_of, train, valid = load_data(folder, args.limit)
    run, state = runs.begin_run(
        folder, "04_train", args, reads=["tracks.jsonl", "codes.npy", "dialogues_train.jsonl", "dialogues_valid.jsonl"],
        writes=[f"model/{name}" for name in ("model.safetensors", "config.json", "tokenizer.json", "log.jsonl")],
        resume=args.resume, record=False, ignore=("data_dir", "resume", "device", "workers", "save_every", "keep", "tensorboard",
                                                      "micro_batch", "gradient_checkpointing"))
    if state == "done":
        if rank == 0:
            print("04_train: already done, nothing changed")
        return

    # the model and its vocabulary: the same on every rank, since everything is seeded
    lm, tokenizer = load_base(args.base_model, train, args.seed, args.attention)
    expand_vocabulary(lm, tokenizer, k, args.seed, args.pad_vocabulary)
    dialogue_tokenizer = tokens.DialogueTokenizer(tokenizer)
    if rank == 0:  # all input has proved good: from here on the run is on record, and what an old one left is replaced
        runs.record_run(run)
        if state == "new" and part.exists():
            shutil.rmtree(part)
        if state == "resume" and not part.exists() and (final / "tokens").exists():
            os.replace(final, part)  # killed when the model was whole, but not yet on record
        part.mkdir(exist_ok=True)
    torch.manual_seed(args.seed)
    if args.lora:
        add_lora(lm, args.lora, frozen_dtype=torch.bfloat16 if "cuda" in device else torch.float32)
    if args.gradient_checkpointing:
        lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model = LossModel(lm if args.fsdp else lm.to(device)).train()  # FSDP moves each layer when it is split
    if args.compile:
        model.compile()
    model = distribute(model, world, device, args.fsdp)

    # dialogues -> pieces -> sequences
    context = recipe["context"]
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    train = train + packing.indexing_examples(tracks, codes_of, recipe["indexing_repeats"], packing.answers_by_track(train), args.seed)
    packed = []
    for name, dialogues, drop in (("train", train, recipe["drop_tokens"]), ("valid", valid, 0.0)):
        pieces = encode_once(part / "tokens" / name, lambda: packing.encode_all(
            dialogue_tokenizer, dialogues, codes_of, context, drop, args.seed, args.workers), process)
        packed.append(packing.Packed(pieces, packing.pack(pieces.lengths(), context), context, pad))
    n_tokens, n_sequences = len(packed[0].pieces.ids), len(packed[0].bins)
    if rank == 0:
        print(f"{len(train):,} dialogues (lessons on names among them) in {n_sequences:,} packed sequences, "
              f"{n_tokens / n_sequences / context:.1%} full; {sum(p.numel() for p in lm.parameters()):,} parameters, "
              f"{5 * k + 2:,} new tokens (K = {k})")

    del train, valid, dialogues
    learnt = [p for p in LOSS_ON[args.loss_on] if not (args.skip_rejected and p == REJECTED)]
    losses = fit(args, recipe, model, lm, packed[0], learnt,
                 lambda: validate(model, packed[1], device, learnt, rank=rank, world=world), part, process)
    tokenizer.model_max_length = context  # 05_infer.py keeps its prompts within what the model has met
    save_model(part, lm, tokenizer, rank)
    if rank == 0:  # the folder takes its name when it is whole
        plot_loss(part / "log.jsonl", part / "loss.png")
        data.write_text(part / "README.md", model_card(args, recipe, n_tokens, losses))
        if final.exists():
            shutil.rmtree(final)
        os.replace(part, final)
        runs.finish_run(run, recipe=recipe, validation_loss=losses, train_tokens=n_tokens)
        for leftover in (*final.glob("*.pt"), *final.glob("*.tmp")):  # last, so that a kill before this loses nothing
            leftover.unlink()
        shutil.rmtree(final / "tokens")
        print(f"wrote {final}; next: python 05_infer.py predict --data-dir {folder}")
    end_process()


if __name__ == "__main__":
    main()
