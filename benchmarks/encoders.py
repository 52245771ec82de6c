"""What each encoder of 01_extract_embeddings.py costs: tracks a second, and the memory of its process.

    python benchmarks/encoders.py                                        (minilm, librosa, clap, musicfm; four minutes on two cores)
    python benchmarks/encoders.py --encoders qwen3 nv-embed --device cuda   (not run)
    python benchmarks/encoders.py --peer                                 (needs: pip install sentence-transformers)

Speed does not depend on what the weights are: all but minilm have random ones, of the published shapes, so nothing is downloaded.
Texts: the tags, metadata and lyrics of the first tracks of --data-dir (the mean over the three). Audio: noise of 30 s, as
much as 01 hears of a track, from FLAC files at 44.1 kHz; reading them is part of it. Each encoder has a process of its own.

--peer: minilm by embed_texts and by sentence-transformers' encode, in turns, the same texts and batch size, one process. Each
counts by its best time; the vectors are compared.
"""

import argparse
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import numpy as np
import soundfile

from common import data, runs
from common.process import resolve_device

TEXT_ENCODERS, AUDIO_ENCODERS = ("minilm", "qwen3", "nv-embed"), ("librosa", "clap", "musicfm")
DEFAULT = ("minilm", "librosa", "clap", "musicfm")
# The shapes of published models: Qwen/Qwen3-Embedding-0.6B and nvidia/NV-Embed-v2 (a Mistral 7B and its pooling)
QWEN3 = dict(hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8,
             head_dim=128, vocab_size=151_669)
MISTRAL = dict(hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8,
               vocab_size=32_000)


def read_texts(data_dir, n):
    """Tags, metadata and lyrics of the first n tracks: {modality: list of str or None}."""
    from importlib import import_module
    extract = import_module("01_extract_embeddings")
    tracks = data.load_tracks(data_dir)[:n]
    return {modality: [extract.track_text(track, modality) for track in tracks] for modality in extract.TEXT_MODALITIES}


def make_text_encoder(name, device):
    """(tokenizer, model, longest text in tokens); MiniLM's tokenizer for all, cutting where MiniLM does."""
    import torch
    import transformers
    from steps.extract_embeddings import nv_embed, text
    tokenizer, model, longest = text.load_text_encoder(text.resolve_text_encoder("minilm"), device)
    if name != "minilm":
        with torch.device(device):
            torch.set_default_dtype(torch.bfloat16 if device != "cpu" else torch.float32)
            model = (transformers.Qwen3Model(transformers.Qwen3Config(**QWEN3)) if name == "qwen3" else
                     nv_embed.NVEmbed(nv_embed.NVEmbedConfig(text_config=MISTRAL))).eval()
            torch.set_default_dtype(torch.float32)
        tokenizer.model_input_names = ["input_ids", "attention_mask"]  # no BERT's token types
    return tokenizer, model, longest


def make_audio_encoder(name, device):
    """(function of a path, function of a list of what it returns): how 01_extract_embeddings.py hears a track."""
    from steps.extract_embeddings import clap, librosa_features, musicfm
    if name == "librosa":
        return librosa_features.read_features, np.stack
    if name == "clap":
        import transformers
        model = transformers.ClapModel(transformers.ClapConfig()).to(device).eval()
        extractor = transformers.ClapFeatureExtractor(truncation="rand_trunc", padding="repeatpad")
        return partial(clap.mel_windows, extractor=extractor), partial(clap.embed_tracks, model=model, batch_size=4)
    model = musicfm.MusicFM(musicfm.STATISTICS["msd"]).keep_layers(7).to(device).eval()
    read = partial(librosa_features.read_windows, rate=musicfm.RATE, seconds=librosa_features.AUDIO_SECONDS, size=musicfm.WINDOW,
                   least=musicfm.SHORTEST)
    return read, partial(musicfm.embed_tracks, model=model, batch_size=4)


def measure(name, data_dir, n, device):
    """(tracks a second, GiB at most) of one encoder; the first tracks only warm it up."""
    import torch
    torch.manual_seed(0)
    if name in TEXT_ENCODERS:
        from steps.extract_embeddings.text import embed_texts
        encoder = make_text_encoder(name, device)
        texts = read_texts(data_dir, n)
        embed_texts(texts["metadata"][:8], *encoder)
        begin = time.perf_counter()
        for part in texts.values():
            embed_texts(part, *encoder)
        seconds = (time.perf_counter() - begin) / len(texts)  # a modality
        count = max(map(len, texts.values()))
    else:
        read, encode = make_audio_encoder(name, device)
        with tempfile.TemporaryDirectory() as folder:
            path, noise = Path(folder) / "noise.flac", np.random.default_rng(0).normal(0, 0.1, 44_100 * 31)
            soundfile.write(path, noise, 44_100)
            encode([read(path)])
            begin, count = time.perf_counter(), n // 25
            for _ in range(0, count, 4):
                encode([read(path) for _ in range(4)])
            count = -(-count // 4) * 4
            seconds = time.perf_counter() - begin
    memory = torch.cuda.max_memory_allocated() / 2**30 if device != "cpu" else runs.peak_memory_gib()
    return count / seconds, memory


def compare_with_peer(data_dir, n, device, batch_size=64, rounds=3):
    """embed_texts against sentence-transformers on the same MiniLM: (texts a second of both, largest difference of a number)."""
    from sentence_transformers import SentenceTransformer
    from steps.extract_embeddings import text
    name = text.resolve_text_encoder("minilm")
    encoder, peer = text.load_text_encoder(name, device), SentenceTransformer(name, device=device)
    texts = list(dict.fromkeys(t for part in read_texts(data_dir, n).values() for t in part if t))
    times, vectors = {"embed_texts": [], "sentence-transformers": []}, {}
    for round in range(rounds + 1):  # the first one warms up
        for who, encode in (("embed_texts", lambda: text.embed_texts(texts, *encoder, batch_size=batch_size)[0]),
                            ("sentence-transformers", lambda: peer.encode(texts, batch_size=batch_size, normalize_embeddings=True))):
            begin = time.perf_counter()
            vectors[who] = encode()
            times[who].append(time.perf_counter() - begin)
    return {who: len(texts) / min(taken[1:]) for who, taken in times.items()}, np.abs(np.subtract(*vectors.values())).max()


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--encoders", nargs="+", choices=(*TEXT_ENCODERS, *AUDIO_ENCODERS), default=DEFAULT, help=f"default: {' '.join(DEFAULT)}")
    add("--data-dir", type=Path, default=Path("data/demo"), help="folder whose tracks' texts are read (default data/demo)")
    add("--n", type=int, default=400, help="tracks, for texts; audio takes a 25th (default 400)")
    add("--device", type=resolve_device, default="cpu", help="cpu (default), cuda, ...")
    add("--peer", action="store_true", help="instead: minilm against sentence-transformers' encode")
    args = parser.parse_args()
    if args.peer:
        speeds, difference = compare_with_peer(args.data_dir, args.n, args.device)
        ours, theirs = speeds.values()
        print(", ".join(f"{who}: {speed:.0f} texts/s" for who, speed in speeds.items()))
        print(f"{ours / theirs:.2f} times as fast as the peer; the vectors differ by {difference:.0e} at most")
        return
    for name in args.encoders:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:  # a process of its own, for its peak memory
            speed, memory = pool.submit(measure, name, args.data_dir, args.n, args.device).result()
        print(f"{name:10} {speed:8.1f} tracks/s {memory:6.1f} GiB", flush=True)


if __name__ == "__main__":
    main()
