"""05_infer.py: sampling, the trie, the rankers against plain scoring, predict, reply and chat."""

import importlib
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, K, make_codes, make_dialogues
from transformers import RepetitionPenaltyLogitsProcessor

from common import metrics, retrieval, tokens
from common.turns import collect_turns
from steps.infer import generation, rankers
from steps.infer.generation import PromptCache
from steps.infer.trie import build_trie, expand_ranges

infer = importlib.import_module("05_infer")
CODES_OF = {f"t{i}": codes for i, codes in enumerate(make_codes(30))}
HELD = infer.Settings(free=False)


def prompts_for(dialogue_tokenizer, n=3):
    """Turns 1 and 3 of n dialogues."""
    return [infer.prompt_of(dialogue_tokenizer, d["turns"][:t], CODES_OF, 2048)
            for d in make_dialogues(n, 30) for t in (1, 3)]


def generators(n):
    return [np.random.default_rng(i) for i in range(n)]


# ---------------------------------------------------------------- sampling

def test_choose_is_nucleus_sampling():
    """By hand: p = .5, .3, .15, .05 at top-p .9 keeps the first three, renormalised."""
    logits = torch.log(torch.tensor([[0.15, 0.5, 0.05, 0.3]])).expand(6000, -1)
    rng = np.random.default_rng(0)
    drawn = generation.choose(logits, [rng] * 6000).numpy()
    shares = np.bincount(drawn, minlength=4) / 6000
    assert shares[2] == 0
    assert np.abs(shares - np.array([0.15, 0.5, 0, 0.3]) / 0.95).max() < 0.025
    assert generation.choose(logits[:2], [rng] * 2, temperature=0).tolist() == [1, 1]
    assert generation.choose(logits[:2], [rng] * 2, top_p=0.1).tolist() == [1, 1]


def test_sample_equals_transformers_generate(tiny):
    """Greedy, against model.generate on each prompt alone: batch and cache change nothing."""
    model, dialogue_tokenizer = tiny
    prompts = prompts_for(dialogue_tokenizer)
    with torch.inference_mode():
        cache = PromptCache(model, prompts)
        ours = generation.sample(cache, cache.end, [None] * len(prompts), [10**9], 8, temperature=0)
        for prompt, mine in zip(prompts, ours, strict=True):
            theirs = model.generate(torch.tensor(prompt)[None].long(), max_new_tokens=8,
                                    attention_mask=torch.ones(1, len(prompt)), do_sample=False,
                                    eos_token_id=None, pad_token_id=0)
            assert mine == theirs[0, len(prompt):].tolist()


def test_beginnings_are_read_once():
    prompts = [[1, 2], [1, 2, 3, 4], [1, 5], [1, 2, 3], [1, 2, 3, 4], [6]]
    to_read, place = generation.shared_prefixes(prompts)
    read_for = [prompts[to_read[i]] for i in place]
    assert len(to_read) == 3
    assert read_for == [[1, 2, 3, 4]] * 2 + [[1, 5]] + [[1, 2, 3, 4]] * 2 + [[6]]


def score_tracks(cache, dialogue_tokenizer, trie, prior=None, beam=50):
    """score_nodes and best_tracks of the likelihood ranker as one array, float64: (B, N)."""
    scores = np.full((len(cache.mask), len(trie.rows)), np.nan)
    searched = rankers.score_nodes(cache, dialogue_tokenizer, trie, prior, beam)
    for row, levels in zip(scores, searched, strict=True):
        rows, values = rankers.best_tracks(trie, levels, len(trie.rows))
        assert len(set(rows)) == len(rows) == len(trie.rows)
        row[rows] = values
    return scores


def test_turns_read_together_are_as_if_read_alone(tiny):
    """All turns of two dialogues in one cache, against each turn alone.

    Hidden states, sampled codes and rankings are equal.
    """
    model, dialogue_tokenizer = tiny
    trie = build_trie(make_codes(30))
    prompts = [infer.prompt_of(dialogue_tokenizer, d["turns"][:t], CODES_OF)
               for d in make_dialogues(2, 30) for t in range(1, len(d["turns"]) + 1)][::-1]
    n = len(prompts)
    with torch.inference_mode():
        together = PromptCache(model, prompts)
        assert len(generation.shared_prefixes(prompts)[0]) == 2 and n > 6
        alone = [PromptCache(model, [prompt]) for prompt in prompts]
        assert torch.cat([cache.end for cache in alone]).sub(together.end).abs().max() < 1e-4
        sampled = infer.sample_codes(together, dialogue_tokenizer, generators(n), HELD)
        assert sampled == [infer.sample_codes(cache, dialogue_tokenizer, [rng], HELD)[0]
                           for cache, rng in zip(alone, generators(n), strict=True)]
        ranked = score_tracks(together, dialogue_tokenizer, trie, beam=10)
        each = [score_tracks(cache, dialogue_tokenizer, trie, beam=10) for cache in alone]
        assert np.abs(ranked - np.concatenate(each)).max() < 2e-3


