"""Numerical checks of the properties that the oracle must have. Run through `python optimizers.py`.

Everything is float64 with the exact sign (SVD) and the exact root (eigh) unless a line is about a
polynomial. Properties that must NOT hold are checked too, because a test that cannot fail proves little.
"""

import numpy as np

import optimizers as opt
from optimizers import CM, transpose

rng = np.random.default_rng(20260601)
normal = rng.standard_normal
passed = failed = 0


def check(ok, text, value=None):
    global passed, failed
    passed, failed = passed + bool(ok), failed + (not ok)
    if not ok:
        print(f"FAIL {text}" + ("" if value is None else f" ({value})"))


def small(error, text, tolerance=1e-9):
    check(error <= tolerance, text, f"{error:.3g} > {tolerance:g}")


def large(error, text, floor=1e-3):
    check(error >= floor, text, f"{error:.3g} < {floor:g}")


def rel(a, b):
    return float(np.linalg.norm(np.ravel(a - b)) / max(np.linalg.norm(np.ravel(b)), 1e-300))


def op(x):
    """Largest singular value over a batch."""
    return float(np.linalg.svd(x, compute_uv=False).max())


def exact(**kw):
    return CM(msign="svd", inv_root="eigh", **{"damping": 0.0, **kw})


def pair(heads=4, kv_heads=None, k=4, d=16, condition=20.0):
    """Weights with anisotropic Grams and Gaussian gradients, as head blocks."""
    kv_heads = kv_heads or heads
    stretch = lambda n: condition ** np.linspace(-0.5, 0.5, k)[:, None] * \
        (0.5 + rng.random((n, 1, 1)))
    rot = lambda n: np.linalg.qr(normal((n, k, k)))[0]
    a = rot(heads) @ (stretch(heads) * normal((heads, k, d)))
    b = rot(kv_heads) @ (stretch(kv_heads) * normal((kv_heads, k, d)))
    return a, b, normal(a.shape), normal(b.shape)


def composed(a, b, da, db):
    b, db = opt.group_repeat(b, len(a)), opt.group_repeat(db, len(a))
    return transpose(da) @ b + transpose(a) @ db


def legs(a, b, da, db):
    """The two terms of the composed step at unit learning rate and budget 1/2."""
    b, db = opt.group_repeat(b, len(a)), opt.group_repeat(db, len(a))
    return 0.5 * transpose(da) @ b, 0.5 * transpose(a) @ db


CONNECTIONS = ["frobenius", "frobenius_scalar", "scale_aware", "scale_aware_scalar",
               "scale_aware_sylv"]


def check_msign():
    x = normal((3, 64, 16))
    for shape in (x, transpose(x)):
        s = opt.msign(shape, "svd")
        gram = s @ transpose(s) if s.shape[-2] < s.shape[-1] else transpose(s) @ s
        small(rel(gram, np.broadcast_to(np.eye(16), gram.shape)), "svd sign is orthogonal")
        small(rel(opt.msign(shape, "pe8"), s), "pe8 equals the exact sign on Gaussian input", 1e-12)
        small(rel(opt.msign(shape, "simple12"), s), "simple12 equals the exact sign", 1e-4)
        small(rel(opt.msign(7 * shape, "pe8"), opt.msign(shape, "pe8")), "sign of a scaled matrix")
    for table in ["svd", *opt.MSIGN]:
        check(not opt.msign(np.zeros((3, 5)), table).any(), f"{table}: zero gives zero")

    def response(s, table):  # the scalar map on a normalised singular value
        for a, b, c in opt.MSIGN[table]:
            s = a * s + b * s**3 + c * s**5
        return s

    s = np.geomspace(1e-3, 1, 4000)
    small(np.abs(response(s, "pe8") - 1).max(), "pe8 response is 1 above 1e-3", 2e-4)
    small(abs(float(response(np.float64(1e-4), "pe8")) - 0.575), "pe8 response at 1e-4", 1e-3)
    small(np.abs(response(s, "simple12") - 1).max(), "simple12 response is 1 above 1e-3", 2e-4)
    r = response(s, "quintic5")
    check(0.46 < r.min() < 0.48 and 1.19 < r.max() < 1.21, "quintic5 response range")
    r = response(s[s > 1e-2], "quintic5")
    check(0.67 < r.min() < 0.69 and r.max() < 1.14, "quintic5 response range above 1e-2")
    r = response(s[s > 1e-2], "quintic5_nv")
    check(0.977 < r.min() and r.max() < 1.033, "quintic5_nv response range above 1e-2")


