"""How the simulated listener and its assistant say things.

Two files are meant to be read: common/lexicon.json has ways to say a concept, templates.json has
sentences with {slots}; those under "test" never occur in training.
"""

import json
import re
from collections import Counter
from pathlib import Path

from steps.synthesize.attributes import LEXICON, NOUNS, pairs

TEMPLATES = json.loads((Path(__file__).parent / "templates.json").read_text(encoding="utf-8"))
SLOTS = {template: set(re.findall(r"{(\w+)}", template)) for splits in TEMPLATES.values()
         for templates in splits.values() for template in templates}
UNSEEN_TEMPLATES = 0.6  # share of the test queries whose template never occurs in training
PIECES = ("song", "track", "tune")
# The preposition before a thing that is kept; "with " for all other kinds.
PREPOSITION = {"genre": "in ", "tag": "in ", "mood": "in ", "tempo": "at ", "theme": "on "}


def pick(items, rng):
    return items[int(rng.integers(len(items)))]


def shuffled(items, rng):
    return [items[i] for i in rng.permutation(len(items))]


def with_article(phrase):
    """"an easy-going song"; "an 80s song", but "a uk garage song" and "an R&B song"."""
    vowel = re.match("[aio8]|e(?!u)|u(?!k|s|ni)|R&B", phrase)
    return f"{'an' if vowel else 'a'} {phrase}"


def joined(parts, by=" "):
    """The parts that are not empty, in one text."""
    return by.join(filter(None, parts))


def listed(phrases):
    """["a", "b", "c"] -> "a, b and c".

    Somebody who sings comes last, or "a woman singing and violins" would sing both.
    """
    phrases = sorted(phrases, key=lambda phrase: phrase.endswith(("singing", "together")))
    return joined((", ".join(phrases[:-1]), *phrases[-1:]), by=" and ")


# ---------------------------------------------------------------- a track in words

def noun_phrase(attributes, rng, known_genre=False, answer=False, said=""):
    """[(kind, concept), ...] -> "a sad slow folk song with piano, about leaving home".

    known_genre: the genre need not be said: "a sad slow one with piano"
    answer: the phrase is about a track that is there: "a folk song", seldom "folk"
    said: a text whose words are avoided where there are others for the same
    """
    def word(options):
        return pick([o for o in options if o.lower() not in said.lower()] or options, rng)

    # 1. Each attribute becomes a word of the head or an end of the phrase; the order is drawn.
    nouns, moods, others, decade, ends = choose_words(attributes, rng, word, known_genre, answer)

    # 2. The head: "a sweet, airy mid-tempo folk song".
    adjectives = joined((", ".join(moods), " ".join(others)))
    apart = listed(moods + others) if rng.random() < 0.5 else ", ".join(moods + others)
    single = rng.random() < (0.75 if answer else 0.3)  # one piece, with an article
    if nouns:
        words, concept = nouns[0]
        if answer:  # not "here is beats", where there is another word; "here is blues" is fine
            words = [w for w in words if not w.endswith("s")] or words
        noun = f"{concept} {pick(PIECES, rng)}" if single else word(words)
        head = joined((adjectives, decade, noun))
    elif known_genre:
        single = bool(apart)
        head = f"{apart} one"
    else:
        something = not decade and bool(apart) and rng.random() < 0.3
        noun = pick(PIECES if answer or single else ("music", "songs"), rng)
        single = noun in PIECES and not something
        head = joined((adjectives, decade, noun))
        if something:
            head = f"something {listed(moods + others)}"
    phrase = with_article(head.strip()) if single else head.strip()

    # 3. The ends: "with piano, about leaving home". After a long one comes a comma.
    for i, end in enumerate(ends):
        comma = (i and " " in ends[i - 1]
                 or phrase.startswith("something") and end.startswith("sung"))
        phrase += (", " if comma else " ") + end
    return phrase


def choose_words(attributes, rng, word, known_genre, answer):
    """The words of a noun phrase: (nouns, moods, other adjectives, decade, ends).

    Arguments as in `noun_phrase`; word: a function that picks one of several phrases
    Returns: a list of (words, concept), two lists of texts, a text, a list of texts
    """
    nouns, moods, others, with_, ends = [], [], [], [], []
    decade, occasion = "", ""
    named = any(kind in NOUNS for kind, _ in attributes)
    most_ends = 1 if answer else 2  # more than these only of what has no adjective
    for kind, concept in attributes:
        entry = LEXICON.get(kind, {}).get(concept, {})
        as_adjective = rng.random() < (0.65 if len(ends) < most_ends else 1)
        if kind in NOUNS:
            nouns.append((entry.get("noun") or [concept], concept))
        elif kind == "theme":
            ends.append("about " + word(entry["about"]))
        elif "with" in entry and ("use" not in entry or rng.random() < 0.75):
            with_.append(word(entry["with"]))
        elif kind == "decade" and not known_genre and rng.random() < 0.4:
            decade = word(entry["adj"])
        elif kind == "mood" and (as_adjective or occasion):
            moods.append(word(entry["adj"]))
        elif kind == "mood":
            occasion = word(entry["use"])
        elif (kind != "decade" and "adj" in entry and as_adjective
              and (kind != "mode" or named)):  # "a minor-key folk song", no "something minor-key"
            others.append(word(entry["adj"]))
        else:
            ends.append(word(entry["use"]))
    rng.shuffle(moods)
    if with_:
        ends.append("with " + listed(with_))
    rng.shuffle(ends)
    if occasion:
        ends.append(occasion)
    return nouns, moods, others, decade, ends


