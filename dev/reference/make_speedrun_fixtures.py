"""Writes dev/test/fixtures/speedrun_records.fix: 20 steps of every record of speedrun.py on a miniature
model, for dev/test/test_speedrun.c. Run from anywhere: python dev/reference/make_speedrun_fixtures.py

    base, records          flags of the model; names of the records R
    tokens                 (steps, rows, T + 1) i4: inputs and, one to the right, targets
    init.KIND.TENSOR       initial parameters of either initialisation, in float32's numbers
    R.flags, R.init        flags of the trainer for the record; KIND
    R.losses               (steps) the mean loss of each step's batch, before its update
    R.grad.sketch.TENSOR   (steps, layers, parts, SKETCHES) of the gradient of the mean loss
    R.move.sketch.TENSOR   the same of how far the parameters are from their initial values
    R.full, R.grad.TENSOR, R.move.TENSOR    whole tensors at the steps R.full, in float32
    R.readout.losses       (steps) with an averaged readout: its mean loss on the first batch after
                           each update
    R.readout.sketch.TENSOR    (1, layers, parts, SKETCHES) how far it is from the initial values at
                           the end

A sketch of a piece of n numbers is its product with a (SKETCHES, n) matrix of random numbers, which
both sides make from the same counters. So it holds every element of every step in float64 in little
space: the norm of the difference of two sketches is about that of the pieces.

A piece is a layer of a tensor; wqkv and bqkv have three each: query, key, value. The trainer's loss is
the mean and the benchmark's is the sum, so gradients are divided by the tokens of a step, and so is
Adam's epsilon. The trainer's matrix sign has no floor under the norm (llmc/optim/msign.h), and so has
the fixture's; the script prints how far the benchmark's floor would move the parameters.
"""

import math
import os

import numpy as np
import torch

import speedrun
from fixture import Writer

PATH = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "test", "fixtures",
                    "speedrun_records.fix")
SIZE = speedrun.Size(vocab=64, width=16, heads=2, layers=2, length=16)
# ROWS are those of a micro-batch. TOKENS is no multiple of the vocabulary: else a token that comes as
# often as uniform logits expect has no gradient at the first step but rounding, on which Adam steps.
STEPS, MICRO_BATCHES, ROWS = 20, 2, 3
TOKENS = MICRO_BATCHES * ROWS * SIZE.length  # of a step
FULL = {"muon": (1, 2, 3, 4, 8, 20)}  # steps at which whole tensors are kept
FULL_OF_OTHERS = (3, 20)
SEEDS = {"explicit": 11, "torch": 12}
INIT_FLAG = {"explicit": "speedrun", "torch": "torch"}  # the trainer's --init
SKETCHES, SKETCH_SEED = 8, 20

# The trainer's name: the names of its parts, of which each layer has one.
BLOCK = {
    "norm1_w": ["norm_attn.gain"],
    "wqkv": ["attn.q.weight", "attn.k.weight", "attn.v.weight"],
    "bqkv": ["attn.q.bias", "attn.k.bias", "attn.v.bias"],
    "wo": ["attn.proj.weight"],
    "bo": ["attn.proj.bias"],
    "norm2_w": ["norm_mlp.gain"],
    "wfc": ["mlp.fc.weight"],
    "bfc": ["mlp.fc.bias"],
    "wproj": ["mlp.proj.weight"],
    "bproj": ["mlp.proj.bias"],
}
OUTER = {
    "wte": "embed.weight",
    "norm0_w": "norm_in.gain",
    "normf_w": "norm_out.gain",
    "whead": "head.weight",
    "bhead": "head.bias",
}


def trainer_tensors(named, layers):
    """{the trainer's name: (layers, parts, numbers)} of a dictionary by the model's names."""
    out = {name: named[of].reshape(1, 1, -1) for name, of in OUTER.items()}
    for name, parts in BLOCK.items():
        out[name] = torch.stack([
            torch.stack([named[f"blocks.{layer}.{part}"].flatten() for part in parts])
            for layer in range(layers)
        ])
    return out


