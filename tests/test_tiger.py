"""baselines/tiger.py and benchmarks/tiger_sequences.py on toy catalogues; models of a few thousand weights."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, make_dialogues

from common import data, turns

tiger = importlib.import_module("baselines.tiger")
bench = importlib.import_module("benchmarks.tiger_sequences")

REAL = Path(os.environ.get("TALKPLAY_REAL", ROOT.parent / "shared" / "real"))
TINY = dict(layers=1, width=32, heads=2, head_width=16, ff=64, dropout=0.1, steps=30, batch_size=16, lr=0.01, warmup=1000)


def make_ids(n, k=4, seed=0):
    """Semantic IDs with many collisions: k x k x k codes for n items."""
    return tiger.add_collision_code(np.random.default_rng(seed).integers(0, k, (n, 3)))


def make_model(ids, seed=0, recipe=TINY):
    table, vocabulary = tiger.token_table(ids)
    return tiger.build_model(vocabulary, recipe, seed).eval(), table


def make_turn(played, number=2, target=0):
    return turns.Turn("d", number, [], "", list(played), [target])


# ---------------------------------------------------------------- Semantic IDs

def test_residual_kmeans_by_hand():
    """-1, 1, 9, 11: centres 0 and 10, which leave over -1 and 1; these are the second level's centres, and nothing is left."""
    vectors = np.array([[-1], [1], [9], [11]], np.float32)
    codes, books = tiger.residual_kmeans(vectors, levels=3, n_codes=2)
    assert sorted(books[0].ravel()) == [0, 10] and sorted(books[1].ravel()) == [-1, 1]
    assert books[2].tolist() == [[0]] and codes[:, 2].tolist() == [0] * 4  # one different row: one code
    assert np.array_equal(sum(book[codes[:, level]] for level, book in enumerate(books)), vectors)
    assert codes[0, 0] == codes[1, 0] != codes[2, 0] == codes[3, 0]
    assert codes[0, 1] == codes[2, 1] != codes[1, 1] == codes[3, 1]


def test_ids_and_tokens_by_hand():
    codes = np.array([[0, 1], [1, 2], [0, 1], [0, 1]])
    ids = tiger.add_collision_code(codes)
    assert ids.tolist() == [[0, 1, 0], [1, 2, 0], [0, 1, 1], [0, 1, 2]]
    table, vocabulary = tiger.token_table(ids)  # 3 special tokens, then 2, 3 and 3 codes
    assert table.tolist() == [[3, 6, 8], [4, 7, 8], [3, 6, 9], [3, 6, 10], [0, 0, 0]] and vocabulary == 11


def test_ids_are_unique_however_many_collide():
    for ids in (make_ids(500), tiger.add_collision_code(np.zeros((40, 3), int))):
        assert len(np.unique(ids, axis=0)) == len(ids) and len(np.unique(ids[:, :-1], axis=0)) < len(ids)


def test_rqvae_learns_and_more_levels_say_more():
    rng = np.random.default_rng(0)
    vectors = (rng.normal(size=(8, 16))[rng.integers(8, size=200)] + 0.3 * rng.normal(size=(200, 16))).astype(np.float32)
    errors = {}
    for levels in (1, 3):
        codes, lost = tiger.train_rqvae(vectors, levels, n_codes=4, epochs=80)
        assert codes.shape == (200, levels) and codes.max() < 4 and len(set(codes[:, 0])) == 4
        assert lost[-1] < lost[0] / 2
        errors[levels] = lost[-1]
    assert errors[3] < 0.8 * errors[1] and errors[3] < 0.8 * lost[20]  # 20: the first epoch with codes
    assert np.array_equal(tiger.train_rqvae(vectors, 3, 4, epochs=80)[0], codes)


def test_rqvae_passes_the_gradient_straight_through():
    model, x = tiger.RQVAE(6, 2, 4, widths=(5, 3)), torch.randn(7, 6, generator=torch.Generator().manual_seed(0))
    torch.nn.init.normal_(model.books)
    z = model.encoder(x).detach().requires_grad_()
    codes, total, _ = model.quantize(z)
    first = torch.cdist(z, model.books[0]).argmin(1)
    second = torch.cdist(z - model.books[0][first], model.books[1]).argmin(1)
    assert torch.equal(codes, torch.stack([first, second], 1))
    assert torch.allclose(total, model.books[0][first] + model.books[1][second])
    quantised = total.detach().requires_grad_()
    through, = torch.autograd.grad(model.decoder(z + (total - z).detach()).sum(), z)
    plain, = torch.autograd.grad(model.decoder(quantised).sum(), quantised)
    assert torch.allclose(through, plain)


