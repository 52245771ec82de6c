"""01_extract_embeddings.py: encoders against independent results, several processes, resume."""

import copy
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import ranks
import soundfile
import torch

from common import data
from steps.extract_embeddings import audio, chunks, librosa_features, sentences, text

extract = importlib.import_module("01_extract_embeddings")
ROOT = Path(__file__).parent.parent
RATE = 22050


def track(i, **fields):
    return {"track_id": f"t{i}", "title": f"Song {i}", "artist": f"Band {i % 3}",
            "tags": [f"tag{i % 4}", "calm"]} | fields


def make_data(folder, n=10, playlists=((0, 1, 2), (2, 3, 4), (5, 6)), **fields):
    data.write_jsonl(folder / "tracks.jsonl", [track(i, **fields) for i in range(n)])
    data.write_jsonl(folder / "playlists.jsonl", [
        {"playlist_id": f"p{i}", "split": "train", "track_ids": [f"t{row}" for row in rows]}
        for i, rows in enumerate(playlists)])
    return folder


def run(folder, *flags):
    extract.main(["--data-dir", str(folder), *map(str, flags)])


def load(folder, modality):
    return np.load(folder / "embeddings" / f"{modality}.npy")


def tone(hertz, seconds=2.0, rate=RATE):
    t = np.arange(int(seconds * rate)) / rate
    return (0.3 * sum(np.sin(2 * np.pi * h * t) for h in np.atleast_1d(hertz))).astype(np.float32)


def clicks(bpm, seconds=12.0, rate=RATE):
    samples = np.zeros(int(seconds * rate), np.float32)
    noise = np.random.default_rng(0).normal(size=800).astype(np.float32) / 4
    for start in np.arange(0, len(samples) - 800, 60 / bpm * rate).astype(int):
        samples[start:start + 800] = noise
    return samples


# ---------------------------------------------------------------- texts

@pytest.fixture(scope="module")
def minilm():
    return extract.load_text_encoder(extract.resolve_text_encoder("minilm"), "cpu")


def test_what_the_text_encoder_reads():
    song = track(1, title="Dust", artist="The Reeds", album="Low Sun", release_date="1998-04-01",
                 tags=["folk", "sad"], lyrics="la la")
    assert extract.track_text(song, "semantic") == "folk, sad"
    assert extract.track_text(song, "metadata") == "Dust by The Reeds from Low Sun (1998)"
    assert extract.track_text(song, "lyrics") == "la la"
    bare = track(1, title=None, artist=None, album=None, release_date=None, tags=[], lyrics=None)
    assert [extract.track_text(bare, m) for m in extract.TEXT_MODALITIES] == [None] * 3


def test_minilm_equals_sentence_transformers(minilm):
    """Golden: sentence-transformers on the same folder; it pools, cuts and normalises by itself."""
    SentenceTransformer = pytest.importorskip("sentence_transformers").SentenceTransformer
    texts = ["rainy, piano", "Dust by The Reeds from Low Sun (1998)", "river " * 400, "x",
             "river " * 90, "rainy, piano"]
    tokenizer, model, max_tokens = minilm
    got, cut = extract.embed_texts(texts[:2] + [None] + texts[2:], tokenizer, model, max_tokens,
                                   batch_size=2)
    peer = SentenceTransformer(extract.resolve_text_encoder("minilm"), device="cpu")
    expected = peer.encode(texts, normalize_embeddings=True)
    assert max_tokens == 256 and cut == [3]
    assert got.shape == (7, 384) and got.dtype == np.float32 and np.isnan(got[2]).all()
    np.testing.assert_allclose(np.delete(got, 2, 0), expected, atol=1e-5)


def test_an_encoder_whose_values_are_not_finite(minilm):
    tokenizer, model, max_tokens = minilm
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.embeddings.word_embeddings.weight[tokenizer("piano").input_ids[1]] = torch.inf
    with pytest.raises(SystemExit, match="not finite, first for 'rainy, piano': .*float32"):
        extract.embed_texts(["sad", None, "rainy, piano", "calm"], tokenizer, broken, max_tokens)


