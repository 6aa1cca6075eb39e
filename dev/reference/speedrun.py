"""The modded-nanoGPT optimization benchmark ("track 3") written down in plain PyTorch: the model, its
two initialisations, and the optimizer of each record that the trainer reproduces.

It is an oracle: autograd in float64, a matrix for each of query, key and value, the loss as a sum over
tokens, the optimizers one formula a line. It shares no code with gpt.py and optimizers.py, so that an
error in one writing does not hide in the other. make_speedrun_fixtures.py compares the trainer with
it.

Linear weights are (out, in). A record's steps are those of the benchmark; `miniature` scales them.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn import functional as F

NORM_EPS = 2.0**-23  # what PyTorch's RMSNorm adds to the mean square in float32 and bf16
ADAM_EPS = 1e-10  # for gradients of the summed loss
SIGN_FLOOR = 1e-7  # added to the Frobenius norm before the iteration, for such gradients
SIGN_STEPS = 12
MOMENTUM = 0.95
COOLDOWN = 0.7

# ------------------------------------------------------------------------------------------------
# model


@dataclass(frozen=True)
class Size:
    vocab: int = 50304
    width: int = 768
    heads: int = 6
    layers: int = 12
    length: int = 1024

    @property
    def head_width(self):
        return self.width // self.heads


def rms(x):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + NORM_EPS)


class GainNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return rms(x) * self.gain


def rotary_angles(length, head_width):
    """(length, head_width / 2): t omega_j. The second half of the planes does not turn."""
    turning = head_width // 4
    omega = torch.zeros(head_width // 2, dtype=torch.float64)
    omega[:turning] = (1 / 1024) ** torch.linspace(0, 1, turning, dtype=torch.float64)
    return torch.arange(length, dtype=torch.float64)[:, None] * omega


def rotate(x, angles):
    """x (..., length, head_width); planes are (j, j + head_width / 2)."""
    first, second = x.chunk(2, -1)
    cosine, sine = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    return torch.cat([first * cosine + second * sine, second * cosine - first * sine], -1)


class SelfAttention(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.size = size
        for name in ("q", "k", "v", "proj"):
            setattr(self, name, nn.Linear(size.width, size.width))

    def forward(self, x):
        batch, length, width = x.shape
        s = self.size

        def heads(y):
            return y.view(batch, length, s.heads, s.head_width).transpose(1, 2)

        angles = rotary_angles(length, s.head_width)
        q, k = (rotate(rms(heads(linear(x))), angles) for linear in (self.q, self.k))
        scores = 0.12 * q @ k.transpose(-1, -2)
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        seen = scores.masked_fill(future, -math.inf).softmax(-1) @ heads(self.v(x))
        return self.proj(seen.transpose(1, 2).reshape(batch, length, width))


class FeedForward(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.fc = nn.Linear(size.width, 4 * size.width)
        self.proj = nn.Linear(4 * size.width, size.width)

    def forward(self, x):
        return self.proj(self.fc(x).relu().square())


class Block(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.norm_attn, self.attn = GainNorm(size.width), SelfAttention(size)
        self.norm_mlp, self.mlp = GainNorm(size.width), FeedForward(size)

    def forward(self, x):
        x = x + self.attn(self.norm_attn(x))
        return x + self.mlp(self.norm_mlp(x))


class Decoder(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.size = size
        self.embed = nn.Embedding(size.vocab, size.width)
        self.norm_in = GainNorm(size.width)
        self.blocks = nn.ModuleList(Block(size) for _ in range(size.layers))
        self.norm_out = GainNorm(size.width)
        self.head = nn.Linear(size.width, size.vocab)

    def forward(self, tokens):
        x = self.norm_in(self.embed(tokens))
        for block in self.blocks:
            x = block(x)
        z = self.head(self.norm_out(x))
        return 15 * z / (z.square() + 15**2).sqrt()

    def loss(self, tokens, targets):
        """The sum of the cross entropies of all tokens, in nats."""
        return F.cross_entropy(self(tokens).flatten(0, 1), targets.flatten(), reduction="sum")


def initialise(model, kind, seed):
    """kind "explicit": that of the newest script; "torch": PyTorch's defaults. In both the matrices
    that write to the stream are zero, with their biases, and so is the head."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        module, leaf = name.split(".")[-2:] if "." in name else (name, "weight")
        with torch.no_grad():
            if leaf == "gain":
                p.fill_(1)
            elif module == "embed":
                p.normal_(generator=generator)
            elif module in ("proj", "head"):
                p.zero_()
            elif kind == "explicit" and leaf == "bias":
                p.zero_()
            elif kind == "explicit":
                p.normal_(std=math.sqrt(0.33 / p.shape[1]), generator=generator)
            else:  # q, k, v and fc all read the stream
                p.uniform_(-1, 1, generator=generator).div_(math.sqrt(model.size.width))
    return model