# ---------------------------------------------------------------- examples

def test_examples_by_hand():
    examples = tiger.make_examples([[5, 6, 7], [8], [9, 4]])
    histories, targets = tiger.take(examples, [0, 1, 2])
    assert targets.tolist() == [6, 7, 4]
    assert [[row for row in history if row >= 0] for history in histories] == [[5], [5, 6], [9]]
    table = np.vstack([np.arange(20).reshape(10, 2) + 3, [[0, 0]]])
    assert tiger.encode_histories(histories, table).tolist() == [[0, 0, 13, 14, 1], [13, 14, 15, 16, 1], [0, 0, 21, 22, 1]]
    long = tiger.take(tiger.make_examples([range(30)]), [28])[0]
    assert long[0].tolist() == list(range(9, 29))  # the last HISTORY


def test_batches_shuffle_all_and_go_on_anywhere():
    stream = tiger.batches(7, 3, 0, 0)
    seen = [next(stream) for _ in range(14)]
    assert all(sorted(np.concatenate(seen)[7 * e:7 * e + 7]) == list(range(7)) for e in range(6))
    later = tiger.batches(7, 3, 0, 5)
    assert all(np.array_equal(next(later), batch) for batch in seen[5:])


# ---------------------------------------------------------------- the search

def test_trie_by_hand():
    levels, rows = tiger.build_trie(np.array([[4, 5], [3, 6], [4, 7], [3, 5]]))
    assert rows.tolist() == [3, 1, 0, 2]
    assert [level.token.tolist() for level in levels] == [[3, 4], [5, 6, 5, 7]]
    assert [level.first.tolist() for level in levels] == [[0, 2], [0, 2, 4]] and [level.most for level in levels] == [2, 2]


def test_a_wide_beam_is_exact():
    """60 items, many sharing three codes; histories of different lengths in one batch."""
    model, table = make_model(make_ids(60))
    levels, rows = tiger.build_trie(table[:-1])
    histories = np.array([[-1, -1, 3], [7, 8, 9], [-1, 59, 3]])
    ids = tiger.encode_histories(histories, table)
    exact = tiger.score_all(model, table[:-1], ids, chunk=7)
    leaves, scores = tiger.beam_search(model, levels, ids, 60)
    found = torch.from_numpy(rows)[leaves]
    assert torch.equal(found.sort(1).values, torch.arange(60).repeat(3, 1))
    torch.testing.assert_close(scores, exact.gather(1, found), atol=1e-4, rtol=0)
    assert (scores.diff(dim=1) <= 0).all() and (exact.exp().sum(1) < 1).all()
    labels = torch.from_numpy(table[[11]])  # transformers' own loss is the mean over the four codes
    loss = model(input_ids=ids[1:2], attention_mask=ids[1:2] != tiger.PAD, labels=labels).loss
    torch.testing.assert_close(exact[1, 11], -4 * loss, atol=1e-4, rtol=0)
    alone = tiger.score_all(model, table[:-1], tiger.encode_histories(histories[:1, 2:], table))
    torch.testing.assert_close(alone[0], exact[0], atol=1e-4, rtol=0)  # padding counts nothing


@pytest.mark.parametrize("width", [1, 5, 20])
def test_a_narrow_beam_never_leaves_the_catalogue(width):
    ids = [[0, 0, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 1], *[[2, b, c, 0] for b in range(4) for c in range(4)]]
    ids = np.array(ids)
    model, table = make_model(ids)
    trie = tiger.build_trie(table[:-1])
    found = [make_turn(played) for played in ([3], [0, 5], [2, 9], [1, 2, 3])] + [make_turn([], 1)]
    results = tiger.search_turns(model, table, trie, found, width)
    assert results[-1] is None
    for turn, (rows, log_p) in zip(found, results[:-1]):
        exact = tiger.score_all(model, table[:-1], tiger.encode_histories(np.array([turn.played]), table))[0].numpy()
        assert 1 <= len(rows) <= width and len(set(rows)) == len(rows) and set(rows) <= set(range(20))
        np.testing.assert_allclose(log_p, exact[rows], atol=1e-4)
    dead = tiger.beam_search(model, trie[0], tiger.encode_histories(np.array([[3]]), table), 5)[1]
    assert len(results[0][0]) == min(width, 20) or width == 5 and torch.isinf(dead).any()


