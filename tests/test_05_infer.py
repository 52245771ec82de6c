"""05_infer.py: sampling, the grammar, the likelihood ranker against plain scoring, predict and chat."""

import importlib
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import K, ROOT, make_codes, make_dialogues

from common import tokens
from steps.infer import generation, likelihood_ranker
from steps.infer.trie import build_trie

infer = importlib.import_module("05_infer")


def prompts_for(dialogue_tokenizer, codes_of, n=3):
    return [infer.prompt_of(dialogue_tokenizer, d["turns"][:t], codes_of, 2048) for d in make_dialogues(n, 30) for t in (1, 3)]


def test_choose_is_nucleus_sampling():
    """By hand: p = .5, .3, .15, .05 at top-p .9 keeps the first three, renormalised."""
    logits = torch.log(torch.tensor([[0.15, 0.5, 0.05, 0.3]])).expand(6000, -1)
    rng = np.random.default_rng(0)
    drawn = np.bincount(generation.choose(logits, [rng] * 6000).numpy(), minlength=4) / 6000
    assert drawn[2] == 0 and np.abs(drawn - np.array([0.15, 0.5, 0, 0.3]) / 0.95).max() < 0.025
    assert generation.choose(logits[:2], [rng] * 2, temperature=0).tolist() == [1, 1]
    assert generation.choose(logits[:2], [rng] * 2, top_p=0.1).tolist() == [1, 1]


def test_sample_equals_transformers_generate(tiny):
    """Greedy, against model.generate on each prompt alone: left padding and the cache change nothing."""
    model, dialogue_tokenizer = tiny
    codes_of = {f"t{i}": c for i, c in enumerate(make_codes(30))}
    prompts = prompts_for(dialogue_tokenizer, codes_of)
    with torch.inference_mode():
        reading = generation.PromptCache(model, prompts)
        ours = generation.sample(reading, reading.end, [None] * len(prompts), [10**9], 8, temperature=0)
        for prompt, mine in zip(prompts, ours):
            theirs = model.generate(torch.tensor(prompt)[None].long(), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=8,
                                    do_sample=False, eos_token_id=None, pad_token_id=0)[0, len(prompt):]
            assert mine == theirs.tolist()


def test_beginnings_are_read_once():
    prompts = [[1, 2], [1, 2, 3, 4], [1, 5], [1, 2, 3], [1, 2, 3, 4], [6]]
    trunks, trunk_of = generation.shared_prefixes(prompts)
    assert len(trunks) == 3 and [prompts[trunks[t]] for t in trunk_of] == [[1, 2, 3, 4]] * 2 + [[1, 5]] + [[1, 2, 3, 4]] * 2 + [[6]]


def score_tracks(reading, dialogue_tokenizer, trie, prior=None, beam=50):
    """likelihood.score_nodes and best_tracks as one array, float64: (B, N)."""
    scores = np.full((reading.mask.shape[0], len(trie.rows)), np.nan)
    for row, levels in zip(scores, likelihood_ranker.score_nodes(reading, dialogue_tokenizer, trie, prior, beam)):
        rows, values = likelihood_ranker.best_tracks(trie, levels, len(trie.rows))
        assert len(set(rows)) == len(rows) == len(trie.rows)
        row[rows] = values
    return scores


def test_turns_read_together_are_as_if_read_alone(tiny):
    """All turns of two dialogues in one reading: hidden states, sampled codes and rankings equal those of each turn for itself."""
    model, dialogue_tokenizer = tiny
    codes = make_codes(30)
    codes_of, trie = {f"t{i}": c for i, c in enumerate(codes)}, build_trie(codes)
    prompts = [infer.prompt_of(dialogue_tokenizer, d["turns"][:t], codes_of) for d in make_dialogues(2, 30) for t in range(1, len(d["turns"]) + 1)]
    prompts = prompts[::-1]
    rngs = [[np.random.default_rng(i) for i in range(len(prompts))] for _ in range(2)]
    with torch.inference_mode():
        together = generation.PromptCache(model, prompts)
        assert len(generation.shared_prefixes(prompts)[0]) == 2 and len(prompts) > 6
        alone = [generation.PromptCache(model, [prompt]) for prompt in prompts]
        assert torch.cat([r.end for r in alone]).sub(together.end).abs().max() < 1e-4
        sampled = infer.generate_codes(together, dialogue_tokenizer, rngs[0], free=False)
        assert sampled == [infer.generate_codes(r, dialogue_tokenizer, [rng], free=False)[0] for r, rng in zip(alone, rngs[1])]
        ranked = score_tracks(together, dialogue_tokenizer, trie, beam=10)
        assert np.abs(ranked - np.concatenate([score_tracks(r, dialogue_tokenizer, trie, beam=10) for r in alone])).max() < 2e-3


