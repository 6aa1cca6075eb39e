"""Draws the measurements of dev/test/test_composed.c: how far a step moves the composed maps.

    build/test_composed --csv composed.csv
    python dev/reference/plot_composed.py composed.csv docs/composed_step.png

Lines of the CSV: step, optimizer (cm, muon), circuit (qk, ov), layer, head, ratio; ratio is the spectral
norm of the change of a head's composed map over the learning rate of the step. Needs matplotlib.
"""
import csv
import statistics
import sys
from collections import defaultdict

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PANELS = {"qk": r"QK: $W_Q^\top W_K$", "ov": r"OV: $W_O W_V$"}
LINES = {"muon": ("Muon", "#c8553d"), "cm": ("CM", "#22577a")}


def read(path):
    """{(circuit, optimizer): {step: ratios of all layers and heads}}"""
    ratios = defaultdict(lambda: defaultdict(list))
    with open(path, newline="") as f:
        for row in csv.DictReader(f):
            ratios[row["circuit"], row["optimizer"]][int(row["step"])].append(float(row["ratio"]))
    return ratios


def draw(ratios, path):
    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False,
                         "axes.edgecolor": "#888888", "xtick.color": "#444444", "ytick.color": "#444444"})
    figure, axes = plt.subplots(1, 2, figsize=(8.6, 3.7), sharey=True, layout="constrained")
    top = max(max(map(max, steps.values())) for steps in ratios.values())
    last = max(max(steps) for steps in ratios.values())
    for axis, (circuit, title) in zip(axes, PANELS.items()):
        axis.axhline(1, color="#222222", linewidth=1, zorder=1)
        for optimizer, (label, colour) in LINES.items():
            steps = ratios[circuit, optimizer]
            x = [s for s in sorted(steps) if max(steps[s]) > 0]  # before, no gradient arrives
            largest = [max(steps[s]) for s in x]
            median = [statistics.median(steps[s]) for s in x]
            axis.fill_between(x, median, largest, color=colour, alpha=0.12, linewidth=0)
            axis.plot(x, largest, color=colour, linewidth=1.9, label=f"{label}, largest head")
            axis.plot(x, median, color=colour, linewidth=1.3, linestyle=(0, (4, 2)),
                      label=f"{label}, median head")
        axis.set_title(title, loc="left", fontsize=11)
        axis.set_xlabel("step")
        axis.set_xlim(1, last)
        axis.set_ylim(0, 1.12 * max(top, 1))
        axis.grid(axis="y", color="#e4e4e4", linewidth=0.7)
        axis.set_axisbelow(True)
    axes[0].annotate("budget", (last, 1), xytext=(0, 3), textcoords="offset points", ha="right",
                     fontsize=9, color="#222222")
    axes[0].set_ylabel("‖change of the composed map‖ / η")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False,
                  fontsize=9, handlelength=1.9, columnspacing=1.4)
    figure.savefig(path, dpi=130, metadata={"Software": None})


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: plot_composed.py CSV PNG")
    draw(read(sys.argv[1]), sys.argv[2])
