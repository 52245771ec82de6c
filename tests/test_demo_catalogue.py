"""The demo catalogue: same seed same bytes, form, words that fit the truth, splits, cold tracks."""

import hashlib
import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from datetime import date
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from common.data import TRACK_FIELDS
from steps.prepare_data.demo import catalogue, writing
from steps.prepare_data.demo.catalogue import make_catalogue

ROOT = Path(__file__).resolve().parent.parent
LEXICON = json.loads((ROOT / "common" / "lexicon.json").read_text(encoding="utf-8"))
MINI = {"n_tracks": 60, "n_playlists": 80}


@pytest.fixture(scope="module")
def full():
    return make_catalogue()


@pytest.fixture(scope="module")
def truths():
    """Tracks of the full catalogue with the hidden truth of each."""
    tracks, truths = catalogue.make_tracks(catalogue.make_artists(random.Random("0/artists"), 1000),
                                           0)
    return list(zip(tracks, truths, strict=True))


def digest(catalogue):
    return hashlib.sha256(json.dumps(catalogue, ensure_ascii=False).encode()).hexdigest()


def share(flags):
    flags = list(flags)
    return sum(flags) / len(flags)


def cold_ids(playlists, tracks):
    in_train = {t for p in playlists if p["split"] == "train" for t in p["track_ids"]}
    return {t["track_id"] for t in tracks} - in_train


# ---------------------------------------------------------------- the same bytes

def test_same_seed_same_bytes_under_any_hash_seed():
    code = ("import hashlib, json; from steps.prepare_data.demo.catalogue import make_catalogue; "
            "print(hashlib.sha256(json.dumps("
            "make_catalogue(60, 80, seed=3), ensure_ascii=False).encode()).hexdigest())")
    runs = [subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                           check=True,
                           env=os.environ | {"PYTHONHASHSEED": hash_seed}).stdout.strip()
            for hash_seed in ("1", "2")]
    assert runs == [digest(make_catalogue(**MINI, seed=3))] * 2


def test_another_seed_is_another_catalogue():
    tracks, playlists = make_catalogue(**MINI, seed=0)
    others, other_playlists = make_catalogue(**MINI, seed=1)
    assert not {t["track_id"] for t in tracks} & {t["track_id"] for t in others}
    assert not {p["playlist_id"] for p in playlists} & {p["playlist_id"] for p in other_playlists}


# ---------------------------------------------------------------- form

@pytest.mark.parametrize("size", [{}, MINI, {"n_tracks": 40, "n_playlists": 20}])
def test_schema(size):
    tracks, playlists = make_catalogue(**size)
    assert len(tracks) == size.get("n_tracks", 1000)
    assert len(playlists) == size.get("n_playlists", 2500)
    ids = [t["track_id"] for t in tracks]
    assert len(set(ids)) == len(ids) and all(re.fullmatch("[0-9A-Za-z]{22}", i) for i in ids)
    for t in tracks:
        assert set(t) == {*TRACK_FIELDS, "audio"}
        assert all(isinstance(t[f], str) and t[f] for f in ("title", "artist", "album", "caption"))
        assert 1968 <= date.fromisoformat(t["release_date"]).year <= 2017
        assert isinstance(t["duration_ms"], int) and 60_000 < t["duration_ms"] < 1_200_000
        assert isinstance(t["popularity"], int) and 0 <= t["popularity"] <= 100
        assert t["audio_path"] == f"audio/{t['track_id']}.flac"
        assert 3 <= len(t["tags"]) <= 8 and len(set(t["tags"])) == len(t["tags"])
        audio = t["audio"]
        assert set(audio) == {"genre", "tempo", "tonic", "mode", "instruments", "vocal", "energy",
                              "seed"}
        assert audio["genre"] in LEXICON["genre"] and audio["vocal"] in LEXICON["vocal"]
        assert 2 <= len(set(audio["instruments"])) == len(audio["instruments"]) <= 4
        assert set(audio["instruments"]) <= set(LEXICON["instrument"])
        assert 0 <= audio["energy"] <= 1 and isinstance(audio["seed"], int)
        assert (t["lyrics"] is None) == (audio["vocal"] == "instrumental")
        if t["lyrics"]:
            assert 12 <= sum(bool(line) for line in t["lyrics"].split("\n")) <= 20
        for text in (t["title"], t["album"], t["artist"], t["caption"], t["lyrics"] or ""):
            assert "{" not in text and "}" not in text
    assert len({p["playlist_id"] for p in playlists}) == len(playlists)
    longest = 40 if len(tracks) > 100 else len(tracks) // 3
    for p in playlists:
        assert set(p) == {"playlist_id", "title", "modified_at", "split", "track_ids"}
        assert p["title"]
        assert 8 <= len(p["track_ids"]) <= longest
        assert len(set(p["track_ids"])) == len(p["track_ids"])
        assert set(p["track_ids"]) <= set(ids)


