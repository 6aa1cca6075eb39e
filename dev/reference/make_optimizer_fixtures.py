"""Writes dev/test/fixtures/optim_basic.fix and optim_variants.fix from the NumPy oracle.

    python dev/reference/make_optimizer_fixtures.py

A fixture holds `cases` (the names, separated by spaces) and per case `case.NAME.flags`, one
string of key=value words that states the rule and every option, and `case.NAME.KEY[.STEP]`:
    wq.0, wk.0 ...  weights at the start        gq.1, gk.1 ...  the gradient of step 1, 2, 3
    wq.1 ...        weights after step 1 ...    mq.3 ...        momentum buffers after step 3
Single-matrix rules use w, g, m (and v). In optim_variants.fix the starting weights and gradients
are shared: option data=NAME means data.NAME.wq.0, data.NAME.gq.1 ...; flags state only what
differs from the record defaults.RULE (for rules other than cm, the rule's first case); only the
last step's weights are stored, and the state only where it is not a plain momentum or Adam's.

The oracle runs in float64 on float32 inputs. For each case the script prints the distance of the rule
in float32 from it, relative to the total displacement. A test's tolerance follows from this distance.
"""

import os

import numpy as np

import optimizers as opt
from fixture import Writer

FIXTURES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "test", "fixtures")
CM_DEFAULTS = dict(circuit="qk", heads=3, kv_heads=3, method="half_split", isotropic=0, hybrid=1,
                   whitening="both", connection="none", gauge_damping=1, momentum_reproject="0",
                   per_mat_renorm=0, shared_div="1", momentum=0.95, momentum_form="sum",
                   nesterov=0, damping=0.01, mp=1, lr=0.1, weight_decay=0, msign="pe8", inv_root="cans25")
MUON_DEFAULTS = dict(lr=0.05, weight_decay=0, momentum=0.95, momentum_form="ema", nesterov=1, msign="pe8",
                     scale="spectral")


def flags(rule, options):
    return " ".join([f"rule={rule}"] + [f"{k}={v}" for k, v in options.items()])


def f32(x):
    return np.asarray(x, np.float32)


def cm_options(o):
    plain = {k: v for k, v in o.items() if k in opt.CM.__dataclass_fields__}
    plain["wd"] = o["weight_decay"]
    for k in ("isotropic", "hybrid", "gauge_damping", "per_mat_renorm", "nesterov"):
        plain[k] = bool(plain[k])
    return opt.CM(**plain)


def muon_options(o):
    return dict(lr=o["lr"], wd=o["weight_decay"], beta=o["momentum"], form=o["momentum_form"],
                nesterov=bool(o["nesterov"]), table=o["msign"], scale=o["scale"])


# ---------------------------------------------------------------------------------------------
# Runners: (data, options, dtype) -> {key: [after step 1, after step 2, ...]}
# data is {"wq.0": ..., "gq.1": ...}


def run_cm(data, o, dtype):
    names = ("q", "k") if o["circuit"] == "qk" else ("v", "o")
    rule = opt.cm_qk if o["circuit"] == "qk" else opt.cm_ov
    w = [data[f"w{n}.0"].astype(dtype) for n in names]
    state = (*w, np.zeros_like(w[0]), np.zeros_like(w[1]))
    out = {f"{x}{n}": [] for x in "wm" for n in names}
    for step in (1, 2, 3):
        g = [data[f"g{n}.{step}"].astype(dtype) for n in names]
        state = rule(*state, *g, o["heads"], o["kv_heads"], o["lr"], cm_options(o))
        for key, value in zip(out, state):
            out[key].append(value)
    return out


def run_single(step_rule, states, data, dtype, steps=3):
    """step_rule(w, *state, g, step) -> (w, *state) for rules on one matrix."""
    w = data["w.0"].astype(dtype)
    state = (w, *(np.zeros_like(w[:, :1] if s == "rows" else w) for s in states.values()))
    out = {"w": [], **{s: [] for s in states}}
    for step in range(1, steps + 1):
        state = step_rule(*state, data[f"g.{step}"].astype(dtype), step)
        for key, value in zip(out, state):
            out[key].append(value)
    return out


def run_muon(data, o, dtype):
    return run_single(lambda w, m, g, _: opt.muon(w, m, g, parts=o["parts"], axis=o["axis"],
                                                  **muon_options(o)), {"m": "full"}, data, dtype)


