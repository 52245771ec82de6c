"""03_synthesize.py audit: what there is to doubt in a file of dialogues, whoever wrote it.

Everything is counted from words, with the rules below; they are meant to be read, and they miss what is said in other
words. So the shares serve to compare files and to find examples, not as truths about single dialogues.
"""

import json
import re
from collections import Counter

import numpy as np

from common import data
from steps.synthesize.attributes import LEXICON, TAG_CONCEPT, track_attributes
from steps.synthesize.llm.parse import bare, names_of, speaks, words_of

SHINGLE = 5          # words in a row that count as the same text
NEAR = 0.5           # share of a dialogue's shingles (or tracks) that makes another one its near-duplicate
SAID = ("tags", "noun", "adj", "more", "use", "with", "about")  # where the lexicon has phrases
CHANCE = 200         # random tracks, and instances of a rule at most, from which the share by chance is estimated

# What a request speaks of: the lexicon's phrases of these kinds, these words besides, and what a pattern finds.
FIELDS = {"audio": ("instrument", "vocal", "tempo", "mode"), "lyrics": ("theme",), "metadata": ("decade",), "tags": ("genre", "mood")}
WORDS = {
    "audio": "tempo bpm beat beats rhythm groove pace fast faster slow slower quick quicker loud louder quiet quieter soft softer bass "
             "voice voices vocal vocals singing sung guitar guitars drum drums piano strings key chord chords melody production "
             "acoustic instrumental instrument instruments sound",
    "lyrics": "lyric lyrics words story stories verse verses chorus subject",
    "metadata": "artist artists band bands album albums title called named released year years decade older newer earlier recent "
                "popular famous hit hits underground sixties seventies eighties nineties",
    "tags": "genre genres mood moods vibe vibes style atmosphere"}
PATTERNS = {"lyrics": re.compile(r"(?<!what )(?<!how )(?<!sorry )\babout\b", re.IGNORECASE),
            "metadata": re.compile(r"\b(?:(?:19|20)\d\ds?|\d0s)\b")}
LONGEST = 8          # words of a phrase, at most
CHANGE = re.compile(r"\b(something else|something (?:very |quite |totally |completely )?different|change of|time for a change|"
                    r"change direction|switch|switching|different idea|new chapter|done with this|somewhere new|enough of that|"
                    r"somewhere else|the opposite|new plan|turn the page|plot twist|leave that behind|enough of this|instead|let's move)\b", re.IGNORECASE)


def year(track):
    return int(str(track["release_date"])[:4]) if track["release_date"] else None


def concepts(track):
    """A track's tags as a set, those that the lexicon knows as its concepts ("dub" and "reggae" are one)."""
    return {TAG_CONCEPT.get(tag.lower(), tag.lower()) for tag in track["tags"]}


def compare(field, holds):
    """A rule over two tracks: None where the field of one is not known."""
    def rule(before, now):
        a, b = (year(t) if field == "year" else t[field] for t in (before, now))
        return None if a is None or b is None else holds(a, b)
    return rule


ARTIST = "\ue000"  # stands for the name of the artist before
# name: (what is said, whether the next track obeys, given the track before). Not counted after "not", "no" and the like.
RULES = {
    "another artist": (r"(?:another|different|other|new) (?:artist|band|singer|act)s?|(?:someone|somebody) else|"
                       r"(?:enough|tired|sick) of " + ARTIST, compare("artist", lambda a, b: a != b)),
    "the same artist": (r"(?:same|this) (?:artist|band|singer)|"
                        r"(?:more|another|another one|something else|anything else) (?:by|from) (?:them|him|her)",
                        compare("artist", lambda a, b: a == b)),
    "another album": (r"(?:another|different|other) (?:album|record)", compare("album", lambda a, b: a != b)),
    "the same album": (r"same (?:album|record)", compare("album", lambda a, b: a == b)),
    "slower": (r"slower|slow (?:it|things) down|calmer in pace|too fast", compare("tempo", lambda a, b: b < a)),
    "faster": (r"faster|quicker|speed (?:it|things) up|too slow", compare("tempo", lambda a, b: b > a)),
    "older": (r"(?<!getting )(?<!growing )older|less recent", compare("year", lambda a, b: b < a)),
    "newer": (r"newer|more recent", compare("year", lambda a, b: b > a)),
    "more like this": (r"more like (?:this|that)|something similar|another one like that|same spirit|continue like that",
                       lambda a, b: not concepts(a).isdisjoint(concepts(b)) if a["tags"] and b["tags"] else None),
    "in minor": (r"in (?:a )?minor(?: key)?", compare("key", lambda a, b: b.endswith("minor"))),
    "in major": (r"in (?:a )?major(?: key)?", compare("key", lambda a, b: b.endswith("major")))}
