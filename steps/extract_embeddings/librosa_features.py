"""Reading audio files, and the default audio encoder: statistics of timbre, harmony and rhythm.

The features are hand-made, by librosa. They run anywhere and can be understood, but say less than
the learnt ones of MusicFM and CLAP.
"""

import os
import tempfile
from pathlib import Path

from filelock import FileLock

# librosa compiles numba functions when it is first imported on a machine. Unoptimised code will do:
# 18 s of compiling instead of 29. The lock: two processes must not fill numba's folder of compiled
# functions at once, or every later use of it crashes (numba's issue 10128).
os.environ.setdefault("NUMBA_OPT", "0")
with FileLock(Path(tempfile.gettempdir()) / f"librosa-first-import-{os.getuid()}.lock"):
    import librosa.feature
    import librosa.onset

import numpy as np
import soundfile

AUDIO_SECONDS = 30.0               # default: at most this much of a track is heard, from its middle
SHORTEST_SECONDS = 0.5
MOST_SAMPLES = 2**28               # read at most, all channels: 1 GiB, 50 minutes of stereo
BLOCK = 4096                       # frames: a sample of each channel
LOWEST_RATE = 4_000                # Hz; of a file
HIGHEST_RATE = 384_000
LIBROSA_RATE = 22050               # Hz, for librosa_features
SILENCE = 1e-4                     # peak amplitude, where full scale is 1
CANCELLED = 0.05                   # the channels' mean, of the loudest channel: too little is left
LOUDEST = 1e10                     # above this it is no sound: the power spectrum would overflow
HOP = 512                          # samples between two frames of the spectrogram
TEMPI = np.geomspace(50, 220, 24)  # BPM
BLOCKS = (84, 43, 28)              # columns of librosa_features: timbre, harmony, rhythm
KEY_PROFILES = np.array([          # Krumhansl & Kessler 1982: how well each of 12 notes fits a key
    [6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88],   # C major
    [6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17]])  # C minor


def decode(path, most, size):
    """A file from its start until the data end, or `most` frames: (T, channels) float32.

    It is read in blocks of `size` frames. If one fails, those before it are returned; if there is
    none, the SoundFileError is raised.
    """
    blocks = []
    with soundfile.SoundFile(path) as f:
        try:
            while most > 0 and len(block := f.read(min(most, size), "float32", always_2d=True)):
                blocks.append(block)
                most -= len(block)
        except soundfile.SoundFileError:
            if not blocks:
                raise
        return np.concatenate(blocks or [np.zeros((0, f.channels), np.float32)])


