#!/usr/bin/env python3
"""Tests of scripts/export.py on logs made here, with the standard library alone.

usage: test_scripts_export.py [NAME...]    runs the tests whose names begin with a NAME, or all
"""

import contextlib
import csv
import io
import json
import os
import struct
import subprocess
import sys
import tempfile
import types
import unittest
import unittest.mock

import script_tests

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "scripts"))
import export

LOG = (
    '{"step": 0, "tokens": 0, "train_loss": null, "val_loss": 5.5, "lr": null, "grad_norm": null, "ms": null, '
    '"tok_s": null}\n'
    '{"step": 1, "tokens": 512, "train_loss": 5.25, "val_loss": null, "lr": 0.02, "grad_norm": 1.5, "ms": 500.0, '
    '"tok_s": 1024, "mfu": 0.375, "extra": {"gpu_w": 300, "groups": {"W_Q": {"update_rms": 0.125}, '
    '"QK": {"composed_max": null}}}}\n'
    '{"step": 3, "tokens": 1536, "train_loss": NaN, "val_loss": -Infinity, "lr": 1e39, "grad_norm": true, "ms": 250.0, '
    '"tok_s": "fast", "note": 7}\n')
# Of these events the package tensorboard 2.21 writes these bytes: the version at 1700000000.5; step 300 at
# 1700000001.5 with train/loss 3.5 and lr 0.25; step 301 at 1700000002.5 with -0.5 under a tag of 200 x.
EVENTS = bytes.fromhex(
    "1800000000000000a37f4b220900002040fc54d9411a0d627261696e2e4576656e743a322b3531102c00000000000000f4aecc45090000"
    "6040fc54d94110ac022a1e0a110a0a747261696e2f6c6f737315000060400a090a026c72150000803eca4545a1e2000000000000007a65"
    "9982090000a040fc54d94110ad022ad3010ad0010ac801" + 200 * "78" + "15000000bfda8e221d")


def read_events(data):
    """[(wall_time, step, {tag: value} or the version)] of an event file, whose checksums are checked. An own
    reader of the few fields that there are."""
    events, at = [], 0
    while at < len(data):
        length, crc = struct.unpack_from("<QI", data, at)
        body = data[at + 12:at + 12 + length]
        assert crc == export.masked(export.crc32c(data[at:at + 8])) and len(body) == length
        assert struct.unpack_from("<I", data, at + 12 + length)[0] == export.masked(export.crc32c(body))
        at += 16 + length
        time = step = what = None
        for number, value in fields(body):
            if number == 1:
                time = struct.unpack("<d", value)[0]
            elif number == 2:
                step = value
            elif number == 3:
                what = value.decode()
            else:
                pairs = [dict(fields(scalar)) for _, scalar in fields(value)]
                what = {pair[1].decode(): struct.unpack("<f", pair[2])[0] for pair in pairs}
        events.append((time, step, what))
    return events


def fields(data):
    """(number, value) of the fields of a message of protocol buffers."""
    def varint(at):
        value = shift = 0
        while True:
            value |= (data[at] & 0x7F) << shift
            shift, at = shift + 7, at + 1
            if data[at - 1] < 0x80:
                return value, at

    at = 0
    while at < len(data):
        key, at = varint(at)
        if key & 7 == 0:
            value, at = varint(at)
        else:
            size, at = varint(at) if key & 7 == 2 else ({1: 8, 5: 4}[key & 7], at)
            value, at = data[at:at + size], at + size
        yield key >> 3, value


class FakeWandb(types.ModuleType):
    """The functions of the package wandb that export.py calls, which record what they are told."""

    def __init__(self):
        super().__init__("wandb")
        self.runs = []
        self.Settings = lambda **settings: settings

    def init(self, **arguments):
        folder = os.path.join(arguments["dir"], "wandb", f"offline-run-2026_{len(self.runs)}-{arguments['id']}")
        os.makedirs(os.path.join(folder, "files"))
        rows = []
        self.runs.append((arguments, rows))
        return types.SimpleNamespace(dir=os.path.join(folder, "files"), finish=lambda: rows.append("finish"),
                                     log=lambda row, step: rows.append((step, row)))


