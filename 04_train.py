"""04: fine-tune a language model on dialogues whose tracks are tokens (paper, 2.2, 2.3 and 3.2).

The vocabulary grows by the music tokens, whose embeddings are drawn from N(mean, covariance) of the
old ones. Dialogues are packed to the context, with no attention from one to another. The loss is
taken on every token. Weights that are tied stay tied.

Reads   tracks.jsonl and its annotations, codes.npy, codebooks/info.json (K),
        dialogues_train.jsonl, dialogues_valid.jsonl
Writes  model/ (a Hugging Face folder, log.jsonl, loss.png, README.md); while it runs, model.part/

Demo        python 04_train.py                                     (5 minutes on two cores)
Full scale  torchrun --nproc-per-node 8 04_train.py --data-dir data/mpd \
                --base-model meta-llama/Llama-3.2-1B-Instruct      (recipe: paper)

A run that was killed continues from its last checkpoint when the same command is given again.
"""

import argparse
import math
import os
import shutil
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint as recompute
from tqdm import tqdm

from common import data, flags, runs, tokens
from common.process import current_process, end_process, start_process
from common.tokens import MODALITIES, MUSIC, REJECTED, RESPONSE, USER
from steps.train import checkpoints, packing
from steps.train.base_models import load_base
from steps.train.indexing_examples import indexing_examples, standalone_answers
from steps.train.lora import add_lora
from steps.train.parallel import accumulate, autocast, distribute

# The paper gives context, lr, optimiser and global batch; the rest is ours (docs/choices.md).
RECIPES = {
    "paper": {"context": 1024, "lr": 1e-4, "batch_size": 48, "epochs": 1.0, "warmup": 0.03,
              "weight_decay": 0.01, "drop_tokens": 0.05, "indexing_repeats": 0},
    "demo": {"context": 512, "lr": 3e-3, "batch_size": 4, "epochs": 1.0, "warmup": 0.05,
             "weight_decay": 0.01, "drop_tokens": 0.05, "indexing_repeats": 30},
}
MEANING = {
    "context": "tokens per sequence", "lr": "peak learning rate",
    "batch_size": "sequences per step, over all GPUs", "epochs": "passes over the dialogues",
    "warmup": "share of the steps in which the learning rate rises", "weight_decay": "of AdamW",
    "drop_tokens": "share of music codes left out in training; 0 = none",
    "indexing_repeats": "indexing examples per known track; 0 = none",
}
LOSS_ON = {"all": tokens.ALL_PARTS, "assistant": (MUSIC, REJECTED, RESPONSE)}  # parts learnt
GRAD_CLIP = 1.0         # largest norm of the gradient
LOGITS_AT_ONCE = 2**28  # 1 GiB of float32
VALID_BATCH = 8         # sequences of a forward pass in validation
# arguments that change no result
IGNORED = (*runs.PLACE, "save_every", "tensorboard", "micro_batch", "gradient_checkpointing")
WRITES = ("model.safetensors", "config.json", "tokenizer.json", "log.jsonl")


def expand_vocabulary(model, tokenizer, k, seed=0):
    """Add the music tokens of K = k to tokenizer and model, in place (paper, section 2.2).

    transformers' own mean_resizing is not used: it scales the covariance by 1e-9, which leaves all
    new rows nearly the same. Rows beyond the tokenizer's words, as some base models have, are
    dropped.
    """
    n_old = len(tokenizer)
    tokens.add_music_tokens(tokenizer, k)
    layers = [model.get_input_embeddings]
    if not model.config.tie_word_embeddings:
        layers.append(model.get_output_embeddings)
    new_rows = [sample_like(layer().weight.detach()[:n_old].double(), len(tokenizer) - n_old,
                            seed + i) for i, layer in enumerate(layers)]
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        for layer, rows in zip(layers, new_rows, strict=True):
            layer().weight[n_old:] = rows.to(layer().weight)


def sample_like(rows, n, seed):
    """n draws from the normal distribution with the mean and covariance of rows (V, d): (n, d)."""
    covariance = torch.cov(rows.T)
    jitter = 1e-9 * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=rows.dtype)
    noise = torch.randn(n, rows.shape[1], generator=torch.Generator().manual_seed(seed),
                        dtype=rows.dtype)
    return rows.mean(0) + noise @ torch.linalg.cholesky(covariance + jitter).T


# ---------------------------------------------------------------- the loss

