"""01: five embeddings a track, one for each modality (paper, section 2.1).

    playlist   item2vec: skip-gram over the training playlists, the window covering the playlist
    semantic   the tags, joined ("rainy, piano"), through a text encoder
    metadata   "title by artist from album (year)", through the same text encoder
    lyrics     the lyrics, through the same text encoder
    audio      librosa features, MusicFM (as in the paper) or CLAP

02_quantize.py compares rows by Euclidean distance, so each modality is written in the form in which
that distance is meaningful: playlist, text and CLAP's rows have length 1 (their distance orders as the
cosine does), the columns of librosa and MusicFM are standardised. A track that lacks a modality has a
row of NaN: no tags, no lyrics, audio that cannot be read, no training playlist with a second track in
it (nothing to learn from).

Validation and test playlists are never looked at. The mean and deviation that standardise audio are
those of all tracks' audio (no label, no playlist); audio_scaling.npy keeps them for new tracks.

A killed run goes on with the chunks of tracks that are not on disk and ends in the same bytes (item2vec has
no chunks and starts again). Audio files are known by path: after changing one, use --no-resume.

Under torchrun each process makes its share of the chunks, on a GPU of its own where there are several; all write
into one memory-mapped file. item2vec is made by the first alone, on the CPU, and last: --modalities playlist
beforehand and the other four with --no-resume keep the GPUs from waiting for it.

Reads   tracks.jsonl, annotations/*.jsonl, playlists.jsonl, the tracks' audio files
Writes  embeddings/<modality>.npy (N, D) float32, embeddings/audio_scaling.npy (2, D),
        embeddings/audio_failed.jsonl (audio that could not be used, and why)

Demo        python 01_extract_embeddings.py
Full scale  torchrun --nproc-per-node 8 01_extract_embeddings.py --data-dir data/mpd --text-encoder nvidia/NV-Embed-v2 \
                --audio-encoder musicfm --audio-model pretrained_msd.pt --workers 64 --epochs 10 --item2vec-share 0.1 \
                --item2vec-workers 16
            One GPU: python in torchrun's place, without --nproc-per-node
            A lighter text encoder: --text-encoder Qwen/Qwen3-Embedding-0.6B --pooling last
The full-scale commands were not run: the checkpoints could not be had where this was written.
"""

import argparse
import multiprocessing
import os
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Callable, NamedTuple

import numpy as np

from common import data, runs
from common.process import agree, current_process, end_process, resolve_device, start_process
from common.tokens import MODALITIES
from steps.extract_embeddings.audio_workers import start_worker, try_read
from steps.extract_embeddings.chunks import check_one_machine, fill_in_chunks, forget_progress, is_finished
from steps.extract_embeddings.item2vec import item2vec
from steps.extract_embeddings.librosa_features import AUDIO_SECONDS, read_features, read_windows
from steps.extract_embeddings.text import embed_texts, resolve_text_encoder, load_text_encoder

# torch, transformers and gensim are imported where they are used: each audio worker starts
# this file again, and would load them all.

NAME = "01_extract_embeddings"
TEXT_MODALITIES = ("semantic", "metadata", "lyrics")
AUDIO_ENCODERS = ("librosa", "musicfm", "clap")
TEXT_CHUNK = 2048                    # tracks that a killed run makes again at most, and that a process makes at a time
ROWS = 8192                          # of an array that are in memory at once


# ---------------------------------------------------------------- texts

def track_text(track, modality):
    """What the text encoder reads of a track: str, or None if the track lacks the modality."""
    if modality == "semantic":
        return ", ".join(track["tags"]) or None
    if modality == "metadata":
        return data.item_text(track, ("title", "artist", "album", "year")) or None
    return track["lyrics"] or None


# ---------------------------------------------------------------- audio

class AudioEncoder(NamedTuple):
    read: Callable       # in a worker process: path -> what `encode` takes a list of; a ValueError says why the file is no use
    encode: Callable     # in this process: such a list -> (n, dim) float32
    dim: int
    blocks: tuple        # sizes, of sum dim, of the blocks of columns that shall weigh the same; () = rows stay as they are
    chunk: int           # as TEXT_CHUNK


