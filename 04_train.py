"""04: fine-tune a causal language model on dialogues whose tracks are tokens (paper, sections 2.4 and 3.2).

The vocabulary grows by 5 K + 2 music tokens, whose embeddings are drawn from N(mean, covariance) of
the old ones. Dialogues are packed to the context, with no attention from one to another, and the loss
is taken on every token. Weights that are tied stay tied.

Reads   tracks.jsonl, codes.npy, dialogues_train.jsonl, dialogues_valid.jsonl
Writes  model/ (a Hugging Face folder, log.jsonl, loss.png, README.md); while it runs, model.part/

Demo        python 04_train.py                                       (about 4 minutes on two cores)
Full scale  torchrun --nproc-per-node 8 04_train.py --data-dir data/mpd \
                --base-model meta-llama/Llama-3.2-1B-Instruct        (recipe: paper)

A killed run goes on from its last checkpoint when the same command is given again.
"""

import argparse
import bisect
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
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from common import data, tokens
from common.tokens import MUSIC, RESPONSE, USER
from demo.tiny_llama import tiny_llama, tiny_tokenizer

# The paper gives context, lr, optimiser and global batch; the rest is our choice (see README).
RECIPES = {
    "paper": dict(context=1024, lr=1e-4, batch_size=48, epochs=1.0, warmup=0.03, weight_decay=0.01, drop_tokens=0.05,
                  lessons=0),
    "tiny": dict(context=512, lr=4e-3, batch_size=4, epochs=1.0, warmup=0.05, weight_decay=0.01, drop_tokens=0.05,
                 lessons=6),
}
LESSON_FIELDS = (("title",), ("title", "artist"), ("artist",), ("title", "artist", "album", "year", "tags"), ("tags",))


# ---------------------------------------------------------------- the model

def expand_vocabulary(model, tokenizer, k, seed=0):
    """Add the 5 k + 2 music tokens to tokenizer and model, in place (paper, section 2.4).

    New rows e ~ N(mean, covariance) of the old rows. transformers' own mean_resizing is not used: it
    scales the covariance by 1e-9, which leaves all new rows nearly the same.
    """
    old = len(tokenizer)
    tokens.add_music_tokens(tokenizer, k)
    tied = model.config.tie_word_embeddings
    weight = model.get_input_embeddings().weight.detach()[:old].double()
    output = model.get_output_embeddings().weight.detach()[:old].double()
    model.resize_token_embeddings(max(len(tokenizer), weight.shape[0]), mean_resizing=False)
    with torch.no_grad():
        for layer, rows, stream in ((model.get_input_embeddings(), weight, 0), (model.get_output_embeddings(), output, 1)):
            if stream == 1 and tied:
                break
            new = sample_like(rows, len(tokenizer) - old, seed + stream)
            layer.weight[old:len(tokenizer)] = new.to(layer.weight)
    if tied and model.get_input_embeddings().weight.data_ptr() != model.get_output_embeddings().weight.data_ptr():
        raise SystemExit("input and output embedding came apart when the vocabulary grew; this transformers version "
                         "does not keep them tied: install the one in requirements.txt")


def sample_like(rows, n, seed):
    """n draws from the normal distribution with the mean and covariance of rows (V, d) -> (n, d)."""
    mean, covariance = rows.mean(0), torch.cov(rows.T)
    jitter = 1e-9 * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=rows.dtype)
    noise = torch.randn(n, rows.shape[1], generator=torch.Generator().manual_seed(seed), dtype=rows.dtype)
    return mean + noise @ torch.linalg.cholesky(covariance + jitter).T


def load_base(name, dialogues, seed):
    """(model, tokenizer): the tiny Llama, or a Hugging Face id or folder."""
    if name == "tiny":
        tokenizer = tiny_tokenizer([text for d in dialogues for t in d["turns"] for text in (t["query"], t["response"] or "")])
        return tiny_llama(tokenizer, seed), tokenizer
    try:
        return AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32), AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise SystemExit(f"--base-model {name} cannot be loaded: {str(error).splitlines()[0]} Accepted: tiny, a folder with a "
                         f"model, or a Hugging Face id (log in with `hf auth login` for gated ones)")


# ---------------------------------------------------------------- the data

def drop_codes(codes, rate, rng):
    """Leave out each code with probability `rate`, but never the last one that a track has.

    So the model meets tracks without a playlist token, as all new (cold) tracks are.
    """
    codes = np.array(codes)
    keep = (codes >= 0) & (rng.random(5) >= rate)
    return np.where(keep, codes, -1) if keep.any() else codes


