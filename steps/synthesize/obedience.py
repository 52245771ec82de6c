"""Does the next track obey? For the audit: "slower" should bring something slower.

Everything is counted from words, so wishes in other words are missed.
"""

import re
from itertools import pairwise

import numpy as np

from steps.synthesize.attributes import TAG_CONCEPT, year_of
from steps.synthesize.spoken import names_of

CHANCE = 200  # the share by chance is counted from so many random tracks and cases, at most
ARTIST = "\ue000"  # stands for the name of the artist before
NOT = r"(?<!not )(?<!n't )(?<!no )(?<!nothing )(?<!less )(?<!never )"


def concepts(track):
    """A track's tags as a set, as concepts where the lexicon knows them."""
    return {TAG_CONCEPT.get(tag.lower(), tag.lower()) for tag in track["tags"]}


def compare(field, holds):
    """A rule over two tracks: holds(a, b) of their fields, None if one is not known."""
    def rule(before, now):
        a, b = (year_of(t) if field == "year" else t[field] for t in (before, now))
        return None if a is None or b is None else holds(a, b)
    return rule


def share_a_tag(before, now):
    """A rule like those of `compare`."""
    if not before["tags"] or not now["tags"]:
        return None
    return not concepts(before).isdisjoint(concepts(now))


# name: (what is said, the rule). What is said does not count after "not", "no" and the like.
RULES = {
    "another artist": (
        r"(?:another|different|other|new) (?:artist|band|singer|act)s?|(?:someone|somebody) else|"
        r"(?:enough|tired|sick) of " + ARTIST,
        compare("artist", lambda a, b: a != b)),
    "the same artist": (
        r"(?:same|this) (?:artist|band|singer)|"
        r"(?:more|another|another one|something else|anything else) (?:by|from) (?:them|him|her)",
        compare("artist", lambda a, b: a == b)),
    "another album": (
        r"(?:another|different|other) (?:album|record)",
        compare("album", lambda a, b: a != b)),
    "the same album": (
        r"same (?:album|record)",
        compare("album", lambda a, b: a == b)),
    "slower": (
        r"slower|slow (?:it|things) down|calmer in pace|too fast",
        compare("tempo", lambda a, b: b < a)),
    "faster": (
        r"faster|quicker|speed (?:it|things) up|too slow",
        compare("tempo", lambda a, b: b > a)),
    "older": (
        r"(?<!getting )(?<!growing )older|less recent",
        compare("year", lambda a, b: b < a)),
    "newer": (
        r"newer|more recent",
        compare("year", lambda a, b: b > a)),
    "more like this": (
        r"more like (?:this|that)|something similar|another one like that|same spirit|"
        r"continue like that",
        share_a_tag),
    "in minor": (
        r"in (?:a )?minor(?: key)?",
        compare("key", lambda a, b: b.endswith("minor"))),
    "in major": (
        r"in (?:a )?major(?: key)?",
        compare("key", lambda a, b: b.endswith("major")))}


def rule_pattern(name):
    """What is said where a rule of RULES counts."""
    return re.compile(rf"{NOT}\b(?:{RULES[name][0]})(?!\w)", re.IGNORECASE)


def wish_alone(query, before, now):
    """A request without the names of two tracks: "Play Slower Now" asks for nothing slower.

    before, now: tracks, or None. The name of the artist before becomes ARTIST.
    """
    artist = " ".join(((before or {}).get("artist") or "").split())
    names = [name for name in names_of([t for t in (before, now) if t])
             if name != name.lower() or name == artist]
    if not names:
        return query
    # The longest comes first.
    one_of_them = "|".join(rf"(?<!\w){re.escape(name)}(?!\w)" for name in names)
    return re.sub(one_of_them, lambda match: ARTIST if match[0] == artist else " ", query)


def wishes(pattern, dialogues, track_of):
    """Yield (the track before, the track played) for each request that says what a pattern finds.

    A track that is not known is None.
    """
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
    others = [tracks[i] for i in order]
    found = {}
    for name, (_, rule) in RULES.items():
        asked, checked, obeyed = 0, 0, 0
        chances = []
        for before, now in wishes(rule_pattern(name), dialogues, track_of):
            asked += 1
            obeys = rule(before, now) if before and now else None
            if obeys is None:
                continue
            checked += 1
            obeyed += bool(obeys)
            if len(chances) < CHANCE:
                by_chance = [rule(before, other) for other in others if other is not before]
                by_chance = [holds for holds in by_chance if holds is not None]
                if by_chance:
                    chances.append(np.mean(by_chance))
        if asked:
            found[name] = {"asked": asked, "checked": checked,
                           "obeyed": obeyed / checked if checked else None,
                           "chance": float(np.mean(chances)) if chances else None}
    return found
