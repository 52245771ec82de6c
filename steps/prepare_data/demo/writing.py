"""Words for the demo catalogue, written from the truth: names, titles, tags, lyrics, captions.

The concepts and their tags are in common/lexicon.json. All other words are in words.json: names by
genre, titles by genre, theme and mood, lyric lines in groups that rhyme, captions, playlist titles.
"""

import json
from pathlib import Path
from string import capwords

HERE = Path(__file__).parent
LEXICON = json.loads((HERE.parents[2] / "common" / "lexicon.json").read_text(encoding="utf-8"))
WORDS = json.loads((HERE / "words.json").read_text(encoding="utf-8"))
CHARACTERS = json.loads((HERE / "genres.json").read_text(encoding="utf-8"))
PROFILES, MOODS = CHARACTERS["genres"], CHARACTERS["moods"]

NOTES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
TEMPO_CLASSES = ((72, "very slow"), (92, "slow"), (114, "medium"), (138, "fast"),
                 (999, "very fast"))  # below so many BPM
WRONG_TAGS = 0.08  # share of the tags that are wrong


def invent_name(rng, genre, voice):
    """(a name in the genre's manner, the words in it). A soloist's first name fits the voice."""
    names, pools = WORDS["names"], WORDS["names"]["genres"][genre]
    solo = voice != "choir" and rng.random() < PROFILES[genre]["solo"]
    sex = voice.split()[0]
    if sex not in ("female", "male"):
        sex = rng.choice(("female", "male"))
    fill = {slot: rng.choice(WORDS["fillers"][slot]) for slot in ("day", "town")}
    fill |= {slot: rng.choice(pools[slot]) for slot in ("a", "b", "c", "p")}
    for slot in ("first", "br_first", "eu_first", "title"):
        fill[slot] = rng.choice(names[slot][sex])
    for slot in ("last", "br_last", "eu_last"):
        fill[slot], fill[slot + "2"] = rng.sample(names[slot], 2)
    pattern = rng.choice(pools["solo" if solo else "band"])
    return pattern.format(**fill), [word for slot, word in fill.items() if f"{{{slot}}}" in pattern]


def name_artist(rng, genre, voice, used):
    """A name that nobody has yet, of the words least used. used: Counter of names and words."""
    while True:
        names = [invent_name(rng, genre, voice) for _ in range(12)]
        names = [(name, words) for name, words in names if not used[name]]
        if names:
            wear = [sum(used[word] for word in words) / len(words) for _, words in names]
            name, words = names[wear.index(min(wear))]
            used.update({name, *words})
            return name


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
    """A title in the genre's manner, or on the theme, the mood, or none of them."""
    titles = WORDS["titles"]
    sources = (titles["genre"][truth["genre"]], titles["any"], titles["theme"][truth["theme"]],
               titles["mood"][truth["moods"][0]], titles["neutral"])
    pattern = rng.choice(rng.choices(sources, (25, 15, 35, 17, 8))[0])
    if "{colour}" in pattern:
        fill = fill | {"colour": fill["colour"].capitalize()}
    return pattern.format(**fill)


def name_song(rng, truth, used, own):
    """(title, fillers). Titles in the set `used` are taken, but one in fifty repeats another's."""
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
    truth, _, fill = songs[0]
    chance = rng.random()
    if chance < 0.25:
        return rng.choice(songs)[1]
    if chance < 0.32:
        return artist["name"]  # self-titled
    manner = truth["genre"] if chance < 0.62 else "any"
    return rng.choice(WORDS["titles"]["albums"][manner]).format(**fill)


def write_tags(rng, truth):
    """3 to 8 tags, shuffled: synonyms of what is true, with omissions and a mistake at times."""
    # what a tag can say, and how likely it is said
    sure = [("genre", truth["genre"], 0.92), ("mood", truth["moods"][0], 0.82),
            ("vocal", truth["vocal"], 0.6)]
    sure += [("mood", mood, 0.5) for mood in truth["moods"][1:]]
    sure += [("instrument", instrument, 0.45) for instrument in truth["instruments"]]
    true = [(kind, concept) for kind, concept, chance in sure if rng.random() < chance]
    rest = [(kind, concept) for kind, concept, _ in sure if (kind, concept) not in true]
    true += rng.sample(rest, max(0, 3 - len(true)))
    tags = [rng.choice(LEXICON[kind][concept]["tags"]) for kind, concept in true[:7]]
    if rng.random() < 0.4 and len(tags) < 7:
        tags.append(f"{truth['year'] % 100 // 10}0s")

    # mistakes
    said = {(kind, concept) for kind, concept, _ in sure}
    false = [tag for kind in ("genre", "mood", "instrument", "vocal")
             for concept, words in LEXICON[kind].items() if (kind, concept) not in said
             for tag in words["tags"]]
    n_wrong = sum(rng.random() < WRONG_TAGS / (1 - WRONG_TAGS) for _ in tags)
    tags += rng.sample(false, min(n_wrong, 8 - len(tags)))
    rng.shuffle(tags)
    return tags


