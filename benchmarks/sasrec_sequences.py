"""SASRec on public sequences, next to published figures: is baselines/sasrec.py a fair baseline?

    python benchmarks/sasrec_sequences.py --sequences Beauty.txt --loss ce --epochs 20 --patience 3
    python benchmarks/sasrec_sequences.py --sequences LastFM.txt --loss bce --epochs 300 \\
        --patience 40 --dropout 0.5

The files are those of S3-Rec (github.com/aHuiWang/CIKM2020-S3Rec, folder data). Leave-one-out: the
last item of each user is the test, the one before it valid; of the rest, the last 50 steps are
learnt. All items are ranked, and equal scores count against us. S3-Rec leaves the items of the
history out of the ranking, RecBole keeps them (RUCAIBox/RecBole issue 1823), so both are printed.
The epoch with the best NDCG@10 on valid counts, history left out. Small sets are noisy and need
more `--patience`. Printed are means over the seeds, with a 95% interval over users (1.96 standard
errors). Nothing is written.
"""

import argparse
import sys
import time
from itertools import count
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from baselines import sasrec
from common import flags, metrics

METRICS = ("Recall@5", "NDCG@5", "Recall@10", "NDCG@10")  # with one target, recall is hit
PUBLISHED = {  # quoted: full ranking, leave-one-out
    ("Beauty", "left out"): {"SASRec, bce (S3-Rec)": (.0387, .0249, .0605, .0318)},
    ("Beauty", "kept"): {"SASRec, full ce (RecBole)": (.0543, .0315, .0821, .0405)},
    ("LastFM", "left out"): {"SASRec (S3-Rec)": (None, None, .0688, .0390)},
}
FORM = ("A line is a user id and then at least three item ids, whole numbers from 1 on in order of "
        "time, with spaces between")


def read_sequences(path):
    """The item ids of each user: list of lists of int.

    Raises SystemExit: missing or empty file, a foreign id, a user twice or with fewer than 3 items.
    """
    if not path.is_file():
        raise SystemExit(f"{path} is missing; a file like S3-Rec's Beauty.txt is expected. {FORM}")
    sequences = {}
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        user, *items = line.split()
        foreign = [item for item in items if not item.isdecimal() or int(item) < 1]
        if foreign:
            raise SystemExit(f"{path}:{number}: {foreign[0][:20]!r} is no item id. {FORM}")
        if len(items) < 3 or user in sequences:
            wrong = "occurs twice" if user in sequences else f"has {len(items)} items"
            raise SystemExit(f"{path}:{number}: user {user[:20]} {wrong}. {FORM}")
        sequences[user] = [int(item) for item in items]
    if not sequences:
        raise SystemExit(f"{path} has no sequences. {FORM}")
    return list(sequences.values())


def number_items(sequences):
    """Item ids -> 0 ... n_items - 1: (list of lists of int, n_items)."""
    ids = np.unique(np.concatenate(sequences))
    return [np.searchsorted(ids, sequence).tolist() for sequence in sequences], len(ids)


def rank_targets(model, histories, targets, keep_history=False, batch_size=256):
    """The rank of each user's target among all items: (U,) int64, 1 the best, equal scores first.

    keep_history: rank the items of the history too. Otherwise only the target is kept of them.
    """
    ranks = []
    for begin in range(0, len(histories), batch_size):
        batch = histories[begin:begin + batch_size]
        wanted = np.array(targets[begin:begin + batch_size])
        users = np.arange(len(batch))
        scores = sasrec.score_histories(model, batch)  # (B, n_items)
        target_scores = scores[users, wanted]
        if not keep_history:
            in_history = np.repeat(users, [len(history) for history in batch])
            scores[in_history, np.concatenate(batch)] = -np.inf
            scores[users, wanted] = target_scores
        ranks.append((scores >= target_scores[:, None]).sum(1))
    return np.concatenate(ranks)