def test_scores_put_the_beam_above_popularity():
    counts = np.array([5, 0, 9, 2, 5])
    first, second = tiger.score_tracks([None, (np.array([3, 1]), np.array([-2.0, -7.5]))], counts)
    assert first.tolist() == counts.tolist()
    assert second[[3, 1]].tolist() == [-2.0, -7.5] and np.argsort(-second, kind="stable").tolist() == [3, 1, 2, 0, 4]


# ---------------------------------------------------------------- training

CYCLE = [[(start + i) % 12 for i in range(6)] for start in range(12)]  # the next track is always the next number


def fit_cycle(path, check=lambda: 0.0, **recipe):
    model, table = make_model(make_ids(12), recipe=TINY | recipe)
    tiger.fit(model, table, tiger.make_examples(CYCLE), check, TINY | recipe, path / "cycle.pt", every=10)
    return model, table


def test_toy_sequences_are_learnt_by_heart(tmp_path):
    recipe = TINY | {"dropout": 0.0, "steps": 160}
    model, table = make_model(make_ids(12), recipe=recipe)
    examples = bench.last_of(CYCLE[:8])
    before = tiger.mean_loss(model, table, examples)
    path = tmp_path / "cycle.pt"
    after = tiger.fit(model, table, examples, lambda: tiger.mean_loss(model, table, examples), recipe, path, every=40)
    assert after < 0.05 < 1 < before and after == tiger.mean_loss(model, table, examples)
    found = [make_turn(sequence[:-1], target=sequence[-1]) for sequence in CYCLE[:8]]
    results = tiger.search_turns(model, table, tiger.build_trie(table[:-1]), found, 5)
    assert [rows[0] for rows, _ in results] == [sequence[-1] for sequence in CYCLE[:8]]
    assert turns.mrr(tiger.score_tracks(results, np.zeros(12)), found, 0) == 1


@pytest.mark.parametrize("stop", [1, 3])
def test_a_resumed_training_ends_in_the_same_bits(tmp_path, stop):
    whole = fit_cycle(tmp_path)[0].state_dict()
    (tmp_path / "cut").mkdir()
    asked = []

    def interrupt():
        asked.append(0)
        if len(asked) == stop:
            raise KeyboardInterrupt
        return -float(len(asked))

    with pytest.raises(KeyboardInterrupt):
        fit_cycle(tmp_path / "cut", interrupt)
    torch.rand(5)  # the state of the generator is the checkpoint's
    resumed = fit_cycle(tmp_path / "cut", lambda: -99.0)[0].state_dict()
    last = torch.load(tmp_path / "cut/cycle.pt", weights_only=True)["model"]
    first = torch.load(tmp_path / "cycle.pt", weights_only=True)["model"]
    assert all(torch.equal(first[name], last[name]) for name in first) and set(whole) == set(resumed)
    assert not list((tmp_path / "cut").glob("*.tmp"))


def test_the_best_weights_are_kept_over_a_resume(tmp_path):
    values = iter([3.0, 1.0])

    def stop():
        value = next(values, None)
        if value is None:
            raise KeyboardInterrupt
        return value

    with pytest.raises(KeyboardInterrupt):
        fit_cycle(tmp_path, stop)
    best = torch.load(tmp_path / "cycle.pt", weights_only=True)["model"]  # step 20, value 1
    model = fit_cycle(tmp_path, lambda: 2.0)[0]
    assert all(torch.equal(best[name], weights) for name, weights in model.state_dict().items())


