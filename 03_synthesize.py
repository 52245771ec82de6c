"""03: dialogues from playlists (paper, section 2.3).

A dialogue is a journey through tracks sampled from one playlist: a query, a track, an answer, and so on.
A track that the listener turns down comes from the negative set: tracks by artists of the playlist that
are not in it. Every dialogue passes `problems`, whatever backend wrote it.

Reads   tracks.jsonl, playlists.jsonl
Writes  dialogues_train.jsonl, dialogues_valid.jsonl, dialogues_test.jsonl

Demo        python 03_synthesize.py                                  (10 s)
Full scale  python 03_synthesize.py --data-dir data/mpd --n-train 531552 --n-valid 1000 --n-test 1000

A killed run goes on where it stopped when the same command is given again.
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np
from tqdm import tqdm

from common import data
from synthesis import simulate

MIN_TURNS, MAX_TURNS = 4, 14


def sample_tracks(playlist, rng, most):
    """4 to `most` tracks of a playlist, a stretch of neighbours with gaps, in the playlist's order."""
    ids = playlist["track_ids"]
    n = int(rng.integers(MIN_TURNS, min(most, len(ids)) + 1))
    stretch = min(len(ids), 2 * n)
    start = int(rng.integers(len(ids) - stretch + 1))
    return [ids[start + i] for i in sorted(rng.permutation(stretch)[:n])]


def negative_set(playlist, tracks_by_artist, artist_of):
    """Track ids by artists of the playlist that are not in it, sorted.

    tracks_by_artist: for training dialogues only the tracks of training playlists, or new (cold)
    tracks would be met in training.
    """
    artists = {artist_of[t] for t in playlist["track_ids"]} - {None}
    inside = set(playlist["track_ids"])
    return sorted({t for a in artists for t in tracks_by_artist.get(a, [])} - inside)


def problems(dialogue, sampled, negatives):
    """What is wrong with a dialogue, as a list of sentences; empty if it is fine.

    sampled: the tracks that the backend was given; at least half of them have to be played.
    negatives: track ids that may be played and rejected.
    """
    turns, found = dialogue["turns"], []
    if not MIN_TURNS <= len(turns) <= MAX_TURNS:
        found.append(f"{len(turns)} turns, not {MIN_TURNS} to {MAX_TURNS}")
    played = [t["music"] for t in turns]
    if len(set(played)) < len(played):
        found.append("a track is played twice")
    for number, turn in enumerate(turns, 1):
        if not (turn["query"] or "").strip() or not (turn["response"] or "").strip():
            found.append(f"turn {number} has no query or no answer")
        if turn["rejected"] and turn["music"] not in negatives:
            found.append(f"turn {number} rejects {turn['music']}, which is not in the negative set")
        if not turn["rejected"] and turn["music"] not in sampled:
            found.append(f"turn {number} plays {turn['music']}, which is not in the playlist")
        if turn["rejected"] and (number == len(turns) or turns[number]["rejected"]):
            found.append(f"turn {number} is rejected and no accepted track follows")
    if 2 * len(set(played) & set(sampled)) < len(sampled):
        found.append(f"only {len(set(played) & set(sampled))} of {len(sampled)} tracks are played")
    return found


def synthesize(split, playlists, tracks, row_of, n, seed, path, most):
    """Write n dialogues over the playlists of one split, in turn; several for each where n is larger.

    Lines go to `path`.part one by one; whole lines that are there already are kept. Each dialogue has
    its own random stream, so a resumed run ends in the same file.
    """
    artist_of = {t["track_id"]: t["artist"] for t in tracks}
    warm = {t for p in playlists if p["split"] == "train" for t in p["track_ids"]}
    tracks_by_artist = {}
    for track in tracks if split != "train" else [t for t in tracks if t["track_id"] in warm]:
        tracks_by_artist.setdefault(track["artist"], []).append(track["track_id"])
    facets_of = {t["track_id"]: simulate.track_facets(t) for t in tracks}
    chosen = [p for p in playlists if p["split"] == split and len(p["track_ids"]) >= MIN_TURNS]
    if not chosen:
        raise SystemExit(f"no {split} playlist has {MIN_TURNS} tracks or more; make more playlists with 00_prepare_data.py")
    order = np.random.default_rng([seed, data.SPLITS.index(split)]).permutation(len(chosen))

    part = path.with_name(path.name + ".part")
    done = data.keep_whole_lines(part)
    with open(part, "a", encoding="utf-8") as f:
        for i in tqdm(range(done, n), initial=done, total=n, desc=split):
            playlist = chosen[order[i % len(chosen)]]
            rng = np.random.default_rng([seed, data.SPLITS.index(split), i])
            sampled = sample_tracks(playlist, rng, most)
            negatives = negative_set(playlist, tracks_by_artist, artist_of)
            turns = simulate.simulate(playlist.get("title"), [tracks[row_of[t]] for t in sampled],
                                      [tracks[row_of[t]] for t in negatives], facets_of, split, rng, MAX_TURNS)
            dialogue = {"dialogue_id": f"{split}-{i}", "playlist_id": playlist["playlist_id"],
                        "meta": {"backend": "simulate", "sampled": len(sampled)}, "turns": turns}
            wrong = problems(dialogue, sampled, set(negatives))
            if wrong:
                raise SystemExit(f"dialogue {dialogue['dialogue_id']} of playlist {playlist['playlist_id']}: {'; '.join(wrong)}")
            f.write(json.dumps(dialogue, ensure_ascii=False) + "\n")
            f.flush()
    os.replace(part, path)