def check_audio_encoder(name, model, layer):
    """--audio-model and --audio-layer, known to fit --audio-encoder. Raises SystemExit: they do not."""
    if name == "musicfm":
        from steps.extract_embeddings.musicfm import resolve_musicfm
        resolve_musicfm(model)
    elif name == "clap":
        from steps.extract_embeddings.clap import resolve_clap
        resolve_clap(model, "--audio-model")
    elif model:
        raise SystemExit(f"--audio-model {model}: --audio-encoder {name} takes none; {' and '.join(AUDIO_ENCODERS[1:])} do")
    if layer is not None and (name != "musicfm" or not 0 <= layer <= 12):
        raise SystemExit(f"--audio-layer {layer}: only musicfm has layers to choose from, 0 to 12")


def load_audio_encoder(name, model, layer, seconds, batch_size, device):
    """The AudioEncoder of a name in AUDIO_ENCODERS; a new one is a branch here. seconds: how much of a track is heard."""
    if name == "musicfm":
        from steps.extract_embeddings import musicfm
        heard = musicfm.load_musicfm(model, 7 if layer is None else layer, device)
        read = partial(read_windows, rate=musicfm.RATE, seconds=seconds, size=musicfm.WINDOW, least=musicfm.SHORTEST)
        encode = partial(musicfm.embed_tracks, model=heard, batch_size=batch_size)
        return AudioEncoder(read, encode, musicfm.DIM, (musicfm.DIM,), 64)
    if name == "clap":
        from steps.extract_embeddings import clap
        heard, _, extractor = clap.load_clap(model, device, "--audio-model")
        dim = heard.config.projection_dim
        return AudioEncoder(partial(clap.mel_windows, extractor=extractor, seconds=seconds),
                            partial(clap.embed_tracks, model=heard, batch_size=batch_size), dim, (), 64)
    return AudioEncoder(partial(read_features, seconds=seconds), np.stack, 155, (84, 43, 28), 256)


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


def present_rows(array):
    """Yield the rows of an (N, D) array that are not NaN, ROWS at a time at most."""
    for first in range(0, len(array), ROWS):
        rows = array[first:first + ROWS]
        yield rows[~np.isnan(rows[:, 0])]


# ---------------------------------------------------------------- files

def write_texts(folder, modality, tracks, encoder, pooling, batch_size):
    """embeddings/<modality>.npy of a text modality. encoder: what load_text_encoder returns."""
    tokenizer, model, max_tokens = encoder

    def encode(rows):
        texts = [track_text(track, modality) for track in tracks[rows]]
        vectors, cut = embed_texts(texts, tokenizer, model, max_tokens, pooling, batch_size)
        return vectors, [tracks[rows.start + i]["track_id"] for i in cut]

    part, cut = fill_in_chunks(folder, modality, (len(tracks), model.config.hidden_size), TEXT_CHUNK, encode)
    if current_process()[0] == 0:
        os.replace(part, folder / f"{modality}.npy")
        print(f"{modality}: {len(cut)} texts were longer than {max_tokens} tokens and cut there")


def write_audio(folder, tracks, data_dir, encoder, workers):
    """embeddings/audio.npy, audio_scaling.npy and audio_failed.jsonl. encoder: an AudioEncoder."""

    def start(rows):
        """The rows, those of them that have a file, and try_read's results for these, which workers now begin to make."""
        audible = [i for i in range(rows.start, rows.stop) if tracks[i]["audio_path"]]
        paths = [str(Path(data_dir) / tracks[i]["audio_path"]) for i in audible]
        return rows, audible, pool.map(try_read, [encoder.read] * len(paths), paths)

    def encode(begun):
        rows, audible, found = begun
        vectors, usable, heard, failed = np.full((rows.stop - rows.start, encoder.dim), np.nan, np.float32), [], [], []
        for i, (sound, reason) in zip(audible, found):
            if sound is None:
                failed.append({"track_id": tracks[i]["track_id"], "audio_path": tracks[i]["audio_path"], "reason": reason})
            else:
                usable.append(i - rows.start)
                heard.append(sound)
        if usable:
            vectors[usable] = encoder.encode(heard)
        return vectors, failed

    # spawn, not fork: a forked process may hang in a library that was running threads
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), start_worker) as pool:
        part, failed = fill_in_chunks(folder, "audio", (len(tracks), encoder.dim), encoder.chunk, encode, start)
    if current_process()[0] == 0:
        data.write_jsonl(folder / "audio_failed.jsonl", failed)
        scale_audio(folder, part, encoder)
        print(f"audio: {sum(not track['audio_path'] for track in tracks)} tracks have no audio_path; {len(failed)} files could "
              f"not be used {dict(Counter(row['reason'] for row in failed)) or ''}")


