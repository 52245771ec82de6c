"""The sound of the fictional catalogue: six seconds of music from a track's "audio".

It becomes notes: chords, bass, melody and drums. The notes become sound (instruments.py: one small
recipe per instrument), and the sound is mixed. The same "audio" gives the same bytes.
"""

import os
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache

import numpy as np
import scipy.fft
import soundfile
from scipy.signal import butter, lfilter
from tqdm import tqdm

from common.process import end_with_parent
from steps.prepare_data.demo import instruments
from steps.prepare_data.demo.instruments import above, seconds_axis
from steps.prepare_data.demo.writing import PROFILES

RATE = 22_050  # Hz, of the demo's audio
SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}

# How a genre is played. A string is one bar, in steps of equal length: 16 steps are sixteenths, 12
# and 24 swing. x: a hit, o: a soft hit, .: nothing.
#   drums, chords, bass: patterns of each drum, of the accompaniment and of the bass line
#   hold: how long an accompaniment chord sounds, in beats
#   band: who plays the chords if nobody else can
#   major, minor: chords by scale degree; stack: notes of a chord, in scale steps from its root
#   drum_level, room: how loud the drums and the reverb are (1: loud, a cathedral)
ARRANGEMENTS = {genre: profile["arrangement"] for genre, profile in PROFILES.items()}
# A drum machine: which acoustic drums' parts it takes, its fill, a beat for genres without drums.
MACHINE = {"kick": "thump", "snare": "clap", "brush": "clap", "hat": "tick", "ride": "tick",
           "shaker": "tick"}
FILL = dict(tom="......o.......xo")
LIGHT_BEAT = dict(thump="o.......o.......", tick="..o...o...o...o.")
PUMPED = ("house", "techno")  # the kick pushes the other instruments back

# from calm to busy
MELODIES = ("x.......x...x...", "x...x.x...x.x...", "x.x.x.xxx.x...x.", "x.xx..x.x.xxx.x.")
SWUNG_MELODIES = ("x.....x..x..", "x..x.xx.....", "x.xx.x...x.x", "x.xx.xx..x.x")
RAP = "x..x.xx..x.xx..x..x.xx.."


# ---------------------------------------------------------------- notes
# A note is (player, midi, start s, length s, loudness).

def strokes(pattern, bar, until):
    """A bar's pattern, repeated every `bar` s: list of (start s, step, s to the next, loudness)."""
    n = len(pattern)
    steps = [i for i in range(int(np.ceil(until / bar * n))) if pattern[i % n] != "."]
    starts = [i * bar / n for i in steps]
    ends = [*starts, until][1:]
    return [(start, i % n, end - start, 1.0 if pattern[i % n] == "x" else 0.5)
            for start, end, i in zip(starts, ends, steps, strict=True)]


def chord_sequence(genre, tonic, mode):
    """The genre's progression: (pitch classes of the chord, of the scale) for each chord.

    Chords are stacked on the scale; the dominant of a minor key is major, as in harmonic minor.
    """
    sequence = []
    for degree in map(int, ARRANGEMENTS[genre][mode].split()):
        scale = [(tonic + step) % 12 for step in SCALES[mode]]
        if mode == "minor" and degree == 5:
            scale[6] = (tonic + 11) % 12
        stack = ARRANGEMENTS[genre]["stack"]
        sequence.append(([scale[(degree - 1 + step) % 7] for step in stack], scale))
    return sequence


def accompany(player, rhythm, hold, chord_at, bar, until):
    """Chords in a rhythm; guitars and banjo strum."""
    low = instruments.PLAYERS[player][1]
    stagger = 0.012 if player in instruments.STRUMMED else 0.0  # s
    return [(player, pitch, start + i * stagger, hold, 0.55 * loudness)
            for start, _, _, loudness in strokes(rhythm, bar, until)
            for i, pitch in enumerate(sorted(above(low, p) for p in chord_at(start)[0]))]


def one_by_one(player, low, rhythm, order, chord_at, bar, until):
    """One note of the chord per stroke.

    order: (0,) plays the roots, (0, 1, 2, 1) an arpeggio or a walking bass.
    """
    notes = []
    for i, (start, _, gap, loudness) in enumerate(strokes(rhythm, bar, until)):
        chord = chord_at(start)[0]
        pitch_class = chord[order[i % len(order)] % len(chord)]
        notes.append((player, above(low, pitch_class), start, gap, loudness))
    return notes


