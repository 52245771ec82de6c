"""The instruments, voices and drums of the fictional catalogue: one small recipe each.

A recipe takes a MIDI note, the times t of its samples (s) and their rate (Hz). It gives the raw
sound of one note. `note` and `drum` bring the sounds to their level and keep them.
"""

import json
from functools import lru_cache
from pathlib import Path

import numpy as np
from scipy.signal import butter, lfilter

# ---------------------------------------------------------------- helpers

def seconds_axis(seconds, rate):
    return np.arange(int(seconds * rate)) / rate


def hertz_of(midi):
    return 440 * 2 ** ((midi - 69) / 12)


def above(low, pitch_class):
    """The first note of a pitch class at or above a MIDI note."""
    return low + (pitch_class - low) % 12


def phase_of(midi, t, vibrato=0.0, speed=5.3, cents=0.0):
    """Running phase (rad) of a note.

    vibrato: its depth as a share of the pitch; it grows in over 0.4 s. speed: of the vibrato, Hz.
    """
    wobble = vibrato * np.minimum(t / 0.4, 1) * np.sin(2 * np.pi * speed * t)
    return 2 * np.pi * np.cumsum(hertz_of(midi + cents / 100) * (1 + wobble)) * (t[1] - t[0])


def additive(phase, weights):
    """Sum of weights[k] sin((k + 1) phase): a polynomial in exp(i phase), by Horner's rule."""
    z = np.exp(1j * phase).astype(np.complex64)
    total = np.zeros_like(z)
    for weight in weights[::-1]:
        total = (total + np.float32(weight)) * z
    return total.imag


def harmonics(midi, rate, most=40):
    """Numbers 1, 2, ... and frequencies (Hz) of the harmonics of a note below 0.45 rate."""
    k = np.arange(1, min(most, int(0.45 * rate / hertz_of(midi))) + 1)
    return k, k * hertz_of(midi)


def noise_band(n, low, high, rate, seed):
    """White noise between two frequencies (Hz)."""
    b, a = butter(1, [low, min(high, 0.45 * rate)], "bandpass", fs=rate)
    return lfilter(b, a, np.random.default_rng(seed).standard_normal(n))


def attack(t, seconds):
    return np.minimum(t / seconds, 1)


# ---------------------------------------------------------------- instruments and voices

def pluck(midi, t, rate, brightness, sustain):
    """Karplus-Strong string: a burst of noise in a delay line whose loop damps the treble.

    brightness: of the burst, 0 to 1. sustain: gain of the loop, just below 1.
    """
    period = rate / hertz_of(midi) - 0.5  # the averaging below delays by half a sample
    whole, part = int(period), period % 1
    burst = np.random.default_rng(midi).uniform(-1, 1, whole + 1)
    burst = lfilter([brightness], [1, brightness - 1], burst - burst.mean())
    loop = np.zeros(whole + 3)
    loop[0] = 1
    loop[whole:] = -sustain * np.convolve([0.5, 0.5], [1 - part, part])
    return lfilter([1], loop, np.concatenate([burst, np.zeros(len(t) - len(burst))]))


def acoustic_guitar(midi, t, rate):
    return pluck(midi, t, rate, 0.5, 0.996) * np.exp(-1.2 * t)


def electric_guitar(midi, t, rate):
    return np.tanh(2.5 * pluck(midi, t, rate, 0.35, 0.999)) * np.exp(-0.6 * t)


def banjo(midi, t, rate):
    return pluck(midi, t, rate, 0.95, 0.985) * np.exp(-5 * t)


def bass(midi, t, rate):
    k, phase = harmonics(midi, rate, 12)[0], phase_of(midi, t)
    finger = additive(phase, 0.6 / k ** 0.5) * np.exp(-12 * t)
    return (additive(phase, 1 / k ** 1.5) + finger) * np.exp(-1.5 * t)


def piano(midi, t, rate):
    k, phase = harmonics(midi, rate, 24)[0], phase_of(midi, t)
    body = additive(phase, 1 / k ** 1.8) * np.exp(-1.6 * t)
    return body + additive(phase, 1 / k ** 0.9) * np.exp(-9 * t)  # the hammer: bright and short


