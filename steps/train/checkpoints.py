"""What a training run leaves on disk: checkpoints, the log, the loss curve, the model card (part of 04_train.py)."""

import json
import os
import pickle

import torch
from torch.distributed.checkpoint.state_dict import (StateDictOptions, get_model_state_dict, get_state_dict, set_model_state_dict,
                                                     set_state_dict)

from common import data, runs

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)  # with FSDP, parts are put together


# ---------------------------------------------------------------- checkpoints

def save_checkpoint(folder, model, optimizer, step, facts, keep, rank=0):
    """folder/checkpoint-<step>.pt, whole or not at all; then all but the last `keep` go.

    All ranks call it, since each may hold a part of the model; rank 0 writes.
    facts: numbers and strings to remember. The schedule and the place in the data follow from the step.
    """
    states = get_state_dict(model, optimizer, options=WHOLE)
    if rank:
        return
    path = folder / f"checkpoint-{step}.pt"
    write_whole(path, {"model": states[0], "optimizer": states[1], "step": step, "facts": facts, "rng": torch.get_rng_state()})
    for old in list_checkpoints(folder)[:-keep]:
        old.unlink()
    for old in folder.glob("best-*.pt"):
        if old.stem != f"best-{facts['best_step']}":
            old.unlink()


def write_whole(path, content):
    """torch.save under another name, then rename.

    Raises SystemExit: the disk is full. What was there before stays.
    """
    temporary = path.with_suffix(".tmp")
    try:
        with open(temporary, "wb") as f:
            torch.save(content, f)
            f.flush()
            os.fsync(f.fileno())  # on the disk before it takes the name: a power cut leaves no empty checkpoint
    except (OSError, RuntimeError) as error:  # torch reports a short write as RuntimeError
        temporary.unlink(missing_ok=True)
        kept = list_checkpoints(path.parent)
        raise SystemExit(f"{path} cannot be written ({str(error).splitlines()[0]}); is the disk full? The last checkpoint, "
                         f"{kept[-1] if kept else 'none yet'}, is whole. Make room and give the same command again")
    os.replace(temporary, path)


def list_checkpoints(folder):
    """Paths of the checkpoints in a folder, the oldest first."""
    return sorted(folder.glob("checkpoint-*.pt"), key=lambda path: int(path.stem.split("-")[1]))


def load_checkpoint(folder, model, optimizer):
    """Take up the last checkpoint of a folder, if there is one. Returns (step, facts), (0, {}) without one."""
    paths = list_checkpoints(folder)
    if not paths:
        return 0, {}
    try:
        saved = torch.load(paths[-1], map_location="cpu", weights_only=True, mmap=True)
        set_state_dict(model, optimizer, model_state_dict=saved["model"], optim_state_dict=saved["optimizer"],
                       options=WHOLE)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, KeyError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise SystemExit(f"{paths[-1]}: not a checkpoint of this run ({str(error).splitlines()[0]}). "
                         f"Delete it to go on from the one before, or start afresh with --no-resume")
    torch.set_rng_state(saved["rng"])
    return saved["step"], saved["facts"]


def whole_weights(model):
    """All weights of a model on the CPU, wherever its parts are; all ranks call it."""
    return get_model_state_dict(model, options=WHOLE)


def save_best(folder, model, step, rank=0):
    """folder/best-<step>.pt: the weights of the moment; all ranks call it, rank 0 writes."""
    weights = whole_weights(model)
    if rank == 0:
        write_whole(folder / f"best-{step}.pt", weights)


def load_best(folder, model, step):
    set_model_state_dict(model, torch.load(folder / f"best-{step}.pt", map_location="cpu", weights_only=True, mmap=True), options=WHOLE)


# ---------------------------------------------------------------- the log

def truncate_log(path, step):
    """Forget the lines of log.jsonl that lie after the checkpoint."""
    if path.is_file():
        data.keep_whole_lines(path)
        kept = [row for _, row in data.read_jsonl(path, "python 04_train.py") if row["step"] <= step]
        data.write_jsonl(path, kept)


def open_tensorboard(folder, step):
    """A SummaryWriter that forgets what lies after `step`."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise SystemExit("--tensorboard needs the package tensorboard: pip install tensorboard")
    return SummaryWriter(folder, purge_step=step + 1)


def append_log(path, row, board=None):
    """Add a line to log.jsonl, and its numbers to TensorBoard."""
    with open(path, "a") as f:
        f.write(json.dumps(row) + "\n")
    if board:
        for name in row.keys() - {"step", "seconds"}:
            board.add_scalar(name, row[name], row["step"])


def plot_loss(log_path, png_path):
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for _, row in data.read_jsonl(log_path, "python 04_train.py")]
    valid = [r for r in rows if "valid_all" in r]
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.plot([r["step"] for r in rows], [r["loss"] for r in rows], color="0.7", lw=0.8, label="train")
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
             f"- versions: {', '.join(f'{k} {v}' for k, v in runs.package_versions().items())}"]
    return "\n".join(lines) + "\n"
