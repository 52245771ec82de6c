"""The audio encoders that 01_extract_embeddings.py can choose from. A new one is a branch here."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from steps.extract_embeddings.librosa_features import BLOCKS, read_features, read_windows

# musicfm and clap need torch, and are imported where they are used.

AUDIO_ENCODERS = ("librosa", "musicfm", "clap")


class AudioEncoder(NamedTuple):
    read: Callable    # path -> a sound, in a worker; a ValueError says why the file cannot be used
    encode: Callable  # list of sounds -> (n, dim) float32, in the main process
    dim: int
    blocks: tuple     # sizes of the blocks of columns that weigh the same (see column_scaling)
    chunk: int        # tracks per chunk; a killed run loses one chunk at most


def check_audio_encoder(name, model, layer):
    """Raises SystemExit: --audio-model or --audio-layer does not fit --audio-encoder."""
    if name == "musicfm":
        from steps.extract_embeddings.musicfm import resolve_musicfm
        resolve_musicfm(model)
    elif name == "clap":
        from steps.extract_embeddings.clap import resolve_clap
        resolve_clap(model, "--audio-model")
    elif model:
        raise SystemExit(f"--audio-model {model}: --audio-encoder {name} takes none; musicfm and "
                         f"clap do")
    if layer is not None and (name != "musicfm" or not 0 <= layer <= 12):
        raise SystemExit(f"--audio-layer {layer}: only musicfm has layers to choose from, 0 to 12")


def load_audio_encoder(name, model, layer, seconds, batch_size, device):
    """The AudioEncoder of a name in AUDIO_ENCODERS. seconds: of a track that are heard; 0 = all."""
    if name == "librosa":
        read = partial(read_features, seconds=seconds)
        return AudioEncoder(read, np.stack, sum(BLOCKS), BLOCKS, 256)
    if name == "musicfm":
        from steps.extract_embeddings import musicfm
        loaded = musicfm.load_musicfm(model, 7 if layer is None else layer, device)
        read = partial(read_windows, rate=musicfm.RATE, seconds=seconds, size=musicfm.WINDOW,
                       least=musicfm.SHORTEST)
        encode = partial(musicfm.embed_tracks, model=loaded, batch_size=batch_size)
        return AudioEncoder(read, encode, musicfm.DIM, (musicfm.DIM,), 64)
    from steps.extract_embeddings import clap
    loaded, _, extractor = clap.load_clap(model, device, "--audio-model")
    read = partial(clap.mel_windows, extractor=extractor, seconds=seconds)
    encode = partial(clap.embed_tracks, model=loaded, batch_size=batch_size)
    return AudioEncoder(read, encode, loaded.config.projection_dim, (), 64)  # rows have length 1
