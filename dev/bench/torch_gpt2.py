"""Tokens a second of GPT-2 in PyTorch, for a comparison on one card: bf16 autocast over fp32 weights, flash
attention (scaled_dot_product_attention), fused AdamW, gradient accumulation, gradients clipped to norm 1, as
they are or through torch.compile. The shapes, the batch and the tokens of a step are those of train_gpt_cuda;
tokens are random, because no time depends on them.

    python3 dev/bench/torch_gpt2.py --model 124M --batch 32 --compile

Prints one JSON object on one line, also after a failure ("result" is not "ok" then). If --budget seconds
end before --steps whole steps are timed, the time of a step is estimated from the micro-batches and updates
that were timed, and "how" says so.
"""

import argparse
import contextlib
import json
import math
import statistics
import sys
import time

try:
    import torch
    import torch.nn.functional as F
    from torch import nn
except ImportError as missing:
    sys.exit(f"error: this benchmark needs PyTorch: {missing}")

# layers, width, heads, vocabulary (padded to a multiple of 128), length
SHAPES = {
    "124M": (12, 768, 12, 50304, 1024),
    "350M": (24, 1024, 16, 50304, 1024),
    "774M": (36, 1280, 20, 50304, 1024),
    "tiny": (1, 32, 2, 256, 32),  # to try the script on a CPU
}


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):  # (B, T, C)
        B, T, C = x.shape
        q, k, v = (z.view(B, T, self.heads, C // self.heads).transpose(1, 2)
                   for z in self.qkv(self.norm1(x)).split(C, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(B, T, C))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class GPT2(nn.Module):
    """Returns the mean loss of a batch; the head is the token table."""

    def __init__(self, layers, width, heads, vocab, length):
        super().__init__()
        self.token, self.position = nn.Embedding(vocab, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        for name, p in self.named_parameters():
            if p.ndim == 2:
                scale = 0.02 / math.sqrt(2 * layers) if name.endswith(("out.weight", "down.weight")) else 0.02
                nn.init.normal_(p, std=scale)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(self, tokens, targets):
        x = self.token(tokens) + self.position(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.norm(x), self.token.weight)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


class Clock:
    """Seconds of work on the device. Reading the clock waits for the device."""

    def __init__(self, device):
        self.wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)

    def __call__(self):
        self.wait()
        return time.perf_counter()


def attention_context(name):
    """SDPA with one backend only, or with PyTorch's own choice."""
    if name == "auto":
        return contextlib.nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel({"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}[name])


def measure(args, device, result):
    layers, width, heads, vocab, length = SHAPES[args.model]
    began = time.perf_counter()
    clock = Clock(device)
    torch.manual_seed(1)
    torch.set_float32_matmul_precision("high")
    model = GPT2(layers, width, heads, vocab, length).to(device)
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    adam = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
                             lr=6e-4, betas=(0.9, 0.95), eps=1e-8, fused=True)
    micro = max(1, args.total // (args.batch * length))
    batches = torch.randint(min(vocab, 50257), (4, 2, args.batch, length), device=device)
    call = torch.compile(model) if args.compile else model

    def micro_batch(i):
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = call(*batches[i % len(batches)])
        (loss / micro).backward()
        return loss.detach()

    def update():
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        adam.zero_grad(set_to_none=True)

    # Warm-up: compilation, the libraries' plans, the optimizer's state.
    for i in range(2):
        loss = micro_batch(i)
    update()
    result["warmup_s"] = round(clock() - began, 2)

    steps, micros, updates = [], [], []
    while len(steps) < args.steps and time.perf_counter() - began < args.budget:
        start = clock()
        for i in range(micro):
            if i % 4 == 0 and i and time.perf_counter() - began > args.budget:
                break
            loss = micro_batch(i)
            done = i + 1
        middle = clock()
        update()
        end = clock()
        micros.append((middle - start) / done)
        updates.append(end - middle)
        if done == micro:
            steps.append(end - start)
    if not micros:
        raise TimeoutError(f"the warm-up alone took {result['warmup_s']} s")
    if steps:
        ms = 1e3 * statistics.median(steps)
        result["how"] = f"median of {len(steps)} whole steps"
    else:
        ms = 1e3 * (micro * statistics.median(micros) + statistics.median(updates))
        result["how"] = f"extrapolated from one part of a step to its {micro} micro-batches"
    result.update(result="ok", ms=round(ms, 3), update_ms=round(1e3 * statistics.median(updates), 3),
                  tok_s=round(micro * args.batch * length / ms * 1e3), micro_batches=micro,
                  loss=round(loss.item(), 4), parameters=sum(p.numel() for p in model.parameters()))
    if device == "cuda":
        result["mb"] = round(torch.cuda.max_memory_allocated() / 1e6, 1)


def main():
    flag = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    flag.add_argument("--model", choices=SHAPES, default="124M")
    flag.add_argument("--batch", type=int, default=32, help="sequences of a micro-batch")
    flag.add_argument("--total", type=int, default=524288, help="tokens of a step")
    flag.add_argument("--steps", type=int, default=4, help="steps to time")
    flag.add_argument("--compile", action="store_true", help="through torch.compile")
    flag.add_argument("--sdpa", choices=("flash", "cudnn", "auto"), default="flash")
    flag.add_argument("--budget", type=float, default=60, help="seconds after which no further step begins")
    args = flag.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    result = {"peer": "pytorch " + torch.__version__, "model": args.model, "batch": args.batch,
              "tokens": args.total, "mode": "compile" if args.compile else "eager", "sdpa": args.sdpa,
              "device": torch.cuda.get_device_name() if device == "cuda" else "cpu", "result": "failed"}
    try:
        with attention_context(args.sdpa if device == "cuda" else "auto"):
            measure(args, device, result)
    except torch.OutOfMemoryError:
        result["result"] = "does not fit"
    except TimeoutError as late:
        result.update(result="not known", error=str(late))
    except Exception as error:  # whatever it is, the report names it
        result["error"] = f"{type(error).__name__}: {str(error)[:300]}"
    print(json.dumps(result), flush=True)
    return 0 if result["result"] in ("ok", "does not fit") else 1


if __name__ == "__main__":
    sys.exit(main())
