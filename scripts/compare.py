#!/usr/bin/env python3
"""Compares optimizers: many short, deterministic runs, several at once, one CSV row a run.

    scripts/compare.py dev/compare/GRID.toml                 runs what is not done yet
    scripts/compare.py dev/compare/GRID.toml --dry-run       how many runs, how long
    scripts/compare.py dev/compare/GRID.toml --table         what the results say so far
    scripts/compare.py --sweep --lr 0.005,0.01,0.02 --seed 1,2,3 --optimizer cm,muon    every combination

A grid file (TOML; docs/comparison.md has every key) names settings, arms, learning rates and seeds.
For each arm of a setting the rate is chosen first, on the seeds of [tune]: around the best rate,
`around` rates on each side must have been tried, so the grid grows where the best lies on its edge.
Then the arm runs at its best rate on the fresh seeds of [final]. Seeds decide initial weights and data
order, so runs of equal seed pair up.

A run is skipped if the results have a row with its flags. A killed comparison goes on where it
stopped: its unfinished runs begin anew. Needs Python 3.11, nothing else.
"""

import argparse
import atexit
import ctypes
import datetime
import fcntl
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time

if sys.version_info < (3, 11):
    sys.exit("error: comparing needs Python 3.11 or later")
import tomllib

import results

WINDOWS = 16  # of the curve of training losses
LEAST_RATE, GREATEST_RATE = 1e-6, 1e3  # of the ladder
# Rates have three digits, an error of up to 0.5 %: neighbours this far apart keep their places on the ladder.
LEAST_FACTOR, GREATEST_FACTOR = 1.02, 100
MOST_SEEDS = 10000  # more than anyone runs: a slip of the keyboard


def fail(message):
    sys.exit(f"error: {message}")


# ---- the grid


def ladder(step, factor):
    """Rate number `step` of the ladder of rates: 0.01 factor^step, to three digits."""
    return float(f"{0.01 * factor ** step:.3g}")


def rung(rate, factor):
    """The number of the rate nearest to `rate`."""
    return round(math.log(rate / 0.01) / math.log(factor))


def seeds_of(value, where):
    """[1, 2] or "101-108" as a list of seeds."""
    if isinstance(value, list) and all(type(v) is int and v >= 0 for v in value):
        if len(set(value)) < len(value):
            fail(f"{where}: a seed is given twice in {value}")
        return value
    if isinstance(value, str) and value.count("-") == 1:
        first, last = value.split("-")
        if first.isdecimal() and last.isdecimal() and 0 <= int(last) - int(first) < MOST_SEEDS:
            return list(range(int(first), int(last) + 1))
    fail(f"{where}: seeds are a list of numbers or text like \"101-108\", not {value!r}")


def is_text(value):
    return isinstance(value, str)


def is_number(value):
    return type(value) in (int, float) and math.isfinite(value)


def is_count(value):
    return type(value) is int and value >= 0


def is_rate(value):
    return is_number(value) and LEAST_RATE <= value <= GREATEST_RATE


def is_factor(value):
    return is_number(value) and LEAST_FACTOR <= value <= GREATEST_FACTOR


def is_seeds(value):
    return isinstance(value, (list, str))  # seeds_of looks inside


def is_table(value):
    return isinstance(value, dict)


def is_flags(value):
    """Whether a value is a table of flags, without those that compare.py itself gives to each run."""
    return is_table(value) and not RESERVED & set(value) and \
        all(is_text(v) or isinstance(v, bool) or is_number(v) for v in value.values())


def list_of(right):
    return lambda value: isinstance(value, list) and all(map(right, value))


def number_or_table(right):
    """A value, or a table of values by the name of a setting or an arm."""
    return lambda value: all(map(right, value.values())) if is_table(value) else right(value)


def is_name(value):
    """Whether a value can be a part of a folder's name and of a line of the CSV."""
    return is_text(value) and value.isprintable() and value != "" and "/" not in value and value[0] != "."


# Flags that compare.py itself gives to each run.
RESERVED = {"run", "runs-dir", "resume", "dry-run", "help"}

