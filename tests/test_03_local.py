"""03_synthesize.py local: a tiny Llama with random weights, and a stand-in that writes well.

The answers of the tiny Llama can only be garbage.
"""

import importlib
import json
import sys

import pytest
import torch
from conftest import make_tracks
from test_03_gemini import good_turns

from common import data
from steps.synthesize.llm import jobs, local, prompt
from steps.train.base_models import tiny_llama, tiny_tokenizer

synthesize = importlib.import_module("03_synthesize")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    tokenizer = tiny_tokenizer([prompt.TEMPLATE.read_text(encoding="utf-8")], vocab_size=1500)
    tiny_llama(tokenizer).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def folder(tmp_path):
    data.write_jsonl(tmp_path / "tracks.jsonl", make_tracks(30))
    data.write_jsonl(tmp_path / "playlists.jsonl", [
        {"playlist_id": f"p{i}", "title": None, "modified_at": None, "split": split,
         "track_ids": [f"t{(5 * i + j) % 30}" for j in range(5)]}
        for i, split in enumerate(["train"] * 3 + ["valid", "test"])])
    return tmp_path


def run(monkeypatch, folder, model, *more):
    monkeypatch.setattr(sys, "argv", [
        "03_synthesize.py", "local", "--data-dir", str(folder), "--model", str(model),
        "--n-train", "3", "--n-valid", "1", "--n-test", "1", "--max-new-tokens", "24", *more])
    synthesize.main()


def test_garbage_is_rejected_with_reasons(model_dir, folder, monkeypatch, capsys):
    with pytest.raises(SystemExit, match="no train dialogue could be used"):
        run(monkeypatch, folder, model_dir, "--batch-size", "2")
    rejected = [json.loads(line)
                for line in open(folder / "dialogues_rejected.jsonl", encoding="utf-8")]
    assert [r["dialogue_id"] for r in rejected] == [
        "train-0", "train-1", "train-2", "valid-0", "test-0"]
    for r in rejected:
        assert len(r["reasons"]) == 2
        assert all(reason.startswith("no JSON") for reason in r["reasons"])
        assert len(r["answers"]) == 2 and r["answers"][0] != r["answers"][1]
    out = capsys.readouterr().out
    assert "made 0 (repaired 0), rejected 5, asked twice 5" in out and "rejected: no JSON 5" in out
    journal = jobs.read_journal(folder / "answers_train.jsonl")
    assert all(0 < line["out"] <= 24 < line["in"] for lines in journal.values() for line in lines)


def test_a_model_that_writes_well(folder, monkeypatch):
    batches = []

    def generate(model, tokenizer, prompts, seeds, **sampling):
        batches.append(len(prompts))
        return [jobs.Answer(json.dumps(good_turns(text)), 100, 50) for text in prompts]

    monkeypatch.setattr(local, "load_model", lambda name, device: (None, None))
    monkeypatch.setattr(local, "generate", generate)
    run(monkeypatch, folder, "some/model", "--batch-size", "2")
    found = data.load_dialogues(folder / "dialogues_train.jsonl", {f"t{i}": i for i in range(30)})
    assert len(found) == 3 and batches == [2, 1, 1, 1]
    assert found[0]["meta"] == {"backend": "local", "model": "some/model", "sampled": 5}
    assert (folder / "dialogues_rejected.jsonl").read_text() == ""
    record = json.loads((folder / "runs" / "03_synthesize.json").read_text())
    assert record["summary"]["tokens_in"] == 500 and record["summary"]["cost"] is None


def test_an_answer_depends_on_its_seed_and_not_on_its_batch(model_dir):
    model, tokenizer = local.load_model(str(model_dir), "cpu")
    prompts = ["something slow", "a longer wish, about the sea and the boats on it", "x"]

    def answers(prompts, seeds, temperature=1.0, top_p=0.95):
        return local.generate(model, tokenizer, prompts, seeds, temperature, top_p, 12)

    alone = [answers([text], [seed])[0] for text, seed in zip(prompts, (1, 2, 3), strict=True)]
    assert answers(prompts, [1, 2, 3]) == alone
    assert answers(prompts[:1], [4])[0].text != alone[0].text
    assert answers(prompts[:1], [1], 0.0, 1.0) == answers(prompts[:1], [2], 0.0, 1.0)


def test_sampling_by_hand():
    """Probabilities .5, .3, .15, .05: shares of 20,000 draws within four standard errors.

    Top-p .75 leaves .625 and .375; temperature .5 squares them.
    """
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().repeat(20000, 1)
    generator = torch.Generator().manual_seed(0)
    for temperature, top_p, expected in (
            (1.0, 1.0, [0.5, 0.3, 0.15, 0.05]), (1.0, 0.75, [0.625, 0.375, 0, 0]),
            (0.5, 1.0, [0.25 / 0.365, 0.09 / 0.365, 0.0225 / 0.365, 0.0025 / 0.365])):
        scores = local.Sampler([generator] * 20000, temperature, top_p)(None, logits)
        drawn = scores.argmax(-1).bincount(minlength=4) / 20000
        assert torch.allclose(drawn, torch.tensor(expected), atol=4 * 0.0036), drawn


def test_nothing_in_a_prompt_is_a_special_token(model_dir):
    _, tokenizer = local.load_model(str(model_dir), "cpu")
    plain, spiked = (local.prompt_ids(tokenizer, text)
                     for text in ("a title", "a <|eot_id|> title"))
    end = tokenizer.convert_tokens_to_ids("<|eot_id|>")
    assert plain.count(end) == spiked.count(end) and len(spiked) > len(plain)
    assert "a <|eot_id|> title" in tokenizer.decode(spiked)


def test_a_context_that_is_too_short(model_dir, folder, monkeypatch):
    message = "a prompt of .* tokens leaves .* --lyrics-words.*the same command goes on"
    with pytest.raises(SystemExit, match=message):
        run(monkeypatch, folder, model_dir, "--max-new-tokens", "20000")


def test_a_model_that_is_not_there(folder, monkeypatch):
    with pytest.raises(SystemExit, match="cannot be loaded"):
        run(monkeypatch, folder, folder / "nothing")
    assert not (folder / "runs" / "03_synthesize.json").exists()
