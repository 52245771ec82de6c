"""baselines/sasrec.py and benchmarks/sasrec_sequences.py: model, training, rules, metrics."""

import csv
import importlib
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT

from baselines import popularity, sasrec
from benchmarks import sasrec_sequences as benchmark
from common import data, turns


def random_model(n_items=9, dim=6, length=8, seed=0):
    """A model whose every weight is far from its start, so that a part that is left out shows."""
    model = sasrec.make_model(n_items, seed, dim=dim, length=length).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.5)
        model.item.weight[-1] = 0
    return model


# ---------------------------------------------------------------- the model

def by_hand(model, history):
    """What is expected after `history`, in numpy, per position (the paper's equations 1 to 6)."""
    w = {name: weight.detach().double().numpy() for name, weight in model.named_parameters()}

    def norm(x, name):
        return (x - x.mean()) / np.sqrt(x.var() + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]

    def dense(x, name):
        return w[f"{name}.weight"] @ x + w[f"{name}.bias"]

    d, steps = w["item.weight"].shape[1], len(history)
    x = [w["item.weight"][item] * np.sqrt(d) + w["position.weight"][model.length - steps + i]
         for i, item in enumerate(history)]
    for b in (f"blocks.{i}" for i in range(len(model.blocks))):
        h = [norm(row, f"{b}.norm_1") for row in x]
        attended = []
        for i in range(steps):
            weights = np.exp([dense(h[i], f"{b}.query") @ dense(h[j], f"{b}.key") / np.sqrt(d)
                              for j in range(i + 1)])
            weights /= weights.sum()
            attended.append(sum(p * dense(h[j], f"{b}.value") for j, p in enumerate(weights)))
        x = np.array(x) + attended
        inner = [np.maximum(dense(norm(row, f"{b}.norm_2"), f"{b}.dense_1"), 0) for row in x]
        x = [row + dense(each, f"{b}.dense_2") for row, each in zip(x, inner, strict=True)]
    return np.array([norm(row, "norm") for row in x])


def test_model_by_hand():
    model, history = random_model(), [3, 0, 8, 3, 5]
    expected = by_hand(model, history)
    with torch.no_grad():
        np.testing.assert_allclose(model(torch.tensor([history]))[0], expected, atol=2e-5)
    scores = sasrec.score_histories(model, [history])
    items = model.item.weight[:-1].detach().double().numpy()
    np.testing.assert_allclose(scores[0], expected[-1] @ items.T, atol=1e-4)
    assert scores.shape == (1, 9) and scores.dtype == np.float32


def test_attention_agrees_with_torch():
    """A block's attention is torch's, with one head and an output layer that does nothing."""
    block = random_model().blocks[0]
    x = torch.randn(2, 5, 6)
    with torch.no_grad():
        h = block.norm_1(x).transpose(0, 1)
        linear = (block.query, block.key, block.value)
        expected, _ = torch.nn.functional.multi_head_attention_forward(
            h, h, h, 6, 1, torch.cat([layer.weight for layer in linear]),
            torch.cat([layer.bias for layer in linear]), None, None, False, 0.0, torch.eye(6),
            torch.zeros(6), training=False, attn_mask=torch.ones(5, 5, dtype=torch.bool).triu(1))
        middle = x + expected.transpose(0, 1)
        expected = middle + block.dense_2(block.dense_1(block.norm_2(middle)).relu())
        visible = torch.ones(2, 5, 5, dtype=torch.bool).tril()
        torch.testing.assert_close(block(x, visible), expected, atol=1e-5, rtol=1e-5)


def test_later_items_do_not_change_earlier_outputs():
    model, items = random_model(), torch.tensor([[1, 2, 3, 4, 5]])
    other = items.clone()
    other[0, 3:] = torch.tensor([8, 0])
    with torch.no_grad():
        before, after = model(items), model(other)
    assert torch.equal(before[:, :3], after[:, :3])
    assert all((before[0, i] - after[0, i]).abs().max() > 0.01 for i in (3, 4))


