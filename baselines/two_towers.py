"""What dense.py and clap.py share: forms of the query, ranking by cosine, fine-tuning by InfoNCE.

A query and a track are each encoded as a vector; their cosine is the track's score.
"""

import math
import os
import shutil
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from baselines import shared
from common import data, flags, runs, turns
from steps.train.checkpoints import list_checkpoints, write_whole

# "+" and "mean": of vectors; tracks: those played before; joined: one text, newest first
HISTORIES = ("last query", "last query + last track", "mean of queries",
             "mean of queries and tracks", "queries joined", "turns joined")
SECOND_SHARE = 0.25  # of the examples of fine-tuning, those with the second form of the query
TEMPERATURE = 0.05
NO_EFFECT = (*runs.PLACE, "skip_tuning", "tune")  # flags that change no system
TUNING = ("steps", "lr", "batch_size", "eval_every")  # flags that change no zero-shot one


class Towers(NamedTuple):
    """An encoder of queries, and the items that tracks are: tracks with the same text share one."""
    encoder: object            # has fits(text) -> bool; encode_queries(texts) -> (n, D) float32,
                               # length 1; query_batch(texts), the same with a gradient
    histories: tuple           # forms of the query to choose from
    trained: tuple             # two forms to fine-tune with, see draw_batch
    texts: list | None         # the tracks as text, (N,) strings
    item_of_track: np.ndarray  # (N,) int
    encode_items: object       # function () -> (M, D) float32, length 1, NaN where there is none
    item_batch: object         # function of rows of tracks -> (B, D), with a gradient if it has any
    model: torch.nn.Module     # what is fine-tuned
    saved: list                # what is saved then, the model first: has save_pretrained


def parse_flags(parser, steps, lr, eval_every):
    """Add the flags that both scripts have, with these defaults; parse and check all flags."""
    add = parser.add_argument
    add("--steps", type=int, default=steps, help=f"of fine-tuning (default {steps})")
    add("--lr", type=float, default=lr, help=f"peak learning rate (default {lr:g})")
    add("--batch-size", type=int, default=32, help="turns per step of fine-tuning (default 32)")
    add("--eval-every", type=int, default=eval_every, help="steps between validations; a killed "
        f"run goes on from there (default {eval_every})")
    flags.add_shared(parser, "data-dir", "device", "seed", "resume")
    args = parser.parse_args()
    flags.check_ranges(args, steps=1, lr=1e-12, batch_size=2, eval_every=1, query_tokens=0,
                       workers=1)
    return args


def run_systems(args, name, examples, make_towers, turns_of, row_of, reads=(), trial=""):
    """Rank with the encoder as it is; if there are `examples`, fine-tune it and rank once more.

    make_towers: function () -> Towers; called only if something is to be done.
    turns_of: {split: list of Turn}. reads, trial: see shared.begin_run.
    """
    out = args.data_dir / trial
    work_dir = out / f"{name}.part"
    towers = None
    run = shared.begin_run(args, name, reads, [f"results/{name}_forms.csv"], trial=trial,
                           ignore=NO_EFFECT + TUNING)
    if run is not None:
        towers = make_towers()
        chosen = rank_system(out, name, towers, turns_of, row_of, args.seed)
        runs.finish_run(run, chosen_on_valid=chosen)
    if not examples:
        return

    tuned = f"{name}-tuned"
    writes = [f"results/{tuned}_forms.csv", *(f"{name}_model/{file}" for file in (
        "model.safetensors", "config.json", "tokenizer.json"))]
    run = shared.begin_run(args, tuned, reads, writes, data.SPLITS, work_dir, trial, NO_EFFECT)
    if run is not None:
        towers = towers or make_towers()
        log = tune(towers, examples, turns_of["valid"], work_dir, args)
        save_folder(towers.saved, work_dir, out / f"{name}_model")
        chosen = rank_system(out, tuned, towers, turns_of, row_of, args.seed)
        runs.finish_run(run, chosen_on_valid=chosen, log=log)
        shutil.rmtree(work_dir)


# ---------------------------------------------------------------- queries

def join_newest(said, fits):
    """As many texts (newest first) in one as fit. The first always stays."""
    text = said[0]
    for older in said[1:]:
        if not fits(f"{text} | {older}"):
            break
        text += f" | {older}"
    return text