def check_inv_root():
    basis = np.linalg.qr(normal((8, 8)))[0]
    w = (basis * np.geomspace(1e-6, 1, 8)) @ basis.T
    root = opt.inv_root(w, "eigh")
    small(rel(root @ w @ root, np.eye(8)), "eigh root")
    for method, tolerance in (("cans25", 1e-9), ("cans12", 1e-9)):
        small(rel(opt.inv_root(w, method), root), f"{method} down to 1e-6", tolerance)
    scalars = np.geomspace(1e-6, 1, 2000)[:, None, None]  # the nine tuned steps by themselves
    opt.INV_ROOT_STEPS["cans9"] = 9
    error = np.abs(opt.inv_root(np.array([x * np.diag([1.0, 0.0]) + (1 - x) * np.diag([0.0, 1.0])
                                          for x in scalars[:, 0, 0]]), "cans9")[:, 0, 0]
                   * np.sqrt(scalars[:, 0, 0]) - 1).max()
    check(4e-3 < error < 5e-3, "nine CANS steps reach 4.4e-3", error)
    w = (basis * np.geomspace(1e-9, 1, 8)) @ basis.T
    root = opt.inv_root(w, "eigh")
    small(rel(opt.inv_root(w, "cans25"), root), "cans25 down to 1e-9", 1e-6)
    large(rel(opt.inv_root(w, "cans12"), root), "cans12 is not enough at 1e-9", 1e-2)
    small(rel(opt.inv_root(0.01 * np.eye(4)), 10 * np.eye(4)), "root of damping alone")


def check_momentum():
    for nesterov in (False, True):
        ms = me = np.zeros((3, 4))
        for _ in range(5):
            g = normal((3, 4))
            ms, us = opt.momentum_step(ms, g, 0.9, "sum", nesterov)
            me, ue = opt.momentum_step(me, g, 0.9, "ema", nesterov)
        small(rel(ms, me / 0.1) + rel(us, ue / 0.1), f"sum = ema/(1-b), nesterov={nesterov}")
    w, m, v = opt.adamw(np.ones(4), 0.0, 0.0, np.array([3.0, -2, 1e-3, 5]), 1, 0.1, 0.5, eps=0.0)
    small(rel(w, 0.95 - 0.1 * np.array([1, -1, 1, 1])), "first AdamW step is decay and a sign")


