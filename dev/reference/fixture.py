"""Reads and writes .fix files, the test fixtures of the C programs.

A fixture is a sequence of records. A record is one line of text
    name dtype ndim d0 d1 ...\\n
with dtype f4, f8, i4 or s1 (a string: bytes, no terminator), followed by the raw little-endian
data in row-major order. Nothing is aligned or compressed; dev/test/fixture.h is the C reader.
"""

import numpy as np

_DTYPES = {"f4": "<f4", "f8": "<f8", "i4": "<i4", "s1": "|u1"}


class Writer:
    """Collects records and writes them when the `with` block ends without an error.

    A torch tensor is accepted wherever a NumPy array is.
    """

    def __init__(self, path):
        self.path, self.records, self.names = path, [], set()

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        if kind is None:
            with open(self.path, "wb") as f:
                for header, data in self.records:
                    f.write(header)
                    f.write(data)

    def put(self, name, value, dtype="f4"):
        """One tensor (a number is a tensor of ndim 0)."""
        if name in self.names or not name or " " in name or "\n" in name:
            raise ValueError(f"bad or repeated record name {name!r}")
        if hasattr(value, "detach"):
            value = value.detach().numpy()
        a = np.array(value, order="C").astype(_DTYPES[dtype])  # keeps ndim 0, unlike ascontiguous
        if dtype in ("f4", "f8") and not np.isfinite(a).all():
            raise ValueError(f"record {name} is not finite")
        self.names.add(name)
        dims = "".join(f" {d}" for d in a.shape)
        self.records.append((f"{name} {dtype} {a.ndim}{dims}\n".encode(), a.tobytes()))

    def text(self, name, value):
        self.put(name, np.frombuffer(value.encode(), dtype=np.uint8), "s1")

    def size(self):
        return sum(len(h) + len(d) for h, d in self.records)


def load(path):
    """{name: array}; strings come back as str."""
    out = {}
    with open(path, "rb") as f:
        while line := f.readline():
            name, dtype, ndim, *dims = line.decode().split()
            shape = tuple(int(d) for d in dims)
            if len(shape) != int(ndim):
                raise ValueError(f"{path}: bad header {line!r}")
            count = int(np.prod(shape, dtype=np.int64))
            item = np.dtype(_DTYPES[dtype])
            data = f.read(count * item.itemsize)
            a = np.frombuffer(data, dtype=item).reshape(shape)
            out[name] = data.decode() if dtype == "s1" else a
    return out