def read_middle(path, seconds):
    """(the middle of an audio file, (T, channels) float32; its rate). Arguments as read_audio's.

    The length in a header may be missing or wrong. Where the middle that it promises is not there,
    the file is decoded from its start until the data end, and the middle of that is taken.
    """
    with soundfile.SoundFile(path) as f:
        rate = f.samplerate
        if not LOWEST_RATE <= rate <= HIGHEST_RATE:
            raise ValueError(f"sample rate {rate} Hz, not {LOWEST_RATE} to {HIGHEST_RATE}")
        most = MOST_SAMPLES // f.channels
        wanted = int(min(seconds * rate, most)) if seconds else most
        promised = min(f.frames, wanted)
        try:
            f.seek((f.frames - promised) // 2)
            samples = f.read(promised, "float32", always_2d=True)
            if len(samples) == promised:
                return samples, rate
        except soundfile.SoundFileError:
            pass

    try:
        samples = decode(path, most, most)  # at once, since MP3s suffer where blocks meet
    except soundfile.SoundFileError:
        samples = decode(path, most, BLOCK)  # FLACs end in an error, which costs the last block
    first = max(len(samples) - wanted, 0) // 2
    return samples[first:first + wanted], rate


def read_audio(path, rate, seconds=AUDIO_SECONDS):
    """The middle of an audio file, mono: (T,) float32 at `rate` Hz.

    seconds: at most this much is read; 0 = all, up to MOST_SAMPLES. Raises ValueError: why the file
    cannot be used.
    """
    if not Path(path).is_file():
        raise ValueError("file missing")
    try:
        channels, file_rate = read_middle(path, seconds)
    except soundfile.SoundFileError as error:
        raise ValueError(f"unreadable: {str(error).replace(str(path), 'the file')}") from None
    if len(channels) < SHORTEST_SECONDS * file_rate:
        raise ValueError(f"shorter than {SHORTEST_SECONDS} s")

    samples = channels.mean(1)
    peaks = np.abs(channels).max(0)
    if np.abs(samples).max() < CANCELLED * peaks.max():  # channels of opposite sign
        samples = channels[:, peaks.argmax()]
    if not np.isfinite(samples).all() or np.abs(samples).max() > LOUDEST:
        raise ValueError("samples that are not finite, or far too large")
    if np.abs(samples).max() < SILENCE:
        raise ValueError("silent")
    return librosa.resample(samples, orig_sr=file_rate, target_sr=rate, res_type="soxr_hq")


def cut_windows(samples, size, least=None):
    """(T,) samples -> list of windows of `size` samples.

    A shorter rest counts if it has `least` samples (default size / 2), or is all there is.
    """
    windows = [samples[first:first + size] for first in range(0, len(samples), size)]
    return [window for window in windows if len(window) >= (least or size / 2)] or windows


def read_windows(path, rate, seconds, size, least=None):
    """The windows of an audio file: list of (T,) float32. Raises ValueError as read_audio does."""
    return cut_windows(read_audio(path, rate, seconds), size, least)


def read_features(path, seconds=AUDIO_SECONDS):
    """The features of an audio file: (155,) float32. Raises ValueError as read_audio does."""
    return librosa_features(read_audio(path, LIBROSA_RATE, seconds), LIBROSA_RATE)


def librosa_features(samples, rate):
    """(T,) samples -> statistics of timbre (84), harmony (43), rhythm (28): (155,) float32."""
    def stats(x):
        return np.concatenate([x.mean(-1).ravel(), x.std(-1).ravel()])

    # Timbre: mean and deviation of 20 MFCCs, deviation of their slopes; mean and deviation of
    # spectral contrast (7 bands), centroid, rolloff, flatness, zero crossings and loudness.
    magnitude = np.abs(librosa.stft(samples, hop_length=HOP))  # (1025, frames)
    thinned = magnitude[:, ::2]  # every second frame is enough for statistics
    mel = librosa.power_to_db(librosa.feature.melspectrogram(S=magnitude**2, sr=rate))
    mfcc = librosa.feature.mfcc(S=mel, n_mfcc=20)
    timbre = [stats(mfcc), np.diff(mfcc).std(1),
              stats(librosa.feature.spectral_contrast(S=thinned, sr=rate)),
              stats(librosa.feature.spectral_centroid(S=thinned, sr=rate)),
              stats(librosa.feature.spectral_rolloff(S=thinned, sr=rate)),
              stats(np.log10(librosa.feature.spectral_flatness(S=thinned))),
              stats(librosa.feature.zero_crossing_rate(samples, hop_length=4 * HOP)),
              stats(librosa.amplitude_to_db(librosa.feature.rms(S=magnitude)))]

    # Harmony: mean chroma (12), its fit to the 24 keys, best major less best minor fit, tonnetz (6)
    chroma = librosa.feature.chroma_stft(S=magnitude**2, sr=rate, tuning=0.0)  # (12, frames)
    keys = key_strengths(chroma.mean(1))
    harmony = [chroma.mean(1), keys, [keys[:12].max() - keys[12:].max()],
               librosa.feature.tonnetz(chroma=chroma).mean(1)]

    # Rhythm: the tempogram at 24 tempi, log2 of the likeliest tempo, mean and deviation of the
    # onset strength, share of frames with an onset.
    onsets = librosa.onset.onset_strength(S=mel, sr=rate)  # (frames,)
    tempogram = librosa.feature.tempogram(onset_envelope=onsets, sr=rate, hop_length=HOP)
    tempogram = tempogram.mean(1)  # (384 lags,)
    tempo = librosa.feature.tempo(tg=tempogram[:, None], sr=rate, hop_length=HOP)
    peaks = librosa.util.localmax(onsets) & (onsets > onsets.mean() + onsets.std())
    lags = 60 * rate / (HOP * TEMPI)  # (24,) frames per beat
    rhythm = [np.interp(lags, np.arange(len(tempogram)), tempogram), np.log2(tempo),
              [onsets.mean(), onsets.std(), peaks.mean()]]
    return np.concatenate([*timbre, *harmony, *rhythm]).astype(np.float32)


def key_strengths(chroma, profiles=KEY_PROFILES):
    """Correlation of a chroma vector with the 24 keys: (24,), C to B major, then C to B minor.

    chroma: the strength of each note from C to B, (12,). profiles: of C major and C minor, (2, 12).
    """
    profiles = np.stack([np.roll(row, tonic) for row in profiles for tonic in range(12)])
    profiles = profiles - profiles.mean(1, keepdims=True)
    centred = chroma - chroma.mean()
    norms = np.linalg.norm(profiles, axis=1) * np.linalg.norm(centred)
    return profiles @ centred / (norms + 1e-9)