# Each table's keys, with the test of a value and the words for it.
NAME = (is_name, "text without a slash or a leading dot")
TEXT = (is_text, "text")
RATE = (is_rate, f"a rate from {LEAST_RATE:g} to {GREATEST_RATE:g}")
RATES = (number_or_table(is_rate), "a rate, or a table of rates")
COUNT = (is_count, "a whole number of at least 0")
COUNTS = (number_or_table(is_count), "a whole number of at least 0, or a table of them")
TEXTS = (list_of(is_text), "a list of texts")
FLAGS = (is_flags, f"a table of flags with texts, numbers or booleans, without {', '.join(sorted(RESERVED))}")
SEEDS = (is_seeds, "a list of seeds")
TABLE = (is_table, "a table")
TABLES = (list_of(is_table), "tables, headed by [[...]]")
KEYS = {
    "": {"name": NAME, "title": TEXT, "program": TEXT, "baseline": TEXT, "question": TEXT, "rate": TABLE,
         "run": FLAGS, "tune": TABLE, "final": TABLE, "setting": TABLES, "arm": TABLES},
    "rate": {"flags": TEXTS, "factor": (is_factor, f"a number from {LEAST_FACTOR} to {GREATEST_FACTOR}"),
             "around": COUNT, "start": RATE},
    "tune": {"seeds": SEEDS},
    "final": {"seeds": SEEDS},
    "setting": {"name": NAME, "title": TEXT, "run": FLAGS, "arms": TEXTS, "final": COUNT, "tune": SEEDS,
                "fixed": RATES, "start": RATES, "baseline": TEXT},
    "arm": {"name": NAME, "title": TEXT, "run": FLAGS, "start": RATE, "final": COUNTS, "rate": TEXTS,
            "settings": TEXTS, "fixed": RATE},
}


def check_table(table, kind, where):
    """Ends the program if a table has an unknown key or a value of a wrong type."""
    for key, value in table.items():
        if key not in KEYS[kind]:
            fail(f"{where}: unknown key {key}; known are {', '.join(sorted(KEYS[kind]))}")
        right, words = KEYS[kind][key]
        if not right(value):
            fail(f"{where}: {key} is {words}, not {value!r}")


def read_grid(path):
    """The grid file, with defaults filled in. Ends the program if it has no meaning."""
    try:
        with open(path, "rb") as f:
            grid = tomllib.load(f)
    except OSError as problem:
        fail(f"cannot read the grid {path}: {problem.strerror}")
    except tomllib.TOMLDecodeError as problem:
        fail(f"{path} is not TOML: {problem}")
    except UnicodeDecodeError:
        fail(f"{path} is not TOML: it is not UTF-8 text")
    check_table(grid, "", path)
    for key in ("name", "arm"):
        if not grid.get(key):
            fail(f"{path}: {key} is missing")
    grid.setdefault("program", "./train_gpt")
    grid.setdefault("run", {})
    grid["setting"] = grid.get("setting") or [{"name": "all"}]
    grid.setdefault("baseline", grid["arm"][0]["name"])
    for kind in ("rate", "tune", "final"):
        check_table(grid.setdefault(kind, {}), kind, f"{path}, [{kind}]")
    rate = grid["rate"]
    rate.setdefault("flags", ["lr"])
    rate.setdefault("factor", 2 ** 0.5)
    rate.setdefault("around", 1)
    rate.setdefault("start", 0.014)
    grid["tune"]["seeds"] = seeds_of(grid["tune"].get("seeds", [1]), f"{path}, [tune]")
    grid["final"]["seeds"] = seeds_of(grid["final"].get("seeds", []), f"{path}, [final]")
    for kind in ("setting", "arm"):
        names = set()
        for item in grid[kind]:
            if "name" not in item:
                fail(f"{path}: a {kind} has no name")
            check_table(item, kind, f"{path}, {kind} {item['name']}")
            if item["name"] in names:
                fail(f"{path}: two {kind}s are named {item['name']}")
            names.add(item["name"])
            item.setdefault("title", item["name"])
            item.setdefault("run", {})
    check_references(grid, path)
    return grid


def check_references(grid, path):
    """Ends the program if a name stands for no arm or setting, or a setting has no seeds for its rates."""
    names = {kind: {item["name"] for item in grid[kind]} for kind in ("setting", "arm")}
    for setting in grid["setting"]:
        where = f"{path}, setting {setting['name']}"
        by_arm = [name for key in ("fixed", "start") if is_table(setting.get(key)) for name in setting[key]]
        for name in setting.get("arms", []) + by_arm + [setting.get("baseline", grid["baseline"])]:
            if name not in names["arm"]:
                fail(f"{where}: there is no arm {name}")
        setting["tune"] = seeds_of(setting.get("tune", grid["tune"]["seeds"]), where)
        if not setting["tune"]:
            fail(f"{where}: no seed chooses its rates")
    for arm in grid["arm"]:
        by_setting = list(arm["final"]) if is_table(arm.get("final")) else []
        for name in arm.get("settings", []) + by_setting:
            if name not in names["setting"]:
                fail(f"{path}, arm {arm['name']}: there is no setting {name}")


def arms_of(grid, setting):
    """The arms that run in a setting."""
    chosen = setting.get("arms")
    return [arm for arm in grid["arm"]
            if (chosen is None or arm["name"] in chosen) and
            (setting["name"] in arm["settings"] if "settings" in arm else True)]


