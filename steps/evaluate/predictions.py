"""Read predictions/*.jsonl and check every line.

data/README.md says what a line holds. A file that breaks a rule ends the run: a system that skips
turns, repeats tracks or ranks to another depth cannot be compared with the others.
"""

from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from common import data, metrics, tokens

NO_SYSTEM = "ground_truth"  # baselines/ground_truth.py writes it for the listening survey
PREDICT_AGAIN = "Predict again for these dialogues: 05_infer.py predict, or the baseline's script"


class Predictions(NamedTuple):
    """One file, in the order of the turns."""
    rankings: np.ndarray     # catalogue rows, best first, (n_turns, D) int32
    codes: list              # per turn: the generated codes of a track, or None
    well_formed: np.ndarray  # whether what was generated is a music sequence, (n_turns,) bool
    responses: list          # strings, only of turns that have one


def read_all(folder, turns, row_of):
    """Read every file of a folder, except ground_truth.jsonl.

    turns: from `collect_turns`. row_of: {track_id: row} of the catalogue.
    Yields: (system, run, Predictions). run: "", or "seed1" for a further run <system>@seed1.jsonl.
    Raises SystemExit: no file, or a further run of a system that has no file of its own.
    """
    paths = sorted(path for path in folder.glob("*.jsonl") if path.stem != NO_SYSTEM)
    if not paths:
        raise SystemExit(f"{folder} has no predictions (*.jsonl); make some with: "
                         "python 05_infer.py predict, or python baselines/popularity.py")
    names = [path.stem.partition("@")[::2] for path in paths]  # (system, run)
    for system, run in names:
        if (system, "") not in names:
            raise SystemExit(f"{folder}/{system}@{run}.jsonl is a further run of {system}, whose "
                             f"own file {system}.jsonl is missing. Predict it, or rename a run")

    depths = {metrics.ranking_depth(len(row_of)), len(row_of)}
    for path, (system, run) in zip(tqdm(paths, desc="systems"), names, strict=True):
        predictions = read_predictions(path, turns, row_of, depths)
        depths = {predictions.rankings.shape[1]}  # the first file sets the depth of all
        yield system, run, predictions


def read_predictions(path, turns, row_of, depths):
    """Read and check one file.

    depths: the accepted lengths of a ranking; all rankings of the file must have the same.
    Returns: Predictions.
    Raises SystemExit: a turn that is missing, unknown or repeated; a field of a wrong form.
    """
    position = {turn.key: i for i, turn in enumerate(turns)}
    line_of = {}  # {key: number of its line}
    rankings = [None] * len(turns)
    codes = [None] * len(turns)
    well_formed = np.zeros(len(turns), bool)
    responses = []
    for number, row in data.read_jsonl(path, "the script that predicts for it"):
        where = f"{path}:{number}"
        key = check_key(row, position, line_of, where)
        line_of[key] = number
        i = position[key]
        rankings[i] = check_ranking(row, row_of, depths, where)
        depths = {len(rankings[i])}
        codes[i] = check_codes(row, where)
        well_formed[i] = bool(row.get("well_formed"))
        response = check_response(row, where)
        if response is not None:
            responses.append(response)

    missing = [key for key in position if key not in line_of]
    if missing:
        dialogue_id, turn = missing[0]
        raise SystemExit(f"{path}: {len(missing)} of {len(turns)} turns are missing, the first: "
                         f"dialogue {dialogue_id}, turn {turn}; all turns with targets are needed. "
                         f"{PREDICT_AGAIN} (with --no-resume and without --limit)")
    return Predictions(np.stack(rankings), codes, well_formed, responses)


def check_key(row, position, line_of, where):
    """(dialogue_id, turn) of a line. Raises SystemExit: no turn to score, or one seen before."""
    key = row.get("dialogue_id"), row.get("turn")
    named = f"{where}: dialogue {key[0]}, turn {key[1]}"
    if not isinstance(key[0], str) or type(key[1]) is not int or key not in position:
        raise SystemExit(f"{named} is not a turn with targets of the evaluated dialogues; only "
                         f"their turns are accepted. {PREDICT_AGAIN} (with --no-resume)")
    if key in line_of:
        raise SystemExit(f"{named} occurs twice (also line {line_of[key]}). Write the file again")
    return key


def check_ranking(row, row_of, depths, where):
    """One line's track_ids as rows, (D,) int32. Raises SystemExit: one of the rules is broken."""
    track_ids = row.get("track_ids")
    if not isinstance(track_ids, list) or set(map(type, track_ids)) - {str}:
        raise SystemExit(f"{where}: track_ids must be a list of track_ids, best first. "
                         "Write the file again")
    rows = np.array([row_of.get(t, -1) for t in track_ids], np.int32)
    if (rows < 0).any():
        unknown = track_ids[int(np.argmax(rows < 0))]
        raise SystemExit(f"{where}: track_id {unknown} is not in tracks.jsonl. {PREDICT_AGAIN}")
    if len(set(track_ids)) < len(track_ids):
        repeated = next(t for i, t in enumerate(track_ids) if t in track_ids[:i])
        raise SystemExit(f"{where}: track_id {repeated} occurs twice in the ranking; each track "
                         "may occur once. Write the file again")
    if len(rows) not in depths:
        accepted = " or ".join(map(str, sorted(depths)))
        raise SystemExit(f"{where}: {len(rows)} tracks are ranked; {accepted} are accepted, the "
                         "same number for every system and turn. Predict again at that depth")
    return rows


def check_codes(row, where):
    """A line's codes, or None. Raises SystemExit: neither null nor an integer per modality."""
    codes = row.get("codes")
    n = len(tokens.MODALITIES)
    if codes is not None and not (
            isinstance(codes, list) and len(codes) == n and set(map(type, codes)) == {int}):
        raise SystemExit(f"{where}: codes must be null or {n} integers, -1 for a missing one. "
                         "Write the file again")
    return codes


def check_response(row, where):
    """A line's response, or None. Raises SystemExit: neither null nor a string."""
    response = row.get("response")
    if response is not None and not isinstance(response, str):
        raise SystemExit(f"{where}: response must be null or a string. Write the file again")
    return response
