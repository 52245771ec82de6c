"""06_evaluate.py on five turns whose every number is worked by hand."""

import csv
import importlib
import json
import math
import sys

import numpy as np
import pytest

from common import data, metrics, retrieval, runs

evaluate = importlib.import_module("06_evaluate")

TURNS = [  # dialogue, turn, targets, the ranking of "talkplay", its rank filtered / kept
    ("d1", 1, "a", "abcdef"),  # 1 / 1
    ("d1", 2, "c", "abcdef"),  # a has been played: 2 / 3
    ("d1", 4, "a", "cabdef"),  # c has been played; a too, but it is asked for again: 1 / 2
    ("d2", 1, "b", "fedcba"),  # 5 / 5
    ("d2", 2, "f", "bfacde"),  # b has been played: 1 / 2
]
SECOND = ["bacdef", "abcdef", "bacdef", "abcdef", "bafcde"]  # the target has rank 2 in every turn
CODES = np.array([[0, 0, 0, -1, 0], *([code] * 5 for code in range(1, 6))], np.int16)


def turn(music, kind, template, rejected=False):
    return {"query": "play", "music": music, "response": "here", "rejected": rejected, "kind": kind,
            "template": template}


def lines(rankings):
    return [{"dialogue_id": d, "turn": t, "track_ids": list(r), "response": None}
            for (d, t, _, _), r in zip(TURNS, rankings, strict=True)]


def write_predictions(folder, system, rows):
    data.write_jsonl(folder / f"{system}.jsonl", rows)


@pytest.fixture
def data_dir(tmp_path):
    data.write_jsonl(tmp_path / "tracks.jsonl", [{"track_id": t, "title": t} for t in "abcdef"])
    data.write_jsonl(tmp_path / "playlists.jsonl", [
        {"playlist_id": "p0", "split": "train", "track_ids": ["a", "b"]},
        {"playlist_id": "p1", "split": "test", "track_ids": ["c", "d"]}])
    data.write_jsonl(tmp_path / "dialogues_train.jsonl", [
        {"dialogue_id": "t1", "playlist_id": "p0", "turns": [turn("a", "tags", None)]}])
    test = [{"dialogue_id": "d1", "playlist_id": "p1", "turns": [
                turn("a", "tags", "seen"), turn("c", "title", "unseen", rejected=True),
                turn(None, "chat", "seen"), turn("a", "tags", "unseen")]},
            {"dialogue_id": "d2", "playlist_id": None, "turns": [
                turn("b", "title", "seen"), turn("f", "tags", "unseen")]}]
    for split in ("valid", "test"):
        data.write_jsonl(tmp_path / f"dialogues_{split}.jsonl", test)
    data.save_npy(tmp_path / "codes.npy", CODES)
    write_predictions(tmp_path / "predictions", "talkplay", lines([r for *_, r in TURNS]))
    return tmp_path


def run(monkeypatch, data_dir, *arguments):
    monkeypatch.setattr(sys, "argv", ["06_evaluate.py", "--data-dir", str(data_dir), *arguments])
    evaluate.main()


def read_csv(path):
    with open(path, encoding="utf-8", newline="") as f:
        return list(csv.DictReader(f))


def values(data_dir, system="talkplay"):
    return {(r["subset"], r["turn"], r["metric"]): (float(r["value"]), int(r["n"]))
            for r in read_csv(data_dir / "results/metrics.csv") if r["system"] == system}


