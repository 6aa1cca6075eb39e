"""Trains a small torch transformer on a text with libcmuon: CM on attention, Muon on the MLPs,
AdamW on embeddings, gains and the head.

    make libcmuon.so
    python dev/python/train_torch.py docs/optimizers.md

One byte is one token. About half a minute on two cores; --rule muon and --rule adamw compare.
"""

import argparse
import sys
import time

import cmuon

try:
    import torch
    import torch.nn.functional as F
    from torch import nn
except ImportError:
    sys.exit("error: this example needs PyTorch (CPU is enough): pip install torch; "
             "dev/python/cmuon.py itself works with NumPy alone")


class Block(nn.Module):
    def __init__(self, width, heads, kv_heads):
        super().__init__()
        self.heads, self.kv_heads, self.k = heads, kv_heads, width // heads
        linear = lambda rows, cols: nn.Linear(cols, rows, bias=False)
        self.q, self.o = linear(width, width), linear(width, width)
        self.key, self.v = linear(kv_heads * self.k, width), linear(kv_heads * self.k, width)
        self.up, self.down = linear(4 * width, width), linear(width, 4 * width)
        self.norm1, self.norm2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        nn.init.zeros_(self.o.weight)
        nn.init.zeros_(self.down.weight)

    def forward(self, x):
        B, T, C = x.shape
        y = self.norm1(x)
        split = lambda z, n: z.view(B, T, n, self.k).transpose(1, 2)
        q, k, v = split(self.q(y), self.heads), split(self.key(y), self.kv_heads), \
            split(self.v(y), self.kv_heads)
        group = self.heads // self.kv_heads  # query head h reads key head h // group
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).reshape(B, T, C))
        return x + self.down(F.relu(self.up(self.norm2(x))).square())


class GPT(nn.Module):
    def __init__(self, layers, width, heads, kv_heads, length):
        super().__init__()
        self.token, self.position = nn.Embedding(256, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads, kv_heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width, bias=False), nn.Linear(width, 256, bias=False)
        nn.init.normal_(self.token.weight, std=0.02)
        nn.init.normal_(self.position.weight, std=0.02)
        nn.init.zeros_(self.head.weight)

    def forward(self, tokens, targets):
        x = self.token(tokens) + self.position(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1), targets.flatten())


class Cmuon:
    """The matrices of the blocks; their momenta are this object's only state."""

    def __init__(self, blocks, rule, lr_muon, lr_cm):
        self.blocks, self.rule, self.lr_muon, self.lr_cm = blocks, rule, lr_muon, lr_cm
        self.m = {p: torch.zeros_like(p) for b in blocks for p in b.parameters() if p.ndim == 2}

    @torch.no_grad()
    def step(self, factor):
        for b in self.blocks:
            for call, one, two in ((cmuon.cm_qk, b.q, b.key), (cmuon.cm_ov, b.v, b.o)):
                w = one.weight, two.weight
                if self.rule == "cm":
                    call(*w, *(p.grad for p in w), *(self.m[p] for p in w), lr=factor * self.lr_cm,
                         n_heads=b.heads, threads=1)  # more threads would slow down small matrices
                else:
                    self.muon(*w, factor=factor)
            self.muon(b.up.weight, b.down.weight, factor=factor)

    def muon(self, *weights, factor):
        for p in weights:
            cmuon.muon(p, p.grad, self.m[p], lr=factor * self.lr_muon, threads=1)


def main():
    flag = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    flag.add_argument("text", help="a file, whose bytes are the tokens")
    flag.add_argument("--rule", choices=("cm", "muon", "adamw"), default="cm")
    flag.add_argument("--steps", type=int, default=100)
    flag.add_argument("--lr-muon", type=float, default=0.02)
    flag.add_argument("--lr-cm", type=float, default=0.02)
    flag.add_argument("--lr-adam", type=float, default=0.003)
    flag.add_argument("--seed", type=int, default=0)
    args = flag.parse_args()
    length, batch, layers, width, heads, kv_heads = 64, 16, 2, 128, 4, 2
    text = torch.frombuffer(bytearray(open(args.text, "rb").read()), dtype=torch.uint8).long()
    if len(text) < 2000:
        sys.exit(f"error: {args.text} has {len(text)} bytes; a text of some thousand is needed")
    torch.manual_seed(args.seed)
    model = GPT(layers, width, heads, kv_heads, length)
    matrices = {p for b in model.blocks for p in b.parameters() if p.ndim == 2}
    rest = [p for p in model.parameters() if args.rule == "adamw" or p not in matrices]
    adam = torch.optim.AdamW(rest, lr=args.lr_adam, betas=(0.9, 0.95), weight_decay=0)
    ours = None
    if args.rule != "adamw":
        ours = Cmuon(model.blocks, args.rule, args.lr_muon, args.lr_cm)
    cut = len(text) * 9 // 10  # the last tenth is for validation

    def draw(lo, hi):
        at = torch.randint(lo, hi - length - 1, (batch,))
        rows = torch.stack([text[i:i + length + 1] for i in at])
        return rows[:, :-1], rows[:, 1:]

    start, update = time.time(), 0.0
    for step in range(args.steps):
        factor = min(1.0, 2 * (1 - step / args.steps))  # constant, then linear to zero
        loss = model(*draw(0, cut))
        model.zero_grad()
        loss.backward()
        for group in adam.param_groups:
            group["lr"] = factor * args.lr_adam
        adam.step()
        before = time.time()
        if ours:
            ours.step(factor)
        update += time.time() - before
        if step % 25 == 0 or step == args.steps - 1:
            print(f"step {step:4d}  loss {loss.item():.3f}", flush=True)
    with torch.no_grad():
        value = sum(model(*draw(cut, len(text))).item() for _ in range(10)) / 10
    print(f"validation loss {value:.3f} nats per byte, {time.time() - start:.0f} s, "
          f"of which libcmuon {update:.1f} s")


if __name__ == "__main__":
    main()