def test_padding_has_no_influence():
    model, history = random_model(), [4, 1, 7]
    with torch.no_grad():
        alone = model(torch.tensor([history]))[0]
        padded = model(torch.tensor([[9] * 5 + history]))[0]
        torch.testing.assert_close(alone, padded[5:], atol=1e-5, rtol=1e-5)
        model.item.weight[9] = 5.0  # whatever padding's row may hold
        again = model(torch.tensor([[9] * 5 + history]))[0]
        torch.testing.assert_close(padded[5:], again[5:], atol=0, rtol=0)
    scores = sasrec.score_histories(model, [history, [1, 2, 3, 4, 5, 6, 7, 8], []])
    np.testing.assert_allclose(scores[:1], sasrec.score_histories(model, [history]), atol=1e-4)
    assert np.isfinite(scores).all()


def test_only_the_last_items_of_a_long_history_count():
    model, history = random_model(), [4, 1, 7, 2, 2, 3, 8, 5]
    longer = sasrec.score_histories(model, [[6, 0, 6] + history])
    assert np.array_equal(longer, sasrec.score_histories(model, [history]))


# ---------------------------------------------------------------- training

def test_losses_by_hand():
    model = random_model(n_items=4, dim=2)
    hidden, targets = torch.tensor([[1.0, 2.0], [0.5, -1.0]]), torch.tensor([1, 3])
    with torch.no_grad():
        model.item.weight[:4] = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-1.0, 0.5]])
        # scores: 1, 2, 3, 0 and .5, -1, -.5, -1
        ce = [-np.log(np.exp(2) / (np.exp(1) + np.exp(2) + np.exp(3) + 1)),
              -np.log(np.exp(-1) / (np.exp(.5) + 2 * np.exp(-1) + np.exp(-.5)))]
        loss = sasrec.ce_loss(model, hidden, targets).item()
        assert loss == pytest.approx(np.mean(ce), abs=1e-6)
        bce = [-np.log(1 / (1 + np.exp(-2))) - np.log(1 - 1 / (1 + np.exp(-3))),
               -np.log(1 / (1 + np.exp(1))) - np.log(1 - 1 / (1 + np.exp(-.5)))]
        loss = sasrec.bce_loss(model, hidden, targets, torch.tensor([2, 0])).item()
        assert loss == pytest.approx(np.mean(bce), abs=1e-6)


def test_negatives_are_never_in_the_sequence():
    sequences = [[0, 1, 2], [3, 3, 9], list(range(9))]  # the last leaves only item 9
    taken = np.unique([10 * user + item for user in range(3) for item in sequences[user]])
    users = np.repeat([0, 1, 2], 500)
    negatives = sasrec.draw_negatives(users, taken, 10, np.random.default_rng(0))
    for user, sequence in enumerate(sequences):
        assert set(negatives[users == user]) == set(range(10)) - set(sequence)


def test_training_takes_negatives_from_the_users_own_sequence(monkeypatch):
    pairs, bce_loss = [], sasrec.bce_loss

    def record(model, hidden, targets, negatives):
        pairs.extend(zip(targets.tolist(), negatives.tolist(), strict=True))
        return bce_loss(model, hidden, targets, negatives)

    monkeypatch.setattr(sasrec, "bce_loss", record)
    sequences = [[0, 2, 4, 6, 8, 10, 1], [1, 3, 5, 7], [9, 11]] * 20
    list(sasrec.train(sasrec.make_model(12, 0, length=3), sequences, "bce", 2, 0, batch_size=8))
    # With length 3, only the last three steps of the first sequence are learnt.
    sequence_of = {8: 0, 10: 0, 1: 0, 3: 1, 5: 1, 7: 1, 11: 2}  # of each target
    assert {target for target, _ in pairs} == set(sequence_of) and len(pairs) == 2 * 20 * 7
    assert all(negative not in sequences[sequence_of[target]] for target, negative in pairs)
    with pytest.raises(SystemExit, match="all 3 items.*use ce"):
        list(sasrec.train(sasrec.make_model(3, 0), [[0, 1, 2]], "bce", 1, 0))
    with pytest.raises(SystemExit, match="no training sequence has two items"):
        list(sasrec.train(sasrec.make_model(3, 0), [[0], [2]], "ce", 1, 0))


