"""The offline backend of 03_synthesize.py: a simulated listener who walks through a playlist.

The listener knows what is true of each track (steps/synthesize/attributes.py: its tags, lyrics, caption, tempo, key, artist, year) and asks
for the next one: by description, by comparison with the track before, by way of one that was played earlier, by name, or just for
more. What the track before has is not said again ("one with piano"). Now and then the system plays a track of the negative set for
which all that was said holds too, and the listener turns it down with a reason. How it is said: steps/synthesize/templates.py. Read
simulate() at the end first; a request is made for `aims`, one track, or that of the negative set and the one to come, and holds for both.

Answers take up what was asked for and add what else is true, but leave title and artist to the player's display.
"""

from collections import Counter
from dataclasses import dataclass
from functools import partial

from steps.synthesize.attributes import LEXICON, NEAR, NOUNS, agreeing, changes, compared_tempo, in_common, intersection, other_genre, pairs
from steps.synthesize.templates import Listener, noun_phrase, pick

# How often the listener asks in which way (weights; mix_of changes them), of what can be said truly. Version 3; frozen before any
# system was run on it.
OPENING = {"tags": 0.4, "lyrics": 0.15, "audio": 0.2, "metadata": 0.15, "title": 0.1}
LATER = {"relative": 0.37, "callback": 0.2, "more": 0.1, "tags": 0.1, "lyrics": 0.08, "audio": 0.09, "metadata": 0.07, "title": 0.04, "redirect": 0.05}
REJECTION = 0.12  # share of turns after the first at which the system first plays a track that is turned down
PRAISE = 0.35     # share of the later queries that begin with a word on the track before
OPINIONS = ("I like", "I'm happy", "Almost", "Fine")  # queries that begin so need no such word
TELLING = ("genre", "mood", "instrument", "vocal", "theme", "tag")  # kinds that say what a track is like


def draw(weights, rng):
    names = list(weights)
    return names[int(rng.choice(len(names), p=[weights[n] / sum(weights.values()) for n in names]))]


def mix_of(weights, rejection=None):
    """The mix of queries as simulate() takes it: {opening, later, rejection}.

    weights: {kind: weight} in place of the defaults, for first and later queries alike; kinds that are not named keep theirs.
    rejection: share of the later turns, None = the default. Raises SystemExit: no weight is left.
    """
    opening, later = ({kind: weights.get(kind, weight) for kind, weight in defaults.items()} for defaults in (OPENING, LATER))
    for name, found in (("first", opening), ("later", later)):
        if not any(found.values()):
            raise SystemExit(f"--mix leaves nothing to ask for in {name} queries; one of {', '.join(found)} needs a weight above 0")
    return {"opening": opening, "later": later, "rejection": REJECTION if rejection is None else rejection}


# ---------------------------------------------------------------- requests

def choose_facts(attributes, kind, rng):
    """Two to four things to say of a track; `kind` tells what they are about. Empty if nothing is known."""
    core = {"tags": ("genre", "mood", "instrument", "vocal", "tag"), "lyrics": ("theme",),
            "audio": ("tempo", "mode", "instrument", "vocal"), "metadata": ("decade",)}[kind]
    known = [fact for fact in pairs(attributes, core) if fact[0] != "mode" or rng.random() < 0.5]  # few people speak of keys
    if not known:
        return []
    n = {"tags": 2, "lyrics": 1, "audio": 2, "metadata": 1}[kind] + int(rng.random() < 0.5)
    chosen = [known[i] for i in rng.permutation(len(known))[:n]]
    others = pairs(attributes, ("genre", "mood", "vocal", "tag") if kind != "tags" else ("tempo", "decade"))
    others = [fact for fact in others if fact not in chosen]
    if others and (kind in ("lyrics", "metadata") or rng.random() < 0.4):
        chosen.append(pick(others, rng))
    chosen = agreeing(chosen)
    return [chosen[i] for i in rng.permutation(len(chosen))]