def query_inputs(turn, history, texts, fits):
    """The texts and the catalogue rows whose mean vector is the query of a turn: two lists.

    history: one of HISTORIES. texts: the tracks as text, list of (N,) strings.
    fits: function of a text, whether it is short enough.
    """
    if history == "last query":
        return [turn.query], []
    if history == "last query + last track":
        return [turn.query], turn.played[-1:]
    queries = [turn.query] + [past["query"] for past in reversed(turn.past)]  # newest first
    if history == "mean of queries":
        return queries, []
    if history == "mean of queries and tracks":
        return queries, turn.played
    if history == "queries joined":
        return [join_newest(queries, fits)], []

    # "turns joined": before each older query, since newest is first, the track that it got
    said = [turn.query]
    played = list(turn.played)
    for past in reversed(turn.past):
        if past["music"] and texts[row := played.pop()]:
            said.append(texts[row])
        said.append(past["query"])
    return [join_newest(said, fits)], []


def embed_turns(turn_list, histories, texts, items, item_of_track, encoder):
    """Query vectors of the turns in each form: {history: (n, D) float32, length 1}.

    items: vectors of the different items, (M, D) float32. The rest: see Towers.
    """
    inputs = {history: [query_inputs(turn, history, texts, encoder.fits) for turn in turn_list]
              for history in histories}

    # each text is encoded once
    unique = list({text: None for form in inputs.values() for said, _ in form for text in said})
    vector_of = dict(zip(unique, encoder.encode_queries(unique), strict=True))

    vectors = {}
    for history, form in inputs.items():
        means = [np.nanmean([*(vector_of[text] for text in said), *items[item_of_track[rows]]], 0)
                 for said, rows in form]
        vectors[history] = np.stack(means) / np.linalg.norm(means, axis=1, keepdims=True)
    return vectors


# ---------------------------------------------------------------- ranking

def score_turns(queries, items, item_of_track, size=64):
    """Yield the cosines of all tracks for each query: (N,) float32, -2 where there is no vector.

    queries: (n, D); items: (M, D). Tracks with the same item tie exactly.
    """
    for first in range(0, len(queries), size):  # (64, M) at once, not (n, M)
        for scores in np.nan_to_num(queries[first:first + size] @ items.T, nan=-2.0):
            yield scores[item_of_track]


def rank_system(out, name, towers, turns_of, row_of, seed):
    """Choose the form of the query on valid and write its predictions; returns the form."""
    items = towers.encode_items()
    vectors = {split: embed_turns(turn_list, towers.histories, towers.texts, items,
                                  towers.item_of_track, towers.encoder)
               for split, turn_list in turns_of.items()}

    def score(form, split):
        return score_turns(vectors[split][form["history"]], items, towers.item_of_track)

    forms = [{"history": history} for history in towers.histories]
    for form in forms:
        form["valid_mrr"] = turns.mrr(score(form, "valid"), turns_of["valid"], seed)
    return shared.rank_forms(out, name, forms, score, turns_of, list(row_of), seed)


# ---------------------------------------------------------------- fine-tuning

def info_nce(queries, items, hits, temperature=TEMPERATURE):
    """Cross-entropy of each query's own item, the one of its row, against the batch's others.

    queries, items: (B, D), length 1. hits: whether item j is a hit of query i, (B, B) bool; one
    that is not the query's own item is left out of the sum. Returns: mean over the batch, nats.
    """
    logits = queries @ items.T / temperature  # (B, B)
    own = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    logits = logits.masked_fill(hits & ~own, -torch.inf)
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


def load_examples(data_dir, row_of, usable):
    """The turns of the training dialogues, list of Turn, with only those targets that are usable.

    usable: whether a track can be encoded, (N,) bool.
    Raises SystemExit: there are none.
    """
    path = data_dir / "dialogues_train.jsonl"
    examples = turns.collect_turns(data.load_dialogues(path, row_of), row_of)
    examples = [turn._replace(targets=[row for row in turn.targets if usable[row]])
                for turn in examples]
    examples = [turn for turn in examples if turn.targets]
    if not examples:
        raise SystemExit(f"{path}: no turn has a target that can be encoded. Make it again with: "
                         f"python 03_synthesize.py simulate --data-dir {data_dir}")
    return examples


