"""From ranks to numbers: the rows of metrics.csv, comparisons.csv and systems.csv (the paper's section 5)."""

from functools import partial
from typing import NamedTuple

import numpy as np

from common import metrics
from steps.evaluate.predictions import COVERED

METRICS = {"mrr": metrics.reciprocal_rank, "hit@1": partial(metrics.hit_at, k=1),
           "hit@10": partial(metrics.hit_at, k=10), "hit@100": partial(metrics.hit_at, k=100),
           "ndcg@10": partial(metrics.ndcg_at, k=10), "ndcg@20": partial(metrics.ndcg_at, k=20)}
COMPARED = ("mrr", "hit@10")
KEPT = "all, played tracks kept"
METRIC_COLUMNS = ("system", "subset", "turn", "metric", "value", "ci_low", "ci_high", "n")
COMPARISON_COLUMNS = ("system", "against", "subset", "metric", "margin", "ci_low", "ci_high", "n")
SYSTEM_COLUMNS = ("system", "measure", "value")


class Numbers(NamedTuple):
    """All that the tables and the figure show."""
    order: list        # the systems, best MRR first
    found: dict        # {(system, subset, turn, metric): (value, low, high, n)}, as metrics.csv
    comparisons: list  # rows of comparisons.csv
    measures: dict     # {(system, measure): value}, as systems.csv
    ablations: list    # rows of ablations.csv
    same_rank: float   # share of turns whose stored rank the ablations' default weights give back, or None


def metric_rows(systems, turns, masks, seed):
    """Rows of metrics.csv: each subset over all turns, and "all" also for each turn number."""
    groups, numbers = np.array([t.group for t in turns]), np.array([t.number for t in turns])
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


def comparison_rows(systems, runs, turns, masks, seed, reference):
    """Rows of comparisons.csv: the system `reference` minus each other one; none without it.

    runs: {system: {run: scores}}, further runs of a system: it is then their mean, with its own file's, that is
    compared, and the interval also says how far another run may change it. Two rankers of one model (talkplay and
    talkplay-votes) are compared by the runs that both have, so that the weights are the same.
    """
    if reference not in systems:
        return []
    groups, rows = np.array([t.group for t in turns]), []

    def values(system, names, metric, which, mask):  # (R, m)
        of_runs = {"": systems[system]} | runs.get(system, {})
        return np.stack([METRICS[metric](of_runs[name][which][mask]) for name in names])

    for other in [s for s in systems if s != reference]:
        names = [["", *runs.get(system, {})] for system in (reference, other)]
        if other.split("-")[0] == reference.split("-")[0]:
            names = [[name for name in names[0] if name in names[1]]] * 2
        for subset, mask in masks.items():
            which = "ranks_kept" if subset == KEPT else "ranks"
            for metric in COMPARED:
                a, b = (values(s, n, metric, which, mask) for s, n in zip((reference, other), names))
                if len(a) != len(b):  # runs that cannot be paired
                    b = b.mean(axis=0)
                margin, low, high = metrics.paired_difference(a, b, groups[mask], seed=seed)
                rows.append((reference, other, subset, metric, margin, low, high, int(mask.sum())))
    return rows


def code_shares(scores, catalogue):
    """Share of turns with a valid generated sequence, and of those whose codes are a track's, exactly.

    catalogue: (N, 5) codes. Exactly: the same ones missing.
    """
    known = set(map(tuple, catalogue.tolist()))
    exact = [codes is not None and tuple(codes) in known for codes in scores["codes"]]
    return float(scores["valid"].mean()), float(np.mean(exact))


def system_rows(systems, runs, n_tracks, catalogue):
    """Rows of systems.csv: what is said of a system as a whole, (system, measure, value).

    runs: {system: {run: scores}}, its further runs; catalogue: (N, 5) codes, looked at only where a system has codes.
    Distinct-2 is left out where a system writes no responses, valid and exact match where it generates no
    codes, the spread where there is one run only.
    """
    rows = []
    for system, scores in systems.items():
        rows += [(system, f"coverage@{COVERED}", metrics.coverage(scores["shown"], n_tracks)),
                 (system, "responses", len(scores["responses"]))]
        if scores["responses"]:
            rows.append((system, "distinct-2", metrics.distinct_2(scores["responses"])))
        if generates(scores):
            rows += [(system, name, share) for name, share in zip(("valid", "exact match"), code_shares(scores, catalogue))]
    for system, further in runs.items():
        rows += [(system, measure, value) for measure, value in spread([systems[system], *further.values()]).items()]
    return rows


def generates(scores):
    """Whether the system writes codes of its own, as TalkPlay does."""
    return any(codes is not None for codes in scores["codes"])


def spread(runs):
    """Mean and sample standard deviation of each metric over several runs of one system: {measure: value}.

    runs: list of scores. The interval over playlists says how far other listeners might change a
    number; this says how far another training seed does.
    """
    found = {"runs": len(runs)}
    for metric, function in METRICS.items():
        values = [function(scores["ranks"]).mean() for scores in runs]
        found |= {f"{metric}, mean of runs": float(np.mean(values)), f"{metric}, sd of runs": float(np.std(values, ddof=1))}
    return found
