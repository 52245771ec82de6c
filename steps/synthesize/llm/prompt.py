"""What a language model is asked: a chunk of a playlist, written into prompt.txt.

The tracks are called P1, P2, ... (of the playlist) and N1, N2, ... (of the negative set). Real ids
cost many tokens, and models make mistakes in 22 random letters.
"""

import math
from pathlib import Path
from string import Template
from typing import NamedTuple

import numpy as np

TEMPLATE = Path(__file__).parent / "prompt.txt"
OPENINGS = (
    "the listener asks for one thing by name: a title, an artist or an album of the track played "
    "first.",
    "the listener makes a free request and names nothing: a mood, a situation, a sound, a subject.")
TOKEN_CHARS = 4    # characters per token, for estimates
TURN_TOKENS = 110  # tokens that the three messages of a turn take, for estimates


class Job(NamedTuple):
    """One dialogue to be asked for."""
    dialogue_id: str
    playlist_id: str
    tracks: list     # of dicts
    negatives: list  # of dicts
    opening: str

    def shown(self):
        """{handle: track} as the prompt names them."""
        return ({f"P{i}": track for i, track in enumerate(self.tracks, 1)}
                | {f"N{i}": track for i, track in enumerate(self.negatives, 1)})


def make_job(dialogue_id, source, tracks_by_id, size, most_negatives):
    """A chunk of a playlist, and some of its negative set.

    source: (playlist, visit, negatives, rng), as 03_synthesize.py draws it
    size: tracks in a chunk, about
    """
    playlist, visit, negatives, rng = source
    track_ids = chunk(playlist["track_ids"], visit, size, rng)
    negatives = [negatives[i] for i in rng.permutation(len(negatives))[:most_negatives]]
    return Job(dialogue_id, playlist["playlist_id"], [tracks_by_id[t] for t in track_ids],
               [tracks_by_id[t] for t in negatives], OPENINGS[int(rng.integers(len(OPENINGS)))])


def chunk(track_ids, visit, size, rng):
    """About `size` neighbouring tracks of a playlist.

    The first visits take its disjoint chunks one after the other (sizes as equal as can be), later
    ones a stretch anywhere.

    visit: how many dialogues the playlist has had before
    """
    n = max(1, round(len(track_ids) / size))
    if visit < n:
        start, end = (round(len(track_ids) * i / n) for i in (visit, visit + 1))
        return track_ids[start:end]
    start = int(rng.integers(max(0, len(track_ids) - size) + 1))
    return track_ids[start:start + size]


def one_line(text):
    """A text without line breaks, so that no field can pass for another part of the prompt."""
    return " ".join(str(text).split())


def track_line(handle, track, lyrics_words):
    """A track in one line: "P1 | title: ... | artist: ..."; what is not known is left out."""
    lyrics = []
    for line in (track["lyrics"] or "").splitlines():
        words = line.split()[:lyrics_words]
        lyrics_words -= len(words)
        lyrics.append(" ".join(words))
    popularity = track["popularity"]
    fields = {name: track[name] for name in ("title", "artist", "album")} | {
        "tags": ", ".join(track["tags"]),
        "popularity": None if popularity is None else f"{popularity:.0f} of 100",
        "tempo": track["tempo"] and f"{track['tempo']:.0f} BPM",
        "key": track["key"], "caption": track["caption"],
        "lyrics": " / ".join(filter(None, lyrics))}
    return " | ".join([handle, *(f"{name}: {one_line(value)}" for name, value in fields.items()
                                 if value)])


def fill(job, lyrics_words, complaint=""):
    """The whole prompt of a job. complaint: what was wrong with the first answer"""
    lines = [track_line(*shown, lyrics_words) for shown in job.shown().items()]
    n = len(job.tracks)
    rejections = "Here NEGATIVE SET is empty, so nothing is turned down."
    if job.negatives:
        rejections = "Let this happen once or twice, or not at all where it would not be natural."
    text = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        opening=job.opening, half=math.ceil(n / 2), n=n, rejections=rejections,
        playlist="\n".join(lines[:n]), negatives="\n".join(lines[n:]) or "(empty)")
    if complaint:
        text += (f"\nAn earlier answer could not be used ({one_line(complaint)}). Write a new "
                 f"conversation that keeps all the rules.\n")
    return text


def estimate(jobs, n, lyrics_words):
    """(tokens in, tokens out) of n calls, from a sample of jobs."""
    tokens_in = np.mean([len(fill(job, lyrics_words)) / TOKEN_CHARS for job in jobs])
    tokens_out = np.mean([TURN_TOKENS * len(job.tracks) for job in jobs])
    return round(n * tokens_in), round(n * tokens_out)