@dataclass
class Situation:
    """What a request starts from, and of which tracks it must hold."""
    listener: "Listener"
    aims: list                   # the track to come; or one that will be turned down, and the track to come
    before: dict | None          # the track played last
    attributes_of: dict
    playlist: tuple | None = None  # at the opening: its title, and the facts that half of its tracks have

    def __post_init__(self):
        self.attributes = self.listener.without_disliked(intersection([self.attributes_of[t["track_id"]] for t in self.aims]))
        self.old = self.attributes_of[self.before["track_id"]] if self.before else {kind: [] for kind in self.attributes}
        self.news = {kind: [c for c in concepts if c not in self.old[kind]] for kind, concepts in self.attributes.items()}
        self.same_genre = any(set(self.attributes[kind]) & set(self.old[kind]) for kind in NOUNS)

    def shared(self, compare, track):
        """What compare(track, aim) finds for all the aims, in a fixed order."""
        return sorted(set.intersection(*(set(compare(track, t, self.attributes_of)) for t in self.aims)))


def ask_title(now):
    named = {field: " ".join(now.aims[0][field].split()) for field in ("title", "artist") if (now.aims[0][field] or "").strip()}
    return (now.listener.say("title", **named), []) if "title" in named and len(now.aims) == 1 else None


def ask_more(now):
    return (now.listener.say("more"), pairs(intersection([now.attributes, now.old]))) if now.same_genre else None


def ask_relative(now):
    """From the track before: what to keep of it, what to change. Another genre is always said."""
    listener, rng = now.listener, now.listener.rng
    fickle = {("without", c) for _, c in [*listener.asked, *listener.disliked]} | listener.disliked
    keeps = [fact for fact in now.shared(in_common, now.before) if fact not in fickle]
    new = [fact for fact in now.shared(changes, now.before) if fact not in fickle and (fact[0] != "mode" or rng.random() < 0.5)]
    new = agreeing([new[i] for i in rng.permutation(len(new))[:1 + int(rng.random() < 0.4)]])
    if new and now.same_genre and rng.random() < 0.3:
        return listener.say("relative_diff", **listener.changed(new)), new
    genre = now.shared(other_genre, now.before)
    if not keeps or not genre and any(other_genre(now.before, t, now.attributes_of) for t in now.aims):
        return None
    keep = pick(keeps, rng)
    new = genre + [fact for fact in new if fact[0] != keep[0] or fact[0] == "instrument"][:1 if genre else 2]
    slots = listener.changed(new, also=keep[0] == "instrument") if new else {}
    name = "relative_both" if new else "relative_same"
    if keep[0] == "artist":
        return listener.say(name.replace("_", "_artist_"), **slots), new
    return listener.say(name, **listener.kept(keep), **slots), [*new, keep]


def ask_callback(now):
    """By way of a track that was liked earlier, whose genre the track to come has and the track before has not."""
    listener, rng = now.listener, now.listener.rng
    for i in rng.permutation(len(listener.liked)):
        earlier = listener.liked[i]
        attributes = now.attributes_of[earlier["track_id"]]
        shared = intersection([now.attributes, attributes])
        if earlier is now.before or not pairs(shared, NOUNS) or set(pairs(attributes, NOUNS)) & set(pairs(now.old, NOUNS)):
            continue
        names = listener.names_of(earlier, now.attributes_of, {t["artist"] for t in now.aims})
        new = [fact for fact in now.shared(changes, earlier) if fact[0] not in ("compared", "without") and fact not in listener.disliked]
        if names and new and rng.random() < 0.35:
            new = [pick(new, rng)]
            return listener.say("callback_diff", then=pick(names, rng), **listener.changed(new)), [*new, *pairs(shared, NOUNS)]
        if names:
            return listener.say("callback", then=pick(names, rng)), pairs(shared)
    return None


def ask_metadata(now):
    """By an artist who was not played last, or of a decade."""
    rng, artists = now.listener.rng, {t["artist"] for t in now.aims}
    artist = now.aims[0]["artist"]
    if len(artists) == 1 and artist and not (now.before and now.before["artist"] == artist) and rng.random() < 0.6:
        facts = choose_facts(now.attributes, "tags", rng) if rng.random() < 0.5 else []
        if facts:
            return now.listener.say("artist_described", artist=artist, np=noun_phrase(facts, rng)), facts
        return now.listener.say("artist", artist=artist), []
    return ask_description(now, "metadata")


