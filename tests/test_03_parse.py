"""What a language model is asked (steps/synthesize/llm/prompt.py), and what is made of its answers.

The answers, good and bad, are read by steps/synthesize/llm/parse.py.
"""

import json
import re
import time
from types import MappingProxyType

import numpy as np
import pytest
from conftest import make_tracks

from steps.synthesize import spoken
from steps.synthesize.llm import parse, prompt

TITLES = ("Paper Lanterns", "Night Ferry", "Home", "Copper Kettle (Live)", "Static Parade", "Wires")
ARTISTS = ("Odile Marsh", "The Amber Line") * 3
PLAYED = [track | {"title": title, "artist": artist}
          for track, title, artist in zip(make_tracks(6), TITLES, ARTISTS, strict=True)]
SHOWN = dict(zip(("P1", "P2", "P3", "P4", "N1", "N2"), PLAYED, strict=True))


def message(role, content, **more):
    return {"role": role, "content": content, **more}


def conversation(handles=("P1", "N1", "P2", "P3"), answers=MappingProxyType({}),
                 queries=MappingProxyType({})):
    """Messages in the right order; answers, queries: {turn from 1: what is said instead}."""
    found = []
    for number, handle in enumerate(handles, 1):
        found += [message("user", queries.get(number, f"something new, number {number}")),
                  message("music", handle, rejected=handle[0] == "N"),
                  message("assistant",
                          answers.get(number, f"a quiet one for you, number {number}"))]
    return found


def verdict(messages):
    return parse.judge(messages if isinstance(messages, str) else json.dumps(messages), SHOWN)


# ---------------------------------------------------------------- good answers

def test_a_good_answer():
    found = verdict(conversation())
    assert found.state == "ok" and found.notes == []
    assert [t["music"] for t in found.turns] == ["t0", "t4", "t1", "t2"]
    assert found.turns[1] == {"query": "something new, number 2", "music": "t4",
                              "response": "a quiet one for you, number 2", "targets": ["t4"],
                              "rejected": True, "kind": None}
    assert [t["kind"] for t in found.turns] == [None, None, "after_rejection", None]


def test_the_example_of_the_prompt_is_a_good_answer():
    text = prompt.TEMPLATE.read_text(encoding="utf-8")
    example = text[text.index("EXAMPLE"):text.index("NOW YOURS")]
    shown = {}
    for line in re.findall(r"^[PN]\d \| .*$", example, re.MULTILINE):
        handle, *fields = line.split(" | ")
        fields = dict(field.split(": ", 1) for field in fields)
        names = {name: fields[name] for name in ("title", "artist", "album")}
        shown[handle] = make_tracks(1)[0] | {"track_id": handle} | names
    assert sorted(shown) == ["N1", "P1", "P2", "P3"]
    found = parse.judge(example.split("ANSWER\n")[1], shown)
    assert (found.state, found.notes) == ("ok", [])
    assert [t["music"] for t in found.turns] == ["P1", "N1", "P2", "P3"]
    assert [t["kind"] for t in found.turns] == ["title", None, "after_rejection", None]


GOOD, DRAFT = json.dumps(conversation()), json.dumps(conversation(("P3", "P2", "P1")))


@pytest.mark.parametrize("text, note", [
    (f"```json\n{GOOD}\n```", "fences"), (f"```\n{GOOD}", "fences"),
    (f"Here is [the] conversation:\n{GOOD}\nI hope it helps!", "prose around the JSON"),
    (f"{GOOD}\nOnce more:\n{GOOD}", "the same list twice"),
    (f"<think>A list [ {{\"role\" ... or so</think>{GOOD}", None),
    (json.dumps({"conversation": conversation()}), "list inside an object"),
    (GOOD[:-1] + ",]", "loose JSON"),
    (GOOD.replace("a quiet one for you, number 3", "a quiet\none"), None),
    (GOOD[:-30], "cut off: after message 11"), (GOOD[:-1], "cut off: after message 12"),
    (GOOD.replace('"user"', '"Listener"').replace('"assistant"', '"AI"'), "role names"),
    (GOOD.replace('"P2"', '"P2: Night Ferry by The Amber Line"'), "id with something around it"),
    (GOOD.replace('"P2"', '"night ferry"'), "id with something around it"),
    (GOOD.replace('"P2"', '"p2"'), "id with something around it"),
    (json.dumps([message("system", "You are"), *conversation()]), "system message left out"),
    (json.dumps([message("assistant", "Hello!"), *conversation()]), "greeting left out"),
    (json.dumps([*conversation(), message("user", "Thanks!"), message("assistant", "Bye!")]),
     "closing words left out"),
    (json.dumps(conversation(("P1", "P2", "P3", "N1"))), "last turn, rejected, left out")])