def count_of(grid, setting, arm):
    """The fresh seeds on which an arm runs: the first `final` of [final]."""
    seeds = grid["final"]["seeds"]
    limit = arm.get("final", setting.get("final", len(seeds)))
    if isinstance(limit, dict):  # by setting
        limit = limit.get(setting["name"], setting.get("final", len(seeds)))
    if "final" in setting:
        limit = min(limit, setting["final"])
    return seeds[:limit]


def text_of(value):
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def words_of(flags):
    """Flags as words of a command line. A switch has no value."""
    return [word for name, value in flags.items() for word in ([f"--{name}"] if value is None else [f"--{name}", value])]


# Flags that say where and when a run is, and leave its numbers alone.
PLACES = {"run", "runs-dir", "threads", "keep-checkpoints", "checkpoint-every", "print-every", "resume",
          "log-groups"}
SWITCHES = {"log-groups", "resume"}  # flags without a value, `true` or `false` in a grid


class Job:
    """One run: its place in the grid and its flags."""

    def __init__(self, grid, setting, arm, rate, seed, stage):
        self.setting, self.arm, self.rate, self.seed, self.stage = setting, arm, rate, seed, stage
        flags = dict(grid["run"]) | setting["run"] | arm["run"]
        if rate is not None:
            flags |= {name: rate for name in arm.get("rate", grid["rate"]["flags"])}
        flags["seed"] = seed
        flags = {name: None if name in SWITCHES else value for name, value in flags.items()
                 if name not in SWITCHES or value not in (False, "off")}
        self.flags = {name: None if value is None else text_of(value) for name, value in flags.items()}
        decisive = {name: value for name, value in sorted(self.flags.items()) if name not in PLACES}
        self.key = shlex.join(words_of(decisive))
        self.name = f"{setting['name']}.{arm['name']}.{'own' if rate is None else text_of(rate)}.s{seed}"


def settled(tried, around, factor):
    """(best rate, rates still to try) from {rate: mean loss}, where `around` rates on each side of the
    best must be known. A rate whose runs diverged has loss inf, and needs no rate beyond it."""
    best = min(tried, key=lambda rate: (tried[rate], rate))
    at = rung(best, factor)
    wanted = [ladder(at + i, factor) for i in range(-around, around + 1)]
    if math.isinf(tried[best]):  # all diverged: only lower rates can help
        wanted = [ladder(at - 1, factor)]
    return best, [rate for rate in wanted if rate not in tried]


def start_of(grid, setting, arm):
    """The rate around which the ladder of an arm begins: the setting's for this arm, the arm's, the setting's."""
    start = setting.get("start", grid["rate"]["start"])
    if isinstance(start, dict):
        if arm["name"] in start:
            return start[arm["name"]]
        start = grid["rate"]["start"]
    return arm.get("start", start)


def arm_jobs(grid, setting, arm, known):
    """(jobs of the rates, jobs of the fresh seeds, best rate) of an arm. The best rate is None and there
    are no jobs of fresh seeds while the rate is not settled."""
    def job(rate, seed, stage):
        return Job(grid, setting, arm, rate, seed, stage)

    factor, around = grid["rate"]["factor"], grid["rate"]["around"]
    fixed = arm.get("fixed", setting.get("fixed"))
    if isinstance(fixed, dict):
        fixed = fixed.get(arm["name"])
    if fixed is not None:
        return [], [job(fixed, seed, "final") for seed in count_of(grid, setting, arm)], fixed
    at = rung(start_of(grid, setting, arm), factor)
    rates = [ladder(at + i, factor) for i in range(-around, around + 1)]
    tune = []
    while True:
        jobs = [job(rate, seed, "tune") for rate in rates for seed in setting["tune"]]
        tune += jobs
        if any(j.key not in known for j in jobs):
            return tune, [], None
        tried = {}
        for j in tune:
            tried.setdefault(j.rate, []).append(known[j.key]["final_val"])
        best, rates = settled({r: results.mean(v) for r, v in tried.items()}, around, factor)
        # The ladder ends where no rate makes sense: a best rate at its end stands.
        rates = [rate for rate in rates if LEAST_RATE <= rate <= GREATEST_RATE]
        if not rates:
            break
    return tune, [job(best, seed, "final") for seed in count_of(grid, setting, arm)], best


def all_jobs(grid, known):
    """Every job that is known to be needed so far, in the order in which they should run: setting by
    setting, first the rates, then the fresh seeds with all arms of a seed together."""
    if "sweep" in grid:
        return sweep_jobs(grid)
    jobs = []
    for setting in grid["setting"]:
        tune, final = [], []
        for arm in arms_of(grid, setting):
            of_rates, of_seeds, _ = arm_jobs(grid, setting, arm, known)
            tune += of_rates
            final += of_seeds
        seeds = grid["final"]["seeds"]
        jobs += tune + sorted(final, key=lambda j: seeds.index(j.seed))
    return jobs


