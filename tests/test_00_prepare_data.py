"""00_prepare_data.py: MPD slices in both forms, split, filters, joins, bad input, demo, resume."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import REAL, ROOT

from common import data
from steps.prepare_data import mpd
from steps.prepare_data.demo import catalogue, render

prepare = importlib.import_module("00_prepare_data")

DAY = 86_400
NOV_1 = 1_509_494_400  # 2017-11-01, midnight GMT


# ---------------------------------------------------------------- helpers

def track(name, full=True):
    reduced = {"artist_name": f"Artist {name[0]}", "track_uri": f"spotify:track:{name}",
               "track_name": f"Song {name}"}
    more = {"pos": 0, "artist_uri": "spotify:artist:x", "album_uri": "spotify:album:y",
            "duration_ms": 200_123,
            "album_name": f"Album  {name[0]}"}
    return reduced | (more if full else {})


def playlist(pid, names, modified_at=None, **more):
    row = {"pid": pid, "name": f"List {pid}", "tracks": [track(n) for n in names]} | more
    return row if modified_at is None else row | {"modified_at": modified_at}


def write_slice(folder, playlists, first=0):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"mpd.slice.{first}-{first + 999}.json"
    path.write_text(json.dumps({"info": {}, "playlists": playlists}, indent=1))
    return path


def forty(dates=(NOV_1,)):
    """40 playlists of six tracks: a0..a4 are in all, each has one of its own; dates by turns."""
    return [playlist(i, [f"a{j}" for j in range(5)] + [f"own{i}"], dates[i % len(dates)])
            for i in range(40)]


def run_mpd(tmp_path, *flags, mpd="mpd"):
    prepare.main(["mpd", "--mpd-dir", str(tmp_path / mpd), "--data-dir", str(tmp_path / "out"),
                  *map(str, flags)])
    return read(tmp_path / "out")


def read(data_dir):
    """(tracks, playlists) as the later scripts see them."""
    tracks = data.load_tracks(data_dir)
    return tracks, data.load_playlists(data_dir, {t["track_id"]: i for i, t in enumerate(tracks)})


def bytes_of(data_dir):
    return {str(p.relative_to(data_dir)): p.read_bytes() for p in sorted(Path(data_dir).rglob("*"))
            if p.is_file() and "runs" not in p.parts}


# ---------------------------------------------------------------- schemas

def test_full_schema_fills_every_field_it_has(tmp_path):
    lists = forty()
    lists[3] |= {"name": " Rainy \n drive ", "description": "Tom&#x27;s &amp; Ann&quot;s",
                 "collaborative": "false"}
    write_slice(tmp_path / "mpd", lists)
    tracks, playlists = run_mpd(tmp_path)
    assert tracks[0] == dict.fromkeys(data.TRACK_FIELDS) | {
        "track_id": "a0", "title": "Song a0", "artist": "Artist a", "album": "Album a",
        "duration_ms": 200_123, "tags": []}
    assert playlists[3] == {"playlist_id": "3", "title": "Rainy drive",
                            "description": "Tom's & Ann\"s",
                            "modified_at": "2017-11-01", "split": playlists[3]["split"],
                            "track_ids": ["a0", "a1", "a2", "a3", "a4", "own3"]}
    assert playlists[0]["playlist_id"] == "0" and playlists[0]["description"] is None
    # rows stand in the order of first appearance
    assert [t["track_id"] for t in tracks[:7]] == ["a0", "a1", "a2", "a3", "a4", "own0", "own1"]


def test_reduced_schema_is_read_with_nulls_and_a_seeded_split(tmp_path, capsys):
    lists = [{"pid": i, "name": "x", "tracks": [track(f"t{i}x{j}", full=False) for j in range(6)]}
             for i in range(40)]
    write_slice(tmp_path / "mpd", lists)
    tracks, playlists = run_mpd(tmp_path, "--n-test", 3, "--n-valid", 2)
    assert tracks[0]["album"] is None
    assert tracks[0]["duration_ms"] is None
    assert tracks[0]["artist"] == "Artist t"
    assert {p["modified_at"] for p in playlists} == {None}
    assert [sum(p["split"] == s for p in playlists) for s in data.SPLITS] == [35, 2, 3]
    assert ("40 of 40 playlists have no modified_at: they are held out last, by a seeded draw"
            in capsys.readouterr().out)


def test_slices_are_read_by_number_not_by_name(tmp_path):
    lists = forty()
    for first in (0, 9000, 10000):
        write_slice(tmp_path / "mpd", [row | {"pid": first + row["pid"]} for row in lists[:10]],
                    first)
    _, playlists = run_mpd(tmp_path)
    assert [p["playlist_id"] for p in playlists[::10]] == ["0", "9000", "10000"]


def test_a_half_surrogate_does_not_end_in_a_traceback(tmp_path):
    write_slice(tmp_path / "mpd", [forty()[0] | {"name": "odd \ud83d"}] + forty()[1:])
    (tmp_path / "notes.jsonl").write_text('{"track_id": "a0", "lyrics": "half \\ud83d"}\n')
    tracks, playlists = run_mpd(tmp_path, "--annotations", tmp_path / "notes.jsonl")
    assert playlists[0]["title"] == "odd ?" and tracks[0]["lyrics"] == "half ?"


# ---------------------------------------------------------------- split

def split_of(days, n_test, n_valid, seed=0):
    return prepare.split_by_date(np.array(days), n_test, n_valid, seed)


def test_test_is_the_last_date_and_valid_the_date_before():
    days = [10] * 20 + [11] * 20 + [12] * 20
    split = split_of(days, 5, 7)
    assert (split[:20] == prepare.TRAIN).all()
    assert (split[20:40] == prepare.VALID).sum() == 7 and (split == prepare.VALID).sum() == 7
    assert (split[40:] == prepare.TEST).sum() == 5 and (split == prepare.TEST).sum() == 5


def test_valid_goes_on_to_the_rest_of_the_last_date_and_then_to_earlier_ones():
    days = [9] * 20 + [10] * 20 + [11] * 2 + [12] * 8
    split = split_of(days, 5, 9)  # 2 of day 11, the 3 that test left of day 12, 4 of day 10
    counts = [(days == prepare.VALID).sum() for days in np.split(split, [20, 40, 42])]
    assert counts == [0, 4, 2, 3]


def test_a_short_last_date_hands_test_on_to_the_date_before():
    days = [9] * 20 + [10] * 20 + [11] * 20 + [12] * 2
    split = split_of(days, 6, 5)
    assert (split[60:] == prepare.TEST).all() and (split[40:60] == prepare.TEST).sum() == 4
    assert (split[20:40] == prepare.VALID).sum() == 5  # the date before all of test's


def test_undated_playlists_are_held_out_last():
    days = [prepare.NO_DATE] * 20 + [12] * 4
    split = split_of(days, 3, 3)
    assert (split[20:] != prepare.TRAIN).all() and (split[:20] == prepare.VALID).sum() == 2


def test_split_depends_on_the_seed_alone():
    days = [12] * 100
    assert (split_of(days, 10, 10, 1) == split_of(days, 10, 10, 1)).all()
    assert (split_of(days, 10, 10, 1) != split_of(days, 10, 10, 2)).any()


def test_dates_of_the_files_and_the_cut_to_a_tenth(tmp_path, capsys):
    write_slice(tmp_path / "mpd", forty(dates=(NOV_1, NOV_1 - DAY, NOV_1 - 2 * DAY)))
    _, playlists = run_mpd(tmp_path, "--n-test", 1000, "--n-valid", 2)
    held = [(p["split"], p["modified_at"]) for p in playlists if p["split"] != "train"]
    assert sorted(held) == [("test", "2017-11-01")] * 4 + [("valid", "2017-10-31")] * 2
    out = capsys.readouterr().out
    assert "--n-test 1,000 is more than a tenth of the 40 playlists: cut to 4" in out


# ---------------------------------------------------------------- filters

def test_repeats_inside_a_playlist_are_removed_and_do_not_count_twice(tmp_path, capsys):
    lists = forty()
    lists[0]["tracks"] = [track(n) for n in ("a0", "rare", "a1", "rare", "a0", "a2", "a3", "a4")]
    write_slice(tmp_path / "mpd", lists)
    tracks, playlists = run_mpd(tmp_path, "--min-count", 2)
    # rare: twice in one playlist is once
    assert playlists[0]["track_ids"] == ["a0", "a1", "a2", "a3", "a4"]
    assert [t["track_id"] for t in tracks] == ["a0", "a1", "a2", "a3", "a4"]
    where = "mpd.slice.0-999.json: playlist 1 (pid 0), track"
    assert (f"left out: 2 repeats of a track inside its playlist ({where} 4; {where} 5)"
            in capsys.readouterr().out)


def test_min_count_and_min_length_worked_by_hand():
    # counts: a 3, b 2, c d e 1
    lists = [{"playlist_id": i, "track_ids": list(t)} for i, t in enumerate(("abc", "abd", "ae"))]
    left = mpd.filter_tracks(lists, None, 2, 2)
    assert left == [{"playlist_id": 0, "track_ids": ["a", "b"]},
                    {"playlist_id": 1, "track_ids": ["a", "b"]}]
    left = mpd.filter_tracks(lists, set("bcde"), 1, 2)  # a track that is not allowed goes
    assert left == [{"playlist_id": 0, "track_ids": ["b", "c"]},
                    {"playlist_id": 1, "track_ids": ["b", "d"]}]


def test_short_playlists_take_their_tracks_along(tmp_path, capsys):
    lists = forty()
    lists[7]["tracks"] = lists[7]["tracks"][2:]  # four tracks
    write_slice(tmp_path / "mpd", lists)
    tracks, playlists = run_mpd(tmp_path)
    assert len(playlists) == 39 and "own7" not in [t["track_id"] for t in tracks]
    out = capsys.readouterr().out
    assert "kept 39 of 40 playlists (with 5 tracks or more) and 44 of 45 tracks" in out
    tracks, playlists = run_mpd(tmp_path, "--min-length", 4, "--no-resume")
    assert len(playlists) == 40 and len(tracks) == 45


def test_table_1_worked_by_hand():
    # track 6 is in none
    lists = [("train", "012"), ("train", "13"), ("valid", "04"), ("test", "245")]
    rows = prepare.table_1([{"split": split, "track_ids": list(ids)} for split, ids in lists], 7)
    assert rows == [
        {"split": "train", "playlists": 2, "mean_length": 2.5, "tracks": 4, "warm": 4, "cold": 0},
        {"split": "valid", "playlists": 1, "mean_length": 2.0, "tracks": 2, "warm": 1, "cold": 1},
        {"split": "test", "playlists": 1, "mean_length": 3.0, "tracks": 3, "warm": 1, "cold": 2},
        {"split": "all", "playlists": 4, "mean_length": 2.5, "tracks": 6, "warm": 4, "cold": 2},
        {"split": "pool", "tracks": 7, "warm": 4, "cold": 3}]


def test_the_table_is_printed_and_kept(tmp_path, capsys):
    write_slice(tmp_path / "mpd", forty())
    run_mpd(tmp_path, "--n-test", 4, "--n-valid", 4)
    out = capsys.readouterr().out
    # 32 training playlists with 5 shared tracks and 32 own ones; the other 8 own ones are cold
    assert "candidate pool: 45 tracks, 37 warm and 8 cold" in out
    assert out.strip().endswith("next: python 01_extract_embeddings.py --data-dir "
                                f"{tmp_path / 'out'}")
    run = json.loads((tmp_path / "out/runs/00_prepare_data.json").read_text())
    assert run["state"] == "finished" and run["table_1"][2]["cold"] == 4


# ---------------------------------------------------------------- annotations and audio

def test_annotations_are_mapped_and_laid_over(tmp_path, capsys):
    write_slice(tmp_path / "mpd", forty())
    lines = [{"track_id": "a0", "tags": ["indie"], "year": 2002, "tempo": 120.5, "key": "C minor",
              "decade": "00s"},
             {"track_id": "a1", "tags": ["rock"], "decade": "80s", "mood_vector": [1]},
             {"track_id": "a2", "decade": "10s", "lyrics": "la la", "release_date": None},
             {"track_id": "a3", "tags": "rock, pop", "tempo": "fast", "year": 0, "key": "D major"},
             {"track_id": "a0", "key": "E major"},
             {"track_id": "unknown", "key": "E major"}]
    text = "\n".join(json.dumps(line) for line in lines) + '\n\n{"track_id": "a4", "ke\n[1]\n'
    (tmp_path / "notes.jsonl").write_text(text)
    tracks, _ = run_mpd(tmp_path, "--annotations", tmp_path / "notes.jsonl")
    fields = ("tags", "release_date", "tempo", "key", "lyrics")
    assert [tuple(t[f] for f in fields) for t in tracks[:5]] == [
        (["indie"], "2002", 120.5, "C minor", None), (["rock", "80s"], None, None, None, None),
        (["10s"], None, None, None, "la la"), ([], None, None, "D major", None),
        ([], None, None, None, None)]
    out = capsys.readouterr().out
    assert "4 of 45 tracks (tags 3, tempo 1, key 2, release_date 1, lyrics 1)" in out
    assert "1 annotated values of tempo that are of the wrong type (notes.jsonl:4)" in out
    assert "1 annotated values of year" in out and "1 annotated values of tags" in out
    assert "1 annotation lines with the track_id of an earlier one (notes.jsonl:5)" in out
    assert ("2 annotation lines that are not a JSON object with a track_id (notes.jsonl:8; "
            "notes.jsonl:9)") in out
    written = (tmp_path / "out/annotations/notes.jsonl").read_text()
    assert "unknown" not in written and "year" not in written and "mood_vector" not in written


def test_annotations_of_another_catalogue_are_refused(tmp_path):
    write_slice(tmp_path / "mpd", forty())
    (tmp_path / "notes.jsonl").write_text('{"track_id": "zz", "key": "C major"}\n')
    with pytest.raises(SystemExit,
                       match="notes.jsonl: no line has a field for a track of this "):
        run_mpd(tmp_path, "--annotations", tmp_path / "notes.jsonl")
    with pytest.raises(SystemExit, match="absent.jsonl is missing"):
        run_mpd(tmp_path, "--annotations", tmp_path / "absent.jsonl")
    (tmp_path / "b").mkdir()
    (tmp_path / "b/notes.jsonl").write_text("")
    with pytest.raises(SystemExit, match="would both become annotations/notes.jsonl"):
        run_mpd(tmp_path, "--annotations", tmp_path / "notes.jsonl", tmp_path / "b/notes.jsonl")
    assert not (tmp_path / "out").exists()


def test_annotations_of_an_earlier_run_do_not_stay_behind(tmp_path):
    write_slice(tmp_path / "mpd", forty())
    (tmp_path / "notes.jsonl").write_text('{"track_id": "a0", "key": "C major"}\n')
    assert run_mpd(tmp_path, "--annotations", tmp_path / "notes.jsonl")[0][0]["key"] == "C major"
    (tmp_path / "out/annotations/by_hand.jsonl").write_text('{"track_id": "a1", "key": "D '
                                                            'major"}\n')
    tracks, _ = run_mpd(tmp_path, "--no-resume")
    # only its own file is removed
    assert tracks[0]["key"] is None
    assert tracks[1]["key"] == "D major"


def make_audio(folder):
    for name in ("a0.mp3", "nest/a1.FLAC", "nest/deep/a2.ogg", "a3.wav", "a4.mp3", "zz.mp3",
                 "own1.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"" if name == "a4.mp3" else b"sound")
    (folder / "nest" / "a0.wav").write_bytes(b"sound")


def test_audio_is_found_by_id_and_relative_to_the_data_dir(tmp_path, capsys):
    write_slice(tmp_path / "mpd", forty())
    make_audio(tmp_path / "clips")
    (tmp_path / "clips" / "a5.mp3").symlink_to("gone.mp3")
    (tmp_path / "elsewhere/deep").mkdir(parents=True)
    (tmp_path / "out").symlink_to(tmp_path / "elsewhere/deep")  # ".." of a link is not its parent
    tracks, _ = run_mpd(tmp_path, "--audio-dir", tmp_path / "clips")
    assert [t["audio_path"] for t in tracks[:6]] == ["../../clips/a0.mp3",
                                                     "../../clips/nest/a1.FLAC",
                                                     "../../clips/nest/deep/a2.ogg",
                                                     "../../clips/a3.wav", None, None]
    assert (tmp_path / "out" / tracks[2]["audio_path"]).is_file()
    out = capsys.readouterr().out
    assert "1 audio files that are not there: links to nothing" in out
    assert "1 empty audio files" in out and "1 audio files of a track that has one already" in out


def test_require_audio_leaves_only_tracks_with_a_file(tmp_path):
    write_slice(tmp_path / "mpd", forty())
    make_audio(tmp_path / "clips")
    tracks, playlists = run_mpd(tmp_path, "--audio-dir", tmp_path / "clips", "--require-audio",
                                "--min-length", 4)
    assert [t["track_id"] for t in tracks] == ["a0", "a1", "a2", "a3"] and len(playlists) == 40
    with pytest.raises(SystemExit, match="--require-audio needs --audio-dir"):
        run_mpd(tmp_path, "--require-audio")
    (tmp_path / "none").mkdir()
    with pytest.raises(SystemExit, match="none: no audio in it"):
        run_mpd(tmp_path, "--audio-dir", tmp_path / "none")


# ---------------------------------------------------------------- bad input

def test_bad_parts_are_counted_named_and_left_out(tmp_path, capsys):
    lists = forty()
    lists[1]["tracks"][0] = {"track_name": "no uri"}
    lists[1]["tracks"].append("not a track")
    lists[2]["tracks"].append(track("a9") | {"track_uri": "spotify:local:My:File:1"})
    lists[3] |= {"modified_at": "yesterday"}
    lists += [playlist(40, []), {"pid": 41, "name": "x"}, playlist(5, ["a0"] * 6),
              {"name": "no pid", "tracks": []},
              "not a playlist", playlist(42, ["a0", "a1"])]
    folder = tmp_path / "mpd"
    write_slice(folder, lists)
    (folder / "mpd.slice.1000-1999.json").write_text('{"playlists": [\n{"pid": 1000, "tra')
    (folder / "mpd.slice.2000-2999.json").write_text('{"info": {}}')
    (folder / "mpd.slice.3000-3999.json").write_bytes(b'{"playlists": ["\xff"]}')
    (folder / "mpd.slice.4000-4999.json").write_text('[]')
    _, playlists = run_mpd(tmp_path)
    assert [p["playlist_id"] for p in playlists] == [str(i) for i in range(40)]
    assert playlists[1]["track_ids"] == ["a1", "a2", "a3", "a4", "own1"]
    assert playlists[3]["modified_at"] is None
    out = capsys.readouterr().out
    first = "mpd.slice.0-999.json: playlist"
    for line in (f"3 tracks without a spotify:track: uri ({first} 2 (pid 1), track 1; {first} 2 "
                 "(pid 1), track 7; "
                 f"{first} 3 (pid 2), track 7)",
                 f"1 dates that are not epoch seconds ({first} 4 (pid 3))",
                 f"2 playlists without tracks ({first} 41 (pid 40); {first} 42 (pid 41))",
                 f"1 playlists with the pid of an earlier one ({first} 43 (pid 5))",
                 f"2 playlists without a pid ({first} 44; {first} 45)",
                 "2 slices that are not JSON in UTF-8 (mpd.slice.1000-1999.json: Unterminated "
                 "string starting at: line 2 column 15 (char 30); mpd.slice.3000-3999.json: "
                 "'utf-8' codec can't decode byte 0xff in position 16: invalid start byte)",
                 "2 slices without a list of playlists (mpd.slice.2000-2999.json; "
                 "mpd.slice.4000-4999.json)"):
        assert f"left out: {line}\n" in out
    assert "kept 40 of 41 playlists" in out


@pytest.mark.parametrize("content", ['{"playlists": []}', "{",
                                     json.dumps({"playlists": forty()[:9]})])
def test_too_little_is_refused_and_nothing_is_overwritten(tmp_path, content):
    write_slice(tmp_path / "mpd", forty())
    run_mpd(tmp_path)
    before = bytes_of(tmp_path / "out")
    record = (tmp_path / "out/runs/00_prepare_data.json").read_bytes()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/mpd.slice.0-999.json").write_text(content)
    with pytest.raises(SystemExit, match=r"bad: \d playlists are left; a split needs at least 10"):
        run_mpd(tmp_path, "--no-resume", mpd="bad")
    assert bytes_of(tmp_path / "out") == before
    assert (tmp_path / "out/runs/00_prepare_data.json").read_bytes() == record


def test_an_empty_folder_and_senseless_flags_are_refused(tmp_path):
    (tmp_path / "mpd").mkdir()
    with pytest.raises(SystemExit, match="no mpd.slice"):
        run_mpd(tmp_path)
    for flag, value in (("--min-count", 0), ("--min-length", 0), ("--n-test", -1),
                        ("--n-valid", -1)):
        with pytest.raises(SystemExit, match=f"{flag} {value}: [01] or more is accepted"):
            run_mpd(tmp_path, flag, value)
    for flag, value, least in (("--workers", "0", 1), ("--n-tracks", "39", 40),
                               ("--n-playlists", "19", 20)):
        with pytest.raises(SystemExit, match=f"{flag} {value}: {least} or more is accepted"):
            prepare.main(["demo", flag, value, "--data-dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- runs

def test_same_input_and_seed_give_the_same_bytes(tmp_path):
    write_slice(tmp_path / "mpd", forty())
    run_mpd(tmp_path, "--n-test", 4)
    first = bytes_of(tmp_path / "out")
    run_mpd(tmp_path, "--n-test", 4, "--no-resume")
    assert bytes_of(tmp_path / "out") == first
    run_mpd(tmp_path, "--n-test", 4, "--seed", 1, "--no-resume")
    assert bytes_of(tmp_path / "out") != first


def test_a_finished_run_is_skipped_and_a_changed_one_refused(tmp_path, capsys):
    path = write_slice(tmp_path / "mpd", forty())
    run_mpd(tmp_path)
    capsys.readouterr()
    run_mpd(tmp_path)
    assert capsys.readouterr().out == "00_prepare_data: already done (--no-resume does it again)\n"
    with pytest.raises(SystemExit, match=r"min_count \(was 1, is 2\)"):
        run_mpd(tmp_path, "--min-count", 2)
    path.write_text(path.read_text() + "\n")
    with pytest.raises(SystemExit, match="another argument: slices"):
        run_mpd(tmp_path)
    (tmp_path / "out/tracks.jsonl").write_text("")
    run_mpd(tmp_path, "--no-resume")  # reads the changed slice, mends the damage
    assert len(read(tmp_path / "out")[0]) == 45


@pytest.mark.parametrize("flags", ["demo", "mpd --mpd-dir x", "cpcd --cpcd-file x",
                                   "talkplaydata --parts x"])
def test_each_source_has_a_folder_of_its_own(flags):
    source = flags.split()[0]
    assert prepare.parse_args(flags.split()).data_dir == Path(f"data/{source}")
    assert prepare.parse_args([*flags.split(), "--data-dir", "elsewhere"]).data_dir == \
        Path("elsewhere")


def test_a_lost_output_is_made_again(tmp_path):
    write_slice(tmp_path / "mpd", forty())
    run_mpd(tmp_path)
    before = bytes_of(tmp_path / "out")
    (tmp_path / "out/playlists.jsonl").unlink()
    run_mpd(tmp_path)
    assert bytes_of(tmp_path / "out") == before


# ---------------------------------------------------------------- demo

FAKE = '''
import os, sys, time
from common.data import TRACK_FIELDS
from steps.prepare_data.demo import catalogue, render

def make_catalogue(n_tracks, n_playlists, seed):
    n_tracks, n_playlists = 12, 9  # fewer than the flags accept
    tracks = [dict.fromkeys(TRACK_FIELDS)
              | {"track_id": f"t{i}", "title": f"Song {i} of {seed}", "tags": [],
                 "audio_path": f"audio/t{i}.flac", "audio": {"i": i, "seed": seed}}
              for i in range(n_tracks)]
    playlists = [{"playlist_id": f"p{i}", "title": "x", "modified_at": "2025-01-01",
                  "split": ("train", "valid", "test")[i % 3], "track_ids": [f"t{i}", f"t{i + 1}"]}
                 for i in range(n_playlists)]
    return tracks, playlists

def render_track(audio):
    return f"sound {audio['i']} {audio['seed']}"

def write_audio(path, samples, rate):
    with open(f"{path}.tmp", "w") as f:
        f.write(f"{samples} {rate}")
    os.replace(f"{path}.tmp", path)
'''


@pytest.fixture
def fake(monkeypatch):
    """Put in a small catalogue and a renderer of texts; returns the list of what was rendered."""
    fakes, rendered = {}, []
    exec(FAKE, fakes)

    def render_track(audio):
        rendered.append(audio["i"])
        return fakes["render_track"](audio)

    monkeypatch.setattr(catalogue, "make_catalogue", fakes["make_catalogue"])
    monkeypatch.setattr(render, "render_track", render_track)
    monkeypatch.setattr(render, "write_audio", fakes["write_audio"])
    return rendered


def run_demo(tmp_path, *flags):
    prepare.main(["demo", "--workers", "1", "--data-dir", str(tmp_path / "out"), *map(str, flags)])


def test_demo_writes_catalogue_playlists_and_audio(tmp_path, fake, capsys):
    run_demo(tmp_path)
    tracks, playlists = read(tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out/tracks.jsonl").read_text().splitlines()]
    assert all(tuple(line) == data.TRACK_FIELDS for line in lines)  # every field, and no "audio"
    assert tracks[3]["audio_path"] == "audio/t3.flac" and len(playlists) == 9
    assert (tmp_path / "out/audio/t3.flac").read_text() == "sound 3 0 22050"
    # train: p0 p3 p6 with t0 t1 t3 t4 t6 t7; the other six are cold
    assert "candidate pool: 12 tracks, 6 warm and 6 cold" in capsys.readouterr().out
    run_demo(tmp_path)
    assert capsys.readouterr().out == "00_prepare_data: already done (--no-resume does it again)\n"


def test_demo_renders_a_lost_file_only(tmp_path, fake):
    run_demo(tmp_path)
    (tmp_path / "out/audio/t5.flac").unlink()
    fake.clear()
    run_demo(tmp_path)
    assert fake == [5] and (tmp_path / "out/audio/t5.flac").read_text() == "sound 5 0 22050"


def test_demo_of_another_seed_never_keeps_old_audio(tmp_path, fake):
    run_demo(tmp_path)
    with pytest.raises(SystemExit, match=r"seed \(was 0, is 1\)"):
        run_demo(tmp_path, "--seed", 1)
    assert (tmp_path / "out/audio/t5.flac").read_text() == "sound 5 0 22050"
    run_demo(tmp_path, "--seed", 1, "--no-resume")
    assert (tmp_path / "out/audio/t5.flac").read_text() == "sound 5 1 22050"


def kill_half_way(tmp_path, workers):
    """Start a demo run that hangs at its sixth track and kill its main process there."""
    script = tmp_path / "hangs.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})" + FAKE + '''
def hang(audio):
    if audio["i"] == 5:
        print("here", flush=True)
        time.sleep(60)
    return render_track(audio)

catalogue.make_catalogue = make_catalogue
render.render_track = hang
render.write_audio = write_audio
import importlib, multiprocessing
multiprocessing.set_start_method("fork")  # so that workers have the fakes too
importlib.import_module("00_prepare_data").main(sys.argv[1:])
''')
    command = [sys.executable, str(script), "demo", "--workers", workers,
               "--data-dir", str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout.readline() == b"here\n"
    process.kill()
    return process


def test_a_killed_demo_goes_on_and_ends_in_the_same_bytes(tmp_path, fake):
    kill_half_way(tmp_path, workers="1").communicate(timeout=20)
    assert not (tmp_path / "out/tracks.jsonl").exists()
    assert sorted(p.name for p in (tmp_path / "out/audio").iterdir()) == [f"t{i}.flac"
            for i in range(5)]
    run_demo(tmp_path)
    assert fake == [5, 6, 7, 8, 9, 10, 11]  # what was there is not rendered again
    (tmp_path / "whole").mkdir()
    run_demo(tmp_path / "whole")
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "whole/out")


def test_workers_end_with_the_main_process(tmp_path):
    # the pipe comes to its end when the last process that holds it is gone
    kill_half_way(tmp_path, workers="2").communicate(timeout=20)


def test_the_real_catalogue_is_the_same_for_any_number_of_workers(tmp_path):
    for workers in ("1", "2"):
        prepare.main(["demo", "--n-tracks", "40", "--n-playlists", "20", "--workers", workers,
                      "--data-dir", str(tmp_path / workers)])
    assert bytes_of(tmp_path / "1") == bytes_of(tmp_path / "2")
    tracks, playlists = read(tmp_path / "1")
    samples, rate = soundfile.read(tmp_path / "1" / tracks[0]["audio_path"])
    assert rate == 22_050 and samples.ndim == 1 and np.abs(samples).max() > 0.01
    assert len(tracks) == 40 and {p["split"] for p in playlists} == set(data.SPLITS)


# ---------------------------------------------------------------- real slices

def test_a_real_slice(tmp_path, capsys):
    source = REAL / "mpd/mpd.slice.0-999.json"
    if not source.is_file():
        pytest.skip("no real MPD slice: set TALKPLAY_REAL to the folder that has mpd/")
    (tmp_path / "mpd").mkdir()
    (tmp_path / "mpd" / source.name).symlink_to(source.resolve())
    tracks, playlists = run_mpd(tmp_path, "--annotations", REAL / "track_annotations.jsonl",
                                "--min-count", 5)
    raw = json.loads(source.read_text())["playlists"]
    containing = {}
    for p in raw:
        for track_id in {t["track_uri"].split(":")[2] for t in p["tracks"]}:
            containing[track_id] = containing.get(track_id, 0) + 1
    assert all(containing[t["track_id"]] >= 5 for t in tracks)
    by_pid = {str(p["pid"]): p for p in raw}
    for p in playlists:
        expected = dict.fromkeys(t["track_uri"].split(":")[2]
                                 for t in by_pid[p["playlist_id"]]["tracks"])
        assert p["track_ids"] == [t for t in expected if containing[t] >= 5]
        assert len(p["track_ids"]) >= 5
    assert sum(p["split"] == "test" for p in playlists) == len(playlists) // 10
    assert sum(bool(t["tags"]) for t in tracks) > len(tracks) / 2


def test_a_real_slice_with_every_field(tmp_path):
    source = REAL / "mpd_full_schema"
    if not source.is_dir():
        pytest.skip("no real MPD slice with every field: set TALKPLAY_REAL to the folder that has "
                    "mpd_full_schema/")
    prepare.main(["mpd", "--mpd-dir", str(source), "--data-dir", str(tmp_path)])
    tracks, playlists = read(tmp_path)
    assert all(t["album"] and t["duration_ms"] for t in tracks)
    assert [sum(p["split"] == s for p in playlists) for s in data.SPLITS] == [31, 3, 3]
    last = sorted((p["modified_at"] for p in playlists), reverse=True)[:6]
    assert sorted(p["modified_at"] for p in playlists if p["split"] == "test") == sorted(last[:3])


@pytest.mark.parametrize("field, value, form", [
    ("tempo", "120", "a number, 0 or more"), ("tags", "jazz", "a list of strings"),
    ("tags", [1], "a list of strings"), ("title", 7, "a string"),
    ("release_date", 1984, "YYYY-MM-DD or YYYY"),
    ("release_date", "May 1984", "YYYY-MM-DD or YYYY"), ("key", "5A", "as in G# minor"),
    ("popularity", True, "0 or more"), ("tempo", -3, "0 or more"),
    ("duration_ms", float("nan"), "0 or more")])
def test_fields_of_another_form_are_named(tmp_path, field, value, form):
    """In the catalogue, and in what is laid over it; null is accepted."""
    good = {"track_id": "a", "title": "A", "tags": ["jazz"], "tempo": 120, "key": "G# minor",
            "release_date": "1984", field: None}
    data.write_jsonl(tmp_path / "tracks.jsonl", [good, good | {"track_id": "b", field: value}])
    with pytest.raises(SystemExit,
                       match=rf"tracks\.jsonl:2: {field} is .*; .*{form} is expected, or null"):
        data.load_tracks(tmp_path)
    data.write_jsonl(tmp_path / "tracks.jsonl", [good])
    assert data.load_tracks(tmp_path)[0][field] == ([] if field == "tags" else None)
    data.write_jsonl(tmp_path / "annotations" / "more.jsonl", [{"track_id": "a", field: value}])
    with pytest.raises(SystemExit, match=rf"more\.jsonl:1: {field} is "):
        data.load_tracks(tmp_path)
