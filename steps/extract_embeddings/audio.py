"""Audio files -> vectors: the encoders of 01, the workers that read files, the standardising."""

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from common.process import end_with_parent
from steps.extract_embeddings.chunks import fill_in_chunks
from steps.extract_embeddings.librosa_features import BLOCKS, read_features, read_windows

AUDIO_ENCODERS = ("librosa", "musicfm", "clap")
WINDOWS_PER_BATCH = 4
ROWS = 8192  # rows of an array that are in memory at once


class AudioEncoder(NamedTuple):
    read: Callable    # path -> a sound, in a worker; a ValueError says why the file cannot be used
    encode: Callable  # list of sounds -> (n, dim) float32, in the main process
    dim: int
    blocks: tuple     # sizes of the blocks of columns that weigh the same (see column_scaling)
    chunk: int        # tracks per chunk; a killed run loses one chunk at most


def load_audio_encoder(name, model, layer, seconds, device):
    """The AudioEncoder of a name in AUDIO_ENCODERS. seconds: of a track that are heard; 0 = all.

    Raises SystemExit: the model or the layer does not fit the name, or the model is damaged.
    """
    if layer is not None and name != "musicfm":
        raise SystemExit(f"--audio-layer {layer}: only musicfm has layers to choose from")
    if name == "librosa":
        if model:
            raise SystemExit(f"--audio-model {model}: only musicfm and clap take one")
        read = partial(read_features, seconds=seconds)
        return AudioEncoder(read, np.stack, sum(BLOCKS), BLOCKS, 256)
    if name == "musicfm":  # imported here, as it needs torch
        from steps.extract_embeddings import musicfm
        loaded = musicfm.load_musicfm(model, 7 if layer is None else layer, device)
        read = partial(read_windows, rate=musicfm.RATE, seconds=seconds, size=musicfm.WINDOW,
                       least=musicfm.SHORTEST)
        encode = partial(musicfm.embed_tracks, model=loaded, batch_size=WINDOWS_PER_BATCH)
        return AudioEncoder(read, encode, musicfm.DIM, (musicfm.DIM,), 64)
    from steps.extract_embeddings import clap
    loaded, _, extractor = clap.load_clap(model, device, "--audio-model")
    read = partial(clap.mel_windows, extractor=extractor, seconds=seconds)
    encode = partial(clap.embed_tracks, model=loaded, batch_size=WINDOWS_PER_BATCH)
    return AudioEncoder(read, encode, loaded.config.projection_dim, (), 64)  # rows have length 1


def start_worker():
    """What each worker does first: it will end with its parent, and it uses one thread."""
    end_with_parent()
    threadpool_limits(1)


def audio_pool(workers):
    """A pool of worker processes."""
    # spawn, not fork: a forked process may hang in a library that was running threads
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), start_worker)


def try_read(read, path):
    """(read(path), None), or (None, the reason) if `read` raises a ValueError."""
    try:
        return read(path), None
    except ValueError as error:
        return None, str(error)


def start_reading(pool, read, data_dir, tracks):
    """Let the workers begin to read the tracks' audio; yields what try_read returns, per track."""
    paths = [str(Path(data_dir) / track["audio_path"]) for track in tracks]
    return pool.map(partial(try_read, read), paths)


def embed_audio_files(folder, name, tracks, data_dir, encoder, workers):
    """Fill <name>.part.npy with a vector per track; NaN without audio that can be read.

    Returns: as `fill_in_chunks`; a note is a dict {track_id, audio_path, reason} of a failure.
    """
    def start(rows):
        # The workers read this chunk while the one before it is encoded.
        audible = {i: track for i, track in enumerate(tracks[rows]) if track["audio_path"]}
        results = start_reading(pool, encoder.read, data_dir, audible.values())
        return rows.stop - rows.start, audible, results

    def encode(started):
        n_rows, audible, results = started
        vectors = np.full((n_rows, encoder.dim), np.nan, np.float32)
        sounds = {}  # row of the chunk: sound
        failed = []
        for (i, track), (sound, reason) in zip(audible.items(), results, strict=True):
            if sound is None:
                failed.append({"track_id": track["track_id"], "audio_path": track["audio_path"],
                               "reason": reason})
            else:
                sounds[i] = sound
        if sounds:
            vectors[list(sounds)] = encoder.encode(list(sounds.values()))
        return vectors, failed

    with audio_pool(workers) as pool:
        shape = (len(tracks), encoder.dim)
        return fill_in_chunks(folder, name, shape, encoder.chunk, encode, start)


def column_scaling(raw, blocks):
    """Mean and divisor of each column, such that every block of columns has a total variance of 1.

    Without blocks of equal weight, 84 columns of timbre would drown 28 of rhythm in a distance.

    raw: (N, D) float32, may be larger than memory; rows of NaN are left out.
    blocks: sizes that sum to D; () = columns stay as they are. Returns: (2, D) float32.
    """
    def present_rows():
        for first in range(0, len(raw), ROWS):
            rows = raw[first:first + ROWS]
            yield rows[~np.isnan(rows[:, 0])]

    zeros = np.zeros(raw.shape[1])
    if not blocks:
        return np.stack([zeros, zeros + 1]).astype(np.float32)
    count = max(sum(map(len, present_rows())), 1)
    mean = sum((rows.sum(0, dtype=np.float64) for rows in present_rows()), zeros) / count
    squares = sum((((rows - mean) ** 2).sum(0) for rows in present_rows()), zeros)
    deviation = np.sqrt(squares / count)
    deviation[deviation < 1e-6] = 1.0  # a column that never changes says nothing
    return np.stack([mean, deviation * np.sqrt(np.repeat(blocks, blocks))]).astype(np.float32)


def write_scaled(path, raw, scaling):
    """Write the scaled rows of raw, (N, D) float32, to an .npy file, atomically."""
    temporary = path.with_name(path.name + ".tmp")
    scaled = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=raw.shape)
    for first in range(0, len(raw), ROWS):
        scaled[first:first + ROWS] = (raw[first:first + ROWS] - scaling[0]) / scaling[1]
    scaled.flush()
    os.replace(temporary, path)
