"""What each encoder of 01_extract_embeddings.py costs: tracks per second, memory of its process.

    python benchmarks/encoders.py         minilm, librosa, clap, musicfm; 4 minutes on two cores
    python benchmarks/encoders.py --encoders qwen3 nv-embed --device cuda           (not run)
    python benchmarks/encoders.py --peer  (needs: pip install sentence-transformers)

Speed does not depend on the weights: all but minilm have random ones, of the published shapes, so
nothing is downloaded. Texts: the mean over the tags, metadata and lyrics of the first tracks of
--data-dir. Audio: noise of 30 s, as much as 01 hears of a track, from FLAC files at 44.1 kHz;
reading them counts. Each encoder has a process of its own.

--peer: minilm by embed_texts and by sentence-transformers' encode, in turns, with the same texts
and batch size. Each counts by its best time, and the vectors are compared.
"""

import argparse
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from timeit import timeit

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the repository

import numpy as np
import soundfile
import torch
import transformers

from common import data, runs
from common.flags import add_shared
from common.process import resolve_device
from steps.extract_embeddings import audio, clap, musicfm, nv_embed
from steps.extract_embeddings.librosa_features import AUDIO_SECONDS
from steps.extract_embeddings.text import embed_texts, load_text_encoder, resolve_text_encoder

TEXT_ENCODERS = ("minilm", "qwen3", "nv-embed")
TEXT_TRACKS = 400
AUDIO_ENCODERS = ("librosa", "clap", "musicfm")
# The shapes of Qwen/Qwen3-Embedding-0.6B and of nvidia/NV-Embed-v2 (a Mistral 7B and its pooling)
QWEN3 = dict(hidden_size=1024, intermediate_size=3072, num_hidden_layers=28,
             num_attention_heads=16, num_key_value_heads=8, head_dim=128, vocab_size=151_669)
MISTRAL = dict(hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32,
               num_attention_heads=32, num_key_value_heads=8, vocab_size=32_000)


def read_texts(data_dir):
    """Tags, metadata and lyrics of the first tracks: a list of str or None for each modality."""
    extract = import_module("01_extract_embeddings")
    tracks = data.load_tracks(data_dir)[:TEXT_TRACKS]
    return [[extract.track_text(track, modality) for track in tracks]
            for modality in extract.TEXT_MODALITIES]


def make_text_encoder(name, device):
    """(tokenizer, model, longest text in tokens); MiniLM's tokenizer and length for all."""
    tokenizer, model, longest = load_text_encoder(resolve_text_encoder("minilm"), device)
    if name != "minilm":
        tokenizer.model_input_names = ["input_ids", "attention_mask"]  # no BERT's token types
        torch.set_default_dtype(torch.float32 if device == "cpu" else torch.bfloat16)
        with torch.device(device):
            model = (transformers.Qwen3Model(transformers.Qwen3Config(**QWEN3)) if name == "qwen3"
                     else nv_embed.NVEmbed(nv_embed.NVEmbedConfig(text_config=MISTRAL)))
        torch.set_default_dtype(torch.float32)
    return tokenizer, model.eval(), longest


def make_audio_encoder(name, device):
    """The AudioEncoder that 01 uses, with random weights instead of a checkpoint's."""
    if name == "clap":
        model = transformers.ClapModel(transformers.ClapConfig()).to(device).eval()
        extractor = transformers.ClapFeatureExtractor(truncation="rand_trunc", padding="repeatpad")
        clap.load_clap = lambda *_: (model, None, extractor)
    if name == "musicfm":
        model = musicfm.MusicFM(musicfm.STATISTICS["msd"]).keep_layers(7).to(device).eval()
        musicfm.load_musicfm = lambda *_: model
    return audio.load_audio_encoder(name, None, None, AUDIO_SECONDS, device)


def measure(name, data_dir, device):
    """(tracks per second, peak memory in GiB) of one encoder."""
    torch.manual_seed(0)
    if name in TEXT_ENCODERS:
        encoder = make_text_encoder(name, device)
        modalities = read_texts(data_dir)
        embed_texts(modalities[1][:8], *encoder)  # warms up
        start = time.perf_counter()
        for texts in modalities:
            embed_texts(texts, *encoder)
        speed = sum(map(len, modalities)) / (time.perf_counter() - start)
    else:
        encoder = make_audio_encoder(name, device)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "noise.flac"
            soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 44_100 * 31), 44_100)
            encoder.encode([encoder.read(path)])  # warms up
            start = time.perf_counter()
            for _ in range(4):
                encoder.encode([encoder.read(path) for _ in range(4)])
        speed = 16 / (time.perf_counter() - start)
    if device == "cpu":
        return speed, runs.peak_memory_gib()
    return speed, torch.cuda.max_memory_allocated() / 2**30


def compare_with_peer(data_dir, device):
    """Time minilm by embed_texts and by sentence-transformers, and compare the vectors."""
    from sentence_transformers import SentenceTransformer
    name = resolve_text_encoder("minilm")
    encoder = load_text_encoder(name, device)
    peer = SentenceTransformer(name, device=device)
    texts = list(dict.fromkeys(filter(None, sum(read_texts(data_dir), []))))

    def ours():
        return embed_texts(texts, *encoder, batch_size=64)[0]

    def theirs():
        return peer.encode(texts, batch_size=64, normalize_embeddings=True)

    difference = np.abs(ours() - theirs()).max()  # this warms up, too
    best = np.min([(timeit(ours, number=1), timeit(theirs, number=1)) for _ in range(3)], axis=0)
    speed, peer_speed = len(texts) / best
    print(f"embed_texts: {speed:.0f} texts/s, sentence-transformers: {peer_speed:.0f} texts/s\n"
          f"{speed / peer_speed:.2f} times as fast as the peer; the vectors differ by at most "
          f"{difference:.0e}")


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    add_shared(parser, "data-dir")
    add = parser.add_argument
    add("--encoders", nargs="+", choices=(*TEXT_ENCODERS, *AUDIO_ENCODERS),
        default=("minilm", *AUDIO_ENCODERS), help="default: minilm librosa clap musicfm")
    add("--device", type=resolve_device, default="cpu", help="cpu (default), cuda, ...")
    add("--peer", action="store_true", help="instead: minilm against sentence-transformers' encode")
    args = parser.parse_args()
    if args.peer:
        return compare_with_peer(args.data_dir, args.device)
    for name in args.encoders:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:  # for its own peak memory
            speed, memory = pool.submit(measure, name, args.data_dir, args.device).result()
        print(f"{name:10} {speed:8.1f} tracks/s {memory:6.1f} GiB", flush=True)


if __name__ == "__main__":
    main()
