"""Baseline: dense retrieval, by a text encoder's vectors of the conversation and of the tracks (the paper's section 5).

A track is the text "title by artist from album (year), tags", as for BM25. A query is one of HISTORIES: the
last query alone, the mean of the turns' vectors (the paper's), or one text of the newest turns. A track's score
is the cosine of the two vectors. The form is chosen by MRR on the valid dialogues, for each of the two systems:

    dense         the encoder as it is (zero-shot)
    dense-tuned   fine-tuned on the training dialogues: each turn's query shall find its own track among those of
                  the batch's other turns (InfoNCE, van den Oord et al. 2018; both towers are the one encoder). It
                  learns on "turns joined", and on "last query" for a quarter of the examples, from all turns with
                  targets, as 04_train.py does. The weights with the best MRR on valid are kept.

Encoders whose queries want an instruction get it (PREFIXES); tracks never do. Nothing after the query of turn t
is used for turn t.

Reads   tracks.jsonl, dialogues_train.jsonl, dialogues_valid.jsonl, dialogues_test.jsonl
Writes  predictions/dense.jsonl, predictions/dense-tuned.jsonl (test), the same in predictions_valid/ (valid),
        results/dense_forms.csv, results/dense-tuned_forms.csv, dense_model/ (a Hugging Face folder, which
        01_extract_embeddings.py --text-encoder takes too); while it learns, dense.part/

Demo    python baselines/dense.py                       (6 minutes on two cores)
Full    python baselines/dense.py --data-dir data/mpd --text-encoder Qwen/Qwen3-Embedding-0.6B --pooling last \
            --query-tokens 0 --lr 2e-5 --steps 5000 --eval-every 500
        python baselines/dense.py --data-dir data/mpd --text-encoder nvidia/NV-Embed-v2 --query-tokens 0 --skip-tuning
Neither was run: the checkpoints could not be had where this was written.

A killed run goes on from its last validation when the same command is given again.
"""

import argparse
import math
import os
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # common/ lies beside baselines/
from common import data, runs, turns
from common.process import resolve_device
from steps.extract_embeddings.text import embed_texts, encode_batch, resolve_text_encoder, load_text_encoder
from steps.train.checkpoints import list_checkpoints, write_whole

SYSTEMS = ("dense", "dense-tuned")
HISTORIES = ("last query", "last query + last track", "mean of queries", "mean of queries and tracks", "queries joined",
             "turns joined")     # "+" and "mean": of vectors; tracks: those played before; joined: one text, newest first
TRAINED, LAST_ALONE = ("turns joined", "last query"), 0.25  # forms that dense-tuned learns on; share of the second
TEMPERATURE = 0.05
TASK = "Given what a listener says in a conversation about music, retrieve the track that should be played next"
PREFIXES = {"nv-embed": "Instruct: {task}\nQuery: ", "qwen3-embedding": "Instruct: {task}\nQuery:"}  # by name; from their cards
TUNING = ("steps", "lr", "batch_size", "eval_every", "limit")  # flags that zero-shot does not depend on


# ---------------------------------------------------------------- queries

def query_prefix(name, instruction=None):
    """What stands before every query. instruction: None (what the encoder of this name wants), "" (nothing) or a task."""
    form = next((form for known, form in PREFIXES.items() if known in name.lower()), None)
    if instruction == "" or (instruction is None and form is None):
        return ""
    return (form or PREFIXES["nv-embed"]).format(task=instruction or TASK)


def join_parts(parts, fits):
    """As many of the parts (newest first) in one text as fit; the first always stays."""
    text = parts[0]
    for part in parts[1:]:
        if not fits(f"{text} | {part}"):
            break
        text += f" | {part}"
    return text


