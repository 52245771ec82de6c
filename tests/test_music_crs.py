"""06_evaluate.py --music-crs: figures by hand, by scikit-learn, as published; the submission."""

import importlib
import json
import sys

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import ndcg_score

from common import data
from steps.evaluate import music_crs

IDS = [f"t{i}" for i in range(30)]


def entry(session_id, turn, predicted, response=""):
    return {"session_id": session_id, "user_id": "u", "turn_number": turn,
            "predicted_track_ids": predicted, "predicted_response": response}


def test_figures_by_hand():
    entries = [entry("a", 1, ["x", "y", "z"], "Here you are"),
               entry("a", 2, ["y", "z"], "here  YOU go"), entry("b", 1, ["y", "z", "x"])]
    # ranks 1, none, 3: turn 1 has 1 and 1/2, turn 2 has 0. Pairs: here you, you are, here you, you
    # go
    figures = music_crs.scores(entries, ["x", "x", "x"], 12)
    assert figures == {
        "ndcg@1": (1 / 2 + 0) / 2, "ndcg@10": pytest.approx((3 / 4 + 0) / 2),
        "ndcg@20": pytest.approx(3 / 8), "catalog_diversity": 3 / 12, "lexical_diversity": 3 / 4}
    entries = [entry("a", 1, [], "one"), entry("a", 2, [])]
    assert music_crs.scores(entries, ["x", "x"], 12) == dict.fromkeys(figures, 0.0)


def test_ndcg_as_by_scikit_learn_averaged_as_by_pandas():
    rng = np.random.default_rng(0)
    entries, gold, values = [], [], []
    for i in range(60):
        order = rng.permutation(30)
        gold.append(IDS[rng.integers(30)])
        predicted = [IDS[row] for row in order[:20]]
        entries.append(entry(f"s{i}", int(rng.integers(1, 6)), predicted))
        weights = np.zeros(30)
        weights[order] = np.arange(30, 0, -1)  # the 20 predicted in their order, the others below
        truth = np.array([[track_id == gold[-1] for track_id in IDS]])
        values.append({k: ndcg_score(truth, [weights], k=k) for k in music_crs.KS}
                      | {"turn": entries[-1]["turn_number"]})
    expected = pd.DataFrame(values).groupby("turn").mean().mean()
    figures = music_crs.scores(entries, gold, 30)
    for k in music_crs.KS:
        assert figures[f"ndcg@{k}"] == pytest.approx(expected[k], abs=1e-12)
    assert 0 < figures["ndcg@1"] < figures["ndcg@10"] < figures["ndcg@20"]
    # the mean over all turns is another number: turns have not equally many sessions
    assert figures["ndcg@20"] != pytest.approx(pd.DataFrame(values)[20].mean(), abs=1e-4)


def test_diversity_of_the_published_baselines():
    """As its page says, of 47,071 tracks: the same 20 at every turn: .0004; random ones: .9652."""
    fixed = music_crs.scores([entry(f"s{i}", 1, IDS[:20]) for i in range(8)], ["t0"] * 8, 47_071)
    assert round(fixed["catalog_diversity"], 4) == 0.0004 and fixed["lexical_diversity"] == 0.0
    rng = np.random.default_rng(0)
    drawn = [entry(f"s{i}", 1, rng.choice(47_071, 20, replace=False).tolist()) for i in range(8000)]
    figures = music_crs.scores(drawn, [0] * 8000, 47_071)
    assert figures["catalog_diversity"] == pytest.approx(0.9652, abs=0.003)


def turn(music, targets=None):
    targets = [music] if targets is None else targets
    return {"query": "play", "music": music, "response": "here", "targets": targets}


@pytest.fixture
def data_dir(tmp_path):
    data.write_jsonl(tmp_path / "tracks.jsonl", [{"track_id": t, "title": t} for t in IDS])
    data.write_jsonl(tmp_path / "playlists.jsonl",
                     [{"playlist_id": "p", "split": "train", "track_ids": IDS}])
    for split in data.SPLITS:
        data.write_jsonl(tmp_path / f"dialogues_{split}.jsonl", [
            {"dialogue_id": "s1", "meta": {"user_id": "u7"},
             "turns": [turn("t0"), turn(None, []), turn("t0"), turn("t29")]},
            {"dialogue_id": "s2", "turns": [turn("t19")]}])
    data.write_jsonl(tmp_path / "predictions" / "mine.jsonl", [
        {"dialogue_id": d, "turn": t, "track_ids": IDS, "response": response}
        for d, t, response in (("s2", 1, None), ("s1", 1, "Yes é"), ("s1", 3, "Sure"),
                               ("s1", 4, "Fine"))])
    return tmp_path


def run(monkeypatch, data_dir, *flags):
    monkeypatch.setattr(sys, "argv", ["06_evaluate.py", "--data-dir", str(data_dir), *flags])
    importlib.import_module("06_evaluate").main()


def test_the_submission(monkeypatch, data_dir, capsys):
    run(monkeypatch, data_dir)
    assert not (data_dir / "results/music_crs.csv").exists()
    run(monkeypatch, data_dir, "--music-crs")
    text = (data_dir / "results/music_crs/mine.json").read_text(encoding="utf-8")
    later = IDS[1:21]  # t0 has been played: it is left out even at turn 3, which plays it again
    expected = [("s1", "u7", 1, IDS[:20], "Yes é"), ("s1", "u7", 3, later, "Sure"),
                ("s1", "u7", 4, later, "Fine"), ("s2", "", 1, IDS[:20], "")]
    assert json.loads(text) == [
        {"session_id": session, "user_id": user, "turn_number": number, "predicted_track_ids": ids,
         "predicted_response": response} for session, user, number, ids, response in expected]
    assert "Yes é" in text
    at_20 = 1 / np.log2(21)  # t19 for s2
    assert (data_dir / "results/music_crs.csv").read_text() == (
        "system,ndcg@1,ndcg@10,ndcg@20,catalog_diversity,lexical_diversity,turns\n"
        f"mine,{1 / 6:.6f},{1 / 6:.6f},{(1 + at_20) / 2 / 3:.6f},{21 / 30:.6f},1.000000,4\n")
    out = capsys.readouterr().out
    assert "| mine   | 0.1667 |" in out and "played-only" not in out
    # turn 2 of s1 plays nothing
    assert "\nwarning: 1 of 5 turns are not in the submission: they have no target" in out
    record = json.loads((data_dir / "runs/06_evaluate.json").read_text())
    assert "results/music_crs.csv" in record["outputs"]


def test_a_catalogue_that_was_cut(monkeypatch, data_dir, capsys):
    record = {"arguments": {"source": "talkplaydata", "played_only": True}}
    data.write_text(data_dir / "runs/00_prepare_data.json", json.dumps(record))
    run(monkeypatch, data_dir, "--music-crs")
    assert ("\nwarning: catalog_diversity is divided by the 30 tracks that --played-only has kept; "
            in capsys.readouterr().out)


def test_several_targets_are_refused(monkeypatch, data_dir):
    data.write_jsonl(data_dir / "dialogues_test.jsonl",
                     [{"dialogue_id": "s1", "turns": [turn("t0", ["t0", "t1"])]}])
    with pytest.raises(SystemExit, match="--music-crs: turn 1 of dialogue s1 has 2 targets; "
                                         "that evaluator knows one per turn"):
        run(monkeypatch, data_dir, "--music-crs")
