"""A fictional catalogue: tracks and playlists in which everything follows from a hidden truth.

For each track a truth is drawn first: genre, moods, instruments, vocal, theme, tempo, key, year.
From it writing.py writes title, album, tags, lyrics and caption, with noise (a synonym, an
omission, now and then a wrong tag), and render.py makes the audio. So what a system finds in one
modality can be checked against the others. Each playlist has a hidden theme and prefers popular
tracks.
genres.json says what a genre and a mood are like. The same seed gives the same bytes.
"""

import random
import string
from collections import Counter
from datetime import date, timedelta
from itertools import pairwise

import numpy as np

from steps.prepare_data.demo import writing
from steps.prepare_data.demo.writing import LEXICON, MOODS, NOTES, PROFILES, WORDS

BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase
NOTE_WEIGHTS = (10, 3, 9, 3, 9, 7, 3, 10, 3, 10, 4, 4)  # players prefer the easy keys

LATE_SHARE = 0.08       # share of tracks that come out after the last training playlist
OFF_TOPIC = 0.10        # share of a playlist's tracks that do not follow its theme
POPULARITY_PULL = 0.8   # weight of log popularity against the theme's match
FRESH_PULL = 0.5        # extra weight of a track in its first two weeks
KINDS = {"genre+mood": 25, "activity": 20, "theme": 15, "artist": 15, "decade+genre": 15,
         "instrument": 10}

FIRST_DATE, LAST_TRAIN_DATE = date(2015, 1, 1), date(2017, 10, 26)  # of playlists
VALID_DATE, TEST_DATE = date(2017, 10, 30), date(2017, 10, 31)
LATE_DATES = [date(2017, 10, day) for day in (27, 27, 28, 29)]  # the 27th, a Friday: release day


# ---------------------------------------------------------------- drawing

def draw(rng, weights, favourites=()):
    """One key of {key: weight}; favourites weigh four times as much."""
    weights = {key: weight * (4 if key in favourites else 1) for key, weight in weights.items()}
    return rng.choices(list(weights), weights.values())[0]


def draw_several(rng, weights, k, favourites=()):
    """Up to k different keys of {key: weight}."""
    drawn = []
    while len(drawn) < min(k, len(weights)):
        left = {key: weight for key, weight in weights.items() if key not in drawn}
        drawn.append(draw(rng, left, favourites))
    return drawn


def clip(x, low=0.0, high=1.0):
    return max(low, min(high, x))


# ---------------------------------------------------------------- artists and albums

def artist_sizes(rng, n_tracks):
    """Tracks per artist, 3 to 15 with a long tail, summing to n_tracks."""
    sizes = []
    while sum(sizes) < n_tracks:
        sizes.append(3 + int(13 * rng.random() ** 1.7))
    sizes[-1] -= sum(sizes) - n_tracks
    if sizes[-1] < 3:  # too small for an artist: the others take these tracks
        for _ in range(sizes.pop()):
            sizes[rng.choice([i for i, size in enumerate(sizes) if size < 15])] += 1
    return sizes


def most_wanting(shares, filled, size):
    """The key of {key: share} that lags most behind its share, if it took the next `size` tracks.

    A draw at random would leave the shares to chance, since a genre has only some eight artists.
    """
    return min(shares, key=lambda key: (filled[key] + size / 2) / shares[key])


def make_artists(rng, n_tracks):
    """Artists with their leanings and their albums ({"size": tracks, "date": release})."""
    artists, used = [], Counter()
    genres = rng.sample(list(PROFILES), len(PROFILES))
    shares = {genre: PROFILES[genre]["share"] for genre in genres}
    filled = {genre: Counter() for genre in genres}  # tracks by genre and voice
    for size in artist_sizes(rng, n_tracks):
        genre = most_wanting(shares, {g: own.total() for g, own in filled.items()}, size)
        profile = PROFILES[genre]
        voice = most_wanting(profile["voices"], filled[genre], size)
        filled[genre][voice] += size
        first, last = profile["years"]
        start = first + int((2014 - first) * rng.random() ** 0.8)
        end = min(last, start + 3 + int(rng.expovariate(1 / 9)))
        artists.append({"name": writing.name_artist(rng, genre, voice, used), "genre": genre,
                        "voice": voice, "moods": draw_several(rng, profile["moods"], 3),
                        "themes": draw_several(rng, profile["themes"], 3),
                        "instruments": draw_several(rng, profile["instruments"], 3),
                        "years": (start, end), "fame": rng.lognormvariate(0, 0.9),
                        "albums": make_albums(rng, size, start, end)})
    release_late(rng, artists, round(LATE_SHARE * n_tracks))
    return artists


