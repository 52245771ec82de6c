"""01: five embeddings per track, one per modality (paper, section 2.1).

    semantic   the tags, joined ("rainy, piano"), through a text encoder
    metadata   "title by artist from album (year)", through the same text encoder
    lyrics     the lyrics, through the same text encoder
    audio      librosa features, MusicFM (as in the paper) or CLAP
    playlist   item2vec: skip-gram in which all tracks of a training playlist are neighbours

02_quantize.py compares rows by Euclidean distance. So the rows of the texts, of item2vec and of
CLAP have length 1: their distance orders tracks as the cosine does. The columns of librosa and
MusicFM are standardised, by the mean and deviation of all tracks; audio_scaling.npy keeps both for
new tracks. A track that lacks a modality has a row of NaN: it has no tags, no lyrics, no audio that
can be read, or no training playlist with a second track. Other playlists are never looked at.

A killed run goes on with the chunks of tracks that are not on disk yet (only item2vec has none).
Audio files are known by their paths: after changing one, use --no-resume.

Under torchrun each process makes its share of the chunks, on its own GPU if there are several. The
first one alone runs item2vec, on the CPU, at the end. So that no GPU waits for it, run --modalities
playlist first, then the others with --no-resume.

Reads   tracks.jsonl, annotations/*.jsonl, playlists.jsonl, the tracks' audio files
Writes  embeddings/<modality>.npy (N, D) float32, embeddings/audio_scaling.npy (2, D),
        embeddings/audio_failed.jsonl (audio that could not be used, and why)

Demo        python 01_extract_embeddings.py            (1 minute on two cores)
Full scale  torchrun --nproc-per-node 8 01_extract_embeddings.py --data-dir data/mpd \
                --text-encoder nvidia/NV-Embed-v2 --audio-encoder musicfm \
                --audio-model pretrained_msd.pt --workers 64 --epochs 10 --item2vec-share 0.1 \
                --item2vec-workers 16
            One GPU: python instead of torchrun --nproc-per-node 8
            A lighter text encoder: --text-encoder Qwen/Qwen3-Embedding-0.6B --pooling last
The full-scale commands were not run: the checkpoints could not be had where this was written.
"""

import argparse
import os
from collections import Counter

import numpy as np
from tqdm import tqdm

from common import data, runs
from common.flags import add_shared, check_ranges
from common.process import agree, current_process, end_process, start_process
from common.tokens import MODALITIES
from steps.extract_embeddings import audio, chunks
from steps.extract_embeddings.librosa_features import AUDIO_SECONDS
from steps.extract_embeddings.sentences import Sentences
from steps.extract_embeddings.text import embed_texts, load_text_encoder, resolve_text_encoder

# torch, transformers and gensim are imported in functions: audio workers start this file again.

NAME = "01_extract_embeddings"
TEXT_MODALITIES = ("semantic", "metadata", "lyrics")
TEXT_CHUNK = 2048  # tracks per chunk; a killed run loses one chunk at most


# ---------------------------------------------------------------- texts

def track_text(track, modality):
    """What the text encoder reads of a track: str, or None if the track lacks the modality."""
    if modality == "semantic":
        return ", ".join(track["tags"]) or None
    if modality == "metadata":
        return data.item_text(track, ("title", "artist", "album", "year")) or None
    return track["lyrics"] or None


def write_texts(folder, modality, tracks, encoder, pooling, batch_size):
    """Write embeddings/<modality>.npy of a text modality. encoder: from load_text_encoder."""
    tokenizer, model, max_tokens = encoder

    def encode(rows):
        texts = [track_text(track, modality) for track in tracks[rows]]
        vectors, cut = embed_texts(texts, tokenizer, model, max_tokens, pooling, batch_size)
        return vectors, [tracks[rows.start + i]["track_id"] for i in cut]

    shape = (len(tracks), model.config.hidden_size)
    path, cut = chunks.fill_in_chunks(folder, modality, shape, TEXT_CHUNK, encode)
    if current_process()[0] == 0:
        os.replace(path, folder / f"{modality}.npy")
        print(f"{modality}: {len(cut)} texts were longer than {max_tokens} tokens and cut there")


# ---------------------------------------------------------------- audio