def score_users(ranks):
    """METRICS of each user: (U,) ranks -> (U, 4) float64."""
    return np.stack([metric(ranks, k) for k in (5, 10)
                     for metric in (metrics.hit_at, metrics.ndcg_at)], 1)


def run_seed(sequences, n_items, seed, loss, epochs, patience, dim, dropout, device):
    """Train, choose the epoch on valid, score the test once.

    Returns: (U, 4) with the history left out, and the same with it kept.
    """
    model = sasrec.make_model(n_items, seed, device, dim=dim, dropout=dropout)
    learnt = [s[:-2] for s in sequences]
    begin = time.perf_counter()
    epoch = count(1)

    def valid_ndcg():
        ranks = rank_targets(model, learnt, [s[-2] for s in sequences])
        value = metrics.ndcg_at(ranks, 10).mean()
        print(f"seed {seed}  epoch {next(epoch):3}  valid NDCG@10 {value:.4f}  "
              f"{time.perf_counter() - begin:.0f} s", flush=True)
        return value

    best, best_epoch = sasrec.fit(model, learnt, loss, epochs, seed, valid_ndcg, patience=patience)
    print(f"seed {seed}  chosen: epoch {best_epoch}, valid NDCG@10 {best:.4f}")
    histories = [s[:-1] for s in sequences]
    targets = [s[-1] for s in sequences]
    return [score_users(rank_targets(model, histories, targets, keep)) for keep in (False, True)]


def summarise(seeds, published):
    """Lines of the table: means with intervals, spread, published figures and our distance.

    seeds: (S, U, 4). published: {name: four numbers or None}.
    """
    users = seeds.mean(0)  # (U, 4)
    means = users.mean(0)
    half = 1.96 * users.std(0, ddof=1) / len(users) ** 0.5
    table = {"": METRICS, f"here, mean of {len(seeds)} seed(s) [95%]": [
        f"{m:.4f} [{m - h:.4f}, {m + h:.4f}]" for m, h in zip(means, half, strict=True)]}
    if len(seeds) > 1:
        spread = seeds.mean(1).std(0, ddof=1)
        table["standard deviation over seeds"] = [f"{s:.4f}" for s in spread]
    for name, figures in published.items():
        table[f"published: {name}"] = ["-" if f is None else f"{f:.4f} (here {m / f - 1:+.1%})"
                                       for f, m in zip(figures, means, strict=True)]
    return [f"{name:38}" + "".join(f"{cell:>25}" for cell in cells)
            for name, cells in table.items()]


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--sequences", type=Path, required=True, help="one user per line: user id, then item ids")
    add("--loss", choices=sasrec.LOSSES, default="ce", help="ce (default), or bce as published")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="a training each (default 0 1 2)")
    add("--epochs", type=int, default=100, help="at most, for each seed (default 100)")
    add("--patience", type=int, default=20, help="epochs without a better one (default 20)")
    add("--dim", type=int, default=50, help="of the embeddings (default 50)")
    add("--dropout", type=float, default=0.2, help="default 0.2; the authors take 0.5 on Beauty")
    flags.add_shared(parser, "device")
    args = parser.parse_args()
    flags.check_ranges(args, seeds=flags.SEEDS, epochs=1, patience=1, dim=1, dropout=(0, 0.99))
    torch.set_flush_denormal(True)  # on a CPU, tiny numbers would slow everything down
    sequences, n_items = number_items(read_sequences(args.sequences))
    name = args.sequences.stem
    print(f"{name}: {len(sequences):,} users, {n_items:,} items, "
          f"{sum(map(len, sequences)):,} interactions; loss {args.loss}, dropout {args.dropout}")
    seeds = [run_seed(sequences, n_items, seed, args.loss, args.epochs, args.patience, args.dim,
                      args.dropout, args.device) for seed in args.seeds]
    for history, users in zip(("left out", "kept"), np.stack(seeds, 1), strict=True):  # (S, U, 4)
        print(f"\nItems of the history {history}")
        print("\n".join(summarise(users, PUBLISHED.get((name, history), {}))))


if __name__ == "__main__":
    main()
