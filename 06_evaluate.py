"""Score every file of predictions/ and write the tables and the figure (the paper's section 5).

No model runs here: whatever wrote predictions/<system>.jsonl, it is scored alike. The candidate pool
is the whole catalogue; tracks that earlier turns of the dialogue have played are left out of every
ranking (the figures with them kept stand beside); intervals are 95% bootstrap intervals over
playlists; systems are compared turn by turn, in pairs.

Subsets of the turns: accepted / rejected (the listener turns the music down); where the target has
been before: in training dialogues, in training playlists only, or nowhere (cold); the kind of query;
frames seen / unseen (whether training dialogues use the sentence frame of the query). A turn with
several targets belongs to the first of the three pasts that any of its targets has.

Reads   tracks.jsonl, playlists.jsonl, dialogues_<split>.jsonl, dialogues_train.jsonl,
        predictions/*.jsonl (predictions_valid/ with --split valid), codes.npy where a file has codes
Writes  results/metrics.csv      system, subset, turn, metric, value, ci_low, ci_high, n
        results/comparisons.csv  margin of `talkplay` over every other system, with its interval
        results/results.md, results/mrr_per_turn.png (results_valid/ with --split valid)
Demo    python 06_evaluate.py
Full    python 06_evaluate.py --data-dir data/mpd    (5 systems, 1,143 turns, N = 17,348: 4 s)

It follows what lies in predictions/ and takes seconds, so it always computes everything afresh.
"""

import argparse
import os
from functools import partial
from pathlib import Path

import matplotlib
matplotlib.use("Agg")  # figures go to files; no screen is needed
import matplotlib.pyplot as plt
import numpy as np
from tqdm import tqdm

from common import data, metrics

METRICS = {"mrr": metrics.reciprocal_rank, "hit@1": partial(metrics.hit_at, k=1),
           "hit@10": partial(metrics.hit_at, k=10), "hit@100": partial(metrics.hit_at, k=100)}
COMPARED = ("mrr", "hit@10")
REFERENCE = "talkplay"  # the system that the others are compared with
KEPT = "all, played tracks kept"
PASTS = ("in training dialogues", "in training playlists only", "cold")
FOLDERS = {"test": ("predictions", "results"), "valid": ("predictions_valid", "results_valid")}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito
MARKERS = "osD^vPX"


# ---------------------------------------------------------------- the turns and their subsets

def collect_turns(dialogues, row_of):
    """The turns that have targets, in file order.

    Returns: list of dicts: key (dialogue_id, turn), turn (1-based), group (what the bootstrap draws),
    targets and played (rows; played: the music of the turns before), rejected, kind, frame.
    """
    turns = []
    for dialogue in dialogues:
        group = ("playlist " + str(dialogue["playlist_id"]) if dialogue["playlist_id"] is not None
                 else "dialogue " + dialogue["dialogue_id"])
        played = []
        for number, turn in enumerate(dialogue["turns"], 1):
            if turn["targets"]:
                turns.append({"key": (dialogue["dialogue_id"], number), "turn": number, "group": group,
                              "targets": [row_of[t] for t in turn["targets"]], "played": list(played),
                              "rejected": bool(turn["rejected"]), "kind": turn["kind"], "frame": turn.get("frame")})
            if turn["music"]:
                played.append(row_of[turn["music"]])
    return turns


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
    pasts = np.array([target_past(turn["targets"], spoken, listed) for turn in turns])
    rejected = np.array([turn["rejected"] for turn in turns])
    kinds = np.array([str(turn["kind"]) for turn in turns])
    frames = np.array([str(turn["frame"]) for turn in turns])
    everything = np.ones(len(turns), bool)
    masks = {"all": everything, KEPT: everything, "accepted": ~rejected, "rejected": rejected}
    masks |= {past: pasts == past for past in PASTS}
    masks |= {f"kind: {kind}": kinds == kind for kind in sorted({t["kind"] for t in turns if t["kind"]})}
    masks |= {f"frames: {frame}": frames == frame for frame in ("seen", "unseen")}
    return {name: mask for name, mask in masks.items() if mask.any()}


# ---------------------------------------------------------------- predictions