def test_metrics_by_hand(monkeypatch, data_dir):
    run(monkeypatch, data_dir)
    scored = values(data_dir)
    assert scored["all", "all", "mrr"] == (0.74, 5)  # (1 + 1/2 + 1 + 1/5 + 1) / 5
  # (1 + 1/3 + 1/2 + 1/5 + 1/2) / 5
    assert scored["all, played tracks kept", "all", "mrr"] == (0.506667, 5)
    assert scored["all", "all", "hit@1"] == (0.6, 5) and scored["all", "all", "hit@10"] == (1, 5)
    ndcg = (1 + 1 / math.log2(3) + 1 + 1 / math.log2(6) + 1) / 5
    assert scored["all", "all", "ndcg@10"] == scored["all", "all", "ndcg@20"] == (round(ndcg, 6), 5)
    ndcg = (1 / math.log2(3) + 1 / math.log2(6)) / 2
    assert scored["kind: title", "all", "ndcg@10"] == (round(ndcg, 6), 2)
    assert scored["all", "1", "mrr"] == (0.6, 2) and scored["all", "2", "mrr"] == (0.75, 2)
    assert scored["all", "4", "mrr"] == (1, 1) and ("all", "3", "mrr") not in scored
    assert scored["accepted", "all", "mrr"] == (0.8, 4)
    assert scored["rejected", "all", "mrr"] == (0.5, 1)
    assert scored["in training dialogues", "all", "mrr"] == (1, 2)  # a, a
    assert scored["in training playlists only", "all", "mrr"] == (0.2, 1)  # b
    assert scored["cold", "all", "mrr"] == (0.75, 2)  # c, f
    assert scored["kind: tags", "all", "mrr"] == (1, 3)
    assert scored["kind: title", "all", "mrr"] == (0.35, 2)
    assert scored["templates: seen", "all", "mrr"] == (0.6, 2)
    assert scored["templates: unseen", "all", "mrr"] == (0.833333, 3)
    assert not any(subset == "kind: chat" for subset, _, _ in scored)  # its turn has no target


def test_interval_is_over_playlists(monkeypatch, data_dir):
    """Two groups, with means 2.5/3 and 1.2/2: a quarter of the resamples holds one of them only."""
    run(monkeypatch, data_dir)
    rows = read_csv(data_dir / "results/metrics.csv")
    assert ",".join(rows[0]) == "system,subset,turn,metric,value,ci_low,ci_high,n"
    first = rows[0]
    assert (first["subset"], first["turn"], first["metric"]) == ("all", "all", "mrr")
    assert (float(first["ci_low"]), float(first["ci_high"])) == (0.6, 0.833333)
    alone = next(r for r in rows if r["subset"] == "rejected" and r["metric"] == "mrr")
    assert alone["ci_low"] == alone["ci_high"] == "nan"


def test_comparisons_by_hand(monkeypatch, data_dir, capsys):
    """SECOND has rank 2 in every turn: margins 1/2, 0, 1/2, -3/10, 1/2."""
    write_predictions(data_dir / "predictions", "bm25", lines(SECOND))
    run(monkeypatch, data_dir)
    rows = {(r["against"], r["subset"], r["metric"]): r
            for r in read_csv(data_dir / "results/comparisons.csv")}
    assert {key[0] for key in rows} == {"bm25"} and {key[2] for key in rows} == {"mrr", "hit@10"}
    overall = rows["bm25", "all", "mrr"]
    assert float(overall["margin"]) == 0.24 and overall["n"] == "5"
    # group means 0.2/2 and 1/3
    assert (float(overall["ci_low"]), float(overall["ci_high"])) == (0.1, 0.333333)
    assert float(rows["bm25", "kind: title", "mrr"]["margin"]) == -0.15
    assert float(rows["bm25", "all", "hit@10"]["margin"]) == 0
    shown = capsys.readouterr().out
    assert ("against bm25: MRR +0.240 [+0.100, +0.333], above; Hit@10 +0.000 [+0.000, +0.000], "
            "no significant difference") in shown
    assert shown.index("| talkplay ") < shown.index("| bm25 ")  # sorted by MRR


def test_page_and_figure(monkeypatch, data_dir):
    run(monkeypatch, data_dir)
    page = (data_dir / "results/results.md").read_text()
    assert ("| talkplay | 0.740 [0.600, 0.833] | 0.600 |  1.000 |   1.000 |            0.507 |"
            in page)
    assert "N = 6 tracks, ranked 6 deep" in page and "5 turns of 2 dialogues" in page
    assert "Generated music" not in page  # this system wrote no codes
    assert (data_dir / "results/mrr_per_turn.png").read_bytes().startswith(b"\x89PNG")
    assert not list((data_dir / "results").glob("*.tmp"))


def test_shares_of_generated_codes(monkeypatch, data_dir):
    """Exact: the same code is missing. Not exact: a code where the track has none; no codes."""
    rows = lines([r for *_, r in TURNS])
    codes = [[0, 0, 0, -1, 0], [0, 0, 0, 3, 0], [1, 1, 1, 1, -1], [2, 2, 2, 2, 2], None]
    for row, generated in zip(rows, codes, strict=True):
        row |= {"codes": generated, "well_formed": generated is not None}
    write_predictions(data_dir / "predictions", "talkplay", rows)
    run(monkeypatch, data_dir)
    page = (data_dir / "results/results.md").read_text()
    assert "| talkplay |       0.800 |       0.400 |" in page


