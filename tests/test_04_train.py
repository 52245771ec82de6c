"""04_train.py: vocabulary, packing, gradients over processes, kill and resume."""

import copy
import importlib
import json
import os
import resource
import shutil
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import torch
from conftest import K, ROOT, make_codes, make_dialogues, make_tracks
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from common import data, tokens
from steps.train.base_models import tiny_llama, tiny_tokenizer
from steps.train import packing
from steps.train.checkpoints import list_checkpoints, write_whole
from steps.train.lora import add_lora, merge_lora

train = importlib.import_module("04_train")
TINY = ["--context", "256", "--batch-size", "4", "--indexing-repeats", "1", "--save-every", "2", "--eval-every", "2", "--device", "cpu"]


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
    model, dialogue_tokenizer = tiny
    assert model.get_input_embeddings().weight.data_ptr() == model.get_output_embeddings().weight.data_ptr()
    model.save_pretrained(tmp_path)
    dialogue_tokenizer.tokenizer.save_pretrained(tmp_path)
    again, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert again.get_input_embeddings().weight.data_ptr() == again.get_output_embeddings().weight.data_ptr()
    assert torch.equal(again.get_input_embeddings().weight, model.get_input_embeddings().weight)
    assert tokens.DialogueTokenizer(tokenizer).vocabulary == dialogue_tokenizer.vocabulary
    assert again.get_input_embeddings().weight.shape[0] == len(tokenizer) == dialogue_tokenizer.vocabulary.first + 5 * K


def test_packed_logits_equal_separate_logits(tiny):
    model, dialogue_tokenizer = tiny
    codes_of = {f"t{i}": c for i, c in enumerate(make_codes(30))}
    pieces, _, _ = packing.encode_all(dialogue_tokenizer, make_dialogues(4, 30), codes_of, 512)
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
    dialogue_tokenizer = tiny[1]
    dialogue = make_dialogues(1, 30)[0]
    codes_of = {f"t{i}": c for i, c in enumerate(make_codes(30))}
    whole, _ = tokens.encode_dialogue(dialogue_tokenizer, dialogue["turns"], codes_of)
    pieces, cut, short = packing.encode_all(dialogue_tokenizer, [dialogue], codes_of, len(whole) - 1)
    assert len(pieces.lengths()) == 2 and cut == 1 and short == 0
    # every turn is in exactly one piece
    assert (pieces.ids == dialogue_tokenizer.vocabulary.start).sum() == len(dialogue["turns"]) and (pieces.lengths() < len(whole)).all()


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
    lessons = packing.indexing_examples(tracks, codes_of, 3, {"t7": ["a", "b", "c"], "t2": ["never"]}, longest=8)
    assert len({len(d["turns"]) for d in lessons}) > 3 and max(len(d["turns"]) for d in lessons) <= 8  # some fill small gaps
    turns = [turn for d in lessons for turn in d["turns"]]
    named = [turn["music"] for turn in turns]
    assert {t: named.count(t) for t in set(named)} == {f"t{i}": 3 for i in range(5, 30)}
    title_of = {t["track_id"]: t["title"] for t in tracks}
    assert any(turn["query"] == title_of[turn["music"]] for turn in turns)
    assert all(turn["response"] in (("a", "b", "c") if turn["music"] == "t7" else (None,)) for turn in turns)
    assert packing.indexing_examples(tracks, codes_of, 0, {}) == []


def test_lessons_answer_as_dialogues_do_where_nothing_came_before():
    """"Slower it is: ..." would be no answer to a title."""
    turns = [{"query": "q", "music": "t1", "response": kind, "kind": kind} for kind in ("tags", "title", "relative", "more", None)]
    turns += [{"query": "q", "music": None, "response": "hm", "kind": "tags"}, {"query": "q", "music": "t2", "response": None, "kind": "audio"}]
    assert packing.answers_by_track([{"turns": turns}, {"turns": turns[:1]}]) == {"t1": ["tags", "title", "tags"]}


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
    kept = list((tmp_path / "model.part").glob("checkpoint-*.pt"))
    assert 1 <= len(kept) <= 3, "no checkpoint: the run ended before it could be killed"  # 3: killed before the oldest went
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


