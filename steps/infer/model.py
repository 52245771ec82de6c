"""Load a trained model with its catalogue, and check that they belong together."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from common import data, retrieval, runs, tokens
from common.process import resolve_device
from steps.infer.likelihood_ranker import group_tracks


class TalkPlay(NamedTuple):
    """A trained model, and the catalogue in every form that answering needs."""
    model: object
    dialogue_tokenizer: tokens.DialogueTokenizer
    tracks: list
    row_of: dict       # {track_id: row}
    codes: np.ndarray  # (N, 5) int16
    codes_of: dict     # {track_id: five codes}
    index: retrieval.Index
    groups: list       # from group_tracks


@torch.inference_mode()
def load(data_dir="data/demo", device="auto", cold_share=None):
    """The trained model and the catalogue of a data directory: TalkPlay.

    device: auto (cuda if there is one), cpu, cuda ...
    cold_share: the probability that the likelihood ranker gives to all tracks without a playlist
        code, 0 to 1 (None: their share of the catalogue)
    Raises SystemExit: a file is missing or broken, or does not fit the others.
    """
    torch.set_flush_denormal(True)  # numbers next to 0 slow a CPU down
    data_dir = Path(data_dir)
    tracks = data.load_tracks(data_dir)
    codes = data.load_codes(data_dir, len(tracks))
    model, dialogue_tokenizer = load_model(data_dir / "model", codes, resolve_device(device))
    groups = group_tracks(model, dialogue_tokenizer, codes, cold_share)
    row_of = {track["track_id"]: row for row, track in enumerate(tracks)}
    codes_of = {track_id: codes[row] for track_id, row in row_of.items()}
    return TalkPlay(model, dialogue_tokenizer, tracks, row_of, codes, codes_of,
                    retrieval.build_index(codes), groups)


def load_model(folder, codes, device="cpu"):
    """(model, dialogue_tokenizer) from a folder made by 04_train.py; bfloat16 on a GPU.

    folder: Path; codes: (N, 5) of the catalogue
    Raises SystemExit: no such folder, or trained with other codes than the catalogue's.
    """
    made_by = f"python 04_train.py --data-dir {folder.parent}"
    if not (folder / "config.json").is_file():
        raise SystemExit(f"{folder} is missing or holds no model; make it with: {made_by}")
    dtype = torch.bfloat16 if "cuda" in str(device) else torch.float32
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    except (OSError, ValueError, SafetensorError) as error:
        raise SystemExit(f"{folder} cannot be loaded: {str(error).splitlines()[0]} "
                         f"Make it again with: {made_by}") from None
    dialogue_tokenizer = tokens.DialogueTokenizer(tokenizer)
    k = dialogue_tokenizer.vocabulary.k
    if codes.max() >= k:
        raise SystemExit(f"{folder} was trained with K = {k} codes per modality, but codes.npy has "
                         f"a code {codes.max()}. Train again with: {made_by} --no-resume")
    mend = f"its tokens mean other tracks now. Train again with: {made_by} --no-resume"
    runs.check_unchanged(folder.parent, "04_train", "codes.npy", mend)
    return model.to(device).eval(), dialogue_tokenizer
