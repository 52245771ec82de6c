"""What a training run leaves on disk: checkpoints, the log, the loss curve, the model card.

All processes call what saves weights, since with FSDP each holds a part; the first one writes.
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

WHOLE = state_dict.StateDictOptions(full_state_dict=True, cpu_offload=True)  # joins FSDP's parts
MADE_BY = "python 04_train.py"
KEEP = 2  # checkpoints


def save_checkpoint(folder, model, optimizer, step, progress):
    """folder/checkpoint-<step>.pt, whole or not at all; then all but the last KEEP are deleted.

    progress: numbers to remember. Schedule and place in the data follow from the step.
    """
    weights, moments = state_dict.get_state_dict(model, optimizer, options=WHOLE)
    if current_process()[0] != 0:
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
    """torch.save under another name, then rename. Raises SystemExit: the disk is full."""
    temporary = path.with_suffix(".tmp")
    try:
        with open(temporary, "wb") as f:
            torch.save(content, f)
            f.flush()
            os.fsync(f.fileno())  # before the rename: a power cut leaves no empty checkpoint
    except (OSError, RuntimeError) as error:  # torch reports a short write as RuntimeError
        temporary.unlink(missing_ok=True)
        last = (["none yet"] + list_checkpoints(path.parent))[-1]
        raise SystemExit(f"{path} cannot be written ({str(error).splitlines()[0]}); is the disk "
                         f"full? Make room and give the same command again: the last checkpoint, "
                         f"{last}, is whole") from None
    os.replace(temporary, path)


def list_checkpoints(folder):
    """Paths of the checkpoints in a folder, the oldest first."""
    return sorted(folder.glob("checkpoint-*.pt"), key=lambda path: int(path.stem.split("-")[1]))


def load_checkpoint(folder, model, optimizer):
    """Put the last checkpoint of a folder into model and optimizer: (step, progress).

    Without one: (0, None).

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
        raise SystemExit(f"{paths[-1]}: not a checkpoint of this run ({str(error).splitlines()[0]})"
                         f". Delete it to go on from the one before, or start afresh with "
                         f"--no-resume") from None
    torch.set_rng_state(saved["rng"])
    return saved["step"], saved["progress"]


def save_best(folder, model, step):
    """folder/best-<step>.pt: the weights at this step."""
    weights = state_dict.get_model_state_dict(model, options=WHOLE)
    if current_process()[0] == 0:
        write_whole(folder / f"best-{step}.pt", weights)


def load_best(folder, model, step):
    """Put the weights that save_best wrote into the model."""
    weights = torch.load(folder / f"best-{step}.pt", map_location="cpu", weights_only=True,
                         mmap=True)
    state_dict.set_model_state_dict(model, weights, options=WHOLE)


class Log:
    """log.jsonl, up to a step; also TensorBoard, if it gets a folder."""

    def __init__(self, path, step, board_folder):
        self.path = path
        self.board = None
        if data.keep_whole_lines(path):
            rows = [row for _, row in data.read_jsonl(path, MADE_BY)]
            data.write_jsonl(path, [row for row in rows if row["step"] <= step])
        if step:
            print(f"continuing from step {step}")
        if board_folder:
            from torch.utils.tensorboard import SummaryWriter
            self.board = SummaryWriter(board_folder, purge_step=step + 1)

    def write(self, row, bar):
        """Append a row; validation losses are printed above the progress bar."""
        with open(self.path, "a") as f:
            f.write(json.dumps(row) + "\n")
        if "valid_all" in row:
            bar.write(f"step {row['step']}: validation loss {row['valid_all']:.3f} (text "
                      f"{row['valid_text']:.3f}, music {row['valid_music']:.3f})")
        if self.board:
            for name in row.keys() - {"step", "seconds"}:
                self.board.add_scalar(name, row[name], row["step"])
            self.board.flush()


def plot_loss(folder):
    """loss.png, a picture of the losses in log.jsonl."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for _, row in data.read_jsonl(folder / "log.jsonl", MADE_BY)]
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, label, style in (("loss", "train", {"color": "0.7", "lw": 0.8}),
                               ("valid_text", "validation, text tokens", {"color": "#0072b2"}),
                               ("valid_music", "validation, music tokens", {"color": "#d55e00"})):
        points = [(row["step"], row[name]) for row in rows if name in row]
        marker = "" if name == "loss" else "o"
        axes.plot(*zip(*points, strict=True), marker=marker, ms=3, label=label, **style)
    axes.set(xlabel="step", ylabel="cross-entropy (nats per token)")
    axes.legend(frameon=False)
    figure.savefig(folder / "loss.png", dpi=120)
    plt.close(figure)


def save_model(folder, model, tokenizer):
    """The model as an ordinary Hugging Face folder. All processes call it, the first one writes."""
    merge_lora(model)
    weights = state_dict.get_model_state_dict(model, options=WHOLE)
    if current_process()[0] == 0:
        if model.config.tie_word_embeddings:
            weights.pop("lm_head.weight", None)
        model.save_pretrained(folder, state_dict=weights)
        tokenizer.save_pretrained(folder)


def publish(data_dir, base_model, recipe, seed, n_tokens, losses):
    """Make model.part/model/ whole with log.jsonl, loss.png and README.md; it becomes model/."""
    new = data_dir / "model.part" / "model"
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
    if (data_dir / "model").exists():
        shutil.rmtree(data_dir / "model")
    os.replace(new, data_dir / "model")
