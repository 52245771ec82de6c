"""Load a trained model with its catalogue, and check that they belong together."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from common import data, retrieval, runs, tokens
from common.models import refuse_bad_model
from common.process import resolve_device
from steps.infer.rankers import group_tracks


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
    """The model and the catalogue of a data directory: TalkPlay; bfloat16 on a GPU.

    cold_share: of `group_tracks`
    Raises SystemExit: a file is missing or broken, or does not fit the others.
    """
    torch.set_flush_denormal(True)  # numbers next to 0 slow a CPU down
    folder = Path(data_dir) / "model"
    device = resolve_device(device)
    tracks = data.load_tracks(data_dir)
    codes = data.load_codes(data_dir, len(tracks))
    train = f"python 04_train.py --data-dir {data_dir}"

    if not (folder / "config.json").is_file():
        raise SystemExit(f"{folder} is missing or holds no model; make it with: {train}")
    dtype = torch.bfloat16 if "cuda" in device else torch.float32
    with refuse_bad_model("the model", folder, f"Make it again with: {train}"):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            folder, trust_remote_code=False, use_safetensors=True, dtype=dtype).to(device).eval()
    dialogue_tokenizer = tokens.DialogueTokenizer(tokenizer)
    k = dialogue_tokenizer.vocabulary.k
    if codes.max() >= k:
        raise SystemExit(f"{folder} was trained with K = {k} codes per modality, but codes.npy has "
                         f"a code {codes.max()}. Train again with: {train} --no-resume")
    runs.check_unchanged(data_dir, "04_train", "codes.npy", "its tokens mean other tracks now. "
                         f"Train again with: {train} --no-resume")

    row_of = {track["track_id"]: row for row, track in enumerate(tracks)}
    codes_of = dict(zip(row_of, codes, strict=True))
    groups = group_tracks(model, dialogue_tokenizer, codes, cold_share)
    return TalkPlay(model, dialogue_tokenizer, tracks, row_of, codes, codes_of,
                    retrieval.build_index(codes), groups)
