"""Writes dev/test/fixtures/{gpt2,llama,speedrun}.fix: miniature models with everything the C
trainer must reproduce. Run from anywhere: python dev/reference/make_model_fixtures.py

Records: flags (builds the model), x, y (i4, B x T, some y = -1), param.NAME, logits (B, T, vocab),
loss, grad.NAME; then for each optimizer O in adamw, cm: O.flags, O.losses (the loss before each of
ten steps on this batch) and O.param.NAME after them. For muon and cm_iso there are flags and
losses only. The script
prints how far rounding to float32 moves each result.
"""

import os

import numpy as np
import torch

import gpt
import optimizers as opt
from fixture import Writer

FIXTURES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "test", "fixtures")
STEPS = 10

MODELS = {
    "gpt2": "--preset gpt2 --layers 2 --width 24 --heads 3 --kv-heads 3 --seq-len 24 --vocab 83 "
            "--norm layernorm --norm-eps 1e-5 --pos learned --rope-base 10000 --qk-norm off "
            "--act gelu --ff-width 96 --biases on --head-bias off --tied on --embed-norm off "
            "--attn-scale 0.35355339059327373 --softcap 0 --batch-size 4",
    "llama": "--preset llama --layers 2 --width 32 --heads 4 --kv-heads 2 --seq-len 24 --vocab 61 "
             "--norm rmsnorm --norm-eps 1e-5 --pos rope --rope-base 10000 --qk-norm on "
             "--act swiglu --ff-width 40 --biases off --head-bias off --tied off --embed-norm off "
             "--attn-scale 0.35355339059327373 --softcap 0 --batch-size 4",
    "speedrun": "--preset speedrun --layers 2 --width 24 --heads 3 --kv-heads 3 --seq-len 24 "
                "--vocab 64 --norm rmsnorm --norm-eps 1.1920929e-7 --pos rope-half "
                "--rope-base 1024 --qk-norm on --act relu2 --ff-width 96 --biases on "
                "--head-bias on --tied off --embed-norm on --attn-scale 0.12 --softcap 15 "
                "--batch-size 4",
}

# adam-eps is above the rounding noise of gradients that are zero in exact arithmetic (the key bias
# without rotary positions), which Adam would otherwise turn into steps of size lr.
COMMON = ("--lr-embed 0.002 --lr-head 0.001 --lr-scalar 0.003 --weight-decay-embed 0.01 --weight-decay-head 0.02 "
          "--weight-decay-scalar 0.03 --adam-beta1 0.9 --adam-beta2 0.95 --adam-eps 1e-5 "
          "--schedule constant --warmup 0 --grad-clip 0")
OPTIMIZERS = {
    "adamw": "--optimizer adamw --lr 0.0015 --weight-decay 0.1 " + COMMON,
    "cm": "--optimizer cm --lr 0.02 --weight-decay 0.05 " + COMMON +
          " --momentum 0.95 --nesterov released --momentum-form released --msign pe8 "
          "--scale spectral --damping 0.01 --mp 1 --isotropic off --hybrid on "
          "--inv-root cans25",
}
# Only ten losses, to check the routing of flags that have their defaults in the two cases above.
MATRIX = (" --momentum 0.95 --nesterov released --momentum-form released --msign simple12 "
          "--damping 0.05 --mp 1.5 --inv-root eigh")
LOSSES_ONLY = {
    "muon": "--optimizer muon --lr 0.01 --weight-decay 0.05 " + COMMON + MATRIX +
            " --scale rms --isotropic off --hybrid on",
    "cm_iso": "--optimizer cm --lr 0.02 --weight-decay 0.05 " + COMMON + MATRIX +
              " --scale none --isotropic on --hybrid off",
}
MATRICES = ("wqkv", "wo", "wfc", "wproj")

EMBED = ("wte", "wpe")


