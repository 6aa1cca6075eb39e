#!/usr/bin/env python3
"""Tests of scripts/significance.py, of the reference curves of scripts/plot.py, and of scripts/history.py, on
runs and tables made here.

usage: test_scripts_benchmark.py [NAME...]    runs the tests whose names begin with a NAME, or all
"""

import contextlib
import io
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import unittest
import unittest.mock

import script_tests

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "scripts"))
import history
import significance

try:
    import matplotlib.pyplot as plt

    import plot
except ImportError as problem:
    plot = None
    print(f"left out, reference curves in pictures: they are drawn with matplotlib, and {problem}")

FLAGS = {"run": "a", "seed": 1, "steps": 200, "lr": 0.02, "qk": "cm", "threads": 2, "val-tokens": 4096}
# Three seeds at steps 100 and 200. Their means there are 3.2910 and 3.2770.
LOSSES = {1: {100: 3.2910, 200: 3.2760}, 2: {100: 3.2900, 200: 3.2770}, 3: {100: 3.2920, 200: 3.2780}}


def write_run(folder, name, losses, seed=1, record=True, flags=None, **entries):
    """A run's folder as train_gpt writes it; returns its path. `losses` are {step: validation loss}."""
    path = os.path.join(folder, name)
    os.makedirs(path)
    if record:
        with open(os.path.join(path, "run.json"), "w", encoding="utf-8") as f:
            json.dump({"version": "1", "train_checksum": "t", "val_checksum": "v", "changes": [],
                       "flags": {**FLAGS, "run": name, "seed": seed, **(flags or {})}, **entries}, f)
    with open(os.path.join(path, "log.jsonl"), "w", encoding="utf-8") as f:
        for step in range(0, max(losses) + 1, 50):
            line = {"step": step, "tokens": 512 * step, "train_loss": 4.0 if step else None,
                    "val_loss": losses.get(step), "lr": 0.02, "grad_norm": 1.0, "ms": 10.0, "tok_s": 51200}
            f.write(json.dumps(line) + "\n")
    return path


def long_text(losses, seeds=True):
    """A table of runs in the form of the published curves."""
    rows = [f"r{seed},{seed if seeds else ''},{step},{loss:.5f},1000,10.0"
            for seed, of_seed in losses.items() for step, loss in of_seed.items()]
    return "\n".join(["run,seed,step,val_loss,train_time_ms,step_avg_ms"] + rows) + "\n"


MEANS = ("step,n,val_loss_mean,val_loss_std,val_loss_min,val_loss_max,train_time_ms_mean\n"
         "100,3,3.29100,0.00100,3.29000,3.29200,1000\n"
         "200,3,3.27700,0.00100,3.27600,3.27800,2000\n")
WIDE = "seed,val_loss@100,val_loss@200\n1,3.2910,3.2760\n2,3.2900,3.2770\n3,3.2920,3.2780\n"


class Case(unittest.TestCase):
    def setUp(self):
        self.place = tempfile.TemporaryDirectory()
        self.folder = self.place.name

    def tearDown(self):
        self.place.cleanup()

    def write(self, name, text):
        path = os.path.join(self.folder, name)
        with open(path, "wb") as f:
            f.write(text if isinstance(text, bytes) else text.encode())
        return path

    def run_main(self, module, *arguments):
        """(what `MODULE ARGUMENTS` ends with: None or its message, its output)."""
        out, error = io.StringIO(), io.StringIO()
        with unittest.mock.patch.object(sys, "argv", ["program", *arguments]), contextlib.redirect_stdout(out), \
                contextlib.redirect_stderr(error):
            try:
                module.main()
            except SystemExit as end:
                return f"{end.code}{error.getvalue() if isinstance(end.code, int) else ''}", out.getvalue()
        return None, out.getvalue()


