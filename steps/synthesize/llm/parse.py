"""An LLM's answer -> the turns of a dialogue, or the reason why not.

A fault is repaired where only one repair is possible (fences, prose around the JSON, an answer before its track, an end
that is cut off, the same list twice). All others raise Fault, and 03_synthesize.py asks once more. `problems` are the rules that hold
for dialogues of every backend.
"""

import json
import re
from dataclasses import dataclass, field
from functools import lru_cache

LONGEST = 2000  # characters of a request or an answer
ROLES = {"user": "user", "listener": "user", "human": "user", "music": "music", "track": "music", "song": "music",
         "assistant": "assistant", "bot": "assistant", "ai": "assistant", "model": "assistant", "recommender": "assistant"}
DECODER = json.JSONDecoder(strict=False)  # not strict: line breaks inside a text
NO_JSON = (ValueError, RecursionError)  # what it raises: also at numbers of thousands of digits, and at brackets without end
QUOTED = re.compile(r"\"([^\"]{2,80})\"|“([^”]{2,80})”|«([^»]{2,80})»|\*{1,2}([^*]{2,80})\*{1,2}"
                    r"|(?<!\w)['‘]([^'‘’\n]{2,80}(?:['’]\w[^'‘’\n]{0,80})*)['’](?!\w)")
REJECTED = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False, "none": None, "null": None}
SPACE = re.compile(r"[\s,]*")
LIST, MESSAGE = re.compile(r"\[\s*(?={\s*\")"), re.compile(r"(?={\s*\")")  # where a list of messages, or one message, begins
HANDLE = re.compile(r"\b[PN]\d+\b(?! (?:motorway|highway|road|bus|train)\b)")
NAMING = re.compile(r"(?:here's|here is|here comes|play|playing|try|listen to|this is|called|titled|song|track|tune)\W*$", re.IGNORECASE)
ASKING = re.compile(r"\b(?:play|playing|put on|hear|have you got|called|titled|named|song|track|tune)\W*$", re.IGNORECASE)  # in a request


class Fault(Exception):
    """Why an answer cannot be used: "kind: what exactly"."""


@dataclass
class Verdict:
    """state: "ok", "repaired" or "ask again"; turns: list, empty for the last; notes: what was repaired, or the reason."""
    state: str
    turns: list = field(default_factory=list)
    notes: list = field(default_factory=list)


# ---------------------------------------------------------------- JSON

def read_messages(text, notes):
    """The list of messages in an answer. notes: gets what was repaired. Returns: (messages, cut off). Raises Fault."""
    text = text.rpartition("</think>")[2].strip()
    try:
        found = DECODER.decode(text)
    except NO_JSON:
        if "```" not in text:
            return read_loose(text, notes)
        notes.append("fences")
        return read_messages(re.sub(r"```\w*", " ", text), notes)
    if isinstance(found, dict):
        lists = [value for value in found.values() if isinstance(value, list)]
        if len(lists) != 1:
            raise Fault("no list of messages: one object")
        notes.append("list inside an object")
        found = lists[0]
    if not isinstance(found, list) or not found:
        raise Fault("no list of messages: " + (type(found).__name__ if found else "an empty one"))
    return found, False


def read_row(text, at):
    """The messages that follow each other from a position on. Returns: (messages, the position where no other can be read)."""
    messages = []
    while text[at:at + 1] == "{":
        try:
            message, at = DECODER.raw_decode(text, at)
        except NO_JSON:
            break
        messages.append(message)
        at = SPACE.match(text, at).end()
    return messages, at


def read_loose(text, notes):
    """Messages one by one, from the first that can be read to the first that cannot. Arguments as in read_messages.

    Raises Fault too where other messages follow, as after a draft: nobody knows which are meant.
    """
    start = LIST.search(text) or MESSAGE.search(text)
    if not start:
        raise Fault("no JSON: " + (repr(text[:60]) if text else "an empty answer"))
    messages, at = read_row(text, start.end())
    if not messages:
        raise Fault("no JSON: it breaks off in the first message")
    for again in start.re.finditer(text, at):
        others, _ = read_row(text, again.end())
        if others and others != messages:
            raise Fault(f"two lists: one of {len(messages)} messages and one of {len(others)}")
        notes += ["the same list twice"] * bool(others)
    closed = text[at:at + 1] == "]"
    if not notes and (start.start() or closed and text[at + 1:].strip()):
        notes.append("prose around the JSON")
    if not closed:
        notes.append(f"cut off: after message {len(messages)}")
    elif not notes:
        notes.append("loose JSON")
    return messages, not closed