def test_words_cover_every_concept():
    words = writing.WORDS
    for kind, tables in {
            "genre": [writing.PROFILES, words["names"]["genres"], words["titles"]["genre"],
                      words["lyrics"]["genre"],
                      words["lyrics"]["adlibs"], words["captions"]["piece"]],
            "mood": [words["titles"]["mood"], words["titles"]["adjectives"],
                     words["lyrics"]["mood"],
                     words["captions"]["mood"], writing.MOODS],
            "theme": [words["titles"]["theme"], words["titles"]["nouns"], words["lyrics"]["theme"],
                      words["playlists"]["theme"]],
            "instrument": [words["captions"]["instrument"]],
            "vocal": [words["captions"]["vocal"]]}.items():
        assert all(set(table) == set(LEXICON[kind]) for table in tables), kind
    for mood, character in writing.MOODS.items():  # a clash is mutual
        assert all(mood in writing.MOODS[other]["clashes"] for other in character["clashes"])
    for profile in writing.PROFILES.values():
        assert profile["neighbour"] in LEXICON["genre"]
        for field, kind in (("voices", "vocal"), ("instruments", "instrument"), ("moods", "mood"),
                            ("themes", "theme")):
            assert set(profile[field]) <= set(LEXICON[kind])


# ---------------------------------------------------------------- words and sound fit the truth

def test_audio_key_and_tempo(truths):
    notes = "C C# D D# E F F# G G# A A# B".split()
    for track, truth in truths:
        assert track["key"] == f"{notes[track['audio']['tonic']]} {track['audio']['mode']}"
        assert track["tempo"] == track["audio"]["tempo"] == round(track["tempo"], 1)
        slowest, fastest = writing.PROFILES[truth["genre"]]["tempo"]
        assert slowest <= track["tempo"] <= fastest
    pace = {"calm": [], "energetic": []}
    for track, truth in truths:
        slowest, fastest = writing.PROFILES[truth["genre"]]["tempo"]
        for mood in set(truth["moods"]) & set(pace):
            pace[mood].append((track["tempo"] - slowest) / (fastest - slowest))
    assert np.mean(pace["energetic"]) > np.mean(pace["calm"]) + 0.2
    for mood, low, high in (("melancholic", 0.6, 1), ("happy", 0, 0.4)):
        assert low < share(u["mode"] == "minor" for _, u in truths if mood in u["moods"]) < high


def test_tags_follow_the_truth_but_for_the_noise(truths):
    wrong, total = 0, 0
    for track, truth in truths:
        true = [*LEXICON["genre"][truth["genre"]]["tags"],
                *LEXICON["vocal"][truth["vocal"]]["tags"],
                f"{track['release_date'][2]}0s"]
        for mood in truth["moods"]:
            true += LEXICON["mood"][mood]["tags"]
        for instrument in truth["instruments"]:
            true += LEXICON["instrument"][instrument]["tags"]
        n_wrong = sum(tag not in true for tag in track["tags"])
        assert len(track["tags"]) - n_wrong >= 2
        wrong, total = wrong + n_wrong, total + len(track["tags"])
    assert 0.06 < wrong / total < 0.10

    def tagged(kind, concept_of):
        return share(bool(set(t["tags"]) & set(LEXICON[kind][concept_of(u)]["tags"]))
                     for t, u in truths)

    assert 0.88 < tagged("genre", lambda u: u["genre"]) < 0.97
    assert 0.75 < tagged("mood", lambda u: u["moods"][0]) < 0.90
    assert 0.55 < tagged("vocal", lambda u: u["vocal"]) < 0.72
    assert 0.35 < share(f"{t['release_date'][2]}0s" in t["tags"] for t, _ in truths) < 0.45


