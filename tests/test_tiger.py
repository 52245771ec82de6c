"""baselines/tiger.py, its semantic_ids.py and benchmarks/tiger_sequences.py on toy catalogues."""

import importlib
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import REAL, ROOT, make_dialogues

from baselines import semantic_ids, tiger
from baselines.popularity import count_tracks
from benchmarks import tiger_sequences as bench
from benchmarks.sasrec_sequences import read_sequences
from common import data, turns

TINY = dict(layers=1, width=32, heads=2, head_width=16, ff=64, dropout=0.1, steps=30,
            batch_size=16, lr=0.01, warmup=1000)


def make_ids(n, k=4, seed=0):
    """Semantic IDs with many collisions: k x k x k codes for n items."""
    return semantic_ids.add_collision_code(np.random.default_rng(seed).integers(0, k, (n, 3)))


def make_model(ids, seed=0, recipe=TINY):
    table, vocabulary = tiger.token_table(ids)
    return tiger.build_model(vocabulary, recipe, seed).eval(), table


@torch.inference_mode()
def score_all(model, table, ids):
    """Log-probabilities of all N IDs, read one by one, to hold the beam search to: (B, N).

    table: (N, L) int64 tokens. ids: (B, T) tokens of encode_histories.
    """
    labels = torch.from_numpy(table)
    scores = []
    for history in ids:
        histories = history.repeat(len(labels), 1)  # (N, T)
        logits = model(input_ids=histories, attention_mask=histories != tiger.PAD,
                       labels=labels).logits
        scores.append(logits.log_softmax(-1).gather(2, labels[..., None]).sum((1, 2)))
    return torch.stack(scores)


def make_turn(played, number=2, target=0):
    return turns.Turn("d", number, [], "", list(played), [target])


# ---------------------------------------------------------------- Semantic IDs

def test_residual_kmeans_by_hand():
    """-1, 1, 9, 11: the centres 0 and 10 leave -1 and 1, the second level's centres leave 0."""
    vectors = np.array([[-1], [1], [9], [11]], np.float32)
    codes, books = semantic_ids.residual_kmeans(vectors, levels=3, n_codes=2)
    assert sorted(books[0].ravel()) == [0, 10] and sorted(books[1].ravel()) == [-1, 1]
    assert books[2].tolist() == [[0]] and codes[:, 2].tolist() == [0] * 4  # equal rows: one code
    total = sum(book[codes[:, level]] for level, book in enumerate(books))
    assert np.array_equal(total, vectors)
    assert codes[0, 0] == codes[1, 0] != codes[2, 0] == codes[3, 0]
    assert codes[0, 1] == codes[2, 1] != codes[1, 1] == codes[3, 1]


def test_ids_and_tokens_by_hand():
    codes = np.array([[0, 1], [1, 2], [0, 1], [0, 1]])
    ids = semantic_ids.add_collision_code(codes)
    assert ids.tolist() == [[0, 1, 0], [1, 2, 0], [0, 1, 1], [0, 1, 2]]
    table, vocabulary = tiger.token_table(ids)  # 3 special tokens, then 2, 3 and 3 codes
    assert table.tolist() == [[3, 6, 8], [4, 7, 8], [3, 6, 9], [3, 6, 10], [0, 0, 0]]
    assert vocabulary == 11


def test_ids_are_unique_however_many_collide():
    for ids in (make_ids(500), semantic_ids.add_collision_code(np.zeros((40, 3), int))):
        assert len(np.unique(ids, axis=0)) == len(ids) > len(np.unique(ids[:, :-1], axis=0))


