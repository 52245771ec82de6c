"""A language model's answer -> the turns of a dialogue, or the reason why not.

A fault is repaired where only one repair is possible. All others raise Fault; then the dialogue is
asked for once more.
"""

import json
import re
from typing import NamedTuple

from steps.synthesize.guards import problems
from steps.synthesize.spoken import LONGEST, bare, names_of, quoted, speaks, without_names, words_of

ROLES = {
    **dict.fromkeys(("user", "listener", "human"), "user"),
    **dict.fromkeys(("music", "track", "song"), "music"),
    **dict.fromkeys(("assistant", "bot", "ai", "model", "recommender"), "assistant")}
REJECTED = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False,
            "none": None, "null": None}
DECODER = json.JSONDecoder(strict=False)  # not strict: line breaks inside a text
NO_JSON = (ValueError, RecursionError)  # what it raises, also at brackets without end
LIST = re.compile(r"\[\s*(?={\s*\")")  # where a list of messages begins
MESSAGE = re.compile(r"(?={\s*\")")    # where one message begins
SPACE = re.compile(r"[\s,]*")
HANDLE = re.compile(r"\b[PN]\d+\b(?! (?:motorway|highway|road|bus|train)\b)")
NAMING = re.compile(  # before a title in an answer
    r"(?:here's|here is|here comes|play|playing|try|listen to|this is|called|titled|song|track|"
    r"tune)\W*$", re.IGNORECASE)
ASKING = re.compile(  # before a title in a request
    r"\b(?:play|playing|put on|hear|have you got|called|titled|named|song|track|tune)\W*$",
    re.IGNORECASE)
BY_SOMEBODY = re.compile(r"\W*by [^a-z]")  # after a title


class Fault(Exception):
    """Why an answer cannot be used: "kind: what exactly"."""


class Verdict(NamedTuple):
    state: str   # "ok", "repaired" or "ask again"
    turns: list  # of dicts; empty for "ask again"
    notes: list  # what was repaired, or the reason


def judge(text, shown):
    """An answer -> Verdict.

    shown: {handle: track}, P1, P2, ... of the playlist and N1, N2, ... of the negative set
    """
    notes = []
    turns = []
    try:
        messages, cut = read_messages(text, notes)
        said = to_turns(messages, cut, shown, notes)
        for query, handle, response in said:
            kind = kind_of(query, shown[handle], bool(turns) and turns[-1]["rejected"])
            music = shown[handle]["track_id"]
            turns.append({"query": query, "music": music, "response": response,
                          "targets": [music], "rejected": handle[0] == "N", "kind": kind})
        ids = {who: [track["track_id"] for handle, track in shown.items() if handle[0] == who]
               for who in "PN"}
        wrong = problems(turns, ids["P"], set(ids["N"]), least=2, most=len(shown))
        if wrong:
            raise Fault(wrong[0])
        check_names(said, shown)  # last: an answer that loops would be long to compare
    except Fault as fault:
        return Verdict("ask again", [], [str(fault)])
    return Verdict("repaired" if notes else "ok", turns, sorted(set(notes)))


def kind_of(query, track, after_rejection):
    """What sort of query it is, as far as that is certain; else None."""
    if after_rejection:
        return "after_rejection"
    if speaks(query, track["title"]):
        return "title"
    return "metadata" if speaks(query, track["artist"]) else None


# ---------------------------------------------------------------- JSON

def read_messages(text, notes):
    """(the list of messages in an answer, whether it is cut off). notes: gets what was repaired"""
    text = text.rpartition("</think>")[2].strip()
    try:
        answer = DECODER.decode(text)
    except NO_JSON:
        if "```" not in text:
            return read_loose(text, notes)
        notes.append("fences")
        return read_messages(re.sub(r"```\w*", " ", text), notes)
    if isinstance(answer, dict):
        lists = [value for value in answer.values() if isinstance(value, list)]
        if len(lists) != 1:
            raise Fault("no list of messages: one object")
        notes.append("list inside an object")
        answer = lists[0]
    if not isinstance(answer, list) or not answer:
        raise Fault(f"no list of messages: {type(answer).__name__ if answer else 'an empty one'}")
    return answer, False


