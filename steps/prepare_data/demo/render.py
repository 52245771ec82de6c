"""The sound of the fictional catalogue: six seconds of music from a track's facts.

A track's `audio` facts {genre, tempo, tonic, mode, instruments, vocal, energy, seed} become notes
(an arrangement of chords, bass, melody and drums), the notes become sound (steps/prepare_data/demo/instruments.py, one
small recipe an instrument), and the sound is mixed.  The same facts give the same bytes.

    from steps.prepare_data.demo.render import render_track, write_audio
    samples = render_track({"genre": "bossa nova", "tempo": 132, "tonic": 9, "mode": "minor", "seed": 1,
                            "instruments": ["acoustic guitar", "flute"], "vocal": None, "energy": 0.4})
    write_audio("song.flac", samples, 22050)
"""

import os
from functools import lru_cache

import numpy as np
import scipy.fft
import soundfile
from scipy.signal import butter, lfilter

from steps.prepare_data.demo.instruments import ONE_VOICED, PLAYERS, STRUMMED, above, drum, noise_band, note, seconds_axis

SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}

# One bar a string, of any length that divides the bar evenly: 16 steps are sixteenths, 12 and 24 swing.
# x: a hit, o: a soft hit, .: nothing.
#   drums: piece -> pattern        chords, bass: rhythms of the accompaniment and of the bass line
#   hold: how long an accompaniment chord sounds, in beats    band: who plays the chords if nobody else can
#   major, minor: chords by scale degree      stack: notes of a chord, in scale steps from its root
#   drum_level, room: how loud the drums and the reverb are (1: loud, a cathedral)
POWER, TRIAD, SEVENTH = (0, 4), (0, 2, 4), (0, 2, 4, 6)
GENRES = {
    "indie folk": dict(
        drums=dict(shaker="o...o...o...o..."),
        chords="x...x.xo..xox.xo", bass="x.......x.......", hold=1.0, band="acoustic guitar",
        major="1 4 1 5", minor="1 6 1 7", stack=TRIAD, drum_level=0.25, room=0.2),
    "country": dict(
        drums=dict(kick="x.......x.......", brush="ooxoooxoooxoooxo"),
        chords="....x.......x...", bass="x.......x.......", hold=0.6, band="acoustic guitar",
        major="1 4 1 5", minor="1 7 1 5", stack=TRIAD, drum_level=0.6, room=0.12),
    "soul": dict(
        drums=dict(kick="x..o..o.x.......", snare="....x..o....x...", shaker="x.oox.oox.oox.oo"),
        chords="x.......x...o...", bass="x..ox...x...o.o.", hold=0.5, band="electric guitar",
        major="1 6 2 5", minor="1 4 6 5", stack=SEVENTH, drum_level=0.8, room=0.15),
    "jazz": dict(
        drums=dict(ride="x..x.ox..x.o", hat="...x.....x..", brush="o.....o..o..", kick="o..o..o..o.."),
        chords="x....x...x..", bass="x..x..x..x..", hold=0.5, band="piano",
        major="1 6 2 5", minor="1 4 2 5", stack=SEVENTH, drum_level=0.55, room=0.2),
    "bossa nova": dict(
        drums=dict(rim="x..o..o...o..o..", kick="x..ox..ox..ox..o", shaker="x.o.x.o.x.o.x.o."),
        chords="x...o..ox...o..o", bass="x..ox..ox..ox..o", hold=0.7, band="acoustic guitar",
        major="1 2 1 5", minor="1 4 1 7", stack=SEVENTH, drum_level=0.55, room=0.15),
    "hip hop": dict(
        drums=dict(thump="x..........o..x..x......", snare="......x...........x.....", tick="x..o.ox..o..x..o.ox..o.o"),
        chords="x.................o.....", bass="x..........x..x..x......", hold=2.0, band="piano",
        major="1 6 4 5", minor="1 6 4 5", stack=SEVENTH, drum_level=1.0, room=0.1),
    "reggae": dict(
        drums=dict(kick="........x.......", rim="........x.......", hat="o.x.o.x.o.x.o.xo"),
        chords="..x...x...x...x.", bass="x...x.x...x.x...", hold=0.22, band="organ",
        major="1 4 1 5", minor="1 4 1 7", stack=TRIAD, drum_level=0.5, room=0.6),
    "synthpop": dict(
        drums=dict(thump="x...x...x...x...", gated="....x.......x...", tick="x.x.x.x.x.x.x.x."),
        chords="x.......x.......", bass="x.x.x.x.x.x.x.x.", hold=2.0, band="synthesizer",
        major="1 5 6 4", minor="1 6 3 7", stack=TRIAD, drum_level=0.85, room=0.25),
    "house": dict(
        drums=dict(thump="x...x...x...x...", open="..x...x...x...x.", clap="....x.......x...", tick="o.ooo.ooo.ooo.oo"),
        chords="x..o....x..o....", bass="..x.x.x...x.x.x.", hold=0.35, band="piano",
        major="1 4 1 5", minor="1 4 1 7", stack=SEVENTH, drum_level=1.0, room=0.15),
    "techno": dict(
        drums=dict(thump="x...x...x...x...", open="..x...x...x...x.", tick="x.o.x.o.x.o.x.o.", rim="...o..o....o..o."),
        chords="x..x..x...x.....", bass="..xx..xx..xx..xx", hold=0.2, band="synthesizer",
        major="1 1 4 1", minor="1 1 6 1", stack=TRIAD, drum_level=1.2, room=0.2),
    "ambient": dict(
        drums=dict(),
        chords="x...............", bass="x...............", hold=4.0, band="synthesizer",
        major="1 4 1 5", minor="1 6 1 4", stack=TRIAD, drum_level=0.3, room=0.9),
    "indie rock": dict(
        drums=dict(kick="x.....o.x.o.....", snare="....x.......x...",
                   hat="x.o.x.o.x.o.x.o.", cymbal="o..............."),
        chords="x.o.x.oox.o.x.oo", bass="x.o.x.o.x.o.x.o.", hold=0.5, band="electric guitar",
        major="1 5 1 4", minor="1 6 1 7", stack=TRIAD, drum_level=0.9, room=0.12),
    "metal": dict(
        drums=dict(kick="xoooxoooxoooxooo", snare="....x.......x...", cymbal="o.......o......."),
        chords="x.ooxoo.x.ooxoo.", bass="x.ooxoo.x.ooxoo.", hold=0.3, band="electric guitar",
        major="1 4 1 5", minor="1 6 1 7", stack=POWER, drum_level=1.0, room=0.08),
    "modern classical": dict(
        drums=dict(),
        chords="x...o...x...o...", bass="x.......x.......", hold=1.5, band="piano",
        major="1 6 4 5", minor="1 6 4 5", stack=TRIAD, drum_level=0.3, room=0.6),
}
# A drum machine: what takes an acoustic drum's part, its own fill, and a beat where the genre has no drums.
MACHINE = {"kick": "thump", "snare": "clap", "brush": "clap", "hat": "tick", "ride": "tick", "shaker": "tick"}
FILL = dict(tom="......o.......xo")
LIGHT_BEAT = dict(thump="o.......o.......", tick="..o...o...o...o.")
PUMPED = ("house", "techno")  # the kick pushes the other instruments back