class Significance(Case):
    def found(self, *arguments):
        end, out = self.run_main(significance, *arguments, "--json")
        self.assertIsNone(end)
        return json.loads(out)

    def refused(self, message, *arguments):
        self.assertRegex(str(self.run_main(significance, *arguments)[0]), f"(?s)^error: .*{message}")

    def three(self):
        return [write_run(self.folder, f"cm-s{seed}", losses, seed) for seed, losses in LOSSES.items()]

    # The rules

    def test_means_that_the_benchmark_names(self):
        """Its rules give the mean that n runs need: n = 1 3.276, 4 3.278, 10 3.27874, 16 3.279, 20 3.27911,
        rounded to five digits. A mean that meets the rule exactly holds."""
        for n, mean in ((1, 3.276), (4, 3.278), (10, 3.27874), (16, 3.279), (20, 3.27911)):
            rule = self.found(f"{mean},{n},3250")["single"]
            self.assertAlmostEqual(rule["needed_mean"], mean, delta=5.1e-6)
            self.assertEqual(rule["holds"], n in (1, 4, 16), n)  # the others are rounded up
            for step, wanted in ((-1e-5, True), (1e-5, False)):
                self.assertEqual(self.found(f"{mean + step:.5f},{n},3250")["single"]["holds"], wanted, (n, step))

    def test_published_records(self):
        """(mean, runs, whether the benchmark's list calls the record significant)."""
        for mean, n, holds in ((3.2777, 1, False), (3.2790, 1, False), (3.2767, 1, False), (3.2741, 5, True),
                               (3.2782, 10, True), (3.2788, 20, True), (3.2752, 1, True), (3.2790, 20, True),
                               (3.2790, 30, True), (3.2767, 2, True), (3.2787, 10, True), (3.2783, 8, True)):
            self.assertEqual(self.found(f"{mean},{n},100")["single"]["holds"], holds, (mean, n))

    def test_pairwise_examples(self):
        # Record 41, 3.27901 at 2875 of 20 runs, and 40, 3.27881 at 2890 of 16: -.0002 + .0045 15/100 = .000475,
        # over sqrt(1/16 + 1/20) = .33541 is .001416. The other way round the sign turns.
        rule = self.found("3.27901,20,2875", "--against", "3.27881,16,2890")["pairwise"]
        self.assertAlmostEqual(rule["score"], 0.0014162, delta=1e-7)
        self.assertAlmostEqual(rule["loss_difference"], -0.0002, delta=1e-12)
        self.assertEqual((rule["step_difference"], rule["holds"]), (15, False))
        rule = self.found("3.27881,16,2890", "--against", "3.27901,20,2875")["pairwise"]
        self.assertAlmostEqual(rule["score"], -0.0014162, delta=1e-7)
        # At one step: two runs each, .004 / sqrt(1/2 + 1/2).
        rule = self.found("3.276,2,100", "--against", "3.28,2,100")["pairwise"]
        self.assertAlmostEqual(rule["score"], 0.004, delta=1e-12)
        self.assertEqual((rule["step_difference"], rule["holds"]), (0, True))
        self.assertFalse(self.found("3.27601,2,100", "--against", "3.28,2,100")["pairwise"]["holds"])

    def test_hand_computed(self):
        """(3.28 - 3.277) sqrt(3) = .0051962; the deviation is .001; t = 5.19615 of two degrees of freedom, whose
        tail is (1 - sqrt(27 / 29)) / 2 = .0175494; at the assumed deviation z = 3.99704."""
        found = self.found(*self.three())
        self.assertEqual((found["n"], found["step"]), (3, 200))
        self.assertAlmostEqual(found["mean"], 3.277, delta=1e-12)
        self.assertAlmostEqual(found["std"], 0.001, delta=1e-12)
        rule = found["single"]
        self.assertAlmostEqual(rule["score"], 0.0051962, delta=1e-7)
        self.assertAlmostEqual(rule["p_student"], 0.0175494, delta=1e-7)
        self.assertAlmostEqual(rule["p_assumed"], 0.5 * math.erfc(3.997042 / math.sqrt(2)), delta=1e-9)
        self.assertAlmostEqual(rule["needed_mean"], 3.28 - 0.004 / math.sqrt(3), delta=1e-12)
        early = self.found(*[os.path.join(self.folder, f"cm-s{s}") for s in (1, 2, 3)], "--step", "100")["single"]
        self.assertAlmostEqual(early["score"], -0.011 * math.sqrt(3), delta=1e-12)
        self.assertGreater(early["p_student"], 0.99)

    def test_flags_of_the_rules(self):
        paths = self.three()
        rule = self.found(*paths, "--target", "3.3", "--bound", "0.04", "--deviation", "0.002")["single"]
        self.assertAlmostEqual(rule["score"], 0.023 * math.sqrt(3), delta=1e-12)
        self.assertFalse(rule["holds"])
        self.assertEqual((rule["bound"], rule["assumed_std"]), (0.04, 0.002))
        rule = self.found("3.28,1,100", "--against", "3.28,1,200", "--slope", "0.01")["pairwise"]
        self.assertAlmostEqual(rule["score"], 0.01 / math.sqrt(2), delta=1e-12)
        self.assertIsNone(self.found(*paths, "--deviation", "0")["single"]["p_assumed"])

    # Which runs, which steps

    def test_forms_of_runs(self):
        """Folders, a pattern, a long table, a wide one, and means say the same."""
        self.three()
        for arguments in ([os.path.join(self.folder, "cm-s*")],
                          [self.write("long.csv", long_text(LOSSES))],
                          [self.write("seedless.csv", long_text(LOSSES, seeds=False))],
                          [self.write("wide.csv", WIDE)],
                          [self.write("mean.csv", MEANS)],
                          [self.write("blank.csv", MEANS + "\n\n")],
                          [self.write("marked.csv", b"\xef\xbb\xbf" + MEANS.replace("\n", "\r\n").encode())],
                          [os.path.join(self.folder, "cm-s1"), self.write("two.csv", long_text(
                              {s: LOSSES[s] for s in (2, 3)}))]):
            found = self.found(*arguments)
            self.assertEqual((found["n"], found["step"]), (3, 200), arguments)
            self.assertAlmostEqual(found["mean"], 3.277, delta=1e-12)
            self.assertAlmostEqual(found["std"], 0.001, delta=1e-12)
        self.assertEqual(self.found(*[os.path.join(self.folder, "cm-s1")] * 2)["n"], 1)
        self.assertEqual(self.found(write_run(self.folder, "cm[1]", LOSSES[1]))["n"], 1)  # a name, no pattern

    def test_column(self):
        path = self.write("ema.csv", "run,step,val_loss,val_ema_loss\na,100,3.30,3.27\n")
        self.assertEqual(self.found(path)["mean"], 3.30)
        self.assertEqual(self.found(path, "--column", "val_ema_loss")["mean"], 3.27)
        found = self.found(path, "--against", path, "--against-column", "val_ema_loss")
        self.assertAlmostEqual(found["pairwise"]["loss_difference"], -0.03, delta=1e-12)
        self.refused("has no losses val_x: its columns are run, step, val_loss, val_ema_loss", path, "--column", "val_x")

    def test_default_steps(self):
        """The last step that all runs have, of both sides; a side with one step has no choice."""
        paths = self.three()
        self.assertEqual(self.found(*paths[:2], write_run(self.folder, "short", {50: 3.5, 100: 3.3}, 4))["step"], 100)
        other = write_run(self.folder, "other", {100: 3.30, 150: 3.29}, 1)
        found = self.found(*paths, "--against", other)
        self.assertEqual((found["step"], found["against"]["step"]), (100, 100))
        self.assertAlmostEqual(found["pairwise"]["loss_difference"], 0.009, delta=1e-12)
        found = self.found(*paths, "--against", other, "--against-step", "150")
        self.assertEqual((found["step"], found["against"]["step"]), (200, 150))
        self.assertEqual(self.found("3.27,4,70", "--against", *paths, "--against-step", "200")["step"], 70)
        self.refused("have no validated step in common: give --step and --against-step", *paths, "--against",
                     write_run(self.folder, "apart", {50: 3.3, 150: 3.2}, 1))

    def test_first_step(self):
        # At 100 the mean of 1 and 2 is 3.2771, and (3.28 - 3.2771) sqrt(2) = .0041; step 150 lacks one run.
        losses = {50: 3.2778, 100: 3.2771, 150: 3.2, 200: 3.27}
        paths = [write_run(self.folder, "a", losses, 1),
                 write_run(self.folder, "b", {s: v for s, v in losses.items() if s != 150}, 2)]
        found = self.found(*paths, "--first")
        self.assertEqual((found["first_step"], found["step"]), (100, 100))
        found = self.found(*paths, "--first", "--target", "3")
        self.assertEqual((found["first_step"], found["step"]), (None, 200))
        out = self.run_main(significance, *paths, "--first", "--target", "3")[1]
        self.assertIn("holds at no validated step; at step 200:", out)
        self.refused("leave out --step", *paths, "--first", "--step", "50")

    def test_text(self):
        out = self.run_main(significance, *self.three(), "--against", "3.2800,16,200")[1]
        for line in ("cm-s1 ... cm-s3: 3 runs at step 200", "  cm-s2  3.27700  seed 2",
                     "  mean 3.27700, sample deviation 0.00100 (the rules assume 0.0013)",
                     "single rule: (3.28 - 3.27700) sqrt(3) = 0.00520 >= 0.004: holds, p = 3.2e-05 with the assumed "
                     "deviation, 0.018 by Student's t", "  needed of 3 runs: a mean of at most 3.277691",
                     "pairwise rule: (0.00300) / sqrt(1/3 + 1/16) = 0.00477 >= 0.004: holds, "
                     "p = 0.00012 with the assumed deviation"):
            self.assertIn(f"\n{line}\n", f"\n{out}")

    def test_notes(self):
        one = write_run(self.folder, "one", {100: 3.27}, 1)
        self.assertEqual([note[:7] for note in self.found(one)["notes"]], ["one run", "the sch"])
        two = write_run(self.folder, "two", {100: 3.27, 200: 3.26}, 2, record=False)
        notes = " ".join(self.found(one, two)["notes"])
        self.assertIn("do not end together: one at step 100, two at step 200", notes)
        self.assertIn("some runs have no run.json", notes)
        tables = [self.write(f"{seed}.csv", long_text({seed: LOSSES[seed]})) for seed in (1, 2)]
        self.assertIn("some runs have no run.json", self.found(*tables)["notes"][0])
        self.assertEqual(self.found(self.write("all.csv", long_text(LOSSES)))["notes"], [])
        self.assertEqual(self.found(*self.three())["notes"], [])

    # What is refused

    def test_missing_steps(self):
        paths = self.three()
        self.refused("cm-s1 has no validation loss at step 150; the nearest are 100 and 200", *paths, "--step", "150")
        self.refused("the nearest are 200$", *paths, "--step", "9999")
        self.refused("has no step 150; the nearest are 100 and 200", self.write("mean.csv", MEANS), "--step", "150")
        self.refused("the runs of a ... b have no validated step in common$", write_run(self.folder, "a", {50: 3.0}, 1),
                     write_run(self.folder, "b", {100: 3.0}, 2))
        self.refused("has no validation loss yet", write_run(self.folder, "none", {50: None}, 1))

    def test_losses_that_are_not_finite(self):
        for name, loss in (("nan", math.nan), ("inf", math.inf), ("text", "3.2"), ("true", True), ("large", 1e300)):
            self.refused("diverged, or the file is damaged", write_run(self.folder, name, {50: 3.0, 100: loss}))
        for text in ("nan", "inf", "1e300"):
            self.refused(f"row 3: val_loss is {text}: that run diverged",
                         self.write("bad.csv", f"run,step,val_loss\na,50,3.0\na,100,{text}\n"))

    def test_mixed_settings(self):
        one = write_run(self.folder, "one", {100: 3.27}, 1)
        for name, entries, message in (
                ("flags", {"flags": {"lr": 0.03, "qk": "muon"}}, r"differ in --lr \(0.02 and 0.03\), --qk \(cm and muon\)"),
                ("absent", {"flags": {"new": 1}}, r"differ in --new \(None and 1\)"),
                ("data", {"train_checksum": "x"}, r"differ in train_checksum \(t and x\)"),
                ("changed", {"changes": [{"from_step": 50, "flag": "lr", "was": 0.1, "is": 0.02}]}, "differ in changes")):
            other = write_run(self.folder, name, {100: 3.28}, 2, **entries)
            self.refused(f"one and {name} are not runs of one setting, they {message}", one, other)
        self.assertEqual(self.found(one, os.path.join(self.folder, "flags"), "--ignore", "lr,--qk")["n"], 2)
        free = write_run(self.folder, "free", {100: 3.28}, 3, flags={"threads": 9, "print-every": 7},
                         changes=[{"from_step": 50, "flag": "threads", "was": 2, "is": 9}])
        self.assertEqual(self.found(one, free)["n"], 2)
        # The two sides may differ in all but the data of validation.
        self.found(one, "--against", os.path.join(self.folder, "flags"))
        self.refused("do not compare: other validation data", one, "--against",
                     write_run(self.folder, "val", {100: 3.2}, 1, val_checksum="w"))

    def test_ignored_flags_are_free(self):
        """docs/flags.md says of each flag whether a number depends on it."""
        with open(os.path.join(ROOT, "docs", "flags.md"), encoding="utf-8") as f:
            rows = re.findall(r"^\| `--([a-z0-9-]+)` \| [^|]* \| ([a-z]*) \|", f.read(), re.M)
        kinds = dict(rows)
        self.assertGreater(len(kinds), 90)
        # The flags of a preset are in run.json themselves; accuracies, and no losses, are those of --eval-data.
        for name in history.FREE - {"preset", "eval-data"}:
            self.assertIn(kinds[name], ("free", ""), name)
        for name in history.ROUNDING:
            self.assertEqual(kinds[name], "noted", name)

    def test_one_run_twice(self):
        one, other = (write_run(self.folder, name, {100: 3.27}, 7) for name in ("one", "other"))
        self.refused("one and other both have seed 7", one, other)
        path = self.write("long.csv", long_text({7: {100: 3.3}}))
        self.refused("one and r7 both have seed 7", one, path)
        seedless = [self.write(f"{name}.csv", long_text({7: {100: 3.3}}, seeds=False)) for name in "ab"]
        self.refused("the run r7 is there twice", *seedless)
        self.assertEqual(self.found(one, "--against", other)["pairwise"]["score"], 0)

    def test_damaged_tables(self):
        for name, text, message in (
                ("empty", "", "is empty"),
                ("head", "run,seed,step,val_loss\n", "has no rows"),
                ("columns", "a,b\n1,2\n", "its columns are a, b; they must be run, step, val_loss, or"),
                ("short", "run,step,val_loss\na,100\n", "row 2: 2 fields instead of 3"),
                ("step", "run,step,val_loss\na,1.5,3\n", "row 2: step is '1.5', not a whole number"),
                ("loss", "run,step,val_loss\na,100,x\n", "row 2: val_loss is 'x', not a number"),
                ("twice", "run,step,val_loss\na,100,3\na,100,3\n", "row 3: the run has step 100 twice"),
                ("seeds", "run,seed,step,val_loss\na,1,100,3\na,2,200,3\n", "row 3: the run a has two seeds"),
                ("count", MEANS.replace("100,3,", "100,0,"), "row 2: n is 0"),
                ("blank", MEANS.replace("0.00100", ""), "row 2: val_loss_std is '', not a number"),
                ("wide", WIDE.replace("3.2770", "-"), "row 3: val_loss@200 is '-', not a number"),
                ("bytes", b"run,step,val_loss\na,100,\xff\n", "is not a CSV file"),
                ("zero", b"run,step,val_loss\0\n", "is not a CSV file|has no losses")):
            self.refused(message, self.write(f"{name}.csv", text))
        self.refused("means, which cannot be pooled", self.write("mean.csv", MEANS), self.write("wide.csv", WIDE))

    def test_damaged_folders(self):
        path = write_run(self.folder, "run", {100: 3.27})
        for text in ("", "[]", '{"flags": 3}', "{"):
            self.write(os.path.join("run", "run.json"), text)
            self.refused("run.json is not the record of a run", path)
        self.refused("there is no run in .*; runs in .*: run", os.path.join(self.folder, "nun"))
        self.refused("no run matches", os.path.join(self.folder, "nun*"))
        self.refused("number of runs is 0", "3.28,0,100")
        self.refused("belong to --against", "3.28,1,100", "--against-step", "3")

    def test_program(self):
        done = subprocess.run([os.path.join(ROOT, "scripts", "significance.py"), "3.279,16,2890"], cwd=self.folder,
                              capture_output=True, text=True)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertIn("single rule: (3.28 - 3.27900) sqrt(16) = 0.00400 >= 0.004: holds", done.stdout)


