"""Score every file of predictions/ and write the tables and the figure (paper, sections 4 and 5).

No model runs here. Whatever wrote predictions/<system>.jsonl, it is scored in the same way:

1. The rank of each turn's target in the system's ranking of the whole catalogue. Tracks that
   earlier turns have played are left out; the figures with them are given beside.
2. From each rank the metrics: 1 / rank (its mean is MRR), Hit@K, nDCG@K (common/metrics.py).
3. Their means over subsets of the turns and per turn number, with 95% bootstrap intervals over
   playlists.
4. Margins of one system over the others, paired by turn.
5. The paper's Tables 3 and 4: the codes that TalkPlay generated, ranked again with other weights
   (steps/evaluate/ablations.py).

The subsets are: accepted or rejected (the listener turns the music down); by the target's past (of
several targets, the best known counts); by the kind of query; by its sentence template, which
training dialogues use or not.

A file <system>@<run>.jsonl (talkplay@seed1.jsonl) is a further run of a system, trained or sampled
once more. It has no row of its own, but counts in the spread over runs and in the margins, which
are then those of the runs' mean. --music-crs: see steps/evaluate/music_crs.py.

Reads   tracks.jsonl, playlists.jsonl, dialogues_<split>.jsonl, dialogues_train.jsonl,
        predictions/*.jsonl (predictions_valid/ with --split valid), codes.npy where a file has any
Writes  results/metrics.csv      system, subset, turn, metric, value, ci_low, ci_high, n
        results/comparisons.csv  margin of `talkplay` (--compare) over each other system
        results/systems.csv      coverage, Distinct-2, well-formed codes, spread over runs
        results/ablations.csv    the weighted overlap with other weights, and without one modality
        results/results.md, results/mrr_per_turn.png (results_valid/ with --split valid)
        results/music_crs/<system>.json, results/music_crs.csv (with --music-crs)
Demo    python 06_evaluate.py
Full    python 06_evaluate.py --data-dir data/mpd

It always computes everything afresh.
"""

import argparse

import numpy as np
from tqdm import tqdm

from common import data, metrics, runs
from common.flags import add_shared, check_ranges
from common.metrics import METRICS
from common.turns import FOLDERS, collect_turns
from steps.evaluate import ablations, figures, music_crs, predictions, scores, tables
from steps.evaluate.scores import COVERED, Scores  # COVERED: tracks per turn that count as shown
from steps.evaluate.tables import KEPT, PASTS  # names of subsets: played kept; the targets' past

REFERENCE = "talkplay"  # the system whose margins are shown, unless --compare names another
COMPARED = ("mrr", "hit@10")  # the metrics of the margins
METRIC_COLUMNS = ("system", "subset", "turn", "metric", "value", "ci_low", "ci_high", "n")
COMPARISON_COLUMNS = ("system", "against", "subset", "metric", "margin", "ci_low", "ci_high", "n")


# ---------------------------------------------------------------- subsets of the turns

def training_rows(playlists, train_dialogues, row_of):
    """Two sets of rows: tracks of the training dialogues, tracks of the training playlists."""
    in_dialogues = {row_of[track_id] for dialogue in train_dialogues for turn in dialogue["turns"]
                    for track_id in [turn["music"], *turn["targets"]] if track_id}
    in_playlists = {row_of[track_id] for playlist in playlists if playlist["split"] == "train"
                    for track_id in playlist["track_ids"]}
    return in_dialogues, in_playlists


def target_past(targets, in_dialogues, in_playlists):
    """Where the targets of a turn have been before: one of PASTS."""
    if in_dialogues.intersection(targets):
        return PASTS[0]
    return PASTS[1] if in_playlists.intersection(targets) else PASTS[2]


def subset_masks(turns, in_dialogues, in_playlists):
    """{subset: (n_turns,) bool}, empty subsets left out. KEPT has the same turns as "all"."""
    pasts = np.array([target_past(turn.targets, in_dialogues, in_playlists) for turn in turns])
    rejected = np.array([turn.rejected for turn in turns])
    everything = np.ones(len(turns), bool)
    masks = {"all": everything, KEPT: everything, "accepted": ~rejected, "rejected": rejected}
    masks |= {past: pasts == past for past in PASTS}
    for kind in sorted({turn.kind for turn in turns if turn.kind}):
        masks[f"kind: {kind}"] = np.array([turn.kind == kind for turn in turns])
    for template in ("seen", "unseen"):
        masks[f"templates: {template}"] = np.array([turn.template == template for turn in turns])
    return {subset: mask for subset, mask in masks.items() if mask.any()}


# ---------------------------------------------------------------- from rankings to ranks