def check_bounds():
    a, b, ua, ub = pair()
    for kv_heads in (4, 2, 1):
        ga, gb, xa, xb = pair(4, kv_heads)
        for o, limit in ((exact(), 0.5), (exact(damping=1.0), 0.5),
                         (exact(whitening="post"), 0.5)):
            x, y = legs(ga, gb, *opt.pair_direction(ga, gb, xa, xb, o))
            small(max(op(x), op(y)) - limit, f"leg bound 1/2, Hkv={kv_heads} {o.whitening}", 1e-9)
            small(op(x + y) - 1, f"composed bound 1, Hkv={kv_heads} {o.whitening}", 1e-9)
    x, _ = legs(a, b, *opt.pair_direction(a, b, ua, ub, exact()))
    s = np.linalg.svd(x, compute_uv=False)[:, :4]
    small(np.abs(s - 0.5).max(), "full, no damping: all k singular values of a leg are 1/2")
    x, y = legs(a, b, *opt.pair_direction(a, b, ua, ub, exact(damping=1.0)))
    check(op(x) < 0.4999 and op(y) < 0.4999, "damping shrinks the legs strictly")
    for kind in ("pre", "none"):
        x, y = legs(a, b, *opt.pair_direction(a, b, ua, ub, exact(whitening=kind)))
        check(max(op(x), op(y)) > 1, f"whitening={kind} breaks the bound")
    da, db = opt.pair_direction(a, b, ua, ub, exact(isotropic=True))
    x, y = legs(a, b, da, db)
    limit = max(op(m) / np.sqrt((m * m).sum() / 4) for h in range(4) for m in (a[h], b[h]))
    check(max(op(x), op(y)) <= 0.5 * limit + 1e-9 <= 0.5 * 2 + 1e-9, "isotropic leg bound")
    check(op(x + y) <= 2 + 1e-9, "isotropic composed bound sqrt(k)")
    x, y = legs(a, b, *opt.pair_direction(a, b, ua, ub, exact(method="joint")))
    check(2 * op(x) <= 1 + 1e-9 and 2 * op(y) <= 1 + 1e-9, "joint leg bound, budget 1")
    check(2 * op(x + y) <= 2 + 1e-9, "joint composed bound 2")
    # GQA: the sum of the group's Grams bounds every query head; averaging per-head steps does not
    ga, gb, xa, xb = pair(4, 1)
    o = exact()
    db = opt.pair_direction(ga, gb, xa, xb, o)[1]
    wide = np.concatenate([transpose(ga[h]) @ db[0] for h in range(4)])
    small(0.5 * op(wide) - 0.5, "GQA: the stacked query heads obey 1/2 too")
    each = [opt.pair_direction(ga[h:h + 1], gb, xa[h:h + 1], xb, o)[1][0] for h in range(4)]
    mean = np.mean(each, axis=0)
    check(max(op(0.5 * transpose(ga[h]) @ mean) for h in range(4)) > 0.5,
          "GQA: averaging per-head steps breaks the bound")
    # OV: the hybrid O leg is bounded summed over heads, the per-head one only by sqrt(H)/2
    for hybrid in (True, False):
        da, db = opt.pair_direction(a, b, ua, ub, exact(circuit="ov", hybrid=hybrid))
        out = 0.5 * np.concatenate([transpose(da[h]) @ b[h] for h in range(4)], axis=1)
        x, y = legs(a, b, da, db)
        small(np.abs(np.linalg.svd(y, compute_uv=False)[:, :4] - 0.5).max(), "V leg is 1/2")
        if hybrid:
            check(op(x) <= 0.5 + 1e-9, "hybrid: O per head <= 1/2")
            total = 0.5 * np.concatenate(
                [transpose(da[h]) @ opt.inv_root(b[h] @ b[h].T, "eigh") @ b[h] @ b[h].T
                 for h in range(4)], axis=1)
            small(op(total) - 0.5, "hybrid: aggregated O leg <= 1/2")
        else:
            check(op(out) <= 0.5 * 2 + 1e-9, "per-head O: aggregated leg <= sqrt(H)/2")
    # the worst case of the per-head O leg is attained when all heads agree
    same = np.repeat(ua[:1], 4, axis=0)
    orth = np.repeat(np.linalg.qr(normal((16, 4)))[0].T[None], 4, axis=0)
    blocks = lambda d_: 0.5 * d_.reshape(16, 16).T
    per_head = opt.pair_direction(a, orth, same, ub, exact(circuit="ov", hybrid=False))[0]
    whole = opt.pair_direction(a, orth, same, ub, exact(circuit="ov"))[0]
    small(abs(op(blocks(per_head)) - 1.0), "per-head O: sqrt(H)/2 is attained")
    small(op(blocks(whole)) - 0.5, "hybrid O: still 1/2 there")


def check_equivariance():
    k = 4

    def orthogonal(n):
        return np.linalg.qr(normal((n, k, k)))[0]

    groups = {"O": orthogonal,
              "OR": lambda n: orthogonal(n) * np.exp(normal((n, 1, 1))),
              "GL": lambda n: np.eye(k) + 0.5 * normal((n, k, k))}
    order = ["O", "OR", "GL"]
    iso, ov = {"isotropic": True}, {"circuit": "ov"}
    table = [  # options, largest group of the factors, of the composed step
        ({}, "GL", "GL"), ({"connection": "scale_aware"}, "GL", "GL"),
        ({"connection": "frobenius"}, "O", "GL"), ({"connection": "frobenius_scalar"}, "O", "GL"),
        ({"connection": "scale_aware_scalar"}, "OR", "GL"),
        ({"connection": "scale_aware_sylv"}, "OR", "GL"),
        (iso, "OR", "OR"), ({**iso, "whitening": "post"}, "OR", "OR"),
        ({**iso, "connection": "scale_aware_scalar"}, "OR", "OR"),
        ({**iso, "connection": "scale_aware_sylv"}, "OR", "OR"),
        ({"whitening": "post"}, "OR", "OR"),
        ({"method": "joint"}, "OR", "OR"), ({"method": "joint", **iso}, "OR", "OR"),
        ({**iso, "connection": "frobenius_scalar"}, "O", "OR"),
        ({"whitening": "pre"}, "O", "O"), ({"whitening": "none"}, "O", "O"),
        ({"whitening": "pre", **iso}, "O", "O"), ({"whitening": "none", **iso}, "O", "O"),
        ({"per_mat_renorm": True}, "O", "O"), ({"per_mat_renorm": True, **iso}, "O", "O"),
        (ov, "GL", "GL"), ({**ov, "hybrid": False}, "GL", "GL"),
        ({"damping": 0.5}, "O", "O"), ({"damping": 0.5, **ov}, "O", "O")]
    for options, factor_group, composed_group in table:
        o = exact(**options)
        for kv_heads in ((4,) if o.method == "joint" else (4, 2)):
            a, b, ua, ub = pair(4, kv_heads)
            da, db = opt.pair_direction(a, b, ua, ub, o)
            for name in order:
                r = groups[name](kv_heads)
                ri = np.linalg.inv(r)
                rq, riq = opt.group_repeat(r, 4), opt.group_repeat(ri, 4)
                # math layout A -> A R, B -> B R^-T, U_A -> U_A R^-T, U_B -> U_B R
                a2, b2, ua2, ub2 = transpose(rq) @ a, ri @ b, riq @ ua, transpose(r) @ ub
                da2, db2 = opt.pair_direction(a2, b2, ua2, ub2, o)
                factor = max(rel(da2, transpose(rq) @ da), rel(db2, ri @ db))
                step = rel(composed(a2, b2, da2, db2), composed(a, b, da, db))
                text = f"{options} Hkv={kv_heads} under {name}"
                for value, group, what in ((factor, factor_group, "factors"),
                                           (step, composed_group, "composed step")):
                    if order.index(name) <= order.index(group):
                        small(value, f"{what} equivariant: {text}", 1e-7)
                    else:
                        large(value, f"{what} not equivariant: {text}")


