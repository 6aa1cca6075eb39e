#!/usr/bin/env python3
"""Says whether runs reach a target, or beat other runs, by the rules of the modded-nanoGPT optimization
benchmark.

    scripts/significance.py runs/muon-s*                    at the last step that all runs have validated
    scripts/significance.py runs/muon-s* --step 3250
    scripts/significance.py runs/muon-s* --first            the first step at which the single rule holds
    scripts/significance.py runs/cm-s* --against runs/muon-s*                       both at one step
    scripts/significance.py runs/cm-s* --step 3200 --against r36.csv --against-step 3250
    scripts/significance.py 3.27901,20,2875 --against 3.27881,16,2890         published mean, runs, step

With n runs of mean validation loss m at one step, the single rule is
    (TARGET - m) sqrt(n) >= BOUND,
the pairwise rule, for n1 runs that end with a loss lower by `dloss` or earlier by `dsteps` than n2 others, is
    (dloss + SLOPE dsteps / 100) / sqrt(1/n1 + 1/n2) >= BOUND.
The bound 0.004 is that of a one-sided test at p of about 0.001 if the loss of a run has the standard deviation
0.0013, which the rules assume whatever the runs show. The slope is the loss per 100 steps that a schedule's
length is worth.

Runs are folders (validation losses of log.jsonl), quoted patterns of them, or CSV files: columns
run,step,val_loss and perhaps seed, a row a run and step; or seed and val_loss@STEP; or means,
step,n,val_loss_mean,val_loss_std. Several are pooled. The runs of one side must differ in their seeds alone.
The rules are for runs that nobody chose by their losses. Needs the standard library only.
"""

import argparse
import glob
import json
import math
import os
import re
import sys

import history
import results

# Losses are decimal numbers, so that a mean which meets a rule exactly may miss it in binary by some ulps.
ROUNDING = 1e-9
PUBLISHED = r"([0-9]+(?:\.[0-9]+)?),([0-9]{1,9}),([0-9]{1,9})"  # mean, runs, step
# Entries of run.json that equal settings share, beside the flags.
DATA = ("train_checksum", "val_checksum", "train_part", "init_from_checksum")


def fail(message):
    sys.exit(f"error: {message}")


# ---- the rules


def single_score(mean, n, target):
    return (target - mean) * math.sqrt(n)


def pairwise_score(mean1, n1, step1, mean2, n2, step2, slope):
    """Of runs 1 against runs 2: positive if runs 1 have the lower loss or the earlier step."""
    return (mean2 - mean1 + slope * (step2 - step1) / 100) / math.sqrt(1 / n1 + 1 / n2)


def holds(score, bound):
    return score >= bound - ROUNDING


def tail(score, deviation):
    """One-sided p of a score, whose standard deviation is that of the loss of a run; None if that is 0."""
    return results.normal(-score / deviation) if deviation > 0 else None


# ---- runs
#
# A side is a dictionary: name, and either `runs`, a list of {name, seed, losses: {step: loss}, record, from},
# or `means`, {step: {n, mean, std}}. `record` is run.json or None, `from` the path that the run is from.


def read_folder(path):
    log = history.find_log(path)
    losses = {}
    for line in history.log_lines(log):
        if line["val_loss"] is None:  # not measured
            continue
        if history.number_or_none(line["val_loss"]) is None:
            raise ValueError(f"{log} has the validation loss {line['val_loss']!r} at step {line['step']}: that run "
                             "diverged, or the file is damaged")
        if line["step"] in losses:
            raise ValueError(f"{log} has step {line['step']} twice")
        losses[line["step"]] = line["val_loss"]
    record = history.record_of(log)
    if not losses:
        raise ValueError(f"the run {path} has no validation loss yet")
    return {"name": history.name_of(log), "seed": record["flags"].get("seed") if record else None, "losses": losses,
            "record": record}


def expanded(texts):
    """The paths of arguments: patterns that the shell has left are matched here, and a path that comes twice
    counts once."""
    paths = []
    for text in texts:
        if glob.has_magic(text) and not os.path.exists(text):
            found = sorted(p for p in glob.glob(text) if os.path.exists(os.path.join(p, "log.jsonl"))
                           or p.endswith(".csv"))
            if not found:
                raise ValueError(f"no run matches {text}")
            paths += found
        else:
            paths.append(text)
    return list(dict.fromkeys(os.path.normpath(path) for path in paths))


