"""Baseline: SASRec, self-attention over the tracks played so far (Kang & McAuley 2018).

It reads no text: the tracks that the turns before have played, liked or turned down, predict the
next one (arXiv:1808.09781; TalkPlay's section 5). Two losses are tried: binary cross-entropy with
one random negative (`bce`, as published), and cross-entropy over all tracks (`ce`). Three training
sets are tried: the training playlists, the tracks that the training dialogues play, and both.
Rejected tracks stay in: the evaluation has them in its histories and asks for them too.

MRR on the valid dialogues decides the epoch, then loss and training set. If nothing was played yet,
tracks are ranked by popularity. A track in no training sequence is left out and ranked last.

As published: two blocks of one head, dimension 50, length 50, layer norm before and dropout 0.2
after each half of a block, one table of tracks for input and output, Adam at 1e-3, batches of 128,
padding on the left. From the authors' code: Glorot's weights, item embeddings times the root of the
dimension, a last layer norm, Adam's beta2 of 0.98. Ours: the sequences of a batch have similar
lengths, and a playlist longer than 50 steps becomes several. A killed run begins anew.

Reads   tracks.jsonl, annotations/*.jsonl, playlists.jsonl, dialogues_{train,valid,test}.jsonl
Writes  predictions/sasrec.jsonl (test), predictions_valid/sasrec.jsonl, results/sasrec_forms.csv
Demo    python baselines/sasrec.py    (3 minutes on two cores)
Full    python baselines/sasrec.py --data-dir data/mpd --device cuda    (not run)
"""

import argparse
import sys
from itertools import product
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # common/ lies beside baselines/
from baselines import shared
from baselines.popularity import count_tracks
from common import data, flags, turns

NAME = "sasrec"
LOSSES = ("ce", "bce")
EVERY = 5      # epochs between two checks on the valid dialogues
PATIENCE = 2   # checks without a better one, then training stops


# ---------------------------------------------------------------- the model

class Block(nn.Module):
    """Self-attention with one head, then two dense layers: each half x + dropout(half(norm(x)))."""

    def __init__(self, dim, dropout):
        super().__init__()
        self.norm_1 = nn.LayerNorm(dim)
        self.query, self.key, self.value = (nn.Linear(dim, dim) for _ in range(3))
        self.norm_2 = nn.LayerNorm(dim)
        self.dense_1, self.dense_2 = (nn.Linear(dim, dim) for _ in range(2))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, visible):
        """x: (B, T, d). visible: (B, T, T) bool; [b, i, j]: may position i look at position j?"""
        h = self.norm_1(x)
        weights = self.query(h) @ self.key(h).transpose(1, 2) / x.shape[-1] ** 0.5  # (B, T, T)
        weights = weights.masked_fill(~visible, float("-inf")).softmax(-1)
        x = x + self.dropout(weights @ self.value(h))
        return x + self.dropout(self.dense_2(F.relu(self.dense_1(self.norm_2(x)))))


class SASRec(nn.Module):
    """Items are 0 ... n_items - 1. The number n_items stands for padding, which is on the left."""

    def __init__(self, n_items, dim=50, length=50, dropout=0.2, blocks=2):
        super().__init__()
        self.n_items = n_items
        self.length = length
        self.item = nn.Embedding(n_items + 1, dim, padding_idx=n_items)
        self.position = nn.Embedding(length, dim)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(dim, dropout) for _ in range(blocks))
        self.norm = nn.LayerNorm(dim)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                nn.init.xavier_uniform_(weight)
            elif name.endswith("bias"):
                nn.init.zeros_(weight)

    def forward(self, items):
        """What comes after each position, as vectors: (B, T) int64, T <= length -> (B, T, d)."""
        steps = items.shape[1]
        real = items != self.n_items

        # a position sees the items up to itself; padding sees itself, or its softmax were NaN
        causal = torch.ones(steps, steps, dtype=torch.bool, device=items.device).tril()
        itself = torch.eye(steps, dtype=torch.bool, device=items.device)
        visible = causal & (real[:, None, :] | itself)  # (B, T, T)

        # the last item always has the last position
        x = self.item(items) * self.item.embedding_dim ** 0.5
        x = self.dropout(x + self.position.weight[self.length - steps:])
        for block in self.blocks:
            x = block(x, visible)
        return self.norm(x)

    def score(self, hidden):
        """Scores of all items: (..., d) -> (..., n_items)."""
        return hidden @ self.item.weight[:-1].T


def make_model(n_items, seed, device="cpu", **form):
    """A new SASRec. The seed decides its weights, and its dropout if it is trained next."""
    torch.manual_seed(seed)
    return SASRec(n_items, **form).to(device)


# ---------------------------------------------------------------- training

