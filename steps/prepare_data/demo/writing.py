"""Words for the demo catalogue, written from the truth: names, titles, tags, lyrics, captions.

Every function takes a random.Random and what is true, and returns text.  The concepts and their
tags stand in common/lexicon.json, all other words in steps/prepare_data/demo/words.json: names by genre, titles by
genre, theme and mood, lyric lines in groups that rhyme, caption phrases, playlist titles.
"""

import json
from pathlib import Path
from string import capwords

HERE = Path(__file__).parent
LEXICON = json.loads((HERE.parents[2] / "common" / "lexicon.json").read_text(encoding="utf-8"))
WORDS = json.loads((HERE / "words.json").read_text(encoding="utf-8"))
PROFILES = WORDS["profiles"]

NOTES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
TEMPO_CLASSES = ((72, "very slow"), (92, "slow"), (114, "medium"), (138, "fast"), (999, "very fast"))  # BPM, below
WRONG_TAGS = 0.08  # share of the tags that are wrong


def invent_name(rng, genre, voice):
    """(name in the genre's manner, the words it is made of); a solo singer's first name fits the voice."""
    names, pools = WORDS["names"], WORDS["names"]["genres"][genre]
    solo = voice != "choir" and rng.random() < PROFILES[genre]["solo"]
    sex = {"female vocals": "female", "male vocals": "male"}.get(voice) or rng.choice(("female", "male"))
    parts = {slot: rng.choice(WORDS["fillers"][slot]) for slot in ("day", "town")}
    parts |= {slot: rng.choice(pools[slot]) for slot in ("a", "b", "c", "p")}
    parts |= {slot: rng.choice(names[slot][sex]) for slot in ("first", "br_first", "eu_first", "title")}
    for slot in ("last", "br_last", "eu_last"):
        parts[slot], parts[slot + "2"] = rng.sample(names[slot], 2)
    pattern = rng.choice(pools["solo" if solo else "band"])
    return pattern.format(**parts), [word for slot, word in parts.items() if "{%s}" % slot in pattern]


def name_artist(rng, genre, voice, used):
    """A name that nobody has yet, of the words least used so far. used: Counter of names and words."""
    while True:
        names = [invent_name(rng, genre, voice) for _ in range(12)]
        names = [(name, words) for name, words in names if not used[name]]
        if names:
            name, words = min(names, key=lambda pair: sum(used[word] for word in pair[1]) / len(pair[1]))
            used.update({name, *words})
            return name


def with_article(text):
    return ("an " if text[0].lower() in "aeiou" else "a ") + text


def draw_fillers(rng, truth):
    """What fills the {slots} of a song: one name, town, ... for its title and its lyrics alike."""
    titles = WORDS["titles"]
    fill = {slot: rng.choice(words) for slot, words in WORDS["fillers"].items()}
    fill["name"], fill["name2"] = rng.sample(WORDS["fillers"]["name"], 2)
    fill["noun"], fill["noun2"] = map(capwords, rng.sample(titles["nouns"][truth["theme"]], 2))
    fill["adj"] = rng.choice(titles["adjectives"][truth["moods"][0]])
    fill["portuguese"] = rng.choice(titles["portuguese"][truth["theme"]]).format(**fill)
    fill["key"] = f"{NOTES[truth['tonic']]} {truth['mode'].capitalize()}"
    return fill


def draw_title(rng, truth, fill):
    """A title in the genre's manner, on the theme's things, the theme, the mood, or on none of them."""
    titles = WORDS["titles"]
    source = rng.choices((titles["genre"][truth["genre"]], titles["any"], titles["theme"][truth["theme"]],
                          titles["mood"][truth["moods"][0]], titles["neutral"]), (25, 15, 35, 17, 8))[0]
    pattern = rng.choice(source)
    if "{colour}" in pattern:
        fill = fill | {"colour": fill["colour"].capitalize()}
    return pattern.format(**fill)


def name_song(rng, truth, used, own):
    """(title, fillers). Titles of the set `used` are taken; one in fifty repeats another artist's all the same."""
    for _ in range(200):
        fill = draw_fillers(rng, truth)
        title = draw_title(rng, truth, fill)
        if title not in own and (title not in used or rng.random() < 0.02):
            break
    used.add(title)
    own.add(title)
    return title, fill


def name_album(rng, artist, songs):
    """A title for an album, after one of its songs or after what its first song is about."""
    albums, (truth, title, fill) = WORDS["titles"]["albums"], songs[0]
    chance = rng.random()
    if chance < 0.25:
        return rng.choice(songs)[1]
    if chance < 0.32:
        return artist["name"]  # self-titled
    return rng.choice(albums[truth["genre"]] if chance < 0.62 else albums["any"]).format(**fill)


def write_tags(rng, truth):
    """3 to 8 tags, shuffled: synonyms of what is true with omissions, and a wrong one now and then."""
    sure = [("genre", truth["genre"], 0.92), ("mood", truth["moods"][0], 0.82), ("vocal", truth["vocal"], 0.6)]
    sure += [("mood", mood, 0.5) for mood in truth["moods"][1:]]
    sure += [("instrument", instrument, 0.45) for instrument in truth["instruments"]]
    true = [(kind, concept) for kind, concept, chance in sure if rng.random() < chance]
    rest = [(kind, concept) for kind, concept, _ in sure if (kind, concept) not in true]
    true += rng.sample(rest, max(0, 3 - len(true)))
    tags = [rng.choice(LEXICON[kind][concept]["tags"]) for kind, concept in true[:7]]
    if rng.random() < 0.4 and len(tags) < 7:
        tags.append(f"{truth['year'] % 100 // 10}0s")
    said = {(kind, concept) for kind, concept, _ in sure}
    false = [tag for kind in ("genre", "mood", "instrument", "vocal") for concept, words in LEXICON[kind].items()
             if (kind, concept) not in said for tag in words["tags"]]
    n_wrong = sum(rng.random() < WRONG_TAGS / (1 - WRONG_TAGS) for _ in tags)
    tags += rng.sample(false, min(n_wrong, 8 - len(tags)))
    rng.shuffle(tags)
    return tags


