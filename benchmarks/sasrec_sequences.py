"""SASRec (baselines/sasrec.py) on public sequences of users, next to published figures: is our baseline a fair one?

    python benchmarks/sasrec_sequences.py --sequences Beauty.txt --loss ce --epochs 20 --patience 3
    python benchmarks/sasrec_sequences.py --sequences LastFM.txt --loss bce --epochs 300 --patience 40 --dropout 0.5

The files are those of S3-Rec (github.com/aHuiWang/CIKM2020-S3Rec, folder data): a user a line, the user's id and
then item ids in the order of time. Leave-one-out: the last item of each user is the test, the one before it
valid, the rest training, of which the last 50 steps are used. Every item is ranked. Published figures differ in what becomes
of the items of the history (for the test, the valid item is one): S3-Rec's code leaves them out of the ranking, RecBole keeps
them (RUCAIBox/RecBole issue 1823), where they stand before the target. So both are printed. The epoch is the one with the best
NDCG@10 on valid, history left out, and training stops once `--patience` epochs bring no better one (a small set is noisy: with
few, a seed stops long before its best); test is looked at once a seed. Equal scores count against us.

Prints Recall@5, NDCG@5, Recall@10 and NDCG@10 of each seed, and their mean over the seeds with a 95% interval over users
(1.96 standard errors of the users' means over the seeds). Nothing is written.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from baselines import sasrec
from common import metrics
from common.process import resolve_device

METRICS = ("Recall@5", "NDCG@5", "Recall@10", "NDCG@10")  # with one target, recall is hit
HISTORY = ("left out", "kept")  # what becomes of the history's items in the ranking
PUBLISHED = {("Beauty", "left out"): {"SASRec, bce (S3-Rec)": (.0387, .0249, .0605, .0318)},  # quoted; full ranking, leave-one-out
             ("Beauty", "kept"): {"SASRec, full ce (RecBole)": (.0543, .0315, .0821, .0405)},
             ("LastFM", "left out"): {"SASRec (S3-Rec)": (None, None, .0688, .0390)}}


def read_sequences(path):
    """A user a line, "user item item ...": (list of lists of rows, number of items). Row: the item's place among all ids.

    Raises SystemExit: missing or empty file, an id that is no whole number, a user twice or with fewer than three items.
    """
    form = "A line is a user id and then at least three item ids, whole numbers in order of time, with spaces between"
    if not path.is_file():
        raise SystemExit(f"{path} is missing; --sequences takes a file such as S3-Rec's Beauty.txt. {form}")
    lines, users = [], {}
    with open(path, encoding="utf-8", errors="replace") as f:
        for number, line in enumerate(f, 1):
            if not line.strip():
                continue
            user, *items = line.split()
            wrong = [item for item in items if not (item.isascii() and item.isdigit())]
            if wrong:
                raise SystemExit(f"{path}:{number}: {wrong[0][:20]!r} is no item id. {form}")
            if len(items) < 3:
                raise SystemExit(f"{path}:{number}: user {user[:20]} has {len(items)} items; training, valid and test need "
                                 f"one each. {form}")
            if user in users:
                raise SystemExit(f"{path}:{number}: user {user[:20]} stands twice (also line {users[user]}); join the two "
                                 f"lines. {form}")
            users[user] = number
            lines.append([int(item) for item in items])
    if not lines:
        raise SystemExit(f"{path} has no sequences. {form}")
    ids, rows = np.unique(np.concatenate(lines), return_inverse=True)
    return [part.tolist() for part in np.split(rows, np.cumsum([len(line) for line in lines])[:-1])], len(ids)


def rank_targets(model, histories, targets, keep_history=False, batch_size=256):
    """The rank of each user's target among all items: (U,) int64, 1 the best, equal scores before it.

    keep_history: items of the history are ranked too; otherwise they are left out, but for the target.
    """
    ranks = []
    for begin in range(0, len(histories), batch_size):
        part, wanted = histories[begin:begin + batch_size], np.array(targets[begin:begin + batch_size])
        scores, users = sasrec.score_histories(model, part), np.arange(len(part))  # (B, n_items)
        target_scores = scores[users, wanted]
        if not keep_history:
            scores[np.repeat(users, [len(history) for history in part]), np.concatenate(part)] = -np.inf
            scores[users, wanted] = target_scores
        ranks.append((scores >= target_scores[:, None]).sum(1))
    return np.concatenate(ranks)


def score_users(ranks):
    """METRICS of each user: (U,) ranks -> (U, 4) float64."""
    return np.stack([metric(ranks, k) for k in (5, 10) for metric in (metrics.hit_at, metrics.ndcg_at)], 1)


def run_seed(sequences, n_items, seed, args):
    """Train on one seed, choose the epoch on valid, and score the test once, for each of HISTORY: (2, U, 4)."""
    model = sasrec.make_model(n_items, seed, args.device, dim=args.dim, dropout=args.dropout)
    begin = time.perf_counter()

    def valid_ndcg(model):
        ranks = rank_targets(model, [s[:-2] for s in sequences], [s[-2] for s in sequences])
        return metrics.ndcg_at(ranks, 10).mean()

    def report(epoch, loss, value):
        seconds = time.perf_counter() - begin
        print(f"seed {seed}  epoch {epoch:3}  loss {loss:.4f}  valid NDCG@10 {value:.4f}  {seconds:.0f} s", flush=True)

    best, epoch = sasrec.fit(model, [s[:-2] for s in sequences], args.loss, args.epochs, seed, valid_ndcg,
                             patience=args.patience, report=report)
    users = [score_users(rank_targets(model, [s[:-1] for s in sequences], [s[-1] for s in sequences], keep)) for keep in (False, True)]
    for history, found in zip(HISTORY, users):
        print(f"seed {seed}  chosen: epoch {epoch}, valid NDCG@10 {best:.4f}; test, history {history}: "
              + ", ".join(f"{name} {value:.4f}" for name, value in zip(METRICS, found.mean(0))), flush=True)
    return np.stack(users)


def summarise(of_seeds, published):
    """Lines of the table: means with intervals, the seeds' spread, published figures and how far we are from them.

    of_seeds: (S, U, 4); published: {name: four numbers or None}.
    """
    users = of_seeds.mean(0)  # (U, 4)
    means, half = users.mean(0), 1.96 * users.std(0, ddof=1) / len(users) ** 0.5
    spread = of_seeds.mean(1).std(0, ddof=1) if len(of_seeds) > 1 else np.full(4, np.nan)
    table = {"": METRICS,
             f"here, mean of {len(of_seeds)} seed(s) [95%]": [f"{m:.4f} [{m - h:.4f}, {m + h:.4f}]"
                                                           for m, h in zip(means, half)],
             "standard deviation over seeds": [f"{s:.4f}" for s in spread]}
    for name, figures in published.items():
        table[f"published: {name}"] = ["-" if f is None else f"{f:.4f} (here {m / f - 1:+.1%})" for f, m in zip(figures, means)]
    return [f"{name:38}" + "".join(f"{cell:>25}" for cell in cells) for name, cells in table.items()]


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--sequences", type=Path, required=True, help="file of a user a line: user id, then item ids in order of time")
    add("--loss", choices=sasrec.LOSSES, default="ce",
        help="ce: over all items (default); bce: one random negative, as published")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one training each (default 0 1 2)")
    add("--epochs", type=int, default=100, help="at most, for each seed (default 100)")
    add("--patience", type=int, default=20, help="epochs without a better valid NDCG@10, then training stops (default 20)")
    add("--dim", type=int, default=50, help="of the embeddings (default 50)")
    add("--dropout", type=float, default=0.2, help="share that is dropped (default 0.2; SASRec's authors take 0.5 on Beauty)")
    add("--device", type=resolve_device, default="auto", help="auto (default: cuda if there is one), cpu, cuda, ...")
    args = parser.parse_args()
    if min(args.epochs, args.patience, args.dim) < 1 or not 0 <= args.dropout < 1:
        raise SystemExit("--epochs, --patience and --dim must be 1 or more, --dropout at least 0 and below 1")
    torch.set_flush_denormal(True)  # on CPU, tiny numbers would slow everything down
    sequences, n_items = read_sequences(args.sequences)
    name = args.sequences.stem
    print(f"{name}: {len(sequences):,} users, {n_items:,} items, {sum(map(len, sequences)):,} interactions; loss {args.loss}, "
          f"dropout {args.dropout}", flush=True)
    of_seeds = np.stack([run_seed(sequences, n_items, seed, args) for seed in args.seeds], 1)  # (2, S, U, 4)
    for history, found in zip(HISTORY, of_seeds):
        print("\n".join([f"\nItems of the history {history}", *summarise(found, PUBLISHED.get((name, history), {}))]))


if __name__ == "__main__":
    main()
