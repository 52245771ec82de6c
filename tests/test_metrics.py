"""common/metrics.py against values worked by hand, scikit-learn and scipy."""

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import label_ranking_average_precision_score, ndcg_score

from common import metrics


def random_rankings(n=60, n_tracks=40):
    """Scores without ties, (n, N), which track is the target, (n, N), and its rank, (n,)."""
    rng = np.random.default_rng(3)
    scores = rng.random((n, n_tracks))
    targets = rng.integers(n_tracks, size=n)
    ranks = [metrics.rank_of_first_hit(np.argsort(-s), [t])
             for s, t in zip(scores, targets, strict=True)]
    relevant = np.eye(n_tracks, dtype=int)[targets]
    return scores, relevant, np.array(ranks)


def test_metrics_by_hand():
    ranks = [1, 2, 10, 11, 0]
    np.testing.assert_allclose(metrics.reciprocal_rank(ranks), [1, 1 / 2, 1 / 10, 1 / 11, 0])
    assert metrics.mrr(ranks) == pytest.approx((1 + 1 / 2 + 1 / 10 + 1 / 11) / 5)
    assert metrics.hit_at(ranks, 1).tolist() == [1, 0, 0, 0, 0]
    assert metrics.hit_at(ranks, 10).tolist() == [1, 1, 1, 0, 0]
    ndcg = [1, 1 / math.log2(3), 1 / math.log2(11), 0, 0]
    np.testing.assert_allclose(metrics.ndcg_at(ranks, 10), ndcg)


def test_mrr_equals_scikit_learn():
    scores, relevant, ranks = random_rankings()
    expected = label_ranking_average_precision_score(relevant, scores)
    assert metrics.mrr(ranks) == pytest.approx(expected)


@pytest.mark.parametrize("k", [1, 10, 40])
def test_ndcg_equals_scikit_learn(k):
    scores, relevant, ranks = random_rankings()
    assert metrics.ndcg_at(ranks, k).mean() == pytest.approx(ndcg_score(relevant, scores, k=k))


def test_rank_of_first_hit():
    ranked = np.array([7, 3, 9, 1])
    assert metrics.rank_of_first_hit(ranked, [7]) == 1
    assert metrics.rank_of_first_hit(ranked, [1, 9]) == 3
    assert metrics.rank_of_first_hit(ranked, [5]) == 0


def test_filter_played_keeps_order_and_a_target_that_was_played():
    ranked = np.array([4, 2, 0, 3, 1])
    assert metrics.filter_played(ranked, [2, 3], [1]).tolist() == [4, 0, 1]
    assert metrics.filter_played(ranked, [2, 3], [3]).tolist() == [4, 0, 3, 1]
    assert metrics.filter_played(ranked, [], [3]).tolist() == [4, 2, 0, 3, 1]


def test_rank_rows_orders_by_score_and_draws_ties():
    scores = np.array([0, 5, 1, 5, 0, 9, 0])
    orders = [metrics.rank_rows(scores, metrics.turn_rng(0, "d", turn), 7).tolist()
              for turn in range(1, 61)]
    for order in orders:
        assert order[0] == 5 and set(order[1:3]) == {1, 3}
        assert order[3] == 2 and set(order[4:]) == {0, 4, 6}
    assert {o[1] for o in orders} == {1, 3} and {o[6] for o in orders} == {0, 4, 6}


@pytest.mark.parametrize("depth", [1, 2, 4, 5, 7, 1000])
def test_rank_rows_cuts_at_the_depth_without_repeats(depth):
    scores = np.array([0, 5, 1, 5, 0, 9, 0], np.float32)
    ranked = metrics.rank_rows(scores, np.random.default_rng(1), depth)
    assert len(ranked) == len(set(ranked.tolist())) == min(depth, 7)
    assert scores[ranked].tolist() == sorted(scores.tolist(), reverse=True)[:depth]


