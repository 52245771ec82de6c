"""common/data.py: what the readers take for unknown, mend, or refuse in one clear line."""

import importlib
import io
import json
import sys
from types import SimpleNamespace

import pytest
from conftest import make_dialogues, make_tracks

from common import data

infer = importlib.import_module("05_infer")
TRACK = make_tracks(1)[0]
ROW_OF = {"t0": 0, "t1": 1}
PLAYLIST = {"playlist_id": "p", "title": "x", "split": "train", "track_ids": ["t0"]}
DEEP = "[" * 100_000
LONG = "7" * 5_000


def load(folder, *tracks, annotations=()):
    data.write_jsonl(folder / "tracks.jsonl", tracks)
    data.write_jsonl(folder / "annotations" / "more.jsonl", annotations)
    return data.load_tracks(folder)


# ---------------------------------------------------------------- what means unknown

@pytest.mark.parametrize("field, value", [
    ("release_date", "0000"), ("release_date", "0000-00-00"), ("release_date", " "),
    ("tempo", 0), ("tempo", 0.0), ("duration_ms", 0), ("popularity", -1), ("key", -1), ("key", ""),
    ("title", " \t"), ("title", "unknown"), ("artist", "Unknown Artist"), ("artist", ""),
    ("artist", " N/A "), ("album", "none"), ("lyrics", "\n"), ("caption", "n/a"),
    ("audio_path", ""), ("tags", [""]), ("tags", ["  ", "unknown"]), ("tags", "")])
def test_what_means_unknown_is_null(tmp_path, capsys, field, value):
    """In the catalogue; an annotation that says it changes nothing."""
    empty = [] if field == "tags" else None
    assert load(tmp_path, TRACK | {field: value})[0] == TRACK | {field: empty}
    n = len(value) if isinstance(value, list) else 1
    assert capsys.readouterr().out == (
        f"tracks.jsonl: {n} values that mean unknown were read as null: {field} {n}\n")

    assert load(tmp_path, TRACK, annotations=[{"track_id": "t0", field: value}]) == [TRACK]
    assert capsys.readouterr().out == (
        f"more.jsonl: {n} values that mean unknown were read as null: {field} {n}\n")


def test_one_line_counts_them_all(tmp_path, capsys):
    tracks = [track | {"release_date": "0000"} for track in make_tracks(10)]
    tracks[3]["tempo"] = tracks[4]["tempo"] = 0
    found = load(tmp_path, *tracks)
    assert [track["release_date"] for track in found] == [None] * 10
    assert capsys.readouterr().out == (
        "tracks.jsonl: 12 values that mean unknown were read as null: release_date 10, tempo 2\n")


def test_the_line_is_printed_by_one_process(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    load(tmp_path, TRACK | {"tempo": 0})
    assert capsys.readouterr().out == ""


def test_values_that_look_like_it_stay(tmp_path, capsys):
    """A popularity of 0 is known; a name may hold the word; an annotation may take tags away."""
    track = TRACK | {"popularity": 0, "title": "Unknown Pleasures", "artist": "None but Me",
                     "release_date": "2000", "tags": ["none of this"]}
    assert load(tmp_path, track) == [track]
    assert load(tmp_path, track, annotations=[{"track_id": "t0", "tags": []}])[0]["tags"] == []
    assert capsys.readouterr().out == ""
    with pytest.raises(SystemExit, match="tracks.jsonl:1: tempo is false; a number"):
        load(tmp_path, TRACK | {"tempo": False})


def test_a_tag_counts_once(tmp_path):
    track = TRACK | {"tags": ["Jazz", "jazz", "", "folk", " JAZZ", "folk"]}
    assert load(tmp_path, track)[0]["tags"] == ["Jazz", "folk"]


# ---------------------------------------------------------------- half characters

def test_half_a_character_is_replaced(tmp_path, capsys):
    half = [{"a\ud83d": "x"}, {"tags": [["\udc00y"]]},
            {"whole": "\U0001f600\ud7ff\\ud83d", "n": 1.5}, {"nothing": None}]
    path = tmp_path / "some.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in half))  # with \uXXXX escapes
    assert [row for _, row in data.read_jsonl(path, "")] == [
        {"a?": "x"}, {"tags": [["?y"]]}, half[2], half[3]]
    assert capsys.readouterr().out == (
        "some.jsonl: lines with half a character, which was read as ?: 2\n")


@pytest.mark.parametrize("errors", ["surrogateescape", "strict"])
def test_the_chat_replaces_bytes_that_are_not_utf8(monkeypatch, errors):
    said = []

    def reply(talkplay, turns, *rest, **more):
        said.append(turns[-1]["query"])
        return SimpleNamespace(track=TRACK, response="")

    monkeypatch.setattr(infer, "reply", reply)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(
        io.BytesIO(b"sad \xff jazz\n\n"), encoding="utf-8", errors=errors))
    infer.chat(None)
    assert said == ["sad \ufffd jazz"]