def describe_split(dialogues, warm):
    """One row of the paper's Table 1. warm: ids of the tracks in training playlists."""
    turns = [t for d in dialogues for t in d["turns"]]
    music = {t["music"] for t in turns}
    words = {w for t in turns for text in (t["query"], t["response"]) for w in text.lower().split()}
    kinds = {k: sum(t["kind"] == k for t in turns) / len(turns) for k in sorted({t["kind"] for t in turns})}
    return {"dialogues": len(dialogues), "turns": len(turns), "turns per dialogue": round(len(turns) / len(dialogues), 2),
            "tracks": len(music), "cold tracks": len(music - warm), "words": len(words),
            "words per query": round(np.mean([len(t["query"].split()) for t in turns]), 1),
            "rejected": f"{np.mean([t['rejected'] for t in turns]):.1%}",
            "unseen frames": f"{np.mean([t['frame'] == 'unseen' for t in turns]):.1%}",
            "kinds": ", ".join(f"{k} {share:.0%}" for k, share in kinds.items())}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-dir", type=Path, default=Path("data/demo"))
    parser.add_argument("--backend", choices=("simulate",), default="simulate", help="who writes the dialogues")
    parser.add_argument("--n-train", type=int, default=4000, help="training dialogues (default 4000; paper 531552)")
    parser.add_argument("--n-valid", type=int, default=150, help="validation dialogues (default 150)")
    parser.add_argument("--n-test", type=int, default=150, help="test dialogues (default 150; paper 1000)")
    parser.add_argument("--max-tracks", type=int, default=10, help="most tracks sampled for a dialogue, 4 to 10 (default 10)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action=argparse.BooleanOptionalAction, default=True,
                        help="go on with a run that was cut (default); --no-resume starts afresh")
    args = parser.parse_args()
    if not MIN_TURNS <= args.max_tracks <= 10:
        raise SystemExit(f"--max-tracks {args.max_tracks}: {MIN_TURNS} to 10 are accepted")

    folder = args.data_dir
    tracks = data.load_tracks(folder)
    row_of = {t["track_id"]: i for i, t in enumerate(tracks)}
    playlists = data.load_playlists(folder, row_of)
    paths = {split: folder / f"dialogues_{split}.jsonl" for split in data.SPLITS}
    annotations = sorted(f"annotations/{p.name}" for p in (folder / "annotations").glob("*.jsonl"))
    run, state = data.begin_run(folder, "03_synthesize", args, reads=["tracks.jsonl", "playlists.jsonl", *annotations],
                                writes=[p.name for p in paths.values()], resume=args.resume)
    if state == "done":
        print("03_synthesize: already done, nothing changed")
        return

    warm = {t for p in playlists if p["split"] == "train" for t in p["track_ids"]}
    rows = {}
    for split, path in paths.items():
        if state == "new":
            path.with_name(path.name + ".part").unlink(missing_ok=True)
            path.unlink(missing_ok=True)
        if not path.is_file():
            synthesize(split, playlists, tracks, row_of, getattr(args, f"n_{split}"), args.seed, path, args.max_tracks)
        rows[split] = describe_split(data.load_dialogues(path, row_of), warm)
    for name in rows["train"]:
        print(f"{name:20}" + "  ".join(f"{split} {row[name]:>8}" if name != "kinds" else f"\n  {split}: {row[name]}" for split, row in rows.items()))
    data.finish_run(run, table=rows)
    print(f"wrote {', '.join(str(p) for p in paths.values())}; next: python 04_train.py --data-dir {folder}")


if __name__ == "__main__":
    main()
