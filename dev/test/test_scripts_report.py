#!/usr/bin/env python3
"""Tests of the comparison's scripts: statistics, the runner's choice of rates, checkpoints, measures, report.

    python3 dev/test/test_scripts_report.py [NAME...]    runs the tests whose names begin with test_NAME

Needs Python 3.11. Without NumPy the tests of checkpoints and measures are left out, without Chromium those
that look at the rendered report (CHROMIUM=... names it).
"""

import html
import html.parser
import importlib.util
import json
import math
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import unittest
import xml.etree.ElementTree
import zlib

SCRIPTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "scripts")
sys.path.insert(0, SCRIPTS)

if sys.version_info < (3, 11):
    print("left out: the comparison's scripts need Python 3.11")
    print("0 passed, 0 failed")
    sys.exit(0)

import charts  # noqa: E402
import compare  # noqa: E402
import report  # noqa: E402
import results  # noqa: E402
import svg  # noqa: E402

HAS_NUMPY = importlib.util.find_spec("numpy") is not None
if HAS_NUMPY:
    import checkpoint
    import measure
    import numpy as np

CHROMIUM = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome"))), None)

GRID = """
name = "small"
title = "A small <comparison> & its report"
baseline = "muon"
question = "cm"

[run]
data = "text.txt"
steps = 160
qk-norm = false

[rate]
flags = ["lr-qk"]
factor = 2

[tune]
seeds = [1]

[final]
seeds = "101-108"

[[setting]]
name = "plain"
title = "No QK-norm"

[[setting]]
name = "qknorm"
title = "QK-norm"
run = { qk-norm = true }

[[arm]]
name = "muon"
title = "Muon"
run = { qk = "muon" }
start = 0.02

[[arm]]
name = "cm"
title = "CM"
run = { qk = "cm" }

[[arm]]
name = "adamw"
title = "AdamW, with a title that is longer than a panel of a phone is wide"
run = { qk = "adamw" }
final = 3
"""


def read_grid(folder, text=GRID):
    path = os.path.join(folder, "small.toml")
    with open(path, "w", encoding="utf-8") as f:
        f.write(text)
    return compare.read_grid(path)


def make_row(grid, job, loss, **changes):
    """A row as scripts/compare.py writes it; `loss` decides its curves."""
    curve = [(step, loss + 2 * math.exp(-step / 40)) for step in range(10, 161, 10)]
    row = {
        "grid": grid["name"], "setting": job.setting["name"], "arm": job.arm["name"],
        "rate": compare.text_of(job.rate), "stage": job.stage, "seed": job.seed, "final_val": f"{loss:.6f}",
        "best_val": f"{loss:.6f}", "best_step": 160, "train_tail": f"{loss:.6f}", "diverged": 0, "steps": 160,
        "tokens": 40960, "parameters": 28800, "ms": "5.00", "seconds": "10.0", "cpu_seconds": "9.9",
        "threads": 1, "cpu": "a processor", "version": "0.2.0", "gemm": "a library", "train_data": "abc",
        "val_data": "def", "date": "2026-01-02", "val_curve": " ".join(f"{s}:{v:.4f}" for s, v in curve[7::8]),
        "train_curve": " ".join(f"{s}:{v:.4f}" for s, v in curve), "flags": job.key,
    }
    return row | changes


def fill(grid, path, loss_of, changes_of=lambda job: {}):
    """Writes the results of all jobs, as a finished comparison would. Returns the rows by flags."""
    known = {}
    while True:
        jobs = [job for job in compare.all_jobs(grid, known) if job.key not in known]
        if not jobs:
            return known
        for job in jobs:
            results.append(path, make_row(grid, job, loss_of(job), **changes_of(job)))
        known = {row["flags"]: row for row in results.read(path)}


def bowl(job):
    """A loss with its best rate at 0.02 (AdamW: 0.01), a seed's share that all arms have, and a draw."""
    best = 0.01 if job.arm["name"] == "adamw" else 0.02
    effect = {"muon": 0.0, "cm": -0.004 if job.setting["name"] == "plain" else -0.0005, "adamw": 0.3}
    draw = random.Random(f"{job.seed} {job.arm['name']} {job.setting['name']}").gauss(0, 0.003)
    return 1.6 + effect[job.arm["name"]] + 0.01 * math.log2(job.rate / best) ** 2 + 0.01 * (job.seed % 7) + draw


# ---- statistics


class Statistics(unittest.TestCase):
    def test_quantiles_of_the_t_table(self):
        # Two-sided quantiles, as printed tables have them: to half a unit of the last digit.
        table = {(0.95, 1): 12.706, (0.95, 2): 4.303, (0.95, 5): 2.571, (0.95, 7): 2.365, (0.95, 23): 2.069,
                 (0.95, 120): 1.980, (0.99, 1): 63.657, (0.99, 5): 4.032, (0.99, 30): 2.750, (0.8, 10): 1.372}
        for (level, freedom), value in table.items():
            self.assertAlmostEqual(results.t_quantile(level, freedom), value, delta=0.0005001,
                                   msg=f"{level}, {freedom}")

    def test_p_of_closed_forms(self):
        for t in (0.1, 1.0, 2.5, 12.706, 100.0):
            # One degree of freedom is Cauchy's distribution; two have a closed form as well.
            self.assertAlmostEqual(results.t_two_sided(t, 1), 1 - 2 / math.pi * math.atan(t), delta=1e-13)
            self.assertAlmostEqual(results.t_two_sided(t, 2), 1 - t / math.sqrt(2 + t * t), delta=1e-13)
        self.assertEqual(results.t_two_sided(math.inf, 3), 0.0)
        self.assertTrue(math.isnan(results.t_two_sided(math.nan, 3)))

    def test_paired_by_hand(self):
        test = results.paired([1.0, 2.0, 3.0])
        t = 2 * math.sqrt(3)  # mean 2, deviation 1
        self.assertAlmostEqual(test["t"], t, delta=1e-12)
        self.assertAlmostEqual(test["p"], 1 - t / math.sqrt(2 + t * t), delta=1e-12)
        self.assertAlmostEqual(test["half"], 4.3027 / math.sqrt(3), delta=1e-4)
        self.assertEqual(test["needed"], 8)

    def test_power_is_that_of_drawn_samples(self):
        random.seed(1)
        for n, effect in ((5, 3.0), (19, 1.0)):
            critical = results.t_quantile(0.99, n - 1)
            drawn = [[random.gauss(effect, 1) for _ in range(n)] for _ in range(4000)]
            found = sum(abs(results.mean(x)) * math.sqrt(n) > critical * results.deviation(x) for x in drawn) / 4000
            self.assertAlmostEqual(results.power(n, effect), found, delta=0.02)

    def test_pairs_needed(self):
        self.assertEqual(results.pairs_needed(-1.0), 19)  # textbooks on Student's t-test agree
        self.assertEqual(results.pairs_needed(0.0), math.inf)
        for effect in (0.3, 1.5, 8.0):
            n = results.pairs_needed(effect)
            self.assertGreaterEqual(results.power(n, effect), 0.9)
            self.assertLess(results.power(n - 1, effect), 0.9)

    def test_paired_without_spread(self):
        self.assertTrue(math.isnan(results.paired([0.1])["p"]))
        self.assertEqual(results.paired([0.5, 0.5])["p"], 0.0)
        self.assertTrue(math.isnan(results.paired([0.0, 0.0])["p"]))

    def test_holm(self):
        corrected = results.holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": math.nan})
        self.assertAlmostEqual(corrected["a"], 0.03)
        self.assertAlmostEqual(corrected["c"], 0.06)
        self.assertAlmostEqual(corrected["b"], 0.06)  # never below a smaller p's
        self.assertTrue(math.isnan(corrected["d"]))
        self.assertEqual(results.holm({"a": 0.9, "b": 0.8})["a"], 1.0)