def check_ranking(row, row_of, where):
    """One line's track_ids as rows, (D,) int64. Raises SystemExit: unknown or repeated track_id, no list."""
    track_ids = row.get("track_ids")
    if not isinstance(track_ids, list) or set(map(type, track_ids)) - {str}:
        raise SystemExit(f"{where}: track_ids is to be a list of track_ids, best first. Write the file again")
    rows = np.array([row_of.get(t, -1) for t in track_ids], np.int64)
    if (rows < 0).any():
        unknown = track_ids[int(np.argmax(rows < 0))]
        raise SystemExit(f"{where}: track_id {unknown} is not in tracks.jsonl. Predict again for this catalogue (05_infer.py predict, or the baseline's script)")
    if len(set(track_ids)) < len(track_ids):
        repeated = next(t for i, t in enumerate(track_ids) if t in track_ids[:i])
        raise SystemExit(f"{where}: track_id {repeated} stands twice in the ranking; each track may stand once. "
                         "Write the file again")
    return rows


def check_codes(row, where):
    """The five codes of a line, or None. Raises SystemExit: neither null nor five integers."""
    codes = row.get("codes")
    if codes is not None and not (isinstance(codes, list) and len(codes) == 5 and all(type(c) is int for c in codes)):
        raise SystemExit(f"{where}: codes is to be null or five integers, -1 for a missing one. Write the file again")
    return codes


def score_predictions(path, turns, row_of, depths):
    """Read one predictions file and find the targets in its rankings.

    depths: the depths that a ranking may have; every ranking must have the same.
    Returns: dict of ranks (n_turns,) int, 0 = not found; ranks_kept, the same with played tracks
    kept; codes, a list of five codes or None a turn; valid, (n_turns,) bool; depth.
    Raises SystemExit: turns that are missing, unknown or repeated; a bad ranking; another depth.
    """
    position = {turn["key"]: i for i, turn in enumerate(turns)}
    result = {"ranks": np.zeros(len(turns), int), "ranks_kept": np.zeros(len(turns), int),
              "codes": [None] * len(turns), "valid": np.zeros(len(turns), bool), "depth": None}
    lines = {}
    for number, row in data.read_jsonl(path, "the script that predicts for this system"):
        where, key = f"{path}:{number}", (row.get("dialogue_id"), row.get("turn"))
        if not isinstance(key[0], str) or type(key[1]) is not int or key not in position:
            raise SystemExit(f"{where}: dialogue {key[0]}, turn {key[1]} is not a turn with targets of the evaluated "
                             "dialogues; exactly their turns are accepted. Predict again for these dialogues (05_infer.py predict, or "
                             "the baseline's script, with --no-resume)")
        if key in lines:
            raise SystemExit(f"{where}: dialogue {key[0]}, turn {key[1]} stands twice (also line {lines[key]}). "
                             "Write the file again")
        lines[key] = number
        ranked = check_ranking(row, row_of, where)
        if len(ranked) not in depths:
            raise SystemExit(f"{where}: {len(ranked)} tracks are ranked; {' or '.join(map(str, sorted(depths)))} are "
                             "accepted, the same number for every system and turn. Predict again at that depth")
        depths = {len(ranked)}
        i, turn = position[key], turns[position[key]]
        filtered = metrics.filter_played(ranked, turn["played"], turn["targets"])
        result["ranks"][i] = metrics.rank_of_first_hit(filtered, turn["targets"])
        result["ranks_kept"][i] = metrics.rank_of_first_hit(ranked, turn["targets"])
        result["codes"][i], result["valid"][i] = check_codes(row, where), bool(row.get("codes_valid"))
    missing = [key for key in position if key not in lines]
    if missing:
        raise SystemExit(f"{path}: {len(missing)} of {len(turns)} turns are missing, the first: dialogue {missing[0][0]}, "
                         f"turn {missing[0][1]}; every turn with targets is to be there. Predict again for these dialogues "
                         "(05_infer.py predict, or the baseline's script, with --no-resume and without --limit)")
    return result | {"depth": depths.pop()}


