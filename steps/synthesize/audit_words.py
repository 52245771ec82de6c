"""What requests and answers say, and whether it is so: the measures of audit.py that read words.

What is said in other words than these rules know is missed.
"""

import re
from collections import Counter, defaultdict
from itertools import pairwise

import numpy as np

from steps.synthesize.attributes import LEXICON, TAG_CONCEPT, pairs, track_attributes, year_of
from steps.synthesize.spoken import bare, names_of, speaks, words_of

SAID = ("tags", "noun", "adj", "more", "use", "with", "about")  # where the lexicon has phrases
LONGEST_PHRASE = 8  # words of one, at most


def share(values):
    """The mean of a list of true and false; None if it is empty."""
    return float(np.mean(values)) if len(values) else None


def all_turns(dialogues):
    return [turn for dialogue in dialogues for turn in dialogue["turns"]]


def concepts(track):
    """A track's tags as a set, as concepts where the lexicon knows them."""
    return {TAG_CONCEPT.get(tag.lower(), tag.lower()) for tag in track["tags"]}


def lexicon_phrases(kind):
    """[(phrase, concept), ...]: all that the lexicon says of a kind, the concepts' names included.

    Those of mode are not: "major" alone is more often a word than a key.
    """
    return [(words_of(phrase), concept) for concept, entry in LEXICON[kind].items()
            for phrases in ([concept] * (kind != "mode"), *(entry.get(name, ()) for name in SAID))
            for phrase in phrases]


# ---------------------------------------------------------------- what do requests speak of?

# The lexicon's phrases of these kinds, and these words besides.
FIELDS = {"audio": ("instrument", "vocal", "tempo", "mode"), "lyrics": ("theme",),
          "metadata": ("decade",), "tags": ("genre", "mood")}
WORDS = {
    "audio":
        "tempo bpm beat beats rhythm groove pace fast faster slow slower quick quicker loud louder "
        "quiet quieter soft softer bass voice voices vocal vocals singing sung guitar guitars drum "
        "drums piano strings key major minor chord chords melody production acoustic instrumental "
        "instrument instruments sound",
    "lyrics": "lyric lyrics words story stories verse verses chorus subject",
    "metadata":
        "artist artists band bands album albums title called named released year years decade "
        "older newer earlier recent popular famous hit hits underground sixties seventies eighties "
        "nineties",
    "tags": "genre genres mood moods vibe vibes style atmosphere"}
SPOKEN = {
    "lyrics": re.compile(r"(?<!what )(?<!how )(?<!sorry )\babout\b", re.IGNORECASE),
    "metadata": re.compile(r"\b(?:(?:19|20)\d\ds?|\d0s)\b")}


def side_phrases():
    """{phrase: sides} of the words and phrases that speak of audio, lyrics, metadata or tags."""
    sides_of = defaultdict(set)
    for side, words in WORDS.items():
        phrases = {phrase for kind in FIELDS[side] for phrase, _ in lexicon_phrases(kind)}
        for phrase in {*phrases, *words.split()}:
            sides_of[phrase].add(side)
    return sides_of


def sides(query, target, phrases):
    """The set of sides that a request for a track, or None, speaks of. phrases: `side_phrases()`"""
    words = words_of(query).split()
    spoken = {" ".join(words[i:i + n]) for n in range(1, LONGEST_PHRASE + 1)
              for i in range(len(words) - n + 1)}
    named = {side for side, pattern in SPOKEN.items() if pattern.search(query)}
    named = named.union(*(phrases[phrase] for phrase in spoken if phrase in phrases))
    if target and any(speaks(query, target[field]) for field in ("title", "artist", "album")):
        named.add("metadata")
    if target and any(words_of(tag) in spoken for tag in target["tags"]):
        named.add("tags")
    return named


def coverage(dialogues, track_of):
    """Shares of the requests that speak of each side of the music."""
    phrases = side_phrases()
    per_dialogue = [[sides(turn.query, track_of.get(turn.music), phrases)
                     for turn in dialogue["turns"]] for dialogue in dialogues]
    flat = [named for of_turns in per_dialogue for named in of_turns]
    all_four = [len(set().union(*of_turns)) == len(WORDS) for of_turns in per_dialogue]
    kinds = Counter(turn.kind or "not known" for turn in all_turns(dialogues)).most_common()
    return {**{side: share([side in named for named in flat]) for side in WORDS},
            "none of them": share([not named for named in flat]),
            "dialogues with all four": share(all_four),
            "kinds, as the file names them": {kind: n / len(flat) for kind, n in kinds}}