def test_a_foreign_checkpoint_ends_with_one_line(tmp_path):
    (tmp_path / "cycle.pt").write_bytes(b"nonsense")
    with pytest.raises(SystemExit, match="cycle.pt: not a checkpoint.*--no-resume"):
        fit_cycle(tmp_path)
    torch.save({"model": {}}, tmp_path / "cycle.pt")
    with pytest.raises(SystemExit, match="cycle.pt: not a checkpoint"):
        fit_cycle(tmp_path)


# ---------------------------------------------------------------- the script

def run(monkeypatch, folder, *arguments):
    """The script in this process, with a quick stand-in for the text encoder."""
    rng = np.random.default_rng(0)
    monkeypatch.setattr(tiger, "embed_items", lambda tracks, *_: rng.normal(size=(len(tracks), 8)).astype(np.float32))
    monkeypatch.setitem(tiger.RECIPES, "demo", TINY)
    monkeypatch.setattr(sys, "argv", ["tiger.py", "--data-dir", str(folder), "--device", "cpu", "--steps", "10",
                                      "--eval-every", "5", "--beam", "12", *arguments])
    tiger.main()


def read(folder, split="test"):
    with open(folder / {"test": "predictions", "valid": "predictions_valid"}[split] / "tiger.jsonl", encoding="utf-8") as f:
        return {(row["dialogue_id"], row["turn"]): row["track_ids"] for row in map(json.loads, f)}


def test_predictions_cover_every_turn_and_the_seed_decides(monkeypatch, small):
    run(monkeypatch, small)
    first = {split: read(small, split) for split in ("valid", "test")}
    for split, rows in first.items():
        assert set(rows) == {(f"{split}-{d}", t) for d in range(4) for t in range(1, 5)}
        assert all(sorted(ranked) == sorted(f"t{i}" for i in range(30)) for ranked in rows.values())
    ids = np.load(small / "tiger/semantic_ids.npy")
    assert ids.shape == (30, 4) and len(np.unique(ids, axis=0)) == 30 and ids[:, :3].max() < 3  # 30 // 8 codes
    record = json.loads((small / "runs/tiger.json").read_text())
    assert set(record["valid_mrr"]) == {"dialogues", "playlists"}
    assert record["valid_mrr"][record["chosen_on_valid"]] == max(record["valid_mrr"].values())
    assert not (small / "tiger.part").exists()
    run(monkeypatch, small, "--no-resume")
    assert read(small) == first["test"]
    run(monkeypatch, small, "--no-resume", "--seed", "1")
    assert read(small) != first["test"]


def test_turn_1_is_popularity(monkeypatch, small):
    run(monkeypatch, small, "--sources", "playlists")
    row_of = {f"t{i}": i for i in range(30)}
    counts = tiger.count_tracks(data.load_playlists(small, row_of), row_of)
    for (_, turn), ranked in read(small).items():
        popular = [counts[row_of[track_id]] for track_id in ranked]
        assert (popular == sorted(popular, reverse=True)) if turn == 1 else popular[12:] == sorted(popular[12:], reverse=True)


@pytest.mark.parametrize("t", [0, 1, 2])
def test_what_follows_a_query_changes_nothing(monkeypatch, small, t):
    run(monkeypatch, small, "--sources", "dialogues")
    before = read(small)
    altered = make_dialogues(4, 30, "test")
    for dialogue in altered:
        for i, turn in enumerate(dialogue["turns"]):
            if i >= t:
                turn |= {"music": "t29", "targets": ["t29"], "response": "something else", "rejected": True, "kind": "x"}
            if i > t:
                turn["query"] = "neon engine"
    data.write_jsonl(small / "dialogues_test.jsonl", altered)
    run(monkeypatch, small, "--sources", "dialogues", "--no-resume")
    after = read(small)
    assert all(before[key] == after[key] for key in before if key[1] <= t + 1)
    assert any(before[key] != after[key] for key in before)  # music already played does count


def test_a_killed_run_goes_on_and_ends_the_same(monkeypatch, small):
    run(monkeypatch, small)
    whole, weights = read(small), (small / "tiger/model.safetensors").read_bytes()
    search = tiger.search_turns
    for name, broken in (("mean_loss", lambda *a: 1 / 0), ("search_turns", lambda *a: 1 / 0)):
        with monkeypatch.context() as m, pytest.raises(ZeroDivisionError):
            m.setattr(tiger, name, broken)
            run(m, small, *["--no-resume"] * (name == "mean_loss"))
    assert tiger.search_turns is search and (small / "tiger.part/dialogues.pt").is_file()
    run(monkeypatch, small)
    assert read(small) == whole and (small / "tiger/model.safetensors").read_bytes() == weights


