"""03: dialogues from playlists (paper, section 3.2).

A dialogue is a walk through tracks of one playlist: a query, a track, an answer, and so on. Now and
then the listener turns a track down. That track comes from the negative set: tracks by artists of
the playlist that are not in it.

  simulate  a simulated listener writes the dialogues, offline (steps/synthesize/simulate.py)
  gemini    a model of Google's writes them, as in the paper; needs a key in GEMINI_API_KEY or
            GOOGLE_API_KEY (steps/synthesize/llm, which may be skipped at first reading)
  local     a chat model from Hugging Face writes them, on this machine
  audit     counts what there is to doubt in dialogues from any source (steps/synthesize/audit.py)

Before a large run of gemini or local, see one prompt and the cost with --show-prompt, and make a
few dialogues in a folder of its own (--n-train 20 --n-valid 5 --n-test 5). Answers are paid for
once: they are kept when a run is killed, and for another --n-train, until --no-resume.

Reads   tracks.jsonl, annotations/*.jsonl, playlists.jsonl
        audit: the dialogues, predictions/*.jsonl
Writes  dialogues_train.jsonl, dialogues_valid.jsonl, dialogues_test.jsonl
        gemini, local: answers_*.jsonl (what was paid for), dialogues_rejected.jsonl (set aside)
        audit: results/audit.md, results/audit.json

Demo        python 03_synthesize.py simulate                         (7 s)
            python 03_synthesize.py audit --predictions talkplay     (15 s)
Full scale  python 03_synthesize.py simulate --data-dir data/mpd --n-train 531552 --n-valid 1000 \
                --n-test 1000
            python 03_synthesize.py gemini --data-dir data/mpd-gemini --n-train 531552 --show-prompt
            python 03_synthesize.py local --data-dir data/mpd-local --device cuda --batch-size 32 \
                --model Qwen/Qwen3-4B-Instruct-2507
"""

import argparse
import json
import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from common import data, runs
from common.flags import add_shared, check_ranges
from steps.synthesize import audit, guards, reactions, simulate
from steps.synthesize.attributes import pairs, track_attributes
from steps.synthesize.llm import converse
from steps.synthesize.templates import Listener

MIN_TURNS = 4   # of a simulated dialogue; for any writer a playlist needs as many tracks
MAX_TURNS = 14


# ---------------------------------------------------------------- what a dialogue is made from

class Source(NamedTuple):
    playlist: dict
    visit: int        # how many dialogues this playlist has had before
    negatives: list   # track ids, sorted: by artists of the playlist, but not in it
    rng: np.random.Generator


def make_sources(split, playlists, tracks, seed):
    """A function of a dialogue's number that returns its Source.

    The playlists come in a seeded order, again and again; each dialogue has its own random stream.
    """
    stream = [seed, data.SPLITS.index(split)]
    chosen = [p for p in playlists if p["split"] == split and len(p["track_ids"]) >= MIN_TURNS]
    if not chosen:
        raise SystemExit(f"no {split} playlist has {MIN_TURNS} tracks; make more of them with 00")
    order = np.random.default_rng(stream).permutation(len(chosen))

    # Training dialogues play warm tracks only, or cold tracks would be met in training.
    warm = warm_tracks(playlists)
    artist_of = {track["track_id"]: track["artist"] for track in tracks}
    tracks_by_artist = {}
    for track in tracks:
        if split != "train" or track["track_id"] in warm:
            tracks_by_artist.setdefault(track["artist"], []).append(track["track_id"])

    def source_of(number):
        visit, place = divmod(number, len(chosen))
        playlist = chosen[order[place]]
        artists = {artist_of[t] for t in playlist["track_ids"]} - {None}
        by_them = {t for artist in artists for t in tracks_by_artist.get(artist, ())}
        negatives = sorted(by_them - set(playlist["track_ids"]))
        return Source(playlist, visit, negatives, np.random.default_rng([*stream, number]))
    return source_of


def warm_tracks(playlists):
    """The ids of the tracks in training playlists: a set."""
    return {t for p in playlists if p["split"] == "train" for t in p["track_ids"]}


def sample_tracks(track_ids, rng, most):
    """4 to `most` tracks of a playlist, in its order: a stretch of neighbours with gaps."""
    n = int(rng.integers(MIN_TURNS, min(most, len(track_ids)) + 1))
    stretch = min(len(track_ids), 2 * n)
    start = int(rng.integers(len(track_ids) - stretch + 1))
    return [track_ids[start + i] for i in sorted(rng.permutation(stretch)[:n])]


# ---------------------------------------------------------------- the walk through a playlist