def test_repetition_penalty_equals_transformers(tiny):
    model, dialogue_tokenizer = tiny
    prompt = prompts_for(dialogue_tokenizer)[0]
    penalty = RepetitionPenaltyLogitsProcessor(100.0)
    ids = []
    with torch.inference_mode():
        cache = PromptCache(model, [prompt])
        ours = generation.sample(cache, cache.end, [None], [10**9], 10, temperature=0,
                                 repetition_penalty=100.0)[0]
        for _ in range(10):
            logits = model(torch.tensor([[*prompt, *ids]]).long()).logits[:, -1]
            if ids:
                logits = penalty(torch.tensor([ids]).long(), logits)
            ids.append(int(logits.argmax()))
    assert ours == ids and len(set(ids)) > 1


def test_grammar_gives_well_formed_blocks_only(tiny):
    model, dialogue_tokenizer = tiny
    prompts = prompts_for(dialogue_tokenizer) * 10
    rngs = generators(len(prompts))
    with torch.inference_mode():
        cache = PromptCache(model, prompts)
        held = infer.sample_codes(cache, dialogue_tokenizer, rngs, HELD)
        free = infer.sample_codes(cache, dialogue_tokenizer, rngs)
    assert all(codes is not None for codes in held)
    assert {sum(code >= 0 for code in codes) for codes in held} > {1}  # blocks of several lengths
    # random weights rarely keep the grammar
    assert sum(codes is None for codes in free) > len(free) / 2


def test_text_is_streamed_whole_characters_at_a_time(tiny):
    """The pieces add up to the text; half of a character (of several tokens) is not passed on."""
    tokenizer = tiny[1].tokenizer
    ids = tokens.encode_text(tokenizer, "caf\u00e9 \U0001f3b5 ok")
    pieces = []
    on_token = generation.stream_text(tokenizer, pieces.append)
    for i in range(len(ids)):
        on_token(ids[:i + 1])
    assert "".join(pieces) == "caf\u00e9 \U0001f3b5 ok" and len(pieces) > 3
    assert not any("\ufffd" in piece for piece in pieces)


# ---------------------------------------------------------------- the trie

def test_trie_by_hand():
    """The drawing at the top of steps/infer/trie.py."""
    trie = build_trie(np.array([[7, 4], [2, 9], [7, 4], [2, 3], [7, -1]], np.int16))
    assert trie.rows.tolist() == [3, 1, 4, 0, 2]
    assert trie.n_same_codes.tolist() == [1, 1, 1, 2, 2]
    assert [level.tolist() for level in trie.codes] == [[2, 7], [3, 9, -1, 4]]
    assert [level.tolist() for level in trie.children] == [[0, 2], [0, 2, 4]]
    assert [level.tolist() for level in trie.tracks] == [[0, 2, 5], [0, 1, 2, 3, 5]]


def test_trie_has_every_track_once():
    codes = make_codes(200, k=3, seed=5)
    trie = build_trie(codes)
    assert sorted(trie.rows) == list(range(200))
    same_codes = [(codes == codes[row]).all(1).sum() for row in trie.rows]
    assert trie.n_same_codes.tolist() == same_codes
    nodes = np.zeros(1, int)
    for level in range(5):
        parents = nodes
        nodes, place = expand_ranges(trie.children[level], parents)
        # the children of all nodes are all nodes, in order
        assert nodes.tolist() == list(range(len(trie.codes[level])))
        tracks, node = expand_ranges(trie.tracks[level], nodes)
        assert tracks.tolist() == list(range(200))
        assert (codes[trie.rows, level] == trie.codes[level][node]).all()
        assert len(np.unique(codes[:, :level + 1], axis=0)) == len(nodes)
        if level:  # a track's node lies below its node of the level before
            above = expand_ranges(trie.tracks[level - 1], parents)[1]
            assert (place[node] == above).all()


