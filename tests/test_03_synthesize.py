"""03_synthesize.py: what every dialogue must be, and resume.

Nothing of the test may leak into training.
"""

import hashlib
import importlib
import json
import os
import re
import subprocess
import sys
from itertools import islice, pairwise

import numpy as np
import pytest
from conftest import REAL, ROOT

from common import data
from steps.synthesize import audit_words, simulate, templates
from steps.synthesize.attributes import LEXICON, agreeing, pairs, track_attributes
from steps.synthesize.guards import problems

synthesize = importlib.import_module("03_synthesize")
REAL_TRACKS = REAL / "track_annotations.jsonl"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """60 tracks with lyrics, tempo and key; 40 playlists; t55 to t59 only in test playlists."""
    path = tmp_path_factory.mktemp("synth")
    rng = np.random.default_rng(0)
    moods, genres, themes = (list(LEXICON[kind]) for kind in ("mood", "genre", "theme"))
    tracks = []
    for i in range(60):
        words = " ".join(LEXICON["theme"][themes[i % 6]]["words"][:5])
        tracks.append({"track_id": f"t{i}", "title": f"Title {i}", "artist": f"Band {i % 9}",
                       "album": None, "release_date": f"{1965 + i % 50}-01-01",
                       "duration_ms": None, "popularity": None,
                       "tags": [moods[i % 10], genres[i % 5], "piano" if i % 2 else "strings"],
                       "lyrics": words if i % 4 else None,
                       "caption": "a woman sings, female vocals" if i % 3 else None,
                       "tempo": 60.0 + 2 * i, "key": "C minor", "audio_path": None})
    data.write_jsonl(path / "tracks.jsonl", tracks)
    splits = ["train"] * 30 + ["valid"] * 5 + ["test"] * 5
    data.write_jsonl(path / "playlists.jsonl", [
        {"playlist_id": f"p{i}", "title": f"mix {i}", "modified_at": None, "split": split,
         "track_ids": [f"t{j}" for j in rng.permutation(60 if split == "test" else 55)[:14]]}
        for i, split in enumerate(splits)])
    done = run_03(path)
    assert done.returncode == 0, done.stderr
    return path


def run_03(path, *flags):
    return subprocess.run([sys.executable, "03_synthesize.py", "simulate", "--data-dir", str(path),
                           "--n-train", "80", "--n-valid", "20", "--n-test", "40", *flags],
                          cwd=ROOT, capture_output=True, text=True, timeout=120)


def dialogues(folder, split):
    return [json.loads(line)
            for line in open(folder / f"dialogues_{split}.jsonl", encoding="utf-8")]


def test_every_dialogue_keeps_the_rules(folder):
    """The rules of `problems`, computed here anew from the playlists."""
    artist = {t["track_id"]: t["artist"] for t in map(json.loads, open(folder / "tracks.jsonl"))}
    playlists = {p["playlist_id"]: p for p in map(json.loads, open(folder / "playlists.jsonl"))}
    for split, n in (("train", 80), ("valid", 20), ("test", 40)):
        rows = dialogues(folder, split)
        assert len(rows) == n
        for d in rows:
            playlist = playlists[d["playlist_id"]]
            assert playlist["split"] == split
            artists = {artist[t] for t in playlist["track_ids"]}
            turns = d["turns"]
            assert 4 <= len(turns) <= 14
            assert len({t["music"] for t in turns}) == len(turns)
            for t, after in pairwise([*turns, None]):
                assert t["query"] and t["response"] and "{" not in t["query"] + t["response"]
                assert t["targets"] == [t["music"]]
                if t["rejected"]:
                    assert t["music"] not in playlist["track_ids"] and artist[t["music"]] in artists
                    assert after["kind"] == "after_rejection" and not after["rejected"]
                else:
                    assert t["music"] in playlist["track_ids"]
            assert sum(not t["rejected"] for t in turns) * 2 >= d["meta"]["sampled"]


def test_cold_tracks_are_never_met_in_training(folder):
    played = {t["music"] for d in dialogues(folder, "train") for t in d["turns"]}
    assert not played & {f"t{i}" for i in range(55, 60)}
    played = {t["music"] for d in dialogues(folder, "test") for t in d["turns"]}
    assert played & {f"t{i}" for i in range(55, 60)}