def check_reductions():
    a, b, ua, ub = pair()
    flat = 3.0 * np.linalg.qr(normal((4, 16, 4)))[0].transpose(0, 2, 1)  # b b^T = 9 I
    da = opt.pair_direction(a, flat, ua, ub, exact(damping=0.5))[0]
    small(rel(da, opt.msign(ua, "svd") / np.sqrt(9.5)), "flat partner: msign(U)/sqrt(c^2+damping)")
    small(rel(opt.pair_direction(a, flat, ua, ub, exact(damping=0.5, isotropic=True))[0], da),
          "flat partner: isotropic = full")
    kinds = ["both", "pre", "post", "none"]
    out = {w: opt.pair_direction(a, b, ua, ub, exact(isotropic=True, whitening=w)) for w in kinds}
    for leg in (0, 1):
        small(rel(out["pre"][leg], out["none"][leg]), "isotropic: pre = none per head")
        small(rel(out["both"][leg], out["post"][leg]), "isotropic: both = post per head")
        small(rel(out["none"][leg], opt.msign((ua, ub)[leg], "svd")), "none = per-head Muon")
    h = {w: opt.pair_direction(a, b, ua, ub, exact(circuit="ov", isotropic=True, whitening=w))[0]
         for w in kinds}
    large(rel(h["both"], h["post"]), "hybrid O: isotropic both differs from post", 1e-2)
    small(rel(h["none"].reshape(16, 16), opt.msign(ua.reshape(16, 16), "svd")),
          "hybrid none = full-matrix Muon on O")
    w, m = normal((12, 16)), np.zeros((12, 16))
    g = normal((12, 16))
    o = exact(whitening="none", mp=2.0)
    got = opt.cm_qk(w, normal((12, 16)), m, m, g, g, 3, 3, 0.1, o)[0]
    small(rel(got, opt.muon_head(w, m, g, 3, 0.1, form="sum", nesterov=False, table="svd",
                                 scale="none")[0]), "cm with whitening none and mp 2 is muon_head")
    big = opt.pair_direction(a, b, ua, ub, exact(damping=1e10))
    small(rel(1e5 * big[0], opt.msign(ua, "svd")), "damping to infinity: per-head Muon", 1e-6)
    db = opt.pair_direction(0 * a, b, 0 * ua, ub, exact(circuit="ov", damping=0.01))[1]
    small(rel(db, 10 * opt.msign(ub, "svd")), "W_O = 0: dV = msign(U)/sqrt(damping)")
    one = [x[:1] for x in (a, b, ua, ub)]
    small(rel(opt.pair_direction(*one, exact(circuit="ov"))[0],
              opt.pair_direction(*one, exact(circuit="ov", hybrid=False))[0]),
          "one head: hybrid = per head")
    o = exact(circuit="ov", damping=0.3, damping_form="relative", whiten_power=1.5)
    small(rel(opt.pair_direction(0 * a, b, 0 * ua, ub, o)[1], 0.01**-0.75 * opt.msign(ub, "svd")),
          "W_O = 0, relative damping: dV = 0.01^(-A/2) msign(U)")
    for group, whole in ((1, False), (4, True)):
        da, db = opt.pair_direction(a, b, ua, ub, exact(whiten_power=0, head_group=group))
        for x, u in ((da, ua), (db, ub)):
            small(rel(x, opt.msign(u.reshape(-1, u.shape[2]), "svd").reshape(u.shape) if whole else
                      opt.msign(u, "svd")), f"power 0, groups of {group}: Muon")
    for power in (0.5, 1, 1.3):
        for iso in (False, True):
            o = exact(whiten_power=power, isotropic=iso, damping_form="relative", damping=0.1)
            da, db = opt.pair_direction(a, b, ua, ub, o)
            sa, sb = opt.pair_direction(3 * a, 5 * b, ua, ub, o)
            small(max(rel(sa, 5.0**-power * da), rel(sb, 3.0**-power * db)),
                  f"relative damping, power {power}: a partner s times as large, a step s^-A")
    large(rel(opt.pair_direction(a, 5 * b, ua, ub, exact(damping=0.1))[0],
              opt.pair_direction(a, b, ua, ub, exact(damping=0.1))[0] / 5),
          "absolute damping has a scale")
    gram = a @ opt.transpose(a)
    half, full = (opt.whitener(gram, exact(whiten_power=p)) for p in (0.5, 1))
    small(rel(half @ half, full), "C^-1/2 C^-1/2 = C^-1")
    # GQA with repeated kv heads: the query side sees no difference
    a, b, ua, ub = pair(4, 2)
    da = opt.pair_direction(a, b, ua, ub, exact(damping=0.1))[0]
    rb, rub = opt.group_repeat(b, 4), opt.group_repeat(ub, 4)
    small(rel(opt.pair_direction(a, rb, ua, rub, exact(damping=0.1))[0], da), "GQA: query side")
    small(max(rel(x, y) for x, y in zip(
        opt.pair_direction(a, rb, ua, rub, exact()),
        opt.pair_direction(a, rb, ua, rub, exact(shared_div="group")))), "G = 1 is the MHA rule")
    w = {n: normal((r, 16)) for n, r in (("q", 16), ("k", 8))}
    zero = {n: np.zeros_like(x) for n, x in w.items()}
    step = {s: opt.cm_qk(w["q"], w["k"], zero["q"], zero["k"], w["q"], w["k"], 4, 2, 0.1,
                         exact(shared_div=s)) for s in ("1", "group")}
    small(rel(step["1"][1] - w["k"], 2 * (step["group"][1] - w["k"])), "shared_div halves K at G=2")
    small(rel(step["1"][0], step["group"][0]), "shared_div leaves Q alone")
    # connections
    a, b, ua, ub = pair()
    fa = 2.0 * np.linalg.qr(normal((4, 16, 4)))[0].transpose(0, 2, 1)
    da, db = normal(a.shape), normal(b.shape)
    trace_part = opt.gauge_fix(fa, flat, da, db, "frobenius_scalar")
    s = opt.trace(fa @ transpose(da) - db @ transpose(flat)) / (4 * 13.0)
    small(rel(trace_part[0], da - s * fa), "isotropic Grams: scalar = trace part of the matrix")
    a1, b1, ua1, ub1 = pair(k=1)
    for scalar, matrix in (("frobenius_scalar", "frobenius"),
                           ("scale_aware_scalar", "scale_aware"),
                           ("scale_aware_scalar", "scale_aware_sylv")):
        small(max(rel(x, y) for x, y in zip(opt.gauge_fix(a1, b1, ua1, ub1, scalar),
                                            opt.gauge_fix(a1, b1, ua1, ub1, matrix))),
              f"k = 1: {scalar} = {matrix}")