def test_expand_ranges_by_hand():
    begins = np.array([0, 2, 2, 5, 6])
    contents, place = expand_ranges(begins, np.array([2, 1, 0]))
    assert contents.tolist() == [2, 3, 4, 0, 1] and place.tolist() == [0, 0, 0, 2, 2]
    assert [len(x) for x in expand_ranges(begins, np.array([], int))] == [0, 0]


# ---------------------------------------------------------------- the likelihood ranker

def plain_log_probs(model, dialogue_tokenizer, prompt, codes):
    """log P of each code of one track after a prompt: (5,).

    Token by token, without cache, trie or batch.
    """
    v = dialogue_tokenizer.vocabulary
    log_probs = np.zeros(5)
    ids = [*prompt, v.start]
    for m in range(5):
        with torch.inference_mode():
            logits = model(torch.tensor([ids]).long(), use_cache=False).logits[0, -1]
        logits = logits[v.first + m * v.k:v.first + (m + 1) * v.k]
        logp = torch.log_softmax(logits.double(), 0)
        log_probs[m] = logp[codes[m]] if codes[m] >= 0 else (logp.exp() * logp).sum()
        if codes[m] >= 0:
            ids.append(v.first + m * v.k + int(codes[m]))
    return log_probs


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
    prompts = prompts_for(dialogue_tokenizer, 2)
    nothing, _ = tokens.encode_dialogue(dialogue_tokenizer, [{"query": "Play some music."}], {},
                                        prompt=True)
    with torch.inference_mode():
        prior = rankers.unconditional_log_probs(model, dialogue_tokenizer, codes,
                                                          batch_size=16)
        cache = PromptCache(model, prompts)
        length = len(cache)
        scores = score_tracks(cache, dialogue_tokenizer, build_trie(codes), calibration * prior,
                              1000)
        assert len(cache) == length and cache.past.get_seq_length() == length
    expected_prior = np.array([plain_log_probs(model, dialogue_tokenizer, nothing, c)
                               for c in codes])
    assert np.abs(prior - expected_prior).max() < 1e-3
    shared = np.log([(codes == c).all(1).sum() for c in codes])
    for row in (0, 3):
        plain = np.array([plain_log_probs(model, dialogue_tokenizer, prompts[row], c)
                          for c in codes])
        expected = (plain - calibration * expected_prior)[:, used].sum(1) - shared
        assert np.abs(scores[row] - expected).max() < 2e-3


def test_known_and_cold_tracks_share_the_probability(tiny):
    """With plain numpy from the ranker's own scores: a group sums to its share, in its order."""
    model, dialogue_tokenizer = tiny
    codes = make_codes(40, seed=3, missing=0.2)
    cold = codes[:, 0] < 0
    prompts = prompts_for(dialogue_tokenizer, 1)
    with torch.inference_mode():
        prior = rankers.unconditional_log_probs(model, dialogue_tokenizer, codes)
        cache = PromptCache(model, prompts)
        plain = score_tracks(cache, dialogue_tokenizer, build_trie(codes), None, 1000)
        for share in (None, 0.3):
            groups = rankers.group_tracks(model, dialogue_tokenizer, codes, share)
            ranked = rankers.rank_tracks(cache, dialogue_tokenizer, groups, 40, 1000)
            assert all(rows.tolist() == list(range(40)) for rows, _ in ranked)
            scores = np.array([values for _, values in ranked])
            p = np.exp(scores)
            expected = cold.mean() if share is None else share
            assert np.allclose(p[:, cold].sum(1), expected, atol=1e-3)
            assert np.allclose(p[:, ~cold].sum(1), 1 - expected, atol=1e-3)
            raised = plain - prior.sum(1)
            for group, order in ((~cold, plain), (cold, raised)):
                assert np.allclose(np.diff(scores[:, group]), np.diff(order[:, group]), atol=2e-3)
        assert len(rankers.group_tracks(model, dialogue_tokenizer, codes[~cold])) == 1


