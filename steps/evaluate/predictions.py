"""Read predictions/*.jsonl, check every line, and find the targets in the rankings.

data/README.md says what a line holds. A file that is not as it should be ends the run: a system that skips turns,
repeats tracks or ranks to another depth cannot be compared with the others.
"""

import numpy as np
from tqdm import tqdm

from common import data, metrics

COVERED = 20  # the first tracks of a ranking, which count as shown to the listener
NO_SYSTEM = "ground_truth"  # baselines/ground_truth.py writes it for the listening survey


def check_ranking(row, row_of, where):
    """One line's track_ids as rows, (D,) int64. Raises SystemExit: unknown or repeated track_id, no list."""
    track_ids = row.get("track_ids")
    if not isinstance(track_ids, list) or set(map(type, track_ids)) - {str}:
        raise SystemExit(f"{where}: track_ids is to be a list of track_ids, best first. Write the file again")
    rows = np.array([row_of.get(t, -1) for t in track_ids], np.int64)
    if (rows < 0).any():
        unknown = track_ids[int(np.argmax(rows < 0))]
        raise SystemExit(f"{where}: track_id {unknown} is not in tracks.jsonl. Predict again for this catalogue "
                         "(05_infer.py predict, or the baseline's script)")
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


def check_response(row, where):
    """The response of a line, or None. Raises SystemExit: neither null nor a string."""
    response = row.get("response")
    if response is not None and not isinstance(response, str):
        raise SystemExit(f"{where}: response is to be null or a string. Write the file again")
    return response


def score_predictions(path, turns, row_of, depths):
    """Read one predictions file and find the targets in its rankings.

    turns: from `turns.collect_turns`; depths: the depths that a ranking may have; every ranking must have the same.
    Returns: dict of ranks (n_turns,) int, 0 = not found; ranks_kept, the same with played tracks
    kept; shown, the set of rows that are among the first COVERED of any turn; codes, a list of five codes or None a
    turn; valid, (n_turns,) bool; responses, a list of strings, only of turns that have one; depth.
    Raises SystemExit: turns that are missing, unknown or repeated; a bad ranking; another depth.
    """
    position = {turn.key: i for i, turn in enumerate(turns)}
    result = {"ranks": np.zeros(len(turns), int), "ranks_kept": np.zeros(len(turns), int), "shown": set(),
              "codes": [None] * len(turns), "valid": np.zeros(len(turns), bool), "responses": [], "depth": None}
    lines = {}
    for number, row in data.read_jsonl(path, "the script that predicts for this system"):
        where, key = f"{path}:{number}", (row.get("dialogue_id"), row.get("turn"))
        if not isinstance(key[0], str) or type(key[1]) is not int or key not in position:
            raise SystemExit(f"{where}: dialogue {key[0]}, turn {key[1]} is not a turn with targets of the evaluated "
                             "dialogues; exactly their turns are accepted. Predict again for these dialogues "
                             "(05_infer.py predict, or the baseline's script, with --no-resume)")
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
        filtered = metrics.filter_played(ranked, turn.played, turn.targets)
        result["ranks"][i] = metrics.rank_of_first_hit(filtered, turn.targets)
        result["ranks_kept"][i] = metrics.rank_of_first_hit(ranked, turn.targets)
        result["shown"].update(filtered[:COVERED].tolist())
        result["codes"][i], result["valid"][i] = check_codes(row, where), bool(row.get("well_formed"))
        response = check_response(row, where)
        if response is not None:
            result["responses"].append(response)
    missing = [key for key in position if key not in lines]
    if missing:
        raise SystemExit(f"{path}: {len(missing)} of {len(turns)} turns are missing, the first: dialogue {missing[0][0]}, "
                         f"turn {missing[0][1]}; every turn with targets is to be there. Predict again for these dialogues "
                         "(05_infer.py predict, or the baseline's script, with --no-resume and without --limit)")
    return result | {"depth": depths.pop()}


def score_all(folder, turns, row_of):
    """Score every file of a folder but NO_SYSTEM's, the same depth for all.

    Returns: {system: scores}, and {system: {run: scores}} of the files <system>@<run>.jsonl: the same system
    trained with another seed, or sampled again.
    Raises SystemExit: no file, or a further run of a system that has none of its own.
    """
    paths = sorted(path for path in folder.glob("*.jsonl") if path.stem != NO_SYSTEM)
    if not paths:
        raise SystemExit(f"{folder} has no predictions (*.jsonl); make some with: python 05_infer.py predict, "
                         "or python baselines/popularity.py")
    for system, at, run in [path.stem.partition("@") for path in paths]:
        if at and folder / f"{system}.jsonl" not in paths:
            raise SystemExit(f"{folder}/{system}@{run}.jsonl is a further run of {system}, whose own file {system}.jsonl is "
                             "missing. Predict it, or rename one of its runs")
    depths, systems, runs = {metrics.ranking_depth(len(row_of)), len(row_of)}, {}, {}
    for path in tqdm(paths, desc="systems"):
        scores = score_predictions(path, turns, row_of, depths)
        depths = {scores["depth"]}
        system, at, run = path.stem.partition("@")
        if at:
            runs.setdefault(system, {})[run] = scores
        else:
            systems[system] = scores
    return systems, runs
