"""The optimizers of this project in NumPy, written for clarity.

Every rule is one function in the storage orientation of nn.Linear: a weight is (rows = outputs,
cols = inputs), y = x W^T. Attention weights are wq (H*k, d), wk and wv (Hkv*k, d) with heads on the
rows, and wo (d, H*k) with heads on the columns; query head h reads key/value head h // (H/Hkv).
Functions take the state and return the new state, and change nothing in place. Arithmetic has the
dtype of the weights: float64 for the fixtures, float32 to show the cost of rounding.

    python dev/reference/optimizers.py        checks the mathematical properties below in float64

References: Muon (Jordan et al. 2024), Polar Express (arXiv 2505.16932), CANS (arXiv 2506.10935),
Compositional Muon (Keigwin et al., "Towards Compositional Steepest Descent", 2026), NorMuon (arXiv
2510.05491), Aurora (arXiv 2606.27715), Hyperball (arXiv 2606.16899), Moonlight (arXiv 2502.16982),
QuacK (arXiv 2511.21377), AdamW (arXiv 1711.05101).
"""

from dataclasses import dataclass, replace

import numpy as np

# ---------------------------------------------------------------------------------------------
# Spectral sign: msign(X) = U V^T of the thin SVD X = U S V^T


MSIGN = {  # one odd quintic X <- aX + (bA + cA^2)X, A = XX^T, per row
    "pe8": [  # Polar Express for s >= 1e-3 with its safety factor, to four decimals
        (8.2051, -22.9019, 16.4607), (4.0664, -2.8612, 0.5184), (3.9096, -2.8234, 0.5250),
        (3.2856, -2.4153, 0.4853), (2.2779, -1.6198, 0.3985), (1.8726, -1.2307, 0.3585),
        (1.8564, -1.2132, 0.3568), (1.8750, -1.2500, 0.3750)],
    "quintic5": [(3.4445, -4.7750, 2.0315)] * 5,  # Keller Jordan's
    "quintic5_nv": [(4.0848, -6.8946, 2.9270), (3.9505, -6.3029, 2.6377), (3.7418, -5.5913, 2.3037),
                    (2.8769, -3.1427, 1.2046), (2.8366, -3.0525, 1.2012)],
    "simple12": [(2.0, -1.5, 0.5)] * 12,
}


def transpose(x):
    return np.swapaxes(x, -1, -2)


def norm(x):
    """Frobenius norm of each matrix of a batch, kept as (..., 1, 1)."""
    return np.sqrt((x * x).sum(axis=(-2, -1), keepdims=True))


def msign(x, method="pe8"):
    """Spectral sign of every matrix of a batch (..., m, n), by "svd" or a table of MSIGN."""
    if method == "svd":
        u, s, vt = np.linalg.svd(x, full_matrices=False)
        kept = s > 1e-13 * s.max(axis=-1, keepdims=True)  # msign(0) = 0
        return (u * kept[..., None, :].astype(x.dtype)) @ vt
    if x.shape[-2] > x.shape[-1]:
        return transpose(msign(transpose(x), method))
    size = norm(x)
    x = x / np.where(size > 0, size, 1)
    for a, b, c in MSIGN[method]:
        gram = x @ transpose(x)
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x


# ---------------------------------------------------------------------------------------------
# Inverse square root of a symmetric positive definite matrix

CANS = [(5.182503604966906, -5.178098480082684), (2.586120737395915, -0.6479542005271643),
        (2.567364126726186, -0.6454968804392178), (2.520560084348265, -0.6393528082067044),
        (2.410759275435182, -0.6248683598710716), (2.1883348130094173, -0.5952022073798908),
        (1.8595760874873613, -0.5504490972723968), (1.589020160467417, -0.5126569802066718),
        (1.5051653981684994, -0.5007377068751799)]
INV_ROOT_STEPS = {"cans25": 25, "cans12": 12}  # nine tuned steps, then Newton-Schulz (1.5, -0.5)


def symmetrize(x):
    return 0.5 * (x + transpose(x))


