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



def inverse_root(gram):
    value, vector = np.linalg.eigh(gram)
    return vector / np.sqrt(value) @ vector.T


def lora(m=20, n=14, r=3, torch_too=False, scale=1.0, wd=0.0):
    """LoRA-Muon against its formula: A <- k A - lr / (2 s k) msign(U R) R, R = (B^T B)^(-1/2)."""
    w = [normal(m, r), normal(r, n)]
    start, moments = [x.copy() for x in w], [np.zeros_like(x) for x in w]
    rw, rm = [w[0].astype(float), w[1].T.astype(float)], [0, 0]
    keep = np.sqrt(1 - 0.1 * wd)
    for _ in range(3):
        g = [normal(m, r, size=0.01), normal(r, n, size=0.01)]
        arrays = [*w, *g, *moments]
        if torch_too:
            arrays = [torch.from_numpy(x) for x in arrays]
        cmuon.lora(*arrays, lr=0.1, lora_scale=scale, weight_decay=wd, inv_root="eigh",
                   msign="simple12", lora_trust=0.0)
        step = []
        for i, gi in enumerate((g[0].astype(float), g[1].T.astype(float))):
            rm[i] = 0.95 * rm[i] + 0.05 * gi
            R = inverse_root(rw[1 - i].T @ rw[1 - i])
            u, _, v = np.linalg.svd((0.95 * rm[i] + 0.05 * gi) @ R, full_matrices=False)
            step.append(0.05 / scale / keep * u @ v @ R)
        rw = [keep * x - d for x, d in zip(rw, step)]
    for x, y, z, p, q in zip(w, (rw[0], rw[1].T), start, moments, (rm[0], rm[1].T)):
        check(distance(x - z, y - z) < 1e-5 and distance(p, q) < 1e-5,
              f"lora {m, n, r, scale, wd}: off by {distance(x - z, y - z)}")


lora()
lora(m=9, n=30, r=8, scale=2.0, wd=0.5)
if torch:
    lora(torch_too=True)
a, b = normal(16, 4), normal(4, 16)
rest = [np.zeros_like(x) for x in (a, b, a, b)]
raises(ValueError, "lora: factors in PEFT's order", cmuon.lora, b, a, rest[1], rest[0], rest[3],
       rest[2], lr=0.1)
raises(ValueError, "lora: two ranks", cmuon.lora, a, normal(5, 16), *rest, lr=0.1)
raises(ValueError, "lora: a gradient of another shape", cmuon.lora, a, b, rest[1], *rest[1:], lr=0.1)
raises(TypeError, "lora: no matrix", cmuon.lora, a[0], b, *rest, lr=0.1)
raises(TypeError, "lora: no gradient", cmuon.lora, a, b, None, *rest[1:], lr=0.1)
raises(cmuon.CmuonError, "lora: decay of the whole product", cmuon.lora, a, b, *rest, lr=0.1,
       weight_decay=10)
raises(cmuon.CmuonError, "lora: rebalancing hides which factor is cold", cmuon.lora, a, b, *rest, lr=0.1,
       lora_rebalance=1)
kept = a.copy()
cmuon.lora(a, b, *rest, lr=0.1, lora_rebalance=1, lora_trust=0)
check(np.array_equal(a, kept), "lora: a step without gradients")

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
