"""The baseline clap on a very small CLAP of random weights: audio, text, a missing checkpoint."""

import importlib
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from choices import check_chosen_on_valid_alone

from baselines import clap
from common import data, runs, turns
from steps.extract_embeddings import audio

ROOT = Path(__file__).resolve().parent.parent
RATE = 48_000
SYSTEMS = ("clap", "clap-tuned")
WORDS = ("rainy", "piano", "club", "desert", "choir", "neon", "harvest", "tide")


def tone(hertz, seconds=1.0, rate=16_000):
    times = np.arange(int(seconds * rate)) / rate
    return (0.3 * np.sin(2 * np.pi * hertz * times)).astype(np.float32)


@pytest.fixture
def data_dir(tmp_path):
    """Eight tracks: six with audio of one second, id6 with a file that is none, id7 without."""
    folder = tmp_path / "data"
    (folder / "audio").mkdir(parents=True)
    for i in range(6):
        soundfile.write(folder / "audio" / f"{i}.wav", tone(200 * 1.5**i), 16_000)
    (folder / "audio" / "6.wav").write_text("this is not audio")
    data.write_jsonl(folder / "tracks.jsonl", [
        {"track_id": f"id{i}", "title": f"song{i}",
         "audio_path": f"audio/{i}.wav" if i < 7 else None} for i in range(8)])
    data.write_jsonl(folder / "playlists.jsonl", [
        {"playlist_id": "a", "split": "train", "track_ids": ["id3", "id5"]}])
    for split in ("train", "valid", "test"):
        dialogues = []
        for d in range(5):
            picks = [(3 * d + t) % 8 for t in range(3)]
            dialogues.append({
                "dialogue_id": f"{split}{d}", "playlist_id": f"{split}{d}",
                "turns": [{"query": f"play {WORDS[p]} {WORDS[(p + d) % 8]}", "music": f"id{p}"}
                          for p in picks]})
        data.write_jsonl(folder / f"dialogues_{split}.jsonl", dialogues)
    return folder


@pytest.fixture(autouse=True)
def threads(monkeypatch):
    """Audio is read by a thread instead of worker processes, which take seconds to start."""
    monkeypatch.setattr(audio, "audio_pool", ThreadPoolExecutor)


def run(monkeypatch, data_dir, *arguments):
    flags = "--data-dir", data_dir, "--device", "cpu", "--workers", 1, *arguments
    monkeypatch.setattr(sys, "argv", ["clap.py", *map(str, flags)])
    clap.main()


def read(folder, name, split="test"):
    rows = [row for _, row in data.read_jsonl(folder / turns.FOLDERS[split] / f"{name}.jsonl", "")]
    return {(row["dialogue_id"], row["turn"]): row["track_ids"] for row in rows}


# ---------------------------------------------------------------- audio

def test_mean_of_windows_by_hand(tmp_path):
    """A model that answers each window with a vector of its own. 26 s of audio are three windows;
    the vectors' lengths do not count."""
    soundfile.write(tmp_path / "a.wav", tone(440, 26.0), 16_000)
    mels = clap.mel_windows(tmp_path / "a.wav", clap.random_clap(["a b"], 0, "cpu")[2])
    assert mels.shape == (3, 1, 1001, 64) and mels.dtype == np.float32
    asked = {}

    def get_audio_features(inputs, is_longer):
        asked.update(shape=tuple(inputs.shape), is_longer=is_longer.tolist())
        return SimpleNamespace(pooler_output=torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 5.0]]))
    model = SimpleNamespace(device="cpu", get_audio_features=get_audio_features)
    vectors = clap.embed_windows(model, mels)
    assert asked == {"shape": (3, 1, 1001, 64), "is_longer": [[False]] * 3}
    expected = np.array([1, 2]) / 5**0.5
    np.testing.assert_allclose(clap.mean_of_windows(vectors), expected, atol=1e-6)


