"""The model of the trainer in PyTorch, for test fixtures: parameters in a dict, one forward.

Config.from_flags reads the same command line string that builds the model in C, so a fixture's
`flags` record is what both sides are made from. Tensors have the trainer's names and shapes
(weights as in nn.Linear, y = x W^T + b; same-named tensors of all layers stacked on axis 0).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass
class Config:
    layers: int
    width: int
    heads: int
    kv_heads: int
    seq_len: int
    vocab: int
    norm: str          # layernorm | rmsnorm
    norm_eps: float
    pos: str           # learned | rope | rope-half | none
    rope_base: float
    qk_norm: bool
    act: str           # gelu | relu2 | swiglu
    ff_width: int
    biases: bool
    head_bias: bool
    tied: bool
    embed_norm: bool
    attn_scale: float
    softcap: float
    batch_size: int

    @staticmethod
    def from_flags(flags):
        words = flags.split()
        given = {words[i][2:].replace("-", "_"): words[i + 1] for i in range(0, len(words), 2)}
        given.pop("preset", None)
        read = {int: int, float: float, str: str, bool: {"on": True, "off": False}.__getitem__}
        types = Config.__annotations__
        if set(given) != set(types):
            raise ValueError(f"flags missing or unknown: {set(given) ^ set(types)}")
        return Config(**{name: read[types[name]](text) for name, text in given.items()})

    @property
    def head_dim(self):
        return self.width // self.heads

    @property
    def padded_vocab(self):
        return -(-self.vocab // 64) * 64


def shapes(c):
    """{name: shape} of every tensor of the model, in the trainer's order."""
    L, C, H, K, S, V = c.layers, c.width, c.heads, c.kv_heads, c.head_dim, c.padded_vocab
    out = {"wte": (V, C)}

    def norm(name, *lead):
        out[name + "_w"] = (*lead, C)
        if c.norm == "layernorm":
            out[name + "_b"] = (*lead, C)

    def linear(name, rows, cols):
        out["w" + name] = (L, rows, cols)
        if c.biases:
            out["b" + name] = (L, rows)

    if c.pos == "learned":
        out["wpe"] = (c.seq_len, C)
    if c.embed_norm:
        norm("norm0")
    norm("norm1", L)
    linear("qkv", (H + 2 * K) * S, C)
    linear("o", C, H * S)
    norm("norm2", L)
    linear("fc", (2 if c.act == "swiglu" else 1) * c.ff_width, C)
    linear("proj", C, c.ff_width)
    norm("normf")
    if not c.tied:
        out["whead"] = (V, C)
    if c.head_bias:
        out["bhead"] = (V,)
    return out


def init(c, seed):
    """Random float32-representable parameters; nothing is zero except the padded vocabulary."""
    g = torch.Generator().manual_seed(seed)
    params = {}
    for name, shape in shapes(c).items():
        x = torch.randn(shape, generator=g, dtype=torch.float64)
        if name in ("wte", "wpe"):
            x = 0.3 * x
        elif name.startswith("norm"):
            x = 0.1 * x + (1.0 if name.endswith("_w") else 0.0)
        elif name.startswith("b"):
            x = 0.1 * x
        else:
            x = x * 0.8 * shape[-1] ** -0.5
        if name in ("wte", "whead", "bhead"):
            x[c.vocab:] = 0
        params[name] = x.float().double()
    return params


def rms(x, eps):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def apply_norm(c, x, p, name, layer=None):
    w = p[name + "_w"] if layer is None else p[name + "_w"][layer]
    if c.norm == "rmsnorm":
        return rms(x, c.norm_eps) * w
    b = p[name + "_b"] if layer is None else p[name + "_b"][layer]
    return F.layer_norm(x, (c.width,), w, b, c.norm_eps)


def rope_angles(c, T):
    """(T, HS/2) for pairs (j, j + HS/2); None without rotary positions."""
    j = torch.arange(c.head_dim // 2, dtype=torch.float64)
    if c.pos == "rope":
        omega = c.rope_base ** (-2 * j / c.head_dim)
    elif c.pos == "rope-half":  # the second half of the pairs does not rotate
        n = c.head_dim // 4
        omega = torch.where(j < n, (1 / c.rope_base) ** (j / (n - 1)), 0.0)
    else:
        return None
    return torch.arange(T, dtype=torch.float64)[:, None] * omega


def rotate(x, angles, sign):
    """x (B, H, T, HS). sign +1: (x1 cos - x2 sin, x2 cos + x1 sin); -1 turns the other way."""
    cos, sin = torch.cos(angles).to(x), sign * torch.sin(angles).to(x)
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin], dim=-1)


def attention(c, x, p, l):
    B, T, _ = x.shape
    H, K, S = c.heads, c.kv_heads, c.head_dim
    qkv = F.linear(x, p["wqkv"][l], p["bqkv"][l] if c.biases else None)
    q, k, v = (t.view(B, T, -1, S).transpose(1, 2) for t in qkv.split([H * S, K * S, K * S], -1))
    if c.qk_norm:
        q, k = rms(q, c.norm_eps), rms(k, c.norm_eps)
    angles = rope_angles(c, T)
    if angles is not None:
        sign = -1.0 if c.pos == "rope-half" else 1.0
        q, k = rotate(q, angles, sign), rotate(k, angles, sign)
    k, v = (t.repeat_interleave(H // K, dim=1) for t in (k, v))
    scores = c.attn_scale * (q @ k.transpose(-1, -2))
    causal = torch.ones(T, T, dtype=torch.bool).tril()
    out = scores.masked_fill(~causal, float("-inf")).softmax(-1) @ v
    out = out.transpose(1, 2).reshape(B, T, H * S)
    return F.linear(out, p["wo"][l], p["bo"][l] if c.biases else None)


def mlp(c, x, p, l):
    h = F.linear(x, p["wfc"][l], p["bfc"][l] if c.biases else None)
    if c.act == "swiglu":
        gate, up = h.chunk(2, dim=-1)
        h = F.silu(gate) * up
    elif c.act == "relu2":
        h = F.relu(h).square()
    else:
        h = F.gelu(h, approximate="tanh")
    return F.linear(h, p["wproj"][l], p["bproj"][l] if c.biases else None)


def forward(c, p, x):
    """Logits (B, T, vocab) after the softcap, without the padded columns."""
    h = p["wte"][x]
    if c.pos == "learned":
        h = h + p["wpe"][: x.shape[1]]
    if c.embed_norm:
        h = apply_norm(c, h, p, "norm0")
    for l in range(c.layers):
        h = h + attention(c, apply_norm(c, h, p, "norm1", l), p, l)
        h = h + mlp(c, apply_norm(c, h, p, "norm2", l), p, l)
    h = apply_norm(c, h, p, "normf")
    z = F.linear(h, p["wte" if c.tied else "whead"][: c.vocab],
                 p["bhead"][: c.vocab] if c.head_bias else None)
    return c.softcap * z / torch.sqrt(z * z + c.softcap**2) if c.softcap > 0 else z


def loss(c, p, x, y):
    """Mean cross entropy over the targets that are not -1, and the logits."""
    logits = forward(c, p, x)
    return F.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=-1), logits


def loss_and_gradients(c, params, x, y):
    """(loss, logits, {name: gradient}) of parameters that may be NumPy arrays or tensors."""
    p = {n: torch.as_tensor(v).detach().clone().requires_grad_() for n, v in params.items()}
    value, logits = loss(c, p, x, y)
    value.backward()
    return value.item(), logits.detach(), {n: t.grad for n, t in p.items()}
