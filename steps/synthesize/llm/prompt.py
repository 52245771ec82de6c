"""What an LLM backend of 03_synthesize.py is asked: a chunk of a playlist, written into prompt.txt.

The tracks are called P1, P2, ... (of the playlist) and N1, N2, ... (of the negative set): real ids cost many
tokens, and a model that has to copy 22 random letters makes mistakes.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from string import Template

import numpy as np

from steps.synthesize.llm.jobs import cost

TEMPLATE = Path(__file__).parent / "prompt.txt"
OPENINGS = ("the listener asks for one thing by name: a title, an artist or an album of the track played first.",
            "the listener makes a free request and names nothing: a mood, a situation, a sound, a subject.")
TOKEN_CHARS = 4     # characters a token, for estimates only
TURN_TOKENS = 110   # tokens that the three messages of a turn take, for estimates only
SAMPLE = 50         # prompts of a split that an estimate looks at


@dataclass
class Job:
    """One dialogue to be asked for. tracks, negatives: lists of tracks (dicts)."""
    number: int
    dialogue_id: str
    playlist_id: str
    tracks: list
    negatives: list
    opening: str

    def shown(self):
        """{handle: track} as the prompt names them."""
        return {f"P{i}": t for i, t in enumerate(self.tracks, 1)} | {f"N{i}": t for i, t in enumerate(self.negatives, 1)}


def chunk(track_ids, visit, size, rng):
    """About `size` neighbouring tracks of a playlist; `visit` counts the dialogues that it has had before.

    The first visits take its disjoint chunks one after the other (sizes as equal as can be), later ones a
    stretch anywhere.
    """
    n = max(1, round(len(track_ids) / size))
    if visit < n:
        bounds = [round(len(track_ids) * i / n) for i in range(n + 1)]
        return track_ids[bounds[visit]:bounds[visit + 1]]
    start = int(rng.integers(max(0, len(track_ids) - size) + 1))
    return track_ids[start:start + size]


def one_line(text):
    """Text of a catalogue without line breaks, so that no field can pass for another part of the prompt."""
    return " ".join(str(text).split())


def cut_lyrics(lyrics, words):
    """The first lines of lyrics, at most `words` words of them, parted by " / "."""
    kept, left = [], words
    for line in lyrics.splitlines():
        line = line.split()[:left]
        left -= len(line)
        if line:
            kept.append(" ".join(line))
    return " / ".join(kept)


def track_line(handle, track, lyrics_words):
    """A track in one line: "P1 | title: ... | artist: ..."; what is not known is left out."""
    fields = {"title": track["title"], "artist": track["artist"], "album": track["album"], "tags": ", ".join(track["tags"]),
              "popularity": None if track["popularity"] is None else f"{track['popularity']:.0f} of 100",
              "tempo": track["tempo"] and f"{track['tempo']:.0f} BPM", "key": track["key"], "caption": track["caption"],
              "lyrics": cut_lyrics(track["lyrics"] or "", lyrics_words)}
    return " | ".join([handle, *(f"{name}: {one_line(value)}" for name, value in fields.items() if value)])


def fill(job, lyrics_words, complaint=""):
    """The whole prompt of a job. complaint: why the answer given before was of no use, when it is asked once more."""
    lines = {handle: track_line(handle, track, lyrics_words) for handle, track in job.shown().items()}
    playlist = [line for handle, line in lines.items() if handle[0] == "P"]
    negatives = [line for handle, line in lines.items() if handle[0] == "N"]
    rejections = ("Let this happen once or twice, or not at all where it would not be natural." if negatives
                  else "Here NEGATIVE SET is empty, so nothing is turned down.")
    text = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        opening=job.opening, half=math.ceil(len(playlist) / 2), n=len(playlist), rejections=rejections,
        playlist="\n".join(playlist), negatives="\n".join(negatives) or "(empty)")
    if complaint:
        text += f"\nAn earlier answer could not be used ({one_line(complaint)}). Write a new conversation that keeps all the rules.\n"
    return text


def estimate(jobs, n, lyrics_words):
    """(tokens in, tokens out) of n calls, from a sample of jobs; without what a model thinks before it answers."""
    tokens_in = np.mean([len(fill(job, lyrics_words)) / TOKEN_CHARS for job in jobs])
    tokens_out = np.mean([TURN_TOKENS * len(job.tracks) for job in jobs])
    return round(n * tokens_in), round(n * tokens_out)


def show_estimate(jobs_of, counts, lyrics_words, price_in, price_out, whole_prompt):
    """Print what a whole run would take, from a sample of each split's prompts; whole_prompt: print the first prompt, too.

    jobs_of: {split: function of a number -> Job}; counts: {split: dialogues}; prices: dollars a million tokens, or None.
    """
    if whole_prompt:
        print(fill(jobs_of["train"](0), lyrics_words))
    tokens_in, tokens_out = 0, 0
    for split, n in counts.items():
        found = estimate([jobs_of[split](i) for i in range(min(n, SAMPLE))], n, lyrics_words)
        tokens_in, tokens_out = tokens_in + found[0], tokens_out + found[1]
    dollars = cost(tokens_in, tokens_out, price_in, price_out)
    print(f"{sum(counts.values()):,} calls, about {tokens_in:,} tokens in and {tokens_out:,} out (a token counted as {TOKEN_CHARS} "
          f"characters, without second tries and without what a model thinks before it answers): "
          + (f"about ${dollars:,.2f}" if dollars is not None else "--price-in and --price-out (dollars a million tokens) tell the cost"))