def query_parts(turn, history, texts, fits):
    """The texts and the catalogue rows whose vectors' mean is the query of a turn, in one form of HISTORIES.

    texts: (N,) list, the tracks as text. fits: function of a text, whether it is short enough.
    Returns: (list of str, list of rows), from the turns before and the turn's own query only.
    """
    if history in ("last query", "last query + last track"):
        return [turn.query], turn.played[-1:] if "track" in history else []
    queries = [turn.query] + [before["query"] for before in reversed(turn.past)]  # newest first
    if history in ("mean of queries", "mean of queries and tracks"):
        return queries, turn.played if "tracks" in history else []
    if history == "queries joined":
        return [join_parts(queries, fits)], []
    parts, played = [turn.query], list(turn.played)
    for before in reversed(turn.past):
        if before["music"]:
            parts.append(texts[played.pop()])
        parts.append(before["query"])
    return [join_parts([part for part in parts if part], fits)], []


def distinct(texts):
    """The M different texts, None for an empty one, and which of them each of the N is: (N,) int64."""
    row_of = {}
    of_item = np.array([row_of.setdefault(text or None, len(row_of)) for text in texts])
    return list(row_of), of_item


def embed_turns(found, histories, texts, items, of_item, encoder):
    """Query vectors of the turns `found`, in each form: {history: (n, D) float32, length 1}.

    items: (M, D) float32, length 1, NaN where a track cannot be encoded; of_item: (N,) rows of `items`, one a track.
    encoder: has encode_queries (m texts -> (m, D) float32, length 1) and fits. texts, fits: see query_parts.
    """
    parts = {history: [query_parts(turn, history, texts, encoder.fits) for turn in found] for history in histories}
    said = list(dict.fromkeys(text for of_turns in parts.values() for texts_, _ in of_turns for text in texts_))
    vector_of = dict(zip(said, encoder.encode_queries(said), strict=True))
    result = {}
    for history, of_turns in parts.items():
        means = np.stack([np.nanmean([vector_of[text] for text in texts_] + [items[of_item[row]] for row in rows], axis=0)
                          for texts_, rows in of_turns])
        result[history] = means / np.linalg.norm(means, axis=1, keepdims=True)
    return result


# ---------------------------------------------------------------- ranking

def score_turns(queries, items, of_item, size=64):
    """Yield the cosines of all tracks for each query: (N,) float32, -2 for a track that cannot be encoded.

    queries: (n, D); items: (M, D); of_item: (N,). Tracks of one item have equal scores to the bit: a tie.
    """
    for first in range(0, len(queries), size):  # (64, M) at once, not (n, M)
        for scores in np.nan_to_num(queries[first:first + size] @ items.T, nan=-2.0):
            yield scores[of_item]


def rank_system(data_dir, name, of_split, vectors, items, of_item, track_ids, seed):
    """Choose the form on valid, write predictions of both splits and results/<name>_forms.csv. Returns the chosen form.

    of_split: {split: list of Turn}; vectors: {split: what embed_turns returns for them}; items, of_item: see there.
    """
    def scores(split, history):
        return score_turns(vectors[split][history], items, of_item)

    forms = [{"history": history, "valid_mrr": turns.mrr(scores("valid", history), of_split["valid"], seed)}
             for history in vectors["valid"]]
    forms.sort(key=lambda form: -form["valid_mrr"])
    for split, found in of_split.items():
        turns.write_predictions(data_dir, split, name, scores(split, forms[0]["history"]), found, track_ids, seed)
    for form in forms:  # the choice is made; only now the test targets are looked at
        form["test_mrr"] = turns.mrr(scores("test", form["history"]), of_split["test"], seed)
        print(f"{name}: {form['history']:27} MRR valid {form['valid_mrr']:.4f}  test {form['test_mrr']:.4f}")
    data.write_csv(data_dir / "results" / f"{name}_forms.csv", forms[0], [form.values() for form in forms])
    return forms[0]


# ---------------------------------------------------------------- fine-tuning

