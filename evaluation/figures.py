"""The figure of 06_evaluate.py: MRR per turn (the paper's Figure 2)."""

import os

import matplotlib
matplotlib.use("Agg")  # figures go to files; no screen is needed
import matplotlib.pyplot as plt
import numpy as np

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito
MARKERS = "osD^vPX"


def plot_per_turn(path, order, found):
    """MRR by turn number with interval bands; the number of turns stands under each turn number.

    order: the systems; found: {(system, subset, turn, metric): (value, low, high, n)}.
    """
    numbers = sorted({turn for _, _, turn, _ in found if turn != "all"})
    figure, axis = plt.subplots(figsize=(8, 4.5), dpi=150)
    for i, system in enumerate(order):
        value, low, high, _ = np.array([found[system, "all", n, "mrr"] for n in numbers]).T
        style = {"color": COLOURS[i % 7], "marker": MARKERS[i % 7], "linestyle": ("-", "--", ":")[i // 7 % 3]}
        axis.plot(numbers, value, label=system, linewidth=1.6, markersize=5, **style)
        axis.fill_between(numbers, low, high, color=style["color"], alpha=0.13, linewidth=0)
    axis.set_xticks(numbers, [f"{n}\n{found[order[0], 'all', n, 'mrr'][3]}" for n in numbers])
    axis.set_xlabel("turn of the dialogue (below it: number of turns)")
    axis.set_ylabel("MRR, band: 95% over playlists")
    axis.set_ylim(0, min(1.03, 1.3 * max(row[0] for key, row in found.items() if key[1] == "all" and key[3] == "mrr")))
    axis.grid(axis="y", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    temporary = path.with_name(path.name + ".tmp")
    figure.savefig(temporary, format="png", bbox_inches="tight")
    plt.close(figure)
    os.replace(temporary, path)
