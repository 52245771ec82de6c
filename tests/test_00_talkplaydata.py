"""00_prepare_data.py talkplaydata: small files of the published schemas with all their traps, made
here, and the scripts after it."""

import csv
import importlib
import json
import sys

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from common import data
from common.tokens import MODALITIES
from steps.prepare_data import talkplaydata_files

prepare = importlib.import_module("00_prepare_data")
extract = importlib.import_module("01_extract_embeddings")
SIZES = {"cf-bpr": 6, "attributes-qwen3_embedding_0.6b": 8, "metadata-qwen3_embedding_0.6b": 8,
         "lyrics-qwen3_embedding_0.6b": 8,
         "audio-laion_clap": 5, "image-siglip2": 3}  # published: 128, 1024, 1024, 1024, 512, 768
N = 40


def track(i, **more):
    return {"track_id": f"uuid-{i}", "ISRC": [f"X{i}"], "track_name": [f"Song {i}"],
            "artist_name": [f"Band {i % 7}"], "album_name": [f"Album {i % 9}"],
            "tag_list": ["calm", f"tag{i % 4}"], "popularity": 40.0 + i,
            "release_date": "2006-12-06", "duration": 200_000 + i, "artist_id": ["a", "b"],
            "album_id": ["c"]} | more


def vectors(i, **more):
    rng = np.random.default_rng(i)
    row = {name: (3 * rng.normal(size=size)).tolist() for name, size in SIZES.items()}
    return {"track_id": f"uuid-{i}"} | row | more


def session(i, turns=8, first=None, labels=None, **more):
    """A session of the challenge set: user, music, assistant; a null label at turn 1."""
    messages, start = [], 5 * i if first is None else first
    for t in range(1, turns + 1):
        for role, content in (("user", f"Request {t} of {i},\n something calm"),
                              ("music", f"uuid-{(start + t) % N}"),
                              ("assistant", f"Answer {t} of {i}.")):
            messages.append({"turn_number": t, "role": role, "content": content,
                             "thought": "secret"})
    labels = labels or [None] + ["MOVES_TOWARD_GOAL"] * (turns - 1)
    goal = {"category": "H", "specificity": "LL", "listener_goal": "calm songs"}
    return {"session_id": f"s{i}", "user_id": f"u{i % 3}",
            "session_date": f"2011-12-{1 + i % 28:02}",
            "user_profile": {"age": 20, "user_split": "train"},
            "conversation_goal": goal, "conversations": messages,
            "goal_progress_assessments": [{"turn_number": t, "goal_progress_assessment": label}
                                          for t, label in enumerate(labels, 1)]} | more


def conversation(pid, cid, songs):
    """A row of TalkPlayData-1: user, assistant, music."""
    messages = []
    for t, song in enumerate(songs):
        messages += [{"role": "user", "content": f"Request {t}"},
                     {"role": "assistant", "content": f"Answer {t}"},
                     {"role": "music", "content": song}]
    return {"pid": pid, "cid": cid, "conversations": messages}


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text(json.dumps(rows) if path.suffix
                        == ".json" else "".join(json.dumps(row) + "\n" for row in rows))


