"""03_synthesize.py audit, on a handful of dialogues whose numbers can be counted by hand."""

import importlib
import json
import sys
from pathlib import Path

import pytest
from conftest import make_tracks

from common import data
from steps.synthesize import audit, audit_words
from steps.synthesize.templates import TEMPLATES

synthesize = importlib.import_module("03_synthesize")


def turn(query, music, response="Here it is.", **more):
    return {"query": query, "music": music, "response": response, "targets": [music],
            "rejected": False, "kind": None} | more


def dialogue(dialogue_id, playlist_id, *turns):
    return {"dialogue_id": dialogue_id, "playlist_id": playlist_id, "meta": {},
            "turns": list(turns)}


FIELDS = ("title", "artist", "tempo", "key", "release_date", "tags")
TRACKS = [track | dict(zip(FIELDS, values, strict=True)) for track, values in zip(make_tracks(6), (
    ("Paper Lanterns", "Odile Marsh", 80.0, "C major", "1970", ["folk"]),
    ("Night Ferry", "Odile Marsh", 100.0, "A minor", "1980", ["folk", "sad"]),
    ("Home", "The Amber Line", 120.0, "C major", "1990", ["rock"]),
    ("Copper Kettle", "The Amber Line", 140.0, "A minor", "2000-01-02", ["rock"]),
    ("Static Parade", "Anna", None, None, None, []),
    ("Wires", "Anna", 90.0, "C minor", "2010", ["techno"])), strict=True)]
TRAIN = [dialogue("a", "p0", turn("Play Night Ferry by Odile Marsh.", "t1"),
                  # obeys both
                  turn("The same artist, but slower.", "t0"),
                  # newer; another artist; no common tag
                  turn("Something else: older rock, by another artist.", "t2", rejected=True),
                  # faster; the same artist
                  turn("No, it's too fast. I've had enough of The Amber Line.", "t3")),
         dialogue("b", "p1", turn("Faster, and I like the lyrics.", "t5"),
                  turn("Not slower, in a minor key please.", "t4"))]
TEST = [dialogue("c", "p0", turn("Play Night Ferry by Odile Marsh.", "t1"), turn("Hm.", "t0"),
                 turn("Hm.", "t2")),
        dialogue("d", "p2", turn("An unheard wish of quite another sort.", "t5"))]


@pytest.fixture
def folder(tmp_path):
    data.write_jsonl(tmp_path / "tracks.jsonl", TRACKS)
    data.write_jsonl(tmp_path / "playlists.jsonl", [
        {"playlist_id": playlist_id, "title": None, "split": split, "track_ids": track_ids}
        for playlist_id, split, track_ids in (("p0", "train", ["t0", "t1", "t2", "t3"]),
                                              ("p1", "train", ["t4"]), ("p2", "test", ["t5"]))])
    for split, rows in (("train", TRAIN), ("valid", TRAIN), ("test", TEST)):
        data.write_jsonl(tmp_path / f"dialogues_{split}.jsonl", rows)
    return tmp_path


def run(monkeypatch, folder, *more):
    monkeypatch.setattr(sys, "argv",
                        ["03_synthesize.py", "audit", "--data-dir", str(folder), *map(str, more)])
    synthesize.main()
    return json.loads((folder / "results" / "audit.json").read_text())


