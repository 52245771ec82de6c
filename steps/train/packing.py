"""Dialogues -> training sequences: encode, cut at turns, pack to the context (part of 04_train.py).

Tokens are made once and lie in three flat arrays, which training reads memory-mapped: with 8 processes
on one machine, half a million dialogues are in memory once.
"""

import bisect
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from common import data, tokens

# what 04_train.py names known tracks by, one of these a lesson
INDEXING_FIELDS = (("title",), ("title", "artist"), ("artist",))
STANDALONE = ("title", "metadata", "tags", "lyrics", "audio")  # kinds of request that need no dialogue before them


class Pieces(NamedTuple):
    """n encoded pieces of dialogues, end to end: piece i is ids[starts[i]:starts[i + 1]]."""
    ids: np.ndarray     # (T,) int32
    parts: np.ndarray   # (T,) uint8: the part of the dialogue, see tokens.encode_dialogue
    starts: np.ndarray  # (n + 1,) int64

    def lengths(self):
        return np.diff(self.starts)


# ---------------------------------------------------------------- dialogues -> pieces

def drop_codes(codes, rate, rng):
    """Leave out each code with probability `rate`, but never the last one that a track has.

    So the model meets tracks without a playlist token, as all new (cold) tracks are.
    """
    codes = np.array(codes)
    keep = (codes >= 0) & (rng.random(5) >= rate)
    return np.where(keep, codes, -1) if keep.any() else codes


def answers_by_track(dialogues):
    """{track_id: what dialogues answer when it is played at a request that needs no dialogue before it}."""
    answers = {}
    for turn in (turn for dialogue in dialogues for turn in dialogue["turns"]):
        if turn["music"] is not None and turn["response"] and turn.get("kind") in STANDALONE:
            answers.setdefault(turn["music"], []).append(turn["response"])
    return answers


def indexing_examples(tracks, codes_of, n, answers, seed=0, longest=11):
    """Dialogues that teach the model what its tracks are called and are like: title, artist or both, the track's tokens, an answer.

    The dialogues say little of names, and five tokens do not spell one. Each track of the training playlists (it has
    a playlist code; new tracks stay new) is named n times. This is the indexing task of generative
    retrieval (Tay et al. 2022), not in the paper. answers: of answers_by_track; one of the track's is drawn each time, none where it has none.
    """
    rng = np.random.default_rng([seed, 1])
    known = [t for t in tracks if codes_of[t["track_id"]][0] >= 0]
    turns = []
    for track in known * n:
        fields = INDEXING_FIELDS[int(rng.integers(len(INDEXING_FIELDS)))]
        text = data.item_text(track, fields) or data.item_text(track)
        said = answers.get(track["track_id"])
        if text:
            turns.append({"query": text, "music": track["track_id"], "response": said[int(rng.integers(len(said)))] if said else None})
    turns = [turns[i] for i in rng.permutation(len(turns))]
    # dialogues of 1 to `longest` lessons: what packing leaves free after the real ones is filled by some of them
    dialogues, at = [], 0
    while at < len(turns):
        size = int(rng.integers(1, longest + 1))
        dialogues.append({"turns": turns[at:at + size]})
        at += size
    return dialogues


def encode_cut(dialogue_tokenizer, dialogue, codes_of, context, drop, rng):
    """One dialogue -> list of (ids, parts), each of at most `context` tokens.

    A longer dialogue is cut at a turn, and its later turns begin a new piece. A single turn that does
    not fit is cut at the end.
    Returns: pieces, the number of turns cut short.
    """
    # a fresh name for each turn, since the same track may lose different codes at each
    named, dropped = [], {}
    for t, turn in enumerate(dialogue["turns"]):
        named.append(turn | {"music": None if turn["music"] is None else t})
        if turn["music"] is not None:
            dropped[t] = drop_codes(codes_of[turn["music"]], drop, rng)
    pieces, short = [], 0
    while named:
        n = len(named)
        ids, parts = tokens.encode_dialogue(dialogue_tokenizer, named, dropped)
        while len(ids) > context and n > 1:
            n -= 1
            ids, parts = tokens.encode_dialogue(dialogue_tokenizer, named[:n], dropped)
        short += len(ids) > context
        pieces.append((ids[:context], parts[:context]))
        named = named[n:]
    return pieces, short


_worker = {}  # what the worker processes inherit: far too large to send with every block


