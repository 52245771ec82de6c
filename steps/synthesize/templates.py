"""How the simulated listener and its assistant say things (part of steps/synthesize/simulate.py).

What is said comes from two files that are meant to be read: common/lexicon.json (ways to say a concept) and steps/synthesize/templates.json
(sentences with {slots}; those under "test" never occur in training).
"""

import json
import re
from pathlib import Path

from steps.synthesize.attributes import LEXICON, NOUNS, pairs

TEMPLATES = json.loads((Path(__file__).parent / "templates.json").read_text(encoding="utf-8"))
SLOTS = {template: set(re.findall(r"{(\w+)}", template)) for both in TEMPLATES.values() for templates in both.values() for template in templates}
UNSEEN_TEMPLATES = 0.6  # share of the test queries whose sentence template never occurs in training
PIECES = ("song", "track", "tune")
PREPOSITION = {"genre": "in ", "tag": "in ", "mood": "in ", "tempo": "at ", "theme": "on ", "instrumental": ""}  # of what is kept; else "with "


def pick(items, rng):
    return items[int(rng.integers(len(items)))]


def sentence_case(text):
    """Capital letters at the start and after a full stop."""
    return re.sub(r"(^|[.!?] )(\w)", lambda m: m.group(1) + m.group(2).upper(), text)


def with_article(phrase):
    """"an easy-going song"; "an 80s song", but "a uk garage song" and "an R&B song"."""
    return f"{'an' if re.match('[aio8]|e(?!u)|u(?!k|s|ni)|R&B', phrase) else 'a'} {phrase}"


def listed(phrases):
    """["a", "b", "c"] -> "a, b and c"; somebody who sings comes last, or "a woman singing and violins" would sing both."""
    phrases = sorted(phrases, key=lambda phrase: phrase.endswith(("singing", "together")))
    return " and ".join(filter(None, (", ".join(phrases[:-1]), *phrases[-1:])))


def noun_phrase(facts, rng, known_genre=False, answer=False, said=""):
    """[(kind, concept), ...] -> "a sad slow folk song with piano, about leaving home": moods, other adjectives, noun, ends.

    known_genre: the genre need not be said: "a sad slow one with piano". answer: of a track that is there: "a folk song", seldom "folk".
    said: a text whose words for the same are avoided.
    """
    def word(options):
        return pick([o for o in options if o.lower() not in said.lower()] or options, rng)

    nouns, moods, others, with_, ends, decade, occasion = [], [], [], [], [], "", ""
    named, most = any(kind in NOUNS for kind, _ in facts), 1 if answer else 2  # more ends than `most` only of what has no adjective
    for kind, concept in facts:
        entry = LEXICON.get(kind, {}).get(concept, {})
        adjective = rng.random() < (0.65 if len(ends) < most else 1)
        if kind in NOUNS:
            nouns.append((entry.get("noun") or [concept], concept))
        elif kind == "theme":
            ends.append("about " + word(entry["about"]))
        elif "with" in entry and ("use" not in entry or rng.random() < 0.75):
            with_.append(word(entry["with"]))
        elif kind == "decade" and not known_genre and rng.random() < 0.4:
            decade = word(entry["adj"])
        elif kind == "mood" and (adjective or occasion):
            moods.append(word(entry["adj"]))
        elif kind == "mood":
            occasion = word(entry["use"])
        elif kind != "decade" and "adj" in entry and adjective and (kind != "mode" or named):  # "a minor-key folk song", but no "something minor-key"
            others.append(word(entry["adj"]))
        else:
            ends.append(word(entry["use"]))
    rng.shuffle(moods)
    if with_:
        ends.append("with " + listed(with_))
    rng.shuffle(ends)
    ends += [occasion] * bool(occasion)
    adjectives = " ".join(filter(None, (", ".join(moods), " ".join(others))))  # "sweet, airy mid-tempo instrumental ..."
    apart = listed(moods + others) if rng.random() < 0.5 else ", ".join(moods + others)
    single = rng.random() < (0.75 if answer else 0.3)
    if nouns:
        words, concept = nouns[0]
        words = [w for w in words if not (answer and w.endswith("s"))] or words  # not "here is beats"; "here is blues" is fine
        noun = f"{concept} {pick(PIECES, rng)}" if single else word(words)
        head = " ".join(filter(None, (adjectives, decade, noun)))
    elif known_genre:
        single, head = bool(apart), f"{apart} one"
    else:
        something = not decade and bool(apart) and rng.random() < 0.3
        noun = pick(PIECES if answer or single else ("music", "songs"), rng)
        single = noun in PIECES and not something
        head = f"something {listed(moods + others)}" if something else " ".join(filter(None, (adjectives, decade, noun)))
    head = with_article(head.strip()) if single else head.strip()
    for i, end in enumerate(ends):
        comma = i and len(ends[i - 1].split()) > 1 or head.startswith("something") and end.startswith("sung")
        head += (", " if comma else " ") + end
    return head


