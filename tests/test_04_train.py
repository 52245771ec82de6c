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
from conftest import ROOT, K, make_codes, make_dialogues, make_tracks
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from common import data, tokens
from steps.train import packing
from steps.train.base_models import load_base, tiny_llama, tiny_tokenizer
from steps.train.checkpoints import list_checkpoints, write_whole
from steps.train.indexing_examples import indexing_examples, standalone_answers
from steps.train.lora import add_lora, merge_lora

train = importlib.import_module("04_train")
FLAGS = ["--context", "256", "--batch-size", "4", "--indexing-repeats", "1", "--save-every", "2",
         "--eval-every", "2", "--device", "cpu"]
ENV = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def command(data_dir, *flags, processes=1):
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
                     str(processes)]
    return [*launcher, "04_train.py", "--data-dir", str(data_dir), *FLAGS, *flags]


def run_04(data_dir, *flags, processes=1):
    return subprocess.run(command(data_dir, *flags, processes=processes), cwd=ROOT, env=ENV,
                          capture_output=True, text=True, timeout=300)


def start_04(data_dir, *flags, processes=1):
    """The same, not waited for."""
    return subprocess.Popen(command(data_dir, *flags, processes=processes), cwd=ROOT, env=ENV,
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def read_log(folder):
    """The rows of the log, without times."""
    rows = [json.loads(line) for line in open(folder / "model" / "log.jsonl")]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def assert_same_losses(log, other):
    assert [row["step"] for row in log] == [row["step"] for row in other]
    difference = np.array([row["loss"] for row in log]) - [row["loss"] for row in other]
    assert np.abs(difference).max() < 1e-4


def largest_difference(folder, other):
    """Of the weights of two trained models; they have the same names."""
    a, b = (AutoModelForCausalLM.from_pretrained(f / "model").state_dict() for f in (folder, other))
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


def codes_by_id(codes):
    return {f"t{i}": row for i, row in enumerate(codes)}


# ---------------------------------------------------------------- the vocabulary

def test_new_rows_have_the_old_mean_and_covariance():
    """Against the empirical ones, with many new rows so that the sampling error is small."""
    tokenizer = tiny_tokenizer([f"word{i} thing" for i in range(300)], 600)
    model = tiny_llama(tokenizer)
    with torch.no_grad():  # correlated dimensions, far from zero
        mix = torch.randn(192, 192, generator=torch.Generator().manual_seed(1)) / 14
        weight = model.get_input_embeddings().weight
        noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(2))
        weight.copy_(noise @ mix + 3)
    n, old = len(tokenizer), weight.detach().clone().double()
    train.expand_vocabulary(model, tokenizer, 4000, seed=0)
    rows = model.get_input_embeddings().weight.detach().double()
    new = rows[n:]
    assert new.shape == (20002, 192)
    covariance = torch.cov(old.T)
    scale = covariance.diagonal().mean()
    assert (new.mean(0) - old.mean(0)).abs().max() < 6 * (scale / 20002).sqrt()
    relative = torch.linalg.norm(torch.cov(new.T) - covariance) / torch.linalg.norm(covariance)
    assert relative < 0.15  # sampling error: sqrt(192 / 20002) = 0.10; N(mean, 1e-9 cov) gives 1
    assert torch.equal(rows[:n], old)


def test_rows_beyond_the_words_of_the_base_model_are_dropped():
    """Some base models pad their embedding; output rows that are not tied are drawn apart."""
    tokenizer = tiny_tokenizer(["some words"], 300)
    config = LlamaConfig(vocab_size=len(tokenizer) + 30, hidden_size=8, intermediate_size=8,
                         num_hidden_layers=1, num_attention_heads=1, tie_word_embeddings=False)
    model = LlamaForCausalLM(config)
    n, old = len(tokenizer), model.lm_head.weight.detach().clone()
    train.expand_vocabulary(model, tokenizer, K)
    inputs, outputs = model.model.embed_tokens.weight, model.lm_head.weight
    assert len(inputs) == len(outputs) == len(tokenizer) == model.config.vocab_size == n + 5 * K + 2
    assert torch.equal(outputs[:n], old[:n]) and not torch.equal(inputs[n:], outputs[n:])