def strings(midi, t, rate):
    k, hertz = harmonics(midi, rate)
    weights = 1 / k / (1 + (hertz / 3500) ** 2)
    desks = sum(additive(phase_of(midi, t, 0.004, speed, cents), weights)
                for speed, cents in ((5.1, -5), (5.6, 1), (6.1, 6)))
    return desks * attack(t, 0.12)


def synthesizer(midi, t, rate):
    k, hertz = harmonics(midi, rate)
    saw = 1 / k / (1 + (hertz / 2500) ** 2)
    low, high = phase_of(midi, t, cents=-9), phase_of(midi, t, cents=9)
    opening = additive(high, 1 / k) * np.exp(-5 * t)  # the filter closes
    return additive(low, saw) + additive(high, saw) + opening


def organ(midi, t, rate):
    drawbars = np.array([0.4, 0.9, 0.25, 0.6, 0, 0.35, 0, 0.3])  # 16', 8', 5 1/3', 4', 2 2/3', 2'
    click = noise_band(len(t), 1500, 5000, rate, midi) * np.exp(-150 * t)
    tremolo = 1 + 0.18 * np.sin(2 * np.pi * 6.6 * t)
    return additive(phase_of(midi - 12, t), drawbars) * tremolo + 0.15 * click


def saxophone(midi, t, rate):
    k, hertz = harmonics(midi, rate, 24)
    weights = (np.exp(-((hertz - 800) / 700) ** 2) + 0.25 / k) * np.where(k % 2, 1, 0.7)
    breath = noise_band(len(t), 900, 4000, rate, midi)
    scoop = -25 * np.exp(-14 * t)  # cents: it slides up to the note
    tone = additive(phase_of(midi, t, 0.006, 5.0, scoop), weights)
    return (tone + 0.12 * breath) * attack(t, 0.05)


def trumpet(midi, t, rate):
    phase = phase_of(midi, t, 0.003, 5.5)
    index = 4.5 * attack(t, 0.07) * (0.65 + 0.35 * np.exp(-3 * t))  # FM: brighter as it swells
    return np.sin(phase + index * np.sin(phase)) * attack(t, 0.035)


def harmonica(midi, t, rate):
    k, _ = harmonics(midi, rate, 10)
    reed = np.array([0.7, 1, 0.8, 0.7, 0.5, 0.5, 0.3, 0.25, 0.15, 0.1])[:len(k)]
    reeds = additive(phase_of(midi, t), reed) + 0.7 * additive(phase_of(midi, t, cents=11), reed)
    return reeds * attack(t, 0.04) * (1 + 0.25 * np.sin(2 * np.pi * 4.5 * t))


def flute(midi, t, rate):
    breath = noise_band(len(t), 1800, 6000, rate, midi)
    tone = additive(phase_of(midi, t, 0.005, 4.8), [1, 0.35, 0.12, 0.04])
    return (tone * (1 + 0.15 * np.sin(2 * np.pi * 4.8 * t)) + 0.18 * breath) * attack(t, 0.07)


def vibraphone(midi, t, rate):
    phase = phase_of(midi, t)
    bar = np.sin(phase) * np.exp(-1.3 * t) + 0.5 * np.sin(4 * phase) * np.exp(-6 * t)
    if 10 * phase[1] < 0.9 * np.pi:  # the third partial, where the rate can hold it
        bar += 0.2 * np.sin(10 * phase) * np.exp(-18 * t)
    return bar * (1 + 0.4 * np.sin(2 * np.pi * 5 * t))


def voice(midi, t, rate, formants, cents=0.0, speed=5.4):
    """An "aah": harmonics under the formants [(Hz, gain, width Hz)] of a throat."""
    k, hertz = harmonics(midi, rate)
    throat = sum(gain * np.exp(-((hertz - centre) / width) ** 2)
                 for centre, gain, width in formants)
    breath = noise_band(len(t), 2000, 6000, rate, midi)
    scoop = cents - 40 * np.exp(-16 * t)
    tone = additive(phase_of(midi, t, 0.008, speed, scoop), (throat + 0.04) / k ** 0.5)
    return (tone + 0.03 * breath) * attack(t, 0.06)