def _encode_block(block):
    first, dialogues = block
    seed, rest = _worker["seed"], (_worker["codes_of"], _worker["context"], _worker["drop"])
    return [encode_cut(_worker["dialogue_tokenizer"], dialogue, *rest, np.random.default_rng([seed, first + i]))
            for i, dialogue in enumerate(dialogues)]


def encode_all(dialogue_tokenizer, dialogues, codes_of, context, drop=0.0, seed=0, workers=1, block=256):
    """Dialogues -> Pieces, number of dialogues cut at a turn, number of turns cut short.

    workers: processes; the result does not depend on their number.
    """
    blocks = [(i, dialogues[i:i + block]) for i in range(0, len(dialogues), block)]
    _worker.update(dialogue_tokenizer=dialogue_tokenizer, codes_of=codes_of, context=context, drop=drop, seed=seed)
    ids, parts, cut, short = [], [], 0, 0
    with ProcessPoolExecutor(workers, multiprocessing.get_context("fork")) as pool:
        run = pool.map if workers > 1 else map
        for encoded in tqdm(run(_encode_block, blocks), total=len(blocks), desc="encode", leave=False):
            for pieces, n_short in encoded:
                ids.extend(p[0] for p in pieces)
                parts.extend(p[1] for p in pieces)
                cut, short = cut + (len(pieces) > 1), short + n_short
    starts = np.concatenate([[0], np.cumsum([len(i) for i in ids])]).astype(np.int64)
    return Pieces(np.concatenate(ids), np.concatenate(parts), starts), cut, short


def save_pieces(folder, pieces):
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in pieces._asdict().items():
        data.save_npy(folder / f"{name}.npy", array)


def load_pieces(folder):
    """Pieces that save_pieces left, memory-mapped."""
    return Pieces(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in Pieces._fields))


# ---------------------------------------------------------------- pieces -> sequences

def pack(lengths, context):
    """Best-fit decreasing: put pieces into as few bins of `context` tokens as is easy. Returns lists of indices."""
    bins, free = [], []  # free: sorted (tokens left, bin)
    for i in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        length = int(lengths[i])
        at = bisect.bisect_left(free, (length, -1))
        left, b = free.pop(at) if at < len(free) else (context, len(bins))
        if b == len(bins):
            bins.append([])
        bins[b].append(i)
        bisect.insort(free, (left - length, b))
    return bins


def fill_bin(pieces, members, context, pad, learnt):
    """Lay pieces one after another -> ids, positions, labels, parts, each (context,) int64.

    Positions restart with each piece: transformers reads the borders of the dialogues from them, if
    there is no attention mask and no cache. A piece's first token is nobody's label, and neither is a
    token of a part that is not `learnt`.
    """
    ids, labels = np.full(context, pad), np.full(context, -100)
    parts, positions = np.zeros(context, np.int64), np.arange(context)
    at = 0
    for i in members:
        inside = slice(pieces.starts[i], pieces.starts[i + 1])
        piece, part = pieces.ids[inside], pieces.parts[inside]
        end = at + len(piece)
        ids[at:end], parts[at:end], positions[at:end] = piece, part, np.arange(len(piece))
        labels[at + 1:end] = np.where(np.isin(part, learnt), piece, -100)[1:]
        at = end
    positions[at:] = np.arange(context - at)
    return ids, positions, labels, parts


class Packed(NamedTuple):
    """Pieces, and how they lie in sequences of `context` tokens."""
    pieces: Pieces
    bins: list      # which pieces each sequence holds
    context: int
    pad: int        # id that fills the rest of a sequence

    def batch(self, chosen, device, learnt=tokens.ALL_PARTS):
        """The chosen sequences as four (B, context) tensors: ids, positions, labels, parts."""
        rows = [fill_bin(self.pieces, self.bins[b], self.context, self.pad, learnt) for b in chosen]
        return [torch.from_numpy(np.stack(column)).to(device, non_blocking=True) for column in zip(*rows)]

    def count_labels(self, learnt=tokens.ALL_PARTS):
        """How many labels each sequence has: (n_bins,) int64."""
        counted = np.zeros(len(self.pieces.parts), bool)
        for part in learnt:
            counted |= self.pieces.parts == part
        counted[self.pieces.starts[:-1]] = False
        each = np.add.reduceat(counted, self.pieces.starts[:-1], dtype=np.int64)
        return np.array([each[members].sum() for members in self.bins])