def published(text):
    """The means of `MEAN,RUNS,STEP`, or None."""
    match = re.fullmatch(PUBLISHED, text)
    if not match:
        return None
    mean, n, step = float(match[1]), int(match[2]), int(match[3])
    if n < 1:
        raise ValueError(f"{text}: the number of runs is 0")
    return {step: {"n": n, "mean": mean, "std": None}}


def read_side(texts, column, ignored=()):
    """The side of arguments. `ignored` are flags in which its runs may differ."""
    if len(texts) == 1 and published(texts[0]):
        return {"name": texts[0], "means": published(texts[0])}
    paths, runs = expanded(texts), []
    for path in paths:
        if os.path.isfile(path) and not path.endswith(".jsonl"):
            table = history.read_table(path, column)
            if "means" in table and len(paths) > 1:
                raise ValueError(f"{path} has means, which cannot be pooled with other runs")
            if "means" in table:
                return {"name": os.path.basename(path), "means": table["means"]}
            runs += [run | {"record": None, "from": path} for run in table["runs"]]
        else:
            runs.append(read_folder(path) | {"from": path})
    check_seeds(runs)
    check_settings(runs, ignored)
    names = [os.path.basename(path) for path in paths]
    return {"name": names[0] if len(names) == 1 else f"{names[0]} ... {names[-1]}", "runs": runs}


def check_seeds(runs):
    """Refuses runs that are one run twice."""
    seeds, names = {}, set()
    for run in runs:
        seed = None if run["seed"] is None else str(run["seed"])
        if seed in seeds:
            raise ValueError(f"{seeds[seed]} and {run['name']} both have seed {seed}: they are one run twice")
        if seed is None and run["name"] in names:
            raise ValueError(f"the run {run['name']} is there twice")
        names.add(run["name"])
        if seed is not None:
            seeds[seed] = run["name"]


def settings_of(record, ignored):
    """What decides the losses of a run but for its seed: its flags, data, and changes on a resume."""
    flags = {f"--{name}": value for name, value in record["flags"].items() if name not in ignored}
    changes = [change for change in record.get("changes") or [] if change.get("flag") not in ignored]
    return flags | {key: record.get(key) for key in DATA} | {"changes": changes}


def check_settings(runs, ignored=()):
    """Refuses runs of one side whose run.json differ in more than the seed."""
    known = [run for run in runs if run["record"]]
    ignored = history.FREE | history.ROUNDING | {"seed"} | {name.removeprefix("--") for name in ignored}
    for run in known[1:]:
        one, other = (settings_of(r["record"], ignored) for r in (known[0], run))
        differ = [f"{key} ({one.get(key)} and {other.get(key)})" for key in sorted(one.keys() | other.keys())
                  if one.get(key) != other.get(key)]
        if differ:
            raise ValueError(f"{known[0]['name']} and {run['name']} are not runs of one setting, they differ in "
                             f"{', '.join(differ)}; --ignore FLAG allows that")


def steps_of(side):
    """The steps that all runs of a side have, in order."""
    if "means" in side:
        return sorted(side["means"])
    return sorted(set.intersection(*(set(run["losses"]) for run in side["runs"])))


def at_step(side, step):
    """{step, n, mean, std, runs: [{name, seed, loss}]} of a side; std is None if it is not known."""
    if "means" in side:
        if step not in side["means"]:
            raise ValueError(f"{side['name']} has no step {step}; the nearest are {near(side['means'], step)}")
        point = side["means"][step]
        return {"step": step, "n": point["n"], "mean": point["mean"], "std": point["std"], "runs": []}
    for run in side["runs"]:
        if step not in run["losses"]:
            raise ValueError(f"the run {run['name']} has no validation loss at step {step}; the nearest are "
                             f"{near(run['losses'], step)}")
    losses = [run["losses"][step] for run in side["runs"]]
    return {"step": step, "n": len(losses), "mean": results.mean(losses),
            "std": results.deviation(losses) if len(losses) > 1 else None,
            "runs": [{"name": run["name"], "seed": run["seed"], "loss": run["losses"][step]} for run in side["runs"]]}