def test_by_hand(folder, monkeypatch, capsys):
    report = run(monkeypatch, folder)
    train, test = report["dialogues_train.jsonl"], report["dialogues_test.jsonl"]
    counts = {"dialogues": 2, "tracks": 6, "turns": 6, "turns per dialogue": 3.0}
    assert {name: train["table_1"][name] for name in counts} == counts
    words = {w for d in TEST for t in d["turns"]
             for w in f"{t['query']} {t['response']}".lower().split()}
    assert test["table_1"]["vocabulary"] == len(words) == 17
    assert test["table_1"]["queries that are said once only"] == 0.5
    assert train["give_away"] == {"title, first turns": 0.5, "artist, first turns": 0.5,
                                  "title, later turns": 0.0, "artist, later turns": 0.25}
    assert train["obedience"] == {
        "another artist": {"asked": 2, "checked": 2, "obeyed": 0.5,
                           "chance": pytest.approx((4 / 5 + 4 / 5) / 2)},
        "the same artist": {"asked": 1, "checked": 1, "obeyed": 1.0,
                            "chance": pytest.approx(1 / 5)},
        "slower": {"asked": 2, "checked": 2, "obeyed": 0.5,
                   "chance": pytest.approx((2 / 4 + 3 / 4) / 2)},
        "older": {"asked": 1, "checked": 1, "obeyed": 0.0, "chance": pytest.approx(0.0)},
        "in minor": {"asked": 1, "checked": 0, "obeyed": None, "chance": None}}
    assert train["directions"] == {"turns rejected": pytest.approx(1 / 6),
                                   "dialogues with a rejection": 0.5,
                                   "requests that change direction": pytest.approx(1 / 6),
                                   "no tag in common, after a change (rejections left out)": 1.0,
                                   "no tag in common, after other requests": 0.0}
    assert test["cold"] == {"tracks": 0.25, "turns": 0.25}
    assert train["cold"]["tracks"] == pytest.approx(1 / 6)
    assert test["duplicates"] == {"playlist in both": 0.5,
                                  "queries of 5 words or more said in train": 0.5,
                                  "dialogues with half their wording from one of train": 0.5,
                                  "dialogues with half their tracks from one of train": 1.0}
    assert report["dialogues_valid.jsonl"]["duplicates"] == {key: 1.0 for key in test["duplicates"]}
    assert "duplicates" not in train
    out = capsys.readouterr().out
    assert (folder / "results" / "audit.md").read_text() in out
    assert "| another artist | 50.0% of 2 (chance 80.0%) |" in out
    assert "| in minor | - of 0 (chance -) |" in out


@pytest.mark.parametrize("query, found", [
    ("something slow with a cello", {"audio"}), ("a song about the sea", {"lyrics"}),
    ("What about this? How about that?", set()), ("a jazz tune", {"tags"}),
    ("from the 80s, or 1975", {"metadata"}), ("Night Ferry", {"metadata"}),
    ("more from odile marsh", {"metadata"}), ("anything really Folk-ish, folk", {"tags"}),
    ("sad words over a slow beat, from their first album",
     {"audio", "lyrics", "metadata", "tags"})])
def test_sides(query, found):
    assert audit_words.sides(query, TRACKS[1], audit_words.side_phrases()) == found


@pytest.mark.parametrize("text, facts", [
    ("Groovy R&B with a woman's voice.", ["soul", "female vocals"]),
    ("Not slow, no jazz, but in a minor key.", ["minor"]),
    ("It is without words, from the eighties.", ["instrumental", "80s"]),
    ("Night Ferry by Odile Marsh", ["Night Ferry", "Odile Marsh"]),
    ("a night ferry for Anna", []), ("a major and minor matter", []),
    ("real vaporwave to daydream to", ["vaporwave", "dreamy"])])
def test_facts_in_an_answer(text, facts):
    tracks = [*TRACKS, TRACKS[0] | {"tags": ["vaporwave"]}]
    found = audit_words.stated(text, audit_words.fact_phrases(tracks))
    assert [concept for (_, concept), in found] == facts


def test_truth_by_hand():
    """t1: A minor, 100 BPM, 1980, folk and sad.

    t2: C major, 120 BPM, 1990, rock (a tag that the lexicon does not have).
    """
    # The first request asks for two of its answer's facts, in other words.
    answers = [("Old melancholic music, slow",
                "Sad folk from the eighties, a slow one.", TRACKS[1]),
               ("Not rock!", "Rock in a minor key. Night Ferry!", TRACKS[2]),
               ("Rock", "Nothing.", TRACKS[2])]
    found = audit_words.truth(answers, TRACKS)
    assert (found["answers"], found["facts in them"]) == (3, 7) and found["facts by kind"] == {
        "mood": 1, "genre": 1, "decade": 1, "tempo": 1, "tag": 1, "mode": 1, "name": 1}
    assert found["facts that are true"] == pytest.approx(4 / 7)
    assert found["facts that the request names"] == pytest.approx(2 / 7)
    assert {k for k, v in found.items() if v == 1.0} == {
        "mood: true", "genre: true", "decade: true", "tag: true"}
    assert {k for k, v in found.items() if v == 0.0} >= {"tempo: true", "mode: true", "name: true"}
    one = audit_words.truth([("Hm?", text, TRACKS[1]) for text in ("Folk.", "Folk.", "A ballad.")],
                      TRACKS)
    assert one["facts that are true"] == one["true of the track of another answer"] == 1.0
    none = audit_words.truth([("Folk?", "Hm.", TRACKS[1])], TRACKS)
    assert none == {"answers": 1, "facts in them": 0}


