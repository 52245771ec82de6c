"""TalkPlayData's files: find them, read their rows, tell what they hold, copy the embeddings.

All are parquet files on the Hugging Face hub (talkpl-ai). JSON is read too: a list of rows, or one
row per line. A file is recognised by its columns, the split of conversations by its name.
"""

import json
import re
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from common import data
from common.models import looks_like_path
from common.tokens import MODALITIES
from steps.prepare_data.foreign import note, print_problems

SUFFIXES = (".parquet", ".json", ".jsonl")
JSON_FORM = "as one row per line, or as one list of rows"
MODALITY_OF = {"cf-bpr": "playlist", "attributes-": "semantic", "metadata-": "metadata",
               "lyrics-": "lyrics", "audio-": "audio"}  # by how a column's name begins


# ---------------------------------------------------------------- which files

def find_files(parts):
    """The files of all parts, each once: paths, sorted within a part.

    Raises SystemExit: a part that neither is here nor can be had from the hub, or without any file.
    """
    paths = []
    for part in parts:
        path = Path(part)
        if not path.exists():
            if looks_like_path(part):
                raise SystemExit(f"--parts {part}: no such file or folder")
            from huggingface_hub import snapshot_download
            try:
                path = Path(snapshot_download(part, repo_type="dataset",
                                              allow_patterns=[f"*{suffix}" for suffix in SUFFIXES]))
            except (OSError, ValueError) as error:
                raise SystemExit(f"--parts {part}: neither a file or folder here, nor to be had "
                                 f"from the hub ({str(error).splitlines()[0]}). Some data sets "
                                 f"need an account: hf auth login") from None
        inside = [path] if path.is_file() else sorted(path.rglob("*"))
        inside = [p for p in inside if p.suffix in SUFFIXES and p.is_file()]
        if not inside:
            raise SystemExit(f"--parts {part}: no {', '.join(SUFFIXES)} in it")
        paths += inside
    return list(dict.fromkeys(paths))


# ---------------------------------------------------------------- rows

@contextmanager
def whole_parquet(path):
    """Raises SystemExit: within it, pyarrow finds that the file is cut off or damaged."""
    import pyarrow
    try:
        yield
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise SystemExit(f"{path}: not a whole parquet file ({str(error).splitlines()[0]}). "
                         f"Download it again") from None


def cells_of(column):
    """The cells of an Arrow column as a list; lists of floats as arrays, which is faster."""
    from pyarrow import types
    if hasattr(column.type, "value_type") and types.is_floating(column.type.value_type):
        return column.to_numpy(zero_copy_only=False)
    return column.to_pylist()


def read_rows(path, columns=None):
    """Yield the rows of a parquet or JSON file as dicts.

    columns: the wanted ones of a parquet file, None for all.
    Raises SystemExit: the file cannot be read to its end.
    """
    if path.suffix == ".parquet":
        from pyarrow import parquet
        with whole_parquet(path):
            for batch in parquet.ParquetFile(path).iter_batches(1024, columns=columns):
                for row in zip(*map(cells_of, batch.columns), strict=True):
                    yield dict(zip(batch.schema.names, row, strict=True))
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
        raise SystemExit(f"{path}:{error.lineno}: not JSON ({error.msg}). Download it again"
                         ) from None
    for row in rows:
        yield row if isinstance(row, dict) else {}  # {}: counted as a row without an id


def numbered_rows(paths, columns=None):
    """Yield ("file name: row number", row) of all rows. columns: as in `read_rows`."""
    for path in paths:
        for number, row in enumerate(read_rows(path, columns), 1):
            yield f"{path.name}: row {number}", row


def columns_of(path):
    """The columns of a file; of JSON, the keys that any of its rows has."""
    if path.suffix == ".parquet":
        from pyarrow import parquet
        with whole_parquet(path):
            return parquet.read_schema(path).names
    return list(dict.fromkeys(key for row in read_rows(path) for key in row))


# ---------------------------------------------------------------- what a file holds

def modality_of(column, path):
    """The modality that a column of vectors is for, or None.

    A column called `embedding` says nothing: its path, with the data set's name, is asked instead.
    """
    if column == "embedding":
        column = "-".join(re.findall(r"TalkPlayData-Extra-([\w-]+)", str(path))[-1:])
    return next((modality for start, modality in MODALITY_OF.items() if column.startswith(start)),
                None)


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
    """What the files hold, by their columns.

    Returns: {"conversations": [(path, split)], "tracks": [path], "annotations": [path],
        "vectors": [(path, {column: modality})]}.
    Raises SystemExit: no conversations, or no tracks.
    """
    files = {"conversations": [], "tracks": [], "annotations": [], "vectors": []}
    unused = ""
    for path in paths:
        columns = columns_of(path)
        vectors = {column: kind for column in columns if (kind := modality_of(column, path))}
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

    for kind, column in (("conversations", "conversations"), ("tracks", "track_name")):
        if not files[kind]:
            raise SystemExit(f"--parts: no file has {kind} (a column {column}); give such files "
                             f"too{unused}")
    return files


# ---------------------------------------------------------------- embeddings

def as_vector(value):
    """The value of a column as (D,) float64: (0,) where there is none, NaN if it is no vector."""
    try:
        vector = np.asarray([] if value is None else value, np.float64)
    except (TypeError, ValueError):
        vector = np.array(np.nan)
    return vector if vector.ndim == 1 else np.array([np.nan])


def read_vectors(sources, modality, row_of, problems):
    """Yield (row, vector of length 1, where) of all that is not empty and whose track is known."""
    for path, columns in sources:
        for column in (column for column, kind in columns.items() if kind == modality):
            for where, cells in numbered_rows([path], ["track_id", column]):
                where, track_id = f"{where}, {column}", str(cells.get("track_id"))
                vector = as_vector(cells.get(column))
                length = np.sqrt((vector**2).sum())
                if not vector.size:
                    continue
                if track_id not in row_of:
                    note(problems, "vectors of tracks that the catalogue does not have", where)
                elif not 0 < length < np.inf:
                    note(problems, "vectors of no length, or with values that are no numbers",
                         where)
                else:
                    yield row_of[track_id], (vector / length).astype(np.float32), where


def write_embeddings(folder, sources, track_ids, problems):
    """Write embeddings/<modality>.npy, with a row of NaN where a track has no vector.

    D is the size that most vectors of a modality have.

    sources: list of (path, {column: modality}). track_ids: in row order.
    Returns: the modalities that any track has.
    """
    row_of = {track_id: row for row, track_id in enumerate(track_ids)}
    made = []
    for modality in MODALITIES:
        rows_read = list(read_vectors(sources, modality, row_of, problems))
        if not rows_read:
            continue
        size = Counter(len(vector) for _, vector, _ in rows_read).most_common(1)[0][0]
        array = np.full((len(row_of), size), np.nan, np.float32)
        for row, vector, where in rows_read:
            if len(vector) != size:
                note(problems, "vectors of another size than most", where)
            elif not np.isnan(array[row, 0]):
                note(problems, "vectors of a track that has one already", where)
            else:
                array[row] = vector
        data.save_npy(folder / f"{modality}.npy", array)
        made.append(modality)
        missing = int(np.isnan(array[:, 0]).sum())
        print(f"  {modality:9s} {str(array.shape):>14s}  {len(array) - missing:,} tracks have it, "
              f"{missing:,} do not")
    print_problems(problems)
    return made