def draw_batch(step, examples, histories, texts, item_of_track, fits, size, seed):
    """The examples of a step, drawn by seed and step alone.

    histories: two forms; SECOND_SHARE of the examples have the second.
    Returns: (B query texts, B rows of targets, hits (B, B) bool, see info_nce).
    """
    rng = np.random.default_rng([seed, step])
    drawn = rng.choice(len(examples), min(size, len(examples)), replace=False)
    chosen = [examples[i] for i in drawn]
    forms = [histories[int(rng.random() < SECOND_SHARE)] for _ in chosen]
    queries = [query_inputs(turn, form, texts, fits)[0][0]
               for turn, form in zip(chosen, forms, strict=True)]
    rows = [int(rng.choice(turn.targets)) for turn in chosen]
    hits = [np.isin(item_of_track[rows], item_of_track[turn.targets]) for turn in chosen]
    return queries, rows, torch.from_numpy(np.stack(hits))


def fit(model, batch_loss, valid_mrr, work_dir, steps, eval_every, lr, seed):
    """Train `model` in place with AdamW, and leave it with the weights of the best valid MRR.

    batch_loss: function of a step (from 0) -> loss with a gradient.
    work_dir: folder of best.pt and of checkpoint-<step>.pt, from which a killed run goes on.
    The learning rate rises over a tenth of the steps, then falls to 0. Gradients are clipped at 1.
    Returns: the log, a list of dicts step, loss, valid_mrr.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    begin = 0
    log = []
    for path in list_checkpoints(work_dir)[-1:]:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        begin, log = saved["step"], saved["log"]

    warm = max(1, steps // 10)
    bar = tqdm(range(begin, steps), initial=begin, total=steps, desc="tune", unit="step")
    for step in bar:
        torch.manual_seed(2**32 * seed + step)  # the step's own dropout, the same when resumed
        rate = min((step + 1) / warm, (steps - step) / max(1, steps - warm))
        optimizer.param_groups[0]["lr"] = lr * rate
        model.train()
        loss = batch_loss(step)
        if not math.isfinite(loss.item()):
            raise SystemExit(f"step {step + 1}: the loss is {loss.item()}; try a smaller --lr "
                             f"(now {lr:g}) with --no-resume")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
        if (step + 1) % eval_every and step + 1 < steps:
            continue

        # validate, and save all that a killed run needs
        model.eval()
        mrr = valid_mrr()
        bar.write(f"step {step + 1}: MRR on valid {mrr:.4f}")
        if mrr > max((row["valid_mrr"] for row in log), default=-1.0):
            write_whole(work_dir / "best.pt", model.state_dict())
        log.append({"step": step + 1, "loss": loss.item(), "valid_mrr": mrr})
        write_whole(work_dir / f"checkpoint-{step + 1}.pt",
                    {"model": model.state_dict(), "optimizer": optimizer.state_dict(),
                     "step": step + 1, "log": log})
        for old in list_checkpoints(work_dir)[:-1]:
            old.unlink()
    model.load_state_dict(torch.load(work_dir / "best.pt", map_location="cpu", weights_only=True))
    model.eval()
    return log


def tune(towers, examples, valid_turns, work_dir, args):
    """Fine-tune towers.model in place on the turns `examples`; returns the log, see fit."""
    encoder, trained, texts, item_of_track = (
        towers.encoder, towers.trained, towers.texts, towers.item_of_track)

    def batch_loss(step):
        queries, rows, hits = draw_batch(step, examples, trained, texts, item_of_track,
                                         encoder.fits, args.batch_size, args.seed)
        queries = encoder.query_batch(queries)
        return info_nce(queries, towers.item_batch(rows), hits.to(queries.device))

    def valid_mrr():
        items = towers.encode_items()
        vectors = embed_turns(valid_turns, trained[:1], texts, items, item_of_track, encoder)
        return turns.mrr(score_turns(vectors[trained[0]], items, item_of_track), valid_turns,
                         args.seed)

    return fit(towers.model, batch_loss, valid_mrr, work_dir, args.steps, args.eval_every,
               args.lr, args.seed)


def save_folder(saved, work_dir, folder):
    """A Hugging Face folder of a model and its tokenizer; in work_dir until it is whole."""
    for thing in saved:
        thing.save_pretrained(work_dir / "model")
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(work_dir / "model", folder)
