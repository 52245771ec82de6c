"""Indexing examples: tracks named outside the dialogues, so that the model learns their names.

A dialogue says little about names, and five tokens do not spell one. An indexing example is one
turn: a track's title, artist or both, then its tokens, then an answer: the indexing task of
generative retrieval (Tay et al. 2022), not in the paper.
"""

import numpy as np

from common import data

NAMED_BY = (("title",), ("title", "artist"), ("artist",))  # the query of an example, drawn
STANDALONE = ("title", "metadata", "tags", "lyrics", "audio")  # kinds that refer to no earlier turn


def standalone_answers(dialogues):
    """{track_id: its answers in `dialogues`}, from turns whose query refers to no earlier turn."""
    answers = {}
    for dialogue in dialogues:
        for turn in dialogue["turns"]:
            if turn["music"] and turn["response"] and turn["kind"] in STANDALONE:
                answers.setdefault(turn["music"], []).append(turn["response"])
    return answers


def indexing_examples(tracks, codes_of, repeats, answers, seed=0, most_turns=11):
    """Dialogues of 1 to `most_turns` indexing examples, each track of a training playlist `repeats`
    times. Cold tracks (no playlist code) are not named, so they stay cold.

    answers: from `standalone_answers`; one of the track's, or None, goes with each example.
    """
    rng = np.random.default_rng([seed, 1])
    turns = []
    for track in tracks * repeats:
        track_id = track["track_id"]
        if codes_of[track_id][0] < 0:
            continue
        query = data.item_text(track, NAMED_BY[rng.integers(len(NAMED_BY))])
        query = query or data.item_text(track)
        said = answers.get(track_id)
        if query:
            response = said[rng.integers(len(said))] if said else None
            turns.append({"query": query, "music": track_id, "response": response})
    turns = [turns[i] for i in rng.permutation(len(turns))]

    # of many lengths, so that some of them fill what packing leaves free after the real dialogues
    dialogues = []
    at = 0
    while at < len(turns):
        size = int(rng.integers(1, most_turns + 1))
        dialogues.append({"turns": turns[at:at + size]})
        at += size
    return dialogues