@unittest.skipIf(plot is None, "matplotlib is missing")
class Reference(Case):
    def setUp(self):
        super().setUp()
        self.curves = os.path.join(self.folder, "curves")
        os.makedirs(self.curves)

    def tearDown(self):
        plt.close("all")
        super().tearDown()

    def add(self, name, text):
        return self.write(os.path.join("curves", name), text)

    def labels(self, *only):
        return [plot.reference_label(path) for path in plot.chosen_references([self.curves], list(only))]

    def draw(self, paths, last=200):
        """The figure of a run that was validated every 50 steps up to `last`, with references."""
        run = write_run(self.folder, f"own{last}", {s: 3.2 + 40 / (s + 20) for s in range(0, last + 1, 50)})
        return plot.draw(plot.group_runs([plot.read_run(run)], None),
                         references=[plot.read_reference(path) for path in paths])

    def test_which_files(self):
        for name in ("r12_muon_n8.csv", "r12_muon_n8__mean.csv", "r36_tuned_n3__mean.csv", "extra_r20_other.csv"):
            self.add(name, MEANS if "mean" in name else long_text(LOSSES))
        self.add("r12short_muon.csv", long_text(LOSSES))
        self.add("history.csv", "num,steps\n1,3600\n")  # has no losses
        self.add("notes.txt", "none")
        self.assertEqual(self.labels(), ["#12 muon", "#12short muon", "#20 other", "#36 tuned"])
        self.assertEqual(self.labels("r20_other", "r12"), ["#12 muon", "#20 other"])
        files = plot.chosen_references([self.curves], ["r12"])
        self.assertEqual([os.path.basename(path) for path in files], ["r12_muon_n8__mean.csv"])
        with self.assertRaisesRegex(ValueError, "no reference r1; there are r12_muon_n8, r12short_muon, r20_other, r36"):
            self.labels("r1")
        self.assertEqual(plot.reference_label("own_curve.csv"), "own curve")
        self.assertEqual(plot.reference_label("x/r006_a__mean.csv"), "#6 a")

    def test_values(self):
        """Means, a table of the runs that they are of, and one with deviations."""
        low_high = plot.read_reference(self.add("a__mean.csv", MEANS.replace("\n100", "\n0,3,9,0,9,9,0\n100")))
        of_runs = plot.read_reference(self.add("b.csv", long_text(LOSSES)))
        for reference in (low_high, of_runs):
            self.assertEqual(list(reference["steps"]), [100, 200])
            for key, values in (("mean", (3.291, 3.277)), ("low", (3.290, 3.276)), ("high", (3.292, 3.278))):
                for value, wanted in zip(reference[key], values):
                    self.assertAlmostEqual(value, wanted, delta=1e-9)
            self.assertEqual(reference["text"], "3.2770 ± 0.0010, 3 runs, step 200")
            self.assertEqual(reference["band"], "lowest to highest run")
        std = plot.read_reference(self.add("c.csv", "step,n,val_loss_mean,val_loss_std\n0,4,9,0\n100,4,3.3,0.01\n"))
        self.assertEqual((list(std["steps"]), std["band"]), ([100], "standard deviation"))
        self.assertAlmostEqual(std["low"][0], 3.29, delta=1e-9)
        self.assertAlmostEqual(std["high"][0], 3.31, delta=1e-9)
        one = plot.read_reference(self.add("d.csv", "run,step,val_loss\na,0,9\na,100,3.3\n"))
        self.assertEqual((one["band"], one["text"]), (None, "3.3000, 1 run, step 100"))

    def test_panels(self):
        """Over steps alone, thin, grey, without markers, within the limits of the run's own steps."""
        means = self.add("r36_tuned__mean.csv", MEANS.replace("200,3", "900,3"))
        one = self.add("r01_muon.csv", "run,step,val_loss\na,0,9\na,100,3.30\na,175,2.9\na,400,1.0\n")
        plain, figure = self.draw([], 250), self.draw([means, one])
        panel, time = figure.axes
        lines = [line for line in panel.lines if line.get_color() in plot.style.GREYS]
        self.assertEqual([list(line.get_xdata()) for line in lines], [[100, 900], [100, 175, 400]])
        own = [line for line in panel.lines if line not in lines and len(line.get_xdata())]
        for line in lines:
            self.assertEqual(line.get_marker(), "None")
            self.assertTrue(line.is_dashed())
            self.assertLess(line.get_linewidth(), max(o.get_linewidth() for o in own))
        self.assertEqual(len({str(line._unscaled_dash_pattern) for line in lines}), 2)
        self.assertFalse([line for line in time.lines if line.get_color() in plot.style.GREYS])
        self.assertAlmostEqual(panel.get_xlim()[1], 200 * 1.02, delta=1)  # the run's, not 900
        self.assertLess(panel.get_ylim()[0], 2.9)  # the reference's up to step 200 is in the picture,
        self.assertGreater(panel.get_ylim()[0], 1.0)  # but not what comes later
        self.assertEqual(len(panel.collections), 1)  # the band of the means
        (legend,) = figure.legends
        self.assertEqual([text.get_text() for text in legend.get_texts()],
                         ["#36 tuned   3.2770 ± 0.0010, 3 runs, step 900", "#1 muon   1.0000, 1 run, step 400"])
        notes = "".join(text.get_text() for text in figure.texts)
        self.assertIn("Thin grey lines: reference curves. Their bands: lowest to highest run.", notes)
        self.assertFalse(plain.legends)

    def test_behind_the_end(self):
        """A run that ends before the first step of a reference."""
        path = self.add("r36_tuned__mean.csv", MEANS)
        with contextlib.redirect_stderr(io.StringIO()) as said:
            figure = self.draw([path], 50)
        self.assertIn("#36 tuned begins at step 100, and the runs end at 50: left out", said.getvalue())
        self.assertFalse(figure.legends)

    def test_command_line(self):
        self.add("r36_tuned__mean.csv", MEANS)
        self.add("r12_muon.csv", long_text(LOSSES))
        run = write_run(self.folder, "own", {50: 3.5, 100: 3.3, 200: 3.28})
        picture = os.path.join(self.folder, "p.png")
        with unittest.mock.patch.object(plot, "draw", wraps=plot.draw) as drawn, \
                unittest.mock.patch.object(plot, "save"):
            end, _ = self.run_main(plot, run, "--reference", self.curves, "--reference-only", "r36", "-o", picture)
        self.assertIsNone(end)
        (reference,) = drawn.call_args.kwargs["references"]
        self.assertEqual(reference["label"], "#36 tuned")
        for text, message in (
                ("run,step,val_loss\na,100,nan\n", "row 2: val_loss is nan"),
                ("run,step,val_loss\na,0,9\n", "has no step after 0"),
                ("a,b\n1,2\n", "has no losses val_loss: its columns are a, b"),
                ("step,n,val_loss_mean\n100,3\n", "row 2: 2 fields instead of 3")):
            self.assertRegex(self.run_main(plot, run, "--reference", self.add("bad.csv", text))[0], f"^error: .*{message}")
            os.unlink(os.path.join(self.curves, "bad.csv"))
        empty = os.path.join(self.folder, "empty")
        os.makedirs(empty)
        for arguments, message in (
                ([run, "--reference", empty], "has no CSV file with losses"),
                ([run, "--reference", os.path.join(self.folder, "none")], "No such file"),
                ([run, "--reference", self.curves, "--reference-only", "r3"], "no reference r3; there are r12_muon, r36"),
                ([run, "--reference-only", "r3"], "belongs to --reference"),
                (["--reference", self.curves, run], "give run folders before --reference"),
                (["--from-csv", "x", "--rates", "--reference", self.curves], "leave out --reference")):
            self.assertRegex(self.run_main(plot, *arguments)[0], f"^error: .*{message}")


if __name__ == "__main__":
    sys.exit(script_tests.main(*Case.__subclasses__()))
