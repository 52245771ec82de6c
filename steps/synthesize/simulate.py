"""The simulated listener, who walks through a playlist in 03_synthesize.py (`walk`; read it first).

The listener knows what is true of each track: its tags, lyrics, caption, tempo, key, artist and
year (steps/synthesize/attributes.py). They ask for the next track by description, by comparison
with the track before, by way of one that was played earlier, by name, or just for more. What the
track before has is not said again ("one with piano"). How things are said is in
steps/synthesize/templates.py.

A request is made for `candidates` and holds for each of them. They are the track to come, or one of
the negative set and the track to come: then the listener can turn the first one down.

Answers take up what was asked for and add what else is true. Title and artist are left to the
player's display. `asked` is always a list of attributes, pairs (kind, concept).
"""

from functools import partial

from steps.synthesize.attributes import (
    LEXICON,
    NEAR,
    NOUNS,
    agreeing,
    changes,
    compared_tempo,
    in_common,
    intersection,
    other_genre,
    pairs,
)
from steps.synthesize.templates import noun_phrase, pick

# How often the listener asks in which way: weights, which mix_of changes, among what can be said
# truly. Version 3; frozen before any system was run on it.
OPENING = {"tags": 0.4, "lyrics": 0.15, "audio": 0.2, "metadata": 0.15, "title": 0.1}
LATER = {"relative": 0.37, "callback": 0.2, "more": 0.1, "tags": 0.1, "lyrics": 0.08,
         "audio": 0.09, "metadata": 0.07, "title": 0.04, "redirect": 0.05}
REJECTION = 0.12  # share of the later turns at which a track is played first that is turned down
PRAISE = 0.35     # share of the later queries that begin with a word on the track before
OPINIONS = ("I like", "I'm happy", "Almost", "Fine")  # a query that begins so needs no such word
TELLING = ("genre", "mood", "instrument", "vocal", "theme", "tag")  # say what a track is like

# For each kind of description: what it is about, how many attributes, and what may come besides.
ABOUT = {
    "tags": ("genre", "mood", "instrument", "vocal", "tag"),
    "lyrics": ("theme",),
    "audio": ("tempo", "mode", "instrument", "vocal"),
    "metadata": ("decade",)}
LEAST = {"tags": 2, "lyrics": 1, "audio": 2, "metadata": 1}


def mix_of(weights, rejection=REJECTION):
    """The mix of queries as the walk takes it: {opening, later, rejection}.

    weights: {kind: weight} in place of the defaults, for first and later queries alike
    rejection: share of the later turns
    Raises SystemExit: no weight is left.
    """
    mix = {"opening": {kind: weights.get(kind, weight) for kind, weight in OPENING.items()},
           "later": {kind: weights.get(kind, weight) for kind, weight in LATER.items()}}
    for name, kinds in (("first", mix["opening"]), ("later", mix["later"])):
        if not any(kinds.values()):
            raise SystemExit(f"--mix leaves nothing to ask for in {name} queries; one of "
                             f"{', '.join(kinds)} needs a weight above 0")
    return mix | {"rejection": rejection}


def shuffled(items, rng):
    return [items[i] for i in rng.permutation(len(items))]


def one_or_two(items, rng):
    """One of the items, at times two that agree."""
    items = shuffled(items, rng)
    return agreeing(items[:1 + int(rng.random() < 0.4)])


def choose_attributes(attributes, kind, rng):
    """Two to four attributes to speak of. Empty if nothing is known.

    attributes: {kind: [concepts]} of a track
    kind: what the description is about, of ABOUT
    """
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
        self.candidates = candidates  # the track to come, or one to be turned down and that one
        self.before = before          # the track played last, or None
        self.playlist = playlist      # at the opening: (title, attributes of half of its tracks)

        of = listener.attributes_of
        shared = intersection([of[track["track_id"]] for track in candidates])
        self.attributes = listener.without_disliked(shared)
        self.old = of[before["track_id"]] if before else {kind: [] for kind in shared}
        self.news = {kind: [c for c in concepts if c not in self.old[kind]]
                     for kind, concepts in self.attributes.items()}
        self.same_genre = any(set(self.attributes[kind]) & set(self.old[kind]) for kind in NOUNS)

    def shared(self, compare, track):
        """What compare(track, candidate) finds for all the candidates, in a fixed order."""
        return sorted(set.intersection(*(set(compare(track, t, self.listener.attributes_of))
                                         for t in self.candidates)))

    def describe(self, asked, known_genre=False, template="describe", **slots):
        """A request in words for these attributes, and they."""
        phrase = noun_phrase(asked, self.listener.rng, known_genre)
        return self.listener.say(template, np=phrase, **slots), asked