def score_all(folder, turns, row_of):
    """{system: scores} of every file of a folder, the same depth for all. Raises SystemExit: no file."""
    paths = sorted(folder.glob("*.jsonl"))
    if not paths:
        raise SystemExit(f"{folder} has no predictions (*.jsonl); make some with: python 05_infer.py predict, "
                         "or python baselines/popularity.py")
    depths, systems = {metrics.ranking_depth(len(row_of)), len(row_of)}, {}
    for path in tqdm(paths, desc="systems"):
        systems[path.stem] = score_predictions(path, turns, row_of, depths)
        depths = {systems[path.stem]["depth"]}
    return systems


def code_shares(scores, catalogue):
    """Share of turns with a valid generated sequence, and of those whose codes are a track's, exactly.

    catalogue: (N, 5) codes. Exactly: the same ones missing.
    """
    known = set(map(tuple, catalogue.tolist()))
    exact = [codes is not None and tuple(codes) in known for codes in scores["codes"]]
    return float(scores["valid"].mean()), float(np.mean(exact))


# ---------------------------------------------------------------- numbers

def metric_rows(systems, turns, masks, seed):
    """Rows of metrics.csv: each subset over all turns, and "all" also for each turn number."""
    groups, numbers = np.array([t["group"] for t in turns]), np.array([t["turn"] for t in turns])
    cells = [(subset, "all", mask) for subset, mask in masks.items()]
    cells += [("all", int(number), numbers == number) for number in np.unique(numbers)]
    rows = []
    for system, scores in systems.items():
        for subset, turn, mask in cells:
            ranks = scores["ranks_kept" if subset == KEPT else "ranks"][mask]
            for metric, function in METRICS.items():
                values = function(ranks)
                low, high = metrics.bootstrap_ci(values, groups[mask], seed=seed)
                rows.append((system, subset, turn, metric, float(values.mean()), low, high, len(values)))
    return rows


def comparison_rows(systems, turns, masks, seed):
    """Rows of comparisons.csv: REFERENCE minus each other system; none without REFERENCE."""
    if REFERENCE not in systems:
        return []
    groups, rows = np.array([t["group"] for t in turns]), []
    for other in [s for s in systems if s != REFERENCE]:
        for subset, mask in masks.items():
            which = "ranks_kept" if subset == KEPT else "ranks"
            for metric in COMPARED:
                a, b = (METRICS[metric](systems[s][which][mask]) for s in (REFERENCE, other))
                margin, low, high = metrics.paired_difference(a, b, groups[mask], seed=seed)
                rows.append((REFERENCE, other, subset, metric, margin, low, high, int(mask.sum())))
    return rows


# ---------------------------------------------------------------- tables

def with_interval(value, low, high, sign=""):
    """0.123 [0.101, 0.145]; without the interval where there is none."""
    shown = f"{value:{sign}.3f}"
    return shown if np.isnan(low) else f"{shown} [{low:{sign}.3f}, {high:{sign}.3f}]"


