"""The figure of 06_evaluate.py: MRR per turn (the paper's Figure 2)."""

import os

import matplotlib
matplotlib.use("Agg")  # figures go to files; no screen is needed
import matplotlib.pyplot as plt
import numpy as np

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito
MARKERS = "osD^vPX"
FEWEST = 10  # turns of a point in the figure


def plot_per_turn(path, order, found):
    """MRR by turn number with interval bands; the number of turns stands under each turn number. Means of fewer than FEWEST
    turns are left out (unless all are): one lucky turn would set the scale. metrics.csv has them.

    order: the systems; found: {(system, subset, turn, metric): (value, low, high, n)}.
    """
    of_turns = {turn: row[3] for (_, _, turn, _), row in found.items() if turn != "all"}
    numbers = sorted(turn for turn, n in of_turns.items() if n >= min(FEWEST, max(of_turns.values())))
    figure, axis = plt.subplots(figsize=(8, 4.5), dpi=150)
    for i, system in enumerate(order):
        value, low, high, _ = np.array([found[system, "all", n, "mrr"] for n in numbers]).T
        style = {"color": COLOURS[i % 7], "marker": MARKERS[i % 7], "linestyle": ("-", "--", ":")[i // 7 % 3]}
        axis.plot(numbers, value, label=system, linewidth=1.6, markersize=5, **style)
        axis.fill_between(numbers, low, high, color=style["color"], alpha=0.13, linewidth=0)
    axis.set_xticks(numbers, [f"{n}\n{found[order[0], 'all', n, 'mrr'][3]}" for n in numbers])
    axis.set_xlabel("turn of the dialogue (below it: number of turns)")
    axis.set_ylabel("MRR, band: 95% over playlists")
    axis.set_ylim(0, min(1.03, 1.3 * max(found[system, "all", n, "mrr"][0] for system in order for n in numbers)))
    axis.grid(axis="y", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    temporary = path.with_name(path.name + ".tmp")
    figure.savefig(temporary, format="png", bbox_inches="tight")
    plt.close(figure)
    os.replace(temporary, path)
