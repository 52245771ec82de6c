"""What is true of a track, and of one track beside another.

An attribute is a pair (kind, concept), such as ("mood", "calm"). All attributes of a track are a
dict {kind: [concepts]}. common/lexicon.json has the concepts and the words that tell of them.
"""

import json
import re
from pathlib import Path

LEXICON = json.loads(
    (Path(__file__).parents[2] / "common" / "lexicon.json").read_text(encoding="utf-8"))
KINDS = (*LEXICON, "tag")
HEARD = ("genre", "mood", "instrument", "vocal")  # kinds that tags and captions tell of
NOUNS = ("genre", "tag")  # kinds that name a sort of music
FASTER = 1.12  # a tempo is called faster or slower when it differs by this factor
YEARS = 7      # a track is called newer or older when more years lie between

# {tag: (kind, concept)}, and {(kind, concept): what a caption says}
TAG_CONCEPT = {tag: (kind, concept) for kind in HEARD
               for concept, words in LEXICON[kind].items() for tag in (concept, *words["tags"])}
PATTERNS = {}
for kind in HEARD:
    for concept, words in LEXICON[kind].items():
        phrases = (concept, *words["tags"], *words.get("heard", ()))
        PATTERNS[kind, concept] = re.compile(rf"\b(?:{'|'.join(map(re.escape, phrases))})\b")
AMBIGUOUS = re.compile(r"\bwistful\b")  # a tag of what is sad; captions say it of what is nostalgic

# What nobody says in one breath. Faster and slower are what `changes` finds.
CLASHES = {frozenset((one, other)) for one, others in {
    "happy": "melancholic dark angry", "calm": "energetic angry fast", "romantic": "angry",
    "dreamy": "energetic angry", "hopeful": "dark angry", "energetic": "melancholic slow",
    "angry": "slow nostalgic", "slow": "faster", "fast": "slower"}.items()
    for other in others.split()}
GRANTED = {  # what goes without saying
    "synthpop": ["synthesizer"], "house": ["drum machine", "dancing"], "techno": ["drum machine"],
    "hip hop": ["drum machine"], "metal": ["electric guitar"], "indie rock": ["electric guitar"],
    "indie folk": ["acoustic guitar"]}


def track_attributes(track):
    """A track (dict) -> {kind: [concepts]}.

    Tags are wrong at times. So where the caption names a genre or a voice, those among the tags are
    left out. The kind `tag` holds tags that the lexicon does not know; they are said as they are.
    """
    attributes = {kind: [] for kind in KINDS}

    # Tags and caption.
    caption = AMBIGUOUS.sub(" ", (track["caption"] or "").lower())
    heard = [attribute for attribute, pattern in PATTERNS.items() if pattern.search(caption)]
    sure = {kind for kind, _ in heard if kind in ("genre", "vocal")}
    told = []
    for tag in track["tags"]:
        tag = " ".join(tag.lower().split())
        tag = re.sub(r"^(?:19(?=[6-9])|20(?=[01]))(\d0s)$", r"\1", tag)  # 1980s -> 80s
        unknown = ("decade" if tag in LEXICON["decade"] else "tag", tag)
        told.append(TAG_CONCEPT.get(tag, unknown))
    for kind, concept in [*(attribute for attribute in told if attribute[0] not in sure), *heard]:
        if concept not in attributes[kind]:
            attributes[kind].append(concept)
    attributes["decade"] = attributes["decade"][:1]
    if len(attributes["vocal"]) > 1:  # two different voices: nobody knows
        attributes["vocal"] = []

    # Lyrics: the theme with most of its words, three at least.
    words = set(re.findall(r"[a-z]+", (track["lyrics"] or "").lower()))
    hits = {theme: len(words & set(entry["words"])) for theme, entry in LEXICON["theme"].items()}
    best = max(hits, key=hits.get)
    if hits[best] >= 3 and attributes["vocal"] != ["instrumental"]:
        attributes["theme"] = [best]

    # Numbers.
    if track["tempo"]:
        attributes["tempo"] = [next(name for name, entry in LEXICON["tempo"].items()
                                    if track["tempo"] < entry["below"])]
    if track["key"]:
        attributes["mode"] = [track["key"].split()[-1]]
    if track["release_date"]:
        year = year_of(track)
        attributes["decade"] = [f"{year // 10 % 10}0s"] if 1960 <= year < 2020 else []
    return attributes


