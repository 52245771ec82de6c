"""Shared fixtures: the repository on the path, and a very small catalogue with random codes."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

pytest.register_assert_rewrite("choices")  # its failures show the values, as those of a test do

K = 8
# Real data for a few tests, which are skipped without it: the folder that TALKPLAY_REAL names, or
# shared/real beside the repository.
REAL = Path(os.environ.get("TALKPLAY_REAL", ROOT.parent / "shared" / "real"))


def make_tracks(n, seed=0):
    rng = np.random.default_rng(seed)
    moods, genres = ("sad", "happy", "calm"), ("folk", "jazz", "techno")
    return [
        {
            "track_id": f"t{i}",
            "title": f"Song {i}",
            "artist": f"Band {i % 7}",
            "album": None,
            "release_date": f"{1970 + i % 40}",
            "duration_ms": 1000,
            "popularity": i,
            "tags": [moods[i % 3], genres[i // 3 % 3], "piano"],
            "lyrics": None,
            "caption": None,
            "tempo": float(rng.integers(60, 160)),
            "key": "A minor",
            "audio_path": None,
        }
        for i in range(n)
    ]


def make_dialogues(n, n_tracks, split="train", seed=0):
    """Dialogues whose queries name the track's tags, so that a small model has something to learn.
    """
    rng, tracks, dialogues = np.random.default_rng([seed, len(split)]), make_tracks(n_tracks), []
    for i in range(n):
        turns = []
        for row in rng.permutation(n_tracks)[:4]:
            track = tracks[row]
            turns.append(
                {
                    "query": f"Something {track['tags'][0]}, {track['tags'][1]} number {row}.",
                    "music": track["track_id"],
                    "response": f"Here is {track['tags'][1]}.",
                    "targets": [track["track_id"]],
                    "rejected": False,
                    "kind": "tags",
                    "template": "seen",
                }
            )
        dialogues.append(
            {"dialogue_id": f"{split}-{i}", "playlist_id": f"p{i % 5}", "meta": {}, "turns": turns}
        )
    return dialogues


def make_codes(n, k=K, seed=0, missing=0.1):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, k, (n, 5)).astype(np.int16)
    codes[rng.random((n, 5)) < missing] = -1
    codes[(codes < 0).all(1), 0] = 0
    return codes


@pytest.fixture
def small(tmp_path):
    """A data directory with 30 tracks, codes and dialogues: what 04_train.py reads."""
    from common import data

    data.write_jsonl(tmp_path / "tracks.jsonl", make_tracks(30))
    data.write_jsonl(
        tmp_path / "playlists.jsonl",
        [
            {
                "playlist_id": f"p{i}",
                "title": "x",
                "modified_at": None,
                "split": split,
                "track_ids": [f"t{(5 * i + j) % 30}" for j in range(8)],
            }
            for i, split in enumerate(["train"] * 6 + ["valid", "test"])
        ],
    )
    data.save_npy(tmp_path / "codes.npy", make_codes(30))
    data.write_text(tmp_path / "codebooks" / "info.json", f'{{"k": {K}}}\n')
    for split, n in (("train", 12), ("valid", 4), ("test", 4)):
        data.write_jsonl(tmp_path / f"dialogues_{split}.jsonl", make_dialogues(n, 30, split))
    return tmp_path


@pytest.fixture(scope="session")
def tiny():
    """(model, dialogue_tokenizer) of the tiny Llama with K = 8, random weights, music tokens added.
    """
    import importlib

    from common import tokens
    from steps.train.base_models import tiny_llama, tiny_tokenizer

    train = importlib.import_module("04_train")
    texts = [
        t[f] for d in make_dialogues(30, 30) for t in d["turns"] for f in ("query", "response")
    ]
    tokenizer = tiny_tokenizer(texts, vocab_size=500)
    model = tiny_llama(tokenizer)
    train.expand_vocabulary(model, tokenizer, K)
    return model.eval(), tokens.DialogueTokenizer(tokenizer)
