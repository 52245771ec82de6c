"""Read predictions/*.jsonl and check every line.

data/README.md says what a line holds. A file that breaks a rule ends the run: a system that skips
turns, repeats tracks or ranks to another depth cannot be compared with the others.
"""

from collections import Counter

import numpy as np

from common import data, runs, tokens

NO_SYSTEM = "ground_truth"  # baselines/ground_truth.py writes it for the listening survey
AGAIN = "Write the file again: 05_infer.py predict --no-resume, or the baseline's script"


def find_files(folder):
    """{(system, run): path} of a folder. run: "seed1" for <system>@seed1.jsonl, else "".

    Raises SystemExit: no file, or a further run of a system that has no file of its own.
    """
    paths = {path.stem.partition("@")[::2]: path for path in sorted(folder.glob("*.jsonl"))
             if path.stem != NO_SYSTEM}
    if not paths:
        raise SystemExit(f"{folder} has no predictions (*.jsonl); make some with: "
                         "python 05_infer.py predict, or python baselines/popularity.py")
    for system, run in paths:
        if (system, "") not in paths:
            raise SystemExit(f"{folder}/{system}@{run}.jsonl is a further run of {system}, whose "
                             f"own file {system}.jsonl is missing. Predict it, or rename a run")
    return paths


def check_records(data_dir, split, systems):
    """Check by their run records that the systems predicted for today's data.

    A system without a record, such as a baseline of your own, is only named.
    Raises SystemExit: an input of a system has changed since.
    """
    without = []
    for system in systems:
        script = system.partition("-")[0]
        name, command = system, f"baselines/{script}.py"
        if script == "talkplay":
            name, command = f"05_infer.{split}", f"05_infer.py predict --split {split}"
        run = runs.read_run(data_dir, name)
        if run is None:
            without.append(system)
            continue
        again = f"python {command} --data-dir {data_dir} --no-resume"
        for file in run["inputs"]:
            mend = again
            if file == "codes.npy":  # the model's tokens mean other tracks now
                mend = f"python 04_train.py --data-dir {data_dir} --no-resume, then {again}"
            if (data_dir / file).is_file() and (split, file) != ("valid", "dialogues_test.jsonl"):
                runs.check_unchanged(data_dir, name, file,
                                     f"{system} predicted for other data. Run again: {mend}")
    if without:
        print(f"Without a record in {data_dir}/runs, so possibly of other data: "
              f"{', '.join(without)}")


def read_predictions(path, turns, row_of, depths):
    """Yield (index of the turn, ranking as rows (D,) int32, the line) of each line of a file.

    turns: from `collect_turns`. row_of: {track_id: row}. depths: the accepted lengths of a ranking
    Raises SystemExit: a turn that is missing, unknown or repeated; a field of a wrong form.
    """
    position = {turn.key: i for i, turn in enumerate(turns)}
    line_of = {}  # {key: number of its line}
    for number, line in data.read_jsonl(path, "the script that predicts for it"):
        problem = problem_of(line, position, line_of, row_of, depths)
        if problem:
            raise SystemExit(f"{path}:{number}: {problem}. {AGAIN}")
        key = line["dialogue_id"], line["turn"]
        line_of[key] = number
        depths = {len(line["track_ids"])}  # the first line sets the depth of all
        yield position[key], np.array([row_of[t] for t in line["track_ids"]], np.int32), line
    missing = [key for key in position if key not in line_of]
    if missing:
        raise SystemExit(f"{path}: {len(missing)} of {len(turns)} turns are missing, the first: "
                         f"dialogue {missing[0][0]}, turn {missing[0][1]}; all turns with targets "
                         f"are needed. {AGAIN} (without --limit)")


def problem_of(line, position, line_of, row_of, depths):
    """Which rule a line breaks, or None. The other parameters: see `read_predictions`."""
    dialogue_id, turn, track_ids = map(line.get, ("dialogue_id", "turn", "track_ids"))
    key = dialogue_id, turn
    if not isinstance(dialogue_id, str) or type(turn) is not int or key not in position:
        return (f"dialogue {dialogue_id}, turn {turn} is not a turn with targets of the evaluated "
                "dialogues")
    if key in line_of:
        return f"dialogue {dialogue_id}, turn {turn} occurs twice (also line {line_of[key]})"
    if not isinstance(track_ids, list) or set(map(type, track_ids)) - {str}:
        return "track_ids must be a list of track_ids, best first"
    unknown = next((track_id for track_id in track_ids if track_id not in row_of), None)
    if unknown is not None:
        return f"track_id {unknown} is not in tracks.jsonl"
    if len(set(track_ids)) < len(track_ids):
        repeated = Counter(track_ids).most_common(1)[0][0]
        return f"track_id {repeated} occurs twice in the ranking; each track may occur once"
    if len(track_ids) not in depths:
        return (f"{len(track_ids)} tracks are ranked; {' or '.join(map(str, sorted(depths)))} are "
                "accepted, the same number for every system and turn")
    codes = line.get("codes")
    n = len(tokens.MODALITIES)
    if codes is not None and not (isinstance(codes, list) and [*map(type, codes)] == [int] * n):
        return f"codes must be null or {n} integers, -1 for a missing one"
    if not isinstance(line.get("response"), str | None):
        return "response must be null or a string"
    return None