# ---- the CSV file


class Csv(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.folder)
        self.path = os.path.join(self.folder, "r.csv")
        self.grid = read_grid(self.folder)
        self.jobs = compare.all_jobs(self.grid, {})

    def test_cut_off_in_a_line(self):
        for job in self.jobs[:3]:
            results.append(self.path, make_row(self.grid, job, 1.5))
        with open(self.path, "rb") as f:
            whole = f.read()
        second_ends = whole[:-1].rfind(b"\n") + 1
        for size in sorted({*range(second_ends, len(whole), 61), len(whole) - 1}):
            with open(self.path, "wb") as f:
                f.write(whole[:size])
            self.assertEqual(len(results.read(self.path)), 2)
            results.append(self.path, make_row(self.grid, self.jobs[2], 1.5))
            with open(self.path, "rb") as f:
                self.assertEqual(f.read(), whole)

    def test_other_columns_and_damage(self):
        results.append(self.path, make_row(self.grid, self.jobs[0], 1.5))
        with open(self.path, encoding="utf-8") as f:
            text = f.read()
        for damaged in (text.replace("final_val", "loss", 1), text.replace("1.500000", "one half", 1),
                        text[:-1] + ",more\n"):
            with open(self.path, "w", encoding="utf-8") as f:
                f.write(damaged)
            self.assertRaises(ValueError, results.read, self.path)

    def test_cut_off_in_the_first_line(self):
        results.append(self.path, make_row(self.grid, self.jobs[0], 1.5))
        with open(self.path, "rb") as f:
            whole = f.read()
        for size in (1, 40, whole.index(b"\n")):
            with open(self.path, "wb") as f:
                f.write(whole[:size])
            results.append(self.path, make_row(self.grid, self.jobs[0], 1.5))
            with open(self.path, "rb") as f:
                self.assertEqual(f.read(), whole)

    def write_changed(self, change):
        """Writes one row to the file, then changes the file's bytes."""
        with open(self.path, "w", encoding="utf-8"):
            pass
        results.append(self.path, make_row(self.grid, self.jobs[0], 1.5))
        with open(self.path, "rb") as f:
            data = f.read()
        with open(self.path, "wb") as f:
            f.write(change(data))

    def test_bytes_of_other_programs(self):
        for change in (lambda d: d.replace(b"\n", b"\r\n"), lambda d: b"\xef\xbb\xbf" + d):
            self.write_changed(change)
            self.assertEqual(len(results.read(self.path)), 1)

    def test_damaged_bytes(self):
        for old, new in ((b"1.500000", b"nan"), (b"1.500000", b"-inf"), (b"1.500000", b"1e300"),
                         (b"a processor", b"\xff\xfe"), (b"tune", b"none"), (b"10.0", b"\0"),
                         (b"a processor", b'"' + 200000 * b"x" + b'"'), (b"40960", b"-1"),
                         (b",0.01,", b",0,"), (b"160:", b"160;")):
            self.write_changed(lambda d: d.replace(old, new, 1))
            with self.assertRaises(ValueError, msg=new[:20]) as caught:
                results.read(self.path)
            self.assertIn(self.path, str(caught.exception))

    def test_diverged_runs_have_an_infinite_loss(self):
        results.append(self.path, make_row(self.grid, self.jobs[0], 13.2, diverged=1))
        self.assertEqual(results.read(self.path)[0]["final_val"], math.inf)

    def test_no_file(self):
        self.assertEqual(results.read(self.path + ".none"), [])


# ---- the grid file and the command line of a sweep


class Grids(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.folder)

    def refuse(self, old, new):
        self.assertIn(old, GRID)
        with self.assertRaises(SystemExit) as caught:
            read_grid(self.folder, GRID.replace(old, new, 1))
        self.assertIn("error: ", str(caught.exception.code))

    def test_values_without_meaning(self):
        for old, new in (("factor = 2", "factor = 1"), ("factor = 2", 'factor = "2"'), ("factor = 2", "around = -1"),
                         ("factor = 2", "start = 0"), ("factor = 2", "start = nan"), ("factor = 2", "unknown = 1"),
                         ('flags = ["lr-qk"]', 'flags = "lr-qk"'), ("seeds = [1]", "seeds = []"),
                         ("seeds = [1]", "seeds = [true]"), ("seeds = [1]", "seeds = [1, 1]"),
                         ('"101-108"', '"108-101"'), ('"101-108"', '"0-999999999"'), ("final = 3", "final = -3"),
                         ("final = 3", 'settings = "plain"'), ("final = 3", 'settings = ["none"]'),
                         ("final = 3", "final = { none = 3 }"), ('title = "QK-norm"', "start = { none = 0.1 }"),
                         ('title = "QK-norm"', "fixed = { none = 0.1 }"), ('title = "QK-norm"', "start = { cm = 0 }"),
                         ("final = 3", 'fixed = "x"'), ("steps = 160", "steps = [1]"), ("steps = 160", 'run = "x"'),
                         ("steps = 160", "resume = true"), ('name = "plain"', 'name = "../plain"'),
                         ('name = "plain"', "name = 3"), ('name = "plain"', 'name = "a\\nb"'),
                         ('title = "QK-norm"', 'tune = "x"'), ('title = "QK-norm"', 'arms = ["none"]'),
                         ("[run]", "arm = 3\n[run]"), ("[run]", "[run")):
            self.refuse(old, new)

    def test_lists_of_a_sweep(self):
        words = "--lr 0.02,0.01,0.02 --seed=1,2,1 --optimizer cm,muon,cm --log-groups --steps 9"
        grid = compare.sweep_grid(words.split())
        jobs = compare.sweep_jobs(grid)
        self.assertEqual(len({job.key for job in jobs}), len(jobs))
        self.assertEqual([(j.seed, j.rate, j.arm["name"]) for j in jobs],
                         [(s, r, a) for s in (1, 2) for r in (0.01, 0.02) for a in ("cm", "muon")])
        self.assertEqual(jobs[0].flags["log-groups"], None)

    def test_one_rate_of_a_sweep(self):
        self.assertEqual([j.rate for j in compare.sweep_jobs(compare.sweep_grid(["--lr", "0.01"]))], [0.01])
        self.assertEqual([j.rate for j in compare.sweep_jobs(compare.sweep_grid(["--steps", "9"]))], [None])

    def test_options_within_a_sweep(self):
        words = "--lr 0.01 --jobs 3 --dry-run --weight-decay -1".split()
        self.assertEqual(compare.own_words(words), ["--jobs=3", "--dry-run"])
        self.assertEqual(compare.sweep_grid(words)["run"], {"weight-decay": "-1"})

    def test_sweeps_without_meaning(self):
        for text in ("", "foo", "--lr 0.1,", "--lr 0.1,inf", "--lr 0,0.1", "--lr", "--seed",
                     "--seed 1.5", "--seed x,1", "--run a",
                     "--resume", "--steps 1 --steps 2", "--lr 0.1,0.2 --lr-qk 0.1,0.2", "--optimizer ../a,b"):
            with self.assertRaises(SystemExit, msg=text) as caught:
                compare.sweep_grid(text.split())
            self.assertIn("error: ", str(caught.exception.code))


