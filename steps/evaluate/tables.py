"""From numbers to results.md: Markdown tables that also read as plain text."""

from typing import NamedTuple

import numpy as np

from common import runs, tokens
from common.metrics import METRICS
from steps.evaluate.ablations import SOURCE, TABLES, WEIGHTINGS, weight_text
from steps.evaluate.scores import COVERED

KEPT = "all, played tracks kept"  # the subset of all turns whose rankings hold played tracks too
PASTS = ("in training dialogues", "in training playlists only", "cold")  # of a turn's targets
HITS = ("hit@1", "hit@10", "hit@100")

# The blocks of the paper's Table 2, and the families of systems, by how their file names begin. A
# name with "tuned" in it is fine-tuned, whatever its family. The paper's dense row is NV-Embed-v2:
# name what baselines/dense.py writes with that encoder nv-embed-v2.jsonl (nv-embed-v2-tuned.jsonl).
BLOCKS = ("zero-shot", "fine-tuned", "not trained on text", "other")
ZERO_SHOT, TUNED, NO_TEXT, OTHER = BLOCKS
FAMILIES = dict.fromkeys(("bm25", "dense", "nv-embed-v2", "clap", "two_stage"), ZERO_SHOT)
FAMILIES |= {"talkplay": TUNED}
FAMILIES |= dict.fromkeys(("sasrec", "tiger", "popularity", "random_order"), NO_TEXT)
TABLE_2 = (
    "Measured: on these dialogues, from a file in predictions. Not run: a system of the paper "
    "without such a file. The paper's own figures are not shown: they come from other dialogues "
    "and another catalogue. QU, query understanding: the system reads what the listener writes. "
    "RG, response generation: it answers in words. `talkplay-overlap` ranks as the paper does.")
OF_THE_PAPER = (
    (ZERO_SHOT, "bm25"), (ZERO_SHOT, "nv-embed-v2"), (ZERO_SHOT, "clap"),
    (TUNED, "nv-embed-v2"), (TUNED, "clap"), (TUNED, "talkplay"),
    (NO_TEXT, "sasrec"), (NO_TEXT, "tiger"))


class Results(NamedTuple):
    """All that the page shows."""
    order: list        # the systems, best MRR first
    values: dict       # {(system, subset, turn, metric): (value, low, high, n)}, as metrics.csv
    comparisons: list  # rows of comparisons.csv
    measures: dict     # {(system, measure): value}, as systems.csv
    ablations: list    # rows of ablations.csv
    same_rank: float   # share of turns whose stored rank the ablations give back, or None


def make_results(metric_rows, comparisons, system_rows, ablations, same_rank):
    """Results from the rows of the csv files, and the share of the same ranks."""
    values = {row[:4]: row[4:] for row in metric_rows}
    measures = {row[:2]: row[2] for row in system_rows}
    order = sorted(dict.fromkeys(row[0] for row in metric_rows),
                   key=lambda system: -values[system, "all", "all", "mrr"][0])
    return Results(order, values, comparisons, measures, ablations, same_rank)


# ---------------------------------------------------------------- cells and tables

def with_interval(value, low, high, sign=""):
    """0.123 [0.101, 0.145]; without the interval where there is none."""
    text = f"{value:{sign}.3f}"
    if np.isnan(low):
        return text
    return f"{text} [{low:{sign}.3f}, {high:{sign}.3f}]"


def metric_title(metric):
    """The metric's name in a heading: "hit@10" -> "Hit@10"."""
    return {"mrr": "MRR"}.get(metric) or metric.replace("ndcg", "nDCG").replace("hit", "Hit")


