"""The offline backend of 03_synthesize.py: a simulated listener who walks through a playlist.

The listener knows what is true of each track (its tags, lyrics, caption, tempo, key, artist, year) and asks
for the next one: by description, by comparison with the track before, by name, or just for more. Now
and then the system plays a track that is not in the playlist (from the negative set), and the listener
turns it down with a reason. What the listener says comes from two files that are meant to be read: common/lexicon.json
(ways to say a concept) and synthesis/frames.json (sentences; those under "test" never occur in training).

Answers describe the track but leave its title and artist to the player's display.
"""

import json
import re
from pathlib import Path

LEXICON = json.loads((Path(__file__).parent.parent / "common" / "lexicon.json").read_text(encoding="utf-8"))
FRAMES = json.loads((Path(__file__).parent / "frames.json").read_text(encoding="utf-8"))
TAG_CONCEPT = {tag: (kind, concept) for kind in ("genre", "mood", "instrument", "vocal")
               for concept, words in LEXICON[kind].items() for tag in (concept, *words["tags"])}
HEARD = {tag: re.compile(rf"\b{re.escape(tag)}\b") for tag, (kind, _) in TAG_CONCEPT.items() if kind in ("instrument", "vocal")}
SLOTS = {frame: set(re.findall(r"{(\w+)}", frame)) for both in FRAMES.values() for frames in both.values() for frame in frames}

# How often the listener asks in which way (weights; mix_of changes them). Frozen before systems were first compared.
OPENING = {"tags": 0.4, "lyrics": 0.15, "audio": 0.2, "metadata": 0.15, "title": 0.1}
LATER = {"relative": 0.3, "more": 0.08, "tags": 0.15, "lyrics": 0.1, "audio": 0.12, "metadata": 0.1, "title": 0.05, "redirect": 0.1}
REJECTION = 0.12     # share of turns after the first at which the system first plays a track that is turned down
UNSEEN_FRAMES = 0.6  # share of the test queries whose sentence frame never occurs in training
PRAISE = 0.35        # share of the later queries that begin with a word on the track before
FASTER = 1.12        # a tempo is called faster or slower when it differs by this factor


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
    for tag in [*track["tags"], *heard]:
        kind, concept = TAG_CONCEPT.get(tag.lower(), ("decade" if tag in LEXICON["decade"] else "tag", tag))
        if concept not in facets[kind]:
            facets[kind].append(concept)
    if "instrumental" in facets["vocal"] or len(facets["vocal"]) > 1:
        facets["vocal"] = facets["vocal"][:1]
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
        decade = f"{int(str(track['release_date'])[:4]) // 10 % 10}0s"
        facets["decade"] = [decade] if decade in LEXICON["decade"] else []
    return facets


# ---------------------------------------------------------------- saying it

def pick(items, rng):
    return items[int(rng.integers(len(items)))]


def sentence_case(text):
    """Capital letters at the start and after a full stop."""
    return re.sub(r"(^|[.!?] )(\w)", lambda m: m.group(1) + m.group(2).upper(), text)


def noun_phrase(chosen, rng):
    """[(kind, concept), ...] -> "slow, sad folk with piano about leaving home"."""
    noun, adjectives, ends = None, [], {"with": [], "about": [], "mode": [], "decade": [], "use": []}
    for kind, concept in chosen:
        entry = LEXICON.get(kind, {}).get(concept, {})
        if kind == "tag" or kind == "genre":
            noun = noun or (concept if kind == "tag" else pick(entry["noun"], rng))
        elif kind in ("instrument", "vocal"):
            ends["with"].append(pick(entry["with"], rng))
        elif kind == "theme":
            ends["about"].append("about " + pick(entry["about"], rng))
        elif kind in ("mode", "decade"):
            ends[kind].append(pick(entry["use"], rng))
        elif rng.random() < 0.6 or ends["use"]:
            adjectives.append(pick(entry["adj"], rng))
        else:
            ends["use"].append(pick(entry["use"], rng))
    head = f"{', '.join(adjectives)} {noun}" if noun else f"something {' and '.join(adjectives)}"
    with_ = ["with " + " and ".join(ends["with"])] if ends["with"] else []
    return " ".join([head.strip(), *with_, *ends["about"], *ends["mode"], *ends["decade"], *ends["use"]])


def choose_facets(facets, kind, rng):
    """Two or three things to say of a track; `kind` tells what they are about. Empty if nothing is known."""
    core = {"tags": ("genre", "mood", "instrument", "vocal", "tag"), "lyrics": ("theme",),
            "audio": ("tempo", "mode", "instrument", "vocal"), "metadata": ("decade",)}[kind]
    extra = ("genre", "mood", "vocal", "tag") if kind != "tags" else ("tempo", "decade")
    known = [(k, c) for k in core for c in facets[k]]
    if not known:
        return []
    n = min(len(known), {"tags": 2, "lyrics": 1, "audio": 2, "metadata": 1}[kind] + int(rng.random() < 0.4))
    chosen = [known[i] for i in rng.permutation(len(known))[:n]]
    others = [(k, c) for k in extra for c in facets[k] if (k, c) not in chosen]
    if others and (kind in ("lyrics", "metadata") or rng.random() < 0.4):
        chosen.append(pick(others, rng))
    return one_noun(chosen)


