"""common/turns.py: what a turn may know of its dialogue."""

import json

from common.turns import collect_turns

ROW_OF = {"a": 0, "b": 1, "c": 2}
DIALOGUE = {"dialogue_id": "d", "playlist_id": "p", "turns": [
    {"query": "q1", "music": "a", "response": "r1", "targets": ["a"], "rejected": True,
     "kind": "tags", "template": "seen"},
    {"query": "q2", "music": None, "response": "r2", "targets": [], "rejected": False,
     "kind": None},
    {"query": "q3", "music": "b", "response": "r3", "targets": ["b", "c"], "rejected": False,
     "kind": "lyrics"},
    {"query": "q4", "music": "c", "response": "r4", "targets": ["c"], "rejected": False,
     "kind": "tags", "template": "unseen"}]}


def test_collect_turns_by_hand():
    """The past of a turn ends before the turn; the second has no targets, but is past of later."""
    first, third, fourth = collect_turns([DIALOGUE], ROW_OF)
    assert first == ("d", 1, [], "q1", [], [0], True, "tags", "seen", "playlist p")
    assert third == ("d", 3, DIALOGUE["turns"][:2], "q3", [0], [1, 2], False, "lyrics", None,
                     "playlist p")
    assert fourth == ("d", 4, DIALOGUE["turns"][:3], "q4", [0, 1], [2], False, "tags", "unseen",
                      "playlist p")
    assert [turn.key for turn in (first, third, fourth)] == [("d", 1), ("d", 3), ("d", 4)]
    nobody, *_ = collect_turns([DIALOGUE | {"playlist_id": None}], ROW_OF)
    assert nobody.group == "dialogue d"


def test_a_turn_and_what_follows_it_are_not_in_its_past():
    """Music, response and later turns are altered from each turn on: what it may use stays."""
    for t in range(4):
        altered = json.loads(json.dumps(DIALOGUE))
        for later in altered["turns"][t:]:
            later |= {"music": "c", "response": "another", "rejected": True, "targets": ["c"]}
        for later in altered["turns"][t + 1:]:
            later["query"] = "another"
        before, after = ({turn.number: (turn.past, turn.query, turn.played)
                          for turn in collect_turns([dialogue], ROW_OF)}
                         for dialogue in (DIALOGUE, altered))
        assert all(before[n] == after[n] for n in before if n <= t + 1)
        assert all(before[n] != after[n] for n in before if n > t + 1)
