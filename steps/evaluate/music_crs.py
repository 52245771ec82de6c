"""The Music-CRS challenge (RecSys Challenge 2026): predictions in its form, and its figures.

Formulas as in its public evaluator, github.com/nlp4musa/music-crs-evaluator (evaluate_devset.py, metrics/):

  ndcg@k             1 / log2(1 + rank) of the one relevant track if it is among the first k, otherwise 0; the mean of each turn
                     number, then the mean of these means
  catalog_diversity  different tracks in all predictions / tracks in the catalogue
  lexical_diversity  Distinct-2: different pairs of neighbouring words / all pairs, lower-cased, parted by white space, over all
                     responses; 0 without any (an early version divided different words by all words)

At most 20 tracks are predicted a turn. Tracks played in earlier turns are left out, even where this turn plays one of them again:
unlike 06's own figures, a submission cannot look at the target.
"""

import json

import numpy as np

from common import data, metrics, runs

DEPTH, KS = 20, (1, 10, 20)
COLUMNS = ("system", *(f"ndcg@{k}" for k in KS), "catalog_diversity", "lexical_diversity", "turns")


def users_of(dialogues):
    """{dialogue_id: user_id}, "" where the data name none."""
    return {dialogue["dialogue_id"]: dialogue["meta"].get("user_id", "") for dialogue in dialogues}


def check_targets(turns):
    """Raises SystemExit: a turn with several targets."""
    for turn in turns:
        if len(turn.targets) > 1:
            raise SystemExit(f"--music-crs: turn {turn['turn']} of dialogue {turn['key'][0]} has {len(turn['targets'])} targets; "
                             "that evaluator knows one a turn. Evaluate these dialogues without --music-crs")


def warnings(data_dir, dialogues, turns, n_tracks):
    """What keeps the figures from being those of the challenge's evaluator: a list of sentences, mostly empty.

    dialogues: of the split; turns: those that are scored, from `turns.collect_turns`; n_tracks: of the catalogue.
    """
    found, prepared = [], runs.read_run(data_dir, "00_prepare_data")
    total = sum(len(dialogue["turns"]) for dialogue in dialogues)
    if total > len(turns):
        found.append(f"{total - len(turns):,} of {total:,} turns are not in the submission: they have no target, since the data name no track "
                     f"there or tracks.jsonl does not have it. The challenge's evaluator stops (IndexError) at a turn of its ground truth "
                     f"that a submission lacks; the figures above are of the other {len(turns):,}")
    if prepared and prepared["arguments"].get("played_only"):
        found.append(f"catalog_diversity is divided by the {n_tracks:,} tracks that --played-only has kept; the challenge's evaluator divides "
                     f"by the whole published catalogue, and rankings were over these tracks only. Prepare the data without --played-only")
    return found


def submission(rows, turns, track_ids, users):
    """The predictions of a system as the challenge wants them: a list of dicts, in the order of the turns.

    rows: lines of predictions/<system>.jsonl, in any order; turns: from `turns.collect_turns`; track_ids: of the
    catalogue; users: of users_of.
    """
    played = {turn.key: {track_ids[i] for i in turn.played} for turn in turns}
    entries = {}
    for row in rows:
        key = row["dialogue_id"], row["turn"]
        entries[key] = {"session_id": key[0], "user_id": users[key[0]], "turn_number": key[1],
                        "predicted_track_ids": [t for t in row["track_ids"] if t not in played[key]][:DEPTH],
                        "predicted_response": row.get("response") or ""}
    return [entries[turn.key] for turn in turns]


def scores(entries, gold, n_tracks):
    """The challenge's figures. entries: of submission; gold: the relevant track_id of each; n_tracks: of the catalogue."""
    ranks = np.array([e["predicted_track_ids"].index(g) + 1 if g in e["predicted_track_ids"] else 0
                      for e, g in zip(entries, gold, strict=True)])
    numbers = np.array([e["turn_number"] for e in entries])
    found = {f"ndcg@{k}": float(np.mean([metrics.ndcg_at(ranks[numbers == n], k).mean() for n in np.unique(numbers)])) for k in KS}
    found["catalog_diversity"] = metrics.coverage((t for e in entries for t in e["predicted_track_ids"]), n_tracks)
    found["lexical_diversity"] = float(np.nan_to_num(metrics.distinct_2([e["predicted_response"] for e in entries])))
    return found


def write_all(results, folder, systems, turns, track_ids, users):
    """results/music_crs/<system>.json and results/music_crs.csv of the systems in a folder of predictions.

    Returns: the rows of the table, figures as text.
    """
    gold, rows = [track_ids[turn.targets[0]] for turn in turns], []
    for system in systems:
        lines = (row for _, row in data.read_jsonl(folder / f"{system}.jsonl", "the script that predicts for this system"))
        entries = submission(lines, turns, track_ids, users)
        data.write_text(results / "music_crs" / f"{system}.json", json.dumps(entries, ensure_ascii=False, indent=1) + "\n")
        rows.append((system, *scores(entries, gold, len(track_ids)).values(), len(entries)))
    data.write_csv(results / "music_crs.csv", COLUMNS, rows)
    return [(system, *(f"{value:.4f}" for value in values), n) for system, *values, n in rows]