def ask_redirect(now):
    """For a track whose genre and moods are all others than those of the track before."""
    rng, kinds = now.listener.rng, ("genre", "mood", "tag")
    facts = choose_facts(now.news, "tags", rng)
    other = not any(c in now.old[kind] for t in now.aims for kind, c in pairs(now.attributes_of[t["track_id"]], kinds))
    known = pairs(now.old, NOUNS) and all(pairs(now.attributes_of[t["track_id"]], NOUNS) for t in now.aims)
    return (now.listener.say("redirect", np=noun_phrase(facts, rng)), facts) if facts and other and known else None


def ask_description(now, kind):
    """For a track of which this is true; where the genre stays, only what the track before does not have is said."""
    rng = now.listener.rng
    if now.playlist and now.playlist[0] and rng.random() < 0.25:
        common = {k: [c for c in concepts if (k, c) in now.playlist[1]] for k, concepts in now.attributes.items()}
        facts = choose_facts(common, kind, rng)
        if facts:
            return now.listener.say("opening_playlist", playlist=now.playlist[0], np=noun_phrase(facts, rng)), facts
    if now.same_genre and rng.random() < 0.9:
        facts = choose_facts(now.news | dict.fromkeys(NOUNS, []), kind, rng)
        if facts:
            return now.listener.say("describe", np=noun_phrase(facts, rng, known_genre=True)), facts
    facts = choose_facts(now.attributes, kind, rng)
    if all(c in now.old[k] for k, c in facts):  # nothing but what is playing already
        return None
    return now.listener.say("describe", np=noun_phrase(facts, rng)), facts


# A kind of request: a function of a Situation -> (query, facts in it), or None where no such request holds for its aims.
# A new one needs a line here, a weight in OPENING or LATER, and sentences under "train" and "test" in templates.json.
REQUESTS = {"title": ask_title, "more": ask_more, "relative": ask_relative, "callback": ask_callback, "metadata": ask_metadata,
            "redirect": ask_redirect} | {kind: partial(ask_description, kind=kind) for kind in ("tags", "lyrics", "audio")}


# ---------------------------------------------------------------- turning a track down

def complaints(listener, a, b, asked, attributes_of, plays, coming):
    """Reasons to turn track a down that b does not give, and that were not asked for: [(name of its templates, slots, fact or None), ...].

    asked: the facts of the request; plays: {artist: how often played so far}; coming: the tracks that are still to be played. Nobody
    complains of what was enjoyed in an earlier track, or is in one to come.
    """
    old, new, found = attributes_of[a["track_id"]], attributes_of[b["track_id"]], []
    enjoyed = {fact for t in [*listener.liked, *coming] for fact in pairs(attributes_of[t["track_id"]])}
    if compared_tempo(a, b) and not {"tempo", "compared"} & {kind for kind, _ in [*asked, *listener.asked]}:
        for tempo in ("slow", "fast"):
            if old["tempo"] == [tempo] and new["tempo"] != [tempo]:
                found.append((f"too_{tempo}", {}, None))
    if old["vocal"] and new["vocal"] and old["vocal"] != new["vocal"]:
        name = "has_singing" if new["vocal"] == ["instrumental"] else "no_singing" if old["vocal"] == ["instrumental"] else "wrong_voice"
        found.append((name, {}, None))
    for kind, c in pairs(old, ("mood", "instrument")):
        like = any(c == other or frozenset((c, other)) in NEAR for other in new[kind])
        if new[kind] and not like and (kind, c) not in listener.wished | enjoyed:
            slots = {"adj": pick(LEXICON["mood"][c]["adj"], listener.rng)} if kind == "mood" else {"concept": c}
            found.append((f"wrong_{kind}", slots, (kind, c)))
    if a["artist"] and a["artist"] != b["artist"] and a["artist"] not in {t["artist"] for t in coming}:
        heard = plays.get(a["artist"], 0)
        name = "unloved_artist" if not heard else "wrong_artist" if heard == 1 else "enough_of_artist"
        found.append((name, {"artist": a["artist"]}, None))
    return found


def turn_down(listener, kind, target, before, negatives, attributes_of, plays, coming):
    """A request that a track of the negative set fulfils as well as the target does: (negative, query, facts, reason), or None."""
    wanted = attributes_of[target["track_id"]]
    some = [negatives[i] for i in listener.rng.permutation(len(negatives))[:20]]
    some.sort(key=lambda track: -len(pairs(intersection([attributes_of[track["track_id"]], wanted]))))
    for track in some[:5]:
        request = ask(listener, kind, [track, target], before, attributes_of)
        reasons = complaints(listener, track, target, request[1], attributes_of, plays, coming) if request else []
        if reasons:
            name, slots, fact = pick(reasons, listener.rng)
            if fact:
                listener.disliked.add(fact)
            return track, *request, listener.words(name, **slots)
    return None