def melody(player, rhythm, moves, chord_at, tonic, bar, until):
    """A line that begins near the tonic and meets the chord on each beat.

    moves: by how many notes of the scale it goes up or down at each step, the same in every bar.
    """
    low = instruments.PLAYERS[player][1]
    pitch = above(low + 3, tonic)
    notes = []
    for start, step, gap, loudness in strokes(rhythm, bar, until):
        chord, scale = chord_at(start)
        on_beat = step % (len(rhythm) // 4) == 0

        # the notes that may come next, and from the nearest one to the last pitch so many up
        ladder = [p for p in range(low, low + 17) if p % 12 in (chord if on_beat else scale)]
        rung = int(np.argmin(np.abs(np.array(ladder) - pitch)))
        if not on_beat:
            rung += moves[step]
        pitch = ladder[min(max(rung, 0), len(ladder) - 1)]
        notes.append((player, pitch, start, min(max(0.9 * gap - 0.05, 0), bar / 2), loudness))
    return notes


def arrange(audio, seconds, rng):
    """Who plays what, drums apart: a list of notes."""
    genre, beat = ARRANGEMENTS[audio["genre"]], 60 / audio["tempo"]
    bar = 4 * beat
    sequence = chord_sequence(audio["genre"], audio["tonic"], audio["mode"])
    chord_seconds = beat * (2 if audio["tempo"] < 130 else 4)  # six seconds hold three to six

    def chord_at(start):
        return sequence[int(start / chord_seconds + 1e-6) % len(sequence)]

    # who plays chords, who leads
    players = [p for p in audio["instruments"] if p not in ("bass", "drum machine")]
    chordal = [p for p in players if p not in instruments.ONE_VOICED] or [genre["band"]]
    leads = [p for p in players if p in instruments.ONE_VOICED]
    if audio["vocal"] not in ("instrumental", None):
        leads.insert(0, audio["vocal"])
    leads = leads or [chordal.pop() if len(chordal) > 1 else chordal[0]]

    # accompaniment: chords, arpeggios, bass
    notes = accompany(chordal[0], genre["chords"], genre["hold"] * beat, chord_at, bar, seconds)
    for player in chordal[1:]:
        low = instruments.PLAYERS[player][1] + 5
        notes += one_by_one(player, low, "x.o.x.o.x.o.x.o.", (0, 1, 2, 1), chord_at, bar, seconds)
    bassist, low = chordal[0], 40
    if "bass" in audio["instruments"]:
        bassist, low = "bass", instruments.PLAYERS["bass"][1]
    order = (0, 1, 2, 1) if audio["genre"] == "jazz" else (0,)
    notes += one_by_one(bassist, low, genre["bass"], order, chord_at, bar, seconds)

    # melodies: the second and later leads answer with a calmer line
    moves = rng.choice([-2, -1, -1, 1, 1, 2], 24)
    for i, player in enumerate(leads):
        busy = round(3 * audio["energy"] + rng.uniform(-0.7, 0.7)) - 2 * i
        rhythm = (SWUNG_MELODIES if audio["genre"] == "jazz" else MELODIES)[min(max(busy, 0), 3)]
        own_moves = np.roll(moves, 5 * i)
        if audio["genre"] == "hip hop" and player == audio["vocal"]:
            rhythm, own_moves = RAP, 0 * moves  # spoken, nearly on one pitch
        notes += melody(player, rhythm, own_moves, chord_at, audio["tonic"], bar, seconds)
    return notes


# ---------------------------------------------------------------- mixing

def play(notes, swell, n, rate):
    """Sum of the notes, (n,) float32; each swells in over `swell` s and is released over 60 ms."""
    sound = np.zeros(n, dtype=np.float32)
    release = int(0.06 * rate)
    rise = np.linspace(0, 1, int(swell * rate), dtype=np.float32)
    fall = np.linspace(1, 0, release, dtype=np.float32)
    for player, midi, start, length, loudness in notes:
        tone = loudness * instruments.note(player, midi, rate)[:int(length * rate) + release]
        tone[:len(rise)] *= rise[:len(tone)]
        tone[-release:] *= fall
        first = int(start * rate)
        sound[first:first + len(tone)] += tone[:max(n - first, 0)]
    return sound


def beat_out(drums, tonic, bar, n, rate, rng):
    """Play a bar's drum patterns {piece: pattern} to the end. Returns (n,) float32."""
    sound = np.zeros(n, dtype=np.float32)
    for piece, pattern in drums.items():
        stroke = instruments.drum(piece, tonic, rate)
        for start, _, _, loudness in strokes(pattern, bar, n / rate):
            first = int(start * rate)
            level = loudness * rng.uniform(0.9, 1.1)
            sound[first:first + len(stroke)] += level * stroke[:n - first]
    return sound


@lru_cache(maxsize=32)
def hall(size, rate, length):
    """Spectrum (real FFT of `length`) of a room's echo: noise that dies away."""
    t = seconds_axis(1.6, rate)
    tail = instruments.noise_band(len(t), 200, 5000, rate, 3) * np.exp(-t / (0.06 + 0.25 * size))
    tail *= t > 0.012  # s, before the first echo
    return scipy.fft.rfft((tail / np.sqrt(np.sum(tail ** 2))).astype(np.float32), length)


def reverberate(sound, size, rate):
    length = scipy.fft.next_fast_len(len(sound) + int(1.6 * rate), real=True)
    wet = scipy.fft.irfft(scipy.fft.rfft(sound, length) * hall(size, rate, length), length)
    return sound + np.float32(0.2 + 0.5 * size) * wet[:len(sound)]


def render_track(audio, seconds=6.0, rate=RATE):
    """The sound of a fictional track.

    audio: {"genre": one of ARRANGEMENTS, "tempo": BPM, "tonic": 0 to 11 (0 = C), "mode": "major" or
        "minor", "instruments": names from PLAYERS or "drum machine", "vocal": "female vocals",
        "male vocals", "choir", "instrumental" or None, "energy": 0 to 1, "seed": int}.
    rate: of the result (Hz), 16,000 or more.
    Returns: mono, within [-1, 1], (round(seconds * rate),) float32.
    """
    genre, energy = ARRANGEMENTS[audio["genre"]], audio["energy"]
    rng = np.random.default_rng(audio["seed"])
    n = round(seconds * rate)
    bar = 240 / audio["tempo"]  # s

    # the instruments and their room
    swell = 0.2 if audio["genre"] == "ambient" else 0.002
    music = play(arrange(audio, seconds, rng), swell, n, rate)
    if audio["genre"] == "metal":
        music = np.float32(0.35) * np.tanh(np.float32(4) * music)  # distortion
    if audio["genre"] in PUMPED:
        beat = np.arange(n) / rate * 4 / bar % 1  # 0 to 1 between two kicks
        music *= (0.35 + 0.65 * beat ** 0.5).astype(np.float32)
    b, a = butter(1, min(1500 + 7000 * energy, 0.45 * rate), fs=rate)  # calm music is darker
    music = lfilter(b.astype(np.float32), a.astype(np.float32), music)
    music = reverberate(music, genre["room"], rate)

    # the drums
    drums = genre["drums"]
    if "drum machine" in audio["instruments"]:
        drums = {MACHINE.get(piece, piece): pattern for piece, pattern in drums.items()}
        drums = (drums or LIGHT_BEAT) | FILL
    drum_level = 0.5 * genre["drum_level"] * (0.6 + 0.4 * energy)
    mix = music + np.float32(drum_level) * beat_out(drums, audio["tonic"], bar, n, rate, rng)

    # the level, and fades of 5 and 100 ms
    mix *= np.float32((0.09 + 0.12 * energy) / np.sqrt(np.mean(mix ** 2)))
    mix = np.float32(0.97) * np.tanh(mix)  # soft limiter
    mix[:rate // 200] *= np.linspace(0, 1, rate // 200, dtype=np.float32)
    mix[-(rate // 10):] *= np.linspace(1, 0, rate // 10, dtype=np.float32)
    return mix


def write_audio(path, samples, rate):
    """Write mono samples (n,) in [-1, 1] as 16-bit FLAC, atomically. rate: Hz."""
    temporary = f"{path}.tmp"
    soundfile.write(temporary, samples, rate, format="FLAC", subtype="PCM_16")
    os.replace(temporary, path)


def render_file(job):
    """Render one track to a file. job: (its "audio", path)."""
    audio, path = job
    write_audio(path, render_track(audio), RATE)


def render_all(jobs, workers):
    """Render the (audio, path) jobs that have no file yet; a file that is there is whole."""
    jobs = [(audio, path) for audio, path in jobs if not path.is_file()]
    with ProcessPoolExecutor(workers, initializer=end_with_parent) as pool:
        files = pool.map(render_file, jobs, chunksize=4) if workers > 1 else map(render_file, jobs)
        for _ in tqdm(files, total=len(jobs), desc="audio", unit="track"):
            pass