def flags_of(record, tokens):
    """The trainer's flags for a record, beside its preset: what differs from #36, with which the
    preset agrees. `tokens` are those of a step, over which the trainer's loss is a mean."""
    head, flags = speedrun.HEAD, []

    def flag(name, value, usual=None):
        if value != usual:
            flags.append(f"--{name} {value}")

    flag("optimizer", "adamw" if record.rule == "adamw" else "muon")
    flag("steps", record.steps)
    flag("adam-eps", speedrun.ADAM_EPS / tokens)
    flag("init", INIT_FLAG[record.init], INIT_FLAG[head.init])
    if record.rule == "normuon":
        for role in ("qk", "ov", "mlp"):
            flag(role, "normuon-long")
    if record.rule == "adamw":
        for i, beta in enumerate(record.betas):
            flag(f"adam-beta{i + 1}-blocks", beta)
    flag("lr", record.rate, head.rate)
    flag("weight-decay", record.decay, head.decay)
    for i, group in enumerate(("embed", "head", "scalar")):
        flag(f"lr-{group}", record.aux_rates[i], head.aux_rates[i])
        flag(f"weight-decay-{group}", record.aux_decay, head.aux_decay)
    if record.kernel != "single":
        flag("momentum-ages", record.kernel + "-maxwell")
        flag("momentum-ages-from", record.kernel_from)
        flag("momentum-ages-until", record.kernel_until, 0)
    if record.circuit:
        flag("circuit", "on")
    if record.decay_follows_rate:
        flag("decay-schedule", "lr")
    if record.tail:
        for name, value in zip(("from", "horizon", "blend"), record.tail):
            flag("ema-" + name, value)
    kind, n = record.warmup
    phases = record.phases
    if kind == "ramp":
        flag("warmup", n)
    if kind == "factor":
        phases = ((0, 1e-7), (n, 1.0))
    for name, points in (("lr-phases", phases), ("lr-phases-rest", record.phases_rest)):
        if points:
            flag(name, ",".join(f"{s}:{m}" for s, m in points))
    return " ".join(flags)


def model_flags(size, rows, tokens):
    return (f"--preset speedrun --layers {size.layers} --width {size.width} --heads {size.heads} "
            f"--seq-len {size.length} --vocab {size.vocab} --batch-size {rows} "
            f"--total-batch-tokens {tokens}")


# ------------------------------------------------------------------------------------------------
# sketches


def mix(x):
    """The finalizer of SplitMix64, as llmc/rng.h has it."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def sketch_matrix(n):
    """(SKETCHES, n) in [-1, 1): 2 rng_uniform(SKETCH_SEED, row, column) - 1."""
    with np.errstate(over="ignore"):
        rows = mix(np.arange(SKETCHES, dtype=np.uint64)[:, None] + mix(np.uint64(SKETCH_SEED)))
        bits = mix(np.arange(n, dtype=np.uint64)[None] + rows)
    return 2 * (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53 - 1


def sketch(tensor):
    """(layers, parts, SKETCHES) of (layers, parts, numbers)."""
    return tensor.numpy() @ sketch_matrix(tensor.shape[-1]).T


# ------------------------------------------------------------------------------------------------
# runs


def draw_tokens():
    """(steps, rows, T + 1): a token is followed by one of four others, which the model can learn."""
    generator = torch.Generator().manual_seed(10)
    tokens = torch.randint(0, SIZE.vocab, (STEPS, MICRO_BATCHES * ROWS, SIZE.length + 1),
                           generator=generator)
    for t in range(SIZE.length):
        tokens[..., t + 1] = (5 * tokens[..., t] + tokens[..., t + 1] % 4) % SIZE.vocab
    return tokens


def micro_batches(rows):
    return [(part[:, :-1], part[:, 1:]) for part in rows.split(ROWS)]


def make_model(kind, dtype=torch.float64):
    """Initial parameters are float32's numbers, so that both sides start from equal ones."""
    model = speedrun.initialise(speedrun.Decoder(SIZE).float(), kind, SEEDS[kind])
    return model.to(dtype)


def parameters(model):
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def check_zero_init(grads, update):
    """The gradients that zero initialisation makes exactly zero, and no others."""
    for name, g in grads.items():
        assert bool(g.any()) == speedrun.has_gradient(name, update), (name, update)