def clarify(listener, reason, asked, refused, target, attributes_of):
    """What the listener says after a rejection: (query, facts). asked: the facts in what was said before; the genre is clear from it."""
    rng, attributes = listener.rng, listener.without_disliked(attributes_of[target["track_id"]])
    attributes = {k: [c for c in concepts if (k, c) not in asked and k not in NOUNS * bool(asked)] for k, concepts in attributes.items()}
    fresh = {k: [c for c in concepts if c not in attributes_of[refused["track_id"]][k]] for k, concepts in attributes.items()}
    attributes = fresh if any(fresh[k] for k in ("mood", "instrument", "vocal", "theme", "tempo")) else attributes
    new = [fact for fact in changes(refused, target, attributes_of) if fact[0] != "without" and fact not in [*asked, *listener.disliked]]
    facts = choose_facts(attributes, "lyrics" if attributes["theme"] and rng.random() < 0.25 else "tags", rng) or choose_facts(attributes, "audio", rng)
    if new and (not facts or rng.random() < 0.5):
        facts = agreeing([new[i] for i in rng.permutation(len(new))[:1 + int(rng.random() < 0.4)]])
        return listener.say("after_rejection", reason=reason, **listener.changed(facts)), facts
    return listener.say("after_rejection", reason=reason, np=noun_phrase(facts, rng, known_genre=bool(asked)) if facts else "something else"), facts


# ---------------------------------------------------------------- praise, and answers

def praise(listener, kind, before, target, attributes_of, asked):
    """A word on the track played last. kind, asked: of the request that follows, and its facts; what it speaks of is not praised.

    Warm words only where what follows is of the same genre or mood; after a request by title just a few, since the choice was not the
    assistant's.
    """
    attributes, kinds = attributes_of[before["track_id"]], {k for k, _ in asked}
    stays = pairs(intersection([attributes, attributes_of[target["track_id"]]]), (*NOUNS, "mood"))
    if not stays or kind == "callback" or listener.by_title:
        return listener.say("praise_mild")
    things = [f"the {c}" for c in attributes["instrument"] if ("instrument", c) not in listener.disliked and c not in [c for _, c in asked]]
    if attributes_of[target["track_id"]]["vocal"] != ["instrumental"]:
        things += ["that voice"] * (attributes["vocal"] not in ([], ["instrumental"]) and "vocal" not in kinds)
        things += ["the lyrics"] * (attributes["theme"] != [] and "theme" not in kinds)
    things += ["the mood"] * (attributes["mood"] != [] and "mood" not in kinds)
    return listener.say("praise", **{"thing": pick(things, listener.rng)} if things and kind != "relative" else {})


def answer(listener, track, attributes, kind, asked, query):
    """One sentence that says truly what the track is like. kind: of the request; asked: the facts in it, of which one or two are taken up."""
    rng, name, slots = listener.rng, "response", {}
    compared = [concept for asked_kind, concept in asked if asked_kind == "compared"]
    known = [fact for fact in pairs(listener.without_disliked(attributes)) if fact[0] != "mode" or fact in asked or rng.random() < 0.5]
    if compared or kind == "after_rejection":  # "slower it is: something fast" may be true, and still sounds wrong
        unfit = {"faster": ("mood", "calm"), "slower": ("mood", "energetic")}.get(compared[0]) if compared else None
        known = [fact for fact in known if fact != unfit and (fact[0] != "tempo" or fact in asked)]
    taken = [fact for fact in asked if fact in known]
    if kind != "relative":  # there the change stands first: what was to stay need not be told
        taken = [taken[i] for i in rng.permutation(len(taken))]
    facts = taken[:1 + int(rng.random() < 0.6)]
    others = [fact for fact in known if fact not in taken] or [fact for fact in known if fact not in facts]
    others = [others[i] for i in rng.permutation(len(others))]
    if not any(fact[0] in TELLING for fact in facts):  # "something in a major key" says little
        others.sort(key=lambda fact: fact[0] not in TELLING)
    facts += others[:max(1, 2 - len(facts)) + int(rng.random() < 0.4)]
    facts = agreeing(facts)
    phrase = noun_phrase([facts[i] for i in rng.permutation(len(facts))], rng, answer=True, said=query) if facts else "your next track"
    if kind == "title":
        name = "response_title"
    elif kind == "after_rejection":
        name, slots = "response_after_rejection", {"asked": compared[0]} if compared else {}
    elif compared:
        name, slots = "response_compared", {"asked": compared[0]}
    elif kind in ("more", "callback", "redirect") and rng.random() < 0.6:
        name = f"response_{kind}"
    return listener.say(name, np=phrase, **slots)