def name_lessons(tracks, codes_of, n, seed=0, per_dialogue=8):
    """Dialogues that teach the model what its tracks are called: a part of a track's text, then its tokens.

    The dialogues say little of titles, and five tokens do not spell one. Each track of the training playlists (it has
    a playlist code; new tracks stay new) is named n times, by parts of its text drawn at random. This is
    the indexing task of generative retrieval (Tay et al. 2022), not in the paper.
    """
    rng = np.random.default_rng([seed, 1])
    known = [t for t in tracks if codes_of[t["track_id"]][0] >= 0]
    turns = []
    for track in known * n:
        fields = LESSON_FIELDS[int(rng.integers(len(LESSON_FIELDS)))]
        text = data.item_text(track, fields) or data.item_text(track)
        if text:
            turns.append({"query": text, "music": track["track_id"], "response": None})
    turns = [turns[i] for i in rng.permutation(len(turns))]
    return [{"turns": turns[i:i + per_dialogue]} for i in range(0, len(turns), per_dialogue)]


def encode_all(coder, dialogues, codes_of, context, drop=0.0, seed=0):
    """Dialogues -> list of (ids, parts), each of at most `context` tokens.

    A longer dialogue is cut at a turn, and its later turns begin a new piece. A single turn that does
    not fit is cut at the end.
    Returns: pieces, number of dialogues cut at a turn, number of turns cut short.
    """
    pieces, cut_dialogues, cut_turns = [], 0, 0
    for d, dialogue in enumerate(tqdm(dialogues, desc="encode", leave=False)):
        rng = np.random.default_rng([seed, d])
        turns = dialogue["turns"]
        # a fresh name for each turn, since the same track may lose different codes at each
        named, dropped = [], {}
        for t, turn in enumerate(turns):
            named.append(turn | {"music": None if turn["music"] is None else t})
            if turn["music"] is not None:
                dropped[t] = drop_codes(codes_of[turn["music"]], drop, rng)
        whole = True
        while named:
            n = len(named)
            ids, parts = tokens.encode_dialogue(coder, named, dropped)
            while len(ids) > context and n > 1:
                n, whole = n - 1, False
                ids, parts = tokens.encode_dialogue(coder, named[:n], dropped)
            cut_turns += len(ids) > context
            pieces.append((ids[:context], parts[:context]))
            named = named[n:]
        cut_dialogues += not whole
    return pieces, cut_dialogues, cut_turns


def pack(lengths, context):
    """Best-fit decreasing: put pieces into as few bins of `context` tokens as is easy. Returns lists of indices."""
    bins, free = [], []  # free: sorted (tokens left, bin)
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        at = bisect.bisect_left(free, (lengths[i], -1))
        left, b = free.pop(at) if at < len(free) else (context, len(bins))
        if b == len(bins):
            bins.append([])
        bins[b].append(i)
        bisect.insort(free, (left - lengths[i], b))
    return bins


def fill_bin(pieces, members, context, pad):
    """Lay pieces one after another -> ids, positions, labels, parts, each (context,) int64.

    Positions restart with each piece: transformers reads the borders of the dialogues from them, if
    there is no attention mask and no cache. A piece's first token is nobody's label.
    """
    ids, labels = np.full(context, pad), np.full(context, -100)
    parts, positions = np.zeros(context, np.int64), np.arange(context)
    at = 0
    for i in members:
        piece, part = pieces[i]
        end = at + len(piece)
        ids[at:end], parts[at:end], positions[at:end] = piece, part, np.arange(len(piece))
        labels[at + 1:end] = piece[1:]
        at = end
    positions[at:] = np.arange(context - at)
    return ids, positions, labels, parts


def stack(pieces, bins, chosen, context, pad, device):
    """Bins -> four (B, context) tensors: ids, positions, labels, parts."""
    rows = [fill_bin(pieces, bins[b], context, pad) for b in chosen]
    return [torch.from_numpy(np.stack(column)).to(device) for column in zip(*rows)]


# ---------------------------------------------------------------- the loss

def token_losses(model, ids, positions, labels):
    """Cross-entropy of each next token, (B, T - 1) float32, 0 where the label is -100."""
    # use_cache=False: with a cache transformers would ignore the restarting positions, and dialogues leak
    logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100,
                           reduction="none").view(labels.shape[0], -1)


def autocast(device):
    """bfloat16 arithmetic on a GPU, over float32 weights; nothing on a CPU, where it is slower."""
    return torch.autocast("cuda", torch.bfloat16) if "cuda" in str(device) else nullcontext()