def inv_root(w, method="cans25", power=1.0):
    """W^(-power/2) of every symmetric k x k matrix of a batch; damping is already in W.

    The iteration is for power 1 only; other powers are always taken of the eigenvalues.
    """
    if method == "eigh" or power != 1:
        values, vectors = np.linalg.eigh(w)
        roots = np.maximum(values, 1e-30) ** (-0.5 * power)
        return (vectors * roots[..., None, :]) @ transpose(vectors)
    scale = (1.0 - 1e-3) / np.maximum(norm(w), 1e-8)
    y = scale * w
    z = np.broadcast_to(np.eye(w.shape[-1], dtype=w.dtype), w.shape)
    for step in range(INV_ROOT_STEPS[method]):
        a, b = CANS[step] if step < len(CANS) else (1.5, -0.5)
        p = z @ y
        y, z = symmetrize(a * y + b * (y @ p)), symmetrize(a * z + b * (p @ z))
    return z * np.sqrt(scale)


# ---------------------------------------------------------------------------------------------
# Momentum and AdamW


def momentum_step(m, g, beta, form, nesterov):
    """New buffer m and the update source u. "sum": m = bm + g; "ema": m = bm + (1-b)g."""
    share = {"sum": 1.0, "ema": 1.0 - beta}[form]
    m = beta * m + share * g
    return m, (beta * m + share * g if nesterov else m)


def adam_direction(m, v, g, step, beta1=0.9, beta2=0.95, eps=1e-8):
    """Bias-corrected Adam; step counts from 1. Returns m, v and the direction."""
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    return m, v, (m / (1 - beta1**step)) / (np.sqrt(v) / (1 - beta2**step) ** 0.5 + eps)


def adamw(w, m, v, g, step, lr, wd=0.0, beta1=0.9, beta2=0.95, eps=1e-8):
    m, v, u = adam_direction(m, v, g, step, beta1, beta2, eps)
    return (1 - lr * wd) * w - lr * u, m, v


# ---------------------------------------------------------------------------------------------
# Muon and its relatives, on one matrix


def shape_scale(rows, cols, kind):
    return {"spectral": max(1.0, rows / cols) ** 0.5, "rms": 0.2 * max(rows, cols) ** 0.5,
            "none": 1.0}[kind]


def split(w, parts, axis):
    """(parts, rows, cols): a matrix cut into equal blocks of rows (axis 0) or columns (axis 1)."""
    return np.stack(np.split(w, parts, axis=axis))


def join(blocks, axis):
    return np.concatenate(list(blocks), axis=axis)


def muon_direction(u, table="pe8", scale="spectral", parts=1, axis=0):
    """msign times the shape factor, for each of `parts` independent blocks of u.

    parts = 2 is a swiglu gate/up matrix; parts = H is per-head Muon (axis 1 for wo).
    """
    blocks = split(u, parts, axis)
    return join(msign(blocks, table) * shape_scale(*blocks.shape[1:], scale), axis)


def muon(w, m, g, lr, wd=0.0, beta=0.95, form="ema", nesterov=True, table="pe8", scale="spectral",
         parts=1, axis=0):
    m, u = momentum_step(m, g, beta, form, nesterov)
    return (1 - lr * wd) * w - lr * muon_direction(u, table, scale, parts, axis), m


def muon_head(w, m, g, heads, lr, axis=0, **options):
    """One sign per head: heads are row blocks (wq, wk, wv) or column blocks (wo, axis=1)."""
    return muon(w, m, g, lr, parts=heads, axis=axis, **options)


def moonlight(w, m, g, lr, wd=0.1, beta=0.95, table="quintic5"):
    """Heavy ball with Nesterov; the step has RMS 0.2 whatever the shape."""
    return muon(w, m, g, lr, wd, beta, form="sum", nesterov=True, table=table, scale="rms")


def normuon(w, m, v, g, lr, wd=0.0, beta=0.95, beta2=0.95, eps=1e-10, nesterov=True, form="ema",
            table="pe8", scale="spectral"):
    """Muon whose rows are divided by a running RMS v (rows, 1), at an unchanged total norm."""
    m, u = momentum_step(m, g, beta, form, nesterov)
    o = msign(u, table)
    v = beta2 * v + (1 - beta2) * (o * o).mean(axis=1, keepdims=True)
    even = o / (np.sqrt(v) + eps)
    even = even * (norm(o) / np.maximum(norm(even), 1e-12))
    return (1 - lr * wd) * w - lr * shape_scale(*w.shape, scale) * even, m, v


