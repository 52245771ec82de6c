"""The offline backend of 03_synthesize.py: a simulated listener who walks through a playlist.

The listener knows what is true of each track (its tags, lyrics, caption, tempo, key, artist, year) and asks
for the next one: by description, by comparison with the track before, by name, or just for more. What the track before has
is not said again ("one with piano"). Now and then the system plays a track of the negative set for which all that was
said holds too, and the listener turns it down with a reason. What is said comes from two files that are meant to be read:
common/lexicon.json (ways to say a concept) and synthesis/frames.json (sentences; those under "test" never occur in training).

Answers take up what was asked for and add what else is true, but leave title and artist to the player's display.
"""

import json
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

LEXICON = json.loads((Path(__file__).parent.parent / "common" / "lexicon.json").read_text(encoding="utf-8"))
FRAMES = json.loads((Path(__file__).parent / "frames.json").read_text(encoding="utf-8"))
TAG_CONCEPT = {tag: (kind, concept) for kind in ("genre", "mood", "instrument", "vocal")
               for concept, words in LEXICON[kind].items() for tag in (concept, *words["tags"])}
HEARD = {tag: re.compile(rf"\b{re.escape(tag)}\b") for tag, (kind, _) in TAG_CONCEPT.items() if kind in ("instrument", "vocal")}
SLOTS = {frame: set(re.findall(r"{(\w+)}", frame)) for both in FRAMES.values() for frames in both.values() for frame in frames}

# How often the listener asks in which way (weights; mix_of changes them), of what can be said truly. Version 2; frozen before any
# system was run on it.
OPENING = {"tags": 0.4, "lyrics": 0.15, "audio": 0.2, "metadata": 0.15, "title": 0.1}
LATER = {"relative": 0.4, "more": 0.12, "tags": 0.11, "lyrics": 0.09, "audio": 0.1, "metadata": 0.08, "title": 0.04, "redirect": 0.06}
REJECTION = 0.12     # share of turns after the first at which the system first plays a track that is turned down
UNSEEN_FRAMES = 0.6  # share of the test queries whose sentence frame never occurs in training
PRAISE = 0.35        # share of the later queries that begin with a word on the track before
FASTER = 1.12        # a tempo is called faster or slower when it differs by this factor
YEARS = 7            # a track is called newer or older when more years lie between
NOUNS = ("genre", "tag")            # kinds of which a phrase has only one
PIECES = ("song", "track", "tune")

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


# ---------------------------------------------------------------- what is true of a track

def track_facets(track):
    """A track's fields -> {kind: [concepts]} for genre, mood, instrument, vocal, theme, tempo, mode, decade, tag.

    `tag` holds the tags that the lexicon does not know; they are said as they are.
    """
    facets = {kind: [] for kind in ("genre", "mood", "instrument", "vocal", "theme", "tempo", "mode", "decade", "tag")}
    caption = (track["caption"] or "").lower()
    heard = [tag for tag, pattern in HEARD.items() if pattern.search(caption)]
    for tag in [*(tag.lower() for tag in track["tags"]), *heard]:
        tag = re.sub(r"^(?:19(?=[6-9])|20(?=[01]))(\d0s)$", r"\1", tag)  # 1980s -> 80s
        kind, concept = TAG_CONCEPT.get(tag, ("decade" if tag in LEXICON["decade"] else "tag", tag))
        if concept not in facets[kind]:
            facets[kind].append(concept)
    facets["vocal"], facets["decade"] = facets["vocal"][:1], facets["decade"][:1]
    words = set(re.findall(r"[a-z]+", (track["lyrics"] or "").lower()))
    hits = {theme: len(words & set(entry["words"])) for theme, entry in LEXICON["theme"].items()}
    best = max(hits, key=hits.get)
    if hits[best] >= 3:
        facets["theme"] = [best]
    if track["tempo"]:
        facets["tempo"] = [next(t for t, entry in LEXICON["tempo"].items() if track["tempo"] < entry["below"])]
    if track["key"]:
        facets["mode"] = [track["key"].split()[-1]]
    if track["release_date"]:
        year = int(str(track["release_date"])[:4])
        facets["decade"] = [f"{year // 10 % 10}0s"] if 1960 <= year < 2020 else []
    return facets


# ---------------------------------------------------------------- what two tracks share, and how they differ

def intersection(facets):
    """Facets that several tracks have in common, in the order of the first. facets: list of {kind: [concepts]}."""
    return {kind: [c for c in concepts if all(c in other[kind] for other in facets[1:])] for kind, concepts in facets[0].items()}