def test_pooling_by_hand_with_padding_on_either_side():
    hidden = torch.tensor([[[3., 4.], [0., 2.], [9., 9.]], [[9., 9.], [5., 0.], [0., 5.]]])
    mask = torch.tensor([[1, 1, 0], [0, 1, 1]])  # the 9s are padding
    half = 0.5**0.5
    for pooling, expected in (("mean", [[1.5 / 11.25**0.5, 3 / 11.25**0.5], [half, half]]),
                              ("cls", [[0.6, 0.8], [1, 0]]),
                              ("last", [[0, 1], [0, 1]])):
        np.testing.assert_allclose(text.pool(hidden, mask, pooling), expected, atol=1e-6,
                                   err_msg=pooling)


def test_tracks_without_text_are_nan(tmp_path):
    data.write_jsonl(tmp_path / "tracks.jsonl",
                     [track(0), track(1, tags=[]), track(2, lyrics="one two"),
                      track(3, tags=["calm", "tag0"])])
    run(tmp_path, "--modalities", "semantic", "lyrics", "metadata", "--device", "cpu")
    missing = {m: np.isnan(load(tmp_path, m)).all(1).tolist() for m in extract.TEXT_MODALITIES}
    assert missing == {"semantic": [False, True, False, False], "lyrics": [True, True, False, True],
                       "metadata": [False] * 4}
    np.testing.assert_allclose(np.linalg.norm(load(tmp_path, "metadata"), axis=1), 1, atol=1e-6)


# ---------------------------------------------------------------- playlists