def test_tied_through_resize_save_and_load(tmp_path, tiny):
    model, dialogue_tokenizer = tiny
    vocabulary = dialogue_tokenizer.vocabulary
    rows = model.get_input_embeddings().weight
    assert rows.data_ptr() == model.get_output_embeddings().weight.data_ptr()
    model.save_pretrained(tmp_path)
    dialogue_tokenizer.tokenizer.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    loaded = again.get_input_embeddings().weight
    assert loaded.data_ptr() == again.get_output_embeddings().weight.data_ptr()
    assert torch.equal(loaded, rows)
    assert tokens.DialogueTokenizer(tokenizer).vocabulary == vocabulary
    assert len(loaded) == len(tokenizer) == vocabulary.first + 5 * K


# ---------------------------------------------------------------- packing

def test_packed_logits_equal_separate_logits(tiny):
    model, dialogue_tokenizer = tiny
    segments, _, _ = packing.encode_all(dialogue_tokenizer, make_dialogues(4, 30),
                                        codes_by_id(make_codes(30)), 512)
    context = len(segments.ids) + 7
    packed = packing.Packed(segments, [[0, 1, 2, 3]], context, 0)
    ids, positions, labels, _ = packed.batch([0], "cpu")
    with torch.no_grad():
        together = model(input_ids=ids, position_ids=positions, use_cache=False).logits[0]
        at = 0
        for i in range(4):
            segment = segments.ids[segments.starts[i]:segments.starts[i + 1]]
            end = at + len(segment)
            alone = model(input_ids=torch.tensor(segment)[None].long(), use_cache=False).logits[0]
            assert (together[at:end] - alone).abs().max() < 1e-4
            assert labels[0, at] == -100 and labels[0, at + 1:end].tolist() == segment[1:].tolist()
            at = end
    assert (labels[0, at:] == -100).all()


def test_pack_loses_nothing_and_fits():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 100, 500).tolist()
    sequences = packing.pack(lengths, 100)
    assert sorted(i for sequence in sequences for i in sequence) == list(range(500))
    assert max(sum(lengths[i] for i in sequence) for sequence in sequences) <= 100
    assert len(sequences) <= 1.05 * sum(lengths) / 100 + 1


def test_long_dialogues_are_cut_at_a_turn(tiny):
    dialogue_tokenizer = tiny[1]
    dialogue = make_dialogues(1, 30)[0]
    codes_of = codes_by_id(make_codes(30))
    whole, _ = tokens.encode_dialogue(dialogue_tokenizer, dialogue["turns"], codes_of)
    segments, n_cut, n_shortened = packing.encode_all(dialogue_tokenizer, [dialogue], codes_of,
                                                      len(whole) - 1)
    assert len(segments.lengths()) == 2 and n_cut == 1 and n_shortened == 0
    assert (segments.lengths() < len(whole)).all()
    # every turn is in exactly one segment
    assert (segments.ids == dialogue_tokenizer.vocabulary.start).sum() == len(dialogue["turns"])


def test_dropped_codes():
    rng = np.random.default_rng(0)
    drawn = np.array([packing.drop_codes([1, 2, 3, -1, 5], 0.3, rng) for _ in range(2000)])
    assert (drawn[:, 3] == -1).all() and (drawn >= 0).any(1).all()
    assert abs((drawn[:, 0] == -1).mean() - 0.3) < 0.04
    assert packing.drop_codes([-1, -1, -1, -1, 4], 1.0, rng).tolist() == [-1, -1, -1, -1, 4]


def test_encoding_in_processes_is_the_same(tiny):
    dialogues, codes_of = make_dialogues(40, 30), codes_by_id(make_codes(30))
    one, two = (packing.encode_all(tiny[1], dialogues, codes_of, 120, 0.3, 0, workers, block=7)
                for workers in (1, 2))
    assert one[1:] == two[1:]
    assert all(np.array_equal(a, b) for a, b in zip(one[0], two[0], strict=True))