# ---------------------------------------------------------------- one clear line

@pytest.mark.parametrize("line, message", [
    (f'{{"a": {DEEP}', "not JSON .maximum recursion depth"),
    (f'{{"a": {LONG}}}', "not JSON .*digits"), (f'{{"a": "\\ud83d", "b": {DEEP}', "not JSON")])
def test_json_that_no_reader_can_hold(tmp_path, line, message):
    (tmp_path / "tracks.jsonl").write_text(line + "\n")
    with pytest.raises(SystemExit, match=rf"tracks\.jsonl:1: {message}"):
        data.load_tracks(tmp_path)


@pytest.mark.parametrize("track_id", [["t0"], {"id": "t0"}, 0, None])
def test_a_track_id_that_is_no_string(tmp_path, track_id):
    with pytest.raises(SystemExit, match=r"more\.jsonl:1: no track_id"):
        load(tmp_path, TRACK, annotations=[{"track_id": track_id, "tempo": 90}])
    with pytest.raises(SystemExit, match=r"tracks\.jsonl:1: no track_id"):
        load(tmp_path, TRACK | {"track_id": track_id})


def test_a_blank_track_id(tmp_path):
    with pytest.raises(SystemExit, match=r"tracks\.jsonl:1: no track_id"):
        load(tmp_path, TRACK | {"track_id": " "})


@pytest.mark.parametrize("fields", [
    {"playlist_id": 5}, {"playlist_id": ["p"]}, {"playlist_id": " "}, {"split": ["train"]},
    {"track_ids": 5}, {"track_ids": "t0"}, {"track_ids": {"t0": 1}}, {"track_ids": [["t0"]]},
    {"track_ids": [{}]}, {"track_ids": [None]}])
def test_playlists_of_another_form(tmp_path, fields):
    other = PLAYLIST | {"playlist_id": "q"}
    data.write_jsonl(tmp_path / "playlists.jsonl", [PLAYLIST, other | fields])
    with pytest.raises(SystemExit, match=r"playlists\.jsonl:2: (a playlist needs|track_id .* not)"):
        data.load_playlists(tmp_path, ROW_OF)


@pytest.mark.parametrize("fields, message", [
    ({"dialogue_id": 5}, "needs a dialogue_id"), ({"dialogue_id": ["d"]}, "needs a dialogue_id"),
    ({"dialogue_id": " "}, "needs a dialogue_id"), ({"turns": {"a": 1}}, "at least one turn"),
    ({"playlist_id": ["p"]}, "playlist_id must be"), ({"meta": []}, "meta a JSON object")])
def test_dialogues_of_another_form(tmp_path, fields, message):
    path = tmp_path / "dialogues_test.jsonl"
    data.write_jsonl(path, [make_dialogues(1, 2)[0] | fields])
    with pytest.raises(SystemExit, match=rf"test\.jsonl:1: .*{message}.* Mend the line"):
        data.load_dialogues(path, ROW_OF)


@pytest.mark.parametrize("turn, message", [
    (5, " is no JSON object"), ("hi", " is no JSON object"), (None, " is no JSON object"),
    ({"query": 5}, " has no query"), ({"music": ["t0"]}, ": music is"),
    ({"music": 0}, ": music is"), ({"music": {"id": "t0"}}, ": music is"),
    ({"targets": None}, ": targets is null"), ({"targets": "t0"}, ": targets is"),
    ({"targets": [["t0"]]}, " names track_id"),
    ({"targets": [None]}, " names track_id"), ({"response": 5}, ": response is 5; a string, or"),
    ({"rejected": "false"}, ': rejected is "false"; true or false'),
    ({"rejected": None}, ": rejected is null"), ({"kind": ["tags"]}, ": kind is")])
def test_turns_of_another_form(tmp_path, turn, message):
    dialogue = make_dialogues(1, 2)[0]
    if isinstance(turn, dict):
        turn = dialogue["turns"][1] | turn
    dialogue["turns"][1] = turn
    path = tmp_path / "dialogues_test.jsonl"
    data.write_jsonl(path, [dialogue])
    with pytest.raises(SystemExit, match=rf"test\.jsonl:1: turn 2{message}.* Mend the line"):
        data.load_dialogues(path, ROW_OF)
