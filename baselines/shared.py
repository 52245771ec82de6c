"""What baselines share: the run record, its prediction files, the choice of a form on valid."""

import shutil

from common import data, runs, turns


def begin_run(args, name, reads=(), writes=(), splits=tuple(turns.FOLDERS), part=None, trial="",
              ignore=runs.PLACE):
    """Open the run of a system that predicts for valid and test; None if it is already done.

    reads, writes: files besides catalogue, dialogues and predictions. splits: dialogues it reads.
    part: folder of half-done work, which is emptied unless this run continues it.
    trial: folder of all output, with a "/", where it must stay out of predictions/.
    """
    reads = [*data.catalogue_files(args.data_dir), *reads, *turns.dialogue_files(*splits)]
    writes = [trial + file for file in (*turns.prediction_files(name), *writes)]
    run, state = runs.begin_run(args.data_dir, f"trial_{name}" if trial else name, args, reads,
                                writes, args.resume, record=False, ignore=ignore)
    if state == "done":
        print(f"{name}: already done (--no-resume does it again)")
        return None
    if part is not None:
        if state == "new" and part.exists():
            shutil.rmtree(part)
        part.mkdir(parents=True, exist_ok=True)
        runs.record_run(run)  # only now: a run that goes on must not meet what an older one left
    return run


def write_rankings(out, name, score, turns_of, track_ids, seed):
    """Write the predictions of both splits. score: split -> scores (N,) of each of its turns."""
    for split, turn_list in turns_of.items():
        turns.write_predictions(out, split, name, score(split), turn_list, track_ids, seed)
    print(f"Wrote predictions/{name}.jsonl and predictions_valid/{name}.jsonl in {out}")


def finish_run(data_dir, run, **facts):
    """Close the record, and say what comes next. facts: see runs.finish_run."""
    runs.finish_run(run, **facts)
    print(f"Next: python 06_evaluate.py --data-dir {data_dir}")


def rank_forms(out, name, forms, score, turns_of, track_ids, seed):
    """Predict with the form that is best on valid; all forms go to results/<name>_forms.csv.

    forms: dicts with valid_mrr; here they get test_mrr. score: function of a form and a split ->
        scores (N,) of each turn.
    Returns: the chosen form.
    """
    forms = sorted(forms, key=lambda form: -form["valid_mrr"])
    for form in forms:  # the choice is made; only now the test targets are looked at
        form["test_mrr"] = turns.mrr(score(form, "test"), turns_of["test"], seed)
        print(", ".join(f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
                        for key, value in form.items()))
    data.write_csv(out / f"results/{name}_forms.csv", forms[0], [form.values() for form in forms])
    print(f"Chosen on valid: the first of these forms, which results/{name}_forms.csv has too")
    write_rankings(out, name, lambda split: score(forms[0], split), turns_of, track_ids, seed)
    return forms[0]


def run_baseline(args, name, tracks, score_tracks, reads=()):
    """Rank all tracks for every valid and test turn, unless it is already done.

    score_tracks: function of a `Turn` (common/turns.py) -> scores of all tracks, (N,): higher is
        better, and equal ones are ordered by a draw. It may use the turn's past, query and played.
    reads: the files that the scores come from, besides catalogue and dialogues.
    """
    track_ids = [track["track_id"] for track in tracks]
    turns_of = turns.load_turns(args.data_dir, {t: row for row, t in enumerate(track_ids)})
    run = begin_run(args, name, reads)
    if run is not None:
        write_rankings(args.data_dir, name, lambda split: map(score_tracks, turns_of[split]),
                       turns_of, track_ids, args.seed)
        finish_run(args.data_dir, run)


def music_sequences(playlists, dialogues, row_of):
    """The tracks, as rows, of each training playlist and those that each dialogue plays."""
    return {"playlists": [[row_of[track_id] for track_id in playlist["track_ids"]]
                          for playlist in playlists if playlist["split"] == "train"],
            "dialogues": [[row_of[turn["music"]] for turn in dialogue["turns"] if turn["music"]]
                          for dialogue in dialogues]}