def run_adamw(data, o, dtype):
    return run_single(lambda w, m, v, g, t: opt.adamw(w, m, v, g, t, o["lr"], o["weight_decay"], o["beta1"],
                                                      o["beta2"], o["eps"]),
                      {"m": "full", "v": "full"}, data, dtype, o["steps"])


def run_normuon(data, o, dtype):
    return run_single(lambda w, m, v, g, _: opt.normuon(w, m, v, g, beta2=o["beta2"],
                                                        eps=o["eps"], **muon_options(o)),
                      {"m": "full", "v": "rows"}, data, dtype)


def run_aurora(data, o, dtype):
    return run_single(lambda w, m, g, _: opt.aurora(w, m, g, iterations=o["iterations"],
                                                    power=o["power"], **muon_options(o)),
                      {"m": "full"}, data, dtype)


def run_muonh(data, o, dtype):
    radius = opt.norm(data["w.0"].astype(dtype))
    options = muon_options(o)
    for unused in ("wd", "scale"):
        del options[unused]
    return run_single(lambda w, m, g, _: opt.muonh(w, m, g, radius=radius, **options),
                      {"m": "full"}, data, dtype)


def run_moonlight(data, o, dtype):
    return run_single(lambda w, m, g, _: opt.moonlight(w, m, g, o["lr"], o["weight_decay"], o["momentum"],
                                                       o["msign"]), {"m": "full"}, data, dtype)


def run_circuit(data, o, dtype):
    w = [data[f"w{n}.0"].astype(dtype) for n in "vo"]
    state = (*w, np.zeros_like(w[0]), np.zeros_like(w[1]))
    out = {k: [] for k in ("wv", "wo", "mv", "mo")}
    for step in (1, 2, 3):
        g = [data[f"g{n}.{step}"].astype(dtype) for n in "vo"]
        state = opt.muon_circuit_step(*state, *g, o["heads"], damping=o["damping"],
                                      **muon_options(o))
        for key, value in zip(out, state):
            out[key].append(value)
    return out


def run_partner_adamw(data, o, dtype):
    a, b = ("q", "k") if o["circuit"] == "qk" else ("o", "v")
    wa, wb = data[f"w{a}.0"].astype(dtype), data[f"w{b}.0"].astype(dtype)
    sa, sb = ((np.zeros_like(w), np.zeros_like(w)) for w in (wa, wb))
    out = {k: [] for k in (f"w{a}", f"w{b}", f"m{a}", f"m{b}", f"v{a}", f"v{b}")}
    for step in (1, 2, 3):
        ga, gb = data[f"g{a}.{step}"].astype(dtype), data[f"g{b}.{step}"].astype(dtype)
        wa, wb, sa, sb = opt.partner_adamw(
            wa, wb, sa, sb, ga, gb, step, o["heads"], o["kv_heads"], o["circuit"], o["lr"],
            o["weight_decay"], o["beta1"], o["beta2"], o["eps"], o["damping"], bool(o["renorm"]))
        for key, value in zip(out, (wa, wb, sa[0], sb[0], sa[1], sb[1])):
            out[key].append(value)
    return out


def run_quack(data, o, dtype):
    w = [data[f"w{n}.0"].astype(dtype) for n in "qk"]
    initial = opt.quack_norms(*w, o["heads"], o["kv_heads"])
    state = (*w, np.zeros_like(w[0]), np.zeros_like(w[1]))
    out = {k: [] for k in ("wq", "wk", "mq", "mk")}
    for step in (1, 2, 3):
        g = [data[f"g{n}.{step}"].astype(dtype) for n in "qk"]
        state = opt.quack(*state, *g, initial, o["heads"], o["kv_heads"], tau=o["tau"],
                          per_head=bool(o["per_head"]), **muon_options(o))
        for key, value in zip(out, state):
            out[key].append(value)
    return out


RUNNERS = {"cm": run_cm, "muon": run_muon, "adamw": run_adamw, "normuon": run_normuon,
           "aurora": run_aurora, "muonh": run_muonh, "moonlight": run_moonlight,
           "circuit_muon": run_circuit, "partner_adamw": run_partner_adamw, "quack": run_quack}