def test_unseen_templates_are_unseen(folder):
    """A test query's template occurs among the training queries only if it is marked as seen."""
    def pattern(template):
        return re.compile("(?:^|[.!?] )" + re.sub(r"\\{\w+\\}", ".+", re.escape(template)) + "$",
                          re.IGNORECASE)

    for_train = {t for both in templates.TEMPLATES.values() for t in both["train"]}
    for_test = {t for both in templates.TEMPLATES.values() for t in both.get("test", ())}
    only_test = [pattern(template) for template in for_test]
    assert len(only_test) > 80 and not for_train & for_test
    said = [re.sub(r"{\w+}", "one with it", template) for template in for_train]
    assert not [(sentence, p.pattern) for sentence in said for p in only_test if p.search(sentence)]
    turns = [t for d in dialogues(folder, "test") for t in d["turns"]]
    assert 0.5 < np.mean([t["template"] == "unseen" for t in turns]) < 0.7
    assert all(any(p.search(t["query"]) for p in only_test) for t in turns
               if t["template"] == "unseen")
    train = [t["query"] for d in dialogues(folder, "train") for t in d["turns"]]
    assert not [q for q in train if any(p.search(q) for p in only_test)]
    assert all(t["template"] == "seen" for split in ("train", "valid")
               for d in dialogues(folder, split) for t in d["turns"])


def test_what_is_said_is_true(folder):
    """"too fast", "slower", "older" and the like hold for the tracks they compare."""
    tracks = {t["track_id"]: t for t in map(json.loads, open(folder / "tracks.jsonl"))}
    checked = 0
    for d in dialogues(folder, "train"):
        for t, after in pairwise(d["turns"]):
            a, b = tracks[t["music"]]["tempo"], tracks[after["music"]]["tempo"]
            if after["kind"] in ("relative", "after_rejection"):
                words = {"slower": b < a, "faster": b > a, "too fast": b < a, "too slow": b > a}
                for word, holds in words.items():
                    if word in after["query"]:
                        assert holds, (after["query"], a, b)
                        checked += 1
    assert checked > 10


def test_requests_hold_for_what_is_played(folder):
    """Each fact of a description is true of the track.

    Of a track that is turned down, it is true of that and of the track that follows.
    """
    tracks = {t["track_id"]: t for t in map(json.loads, open(folder / "tracks.jsonl"))}
    phrases = {phrase: [fact for fact in facts if fact[0] != "name"]
               for phrase, facts in audit_words.fact_phrases(tracks.values()).items()}
    phrases = {phrase: facts for phrase, facts in phrases.items() if facts}
    true = {i: set(pairs(track_attributes(t))) for i, t in tracks.items()}
    praise = re.compile(r"^(Nice, especially|I love|I enjoy|I'm a big fan of|I'm into)[^.!]*[.!] ")
    checked = {False: 0, True: 0}
    for d in dialogues(folder, "train"):
        for t, after in pairwise([*d["turns"], None]):
            if t["kind"] in ("tags", "lyrics", "audio", "metadata", "redirect"):
                said = re.sub("\".*\"", "", praise.sub("", t["query"]))
                for facts in audit_words.stated(said, phrases):
                    for track_id in [t["music"], after["music"]] if t["rejected"] else [t["music"]]:
                        assert not true[track_id].isdisjoint(facts), (t["query"], facts)
                    checked[t["rejected"]] += 1
    assert checked[False] > 500 and checked[True] > 20


def test_more_of_this_brings_the_like(folder):
    """After "more like this" the genre stays; after "something else" genre and mood change."""
    attributes = {t["track_id"]: track_attributes(t)
                  for t in map(json.loads, open(folder / "tracks.jsonl"))}
    counts = dict.fromkeys(("more", "redirect"), 0)
    for d in dialogues(folder, "train"):
        for before, t in pairwise(d["turns"]):
            if t["kind"] in counts:
                a, b = attributes[before["music"]], attributes[t["music"]]
                assert (t["kind"] == "more") == bool(set(a["genre"]) & set(b["genre"]))
                counts[t["kind"]] += 1
    assert min(counts.values()) > 10, counts


