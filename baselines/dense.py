"""Baseline: dense retrieval by a text encoder (the paper's section 5).

A track is the text "title by artist from album (year), tags", as for BM25. A query is one of six
forms (two_towers.py), chosen by MRR on the valid dialogues; nothing after the query of turn t is
used for turn t. A track's score is the cosine of the two vectors. The system `dense` is the encoder
as it is. `dense-tuned` is fine-tuned on the training dialogues: each turn's query must find its own
track among those of the batch's other turns (InfoNCE, van den Oord et al. 2018; one encoder for
both sides). The weights with the best MRR on valid are kept. A killed run goes on from its last
validation when the same command is given again.

Reads   tracks.jsonl, annotations/, dialogues_{train,valid,test}.jsonl
Writes  predictions/dense.jsonl, predictions/dense-tuned.jsonl (test), the same in
        predictions_valid/ (valid), results/dense_forms.csv, results/dense-tuned_forms.csv,
        dense_model/ (for 01_extract_embeddings.py --text-encoder too); meanwhile dense.part/

Demo    python baselines/dense.py    (7 minutes on two busy cores)
Full    python baselines/dense.py --data-dir data/mpd --text-encoder Qwen/Qwen3-Embedding-0.6B \
            --pooling last --query-tokens 0 --lr 2e-5 --steps 5000 --eval-every 500
        python baselines/dense.py --data-dir data/mpd --text-encoder nvidia/NV-Embed-v2 \
            --query-tokens 0 --skip-tuning
        (neither was run: the checkpoints could not be had where this was written)
"""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # common/ lies beside baselines/
from baselines import two_towers
from common import data, turns
from steps.extract_embeddings import text as text_encoders

TRAINED = ("turns joined", "last query")  # the forms that dense-tuned learns on
TASK = ("Given what a listener says in a conversation about music, retrieve the track that should "
        "be played next")
# what comes before a query, by what the encoder's name contains; from the model cards
PREFIXES = {"nv-embed": "Instruct: {task}\nQuery: ", "qwen3-embedding": "Instruct: {task}\nQuery:"}


def query_prefix(name, instruction=None):
    """What comes before each query. instruction: a task, "" for none, None for the name's own."""
    known = [form for part_of_name, form in PREFIXES.items() if part_of_name in name.lower()]
    if instruction == "" or (instruction is None and not known):
        return ""
    form = known[0] if known else PREFIXES["nv-embed"]
    return form.format(task=instruction or TASK)


def distinct(texts):
    """The M different texts, None for an empty one, and which one each text is: (N,) int64."""
    item_of = {}
    item_of_track = [item_of.setdefault(text or None, len(item_of)) for text in texts]
    return list(item_of), np.array(item_of_track)


class Encoder(NamedTuple):
    tokenizer: object
    model: torch.nn.Module
    max_tokens: int     # longer texts are cut
    pooling: str        # see steps.extract_embeddings.text.pool
    prefix: str         # of every query
    query_tokens: int   # joined queries are no longer, the prefix included

    def encode(self, texts, prefix=""):
        """Texts (None: missing), the prefix before each -> (n, D) float32, length 1."""
        return text_encoders.embed_texts(texts, self.tokenizer, self.model, self.max_tokens,
                                         self.pooling, prefix=prefix)[0]

    def encode_queries(self, texts):
        return self.encode(texts, self.prefix)

    def fits(self, text):
        ids = self.tokenizer(self.prefix + text, verbose=False).input_ids
        return len(ids) <= self.query_tokens

    def encode_batch(self, texts, prefix=""):
        """Texts, the prefix before each -> (B, D) float32, length 1, with a gradient."""
        device = self.model.device.type
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            return text_encoders.encode_batch(texts, self.tokenizer, self.model, self.max_tokens,
                                              self.pooling, prefix)

    def query_batch(self, texts):
        return self.encode_batch(texts, self.prefix)


def load_encoder(name, prefix, pooling, query_tokens, device):
    """The Encoder of what resolve_text_encoder returns. query_tokens: 0 = as long as it takes."""
    tokenizer, model, longest = text_encoders.load_text_encoder(name, device)
    tokenizer.model_max_length = longest  # the fine-tuned folder cuts texts where this encoder does
    query_tokens = min(query_tokens or longest, longest)
    return Encoder(tokenizer, model, longest, pooling, prefix, query_tokens)


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--text-encoder", default="minilm",
        help="minilm (default, no download), a Hugging Face id, or a folder")
    add("--pooling", choices=("mean", "cls", "last"), default="mean", help="text vector: the mean "
        "of the token vectors (default), the first or the last; the model's card says which")
    add("--instruction", help="the task before every query (default: one for NV-Embed and "
        'Qwen3-Embedding, none for others; "": none)')
    add("--query-tokens", type=int, default=64, help="longest joined query; it leaves out its "
        "oldest turns (default 64; 0 = as long as the encoder takes)")
    add("--skip-tuning", action="store_true", help="only the encoder as it is")
    args = two_towers.parse_flags(parser, steps=80, lr=5e-5, eval_every=40)
    torch.set_flush_denormal(True)  # tiny numbers are slow on a CPU

    tracks = data.load_tracks(args.data_dir)
    row_of = {track["track_id"]: row for row, track in enumerate(tracks)}
    turns_of = turns.load_turns(args.data_dir, row_of)
    texts = [data.item_text(track) for track in tracks]
    unique, item_of_track = distinct(texts)
    examples = None
    if not args.skip_tuning:
        examples = two_towers.load_examples(args.data_dir, row_of, list(map(bool, texts)))
    folder = text_encoders.resolve_text_encoder(args.text_encoder, args.pooling)

    def make_towers():
        prefix = query_prefix(args.text_encoder, args.instruction)
        encoder = load_encoder(folder, prefix, args.pooling, args.query_tokens, args.device)
        return two_towers.Towers(
            encoder, two_towers.HISTORIES, TRAINED, texts, item_of_track,
            encode_items=lambda: encoder.encode(unique),
            item_batch=lambda rows: encoder.encode_batch([texts[row] for row in rows]),
            model=encoder.model, saved=[encoder.model, encoder.tokenizer])

    two_towers.run_systems(args, "dense", examples, make_towers, turns_of, row_of)
    print(f"Next: python 06_evaluate.py --data-dir {args.data_dir}")


if __name__ == "__main__":
    main()
