"""What is true of a track, and of one track beside another (part of the simulated listener, steps/synthesize/simulate.py).

A fact is a pair (kind, concept), such as ("mood", "calm"); common/lexicon.json has the concepts, the tags that stand for them, and
the words by which captions tell of them.
"""

import json
import re
from pathlib import Path

LEXICON = json.loads((Path(__file__).parents[2] / "common" / "lexicon.json").read_text(encoding="utf-8"))
HEARD = ("genre", "mood", "instrument", "vocal")  # kinds that tags and captions tell of
TAG_CONCEPT = {tag: (kind, concept) for kind in HEARD for concept, words in LEXICON[kind].items() for tag in (concept, *words["tags"])}
PATTERNS = {(kind, concept): re.compile(r"\b(?:" + "|".join(map(re.escape, (concept, *words["tags"], *words.get("heard", ())))) + r")\b")
            for kind in HEARD for concept, words in LEXICON[kind].items()}
AMBIGUOUS = re.compile(r"\bwistful\b")  # a tag of the sad, but captions say it of what is nostalgic
FASTER = 1.12                # a tempo is called faster or slower when it differs by this factor
YEARS = 7                    # a track is called newer or older when more years lie between
NOUNS = ("genre", "tag")     # kinds that name a sort of music
CLASHES = {frozenset(pair) for one, others in {  # what nobody says in one breath
    "happy": "melancholic dark angry", "calm": "energetic angry fast", "dreamy": "energetic angry", "romantic": "angry", "hopeful": "dark angry",
    "energetic": "melancholic slow", "angry": "slow nostalgic", "slow": "faster", "fast": "slower"}.items() for pair in
    ((one, other) for other in others.split())}  # faster and slower are what `changes` finds
NEAR = {frozenset(pair) for pair in (("happy", "hopeful"), ("melancholic", "nostalgic"), ("calm", "dreamy"), ("dark", "angry"),
                                     ("dark", "melancholic"), ("angry", "energetic"))}
GRANTED = {"synthpop": ["synthesizer"], "house": ["drum machine", "dancing"], "techno": ["drum machine"], "hip hop": ["drum machine"],
           "metal": ["electric guitar"], "indie rock": ["electric guitar"], "indie folk": ["acoustic guitar"]}  # goes without saying


def track_attributes(track):
    """A track's fields -> {kind: [concepts]} for genre, mood, instrument, vocal, theme, tempo, mode, decade, tag.

    Tags are at times wrong: where the caption names a genre or a voice, those of the tags are left out. `tag` holds the tags that the
    lexicon does not know; they are said as they are.
    """
    attributes = {kind: [] for kind in ("genre", "mood", "instrument", "vocal", "theme", "tempo", "mode", "decade", "tag")}
    caption = AMBIGUOUS.sub(" ", (track["caption"] or "").lower())
    heard = [fact for fact, pattern in PATTERNS.items() if pattern.search(caption)]
    tags = [re.sub(r"^(?:19(?=[6-9])|20(?=[01]))(\d0s)$", r"\1", " ".join(tag.lower().split())) for tag in track["tags"]]  # 1980s -> 80s
    told = [TAG_CONCEPT.get(tag, ("decade" if tag in LEXICON["decade"] else "tag", tag)) for tag in tags]
    sure = {kind for kind, _ in heard if kind in ("genre", "vocal")}
    for kind, concept in [*(fact for fact in told if fact[0] not in sure), *heard]:
        if concept not in attributes[kind]:
            attributes[kind].append(concept)
    attributes["decade"] = attributes["decade"][:1]
    attributes["vocal"] = attributes["vocal"] if len(attributes["vocal"]) == 1 else []  # two different ones: nobody knows
    words = set(re.findall(r"[a-z]+", (track["lyrics"] or "").lower()))
    hits = {theme: len(words & set(entry["words"])) for theme, entry in LEXICON["theme"].items()}
    best = max(hits, key=hits.get)
    if hits[best] >= 3 and attributes["vocal"] != ["instrumental"]:
        attributes["theme"] = [best]
    if track["tempo"]:
        attributes["tempo"] = [next(t for t, entry in LEXICON["tempo"].items() if track["tempo"] < entry["below"])]
    if track["key"]:
        attributes["mode"] = [track["key"].split()[-1]]
    if track["release_date"]:
        year = int(str(track["release_date"])[:4])
        attributes["decade"] = [f"{year // 10 % 10}0s"] if 1960 <= year < 2020 else []
    return attributes


def intersection(attributes):
    """Facets that several tracks have in common, in the order of the first. attributes: list of {kind: [concepts]}."""
    first, *others = attributes
    return {kind: [c for c in concepts if all(c in other[kind] for other in others)] for kind, concepts in first.items()} if others else first


def pairs(attributes, kinds=None):
    """{kind: [concepts]} -> [(kind, concept), ...], of the kinds named."""
    return [(kind, c) for kind in kinds or attributes for c in attributes[kind]]


def agreeing(facts):
    """Facts that can be said of one track in one breath: what clashes with one before, or goes without saying, is left out; one noun."""
    kept = []
    for kind, concept in sorted(facts, key=lambda fact: fact[0] not in NOUNS):  # the noun decides what goes without saying
        clash = any(frozenset((concept, other)) in CLASHES or concept in GRANTED.get(other, ()) for _, other in kept)
        if not clash and not (kind in NOUNS and any(k in NOUNS for k, _ in kept)):
            kept.append((kind, concept))
    return [fact for fact in facts if fact in kept]


def compared_tempo(a, b):
    """"faster" or "slower", as track b is beside track a; None: about the same, or not known."""
    ratio = b["tempo"] / a["tempo"] if a["tempo"] and b["tempo"] else 1
    return "faster" if ratio > FASTER else "slower" if ratio < 1 / FASTER else None


def in_common(a, b, attributes_of):
    """What a listener would keep of track a when b follows: [(kind, concept), ...]."""
    named = [("artist", a["artist"])] * bool(a["artist"] and a["artist"] == b["artist"])
    both = intersection([attributes_of[a["track_id"]], attributes_of[b["track_id"]]])
    if compared_tempo(a, b):
        both["tempo"] = []  # both are called fast, say, and yet one is faster
    return named + pairs(both, ("genre", "tag", "vocal", "mood", "theme", "tempo", "instrument"))


def other_genre(a, b, attributes_of):
    """The genre of track b, if both have one and not the same, as [("genre", concept)]; else []."""
    old, new = attributes_of[a["track_id"]]["genre"], attributes_of[b["track_id"]]["genre"]
    return [("genre", new[0])] if old and new and not set(old) & set(new) else []


def changes(a, b, attributes_of):
    """How track b differs from track a, but for the genre: [(kind, concept), ...]; kinds of attributes, compared (faster ...) and without."""
    old, new, found = attributes_of[a["track_id"]], attributes_of[b["track_id"]], []
    if compared_tempo(a, b):
        found.append(("compared", compared_tempo(a, b)))
    if a["release_date"] and b["release_date"]:
        years = int(str(b["release_date"])[:4]) - int(str(a["release_date"])[:4])
        found += [("compared", "newer" if years > 0 else "older")] if abs(years) > YEARS else []
    found += [(kind, c) for kind, c in pairs(new, ("instrument", "mood", "vocal", "theme")) if c not in old[kind]]
    found += [("mode", c) for c in new["mode"] if old["mode"] and c not in old["mode"]]
    return found + [("without", c) for c in old["instrument"] if new["instrument"] and c not in new["instrument"]][:1]
