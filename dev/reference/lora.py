"""The rules for the factors of a product W = W_pre + s A B^T in NumPy, in the orientation of the papers:
A (m, r), B (n, r), g_A = s G B, g_B = s G^T A for the gradient G of W (m, n). Written apart from
optimizers.py, with tables, signs and roots of its own.

References: LoRA-Muon (arXiv 2606.12921), LoRA-RITE (arXiv 2410.20625), Spectron (arXiv 2602.12429).

A rule is a function step(state, g_a, g_b, o) -> state, whose states are dicts with a, b, the step t and
what the rule keeps. o is a dict of options. Arithmetic has the dtype of a.
"""

import numpy as np

SIGN = {
    "pe8-lora": [(7.2086, -15.5131, 9.0178), (3.9623, -2.5813, 0.4542), (3.9466, -2.5765, 0.4544),
                 (3.8991, -2.5671, 0.4566), (3.7186, -2.5308, 0.4653), (3.1390, -2.3073, 0.4733),
                 (2.1715, -1.5246, 0.3885), (1.8648, -1.2224, 0.3577)],
    "quintic5": [(3.4445, -4.7750, 2.0315)] * 5,
}
PE7 = [(7.424865680309214, -18.39581635618996, 12.896720413604342),
       (3.4877256051546017, -2.3300436563986993, 0.4404692168431095),
       (2.7766085124882527, -2.070643152532662, 0.46302261050004967),
       (1.9913142104341506, -1.373936700681269, 0.3875934979568538),
       (1.8754637749479246, -1.2505152090010534, 0.37505152463617264),
       (1.874999066623701, -1.2499981332141676, 0.37499906659046633), (1.875, -1.25, 0.375)]


def sign(x, o):
    """By the table of o, or, where it is none of SIGN, exactly."""
    if o["msign"] not in SIGN:
        u, s, vt = np.linalg.svd(x, full_matrices=False)
        return (u * (s > 1e-12 * s.max())) @ vt
    x = x / (np.linalg.norm(x) or 1)
    for a, b, c in SIGN[o["msign"]]:  # on the right, whichever side is longer
        gram = x.T @ x
        x = a * x + x @ (b * gram + c * gram @ gram)
    return x


def inverse_root(p, o):
    eye = np.eye(len(p), dtype=p.dtype)
    if o["inv_root"] == "eigh":
        values, vectors = np.linalg.eigh(p)
        return vectors @ np.diag(values ** -0.5) @ vectors.T
    t = np.linalg.norm(p)
    p, x, g = p / t + 1e-5 * eye, eye, 1.001
    for a, b, c in PE7:
        s = a / g * eye + b / g**3 * p + c / g**5 * p @ p
        x, p = x @ s, p @ s @ s
        p = (p + p.T) / 2
    return x / np.sqrt(t)


def spectral_norm(w, u, steps):
    """Of w with at least as many rows as columns. Returns the norm and the next u."""
    for _ in range(steps):
        v = w.T @ u
        u = w @ (v / np.linalg.norm(v))
        norm = np.linalg.norm(u)
        u = u / norm
    return norm, u


def rows_of(w):
    u = np.linalg.norm(w, axis=1)
    return u / (np.linalg.norm(u) or 1)


def begin(a, b):
    return {"a": a, "b": b, "m_a": np.zeros_like(a), "m_b": np.zeros_like(b), "t": 0}


def rebalance(s, g_a, g_b, o):
    """Factors, momenta and gradients in the gauge in which the norms are nearer."""
    if not o["lora_rebalance"]:
        return s, g_a, g_b
    norm_a, norm_b = (spectral_norm(s[k], rows_of(s[k]), 2)[0] for k in "ab")
    c = (norm_b / norm_a) ** (o["lora_rebalance"] / 2)
    s = {**s, "a": c * s["a"], "b": s["b"] / c, "m_a": s["m_a"] / c, "m_b": c * s["m_b"]}
    return s, g_a / c, g_b * c


def momentum(m, g, o):
    beta = o["momentum"]
    m = beta * m + (1 - beta) * g
    return m, (beta * m + (1 - beta) * g if o["nesterov"] else m)


def floor(own, partner, reach, o):
    """What is added to the Gram of `partner`, by which the step of `own` is whitened."""
    x, y = (np.sum(w * w) / w.shape[1] for w in (own, partner))
    if not o["cold"] or not o["lora_trust"] or x == 0:
        return 0.0
    return max(0.0, min((reach / o["lora_trust"]) ** 2 / x, x) - y)


def lora_muon(s, g_a, g_b, o):
    s, g_a, g_b = rebalance(s, g_a, g_b, o)
    a, b, half, eye = s["a"], s["b"], o["lr"] / o["s"] / 2, np.eye(s["a"].shape[1])
    r_a = inverse_root(a.T @ a + floor(b, a, half, o) * eye, o).astype(a.dtype)
    r_b = inverse_root(b.T @ b + floor(a, b, half, o) * eye, o).astype(a.dtype)
    m_a, u_a = momentum(s["m_a"], g_a, o)
    m_b, u_b = momentum(s["m_b"], g_b, o)
    keep = np.sqrt(1 - o["lr"] * o["weight_decay"])
    return {**s, "m_a": m_a, "m_b": m_b, "t": s["t"] + 1,
            "a": keep * a - half / keep * sign(u_a @ r_b, o) @ r_b,
            "b": keep * b - half / keep * sign(u_b @ r_a, o) @ r_a}


