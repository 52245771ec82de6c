"""Read and check the embeddings and the saved codebooks."""

from pathlib import Path

import numpy as np

from common import data


def load_embeddings(data_dir, modality, n_tracks):
    """Embeddings of one modality, checked: (N, D) float32 memory map, or None if no track has it.

    Raises SystemExit: other shape, dtype or row count, a row that is partly NaN, an infinite value.
    """
    path = Path(data_dir) / "embeddings" / f"{modality}.npy"
    made_by = f"python 01_extract_embeddings.py --data-dir {data_dir}"
    if not path.is_file():
        print(f"{modality}: {path} is not there; its column of codes is -1")
        return None
    array = data.load_npy(path, made_by, n_tracks, np.float32)
    present = 0
    for first in range(0, n_tracks, 8192):
        rows = array[first:first + 8192]
        missing = np.isnan(rows).all(1)
        bad = ~missing & ~np.isfinite(rows).all(1)
        if bad.any():
            raise SystemExit(f"{path}: row {first + bad.argmax()} has values that are not finite; "
                             f"a row is whole, or NaN throughout where the track lacks the "
                             f"modality. Make the file again with: {made_by}")
        present += (~missing).sum()
    if not present:
        print(f"{modality}: no track has it; its column of codes is -1")
        return None
    return array


def load_codebook(data_dir, modality, dim):
    """A saved codebook, (K, D) float32; None if the catalogue it is from lacked the modality.

    Raises SystemExit: its dimension is not that of the embeddings.
    """
    path = Path(data_dir) / "codebooks" / f"{modality}.npy"
    made_by = f"python 02_quantize.py --data-dir {data_dir}"
    if not path.is_file():
        print(f"{modality}: {path} is not there; its column of codes is -1")
        return None
    codebook = np.asarray(data.load_npy(path, made_by, dtype=np.float32))
    if codebook.shape[1] != dim:
        raise SystemExit(f"{path}: {codebook.shape[1]} dimensions, but embeddings/{modality}.npy "
                         f"has {dim}: another encoder made it. Fit new codebooks with: {made_by} "
                         f"--no-resume")
    return codebook


def saved_k(data_dir):
    """K of the saved codebooks. Raises SystemExit: there are none."""
    made_by = f"python 02_quantize.py --data-dir {data_dir} (--assign-only needs saved codebooks)"
    _, info = next(data.read_jsonl(Path(data_dir) / "codebooks" / "info.json", made_by))
    return info["k"]
