"""From numbers to results.md: Markdown tables that also read as plain text."""

import numpy as np

from common import runs, tokens
from steps.evaluate.ablations import SOURCE, TABLES, WEIGHTINGS, weight_text
from steps.evaluate.scores import COMPARED, KEPT, METRICS
from steps.evaluate.predictions import COVERED

HITS = ("hit@1", "hit@10", "hit@100")
PASTS = ("in training dialogues", "in training playlists only", "cold")  # where a turn's targets have been before

# The blocks of the paper's Table 2, and the families of systems, by how their file names begin. A name with "tuned" in it
# is fine-tuned, whatever its family. The paper's dense row is NV-Embed-v2: what baselines/dense.py writes with that encoder fills it
# under the name nv-embed-v2.jsonl (nv-embed-v2-tuned.jsonl).
ZERO_SHOT, TUNED, NO_TEXT, OTHER = BLOCKS = ("zero-shot", "fine-tuned", "not trained on text", "other")
FAMILIES = {"bm25": ZERO_SHOT, "dense": ZERO_SHOT, "nv-embed-v2": ZERO_SHOT, "clap": ZERO_SHOT, "two_stage": ZERO_SHOT,
            "talkplay": TUNED, "sasrec": NO_TEXT, "tiger": NO_TEXT, "popularity": NO_TEXT, "random_order": NO_TEXT}
OF_THE_PAPER = ((ZERO_SHOT, "bm25"), (ZERO_SHOT, "nv-embed-v2"), (ZERO_SHOT, "clap"), (TUNED, "nv-embed-v2"), (TUNED, "clap"),
                (TUNED, "talkplay"), (NO_TEXT, "sasrec"), (NO_TEXT, "tiger"))


# ---------------------------------------------------------------- cells and tables

def with_interval(value, low, high, sign=""):
    """0.123 [0.101, 0.145]; without the interval where there is none."""
    shown = f"{value:{sign}.3f}"
    return shown if np.isnan(low) else f"{shown} [{low:{sign}.3f}, {high:{sign}.3f}]"


def name_of(metric):
    """The metric's name in a heading."""
    return {"mrr": "MRR"}.get(metric) or metric.replace("ndcg", "nDCG").replace("hit", "Hit")


def table(header, rows, left=1):
    """A Markdown table whose columns are also aligned as plain text: the first `left` to the left, the others to the right."""
    cells = [[str(c) for c in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = ["| " + " | ".join(c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths))) + " |"
             for row in cells]
    rule = "| " + " | ".join("-" * w if i < left else "-" * (w - 1) + ":" for i, w in enumerate(widths)) + " |"
    return "\n".join([lines[0], rule, *lines[1:]])


# ---------------------------------------------------------------- the data

def data_table(dialogues, playlists):
    """The paper's Table 1: dialogues and playlists of each split. Cold: in no training playlist. dialogues: {split: list}."""
    warm = {track_id for p in playlists if p["split"] == "train" for track_id in p["track_ids"]}
    rows = []
    for split, talks in dialogues.items():
        turns = [turn for dialogue in talks for turn in dialogue["turns"]]
        played = {turn["music"] for turn in turns} - {None}
        words = {word for turn in turns for text in (turn["query"], turn["response"]) for word in (text or "").lower().split()}
        lengths = [len(p["track_ids"]) for p in playlists if p["split"] == split]
        rows.append([split, f"{len(talks):,}", f"{len(turns):,}", f"{len(turns) / len(talks):.2f}", f"{len(words):,}",
                     f"{len(played & warm):,}", f"{len(played - warm):,}", f"{len(lengths):,}",
                     f"{np.mean(lengths):.1f}" if lengths else ""])
    return table(["split", "dialogues", "turns", "turns a dialogue", "vocabulary", "warm tracks played", "cold tracks played",
                  "playlists", "tracks a playlist"], rows)


# ---------------------------------------------------------------- the systems

def main_table(order, found):
    """Systems as rows, best MRR first. found: {(system, subset, turn, metric): (value, low, high, n)}."""
    rows = [[system, *system_cells(system, found), f"{found[system, KEPT, 'all', 'mrr'][0]:.3f}"] for system in order]
    return table(["system", "MRR", *map(name_of, HITS), "MRR, played kept"], rows)


def system_cells(system, found):
    """MRR with its interval, and the hit rates, of one system over all turns."""
    return [with_interval(*found[system, "all", "all", "mrr"][:3]), *(f"{found[system, 'all', 'all', m][0]:.3f}" for m in HITS)]


