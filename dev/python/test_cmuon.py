"""Checks the wrapper against the NumPy oracle, on arrays and, if there is torch, on tensors."""

import os
import sys

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "..", "reference")]
import cmuon
import optimizers as oracle

try:
    import torch
except ImportError:
    torch = None

RNG = np.random.default_rng(0)
failed = passed = 0


def check(ok, what):
    global failed, passed
    passed, failed = passed + bool(ok), failed + (not ok)
    if not ok:
        print("FAIL", what)


def raises(kind, what, call, *args, **kw):
    try:
        call(*args, **kw)
    except kind:
        return check(True, what)
    except Exception as e:
        return check(False, f"{what}: {type(e).__name__}: {e}")
    check(False, f"{what}: no error")


def normal(*shape, size=0.2):
    return (size * RNG.standard_normal(shape)).astype(np.float32)


def distance(a, b):
    return np.linalg.norm(np.asarray(a, float) - b) / max(np.linalg.norm(b), 1e-30)


def pair(circuit, heads=4, kv=2, k=8, d=24, torch_too=False, **options):
    shapes = [(heads * k, d), (kv * k, d)] if circuit == "qk" else [(kv * k, d), (d, heads * k)]
    start = [normal(*s) for s in shapes]
    w, m = [x.copy() for x in start], [np.zeros(s, np.float32) for s in shapes]
    rw, rm = [x.astype(float) for x in w], [x.astype(float) for x in m]
    # The oracle's own defaults are those of the release.
    o = oracle.CM(**({"momentum_form": "ema", "nesterov": True} | options))
    step = getattr(oracle, "cm_" + circuit)
    for _ in range(3):
        g = [normal(*s, size=0.01) for s in shapes]
        names = {"wd": "weight_decay"}
        arrays = [*w, *g, *m]
        if torch_too:
            arrays = [torch.from_numpy(x) for x in arrays]  # the same memory
        getattr(cmuon, "cm_" + circuit)(*arrays, lr=0.1, n_heads=heads,
                                        **{names.get(k, k): v for k, v in options.items()})
        *rw, ma, mb = step(*rw, *rm, *[x.astype(float) for x in g], heads, kv, 0.1, o)
        rm = [ma, mb]
    for i in range(2):
        check(distance(w[i] - start[i], rw[i] - start[i]) < 2e-4 and distance(m[i], rm[i]) < 1e-5,
              f"{circuit} {options}: leg {i}")


for circuit in ("qk", "ov"):
    pair(circuit)
    pair(circuit, kv=4)
    pair(circuit, isotropic=True, mp=2.0, wd=0.1, nesterov=False, momentum_form="sum")
    pair(circuit, kv=4, inv_root="eigh", msign="simple12", damping=0.05, whitening="post")
    pair(circuit, connection="frobenius", momentum_reproject="copy", gauge_damping=False)
    if torch:
        pair(circuit, torch_too=True)
pair("qk", kv=4, method="joint")

w, g, m = normal(20, 12), normal(20, 12), np.zeros((20, 12), np.float32)
r, _ = oracle.muon(w.astype(float), m.astype(float), g.astype(float), 0.1)
cmuon.muon(w, g, m, lr=0.1)
check(distance(w, r) < 1e-5, "muon")
x = normal(6, 9)
r = oracle.msign(x.astype(float))
cmuon.msign(x)
check(distance(x, r) < 1e-4, "msign")
x = np.cov(normal(7, 50)).astype(np.float32)
r = oracle.inv_root(x.astype(float) + 0.01 * np.eye(7), "eigh")
cmuon.inv_sqrt(x, 0.01, inv_root="eigh")
check(distance(x, r) < 1e-4, "inv_sqrt")

w = normal(8, 8)
raises(cmuon.CmuonError, "unknown option", cmuon.msign, w, steps=3)
raises(cmuon.CmuonError, "unknown value", cmuon.msign, w, msign="pe9")
raises(cmuon.CmuonError, "NaN", cmuon.msign, w * np.float32("nan"))
raises(TypeError, "float64", cmuon.msign, w.astype(float))
raises(TypeError, "a view with steps", cmuon.msign, w[:, ::2])
raises(TypeError, "a list", cmuon.msign, [[1.0]])
raises(ValueError, "shapes", cmuon.muon, w, w[:4].copy(), w.copy(), lr=0.1)
raises(ValueError, "heads", cmuon.cm_qk, *[normal(8, 8) for _ in range(6)], lr=0.1, n_heads=3)
raises(ValueError, "widths", cmuon.cm_qk, *[normal(8, 8 + i % 2) for i in range(6)], lr=0.1,
       n_heads=2)
if torch:
    raises(TypeError, "torch float64", cmuon.msign, torch.zeros(3, 3, dtype=torch.float64))
    raises(TypeError, "torch transpose", cmuon.msign, torch.zeros(3, 4).t())
w.flags.writeable = False
raises(TypeError, "read-only", cmuon.msign, w)

print(f"{passed} passed, {failed} failed" + ("" if torch else " (without torch)"))
sys.exit(failed > 0)