def as_sung(title, fill):
    """A title within a line: only names keep their capitals, and what stands in brackets is left out."""
    proper = {word for slot in ("name", "name2", "town", "month", "day") for word in fill[slot].split()}
    proper |= {"I", "I'm", "July", "December", "Lord", "Jah", "Babylon", "Zion"}
    words = title.split(" (")[0].split(": ")[0].replace(" / ", ", ").split()
    sung = " ".join(w if w.removesuffix("'s").strip(",") in proper else w.lower() for w in words)
    return sung.replace(fill["key"].lower(), f"{fill['key'][0]}{fill['key'][1:].lower()}")


def write_lyrics(rng, truth, title, fill):
    """Verses on the theme, a chorus on the mood with the title in it. Lines within one group of
    words.json rhyme, so any two of them make a couplet. Returns 14 to 18 lines, or None."""
    if truth["vocal"] == "instrumental":
        return None
    lyrics = WORDS["lyrics"]
    groups = rng.sample(lyrics["theme"][truth["theme"]], 4)
    crossed = rng.random() < 0.4  # abab, else aabb

    def verse(group, other):
        a, b = rng.sample(group, 2), rng.sample(other, 2)
        return [a[0], b[0], a[1], b[1]] if crossed else a + b

    adlib = rng.choice(lyrics["adlibs"][truth["genre"]])
    hooks = [h.format(title=as_sung(title, fill), adlib=adlib) for h in rng.sample(lyrics["hooks"], 2)]
    a, b = rng.sample(rng.choice(lyrics["mood"][truth["moods"][0]]), 2)
    chorus = rng.choice(([hooks[0], a, hooks[1], b], [a, b, hooks[0]], [hooks[0], a, b, hooks[0]], [a, hooks[0], b]))
    of_genre, of_mood = lyrics["genre"][truth["genre"]], rng.choice(lyrics["mood"][truth["moods"][-1]])
    bridge = rng.sample(rng.choice((of_genre, of_mood)), 2)
    stanzas = [verse(*groups[:2]), chorus, verse(*groups[2:]), chorus]
    if rng.random() < 0.6 and not set(bridge) & {a, b}:
        stanzas.insert(3, bridge)
    stanzas = [[line.format(**fill) for line in stanza] for stanza in stanzas]
    return "\n\n".join("\n".join(line[0].upper() + line[1:] for line in stanza) for stanza in stanzas)


def write_caption(rng, truth):
    """One or two sentences on what is heard."""
    words = WORDS["captions"]
    tempo_class = next(name for below, name in TEMPO_CLASSES if truth["tempo"] < below)
    mood = " and ".join(rng.choice(words["mood"][m]) for m in truth["moods"])
    heard = truth["instruments"][:rng.choice((2, 3, 4))]
    heard = [rng.choice(words["instrument"][i]) for i in heard]
    tempo = rng.choice(words["tempo"][tempo_class])
    piece = rng.choice(words["piece"][truth["genre"]])
    first = rng.choice(words["first"]).format(
        tempo=tempo, a_tempo=with_article(tempo), mood=mood, a_mood=with_article(mood), mode=truth["mode"],
        piece=piece, a_piece=with_article(piece), led=rng.choice(words["led"]),
        instruments=", ".join(heard[:-1]) + " and " + heard[-1])
    second = rng.choice(words["vocal"][truth["vocal"]]) if rng.random() < 0.85 else ""
    return f"{first[0].upper()}{first[1:]} {second}".strip()


def name_playlist(rng, about):
    """A title such as people give: mostly on the theme, lower case, at times vague or with an emoji."""
    words, kind = WORDS["playlists"], about["kind"]
    if rng.random() < 0.12:
        return rng.choice(words["vague"])
    if kind == "activity":
        pattern = rng.choice(words["activities"][about["activity"]]["titles"])
    elif kind == "theme":
        pattern = rng.choice(words["theme"][about["theme"]])
    else:
        old = "old_" if kind == "decade+genre" and about["decade"] < 200 else ""
        pattern = rng.choice(words[old + kind.replace("+", "_")])
    title = pattern.format(genre=rng.choice(LEXICON["genre"][about["genre"]]["tags"]), artist=about["artist"],
                           feeling=about["mood"], mood=rng.choice(LEXICON["mood"][about["mood"]]["tags"]),
                           decade=f"{about['decade'] % 10}0s",
                           instrument=rng.choice(LEXICON["instrument"][about["instrument"]]["tags"]))
    title = rng.choices((title, title.lower(), capwords(title), title.upper()), (40, 30, 25, 5))[0]
    symbol = words["emoji"].get(about["theme"] if kind == "theme" else about["mood"])
    shown = kind in ("theme", "genre+mood") and symbol and rng.random() < 0.25
    return f"{title} {symbol}" if shown else title