def female_vocals(midi, t, rate):
    throat = ((900, 1, 220), (1450, 0.7, 220), (3000, 0.3, 400), (4200, 0.15, 400))
    return voice(midi, t, rate, throat)


def male_vocals(midi, t, rate):
    throat = ((650, 1, 150), (1080, 0.6, 150), (2450, 0.3, 300), (3300, 0.15, 300))
    return voice(midi, t, rate, throat)


def choir(midi, t, rate):
    low = ((600, 1, 170), (1000, 0.5, 170), (2600, 0.15, 350))
    high = ((800, 1, 200), (1250, 0.5, 200), (2900, 0.15, 400))
    singers = ((low, -14, 4.9), (high, -5, 5.3), (low, 3, 5.7), (high, 9, 6.1), (low, 16, 4.6))
    return sum(voice(midi, t, rate, throat, cents, speed)
               for throat, cents, speed in singers) * attack(t, 0.15)


# Recipe, lowest note (MIDI), level, longest note (s). Chords and melodies lie in the 17 semitones
# above the lowest note.
PLAYERS = {
    "acoustic guitar": (acoustic_guitar, 52, 1.0, 2), "bass": (bass, 33, 1.5, 2),
    "electric guitar": (electric_guitar, 50, 1.0, 2), "banjo": (banjo, 60, 1.0, 2),
    "piano": (piano, 55, 1.0, 2), "strings": (strings, 57, 0.9, 4), "flute": (flute, 71, 0.9, 4),
    "synthesizer": (synthesizer, 55, 0.8, 4), "saxophone": (saxophone, 56, 1.0, 4),
    "trumpet": (trumpet, 62, 0.9, 4), "organ": (organ, 57, 0.7, 4),
    "harmonica": (harmonica, 64, 0.8, 4), "vibraphone": (vibraphone, 64, 1.0, 2),
    "female vocals": (female_vocals, 64, 1.2, 4), "male vocals": (male_vocals, 50, 1.2, 4),
    "choir": (choir, 58, 1.1, 4)}
ONE_VOICED = ("saxophone", "trumpet", "harmonica", "flute")  # play lines, not chords
STRUMMED = ("acoustic guitar", "electric guitar", "banjo")


@lru_cache(maxsize=600)
def note(player, midi, rate):
    """One note, as long as it can be held, float32. Its level: the RMS of the first half second."""
    recipe, _, level, longest = PLAYERS[player]
    sound = recipe(midi, seconds_axis(longest, rate), rate)
    return (0.1 * level * sound / np.sqrt(np.mean(sound[:rate // 2] ** 2))).astype(np.float32)


# ---------------------------------------------------------------- drums

# Noise: level, length (s), band (Hz), decay (1/s). Many have a thud too, a falling sine: level,
# first and last frequency (Hz; null: the tonic of the key, as a studio tunes drums), fall, decay.
DRUMS = json.loads((Path(__file__).parent / "drums.json").read_text(encoding="utf-8"))


@lru_cache(maxsize=200)
def drum(piece, tonic, rate):
    """One drum stroke (float32)."""
    burst = DRUMS[piece]
    t = seconds_axis(burst["seconds"], rate)
    noise = noise_band(len(t), burst["low"], burst["high"], rate, burst["low"])
    sound = burst["level"] * noise * np.exp(-burst["decay"] * t)
    if thud := burst.get("thud"):
        last, fall = thud["last"] or hertz_of(above(28, tonic)), thud["fall"]
        phase = 2 * np.pi * (last * t + (thud["first"] - last) * (1 - np.exp(-fall * t)) / fall)
        sound += thud["level"] * np.sin(phase) * np.exp(-thud["decay"] * t)
    return (sound * np.minimum(1, (burst["seconds"] - t) / 0.01)).astype(np.float32)