def test_rqvae_learns_and_more_levels_say_more():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(8, 16))[rng.integers(8, size=200)]
    vectors = (centres + 0.3 * rng.normal(size=(200, 16))).astype(np.float32)
    errors = {}
    for levels in (1, 3):
        codes, lost = semantic_ids.train_rqvae(vectors, levels, n_codes=4, epochs=80)
        assert codes.shape == (200, levels) and codes.max() < 4 and len(set(codes[:, 0])) == 4
        assert lost[-1] < lost[0] / 2
        errors[levels] = lost[-1]
    first_with_codes = lost[20]
    assert errors[3] < 0.8 * errors[1] and errors[3] < 0.8 * first_with_codes
    assert np.array_equal(semantic_ids.train_rqvae(vectors, 3, 4, epochs=80)[0], codes)


def test_rqvae_passes_the_gradient_straight_through():
    model = semantic_ids.RQVAE(6, 2, 4, widths=(5, 3))
    x = torch.randn(7, 6, generator=torch.Generator().manual_seed(0))
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
    assert tiger.encode_histories(histories, table).tolist() == [
        [0, 0, 13, 14, 1], [13, 14, 15, 16, 1], [0, 0, 21, 22, 1]]
    long = tiger.take(tiger.make_examples([range(30)]), [28])[0]
    assert long[0].tolist() == list(range(9, 29))  # the last HISTORY


def test_batches_shuffle_all_and_go_on_anywhere():
    examples = tiger.make_examples([range(length) for length in (2, 5, 3, 30, 4, 8, 2, 12)])
    n, size = len(examples.places), 5
    assert n == 58  # 12 batches a pass, two places left over
    stream = tiger.draw_batches(examples, size, 0, 0)
    seen = [next(stream) for _ in range(48)]
    passes = [np.concatenate(seen[12 * e:12 * e + 12]) for e in range(4)]
    assert all(len(rows) == 60 and set(rows) == set(range(n)) for rows in passes)
    assert len({tuple(rows) for rows in passes}) == 4
    lengths = np.minimum(examples.places - examples.begin[examples.places], tiger.HISTORY)
    spread = np.mean([np.ptp(lengths[rows]) for rows in seen])
    assert spread < 3 < np.ptp(lengths) / 2  # similar lengths share a batch
    later = tiger.draw_batches(examples, size, 0, 17)
    assert all(np.array_equal(next(later), rows) for rows in seen[17:])
    few = next(tiger.draw_batches(tiger.make_examples([[1, 2, 3]]), 5, 0, 0))
    assert len(few) == 5 and set(few) == {0, 1}


# ---------------------------------------------------------------- the search

def test_trie_by_hand():
    levels, rows = tiger.build_levels(np.array([[4, 5], [3, 6], [4, 7], [3, 5]]))
    assert rows.tolist() == [3, 1, 0, 2]
    assert [tokens.tolist() for tokens, _ in levels] == [[3, 4], [5, 6, 5, 7]]
    assert [first_child.tolist() for _, first_child in levels] == [[0, 2], [0, 2, 4]]


def test_a_wide_beam_is_exact():
    """60 items, many sharing three codes; histories of different lengths in one batch."""
    model, table = make_model(make_ids(60))
    levels, rows = tiger.build_levels(table[:-1])
    histories = np.array([[-1, -1, 3], [7, 8, 9], [-1, 59, 3]])
    ids = tiger.encode_histories(histories, table)
    exact = score_all(model, table[:-1], ids)
    leaves, scores = tiger.beam_search(model, levels, ids, 60)
    ranked = torch.from_numpy(rows)[leaves]
    assert torch.equal(ranked.sort(1).values, torch.arange(60).repeat(3, 1))
    torch.testing.assert_close(scores, exact.gather(1, ranked), atol=1e-4, rtol=0)
    assert (scores.diff(dim=1) <= 0).all() and (exact.exp().sum(1) < 1).all()
    labels = torch.from_numpy(table[[11]])  # transformers' own loss is the mean over the four codes
    loss = model(input_ids=ids[1:2], attention_mask=ids[1:2] != tiger.PAD, labels=labels).loss
    torch.testing.assert_close(exact[1, 11], -4 * loss, atol=1e-4, rtol=0)
    alone = score_all(model, table[:-1], tiger.encode_histories(histories[:1, 2:], table))
    torch.testing.assert_close(alone[0], exact[0], atol=1e-4, rtol=0)  # padding counts nothing