def test_the_rules_know_how_the_simulator_compares():
    for name in ("faster", "slower", "newer", "older"):
        for said in TEMPLATES[name]["train"]:
            request = f"One like that, but {said}."
            found = {rule for rule in audit_words.RULES
                     if audit_words.rule_pattern(rule).search(request)}
            assert found == {name}, said


def test_predictions(folder, monkeypatch, capsys):
    """In c's second turn t1 has been played: the answer is about t0. No response, no count."""
    data.write_jsonl(folder / "predictions" / "mine.jsonl", [
        {"dialogue_id": "c", "turn": 1, "track_ids": ["t1", "t0"],
         "response": "Sad folk in a minor key."},
        {"dialogue_id": "c", "turn": 2, "track_ids": ["t1", "t0"],
         "response": "Sad folk in a minor key."},
        {"dialogue_id": "c", "turn": 3, "track_ids": ["t1", "t0"], "response": None}])
    found = run(monkeypatch, folder, "--predictions", "mine")["predictions/mine"]["truth"]
    # t0: folk, C major
    assert found["answers"] == 2 and found["facts that are true"] == pytest.approx(4 / 6)
    assert "| facts that are true | " in capsys.readouterr().out
    data.write_jsonl(folder / "predictions" / "mute.jsonl",
                     [{"dialogue_id": "c", "turn": 1, "track_ids": ["t1"], "response": None}])
    data.write_jsonl(folder / "predictions" / "odd.jsonl",
                     [{"dialogue_id": "c", "turn": 9, "track_ids": ["t1"], "response": "x"}])
    for name, message in (("mute", "mute.jsonl: no responses"),
                          ("odd", "odd.jsonl:1: a dialogue_id and turn"),
                          ("none", "none.jsonl is missing")):
        with pytest.raises(SystemExit, match=message):
            run(monkeypatch, folder, "--predictions", name)


def test_more_like_this_is_checked_by_tags(folder, monkeypatch):
    data.write_jsonl(folder / "more.jsonl", [dialogue(
        "a", None, turn("Hm", "t0"), turn("More like this.", "t1"),
        turn("Something similar!", "t2"), turn("In the same spirit.", "t4"))])
    report = run(monkeypatch, folder, "--file", folder / "more.jsonl")
    found = report["more.jsonl"]["obedience"]["more like this"]
    assert (found["asked"], found["checked"], found["obeyed"]) == (3, 2, 0.5)  # t4 has no tags
    assert found["chance"] == pytest.approx((1 / 4 + 1 / 4) / 2)


def test_faults_are_counted_and_stop_nothing(folder, monkeypatch):
    bad = [dialogue("x", "p0", turn("a", "t0"), turn("b", "t0", rejected=True),
                    turn("c", "t9", rejected=True)),
           dialogue("x", None, turn("", None, None)),
           {"dialogue_id": "y", "turns": []}, {"turns": ["odd"]},
           {"dialogue_id": "z", "conversations": []}]
    data.write_jsonl(folder / "others.jsonl", bad)
    report = run(monkeypatch, folder, "--file", folder / "others.jsonl")
    assert {k: n for k, n in report["others.jsonl"]["schema"].items() if n} == {
        "dialogue without turns": 3, "dialogue without an id": 1,
        "dialogue that plays a track twice": 1, "dialogue that ends on a rejected track": 1,
        "turn without a query": 1, "turn without a track": 1, "turn without an answer": 1,
        "track that the catalogue does not have": 1, "two rejections in a row": 1,
        "dialogue id that occurs twice": 1}
    assert report["others.jsonl"]["table_1"]["dialogues"] == 1
    assert "duplicates" not in report["others.jsonl"]


