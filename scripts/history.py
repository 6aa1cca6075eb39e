"""Losses by step: of run folders (log.jsonl and run.json), and of CSV tables of published runs.

Only the standard library is needed. Functions raise ValueError or OSError with a sentence for the user.
"""

import csv
import io
import json
import math
import os
import re
import sys

import results

# Flags of the trainer that say where and when a run is, or what is reported of it. No loss depends on them.
# --data is among them because run.json has the fingerprint of the data; accuracies depend on --eval-data.
FREE = {"preset", "run", "runs-dir", "resume", "dry-run", "version", "help-markdown", "val-every", "val-every-end",
        "checkpoint-every", "keep-checkpoints", "print-every", "log-groups", "recompute", "device", "cuda-graph",
        "data", "eval-data", "eval-every", "encoder", "bpe"}
# Flags that change the order of sums, and by it the last bits of losses.
ROUNDING = {"threads", "logit-rows"}


def number_or_none(value):
    """The value if it is a finite number that fp32 can hold, else None."""
    right = type(value) in (int, float) and abs(value) <= results.GREATEST
    return value if right else None


# ---- run folders


def find_log(path):
    """The log of a run, or of its folder."""
    log = path if os.path.isfile(path) else os.path.join(path, "log.jsonl")
    if os.path.exists(log):
        return log
    where = os.path.dirname(path) or "."
    known = sorted(os.listdir(where)) if os.path.isdir(where) else []
    known = [d for d in known if os.path.exists(os.path.join(where, d, "log.jsonl"))]
    hint = f"; runs in {where}: {', '.join(known)}" if known else ""
    raise ValueError(f"there is no run in {path}: {log} does not exist{hint}")


def name_of(log):
    """The name of the run of a log: that of its folder, or of the file if it is not log.jsonl."""
    folder, name = os.path.split(os.path.abspath(log))
    return os.path.basename(folder) if name == "log.jsonl" else os.path.splitext(name)[0]


def log_lines(log):
    """The trainer's lines of a log as dictionaries, whose step is a whole number and whose tokens are a number.
    Other whole lines are left out with a warning. The log of a running or killed run may end within a line."""
    lines = []
    with open(log, encoding="utf-8", errors="replace") as f:
        for number, text in enumerate(f, 1):
            line = results.log_line(text) or {}
            step = line.get("step")
            if type(step) is int and 0 <= step < 2**63 and number_or_none(line.get("tokens")) is not None:
                lines.append(line)
            elif text.endswith("\n"):
                print(f"warning: {log}:{number} is not a log line, left out", file=sys.stderr)
    return lines


def record_of(log):
    """The run.json beside a log as a dictionary with `flags`; None if there is none."""
    path = os.path.join(os.path.dirname(log), "run.json")
    if not os.path.exists(path):
        return None
    try:
        with open(path, encoding="utf-8") as f:
            record = json.load(f)
        if not isinstance(record["flags"], dict):
            raise TypeError("flags is not an object")
    except (ValueError, KeyError, TypeError, RecursionError) as problem:
        raise ValueError(f"{path} is not the record of a run: {problem!r}") from None
    return record


# ---- tables


def rows_of(path):
    """The names of the first line of a CSV file, and its rows as dictionaries by these names. The file must be
    whole: every row has as many fields as the first line. Empty lines may stand at its end."""
    with open(path, "rb") as f:
        data = f.read()
    try:
        lines = list(csv.reader(io.StringIO(data.decode("utf-8-sig"), newline="")))
    except (UnicodeDecodeError, csv.Error) as problem:
        raise ValueError(f"{path} is not a CSV file: {problem}") from None
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise ValueError(f"{path} is empty")
    columns = lines[0]
    for number, fields in enumerate(lines[1:], 2):
        if len(fields) != len(columns):
            raise ValueError(f"{path}, row {number}: {len(fields)} fields instead of {len(columns)}")
    return columns, [dict(zip(columns, fields)) for fields in lines[1:]]


def count_field(path, number, row, column):
    text = row[column]
    if not re.fullmatch(r"[0-9]{1,15}", text):
        raise ValueError(f"{path}, row {number}: {column} is {text!r}, not a whole number")
    return int(text)


