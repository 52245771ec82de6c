"""CLAP (Wu et al. 2023) as a listener: audio -> a vector that can be compared with those of texts.

Used by 01_extract_embeddings.py and by baselines/clap.py, which has the text side. Audio is heard in windows of 10 s, each
for itself: transformers' feature extractor would crop longer audio at random.
"""

import numpy as np
import torch

from steps.extract_embeddings.librosa_features import AUDIO_SECONDS, cut_windows, read_audio


def resolve_clap(name, flag="--clap-model"):
    """The folder or Hugging Face id of a CLAP model that the user gave by `flag`. Raises SystemExit: it is not one."""
    from transformers import ClapConfig
    try:
        if not name:
            raise ValueError("a model is needed.")
        if ClapConfig.from_pretrained(name).model_type != "clap":
            raise ValueError("not a CLAP model.")
    except (OSError, ValueError) as error:
        raise SystemExit(f"{flag} {name}: {str(error).splitlines()[0]} Accepted: the folder of a CLAP model, or its Hugging "
                         f"Face id. Get one with: hf download laion/larger_clap_music --local-dir larger_clap_music")
    return name


def load_clap(name, device, flag="--clap-model"):
    """(model, tokenizer, feature extractor) of a folder or Hugging Face id. Raises SystemExit as resolve_clap does."""
    from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel
    from transformers.utils import logging
    logging.disable_progress_bar()
    resolve_clap(name, flag)
    try:
        return (ClapModel.from_pretrained(name, dtype=torch.float32).to(device).eval(),
                AutoTokenizer.from_pretrained(name, trust_remote_code=False), ClapFeatureExtractor.from_pretrained(name))
    except (OSError, ValueError) as error:
        raise SystemExit(f"{flag} {name}: {str(error).splitlines()[0]} Its folder is not whole; download it again with: "
                         f"hf download laion/larger_clap_music --local-dir larger_clap_music")


def mel_windows(path, extractor, seconds=AUDIO_SECONDS):
    """One audio file -> (W, channels, frames, mels) float32, a log-mel spectrogram a window.

    seconds: how much of it is heard, from its middle; 0 = all. Windows are no longer than the extractor's, so that it
    crops nothing at random; it fills shorter ones by itself. Raises ValueError as read_audio does.
    """
    windows = cut_windows(read_audio(path, extractor.sampling_rate, seconds), extractor.nb_max_samples)
    return np.asarray(extractor(windows, sampling_rate=extractor.sampling_rate).input_features, np.float32)


def mean_of_windows(vectors):
    """(W, D) -> (D,): the mean of the windows' unit vectors, length 1."""
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.mean(0) / np.linalg.norm(vectors.mean(0))


def embed_windows(model, mels):
    """(W, channels, frames, mels) -> (W, D) float32."""
    # is_longer: fusion checkpoints would mix crops of longer audio in; no window is longer
    longer = torch.zeros(len(mels), 1, dtype=torch.bool, device=model.device)
    with torch.inference_mode():
        vectors = model.get_audio_features(torch.from_numpy(mels).to(model.device), is_longer=longer).pooler_output
    return vectors.cpu().numpy()


def embed_tracks(tracks, model, batch_size):
    """Tracks, each what mel_windows returns -> (n, D) float32, length 1. Windows of several tracks share a batch."""
    mels, ends = np.concatenate(tracks), np.cumsum([len(found) for found in tracks])
    vectors = [embed_windows(model, mels[first:first + batch_size]) for first in range(0, len(mels), batch_size)]
    return np.stack([mean_of_windows(part) for part in np.split(np.concatenate(vectors), ends[:-1])])