class Run:
    """losses; gradients, moves (by the trainer's names) of each step; readout losses and weights."""

    def __init__(self, record, tokens, floor=0.0, dtype=torch.float64):
        model = make_model(record.init, dtype)
        optimizer = speedrun.Optimizer(model, record, floor)
        start = parameters(model)
        self.losses, self.grads, self.moves, self.readout_losses = [], [], [], []
        for update in range(STEPS):
            loss, grads = speedrun.gradients(model, micro_batches(tokens[update]))
            check_zero_init(grads, update)
            optimizer.step(grads)
            self.losses.append(loss / TOKENS)
            self.grads.append(self.named({n: g / TOKENS for n, g in grads.items()}))
            self.moves.append(self.moved(parameters(model), start))
            if record.tail:
                self.readout_losses.append(self.readout_loss(optimizer, tokens[0], dtype))
        self.readout = self.moved(optimizer.readout(), start)
        assert dtype != torch.float64 or abs(self.losses[0] - math.log(SIZE.vocab)) < 1e-14

    @staticmethod
    def named(tensors):
        return trainer_tensors({n: t.double() for n, t in tensors.items()}, SIZE.layers)

    def moved(self, weights, start):
        return self.named({n: w.double() - start[n].double() for n, w in weights.items()})

    @staticmethod
    def readout_loss(optimizer, rows, dtype):
        model = speedrun.Decoder(SIZE).to(dtype)
        model.load_state_dict(optimizer.readout())
        with torch.no_grad():
            return sum(model.loss(x, y).item() for x, y in micro_batches(rows)) / TOKENS


def larger(a, b):
    """max, for which not-a-number is the largest."""
    return math.inf if math.isnan(a) or math.isnan(b) else max(a, b)


def worst(a, b, start=None):
    """The largest relative distance of a piece over all steps of two lists of tensors. With the weights
    that moves start from, it is relative to the move and a thousandth of the weights: to store a weight
    in float32 moves it by 6e-8 of its size, however small the step is."""
    most = 0.0
    for x, y in zip(a, b):
        for name in y:
            off, norm = (x[name] - y[name]).norm(dim=-1), y[name].norm(dim=-1)
            if start:
                norm = norm + 1e-3 * (start[name] + y[name]).norm(dim=-1)
            most = larger(most, float((off / norm.clamp(min=1e-300)).max()))
    return most


def put_run(w, name, run, full):
    w.put(name + ".losses", run.losses, "f8")
    w.put(name + ".full", np.array(full), "i4")
    for what, steps in (("grad", run.grads), ("move", run.moves)):
        for tensor in steps[0]:
            w.put(f"{name}.{what}.sketch.{tensor}", [sketch(s[tensor]) for s in steps], "f8")
            w.put(f"{name}.{what}.{tensor}",
                  torch.stack([steps[s - 1][tensor].flatten() for s in full]))
    if run.readout_losses:
        w.put(name + ".readout.losses", run.readout_losses, "f8")
        for tensor, moved in run.readout.items():
            w.put(f"{name}.readout.sketch.{tensor}", sketch(moved)[None], "f8")


def main():
    torch.set_num_threads(1)
    tokens = draw_tokens()
    with Writer(PATH) as w:
        w.text("base", model_flags(SIZE, ROWS, TOKENS))
        w.text("records", " ".join(speedrun.RECORDS))
        w.put("tokens", tokens, "i4")
        starts = {kind: Run.named(parameters(make_model(kind))) for kind in SEEDS}
        for kind, start in starts.items():
            for name, value in start.items():
                w.put(f"init.{kind}.{name}", value.flatten())
        print("record           loss of the first and last step   float32 moves losses, gradients, "
              "parameters   the floor moves parameters")
        for name, full_size in speedrun.RECORDS.items():
            record = speedrun.miniature(full_size, STEPS)
            run = Run(record, tokens)
            single = Run(record, tokens, dtype=torch.float32)
            literal = Run(record, tokens, floor=speedrun.SIGN_FLOOR)
            losses = max(abs(a / b - 1) for a, b in zip(single.losses, run.losses))
            print(f"{name:16s} {run.losses[0]:.4f} {run.losses[-1]:.4f}   {losses:.0e} "
                  f"{worst(single.grads, run.grads):.0e} "
                  f"{worst(single.moves, run.moves, starts[record.init]):.0e}   "
                  f"{worst(literal.moves, run.moves):.0e}")
            w.text(name + ".flags", flags_of(record, TOKENS))
            w.text(name + ".init", record.init)
            put_run(w, name, run, FULL.get(name, FULL_OF_OTHERS))
        print(f"{os.path.basename(PATH)}: {w.size()} bytes")


if __name__ == "__main__":
    main()
