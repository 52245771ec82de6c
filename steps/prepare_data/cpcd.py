"""The Conversational Playlist Curation Dataset, for 00_prepare_data.py: conversations -> lines.

Of two people, one asks for a playlist; the other searches and shows tracks, which the first one
likes or dislikes. A line is one conversation: `id`, `turns` (user_query, system_response,
search_results, liked_results, disliked_results), `tracks` {track_id: track_titles, track_artists,
track_release_titles} and `goal_playlist`, all that was liked. docs/real_data.md says more.
"""

import numpy as np

from common import data
from steps.prepare_data.foreign import clean_text, note, print_problems, read_lines


def read(path, n_valid, n_test, seed, problems):
    """What becomes of the file.

    Returns: tracks, playlists, dialogues (lists of lines); the split of each dialogue; what is
        counted of each dialogue (list of dicts).
    Raises SystemExit: too few conversations for a split.
    """
    conversations = read_conversations(path, problems)
    tracks = read_tracks(conversations, problems)
    note_unknown(conversations, tracks, problems)
    dialogues, goals = make_dialogues(conversations, tracks, problems)
    print_problems(problems)
    if len(dialogues) <= n_test + n_valid:
        raise SystemExit(f"{path}: {len(dialogues)} conversations can be used, not more than "
                         f"--n-test {n_test} and --n-valid {n_valid} take together; lower them")
    order = np.random.default_rng(seed).permutation(len(dialogues))
    splits = np.full(len(dialogues), "train", "<U5")
    splits[order[:n_test]] = "test"
    splits[order[n_test:n_test + n_valid]] = "valid"
    splits = splits.tolist()
    playlists = [{"playlist_id": dialogue["dialogue_id"], "title": None, "modified_at": None,
                  "split": split, "track_ids": goal}
                 for dialogue, goal, split in zip(dialogues, goals, splits, strict=True) if goal]
    targets = [[len(turn["targets"]) for turn in dialogue["turns"]] for dialogue in dialogues]
    counts = [{"turns": len(own), "with_targets": sum(map(bool, own)), "targets": sum(own)}
              for own in targets]
    return list(tracks.values()), playlists, dialogues, splits, counts


def read_conversations(path, problems):
    """The lines of the file as a list of (where it is, conversation), each id once."""
    conversations = {}
    for where, row in read_lines(path):
        if not (isinstance(row.get("id"), str) and isinstance(row.get("turns"), list)):
            note(problems, "lines that are not a JSON object with id and turns", where)
        elif row["id"] in conversations:
            note(problems, "conversations with the id of an earlier one", where)
        else:
            # {}: a turn without a query
            row["turns"] = [turn if isinstance(turn, dict) else {} for turn in row["turns"]]
            conversations[row["id"]] = where, row
    return list(conversations.values())


def strings(value):
    """The strings of a list, each once, in order; [] for anything but a list."""
    values = value if isinstance(value, list) else []
    return list(dict.fromkeys(x for x in values if isinstance(x, str)))


def read_tracks(conversations, problems):
    """{track_id: line of tracks.jsonl} of the tracks that are described, by first appearance."""
    tracks = {}
    for where, conversation in conversations:
        described = conversation.get("tracks")
        for track_id, given in described.items() if isinstance(described, dict) else ():
            given = given if isinstance(given, dict) else {}
            artists = map(clean_text, strings(given.get("track_artists")))
            known = {"title": clean_text(given.get("track_titles")),
                     "artist": ", ".join(filter(None, artists)) or None,
                     "album": clean_text(given.get("track_release_titles"))}
            if track_id not in tracks and any(known.values()):
                tracks[track_id] = (dict.fromkeys(data.TRACK_FIELDS)
                                    | {"track_id": track_id, "tags": []} | known)
            elif track_id in tracks and not known.items() <= tracks[track_id].items():
                note(problems, "descriptions of a track that differ from its first one",
                     f"{where} ({track_id})")
    return tracks


def note_unknown(conversations, tracks, problems):
    """Count the tracks without description: the rated ones, and those that were only found."""
    rated, shown = {}, {}  # {track_id: where it occurs first}
    for where, conversation in conversations:
        turns = conversation["turns"]
        lists = [turn.get(key) for turn in turns for key in ("liked_results", "disliked_results")]
        pages = [page for turn in turns for page in turn.get("search_results") or ()]
        for found, groups in ((rated, [conversation.get("goal_playlist"), *lists]), (shown, pages)):
            for track_id in (t for group in groups for t in strings(group)):
                found.setdefault(track_id, where)
    for track_id, where in (rated | shown).items():
        if track_id not in tracks:
            kind = "tracks that a search found and nobody rated,"
            if track_id in rated:
                kind = "liked or disliked tracks"
            note(problems, f"{kind} without title, artist and album", f"{where} ({track_id})")


def make_dialogues(conversations, tracks, problems):
    """Lines of the dialogues' files, and the goal playlist (maybe empty) of each: two lists."""
    dialogues, goals = [], []
    for where, conversation in conversations:
        turns = []
        for number, turn in enumerate(conversation["turns"], 1):
            query = clean_text(turn.get("user_query"))
            if query is None:
                note(problems, "turns without a query", f"{where}, turn {number}")
                continue
            liked = [t for t in strings(turn.get("liked_results")) if t in tracks]
            turns.append({"query": query, "music": liked[0] if liked else None,
                          "response": clean_text(turn.get("system_response")),
                          "targets": liked, "rejected": False, "kind": None})
        if not turns:
            note(problems, "conversations without a query", where)
            continue
        goals.append([t for t in strings(conversation.get("goal_playlist")) if t in tracks])
        dialogues.append({"dialogue_id": conversation["id"],
                          "playlist_id": conversation["id"] if goals[-1] else None,
                          "meta": {"backend": "cpcd"}, "turns": turns})
    return dialogues, goals
