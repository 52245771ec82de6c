"""Baseline: TIGER generates the Semantic ID of the next track (Rajput et al. 2023).

A Semantic ID (semantic_ids.py) has three codes from the track's text, coarse to fine, and a fourth
that numbers the tracks with the same three. An encoder-decoder Transformer (T5's) reads the IDs of
up to 20 played tracks and writes the ID of the next; queries are not read. Beam search over the
catalogue's IDs finds the `--beam` best tracks, ranked by the log-probability of their IDs. All
others follow by popularity, and so do all tracks if nothing has been played yet.

One model is trained for each of `--train-on`. It keeps the weights with the lowest loss on the
valid dialogues; the model with the best MRR on them is the system `tiger`. Recipe `paper` is the
paper's, without its user token, since listeners have no id here; `demo` is smaller, for two cores.
A killed run goes on from its last checkpoint and, on a CPU, ends in the same weights to the bit.

Reads   tracks.jsonl, annotations/*.jsonl, playlists.jsonl, dialogues_{train,valid,test}.jsonl
Writes  predictions/tiger.jsonl (test), predictions_valid/tiger.jsonl, tiger/ (semantic_ids.npy,
        (N, 4) int32, and the model, a Hugging Face folder); while it runs, tiger.part/
Demo    python baselines/tiger.py    (4 minutes on two cores)
Full    python baselines/tiger.py --data-dir data/mpd --recipe paper --ids rqvae --device cuda
        (not run)
"""

import argparse
import shutil
import sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm
from transformers import DynamicCache, EncoderDecoderCache, T5Config, T5ForConditionalGeneration

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # common/ lies beside baselines/
from baselines import shared
from baselines.popularity import count_tracks
from baselines.semantic_ids import make_ids
from common import data, flags, turns
from steps.infer.trie import build_trie
from steps.train.checkpoints import load_best, load_checkpoint, save_best, save_checkpoint

NAME = "tiger"
PAD, EOS, BOS, FIRST = 0, 1, 2, 3  # token ids; those of the codes begin at FIRST
HISTORY = 20                       # tracks that the model reads at most, the last ones
TRAIN_ON = ("dialogues", "playlists", "both")
RECIPES = {  # the learning rate falls as 1 / sqrt(step) after `warmup` steps; paper: section 4
    "paper": dict(layers=4, width=128, heads=6, head_width=64, ff=1024, dropout=0.1,
                  steps=200_000, batch_size=256, lr=0.01, warmup=10_000),
    "demo": dict(layers=2, width=64, heads=4, head_width=16, ff=256, dropout=0.1,
                 steps=500, batch_size=64, lr=0.01, warmup=200),
}


# ---------------------------------------------------------------- training examples

def token_table(ids):
    """Semantic IDs as tokens; every level has tokens of its own.

    ids: (N, L) int, 0 or more.
    Returns: (N + 1, L) int64, whose last row, PAD, stands for no track (row -1); vocabulary size.
    """
    sizes = ids.max(0) + 1
    tokens = ids + FIRST + np.concatenate([[0], sizes[:-1].cumsum()])
    no_track = np.full((1, ids.shape[1]), PAD)
    return np.vstack([tokens, no_track]).astype(np.int64), int(FIRST + sizes.sum())


class Examples(NamedTuple):
    """Every place of every sequence but its first: predict its track from up to HISTORY before."""
    items: np.ndarray   # (T,) catalogue rows, sequence after sequence
    begin: np.ndarray   # (T,) where the sequence of each begins
    places: np.ndarray  # (n,) numbers of the items to predict


def make_examples(sequences):
    """Examples of a list of sequences of catalogue rows."""
    lengths = [len(sequence) for sequence in sequences]
    items = np.array([row for sequence in sequences for row in sequence], np.int64)
    begin = np.repeat(np.cumsum([0, *lengths])[:-1], lengths).astype(np.int64)
    return Examples(items, begin, np.flatnonzero(np.arange(len(items)) > begin))