def pad(sequences, length, padding):
    """The last `length` items of each sequence, padded on the left: -> (B, length) int64."""
    padded = np.full((len(sequences), length), padding, np.int64)
    for row, sequence in zip(padded, sequences, strict=True):
        if len(sequence):
            row[-len(sequence):] = sequence[-length:]
    return padded


def cut(sequences, length):
    """Cut sequences into segments of 2 to length + 1 items.

    A segment begins with the last item of the one before, so that every step is in one of them.
    """
    return [sequence[begin:begin + length + 1] for sequence in sequences
            for begin in range(0, len(sequence) - 1, length)]


def draw_negatives(users, taken, n_items, rng):
    """One random item per entry of `users` that is not in that user's sequence: (n,) -> (n,) int64.

    taken: user * n_items + item of everything that is in the sequences, sorted.
    """
    negatives = rng.integers(n_items, size=len(users))
    wrong = np.arange(len(users))
    while len(wrong):  # those that are in `taken` are drawn again
        keys = users[wrong] * n_items + negatives[wrong]
        nearest = taken[np.minimum(np.searchsorted(taken, keys), len(taken) - 1)]
        wrong = wrong[nearest == keys]
        negatives[wrong] = rng.integers(n_items, size=len(wrong))
    return negatives


def draw_batches(lengths, batch_size, rng, pool=10):
    """All rows in random batches of similar lengths, so that little is padding: list of arrays.

    Rows are shuffled, the rows of every `pool` batches are sorted by length, batches are shuffled.
    """
    order = rng.permutation(len(lengths))
    pools = np.split(order, range(pool * batch_size, len(order), pool * batch_size))
    order = np.concatenate([rows[np.argsort(lengths[rows], kind="stable")] for rows in pools])
    batches = np.split(order, range(batch_size, len(order), batch_size))
    return [batches[i] for i in rng.permutation(len(batches))]


def ce_loss(model, hidden, targets):
    """Mean of -log softmax over all items: hidden (n, d), targets (n,) int64 -> scalar."""
    # memory for n x n_items scores: with n = 128 x 50, 0.4 GB for 17,000 items, 10 GB for 400,000
    return F.cross_entropy(model.score(hidden), targets)


def bce_loss(model, hidden, targets, negatives):
    """Mean of -log s(target) - log(1 - s(negative)), s: the sigmoid of the score. As `ce_loss`."""
    positive = (hidden * model.item(targets)).sum(-1)
    negative = (hidden * model.item(negatives)).sum(-1)
    return (F.softplus(-positive) + F.softplus(negative)).mean()  # softplus(-x) = -log sigmoid(x)