def table(header, rows):
    """A Markdown table whose columns are also aligned as plain text; all but the first to the right."""
    cells = [[str(c) for c in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = ["| " + " | ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths))) + " |"
             for row in cells]
    rule = "| " + " | ".join("-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)) + " |"
    return "\n".join([lines[0], rule, *lines[1:]])


def main_table(order, found):
    """Systems as rows, best MRR first. found: {(system, subset, turn, metric): (value, low, high, n)}."""
    hits = [metric for metric in METRICS if metric != "mrr"]
    rows = [[system, with_interval(*found[system, "all", "all", "mrr"][:3]),
             *(f"{found[system, 'all', 'all', m][0]:.3f}" for m in hits), f"{found[system, KEPT, 'all', 'mrr'][0]:.3f}"]
            for system in order]
    return table(["system", "MRR", *map(str.capitalize, hits), "MRR, played kept"], rows)


def subset_table(order, found, masks, subsets, first):
    """MRR of every system (columns) in the given subsets (rows)."""
    rows = [[s.partition(": ")[2] or s, int(masks[s].sum()),
             *(with_interval(*found[system, s, "all", "mrr"][:3]) for system in order)] for s in subsets if s in masks]
    return table([first, "n", *order], rows) if rows else f"No turn says its {first}."


def margin_text(comparisons):
    """One sentence for each system that REFERENCE is compared with."""
    if not comparisons:
        return f"No other system to compare, or no `{REFERENCE}` among the systems."
    sentences = []
    for other in dict.fromkeys(row[1] for row in comparisons):
        said = []
        for metric in COMPARED:
            margin, low, high = next(r[4:7] for r in comparisons if r[1:4] == (other, "all", metric))
            verdict = "above" if low > 0 else "below" if high < 0 else "not told apart"
            said.append(f"{metric} {with_interval(margin, low, high, '+')}, {verdict}")
        sentences.append(f"- against {other}: {'; '.join(said)}")
    return "\n".join(sentences)


def margin_table(comparisons, other):
    """The margins over one system in every subset."""
    subsets = dict.fromkeys(row[2] for row in comparisons)
    at = {row[1:4]: row[4:] for row in comparisons}
    rows = [[s, at[other, s, "mrr"][3], *(with_interval(*at[other, s, m][:3], "+") for m in COMPARED)] for s in subsets]
    return table(["subset", "n", "MRR margin", "Hit@10 margin"], rows)


def results_page(args, turns, n_tracks, order, found, masks, comparisons, systems, shares):
    """The text of results.md, as a list of (heading, text)."""
    versions = data.package_versions(("numpy",))
    kinds = [s for s in masks if s.startswith("kind: ")]
    page = [(f"# Results on the {args.split} dialogues",
             f"{len(turns):,} turns of {len({t['key'][0] for t in turns}):,} dialogues from "
             f"{len({t['group'] for t in turns}):,} playlists. Candidate pool: all N = {n_tracks:,} tracks, ranked "
             f"{systems[order[0]]['depth']:,} deep. Tracks already played in the dialogue are left out for every system "
             "(last column: kept). In brackets: 95% bootstrap intervals over playlists (1,000 resamples).\n\n"
             + main_table(order, found)),
            ("## MRR by kind of query", subset_table(order, found, masks, kinds, "kind")),
            ("## MRR by the target's past", subset_table(order, found, masks, PASTS, "past")),
            ("## MRR by sentence frame (used in training dialogues or not)",
             subset_table(order, found, masks, ("frames: seen", "frames: unseen"), "frame")),
            ("## MRR by the listener's verdict", subset_table(order, found, masks, ("accepted", "rejected"), "verdict")),
            (f"## Margins of {REFERENCE}", "Paired by turn; not told apart: the 95% interval holds 0.\n\n"
             + margin_text(comparisons))]
    others = [s for s in order if not s.startswith(REFERENCE)]
    if comparisons and others:
        heading = f"## Margins of {REFERENCE} over {others[0]}, the best other system"
        page.append((heading, margin_table(comparisons, others[0])))
    if shares:
        rows = [[s, f"{valid:.3f}", f"{exact:.3f}"] for s, (valid, exact) in shares.items()]
        page.append(("## Generated music", "Share of turns whose freely generated music is a valid sequence, and whose "
                     "codes are exactly those of a track.\n\n" + table(["system", "valid", "exact match"], rows)))
    page.append(("## Made by", f"`python 06_evaluate.py --data-dir {args.data_dir} --split {args.split} --seed {args.seed}` "
                 f"(Python {versions['python']}, numpy {versions['numpy']}). More in metrics.csv and comparisons.csv.\n\n"
                 "![MRR per turn](mrr_per_turn.png)"))
    return page


# ---------------------------------------------------------------- figure

def plot_per_turn(path, order, found):
    """MRR by turn number with interval bands; the number of turns stands under each turn number."""
    numbers = sorted({turn for _, _, turn, _ in found if turn != "all"})
    figure, axis = plt.subplots(figsize=(8, 4.5), dpi=150)
    for i, system in enumerate(order):
        value, low, high, _ = np.array([found[system, "all", n, "mrr"] for n in numbers]).T
        style = {"color": COLOURS[i % 7], "marker": MARKERS[i % 7], "linestyle": ("-", "--", ":")[i // 7 % 3]}
        axis.plot(numbers, value, label=system, linewidth=1.6, markersize=5, **style)
        axis.fill_between(numbers, low, high, color=style["color"], alpha=0.13, linewidth=0)
    axis.set_xticks(numbers, [f"{n}\n{found[order[0], 'all', n, 'mrr'][3]}" for n in numbers])
    axis.set_xlabel("turn of the dialogue (below it: number of turns)")
    axis.set_ylabel("MRR, band: 95% over playlists")
    axis.set_ylim(0, min(1.03, 1.3 * max(row[0] for key, row in found.items() if key[1] == "all" and key[3] == "mrr")))
    axis.grid(axis="y", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    temporary = path.with_name(path.name + ".tmp")
    figure.savefig(temporary, format="png", bbox_inches="tight")
    plt.close(figure)
    os.replace(temporary, path)


def main():
    parser = argparse.ArgumentParser(description="Score predictions/*.jsonl; write tables and a figure to results/.")
    parser.add_argument("--data-dir", type=Path, default=Path("data/demo"), help="folder of the data (default data/demo)")
    parser.add_argument("--split", choices=tuple(FOLDERS), default="test",
                        help="dialogues to score; valid reads predictions_valid/ and writes results_valid/ (default test)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap's resamples (default 0)")
    args = parser.parse_args()
    predictions, results = (args.data_dir / folder for folder in FOLDERS[args.split])

    tracks = data.load_tracks(args.data_dir)
    row_of = {track["track_id"]: row for row, track in enumerate(tracks)}
    playlists = data.load_playlists(args.data_dir, row_of)
    turns = collect_turns(data.load_dialogues(args.data_dir / f"dialogues_{args.split}.jsonl", row_of), row_of)
    if not turns:
        raise SystemExit(f"{args.data_dir}/dialogues_{args.split}.jsonl: no turn has targets, so there is nothing to score. "
                         f"Make it again with: python 03_synthesize.py --data-dir {args.data_dir}")
    train_dialogues = data.load_dialogues(args.data_dir / "dialogues_train.jsonl", row_of)
    masks = subset_masks(turns, *training_rows(playlists, train_dialogues, row_of))

    names = [results.name + "/" + name for name in ("metrics.csv", "comparisons.csv", "results.md", "mrr_per_turn.png")]
    reads = ["tracks.jsonl", "playlists.jsonl", "dialogues_train.jsonl", f"dialogues_{args.split}.jsonl", "codes.npy",
             *sorted(f"{predictions.name}/{path.name}" for path in predictions.glob("*.jsonl"))]
    run, _ = data.begin_run(args.data_dir, "06_evaluate" + ("" if args.split == "test" else "_valid"), args, reads, names,
                            resume=False)
    systems = score_all(predictions, turns, row_of)
    generating = [s for s in systems if any(c is not None for c in systems[s]["codes"])]
    codes = data.load_codes(args.data_dir, len(tracks)) if generating else None
    shares = {s: code_shares(systems[s], codes) for s in generating}

    rows = metric_rows(systems, turns, masks, args.seed)
    comparisons = comparison_rows(systems, turns, masks, args.seed)
    found = {row[:4]: row[4:] for row in rows}
    order = sorted(systems, key=lambda s: -found[s, "all", "all", "mrr"][0])
    page = results_page(args, turns, len(tracks), order, found, masks, comparisons, systems, shares)

    data.write_csv(results / "metrics.csv", ("system", "subset", "turn", "metric", "value", "ci_low", "ci_high", "n"), rows)
    data.write_csv(results / "comparisons.csv",
                   ("system", "against", "subset", "metric", "margin", "ci_low", "ci_high", "n"), comparisons)
    data.write_text(results / "results.md", "\n\n".join(f"{heading}\n\n{text}" for heading, text in page) + "\n")
    plot_per_turn(results / "mrr_per_turn.png", order, found)
    for heading, text in page:
        if heading.startswith(("# Results", "## Margins")):
            print(f"\n{heading}\n\n{text}")
    print()
    data.finish_run(run)
    print(f"Wrote {results}/metrics.csv, comparisons.csv, results.md and mrr_per_turn.png. "
          f"Next: python 05_infer.py chat --data-dir {args.data_dir}")


if __name__ == "__main__":
    main()