@pytest.mark.parametrize("width", [1, 5, 20])
def test_a_narrow_beam_never_leaves_the_catalogue(width):
    ids = np.array([[0, 0, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 1],
                    *[[2, b, c, 0] for b in range(4) for c in range(4)]])
    model, table = make_model(ids)
    trie = tiger.build_levels(table[:-1])
    to_rank = [make_turn(played) for played in ([3], [0, 5], [2, 9], [1, 2, 3])]
    *results, nothing = tiger.search_turns(model, table, trie, [*to_rank, make_turn([], 1)], width)
    assert nothing is None
    for turn, (rows, log_p) in zip(to_rank, results, strict=True):
        history = tiger.encode_histories(np.array([turn.played]), table)
        exact = score_all(model, table[:-1], history)[0].numpy()
        assert len(rows) == width == len(set(rows)) and set(rows) <= set(range(20))
        np.testing.assert_allclose(log_p, exact[rows], atol=1e-4)


def test_scores_put_the_beam_above_popularity():
    counts = np.array([5, 0, 9, 2, 5])
    first, second = tiger.score_tracks([None, (np.array([3, 1]), np.array([-2.0, -7.5]))], counts)
    assert first.tolist() == counts.tolist()
    assert second[[3, 1]].tolist() == [-2.0, -7.5]
    assert np.argsort(-second, kind="stable").tolist() == [3, 1, 2, 0, 4]


# ---------------------------------------------------------------- training

# The next track is always the next number.
CYCLE = [[(start + i) % 12 for i in range(6)] for start in range(12)]


def fit_cycle(path, check=lambda: 0.0, **recipe):
    model, table = make_model(make_ids(12), recipe=TINY | recipe)
    tiger.fit(model, table, tiger.make_examples(CYCLE), check, TINY | recipe,
              path / "cycle", every=10)
    return model, table


def test_toy_sequences_are_learnt_by_heart(tmp_path):
    recipe = TINY | {"dropout": 0.0, "steps": 160}
    model, table = make_model(make_ids(12), recipe=recipe)
    examples = bench.predict_last(CYCLE[:8])
    before = tiger.mean_loss(model, table, examples)
    after = tiger.fit(model, table, examples, lambda: tiger.mean_loss(model, table, examples),
                      recipe, tmp_path / "cycle", every=40)
    assert after < 0.05 < 1 < before and after == tiger.mean_loss(model, table, examples)
    to_rank = [make_turn(sequence[:-1], target=sequence[-1]) for sequence in CYCLE[:8]]
    results = tiger.search_turns(model, table, tiger.build_levels(table[:-1]), to_rank, 5)
    assert [rows[0] for rows, _ in results] == [sequence[-1] for sequence in CYCLE[:8]]
    assert turns.mrr(tiger.score_tracks(results, np.zeros(12)), to_rank, 0) == 1


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
    last = torch.load(tmp_path / "cut/cycle/checkpoint-30.pt", weights_only=True)["model"]
    first = torch.load(tmp_path / "cycle/checkpoint-30.pt", weights_only=True)["model"]
    assert all(torch.equal(first[name], last[name]) for name in first)
    assert set(whole) == set(resumed)
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
    best = torch.load(tmp_path / "cycle/checkpoint-20.pt", weights_only=True)["model"]  # value 1
    model = fit_cycle(tmp_path, lambda: 2.0)[0]
    assert all(torch.equal(best[name], weights) for name, weights in model.state_dict().items())


def test_a_foreign_checkpoint_ends_with_one_line(tmp_path):
    path = tmp_path / "cycle" / "checkpoint-10.pt"
    path.parent.mkdir()
    path.write_bytes(b"nonsense")
    with pytest.raises(SystemExit, match="checkpoint-10.pt: not a checkpoint.*--no-resume"):
        fit_cycle(tmp_path)
    torch.save({"model": {}}, path)
    with pytest.raises(SystemExit, match="checkpoint-10.pt: not a checkpoint"):
        fit_cycle(tmp_path)