class Export(unittest.TestCase):
    def setUp(self):
        self.place = tempfile.TemporaryDirectory()
        self.folder = self.place.name

    def tearDown(self):
        self.place.cleanup()

    def path(self, *parts):
        return os.path.join(self.folder, *parts)

    def write_run(self, name="a", log=LOG, record=True, logged=2000.0, recorded=1000.0):
        """A run's folder; `logged` and `recorded` are the times of its files."""
        os.makedirs(self.path(name), exist_ok=True)
        with open(self.path(name, "log.jsonl"), "w", encoding="utf-8") as f:
            f.write(log)
        os.utime(self.path(name, "log.jsonl"), (logged, logged))
        if record:
            with open(self.path(name, "run.json"), "w", encoding="utf-8") as f:
                json.dump({"version": "1", "flags": {"lr": 0.02, "seed": 7}, "asked": {"lr": "0.02"}}, f)
            os.utime(self.path(name, "run.json"), (recorded, recorded))
        return self.path(name)

    def export(self, *arguments):
        """What export.py writes to standard output. Its errors are raised."""
        out, self.warnings = io.StringIO(), io.StringIO()
        with unittest.mock.patch.object(sys, "argv", ["export.py", *arguments]), contextlib.redirect_stdout(out), \
                contextlib.redirect_stderr(self.warnings):
            export.main()
        return out.getvalue()

    def refused(self, message, *arguments):
        with self.assertRaises(SystemExit) as end:
            self.export(*arguments)
        self.assertRegex(str(end.exception.code), f"^error: .*{message}")

    def events(self, name="a"):
        with open(self.path("tb", name, export.EVENTS), "rb") as f:
            return f.read()

    # CSV

    def test_csv(self):
        self.write_run("b", LOG.splitlines(True)[1])
        rows = list(csv.DictReader(io.StringIO(self.export(self.write_run(), self.path("b"), "--csv", "-"))))
        self.assertEqual(",".join(rows[0]), "run,step,tokens,train_loss,val_loss,lr,grad_norm,ms,tok_s,mfu,note,"
                                            "extra.gpu_w,extra.groups.W_Q.update_rms,extra.groups.QK.composed_max")
        self.assertEqual([",".join(row.values()) for row in rows],
                         ["a,0,0,,5.5,,,,,,,,,",
                          "a,1,512,5.25,,0.02,1.5,500.0,1024,0.375,,300,0.125,",
                          "a,3,1536,,,,,250.0,,,7,,,",
                          "b,1,512,5.25,,0.02,1.5,500.0,1024,0.375,,300,0.125,"])

    def test_csv_is_replaced(self):
        run, path = self.write_run(), self.path("o.csv")
        wanted = self.export(run, "--csv", "-")
        with open(path, "w", encoding="utf-8") as f:
            f.write("x" * 10000)
        for _ in range(2):
            self.assertEqual(self.export(run, "--csv", path), "")
            with open(path, encoding="utf-8") as f:
                self.assertEqual(f.read(), wanted)
        self.assertEqual(sorted(os.listdir(self.folder)), ["a", "o.csv"])  # no temporary file
        self.refused("there is no folder", run, "--csv", self.path("none", "o.csv"))

    # Event files

    def test_checksum(self):
        """The vectors of RFC 3720, appendix B.4, and the check value of CRC-32C."""
        for data, crc in ((bytes(32), 0x8A9136AA), (b"\xff" * 32, 0x62A8AB43), (bytes(range(32)), 0x46DD794E),
                          (bytes(range(31, -1, -1)), 0x113FDB5C), (b"123456789", 0xE3069283), (b"", 0)):
            self.assertEqual(export.crc32c(data), crc)
        self.assertEqual(export.masked(0), 0xA282EAD8)
        self.assertEqual(export.masked(0x8000), (0xA282EAD8 + 1) & 0xFFFFFFFF)  # rotated by 15 bits

    def test_bytes_of_events(self):
        run = {"times": [1700000000.5, 1700000001.5, 1700000002.5],
               "rows": [{"step": 0}, {"step": 300, "train_loss": 3.5, "lr": 0.25}, {"step": 301, "x" * 200: -0.5}]}
        data = export.event_file(run)
        first = len(export.event(0.0, export.field(3, export.BYTES, b"brain.Event:2")))
        empty = len(export.event(0.0, export.field(2, export.VARINT, b"\0"), export.field(5, export.BYTES, b"")))
        self.assertEqual(data[:first] + data[first + empty:], EVENTS)

    def test_tensorboard(self):
        self.export(self.write_run(), "--tensorboard", self.path("tb"))
        self.assertEqual(read_events(self.events()), [
            (1000.0, None, "brain.Event:2"),
            (1000.0, 0, {"tokens": 0, "val/loss": 5.5}),
            (1000.5, 1, {"tokens": 512, "train/loss": 5.25, "lr": struct.unpack("<f", struct.pack("<f", 0.02))[0],
                         "grad_norm": 1.5, "ms": 500, "tok_s": 1024, "mfu": 0.375, "extra/gpu_w": 300,
                         "extra/groups/W_Q/update_rms": 0.125}),
            (1001.0, 3, {"tokens": 1536, "ms": 250, "note": 7})])  # two steps of 250 ms
        self.assertIn("tfevents", export.EVENTS)

    def test_times(self):
        """From run.json; where that is newer than the run's start, or is not there, back from the log."""
        for record, recorded, start in ((True, 1000.0, 1000.0), (True, 1999.5, 1999.0), (False, 0.0, 1999.0)):
            name = f"{record}{recorded}"
            run = export.read_run(self.write_run(name, record=record, recorded=recorded))
            self.assertEqual(run["times"], [start, start + 0.5, start + 1.0])

    def test_growing_log(self):
        """A later export continues the file, also after a kill within a record; any other file is replaced."""
        lines = LOG.splitlines(True)
        place = self.path("tb", "a", export.EVENTS)
        self.export(self.write_run(log=lines[0] + lines[1] + lines[2][:30]), "--tensorboard", self.path("tb"))
        begun, inode = self.events(), os.stat(place).st_ino
        self.assertEqual(len(read_events(begun)), 3)
        self.export(self.write_run(logged=2001.0), "--tensorboard", self.path("tb"))
        whole = self.events()
        self.assertTrue(whole.startswith(begun))
        self.assertEqual((len(read_events(whole)), os.stat(place).st_ino), (4, inode))
        for damage in (whole[:-5], b"", b"other", whole + b"more", whole[:40] + b"?" + whole[41:]):
            with open(place, "wb") as f:
                f.write(damage)
            self.export(self.path("a"), "--tensorboard", self.path("tb"))
            self.assertEqual(self.events(), whole)
        self.assertEqual(os.listdir(self.path("tb", "a")), [export.EVENTS])

    # Weights & Biases

    def test_wandb(self):
        fake, run = FakeWandb(), self.write_run("my run-s1")
        other = self.path("w", "wandb", "offline-run-2026_0-other-s1")
        os.makedirs(other)
        with unittest.mock.patch.dict(sys.modules, wandb=fake):
            for _ in range(2):
                self.export(run, "--wandb", self.path("w"), "--project", "mine")
        for arguments, rows in fake.runs:
            self.assertEqual({key: arguments[key] for key in ("mode", "dir", "project", "id", "name", "config")}, {
                "mode": "offline", "dir": self.path("w"), "project": "mine", "id": "my.20run-s1", "name": "my run-s1",
                "config": {"lr": 0.02, "seed": 7, "version": "1"}})
            self.assertEqual([row if row == "finish" else row[0] for row in rows], [0, 1, 3, "finish"])
            self.assertEqual(rows[2][1], {"tokens": 1536, "ms": 250, "note": 7, "_timestamp": 1001.0})
        # The second export took the place of the first one.
        self.assertEqual(sorted(os.listdir(self.path("w", "wandb"))),
                         ["offline-run-2026_0-other-s1", "offline-run-2026_1-my.20run-s1"])

    def test_wandb_is_missing(self):
        with unittest.mock.patch.dict(sys.modules, wandb=None):
            self.refused("--wandb needs the wandb package, .*pip install wandb", self.write_run(), "--wandb", self.folder)

    # What is refused

    def test_refused(self):
        run = self.write_run()
        self.refused("give --csv FILE", run)
        self.refused("there is no run in .*; runs in .*: a$", self.path("b"), "--csv", "-")
        self.refused("has no line in its log yet", self.write_run("empty", ""), "--csv", "-")
        lines = LOG.splitlines(True)
        self.refused("step 1 follows step 1: the log is damaged", self.write_run("twice", lines[1] * 2), "--csv", "-")
        self.refused("two runs are named a", run, self.write_run(os.path.join("deep", "a")), "--csv", "-")
        with open(self.path("a", "run.json"), "w", encoding="utf-8") as f:
            f.write("{")
        self.refused("run.json is not the record of a run", run, "--csv", "-")

    def test_other_lines(self):
        strange = [LOG.splitlines()[0].replace('"step": 0', f'"step": {step}') for step in ("-1", "1.5", "1" + "0" * 30)]
        text = self.export(self.write_run(log="\n".join(["[1]", *strange, LOG])), "--csv", "-")
        self.assertEqual(len(text.splitlines()), 4)
        self.assertEqual(self.warnings.getvalue().count("is not a log line"), 4)

    def test_program(self):
        done = subprocess.run([os.path.join(ROOT, "scripts", "export.py"), self.write_run(), "--csv", "o.csv"],
                              cwd=self.folder, capture_output=True, text=True)
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, "", ""))
        self.assertTrue(os.path.exists(self.path("o.csv")))


if __name__ == "__main__":
    sys.exit(script_tests.main(Export))