def block_of(system):
    """(block, family) of a system in the paper's Table 2, told by its name."""
    family = next((name for name in FAMILIES if system.startswith(name)), None)
    return TUNED if "tuned" in system else FAMILIES.get(family, OTHER), family


def paper_table(order, found, measures):
    """The systems in the blocks of the paper's Table 2, best first, then those of the paper that have no file here.

    QU, query understanding: the system reads what the listener writes; RG, response generation: its file has responses.
    """
    rows, run, marks = [], set(map(block_of, order)), {True: "yes", False: "no"}
    for block in BLOCKS:
        reads = "" if block == OTHER else marks[block != NO_TEXT]
        rows += [[block, system, "measured", reads, marks[measures[system, "responses"] > 0], *system_cells(system, found)]
                 for system in order if block_of(system)[0] == block]
        rows += [[block, family, "not run", reads, "", "", *[""] * len(HITS)]
                 for of, family in OF_THE_PAPER if of == block and (of, family) not in run]
    return table(["block", "system", "row", "QU", "RG", "MRR", *map(name_of, HITS)], rows, left=5)


def further_table(order, found, measures):
    """nDCG, coverage and Distinct-2: what the paper does not have."""
    rows = []
    for system in order:
        distinct = f"{measures[system, 'distinct-2']:.3f}" if (system, "distinct-2") in measures else ""
        rows.append([system, *(with_interval(*found[system, "all", "all", m][:3]) for m in ("ndcg@10", "ndcg@20")),
                     f"{measures[system, f'coverage@{COVERED}']:.3f}", distinct, measures[system, "responses"] or ""])
    return table(["system", "nDCG@10", "nDCG@20", f"coverage@{COVERED}", "Distinct-2", "responses"], rows)


def spread_table(order, measures):
    """Mean and standard deviation of each metric over the runs of a system."""
    rows = []
    for system in [s for s in order if (s, "runs") in measures]:
        mean, sd = ([measures[system, f"{metric}, {what} of runs"] for metric in METRICS] for what in ("mean", "sd"))
        rows.append([system, measures[system, "runs"], *(f"{m:.3f} ± {s:.3f}" for m, s in zip(mean, sd))])
    return table(["system", "runs", *map(name_of, METRICS)], rows)


def shares_table(order, measures):
    """What is said of generated codes."""
    names = ("valid", "exact match")
    rows = [[s, *(f"{measures[s, name]:.3f}" for name in names)] for s in order if (s, "valid") in measures]
    return table(["system", *names], rows)


def subset_table(order, found, subsets, first):
    """MRR of every system (columns) in the given subsets (rows)."""
    rows = [[s.partition(": ")[2] or s, found[order[0], s, "all", "mrr"][3],
             *(with_interval(*found[system, s, "all", "mrr"][:3]) for system in order)]
            for s in subsets if (order[0], s, "all", "mrr") in found]
    return table([first, "n", *order], rows) if rows else f"No turn says its {first}."


# ---------------------------------------------------------------- comparisons

def margin_text(comparisons, reference):
    """One sentence for each system that `reference` is compared with."""
    if not comparisons:
        return f"Nothing to compare: no `{reference}` among the systems (05_infer.py predict makes one, --compare names another), or no other."
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


# ---------------------------------------------------------------- other weights

def ablation_table(number, ablations):
    """The paper's Table 3 or 4 from the rows of ablations.csv: weightings as rows, the one compared with first."""
    at = {row[1:3]: row[3:] for row in ablations if row[0] == number}
    weightings, against = TABLES[number]
    rows = []
    for weights in weightings:
        text = weight_text(weights)
        value, low, high, _, *margin, _ = at[text, "mrr"]
        rows.append([text, weight_note(number, weights), with_interval(value, low, high), *(f"{at[text, m][0]:.3f}" for m in HITS),
                     "" if weights == against else with_interval(*margin, "+")])
    return table(["weights", "whose" if number == 3 else "without", "MRR", *map(name_of, HITS), "MRR margin"], rows, left=2)


def weight_note(number, weights):
    """Table 3: whose idea the weights are; Table 4: the modality that is left out."""
    return WEIGHTINGS[weights] if number == 3 else next((m for m, w in zip(tokens.MODALITIES, weights) if w == 0), "-")


# ---------------------------------------------------------------- the page: sections as (heading, text)