def test_batches_have_every_row_once():
    lengths = np.random.default_rng(0).integers(2, 51, 1000)
    batches = sasrec.draw_batches(lengths, 32, np.random.default_rng(1))
    assert sorted(np.concatenate(batches)) == list(range(1000))
    assert max(map(len, batches)) == 32 and len(batches) == 32
    assert np.mean([lengths[batch].max() for batch in batches]) < 35  # unsorted: about 50
    again = sasrec.draw_batches(lengths, 32, np.random.default_rng(2))
    assert not np.array_equal(np.concatenate(batches), np.concatenate(again))


def test_long_sequences_are_cut_and_short_ones_padded():
    assert sasrec.cut([[1, 2, 3, 4, 5, 6, 7], [1], [], [1, 2, 3, 4]], 3) == [
        [1, 2, 3, 4], [4, 5, 6, 7], [1, 2, 3, 4]]
    assert sasrec.pad([[1, 2, 3, 4], [5], []], 3, 9).tolist() == [[2, 3, 4], [9, 9, 5], [9, 9, 9]]


@pytest.mark.parametrize("loss", sasrec.LOSSES)
def test_learns_that_one_item_follows_another(loss):
    rng, n_items = np.random.default_rng(0), 15
    sequences = [[(start + i) % n_items for i in range(rng.integers(3, 7))]
                 for start in rng.integers(n_items, size=200)]
    model = sasrec.make_model(n_items, 0, length=10)
    losses = [mean for _, mean in sasrec.train(model, sequences, loss, 40, 0, batch_size=16)]
    last = np.arange(n_items)
    scores = sasrec.score_histories(model, [[(i - 1) % n_items, i] for i in last])
    scores[last, last] = -np.inf  # an item of the sequence is no negative of bce: it may score high
    assert losses[-1] < losses[0] / 2
    assert np.mean(scores.argmax(1) == (last + 1) % n_items) > 0.9  # by chance: 0.07


def test_seed_decides_the_model():
    def scores(seed):
        model = sasrec.make_model(12, seed)
        list(sasrec.train(model, [[1, 2, 3], [4, 5, 6, 7]] * 30, "bce", 2, seed))
        return sasrec.score_histories(model, [[1, 2], [9]])
    assert np.array_equal(scores(0), scores(0)) and not np.allclose(scores(0), scores(1))
    models = [sasrec.make_model(12, seed) for seed in (0, 1)]
    assert not torch.equal(models[0].item.weight, models[1].item.weight)


def test_fit_keeps_the_best_epoch_and_stops():
    model, qualities, kept = sasrec.make_model(6, 0), iter([.1, .5, .3, .2, .9]), []

    def quality():
        kept.append(model.item.weight.detach().clone())
        return next(qualities)

    best = sasrec.fit(model, [[1, 2, 3], [3, 4]], "ce", 50, 0, quality, every=2, patience=2)
    assert best == (.5, 4) and len(kept) == 4
    assert torch.equal(model.item.weight, kept[1]) and not torch.equal(kept[1], kept[3])


# ---------------------------------------------------------------- the baseline

def run(monkeypatch, data_dir, *arguments):
    monkeypatch.setattr(sys, "argv", ["sasrec.py", "--data-dir", str(data_dir), "--epochs", "5",
                                      "--device", "cpu", *arguments])
    sasrec.main()


def read(data_dir, folder="predictions"):
    lines = (data_dir / folder / "sasrec.jsonl").read_text().splitlines()
    return {(row["dialogue_id"], row["turn"]): row["track_ids"] for row in map(json.loads, lines)}


def alter(path, turns_from=0, **fields):
    """Set fields of the turns from number `turns_from` on, from 0, in a file of dialogues."""
    dialogues = [json.loads(line) for line in path.read_text().splitlines()]
    for dialogue in dialogues:
        for turn in dialogue["turns"][turns_from:]:
            turn |= fields
    data.write_jsonl(path, dialogues)


def load(data_dir):
    row_of = {track["track_id"]: row for row, track in enumerate(data.load_tracks(data_dir))}
    return row_of, data.load_playlists(data_dir, row_of)