def test_repetition_penalty_equals_transformers(tiny):
    model, dialogue_tokenizer = tiny
    prompt = prompts_for(dialogue_tokenizer, {f"t{i}": c for i, c in enumerate(make_codes(30))})[0]
    from transformers import RepetitionPenaltyLogitsProcessor
    with torch.inference_mode():
        reading = generation.PromptCache(model, [prompt])
        ours = generation.sample(reading, reading.end, [None], [10**9], 10, temperature=0, repetition_penalty=100.0)[0]
        penalty, ids = RepetitionPenaltyLogitsProcessor(100.0), []
        for _ in range(10):
            logits = model(torch.tensor([[*prompt, *ids]]).long()).logits[:, -1]
            ids.append(int((penalty(torch.tensor([ids]).long(), logits) if ids else logits).argmax()))
    assert ours == ids and len(set(ids)) > 1


def test_grammar_gives_valid_blocks_only(tiny):
    model, dialogue_tokenizer = tiny
    prompts = prompts_for(dialogue_tokenizer, {f"t{i}": c for i, c in enumerate(make_codes(30))}) * 10
    with torch.inference_mode():
        reading = generation.PromptCache(model, prompts)
        rngs = [np.random.default_rng(i) for i in range(len(prompts))]
        held = infer.generate_codes(reading, dialogue_tokenizer, rngs, free=False)
        free = infer.generate_codes(reading, dialogue_tokenizer, rngs, free=True)
    assert all(c is not None for c in held)
    assert {sum(x >= 0 for x in c) for c in held} > {1}  # blocks of several lengths
    assert sum(c is None for c in free) > len(free) / 2   # random weights rarely keep the grammar


def plain_gains(model, dialogue_tokenizer, prompt, codes):
    """log P of each code of one track after a prompt, token by token without cache, trie or batch; (5,)."""
    v, gains, ids = dialogue_tokenizer.vocabulary, np.zeros(5), [*prompt, dialogue_tokenizer.vocabulary.start]
    for m in range(5):
        with torch.inference_mode():
            logits = model(torch.tensor([ids]).long(), use_cache=False).logits[0, -1]
        logp = torch.log_softmax(logits[v.first + m * v.k:v.first + (m + 1) * v.k].double(), 0)
        gains[m] = logp[codes[m]] if codes[m] >= 0 else (logp.exp() * logp).sum()
        if codes[m] >= 0:
            ids.append(v.first + m * v.k + int(codes[m]))
    return gains


@pytest.mark.parametrize("no_audio, calibration", [(False, 0.0), (False, 1.0), (True, 0.5)])
def test_likelihood_equals_plain_scoring(tiny, no_audio, calibration):
    """With a beam as wide as the trie: every track's score as computed one token at a time."""
    model, dialogue_tokenizer = tiny
    codes = make_codes(40, seed=3, missing=0.25)
    codes[7] = codes[8]  # two tracks share their codes
    if no_audio:
        codes[:, 4] = -1
        codes[(codes < 0).all(1), 0] = 1
    used = (codes >= 0).any(0)
    codes_of = {f"t{i}": c for i, c in enumerate(make_codes(30))}
    prompts = prompts_for(dialogue_tokenizer, codes_of, 2)
    nothing, _ = tokens.encode_dialogue(dialogue_tokenizer, [{"query": "Play some music."}], {}, prompt=True)
    with torch.inference_mode():
        prior = likelihood_ranker.unconditional_log_probs(model, dialogue_tokenizer, codes, batch_size=16)
        reading = generation.PromptCache(model, prompts)
        length = len(reading)
        scores = score_tracks(reading, dialogue_tokenizer, build_trie(codes), calibration * prior, 1000)
        assert len(reading) == length and reading.cache.get_seq_length() == length
    expected_prior = np.array([plain_gains(model, dialogue_tokenizer, nothing, c) for c in codes])
    assert np.abs(prior - expected_prior).max() < 1e-3
    for row in (0, 3):
        gains = np.array([plain_gains(model, dialogue_tokenizer, prompts[row], c) for c in codes]) - calibration * expected_prior
        shared = np.log([(codes == c).all(1).sum() for c in codes])
        assert np.abs(scores[row] - (gains[:, used].sum(1) - shared)).max() < 2e-3