def make_albums(rng, size, start, end):
    """One to four albums over the active years, oldest first."""
    n_albums = min(rng.randint(1, 4), max(1, size // 3))
    cuts = sorted(rng.sample(range(1, size), n_albums - 1))
    dates = sorted(date(rng.randint(start, end), rng.randint(1, 12), rng.randint(1, 28))
                   for _ in range(n_albums))
    dates = [min(day, date(2017, 6, day.day)) for day in dates]  # later ones: `release_late`
    return [{"size": b - a, "date": day}
            for (a, b), day in zip(pairwise([0, *cuts, size]), dates, strict=True)]


def release_late(rng, artists, n_late):
    """Move last albums, of n_late tracks in all, to the days before the test date.

    The albums of artists that are still active come first.
    """
    shuffled = rng.sample(artists, len(artists))
    for artist in sorted(shuffled, key=lambda artist: artist["years"][1] < 2010):
        album = artist["albums"][-1]
        day = rng.choice(LATE_DATES)
        moved = min(n_late, album["size"])
        if moved == album["size"]:
            album["date"] = day
        elif moved:  # only a part of it: a single or an EP
            album["size"] -= moved
            artist["albums"].append({"size": moved, "date": day})
        n_late -= moved


# ---------------------------------------------------------------- the truth of a track

def draw_moods(rng, genre, artist):
    """One or two moods that go together."""
    weights = PROFILES[genre]["moods"]
    first = draw(rng, weights, artist["moods"])
    others = {m: w for m, w in weights.items() if m != first and m not in MOODS[first]["clashes"]}
    return [first] if rng.random() < 0.45 else [first, draw(rng, others, artist["moods"])]


def draw_vocal(rng, voice):
    """The artist's voice, but for an instrumental or a guest singer now and then."""
    if rng.random() >= (0.1 if voice == "instrumental" else 0.05):
        return voice
    guests = ("female vocals", "male vocals", "choir")
    return rng.choice(guests) if voice == "instrumental" else "instrumental"


def draw_truth(rng, artist, year):
    """What is true of a track; all else about it is written from this."""
    genre = artist["genre"]
    neighbour = PROFILES[genre]["neighbour"]  # which the artist visits at times
    if rng.random() < 0.06 and year >= PROFILES[neighbour]["years"][0]:
        genre = neighbour
    profile = PROFILES[genre]
    moods = draw_moods(rng, genre, artist)
    themes = profile["themes"] if rng.random() < 0.9 else dict.fromkeys(LEXICON["theme"], 1)

    # how the moods move energy, tempo and mode within the genre's ranges
    lift = sum(MOODS[mood]["energy"] for mood in moods) / len(moods)
    position = rng.random()  # within the genre's range of energy
    low, high = profile["energy"]
    slowest, fastest = profile["tempo"]
    pace = clip(0.25 * position + 0.55 * rng.random() + 0.1 + 1.2 * lift)
    minor = profile["minor"] + sum(MOODS[mood]["minor"] for mood in moods) / len(moods)
    return {"genre": genre, "moods": moods, "theme": draw(rng, themes, artist["themes"]),
            "instruments": draw_several(rng, profile["instruments"], rng.choice((2, 3, 3, 4)),
                                        artist["instruments"]),
            "vocal": draw_vocal(rng, artist["voice"]),
            "tempo": round(slowest + (fastest - slowest) * pace, 1),
            "tonic": rng.choices(range(12), NOTE_WEIGHTS)[0],
            "mode": "minor" if rng.random() < clip(minor, 0.05, 0.97) else "major",
            "energy": round(clip(low + (high - low) * position + lift), 2), "year": year}


# ---------------------------------------------------------------- tracks

def make_song(rng, artist, released, truth, title, fill):
    """A line of tracks.jsonl, with "audio" (for render.py) and "appeal" (popularity, unranked)."""
    track_id = "".join(rng.choices(BASE62, k=22))  # never the same twice
    minutes = PROFILES[truth["genre"]]["minutes"] * rng.lognormvariate(0, 0.2)
    played = ("genre", "tempo", "tonic", "mode", "instruments", "vocal", "energy")
    return {"track_id": track_id, "title": title, "artist": artist["name"], "album": None,
            "release_date": released.isoformat(), "duration_ms": round(60_000 * minutes),
            "popularity": 0, "tags": writing.write_tags(rng, truth),
            "lyrics": writing.write_lyrics(rng, truth, title, fill),
            "caption": writing.write_caption(rng, truth), "tempo": truth["tempo"],
            "key": f"{NOTES[truth['tonic']]} {truth['mode']}",
            "audio_path": f"audio/{track_id}.flac",
            "audio": {field: truth[field] for field in played} | {"seed": rng.getrandbits(31)},
            "appeal": artist["fame"] * rng.lognormvariate(0, 0.8)}


def make_tracks(artists, seed):
    """(tracks, truths) in shuffled order; row i of one belongs to row i of the other."""
    rng = random.Random(f"{seed}/tracks")
    rows, titles = [], set()
    for artist in artists:
        own, own_albums = set(), set()
        for album in artist["albums"]:
            truths = [draw_truth(rng, artist, album["date"].year) for _ in range(album["size"])]
            songs = [(truth, *writing.name_song(rng, truth, titles, own)) for truth in truths]
            # new fillers until the artist has no album of that name
            while (album_title := writing.name_album(rng, artist, songs)) in own_albums:
                songs = [(truth, title, writing.draw_fillers(rng, truth))
                         for truth, title, _ in songs]
            own_albums.add(album_title)
            for truth, title, fill in songs:
                track = make_song(rng, artist, album["date"], truth, title, fill)
                rows.append((track | {"album": album_title}, truth))

    # popularity from the rank
    rows.sort(key=lambda row: -row[0].pop("appeal"))
    for rank, (track, _) in enumerate(rows, 1):
        # Zipf-Mandelbrot: 100, then 70 at rank 10, 25 at 100, 3 at 1,000
        track["popularity"] = max(0, round(108 * (0.9 + 0.1 * rank) ** -0.5 - 8))
    rng.shuffle(rows)
    return [track for track, _ in rows], [truth for _, truth in rows]


# ---------------------------------------------------------------- playlists

def make_columns(tracks, truths, artists):
    """What a playlist can go by: {column: array with one row per track}.

    "kin", (artists, N), says how near each artist is to each track's.
    """
    columns = {kind: {concept: np.array([concept in truth[field] for truth in truths])
                      for concept in LEXICON[kind]}
               for kind, field in (("mood", "moods"), ("instrument", "instruments"))}
    columns |= {kind: {concept: np.array([concept == truth[kind] for truth in truths])
                       for concept in LEXICON[kind]} for kind in ("genre", "theme")}
    names = [artist["name"] for artist in artists]
    artist = np.array([names.index(track["artist"]) for track in tracks])
    kin = np.array([[kinship(one, other) for other in artists] for one in artists])
    released = [date.fromisoformat(track["release_date"]).toordinal() for track in tracks]
    popularity = np.array([track["popularity"] for track in tracks])
    return columns | {"artist": artist, "kin": kin[:, artist], "released": np.array(released),
                      "tempo": np.array([truth["tempo"] for truth in truths]),
                      "decade": np.array([truth["year"] // 10 for truth in truths]),
                      "log_popularity": np.log(1.0 + popularity)}


def kinship(artist, other):
    """How near two artists are, 0 to 1: genre, voice, years, moods and instruments."""
    years = min(artist["years"][1], other["years"][1]) - max(artist["years"][0], other["years"][0])
    shared = len({*artist["moods"], *artist["instruments"]}
                 & {*other["moods"], *other["instruments"]})
    return (4 * (artist["genre"] == other["genre"]) + (artist["voice"] == other["voice"])
            + (years > 0) + shared) / 12


def draw_theme(rng, columns, tracks, truths, row):
    """The hidden theme of a playlist, taken from the track in `row`.

    Returns: what the title may speak of; how well each track fits, (N,) float.
    """
    truth, kind = truths[row], draw(rng, KINDS)
    mood, instrument = rng.choice(truth["moods"]), rng.choice(truth["instruments"])
    about = {"kind": kind, "mood": mood, "instrument": instrument, "genre": truth["genre"],
             "theme": truth["theme"], "decade": truth["year"] // 10,
             "artist": tracks[row]["artist"]}

    # the owner's taste, where the theme leaves it open
    liked = {truth["genre"], *rng.sample(list(PROFILES), 3)}
    taste = np.any([columns["genre"][genre] for genre in sorted(liked)], axis=0)
    same_genre = columns["genre"][truth["genre"]]
    if kind == "genre+mood":
        match = 3.0 * same_genre + 3.0 * columns["mood"][mood]
    elif kind == "decade+genre":
        match = 3.0 * same_genre + 3.0 * (columns["decade"] == about["decade"])
    elif kind == "theme":
        match = 5.0 * columns["theme"][truth["theme"]] + 1.5 * taste
    elif kind == "instrument":
        match = 3.5 * columns["instrument"][instrument] + 2.5 * columns["mood"][mood] + 1.0 * taste
    elif kind == "artist":
        artist = columns["artist"][row]
        match = 6.0 * columns["kin"][artist] + 2.5 * (columns["artist"] == artist)
    else:
        about["activity"] = rng.choice(list(WORDS["playlists"]["activities"]))
        activity = WORDS["playlists"]["activities"][about["activity"]]
        low, high = activity["tempo"]
        in_mood = np.any([columns["mood"][mood] for mood in activity["moods"]], axis=0)
        in_tempo = (columns["tempo"] >= low) & (columns["tempo"] <= high)
        match = 3.0 * in_mood + 3.0 * in_tempo + 1.5 * taste
    return about, match


def pick_tracks(rng, noise, columns, match, modified, length):
    """Rows of a playlist: a draw without replacement (Gumbel top-k).

    The log odds: the match (but for a tenth of the tracks), and the pull of popularity and of fresh
    releases.
    """
    age = modified.toordinal() - columns["released"]  # days
    pull = POPULARITY_PULL * columns["log_popularity"] + FRESH_PULL * (age <= 14)
    pull = np.where(age >= 0, pull, -np.inf)  # not out yet
    n_off = sum(rng.random() < OFF_TOPIC for _ in range(length))
    gumbel = -np.log(-np.log(noise.random((2, len(age)))))  # (2, N)

    # first the tracks on the theme, then those off it, each track once
    rows = list(np.argsort(-(pull + match + gumbel[0]), kind="stable")[:length - n_off])
    pull[rows] = -np.inf
    rows += list(np.argsort(-(pull + gumbel[1]), kind="stable")[:n_off])
    rng.shuffle(rows)
    return rows


def make_playlists(tracks, truths, artists, n_playlists, seed):
    """Playlists with their dates and splits, in shuffled order."""
    rng, noise = random.Random(f"{seed}/playlists"), np.random.default_rng([seed, 1])
    columns, playlists = make_columns(tracks, truths, artists), []
    n_held_out = max(2, round(0.024 * n_playlists))
    n_train = n_playlists - 2 * n_held_out
    for split in ["test"] * n_held_out + ["valid"] * n_held_out + ["train"] * n_train:
        # more training playlists are late than early, as in MPD
        days = int((LAST_TRAIN_DATE - FIRST_DATE).days * rng.random() ** 0.45)
        modified = {"test": TEST_DATE, "valid": VALID_DATE,
                    "train": FIRST_DATE + timedelta(days=days)}[split]
        out = np.flatnonzero(columns["released"] <= modified.toordinal())
        about, match = draw_theme(rng, columns, tracks, truths, rng.choice(out))
        length = min(40, len(tracks) // 3, 8 + int(rng.gammavariate(1.3, 8.2)))
        rows = pick_tracks(rng, noise, columns, match, modified, length)
        playlists.append({"playlist_id": "".join(rng.choices(BASE62, k=12)),
                          "title": writing.name_playlist(rng, about),
                          "modified_at": modified.isoformat(), "split": split,
                          "track_ids": [tracks[row]["track_id"] for row in rows]})
    rng.shuffle(playlists)
    return playlists


def make_catalogue(n_tracks=1000, n_playlists=2500, seed=0):
    """The whole fictional catalogue, in about 2 s.

    n_tracks: 40 or more. About 8% are out too late for any training playlist (cold).
    n_playlists: 20 or more. 2.4% of them (at least 2) are test playlists, all of the last date; as
        many are valid, of the date before.
    Returns: tracks, dicts with the fields of tracks.jsonl and "audio" for `render_track`; and
        playlists, dicts with the fields of playlists.jsonl.
    """
    artists = make_artists(random.Random(f"{seed}/artists"), n_tracks)
    tracks, truths = make_tracks(artists, seed)
    return tracks, make_playlists(tracks, truths, artists, n_playlists, seed)
