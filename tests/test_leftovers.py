"""A run is on record only when nothing of an older run is left.

Otherwise a kill between the two would let the next run go on from another run's work. Here the
deletion fails: that is loud, and leaves no record.
"""

import importlib
import sys

import numpy as np
import pytest

from common import data
from common.tokens import MODALITIES


def run(monkeypatch, script, *arguments):
    monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
    importlib.import_module(script).main()


def test_02(small, monkeypatch):
    for modality in MODALITIES:
        rows = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
        data.save_npy(small / "embeddings" / f"{modality}.npy", rows)
    (small / "codebooks" / "audio.part.npy").mkdir(parents=True)
    with pytest.raises(OSError, match="audio.part.npy"):
        importlib.import_module("02_quantize").main(["--data-dir", str(small), "--k", "4"])
    assert not (small / "runs").exists()


def test_04(small, monkeypatch):
    (small / "model.part").write_text("no folder")
    with pytest.raises(OSError, match="model.part"):
        run(monkeypatch, "04_train", "--data-dir", small, "--device", "cpu")
    assert not (small / "runs").exists()


def test_05(small, tiny, monkeypatch):
    model, dialogue_tokenizer = tiny
    monkeypatch.setattr(dialogue_tokenizer.tokenizer, "model_max_length", 256)
    model.save_pretrained(small / "model")
    dialogue_tokenizer.tokenizer.save_pretrained(small / "model")
    (small / "predictions" / "talkplay.jsonl.part").mkdir(parents=True)
    with pytest.raises(OSError, match="talkplay.jsonl.part"):
        run(monkeypatch, "05_infer", "predict", "--data-dir", small, "--device", "cpu")
    assert not (small / "runs").exists()
