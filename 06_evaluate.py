"""Score every file of predictions/ and write the tables and the figure (the paper's section 5).

No model runs here: whatever wrote predictions/<system>.jsonl, it is scored alike. The candidate pool
is the whole catalogue; tracks that earlier turns of the dialogue have played are left out of every
ranking (the figures with them kept stand beside); intervals are 95% bootstrap intervals over
playlists; systems are compared turn by turn, in pairs. The paper's Tables 3 and 4 come from the codes that TalkPlay
generated, ranked again with other weights.

Subsets of the turns: accepted / rejected (the listener turns the music down); where the target has
been before: in training dialogues, in training playlists only, or nowhere (cold); the kind of query;
templates seen / unseen (whether training dialogues use the sentence template of the query). A turn with
several targets belongs to the first of the three pasts that any of its targets has.

With --music-crs, every system's predictions are also written in the form of the Music-CRS challenge, and scored as its evaluator
scores them (steps/evaluate/music_crs.py).

A file <system>@<run>.jsonl (talkplay@seed1.jsonl) is the same system trained or sampled once more: it has no row of its
own, but goes into the spread of its system over runs, and into the margins, which are then those of the runs' mean.

Reads   tracks.jsonl, playlists.jsonl, dialogues_<split>.jsonl, dialogues_train.jsonl,
        predictions/*.jsonl (predictions_valid/ with --split valid), codes.npy where a file has codes
Writes  results/metrics.csv      system, subset, turn, metric, value, ci_low, ci_high, n
        results/comparisons.csv  margin of `talkplay` (--compare) over every other system, with its interval
        results/systems.csv      system, measure, value: coverage, Distinct-2, valid codes, spread over runs
        results/ablations.csv    the weighted overlap with other weights, and without one modality
        results/results.md, results/mrr_per_turn.png (results_valid/ with --split valid)
        results/music_crs/<system>.json, results/music_crs.csv (with --music-crs)
Demo    python 06_evaluate.py
Full    python 06_evaluate.py --data-dir data/mpd    (5 systems, 1,143 turns, N = 17,348: 10 s)

It follows what lies in predictions/ and takes seconds, so it always computes everything afresh. The parts are in
evaluation/: predictions.py reads, scores.py and ablations.py count, tables.py and figures.py show.
"""

import argparse
from pathlib import Path

import numpy as np

from common import data, runs
from common.turns import collect_turns
from steps.evaluate import ablations, figures, music_crs, predictions, scores, tables
from steps.evaluate.scores import KEPT
from steps.evaluate.tables import PASTS

REFERENCE = "talkplay"  # the system that the others are compared with, unless --compare names another
FOLDERS = {"test": ("predictions", "results"), "valid": ("predictions_valid", "results_valid")}
WRITES = ("metrics.csv", "comparisons.csv", "systems.csv", "ablations.csv", "results.md", "mrr_per_turn.png")


# ---------------------------------------------------------------- the turns and their subsets

def training_rows(playlists, train_dialogues, row_of):
    """Two sets of rows: tracks of the training dialogues, tracks of the training playlists."""
    spoken = {row_of[track_id] for dialogue in train_dialogues for turn in dialogue["turns"]
              for track_id in [turn["music"], *turn["targets"]] if track_id}
    listed = {row_of[track_id] for p in playlists if p["split"] == "train" for track_id in p["track_ids"]}
    return spoken, listed


def target_past(targets, spoken, listed):
    """Where the targets of a turn have been before: one of PASTS."""
    if spoken.intersection(targets):
        return PASTS[0]
    return PASTS[1] if listed.intersection(targets) else PASTS[2]


def subset_masks(turns, spoken, listed):
    """{subset: (n_turns,) bool}, empty subsets left out. KEPT has the turns of "all"."""
    pasts = np.array([target_past(turn.targets, spoken, listed) for turn in turns])
    rejected = np.array([turn.rejected for turn in turns])
    kinds = np.array([str(turn.kind) for turn in turns])
    templates = np.array([str(turn.template) for turn in turns])
    everything = np.ones(len(turns), bool)
    masks = {"all": everything, KEPT: everything, "accepted": ~rejected, "rejected": rejected}
    masks |= {past: pasts == past for past in PASTS}
    masks |= {f"kind: {kind}": kinds == kind for kind in sorted({t.kind for t in turns if t.kind})}
    masks |= {f"templates: {template}": templates == template for template in ("seen", "unseen")}
    return {name: mask for name, mask in masks.items() if mask.any()}


# ---------------------------------------------------------------- numbers, tables, files

def prediction_seed(data_dir, split):
    """The --seed of 05_infer.py, which drew the ties of the overlap; 0 where its record is not there."""
    run = runs.read_run(data_dir, f"05_infer.{split}")
    return run["arguments"]["seed"] if run else 0