def check_scale_and_permutation():
    a, b, ua, ub = pair()
    for hybrid, circuit in ((False, "qk"), (True, "ov")):
        o = exact(circuit=circuit, hybrid=hybrid, damping=0.1)
        da, db = opt.pair_direction(a, b, ua, ub, o)
        da2, db2 = opt.pair_direction(a, b, 5 * ua, 0.1 * ub, o)
        small(rel(da2, da) + rel(db2, db), f"{circuit} half_split: gradient scale per leg")
        perm = [2, 0, 3, 1]
        da2, db2 = opt.pair_direction(a[perm], b[perm], ua[perm], ub[perm], o)
        small(rel(da2, da[perm]) + rel(db2, db[perm]), f"{circuit}: head permutation")
        da2, db2 = opt.pair_direction(0.3 * a, b, ua, ub, o)
        small(rel(da2, da), f"{circuit}: the A leg ignores its own weight")
        da2, db2 = opt.pair_direction(a, 0.3 * b, ua, ub, o)
        small(rel(db2, db), f"{circuit}: the B leg ignores its own weight")
        other = ua.copy(), ub.copy()
        other[0][1], other[1][1] = normal(ua[1].shape), normal(ub[1].shape)
        da2, db2 = opt.pair_direction(a, b, *other, o)
        small(rel(db2[0], db[0]), f"{circuit}: B leg is head local")
        (large if hybrid else small)(rel(da2[0], da[0]),
                                     f"{circuit}: A leg head local iff not hybrid")
    j = exact(method="joint", damping=0.1)
    da, _ = opt.pair_direction(a, b, ua, ub, j)
    small(rel(opt.pair_direction(a, b, 5 * ua, 5 * ub, j)[0], da), "joint: common scale")
    large(rel(opt.pair_direction(a, b, 5 * ua, 0.1 * ub, j)[0], da), "joint: not per leg", 0.1)
    r = exact(per_mat_renorm=True)
    da, db = opt.pair_direction(a, b, ua, ub, r)
    small(abs(np.linalg.norm(da) - 4) + abs(np.linalg.norm(db) - 4), "renorm: leg norm sqrt(Hk)")
    da0, _ = opt.pair_direction(a, b, ua, ub, exact())
    small(rel(da / np.linalg.norm(da), da0 / np.linalg.norm(da0)), "renorm: same direction")
    small(rel(opt.pair_direction(3 * a, 7 * b, ua, ub, r)[0], da), "renorm: no partner scale")
    w = normal((12, 16)), normal((12, 16))
    z = np.zeros((12, 16))
    out = opt.cm_qk(*w, z, z, z, z, 3, 3, 0.1, CM())
    check(np.array_equal(out[0], w[0]) and np.array_equal(out[1], w[1]), "zero gradient: no change")
    for bad in (np.nan, np.inf):
        g = normal((12, 16))
        g[3, 3] = bad
        try:
            opt.cm_qk(*w, z, z, g, z, 3, 3, 0.1, CM())
            check(False, "non-finite input is refused")
        except ValueError:
            check(True, "")