def read_row(text, at):
    """The messages that follow each other from a position on, and where no other can be read."""
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
    """As `read_messages`: messages one by one, to the first that cannot be read.

    Where other messages follow, as after a draft, nobody knows which are meant.
    """
    start = LIST.search(text) or MESSAGE.search(text)
    if not start:
        raise Fault("no JSON: " + (repr(text[:60]) if text else "an empty answer"))
    messages, at = read_row(text, start.end())
    if not messages:
        raise Fault("no JSON: it breaks off in the first message")

    # Another list further on?
    for again in start.re.finditer(text, at):
        others, _ = read_row(text, again.end())
        if others and others != messages:
            raise Fault(f"two lists: one of {len(messages)} messages and one of {len(others)}")
        if others:
            notes.append("the same list twice")

    closed = text[at:at + 1] == "]"
    if not notes and (start.start() or closed and text[at + 1:].strip()):
        notes.append("prose around the JSON")
    if not closed:
        notes.append(f"cut off: after message {len(messages)}")
    elif not notes:
        notes.append("loose JSON")
    return messages, not closed


# ---------------------------------------------------------------- turns

def resolve_handle(content, shown):
    """The handle of a music message: alone, with its own track's names, or for a track's title."""
    first = re.search(r"\b[PN]\d+\b", content, re.IGNORECASE)
    if not first:
        named = [handle for handle, track in shown.items()
                 if track["title"] and words_of(bare(track["title"])) == words_of(bare(content))]
        if len(named) != 1:
            raise Fault(f"unknown id: {content[:40]!r}")
        return named[0]

    handle = first[0].upper()
    names = names_of([shown[handle]]) if handle in shown else []
    around = without_names(f"{content[:first.start()]} {content[first.end():]}", names)
    others = set(re.findall(r"\b[PN]\d+\b", around.upper())) - {handle}
    if handle not in shown or others:
        raise Fault(f"unknown id: {content[:40]!r}")
    titles = {words_of(bare(track["title"])) for track in shown.values()} - {""}
    if any(f" {title} " in f" {words_of(around)} " for title in titles):
        raise Fault(f"another track's title beside an id: {content[:60]!r}")
    return handle


def tidy(message, shown, notes):
    """A message -> (role, content, rejected or None where that is not said)."""
    if (not isinstance(message, dict) or not isinstance(message.get("role"), str)
            or message.get("content") is None):
        raise Fault(f"not a message: {json.dumps(message)[:60]}")
    said = message["role"].strip()
    role = ROLES.get(said.lower())
    if not role:
        raise Fault(f"wrong role: {said[:20]!r}")
    if said != role:
        notes.append("role names")

    content = message["content"]
    content = " ".join((content if isinstance(content, str) else json.dumps(content)).split())
    if role != "music":
        return role, content, None
    handle = resolve_handle(content, shown)
    if handle != content:
        notes.append("id with something around it")
    rejected = str(message.get("rejected")).strip().lower()
    if rejected not in REJECTED:
        raise Fault(f"neither true nor false: {handle} has \"rejected\": "
                    f"{json.dumps(message['rejected'])[:20]}")
    return role, handle, REJECTED[rejected]


def to_turns(messages, cut, shown, notes):
    """Messages -> list of (query, handle, answer). cut: the text breaks off."""
    # Each turn begins with what the listener says.
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

    # The last turn may lack its track, or its answer where the text is cut off.
    roles = [role for group in groups[-1:] for role, _, _ in group]
    if groups and ("music" not in roles or cut and "assistant" not in roles):
        groups.pop()
        if not cut:
            notes.append("closing words left out")
    turns = [to_turn(number, group, notes) for number, group in enumerate(groups, 1)]
    while turns and turns[-1][1][0] == "N":
        notes.append("last turn, rejected, left out")
        turns.pop()
    return turns