# ---------------------------------------------------------------- the script

def run(monkeypatch, folder, *arguments):
    """The script in this process, with a quick stand-in for the text encoder."""
    rng = np.random.default_rng(0)
    monkeypatch.setattr(semantic_ids, "embed_items", lambda tracks, *_: rng.normal(
        size=(len(tracks), 8)).astype(np.float32))
    monkeypatch.setitem(tiger.RECIPES, "demo", TINY)
    monkeypatch.setattr(sys, "argv", ["tiger.py", "--data-dir", str(folder), "--device", "cpu",
                                      "--steps", "10", "--eval-every", "5", "--beam", "12",
                                      *arguments])
    tiger.main()


def read(folder, split="test"):
    lines = (folder / turns.FOLDERS[split] / "tiger.jsonl").read_text().splitlines()
    return {(row["dialogue_id"], row["turn"]): row["track_ids"] for row in map(json.loads, lines)}


def test_predictions_cover_every_turn_and_the_seed_decides(monkeypatch, small):
    run(monkeypatch, small)
    first = {split: read(small, split) for split in ("valid", "test")}
    for split, rows in first.items():
        assert set(rows) == {(f"{split}-{d}", t) for d in range(4) for t in range(1, 5)}
        assert all(sorted(ranked) == sorted(f"t{i}" for i in range(30)) for ranked in rows.values())
    ids = np.load(small / "tiger/semantic_ids.npy")
    assert ids.shape == (30, 4) and len(np.unique(ids, axis=0)) == 30
    assert ids[:, :3].max() < 3  # 30 // 8 codes
    record = json.loads((small / "runs/tiger.json").read_text())
    assert set(record["valid_mrr"]) == {"dialogues", "playlists"}
    assert record["valid_mrr"][record["chosen_on_valid"]] == max(record["valid_mrr"].values())
    assert not (small / "tiger.part").exists()
    run(monkeypatch, small, "--no-resume")
    assert read(small) == first["test"]
    run(monkeypatch, small, "--no-resume", "--seed", "1")
    assert read(small) != first["test"]


def test_turn_1_is_popularity(monkeypatch, small):
    run(monkeypatch, small, "--train-on", "playlists")
    row_of = {f"t{i}": i for i in range(30)}
    counts = count_tracks(data.load_playlists(small, row_of), row_of)
    for (_, turn), ranked in read(small).items():
        popular = [counts[row_of[track_id]] for track_id in ranked]
        below_the_beam = popular if turn == 1 else popular[12:]
        assert below_the_beam == sorted(below_the_beam, reverse=True)


@pytest.mark.parametrize("t", [0, 1, 2])
def test_what_follows_a_query_changes_nothing(monkeypatch, small, t):
    run(monkeypatch, small, "--train-on", "dialogues")
    before = read(small)
    altered = make_dialogues(4, 30, "test")
    for dialogue in altered:
        for i, turn in enumerate(dialogue["turns"]):
            if i >= t:
                turn |= {"music": "t29", "targets": ["t29"], "response": "something else",
                         "rejected": True, "kind": "x"}
            if i > t:
                turn["query"] = "neon engine"
    data.write_jsonl(small / "dialogues_test.jsonl", altered)
    run(monkeypatch, small, "--train-on", "dialogues", "--no-resume")
    after = read(small)
    assert all(before[key] == after[key] for key in before if key[1] <= t + 1)
    assert any(before[key] != after[key] for key in before)  # music already played does count


def test_a_killed_run_goes_on_and_ends_the_same(monkeypatch, small):
    run(monkeypatch, small)
    whole, weights = read(small), (small / "tiger/model.safetensors").read_bytes()
    for name, arguments in (("mean_loss", ["--no-resume"]), ("search_turns", [])):
        with monkeypatch.context() as m, pytest.raises(ZeroDivisionError):
            m.setattr(tiger, name, lambda *_: 1 / 0)
            run(m, small, *arguments)
    assert list((small / "tiger.part/dialogues").glob("checkpoint-*.pt"))
    run(monkeypatch, small)
    assert read(small) == whole and (small / "tiger/model.safetensors").read_bytes() == weights