def write_audio(folder, tracks, data_dir, encoder, workers):
    """Write embeddings/audio.npy, audio_scaling.npy, audio_failed.jsonl. encoder: AudioEncoder."""
    raw_path, failed = audio.embed_audio_files(folder, "audio", tracks, data_dir, encoder, workers)
    if current_process()[0] > 0:
        return
    data.write_jsonl(folder / "audio_failed.jsonl", failed)

    # Standardise the columns: the scales of hand-made features differ by orders of magnitude.
    raw = np.load(raw_path, mmap_mode="r")  # (N, D)
    scaling = audio.column_scaling(raw, encoder.blocks)
    data.save_npy(folder / "audio_scaling.npy", scaling)
    audio.write_scaled(folder / "audio.npy", raw, scaling)
    raw_path.unlink()

    without = sum(not track["audio_path"] for track in tracks)
    print(f"audio: {without} tracks have no audio_path; {len(failed)} files could not be used "
          f"{dict(Counter(row['reason'] for row in failed)) or ''}")


# ---------------------------------------------------------------- playlists

def training_rows(data_dir, tracks):
    """The training playlists: list of int32 arrays of track rows."""
    row_of = {track["track_id"]: row for row, track in enumerate(tracks)}
    return [np.array([row_of[track_id] for track_id in playlist["track_ids"]], np.int32)
            for playlist in data.load_playlists(data_dir, row_of) if playlist["split"] == "train"]


def item2vec(playlists, n_tracks, dim=128, epochs=40, seed=0, workers=1, share=None):
    """One vector per track, learnt from the tracks that it shares playlists with.

    Skip-gram with negative sampling (Barkan & Koenigstein 2016), by gensim: a playlist is a
    sentence, a track is a word, and all other tracks of the playlist are its neighbours.

    playlists: track rows of training playlists only, list of int arrays or lists.
    workers: threads; only 1 is reproducible.
    share: share of the pairs of tracks that an epoch learns (see sentences.py); None = all.
    Returns: (n_tracks, dim) float32, L2 norm 1; NaN for a track that has no neighbour.
    """
    from gensim.models import Word2Vec
    from gensim.models.callbacks import CallbackAny2Vec

    vectors = np.full((n_tracks, dim), np.nan, np.float32)
    sentences = Sentences(playlists, share, seed)
    if not sentences.playlists:
        return vectors

    # By default gensim draws a smaller window for each word, and drops words at random that make up
    # more than a thousandth of the text: most tracks of a small catalogue.
    model = Word2Vec(sg=1, vector_size=dim, negative=5, window=sentences.window,
                     shrink_windows=False, min_count=1, sample=0, epochs=epochs, seed=seed,
                     workers=workers)
    model.build_vocab(Sentences(playlists))
    with tqdm(total=epochs, desc="playlist", unit="epoch") as bar:
        tick = CallbackAny2Vec()
        tick.on_epoch_end = lambda model: bar.update()
        model.train(sentences, epochs=epochs, total_examples=sentences.n_sentences,
                    callbacks=[tick])

    learnt = model.wv
    del model  # frees its second matrix, which is as large as the one that counts
    vectors[np.array(learnt.index_to_key, dtype=int)] = learnt.vectors
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


# ---------------------------------------------------------------- main

def check_not_brought(data_dir, chosen):
    """Raises SystemExit: embeddings that 00_prepare_data.py brought along would be replaced."""
    outputs = (runs.read_run(data_dir, "00_prepare_data") or {}).get("outputs", {})
    brought = [m for m in chosen if (file := f"embeddings/{m}.npy") in outputs
               and (data_dir / file).is_file() and runs.file_hash(data_dir / file) == outputs[file]]
    if brought:
        others = " ".join(m for m in chosen if m not in brought)
        only = f"; or make only the others: --modalities {others}" if others else ""
        raise SystemExit(f"{data_dir}/embeddings: {', '.join(brought)} came with the data. Leave "
                         f"01 out: python 02_quantize.py --data-dir {data_dir}{only}; or replace "
                         f"them: --no-resume")


