"""Baseline: SASRec, self-attention over the tracks played so far (Kang & McAuley 2018, arXiv:1808.09781).

It sees music only, no text: the tracks that the turns before have played, liked or turned down, give the next
one. Two losses are tried, binary cross-entropy against one random negative (`bce`, as published) and
cross-entropy over all tracks (`ce`), on three training sets: training playlists in their order, the tracks of the
training dialogues in the order in which they are played, and both together. Rejected tracks stay in the
dialogues' sequences: the evaluation asks for them as well, and they stand in the histories that it gives. The
epochs, and then loss and training set, are chosen by MRR on the valid dialogues, played tracks left out as
06_evaluate.py does. The best is the system `sasrec` (TalkPlay's section 5); results/sasrec_forms.csv has all of
them, with their test MRR, which is computed only after the choice.

What a history cannot tell is defined. No track played yet (turn 1): popularity, counted in training playlists. A
track that no training sequence has was a negative at most: it is left out of histories and ranked below all
trained tracks, in an order drawn afresh for each turn. Nothing after the query of turn t is used for turn t.

As published: two blocks of one head, dimension 50, length 50, layer norm before and dropout 0.2 after each part of a
block, one table of tracks for input and output, Adam 1e-3, batch 128, padding on the left; from the authors' code:
Glorot's weights, item embeddings times the root of the dimension, a last layer norm, Adam's beta2 0.98. Ours: batches of
like lengths (faster), and a playlist longer than 50 steps is several sequences. A killed run begins anew.

Reads   tracks.jsonl, playlists.jsonl, dialogues_train.jsonl, dialogues_valid.jsonl, dialogues_test.jsonl
Writes  predictions/sasrec.jsonl (test), predictions_valid/sasrec.jsonl (valid), results/sasrec_forms.csv
Demo    python baselines/sasrec.py    (100 s on two cores)
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
from common import data, runs, turns
from common.process import resolve_device

NAME = "sasrec"
LOSSES = ("ce", "bce")
EVERY = 5      # epochs between two looks at the valid dialogues
PATIENCE = 2   # looks without a better one, then training stops


# ---------------------------------------------------------------- the model

class Block(nn.Module):
    """Self-attention with one head, then two dense layers at each position; each part is x + dropout(part(norm(x)))."""

    def __init__(self, dim, dropout):
        super().__init__()
        self.norm_1, self.norm_2, self.dropout = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.Dropout(dropout)
        self.query, self.key, self.value = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.dense_1, self.dense_2 = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x, visible):
        """x: (B, T, d); visible: (B, T, T) bool, [b, i, j] = position i may look at position j."""
        h = self.norm_1(x)
        weights = self.query(h) @ self.key(h).transpose(1, 2) / x.shape[-1] ** 0.5   # (B, T, T)
        weights = weights.masked_fill(~visible, float("-inf")).softmax(-1)
        x = x + self.dropout(weights @ self.value(h))
        return x + self.dropout(self.dense_2(F.relu(self.dense_1(self.norm_2(x)))))


class SASRec(nn.Module):
    """Items are 0 .. n_items - 1; n_items stands for padding, on the left. The weights follow from torch's seed."""

    def __init__(self, n_items, dim=50, length=50, dropout=0.2, blocks=2):
        super().__init__()
        self.n_items, self.length = n_items, length
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
        """What is expected after each position: (B, T) int64, T <= length -> (B, T, d). Padding's rows mean nothing."""
        steps, real = items.shape[1], items != self.n_items
        causal = torch.ones(steps, steps, dtype=torch.bool, device=items.device).tril()
        itself = torch.eye(steps, dtype=torch.bool, device=items.device)   # so that padding too has something to look at
        visible = causal & (real[:, None, :] | itself)                     # (B, T, T)
        x = self.item(items) * self.item.embedding_dim ** 0.5
        x = self.dropout(x + self.position.weight[self.length - steps:])   # the last item is always at the last position
        for block in self.blocks:
            x = block(x, visible)
        return self.norm(x)

    def score(self, hidden):
        """Scores of all items: (..., d) -> (..., n_items)."""
        return hidden @ self.item.weight[:-1].T