def test_known_and_new_tracks_share_the_probability(tiny):
    """Worked with plain numpy from the ranker's own scores: each group sums to its share, its order is kept."""
    model, dialogue_tokenizer = tiny
    codes = make_codes(40, seed=3, missing=0.2)
    new = codes[:, 0] < 0
    prompts = prompts_for(dialogue_tokenizer, {f"t{i}": c for i, c in enumerate(make_codes(30))}, 1)
    with torch.inference_mode():
        prior = likelihood_ranker.unconditional_log_probs(model, dialogue_tokenizer, codes)
        reading = generation.PromptCache(model, prompts)
        plain = score_tracks(reading, dialogue_tokenizer, build_trie(codes), None, 1000)
        for share in (None, 0.3):
            groups = likelihood_ranker.group_tracks(model, dialogue_tokenizer, codes, share)
            ranked = likelihood_ranker.rank_tracks(reading, dialogue_tokenizer, groups, 40, 1000)
            assert all(rows.tolist() == list(range(40)) for rows, _ in ranked)
            scores = np.array([values for _, values in ranked])
            p = np.exp(scores)
            expected = new.mean() if share is None else share
            assert np.allclose(p[:, new].sum(1), expected, atol=1e-3) and np.allclose(p[:, ~new].sum(1), 1 - expected, atol=1e-3)
            assert np.allclose(np.diff(scores[:, ~new]), np.diff(plain[:, ~new]), atol=2e-3)
            raised = plain - prior.sum(1)
            assert np.allclose(np.diff(scores[:, new]), np.diff(raised[:, new]), atol=2e-3)
        assert len(likelihood_ranker.group_tracks(model, dialogue_tokenizer, codes[~new])) == 1


def test_narrow_beam_keeps_exact_scores_in_front(tiny):
    """Tracks that the beam reaches have the same score as with the full trie; the others come after them."""
    model, dialogue_tokenizer = tiny
    codes = make_codes(200, seed=4, missing=0.1)
    trie = build_trie(codes)
    prompts = prompts_for(dialogue_tokenizer, {f"t{i}": c for i, c in enumerate(make_codes(30))}, 1)
    with torch.inference_mode():
        full = score_tracks(generation.PromptCache(model, prompts), dialogue_tokenizer, trie, beam=1000)
        narrow = score_tracks(generation.PromptCache(model, prompts), dialogue_tokenizer, trie, beam=6)
    reached = narrow > -500
    assert 5 < reached[0].sum() < 200
    assert np.abs(narrow[reached] - full[reached]).max() < 2e-3
    assert narrow[0][reached[0]].min() > narrow[0][~reached[0]].max()


def test_a_missing_code_is_worth_an_average_one(tiny):
    """A cold track stands between the best and the worst of its n_same_codes that have the playlist code."""
    model, dialogue_tokenizer = tiny
    codes = np.array([[p, 1, 2, 3, 4] for p in [-1, *range(K)]], np.int16)
    prompts = prompts_for(dialogue_tokenizer, {f"t{i}": c for i, c in enumerate(make_codes(30))}, 1)
    with torch.inference_mode():
        scores = score_tracks(generation.PromptCache(model, prompts), dialogue_tokenizer, build_trie(codes), beam=100)
    assert (scores[:, 0] < scores[:, 1:].max(1)).all() and (scores[:, 0] > scores[:, 1:].min(1)).all()