def walk(title, sampled, negatives, attributes_of, split, rng,
         opening=simulate.OPENING, later=simulate.LATER, rejection=simulate.REJECTION):
    """One dialogue through the tracks `sampled`.

    Mostly they are played in their order, but "more of this" waits for a track like the last one.

    title: the playlist's, or None
    sampled, negatives: lists of tracks (dicts); attributes_of: {track_id: track_attributes(track)}
    opening, later, rejection: from simulate.mix_of
    Returns: list of turns {query, music, response, targets, rejected, kind, template}
    """
    listener = Listener(split, rng, attributes_of)
    counts = Counter(a for track in sampled for a in pairs(attributes_of[track["track_id"]]))
    playlist = title, {attribute for attribute, n in counts.items() if 2 * n >= len(sampled)}
    turns = []
    remaining = list(sampled)
    before = None
    while remaining:
        # 1. The listener asks for one of the tracks to come.
        listener.new_turn()
        first = not turns
        kind, target, query, asked = simulate.next_request(
            listener, remaining, before, playlist if first else None, opening if first else later)

        # 2. At times a negative track comes first for which the request holds as well.
        refused = None
        has_room = len(turns) + len(remaining) < MAX_TURNS
        if not first and has_room and rng.random() < rejection:
            unplayed = [t for t in negatives if t["track_id"] not in listener.played]
            refused = reactions.turn_down(listener, kind, target, before, unplayed, remaining)
        if refused:
            negative, query, asked, reason = refused

        # 3. At times the query begins with a word on the track before.
        no_praise = first or kind == "redirect" or query.startswith(reactions.OPINIONS)
        if not no_praise and rng.random() < simulate.PRAISE:
            query = f"{reactions.praise(listener, kind, before, target, asked)} {query}"

        # 4. The negative track is played and turned down; the listener says what they meant.
        if refused:
            turns.append(play(listener, negative, kind, query, asked, rejected=True))
            listener.new_turn()
            kind = "after_rejection"
            query, asked = reactions.clarify(listener, reason, asked, negative, target)

        # 5. The track is played, with an answer.
        turns.append(play(listener, target, kind, query, asked))
        listener.liked.append(target)
        remaining.remove(target)
        before = target
    return turns


def play(listener, track, kind, query, asked, rejected=False):
    """One turn: the track is played, the assistant answers, the listener remembers it."""
    template = "unseen" if listener.unseen else "seen"
    listener.unseen = False  # answers have no unseen templates: the model must learn them
    response = reactions.answer(listener, track, kind, asked, query)

    listener.asked = asked
    listener.wished |= set(asked)
    listener.by_title = kind == "title"
    listener.played.add(track["track_id"])
    listener.plays[track["artist"]] += 1
    return {"query": query, "music": track["track_id"], "targets": [track["track_id"]],
            "rejected": rejected, "kind": kind, "response": response, "template": template}


def write_simulated(args, counts, sources, tracks_by_id):
    """Write the simulated dialogues of all splits, one by one; go on where an earlier run stopped.

    counts: {split: number of dialogues}; sources: {split: from `make_sources`}
    Returns: the run to be finished, or None if all was done before
    """
    run, state = guards.begin_run(args, runs.PLACE)
    if state == "done":
        return None
    if state == "new":
        guards.remove_old(args.data_dir)
    runs.record_run(run)

    mix = simulate.mix_of(args.mix, args.rejections)
    attributes_of = {i: track_attributes(track) for i, track in tracks_by_id.items()}
    for split, path in guards.dialogue_paths(args.data_dir).items():
        if path.is_file():
            continue
        part = path.with_name(path.name + ".part")
        done = data.keep_whole_lines(part)
        with open(part, "a", encoding="utf-8") as f:
            for number in tqdm(range(done, counts[split]), split, counts[split], initial=done):
                playlist, _, negatives, rng = sources[split](number)
                sampled = sample_tracks(playlist["track_ids"], rng, args.max_tracks)
                turns = walk(playlist.get("title"), [tracks_by_id[t] for t in sampled],
                             [tracks_by_id[t] for t in negatives], attributes_of, split, rng, **mix)
                wrong = guards.problems(turns, sampled, set(negatives), MIN_TURNS, MAX_TURNS)
                if wrong:
                    raise SystemExit(f"dialogue {split}-{number}: {'; '.join(wrong)}")
                row = {"dialogue_id": f"{split}-{number}", "playlist_id": playlist["playlist_id"],
                       "meta": {"backend": "simulate", "sampled": len(sampled)}, "turns": turns}
                f.write(json.dumps(row, ensure_ascii=False) + "\n")
                f.flush()
        os.replace(part, path)
    return run


# ---------------------------------------------------------------- the paper's Table 1