def ask_title(now):
    track = now.candidates[0]
    names = {field: " ".join(track[field].split()) for field in ("title", "artist")
             if (track[field] or "").strip()}
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
    rng = listener.rng
    # Nobody keeps what they turned down, nor drops what they just asked for.
    fickle = {("without", c) for _, c in [*listener.asked, *listener.disliked]} | listener.disliked
    keeps = [attribute for attribute in now.shared(in_common, now.before)
             if attribute not in fickle]
    new = [attribute for attribute in now.shared(changes, now.before)
           if attribute not in fickle and (attribute[0] != "mode" or rng.random() < 0.5)]
    new = one_or_two(new, rng)

    # Only what changes.
    if new and now.same_genre and rng.random() < 0.3:
        return listener.say("relative_diff", **listener.changed(new)), new

    # What stays; and what changes, the genre first.
    genre = now.shared(other_genre, now.before)
    genre_differs = any(other_genre(now.before, t, listener.attributes_of) for t in now.candidates)
    if not keeps or genre_differs and not genre:
        return None
    keep = pick(keeps, rng)
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
    rng = listener.rng
    old_genre = set(pairs(now.old, NOUNS))
    for earlier in shuffled(listener.liked, rng):
        attributes = listener.attributes_of[earlier["track_id"]]
        shared = intersection([now.attributes, attributes])
        genre = pairs(shared, NOUNS)
        if earlier is now.before or not genre or set(pairs(attributes, NOUNS)) & old_genre:
            continue
        names = listener.names_of(earlier, {t["artist"] for t in now.candidates})
        new = [attribute for attribute in now.shared(changes, earlier)
               if attribute[0] not in ("compared", "without")
               and attribute not in listener.disliked]
        if names and new and rng.random() < 0.35:
            new = [pick(new, rng)]
            then = pick(names, rng)
            return (listener.say("callback_diff", then=then, **listener.changed(new)),
                    [*new, *genre])
        if names:
            return listener.say("callback", then=pick(names, rng)), pairs(shared)
    return None


def ask_metadata(now):
    """By an artist who was not played last, or of a decade."""
    rng = now.listener.rng
    artist = now.candidates[0]["artist"]
    one_artist = len({track["artist"] for track in now.candidates}) == 1
    played_last = now.before and now.before["artist"] == artist
    if one_artist and artist and not played_last and rng.random() < 0.6:
        asked = choose_attributes(now.attributes, "tags", rng) if rng.random() < 0.5 else []
        if asked:
            return now.describe(asked, template="artist_described", artist=artist)
        return now.listener.say("artist", artist=artist), []
    return ask_description(now, "metadata")


def ask_redirect(now):
    """For a track whose genre and moods are all others than those of the track before."""
    asked = choose_attributes(now.news, "tags", now.listener.rng)
    attributes = [now.listener.attributes_of[track["track_id"]] for track in now.candidates]
    all_new = not any(c in now.old[kind] for of in attributes
                      for kind, c in pairs(of, ("genre", "mood", "tag")))
    genres_known = pairs(now.old, NOUNS) and all(pairs(of, NOUNS) for of in attributes)
    if asked and all_new and genres_known:
        return now.describe(asked, template="redirect")
    return None


def ask_description(now, kind):
    """By what is true of the track. Where the genre stays, only what is new is said."""
    rng = now.listener.rng

    # At the opening: with the playlist's title, by what half of its tracks have.
    if now.playlist and now.playlist[0] and rng.random() < 0.25:
        title, common = now.playlist
        common = {k: [c for c in concepts if (k, c) in common]
                  for k, concepts in now.attributes.items()}
        asked = choose_attributes(common, kind, rng)
        if asked:
            return now.describe(asked, template="opening_playlist", playlist=title)

    if now.same_genre and rng.random() < 0.9:
        asked = choose_attributes(now.news | dict.fromkeys(NOUNS, []), kind, rng)
        if asked:
            return now.describe(asked, known_genre=True)

    asked = choose_attributes(now.attributes, kind, rng)
    if all(c in now.old[k] for k, c in asked):  # nothing but what is playing already
        return None
    return now.describe(asked)