class LossModel(torch.nn.Module):
    """A causal LM whose forward gives the cross-entropy of each next token (paper, section 2.3)."""

    def __init__(self, lm):
        super().__init__()
        self.lm = lm

    def forward(self, ids, positions, labels):
        """ids, positions, labels: (B, T) int64. Returns (B, T - 1) float32, 0 at labels of -100."""
        # with a cache transformers would ignore the restarting positions, and dialogues would leak
        hidden = self.lm.base_model(input_ids=ids, position_ids=positions,
                                    use_cache=False).last_hidden_state[:, :-1]  # (B, T - 1, d)
        losses = chunked_losses(self.lm.get_output_embeddings(), hidden.flatten(0, 1),
                                labels[:, 1:].flatten())
        return losses.view(len(ids), -1)


def chunked_losses(head, hidden, labels):
    """Cross-entropy of hidden (T, d) with labels (T,), at most LOGITS_AT_ONCE logits in memory.

    Llama's 133,000 words make 0.5 GiB of float32 logits per thousand tokens, their gradients as
    much again. So the backward pass computes each chunk's logits again.
    """
    def losses(h, y):
        return F.cross_entropy(head(h).float(), y, ignore_index=-100, reduction="none")

    chunk = max(1, LOGITS_AT_ONCE // head.weight.shape[0])
    if len(hidden) <= chunk:
        return losses(hidden, labels)
    chunks = zip(hidden.split(chunk), labels.split(chunk), strict=True)
    return torch.cat([recompute(losses, h, y, use_reentrant=False) for h, y in chunks])


@torch.no_grad()
def validate(model, packed, device):
    """Mean loss (nats per token) of all labels ("all"), of queries and answers ("text"), of music.

    packed: packing.Packed; each process takes its share of the sequences
    """
    rank, world = current_process()
    model.eval()
    sums = torch.zeros(3, 2, dtype=torch.float64, device=device)  # all, text, music: sum, number
    numbers = range(len(packed.sequences))
    for start in range(0, len(numbers), VALID_BATCH * world):
        mine = numbers[start:start + VALID_BATCH * world][rank::world]
        # a process without a sequence of its own joins in with one that counts nothing
        ids, positions, labels, parts = packed.batch(mine or [0], device)
        with autocast(device):
            losses = model(ids, positions, labels)
        parts[labels == -100] = tokens.UNSAID
        for row, names in enumerate((tokens.ALL_PARTS, (USER, RESPONSE), (MUSIC, REJECTED))):
            mask = torch.isin(parts[:, 1:], torch.tensor(names, device=device)) & bool(mine)
            sums[row] += torch.stack([losses[mask].sum(), mask.sum()])
    if world > 1:
        torch.distributed.all_reduce(sums)
    if hasattr(model, "reshard"):  # FSDP keeps the outermost weights whole until a backward pass
        model.reshard()
    model.train()
    means = sums[:, 0] / sums[:, 1].clamp(min=1)
    return dict(zip(("all", "text", "music"), means.tolist(), strict=True))


# ---------------------------------------------------------------- the loop

def make_optimizer(model, lr, weight_decay):
    """AdamW with betas 0.9, 0.95. Matrices and embeddings decay, norms do not."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [{"params": [p for p in trainable if (p.ndim >= 2) == is_matrix],
               "weight_decay": weight_decay * is_matrix} for is_matrix in (True, False)]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr, (0.9, 0.95), fused=True)


def learning_rate(step, steps, peak, warmup):
    """Linear warm-up, then a cosine down to a tenth of the peak."""
    warm = max(1, round(warmup * steps))
    if step < warm:
        return peak * (step + 1) / warm
    return peak * (0.1 + 0.45 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm))))


def fit(model, train, valid, folder, device, recipe, *, micro_batch=0, eval_every=0, save_every=0,
        seed=0, board_folder=None):
    """Train from the last checkpoint in `folder` on; the model ends with its best weights.

    model: LossModel, distributed; train, valid: packing.Packed; recipe: as in RECIPES
    board_folder: for TensorBoard, or None; the other arguments are flags of the script
    Returns: the lowest validation losses, {"all", "text", "music"}
    Raises SystemExit: the loss or the gradient is not finite.
    """
    rank, _ = current_process()
    lm = getattr(model, "module", model).lm  # DistributedDataParallel has it in .module

    # the order is known from the start, so a run that continues needs its step only
    n = len(train.sequences)
    batch_size = recipe["batch_size"]
    steps = math.ceil(recipe["epochs"] * n / batch_size)
    order = np.concatenate([np.random.default_rng([seed, epoch]).permutation(n) for epoch
                            in range(math.ceil(recipe["epochs"]) + 1)])  # the last step is full
    labels_per_sequence = train.count_labels()
    optimizer = make_optimizer(lm, recipe["lr"], recipe["weight_decay"])
    step, progress = checkpoints.load_checkpoint(folder, lm, optimizer)
    progress = progress or {"seconds": 0.0, "best_step": 0, "best": {}}
    log = checkpoints.Log(folder / "log.jsonl", step, board_folder) if rank == 0 else None
    begun = time.time() - progress["seconds"]
    labels_seen = 0
    bar = tqdm(total=steps, initial=step, disable=rank != 0, desc="train", mininterval=1)
    while step < steps:
        # forward and backward of all micro-batches, over all processes
        chosen = order[step * batch_size:(step + 1) * batch_size]
        n_labels = max(1, int(labels_per_sequence[chosen].sum()))
        loss = accumulate(model, train, chosen, micro_batch, n_labels, device).item()
        norm = torch.nn.utils.clip_grad_norm_(lm.parameters(), GRAD_CLIP)
        norm = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        if not math.isfinite(loss + norm):
            raise SystemExit(f"step {step + 1}: loss {loss}, norm of the gradient {norm}. Try a "
                             f"smaller --lr (now {recipe['lr']:g}) with --no-resume")

        # update
        rate = learning_rate(step, steps, recipe["lr"], recipe["warmup"])
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        labels_seen += n_labels
        progress["seconds"] = time.time() - begun
        row = {"step": step, "loss": round(loss, 6), "lr": rate, "norm": round(norm, 4),
               "tokens": n_labels, "seconds": round(progress["seconds"], 1)}

        # validate, and keep the best weights
        if step == steps or (eval_every and step % eval_every == 0):
            losses = validate(model, valid, device)
            row |= {f"valid_{name}": round(value, 6) for name, value in losses.items()}
            if not progress["best"] or losses["all"] < progress["best"]["all"]:
                progress |= {"best": losses, "best_step": step}
                if step < steps:
                    checkpoints.save_best(folder, lm, step)

        # log and checkpoint
        if rank == 0:
            log.write(row, bar)
            speed = labels_seen / bar.format_dict["elapsed"]
            bar.set_postfix(loss=f"{loss:.3f}", tokens_per_s=f"{speed:,.0f}", refresh=False)
        if save_every and step % save_every == 0 and step < steps:
            checkpoints.save_checkpoint(folder, lm, optimizer, step, progress)
        bar.update()
    bar.close()
    if progress["best_step"] != step:
        checkpoints.load_best(folder, lm, progress["best_step"])
    return progress["best"]


# ---------------------------------------------------------------- main

def parse_args():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n")[0])
    add = parser.add_argument
    flags.add_shared(parser, "data-dir", "device", "seed", "resume")
    add("--base-model", default="tiny", help="tiny (default), a folder, or a Hugging Face id")
    add("--recipe", choices=RECIPES, help="of the next flags (default: demo if tiny, else paper)")
    for name, meaning in MEANING.items():
        values = ", ".join(f"{recipe}: {value[name]:g}" for recipe, value in RECIPES.items())
        add("--" + name.replace("_", "-"), type=type(RECIPES["paper"][name]),
            help=f"{meaning} ({values})")
    add("--loss-on", choices=LOSS_ON, default="all", help="all tokens (default) or the assistant's")
    add("--skip-rejected", action="store_true", help="no loss on music that is turned down")
    add("--micro-batch", type=int, default=0, help="sequences per forward pass; 0 (default) = all")
    add("--eval-every", type=int, default=400, help="steps (default 400); 0 = only at the end")
    add("--save-every", type=int, default=100, help="steps per checkpoint (default 100); 0 = none")
    add("--fsdp", action="store_true", help="under torchrun: split each layer over the GPUs")
    add("--lora", type=int, default=0, help="rank of LoRA; 0 (default) = train all weights")
    add("--gradient-checkpointing", action="store_true", help="less memory, a third more time")
    add("--compile", action="store_true", help="torch.compile the model")
    add("--tensorboard", action="store_true", help="losses also to <data-dir>/runs/tensorboard")
    add("--workers", type=int, default=min(8, os.cpu_count()),
        help="processes that encode the dialogues (default: one per core, at most 8)")
    add("--limit", type=int, default=0, help="training dialogues used; 0 (default) = all")
    args = parser.parse_args()

    # the recipe's values, where none is given, so that what is used goes on record
    args.recipe = args.recipe or ("demo" if args.base_model == "tiny" else "paper")
    for name, value in RECIPES[args.recipe].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    flags.check_ranges(
        args, context=tokens.ANSWER_ROOM + 1, lr=1e-12, batch_size=1, epochs=1e-6, warmup=(0, 1),
        weight_decay=0, drop_tokens=(0, 0.99), indexing_repeats=0, micro_batch=0, eval_every=0,
        save_every=0, lora=0, workers=1, limit=0)
    if args.fsdp and (args.lora or "WORLD_SIZE" not in os.environ):
        raise SystemExit("--fsdp spreads a model over GPUs: it needs torchrun --nproc-per-node 8 "
                         "04_train.py ..., and no --lora, which is for one GPU")
    return args


def load_data(folder, limit=0):
    """(K, tracks, {track_id: codes}, training dialogues, validation dialogues)."""
    tracks = data.load_tracks(folder)
    codes = data.load_codes(folder, len(tracks))
    codes_of = {t["track_id"]: row for t, row in zip(tracks, codes, strict=True)}
    train, valid = (data.load_dialogues(folder / f"dialogues_{split}.jsonl", codes_of)
                    for split in ("train", "valid"))
    info = folder / "codebooks" / "info.json"
    made_by = f"python 02_quantize.py --data-dir {folder}"
    k = next(data.read_jsonl(info, made_by))[1]["k"]
    if codes.max() >= k:
        raise SystemExit(f"{info} says K = {k}, but codes.npy has code {codes.max()}; make both "
                         f"again with: {made_by} --no-resume")
    return k, tracks, codes_of, train[:limit or None], valid


def main():
    args = parse_args()
    rank, _, device = start_process(args.device)
    torch.set_flush_denormal(True)  # on a CPU, tiny numbers would slow everything down
    folder, part = args.data_dir, args.data_dir / "model.part"
    k, tracks, codes_of, train, valid = load_data(folder, args.limit)
    run, state = runs.begin_run(
        folder, "04_train", args, record=False, resume=args.resume, ignore=IGNORED,
        reads=[*data.catalogue_files(folder), "codes.npy", "codebooks/info.json",
               "dialogues_train.jsonl", "dialogues_valid.jsonl"],
        writes=[f"model/{file}" for file in WRITES])
    if state == "done":
        if rank == 0:
            print("04_train: already done (--no-resume does it again)")
        return end_process()

    # the model and its vocabulary, the same in every process: all draws are seeded
    lm, tokenizer = load_base(args.base_model, train, args.seed)
    expand_vocabulary(lm, tokenizer, k, args.seed)
    dialogue_tokenizer = tokens.DialogueTokenizer(tokenizer)
    # besides the dialogues: names of tracks, each with its tokens (docs/choices.md)
    train += indexing_examples(tracks, codes_of, args.indexing_repeats, standalone_answers(train),
                               args.seed)
    if rank == 0:  # all input is good: once nothing of an older run is left, this one is on record
        if state == "new" and part.exists():
            shutil.rmtree(part)
        runs.record_run(run)
        print(f"{len(train):,} training dialogues (indexing examples among them); K = {k}, "
              f"{len(MODALITIES) * k + 2:,} new tokens; {lm.num_parameters():,} parameters")

    # dialogues -> sequences
    learnt = [p for p in LOSS_ON[args.loss_on] if not (args.skip_rejected and p == REJECTED)]
    train = packing.encode_and_pack(part / "tokens/train", train, dialogue_tokenizer, codes_of,
                                    args.context, learnt, args.drop_tokens, args.seed, args.workers)
    valid = packing.encode_and_pack(part / "tokens/valid", valid, dialogue_tokenizer, codes_of,
                                    args.context, learnt)

    # train, then save the best weights
    torch.manual_seed(args.seed)
    if args.lora:
        add_lora(lm, args.lora, torch.bfloat16 if "cuda" in device else torch.float32)
    if args.gradient_checkpointing:
        lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model = distribute(LossModel(lm).train(), device, args.fsdp, args.compile)
    recipe = {name: getattr(args, name) for name in MEANING}
    losses = fit(model, train, valid, part, device, recipe, micro_batch=args.micro_batch,
                 eval_every=args.eval_every, save_every=args.save_every, seed=args.seed,
                 board_folder=folder / "runs" / "tensorboard" if args.tensorboard else None)
    tokenizer.model_max_length = args.context  # 05_infer.py keeps its prompts within it
    checkpoints.save_model(part / "model", lm, tokenizer)
    if rank == 0:
        n_tokens = len(train.segments.ids)
        checkpoints.publish(folder, args.base_model, recipe, args.seed, n_tokens, losses)
        runs.finish_run(run, recipe=recipe, validation_loss=losses, train_tokens=n_tokens)
        shutil.rmtree(part)  # last: a run that is killed before this loses nothing
        print(f"wrote {folder / 'model'}; next: python 05_infer.py predict --data-dir {folder}")
    end_process()


if __name__ == "__main__":
    main()
