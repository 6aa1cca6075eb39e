"""The charts of scripts/report.py, drawn on the canvas of scripts/svg.py.

A chart takes views (report.py): a setting with its arms, where an arm has its rows, its losses by seed and
its paired test. An arm keeps its colour, dash and marker in all charts. What a colour says is also said by a
dash, a marker or a text.
"""

import math

import results
from svg import Axes, Canvas, labels, log_label, log_ticks, text_width, ticks

MINUS = "\u2212"
PANEL = 336  # width of a chart that fills a phone's screen
MINI = 168  # width of a chart of which two fill a phone's screen
OUTLIER = 3.0  # a value beyond this many medians does not set a scale
BEYOND = 4.0  # nor does an interval that ends this many times farther than those of the question's arm


def signed(value, digits=4):
    text = f"{abs(value):.{digits}f}"
    return text if float(text) == 0 else ("+" if value > 0 else MINUS) + text


def robust_limit(sizes):
    """The largest of some sizes that is no outlier; 0 if there are none."""
    sizes = sorted(v for v in sizes if math.isfinite(v))
    if not sizes:
        return 0.0
    middle = sizes[len(sizes) // 2]
    return max(v for v in sizes if v <= OUTLIER * middle or v == sizes[0])


def ellipsis(text, size, width):
    """A text shortened to a width."""
    while len(text) > 4 and text_width(text, size) > width:
        text = text[:-2].rstrip(" ,(") + "\u2026"
    return text


def write_fitting(canvas, x, y, text, size, width, colour="ink", bold=False):
    """A text in one line: smaller where up to a fifth suffices, else shortened."""
    fitting = min(size, size * width / max(text_width(text, size), 1))
    if fitting < 0.8 * size:
        fitting, text = size, ellipsis(text, size, width)
    canvas.text(x, y, text, fitting, colour, "start", bold)


def wrapped(text, size, width):
    """A text as lines of a width."""
    lines = []
    for word in text.split():
        if lines and text_width(lines[-1] + " " + word, size) <= width:
            lines[-1] += " " + word
        else:
            lines.append(word)
    return lines


# ---- the differences: the picture that answers the question


def reach(arm):
    """The distance from 0 of the farther end of an arm's interval."""
    return abs(arm.test["mean"]) + (arm.test["half"] if math.isfinite(arm.test["half"]) else 0)


def difference_limit(views):
    """The scale of all panels: the farthest end of an interval that is not far beyond the question's."""
    tested = [arm for view in views for arm in view.arms if arm.test]
    asked = max((reach(arm) for arm in tested if arm.is_question), default=0.0)
    if asked:
        return 1.06 * max(reach(arm) for arm in tested if reach(arm) <= BEYOND * asked)
    return 1.06 * robust_limit([reach(arm) for arm in tested]) or 0.01


class Forest:
    """Sizes of a panel of differences. A wide one has a row on one line; a narrow one has the arm's name
    above its interval."""

    def __init__(self, width, wide):
        self.width, self.wide = width, wide
        self.row = 21 if wide else 36
        self.left = 0.37 * width if wide else 10
        self.right = width - (138 if wide else 10)

    def height(self, view):
        return 20 + self.row * len(view.arms) + 40


def numbers_of(arm):
    """The text beside an interval."""
    if arm.is_base:
        return f"baseline, {arm.mean:.4f}" if math.isfinite(arm.mean) else "baseline, diverged"
    if arm.test is None:
        return "diverged" if any(map(math.isinf, arm.losses.values())) else "no pairs"
    half = arm.test["half"]
    spread = f" \u00b1 {half:.4f}" if math.isfinite(half) else ""
    return f"{signed(arm.test['mean'])}{spread} ({arm.test['n']})"


def draw_forest(canvas, x, y, view, limit, unit, size):
    """Draws a panel with its upper left corner at (x, y)."""
    left, right, top = x + size.left, x + size.right, y + 20
    bottom = top + size.row * len(view.arms)
    axes = Axes(canvas, (left, top, right, bottom), (-limit, limit), (0, 1))
    values = ticks(-limit, limit, 5)
    axes.x_axis(values, labels(values), f"difference of validation loss from {view.base_title}, {unit}")
    zero = axes.x(0)
    canvas.text(zero - 8, top - 7, "\u2190 better", 10, "muted", "end")
    canvas.text(zero + 8, top - 7, "worse \u2192", 10, "muted")
    for i, arm in enumerate(view.arms):
        row = top + size.row * i
        middle, line = (row + size.row / 2, row + size.row / 2 + 4) if size.wide else (row + 24, row + 13)
        # In a narrow panel lines of the grid do not cross the names.
        upper, lower = (row, row + size.row) if size.wide else (row + 17, row + size.row - 1)
        for value in values:
            canvas.line([(axes.x(value), upper), (axes.x(value), lower)], "grid")
        canvas.line([(zero, upper), (zero, lower)], "axis", 1.4)
        numbers = numbers_of(arm)
        free = size.left - 12 if size.wide else size.width - 24 - text_width(numbers, 10.5)
        write_fitting(canvas, x + 4, line, arm.title, 11, free, "ink", arm.is_question)
        canvas.text(x + size.width - 4, line, numbers, 10.5, "ink" if arm.is_question else "muted", "end",
                    arm.is_question)
        draw_interval(canvas, axes, arm, middle, limit)


def draw_interval(canvas, axes, arm, y, limit):
    """The interval of an arm, with an arrow where it leaves the panel. A full marker is a decided
    difference."""
    left, _, right, _ = axes.box
    if arm.is_base:
        canvas.mark(axes.x(0), y, "D", "axis", 4)
        return
    if arm.test is None:
        return
    mean, half = arm.test["mean"], arm.test["half"]
    half = half if math.isfinite(half) else 0.0
    low, high = max(mean - half, -limit), min(mean + half, limit)
    if high > -limit and low < limit:
        canvas.line([(axes.x(low), y), (axes.x(high), y)], arm.colour, 3 if arm.is_question else 2)
    for end, edge, way in ((mean - half, left, -1), (mean + half, right, 1)):
        if abs(end) > limit and end * way > 0:
            canvas.area([(edge + 6 * way, y), (edge - 1 * way, y - 4), (edge - 1 * way, y + 4)], arm.colour)
        elif abs(end) <= limit:
            canvas.line([(axes.x(end), y - 3.5), (axes.x(end), y + 3.5)], arm.colour, 1.5)
    if abs(mean) <= limit:
        tip = f"{arm.title}: {numbers_of(arm)} pairs"
        canvas.mark(axes.x(mean), y, arm.marker, arm.colour, 5 if arm.is_question else 4.2,
                    hollow=not arm.decided, tip=tip)


def forest(view, limit, unit):
    """A panel of one setting for the page."""
    size = Forest(PANEL, wide=False)
    canvas = Canvas(PANEL, size.height(view))
    draw_forest(canvas, 0, 0, view, limit, unit, size)
    words = "; ".join(f"{arm.title} {numbers_of(arm)}" for arm in view.arms)
    return canvas.svg(f"{view.title}: difference of each arm from {view.base_title}", words)


def picture(views, limit, unit, title, answer, note):
    """The panels of all settings in two columns, each in the lower of the two so far, below the answer."""
    width, gap = 470, 16
    size = Forest(width, wide=True)
    columns = 2 if len(views) > 1 else 1
    total = columns * width + (columns - 1) * gap + 24
    answer = wrapped(answer, 13, total - 32)
    head = 44 + 19 * len(answer)
    bottoms, places = [head] * columns, []
    for view in views:
        column = bottoms.index(min(bottoms))
        places.append((column, bottoms[column]))
        bottoms[column] += 18 + size.height(view) + 14
    note = wrapped(note, 11, total - 32)
    canvas = Canvas(total, max(bottoms) + 16 * len(note) + 6)
    write_fitting(canvas, 16, 28, title, 17, total - 32, bold=True)
    for i, line in enumerate(answer):
        canvas.text(16, 50 + 19 * i, line, 13)
    for i, line in enumerate(note):
        canvas.text(16, max(bottoms) + 6 + 16 * i, line, 11, "muted")
    for view, (column, top) in zip(views, places):
        x = 12 + column * (width + gap)
        write_fitting(canvas, x + 4, top + 12, view.title, 12.5, width + 4, bold=True)
        draw_forest(canvas, x, top + 18, view, limit, unit, size)
    return canvas


# ---- curves


def paired_curves(rows, base_rows, column):
    """{step: [differences of seeds]} of a curve of two arms."""
    base = {row["seed"]: dict(results.curve(row[column])) for row in base_rows}
    found = {}
    for row in rows:
        for step, loss in results.curve(row[column]):
            other = base.get(row["seed"], {}).get(step, math.nan)
            if math.isfinite(loss - other):
                found.setdefault(step, []).append(loss - other)
    return found


def mean_curve(rows, column):
    """[(step, mean, deviation over seeds)] where all runs have a finite loss."""
    found = {}
    for row in rows:
        for step, loss in results.curve(row[column]):
            if math.isfinite(loss):
                found.setdefault(step, []).append(loss)
    return [(step, results.mean(v), results.deviation(v) if len(v) > 1 else 0.0)
            for step, v in sorted(found.items()) if len(v) == len(rows)]


def step_axis(axes, last, title="step"):
    values = [v for v in ticks(0, last, 4)]
    axes.x_axis(values, [f"{v:,.0f}" for v in values], title)


def loss_chart(view, arms):
    """Training losses as lines with bands over seeds, validation losses as markers."""
    curves = [(arm, mean_curve(arm.final, "train_curve"), mean_curve(arm.final, "val_curve")) for arm in arms]
    curves = [c for c in curves if c[1] or c[2]]
    if not curves:
        return None
    last = max(step for _, train, val in curves for step, _, _ in train + val)
    late = [m for _, train, val in curves for step, m, _ in train + val if step >= last / 4]
    low, high = min(late), max(late)
    pad = 0.06 * (high - low) or 0.01
    canvas = Canvas(PANEL, 236)
    axes = Axes(canvas, (40, 8, PANEL - 12, 196), (0, last), (low - pad, high + pad))
    values = ticks(*axes.y_limits, 5)
    axes.y_axis(values, labels(values))
    step_axis(axes, last)
    for arm, train, _ in curves:
        steps = [s for s, _, _ in train]
        axes.band(steps, [m - d for _, m, d in train], [m + d for _, m, d in train], arm.colour, 0.13)
    for arm, train, _ in curves:
        axes.line([(s, m) for s, m, _ in train], arm.colour, 1.8, arm.dash)
    for arm, _, val in curves:
        for step, m, d in val:
            if axes.y_limits[0] <= m <= axes.y_limits[1]:
                canvas.mark(axes.x(step), axes.y(m), arm.marker, arm.colour, 3.6,
                            tip=f"{arm.title}, step {step}: validation {m:.4f} \u00b1 {d:.4f}")
    words = "; ".join(f"{arm.title} {val[-1][1]:.4f}" for arm, _, val in curves if val)
    return canvas.svg(f"{view.title}: losses over steps", f"Validation loss at the end: {words}")


def interval_points(found, step_from=0):
    """[(step, mean, half width of the 95 % interval)] of {step: differences}, from two pairs up."""
    out = []
    for step, values in sorted(found.items()):
        if step >= step_from and len(values) > 1:
            test = results.paired(values)
            out.append((step, test["mean"], test["half"]))
    return out


def difference_curves(view, arms):
    """[(arm, SVG, has a scale of its own)]: for each arm, how its difference from the baseline develops. All
    panels have one scale, but for an arm that ends beyond it."""
    base = view.base
    if base is None:
        return []
    data = []
    for arm in arms:
        train = interval_points(paired_curves(arm.final, base.final, "train_curve"), 1)
        val = interval_points(paired_curves(arm.final, base.final, "val_curve"), 1)
        if train or val:
            data.append((arm, train, val))
    if not data:
        return []
    last = max(p[0] for _, train, val in data for p in train + val)
    limit = robust_limit([abs(m) + 0.7 * h for _, train, val in data for s, m, h in train + val
                          if s >= last / 3]) or 0.01
    out = []
    for arm, train, val in data:
        end = max(abs(p[1]) for p in (train[-1:] + val[-1:]))
        own = end > limit
        out.append((arm, difference_curve(view, arm, train, val, last, 1.4 * end if own else limit), own))
    return out


def difference_curve(view, arm, train, val, last, limit):
    canvas = Canvas(MINI, 128)
    axes = Axes(canvas, (40, 6, MINI - 8, 106), (0, last), (-limit, limit))
    values = ticks(-limit, limit, 4)
    axes.y_axis(values, labels(values), 9)
    step_axis_small(axes, last)
    canvas.line([(axes.box[0], axes.y(0)), (axes.box[2], axes.y(0))], "axis", 1.2)
    axes.band([p[0] for p in train], [m - h for _, m, h in train], [m + h for _, m, h in train], arm.colour, 0.2)
    axes.line([(s, m) for s, m, _ in train], arm.colour, 1.6)
    for step, m, h in val:
        x = axes.x(step)
        axes.line([(step, max(m - h, -limit)), (step, min(m + h, limit))], "ink", 1.2)
        if abs(m) <= limit:
            canvas.mark(x, axes.y(m), arm.marker, arm.colour, 3.6, tip=f"step {step}: {signed(m)} \u00b1 {h:.4f}")
        else:
            edge = axes.box[1] + 5 if m > 0 else axes.box[3] - 5
            way = -1 if m > 0 else 1
            canvas.area([(x, edge + 5 * way), (x - 4, edge - 1 * way), (x + 4, edge - 1 * way)], arm.colour)
    words = f"at the end {signed(val[-1][1])} \u00b1 {val[-1][2]:.4f}" if val else ""
    return canvas.svg(f"{view.title}: {arm.title} minus {view.base_title} over steps", words)


def step_axis_small(axes, last):
    axes.x_axis([0, last], ["0", f"{last:,.0f}"], "", 9)


# ---- the loss over the learning rate


def rate_charts(view, arms):
    """[(arm, SVG, has a scale of its own)]: final loss of every run that chose the rate, and of the fresh
    seeds. All panels have one scale, but for an arm whose losses all lie above it."""
    finite = [row["final_val"] for arm in arms for row in arm.tune + arm.final if math.isfinite(row["final_val"])]
    if not finite:
        return []
    low = min(finite)
    above = sorted(v - low for v in finite)
    high = low + 2.2 * max(above[len(above) // 2], 1e-3)
    out = []
    for arm in arms:
        of_arm = [row["final_val"] for row in arm.tune + arm.final if math.isfinite(row["final_val"])]
        own = bool(of_arm) and min(of_arm) > high
        limits = (min(of_arm), max(max(of_arm), min(of_arm) + 1e-3)) if own else (low, high)
        pad = 0.08 * (limits[1] - limits[0])
        out.append((arm, rate_chart(view, arm, (limits[0] - pad, limits[1] + pad)), own))
    return out


def rate_chart(view, arm, limits):
    rates = sorted({row["rate"] for row in arm.tune + arm.final})
    span = (rates[0] / 1.25, rates[-1] * 1.25)
    canvas = Canvas(MINI, 136)
    axes = Axes(canvas, (40, 16, MINI - 8, 112), span, limits, x_log=True)
    values = ticks(*limits, 4)
    axes.y_axis(values, labels(values), 9)
    marks = rates[:1] + rates[1:][-1:]
    axes.x_axis(marks, [log_label(v) for v in marks], "", 9)
    if arm.best is not None:
        x = axes.x(arm.best)
        canvas.line([(x, axes.box[1]), (x, axes.box[3])], "muted", 1, (2, 2))
        canvas.text(min(max(x, 40 + 22), MINI - 30), 11, f"chosen {log_label(arm.best)}", 9, "ink", "middle")
    means = []
    for rate in rates:
        losses = [row["final_val"] for row in arm.tune if row["rate"] == rate]
        if losses and all(map(math.isfinite, losses)):
            means.append((rate, results.mean(losses)))
    axes.line(means, arm.colour, 1.6, arm.dash)
    for row in arm.final:
        draw_run(axes, row, arm, 2.6, 0.5, 7)
    for row in arm.tune:
        draw_run(axes, row, arm, 3.2, 1.0)
    words = "; ".join(f"rate {rate:g}: {loss:.4f}" for rate, loss in means)
    chosen = f"; chosen {arm.best:g}" if arm.best is not None else "; not chosen yet"
    return canvas.svg(f"{view.title}, {arm.title}: final loss by learning rate", words + chosen)


def draw_run(axes, row, arm, size, opacity, aside=0):
    """A run: a marker, an arrow where its loss is above the panel, a cross where it diverged. Fresh seeds
    stand `aside` pixels beside their rate."""
    x, canvas = axes.x(row["rate"]) + aside, axes.canvas
    loss, top = row["final_val"], axes.box[1]
    tip = f"rate {row['rate']:g}, seed {row['seed']}: {loss:.4f}" + (", diverged" if row["diverged"] else "")
    if row["diverged"] or not math.isfinite(loss):
        canvas.mark(x, top + 5, "X", "ink", 3.6, tip=tip)
    elif loss > axes.y_limits[1]:
        canvas.area([(x, top - 1), (x - 3.5, top + 6), (x + 3.5, top + 6)], arm.colour, opacity, tip=tip)
    else:
        canvas.mark(x, axes.y(max(loss, axes.y_limits[0])), arm.marker, arm.colour, size, opacity=opacity, tip=tip)


# ---- wall clock


def clock_chart(view, clocks, base):
    """Bars of milliseconds a step: [(arm, ms, share of runs on a loaded machine)]."""
    row, top, name_width = 26, 4, 0
    canvas = Canvas(PANEL, top + row * len(clocks) + 6)
    most = max(ms for _, ms, _ in clocks) or 1.0
    base_ms = next((ms for arm, ms, _ in clocks if arm is base), None)
    scale = (PANEL - 12) / most
    words = []
    for i, (arm, ms, loaded) in enumerate(clocks):
        y = top + row * i
        ratio = f", \u00d7 {ms / base_ms:.2f}" if base_ms else ""
        mark = f"  \u25b2 {100 * loaded:.0f} % loaded" if loaded else ""
        text = f"{ms:.3g} ms{ratio}{mark}"
        canvas.text(4, y + 12, ellipsis(arm.title, 11, PANEL - 16 - text_width(text, 10.5)), 11, "ink", "start",
                    arm.is_question)
        canvas.text(PANEL - 4, y + 12, text, 10.5, "muted", "end")
        canvas.rectangle(4, y + 16, (PANEL - 8), 5, "grid")
        canvas.rectangle(4, y + 16, max(1, ms * scale), 5, arm.colour)
        words.append(f"{arm.title} {text}")
    return canvas.svg(f"{view.title}: time of a step", "; ".join(words))


# ---- the attention circuits


def composed_chart(circuit, series):
    """Composed steps over steps: [(arm, [[step, max, median], ...])]; a line for the maximum over heads, an
    area down to the median."""
    last = max(p[0] for _, points in series for p in points)
    highest = 1.08 * max(p[1] for _, points in series for p in points) or 1.0
    canvas = Canvas(PANEL, 220)
    axes = Axes(canvas, (40, 8, PANEL - 12, 180), (0, last), (0, highest))
    values = ticks(0, highest, 5)
    axes.y_axis(values, labels(values))
    step_axis(axes, last)
    for arm, points in series:
        axes.band([p[0] for p in points], [p[2] for p in points], [p[1] for p in points], arm.colour, 0.15)
    for arm, points in series:
        axes.line([(p[0], p[1]) for p in points], arm.colour, 1.8, arm.dash)
    words = "; ".join(f"{arm.title}: at the end {points[-1][1]:.3g}, median {points[-1][2]:.3g}"
                      for arm, points in series)
    return canvas.svg(f"Composed step of {circuit} over steps", words)


def spectrum_limits(records):
    """Limits of singular values over all heads: four decades at most."""
    values = [v for heads in records for head in heads for v in head["singular"] if v > 0]
    high = max(values) * 1.3
    return max(min(values) / 1.3, high * 1e-4), high


def spectrum_chart(title, arm, heads, limits):
    """Singular values of every head's composed map, and their median over heads."""
    count = max(len(head["singular"]) for head in heads)
    canvas = Canvas(MINI, 132)
    axes = Axes(canvas, (34, 6, MINI - 8, 112), (1, max(count, 2)), limits, y_log=True)
    values = log_ticks(*limits, 4)
    axes.y_axis(values, [log_label(v) for v in values], 9)
    axes.x_axis([1, count], ["1", str(count)], "", 9)

    def line(values, colour, width, opacity, dash=()):
        axes.line([(i + 1, max(v, limits[0] / 10)) for i, v in enumerate(values)], colour, width, dash, opacity)

    for head in heads:
        line(head["singular"], arm.colour, 0.8, 0.4)
    whole = [head["singular"] for head in heads if len(head["singular"]) == count]
    middle = [sorted(column)[len(column) // 2] for column in zip(*whole)]
    line(middle, "ink", 1.6, 1.0)
    return canvas.svg(title, f"Median singular values over {len(heads)} heads from {middle[0]:.3g} down to "
                             f"{middle[-1]:.3g}")
