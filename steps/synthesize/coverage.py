"""What do requests speak of? For the audit: audio, lyrics, metadata, tags, or none of them."""

import re
from collections import Counter

from steps.synthesize.attributes import LEXICON, LONGEST_PHRASE, lexicon_phrases
from steps.synthesize.spoken import speaks, words_of

# What a request speaks of: the lexicon's phrases of these kinds, and these words besides.
FIELDS = {"audio": ("instrument", "vocal", "tempo", "mode"), "lyrics": ("theme",),
          "metadata": ("decade",), "tags": ("genre", "mood")}
WORDS = {
    "audio":
        "tempo bpm beat beats rhythm groove pace fast faster slow slower quick quicker loud louder "
        "quiet quieter soft softer bass voice voices vocal vocals singing sung guitar guitars drum "
        "drums piano strings key chord chords melody production acoustic instrumental instrument "
        "instruments sound",
    "lyrics":
        "lyric lyrics words story stories verse verses chorus subject",
    "metadata":
        "artist artists band bands album albums title called named released year years decade "
        "older newer earlier recent popular famous hit hits underground sixties seventies eighties "
        "nineties",
    "tags":
        "genre genres mood moods vibe vibes style atmosphere"}
PATTERNS = {
    "lyrics": re.compile(r"(?<!what )(?<!how )(?<!sorry )\babout\b", re.IGNORECASE),
    "metadata": re.compile(r"\b(?:(?:19|20)\d\ds?|\d0s)\b")}


def side_phrases():
    """{phrase: sides} of the words and phrases that speak of audio, lyrics, metadata or tags."""
    found = {}
    for side, words in WORDS.items():
        phrases = {phrase for kind in FIELDS[side] for concept, entry in LEXICON[kind].items()
                   for phrase in (concept, *lexicon_phrases(entry))}
        for phrase in {*map(words_of, phrases), *words.split()}:
            found.setdefault(phrase, set()).add(side)
    return found


def sides(query, target, phrases):
    """The sides of the music that a request speaks of: a set.

    target: the track it asks for, or None; phrases: from `side_phrases`
    """
    words = words_of(query).split()
    spoken = {" ".join(words[i:i + n]) for n in range(1, LONGEST_PHRASE + 1)
              for i in range(len(words) - n + 1)}
    found = {side for side, pattern in PATTERNS.items() if pattern.search(query)}
    found = found.union(*(phrases[phrase] for phrase in spoken if phrase in phrases))
    if target and any(speaks(query, target[field]) for field in ("title", "artist", "album")):
        found.add("metadata")
    if target and any(words_of(tag) in spoken for tag in target["tags"]):
        found.add("tags")
    return found


def coverage(dialogues, track_of):
    """Shares of the requests that speak of each side of the music."""
    phrases = side_phrases()
    per_dialogue = [[sides(turn.query, track_of.get(turn.music), phrases)
                     for turn in dialogue["turns"]] for dialogue in dialogues]
    flat = [found for of_turns in per_dialogue for found in of_turns]
    kinds = Counter(turn.kind or "not known" for d in dialogues for turn in d["turns"])
    with_all = sum(len(set().union(*of_turns)) == len(WORDS) for of_turns in per_dialogue)
    return {**{side: sum(side in found for found in flat) / len(flat) for side in WORDS},
            "none of them": sum(not found for found in flat) / len(flat),
            "dialogues with all four": with_all / len(dialogues),
            "kinds, as the file names them": {kind: n / len(flat)
                                              for kind, n in kinds.most_common()}}
