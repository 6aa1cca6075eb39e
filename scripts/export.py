#!/usr/bin/env python3
"""Writes the logs of runs for other tools.

    scripts/export.py runs/a runs/b --csv losses.csv       a row a run and step; `-` is standard output
    scripts/export.py runs/a runs/b --tensorboard events   then: tensorboard --logdir events
    scripts/export.py runs/a --wandb offline               then: wandb sync offline/wandb/offline-run-*

All numbers of log.jsonl are exported: in a CSV file under their keys, those of `extra` as extra.gpu_w or
extra.groups.W_Q.update_rms; elsewhere as train/loss, val/loss, lr, ..., extra/groups/W_Q/update_rms. What the
log has not measured (null), and numbers that are not finite, are empty or left out.

A running run can be exported again and again: what an earlier export wrote of it is replaced as a whole, or
continued if the log has only grown.

The log has no clock. The time of a step is the start of the run plus the times of the steps up to it (`ms`),
without validation and checkpoints. The start is when run.json was written, or, where a resume wrote it anew or
there is none, the log's last change minus the times of all steps. (What Weights & Biases calls the runtime is
the export's.)

CSV and TensorBoard's event files need the standard library only, --wandb needs the wandb package.
"""

import argparse
import csv
import io
import os
import shutil
import struct
import sys
import tempfile

import history

LARGEST_FLOAT = 3.4028234e38  # of fp32, the numbers of TensorBoard's scalars
EVENTS = "events.out.tfevents.0000000000.log"  # TensorBoard reads files with tfevents in their names


def fail(message):
    sys.exit(f"error: {message}")


# ---- logs
#
# A run is a dictionary: name, record (run.json or None), rows and times. A row is a dictionary of the numbers of
# a line by their keys, those of nested objects with dots between the keys; a value that is not a finite number
# is None. `times` has the seconds since the epoch of each row.


def flattened(line, prefix=""):
    """The row of a line."""
    row = {}
    for key, value in line.items():
        if isinstance(value, dict):
            row |= flattened(value, f"{prefix}{key}.")
        else:
            right = type(value) in (int, float) and abs(value) <= LARGEST_FLOAT
            row[prefix + key] = value if right else None
    return row


def times_of(log, rows):
    """Seconds since the epoch of each row; see above."""
    elapsed, seconds, before = [], 0.0, 0
    for row in rows:
        # A log may skip steps. `ms` is the time of one step.
        seconds += (row.get("ms") or 0) / 1000 * max(row["step"] - before, 0)
        before = row["step"]
        elapsed.append(seconds)
    start = os.path.getmtime(log) - seconds
    record = os.path.join(os.path.dirname(log), "run.json")
    if os.path.exists(record):
        start = min(start, os.path.getmtime(record))
    return [start + s for s in elapsed]


def read_run(path):
    path = os.path.normpath(path)
    log = history.find_log(path)
    rows = [flattened(line) for line in history.log_lines(log)]
    if not rows:
        raise ValueError(f"the run {path} has no line in its log yet")
    for row, following in zip(rows, rows[1:]):
        if following["step"] <= row["step"]:
            raise ValueError(f"{log}: step {following['step']} follows step {row['step']}: the log is damaged")
    return {"name": history.name_of(log), "record": history.record_of(log), "rows": rows,
            "times": times_of(log, rows)}


def metric(key):
    """The name of a key in TensorBoard and Weights & Biases, which group names by what stands before a slash."""
    for part in ("train_", "val_"):
        if key.startswith(part):
            return f"{part[:-1]}/{key.removeprefix(part)}"
    return key.replace(".", "/")


def metrics_of(row):
    return {metric(key): value for key, value in row.items() if key != "step" and value is not None}


# ---- files


def replace_file(path, data):
    """Writes a file under a temporary name and renames it, so that it is never there in part."""
    folder = os.path.dirname(path) or "."
    if not os.path.isdir(folder):
        raise ValueError(f"cannot write {path}: there is no folder {folder}")
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=".export-")
    try:
        with os.fdopen(handle, "wb") as f:
            f.write(data)
        os.chmod(temporary, 0o666 & ~umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def umask():
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def continue_file(path, data):
    """Writes a file. If it has the beginning of the data, the rest is added: TensorBoard goes on in the file
    that it has open, and would not see another one under its name."""
    try:
        with open(path, "rb") as f:
            old = f.read()
    except FileNotFoundError:
        old = b""
    if not old or not data.startswith(old):
        return replace_file(path, data)
    with open(path, "ab") as f:
        f.write(data[len(old):])


# ---- CSV


def csv_text(runs):
    """A row a run and step, with a column for every key that any row has; those of `extra` are last."""
    keys = list(dict.fromkeys(key for run in runs for row in run["rows"] for key in row))
    keys.sort(key=lambda key: key.startswith("extra."))  # the order of the log else
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["run"] + keys)
    for run in runs:
        writer.writerows([run["name"]] + [row.get(key) for key in keys] for row in run["rows"])
    return out.getvalue()


def write_csv(runs, path):
    text = csv_text(runs)
    if path == "-":
        sys.stdout.write(text)
    else:
        replace_file(path, text.encode(errors="surrogateescape"))