# ------------------------------------------------------------------------------------------------
# records


@dataclass(frozen=True)
class Record:
    name: str
    source: str
    steps: int
    init: str = "explicit"
    rule: str = "muon"  # of the blocks' matrices: muon, normuon, adamw
    rate: float = 0.025
    decay: float = 0.05
    betas: tuple = (0.9, 0.95)  # of AdamW on the blocks' matrices
    aux_rates: tuple = (0.7, 0.004, 0.015)  # embedding, head, all vectors
    aux_decay: float = 0.001
    aux_betas: tuple = (0.8, 0.95)
    warmup: tuple = ("none", 0)  # ("ramp", n): (s + 1) / n; ("factor", n): 1e-7 + (1 - 1e-7) s / n
    kernel: str = "single"  # bi, k: averages of several ages in place of the one momentum
    kernel_from: int = 0
    kernel_until: int = 0
    circuit: bool = False
    decay_follows_rate: bool = False
    tail: tuple = ()  # (from, horizon, blend)
    phases: tuple = ()  # ((step, multiplier), ...) of the blocks' matrices
    phases_rest: tuple = ()  # of all other parameters


HEAD = Record("muon", "#36", 3250)
OLD_AUX = dict(aux_rates=(0.3, 1 / 320, 0.01), aux_decay=0.0)
RECORDS = {
    r.name: r
    for r in (
        HEAD,
        replace(HEAD, name="muon-12", source="#12", steps=3350, rate=0.035, decay=0.025, **OLD_AUX),
        replace(HEAD, name="adamw", source="#2", steps=5625, init="torch", rule="adamw", rate=0.0015,
                decay=0.10, warmup=("ramp", 250), **OLD_AUX),
        replace(HEAD, name="adamw-tuned", source="pull request 353", steps=4950, rule="adamw",
                rate=0.001, decay=1.0, betas=(0.9, 0.9), aux_decay=0.002, warmup=("factor", 100)),
        replace(HEAD, name="normuon", source="#10", steps=3300, rule="normuon", rate=0.035,
                decay=0.025, **OLD_AUX),
        replace(HEAD, name="bi-maxwell", source="pull request 340", kernel="bi", kernel_from=1000),
        replace(HEAD, name="k-maxwell", source="pull request 357", kernel="k", kernel_from=1000,
                kernel_until=3250),
        replace(HEAD, name="tail-ema", source="#36 with #45's readout", tail=(2400, 150, 0.6)),
        replace(HEAD, name="decay-lr", source="#36, decay times eta / eta_max",
                decay_follows_rate=True),
        replace(HEAD, name="phases", source="#36, rates times piecewise linear functions",
                phases=((0, 1.0), (1000, 0.6), (2000, 1.4), (3250, 0.8)),
                phases_rest=((0, 0.5), (1500, 1.0))),
        replace(HEAD, name="circuit", source="#36, with #41's coupling of V and O", circuit=True),
    )
}

# What is counted in steps, for a run of 20.
MINIATURE = dict(kernel_from=6, kernel_until=20, warmup=5, tail=(8, 6), phases=(0, 6, 12, 20),
                 phases_rest=(0, 9))


def miniature(record, steps=20):
    """The record in a few steps: what is counted in steps is scaled, rates are not."""
    m, scale = MINIATURE, steps / 20
    at = lambda step: round(step * scale)
    return replace(
        record, steps=steps,
        warmup=(record.warmup[0], at(m["warmup"]) if record.warmup[1] else 0),
        kernel_from=at(m["kernel_from"]) if record.kernel_from else 0,
        kernel_until=at(m["kernel_until"]) if record.kernel_until else 0,
        tail=(*map(at, m["tail"]), record.tail[2]) if record.tail else (),
        phases=tuple((at(s), f) for s, (_, f) in zip(m["phases"], record.phases)),
        phases_rest=tuple((at(s), f) for s, (_, f) in zip(m["phases_rest"], record.phases_rest)))


# ------------------------------------------------------------------------------------------------
# schedules


def trapezoid(s, steps):
    """1, then linearly down; the last update, s = steps - 1, still has 1 / (cooldown steps)."""
    done = s / steps
    return 1.0 if done < 1 - COOLDOWN else (1 - done) / COOLDOWN