def test_nothing_is_cropped_at_random(tmp_path):
    """30 s at 44.1 kHz, each ten seconds another tone: every reading gives the same spectrograms,
    those of the tones in their order."""
    tones = [tone(hertz, 10.0, 44_100) for hertz in (300, 3000, 9000)]
    soundfile.write(tmp_path / "a.flac", np.concatenate(tones), 44_100)
    extractor = clap.random_clap(["a b"], 0, "cpu")[2]
    first, second = (clap.mel_windows(tmp_path / "a.flac", extractor) for _ in range(2))
    assert first.shape == (3, 1, 1001, 64) and np.array_equal(first, second)
    loudest = first[:, 0].mean(1).argmax(1)
    assert loudest[0] < loudest[1] < loudest[2]


def test_short_audio_is_filled_as_the_extractor_wants():
    """One second at 10 windows' length: repeated, not silence."""
    extractor = clap.random_clap(["a b"], 0, "cpu")[2]
    features = extractor([tone(440, 1.0, RATE)], sampling_rate=RATE).input_features
    mels = np.asarray(features)[0, 0]  # (1001, 64)
    assert np.ptp(mels[50:-50].max(1)) < 1 and mels[-1].max() > mels.min() + 20  # dB


# ---------------------------------------------------------------- text

def test_text_is_cut_at_77_tokens_and_vectors_have_length_1():
    side = clap.TextSide(*clap.random_clap([" ".join(WORDS)] * 5, 0, "cpu")[:2])
    long = "rainy piano " * 60
    assert side.fits("rainy piano") and not side.fits(long)
    kept = side.tokenizer.decode(side.tokenizer(long).input_ids[:77])
    vectors = side.encode_queries(["rainy", long, kept, "club", "rainy"], size=2)
    assert vectors.shape == (5, 16) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(vectors[1], vectors[2], atol=1e-6)
    np.testing.assert_allclose(vectors[0], vectors[4], atol=1e-6)
    assert np.abs(vectors[0] - vectors[3]).max() > 1e-3
    np.testing.assert_allclose(side.query_batch(["club"]).detach(), vectors[3:4], atol=1e-6)


# ---------------------------------------------------------------- the script

def test_random_weights_end_to_end_stay_out_of_the_table(monkeypatch, data_dir, capsys):
    flags = "--random-weights", "--tune", "--steps", 3, "--eval-every", 2, "--lr", 1e-3
    run(monkeypatch, data_dir, *flags)
    assert "random weights: what follows means nothing" in capsys.readouterr().out
    trial = data_dir / "predictions_trial"
    for folder in ("predictions", "predictions_valid", "results", "embeddings", "clap_model"):
        assert not (data_dir / folder).exists() and (trial / folder).exists()
    vectors = np.load(trial / "embeddings" / "clap.npy")
    assert vectors.dtype == np.float32
    assert np.isnan(vectors).all(1).tolist() == [False] * 6 + [True] * 2
    failed = [row for _, row in data.read_jsonl(trial / "embeddings" / "clap_failed.jsonl", "")]
    assert [row["track_id"] for row in failed] == ["id6"]
    assert failed[0]["reason"].startswith("unreadable:")
    for name in SYSTEMS:
        for split in ("valid", "test"):
            rankings = read(trial, name, split)
            assert set(rankings) == {(f"{split}{d}", t) for d in range(5) for t in (1, 2, 3)}
            ends = set()
            for ranking in rankings.values():
                assert sorted(ranking) == [f"id{i}" for i in range(8)]
                ends.add(tuple(ranking[-2:]))
            assert ends == {("id6", "id7"), ("id7", "id6")}  # no audio: last, in a drawn order
    assert read(trial, "clap") != read(trial, "clap-tuned")
    row_of = {f"id{i}": i for i in range(8)}
    queries = [turn.query for turn in turns.load_turns(data_dir, row_of)["valid"]]
    before = clap.random_clap(queries, 0, "cpu")[0].state_dict()
    after = clap.load_clap(str(trial / "clap_model"), "cpu")[0].state_dict()
    changed = {name.split(".")[0] for name in after if not torch.equal(before[name], after[name])}
    assert changed == {"text_model", "text_projection"}  # what hears stays as it was

    run(monkeypatch, data_dir, *flags)
    out = capsys.readouterr().out
    assert "\n".join(f"{name}: already done (--no-resume does it again)"
                     for name in ("clap", "clap-tuned")) in out
    data.write_jsonl(data_dir / "annotations/new.jsonl", [{"track_id": "id1", "tags": ["neon"]}])
    with pytest.raises(SystemExit, match="another input: annotations/new.jsonl"):
        run(monkeypatch, data_dir, *flags)