def pairs(facets, kinds=None):
    """{kind: [concepts]} -> [(kind, concept), ...], of the kinds named."""
    return [(kind, c) for kind in kinds or facets for c in facets[kind]]


def compared_tempo(a, b):
    """"faster" or "slower", as track b is beside track a; None: about the same, or not known."""
    ratio = b["tempo"] / a["tempo"] if a["tempo"] and b["tempo"] else 1
    return "faster" if ratio > FASTER else "slower" if ratio < 1 / FASTER else None


def in_common(a, b, facets_of):
    """What a listener would keep of track a when b follows: [(kind, concept), ...]."""
    named = [("artist", a["artist"])] * bool(a["artist"] and a["artist"] == b["artist"])
    both = intersection([facets_of[a["track_id"]], facets_of[b["track_id"]]])
    if compared_tempo(a, b):
        both["tempo"] = []  # both are called fast, say, and yet one is faster
    return named + pairs(both, ("genre", "tag", "vocal", "mood", "theme", "tempo", "instrument"))


def changes(a, b, facets_of):
    """How track b differs from track a: [(kind, concept), ...]; besides the kinds of facets compared (faster ...) and without."""
    old, new, found = facets_of[a["track_id"]], facets_of[b["track_id"]], []
    if compared_tempo(a, b):
        found.append(("compared", compared_tempo(a, b)))
    if a["release_date"] and b["release_date"]:
        years = int(str(b["release_date"])[:4]) - int(str(a["release_date"])[:4])
        found += [("compared", "newer" if years > 0 else "older")] if abs(years) > YEARS else []
    found += [(kind, c) for kind, c in pairs(new, ("instrument", "mood", "vocal", "theme")) if c not in old[kind]]
    found += [("mode", c) for c in new["mode"] if old["mode"] and c not in old["mode"]]
    return found + [("without", c) for c in old["instrument"] if new["instrument"] and c not in new["instrument"]][:1]


# ---------------------------------------------------------------- saying it

def pick(items, rng):
    return items[int(rng.integers(len(items)))]


def draw(weights, rng):
    names = list(weights)
    return names[int(rng.choice(len(names), p=[weights[n] / sum(weights.values()) for n in names]))]


def sentence_case(text):
    """Capital letters at the start and after a full stop."""
    return re.sub(r"(^|[.!?] )(\w)", lambda m: m.group(1) + m.group(2).upper(), text)


def with_article(phrase):
    """"an easy-going song"; "an 80s song", but "a uk garage song"."""
    return f"{'an' if re.match('[aio8]|e(?!u)|u(?!k|s|ni)', phrase) else 'a'} {phrase}"


def listed(phrases):
    """["a", "b", "c"] -> "a, b and c"."""
    return " and ".join(filter(None, (", ".join(phrases[:-1]), *phrases[-1:])))


def noun_phrase(facts, rng, known_genre=False, several=True):
    """[(kind, concept), ...] -> "slow, sad folk with piano, about leaving home".

    known_genre: the genre need not be said: "a slow, sad one with piano". several: "songs" may be said of it.
    """
    nouns, adjectives, with_, ends, decade, occasion = [], [], [], [], "", False
    for kind, concept in facts:
        entry = LEXICON.get(kind, {}).get(concept, {})
        if kind in NOUNS:
            nouns.append((entry.get("noun") or [concept], concept))
        elif kind == "theme":
            ends.append("about " + pick(entry["about"], rng))
        elif "with" in entry and ("use" not in entry or rng.random() < 0.75):
            with_.append(pick(entry["with"], rng))
        elif kind == "decade" and not known_genre and rng.random() < 0.4:
            decade = pick(entry["adj"], rng)
        elif kind != "decade" and "adj" in entry and (rng.random() < 0.65 or occasion):
            adjectives.append(pick(entry["adj"], rng))
        else:
            ends.append(pick(entry["use"], rng))
            occasion = occasion or kind == "mood"  # "for a run": one is enough
    rng.shuffle(adjectives)
    if with_:
        ends.append("with " + listed(with_))
    rng.shuffle(ends)
    both = listed(adjectives) if rng.random() < 0.5 else ", ".join(adjectives)
    if nouns:
        words, concept = nouns[0]
        single = rng.random() < 0.3
        noun = f"{concept} {pick(PIECES, rng)}" if single else pick(words, rng)
        head = " ".join(filter(None, (both, decade, noun)))
    elif known_genre:
        single, head = bool(both), f"{both} one"
    else:
        plain = () if decade else ("something", "something")
        noun = pick((*plain, "music", *(["songs"] if several else []), *PIECES), rng)
        single = noun in PIECES
        head = f"something {listed(adjectives)}" if noun == "something" else " ".join(filter(None, (both, decade, noun)))
    head = with_article(head.strip()) if single else head.strip()
    return head + "".join((", " if i and len(ends[i - 1].split()) > 1 else " ") + end for i, end in enumerate(ends))