@torch.no_grad()
def validate(model, pieces, bins, context, pad, device, size=8):
    """Mean loss (nats a token) of all tokens, of text (queries and answers) and of music."""
    model.eval()
    sums = {"all": [0.0, 0], "text": [0.0, 0], "music": [0.0, 0]}
    for i in range(0, len(bins), size):
        ids, positions, labels, parts = stack(pieces, bins, range(i, min(i + size, len(bins))), context, pad, device)
        with autocast(device):
            losses = token_losses(model, ids, positions, labels)
        known, part = labels[:, 1:] != -100, parts[:, 1:]
        groups = {"all": known, "text": known & ((part == USER) | (part == RESPONSE)), "music": known & (part == MUSIC)}
        for name, mask in groups.items():
            sums[name][0] += losses[mask].sum().item()
            sums[name][1] += mask.sum().item()
    model.train()
    return {name: total / max(n, 1) for name, (total, n) in sums.items()}


def learning_rate(step, steps, peak, warmup):
    """Linear warm-up, then a cosine down to a tenth of the peak."""
    warm = max(1, round(warmup * steps))
    if step < warm:
        return peak * (step + 1) / warm
    return peak * (0.1 + 0.45 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm))))


# ---------------------------------------------------------------- checkpoints and the log

def save_checkpoint(path, model, optimizer, step, seconds):
    temporary = path.with_suffix(".tmp")
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "seconds": seconds,
                "rng": torch.get_rng_state()}, temporary)
    os.replace(temporary, path)


def load_checkpoint(path, model, optimizer, device):
    """Load what save_checkpoint saved; returns (step, seconds)."""
    try:
        saved = torch.load(path, map_location=device, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
    except (RuntimeError, KeyError, ValueError, EOFError) as error:
        raise SystemExit(f"{path}: not a checkpoint of this run ({str(error).splitlines()[0]}). "
                         f"Delete it, or start afresh with --no-resume")
    torch.set_rng_state(saved["rng"].cpu())
    return saved["step"], saved["seconds"]


def truncate_log(path, step):
    """Forget the lines of log.jsonl that lie after the checkpoint."""
    if path.is_file():
        kept = [row for _, row in data.read_jsonl(path, "python 04_train.py") if row["step"] <= step]
        data.write_jsonl(path, kept)


def append_log(path, row):
    with open(path, "a") as f:
        f.write(json.dumps(row) + "\n")


def plot_loss(log_path, png_path):
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for _, row in data.read_jsonl(log_path, "python 04_train.py")]
    train, valid = [r for r in rows if "loss" in r], [r for r in rows if "valid_all" in r]
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.plot([r["step"] for r in train], [r["loss"] for r in train], color="0.7", lw=0.8, label="train, all tokens")
    for name, color in (("text", "#0072b2"), ("music", "#d55e00")):
        axes.plot([r["step"] for r in valid], [r[f"valid_{name}"] for r in valid], "o-", ms=3, color=color,
                  label=f"validation, {name} tokens")
    axes.set(xlabel="step", ylabel="cross-entropy (nats a token)")
    axes.legend(frameon=False)
    figure.savefig(png_path, dpi=120)
    plt.close(figure)


def model_card(args, recipe, n_tokens, losses):
    lines = [f"# TalkPlay, fine-tuned from `{args.base_model}`", "",
             "Music recommendation as token generation: the assistant's message begins with five music tokens, which are "
             "looked up in the catalogue they were made for.", "",
             f"- training dialogues: `{args.data_dir}/dialogues_train.jsonl`, {n_tokens:,} tokens an epoch",
             f"- recipe: {', '.join(f'{k} {v:g}' for k, v in recipe.items())}, seed {args.seed}",
             f"- validation loss (nats a token): {', '.join(f'{k} {v:.3f}' for k, v in losses.items())}",
             f"- versions: {', '.join(f'{k} {v}' for k, v in data.package_versions().items())}"]
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------- main