# ---- a sweep: a grid from a command line

CHOICES = ("preset", "optimizer", "qk", "ov", "mlp", "embed", "head")  # flags whose lists are arms
# Options of this program that may stand among the trainer's flags.
OWN = ("jobs", "threads", "seconds", "results", "runs-dir", "keep-runs", "dry-run", "table", "help")


def flag_pairs(words):
    """[(name, value)] of the words of a command line. A switch has the value None."""
    pairs, at = [], 0
    while at < len(words):
        word = words[at]
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not name:
            fail(f"{word!r} is not a flag of the trainer, such as --steps 400")
        at += 1
        if not equals:
            has_value = at < len(words) and not words[at].startswith("--")
            value = words[at] if has_value else None
            at += has_value
        pairs.append((name, value))
    return pairs


def own_words(words):
    """The words of a sweep that are options of this program."""
    return [f"--{name}" if value is None else f"--{name}={value}"
            for name, value in flag_pairs(words) if name in OWN]


def numbers_of(name, values, kind):
    """Texts of a flag as numbers, each once."""
    try:
        numbers = [kind(value) for value in values]
    except ValueError:
        numbers = [math.nan]
    if not all(map(math.isfinite, numbers)):
        fail(f"--{name} {','.join(values)}: it takes numbers, with commas between")
    return list(dict.fromkeys(numbers))


def sweep_grid(words):
    """A grid of every combination from flags of the trainer, of which --seed, one of the --lr flags and
    the rules take lists with commas: {"sweep": (rates, seeds)} tells it from a grid file."""
    if not words:
        fail("a sweep needs flags, such as --lr 0.005,0.01,0.02 --seed 1,2,3")
    flags, lists = {}, {}
    for name, value in flag_pairs(words):
        if name in OWN:
            continue
        if name in flags or name in lists:
            fail(f"--{name} is given twice: keep one of them")
        if name in RESERVED:
            fail(f"--{name} cannot be a flag of every run of a sweep")
        if value and "," in value and (name in CHOICES or name == "seed" or name.startswith("lr")):
            lists[name] = list(dict.fromkeys(value.split(",")))
        else:
            flags[name] = value
    rates = [name for name in lists if name.startswith("lr")]
    if len(rates) > 1:
        fail(f"--{rates[0]} and --{rates[1]} both have several rates; give one list")
    if not rates and "lr" in flags:
        rates, lists["lr"] = ["lr"], [flags.pop("lr")]
    seeds = numbers_of("seed", lists.pop("seed", [flags.pop("seed", "1") or ""]), int)
    tried = [None]
    if rates:
        tried = sorted(numbers_of(rates[0], [rate or "" for rate in lists.pop(rates[0])], float))
        if tried[0] <= 0:
            fail(f"--{rates[0]} {text_of(tried[0])}: the rates of a sweep are above 0")
    arms = [{}]
    for name, values in lists.items():
        arms = [arm | {name: value} for arm in arms for value in values]
    named = [{"name": "-".join(arm.values()) or "run", "title": " ".join(arm.values()) or "run", "run": arm}
             for arm in arms]
    for arm in named:
        if not is_name(arm["name"]):
            fail(f"{arm['title']!r} is no list of rules")
    return {"name": "sweep", "program": "./train_gpt", "run": flags, "rate": {"flags": rates},
            "baseline": named[0]["name"], "arm": named,
            "setting": [{"name": "sweep", "title": "sweep", "run": {}}], "sweep": (tried, seeds)}


def sweep_jobs(grid):
    """Every run of a sweep, the seeds outermost, so that a table is complete after each seed."""
    rates, seeds = grid["sweep"]
    return [Job(grid, grid["setting"][0], arm, rate, seed, "tune")
            for seed in seeds for rate in rates for arm in grid["arm"]]


def print_sweep(grid, args):
    """Loss by rate, mean and deviation over the seeds, and the best rate of each arm."""
    print()
    for arm in grid["arm"]:
        losses = {}
        for job in sweep_jobs(grid):
            if job.arm is arm and job.key in args.known:
                losses.setdefault(job.rate, []).append(args.known[job.key]["final_val"])
        if not losses:
            continue
        best = min(losses, key=lambda rate: results.mean(losses[rate]))
        print(arm["title"])
        for rate, values in losses.items():
            name = "-" if rate is None else text_of(rate)
            spread = results.deviation(values)
            print(f"  {name:>8}  {number(results.mean(values))}"
                  f"{f' ± {spread:.4f}' if math.isfinite(spread) else ''}"
                  f"  ({len(values)} seed{'s' if len(values) > 1 else ''})"
                  f"{'  best' if rate == best and len(losses) > 1 else ''}")
        if len(losses) > 1 and best in (min(losses), max(losses)):
            further = best * (2 if best == max(losses) else 0.5)
            print(f"  The best rate lies on the edge of those tried; try {text_of(further)} too.")