def one_noun(facts):
    """Keep only the first genre or unknown tag."""
    nouns = [fact for fact in facts if fact[0] in NOUNS]
    return [fact for fact in facts if fact not in nouns[1:]]


def choose_facts(facets, kind, rng):
    """Two to four things to say of a track; `kind` tells what they are about. Empty if nothing is known."""
    core = {"tags": ("genre", "mood", "instrument", "vocal", "tag"), "lyrics": ("theme",),
            "audio": ("tempo", "mode", "instrument", "vocal"), "metadata": ("decade",)}[kind]
    known = pairs(facets, core)
    if not known:
        return []
    n = {"tags": 2, "lyrics": 1, "audio": 2, "metadata": 1}[kind] + int(rng.random() < 0.5)
    chosen = [known[i] for i in rng.permutation(len(known))[:n]]
    others = pairs(facets, ("genre", "mood", "vocal", "tag") if kind != "tags" else ("tempo", "decade"))
    others = [fact for fact in others if fact not in chosen]
    if others and (kind in ("lyrics", "metadata") or rng.random() < 0.4):
        chosen.append(pick(others, rng))
    chosen = one_noun(chosen)
    return [chosen[i] for i in rng.permutation(len(chosen))]


class Listener:
    """Says queries, from the frames of one split, none twice in a dialogue while there are others; `unseen`: from those of "test"."""

    def __init__(self, split, rng):
        self.split, self.rng, self.unseen, self.used = split, rng, False, set()
        self.asked, self.wished, self.disliked = [], set(), set()  # facts of the last request, and of all; those turned down

    def new_turn(self):
        self.unseen = self.split == "test" and self.rng.random() < UNSEEN_FRAMES

    def words(self, name, **slots):
        """A phrase from the frames called `name`, of those whose slots are all given."""
        frames = FRAMES[name]["test" if self.unseen and "test" in FRAMES[name] else "train"]
        fitting = [f for f in frames if SLOTS[f] <= set(slots)]
        if not fitting:
            raise ValueError(f"frames.json: no sentence of {name} does with the slots {', '.join(slots)}")
        frame = pick([f for f in fitting if f not in self.used] or fitting, self.rng)
        self.used.add(frame)
        return frame.format(**slots)

    def say(self, name, **slots):
        return sentence_case(self.words(name, **slots))

    def without_disliked(self, facets):
        """Facets that the listener has not turned down before."""
        return {kind: [c for c in concepts if (kind, c) not in self.disliked] for kind, concepts in facets.items()}

    def kept(self, fact):
        """A fact of in_common() as a noun phrase: "the same mood"."""
        kind, concept = fact
        return self.words("same_instrumental" if concept == "instrumental" else f"same_{kind}", concept=concept)

    def changed(self, facts):
        """Facts of changes() -> slots: diff, and with or adj where the frame needs a phrase ("with piano") or an adjective ("sad")."""
        adjectives, with_, others = [], [], []
        for kind, concept in facts:
            entry = LEXICON.get(kind, {}).get(concept, {})
            if kind == "compared":
                adjectives.append(self.words(concept))
            elif kind == "mood":
                adjectives.append(pick(entry["adj"], self.rng))
            elif kind == "without":
                others.append(f"without the {concept}")
            elif kind == "theme":
                others.append("about " + pick(entry["about"], self.rng))
            elif "with" in entry:
                with_.append(pick(entry["with"], self.rng))
            else:
                others.append(pick(entry["use"], self.rng))
        if with_:
            others = [f"with {listed(with_)}", *others]
        diff = ", ".join(filter(None, (listed(adjectives), listed(others))))
        slots = {"diff": diff}
        if not others:
            slots["adj"] = diff
        elif not adjectives:
            slots["with"] = diff
        return slots


# ---------------------------------------------------------------- requests

