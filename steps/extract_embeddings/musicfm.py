"""MusicFM (Won, Hung & Le 2024; https://github.com/minzwon/musicfm, MIT): audio -> vectors of 1024.

Two convolutional blocks thin a mel spectrogram of 100 frames per second to 25 tokens per second,
which pass 12 conformer layers. The embedding of a track is the mean over time of one layer.
Parameters have the published names, so that pretrained_msd.pt and pretrained_fma.pt load as they
are. Not yet verified against them: the weights could not be had where this was written.
"""

import pickle
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import Wav2Vec2ConformerConfig
from transformers.models.wav2vec2_conformer import modeling_wav2vec2_conformer as conformer

from steps.extract_embeddings.librosa_features import librosa  # imported there under a lock

RATE = 24_000           # Hz
WINDOW = 30 * RATE      # samples: MusicFM has learnt from 30 s; longer audio is cut
SHORTEST = RATE         # samples: a rest shorter than this is left out
FFT, HOP, MELS = 2048, 240, 128
LAYERS, DIM = 12, 1024
# Mean and deviation of the log mel spectrograms (dB) of the audio that a checkpoint has learnt from
STATISTICS = {"msd": (6.768444971712967, 18.417922652295623),
              "fma": (3.0710578151459664, 20.999089814337626)}
DOWNLOAD = "hf download minzwon/MusicFM pretrained_msd.pt --local-dir musicfm"


class MelSpectrogram(nn.Module):
    """(B, T) samples -> (B, 128, T // 240) in dB, on HTK's mel scale."""

    def __init__(self):
        super().__init__()  # the checkpoint has both tables too
        filters = librosa.filters.mel(sr=RATE, n_fft=FFT, n_mels=MELS, htk=True, norm=None)
        self.mel_stft = nn.Module()
        self.mel_stft.spectrogram = nn.Module()
        self.mel_stft.spectrogram.register_buffer("window", torch.hann_window(FFT))
        self.mel_stft.mel_scale = nn.Module()
        self.mel_stft.mel_scale.register_buffer("fb", torch.tensor(filters.T))  # (1025, 128)

    def forward(self, samples):
        window = self.mel_stft.spectrogram.window
        spectrum = torch.stft(samples, FFT, HOP, window=window, pad_mode="reflect",
                              return_complex=True)  # (B, 1025, frames)
        power = spectrum.abs() ** 2
        power = power.transpose(1, 2) @ self.mel_stft.mel_scale.fb  # (B, frames, 128)
        return 10 * power.clamp(min=1e-10).log10().transpose(1, 2)[..., :-1]