def near(steps, step):
    """The validated steps around a step, as text."""
    before = [s for s in steps if s < step]
    after = [s for s in steps if s > step]
    return " and ".join(str(s) for s in ([max(before)] if before else []) + ([min(after)] if after else []))


# ---- what is said


def single(point, args):
    """The single rule at a point, as a dictionary."""
    score = single_score(point["mean"], point["n"], args.target)
    student = None
    if point["std"]:
        t = score / point["std"]
        both = results.t_two_sided(t, point["n"] - 1)
        student = both / 2 if t > 0 else 1 - both / 2
    return {"target": args.target, "bound": args.bound, "score": score, "holds": holds(score, args.bound),
            "needed_mean": args.target - args.bound / math.sqrt(point["n"]), "assumed_std": args.deviation,
            "p_assumed": tail(score, args.deviation), "p_student": student}


def pairwise(one, other, args):
    """The pairwise rule of two points, as a dictionary."""
    score = pairwise_score(one["mean"], one["n"], one["step"], other["mean"], other["n"], other["step"], args.slope)
    return {"slope": args.slope, "bound": args.bound, "loss_difference": other["mean"] - one["mean"],
            "step_difference": other["step"] - one["step"], "score": score, "holds": holds(score, args.bound),
            "p_assumed": tail(score, args.deviation)}


def first_step(side, args):
    """The first step of a side at which the single rule holds, or None."""
    for step in steps_of(side):
        point = at_step(side, step)
        if holds(single_score(point["mean"], point["n"], args.target), args.bound):
            return step
    return None


def last_step(sides):
    """The last step that all runs of some sides have."""
    common = set.intersection(*(set(steps_of(side)) for side in sides))
    if not common:
        names = " and ".join(side["name"] for side in sides)
        raise ValueError(f"the runs of {names} have no validated step in common"
                         + (": give --step and --against-step" if len(sides) > 1 else ""))
    return max(common)


def notes_of(side, step):
    """What a reader should know about a side at a step."""
    runs = side.get("runs", [])
    notes = []
    if len(runs) == 1:
        notes.append("one run: the rule takes it, but nothing shows how much its seed matters")
    ends = {run["name"]: max(run["losses"]) for run in runs}
    if len(set(ends.values())) > 1:
        short, long = min(ends, key=ends.get), max(ends, key=ends.get)
        notes.append(f"the runs do not end together: {short} at step {ends[short]}, {long} at step {ends[long]}")
    lengths = {run["record"]["flags"].get("steps") for run in runs if run["record"]}
    if lengths and all(isinstance(n, int) and n > step for n in lengths):
        notes.append(f"the schedule goes on to step {max(lengths)}; a common earlier step may be chosen for all runs, "
                     "but not for each by its losses")
    if len({run["from"] for run in runs}) > 1 and not all(run["record"] for run in runs):
        notes.append("some runs have no run.json: whether all are of one setting is not checked")
    return notes


def check_validation(sides):
    """Refuses sides whose losses are of different validation data, as far as run.json says so."""
    seen = {}
    for side in sides:
        for run in side.get("runs", []):
            if run["record"]:
                value = (run["record"].get("val_checksum"), run["record"]["flags"].get("val-tokens"))
                seen.setdefault(value, run["name"])
    if len(seen) > 1:
        one, other = list(seen.values())[:2]
        raise ValueError(f"the losses of {one} and {other} do not compare: other validation data (val_checksum), or "
                         "another number of targets (--val-tokens)")


def only_step(side):
    """The step of a side that has one alone, or None."""
    steps = steps_of(side)
    return steps[0] if len(steps) == 1 else None


def judged(args):
    """All that is found, as a dictionary."""
    ignored = args.ignore.split(",") if args.ignore else []
    side = read_side(args.runs, args.column, ignored)
    sides, there = [side], args.against_step
    if args.against:
        sides.append(read_side(args.against, args.against_column or args.column, ignored))
        check_validation(sides)
        there = only_step(sides[1]) if there is None else there
    first = first_step(side, args) if args.first else None
    step = args.step if first is None else first
    if step is None:
        step = last_step(sides if there is None else sides[:1])
    one = at_step(side, step)
    found = {"name": side["name"], **one, "notes": notes_of(side, step), "single": single(one, args)}
    if args.first:
        found["first_step"] = first
    if args.against:
        other = at_step(sides[1], step if there is None else there)
        found["against"] = {"name": sides[1]["name"], **other, "notes": notes_of(sides[1], other["step"])}
        found["pairwise"] = pairwise(one, other, args)
    return found


