#!/usr/bin/env python3
"""Draws the losses of runs over steps, tokens and training time.

    scripts/plot.py runs/a runs/b              picture in runs/plot.png
    scripts/plot.py runs/* -o compare.png
    scripts/plot.py runs/muon-s1 runs/muon-s2  seeds of one run: their mean with a min-max band

Validation loss is bold with markers. Training loss is light and smoothed, with the raw values behind
it. Runs whose names differ only in an ending like -s1 or _seed2 are seeds of one run. --group gives
another pattern for the ending, and --no-group draws every run separately. Time is the sum of the
times of steps, without validation and checkpoints. Needs matplotlib.
"""

import argparse
import json
import math
import os
import re
import sys

SEED_ENDING = r"[-_]s(eed)?[-_]?\d+$"
# Okabe and Ito's colors, which color-blind readers can tell apart, darkest first.
COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
LINES = ["-", "--", ":", "-."]


def fail(message):
    sys.exit(f"error: {message}")


def read_run(path):
    """The columns of one log as lists of floats, NaN for null; plus the run's name."""
    path = os.path.normpath(path)
    log = path if os.path.isfile(path) else os.path.join(path, "log.jsonl")
    name = os.path.basename(os.path.dirname(os.path.abspath(log)))
    if not os.path.exists(log):
        where = os.path.dirname(path) or "."
        known = [d for d in sorted(os.listdir(where))] if os.path.isdir(where) else []
        known = [d for d in known if os.path.exists(os.path.join(where, d, "log.jsonl"))]
        hint = f"; runs in {where}: {', '.join(known)}" if known else ""
        fail(f"there is no run in {path}: {log} does not exist{hint}")
    columns = {key: [] for key in ("step", "tokens", "train_loss", "val_loss", "seconds")}
    seconds, last_step = 0.0, 0
    with open(log, encoding="utf-8", errors="replace") as f:
        for number, text in enumerate(f, 1):
            try:
                line = json.loads(text)
                step, tokens = line["step"], line["tokens"]
                # A log may skip steps. `ms` is the time of one step.
                seconds += (line.get("ms") or 0) / 1000 * max(step - last_step, 0)
            except (ValueError, KeyError, TypeError):
                # The log of a running or killed run may end within a line.
                if text.endswith("\n"):
                    print(f"warning: {log}:{number} is not a log line, left out", file=sys.stderr)
                continue
            last_step = step
            columns["step"].append(float(step))
            columns["tokens"].append(float(tokens))
            columns["seconds"].append(seconds)
            for key in ("train_loss", "val_loss"):
                value = line.get(key)
                columns[key].append(math.nan if value is None else float(value))
    if not any(math.isfinite(v) for v in columns["train_loss"] + columns["val_loss"]):
        fail(f"the run {path} has no losses yet")
    return name, columns


def group_runs(runs, ending):
    """[(name, columns)] as {group name: [columns, ...]}, in order of appearance."""
    groups = {}
    for name, columns in runs:
        short = re.sub(ending, "", name) if ending else name
        groups.setdefault(short or name, []).append((name, columns))
    # A run without other seeds keeps its full name.
    return {short if len(members) > 1 else members[0][0]: [columns for _, columns in members]
            for short, members in groups.items()}


def curve(run, key):
    """{step: (value, tokens, seconds)} where the value was measured."""
    rows = zip(run["step"], run[key], run["tokens"], run["seconds"])
    return {step: (v, tokens, s) for step, v, tokens, s in rows if math.isfinite(v)}


def average(runs, key, np):
    """{x name: x} and the values as an array (seeds, steps), for the steps that all seeds have."""
    curves = [curve(run, key) for run in runs]
    steps = sorted(set.intersection(*(set(c) for c in curves)))
    if not steps:
        return None
    table = np.array([[c[s] for s in steps] for c in curves])  # seeds, steps, 3
    x = {"step": np.array(steps), "tokens": table[:, :, 1].mean(0), "seconds": table[:, :, 2].mean(0)}
    return x, table[:, :, 0]


