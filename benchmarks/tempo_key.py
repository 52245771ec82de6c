"""How often annotate/tempo_key.py is right, and how often other standard choices are.

    python benchmarks/tempo_key.py            200 clips of the demo, whose tempi and keys are known
    python benchmarks/tempo_key.py --labels audio/labels.csv            columns file, tempo_bpm, key

Tempo: within 4% of the truth; of "148|74" both are right. Octave errors are within 4% of twice,
half, three times or a third of it. Key: tonic and mode, if it is known; and the tonic alone. Labels
that say "doubtful" are left out. The first line of each table is what the annotator does.
"""

import argparse
import csv
import re
import sys
from itertools import product
from pathlib import Path

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the repository

from annotate.tempo_key import HOP, estimate_key, estimate_tempo
from common import data
from common.flags import add_shared
from steps.extract_embeddings import librosa_features as features

TEMPERLEY = np.array([  # Temperley 1999, "What's key for key?": profiles as in KEY_PROFILES
    [5.0, 2.0, 3.5, 2.0, 4.5, 4.0, 2.0, 4.5, 2.0, 3.5, 1.5, 4.0],
    [5.0, 2.0, 3.5, 4.5, 2.0, 4.0, 2.0, 4.5, 3.5, 2.0, 1.5, 4.0]])
TEMPO_CHOICES = [(HOP, 120), (512, 120), (HOP, 100), (HOP, 140)]  # hop in samples, prior in BPM
PROFILES = {"Krumhansl": features.KEY_PROFILES, "Temperley": TEMPERLEY}
KEY_CHOICES = list(product(PROFILES, ("chroma_cqt", "chroma_cens", "chroma_stft")))


def read_labels(path):
    """(audio path, tuple of right tempi, key or None) per line of a CSV file beside the audio."""
    with open(path, newline="") as f:
        for row in csv.DictReader(f):
            tempi = tuple(float(tempo) for tempo in row["tempo_bpm"].split("|") if tempo)
            yield path.parent / row["file"], tempi, row["key"]


def read_catalogue(data_dir, limit=200):
    """The same for a seeded draw of tracks.jsonl; annotations are not laid over it."""
    rows = data.read_jsonl(data_dir / "tracks.jsonl", "python 00_prepare_data.py demo")
    known = [row for _, row in rows if row["audio_path"] and row["tempo"] and row["key"]]
    for i in np.random.default_rng(0).permutation(len(known))[:limit]:
        yield data_dir / known[i]["audio_path"], (known[i]["tempo"],), known[i]["key"]


def judge_tempo(tempo, truths):
    """"right", "octave" or "wrong". tempo: BPM or None. truths: BPM, each of them right."""
    for verdict, factors in (("right", (1,)), ("octave", (2, 1 / 2, 3, 1 / 3))):
        for truth, factor in product(truths, factors):
            if tempo and abs(tempo / (truth * factor) - 1) <= 0.04:
                return verdict
    return "wrong"


def split_key(label):
    """(tonic, mode or None) of "G# minor", "E:minor (chord)" or "C (pitch)"; None if doubtful."""
    match = re.match(r"([A-G][#b]?)[: ]?(major|minor)?", label or "")
    return None if not match or "doubtful" in label else match.groups()


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    add_shared(parser, "data-dir")
    parser.add_argument("--labels", type=Path, help="CSV (default: 200 tracks of --data-dir)")
    args = parser.parse_args()
    rate = features.LIBROSA_RATE
    clips = read_labels(args.labels) if args.labels else read_catalogue(args.data_dir)
    tempi = {choice: [] for choice in TEMPO_CHOICES}  # verdicts
    keys = {choice: [] for choice in KEY_CHOICES}     # pairs (estimate, truth) of (tonic, mode)
    for path, truths, label in tqdm(list(clips)):
        samples = features.read_audio(path, rate)
        key = split_key(label)
        for hop, prior in TEMPO_CHOICES if truths else ():
            tempo = estimate_tempo(samples, rate, hop, prior)
            tempi[hop, prior].append(judge_tempo(tempo, truths))
        for profiles, chroma in KEY_CHOICES if key else ():
            function = getattr(features.librosa.feature, chroma)
            estimate = estimate_key(samples, rate, function, PROFILES[profiles])
            keys[profiles, chroma].append((tuple(estimate.split()), key))

    for (hop, prior), verdicts in tempi.items():
        print(f"tempo  hop {hop:3d}, prior {prior} BPM   {verdicts.count('right'):3d} of "
              f"{len(verdicts)} within 4%, {verdicts.count('octave')} octave errors, "
              f"{verdicts.count('wrong')} wrong")
    for (profiles, chroma), pairs in keys.items():
        with_mode = [estimate == key for estimate, key in pairs if key[1]]
        tonics = [estimate[0] == key[0] for estimate, key in pairs]
        print(f"key    {chroma:11s}, {profiles:9s}   {sum(with_mode):3d} of {len(with_mode)} keys, "
              f"tonic {sum(tonics)} of {len(tonics)}")


if __name__ == "__main__":
    main()
