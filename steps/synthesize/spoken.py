"""Whether a text names a track: words, quotation marks, names (for parse.py and the audit)."""

import re
from functools import lru_cache

LONGEST = 2000  # characters of a request or an answer
QUOTED = re.compile(
    r"\"([^\"]{2,80})\""
    r"|“([^”]{2,80})”"
    r"|«([^»]{2,80})»"
    r"|\*{1,2}([^*]{2,80})\*{1,2}"
    r"|(?<!\w)['‘]([^'‘’\n]{2,80}(?:['’]\w[^'‘’\n]{0,80})*)['’](?!\w)")


@lru_cache(maxsize=2**16)
def words_of(text):
    """Lower-case words with single spaces, nothing else."""
    return " ".join(re.findall(r"\w+", text.casefold().replace("'", "").replace("’", "")))


@lru_cache(maxsize=2**16)
def bare(name):
    """A title without brackets and what follows " - ": "Home (Live)", "Home - Live" are "Home"."""
    name = name or ""
    return re.sub(r"\([^)]*\)|\[[^]]*\]|\s-\s.*$", " ", name).strip() or name


def quoted(text):
    """What is in quotation marks or asterisks: [(the words, their match), ...]."""
    # Not after LONGEST characters, since QUOTED takes quadratic time.
    return [(next(filter(None, match.groups())), match)
            for match in QUOTED.finditer(text, 0, LONGEST)]


def names_of(tracks):
    """Titles, artists and albums, whole and bare, each once, the longest first."""
    names = {" ".join(name.split()) for track in tracks for field in ("title", "artist", "album")
             if track[field] for name in (track[field], bare(track[field]))}
    return sorted(names - {""}, key=lambda name: (-len(name), name))


def without_names(text, names):
    """A text with spaces in the place of names, in capitals or not."""
    for name in names:
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", " ", text, flags=re.IGNORECASE)
    return text


def speaks(text, name):
    """Whether a text says a title or the name of an artist.

    A name of one word counts in quotation marks, or with its capital inside a sentence: "home" is
    more often a word than a title.
    """
    name = bare(name)
    words = words_of(name)
    if not words:
        return False
    if " " in words:
        return f" {words} " in f" {words_of(text)} "
    if words not in words_of(text):
        return False
    if any(words_of(bare(span)) == words for span, _ in quoted(text)):
        return True
    capital_inside = rf"(?<=[\w,;:] ){re.escape(name)}(?!\w)"
    return name != name.lower() and bool(re.search(capital_inside, text))