class ResidualBlock(nn.Module):
    """Two convolutions beside a third, all 3 x 3: (B, C, F, T) -> (B, channels, F / 2, T / 2)."""

    def __init__(self, channels_in, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv3 = nn.Conv2d(channels_in, channels, 3, stride=2, padding=1)
        self.bn1, self.bn2, self.bn3 = (nn.BatchNorm2d(channels) for _ in range(3))

    def forward(self, x):
        straight = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(straight + self.bn3(self.conv3(x)))


class Subsampling(nn.Module):
    """(B, 128, frames) -> (B, frames / 4, dim)."""

    def __init__(self, channels, dim):
        super().__init__()
        self.conv = nn.Sequential(ResidualBlock(1, channels), ResidualBlock(channels, channels))
        self.linear = nn.Linear(channels * MELS // 4, dim)

    def forward(self, mel):
        x = self.conv(mel[:, None])  # (B, channels, 32, frames / 4)
        return self.linear(x.permute(0, 3, 1, 2).flatten(2))


class MusicFM(nn.Module):
    """All that a checkpoint has. The quantizer, `linear` and `cls_token` are for training only."""

    def __init__(self, statistics, dim=DIM, channels=512, heads=16, layers=LAYERS):
        super().__init__()
        self.statistics = statistics
        self.preprocessor_melspec_2048 = MelSpectrogram()
        self.quantizer_melspec_2048_0 = nn.Module()
        for name, rows in (("random_projection", 4 * MELS), ("codebook", 4096)):
            self.quantizer_melspec_2048_0.register_buffer(name, torch.zeros(rows, 16))
        self.conv = Subsampling(channels, dim)
        # The settings of facebook/wav2vec2-conformer-rope-large-960h-ft, MusicFM's base
        self.conformer = conformer.Wav2Vec2ConformerEncoder(Wav2Vec2ConformerConfig(
            hidden_size=dim, num_hidden_layers=layers, num_attention_heads=heads,
            intermediate_size=4 * dim, hidden_act="swish", position_embeddings_type="rotary",
            layerdrop=0.0, attn_implementation="sdpa"))
        self.linear = nn.Linear(dim, 4096)
        self.cls_token = nn.Parameter(torch.zeros(dim))

    def keep_layers(self, layer):
        """Make forward return a hidden state: 0 is what enters the conformer, 12 what leaves it."""
        if layer < len(self.conformer.layers):  # the last norm belongs to the last layer
            self.conformer.layers = self.conformer.layers[:layer]
            self.conformer.layer_norm = nn.Identity()
        return self

    def forward(self, samples):
        """(B, T) float32 at 24 kHz, all T real -> (B, tokens, dim)."""
        mean, deviation = self.statistics
        mel = (self.preprocessor_melspec_2048(samples) - mean) / deviation  # (B, 128, frames)
        return self.conformer(self.conv(mel)).last_hidden_state


def load_musicfm(path, layer, device):
    """MusicFM from pretrained_msd.pt or pretrained_fma.pt, up to a layer (see keep_layers)."""
    name = Path(path or "").name.lower()
    known = [statistics for audio, statistics in STATISTICS.items() if audio in name]
    if not known or not Path(path).is_file():
        raise SystemExit(f"--audio-model {path}: musicfm takes the file pretrained_msd.pt or "
                         f"pretrained_fma.pt; its name must say which. Get it with: {DOWNLOAD}")
    with torch.device("meta"):  # its weights come from the file
        model = MusicFM(known[0])
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        weights = {key.removeprefix("model."): value for key, value in saved.items()}
        model.load_state_dict(weights, strict=True, assign=True)
    except (RuntimeError, KeyError, TypeError, OSError, EOFError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:200]
        raise SystemExit(f"--audio-model {path}: not a checkpoint of MusicFM ({reason}). Get it "
                         f"with: {DOWNLOAD}") from None
    return model.keep_layers(layer).to(device).eval()


def embed_tracks(tracks, model, batch_size):
    """Lists of windows, (T,) float32 at 24 kHz, per track -> means of all tokens, (n, dim) float32.

    Windows of the same length share a batch: MusicFM takes no padding.
    """
    device = model.cls_token.device
    windows = [(row, window) for row, of_track in enumerate(tracks) for window in of_track]
    windows.sort(key=lambda pair: -len(pair[1]))  # longest first
    total = 0  # (n, dim) after the first batch
    n_tokens = np.zeros((len(tracks), 1))
    for _, same_length in groupby(windows, key=lambda pair: len(pair[1])):
        same_length = list(same_length)
        for first in range(0, len(same_length), batch_size):
            rows, samples = zip(*same_length[first:first + batch_size], strict=True)
            with torch.inference_mode():
                hidden = model(torch.from_numpy(np.stack(samples)).to(device))  # (B, tokens, dim)
            # np.add.at: a track may have several windows in the batch.
            sums = np.zeros((len(tracks), hidden.shape[2]))
            np.add.at(sums, list(rows), hidden.sum(1).cpu().numpy())
            np.add.at(n_tokens, list(rows), hidden.shape[1])
            total = total + sums
    return (total / n_tokens).astype(np.float32)