def aurora_direction(u, table="simple12", iterations=2, power=0.5):
    """A polar factor whose rows (of the tall orientation) have nearly equal norms."""
    rows, cols = u.shape
    if rows == cols:
        return msign(u, table)
    if rows < cols:
        return aurora_direction(u.T, table, iterations, power).T
    d = 1.0 / np.maximum(np.sqrt((u * u).sum(axis=1, keepdims=True)), 1e-7)
    for i in range(iterations):
        o = msign(d * u, table)
        if i < iterations - 1:
            d = d * ((cols / rows) / np.maximum((o * o).sum(axis=1, keepdims=True), 1e-14)) ** power
    return o


def aurora(w, m, g, lr, wd=0.0, beta=0.95, form="ema", nesterov=True, table="simple12",
           scale="spectral", iterations=2, power=0.5):
    m, u = momentum_step(m, g, beta, form, nesterov)
    o = aurora_direction(u, table, iterations, power)
    return (1 - lr * wd) * w - lr * shape_scale(*w.shape, scale) * o, m


def muonh(w, m, g, lr, radius, beta=0.95, form="ema", nesterov=True, table="pe8"):
    """Hyperball: a relative step lr on the sphere ||W||_F = radius (the norm at the start)."""
    m, u = momentum_step(m, g, beta, form, nesterov)
    o = msign(u, table)
    moved = w - lr * radius * o / np.maximum(norm(o), 1e-10)
    return moved * (radius / norm(moved)), m


# ---------------------------------------------------------------------------------------------
# Compositional Muon on a pair of factors
#
# Both circuits of attention run the same pair routine on head blocks (heads, k, d):
#     QK: a = wq, b = wk.   OV: a = wo transposed, b = wv.
# a has H blocks, one per query head; b has Hkv, each shared by a group of G = H/Hkv query heads.
# The composed map of head h is M_h = a_h^T b_h (d x d); a step (da, db) moves it by
# da^T b + a^T db, and each of the two terms may use half of the budget.


@dataclass
class CM:
    circuit: str = "qk"             # qk | ov
    method: str = "half_split"      # half_split | joint
    whiten_power: float = 1.0       # A: whiten by C^-A
    head_group: int = 1             # consecutive heads that share a sign
    damping_form: str = "absolute"  # relative: damping is a share of the Gram's mean diagonal
    isotropic: bool = False         # whiten by a scalar per head instead of a k x k root
    hybrid: bool = True             # ov: one sign for the whole of wo
    whitening: str = "both"         # both | pre | post | none
    connection: str = "none"        # frobenius | scale_aware | scale_aware_sylv | frobenius_scalar
                                    # | scale_aware_scalar | none
    gauge_damping: bool = True      # damping in the Grams and traces of the connection too
    momentum_reproject: str = "0"   # 0 | copy | write_back
    per_mat_renorm: bool = False    # each leg keeps the Frobenius norm of its signs
    shared_div: str = "1"           # 1 | group: divide the shared leg by G
    momentum: float = 0.95
    momentum_form: str = "sum"
    nesterov: bool = False
    damping: float = 1e-2
    mp: float = 1.0
    wd: float = 0.0
    msign: str = "pe8"
    inv_root: str = "cans25"


def row_heads(w, heads):
    """(heads*k, d) -> (heads, k, d), for wq, wk, wv."""
    return w.reshape(heads, -1, w.shape[1])


def col_heads(w, heads):
    """(d, heads*k) -> (heads, k, d), for wo."""
    return row_heads(np.ascontiguousarray(w.T), heads)


def from_row_heads(blocks):
    return blocks.reshape(-1, blocks.shape[2])


def from_col_heads(blocks):
    return np.ascontiguousarray(from_row_heads(blocks).T)


def group_sum(x, groups):
    """(H, ...) -> (groups, ...): the sum over the query heads of each group."""
    return x.reshape(groups, -1, *x.shape[1:]).sum(axis=1)


