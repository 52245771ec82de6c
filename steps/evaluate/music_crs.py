"""The Music-CRS challenge (RecSys Challenge 2026): predictions in its form, and its figures.

Formulas as in its public evaluator, github.com/nlp4musa/music-crs-evaluator (evaluate_devset.py,
metrics/):

  ndcg@k             of the one relevant track (common/metrics.py); the mean for each turn number,
                     then the mean of these means
  catalog_diversity  different tracks in all predictions / tracks in the catalogue
  lexical_diversity  Distinct-2 over all responses (common/metrics.py); 0 without any

At most 20 tracks are predicted per turn. Tracks played in earlier turns are left out, even where
this turn plays one of them again: unlike 06's own figures, a submission cannot see the target.
"""

import json
from itertools import chain

import numpy as np

from common import data, metrics, runs
from steps.evaluate.tables import table

DEPTH = 20
KS = (1, 10, 20)
COLUMNS = ("system", *(f"ndcg@{k}" for k in KS), "catalog_diversity", "lexical_diversity", "turns")


def check_targets(turns):
    """Raises SystemExit: a turn has several targets."""
    for turn in turns:
        if len(turn.targets) > 1:
            raise SystemExit(f"--music-crs: turn {turn.number} of dialogue {turn.dialogue_id} has "
                             f"{len(turn.targets)} targets; that evaluator knows one per turn")


def warnings(data_dir, n_all, n_scored, n_tracks):
    """What keeps the figures from being those of the challenge's evaluator: a list of sentences.

    n_all, n_scored: turns of the split, and those with a target
    """
    sentences = []
    if n_all > n_scored:
        sentences.append(
            f"{n_all - n_scored:,} of {n_all:,} turns are not in the submission: they have no "
            "target. The challenge's evaluator stops (IndexError) at a turn that a submission "
            f"lacks; the figures above are of the other {n_scored:,}")
    prepared = runs.read_run(data_dir, "00_prepare_data")
    if prepared and prepared["arguments"].get("played_only"):
        sentences.append(
            f"catalog_diversity is divided by the {n_tracks:,} tracks that --played-only has kept; "
            "the challenge's evaluator divides by the whole published catalogue. Prepare the data "
            "without --played-only")
    return sentences


def submission(rows, turns, track_ids, users):
    """A system's predictions as the challenge wants them: list of dicts, in the order of `turns`.

    rows: lines of predictions/<system>.jsonl. users: {dialogue_id: user_id}
    """
    played = {turn.key: {track_ids[row] for row in turn.played} for turn in turns}
    entries = {}
    for row in rows:
        key = row["dialogue_id"], row["turn"]
        unplayed = [track_id for track_id in row["track_ids"] if track_id not in played[key]]
        entries[key] = {
            "session_id": key[0], "user_id": users[key[0]], "turn_number": key[1],
            "predicted_track_ids": unplayed[:DEPTH],
            "predicted_response": row.get("response") or ""}
    return [entries[turn.key] for turn in turns]


def scores(entries, gold, n_tracks):
    """The challenge's figures, {name: value}, of the entries from `submission`.

    gold: the relevant track_id of each
    """
    predicted = [entry["predicted_track_ids"] for entry in entries]
    ranks = np.array([ids.index(track_id) + 1 if track_id in ids else 0
                      for ids, track_id in zip(predicted, gold, strict=True)])
    numbers = np.array([entry["turn_number"] for entry in entries])

    figures = {}
    for k in KS:
        of_turns = [metrics.ndcg_at(ranks[numbers == n], k).mean() for n in np.unique(numbers)]
        figures[f"ndcg@{k}"] = float(np.mean(of_turns))
    figures["catalog_diversity"] = metrics.coverage(chain.from_iterable(predicted), n_tracks)
    distinct = metrics.distinct_2([entry["predicted_response"] for entry in entries])
    figures["lexical_diversity"] = float(np.nan_to_num(distinct))
    return figures


def write_all(data_dir, results, folder, systems, turns, track_ids, dialogues):
    """Write results/music_crs/<system>.json and results/music_crs.csv; print the figures.

    folder: of the predictions. dialogues: of the split; their meta may name a user_id
    """
    users = {dialogue["dialogue_id"]: dialogue["meta"].get("user_id", "") for dialogue in dialogues}
    gold = [track_ids[turn.targets[0]] for turn in turns]
    rows = []
    for system in systems:
        lines = data.read_jsonl(folder / f"{system}.jsonl", "the script that predicts for it")
        entries = submission((row for _, row in lines), turns, track_ids, users)
        text = json.dumps(entries, ensure_ascii=False, indent=1)
        data.write_text(results / "music_crs" / f"{system}.json", text + "\n")
        rows.append((system, *scores(entries, gold, len(track_ids)).values(), len(entries)))
    data.write_csv(results / "music_crs.csv", COLUMNS, rows)

    print(f"\n## As the Music-CRS challenge scores ({results}/music_crs/)\n")
    print(table(COLUMNS, [(system, *(f"{value:.4f}" for value in values), n)
                          for system, *values, n in rows]))
    n_all = sum(len(dialogue["turns"]) for dialogue in dialogues)
    for warning in warnings(data_dir, n_all, len(turns), len(track_ids)):
        print(f"warning: {warning}")