# ---------------------------------------------------------------- the journey

def ask(listener, kind, aims, before, attributes_of, playlist=None):
    """A request of this kind that holds for each of the tracks `aims`: (query, facts in it), or None. before: the track played last, or None."""
    return REQUESTS[kind](Situation(listener, aims, before, attributes_of, playlist))


def next_request(listener, remaining, before, attributes_of, playlist, weights):
    """(kind, target, (query, facts)): a kind drawn by weight, and the first of the remaining tracks that can truly be asked for so."""
    weights = {kind: weight for kind, weight in weights.items() if weight}
    while weights:
        kind = draw(weights, listener.rng)
        for target in remaining:
            asked = ask(listener, kind, [target], before, attributes_of, playlist)
            if asked:
                return kind, target, asked
        del weights[kind]
    target = remaining[0]  # little is known of it
    for kind in ("tags", "audio", "title"):
        asked = ask(listener, kind, [target], before, attributes_of)
        if asked:
            return kind, target, asked
    if target["artist"]:
        return "metadata", target, (listener.say("artist", artist=target["artist"]), [])
    return "more", target, (listener.say("more"), [])


def simulate(playlist_title, sampled, negatives, attributes_of, split, rng, max_turns=14, opening=OPENING, later=LATER, rejection=REJECTION):
    """One dialogue through the tracks `sampled`: mostly in their order, but "more of this" waits for one like the last.

    sampled, negatives: lists of tracks (dicts). attributes_of: {track_id: track_attributes(track)}. opening, later, rejection: of mix_of.
    Returns: list of turns {query, music, response, targets, rejected, kind, template}.
    """
    listener, turns, before, plays, played = Listener(split, rng), [], None, {}, set()
    remaining = list(sampled)
    counts = Counter(fact for track in sampled for fact in pairs(attributes_of[track["track_id"]]))
    playlist = playlist_title, {fact for fact, n in counts.items() if 2 * n >= len(sampled)}

    def play(track, query, facts, kind, rejected=False):
        template = "unseen" if listener.unseen else "seen"
        listener.unseen = False  # answers have no unseen templates: the model is to learn them
        response = answer(listener, track, attributes_of[track["track_id"]], kind, facts, query)
        turns.append({"query": query, "music": track["track_id"], "targets": [track["track_id"]], "rejected": rejected, "kind": kind,
                      "response": response, "template": template})
        listener.asked, listener.by_title = facts, kind == "title"
        listener.wished |= set(facts)
        plays[track["artist"]] = plays.get(track["artist"], 0) + 1
        played.add(track["track_id"])

    while remaining:
        listener.new_turn()
        kind, target, (query, facts) = next_request(listener, remaining, before, attributes_of, None if turns else playlist, later if turns else opening)
        room = len(turns) + len(remaining) < max_turns
        refused = None
        if turns and room and rng.random() < rejection:
            refused = turn_down(listener, kind, target, before, [t for t in negatives if t["track_id"] not in played], attributes_of, plays, remaining)
        if refused:
            negative, query, facts, reason = refused
        if turns and kind != "redirect" and not query.startswith(OPINIONS) and rng.random() < PRAISE:
            query = f"{praise(listener, kind, before, target, attributes_of, facts)} {query}"
        if refused:
            play(negative, query, facts, kind, rejected=True)
            listener.new_turn()
            kind, (query, facts) = "after_rejection", clarify(listener, reason, facts, negative, target, attributes_of)
        play(target, query, facts, kind)
        listener.liked.append(target)
        remaining.remove(target)
        before = target
    return turns
