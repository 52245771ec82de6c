"""The Music-CRS challenge (RecSys Challenge 2026): predictions in its form, and its figures.

Formulas as in its public evaluator, github.com/nlp4musa/music-crs-evaluator (evaluate_devset.py,
metrics/):

  ndcg@k             1 / log2(1 + rank) of the one relevant track where the rank is k or better,
                     else 0; the mean for each turn number, then the mean of these means
  catalog_diversity  different tracks in all predictions / tracks in the catalogue
  lexical_diversity  Distinct-2 over all responses (common/metrics.py); 0 without any (an early
                     version divided different words by all words)

At most 20 tracks are predicted per turn. Tracks played in earlier turns are left out, even where
this turn plays one of them again: unlike 06's own figures, a submission cannot see the target.
"""

import json

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
                             f"{len(turn.targets)} targets; that evaluator knows one per turn. "
                             "Evaluate these dialogues without --music-crs")


def warnings(data_dir, dialogues, turns, n_tracks):
    """What keeps the figures from being those of the challenge's evaluator: a list of sentences.

    dialogues: of the split. turns: those that are scored, from `collect_turns`.
    """
    sentences = []
    total = sum(len(dialogue["turns"]) for dialogue in dialogues)
    if total > len(turns):
        sentences.append(
            f"{total - len(turns):,} of {total:,} turns are not in the submission: they have no "
            "target, since the data name no track there or tracks.jsonl does not have it. The "
            "challenge's evaluator stops (IndexError) at a turn of its ground truth that a "
            f"submission lacks; the figures above are of the other {len(turns):,}")
    prepared = runs.read_run(data_dir, "00_prepare_data")
    if prepared and prepared["arguments"].get("played_only"):
        sentences.append(
            f"catalog_diversity is divided by the {n_tracks:,} tracks that --played-only has kept; "
            "the challenge's evaluator divides by the whole published catalogue, and rankings were "
            "over these tracks only. Prepare the data without --played-only")
    return sentences


def submission(rows, turns, track_ids, users):
    """A system's predictions as the challenge wants them: list of dicts, in the order of `turns`.

    rows: lines of predictions/<system>.jsonl, in any order. track_ids: of the catalogue.
    users: {dialogue_id: user_id}.
    """
    played = {turn.key: {track_ids[row] for row in turn.played} for turn in turns}
    entries = {}
    for row in rows:
        key = row["dialogue_id"], row["turn"]
        unplayed = [track_id for track_id in row["track_ids"] if track_id not in played[key]]
        entries[key] = {
            "session_id": row["dialogue_id"],
            "user_id": users[row["dialogue_id"]],
            "turn_number": row["turn"],
            "predicted_track_ids": unplayed[:DEPTH],
            "predicted_response": row.get("response") or ""}
    return [entries[turn.key] for turn in turns]


def scores(entries, gold, n_tracks):
    """The challenge's figures: {name: value}.

    entries: from `submission`. gold: the relevant track_id of each. n_tracks: of the catalogue.
    """
    ranks = []
    for entry, track_id in zip(entries, gold, strict=True):
        predicted = entry["predicted_track_ids"]
        ranks.append(predicted.index(track_id) + 1 if track_id in predicted else 0)
    ranks = np.array(ranks)
    numbers = np.array([entry["turn_number"] for entry in entries])

    figures = {}
    for k in KS:
        of_turns = [metrics.ndcg_at(ranks[numbers == n], k).mean() for n in np.unique(numbers)]
        figures[f"ndcg@{k}"] = float(np.mean(of_turns))
    predicted = (track_id for entry in entries for track_id in entry["predicted_track_ids"])
    figures["catalog_diversity"] = metrics.coverage(predicted, n_tracks)
    distinct = metrics.distinct_2([entry["predicted_response"] for entry in entries])
    figures["lexical_diversity"] = float(np.nan_to_num(distinct))
    return figures


def write_all(data_dir, results, folder, systems, turns, track_ids, dialogues):
    """Write results/music_crs/<system>.json and results/music_crs.csv; print the figures.

    folder: of the predictions. dialogues: of the split; their meta may name a user_id.
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
    for warning in warnings(data_dir, dialogues, turns, len(track_ids)):
        print(f"warning: {warning}")