class Cases:
    def __init__(self, writer):
        self.writer, self.names, self.errors = writer, [], {}

    def begin(self, name, rule, options):
        self.names.append(name)
        self.writer.text(f"case.{name}.flags", flags(rule, options))

    def put(self, name, key, value, dtype="f4"):
        self.writer.put(f"case.{name}.{key}", value, dtype)

    def run(self, name, rule, data, options):
        """The results in float64. Notes the distance of float32."""
        out = RUNNERS[rule](data, options, np.float64)
        out32 = RUNNERS[rule](data, options, np.float32)
        error = 0.0
        for key, values in out.items():
            start = data[f"{key}.0"] if key.startswith("w") else 0.0
            moved = np.linalg.norm(values[-1] - start)
            error = max(error, np.linalg.norm(out32[key][-1] - values[-1]) / max(moved, 1e-30))
        self.errors[name] = error
        return out

    def finish(self):
        self.writer.text("cases", " ".join(self.names))


def whole_case(cases, name, rule, data, options, momenta=True):
    """Inputs, the weights after every step and the state after the last."""
    cases.begin(name, rule, options)
    for key, value in data.items():
        cases.put(name, key, value)
    for key, values in cases.run(name, rule, data, options).items():
        for step, value in enumerate(values, 1):
            if key.startswith("w") or step == len(values):
                cases.put(name, f"{key}.{step}", value)


# ---------------------------------------------------------------------------------------------
# Data


def weights_and_gradients(rng, heads, kv_heads, k, d, names="qkvo"):
    """Anisotropic weights whose heads differ in size, and three Gaussian gradients of each."""
    rows = {"q": heads, "k": kv_heads, "v": kv_heads, "o": heads}
    data = {}
    for n in names:
        stretch = np.exp(0.6 * rng.standard_normal((rows[n], k, 1)))
        size = np.linspace(0.6, 1.6, rows[n]).reshape(-1, 1, 1)
        w = (0.25 * stretch * size * rng.standard_normal((rows[n], k, d))).reshape(-1, d)
        data[f"w{n}.0"] = f32(w.T if n == "o" else w)
    for step in (1, 2, 3):
        for n in names:
            shape = data[f"w{n}.0"].shape
            data[f"g{n}.{step}"] = f32(1e-3 * step * rng.standard_normal(shape))
    return data


def only(data, names):
    return {k: v for k, v in data.items() if k[1] in names}


def single(rng, rows, cols, steps=3):
    data = {"w.0": f32(0.3 * rng.standard_normal((rows, cols)))}
    for step in range(1, steps + 1):
        data[f"g.{step}"] = f32(1e-2 * rng.standard_normal((rows, cols)))
    return data


def with_spectrum(rng, rows, cols, spectrum):
    k = min(rows, cols)
    u = np.linalg.qr(rng.standard_normal((rows, k)))[0]
    v = np.linalg.qr(rng.standard_normal((cols, k)))[0]
    return f32((u * spectrum) @ v.T)


# ---------------------------------------------------------------------------------------------


def msign_cases(cases, rng):
    ill = with_spectrum(rng, 24, 24, np.geomspace(1, 1e-4, 24))
    inputs = {
        "square": with_spectrum(rng, 24, 24, np.geomspace(5, 1, 24)),
        "tall": f32(rng.standard_normal((40, 8))), "wide": f32(rng.standard_normal((8, 24))),
        "tall_scaled": f32(1e4 * rng.standard_normal((17, 9))),
        "wide_small": f32(1e-5 * rng.standard_normal((5, 31))),
        "row": f32(rng.standard_normal((1, 7))), "column": f32(rng.standard_normal((7, 1))),
        "ill": ill, "zero": np.zeros((6, 4), np.float32),
        "tiny": f32(3e-9 * rng.standard_normal((8, 8)))}
    for name, x in inputs.items():
        s = np.linalg.svd(x.astype(np.float64), compute_uv=False)
        exact = s.min() >= 1e-2 * np.linalg.norm(s) > 0
        name = "msign_" + name
        cases.begin(name, "msign", {"svd": int(exact)})
        cases.put(name, "x", x)
        worst = 0.0
        for table in [*opt.MSIGN, *(["svd"] if exact else [])]:
            y = opt.msign(x.astype(np.float64), table)
            cases.put(name, table, y, "f8")
            worst = max(worst, np.linalg.norm(opt.msign(x, table) - y) / max(np.linalg.norm(y), 1))
        cases.errors[name] = worst


