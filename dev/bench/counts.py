"""Counts the savings of changes to the CUDA backend: bytes of memory traffic and floating-point operations, from
shapes alone. Nothing is measured. Only a device can show how much time the counts save.

    python3 dev/bench/counts.py [124m|350m|774m] [--batch 32]
"""

import argparse

MODELS = {"124m": (12, 768, 12), "350m": (24, 1024, 16), "774m": (36, 1280, 20)}
T, VOCAB = 1024, 50304
ROWS, STEP = 128, 64  # attention's backward pass: keys of a block, queries of a step

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("model", nargs="?", choices=MODELS, default="124m")
parser.add_argument("--batch", type=int, default=32)
args = parser.parse_args()
L, C, NH = MODELS[args.model]
B, HS, F, N = args.batch, C // NH, 4 * C, args.batch * T
matrices = 12 * L * C * C  # elements of the blocks' matrices
u = 2 * N * C              # bytes of (N,C) in bf16


def chunks(rows):
    return -(-N // rows)


def row(what, per, count, unit):
    print(f"| {what} | {per} | {count:.3g} {unit} |")


print(f"GPT-2 {args.model}, {B} sequences of {T}, bf16; u = {u / 1e6:.1f} MB, the size of (N,C).\n")
print("| change | per | saved |\n|---|---|---|")
head = 2 * 4 * VOCAB * C  # bytes of the head's fp32 gradient, read and written
row(f"8192 rows of logits, not 667: {chunks(667)} chunks become {chunks(8192)}, each reads and writes the head's gradient",
    "micro-batch", (chunks(667) - chunks(8192)) * head / 1e9, "GB")
product = 2 * B * NH * HS * T * (T + 1) / 2  # FLOP of a product over a causal triangle
row("attention backward in five products, not seven", "micro-batch", 2 * L * product / 1e12, "TFLOP")
row("and one exponential a score, not two", "micro-batch", L * product / (2 * HS) / 1e9, "G exp")
tiles = T // ROWS
parts = 2 * 4 * ROWS * HS * tiles * (tiles - 1) / 2 * B * NH
row("but sums of dQ handed from tile to tile in fp32 (L2 cache)", "micro-batch", -L * parts / 1e9, "GB")
row("GELU in the epilogue: h is not read again forward (4u)", "micro-batch", 4 * L * u / 1e9, "GB")
row("GELU's derivative in the epilogue: 8u less, 4u of them spent on the bias's own sum", "micro-batch",
    4 * L * u / 1e9, "GB")
row("biases of W_O and W_proj summed by the norms (2u)", "micro-batch", 2 * L * u / 1e9, "GB")
row("bias of W_fc summed where GELU's derivative is a kernel (4u)", "micro-batch", 4 * L * u / 1e9, "GB")
row("first micro-batch sets weight gradients: no clearing, no reading", "step",
    2 * 4 * (matrices + VOCAB * C) / 1e9, "GB")
row("AdamW writes the bf16 copy of embeddings and head: the cast does not read them", "step",
    4 * (VOCAB + T) * C / 1e9, "GB")