# ---- TensorBoard
#
# An event file is a sequence of TFRecords (TensorFlow, tsl/lib/io/record_writer.h): the length as u64, its
# masked CRC, the data, its masked CRC, little-endian. The data are a message Event of protocol buffers
# (tensorflow/core/util/event.proto): wall_time = 1 (double), step = 2 (int64), file_version = 3 (string),
# summary = 5 (Summary). A Summary (tensorflow/core/framework/summary.proto) has values = 1, each with tag = 1
# (string) and simple_value = 2 (float).

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types of protocol buffers


def crc32c_table():
    """Castagnoli's polynomial 0x1EDC6F41, with its bits reversed (RFC 3720, appendix B.4)."""
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


CRC_TABLE = crc32c_table()


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ CRC_TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def masked(crc):
    """The checksum that a TFRecord stores: rotated, so that one of data with checksums in them stays good."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def tf_record(data):
    """A TFRecord."""
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked(crc32c(length))) + data + struct.pack("<I", masked(crc32c(data)))


def varint(value):
    """A whole number of at least 0 in groups of seven bits, the lowest first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(number, kind, content):
    """A field of a message; `content` is packed already, and bytes get their length."""
    length = varint(len(content)) if kind == BYTES else b""
    return varint(number << 3 | kind) + length + content


def event(time, *fields):
    return tf_record(field(1, FIXED64, struct.pack("<d", time)) + b"".join(fields))


def scalar(tag, value):
    """A Value of a Summary."""
    return field(1, BYTES, field(1, BYTES, tag.encode(errors="replace")) + field(2, FIXED32, struct.pack("<f", value)))


def event_file(run):
    """The event file of a run: its version, then an event a step with all of its scalars."""
    out = [event(run["times"][0], field(3, BYTES, b"brain.Event:2"))]
    for row, time in zip(run["rows"], run["times"]):
        summary = b"".join(scalar(tag, value) for tag, value in metrics_of(row).items())
        out.append(event(time, field(2, VARINT, varint(row["step"])), field(5, BYTES, summary)))
    return b"".join(out)


def write_tensorboard(runs, folder):
    for run in runs:
        of_run = os.path.join(folder, run["name"])
        os.makedirs(of_run, exist_ok=True)
        continue_file(os.path.join(of_run, EVENTS), event_file(run))


# ---- Weights & Biases


def wandb_id(name):
    """The id of a run: equal names have equal ids, so that a later export is the same run. It has letters,
    digits, - and _ alone; other characters become their codes."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_") else f".{ord(c):x}" for c in name)[:120]


def offline_folders(folder, name):
    """The folders of a run's earlier exports."""
    place = os.path.join(folder, "wandb")
    names = os.listdir(place) if os.path.isdir(place) else []
    # offline-run-DATE_TIME-ID
    return [os.path.join(place, n) for n in names
            if n.startswith("offline-run-") and n.split("-", 3)[3:] == [wandb_id(name)]]


def write_wandb(runs, folder, project):
    try:
        import wandb
    except ImportError as problem:
        fail(f"--wandb needs the wandb package, 0.19 or later ({problem}): python3 -m pip install wandb")
    os.makedirs(folder, exist_ok=True)
    for run in runs:
        earlier = offline_folders(folder, run["name"])
        record = run["record"] or {}
        config = {**record.get("flags", {}), **{k: v for k, v in record.items() if k not in ("flags", "asked")}}
        settings = wandb.Settings(silent=True, console="off", disable_git=True, x_disable_stats=True,
                                  x_disable_meta=True)
        writer = wandb.init(mode="offline", dir=folder, project=project, id=wandb_id(run["name"]), name=run["name"],
                            config=config, settings=settings)
        for row, time in zip(run["rows"], run["times"]):
            writer.log({**metrics_of(row), "_timestamp": time}, step=row["step"])
        writer.finish()
        written = os.path.dirname(os.path.abspath(writer.dir))  # two exports in one second have one folder
        for path in earlier:
            if os.path.abspath(path) != written:
                shutil.rmtree(path)


# ---- command line


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders, or log.jsonl files")
    parser.add_argument("--csv", metavar="FILE", help="write a CSV file; - is standard output")
    parser.add_argument("--tensorboard", metavar="DIR", help="write an event file for each run, DIR/RUN/events...")
    parser.add_argument("--wandb", metavar="DIR", help="write an offline run of Weights & Biases for each run, "
                                                       "DIR/wandb/offline-run-...")
    parser.add_argument("--project", default="cm", help="project of --wandb (default: %(default)s)")
    args = parser.parse_args()
    if not (args.csv or args.tensorboard or args.wandb):
        fail("give --csv FILE, --tensorboard DIR or --wandb DIR")
    try:
        runs = [read_run(path) for path in dict.fromkeys(map(os.path.normpath, args.runs))]
        names = [run["name"] for run in runs]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            fail(f"two runs are named {twice}: export them to other places")
        if args.csv:
            write_csv(runs, args.csv)
        if args.tensorboard:
            write_tensorboard(runs, args.tensorboard)
        if args.wandb:
            write_wandb(runs, args.wandb, args.project)
    except (ValueError, OSError, RecursionError) as problem:
        fail(str(problem))


if __name__ == "__main__":
    main()