def test_lyrics_come_from_the_theme(truths):
    vocal = [(t, u) for t, u in truths if t["lyrics"]]
    assert 0.10 < 1 - len(vocal) / len(truths) < 0.20
    hits = Counter()
    for track, truth in vocal:
        words = set(re.findall("[a-z]+", track["lyrics"].lower()))
        counts = {theme: len(words & set(LEXICON["theme"][theme]["words"]))
                  for theme in LEXICON["theme"]}
        hits["named"] += counts[truth["theme"]] >= 3
        hits["most"] += counts[truth["theme"]] == max(counts.values())
    assert hits["named"] > 0.9 * len(vocal) and hits["most"] > 0.9 * len(vocal)
    assert len({t["lyrics"] for t, _ in vocal}) == len(vocal)
    quiet = [u["vocal"] == "instrumental" for _, u in truths
             if u["genre"] in ("ambient", "modern classical", "techno")]
    assert share(quiet) > 0.5


def test_captions_say_what_is_heard(truths):
    words = writing.WORDS["captions"]
    for track, truth in truths:
        caption = track["caption"].lower()
        assert f"{truth['mode']} key" in caption
        assert any(phrase in caption for phrase in words["piece"][truth["genre"]])
        assert all(any(phrase in caption for phrase in words["mood"][mood])
                   for mood in truth["moods"])
        named = [any(phrase in caption for phrase in words["instrument"][i])
                 for i in truth["instruments"]]
        assert sum(named) >= 2
        assert not re.search(r"\ba [aeio]", caption) and not re.search(r"\ban [^aeiou]", caption)


@pytest.mark.parametrize("tempo, phrases",
                         [(60, ("very slow", "drawn-out")), (80, ("slow", "laid-back")),
                                            (100, ("mid-tempo", "moderately paced")),
                                            (120, ("fast", "brisk", "up-tempo")),
                          (170, ("very fast", "breakneck"))])
def test_caption_tempo(tempo, phrases):
    truth = {"genre": "jazz", "moods": ["dark"], "instruments": ["piano", "bass"], "vocal": "choir",
             "mode": "minor",
             "tempo": tempo}
    assert any(phrase in writing.write_caption(random.Random(1), truth).lower()
               for phrase in phrases)


# ---------------------------------------------------------------- artists, albums, titles

def test_artists_and_albums(full):
    tracks, _ = full
    by_artist = {}
    for t in tracks:
        by_artist.setdefault(t["artist"], []).append(t)
    assert len(by_artist) >= 110
    assert all(3 <= len(own) <= 15 for own in by_artist.values())
    assert not any(re.search(r"\d", name) for name in by_artist)
    for own in by_artist.values():
        assert 1 <= len({t["album"] for t in own}) <= 5  # four, and a late single
        assert len({(t["album"], t["release_date"]) for t in own}) == len({t["album"] for t in own})
        assert len({t["title"] for t in own}) == len(own)
    assert 0.97 < len({t["title"] for t in tracks}) / len(tracks) < 1
    # the order of the rows is not by artist
    assert share(a["artist"] == b["artist"] for a, b in pairwise(tracks)) < 0.05


def test_solo_names_fit_the_voice():
    first = writing.WORDS["names"]["first"]
    for seed in range(50):
        name, words = writing.invent_name(random.Random(seed), "country", "female vocals")
        assert not set(words) & set(first["male"]), name