@dataclass
class Situation:
    """What a request starts from, and of which tracks it must hold."""
    listener: "Listener"
    aims: list                   # the track to come; or one that will be turned down, and the track to come
    before: dict | None          # the track played last
    facets_of: dict
    playlist_title: str | None

    def __post_init__(self):
        self.facets = self.listener.without_disliked(intersection([self.facets_of[t["track_id"]] for t in self.aims]))
        self.old = self.facets_of[self.before["track_id"]] if self.before else {kind: [] for kind in self.facets}
        self.news = {kind: [c for c in concepts if c not in self.old[kind]] for kind, concepts in self.facets.items()}
        self.same_genre = any(set(self.facets[kind]) & set(self.old[kind]) for kind in NOUNS)


def ask_title(now):
    named = {field: now.aims[0][field] for field in ("title", "artist") if now.aims[0][field]}
    return (now.listener.say("title", **named), []) if "title" in named and len(now.aims) == 1 else None


def ask_more(now):
    return (now.listener.say("more"), pairs(intersection([now.facets, now.old]))) if now.same_genre else None


def ask_relative(now):
    """From the track before: what to keep of it, what to change."""
    listener, rng = now.listener, now.listener.rng
    fickle = {("without", c) for _, c in [*listener.asked, *listener.disliked]} | listener.disliked
    shared, new = (set.intersection(*(set(f(now.before, t, now.facets_of)) for t in now.aims)) for f in (in_common, changes))
    shared, new = sorted(shared - fickle), sorted(new - fickle)
    new = [new[i] for i in rng.permutation(len(new))[:1 + int(rng.random() < 0.4)]]
    if new and now.same_genre and rng.random() < 0.3:
        return listener.say("relative_diff", **listener.changed(new)), new
    if not shared:
        return None
    keep = pick(shared, rng)
    new = [fact for fact in new if fact[0] != keep[0] or fact[0] == "instrument"]
    slots = listener.changed(new) if new else {}
    name = "relative_both" if new else "relative_same"
    if keep[0] == "artist":
        return listener.say(name.replace("_", "_artist_"), **slots), new
    same = listener.kept(keep)
    preposition = {"genre": "in", "tag": "in", "mood": "in", "tempo": "at"}.get(keep[0], "with")
    return listener.say(name, same=same, kept=f"{preposition} {same}", **slots), [*new, keep]


def ask_metadata(now):
    """By an artist who was not played last, or of a decade."""
    rng, artists = now.listener.rng, {t["artist"] for t in now.aims}
    artist = now.aims[0]["artist"]
    if len(artists) == 1 and artist and not (now.before and now.before["artist"] == artist) and rng.random() < 0.6:
        facts = choose_facts(now.facets, "tags", rng) if rng.random() < 0.5 else []
        if facts:
            return now.listener.say("artist_described", artist=artist, np=noun_phrase(facts, rng)), facts
        return now.listener.say("artist", artist=artist), []
    return ask_description(now, "metadata")


def ask_redirect(now):
    """For a track whose genre and moods are all others than those of the track before."""
    rng, kinds = now.listener.rng, ("genre", "mood", "tag")
    facts = choose_facts(now.news, "tags", rng)
    other = not any(c in now.old[kind] for t in now.aims for kind, c in pairs(now.facets_of[t["track_id"]], kinds))
    return (now.listener.say("redirect", np=noun_phrase(facts, rng)), facts) if facts and other and pairs(now.old, kinds) else None


def ask_description(now, kind):
    """For a track of which this is true; where the genre stays, only what the track before does not have is said."""
    rng = now.listener.rng
    if now.same_genre and rng.random() < 0.9:
        facts = choose_facts(now.news | dict.fromkeys(NOUNS, []), kind, rng)
        if facts:
            return now.listener.say("describe", np=noun_phrase(facts, rng, known_genre=True)), facts
    facts = choose_facts(now.facets, kind, rng)
    if not facts:
        return None
    if now.before is None and now.playlist_title and rng.random() < 0.2:
        return now.listener.say("opening_playlist", playlist=now.playlist_title, np=noun_phrase(facts, rng)), facts
    return now.listener.say("describe", np=noun_phrase(facts, rng)), facts


# A kind of request: a function of a Situation -> (query, facts in it), or None where no such request holds for its aims.
# A new one needs a line here, a weight in OPENING or LATER, and sentences under "train" and "test" in frames.json.
REQUESTS = {"title": ask_title, "more": ask_more, "relative": ask_relative, "metadata": ask_metadata, "redirect": ask_redirect} | {
    kind: partial(ask_description, kind=kind) for kind in ("tags", "lyrics", "audio")}