def test_done_runs_are_skipped_and_changes_refused(monkeypatch, small, capsys):
    flags = ["--rqvae-epochs", "2", "--train-on", "both"]
    run(monkeypatch, small, "--ids", "rqvae", *flags)
    capsys.readouterr()
    run(monkeypatch, small, "--ids", "rqvae", *flags)
    assert capsys.readouterr().out == "tiger: already done (--no-resume does it again)\n"
    with pytest.raises(SystemExit, match="another argument: ids .*--no-resume"):
        run(monkeypatch, small, *flags)


def test_the_training_set_is_chosen_on_valid_alone(monkeypatch, small):
    run(monkeypatch, small)
    before = json.loads((small / "runs/tiger.json").read_text())
    altered = make_dialogues(4, 30, "test", seed=5)
    data.write_jsonl(small / "dialogues_test.jsonl", altered)
    run(monkeypatch, small, "--no-resume")
    after = json.loads((small / "runs/tiger.json").read_text())
    assert before["valid_mrr"] == after["valid_mrr"] and before["inputs"] != after["inputs"]


@pytest.mark.parametrize("argument", ["--levels 0", "--beam -1", "--lr 0"])
def test_bad_arguments(monkeypatch, small, argument):
    with pytest.raises(SystemExit, match=f"{argument}: .* or more is accepted"):
        run(monkeypatch, small, *argument.split())


def test_bad_files_end_with_one_line(monkeypatch, small):
    data.write_jsonl(small / "dialogues_train.jsonl", [
        {"dialogue_id": "a", "turns": [{"query": "x", "music": "t1"}]}])
    with pytest.raises(SystemExit, match="dialogues: no sequence has two tracks.*--train-on"):
        run(monkeypatch, small)
    (small / "dialogues_train.jsonl").unlink()
    with pytest.raises(SystemExit, match="dialogues_train.jsonl is missing; make it with"):
        run(monkeypatch, small)


def test_runs_as_a_script_with_the_real_encoder_and_06_accepts_it(monkeypatch, small):
    command = [sys.executable, str(ROOT / "baselines/tiger.py"), "--data-dir", str(small),
               "--steps", "2", "--device", "cpu"]
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
    lines = [[user + 1, *((user + i) % 12 + 1 for i in range(6))] for user in range(10)]
    (tmp_path / "toy.txt").write_text("\n".join(" ".join(map(str, line)) for line in lines))
    names = {i: [f"<{level}_{code}>" for level, code in zip("abcd", row, strict=True)]
             for i, row in enumerate(ids.tolist())}
    (tmp_path / "ids.json").write_text(json.dumps(names))
    return tmp_path


def run_bench(monkeypatch, folder, *arguments):
    monkeypatch.setitem(tiger.RECIPES, "demo", TINY)
    monkeypatch.setattr(sys, "argv", [
        "tiger_sequences.py", str(folder / "toy.txt"), str(folder / "ids.json"), "--device", "cpu",
        "--recipe", "demo", "--out", str(folder / "out"), *arguments])
    bench.main()


def test_items_of_one_id_are_ranked_one_by_one():
    ids = np.array([[1, 1], [0, 2], [1, 1], [0, 2], [0, 2]])
    different, items = bench.group_by_id(ids, np.array([3, 1, 4, 1, 2]))
    assert different.tolist() == [[0, 2], [1, 1]]
    assert [list(i) for i in items] == [[4, 1, 3], [2, 0]]