def test_done_runs_are_skipped_and_changes_refused(monkeypatch, small, capsys):
    run(monkeypatch, small, "--ids", "rqvae", "--rqvae-epochs", "2", "--sources", "both")
    capsys.readouterr()
    run(monkeypatch, small, "--ids", "rqvae", "--rqvae-epochs", "2", "--sources", "both")
    assert capsys.readouterr().out == "tiger: already done, nothing changed\n"
    with pytest.raises(SystemExit, match="another argument: ids .*--no-resume"):
        run(monkeypatch, small, "--rqvae-epochs", "2", "--sources", "both")


def test_the_source_is_chosen_on_valid_alone(monkeypatch, small):
    run(monkeypatch, small)
    before = json.loads((small / "runs/tiger.json").read_text())
    altered = make_dialogues(4, 30, "test", seed=5)
    data.write_jsonl(small / "dialogues_test.jsonl", altered)
    run(monkeypatch, small, "--no-resume")
    after = json.loads((small / "runs/tiger.json").read_text())
    assert before["valid_mrr"] == after["valid_mrr"] and before["inputs"] != after["inputs"]


@pytest.mark.parametrize("argument", ["--levels 0", "--beam -1", "--lr 0"])
def test_bad_arguments(monkeypatch, small, argument):
    with pytest.raises(SystemExit, match=f"{argument}.* is expected"):
        run(monkeypatch, small, *argument.split())


def test_bad_files_end_with_one_line(monkeypatch, small):
    data.write_jsonl(small / "dialogues_train.jsonl", [{"dialogue_id": "a", "turns": [{"query": "x", "music": "t1"}]}])
    with pytest.raises(SystemExit, match="dialogues: no sequence has two tracks.*--sources"):
        run(monkeypatch, small)
    (small / "dialogues_train.jsonl").unlink()
    with pytest.raises(SystemExit, match="dialogues_train.jsonl is missing; make it with"):
        run(monkeypatch, small)