def describe_split(dialogues, warm):
    """One column of Table 1. warm: ids of the tracks in training playlists."""
    turns = [turn for d in dialogues for turn in d["turns"]]
    music = {turn["music"] for turn in turns}
    said = [turn[who] for turn in turns for who in ("query", "response")]
    kinds = Counter(turn["kind"] or "not known" for turn in turns)
    unseen = np.mean([turn.get("template") == "unseen" for turn in turns])
    return {"dialogues": len(dialogues),
            "turns": len(turns),
            "turns per dialogue": round(len(turns) / len(dialogues), 2),
            "tracks": len(music),
            "cold tracks": len(music - warm),
            "words": len({word for text in said for word in text.lower().split()}),
            "words per query": round(np.mean([len(turn["query"].split()) for turn in turns]), 1),
            "rejected": f"{np.mean([turn['rejected'] for turn in turns]):.1%}",
            "unseen templates": f"{unseen:.1%}",
            **{f"kind: {kind}": f"{n / len(turns):.0%}" for kind, n in sorted(kinds.items())}}


# ---------------------------------------------------------------- the script

def parse_args():
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, what in (("simulate", "a simulated listener writes the dialogues, offline"),
                       ("gemini", "a model of Google's writes them, as in the paper"),
                       ("local", "a chat model from Hugging Face writes them, on this machine"),
                       ("audit", "count what there is to doubt in dialogues from any source")):
        command = commands.add_parser(name, allow_abbrev=False, help=what, description=what)
        add = command.add_argument
        if name == "audit":
            add_shared(command, "data-dir")
            add("--file", type=Path, nargs="+", help="dialogue files, as paths from here; train is "
                "the one with train in its name (default: the three of --data-dir)")
            add("--predictions", nargs="+", default=[], metavar="SYSTEM",
                help="also the answers in predictions/SYSTEM.jsonl, as of talkplay (default none)")
            continue
        add_shared(command, "data-dir", "seed", "resume")
        for split, n in (("train", 4000), ("valid", 150), ("test", 150)):
            add(f"--n-{split}", type=int, default=n, help=f"{split} dialogues (default {n})")
        if name == "simulate":
            add_simulate_flags(add)
        else:
            converse.add_flags(add, name)
    args = parser.parse_args()
    check_ranges(
        args, n_train=1, n_valid=1, n_test=1, max_new_tokens=1, concurrency=1, tries=1,
        batch_size=1, lyrics_words=0, negatives=0, temperature=0, price_in=0, price_out=0,
        requests_per_minute=0, rejections=(0, 1), max_tracks=(MIN_TURNS, 10), chunk=MIN_TURNS,
        chunk_test=MIN_TURNS, top_p=(1e-6, 1), timeout=(1e-3, 86400))
    if args.command == "simulate":
        args.mix = simulate.read_mix(args.mix)
    elif args.command != "audit":
        converse.check_flags(args)
    return args


def add_simulate_flags(add):
    add("--max-tracks", type=int, default=10,
        help="most tracks sampled for a dialogue, 4 to 10 (default 10)")
    add("--mix", nargs="+", default=[], metavar="KIND=WEIGHT",
        help="how often each kind of query is tried, as in --mix lyrics=0.5 more=0; other kinds "
             "keep their weight. A kind that holds for none of the tracks to come gives way to "
             f"another. Defaults: opening {simulate.OPENING}, later {simulate.LATER}")
    add("--rejections", type=float, default=simulate.REJECTION,
        help="share of the later turns at which a negative track comes first, where one fits, and "
             f"is turned down; 0 = never (default {simulate.REJECTION:g})")


def main():
    args = parse_args()
    folder = args.data_dir
    paths = guards.dialogue_paths(folder)
    if args.command == "audit":
        audit.run(folder, args.file or list(paths.values()), args.predictions)
        return

    # What the dialogues are made from.
    tracks = data.load_tracks(folder)
    tracks_by_id = {track["track_id"]: track for track in tracks}
    playlists = data.load_playlists(folder, tracks_by_id)
    counts = {"train": args.n_train, "valid": args.n_valid, "test": args.n_test}
    sources = {split: make_sources(split, playlists, tracks, args.seed) for split in data.SPLITS}
    if args.command != "simulate":
        jobs_of = converse.make_jobs(args, sources, tracks_by_id)
        converse.print_estimate(args, counts, jobs_of)
        if args.show_prompt:
            return

    with guards.folder_lock(folder):
        if args.command == "simulate":
            run = write_simulated(args, counts, sources, tracks_by_id)
        else:
            run = converse.write_dialogues(args, counts, jobs_of)
        if run is None:
            print("03_synthesize: already done (--no-resume does it again)")
            return

        # What is in them.
        warm = warm_tracks(playlists)
        table = {split: describe_split(data.load_dialogues(path, tracks_by_id), warm)
                 for split, path in paths.items()}
        print(f"{'':22}" + "".join(f"{split:>10}" for split in table))
        for name in dict.fromkeys(name for column in table.values() for name in column):
            print(f"{name:22}" + "".join(f"{c.get(name, '-'):>10}" for c in table.values()))
        runs.finish_run(run, table=table)
    print(f"wrote {', '.join(map(str, paths.values()))}; "
          f"next: python 04_train.py --data-dir {folder}")


if __name__ == "__main__":
    main()