def test_same_gradients_for_any_number_of_processes(tmp_path):
    """48 sequences with very different numbers of labels: 1 x 48, 2 x 24, 8 x 6, uneven micro-batches, FSDP2; within 1e-5."""
    done = subprocess.run([sys.executable, "tests/worlds.py", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=300,
                          env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    found = {path.stem: torch.load(path, weights_only=True) for path in tmp_path.glob("*.pt")}
    assert set(found) == {"1x48", "1x5", "2x24", "8x6", "2x5", "2x24-fsdp"}
    one = found.pop("1x48")
    for name, other in found.items():
        assert other["loss"] == pytest.approx(one["loss"].item(), rel=1e-5), name
        for weight, gradient in one["gradients"].items():
            difference = (other["gradients"][weight] - gradient).norm() / gradient.norm()
            assert difference < 1e-5, (name, weight, difference)


def test_fsdp_saves_the_same_folder(trained, tmp_path):
    folder, log, _ = trained
    copy_inputs(folder, tmp_path)
    done = run_04(tmp_path, "--epochs", "3", "--fsdp", processes=2)
    assert done.returncode == 0, done.stderr
    two = [json.loads(line) for line in open(tmp_path / "model" / "log.jsonl")]
    assert np.abs(np.array([r["loss"] for r in two]) - [r["loss"] for r in log]).max() < 1e-4
    a, b = (AutoModelForCausalLM.from_pretrained(f / "model").state_dict() for f in (folder, tmp_path))
    assert a.keys() == b.keys() and max((a[name] - b[name]).abs().max().item() for name in a) < 2e-3


def test_a_dead_process_ends_the_run(trained, tmp_path):
    copy_inputs(trained[0], tmp_path)
    process = subprocess.Popen([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "04_train.py",
                                "--data-dir", str(tmp_path), *TINY, "--epochs", "500"], cwd=ROOT, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    path, end = tmp_path / "model.part" / "log.jsonl", time.time() + 120
    while not (path.is_file() and path.read_text().count("\n") >= 3):
        assert process.poll() is None and time.time() < end
        time.sleep(0.1)
    psutil.Process(process.pid).children()[-1].kill()
    assert process.wait(timeout=120) != 0
    assert list((tmp_path / "model.part").glob("checkpoint-*.pt"))


def test_lora_trains_the_new_rows_and_leaves_a_plain_folder(trained, tmp_path):
    folder, log, _ = trained
    copy_inputs(folder, tmp_path)
    done = run_04(tmp_path, "--epochs", "3", "--lora", "4", "--gradient-checkpointing", "--pad-vocabulary", "64", "--tensorboard")
    assert done.returncode == 0, done.stderr
    losses = [json.loads(line)["loss"] for line in open(tmp_path / "model" / "log.jsonl")]
    assert losses[-1] < losses[0] - 0.5
    board = EventAccumulator(str(tmp_path / "runs" / "tensorboard")).Reload()
    assert [event.value for event in board.Scalars("loss")] == pytest.approx(losses)
    dialogues = [json.loads(line) for line in open(tmp_path / "dialogues_train.jsonl")]
    before, tokenizer = train.load_base("tiny", dialogues, 0)
    first = len(tokenizer)
    train.expand_vocabulary(before, tokenizer, K, 0, multiple=64)
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert type(after.model.layers[0].mlp.up_proj) is torch.nn.Linear
    rows = after.get_input_embeddings().weight
    assert len(rows) == len(tokenizer) == after.config.vocab_size  # the padding is gone
    codes = np.load(tmp_path / "codes.npy")
    used = [first + 2 + m * K + c for m in range(5) for c in np.unique(codes[:, m]) if c >= 0]
    moved = (rows - before.get_input_embeddings().weight[:len(rows)]).norm(dim=1)
    assert (moved[used] > 0.01).all()
    up = [m.model.layers[0].mlp.up_proj.weight for m in (before, after)]
    change = torch.linalg.matrix_rank(up[1] - up[0], rtol=1e-3)
    assert change == 4  # the layers moved, by a matrix of the LoRA's rank


def test_merged_lora_gives_the_same_logits(tiny):
    model, _ = copy.deepcopy(tiny)
    add_lora(model, 4)
    for name, p in model.named_parameters():
        assert p.requires_grad == (name.endswith((".a", ".b")) or "embed_tokens" in name)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.allclose(model(ids).logits, tiny[0](ids).logits, atol=1e-5)  # B = 0: nothing changed yet
        for name, p in model.named_parameters():
            if name.endswith(".b"):
                p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(0)) / 10)
        apart = model(ids).logits
        merge_lora(model)
        assert torch.allclose(model(ids).logits, apart, atol=1e-4) and not torch.allclose(apart, tiny[0](ids).logits, atol=1e-2)


def test_memory_of_lora_on_the_1b():
    """The README's count for a 16 GB card, from the true architecture (no weights: device meta)."""
    from benchmarks.train_throughput import LLAMA_1B
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(vocab_size=128256 + 5122, **LLAMA_1B))
    assert sum(p.numel() for p in model.parameters()) == 1_235_814_400 + 5122 * 2048
    add_lora(model, 16, frozen_dtype=torch.bfloat16)
    frozen = sum(p.numel() * p.element_size() for p in model.parameters() if not p.requires_grad)
    learnt = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    # weight, gradient and AdamW's two moments, 4 bytes each
    assert round(frozen / 2**30, 2) == 1.81 and round(16 * learnt / 2**30, 2) == 4.24