def test_item2vec_puts_tracks_that_share_playlists_together():
    rng = np.random.default_rng(0)
    # tracks 0-19 and 20-39 never meet
    playlists = [rng.permutation(20)[:8] + 20 * (i % 2) for i in range(200)] + [[40]]
    vectors = extract.item2vec([list(map(int, p)) for p in playlists], 42, dim=16, epochs=5)
    assert vectors.shape == (42, 16) and vectors.dtype == np.float32
    # 40: alone in its playlist, 41: in none
    assert np.isnan(vectors[40:]).all() and not np.isnan(vectors[:40]).any()
    cosine = vectors[:40] @ vectors[:40].T
    inside = [cosine[i, j] for i in range(40) for j in range(40) if i != j and i // 20 == j // 20]
    between = cosine[:20, 20:]
    assert min(inside) > between.max()


def test_item2vec_window_covers_the_playlist(monkeypatch):
    """What gensim is asked for: its defaults would draw smaller windows, and drop words beyond
    10,000."""
    import gensim.models
    asked, read = {}, []

    class Stop(Exception):
        pass

    class Fake:
        def __init__(self, **kwargs):
            asked.update(kwargs)

        def build_vocab(self, sentences):
            read.append([len(s) for s in sentences])

        def train(self, sentences, total_examples, **kwargs):
            read.append([len(s) for s in sentences])
            asked["total_examples"] = total_examples
            raise Stop
    monkeypatch.setattr(gensim.models, "Word2Vec", Fake)
    with pytest.raises(Stop):
        extract.item2vec([list(range(10_500)), [1, 2, 3], [7]], 10_500)
    assert read == [[10_000, 500, 3]] * 2 and asked["total_examples"] == 3
    expected = dict(window=10_000, shrink_windows=False, sg=1, negative=5, min_count=1,
                    vector_size=128, workers=1)
    assert {name: asked[name] for name in expected} == expected


def test_a_share_of_the_pairs_is_the_same_share_of_each_playlist():
    """5,000 epochs of four playlists; a pair is learnt if gensim's window of NEAR sees it."""
    lengths = np.array([2, 5, 9, 40])
    parts = [np.arange(n) + 100 * i for i, n in enumerate(lengths)]
    epoch = sentences.Sentences(parts, share=0.1)
    counts = np.zeros((400, 400))
    for _ in range(5000):
        for sentence in epoch:
            sentence = np.array(sentence, int)
            for gap in range(1, epoch.window + 1):
                np.add.at(counts, (sentence[gap:], sentence[:-gap]), 1)
    counts = (counts + counts.T) / 5000
    for part in parts:
        pairs = counts[np.ix_(part, part)][~np.eye(len(part), dtype=bool)]
        assert pairs.mean() == pytest.approx(0.1, rel=0.1) and pairs.min() > 0.07
        assert pairs.max() < 0.13
    assert counts.sum() == pytest.approx(sum(counts[np.ix_(part, part)].sum() for part in parts))


def test_item2vec_learns_from_a_share_of_the_pairs_too():
    rng = np.random.default_rng(0)
    # tracks 0-19 and 20-39 never meet
    playlists = [rng.permutation(20)[:12] + 20 * (i % 2) for i in range(200)]
    vectors = extract.item2vec(playlists, 40, dim=16, epochs=20, share=0.25)
    cosine = vectors @ vectors.T
    inside = [cosine[i, j] for i in range(40) for j in range(40) if i != j and i // 20 == j // 20]
    assert min(inside) > cosine[:20, 20:].max()
    assert np.array_equal(vectors, extract.item2vec(playlists, 40, dim=16, epochs=20, share=0.25))


def test_only_training_playlists_count(tmp_path):
    make_data(tmp_path)
    lines = [row for _, row in data.read_jsonl(tmp_path / "playlists.jsonl", "")]
    flags = "--modalities", "playlist", "--no-resume", "--playlist-dim", "8"

    def result(extra):
        data.write_jsonl(tmp_path / "playlists.jsonl", lines + extra)
        run(tmp_path, *flags)
        return load(tmp_path, "playlist").tobytes()

    def playlist(split):
        return {"playlist_id": split, "split": split, "track_ids": ["t0", "t7", "t8", "t9"]}
    alone = result([])
    assert result([playlist("valid"), playlist("test")]) == alone
    assert np.isnan(load(tmp_path, "playlist")[7:]).all()  # cold: only there
    assert result([playlist("train")]) != alone


# ---------------------------------------------------------------- audio

def test_key_strengths_of_the_profiles_themselves():
    """Golden: Krumhansl's profile of a key correlates with itself by 1, whatever the tonic."""
    major, minor = librosa_features.KEY_PROFILES
    for tonic in range(12):
        strengths = librosa_features.key_strengths(np.roll(major, tonic))
        assert strengths.argmax() == tonic and strengths.max() == pytest.approx(1)
        assert librosa_features.key_strengths(np.roll(minor, tonic)).argmax() == 12 + tonic


def test_features_hear_tempo_and_key():
    """Columns: 84 of timbre, 12 of chroma, 24 of keys, 1 of mode, 6 of tonnetz, 24 of tempi, the
    tempo ..."""
    tempo_column = 84 + 43 + 24
    for bpm in (90, 140):
        features = librosa_features.librosa_features(clicks(bpm), RATE)
        assert features.shape == (155,) and features.dtype == np.float32
        assert np.isfinite(features).all()
        # a lag of 43 frames per second
        assert 2 ** features[tempo_column] == pytest.approx(bpm, rel=0.04)
    g = tone([196.0, 246.94, 293.66])
    c = tone([261.63, 329.63, 392.0])
    d = tone([293.66, 369.99, 440.0])
    chroma = librosa_features.librosa_features(g, RATE)[84:96]
    assert set(chroma.argsort()[-3:]) == {7, 11, 2}  # G B D
    cadence = librosa_features.librosa_features(np.concatenate([g, c, d, g]), RATE)
    assert cadence[96:120].argmax() == 7 and cadence[120] > 0  # G major


def test_read_audio_takes_the_middle_mono_resampled(tmp_path):
    left = np.concatenate([tone(200, 1, 44100), tone(1000, 2, 44100), tone(200, 1, 44100)])
    soundfile.write(tmp_path / "a.wav", np.stack([left, np.zeros_like(left)], 1), 44100)
    samples = librosa_features.read_audio(tmp_path / "a.wav", RATE, seconds=2)
    assert samples.dtype == np.float32 and len(samples) == 2 * RATE
    # Hz: 2 s give bins of 0.5 Hz
    assert np.abs(np.fft.rfft(samples)).argmax() / 2 == pytest.approx(1000, abs=1)
    assert np.abs(samples).max() == pytest.approx(0.15, abs=0.01)  # the mean of 0.3 and nothing


@pytest.mark.parametrize("name, samples, reason", [
    ("gone.wav", None, "file missing"), ("silent.wav", np.zeros(RATE), "silent"),
    ("short.wav", tone(440, 0.3), "shorter than 0.5 s"),
    ("text.wav", b"this is not audio", "unreadable: .*the file"),
    ("nan.wav", np.full(RATE, np.nan), "not finite"),
    ("random.wav",
     np.random.default_rng(0).integers(1, 2**30, RATE, np.int32).view(np.float32) * 1e20,
     "far too large")])
def test_audio_that_cannot_be_used(tmp_path, name, samples, reason):
    if isinstance(samples, bytes):
        (tmp_path / name).write_bytes(samples)
    elif samples is not None:
        soundfile.write(tmp_path / name, samples, RATE, subtype="FLOAT")
    with pytest.raises(ValueError, match=reason):
        librosa_features.read_audio(tmp_path / name, RATE)


def write_flac(path, samples, total):
    """A FLAC whose header says that it has `total` samples; 0 = unknown, as a pipe writes it."""
    soundfile.write(path, samples, RATE)
    content = bytearray(path.read_bytes())
    field = int.from_bytes(content[18:26], "big")  # its last 36 bits are the total
    content[18:26] = (field >> 36 << 36 | total).to_bytes(8, "big")
    path.write_bytes(content)


@pytest.mark.parametrize("total", [0, 2**36 - 1, 40 * RATE])
def test_flac_whose_header_is_not_true(tmp_path, total):
    """20 s: 200 Hz, then 1000 Hz for 4 s in the middle. The last block is lost: 0.2 s at most."""
    samples = np.concatenate([tone(200, 8), tone(1000, 4), tone(200, 8)])
    write_flac(tmp_path / "a.flac", samples, total)
    everything = librosa_features.read_audio(tmp_path / "a.flac", RATE, seconds=0)
    assert 19.8 * RATE <= len(everything) <= 20 * RATE
    np.testing.assert_allclose(everything, samples[:len(everything)], atol=1e-4)
    middle = librosa_features.read_audio(tmp_path / "a.flac", RATE, seconds=2)
    assert np.abs(np.fft.rfft(middle)).argmax() / 2 == 1000 and len(middle) == 2 * RATE


def test_what_is_read_has_a_bound(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", np.stack([tone(440, 20)] * 2, 1), RATE)
    write_flac(tmp_path / "a.flac", np.stack([tone(440, 20)] * 2, 1), 2**36 - 1)
    monkeypatch.setattr(librosa_features, "MOST_SAMPLES", 2 * 3 * RATE)
    for name in ("a.wav", "a.flac"):
        for seconds in (0, 1e9):
            samples = librosa_features.read_audio(tmp_path / name, RATE, seconds=seconds)
            assert len(samples) == 3 * RATE


def test_mp3_of_which_the_end_is_missing(tmp_path):
    """The first sixth of the bytes of 180 s: 200 Hz, but 1000 Hz from 13 s to 17 s."""
    samples = tone(200, 180)
    samples[13 * RATE:17 * RATE] = tone(1000, 4)
    soundfile.write(tmp_path / "a.mp3", samples, RATE)
    content = (tmp_path / "a.mp3").read_bytes()
    (tmp_path / "a.mp3").write_bytes(content[:len(content) // 6])
    middle = librosa_features.read_audio(tmp_path / "a.mp3", RATE, seconds=2)
    assert np.abs(np.fft.rfft(middle)).argmax() / 2 == 1000 and len(middle) == 2 * RATE
    everything = librosa_features.read_audio(tmp_path / "a.mp3", RATE, seconds=0)
    assert len(everything) / RATE == pytest.approx(30, abs=2)


def test_flac_of_which_the_end_is_missing(tmp_path):
    soundfile.write(tmp_path / "a.flac", tone(440, 20), RATE)
    content = (tmp_path / "a.flac").read_bytes()
    (tmp_path / "a.flac").write_bytes(content[:len(content) // 2])
    samples = librosa_features.read_audio(tmp_path / "a.flac", RATE, seconds=0)
    assert len(samples) / RATE == pytest.approx(10, abs=1)


@pytest.mark.parametrize("weights", [(0.5, -0.5), (0.5, -0.499), (0.3, 0.2, -0.5)])
def test_channels_of_opposite_sign_are_heard(tmp_path, weights):
    """Their mean cancels: the loudest one is taken."""
    soundfile.write(tmp_path / "a.wav", np.outer(tone(440), weights), RATE, subtype="FLOAT")
    samples = librosa_features.read_audio(tmp_path / "a.wav", RATE)
    assert np.abs(samples).max() == pytest.approx(0.15, abs=1e-3)


@pytest.mark.parametrize("rate, accepted", [
    (1, False), (3999, False), (4000, True), (384_000, True), (384_001, False)])
def test_sample_rates(tmp_path, rate, accepted):
    soundfile.write(tmp_path / "a.wav", tone(440, 1, 384_001)[:max(rate, 16_000)], rate)
    if accepted:
        librosa_features.read_audio(tmp_path / "a.wav", RATE)
    else:
        with pytest.raises(ValueError, match=f"sample rate {rate} Hz, not 4000 to 384000"):
            librosa_features.read_audio(tmp_path / "a.wav", RATE)


def test_blocks_weigh_the_same():
    rng = np.random.default_rng(0)
    raw = (rng.normal(size=(500, 5)) * [1, 10, 100, 1, 0] + 7).astype(np.float32)
    raw[3] = np.nan
    mean, divisor = audio.column_scaling(raw, (3, 2))
    scaled = np.delete((raw - mean) / divisor, 3, 0)
    np.testing.assert_allclose(scaled.mean(0), 0, atol=1e-5)
    # the last column never changes
    np.testing.assert_allclose(scaled.var(0), [1 / 3, 1 / 3, 1 / 3, 1 / 2, 0], rtol=1e-4, atol=1e-9)


def test_audio_from_files_to_embeddings(tmp_path):
    """Two workers, in chunks; what cannot be used is NaN and listed with its reason."""
    for i in range(4):
        soundfile.write(tmp_path / f"{i}.wav", tone([220 * 2 ** (i / 12), 330]), RATE)
    paths = ["0.wav", None, "1.wav", "gone.wav", "2.wav", "3.wav"]
    data.write_jsonl(tmp_path / "tracks.jsonl",
                     [track(i, audio_path=path) for i, path in enumerate(paths)])
    run(tmp_path, "--modalities", "audio", "--workers", "2")
    array = load(tmp_path, "audio")
    (mean, divisor) = np.load(tmp_path / "embeddings" / "audio_scaling.npy")
    assert np.isnan(array).all(1).tolist() == [False, True, False, True, False, False]
    failed = [row for _, row in data.read_jsonl(tmp_path / "embeddings" / "audio_failed.jsonl", "")]
    assert failed == [{"track_id": "t3", "audio_path": "gone.wav", "reason": "file missing"}]
    samples = librosa_features.read_audio(tmp_path / "1.wav", RATE)
    raw = librosa_features.librosa_features(samples, RATE)
    np.testing.assert_allclose((raw - mean) / divisor, array[2], atol=1e-3)
    np.testing.assert_allclose(np.nanmean(array, 0), 0, atol=1e-3)


# ---------------------------------------------------------------- kill, resume, refuse

def test_chunks_resume_in_the_same_bytes(tmp_path):
    """The encoder raises in the third chunk of four; the last line of the journal is cut."""
    rows = np.random.default_rng(0).normal(size=(14, 3)).astype(np.float32)
    calls = []

    def encode(part, fail_at=None):
        calls.append(part.start)
        if part.start == fail_at:
            raise KeyboardInterrupt
        return rows[part], [part.start]

    for folder in ("whole", "killed"):
        (tmp_path / folder).mkdir()
    whole, notes = chunks.fill_in_chunks(tmp_path / "whole", "audio", (14, 3), 4, encode)
    assert notes == [0, 4, 8, 12]
    with pytest.raises(KeyboardInterrupt):
        chunks.fill_in_chunks(tmp_path / "killed", "audio", (14, 3), 4,
                               lambda part: encode(part, fail_at=8))
    with open(tmp_path / "killed" / "audio.progress.jsonl", "a") as f:
        f.write('{"first": 8, "stop": 12, "no')
    calls.clear()
    resumed, notes = chunks.fill_in_chunks(tmp_path / "killed", "audio", (14, 3), 4, encode)
    assert calls == [8, 12] and notes == [0, 4, 8, 12]
    assert resumed.read_bytes() == whole.read_bytes() and np.array_equal(np.load(resumed), rows)


def test_ranks_share_the_chunks(tmp_path, monkeypatch):
    """One process after another: a killed run of other processes has left three of seven chunks."""
    rows = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    part = np.lib.format.open_memmap(tmp_path / "lyrics.part.npy", mode="w+", dtype=np.float32,
                                     shape=rows.shape)
    for name, starts in (("", [0]), (".1", [15, 3])):
        for first in starts:
            part[first:first + 3] = rows[first:first + 3]
            with open(tmp_path / f"lyrics.progress{name}.jsonl", "a") as f:
                f.write(json.dumps({"first": first, "stop": first + 3, "notes": [first]}) + "\n")
    (tmp_path / "lyrics.progress.7.jsonl").write_text('{"first": 6, "stop": 9')  # cut by the kill
    made = []
    todo = chunks.begin_part(tmp_path, "lyrics", rows.shape, 3)
    monkeypatch.setattr(chunks, "agree", lambda make: todo)  # what the first process says
    for rank in (2, 1, 0):
        def encode(part, rank=rank):
            made.append((rank, part.start))
            return rows[part], [part.start]
        monkeypatch.setattr(chunks, "current_process", lambda rank=rank: (rank, 3))
        path, notes = chunks.fill_in_chunks(tmp_path, "lyrics", rows.shape, 3, encode)
    assert sorted(made) == [(0, 6), (0, 18), (1, 9), (2, 12)]
    assert notes == list(range(0, 20, 3)) and np.array_equal(np.load(path), rows)


def test_any_character_may_stand_in_a_note(tmp_path):
    """A run that was killed twice: the second start joins the journals, the third reads that."""
    note = {"audio_path": "a\u2028b\x85c.wav"}
    for stop in (2, 4, None):
        def encode(rows, stop=stop):
            if rows.start == stop:
                raise KeyboardInterrupt
            return np.zeros((2, 1), np.float32), [note]
        try:
            notes = chunks.fill_in_chunks(tmp_path, "audio", (6, 1), 2, encode)[1]
        except KeyboardInterrupt:
            pass
    assert notes == [note] * 3


def test_only_the_first_rank_reads_journals_once_all_is_done(tmp_path, monkeypatch):
    """It may delete them at once: here as soon as rank 1 has said that it is done."""
    monkeypatch.setattr(chunks, "current_process", lambda: (1, 2))
    monkeypatch.setattr(chunks, "agree", lambda make: [0, 2])  # what the first process says
    monkeypatch.setattr(chunks, "wait_for_all", lambda: chunks.forget_progress(tmp_path, "audio"))
    monkeypatch.setattr(chunks, "finished_chunks", lambda *_: pytest.fail("rank 1 reads journals"))
    np.lib.format.open_memmap(tmp_path / "audio.part.npy", mode="w+", dtype=np.float32,
                              shape=(4, 1))
    path, notes = chunks.fill_in_chunks(tmp_path, "audio", (4, 1), 2,
                                        lambda rows: (np.ones((2, 1), np.float32), ["x"]))
    assert notes == [] and np.load(path).ravel().tolist() == [0, 0, 1, 1]


def test_two_machines_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "16")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    with pytest.raises(SystemExit, match="torchrun --nnodes: .* on one machine"):
        chunks.check_one_machine()


def files_of(folder):
    return {path.name: path.read_bytes() for path in (folder / "embeddings").iterdir()}


def make_data_for_ranks(folder):
    """20 tracks, which are seven chunks of tests/ranks.py."""
    make_data(folder, n=20)
    data.write_jsonl(folder / "tracks.jsonl", [track(i, lyrics=f"line {i}" if i % 3 else None,
                                                     audio_path=f"{'bad' * (i % 7 == 2)}{i}.wav")
                                               for i in range(20)])
    return folder


def launch(*command):
    done = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, capture_output=True,
                          text=True, timeout=280,
                          env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("worlds")
    for name in ranks.RUNS:
        make_data_for_ranks(folder / name)
    launch("tests/ranks.py", folder)
    return folder


def test_torchrun_with_two_processes_equals_one(worlds, tmp_path, capsys):
    """The same bytes and the same report; only one runs item2vec; then nothing is left to do."""
    files, printed = files_of(worlds / "one"), (worlds / "one" / "1.log").read_text()
    assert sorted(files) == sorted([*(f"{m}.npy" for m in extract.MODALITIES), "audio_scaling.npy",
                                    "audio_failed.jsonl"])
    assert files["audio_failed.jsonl"].count(b"no good") == 3
    assert "metadata: 20 texts were longer than 12" in printed
    flags = ("--data-dir", make_data_for_ranks(tmp_path), *ranks.FLAGS)
    out = launch("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2,
                 "tests/ranks.py", *flags)
    assert files_of(tmp_path) == files
    reports = [[line for line in text.splitlines() if "GiB" not in line and "wrote" not in line]
               for text in (out, printed)]
    assert reports[0] == reports[1] and out.count("item2vec on 3 training playlists") == 1
    record = json.loads((tmp_path / "runs" / "01_extract_embeddings.json").read_text())
    assert record["state"] == "finished" and len(record["outputs"]) == 7
    extract.main(list(map(str, flags)))
    told = capsys.readouterr().out
    assert told == "01_extract_embeddings: already done (--no-resume does it again)\n"


@pytest.mark.parametrize("name", ["kill-1", "kill-0"])
def test_kill_of_any_rank_and_resume_with_other_numbers(worlds, name):
    """Of seven chunks rank 1 makes three and rank 0 four: they die in metadata, and in lyrics."""
    left, world = (worlds / name / "left.txt").read_text().split(), ranks.RUNS[name][1][0]
    assert "playlist.npy" not in left
    assert {"kill-1": "metadata.part.npy", "kill-0": "lyrics.part.npy"}[name] in left
    assert "finished by an earlier try: semantic" in (worlds / name / f"{world}.log").read_text()
    assert files_of(worlds / name) == files_of(worlds / "one")


KILLED = """
import importlib, os, signal, sys
extract = importlib.import_module("01_extract_embeddings")
extract.TEXT_CHUNK, embed, calls = 3, extract.embed_texts, []
def embed_texts(*args):
    calls.append(1)
    if len(calls) == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return embed(*args)
extract.embed_texts = embed_texts
extract.main(sys.argv[1:])
"""


def test_kill_and_resume_of_the_script(tmp_path, minilm, monkeypatch, capsys):
    """SIGKILL in the third of metadata's four chunks (the seventh in all), then a second try."""
    flags = ("--modalities", "semantic", "metadata", "--device", "cpu")
    calls = []
    embed = extract.embed_texts
    killed, whole = (make_data(tmp_path / name) for name in ("killed", "whole"))
    ran = subprocess.run([sys.executable, "-c", KILLED, "--data-dir", str(killed), *flags],
                         cwd=ROOT, timeout=120,
                         env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())})
    assert ran.returncode == -signal.SIGKILL
    assert not (killed / "embeddings" / "metadata.npy").exists()
    monkeypatch.setattr(extract, "TEXT_CHUNK", 3)
    monkeypatch.setattr(extract, "load_text_encoder", lambda *args: minilm)
    monkeypatch.setattr(extract, "embed_texts", lambda *args: calls.append(1) or embed(*args))
    run(killed, *flags)
    assert len(calls) == 2 and "finished by an earlier try: semantic" in capsys.readouterr().out
    run(whole, *flags)
    assert len(calls) == 2 + 8
    for modality in ("semantic", "metadata"):
        first, second = (folder / "embeddings" / f"{modality}.npy" for folder in (killed, whole))
        assert first.read_bytes() == second.read_bytes()
    assert sorted(files_of(killed)) == ["metadata.npy", "semantic.npy"]


ORPHAN = """
import os, signal
from steps.extract_embeddings.audio import audio_pool
with audio_pool(1) as pool:
    print(pool.submit(os.getpid).result(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_audio_workers_die_with_a_killed_parent():
    ran = subprocess.run([sys.executable, "-c", ORPHAN], cwd=ROOT, stdout=subprocess.PIPE,
                         stderr=subprocess.DEVNULL, timeout=60)
    assert ran.returncode == -signal.SIGKILL  # and stdout has ended, which the worker held open too
    for _ in range(50):
        try:
            os.kill(int(ran.stdout), 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("the worker lives on")


def test_second_run_and_changed_arguments(tmp_path, capsys):
    make_data(tmp_path)
    run(tmp_path, "--modalities", "playlist")
    capsys.readouterr()
    run(tmp_path, "--modalities", "playlist", "--workers", "7")
    told = capsys.readouterr().out
    assert told == "01_extract_embeddings: already done (--no-resume does it again)\n"
    before = load(tmp_path, "playlist")
    with pytest.raises(SystemExit, match=r"seed \(was 0, is 1\).*--no-resume"):
        run(tmp_path, "--modalities", "playlist", "--seed", "1")
    assert np.array_equal(load(tmp_path, "playlist"), before, equal_nan=True)
    run(tmp_path, "--modalities", "playlist", "--seed", "1", "--no-resume")
    assert not np.array_equal(load(tmp_path, "playlist"), before, equal_nan=True)


def test_a_kill_before_old_chunks_are_deleted(tmp_path, monkeypatch):
    """They are of other arguments: a run on record would take them for its own."""
    def killed(*_):
        raise KeyboardInterrupt
    monkeypatch.setattr(chunks, "forget_progress", killed)
    with pytest.raises(KeyboardInterrupt):
        run(make_data(tmp_path), "--modalities", "playlist", "--seed", "1", "--no-resume")
    assert not (tmp_path / "runs").exists()


def test_a_damaged_output_is_made_again(tmp_path):
    make_data(tmp_path)
    run(tmp_path, "--modalities", "playlist")
    path = tmp_path / "embeddings" / "playlist.npy"
    good = path.read_bytes()
    path.write_bytes(good[:-40])
    run(tmp_path, "--modalities", "playlist")
    assert path.read_bytes() == good


@pytest.mark.parametrize("flags, message", [
    (["--item2vec-share", "1.5"], "--item2vec-share 1.5: 0.001 to 1 is accepted"),
    (["--workers", "0"], "--workers 0: 1 or more is accepted"),
    (["--device", "cuba"], "--device cuba: torch knows no such device. Accepted: auto, cpu"),
    (["--text-encoder", "nobody/no-such-encoder"],
     "--text-encoder nobody/no-such-encoder cannot be loaded: .*Accepted: minilm, the folder"),
])
def test_bad_arguments_change_nothing(tmp_path, monkeypatch, flags, message):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    make_data(tmp_path)
    with pytest.raises(SystemExit, match=message):
        run(tmp_path, *flags)
    assert not (tmp_path / "runs").exists() and not (tmp_path / "embeddings").exists()


@pytest.mark.parametrize("ending, damage",
                         [("safetensors", None), ("safetensors", 1000), ("tokenizer", None)])
def test_a_text_encoder_that_is_not_whole(tmp_path, ending, damage):
    """Weights missing, or cut; or no tokenizer: transformers makes one that knows no word."""
    shutil.copytree(text.resolve_text_encoder("minilm"), tmp_path / "model")
    for path in (tmp_path / "model").iterdir():
        if damage and path.suffix == ".safetensors":
            path.write_bytes(path.read_bytes()[:damage])
        elif path.suffix == f".{ending}" or ending == "tokenizer" and path.name.startswith(
                ("tokenizer", "vocab", "special_tokens")):
            path.unlink()
    with pytest.raises(SystemExit, match="--text-encoder .*model cannot be loaded: .* Its folder "
                                         "is not whole; download it again"):
        text.load_text_encoder(text.resolve_text_encoder(str(tmp_path / "model")), "cpu")


def test_missing_files_name_the_stage_before(tmp_path):
    made_by = "is missing; make it with: python 00_prepare_data.py"
    with pytest.raises(SystemExit, match=f"tracks.jsonl {made_by}"):
        run(tmp_path)
    make_data(tmp_path)
    (tmp_path / "playlists.jsonl").unlink()
    with pytest.raises(SystemExit, match=f"playlists.jsonl {made_by}"):
        run(tmp_path)