MELODIES = ("x.......x...x...", "x...x.x...x.x...", "x.x.x.xxx.x...x.", "x.xx..x.x.xxx.x.")  # from calm to busy
SWUNG_MELODIES = ("x.....x..x..", "x..x.xx.....", "x.xx.x...x.x", "x.xx.xx..x.x")
RAP = "x..x.xx..x.xx..x..x.xx.."


# ---------------------------------------------------------------- notes: (player, midi, start s, length s, loudness)

def strokes(pattern, bar, until):
    """A bar's pattern, repeated every `bar` seconds: a list of (start s, step, gap to the next s, loudness)."""
    steps = [i for i in range(int(np.ceil(until / bar * len(pattern)))) if pattern[i % len(pattern)] != "."]
    starts = [i * bar / len(pattern) for i in steps]
    return [(start, i % len(pattern), end - start, 1.0 if pattern[i % len(pattern)] == "x" else 0.5)
            for start, end, i in zip(starts, [*starts[1:], until], steps)]


def chord_sequence(genre, tonic, mode):
    """The genre's progression: (pitch classes of the chord, of the scale) for each chord.

    Chords are stacked on the scale; the dominant of a minor key is major, as in harmonic minor.
    """
    sequence = []
    for degree in GENRES[genre][mode].split():
        scale = [(tonic + step) % 12 for step in SCALES[mode]]
        if mode == "minor" and degree == "5":
            scale[6] = (tonic + 11) % 12
        sequence.append(([scale[(int(degree) - 1 + step) % 7] for step in GENRES[genre]["stack"]], scale))
    return sequence


