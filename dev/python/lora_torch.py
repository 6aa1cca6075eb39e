"""Fine-tunes a small torch transformer by adapters, with cm_lora (LoRA-Muon) and with AdamW.

    make libcmuon.so
    python dev/python/lora_torch.py data/tinyshakespeare.txt docs/optimizers.md

The model is trained on the first text and fine-tuned to the second: all weights are frozen, and every
linear layer of the blocks gets W + s B A. With one text the halves of it take their places. One byte
is one token. Each optimizer runs at every learning rate of its ladder, on the same batches from the
same adapters. One or two minutes.
"""

import argparse
import copy
import sys
import time

import cmuon
from train_torch import GPT, F, nn, torch


class LoRALinear(nn.Module):
    """A frozen linear layer with an adapter, in the names of Hu et al. (arXiv 2106.09685) and PEFT."""

    def __init__(self, layer, rank, scale):
        super().__init__()
        rows, cols = layer.weight.shape
        self.weight, self.scale = layer.weight.requires_grad_(False), scale
        self.lora_A = nn.Parameter(torch.randn(rank, cols) / cols ** 0.5)
        self.lora_B = nn.Parameter(torch.zeros(rows, rank))

    def forward(self, x):
        return F.linear(x, self.weight) + self.scale * F.linear(F.linear(x, self.lora_A), self.lora_B)


class LoraMuon:
    """LoRA-Muon on adapters; their momenta are this object's only state."""

    def __init__(self, layers, lr):
        self.layers, self.lr = layers, lr
        self.m = [(torch.zeros_like(x.lora_B), torch.zeros_like(x.lora_A)) for x in layers]

    @torch.no_grad()
    def step(self, factor):
        for x, (mb, ma) in zip(self.layers, self.m):
            a, b = x.lora_B, x.lora_A  # A (out, r) and B^T (r, in) of cm_lora
            cmuon.lora(a, b, a.grad, b.grad, mb, ma, lr=factor * self.lr, lora_scale=x.scale,
                       threads=1)  # more threads would slow down small matrices


class AdamW:
    def __init__(self, parameters, lr):
        self.adam = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.95), weight_decay=0)
        self.lr = lr

    def step(self, factor):
        for group in self.adam.param_groups:
            group["lr"] = factor * self.lr
        self.adam.step()


def read(path):
    data = bytearray(open(path, "rb").read())
    if len(data) < 4000:
        sys.exit(f"error: {path} has {len(data)} bytes; a text of some thousand is needed")
    return torch.frombuffer(data, dtype=torch.uint8).long()


def rows_of(text, starts, length):
    rows = torch.stack([text[i:i + length + 1] for i in starts])
    return rows[:, :-1], rows[:, 1:]


def train(model, optimizer, text, steps, batch, length, seed):
    """Returns seconds, and seconds of them in the optimizer. The batches follow from the seed."""
    draw, start, update = torch.Generator().manual_seed(seed), time.time(), 0.0
    for step in range(steps):
        at = torch.randint(len(text) - length - 1, (batch,), generator=draw)
        loss = model(*rows_of(text, at, length))
        model.zero_grad()
        loss.backward()
        before = time.time()
        optimizer.step(min(1.0, 2 * (1 - step / steps)))  # constant, then linear to zero
        update += time.time() - before
    return time.time() - start, update


@torch.no_grad()
def validate(model, text, length):
    """The loss on windows of the text that follow each other, at most 256 of them."""
    starts = range(0, len(text) - length - 1, length)[:256]
    parts = [starts[i:i + 32] for i in range(0, len(starts), 32)]
    return sum(model(*rows_of(text, p, length)).item() * len(p) for p in parts) / len(starts)


def add_adapters(model, rank, scale):
    """Freezes the model and returns the linear layers of its blocks, which now have adapters."""
    model.requires_grad_(False)
    layers = []
    for block in model.blocks:
        for name, layer in list(block.named_children()):
            if isinstance(layer, nn.Linear):
                layers.append(LoRALinear(layer, rank, scale))
                setattr(block, name, layers[-1])
    return layers


def main():
    flag = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    flag.add_argument("base", help="the text of pretraining, whose bytes are the tokens")
    flag.add_argument("text", nargs="?", help="the text of fine-tuning; none: the second half of base")
    flag.add_argument("--base-steps", type=int, default=200)
    flag.add_argument("--steps", type=int, default=60)
    flag.add_argument("--rank", type=int, default=8)
    flag.add_argument("--scale", type=float, default=1.0, help="s; lora_alpha / r of PEFT")
    rates = lambda text: [float(x) for x in text.split(",")]
    flag.add_argument("--lr-lora", type=rates, default="0.02,0.04,0.08,0.16,0.32")
    flag.add_argument("--lr-adamw", type=rates, default="0.0025,0.005,0.01,0.02,0.04")
    flag.add_argument("--threads", type=int, default=1, help="of torch; more help where cores are free")
    flag.add_argument("--seed", type=int, default=0)
    args = flag.parse_args()
    length, batch, width, heads, kv_heads = 64, 16, 128, 4, 2
    most = width * kv_heads // heads  # the smallest side of the matrices
    if not 1 <= args.rank <= most:
        sys.exit(f"error: --rank {args.rank}: the adapters of this model have ranks from 1 to {most}")
    torch.set_num_threads(args.threads)
    base = read(args.base)
    text = read(args.text) if args.text else base[len(base) // 2:]
    base = base if args.text else base[:len(base) // 2]
    cut = len(text) * 9 // 10  # the last tenth is for validation
    torch.manual_seed(args.seed)
    model = GPT(2, width, heads, kv_heads, length)
    seconds, _ = train(model, AdamW(model.parameters(), 0.003), base, args.base_steps, batch, length,
                       args.seed)
    before = validate(model, text[cut:], length)
    print(f"pretraining: {seconds:.0f} s; loss on the second text {before:.3f} nats per byte\n",
          flush=True)
    layers = add_adapters(model, args.rank, args.scale)
    print("optimizer     rate    loss  seconds  in the optimizer")
    for name, ladder in (("LoRA-Muon", args.lr_lora), ("AdamW", args.lr_adamw)):
        losses = []
        for lr in ladder:
            tuned, adapters = copy.deepcopy((model, layers))
            ours = LoraMuon(adapters, lr) if name == "LoRA-Muon" else \
                AdamW([p for p in tuned.parameters() if p.requires_grad], lr)
            seconds, update = train(tuned, ours, text[:cut], args.steps, batch, length, args.seed + 1)
            losses.append(validate(tuned, text[cut:], length))
            print(f"{name:10} {lr:7g}  {losses[-1]:6.3f}  {seconds:7.1f}  {update:16.2f}", flush=True)
        best = losses.index(min(losses))
        at_end = best in (0, len(ladder) - 1)
        print(f"{name} is best at {ladder[best]:g}: {losses[best]:.3f}"
              + (", an end of its ladder, so another rate may be better" if at_end else "") + "\n")


if __name__ == "__main__":
    main()
