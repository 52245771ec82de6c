"""The Conversational Playlist Curation Dataset, for 00_prepare_data.py: conversations -> tracks, dialogues, playlists.

400 (of 917) conversations between two people, of whom one asks for a playlist and the other one searches and
shows tracks, which the first one likes or dislikes (Chaganty et al. 2023, "Beyond Single Items: Exploring User
Preferences in Item Sets with the Conversational Playlist Curation Dataset"; google-research-datasets/cpcd, CC BY 4.0).
A conversation is a line: `id`, `turns` (user_query, system_response, search_results, liked_results, disliked_results),
`tracks` {track_id: track_titles, track_artists, track_release_titles} and `goal_playlist`, which is all that was liked.

What becomes of it:
  catalogue   every track of which a title, an artist or an album is given, and no other. In the published file these
              are the tracks that somebody liked or disliked, a ninth of what the searches found
  turn        user_query is the query, liked_results the targets (each is a hit), system_response the response
  music       the first liked track, or null: a turn plays one. The ids in liked_results are sorted, so it is any of them.
              Only `music` counts as played; other liked tracks of earlier turns stay in the rankings, for every system
  rejected    false always: disliked tracks are in the catalogue and nowhere else
  playlist    goal_playlist, with the split of its conversation

It stands here in the order in which prepare_cpcd calls it. What cannot be used is counted in `problems` and left out.
"""

import json

import numpy as np

from common import data
from steps.prepare_data.mpd import clean_text, note


def read_conversations(path, problems):
    """The lines of the file as a list of (where it stands, conversation), each id once."""
    conversations, seen = [], set()
    with open(path, encoding="utf-8", errors="replace") as f:
        for number, line in enumerate(f, 1):
            if not line.strip():
                continue
            where = f"{path.name}:{number}"
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                row = None
            if not (isinstance(row, dict) and isinstance(row.get("id"), str) and isinstance(row.get("turns"), list)):
                note(problems, "lines that are not a JSON object with id and turns", where)
            elif row["id"] in seen:
                note(problems, "conversations with the id of an earlier one", where)
            else:
                seen.add(row["id"])
                turns = [turn if isinstance(turn, dict) else {} for turn in row["turns"]]  # {}: a turn without a query
                conversations.append((where, row | {"turns": turns}))
    return conversations


def strings(value):
    """The strings of a list, each once, in order; [] where it is no list."""
    return list(dict.fromkeys(x for x in value if isinstance(x, str))) if isinstance(value, list) else []


def read_tracks(conversations, problems):
    """{track_id: line of tracks.jsonl} of the tracks with a title, an artist or an album, by first appearance."""
    tracks = {}
    for where, conversation in conversations:
        described = conversation.get("tracks")
        for track_id, given in (described.items() if isinstance(described, dict) else ()):
            given = given if isinstance(given, dict) else {}
            artists = [clean_text(artist) for artist in strings(given.get("track_artists"))]
            known = {"title": clean_text(given.get("track_titles")), "artist": ", ".join(filter(None, artists)) or None,
                     "album": clean_text(given.get("track_release_titles"))}
            if track_id not in tracks and any(known.values()):
                tracks[track_id] = dict.fromkeys(data.TRACK_FIELDS) | {"track_id": track_id, "tags": []} | known
            elif track_id in tracks and any(tracks[track_id][field] != known[field] for field in known):
                note(problems, "descriptions of a track that differ from its first one", f"{where} ({track_id})")
    return tracks


def note_unknown(conversations, tracks, problems):
    """Count the tracks that have no description: those that somebody rated, and those that were only found."""
    rated, found = {}, {}  # {track_id: where it first stands}
    for where, conversation in conversations:
        lists = [conversation.get("goal_playlist")]
        for turn in conversation["turns"]:
            lists += [turn.get("liked_results"), turn.get("disliked_results")]
            pages = turn.get("search_results")
            for track_id in (x for page in (pages if isinstance(pages, list) else ()) for x in strings(page)):
                found.setdefault(track_id, where)
        for track_id in (x for given in lists for x in strings(given)):
            rated.setdefault(track_id, where)
    for track_id, where in (rated | found).items():
        if track_id not in tracks:
            kind = "liked or disliked tracks" if track_id in rated else "tracks that a search found and nobody rated,"
            note(problems, f"{kind} without title, artist and album", f"{where} ({track_id})")


def make_dialogues(conversations, tracks, problems):
    """Lines of the dialogues' files, and the goal playlists: two lists of the same length (a playlist may be empty)."""
    dialogues, playlists = [], []
    for where, conversation in conversations:
        turns = []
        for number, turn in enumerate(conversation["turns"], 1):
            query = clean_text(turn.get("user_query"))
            if query is None:
                note(problems, "turns without a query", f"{where}, turn {number}")
                continue
            liked = [track_id for track_id in strings(turn.get("liked_results")) if track_id in tracks]
            turns.append({"query": query, "music": liked[0] if liked else None, "response": clean_text(turn.get("system_response")),
                          "targets": liked, "rejected": False, "kind": None})
        if not turns:
            note(problems, "conversations without a query", where)
            continue
        goal = [track_id for track_id in strings(conversation.get("goal_playlist")) if track_id in tracks]
        dialogues.append({"dialogue_id": conversation["id"], "playlist_id": conversation["id"] if goal else None,
                          "meta": {"backend": "cpcd"}, "turns": turns})
        playlists.append(goal)
    return dialogues, playlists


def split_dialogues(n, n_valid, n_test, seed):
    """A seeded draw: list of n names of splits."""
    order, split = np.random.default_rng(seed).permutation(n), np.full(n, "train", "<U5")
    split[order[:n_test]], split[order[n_test:n_test + n_valid]] = "test", "valid"
    return split.tolist()


def table(dialogues, split):
    """What each split holds, as Table 1 says it of playlists: list of dicts. Targets: a mean over the turns that have some."""
    rows = []
    for name in (*data.SPLITS, "all"):
        turns = [turn for dialogue, s in zip(dialogues, split) if name in (s, "all") for turn in dialogue["turns"]]
        targets = [len(turn["targets"]) for turn in turns if turn["targets"]]
        rows.append({"split": name, "dialogues": sum(name in (s, "all") for s in split), "turns": len(turns),
                     "with_targets": len(targets), "mean_targets": float(np.mean(targets)) if targets else 0.0})
    return rows


def print_table(rows, tracks):
    print(f"{'split':<6}{'dialogues':>11}{'turns':>9}{'with targets':>14}{'targets a turn':>16}")
    for r in rows:
        print(f"{r['split']:<6}{r['dialogues']:>11,}{r['turns']:>9,}{r['with_targets']:>14,}{r['mean_targets']:>16.1f}")
    print(f"{len(tracks):,} tracks: " + ", ".join(f"{field} of {sum(t[field] is not None for t in tracks):,}"
                                                  for field in ("title", "artist", "album")))
