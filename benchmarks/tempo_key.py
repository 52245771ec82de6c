"""How often annotate/tempo_key.py is right about tempo and key, and how often with other standard choices.

    python benchmarks/tempo_key.py                                     (200 clips of the demo, whose tempi and keys are known)
    python benchmarks/tempo_key.py --labels audio/labels.csv           (your own: columns file, tempo_bpm, key; "148|74" are both right)

Tempo: within 4% of the truth; apart from these, octave errors (within 4% of its double, half, triple or third).
Key: tonic and mode, of those whose mode is known; and the tonic alone. Labels that say "doubtful" are left out.
The first line of each table is what the annotator does. Nothing is chosen by the machine: look, and judge.
"""

import argparse
import csv
import re
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))
from annotate.tempo_key import HOP, estimate_key, estimate_tempo
from common import data
from steps.extract_embeddings.librosa_features import KEY_PROFILES, LIBROSA_RATE, librosa, read_audio

TEMPERLEY = np.array([  # Temperley 1999, "What's key for key?": profiles as in KEY_PROFILES
    [5.0, 2.0, 3.5, 2.0, 4.5, 4.0, 2.0, 4.5, 2.0, 3.5, 1.5, 4.0],
    [5.0, 2.0, 3.5, 4.5, 2.0, 4.0, 2.0, 4.5, 3.5, 2.0, 1.5, 4.0]])
TEMPO_CHOICES = [(HOP, 120), (512, 120), (HOP, 100), (HOP, 140)]  # hop in samples, prior in BPM
KEY_CHOICES = [(chroma, profiles) for profiles in ("Krumhansl", "Temperley") for chroma in ("chroma_cqt", "chroma_cens", "chroma_stft")]
PROFILES = {"Krumhansl": KEY_PROFILES, "Temperley": TEMPERLEY}


def read_labels(path):
    """Yield (path of the audio, tuple of right tempi, key or None) of a CSV file; audio lies beside it."""
    with open(path, newline="") as f:
        for row in csv.DictReader(f):
            yield path.parent / row["file"], tuple(map(float, filter(None, row["tempo_bpm"].split("|")))), row["key"]


def read_catalogue(data_dir, limit):
    """The same of a seeded draw of tracks that have audio, tempo and key, as tracks.jsonl has them: no annotation is laid over."""
    known = [row for _, row in data.read_jsonl(data_dir / "tracks.jsonl", "python 00_prepare_data.py demo")
             if row["audio_path"] and row["tempo"] and row["key"]]
    for i in np.random.default_rng(0).permutation(len(known))[:limit or None]:
        yield data_dir / known[i]["audio_path"], (known[i]["tempo"],), known[i]["key"]


def judge_tempo(tempo, truths):
    """"right", "octave" or "wrong"; tempo: BPM or None, truths: BPM, each of them right."""
    for verdict, factors in (("right", (1,)), ("octave", (2, 1 / 2, 3, 1 / 3))):
        if tempo and any(abs(tempo / (truth * factor) - 1) <= 0.04 for truth in truths for factor in factors):
            return verdict
    return "wrong"


def split_key(label):
    """"G# minor", "E:minor (chord)" -> (tonic, mode); "C (pitch)" -> ("C", None); doubtful or no label -> None."""
    found = re.match(r"([A-G][#b]?)[: ]?(major|minor)?", label or "")
    return None if not found or "doubtful" in label else found.groups()


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    parser.add_argument("--labels", type=Path, default=None, help="a CSV file; without it, the tracks of --data-dir")
    parser.add_argument("--data-dir", type=Path, default=Path("data/demo"), help="folder of the data (default data/demo)")
    parser.add_argument("--seconds", type=float, default=30.0, help="how much of a clip is heard, from its middle (default 30; 0 = all)")
    parser.add_argument("--limit", type=int, default=200, help="clips of --data-dir (default 200; 0 = all)")
    args = parser.parse_args()
    tempi, keys = {choice: [] for choice in TEMPO_CHOICES}, {choice: [] for choice in KEY_CHOICES}
    for path, truths, label in tqdm(list(read_labels(args.labels) if args.labels else read_catalogue(args.data_dir, args.limit))):
        samples, key = read_audio(path, LIBROSA_RATE, args.seconds), split_key(label)
        for hop, prior in TEMPO_CHOICES if truths else ():
            tempi[hop, prior].append(judge_tempo(estimate_tempo(samples, LIBROSA_RATE, hop, prior), truths))
        for chroma, profiles in KEY_CHOICES if key else ():
            found = estimate_key(samples, LIBROSA_RATE, getattr(librosa.feature, chroma), PROFILES[profiles])
            keys[chroma, profiles].append((found.split(), key))

    for (hop, prior), verdicts in tempi.items():
        print(f"tempo  hop {hop:3d}, prior {prior} BPM   {verdicts.count('right'):3d} of {len(verdicts)} within 4%, "
              f"{verdicts.count('octave')} octave errors, {verdicts.count('wrong')} wrong")
    for (chroma, profiles), pairs in keys.items():
        with_mode = [(found, key) for found, key in pairs if key[1]]
        print(f"key    {chroma:11s}, {profiles:9s}   {sum(found == list(key) for found, key in with_mode):3d} of {len(with_mode)} keys, "
              f"tonic {sum(found[0] == key[0] for found, key in pairs)} of {len(pairs)}")


if __name__ == "__main__":
    main()