def table(header, rows, left=1):
    """A Markdown table whose columns are also aligned as plain text.

    left: how many columns are aligned to the left; the others to the right.
    """
    cells = [[str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    sides = ["<" if i < left else ">" for i in range(len(header))]
    rule = ["-" * width if side == "<" else "-" * (width - 1) + ":"
            for side, width in zip(sides, widths, strict=True)]
    lines = []
    for row in [cells[0], rule, *cells[1:]]:
        padded = [f"{cell:{side}{width}}"
                  for cell, side, width in zip(row, sides, widths, strict=True)]
        lines.append(f"| {' | '.join(padded)} |")
    return "\n".join(lines)


# ---------------------------------------------------------------- the data

def data_table(dialogues, playlists):
    """The paper's Table 1: dialogues and playlists of each split. Cold: in no training playlist.

    dialogues: {split: list}.
    """
    warm = {track_id for p in playlists if p["split"] == "train" for track_id in p["track_ids"]}
    rows = []
    for split, of_split in dialogues.items():
        turns = [turn for dialogue in of_split for turn in dialogue["turns"]]
        played = {turn["music"] for turn in turns} - {None}
        texts = [turn[field] or "" for turn in turns for field in ("query", "response")]
        words = {word for text in texts for word in text.lower().split()}
        lengths = [len(p["track_ids"]) for p in playlists if p["split"] == split]
        rows.append([
            split, f"{len(of_split):,}", f"{len(turns):,}", f"{len(turns) / len(of_split):.2f}",
            f"{len(words):,}", f"{len(played & warm):,}", f"{len(played - warm):,}",
            f"{len(lengths):,}", f"{np.mean(lengths):.1f}" if lengths else ""])
    header = ["split", "dialogues", "turns", "turns per dialogue", "vocabulary",
              "warm tracks played", "cold tracks played", "playlists", "tracks per playlist"]
    return table(header, rows)


# ---------------------------------------------------------------- the systems

def main_table(order, values):
    """Systems as rows, best MRR first. values: as in Results."""
    rows = [[system, *system_cells(system, values), f"{values[system, KEPT, 'all', 'mrr'][0]:.3f}"]
            for system in order]
    return table(["system", "MRR", *map(metric_title, HITS), "MRR, played kept"], rows)


def system_cells(system, values):
    """MRR with its interval, and the hit rates, of one system over all turns."""
    return [with_interval(*values[system, "all", "all", "mrr"][:3]),
            *(f"{values[system, 'all', 'all', metric][0]:.3f}" for metric in HITS)]


def block_of(system):
    """(block, family) of a system in the paper's Table 2, by its name."""
    family = next((name for name in FAMILIES if system.startswith(name)), None)
    return TUNED if "tuned" in system else FAMILIES.get(family, OTHER), family


def paper_table(order, values, measures):
    """The paper's Table 2: by block, our systems, best first, then the paper's without a file."""
    rows = []
    measured = set(map(block_of, order))
    for block in BLOCKS:
        reads = {NO_TEXT: "no", OTHER: ""}.get(block, "yes")
        for system in [system for system in order if block_of(system)[0] == block]:
            writes = "yes" if measures[system, "responses"] else "no"
            cells = system_cells(system, values)
            rows.append([block, system, "measured", reads, writes, *cells])
        for in_block, family in OF_THE_PAPER:
            if in_block == block and (block, family) not in measured:
                rows.append([block, family, "not run", reads, "", "", *[""] * len(HITS)])
    header = ["block", "system", "row", "QU", "RG", "MRR", *map(metric_title, HITS)]
    return table(header, rows, left=5)


def further_table(order, values, measures):
    """nDCG, coverage and Distinct-2, which the paper does not have."""
    coverage = f"coverage@{COVERED}"
    rows = []
    for system in order:
        ndcg = [with_interval(*values[system, "all", "all", metric][:3])
                for metric in ("ndcg@10", "ndcg@20")]
        rows.append([system, *ndcg, f"{measures[system, coverage]:.3f}", "", ""])
        if (system, "distinct-2") in measures:
            rows[-1][-2] = f"{measures[system, 'distinct-2']:.3f}"
            rows[-1][-1] = measures[system, "responses"]
    return table(["system", "nDCG@10", "nDCG@20", coverage, "Distinct-2", "responses"], rows)


def spread_table(order, measures):
    """Mean and standard deviation of each metric over the runs of a system."""
    rows = [[system, measures[system, "runs"],
             *(f"{measures[system, f'{metric}, mean of runs']:.3f} ± "
               f"{measures[system, f'{metric}, sd of runs']:.3f}" for metric in METRICS)]
            for system in order if (system, "runs") in measures]
    return table(["system", "runs", *map(metric_title, METRICS)], rows)


def codes_table(order, measures):
    """How often the generated codes are well formed, and exactly a track's."""
    rows = [[system, *(f"{measures[system, name]:.3f}" for name in ("well_formed", "exact match"))]
            for system in order if (system, "well_formed") in measures]
    return table(["system", "well formed", "exact match"], rows)


def subset_table(order, values, subsets, first):
    """MRR of every system (columns) in some subsets (rows). first: heading of the first column."""
    rows = []
    for subset in subsets:
        if (order[0], subset, "all", "mrr") in values:
            cells = [values[system, subset, "all", "mrr"] for system in order]
            name = subset.partition(": ")[2] or subset
            rows.append([name, cells[0][3], *(with_interval(*cell[:3]) for cell in cells)])
    return table([first, "n", *order], rows) if rows else f"No turn says its {first}."


# ---------------------------------------------------------------- comparisons

def margin_text(comparisons, reference):
    """One sentence for each system that `reference` is compared with."""
    if not comparisons:
        return (f"Nothing to compare: no `{reference}` among the systems (05_infer.py predict "
                "makes one, --compare names another), or no other.")
    by_system = {}  # {other system: what is said of each metric}
    for _, other, subset, metric, margin, low, high, _ in comparisons:
        if subset == "all":
            verdict = "no significant difference"
            if low > 0:
                verdict = "above"
            elif high < 0:
                verdict = "below"
            margin = with_interval(margin, low, high, "+")
            by_system.setdefault(other, []).append(f"{metric_title(metric)} {margin}, {verdict}")
    return "\n".join(f"- against {other}: {'; '.join(said)}" for other, said in by_system.items())


def margin_table(comparisons, other):
    """The margins over one system in every subset."""
    rows = {}  # {subset: its row}
    for _, against, subset, _, margin, low, high, n in comparisons:
        if against == other:
            rows.setdefault(subset, [subset, n]).append(with_interval(margin, low, high, "+"))
    return table(["subset", "n", "MRR margin", "Hit@10 margin"], rows.values())


# ---------------------------------------------------------------- other weights

def ablation_table(number, ablations):
    """The paper's Table 3 or 4 from the rows of ablations.csv, one row per weighting."""
    cells = {row[1:3]: row[3:] for row in ablations if row[0] == number}
    weightings, against = TABLES[number]
    rows = []
    for weights in weightings:
        text = weight_text(weights)
        if number == 3:
            note = WEIGHTINGS[weights]
        else:
            left_out = [m for m, w in zip(tokens.MODALITIES, weights, strict=True) if w == 0]
            note = left_out[0] if left_out else "-"
        value, low, high, _, *margin, _ = cells[text, "mrr"]
        hits = [f"{cells[text, metric][0]:.3f}" for metric in HITS]
        rows.append([text, note, with_interval(value, low, high), *hits,
                     "" if weights == against else with_interval(*margin, "+")])
    header = ["weights", "source" if number == 3 else "without", "MRR", *map(metric_title, HITS),
              "MRR margin"]
    return table(header, rows, left=2)


# ---------------------------------------------------------------- the page

def overview(turns, n_tracks, depth):
    """What was ranked for, and how, in words. depth: length of the rankings."""
    return (
        f"{len(turns):,} turns of {len({turn.dialogue_id for turn in turns}):,} dialogues from "
        f"{len({turn.group for turn in turns}):,} playlists. Candidates: all N = {n_tracks:,} "
        f"tracks, ranked {depth:,} deep. Tracks that the dialogue has already played are left out "
        "for every system; the last column keeps them. In brackets: 95% bootstrap intervals over "
        "playlists (1,000 resamples).")


def results_page(results, split, reference, overview_text, data_text, command):
    """All sections of results.md in order: list of (heading, text).

    reference: the system that the others are compared with. command: what makes the page.
    """
    order, values, comparisons, measures, ablations, same_rank = results
    versions = runs.package_versions()
    return [
        (f"# Results on the {split} dialogues", f"{overview_text}\n\n{main_table(order, values)}"),
        ("## The data, as the paper's Table 1", data_text),
        *subset_sections(order, values),
        *margin_sections(order, comparisons, reference, measures.get((reference, "runs"), 1)),
        *measure_sections(order, values, measures),
        ("## As the paper's Table 2", f"{TABLE_2}\n\n{paper_table(order, values, measures)}"),
        *ablation_sections(ablations, same_rank),
        ("## Made by",
         f"`{command}` (Python {versions['python']}, numpy {versions['numpy']}). More in "
         "metrics.csv, comparisons.csv, systems.csv and ablations.csv.\n\n"
         "![MRR per turn](mrr_per_turn.png)")]


def subset_sections(order, values):
    subsets = dict.fromkeys(subset for _, subset, _, _ in values)
    kinds = [subset for subset in subsets if subset.startswith("kind: ")]
    templates = ("templates: seen", "templates: unseen")
    return [(f"## MRR by {heading}", subset_table(order, values, rows, first))
            for heading, first, rows in (
                ("kind of query", "kind", kinds),
                ("the target's past", "past", PASTS),
                ("sentence template (used in training dialogues or not)", "template", templates),
                ("the listener's verdict", "verdict", ("accepted", "rejected")))]


def margin_sections(order, comparisons, reference, n_runs):
    intro = ("Differences are paired by turn. No significant difference: the 95% interval of the "
             "difference contains 0.")
    if n_runs > 1:
        intro += (f" The figures are means over {n_runs} runs of {reference}; the intervals also "
                  "resample the runs. Other rankers of its model are compared on the runs that "
                  "both have.")
    text = margin_text(comparisons, reference)
    sections = [(f"## Margins of {reference}", f"{intro}\n\n{text}")]
    others = [system for system in order if not system.startswith(reference)]
    if comparisons and others:
        sections.append((f"## Margins of {reference} over {others[0]}, the best other system",
                         margin_table(comparisons, others[0])))
    return sections


def measure_sections(order, values, measures):
    names = {measure for _, measure in measures}
    sections = [(
        "## More measures",
        "Not in the paper. nDCG@k: 1 / log2(1 + rank) of the target where it is among the first k, "
        f"else 0. Coverage: the share of the catalogue that is among the first {COVERED} of any "
        "turn; a random order has the most. Distinct-2: different pairs of neighbouring words / "
        "all pairs, over all responses; it falls with the number of responses.\n\n"
        + further_table(order, values, measures))]
    if "runs" in names:
        sections.append((
            "## Spread over training runs",
            "Mean ± standard deviation over the runs of a system (its own file and "
            "`<system>@<run>.jsonl`). The intervals of the other tables are over playlists, for "
            "the system's own file. They do not include this spread.\n\n"
            + spread_table(order, measures)))
    if "well_formed" in names:
        sections.append((
            "## Generated music",
            "The share of turns whose freely generated music is well formed, and the share whose "
            "codes are exactly a track's.\n\n" + codes_table(order, measures)))
    return sections


def ablation_sections(ablations, same_rank):
    if not ablations:
        return []
    return [
        ("## As the paper's Table 3: weights of the overlap",
         "A track scores the sum of the weights of those modalities in which it has the generated "
         f"code. Here the codes of `{SOURCE}` are ranked again with other weights of "
         f"{', '.join(tokens.MODALITIES)}, in this order. Margins are over the first row, paired "
         f"by turn. A check: with the first row's weights, {same_rank:.1%} of the turns get the "
         f"rank that the file gives them.\n\n{ablation_table(3, ablations)}"),
        ("## As the paper's Table 4: one modality left out",
         "All modalities weigh the same. One is removed from the generated codes and the tracks. "
         "Margins are over the row with all modalities: below 0, the modality helps. A modality "
         f"that no track has makes no difference.\n\n{ablation_table(4, ablations)}")]