NOT = r"(?<!not )(?<!n't )(?<!no )(?<!nothing )(?<!less )(?<!never )"


def rule_pattern(name):
    """What is said where a rule of RULES counts."""
    return re.compile(rf"{NOT}\b(?:{RULES[name][0]})(?!\w)", re.IGNORECASE)


def wish_alone(query, before, now):
    """A request without the names of two tracks (None: not known), since "Slower Now" asks for nothing slower; ARTIST for the artist before."""
    artist = " ".join(((before or {}).get("artist") or "").split())
    names = [name for name in names_of([t for t in (before, now) if t]) if name != name.lower() or name == artist]
    one_of_them = "|".join(rf"(?<!\w){re.escape(name)}(?!\w)" for name in names)  # the longest first
    return re.sub(one_of_them, lambda match: ARTIST if match[0] == artist else " ", query) if names else query


def side_phrases():
    """{phrase: sides} of the words and phrases that speak of audio, lyrics, metadata or tags."""
    found = {}
    for side, words in WORDS.items():
        phrases = {p for kind in FIELDS[side] for concept, entry in LEXICON[kind].items()
                   for p in (concept, *(x for name in SAID for x in entry.get(name, ())))}
        for phrase in {*map(words_of, phrases), *words.split()}:
            found.setdefault(phrase, set()).add(side)
    return found


def sides(query, target, phrases):
    """The sides of the music that a request speaks of: a set. target: the track it asks for, or None; phrases: side_phrases()."""
    words = words_of(query).split()
    spoken = {" ".join(words[i:i + n]) for n in range(1, LONGEST + 1) for i in range(len(words) - n + 1)}
    found = {side for side, pattern in PATTERNS.items() if pattern.search(query)}.union(*(phrases[p] for p in spoken if p in phrases))
    if target and any(speaks(query, target[f]) for f in ("title", "artist", "album")):
        found.add("metadata")
    if target and any(words_of(tag) in spoken for tag in target["tags"]):
        found.add("tags")
    return found


def is_type(value, *types):
    """Whether a value of a JSON file is null or of one of the types."""
    return value is None or type(value) in types


def text_of(value):
    """A string, or "" of anything else: what is no text is not said, and no track."""
    return value if isinstance(value, str) else ""


def schema_faults(dialogues, row_of):
    """{fault: how often} of a list of dialogues as they stand in the file."""
    faults = Counter()
    for dialogue in dialogues:
        turns = dialogue.get("turns")
        faults["dialogue without an id"] += not text_of(dialogue.get("dialogue_id"))
        faults["field of another type"] += not is_type(dialogue.get("playlist_id"), str, int)
        if not isinstance(turns, list) or not turns or not all(isinstance(t, dict) for t in turns):
            faults["dialogue without turns"] += 1
            continue
        music = [t["music"] for t in turns if text_of(t.get("music"))]
        faults["dialogue that plays a track twice"] += len(set(music)) < len(music)
        faults["dialogue that ends on a rejected track"] += turns[-1].get("rejected") is True
        for turn, after in zip(turns, [*turns[1:], {}]):
            targets = turn.get("targets") or []
            typed = isinstance(targets, list) and all(is_type(t, str) for t in targets)
            faults["turn without a query"] += not text_of(turn.get("query")).strip()
            faults["turn without a track"] += not text_of(turn.get("music"))
            faults["turn without an answer"] += not text_of(turn.get("response")).strip()
            faults["field of another type"] += sum(not is_type(turn.get(f), str) for f in ("query", "music", "response", "kind")) + (
                not is_type(turn.get("rejected"), bool)) + (not typed)
            named = {text_of(turn.get("music")), *(targets if typed else ())} - {"", None}
            faults["track that the catalogue does not have"] += sum(t not in row_of for t in named)
            faults["two rejections in a row"] += turn.get("rejected") is True and after.get("rejected") is True
    ids = Counter(text_of(d.get("dialogue_id")) for d in dialogues)
    faults["dialogue id that stands twice"] = sum(n > 1 for i, n in ids.items() if i)
    return dict(faults)