def parse_args():
    """(args, recipe): the recipe's values, with those given as flags laid over them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--data-dir", type=Path, default=Path("data/demo"), help="folder of the data (default data/demo)")
    add("--base-model", default="tiny", help="tiny (built here, default), a folder, or a Hugging Face id")
    add("--recipe", choices=RECIPES, default=None, help="values of the next flags (default: tiny for the tiny model, else paper)")
    for name, what in (("context", "tokens a sequence"), ("lr", "peak learning rate"),
                       ("batch-size", "sequences a step, over all GPUs"), ("epochs", "passes over the training dialogues"),
                       ("warmup", "share of the steps with rising learning rate"), ("weight-decay", "of AdamW"),
                       ("drop-tokens", "share of music codes left out in training; 0 = none"),
                       ("lessons", "times each known track is named outside the dialogues; 0 = never, as in the paper")):
        values = ", ".join(f"{r}: {v[name.replace('-', '_')]:g}" for r, v in RECIPES.items())
        add(f"--{name}", type=int if name in ("context", "batch-size", "lessons") else float, help=f"{what} ({values})")
    add("--micro-batch", type=int, default=0, help="sequences a forward pass and GPU; 0 (default) = all of a step")
    add("--grad-clip", type=float, default=1.0, help="largest norm of the gradient (default 1); 0 = no clipping")
    add("--eval-every", type=int, default=100, help="steps between validations (default 100); 0 = only at the end")
    add("--save-every", type=int, default=100, help="steps between checkpoints (default 100); 0 = none")
    add("--limit", type=int, default=0, help="training dialogues used; 0 (default) = all")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: cuda if there is one")
    add("--seed", type=int, default=0, help="of the model, the new rows and the order (default 0)")
    add("--resume", action=argparse.BooleanOptionalAction, default=True,
        help="go on with a run that was cut (default); --no-resume starts afresh")
    args = parser.parse_args()
    recipe = dict(RECIPES[args.recipe or ("tiny" if args.base_model == "tiny" else "paper")])
    recipe |= {name: getattr(args, name) for name in recipe if getattr(args, name) is not None}
    if min(recipe["context"] - 1, recipe["batch_size"], recipe["epochs"], recipe["lr"]) <= 0:
        raise SystemExit("--context must be above 1; --batch-size, --epochs and --lr above 0")
    return args, recipe


def start_process(device):
    """(rank, world size, this process's device), with torch.distributed started where torchrun runs us."""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:
        if device == "cuda":
            device = f"cuda:{os.environ['LOCAL_RANK']}"
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if "cuda" in device else "gloo")
    torch.set_flush_denormal(True)  # on CPU, tiny numbers would slow everything down
    return rank, world, device


def load_data(folder, limit):
    """(K, tracks, {track_id: codes}, training dialogues, validation dialogues)."""
    tracks = data.load_tracks(folder)
    codes = data.load_codes(folder, len(tracks))
    row_of = {t["track_id"]: i for i, t in enumerate(tracks)}
    train, valid = (data.load_dialogues(folder / f"dialogues_{split}.jsonl", row_of) for split in ("train", "valid"))
    info = folder / "codebooks" / "info.json"
    k = json.loads(info.read_text())["k"] if info.is_file() else int(codes.max()) + 1
    return k, tracks, {track_id: codes[row] for track_id, row in row_of.items()}, train[:limit or None], valid


def make_optimizer(model, recipe):
    """AdamW; matrices and embeddings decay, norms do not."""
    groups = [{"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": recipe["weight_decay"]},
              {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe["lr"], betas=(0.9, 0.95), fused=True)


def fit(args, recipe, model, pieces, bins, check, part, resuming, rank, world, device, pad):
    """The training loop. check: function that returns the validation losses. Returns the last of them."""
    steps = math.ceil(recipe["epochs"] * len(bins) / recipe["batch_size"])
    optimizer = make_optimizer(model, recipe)
    checkpoint, log = part / "checkpoint.pt", part / "log.jsonl"
    step, seconds, losses = 0, 0.0, {}
    if resuming and checkpoint.is_file():
        step, seconds = load_checkpoint(checkpoint, model, optimizer, device)
        print(f"rank {rank}: going on from step {step}")
    if rank == 0:
        truncate_log(log, step)
    wrapped = DistributedDataParallel(model, device_ids=[device] if "cuda" in device else None) if world > 1 else model

    epochs = math.ceil(recipe["epochs"]) + 1  # one more, so that the last step is as full as the others
    order = np.concatenate([np.random.default_rng([args.seed, e]).permutation(len(bins)) for e in range(epochs)])
    started = time.time() - seconds
    bar = tqdm(total=steps, initial=step, disable=rank != 0, desc="train", mininterval=1)
    while step < steps:
        batch = order[step * recipe["batch_size"]:(step + 1) * recipe["batch_size"]]
        # every rank knows the whole batch, so the mean over its tokens needs no messages
        n_labels = sum(len(pieces[i][0]) - 1 for b in batch for i in bins[b])
        mine = batch[rank::world]
        micro = args.micro_batch or max(1, len(mine))
        lr = learning_rate(step, steps, recipe["lr"], recipe["warmup"])
        for group in optimizer.param_groups:
            group["lr"] = lr
        total = torch.zeros((), device=device)
        for s in range(0, max(1, len(mine)), micro):
            # a rank without a sequence of its own in a small batch joins in with one that counts nothing
            chosen = mine[s:s + micro] if len(mine) else batch[:1]
            ids, positions, labels, _ = stack(pieces, bins, chosen, recipe["context"], pad, device)
            with nullcontext() if world == 1 or s + micro >= len(mine) else wrapped.no_sync():
                with autocast(device):
                    loss = token_losses(wrapped, ids, positions, labels).sum() / n_labels * bool(len(mine))
                (loss * world).backward()  # DDP averages over ranks, and we want their sum
            total += loss.detach()
        if world > 1:
            dist.all_reduce(total)
        if not torch.isfinite(total):
            raise SystemExit(f"the loss is {total.item()} at step {step}; the last checkpoint is {checkpoint}. "
                             f"Try a smaller --lr (now {recipe['lr']:g}) with --no-resume")
        if args.grad_clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), args.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if rank == 0:
            seconds = time.time() - started
            row = {"step": step, "loss": round(total.item(), 6), "lr": lr, "tokens": n_labels, "seconds": round(seconds, 1)}
            if step == steps or (args.eval_every and step % args.eval_every == 0):
                losses = check()
                row |= {f"valid_{name}": round(value, 6) for name, value in losses.items()}
                bar.write(f"step {step}: validation loss {losses['all']:.3f} (text {losses['text']:.3f}, music {losses['music']:.3f})")
            append_log(log, row)
            bar.set_postfix(loss=f"{row['loss']:.3f}", refresh=False)
            if args.save_every and step % args.save_every == 0 and step < steps:
                save_checkpoint(checkpoint, model, optimizer, step, seconds)
        if world > 1:
            dist.barrier()
        bar.update()
    bar.close()
    return losses


