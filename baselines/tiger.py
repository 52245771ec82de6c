"""Baseline: TIGER, the next track's Semantic ID generated from those of the tracks before (Rajput et al. 2023).

The text of each track ("title by artist from album (year), tags") is embedded, and the embedding becomes a Semantic ID: three
residual codes, coarse to fine (`--ids kmeans`: k-means of what the codes before leave over; `--ids rqvae`: the paper's RQ-VAE),
and a fourth that counts the tracks with the same three, so that no two tracks share an ID and none can be hit in another's
name. Codes a level: 256, in small catalogues N / 8. An encoder-decoder Transformer (T5's) reads the IDs of up to 20 tracks and
writes that of the next. Cold tracks have IDs too, from their text.

Prediction: beam search over the IDs of the catalogue, nothing else can be written. The `--beam` best tracks (100) are ranked by
the log-probability of their IDs, all others stand below them by popularity (popularity.py); so does everything where nothing
has been played yet. `--beam 0` is as wide as the catalogue: then every track has its exact probability.

Queries are not read. A model is trained for each of `--sources` (next track in training dialogues, in training playlists, or in
both), its weights those of the lowest loss on valid dialogues; the source with the best MRR on valid dialogues is the system
`tiger`. Recipe `paper` is the paper's model and training (without its user token: listeners have no id here), `demo` a smaller
one for two cores. A killed run goes on from its last checkpoint and, on a CPU, ends in the same weights to the bit.

Reads   tracks.jsonl, annotations/*.jsonl, playlists.jsonl, dialogues_train.jsonl, dialogues_valid.jsonl, dialogues_test.jsonl
Writes  predictions/tiger.jsonl (test), predictions_valid/tiger.jsonl (valid), tiger/ (semantic_ids.npy (N, 4) int32 and the
        model, a Hugging Face folder); while it runs, tiger.part/
Demo    python baselines/tiger.py    (3 minutes on two cores)
Full    python baselines/tiger.py --data-dir data/mpd --recipe paper --ids rqvae --device cuda    (not run)
"""

import argparse
import importlib
import os
import pickle
import shutil
import sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from tqdm import tqdm
from transformers import DynamicCache, EncoderDecoderCache, T5Config, T5ForConditionalGeneration

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # common/ lies beside baselines/
from baselines.popularity import count_tracks
from common import data, runs, turns
from common.process import resolve_device
from steps.quantize.kmeans import fit_codebook

quantize = importlib.import_module("02_quantize")

PAD, EOS, BOS, FIRST = 0, 1, 2, 3  # token ids; those of the codes begin at FIRST
HISTORY = 20                       # tracks that the model reads at most, the last ones
COMMITMENT = 0.25                  # weight of the RQ-VAE's pull of the encoder to its codes
SOURCES = ("dialogues", "playlists", "both")
RECIPES = {  # lr falls as 1 / sqrt(step) after `warmup` steps; paper: section 4 of Rajput et al.
    "paper": dict(layers=4, width=128, heads=6, head_width=64, ff=1024, dropout=0.1,
                  steps=200_000, batch_size=256, lr=0.01, warmup=10_000),
    "demo": dict(layers=2, width=64, heads=4, head_width=16, ff=256, dropout=0.1,
                 steps=500, batch_size=64, lr=0.01, warmup=200),
}
# T5X, in which TIGER was made, trains with Adafactor: steps relative to each weight's size, lr min(0.01, 1 / sqrt(step)), which
# is the paper's schedule. AdamW at 0.01 was less steady: eight toy sequences were learnt by heart with one of two seeds.
OPTIMIZERS = {"adafactor": torch.optim.Adafactor, "adamw": lambda weights: torch.optim.AdamW(weights, weight_decay=0.0)}


# ---------------------------------------------------------------- Semantic IDs

def embed_items(tracks, encoder, device):
    """Text embeddings of the tracks, (N, D) float32 of length 1. encoder: see 01's --text-encoder."""
    extract = importlib.import_module("01_extract_embeddings")
    tokenizer, model, max_tokens = extract.load_text_encoder(extract.resolve_text_encoder(encoder), device)
    return extract.embed_texts([data.item_text(track) for track in tracks], tokenizer, model, max_tokens)[0]


