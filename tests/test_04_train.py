"""04_train.py: vocabulary, packing, gradients over processes, kill and resume."""

import importlib
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import K, ROOT, make_codes, make_dialogues, make_tracks
from transformers import AutoModelForCausalLM, AutoTokenizer

from common import data, tokens
from training import packing
from demo.tiny_llama import tiny_llama, tiny_tokenizer

train = importlib.import_module("04_train")
TINY = ["--context", "256", "--batch-size", "4", "--lessons", "1", "--save-every", "2", "--eval-every", "2", "--device", "cpu"]


def run_04(data_dir, *flags, processes=1, **kwargs):
    launcher = [sys.executable] if processes == 1 else [sys.executable, "-m", "torch.distributed.run", "--standalone",
                                                        "--nproc-per-node", str(processes)]
    env = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run([*launcher, "04_train.py", "--data-dir", str(data_dir), *TINY, *flags], cwd=ROOT, env=env,
                          capture_output=True, text=True, timeout=300, **kwargs)


def test_new_rows_have_the_old_mean_and_covariance():
    """Against the empirical mean and covariance, with many new rows so that the sampling error is small."""
    tokenizer = tiny_tokenizer([f"word{i} thing" for i in range(300)], 600)
    model = tiny_llama(tokenizer)
    with torch.no_grad():  # correlated dimensions, far from zero
        mix = torch.randn(192, 192, generator=torch.Generator().manual_seed(1)) / 14
        weight = model.get_input_embeddings().weight
        weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(2)) @ mix + 3)
    n, old = len(tokenizer), weight.detach().clone().double()
    train.expand_vocabulary(model, tokenizer, 4000, seed=0)
    new = model.get_input_embeddings().weight.detach()[n:].double()
    assert new.shape == (20002, 192)
    scale = torch.cov(old.T).diagonal().mean()
    assert (new.mean(0) - old.mean(0)).abs().max() < 6 * (scale / 20002).sqrt()
    relative = torch.linalg.norm(torch.cov(new.T) - torch.cov(old.T)) / torch.linalg.norm(torch.cov(old.T))
    assert relative < 0.15  # sqrt(192 / 20002) = 0.10 is the sampling error; N(mean, 1e-9 cov) would give 1
    assert torch.equal(model.get_input_embeddings().weight.detach()[:n].double(), old)


def test_tied_through_resize_save_and_load(tmp_path, tiny):
    model, coder = tiny
    assert model.get_input_embeddings().weight.data_ptr() == model.get_output_embeddings().weight.data_ptr()
    model.save_pretrained(tmp_path)
    coder.tokenizer.save_pretrained(tmp_path)
    again, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert again.get_input_embeddings().weight.data_ptr() == again.get_output_embeddings().weight.data_ptr()
    assert torch.equal(again.get_input_embeddings().weight, model.get_input_embeddings().weight)
    assert tokens.make_coder(tokenizer).vocabulary == coder.vocabulary
    assert again.get_input_embeddings().weight.shape[0] == len(tokenizer) == coder.vocabulary.first + 5 * K


def test_packed_logits_equal_separate_logits(tiny):
    model, coder = tiny
    codes_of = {f"t{i}": c for i, c in enumerate(make_codes(30))}
    pieces, _, _ = packing.encode_all(coder, make_dialogues(4, 30), codes_of, 512)
    context = len(pieces.ids) + 7
    ids, positions, labels, _ = packing.Packed(pieces, [[0, 1, 2, 3]], context, 0).batch([0], "cpu")
    with torch.no_grad():
        packed = model(input_ids=ids, position_ids=positions, use_cache=False).logits[0]
        at = 0
        for i in range(4):
            piece = pieces.ids[pieces.starts[i]:pieces.starts[i + 1]]
            alone = model(input_ids=torch.tensor(piece)[None].long(), use_cache=False).logits[0]
            assert (packed[at:at + len(piece)] - alone).abs().max() < 1e-4
            assert labels[0, at] == -100 and labels[0, at + 1:at + len(piece)].tolist() == piece[1:].tolist()
            at += len(piece)
    assert (labels[0, at:] == -100).all()


