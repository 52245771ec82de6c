"""TalkPlayData's files: find them, read their rows, tell what they hold, copy the embeddings.

All are parquet files on the Hugging Face hub (talkpl-ai). JSON is read too: a list of rows, or one
row per line. What a file holds is told by its columns, the split of conversations by its name.
"""

import json
import os
import re
from collections import Counter
from pathlib import Path

import numpy as np

from common import data
from steps.prepare_data.foreign import note

SUFFIXES = (".parquet", ".json", ".jsonl")
JSON_FORM = "as one row per line, or as one list of rows"
MODALITY_OF = {"cf-bpr": "playlist", "attributes-": "semantic", "metadata-": "metadata",
               "lyrics-": "lyrics", "audio-": "audio"}  # by how a column's name begins


# ---------------------------------------------------------------- which files

def download(repo_id):
    """The folder of a data set on the hub, fetched if need be.

    Raises SystemExit: it is not to be had.
    """
    from huggingface_hub import snapshot_download
    try:
        return Path(snapshot_download(repo_id, repo_type="dataset",
                                      allow_patterns=[f"*{suffix}" for suffix in SUFFIXES]))
    except (OSError, ValueError) as error:
        raise SystemExit(f"--parts {repo_id}: neither a file or folder here, nor to be had from "
                         f"the hub ({str(error).splitlines()[0]}). Accepted: files, folders, ids "
                         f"such as talkpl-ai/TalkPlayData-2. Some need an account: hf auth login"
                         ) from None


def find_files(parts):
    """The files of all parts, each once: paths, sorted within a part.

    Raises SystemExit: a part without any.
    """
    paths = []
    for part in parts:
        path = Path(part) if Path(part).exists() else download(part)
        inside = [path] if path.is_file() else sorted(path.rglob("*"))
        inside = [p for p in inside if p.suffix in SUFFIXES and p.is_file()]
        if not inside:
            raise SystemExit(f"--parts {part}: no {', '.join(SUFFIXES)} in it; give files as the "
                             f"hub has them, or a folder above them")
        paths += inside
    return list(dict.fromkeys(paths))


# ---------------------------------------------------------------- rows

