"""steps/evaluate/ piece by piece, on values worked by hand; test_06_evaluate.py runs the script."""

import importlib
import math

import numpy as np
import pytest

from common import metrics, retrieval
from common.turns import Turn
from steps.evaluate import ablations, figures, scores, tables
from steps.evaluate.scores import Scores

evaluate = importlib.import_module("06_evaluate")

CODES = np.array([[1, 1, 9, 9, 9],   # a: playlist, semantic           25 + 16 = 41
                  [1, 9, 1, 1, 9],   # b: playlist, metadata, lyrics   25 + 9 + 4 = 38
                  [9, 1, 1, 1, 1],   # c: all but playlist             16 + 9 + 4 + 1 = 30
                  [9, 9, 9, 1, 1],   # d: lyrics, audio                4 + 1 = 5
                  [9, 9, 9, 9, 1]],  # e: audio                        1
                 np.int16)


def make_turns(targets, played=()):
    return [Turn(f"d{i}", 1, [], "play", list(played), [target], group=f"p{i % 3}")
            for i, target in enumerate(targets)]


def rerank(weights, codes=CODES, query=(1, 1, 1, 1, 1), **more):
    """The rank of each track for the generated codes 1 1 1 1 1, each in a turn of its own."""
    turns = make_turns(range(len(codes)), **more)
    generated = [list(query)] * len(turns)
    return ablations.rerank(codes, generated, turns, weights, depth=len(codes), seed=0).tolist()


def test_distinct_2_by_hand():
    """play it, it again, play it: two of three differ; "hello" has no pair; none spans texts."""
    assert metrics.distinct_2(["Play  it again", "play it", "hello"]) == pytest.approx(2 / 3)
    assert metrics.distinct_2(["a b a b"]) == pytest.approx(2 / 3)  # a b, b a, a b
    assert metrics.distinct_2(["a b", "b c"]) == 1
    assert math.isnan(metrics.distinct_2(["hello", ""]))


def test_coverage_by_hand():
    assert metrics.coverage([0, 3, 3, 0], 8) == 0.25 and metrics.coverage([], 8) == 0


def test_weightings_by_hand():
    assert rerank((25, 16, 9, 4, 1)) == [1, 2, 3, 4, 5]
    assert rerank((25, 9, 16, 4, 1)) == [2, 1, 3, 4, 5]   # a 34, b 45, c 30
    assert rerank((1, 4, 9, 16, 25)) == [5, 3, 1, 2, 4]   # a 5, b 26, c 54, d 41, e 25
    a, b, c, d, e = rerank((5, 4, 3, 2, 1))               # a 9, b 10, c 10, d 3, e 1
    assert {b, c} <= {1, 2} and (a, d, e) == (3, 4, 5)


@pytest.mark.parametrize("without, shared", [
    (None, [2, 3, 4, 2, 1]), (0, [1, 2, 4, 2, 1]), (1, [1, 3, 3, 2, 1]), (2, [2, 2, 3, 2, 1]),
    (3, [2, 2, 3, 1, 1]), (4, [2, 3, 3, 1, 0])])
def test_leave_one_out_by_hand(without, shared):
    """shared: how many of the remaining codes of a, b, c, d, e are 1; equal ones in any order."""
    ranks = rerank(tuple(int(m != without) for m in range(5)))
    for rank, n in zip(ranks, shared, strict=True):
        better = sum(other > n for other in shared)
        assert better < rank <= better + shared.count(n)


def test_a_modality_left_out_breaks_no_tie():
    """Tracks that differ only in the modality left out are equal: each is first in some turns."""
    codes = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 1, 2], [1, 1, 1, 1, -1]], np.int16)
    turns = make_turns([0, 1, 2] * 20)
    ranks = ablations.rerank(codes, [[1, 1, 1, 1, 1]] * 60, turns, (1, 1, 1, 1, 0), depth=3, seed=0)
    for track in range(3):
        assert set(ranks[track::3]) == {1, 2, 3}
    ranks = ablations.rerank(codes, [[1, 1, 1, 1, 1]] * 60, turns, (1, 1, 1, 1, 1), depth=3, seed=0)
    assert set(ranks[::3]) == {1}


