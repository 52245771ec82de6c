"""TIGER on a public sequence set with ready Semantic IDs, next to the published figures.

    python benchmarks/tiger_sequences.py Beauty.txt Beauty.semantic_ids.json --device cuda

That is the paper's training (not run). With `--recipe demo --overfit 64` a small model learns 64
items by heart, which checks baselines/tiger.py (3 minutes on a core). With `--recipe demo --users
1000 --out data/tiger_partial` it learns a part of the data.

Sequences: S3-Rec's, as in sasrec_sequences.py. IDs: {item id - 1: codes like "<a_183>"}, those of
HonghuiBao2000/LETTER, not TIGER's own. Leave-one-out: each user's last item is the test, the one
before it decides between checkpoints (Recall@10 of 1,000 users), the rest is learnt. Beam search
ranks all items. Among items with one ID, more learnt occurrences come first, then the lower number.
The user's earlier items are kept in the ranking, and left out. A run that was cut goes on from its
checkpoint in --out.
"""

import argparse
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from baselines import tiger
from benchmarks.sasrec_sequences import read_sequences
from common import data, flags, metrics, runs

NAME = "tiger_sequences"
PUBLISHED = {"Beauty": (0.0454, 0.0321, 0.0648, 0.0384)}  # TIGER, Rajput et al. 2023: quoted
METRICS = (("R@5", metrics.hit_at, 5), ("N@5", metrics.ndcg_at, 5),
           ("R@10", metrics.hit_at, 10), ("N@10", metrics.ndcg_at, 10))


def load_ids(path, n_items):
    """Semantic IDs, (n, L) int64, of at least the items 0 ... n_items - 1."""
    try:
        ids = {int(item): [int(re.search(r"\d+", code)[0]) for code in codes]
               for item, codes in json.loads(path.read_text()).items()}
        if set(ids) != set(range(max(n_items, len(ids)))) or len(set(map(len, ids.values()))) > 1:
            raise ValueError(f"IDs of equal length are expected for items 0 to {n_items - 1}")
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise SystemExit(f"{path}: {error}; a JSON object is expected: item id - 1 to a list of "
                         f"codes like <a_183>") from None
    return np.array([ids[item] for item in range(len(ids))])


def predict_last(sequences):
    """Examples in which only the last item of each sequence is predicted."""
    examples = tiger.make_examples(sequences)
    return examples._replace(places=np.cumsum([len(sequence) for sequence in sequences]) - 1)


def split_sequences(sequences, overfit, seed):
    """Examples to learn from, to choose a checkpoint by, to test on. overfit: learn the test."""
    test = predict_last(sequences)
    learnt = test if overfit else tiger.make_examples([items[:-2] for items in sequences])
    order = np.random.default_rng(seed).permutation(len(sequences))
    return learnt, predict_last([sequences[i][:-1] for i in order[:1000]]), test


def group_by_id(ids, counts):
    """The different IDs in lexicographic order, (M, L), and a list of the items of each.

    The items of one ID: more `counts`, (n,), come first, then the lower number.
    """
    different, leaf = np.unique(ids, axis=0, return_inverse=True)
    order = np.lexsort((-counts, leaf.ravel()))  # stable: equal ones stay in order of number
    return different, np.split(order, np.cumsum(np.bincount(leaf.ravel()))[:-1])


def rank_targets(model, table, levels, items_of_leaf, examples, beam, size=64):
    """Ranks of the targets among all items, 1-based, 0 if the beam has none.

    Returns: ranks with the user's earlier items kept, (n,), and with them left out, (n,).
    """
    kept, left_out = [], []
    for first in tqdm(range(0, len(examples.places), size), desc="beam search", leave=False):
        places = examples.places[first:first + size]
        histories, targets = tiger.take(examples, np.arange(first, first + len(places)))
        tokens = tiger.encode_histories(histories, table, model.device)
        leaves, _ = tiger.beam_search(model, levels, tokens, beam)
        for place, target, row in zip(places, targets, leaves.tolist(), strict=True):
            ranked = np.concatenate([items_of_leaf[leaf] for leaf in row])
            earlier = examples.items[examples.begin[place]:place]
            kept.append(metrics.rank_of_first_hit(ranked, [target]))
            ranked = metrics.filter_played(ranked, earlier, [target])
            left_out.append(metrics.rank_of_first_hit(ranked, [target]))
    return np.array(kept), np.array(left_out)


def format_table(name, kept, left_out):
    """Lines of the table: our metrics with 95% intervals over users, and the published ones."""
    rows = {"": [metric for metric, _, _ in METRICS]}
    if name in PUBLISHED:
        rows["TIGER as published (quoted)"] = [f"{value:.4f}" for value in PUBLISHED[name]]
    for treatment, ranks in (("kept", kept), ("left out", left_out)):
        rows[f"here, earlier items {treatment}"] = cells = []
        for _, metric, k in METRICS:
            values = metric(ranks, k)
            low, high = metrics.bootstrap_ci(values, np.arange(len(values)))
            cells.append(f"{values.mean():.4f} [{low:.4f}, {high:.4f}]")
    return [f"{row:34} " + "  ".join(f"{cell:23}" for cell in cells) for row, cells in rows.items()]


