"""The baselines popularity, random_order and bm25 on a small catalogue."""

import csv
import importlib
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from common import data, turns

popularity = importlib.import_module("baselines.popularity")
random_order = importlib.import_module("baselines.random_order")
bm25 = importlib.import_module("baselines.bm25")

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ("popularity", "random_order", "bm25")
WORDS = ("rainy", "piano", "club", "desert", "choir", "neon", "harvest", "tide", "velvet",
         "engine", "orchid", "winter")


def make_dialogues(split):
    """Six dialogues of four turns. A query says the two tags of its track, a response its title."""
    for d in range(6):
        picks = [(7 * d + 3 * t + (split == "test")) % 12 for t in range(4)]
        dialogue = [{"query": f"something {WORDS[p]} and {WORDS[(p + 1) % 12]}", "music": f"id{p}",
                     "rejected": False, "response": f"Here is title{p}, by singer{p % 4}.",
                     "kind": "tags", "targets": [f"id{p}"]} for p in picks]
        dialogue[2] |= {"music": None, "targets": []}  # small talk: no track, nothing to predict
        yield {"dialogue_id": f"{split}{d}", "playlist_id": f"{split}{d % 3}", "turns": dialogue}


@pytest.fixture
def data_dir(tmp_path):
    tracks = [{"track_id": f"id{i}", "title": f"title{i}", "artist": f"singer{i % 4}",
               "tags": [WORDS[i], WORDS[(i + 1) % 12]],
               "caption": f"a song of {WORDS[(i + 5) % 12]}", "lyrics": "oh the night " * 5}
              for i in range(12)]
    data.write_jsonl(tmp_path / "tracks.jsonl", tracks)
    playlists = [{"playlist_id": "a", "split": "train", "track_ids": ["id3", "id5", "id3"]},
                 {"playlist_id": "b", "split": "train", "track_ids": ["id3", "id0"]},
                 {"playlist_id": "c", "split": "test", "track_ids": ["id9", "id8", "id5"]}]
    data.write_jsonl(tmp_path / "playlists.jsonl", playlists)
    for split in ("train", "valid", "test"):
        data.write_jsonl(tmp_path / f"dialogues_{split}.jsonl", make_dialogues(split))
    return tmp_path


def run(monkeypatch, script, data_dir, *arguments):
    module = importlib.import_module(f"baselines.{script}")
    monkeypatch.setattr(sys, "argv", [f"{script}.py", "--data-dir", str(data_dir), *arguments])
    module.main()


def read(data_dir, script, split="test"):
    folder = {"test": "predictions", "valid": "predictions_valid"}[split]
    with open(data_dir / folder / f"{script}.jsonl", encoding="utf-8") as f:
        return {(row["dialogue_id"], row["turn"]): row for row in map(json.loads, f)}


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_turn_with_targets_gets_the_whole_catalogue(monkeypatch, data_dir, script):
    run(monkeypatch, script, data_dir)
    for split in ("valid", "test"):
        rows = read(data_dir, script, split)
        assert set(rows) == {(f"{split}{d}", t) for d in range(6) for t in (1, 2, 4)}
        for row in rows.values():
            assert sorted(row["track_ids"]) == sorted(f"id{i}" for i in range(12))
            assert row["response"] is None


@pytest.mark.parametrize("script", SCRIPTS)
def test_seed_decides_every_draw(monkeypatch, data_dir, script):
    run(monkeypatch, script, data_dir)
    first = read(data_dir, script)
    run(monkeypatch, script, data_dir, "--no-resume")
    assert read(data_dir, script) == first
    run(monkeypatch, script, data_dir, "--no-resume", "--seed", "1")
    assert read(data_dir, script) != first


@pytest.mark.parametrize("script, history", [
    *((script, None) for script in SCRIPTS), ("bm25", "queries + responses + tracks")])
