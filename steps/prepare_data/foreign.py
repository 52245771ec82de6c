"""What all readers of foreign data share: what cannot be used is counted, named and left out.

`problems` is one dict for a whole run: {kind: {"count": int, "first": [where, where, where]}}.
"""

import json
from pathlib import Path

from common import data


def note(problems, kind, where):
    """Count a problem, and remember where the first three are."""
    entry = problems.setdefault(kind, {"count": 0, "first": []})
    entry["count"] += 1
    if len(entry["first"]) < 3:
        entry["first"].append(where)


def print_problems(problems):
    for kind, entry in problems.items():
        more = "; ..." if entry["count"] > len(entry["first"]) else ""
        print(f"left out: {entry['count']:,} {kind} ({'; '.join(entry['first'])}{more})")


def clean_text(value):
    """A string with single spaces; None for an empty one and for anything but a string."""
    if not isinstance(value, str):
        return None
    value = value.encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair becomes "?"
    return " ".join(value.split()) or None


def read_lines(path):
    """Yield ("file name:line", dict) of a JSONL file; {} for a line that is not a JSON object."""
    with open(path, encoding="utf-8", errors="replace") as f:
        for number, line in enumerate(f, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                row = None
            yield f"{Path(path).name}:{number}", row if isinstance(row, dict) else {}


def dialogue_table(splits, counts):
    """What each split holds of dialogues that came with the data: list of dicts.

    splits: the split of each dialogue, (D,) names, None for one that is left out.
    counts: {what is counted: how many of it each dialogue has, (D,) int}.
    """
    rows = []
    for name in (*data.SPLITS, "all"):
        own = [d for d, split in enumerate(splits) if split and name in (split, "all")]
        rows.append({"split": name, "dialogues": len(own)}
                    | {what: sum(n[d] for d in own) for what, n in counts.items()})
    return rows


def print_dialogue_table(rows, tracks):
    """Print the rows of `dialogue_table`, and how many tracks have which field."""
    columns = [column for column in rows[0] if column != "split"]
    print(f"{'split':<6}" + "".join(f"{column.replace('_', ' '):>14}" for column in columns))
    for row in rows:
        print(f"{row['split']:<6}" + "".join(f"{row[column]:>14,}" for column in columns))
    known = {field: sum(bool(track[field]) for track in tracks)
             for field in ("title", "artist", "album", "tags", "release_date", "caption")}
    print(f"{len(tracks):,} tracks: "
          + ", ".join(f"{field} of {n:,}" for field, n in known.items() if n))
