"""The baselines dense and dense-tuned, with a very small BERT of random weights as the encoder."""

import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from choices import check_choice, check_chosen_on_valid_alone

from baselines import dense, two_towers
from common import data, turns
from steps.extract_embeddings import text

ROOT = Path(__file__).resolve().parent.parent
MOODS = ("rainy", "sunny", "angry", "tender", "sleepy", "drunken", "holy", "icy", "dusty", "velvet",
         "neon", "wooden")
SYSTEMS = ("dense", "dense-tuned")
WISHES = ("umbrella", "beach", "shout", "hug", "pillow", "bottle", "church", "snow", "desert",
          "cloth", "city", "forest")


def make_dialogues(split, n=6):
    """Dialogues of four turns. A query says the wish word of its track, which the text of the track
    does not have."""
    for d in range(n):
        picks = [(7 * d + 3 * t + (split == "test")) % 12 for t in range(4)]
        dialogue = [{"query": f"play {WISHES[p]} music", "music": f"id{p}", "rejected": False,
                     "response": f"Here is song{p}.", "kind": "tags", "targets": [f"id{p}"]}
                    for p in picks]
        dialogue[2] |= {"music": None, "targets": []}  # small talk: no track, nothing to predict
        yield {"dialogue_id": f"{split}{d}", "playlist_id": f"{split}{d % 3}", "turns": dialogue}


@pytest.fixture
def data_dir(tmp_path):
    folder = tmp_path / "data"
    data.write_jsonl(folder / "tracks.jsonl", [
        {"track_id": f"id{i}", "title": f"song{i}", "artist": f"singer{i % 4}", "tags": [MOODS[i]]}
        for i in range(12)])
    data.write_jsonl(folder / "playlists.jsonl", [
        {"playlist_id": "a", "split": "train", "track_ids": ["id3", "id5"]}])
    for split, n in (("train", 24), ("valid", 6), ("test", 6)):
        data.write_jsonl(folder / f"dialogues_{split}.jsonl", make_dialogues(split, n))
    return folder