def residual_kmeans(vectors, levels, n_codes, seed=0):
    """K-means of the vectors, k-means of what its centres leave over, and so on.

    vectors: (N, D) float32. Returns: (N, levels) int64 codes, and a list of the levels' centres, each (K, D) float32
    with K = n_codes, or fewer where fewer rows differ.
    """
    residual, codes, books = np.array(vectors, np.float32), [], []
    for level in range(levels):
        k = min(n_codes, quantize.count_distinct(residual, n_codes))
        books.append(fit_codebook(residual, k, seed=seed + level))
        codes.append(quantize.assign(residual, books[-1]).astype(np.int64))
        residual -= books[-1][codes[-1]]
    return np.stack(codes, 1), books


class RQVAE(nn.Module):
    """Residual-quantised autoencoder (section 3.1): the codes of a small vector between an encoder and a decoder MLP."""

    def __init__(self, dim, levels, n_codes, widths=(512, 256, 128, 32)):
        super().__init__()
        self.encoder, self.decoder = mlp((dim, *widths)), mlp((*reversed(widths), dim))
        self.books = nn.Parameter(torch.zeros(levels, n_codes, widths[-1]))

    def quantize(self, z):
        """z (B, d) -> codes (B, levels), their sum (B, d), and the loss that draws codes and encoder together."""
        residual, total, codes, loss = z, torch.zeros_like(z), [], 0.0
        for book in self.books:
            codes.append(torch.cdist(residual.detach(), book.detach()).argmin(1))
            chosen = book[codes[-1]]  # (B, d)
            loss = loss + squared(residual.detach() - chosen) + COMMITMENT * squared(residual - chosen.detach())
            residual, total = residual - chosen.detach(), total + chosen
        return torch.stack(codes, 1), total, loss

    def forward(self, x):
        """x (B, D) -> its reconstruction (B, D), codes, quantisation loss. The gradient passes the codes straight through."""
        z = self.encoder(x)
        codes, total, loss = self.quantize(z)
        return self.decoder(z + (total - z).detach()), codes, loss


def mlp(widths):
    layers = [layer for a, b in zip(widths, widths[1:]) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def squared(difference):
    return difference.square().sum(1).mean()


def train_rqvae(vectors, levels, n_codes, epochs, seed=0, device="cpu", batch_size=256, lr=1e-3):
    """An RQVAE of the vectors, centred and scaled to a variance of 1 (all columns alike).

    The first quarter of the epochs trains the autoencoder without codes; these then start from residual k-means of its small
    vectors. With codes from the first step on, the demo's tracks came to use a fifth of them.
    vectors: (N, D) float32. Returns: codes (N, levels) int64, and the reconstruction error (squared, summed) of each epoch.
    """
    torch.manual_seed(seed)
    x = torch.from_numpy((vectors - vectors.mean(0)) / max(vectors.var(0).mean() ** 0.5, 1e-9)).to(device)
    model, errors, warm = RQVAE(x.shape[1], levels, n_codes).to(device), [], epochs // 4
    optimizer = torch.optim.AdamW(model.parameters(), lr)
    for epoch in tqdm(range(epochs), desc="rqvae", unit="epoch"):
        if epoch == warm:
            with torch.no_grad():
                small = model.encoder(x).cpu().numpy()
                for book, centres in zip(model.books, residual_kmeans(small, levels, n_codes, seed)[1]):
                    book[:len(centres)] = torch.from_numpy(centres)
        order, total = torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(len(x))).to(device), 0.0
        for rows in order.split(batch_size):
            again, _, loss = (model.decoder(model.encoder(x[rows])), None, 0.0) if epoch < warm else model(x[rows])
            error = squared(again - x[rows])
            optimizer.zero_grad()
            (error + loss).backward()
            optimizer.step()
            total += error.item() * len(rows)
        errors.append(total / len(x))
    with torch.no_grad():
        return model.quantize(model.encoder(x))[0].cpu().numpy(), errors