def smooth(values, np):
    """Along each row, the mean over a centered window, which does not lag. The window grows with the
    length of the run and shrinks towards its beginning, where the loss is steep."""
    n = values.shape[1]
    half = n // 60
    total = np.cumsum(np.pad(values, ((0, 0), (1, 0))), axis=1)
    i = np.arange(n)
    reach = np.minimum(i, half)
    lo, hi = i - reach, np.minimum(i + reach + 1, n)
    return (total[:, hi] - total[:, lo]) / (hi - lo)


def loss_range(curves, np):
    """Limits of the vertical axis. They show the last nine tenths of the steps and a third more above,
    because the first steps would hide the rest. Diverged runs do not set the scale."""
    lows, highs = [], []
    for step, values in curves:
        late = values[step >= step[0] + 0.1 * (step[-1] - step[0])]
        lows.append(late.min())
        highs.append(late.max())
    lo = min(lows)
    hi = max(h for h in highs if h <= lo + 3 * (np.median(highs) - lo) + 1e-9)
    span = max(hi - lo, 0.02 * abs(lo), 1e-3)
    return lo - 0.06 * span, lo + 1.33 * span


def final_text(runs):
    """The last validation loss: "3.213", or "3.213 ± 0.004" (standard deviation) over seeds."""
    finals = []
    for run in runs:
        values = [v for v in run["val_loss"] if math.isfinite(v)]
        if values:
            finals.append(values[-1])
    if not finals:
        return math.inf, "no validation loss"
    mean = sum(finals) / len(finals)
    if len(finals) == 1:
        return mean, f"{mean:.4f}"
    spread = math.sqrt(sum((v - mean) ** 2 for v in finals) / (len(finals) - 1))
    return mean, f"{mean:.4f} ± {spread:.4f}, {len(finals)} seeds"


def time_unit(seconds):
    if seconds < 300:
        return 1.0, "seconds"
    return (60.0, "minutes") if seconds < 3 * 3600 else (3600.0, "hours")


def token_unit(tokens):
    for scale, name in ((1e9, "billions"), (1e6, "millions"), (1e3, "thousands")):
        if tokens >= 2 * scale:
            return scale, f"tokens ({name})"
    return 1.0, "tokens"