# A kind of request: a function of a Situation -> (query, asked), or None where no such request
# holds for the candidates. A new one needs a line here, a weight in OPENING or LATER, and sentences
# under "train" and "test" in templates.json.
REQUESTS = {
    "title": ask_title,
    "more": ask_more,
    "relative": ask_relative,
    "callback": ask_callback,
    "metadata": ask_metadata,
    "redirect": ask_redirect,
    "tags": partial(ask_description, kind="tags"),
    "lyrics": partial(ask_description, kind="lyrics"),
    "audio": partial(ask_description, kind="audio")}


def next_request(listener, remaining, before, playlist, weights):
    """(kind, target, query, asked): what to ask for next, and the track it is asked for.

    A kind is drawn by weight; the target is the first of the remaining tracks for which such a
    request holds. playlist: at the opening, of Situation, else None. weights: {kind: weight}
    """
    weights = {kind: weight for kind, weight in weights.items() if weight}
    while weights:
        kinds = list(weights)
        p = [weights[kind] / sum(weights.values()) for kind in kinds]
        kind = kinds[int(listener.rng.choice(len(kinds), p=p))]
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


# ---------------------------------------------------------------- turning a track down

def complaints(listener, a, b, asked, coming):
    """Reasons to turn track a down that track b does not give, and that were not asked for.

    Nobody complains of what they enjoyed in an earlier track, or of what a track to come has.

    coming: the tracks that are still to be played
    Returns: list of (name of its templates, slots, attribute or None)
    """
    old, new = (listener.attributes_of[track["track_id"]] for track in (a, b))
    reasons = []

    asked_kinds = {kind for kind, _ in [*asked, *listener.asked]}
    if compared_tempo(a, b) and not {"tempo", "compared"} & asked_kinds:
        for tempo in ("slow", "fast"):
            if old["tempo"] == [tempo] and new["tempo"] != [tempo]:
                reasons.append((f"too_{tempo}", {}, None))

    if old["vocal"] and new["vocal"] and old["vocal"] != new["vocal"]:
        if new["vocal"] == ["instrumental"]:
            name = "has_singing"
        elif old["vocal"] == ["instrumental"]:
            name = "no_singing"
        else:
            name = "wrong_voice"
        reasons.append((name, {}, None))

    enjoyed = {attribute for track in [*listener.liked, *coming]
               for attribute in pairs(listener.attributes_of[track["track_id"]])}
    for kind, c in pairs(old, ("mood", "instrument")):
        alike = any(c == other or frozenset((c, other)) in NEAR for other in new[kind])
        if new[kind] and not alike and (kind, c) not in listener.wished | enjoyed:
            if kind == "mood":
                slots = {"adj": pick(LEXICON["mood"][c]["adj"], listener.rng)}
            else:
                slots = {"concept": c}
            reasons.append((f"wrong_{kind}", slots, (kind, c)))

    artist = a["artist"]
    if artist and artist != b["artist"] and artist not in {track["artist"] for track in coming}:
        names = {0: "unloved_artist", 1: "wrong_artist"}
        name = names.get(listener.plays.get(artist, 0), "enough_of_artist")
        reasons.append((name, {"artist": artist}, None))
    return reasons


def turn_down(listener, kind, target, before, negatives, coming):
    """A request that a track of the negative set fulfils as well as the target does.

    Returns: (the negative track, query, asked, why it is turned down), or None
    """
    wanted = listener.attributes_of[target["track_id"]]

    def in_common_with_target(track):
        return len(pairs(intersection([listener.attributes_of[track["track_id"]], wanted])))

    some = shuffled(negatives, listener.rng)[:20]
    for track in sorted(some, key=in_common_with_target, reverse=True)[:5]:
        request = REQUESTS[kind](Situation(listener, [track, target], before))
        if not request:
            continue
        query, asked = request
        reasons = complaints(listener, track, target, asked, coming)
        if reasons:
            name, slots, attribute = pick(reasons, listener.rng)
            if attribute:
                listener.disliked.add(attribute)
            return track, query, asked, listener.words(name, **slots)
    return None


