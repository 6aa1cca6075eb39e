"""Reads checkpoints (docs/formats.md). Needs NumPy.

The file is not trusted: every length is held against the bytes that are left before anything is read
or allocated, and a file that is cut short, damaged or of another kind raises ValueError.
"""

import math
import mmap
import os
import struct

import numpy as np

MAGIC = b"cm.c checkpoint "
VERSIONS = (1, 2)
PREAMBLE = 24  # magic, version and newline, padded
TAIL = 24  # end mark, size of the file, checksum
MAX_NAME, MAX_DIMS = 4096, 8
DTYPES = {0: np.dtype("<f4"), 1: np.dtype("<f8"), 2: np.dtype("<u2"), 3: np.dtype("u1")}
BF16 = 2
# The checksum takes each word in turn: about half a second for these bytes. Larger files are read without.
CHECKED_BYTES = 64 << 20
MASK = (1 << 64) - 1
ODD = 0x9E3779B97F4A7C15


def checksum(data):
    """The hash of llmc/checkpoint.h: four lanes that take a word of 8 bytes each in turn."""
    lanes = [0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89]
    padded = bytes(data) + bytes(-len(data) % 32)
    for at, word in enumerate(struct.unpack(f"<{len(padded) // 8}Q", padded)):
        x = lanes[at & 3] ^ word
        lanes[at & 3] = ((x << 29 | x >> 35) & MASK) * ODD & MASK
    x = len(data)
    for lane in lanes:
        x = (x ^ lane) * ODD & MASK
        x ^= x >> 32
    x = x * 0xD6E8FEB86659FD93 & MASK
    return x ^ x >> 32


class Reader:
    """A position in the bytes of a file, which ends at `end`."""

    def __init__(self, data, end, path):
        self.data, self.at, self.end, self.path = data, PREAMBLE, end, path

    def fail(self, what):
        raise ValueError(f"{self.path}: {what} at byte {self.at}")

    def skip(self, size, what):
        """The position of `size` bytes, which are followed by padding to a multiple of 8."""
        start, padded = self.at, size + -size % 8
        if size < 0 or padded > self.end - self.at:
            self.fail(f"{what} of {size} bytes ends beyond the file")
        self.at += padded
        return start

    def number(self, what):
        return struct.unpack_from("<Q", self.data, self.skip(8, what))[0]

    def text(self, size, what):
        start = self.skip(size, what)
        try:
            return self.data[start:start + size].decode()
        except UnicodeDecodeError:
            self.fail(f"{what} is not text")


def header_of(text):
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def read_tensor(reader, name, wanted):
    """The array of a record after its name, or None if it is not wanted."""
    kind, count = reader.number("the type of " + name), reader.number("the dimensions of " + name)
    if kind not in DTYPES:
        reader.fail(f"{name} has the unknown type {kind}")
    if count > MAX_DIMS:
        reader.fail(f"{name} has {count} dimensions")
    dims = [reader.number("a dimension of " + name) for _ in range(count)]
    items = math.prod(dims)  # Python's numbers do not overflow
    start = reader.skip(items * DTYPES[kind].itemsize, "the data of " + name)
    if name not in wanted:
        return None
    array = np.frombuffer(reader.data, DTYPES[kind], items, start).reshape(dims)
    if kind == BF16:
        array = (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float64)


def read(path, wanted):
    """(header, {name: float64 array}) of a checkpoint, for the tensors named in `wanted` that it has."""
    with open(path, "rb") as f:
        size = os.fstat(f.fileno()).st_size
        if size < PREAMBLE + TAIL or size % 8:
            raise ValueError(f"{path}: {size} bytes are no checkpoint")
        with mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return parse(data, size, path, set(wanted))


def parse(data, size, path, wanted):
    first = bytes(data[:PREAMBLE])
    if first.rstrip(b"\0") not in [MAGIC + b"%d\n" % version for version in VERSIONS]:
        raise ValueError(f"{path}: not a checkpoint of version {' or '.join(map(str, VERSIONS))}")
    mark, stated, total = struct.unpack_from("<QQQ", data, size - TAIL)
    if mark != 0 or stated != size:
        raise ValueError(f"{path}: cut short or overlong: {size} bytes")
    if size <= CHECKED_BYTES and checksum(data[:size - 8]) != total:
        raise ValueError(f"{path}: damaged: its checksum does not match its contents")
    reader = Reader(data, size - TAIL, path)
    header = header_of(reader.text(reader.number("the header's length"), "the header"))
    tensors = {}
    while reader.at < reader.end:
        length = reader.number("the length of a name")
        if not 1 <= length <= MAX_NAME:
            reader.fail(f"a name has {length} bytes")
        name = reader.text(length, "a name")
        array = read_tensor(reader, name, wanted)
        if array is not None:
            tensors[name] = array
    return header, tensors


def newest(folder):
    """The path of a run's newest checkpoint, or None."""
    place = os.path.join(folder, "checkpoints")
    names = [n for n in os.listdir(place) if n.startswith("step_") and n.endswith(".ckpt")] \
        if os.path.isdir(place) else []
    return os.path.join(place, max(names)) if names else None