def test_title_as_sung():
    fill = {"name": "Ida", "name2": "Theo", "town": "Quill Lake", "month": "May", "day": "Monday",
            "key": "G# Minor"}
    assert writing.as_sung("Under the Pillow", fill) == "under the pillow"
    assert writing.as_sung("Ida's Boat / The Tide", fill) == "Ida's boat, the tide"
    assert writing.as_sung("Snow on Quill Lake (Club Mix)", fill) == "snow on Quill Lake"
    assert writing.as_sung("Nocturne in G# Minor", fill) == "nocturne in G# minor"


def test_popularity_has_a_long_tail(full):
    tracks, playlists = full
    values = sorted((t["popularity"] for t in tracks), reverse=True)
    assert values[0] == 100 and values[len(values) // 2] < 10
    plays = Counter(i for p in playlists for i in p["track_ids"])
    order = sorted(tracks, key=lambda t: -t["popularity"])
    top, rest = (sum(plays[t["track_id"]] for t in part) / len(part)
                 for part in (order[:100], order[500:]))
    assert top > 2 * rest


# ---------------------------------------------------------------- playlists

@pytest.mark.parametrize("size, n_held_out",
                         [({}, 60), (MINI, 2), ({"n_tracks": 60, "n_playlists": 500}, 12)])
def test_splits_and_dates(size, n_held_out):
    _, playlists = make_catalogue(**size)
    dates = {s: [p["modified_at"] for p in playlists if p["split"] == s]
             for s in ("train", "valid", "test")}
    assert dates["test"] == ["2017-10-31"] * n_held_out
    assert dates["valid"] == ["2017-10-30"] * n_held_out
    assert len(dates["train"]) == len(playlists) - 2 * n_held_out
    assert "2015-01-01" <= min(dates["train"]) and max(dates["train"]) < "2017-10-30"


def test_no_track_before_its_release(full):
    tracks, playlists = full
    released = {t["track_id"]: t["release_date"] for t in tracks}
    assert all(released[i] <= p["modified_at"] for p in playlists for i in p["track_ids"])


@pytest.mark.parametrize("seed", [0, 1])
def test_cold_and_warm(seed):
    tracks, playlists = make_catalogue(seed=seed)
    late = {t["track_id"] for t in tracks if t["release_date"] > "2017-10-26"}
    cold = cold_ids(playlists, tracks)
    assert len(late) == 80 and late <= cold
    assert len(cold - late) <= 5  # nearly every warm track is in a train playlist
    for split in ("valid", "test"):
        entries = [i for p in playlists if p["split"] == split for i in p["track_ids"]]
        assert 0.08 <= share(i in late for i in entries) <= 0.15
        assert sum(n >= 2 for i, n in Counter(entries).items() if i in late) >= 15


def test_mini_has_cold_tracks():
    tracks, playlists = make_catalogue(**MINI)
    cold = cold_ids(playlists, tracks)
    assert sum(t["release_date"] > "2017-10-26" for t in tracks) == 5
    assert any(i in cold for p in playlists if p["split"] == "test" for i in p["track_ids"])


def test_lengths_and_themes(full):
    tracks, playlists = full
    assert 16 < sum(len(p["track_ids"]) for p in playlists) / len(playlists) < 20
    genre = {t["track_id"]: t["audio"]["genre"] for t in tracks}
    counts = Counter(t["audio"]["genre"] for t in tracks)
    by_chance = sum((n / len(tracks)) ** 2 for n in counts.values())
    same = [genre[a] == genre[b] for p in playlists
            for a, b in pairwise(p["track_ids"])]
    # neighbours share a genre far more often than two random tracks
    assert share(same) > 3 * by_chance
    # a playlist named after an artist holds many of that artist's tracks
    artist = {t["track_id"]: t["artist"] for t in tracks}
    discography = Counter(artist.values())
    held = []
    for p in playlists:
        for name in discography:
            if p["title"].lower() in (f"mostly {name}".lower(), f"best of {name}".lower()):
                ours = sum(artist[i] == name for i in p["track_ids"])
                held.append(ours / min(discography[name], len(p["track_ids"])))
    assert len(held) > 50 and sum(held) / len(held) > 0.5