def take(examples, chosen):
    """The chosen examples: histories (B, HISTORY), -1 on the left if shorter, and targets (B,)."""
    places = examples.places[chosen]
    before = places[:, None] - np.arange(HISTORY, 0, -1)  # (B, HISTORY)
    inside = before >= examples.begin[places][:, None]
    return np.where(inside, examples.items[np.maximum(before, 0)], -1), examples.items[places]


def encode_histories(histories, table, device="cpu"):
    """Histories (B, H) of rows, -1 on the left -> tokens (B, T), PAD on the left, EOS at the end.

    Columns without any track are left out.
    """
    used = histories[:, (histories >= 0).any(0).argmax():]
    ids = table[used].reshape(len(used), -1)
    return torch.from_numpy(np.column_stack([ids, np.full(len(ids), EOS)])).to(device)


def draw_batches(examples, size, seed, step):
    """Yield batches of example numbers, (size,), without end, beginning with batch `step`.

    Every pass over the examples is shuffled anew; some of them fill up its last batch. The
    histories of a batch have similar lengths: so 2 to 3% of it is padding in the demo, not half.
    """
    lengths = np.minimum(examples.places - examples.begin[examples.places], HISTORY)
    n_batches = -(-len(lengths) // size)
    epoch, skip = divmod(step, n_batches)
    while True:
        rng = np.random.default_rng([seed, epoch])
        order = np.resize(rng.permutation(len(lengths)), n_batches * size)  # repeats its beginning
        pool = np.arange(len(order)) // (50 * size)  # lengths are sorted within 50 batches
        order = order[np.lexsort((lengths[order], pool))].reshape(n_batches, size)
        yield from order[rng.permutation(n_batches)[skip:]]
        epoch, skip = epoch + 1, 0


# ---------------------------------------------------------------- the model and its training

def build_model(vocabulary, recipe, seed=0):
    """A T5 with random weights."""
    torch.manual_seed(seed)
    return T5ForConditionalGeneration(T5Config(
        vocab_size=vocabulary, d_model=recipe["width"], d_kv=recipe["head_width"],
        d_ff=recipe["ff"], num_heads=recipe["heads"], num_layers=recipe["layers"],
        dropout_rate=recipe["dropout"], pad_token_id=PAD, eos_token_id=EOS,
        decoder_start_token_id=BOS))


def compute_loss(model, table, examples, chosen):
    """Cross-entropy of the IDs of the chosen targets, in nats per token."""
    histories, targets = take(examples, chosen)
    ids = encode_histories(histories, table, model.device)
    labels = torch.from_numpy(table[targets]).to(model.device)
    return model(input_ids=ids, attention_mask=ids != PAD, labels=labels).loss


@torch.inference_mode()
def mean_loss(model, table, examples, size=256):
    """The loss over all examples. The model is in eval mode."""
    batches = np.split(np.arange(len(examples.places)), range(size, len(examples.places), size))
    total = sum(compute_loss(model, table, examples, b).item() * len(b) for b in batches)
    return total / len(examples.places)


def fit(model, table, examples, check, recipe, folder, seed=0, every=100):
    """Train to recipe["steps"], from the checkpoint in `folder` if any; keep the best weights.

    Adafactor as in T5X, with which TIGER was made: steps are relative to each weight's size. AdamW
    at 0.01 was less steady: it learnt eight toy sequences by heart with one of two seeds.

    check: function without arguments, lower is better; called after every `every` steps and at the
        end. A checkpoint is written then.
    Returns: the best value of the check.
    """
    folder.mkdir(exist_ok=True)
    optimizer = torch.optim.Adafactor(model.parameters())
    begin, progress = load_checkpoint(folder, model, optimizer)
    progress = progress or {"best": np.inf}
    steps = range(begin + 1, recipe["steps"] + 1)
    bar = tqdm(steps, f"train on {folder.name}", recipe["steps"], initial=begin, unit="step")
    batches = draw_batches(examples, recipe["batch_size"], seed, begin)
    for step, batch in zip(bar, batches, strict=False):
        model.train()
        loss = compute_loss(model, table, examples, batch)
        if not torch.isfinite(loss):
            raise SystemExit(f"{folder.name}, step {step}: loss {loss.item()}. Try a smaller --lr "
                             f"(now {recipe['lr']:g}) with --no-resume")
        loss.backward()
        optimizer.param_groups[0]["lr"] = recipe["lr"] * min(1, recipe["warmup"] / step) ** 0.5
        optimizer.step()
        optimizer.zero_grad()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)

        if step % every == 0 or step == recipe["steps"]:
            model.eval()
            value = check()
            if value < progress["best"]:
                progress = {"best": value, "best_step": step}
                save_best(folder, model, step)
            save_checkpoint(folder, model, optimizer, step, progress)
    load_best(folder, model, progress["best_step"])
    model.eval()
    return progress["best"]


