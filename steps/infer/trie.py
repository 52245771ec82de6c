"""A trie of all tracks by their codes: what the likelihood ranker walks down.

Five tracks with two modalities (a real trie has five), and the arrays that `build_trie` makes:

    row   codes
     0    7  4                             tracks
     1    2  9          +-- 2 --+-- 3        3
     2    7  4          |       +-- 9        1
     3    2  3   root --+
     4    7 -1          +-- 7 --+-- -1       4
                                +-- 4        0, 2

    rows = 3 1 4 0 2      n_same_codes = 1 1 1 2 2

    level     codes          children     tracks
      0       2  7           0 2          0 2 5
      1       3  9 -1  4     0 2 4        0 1 2 3 5
"""

from typing import NamedTuple

import numpy as np


class Trie(NamedTuple):
    """All tracks in the order of their codes; a missing code is an edge with code -1.

    A level has one node per distinct start of codes. The children of a node are neighbours.
    """
    rows: np.ndarray          # (N,) rows of the catalogue, in the order of their codes
    n_same_codes: np.ndarray  # (N,) in the same order: how many tracks have all codes of this one
    codes: list     # per level (n_nodes,): the code of the edge into each node
    children: list  # per level: those of node i of the level above are [i] to [i + 1] - 1
    tracks: list    # per level (n_nodes + 1,): those of node i are `rows` from [i] to [i + 1] - 1


def build_trie(codes):
    """Trie of codes (N, number of modalities) int, -1 where missing."""
    rows = np.lexsort(codes.T[::-1])
    trie = Trie(rows, np.zeros(len(rows), np.int64), [], [], [])
    begins_node = np.arange(len(rows)) == 0
    tracks_above = np.array([0, len(rows)])  # the root has all tracks
    for column in codes[rows].T:
        # a node begins where this code changes, or one before it
        begins_node[1:] |= column[1:] != column[:-1]
        tracks = np.append(np.flatnonzero(begins_node), len(rows))
        trie.codes.append(column[tracks[:-1]].astype(np.int64))
        trie.children.append(np.searchsorted(tracks, tracks_above))
        trie.tracks.append(tracks)
        tracks_above = tracks
    sizes = np.diff(tracks_above)
    return trie._replace(n_same_codes=np.repeat(sizes, sizes))


def expand_ranges(begins, nodes):
    """The contents of several nodes' ranges, one after the other; the place in `nodes` of each.

    begins: (n + 1,), node i has begins[i] to begins[i + 1] - 1, as in trie.children and .tracks
    """
    first = begins[nodes]
    sizes = begins[nodes + 1] - first
    place = np.repeat(np.arange(len(nodes)), sizes)
    offset = first - (np.cumsum(sizes) - sizes)  # from the place in the output to the content
    return np.arange(len(place)) + offset[place], place
