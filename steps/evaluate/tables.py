"""From numbers to results.md: the tables that page.md, the text around them, has room for.

`values` is {(system, subset, turn, metric): (value, low, high, n)} as in metrics.csv, `measures` is
{(system, measure): value} as in systems.csv, `order` has the systems, best MRR first.
"""

import re
from pathlib import Path
from string import Formatter

import numpy as np

from common import runs, tokens
from common.metrics import METRICS
from steps.evaluate.ablations import SOURCE, TABLES, WEIGHTINGS, weight_text
from steps.evaluate.scores import COVERED

KEPT = "all, played tracks kept"  # the subset of all turns whose rankings hold played tracks too
PASTS = ("in training dialogues", "in training playlists only", "cold")  # of a turn's targets
HITS = ("hit@1", "hit@10", "hit@100")
PAGE = Path(__file__).with_name("page.md")  # a section is left out where a field of it is missing

# The blocks of the paper's Table 2, and the families of systems, by how their file names begin. A
# name with "tuned" in it is fine-tuned, whatever its family. The paper's dense row is NV-Embed-v2:
# name what baselines/dense.py writes with that encoder nv-embed-v2.jsonl (nv-embed-v2-tuned.jsonl).
BLOCKS = ("zero-shot", "fine-tuned", "not trained on text", "other")
ZERO_SHOT, TUNED, NO_TEXT, OTHER = BLOCKS
FAMILIES = dict.fromkeys(("bm25", "dense", "nv-embed-v2", "clap", "two_stage"), ZERO_SHOT)
FAMILIES |= {"talkplay": TUNED}
FAMILIES |= dict.fromkeys(("sasrec", "tiger", "popularity", "random_order"), NO_TEXT)
OF_THE_PAPER = ((ZERO_SHOT, "bm25"), (ZERO_SHOT, "nv-embed-v2"), (ZERO_SHOT, "clap"),
                (TUNED, "nv-embed-v2"), (TUNED, "clap"), (TUNED, "talkplay"),
                (NO_TEXT, "sasrec"), (NO_TEXT, "tiger"))


# ---------------------------------------------------------------- cells and tables

def best_first(metric_rows):
    """The systems of the rows of metrics.csv, best MRR first."""
    mrr = {system: float(value) for system, subset, turn, metric, value, *_ in metric_rows
           if (subset, turn, metric) == ("all", "all", "mrr")}
    return sorted(mrr, key=lambda system: -mrr[system])


def with_interval(value, low, high, sign=""):
    """0.123 [0.101, 0.145]; without the interval where there is none."""
    text = f"{value:{sign}.3f}"
    return text if np.isnan(low) else f"{text} [{low:{sign}.3f}, {high:{sign}.3f}]"


def metric_title(metric):
    """The metric's name in a heading: "hit@10" -> "Hit@10"."""
    return metric.replace("mrr", "MRR").replace("ndcg", "nDCG").replace("hit", "Hit")


def table(header, rows, left=1):
    """A Markdown table whose columns are also aligned as plain text, `left` of them to the left."""
    cells = [[str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width if i < left else "-" * (width - 1) + ":"
                     for i, width in enumerate(widths)])
    lines = []
    for row in cells:
        padded = [cell.ljust(widths[i]) if i < left else cell.rjust(widths[i])
                  for i, cell in enumerate(row)]
        lines.append(f"| {' | '.join(padded)} |")
    return "\n".join(lines)


# ---------------------------------------------------------------- the data

def data_table(dialogues, playlists):
    """The paper's Table 1: {split: dialogues} and playlists. Cold: in no training playlist."""
    warm = {track_id for p in playlists if p["split"] == "train" for track_id in p["track_ids"]}
    rows = []
    for split, split_dialogues in dialogues.items():
        turns = [turn for dialogue in split_dialogues for turn in dialogue["turns"]]
        played = {turn["music"] for turn in turns} - {None}
        texts = [turn[field] or "" for turn in turns for field in ("query", "response")]
        words = {word for text in texts for word in text.lower().split()}
        lengths = [len(p["track_ids"]) for p in playlists if p["split"] == split]
        rows.append([
            split, f"{len(split_dialogues):,}", f"{len(turns):,}",
            f"{len(turns) / len(split_dialogues):.2f}", f"{len(words):,}",
            f"{len(played & warm):,}", f"{len(played - warm):,}", f"{len(lengths):,}",
            f"{np.mean(lengths):.1f}" if lengths else ""])
    header = ["split", "dialogues", "turns", "turns per dialogue", "vocabulary",
              "warm tracks played", "cold tracks played", "playlists", "tracks per playlist"]
    return table(header, rows)


# ---------------------------------------------------------------- the systems

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
            rows.append([block, system, "measured", reads, writes, *system_cells(system, values)])
        rows += [[block, family, "not run", reads, "", "", *[""] * len(HITS)]
                 for in_block, family in OF_THE_PAPER
                 if in_block == block and (block, family) not in measured]
    header = ["block", "system", "row", "QU", "RG", "MRR", *map(metric_title, HITS)]
    return table(header, rows, left=5)


