"""Results of comparisons: one row a run in a CSV file, and the statistics of their differences.

Only the standard library is needed, because scripts/compare.py must run wherever the trainer does.
"""

import csv
import io
import json
import math
import os

# name: meaning. A row has all of them. `flags` are the flags of the trainer that decide the numbers of
# the run, as "--name value" in order of names; two rows with equal flags are the same run.
COLUMNS = {
    "grid": "name of the grid",
    "setting": "name of the setting, such as plain",
    "arm": "name of the arm, such as cm",
    "rate": "learning rate of the arm",
    "stage": "tune (chooses the rate) or final (fresh seeds)",
    "seed": "seed of initialisation and data order",
    "final_val": "validation loss after the last step, nats per token; inf if the run diverged",
    "best_val": "lowest validation loss",
    "best_step": "step of the lowest validation loss",
    "train_tail": "mean training loss of the last tenth of the steps",
    "diverged": "1 if losses became NaN or ended above the first validation loss, else 0",
    "steps": "optimizer steps",
    "tokens": "training tokens",
    "parameters": "parameters of the model",
    "ms": "median time of a step in milliseconds",
    "seconds": "time of the whole program",
    "cpu_seconds": "processor time of the whole program",
    "threads": "threads of the program",
    "cpu": "processor or GPU",
    "version": "version of the program, and the commit where known",
    "gemm": "library of the matrix products",
    "train_data": "checksum of the training data",
    "val_data": "checksum of the validation data",
    "date": "day of the run, UTC",
    "val_curve": "step:loss of every validation, with spaces between",
    "train_curve": "step:mean training loss of the steps before it, in sixteen windows",
    "flags": "flags that decide the numbers",
}
NUMBERS = ("rate", "final_val", "best_val", "train_tail", "ms", "seconds", "cpu_seconds")
INTEGERS = ("seed", "best_step", "diverged", "steps", "tokens", "parameters", "threads")
LOSSES = ("final_val", "best_val", "train_tail")
CURVES = ("val_curve", "train_curve")
STAGES = ("tune", "final")
GREATEST = 3.5e38  # losses and times are computed in fp32: a larger finite number is damage
LOG_KEYS = ["step", "tokens", "train_loss", "val_loss"]  # that begin the trainer's lines of log.jsonl


def log_line(text):
    """A line of log.jsonl that the trainer wrote, as a dictionary; None for a line of another writer,
    which has other keys or another order."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return line if isinstance(line, dict) and list(line)[:len(LOG_KEYS)] == LOG_KEYS else None


def row_text(row):
    """A row as a line of CSV."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow([row[name] for name in COLUMNS])
    return out.getvalue()


def parse_row(fields):
    """The fields of a line as a dictionary with numbers. Raises ValueError if they are not a row."""
    if len(fields) != len(COLUMNS):
        raise ValueError(f"{len(fields)} fields instead of {len(COLUMNS)}")
    row = dict(zip(COLUMNS, fields))
    for name in NUMBERS + INTEGERS + CURVES:
        try:
            if name in CURVES:
                values = [v for point in curve(row[name]) for v in point]  # the text stays in the row
            else:
                row[name] = float(row[name]) if name in NUMBERS else int(row[name])
                values = [row[name]]
        except ValueError as problem:
            raise ValueError(f"{name} is not a number: {problem}") from None
        if any(GREATEST < abs(v) < math.inf for v in values):
            raise ValueError(f"{name} is too large")
        if (name in INTEGERS and row[name] < 0) or (name in LOSSES and not row[name] > -math.inf):
            raise ValueError(f"{name} is {row[name]}")
    if row["stage"] not in STAGES:
        raise ValueError(f"stage is {row['stage']!r} instead of {' or '.join(STAGES)}")
    if row["threads"] < 1:
        raise ValueError("threads is 0")
    if row["rate"] <= 0:  # NaN is right: no flag sets a rate
        raise ValueError(f"rate is {row['rate']}")
    if row["diverged"]:
        row["final_val"] = math.inf  # some rows of earlier versions have the loss that the run ended at
    return row


def read(path):
    """The rows of a CSV file; [] if the file does not exist. A last line that a kill cut off is left out.
    Raises ValueError for any other line that is not a row."""
    if not os.path.exists(path):
        return []
    with open(path, "rb") as f:
        data = f.read()
    try:
        # A spreadsheet may have put a mark of UTF-8 in front.
        text = data[:data.rfind(b"\n") + 1].decode("utf-8-sig")
        lines = list(csv.reader(io.StringIO(text, newline="")))
    except (UnicodeDecodeError, csv.Error) as problem:
        raise ValueError(f"{path} is not a file of results: {problem}") from None
    if not lines:
        return []
    if lines[0] != list(COLUMNS):
        raise ValueError(f"{path}: its first line does not name the columns of this version: "
                         f"{', '.join(COLUMNS)}")
    rows = []
    for number, fields in enumerate(lines[1:], 2):
        try:
            rows.append(parse_row(fields))
        except ValueError as problem:
            raise ValueError(f"{path}, row {number}: {problem}") from None
    return rows