def usable(dialogues, row_of):
    """The dialogues that can be measured: [{playlist_id, turns: [(query, track_id or None, response, rejected, kind)]}]."""
    kept = []
    for d in dialogues:
        turns = d.get("turns") if isinstance(d.get("turns"), list) else []
        turns = [t for t in turns if isinstance(t, dict) and text_of(t.get("query")).strip()]
        turns = [(t["query"], t["music"] if text_of(t.get("music")) in row_of else None, text_of(t.get("response")),
                  t.get("rejected") is True, text_of(t.get("kind")) or None) for t in turns]
        if turns:
            kept.append({"playlist_id": d["playlist_id"] if is_type(d.get("playlist_id"), str, int) else None, "turns": turns})
    return kept


def describe(dialogues):
    """The paper's Table 1, and the lengths of what is said."""
    turns = [t for d in dialogues for t in d["turns"]]
    words = {w for query, _, response, _, _ in turns for w in f"{query} {response}".lower().split()}
    return {"dialogues": len(dialogues), "tracks": len({t[1] for t in turns} - {None}), "vocabulary": len(words),
            "turns": len(turns), "turns a dialogue": len(turns) / len(dialogues),
            "words a query": float(np.mean([len(t[0].split()) for t in turns])),
            "words an answer": float(np.mean([len(t[2].split()) for t in turns])),
            "queries that are said once only": sum(n == 1 for n in Counter(words_of(t[0]) for t in turns).values()) / len(turns)}


def give_away(dialogues, track_of):
    """Shares of the requests that say the title, or the artist, of the track that is then played; openings apart."""
    found = {}
    for name, part in (("first turns", [d["turns"][:1] for d in dialogues]), ("later turns", [d["turns"][1:] for d in dialogues])):
        asked = [(query, track_of[music]) for turns in part for query, music, *_ in turns if music]
        for field in ("title", "artist"):
            found[f"{field}, {name}"] = float(np.mean([speaks(query, track[field]) for query, track in asked])) if asked else None
    return found


def coverage(dialogues, track_of):
    """Shares of the requests that speak of each side of the music, of none, and of dialogues that have all four."""
    phrases = side_phrases()
    per_dialogue = [[sides(query, track_of.get(music), phrases) for query, music, *_ in d["turns"]] for d in dialogues]
    flat = [found for dialogue in per_dialogue for found in dialogue]
    shares = {side: sum(side in found for found in flat) / len(flat) for side in WORDS}
    kinds = Counter(t[4] or "not known" for d in dialogues for t in d["turns"])
    return shares | {"none of them": sum(not found for found in flat) / len(flat),
                     "dialogues with all four": sum(len(set().union(*dialogue)) == 4 for dialogue in per_dialogue) / len(per_dialogue),
                     "kinds, as the file names them": {kind: n / len(flat) for kind, n in kinds.most_common()}}


def obedience(dialogues, track_of, tracks):
    """{rule: asked, checked (both tracks known), obeyed (share), chance (share of random tracks that would obey)}."""
    rng = np.random.default_rng(0)
    others = [tracks[i] for i in rng.permutation(len(tracks))[:CHANCE]]
    found = {}
    for name, (_, rule) in RULES.items():
        pattern = rule_pattern(name)
        asked, checked, obeyed, chances = 0, 0, 0, []
        for d in dialogues:
            for (_, before, *_), (query, now, *_) in zip(d["turns"], d["turns"][1:]):
                before, now = track_of.get(before), track_of.get(now)
                artist = (before or {}).get("artist")
                found_at_all = pattern.search(query.replace(artist, ARTIST) if artist else query)  # wish_alone takes time
                if not found_at_all or not pattern.search(wish_alone(query, before, now)):
                    continue
                asked += 1
                if before is None or now is None or rule(before, now) is None:
                    continue
                checked, obeyed = checked + 1, obeyed + bool(rule(before, now))
                if len(chances) < CHANCE:
                    by_chance = [rule(before, other) for other in others if other is not before]
                    chances += [np.mean([x for x in by_chance if x is not None])] if any(x is not None for x in by_chance) else []
        if asked:
            found[name] = {"asked": asked, "checked": checked, "obeyed": obeyed / checked if checked else None,
                           "chance": float(np.mean(chances)) if chances else None}
    return found