def ask(listener, kind, aims, before, facets_of, playlist_title=None):
    """A request of this kind that holds for each of the tracks `aims`: (query, facts in it), or None. before: the track played last, or None."""
    return REQUESTS[kind](Situation(listener, aims, before, facets_of, playlist_title))


def complaints(listener, a, b, asked, facets_of, plays, coming):
    """Reasons to turn track a down that b does not give, and that were not asked for: [(name of its frames, slots, fact or None), ...].

    asked: the facts of the request; plays: {artist: how often played so far}; coming: artists that are still to be played.
    """
    old, new, found = facets_of[a["track_id"]], facets_of[b["track_id"]], []
    if compared_tempo(a, b) and not {"tempo", "compared"} & {kind for kind, _ in [*asked, *listener.asked]}:
        for tempo in ("slow", "fast"):
            if old["tempo"] == [tempo] and new["tempo"] != [tempo]:
                found.append((f"too_{tempo}", {}, None))
    if old["vocal"] and new["vocal"] and old["vocal"] != new["vocal"]:
        name = "has_singing" if new["vocal"] == ["instrumental"] else "no_singing" if old["vocal"] == ["instrumental"] else "wrong_voice"
        found.append((name, {}, None))
    for kind, c in pairs(old, ("mood", "instrument")):
        if new[kind] and c not in new[kind] and (kind, c) not in listener.wished:
            slots = {"adj": pick(LEXICON["mood"][c]["adj"], listener.rng)} if kind == "mood" else {"concept": c}
            found.append((f"wrong_{kind}", slots, (kind, c)))
    if a["artist"] and a["artist"] != b["artist"] and a["artist"] not in coming:
        heard = plays.get(a["artist"], 0)
        name = "unloved_artist" if not heard else "wrong_artist" if heard == 1 else "enough_of_artist"
        found.append((name, {"artist": a["artist"]}, None))
    return found


def turn_down(listener, kind, target, before, negatives, facets_of, plays, coming):
    """A request that a track of the negative set fulfils as well as the target does: (negative, query, facts, reason), or None."""
    wanted = facets_of[target["track_id"]]
    some = [negatives[i] for i in listener.rng.permutation(len(negatives))[:20]]
    some.sort(key=lambda track: -len(pairs(intersection([facets_of[track["track_id"]], wanted]))))
    for track in some[:5]:
        request = ask(listener, kind, [track, target], before, facets_of)
        reasons = complaints(listener, track, target, request[1], facets_of, plays, coming) if request else []
        if reasons:
            name, slots, fact = pick(reasons, listener.rng)
            if fact:
                listener.disliked.add(fact)
            return track, *request, listener.words(name, **slots)
    return None


def clarify(listener, reason, asked, refused, target, facets_of):
    """What the listener says after a rejection: (query, facts). asked: the facts in what was said before; the genre is clear from it."""
    rng, facets = listener.rng, listener.without_disliked(facets_of[target["track_id"]])
    facets = {k: [c for c in concepts if (k, c) not in asked and k not in NOUNS * bool(asked)] for k, concepts in facets.items()}
    new = [fact for fact in changes(refused, target, facets_of) if fact[0] != "without" and fact not in [*asked, *listener.disliked]]
    facts = choose_facts(facets, "lyrics" if facets["theme"] and rng.random() < 0.25 else "tags", rng) or choose_facts(facets, "audio", rng)
    if new and (not facts or rng.random() < 0.5):
        facts = [new[i] for i in rng.permutation(len(new))[:1 + int(rng.random() < 0.4)]]
        return listener.say("after_rejection", reason=reason, **listener.changed(facts)), facts
    return listener.say("after_rejection", reason=reason, np=noun_phrase(facts, rng, known_genre=bool(asked)) if facts else "something else"), facts


def praise(listener, kind, before, facets_of, asked):
    """A word on the track played last. kind, asked: of the request that follows, and its facts; what it speaks of is not praised."""
    facets, kinds = facets_of[before["track_id"]], {k for k, _ in asked}
    things = [f"the {c}" for c in facets["instrument"] if ("instrument", c) not in listener.disliked and c not in [c for _, c in asked]]
    things += ["that voice"] * (facets["vocal"] not in ([], ["instrumental"]) and "vocal" not in kinds)
    things += ["the mood"] * (facets["mood"] != [] and "mood" not in kinds) + ["the lyrics"] * (facets["theme"] != [] and "theme" not in kinds)
    return listener.say("praise", **{"thing": pick(things, listener.rng)} if things and kind != "relative" else {})