def test_going_back_leads_to_the_like_of_an_earlier_track(folder):
    """What is called up by its artist is one track, and not the last.

    Its genre is that of the track to come, and not that of the last.
    """
    tracks = {t["track_id"]: t for t in map(json.loads, open(folder / "tracks.jsonl"))}
    genres = {i: set(track_attributes(t)["genre"]) for i, t in tracks.items()}
    named = 0
    for d in (d for split in data.SPLITS for d in dialogues(folder, split)):
        for n, turn in enumerate(d["turns"]):
            past = [t["music"] for t in d["turns"][:n] if not t["rejected"]]
            if turn["kind"] == "callback":
                new = genres[turn["music"]] - genres[past[-1]]
                assert [i for i in past[:-1] if genres[i] & new], turn["query"]
                meant = [i for i in past
                         if re.search(rf"by {tracks[i]['artist']}(?!\w)", turn["query"])]
                assert all(genres[i] & genres[turn["music"]] for i in meant), turn["query"]
                assert len(meant) < 2, turn["query"]
                named += len(meant)
    assert named > 5


def test_another_genre_is_said(folder):
    """A request that starts from the track before and leads to another genre names it."""
    attributes = {t["track_id"]: track_attributes(t)
                  for t in map(json.loads, open(folder / "tracks.jsonl"))}
    said = 0
    for d in dialogues(folder, "train"):
        for before, t in pairwise(d["turns"]):
            a, b = attributes[before["music"]]["genre"], attributes[t["music"]]["genre"]
            if t["kind"] == "relative" and not set(a) & set(b):
                assert b[0] in t["query"], t["query"]
                said += 1
    assert said > 20


def test_what_was_turned_down_is_neither_praised_nor_offered(folder):
    """After "I could do without the piano" no answer speaks of the piano.

    No track that is accepted, before or later, has it.
    """
    heard = list(LEXICON["instrument"])
    tracks = [json.loads(line) for line in open(folder / "tracks.jsonl")]
    tracks = [t | {"tags": [*t["tags"][:2], heard[i * i % 14]]} for i, t in enumerate(tracks)]
    attributes = {t["track_id"]: track_attributes(t) for t in tracks}
    pattern = re.compile(
        r"(?:could do without|can't stand|prefer it without) the (\w[\w ]*?)[.:,]")
    found = 0
    for i in range(150):
        turns = synthesize.walk(None, tracks[i % 50:i % 50 + 6], tracks[:i % 50], attributes,
                                "train", np.random.default_rng(i), **simulate.mix_of({}, 1))
        for n, turn in enumerate(turns):
            for disliked in pattern.findall(turn["query"]):
                accepted = [t["music"] for t in turns if not t["rejected"]]
                assert not [i for i in accepted if disliked in attributes[i]["instrument"]]
                assert not [t for t in turns[n:] if disliked in t["response"]]
                found += 1
    assert found > 10


@pytest.mark.parametrize("facts, kept", [
    ([("mood", "happy"), ("mood", "melancholic"), ("tempo", "slow")],
     [("mood", "happy"), ("tempo", "slow")]),
    ([("instrument", "synthesizer"), ("genre", "synthpop"), ("tag", "neon")],
     [("genre", "synthpop")]),
    ([("compared", "slower"), ("mood", "dreamy")], [("compared", "slower"), ("mood", "dreamy")])])
def test_what_can_be_said_in_one_breath(facts, kept):
    assert agreeing(facts) == kept


def test_captions_decide_between_tags():
    """Tags are wrong at times: the voice and the genre that the caption names count.

    Two voices without a caption are none.
    """
    track = {"tags": ["metal", "male vocals", "choir", "sad"], "lyrics": "harbour salt tide boat",
             "caption": None, "tempo": None, "key": None, "release_date": None}
    assert track_attributes(track)["genre"] == ["metal"] and track_attributes(track)["vocal"] == []
    assert track_attributes(track)["theme"] == ["the sea"]
    heard = track_attributes(track | {"caption": "A wistful chamber piece. No voice is heard."})
    assert heard["genre"] == ["modern classical"] and heard["vocal"] == ["instrumental"]
    assert heard["theme"] == [] and heard["mood"] == ["melancholic"]


def test_there_is_a_template_for_all_that_can_be_said():
    """For a change that is an adjective, a phrase, or both, each split has a template.

    A title may come without an artist.
    """
    for diff in ({"diff", "adj"}, {"diff", "with"}, {"diff"}):
        for name, given in (("relative_both", {"same", "kept"}), ("relative_artist_both", set()),
                            ("relative_diff", set()), ("after_rejection", {"reason"})):
            for split in ("train", "test"):
                assert any(templates.SLOTS[template] <= diff | given
                           for template in templates.TEMPLATES[name][split]), (name, split, diff)
    for name, given in (("title", {"title"}), ("praise", set()), ("praise_mild", set()),
                        ("callback", {"then"}), ("callback_diff", {"then", "diff"}),
                        ("response_after_rejection", {"np"}), ("relative_same", {"same", "kept"})):
        for both in templates.TEMPLATES[name].values():
            assert any(templates.SLOTS[template] <= given for template in both), name


