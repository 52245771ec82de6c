"""What all readers of foreign data share: what cannot be used is counted, named and left out.

`problems` is one dict for a whole run: {kind: {"count": int, "first": [where, where, where]}}.
"""

import json

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
            except (ValueError, RecursionError):  # also: too many digits, nested too deep
                row = None
            yield f"{path.name}:{number}", row if isinstance(row, dict) else {}


# ---------------------------------------------------------------- tables

def dialogue_table(splits, counts):
    """What each split holds of dialogues that came with the data: list of dicts.

    splits: the split of each dialogue, None for one that is left out. counts: of each dialogue,
        {what is counted: int}.
    """
    rows = []
    for name in (*data.SPLITS, "all"):
        own = [count for count, split in zip(counts, splits, strict=True)
               if split and name in (split, "all")]
        rows.append({"split": name, "dialogues": len(own)}
                    | {what: sum(count[what] for count in own) for what in counts[0]})
    return rows


def print_table(rows):
    """Print dicts of the same keys; the first value is a word, the others are numbers."""
    first, *columns = rows[0]
    print(f"\n{first:<6}" + "".join(f"{column.replace('_', ' '):>14}" for column in columns))
    for name, *numbers in map(dict.values, rows):
        print(f"{name:<6}" + "".join(f"{n:>14,.1f}" if isinstance(n, float) else f"{n:>14,}"
                                     for n in numbers))


def print_known(tracks):
    """Print how many tracks have which field."""
    known = {field: sum(bool(track[field]) for track in tracks)
             for field in ("title", "artist", "album", "tags", "release_date", "caption")}
    print(f"{len(tracks):,} tracks: "
          + ", ".join(f"{field} of {n:,}" for field, n in known.items() if n))
