#!/usr/bin/env python3
"""Draws losses of runs, or of the results of a comparison.

    scripts/plot.py runs/a runs/b              loss over steps and time; picture in runs/plot.png
    scripts/plot.py runs/* -o compare.png
    scripts/plot.py runs/muon-s1 runs/muon-s2  seeds of one run: their mean with a min-max band
    scripts/plot.py runs/a --reference curves/ --reference-only r36,r12     published curves behind it
    scripts/plot.py --from-csv results.csv --setting plain -o curves.png
    scripts/plot.py --from-csv results.csv --setting plain --rates -o rates.png

Runs whose names differ only in an ending like -s1 or _seed2 are seeds of one arm. --group gives
another pattern for the ending, and --no-group draws every run separately. The differences are those
of validation losses from the first arm, paired by seed and step. Time is the sum of the times of
steps, without validation and checkpoints.

--from-csv draws the runs on fresh seeds of a file by scripts/compare.py, an arm at one rate.
--rates draws the final loss of the runs that chose the rate.

--reference draws validation losses of CSV files over the steps, thin and grey: means with the band
of lowest to highest run (step,n,val_loss_mean and perhaps val_loss_min and _max, or _std), or runs
(run,step,val_loss). Of a folder's NAME.csv and NAME__mean.csv it takes the means, and it leaves out
files without losses. --reference-only r36,r12 takes the files named so, or so and an underscore.

An arm has its colour in every picture (scripts/style.py). Needs matplotlib.
"""

import argparse
import math
import os
import re
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import history
import results
import style

try:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np
    from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

    missing = None
except ImportError as problem:
    missing = problem

SEED_ENDING = r"[-_.]s(eed)?[-_]?\d+$"
# Above this number of arms a legend within a panel would cover the curves.
LEGEND_INSIDE = 8
# The first steps would hide the rest of a curve: limits ignore this fraction of the run.
EARLY = 0.2
# A machine that does only this run repeats a step within a few percent. One that shares its cores
# with another program takes about twice as long in the windows that it shares.
LOAD_WINDOWS, LOAD_FACTOR, LOAD_COUNT = 20, 1.3, 2
LOADED_LOG = (
    f"* loaded machine: in at least {LOAD_COUNT} of {LOAD_WINDOWS} windows of the run, the mean "
    f"step took over {LOAD_FACTOR} times as long as the run's fast steps (tenth percentile)"
)
# With one thread, a program that has a core for itself computes for nearly all of its time.
LOAD_SHARE = 0.8
LOADED_CSV = (
    f"* loaded machine: in at least half of the runs, of one thread each, the processor worked for "
    f"less than {LOAD_SHARE:.0%} of the time"
)
# How far from the others' differences an arm must be to be left out of their picture.
FAR = 5
# The raw training losses and their bands of more arms than this would be a blur.
SPREAD_ARMS = 3
RATE_COLUMNS = 3  # panels beside each other in the picture of rates
LETTER_INCHES = 0.075  # mean width of a letter of a legend
TICK_INCHES = 0.78  # width of the label of a rate
RATES_NOTES = [
    "Points: seeds. Lines: their means. Rings: the rate that the arm ran at on fresh seeds, or its "
    "best.",
    "Crosses at the upper edge: diverged. Open triangles there: above the picture.",
]
GREY = "#666666"


def fail(message):
    sys.exit(f"error: {message}")


# ---- runs
#
# A run is a dictionary: name, arm, seed (None if unknown), train and val (lists of points (step,
# tokens, seconds, loss)), final (last validation loss; inf if diverged, None if there is none), ms
# (typical milliseconds of a step) and loaded.