def make_codes(vectors, args, n_codes, device):
    """Residual codes of the vectors by --ids: (N, levels) int64."""
    if args.ids == "kmeans":
        return residual_kmeans(vectors, args.levels, n_codes, args.seed)[0]
    codes, errors = train_rqvae(vectors, args.levels, n_codes, args.rqvae_epochs, args.seed, device)
    print(f"rqvae: {errors[-1] / vectors.shape[1]:.1%} of the embeddings' variance is lost in the last epoch")
    return codes


def add_collision_code(codes):
    """Append the code that makes IDs unique: 0, 1, 2 ... for the tracks with equal codes, in row order.

    codes: (N, levels) int. Returns: (N, levels + 1) int64.
    """
    group = np.unique(codes, axis=0, return_inverse=True)[1].ravel()
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], group[order])  # where the group of each begins
    number = np.empty(len(codes), np.int64)
    number[order] = np.arange(len(codes)) - starts
    return np.column_stack([codes, number])


def token_table(ids):
    """Semantic IDs as tokens, and the size of the vocabulary: every level has tokens of its own.

    ids: (N, L) int from 0 on. Returns: (N + 1, L) int64, whose last row, PAD, stands for no track (row -1).
    """
    sizes = ids.max(0) + 1
    tokens = ids + FIRST + np.concatenate([[0], sizes[:-1].cumsum()])
    return np.vstack([tokens, np.full((1, ids.shape[1]), PAD)]).astype(np.int64), int(FIRST + sizes.sum())


# ---------------------------------------------------------------- training examples

class Examples(NamedTuple):
    """Every place of every sequence but its first: the track there is to be told from up to HISTORY before it."""
    items: np.ndarray  # (T,) catalogue rows, sequence after sequence
    begin: np.ndarray  # (T,) where the sequence of each begins
    places: np.ndarray  # (n,)


def make_examples(sequences):
    """Examples of an iterable of sequences of catalogue rows."""
    lengths = [len(sequence) for sequence in sequences]
    items = np.concatenate([np.asarray(sequence, np.int64) for sequence in sequences] or [np.zeros(0, np.int64)])
    begin = np.repeat(np.cumsum([0, *lengths])[:-1], lengths).astype(np.int64)
    return Examples(items, begin, np.flatnonzero(np.arange(len(items)) > begin))


def take(examples, chosen):
    """The chosen examples: histories (B, HISTORY), -1 on the left where they are shorter, and targets (B,)."""
    places = examples.places[chosen]
    before = places[:, None] - np.arange(HISTORY, 0, -1)
    inside = before >= examples.begin[places][:, None]
    return np.where(inside, examples.items[np.maximum(before, 0)], -1), examples.items[places]


def encode_histories(histories, table, device="cpu"):
    """Histories (B, H) of rows, -1 on the left, -> token ids (B, T): PAD on the left, EOS at the end."""
    used = histories[:, (histories >= 0).any(0).argmax():]  # columns without any track are left out
    ids = table[used].reshape(len(used), -1)
    return torch.from_numpy(np.column_stack([ids, np.full(len(ids), EOS)])).to(device)