def score_all(files, turns, row_of):
    """Find the targets in the rankings of every file. files: from `predictions.find_files`.

    Returns: {system: Scores}, and {system: {run: Scores}} of the files <system>@<run>.jsonl.
    """
    systems = {}
    reruns = {}
    depths = {min(metrics.DEPTH, len(row_of)), len(row_of)}
    for (system, run), path in tqdm(files.items(), desc="systems"):
        scored = score_system(path, turns, row_of, depths)
        depths = {scored.depth}  # the first file sets the depth of all
        if run:
            reruns.setdefault(system, {})[run] = scored
        else:
            systems[system] = scored
    return systems, reruns


def score_system(path, turns, row_of, depths):
    """Ranks of the targets in one file, and what the system shows and says to listeners: Scores.

    depths: the accepted lengths of a ranking
    """
    ranks = np.zeros(len(turns), int)
    ranks_kept = np.zeros(len(turns), int)
    codes = [None] * len(turns)
    well_formed = [False] * len(turns)
    shown = set()
    responses = []
    for i, ranked, line in predictions.read_predictions(path, turns, row_of, depths):
        unplayed = metrics.filter_played(ranked, turns[i].played, turns[i].targets)
        ranks[i] = metrics.rank_of_first_hit(unplayed, turns[i].targets)
        ranks_kept[i] = metrics.rank_of_first_hit(ranked, turns[i].targets)
        shown.update(unplayed[:COVERED].tolist())
        codes[i] = line.get("codes")
        well_formed[i] = bool(line.get("well_formed"))
        if line.get("response") is not None:
            responses.append(line["response"])
    return Scores(ranks, ranks_kept, shown, codes, well_formed, responses, depth=len(ranked))


# ---------------------------------------------------------------- from ranks to metrics

def metric_rows(systems, turns, masks, seed):
    """Rows of metrics.csv: each subset over all turns, and "all" also for each turn number."""
    groups = np.array([turn.group for turn in turns])
    numbers = np.array([turn.number for turn in turns])
    cells = [(subset, "all", mask) for subset, mask in masks.items()]
    cells += [("all", int(number), numbers == number) for number in np.unique(numbers)]
    rows = []
    for system, system_scores in systems.items():
        for subset, number, mask in cells:
            ranks = ranks_in(system_scores, subset, mask)
            for metric, function in METRICS.items():
                values = function(ranks)  # (n,)
                low, high = metrics.bootstrap_ci(values, groups[mask], seed=seed)
                rows.append((system, subset, number, metric, float(values.mean()), low, high,
                             len(values)))
    return rows


def ranks_in(system_scores, subset, mask):
    """The ranks of a subset's turns, (n,) int."""
    ranks = system_scores.ranks_kept if subset == KEPT else system_scores.ranks
    return ranks[mask]


def comparison_rows(systems, reruns, turns, masks, seed, reference):
    """Rows of comparisons.csv: the system `reference` minus each other one; none without it.

    Where a system has further runs, their mean with its own file's is compared. The interval then
    also says how far another run may change it.
    """
    groups = np.array([turn.group for turn in turns])
    rows = []
    others = [system for system in systems if system != reference and reference in systems]
    for other in others:
        ours, theirs = runs_to_compare(systems, reruns, reference, other)
        for subset, mask in masks.items():
            for metric in COMPARED:
                function = METRICS[metric]
                a = np.stack([function(ranks_in(run, subset, mask)) for run in ours])    # (R, n)
                b = np.stack([function(ranks_in(run, subset, mask)) for run in theirs])
                if len(a) != len(b):  # runs that cannot be paired
                    b = b.mean(axis=0)
                margin, low, high = metrics.paired_difference(a, b, groups[mask], seed=seed)
                rows.append((reference, other, subset, metric, margin, low, high, int(mask.sum())))
    return rows


def runs_to_compare(systems, reruns, reference, other):
    """Two lists of Scores: the runs of `reference` and those of `other`.

    Two rankers of one model (talkplay and talkplay-votes) are compared on the runs that both have:
    their weights are then the same.
    """
    ours = {"": systems[reference]} | reruns.get(reference, {})
    theirs = {"": systems[other]} | reruns.get(other, {})
    if other.split("-")[0] == reference.split("-")[0]:
        shared = [run for run in ours if run in theirs]
        return [ours[run] for run in shared], [theirs[run] for run in shared]
    return list(ours.values()), list(theirs.values())


# ---------------------------------------------------------------- main

def load_turns(data_dir, split):
    """{track_id: row}, playlists, {split: dialogues} of train and `split`, the turns to score."""
    row_of = {track["track_id"]: row for row, track in enumerate(data.load_tracks(data_dir))}
    playlists = data.load_playlists(data_dir, row_of)
    dialogues = {name: data.load_dialogues(data_dir / f"dialogues_{name}.jsonl", row_of)
                 for name in ("train", split)}
    turns = collect_turns(dialogues[split], row_of)
    if not turns:
        raise SystemExit(f"{data_dir}/dialogues_{split}.jsonl: no turn has targets. Make it again "
                         f"with: python 03_synthesize.py simulate --data-dir {data_dir}")
    return row_of, playlists, dialogues, turns