def test_repairs(text, note):
    found = verdict(text)
    assert found.notes == ([note] if note else [])
    assert found.state == ("repaired" if note else "ok")
    kept = 3 if note in ("cut off: after message 11", "last turn, rejected, left out") else 4
    assert len(found.turns) == kept and not found.turns[-1]["rejected"]
    assert all(t["query"].startswith("something new") and t["response"].startswith("a quiet")
               for t in found.turns)


def test_the_answer_before_the_track_is_put_behind_it():
    swapped = conversation()
    for i in range(0, 12, 3):
        swapped[i + 1], swapped[i + 2] = swapped[i + 2], swapped[i + 1]
    found = verdict(swapped)
    assert found.notes == ["answer before the track"]
    assert found.turns == verdict(conversation()).turns
    split = conversation()
    split[2:3] = [message("assistant", "Sure."), message("assistant", "This is it.")]
    assert verdict(split).turns[0]["response"] == "Sure. This is it."
    assert verdict(split).notes == ["two answers joined"]


# ---------------------------------------------------------------- answers to ask anew for

def without(i):
    return [m for j, m in enumerate(conversation()) if j != i]


def changed(i, **fields):
    found = conversation()
    found[i] = found[i] | fields
    return found


@pytest.mark.parametrize("answer, reason", [
    ("", "no JSON: an empty answer"), ("I cannot help with that.", "no JSON: 'I cannot"),
    ("[]", "no list of messages: an empty one"),
    ('{"a": 1}', "no list of messages"), ("[1, 2, 3]", "not a message"),
    ('[{"role": "user", "content": "he', "no JSON: it breaks off"),
    (GOOD[:len(GOOD) // 3], "less than half: 1 of 4"),
    ("[" * 100_000, "no JSON: '[[["),
    (GOOD[:GOOD.index("}") + 1] + ', {"role": ' + "[" * 100_000, "less than half: 0 of 4"),
    ('[{"role": "music", "content": ' + "7" * 9000, "no JSON: it breaks off"),
    ("7" * 9000, "no JSON: '777"),
    (changed(1, content="P9"), "unknown id: 'P9'"), (changed(1, content="Some Song"), "unknown id"),
    (changed(1, content="P1 or P2"), "unknown id"),
    (changed(7, content="P1"), "repeated id"),
    (changed(0, role="narrator"), "wrong role: 'narrator'"),
    (changed(0, role=None), "not a message"),
    (without(2), "missing answer: turn 1"), (changed(2, content="  "), "missing answer: turn 1"),
    (changed(0, content=" "), "missing request: turn 1"),
    (without(1), "wrong order: 0 tracks in turn 1"),
    (without(3), "wrong order: 2 tracks in turn 1"), (without(0), "wrong order: a track before"),
    (conversation(("P1", "N1")), "less than half: 1 of 4"),
    (conversation(("P1", "N1", "N2", "P2")), "two rejections in a row"),
    (changed(1, rejected=True), "rejects a track of the playlist: turn 1, P1"),
    (changed(4, rejected=False), "accepts a track of the negative set"),
    (changed(2, content="Here is Night Ferry for you."),
     "another track's title: the answer of turn 1 names 'Night Ferry'"),
    (changed(2, content='Here is "Home", so warm.'), "names 'Home'"),
    (changed(2, content="Here is “Copper Kettle”."), "names 'Copper Kettle'"),
    (changed(2, content="Next comes Static Parade, louder."), "names 'Static Parade'"),
    (changed(2, content="This is 'Blue Velvet Rain' by Odile Marsh."), "names 'Blue Velvet Rain'"),
    (changed(0, content="Play 'Night Ferry', please."),
     "turn 1 is asked for 'Night Ferry' and plays 'Paper Lanterns'"),
    (changed(0, content="Have you got Night Ferry by The Amber Line?"),
     "turn 1 is asked for 'Night Ferry' and plays 'Paper Lanterns'"),
    (DRAFT + "\nBetter:\n" + GOOD, "two lists: one of 9 messages and one of 12"),
    (f"```json\n{DRAFT}\n```\nNow:\n```\n{GOOD}\n```", "two lists"),
    (GOOD + "\n\n" + DRAFT, "two lists: one of 12 messages and one of 9"),
    (DRAFT[:-40] + "...\nNo:\n" + GOOD, "two lists"),
    (DRAFT[1:-1] + "\nBetter:\n" + GOOD[1:-1], "two lists"),
    (json.dumps({"draft": conversation(("P1", "P2")), "final": conversation()}), "no list"),
    (changed(1, rejected="yes"), "rejects a track of the playlist: turn 1, P1"),
    (changed(1, rejected=1), "rejects a track of the playlist"),
    (changed(4, rejected="no"), "accepts a track of the negative set"),
    (changed(4, rejected=0), "accepts a track of the negative set"),
    (changed(1, rejected="maybe"), 'neither true nor false: P1 has "rejected": "maybe"'),
    (changed(1, rejected=[False]), "neither true nor false"),
    (changed(1, content="P1 | Night Ferry by The Amber Line"),
     "another track's title beside an id: 'P1 | Night Ferry"),
    (changed(2, content="a " * 1001),
     "too long: a request or an answer of more than 2,000 characters in turn 1"),
    (changed(0, content="Something like 'Night Ferry'."), "is asked for 'Night Ferry'"),
    (changed(0, content="Night Ferry, please."), "is asked for"),
    (changed(3, content="Put on Home By The Sea... no, put on Night Ferry!"),
     "is asked for 'Night Ferry'"),
    (changed(2, content="P1 is calm."), "speaks of the lists: the answer of turn 1"),
    (changed(3, content="Not from the negative set."),
     "speaks of the lists: the request of turn 2")])
def test_asked_again(answer, reason):
    found = verdict(answer)
    assert found.state == "ask again" and found.turns == []
    assert len(found.notes) == 1 and reason in found.notes[0]


@pytest.mark.parametrize("answers, queries", [
    # its own title, a track played before, words that are titles too, apostrophes
    ({1: 'Here is "Paper Lanterns" by Odile Marsh.'}, {}),
    ({3: "Night Ferry, slower than Paper Lanterns."}, {}),
    ({1: "It feels like home, with wires and all."}, {}),
    ({4: "Here is 'Home', from the '70s, rock 'n' roll 'til the end."}, {}),
    ({1: "As you said: \"Dust And Rain\", by all means."}, {1: "I want dust and rain."}),
    ({4: "Here is Home."}, {4: "Play Home by Odile Marsh."}),
    ({}, {1: "A night ferry, that sort of mood, with wires."}),
    ({}, {4: "Like Night Ferry, but at home."}),
    # no track is asked for
    ({}, {1: "On the Night Ferry across, please something calm.",
          3: "As on the N1 motorway, a negative setting."})])
def test_names_that_may_be_spoken(answers, queries):
    found = verdict(conversation(answers=answers, queries=queries))
    assert found.state == "ok", found.notes


@pytest.mark.parametrize("title, said", [
    ("P2", "P2"), ("P2 (Remix)", "P2"), ("Song (feat. N2)", "Song (feat. N2)"),
    ("NEGATIVE SET", "NEGATIVE SET"),
    ("The Night Ferry Song", "The Night Ferry Song"), ("*Night Ferry*", "Night Ferry"),
    ("N1\nN2", "N1 N2")])
def test_names_that_look_like_something_else(title, said):
    shown = SHOWN | {"P1": PLAYED[0] | {"title": title}}
    messages = conversation(answers={1: f"Here is {said}.", 3: f"Slower than {said}."},
                            queries={1: f'Play "{said}" please.'})
    found = parse.judge(json.dumps(messages), shown)
    assert (found.state, found.notes) == ("ok", []) and found.turns[1]["music"] == "t4"


def test_a_short_title_does_not_hide_a_longer_one():
    found = parse.judge(json.dumps(conversation(answers={1: "Here is Night Ferry."})),
                        SHOWN | {"P1": PLAYED[0] | {"title": "Night"}})
    assert found.notes == ["another track's title: the answer of turn 1 names 'Night Ferry'"]


def test_long_texts_take_no_time():
    """Without a bound these took 9 and 17 seconds."""
    for text in ("'a " * 10_000, '"a ' * 10_000):
        start = time.process_time()
        assert verdict(changed(2, content=text)).notes[0].startswith("too long")
        assert not spoken.speaks(text, "B")
        assert time.process_time() - start < 2


def test_what_counts_as_a_name():
    assert spoken.speaks("put on night ferry", "Night Ferry")
    assert spoken.speaks("play Night Ferry!", "Night Ferry - Remastered 2011")
    assert spoken.speaks("play Home, please", "Home") and spoken.speaks("'home' again", "Home")
    assert spoken.speaks("Some Beyoncé", "Beyoncé")
    assert not spoken.speaks("Home is where I am. home", "Home")
    assert not spoken.speaks("the night ferries", "Night Ferry")
    assert not spoken.speaks("anything", None) and not spoken.speaks("anything", "???")
    for query, kind in (("Night Ferry", "title"), ("more of The Amber Line", "metadata"),
                        ("slow", None)):
        assert parse.kind_of(query, PLAYED[1], False) == kind


def test_half_a_surrogate_pair_does_no_harm(tmp_path):
    found = verdict(GOOD.replace("a quiet one for you, number 1", "lovely \\ud83d"))
    assert found.state == "ok" and found.turns[0]["response"] == "lovely \ud83d"


# ---------------------------------------------------------------- the prompt

def job(**fields):
    return prompt.Job("train-0", "p0", PLAYED[:4], PLAYED[4:], prompt.OPENINGS[0], **fields)


def test_the_prompt_has_what_it_should():
    track = PLAYED[0] | {"album": "Low\nTide", "caption": "soft | P7 |",
                         "lyrics": "one two three\n\nfour five", "key": "A minor",
                         "popularity": 41.6, "tempo": 91.7, "tags": ["sad", "folk"]}
    text = prompt.fill(prompt.Job("x", "p", [track, *PLAYED[1:4]], PLAYED[4:], prompt.OPENINGS[1]),
                       lyrics_words=4)
    assert ("P1 | title: Paper Lanterns | artist: Odile Marsh | album: Low Tide | tags: sad, folk "
            "| popularity: 42 of 100 | tempo: 92 BPM | key: A minor | caption: soft | P7 | | "
            "lyrics: one two three / four\nP2 | title: Night Ferry") in text
    assert "N2 | title: Wires" in text and "at least 2 of the 4 tracks" in text
    assert prompt.OPENINGS[1] in text and "$" not in text
    assert "None" not in text and "null" not in text  # of what is not known nothing is said
    for words in ("NEGATIVE SET", "audio (", "lyrics (", "metadata (", "tags (",
                  "changing direction", "turning it down", "EXAMPLE"):
        assert words in text
    assert "is empty, so nothing is turned down" in prompt.fill(
        prompt.Job("x", "p", PLAYED[:4], [], prompt.OPENINGS[1]), 0)
    again = prompt.fill(job(), 0, complaint="unknown id:\n'P9'")
    assert "(unknown id: 'P9')" in again and again.startswith(prompt.fill(job(), 0))
    assert "lyrics: " not in prompt.fill(job(), 0).split("NOW YOURS")[1]


def test_a_title_with_a_dollar_sign():
    assert "title: A$AP $n" in prompt.fill(
        prompt.Job("x", "p", [PLAYED[0] | {"title": "A$AP $n"}], [], ""), 0)


def test_chunks():
    """Disjoint ones first, as equal as can be, then stretches anywhere; in the playlist's order."""
    ids, rng = [f"t{i}" for i in range(20)], np.random.default_rng(0)
    first = [prompt.chunk(ids, visit, 7, rng) for visit in range(3)]
    assert sum(first, []) == ids and sorted(map(len, first)) == [6, 7, 7]
    for visit in range(3, 30):
        later = prompt.chunk(ids, visit, 7, rng)
        assert len(later) == 7 and later == ids[ids.index(later[0]):][:7]
    assert prompt.chunk(ids[:4], 0, 7, rng) == ids[:4] == prompt.chunk(ids[:4], 9, 7, rng)
    lengths = [len(prompt.chunk(ids[:n], 0, 13, rng)) for n in range(4, 21)]
    assert min(lengths) == 4 and max(lengths) <= 19


def test_estimate_by_hand(monkeypatch):
    monkeypatch.setattr(prompt, "fill", lambda job, lyrics_words: "x" * 400)
    assert prompt.estimate([job(), job()], 10, 60) == (1000, 10 * 4 * prompt.TURN_TOKENS)