def parse_args(argv=None):
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    add_shared(parser, "data-dir", "device", "seed", "resume")
    add = parser.add_argument
    add("--modalities", nargs="+", choices=MODALITIES, default=list(MODALITIES), help="which to "
        "make (default all); others than last time: --no-resume, which replaces only these")
    add("--text-encoder", default="minilm", help="minilm (default), a Hugging Face id, or a folder")
    add("--pooling", choices=("mean", "cls", "last"), default="mean", help="text vector: mean of "
        "the token vectors (default; also for NV-Embed), first or last; see the model's card")
    add("--batch-size", type=int, default=64, help="texts per batch (default 64)")
    add("--audio-encoder", choices=audio.AUDIO_ENCODERS, default="librosa",
        help="default librosa; the others need --audio-model")
    add("--audio-model", help="for musicfm: the file pretrained_msd.pt or pretrained_fma.pt; for "
        "clap: a folder or a Hugging Face id")
    add("--audio-layer", type=int, help="layer of musicfm, 0 to 12 (default 7)")
    add("--audio-seconds", type=float, default=AUDIO_SECONDS, help="how much of a track is heard, "
        "from its middle (default 30; 0 = all, but at most 50 minutes of stereo), in windows of "
        "30 s (musicfm) or 10 s (clap)")
    add("--playlist-dim", type=int, default=128, help="dimensions of item2vec (default 128)")
    add("--epochs", type=int, default=40, help="passes of item2vec over the playlists (default 40, "
        "the best of 5 to 40 on the demo's validation playlists)")
    add("--item2vec-workers", type=int, default=1, help="threads of item2vec (default 1; more are "
        "faster, but the result then differs from run to run)")
    add("--item2vec-share", type=float, help="share of a playlist's pairs of tracks that an epoch "
        "learns, drawn anew each time; for sets whose whole epochs take hours (default: all pairs)")
    add("--workers", type=int, default=os.cpu_count(), help="processes that read audio, for all of "
        "torchrun's processes together (default: as many as cores)")
    args = parser.parse_args(argv)
    check_ranges(args, batch_size=1, playlist_dim=1, epochs=1, item2vec_workers=1, workers=1,
                 audio_seconds=0, audio_layer=(0, 12), item2vec_share=(0.001, 1))
    return args


def finish_run(run, folder, chosen, n_tracks):
    """Check and report what was written, close the run, delete the journals."""
    for modality in chosen:
        array = data.load_npy(folder / f"{modality}.npy", f"python {NAME}.py", n_tracks, np.float32)
        missing = np.isnan(array[:, 0]).sum()
        print(f"  {modality:9s} {array.shape!s:>14s}  {n_tracks - missing} tracks have it, "
              f"{missing} do not")
    runs.finish_run(run)
    for modality in chosen:
        chunks.forget_progress(folder, modality)


def main(argv=None):
    args = parse_args(argv)
    chunks.check_one_machine()
    rank, world, device = start_process(args.device)
    folder = args.data_dir / "embeddings"
    chosen = [m for m in MODALITIES if m in args.modalities]

    # Check all input, and load the encoders, before anything is replaced.
    tracks = data.load_tracks(args.data_dir)
    if args.resume:
        check_not_brought(args.data_dir, chosen)
    if "playlist" in chosen and rank == 0:
        playlists = training_rows(args.data_dir, tracks)
    reads = data.catalogue_files(args.data_dir) + ["playlists.jsonl"] * ("playlist" in chosen)
    writes = [f"embeddings/{m}.npy" for m in chosen]
    if "audio" in chosen:
        writes += ["embeddings/audio_scaling.npy", "embeddings/audio_failed.jsonl"]
    run, state = runs.begin_run(args.data_dir, NAME, args, reads, writes, args.resume, record=False)
    if agree(lambda: state) == "done":
        if rank == 0:
            print(f"{NAME}: already done (--no-resume does it again)")
        return end_process()
    left = agree(lambda: [m for m in chosen if state == "new"
                          or not chunks.is_finished(folder, m, len(tracks))])
    texts = [m for m in TEXT_MODALITIES if m in left]
    if texts:
        name = resolve_text_encoder(args.text_encoder, args.pooling)
        text_encoder = load_text_encoder(name, device)
    if "audio" in left:
        audio_encoder = audio.load_audio_encoder(args.audio_encoder, args.audio_model,
                                                 args.audio_layer, args.audio_seconds, device)
    if rank == 0:
        folder.mkdir(exist_ok=True)
        if state == "new":  # a run on record goes on with the chunks that it finds
            for modality in chosen:
                chunks.forget_progress(folder, modality)
        runs.record_run(run)
        if left != chosen:
            print(f"finished by an earlier try: {', '.join(m for m in chosen if m not in left)}")

    # item2vec comes last: the first process alone runs it.
    for modality in texts:
        write_texts(folder, modality, tracks, text_encoder, args.pooling, args.batch_size)
    if "audio" in left:
        write_audio(folder, tracks, args.data_dir, audio_encoder, max(args.workers // world, 1))
    if "playlist" in left and rank == 0:
        print(f"playlist: item2vec on {len(playlists)} training playlists with "
              f"{sum(map(len, playlists))} tracks")
        vectors = item2vec(playlists, len(tracks), args.playlist_dim, args.epochs, args.seed,
                           args.item2vec_workers, args.item2vec_share)
        data.save_npy(folder / "playlist.npy", vectors)

    if rank == 0:
        finish_run(run, folder, chosen, len(tracks))
        print(f"wrote {', '.join(writes)} in {args.data_dir}; next: python 02_quantize.py "
              f"--data-dir {args.data_dir}")
    end_process()


if __name__ == "__main__":
    main()