def one_noun(chosen):
    """Keep only the first genre or unknown tag, since a phrase has one noun."""
    nouns = [x for x in chosen if x[0] in ("genre", "tag")]
    return [x for x in chosen if x not in nouns[1:]]


def common_ground(a, b, track_a, track_b):
    """What two tracks share, as noun phrases that follow "keep"."""
    shared = {kind: [c for c in a[kind] if c in b[kind]] for kind in a}
    found = []
    if track_a["artist"] and track_a["artist"] == track_b["artist"]:
        found += ["the same artist", "this artist"]
    if shared["genre"] or shared["tag"]:
        found += ["the same style", "this style"]
    if shared["vocal"]:
        found += ["no singing"] if shared["vocal"] == ["instrumental"] else ["the same kind of voice", "that sort of voice"]
    if shared["mood"]:
        found += ["the same mood", "this mood"]
    if shared["theme"]:
        found += ["the same subject", "this kind of story"]
    if shared["tempo"]:
        found += ["the tempo", "the same pace"]
    found += [f"the {instrument}" for instrument in shared["instrument"]]
    return found


def differences(a, b, track_a, track_b, rng):
    """How track b differs from track a, as phrases that follow "but" or "make it"."""
    found = []
    if track_a["tempo"] and track_b["tempo"]:
        if track_b["tempo"] > FASTER * track_a["tempo"]:
            found += ["faster", "a bit quicker"]
        elif track_a["tempo"] > FASTER * track_b["tempo"]:
            found += ["slower", "a bit calmer in pace"]
    found += ["with " + pick(LEXICON["instrument"][c]["with"], rng) for c in b["instrument"] if c not in a["instrument"]]
    found += [f"less {c}" for c in a["instrument"] if c not in b["instrument"]][:1]
    found += [pick(LEXICON["mood"][c]["adj"], rng) for c in b["mood"] if c not in a["mood"]]
    found += ["with " + pick(LEXICON["vocal"][c]["with"], rng) for c in b["vocal"] if c not in a["vocal"]]
    found += ["about " + pick(LEXICON["theme"][c]["about"], rng) for c in b["theme"] if c not in a["theme"]]
    if b["mode"] and a["mode"] and a["mode"] != b["mode"]:
        found.append(pick(LEXICON["mode"][b["mode"][0]]["use"], rng))
    if track_a["release_date"] and track_b["release_date"]:
        years = int(str(track_b["release_date"])[:4]) - int(str(track_a["release_date"])[:4])
        found += ["newer"] if years > 7 else ["older"] if years < -7 else []
    return found


def complaints(a, b, track_a, track_b, rng):
    """Reasons to turn track a down that track b does not give."""
    found = []
    if track_a["tempo"] and track_b["tempo"]:
        if track_a["tempo"] > FASTER * track_b["tempo"]:
            found.append("it's too fast")
        elif track_b["tempo"] > FASTER * track_a["tempo"]:
            found.append("it's too slow")
    if a["vocal"] and b["vocal"] and a["vocal"] != b["vocal"]:
        found.append("there's singing in it" if b["vocal"] == ["instrumental"] else "I don't like the voice"
                     if a["vocal"] != ["instrumental"] else "I want to hear somebody sing")
    found += [f"it's too {pick(LEXICON['mood'][c]['adj'], rng)}" for c in a["mood"] if c not in b["mood"]]
    found += [f"there's too much {c} in it" for c in a["instrument"] if c not in b["instrument"]]
    if track_a["artist"] != track_b["artist"]:
        found.append(f"I've heard enough of {track_a['artist']}")
    return found


# ---------------------------------------------------------------- the journey

class Listener:
    """Says queries, from the frames of one split; remembers whether the last frame was an unseen one."""

    def __init__(self, split, rng):
        self.split, self.rng, self.unseen = split, rng, False

    def new_turn(self):
        self.unseen = self.split == "test" and self.rng.random() < UNSEEN_FRAMES

    def say(self, name, **slots):
        """One sentence from the frames called `name` whose slots are all given and all wanted."""
        frames = FRAMES[name]["test" if self.unseen else "train"]
        fitting = [f for f in frames if SLOTS[f] <= set(slots)]
        return sentence_case(pick(fitting, self.rng).format(**slots))


def draw(weights, rng):
    names = list(weights)
    return names[int(rng.choice(len(names), p=[weights[n] / sum(weights.values()) for n in names]))]


