"""Run by test_01_extract_embeddings.py: 01 with encoders that take no time, by several processes.

    python tests/ranks.py FOLDER    runs 01 in FOLDER/<name> for each of RUNS; its output goes to
                                    <processes>.log there
    torchrun --nproc-per-node 2 tests/ranks.py --data-dir ...

Without torchrun processes are forked, which saves each the time to import torch and librosa. When
one dies, the others are ended, as torchrun does.
"""

import hashlib
import importlib
import os
import signal
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import gensim.models  # noqa: F401  here, so that it is imported once
import numpy as np
import torch.multiprocessing as mp

from steps.extract_embeddings import audio

extract = importlib.import_module("01_extract_embeddings")
DIM = 6
CHUNK = 3
FLAGS = ["--playlist-dim", "8", "--workers", "2"]
# name: runs one after another, each (processes, the rank that ends itself by SIGKILL, in which call
# of an encoder)
RUNS = {"one": [(1, None, None)],
        "kill-1": [(2, 1, 5), (3, None, None)],
        "kill-0": [(2, 0, 10), (1, None, None)]}
calls = []
kill = None  # (rank, call)


def vector(text):
    digest = hashlib.sha256(text.encode()).digest()
    return np.frombuffer(digest, np.uint8)[:DIM].astype(np.float32)


def count_call():
    calls.append(1)
    if kill == (int(os.environ.get("RANK", 0)), len(calls)):
        os.kill(os.getpid(), signal.SIGKILL)


def embed_texts(texts, tokenizer, model, max_tokens, pooling, batch_size):
    count_call()
    missing = np.full(DIM, np.nan, np.float32)
    rows = [missing if text is None else vector(text[:max_tokens]) for text in texts]
    return np.stack(rows), [i for i, text in enumerate(texts) if text and len(text) > max_tokens]


def read(path):
    if "bad" in path:
        raise ValueError("no good")
    return Path(path).name


def encode(names):
    count_call()
    return np.stack([vector(name) for name in names])


def main(argv):
    extract.TEXT_CHUNK = CHUNK
    extract.resolve_text_encoder = lambda *args: None
    model = SimpleNamespace(config=SimpleNamespace(hidden_size=DIM))
    extract.load_text_encoder = lambda *args: (None, model, 12)
    extract.embed_texts = embed_texts
    audio.ProcessPoolExecutor = lambda workers, *_: ThreadPoolExecutor(workers)
    audio.load_audio_encoder = lambda *args: audio.AudioEncoder(read, encode, DIM, (4, 2), CHUNK)
    extract.main(argv)


def work(rank, world, port, killed, call, folder):
    global kill
    kill = (killed, call)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world),
                      LOCAL_WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    with open(folder / f"{world}.log", "a", buffering=1) as log, redirect_stdout(log):
        main(["--data-dir", str(folder), *FLAGS])


if __name__ == "__main__":
    if "RANK" in os.environ:
        main(sys.argv[1:])
        sys.exit()
    for name, runs in RUNS.items():
        folder = Path(sys.argv[1]) / name
        for world, killed, call in runs:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            try:
                mp.start_processes(work, (world, port, killed, call, folder), world,
                                   start_method="fork")
                assert killed is None
            except mp.ProcessExitedException as error:
                assert (error.error_index, error.signal_name) == (killed, "SIGKILL"), error
                (folder / "left.txt").write_text("\n".join(os.listdir(folder / "embeddings")))
