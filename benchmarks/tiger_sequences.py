"""TIGER (baselines/tiger.py) on a public sequence set with ready Semantic IDs, next to the published figures.

    python benchmarks/tiger_sequences.py Beauty.txt Beauty.semantic_ids.json --device cuda                (all; not run)
    python benchmarks/tiger_sequences.py Beauty.txt Beauty.semantic_ids.json --recipe demo --overfit 64   (3 minutes on a core)
    python benchmarks/tiger_sequences.py Beauty.txt Beauty.semantic_ids.json --recipe demo --users 1000 --out data/tiger_partial

Sequences: one user a line, user id, then item ids in order of time, from 1 (aHuiWang/CIKM2020-S3Rec). IDs: {item id - 1: codes
like "<a_183>"} (HonghuiBao2000/LETTER's, not TIGER's own). Leave-one-out: each user's last item is the test, the one before it
decides between checkpoints (Recall@10 of 1,000 users), the rest is learnt. All items are ranked, by beam search over all IDs.
Where items share an ID, the one with more learnt occurrences stands first, then the lower number, and only the true item is a
hit. Figures are given with the user's earlier items kept in the ranking, and left out (no user of Beauty has an item twice, so
the second can only be higher). TIGER's user token is left out. `--recipe demo` has a smaller model. A run that was cut goes on
from its checkpoint in --out.
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
from common import data, metrics, runs
from common.process import resolve_device

PUBLISHED = {"Beauty": (0.0454, 0.0321, 0.0648, 0.0384)}  # TIGER, Rajput et al. 2023: quoted
METRICS = (("R@5", metrics.hit_at, 5), ("N@5", metrics.ndcg_at, 5), ("R@10", metrics.hit_at, 10), ("N@10", metrics.ndcg_at, 10))


def load_sequences(path):
    """One array of items, from 0 on, for each user with at least three."""
    if not path.is_file():
        raise SystemExit(f"{path} is missing; a text file is expected, a user a line: user id, then item ids from 1 on")
    found = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not re.fullmatch(r"\s*\d+(\s+[1-9]\d*)+\s*", line):
            raise SystemExit(f"{path}:{number}: a user id and item ids from 1 on are expected, all whole numbers; mend it")
        found.append(np.array(line.split()[1:], np.int64) - 1)
    return [sequence for sequence in found if len(sequence) >= 3]


def load_ids(path, n_items):
    """Semantic IDs, (n, L) int64, of all items up to at least `n_items`."""
    if not path.is_file():
        raise SystemExit(f"{path} is missing; a JSON object is expected: item id - 1 to a list of codes like <a_183>")
    try:
        found = {int(item): [int(re.search(r"\d+", code)[0]) for code in codes]
                 for item, codes in json.loads(path.read_text()).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise SystemExit(f"{path}: {error}; a JSON object is expected: item id - 1 to a list of codes like <a_183>")
    if set(found) != set(range(max(n_items, len(found)))) or len({len(codes) for codes in found.values()}) != 1:
        raise SystemExit(f"{path}: IDs of equal length are expected for items 0 to {n_items - 1}; is it of another data set?")
    return np.array([found[item] for item in range(len(found))])


def last_of(sequences):
    """Examples of which only the last item of each sequence is to be told."""
    examples = tiger.make_examples(sequences)
    return examples._replace(places=np.cumsum([len(sequence) for sequence in sequences]) - 1)


def group_by_id(ids, counts):
    """The different IDs in lexicographic order, (M, L), and the items of each: more `counts` first, then the lower number."""
    different, leaf = np.unique(ids, axis=0, return_inverse=True)
    order = np.lexsort((-counts, leaf.ravel()))  # a stable sort: equal ones stay in order of number
    return different, np.split(order, np.cumsum(np.bincount(leaf.ravel()))[:-1])


def find_ranks(model, table, levels, items_of_leaf, examples, beam, size=64):
    """Ranks of the targets in all items, 1-based, 0 where the beam has none: earlier items kept (n,), and left out (n,)."""
    kept, filtered = [], []
    for first in tqdm(range(0, len(examples.places), size), desc="beam search", unit="batch", leave=False):
        places = examples.places[first:first + size]
        histories, targets = tiger.take(examples, np.arange(first, first + len(places)))
        leaves = tiger.beam_search(model, levels, tiger.encode_histories(histories, table, model.device), beam)[0].tolist()
        for place, target, row in zip(places, targets, leaves):
            ranked = np.concatenate([items_of_leaf[leaf] for leaf in row])
            earlier = examples.items[examples.begin[place]:place]
            kept.append(metrics.rank_of_first_hit(ranked, [target]))
            filtered.append(metrics.rank_of_first_hit(metrics.filter_played(ranked, earlier, [target]), [target]))
    return np.array(kept), np.array(filtered)


def table_row(name, ranks):
    cells = []
    for _, value, k in METRICS:
        values = value(ranks, k)
        low, high = metrics.bootstrap_ci(values, np.arange(len(values)))
        cells.append(f"{values.mean():.4f} [{low:.4f}, {high:.4f}]")
    return f"{name:34} " + "  ".join(cells)


def parse_args():
    """(args, recipe): the recipe's values, with those given as flags laid over them."""
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("sequences", type=Path, help="text file of sequences")
    add("ids", type=Path, help="JSON file of Semantic IDs")
    add("--out", type=Path, default=Path("data/tiger_sequences"), help="folder of the checkpoint and the result (default "
        "data/tiger_sequences)")
    add("--recipe", choices=tiger.RECIPES, default="paper", help="model, and values of the next flags (default paper)")
    add("--steps", type=int, help="training steps (default: the recipe's)")
    add("--batch-size", type=int, help="examples a step (default: the recipe's)")
    add("--lr", type=float, help="learning rate (default: the recipe's)")
    add("--warmup", type=int, help="steps after which it falls as 1 / sqrt(step) (default: the recipe's)")
    add("--optimizer", choices=tiger.OPTIMIZERS, default="adafactor", help="default adafactor")
    add("--full", type=int, default=200_000, help="steps of a full run (default 200,000, the paper's); with fewer, or fewer users, "
        "the run is called partial")
    add("--users", type=int, default=0, help="only the first users; 0 (default) = all")
    add("--overfit", type=int, default=0, help="learn the test items of the first N users, without dropout, and check that they "
        "are told; 0 (default) = no")
    add("--beam", type=int, default=30, help="width of the beam search, 20 or more (default 30: ten without 20 earlier items)")
    add("--eval-every", type=int, default=1000, help="steps between validations, each with a checkpoint (default 1,000)")
    add("--device", type=resolve_device, default="auto", help="auto (default: cuda if there is one), cpu, cuda, ...")
    add("--seed", type=int, default=0, help="of weights and order (default 0)")
    add("--resume", action=argparse.BooleanOptionalAction, default=True, help="go on where a run was cut (default); --no-resume "
        "starts afresh")
    args = parser.parse_args()
    if args.beam < 20:
        raise SystemExit(f"--beam {args.beam}: 20 or more is expected, or the ten best are cut short")
    recipe = {name: getattr(args, name, None) or value for name, value in tiger.RECIPES[args.recipe].items()}
    return args, recipe | ({"dropout": 0.0} if args.overfit else {})  # what is to be learnt by heart need not be blurred