def inv_root_cases(cases, rng):
    gram = lambda x: f32(x @ x.T)
    inputs = {"gauss": (gram(rng.standard_normal((8, 24))), 0.01),
              "init": (gram(0.02 * rng.standard_normal((16, 64))), 0.01),
              "stretched": (gram(np.geomspace(1, 30, 8)[:, None] *
                                 rng.standard_normal((8, 24))), 0.001),
              "zero": (np.zeros((8, 8), np.float32), 0.01), "one": (f32([[2.5]]), 0.0)}
    for name, (w, damping) in inputs.items():
        name = "invroot_" + name
        cases.begin(name, "invroot", {"damping": damping})
        cases.put(name, "gram", w)
        worst = 0.0
        for method in ("eigh", *opt.INV_ROOT_STEPS):
            full = lambda t: opt.inv_root(w.astype(t) + t(damping) * np.eye(len(w), dtype=t),
                                          method)
            cases.put(name, method, full(np.float64), "f8")
            worst = max(worst, np.linalg.norm(full(np.float32) - full(np.float64)) /
                        np.linalg.norm(full(np.float64)))
        cases.errors[name] = worst


def basic(path):
    rng = np.random.default_rng(1)
    with Writer(path) as writer:
        cases = Cases(writer)
        msign_cases(cases, rng)
        inv_root_cases(cases, rng)
        for name, shape, options in (
                ("spectral_tall", (24, 8), {}), ("spectral_wide", (8, 24), {"weight_decay": 0.1}),
                ("rms", (12, 8), {"scale": "rms", "weight_decay": 0.1}),
                ("none", (12, 8), {"scale": "none"}),
                ("plain", (12, 8), {"nesterov": 0}), ("sum", (12, 8), {"momentum_form": "sum"}),
                ("sum_plain", (12, 8), {"momentum_form": "sum", "nesterov": 0}),
                ("quintic5", (12, 8), {"msign": "quintic5"}),
                ("simple12", (12, 8), {"msign": "simple12", "momentum": 0.9}),
                ("swiglu", (32, 8), {"parts": 2}), ("head", (24, 16), {"parts": 3}),
                ("head_o", (16, 24), {"parts": 3, "axis": 1})):
            whole_case(cases, "muon_" + name, "muon", single(rng, *shape),
                       {**MUON_DEFAULTS, "parts": 1, "axis": 0, **options})
        for name, options in (("wd", {"weight_decay": 0.1}), ("eps", {"eps": 1e-3, "beta2": 0.99})):
            o = dict(lr=0.02, weight_decay=0, beta1=0.9, beta2=0.95, eps=1e-8, steps=10)
            whole_case(cases, "adamw_" + name, "adamw", single(rng, 5, 7, 10), {**o, **options})
        mha = weights_and_gradients(rng, 3, 3, 8, 24)
        gqa = weights_and_gradients(rng, 3, 1, 8, 24)
        for circuit, legs in (("qk", "qk"), ("ov", "vo")):
            for form, iso in (("full", 0), ("iso", 1)):
                for kv_heads, data in ((3, mha), (1, gqa)):
                    name = f"cm_{circuit}_{form}" + ("_gqa" if kv_heads == 1 else "")
                    whole_case(cases, name, "cm", only(data, legs), {
                        **CM_DEFAULTS, "circuit": circuit, "kv_heads": kv_heads, "isotropic": iso})
        whole_case(cases, "cm_qk_mp_wd", "cm", only(mha, "qk"), {
            **CM_DEFAULTS, "mp": 1.5, "weight_decay": 0.2, "damping": 0.1, "nesterov": 1})
        small = weights_and_gradients(rng, 2, 2, 4, 12, "vo")
        small["wo.0"] = 0 * small["wo.0"]
        whole_case(cases, "cm_ov_zero_o", "cm", small, {
            **CM_DEFAULTS, "circuit": "ov", "heads": 2, "kv_heads": 2})
        cases.finish()
    report(path, writer, cases)


CONNECTIONS = ("none", "frobenius", "scale_aware", "scale_aware_sylv", "frobenius_scalar",
               "scale_aware_scalar")
SHORT = {"frobenius": "fro", "scale_aware": "sa", "scale_aware_sylv": "sylv",
         "frobenius_scalar": "froscal", "scale_aware_scalar": "sascal", "none": "none"}