def check_optimality():
    a, b, ua, ub = pair()
    da, _ = opt.pair_direction(a, b, ua, ub, exact())
    for h in range(4):
        c_inv = opt.inv_root(b[h] @ b[h].T, "eigh")
        best = (ua[h] * da[h]).sum()
        nuclear = np.linalg.svd(c_inv @ ua[h], compute_uv=False).sum()
        small(abs(best - nuclear) / nuclear, "descent equals the nuclear norm")
        for _ in range(50):
            x = c_inv @ opt.msign(c_inv @ (ua[h] + normal(ua[h].shape)), "svd")
            check((ua[h] * x).sum() <= best + 1e-9, "no feasible step descends more")


def check_gauge():
    for kv_heads in (4, 2):
        a, b, ua, ub = pair(4, kv_heads)
        for kind in CONNECTIONS:
            for damping in (0.0, 0.1):
                fa, fb = opt.gauge_fix(a, b, ua, ub, kind, damping)
                small(rel(composed(a, b, fa, fb), composed(a, b, ua, ub)),
                      f"{kind} keeps the composed step, Hkv={kv_heads}")
                large(rel(fa, ua), f"{kind} does something", 1e-4)
                ga, gb = opt.gauge_fix(a, b, fa, fb, kind, damping)
                (large if damping else small)(rel(ga, fa), f"{kind} idempotent iff undamped", 1e-9)
            s = normal((kv_heads, 4, 4)) if not kind.endswith("scalar") else \
                normal((kv_heads, 1, 1)) * np.eye(4)
            va, vb = transpose(opt.group_repeat(s, 4)) @ a, -s @ b
            va, vb = opt.gauge_fix(a, b, va, vb, kind)
            small(np.abs(va).max() + np.abs(vb).max(), f"{kind} annihilates vertical vectors", 1e-8)
        fa, fb = opt.gauge_fix(a, b, ua, ub, "frobenius")
        small(rel(opt.group_sum(a @ transpose(fa), kv_heads), fb @ transpose(b)),
              "frobenius is horizontal: A^T dA = dB^T B")
        size = (fa**2).sum() + (fb**2).sum()
        for _ in range(20):
            s = 0.1 * normal((kv_heads, 4, 4))
            xa, xb = fa + transpose(opt.group_repeat(s, 4)) @ a, fb - s @ b
            check((xa**2).sum() + (xb**2).sum() > size, "frobenius is the smallest representative")
        eta = 1e-5
        moment = lambda p, q: opt.group_sum(p @ transpose(p), kv_heads) - q @ transpose(q)
        small(np.abs(moment(a - eta * fa, b - eta * fb) - moment(a, b)).max(),
              "frobenius conserves A^T A - B^T B to second order", 1e-6)
        xa, xb = opt.gauge_fix(a, b, ua, ub, "frobenius_scalar")
        small(np.abs(opt.trace(moment(a - eta * xa, b - eta * xb) - moment(a, b))).max(),
              "frobenius_scalar conserves the trace gap", 1e-6)
        xa, xb = opt.gauge_fix(a, b, ua, ub, "scale_aware_scalar")
        gap = lambda p, q: np.log(opt.group_sum((p**2).sum(axis=(1, 2)), kv_heads)
                                  / (q**2).sum(axis=(1, 2)))
        small(np.abs(gap(a - eta * xa, b - eta * xb) - gap(a, b)).max(),
              "scale_aware_scalar conserves the norm ratio", 1e-7)
        # a gradient of a function of the composed maps is horizontal; reprojection leaves it alone
        dm = normal((4, 16, 16))
        ga = opt.group_repeat(b, 4) @ transpose(dm)
        gb = opt.group_sum(a @ dm, kv_heads)
        fa2, fb2 = opt.gauge_fix(a, b, ga, gb, "frobenius")
        small(rel(fa2, ga) + rel(fb2, gb), "true gradients are horizontal")
        small(abs(((ua - fa) * ga).sum() + ((ub - fb) * gb).sum()) / np.linalg.norm(ga),
              "reprojection keeps the product with horizontal vectors")