def test_narrow_beam_keeps_exact_scores_in_front(tiny):
    """Tracks that the beam reaches score as with the full trie; the others come after them."""
    model, dialogue_tokenizer = tiny
    trie = build_trie(make_codes(200, seed=4, missing=0.1))
    prompts = prompts_for(dialogue_tokenizer, 1)
    with torch.inference_mode():
        full, narrow = (score_tracks(PromptCache(model, prompts), dialogue_tokenizer, trie,
                                     beam=beam) for beam in (1000, 6))
    reached = narrow > -500
    assert 5 < reached[0].sum() < 200
    assert np.abs(narrow[reached] - full[reached]).max() < 2e-3
    assert narrow[0][reached[0]].min() > narrow[0][~reached[0]].max()


def test_a_missing_code_is_worth_an_average_one(tiny):
    """A cold track is between the best and the worst of those with a playlist code."""
    model, dialogue_tokenizer = tiny
    codes = np.array([[p, 1, 2, 3, 4] for p in [-1, *range(K)]], np.int16)
    prompts = prompts_for(dialogue_tokenizer, 1)
    with torch.inference_mode():
        scores = score_tracks(PromptCache(model, prompts), dialogue_tokenizer, build_trie(codes),
                              beam=100)
    assert (scores[:, 0] < scores[:, 1:].max(1)).all()
    assert (scores[:, 0] > scores[:, 1:].min(1)).all()


# ---------------------------------------------------------------- the expected overlap

def test_marginals_of_the_codes(tiny):
    """Against all K worked out.

    Playlist: the softmax itself. Semantic: the sum over the playlist codes of P(playlist) x
    P(semantic | playlist).
    """
    model, dialogue_tokenizer = tiny
    v = dialogue_tokenizer.vocabulary
    prompts = prompts_for(dialogue_tokenizer, 1)
    samples = 300

    def next_p(ids, m):
        logits = model(torch.tensor([ids]).long(), use_cache=False).logits[0, -1]
        logits = logits[v.first + m * v.k:v.first + (m + 1) * v.k]
        return torch.softmax(logits.double(), 0).numpy()

    with torch.inference_mode():
        cache = PromptCache(model, [prompt for prompt in prompts for _ in range(samples)])
        marginals = rankers.code_marginals(
            cache, dialogue_tokenizer, generators(len(prompts) * samples), samples)
        assert marginals.shape == (2, 5, v.k)
        assert np.abs(marginals.sum(2) - 1).max() < 1e-4
        for prompt, each in zip(prompts, marginals, strict=True):
            playlist = next_p([*prompt, v.start], 0)
            semantic = [next_p([*prompt, v.start, v.first + c], 1) for c in range(v.k)]
            assert np.abs(each[0] - playlist).max() < 1e-5
            assert np.abs(each[1] - playlist @ semantic).max() < 0.02
            # not what one playlist code alone would give
            assert np.abs(each[1] - semantic[playlist.argmin()]).max() > 0.02


def test_expected_overlap_by_hand():
    """Two sampled sequences and one that is not well-formed, each a third of the votes."""
    codes = np.array([[0, 1, -1, 2, 0], [1, 1, 0, -1, 0], [2, 2, 2, 2, 2]], np.int16)
    shares = rankers.code_shares([[0, 1, -1, 2, 1], [1, 1, 1, -1, 0], None], 3)
    assert np.allclose(shares[:3], [[1 / 3, 1 / 3, 0], [0, 2 / 3, 0], [0, 1 / 3, 0]])
    expected = [(25 + 2 * 16 + 4 + 1) / 3, (25 + 2 * 16 + 1) / 3, 4 / 3]
    assert np.allclose(rankers.expected_overlap(codes, shares), expected)
    one = rankers.code_shares([[0, 1, -1, 2, 1]], 3)
    assert np.allclose(rankers.expected_overlap(codes, one),
                       retrieval.overlap(codes, [0, 1, -1, 2, 1]))


# ---------------------------------------------------------------- the script

@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    from conftest import small
    folder = small.__wrapped__(tmp_path_factory.mktemp("infer"))
    run("04_train.py", "--data-dir", str(folder), "--context", "256", "--epochs", "12",
        "--batch-size", "2", "--indexing-repeats", "0", "--device", "cpu")
    infer_run(folder, "predict")
    return folder


@pytest.fixture
def copy(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "copy")
    return tmp_path / "copy"


def run(*command, ok=True, **kwargs):
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True,
                          timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"}, **kwargs)
    assert not ok or done.returncode == 0, done.stderr
    return done


def infer_run(folder, command, *flags, **kwargs):
    return run("05_infer.py", command, "--data-dir", str(folder), "--device", "cpu", *flags,
               **kwargs)