def further_table(order, values, measures):
    """nDCG, coverage and Distinct-2, which the paper does not have."""
    coverage = f"coverage@{COVERED}"
    rows = []
    for system in order:
        ndcg = [with_interval(*values[system, "all", "all", metric][:3])
                for metric in ("ndcg@10", "ndcg@20")]
        said = ["", ""]
        if (system, "distinct-2") in measures:
            said = [f"{measures[system, 'distinct-2']:.3f}", measures[system, "responses"]]
        rows.append([system, *ndcg, f"{measures[system, coverage]:.3f}", *said])
    return table(["system", "nDCG@10", "nDCG@20", coverage, "Distinct-2", "responses"], rows)


def subset_table(first, subsets, order, values):
    """MRR of every system (columns) in some subsets (rows). first: heading of the first column."""
    rows = []
    for subset in subsets:
        if (order[0], subset, "all", "mrr") in values:
            cells = [values[system, subset, "all", "mrr"] for system in order]
            rows.append([subset.partition(": ")[2] or subset, cells[0][3],
                         *(with_interval(*cell[:3]) for cell in cells)])
    return table([first, "n", *order], rows) if rows else f"No turn says its {first}."


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


# ---------------------------------------------------------------- comparisons

def margin_text(comparisons):
    """The margins in words, from the rows of comparisons.csv: one line per other system."""
    by_system = {}  # {other system: what is said of each metric}
    for _, other, subset, metric, margin, low, high, _ in comparisons:
        if subset == "all":
            verdict = "above" if low > 0 else "below" if high < 0 else "no significant difference"
            by_system.setdefault(other, []).append(
                f"{metric_title(metric)} {with_interval(margin, low, high, '+')}, {verdict}")
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
        note = WEIGHTINGS.get(weights)
        if number == 4:
            note = tokens.MODALITIES[weights.index(0)] if 0 in weights else "-"
        value, low, high, _, *margin, _ = cells[text, "mrr"]
        rows.append([text, note, with_interval(value, low, high),
                     *(f"{cells[text, metric][0]:.3f}" for metric in HITS),
                     "" if weights == against else with_interval(*margin, "+")])
    header = ["weights", "source" if number == 3 else "without", "MRR", *map(metric_title, HITS),
              "MRR margin"]
    return table(header, rows, left=2)


# ---------------------------------------------------------------- the page

def results_page(metric_rows, comparisons, system_rows, ablations, reference, **fields):
    """The sections of results.md in order, from the rows of the csv files.

    reference: the system that the others are compared with. fields: what else page.md shows
    """
    order = best_first(metric_rows)
    values = {row[:4]: row[4:] for row in metric_rows}
    measures = {row[:2]: row[2] for row in system_rows}
    kinds = dict.fromkeys(row[1] for row in metric_rows if row[1].startswith("kind: "))
    versions = runs.package_versions()
    fields |= {
        "main": table(["system", "MRR", *map(metric_title, HITS), "MRR, played kept"],
                      [[system, *system_cells(system, values),
                        f"{values[system, KEPT, 'all', 'mrr'][0]:.3f}"] for system in order]),
        "kinds": subset_table("kind", kinds, order, values),
        "pasts": subset_table("past", PASTS, order, values),
        "templates": subset_table("template", ("templates: seen", "templates: unseen"), order,
                                  values),
        "verdicts": subset_table("verdict", ("accepted", "rejected"), order, values),
        "reference": reference, "about_runs": "",
        "margins": f"Nothing to compare: no `{reference}` among the systems (05_infer.py predict "
                   "makes one, --compare names another), or no other.",
        "covered": COVERED, "further": further_table(order, values, measures),
        "blocks": paper_table(order, values, measures),
        "python": versions["python"], "numpy": versions["numpy"]}

    # what not every evaluation has
    n_runs = measures.get((reference, "runs"), 1)
    if n_runs > 1:
        fields["about_runs"] = (
            f" The figures are means over {n_runs} runs of {reference}; the intervals also "
            "resample the runs. Other rankers of its model are compared on the runs that both "
            "have.")
    others = [system for system in order if not system.startswith(reference)]
    if comparisons:
        fields["margins"] = margin_text(comparisons)
    if comparisons and others:
        fields |= {"best_other": others[0], "best_margins": margin_table(comparisons, others[0])}
    names = {measure for _, measure in measures}
    if "runs" in names:
        fields["spread"] = spread_table(order, measures)
    if "well_formed" in names:
        fields["codes"] = codes_table(order, measures)
    if ablations:
        fields |= {"source": SOURCE, "modalities": ", ".join(tokens.MODALITIES),
                   "weightings": ablation_table(3, ablations),
                   "left_out": ablation_table(4, ablations)}
    sections = re.split("\n\n(?=## )", PAGE.read_text(encoding="utf-8").strip())
    return [section.format(**fields) for section in sections
            if {name for _, name, _, _ in Formatter().parse(section) if name} <= fields.keys()]