def systems_csv(data_dir):
    return {(r["system"], r["measure"]): float(r["value"])
            for r in read_csv(data_dir / "results/systems.csv")}


def test_measures_of_a_system_by_hand(monkeypatch, data_dir):
    """First unplayed tracks: a b a f f, so 3 of 6; pairs: play it, play it, it again."""
    rows = lines([r for *_, r in TURNS])
    responses = ["Play it", None, "play IT again", "", None]
    for row, response in zip(rows, responses, strict=True):
        row["response"] = response
    write_predictions(data_dir / "predictions", "talkplay", rows)
    write_predictions(data_dir / "predictions", "silent", lines(["abcdef"] * 5))
    monkeypatch.setattr(evaluate, "COVERED", 1)
    run(monkeypatch, data_dir)
    measures = systems_csv(data_dir)
    assert measures["talkplay", "coverage@20"] == 0.5 and measures["talkplay", "responses"] == 3
    assert measures["talkplay", "distinct-2"] == 0.666667 and measures["silent", "responses"] == 0
    assert not {("silent", "distinct-2"), ("silent", "well_formed")} & set(measures)


def write_overlap(data_dir, seed):
    """talkplay-overlap as 05_infer.py writes it: default weights, ties drawn."""
    infer = importlib.import_module("05_infer")
    index = retrieval.build_index(CODES)
    generated = [[0, 0, 0, -1, 0], [1, 1, 2, 2, 2], [2] * 5, None, [5, 5, 1, 1, 1]]
    rankings = []
    for (d, t, _, _), codes in zip(TURNS, generated, strict=True):
        rows = infer.rank_by_overlap(index, codes,
                                     metrics.turn_rng(seed, d, t, metrics.BREAK_OVERLAP_TIES))
        rankings.append("".join("abcdef"[row] for row in rows))
    write_predictions(data_dir / "predictions", "talkplay-overlap", [
        row | {"codes": codes, "well_formed": codes is not None}
        for row, codes in zip(lines(rankings), generated, strict=True)])


def write_infer_record(data_dir, seed, codes_hash):
    record = {"arguments": {"seed": seed}, "inputs": {"codes.npy": codes_hash}}
    data.write_text(data_dir / "runs/05_infer.test.json", json.dumps(record))


@pytest.mark.parametrize("seed", [0, 5])
def test_ablations_give_back_the_stored_ranking(monkeypatch, data_dir, seed):
    write_overlap(data_dir, seed)
    write_infer_record(data_dir, seed, runs.file_hash(data_dir / "codes.npy"))
    run(monkeypatch, data_dir)
    rows = {(r["table"], r["weights"], r["metric"]): r
            for r in read_csv(data_dir / "results/ablations.csv")}
    stored = values(data_dir, "talkplay-overlap")
    for metric in ("mrr", "hit@1", "hit@10", "hit@100"):
        assert float(rows["3", "25/16/9/4/1", metric]["value"]) == stored["all", "all", metric][0]
    assert {weights for table, weights, _ in rows if table == "4"} == {
        "1/1/1/1/1", "0/1/1/1/1", "1/0/1/1/1", "1/1/0/1/1", "1/1/1/0/1", "1/1/1/1/0"}
    page = (data_dir / "results/results.md").read_text()
    assert "100.0% of the turns" in page
    assert "| 25/9/16/4/1 | paper, order of Table 3" in page and "| 1/1/1/0/1 | lyrics" in page


def test_predictions_with_other_codes_are_refused(monkeypatch, data_dir):
    write_overlap(data_dir, 0)
    write_infer_record(data_dir, 0, "another")
    with pytest.raises(SystemExit, match="codes.npy has changed since 05_infer.test read it"):
        run(monkeypatch, data_dir)
    assert not (data_dir / "results").exists()