def describe(found, args):
    """Lines about the runs of one side."""
    n = found["n"]
    lines = [f"{found['name']}: {n} run{'s' if n > 1 else ''} at step {found['step']}"]
    width = max((len(run["name"]) for run in found["runs"]), default=0)
    for run in found["runs"]:
        seed = "" if run["seed"] is None or run["name"] == f"seed {run['seed']}" else f"  seed {run['seed']}"
        lines.append(f"  {run['name']:{width}}  {run['loss']:.5f}{seed}")
    sample = "not known" if found["std"] is None else f"{found['std']:.5f}"
    lines.append(f"  mean {found['mean']:.5f}, sample deviation {sample} (the rules assume {args.deviation:g})")
    return lines + [f"  note: {note}" for note in found["notes"]]


def verdict(rule):
    sign = ">=" if rule["holds"] else "<"
    p = "" if rule["p_assumed"] is None else f", p = {rule['p_assumed']:.2g} with the assumed deviation"
    return f"{rule['score']:.5f} {sign} {rule['bound']:g}: {'holds' if rule['holds'] else 'does not hold'}{p}"


def report(found, args):
    """The text for people."""
    rule = found["single"]
    lines = describe(found, args)
    if args.first and found["first_step"] is None:
        lines.append(f"the single rule holds at no validated step; at step {found['step']}:")
    elif args.first:
        lines.append(f"the first validated step at which the single rule holds is {found['step']}")
    student = "" if rule["p_student"] is None else f", {rule['p_student']:.2g} by Student's t"
    runs = f"{found['n']} run{'s' if found['n'] > 1 else ''}"
    lines += [f"single rule: ({rule['target']:g} - {found['mean']:.5f}) sqrt({found['n']}) = {verdict(rule)}{student}",
              f"  needed of {runs}: a mean of at most {rule['needed_mean']:.6f}"]
    if "pairwise" in found:
        other, rule = found["against"], found["pairwise"]
        moved = f" + {rule['slope']:g} * {rule['step_difference']}/100" if rule["step_difference"] else ""
        lines += ["against"] + describe(other, args)
        lines.append(f"pairwise rule: ({rule['loss_difference']:.5f}{moved}) / sqrt(1/{found['n']} + 1/{other['n']}) = "
                     f"{verdict(rule)}")
    return "\n".join(lines)


def positive(text):
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number of at least 0")
    return value


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUNS", help="run folders, CSV files, or MEAN,RUNS,STEP")
    parser.add_argument("--step", type=int, help="step of the losses (default: the last one that all runs have)")
    parser.add_argument("--first", action="store_true",
                        help="take the first validated step at which the single rule holds")
    parser.add_argument("--against", nargs="+", metavar="RUNS", help="the runs that the pairwise rule compares with")
    parser.add_argument("--against-step", type=int, metavar="STEP", help="their step (default: the same step)")
    parser.add_argument("--column", default="val_loss", help="column of the CSV files (default: %(default)s)")
    parser.add_argument("--against-column", metavar="COLUMN", help="that of the files of --against (default: --column)")
    parser.add_argument("--ignore", metavar="FLAG,FLAG", help="flags in which the runs of a side may differ")
    parser.add_argument("--target", type=positive, default=3.28, help="loss to reach (default: %(default)s)")
    parser.add_argument("--bound", type=positive, default=0.004, help="bound of both rules (default: %(default)s)")
    parser.add_argument("--deviation", type=positive, default=0.0013,
                        help="standard deviation that p assumes; the rules do not use it (default: %(default)s)")
    parser.add_argument("--slope", type=positive, default=0.0045,
                        help="loss that 100 steps are worth (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    if args.first and args.step is not None:
        fail("--first chooses the step: leave out --step")
    if (args.against_step is not None or args.against_column) and not args.against:
        fail("--against-step and --against-column belong to --against")
    return args


def main():
    args = parse_arguments()
    try:
        found = judged(args)
    except (ValueError, OSError) as problem:
        fail(str(problem))
    print(json.dumps(found, allow_nan=False) if args.json else report(found, args))


if __name__ == "__main__":
    main()