def ask(listener, kind, target, before, facets_of, playlist_title):
    """(query, kind) for `target`; `before` is the track played last, or None. Falls back to a kind that can be said."""
    rng, facets = listener.rng, facets_of[target["track_id"]]
    if kind == "title" and target["title"]:
        return listener.say("title", title=target["title"], artist=target["artist"]), "title"
    if kind == "more":
        return listener.say("more"), "more"
    if kind == "relative":
        old = facets_of[before["track_id"]]
        same, diff = common_ground(old, facets, before, target), differences(old, facets, before, target, rng)
        if same and diff and rng.random() < 0.75:
            return listener.say("relative_both", same=pick(same, rng), diff=pick(diff, rng)), "relative"
        if diff:
            return listener.say("relative_diff", diff=pick(diff, rng)), "relative"
        if same:
            return listener.say("relative_same", same=pick(same, rng)), "relative"
    if kind == "redirect":
        old = facets_of[before["track_id"]]
        new = not any(c in old[k] for k in ("genre", "mood", "tag") for c in facets[k])
        chosen = choose_facets(facets, "tags", rng)
        if chosen and new:
            return listener.say("redirect", np=noun_phrase(chosen, rng)), "redirect"
    if kind == "metadata" and target["artist"] and rng.random() < 0.6:
        chosen = choose_facets(facets, "tags", rng)
        slots = {"np": noun_phrase(chosen, rng)} if chosen else {}
        return listener.say("artist", artist=target["artist"], **slots), "metadata"
    for said in ([kind] if kind in ("lyrics", "audio", "metadata") else []) + ["tags", "audio"]:
        chosen = choose_facets(facets, said, rng)
        if chosen:
            phrase = noun_phrase(chosen, rng)
            if before is None and playlist_title and rng.random() < 0.2:
                return listener.say("opening_playlist", playlist=playlist_title, np=phrase), said
            return listener.say("describe", np=phrase), said
    if target["artist"]:
        return listener.say("artist", artist=target["artist"]), "metadata"
    return listener.say("title", title=target["title"], artist=target["artist"]), "title"


def answer(listener, track, facets, after_rejection=False):
    """One sentence that says truly what the track is like."""
    known = [(kind, c) for kind in facets for c in facets[kind]]
    n = min(len(known), 2 + int(listener.rng.random() < 0.5))
    chosen = one_noun([known[i] for i in listener.rng.permutation(len(known))[:n]])
    phrase = noun_phrase(chosen, listener.rng) if chosen else "something you may like"
    listener.unseen = False
    return listener.say("response_after_rejection" if after_rejection else "response", np=phrase)


def reject_first(listener, target, negatives, facets_of):
    """A track to be turned down before `target`: (negative, shared facets, reason), or None."""
    rng, wanted = listener.rng, facets_of[target["track_id"]]
    best = None
    for i in rng.permutation(len(negatives))[:20]:
        track = negatives[i]
        facets = facets_of[track["track_id"]]
        shared = [(k, c) for k in ("genre", "mood", "instrument", "vocal", "theme", "tag") for c in facets[k] if c in wanted[k]]
        reasons = complaints(facets, wanted, track, target, rng)
        if shared and reasons and (best is None or len(shared) > len(best[1])):
            best = track, shared, pick(reasons, rng)
    return best


def simulate(playlist_title, sampled, negatives, facets_of, split, rng, max_turns=14, opening=OPENING, later=LATER, rejection=REJECTION):
    """One dialogue through the tracks `sampled`, in their order.

    sampled, negatives: lists of tracks (dicts). facets_of: {track_id: track_facets(track)}. opening, later, rejection: of mix_of.
    Returns: list of turns {query, music, response, targets, rejected, kind, frame}.
    """
    listener, turns, before, played = Listener(split, rng), [], None, set()
    for number, target in enumerate(sampled):
        listener.new_turn()
        room = len(turns) + len(sampled) - number < max_turns
        refused = None
        if turns and room and rng.random() < rejection:
            refused = reject_first(listener, target, [t for t in negatives if t["track_id"] not in played], facets_of)
        if refused:
            track, shared, reason = refused
            played.add(track["track_id"])
            chosen = one_noun([shared[i] for i in rng.permutation(len(shared))[:2 + int(rng.random() < 0.4)]])
            query = listener.say("describe", np=noun_phrase(chosen, rng))
            turns.append(make_turn(listener, query, "tags", track, facets_of, rejected=True))
            listener.new_turn()
            kind = "lyrics" if rng.random() < 0.25 and facets_of[target["track_id"]]["theme"] else "tags"
            chosen = choose_facets(facets_of[target["track_id"]], kind, rng) or shared[:1]
            query = listener.say("after_rejection", reason=reason, np=noun_phrase(chosen, rng))
            turns.append(make_turn(listener, query, "after_rejection", target, facets_of, after_rejection=True))
        else:
            kind = draw(later if turns else opening, rng)
            query, kind = ask(listener, kind, target, before, facets_of, playlist_title)
            if turns and kind != "redirect" and rng.random() < PRAISE:
                query = f"{listener.say('praise')} {query}"
            turns.append(make_turn(listener, query, kind, target, facets_of))
        before = target
    return turns


def make_turn(listener, query, kind, track, facets_of, rejected=False, after_rejection=False):
    frame = "unseen" if listener.unseen else "seen"
    response = answer(listener, track, facets_of[track["track_id"]], after_rejection)
    return {"query": query, "music": track["track_id"], "response": response, "targets": [track["track_id"]],
            "rejected": rejected, "kind": kind, "frame": frame}
