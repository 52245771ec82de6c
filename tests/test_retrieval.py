"""common/retrieval.py: scores worked by hand, and search against brute force."""

import numpy as np
import pytest
from conftest import make_codes

from common import retrieval
from steps.infer.trie import build_trie, expand_ranges


def test_scores_by_hand():
    codes = np.array([[1, 2, 3, 4, 5],      # all five: 25 + 16 + 9 + 4 + 1 = 55
                      [1, 2, 3, -1, 5],     # lyrics missing: 51
                      [0, 2, 3, 4, 5],      # playlist differs: 30
                      [-1, -1, -1, -1, 5],  # audio only: 1
                      [9, 9, 9, 9, 9],      # nothing: 0
                      [1, 9, 9, 9, 9]], np.int16)
    assert retrieval.overlap(codes, [1, 2, 3, 4, 5]).tolist() == [55, 51, 30, 1, 0, 25]
    assert retrieval.overlap(codes, [1, 2, 3, 4, 5], (1, 1, 1, 1, 1)).tolist() == [5, 4, 4, 1, 0, 1]
    rows, scores = retrieval.search(retrieval.build_index(codes), [1, 2, 3, 4, 5], 6, np.random.default_rng(0))
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
        assert np.floor(scores).tolist() == expected[rows].tolist() == sorted(expected, reverse=True)[:200]
    assert not index.scores.any()


def test_few_matches_are_filled_up_without_repeats():
    codes = np.full((500, 5), 3, np.int16)
    codes[7] = 1
    rows, scores = retrieval.search(retrieval.build_index(codes), [1] * 5, 500, np.random.default_rng(0))
    assert rows[0] == 7 and sorted(rows.tolist()) == list(range(500)) and not scores[1:].any()
    rows, _ = retrieval.search(retrieval.build_index(codes), [-1] * 5, 20, np.random.default_rng(0))
    assert len(set(rows.tolist())) == 20


def test_ties_are_drawn_afresh_and_evenly():
    codes = np.zeros((100, 5), np.int16)
    index, rng = retrieval.build_index(codes), np.random.default_rng(0)
    firsts = [retrieval.search(index, [0] * 5, 10, rng)[0][0] for _ in range(2000)]
    counts = np.bincount(firsts, minlength=100)
    assert counts.min() > 3 and counts.max() < 50  # 20 expected; a fixed order would give 2000 and 0


def test_trie_has_every_track_once():
    codes = make_codes(200, k=3, seed=5)
    trie = build_trie(codes)
    assert sorted(trie.rows) == list(range(200))
    assert trie.n_same_codes.tolist() == [(codes == codes[row]).all(1).sum() for row in trie.rows]
    nodes = np.zeros(1, int)
    for level in range(5):
        parents, (nodes, place) = nodes, expand_ranges(trie.children[level], nodes)
        assert nodes.tolist() == list(range(len(trie.codes[level])))  # the children of all nodes are all nodes, in order
        tracks, node = expand_ranges(trie.tracks[level], nodes)
        assert tracks.tolist() == list(range(200))
        assert (codes[trie.rows, level] == trie.codes[level][node]).all()
        assert len(np.unique(codes[:, :level + 1], axis=0)) == len(nodes)
        if level:
            above = expand_ranges(trie.tracks[level - 1], parents)[1]
            assert (place[node] == above).all()  # a track's node lies below its node of the level before


def test_members_by_hand():
    begins = np.array([0, 2, 2, 5, 6])
    found, place = expand_ranges(begins, np.array([2, 1, 0]))
    assert found.tolist() == [2, 3, 4, 0, 1] and place.tolist() == [0, 0, 0, 2, 2]
    assert [len(x) for x in expand_ranges(begins, np.array([], int))] == [0, 0]


def test_expected_overlap_by_hand():
    """Two sampled sequences and one that is not valid, each a third of the votes."""
    codes = np.array([[0, 1, -1, 2, 0], [1, 1, 0, -1, 0], [2, 2, 2, 2, 2]], np.int16)
    shares = retrieval.code_shares([[0, 1, -1, 2, 1], [1, 1, 1, -1, 0], None], 3)
    assert np.allclose(shares[0], [1 / 3, 1 / 3, 0]) and np.allclose(shares[1], [0, 2 / 3, 0]) and np.allclose(shares[2], [0, 1 / 3, 0])
    assert np.allclose(retrieval.expected_overlap(codes, shares), [(25 + 2 * 16 + 4 + 1) / 3, (25 + 2 * 16 + 1) / 3, 4 / 3])
    one = retrieval.code_shares([[0, 1, -1, 2, 1]], 3)
    assert np.allclose(retrieval.expected_overlap(codes, one), retrieval.overlap(codes, [0, 1, -1, 2, 1]))