# ---------------------------------------------------------------- beam search over the IDs

def build_levels(table, device="cpu"):
    """The trie of N unique IDs (drawn in steps/infer/trie.py) as tensors. table: (N, L) tokens.

    Returns: per level the last token of each node, (M,), and where the children of each node above
        begin, (M' + 1,); and the row of the table at each leaf, (N,) array.
    """
    trie = build_trie(table)
    return [(torch.from_numpy(tokens).to(device), torch.from_numpy(children).to(device))
            for tokens, children in zip(trie.codes, trie.children, strict=True)], trie.rows


@torch.inference_mode()
def beam_search(model, levels, ids, width):
    """The best leaves of the trie for each history; exact if `width` is the number of leaves.

    levels: from build_levels. ids: (B, T) tokens from encode_histories.
    Returns: leaves, (B, W) int64, and log-probabilities of their IDs, (B, W), best first. W is
        `width`, or the number of leaves if that is less: every node has a child, so no beam dies.
    """
    n = len(ids)
    mask = (ids != PAD).long()
    encoded = model.encoder(input_ids=ids, attention_mask=mask).last_hidden_state  # (B, T, d)
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    nodes = torch.zeros_like(ids[:, :1])  # (B, W), W = 1: the root
    scores = torch.zeros(n, 1, device=ids.device)  # (B, W)
    tokens = torch.full_like(nodes, BOS)  # (B, W)
    for level_tokens, first_child in levels:
        # what may come next in each beam
        logits = model(encoder_outputs=(encoded,), attention_mask=mask,
                       decoder_input_ids=tokens.view(-1, 1), past_key_values=cache,
                       use_cache=True).logits
        log_p = logits[:, -1].float().log_softmax(-1).view(n, nodes.shape[1], -1)  # (B, W, V)

        # the children of each beam's node, and the scores that they would have
        most = int(first_child.diff().max())  # C, children that a node has at most
        children = first_child[nodes][..., None] + torch.arange(most, device=ids.device)
        real = children < first_child[nodes + 1][..., None]  # (B, W, C)
        children = children.clamp(max=len(level_tokens) - 1)
        extended = scores[..., None] + log_p.gather(2, level_tokens[children])
        extended = extended.masked_fill(~real, -torch.inf).flatten(1)  # (B, W x C)

        # the best of them are the new beams
        scores, best = extended.topk(min(width, len(level_tokens)))
        first_beam = torch.arange(n, device=ids.device)[:, None] * nodes.shape[1]
        came_from = (best // most + first_beam).flatten()  # (B x W,) rows of the old beams
        nodes = children.flatten(1).gather(1, best)
        tokens = level_tokens[nodes]

        # they take over the cache; of what comes from the encoder only their number matters,
        # since the beams of a history share it
        cache.self_attention_cache.reorder_cache(came_from)
        if len(came_from) != len(mask):
            cache.cross_attention_cache.reorder_cache(came_from)
            encoded, mask = encoded[came_from], mask[came_from]
    return nodes, scores


def search_turns(model, table, trie, to_rank, width, beams_at_once=1600):
    """Beam search for every turn. to_rank: list of Turn; trie: from build_levels.

    Returns: list of (rows (W,), log-probabilities (W,)), best first; None if nothing was played.
    """
    levels, row_of_leaf = trie
    results = [None] * len(to_rank)

    # turns with histories of one length share a batch, so there is no padding
    by_length = defaultdict(list)
    for i, turn in enumerate(to_rank):
        if turn.played:
            by_length[min(len(turn.played), HISTORY)].append(i)
    size = max(1, beams_at_once // width)
    batches = [same[first:first + size] for _, same in sorted(by_length.items())
               for first in range(0, len(same), size)]
    for batch in tqdm(batches, desc="beam search", unit="batch"):
        histories = np.array([to_rank[i].played[-HISTORY:] for i in batch])
        ids = encode_histories(histories, table, model.device)
        leaves, scores = (x.cpu().numpy() for x in beam_search(model, levels, ids, width))
        for i, row, log_p in zip(batch, row_of_leaf[leaves], scores, strict=True):
            results[i] = row, log_p.astype(np.float64)
    return results


def score_tracks(results, counts):
    """Yield the scores of all tracks, (N,), for each result of `search_turns`.

    The beam's tracks have their log-probabilities; all others lie below them by counts, (N,).
    """
    for result in results:
        scores = counts.astype(np.float64)
        if result is not None:
            rows, log_p = result
            scores += log_p.min() - 1 - counts.max()
            scores[rows] = log_p
        yield scores


# ---------------------------------------------------------------- main

def load_examples(data_dir, playlists, row_of, train_on):
    """Examples to learn from, {one of TRAIN_ON: Examples}, and those of the valid dialogues.

    Raises SystemExit: one of them is empty.
    """
    def load_music(split):
        dialogues = data.load_dialogues(data_dir / f"dialogues_{split}.jsonl", row_of)
        return shared.music_sequences(playlists, dialogues, row_of)

    learnt = load_music("train")
    learnt["both"] = learnt["dialogues"] + learnt["playlists"]
    train = {name: make_examples(learnt[name]) for name in train_on}
    valid = make_examples(load_music("valid")["dialogues"])
    for name, examples in (*train.items(), ("dialogues_valid.jsonl", valid)):
        if not len(examples.places):
            raise SystemExit(f"{data_dir}, {name}: no sequence has two tracks, so there is no next "
                             f"one to learn. Name another --train-on ({', '.join(TRAIN_ON)})")
    return train, valid


def parse_args():
    """(args, recipe): the recipe's values, with those given as flags laid over them."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--text-encoder", default="minilm", help="minilm (default), Hugging Face id or folder")
    add("--ids", choices=("kmeans", "rqvae"), default="kmeans",
        help="Semantic IDs by residual k-means (default) or RQ-VAE (paper)")
    add("--levels", type=int, default=3, help="residual codes of an ID (default 3)")
    add("--codes", type=int, default=0, help="per level; 0 (default): 256, or N / 8 if fewer")
    add("--rqvae-epochs", type=int, default=300, help="passes (default 300; the paper: 20,000)")
    add("--train-on", nargs="+", choices=TRAIN_ON, default=["dialogues", "playlists"],
        help="a model for each, the best on valid is taken (default: dialogues playlists)")
    add("--recipe", choices=RECIPES, default="demo",
        help="model, and values of the next flags (default demo)")
    add("--steps", type=int, help="training steps per model (paper: 200,000, demo: 500)")
    add("--batch-size", type=int, help="examples per step (paper: 256, demo: 64)")
    add("--lr", type=float, help="learning rate (0.01)")
    add("--warmup", type=int, help="steps before the rate falls (paper: 10,000, demo: 200)")
    add("--eval-every", type=int, default=100, help="steps between checkpoints (default 100)")
    add("--beam", type=int, default=100, help="width (default 100); 0 = the catalogue's, exact")
    flags.add_shared(parser, "data-dir", "device", "seed", "resume")
    args = parser.parse_args()
    flags.check_ranges(args, levels=1, codes=0, rqvae_epochs=1, steps=1, batch_size=1, lr=1e-9,
                       warmup=1, eval_every=1, beam=0)
    given = {name: value for name, value in vars(args).items() if value is not None}
    return args, {name: given.get(name, value) for name, value in RECIPES[args.recipe].items()}


def make_ids_once(path, tracks, args):
    """The Semantic IDs of the tracks, (N, levels + 1) int32; from `path` if a cut run left them."""
    if not path.is_file():
        data.save_npy(path, make_ids(tracks, args.text_encoder, args.ids, args.levels, args.codes,
                                     args.rqvae_epochs, args.seed, args.device))
    ids = np.load(path)
    print(f"Semantic IDs: {', '.join(map(str, ids.max(0)[:-1] + 1))} codes in the levels; "
          f"{np.mean(ids[:, -1] == 0):.1%} of the tracks are the only or the first with theirs, at "
          f"most {ids[:, -1].max() + 1} share one")
    return ids


def main():
    args, recipe = parse_args()
    torch.set_flush_denormal(True)  # on a CPU, tiny numbers would slow everything down
    tracks = data.load_tracks(args.data_dir)
    row_of = {track["track_id"]: row for row, track in enumerate(tracks)}
    playlists = data.load_playlists(args.data_dir, row_of)
    turns_of = turns.load_turns(args.data_dir, row_of)
    train, valid = load_examples(args.data_dir, playlists, row_of, args.train_on)
    part = args.data_dir / "tiger.part"
    writes = [f"tiger/{file}" for file in ("semantic_ids.npy", "config.json", "model.safetensors")]
    run = shared.begin_run(args, NAME, ["playlists.jsonl"], writes, data.SPLITS, part)
    if run is None:
        return

    # a model for each training set; the best MRR on valid decides
    ids = make_ids_once(part / "semantic_ids.npy", tracks, args)
    table, vocabulary = token_table(ids)
    trie = build_levels(table[:-1], args.device)
    counts = count_tracks(playlists, row_of)
    width = args.beam or len(tracks)
    models = {}
    results = {}
    valid_mrr = {}
    for name, examples in train.items():
        models[name] = model = build_model(vocabulary, recipe, args.seed).to(args.device)
        loss = fit(model, table, examples, lambda m=model: mean_loss(m, table, valid), recipe,
                   part / name, args.seed, args.eval_every)
        results[name] = search_turns(model, table, trie, turns_of["valid"], width)
        scores = score_tracks(results[name], counts)
        valid_mrr[name] = turns.mrr(scores, turns_of["valid"], args.seed)
        print(f"{name}: {len(examples.places):,} examples, on valid {loss:.3f} nats per token, "
              f"MRR {valid_mrr[name]:.4f}")
    chosen = max(valid_mrr, key=valid_mrr.get)
    print(f"Chosen on valid: {chosen}")

    results = {"valid": results[chosen],
               "test": search_turns(models[chosen], table, trie, turns_of["test"], width)}
    shared.write_rankings(args.data_dir, NAME, lambda split: score_tracks(results[split], counts),
                          turns_of, list(row_of), args.seed)
    models[chosen].save_pretrained(args.data_dir / "tiger")
    data.save_npy(args.data_dir / writes[0], ids)
    shared.finish_run(args.data_dir, run, recipe=recipe, valid_mrr=valid_mrr,
                      chosen_on_valid=chosen)
    shutil.rmtree(part)


if __name__ == "__main__":
    main()
