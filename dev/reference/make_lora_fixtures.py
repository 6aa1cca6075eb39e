"""Writes dev/test/fixtures/optim_lora.fix from lora.py.

    python dev/reference/make_lora_fixtures.py

Records are named as in make_optimizer_fixtures.py: `cases`, `case.NAME.flags` with every option, and
the factors as a step sees them, A (m, r) as a and B^T (r, n) as b: data.DATA.wa.0, .wb.0 at the start,
data.DATA.ga.1, .gb.1 the gradients of step 1, 2, 3; case.NAME.wa.1, .wa.3, .wb.1, .wb.3 the factors after
steps 1 and 3, and case.NAME.ma.3, .mb.3 the momenta, where the rule has them.

Where msign=simple12 and inv_root=eigh the oracle takes the exact sign and root, elsewhere the steps of the
polynomials. It runs in float64 on float32 inputs, and the distance of float32 is printed.
"""

import os

import numpy as np

import lora
from fixture import Writer

PATH = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "test", "fixtures",
                    "optim_lora.fix")
DEFAULTS = dict(s=1.0, cold=0, lr=0.1, weight_decay=0.2, momentum=0.9, nesterov=0, msign="pe8-lora",
                inv_root="pe7", lora_trust=0.1, lora_rebalance=0, rite_escape=0, beta1=0.9, beta2=0.95,
                damping=0.01, method="half_split")
EXACT = dict(msign="simple12", inv_root="eigh")


def f32(x):
    return np.asarray(x, np.float32)


def data_of(rng, m, n, r, zero=None):
    stretch = np.geomspace(1, 0.4, r)
    data = {"wa.0": f32(0.4 * stretch * rng.standard_normal((m, r))),
            "wb.0": f32(0.3 * stretch[::-1, None] * rng.standard_normal((r, n)))}
    if zero:
        data[f"w{zero}.0"] *= 0
    for step in (1, 2, 3):
        data[f"ga.{step}"] = f32(1e-3 * step * rng.standard_normal((m, r)))
        data[f"gb.{step}"] = f32(2e-3 / step * rng.standard_normal((r, n)))
    return data


def run(rule, data, o, dtype):
    """{key: value} of the factors after steps 1 and 3 and of the momenta, as stored."""
    s, out = lora.begin(data["wa.0"].astype(dtype), data["wb.0"].T.astype(dtype)), {}
    for step in (1, 2, 3):
        s = lora.RULES[rule](s, data[f"ga.{step}"].astype(dtype), data[f"gb.{step}"].T.astype(dtype), o)
        if step != 2:
            out[f"wa.{step}"], out[f"wb.{step}"] = s["a"], s["b"].T
    if rule != "lora-rite":
        out["ma.3"], out["mb.3"] = s["m_a"], s["m_b"].T
    return out


def cases():
    """(name, rule, data, options that differ)"""
    cold = dict(cold=1, lr=0.02)
    for rule in lora.RULES:
        for name, data, o in (("plain", "tall", {}), ("exact", "tall", EXACT),
                              ("wide", "wide", dict(s=0.25, nesterov=1)),
                              ("scaled", "tall", dict(s=8.0, weight_decay=0))):
            yield f"{rule}.{name}", rule, data, o
        if rule in ("lora-muon", "lora-rite", "lora-rite-core"):
            for zero in "ab":
                yield f"{rule}.cold_{zero}", rule, f"zero_{zero}", {**cold, **EXACT}
                yield f"{rule}.trust_{zero}", rule, f"zero_{zero}", {**cold, **EXACT, "lora_trust": 0.02}
        if rule in ("lora-muon", "spectron", "cm"):
            yield f"{rule}.rebalance", rule, "tall", dict(lora_rebalance=1)
            yield f"{rule}.half", rule, "wide", dict(lora_rebalance=0.5, s=2.0)
    yield "lora-rite.escape", "lora-rite", "tall", dict(rite_escape=1)
    yield "lora-rite.escape_wide", "lora-rite", "wide", dict(rite_escape=1, s=3.0)
    yield "spectron.published", "spectron", "wide", dict(msign="quintic5", nesterov=1)
    yield "cm.joint", "cm", "tall", dict(method="joint", s=2.0)
    yield "cm.joint_exact", "cm", "wide", dict(method="joint", **EXACT)


def main():
    rng = np.random.default_rng(7)
    sets = {"tall": data_of(rng, 14, 9, 4), "wide": data_of(rng, 7, 11, 3),
            "zero_a": data_of(rng, 10, 12, 4, "a"), "zero_b": data_of(rng, 12, 10, 4, "b")}
    names, errors = [], {}
    with Writer(PATH) as writer:
        for data_name, data in sets.items():
            for key, value in data.items():
                writer.put(f"data.{data_name}.{key}", value)
        for name, rule, data_name, changed in cases():
            o, data = {**DEFAULTS, **changed}, sets[data_name]
            words = [f"rule={rule}", f"data={data_name}"] + [f"{k}={v}" for k, v in o.items()]
            writer.text(f"case.{name}.flags", " ".join(words))
            out, rounded = (run(rule, data, o, t) for t in (np.float64, np.float32))
            for key, value in out.items():
                writer.put(f"case.{name}.{key}", value)
                start = data[f"{key[:2]}.0"] if key[0] == "w" else 0
                errors[name] = max(errors.get(name, 0), np.linalg.norm(rounded[key] - value) /
                                   max(np.linalg.norm(value - start), 1e-30))
            names.append(name)
        writer.text("cases", " ".join(names))
    worst = sorted(errors.items(), key=lambda x: -x[1])[:6]
    print(f"optim_lora.fix: {len(names)} cases, {writer.size()} bytes; float32 is off by at most " +
          ", ".join(f"{e:.1e} ({n})" for n, e in worst))


if __name__ == "__main__":
    main()
