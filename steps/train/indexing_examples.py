"""Indexing examples: tracks named outside the dialogues, so that the model learns their names.

A dialogue says little about names, and five tokens do not spell one. An indexing example is one
turn: a track's title, artist or both, then the track's tokens, then an answer. This is the indexing
task of generative retrieval (Tay et al. 2022), not in the paper.
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
    """Dialogues of 1 to `most_turns` indexing examples.

    Each track of the training playlists (it has a playlist code) is named `repeats` times. Cold
    tracks are not, so they stay cold.

    answers: from `standalone_answers`. One of the track's is drawn for each example, or None where
        it has none.
    """
    rng = np.random.default_rng([seed, 1])
    known = [track for track in tracks if codes_of[track["track_id"]][0] >= 0]
    turns = []
    for track in known * repeats:
        fields = NAMED_BY[rng.integers(len(NAMED_BY))]
        query = data.item_text(track, fields) or data.item_text(track)
        known_answers = answers.get(track["track_id"])
        if query:
            response = None
            if known_answers:
                response = known_answers[rng.integers(len(known_answers))]
            turns.append({"query": query, "music": track["track_id"], "response": response})
    turns = [turns[i] for i in rng.permutation(len(turns))]

    # of many lengths, so that some of them fill what packing leaves free after the real dialogues
    dialogues, at = [], 0
    while at < len(turns):
        size = int(rng.integers(1, most_turns + 1))
        dialogues.append({"turns": turns[at:at + size]})
        at += size
    return dialogues