def group_repeat(x, heads):
    return np.repeat(x, heads // len(x), axis=0)


def grams(a, b):
    """The k x k Grams per kv head: of a summed over the group, and of b."""
    return group_sum(a @ transpose(a), len(b)), b @ transpose(b)


def trace(x):
    return np.trace(x, axis1=-2, axis2=-1)[..., None, None]


def isotropic_scale(gram, damping):
    return np.maximum(trace(gram) / gram.shape[-1] + damping, 1e-12) ** -0.5


def whitener(gram, o):
    """(Gram + damping I)^(-A/2), or its isotropic form, which sees the trace only."""
    eye = np.eye(gram.shape[-1], dtype=gram.dtype)
    damping = o.damping
    if o.damping_form == "relative":  # a mean below 0.01 counts as 0.01
        mean = trace(gram) / gram.shape[-1]
        damping = damping * mean + np.maximum(0.01 - mean, 0)
    if o.isotropic:
        return isotropic_scale(gram, damping) ** o.whiten_power * eye
    return inv_root(gram + damping * eye, o.inv_root, o.whiten_power)


def head_signs(x, together, table):
    """One sign over every `together` consecutive heads of (heads, k, d), stacked."""
    heads, k, d = x.shape
    return msign(x.reshape(heads // together, together * k, d), table).reshape(x.shape)


def sylvester(p, q, m):
    """S with P S + S Q = M, P and Q symmetric positive definite."""
    pv, pu = np.linalg.eigh(p)
    qv, qu = np.linalg.eigh(q)
    return pu @ ((transpose(pu) @ m @ qu) / (pv[..., :, None] + qv[..., None, :])) @ transpose(qu)


def gauge_fix(a, b, da, db, connection, damping=0.0):
    """Removes from (da, db) the motion along the gauge orbit (a, b) -> (R^T a, R^-1 b).

    (S^T a, -S b) leaves a^T b unchanged to first order for every k x k matrix S; the connection
    says which representative is kept. The composed first order step does not change.
    """
    if connection == "none":
        return da, db
    k = b.shape[1]
    eye = np.eye(k, dtype=a.dtype)
    ga, gb = grams(a, b)
    ga, gb = ga + damping * eye, gb + damping * eye
    left = group_sum(a @ transpose(da), len(b))
    right = db @ transpose(b)
    ta, tb = trace(ga), trace(gb)
    if connection == "frobenius":
        s = sylvester(ga, gb, left - right)
    elif connection == "frobenius_scalar":
        s = trace(left - right) / (ta + tb) * eye
    elif connection == "scale_aware":
        s = 0.5 * (np.linalg.solve(ga, left) - transpose(np.linalg.solve(gb, transpose(right))))
    elif connection == "scale_aware_scalar":
        s = 0.5 * (trace(left) / ta - trace(right) / tb) * eye
    elif connection == "scale_aware_sylv":
        s = sylvester(ga / ta, gb / tb, left / ta - right / tb)
    else:
        raise ValueError(f"unknown connection {connection}")
    return da - transpose(group_repeat(s, len(a))) @ a, db + s @ b


def pair_direction(a, b, ua, ub, o):
    """The directions (da, db), to be subtracted, from update sources ua, ub. Budgets are apart."""
    heads, k, d = a.shape
    if o.method == "joint" and (heads != len(b) or o.per_mat_renorm or
                                o.head_group > 1 or (o.circuit == "ov" and o.hybrid)):
        raise ValueError("joint is defined for MHA, without per_mat_renorm, head_group and hybrid")
    gram_a, gram_b = grams(a, b)
    ca = group_repeat(whitener(gram_b, o), heads)  # each leg is whitened by its partner
    cb = whitener(gram_a, o)
    pre, post = o.whitening in ("both", "pre"), o.whitening in ("both", "post")

    xa, xb = (ca @ ua, cb @ ub) if pre else (ua, ub)
    if o.method == "joint":  # one sign of the two legs side by side, k x 2d per head
        sign = msign(np.concatenate([xa, xb], axis=2), o.msign)
        sa, sb = sign[:, :, :d], sign[:, :, d:]
    else:
        whole = o.circuit == "ov" and o.hybrid
        sa = head_signs(xa, heads if whole else o.head_group, o.msign)
        sb = head_signs(xb, o.head_group, o.msign)
    da, db = (ca @ sa, cb @ sb) if post else (sa, sb)

    if o.per_mat_renorm:
        da = da * (np.sqrt((sa * sa).sum()) / max(np.sqrt((da * da).sum()), 1e-12))
        db = db * (np.sqrt((sb * sb).sum()) / max(np.sqrt((db * db).sum()), 1e-12))
    return gauge_fix(a, b, da, db, o.connection, o.damping if o.gauge_damping else 0.0)


def cm_pair(a, b, ma, mb, ga, gb, lr, o):
    """One step of both legs, everything from the weights before the step."""
    if not all(np.isfinite(x).all() for x in (a, b, ma, mb, ga, gb)):
        raise ValueError("non-finite input")
    beta, form = o.momentum, o.momentum_form
    connection = o.connection if o.connection != "none" else "frobenius"
    damping = o.damping if o.gauge_damping else 0.0
    ma, ua = momentum_step(ma, ga, beta, form, o.nesterov)
    mb, ub = momentum_step(mb, gb, beta, form, o.nesterov)
    if o.momentum_reproject == "copy":
        ua, ub = gauge_fix(a, b, ua, ub, connection, damping)
    elif o.momentum_reproject == "write_back":
        ma, mb = gauge_fix(a, b, ma, mb, connection, damping)
        share = 1.0 if form == "sum" else 1.0 - beta
        ua, ub = (beta * ma + share * ga, beta * mb + share * gb) if o.nesterov else (ma, mb)
    da, db = pair_direction(a, b, ua, ub, o)
    step = lr * o.mp * (1.0 if o.method == "joint" else 0.5)
    div = len(a) // len(b) if o.shared_div == "group" else 1
    keep = 1 - lr * o.wd
    return keep * a - step * da, keep * b - step / div * db, ma, mb


def cm_qk(wq, wk, mq, mk, gq, gk, heads, kv_heads, lr, o):
    """Returns wq, wk, mq, mk after one step."""
    q, k = (lambda x: row_heads(x, heads)), (lambda x: row_heads(x, kv_heads))
    out = cm_pair(q(wq), k(wk), q(mq), k(mk), q(gq), k(gk), lr, replace(o, circuit="qk"))
    return tuple(from_row_heads(x) for x in out)


def cm_ov(wv, wo, mv, mo, gv, go, heads, kv_heads, lr, o):
    """Returns wv, wo, mv, mo after one step."""
    v, p = (lambda x: row_heads(x, kv_heads)), (lambda x: col_heads(x, heads))
    wo, wv, mo, mv = cm_pair(p(wo), v(wv), p(mo), v(mv), p(go), v(gv), lr, replace(o, circuit="ov"))
    return from_row_heads(wv), from_col_heads(wo), from_row_heads(mv), from_col_heads(mo)


# ---------------------------------------------------------------------------------------------
# Rules that look at the partner without whitening by it


def circuit_muon(wv, wo, uv, uo, heads, damping=1e-3):
    """Circuit-Muon: rescales the heads of finished V and O directions by their partners' size.

    Per leg the Frobenius norm is kept; then the radial part of the gauge orbit is removed.
    uv, uo are directions to be subtracted, for example from muon_direction.
    """
    v, p, dv, dp = row_heads(wv, heads), col_heads(wo, heads), row_heads(uv, heads), \
        col_heads(uo, heads)
    sv, sp = (isotropic_scale(x @ transpose(x), damping) for x in (v, p))
    total = lambda x: np.sqrt((x * x).sum())
    nv, np_ = total(dv), total(dp)
    dv, dp = dv * sp, dp * sv
    dv, dp = dv * (nv / max(total(dv), 1e-12)), dp * (np_ / max(total(dp), 1e-12))
    inner = lambda x, y: (x * y).sum(axis=(1, 2), keepdims=True)
    k = v.shape[1]
    x = (inner(v, dv) - inner(p, dp)) / np.maximum(inner(v, v) + inner(p, p) + 2 * k * damping,
                                                   1e-12)
    return from_row_heads(dv - x * v), from_col_heads(dp + x * p)


def muon_circuit_step(wv, wo, mv, mo, gv, go, heads, lr, wd=0.0, beta=0.95, form="ema",
                      nesterov=True, table="simple12", scale="spectral", damping=1e-3):
    """Full-matrix Muon directions on V and O, passed through circuit_muon."""
    mv, uv = momentum_step(mv, gv, beta, form, nesterov)
    mo, uo = momentum_step(mo, go, beta, form, nesterov)
    uv, uo = (muon_direction(u, table, scale) for u in (uv, uo))
    uv, uo = circuit_muon(wv, wo, uv, uo, heads, damping)
    keep = 1 - lr * wd
    return keep * wv - lr * uv, keep * wo - lr * uo, mv, mo


def partner_adam_pair(a, b, adam_a, adam_b, damping=1e-2, renorm=True):
    """Multiplies each head of the Adam directions by the isotropic scale of its partner.

    renorm keeps the Frobenius norm of each leg, so that AdamW's learning rate carries over.
    """
    gram_a, gram_b = grams(a, b)
    da = adam_a * group_repeat(isotropic_scale(gram_b, damping), len(a))
    db = adam_b * isotropic_scale(gram_a, damping)
    if renorm:
        total = lambda x: np.sqrt((x * x).sum())
        da = da * (total(adam_a) / max(total(da), 1e-12))
        db = db * (total(adam_b) / max(total(db), 1e-12))
    return da, db


def partner_adamw(wa, wb, state_a, state_b, ga, gb, step, heads, kv_heads, circuit, lr, wd=0.0,
                  beta1=0.9, beta2=0.95, eps=1e-8, damping=1e-2, renorm=True):
    """(wa, wb) = (wq, wk) for circuit qk, (wo, wv) for ov. A state is (m, v)."""
    split_a, join_a = (row_heads, from_row_heads) if circuit == "qk" else \
        (col_heads, from_col_heads)
    ma, va, da = adam_direction(*state_a, ga, step, beta1, beta2, eps)
    mb, vb, db = adam_direction(*state_b, gb, step, beta1, beta2, eps)
    da, db = partner_adam_pair(split_a(wa, heads), row_heads(wb, kv_heads), split_a(da, heads),
                               row_heads(db, kv_heads), damping, renorm)
    keep = 1 - lr * wd
    return keep * wa - lr * join_a(da), keep * wb - lr * from_row_heads(db), (ma, va), (mb, vb)


def quack_norms(wq, wk, heads, kv_heads):
    """(for wq's heads: ||W_K of its kv head||, for wk's heads: ||all W_Q of its group||)."""
    q, k = norm(row_heads(wq, heads)), norm(row_heads(wk, kv_heads))
    return group_repeat(k, heads), np.sqrt(group_sum(q * q, kv_heads))


def quack(wq, wk, mq, mk, gq, gk, initial, heads, kv_heads, lr, wd=0.0, tau=1.0, per_head=False,
          beta=0.95, form="ema", nesterov=True, table="pe8", scale="spectral"):
    """QuacK: each head's learning rate is tau times ||partner at the start|| / ||partner now||.

    initial = quack_norms of the weights at the start. The base is Muon, on the whole matrix with
    its head blocks rescaled afterwards, or per head. Weight decay uses the plain learning rate.
    """
    mq, uq = momentum_step(mq, gq, beta, form, nesterov)
    mk, uk = momentum_step(mk, gk, beta, form, nesterov)
    dq = muon_direction(uq, table, scale, heads if per_head else 1)
    dk = muon_direction(uk, table, scale, kv_heads if per_head else 1)
    now = quack_norms(wq, wk, heads, kv_heads)
    rate_q, rate_k = (tau * i / np.maximum(n, 1e-12) for i, n in zip(initial, now))
    keep = 1 - lr * wd
    return (keep * wq - lr * from_row_heads(rate_q * row_heads(dq, heads)),
            keep * wk - lr * from_row_heads(rate_k * row_heads(dk, kv_heads)), mq, mk)


if __name__ == "__main__":
    import optimizers_check
    raise SystemExit(optimizers_check.main())