def make_model(n_items, seed, device="cpu", **form):
    """A new SASRec whose weights, and whose dropout while it is trained next, follow from the seed."""
    torch.manual_seed(seed)
    return SASRec(n_items, **form).to(device)


# ---------------------------------------------------------------- training

def pad(sequences, length, padding):
    """The last `length` items of each sequence, padded on the left: lists of ints -> (B, length) int64."""
    padded = np.full((len(sequences), length), padding, np.int64)
    for row, sequence in zip(padded, sequences):
        if len(sequence):
            row[-len(sequence):] = sequence[-length:]
    return padded


def cut(sequences, length):
    """Pieces of 2 to length + 1 items, each beginning with the last item of the piece before: every step is in one."""
    return [sequence[begin:begin + length + 1] for sequence in sequences for begin in range(0, len(sequence) - 1, length)]


def draw_negatives(users, taken, n_items, rng):
    """One random item for each entry of `users` that is not in that user's sequence: (n,) int64 -> (n,) int64.

    taken: sorted int64 array of user * n_items + item, of everything that is in the sequences.
    """
    negatives = rng.integers(n_items, size=len(users))
    wrong = np.arange(len(users))
    while len(wrong):
        keys = users[wrong] * n_items + negatives[wrong]
        wrong = wrong[taken[np.minimum(np.searchsorted(taken, keys), len(taken) - 1)] == keys]
        negatives[wrong] = rng.integers(n_items, size=len(wrong))
    return negatives


def draw_batches(lengths, batch_size, rng, pool=10):
    """All rows in random batches of like lengths, so that little of a batch is padding: list of int64 arrays.

    Rows are shuffled, those of each `pool` batches are sorted by length, and the batches are shuffled.
    """
    order = rng.permutation(len(lengths))
    pools = np.split(order, range(pool * batch_size, len(order), pool * batch_size))
    order = np.concatenate([rows[np.argsort(lengths[rows], kind="stable")] for rows in pools])
    batches = np.split(order, range(batch_size, len(order), batch_size))
    return [batches[i] for i in rng.permutation(len(batches))]


def ce_loss(model, hidden, targets):
    """Mean of -log softmax over all items: hidden (n, d), targets (n,) int64 -> scalar.

    Holds n x n_items scores, n up to batch x length: 0.4 GB for 128 x 50 and 17,000 items, 10 GB for 400,000.
    """
    return F.cross_entropy(model.score(hidden), targets)


def bce_loss(model, hidden, targets, negatives):
    """Mean of -log s(target) - log(1 - s(negative)), s the sigmoid: hidden (n, d), the others (n,) int64 -> scalar."""
    positive, negative = ((hidden * model.item(items)).sum(-1) for items in (targets, negatives))
    return (F.softplus(-positive) + F.softplus(negative)).mean()  # softplus(-x) = -log sigmoid(x)