def give_away(dialogues, track_of):
    """Shares of the requests that say the title, or the artist, of the track they bring."""
    first = [dialogue["turns"][0] for dialogue in dialogues]
    later = [turn for dialogue in dialogues for turn in dialogue["turns"][1:]]
    return {f"{field}, {name}": share([speaks(turn.query, track_of[turn.music][field])
                                       for turn in turns if turn.music])
            for name, turns in (("first turns", first), ("later turns", later))
            for field in ("title", "artist")}


# ---------------------------------------------------------------- does the next track obey?

CHANGE = re.compile(
    r"\b(something else|something (?:very |quite |totally |completely )?different|change of|"
    r"time for a change|change direction|switch|switching|different idea|new chapter|"
    r"done with this|somewhere new|enough of that|somewhere else|the opposite|new plan|"
    r"turn the page|plot twist|leave that behind|enough of this|instead|let's move)\b",
    re.IGNORECASE)
CHANCE = 200  # the share by chance is counted from so many random tracks and cases, at most
ARTIST = "\ue000"  # stands for the name of the artist before
NOT = r"(?<!not )(?<!n't )(?<!no )(?<!nothing )(?<!less )(?<!never )"

# name: (what is said, but for NOT before it; the field and what must hold of it before and now).
RULES = {
    "another artist": (
        r"(?:another|different|other|new) (?:artist|band|singer|act)s?|(?:someone|somebody) else|"
        r"(?:enough|tired|sick) of " + ARTIST, "artist", lambda a, b: a != b),
    "the same artist": (
        r"(?:same|this) (?:artist|band|singer)|(?:more|another|another one|something else|"
        r"anything else) (?:by|from) (?:them|him|her)", "artist", lambda a, b: a == b),
    "another album": (
        r"(?:another|different|other) (?:album|record)", "album", lambda a, b: a != b),
    "the same album": (r"same (?:album|record)", "album", lambda a, b: a == b),
    "slower": (
        r"slower|slow (?:it|things) down|calmer in pace|too fast", "tempo", lambda a, b: b < a),
    "faster": (r"faster|quicker|speed (?:it|things) up|too slow", "tempo", lambda a, b: b > a),
    "older": (r"(?<!getting )(?<!growing )older|less recent", "year", lambda a, b: b < a),
    "newer": (r"newer|more recent", "year", lambda a, b: b > a),
    "more like this": (
        r"more like (?:this|that)|something similar|another one like that|same spirit|"
        r"continue like that", "tags", lambda a, b: not a.isdisjoint(b)),
    "in minor": (r"in (?:a )?minor(?: key)?", "key", lambda a, b: b.endswith("minor")),
    "in major": (r"in (?:a )?major(?: key)?", "key", lambda a, b: b.endswith("major"))}


def directions(dialogues, track_of):
    """Rejections and changes of direction: how many, and is the next track of another kind?"""
    nothing_in_common = {True: [], False: []}  # after a change of direction, after other requests
    for dialogue in dialogues:
        for last, turn in pairwise(dialogue["turns"]):
            if last.rejected or not last.music or not turn.music:
                continue
            tags, tags_now = (concepts(track_of[t.music]) for t in (last, turn))
            if tags and tags_now:
                nothing_in_common[bool(CHANGE.search(turn.query))].append(not tags & tags_now)
    turns = all_turns(dialogues)
    return {
        "turns rejected": share([turn.rejected for turn in turns]),
        "dialogues with a rejection": share([any(turn.rejected for turn in d["turns"])
                                             for d in dialogues]),
        "requests that change direction": share([bool(CHANGE.search(t.query)) for t in turns]),
        "no tag in common, after a change (rejections left out)": share(nothing_in_common[True]),
        "no tag in common, after other requests": share(nothing_in_common[False])}


def rule_pattern(name):
    """What is said where a rule of RULES counts."""
    return re.compile(rf"{NOT}\b(?:{RULES[name][0]})(?!\w)", re.IGNORECASE)


def obeys(name, before, now):
    """Whether a rule of RULES holds for two tracks; None where one, or its field, is not known."""
    if not before or not now:
        return None
    _, field, holds = RULES[name]
    known = {"year": year_of, "tags": lambda track: concepts(track) or None}
    a, b = (known[field](t) if field in known else t[field] for t in (before, now))
    return None if a is None or b is None else holds(a, b)


def wish_alone(query, before, now):
    """A request without the names of two tracks: "Play Slower Now" asks for nothing slower.

    before, now: tracks, or None. The name of the artist before becomes ARTIST.
    """
    artist = " ".join(((before or {}).get("artist") or "").split())
    names = [re.escape(name) for name in names_of([t for t in (before, now) if t])
             if name != name.lower() or name == artist]
    if not names:
        return query
    return re.sub(rf"(?<!\w)(?:{'|'.join(names)})(?!\w)",  # the longest comes first
                  lambda match: ARTIST if match[0] == artist else " ", query)