def test_predictions_for_other_dialogues_are_refused(monkeypatch, data_dir, capsys):
    """The same turns with other queries: nothing in the prediction file itself tells."""
    name = "dialogues_test.jsonl"
    for folder in ("predictions", "predictions_valid"):
        write_predictions(data_dir / folder, "bm25", lines([r for *_, r in TURNS]))
    run(monkeypatch, data_dir)
    assert "so possibly of other data: bm25, talkplay" in capsys.readouterr().out

    record = {"arguments": {}, "inputs": {name: runs.file_hash(data_dir / name)}}
    data.write_text(data_dir / "runs/bm25.json", json.dumps(record))
    run(monkeypatch, data_dir)
    assert "so possibly of other data: talkplay" in capsys.readouterr().out

    text = (data_dir / name).read_text()
    (data_dir / name).write_text(text.replace('"query": "', '"query": "Well, ', 1))
    with pytest.raises(SystemExit, match=f"{name} has changed since bm25 read it: .*"
                                         f"python baselines/bm25.py .* --no-resume"):
        run(monkeypatch, data_dir)
    run(monkeypatch, data_dir, "--split", "valid")  # test dialogues do not matter there


def test_without_codes_there_are_no_ablations(monkeypatch, data_dir):
    write_overlap(data_dir, 0)
    run(monkeypatch, data_dir)
    (data_dir / "predictions/talkplay-overlap.jsonl").unlink()
    run(monkeypatch, data_dir)
    assert read_csv(data_dir / "results/ablations.csv") == []  # nothing of the run before is left
    assert "Table 3" not in (data_dir / "results/results.md").read_text()


def test_further_runs_are_a_spread_and_no_rows(monkeypatch, data_dir):
    """MRR .74 and (1/6 + 1/4 + 1/5 + 1/5 + 1) / 5 = .363333."""
    write_predictions(data_dir / "predictions", "talkplay@seed1", lines(["fedcba"] * 5))
    run(monkeypatch, data_dir)
    measures = systems_csv(data_dir)
    assert measures["talkplay", "runs"] == 2
    assert measures["talkplay", "mrr, mean of runs"] == 0.551667
    sd = (0.74 - 0.363333) / math.sqrt(2)
    assert measures["talkplay", "mrr, sd of runs"] == pytest.approx(sd, abs=1e-6)
    assert {r["system"] for r in read_csv(data_dir / "results/metrics.csv")} == {"talkplay"}
    assert values(data_dir)["all", "all", "mrr"] == (0.74, 5)
    page = (data_dir / "results/results.md").read_text()
    assert "| talkplay |    2 | 0.552 ± 0.266 |" in page and "@seed1" not in page


def test_a_run_without_its_system_is_refused(monkeypatch, data_dir):
    write_predictions(data_dir / "predictions", "bm25@seed1", lines(["fedcba"] * 5))
    with pytest.raises(SystemExit, match=r"bm25@seed1\.jsonl is a further run of bm25, whose own "
                                         r"file bm25\.jsonl is missing"):
        run(monkeypatch, data_dir)


def test_another_system_may_be_compared(monkeypatch, data_dir, capsys):
    write_predictions(data_dir / "predictions", "bm25", lines(SECOND))
    run(monkeypatch, data_dir, "--compare", "bm25")
    rows = read_csv(data_dir / "results/comparisons.csv")
    assert {(r["system"], r["against"]) for r in rows} == {("bm25", "talkplay")}
    assert float(rows[0]["margin"]) == -0.24
    assert "## Margins of bm25 over talkplay" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="--compare dense: .*no such system; it has bm25, talk"):
        run(monkeypatch, data_dir, "--compare", "dense")


def test_valid_split_has_its_own_folders(monkeypatch, data_dir):
    write_predictions(data_dir / "predictions_valid", "talkplay", lines([r for *_, r in TURNS]))
    run(monkeypatch, data_dir, "--split", "valid")
    assert (data_dir / "results_valid/metrics.csv").is_file()
    assert not (data_dir / "results").exists()


def test_a_new_file_is_scored_on_the_next_run(monkeypatch, data_dir):
    run(monkeypatch, data_dir)
    before = (data_dir / "results/metrics.csv").read_bytes()
    run(monkeypatch, data_dir)
    assert (data_dir / "results/metrics.csv").read_bytes() == before
    write_predictions(data_dir / "predictions", "mine", lines(["fedcba"] * 5))
    run(monkeypatch, data_dir)
    assert values(data_dir, "mine")["all", "1", "mrr"] == (0.183333, 2)  # (1/6 + 1/5) / 2