def test_pack_loses_nothing_and_fits():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 100, 500).tolist()
    bins = packing.pack(lengths, 100)
    assert sorted(i for b in bins for i in b) == list(range(500))
    assert max(sum(lengths[i] for i in b) for b in bins) <= 100
    assert len(bins) <= 1.05 * sum(lengths) / 100 + 1


def test_long_dialogues_are_cut_at_a_turn(tiny):
    coder = tiny[1]
    dialogue = make_dialogues(1, 30)[0]
    codes_of = {f"t{i}": c for i, c in enumerate(make_codes(30))}
    whole, _ = tokens.encode_dialogue(coder, dialogue["turns"], codes_of)
    pieces, cut, short = packing.encode_all(coder, [dialogue], codes_of, len(whole) - 1)
    assert len(pieces.lengths()) == 2 and cut == 1 and short == 0
    # every turn is in exactly one piece
    assert (pieces.ids == coder.vocabulary.start).sum() == len(dialogue["turns"]) and (pieces.lengths() < len(whole)).all()


def test_dropped_codes():
    rng = np.random.default_rng(0)
    drawn = np.array([packing.drop_codes([1, 2, 3, -1, 5], 0.3, rng) for _ in range(2000)])
    assert (drawn[:, 3] == -1).all() and (drawn >= 0).any(1).all()
    assert abs((drawn[:, 0] == -1).mean() - 0.3) < 0.04
    assert packing.drop_codes([-1, -1, -1, -1, 4], 1.0, rng).tolist() == [-1, -1, -1, -1, 4]


def test_lessons_name_known_tracks_only():
    tracks, codes = make_tracks(30), make_codes(30)
    codes[:5, 0], codes[5:, 0] = -1, 2
    codes_of = {t["track_id"]: c for t, c in zip(tracks, codes)}
    turns = [turn for d in packing.name_lessons(tracks, codes_of, 3, per_dialogue=8) for turn in d["turns"]]
    named = [turn["music"] for turn in turns]
    assert {t: named.count(t) for t in set(named)} == {f"t{i}": 3 for i in range(5, 30)}
    title_of = {t["track_id"]: t["title"] for t in tracks}
    assert any(turn["query"] == title_of[turn["music"]] for turn in turns)
    assert all(turn["response"] is None for turn in turns) and packing.name_lessons(tracks, codes_of, 0) == []