def test_no_sentence_twice_in_a_dialogue():
    listener = templates.Listener("train", np.random.default_rng(0), {})
    more = templates.TEMPLATES["more"]["train"]
    assert len({listener.say("more") for _ in more}) == len(more)


@pytest.mark.parametrize("facts, known_genre, accepted", [
    ([("genre", "indie folk"), ("mood", "melancholic"), ("instrument", "piano")], False,
     r"(folk|song|track|tune).* with .*piano"),
    ([("mood", "energetic")], True,
     r"^(an (energetic)|a (lively|high-energy)) one$|^one to (get going|wake up) to$"),
    ([("tag", "sea shanty")], False, r"^sea shanty$|^a sea shanty (song|track|tune)$"),
    ([("instrument", "piano"), ("instrument", "organ"), ("vocal", "choir")], False,
     r"with \w[^,]*, [^,]* and |sung by a choir")])
def test_phrases(facts, known_genre, accepted):
    for seed in range(50):
        phrase = templates.noun_phrase(facts, np.random.default_rng(seed), known_genre)
        assert re.search(accepted, phrase), phrase
        assert not re.search(r"  |\ba [aeiou]|^ | $|, ,|,$", phrase), phrase


def test_an_answer_names_any_tag():
    """Tags that the lexicon does not know have one form only, an "s" at its end or not."""
    said = {templates.noun_phrase([("tag", "chicago blues")], np.random.default_rng(seed),
                                  answer=True) for seed in range(50)}
    assert said == {"chicago blues", "a chicago blues song", "a chicago blues track",
                    "a chicago blues tune"}


def test_attributes_by_hand():
    track = {"tags": ["wistful", "Deep House", "sax", "80s", "vaporwave"],
             "lyrics": "the harbour, the salt and the tide; a boat",
             "caption": "with a choir", "tempo": 70.0, "key": "G# minor", "release_date": "1984",
             "artist": "x", "title": "y"}
    attributes = track_attributes(track)
    assert attributes == {"genre": ["house"], "mood": ["melancholic"], "instrument": ["saxophone"],
                          "vocal": ["choir"], "theme": ["the sea"], "tempo": ["slow"],
                          "mode": ["minor"], "decade": ["80s"], "tag": ["vaporwave"]}


def test_bare_tracks_can_be_asked_for():
    """Only a title and an artist are known, as in the Million Playlist Dataset itself."""
    bare = [{"track_id": f"t{i}", "title": f"Song {i}", "artist": f"Band {i % 3}", "tags": [],
             "lyrics": None, "caption": None, "tempo": None, "key": None, "release_date": None}
            for i in range(6)]
    attributes = {t["track_id"]: track_attributes(t) for t in bare}
    for seed in range(30):
        turns = synthesize.walk(None, bare, [], attributes, "test", np.random.default_rng(seed))
        assert len(turns) == 6 and all(t["query"].strip() and "{" not in t["query"] for t in turns)


@pytest.mark.skipif(not REAL_TRACKS.is_file(),
                    reason=f"no {REAL_TRACKS.name} in {REAL} (TALKPLAY_REAL names another folder)")
def test_real_tags_can_be_spoken():
    """Tags that nobody here chose ("chicago blues"), with tempo, key and year where known."""
    with open(REAL_TRACKS, encoding="utf-8") as f:
        rows = [json.loads(line) for line in islice(f, 4000)]
    tracks = [{"track_id": r["track_id"], "title": f"Song {i}", "artist": f"Band {i // 3}",
               "tags": r.get("tags") or [], "lyrics": None, "caption": None,
               "tempo": r.get("tempo"), "key": r.get("key"),
               "release_date": str(r["year"]) if r.get("year") else None}
              for i, r in enumerate(rows)]
    attributes = {t["track_id"]: track_attributes(t) for t in tracks}
    kinds = set()
    for i in range(0, len(tracks) - 12, 10):
        turns = synthesize.walk(None, tracks[i:i + 8], tracks[i + 8:i + 12], attributes, "test",
                                np.random.default_rng(i))
        assert all(t["query"].strip() and t["response"].strip() for t in turns)
        assert not any("{" in t["query"] + t["response"] for t in turns)
        kinds |= {t["kind"] for t in turns}
    assert {"relative", "callback", "redirect", "more"} <= kinds