def directions(dialogues, track_of):
    """Rejections and changes of direction: how many, and whether the next track is of another kind."""
    turns = [t for d in dialogues for t in d["turns"]]
    other = {True: [], False: []}
    for d in dialogues:
        for (_, before, _, rejected, _), (query, now, *_) in zip(d["turns"], d["turns"][1:]):
            tags, tags_now = (concepts(track_of[x]) if x else set() for x in (before, now))
            if not rejected and tags and tags_now:
                other[bool(CHANGE.search(query))].append(not tags & tags_now)
    return {"turns rejected": sum(t[3] for t in turns) / len(turns),
            "dialogues with a rejection": sum(any(t[3] for t in d["turns"]) for d in dialogues) / len(dialogues),
            "requests that change direction": sum(bool(CHANGE.search(t[0])) for t in turns) / len(turns),
            "no tag in common, after a change (rejections left out)": float(np.mean(other[True])) if other[True] else None,
            "no tag in common, after other requests": float(np.mean(other[False])) if other[False] else None}


def shingles(dialogue):
    """The set of SHINGLE words in a row in what is said in a dialogue."""
    found = set()
    for query, _, response, *_ in dialogue["turns"]:
        for text in (query, response):
            words = words_of(text).split()
            found |= {" ".join(words[i:i + SHINGLE]) for i in range(len(words) - SHINGLE + 1)}
    return found


def duplicates(train, dialogues):
    """Shares of `dialogues` (of another file) that repeat what is in `train`. Only what `dialogues` have is kept in memory."""
    texts = [shingles(d) for d in dialogues]
    journeys = [{t[1] for t in d["turns"]} - {None} for d in dialogues]
    where, played_in, repeated = {}, {}, set()
    queries = {words_of(t[0]) for d in dialogues for t in d["turns"]}
    for i, (text, journey) in enumerate(zip(texts, journeys)):
        for shingle in text:
            where.setdefault(shingle, []).append(i)
        for track_id in journey:
            played_in.setdefault(track_id, []).append(i)
    near_text, near_journey = [0.0] * len(dialogues), [0.0] * len(dialogues)
    for d in train:
        common = Counter(i for shingle in shingles(d) for i in where.get(shingle, ()))
        for i, n in common.items():
            near_text[i] = max(near_text[i], n / len(texts[i]))
        journey = {t[1] for t in d["turns"]} - {None}
        for i, n in Counter(i for track_id in journey for i in played_in.get(track_id, ())).items():
            near_journey[i] = max(near_journey[i], n / len(journey | journeys[i]))
        repeated |= {words_of(t[0]) for t in d["turns"]} & queries
    long = [words_of(t[0]) for d in dialogues for t in d["turns"] if len(t[0].split()) >= SHINGLE]
    playlists = {d["playlist_id"] for d in train} - {None}
    return {"playlist in both": sum(d["playlist_id"] in playlists for d in dialogues) / len(dialogues),
            f"queries of {SHINGLE} words or more said in train": sum(q in repeated for q in long) / len(long) if long else None,
            "dialogues with half their wording from one of train": sum(x >= NEAR for x in near_text) / len(dialogues),
            "dialogues with half their tracks from one of train": sum(x >= NEAR for x in near_journey) / len(dialogues)}


def cold(dialogues, warm):
    """Shares of the tracks, and of the turns, whose track no training playlist has. warm: set of track ids."""
    music = [t[1] for d in dialogues for t in d["turns"] if t[1]]
    return {"tracks": len(set(music) - warm) / len(set(music)), "turns": sum(t not in warm for t in music) / len(music)} if music else {}


# ---------------------------------------------------------------- whether what answers say is true

FACTS = ("genre", "mood", "instrument", "vocal", "theme", "tempo", "mode", "decade")  # kinds of the lexicon; besides: tag, name
DENIED = {"not", "no", "without", "less", "never"}  # a phrase after one of these is no fact


def fact_phrases(tracks):
    """{phrase: [(kind, concept), ...]}: the lexicon's phrases, tags that it does not know, and names of two words or more."""
    found = {}

    def add(phrase, fact):
        if phrase and fact not in found.setdefault(phrase, []):
            found[phrase].append(fact)

    for kind in FACTS:
        for concept, entry in LEXICON[kind].items():
            said = [x for name in SAID for x in entry.get(name, ())]
            for phrase in said if kind == "mode" else [concept, *said]:  # "major" alone is more often a word than a key
                add(words_of(phrase), (kind, concept))
    for track in tracks:
        for tag in track_attributes(track)["tag"]:
            add(words_of(tag), ("tag", tag))
        for name in (bare(track["title"]), bare(track["artist"])):
            if " " in words_of(name) and name != name.lower():
                add(words_of(name), ("name", name))
    return found


