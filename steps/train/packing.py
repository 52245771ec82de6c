"""Dialogues -> training sequences: encode, cut into segments, pack segments to the context.

A *segment* is an encoded dialogue, or a stretch of one that is too long. A *sequence* is a row of
`context` tokens that training reads; it holds one or more segments, then padding.

    sequence   | segment 7 | segment 2    | segment 31 | pad |
    positions  | 0 1 2 ... | 0 1 2 ...    | 0 1 2 ...  | 0 1 |

The tokens lie in three flat files, read memory-mapped: eight processes share them in memory.
"""

import bisect
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from common import data, tokens
from common.process import current_process, wait_for_all


class Segments(NamedTuple):
    """n segments, end to end: segment i is ids[starts[i]:starts[i + 1]]."""
    ids: np.ndarray     # (T,) int32
    parts: np.ndarray   # (T,) uint8: part of the dialogue, see tokens.encode_dialogue
    starts: np.ndarray  # (n + 1,) int64

    def lengths(self):
        return np.diff(self.starts)


def drop_codes(codes, rate, rng):
    """Leave out each code with probability `rate`, but never all of them.

    So the model meets tracks without a playlist token, as all cold tracks are.
    """
    codes = np.array(codes)
    keep = (codes >= 0) & (rng.random(len(codes)) >= rate)
    return np.where(keep, codes, -1) if keep.any() else codes


def encode_segments(dialogue_tokenizer, dialogue, codes_of, context, drop, rng):
    """One dialogue -> (list of (ids, parts), the number of turns that lost their end).

    A dialogue of more than `context` tokens is cut at a turn, and its later turns begin a new
    segment. A single turn that does not fit loses its end.
    """
    # each turn's music gets a name of its own: a track may lose other codes each time it is played
    turns, kept_codes = [], {}
    for t, turn in enumerate(dialogue["turns"]):
        if turn["music"] is not None:
            kept_codes[t] = drop_codes(codes_of[turn["music"]], drop, rng)
            turn = turn | {"music": t}
        turns.append(turn)

    # as many turns as fit, then as many of the others as fit, ...
    segments, shortened = [], 0
    while turns:
        for n in range(len(turns), 0, -1):
            ids, parts = tokens.encode_dialogue(dialogue_tokenizer, turns[:n], kept_codes)
            if len(ids) <= context:
                break
        shortened += len(ids) > context
        segments.append((ids[:context], parts[:context]))
        turns = turns[n:]
    return segments, shortened


def encode_all(dialogue_tokenizer, dialogues, codes_of, context, drop=0.0, seed=0, workers=1,
               block=256):
    """Dialogues -> (Segments, number of dialogues cut, number of turns that lost their end).

    workers: processes; the result does not depend on them. block: dialogues per task of a process
    """
    global encoder

    def encoder(i):
        rng = np.random.default_rng([seed, i])
        return encode_segments(dialogue_tokenizer, dialogues[i], codes_of, context, drop, rng)

    numbers = range(len(dialogues))
    with ProcessPoolExecutor(workers, multiprocessing.get_context("fork")) as pool:
        encoded = map(encoder, numbers)
        if workers > 1:
            encoded = pool.map(run_encoder, numbers, chunksize=block)
        encoded = list(tqdm(encoded, "encode", len(dialogues), leave=False))
    ids, parts = zip(*(segment for segments, _ in encoded for segment in segments), strict=True)
    starts = np.cumsum([0, *map(len, ids)], dtype=np.int64)
    return (Segments(np.concatenate(ids), np.concatenate(parts), starts),
            sum(len(segments) > 1 for segments, _ in encoded),
            sum(shortened for _, shortened in encoded))


def run_encoder(i):
    """In a worker process, which inherited the function with all its data: encode dialogue i."""
    return encoder(i)


def pack(lengths, context):
    """Best-fit decreasing: each segment, longest first, joins the fullest sequence that has room.

    lengths: (n,), each at most `context`. Returns a list of the segments' numbers per sequence.
    """
    sequences = []
    room = []  # sorted (tokens left, sequence): the first that is large enough fits best
    for segment in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        best = bisect.bisect_left(room, (lengths[segment], -1))
        if best == len(room):
            room.append((context, len(sequences)))
            sequences.append([])
        left, sequence = room.pop(best)
        sequences[sequence].append(segment)
        bisect.insort(room, (left - lengths[segment], sequence))
    return sequences


class Packed(NamedTuple):
    """Segments, and how they lie in sequences of `context` tokens."""
    segments: Segments
    sequences: list  # numbers of the segments that each sequence holds
    context: int
    pad: int         # id that fills the rest of a sequence
    learnt: tuple = tokens.ALL_PARTS  # parts of a dialogue whose tokens are labels

    def sequence(self, number):
        """ids, positions, labels, parts of one sequence, each (context,) int64.

        Positions restart at each segment: transformers finds the borders of packed dialogues by
        them, if it gets no attention mask and no cache. The first token of a segment is no label,
        since nothing comes before it.
        """
        ids = np.full(self.context, self.pad)
        parts = np.full(self.context, tokens.UNSAID)  # padding is no label either
        positions = np.arange(self.context)
        at = 0
        for i in self.sequences[number]:
            source = slice(self.segments.starts[i], self.segments.starts[i + 1])
            end = at + source.stop - source.start
            ids[at:end] = self.segments.ids[source]
            parts[at:end] = self.segments.parts[source]
            at = end
            positions[at:] = np.arange(self.context - at)
        labels = np.where(np.isin(parts, self.learnt), ids, -100)
        labels[positions == 0] = -100
        return ids, positions, labels, parts

    def batch(self, numbers, device):
        """Chosen sequences as four (B, context) int64 tensors: ids, positions, labels, parts."""
        columns = zip(*(self.sequence(number) for number in numbers), strict=True)
        return [torch.from_numpy(np.stack(column)).to(device, non_blocking=True)
                for column in columns]

    def count_labels(self):
        """How many labels each sequence has: (number of sequences,) int64."""
        starts = self.segments.starts[:-1]
        learnt = np.array([part in self.learnt for part in range(256)])
        is_label = learnt[self.segments.parts]  # np.isin would need eight bytes per token
        is_label[starts] = False
        per_segment = np.add.reduceat(is_label, starts, dtype=np.int64)
        return np.array([per_segment[segments].sum() for segments in self.sequences])


def encode_and_pack(folder, dialogues, dialogue_tokenizer, codes_of, context,
                    learnt=tokens.ALL_PARTS, drop=0.0, seed=0, workers=1):
    """Dialogues -> Packed. The first process encodes them into `folder`, unless they are there."""
    rank, _ = current_process()
    if rank == 0 and not (folder / "starts.npy").is_file():
        segments, n_cut, n_shortened = encode_all(
            dialogue_tokenizer, dialogues, codes_of, context, drop, seed, workers)
        print(f"{folder.name}: {n_cut:,} dialogues cut at a turn, {n_shortened:,} turns cut short")
        for name, array in segments._asdict().items():  # starts.npy last
            data.save_npy(folder / f"{name}.npy", array)
    wait_for_all()
    segments = Segments(*(np.load(folder / f"{name}.npy", mmap_mode="r")
                          for name in Segments._fields))
    sequences = pack(segments.lengths().tolist(), context)
    if rank == 0:
        print(f"{folder.name}: {len(segments.ids):,} tokens in {len(sequences):,} sequences, "
              f"{len(segments.ids) / len(sequences) / context:.1%} full")
    tokenizer = dialogue_tokenizer.tokenizer
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return Packed(segments, sequences, context, pad, learnt)
