"""00_prepare_data.py cpcd: conversations in the dataset's form, made up here, and the real file."""

import importlib
import json
import sys
from pathlib import Path

import pytest
from conftest import REAL

from common import data

ROOT = Path(__file__).resolve().parent.parent
prepare = importlib.import_module("00_prepare_data")


def described(track_id, **more):
    return {"track_ids": track_id, "track_titles": f"Song {track_id}",
            "track_artists": ["Band A", "Singer B"],
            "track_release_titles": f"Album  {track_id[0]}"} | more


def turn(query, liked=(), disliked=(), found=(), response="Here you are."):
    return {"user_query": query, "system_response": response, "search_queries": ["x"] * bool(found),
            "search_results": [list(found)] if found else [], "liked_results": list(liked),
            "disliked_results": list(disliked)}


def conversation(i):
    """Three turns: talk; a0 (in all) and a track of its own are liked, one is disliked."""
    own, bad = f"own{i}", f"bad{i}"
    return {"id": f"c{i}", "turns": [turn("Hello, something for a party?", response=""),
                                     turn(f"Play own{i}", [own, "a0"], [bad],
                                          [own, "a0", bad, f"found{i}"]),
                                     turn("None of these, please.", found=["found"])],
            "tracks": {t: described(t) for t in ("a0", own, bad)}, "goal_playlist": ["a0", own]}


def write(path, conversations):
    lines = [c if isinstance(c, str) else json.dumps(c) for c in conversations]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def run_cpcd(tmp_path, conversations, *flags):
    path = write(tmp_path / "talk.jsonl", conversations)
    prepare.main(["cpcd", "--cpcd-file", str(path), "--data-dir", str(tmp_path / "out"),
                  *map(str, flags)])
    return read(tmp_path / "out")


def read(folder):
    """tracks, playlists, {split: dialogues} as the later scripts see them."""
    tracks = data.load_tracks(folder)
    row_of = {t["track_id"]: i for i, t in enumerate(tracks)}
    dialogues = {split: data.load_dialogues(folder / f"dialogues_{split}.jsonl", row_of)
                 for split in data.SPLITS}
    return tracks, data.load_playlists(folder, row_of), dialogues


SIZES = ("--n-valid", 3, "--n-test", 2)


def test_what_becomes_of_a_conversation(tmp_path, capsys):
    tracks, playlists, dialogues = run_cpcd(tmp_path, [conversation(i) for i in range(10)], *SIZES)
    assert tracks[1] == dict.fromkeys(data.TRACK_FIELDS) | {
        "track_id": "own0", "title": "Song own0", "artist": "Band A, Singer B", "album": "Album o",
        "tags": []}
    # disliked ones are in the pool
    assert [t["track_id"] for t in tracks[:4]] == ["a0", "own0", "bad0", "own1"]
    assert len(tracks) == 21
    found = {d["dialogue_id"]: d for split in dialogues.values() for d in split}
    nothing = {"music": None, "targets": [], "rejected": False, "kind": None}
    assert found["c4"] == {
        "dialogue_id": "c4", "playlist_id": "c4", "meta": {"backend": "cpcd"}, "turns": [
            nothing | {"query": "Hello, something for a party?", "response": None},
            nothing | {"query": "Play own4", "music": "own4", "response": "Here you are.",
                       "targets": ["own4", "a0"]},
            nothing | {"query": "None of these, please.", "response": "Here you are."}]}
    assert playlists[4]["track_ids"] == ["a0", "own4"]
    assert playlists[4]["title"] is None
    assert playlists[4]["modified_at"] is None
    out = capsys.readouterr().out
    # 5 training conversations: a0 and 5 of their own are warm; the other 5 and all 10 disliked
    # ones are cold
    assert "candidate pool: 21 tracks, 6 warm and 15 cold" in out
    assert ("left out: 11 tracks that a search found and nobody rated, without title, artist and "
            "album (talk.jsonl:1 (found0); ") in out
    lines = {line.split()[0]: line.split()[1:] for line in out.splitlines()
             if line.split()[:1] in ([s] for s in ("train", "all"))}
    assert lines == {"train": ["5", "15", "5", "10"], "all": ["10", "30", "10", "20"]}
    assert "21 tracks: title of 21, artist of 21, album of 21" in out
    assert "leave out 03_synthesize.py" in out
    assert "python 01_extract_embeddings.py --data-dir" in out


def test_split_is_by_conversation_and_by_seed(tmp_path):
    conversations = [conversation(i) for i in range(30)]
    splits = []
    for seed in (0, 1):
        _, playlists, dialogues = run_cpcd(tmp_path, conversations, *SIZES, "--seed", seed,
                                           "--no-resume")
        assert [len(dialogues[s]) for s in data.SPLITS] == [25, 3, 2]
        of_playlist = {p["playlist_id"]: p["split"] for p in playlists}
        assert of_playlist == {d["playlist_id"]: s for s in data.SPLITS for d in dialogues[s]}
        splits.append(of_playlist)
    assert splits[0] != splits[1]
    _, playlists, _ = run_cpcd(tmp_path, conversations, *SIZES, "--no-resume")
    assert {p["playlist_id"]: p["split"] for p in playlists} == splits[0]