def test_learning_rate():
    rates = [train.learning_rate(s, 100, 1.0, 0.1) for s in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == pytest.approx(1.0) and rates[10] == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0.1, abs=1e-3) and rates[10:] == sorted(rates[10:], reverse=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One uninterrupted run: data directory and log."""
    from conftest import small
    folder = small.__wrapped__(tmp_path_factory.mktemp("trained"))
    done = run_04(folder, "--epochs", "3")
    assert done.returncode == 0, done.stderr
    return folder, [json.loads(line) for line in open(folder / "model" / "log.jsonl")], done


def copy_inputs(source, target):
    for name in ("tracks.jsonl", "playlists.jsonl", "codes.npy", "dialogues_train.jsonl", "dialogues_valid.jsonl", "dialogues_test.jsonl"):
        shutil.copy(source / name, target / name)


def test_a_run_learns_and_leaves_a_plain_folder(trained):
    folder, log, done = trained
    assert log[-1]["loss"] < log[0]["loss"] - 0.5
    assert {"valid_all", "valid_text", "valid_music"} <= set(log[-1])
    assert "next: python 05_infer.py" in done.stdout
    assert not (folder / "model.part").exists() and not list((folder / "model").glob("checkpoint*"))
    assert (folder / "model" / "loss.png").stat().st_size > 1000 and (folder / "model" / "README.md").is_file()
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    assert len(AutoTokenizer.from_pretrained(folder / "model")) == model.config.vocab_size
    again = run_04(folder, "--epochs", "3")
    assert "already done" in again.stdout and again.returncode == 0


def test_killed_and_resumed_is_bit_for_bit_the_same(trained, tmp_path):
    """SIGKILL after the second checkpoint; the resumed run ends with the same log and the same weights."""
    folder, log, _ = trained
    copy_inputs(folder, tmp_path)
    env = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen([sys.executable, "04_train.py", "--data-dir", str(tmp_path), *TINY, "--epochs", "3"], cwd=ROOT,
                               env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    path = tmp_path / "model.part" / "log.jsonl"
    while process.poll() is None and not (path.is_file() and path.read_text().count("\n") >= 5):
        pass
    process.kill()
    process.wait()
    assert list((tmp_path / "model.part").glob("checkpoint-*.pt")), "the run ended before it could be killed"
    done = run_04(tmp_path, "--epochs", "3")
    assert done.returncode == 0 and "going on from step" in done.stdout, done.stderr
    resumed = [json.loads(line) for line in open(tmp_path / "model" / "log.jsonl")]
    strip = lambda rows: [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
    assert strip(resumed) == strip(log)
    a, b = (AutoModelForCausalLM.from_pretrained(f / "model").state_dict() for f in (folder, tmp_path))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_two_processes_equal_one(trained, tmp_path):
    """gloo, two ranks: the same losses to 1e-4 and the same weights to 2e-3 after all steps (sums in another order)."""
    folder, log, _ = trained
    copy_inputs(folder, tmp_path)
    done = run_04(tmp_path, "--epochs", "3", processes=2)
    assert done.returncode == 0, done.stderr
    two = [json.loads(line) for line in open(tmp_path / "model" / "log.jsonl")]
    assert [r["step"] for r in two] == [r["step"] for r in log]
    assert np.abs(np.array([r["loss"] for r in two]) - [r["loss"] for r in log]).max() < 1e-4
    a, b = (AutoModelForCausalLM.from_pretrained(f / "model").state_dict() for f in (folder, tmp_path))
    assert max((a[name] - b[name]).abs().max().item() for name in a) < 2e-3


def test_micro_batches_give_the_same_first_gradient_step(trained, tmp_path):
    folder, log, _ = trained
    copy_inputs(folder, tmp_path)
    done = run_04(tmp_path, "--epochs", "3", "--micro-batch", "1")
    assert done.returncode == 0, done.stderr
    one = [json.loads(line) for line in open(tmp_path / "model" / "log.jsonl")]
    assert np.abs(np.array([r["loss"] for r in one]) - [r["loss"] for r in log]).max() < 1e-4


def test_changed_arguments_and_inputs_are_refused(trained):
    folder, _, _ = trained
    done = run_04(folder, "--epochs", "2")
    assert done.returncode == 1 and "epochs (was 3.0, is 2.0)" in done.stderr and "Traceback" not in done.stderr
    assert (folder / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize("break_it, message", [
    (lambda d: (d / "codes.npy").unlink(), "codes.npy is missing; make it with: python 02_quantize.py"),
    (lambda d: (d / "codes.npy").write_bytes(b"no array"), "not a whole .npy file"),
    (lambda d: data.save_npy(d / "codes.npy", make_codes(29)), "29 rows, but tracks.jsonl has 30"),
    (lambda d: data.write_jsonl(d / "dialogues_train.jsonl", [{"dialogue_id": "a", "turns": []}]), "at least one turn"),
    (lambda d: data.write_jsonl(d / "dialogues_train.jsonl", [{"dialogue_id": "a", "turns": [{"query": "x", "music": "zzz"}]}]),
     "dialogues_train.jsonl:1: turn 1 names track_id zzz"),
    (lambda d: (d / "dialogues_valid.jsonl").write_text('{"dialogue_id": "a", "tur'), "dialogues_valid.jsonl:1: not JSON"),
])
def test_bad_input_is_one_line(small, monkeypatch, break_it, message):
    break_it(small)
    monkeypatch.setattr(sys, "argv", ["04_train.py", "--data-dir", str(small)])
    with pytest.raises(SystemExit, match=message):
        train.main()
    assert not (small / "model").exists() and not (small / "model.part").exists()


def test_unknown_base_model(small, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["04_train.py", "--data-dir", str(small), "--base-model", "no/such-model"])
    with pytest.raises(SystemExit, match="--base-model no/such-model cannot be loaded"):
        train.main()