def test_loss_on_chosen_parts(tiny):
    """--loss-on assistant and --skip-rejected, counted by hand from the decoded text."""
    _, dialogue_tokenizer = tiny
    turns = make_dialogues(1, 30)[0]["turns"][:2]
    turns[0]["rejected"] = True
    codes_of = {f"t{i}": [1, 2, 3, -1, 4] for i in range(30)}
    segments, _, _ = packing.encode_all(dialogue_tokenizer, [{"turns": turns}], codes_of, 512)
    n_words = sum(len(tokens.encode_text(dialogue_tokenizer.tokenizer, turn["response"])) + 1
                  for turn in turns)  # with the end of the answer
    for learnt, expected in ((train.LOSS_ON["all"], len(segments.ids) - 1),
                             (train.LOSS_ON["assistant"], n_words + 12),
                             ((tokens.MUSIC, tokens.RESPONSE), n_words + 6)):
        packed = packing.Packed(segments, [[0]], 512, 0, learnt)
        labels = packed.batch([0], "cpu")[2]
        assert (labels != -100).sum() == packed.count_labels()[0] == expected


def test_a_missing_answer_teaches_no_silence(tiny):
    """Without an answer, the token that would end one is no label; a real answer's end is."""
    _, dialogue_tokenizer = tiny
    turns = [{"query": "Some Title", "music": "t0", "response": None},
             {"query": "more", "music": "t0", "response": "Here."}]
    segments, _, _ = packing.encode_all(dialogue_tokenizer, [{"turns": turns}],
                                        {"t0": [1, 2, 3, -1, 4]}, 512)
    labels = packing.Packed(segments, [[0]], 512, 0).batch([0], "cpu")[2][0]
    end = dialogue_tokenizer.vocabulary.end
    ends = [i for i, token in enumerate(segments.ids) if token == end]
    assert labels[ends[0]] == end
    assert labels[ends[0] + 1] == -100 and labels[ends[1] + 1] != -100
    answered = ends[1] + 1 + len(tokens.encode_text(dialogue_tokenizer.tokenizer, "Here."))
    assert labels[answered] == dialogue_tokenizer.format.tail[0]


# ---------------------------------------------------------------- indexing examples

def test_indexing_examples_name_known_tracks_only():
    tracks, codes = make_tracks(30), make_codes(30)
    codes[:5, 0], codes[5:, 0] = -1, 2
    answers = {"t7": ["a", "b", "c"], "t2": ["never"]}
    examples = indexing_examples(tracks, codes_by_id(codes), 3, answers, most_turns=8)
    lengths = {len(dialogue["turns"]) for dialogue in examples}
    assert len(lengths) > 3 and max(lengths) <= 8  # some fill small gaps
    turns = [turn for dialogue in examples for turn in dialogue["turns"]]
    named = [turn["music"] for turn in turns]
    assert {t: named.count(t) for t in set(named)} == {f"t{i}": 3 for i in range(5, 30)}
    title_of = {track["track_id"]: track["title"] for track in tracks}
    assert any(turn["query"] == title_of[turn["music"]] for turn in turns)
    for turn in turns:
        assert turn["response"] in (("a", "b", "c") if turn["music"] == "t7" else (None,))
    assert indexing_examples(tracks, codes_by_id(codes), 0, {}) == []


def test_indexing_examples_answer_as_dialogues_do_where_nothing_came_before():
    """"Slower it is: ..." would be no answer to a title."""
    turns = [{"query": "q", "music": "t1", "response": kind, "kind": kind}
             for kind in ("tags", "title", "relative", "callback", "more", None)]
    turns += [{"query": "q", "music": None, "response": "hm", "kind": "tags"},
              {"query": "q", "music": "t2", "response": None, "kind": "audio"}]
    answers = standalone_answers([{"turns": turns}, {"turns": turns[:1]}])
    assert answers == {"t1": ["tags", "title", "tags"]}


# ---------------------------------------------------------------- loss and schedule

def test_losses_in_chunks_are_the_same(tiny, monkeypatch):
    """Against one cross-entropy over all logits: the losses and the gradients."""
    model, dialogue_tokenizer = copy.deepcopy(tiny)
    n = len(dialogue_tokenizer.tokenizer)
    ids = torch.randint(0, n, (3, 50), generator=torch.Generator().manual_seed(0))
    labels = torch.where(ids % 5 == 0, -100, ids)
    positions = torch.arange(50).expand(3, 50)
    results = []
    for at_once in (2**28, 40 * n):
        monkeypatch.setattr(train, "LOGITS_AT_ONCE", at_once)
        model.zero_grad()
        losses = train.LossModel(model)(ids, positions, labels)
        losses.sum().backward()
        results.append((losses.detach(), model.get_input_embeddings().weight.grad.clone()))
    logits = model(ids).logits[:, :-1]
    plain = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="none").view(3, -1)
    for losses, gradient in results:
        assert torch.allclose(losses, plain, atol=1e-5)
        assert torch.allclose(gradient, results[0][1], atol=1e-4)


