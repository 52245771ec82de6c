"""CLAP (Wu et al. 2023) for audio: vectors that can be compared with those of texts.

Used by 01_extract_embeddings.py and by baselines/clap.py, which has the text side. Audio is heard
in windows of 10 s, one by one: transformers' feature extractor would crop longer audio at random.
"""

import numpy as np
import torch

from common.models import refuse_bad_model
from steps.extract_embeddings.librosa_features import AUDIO_SECONDS, read_windows

MEND = ("Accepted: the folder of a CLAP model, or its Hugging Face id. Get one with: "
        "hf download laion/larger_clap_music --local-dir larger_clap_music")


def load_clap(name, device, flag="--clap-model"):
    """(model, tokenizer, feature extractor). Raises SystemExit: files are missing, or no CLAP."""
    from transformers import AutoConfig, AutoTokenizer, ClapFeatureExtractor, ClapModel
    from transformers.utils import logging
    logging.disable_progress_bar()
    with refuse_bad_model(flag, name, MEND):
        config = AutoConfig.from_pretrained(name, trust_remote_code=False) if name else None
        if not config or config.model_type != "clap":
            raise ValueError("not a CLAP model.")
        model = ClapModel.from_pretrained(name, trust_remote_code=False, use_safetensors=True,
                                          dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        extractor = ClapFeatureExtractor.from_pretrained(name, trust_remote_code=False)
    return model.to(device).eval(), tokenizer, extractor


def mel_windows(path, extractor, seconds=AUDIO_SECONDS):
    """One audio file -> a log-mel spectrogram per window, (W, channels, frames, mels) float32.

    The extractor crops nothing, since no window is too long. Raises ValueError as read_audio does.
    """
    rate = extractor.sampling_rate
    windows = read_windows(path, rate, seconds, extractor.nb_max_samples)
    return np.asarray(extractor(windows, sampling_rate=rate).input_features, np.float32)


def mean_of_windows(vectors):
    """The mean of the windows' unit vectors, at length 1: (W, D) -> (D,)."""
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.mean(0) / np.linalg.norm(vectors.mean(0))


def embed_windows(model, mels):
    """(W, channels, frames, mels) -> (W, D) float32."""
    mels = torch.from_numpy(mels).to(model.device)
    # No window is longer than 10 s: for longer audio, fusion checkpoints would mix in crops.
    longer = torch.zeros(len(mels), 1, dtype=torch.bool, device=model.device)
    with torch.inference_mode():
        return model.get_audio_features(mels, is_longer=longer).pooler_output.cpu().numpy()


def embed_tracks(tracks, model, batch_size):
    """What mel_windows returns, per track -> (n, D) float32, length 1. Tracks share batches."""
    mels = np.concatenate(tracks)
    ends = np.cumsum([len(windows) for windows in tracks])
    vectors = np.concatenate([embed_windows(model, mels[first:first + batch_size])
                              for first in range(0, len(mels), batch_size)])
    return np.stack([mean_of_windows(of_track) for of_track in np.split(vectors, ends[:-1])])