def test_losses_in_chunks_are_the_same(tiny, monkeypatch):
    """Against one cross-entropy over all logits: the losses and the gradients."""
    model, dialogue_tokenizer = copy.deepcopy(tiny)
    ids = torch.randint(0, len(dialogue_tokenizer.tokenizer), (3, 50), generator=torch.Generator().manual_seed(0))
    labels = torch.where(ids % 5 == 0, -100, ids)
    positions = torch.arange(50).expand(3, 50)
    found = []
    for at_once in (2**28, 40 * len(dialogue_tokenizer.tokenizer)):
        monkeypatch.setattr(train, "LOGITS_AT_ONCE", at_once)
        model.zero_grad()
        losses = train.LossModel(model)(ids, positions, labels)
        losses.sum().backward()
        found.append((losses.detach(), model.get_input_embeddings().weight.grad.clone()))
    logits = model(ids).logits[:, :-1]
    plain = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="none").view(3, -1)
    for losses, gradient in found:
        assert torch.allclose(losses, plain, atol=1e-5) and torch.allclose(gradient, found[0][1], atol=1e-4)


def test_loss_on_chosen_parts(tiny):
    """--loss-on assistant and --skip-rejected, counted by hand from the decoded text."""
    _, dialogue_tokenizer = tiny
    turns = make_dialogues(1, 30)[0]["turns"][:2]
    turns[0]["rejected"] = True
    codes_of = {f"t{i}": [1, 2, 3, -1, 4] for i in range(30)}
    pieces, _, _ = packing.encode_all(dialogue_tokenizer, [{"turns": turns}], codes_of, 512)
    packed = packing.Packed(pieces, [[0]], 512, 0)
    words = [len(tokens.encode_text(dialogue_tokenizer.tokenizer, turn["response"])) + 1 for turn in turns]  # and the end of the answer
    for learnt, expected in ((train.LOSS_ON["all"], len(pieces.ids) - 1), (train.LOSS_ON["assistant"], sum(words) + 12),
                             ((tokens.MUSIC, tokens.RESPONSE), sum(words) + 6)):
        labels = packed.batch([0], "cpu", learnt)[2]
        assert (labels != -100).sum() == packed.count_labels(learnt)[0] == expected


