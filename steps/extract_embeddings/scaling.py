"""Standardise the columns of an embedding that may be larger than memory."""

import os

import numpy as np

ROWS = 8192  # rows of an array that are in memory at once


def present_rows(array):
    """Yield the rows of an (N, D) array that are not NaN, at most ROWS at a time."""
    for first in range(0, len(array), ROWS):
        rows = array[first:first + ROWS]
        yield rows[~np.isnan(rows[:, 0])]


def column_scaling(raw, blocks):
    """Mean and divisor of each column, such that every block of columns has a total variance of 1.

    Without blocks of equal weight, 84 columns of timbre would drown 28 of rhythm in a distance.

    raw: (N, D) float32; rows of NaN are left out.
    blocks: sizes that sum to D; () = columns stay as they are.
    Returns: (2, D) float32; standardised rows are (raw - scaling[0]) / scaling[1].
    """
    zeros = np.zeros(raw.shape[1])
    if not blocks:
        return np.stack([zeros, zeros + 1]).astype(np.float32)
    count = max(sum(len(rows) for rows in present_rows(raw)), 1)
    mean = sum((rows.sum(0, dtype=np.float64) for rows in present_rows(raw)), zeros) / count
    squares = sum((((rows - mean) ** 2).sum(0) for rows in present_rows(raw)), zeros)
    deviation = np.sqrt(squares / count)
    deviation[deviation < 1e-6] = 1.0  # a column that never changes says nothing
    divisor = deviation * np.sqrt(np.repeat(blocks, blocks))
    return np.stack([mean, divisor]).astype(np.float32)


def write_scaled(path, raw, scaling):
    """Write the scaled rows of raw, (N, D) float32, to an .npy file, atomically."""
    temporary = path.with_name(path.name + ".tmp")
    scaled = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=raw.shape)
    for first in range(0, len(raw), ROWS):
        scaled[first:first + ROWS] = (raw[first:first + ROWS] - scaling[0]) / scaling[1]
    scaled.flush()
    os.replace(temporary, path)