@pytest.mark.parametrize("t", [0, 1, 3])
def test_what_follows_a_query_changes_nothing(monkeypatch, data_dir, script, history, t):
    """Music, response and targets of turn t, and all later turns, are replaced: the rankings of the
    turns up to t stay as they were. bm25 also in a form that reads all of the past."""
    if history:
        monkeypatch.setattr(bm25, "HISTORIES", (history,))
    run(monkeypatch, script, data_dir)
    before = read(data_dir, script)
    altered = list(make_dialogues("test"))
    for dialogue in altered:
        for i, turn in enumerate(dialogue["turns"]):
            if i >= t:
                turn |= {"music": "id11", "targets": ["id11"], "response": "winter velvet choir",
                         "rejected": True, "kind": "x"}
            if i > t:
                turn["query"] = "neon engine"
    data.write_jsonl(data_dir / "dialogues_test.jsonl", altered)
    run(monkeypatch, script, data_dir, "--no-resume")
    after = read(data_dir, script)
    earlier = [key for key in before if key[1] <= t + 1]
    assert len(earlier) == 6 * {0: 1, 1: 2, 3: 3}[t]
    assert all(before[key] == after[key] for key in earlier)
    if script == "bm25" and t < 3:  # the altered queries do count in their own turns
        assert any(before[key] != after[key] for key in before)


@pytest.mark.parametrize("script", SCRIPTS)
def test_done_runs_are_skipped_and_changed_inputs_refused(monkeypatch, data_dir, script, capsys):
    run(monkeypatch, script, data_dir)
    capsys.readouterr()
    run(monkeypatch, script, data_dir)
    assert capsys.readouterr().out == f"{script}: already done (--no-resume does it again)\n"
    data.write_jsonl(data_dir / "dialogues_test.jsonl", list(make_dialogues("test"))[:4])
    with pytest.raises(SystemExit, match="dialogues_test.jsonl.*--no-resume"):
        run(monkeypatch, script, data_dir)


@pytest.mark.parametrize("script", SCRIPTS)
def test_runs_as_a_script_and_06_accepts_it(monkeypatch, data_dir, script):
    command = [sys.executable, ROOT / "baselines" / f"{script}.py", "--data-dir", data_dir]
    subprocess.run(command, check=True, cwd=data_dir, capture_output=True)
    evaluate = importlib.import_module("06_evaluate")
    monkeypatch.setattr(sys, "argv", ["06_evaluate.py", "--data-dir", str(data_dir)])
    evaluate.main()
    assert script in (data_dir / "results/results.md").read_text()


def test_popularity_counts_training_playlists_only(monkeypatch, data_dir):
    row_of = {f"id{i}": i for i in range(12)}
    counts = popularity.count_tracks(data.load_playlists(data_dir, row_of), row_of)
    assert counts.tolist() == [1, 0, 0, 2, 0, 1, 0, 0, 0, 0, 0, 0]
    run(monkeypatch, "popularity", data_dir)
    rankings = [row["track_ids"] for row in read(data_dir, "popularity").values()]
    assert all(ids[0] == "id3" and set(ids[1:3]) == {"id0", "id5"} for ids in rankings)
    assert len(set(map(tuple, rankings))) == len(rankings)  # ties are drawn anew each turn


def test_random_orders_differ(monkeypatch, data_dir):
    run(monkeypatch, "random_order", data_dir)
    rankings = [tuple(row["track_ids"]) for row in read(data_dir, "random_order").values()]
    assert len(set(rankings)) == 18


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_annotation_that_has_changed_is_noticed(monkeypatch, data_dir, script):
    run(monkeypatch, script, data_dir)
    data.write_jsonl(data_dir / "annotations/new.jsonl", [{"track_id": "id1", "tags": ["neon"]}])
    with pytest.raises(SystemExit, match="another input: annotations/new.jsonl"):
        run(monkeypatch, script, data_dir)