def test_marginals_of_the_codes(tiny):
    """Playlist: the softmax itself. Semantic: sum over playlist codes of P(playlist) P(semantic | playlist), all K worked out."""
    model, dialogue_tokenizer = tiny
    v = dialogue_tokenizer.vocabulary
    prompts = prompts_for(dialogue_tokenizer, {f"t{i}": c for i, c in enumerate(make_codes(30))}, 1)
    samples = 300

    def next_p(ids, m):
        logits = model(torch.tensor([ids]).long(), use_cache=False).logits[0, -1]
        return torch.softmax(logits[v.first + m * v.k:v.first + (m + 1) * v.k].double(), 0).numpy()

    with torch.inference_mode():
        reading = generation.PromptCache(model, [p for p in prompts for _ in range(samples)])
        found = likelihood_ranker.code_marginals(reading, dialogue_tokenizer, [np.random.default_rng(i) for i in range(len(prompts) * samples)], samples)
        assert found.shape == (2, 5, v.k) and np.abs(found.sum(2) - 1).max() < 1e-4
        for prompt, each in zip(prompts, found):
            playlist = next_p([*prompt, v.start], 0)
            semantic = sum(p * next_p([*prompt, v.start, v.first + c], 1) for c, p in enumerate(playlist))
            assert np.abs(each[0] - playlist).max() < 1e-5 and np.abs(each[1] - semantic).max() < 0.02
            assert np.abs(each[1] - next_p([*prompt, v.start, v.first + int(playlist.argmin())], 1)).max() > 0.02  # the average counts


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    from conftest import small
    folder = small.__wrapped__(tmp_path_factory.mktemp("infer"))
    run("04_train.py", folder, "--context", "256", "--epochs", "12", "--batch-size", "2", "--indexing-repeats", "0", "--device", "cpu")
    run("05_infer.py", folder, "predict", "--device", "cpu")
    return folder


def run(script, folder, *flags, ok=True, **kwargs):
    command = [flags[0], "--data-dir", str(folder), *flags[1:]] if script.startswith("05") else ["--data-dir", str(folder), *flags]
    done = subprocess.run([sys.executable, script, *command], cwd=ROOT, capture_output=True, text=True, timeout=300,
                          env=os.environ | {"OMP_NUM_THREADS": "1"}, **kwargs)
    assert not ok or done.returncode == 0, done.stderr
    return done


def predictions(folder, name="talkplay"):
    return {(r["dialogue_id"], r["turn"]): r for r in map(json.loads, open(folder / "predictions" / f"{name}.jsonl"))}


def test_predict_covers_every_turn(trained):
    rows = predictions(trained)
    wanted = [(d["dialogue_id"], t) for d in make_dialogues(4, 30, "test") for t in range(1, 5)]
    assert list(rows) == wanted == list(predictions(trained, "talkplay-overlap"))
    for row in rows.values():
        assert sorted(row["track_ids"]) == sorted(f"t{i}" for i in range(30)) and isinstance(row["response"], str)
        assert row["well_formed"] == (row["codes"] is not None)
    assert not list((trained / "predictions").glob("*.part"))
    assert "already done" in run("05_infer.py", trained, "predict", "--device", "cpu").stdout


def test_nothing_after_the_query_changes_a_prediction(trained, tmp_path):
    """Gold music, answer, targets and all later turns are altered from turn 3 on: turns 1 to 3 are as before."""
    shutil.copytree(trained, tmp_path / "copy")
    folder = tmp_path / "copy"
    rows = [json.loads(line) for line in open(folder / "dialogues_test.jsonl")]
    for d in rows:
        d["turns"][2] |= {"music": "t29", "targets": ["t29"], "response": "Quite another answer.", "kind": "lyrics", "rejected": True}
        d["turns"][3] |= {"query": "A wholly different question?", "music": "t28", "targets": ["t28"]}
    with open(folder / "dialogues_test.jsonl", "w") as f:
        f.writelines(json.dumps(d) + "\n" for d in rows)
    run("05_infer.py", folder, "predict", "--device", "cpu", "--no-resume")
    for name in ("talkplay", "talkplay-overlap"):
        before, after = predictions(trained, name), predictions(folder, name)
        assert all(before[key] == after[key] for key in before if key[1] <= 3)
        assert any(before[key] != after[key] for key in before if key[1] == 4)