# ---- the choice of rates


class Rates(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.folder)
        self.grid = read_grid(self.folder)

    def test_settled(self):
        self.assertEqual(compare.settled({0.01: 2.0, 0.02: 1.0, 0.04: 2.0}, 1, 2), (0.02, []))
        self.assertEqual(compare.settled({0.01: 3.0, 0.02: 2.0, 0.04: 1.0}, 1, 2), (0.04, [0.08]))
        self.assertEqual(compare.settled({0.01: 1.0, 0.02: 2.0, 0.04: 3.0}, 1, 2), (0.01, [0.005]))
        # Diverged runs count as known; where all diverged, only a lower rate can help.
        self.assertEqual(compare.settled({0.01: 2.0, 0.02: 1.0, 0.04: math.inf}, 1, 2), (0.02, []))
        self.assertEqual(compare.settled({0.01: math.inf, 0.02: math.inf}, 1, 2), (0.01, [0.005]))

    def rates(self, loss_of):
        """The rates that the first arm's jobs try, and the best one, where loss_of gives the losses."""
        arm, setting, known = self.grid["arm"][0], self.grid["setting"][0], {}
        for _ in range(100):
            tune, final, best = compare.arm_jobs(self.grid, setting, arm, known)
            if best is not None:
                return [job.rate for job in tune], best, final
            self.assertEqual(final, [])
            known |= {job.key: {"final_val": loss_of(job.rate)} for job in tune}
        self.fail("the rate is never settled")

    def test_grows_at_the_edge(self):
        rates, best, final = self.rates(lambda rate: abs(math.log2(rate / 0.08)))
        self.assertEqual(rates, [0.01, 0.02, 0.04, 0.08, 0.16])
        self.assertEqual(best, 0.08)
        self.assertEqual([job.seed for job in final], list(range(101, 109)))
        self.assertEqual({job.flags["lr-qk"] for job in final}, {"0.08"})

    def test_start(self):
        """The ladder begins at the setting's rate for the arm, else the arm's, else the setting's, else the grid's."""
        for rate, setting, starts in ((None, None, [0.02, 0.014]), (0.1, None, [0.02, 0.1]), (0.1, "0.3", [0.02, 0.3]),
                                      (0.1, "{ muon = 0.3 }", [0.3, 0.1]), (None, "{ cm = 0.3 }", [0.02, 0.3])):
            text = GRID if rate is None else GRID.replace("factor = 2", f"factor = 2\nstart = {rate}")
            if setting is not None:
                text = text.replace('title = "No QK-norm"', f"start = {setting}")
            grid = read_grid(self.folder, text)
            self.assertEqual([compare.start_of(grid, grid["setting"][0], arm) for arm in grid["arm"][:2]], starts)
            rates = [job.rate for job in compare.arm_jobs(grid, grid["setting"][0], grid["arm"][1], {})[0]]
            self.assertEqual(rates[1], compare.ladder(compare.rung(starts[1], 2), 2))

    def test_diverged_edge_is_an_edge(self):
        rates, best, _ = self.rates(lambda rate: math.inf if rate > 0.03 else 1 / rate)
        self.assertEqual((rates, best), ([0.01, 0.02, 0.04], 0.02))

    def test_all_diverged_goes_down(self):
        rates, best, _ = self.rates(lambda rate: math.inf if rate > 0.003 else 1 / rate)
        self.assertEqual(min(rates), 0.00125)
        self.assertEqual(best, 0.0025)

    def test_no_optimum_ends_at_the_ladder(self):
        rates, best, _ = self.rates(lambda rate: rate)
        self.assertEqual(best, min(rates))
        self.assertLess(best, 2 * compare.LEAST_RATE)
        self.assertGreaterEqual(best, compare.LEAST_RATE)

    def test_flags(self):
        job = compare.all_jobs(self.grid, {})[0]
        self.assertIn("--qk-norm off", job.key)
        grid = read_grid(self.folder, GRID.replace("[run]", "[run]\nlog-groups = true\nthreads = 3", 1))
        with_places = compare.all_jobs(grid, {})[0]
        self.assertEqual(with_places.key, job.key)  # what leaves the numbers alone is not in the key
        words = compare.words_of(with_places.flags)
        self.assertEqual(words[words.index("--log-groups") + 1][:2], "--")
        self.assertEqual(words[words.index("--threads") + 1], "3")
        grid = read_grid(self.folder, GRID.replace("[run]", "[run]\nlog-groups = false", 1))
        self.assertNotIn("--log-groups", compare.words_of(compare.all_jobs(grid, {})[0].flags))


# ---- the runner

# Stands in for the trainer: a run whose loss is a function of its rate and seed.
TRAINER = r"""#!/bin/sh
while [ $# -gt 0 ]; do
    case $1 in
    --dry-run) echo "1.5 ms a step"; exit ;;
    --run) run=$2 ;;
    --runs-dir) place=$2 ;;
    --seed) seed=$2 ;;
    --lr-qk) rate=$2 ;;
    esac
    shift
done
mkdir -p "$place/$run"
sleep 0.0$((seed % 10))
echo '{"version": "test", "parameters": 1, "train_checksum": "a", "val_checksum": "b",
 "machine": {"cpu": "c", "threads": 1, "gemm": "g"}, "flags": {"steps": 1}}' >"$place/$run/run.json"
loss=$(awk "BEGIN { print 2 + $seed / 1000 + (log($rate / 0.02)) ^ 2 }")
cat >"$place/$run/log.jsonl" <<END
{"step": 0, "tokens": 0, "train_loss": null, "val_loss": 5, "ms": null}
a line of another program
{"step": 9, "comment": "my evaluation", "val_loss": 0.1}
{"step": 1, "tokens": 8, "train_loss": 3, "val_loss": $loss, "ms": 1}
END
"""


