"""What is said of a system beyond its metrics: the rows of systems.csv. The paper has none of it.

Coverage and Distinct-2 (common/metrics.py), how often the generated codes are well formed and a
track's, and the spread of the metrics over several training runs.
"""

from typing import NamedTuple

import numpy as np

from common import metrics

COLUMNS = ("system", "measure", "value")
COVERED = 20  # the first tracks of a ranking, which count as shown to the listener


class Scores(NamedTuple):
    """A predictions file against the targets, in the order of the turns."""
    ranks: np.ndarray         # of the targets, played tracks left out, (n_turns,) int; 0: none
    ranks_kept: np.ndarray    # the same, played tracks kept
    shown: set = frozenset()  # rows that are among the first COVERED of any turn
    codes: tuple = ()         # per turn: the generated codes, or None
    well_formed: tuple = ()   # per turn: whether what was generated is a music sequence
    responses: tuple = ()     # strings, only of turns that have one
    depth: int = 0            # length of the rankings


def system_rows(systems, reruns, catalogue, n_tracks):
    """Rows of systems.csv; a measure is left out where there is nothing to measure.

    systems: {system: Scores}. reruns: {system: {run: Scores}}, further runs of a system
    catalogue: codes, (N, modalities), or None where no system generates codes
    """
    rows = []
    for system, scores in systems.items():
        rows.append((system, f"coverage@{COVERED}", metrics.coverage(scores.shown, n_tracks)))
        rows.append((system, "responses", len(scores.responses)))
        if scores.responses:
            rows.append((system, "distinct-2", metrics.distinct_2(scores.responses)))
        if generates(scores):
            known = set(map(tuple, catalogue.tolist()))
            exact = [codes is not None and tuple(codes) in known for codes in scores.codes]
            rows.append((system, "well_formed", float(np.mean(scores.well_formed))))
            rows.append((system, "exact match", float(np.mean(exact))))
    for system, further in reruns.items():
        runs = [systems[system], *further.values()]
        rows += [(system, measure, value) for measure, value in spread(runs).items()]
    return rows


def generates(scores):
    """Whether the system writes codes of its own, as TalkPlay does."""
    return any(codes is not None for codes in scores.codes)


def spread(runs):
    """{measure: value}: mean and sample standard deviation of each metric over runs (Scores).

    The interval over playlists says how far other listeners might change a number. This says how
    far another training seed does.
    """
    measures = {"runs": len(runs)}
    for metric, function in metrics.METRICS.items():
        values = [function(scores.ranks).mean() for scores in runs]
        measures[f"{metric}, mean of runs"] = float(np.mean(values))
        measures[f"{metric}, sd of runs"] = float(np.std(values, ddof=1))
    return measures