# ---------------------------------------------------------------- turns

def find_handle(content, shown):
    """The handle that a music message means: itself, with its own track's names around it, or the exact title of one track."""
    first = re.search(r"\b[PN]\d+\b", content, re.IGNORECASE)
    if not first:
        named = [h for h, t in shown.items() if t["title"] and words_of(bare(t["title"])) == words_of(bare(content))]
        if len(named) != 1:
            raise Fault(f"unknown id: {content[:40]!r}")
        return named[0]
    handle, own = first[0].upper(), shown.get(first[0].upper())
    rest = without_names(content[:first.start()] + " " + content[first.end():], names_of([own] if own else []))
    if not own or set(re.findall(r"\b[PN]\d+\b", rest.upper())) - {handle}:
        raise Fault(f"unknown id: {content[:40]!r}")
    if any(f" {words_of(bare(t['title']))} " in f" {words_of(rest)} " for t in shown.values() if words_of(bare(t["title"]))):
        raise Fault(f"another track's title beside an id: {content[:60]!r}")
    return handle


def tidy(message, shown, notes):
    """A message as (role, content, rejected); rejected is None where it is not said. Raises Fault."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str) or message.get("content") is None:
        raise Fault(f"not a message: {json.dumps(message)[:60]}")
    said = message["role"].strip()
    role = ROLES.get(said.lower())
    if not role:
        raise Fault(f"wrong role: {said[:20]!r}")
    if said != role:
        notes.append("role names")
    content = message["content"] if isinstance(message["content"], str) else json.dumps(message["content"])
    content = " ".join(content.split())
    if role == "music":
        handle = find_handle(content, shown)
        if handle != content:
            notes.append("id with something around it")
        content = handle
    rejected = str(message.get("rejected")).strip().lower() if role == "music" else "none"
    if rejected not in REJECTED:
        raise Fault(f"neither true nor false: {content} has \"rejected\": {json.dumps(message['rejected'])[:20]}")
    return role, content, REJECTED[rejected]


def to_turns(messages, cut, shown, notes):
    """Messages -> list of (query, handle, answer). A turn begins with what the listener says. Raises Fault."""
    groups = []
    for message in messages:
        if isinstance(message, dict) and str(message.get("role")).lower() == "system":
            notes.append("system message left out")
            continue
        role, content, rejected = tidy(message, shown, notes)
        if role == "user":
            groups.append([])
        elif not groups and role == "assistant":
            notes.append("greeting left out")
            continue
        elif not groups:
            raise Fault("wrong order: a track before the first request")
        groups[-1].append((role, content, rejected))
    turns = []
    for number, group in enumerate(groups, 1):
        roles, last = [role for role, _, _ in group], number == len(groups)
        if last and ("music" not in roles or cut and "assistant" not in roles):
            if not cut:
                notes.append("closing words left out")
            break
        music = [(content, rejected) for role, content, rejected in group if role == "music"]
        answer = " ".join(content for role, content, _ in group if role == "assistant").strip()
        if len(music) != 1:
            raise Fault(f"wrong order: {len(music)} tracks in turn {number}")
        if not answer:
            raise Fault(f"missing answer: turn {number}")
        if not group[0][1]:
            raise Fault(f"missing request: turn {number}")
        if max(len(group[0][1]), len(answer)) > LONGEST:
            raise Fault(f"too long: a request or an answer of more than {LONGEST:,} characters in turn {number}")
        if roles != ["user", "music", "assistant"]:
            notes.append("two answers joined" if roles.count("assistant") > 1 else "answer before the track")
        handle, rejected = music[0]
        if rejected and handle[0] == "P":
            raise Fault(f"rejects a track of the playlist: turn {number}, {handle}")
        if rejected is False and handle[0] == "N":
            raise Fault(f"accepts a track of the negative set: turn {number}, {handle}")
        turns.append((group[0][1], handle, answer))
    while turns and turns[-1][1][0] == "N":
        notes.append("last turn, rejected, left out")
        turns.pop()
    return turns


# ---------------------------------------------------------------- what is spoken

@lru_cache(maxsize=2**16)
def words_of(text):
    """Lower-case words with single spaces, nothing else."""
    return " ".join(re.findall(r"\w+", text.casefold().replace("'", "").replace("’", "")))


@lru_cache(maxsize=2**16)
def bare(name):
    """A title without brackets and without what stands after " - ": "Home (Live)" and "Home - Remastered" are "Home"."""
    return re.sub(r"\([^)]*\)|\[[^]]*\]|\s-\s.*$", " ", name or "").strip() or (name or "")


def quoted(text):
    """[(what stands in quotation marks or asterisks, its match), ...]. After LONGEST it is not looked for: QUOTED takes quadratic time."""
    return [(next(filter(None, match.groups())), match) for match in QUOTED.finditer(text, 0, LONGEST)]


def names_of(tracks):
    """Titles, artists and albums, whole and bare, each once, the longest first."""
    names = {" ".join(name.split()) for t in tracks for f in ("title", "artist", "album") if t[f] for name in (t[f], bare(t[f]))}
    return sorted(names - {""}, key=lambda name: (-len(name), name))


def without_names(text, names):
    """A text with spaces in the place of names, in capitals or not."""
    for name in names:
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", " ", text, flags=re.IGNORECASE)
    return text


def speaks(text, name):
    """Whether a text says a title or the name of an artist.

    A name of one word counts in quotation marks or with its capital inside a sentence: "home" is more often a word than
    a title.
    """
    name = bare(name)
    words = words_of(name)
    if not words:
        return False
    if " " in words:
        return f" {words} " in f" {words_of(text)} "
    if words not in words_of(text):
        return False
    return (any(words_of(bare(span)) == words for span, _ in quoted(text))
            or name != name.lower() and bool(re.search(rf"(?<=[\w,;:] ){re.escape(name)}(?!\w)", text)))


def kind_of(query, track, after_rejection):
    """What sort of query it is, as far as that is certain; else None."""
    if after_rejection:
        return "after_rejection"
    return "title" if speaks(query, track["title"]) else "metadata" if speaks(query, track["artist"]) else None


def asks_for(text, match):
    """Whether a request asks for the title that a match of it is, so that it is no city or singer of the same name."""
    before, after = text[:match.start()], text[match.end():]
    return bool(ASKING.search(before) or re.match(r"\W*by [^a-z]", after) or not words_of(before) and words_of(after) in ("", "please"))


def wrong_name(text, known, others, heard, request):
    """A title in a text that is neither that of the track played nor of one played before; None if there is none.

    known: the tracks that may be named; others: the rest of the prompt's. heard: what has been said before. request: it is one,
    no answer. The title of one of the others counts in quotation marks, or if it has two words and its capitals, in a request
    only where it is asked for; in an answer also a title of nowhere, if it stands in quotation marks and is announced ("here is
    ...", "... by"). Long names come before short ones: "Night Ferry" is no ferry of the track "Night".
    """
    names, rest = names_of(known), text
    titles = {" ".join(bare(t["title"]).split()) for t in others} - {""}
    titles = {title for title in titles if words_of(title) not in {"", *map(words_of, names)}}
    for name in sorted({*names, *titles}, key=lambda name: (-len(name), name not in names, name)):
        if name in names:
            rest = without_names(rest, [name])
        elif words_of(name) in words_of(rest) and words_of(name) not in words_of(heard):
            in_capitals = re.finditer(rf"(?<!\w){re.escape(name)}(?!\w)", rest) if " " in name and name != name.lower() else ()
            if (any(not request or asks_for(rest, match) for match in in_capitals)
                    or any(words_of(bare(span)) == words_of(name) for span, _ in quoted(rest))):
                return name
    if request:
        return None
    told = words_of(f"{heard} {[[t[f] for f in ('title', 'artist', 'album', 'tags', 'lyrics', 'caption')] for t in known]}")
    for span, match in quoted(rest):
        announced = NAMING.search(rest[:match.start()]) or re.match(r"\W*by [^a-z]", rest[match.end():])
        if announced and span[0].isupper() and words_of(span) not in told:
            return span
    return None


def speaks_of_lists(text, known, heard, shown):
    """Whether a text says "negative set" or a handle that is neither part of a name nor said before. Arguments as in wrong_name."""
    rest = without_names(text, names_of(known))
    handles = set(HANDLE.findall(rest)) - set(re.findall(r"\w+", heard))
    return bool(re.search(r"\bnegative set\b", rest, re.IGNORECASE)) or not handles.isdisjoint(shown)


def check_names(turns, shown):
    """Raises Fault where a request or an answer names a track that is not played there, or speaks an id."""
    past, heard = [], ""
    for number, (query, handle, answer) in enumerate(turns, 1):
        known = [shown[handle], *past]
        others = [t for t in shown.values() if t not in known]
        for who, text in (("request", query), ("answer", answer)):
            if speaks_of_lists(text, known, heard, shown):
                raise Fault(f"speaks of the lists: the {who} of turn {number}")
            name = wrong_name(text, known, others, heard if who == "answer" else "", who == "request")
            if name and who == "request":
                raise Fault(f"another track's title: turn {number} is asked for {name!r} and plays {shown[handle]['title']!r}")
            if name:
                raise Fault(f"another track's title: the answer of turn {number} names {name!r}")
            heard += " " + text
        past.append(shown[handle])


# ---------------------------------------------------------------- the verdict

def judge(text, shown):
    """An answer -> Verdict. shown: {handle: track}, P1, P2, ... of the playlist and N1, N2, ... of the negative set."""
    notes = []
    try:
        messages, cut = read_messages(text, notes)
        found = to_turns(messages, cut, shown, notes)
        turns = []
        for i, (query, handle, answer) in enumerate(found):
            track = shown[handle]
            kind = kind_of(query, track, i > 0 and found[i - 1][1][0] == "N")
            turns.append({"query": query, "music": track["track_id"], "response": answer, "targets": [track["track_id"]],
                          "rejected": handle[0] == "N", "kind": kind})
        sampled = [t["track_id"] for handle, t in shown.items() if handle[0] == "P"]
        negatives = {t["track_id"] for handle, t in shown.items() if handle[0] == "N"}
        wrong = problems({"turns": turns}, sampled, negatives, least=2, most=len(shown))
        if wrong:
            raise Fault(wrong[0])
        check_names(found, shown)  # last, since it compares all that is said: an answer that loops is too long before
    except Fault as fault:
        return Verdict("ask again", notes=[str(fault)])
    return Verdict("repaired" if notes else "ok", turns, sorted(set(notes)))


def problems(dialogue, sampled, negatives, least, most):
    """What is wrong with a dialogue, as a list of sentences; empty if it is fine.

    sampled: the tracks that the backend was given; at least half of them have to be played.
    negatives: track ids that may be played and rejected. least, most: turns.
    """
    turns, found = dialogue["turns"], []
    played = [t["music"] for t in turns]
    if 2 * len(set(played) & set(sampled)) < len(sampled):
        found.append(f"less than half: {len(set(played) & set(sampled))} of {len(sampled)} tracks are played")
    if not least <= len(turns) <= most:
        found.append(f"length: {len(turns)} turns, not {least} to {most}")
    if len(set(played)) < len(played):
        found.append("repeated id: a track is played twice")
    for number, turn in enumerate(turns, 1):
        if not (turn["query"] or "").strip() or not (turn["response"] or "").strip():
            found.append(f"empty: turn {number} has no query or no answer")
        if turn["rejected"] and turn["music"] not in negatives:
            found.append(f"not a negative: turn {number} rejects {turn['music']}, which is not in the negative set")
        if not turn["rejected"] and turn["music"] not in sampled:
            found.append(f"unknown id: turn {number} plays {turn['music']}, which is not in the playlist")
        if turn["rejected"] and (number == len(turns) or turns[number]["rejected"]):
            found.append(f"two rejections in a row: turn {number} is rejected and no accepted track follows")
    return found