def test_reranking_leaves_played_tracks_out_and_accepts_no_codes():
    # a and c stay in the turns whose targets they are
    assert rerank((25, 16, 9, 4, 1), played=[0, 2]) == [1, 1, 2, 2, 3]
    turns = make_turns([0] * 200)
    ranks = ablations.rerank(CODES, [None] * 200, turns, (1, 1, 1, 1, 1), depth=5, seed=0)
    assert np.bincount(ranks, minlength=6)[1:].min() > 15  # all tie: 40 expected at each rank


def test_ties_are_drawn_as_05_infer_draws_them():
    infer = importlib.import_module("05_infer")
    rng = np.random.default_rng(1)
    codes = rng.integers(-1, 3, (300, 5)).astype(np.int16)
    turns = make_turns(rng.integers(300, size=50))
    generated = codes[rng.integers(300, size=50)].tolist()
    index = retrieval.build_index(codes)
    expected = []
    for turn, query in zip(turns, generated, strict=True):
        rng = metrics.turn_rng(7, *turn.key, metrics.BREAK_OVERLAP_TIES)
        ranked = infer.rank_by_overlap(index, query, rng)
        expected.append(metrics.rank_of_first_hit(ranked, turn.targets))
    for seed, same in ((7, True), (8, False)):
        ranks = ablations.rerank(codes, generated, turns, retrieval.WEIGHTS, 1000, seed)
        assert (ranks.tolist() == expected) == same


def test_ablation_rows_by_hand():
    """Reciprocal ranks 1, 1/2 with the default weights and 1/2, 1/2 with others: margin -1/4."""
    turns = make_turns([0, 1])
    weightings = [*ablations.WEIGHTINGS, *ablations.LEAVE_ONE_OUT]
    ranks = {weights: np.array([1, 2]) for weights in weightings}
    ranks[1, 4, 9, 16, 25] = np.array([2, 2])
    ranks[1, 1, 1, 1, 0] = np.array([2, 0])
    rows = {(r[0], r[1], r[2]): r[3:] for r in ablations.ablation_rows(ranks, turns, seed=0)}
    assert len(rows) == (5 + 6) * 4
    assert rows[3, "25/16/9/4/1", "mrr"] == (0.75, 0.5, 1.0, "25/16/9/4/1", 0, 0, 0, 2)
    assert rows[3, "1/4/9/16/25", "mrr"] == (0.5, 0.5, 0.5, "25/16/9/4/1", -0.25, -0.5, 0, 2)
    assert rows[4, "1/1/1/1/0", "hit@10"] == (0.5, 0, 1, "1/1/1/1/1", -0.5, -1, 0, 2)
    shown = tables.ablation_table(4, ablations.ablation_rows(ranks, turns, seed=0))
    assert ("| 1/1/1/1/0 | audio    | 0.250 [0.000, 0.500] | 0.000 |  0.500 |   0.500 "
            "| -0.500 [-0.500, -0.500] |") in shown


def make_scores(ranks):
    return Scores(np.array(ranks), np.array(ranks))


def test_spread_by_hand():
    """Reciprocal ranks 1, 1/2 and 1/2, 1/4: means 3/4 and 3/8; their sd is 3/8 / sqrt 2."""
    measures = scores.spread([make_scores([1, 2]), make_scores([2, 4])])
    assert measures["runs"] == 2 and measures["mrr, mean of runs"] == 0.5625
    assert measures["mrr, sd of runs"] == pytest.approx(0.375 / math.sqrt(2))
    assert measures["hit@1, mean of runs"] == 0.25 and measures["hit@100, sd of runs"] == 0


@pytest.mark.parametrize("system, block", [
    ("bm25", "zero-shot"), ("dense", "zero-shot"), ("dense-tuned", "fine-tuned"),
    ("talkplay-overlap", "fine-tuned"), ("sasrec-ce", "not trained on text"), ("mine", "other")])
def test_blocks_of_table_2(system, block):
    assert tables.block_of(system)[0] == block


