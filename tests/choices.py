"""Used by test_dense.py and test_clap.py: was the form of the query chosen on valid alone?"""

import csv
import json

import numpy as np
import pytest

from common import data, metrics, turns


def predicted_mrr(data_dir, name, split, trial=""):
    """MRR of a prediction file, worked out anew. trial: see baselines.shared.begin_run."""
    row_of = {track["track_id"]: row for row, track in enumerate(data.load_tracks(data_dir))}
    ranking_of = {(line["dialogue_id"], line["turn"]):
                  np.array([row_of[track_id] for track_id in line["track_ids"]])
                  for line in read_predictions(data_dir, name, split, trial)}
    turn_list = turns.load_turns(data_dir, row_of)[split]
    assert set(ranking_of) == {turn.key for turn in turn_list}
    return metrics.mrr([turns.target_rank(ranking_of[turn.key], turn) for turn in turn_list])


def read_predictions(data_dir, name, split, trial=""):
    path = data_dir / trial / turns.FOLDERS[split] / f"{name}.jsonl"
    return [line for _, line in data.read_jsonl(path, "")]


def check_choice(data_dir, name, trial=""):
    """The form on record is the best on valid, and the predictions are its own: the record."""
    with open(data_dir / trial / f"results/{name}_forms.csv", encoding="utf-8", newline="") as f:
        forms = list(csv.DictReader(f))
    valid_mrr = {form["history"]: float(form["valid_mrr"]) for form in forms}
    assert len(valid_mrr) == len(forms)
    assert list(valid_mrr.values()) == sorted(valid_mrr.values(), reverse=True)

    record_name = f"trial_{name}" if trial else name
    record = json.loads((data_dir / f"runs/{record_name}.json").read_text())
    choice = record["chosen_on_valid"]
    assert valid_mrr[choice["history"]] == max(valid_mrr.values()) > min(valid_mrr.values())
    for split in ("valid", "test"):
        assert predicted_mrr(data_dir, name, split, trial) == pytest.approx(
            choice[f"{split}_mrr"], abs=1e-6)
    return record, valid_mrr


def spoil_test_targets(data_dir, name, n_scored, trial=""):
    """Each test turn now wants what the system ranks last: no form is worse on test than its own.

    n_scored: tracks that have a score; the others come last in every form
    """
    last = {(line["dialogue_id"], line["turn"]): line["track_ids"][n_scored - 1]
            for line in read_predictions(data_dir, name, "test", trial)}
    path = data_dir / "dialogues_test.jsonl"
    dialogues = [dialogue for _, dialogue in data.read_jsonl(path, "")]
    for dialogue in dialogues:
        for number, turn in enumerate(dialogue["turns"], 1):
            if (dialogue["dialogue_id"], number) in last:
                turn["targets"] = [last[dialogue["dialogue_id"], number]]
    data.write_jsonl(path, dialogues)


def check_chosen_on_valid_alone(run, data_dir, name, n_scored, trained_form, trial=""):
    """Test targets that the chosen form ranks last change neither the form nor the weights.

    run: function without arguments, which runs the script anew. trained_form: of the query, by
    whose valid MRR the weights of a tuned system are chosen.
    """
    run()
    before, valid_mrr = check_choice(data_dir, name, trial)
    on_valid = read_predictions(data_dir, name, "valid", trial)
    if before.get("log"):
        best = max(row["valid_mrr"] for row in before["log"])
        assert best == pytest.approx(valid_mrr[trained_form], abs=1e-6)

    spoil_test_targets(data_dir, name, n_scored, trial)
    run()
    after, _ = check_choice(data_dir, name, trial)
    assert before["chosen_on_valid"].pop("test_mrr") > after["chosen_on_valid"].pop("test_mrr")
    assert before["chosen_on_valid"] == after["chosen_on_valid"]
    assert before.get("log") == after.get("log")
    assert read_predictions(data_dir, name, "valid", trial) == on_valid