def test_runs_as_a_script_with_the_real_encoder_and_06_accepts_it(monkeypatch, small):
    command = [sys.executable, str(ROOT / "baselines/tiger.py"), "--data-dir", str(small), "--steps", "2", "--device", "cpu"]
    done = subprocess.run(command, cwd=small, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    evaluate = importlib.import_module("06_evaluate")
    monkeypatch.setattr(sys, "argv", ["06_evaluate.py", "--data-dir", str(small)])
    evaluate.main()
    assert "tiger" in (small / "results/results.md").read_text()


# ---------------------------------------------------------------- the benchmark

@pytest.fixture
def toy(tmp_path):
    """12 items, of which 0 and 11 share an ID, and 10 users who walk round them."""
    ids = make_ids(12)
    ids[11] = ids[0]
    lines = [" ".join(str(x) for x in [u + 1, *((u + i) % 12 + 1 for i in range(6))]) for u in range(10)]
    (tmp_path / "toy.txt").write_text("\n".join(lines) + "\n")
    names = {i: [f"<{level}_{code}>" for level, code in zip("abcd", row)] for i, row in enumerate(ids.tolist())}
    (tmp_path / "ids.json").write_text(json.dumps(names))
    return tmp_path


def run_bench(monkeypatch, folder, *arguments):
    monkeypatch.setitem(tiger.RECIPES, "demo", TINY)
    monkeypatch.setattr(sys, "argv", ["tiger_sequences.py", str(folder / "toy.txt"), str(folder / "ids.json"), "--device", "cpu",
                                      "--recipe", "demo", "--out", str(folder / "out"), *arguments])
    bench.main()


def test_items_of_one_id_are_ranked_one_by_one():
    ids = np.array([[1, 1], [0, 2], [1, 1], [0, 2], [0, 2]])
    different, items = bench.group_by_id(ids, np.array([3, 1, 4, 1, 2]))
    assert different.tolist() == [[0, 2], [1, 1]] and [list(i) for i in items] == [[4, 1, 3], [2, 0]]


def test_benchmark_overfits_and_says_so(monkeypatch, toy, capsys):
    run_bench(monkeypatch, toy, "--overfit", "6", "--steps", "120", "--eval-every", "60")
    assert "overfit check: 100.0% of 6" in capsys.readouterr().out
    run_bench(monkeypatch, toy, "--overfit", "6", "--steps", "120", "--eval-every", "60")
    assert "overfit check: 100.0% of 6" in capsys.readouterr().out  # from what the finished run wrote
    run_bench(monkeypatch, toy, "--overfit", "8", "--steps", "120", "--eval-every", "60", "--no-resume")
    out = capsys.readouterr().out
    assert "100.0% of 7" in out and "1 more cannot be" in out  # users 6 and 7 end with items 11 and 0, of one ID
    with pytest.raises(SystemExit, match="overfit check failed"):
        run_bench(monkeypatch, toy, "--overfit", "6", "--steps", "1", "--no-resume")


def test_benchmark_calls_a_partial_run_partial(monkeypatch, toy, capsys):
    run_bench(monkeypatch, toy, "--steps", "3", "--users", "8")
    out = capsys.readouterr().out
    assert "8 of 10 users, 12 items with 11 different IDs, 24 examples" in out  # six items: 4 are learnt, 3 of them told
    assert "partial run: 3 of 200,000 steps, 8 of 10 users" in out and "published (quoted)" not in out
    run_bench(monkeypatch, toy, "--steps", "3", "--full", "3", "--no-resume")
    assert "partial" not in capsys.readouterr().out


def test_benchmark_ranks_against_exact_scores(toy):
    """Rank of each test item by the beam = 1 + items with a higher exact score (or the same ID, and first in it)."""
    sequences, ids = bench.load_sequences(toy / "toy.txt"), bench.load_ids(toy / "ids.json", 12)
    model, table = make_model(ids)
    different, items = bench.group_by_id(ids, np.arange(12))
    levels = tiger.build_trie(tiger.token_table(different)[0][:-1])[0]
    test = bench.last_of(sequences)
    kept, filtered = bench.find_ranks(model, table, levels, items, test, beam=20, size=4)
    histories, targets = tiger.take(test, np.arange(10))
    exact = tiger.score_all(model, table[:-1], tiger.encode_histories(histories, table)).numpy()
    exact[:, 0] -= 1e-5  # 11 has the larger count
    assert targets.tolist() == [sequence[-1] for sequence in sequences]
    for i, target in enumerate(targets):
        assert kept[i] == 1 + (exact[i] > exact[i, target]).sum()
        assert filtered[i] == 1 + (np.delete(exact[i], sequences[i][:-1]) > exact[i, target]).sum()


def test_benchmark_bad_files(monkeypatch, toy):
    (toy / "ids.json").write_text('{"0": ["<a_1>"]}')
    with pytest.raises(SystemExit, match="ids.json: IDs of equal length are expected for items 0 to 11"):
        run_bench(monkeypatch, toy)
    (toy / "ids.json").write_text('{"0": 1}')
    with pytest.raises(SystemExit, match="ids.json: .*a JSON object is expected"):
        run_bench(monkeypatch, toy)
    (toy / "toy.txt").write_text("1 2 3 4\n2 x 5\n")
    with pytest.raises(SystemExit, match="toy.txt:2: a user id and item ids"):
        run_bench(monkeypatch, toy)


def test_the_real_files_are_read():
    folder = REAL / "sequences"
    if not (folder / "Beauty.semantic_ids.json").is_file():
        pytest.skip("no real sequences: set TALKPLAY_REAL to the folder that has sequences/")
    sequences = bench.load_sequences(folder / "Beauty.txt")
    ids = bench.load_ids(folder / "Beauty.semantic_ids.json", max(int(s.max()) for s in sequences) + 1)
    different, items = bench.group_by_id(ids, np.zeros(len(ids)))
    assert (len(sequences), sum(map(len, sequences)), len(ids), len(different)) == (22363, 198502, 12101, 12088)
    levels = tiger.build_trie(tiger.token_table(different)[0][:-1])[0]
    assert len(levels[-1].token) == len(items) == 12088 and sorted(np.concatenate(items)) == list(range(12101))