def test_every_turn_is_ranked_and_turn_one_by_popularity(monkeypatch, small):
    run(monkeypatch, small)
    row_of, playlists = load(small)
    counts = popularity.count_tracks(playlists, row_of)
    assert len(set(counts)) > 1
    for folder, split in (("predictions", "test"), ("predictions_valid", "valid")):
        rankings = read(small, folder)
        assert set(rankings) == {(f"{split}-{d}", t) for d in range(4) for t in (1, 2, 3, 4)}
        assert all(sorted(ranking) == sorted(row_of) for ranking in rankings.values())
        falls = {key: (np.diff([counts[row_of[track_id]] for track_id in ranking]) <= 0).all()
                 for key, ranking in rankings.items()}
        assert all(falls[key] for key in falls if key[1] == 1) and sum(falls.values()) < 8


def test_seed_decides_every_draw_and_done_runs_are_skipped(monkeypatch, small, capsys):
    run(monkeypatch, small)
    first = read(small)
    capsys.readouterr()
    run(monkeypatch, small)
    assert capsys.readouterr().out == "sasrec: already done (--no-resume does it again)\n"
    run(monkeypatch, small, "--no-resume")
    assert read(small) == first
    run(monkeypatch, small, "--no-resume", "--seed", "1")
    assert all(read(small)[key] != first[key] for key in first)
    alter(small / "dialogues_train.jsonl", query="something else")
    with pytest.raises(SystemExit, match="dialogues_train.jsonl.*--no-resume"):
        run(monkeypatch, small, "--seed", "1")
    with pytest.raises(SystemExit, match="--epochs 0: 1 or more is"):
        run(monkeypatch, small, "--epochs", "0")


@pytest.mark.parametrize("t", [0, 1, 3])
def test_what_follows_a_query_changes_nothing(monkeypatch, small, t):
    """Music, answer and targets of turn t and all later turns are replaced: turns up to t stay."""
    run(monkeypatch, small)
    before = read(small)
    alter(small / "dialogues_test.jsonl", t, music="t29", targets=["t29"], response="x",
          rejected=True, kind="x")
    run(monkeypatch, small, "--no-resume")
    after = read(small)
    assert all(before[key] == after[key] for key in before if key[1] <= t + 1)
    assert all(before[key] != after[key] for key in before if key[1] > t + 1)  # music played before


def test_words_change_nothing(monkeypatch, small):
    run(monkeypatch, small)
    before = read(small)
    alter(small / "dialogues_test.jsonl", query="something else", response=None, rejected=True,
          kind=None)
    run(monkeypatch, small, "--no-resume")
    assert read(small) == before


def test_training_sequences():
    """Train playlists in their order; all music of the dialogues, rejected too, gaps left out."""
    playlists = [{"split": "train", "track_ids": ["c", "a", "b"]},
                 {"split": "valid", "track_ids": ["a", "b"]},
                 {"split": "test", "track_ids": ["b", "c"]}]
    dialogues = [{"turns": [{"music": music, "rejected": music == "b"}
                            for music in ("b", None, "a")]}]
    row_of = {"a": 0, "b": 1, "c": 2}
    assert sasrec.collect_sequences(playlists, dialogues, row_of, 50) == {
        "playlists": [[2, 0, 1]], "dialogues": [[1, 0]], "both": [[2, 0, 1], [1, 0]]}
    one_step = sasrec.collect_sequences(playlists, dialogues, row_of, 1)
    assert one_step["playlists"] == [[2, 0], [0, 1]]
    assert popularity.count_tracks(playlists, row_of).tolist() == [1, 1, 1]
    without_playlists = sasrec.collect_sequences([], dialogues, row_of, 50)
    assert list(without_playlists) == ["dialogues"]
    with pytest.raises(SystemExit, match="neither a training playlist nor a training dialogue"):
        sasrec.collect_sequences(playlists[1:], [], row_of, 50)
    assert sasrec.mark_trained([[1, 0]], 3).tolist() == [True, True, False]