def warmup(s, kind, n):
    if kind == "ramp":
        return min(1.0, (s + 1) / n)
    if kind == "factor" and s < n:
        return 1e-7 + (1 - 1e-7) * s / n
    return 1.0


def piecewise(points, s):
    """The value at s of the function through the points, constant before and after them."""
    if not points:
        return 1.0
    if s <= points[0][0]:
        return points[0][1]
    for (a, left), (b, right) in zip(points, points[1:]):
        if s < b:
            return left + (right - left) * (s - a) / (b - a)
    return points[-1][1]


def ages_bi(s, record):
    """[(decay, weight)] at update s."""
    return [(0.85, 0.4385), (0.98, 0.5615)]


def ages_k(s, record):
    first = [k * 0.005094 for k in range(1, 8)] + [0.857369]
    last = [k * 0.032262 for k in range(1, 8)] + [0.096669]
    done = (s - record.kernel_from) / (record.kernel_until - record.kernel_from)
    done = min(max(done, 0.0), 1.0)
    taus = [3 * (64 / 3) ** (k / 7) for k in range(8)]
    return [(tau / (tau + 1), a + (b - a) * done) for tau, a, b in zip(taus, first, last)]


KERNELS = {"bi": ages_bi, "k": ages_k}

# ------------------------------------------------------------------------------------------------
# optimizers


def polar(u, floor=SIGN_FLOOR):
    """Twelve steps of s -> 2 s - 1.5 s^3 + 0.5 s^5 on the singular values of u / (||u|| + floor)."""
    if not u.any():
        return u
    x = u.T if u.shape[0] > u.shape[1] else u
    x = x / (x.norm() + floor)
    for _ in range(SIGN_STEPS):
        a = x @ x.T
        x = 2 * x + (-1.5 * a + 0.5 * a @ a) @ x
    return x.T if u.shape[0] > u.shape[1] else x


