"""Should new tracks get a playlist code that is predicted from their other embeddings? The codes for that comparison.

    python benchmarks/predicted_playlist_codes.py --data-dir data/demo --out data/predicted
    python 05_infer.py predict --split valid --data-dir data/predicted --no-responses
    python 06_evaluate.py --split valid --data-dir data/predicted

A track in no training playlist has no playlist code, and the likelihood ranker compares such tracks only with each other. Here a
logistic regression on the semantic, metadata, lyrics and audio embeddings gives them one; the model stays the same.
Writes a folder with links to the data and the model, and the codes so completed. Prints how often the code of a
known track is predicted (3-fold cross-validation).
"""

import argparse
import warnings
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.preprocessing import StandardScaler

LINKED = ("tracks.jsonl", "playlists.jsonl", "annotations", "codebooks", "dialogues_train.jsonl", "dialogues_valid.jsonl",
          "dialogues_test.jsonl", "model")


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n")[0])
    parser.add_argument("--data-dir", type=Path, default=Path("data/demo"), help="folder of a finished run (default data/demo)")
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    args = parser.parse_args()
    if args.out.exists():
        raise SystemExit(f"--out {args.out} is there already; name a new folder, or remove it")
    codes = np.load(args.data_dir / "codes.npy")
    known = codes[:, 0] >= 0
    files = [args.data_dir / f"embeddings/{modality}.npy" for modality in ("semantic", "metadata", "lyrics", "audio")]
    scaled = [StandardScaler().fit_transform(rows) / np.sqrt(rows.shape[1]) for rows in map(np.load, files)]
    inputs = np.nan_to_num(np.concatenate(scaled, 1))  # each modality weighs the same; one that a track lacks is at its mean
    model = LogisticRegression(C=30, max_iter=500)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # some codes have fewer than three tracks
        right = cross_val_score(model, inputs[known], codes[known, 0], cv=3).mean()
    print(f"{known.sum()} known tracks: {right:.1%} predicted; the most frequent code: {np.bincount(codes[known, 0]).max() / known.sum():.1%}")
    codes[~known, 0] = model.fit(inputs[known], codes[known, 0]).predict(inputs[~known])

    args.out.mkdir(parents=True)
    for name in LINKED:
        if (args.data_dir / name).exists():
            (args.out / name).symlink_to((args.data_dir / name).resolve())
    np.save(args.out / "codes.npy", codes)
    print(f"{(~known).sum()} new tracks have a playlist code in {args.out}; next: python 05_infer.py predict --split valid "
          f"--data-dir {args.out} --no-responses")


if __name__ == "__main__":
    main()
