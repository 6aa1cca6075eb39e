"""Trains the real train_gpt on small shards, 20 steps of every record of speedrun.py, and compares its
log and every parameter of the checkpoint after every step with PyTorch, which starts from the program's
own initial weights and reads the shards by the benchmark's rules. So the data loader, validation, log,
checkpoints and the program's main are held to the definition too.

    make train_gpt && python dev/reference/check_speedrun.py [--program ./train_gpt] [RECORD ...]

The program computes in float32. One that was built in double (--double says so) has to agree to ten
digits:

    make build/double/train_gpt BUILD=build/double ONEDNN=no CFLAGS=-DCM_DOUBLE
    python dev/reference/check_speedrun.py --program build/double/train_gpt --double

Exits with 1 if a number is off by more than rounding. The table of README.md is its output.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile

import numpy as np
import torch

import speedrun
from make_speedrun_fixtures import (INIT_FLAG, ROWS, SIZE, STEPS, TOKENS, flags_of, larger,
                                    micro_batches, model_flags, trainer_tensors)

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
sys.path.insert(0, os.path.join(ROOT, "scripts"))
import checkpoint  # noqa: E402

# Lengths of the training shards. After 4 batches of 96 tokens 97 are left of the first, which is one too
# few for a fifth, since the benchmark asks for more than a batch and its last target. The second has one
# token more, and so a fifth batch.
SHARDS = (5 * TOKENS + 1, 5 * TOKENS + 2, 40 * TOKENS)
VAL_TOKENS, VAL_EVERY = 10 * SIZE.length, 5
# Relative errors that are allowed: of losses, of which the log has ten digits; of movements, to which
# float adds this share of the size.
LIMITS = {"float": (1e-6, 1e-3, 1e-3), "double": (5e-9, 1e-11, 0.0)}
NORMUON_LIMIT = 1e-7  # its epsilon has another form, see dev/test/test_speedrun.c


def write_shard(path, tokens):
    header = np.zeros(256, "<i4")
    header[:3] = 20240520, 1, len(tokens)
    with open(path, "wb") as f:
        f.write(header.tobytes() + tokens.astype("<u2").tobytes())


def make_shards(folder):
    """Random walks, as those of the fixture. Returns (training shards, validation shard)."""
    generator = np.random.default_rng(3)
    shards = []
    for name, length in (("val_0", 4 * VAL_TOKENS), *((f"train_{i + 1}", n)
                                                      for i, n in enumerate(SHARDS))):
        tokens = generator.integers(0, SIZE.vocab, length)
        for i in range(1, length):
            tokens[i] = (5 * tokens[i - 1] + tokens[i] % 4) % SIZE.vocab
        write_shard(os.path.join(folder, name + ".bin"), tokens)
        shards.append(torch.from_numpy(tokens))
    return shards[1:], shards[0]


def rows_of(tokens, count):
    """(rows, T + 1): the last target of a row is the first input of the next."""
    return torch.stack([tokens[r * SIZE.length:(r + 1) * SIZE.length + 1] for r in range(count)])


def batches(shards):
    """The batch of every step, by the benchmark's rules: shards in order, from token 0, and the next
    shard where not more than a batch and a token are left."""
    shard, p = 0, 0
    while True:
        if p + TOKENS + 1 >= len(shards[shard]):
            shard, p = shard + 1, 0
            continue
        yield rows_of(shards[shard][p:p + TOKENS + 1], TOKENS // SIZE.length)
        p += TOKENS


def train(program, folder, name, flags):
    """Runs the program; {updates done: {tensor: array}} of its checkpoints, and the lines of its log."""
    command = [program, *flags.split(), "--data", os.path.join(folder, "train_*.bin"), "--val-data",
               os.path.join(folder, "val_0.bin"), "--val-tokens", str(VAL_TOKENS), "--val-every",
               str(VAL_EVERY), "--checkpoint-every", "1", "--keep-checkpoints", "1000", "--runs-dir",
               folder, "--run", name, "--seed", "5"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    run = os.path.join(folder, name)
    names = ["p." + n for n in trainer_tensors(dict(model().named_parameters()), SIZE.layers)]
    saved = {}
    for file in os.listdir(os.path.join(run, "checkpoints")):
        header, tensors = checkpoint.read(os.path.join(run, "checkpoints", file), names)
        assert set(tensors) == set(names), file
        saved[int(header["step"])] = {n[2:]: torch.from_numpy(t) for n, t in tensors.items()}
    with open(os.path.join(run, "log.jsonl")) as f:
        return saved, [json.loads(line) for line in f]


def model():
    return speedrun.Decoder(SIZE).double()


def load(into, tensors):
    """Sets a Decoder's parameters from the trainer's tensors."""
    places = {n: torch.arange(p.numel()).double() for n, p in into.named_parameters()}
    named = dict(into.named_parameters())
    ids = {n: i for i, n in enumerate(named)}
    # Which parameter each number of a tensor is, and where in it.
    which = trainer_tensors({n: torch.full(p.shape, float(ids[n])) for n, p in named.items()},
                            SIZE.layers)
    where = trainer_tensors({n: places[n].view(p.shape) for n, p in named.items()}, SIZE.layers)
    with torch.no_grad():
        for tensor, value in tensors.items():
            for n, p in named.items():
                of = which[tensor].flatten() == ids[n]
                if of.any():
                    p.view(-1)[where[tensor].flatten()[of].long()] = value.flatten()[of]
    return into


def mean_loss(of, rows):
    with torch.no_grad():
        return sum(of.loss(x, y).item() for x, y in micro_batches(rows)) / rows[:, 1:].numel()


def worst_piece(got, want, start, floor):
    """The largest distance of a piece relative to how far it has moved (and `floor` of its size)."""
    most = 0.0
    for name, w in want.items():
        g, s = got[name].reshape(w.shape), start[name].reshape(w.shape)
        scale = (w - s).norm(dim=-1) + floor * w.norm(dim=-1)
        off = (g - w).norm(dim=-1)
        most = larger(most, float((off / scale.clamp(min=1e-300)).max()))
    return most


def initial(program, folder, kind):
    """The program's initial weights: those after an update whose rates are too small to move any. In
    double they move zeros, which are set back."""
    rates = " ".join(f"--lr{group} 1e-300" for group in ("", "-embed", "-head", "-scalar"))
    flags = f"--optimizer muon --steps 1 --init {INIT_FLAG[kind]} {rates}"
    saved, _ = train(program, folder, "initial", f"{model_flags(SIZE, ROWS, TOKENS)} {flags}")
    return {n: torch.where(t.abs() < 1e-200, 0.0, t) for n, t in saved[1].items()}


def check(program, name, double):
    """The worst errors of a record: (training losses, validation losses, parameters)."""
    record = speedrun.miniature(speedrun.RECORDS[name], STEPS)
    flags = f"{model_flags(SIZE, ROWS, TOKENS)} {flags_of(record, TOKENS)}"
    with tempfile.TemporaryDirectory() as folder:
        shards, val = make_shards(folder)
        start = initial(program, folder, record.init)
        saved, log = train(program, folder, name, flags)
    assert sorted(saved) == list(range(1, STEPS + 1)) and len(log) == STEPS + 1
    # In double the benchmark's floor of 1e-7 under the norm is left out, as the program does.
    twin = load(model(), start)
    optimizer = speedrun.Optimizer(twin, record, 0.0 if double else speedrun.SIGN_FLOOR)
    val_rows = rows_of(val, VAL_TOKENS // SIZE.length)
    worst = [0.0, abs(log[0]["val_loss"] / mean_loss(twin, val_rows) - 1), 0.0]
    for update, rows in zip(range(STEPS), batches(shards)):
        loss, grads = speedrun.gradients(twin, micro_batches(rows))
        optimizer.step(grads)
        line, want = log[update + 1], trainer_tensors(
            {n: p.detach() for n, p in twin.named_parameters()}, SIZE.layers)
        assert line["step"] == update + 1 and line["tokens"] == TOKENS * (update + 1)
        worst[0] = larger(worst[0], abs(line["train_loss"] / (loss / TOKENS) - 1))
        worst[2] = larger(worst[2], worst_piece(saved[update + 1], want, start,
                                             LIMITS["double" if double else "float"][2]))
        assert (line["val_loss"] is not None) == ((update + 1) % VAL_EVERY == 0)
        if line["val_loss"] is not None:
            read = model()
            read.load_state_dict(optimizer.readout())
            worst[1] = larger(worst[1], abs(line["val_loss"] / mean_loss(read, val_rows) - 1))
    return worst


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--program", default=os.path.join(ROOT, "train_gpt"))
    parser.add_argument("--double", action="store_true", help="the program was built in double")
    parser.add_argument("records", nargs="*", metavar="RECORD", default=list(speedrun.RECORDS))
    arguments = parser.parse_args()
    for name in arguments.records:
        if name not in speedrun.RECORDS:
            parser.error(f"no record {name}; there are {', '.join(speedrun.RECORDS)}")
    torch.set_num_threads(1)
    of_loss, of_weights, _ = LIMITS["double" if arguments.double else "float"]
    failed = False
    print("record        training loss  validation loss  parameters")
    for name in arguments.records:
        train_loss, val_loss, weights = check(arguments.program, name, arguments.double)
        least = NORMUON_LIMIT if name == "normuon" else 0
        good = max(train_loss, val_loss) < max(of_loss, least) and weights < max(of_weights, least)
        failed |= not good
        print(f"{name:12s}  {train_loss:13.1e}  {val_loss:15.1e}  {weights:10.1e}"
              f"{'' if good else '  OFF'}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
