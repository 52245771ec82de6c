"""Audio files, read by worker processes (01, annotate/, baselines/clap.py)."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from common.process import end_with_parent
from steps.extract_embeddings.chunks import fill_in_chunks


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
    """Fill <name>.part.npy with a vector per track, in chunks (see fill_in_chunks).

    encoder: an AudioEncoder. A track without audio that can be read has a row of NaN.
    Returns: the path of the file and, in the first process, the failures: dicts {track_id,
    audio_path, reason}.
    """
    def start(rows):
        # The workers read this chunk while the one before it is encoded.
        audible = [i for i in range(rows.start, rows.stop) if tracks[i]["audio_path"]]
        results = start_reading(pool, encoder.read, data_dir, [tracks[i] for i in audible])
        return rows, audible, results

    def encode(started):
        rows, audible, results = started
        vectors = np.full((rows.stop - rows.start, encoder.dim), np.nan, np.float32)
        usable = []
        sounds = []
        failed = []
        for i, (sound, reason) in zip(audible, results, strict=True):
            if sound is None:
                track = tracks[i]
                failed.append({"track_id": track["track_id"], "audio_path": track["audio_path"],
                               "reason": reason})
            else:
                usable.append(i - rows.start)
                sounds.append(sound)
        if usable:
            vectors[usable] = encoder.encode(sounds)
        return vectors, failed

    with audio_pool(workers) as pool:
        shape = (len(tracks), encoder.dim)
        return fill_in_chunks(folder, name, shape, encoder.chunk, encode, start)