def test_several_targets_and_the_past_of_the_first_kind(data_dir):
    """A hit on any target counts; the past is the best known one."""
    assert metrics.rank_of_first_hit(np.array([4, 3, 1]), [1, 3]) == 2
    assert evaluate.target_past([5, 1], {0}, {0, 1}) == "in training playlists only"
    assert evaluate.target_past([5, 0], {0}, {0, 1}) == "in training dialogues"


def broken(name):
    rows = lines([r for *_, r in TURNS])
    if name == "missing":
        rows.pop(2)
    elif name == "foreign turn":
        rows.append(rows[0] | {"turn": 3})
    elif name == "foreign dialogue":
        rows[0]["dialogue_id"] = "x"
    elif name == "twice":
        rows.append(rows[0])
    elif name == "unknown track":
        rows[1]["track_ids"][4] = "zz"
    elif name == "repeated track":
        rows[1]["track_ids"][4] = "a"
    elif name == "shallow":
        rows[1]["track_ids"].pop()
    elif name == "no list":
        rows[1]["track_ids"] = "abcdef"
    elif name == "codes":
        rows[1]["codes"] = [1, 2, 3]
    elif name == "response":
        rows[1]["response"] = ["here"]
    return rows


@pytest.mark.parametrize("name, message", [
    ("missing", r"mine\.jsonl: 1 of 5 turns are missing, the first: dialogue d1, turn 4"),
    ("foreign turn", r"mine\.jsonl:6: dialogue d1, turn 3 is not a turn with targets"),
    ("foreign dialogue", r"mine\.jsonl:1: dialogue x, turn 1 is not a turn"),
    ("twice", r"mine\.jsonl:6: dialogue d1, turn 1 occurs twice \(also line 1\)"),
    ("unknown track", r"mine\.jsonl:2: track_id zz is not in tracks\.jsonl"),
    ("repeated track", r"mine\.jsonl:2: track_id a occurs twice"),
    ("shallow", r"mine\.jsonl:2: 5 tracks are ranked; 6 are accepted"),
    ("no list", r"mine\.jsonl:2: track_ids must be a list"),
    ("codes", r"mine\.jsonl:2: codes must be null or 5 integers"),
    ("response", r"mine\.jsonl:2: response must be null or a string"),
])
def test_bad_predictions_are_refused_and_nothing_is_written(monkeypatch, data_dir, name, message):
    run(monkeypatch, data_dir)
    before = {p.name: p.read_bytes() for p in (data_dir / "results").iterdir()}
    write_predictions(data_dir / "predictions", "mine", broken(name))
    with pytest.raises(SystemExit, match=message):
        run(monkeypatch, data_dir)
    assert {p.name: p.read_bytes() for p in (data_dir / "results").iterdir()} == before


def test_systems_must_have_one_depth(monkeypatch, data_dir):
    """With a depth of 4, four tracks and the whole catalogue of six are accepted, but not both."""
    monkeypatch.setattr(metrics, "DEPTH", 4)
    run(monkeypatch, data_dir)
    write_predictions(data_dir / "predictions", "mine", lines([r[:4] for *_, r in TURNS]))
    with pytest.raises(SystemExit, match="talkplay.jsonl:1: 6 tracks are ranked; 4 are accepted"):
        run(monkeypatch, data_dir)


def test_missing_files_name_the_command(monkeypatch, data_dir):
    (data_dir / "predictions/talkplay.jsonl").unlink()
    with pytest.raises(SystemExit, match="has no predictions.*05_infer.py predict"):
        run(monkeypatch, data_dir)
    (data_dir / "dialogues_train.jsonl").unlink()
    with pytest.raises(SystemExit, match="dialogues_train.jsonl is missing.*03_synthesize.py"):
        run(monkeypatch, data_dir)


def test_half_written_predictions_are_refused(monkeypatch, data_dir):
    path = data_dir / "predictions/talkplay.jsonl"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(SystemExit, match=r"talkplay\.jsonl:5: not JSON"):
        run(monkeypatch, data_dir)


def test_run_record(monkeypatch, data_dir):
    run(monkeypatch, data_dir, "--seed", "3")
    record = json.loads((data_dir / "runs/06_evaluate.json").read_text())
    assert record["state"] == "finished" and record["arguments"]["seed"] == 3
    assert "predictions/talkplay.jsonl" in record["inputs"]
    assert "results/metrics.csv" in record["outputs"]