def check_codes_are_the_same(data_dir, split):
    """Raises SystemExit: 02_quantize.py has made other codes since 05_infer.py predicted, so these tokens mean other tracks now."""
    runs.check_unchanged(data_dir, f"05_infer.{split}", "codes.npy",
                         f"its tokens mean other tracks now. Train and predict again: python 04_train.py "
                         f"--data-dir {data_dir} --no-resume, then python 05_infer.py predict "
                         f"--data-dir {data_dir} --split {split} --no-resume")


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False, description="Score predictions/*.jsonl; write tables and a figure to results/.")
    parser.add_argument("--data-dir", type=Path, default=Path("data/demo"), help="folder of the data (default data/demo)")
    parser.add_argument("--split", choices=tuple(FOLDERS), default="test",
                        help="dialogues to score; valid reads predictions_valid/ and writes results_valid/ (default test)")
    parser.add_argument("--compare", default=REFERENCE, metavar="SYSTEM",
                        help=f"the system whose margins over the others are shown (default {REFERENCE})")
    parser.add_argument("--music-crs", action="store_true", help="also write the predictions in the Music-CRS challenge's form, "
                        "with its figures")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap's resamples (default 0)")
    args = parser.parse_args()
    folder, results = (args.data_dir / name for name in FOLDERS[args.split])

    # what there is to score
    tracks = data.load_tracks(args.data_dir)
    row_of = {track["track_id"]: row for row, track in enumerate(tracks)}
    playlists = data.load_playlists(args.data_dir, row_of)
    dialogues = {split: data.load_dialogues(args.data_dir / f"dialogues_{split}.jsonl", row_of) for split in ("train", args.split)}
    turns = collect_turns(dialogues[args.split], row_of)
    if not turns:
        raise SystemExit(f"{args.data_dir}/dialogues_{args.split}.jsonl: no turn has targets, so there is nothing to score. "
                         f"Make it again with: python 03_synthesize.py --data-dir {args.data_dir}")
    if args.music_crs:
        music_crs.check_targets(turns)
    masks = subset_masks(turns, *training_rows(playlists, dialogues["train"], row_of))
    reads = ["tracks.jsonl", "playlists.jsonl", "dialogues_train.jsonl", f"dialogues_{args.split}.jsonl", "codes.npy",
             *sorted(f"{folder.name}/{path.name}" for path in folder.glob("*.jsonl"))]
    writes = [*WRITES, "music_crs.csv"] if args.music_crs else WRITES
    run, _ = runs.begin_run(args.data_dir, "06_evaluate" + ("" if args.split == "test" else "_valid"), args, reads,
                            [f"{results.name}/{name}" for name in writes], resume=False)

    # numbers
    systems, reruns = predictions.score_all(folder, turns, row_of)
    if args.compare not in systems and args.compare != REFERENCE:
        raise SystemExit(f"--compare {args.compare}: {folder} has no such system; it has {', '.join(systems)}")
    generating = any(map(scores.generates, systems.values()))
    codes = data.load_codes(args.data_dir, len(tracks)) if generating else None
    if generating:
        check_codes_are_the_same(args.data_dir, args.split)
    metric_rows = scores.metric_rows(systems, turns, masks, args.seed)
    comparison_rows = scores.comparison_rows(systems, reruns, turns, masks, args.seed, args.compare)
    system_rows = scores.system_rows(systems, reruns, len(tracks), codes)
    ablation_rows, same_rank = ablations.ablate(systems, codes, turns, prediction_seed(args.data_dir, args.split), args.seed)
    found = {row[:4]: row[4:] for row in metric_rows}
    order = sorted(systems, key=lambda s: -found[s, "all", "all", "mrr"][0])
    depth = systems[order[0]]["depth"]
    numbers = scores.Numbers(order, found, comparison_rows, {row[:2]: row[2] for row in system_rows}, ablation_rows, same_rank)

    # files
    data.write_csv(results / "metrics.csv", scores.METRIC_COLUMNS, metric_rows)
    data.write_csv(results / "comparisons.csv", scores.COMPARISON_COLUMNS, comparison_rows)
    data.write_csv(results / "systems.csv", scores.SYSTEM_COLUMNS, system_rows)
    data.write_csv(results / "ablations.csv", ablations.COLUMNS, ablation_rows)
    command = f"python 06_evaluate.py --data-dir {args.data_dir} --split {args.split} --compare {args.compare} --seed {args.seed}"
    page = tables.results_page(numbers, turns, len(tracks), depth, args.split, args.compare, command)
    page.insert(1, ("## The data, as the paper's Table 1", tables.data_table(dialogues, playlists)))
    data.write_text(results / "results.md", "\n\n".join(f"{heading}\n\n{text}" for heading, text in page) + "\n")
    figures.plot_per_turn(results / "mrr_per_turn.png", order, found)
    for heading, text in page:
        if heading.startswith(("# Results", "## Margins")):
            print(f"\n{heading}\n\n{text}")
    if args.music_crs:
        rows = music_crs.write_all(results, folder, order, turns, list(row_of), music_crs.users_of(dialogues[args.split]))
        print(f"\n## As the Music-CRS challenge scores ({results}/music_crs/)\n\n{tables.table(music_crs.COLUMNS, rows)}")
        for warning in music_crs.warnings(args.data_dir, dialogues[args.split], turns, len(tracks)):
            print(f"warning: {warning}")
    print()
    runs.finish_run(run)
    chat = f". Next: python 05_infer.py chat --data-dir {args.data_dir}" if (args.data_dir / "model").is_dir() else ""
    print(f"Wrote {results}/{', '.join(writes[:-1])} and {writes[-1]}{chat}")


if __name__ == "__main__":
    main()