def stated(text, phrases):
    """The facts in an answer: a list of [(kind, concept), ...], of which one has to hold; phrases as fact_phrases() gives them.

    From left to right, the longest phrase first; so "I picked guitar band music" speaks of a picked guitar. A name needs its capitals.
    """
    words, found, i = words_of(text).split(), [], 0
    while i < len(words):
        for n in range(min(LONGEST, len(words) - i), 0, -1):
            facts = [(kind, c) for kind, c in phrases.get(" ".join(words[i:i + n]), ()) if kind != "name" or c in text]
            if facts:
                found += [facts] if not (i and words[i - 1] in DENIED) else []
                break
        i += n
    return found


def truth(answers, tracks):
    """What the facts in answers are worth: shares that hold of their track, of one drawn at random, and that the request named.

    answers: list of (request, text, track). An answer can say what it was asked for without a look at the track, and the other way round.

    True is what the catalogue knows: tags, caption, lyrics, tempo, key, year (simulate.track_attributes), title, artist. All else is not.
    """
    phrases = fact_phrases(tracks)
    known = {track["track_id"]: {("name", bare(track["title"])), ("name", bare(track["artist"]))}.union(
        (kind, c) for kind, concepts in track_attributes(track).items() for c in concepts) for *_, track in answers}
    others = [answers[i][2] for i in np.random.default_rng(0).permutation(len(answers))]
    checked = []  # (kind, true of the track, true of the other track, named in the request) of each fact
    for (query, text, track), other in zip(answers, others):
        asked = {fact for facts in stated(query, phrases) for fact in facts}
        checked += [(facts[0][0], *(not s.isdisjoint(facts) for s in (known[track["track_id"]], known[other["track_id"]], asked)))
                    for facts in stated(text, phrases)]
    if not checked:
        return {"answers": len(answers), "facts in them": 0}
    kinds = Counter(kind for kind, *_ in checked)
    _, true, true_of_another, asked = zip(*checked)
    return {"answers": len(answers), "facts in them": len(checked), "facts that are true": float(np.mean(true)),
            "true of the track of another answer": float(np.mean(true_of_another)), "facts that the request names": float(np.mean(asked))} | {
        f"{kind}: true": float(np.mean([t for k, t, *_ in checked if k == kind])) for kind in (*FACTS, "tag", "name") if kinds[kind]} | {
        "facts by kind": dict(kinds)}


def predicted_answers(folder, system, track_of):
    """[(query, response, track)] of predictions/<system>.jsonl: the track is the first one that the dialogue has not played yet.

    Raises SystemExit: the file, or the test dialogues, are missing; no line has a response.
    """
    path, asked = folder / "predictions" / f"{system}.jsonl", {}
    for d in data.load_dialogues(folder / "dialogues_test.jsonl", track_of):
        for t in range(len(d["turns"])):
            asked[d["dialogue_id"], t + 1] = d["turns"][t]["query"], {turn["music"] for turn in d["turns"][:t]}
    found = []
    for number, row in data.read_jsonl(path, f"python 05_infer.py predict --data-dir {folder}, or the baseline of that name"):
        query, before = asked.get((row.get("dialogue_id"), row.get("turn")), (None, None))
        if before is None or not set(row.get("track_ids") or ["-"]) <= set(track_of):
            raise SystemExit(f"{path}:{number}: a dialogue_id and turn of dialogues_test.jsonl and track_ids of tracks.jsonl are expected; "
                             f"make the file again with the script that wrote it")
        first = next((t for t in row["track_ids"] if t not in before), row["track_ids"][0])
        found += [(query, row["response"], track_of[first])] if row.get("response") else []
    if not found:
        raise SystemExit(f"{path}: no responses in it. --predictions takes systems that write some: talkplay, two_stage")
    return found


# ---------------------------------------------------------------- the page

SECTIONS = {"What there is": "table_1", "Schema and order: faults": "schema",
            "Requests that name the track before it is played": "give_away", "What requests speak of": "coverage",
            "Rejections and changes of direction": "directions", "Tracks that no training playlist has": "cold",
            "Repeated from train": "duplicates", "What answers say of their track": "truth"}


def shown(value):
    """A cell: shares as per cent, counts as they are."""
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:,}" if isinstance(value, int) else f"{value:.1%}"