def train(model, sequences, loss, epochs, seed, batch_size=128, lr=1e-3):
    """Train in place on next items; yields (epoch, mean loss) after each epoch, so that the caller may look or stop.

    sequences: lists of ints, the last model.length + 1 items of each are used, all of them kept from the negatives of
    `bce`; loss: "ce" or "bce".
    Raises SystemExit: nothing to learn, or with `bce` a sequence that leaves no negative.
    """
    n_items, device = model.n_items, model.item.weight.device
    sequences = [sequence for sequence in sequences if len(sequence) > 1]
    if not sequences:
        raise SystemExit("SASRec: no training sequence has two items or more, so there is no next one to learn")
    padded = pad(sequences, model.length + 1, n_items)
    taken = np.unique(np.concatenate([user * n_items + np.asarray(sequence) for user, sequence in enumerate(sequences)]))
    if loss == "bce" and np.bincount(taken // n_items).max() == n_items:
        raise SystemExit(f"SASRec: a sequence has all {n_items} items, so no negative is left for the loss bce; use ce")
    lengths = (padded != n_items).sum(1)
    usual = (lengths - 1).sum() / -(-len(padded) // batch_size)  # targets a batch
    rng, optimizer = np.random.default_rng(seed), torch.optim.Adam(model.parameters(), lr=lr, betas=(0.9, 0.98), fused=True)
    for epoch in range(1, epochs + 1):
        model.train()
        total = count = 0
        for users in draw_batches(lengths, batch_size, rng):
            batch = padded[users]
            batch = batch[:, (batch != n_items).any(0)]             # columns of padding alone change nothing
            inputs, targets = batch[:, :-1], batch[:, 1:]           # (B, T)
            real = inputs != n_items                                # padding is on the left: the target is an item too
            hidden = model(torch.from_numpy(inputs).to(device))[torch.from_numpy(real).to(device)]  # (n, d)
            parts = [targets[real]]
            if loss == "bce":
                parts.append(draw_negatives(users[np.nonzero(real)[0]], taken, n_items, rng))
            parts = [torch.from_numpy(part).to(device) for part in parts]
            value = (ce_loss if loss == "ce" else bce_loss)(model, hidden, *parts)
            optimizer.zero_grad()
            (value * len(hidden) / usual).backward()  # each target weighs the same, in batches of long and of short sequences
            optimizer.step()
            total, count = total + value.item() * len(hidden), count + len(hidden)
        if not np.isfinite(total):
            raise SystemExit(f"SASRec: the loss is {total} in epoch {epoch}; a lower learning rate than {lr} may mend it")
        yield epoch, total / count


def fit(model, sequences, loss, epochs, seed, quality, every=1, patience=10, report=None, **training):
    """Train until quality(model), seen each `every` epochs, has not risen `patience` times; the best weights are put back.

    report: called with (epoch, mean loss, quality) at each look. Returns: (best quality, its epoch).
    """
    best, best_epoch, weights, looks = -np.inf, 0, None, 0
    for epoch, mean_loss in train(model, sequences, loss, epochs, seed, **training):
        if epoch % every and epoch != epochs:
            continue
        value = quality(model)
        if report:
            report(epoch, mean_loss, value)
        looks += 1
        if value > best:
            best, best_epoch, looks = value, epoch, 0
            weights = {name: weight.detach().clone() for name, weight in model.state_dict().items()}
        if looks == patience:
            break
    model.load_state_dict(weights)
    return best, best_epoch


@torch.no_grad()
def score_histories(model, histories):
    """Scores of all items after each history (lists of ints, not empty): (B, n_items) float32 array."""
    model.eval()
    longest = max(1, min(model.length, max(map(len, histories))))
    items = torch.from_numpy(pad(histories, longest, model.n_items)).to(model.item.weight.device)
    return model.score(model(items)[:, -1]).cpu().numpy()


# ---------------------------------------------------------------- the baseline

def collect_sequences(playlists, dialogues, row_of, length):
    """{source: lists of rows}: training playlists, music of the training dialogues, both together; an empty one is left out."""
    of_playlists = [[row_of[track_id] for track_id in playlist["track_ids"]] for playlist in playlists
                    if playlist["split"] == "train"]
    of_dialogues = [[row_of[turn["music"]] for turn in dialogue["turns"] if turn["music"]] for dialogue in dialogues]
    found = {"playlists": cut(of_playlists, length), "dialogues": cut(of_dialogues, length)}
    if all(found.values()):
        found["both"] = found["playlists"] + found["dialogues"]
    elif not any(found.values()):
        raise SystemExit("neither a training playlist nor a training dialogue has two tracks, so SASRec has nothing to learn; "
                         "look into playlists.jsonl and dialogues_train.jsonl")
    return {source: sequences for source, sequences in found.items() if sequences}


def count_playlists(playlists, row_of):
    """How many training playlists hold each track: (N,) int64. What turn 1 is ranked by."""
    train = [playlist for playlist in playlists if playlist["split"] == "train"]
    held = [row_of[track_id] for playlist in train for track_id in set(playlist["track_ids"])]
    return np.bincount(np.array(held, np.int64), minlength=len(row_of))


def find_trained(sequences, n_tracks):
    """Which tracks are in a training sequence: (N,) bool."""
    return np.bincount(np.concatenate(sequences), minlength=n_tracks) > 0


def score_turns(model, trained, popularity, found, batch_size=64):
    """Yield the scores of all tracks, (N,), for every turn, from the tracks played before it."""
    for begin in range(0, len(found), batch_size):
        histories = [[row for row in turn.played if trained[row]] for turn in found[begin:begin + batch_size]]
        scores = score_histories(model, histories)  # (B, N)
        scores[:, ~trained] = -np.inf               # equal scores: the turn's draw orders them
        for history, of_tracks in zip(histories, scores):
            yield of_tracks if history else popularity


def try_form(source, loss, sequences, popularity, found, args):
    """Train one form, its epochs chosen on the valid turns `found`.

    Returns: (row of the table, function that yields the scores for a list of turns).
    """
    model, trained = make_model(len(popularity), args.seed, args.device), find_trained(sequences, len(popularity))
    best, epoch = fit(model, sequences, loss, args.epochs, args.seed, every=EVERY, patience=PATIENCE,
                      quality=lambda model: turns.mrr(score_turns(model, trained, popularity, found), found, args.seed))
    return ({"source": source, "loss": loss, "sequences": len(sequences), "epoch": epoch, "valid_mrr": best},
            lambda found: score_turns(model, trained, popularity, found))


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description="Rank all tracks by SASRec on what was played before; form chosen on valid.")
    parser.add_argument("--data-dir", type=Path, default=Path("data/demo"), help="folder of the data (default data/demo)")
    parser.add_argument("--epochs", type=int, default=20, help="at most, for each form (default 20); valid decides how many")
    parser.add_argument("--device", type=resolve_device, default="auto",
                        help="auto (default: cuda if there is one), cpu, cuda, ...")
    parser.add_argument("--seed", type=int, default=0, help="of the models and of the order of equal scores (default 0)")
    parser.add_argument("--resume", action=argparse.BooleanOptionalAction, default=True,
                        help="skip when already done (default); --no-resume predicts afresh")
    args = parser.parse_args()
    if args.epochs < 1:
        raise SystemExit("--epochs must be 1 or more")

    track_ids = [track["track_id"] for track in data.load_tracks(args.data_dir)]
    row_of = {track_id: row for row, track_id in enumerate(track_ids)}
    playlists = data.load_playlists(args.data_dir, row_of)
    dialogues = data.load_dialogues(args.data_dir / "dialogues_train.jsonl", row_of)
    of_split = turns.load_turns(args.data_dir, row_of)
    reads = ["tracks.jsonl", "playlists.jsonl", *turns.dialogue_files("train", "valid", "test")]
    writes = [*turns.prediction_files(NAME), "results/sasrec_forms.csv"]
    run, state = runs.begin_run(args.data_dir, NAME, args, reads, writes, resume=args.resume)
    if state == "done":
        print(f"{NAME}: already done, nothing changed")
        return

    torch.set_flush_denormal(True)  # on CPU, tiny numbers would slow everything down
    sequences, popularity = collect_sequences(playlists, dialogues, row_of, length=50), count_playlists(playlists, row_of)
    forms = [try_form(source, loss, sequences[source], popularity, of_split["valid"], args)
             for source, loss in tqdm(list(product(sequences, LOSSES)), desc="forms")]
    forms.sort(key=lambda form: -form[0]["valid_mrr"])
    chosen, score = forms[0]
    for split, found in of_split.items():
        turns.write_predictions(args.data_dir, split, NAME, score(found), found, track_ids, args.seed)
    for row, score in forms:  # the choice is made; only now the test targets are looked at
        row["test_mrr"] = turns.mrr(score(of_split["test"]), of_split["test"], args.seed)
        print(f"{row['source']:9} {row['loss']:3}  epoch {row['epoch']:3}  "
              f"MRR valid {row['valid_mrr']:.4f}  test {row['test_mrr']:.4f}")
    data.write_csv(args.data_dir / "results" / "sasrec_forms.csv", chosen, [row.values() for row, _ in forms])
    runs.finish_run(run, chosen_on_valid=chosen)
    print(f"Chosen on valid: trained on {chosen['source']}, loss {chosen['loss']}. Wrote {args.data_dir}/{writes[1]}, "
          f"{writes[0]} and {writes[2]}. Next: python 06_evaluate.py --data-dir {args.data_dir}")


if __name__ == "__main__":
    main()