def publish(folder, train, test, tracks=None, embeddings=None, suffix="parquet"):
    """Files as the hub has them: folders of data sets, shards, a subset of the tracks once more."""
    tracks, embeddings = tracks or [track(i) for i in range(N)], embeddings or [vectors(i)
            for i in range(N)]
    talk, of_tracks, of_vectors = (folder / name / "data"
                                   for name in ("Dataset", "Track-Metadata", "Track-Embeddings"))
    write(talk / f"train-00000-of-00001.{suffix}", train)
    write(talk / f"test-00000-of-00001.{suffix}", test)
    write(of_tracks / f"all_tracks-00000-of-00001.{suffix}", tracks)
    write(of_tracks / f"test_tracks-00000-of-00001.{suffix}", tracks[:4])
    write(of_vectors / f"all_tracks-00000-of-00002.{suffix}", embeddings[:N // 2])
    write(of_vectors / f"all_tracks-00001-of-00002.{suffix}", embeddings[N // 2:])
    return folder


def run(folder, out, *flags):
    prepare.main(["talkplaydata", "--parts", str(folder), "--data-dir", str(out), *map(str, flags)])
    return read(out)


def read(folder):
    """tracks, playlists, {split: dialogues} as the later scripts see them."""
    tracks = data.load_tracks(folder)
    row_of = {t["track_id"]: i for i, t in enumerate(tracks)}
    dialogues = {split: data.load_dialogues(folder / f"dialogues_{split}.jsonl", row_of)
                 for split in data.SPLITS}
    return tracks, data.load_playlists(folder, row_of), dialogues


def load(out, modality):
    return np.load(out / "embeddings" / f"{modality}.npy")


TRAIN, TEST = [session(i) for i in range(12)], [session(i) for i in range(20, 23)]


# ---------------------------------------------------------------- TalkPlayData-2, challenge set

def test_what_becomes_of_a_session(tmp_path, capsys):
    against = "DOES_NOT_MOVE_TOWARD_GOAL"
    test = [session(30, turns=3, first=10, labels=[None, against, "MOVES_TOWARD_GOAL"])]
    tracks, playlists, dialogues = run(publish(tmp_path / "hub", TRAIN, test), tmp_path / "out",
                                       "--n-valid", 2)
    meta = {"backend": "talkplaydata-2", "user_id": "u0", "session_date": "2011-12-03",
            "goal": test[0]["conversation_goal"]}
    turns = [{"query": f"Request {t} of 30, something calm", "music": f"uuid-{10 + t}",
              "response": f"Answer {t} of 30.", "targets": [f"uuid-{10 + t}"],
              "rejected": t == 1, "kind": None} for t in (1, 2, 3)]  # turn 2's label judges turn 1
    assert dialogues["test"] == [{"dialogue_id": "s30", "playlist_id": "s30", "meta": meta,
                                  "turns": turns}]
    assert [len(dialogues[s]) for s in data.SPLITS] == [10, 2, 1]
    assert playlists[0] == {"playlist_id": "s30", "title": None, "modified_at": "2011-12-03",
                            "split": "test",
                             "track_ids": ["uuid-11", "uuid-12", "uuid-13"]}
    assert {p["playlist_id"]: p["split"] for p in playlists} == {d["dialogue_id"]: s
            for s in data.SPLITS for d in dialogues[s]}
    assert tracks[5] == {"track_id": "uuid-5", "title": "Song 5", "artist": "Band 5",
                         "album": "Album 5", "release_date": "2006-12-06",
                         "duration_ms": 200_005, "popularity": 45.0, "tags": ["calm", "tag1"],
                         "lyrics": None, "caption": None,
                         "tempo": None, "key": None, "audio_path": None}
    assert len(tracks) == N
    out = capsys.readouterr().out
    assert ("left out: 4 rows of a track that has one already (test_tracks-00000-of-00001.parquet: "
            "row 1 (uuid-0); ") in out
    assert ("left out: 2 columns without a modality here "
            "(all_tracks-00000-of-00002.parquet, image-siglip2; ") in out
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.split()[-1:]
            and line.split()[0] in ("test", "all")
            and len(line.split()) == 6 and "." not in line}
    # 12 x 7 + 2 turns are judged
    assert rows == {"test": ["1", "3", "3", "2", "1"], "all": ["13", "99", "99", "86", "1"]}
    assert "(leave out 03_synthesize.py, which refuses to replace them)" in out
    assert "next: python 02_quantize.py --data-dir" in out
    assert "secret" not in (tmp_path / "out/dialogues_test.jsonl").read_text()


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_json_and_parquet_give_the_same(tmp_path, suffix):
    for kind in ("parquet", suffix):
        run(publish(tmp_path / kind, TRAIN, TEST, suffix=kind), tmp_path / f"out-{kind}",
            "--n-valid", 3)
    files = sorted(p.relative_to(tmp_path / "out-parquet")
                   for p in (tmp_path / "out-parquet").rglob("*.*") if p.parent.name != "runs")
    assert len(files) == 10
    for name in files:
        made = (tmp_path / f"out-{suffix}" / name).read_bytes()
        assert (tmp_path / "out-parquet" / name).read_bytes() == made, name


def test_lists_scalars_and_what_is_unknown(tmp_path, capsys):
    tracks = [track(i) for i in range(N)]
    tracks[0] |= {"track_name": ["First ", "Second"], "artist_name": ["A", "B", "A"],
                  "album_name": [], "tag_list": [],
                  "release_date": "", "duration": 0, "popularity": 0.0}
    tracks[1] |= {"track_name": "Scalar", "artist_name": None, "release_date": "2006-12",
                  "popularity": None, "duration": None}
    tracks[2] |= {"release_date": "0000", "popularity": -1.0}
    made, *_ = run(publish(tmp_path / "hub", TRAIN, TEST, tracks, suffix="jsonl"), tmp_path / "out",
                   "--n-valid", 1)
    fields = ("title", "artist", "album", "tags", "release_date", "duration_ms", "popularity")
    assert [made[0][f] for f in fields] == ["First", "A, B", None, [], None, None, 0.0]
    assert [made[1][f] for f in fields] == ["Scalar", None, "Album 1", ["calm", "tag1"], "2006",
                                            None, None]
    assert (made[2]["release_date"], made[2]["popularity"]) == (None, None)
    out, where = capsys.readouterr().out, "all_tracks-00000-of-00001.jsonl: row"
    for line in (f"1 names of a track after its first ({where} 1)",
                 f"1 values of duration that cannot be used ({where} 1: 0)",
                 f"1 values of release_date that cannot be used ({where} 3: 0000)",
                 f"1 values of popularity that cannot be used ({where} 3: -1.0)"):
        assert f"left out: {line}\n" in out


def test_embeddings_in_the_order_of_the_tracks_with_length_1_and_nan_where_missing(tmp_path,
        capsys):
    embeddings = [vectors(i) for i in range(N)]
    embeddings[3] |= {"cf-bpr": [], "lyrics-qwen3_embedding_0.6b": None}
    embeddings[4] |= {"audio-laion_clap": [0.0] * 5}
    embeddings[5] |= {"audio-laion_clap": [1.0] * 4}
    embeddings[6] |= {"metadata-qwen3_embedding_0.6b": [float("nan")] * 8}
    order = np.random.default_rng(0).permutation(N)
    # unknown to the catalogue; a second time
    shuffled = [embeddings[i] for i in order] + [vectors(99), vectors(7)]
    for row in shuffled:
        row["attributes-qwen3_embedding_0.6b"] = []  # nobody has it: no file
    run(publish(tmp_path / "hub", TRAIN, TEST, embeddings=shuffled), tmp_path / "out", "--n-valid",
        1)
    for modality, column in zip(MODALITIES, SIZES, strict=False):  # without image-siglip2
        if modality == "semantic":
            assert not (tmp_path / "out/embeddings/semantic.npy").exists()
            continue
        made = load(tmp_path / "out", modality)
        assert made.shape == (N, SIZES[column]) and made.dtype == np.float32
        missing = {"playlist": [3], "metadata": [6], "lyrics": [3], "audio": [4, 5]}[modality]
        assert np.flatnonzero(np.isnan(made).all(1)).tolist() == missing
        assert np.flatnonzero(np.isnan(made).any(1)).tolist() == missing
        raw = np.array(embeddings[8][column])
        assert made[8] == pytest.approx(raw / np.linalg.norm(raw), abs=1e-6)
    assert not list((tmp_path / "out/embeddings").glob("*.tmp"))
    out, where = capsys.readouterr().out, "all_tracks-0000"
    for line in ("2 vectors of no length, or with values that are no numbers (",
                 "1 vectors of another size than most (",
                 "4 vectors of tracks that the catalogue does not have (",
                 "4 vectors of a track that has one already ("):
        assert f"left out: {line}{where}" in out
    assert "  playlist         (40, 6)  39 tracks have it, 1 do not\n" in out


def test_json_whose_first_rows_are_odd(tmp_path, capsys):
    """A key that the first row lacks, a first vector of another size, an id that is no string.

    The vectors of the other rows stay.
    """
    embeddings = [vectors(i) for i in range(N)]
    # the first rows of both files
    del embeddings[0]["audio-laion_clap"], embeddings[N // 2]["audio-laion_clap"]
    embeddings[0]["cf-bpr"] = [1.0] * 3
    embeddings[1]["track_id"] = ["uuid-1"]
    run(publish(tmp_path / "hub", TRAIN, TEST, embeddings=embeddings, suffix="json"),
        tmp_path / "out", "--n-valid", 1)
    audio, playlist = load(tmp_path / "out", "audio"), load(tmp_path / "out", "playlist")
    assert audio.shape == (N, 5)
    assert np.flatnonzero(np.isnan(audio[:, 0])).tolist() == [0, 1, N // 2]
    assert playlist.shape == (N, 6) and np.flatnonzero(np.isnan(playlist[:, 0])).tolist() == [0, 1]
    out = capsys.readouterr().out
    assert ("1 vectors of another size than most (all_tracks-00000-of-00002.json: row "
            "1, cf-bpr)") in out
    assert ("5 vectors of tracks that the catalogue does not have "
            "(all_tracks-00000-of-00002.json: row 2, cf-bpr; ") in out


def test_odd_ids_labels_and_contents(tmp_path, capsys):
    def changed(i, change):
        row = session(i, labels=[None] + ["DOES_NOT_MOVE_TOWARD_GOAL"] * 7)
        change(row)
        return row

    odd = [changed(12, lambda row: row.update(session_id=" ")),
           changed(13, lambda row: row.update(goal_progress_assessments=[3, None])),
           changed(14, lambda row: row["goal_progress_assessments"][1].update(turn_number="2")),
           changed(15, lambda row: row["conversations"][1].update(content={"id": "uuid-1"}))]
    hub = publish(tmp_path / "hub", [*TRAIN, *odd], TEST, suffix="json")
    write(hub / "Annotations/notes.json",
          [{"track_id": ["uuid-1"], "caption": "x"},
           {"track_id": "uuid-2", "caption": "y", "key": ["Db major"]}])
    tracks, _, dialogues = run(hub, tmp_path / "out", "--n-valid", 1)
    found = {d["dialogue_id"]: d["turns"] for split in dialogues.values() for d in split}
    assert set(found) == {f"s{i}" for i in (*range(12), 13, 14, 15, 20, 21, 22)}
    assert tracks[2]["key"] == "Db major"
    assert [t["rejected"] for t in found["s14"]] == [False] + [True] * 6 + [False]
    assert found["s15"][0]["music"] is None
    assert not any(t["rejected"] for t in found["s13"])
    out, name = capsys.readouterr().out, "train-00000-of-00001.json: row"
    for line in (f"1 rows without session_id (or pid and cid) and messages ({name} 13)",
                 f"2 assessments that are no objects ({name} 14: 3; {name} 14: None)",
                 f"1 assessments with an unknown label or turn_number ({name} 15: "
                 "DOES_NOT_MOVE_TOWARD_GOAL, '2')",
                 f"1 messages of the role music whose content is no text ({name} 16, turn 1)",
                 "1 captions of tracks that the catalogue does not have (notes.json: row 1)"):
        assert f"left out: {line}\n" in out


def test_files_that_cannot_be_read(tmp_path, capsys):
    hub, out = publish(tmp_path / "hub", TRAIN, TEST), tmp_path / "out"
    path = hub / "Dataset/data/train-00000-of-00001.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[:200] + bytes(200) + whole[400:])  # the footer is whole
    with pytest.raises(SystemExit, match="train-00000-of-00001.parquet: not a whole parquet file"):
        run(hub, out, "--n-valid", 1)
    path.unlink()
    (hub / "Dataset/data/train.json").write_text(json.dumps({"data": TRAIN}))
    with pytest.raises(SystemExit, match="--parts: no train conversations"):
        run(hub, out, "--n-valid", 1)
    assert ("left out: 1 files without conversations, tracks, vectors or captions "
            "(train.json)") in capsys.readouterr().out
    (hub / "Dataset/data/test-00000-of-00001.parquet").unlink()
    with pytest.raises(SystemExit,
                       match=r"no file has conversations .* Not used: train.json, which has "
                             r"'data' \(JSON is read as one row per line, or as"):
        run(hub, out, "--n-valid", 1)
    (hub / "Dataset/data/train.json").write_text(json.dumps({"data": TRAIN}, indent=1))
    with pytest.raises(SystemExit,
                       match=r"train.json:1: not JSON .*JSON is read as one row per line, or as "
                             r"one list of rows"):
        run(hub, out, "--n-valid", 1)


def test_irregular_conversations_are_counted_with_their_row(tmp_path, capsys):
    def changed(i, change):
        row = session(i)
        change(row["conversations"])
        return row

    # a user message of turn 2 says 1
    odd = [changed(12, lambda m: m[3].update(turn_number=1)),
           # the listener says nothing
           changed(13, lambda m: m[3].update(content=" ")),
           # two tracks in a turn
           changed(14, lambda m: m.insert(2, m[1] | {"content": "uuid-0"})),
           # not in the catalogue
           changed(15, lambda m: m[1].update(content="unknown")),
           changed(16, lambda m: m.insert(0, {"role": "system", "content": "x", "turn_number": 0,
                                              "thought": ""})),
           session(3), {"session_id": None, "conversations": []},
           {"session_id": "s40", "conversations": "x"},
           session(17, labels=[None, "MAYBE"])]
    hub = publish(tmp_path / "hub", TRAIN, TEST, suffix="jsonl")
    write(hub / "Dataset/data/train-00001-of-00002.jsonl", odd)
    _, playlists, dialogues = run(hub, tmp_path / "out", "--n-valid", 1)
    found = {d["dialogue_id"]: d["turns"] for split in dialogues.values() for d in split}
    assert set(found) == {f"s{i}" for i in (*range(12), 14, 15, 16, 17, 20, 21, 22)}
    assert found["s14"][0]["music"] == "uuid-31" and len(found["s16"]) == 8
    assert (found["s15"][0]["music"], found["s15"][0]["targets"]) == (None, [])
    assert found["s15"][0]["response"] == "Answer 1 of 15."
    assert "unknown" not in {t for p in playlists for t in p["track_ids"]}
    out, name = capsys.readouterr().out, "train-00001-of-00002.jsonl: row"
    for line in (f"1 conversations whose turns are not numbered 1, 2, ... ({name} "
                 "1)",
                 f"1 conversations with a turn in which the listener says nothing ({name} 2)",
                 f"1 messages of the role music after the first one of a turn ({name} 3, turn 1)",
                 "1 tracks of turns that the catalogue does not have (the turns stay) "
                 "(s15: unknown)",
                 f"1 messages of an unknown role ({name} 5: system)",
                 f"1 conversations with the id of an earlier one ({name} 6)",
                 f"2 rows without session_id (or pid and cid) and messages ({name} 7; {name} 8)",
                 f"1 assessments with an unknown label or turn_number ({name} 9: MAYBE, 2)"):
        assert f"left out: {line}\n" in out
    record = json.loads((tmp_path / "out/runs/00_prepare_data.json").read_text())
    assert record["left_out"]["conversations with the id of an earlier one"]["count"] == 1


def test_a_blind_session_ends_with_a_turn_without_targets(tmp_path):
    blind = session(24, turns=3)
    blind["conversations"], blind["goal_progress_assessments"] = blind["conversations"][:7], []
    *_, dialogues = run(publish(tmp_path / "hub", TRAIN, [*TEST, blind]), tmp_path / "out",
                        "--n-valid", 1)
    last = dialogues["test"][-1]["turns"]
    assert len(last) == 3
    assert last[2] == {"query": "Request 3 of 24, something calm", "music": None, "response": None,
                       "targets": [],
                       "rejected": False, "kind": None}


# ---------------------------------------------------------------- TalkPlayData-1

def test_talkplaydata_1(tmp_path, capsys):
    songs = [[f"uuid-{(p + t) % N}" for t in range(3)] for p in range(12)]
    train = [conversation(str(p), f"{p}_{c}", songs[p][c:]) for p in range(10) for c in (0, 1)]
    train += [conversation("11", "11_9", songs[0])]  # of a test playlist
    test = [conversation(str(p), f"{p}_0", songs[p]) for p in (10, 11)]
    hub = tmp_path / "hub"
    write(hub / "TalkPlayData-1/data/train-00000-of-00001.parquet", train)
    write(hub / "TalkPlayData-1/data/test-00000-of-00001.parquet", test)
    write(hub / "Extra-Track-Metadata/data/train-00000-of-00001.parquet",
          [track(i) for i in range(N)])
    write(hub / "TrackDB-Pseudo-Annotation/data/train-00000-of-00001.parquet", [
        {"track_id": "uuid-1", "caption": "A slow song.", "tempo": ["92.5", "46"],
         "key": ["A# minor"], "chord": ["C"]},
        {"track_id": "uuid-2", "caption": None, "tempo": ["fast"], "key": ["H minor"],
         "chord": []}])
    write(hub / "TalkPlayData-Extra-cf-bpr/data/train-00000-of-00001.parquet",
          [{"track_id": f"uuid-{i}", "embedding": [float(i), 1.0]} for i in range(N)])
    tracks, playlists, dialogues = run(hub, tmp_path / "out", "--n-valid", 2, "--played-only")
    # 26 are never played
    assert [t["track_id"] for t in tracks] == [f"uuid-{i}" for i in range(14)]
    assert (tracks[1]["caption"], tracks[1]["tempo"], tracks[1]["key"]) == ("A slow song.", 92.5,
            "A# minor")
    assert (tracks[2]["caption"], tracks[2]["tempo"], tracks[2]["key"]) == (None, None, None)
    assert dialogues["test"][0] == {"dialogue_id": "10-10_0", "playlist_id": "10", "meta": {
        "backend": "talkplaydata-1", "pid": "10", "cid": "10_0"},
                                    "turns": [  # the answer stood before the track
        {"query": f"Request {t}", "music": f"uuid-{10 + t}", "response": f"Answer {t}",
         "targets": [f"uuid-{10 + t}"],
         "rejected": False, "kind": None} for t in range(3)]}
    # both dialogues of a validation playlist
    assert [len(dialogues[s]) for s in data.SPLITS] == [16, 4, 2]
    assert not {d["playlist_id"] for d in dialogues["train"]} & {d["playlist_id"]
            for s in ("valid", "test") for d in dialogues[s]}
    assert {p["playlist_id"]: p["track_ids"] for p in playlists}["10"] == songs[10]
    assert len(playlists) == 12
    made = load(tmp_path / "out", "playlist")  # told by the folder, since the column says nothing
    assert made.shape == (14, 2)
    assert made[3] == pytest.approx(np.array([3, 1]) / np.sqrt(10), abs=1e-6)
    out = capsys.readouterr().out
    assert ("left out: 1 dialogues of a playlist that a later split has too (11-11_9 of "
            "train)") in out
    assert "left out: 26 tracks that no dialogue plays (" in out
    assert "left out: 26 vectors of tracks that" in out
    assert ("before it, for what did not come with the data: python 01_extract_embeddings.py "
            "--data-dir") in out
    assert "--modalities semantic metadata lyrics audio\n" in out
    assert ("left out: 1 values of key that cannot be used (train-00000-of-00001.parquet: row "
            "2: H minor)") in out


def test_published_validation_is_kept(tmp_path):
    hub = publish(tmp_path / "hub", TRAIN, TEST)
    write(hub / "Dataset/data/validation-00000-of-00001.parquet", [session(25)])
    *_, dialogues = run(hub, tmp_path / "out")
    assert [[d["dialogue_id"] for d in dialogues[s]] for s in ("valid", "test")] == [["s25"],
            ["s20", "s21", "s22"]]
    assert len(dialogues["train"]) == 12


# ---------------------------------------------------------------- where files come from

def test_parts_from_the_hub(tmp_path, monkeypatch):
    hub = publish(tmp_path / "hub", TRAIN, TEST)
    asked = []

    def snapshot_download(repo_id, **more):
        asked.append((repo_id, more))
        return str(hub / repo_id.rpartition("-Challenge-")[2])

    import huggingface_hub
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    parts = [f"talkpl-ai/TalkPlayData-Challenge-{name}"
             for name in ("Dataset", "Track-Metadata", "Track-Embeddings")]
    local = [hub / name for name in ("Dataset", "Track-Metadata", "Track-Embeddings")]
    assert talkplaydata_files.find_files([*parts, parts[0]]) == talkplaydata_files.find_files(local)
    assert asked[0] == (parts[0], {"repo_type": "dataset",
                                   "allow_patterns": ["*.parquet", "*.json", "*.jsonl"]})


def test_what_is_wrong_with_the_parts(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub, out = publish(tmp_path / "hub", TRAIN, TEST), tmp_path / "out"
    for part, message in ((tmp_path / "absent", "absent: no such file or folder"),
                          ("talkpl-ai/no-such-set-at-all",
                           "neither a file or folder here, nor to be had"),
                          (hub / "Dataset", r"no file has tracks \(a column track_name\)"),
                          (hub / "Track-Metadata", "no file has conversations")):
        with pytest.raises(SystemExit, match=message):
            run(part, out)
    with pytest.raises(SystemExit,
                       match="--n-valid 12: there are 12 training playlists or sessions"):
        run(hub, out, "--n-valid", 12)
    with pytest.raises(SystemExit, match="--n-valid 0: 1 or more is accepted"):
        run(hub, out, "--n-valid", 0)
    (hub / "Dataset/data/test-00000-of-00001.parquet").unlink()
    with pytest.raises(SystemExit, match="no test conversations"):
        run(hub, out, "--n-valid", 1)
    write(hub / "Dataset/data/sessions.json", TEST)
    with pytest.raises(SystemExit, match="sessions.json: conversations, but of which split"):
        run(hub, out, "--n-valid", 1)
    (hub / "Dataset/data/sessions.json").write_text('[{"session_id": ')
    with pytest.raises(SystemExit, match="sessions.json:1: not JSON"):
        run(hub, out, "--n-valid", 1)
    (hub / "Dataset/data/sessions.json").unlink()
    (hub / "Dataset/data/test-0.parquet").write_bytes(b"PAR1 cut")
    with pytest.raises(SystemExit, match="test-0.parquet: not a whole parquet file"):
        run(hub, out, "--n-valid", 1)
    other = publish(tmp_path / "other", TRAIN, TEST,
                    tracks=[track(i, track_id=f"spotify{i}") for i in range(N)])
    with pytest.raises(SystemExit,
                       match="none of the tracks that the conversations play is among the tracks"):
        run(other, out, "--n-valid", 1)
    assert not out.exists()


def test_a_second_run_skips_and_a_changed_file_is_refused(tmp_path, capsys):
    hub, out = publish(tmp_path / "hub", TRAIN, TEST), tmp_path / "out"
    write(hub / "User-Metadata/data/all_users.parquet", [{"user_id": "u1", "age": 20}])
    run(hub, out, "--n-valid", 1)
    assert ("1 files without conversations, tracks, vectors or captions "
            "(all_users.parquet)") in capsys.readouterr().out
    run(hub, out, "--n-valid", 1)
    assert capsys.readouterr().out == "00_prepare_data: already done (--no-resume does it again)\n"
    for path in (hub / "Track-Embeddings/data").iterdir():
        path.unlink()
    with pytest.raises(SystemExit, match=r"another argument: files \(was .*--no-resume"):
        run(hub, out, "--n-valid", 1)
    run(hub, out, "--n-valid", 1, "--no-resume")
    # those of the first run would not be these tracks'
    assert not list((out / "embeddings").glob("*.npy"))


# ---------------------------------------------------------------- the scripts after it

def test_01_does_not_replace_what_came_with_the_data(tmp_path, monkeypatch):
    hub, out = publish(tmp_path / "hub", TRAIN, TEST), tmp_path / "out"
    run(hub, out, "--n-valid", 1)
    before = (out / "embeddings/playlist.npy").read_bytes()
    with pytest.raises(SystemExit,
                       match="playlist, semantic, metadata, lyrics, audio came with the data. "
                             "Leave 01 out: python "
                                         "02_quantize.py --data-dir .*; or replace them: "
                                         "--no-resume$"):
        extract.main(["--data-dir", str(out)])
    (out / "embeddings/audio.npy").unlink()
    with pytest.raises(SystemExit,
                       match="playlist came with the data.*make only the others: --modalities "
                             "audio;"):
        extract.main(["--data-dir", str(out), "--modalities", "playlist", "audio"])
    assert (out / "embeddings/playlist.npy").read_bytes() == before
    assert not (out / "runs/01_extract_embeddings.json").exists()
    extract.main(["--data-dir", str(out), "--modalities", "playlist", "--epochs", "1",
                  "--no-resume"])
    assert load(out, "playlist").shape == (N, 128)
    # now 01's own
    extract.main(["--data-dir", str(out), "--modalities", "playlist", "--epochs", "1"])


def test_02_to_06_run_on_it_without_an_encoder(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    embeddings = [vectors(i, **({"cf-bpr": []} if i % 5 == 0 else {})) for i in range(N)]
    run(publish(tmp_path / "hub", TRAIN, TEST, embeddings=embeddings), out, "--n-valid", 2)
    for script, *flags in (("02_quantize", "--k", "8"),
                           ("04_train", "--device", "cpu", "--indexing-repeats", "1",
                            "--save-every", "0"),
                           ("05_infer", "predict", "--device", "cpu", "--max-new-tokens", "4"),
                           ("baselines.popularity",),
                           ("06_evaluate", "--music-crs")):
        monkeypatch.setattr(sys, "argv", [script, *flags, "--data-dir", str(out)])
        importlib.import_module(script).main()
    codes = np.load(out / "codes.npy")
    assert np.flatnonzero(codes[:, 0] < 0).tolist() == list(range(0, N, 5))
    assert (codes[:, 1:] >= 0).all()
    rows = {row["system"]: row for row in csv.DictReader(open(out / "results/music_crs.csv"))}
    assert set(rows) == {"talkplay", "talkplay-overlap", "popularity"}
    assert rows["talkplay"]["turns"] == "24"
    entries = json.loads((out / "results/music_crs/talkplay.json").read_text())
    ids = [(e["session_id"], e["user_id"], e["turn_number"]) for e in entries[7:9]]
    assert ids == [("s20", "u2", 8), ("s21", "u0", 1)]
    assert all(len(set(e["predicted_track_ids"])) == 20 and isinstance(e["predicted_response"], str)
               for e in entries)
    assert "As the Music-CRS challenge scores" in capsys.readouterr().out
