#!/usr/bin/env python3
"""Tests of scripts/plot.py and scripts/style.py on runs and results made here.

usage: test_scripts_plot.py [NAME...]    runs the tests whose names begin with a NAME, or all
"""

import contextlib
import io
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import unittest
import unittest.mock

import script_tests

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "scripts"))
import results
import style

try:
    import matplotlib.pyplot as plt
    import numpy as np

    import plot
except ImportError as problem:
    print(f"skipped: pictures are drawn with matplotlib, and {problem}")
    print("0 passed, 0 failed")
    sys.exit(0)

INITIAL = 5.5  # loss of the initial weights
STEPS = 200


def loss(step, shift=0.0):
    return 2.4 + shift + 3 * math.exp(-step / 20)


def write_run(
    folder, name, shift=0.0, seed=1, tokens=512, ms=None, validated=range(0, STEPS + 1, 25)
):
    """A run's folder as train_gpt writes it; returns its path."""
    path = os.path.join(folder, name)
    os.makedirs(path)
    with open(os.path.join(path, "run.json"), "w", encoding="utf-8") as f:
        json.dump({"flags": {"seed": seed}}, f)
    with open(os.path.join(path, "log.jsonl"), "w", encoding="utf-8") as f:
        for step in range(STEPS + 1):
            val = (INITIAL if step == 0 else loss(step, shift)) if step in validated else None
            line = {
                "step": step,
                "tokens": step * tokens,
                "train_loss": loss(step, shift) if step else None,
                "val_loss": val,
                "ms": (ms[step - 1] if ms else 10.0) if step else None,
            }
            f.write(json.dumps(line) + "\n")
    return path


def make_row(
    arm, rate, seed, stage="final", shift=0.0, diverged=0, setting="plain", cpu_share=0.98
):
    """A row of results with the curves of `loss`."""
    row = {name: "" for name in results.COLUMNS}
    row.update(
        grid="g",
        setting=setting,
        arm=arm,
        rate=rate,
        stage=stage,
        seed=seed,
        final_val="inf" if diverged else loss(STEPS, shift),
        best_val=loss(STEPS, shift),
        best_step=STEPS,
        train_tail=1,
        diverged=diverged,
        steps=STEPS,
        tokens=STEPS * 512,
        parameters=1,
        ms=10,
        seconds=2,
        cpu_seconds=2 * cpu_share,
        threads=1,
        flags=f"{setting} {arm} {rate} {seed} {stage}",
    )
    row["val_curve"] = f"0:{INITIAL} " + " ".join(
        f"{s}:{loss(s, shift)}" for s in range(25, STEPS + 1, 25)
    )
    row["train_curve"] = " ".join(f"{s}:{loss(s, shift)}" for s in range(25, STEPS + 1, 25))
    return row


def bold_lines(axis):
    """The lines of validation in a panel: those with markers and data."""
    return [
        line
        for line in axis.lines
        if line.get_marker() not in ("", "None", None) and len(line.get_xdata())
    ]


def axis_named(figure, word):
    return next(axis for axis in figure.axes if word in axis.get_xlabel() + axis.get_ylabel())