def test_query_text_forms():
    past = [{"query": "q1", "music": "a", "response": "r1"},
            {"query": "q2", "music": None, "response": None}]
    first = turns.Turn("d", 1, [], "q1", [], [1])
    third = turns.Turn("d", 3, past, "q3", [0], [1])
    assert {form: bm25.query_text(third, form, ["A", "B"]) for form in bm25.HISTORIES} == {
        "last query": "q3",
        "queries": "q1 q2 q3",
        "queries + last twice more": "q1 q2 q3 q3 q3",
        "queries + responses": "q1 q2 q3 r1",
        "queries + responses + tracks": "q1 q2 q3 r1 A",
        "last query + last track": "q3 A",
    }
    texts = {bm25.query_text(first, form, ["A", "B"]) for form in bm25.HISTORIES}
    assert texts == {"q1", "q1 q1 q1"}


def test_bm25_scores_by_hand():
    """Lucene's BM25: idf x tf / (tf + k1 (1 - b + b length / mean length)),
    idf = ln(1 + (N - df + 0.5) / (df + 0.5))."""
    words = bm25.split_words(["Rain rain piano", "piano", "club night out too"], "kept")
    assert words[0] == ["rain", "rain", "piano"]
    index = bm25.build_index(words, k1=1.2, b=0.75)
    asked = turns.Turn("d", 1, [], "Rain, piano: unheard", [], [0])
    form = {"history": "last query", "stop_words": "kept"}
    scores, = bm25.score_turns(form, index, [asked], [])
    mean = 8 / 3
    rain = math.log(1 + 2.5 / 1.5)
    piano = math.log(1 + 1.5 / 2.5)
    long = 1.2 * (0.25 + 0.75 * 3 / mean)   # three words
    short = 1.2 * (0.25 + 0.75 * 1 / mean)  # one word
    expected = [rain * 2 / (2 + long) + piano / (1 + long), piano / (1 + short), 0]
    np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_stop_words():
    assert bm25.split_words(["The night and a Piano"], "removed") == [["night", "piano"]]
    assert bm25.split_words(["The night and a Piano"], "kept") == [["the", "night", "and", "piano"]]


def test_a_query_without_a_known_word_is_ordered_by_the_draw():
    words = bm25.split_words(["one two", "two three", "three"], "kept")
    asked = [turns.Turn("d", t, [], "", [], [0]) for t in range(30)]
    form = {"history": "last query", "stop_words": "kept"}
    scores = bm25.score_turns(form, bm25.build_index(words, 1.2, 0.75), asked, [])
    orders = [turns.rank(row, turn, 0).tolist() for row, turn in zip(scores, asked, strict=True)]
    assert all(sorted(order) == [0, 1, 2] for order in orders)
    assert len({order[0] for order in orders}) == 3


def test_form_is_chosen_on_valid_alone(monkeypatch, data_dir):
    """Queries name the tags of their own track: the last query wins, whatever the test targets."""
    run(monkeypatch, "bm25", data_dir)
    with open(data_dir / "results/bm25_forms.csv", encoding="utf-8", newline="") as f:
        forms = list(csv.DictReader(f))
    kinds = {(form["item"], form["history"]) for form in forms}
    assert len(forms) == len(bm25.ITEM_FORMS) * len(bm25.HISTORIES) == len(kinds)
    assert (forms[0]["item"], forms[0]["history"]) == ("tags", "last query")
    valid_mrr = [float(form["valid_mrr"]) for form in forms]
    assert valid_mrr[0] == 1 and valid_mrr == sorted(valid_mrr, reverse=True)

    chosen = json.loads((data_dir / "runs/bm25.json").read_text())["chosen_on_valid"]
    altered = list(make_dialogues("test"))
    for dialogue in altered:
        for turn in dialogue["turns"]:
            turn["targets"] = ["id0"] if turn["targets"] else []
    data.write_jsonl(data_dir / "dialogues_test.jsonl", altered)
    run(monkeypatch, "bm25", data_dir, "--no-resume")
    again = json.loads((data_dir / "runs/bm25.json").read_text())["chosen_on_valid"]
    assert chosen.pop("test_mrr") != again.pop("test_mrr") and chosen == again