def results_page(numbers, turns, n_tracks, depth, split, reference, command):
    """All sections of results.md, in order.

    numbers: scores.Numbers; depth: of the rankings; reference: the system that the others are compared with;
    command: what makes the page.
    """
    order, found, comparisons, measures, ablations, same_rank = numbers
    versions = runs.package_versions()
    overview = (f"{len(turns):,} turns of {len({t.dialogue_id for t in turns}):,} dialogues from "
                f"{len({t.group for t in turns}):,} playlists. Candidate pool: all N = {n_tracks:,} tracks, ranked "
                f"{depth:,} deep. Tracks already played in the dialogue are left out for every system "
                "(last column: kept). In brackets: 95% bootstrap intervals over playlists (1,000 resamples).")
    return [(f"# Results on the {split} dialogues", overview + "\n\n" + main_table(order, found)),
            *subset_sections(order, found),
            *margin_sections(order, comparisons, reference, measures.get((reference, "runs"), 1)),
            *measure_sections(order, found, measures),
            *paper_sections(order, found, measures, ablations, same_rank),
            ("## Made by", f"`{command}` (Python {versions['python']}, numpy {versions['numpy']}). More in metrics.csv, "
             "comparisons.csv, systems.csv and ablations.csv.\n\n![MRR per turn](mrr_per_turn.png)")]


def subset_sections(order, found):
    kinds = sorted({subset for _, subset, _, _ in found if subset.startswith("kind: ")})
    return [("## MRR by kind of query", subset_table(order, found, kinds, "kind")),
            ("## MRR by the target's past", subset_table(order, found, PASTS, "past")),
            ("## MRR by sentence template (used in training dialogues or not)",
             subset_table(order, found, ("templates: seen", "templates: unseen"), "template")),
            ("## MRR by the listener's verdict", subset_table(order, found, ("accepted", "rejected"), "verdict"))]


def margin_sections(order, comparisons, reference, runs):
    paired = "Paired by turn; not told apart: the 95% interval holds 0."
    if runs > 1:
        paired += f" Means of {runs} runs of {reference}, which the intervals resample too; other rankers of its " \
                  "model by the runs that both have."
    sections = [(f"## Margins of {reference}", paired + "\n\n" + margin_text(comparisons, reference))]
    others = [s for s in order if not s.startswith(reference)]
    if comparisons and others:
        heading = f"## Margins of {reference} over {others[0]}, the best other system"
        sections.append((heading, margin_table(comparisons, others[0])))
    return sections


def measure_sections(order, found, measures):
    more = ("Not in the paper. nDCG@k: 1 / log2(1 + rank) of the target where it is among the first k, otherwise 0. "
            f"Coverage: the share of the catalogue that is among the first {COVERED} of any turn; a random order has the most. "
            "Distinct-2: different pairs of neighbouring words / all pairs, over all responses; it falls as responses get more.")
    runs = ("Mean ± standard deviation over the runs of a system (its own file and `<system>@<run>.jsonl`). The intervals of the "
            "other tables are over playlists, for the system's own file; they do not hold this spread.")
    generated = "Share of turns whose freely generated music is a valid sequence, and whose codes are exactly those of a track."
    sections = [("## More measures", more + "\n\n" + further_table(order, found, measures))]
    if any(measure == "runs" for _, measure in measures):
        sections.append(("## Spread over training runs", runs + "\n\n" + spread_table(order, measures)))
    if any(measure == "valid" for _, measure in measures):
        sections.append(("## Generated music", generated + "\n\n" + shares_table(order, measures)))
    return sections


def paper_sections(order, found, measures, ablations, same_rank):
    systems = ("Measured: on these dialogues, from a file in predictions. Not run: a system that the paper has, and that has no "
               "such file. Quoted: no row; the paper's figures are not at hand, and are of other dialogues and another catalogue. "
               "QU, query understanding: the system reads what the listener writes. RG, response generation: it answers in words. "
               "`talkplay-overlap` ranks as the paper does.")
    sections = [("## As the paper's Table 2", systems + "\n\n" + paper_table(order, found, measures))]
    if ablations:
        weights = ("A track scores the sum of the weights of those modalities in which it has the generated code. Here the codes of "
                   f"`{SOURCE}` are ranked again with other weights of {', '.join(tokens.MODALITIES)}, in this order; margins "
                   "are over the first row, paired by turn. A check: with its own weights, the first row's, "
                   f"{same_rank:.1%} of the turns get the rank that its file gives them.")
        without = ("All modalities weigh the same, and one is taken away, from the generated codes and from the tracks. Margins are "
                   "over all five: below 0, the modality helps. One that no track has makes no difference.")
        sections += [("## As the paper's Table 3: weights of the overlap", weights + "\n\n" + ablation_table(3, ablations)),
                     ("## As the paper's Table 4: one modality left out", without + "\n\n" + ablation_table(4, ablations))]
    return sections