def scale_audio(folder, part, encoder):
    """audio.npy, which is the part scaled, and audio_scaling.npy."""
    raw = np.load(part, mmap_mode="r")
    scaling = scaling_of(raw, encoder.blocks) if encoder.blocks else np.repeat(np.float32([[0], [1]]), encoder.dim, axis=1)
    scaled = np.lib.format.open_memmap(folder / "audio.npy.tmp", mode="w+", dtype=np.float32, shape=raw.shape)
    for first in range(0, len(raw), ROWS):
        scaled[first:first + ROWS] = (raw[first:first + ROWS] - scaling[0]) / scaling[1]
    scaled.flush()
    data.save_npy(folder / "audio_scaling.npy", scaling)
    os.replace(folder / "audio.npy.tmp", folder / "audio.npy")
    part.unlink()


def training_rows(data_dir, tracks):
    """The training playlists: list of int32 arrays of track rows."""
    row_of = {track["track_id"]: row for row, track in enumerate(tracks)}
    return [np.array([row_of[t] for t in playlist["track_ids"]], np.int32)
            for playlist in data.load_playlists(data_dir, row_of) if playlist["split"] == "train"]


def write_playlist(folder, training, n_tracks, dim, epochs, seed, workers, share):
    """embeddings/playlist.npy, from the training playlists only."""
    print(f"playlist: item2vec on {len(training)} training playlists with {sum(map(len, training))} tracks")
    data.save_npy(folder / "playlist.npy", item2vec(training, n_tracks, dim, epochs, seed, workers, share))
    data.write_jsonl(folder / "playlist.progress.jsonl", [{"first": 0, "stop": n_tracks, "notes": []}])


def check_not_brought(data_dir, chosen):
    """Raises SystemExit: embeddings that came with the data and are still as 00_prepare_data.py left them."""
    left = (runs.read_run(data_dir, "00_prepare_data") or {}).get("outputs", {})
    brought = [m for m in chosen if (path := data_dir / "embeddings" / f"{m}.npy").is_file()
               and left.get(f"embeddings/{m}.npy") == runs.file_hash(path)]
    if brought:
        others = " ".join(m for m in chosen if m not in brought)
        raise SystemExit(f"{data_dir}/embeddings: {', '.join(brought)} came with the data. Leave 01 out: python 02_quantize.py "
                         f"--data-dir {data_dir}" + (f"; or make only the others: --modalities {others}" if others else "")
                         + "; or replace them: --no-resume")


# ---------------------------------------------------------------- main

def parse_args(argv=None):
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data-dir", type=Path, default=Path("data/demo"), help="folder of the data (default data/demo)")
    add("--modalities", nargs="+", choices=MODALITIES, default=list(MODALITIES), help="which to make (default all five); to "
        "choose others than last time, add --no-resume: it replaces only the chosen ones")
    add("--text-encoder", default="minilm", help="minilm (default), a Hugging Face id, or a folder")
    add("--pooling", choices=("mean", "cls", "last"), default="mean", help="text vector: the mean of the token vectors "
        "(default; also for NV-Embed), the first or the last; the model's card says which")
    add("--batch-size", type=int, default=64, help="texts a batch (default 64)")
    add("--audio-encoder", choices=AUDIO_ENCODERS, default="librosa", help="default librosa; the others need --audio-model")
    add("--audio-model", default=None, help="of musicfm: the file pretrained_msd.pt or pretrained_fma.pt; of clap: a folder or "
        "a Hugging Face id")
    add("--audio-layer", type=int, default=None, help="of musicfm, 0 to 12 (default 7)")
    add("--audio-seconds", type=float, default=AUDIO_SECONDS, help="how much of a track is heard, from its middle (default 30; "
        "0 = all). musicfm hears windows of up to 30 s, clap of 10 s; their mean counts")
    add("--audio-batch-size", type=int, default=4, help="windows a batch of musicfm and clap (default 4)")
    add("--playlist-dim", type=int, default=128, help="dimensions of item2vec (default 128, as in the paper)")
    add("--epochs", type=int, default=40, help="passes of item2vec over the playlists (default 40, the best of 5 to 40 on the demo's "
        "validation playlists)")
    add("--item2vec-workers", type=int, default=1, help="threads of item2vec (default 1; more are faster but the result "
        "then differs from run to run)")
    add("--item2vec-share", type=float, default=None, help="share of a playlist's pairs of tracks that an epoch learns, drawn "
        "anew each time, above 0 and below 1; for sets whose whole epochs take hours (default: all pairs)")
    add("--workers", type=int, default=os.cpu_count(), help="processes that read audio, all of torchrun's together (default: "
        "as many as cores; the result does not depend on it)")
    add("--device", type=resolve_device, default="auto", help="of the text encoder, musicfm and clap: auto (default: cuda if "
        "there is one), cpu, cuda, ...")
    add("--seed", type=int, default=0, help="of item2vec (default 0)")
    add("--resume", action=argparse.BooleanOptionalAction, default=True, help="go on with what is half done (default); "
        "--no-resume starts afresh")
    args = parser.parse_args(argv)
    for name in ("batch_size", "audio_batch_size", "playlist_dim", "epochs", "item2vec_workers", "workers"):
        if getattr(args, name) < 1:
            raise SystemExit(f"--{name.replace('_', '-')} {getattr(args, name)}: a number from 1 on is expected")
    if args.item2vec_share is not None and not 0 < args.item2vec_share < 1:
        raise SystemExit(f"--item2vec-share {args.item2vec_share:g}: a number above 0 and below 1 is expected; all pairs: leave it out")
    if not (args.audio_seconds == 0 or args.audio_seconds >= 1):
        raise SystemExit(f"--audio-seconds {args.audio_seconds:g}: 0 (the whole file) or a number from 1 on is expected")
    return args