def rank_again(data_dir, split, systems, turns, n_tracks, seed):
    """The codes where a system generates any, and what `ablations.ablate` makes of them."""
    if not any(map(scores.generates, systems.values())):
        return None, [], None
    codes = data.load_codes(data_dir, n_tracks)
    run = runs.read_run(data_dir, f"05_infer.{split}")
    ties_seed = run["arguments"]["seed"] if run else 0  # 05 drew the ties of the overlap with it
    return codes, *ablations.ablate(systems, codes, turns, ties_seed, seed)


def parse_args():
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description="Score predictions/*.jsonl; write tables and a figure to results/.")
    add_shared(parser, "data-dir", "seed")
    add = parser.add_argument
    add("--split", choices=("test", "valid"), default="test",
        help="dialogues to score; valid: predictions_valid/ to results_valid/ (default test)")
    add("--compare", default=REFERENCE, metavar="SYSTEM",
        help=f"the system whose margins over the others are shown (default {REFERENCE})")
    add("--music-crs", action="store_true",
        help="also write the predictions in the Music-CRS challenge's form, with its figures")
    args = parser.parse_args()
    check_ranges(args)
    return args


def main():
    args = parse_args()
    data_dir, split, reference = args.data_dir, args.split, args.compare
    folder = data_dir / FOLDERS[split]
    suffix = "" if split == "test" else "_valid"
    results = data_dir / f"results{suffix}"

    # the turns to score, and their subsets
    row_of, playlists, dialogues, turns = load_turns(data_dir, split)
    n_tracks = len(row_of)
    if args.music_crs:
        music_crs.check_targets(turns)
    masks = subset_masks(turns, *training_rows(playlists, dialogues["train"], row_of))

    # the run's record
    writes = ["metrics.csv", "comparisons.csv", "systems.csv", "ablations.csv", "results.md",
              "mrr_per_turn.png", *["music_crs.csv"] * args.music_crs]
    run, _ = runs.begin_run(
        data_dir, f"06_evaluate{suffix}", args,
        [*data.catalogue_files(data_dir), "playlists.jsonl", "dialogues_train.jsonl",
         f"dialogues_{split}.jsonl", "codes.npy",
         *sorted(f"{folder.name}/{path.name}" for path in folder.glob("*.jsonl"))],
        [f"{results.name}/{name}" for name in writes], resume=False)

    # ranks, then numbers
    files = predictions.find_files(folder)
    predictions.check_records(data_dir, split, dict.fromkeys(system for system, _ in files))
    systems, reruns = score_all(files, turns, row_of)
    if reference not in systems and reference != REFERENCE:
        raise SystemExit(f"--compare {reference}: {folder} has no such system; "
                         f"it has {', '.join(systems)}")
    codes, ablated, same_rank = rank_again(data_dir, split, systems, turns, n_tracks, args.seed)
    metric_table = metric_rows(systems, turns, masks, args.seed)
    comparisons = comparison_rows(systems, reruns, turns, masks, args.seed, reference)
    measures = scores.system_rows(systems, reruns, codes, n_tracks)

    # files
    data.write_csv(results / "metrics.csv", METRIC_COLUMNS, metric_table)
    data.write_csv(results / "comparisons.csv", COMPARISON_COLUMNS, comparisons)
    data.write_csv(results / "systems.csv", scores.COLUMNS, measures)
    data.write_csv(results / "ablations.csv", ablations.COLUMNS, ablated)
    figures.plot_per_turn(results / "mrr_per_turn.png", metric_table, reference)
    page = tables.results_page(
        metric_table, comparisons, measures, ablated, reference, same_rank=same_rank, split=split,
        n_turns=len(turns), n_dialogues=len({turn.dialogue_id for turn in turns}),
        n_playlists=len({turn.group for turn in turns}), n_tracks=n_tracks,
        depth=next(iter(systems.values())).depth, data=tables.data_table(dialogues, playlists),
        command=f"python 06_evaluate.py --data-dir {data_dir} --split {split} "
                f"--compare {reference} --seed {args.seed}")
    data.write_text(results / "results.md", "\n\n".join(page) + "\n")
    for section in page:
        if section.startswith(("# Results", "## Margins")):
            print(f"\n{section}")
    if args.music_crs:
        music_crs.write_all(data_dir, results, folder, tables.best_first(metric_table), turns,
                            list(row_of), dialogues[split])
    print()
    runs.finish_run(run)
    model = (data_dir / "model").is_dir()
    chat = f". Next: python 05_infer.py chat --data-dir {data_dir}" if model else ""
    print(f"Wrote {results}/{', '.join(writes[:-1])} and {writes[-1]}{chat}")


if __name__ == "__main__":
    main()