def open_parquet(path):
    import pyarrow
    from pyarrow import parquet
    try:
        return parquet.ParquetFile(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise SystemExit(f"{path}: not a whole parquet file ({str(error).splitlines()[0]}). "
                         f"Download it again") from None


def is_vector(kind):
    """Whether an Arrow type is a list of floats."""
    from pyarrow import types
    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return is_list and types.is_floating(kind.value_type)


def read_parquet(path, columns):
    """Yield the rows of a parquet file as dicts; lists of floats are arrays."""
    import pyarrow
    file = open_parquet(path)
    names = [name for name in file.schema_arrow.names if columns is None or name in columns]
    try:
        for batch in file.iter_batches(1024, columns=names):
            cells = [column.to_numpy(zero_copy_only=False) if is_vector(column.type)
                     else column.to_pylist() for column in batch.columns]
            for row in zip(*cells, strict=True):
                yield dict(zip(batch.schema.names, row, strict=True))
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise SystemExit(f"{path}: a damaged parquet file ({str(error).splitlines()[0]}). "
                         f"Download it again") from None


def read_rows(path, columns=None):
    """Yield the rows of a parquet or JSON file as dicts.

    columns: names of the wanted ones, those that a parquet file lacks left out; None for all.
    Raises SystemExit: the file cannot be read to its end.
    """
    if path.suffix == ".parquet":
        yield from read_parquet(path, columns)
        return
    with open(path, encoding="utf-8", errors="replace") as f:
        is_list = f.read(4096).lstrip().startswith("[")
    if not is_list:
        for _, row in data.read_jsonl(path, f"downloading it again (JSON is read {JSON_FORM})"):
            yield row
        return
    try:
        rows = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except json.JSONDecodeError as error:
        where = f"{path}:{error.lineno}"
        raise SystemExit(f"{where}: not JSON ({error.msg}). Download it again") from None
    for row in rows:
        yield row if isinstance(row, dict) else {}  # {}: counted as a row without an id


def columns_of(path):
    """The columns of a file; of JSON, the keys that any of its rows has."""
    if path.suffix == ".parquet":
        return open_parquet(path).schema_arrow.names
    return list(dict.fromkeys(key for row in read_rows(path) for key in row))


# ---------------------------------------------------------------- what a file holds

def modality_of(column, path):
    """The modality that a column of vectors is for, or None.

    A column called `embedding` says nothing: its path, with the data set's name, is asked instead.
    """
    if column == "embedding":
        column = "-".join(re.findall(r"TalkPlayData-Extra-([\w-]+)", str(path))[-1:])
    for start, modality in MODALITY_OF.items():
        if column.startswith(start):
            return modality
    return None


def split_of(path):
    """The split that a file's name, or else its folder's name, says.

    Raises SystemExit: neither names one.
    """
    for name in (path.stem, path.parent.name):
        if word := re.search(r"(?<![a-z])(train|valid|test)(ation)?(?![a-z])", name.lower()):
            return word[1]
    raise SystemExit(f"{path}: conversations, but of which split? Name the file or its folder so "
                     f"that it says train, validation or test")


def sort_files(paths, problems):
    """What the files hold, told by their columns.

    Returns: {"conversations": [(path, split)], "tracks": [path], "annotations": [path],
        "vectors": [(path, {column: modality})]}.
    Raises SystemExit: no conversations, or no tracks.
    """
    files = {"conversations": [], "tracks": [], "annotations": [], "vectors": []}
    unused = ""
    for path in paths:
        columns = columns_of(path)
        vectors = {column: modality_of(column, path) for column in columns}
        vectors = {column: modality for column, modality in vectors.items() if modality}
        if "conversations" in columns:
            files["conversations"].append((path, split_of(path)))
        elif {"track_id", "track_name"} <= set(columns):
            files["tracks"].append(path)
        elif "track_id" in columns and vectors:
            files["vectors"].append((path, vectors))
            for column in columns:
                if column not in {"track_id", *vectors}:
                    note(problems, "columns without a modality here", f"{path.name}, {column}")
        elif {"track_id", "caption"} <= set(columns):
            files["annotations"].append(path)
        else:
            note(problems, "files without conversations, tracks, vectors or captions", path.name)
            names = ", ".join(map(repr, columns[:4])) or "no rows"
            unused = f". Not used: {path.name}, which has {names} (JSON is read {JSON_FORM})"

    for kind, column, example in (("conversations", "conversations", "TalkPlayData-2"),
                                  ("tracks", "track_name", "TalkPlayData-2-Track-Metadata")):
        if not files[kind]:
            raise SystemExit(f"--parts: no file has {kind} (a column {column}); give such files "
                             f"too, as in talkpl-ai/{example}{unused}")
    return files


# ---------------------------------------------------------------- embeddings

def as_vector(value):
    """The value of a column as (D,) float64: (0,) where there is none, NaN if it is no vector."""
    try:
        vector = np.asarray([] if value is None else value, np.float64)
    except (TypeError, ValueError):
        vector = np.array(np.nan)
    return vector if vector.ndim == 1 else np.array([np.nan])


def read_vectors(sources, row_of, problems):
    """Yield (row, modality, vector, where) of all that is not empty and whose track is known."""
    for path, columns in sources:
        for number, row in enumerate(read_rows(path, ["track_id", *columns]), 1):
            where, track_id = f"{path.name}: row {number}", row.get("track_id")
            if not isinstance(track_id, str) or track_id not in row_of:
                note(problems, "vectors of tracks that the catalogue does not have", where)
                continue
            for column, modality in columns.items():
                vector = as_vector(row.get(column))
                if vector.size:
                    yield row_of[track_id], modality, vector, f"{where}, {column}"


def write_embeddings(folder, sources, track_ids, problems):
    """Write embeddings/<modality>.npy, with a row of NaN where a track has no vector.

    D is the size that most vectors of a modality have. The files are read twice.

    sources: list of (path, {column: modality}). track_ids: in row order.
    Returns: {modality: (shape, number of tracks that have it)}.
    """
    row_of = {track_id: row for row, track_id in enumerate(track_ids)}
    sizes = {}
    for _, modality, vector, _ in read_vectors(sources, row_of, {}):
        if 0 < (vector**2).sum() < np.inf:
            sizes.setdefault(modality, Counter())[len(vector)] += 1

    arrays = {}  # on disk: they may be larger than the memory
    folder.mkdir(parents=True, exist_ok=True)
    for modality, counts in sizes.items():
        shape = len(row_of), counts.most_common(1)[0][0]
        arrays[modality] = np.lib.format.open_memmap(folder / f"{modality}.npy.tmp", "w+",
                                                     np.float32, shape)
        arrays[modality][:] = np.nan

    for row, modality, vector, where in read_vectors(sources, row_of, problems):
        length = np.sqrt((vector**2).sum())
        if not 0 < length < np.inf:
            note(problems, "vectors of no length, or with values that are no numbers", where)
        elif len(vector) != arrays[modality].shape[1]:
            note(problems, "vectors of another size than most", where)
        elif not np.isnan(arrays[modality][row, 0]):
            note(problems, "vectors of a track that has one already", where)
        else:
            arrays[modality][row] = vector / length

    present = {}
    for modality, array in arrays.items():
        array.flush()
        present[modality] = (array.shape, int((~np.isnan(array[:, 0])).sum()))
        os.replace(folder / f"{modality}.npy.tmp", folder / f"{modality}.npy")
    return present