def test_what_cannot_be_used_is_counted_with_its_line(tmp_path, capsys):
    conversations = [conversation(i) for i in range(12)]
    # its likes are no targets: nobody asked for them
    conversations[1]["turns"][1]["user_query"] = " \n"
    for t in conversations[2]["turns"]:
        t["user_query"] = None
    conversations[3]["turns"][1]["liked_results"] = ["own3", "nameless", "own3", 7]
    conversations[3]["tracks"]["nameless"] = described(
        "nameless", track_titles="", track_artists=[""], track_release_titles=None)
    conversations[4]["goal_playlist"], conversations[4]["turns"][1] = [], turn("Anything else?")
    conversations[5]["tracks"]["a0"]["track_titles"] = "Another song"
    conversations[6]["tracks"]["own6"] |= {"track_artists": None, "track_release_titles": " "}
    conversations += [conversation(0), "{", "[1]", {"id": "c20"}, {"id": "c21", "turns": ["x"]}]
    tracks, playlists, dialogues = run_cpcd(tmp_path, conversations, *SIZES)
    found = {d["dialogue_id"]: d for split in dialogues.values() for d in split}
    assert set(found) == {f"c{i}" for i in range(12)} - {"c2"}
    assert [len(found[c]["turns"]) for c in ("c0", "c1")] == [3, 2]
    assert found["c3"]["turns"][1]["targets"] == ["own3"] and found["c4"]["playlist_id"] is None
    assert "c4" not in [p["playlist_id"] for p in playlists] and len(playlists) == 10
    by_id = {t["track_id"]: t for t in tracks}
    assert by_id["a0"]["title"] == "Song a0" and "nameless" not in by_id
    assert [by_id["own6"][f] for f in ("title", "artist", "album")] == ["Song own6", None, None]
    out = capsys.readouterr().out
    for line in ("1 conversations with the id of an earlier one (talk.jsonl:13)",
                 "3 lines that are not a JSON object with id and turns (talk.jsonl:14; "
                 "talk.jsonl:15; talk.jsonl:16)",
                 "5 turns without a query (talk.jsonl:2, turn 2; talk.jsonl:3, turn 1; "
                 "talk.jsonl:3, turn 2; ...)",
                 "2 conversations without a query (talk.jsonl:3; talk.jsonl:17)",
                 "1 liked or disliked tracks without title, artist and album (talk.jsonl:4 "
                 "(nameless))",
                 "1 descriptions of a track that differ from its first one (talk.jsonl:6 (a0))"):
        assert f"left out: {line}\n" in out
    record = json.loads((tmp_path / "out/runs/00_prepare_data.json").read_text())
    assert record["left_out"]["turns without a query"]["count"] == 5
    assert record["dialogues"][3]["dialogues"] == 11


@pytest.mark.parametrize("flags, message", [
    (("--n-test", 0), "--n-test 0: 1 or more is accepted"),
    (("--n-test", 8), "10 conversations can be used, not more than --n-test 8 and --n-valid 3")])
def test_impossible_splits_are_refused_and_nothing_is_written(tmp_path, flags, message):
    with pytest.raises(SystemExit, match=message):
        run_cpcd(tmp_path, [conversation(i) for i in range(10)], *SIZES, *flags)
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit, match="absent.jsonl is missing; --cpcd-file takes"):
        prepare.main(["cpcd", "--cpcd-file", str(tmp_path / "absent.jsonl")])


def test_a_second_run_skips_and_a_changed_file_is_refused(tmp_path, capsys):
    conversations = [conversation(i) for i in range(10)]
    run_cpcd(tmp_path, conversations, *SIZES)
    capsys.readouterr()
    run_cpcd(tmp_path, conversations, *SIZES)
    assert capsys.readouterr().out == "00_prepare_data: already done (--no-resume does it again)\n"
    with pytest.raises(SystemExit, match=r"another argument: conversations \(was .*--no-resume"):
        run_cpcd(tmp_path, conversations[:9], *SIZES)


def test_baselines_and_06_run_on_it(tmp_path, monkeypatch):
    run_cpcd(tmp_path, [conversation(i) for i in range(12)], *SIZES)
    for script in ("baselines.popularity", "baselines.bm25", "06_evaluate"):
        monkeypatch.setattr(sys, "argv", [script, "--data-dir", str(tmp_path / "out")])
        importlib.import_module(script).main()
    lines = [line for line in (tmp_path / "out/results/metrics.csv").read_text().splitlines()
             if ",all,all,mrr," in line]
    assert {line.split(",")[0]: float(line.split(",")[4]) for line in lines} == {
        # a0 is in every goal playlist; the query names the other
        "popularity": 1.0, "bm25": pytest.approx(1.0)}


def test_the_real_file(tmp_path, capsys):
    source = REAL / "cpcd/dialogs.dev.train.jsonl"
    if not source.is_file():
        pytest.skip("no real CPCD file: set TALKPLAY_REAL to the folder that has cpcd/")
    prepare.main(["cpcd", "--cpcd-file", str(source), "--data-dir", str(tmp_path)])
    tracks, playlists, dialogues = read(tmp_path)
    lines = source.read_text(encoding="utf-8").splitlines()
    raw = {row["id"]: row for row in map(json.loads, lines)}
    assert [len(dialogues[s]) for s in data.SPLITS] == [320, 40, 40] and len(playlists) == 398
    assert {t["track_id"] for t in tracks} == {track_id for row in raw.values()
                                               for track_id in row["tracks"]}
    for dialogue in (d for split in dialogues.values() for d in split):
        turns = raw[dialogue["dialogue_id"]]["turns"]
        assert [t["targets"] for t in dialogue["turns"]] == [t["liked_results"] for t in turns]
        assert [t["query"] for t in dialogue["turns"]] == [" ".join(t["user_query"].split())
                                                           for t in turns]
    assert all(p["track_ids"] == raw[p["playlist_id"]]["goal_playlist"] for p in playlists)
    # search results that nobody rated, and nothing else
    assert capsys.readouterr().out.count("left out:") == 1