def main(argv=None):
    args = parse_args(argv)
    check_one_machine()
    rank, world, device = start_process(args.device)
    chosen = [m for m in MODALITIES if m in args.modalities]
    folder = args.data_dir / "embeddings"
    tracks = data.load_tracks(args.data_dir)
    if args.resume and rank == 0:
        check_not_brought(args.data_dir, chosen)
    training = training_rows(args.data_dir, tracks) if "playlist" in chosen and rank == 0 else None
    text_encoder = resolve_text_encoder(args.text_encoder, args.pooling) if set(chosen) & set(TEXT_MODALITIES) else None
    if "audio" in chosen:
        check_audio_encoder(args.audio_encoder, args.audio_model, args.audio_layer)

    reads = data.catalogue_files(args.data_dir)
    reads += ["playlists.jsonl"] * ("playlist" in chosen)
    writes = [f"embeddings/{m}.npy" for m in chosen]
    writes += ["embeddings/audio_scaling.npy", "embeddings/audio_failed.jsonl"] * ("audio" in chosen)
    run, state = runs.begin_run(args.data_dir, NAME, args, reads, writes, args.resume, record=False,
                                ignore=("data_dir", "resume", "device", "workers"))
    if agree(lambda: state) == "done":
        if rank == 0:
            print(f"{NAME}: already done, nothing changed")
        return end_process()
    folder.mkdir(exist_ok=True)
    if rank == 0:
        for modality in chosen if state == "new" else ():
            forget_progress(folder, modality)
        runs.record_run(run)  # only now: a run on record goes on with the chunks that it finds

    loaded = None
    for modality in sorted(chosen, key=lambda m: m == "playlist"):  # item2vec last: the others need not wait for it
        if agree(lambda: is_finished(folder, modality, len(tracks))):
            if rank == 0:
                print(f"{modality}: finished by an earlier try")
        elif modality == "playlist":
            if rank == 0:
                write_playlist(folder, training, len(tracks), args.playlist_dim, args.epochs, args.seed, args.item2vec_workers,
                               args.item2vec_share)
        elif modality == "audio":
            encoder = load_audio_encoder(args.audio_encoder, args.audio_model, args.audio_layer, args.audio_seconds,
                                         args.audio_batch_size, device)
            write_audio(folder, tracks, args.data_dir, encoder, max(args.workers // world, 1))
        else:
            loaded = loaded or load_text_encoder(text_encoder, device)
            write_texts(folder, modality, tracks, loaded, args.pooling, args.batch_size)
    end_process()
    if rank:
        return

    for modality in chosen:
        array = data.load_npy(folder / f"{modality}.npy", f"python {NAME}.py", len(tracks), np.float32)
        present = sum(len(rows) for rows in present_rows(array))
        print(f"  {modality:9s} {str(array.shape):>14s}  {present} tracks have it, {len(tracks) - present} do not")
    runs.finish_run(run)
    for modality in chosen:
        forget_progress(folder, modality)
    print(f"wrote {', '.join(writes)} in {args.data_dir}; next: python 02_quantize.py --data-dir {args.data_dir}")


if __name__ == "__main__":
    main()
