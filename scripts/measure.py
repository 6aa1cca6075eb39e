#!/usr/bin/env python3
"""Measures the attention circuits of runs: the spectra of their composed maps, and the composed steps.

    scripts/measure.py runs/compare/plain.cm.* runs/compare/plain.muon.* -o dev/compare/attention.json

For each layer and head the newest checkpoint gives the singular values of W_Q^T W_K (circuit QK) and of
W_O W_V (circuit OV), their stable rank (sum of squares over the largest square) and their condition
(largest over smallest). Rotations of RoPE and the scale of QK-norm, which lie between W_Q and W_K, are
left out. With --log-groups the log has the composed step of each circuit: the spectral norm of a head's
change of the composed map over the learning rate, as maximum and median over heads and layers.

scripts/report.py draws the JSON file. Runs need a checkpoint (`keep-checkpoints = 1` in a grid, and
--keep-runs). Needs NumPy.
"""

import argparse
import json
import math
import os
import re
import sys

import numpy as np

import checkpoint

# The names that scripts/compare.py gives its runs.
NAME = re.compile(r"(?P<setting>[^.]+)\.(?P<arm>[^.]+)\.(?P<rate>.+)\.s(?P<seed>\d+)$")
CIRCUITS = ("QK", "OV")
FLAGS = ("seed", "heads", "kv-heads", "head-dim")  # of run.json
POINTS = 150  # of the curve of composed steps
DIGITS = 5


def rounded(x):
    return float(f"{x:.{DIGITS}g}")


def composed_spectrum(left, right):
    """Singular values of left @ right, (d, k) times (k, d), from the k x k product of QR factors."""
    _, r_left = np.linalg.qr(left)
    _, r_right = np.linalg.qr(right.T)
    return np.linalg.svd(r_left @ r_right.T, compute_uv=False)


def describe(values):
    """The record of a head. Its condition is null where the smallest value is 0."""
    largest, least = values[0], values[-1]
    return {"singular": [rounded(v) for v in values],
            "stable_rank": rounded((values ** 2).sum() / largest ** 2) if largest > 0 else 0.0,
            "condition": rounded(largest / least) if least > 0 else None}


def spectra(wqkv, wo, heads, kv_heads, size):
    """{circuit: [layer: [head: record]]} of W_QKV (L, (NH + 2 NKV) HS, C) and W_O (L, C, NH HS)."""
    rows, columns = (heads + 2 * kv_heads) * size, heads * size
    if wqkv.ndim != 3 or wo.ndim != 3 or heads < 1 or size < 1 or wqkv.shape[1] != rows or wo.shape[2] != columns \
            or wo.shape[:2] != (wqkv.shape[0], wqkv.shape[2]) or kv_heads < 1 or heads % kv_heads:
        raise ValueError(f"{heads} heads, {kv_heads} for keys, of {size} do not fit W_QKV {wqkv.shape} and "
                         f"W_O {wo.shape}")
    if not (np.isfinite(wqkv).all() and np.isfinite(wo).all()):
        raise ValueError("weights are not finite")
    out = {circuit: [] for circuit in CIRCUITS}
    for layer in range(wqkv.shape[0]):
        blocks = wqkv[layer].reshape(heads + 2 * kv_heads, size, -1)
        of_layer = {circuit: [] for circuit in CIRCUITS}
        for head in range(heads):
            shared = head // (heads // kv_heads)
            query, key, value = blocks[head], blocks[heads + shared], blocks[heads + kv_heads + shared]
            output = wo[layer][:, head * size:(head + 1) * size]
            of_layer["QK"].append(describe(composed_spectrum(query.T, key)))
            of_layer["OV"].append(describe(composed_spectrum(output, value)))
        for circuit in CIRCUITS:
            out[circuit].append(of_layer[circuit])
    return out