def train(model, sequences, loss, epochs, seed, batch_size=128):
    """Train in place to predict each next item; yield (epoch, mean loss) after each epoch.

    Of each sequence of items the last model.length + 1 are learnt; none is a negative of `bce`.
    Raises SystemExit: nothing to learn, or a sequence that leaves no negative for `bce`.
    """
    n_items = model.n_items
    device = model.item.weight.device
    sequences = [sequence for sequence in sequences if len(sequence) > 1]
    if not sequences:
        raise SystemExit("SASRec: no training sequence has two items, so none has a next one")

    padded = pad(sequences, model.length + 1, n_items)  # (U, length + 1)
    lengths = (padded != n_items).sum(1)
    usual = (lengths - 1).sum() / -(-len(padded) // batch_size)  # targets per batch, on average
    taken = np.unique(np.concatenate([user * n_items + np.asarray(sequence)
                                      for user, sequence in enumerate(sequences)]))
    if loss == "bce" and np.bincount(taken // n_items).max() == n_items:
        raise SystemExit(f"SASRec: a sequence has all {n_items} items, so no negative is left for "
                         f"the loss bce; use ce")

    rng = np.random.default_rng(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, betas=(0.9, 0.98), fused=True)
    for epoch in range(1, epochs + 1):
        model.train()
        total = count = 0
        for users in draw_batches(lengths, batch_size, rng):
            batch = padded[users]
            batch = batch[:, (batch != n_items).any(0)]  # columns of padding alone change nothing
            inputs, targets = batch[:, :-1], batch[:, 1:]  # (B, T)
            real = inputs != n_items  # where the input is an item, the target is one too
            hidden = model(torch.from_numpy(inputs).to(device))
            hidden = hidden[torch.from_numpy(real).to(device)]  # (n, d)
            wanted = torch.from_numpy(targets[real]).to(device)  # (n,)
            if loss == "ce":
                value = ce_loss(model, hidden, wanted)
            else:
                negatives = draw_negatives(users[np.nonzero(real)[0]], taken, n_items, rng)
                value = bce_loss(model, hidden, wanted, torch.from_numpy(negatives).to(device))

            # each target weighs the same, whether its batch has long or short sequences
            optimizer.zero_grad()
            (value * len(hidden) / usual).backward()
            optimizer.step()
            total += value.item() * len(hidden)
            count += len(hidden)
        yield epoch, total / count


def fit(model, sequences, loss, epochs, seed, quality, every=1, patience=10):
    """Train until quality() has not risen in `patience` checks; the best weights are put back.

    It is called after every `every` epochs. Returns: (best quality, its epoch).
    """
    best = -np.inf
    checks = 0
    for epoch, _ in train(model, sequences, loss, epochs, seed):
        if epoch % every and epoch != epochs:
            continue
        value = quality()
        checks += 1
        if value > best:
            best, best_epoch, checks = value, epoch, 0
            weights = {name: w.detach().clone() for name, w in model.state_dict().items()}
        if checks == patience:
            break
    model.load_state_dict(weights)
    return best, best_epoch


@torch.no_grad()
def score_histories(model, histories):
    """Scores of all items after each history: lists of items -> (B, n_items) float32 array."""
    model.eval()
    longest = max(1, min(model.length, max(map(len, histories))))
    items = torch.from_numpy(pad(histories, longest, model.n_items)).to(model.item.weight.device)
    return model.score(model(items)[:, -1]).cpu().numpy()


# ---------------------------------------------------------------- the baseline

def collect_sequences(playlists, dialogues, row_of, length):
    """Training sequences of rows: {"playlists", "dialogues", "both": list}, no list empty."""
    sequences = {source: segments for source, music
                 in shared.music_sequences(playlists, dialogues, row_of).items()
                 if (segments := cut(music, length))}
    if not sequences:
        raise SystemExit("neither a training playlist nor a training dialogue has two tracks to "
                         "learn from; look into playlists.jsonl and dialogues_train.jsonl")
    if len(sequences) == 2:
        sequences["both"] = sequences["playlists"] + sequences["dialogues"]
    return sequences


def mark_trained(sequences, n_tracks):
    """Which tracks are in a training sequence: (N,) bool."""
    return np.bincount(np.concatenate(sequences), minlength=n_tracks) > 0


def score_turns(model, trained, popularity, to_rank, batch_size=64):
    """Yield the scores of all tracks, (N,), for every turn, from the tracks played before it.

    trained: (N,) bool, from `mark_trained`. popularity: (N,). to_rank: list of Turn.
    """
    for begin in range(0, len(to_rank), batch_size):
        histories = [[row for row in turn.played if trained[row]]
                     for turn in to_rank[begin:begin + batch_size]]
        scores = score_histories(model, histories)  # (B, N)
        scores[:, ~trained] = -np.inf  # equal scores: the turn's own draw orders them
        for history, row in zip(histories, scores, strict=True):
            yield row if history else popularity


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20,
                        help="per form, at most (default 20); valid decides")
    flags.add_shared(parser, "data-dir", "device", "seed", "resume")
    args = parser.parse_args()
    flags.check_ranges(args, epochs=1)
    row_of = {track["track_id"]: row for row, track in enumerate(data.load_tracks(args.data_dir))}
    playlists = data.load_playlists(args.data_dir, row_of)
    dialogues = data.load_dialogues(args.data_dir / "dialogues_train.jsonl", row_of)
    turns_of = turns.load_turns(args.data_dir, row_of)
    run = shared.begin_run(args, NAME, ["playlists.jsonl"], [f"results/{NAME}_forms.csv"],
                           data.SPLITS)
    if run is None:
        return

    # every training set with every loss; valid decides the epoch
    torch.set_flush_denormal(True)  # on a CPU, tiny numbers would slow everything down
    sequences = collect_sequences(playlists, dialogues, row_of, length=50)
    popularity = count_tracks(playlists, row_of)
    models = {}

    def score(form, split):
        trained = mark_trained(sequences[form["source"]], len(row_of))
        return score_turns(models[form["source"], form["loss"]], trained, popularity,
                           turns_of[split])

    forms = []
    for source, loss in tqdm(list(product(sequences, LOSSES)), desc="forms"):
        form = {"source": source, "loss": loss, "sequences": len(sequences[source])}
        models[source, loss] = model = make_model(len(row_of), args.seed, args.device)

        def valid_mrr(form=form):
            return turns.mrr(score(form, "valid"), turns_of["valid"], args.seed)

        best, epoch = fit(model, sequences[source], loss, args.epochs, args.seed, valid_mrr, EVERY,
                          PATIENCE)
        forms.append(form | {"epoch": epoch, "valid_mrr": best})
    chosen = shared.rank_forms(args.data_dir, NAME, forms, score, turns_of, list(row_of), args.seed)
    shared.finish_run(args.data_dir, run, chosen_on_valid=chosen)


if __name__ == "__main__":
    main()