def overfit_line(test, kept, items_of_leaf, loss):
    """The share of the test items that the model knows by heart, and a line that says so."""
    possible = np.isin(test.items[test.places], [items[0] for items in items_of_leaf])
    known = metrics.hit_at(kept, 1)[possible].mean()
    return known, (f"overfit check: {known:.1%} of {possible.sum()} learnt items are at rank 1 "
                   f"(loss {loss:.3f} nats per token); {(~possible).sum()} more cannot be, since "
                   f"another item with their ID comes first")


def parse_args():
    """(args, recipe): the recipe's values, with --steps laid over them."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("sequences", type=Path, help="text file of sequences")
    add("ids", type=Path, help="JSON file of Semantic IDs")
    add("--out", type=Path, default=Path("data/tiger_sequences"), help="folder of checkpoint and "
        "result (default data/tiger_sequences)")
    add("--recipe", choices=tiger.RECIPES, default="paper", help="model, training (default paper)")
    add("--steps", type=int, help="training steps (default: the recipe's)")
    add("--users", type=int, default=0, help="only the first users; 0 (default) = all")
    add("--overfit", type=int, default=0, help="learn the test items of the first N users, and "
        "check that they are known; 0 (default) = no")
    add("--beam", type=int, default=30, help="width, 20 or more (default 30: 10 + 20 earlier)")
    add("--eval-every", type=int, default=1000, help="steps between checkpoints (default 1,000)")
    flags.add_shared(parser, "device", "seed", "resume")
    args = parser.parse_args()
    flags.check_ranges(args, steps=1, users=0, overfit=0, beam=20, eval_every=1)
    recipe = tiger.RECIPES[args.recipe] | ({"steps": args.steps} if args.steps else {})
    if args.overfit:
        recipe["dropout"] = 0.0  # it would only blur what is learnt by heart
    return args, recipe


def main():
    args, recipe = parse_args()
    sequences = [[item - 1 for item in items] for items in read_sequences(args.sequences)]
    ids = load_ids(args.ids, 1 + max(map(max, sequences)))
    all_users = len(sequences)
    sequences = sequences[:args.overfit or args.users or None]
    inputs = [args.sequences.resolve(), args.ids.resolve()]
    result = args.out / f"{NAME}.txt"
    run, state = runs.begin_run(
        args.out, NAME, args, inputs, [result.name], args.resume, record=False,
        ignore=("out", "device", "resume", "sequences", "ids"))
    if state == "done":
        print(result.read_text(), end="")
        return
    part = args.out / f"{NAME}.part"
    if state == "new" and part.exists():
        shutil.rmtree(part)
    part.mkdir(parents=True, exist_ok=True)
    runs.record_run(run)

    torch.set_flush_denormal(True)  # on a CPU, tiny numbers would slow everything down
    learnt, valid, test = split_sequences(sequences, args.overfit, args.seed)
    different, items_of_leaf = group_by_id(ids, np.bincount(learnt.items, minlength=len(ids)))
    levels, _ = tiger.build_levels(tiger.token_table(different)[0][:-1], args.device)
    table, vocabulary = tiger.token_table(ids)
    model = tiger.build_model(vocabulary, recipe, args.seed).to(args.device)

    def check():
        if args.overfit:
            return tiger.mean_loss(model, table, learnt)
        ranks, _ = rank_targets(model, table, levels, items_of_leaf, valid, args.beam)
        recall = float(metrics.hit_at(ranks, 10).mean())
        tqdm.write(f"valid Recall@10 {recall:.4f}")
        return -recall

    loss = tiger.fit(model, table, learnt, check, recipe, part / "sequences", args.seed,
                     args.eval_every)
    kept, left_out = rank_targets(model, table, levels, items_of_leaf, test, args.beam)
    known = 1.0
    if args.overfit:
        known, *lines = overfit_line(test, kept, items_of_leaf, loss)
    else:
        full = tiger.RECIPES["paper"]["steps"]
        lines = [f"{args.sequences.stem}: {len(sequences):,} of {all_users:,} users, {len(ids):,} "
                 f"items with {len(different):,} different IDs, {len(learnt.places):,} examples",
                 f"recipe {args.recipe}: {recipe}, beam {args.beam}, seed {args.seed}",
                 *format_table(args.sequences.stem, kept, left_out)]
        if recipe["steps"] < full or len(sequences) < all_users:
            lines.append(f"partial run: {recipe['steps']:,} of {full:,} steps, {len(sequences):,} "
                         f"of {all_users:,} users; not comparable with published figures")
    data.write_text(result, "\n".join(lines) + "\n")
    print("\n".join(lines))
    runs.finish_run(run)
    shutil.rmtree(part)
    if known < 0.99:
        raise SystemExit("the overfit check failed: fewer than 99% are known. Give it more --steps "
                         "before looking for a fault")


if __name__ == "__main__":
    main()