@pytest.mark.parametrize("change, message", [
    (lambda d: d["turns"].pop(), "2 turns, not 4 to 14|turns, not"),
    (lambda d: d["turns"][1].update(query=" "), "turn 2 has no query"),
    (lambda d: d["turns"][2].update(music="a"), "played twice"),
    (lambda d: d["turns"][3].update(rejected=True), "not in the negative set"),
    (lambda d: d["turns"][0].update(music="zzz"), "not in the playlist"),
    (lambda d: d["turns"][3].update(rejected=True, music="n"), "no accepted track follows")])
def test_validator_finds_each_fault(change, message):
    turns = [{"query": "q", "music": m, "response": "r", "rejected": False} for m in "abcd"]
    assert problems(turns, list("abcd"), {"n"}, 4, 14) == []
    few = [dict(turn) for turn in turns]
    change({"turns": turns})
    assert re.search(message, "; ".join(problems(turns, list("abcd"), {"n"}, 4, 14)))
    assert "4 of 9 tracks" in problems(few, list("abcdefghi"), set(), 4, 14)[0]


def test_killed_and_resumed_gives_the_same_files(folder, tmp_path):
    for name in ("tracks.jsonl", "playlists.jsonl"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    process = subprocess.Popen(
        [sys.executable, "03_synthesize.py", "simulate", "--data-dir", str(tmp_path),
         "--n-train", "80", "--n-valid", "20", "--n-test", "40"],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)
    part = tmp_path / "dialogues_train.jsonl.part"
    while process.poll() is None and not (part.is_file() and part.stat().st_size > 3000):
        pass
    process.kill()
    process.wait()
    assert part.is_file(), "the run ended before it could be killed"
    with open(part, "ab") as f:
        f.write(b'{"dialogue_id": "half a li')
    assert run_03(tmp_path).returncode == 0
    for name in (f"dialogues_{split}.jsonl" for split in data.SPLITS):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_the_simulator_is_frozen(folder):
    """What version 3 wrote here: the results in docs/ hold for these templates, words and draws."""
    files = [*(folder / f"dialogues_{split}.jsonl" for split in data.SPLITS),
             ROOT / "steps" / "synthesize" / "templates.json", ROOT / "common" / "lexicon.json"]
    found = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
    assert found == "0862f308f1a83b335d84fa6286909a66cc7b4e314c8da70bb12bcc98148710b4"


def kinds_of(folder, **mix):
    """The kinds of 60 simulated dialogues' queries: (of first turns, of later turns), two lists.

    mix: as for simulate.mix_of
    """
    tracks = [json.loads(line) for line in open(folder / "tracks.jsonl")]
    attributes = {t["track_id"]: track_attributes(t) for t in tracks}
    turns = [synthesize.walk(None, tracks[i % 40:i % 40 + 8], tracks[50:], attributes, "train",
                             np.random.default_rng(i), **simulate.mix_of(**mix))
             for i in range(60)]
    return [t[0]["kind"] for t in turns], [turn["kind"] for t in turns for turn in t[1:]]


def test_the_mix(folder):
    """A kind of weight 0 is gone, one of much weight prevails; rejections come and go."""
    first, later = kinds_of(folder, weights={})
    assert "title" in first and {"more", "title", "redirect", "after_rejection"} <= set(later)
    none_first, none_later = kinds_of(folder, weights={"title": 0, "more": 0}, rejection=0)
    assert not {"title", "more", "after_rejection"} & {*none_first, *none_later}
    assert "metadata" in none_first and "relative" in none_later
    all_first, all_later = kinds_of(folder, weights={"title": 1e6}, rejection=0)
    assert set(all_first) == set(all_later) == {"title"}
    _, often = kinds_of(folder, weights={}, rejection=1)
    assert often.count("after_rejection") > 2 * later.count("after_rejection")
    given = {**simulate.LATER, **simulate.OPENING}
    mix = simulate.mix_of({kind: given[kind] for kind in ("title", "redirect")}, 0.12)
    assert mix["opening"] == simulate.OPENING


def test_the_mix_by_argument(folder, tmp_path):
    for name in ("tracks.jsonl", "playlists.jsonl"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    done = run_03(tmp_path, "--mix", "title=20", "relative=0", "--rejections", "0")
    assert done.returncode == 0, done.stderr
    kinds = [t["kind"] for d in dialogues(tmp_path, "train") for t in d["turns"][1:]]
    assert kinds.count("title") > 0.9 * len(kinds)
    assert not {"relative", "after_rejection"} & set(kinds)
    again = run_03(tmp_path, "--mix", "relative=0", "title=20", "--rejections", "0")
    assert "already done" in again.stdout
    other = run_03(tmp_path, "--rejections", "0")
    assert "mix (was {'title': 20.0, 'relative': 0.0}, is {})" in other.stderr


@pytest.mark.parametrize("arguments, message", [
    (["--mix", "tag=2"], "--mix tag=2: KIND=WEIGHT is accepted.*relative"),
    (["--mix", "tags=-1"], "--mix tags=-1: .*0 or more"),
    (["--mix", "tags"], "--mix tags: "), (["--rejections", "2"], "--rejections 2: 0 to 1 is"),
    (["--mix", "tags=0", "lyrics=0", "audio=0", "metadata=0", "title=0"],
     "nothing to ask for in opening queries; one of tags"),
    (["--max-tracks", "11"], "--max-tracks 11: 4 to 10 is accepted")])
def test_mixes_that_are_none(folder, monkeypatch, arguments, message):
    monkeypatch.setattr(sys, "argv",
                        ["03_synthesize.py", "simulate", "--data-dir", str(folder), *arguments])
    with pytest.raises(SystemExit, match=message):
        synthesize.main()


@pytest.mark.parametrize("command, arguments", [
    ("gemini", ["--mix", "tags=1"]), ("audit", ["--mix", "tags=1"]),
    ("simulate", ["--predictions", "talkplay"]), ("simulate", ["--show-prompt"]),
    ("gemini", ["--batch-size", "2"]), ("local", ["--model", "x", "--tries", "2"]),
    ("local", ["--n-train", "3"])])
def test_each_subcommand_has_its_own_flags(command, arguments, monkeypatch, capsys):
    """And local needs --model."""
    monkeypatch.setattr(sys, "argv", ["03_synthesize.py", command, *arguments])
    with pytest.raises(SystemExit):
        synthesize.main()
    err = capsys.readouterr().err
    assert "unrecognized arguments" in err or command == "local" and "required: --model" in err


def test_one_folder_holds_one_set(folder, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["03_synthesize.py", "local", "--data-dir", str(folder),
                                      "--model", "some/model"])
    with pytest.raises(SystemExit, match="has dialogues by simulate; one folder holds one set"):
        synthesize.main()


def test_dialogues_of_others_are_not_overwritten(folder, tmp_path):
    """An adapter's, whose meta names another backend, and any without a record of this script.

    --no-resume changes nothing.
    """
    for name in ("tracks.jsonl", "playlists.jsonl"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    row = dialogues(folder, "test")[0]
    for meta, record, message in (({"backend": "cpcd"}, False, "backend: cpcd"),
                                  ({}, True, "backend: None"),
                                  (row["meta"], False, "03_synthesize.json is missing")):
        data.write_jsonl(tmp_path / "dialogues_test.jsonl", [row | {"meta": meta}])
        data.write_text(tmp_path / "runs" / "03_synthesize.json",
                        (folder / "runs" / "03_synthesize.json").read_text())
        if not record:
            (tmp_path / "runs" / "03_synthesize.json").unlink()
        before = (tmp_path / "dialogues_test.jsonl").read_bytes()
        for flags in ((), ("--no-resume",)):
            refused = run_03(tmp_path, *flags)
            assert refused.returncode == 1 and message in refused.stderr
            assert "is not overwritten. Leave 03 out" in refused.stderr
            assert len(refused.stderr.strip().splitlines()) == 1
        assert (tmp_path / "dialogues_test.jsonl").read_bytes() == before
        assert not (tmp_path / "dialogues_train.jsonl").exists()


def test_done_and_changed(folder):
    assert "already done" in run_03(folder).stdout
    changed = run_03(folder, "--seed", "5")
    assert changed.returncode == 1 and "seed (was 0, is 5)" in changed.stderr
    assert "Traceback" not in changed.stderr
