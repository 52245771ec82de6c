"""Is it true what answers say of their track? For the audit.

True is what the catalogue knows: tags, caption, lyrics, tempo, key, year
(attributes.track_attributes), title and artist. All else is not.
"""

from collections import Counter

import numpy as np

from common import data
from steps.synthesize.attributes import (
    KINDS,
    LEXICON,
    LONGEST_PHRASE,
    lexicon_phrases,
    pairs,
    track_attributes,
)
from steps.synthesize.spoken import bare, words_of

IN_LEXICON = [kind for kind in KINDS if kind != "tag"]
DENIED = {"not", "no", "without", "less", "never"}  # a phrase after one of these is no fact


def fact_phrases(tracks):
    """{phrase: [(kind, concept), ...]}.

    The lexicon's phrases; tags that it does not know (kind "tag"); names of two words or more, of
    titles and artists (kind "name").
    """
    found = {}

    def add(phrase, fact):
        if phrase and fact not in found.setdefault(phrase, []):
            found[phrase].append(fact)

    for kind in IN_LEXICON:
        for concept, entry in LEXICON[kind].items():
            said = lexicon_phrases(entry)
            if kind != "mode":  # "major" alone is more often a word than a key
                said = [concept, *said]
            for phrase in said:
                add(words_of(phrase), (kind, concept))
    for track in tracks:
        for tag in track_attributes(track)["tag"]:
            add(words_of(tag), ("tag", tag))
        for name in (bare(track["title"]), bare(track["artist"])):
            if " " in words_of(name) and name != name.lower():
                add(words_of(name), ("name", name))
    return found


def stated(text, phrases):
    """The facts in an answer: a list of [(kind, concept), ...], of which one has to hold.

    It is read from left to right, the longest phrase first; so "I picked guitar band music" speaks
    of a picked guitar. A name needs its capitals.

    phrases: from `fact_phrases`
    """
    words = words_of(text).split()
    found = []
    i = 0
    while i < len(words):
        for n in range(min(LONGEST_PHRASE, len(words) - i), 0, -1):
            facts = [(kind, c) for kind, c in phrases.get(" ".join(words[i:i + n]), ())
                     if kind != "name" or c in text]
            if facts:
                if i == 0 or words[i - 1] not in DENIED:
                    found.append(facts)
                break
        i += n
    return found


def truth(answers, tracks):
    """What the facts in answers are worth, as shares of them.

    An answer can say what it was asked for without a look at the track, and the other way round. So
    besides the share that holds of the track there are the share that holds of another answer's
    track, drawn at random, and the share that the request named.

    answers: list of (request, text, track)
    """
    phrases = fact_phrases(tracks)
    known = {}
    for *_, track in answers:
        names = {("name", bare(track[field])) for field in ("title", "artist")}
        known[track["track_id"]] = names | set(pairs(track_attributes(track)))
    order = np.random.default_rng(0).permutation(len(answers))

    kinds = []
    checked = []  # for each fact: true of the track, true of the other track, named in the request
    for (query, text, track), other in zip(answers, order, strict=True):
        asked = {fact for facts in stated(query, phrases) for fact in facts}
        other_track = answers[other][2]
        sides = (known[track["track_id"]], known[other_track["track_id"]], asked)
        for facts in stated(text, phrases):
            kinds.append(facts[0][0])
            checked.append([not side.isdisjoint(facts) for side in sides])
    if not checked:
        return {"answers": len(answers), "facts in them": 0}

    true, true_of_another, asked = np.array(checked).T  # each (facts,) bool
    of_kind = {kind: true[np.array(kinds) == kind] for kind in (*IN_LEXICON, "tag", "name")}
    return {"answers": len(answers),
            "facts in them": len(checked),
            "facts that are true": float(np.mean(true)),
            "true of the track of another answer": float(np.mean(true_of_another)),
            "facts that the request names": float(np.mean(asked)),
            **{f"{kind}: true": float(np.mean(trues)) for kind, trues in of_kind.items()
               if len(trues)},
            "facts by kind": dict(Counter(kinds))}


def predicted_answers(folder, system, track_of):
    """[(query, response, track)] of predictions/<system>.jsonl.

    The track is the first one that the dialogue has not played yet.

    Raises SystemExit: the file, or the test dialogues, are missing; no line has a response.
    """
    asked = {}
    for dialogue in data.load_dialogues(folder / "dialogues_test.jsonl", track_of):
        played = set()
        for number, turn in enumerate(dialogue["turns"], 1):
            asked[dialogue["dialogue_id"], number] = turn["query"], set(played)
            played.add(turn["music"])

    path = folder / "predictions" / f"{system}.jsonl"
    made_by = f"python 05_infer.py predict --data-dir {folder}, or the baseline of that name"
    found = []
    for number, row in data.read_jsonl(path, made_by):
        query, played = asked.get((row.get("dialogue_id"), row.get("turn")), (None, None))
        if played is None or not set(row.get("track_ids") or ["-"]) <= set(track_of):
            raise SystemExit(f"{path}:{number}: a dialogue_id and turn of dialogues_test.jsonl and "
                             f"track_ids of tracks.jsonl are expected; make the file again with "
                             f"the script that wrote it")
        if row.get("response"):
            first = next((t for t in row["track_ids"] if t not in played), row["track_ids"][0])
            found.append((query, row["response"], track_of[first]))
    if not found:
        raise SystemExit(f"{path}: no responses in it. --predictions takes systems that write "
                         f"some: talkplay, two_stage")
    return found