def loaded(ms):
    """Whether the times of a run's steps are those of a machine that did other work too. A load
    that slows every step alike does not show."""
    if len(ms) < 2 * LOAD_WINDOWS:
        return False
    fast = sorted(ms)[len(ms) // 10]
    edges = [i * len(ms) // LOAD_WINDOWS for i in range(LOAD_WINDOWS + 1)]
    # The first window has the start of the program, such as choices of kernels.
    windows = [ms[a:b] for a, b in zip(edges, edges[1:])][1:]
    return sum(results.mean(w) > LOAD_FACTOR * fast for w in windows) >= LOAD_COUNT


def after_start(points):
    """The points of validation after step 0, whose loss is that of the initial weights. A line from
    there would cross the whole picture."""
    later = [point for point in points if point[0] > 0]
    return later or points


def seed_of(log):
    """The seed of the run of a log, from the run.json beside it, or None."""
    try:
        return history.record_of(log)["flags"]["seed"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read_run(path):
    """The run of a folder or of a log.jsonl."""
    path = os.path.normpath(path)
    try:
        log = history.find_log(path)
        lines = history.log_lines(log)
    except (OSError, ValueError) as problem:
        fail(str(problem))
    points = {"train_loss": [], "val_loss": []}
    seconds, last_step, times = 0.0, 0, []
    for line in lines:
        step, ms = line["step"], history.number_or_none(line.get("ms"))
        # A log may skip steps. `ms` is the time of one step.
        seconds += (ms or 0) / 1000 * max(step - last_step, 0)
        last_step = step
        if ms:
            times.append(ms)
        for key, of_key in points.items():
            loss = history.number_or_none(line[key])
            if loss is not None:
                of_key.append((step, line["tokens"], seconds, loss))
    if not points["train_loss"] and not points["val_loss"]:
        fail(f"the run {path} has no losses yet")
    name = history.name_of(log)
    val = points["val_loss"]
    return {
        "name": name,
        "arm": name,
        "seed": seed_of(log),
        "train": points["train_loss"],
        "val": after_start(val),
        "final": val[-1][3] if val else None,
        "ms": sorted(times)[len(times) // 2] if times else None,
        "loaded": loaded(times),
    }


def group_runs(runs, ending):
    """{label: runs of one arm}, in order of appearance. A run without other seeds keeps its full
    name as the label."""
    arms = {}
    for run in runs:
        run["arm"] = (re.sub(ending, "", run["name"]) if ending else "") or run["name"]
        arms.setdefault(run["arm"], []).append(run)
    return {
        arm if len(members) > 1 else members[0]["name"]: members for arm, members in arms.items()
    }


# ---- results of a comparison


def read_rows(path, settings, arms):
    """The rows of the settings and arms that were asked for; all if none was."""
    try:
        rows = results.read(path)
    except (OSError, ValueError) as problem:
        fail(str(problem))
    if not rows:
        fail(f"{path} has no rows")
    for key, asked in (("setting", settings), ("arm", arms)):
        known = list(dict.fromkeys(row[key] for row in rows))
        for name in asked or []:
            if name not in known:
                fail(f"{path} has no {key} {name}; it has {', '.join(known)}")
        rows = [row for row in rows if not asked or row[key] in asked]
    return rows


def by_arm(rows, order):
    """{arm: rows}, in the order that was asked for, or that of the file."""
    names = order or list(dict.fromkeys(row["arm"] for row in rows))
    groups = {name: [row for row in rows if row["arm"] == name] for name in names}
    return {name: of_arm for name, of_arm in groups.items() if of_arm}


def chosen_rate(rows):
    """The rate of an arm's rows on fresh seeds: the one with most seeds, the best of these."""
    final = [row for row in rows if row["stage"] == "final"]
    if not final:
        return None
    at = {}
    for row in final:
        at.setdefault(row["rate"], []).append(row["final_val"])
    return min(at, key=lambda rate: (-len(at[rate]), results.mean(at[rate]), rate))


def run_of_row(row):
    """A row as a run. Its seconds are those of median steps."""
    each_tokens = row["tokens"] / max(row["steps"], 1)

    def points(curve):
        return [
            (step, step * each_tokens, step * row["ms"] / 1000, loss)
            for step, loss in curve
            if math.isfinite(loss)
        ]

    # A window's mean belongs to its middle.
    windows = results.curve(row["train_curve"])
    starts = [0] + [step for step, _ in windows]
    middles = [((start + end + 1) / 2, loss) for start, (end, loss) in zip(starts, windows)]
    waited = row["threads"] == 1 and row["cpu_seconds"] < LOAD_SHARE * row["seconds"]
    return {
        "name": row["arm"],
        "arm": row["arm"],
        "seed": row["seed"],
        "train": points(middles),
        "val": after_start(points(results.curve(row["val_curve"]))),
        "final": row["final_val"],
        "ms": row["ms"] if math.isfinite(row["ms"]) else None,
        "loaded": waited,
    }


def groups_of_rows(rows, order):
    """{arm: runs on fresh seeds}, one rate an arm."""
    groups = {}
    for arm, of_arm in by_arm(rows, order).items():
        rate = chosen_rate(of_arm)
        runs = [
            run_of_row(row) for row in of_arm if row["stage"] == "final" and row["rate"] == rate
        ]
        if runs:
            groups[arm] = runs
    if not groups:
        fail(
            "there is no run on fresh seeds yet (stage final); --rates draws those that choose "
            "the rate"
        )
    return groups


# ---- reference curves
#
# A reference is a dictionary: label, steps, and arrays mean, low and high (None without a band);
# band says what low and high are, and text what the last step has.


def stem_of(path):
    """The name of a reference's file, without the parts that all have."""
    name = os.path.splitext(os.path.basename(path))[0]
    return name.removesuffix("__mean").removeprefix("extra_")


def reference_label(path):
    """r36_tuned_muon_n10__mean.csv: "#36 tuned muon"; the number is that of a list of records."""
    words = re.sub(r"_n[0-9]+$", "", stem_of(path)).split("_")
    number = re.fullmatch(r"r0*([0-9]+)([a-z]*)", words[0])
    if number:
        words[0] = f"#{number[1]}{number[2]}"
    return " ".join(words)


def files_of_folder(folder):
    """The CSV files of a folder that have losses; of NAME.csv and NAME__mean.csv the latter."""
    names = sorted((name for name in os.listdir(folder) if name.endswith(".csv")), key=stem_of)
    means = {name.removesuffix("__mean.csv") for name in names if name.endswith("__mean.csv")}
    paths = [os.path.join(folder, n) for n in names if n.removesuffix(".csv") not in means]
    return [path for path in paths if history.form_of(history.rows_of(path)[0])]


def chosen_references(paths, only):
    """The files of --reference and --reference-only."""
    files = []
    for path in paths:
        found = files_of_folder(path) if os.path.isdir(path) else [path]
        if not found:
            raise ValueError(f"{path} has no CSV file with losses: step,n,val_loss_mean or run,step,val_loss")
        files += found
    for name in only:
        if not any(f"{stem_of(path)}_".startswith(f"{name}_") for path in files):
            raise ValueError(
                f"there is no reference {name}; there are {', '.join(map(stem_of, files))}"
            )
    return [
        path
        for path in files
        if not only or any(f"{stem_of(path)}_".startswith(f"{name}_") for name in only)
    ]


def read_reference(path):
    curve = history.mean_curve(history.read_table(path))
    steps = sorted(step for step in curve if step > 0)
    if not steps:
        raise ValueError(f"{path} has no step after 0")
    points = [curve[step] for step in steps]
    mean = np.array([p["mean"] for p in points])
    low = high = band = None
    if all(p["low"] is not None and p["high"] is not None for p in points):
        low, high = (np.array([p[key] for p in points]) for key in ("low", "high"))
        band = "lowest to highest run"
    elif any(p["std"] is not None for p in points):
        std = np.array([p["std"] or 0 for p in points])
        low, high, band = mean - std, mean + std, "standard deviation"
    last = points[-1]
    text = f"{last['mean']:.4f}"
    if last["std"] is not None:
        text += f" ± {last['std']:.4f}"
    return {
        "label": reference_label(path),
        "steps": np.array(steps),
        "mean": mean,
        "low": low,
        "high": high,
        "band": band if max(p["n"] for p in points) > 1 else None,
        "text": f"{text}, {last['n']} run{'s' if last['n'] > 1 else ''}, step {steps[-1]}",
    }


def references_of(args):
    try:
        files = chosen_references(args.reference or [], split(args.reference_only))
        return [read_reference(path) for path in files]
    except (OSError, ValueError) as problem:
        return fail(str(problem))


def within(references, last):
    """The references that have a step up to `last`."""
    for reference in references:
        if reference["steps"][0] > last:
            print(
                f"warning: {reference['label']} begins at step {reference['steps'][0]}, and the "
                f"runs end at {last}: left out",
                file=sys.stderr,
            )
    return [reference for reference in references if reference["steps"][0] <= last]


# ---- curves


def is_diverged(run):
    return run["final"] is not None and math.isinf(run["final"])


def average(runs, key):
    """{step, tokens, seconds} and the losses as an array (seeds, steps), for the steps that all
    seeds have, or None. Diverged runs are left out, unless all have diverged."""
    kept = [run for run in runs if not is_diverged(run)] or runs
    curves = [{point[0]: point for point in run[key]} for run in kept]
    steps = sorted(set.intersection(*(set(c) for c in curves)))
    if not steps:
        return None
    table = np.array([[c[s] for s in steps] for c in curves], float)  # seeds, steps, 4
    x = {
        "step": np.array(steps),
        "tokens": table[:, :, 1].mean(0),
        "seconds": table[:, :, 2].mean(0),
    }
    return x, table[:, :, 3]


def smooth(values):
    """Along each row, the mean over a centered window, which does not lag. The window grows with
    the length of the run and shrinks towards its beginning, where the loss is steep."""
    n = values.shape[1]
    total = np.cumsum(np.pad(values, ((0, 0), (1, 0))), axis=1)
    i = np.arange(n)
    reach = np.minimum(i, n // 40)
    lo, hi = i - reach, np.minimum(i + reach + 1, n)
    return (total[:, hi] - total[:, lo]) / (hi - lo)


def pairs_of(runs, base):
    """[(run, run of base)] that belong together: those of equal seed, or the only two there are.
    Diverged runs have no pair."""
    kept = [run for run in runs if not is_diverged(run)]
    others = [run for run in base if not is_diverged(run)]
    if len(kept) == 1 and len(others) == 1:
        return [(kept[0], others[0])]
    seeds = {run["seed"]: run for run in others if run["seed"] is not None}
    return [(run, seeds[run["seed"]]) for run in kept if run["seed"] in seeds]


def difference(runs, base):
    """(steps, mean, half width, pairs) of the differences of validation losses from `base`, where
    half is that of the mean's 95 % interval, or None without three pairs. Without a pair, the means
    are subtracted. None if no step is common."""
    pairs = pairs_of(runs, base)
    if not pairs:
        one, other = average(runs, "val"), average(base, "val")
        if one is None or other is None:
            return None
        steps, i, k = np.intersect1d(one[0]["step"], other[0]["step"], return_indices=True)
        return (steps, one[1].mean(0)[i] - other[1].mean(0)[k], None, 0) if len(steps) else None
    tables = [({p[0]: p[3] for p in a["val"]}, {p[0]: p[3] for p in b["val"]}) for a, b in pairs]
    steps = sorted(set.intersection(*(set(a) & set(b) for a, b in tables)))
    if not steps:
        return None
    table = np.array([[a[s] - b[s] for s in steps] for a, b in tables])
    half = None
    if len(pairs) > 2:
        half = (
            results.t_quantile(0.95, len(pairs) - 1) * table.std(0, ddof=1) / math.sqrt(len(pairs))
        )
    return np.array(steps), table.mean(0), half, len(pairs)


def loss_range(curves):
    """Limits of the vertical axis from [(steps, losses)]: the last four fifths of the steps, and a
    third more above for the legend. Diverged runs do not set the scale."""
    lows, highs = [], []
    for steps, values in curves:
        late = values[steps >= EARLY * steps[-1]]
        lows.append(late.min())
        highs.append(late.max())
    lo = min(lows)
    hi = max(h for h in highs if h <= lo + 3 * (np.median(highs) - lo) + 1e-9)
    span = max(hi - lo, 0.02 * abs(lo), 1e-3)
    return lo - 0.06 * span, lo + 1.33 * span


def split_far(curves):
    """(near, far) of {label: difference}: an arm whose last difference is above FAR times the
    median one would make all others look equal."""
    ends = {label: abs(curve[1][-1]) for label, curve in curves.items()}
    limit = FAR * float(np.median(list(ends.values())))
    far = [label for label in curves if len(curves) > 2 and ends[label] > limit]
    return [label for label in curves if label not in far], far


def difference_range(curves):
    """Limits of the differences: zero, and every mean and interval of the second half."""
    ends = [0.0]
    for steps, mean, half, _ in curves:
        late = steps >= steps[-1] / 2
        reach = 0 if half is None else half[late]
        ends += [(mean[late] - reach).min(), (mean[late] + reach).max()]
    span = max(ends) - min(ends)
    margin = 0.12 * span if span > 1e-4 else 1e-3
    return min(ends) - margin, max(ends) + margin


# ---- text


def final_text(runs):
    """(mean, text) of the last validation loss: "3.2130", or "3.2130 ± 0.0041, 4 seeds" with the
    standard deviation. Diverged seeds are counted and left out of the mean."""
    finals = [run["final"] for run in runs if run["final"] is not None]
    if not finals:
        return math.inf, "no validation loss"
    known = [value for value in finals if math.isfinite(value)]
    if not known:
        return math.inf, "diverged"
    mean = results.mean(known)
    text = f"{mean:.4f}"
    if len(known) > 1:
        text += f" ± {results.deviation(known):.4f}, {len(known)} seeds"
    if len(known) < len(finals):
        text += f", {len(finals) - len(known)} diverged"
    return mean, text


def step_text(runs):
    """The median time of a step: "1.27 ms". A star marks the times of a loaded machine."""
    times = sorted(run["ms"] for run in runs if run["ms"])
    if not times:
        return "no times"
    ms = times[len(times) // 2]
    text = f"{ms / 1000:.3g} s" if ms >= 1000 else f"{ms:.3g} ms"
    return text + (" *" if is_loaded(runs) else "")


def is_loaded(runs):
    """Whether at least half of the runs ran on a loaded machine."""
    return 2 * sum(run["loaded"] for run in runs) >= len(runs)


def time_unit(seconds):
    if seconds < 300:
        return 1.0, "seconds"
    return (60.0, "minutes") if seconds < 3 * 3600 else (3600.0, "hours")


def count_text(count):
    """A number of tokens: 512, 12.8k, 1.2M, 3B."""
    for scale, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= scale:
            return f"{count / scale:.3g}{unit}"
    return f"{count:.4g}"


def tokens_per_step(runs):
    """The tokens of a step if every run has the same number at every step, else None."""
    points = [p for run in runs for p in run["train"] + run["val"] if p[0] > 0]
    ratio = points[0][1] / points[0][0] if points else 0
    equal = all(abs(p[1] - ratio * p[0]) <= 1e-6 * p[1] for p in points)
    return ratio if equal and ratio > 0 else None


# ---- pictures


def set_style():
    plt.rcParams.update(
        {
            "font.size": 10.5,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": "#888888",
            "axes.labelcolor": "#333333",
            "xtick.color": "#555555",
            "ytick.color": "#555555",
            "axes.grid": True,
            "grid.color": "#e6e6e6",
            "grid.linewidth": 0.8,
            "axes.axisbelow": True,
            "axes.titlesize": 10.5,
            "axes.titlelocation": "left",
            "axes.titlecolor": "#333333",
            "svg.hashsalt": "plot",
            "text.parse_math": False,  # a name may have a $
        }
    )


def looks_of(groups):
    """{label: (colour, dash, marker)}. The look is that of the arm, without the ending of a seed."""
    looks = style.looks(runs[0]["arm"] for runs in groups.values())
    return {label: looks[runs[0]["arm"]] for label, runs in groups.items()}


def line_style(look, order):
    """Arguments of a bold line. A line above another must have gaps, and its markers must be
    smaller, so that both are seen where they coincide."""
    color, dash, marker = look
    return {
        "color": color,
        "ls": (0, dash) if dash else "-",
        "lw": 2,
        "marker": marker,
        "mec": "white",
        "mew": 0.7,
        "ms": max(7.5 - 0.6 * order, 4.5),
        "zorder": 4 + order,
    }


def drawing_order(looks):
    """{label: place} from the lowest line to the highest: solid lines first, as they hide most."""

    def ink(label):
        dash = looks[label][1]
        return sum(dash[::2]) / sum(dash) if dash else 1

    return {label: i for i, label in enumerate(sorted(looks, key=lambda n: (-ink(n), n)))}


def draw_losses(axis, runs, key, scale, look, order, label, spread):
    """One arm's training and validation losses in one panel, with the spread of training losses if
    that is asked for; returns the handle for the legend."""
    bold = line_style(look, order)
    train, val = average(runs, "train"), average(runs, "val")
    handle = None
    if train is not None:
        x, values = train
        x, light = x[key] / scale, smooth(values)
        if spread and len(values) > 1:
            axis.fill_between(
                x, light.min(0), light.max(0), color=look[0], alpha=0.12, lw=0, zorder=1
            )
        elif spread:
            axis.plot(x, values[0], color=look[0], lw=0.5, alpha=0.15, zorder=1)
        (handle,) = axis.plot(
            x, light.mean(0), color=look[0], lw=1.1, alpha=0.5, ls=bold["ls"], zorder=2, label=label
        )
    if val is not None:
        x, values = val
        x = x[key] / scale
        if len(values) > 1:
            axis.fill_between(
                x, values.min(0), values.max(0), color=look[0], alpha=0.2, lw=0, zorder=3
            )
        (handle,) = axis.plot(
            x, values.mean(0), markevery=max(1, len(x) // 20), label=label, **bold
        )
    return handle


def draw_differences(axis, groups, looks, order):
    """The differences of all arms from the first one; returns the largest number of pairs of seeds.
    The last differences of arms that are out of the picture are written into it."""
    base, *others = groups
    found = {label: difference(groups[label], groups[base]) for label in others}
    curves = {label: curve for label, curve in found.items() if curve is not None}
    axis.axhline(0, color=looks[base][0], lw=1.6, zorder=2)
    for label, (steps, mean, half, _) in curves.items():
        if half is not None:
            axis.fill_between(
                steps, mean - half, mean + half, color=looks[label][0], alpha=0.16, lw=0, zorder=1
            )
        axis.plot(
            steps,
            mean,
            markevery=max(1, len(steps) // 20),
            **line_style(looks[label], order[label]),
        )
    near, far = split_far(curves)
    axis.set_ylim(*difference_range([curves[label] for label in near]))
    if far:
        text = "\n".join(f"{label}: {curves[label][1][-1]:+.4f}" for label in far)
        axis.text(
            0.98,
            0.98,
            f"out of the picture, at the end\n{text}",
            transform=axis.transAxes,
            ha="right",
            va="top",
            fontsize=9,
            color=GREY,
        )
    axis.set_ylabel(f"validation loss minus that of {base}")
    return max(count for _, _, _, count in curves.values())


def step_axis(axis, ratio):
    """Labels an axis of steps, with the tokens below them if they are a multiple."""
    axis.xaxis.get_major_locator().set_params(integer=True, nbins=7)
    if ratio is None:
        axis.set_xlabel("steps")
        return
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}\n{count_text(x * ratio)}"))
    axis.set_xlabel("steps (tokens below)")


def legend_box(axis, handles, title):
    legend = axis.legend(
        handles=handles,
        loc="upper right",
        framealpha=0.85,
        edgecolor="none",
        title=title,
        fontsize=9,
        title_fontsize=9,
        handlelength=4,
    )
    legend.get_title().set_color(GREY)
    legend.set_zorder(100)


def relabelled(handle, label):
    """A copy of a line without data, as an entry of a legend."""
    from matplotlib.lines import Line2D

    copy = Line2D([], [])
    copy.update_from(handle)
    # Matplotlib leaves a label out of a legend that begins with an underscore.
    copy.set_label(f" {label}" if label.startswith("_") else label)
    return copy


def finish(figure, title, entries, heading, notes):
    """Puts title, notes and, if there are entries, a legend in columns below the panels."""
    width = figure.get_size_inches()[0]
    text = "\n".join(notes)
    lower = 0.18 * (text.count("\n") + 1) + 0.1 if text else 0.0  # inches
    rows = 0
    if entries:
        longest = max(len(entry.get_label()) for entry in entries)
        columns = max(1, min(len(entries), int(width / (LETTER_INCHES * longest + 0.75))))
        rows = math.ceil(len(entries) / columns)
    legend = 0.2 * rows + 0.3 if rows else 0.0
    upper = 0.35 if title else 0.0
    height = figure.get_size_inches()[1] + legend + lower + upper
    figure.set_size_inches(width, height)
    if text:
        figure.text(0.008, 0.08 / height, text, fontsize=8.5, color=GREY, va="bottom", ha="left")
    if entries:
        box = figure.legend(
            handles=entries,
            loc="lower center",
            bbox_to_anchor=(0.5, lower / height),
            ncols=columns,
            frameon=False,
            title=heading,
            fontsize=9,
            title_fontsize=9,
            handlelength=4,
            borderaxespad=0.3,
        )
        box.get_title().set_color(GREY)
    if title:
        figure.text(0.5, 1 - 0.12 / height, title, fontsize=13, ha="center", va="top")
    # The first pass moves legends that hang below their panels, the second one makes room for them.
    for _ in range(2):
        figure.tight_layout(w_pad=2, rect=(0, (lower + legend) / height, 1, 1 - upper / height))


def all_curves(groups):
    """[(steps, mean losses)] of every arm's training and validation."""
    curves = []
    for runs in groups.values():
        train, val = average(runs, "train"), average(runs, "val")
        if train is not None:
            curves.append((train[0]["step"], smooth(train[1]).mean(0)))
        if val is not None:
            curves.append((val[0]["step"], val[1].mean(0)))
    return curves


def can_compare(groups):
    """Whether any arm has a difference from the first one."""
    base, *others = groups.values()
    return any(difference(runs, base) is not None for runs in others)


def notes_of(groups, references, pairs, note):
    """What the lines and bands are, and whether times are those of a loaded machine."""
    text = "Bold lines with markers: validation. Light lines: training, smoothed."
    if any(len(runs) > 1 for runs in groups.values()):
        text += " Bands: lowest to highest seed."
    if pairs > 2:
        text += (
            f" Bands of differences: 95 % interval of the mean of up to {pairs} pairs of equal "
            f"seed."
        )
    elif pairs == 2:
        text += " Differences: mean of two pairs of equal seed."
    notes = [text]
    if references:
        bands = " or ".join(dict.fromkeys(r["band"] for r in references if r["band"]))
        notes.append("Thin grey lines: reference curves." + (f" Their bands: {bands}." if bands else ""))
    return notes + ([note] if any(is_loaded(runs) for runs in groups.values()) else [])


def draw_references(axis, references):
    """References in a panel whose limits are set; returns lines for the legend."""
    entries = []
    for i, reference in enumerate(references):
        color = style.GREYS[i % len(style.GREYS)]
        dash = style.DASHES[1:][i % (len(style.DASHES) - 1)]
        steps = reference["steps"]
        if reference["band"]:
            axis.fill_between(
                steps, reference["low"], reference["high"], color=color, alpha=0.18, lw=0, zorder=1
            )
        (line,) = axis.plot(
            steps, reference["mean"], color=color, lw=1.3, ls=(0, dash), zorder=2.5
        )
        entries.append(relabelled(line, f"{reference['label']}   {reference['text']}"))
    return entries


def make_panels(count):
    figure, axes = plt.subplots(1, count, figsize=(5.2 * count, 5.0), squeeze=False)
    for axis in axes[0]:
        axis.tick_params(length=0)
        axis.margins(x=0.02)
    return figure, list(axes[0])


def draw_loss_panels(axes, panels, groups, looks, order, references, last):
    """Draws every arm in the panels [(key, scale)], whose limits show the references up to the step
    `last` too; returns {label: a line for the legend}."""
    handles = {}
    for label, runs in groups.items():
        for axis, (key, scale) in zip(axes, panels):
            handles[label] = draw_losses(
                axis,
                runs,
                key,
                scale,
                looks[label],
                order[label],
                label,
                spread=len(groups) <= SPREAD_ARMS,
            )
        if handles[label] is None:
            fail(f"the seeds of {label} have no logged step in common: give --no-group")
    kept = [(r["steps"] <= last, r) for r in references]
    limits = loss_range(all_curves(groups) + [(r["steps"][k], r["mean"][k]) for k, r in kept])
    for axis in axes:
        axis.set_ylim(*limits)
        axis.set_xlim(left=0)
        axis.set_ylabel("loss (nats per token)")
    return handles


def draw_legends(axes, groups, handles):
    """Legends within the first panel and the last; with many arms, the entries of one below
    them."""
    ranking = sorted(groups, key=lambda label: (final_text(groups[label])[0], label))
    finals = {label: f"{label}   {final_text(groups[label])[1]}" for label in ranking}
    if len(groups) > LEGEND_INSIDE:
        return [relabelled(handles[n], f"{finals[n]}; {step_text(groups[n])}") for n in ranking]
    legend_box(
        axes[0], [relabelled(handles[n], finals[n]) for n in ranking], "final validation loss"
    )
    legend_box(
        axes[-1],
        [relabelled(handles[n], f"{n}   {step_text(groups[n])}") for n in ranking],
        "median time of a step",
    )
    return []


def draw(groups, title="", note=LOADED_LOG, time="training time", references=()):
    """The figure of the losses of {label: runs}: over steps, with references behind them, with the
    differences from the first arm, and over time."""
    set_style()
    every = [run for runs in groups.values() for run in runs]
    last = max(p[0] for run in every for p in run["train"] + run["val"])
    references = within(references, last)
    ratio = tokens_per_step(every)
    time_scale, time_name = time_unit(max(p[2] for run in every for p in run["train"] + run["val"]))
    panels = [("step", 1.0)] + ([] if ratio else [("tokens", 1.0)]) + [("seconds", time_scale)]
    compared = can_compare(groups)
    figure, axes = make_panels(len(panels) + compared)
    looks = looks_of(groups)
    order = drawing_order(looks)
    loss_axes = axes[: len(panels) - 1] + axes[-1:]
    handles = draw_loss_panels(loss_axes, panels, groups, looks, order, references, last)
    entries = draw_references(axes[0], references)
    step_axis(axes[0], ratio)
    if not ratio:
        axes[1].xaxis.set_major_formatter(FuncFormatter(lambda x, _: count_text(x)))
        axes[1].set_xlabel("tokens")
    axes[-1].set_xlabel(f"{time} ({time_name})")
    pairs = 0
    if compared:
        pairs = draw_differences(axes[-2], groups, looks, order)
        step_axis(axes[-2], ratio)
        axes[-2].set_xlim(axes[0].get_xlim())
    below = draw_legends(axes, groups, handles)
    heading = "final validation loss; median time of a step" if below else ""
    if entries:
        heading += f"{'; ' if below else ''}references: last validation loss"
    finish(
        figure,
        title,
        below + entries,
        heading,
        notes_of(groups, references, pairs, note),
    )
    return figure


# ---- loss against learning rate


def chooses_rate(row):
    """Whether a row is of a run that chose the rate. A run without a rate of its own has NaN."""
    return row["stage"] == "tune" and not math.isnan(row["rate"])


def losses_by_rate(rows):
    """{rate: final losses, inf where diverged} of the rows that chose the rate."""
    at = {}
    for row in rows:
        if chooses_rate(row):
            at.setdefault(row["rate"], []).append(row["final_val"])
    return dict(sorted(at.items()))


def rate_limits(arms):
    """Limits of the losses: those at the best rate of every arm and at the rates beside it."""
    values = []
    for at in arms.values():
        rates = list(at)
        best = min(range(len(rates)), key=lambda i: results.mean(at[rates[i]]))
        for rate in rates[max(0, best - 1) : best + 2]:
            values += [v for v in at[rate] if math.isfinite(v)]
    if not values:
        return 0.0, 1.0
    lo, hi = min(values), max(values)
    span = max(hi - lo, 1e-3)
    return lo - 0.08 * span, hi + 0.35 * span


def draw_rate_curve(axis, at, chosen, look, order, top):
    """Points of seeds, the line through their means, and the chosen rate of one arm. Values above
    the picture are shown at its edge: diverged runs as crosses, others as open triangles."""
    bold = line_style(look, order)
    means = {rate: results.mean(v) for rate, v in at.items() if all(map(math.isfinite, v))}
    (handle,) = axis.plot(list(means), list(means.values()), **{**bold, "ms": 5})
    for rate, values in at.items():
        inside = [v for v in values if v <= top]
        axis.plot(
            [rate] * len(inside),
            inside,
            ls="",
            marker=look[2],
            ms=3.5,
            color=look[0],
            mew=0,
            alpha=0.45,
            zorder=3,
        )
        if any(map(math.isinf, values)):
            axis.plot(
                [rate],
                [0.965],
                ls="",
                marker="x",
                ms=8,
                mew=2,
                color=look[0],
                zorder=20,
                transform=axis.get_xaxis_transform(),
            )
        elif len(inside) < len(values):
            axis.plot(
                [rate],
                [0.975],
                ls="",
                marker="^",
                ms=6,
                mfc="none",
                mew=1.3,
                color=look[0],
                zorder=19,
                transform=axis.get_xaxis_transform(),
            )
    if chosen in means:
        axis.plot(
            [chosen],
            [means[chosen]],
            ls="",
            marker="o",
            ms=13,
            mfc="none",
            mew=1.6,
            color=look[0],
            zorder=21,
        )
    return handle


def rate_ticks(axis, rates, inches):
    """A logarithmic axis with ticks at rates that were tried, as many as fit."""
    axis.set_xscale("log")
    apart = math.log(rates[-1] / rates[0]) * TICK_INCHES / inches
    shown = []
    for rate in rates:
        if not shown or math.log(rate / shown[-1]) >= apart:
            shown.append(rate)
    axis.set_xticks(shown)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.3g}"))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel("learning rate")


def draw_rates_panel(axis, rows, arms, looks, order, inches):
    """The arms of one setting, with a legend below, the best arm first."""
    tried = {arm: losses_by_rate(of_arm) for arm, of_arm in by_arm(rows, arms).items()}
    tried = {arm: at for arm, at in tried.items() if at}
    limits = rate_limits(tried)
    axis.set_ylim(*limits)
    entries = []
    for arm, at in tried.items():
        best = min(at, key=lambda rate: (results.mean(at[rate]), rate))
        chosen = chosen_rate([row for row in rows if row["arm"] == arm]) or best
        handle = draw_rate_curve(axis, at, chosen, looks[arm], order[arm], limits[1])
        loss = results.mean(at[best])
        text = f"{arm}   {loss:.4f} at {best:g}" if math.isfinite(loss) else f"{arm}   diverged"
        if chosen != best:
            text += f", ran at {chosen:g}"
        entries.append((loss, arm, relabelled(handle, text)))
    rate_ticks(axis, sorted({rate for at in tried.values() for rate in at}), inches)
    handles = [entry for _, _, entry in sorted(entries, key=lambda e: e[:2])]
    longest = max(len(handle.get_label()) for handle in handles)
    box = axis.legend(
        handles=handles,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.11),
        frameon=False,
        fontsize=9,
        title="mean loss at the best rate",
        title_fontsize=9,
        handlelength=4,
        ncols=max(1, min(len(handles), int(inches / (LETTER_INCHES * longest + 0.75)))),
    )
    box.get_title().set_color(GREY)


def draw_rates(rows, arms=None, title=""):
    """The figure of final loss against learning rate, a panel for each setting."""
    set_style()
    tuned = [row for row in rows if chooses_rate(row)]
    if not tuned:
        fail("there is no run that chose a rate (stage tune)")
    settings = list(dict.fromkeys(row["setting"] for row in tuned))
    looks = style.looks(row["arm"] for row in rows)
    order = drawing_order(looks)
    inches = 7.5 if len(settings) == 1 else 6.5
    columns = min(len(settings), RATE_COLUMNS)
    lines = -(-len(settings) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(inches * columns + 1, 5.6 * lines), squeeze=False
    )
    for axis in axes.flat[len(settings) :]:
        axis.remove()
    for axis, setting in zip(axes.flat, settings):
        axis.tick_params(length=0)
        axis.set_ylabel("final validation loss (nats per token)")
        if len(settings) > 1:
            axis.set_title(setting)
        of_setting = [row for row in rows if row["setting"] == setting]
        draw_rates_panel(axis, of_setting, arms, looks, order, inches)
    finish(figure, title, [], None, RATES_NOTES)
    return figure


# ---- command line


def save(figure, output):
    try:
        figure.savefig(output, dpi=150)
    except (OSError, ValueError) as problem:
        fail(f"cannot write {output}: {problem}")
    print(f"wrote {output}")


def split(text):
    return text.split(",") if text else []


def draw_csv(args):
    """The picture of --from-csv, and its default path."""
    rows = read_rows(args.from_csv, split(args.setting), split(args.arms))
    stem = os.path.splitext(args.from_csv)[0]
    if args.rates:
        return draw_rates(rows, split(args.arms), args.title), f"{stem}-rates.png"
    settings = list(dict.fromkeys(row["setting"] for row in rows))
    if len(settings) > 1:
        fail(
            f"{args.from_csv} has several settings, choose one with --setting: "
            f"{', '.join(settings)}"
        )
    figure = draw(
        groups_of_rows(rows, split(args.arms)),
        args.title,
        LOADED_CSV,
        "steps times median time of a step",
        references_of(args),
    )
    return figure, f"{stem}-{settings[0]}.png"


def draw_runs(args):
    """The picture of run folders, and its default path."""
    try:
        ending = None if args.no_group else re.compile(args.group)
    except re.error as problem:
        fail(f"--group {args.group} is not a regular expression: {problem}")
    paths = list(dict.fromkeys(os.path.normpath(path) for path in args.runs))
    # The shell's runs/* also matches the picture of an earlier call.
    paths = [p for p in paths if len(paths) == 1 or os.path.isdir(p) or not p.endswith(".png")]
    groups = group_runs([read_run(path) for path in paths], ending)
    figure = draw(groups, args.title, references=references_of(args))
    return figure, os.path.join(os.path.dirname(paths[0]) or ".", "plot.png")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", help="run folders, or log.jsonl files")
    parser.add_argument(
        "-o",
        "--output",
        help="picture to write (default: plot.png beside the first run; "
        "with --from-csv, FILE-SETTING.png or FILE-rates.png); .png, .pdf and .svg are "
        "understood",
    )
    parser.add_argument(
        "--group",
        metavar="REGEX",
        default=SEED_ENDING,
        help="ending of a name that marks a seed (default: %(default)s)",
    )
    parser.add_argument("--no-group", action="store_true", help="draw every run for itself")
    parser.add_argument("--from-csv", metavar="FILE", help="results of scripts/compare.py to draw")
    parser.add_argument(
        "--setting", help="setting to draw; with --rates, several with commas between"
    )
    parser.add_argument(
        "--arms",
        help="arms to draw, with commas between; the first is the one that "
        "differences are taken from",
    )
    parser.add_argument(
        "--rates", action="store_true", help="draw final loss against learning rate"
    )
    parser.add_argument(
        "--reference",
        nargs="+",
        action="extend",
        metavar="PATH",
        help="CSV files of published losses, or folders of them, to draw behind the runs",
    )
    parser.add_argument(
        "--reference-only", metavar="NAMES", help="references to draw, with commas between"
    )
    parser.add_argument("--title", default="", help="title of the picture")
    args = parser.parse_args()
    if bool(args.runs) == bool(args.from_csv):
        where = " before --reference" if args.reference else ""
        fail(f"give run folders{where} or --from-csv FILE")
    if (args.rates or args.setting or args.arms) and not args.from_csv:
        fail("--rates, --setting and --arms belong to --from-csv")
    if args.reference_only and not args.reference:
        fail("--reference-only belongs to --reference")
    if args.reference and args.rates:
        fail("--rates draws no curves: leave out --reference")
    if missing:
        fail(f"plot.py needs matplotlib ({missing}): python3 -m pip install matplotlib")
    figure, output = draw_csv(args) if args.from_csv else draw_runs(args)
    save(figure, args.output or output)


if __name__ == "__main__":
    main()