def test_a_checkpoint_folder_writes_predictions_and_is_tuned_later(monkeypatch, data_dir, tmp_path):
    """The small model again, but from a folder, as a real one is: its audio is heard once."""
    for thing in clap.random_clap(list(WORDS), 1, "cpu"):
        thing.save_pretrained(tmp_path / "small_clap")
    run(monkeypatch, data_dir, "--clap-model", tmp_path / "small_clap")
    assert set(read(data_dir, "clap")) == {(f"test{d}", t) for d in range(5) for t in (1, 2, 3)}
    heard = (data_dir / "embeddings" / "clap.npy").stat().st_mtime_ns
    monkeypatch.setattr(clap, "mel_windows", None)
    run(monkeypatch, data_dir, "--clap-model", tmp_path / "small_clap", "--tune", "--steps", 2,
        "--eval-every", 2)
    assert (data_dir / "embeddings" / "clap.npy").stat().st_mtime_ns == heard
    assert set(read(data_dir, "clap-tuned", "valid")) == {
        (f"valid{d}", t) for d in range(5) for t in (1, 2, 3)}
    evaluate = importlib.import_module("06_evaluate")
    monkeypatch.setattr(sys, "argv", ["06_evaluate.py", "--data-dir", str(data_dir)])
    evaluate.main()
    assert "clap-tuned" in (data_dir / "results/results.md").read_text()


@pytest.mark.parametrize("histories", [clap.HISTORIES, ("mean of queries and tracks",)])
def test_what_follows_a_query_changes_nothing(monkeypatch, data_dir, histories):
    """What turn 2 got, and all of turn 3, are replaced: turns 1 and 2 stay. Also in a form that
    reads all of the past, where turn 3 changes by the music of turn 2 alone."""
    monkeypatch.setattr(clap, "HISTORIES", histories)
    flags = "--random-weights", "--tune", "--steps", 3, "--eval-every", 2, "--lr", 1e-3
    run(monkeypatch, data_dir, *flags)
    trial = data_dir / "predictions_trial"
    old = {name: read(trial, name) for name in SYSTEMS}
    rows = [row for _, row in data.read_jsonl(data_dir / "dialogues_test.jsonl", "")]
    for row in rows:
        row["turns"][1] |= {"music": "id5", "response": "neon tide", "rejected": True,
                            "targets": ["id5"]}
        row["turns"][2] |= {"music": "id5", "targets": ["id5"]}
        if histories == clap.HISTORIES:
            row["turns"][2]["query"] = "choir"
    data.write_jsonl(data_dir / "dialogues_test.jsonl", rows)
    for name in SYSTEMS:  # what was heard stays
        (data_dir / "runs" / f"trial_{name}.json").unlink()
    run(monkeypatch, data_dir, *flags)
    for name, before in old.items():
        after = read(trial, name)
        assert all(before[key] == after[key] for key in before if key[1] <= 2), name
        assert any(before[key] != after[key] for key in before if key[1] == 3), name


@pytest.mark.parametrize("name", SYSTEMS)
def test_form_and_weights_are_chosen_on_valid_alone(monkeypatch, data_dir, name):
    def run_anew():
        for system in SYSTEMS:  # what was heard stays
            (data_dir / "runs" / f"trial_{system}.json").unlink(missing_ok=True)
        run(monkeypatch, data_dir, "--random-weights", "--tune", "--steps", 12, "--eval-every", 3,
            "--lr", 3e-3)
    check_chosen_on_valid_alone(run_anew, data_dir, name, 6, clap.TRAINED[0], "predictions_trial/")