class Plot(unittest.TestCase):
    def setUp(self):
        self.place = tempfile.TemporaryDirectory()
        self.folder = self.place.name

    def tearDown(self):
        plt.close("all")
        self.place.cleanup()

    def groups(self, *paths):
        return plot.group_runs([plot.read_run(path) for path in paths], plot.SEED_ENDING)

    def write_rows(self, rows):
        path = os.path.join(self.folder, "results.csv")
        for row in rows:
            results.append(path, row)
        return path

    def run_plot(self, *arguments):
        """What `plot.py ARGUMENTS` ends with: None, or its message."""
        with unittest.mock.patch.object(
            sys, "argv", ["plot.py", *arguments]
        ), contextlib.redirect_stdout(io.StringIO()):
            try:
                plot.main()
            except SystemExit as end:
                return end.code

    # Odd logs

    def write_log(self, name, text):
        os.makedirs(os.path.join(self.folder, name))
        with open(os.path.join(self.folder, name, "log.jsonl"), "w", encoding="utf-8") as f:
            f.write(text)
        return os.path.join(self.folder, name)

    def test_values_that_are_no_numbers(self):
        text = (
            '[1]\n3\nnull\n"x"\n{"step": "0", "tokens": 0}\n' + "[" * 100000 + "\n"
            '{"step": 1, "tokens": 8, "train_loss": true, "val_loss": [3], "ms": {}}\n'
            '{"step": 2, "tokens": 16, "train_loss": 1e300, "val_loss": NaN, "ms": "a"}\n'
            '{"step": 3, "tokens": 24, "train_loss": 2, "val_loss": 1e999, "ms": 1e999}\n'
            '{"step": 4, "tokens": 32, "comment": "my evaluation", "train_loss": 1, "val_loss": 1}\n'
        )
        with contextlib.redirect_stderr(io.StringIO()) as said:
            run = plot.read_run(self.write_log("odd", text))
        self.assertEqual(run["train"], [(3, 24, 0.0, 2)])
        self.assertEqual((run["val"], run["final"], run["ms"]), ([], None, None))
        self.assertEqual(said.getvalue().count("is not a log line"), 7)

    def test_short_logs(self):
        line = '{"step": %d, "tokens": %d, "train_loss": %s, "val_loss": %s, "ms": null}\n'
        start = self.write_log("start", line % (0, 0, "null", "5.5"))
        one = self.write_log("one", line % (1, 8, "5", "null"))
        for paths in ([start], [one], [start, one], [one, write_run(self.folder, "whole")]):
            self.assertIsNone(self.run_plot(*paths, "-o", os.path.join(self.folder, "p.png")))
        for name, text in (("empty", ""), ("nan", line % (1, 8, "NaN", "NaN"))):
            self.assertIn("has no losses yet", self.run_plot(self.write_log(name, text)))

    def test_names_that_matplotlib_reads_otherwise(self):
        names = ["_first", r"a$\x$"]
        figure = plot.draw(self.groups(*(write_run(self.folder, name) for name in names)))
        figure.savefig(os.path.join(self.folder, "p.png"))
        legends = [axis.get_legend() for axis in figure.axes if axis.get_legend()]
        texts = [text.get_text() for legend in legends for text in legend.get_texts()]
        for name in names:
            self.assertTrue(any(name in text for text in texts), texts)

    def test_damaged_results(self):
        path = self.write_rows([make_row("muon", 0.01, 1)])
        with open(path, "ab") as f:
            f.write(b"\xff\0\n")
        self.assertIn("is not a file of results", self.run_plot("--from-csv", path))

    def test_rates_of_runs_without_one(self):
        rows = [make_row("muon", math.nan, seed, "tune") for seed in (1, 2)]
        self.assertIn("no run that chose", self.run_plot("--from-csv", self.write_rows(rows), "--rates"))
        path = self.write_rows([make_row("cm", rate, 3, "tune") for rate in (0.01, 0.02)])
        self.assertIsNone(self.run_plot("--from-csv", path, "--rates"))

    # Step 0

    def test_no_segment_from_step_0(self):
        figure = plot.draw(
            self.groups(write_run(self.folder, "muon"), write_run(self.folder, "cm", 0.1))
        )
        checked = 0
        for axis in figure.axes:
            for line in bold_lines(axis):
                self.assertGreater(min(line.get_xdata()), 0)
                self.assertLess(max(line.get_ydata()), INITIAL)
                checked += 1
        self.assertEqual(checked, 5)  # two arms over steps and time, one difference
        self.assertLess(figure.axes[0].get_ylim()[1], INITIAL)

    def test_a_run_validated_at_step_0_only_keeps_its_point(self):
        figure = plot.draw(self.groups(write_run(self.folder, "muon", validated=[0])))
        (line,) = bold_lines(figure.axes[0])
        self.assertEqual((list(line.get_xdata()), list(line.get_ydata())), ([0], [INITIAL]))

    # Panels

    def test_steps_and_tokens_share_a_panel(self):
        figure = plot.draw(self.groups(write_run(self.folder, "a"), write_run(self.folder, "b")))
        self.assertEqual(
            [axis.get_xlabel() for axis in figure.axes],
            ["steps (tokens below)"] * 2 + ["training time (seconds)"],
        )
        figure.canvas.draw()
        self.assertIn("100\n51.2k", [text.get_text() for text in figure.axes[0].get_xticklabels()])

    def test_other_batches_have_a_panel_of_tokens(self):
        figure = plot.draw(
            self.groups(write_run(self.folder, "a"), write_run(self.folder, "b", tokens=1024))
        )
        self.assertEqual(
            [axis.get_xlabel() for axis in figure.axes],
            ["steps", "tokens", "steps", "training time (seconds)"],
        )
        ends = {line.get_xdata()[-1] for line in bold_lines(figure.axes[1])}
        self.assertEqual(ends, {STEPS * 512, STEPS * 1024})

    def test_legend_moves_below_above_eight(self):
        paths = [write_run(self.folder, f"arm{i}", 0.01 * i) for i in range(9)]
        inside = plot.draw(self.groups(*paths[:8]))
        self.assertEqual(len(inside.legends), 0)
        self.assertEqual(len(inside.axes[0].get_legend().get_texts()), 8)
        below = plot.draw(self.groups(*paths))
        self.assertTrue(all(axis.get_legend() is None for axis in below.axes))
        (legend,) = below.legends
        self.assertEqual(len(legend.get_texts()), 9)
        below.canvas.draw()
        top = legend.get_window_extent().y1
        self.assertLessEqual(top, min(axis.get_tightbbox().y0 for axis in below.axes))
        self.assertGreaterEqual(legend.get_window_extent().y0, 0)
        rows = {round(text.get_window_extent().y0) for text in legend.get_texts()}
        self.assertLess(len(rows), 9)  # columns

    # Looks

    def test_colours_belong_to_names(self):
        names = ["muon", "cm", "mine", "other-rule"]
        paths = [write_run(self.folder, f"{name}-s1", 0.1 * i) for i, name in enumerate(names)]
        seen = {}
        for chosen in (paths, paths[::-1], paths[1:3], paths[2:], [paths[3], paths[0]]):
            figure = plot.draw(self.groups(*chosen))
            for line in bold_lines(figure.axes[0]):
                seen.setdefault(line.get_label(), set()).add(line.get_color())
        self.assertEqual(len(seen), 4)
        self.assertTrue(all(len(colours) == 1 for colours in seen.values()), seen)
        self.assertEqual(seen["cm-s1"], {style.COLOURS["cm"]})

    def test_coinciding_curves_differ(self):
        """Above a line, lines with gaps and with smaller markers."""
        figure = plot.draw(
            self.groups(*[write_run(self.folder, name) for name in ("muon", "cm", "x", "y")])
        )
        lines = sorted(bold_lines(figure.axes[0]), key=lambda line: line.get_zorder())
        looks = [
            (line.get_color(), line._unscaled_dash_pattern, line.get_marker()) for line in lines
        ]
        for kind in zip(*looks):
            self.assertEqual(len(set(map(str, kind))), 4, kind)
        sizes = [line.get_markersize() for line in lines]
        self.assertEqual(sizes, sorted(sizes, reverse=True))
        self.assertEqual(
            [line._unscaled_dash_pattern[1] is None for line in lines], [True, False, False, False]
        )

    def test_looks_do_not_depend_on_order(self):
        names = [f"rule{i}" for i in range(10)] + ["muon", "cm", "cm-iso"]
        wanted = style.looks(names)
        self.assertEqual(len({look[0] for look in wanted.values()}), len(names))
        for seed in range(5):
            random.Random(seed).shuffle(names)
            self.assertEqual(style.looks(names), wanted)
        # Another process has equal colours: the number of a name is its CRC-32, here the CRC's
        # check value.
        self.assertEqual(style.number_of("123456789"), 0xCBF43926)
        self.assertEqual(style.arm_of("plain.cm-iso.0.0141.s3"), "cm-iso")

    def test_colours_are_legible(self):
        """Contrast 3 to white and to a dark background (WCAG 2.1, success criterion 1.4.11)."""

        def luminance(colour):
            parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
            linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
            return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

        dark = luminance("#161616") + 0.05
        for colour in list(style.COLOURS.values()) + style.OTHERS:
            self.assertGreaterEqual(1.05 / (luminance(colour) + 0.05), 3, colour)
            self.assertGreaterEqual((luminance(colour) + 0.05) / dark, 3, colour)
        self.assertEqual(len(set(style.COLOURS.values())), len(style.COLOURS))
        self.assertEqual(style.COLOURS.keys(), style.ORDER.keys())

    # Times

    def test_loaded_machine(self):
        draw = random.Random(1)
        alone = [10 * draw.uniform(1, 1.05) for _ in range(STEPS)]
        # The start of the program, and one interruption.
        first = [400.0] + [100.0 if i == 100 else t for i, t in enumerate(alone)][1:]
        shared = [t * (2 if 60 <= i < 120 else 1) for i, t in enumerate(alone)]
        self.assertFalse(plot.loaded(alone))
        self.assertFalse(plot.loaded(first))
        self.assertTrue(plot.loaded(shared))
        figure = plot.draw(
            self.groups(
                write_run(self.folder, "muon", ms=alone), write_run(self.folder, "cm", ms=shared)
            )
        )
        legend = [text.get_text() for text in figure.axes[-1].get_legend().get_texts()]
        marked = {text.split()[0]: text.endswith("*") for text in legend}
        self.assertEqual(marked, {"muon": False, "cm": True})
        self.assertIn("loaded machine", "".join(text.get_text() for text in figure.texts))
        self.assertEqual(len(bold_lines(figure.axes[-1])), 2)
        quiet = plot.draw(self.groups(os.path.join(self.folder, "muon")))
        self.assertNotIn("loaded machine", "".join(text.get_text() for text in quiet.texts))

    # Differences

    def test_differences_are_paired_by_seed(self):
        """The losses of seeds differ by far more than the arms do: by 0.01, 0.02 and 0.03."""
        of_seed = {1: 0.0, 2: 0.7, 3: -0.4}
        paths = [
            write_run(self.folder, f"muon-s{s}", shift, seed=s) for s, shift in of_seed.items()
        ]
        paths += [
            write_run(self.folder, f"cm-s{s}", of_seed[s] + 0.01 * s, seed=s) for s in (3, 1, 2)
        ]
        groups = self.groups(*paths)
        steps, mean, half, pairs = plot.difference(groups["cm"], groups["muon"])
        self.assertEqual((pairs, list(steps)), (3, list(range(25, STEPS + 1, 25))))
        np.testing.assert_allclose(mean, 0.02, atol=1e-9)
        # Student's t of 2 degrees of freedom: 4.3027 times the standard error, 0.01 / sqrt 3.
        np.testing.assert_allclose(half, 4.3027 * 0.01 / math.sqrt(3), rtol=1e-4)
        axis = axis_named(plot.draw(groups), "minus that of muon")
        (line,) = bold_lines(axis)
        np.testing.assert_allclose(line.get_ydata(), mean)
        self.assertEqual(len(axis.collections), 1)  # the band

    def test_far_arm_does_not_hide_the_others(self):
        shifts = {"muon": 0, "cm": -0.005, "cm-iso": 0.004, "cm-match": 0.006, "adamw": 1.0}
        figure = plot.draw(self.groups(*[write_run(self.folder, n, s) for n, s in shifts.items()]))
        axis = axis_named(figure, "minus that of muon")
        self.assertLess(axis.get_ylim()[1], 0.02)
        self.assertIn("adamw: +1.0000", "".join(text.get_text() for text in axis.texts))

    # Results of a comparison

    def test_curves_of_results(self):
        rows = [make_row("muon", 0.01, s, shift=0.1 * s) for s in (101, 102, 103)]
        rows += [
            make_row("cm", 0.02, s, shift=0.1 * s - 0.05, cpu_share=0.5) for s in (101, 102, 103)
        ]
        rows += [make_row("cm", 0.04, 101, shift=-9)]  # another rate, with fewer seeds
        rows += [
            make_row("cm", 0.02, 1, "tune", shift=-9),
            make_row("cm", 0.02, 104, shift=9, diverged=1),
        ]
        groups = plot.groups_of_rows(plot.read_rows(self.write_rows(rows), ["plain"], []), [])
        self.assertEqual({arm: len(runs) for arm, runs in groups.items()}, {"muon": 3, "cm": 4})
        steps, mean, _, pairs = plot.difference(groups["cm"], groups["muon"])
        self.assertEqual((pairs, steps[0], steps[-1]), (3, 25, STEPS))
        np.testing.assert_allclose(mean, -0.05, atol=1e-9)
        self.assertIn("1 diverged", plot.final_text(groups["cm"])[1])
        figure = plot.draw(groups)
        self.assertEqual(figure.axes[0].get_xlabel(), "steps (tokens below)")
        self.assertTrue(plot.step_text(groups["cm"]).endswith("*"))
        self.assertFalse(plot.step_text(groups["muon"]).endswith("*"))

    def test_loss_against_rate(self):
        rows = []
        for rate, shift in ((0.01, 0.03), (0.02, 0.0), (0.04, 0.02)):
            rows += [make_row("cm", rate, s, "tune", shift + 0.001 * s) for s in (1, 2)]
        rows += [make_row("cm", 0.08, 1, "tune", diverged=1), make_row("cm", 0.08, 2, "tune", 0.02)]
        rows += [make_row("cm", 0.02, 101)]
        (axis,) = plot.draw_rates(plot.read_rows(self.write_rows(rows), [], [])).axes
        self.assertEqual(axis.get_xscale(), "log")
        lines = [line for line in axis.lines if len(line.get_xdata())]
        (means,) = [line for line in lines if line.get_linestyle() != "None"]
        self.assertEqual(list(means.get_xdata()), [0.01, 0.02, 0.04])
        np.testing.assert_allclose(
            means.get_ydata(), [loss(STEPS, s + 0.0015) for s in (0.03, 0.0, 0.02)]
        )
        (cross,) = [line for line in lines if line.get_marker() == "x"]
        self.assertEqual(list(cross.get_xdata()), [0.08])
        self.assertGreater(cross.get_ydata()[0], 0.9)  # of the height of the picture
        (ring,) = [line for line in lines if line.get_markersize() > 10]
        self.assertEqual(list(ring.get_xdata()), [0.02])
        points = [line for line in lines if line.get_markersize() < 4]
        self.assertEqual(
            sum(len(line.get_xdata()) for line in points), 7
        )  # all but the diverged run

    # Command line

    def test_command_line(self):
        csv = self.write_rows(
            [
                make_row(arm, 0.01, s, stage, setting=setting)
                for arm in ("muon", "cm")
                for s, stage in ((1, "tune"), (101, "final"))
                for setting in ("plain", "norm")
            ]
        )
        picture = os.path.join(self.folder, "p.png")
        runs = [write_run(self.folder, "muon-s1"), write_run(self.folder, "cm-s1")]
        for arguments in (
            runs,
            ["--from-csv", csv, "--setting", "plain"],
            ["--from-csv", csv, "--rates"],
        ):
            self.assertIsNone(self.run_plot(*arguments, "-o", picture))
            with open(picture, "rb") as f:
                self.assertEqual(f.read(8), b"\x89PNG\r\n\x1a\n")
            os.unlink(picture)
        for arguments, message in (
            (["--from-csv", csv], "choose one with --setting: plain, norm"),
            (["--from-csv", csv, "--setting", "plane"], "no setting plane"),
            (["--from-csv", csv, "--arms", "cn"], "no arm cn"),
            ([], "give run folders or --from-csv"),
            (["--rates", runs[0]], "belong to --from-csv"),
            ([os.path.join(self.folder, "none")], "runs in .*: cm-s1, muon-s1"),
        ):
            self.assertRegex(str(self.run_plot(*arguments)), f"^error: .*{message}")

    def test_program(self):
        """As users start it: the folder of the scripts is not the one they are in."""
        done = subprocess.run(
            [os.path.join(ROOT, "scripts", "plot.py"), write_run(self.folder, "muon-s1")],
            cwd=self.folder,
            capture_output=True,
            text=True,
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertTrue(os.path.exists(os.path.join(self.folder, "plot.png")))


if __name__ == "__main__":
    sys.exit(script_tests.main(Plot))