# ---------------------------------------------------------------- the listener

class Listener:
    """What the listener of one dialogue remembers, and how they say things.

    No template is used twice in a dialogue while there are others.
    """

    def __init__(self, split, rng, attributes_of):
        self.split = split
        self.rng = rng
        self.attributes_of = attributes_of  # {track_id: {kind: [concepts]}}
        self.unseen = False    # whether this turn takes its templates from those under "test"
        self.used = set()      # templates
        self.asked = []        # attributes of the last request
        self.wished = set()    # those of all requests
        self.disliked = set()  # those of tracks that were turned down
        self.liked = []        # tracks that were played and not turned down
        self.by_title = False  # whether the last track was asked for by title
        self.played = set()    # track ids
        self.plays = Counter()  # how often each artist was played

    def attributes(self, track):
        """{kind: [concepts]} of a track."""
        return self.attributes_of[track["track_id"]]

    def new_turn(self):
        self.unseen = self.split == "test" and self.rng.random() < UNSEEN_TEMPLATES

    def words(self, name, **slots):
        """A phrase from the templates called `name`, of those whose slots are all given."""
        splits = TEMPLATES[name]
        templates = splits["test" if self.unseen and "test" in splits else "train"]
        fitting = [template for template in templates if SLOTS[template] <= set(slots)]
        fresh = [template for template in fitting if template not in self.used]
        template = pick(fresh or fitting, self.rng)
        self.used.add(template)
        return template.format(**slots)

    def say(self, name, **slots):
        """The same, with capital letters at the start and after a full stop."""
        return re.sub(r"(^|[.!?] )\w", lambda m: m[0].upper(), self.words(name, **slots))

    def without_disliked(self, attributes):
        """{kind: [concepts]} without what the listener has turned down before."""
        return {kind: [c for c in concepts if (kind, c) not in self.disliked]
                for kind, concepts in attributes.items()}

    def kept(self, attribute):
        """An attribute from `in_common` -> slots: same ("this mood"), kept ("in this mood")."""
        kind, concept = attribute
        if concept == "instrumental":
            return {"same": self.words("same_instrumental", concept=concept),
                    "kept": "without singing"}
        same = self.words(f"same_{kind}", concept=concept)
        return {"same": same, "kept": PREPOSITION.get(kind, "with ") + same}

    def changed(self, attributes, also=False):
        """Attributes from `changes` -> slots: diff (all in words), at times adj or with.

        adj, with: the same, where it is an adjective ("sadder") or a phrase ("with piano")
        also: another instrument comes to the one that is kept ("but also with piano")
        """
        adjectives, with_, others = [], [], []
        for kind, concept in attributes:
            entry = LEXICON.get(kind, {}).get(concept, {})
            if kind == "compared":
                adjectives.append(self.words(concept))
            elif kind == "mood":
                adjectives.append(pick(entry["more"], self.rng))
            elif kind == "genre":
                others.append(self.words(
                    "other_genre", concept=concept, a_concept=with_article(concept)))
            elif kind == "without":
                others.append(f"without the {concept}")
            elif kind == "theme":
                others.append("about " + pick(entry["about"], self.rng))
            elif "with" in entry:
                with_.append(pick(entry["with"], self.rng))
            else:
                others.append(pick(entry["use"], self.rng))

        others.sort(key=lambda phrase: phrase.startswith(("about", "without")))
        if with_:
            others.insert(0, f"with {listed(with_)}")
        diff = joined((listed(adjectives), *others), by=", ")
        slots = {"diff": f"also {diff}" if also and not adjectives and with_ else diff}
        if not others:
            slots["adj"] = diff
        elif not adjectives:
            slots["with"] = diff
        return slots

    def names_of(self, track, unsaid):
        """What the listener can call a track played earlier, and no other: ["the first one", ...].

        unsaid: artists that must not be named
        """
        attributes = self.attributes(track)
        others = [t for t in self.liked if t is not track]
        taken = {attribute for t in others for attribute in pairs(self.attributes(t))}
        # Both are drawn even where they are not needed: another order of draws, other dialogues.
        first = self.words("callback_first")
        one_before = self.words("callback_before")
        names = []
        if track is self.liked[0]:
            names.append(first)
        if track is self.liked[-2:][0]:
            names.append(one_before)
        if track["artist"] and track["artist"] not in {t["artist"] for t in others} | unsaid:
            names.append(self.words("callback_artist", artist=track["artist"]))
        names += [self.words("callback_instrument", concept=c) for c in attributes["instrument"]
                  if ("instrument", c) not in taken | self.disliked]
        return names + [
            self.words("callback_theme", about=pick(LEXICON["theme"][c]["about"], self.rng))
            for c in attributes["theme"] if ("theme", c) not in taken]
