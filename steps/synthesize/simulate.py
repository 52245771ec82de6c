"""What the simulated listener asks for on the walk through a playlist (03_synthesize.py, `walk`).

The listener knows what is true of each track (attributes.py), and says it as in templates.py. They
ask for the next one by description, by comparison with the track before, by way of one that was
played earlier, by name, or just for more.

A request is made for `candidates` and holds for each of them: the track to come, at times with one
of the negative set that is played before it and turned down (reactions.py). `asked` is always a
list of attributes, pairs (kind, concept).
"""

import re
from functools import partial

from steps.synthesize.attributes import (
    NOUNS,
    agreeing,
    changes,
    in_common,
    intersection,
    other_genre,
    pairs,
)
from steps.synthesize.templates import noun_phrase, pick, shuffled

# How often the listener asks in which way: weights among what can be said truly. --mix changes
# them. This is version 3, frozen before any system was run on it.
OPENING = {"tags": 0.4, "lyrics": 0.15, "audio": 0.2, "metadata": 0.15, "title": 0.1}
LATER = {"relative": 0.37, "callback": 0.2, "more": 0.1, "tags": 0.1, "lyrics": 0.08,
         "audio": 0.09, "metadata": 0.07, "title": 0.04, "redirect": 0.05}
REJECTION = 0.12  # share of the later turns at which a track is played first that is turned down
PRAISE = 0.35     # share of the later queries that begin with a word on the track before

# For each kind of description: what it is about, and how many attributes it has at least.
ABOUT = {"tags": ("genre", "mood", "instrument", "vocal", "tag"), "lyrics": ("theme",),
         "audio": ("tempo", "mode", "instrument", "vocal"), "metadata": ("decade",)}
LEAST = {"tags": 2, "lyrics": 1, "audio": 2, "metadata": 1}


def read_mix(given):
    """["tags=2", ...] -> {kind: weight}. Raises SystemExit: no such kind, or no weight."""
    kinds = OPENING | LATER
    weights = {}
    for pair in given:
        kind, _, weight = pair.partition("=")
        if kind not in kinds or not re.fullmatch(r"\d*\.?\d+", weight):
            raise SystemExit(f"--mix {pair}: KIND=WEIGHT is accepted, as in tags=2, with a weight "
                             f"of 0 or more and one of the kinds {', '.join(kinds)}")
        weights[kind] = float(weight)
    mix_of(weights)  # refuses a mix of which nothing is left
    return weights


def mix_of(weights, rejection=REJECTION):
    """The mix of queries as the walk takes it: {opening, later, rejection}.

    weights: {kind: weight} in place of the defaults, for opening and later queries alike
    """
    mix = {}
    for name, defaults in (("opening", OPENING), ("later", LATER)):
        mix[name] = {kind: weights.get(kind, weight) for kind, weight in defaults.items()}
        if not any(mix[name].values()):
            raise SystemExit(f"--mix leaves nothing to ask for in {name} queries; one of "
                             f"{', '.join(defaults)} needs a weight above 0")
    return mix | {"rejection": rejection}


def one_or_two(attributes, rng):
    """One of the attributes, at times two that agree."""
    attributes = shuffled(attributes, rng)
    return agreeing(attributes[:1 + int(rng.random() < 0.4)])


def choose_attributes(attributes, kind, rng):
    """Two to four attributes to speak of, if known. kind: of description, as in ABOUT"""
    known = [attribute for attribute in pairs(attributes, ABOUT[kind])
             if attribute[0] != "mode" or rng.random() < 0.5]  # few people speak of keys
    if not known:
        return []
    n = LEAST[kind] + int(rng.random() < 0.5)
    chosen = shuffled(known, rng)[:n]
    others = ("tempo", "decade") if kind == "tags" else ("genre", "mood", "vocal", "tag")
    others = [attribute for attribute in pairs(attributes, others) if attribute not in chosen]
    if others and (kind in ("lyrics", "metadata") or rng.random() < 0.4):
        chosen.append(pick(others, rng))
    return shuffled(agreeing(chosen), rng)