def test_tracks_without_training_come_last_and_are_no_history():
    model, trained = random_model(n_items=30), np.arange(30) < 18
    histories = ([], [25], [25, 4], [4], [4, 5])
    to_rank = [turns.Turn("d", t, [], "", played, [0]) for t, played in enumerate(histories, 1)]
    counts = np.arange(30)
    scores = list(sasrec.score_turns(model, trained, counts, to_rank, batch_size=2))
    assert scores[0] is counts and scores[1] is counts  # track 25 alone says nothing
    np.testing.assert_allclose(scores[2], scores[3], atol=1e-5)
    rankings = [turns.rank(scores[t], to_rank[t], 0).tolist() for t in (2, 3, 4)]
    assert all(set(ranking[18:]) == set(range(18, 30)) for ranking in rankings)
    assert len({tuple(ranking[18:]) for ranking in rankings}) == 3
    assert rankings[0][:18] == rankings[1][:18]


def test_form_is_chosen_on_valid_alone(monkeypatch, small):
    run(monkeypatch, small)
    with open(small / "results/sasrec_forms.csv", encoding="utf-8", newline="") as f:
        forms = list(csv.DictReader(f))
    tried = [(source, loss) for source in ("both", "dialogues", "playlists")
             for loss in ("bce", "ce")]
    assert sorted((form["source"], form["loss"]) for form in forms) == tried
    valid = [float(form["valid_mrr"]) for form in forms]
    assert valid == sorted(valid, reverse=True) and valid[0] > valid[-1]

    # The predictions are those of the first form.
    row_of, _ = load(small)
    to_rank = turns.load_turns(small, row_of)["valid"]
    rankings = read(small, "predictions_valid")
    scores = [[-rankings[turn.key].index(track_id) for track_id in row_of] for turn in to_rank]
    assert turns.mrr(scores, to_rank, 0) == pytest.approx(valid[0], abs=1e-6)

    # Other targets in the test dialogues change no choice.
    chosen = json.loads((small / "runs/sasrec.json").read_text())["chosen_on_valid"]
    alter(small / "dialogues_test.jsonl", targets=["t0"])
    run(monkeypatch, small, "--no-resume")
    again = json.loads((small / "runs/sasrec.json").read_text())["chosen_on_valid"]
    assert chosen.pop("test_mrr") != again.pop("test_mrr") and chosen == again


def test_runs_as_a_script_and_06_accepts_it(monkeypatch, small):
    subprocess.run([sys.executable, str(ROOT / "baselines/sasrec.py"), "--data-dir", str(small),
                    "--epochs", "1", "--device", "cpu"], check=True, cwd=small, capture_output=True)
    monkeypatch.setattr(sys, "argv", ["06_evaluate.py", "--data-dir", str(small)])
    importlib.import_module("06_evaluate").main()
    assert "sasrec" in (small / "results/results.md").read_text()


# ---------------------------------------------------------------- the benchmark