def test_a_file_without_dialogues(folder, monkeypatch):
    with pytest.raises(SystemExit, match="tracks.jsonl holds no dialogues .*dialogues_test.jsonl"):
        run(monkeypatch, folder, "--file", folder / "tracks.jsonl")


def test_a_file_that_is_missing(folder, monkeypatch):
    with pytest.raises(SystemExit, match="nothing.jsonl is missing"):
        run(monkeypatch, folder, "--file", folder / "nothing.jsonl")


def test_values_of_other_types_are_counted_and_stop_nothing(folder, monkeypatch):
    """One field in each dialogue is wrong; that is not measured, the rest of the dialogue is."""
    odd = [{"music": ["t0"]}, {"music": {"id": "t0"}}, {"targets": "t0"}, {"targets": 5},
           {"targets": [["t0"]]}, {"rejected": "false"}, {"kind": ["tags"]},
           {"query": 5}, {"response": {"a": 1}}]
    rows = [dialogue(f"x{i}", None, turn("hi", "t0") | fields, turn("and", "t1"))
            for i, fields in enumerate(odd)]
    rows += [dialogue(["y"], ["q"], turn("hi", "t0")), dialogue("z", None) | {"turns": {"a": 1}}]
    data.write_jsonl(folder / "others.jsonl", rows)
    found = run(monkeypatch, folder, "--file", folder / "others.jsonl",
                folder / "dialogues_train.jsonl")["others.jsonl"]
    assert {k: n for k, n in found["schema"].items() if n} == {
        "field of another type": 10, "turn without a track": 2, "turn without a query": 1,
        "turn without an answer": 1, "dialogue without an id": 1, "dialogue without turns": 1}
    assert found["table_1"]["turns"] == 2 * 9 - 1 + 1 and found["table_1"]["tracks"] == 2
    assert found["directions"]["turns rejected"] == 0.0
    assert found["coverage"]["kinds, as the file names them"] == {"not known": 1.0}


@pytest.mark.parametrize("query, rules", [
    ("Play Slower Now by Faster Joe.", set()),
    ("I want Slower Now, but from an older record.", {"older"}), ("slower now, please", {"slower"}),
    ("I'm tired of Slower Sam.", {"another artist"}),
    ("Like Newer Days, only slower.", {"slower"})])
def test_a_name_is_no_wish(folder, monkeypatch, query, rules):
    tracks = [TRACKS[0] | {"title": "Newer Days", "artist": "Slower Sam"},
              TRACKS[1] | {"title": "Slower Now (Live)", "artist": "Faster Joe"}]
    data.write_jsonl(folder / "tracks.jsonl", [*tracks, *TRACKS[2:]])
    data.write_jsonl(folder / "named.jsonl",
                     [dialogue("a", None, turn("Hm", "t0"), turn(query, "t1"))])
    report = run(monkeypatch, folder, "--file", folder / "named.jsonl")
    assert set(report["named.jsonl"]["obedience"]) == rules


@pytest.mark.parametrize("query, answer", [("Hm", "Hm"), ("slower", "It is slow folk.")])
def test_the_notebook_on_a_handful_of_dialogues(tmp_path, monkeypatch, query, answer):
    """Without a playlist, a rule to check (no tempo is known) or a fact in an answer.

    Its code cells run in order, as in Jupyter.
    """
    pytest.importorskip("IPython")
    import matplotlib.pyplot as plt
    monkeypatch.setenv("TALKPLAY_DATA", str(tmp_path))
    monkeypatch.chdir(Path(audit.__file__).parents[2])
    plt.switch_backend("agg")
    data.write_jsonl(tmp_path / "tracks.jsonl", [track | {"tempo": None} for track in TRACKS])
    for split in data.SPLITS:
        data.write_jsonl(tmp_path / f"dialogues_{split}.jsonl",
                         [dialogue("a", None, turn("Hm", "t0", answer), turn(query, "t1", answer))])
    cells = json.loads(Path("notebooks/03_dialogues.ipynb").read_text(encoding="utf-8"))["cells"]
    seen = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), seen)
    plt.close("all")
    assert len(seen["rules"]) == 0 and (seen["truth"].size > 0) == (answer != "Hm")