def main():
    args, recipe = parse_args()
    rank, world, device = start_process(args.device)
    folder, part, final = args.data_dir, args.data_dir / "model.part", args.data_dir / "model"
    k, tracks, codes_of, train, valid = load_data(folder, args.limit)
    run, state = data.begin_run(
        folder, "04_train", args, reads=["tracks.jsonl", "codes.npy", "dialogues_train.jsonl", "dialogues_valid.jsonl"],
        writes=[f"model/{name}" for name in ("model.safetensors", "config.json", "tokenizer.json", "log.jsonl")],
        resume=args.resume, record=rank == 0)
    if state == "done":
        print("04_train: already done, nothing changed")
        return

    # the model and its vocabulary: the same on every rank, since everything is seeded
    model, tokenizer = load_base(args.base_model, train, args.seed)
    expand_vocabulary(model, tokenizer, k, args.seed)
    coder = tokens.make_coder(tokenizer)
    model.to(device).train()
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    if rank == 0:
        if state == "new" and part.exists():
            shutil.rmtree(part)
        part.mkdir(exist_ok=True)
    if world > 1:
        dist.barrier()

    # dialogues -> pieces -> bins
    context = recipe["context"]
    train = train + name_lessons(tracks, codes_of, recipe["lessons"], args.seed)
    pieces, cut, short = encode_all(coder, train, codes_of, context, recipe["drop_tokens"], args.seed)
    valid_pieces, _, _ = encode_all(coder, valid, codes_of, context)
    bins, valid_bins = (pack([len(ids) for ids, _ in p], context) for p in (pieces, valid_pieces))
    n_tokens = sum(len(ids) for ids, _ in pieces)
    if rank == 0:
        print(f"{len(train):,} dialogues (lessons on names among them), {n_tokens:,} tokens in {len(bins):,} packed sequences ({n_tokens / len(bins) / context:.1%} "
              f"full); {cut:,} dialogues cut at a turn, {short:,} turns cut short")
        print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {5 * k + 2:,} new tokens (K = {k})")

    def check():
        return validate(model, valid_pieces, valid_bins, context, pad, device)

    losses = fit(args, recipe, model, pieces, bins, check, part, state == "resume", rank, world, device, pad)
    if rank == 0:  # the Hugging Face folder takes its name when it is whole
        losses = losses or check()
        tokenizer.model_max_length = context  # 05_infer.py keeps its prompts within what the model has met
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        plot_loss(part / "log.jsonl", part / "loss.png")
        data.write_text(part / "README.md", model_card(args, recipe, n_tokens, losses))
        (part / "checkpoint.pt").unlink(missing_ok=True)
        if final.exists():
            shutil.rmtree(final)
        os.replace(part, final)
        data.finish_run(run, recipe=recipe, validation_loss=losses, train_tokens=n_tokens)
        print(f"wrote {final}; next: python 05_infer.py predict --data-dir {folder}")
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