def answer(listener, track, facets, kind, asked):
    """One sentence that says truly what the track is like. kind: of the request; asked: the facts in it, of which one or two are taken up."""
    rng, name, slots = listener.rng, "response", {}
    compared = [concept for asked_kind, concept in asked if asked_kind == "compared"]
    known = pairs(facets)
    if compared or kind == "after_rejection":  # "slower it is: something fast" may be true, and still sounds wrong
        unfit = {"faster": ("mood", "calm"), "slower": ("mood", "energetic")}.get(compared[0]) if compared else None
        known = [fact for fact in known if fact != unfit and (fact[0] != "tempo" or fact in asked)]
    taken = [fact for fact in asked if fact in known]
    facts = [taken[i] for i in rng.permutation(len(taken))[:1 + int(rng.random() < 0.6)]]
    others = [fact for fact in known if fact not in facts and fact not in taken] or [fact for fact in known if fact not in facts]
    facts += [others[i] for i in rng.permutation(len(others))[:max(1, 2 - len(facts)) + int(rng.random() < 0.4)]]
    facts = one_noun(facts)
    phrase = noun_phrase([facts[i] for i in rng.permutation(len(facts))], rng, several=False) if facts else "your next track"
    if kind == "title":
        name = "response_title"
    elif kind == "after_rejection":
        name, slots = "response_after_rejection", {"asked": compared[0]} if compared else {}
    elif compared:
        name, slots = "response_compared", {"asked": compared[0]}
    elif kind in ("more", "redirect") and rng.random() < 0.6:
        name = f"response_{kind}"
    return listener.say(name, np=phrase, **slots)


# ---------------------------------------------------------------- the journey

def next_request(listener, remaining, before, facets_of, playlist_title, weights):
    """(kind, target, (query, facts)): a kind drawn by weight, and the first of the remaining tracks that can truly be asked for so."""
    weights = {kind: weight for kind, weight in weights.items() if weight}
    while weights:
        kind = draw(weights, listener.rng)
        for target in remaining:
            asked = ask(listener, kind, [target], before, facets_of, playlist_title)
            if asked:
                return kind, target, asked
        del weights[kind]
    target = remaining[0]  # little is known of it
    for kind in ("tags", "audio", "title"):
        asked = ask(listener, kind, [target], before, facets_of)
        if asked:
            return kind, target, asked
    if target["artist"]:
        return "metadata", target, (listener.say("artist", artist=target["artist"]), [])
    return "more", target, (listener.say("more"), [])


def simulate(playlist_title, sampled, negatives, facets_of, split, rng, max_turns=14, opening=OPENING, later=LATER, rejection=REJECTION):
    """One dialogue through the tracks `sampled`: mostly in their order, but "more of this" waits for one like the last.

    sampled, negatives: lists of tracks (dicts). facets_of: {track_id: track_facets(track)}. opening, later, rejection: of mix_of.
    Returns: list of turns {query, music, response, targets, rejected, kind, frame}.
    """
    listener, turns, before, plays, played = Listener(split, rng), [], None, {}, set()
    remaining = list(sampled)

    def play(track, query, facts, kind, rejected=False):
        frame = "unseen" if listener.unseen else "seen"
        listener.unseen = False  # answers have no unseen frames: the model is to learn them
        turns.append({"query": query, "music": track["track_id"], "targets": [track["track_id"]], "rejected": rejected, "kind": kind,
                      "response": answer(listener, track, facets_of[track["track_id"]], kind, facts), "frame": frame})
        listener.asked = facts
        listener.wished |= set(facts)
        plays[track["artist"]] = plays.get(track["artist"], 0) + 1
        played.add(track["track_id"])

    while remaining:
        listener.new_turn()
        kind, target, (query, facts) = next_request(listener, remaining, before, facets_of, playlist_title, later if turns else opening)
        room = len(turns) + len(remaining) < max_turns
        refused = None
        if turns and room and rng.random() < rejection:
            refused = turn_down(listener, kind, target, before, [t for t in negatives if t["track_id"] not in played], facets_of, plays,
                                {t["artist"] for t in remaining})
        if refused:
            negative, query, facts, reason = refused
        if turns and kind != "redirect" and rng.random() < PRAISE:
            query = f"{praise(listener, kind, before, facets_of, facts)} {query}"
        if refused:
            play(negative, query, facts, kind, rejected=True)
            listener.new_turn()
            kind, (query, facts) = "after_rejection", clarify(listener, reason, facts, negative, target, facets_of)
        play(target, query, facts, kind)
        remaining.remove(target)
        before = target
    return turns