def draw(groups, title, output):
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
        import numpy as np
    except ImportError as problem:
        fail(f"plot.py needs matplotlib ({problem}): python3 -m pip install matplotlib")

    every = [run for runs in groups.values() for run in runs]
    time_scale, time_name = time_unit(max(run["seconds"][-1] for run in every))
    token_scale, token_name = token_unit(max(run["tokens"][-1] for run in every))
    panels = (("step", 1.0, "steps"), ("tokens", token_scale, token_name),
              ("seconds", time_scale, f"training time ({time_name})"))

    plt.rcParams.update({
        "font.size": 10.5, "axes.spines.top": False, "axes.spines.right": False,
        "axes.edgecolor": "#888888", "axes.labelcolor": "#333333", "xtick.color": "#555555",
        "ytick.color": "#555555", "axes.grid": True, "grid.color": "#e6e6e6",
        "grid.linewidth": 0.8, "axes.axisbelow": True,
    })
    figure, axes = plt.subplots(1, 3, figsize=(15, 5.4), sharey=True)
    for axis, (_, _, label) in zip(axes, panels):
        axis.set_xlabel(label)
        axis.tick_params(length=0)
        axis.margins(x=0.02)
    axes[0].xaxis.get_major_locator().set_params(integer=True)
    axes[0].set_ylabel("loss (nats per token)")

    ranking = sorted(groups, key=lambda name: final_text(groups[name])[0])
    scaled, handles = [], []
    for index, (name, runs) in enumerate(groups.items()):
        color = COLORS[index % len(COLORS)]
        line = LINES[index // len(COLORS) % len(LINES)]
        train, val = average(runs, "train_loss", np), average(runs, "val_loss", np)
        if train is None and val is None:
            fail(f"the seeds of {name} have no logged step in common: give --no-group")
        label = f"{name}   {final_text(runs)[1]}"
        z = 3 + len(groups) - ranking.index(name)  # the best run on top
        for axis, (key, scale, _) in zip(axes, panels):
            if train is not None:
                x, raw = train
                light = smooth(raw, np)
                if len(runs) == 1:
                    axis.plot(x[key] / scale, raw[0], color=color, lw=0.5, alpha=0.18, zorder=1)
                else:
                    axis.fill_between(x[key] / scale, light.min(0), light.max(0), color=color,
                                      alpha=0.12, lw=0, zorder=1)
                handle, = axis.plot(x[key] / scale, light.mean(0), color=color, lw=1.2, alpha=0.5,
                                    ls=line, zorder=2, label=label)
            if val is not None:
                x, seeds = val
                if len(runs) > 1:
                    axis.fill_between(x[key] / scale, seeds.min(0), seeds.max(0), color=color,
                                      alpha=0.22, lw=0, zorder=z)
                handle, = axis.plot(x[key] / scale, seeds.mean(0), color=color, lw=2, ls=line,
                                    marker="o", ms=4.5, mec="white", mew=0.7, zorder=z, label=label,
                                    markevery=max(1, seeds.shape[1] // 40))
        handles.append((ranking.index(name), handle))
        if train is not None:
            scaled.append((train[0]["step"], smooth(train[1], np).mean(0)))
        if val is not None:
            scaled.append((val[0]["step"], val[1].mean(0)))

    axes[0].set_ylim(*loss_range(scaled, np))
    from matplotlib.lines import Line2D

    keys = [Line2D([], [], color="#666666", lw=2, marker="o", ms=4.5, mec="white", mew=0.7,
                   label="validation"),
            Line2D([], [], color="#666666", lw=1.2, alpha=0.5, label="training, smoothed")]
    axes[0].legend(handles=keys, loc="upper right", frameon=False, fontsize=9.5)
    legend = axes[2].legend(handles=[h for _, h in sorted(handles, key=lambda pair: pair[0])],
                            loc="upper right", frameon=True, framealpha=0.85, edgecolor="none",
                            title="final validation loss", fontsize=9.5, title_fontsize=9.5)
    legend.set_zorder(100)
    if title:
        figure.suptitle(title, fontsize=13)
    figure.tight_layout(w_pad=2)
    try:
        figure.savefig(output, dpi=150)
    except (OSError, ValueError) as problem:
        fail(f"cannot write {output}: {problem}")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="run folders, or log.jsonl files")
    parser.add_argument("-o", "--output", help="picture to write (default: plot.png beside the "
                        "first run); .png, .pdf and .svg are understood")
    parser.add_argument("--group", metavar="REGEX", default=SEED_ENDING,
                        help="ending of a name that marks a seed (default: %(default)s)")
    parser.add_argument("--no-group", action="store_true", help="draw every run for itself")
    parser.add_argument("--title", default="", help="title of the picture")
    args = parser.parse_args()
    try:
        ending = None if args.no_group else re.compile(args.group)
    except re.error as problem:
        fail(f"--group {args.group} is not a regular expression: {problem}")
    paths = list(dict.fromkeys(os.path.normpath(path) for path in args.runs))
    # The shell's runs/* also matches the picture of an earlier call.
    paths = [p for p in paths if len(paths) == 1 or os.path.isdir(p) or not p.endswith(".png")]
    groups = group_runs([read_run(path) for path in paths], ending)
    output = args.output or os.path.join(os.path.dirname(paths[0]) or ".", "plot.png")
    draw(groups, args.title, output)
    print(f"wrote {output}")


if __name__ == "__main__":
    main()