def clarify(listener, reason, asked, refused, target):
    """What the listener says after a rejection: (query, what it asks for).

    reason: of `turn_down`
    asked: the attributes in the request before; the genre is clear from it
    """
    rng = listener.rng

    # What is true of the target and was not said; if possible, not of the refused track.
    attributes = listener.without_disliked(listener.attributes_of[target["track_id"]])
    attributes = {kind: [c for c in concepts if (kind, c) not in asked]
                  for kind, concepts in attributes.items()}
    if asked:
        attributes |= dict.fromkeys(NOUNS, [])
    of_refused = listener.attributes_of[refused["track_id"]]
    fresh = {kind: [c for c in concepts if c not in of_refused[kind]]
             for kind, concepts in attributes.items()}
    if any(fresh[kind] for kind in ("mood", "instrument", "vocal", "theme", "tempo")):
        attributes = fresh

    new = [attribute for attribute in changes(refused, target, listener.attributes_of)
           if attribute[0] != "without" and attribute not in [*asked, *listener.disliked]]
    about_lyrics = attributes["theme"] and rng.random() < 0.25
    said = (choose_attributes(attributes, "lyrics" if about_lyrics else "tags", rng)
            or choose_attributes(attributes, "audio", rng))
    if new and (not said or rng.random() < 0.5):
        said = one_or_two(new, rng)
        slots = listener.changed(said)
    elif said:
        slots = {"np": noun_phrase(said, rng, known_genre=bool(asked))}
    else:
        slots = {"np": "something else"}
    return listener.say("after_rejection", reason=reason, **slots), said


# ---------------------------------------------------------------- praise, and answers

def praise(listener, kind, before, target, asked):
    """A word on the track played last. What the request speaks of (kind, asked) is not praised.

    Warm words only where what follows is of the same genre or mood. After a request by title just a
    few words, since the choice was not the assistant's.
    """
    of_before, of_target = (listener.attributes_of[t["track_id"]] for t in (before, target))
    stays = pairs(intersection([of_before, of_target]), (*NOUNS, "mood"))
    if not stays or kind == "callback" or listener.by_title:
        return listener.say("praise_mild")

    asked_kinds = {k for k, _ in asked}
    asked_concepts = [c for _, c in asked]
    things = [f"the {c}" for c in of_before["instrument"]
              if ("instrument", c) not in listener.disliked and c not in asked_concepts]
    if of_target["vocal"] != ["instrumental"]:
        if of_before["vocal"] not in ([], ["instrumental"]) and "vocal" not in asked_kinds:
            things.append("that voice")
        if of_before["theme"] and "theme" not in asked_kinds:
            things.append("the lyrics")
    if of_before["mood"] and "mood" not in asked_kinds:
        things.append("the mood")
    if things and kind != "relative":
        return listener.say("praise", thing=pick(things, listener.rng))
    return listener.say("praise")


def answer(listener, track, kind, asked, query):
    """One sentence that says truly what the track is like.

    kind, asked, query: the request; one or two of the attributes asked for are taken up
    """
    rng = listener.rng
    compared = [concept for asked_kind, concept in asked if asked_kind == "compared"]

    # 1. What can be said of the track.
    attributes = listener.without_disliked(listener.attributes_of[track["track_id"]])
    known = [attribute for attribute in pairs(attributes)
             if attribute[0] != "mode" or attribute in asked or rng.random() < 0.5]
    if compared or kind == "after_rejection":
        # "slower it is: something fast" may be true, and still sounds wrong
        unfit = {"faster": ("mood", "calm"), "slower": ("mood", "energetic")}
        unfit = unfit.get(compared[0]) if compared else None
        known = [attribute for attribute in known
                 if attribute != unfit and (attribute[0] != "tempo" or attribute in asked)]

    # 2. What was asked for comes first. In a comparison that is the change, which stays in front.
    taken = [attribute for attribute in asked if attribute in known]
    if kind != "relative":
        taken = shuffled(taken, rng)
    said = taken[:1 + int(rng.random() < 0.6)]

    # 3. What else is true; "something in a major key" alone says little.
    others = ([attribute for attribute in known if attribute not in taken]
              or [attribute for attribute in known if attribute not in said])
    others = shuffled(others, rng)
    if not any(attribute[0] in TELLING for attribute in said):
        others.sort(key=lambda attribute: attribute[0] not in TELLING)
    said += others[:max(1, 2 - len(said)) + int(rng.random() < 0.4)]
    said = agreeing(said)
    phrase = "your next track"
    if said:
        phrase = noun_phrase(shuffled(said, rng), rng, answer=True, said=query)

    # 4. The sentence around it.
    name = "response"
    slots = {}
    if kind == "title":
        name = "response_title"
    elif kind == "after_rejection":
        name = "response_after_rejection"
        slots = {"asked": compared[0]} if compared else {}
    elif compared:
        name = "response_compared"
        slots = {"asked": compared[0]}
    elif kind in ("more", "callback", "redirect") and rng.random() < 0.6:
        name = f"response_{kind}"
    return listener.say(name, np=phrase, **slots)