def test_a_missing_answer_teaches_no_silence(tiny):
    """A lesson has no answer: the token that would end one is no label, while a real answer's end is."""
    _, dialogue_tokenizer = tiny
    turns = [{"query": "Some Title", "music": "t0", "response": None}, {"query": "more", "music": "t0", "response": "Here."}]
    pieces, _, _ = packing.encode_all(dialogue_tokenizer, [{"turns": turns}], {"t0": [1, 2, 3, -1, 4]}, 512)
    labels = packing.Packed(pieces, [[0]], 512, 0).batch([0], "cpu")[2][0]
    ends = [i for i, token in enumerate(pieces.ids) if token == dialogue_tokenizer.vocabulary.end]
    assert labels[ends[0] + 1] == -100 and labels[ends[0]] == dialogue_tokenizer.vocabulary.end and labels[ends[1] + 1] != -100
    answered = ends[1] + 1 + len(tokens.encode_text(dialogue_tokenizer.tokenizer, "Here."))
    assert labels[answered] == dialogue_tokenizer.format.tail[0]


def test_encoding_in_processes_is_the_same(tiny):
    dialogue_tokenizer, dialogues = tiny[1], make_dialogues(40, 30)
    codes_of = {f"t{i}": c for i, c in enumerate(make_codes(30))}
    one, two = (packing.encode_all(dialogue_tokenizer, dialogues, codes_of, 120, 0.3, 0, workers, block=7) for workers in (1, 2))
    assert one[1:] == two[1:] and all(np.array_equal(a, b) for a, b in zip(one[0], two[0]))


@pytest.mark.parametrize("flags", [[], ["--fsdp"]])
def test_the_best_weights_are_the_ones_saved(trained, tmp_path, flags):
    """Trained far too long: the folder holds the weights with the lowest validation loss, not the last ones."""
    copy_inputs(trained[0], tmp_path)
    done = run_04(tmp_path, "--limit", "2", "--indexing-repeats", "0", "--epochs", "120", "--lr", "5e-3", "--eval-every", "5",
                  "--save-every", "0", *flags, processes=1 + len(flags))
    assert done.returncode == 0, done.stderr
    losses = [row["valid_all"] for row in map(json.loads, open(tmp_path / "model" / "log.jsonl")) if "valid_all" in row]
    assert min(losses) < losses[-1] - 0.02
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path / "model"), AutoTokenizer.from_pretrained(tmp_path / "model")
    codes_of = {f"t{i}": c for i, c in enumerate(np.load(tmp_path / "codes.npy"))}
    valid = [json.loads(line) for line in open(tmp_path / "dialogues_valid.jsonl")]
    pieces, _, _ = packing.encode_all(tokens.DialogueTokenizer(tokenizer), valid, codes_of, 256)
    packed = packing.Packed(pieces, packing.pack(pieces.lengths(), 256), 256, tokenizer.pad_token_id)
    assert train.validate(train.LossModel(model), packed, "cpu")["all"] == pytest.approx(min(losses), abs=1e-4)


def test_a_loss_that_is_no_number_stops_the_run(small):
    done = run_04(small, "--lr", "1e30")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "norm of the gradient" in done.stderr and "Try a smaller --lr" in done.stderr and not (small / "model").exists()


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path):
    """A limit on the size of files stands in for the full disk: the write really fails half-way."""
    write_whole(tmp_path / "checkpoint-2.pt", {"a": torch.ones(10)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, hard))
    try:
        with pytest.raises(SystemExit, match="is the disk full.*checkpoint-2.pt, is whole"):
            write_whole(tmp_path / "checkpoint-4.pt", {"a": torch.ones(2**20)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert torch.load(list_checkpoints(tmp_path)[-1], weights_only=True)["a"].sum() == 10
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2.pt"]


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


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there(small, monkeypatch):
    for script, flags in (("02_quantize", []), ("04_train", []), ("05_infer", ["chat"]), ("baselines.sasrec", [])):
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *flags, "--data-dir", str(small), "--device", "cuda"])
        with pytest.raises(SystemExit, match="sees no GPU here"):
            importlib.import_module(script).main()