def as_sung(title, fill):
    """A title within a line: only names keep their capitals; what is in brackets is left out."""
    proper = {word for slot in ("name", "name2", "town", "month", "day")
              for word in fill[slot].split()}
    proper |= {"I", "I'm", "July", "December", "Lord", "Jah", "Babylon", "Zion"}
    words = title.split(" (")[0].split(": ")[0].replace(" / ", ", ").split()
    sung = " ".join(word if word.removesuffix("'s").strip(",") in proper else word.lower()
                    for word in words)
    return sung.replace(fill["key"].lower(), f"{fill['key'][0]}{fill['key'][1:].lower()}")


def write_lyrics(rng, truth, title, fill):
    """14 to 18 lines, or None: verses on the theme, a chorus on the mood with the title in it.

    Lines within one group of words.json rhyme, so any two of them make a couplet.
    """
    if truth["vocal"] == "instrumental":
        return None
    lyrics = WORDS["lyrics"]
    groups = rng.sample(lyrics["theme"][truth["theme"]], 4)
    crossed = rng.random() < 0.4  # abab, else aabb

    def verse(group, other):
        a, b = rng.sample(group, 2), rng.sample(other, 2)
        return [a[0], b[0], a[1], b[1]] if crossed else a + b

    # the chorus: a couplet on the mood and one or two hooks with the title
    adlib = rng.choice(lyrics["adlibs"][truth["genre"]])
    hooks = [hook.format(title=as_sung(title, fill), adlib=adlib)
             for hook in rng.sample(lyrics["hooks"], 2)]
    a, b = rng.sample(rng.choice(lyrics["mood"][truth["moods"][0]]), 2)
    chorus = rng.choice(([hooks[0], a, hooks[1], b], [a, b, hooks[0]], [hooks[0], a, b, hooks[0]],
                         [a, hooks[0], b]))

    # a bridge on the genre or the mood
    mood_lines = rng.choice(lyrics["mood"][truth["moods"][-1]])
    bridge = rng.sample(rng.choice((lyrics["genre"][truth["genre"]], mood_lines)), 2)
    stanzas = [verse(*groups[:2]), chorus, verse(*groups[2:]), chorus]
    if rng.random() < 0.6 and not set(bridge) & {a, b}:
        stanzas.insert(3, bridge)
    stanzas = [[line.format(**fill) for line in stanza] for stanza in stanzas]
    return "\n\n".join("\n".join(line[0].upper() + line[1:] for line in stanza)
                       for stanza in stanzas)


def write_caption(rng, truth):
    """One or two sentences on what is heard."""
    words = WORDS["captions"]
    tempo_class = next(name for below, name in TEMPO_CLASSES if truth["tempo"] < below)
    mood = " and ".join(rng.choice(words["mood"][m]) for m in truth["moods"])
    heard = [rng.choice(words["instrument"][instrument])
             for instrument in truth["instruments"][:rng.choice((2, 3, 4))]]
    tempo = rng.choice(words["tempo"][tempo_class])
    piece = rng.choice(words["piece"][truth["genre"]])
    fill = {"tempo": tempo, "mood": mood, "piece": piece}
    fill |= {f"a_{slot}": ("an " if text[0].lower() in "aeiou" else "a ") + text
             for slot, text in fill.items()}
    first = rng.choice(words["first"]).format(
        mode=truth["mode"], led=rng.choice(words["led"]),
        instruments=", ".join(heard[:-1]) + " and " + heard[-1], **fill)
    second = rng.choice(words["vocal"][truth["vocal"]]) if rng.random() < 0.85 else ""
    return f"{first[0].upper()}{first[1:]} {second}".strip()


def name_playlist(rng, about):
    """A title such as people give: mostly on the theme, lower case, at times vague, or an emoji."""
    words, kind = WORDS["playlists"], about["kind"]
    if rng.random() < 0.12:
        return rng.choice(words["vague"])
    if kind == "activity":
        patterns = words["activities"][about["activity"]]["titles"]
    elif kind == "theme":
        patterns = words["theme"][about["theme"]]
    elif kind == "decade+genre" and about["decade"] < 200:
        patterns = words["old_decade_genre"]
    else:
        patterns = words[kind.replace("+", "_")]
    title = rng.choice(patterns).format(
        genre=rng.choice(LEXICON["genre"][about["genre"]]["tags"]), artist=about["artist"],
        feeling=about["mood"], mood=rng.choice(LEXICON["mood"][about["mood"]]["tags"]),
        decade=f"{about['decade'] % 10}0s",
        instrument=rng.choice(LEXICON["instrument"][about["instrument"]]["tags"]))
    title = rng.choices((title, title.lower(), capwords(title), title.upper()), (40, 30, 25, 5))[0]
    symbol = words["emoji"].get(about["theme"] if kind == "theme" else about["mood"])
    if kind in ("theme", "genre+mood") and symbol and rng.random() < 0.25:
        return f"{title} {symbol}"
    return title