def test_benchmark_ranks_and_metrics_by_hand(monkeypatch):
    falling = [9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0, 0]
    level = [5, 5, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    cases = [([0, 1, 0], 3, falling),  # fourth; second without the history
             ([11], 6, falling),       # seventh
             ([3], 1, level),          # third: equal scores count against the target
             ([2, 0], 0, falling),     # the target is in its own history
             ([0], 9, falling)]        # twelfth, since two more have 0; then eleventh
    histories, targets, scores = zip(*cases, strict=True)
    of_history = {tuple(history): row for history, row in zip(histories, scores, strict=True)}
    monkeypatch.setattr(sasrec, "score_histories", lambda model, batch: np.array(
        [of_history[tuple(history)] for history in batch], np.float32))
    ranks = benchmark.rank_targets(None, histories, targets, keep_history=True, batch_size=2)
    assert ranks.tolist() == [4, 7, 3, 1, 12]
    ranks = benchmark.rank_targets(None, histories, targets, batch_size=2)
    assert ranks.tolist() == [2, 7, 3, 1, 11]
    users = benchmark.score_users(ranks)  # Recall@5, NDCG@5 = 1 / log2(1 + rank), the same @10
    np.testing.assert_allclose(users, [[1, 1 / np.log2(3)] * 2, [0, 0, 1, 1 / 3], [1, .5] * 2,
                                       [1, 1] * 2, [0] * 4], atol=1e-12)

    lines = benchmark.summarise(np.stack([users, users]), {"Someone, bce": (.5, None, .8, .4)})
    half = 1.96 * np.std([1, 0, 1, 1, 0], ddof=1) / np.sqrt(5)
    assert f"0.6000 [{.6 - half:.4f}, {.6 + half:.4f}]" in lines[1] and "0.0000" in lines[2]
    assert "0.5000 (here +20.0%)" in lines[3] and "0.8000 (here +0.0%)" in lines[3]
    assert " - " in lines[3]


def test_benchmark_reads_sequences(tmp_path):
    path = tmp_path / "toy.txt"
    path.write_text("7 10 30 20\n\n8 30 5 10 40\n")
    sequences = benchmark.read_sequences(path)
    assert sequences == [[10, 30, 20], [30, 5, 10, 40]]
    assert benchmark.number_items(sequences) == ([[1, 3, 2], [3, 0, 1, 4]], 5)


@pytest.mark.parametrize("text, message", [
    ("1 2 3 4\n2 3 x 4\n", r"toy.txt:2: 'x' is no item id"),
    ("1 2 3 4\n2 3 4\n", "toy.txt:2: user 2 has 2 items"),
    ("1 2 3 4\n1 5 6 7\n", "toy.txt:2: user 1 occurs twice"),
    ("", "toy.txt has no sequences"),
    ('{"0": [1, 2, 3]}', r"toy.txt:1: '\[1,' is no item id"),
    ("1 2 -3 4", "'-3' is no item id"),
    ("1 2 0 4", "'0' is no item id"),
    (None, "toy.txt is missing")])
def test_benchmark_bad_input_is_one_clear_line(monkeypatch, tmp_path, text, message):
    if text is not None:
        (tmp_path / "toy.txt").write_text(text)
    monkeypatch.setattr(sys, "argv", ["x", "--sequences", str(tmp_path / "toy.txt")])
    with pytest.raises(SystemExit, match=message) as stop:
        benchmark.main()
    assert "\n" not in str(stop.value) and "A line is a user id" in str(stop.value)


def test_benchmark_leaves_the_last_two_items_out(monkeypatch):
    """Valid's history ends before the last two items, which are not learnt; test's before one."""
    calls, trained = [], []

    def rank_targets(model, *call):
        calls.append(call)
        return np.array([1, 2])

    def train(model, sequences, *_):
        trained.append(sequences)
        return iter([(1, .5), (2, .4)])

    monkeypatch.setattr(benchmark, "rank_targets", rank_targets)
    monkeypatch.setattr(sasrec, "train", train)
    benchmark.run_seed([[0, 1, 2, 3], [4, 2, 0]], 5, seed=0, loss="ce", epochs=2, patience=5, dim=4,
                       dropout=0.2, device="cpu")
    assert trained == [[[0, 1], [4]]]
    assert calls[:2] == [([[0, 1], [4]], [2, 2])] * 2
    assert calls[2:] == [([[0, 1, 2], [4, 2]], [3, 0], keep) for keep in (False, True)]


def test_benchmark_learns_a_toy_file(tmp_path):
    rng = np.random.default_rng(0)
    lines = [[user, *(100 + (rng.integers(30) + np.arange(rng.integers(5, 9))) % 30)]
             for user in range(200)]
    path = tmp_path / "LastFM.txt"
    path.write_text("\n".join(" ".join(map(str, line)) for line in lines))
    done = subprocess.run([sys.executable, str(ROOT / "benchmarks/sasrec_sequences.py"),
                           "--sequences", str(path), "--seeds", "0", "1", "--epochs", "40",
                           "--patience", "40", "--device", "cpu"],
                          capture_output=True, text=True, check=True)
    out = done.stdout
    assert "LastFM: 200 users, 30 items" in out and "seed 1  epoch  40" in out
    here = next(line for line in out.splitlines() if line.startswith("here, mean of 2 seed(s)"))
    assert float(here.split("]")[1].split()[0]) > 0.95  # Recall@5; by chance 0.2
    assert "Items of the history kept" in out
    assert "published: SASRec (S3-Rec)" in out and "0.0688 (here +" in out