# ---------------------------------------------------------------- requests

class Situation:
    """What a request starts from, and of which tracks it must hold."""

    def __init__(self, listener, candidates, before, playlist=None):
        self.listener = listener
        self.rng = listener.rng
        self.candidates = candidates
        self.before = before      # the track played last, or None
        self.playlist = playlist  # at the opening: (title, attributes of half of its tracks)

        shared = intersection([listener.attributes(track) for track in candidates])
        self.attributes = listener.without_disliked(shared)
        self.old = listener.attributes(before) if before else {kind: [] for kind in shared}
        self.news = {kind: [c for c in concepts if c not in self.old[kind]]
                     for kind, concepts in self.attributes.items()}
        self.same_genre = any(set(self.attributes[kind]) & set(self.old[kind]) for kind in NOUNS)

    def shared(self, compare, track):
        """What compare(track, candidate) finds for all the candidates, in a fixed order."""
        return sorted(set.intersection(*(set(compare(track, t, self.listener.attributes_of))
                                         for t in self.candidates)))

    def describe(self, asked, known_genre=False, template="describe", **slots):
        """(a request in words for these attributes, the attributes)."""
        phrase = noun_phrase(asked, self.rng, known_genre)
        return self.listener.say(template, np=phrase, **slots), asked


def ask_title(now):
    names = {field: " ".join(now.candidates[0][field].split()) for field in ("title", "artist")
             if (now.candidates[0][field] or "").strip()}
    if "title" in names and len(now.candidates) == 1:
        return now.listener.say("title", **names), []
    return None


def ask_more(now):
    if now.same_genre:
        return now.listener.say("more"), pairs(intersection([now.attributes, now.old]))
    return None


def ask_relative(now):
    """From the track before: what to keep of it, what to change. Another genre is always said."""
    listener = now.listener
    # Nobody keeps what they turned down, nor drops what they just asked for.
    fickle = {("without", c) for _, c in [*listener.asked, *listener.disliked]} | listener.disliked
    keeps = [attribute for attribute in now.shared(in_common, now.before)
             if attribute not in fickle]
    new = one_or_two([attribute for attribute in now.shared(changes, now.before)
                      if attribute not in fickle
                      and (attribute[0] != "mode" or now.rng.random() < 0.5)], now.rng)

    # Only what changes.
    if new and now.same_genre and now.rng.random() < 0.3:
        return listener.say("relative_diff", **listener.changed(new)), new

    # What stays; and what changes, the genre first.
    genre = now.shared(other_genre, now.before)
    genre_differs = any(other_genre(now.before, t, listener.attributes_of) for t in now.candidates)
    if not keeps or genre_differs and not genre:
        return None
    keep = pick(keeps, now.rng)
    new = [attribute for attribute in new if attribute[0] != keep[0] or keep[0] == "instrument"]
    new = genre + new[:1] if genre else new[:2]
    slots = listener.changed(new, also=keep[0] == "instrument") if new else {}
    name = "both" if new else "same"
    if keep[0] == "artist":
        return listener.say(f"relative_artist_{name}", **slots), new
    return listener.say(f"relative_{name}", **listener.kept(keep), **slots), [*new, keep]


def ask_callback(now):
    """By way of a track liked earlier, of the genre of the track to come and not of the last."""
    listener = now.listener
    for earlier in shuffled(listener.liked, now.rng):
        attributes = listener.attributes(earlier)
        shared = intersection([now.attributes, attributes])
        genre = pairs(shared, NOUNS)
        if (earlier is now.before or not genre
                or set(pairs(attributes, NOUNS)) & set(pairs(now.old, NOUNS))):
            continue
        names = listener.names_of(earlier, {t["artist"] for t in now.candidates})
        new = [attribute for attribute in now.shared(changes, earlier)
               if attribute[0] not in ("compared", "without")
               and attribute not in listener.disliked]
        if names and new and now.rng.random() < 0.35:
            new = [pick(new, now.rng)]
            then = pick(names, now.rng)
            query = listener.say("callback_diff", then=then, **listener.changed(new))
            return query, [*new, *genre]
        if names:
            return listener.say("callback", then=pick(names, now.rng)), pairs(shared)
    return None