def batches(examples, size, seed, step):
    """Yield (size,) numbers of examples, for ever, from batch `step` on: one shuffled pass over all of them after another.

    A batch has histories of like length: 2 to 3% of it is padding in the demo, else it would be half. To fill the last batch of
    a pass, its first examples are taken once more.
    """
    lengths = np.minimum(examples.places - examples.begin[examples.places], HISTORY)
    n_batches = -(-len(lengths) // size)
    epoch, skip = divmod(step, n_batches)
    while True:
        rng = np.random.default_rng([seed, epoch])
        order = np.resize(rng.permutation(len(lengths)), n_batches * size)  # repeats its beginning where it is too short
        pool = np.arange(len(order)) // (50 * size)
        order = order[np.lexsort((lengths[order], pool))].reshape(n_batches, size)
        yield from order[rng.permutation(n_batches)[skip:]]
        epoch, skip = epoch + 1, 0


# ---------------------------------------------------------------- the model and its training

def build_model(vocabulary, recipe, seed=0):
    """A T5 with random weights."""
    torch.manual_seed(seed)
    return T5ForConditionalGeneration(T5Config(
        vocab_size=vocabulary, d_model=recipe["width"], d_kv=recipe["head_width"], d_ff=recipe["ff"],
        num_heads=recipe["heads"], num_layers=recipe["layers"], dropout_rate=recipe["dropout"],
        pad_token_id=PAD, eos_token_id=EOS, decoder_start_token_id=BOS))


def loss_of(model, table, examples, chosen):
    """Cross-entropy of the chosen targets' IDs, nats a token."""
    histories, targets = take(examples, chosen)
    ids = encode_histories(histories, table, model.device)
    return model(input_ids=ids, attention_mask=ids != PAD, labels=torch.from_numpy(table[targets]).to(model.device)).loss


@torch.inference_mode()
def mean_loss(model, table, examples, size=256):
    """`loss_of` over all examples, without dropout."""
    n = len(examples.places)
    parts = [np.arange(first, min(first + size, n)) for first in range(0, n, size)]
    return sum(loss_of(model, table, examples, part).item() * len(part) for part in parts) / n


def save_checkpoint(path, content):
    temporary = path.with_suffix(".tmp")
    torch.save(content, temporary)
    os.replace(temporary, path)


def load_checkpoint(path, model, optimizer):
    """Take up the checkpoint, if there is one. Returns (step, best value of the check, best weights)."""
    if not path.is_file():
        return 0, None, None
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
    except (RuntimeError, KeyError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise SystemExit(f"{path}: not a checkpoint of this run ({str(error).splitlines()[0]}). Delete it to train this model "
                         f"afresh, or start all afresh with --no-resume")
    torch.set_rng_state(saved["rng"])
    return saved["step"], saved["best"], saved["best_weights"]


def fit(model, table, examples, check, recipe, path, seed=0, every=100, optimizer="adafactor"):
    """Train to recipe["steps"], from the checkpoint at `path` on if there is one; the model ends with its best weights.

    check: function without arguments -> a number, lower is better, asked after every `every` steps and at the end, when
    a checkpoint is written too. Returns: the best of these numbers.
    """
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    step, best, best_weights = load_checkpoint(path, model, optimizer)
    order = batches(examples, recipe["batch_size"], seed, step)
    with tqdm(total=recipe["steps"], initial=step, desc=f"train on {path.stem}", unit="step") as bar:
        while step < recipe["steps"]:
            model.train()
            loss = loss_of(model, table, examples, next(order))
            loss.backward()
            step += 1
            for group in optimizer.param_groups:
                group["lr"] = recipe["lr"] * min(1, recipe["warmup"] / step) ** 0.5
            if not torch.isfinite(loss):
                raise SystemExit(f"{path.stem}, step {step}: loss {loss.item()}. Try a smaller --lr (now {recipe['lr']:g}) with "
                                 f"--no-resume")
            optimizer.step()
            optimizer.zero_grad()
            bar.update()
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
            if step % every == 0 or step == recipe["steps"]:
                model.eval()
                value = check()
                if best is None or value < best:
                    best, best_weights = value, {name: w.clone() for name, w in model.state_dict().items()}
                save_checkpoint(path, {"step": step, "best": best, "best_weights": best_weights, "model": model.state_dict(),
                                       "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()})
    model.load_state_dict(best_weights)
    model.eval()
    return best


# ---------------------------------------------------------------- beam search over the IDs of the catalogue

class Level(NamedTuple):
    """One level of the trie. Its nodes are the IDs' different beginnings of one length, in lexicographic order."""
    token: torch.Tensor  # (M,) last token of each node
    first: torch.Tensor  # (M' + 1,) the children of node p of the level above are nodes first[p] to first[p + 1] - 1
    most: int            # children of one node at most


def build_trie(table, device="cpu"):
    """The trie of N unique IDs. table: (N, L) int64 tokens.

    Returns: list of L Levels on the device, and the row of the table at each leaf, (N,) int64.
    """
    rows = np.lexsort(table.T[::-1])
    ordered, above, levels = table[rows], np.zeros(len(table), np.int64), []
    for depth in range(1, table.shape[1] + 1):
        new = np.concatenate([[True], (ordered[1:, :depth] != ordered[:-1, :depth]).any(1)])  # a node begins here
        parents = above[new]  # (M,) ascending
        first = np.searchsorted(parents, np.arange(parents[-1] + 2))
        token, first = (torch.from_numpy(x).to(device) for x in (ordered[new, depth - 1], first))
        levels.append(Level(token, first, int(first.diff().max())))
        above = new.cumsum() - 1
    return levels, rows


@torch.inference_mode()
def beam_search(model, levels, ids, width):
    """The best leaves of the trie for each history; exact where `width` is at least the number of leaves.

    A history is encoded once, and so are the keys and values that the decoder takes from it; beams branch from there.
    levels: of build_trie; ids: (B, T) tokens of encode_histories.
    Returns: leaves (B, W) int64, and log-probabilities of their IDs (B, W), best first; W = width, or all leaves where they
    are fewer: every node has a child, so no beam ever dies.
    """
    n, mask = len(ids), (ids != PAD).long()
    encoded = model.encoder(input_ids=ids, attention_mask=mask).last_hidden_state  # (B, T, d)
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    nodes, scores = torch.zeros_like(ids[:, :1]), torch.zeros(n, 1, device=ids.device)  # (B, W): the root
    tokens, rows = torch.full_like(nodes, BOS), None
    for level in levels:
        if rows is not None:
            cache.self_attention_cache.reorder_cache(rows)
            if len(rows) != len(mask):  # beams of one history share these, so only their number matters
                cache.cross_attention_cache.reorder_cache(rows)
                encoded, mask = encoded[rows], mask[rows]
        logits = model(encoder_outputs=(encoded,), attention_mask=mask, decoder_input_ids=tokens.view(-1, 1),
                       past_key_values=cache, use_cache=True).logits
        log_p = logits[:, -1].float().log_softmax(-1).view(n, nodes.shape[1], -1)  # (B, W, V)
        children = level.first[nodes][..., None] + torch.arange(level.most, device=ids.device)  # (B, W, C)
        real = children < level.first[nodes + 1][..., None]
        children = children.clamp(max=len(level.token) - 1)
        found = scores[..., None] + log_p.gather(2, level.token[children])
        found = found.masked_fill(~real, -torch.inf).flatten(1)
        scores, best = found.topk(min(width, len(level.token)))
        rows = (best // level.most + torch.arange(n, device=ids.device)[:, None] * nodes.shape[1]).flatten()  # whence they come
        nodes = children.flatten(1).gather(1, best)
        tokens = level.token[nodes]
    return nodes, scores


@torch.inference_mode()
def score_all(model, table, ids, chunk=1024):
    """Log-probabilities of all N IDs, read one by one: (B, N). The plain way, for small catalogues, to hold beam_search to.

    table: (N, L) int64 tokens; ids: (B, T) tokens of encode_histories.
    """
    mask = (ids != PAD).long()
    encoded, found = model.encoder(input_ids=ids, attention_mask=mask).last_hidden_state, []
    for targets in torch.from_numpy(table).to(ids.device).split(chunk):
        labels = targets.repeat(len(ids), 1)  # (B x C, L)
        each = torch.arange(len(ids), device=ids.device).repeat_interleave(len(targets))
        logits = model(encoder_outputs=(encoded[each],), attention_mask=mask[each], labels=labels).logits
        found.append(logits.log_softmax(-1).gather(2, labels[..., None]).sum((1, 2)).view(len(ids), -1))
    return torch.cat(found, 1)


def search_turns(model, table, trie, found, width, beams_at_once=1600):
    """Beam search for every turn: list of (rows (W,), log-probabilities (W,)), best first; None where nothing was played.

    Turns with histories of one length share a batch, so there is no padding.
    """
    levels, row_of_leaf = trie
    of_length, results = defaultdict(list), [None] * len(found)
    for i, turn in enumerate(found):
        of_length[min(len(turn.played), HISTORY)].append(i)
    of_length.pop(0, None)
    size = max(1, beams_at_once // width)
    parts = [same[first:first + size] for _, same in sorted(of_length.items()) for first in range(0, len(same), size)]
    for part in tqdm(parts, desc="beam search", unit="batch"):
        ids = encode_histories(np.array([found[i].played[-HISTORY:] for i in part]), table, model.device)
        for i, leaves, scores in zip(part, *(x.cpu().numpy() for x in beam_search(model, levels, ids, width))):
            results[i] = row_of_leaf[leaves], scores.astype(np.float64)
    return results


def score_tracks(results, counts):
    """Yield the scores of all N tracks for each result of `search_turns`: the beam's, below them all others by counts (N,)."""
    for result in results:
        scores = counts.astype(np.float64)
        if result is not None:
            rows, log_p = result
            scores += log_p.min() - 1 - counts.max()
            scores[rows] = log_p
        yield scores


# ---------------------------------------------------------------- main

def music_of(path, row_of):
    """The tracks that each dialogue plays, accepted or not, as rows: list of lists."""
    return [[row_of[turn["music"]] for turn in dialogue["turns"] if turn["music"]]
            for dialogue in data.load_dialogues(path, row_of)]


def parse_args():
    """(args, recipe): the recipe's values, with those given as flags laid over them."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description="Train TIGER on training sequences and rank all tracks by it.")
    add = parser.add_argument
    add("--data-dir", type=Path, default=Path("data/demo"), help="folder of the data (default data/demo)")
    add("--text-encoder", default="minilm", help="minilm (default), a Hugging Face id, or a folder: as in 01")
    add("--ids", choices=("kmeans", "rqvae"), default="kmeans", help="Semantic IDs by residual k-means (default) or RQ-VAE (paper)")
    add("--levels", type=int, default=3, help="residual codes of an ID (default 3); one more tells equal ones apart")
    add("--codes", type=int, default=0, help="codes a level; 0 (default): 256, or N / 8 where that is fewer")
    add("--rqvae-epochs", type=int, default=300, help="passes of the RQ-VAE over the catalogue (default 300; the paper: 20,000)")
    add("--sources", nargs="+", choices=SOURCES, default=["dialogues", "playlists"], help="training sequences; a model each, "
        "the best on valid is taken (default: dialogues playlists)")
    add("--recipe", choices=RECIPES, default="demo", help="model, and values of the next flags (default demo)")
    for name, kind, what in (("steps", int, "training steps a source"), ("batch-size", int, "sequences a step"),
                             ("lr", float, "learning rate"), ("warmup", int, "steps after which it falls as 1 / sqrt(step)")):
        values = ", ".join(f"{r}: {v[name.replace('-', '_')]:g}" for r, v in RECIPES.items())
        add(f"--{name}", type=kind, help=f"{what} ({values})")
    add("--optimizer", choices=OPTIMIZERS, default="adafactor", help="default adafactor; for adamw, try a smaller --lr")
    add("--eval-every", type=int, default=100, help="steps between validations, each with a checkpoint (default 100)")
    add("--beam", type=int, default=100, help="width of the beam search (default 100); 0 = the catalogue's, exact")
    add("--device", type=resolve_device, default="auto", help="auto (default: cuda if there is one), cpu, cuda, ...")
    add("--seed", type=int, default=0, help="of IDs, weights, order and ties (default 0)")
    add("--resume", action=argparse.BooleanOptionalAction, default=True, help="skip when done, go on when half done (default); "
        "--no-resume starts afresh")
    args = parser.parse_args()
    given = {name: value for name, value in vars(args).items() if value is not None}
    recipe = {name: given.get(name, value) for name, value in RECIPES[args.recipe].items()}
    for name, least in (("levels", 1), ("codes", 0), ("rqvae_epochs", 1), ("steps", 1), ("batch_size", 1), ("lr", 1e-9),
                        ("warmup", 1), ("eval_every", 1), ("beam", 0)):
        value = recipe.get(name, getattr(args, name))
        if value < least:
            raise SystemExit(f"--{name.replace('_', '-')} {value}: a number from {least:g} on is expected")
    return args, recipe


def main():
    args, recipe = parse_args()
    torch.set_flush_denormal(True)  # numbers near zero would slow a CPU down
    tracks = data.load_tracks(args.data_dir)
    track_ids = [track["track_id"] for track in tracks]
    row_of = {track_id: row for row, track_id in enumerate(track_ids)}
    playlists = data.load_playlists(args.data_dir, row_of)
    of_split = turns.load_turns(args.data_dir, row_of)
    sequences = {"dialogues": music_of(args.data_dir / "dialogues_train.jsonl", row_of),
                 "playlists": [[row_of[t] for t in p["track_ids"]] for p in playlists if p["split"] == "train"]}
    sequences["both"] = sequences["dialogues"] + sequences["playlists"]
    examples = {source: make_examples(sequences[source]) for source in args.sources}
    valid = make_examples(music_of(args.data_dir / "dialogues_valid.jsonl", row_of))
    for where, found in (*examples.items(), ("dialogues_valid.jsonl", valid)):
        if not len(found.places):
            raise SystemExit(f"{args.data_dir}, {where}: no sequence has two tracks, so there is no next track to learn from or "
                             f"to choose by. Name other --sources ({', '.join(SOURCES)}), or make dialogues with 03_synthesize.py")

    reads = [*data.catalogue_files(args.data_dir), "playlists.jsonl", *turns.dialogue_files("train", "valid", "test")]
    writes = [*turns.prediction_files("tiger"), "tiger/semantic_ids.npy", "tiger/config.json", "tiger/model.safetensors"]
    run, state = runs.begin_run(args.data_dir, "tiger", args, reads, writes, args.resume)
    if state == "done":
        print("tiger: already done, nothing changed")
        return
    part, final = args.data_dir / "tiger.part", args.data_dir / "tiger"
    if state == "new":
        shutil.rmtree(part, ignore_errors=True)
    part.mkdir(exist_ok=True)

    if not (part / "semantic_ids.npy").is_file():
        n_codes = args.codes or min(256, max(2, len(tracks) // 8))
        codes = make_codes(embed_items(tracks, args.text_encoder, args.device), args, n_codes, args.device)
        data.save_npy(part / "semantic_ids.npy", add_collision_code(codes).astype(np.int32))
    ids = np.array(data.load_npy(part / "semantic_ids.npy", "python baselines/tiger.py --no-resume", len(tracks), np.int32))
    print(f"Semantic IDs: {', '.join(map(str, (ids.max(0) + 1)[:-1]))} codes a level; {np.mean(ids[:, -1] == 0):.1%} of the tracks "
          f"are the only or the first with theirs, at most {ids[:, -1].max() + 1} share one")

    table, vocabulary = token_table(ids)
    trie, counts, width = build_trie(table[:-1], args.device), count_tracks(playlists, row_of), args.beam or len(tracks)
    models, results, valid_mrr = {}, {}, {}
    for source in args.sources:
        models[source] = model = build_model(vocabulary, recipe, args.seed).to(args.device)
        loss = fit(model, table, examples[source], lambda: mean_loss(model, table, valid), recipe,
                   part / f"{source}.pt", args.seed, args.eval_every, args.optimizer)
        results[source] = search_turns(model, table, trie, of_split["valid"], width)
        valid_mrr[source] = turns.mrr(score_tracks(results[source], counts), of_split["valid"], args.seed)
        print(f"{source}: {len(examples[source].places):,} examples, on valid {loss:.3f} nats a token, MRR {valid_mrr[source]:.4f}")
    chosen = max(args.sources, key=valid_mrr.get)
    results = {"valid": results[chosen], "test": search_turns(models[chosen], table, trie, of_split["test"], width)}
    for split, found in of_split.items():
        turns.write_predictions(args.data_dir, split, "tiger", score_tracks(results[split], counts), found, track_ids, args.seed)
    models[chosen].save_pretrained(final)
    data.save_npy(final / "semantic_ids.npy", ids)
    runs.finish_run(run, recipe=recipe, valid_mrr=valid_mrr, chosen_on_valid=chosen)
    shutil.rmtree(part)
    print(f"Chosen on valid: {chosen}. Wrote {args.data_dir}/{writes[1]}, {writes[0]} and tiger/. "
          f"Next: python 06_evaluate.py --data-dir {args.data_dir}")


if __name__ == "__main__":
    main()