def accompany(player, rhythm, hold, chord_at, bar, until):
    """Chords in a rhythm; guitars and banjo strum."""
    low, stagger = PLAYERS[player][1], 0.012 if player in STRUMMED else 0.0
    return [(player, pitch, start + i * stagger, hold, 0.55 * loudness)
            for start, _, _, loudness in strokes(rhythm, bar, until)
            for i, pitch in enumerate(sorted(above(low, p) for p in chord_at(start)[0]))]


def one_by_one(player, low, rhythm, order, chord_at, bar, until):
    """One note of the chord a stroke: order (0,) plays the roots, (0, 1, 2, 1) an arpeggio or a walking bass."""
    notes = []
    for i, (start, _, gap, loudness) in enumerate(strokes(rhythm, bar, until)):
        chord = chord_at(start)[0]
        notes.append((player, above(low, chord[order[i % len(order)] % len(chord)]), start, gap, loudness))
    return notes


def melody(player, rhythm, moves, chord_at, tonic, bar, until):
    """A line that begins near the tonic, repeats one bar's moves (in scale steps) and meets the chord on each beat."""
    low, notes = PLAYERS[player][1], []
    pitch = above(low + 3, tonic)
    for start, step, gap, loudness in strokes(rhythm, bar, until):
        chord, scale = chord_at(start)
        on_beat = step % (len(rhythm) // 4) == 0
        ladder = [p for p in range(low, low + 17) if p % 12 in (chord if on_beat else scale)]
        rung = int(np.argmin(np.abs(np.array(ladder) - pitch))) + (0 if on_beat else moves[step])
        pitch = ladder[min(max(rung, 0), len(ladder) - 1)]
        notes.append((player, pitch, start, min(max(0.9 * gap - 0.05, 0), bar / 2), loudness))
    return notes


def arrange(audio, seconds, rng):
    """Who plays what, drums apart: a list of notes."""
    genre, beat, energy = GENRES[audio["genre"]], 60 / audio["tempo"], audio["energy"]
    bar, sequence = 4 * beat, chord_sequence(audio["genre"], audio["tonic"], audio["mode"])
    chord_seconds = beat * (2 if audio["tempo"] < 130 else 4)  # so that six seconds hold three to six chords

    def chord_at(start):
        return sequence[int(start / chord_seconds + 1e-6) % len(sequence)]

    players = [p for p in audio["instruments"] if p not in ("bass", "drum machine")]
    chordal = [p for p in players if p not in ONE_VOICED] or [genre["band"]]
    leads = [p for p in players if p in ONE_VOICED]
    if audio["vocal"] not in ("instrumental", None):
        leads.insert(0, audio["vocal"])
    if not leads:
        leads = [chordal.pop() if len(chordal) > 1 else chordal[0]]

    notes = accompany(chordal[0], genre["chords"], genre["hold"] * beat, chord_at, bar, seconds)
    for player in chordal[1:]:
        notes += one_by_one(player, PLAYERS[player][1] + 5, "x.o.x.o.x.o.x.o.", (0, 1, 2, 1), chord_at, bar, seconds)
    bassist, low = ("bass", PLAYERS["bass"][1]) if "bass" in audio["instruments"] else (chordal[0], 40)
    order = (0, 1, 2, 1) if audio["genre"] == "jazz" else (0,)
    notes += one_by_one(bassist, low, genre["bass"], order, chord_at, bar, seconds)
    moves = rng.choice([-2, -1, -1, 1, 1, 2], 24)
    for i, player in enumerate(leads):  # the second and later ones answer with a calmer line
        busy = int(np.clip(round(3 * energy + rng.uniform(-0.7, 0.7)) - 2 * i, 0, 3))
        rhythm = (SWUNG_MELODIES if audio["genre"] == "jazz" else MELODIES)[busy]
        own_moves = np.roll(moves, 5 * i)
        if audio["genre"] == "hip hop" and player == audio["vocal"]:
            rhythm, own_moves = RAP, 0 * moves  # spoken, nearly on one pitch
        notes += melody(player, rhythm, own_moves, chord_at, audio["tonic"], bar, seconds)
    return notes


# ---------------------------------------------------------------- mixing

def play(notes, swell, n, rate):
    """Add notes, each swelling in over `swell` s and released over 60 ms, to silence. Returns (n,) float32."""
    sound, release = np.zeros(n, dtype=np.float32), int(0.06 * rate)
    rise, fall = (np.linspace(*ends, dtype=np.float32) for ends in ((0, 1, int(swell * rate)), (1, 0, release)))
    for player, midi, start, length, loudness in notes:
        tone = loudness * note(player, midi, rate)[:int(length * rate) + release]
        tone[:len(rise)] *= rise[:len(tone)]
        tone[-release:] *= fall
        first = int(start * rate)
        sound[first:first + len(tone)] += tone[:max(n - first, 0)]
    return sound


def beat_out(drums, tonic, bar, n, rate, rng):
    """Play a bar's drum patterns {piece: pattern} to the end. Returns (n,) float32."""
    sound = np.zeros(n, dtype=np.float32)
    for piece, pattern in drums.items():
        stroke = drum(piece, tonic, rate)
        for start, _, _, loudness in strokes(pattern, bar, n / rate):
            first = int(start * rate)
            sound[first:first + len(stroke)] += loudness * rng.uniform(0.9, 1.1) * stroke[:n - first]
    return sound


@lru_cache(maxsize=32)
def hall(size, rate, length):
    """Spectrum (real FFT of `length`) of a room's echo: noise that dies away."""
    t = seconds_axis(1.6, rate)
    tail = noise_band(len(t), 200, 5000, rate, 3) * np.exp(-t / (0.06 + 0.25 * size)) * (t > 0.012)
    return scipy.fft.rfft((tail / np.sqrt(np.sum(tail ** 2))).astype(np.float32), length)


def reverberate(sound, size, rate):
    length = scipy.fft.next_fast_len(len(sound) + int(1.6 * rate), real=True)
    wet = scipy.fft.irfft(scipy.fft.rfft(sound, length) * hall(size, rate, length), length)
    return sound + np.float32(0.2 + 0.5 * size) * wet[:len(sound)]


def render_track(audio, seconds=6.0, rate=22050):
    """The sound of a fictional track.

    audio: {"genre": of GENRES, "tempo": BPM, "tonic": 0 to 11 (0 = C), "mode": "major" or "minor",
    "instruments": names of PLAYERS or "drum machine", "vocal": "female vocals", "male vocals", "choir",
    "instrumental" or None, "energy": 0 to 1, "seed": int}. seconds, rate (Hz, 16,000 or more): of the result.

    Returns: (round(seconds * rate),) float32, mono, within [-1, 1]; the same facts give the same bytes.
    Raises KeyError: a genre, mode, instrument or vocal that is not known.
    """
    genre, rng, n = GENRES[audio["genre"]], np.random.default_rng(audio["seed"]), round(seconds * rate)
    bar, energy = 240 / audio["tempo"], audio["energy"]
    music = play(arrange(audio, seconds, rng), 0.2 if audio["genre"] == "ambient" else 0.002, n, rate)
    if audio["genre"] == "metal":
        music = np.float32(0.35) * np.tanh(np.float32(4) * music)  # distortion
    if audio["genre"] in PUMPED:
        music *= (0.35 + 0.65 * (np.arange(n) / rate * 4 / bar % 1) ** 0.5).astype(np.float32)
    b, a = butter(1, min(1500 + 7000 * energy, 0.45 * rate), fs=rate)  # calm music is darker
    music = reverberate(lfilter(b.astype(np.float32), a.astype(np.float32), music), genre["room"], rate)

    drums = genre["drums"]
    if "drum machine" in audio["instruments"]:
        drums = ({MACHINE.get(piece, piece): pattern for piece, pattern in drums.items()} or LIGHT_BEAT) | FILL
    drum_level = 0.5 * genre["drum_level"] * (0.6 + 0.4 * energy)
    mix = music + np.float32(drum_level) * beat_out(drums, audio["tonic"], bar, n, rate, rng)
    mix *= np.float32((0.09 + 0.12 * energy) / np.sqrt(np.mean(mix ** 2)))
    mix = np.float32(0.97) * np.tanh(mix)  # soft limiter
    mix[:rate // 200] *= np.linspace(0, 1, rate // 200, dtype=np.float32)  # fades of 5 and 100 ms
    mix[-(rate // 10):] *= np.linspace(1, 0, rate // 10, dtype=np.float32)
    return mix


def write_audio(path, samples, rate):
    """Write mono samples (n,) in [-1, 1] as 16-bit FLAC, atomically. rate: Hz."""
    temporary = f"{path}.tmp"
    soundfile.write(temporary, samples, rate, format="FLAC", subtype="PCM_16")
    os.replace(temporary, path)