class Running(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.folder)
        self.program = os.path.join(self.folder, "trainer")
        with open(self.program, "w", encoding="utf-8") as f:
            f.write(TRAINER)
        os.chmod(self.program, 0o755)
        self.grid = read_grid(self.folder, GRID.replace("[run]", f'program = "{self.program}"\n[run]', 1))
        self.csv = os.path.join(self.folder, "small.csv")

    def command(self, *options):
        return [sys.executable, os.path.join(SCRIPTS, "compare.py"), os.path.join(self.folder, "small.toml"),
                "--runs-dir", os.path.join(self.folder, "runs"), *options]

    def test_side_by_side(self):
        # Runs of a hundredth of a second end while others are recorded; none may be lost.
        done = subprocess.run(self.command("--jobs", "6"), capture_output=True, text=True, timeout=300)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        rows = results.read(self.csv)
        self.assertEqual(len({row["flags"] for row in rows}), len(rows))
        known = {row["flags"]: row for row in rows}
        self.assertEqual([job for job in compare.all_jobs(self.grid, known) if job.key not in known], [])
        self.assertEqual({row["rate"] for row in rows if row["stage"] == "final"}, {0.02})
        self.assertEqual(os.listdir(os.path.join(self.folder, "runs")), [])
        again = subprocess.run(self.command("--jobs", "6"), capture_output=True, text=True, timeout=60)
        self.assertIn("0 runs to do", again.stdout)

    def trainer_says(self, lines):
        """Replaces what the trainer does in a run by a few lines of shell."""
        with open(self.program, "w", encoding="utf-8") as f:
            f.write(TRAINER.split("mkdir", 1)[0] + lines)

    def run_failing(self, *options):
        done = subprocess.run(self.command(*options), capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 1)
        self.assertNotIn("Traceback", done.stderr)
        return done.stderr

    def test_runs_that_fail(self):
        for lines, words in (("echo trouble; exit 2", "ended with 2: trouble"),
                             ("echo not finite; kill -SEGV $$", "ended by SIGSEGV"),
                             ("echo not finite; exit 1", "left no readable run"), ("exit 0", "left no readable run")):
            self.trainer_says(lines)
            self.assertIn(words, self.run_failing("--jobs", "5"))
        os.remove(self.program)
        self.assertIn("make train_gpt", self.run_failing())

    @unittest.skipUnless(sys.platform == "linux", "only Linux ends children with their parent")
    def test_runs_end_with_the_comparison(self):
        pids = os.path.join(self.folder, "pids")
        self.trainer_says(f"echo $$ >>{pids}\nexec sleep 600\n")
        for number in (signal.SIGKILL, signal.SIGINT, signal.SIGTERM):
            with open(pids, "w", encoding="utf-8"):
                pass
            child = subprocess.Popen(self.command("--jobs", "3"), stdout=subprocess.DEVNULL,
                                     stderr=subprocess.DEVNULL)
            self.wait_for(lambda: len(self.numbers(pids)) == 3)
            child.send_signal(number)
            child.wait()
            self.wait_for(lambda: not any(os.path.exists(f"/proc/{pid}/exe") for pid in self.numbers(pids)))

    def numbers(self, path):
        with open(path, encoding="utf-8") as f:
            return f.read().split()

    def wait_for(self, condition):
        end = time.monotonic() + 30  # seconds; a loaded machine takes a few
        while not condition():
            self.assertLess(time.monotonic(), end)
            time.sleep(0.05)

    def test_two_at_once(self):
        pids = os.path.join(self.folder, "pids")
        self.trainer_says(f"echo $$ >>{pids}\nexec sleep 600\n")
        child = subprocess.Popen(self.command("--jobs", "1"), stdout=subprocess.DEVNULL)
        self.addCleanup(child.wait)
        self.addCleanup(child.kill)
        self.wait_for(lambda: os.path.exists(pids))
        self.assertIn("another comparison writes", self.run_failing())
        self.assertIn("another comparison has its runs in",
                      self.run_failing("--results", os.path.join(self.folder, "other.csv")))

    def test_time_over_before_the_first_run(self):
        done = subprocess.run(self.command("--seconds", "1e-9"), capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 3, done.stderr)
        self.assertIn("the time is over", done.stdout)

    def test_goes_on_after_a_kill(self):
        for _ in range(2):
            child = subprocess.Popen(self.command("--jobs", "3"), stdout=subprocess.PIPE,
                                     stderr=subprocess.STDOUT, text=True)
            for _ in range(8):  # lines of its output, a run each after the first three
                child.stdout.readline()
            child.kill()
            child.communicate()
        done = subprocess.run(self.command("--jobs", "3"), capture_output=True, text=True, timeout=300)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        rows = results.read(self.csv)
        self.assertEqual(len({row["flags"] for row in rows}), len(rows))
        known = {row["flags"]: row for row in rows}
        self.assertEqual([job for job in compare.all_jobs(self.grid, known) if job.key not in known], [])


# ---- checkpoints and measures


def padded(data):
    return data + bytes(-len(data) % 8)


def write_checkpoint(path, header, tensors, sizes=None, version=2):
    """A checkpoint by docs/formats.md. `sizes` replaces the dimensions that the file states."""
    out = padded(b"cm.c checkpoint %d\n" % version)
    text = header.encode()
    out += struct.pack("<Q", len(text)) + padded(text)
    for name, (kind, array) in tensors.items():
        dims = (sizes or {}).get(name, array.shape)
        out += struct.pack("<Q", len(name)) + padded(name.encode())
        out += struct.pack(f"<QQ{len(dims)}Q", kind, len(dims), *dims) + padded(array.tobytes())
    out += struct.pack("<QQ", 0, len(out) + 24)
    with open(path, "wb") as f:
        f.write(out + struct.pack("<Q", checkpoint.checksum(out)))