def append(path, row):
    """Adds a row and waits until it is on the disk. A line that a kill cut off is removed first."""
    folder = os.path.dirname(path)
    if folder:
        os.makedirs(folder, exist_ok=True)
    with open(path, "ab+") as f:
        f.seek(0)
        whole = f.read().rfind(b"\n") + 1
        f.truncate(whole)
        if not whole:
            f.write(",".join(COLUMNS).encode() + b"\n")
        f.write(row_text(row).encode())
        f.flush()
        os.fsync(f.fileno())


def curve(text):
    """"100:2.1 200:1.9" as [(100, 2.1), (200, 1.9)]."""
    return [(int(step), float(loss)) for step, loss in (point.split(":") for point in text.split())]


# ---- statistics


def mean(x):
    return math.fsum(x) / len(x)


def deviation(x):
    """Standard deviation of a sample of at least two, else NaN."""
    if len(x) < 2:
        return math.nan
    m = mean(x)
    return math.sqrt(math.fsum((v - m) ** 2 for v in x) / (len(x) - 1))


def beta_fraction(a, b, x):
    """Lentz's evaluation of the continued fraction of the incomplete beta function (DLMF 8.17.22)."""
    tiny = 1e-300
    c, d = 1.0, 1 - (a + b) * x / (a + 1)
    d = 1 / (d if abs(d) > tiny else tiny)
    value = d
    for m in range(1, 500):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 + term * d
            d = 1 / (d if abs(d) > tiny else tiny)
            c = 1 + term / c
            c = c if abs(c) > tiny else tiny
            value *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return value


def beta_regularised(a, b, x):
    """I_x(a, b), the regularised incomplete beta function."""
    if x <= 0 or x >= 1:
        return 0.0 if x <= 0 else 1.0
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) +
                     b * math.log1p(-x))
    if x < (a + 1) / (a + b + 2):
        return front * beta_fraction(a, b, x) / a
    return 1 - front * beta_fraction(b, a, 1 - x) / b


def t_two_sided(t, freedom):
    """Probability that |T| of Student's distribution is at least |t|."""
    if math.isnan(t):
        return math.nan
    if math.isinf(t):
        return 0.0
    return beta_regularised(freedom / 2, 0.5, freedom / (freedom + t * t))


def t_quantile(level, freedom):
    """The t with P(|T| < t) = level."""
    low, high = 0.0, 1e9
    for _ in range(200):
        middle = (low + high) / 2 if high < 4 else math.sqrt(max(low, 1e-3) * high)
        if 1 - t_two_sided(middle, freedom) < level:
            low = middle
        else:
            high = middle
    return high


def normal(z):
    """P(Z < z) of the standard normal distribution."""
    return 0.5 * math.erfc(-z / math.sqrt(2))


def power(n, effect, p=0.01):
    """The chance that n pairs, whose differences have a mean of `effect` standard deviations, give a
    two-sided p below `p`: the integral over the measured deviation s, in units of the true one, of
    P(|sqrt(n) effect + Z| > t s), by Simpson's rule."""
    freedom, shift, critical = n - 1, effect * math.sqrt(n), t_quantile(1 - p, n - 1)
    spread, panels = 10 / math.sqrt(2 * freedom), 400
    low, high = max(1e-12, 1 - spread), 1 + spread
    scale = math.log(2) + freedom / 2 * math.log(freedom / 2) - math.lgamma(freedom / 2)
    total = 0.0
    for i in range(panels + 1):
        s = low + (high - low) * i / panels
        density = math.exp(scale + (freedom - 1) * math.log(s) - freedom * s * s / 2)
        beyond = normal(shift - critical * s) + normal(-shift - critical * s)
        total += (1 if i in (0, panels) else 4 if i % 2 else 2) * density * beyond
    return total * (high - low) / panels / 3


def pairs_needed(effect):
    """The least number of pairs that shows a true mean of `effect` standard deviations with power 0.9 at
    p < 0.01."""
    effect = abs(effect)
    if effect == 0:
        return math.inf
    least = 2 if math.isinf(effect) else max(2, math.ceil(((2.5758 + 1.2816) / effect) ** 2))  # were s known
    if least > 10000:
        return least
    while power(least, effect) < 0.9:
        least += 1
    return least


def paired(differences, level=0.95):
    """The paired t-test of differences: mean, standard error, t, two-sided p, half width of the
    confidence interval of `level`, and the number of pairs that would show a true difference of the
    measured mean and deviation with power 0.9 at p < 0.01."""
    n = len(differences)
    m, s = mean(differences), deviation(differences)
    if n < 2:
        return {"n": n, "mean": m, "se": math.nan, "t": math.nan, "p": math.nan, "half": math.nan,
                "needed": math.nan}
    se = s / math.sqrt(n)
    t = m / se if se > 0 else math.copysign(math.inf, m) if m else math.nan
    needed = pairs_needed(m / s if s > 0 else math.copysign(math.inf, m) if m else 0.0)
    return {"n": n, "mean": m, "se": se, "t": t, "p": t_two_sided(t, n - 1),
            "half": t_quantile(level, n - 1) * se, "needed": needed}


def holm(p):
    """{name: p} corrected for the number of tests (Holm 1979). NaN stays NaN and does not count."""
    known = sorted((value, name) for name, value in p.items() if not math.isnan(value))
    corrected, least = {name: math.nan for name in p}, 0.0
    for i, (value, name) in enumerate(known):
        least = max(least, min(1.0, value * (len(known) - i)))
        corrected[name] = least
    return corrected
