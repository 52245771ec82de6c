"""How the simulated listener turns a track down and praises one, and how the assistant answers.

`asked` and `said` are lists of attributes, pairs (kind, concept).
"""

from steps.synthesize.attributes import (
    LEXICON,
    NOUNS,
    agreeing,
    changes,
    compared_tempo,
    intersection,
    pairs,
)
from steps.synthesize.simulate import REQUESTS, Situation, choose_attributes, one_or_two
from steps.synthesize.templates import noun_phrase, pick, shuffled

OPINIONS = ("I like", "I'm happy", "Almost", "Fine")  # a query that begins so needs no praise
TELLING = ("genre", "mood", "instrument", "vocal", "theme", "tag")  # say what a track is like
NEAR = {frozenset(moods) for moods in (  # who gets the one may not complain of the other
    ("happy", "hopeful"), ("melancholic", "nostalgic"), ("calm", "dreamy"), ("dark", "angry"),
    ("dark", "melancholic"), ("angry", "energetic"))}


# ---------------------------------------------------------------- turning a track down

def complaints(listener, a, b, asked, coming):
    """Reasons to turn track a down that track b does not give, and that were not asked for.

    Nobody complains of what they enjoyed in an earlier track, or of what one of `coming` has.

    Returns: list of (name of its templates, slots, attribute or None)
    """
    old, new = (listener.attributes(track) for track in (a, b))
    reasons = []

    asked_kinds = {kind for kind, _ in [*asked, *listener.asked]}
    if compared_tempo(a, b) and not {"tempo", "compared"} & asked_kinds:
        reasons += [(f"too_{tempo}", {}, None) for tempo in ("slow", "fast")
                    if old["tempo"] == [tempo] != new["tempo"]]

    if old["vocal"] and new["vocal"] and old["vocal"] != new["vocal"]:
        name = "wrong_voice"
        if new["vocal"] == ["instrumental"]:
            name = "has_singing"
        elif old["vocal"] == ["instrumental"]:
            name = "no_singing"
        reasons.append((name, {}, None))

    enjoyed = {attribute for track in [*listener.liked, *coming]
               for attribute in pairs(listener.attributes(track))}
    for kind, c in pairs(old, ("mood", "instrument")):
        alike = any(c == other or frozenset((c, other)) in NEAR for other in new[kind])
        if new[kind] and not alike and (kind, c) not in listener.wished | enjoyed:
            slots = {"concept": c}
            if kind == "mood":
                slots = {"adj": pick(LEXICON["mood"][c]["adj"], listener.rng)}
            reasons.append((f"wrong_{kind}", slots, (kind, c)))

    artist = a["artist"]
    if artist and artist not in {track["artist"] for track in [b, *coming]}:
        names = ("unloved_artist", "wrong_artist", "enough_of_artist")
        reasons.append((names[min(listener.plays[artist], 2)], {"artist": artist}, None))
    return reasons


def turn_down(listener, kind, target, before, negatives, coming):
    """A request that a track of the negative set fulfils as well as the target does.

    Returns: (the negative track, query, asked, why it is turned down), or None
    """
    def in_common_with_target(track):
        return len(pairs(intersection([listener.attributes(t) for t in (track, target)])))

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

    reason: from `turn_down`
    asked: the attributes in the request before; the genre is clear from it
    """
    rng = listener.rng

    # What is true of the target and was not said; if possible, not of the refused track.
    attributes = {kind: [c for c in concepts if (kind, c) not in [*asked, *listener.disliked]]
                  for kind, concepts in listener.attributes(target).items()}
    if asked:
        attributes |= dict.fromkeys(NOUNS, [])
    fresh = {kind: [c for c in concepts if c not in listener.attributes(refused)[kind]]
             for kind, concepts in attributes.items()}
    if any(fresh[kind] for kind in ("mood", "instrument", "vocal", "theme", "tempo")):
        attributes = fresh

    new = [attribute for attribute in changes(refused, target, listener.attributes_of)
           if attribute[0] != "without" and attribute not in [*asked, *listener.disliked]]
    about_lyrics = attributes["theme"] and rng.random() < 0.25
    said = (choose_attributes(attributes, "lyrics" if about_lyrics else "tags", rng)
            or choose_attributes(attributes, "audio", rng))
    slots = {"np": "something else"}
    if new and (not said or rng.random() < 0.5):
        said = one_or_two(new, rng)
        slots = listener.changed(said)
    elif said:
        slots = {"np": noun_phrase(said, rng, known_genre=bool(asked))}
    return listener.say("after_rejection", reason=reason, **slots), said


# ---------------------------------------------------------------- praise, and answers

def praise(listener, kind, before, target, asked):
    """A word on the track played last. What the request speaks of (kind, asked) is not praised.

    Warm words only where what follows is of the same genre or mood. After a request by title just a
    few words, since the choice was not the assistant's.
    """
    old, new = (listener.attributes(t) for t in (before, target))
    stays = pairs(intersection([old, new]), (*NOUNS, "mood"))
    if not stays or kind == "callback" or listener.by_title:
        return listener.say("praise_mild")

    asked_kinds = {k for k, _ in asked}
    things = [f"the {c}" for c in old["instrument"]
              if ("instrument", c) not in listener.disliked and c not in [c for _, c in asked]]
    if new["vocal"] != ["instrumental"]:
        if old["vocal"] not in ([], ["instrumental"]) and "vocal" not in asked_kinds:
            things.append("that voice")
        if old["theme"] and "theme" not in asked_kinds:
            things.append("the lyrics")
    if old["mood"] and "mood" not in asked_kinds:
        things.append("the mood")
    if things and kind != "relative":
        return listener.say("praise", thing=pick(things, listener.rng))
    return listener.say("praise")


def answer(listener, track, kind, asked, query):
    """One sentence that says truly what the track is like.

    kind, asked, query: the request
    """
    rng = listener.rng
    compared = [concept for asked_kind, concept in asked if asked_kind == "compared"]

    # 1. What can be said of the track.
    known = [attribute for attribute in pairs(listener.without_disliked(listener.attributes(track)))
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
    others = shuffled([attribute for attribute in known if attribute not in taken]
                      or [attribute for attribute in known if attribute not in said], rng)
    if not any(attribute[0] in TELLING for attribute in said):
        others.sort(key=lambda attribute: attribute[0] not in TELLING)
    said += others[:max(1, 2 - len(said)) + int(rng.random() < 0.4)]
    said = agreeing(said)
    phrase = "your next track"
    if said:
        phrase = noun_phrase(shuffled(said, rng), rng, answer=True, said=query)

    # 4. The sentence around it.
    name = "response"
    if kind in ("title", "after_rejection"):
        name = f"response_{kind}"
    elif compared:
        name = "response_compared"
    elif kind in ("more", "callback", "redirect") and rng.random() < 0.6:
        name = f"response_{kind}"
    slots = {"asked": compared[0]} if compared else {}
    return listener.say(name, np=phrase, **slots)