def predictions(folder, name="talkplay"):
    with open(folder / "predictions" / f"{name}.jsonl") as f:
        return {(row["dialogue_id"], row["turn"]): row for row in map(json.loads, f)}


def all_tracks(row):
    return sorted(row["track_ids"]) == sorted(f"t{i}" for i in range(30))


def test_predict_covers_every_turn(trained):
    rows = predictions(trained)
    wanted = [(d["dialogue_id"], t) for d in make_dialogues(4, 30, "test") for t in range(1, 5)]
    assert list(rows) == wanted == list(predictions(trained, "talkplay-overlap"))
    for row in rows.values():
        assert all_tracks(row) and isinstance(row["response"], str)
        assert row["well_formed"] == (row["codes"] is not None)
    assert not list((trained / "predictions").glob("*.part"))
    assert "already done" in infer_run(trained, "predict").stdout


def test_nothing_after_the_query_changes_a_prediction(trained, copy):
    """Music, answer, targets and later turns are altered from turn 3 on: turns 1 to 3 stay.

    All rankers, in batches of three turns: the batches do not matter either.
    """
    flags = "--no-resume", "--batch-size", "3", "--samples", "6", "--rankers", *infer.SYSTEMS
    infer_run(copy, "predict", *flags)
    unaltered = {name: predictions(copy, name) for name in infer.SYSTEMS.values()}
    for name in ("talkplay", "talkplay-overlap"):
        assert unaltered[name] == predictions(trained, name)

    with open(copy / "dialogues_test.jsonl") as f:
        dialogues = [json.loads(line) for line in f]
    for d in dialogues:
        d["turns"][2] |= {"music": "t29", "targets": ["t29"], "response": "Quite another answer.",
                          "kind": "lyrics", "rejected": True}
        d["turns"][3] |= {"query": "A wholly different question?", "music": "t28",
                          "targets": ["t28"]}
    with open(copy / "dialogues_test.jsonl", "w") as f:
        f.writelines(json.dumps(d) + "\n" for d in dialogues)
    infer_run(copy, "predict", *flags)
    for name, before in unaltered.items():
        after = predictions(copy, name)
        assert all(before[key] == after[key] for key in before if key[1] <= 3), name
        assert any(before[key]["track_ids"] != after[key]["track_ids"]
                   for key in before if key[1] == 4), name


def test_votes_and_expected_are_of_the_turns_own_prompt(trained):
    """Four turns in one batch: each ranking goes by the codes after its own prompt, alone."""
    talkplay = infer.load(trained, "cpu")
    dialogue_tokenizer = talkplay.dialogue_tokenizer
    samples = 8
    settings = infer.Settings(samples=samples, max_new_tokens=0)
    batch = collect_turns(make_dialogues(4, 30, "test"), talkplay.row_of)[::5]
    predicted = infer.predict_turns(talkplay, batch, ["votes", "expected"], 0, settings)
    rankings = {name: [[talkplay.row_of[t] for t in lines[i]["track_ids"]] for lines in predicted]
                for i, name in enumerate(["votes", "expected"])}

    scores = {"votes": [], "expected": []}  # of each turn, (30,)
    with torch.inference_mode():
        for turn in batch:
            prompt = infer.prompt_of(dialogue_tokenizer, [*turn.past, {"query": turn.query}],
                                     talkplay.codes_of)
            cache = PromptCache(talkplay.model, [prompt] * samples)
            rng = metrics.turn_rng(0, *turn.key, metrics.DRAW_MANY)
            drawn = infer.sample_codes(cache, dialogue_tokenizer, rng.spawn(samples), settings)
            shares = rankers.code_shares(drawn, K)
            rng = metrics.turn_rng(0, *turn.key, metrics.DRAW_MANY)
            marginals, = rankers.code_marginals(cache, dialogue_tokenizer, rng.spawn(samples),
                                                samples)
            for name, p in (("votes", shares), ("expected", marginals)):
                scores[name].append(rankers.expected_overlap(talkplay.codes, p))

    for name, rows_of in rankings.items():
        fits = [[bool((np.diff(of_turn[rows]) < 1e-4).all()) for of_turn in scores[name]]
                for rows in rows_of]  # does the ranking of a turn follow the scores of a turn
        assert fits == np.eye(len(batch), dtype=bool).tolist(), name