def variant_list():
    """(name, options) of every meaningful combination of the CM options."""
    out = []

    def add(name, gqa=False, **options):
        out.append((name + ("_gqa" if gqa else ""), {
            **CM_DEFAULTS, **({"heads": 4, "kv_heads": 2} if gqa else {}), **options}))

    legs = {"qk": {}, "ovh": {"circuit": "ov"}, "ovp": {"circuit": "ov", "hybrid": 0}}
    for leg, base in legs.items():
        for iso in (0, 1):
            for whitening in ("both", "pre", "post", "none"):
                # per head, isotropic pre is none and post is both: no connections there
                same = iso and leg != "ovh" and whitening in ("pre", "post")
                for c in CONNECTIONS:
                    if whitening == "both" or c == "none" or (
                            not same and c in ("frobenius", "scale_aware_scalar")):
                        add(f"{leg}_{'iso' if iso else 'full'}_{whitening}_{SHORT[c]}", **base,
                            isotropic=iso, whitening=whitening, connection=c)
            for c in CONNECTIONS:
                add(f"{leg}_{'iso' if iso else 'full'}_{SHORT[c]}", gqa=True, **base,
                    isotropic=iso, connection=c)
            for whitening in ("both", "post"):  # connections act on post-whitened steps only
                add(f"{leg}_{'iso' if iso else 'full'}_{whitening}_renorm", **base, isotropic=iso,
                    whitening=whitening, per_mat_renorm=1)
            add(f"{leg}_{'iso' if iso else 'full'}_renorm_froscal", gqa=True, **base,
                isotropic=iso, per_mat_renorm=1, connection="frobenius_scalar")
            add(f"{leg}_{'iso' if iso else 'full'}_div", gqa=True, **base, isotropic=iso,
                shared_div="group")
        for c in CONNECTIONS[1:] if leg != "ovp" else ():
            add(f"{leg}_undamped_{SHORT[c]}", **base, connection=c, gauge_damping=0)
    for leg, base in (("qk", {}), ("ovh", {"circuit": "ov"})):
        for kind in ("copy", "write_back"):
            for c in CONNECTIONS if leg == "qk" else ("none", "scale_aware_scalar"):
                add(f"{leg}_{kind}_{SHORT[c]}", **base, momentum_reproject=kind, connection=c)
            add(f"{leg}_{kind}_none", gqa=True, **base, momentum_reproject=kind)
            add(f"{leg}_{kind}_nesterov_ema", **base, momentum_reproject=kind, nesterov=1,
                momentum_form="ema", momentum=0.8)
    for leg, base in (("qk", {"hybrid": 1}), ("ovp", {"circuit": "ov", "hybrid": 0})):
        for iso in (0, 1):
            for whitening in ("both", "pre", "post", "none"):
                for c in CONNECTIONS if whitening == "both" and leg == "qk" else ("none",):
                    add(f"{leg}_joint_{'iso' if iso else 'full'}_{whitening}_{SHORT[c]}", **base,
                        method="joint", isotropic=iso, whitening=whitening, connection=c)
    for leg, base in (("qk", {}), ("ovh", {"circuit": "ov"})):
        add(f"{leg}_nesterov", **base, nesterov=1)
        add(f"{leg}_ema", **base, momentum_form="ema", momentum=0.9)
        add(f"{leg}_ema_nesterov", **base, momentum_form="ema", nesterov=1)
        add(f"{leg}_mp_wd", **base, mp=2, weight_decay=0.3)
        add(f"{leg}_damping", **base, damping=0.5)
        for table in ("quintic5", "quintic5_nv", "simple12"):
            add(f"{leg}_{table}", **base, msign=table)
        for method in ("cans12", "eigh"):
            add(f"{leg}_{method}", **base, inv_root=method, damping=0.001)
        for power in (0, 0.25, 0.5, 0.75, 1.3, 2):
            add(f"{leg}_power{power}", **base, whiten_power=power)
        for iso in (0, 1):
            form = "iso" if iso else "full"
            add(f"{leg}_{form}_halfpower", gqa=True, **base, isotropic=iso, whiten_power=0.5)
            add(f"{leg}_{form}_relative", gqa=True, **base, isotropic=iso,
                damping_form="relative", damping=0.1)
            add(f"{leg}_{form}_group", gqa=True, **base, isotropic=iso, head_group=2,
                per_mat_renorm=iso)
            add(f"{leg}_{form}_dial", gqa=True, **base, isotropic=iso, head_group=2,
                whiten_power=0.5, damping_form="relative", hybrid=0)
        add(f"{leg}_relative_fro", **base, damping_form="relative", connection="frobenius",
            gauge_damping=0)
    return out