# ---- running


def version_of(run, program):
    """The version of the program, and the commit of the repository in which it lies, if any."""
    try:
        folder = os.path.dirname(os.path.abspath(program))
        commit = subprocess.run(["git", "-C", folder, "describe", "--always", "--dirty", "--exclude=*"],
                                capture_output=True, text=True).stdout.strip()
    except OSError:  # there is no git
        commit = ""
    return f"{run['version']} {commit}".strip()


def read_log(path):
    """The trainer's lines of a log."""
    with open(path, encoding="utf-8", errors="replace") as f:
        lines = [results.log_line(line) for line in f if line.endswith("\n")]
    return [line for line in lines if line]


def finite(value):
    return value is not None and math.isfinite(value)


def make_row(grid, job, folder, seconds, cpu_seconds):
    """The row of a finished run, from its folder."""
    with open(os.path.join(folder, "run.json"), encoding="utf-8") as f:
        run = json.load(f)
    log = read_log(os.path.join(folder, "log.jsonl"))
    vals = [(line["step"], line["val_loss"]) for line in log if finite(line["val_loss"])]
    losses = [line["train_loss"] for line in log if line["step"] > 0 and finite(line["train_loss"])]
    times = sorted(line["ms"] for line in log if finite(line["ms"]))
    steps = run["flags"]["steps"]
    complete = bool(log) and log[-1]["step"] == steps and finite(log[-1]["val_loss"])
    bad = not complete or (vals[0][0] == 0 and vals[-1][1] > vals[0][1])
    best_step, best = min(vals, key=lambda v: v[1]) if vals else (0, math.inf)
    tail = losses[-max(1, steps // 10):]
    edges = [round(i * len(losses) / WINDOWS) for i in range(WINDOWS + 1)]
    windows = [(b, losses[a:b]) for a, b in zip(edges, edges[1:]) if b > a]
    return {
        "grid": grid["name"], "setting": job.setting["name"], "arm": job.arm["name"],
        "rate": "nan" if job.rate is None else text_of(job.rate), "stage": job.stage, "seed": job.seed,
        "final_val": "inf" if bad else f"{vals[-1][1]:.6f}", "best_val": f"{best:.6f}",
        "best_step": best_step, "train_tail": f"{results.mean(tail):.6f}" if tail and complete else "inf",
        "diverged": int(bad), "steps": steps, "tokens": log[-1]["tokens"] if log else 0,
        "parameters": run["parameters"], "ms": f"{times[len(times) // 2]:.2f}" if times else "nan",
        "seconds": f"{seconds:.1f}", "cpu_seconds": f"{cpu_seconds:.1f}",
        "threads": run["machine"]["threads"],
        "cpu": run["machine"].get("gpu") or run["machine"]["cpu"], "version": version_of(run, grid["program"]),
        "gemm": run["machine"]["gemm"], "train_data": run["train_checksum"],
        "val_data": run["val_checksum"], "date": datetime.datetime.now(datetime.timezone.utc).date(),
        "val_curve": " ".join(f"{s}:{v:.4f}" for s, v in vals),
        "train_curve": " ".join(f"{end}:{results.mean(x):.4f}" for end, x in windows),
        "flags": job.key,
    }


PR_SET_PDEATHSIG = 1  # of Linux: sys/prctl.h
PRCTL = getattr(ctypes.CDLL(None), "prctl", None)


def end_with_parent():
    """In a child: Linux kills it when its parent ends, however that happens. Other systems leave it."""
    if PRCTL is not None:
        PRCTL(PR_SET_PDEATHSIG, signal.SIGKILL)


def command_of(grid, args, job, *words):
    """The command of a job's run. Words come before its flags."""
    flags = {"threads": str(args.threads)} | job.flags
    return [grid["program"], *words, *words_of(flags)]


def fail_without_program(grid, problem):
    fail(f"cannot run {grid['program']}: {problem.strerror}; the grid's `program` names it, "
         "and `make train_gpt` builds it")


def how_it_ended(code):
    if code >= 0:
        return f"ended with {code}"
    return f"was ended by {signal.Signals(-code).name}" + (" (out of memory?)" if code == -signal.SIGKILL else "")


class Runner:
    """Runs jobs side by side, each a process of its own."""

    def __init__(self, grid, args):
        self.grid, self.args, self.running = grid, args, {}

    def start(self, job):
        folder = os.path.join(self.args.runs_dir, job.name)
        shutil.rmtree(folder, ignore_errors=True)
        keep = [] if "keep-checkpoints" in job.flags else ["--keep-checkpoints", "0"]
        command = command_of(self.grid, self.args, job, "--run", job.name, "--runs-dir", self.args.runs_dir, *keep)
        output = tempfile.TemporaryFile()
        try:
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                                     start_new_session=True, preexec_fn=end_with_parent)
        except OSError as problem:
            fail_without_program(self.grid, problem)
        # `child` is kept: subprocess itself would wait for a process whose object is gone.
        self.running[child.pid] = (job, folder, output, time.monotonic(), child)

    def wait(self):
        """Waits for the end of a run; returns its job and its row."""
        pid, status, usage = os.wait4(-1, 0)
        job, folder, output, start, child = self.running.pop(pid)
        child.returncode = os.waitstatus_to_exitcode(status)
        with output:
            output.seek(0)
            text = output.read().decode(errors="replace").strip()
        # The trainer ends with an error where losses are not finite.
        if child.returncode < 0 or (child.returncode > 0 and "not finite" not in text):
            fail(f"{job.name} {how_it_ended(child.returncode)}: {text[-1500:]}\n(flags: {job.key})")
        try:
            row = make_row(self.grid, job, folder, time.monotonic() - start, usage.ru_utime + usage.ru_stime)
        except (OSError, ValueError, KeyError, TypeError) as problem:
            fail(f"{job.name} left no readable run in {folder} ({problem!r}): {text[-1500:]}\n(flags: {job.key})")
        if not self.args.keep_runs:
            shutil.rmtree(folder, ignore_errors=True)
        return job, row

    def stop(self):
        for pid in self.running:
            try:
                os.killpg(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.running = {}


def duration(seconds):
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def known_rows(args):
    try:
        return {row["flags"]: row for row in results.read(args.results)}
    except (ValueError, OSError) as problem:
        fail(str(problem))


def dry_run_seconds(grid, args, job):
    """Expected time of a run from --dry-run, with a twentieth for validation and start."""
    command = command_of(grid, args, job, "--dry-run")
    try:
        out = subprocess.run(command, capture_output=True, text=True, errors="replace")
    except OSError as problem:
        fail_without_program(grid, problem)
    if out.returncode:
        fail(f"{shlex.join(command)} {how_it_ended(out.returncode)}: {out.stderr.strip()}")
    words = out.stdout.replace(",", " ").split()
    at = [i for i, w in enumerate(words) if w == "ms" and words[i + 1:i + 3] == ["a", "step"]]
    if not at:
        fail("the program's --dry-run names no time of a step")
    return 1.05 * float(words[at[0] - 1]) * steps_of(job) / 1000


def steps_of(job):
    return int(job.flags.get("steps", 1200))  # the trainer's default


def measured_seconds(grid, args, job, memory):
    """Expected time of a run: the median of the results' runs of its setting, else that of --dry-run. The
    runs of a sweep have one setting, whatever their model."""
    name = job.setting["name"]
    if name not in memory:
        times = sorted(row["seconds"] for row in args.known.values()
                       if row["setting"] == name and row["grid"] == grid["name"] and "sweep" not in grid
                       and row["steps"] == steps_of(job))
        memory[name] = times[len(times) // 2] if times else dry_run_seconds(grid, args, job)
    return memory[name]


def left_of(jobs, known):
    """The jobs without a row, in order. Of jobs with equal flags the first stands for all."""
    left = {}
    for job in jobs:
        if job.key not in known:
            left.setdefault(job.key, job)
    return list(left.values())


def plan_of_sweep(grid, args):
    jobs = left_of(sweep_jobs(grid), {})
    todo = left_of(jobs, args.known)
    each = measured_seconds(grid, args, todo[0], {}) if todo else 0
    return (f"{len(jobs)} runs, {len(todo)} to do, {args.jobs} at once: about "
            f"{duration(each * len(todo) / args.jobs)}")


def plan_text(grid, args):
    """What is to be done, and for how long, if no arm needs rates beyond its first ones."""
    if "sweep" in grid:
        return plan_of_sweep(grid, args)
    lines, total, count, memory = [], 0.0, 0, {}
    for setting in grid["setting"]:
        jobs, open_arms = {}, 0
        for arm in arms_of(grid, setting):
            of_rates, of_seeds, best = arm_jobs(grid, setting, arm, args.known)
            if best is None:
                open_arms += 1
                of_seeds = [Job(grid, setting, arm, 1.0, s, "final") for s in count_of(grid, setting, arm)]
            jobs |= {j.key + ("?" if best is None and j.stage == "final" else ""): j
                     for j in of_rates + of_seeds}
        todo = [j for key, j in jobs.items() if key not in args.known]
        each = measured_seconds(grid, args, todo[0], memory) if todo else 0
        total += each * len(todo)
        count += len(todo)
        lines.append(f"{setting['name']}: {len(jobs)} runs, {len(jobs) - len(todo)} done, {len(todo)} to do"
                     + (f" at about {duration(each)}" if todo else "")
                     + (f"; the rate of {open_arms} arms is open, which may add runs" if open_arms else ""))
    lines.append(f"{count} runs to do, {args.jobs} at once: about {duration(total / args.jobs)}")
    return "\n".join(lines)


def locked(path, message):
    """A file or folder, open and locked for as long as the program keeps it open."""
    handle = os.open(path, os.O_RDONLY | (0 if os.path.isdir(path) else os.O_CREAT), 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        fail(message)
    return handle


def stop_at_signals(runner):
    """Neither a signal nor an error leaves programs behind."""
    def interrupted(number, _frame):
        runner.stop()
        sys.exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)
    atexit.register(runner.stop)


def run_all(grid, args):
    """Runs what the results lack. Returns 3 if the time ended before, else 0."""
    runner = Runner(grid, args)
    for folder in (os.path.dirname(os.path.abspath(args.results)), args.runs_dir):
        os.makedirs(folder, exist_ok=True)
    locked(args.results + ".lock", f"another comparison writes {args.results}")
    # Runs of two grids can have equal names, and each would remove the other's folder.
    locked(args.runs_dir, f"another comparison has its runs in {args.runs_dir}: choose another --runs-dir")
    stop_at_signals(runner)
    begin, finished = time.monotonic(), 0
    while True:
        todo = left_of(all_jobs(grid, args.known), args.known)
        busy = {job.key for job, *_ in runner.running.values()}
        late = args.seconds and time.monotonic() - begin > args.seconds
        if not late:
            waiting = [job for job in todo if job.key not in busy]
            for job in waiting[:args.jobs - len(busy)]:
                runner.start(job)
        if not runner.running:
            break
        job, row = runner.wait()
        try:
            results.append(args.results, row)
        except OSError as problem:
            fail(f"cannot write {args.results}: {problem.strerror}")
        args.known = known_rows(args)
        finished += 1
        left = len(todo) - 1
        print(f"{row['final_val']}  {job.name}  {float(row['seconds']):.0f} s; {left} known to be left, "
              f"{duration((time.monotonic() - begin) / finished * left)}", flush=True)
    os.unlink(args.results + ".lock")
    if todo:
        print(f"the time is over: {len(todo)} runs are left; the same command goes on")
        return 3
    return 0


# ---- what the results say


def number(value, digits=4):
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def compare_setting(grid, setting, known):
    """[(arm, best rate, losses by seed, paired test against the baseline, corrected p)] of a setting, by
    difference from the baseline, the best arm first: means over different seeds do not compare. Arms that
    cannot be tested come last. Arms without a settled rate or a fresh seed are left out. Diverged runs are not left
    out: they make a mean infinite."""
    base = setting.get("baseline", grid["baseline"])
    arms = []
    for arm in arms_of(grid, setting):
        _, final, best = arm_jobs(grid, setting, arm, known)
        losses = {j.seed: known[j.key]["final_val"] for j in final if j.key in known}
        if best is not None and losses:
            arms.append((arm, best, losses))
    of_base = next((losses for arm, _, losses in arms if arm["name"] == base), {})
    tests = {}
    for arm, _, losses in arms:
        pairs = [losses[s] - of_base[s] for s in losses if s in of_base]
        if arm["name"] != base and pairs and all(map(math.isfinite, pairs)):
            tests[arm["name"]] = results.paired(pairs)
    corrected = results.holm({name: test["p"] for name, test in tests.items()})
    table = [(arm, best, losses, tests.get(arm["name"]), corrected.get(arm["name"], math.nan))
             for arm, best, losses in arms]

    def difference(row):
        arm, _, _, test, _ = row
        return 0.0 if arm["name"] == base else test["mean"] if test else math.inf

    return sorted(table, key=difference)


def has_final(grid):
    """Whether any arm runs on fresh seeds. A grid without them chooses rates."""
    return any(count_of(grid, setting, arm) for setting in grid["setting"] for arm in arms_of(grid, setting))


def brief(value, form):
    """A number as text; "-" where there is none: runs that are those of the baseline have no test."""
    return format(value, form) if math.isfinite(value) else "-"


def print_table(grid, args):
    if not has_final(grid):
        print("\nThis grid has no fresh seeds (seeds of [final]): it chooses rates and compares no arms.")
    for setting in grid["setting"]:
        table = compare_setting(grid, setting, args.known)
        if not table:
            continue
        base = setting.get("baseline", grid["baseline"])
        print(f"\n{setting['title']}: {len(table)} arms, differences from {base}, 95 % intervals\n")
        print("| arm | rate | seeds | loss | deviation | difference | interval | p | p, all arms | pairs needed |")
        print("|-|-|-|-|-|-|-|-|-|-|")
        for arm, best, losses, test, p in table:
            values = list(losses.values())
            row = [arm["title"], text_of(best), str(len(values)), number(results.mean(values)),
                   number(results.deviation(values))]
            row += ["-"] * 5 if test is None else [
                f"{test['mean']:+.4f}", f"± {number(test['half'])}", brief(test["p"], ".2g"), brief(p, ".2g"),
                brief(test["needed"], ".0f")]
            print("| " + " | ".join(row) + " |")


def print_rates(grid, args):
    """For each arm, the mean loss of every rate on the seeds that chose it."""
    for setting in grid["setting"]:
        print(f"\n{setting['title']}: mean loss by rate, on the seeds that chose the rate\n")
        for arm in arms_of(grid, setting):
            tune, _, best = arm_jobs(grid, setting, arm, args.known)
            tried = {}
            for job in tune:
                if job.key in args.known:
                    tried.setdefault(job.rate, []).append(args.known[job.key]["final_val"])
            if not tried:
                continue
            text = "  ".join(f"{text_of(r)}{'*' if r == best else ''} {number(results.mean(v))}"
                             for r, v in sorted(tried.items()))
            print(f"{arm['name']:16} {text}{'' if best is not None else '  (the best is open)'}")


def add_narrowing(parser):
    """The options that change a grid; scripts/report.py has them too."""
    parser.add_argument("--set", action="append", default=[], metavar="FLAG=VALUE",
                        help="a flag of every run, which wins over the grid's [run]")
    parser.add_argument("--setting", help="only these settings, with commas between")
    parser.add_argument("--arms", help="only these arms, with commas between")


def narrow(grid, args):
    for text in args.set:
        name, equals, value = text.removeprefix("--").partition("=")
        if not name or not equals:
            fail(f"--set {text}: it is FLAG=VALUE")
        if name in RESERVED:
            fail(f"--set {text}: --{name} cannot be a flag of every run")
        grid["run"][name] = value
    for kind, chosen in (("setting", args.setting), ("arm", args.arms)):
        if chosen:
            for name in chosen.split(","):
                if name not in {item["name"] for item in grid[kind]}:
                    fail(f"the grid has no {kind} {name}")
            grid[kind] = [item for item in grid[kind] if item["name"] in chosen.split(",")]


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", nargs="?", help="grid file")
    parser.add_argument("--sweep", nargs=argparse.REMAINDER, metavar="FLAGS",
                        help="every combination of lists of flags of the trainer: all arguments after it, of "
                             "which --jobs, --results and others of the options below keep their meaning")
    parser.add_argument("--results", help="CSV of the results (default: beside the grid, GRID.csv)")
    parser.add_argument("--runs-dir", help="folder of the runs while they run (default runs/compare)")
    parser.add_argument("--keep-runs", action="store_true", help="keep the folders of finished runs")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)),
                        help="runs at once (default: the processors, %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of a run (default 1)")
    parser.add_argument("--seconds", type=float, default=0, help="start no run after this time; 0: no limit")
    add_narrowing(parser)
    parser.add_argument("--dry-run", action="store_true", help="say what would run and how long, then stop")
    parser.add_argument("--table", action="store_true", help="print what the results say, then stop")
    args = parser.parse_args()
    if (args.grid is None) == (args.sweep is None):
        fail("give a grid file, or --sweep and flags of the trainer; see --help")
    if args.sweep:
        parser.parse_args(own_words(args.sweep), args)
    args.results = args.results or (os.path.splitext(args.grid)[0] + ".csv" if args.grid else
                                    os.path.join("runs", "sweep.csv"))
    args.runs_dir = os.path.abspath(args.runs_dir or os.path.join("runs", "compare"))
    if args.jobs < 1 or args.threads < 1:
        fail("--jobs and --threads are at least 1")
    return args


def main():
    args = parse_arguments()
    grid = read_grid(args.grid) if args.grid else sweep_grid(args.sweep)
    narrow(grid, args)
    args.known = known_rows(args)
    if not args.table:
        print(plan_text(grid, args), flush=True)
        if args.dry_run:
            return 0
        status = run_all(grid, args)
        if status or not args.sweep:
            return status
    if args.sweep:
        print_sweep(grid, args)
    else:
        print_rates(grid, args)
        print_table(grid, args)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except OSError as problem:
        fail(str(problem))