def test_cut_prediction_goes_on(copy):
    """Half of the lines are there, the last one cut: the resumed file is the same."""
    names = "talkplay", "talkplay-overlap"
    both = [predictions(copy, name) for name in names]
    lines = [json.dumps({"rows": [rows[key] for rows in both]}) + "\n" for key in both[0]]
    journal = copy / "predictions" / "talkplay.jsonl.part"
    journal.write_text("".join(lines[:7]) + lines[7][:100])
    record = copy / "runs" / "05_infer.test.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"state": "running"}))
    for name in names:
        (copy / "predictions" / f"{name}.jsonl").unlink()
    infer_run(copy, "predict")
    assert [predictions(copy, name) for name in names] == both


def test_other_rankers(trained, copy):
    """One file each, all different, without responses."""
    names = "expected", "votes", "greedy"
    infer_run(copy, "predict", "--no-resume", "--rankers", *names, "--max-new-tokens", "0")
    files = [predictions(copy, f"talkplay-{name}") for name in names]
    for rows in files:
        assert list(rows) == list(predictions(trained)) and all(map(all_tracks, rows.values()))
        assert all(row["response"] is None for row in rows.values())
    assert len({json.dumps([row["track_ids"][:5] for row in rows.values()]) for rows in files}) == 3
    assert "--no-resume" in infer_run(copy, "predict", ok=False).stderr


def test_an_annotation_is_an_input(copy):
    """The model's own text of a track does not change, but the record says what was read."""
    (copy / "annotations").mkdir()
    (copy / "annotations" / "mine.jsonl").write_text('{"track_id": "t0", "title": "Another"}\n')
    done = infer_run(copy, "predict", ok=False)
    assert "annotations/mine.jsonl" in done.stderr and "--no-resume" in done.stderr


def test_reply_in_a_notebook(trained):
    """Three lines; the same question gets the same answer; a played track is not played again."""
    talkplay = infer.load(str(trained), "cpu")
    answer = infer.reply(talkplay, [{"query": "Something sad"}])
    assert answer.track["title"].startswith("Song") and answer.response
    assert answer.track == talkplay.tracks[answer.row]

    pieces, tracks = [], []
    again = infer.reply(talkplay, [{"query": "Something sad"}], on_text=pieces.append,
                        on_track=tracks.append)
    assert again == answer and "".join(pieces).strip() == answer.response
    assert tracks == [answer._replace(response="")]

    turns = [{"query": "Something sad", "music": answer.track["track_id"],
              "response": answer.response}, {"query": "Something sad"}]
    brief = infer.Settings(max_new_tokens=2)
    for ranker in infer.SYSTEMS:
        assert infer.reply(talkplay, turns, ranker, brief).row != answer.row


def test_chat(trained):
    for ranker in ("likelihood", "overlap"):
        said = "Something sad\n<|eot_id|><|audio-3|> and <start_of_music>\n\n"
        done = infer_run(trained, "chat", "--ranker", ranker, "--max-new-tokens", "8", input=said)
        assert done.stdout.count("play > Song") == 2 and done.stdout.count("talk >") == 2
        played = [line for line in done.stdout.split("\n") if "play >" in line]
        assert played[0] != played[1]  # a played track is not recommended again


@pytest.mark.parametrize("break_it, message", [
    (lambda d: shutil.rmtree(d / "model"), "holds no model; make it with: python 04_train.py"),
    (lambda d: np.save(d / "codes.npy", make_codes(30, k=16)), "trained with K = 8 .* a code 15"),
    (lambda d: (d / "model" / "model.safetensors").write_bytes(b"half"), "cannot be loaded"),
    (lambda d: np.save(d / "codes.npy", make_codes(30, seed=9)),
     "codes.npy has changed since 04_train read it"),
])
def test_bad_model_is_one_line(copy, break_it, message, monkeypatch):
    before = (copy / "predictions" / "talkplay.jsonl").read_bytes()
    break_it(copy)
    monkeypatch.setattr(sys, "argv", ["05_infer.py", "predict", "--data-dir", str(copy),
                                      "--device", "cpu", "--no-resume"])
    with pytest.raises(SystemExit, match=message):
        infer.main()
    assert (copy / "predictions" / "talkplay.jsonl").read_bytes() == before
    record = json.loads((copy / "runs" / "05_infer.test.json").read_text())
    assert record["state"] == "finished"  # a run that could not begin takes nothing off the record
