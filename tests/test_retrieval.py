"""common/retrieval.py: scores worked by hand, and search against brute force."""

import numpy as np
import pytest
from conftest import make_codes

from common import retrieval


def test_scores_by_hand():
    codes = np.array([[1, 2, 3, 4, 5],      # all five: 25 + 16 + 9 + 4 + 1 = 55
                      [1, 2, 3, -1, 5],     # lyrics missing: 51
                      [0, 2, 3, 4, 5],      # playlist differs: 30
                      [-1, -1, -1, -1, 5],  # audio only: 1
                      [9, 9, 9, 9, 9],      # nothing: 0
                      [1, 9, 9, 9, 9]], np.int16)
    assert retrieval.overlap(codes, [1, 2, 3, 4, 5]).tolist() == [55, 51, 30, 1, 0, 25]
    assert retrieval.overlap(codes, [1, 2, 3, 4, 5], [1] * 5).tolist() == [5, 4, 4, 1, 0, 1]
    rows, scores = retrieval.search(retrieval.build_index(codes), [1, 2, 3, 4, 5], 6,
                                    np.random.default_rng(0))
    assert rows.tolist() == [0, 1, 2, 5, 3, 4]
    assert np.floor(scores).tolist() == [55, 51, 30, 25, 1, 0]


def test_missing_codes_never_match_and_exact_match_comes_first():
    codes = np.array([[1, 2, 3, 4, 5], [1, 2, 3, -1, 5], [1, 2, 3, -1, -1]], np.int16)
    index = retrieval.build_index(codes)
    assert retrieval.overlap(codes, [1, 2, 3, -1, 5]).tolist() == [51, 51, 50]
    for seed in range(20):  # a tie in the score, yet the exact match is always first
        rows, _ = retrieval.search(index, [1, 2, 3, -1, 5], 3, np.random.default_rng(seed))
        assert rows.tolist() == [1, 0, 2]


@pytest.mark.parametrize("weights", [retrieval.WEIGHTS, (1, 1, 1, 1, 1), (25, 9, 16, 4, 1)])
def test_search_equals_brute_force(weights):
    codes = make_codes(3000, k=12, seed=1)
    index, rng = retrieval.build_index(codes), np.random.default_rng(2)
    for query in make_codes(50, k=14, seed=3):  # some codes that no track has
        expected = retrieval.overlap(codes, query, weights)
        rows, scores = retrieval.search(index, query, 200, rng, weights)
        assert len(set(rows.tolist())) == 200
        assert np.floor(scores).tolist() == expected[rows].tolist()
        assert expected[rows].tolist() == sorted(expected, reverse=True)[:200]
    assert not index.scores.any()


def test_few_matches_are_filled_up_without_repeats():
    codes = np.full((500, 5), 3, np.int16)
    codes[7] = 1
    index, rng = retrieval.build_index(codes), np.random.default_rng(0)
    rows, scores = retrieval.search(index, [1] * 5, 500, rng)
    assert rows[0] == 7 and sorted(rows.tolist()) == list(range(500)) and not scores[1:].any()
    rows, _ = retrieval.search(index, [-1] * 5, 20, rng)
    assert len(set(rows.tolist())) == 20


def test_ties_are_drawn_afresh_and_evenly():
    codes = np.zeros((100, 5), np.int16)
    index, rng = retrieval.build_index(codes), np.random.default_rng(0)
    firsts = [retrieval.search(index, [0] * 5, 10, rng)[0][0] for _ in range(2000)]
    counts = np.bincount(firsts, minlength=100)
    # 20 expected; a fixed order would give 2000 and 0
    assert counts.min() > 3 and counts.max() < 50
