"""The sound of the fictional catalogue (render.py, instruments.py), measured with numpy only."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from steps.prepare_data.demo import instruments, render

ROOT = Path(__file__).resolve().parent.parent
LEXICON = json.loads((ROOT / "common" / "lexicon.json").read_text(encoding="utf-8"))
RATE = 22050


def facts(**changes):
    audio = {"genre": "techno", "tempo": 128.0, "tonic": 9, "mode": "minor",
             "instruments": ["synthesizer", "bass"],
             "vocal": None, "energy": 0.6, "seed": 7}
    return {**audio, **changes}


def pitch_class_profile(samples, rate=RATE):
    """(12,) energy of each pitch class, 100 to 2,000 Hz, from one long spectrum."""
    power = np.abs(np.fft.rfft(samples * np.hanning(len(samples)))) ** 2
    hertz = np.fft.rfftfreq(len(samples), 1 / rate)
    inside = (hertz > 100) & (hertz < 2000)
    pitch = np.round(69 + 12 * np.log2(hertz[inside] / 440)).astype(int) % 12
    return np.bincount(pitch, power[inside], 12)


def onset_tempo(samples, rate=RATE, low=90, high=180):
    """BPM, from the autocorrelation of the rises in loudness below 200 Hz, where the kick is."""
    frames = np.lib.stride_tricks.sliding_window_view(samples, 1024)[::128] * np.hanning(1024)
    loudness = np.log(1 + np.abs(np.fft.rfft(frames, axis=1)[:, 1:11]))
    rises = np.maximum(np.diff(loudness, axis=0), 0).mean(axis=1)
    rises -= rises.mean()
    lags = np.arange(int(60 / high * rate / 128), int(60 / low * rate / 128) + 1)
    return 60 * rate / 128 / lags[np.argmax([rises[lag:] @ rises[:-lag] for lag in lags])]


def test_the_same_facts_give_the_same_bytes():
    audio = facts(genre="soul", instruments=["organ", "trumpet"], vocal="choir")
    first = render.render_track(audio).tobytes()
    assert render.render_track(audio).tobytes() == first
    code = ("import hashlib; from steps.prepare_data.demo import render; "
            f"print(hashlib.sha256(render.render_track({audio!r}).tobytes()).hexdigest())")
    other = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                           check=True)
    # the order of earlier tracks does not matter
    assert other.stdout.strip() == hashlib.sha256(first).hexdigest()
    assert render.render_track({**audio, "seed": 8}).tobytes() != first


@pytest.mark.parametrize("seconds, rate", [(6.0, 22050), (2.5, 16000), (1.0, 48000)])
def test_length_rate_and_fades(seconds, rate):
    samples = render.render_track(facts(), seconds, rate)
    assert samples.shape == (round(seconds * rate),) and samples.dtype == np.float32
    assert samples[0] == 0 and samples[-1] == 0


def test_every_concept_of_the_lexicon_can_be_played():
    for genre in LEXICON["genre"]:
        for i, instrument in enumerate(LEXICON["instrument"]):
            vocal = list(LEXICON["vocal"])[i % 4]
            samples = render.render_track(facts(genre=genre, instruments=[instrument], vocal=vocal,
                                                mode=("major", "minor")[i % 2], tempo=70 + 8 * i),
                                          seconds=1.5)
            assert np.isfinite(samples).all() and np.abs(samples).max() <= 1, (genre, instrument)
            assert np.sqrt(np.mean(samples ** 2)) > 0.05, (genre, instrument)
    with pytest.raises(KeyError, match="kazoo"):
        render.render_track(facts(instruments=["kazoo"]))


def test_each_genre_instrument_and_voice_changes_the_sound():
    for key, values in (("genre", LEXICON["genre"]), ("vocal", LEXICON["vocal"]),
                        ("instruments", [[name] for name in LEXICON["instrument"]])):
        sounds = {render.render_track(facts(instruments=["piano"]) | {key: value}, 1.5).tobytes()
                  for value in values}
        assert len(sounds) == len(values), key


def test_patterns_divide_the_bar_and_name_drums_that_exist():
    for genre in render.ARRANGEMENTS.values():
        for pattern in (*genre["drums"].values(), genre["chords"], genre["bass"]):
            assert len(pattern) in (12, 16, 24) and set(pattern) <= set("xo.")
        assert set(genre["drums"]) <= set(instruments.DRUMS)


@pytest.mark.parametrize("genre", ["techno", "house"])
@pytest.mark.parametrize("tempo", [118, 127, 141])
def test_four_on_the_floor_has_the_tempo(genre, tempo):
    assert onset_tempo(render.render_track(facts(genre=genre, tempo=tempo))) == pytest.approx(tempo,
            rel=0.03)


@pytest.mark.parametrize("mode, triad", [("major", (0, 4, 7)), ("minor", (0, 3, 7))])
@pytest.mark.parametrize("tonic", [0, 5, 10])
def test_the_key_is_in_the_sound(tonic, mode, triad):
    """The scale holds nearly all the energy, and over the genres the tonic triad most of it."""
    scale = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}[mode]
    total = np.zeros(12)
    for genre, instrument in (("indie folk", "acoustic guitar"), ("ambient", "strings"),
                              ("reggae", "organ")):
        audio = facts(genre=genre, tempo=80, tonic=tonic, mode=mode, instruments=[instrument],
                      vocal="female vocals")
        profile = np.roll(pitch_class_profile(render.render_track(audio)), -tonic)
        profile /= profile.sum()
        assert profile[list(scale)].sum() > 0.9, (genre, profile)
        total += profile
    assert total[list(triad)].sum() > 0.5 * total.sum(), total


def test_chords_of_c_major_and_a_minor_by_hand():
    chords = [chord for chord, _ in render.chord_sequence("indie folk", 0, "major")]  # 1 4 1 5
    assert chords == [[0, 4, 7], [5, 9, 0], [0, 4, 7], [7, 11, 2]]  # C F C G
    chords = [chord for chord, _ in render.chord_sequence("country", 9, "minor")]  # 1 7 1 5
    assert chords == [[9, 0, 4], [7, 11, 2], [9, 0, 4], [4, 8, 11]]  # Am G Am E (its third raised)


@pytest.mark.parametrize("player", ["acoustic guitar", "banjo", "bass", "flute", "trumpet",
                                    "vibraphone", "choir"])
def test_notes_are_in_tune(player):
    """The strongest partial of A's lies on a harmonic of A, within a fifth of a semitone."""
    midi = 45 if player == "bass" else 69
    sound = instruments.note(player, midi, RATE)[:RATE]
    peak = np.argmax(np.abs(np.fft.rfft(sound * np.hanning(RATE))))  # one second: bins of 1 Hz
    hertz = 440 * 2 ** ((midi - 69) / 12)
    assert abs(12 * np.log2(peak / hertz / max(1, round(peak / hertz)))) < 0.2


def test_energy_is_loudness():
    level = [np.sqrt(np.mean(render.render_track(facts(energy=e)) ** 2)) for e in (0.0, 0.5, 1.0)]
    assert level[0] * 1.3 < level[1] and level[1] * 1.2 < level[2]


def test_write_and_read_back(tmp_path):
    samples = render.render_track(facts(), 1.0)
    path = tmp_path / "song.flac"
    render.write_audio(path, samples, RATE)
    back, rate = soundfile.read(path, dtype="float32")
    assert rate == RATE and soundfile.info(path).subtype == "PCM_16"
    assert np.abs(back - samples).max() <= 1 / 2 ** 15
    assert [p.name for p in tmp_path.iterdir()] == ["song.flac"]  # no temporary name is left
