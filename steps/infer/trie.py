"""A trie of all tracks by their codes (part of the likelihood ranker)."""

from typing import NamedTuple

import numpy as np


class Trie(NamedTuple):
    """All tracks in the order of their codes. Level l = 0..4 has one node for each distinct start of l + 1 codes.

    A missing code is an edge like any other, with code -1. Nodes stand in the order of their tracks, so that the
    children of a node are neighbours, and its tracks too.
    """
    rows: np.ndarray   # (N,) rows of the catalogue in the order of their codes
    n_same_codes: np.ndarray  # (N,) in the same order: how many tracks have the same five codes, with this one
    codes: list        # five arrays (n_nodes,): the code of the edge into each node
    children: list     # five arrays: the children of node i of the level above begin at [i] and end before [i + 1]
    tracks: list       # five arrays (n_nodes + 1,): the tracks of node i begin in `rows` at [i] and end before [i + 1]


def build_trie(codes):
    """(N, 5) codes -> Trie."""
    rows = np.lexsort(codes.T[::-1])
    new, above = np.arange(len(codes)) == 0, np.array([0, len(codes)])  # above: at first the root, with all tracks
    levels = [], [], []
    for column in codes[rows].T:
        new[1:] |= column[1:] != column[:-1]
        begin = np.append(np.flatnonzero(new), len(codes))
        for arrays, array in zip(levels, (column[begin[:-1]].astype(np.int64), np.searchsorted(begin, above), begin)):
            arrays.append(array)
        above = begin
    return Trie(rows, np.repeat(np.diff(above), np.diff(above)), *levels)


def expand_ranges(begins, nodes):
    """What lies in the ranges of several nodes: the members of all, and for each the place of its node in `nodes`.

    begins: (n + 1,), the range of node i is begins[i] to begins[i + 1] - 1 (trie.children[l] or trie.tracks[l]).
    Returns: two arrays (number of members,).
    """
    first, sizes = begins[nodes], begins[nodes + 1] - begins[nodes]
    place = np.repeat(np.arange(len(nodes)), sizes)
    return np.arange(len(place)) + (first - np.cumsum(sizes) + sizes)[place], place