class Trainer:
    """Which tensor is updated by which rule, and the state of the rules."""

    def __init__(self, config, flags):
        words = flags.split()
        self.f = dict(zip(words[::2], words[1::2]))
        self.c, self.state, self.step = config, {}, 0

    def number(self, name):
        return float(self.f["--" + name])

    def rates(self, name):
        role = "-embed" if name in EMBED else "-head" if name == "whead" else \
            "-scalar" if name[0] == "b" or name.startswith("norm") else ""
        return self.number("lr" + role), self.number("weight-decay" + role)

    def zeros(self, name, array, count):
        return self.state.setdefault(name, [np.zeros_like(array) for _ in range(count)])

    def adamw(self, name, w, g):
        m, v = self.zeros(name, w, 2)
        w, *self.state[name] = opt.adamw(
            w, m, v, g, self.step, *self.rates(name), self.number("adam-beta1"),
            self.number("adam-beta2"), self.number("adam-eps"))
        return w

    def blocks(self, name):
        """Cuts of a fused tensor into blocks of rows. Muon treats each block as a matrix."""
        c = self.c
        if name == "wqkv":
            return [c.heads * c.head_dim, (c.heads + c.kv_heads) * c.head_dim]
        return [c.ff_width] if name == "wfc" and c.act == "swiglu" else []

    def muon(self, name, w, g):
        m, = self.zeros(name, w, 1)
        lr, wd = self.rates(name)
        new_w, new_m = [], []
        for l in range(self.c.layers):
            done = [opt.muon(*block, lr, wd, self.number("momentum"), table=self.f["--msign"],
                             scale=self.f["--scale"])
                    for block in zip(*(np.split(x[l], self.blocks(name)) for x in (w, m, g)))]
            new_w.append(np.concatenate([x[0] for x in done]))
            new_m.append(np.concatenate([x[1] for x in done]))
        self.state[name] = [np.stack(new_m)]
        return np.stack(new_w)

    def attention(self, wqkv, wo, gqkv, go):
        """Compositional Muon on the QK and OV circuits of every layer."""
        c, h, kv = self.c, self.c.heads, self.c.kv_heads
        mqkv, = self.zeros("wqkv", wqkv, 1)
        mo, = self.zeros("wo", wo, 1)
        lr, wd = self.rates("wqkv")
        o = opt.CM(damping=self.number("damping"), mp=self.number("mp"), wd=wd,
                   momentum=self.number("momentum"), msign=self.f["--msign"],
                   inv_root=self.f["--inv-root"], isotropic=self.f["--isotropic"] == "on",
                   hybrid=self.f["--hybrid"] == "on")
        new = [[], [], [], []]
        for l in range(c.layers):
            (q, k, v), (mq, mk, mv), (gq, gk, gv) = (np.split(x[l], self.blocks("wqkv"))
                                                     for x in (wqkv, mqkv, gqkv))
            q, k, mq, mk = opt.cm_qk(q, k, mq, mk, gq, gk, h, kv, lr, o)
            v, p, mv, mp = opt.cm_ov(v, wo[l], mv, mo[l], gv, go[l], h, kv, lr, o)
            for out, x in zip(new, (np.concatenate([q, k, v]), p, np.concatenate([mq, mk, mv]),
                                    mp)):
                out.append(x)
        wqkv, wo, mqkv, mo = (np.stack(x) for x in new)
        self.state["wqkv"], self.state["wo"] = [mqkv], [mo]
        return wqkv, wo

    def update(self, params, grads):
        self.step += 1
        new = {}
        rule = self.f["--optimizer"]
        for name, w in params.items():
            if rule == "adamw" or name not in MATRICES:
                new[name] = self.adamw(name, w, grads[name])
            elif rule == "muon" or name in ("wfc", "wproj"):
                new[name] = self.muon(name, w, grads[name])
        if rule == "cm":
            new["wqkv"], new["wo"] = self.attention(params["wqkv"], params["wo"], grads["wqkv"],
                                                    grads["wo"])
        return new


def run(config, params, x, y, flags, dtype):
    """Ten steps: (losses, parameters)."""
    trainer = Trainer(config, flags)
    p = {n: t.numpy().astype(dtype) for n, t in params.items()}
    losses = []
    for _ in range(STEPS):
        value, _, grads = gpt.loss_and_gradients(config, p, x, y)
        losses.append(value)
        p = trainer.update(p, {n: g.numpy() for n, g in grads.items()})
    return losses, p


def relative(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30)


def worst(a, b):
    """The largest relative error of a tensor, and the name of the tensor."""
    return max((relative(a[n], b[n]), n) for n in b)


def make(name, seed):
    flags = MODELS[name]
    c = gpt.Config.from_flags(flags)
    params = gpt.init(c, seed)
    g = torch.Generator().manual_seed(seed + 1)
    tokens = torch.randint(0, c.vocab, (c.batch_size, c.seq_len + 1), generator=g)
    x, y = tokens[:, :-1].contiguous(), tokens[:, 1:].clone()
    y[0, 3] = y[-1, -1] = -1

    value, logits, grads = gpt.loss_and_gradients(c, params, x, y)
    single = {n: t.float() for n, t in params.items()}
    value32, logits32, grads32 = gpt.loss_and_gradients(c, single, x, y)
    count = sum(t.numel() for t in params.values())
    print(f"{name}: {count} parameters, loss {value:.6f}; float32 moves loss "
          f"{abs(value32 - value):.1e}, logits {relative(logits32, logits):.1e}, gradients "
          f"%.1e (%s)" % worst(grads32, grads))

    path = os.path.join(FIXTURES, name + ".fix")
    with Writer(path) as w:
        w.text("flags", flags)
        w.put("x", x, "i4")
        w.put("y", y, "i4")
        for n, t in params.items():
            w.put("param." + n, t)
        w.put("logits", logits)
        w.put("loss", value, "f8")
        for n, t in grads.items():
            w.put("grad." + n, t)
        for o, text in {**OPTIMIZERS, **LOSSES_ONLY}.items():
            losses, p = run(c, params, x, y, text, np.float64)
            losses32, p32 = run(c, params, x, y, text, np.float32)
            print(f"  {o}: loss {losses[0]:.4f} -> {losses[-1]:.4f}; float32 moves losses "
                  f"{relative(losses32, losses):.1e}, parameters %.1e (%s)" % worst(p32, p))
            for n in ("wte", "whead", "bhead"):
                assert n not in p or not p[n][c.vocab:].any(), "padded rows must stay zero"
            w.text(o + ".flags", text)
            w.put(o + ".losses", losses, "f8")
            for n, t in p.items() if o in OPTIMIZERS else ():
                w.put(f"{o}.param.{n}", t)
        print(f"  {os.path.basename(path)}: {w.size()} bytes")


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.makedirs(FIXTURES, exist_ok=True)
    for index, model in enumerate(MODELS):
        make(model, 100 + 10 * index)