def control_list():
    """(name, rule, data set, options)."""
    m, adam = MUON_DEFAULTS, dict(lr=0.02, weight_decay=0.1, beta1=0.9, beta2=0.95, eps=1e-8)
    out = []
    for data in ("tall", "wide", "square"):
        out += [
            ("normuon", "normuon", data, {**m, "beta2": 0.95, "eps": 1e-10, "weight_decay": 0.1}),
            ("aurora", "aurora", data, {**m, "msign": "simple12", "weight_decay": 0.1, "iterations": 2,
                                        "power": 0.5}),
            ("muonh", "muonh", data, {**m, "scale": "none"}),
            ("moonlight", "moonlight", data, {
                **m, "momentum_form": "sum", "scale": "rms", "msign": "quintic5",
                "weight_decay": 0.1})]
    out.append(("aurora4", "aurora", "tall", {**m, "msign": "pe8", "iterations": 4, "power": 0.25}))
    for parts, axis, data in ((4, 0, "tall"), (4, 1, "wide"), (2, 0, "tall")):
        out.append((f"muon_parts{parts}", "muon", data, {**m, "parts": parts, "axis": axis}))
    heads = {"heads": 3, "kv_heads": 3, "damping": 0.001}
    out.append(("circuit", "circuit_muon", "mha", {**m, "msign": "simple12", **heads, "weight_decay": 0.1}))
    for circuit in ("qk", "ov"):
        for heads, kv, data in ((3, 3, "mha"), (4, 2, "gqa")):
            for renorm in (0, 1):
                out.append((f"partner_adamw_{circuit}_renorm{renorm}", "partner_adamw", data, {
                    **adam, "circuit": circuit, "heads": heads, "kv_heads": kv, "damping": 0.01,
                    "renorm": renorm}))
    for heads, kv, data in ((3, 3, "mha"), (4, 2, "gqa")):
        for per_head in (0, 1):
            out.append((f"quack_{'head' if per_head else 'full'}", "quack", data, {
                **m, "scale": "none", "tau": 1.5, "per_head": per_head, "heads": heads,
                "kv_heads": kv}))
    return [(f"{name}_{data}", rule, data, o) for name, rule, data, o in out]


def variants(path):
    rng = np.random.default_rng(2)
    sets = {"mha": weights_and_gradients(rng, 3, 3, 4, 12),
            "gqa": weights_and_gradients(rng, 4, 2, 4, 12),
            "tall": single(rng, 16, 8), "wide": single(rng, 8, 16), "square": single(rng, 8, 8)}
    with Writer(path) as writer:
        cases = Cases(writer)
        for data_name, data in sets.items():
            for key, value in data.items():
                writer.put(f"data.{data_name}.{key}", value)
        listed = [(name, "cm", "gqa" if o["kv_heads"] == 2 else "mha", o)
                  for name, o in variant_list()] + control_list()
        defaults = {}
        for _, rule, _, o in listed:  # a rule's first case gives its defaults
            defaults.setdefault(rule, CM_DEFAULTS if rule == "cm" else o)
        for rule, o in defaults.items():
            writer.text(f"defaults.{rule}", flags(rule, o))
        for name, rule, data_name, o in listed:
            changed = {k: v for k, v in o.items() if v != defaults[rule].get(k)}
            cases.begin(name, rule, {"data": data_name, **changed})
            plain = rule in ("partner_adamw", "circuit_muon", "quack") or rule == "cm" and (
                o["momentum_reproject"] != "write_back" and
                o["momentum_form"] == "sum" and o["momentum"] == 0.95)
            for key, values in cases.run(name, rule, sets[data_name], o).items():
                if key.startswith("w") or not plain:
                    cases.put(name, f"{key}.3", values[-1])
        cases.finish()
    report(path, writer, cases)


def report(path, writer, cases):
    worst = sorted(cases.errors.items(), key=lambda x: -x[1])
    print(f"{os.path.basename(path)}: {len(cases.names)} cases, {writer.size()} bytes; float32 is "
          f"off by at most " + ", ".join(f"{e:.1e} ({n})" for n, e in worst[:6]))


if __name__ == "__main__":
    os.makedirs(FIXTURES, exist_ok=True)
    basic(os.path.join(FIXTURES, "optim_basic.fix"))
    variants(os.path.join(FIXTURES, "optim_variants.fix"))