class Listener:
    """Says queries, from the templates of one split, none twice in a dialogue while there are others; `unseen`: from those of "test"."""

    def __init__(self, split, rng):
        self.split, self.rng, self.unseen, self.used = split, rng, False, set()
        self.asked, self.wished, self.disliked = [], set(), set()  # facts of the last request, and of all; those turned down
        self.liked, self.by_title = [], False  # the tracks that were played and not turned down; whether the last was asked for by title

    def new_turn(self):
        self.unseen = self.split == "test" and self.rng.random() < UNSEEN_TEMPLATES

    def words(self, name, **slots):
        """A phrase from the templates called `name`, of those whose slots are all given."""
        templates = TEMPLATES[name]["test" if self.unseen and "test" in TEMPLATES[name] else "train"]
        fitting = [f for f in templates if SLOTS[f] <= set(slots)]
        if not fitting:
            raise ValueError(f"templates.json: no sentence of {name} does with the slots {', '.join(slots)}")
        template = pick([f for f in fitting if f not in self.used] or fitting, self.rng)
        self.used.add(template)
        return template.format(**slots)

    def say(self, name, **slots):
        return sentence_case(self.words(name, **slots))

    def without_disliked(self, attributes):
        """Facets that the listener has not turned down before."""
        return {kind: [c for c in concepts if (kind, c) not in self.disliked] for kind, concepts in attributes.items()}

    def kept(self, fact):
        """A fact of in_common() -> slots same ("this mood") and kept ("in this mood")."""
        kind, concept = fact
        kind = concept if concept == "instrumental" else kind
        same = self.words(f"same_{kind}", concept=concept)
        return {"same": same, "kept": "without singing" if kind == "instrumental" else PREPOSITION.get(kind, "with ") + same}

    def changed(self, facts, also=False):
        """Facts of changes() -> slots: diff, and with or adj where the template needs a phrase ("with piano") or an adjective ("sadder").

        also: another instrument comes to the one that is kept ("but also with piano").
        """
        adjectives, with_, others = [], [], []
        for kind, concept in facts:
            entry = LEXICON.get(kind, {}).get(concept, {})
            if kind == "compared":
                adjectives.append(self.words(concept))
            elif kind == "mood":
                adjectives.append(pick(entry["more"], self.rng))
            elif kind == "genre":
                others.append(self.words("other_genre", concept=concept, a_concept=with_article(concept)))
            elif kind == "without":
                others.append(f"without the {concept}")
            elif kind == "theme":
                others.append("about " + pick(entry["about"], self.rng))
            elif "with" in entry:
                with_.append(pick(entry["with"], self.rng))
            else:
                others.append(pick(entry["use"], self.rng))
        others = [f"with {listed(with_)}"] * bool(with_) + sorted(others, key=lambda phrase: phrase.startswith(("about", "without")))
        diff = ", ".join(filter(None, (listed(adjectives), *others)))
        slots = {"diff": f"also {diff}" if also and not adjectives and with_ else diff}
        if not others:
            slots["adj"] = diff
        elif not adjectives:
            slots["with"] = diff
        return slots

    def names_of(self, track, attributes_of, unsaid):
        """What the listener can call a track played earlier, so that it is clear which: ["the first one", ...]. unsaid: artists not to name."""
        attributes = attributes_of[track["track_id"]]
        others = [t for t in self.liked if t is not track]
        taken = {fact for t in others for fact in pairs(attributes_of[t["track_id"]])}
        names = [self.words("callback_first")] * (track is self.liked[0]) + [self.words("callback_before")] * (track is self.liked[-2:][0])
        if track["artist"] and track["artist"] not in {t["artist"] for t in others} | unsaid:
            names.append(self.words("callback_artist", artist=track["artist"]))
        names += [self.words("callback_instrument", concept=c) for c in attributes["instrument"] if ("instrument", c) not in taken | self.disliked]
        return names + [self.words("callback_theme", about=pick(LEXICON["theme"][c]["about"], self.rng)) for c in attributes["theme"]
                        if ("theme", c) not in taken]