@unittest.skipUnless(HAS_NUMPY, "NumPy is absent")
class Checkpoints(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.folder)
        self.path = os.path.join(self.folder, "step_00000002.ckpt")
        draw = np.random.default_rng(1)
        self.array = draw.standard_normal((2, 3, 5)).astype("<f4")
        self.half = np.array([1.0, -2.5, 0.15625], "<f4")  # exact in bf16
        self.tensors = {"p.a": (0, self.array), "p.b": (2, (self.half.view("<u4") >> 16).astype("<u2")),
                        "p.c": (1, self.array.astype("<f8"))}
        write_checkpoint(self.path, "step=2\nflag.qk=cm\n", self.tensors)

    def test_reads_what_was_written(self):
        header, tensors = checkpoint.read(self.path, ["p.a", "p.b", "absent"])
        self.assertEqual(header, {"step": "2", "flag.qk": "cm"})
        self.assertEqual(set(tensors), {"p.a", "p.b"})
        self.assertTrue((tensors["p.a"] == self.array).all())
        self.assertTrue((tensors["p.b"] == self.half).all())

    def test_checksum_of_the_trainer(self):
        # checkpoint_hash of llmc/checkpoint.h: of nothing, of "abc", of the bytes 0 to 99.
        known = {b"": 0x9e634a9f5e4404ef, b"abc": 0x66ff48cf809601a4, bytes(range(100)): 0x207da70d9149d340}
        for data, value in known.items():
            self.assertEqual(checkpoint.checksum(data), value)

    def test_cut_off_and_flipped(self):
        with open(self.path, "rb") as f:
            whole = f.read()
        for size in range(0, len(whole), 8):
            self.expect_refusal(whole[:size])
        for at in range(0, len(whole), 13):
            self.expect_refusal(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1:])
        self.expect_refusal(whole + bytes(8))

    def test_changed_words(self):
        # With a checksum that fits, so that the reader meets every damage: it reads or raises ValueError.
        with open(self.path, "rb") as f:
            whole = f.read()
        draw, read = random.Random(3), 0
        for _ in range(500):
            data = bytearray(whole[:-8])
            at = 8 * draw.randrange(len(data) // 8)
            word = draw.choice([0, 1, 7, 9, 4097, 1 << 32, 1 << 63, draw.getrandbits(64)])
            data[at:at + 8] = struct.pack("<Q", word)
            with open(self.path, "wb") as f:
                f.write(data + struct.pack("<Q", checkpoint.checksum(data)))
            try:
                checkpoint.read(self.path, ["p.a", "p.b", "p.c"])
                read += 1
            except ValueError:
                pass
        self.assertTrue(50 < read < 450, read)  # values of tensors may be any, lengths may not

    def expect_refusal(self, data):
        with open(self.path, "wb") as f:
            f.write(data)
        with self.assertRaises(ValueError):
            checkpoint.read(self.path, ["p.a", "p.b", "p.c"])

    def test_sizes_that_lie(self):
        # The checksum is right, the sizes are not: nothing may be read or allocated by them.
        for dims in ((1 << 62, 4, 4), (1 << 63, 2), (2, 3, 500), (1,) * 9):
            write_checkpoint(self.path, "step=2\n", self.tensors, {"p.a": dims})
            with self.assertRaises(ValueError):
                checkpoint.read(self.path, ["p.a"])
        write_checkpoint(self.path, "step=2\n", self.tensors, version=3)
        with self.assertRaises(ValueError):
            checkpoint.read(self.path, ["p.a"])

    def test_spectra_against_the_whole_map(self):
        layers, heads, kv_heads, size, width = 2, 4, 2, 3, 7
        draw = np.random.default_rng(2)
        wqkv = draw.standard_normal((layers, (heads + 2 * kv_heads) * size, width))
        wo = draw.standard_normal((layers, width, heads * size))
        found = measure.spectra(wqkv, wo, heads, kv_heads, size)
        for layer in range(layers):
            rows = wqkv[layer].reshape(heads + 2 * kv_heads, size, width)
            for head in range(heads):
                key, value = rows[heads + head // 2], rows[heads + kv_heads + head // 2]
                maps = {"QK": rows[head].T @ key, "OV": wo[layer][:, head * size:(head + 1) * size] @ value}
                for circuit, whole in maps.items():
                    record, exact = found[circuit][layer][head], np.linalg.svd(whole, compute_uv=False)
                    # Records are rounded to five digits.
                    np.testing.assert_allclose(record["singular"], exact[:size], rtol=1e-4)
                    self.assertLess(exact[size], 1e-12 * exact[0])
                    self.assertAlmostEqual(record["stable_rank"], (whole ** 2).sum() / exact[0] ** 2, delta=1e-3)
                    self.assertAlmostEqual(record["condition"] / (exact[0] / exact[size - 1]), 1, delta=1e-3)
        self.assertRaises(ValueError, measure.spectra, wqkv, wo, heads, kv_heads, size + 1)
        self.assertRaises(ValueError, measure.spectra, wqkv * math.nan, wo, heads, kv_heads, size)

    def test_composed_steps(self):
        with_circuits = {"groups": {"W_Q": {"update_rms": 1.0},
                                    "QK": {"composed_max": 0.9, "composed_median": 0.5}}}
        lines = [json.dumps({"step": 0, "val_loss": 5.5}), json.dumps({"step": 1, "extra": with_circuits}),
                 json.dumps({"step": 2} | with_circuits), json.dumps({"step": 3, "extra": {"groups": {}}}),
                 '{"step": 4, "extra": {"gr']
        self.assertEqual(measure.composed_steps(lines), {"QK": [[1, 0.9, 0.5], [2, 0.9, 0.5]]})

    def test_long_logs_are_thinned(self):
        thin = measure.thinned([[i, 1.0 + (i == 777), 0.5] for i in range(1, 1001)])
        self.assertEqual(len(thin), measure.POINTS)
        self.assertEqual(thin[-1][0], 1000)
        self.assertEqual(max(p[1] for p in thin), 2.0)

    def test_a_run_folder(self):
        folder = os.path.join(self.folder, "plain.cm.0.01.s101")
        os.makedirs(os.path.join(folder, "checkpoints"))
        with self.assertRaises(OSError):
            measure.measure(folder)
        write_run(folder, 3)
        record = measure.measure(folder)
        self.assertEqual([record[k] for k in ("setting", "arm", "rate", "seed", "step")],
                         ["plain", "cm", "0.01", 101, 5])
        self.assertEqual(len(record["spectra"]["OV"][0]), 2)
        self.assertEqual(record["composed"]["OV"], [[1, 0.75, 0.25]])
        for text in ("[]", "null", "{}", '{"version": "1", "flags": 3}', '{"version": "1", "flags": {}}',
                     '{"version": "1", "flags": {"seed": "1", "heads": 2, "kv-heads": 2, "head-dim": 4}}',
                     '{"version": "1", "flags": {"seed": 1, "heads": 0, "kv-heads": 2, "head-dim": 4}}', "[" * 100000):
            with open(os.path.join(folder, "run.json"), "w", encoding="utf-8") as f:
                f.write(text)
            self.assertRaises(ValueError, measure.measure, folder)

    def test_logs_of_odd_lines(self):
        lines = ["", "[]", "3", "null", "[" * 100000, '{"step": 1, "groups": 3}', '{"step": 1, "groups": {"QK": 3}}',
                 '{"groups": {"QK": {"composed_max": 1, "composed_median": 1}}}',
                 '{"step": 1, "groups": {"QK": {"composed_max": NaN, "composed_median": 1}}}']
        self.assertEqual(measure.composed_steps(lines), {})


def write_run(folder, seed):
    """A run folder with a checkpoint of one layer with two heads of 4, and a log of one step."""
    draw = np.random.default_rng(seed)
    os.makedirs(os.path.join(folder, "checkpoints"), exist_ok=True)
    flags = {"seed": 101, "heads": 2, "kv-heads": 2, "head-dim": 4}
    with open(os.path.join(folder, "run.json"), "w", encoding="utf-8") as f:
        json.dump({"version": "0.2.0", "flags": flags}, f)
    circuits = {"OV": {"composed_max": 0.75, "composed_median": 0.25}}
    with open(os.path.join(folder, "log.jsonl"), "w", encoding="utf-8") as f:
        f.write(json.dumps({"step": 1, "extra": {"groups": circuits}}) + "\n")
    write_checkpoint(os.path.join(folder, "checkpoints", "step_00000005.ckpt"), "step=5\n",
                     {"p.wqkv": (0, draw.standard_normal((1, 24, 8)).astype("<f4")),
                      "p.wo": (0, draw.standard_normal((1, 8, 8)).astype("<f4"))})


# ---- the report


class Page(html.parser.HTMLParser):
    """Holds the tags of a page to balance, and collects its text, ids and links."""

    VOID = {"meta", "br", "link", "img", "input", "hr"}

    def __init__(self, text):
        super().__init__()
        self.open, self.problems, self.words, self.attributes, self.ids = [], [], [], [], []
        self.feed(text)
        self.close()
        self.problems += [f"{tag} is never closed" for tag in self.open]

    def handle_starttag(self, tag, attributes):
        self.attributes += [(tag, *attribute) for attribute in attributes]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.attributes += [(tag, *attribute) for attribute in attributes]

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"</{tag}> at {self.getpos()}")

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


EIGHT_PAIRS = [-.0032, -.0054, -.0008, .0018, -.0121, .0015, -.0092, -.0147]


class Report(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.mkdtemp()
        cls.addClassCleanup(shutil.rmtree, cls.folder)
        cls.grid = read_grid(cls.folder)
        cls.csv = os.path.join(cls.folder, "small.csv")

        def changes(job):
            # One run of AdamW diverges, one of CM has half of a processor.
            if (job.arm["name"], job.setting["name"], job.stage) == ("adamw", "qknorm", "final") and job.seed == 102:
                return {"final_val": "inf", "train_tail": "inf", "diverged": 1}
            return {"cpu_seconds": "5.0"} if job.arm["name"] == "cm" and job.seed == 103 else {}

        cls.known = fill(cls.grid, cls.csv, bowl, changes)
        cls.path = os.path.join(cls.folder, "small.html")
        options = ["-o", cls.path]
        if HAS_NUMPY:
            runs = [os.path.join(cls.folder, "runs", f"plain.{arm}.0.01.s101") for arm in ("muon", "cm")]
            for seed, run in enumerate(runs):
                write_run(run, seed)
            options += ["--runs", *runs]
        cls.run_report(*options)
        with open(cls.path, encoding="utf-8") as f:
            cls.html = f.read()
        cls.page = Page(cls.html)

    @classmethod
    def run_report(cls, *options, grid="small.toml"):
        command = [sys.executable, os.path.join(SCRIPTS, "report.py"), os.path.join(cls.folder, grid), *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        if done.returncode:
            raise AssertionError(f"{' '.join(command)}: {done.stderr}")
        return done.stdout

    def test_tags_are_balanced(self):
        self.assertEqual(self.page.problems, [])
        self.assertTrue(self.html.startswith("<!DOCTYPE html>"))

    def test_nothing_external(self):
        for word in ("http:", "https:", "//", "url(", "@import"):
            # Comments of the grid file and paths may have slashes; attributes, styles and scripts may not.
            for tag, name, value in self.page.attributes:
                self.assertNotIn(word, value or "", f"<{tag} {name}>")
            for block in re.findall(r"<(?:style|script)>(.*?)</(?:style|script)>", self.html, re.S):
                self.assertNotIn(word, block)
        links = [value for tag, name, value in self.page.attributes if name in ("href", "src")]
        ids = {value for tag, name, value in self.page.attributes if name == "id"}
        self.assertTrue(links)
        self.assertEqual({link[1:] for link in links} - ids, set())
        self.assertIn("default-src 'none'", html.unescape(self.html))

    def test_sentence(self):
        pairs = []
        for seed in range(101, 109):
            loss = {row["arm"]: row["final_val"] for row in self.known.values()
                    if row["stage"] == "final" and row["seed"] == seed and row["setting"] == "plain"}
            pairs.append(loss["cm"] - loss["muon"])
        test = results.paired(pairs)
        self.assertIn(f"CM ends {abs(test['mean']):.4f} nats per byte below Muon (95 % interval", self.page.text)
        self.assertIn("8 pairs", self.page.text)
        self.assertIn("On average over 2 settings, CM ends", self.page.text)
        self.assertIn("8 common seeds", self.page.text)

    def test_nothing_is_hidden(self):
        text = self.page.text
        for row in self.known.values():
            self.assertIn(row["flags"], text)
        for words in ("1 run of", "diverged", "shared the processor", "abc", "def", "a processor", "0.2.0",
                      "scripts/compare.py"):
            self.assertIn(words, text)
        self.assertIn("12 % loaded", html.unescape(self.html))  # one of CM's eight runs
        self.assertIn("A small <comparison> & its report", text)

    def test_pictures_have_texts(self):
        pictures = [dict(zip(("tag", "name", "value"), a)) for a in self.page.attributes
                    if a[0] == "svg" and a[1] == "aria-label"]
        self.assertGreater(len(pictures), 10)
        self.assertTrue(all(picture["value"] for picture in pictures))
        self.assertEqual(self.html.count("<svg viewBox"), len(pictures))
        if HAS_NUMPY:
            self.assertIn("Spectra of the composed maps", self.page.text)
            self.assertIn("Composed steps", self.page.text)

    def test_equal_bytes(self):
        self.assertEqual(self.run_and_read(), self.run_and_read())

    def test_picture(self):
        path = os.path.join(self.folder, "p.svg")
        self.run_report("--picture", path)
        root = xml.etree.ElementTree.parse(path).getroot()
        self.assertTrue(root.tag.endswith("svg"))
        texts = [e.text for e in root.iter() if e.tag.endswith("text")]
        self.assertEqual(texts.count("CM"), 2)  # a row of each setting
        self.assertIn("QK-norm", texts)
        with open(path, encoding="utf-8") as f:
            self.assertNotIn("var(", f.read())

    def test_arm_and_errors(self):
        self.assertIn("AdamW", self.run_and_read("--arm", "adamw").split("</header>")[0])
        one = self.run_and_read("--setting", "plain")
        self.assertNotIn("On average over", one)
        self.assertIn("No QK-norm", one)
        for options, words in ((["--arm", "none"], "no arm none"), (["--set", "steps=9"], "no run with the flags"), (["--picture", "p.gif"], ".png or .svg"),
                               (["--results", "none.csv"], "there are no results"),
                               (["--measures", self.csv], "cannot read the measures")):
            with self.assertRaises(AssertionError) as caught:
                self.run_report(*options)
            self.assertIn(words, str(caught.exception))

    def test_damaged_measures(self):
        head = {"singular": [2.0, 1.0], "stable_rank": 1.25, "condition": None}
        run = {"run": "a", "arm": "cm", "setting": "plain", "seed": 1, "composed": {"QK": [[1, 2.0, 1.0]]},
               "spectra": {"QK": [[head]], "OV": [[head]]}}
        self.assertTrue(report.is_record(run))
        for changes in ({"seed": "1"}, {"setting": []}, {"arm": None}, {"composed": {"QK": [[1]]}}, {"composed": 3},
                        {"spectra": {"QK": [[head]]}}, {"spectra": {"QK": [[head]], "OV": []}},
                        {"spectra": {"QK": [[{}]], "OV": [[head]]}},
                        {"spectra": {"QK": [[head | {"singular": []}]], "OV": [[head]]}},
                        {"spectra": {"QK": [[head | {"condition": math.nan}]], "OV": [[head]]}}):
            self.assertFalse(report.is_record(run | changes), changes)
        self.assertFalse(report.is_record(3))

    def text_of(self, grid_text, loss_of):
        """The text of the report of a finished grid."""
        with tempfile.TemporaryDirectory() as folder:
            grid = read_grid(folder, grid_text)
            known = fill(grid, os.path.join(folder, "r.csv"), loss_of)
            page = Page(report.page(grid, os.path.join(folder, "small.toml"), known, report.question_of(grid, None),
                                    None, "r", ""))
        self.assertEqual(page.problems, [])
        return page.text

    def test_a_grid_that_chooses_rates(self):
        text = self.text_of(GRID.replace('seeds = "101-108"', "seeds = []"), bowl)
        self.assertIn("This grid chooses learning rates.", text)
        self.assertIn("CM: best at rate 0.02 (loss", text)
        self.assertNotIn("No answer yet", text)

    def test_a_grid_of_one_arm(self):
        text = self.text_of(GRID.split('[[arm]]\nname = "cm"')[0].replace('question = "cm"', ""), bowl)
        self.assertIn("No setting has a second arm", text)

    def test_settings_without_a_question(self):
        text = self.text_of(GRID.replace("run = { qk-norm = true }", 'run = { qk-norm = true }\nbaseline = "cm"')
                            .replace('title = "No QK-norm"', 'arms = ["muon", "adamw"]', 1), bowl)
        self.assertIn("CM, the arm of the question, is the baseline here.", text)
        self.assertIn("The arm of the question does not run in this setting.", text)

    def test_odd_rows(self):
        text = GRID.replace('title = "Muon"', 'title = "<b>\\"M\'&$x^"', 1)
        for changes in ({"ms": "0", "seconds": "0"}, {"ms": "nan", "seconds": "nan", "cpu_seconds": "inf"},
                        {"train_curve": "", "val_curve": ""}, {"train_curve": "", "val_curve": "0:5.5"},
                        {"final_val": "inf", "train_tail": "inf", "diverged": 1}):
            known = {flags: results.parse_row([str(v) for v in (row | changes).values()])
                     for flags, row in self.known.items()}
            with tempfile.TemporaryDirectory() as folder:
                grid = read_grid(folder, text)
                page = Page(report.page(grid, os.path.join(folder, "small.toml"), known, "cm", None, "r", ""))
            self.assertEqual(page.problems, [])
            self.assertIn("<b>\"M'&$x^", page.text)

    def test_order_is_by_paired_difference(self):
        # AdamW has only the first three seeds, on which every arm does better than on the others.
        def loss(job):
            arm = {"muon": 0.0, "cm": -0.1, "adamw": 0.1}[job.arm["name"]]
            return 2 + arm + (1.0 if job.seed > 103 else 0.0) + 0.01 * abs(math.log2(job.rate / 0.02))

        with tempfile.TemporaryDirectory() as folder:
            grid = read_grid(folder)
            known = fill(grid, os.path.join(folder, "r.csv"), loss)
        table = compare.compare_setting(grid, grid["setting"][0], known)
        self.assertEqual([row[0]["name"] for row in table], ["cm", "muon", "adamw"])
        means = [results.mean(list(row[2].values())) for row in table]
        self.assertEqual(min(means), means[2])

    def run_and_read(self, *options):
        path = os.path.join(self.folder, "other.html")
        self.run_report("-o", path, *options)
        with open(path, encoding="utf-8") as f:
            text = f.read()
        self.assertEqual(Page(text).problems, [])
        return text

    def test_unfinished(self):
        with open(self.csv, encoding="utf-8") as f:
            lines = f.readlines()
        partial = os.path.join(self.folder, "partial.csv")
        grid_path = os.path.join(self.folder, "small.toml")
        for count in range(2, len(lines), 9):
            with open(partial, "w", encoding="utf-8") as f:
                f.writelines(lines[:count])
            known = {row["flags"]: row for row in results.read(partial)}
            text = report.page(self.grid, grid_path, known, "cm", None, "partial.csv", "")
            self.assertEqual(Page(text).problems, [], count)
            self.assertIn("unfinished", text)
        self.assertNotIn("The comparison is unfinished", self.html)

    # ---- words

    def finding(self, pairs, tests=1, p=None):
        test = results.paired(pairs)
        return report.finding("CM", "Muon", test, test["p"] if p is None else p, tests, "nats")

    def test_words_of_an_open_question(self):
        # Eight pairs that were measured before: mean .0053 +- .0022, t = 2.4.
        text = self.finding(EIGHT_PAIRS, tests=7, p=0.3)
        self.assertIn("CM ends 0.0053 nats below Muon (95 % interval 0.0001 to 0.0105 below; 8 pairs; p = 0.048, "
                      "0.30 after correction for 7 arms): not decided", text)
        needed = math.ceil(results.paired(EIGHT_PAIRS)["needed"])
        self.assertIn(f"about {needed} pairs would decide", text)

    def test_words_of_decided_questions(self):
        self.assertTrue(self.finding([-0.01, -0.011, -0.012, -0.01]).endswith("better than Muon, at p < 0.01."))
        self.assertTrue(self.finding([0.01, 0.011, 0.012, 0.01]).endswith("worse than Muon, at p < 0.01."))

    def test_words_of_no_difference(self):
        text = self.finding([0.001, -0.001, 0.0011, -0.001])
        test = results.paired([0.001, -0.001, 0.0011, -0.001])
        self.assertIn(f"any difference larger than {test['mean'] + test['half']:.4f} is unlikely", text)
        self.assertIn("not decided", text)
        self.assertNotIn("better", text)

    def test_words_of_one_pair(self):
        self.assertIn("one pair says nothing", self.finding([0.01]))

    def test_words_of_equal_losses(self):
        self.assertEqual(self.finding([0.0, 0.0, 0.0]), "CM and Muon end equal on all 3 pairs.")

    def test_diverged_runs_give_no_claim(self):
        # A run of the baseline diverges: no arm has a test, and the reason is said.
        bad = next(row for row in self.known.values()
                   if (row["arm"], row["stage"], row["seed"]) == ("muon", "final", 104) and row["setting"] == "plain")
        known = self.known | {bad["flags"]: bad | {"final_val": math.inf, "diverged": 1}}
        text = Page(report.page(self.grid, os.path.join(self.folder, "small.toml"), known, "cm", None, "r", "")).text
        self.assertIn("No difference of CM and Muon can be stated (diverged: Muon on 1 of 8 seeds).", text)
        self.assertNotIn("On average over", text)

    def test_opposite_settings_have_no_mean(self):
        known = {flags: row | {"final_val": row["final_val"] + 0.1}
                 if row["arm"] == "cm" and row["setting"] != "plain" else row for flags, row in self.known.items()}
        text = Page(report.page(self.grid, os.path.join(self.folder, "small.toml"), known, "cm", None, "r", "")).text
        self.assertIn("It depends: CM is better than Muon in 1 of 2 settings (No QK-norm: \u22120.0", text)
        self.assertIn("), worse in 1 (QK-norm: +0.0", text)
        self.assertNotIn("On average over", text)

    def test_correction_decides_the_word(self):
        # p alone is below .01, corrected it is not: the sentence must not claim it.
        pairs = [-0.01, -0.009, -0.012, -0.016]
        self.assertLess(results.paired(pairs)["p"], report.DECIDED)
        text = self.finding(pairs, tests=10, p=0.04)
        self.assertIn("likely better, not decided", text)
        self.assertIn("its p corrected for 10 arms does not", text)

    def test_ticks(self):
        self.assertEqual(svg.labels(svg.ticks(-0.021, 0.021, 4)), ["\u22120.02", "0.00", "0.02"])
        for low, high in ((0, 1), (1.6149, 1.6152), (-3, 1e4), (5e-5, 6e-5)):
            values = svg.ticks(low, high, 5)
            self.assertTrue(2 <= len(values) <= 7, values)
            self.assertTrue(all(low - 1e-12 <= v <= high + 1e-9 for v in values))
            self.assertEqual(len(set(svg.labels(values))), len(values))

    def test_lines_are_cut_at_the_box(self):
        pieces = svg.cut([(0, -5), (10, 5), (20, 15), (30, 5)], 0, 10)
        self.assertEqual(pieces, [[(5, 0), (10, 5), (15, 10)], [(25, 10), (30, 5)]])

    def test_scale_leaves_outliers_out(self):
        self.assertEqual(charts.robust_limit([1, 2, 3, 100]), 3)
        self.assertEqual(charts.robust_limit([]), 0.0)


# ---- the report as a browser shows it

# Measures a page in a frame: its width, and pairs of texts of a picture that overlap by more than a pixel.
FRAME = """<!DOCTYPE html><meta charset="utf-8">
<style>body{margin:0}iframe{border:0;width:WIDTHpx;height:30000px}</style>
<iframe srcdoc="PAGE"></iframe><script>onload=function(){
var page=document.querySelector("iframe").contentDocument,root=page.documentElement,found=[];
page.querySelectorAll("svg").forEach(function(picture){
  var outer=picture.getBoundingClientRect();
  var boxes=Array.from(picture.querySelectorAll("text")).map(function(t){var b=t.getBoundingClientRect();
    if(b.left<outer.left-2||b.right>outer.right+2)found.push("outside: "+t.textContent);
    return [b,t.textContent]});
  boxes.forEach(function(a,i){boxes.slice(i+1).forEach(function(b){
    var w=Math.min(a[0].right,b[0].right)-Math.max(a[0].left,b[0].left);
    var h=Math.min(a[0].bottom,b[0].bottom)-Math.max(a[0].top,b[0].top);
    if(w>1&&h>3)found.push(a[1]+" | "+b[1])})})});
var out=document.createElement("pre");out.id="measured";
out.textContent=JSON.stringify({scroll:root.scrollWidth,width:root.clientWidth,height:page.body.scrollHeight,
  pictures:page.querySelectorAll("svg").length,found:found});document.body.appendChild(out)}</script>"""


@unittest.skipUnless(CHROMIUM, "Chromium is absent (Debian: apt-get install chromium)")
class Browser(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        Report.setUpClass.__func__(cls)

    run_report = Report.__dict__["run_report"]

    def browse(self, *options):
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                   f"--user-data-dir={self.folder}/chromium", *options]
        return subprocess.run(command, capture_output=True, text=True, timeout=180)

    def test_widths_and_labels(self):
        for width in (360, 1280):
            path = os.path.join(self.folder, f"frame{width}.html")
            with open(path, "w", encoding="utf-8") as f:
                f.write(FRAME.replace("WIDTH", str(width)).replace("PAGE", html.escape(self.html)))
            dom = self.browse("--dump-dom", f"file://{path}").stdout
            measured = json.loads(html.unescape(re.search(r'<pre id="measured">(.*?)</pre>', dom, re.S)[1]))
            self.assertEqual(measured["width"], width)
            self.assertLessEqual(measured["scroll"], width, "the page scrolls sideways")
            self.assertGreater(measured["pictures"], 10)
            self.assertEqual(measured["found"], [], f"labels collide at {width} pixels")

    def corner(self, *options):
        """The colour of the first pixel of a screenshot."""
        path = os.path.join(self.folder, "shot.png")
        self.browse("--window-size=1280,900", f"--screenshot={path}", *options, f"file://{self.path}")
        with open(path, "rb") as f:
            data = f.read()
        chunks = re.search(rb"IHDR(.{13})", data, re.S)[1]
        self.assertEqual(chunks[8], 8)  # bits of a channel
        # Whatever filter the first row has, its first pixel has no neighbours and so is stored as it is.
        start = data.index(b"IDAT")
        size = struct.unpack(">I", data[start - 4:start])[0]
        return tuple(zlib.decompressobj().decompress(data[start + 4:start + 4 + size])[1:4])

    def test_light_and_dark(self):
        light, dark = svg.ROLES["paper"]
        self.assertEqual("#%02x%02x%02x" % self.corner("--blink-settings=preferredColorScheme=1"), light)
        self.assertEqual("#%02x%02x%02x" % self.corner("--blink-settings=preferredColorScheme=0"), dark)

    def test_prints(self):
        path = os.path.join(self.folder, "report.pdf")
        self.browse("--no-pdf-header-footer", f"--print-to-pdf={path}", f"file://{self.path}")
        with open(path, "rb") as f:
            data = f.read()
        self.assertTrue(data.startswith(b"%PDF"))
        pages = len(re.findall(rb"/Type\s*/Page\b", data))
        self.assertTrue(3 <= pages <= 12, f"{pages} pages")


# ---- running


class Counting(unittest.TextTestResult):
    """Prints a line for each test, as the other test programs do."""

    passed, bad = 0, 0

    def startTest(self, test):
        super().startTest(test)
        self.began = time.monotonic()

    def say(self, test, word):
        name = test.id().split(".test_")[-1]
        print(f"{name:<36} {word} {1000 * (time.monotonic() - self.began):6.0f} ms", flush=True)

    def addSuccess(self, test):
        super().addSuccess(test)
        self.passed += 1
        self.say(test, "passed ")

    def addFailure(self, test, error):
        super().addFailure(test, error)
        self.bad += 1
        self.say(test, "FAILED ")

    def addError(self, test, error):
        super().addError(test, error)
        self.bad += 1
        print(f"FAILED {getattr(test, 'id', lambda: test)()}", flush=True)

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        print(f"{test.id().split('.test_')[-1]:<36} left out: {reason}", flush=True)


def main():
    loader = unittest.TestLoader()
    if len(sys.argv) > 1:
        chosen = tuple("test_" + name.removeprefix("test_") for name in sys.argv[1:])
        loader.getTestCaseNames = lambda case: [
            name for name in unittest.TestLoader.getTestCaseNames(loader, case) if name.startswith(chosen)]
    suite = loader.loadTestsFromModule(sys.modules["__main__"])
    outcome = unittest.TextTestRunner(resultclass=Counting, stream=sys.stdout, verbosity=0).run(suite)
    print(f"{outcome.passed} passed, {outcome.bad} failed")
    sys.exit(1 if outcome.bad else 0)


if __name__ == "__main__":
    main()