def loss_field(path, number, row, column):
    try:
        value = float(row[column])
    except ValueError:
        raise ValueError(f"{path}, row {number}: {column} is {row[column]!r}, not a number") from None
    if number_or_none(value) is None:
        raise ValueError(f"{path}, row {number}: {column} is {row[column]}: that run diverged, or the file is damaged")
    return value


def add_loss(path, number, losses, step, loss):
    if step in losses:
        raise ValueError(f"{path}, row {number}: the run has step {step} twice")
    losses[step] = loss


def long_table(path, rows, column):
    """[{name, seed, losses}] of a table with a row for every run and step."""
    runs = {}
    for number, row in enumerate(rows, 2):
        run = runs.setdefault(row["run"], {"name": row["run"], "seed": row.get("seed") or None, "losses": {}})
        if (row.get("seed") or None) != run["seed"]:
            raise ValueError(f"{path}, row {number}: the run {row['run']} has two seeds")
        step, loss = count_field(path, number, row, "step"), loss_field(path, number, row, column)
        add_loss(path, number, run["losses"], step, loss)
    return list(runs.values())


def wide_table(path, rows, column, columns):
    """[{name, seed, losses}] of a table with a row for every seed and a column COLUMN@STEP for every step."""
    steps = {name: int(name.rpartition("@")[2]) for name in columns if is_step_column(name, column)}
    return [{"name": f"seed {row['seed']}", "seed": row["seed"],
             "losses": {step: loss_field(path, number, row, name) for name, step in steps.items()}}
            for number, row in enumerate(rows, 2)]


def is_step_column(name, column):
    return re.fullmatch(re.escape(column) + r"@[0-9]{1,15}", name) is not None


def mean_table(path, rows, column, columns):
    """{step: {n, mean, std, low, high}} of a table of means; std, low and high are None where the table has no
    such column."""
    extra = {"std": f"{column}_std", "low": f"{column}_min", "high": f"{column}_max"}
    points = {}
    for number, row in enumerate(rows, 2):
        point = {"n": count_field(path, number, row, "n"), "mean": loss_field(path, number, row, f"{column}_mean")}
        if point["n"] < 1:
            raise ValueError(f"{path}, row {number}: n is 0")
        for key, name in extra.items():
            known = name in columns and not (key == "std" and point["n"] == 1)
            point[key] = loss_field(path, number, row, name) if known else None
        add_loss(path, number, points, count_field(path, number, row, "step"), point)
    return points


def form_of(columns, column="val_loss"):
    """Which table of losses has these columns: long, means or wide; None if it is none."""
    if {"run", "step", column} <= set(columns):
        return "long"
    if {"step", "n", f"{column}_mean"} <= set(columns):
        return "means"
    return "wide" if "seed" in columns and any(is_step_column(name, column) for name in columns) else None


def read_table(path, column="val_loss"):
    """({runs: [{name, seed, losses: {step: loss}}]} or {means: {step: {n, mean, std, low, high}}}) of a CSV
    file, by its columns: `run,step,COLUMN` (`seed` is optional), `step,n,COLUMN_mean` (optional `COLUMN_std`,
    `COLUMN_min`, `COLUMN_max`), or `seed` and some `COLUMN@STEP`."""
    columns, rows = rows_of(path)
    form = form_of(columns, column)
    if form is None:
        raise ValueError(f"{path} has no losses {column}: its columns are {', '.join(columns)}; they must be run, "
                         f"step, {column}, or step, n, {column}_mean, or seed and {column}@STEP")
    if not rows:
        raise ValueError(f"{path} has no rows")
    if form == "means":
        return {"means": mean_table(path, rows, column, columns)}
    return {"runs": long_table(path, rows, column) if form == "long" else wide_table(path, rows, column, columns)}


def mean_curve(table):
    """{step: {n, mean, std, low, high}} of a table that read_table returns, of the runs that have the step."""
    if "means" in table:
        return table["means"]
    curve = {}
    for step in sorted(set().union(*(run["losses"] for run in table["runs"]))):
        losses = [run["losses"][step] for run in table["runs"] if step in run["losses"]]
        curve[step] = {"n": len(losses), "mean": results.mean(losses), "low": min(losses), "high": max(losses),
                       "std": results.deviation(losses) if len(losses) > 1 else None}
    return curve