def test_table_1_by_hand():
    turn = {"query": "Play jazz", "music": "a", "response": "Some jazz ."}
    silent = {"query": "more", "music": None, "response": None}
    playlists = [{"split": split, "track_ids": list(ids)}
                 for split, ids in (("train", "ac"), ("train", "a"), ("test", "b"))]
    dialogues = {"train": [{"turns": [turn]}],
                 "test": [{"turns": [turn, silent]}, {"turns": [turn | {"music": "b"}]}]}
    lines = tables.data_table(dialogues, playlists).splitlines()[2:]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert rows == [["train", "1", "1", "1.00", "4", "1", "0", "2", "1.5"],
                    ["test", "2", "3", "1.50", "5", "1", "1", "1", "1.0"]]


def test_table_2_says_what_was_not_run():
    values = {(system, "all", "all", metric): (0.5, 0.4, 0.6, 9)
              for system in ("clap-tuned", "mine") for metric in metrics.METRICS}
    responses = {("mine", "responses"): 0, ("clap-tuned", "responses"): 7}
    table = tables.paper_table(["mine", "clap-tuned"], values, responses)
    rows = [tuple(cell.strip() for cell in line.split("|")[1:6]) for line in table.splitlines()[2:]]
    assert rows == [
        ("zero-shot", "bm25", "not run", "yes", ""),
        ("zero-shot", "nv-embed-v2", "not run", "yes", ""),
        ("zero-shot", "clap", "not run", "yes", ""),
        ("fine-tuned", "clap-tuned", "measured", "yes", "yes"),
        ("fine-tuned", "nv-embed-v2", "not run", "yes", ""),
        ("fine-tuned", "talkplay", "not run", "yes", ""),
        ("not trained on text", "sasrec", "not run", "no", ""),
        ("not trained on text", "tiger", "not run", "no", ""),
        ("other", "mine", "measured", "", "no")]


def test_rankers_of_one_model_are_compared_on_the_same_runs():
    systems = {"talkplay": make_scores([1] * 4), "talkplay-votes": make_scores([2] * 4),
               "bm25": make_scores([2] * 4)}
    reruns = {"talkplay": {"seed1": make_scores([4] * 4)}}
    masks = {"all": np.ones(4, bool)}
    rows = evaluate.comparison_rows(systems, reruns, make_turns([0] * 4), masks, 0, "talkplay")
    margins = {other: margin for _, other, _, metric, margin, *_ in rows if metric == "mrr"}
    assert margins == {"talkplay-votes": pytest.approx(1 - 1 / 2),
                       "bm25": pytest.approx((1 + 1 / 4) / 2 - 1 / 2)}


@pytest.mark.parametrize("order, shown", [
    (["dense", "bm25", "talkplay-votes", "talkplay", "sasrec", "popularity", "random_order"],
     ["dense", "bm25", "talkplay", "popularity"]),
    (["sasrec", "bm25", "popularity", "tiger", "random_order"],
     ["sasrec", "bm25", "popularity", "tiger"]),
    (["talkplay", "talkplay-overlap"], ["talkplay"])])
def test_systems_of_the_figure(order, shown):
    assert list(figures.choose_systems(order, "talkplay")) == shown


def test_the_figure_comes_from_the_rows_of_metrics_csv(tmp_path, monkeypatch):
    """Numbers or text; turn 3 has too few turns and is left out."""
    rows = [("bm25", "all", turn, "mrr", 0.5, 0.4, 0.6, n)
            for turn, n in (("all", 115), (1, 60), (2, 50), (3, 5))]
    turns = []
    monkeypatch.setattr(figures.plt.Axes, "set_xticks", lambda _, at, labels: turns.append(labels))
    for kind, of_kind in (("numbers", rows), ("text", [tuple(map(str, row)) for row in rows])):
        figures.plot_per_turn(tmp_path / f"{kind}.png", of_kind, "talkplay")
    assert turns == [["1\n60", "2\n50"]] * 2
    assert (tmp_path / "numbers.png").read_bytes() == (tmp_path / "text.png").read_bytes()