def to_turn(number, group, notes):
    """The messages of one turn -> (query, handle, answer)."""
    roles = [role for role, _, _ in group]
    query = group[0][1]
    answer = " ".join(content for role, content, _ in group if role == "assistant").strip()
    if roles.count("music") != 1:
        raise Fault(f"wrong order: {roles.count('music')} tracks in turn {number}")
    if not answer:
        raise Fault(f"missing answer: turn {number}")
    if not query:
        raise Fault(f"missing request: turn {number}")
    if max(len(query), len(answer)) > LONGEST:
        raise Fault(f"too long: a request or an answer of more than {LONGEST:,} characters in turn "
                    f"{number}")
    if roles.count("assistant") > 1:
        notes.append("two answers joined")
    elif roles != ["user", "music", "assistant"]:
        notes.append("answer before the track")
    _, handle, rejected = group[roles.index("music")]
    if rejected and handle[0] == "P":
        raise Fault(f"rejects a track of the playlist: turn {number}, {handle}")
    if rejected is False and handle[0] == "N":
        raise Fault(f"accepts a track of the negative set: turn {number}, {handle}")
    return query, handle, answer


# ---------------------------------------------------------------- names

def check_names(turns, shown):
    """Raises Fault: a request or an answer names a track that is not played there, or speaks an id.

    turns: list of (query, handle, answer)
    """
    past = []
    heard = ""
    for number, (query, handle, answer) in enumerate(turns, 1):
        known = [shown[handle], *past]
        others = [track for track in shown.values() if track not in known]
        for who, text in (("request", query), ("answer", answer)):
            # Neither "negative set" nor a handle is said, unless in a name or after it was heard.
            rest = without_names(text, names_of(known))
            handles = set(HANDLE.findall(rest)) - set(re.findall(r"\w+", heard))
            if handles & set(shown) or re.search(r"\bnegative set\b", rest, re.IGNORECASE):
                raise Fault(f"speaks of the lists: the {who} of turn {number}")
            name = wrong_name(text, known, others, heard, is_request=who == "request")
            if name and who == "request":
                raise Fault(f"another track's title: turn {number} is asked for {name!r} and plays "
                            f"{shown[handle]['title']!r}")
            if name:
                raise Fault(f"another track's title: the answer of turn {number} names {name!r}")
            heard += " " + text
        past.append(shown[handle])


def wrong_name(text, known, others, heard, is_request):
    """A title in a text that is neither that of the track played nor of one before; else None.

    The title of another track of the prompt counts in quotation marks, or if it has two words and
    its capitals; in a request only where it is asked for, in an answer only if it was not heard
    before. In an answer a title from nowhere counts too, if it is quoted and announced ("here is").

    known: the tracks that may be named; others: the other tracks of the prompt
    """
    names = names_of(known)
    spoken = {"", *map(words_of, names)}
    titles = {" ".join(bare(track["title"]).split()) for track in others}
    titles = {title for title in titles if words_of(title) not in spoken}

    # Long names come before short ones: "Night Ferry" is no ferry of the track "Night".
    rest = text
    for name in sorted({*names, *titles}, key=lambda name: (-len(name), name not in names, name)):
        if name in names:
            rest = without_names(rest, [name])
        elif words_of(name) in words_of(rest) and names_a_title(rest, name, is_request):
            if is_request or words_of(name) not in words_of(heard):
                return name
    if not is_request:
        fields = ("title", "artist", "album", "tags", "lyrics", "caption")
        told = words_of(f"{heard} {[[track[field] for field in fields] for track in known]}")
        for span, match in quoted(rest):
            announced = (NAMING.search(rest[:match.start()])
                         or BY_SOMEBODY.match(rest[match.end():]))
            if announced and span[0].isupper() and words_of(span) not in told:
                return span
    return None


def names_a_title(text, title, is_request):
    """Whether a text that contains the words of a title means the title. See `wrong_name`."""
    if any(words_of(bare(span)) == words_of(title) for span, _ in quoted(text)):
        return True
    if " " not in title or title == title.lower():
        return False
    for match in re.finditer(rf"(?<!\w){re.escape(title)}(?!\w)", text):
        # A request may mean a city of the same name, so it has to ask for it.
        before, after = text[:match.start()], text[match.end():]
        alone = not words_of(before) and words_of(after) in ("", "please")
        if not is_request or alone or ASKING.search(before) or BY_SOMEBODY.match(after):
            return True
    return False