class Optimizer:
    """Updates a Decoder by a record. A state is found by the name of its parameter."""

    def __init__(self, model, record, floor=SIGN_FLOOR):
        self.model, self.record, self.floor = model, record, floor
        self.named = dict(model.named_parameters())
        self.state = {name: {} for name in self.named}
        self.tail = None
        self.updates = 0

    def group(self, name):
        """matrix, embedding, head or vector."""
        if self.named[name].dim() == 1:
            return "vector"
        return {"embed": "embedding", "head": "head"}.get(name.split(".")[0], "matrix")

    def rate_and_decay(self, name, s):
        """Learning rate at update s, and what W is multiplied by before the step."""
        r, group = self.record, self.group(name)
        if group == "matrix":
            peak, decay, phases = r.rate, r.decay, r.phases
        else:
            peak = r.aux_rates[("embedding", "head", "vector").index(group)]
            decay, phases = r.aux_decay, r.phases_rest
        schedule = trapezoid(s, r.steps) * warmup(s, *r.warmup)
        rate = peak * schedule * piecewise(phases, s)
        return rate, 1 - rate * decay * (schedule if r.decay_follows_rate else 1)

    def buffer(self, name, key):
        return self.state[name].setdefault(key, torch.zeros_like(self.named[name]))

    def adamw(self, name, g, betas):
        """The bias-corrected direction of AdamW."""
        m, v = self.buffer(name, "m"), self.buffer(name, "v")
        t = self.updates + 1
        m.mul_(betas[0]).add_(g, alpha=1 - betas[0])
        v.mul_(betas[1]).addcmul_(g, g, value=1 - betas[1])
        return (m / (1 - betas[0]**t)) / (v.sqrt() / math.sqrt(1 - betas[1]**t) + ADAM_EPS)

    def momentum(self, name, g, s):
        """What Muon takes the sign of: Nesterov's mix of gradient and average."""
        r = self.record
        average = self.buffer(name, "average")
        if r.kernel == "single" or s < r.kernel_from:
            average.mul_(MOMENTUM).add_(g, alpha=1 - MOMENTUM)
            return (1 - MOMENTUM) * g + MOMENTUM * average
        kernel = KERNELS[r.kernel](s, r)
        averages = self.state[name].setdefault("averages", [average.clone() for _ in kernel])
        for m, (decay, _) in zip(averages, kernel):
            m.lerp_(g, 1 - decay)
        mixed = sum(weight * m for m, (_, weight) in zip(averages, kernel))
        return torch.lerp(g, mixed, MOMENTUM)

    def normalised(self, name, u):
        """NorMuon: a running mean square of the lines along the longer side, whose root divides
        them; the whole keeps its Frobenius norm."""
        before = u.norm()
        square = u.square().mean(1 if u.shape[0] >= u.shape[1] else 0, keepdim=True)
        second = self.state[name].setdefault("lines", torch.zeros_like(square))
        second.mul_(0.95).add_(square, alpha=0.05)
        u = u * second.clamp(min=1e-10).rsqrt()
        norm = u.norm()
        return u * (before / norm) if norm > 0 else u

    def direction(self, name, g, s):
        """U of W <- W - eta U for a matrix of a block."""
        if self.record.rule == "adamw":
            return self.adamw(name, g, self.record.betas)
        u = polar(self.momentum(name, g, s), self.floor)
        u = u * math.sqrt(max(1, u.shape[0] / u.shape[1]))
        return self.normalised(name, u) if self.record.rule == "normuon" else u

    def couple(self, directions):
        """Circuit-Muon on the directions of every pair of value and output matrices."""
        width, damping = self.model.size.head_width, 1e-3
        for block in range(self.model.size.layers):
            v, o = (f"blocks.{block}.attn.{x}.weight" for x in ("v", "proj"))
            # (heads, width, ...) of both: V's heads are blocks of rows, O's of columns.
            heads = {
                v: lambda x: x.unflatten(0, (-1, width)),
                o: lambda x: x.T.unflatten(0, (-1, width))
            }
            weight = {n: heads[n](self.named[n].detach()) for n in (v, o)}
            square = {n: weight[n].square().sum((1, 2)) for n in (v, o)}
            scaled = {}
            for n, other in ((v, o), (o, v)):
                u = heads[n](directions[n])
                factor = (square[other] / width + damping).rsqrt()
                scaled[n] = u * factor[:, None, None]
                norm = scaled[n].norm()
                if norm > 0:
                    scaled[n] = scaled[n] * (u.norm() / norm)
            inner = {n: (weight[n] * scaled[n]).sum((1, 2)) for n in (v, o)}
            x = (inner[v] - inner[o]) / (square[v] + square[o] + 2 * width * damping)
            directions[v] = (scaled[v] - x[:, None, None] * weight[v]).flatten(0, 1)
            directions[o] = (scaled[o] + x[:, None, None] * weight[o]).flatten(0, 1).T

    @torch.no_grad()
    def step(self, gradients):
        """One update from {name: gradient of the summed loss}."""
        r, s = self.record, self.updates
        directions = {
            name: self.direction(name, g, s) if self.group(name) == "matrix" else self.adamw(
                name, g, r.aux_betas)
            for name, g in gradients.items()
        }
        if r.circuit:
            self.couple(directions)
        for name, u in directions.items():
            rate, keep = self.rate_and_decay(name, s)
            self.named[name].mul_(keep).sub_(u, alpha=rate)
        self.updates += 1
        self.follow_tail()

    def follow_tail(self):
        """The average of the weights: a copy after update number `from` (counted from 1)."""
        if not self.record.tail or self.updates < self.record.tail[0]:
            return
        if self.tail is None:
            self.tail = {n: p.detach().clone() for n, p in self.named.items()}
            return
        for n, p in self.named.items():
            self.tail[n] += (p.detach() - self.tail[n]) / self.record.tail[1]

    def readout(self):
        """{name: weights that are evaluated}."""
        weights = {n: p.detach().clone() for n, p in self.named.items()}
        if self.tail is None:
            return weights
        blend = self.record.tail[2]
        return {
            n: w if self.group(n) == "embedding" else (1 - blend) * w + blend * self.tail[n]
            for n, w in weights.items()
        }


def gradients(model, micro_batches):
    """(summed loss, {name: gradient of it}), accumulated over pairs of tokens and targets."""
    model.zero_grad(set_to_none=True)
    total = 0.0
    for tokens, targets in micro_batches:
        loss = model.loss(tokens, targets)
        loss.backward()
        total += loss.item()
    return total, {n: p.grad.detach().clone() for n, p in model.named_parameters()}


# ------------------------------------------------------------------------------------------------
# what zero initialisation implies


def has_gradient(name, update):
    """Whether a parameter's gradient at update 0, 1, 2, ... is other than exactly zero, from the
    zero initialisation of the head and of the matrices that write to the stream."""
    parts = name.split(".")
    if parts[0] == "head" or update >= 2:
        return True
    if update == 0:
        return False
    return parts[0] in ("embed", "norm_in", "norm_out") or "proj" in parts