def composed_steps(log):
    """{circuit: [[step, max, median]]} of a log, whose lines have the composed steps or not."""
    found = {}
    for text in log:
        try:
            line = json.loads(text)
            groups = line.get("groups") or (line.get("extra") or {}).get("groups") or {}
            for circuit in CIRCUITS:
                of = groups.get(circuit) or {}
                point = [line["step"], of.get("composed_max"), of.get("composed_median")]
                if all(isinstance(v, (int, float)) and math.isfinite(v) for v in point):
                    found.setdefault(circuit, []).append(point)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue  # the log of a killed run may end within a line
    return {circuit: thinned(points) for circuit, points in found.items()}


def thinned(points):
    """At most POINTS points: means over windows of equal length, a maximum of the maxima."""
    count = min(POINTS, len(points))
    edges = [round(i * len(points) / count) for i in range(count + 1)]
    out = []
    for first, end in zip(edges, edges[1:]):
        window = points[first:end]
        out.append([window[-1][0], rounded(max(p[1] for p in window)),
                    rounded(sum(p[2] for p in window) / len(window))])
    return out


def read_run(path):
    """(version, flags) of a run.json. Raises ValueError if it lacks what a measure needs."""
    try:
        with open(path, encoding="utf-8") as f:
            run = json.load(f)
        version, flags = run["version"], run["flags"]
        missing = [name for name in FLAGS if type(flags[name]) is not int]
    except (ValueError, KeyError, TypeError, RecursionError) as problem:
        raise ValueError(f"{path} is not the record of a run: {problem!r}") from None
    if missing:
        raise ValueError(f"{path}: its {missing[0]} is not a whole number")
    return version, flags


def measure(folder):
    """The record of a run. Raises ValueError or OSError where the folder has no readable run."""
    folder = os.path.normpath(folder)
    if not os.path.exists(os.path.join(folder, "run.json")) and checkpoint.newest(folder):
        raise ValueError(f"{folder} has no run.json, as merged weights: measure a run of training")
    version, flags = read_run(os.path.join(folder, "run.json"))
    name = os.path.basename(os.path.abspath(folder))
    parts = NAME.match(name)
    record = {"run": name, "setting": parts["setting"] if parts else None,
              "arm": parts["arm"] if parts else name,
              "rate": parts["rate"] if parts else None, "seed": flags["seed"], "version": version}
    with open(os.path.join(folder, "log.jsonl"), encoding="utf-8", errors="replace") as f:
        steps = composed_steps(f)
    if steps:
        record["composed"] = steps
    path = checkpoint.newest(folder)
    if path:
        header, tensors = checkpoint.read(path, ["p.wqkv", "p.wo"])
        if len(tensors) != 2:
            raise ValueError(f"{path}: it has no p.wqkv and p.wo, as a run of adapters or of "
                             "products of low rank")
        if not header.get("step", "").isdecimal():
            raise ValueError(f"{path}: its header has no step")
        record["step"] = int(header["step"])
        record["spectra"] = spectra(tensors["p.wqkv"], tensors["p.wo"], flags["heads"], flags["kv-heads"],
                                    flags["head-dim"])
    elif not steps:
        raise ValueError(f"{folder}: neither a checkpoint (--keep-checkpoints 1) nor composed steps "
                         "(--log-groups)")
    return record


def measure_all(folders):
    """The records of runs, in the order of their names."""
    return {"format": 1, "runs": sorted((measure(f) for f in folders), key=lambda r: r["run"])}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder")
    parser.add_argument("-o", "--output", help="JSON file (default: standard output)")
    args = parser.parse_args()
    try:
        measures = measure_all(args.runs)
    except (ValueError, OSError) as problem:
        sys.exit(f"error: {problem}")
    # A line a run keeps differences of committed files readable.
    lines = ",\n".join(json.dumps(run) for run in measures["runs"])
    text = '{"format": %d, "runs": [\n%s\n]}\n' % (measures["format"], lines)
    if not args.output:
        sys.stdout.write(text)
        return
    try:
        with open(args.output, "w", encoding="utf-8") as f:
            f.write(text)
    except OSError as problem:
        sys.exit(f"error: cannot write {args.output}: {problem.strerror}")


if __name__ == "__main__":
    main()