def test_learning_rate():
    rates = [train.learning_rate(step, 100, 1.0, 0.1) for step in range(100)]
    assert [rates[step] for step in (0, 9, 10)] == pytest.approx([0.1, 1.0, 1.0])
    assert rates[-1] == pytest.approx(0.1, abs=1e-3)
    assert rates[10:] == sorted(rates[10:], reverse=True)


# ---------------------------------------------------------------- whole runs

@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One uninterrupted run: data directory, log, process."""
    from conftest import small
    folder = small.__wrapped__(tmp_path_factory.mktemp("trained"))
    done = run_04(folder, "--epochs", "3")
    assert done.returncode == 0, done.stderr
    return folder, read_log(folder), done


@pytest.fixture
def again(trained, tmp_path):
    """A folder with the same inputs."""
    for name in ("tracks.jsonl", "playlists.jsonl", "codes.npy", "dialogues_train.jsonl",
                 "dialogues_valid.jsonl", "dialogues_test.jsonl"):
        shutil.copy(trained[0] / name, tmp_path / name)
    shutil.copytree(trained[0] / "codebooks", tmp_path / "codebooks")
    return tmp_path


def test_a_run_learns_and_leaves_a_plain_folder(trained):
    folder, log, done = trained
    model = folder / "model"
    assert log[-1]["loss"] < log[0]["loss"] - 0.5
    assert {"valid_all", "valid_text", "valid_music"} <= set(log[-1])
    assert "next: python 05_infer.py" in done.stdout
    assert not (folder / "model.part").exists() and not list(model.glob("checkpoint*"))
    assert (model / "loss.png").stat().st_size > 1000 and (model / "README.md").is_file()
    config = AutoModelForCausalLM.from_pretrained(model).config
    assert len(AutoTokenizer.from_pretrained(model)) == config.vocab_size
    second = run_04(folder, "--epochs", "3")
    assert "already done" in second.stdout and second.returncode == 0


def test_killed_and_resumed_is_bit_for_bit_the_same(trained, again):
    """SIGKILL after the second checkpoint; the resumed run has the same log and weights."""
    folder, log, _ = trained
    process = start_04(again, "--epochs", "3")
    path = again / "model.part" / "log.jsonl"
    while process.poll() is None and not (path.is_file() and path.read_text().count("\n") >= 5):
        pass
    process.kill()
    process.wait()
    kept = list_checkpoints(again / "model.part")
    # three: killed before the oldest was deleted
    assert 1 <= len(kept) <= 3, "no checkpoint: the run ended before it could be killed"
    done = run_04(again, "--epochs", "3")
    assert done.returncode == 0 and "continuing from step" in done.stdout, done.stderr
    assert read_log(again) == log
    assert largest_difference(folder, again) == 0


@pytest.mark.parametrize("flags", [[], ["--fsdp"]])
def test_two_processes_equal_one(trained, again, flags):
    """gloo, two ranks, DDP and FSDP: sums in another order."""
    folder, log, _ = trained
    done = run_04(again, "--epochs", "3", *flags, processes=2)
    assert done.returncode == 0, done.stderr
    assert_same_losses(read_log(again), log)
    assert largest_difference(folder, again) < 2e-3


def test_micro_batches_give_the_same_losses(trained, again):
    done = run_04(again, "--epochs", "3", "--micro-batch", "1")
    assert done.returncode == 0, done.stderr
    assert_same_losses(read_log(again), trained[1])


def test_same_gradients_for_any_number_of_processes(tmp_path):
    """48 sequences with very different numbers of labels, split in six ways; within 1e-5."""
    done = subprocess.run([sys.executable, "tests/worlds.py", str(tmp_path)], cwd=ROOT, env=ENV,
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    results = {path.stem: torch.load(path, weights_only=True) for path in tmp_path.glob("*.pt")}
    assert set(results) == {"1x48", "1x5", "2x24", "8x6", "2x5", "2x24-fsdp"}
    one = results.pop("1x48")
    for name, other in results.items():
        assert other["loss"] == pytest.approx(one["loss"].item(), rel=1e-5), name
        for weight, gradient in one["gradients"].items():
            difference = (other["gradients"][weight] - gradient).norm() / gradient.norm()
            assert difference < 1e-5, (name, weight, difference)


def test_a_dead_process_ends_the_run(again):
    process = start_04(again, "--epochs", "500", processes=2)
    path, deadline = again / "model.part" / "log.jsonl", time.time() + 120
    while not (path.is_file() and path.read_text().count("\n") >= 3):
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.1)
    psutil.Process(process.pid).children()[-1].kill()
    assert process.wait(timeout=120) != 0
    assert list_checkpoints(again / "model.part")


@pytest.mark.parametrize("flags", [[], ["--fsdp"]])
def test_the_best_weights_are_the_ones_saved(again, flags):
    """Trained far too long: the folder has the weights with the lowest validation loss."""
    done = run_04(again, "--limit", "2", "--indexing-repeats", "0", "--epochs", "120", "--lr",
                  "5e-3", "--eval-every", "5", "--save-every", "0", *flags,
                  processes=1 + len(flags))
    assert done.returncode == 0, done.stderr
    losses = [row["valid_all"] for row in read_log(again) if "valid_all" in row]
    assert min(losses) < losses[-1] - 0.02
    model = AutoModelForCausalLM.from_pretrained(again / "model")
    tokenizer = AutoTokenizer.from_pretrained(again / "model")
    valid = [json.loads(line) for line in open(again / "dialogues_valid.jsonl")]
    packed = packing.encode_and_pack(
        again / "tokens", valid, tokens.DialogueTokenizer(tokenizer),
        codes_by_id(np.load(again / "codes.npy")), 256)
    loss = train.validate(train.LossModel(model), packed, "cpu")["all"]
    assert loss == pytest.approx(min(losses), abs=1e-4)


# ---------------------------------------------------------------- LoRA

def test_lora_trains_the_new_rows_and_leaves_a_plain_folder(again):
    done = run_04(again, "--epochs", "3", "--lora", "4", "--gradient-checkpointing",
                  "--tensorboard")
    assert done.returncode == 0, done.stderr
    losses = [row["loss"] for row in read_log(again)]
    assert losses[-1] < losses[0] - 0.5
    board = EventAccumulator(str(again / "runs" / "tensorboard")).Reload()
    assert [event.value for event in board.Scalars("loss")] == pytest.approx(losses)
    dialogues = [json.loads(line) for line in open(again / "dialogues_train.jsonl")]
    before, tokenizer = load_base("tiny", dialogues)
    first = len(tokenizer)
    train.expand_vocabulary(before, tokenizer, K)
    after = AutoModelForCausalLM.from_pretrained(again / "model")
    up_before, up_after = (model.model.layers[0].mlp.up_proj for model in (before, after))
    assert type(up_after) is torch.nn.Linear
    rows = after.get_input_embeddings().weight
    assert len(rows) == len(tokenizer) == after.config.vocab_size
    codes = np.load(again / "codes.npy")
    used = [first + 2 + m * K + c for m in range(5) for c in np.unique(codes[:, m]) if c >= 0]
    moved = (rows - before.get_input_embeddings().weight).norm(dim=1)
    assert (moved[used] > 0.01).all()
    change = torch.linalg.matrix_rank(up_after.weight - up_before.weight, rtol=1e-3)
    assert change == 4  # the layers moved, by a matrix of the LoRA's rank


def test_merged_lora_gives_the_same_logits(tiny):
    model, _ = copy.deepcopy(tiny)
    add_lora(model, 4)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (name.endswith((".a", ".b")) or "embed_tokens" in name)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        plain = tiny[0](ids).logits
        assert torch.allclose(model(ids).logits, plain, atol=1e-5)  # B = 0: nothing changed yet
        for name, parameter in model.named_parameters():
            if name.endswith(".b"):
                generator = torch.Generator().manual_seed(0)
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 10)
        apart = model(ids).logits
        merge_lora(model)
        assert torch.allclose(model(ids).logits, apart, atol=1e-4)
        assert not torch.allclose(apart, plain, atol=1e-2)


def test_memory_of_lora_on_the_1b():
    """The count for a 16 GB card in docs/scale.md, from the true architecture (no weights)."""
    from benchmarks.train_throughput import LLAMA_1B
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(vocab_size=128256 + 5122, **LLAMA_1B))
    assert sum(p.numel() for p in model.parameters()) == 1_235_814_400 + 5122 * 2048
    add_lora(model, 16, frozen_dtype=torch.bfloat16)
    learnt = [p for p in model.parameters() if p.requires_grad]
    frozen = [p for p in model.parameters() if not p.requires_grad]
    assert all(p.dtype == torch.float32 for p in learnt)
    assert round(sum(p.numel() * p.element_size() for p in frozen) / 2**30, 2) == 1.81
    # weight, gradient and AdamW's two moments, 4 bytes each
    assert round(16 * sum(p.numel() for p in learnt) / 2**30, 2) == 4.24


# ---------------------------------------------------------------- what goes wrong

def test_a_loss_that_is_no_number_stops_the_run(small):
    done = run_04(small, "--lr", "1e30")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "norm of the gradient" in done.stderr and "Try a smaller --lr" in done.stderr
    assert not (small / "model").exists()


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path):
    """A limit on the size of files stands in for the full disk: the write fails half-way."""
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


def test_changed_arguments_are_refused(trained):
    folder, _, _ = trained
    done = run_04(folder, "--epochs", "2")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "epochs (was 3.0, is 2.0)" in done.stderr
    assert (folder / "model" / "model.safetensors").is_file()


def test_a_new_annotation_is_noticed(trained, again):
    """Indexing examples name tracks by titles, which an annotation may change."""
    shutil.copytree(trained[0] / "runs", again / "runs")
    data.write_jsonl(again / "annotations" / "titles.jsonl", [{"track_id": "t1", "title": "New"}])
    done = run_04(again, "--epochs", "3")
    assert done.returncode == 1 and "annotations/titles.jsonl (was None" in done.stderr


NO_SUCH_TRACK = {"dialogue_id": "a", "turns": [{"query": "x", "music": "zzz"}]}


@pytest.mark.parametrize("file, content, message", [
    ("codes.npy", None, "codes.npy is missing; make it with: python 02_quantize.py"),
    ("codes.npy", "no array", "not a whole .npy file"),
    ("codes.npy", make_codes(29), "29 rows, but tracks.jsonl has 30"),
    ("codebooks/info.json", None, "info.json is missing; make it with: python 02_quantize.py"),
    ("codebooks/info.json", '{"k": 4}', "says K = 4, but codes.npy has code 7; make both again"),
    ("dialogues_train.jsonl", '{"dialogue_id": "a", "turns": []}', "at least one turn"),
    ("dialogues_train.jsonl", json.dumps(NO_SUCH_TRACK),
     "dialogues_train.jsonl:1: turn 1 names track_id zzz"),
    ("dialogues_valid.jsonl", '{"dialogue_id": "a", "tur', "dialogues_valid.jsonl:1: not JSON"),
])
def test_bad_input_is_one_line(small, monkeypatch, file, content, message):
    if content is None:
        (small / file).unlink()
    elif isinstance(content, str):
        (small / file).write_text(content)
    else:
        data.save_npy(small / file, content)
    monkeypatch.setattr(sys, "argv", ["04_train.py", "--data-dir", str(small)])
    with pytest.raises(SystemExit, match=message):
        train.main()
    assert not (small / "model").exists() and not (small / "model.part").exists()


def test_unknown_base_model(small, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["04_train.py", "--data-dir", str(small), "--base-model",
                                      "no/such-model"])
    with pytest.raises(SystemExit, match="--base-model no/such-model cannot be loaded"):
        train.main()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there(small, monkeypatch):
    for script, *flags in (["02_quantize"], ["04_train"], ["05_infer", "chat"],
                           ["baselines.sasrec"]):
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *flags, "--data-dir", str(small),
                                          "--device", "cuda"])
        with pytest.raises(SystemExit, match="sees no GPU here"):
            importlib.import_module(script).main()
