"""The figure of 06_evaluate.py: MRR per turn (the paper's Figure 2)."""

import os

import matplotlib

matplotlib.use("Agg")  # figures go to files; no screen is needed
import matplotlib.pyplot as plt
import numpy as np

from steps.evaluate.tables import best_first

FEWEST = 50  # turns behind a point, at least: with fewer, one lucky turn sets the scale
N_SYSTEMS = 4  # with more lines a reader cannot tell them apart
FLOOR = "popularity"  # what every system should beat
# (colour, marker, line): of the reference, of the floor, of the others. They differ in grey, too
REFERENCE_STYLE = ("#000000", "o", "-")
FLOOR_STYLE = ("#B0B0B0", "D", ":")
OTHER_STYLES = (("#0072B2", "s", "-"), ("#E67300", "^", "--"), ("#56B4E9", "v", "-."),
                ("#009E73", "P", "--"))


def plot_per_turn(path, rows, reference):
    """MRR by turn number of four systems, with 95% intervals.

    Turn numbers with fewer than FEWEST turns are left out; in small data, those with fewer than
    half the turns of the most frequent one. metrics.csv has them all.

    rows: of metrics.csv, as tuples of numbers or of the strings that the file holds
    reference: the system to show in black
    """
    mrr = {}  # {(system, turn): (value, low, high, n)}, turn a number or "all"
    for system, subset, turn, metric, *numbers in rows:
        if (subset, metric) == ("all", "mrr"):
            mrr[system, turn if turn == "all" else int(turn)] = tuple(map(float, numbers))
    styles = choose_systems(best_first(rows), reference)
    n_turns = {turn: int(numbers[3]) for (_, turn), numbers in mrr.items() if turn != "all"}
    fewest = min(FEWEST, max(n_turns.values()) / 2)
    turns = sorted(turn for turn, n in n_turns.items() if n >= fewest)

    figure, axis = plt.subplots(figsize=(7.2, 4.4), dpi=150)
    ends = []  # (height of the last point, system, colour)
    for i, (system, (colour, marker, line)) in enumerate(styles.items()):
        value, low, high, _ = np.array([mrr[system, turn] for turn in turns]).T
        x = np.array(turns) + 0.09 * (i - (len(styles) - 1) / 2)  # so that bars do not overlap
        axis.vlines(x, low, high, color=colour, alpha=0.35, linewidth=2.5)
        axis.plot(x, value, marker + line, color=colour, linewidth=2.2, markersize=7, clip_on=False)
        ends.append((value[-1], system, colour))

    axis.set_ylim(bottom=0)
    axis.set_xlim(turns[0] - 0.4, turns[-1] + 0.3)
    label_lines(axis, turns[-1] + 0.35, ends)
    axis.set_xticks(turns, [f"{turn}\n{n_turns[turn]}" for turn in turns])
    axis.set_xlabel("turn of the dialogue (below: number of turns)", fontsize=13)
    axis.set_ylabel("mean reciprocal rank (MRR)", fontsize=13)
    axis.set_title(f"turns with n >= {fewest:g}; bars: 95% intervals over playlists",
                   fontsize=12, loc="left")
    axis.tick_params(labelsize=12)
    axis.grid(axis="y", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)

    temporary = path.with_name(path.name + ".tmp")
    figure.savefig(temporary, format="png", bbox_inches="tight")
    plt.close(figure)
    os.replace(temporary, path)


def choose_systems(order, reference):
    """The systems that the figure shows, best first as all in `order`: {system: style}.

    The reference, popularity, and the best of the others. Other rankers of the reference's model
    (talkplay-votes) are none of them.
    """
    styles = {reference: REFERENCE_STYLE, FLOOR: FLOOR_STYLE}
    fixed = [system for system in order if system in styles]
    others = [system for system in order if system != FLOOR and not system.startswith(reference)]
    styles |= zip(others[:N_SYSTEMS - len(fixed)], OTHER_STYLES, strict=False)
    return {system: styles[system] for system in order if system in styles}


def label_lines(axis, x, ends):
    """Write the names at the lines' `ends` (height, name, colour), moved up from each other."""
    gap = 0.07 * axis.get_ylim()[1]
    lowest = 0
    for height, system, colour in sorted(ends):
        height = max(height, lowest)
        lowest = height + gap
        axis.text(x, height, system, color=colour, fontsize=13, va="center", weight="bold")