@pytest.fixture(scope="session")
def bert(tmp_path_factory):
    """Folder of a BERT of two layers and 32 dimensions. Its tokenizer knows the tests' words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "|", "by", ",", ".", "play", "music"]
    words += [*MOODS, *WISHES]
    words += [f"{kind}{i}" for kind in ("song", "singer") for i in range(12)]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    torch.manual_seed(0)
    model = BertModel(BertConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=64))
    folder = tmp_path_factory.mktemp("bert")
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", model_max_length=40).save_pretrained(folder)
    return folder


def run(monkeypatch, data_dir, bert, *arguments):
    flags = "--data-dir", data_dir, "--text-encoder", bert, "--device", "cpu", *arguments
    monkeypatch.setattr(sys, "argv", ["dense.py", *map(str, flags)])
    dense.main()


def read(data_dir, name, split="test"):
    path = data_dir / turns.FOLDERS[split] / f"{name}.jsonl"
    return {(row["dialogue_id"], row["turn"]): row for _, row in data.read_jsonl(path, "")}


def short(text, words=6):
    return len(text.split()) <= words


# ---------------------------------------------------------------- by hand

def test_info_nce_by_hand():
    """Items 0 and 2 are the same track: neither is the other's negative. Temperature 0.5 doubles
    the cosines."""
    queries = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    items = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    same = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 0, 1]]).bool()
    e = np.exp
    expected = np.mean([-np.log(e(2) / (e(2) + e(0))), -np.log(e(2) / (e(2) + 2 * e(0))),
                        -np.log(e(1.2) / (e(1.2) + e(1.6)))])
    loss = two_towers.info_nce(queries, items, same, 0.5).item()
    assert loss == pytest.approx(expected, abs=1e-6)
    assert two_towers.info_nce(queries, items, torch.eye(3).bool(), 0.5).item() > expected + 0.1


def test_batches_know_equal_tracks_and_depend_on_seed_and_step_alone():
    """Rows 0 and 1 have the same text (item 0); a turn with targets 2 and 3 has both as hits."""
    item_of_track = np.array([0, 0, 1, 2])
    examples = [turns.Turn("d", 1, [], f"q{i}", [], targets)
                for i, targets in enumerate(([0], [1], [2, 3], [2]))]

    def draw(step, seed=0):
        queries, rows, hits = two_towers.draw_batch(
            step, examples, dense.TRAINED, ["a", "a", "b", "c"], item_of_track, short, 4, seed)
        return queries, rows, hits.tolist()
    queries, rows, hits = draw(0)
    assert sorted(queries) == ["q0", "q1", "q2", "q3"]
    for i, query in enumerate(queries):
        allowed = {"q0": {0}, "q1": {0}, "q2": {1, 2}, "q3": {1}}[query]  # items
        assert hits[i][i] and hits[i] == [item_of_track[row] in allowed for row in rows]
    assert draw(0) == (queries, rows, hits)
    assert draw(1)[0] != queries and draw(0, seed=1)[0] != queries


def test_query_forms():
    past = [{"query": "q1", "music": "x"}, {"query": "q2", "music": None},
            {"query": "q3", "music": "y"}]
    turn = turns.Turn("d", 4, past, "q4", [0, 1], [2])
    queries = ["q4", "q3", "q2", "q1"]
    assert {form: two_towers.query_inputs(turn, form, ["X", "Y", "Z"], lambda text: True)
            for form in two_towers.HISTORIES} == {
        "last query": (["q4"], []),
        "last query + last track": (["q4"], [1]),
        "mean of queries": (queries, []),
        "mean of queries and tracks": (queries, [0, 1]),
        "queries joined": (["q4 | q3 | q2 | q1"], []),
        "turns joined": (["q4 | Y | q3 | q2 | X | q1"], []),
    }
    cut = two_towers.query_inputs(turn, "queries joined", None, lambda text: short(text, 5))
    assert cut == (["q4 | q3 | q2"], [])  # the oldest goes
    cut = two_towers.query_inputs(turn, "queries joined", None, lambda text: False)
    assert cut == (["q4"], [])
    first = turns.Turn("d", 1, [], "q", [], [2])
    assert all(two_towers.query_inputs(first, form, ["X"], short) == (["q"], [])
               for form in two_towers.HISTORIES)


def test_mean_of_turns_by_hand():
    """Two queries and two played tracks, one of which cannot be encoded and does not count."""
    vectors = {"old": [1.0, 0.0], "new": [0.0, 1.0]}

    def encode_queries(said):
        return np.array([vectors[text] for text in said], np.float32)
    encoder = SimpleNamespace(encode_queries=encode_queries, fits=short)
    items = np.array([[np.nan, np.nan], [0.6, 0.8]], np.float32)
    item_of_track = np.array([1, 0, 1])
    turn = turns.Turn("d", 2, [{"query": "old", "music": "a"}], "new", [0, 1], [2])
    got = two_towers.embed_turns([turn], two_towers.HISTORIES[:4], None, items, item_of_track,
                                 encoder)
    expected = {"last query": [0, 1], "last query + last track": [0, 1],
                "mean of queries": [0.5, 0.5], "mean of queries and tracks": [1.6 / 3, 1.8 / 3]}
    for history, mean in expected.items():
        unit = mean / np.linalg.norm(mean)
        np.testing.assert_allclose(got[history], [unit], atol=1e-6, err_msg=history)


def test_scores_are_cosines_and_tracks_of_one_text_tie():
    unique, item_of_track = dense.distinct(["a", "b", "", "a"])
    assert unique == ["a", "b", None] and item_of_track.tolist() == [0, 1, 2, 0]
    items = np.array([[1, 0], [0.6, 0.8], [np.nan, np.nan]], np.float32)
    queries = np.array([[0, 1], [1, 0], [1, 0]], np.float32)
    scores = list(two_towers.score_turns(queries, items, item_of_track, size=2))
    expected = [[0, 0.8, -2, 0], [1, 0.6, -2, 1], [1, 0.6, -2, 1]]
    np.testing.assert_allclose(scores, expected, atol=1e-6)


@pytest.mark.parametrize("name, instruction, prefix", [
    ("minilm", None, ""), ("nvidia/NV-Embed-v2", "", ""),
    ("nvidia/NV-Embed-v2", None, f"Instruct: {dense.TASK}\nQuery: "),
    ("Qwen/Qwen3-Embedding-0.6B", None, f"Instruct: {dense.TASK}\nQuery:"),
    ("Qwen/Qwen3-Embedding-8B", "Find {it}", "Instruct: Find {it}\nQuery:"),
    ("minilm", "Find it", "Instruct: Find it\nQuery: ")])
def test_only_encoders_that_want_an_instruction_get_it(name, instruction, prefix):
    assert dense.query_prefix(name, instruction) == prefix


def test_the_instruction_comes_before_queries_and_counts_in_their_length(bert):
    plain = dense.load_encoder(str(bert), "", "mean", 0, "cpu")
    told = dense.load_encoder(str(bert), "play rainy ", "mean", 8, "cpu")
    assert (plain.query_tokens, plain.max_tokens, told.query_tokens) == (40, 40, 8)
    query = told.encode_queries(["music"])
    np.testing.assert_allclose(query, plain.encode(["play rainy music"]), atol=1e-6)
    np.testing.assert_allclose(told.encode(["music"]), plain.encode(["music"]), atol=1e-6)
    # [CLS] and [SEP] are two of the 8 tokens
    assert told.fits("a b c d") and not told.fits("a b c d e")


def test_code_that_comes_with_a_model_is_not_run(tmp_path, data_dir, monkeypatch):
    folder = tmp_path / "NV-Embed-v2"
    folder.mkdir()
    auto_map = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    (folder / "config.json").write_text(json.dumps({"model_type": "nvembed", "auto_map": auto_map}))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.setattr("builtins.input", lambda *_: (_ for _ in ()).throw(EOFError()))
    with pytest.raises(SystemExit, match="NV-Embed-v2.*Accepted: minilm"):
        run(monkeypatch, data_dir, folder)
    assert not (tmp_path / "ran").exists() and not (data_dir / "runs").exists()


# ---------------------------------------------------------------- the script

def test_two_systems_end_to_end(monkeypatch, data_dir, bert, capsys):
    run(monkeypatch, data_dir, bert, "--steps", 3, "--eval-every", 2)
    for name in SYSTEMS:
        for split in ("valid", "test"):
            rows = read(data_dir, name, split)
            assert set(rows) == {(f"{split}{d}", t) for d in range(6) for t in (1, 2, 4)}
            assert all(sorted(row["track_ids"]) == sorted(f"id{i}" for i in range(12))
                       for row in rows.values())
        record, valid_mrr = check_choice(data_dir, name)
        assert sorted(valid_mrr) == sorted(two_towers.HISTORIES)
    assert [row["step"] for row in record["log"]] == [2, 3]
    assert not (data_dir / "dense.part").exists()

    capsys.readouterr()
    run(monkeypatch, data_dir, bert, "--steps", 3, "--eval-every", 2)
    assert capsys.readouterr().out.startswith(
        "dense: already done (--no-resume does it again)\n"
        "dense-tuned: already done (--no-resume does it again)\n")
    with pytest.raises(SystemExit, match=r"steps \(was 3, is 4\).*--no-resume"):
        run(monkeypatch, data_dir, bert, "--steps", 4, "--eval-every", 2)
    run(monkeypatch, data_dir, bert, "--skip-tuning")  # other steps are no matter to zero-shot


def test_a_script_of_its_own_whose_predictions_06_accepts(monkeypatch, data_dir, bert):
    subprocess.run([sys.executable, ROOT / "baselines" / "dense.py", "--data-dir", data_dir,
                    "--text-encoder", bert, "--skip-tuning", "--device", "cpu"],
                   check=True, cwd=data_dir, capture_output=True)
    assert not (data_dir / "dense_model").exists()
    assert not (data_dir / "predictions" / "dense-tuned.jsonl").exists()
    evaluate = importlib.import_module("06_evaluate")
    monkeypatch.setattr(sys, "argv", ["06_evaluate.py", "--data-dir", str(data_dir)])
    evaluate.main()
    assert "dense" in (data_dir / "results/results.md").read_text()


@pytest.mark.parametrize("name", SYSTEMS)
def test_form_and_weights_are_chosen_on_valid_alone(monkeypatch, data_dir, bert, name):
    def run_anew():
        run(monkeypatch, data_dir, bert, "--steps", 12, "--eval-every", 3, "--lr", 3e-3,
            "--no-resume")
    check_chosen_on_valid_alone(run_anew, data_dir, name, 12, dense.TRAINED[0])


@pytest.mark.parametrize("t", [0, 1, 3])
def test_what_follows_a_query_changes_nothing(monkeypatch, data_dir, bert, t):
    """Music, response and targets of turn t, and all later turns, are replaced: the rankings of the
    turns up to t stay as they were."""
    flags = "--steps", 2, "--eval-every", 2, "--no-resume"
    run(monkeypatch, data_dir, bert, *flags)
    before = {name: read(data_dir, name) for name in SYSTEMS}
    altered = list(make_dialogues("test"))
    for dialogue in altered:
        for i, turn in enumerate(dialogue["turns"]):
            if i >= t:
                turn |= {"music": "id11", "targets": ["id11"], "response": "winter",
                         "rejected": True, "kind": "x"}
            if i > t:
                turn["query"] = "shout forest"
    data.write_jsonl(data_dir / "dialogues_test.jsonl", altered)
    run(monkeypatch, data_dir, bert, *flags)
    for name, old in before.items():
        new = read(data_dir, name)
        earlier = [key for key in old if key[1] <= t + 1]
        assert len(earlier) == 6 * {0: 1, 1: 2, 3: 3}[t]
        assert all(old[key] == new[key] for key in earlier)
        # the altered queries do count in their own turns
        assert t == 3 or any(old[key] != new[key] for key in old)


def test_the_past_counts(monkeypatch, data_dir, bert):
    """Another track in the first turn changes the vectors of later turns in the forms that have
    tracks, and in no other."""
    row_of = {f"id{i}": i for i in range(12)}
    texts = [data.item_text(track) for track in data.load_tracks(data_dir)]
    encoder = dense.load_encoder(str(bert), "", "mean", 0, "cpu")
    items = encoder.encode(texts)

    def embed(dialogues):
        second_turns = turns.collect_turns(dialogues, row_of)[1::3]
        return two_towers.embed_turns(second_turns, two_towers.HISTORIES, texts, items,
                                      np.arange(12), encoder)
    dialogues = list(make_dialogues("test"))
    before = embed(dialogues)
    for dialogue in dialogues:
        dialogue["turns"][0]["music"] = "id11"
    after = embed(dialogues)
    changed = {history for history in two_towers.HISTORIES
               if not np.allclose(before[history], after[history], atol=1e-5)}
    assert changed == {"last query + last track", "mean of queries and tracks", "turns joined"}


def test_tuning_learns_and_its_folder_can_be_loaded(monkeypatch, data_dir, bert):
    """No wish word is in a track's text: only the training dialogues tell which belongs to which
    mood."""
    run(monkeypatch, data_dir, bert, "--steps", 60, "--eval-every", 30, "--lr", 3e-3,
        "--batch-size", 12)
    records = [json.loads((data_dir / f"runs/{name}.json").read_text()) for name in SYSTEMS]
    before, after = (record["chosen_on_valid"]["valid_mrr"] for record in records)
    assert before < 0.5 and after > 0.8
    folder = text.resolve_text_encoder(str(data_dir / "dense_model"))
    tokenizer, model, longest = text.load_text_encoder(folder, "cpu")
    assert longest == 40  # cuts where the encoder did
    texts = [data.item_text(track) for track in data.load_tracks(data_dir)]
    wishes = [f"play {wish} music" for wish in WISHES]
    items = text.embed_texts(texts, tokenizer, model, longest)[0]
    queries = text.embed_texts(wishes, tokenizer, model, longest)[0]
    assert ((queries @ items.T).argmax(1) == np.arange(12)).mean() > 0.8


KILLED = """
import importlib, os, signal, sys
sys.path.insert(0, {root!r})
dense = importlib.import_module("baselines.dense")
two_towers = dense.two_towers
draw = two_towers.draw_batch
def draw_batch(step, *args):
    if step == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return draw(step, *args)