def main():
    args, recipe = parse_args()
    sequences = load_sequences(args.sequences)
    if not sequences:
        raise SystemExit(f"{args.sequences}: no user has three items, which learning, choosing and testing take")
    ids = load_ids(args.ids, max(int(sequence.max()) for sequence in sequences) + 1)
    all_users, sequences = len(sequences), sequences[:args.overfit or args.users or None]
    args.out.mkdir(parents=True, exist_ok=True)
    inputs = [args.sequences.resolve(), args.ids.resolve()]
    run, state = runs.begin_run(args.out, "tiger_sequences", args, inputs, ["tiger_sequences.txt"], args.resume,
                                ignore=("out", "device", "resume", "full", "sequences", "ids"))
    if state == "done":
        print((args.out / "tiger_sequences.txt").read_text(), end="")
        return
    part = args.out / "tiger_sequences.part"
    if state == "new":
        shutil.rmtree(part, ignore_errors=True)
    part.mkdir(exist_ok=True)

    torch.set_flush_denormal(True)
    test = last_of(sequences)
    learnt = test if args.overfit else tiger.make_examples([sequence[:-2] for sequence in sequences])
    different, items_of_leaf = group_by_id(ids, np.bincount(learnt.items, minlength=len(ids)))
    table, vocabulary = tiger.token_table(ids)
    levels = tiger.build_trie(tiger.token_table(different)[0][:-1], args.device)[0]
    model = tiger.build_model(vocabulary, recipe, args.seed).to(args.device)
    rng = np.random.default_rng(args.seed)
    valid = last_of([sequences[i][:-1] for i in rng.permutation(len(sequences))[:1000]])

    def check():
        """What decides between checkpoints, lower is better: -Recall@10 on valid; for --overfit the loss itself."""
        if args.overfit:
            return tiger.mean_loss(model, table, learnt)
        recall = float(metrics.hit_at(find_ranks(model, table, levels, items_of_leaf, valid, args.beam)[0], 10).mean())
        tqdm.write(f"valid Recall@10 {recall:.4f}")
        return -recall

    loss = tiger.fit(model, table, learnt, check, recipe, part / "sequences.pt", args.seed, args.eval_every, args.optimizer)
    kept, filtered = find_ranks(model, table, levels, items_of_leaf, test, args.beam)
    if args.overfit:
        possible = np.isin(test.items[test.places], [items[0] for items in items_of_leaf])
        hit = metrics.hit_at(kept, 1)[possible].mean()
        lines = [f"overfit check: {hit:.1%} of {possible.sum()} learnt items are told at rank 1 (loss {loss:.3f} nats a token); "
                 f"{(~possible).sum()} more cannot be, since another item with their ID stands first"]
    else:
        lines = [f"{args.sequences.stem}: {len(sequences):,} of {all_users:,} users, {len(ids):,} items with {len(different):,} "
                 f"different IDs, {len(learnt.places):,} examples", f"recipe {args.recipe}: {recipe}, {args.optimizer}, "
                 f"{sum(p.numel() for p in model.parameters()):,} parameters, beam {args.beam}, seed {args.seed}",
                 f"{'':34} " + "  ".join(f"{name:23}" for name, _, _ in METRICS)]
        if args.sequences.stem in PUBLISHED:
            published = "  ".join(f"{value:<23.4f}" for value in PUBLISHED[args.sequences.stem])
            lines.append(f"{'TIGER as published (quoted)':34} {published}")
        lines += [table_row("here, earlier items kept", kept), table_row("here, earlier items left out", filtered)]
        if recipe["steps"] < args.full or len(sequences) < all_users:
            lines.append(f"partial run: {recipe['steps']:,} of {args.full:,} steps, {len(sequences):,} of {all_users:,} users; not "
                         f"comparable with published figures")
    data.write_text(args.out / "tiger_sequences.txt", "\n".join(lines) + "\n")
    print("\n".join(lines))
    runs.finish_run(run)
    shutil.rmtree(part)
    if args.overfit and hit < 0.99:
        raise SystemExit("the overfit check failed: fewer than 99% are told. Give it more --steps before looking for a fault")


if __name__ == "__main__":
    main()