def test_benchmark_overfits_and_says_so(monkeypatch, toy, capsys):
    flags = ["--steps", "120", "--eval-every", "60"]
    for _ in range(2):  # the second time from what the finished run wrote
        run_bench(monkeypatch, toy, "--overfit", "6", *flags)
        assert "overfit check: 100.0% of 6" in capsys.readouterr().out
    run_bench(monkeypatch, toy, "--overfit", "8", *flags, "--no-resume")
    out = capsys.readouterr().out  # users 6 and 7 end with items 11 and 0, of one ID
    assert "100.0% of 7" in out and "1 more cannot be" in out
    with pytest.raises(SystemExit, match="overfit check failed"):
        run_bench(monkeypatch, toy, "--overfit", "6", "--steps", "1", "--no-resume")


def test_benchmark_calls_a_partial_run_partial(monkeypatch, toy, capsys):
    run_bench(monkeypatch, toy, "--steps", "3", "--users", "8")
    out = capsys.readouterr().out
    # Of six items 4 are learnt, and 3 of these are predicted.
    assert "8 of 10 users, 12 items with 11 different IDs, 24 examples" in out
    assert "partial run: 3 of 200,000 steps, 8 of 10 users" in out
    assert "published (quoted)" not in out
    monkeypatch.setitem(tiger.RECIPES, "paper", TINY | {"steps": 3})
    run_bench(monkeypatch, toy, "--steps", "3", "--no-resume")
    assert "partial" not in capsys.readouterr().out


def test_benchmark_ranks_against_exact_scores(toy):
    """A test item's rank = 1 + items with a higher exact score, or the same ID and first in it."""
    sequences = [[item - 1 for item in items] for items in read_sequences(toy / "toy.txt")]
    ids = bench.load_ids(toy / "ids.json", 12)
    model, table = make_model(ids)
    different, items = bench.group_by_id(ids, np.arange(12))
    levels, _ = tiger.build_levels(tiger.token_table(different)[0][:-1])
    test = bench.predict_last(sequences)
    kept, left_out = bench.rank_targets(model, table, levels, items, test, beam=20, size=4)
    histories, targets = tiger.take(test, np.arange(10))
    exact = score_all(model, table[:-1], tiger.encode_histories(histories, table)).numpy()
    exact[:, 0] -= 1e-5  # 11 has the larger count
    assert targets.tolist() == [sequence[-1] for sequence in sequences]
    for i, target in enumerate(targets):
        assert kept[i] == 1 + (exact[i] > exact[i, target]).sum()
        assert left_out[i] == 1 + (np.delete(exact[i], sequences[i][:-1]) > exact[i, target]).sum()


def test_benchmark_bad_files(monkeypatch, toy):
    (toy / "ids.json").write_text('{"0": ["<a_1>"]}')
    with pytest.raises(SystemExit, match="IDs of equal length are expected for items 0 to 11"):
        run_bench(monkeypatch, toy)
    (toy / "ids.json").write_text('{"0": 1}')
    with pytest.raises(SystemExit, match="ids.json: .*a JSON object is expected"):
        run_bench(monkeypatch, toy)
    (toy / "toy.txt").write_text("1 2 3 4\n2 x 5\n")
    with pytest.raises(SystemExit, match="toy.txt:2: 'x' is no item id"):
        run_bench(monkeypatch, toy)


def test_the_real_files_are_read():
    folder = REAL / "sequences"
    if not (folder / "Beauty.semantic_ids.json").is_file():
        pytest.skip("no real sequences: set TALKPLAY_REAL to the folder that has sequences/")
    sequences = read_sequences(folder / "Beauty.txt")
    assert (len(sequences), sum(map(len, sequences))) == (22363, 198502)
    ids = bench.load_ids(folder / "Beauty.semantic_ids.json", max(map(max, sequences)))
    different, items = bench.group_by_id(ids, np.zeros(len(ids)))
    assert (len(ids), len(different), len(items)) == (12101, 12088, 12088)
    assert sorted(np.concatenate(items)) == list(range(12101))
    levels, _ = tiger.build_levels(tiger.token_table(different)[0][:-1])
    assert len(levels[-1][0]) == 12088
