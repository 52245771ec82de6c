"""What came of the codes: diagnostics, and the tracks that tell what a token means."""

import numpy as np

from common import data
from common.tokens import token_string

TINY = 3       # a cluster with fewer tracks teaches a token next to nothing
EXAMPLES = 5   # tracks kept per cluster
SHOWN = 3      # clusters per modality that are printed, and tracks of each
COLUMNS = ("clusters", "used", "dead", "tiny", "largest", "entropy_bits", "perplexity", "inertia",
           "missing_share")


def describe_codes(codes, distances, k):
    """Diagnostics of one modality.

    codes: (N,) int16, -1 where missing.
    distances: squared, to the own centroid, (N,) float64.
    k: number of clusters.
    Returns: dict. entropy_bits is that of the codes of the tracks that have the modality, at most
        log2(k). perplexity, 2^entropy, is the number of equally used codes with the same entropy.
    """
    counts = np.bincount(codes[codes >= 0], minlength=k)
    share = counts[counts > 0] / counts.sum()
    entropy = float(-(share * np.log2(share)).sum())
    return {
        "clusters": k,
        "used": int((counts > 0).sum()),
        "dead": int((counts == 0).sum()),
        "tiny": int(((counts > 0) & (counts < TINY)).sum()),
        "largest": int(counts.max()),
        "entropy_bits": round(entropy, 4),
        "perplexity": round(2**entropy, 2),
        "inertia": float(np.nansum(distances)),
        "missing_share": float((codes < 0).mean()),
    }


def describe_collisions(codes):
    """How well all codes together tell tracks apart. codes: (N, 5) int16.

    Returns: dict. unique_share: share of the tracks whose codes no other track has;
        largest_collision: number of tracks with the most common codes.
    """
    _, counts = np.unique(codes, axis=0, return_counts=True)
    return {"unique_share": float((counts == 1).sum() / len(codes)),
            "largest_collision": int(counts.max())}


def nearest_tracks(codes, distances, k, n=EXAMPLES):
    """For each of k codes, the rows of the n tracks nearest to its centroid: list of k arrays."""
    order = np.lexsort((distances, codes))  # by code, then by distance
    starts = np.searchsorted(codes[order], np.arange(k + 1))
    return [order[starts[code]:starts[code + 1]][:n] for code in range(k)]


def example_rows(modality, codes, nearest, tracks):
    """Lines of examples.jsonl. nearest: from `nearest_tracks`."""
    counts = np.bincount(codes[codes >= 0], minlength=len(nearest))
    return [{
        "modality": modality,
        "code": code,
        "token": token_string(modality, code),
        "n_tracks": int(counts[code]),
        "track_ids": [tracks[row]["track_id"] for row in rows],
        "tracks": [data.item_text(tracks[row], ("title", "artist")) for row in rows],
    } for code, rows in enumerate(nearest)]


def print_report(info, examples):
    """The diagnostics as a table, and what a few tokens of each modality mean."""
    print("\n" + f"{'modality':10s}" + "".join(f"{column:>14s}" for column in COLUMNS))
    for modality, row in info["modalities"].items():
        print(f"{modality:10s}" + "".join(f"{row[column]:14.6g}" for column in COLUMNS))
    print(f"\n{info['unique_share']:.1%} of {info['tracks']} tracks have five codes that no other "
          f"track has; {info['largest_collision']} tracks share the most common five\n")
    for modality in info["modalities"]:
        by_size = sorted((row for row in examples if row["modality"] == modality),
                         key=lambda row: -row["n_tracks"])
        for row in by_size[::max(len(by_size) // SHOWN, 1)][:SHOWN]:  # the largest and smaller ones
            print(f"{row['token']:20s}{row['n_tracks']:5d} tracks: "
                  f"{'; '.join(row['tracks'][:SHOWN])}")