def basis(w, delta):
    """Q and R of the thin QR of w, or of w on top of sqrt(delta) I."""
    return np.linalg.qr(np.vstack([w, np.sqrt(delta) * np.eye(w.shape[1], dtype=w.dtype)]))


def lora_rite_core(s, g_a, g_b, o):
    a, b, half = s["a"], s["b"], o["lr"] / o["s"] / 2
    r_a, r_b = basis(a, floor(b, a, half, o))[1], basis(b, floor(a, b, half, o))[1]
    m_a, u_a = momentum(s["m_a"], g_a, o)
    m_b, u_b = momentum(s["m_b"], g_b, o)
    keep = np.sqrt(1 - o["lr"] * o["weight_decay"])
    inv_a, inv_b = np.linalg.inv(r_a), np.linalg.inv(r_b)
    return {**s, "m_a": m_a, "m_b": m_b, "t": s["t"] + 1,
            "a": keep * a - half / keep * sign(u_a @ inv_b, o) @ inv_b.T,
            "b": keep * b - half / keep * sign(u_b @ inv_a, o) @ inv_a.T}


def rite_leg(s, leg, g, partner, delta, o):
    """The step of one factor, and what it keeps: basis u, second moment v, first moment w, escaped rho."""
    rows, r = g.shape
    t, old = s["t"] + 1, s.get(leg)
    u, tri = basis(partner, delta)
    old = old or {"u": u, "v": np.zeros((r, r), g.dtype), "w": np.zeros_like(g), "rho": 0.0}
    b1, b2 = (x * (1 - x ** (t - 1)) / (1 - x ** t) for x in (o["beta1"], o["beta2"]))
    turn, inverse = u.T @ old["u"], np.linalg.inv(tri)
    plain, moved = g @ inverse, turn @ old["v"] @ turn.T
    rho = 0.0
    if o["rite_escape"]:
        before, after = np.linalg.eigvalsh(old["v"]), np.linalg.eigvalsh(moved)
        rho = b2 * (old["rho"] + max(0, min(before[-1] - after[-1], before.sum() - after.sum())))
    v = b2 * moved + (1 - b2) * plain.T @ plain / rows
    values, vectors = np.linalg.eigh(v + (rho + 1e-6 * np.linalg.norm(v)) * np.eye(r, dtype=g.dtype))
    w = b1 * old["w"] @ turn.T + (1 - b1) * plain @ (vectors / np.sqrt(values)) @ vectors.T
    return o["lr"] / o["s"] * w @ inverse.T, {"u": u, "v": v, "w": w, "rho": rho}


def lora_rite(s, g_a, g_b, o):
    a, b, rate = s["a"], s["b"], o["lr"] / o["s"]
    keep = 1 - o["lr"] * o["weight_decay"]
    d_a, leg_a = rite_leg(s, "leg_a", g_a, b, floor(a, b, rate * len(a) ** 0.5, o), o)
    d_b, leg_b = rite_leg(s, "leg_b", g_b, a, floor(b, a, rate * len(b) ** 0.5, o), o)
    return {**s, "a": keep * a - d_a, "b": keep * b - d_b, "t": s["t"] + 1, "leg_a": leg_a,
            "leg_b": leg_b}


def spectron(s, g_a, g_b, o):
    s, g_a, g_b = rebalance(s, g_a, g_b, o)
    a, b = s["a"], s["b"]
    sigma_a, u_a = spectral_norm(a, s.get("u_a", rows_of(a)), 1)
    sigma_b, u_b = spectral_norm(b, s.get("u_b", rows_of(b)), 1)
    m_a, x_a = momentum(s["m_a"], g_a, o)
    m_b, x_b = momentum(s["m_b"], g_b, o)
    rho = o["lr"] / o["s"] / (sigma_a + sigma_b + 1)
    keep = 1 - o["lr"] * o["weight_decay"]
    return {**s, "a": keep * a - rho * sign(x_a, o), "b": keep * b - rho * sign(x_b, o), "m_a": m_a,
            "m_b": m_b, "u_a": u_a, "u_b": u_b, "t": s["t"] + 1}


def cm(s, g_a, g_b, o):
    """Compositional Muon with one head as wide as the rank: the half split, or one sign of both legs."""
    s, g_a, g_b = rebalance(s, g_a, g_b, o)
    a, b, rate, eye = s["a"], s["b"], o["lr"] / o["s"], np.eye(s["a"].shape[1], dtype=s["a"].dtype)
    c_a = inverse_root(a.T @ a + o["damping"] * eye, o)
    c_b = inverse_root(b.T @ b + o["damping"] * eye, o)
    m_a, u_a = momentum(s["m_a"], g_a, o)
    m_b, u_b = momentum(s["m_b"], g_b, o)
    if o["method"] == "joint":
        both = sign(np.vstack([u_a @ c_b, u_b @ c_a]), o)
        d_a, d_b = both[:len(a)] @ c_b, both[len(a):] @ c_a
    else:
        rate /= 2
        d_a, d_b = sign(u_a @ c_b, o) @ c_b, sign(u_b @ c_a, o) @ c_a
    keep = 1 - o["lr"] * o["weight_decay"]
    return {**s, "a": keep * a - rate * d_a, "b": keep * b - rate * d_b, "m_a": m_a, "m_b": m_b,
            "t": s["t"] + 1}


RULES = {"lora-muon": lora_muon, "lora-rite": lora_rite, "lora-rite-core": lora_rite_core,
         "spectron": spectron, "cm": cm}