def info_nce(queries, items, hits, temperature=TEMPERATURE):
    """Cross-entropy of each query's own item (the one of its row) against the others of the batch.

    queries, items: (B, D), length 1. hits: (B, B) bool, whether item j is a hit of query i: such an item is the
    query's own or left out of its sum, since it is no negative. Returns: mean over the batch, nats.
    """
    logits = queries @ items.T / temperature  # (B, B)
    own = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    return F.cross_entropy(logits.masked_fill(hits & ~own, -torch.inf), torch.arange(len(logits), device=logits.device))


def load_examples(data_dir, row_of, usable, limit=0):
    """The turns of the training dialogues (of the first `limit`; 0 = all) that have a target which can be encoded, without
    their other targets: list of Turn. usable: (N,) bool.

    Raises SystemExit: there are none.
    """
    path = data_dir / "dialogues_train.jsonl"
    found = turns.collect_turns(data.load_dialogues(path, row_of)[:limit or None], row_of)
    found = [turn._replace(targets=[row for row in turn.targets if usable[row]]) for turn in found]
    if not any(turn.targets for turn in found):
        raise SystemExit(f"{path}: no turn has a target that can be encoded, so there is nothing to learn from. Make the file "
                         f"again with: python 03_synthesize.py --data-dir {data_dir}; or leave the fine-tuning out")
    return [turn for turn in found if turn.targets]


def draw_batch(step, examples, trained, texts, of_item, fits, size, seed):
    """The examples of a step, drawn by seed and step alone: (B query texts, B rows of targets, hits (B, B) bool).

    examples: list of Turn; trained: two forms of HISTORIES, the second for a share LAST_ALONE of the examples.
    """
    rng = np.random.default_rng([seed, step])
    chosen = [examples[i] for i in rng.choice(len(examples), min(size, len(examples)), replace=False)]
    queries = [query_parts(turn, trained[int(rng.random() < LAST_ALONE)], texts, fits)[0][0] for turn in chosen]
    rows = [int(rng.choice(turn.targets)) for turn in chosen]
    hits = [[of_item[row] in of_item[turn.targets] for row in rows] for turn in chosen]
    return queries, rows, torch.tensor(hits)