def ask_metadata(now):
    """By an artist who was not played last, or of a decade."""
    artist = now.candidates[0]["artist"]
    one_artist = len({track["artist"] for track in now.candidates}) == 1
    played_last = now.before and now.before["artist"] == artist
    if one_artist and artist and not played_last and now.rng.random() < 0.6:
        described = now.rng.random() < 0.5
        asked = choose_attributes(now.attributes, "tags", now.rng) if described else []
        if asked:
            return now.describe(asked, template="artist_described", artist=artist)
        return now.listener.say("artist", artist=artist), []
    return ask_description(now, "metadata")


def ask_redirect(now):
    """For a track whose genre and moods are all others than those of the track before."""
    asked = choose_attributes(now.news, "tags", now.rng)
    per_track = [now.listener.attributes(track) for track in now.candidates]
    all_new = not any(c in now.old[kind] for attributes in per_track
                      for kind, c in pairs(attributes, ("genre", "mood", "tag")))
    genres_known = all(pairs(each, NOUNS) for each in [now.old, *per_track])
    if asked and all_new and genres_known:
        return now.describe(asked, template="redirect")
    return None


def ask_description(now, kind):
    """By what is true of the track. Where the genre stays, only what is new is said."""
    # At the opening: with the playlist's title, by what half of its tracks have.
    if now.playlist and now.playlist[0] and now.rng.random() < 0.25:
        title, common = now.playlist
        common = {k: [c for c in concepts if (k, c) in common]
                  for k, concepts in now.attributes.items()}
        asked = choose_attributes(common, kind, now.rng)
        if asked:
            return now.describe(asked, template="opening_playlist", playlist=title)

    if now.same_genre and now.rng.random() < 0.9:
        asked = choose_attributes(now.news | dict.fromkeys(NOUNS, []), kind, now.rng)
        if asked:
            return now.describe(asked, known_genre=True)

    asked = choose_attributes(now.attributes, kind, now.rng)
    if all(c in now.old[k] for k, c in asked):  # nothing but what is playing already
        return None
    return now.describe(asked)


# A kind of request: a function of a Situation -> (query, asked), or None where no such request
# holds for the candidates. A new one needs a line here, a weight in OPENING or LATER, and sentences
# under "train" and "test" in templates.json.
REQUESTS = {"title": ask_title, "more": ask_more, "relative": ask_relative,
            "callback": ask_callback, "metadata": ask_metadata, "redirect": ask_redirect,
            **{kind: partial(ask_description, kind=kind) for kind in ("tags", "lyrics", "audio")}}


def next_request(listener, remaining, before, playlist, weights):
    """(kind, target, query, asked): what to ask for next, and the track it is asked for.

    A kind is drawn by weight; the target is the first of the remaining tracks for which such a
    request holds. before, playlist: of Situation; weights: {kind: weight}
    """
    weights = {kind: weight for kind, weight in weights.items() if weight}
    while weights:
        p = [weight / sum(weights.values()) for weight in weights.values()]
        kind = list(weights)[int(listener.rng.choice(len(weights), p=p))]
        for target in remaining:
            request = REQUESTS[kind](Situation(listener, [target], before, playlist))
            if request:
                return kind, target, *request
        del weights[kind]

    # Little is known of the next track.
    target = remaining[0]
    for kind in ("tags", "audio", "title"):
        request = REQUESTS[kind](Situation(listener, [target], before))
        if request:
            return kind, target, *request
    if target["artist"]:
        return "metadata", target, listener.say("artist", artist=target["artist"]), []
    return "more", target, listener.say("more"), []