def year_of(track):
    """The year of a track's release, or None."""
    return int(str(track["release_date"])[:4]) if track["release_date"] else None


def intersection(attributes):
    """A list of {kind: [concepts]} -> what is in all of them, in the order of the first."""
    first, *others = attributes
    return {kind: [c for c in concepts if all(c in other[kind] for other in others)]
            for kind, concepts in first.items()}


def pairs(attributes, kinds=KINDS):
    """{kind: [concepts]} -> [(kind, concept), ...] of the kinds named."""
    return [(kind, c) for kind in kinds for c in attributes[kind]]


def agreeing(attributes):
    """Those of the pairs (kind, concept) that can be said of one track in one breath.

    What clashes with one before is left out, what goes without saying too. There is one noun.
    """
    kept = []
    # Nouns first: they decide what goes without saying.
    for kind, concept in sorted(attributes, key=lambda attribute: attribute[0] not in NOUNS):
        clash = any(frozenset((concept, other)) in CLASHES or concept in GRANTED.get(other, ())
                    for _, other in kept)
        second_noun = kind in NOUNS and any(k in NOUNS for k, _ in kept)
        if not clash and not second_noun:
            kept.append((kind, concept))
    return [attribute for attribute in attributes if attribute in kept]


# ---------------------------------------------------------------- two tracks

def compared_tempo(a, b):
    """"faster" or "slower", as track b is beside track a; None: about the same, or not known."""
    ratio = b["tempo"] / a["tempo"] if a["tempo"] and b["tempo"] else 1
    if ratio > FASTER:
        return "faster"
    return "slower" if ratio < 1 / FASTER else None


def in_common(a, b, attributes_of):
    """What a listener would keep of track a when track b follows: [(kind, concept), ...]."""
    same_artist = [("artist", a["artist"])] if a["artist"] and a["artist"] == b["artist"] else []
    both = intersection([attributes_of[a["track_id"]], attributes_of[b["track_id"]]])
    if compared_tempo(a, b):
        both["tempo"] = []  # both are called fast, say, and yet one is faster
    return same_artist + pairs(
        both, ("genre", "tag", "vocal", "mood", "theme", "tempo", "instrument"))


def other_genre(a, b, attributes_of):
    """The genre of track b, if both have one and share none, as [("genre", concept)]; else []."""
    old, new = (attributes_of[track["track_id"]]["genre"] for track in (a, b))
    return [("genre", new[0])] if old and new and not set(old) & set(new) else []


def changes(a, b, attributes_of):
    """How track b differs from track a, but for the genre: [(kind, concept), ...].

    The kinds are those of attributes, "compared" (faster, newer ...) and "without" (an instrument).
    """
    old, new = (attributes_of[track["track_id"]] for track in (a, b))
    years = year_of(b) - year_of(a) if a["release_date"] and b["release_date"] else 0
    tempo = compared_tempo(a, b)
    differences = [("compared", tempo)] if tempo else []
    if abs(years) > YEARS:
        differences.append(("compared", "newer" if years > 0 else "older"))
    differences += [(kind, c) for kind, c in pairs(new, ("instrument", "mood", "vocal", "theme"))
              if c not in old[kind]]
    if old["mode"]:
        differences += [("mode", c) for c in new["mode"] if c not in old["mode"]]
    if new["instrument"]:
        differences += [("without", c) for c in old["instrument"] if c not in new["instrument"]][:1]
    return differences