def check_momentum_reproject():
    w = normal((12, 16)), normal((12, 16))
    for nesterov in (False, True):
        out = {}
        for kind in ("0", "copy", "write_back"):
            s = [*w, 0 * w[0], 0 * w[1]]
            g = np.random.default_rng(1)
            for _ in range(3):
                s = opt.cm_qk(*s, g.standard_normal((12, 16)), g.standard_normal((12, 16)), 3, 3,
                              0.1, CM(momentum_reproject=kind, nesterov=nesterov))
            out[kind] = s
        small(rel(out["copy"][2], out["0"][2]), "copy leaves the buffers alone")
        large(rel(out["copy"][0], out["0"][0]), "copy changes the step")
        large(rel(out["write_back"][2], out["0"][2]), "write_back changes the buffers")


def check_controls():
    w, g = normal((24, 8)), normal((24, 8))
    z = np.zeros_like(w)
    # NorMuon
    o = w - opt.normuon(w, z, np.zeros((24, 1)), g, 1.0, table="svd", scale="none")[0]
    rows = np.linalg.norm(o, axis=1)
    small(np.ptp(rows), "NorMuon: first step has equal row norms", 1e-7)
    small(abs(np.linalg.norm(o) - np.sqrt(8)), "NorMuon: norm of the sign is kept")
    # Moonlight
    for shape in ((24, 8), (8, 24), (16, 16)):
        x = normal(shape)
        step = x - opt.moonlight(x, 0 * x, normal(shape), 1.0, wd=0.0, table="svd")[0]
        small(abs(np.sqrt((step**2).mean()) - 0.2), "Moonlight: RMS of the step is 0.2")
    # Aurora
    scales = np.exp(normal((24, 1)))
    d = opt.aurora_direction(g, "svd")
    small(rel(opt.aurora_direction(scales * g, "svd"), d), "Aurora ignores row scales (tall)")
    small(rel(opt.aurora_direction(g.T, "svd"), d.T), "Aurora: transpose equivariant")
    small(rel(d.T @ d, np.eye(8)), "Aurora is semi-orthogonal")
    spread = lambda x: np.ptp(np.linalg.norm(x, axis=1))
    check(spread(d) < 0.5 * spread(opt.msign(scales * g, "svd")), "Aurora evens out the rows")
    x = normal((8, 8))
    small(rel(opt.aurora_direction(x, "svd"), opt.msign(x, "svd")), "square Aurora = msign")
    # MuonH
    radius = np.linalg.norm(w)
    h = w
    m = z
    for _ in range(4):
        h, m = opt.muonh(h, m, normal(w.shape), 0.02, radius)
    small(abs(np.linalg.norm(h) - radius), "MuonH keeps the norm")
    first = opt.muonh(w, z, g, 1e-4, radius)[0]
    check(np.linalg.norm(first - w) / radius <= 1.0001e-4, "MuonH: relative step is at most lr")
    # Muon equivariance under O(m) x O(n)
    u, v = np.linalg.qr(normal((24, 24)))[0], np.linalg.qr(normal((8, 8)))[0]
    for name in ("svd", *opt.MSIGN):
        small(rel(opt.muon_direction(u @ g @ v, name), u @ opt.muon_direction(g, name) @ v),
              f"Muon {name}: left and right orthogonal equivariance")
    # Circuit-Muon
    a, b, ua, ub = pair()
    ua, ub = opt.msign(ua, "svd"), opt.msign(ub, "svd")
    wo, uo = opt.from_col_heads(a), opt.from_col_heads(ua)
    wv, uv = opt.from_row_heads(b), opt.from_row_heads(ub)
    for damping in (0.0, 0.3):
        cv, co = opt.circuit_muon(wv, wo, uv, uo, 4, damping)
        da, db = opt.pair_direction(a, b, ua, ub, exact(
            circuit="ov", hybrid=False, isotropic=True, whitening="post", per_mat_renorm=True,
            connection="frobenius_scalar", damping=damping))
        small(rel(opt.col_heads(co, 4), da) + rel(opt.row_heads(cv, 4), db),
              "Circuit-Muon = isotropic CM, post, renorm, frobenius_scalar")
        gap = np.abs((opt.row_heads(wv, 4) * opt.row_heads(cv, 4)).sum(axis=(1, 2)) -
                     (opt.col_heads(wo, 4) * opt.col_heads(co, 4)).sum(axis=(1, 2))).max()
        (large if damping else small)(gap, "Circuit-Muon: radial products agree iff undamped", 1e-9)
    flat_v = opt.from_row_heads(opt.msign(b, "svd"))
    flat_o = opt.from_col_heads(opt.msign(a, "svd"))
    cv, co = opt.circuit_muon(flat_v, flat_o, uv, uo, 4)
    x = opt.col_heads(co, 4) - ua
    small(rel(x / opt.col_heads(flat_o, 4), np.broadcast_to(
        (x / opt.col_heads(flat_o, 4)).mean(axis=(1, 2), keepdims=True), x.shape)),
        "Circuit-Muon: equal head norms leave the radial exchange only")
    # Partner-rescaled AdamW
    da, db = opt.partner_adam_pair(a, b, ua, ub, 0.0)
    small(abs(np.linalg.norm(da) - np.linalg.norm(ua)), "partner AdamW keeps the leg norm")
    b2 = b.copy()
    b2[1] *= 2
    raw, raw2 = (opt.partner_adam_pair(a, x, ua, ub, 0.0, renorm=False)[0] for x in (b, b2))
    small(rel(raw2[1], raw[1] / 2) + rel(raw2[0], raw[0]), "partner AdamW: 2x partner, half step")
    # QuacK
    wq, wk, gq, gk = (normal(s) for s in ((16, 16), (8, 16), (16, 16), (8, 16)))
    start = opt.quack_norms(wq, wk, 4, 2)
    plain = opt.muon(wq, 0 * wq, gq, 0.1)[0]
    q, k, _, _ = opt.quack(wq, wk, 0 * wq, 0 * wk, gq, gk, start, 4, 2, 0.1)
    small(rel(q, plain), "QuacK at the start is Muon")
    wk2 = wk.copy()
    wk2[:4] *= 3
    q2 = opt.quack(wq, wk2, 0 * wq, 0 * wk, gq, gk, start, 4, 2, 0.1)[0]
    small(rel((q2 - wq)[:8], (q - wq)[:8] / 3) + rel((q2 - wq)[8:], (q - wq)[8:]),
          "QuacK: a kv head 3x as large divides the rate of its query heads only")


def main():
    for f in (check_msign, check_inv_root, check_momentum, check_bounds, check_equivariance,
              check_reductions, check_scale_and_permutation, check_optimality, check_gauge,
              check_momentum_reproject, check_controls):
        f()
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or not passed else 0