def wishes(pattern, dialogues, track_of):
    """Yield (track before, track played), or None for one, of each request with a pattern in it."""
    for dialogue in dialogues:
        for last, turn in pairwise(dialogue["turns"]):
            before, now = track_of.get(last.music), track_of.get(turn.music)
            artist = (before or {}).get("artist")
            query = turn.query.replace(artist, ARTIST) if artist else turn.query
            # The first search is quick: wish_alone takes time.
            if pattern.search(query) and pattern.search(wish_alone(turn.query, before, now)):
                yield before, now


def obedience(dialogues, track_of, tracks):
    """{rule: asked, checked, obeyed, chance}.

    checked: requests where the rule can be checked on both tracks; obeyed: the share of them;
    chance: the share of random tracks that would obey
    """
    order = np.random.default_rng(0).permutation(len(tracks))[:CHANCE]
    rows = {}
    for name in RULES:
        asked = list(wishes(rule_pattern(name), dialogues, track_of))
        checked = [(before, held) for before, now in asked
                   if (held := obeys(name, before, now)) is not None]
        chances = []
        for before, _ in checked[:CHANCE]:
            others = [obeys(name, before, tracks[i]) for i in order if tracks[i] is not before]
            chances.append(share([held for held in others if held is not None]))
        if asked:
            rows[name] = {"asked": len(asked), "checked": len(checked),
                           "obeyed": share([held for _, held in checked]),
                           "chance": share([chance for chance in chances if chance is not None])}
    return rows


# ---------------------------------------------------------------- are answers true?

DENIED = {"not", "no", "without", "less", "never"}  # a phrase after one of these is no fact


def fact_phrases(tracks):
    """{phrase: [(kind, concept), ...]}: the lexicon's phrases, other tags, names.

    Names (kind "name") are those of titles and artists that have two words or more.
    """
    facts = [(phrase, (kind, concept)) for kind in LEXICON
             for phrase, concept in lexicon_phrases(kind)]
    for track in tracks:
        facts += [(words_of(tag), ("tag", tag)) for tag in track_attributes(track)["tag"]]
        facts += [(words_of(name), ("name", name))
                  for name in (bare(track["title"]), bare(track["artist"]))
                  if " " in words_of(name) and name != name.lower()]
    facts_of = defaultdict(list)
    for phrase, fact in dict.fromkeys(facts):
        facts_of[phrase].append(fact)
    return facts_of


def stated(text, phrases):
    """The facts in an answer: a list of [(kind, concept), ...], of which one has to hold.

    It is read from left to right, the longest phrase first. A name needs its capitals.

    phrases: from `fact_phrases`
    """
    words = words_of(text).split()
    all_facts = []
    i = 0
    while i < len(words):
        for n in range(min(LONGEST_PHRASE, len(words) - i), 0, -1):
            facts = [(kind, c) for kind, c in phrases.get(" ".join(words[i:i + n]), ())
                     if kind != "name" or c in text]
            if facts:
                if i == 0 or words[i - 1] not in DENIED:
                    all_facts.append(facts)
                break
        i += n
    return all_facts


def truth(answers, tracks):
    """What the facts in answers are worth, as shares of them.

    True is what the catalogue knows: attributes, title and artist. Two shares tell what that is
    worth: how often it is true of the track of another answer, and how often the request named it.

    answers: list of (request, text, track)
    """
    phrases = fact_phrases(tracks)
    known = {}
    for *_, track in answers:
        names = {("name", bare(track[field])) for field in ("title", "artist")}
        known[track["track_id"]] = names | set(pairs(track_attributes(track)))
    order = np.random.default_rng(0).permutation(len(answers))

    kinds = []
    checked = []  # for each fact: true of the track, true of the other track, named in the request
    for (query, text, track), other in zip(answers, order, strict=True):
        asked = {fact for facts in stated(query, phrases) for fact in facts}
        true, true_of_other = (known[t["track_id"]] for t in (track, answers[other][2]))
        for facts in stated(text, phrases):
            kinds.append(facts[0][0])
            checked.append([not s.isdisjoint(facts) for s in (true, true_of_other, asked)])
    if not checked:
        return {"answers": len(answers), "facts in them": 0}

    true, true_of_another, asked = np.array(checked).T  # each (facts,) bool
    return {"answers": len(answers),
            "facts in them": len(checked),
            "facts that are true": share(true),
            "true of the track of another answer": share(true_of_another),
            "facts that the request names": share(asked),
            **{f"{kind}: true": share(true[np.array(kinds) == kind])
               for kind in (*LEXICON, "tag", "name") if kind in kinds},
            "facts by kind": dict(Counter(kinds))}