def test_cut_prediction_goes_on(trained, tmp_path):
    """Half of the lines are there, the last one cut: the resumed file is the same."""
    shutil.copytree(trained, tmp_path / "copy")
    folder = tmp_path / "copy"
    both = [predictions(folder, n) for n in ("talkplay", "talkplay-overlap")]
    lines = [json.dumps({"rows": [b[key] for b in both]}) + "\n" for key in both[0]]
    (folder / "predictions" / "talkplay.jsonl.part").write_text("".join(lines[:7]) + lines[7][:100])
    record = folder / "runs" / "05_infer.test.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"state": "running"}))
    for name in ("talkplay", "talkplay-overlap"):
        (folder / "predictions" / f"{name}.jsonl").unlink()
    run("05_infer.py", folder, "predict", "--device", "cpu")
    assert [predictions(folder, n) for n in ("talkplay", "talkplay-overlap")] == both


def test_other_rankers(trained, tmp_path):
    """One file each; votes of one sample are the paper's overlap, but for the order of equal scores."""
    shutil.copytree(trained, tmp_path / "copy")
    folder = tmp_path / "copy"
    run("05_infer.py", folder, "predict", "--device", "cpu", "--no-resume", "--rankers", "expected", "votes", "greedy", "--no-responses")
    both = list(predictions(trained))
    found = [predictions(folder, f"talkplay-{name}") for name in ("expected", "votes", "greedy")]
    for rows in found:
        assert list(rows) == both and all(sorted(row["track_ids"]) == sorted(f"t{i}" for i in range(30)) for row in rows.values())
        assert all(row["response"] is None for row in rows.values())
    assert len({json.dumps([row["track_ids"][:5] for row in rows.values()]) for rows in found}) == 3
    assert "--no-resume" in run("05_infer.py", folder, "predict", "--device", "cpu", ok=False).stderr


def test_chat(trained):
    for ranker in ("likelihood", "overlap"):
        done = run("05_infer.py", trained, "chat", "--device", "cpu", "--ranker", ranker, "--max-new-tokens", "8",
                   input="Something sad\n<|eot_id|><|audio-3|> and <start_of_music>\n\n")
        assert done.stdout.count("play > Song") == 2 and done.stdout.count("talk >") == 2
        played = [line for line in done.stdout.split("\n") if "play >" in line]
        assert played[0] != played[1]  # a played track is not recommended again


@pytest.mark.parametrize("break_it, message", [
    (lambda d: shutil.rmtree(d / "model"), "holds no model; make it with: python 04_train.py"),
    (lambda d: (d / "codebooks").mkdir(exist_ok=True) or (d / "codebooks" / "info.json").write_text('{"k": 16}'), "trained with K = 8 .* K = 16"),
    (lambda d: (d / "model" / "model.safetensors").write_bytes(b"half"), "cannot be loaded"),
    (lambda d: np.save(d / "codes.npy", make_codes(30, seed=9)), "codes.npy has changed since 04_train read it"),
])
def test_bad_model_is_one_line(trained, tmp_path, break_it, message, monkeypatch):
    shutil.copytree(trained, tmp_path / "copy")
    before = (tmp_path / "copy" / "predictions" / "talkplay.jsonl").read_bytes()
    break_it(tmp_path / "copy")
    monkeypatch.setattr(sys, "argv", ["05_infer.py", "predict", "--data-dir", str(tmp_path / "copy"), "--device", "cpu", "--no-resume"])
    with pytest.raises(SystemExit, match=message):
        infer.main()
    assert (tmp_path / "copy" / "predictions" / "talkplay.jsonl").read_bytes() == before
    record = json.loads((tmp_path / "copy" / "runs" / "05_infer.test.json").read_text())
    assert record["state"] == "finished"  # a run that could not begin takes nothing off the record