two_towers.draw_batch = draw_batch
dense.main()
"""


def test_kill_and_resume_gives_the_same_bits(monkeypatch, data_dir, bert, tmp_path):
    """SIGKILL in the sixth step of seven, two after a checkpoint; then the same command again.
    Dropout is on."""
    flags = "--steps", 7, "--eval-every", 2
    whole = tmp_path / "whole"
    subprocess.run(["cp", "-r", str(data_dir), str(whole)], check=True)
    command = [sys.executable, "-c", KILLED.format(root=str(ROOT)), "--data-dir", data_dir,
               "--text-encoder", bert, "--device", "cpu", *flags]
    ran = subprocess.run([str(word) for word in command], capture_output=True,
                         env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())})
    assert ran.returncode == -signal.SIGKILL
    saved = [path.name for path in (data_dir / "dense.part").glob("checkpoint-*")]
    assert saved == ["checkpoint-4.pt"]

    draw = two_towers.draw_batch
    steps = []

    def watched(step, *args):
        steps.append(step)
        return draw(step, *args)
    monkeypatch.setattr(two_towers, "draw_batch", watched)
    run(monkeypatch, data_dir, bert, *flags)
    assert steps == [4, 5, 6]
    run(monkeypatch, whole, bert, *flags)
    assert steps == [4, 5, 6, 0, 1, 2, 3, 4, 5, 6]
    for file in ("dense_model/model.safetensors", "predictions/dense-tuned.jsonl",
                 "predictions_valid/dense-tuned.jsonl"):
        assert (data_dir / file).read_bytes() == (whole / file).read_bytes()
    resumed, at_once = (json.loads((folder / "runs/dense-tuned.json").read_text())["log"]
                        for folder in (data_dir, whole))
    assert resumed == at_once and [row["step"] for row in resumed] == [2, 4, 6, 7]


def test_a_step_that_diverges_ends_with_one_line(tmp_path):
    model = torch.nn.Linear(2, 1)

    def diverge(step):
        return model(torch.full((1, 2), torch.nan)).sum()
    with pytest.raises(SystemExit, match="step 1: the loss is nan; try a smaller --lr"):
        two_towers.fit(model, diverge, lambda: 0.0, tmp_path, 3, 1, 0.1, 0)


def test_the_best_weights_are_kept(tmp_path):
    """Valid MRR is best after the second of four steps: the weights of that moment are kept."""
    model = torch.nn.Linear(1, 1)
    seen = []

    def valid_mrr():
        seen.append(model.weight.item())
        return [0.1, 0.4, 0.3, 0.4][len(seen) - 1]

    def batch_loss(step):
        return model(torch.ones(1, 1)).sum()
    log = two_towers.fit(model, batch_loss, valid_mrr, tmp_path, 4, 1, 0.1, 0)
    assert model.weight.item() == seen[1] != seen[3]
    assert [row["valid_mrr"] for row in log] == [0.1, 0.4, 0.3, 0.4]


@pytest.mark.parametrize("flags, message", [
    (["--steps", "0"], "--steps 0: 1 or more is accepted"),
    (["--batch-size", "1"], "--batch-size 1: 2 or more is"),
    (["--query-tokens", "-1"], "--query-tokens -1: 0 or more is")])
def test_bad_arguments(monkeypatch, data_dir, bert, flags, message):
    with pytest.raises(SystemExit, match=message):
        run(monkeypatch, data_dir, bert, *flags)


def test_nothing_to_learn_from(monkeypatch, data_dir, bert):
    dialogues = list(make_dialogues("train"))
    for dialogue in dialogues:
        for turn in dialogue["turns"]:
            turn |= {"music": None, "targets": []}
    data.write_jsonl(data_dir / "dialogues_train.jsonl", dialogues)
    with pytest.raises(SystemExit, match="dialogues_train.jsonl: no turn has a target"):
        run(monkeypatch, data_dir, bert)