def markdown(report):
    """The report as a Markdown page, files side by side."""
    lines = ["# Audit of the dialogues", "", "By `python 03_synthesize.py audit`. Shares are counted from words "
                                  "(the rules stand in `steps/synthesize/audit.py`)."]
    for title, section in SECTIONS.items():
        names = [name for name in report if section in report[name]]
        keys = list(dict.fromkeys(key for name in names for key, value in report[name].get(section, {}).items()
                                  if not isinstance(value, dict)))
        if not keys:
            continue
        lines += ["", f"## {title}", "", "| | " + " | ".join(names) + " |", "| --- |" + " ---: |" * len(names)]
        for key in keys:
            cells = [report[name].get(section, {}).get(key) for name in names]
            plain = section == "table_1" and not key.startswith("queries that")
            lines.append(f"| {key} | " + " | ".join(f"{c:.1f}" if plain and isinstance(c, float) else shown(c) for c in cells) + " |")
    names = [name for name in report if "obedience" in report[name]]
    lines += ["", "## Does the next track obey?", "", "Asked for in words; the share of obeyed ones among those where both tracks' fields "
              "are known; the share by chance.", "", "| | " + " | ".join(names) + " |", "| --- |" + " --- |" * len(names)]
    for rule in RULES:
        cells = [report[name].get("obedience", {}).get(rule) for name in names]
        if any(cells):
            lines.append(f"| {rule} | " + " | ".join(f"{shown(c['obeyed'])} of {c['checked']} (chance {shown(c['chance'])})" if c else "-"
                                                     for c in cells) + " |")
    lines += ["", "Kinds, as the files name them:", ""]
    for name in names:
        kinds = report[name].get("coverage", {}).get("kinds, as the file names them", {})
        lines += [f"- {name}: " + ", ".join(f"{kind} {share:.0%}" for kind, share in kinds.items())] if kinds else []
    return "\n".join(lines) + "\n"


def examine(folder, files, predictions=()):
    """{name of a file: {section: numbers}}. files: paths of dialogues; predictions: names of systems. Raises SystemExit: one is missing."""
    tracks = data.load_tracks(folder)
    track_of = {t["track_id"]: t for t in tracks}
    has_playlists = (folder / "playlists.jsonl").is_file()
    playlists = data.load_playlists(folder, track_of) if has_playlists else []
    warm = {t for p in playlists if p["split"] == "train" for t in p["track_ids"]}
    rows = {path.name: [row for _, row in data.read_jsonl(path, f"python 03_synthesize.py --data-dir {folder}")] for path in files}
    for path in files:
        if rows[path.name] and not any("turns" in row for row in rows[path.name]):
            raise SystemExit(f"{path} holds no dialogues (no line has turns); give dialogue files, such as {folder}/dialogues_test.jsonl")
    if len(rows) < len(files):
        raise SystemExit(f"--file: two files have the same name ({', '.join(map(str, files))}); the names tell them apart in the report")
    kept = {name: usable(found, track_of) for name, found in rows.items()}
    train = next((name for name in rows if "train" in name), None)
    report = {}
    for name, dialogues in kept.items():
        report[name] = {"schema": schema_faults(rows[name], track_of)}
        if not dialogues:
            continue
        report[name] |= {"table_1": describe(dialogues), "give_away": give_away(dialogues, track_of),
                         "coverage": coverage(dialogues, track_of), "directions": directions(dialogues, track_of),
                         "obedience": obedience(dialogues, track_of, tracks)}
        if has_playlists:
            report[name]["cold"] = cold(dialogues, warm)
        if train and name != train:
            report[name]["duplicates"] = duplicates(kept[train], dialogues)
        answers = [(query, response, track_of[music]) for d in dialogues for query, music, response, *_ in d["turns"] if music and response]
        report[name]["truth"] = truth(answers, tracks)
    for system in predictions:
        report[f"predictions/{system}"] = {"truth": truth(predicted_answers(folder, system, track_of), tracks)}
    return report


def run(folder, files, predictions=()):
    """Audit; print, and write results/audit.md and results/audit.json. Arguments as in examine."""
    report = examine(folder, files, predictions)
    page = markdown(report)
    data.write_text(folder / "results" / "audit.md", page)
    data.write_text(folder / "results" / "audit.json", json.dumps(report, indent=1) + "\n")
    print(page)
    print(f"wrote {folder}/results/audit.md and {folder}/results/audit.json")