def fit(model, batch_loss, valid_mrr, part, steps, eval_every, lr, seed):
    """Train `model` in place by AdamW and leave it with the weights of the best valid MRR. Returns its log.

    batch_loss: function of a step (from 0) -> loss with a gradient; valid_mrr: function -> float.
    part: folder of checkpoint-<step>.pt, from which a killed run goes on, and of best.pt.
    Linear warm-up over a tenth of the steps, then linear to 0; gradients are clipped at norm 1.
    """
    part.mkdir(parents=True, exist_ok=True)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    begin, log = 0, []
    if list_checkpoints(part):
        saved = torch.load(list_checkpoints(part)[-1], map_location="cpu", weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        begin, log = saved["step"], saved["log"]
    warm = max(1, steps // 10)
    bar = tqdm(range(begin, steps), initial=begin, total=steps, desc="tune", unit="step")
    for step in bar:
        torch.manual_seed(2**32 * seed + step)  # the step's own dropout: a resumed run draws the same
        optimizer.param_groups[0]["lr"] = lr * min((step + 1) / warm, (steps - step) / max(1, steps - warm))
        model.train()
        loss = batch_loss(step)
        if not math.isfinite(loss.item()):
            raise SystemExit(f"step {step + 1}: the loss is {loss.item()}; try a smaller --lr (now {lr:g}) with --no-resume")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
        if (step + 1) % eval_every == 0 or step + 1 == steps:
            model.eval()
            row = {"step": step + 1, "loss": loss.item(), "valid_mrr": valid_mrr()}
            bar.write(f"step {step + 1}: MRR on valid {row['valid_mrr']:.4f}")
            if row["valid_mrr"] > max((before["valid_mrr"] for before in log), default=-1.0):
                write_whole(part / "best.pt", model.state_dict())
            log.append(row)
            write_whole(part / f"checkpoint-{step + 1}.pt", {
                "model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1, "log": log})
            for old in list_checkpoints(part)[:-1]:
                old.unlink()
    model.load_state_dict(torch.load(part / "best.pt", map_location="cpu", weights_only=True))
    model.eval()
    return log


def save_folder(model, others, part, folder):
    """A Hugging Face folder of the model and what goes with it (tokenizer ...); it takes its name when it is whole."""
    for thing in (model, *others):
        thing.save_pretrained(part / "model")
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(part / "model", folder)


# ---------------------------------------------------------------- the encoder

class Encoder(NamedTuple):
    tokenizer: object
    model: torch.nn.Module
    max_tokens: int     # longer texts are cut
    pooling: str        # see steps.extract_embeddings.text.pool
    prefix: str         # of every query
    query_tokens: int   # joined queries stay below it, with the prefix

    def encode(self, texts, prefix=""):
        """Texts (None: missing), the prefix before each -> (n, D) float32, length 1."""
        return embed_texts(texts, self.tokenizer, self.model, self.max_tokens, self.pooling, prefix=prefix)[0]

    def encode_queries(self, texts):
        return self.encode(texts, self.prefix)

    def fits(self, text):
        return len(self.tokenizer(self.prefix + text, verbose=False).input_ids) <= self.query_tokens

    def encode_batch(self, texts, prefix=""):
        """Texts, the prefix before each -> (B, D) float32 with a gradient."""
        device = self.model.device
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            return encode_batch(texts, self.tokenizer, self.model, self.max_tokens, self.pooling, prefix)


def load_encoder(folder, prefix, pooling, query_tokens, device):
    """The Encoder of a folder or id that resolve_text_encoder has found. query_tokens: 0 = as long as it takes."""
    tokenizer, model, longest = load_text_encoder(folder, device)
    tokenizer.model_max_length = longest  # the fine-tuned folder shall cut texts where this encoder does
    return Encoder(tokenizer, model, longest, pooling, prefix, min(query_tokens or longest, longest))


def tune(encoder, examples, valid, texts, unique, of_item, part, steps, eval_every, lr, batch_size, seed):
    """Fine-tune the encoder in place on the turns `examples`; returns the log. unique: the M different texts, None: no text."""
    encoder.model.float()  # updates are too small for bfloat16

    def batch_loss(step):
        queries, rows, hits = draw_batch(step, examples, TRAINED, texts, of_item, encoder.fits, batch_size, seed)
        queries = encoder.encode_batch(queries, encoder.prefix)
        return info_nce(queries, encoder.encode_batch([texts[row] for row in rows]), hits.to(queries.device))

    def valid_mrr():
        items = encoder.encode(unique)
        vectors = embed_turns(valid, TRAINED[:1], texts, items, of_item, encoder)
        return turns.mrr(score_turns(vectors[TRAINED[0]], items, of_item), valid, seed)

    return fit(encoder.model, batch_loss, valid_mrr, part, steps, eval_every, lr, seed)


# ---------------------------------------------------------------- main

def parse_args():
    parser = argparse.ArgumentParser(allow_abbrev=False, description="Rank all tracks by a text encoder, as it is and fine-tuned on the dialogues.")
    add = parser.add_argument
    add("--data-dir", type=Path, default=Path("data/demo"), help="folder of the data (default data/demo)")
    add("--text-encoder", default="minilm", help="minilm (default, no download), a Hugging Face id, or a folder")
    add("--pooling", choices=("mean", "cls", "last"), default="mean", help="text vector: the mean of the token vectors "
        "(default), the first or the last; the model's card says which")
    add("--instruction", default=None, help="the task that stands before every query (default: one for NV-Embed and "
        'Qwen3-Embedding, none for others; "": none)')
    add("--query-tokens", type=int, default=64, help="longest joined query: it leaves out its oldest turns (default 64; 0 = "
        "as long as the encoder takes)")
    add("--skip-tuning", action="store_true", help="only the encoder as it is")
    add("--steps", type=int, default=80, help="of fine-tuning (default 80)")
    add("--lr", type=float, default=5e-5, help="peak learning rate (default 5e-5, for MiniLM; 2e-5 for larger encoders)")
    add("--batch-size", type=int, default=32, help="turns a step of fine-tuning (default 32)")
    add("--eval-every", type=int, default=40, help="steps between validations; the run can go on from there (default 40)")
    add("--limit", type=int, default=0, help="training dialogues used; 0 (default) = all")
    add("--device", type=resolve_device, default="auto", help="auto (default: cuda if there is one), cpu, cuda, ...")
    add("--seed", type=int, default=0, help="of the batches and of the order of equal scores (default 0)")
    add("--resume", action=argparse.BooleanOptionalAction, default=True, help="go on with what is half done (default); "
        "--no-resume starts afresh")
    args = parser.parse_args()
    for name, least in (("steps", 1), ("batch_size", 2), ("eval_every", 1), ("query_tokens", 0)):
        if getattr(args, name) < least:
            raise SystemExit(f"--{name.replace('_', '-')} {getattr(args, name)}: a number from {least} on is expected")
    return args


def main():
    args = parse_args()
    torch.set_flush_denormal(True)  # tiny numbers are slow on a CPU
    tracks = data.load_tracks(args.data_dir)
    track_ids = [track["track_id"] for track in tracks]
    row_of = {track_id: row for row, track_id in enumerate(track_ids)}
    of_split = turns.load_turns(args.data_dir, row_of)
    found_encoder = resolve_text_encoder(args.text_encoder, args.pooling)

    texts = [data.item_text(track) for track in tracks]
    unique, of_item = distinct(texts)
    part, encoder = args.data_dir / "dense.part", None
    for name in SYSTEMS[:1] if args.skip_tuning else SYSTEMS:
        tuned = name == "dense-tuned"
        reads = [*data.catalogue_files(args.data_dir), *turns.dialogue_files(*["train"] * tuned, "valid", "test")]
        writes = [*turns.prediction_files(name), f"results/{name}_forms.csv"]
        writes += [f"dense_model/{file}" for file in ("model.safetensors", "config.json", "tokenizer.json")] * tuned
        run, state = runs.begin_run(args.data_dir, name, args, reads, writes, args.resume, record=False,
                                    ignore=("data_dir", "resume", "device", "skip_tuning", *TUNING * (not tuned)))
        if state == "done":
            print(f"{name}: already done, nothing changed")
            continue
        if tuned:
            examples = load_examples(args.data_dir, row_of, [bool(text) for text in texts], args.limit)
            if state == "new":
                shutil.rmtree(part, ignore_errors=True)
        runs.record_run(run)  # all input has proved good, and what an older run left half done is gone
        encoder = encoder or load_encoder(found_encoder, query_prefix(args.text_encoder, args.instruction), args.pooling,
                                          args.query_tokens, args.device)
        facts = {}
        if tuned:
            facts["log"] = tune(encoder, examples, of_split["valid"], texts, unique, of_item, part, args.steps, args.eval_every,
                                args.lr, args.batch_size, args.seed)
            save_folder(encoder.model, [encoder.tokenizer], part, args.data_dir / "dense_model")
        items = encoder.encode(unique)
        vectors = {split: embed_turns(found, HISTORIES, texts, items, of_item, encoder) for split, found in of_split.items()}
        chosen = rank_system(args.data_dir, name, of_split, vectors, items, of_item, track_ids, args.seed)
        runs.finish_run(run, chosen_on_valid=chosen, **facts)
        print(f"Chosen on valid: {chosen['history']}. Wrote {args.data_dir}/{writes[1]}, {writes[0]} and {writes[2]}")
        if tuned:
            shutil.rmtree(part)
    print(f"Next: python 06_evaluate.py --data-dir {args.data_dir}")


if __name__ == "__main__":
    main()
