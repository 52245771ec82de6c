"""What a training run leaves on disk: checkpoints, the log, the loss curve, the model card.

With FSDP each process holds a part of the model. So all processes call the functions that save
weights, and the first one writes.
"""

import json
import os
import pickle
import shutil

import torch
from torch.distributed.checkpoint import state_dict

from common import data, runs
from common.process import current_process
from steps.train.lora import merge_lora

# puts FSDP's parts together
WHOLE = state_dict.StateDictOptions(full_state_dict=True, cpu_offload=True)
MADE_BY = "python 04_train.py"
KEEP = 2  # checkpoints


# ---------------------------------------------------------------- checkpoints

def save_checkpoint(folder, model, optimizer, step, progress):
    """folder/checkpoint-<step>.pt, whole or not at all; then all but the last KEEP are deleted.

    progress: numbers and strings to remember. The schedule and the place in the data follow from
        the step.
    """
    weights, moments = state_dict.get_state_dict(model, optimizer, options=WHOLE)
    rank, _ = current_process()
    if rank != 0:
        return
    write_whole(folder / f"checkpoint-{step}.pt", {
        "model": weights, "optimizer": moments, "step": step, "progress": progress,
        "rng": torch.get_rng_state()})
    for old in list_checkpoints(folder)[:-KEEP]:
        old.unlink()
    for old in folder.glob("best-*.pt"):
        if old.stem != f"best-{progress['best_step']}":
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
            os.fsync(f.fileno())  # before the rename: a power cut leaves no empty checkpoint
    except (OSError, RuntimeError) as error:  # torch reports a short write as RuntimeError
        temporary.unlink(missing_ok=True)
        last = (["none yet"] + list_checkpoints(path.parent))[-1]
        raise SystemExit(
            f"{path} cannot be written ({str(error).splitlines()[0]}); is the disk full? The last "
            f"checkpoint, {last}, is whole. Make room and give the same command again") from None
    os.replace(temporary, path)


def list_checkpoints(folder):
    """Paths of the checkpoints in a folder, the oldest first."""
    return sorted(folder.glob("checkpoint-*.pt"), key=lambda path: int(path.stem.split("-")[1]))


def load_checkpoint(folder, model, optimizer):
    """Put the last checkpoint of a folder into model and optimizer.

    Returns: (step, progress); (0, None) where there is no checkpoint.
    Raises SystemExit: the file is not a checkpoint of this model.
    """
    paths = list_checkpoints(folder)
    if not paths:
        return 0, None
    try:
        saved = torch.load(paths[-1], map_location="cpu", weights_only=True, mmap=True)
        state_dict.set_state_dict(model, optimizer, model_state_dict=saved["model"],
                       optim_state_dict=saved["optimizer"], options=WHOLE)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, KeyError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise SystemExit(
            f"{paths[-1]}: not a checkpoint of this run ({str(error).splitlines()[0]}). Delete it "
            f"to go on from the one before, or start afresh with --no-resume") from None
    torch.set_rng_state(saved["rng"])
    return saved["step"], saved["progress"]


def save_best(folder, model, step):
    """folder/best-<step>.pt: the weights at this step."""
    weights = state_dict.get_model_state_dict(model, options=WHOLE)
    rank, _ = current_process()
    if rank == 0:
        write_whole(folder / f"best-{step}.pt", weights)


def load_best(folder, model, step):
    """Put the weights that save_best wrote into the model."""
    path = folder / f"best-{step}.pt"
    weights = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    state_dict.set_model_state_dict(model, weights, options=WHOLE)


# ---------------------------------------------------------------- the log

def truncate_log(path, step):
    """Remove the lines of log.jsonl that come after the checkpoint at `step`."""
    if path.is_file():
        data.keep_whole_lines(path)
        rows = [row for _, row in data.read_jsonl(path, MADE_BY)]
        data.write_jsonl(path, [row for row in rows if row["step"] <= step])


def append_log(path, row, board=None):
    """Add a line to log.jsonl, and its numbers to TensorBoard."""
    with open(path, "a") as f:
        f.write(json.dumps(row) + "\n")
    if board:
        for name in row.keys() - {"step", "seconds"}:
            board.add_scalar(name, row[name], row["step"])


def plot_loss(folder):
    """loss.png, a picture of the losses in log.jsonl."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for _, row in data.read_jsonl(folder / "log.jsonl", MADE_BY)]
    valid = [row for row in rows if "valid_all" in row]
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.plot([row["step"] for row in rows], [row["loss"] for row in rows], color="0.7", lw=0.8,
              label="train")
    for name, color in (("text", "#0072b2"), ("music", "#d55e00")):
        axes.plot([row["step"] for row in valid], [row[f"valid_{name}"] for row in valid], "o-",
                  ms=3, color=color, label=f"validation, {name} tokens")
    axes.set(xlabel="step", ylabel="cross-entropy (nats per token)")
    axes.legend(frameon=False)
    figure.savefig(folder / "loss.png", dpi=120)
    plt.close(figure)


# ---------------------------------------------------------------- the folder model/

def save_model(folder, model, tokenizer):
    """The model as an ordinary Hugging Face folder. All processes call it, the first one writes."""
    merge_lora(model)
    weights = state_dict.get_model_state_dict(model, options=WHOLE)
    rank, _ = current_process()
    if rank == 0:
        if model.config.tie_word_embeddings:
            weights.pop("lm_head.weight", None)
        model.save_pretrained(folder, state_dict=weights)
        tokenizer.save_pretrained(folder)


def publish(data_dir, base_model, recipe, seed, n_tokens, losses):
    """Make model.part/model/ whole with log.jsonl, loss.png and README.md; it becomes model/."""
    new, final = data_dir / "model.part" / "model", data_dir / "model"
    shutil.copy(data_dir / "model.part" / "log.jsonl", new)
    plot_loss(new)

    def listed(values, form=""):
        return ", ".join(f"{name} {value:{form}}" for name, value in values.items())

    data.write_text(new / "README.md", f"""\
# TalkPlay, fine-tuned from `{base_model}`

Music recommendation as token generation: the assistant's message begins with the music tokens of a
track, which are looked up in the catalogue that they were made for.

- training dialogues: `{data_dir}/dialogues_train.jsonl`, {n_tokens:,} tokens per epoch
- recipe: {listed(recipe, "g")}, seed {seed}
- validation loss (nats per token): {listed(losses, ".3f")}
- versions: {listed(runs.package_versions())}
""")
    if final.exists():
        shutil.rmtree(final)
    os.replace(new, final)