def test_ties_at_the_cut_are_drawn_evenly():
    """2 of 4 equal rows are kept: each in half of 2,000 draws, give or take 4 standard errors."""
    rng = np.random.default_rng(5)
    kept = np.zeros(4)
    for _ in range(2000):
        kept[metrics.rank_rows(np.zeros(4), rng, 2)] += 1
    np.testing.assert_allclose(kept / 2000, 0.5, atol=0.045)


def test_turn_rng_repeats_and_differs_by_seed_dialogue_and_turn():
    turns = [(0, "a", 1), (0, "a", 1), (1, "a", 1), (0, "b", 1), (0, "a", 2)]
    draws = [metrics.turn_rng(*turn).random() for turn in turns]
    assert draws[0] == draws[1] and len(set(draws)) == 4


def test_bootstrap_equals_scipy_with_one_value_per_group():
    """Both draw 20,000 resamples; the ends may differ by the noise of that draw only."""
    values = np.random.default_rng(0).gamma(1.0, size=80)
    low, high = metrics.bootstrap_ci(values, np.arange(80), n=20000)
    expected = stats.bootstrap((values,), np.mean, n_resamples=20000, method="percentile",
                               rng=1).confidence_interval
    width = expected.high - expected.low
    assert low == pytest.approx(expected.low, abs=0.02 * width)
    assert high == pytest.approx(expected.high, abs=0.02 * width)


def test_bootstrap_of_unequal_groups_by_hand():
    """Groups (0 0 0) and (1): the resampled mean is 0, 1/4 or 1 with chance 1/4, 1/2, 1/4."""
    groups = ["a", "a", "a", "b"]
    assert metrics.bootstrap_ci([0, 0, 0, 1], groups, n=2000, level=0.4) == (0.25, 0.25)
    assert metrics.bootstrap_ci([0, 0, 0, 1], groups, n=2000, level=0.9) == (0.0, 1.0)


def test_bootstrap_draws_groups_not_turns():
    """Five equal turns per playlist tell no more than one; drawing turns narrows the interval."""
    values = np.random.default_rng(0).random(40)
    once = metrics.bootstrap_ci(values, np.arange(40))
    by_playlist = metrics.bootstrap_ci(np.repeat(values, 5), np.repeat(np.arange(40), 5))
    by_turn = metrics.bootstrap_ci(np.repeat(values, 5), np.arange(200))
    assert by_playlist == pytest.approx(once)
    assert np.diff(by_turn) < 0.6 * np.diff(once)


def test_bootstrap_of_one_group_has_no_interval():
    assert all(math.isnan(x) for x in metrics.bootstrap_ci([1.0, 0.0], ["a", "a"]))


def test_paired_difference():
    """b = a - 0.1 exactly: the margin is certain, however widely a itself varies."""
    a, groups = np.random.default_rng(0).random(50), np.arange(50) // 2
    assert metrics.paired_difference(a, a - 0.1, groups) == pytest.approx((0.1, 0.1, 0.1))
    mean, low, high = metrics.paired_difference(a, a[::-1], groups)
    assert low < 0 < high and mean == pytest.approx(0, abs=1e-12)


def test_bootstrap_over_runs():
    """Only the two runs differ: a resample gives 0, 0.5 or 1 of their distance."""
    values, groups = np.array([0.2, 0.2, 0.2, 0.2]), np.array(["a", "a", "b", "c"])
    low, high = metrics.bootstrap_ci(np.stack([values, values + 1]), groups)
    assert low == pytest.approx(0.2) and high == pytest.approx(1.2)
    noisy = np.array([0.1, 0.9, 0.4, 0.3])
    assert metrics.bootstrap_ci(noisy[None], groups) == metrics.bootstrap_ci(noisy, groups)
    same = metrics.bootstrap_ci(np.stack([noisy, noisy]), groups)
    assert same == pytest.approx(metrics.bootstrap_ci(noisy, groups))
