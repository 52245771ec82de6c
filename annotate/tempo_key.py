"""Tempo and key of the tracks that lack them, by librosa.

Tempo: the peak of the autocorrelation of the onset strength (librosa.feature.tempo), with librosa's
    prior around 120 BPM. The spectrogram has a frame every 5.8 ms instead of librosa's 23 ms: at
    120 BPM neighbouring tempi are then 1.2% apart instead of 4.7%. It may be twice or half of what
    a listener taps.
Key: the mean chroma (of the constant-Q transform) is correlated with the profile of each of the 24
    keys (Krumhansl & Kessler 1982), and the best one wins. Music without a key gets one too.

benchmarks/tempo_key.py measures how well both do, and other choices.

Reads   tracks.jsonl, annotations/*.jsonl, the tracks' audio files
Writes  annotations/tempo_key.jsonl: track_id, tempo (BPM), key, or `failed`: why there are none

Demo        python annotate/tempo_key.py --data-dir data/try --overwrite --limit 50
            (after cp -r data/demo data/try: the demo's tracks have both, and this replaces them)
Full scale  python annotate/tempo_key.py --data-dir data/mpd --workers 32
            (not run; 30 s of music take one core 1.2 to 1.9 s)
A killed run goes on where it stopped when the same command is given again.
"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the repository

from annotate.shared import annotate, make_parser
from steps.extract_embeddings import librosa_features as features
from steps.extract_embeddings.librosa_features import LIBROSA_RATE, librosa

HOP = 128    # samples between two frames for the tempo: 5.8 ms
GROUP = 256  # tracks per line of the journal
TONICS = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
KEYS = [f"{tonic} {mode}" for mode in ("major", "minor") for tonic in TONICS]  # as key_strengths


def estimate_tempo(samples, rate, hop=HOP, start_bpm=120.0):
    """Tempo in BPM of (T,) samples at `rate` Hz; None without an onset. start_bpm: the prior's."""
    onsets = librosa.onset.onset_strength(y=samples, sr=rate, hop_length=hop)  # (frames,)
    if not onsets.any():
        return None
    return float(librosa.feature.tempo(onset_envelope=onsets, sr=rate, hop_length=hop,
                                       start_bpm=start_bpm)[0])


def estimate_key(samples, rate, chroma=librosa.feature.chroma_cqt, profiles=features.KEY_PROFILES):
    """Key of (T,) samples at `rate` Hz, such as "G# minor"; None if no note sounds."""
    mean = chroma(y=samples, sr=rate).mean(1)  # (12,)
    return KEYS[int(features.key_strengths(mean, profiles).argmax())] if mean.any() else None


def read_tempo_key(path, seconds):
    """{"tempo": BPM, "key": "G# minor"} of an audio file. Raises ValueError as read_audio does."""
    samples = features.read_audio(path, LIBROSA_RATE, seconds)
    tempo = estimate_tempo(samples, LIBROSA_RATE)
    return {"tempo": tempo and round(tempo, 1), "key": estimate_key(samples, LIBROSA_RATE)}


def main(argv=None):
    args = make_parser(__doc__.splitlines()[0], features.AUDIO_SECONDS).parse_args(argv)

    def load():  # there is no model: the workers do it all
        return partial(read_tempo_key, seconds=args.seconds), lambda group: [x for _, x in group]
    annotate("tempo_key", ("tempo", "key"), args, load, GROUP)


if __name__ == "__main__":
    main()