def test_killed_audio_goes_on(monkeypatch, data_dir):
    """Killed in the third of four chunks of two tracks: the first two are not read again, and the
    bytes are the same."""
    monkeypatch.setattr(clap, "CHUNK", 2)
    run(monkeypatch, data_dir, "--random-weights")
    path = data_dir / "predictions_trial" / "embeddings" / "clap.npy"
    whole = path.read_bytes()
    mel_windows = clap.mel_windows
    calls = []

    def killed(file, extractor):
        calls.append(Path(file).name)
        if calls[-1] == "5.wav" and calls.count("5.wav") == 1:
            raise KeyboardInterrupt
        return mel_windows(file, extractor)
    monkeypatch.setattr(clap, "mel_windows", killed)
    with pytest.raises(KeyboardInterrupt):
        run(monkeypatch, data_dir, "--random-weights", "--no-resume")
    run(monkeypatch, data_dir, "--random-weights")
    # the chunk after the killed one may have been read ahead
    again = [f"{i}.wav" for i in (4, 5, 6)]
    assert calls[:6] == [f"{i}.wav" for i in range(6)] and calls[6:] in (again, ["6.wav", *again])
    assert path.read_bytes() == whole


def test_audio_that_was_whole_when_the_run_was_killed_is_not_read_again(monkeypatch, data_dir):
    def killed(*_, **__):
        raise KeyboardInterrupt
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(runs, "finish_run", killed)
        run(patch, data_dir, "--random-weights")
    monkeypatch.setattr(clap, "mel_windows", None)
    run(monkeypatch, data_dir, "--random-weights")
    assert len(read(data_dir / "predictions_trial", "clap")) == 15


def test_a_script_of_its_own_with_two_workers(monkeypatch, data_dir):
    subprocess.run([sys.executable, ROOT / "baselines" / "clap.py", "--data-dir", data_dir,
                    "--random-weights", "--workers", "2", "--device", "cpu"],
                   check=True, cwd=data_dir, capture_output=True)
    path = data_dir / "predictions_trial" / "embeddings" / "clap.npy"
    by_two = np.load(path)
    run(monkeypatch, data_dir, "--random-weights", "--no-resume")
    np.testing.assert_allclose(np.load(path), by_two, atol=1e-6)


def test_without_any_audio_there_is_nothing_to_rank(monkeypatch, data_dir):
    for path in (data_dir / "audio").iterdir():
        path.unlink()
    message = "no track has audio that can be read .*clap_failed.jsonl.*--audio-dir"
    with pytest.raises(SystemExit, match=message):
        run(monkeypatch, data_dir, "--random-weights")


@pytest.mark.parametrize("flags, message", [
    ([], "one of --clap-model and --random-weights is needed.*hf download laion/larger_clap_music"),
    (["--clap-model", "x", "--random-weights"], "one of --clap-model and --random-weights"),
    (["--clap-model", "nobody/no-such-clap"],
     "--clap-model nobody/no-such-clap cannot be loaded: .*Accepted: the folder.*hf download"),
    (["--random-weights", "--steps", "0"], "--steps 0: 1 or more is"),
    (["--random-weights", "--workers", "0"], "--workers 0: 1 or more is")])
def test_a_missing_model_is_one_line_that_says_how_to_get_it(monkeypatch, data_dir, flags, message):
    with pytest.raises(SystemExit, match=message) as error:
        run(monkeypatch, data_dir, *flags)
    assert "\n" not in str(error.value) and not (data_dir / "runs").exists()


def test_another_kind_of_model_is_refused(monkeypatch, data_dir, tmp_path):
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    message = "--clap-model .*bert cannot be loaded: .*Accepted: the folder of a CLAP model"
    with pytest.raises(SystemExit, match=message):
        run(monkeypatch, data_dir, "--clap-model", tmp_path / "bert")
