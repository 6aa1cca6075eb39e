#!/usr/bin/env python3
"""Writes a comparison as one self-contained HTML file, and the picture that answers its question.

    scripts/report.py dev/compare/attention.toml                       report beside the results
    scripts/report.py GRID.toml --results R.csv --measures M.json -o report.html
    scripts/report.py GRID.toml --picture docs/comparison.png          .png (needs matplotlib) or .svg

The grid file and the CSV are those of scripts/compare.py; the measures are those of scripts/measure.py
(--runs measures run folders at once, which needs NumPy). The question is whether one arm beats the
baseline: --arm names it, or the grid's `question`, else it is the first arm after the baseline. The file
needs no network. Equal inputs give equal bytes. Needs Python 3.11.
"""

import argparse
import json
import math
import os
import shlex
import sys

import charts
import compare
import results
import style
from charts import MINUS, signed
from svg import ROLES, Canvas, escape

DECIDED = 0.01  # a corrected p below which a difference counts as shown (docs/comparison.md)
LIKELY = 0.05
MANY_PAIRS = 10000  # more pairs than anyone runs
CURVES = 4  # arms of one picture of losses
FEW_ARMS = 3  # a setting with more takes the page's whole width
FEW_SEEDS = 5  # the protocol's least
# A run had less processor time for a second than this part of what the setting's best runs had.
LOADED = 0.9
SHORT_RUN = 5.0  # seconds; start and end weigh too much in the load of a shorter run


# ---- what the results say


class Arm:
    """An arm of a setting with its runs. `test` is None for the baseline and where runs diverged."""

    def __init__(self, item, best, losses, test, p, jobs, known, look):
        self.name, self.title = item["name"], item["title"]
        self.best, self.losses, self.test, self.p = best, losses, test, p
        rows = [known[job.key] for job in jobs if job.key in known]
        stages = {job.key: job.stage for job in jobs}
        self.tune = [row for row in rows if stages[row["flags"]] == "tune"]
        self.final = [row for row in rows if stages[row["flags"]] == "final"]
        self.colour, self.dash, self.marker = look
        self.is_base = self.is_question = False

    @property
    def mean(self):
        return results.mean(list(self.losses.values())) if self.losses else math.nan

    @property
    def decided(self):
        return self.test is not None and self.p < DECIDED

    @property
    def diverged(self):
        return sum(1 for row in self.final if row["diverged"])


class View:
    """A setting: `arms` have results on fresh seeds, the best first; `open` have none yet."""

    def __init__(self, grid, setting, known, question, looks):
        self.name, self.title = setting["name"], setting["title"]
        base = setting.get("baseline", grid["baseline"])
        self.base_title = next((a["title"] for a in grid["arm"] if a["name"] == base), base)
        self.has_final = compare.has_final(grid)
        table = {row[0]["name"]: row for row in compare.compare_setting(grid, setting, known)}
        self.arms, self.open, self.left = [], [], 0
        items = {item["name"]: item for item in compare.arms_of(grid, setting)}
        # First those of the table, in its order.
        for item in ({name: items[name] for name in table} | items).values():
            tune, final, best = compare.arm_jobs(grid, setting, item, known)
            self.left += sum(1 for job in tune + final if job.key not in known)
            row = table.get(item["name"])
            losses, test, p = (row[2], row[3], row[4]) if row else ({}, None, math.nan)
            arm = Arm(item, best, losses, test, p, tune + final, known, looks[item["name"]])
            arm.is_base, arm.is_question = item["name"] == base, item["name"] == question
            (self.arms if losses else self.open).append(arm)
        self.base = next((a for a in self.arms if a.is_base), None)
        self.question = next((a for a in self.arms if a.is_question and not a.is_base), None)
        self.tests = sum(1 for a in self.arms if a.test is not None)

    @property
    def everyone(self):
        return self.arms + self.open

    @property
    def rows(self):
        return [row for arm in self.everyone for row in arm.tune + arm.final]


def read_views(grid, known, question):
    looks = style.looks([arm["name"] for arm in grid["arm"]])
    views = [View(grid, setting, known, question, looks) for setting in grid["setting"]]
    return [view for view in views if view.rows]


def question_of(grid, chosen):
    """The arm that the question is about."""
    names = [arm["name"] for arm in grid["arm"]]
    name = chosen or grid.get("question") or next((n for n in names if n != grid["baseline"]), grid["baseline"])
    if name not in names:
        compare.fail(f"the grid has no arm {name}; it has {', '.join(names)}")
    return name


def unit_of(rows):
    """Bytes are tokens where the data is text."""
    files = []
    for flags in {row["flags"] for row in rows}:
        words = shlex.split(flags)
        files += [value for flag, value in zip(words, words[1:]) if flag == "--data"]
    return "nats per byte" if files and all(f.endswith(".txt") for f in files) else "nats per token"


# ---- sentences


def plural(count, word):
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def p_text(p):
    return "p " + p_number(p)


def p_number(p):
    """A p-value with its sign of relation."""
    return "< 0.0001" if p < 0.0001 else f"= {p:.2g}" if p < 0.0995 or p == 1 else f"= {p:.2f}"


def side(value):
    return "below" if value < 0 else "above"


def interval_text(test):
    low, high = test["mean"] - test["half"], test["mean"] + test["half"]
    near, far = sorted((low, high), key=abs)
    if low * high > 0:
        return f"95 % interval {abs(near):.4f} to {abs(far):.4f} {side(test['mean'])}"
    return f"95 % interval from {abs(low):.4f} below to {abs(high):.4f} above"


def needed_text(test, p, tests):
    """How many pairs would decide, where they are too few."""
    if test["p"] < DECIDED:
        return f"its p alone would do, its p corrected for {plural(tests, 'arm')} does not"
    if not test["needed"] <= MANY_PAIRS:
        return f"more than {MANY_PAIRS:,} pairs would be needed for a true difference this small"
    needed = math.ceil(test["needed"])
    if needed <= test["n"]:
        return f"{plural(test['n'], 'pair')} are too few for a spread this uncertain"
    return f"about {needed:,} pairs would decide a true difference of this size"


def verdict(test, p):
    """(kind, word) of a difference."""
    if test is None or math.isnan(test["p"]):
        return "open", "no test"
    if p < DECIDED:
        return ("better", "better") if test["mean"] < 0 else ("worse", "worse")
    if p < LIKELY:
        return ("open", "likely better, not decided") if test["mean"] < 0 else \
            ("open", "likely worse, not decided")
    return "open", "not decided"


def finding(title, base, test, p, tests, unit, pairs="pair"):
    """The sentence about a paired test: size, interval, n, p, and what that allows to say."""
    if math.isnan(test["half"]):
        return (f"{title} ends {abs(test['mean']):.4f} {unit} {side(test['mean'])} {base} on one {pairs}: "
                "one pair says nothing about the spread.")
    if math.isnan(test["p"]):
        return f"{title} and {base} end equal on all {plural(test['n'], pairs)}."
    corrected = ""
    if tests > 1:
        corrected = f", {p_number(p).removeprefix('= ')} after correction for {plural(tests, 'arm')}"
    text = (f"{title} ends {abs(test['mean']):.4f} {unit} {side(test['mean'])} {base} "
            f"({interval_text(test)}; {plural(test['n'], pairs)}; {p_text(test['p'])}{corrected}): ")
    kind, word = verdict(test, p)
    if kind != "open":
        return text + f"{word} than {base}, at p < {DECIDED}."
    low, high = test["mean"] - test["half"], test["mean"] + test["half"]
    text += word
    if low < 0 < high:
        text += f", but any difference larger than {max(-low, high):.4f} is unlikely"
    return f"{text}; {needed_text(test, p, tests)}."


def setting_sentence(view, unit):
    """(kind, word, sentence) of the question's arm in a setting, or of the rates where that is all."""
    arm = view.question
    if not view.has_final:
        return ("open", "rates open" if any(a.best is None for a in view.open) else "rates chosen",
                "; ".join(rate_text(a) for a in view.open) + ".")
    if view.base is None or not view.base.losses:
        return "open", "unfinished", f"{view.base_title}, the baseline, has no runs on fresh seeds yet."
    if arm is None:
        return "open", *without_question(view)
    bad = [f"{a.title} on {a.diverged} of {plural(len(a.final), 'seed')}" for a in (arm, view.base) if a.diverged]
    if arm.test is None:
        reason = f"diverged: {'; '.join(bad)}" if bad else "no pairs of equal seeds"
        return "open", "no test", f"No difference of {arm.title} and {view.base_title} can be stated ({reason})."
    text = finding(arm.title, view.base_title, arm.test, arm.p, view.tests, unit)
    return *verdict(arm.test, arm.p), text + (f" Diverged: {'; '.join(bad)}." if bad else "")


def without_question(view):
    """(word, sentence) of a setting in which the question's arm has no difference from the baseline."""
    asked = next((a for a in view.everyone if a.is_question), None)
    if asked is None:
        return "not asked", "The arm of the question does not run in this setting."
    if len(view.everyone) == 1:
        return "one arm", f"{asked.title} is the only arm, so there is no difference to state."
    if asked.is_base:
        return "not asked", f"{asked.title}, the arm of the question, is the baseline here."
    return "unfinished", f"{asked.title} has no runs on fresh seeds yet."


def rate_text(arm):
    """The best rate of an arm, and its mean loss on the seeds that chose it."""
    if arm.best is None:
        return f"{arm.title}: no rate chosen yet"
    loss = results.mean([row["final_val"] for row in arm.tune if row["rate"] == arm.best])
    return f"{arm.title}: best at rate {arm.best:g} (loss {number(loss)})"


def others_sentence(view):
    """What is shown about the other arms of a setting."""
    others = [a for a in view.arms if a.test is not None and not a.is_question]
    if not others:
        return ""
    shown = [f"{a.title} ({abs(a.test['mean']):.4f} {side(a.test['mean'])})" for a in others if a.decided]
    rest = len(others) - len(shown)
    if not shown:
        subject = f"{others[0].title} is" if rest == 1 else f"The other {rest} arms are"
        return f"{subject} not told apart from {view.base_title} at p < {DECIDED}."
    text = f"Also different from {view.base_title} at p < {DECIDED}: {'; '.join(shown)}."
    if not view.question or not view.question.decided:
        text = text.replace("Also different", "Different", 1)
    return text + (f" Not told apart: {rest} more." if rest else "")


def overall_test(views):
    """The paired test of each seed's difference averaged over settings, on the seeds that all settings
    with the question's arm have; None if there is one setting or no such seed."""
    pairs = []
    for view in views:
        if view.question is not None and view.question.test is not None:
            base = view.base.losses
            pairs.append({s: loss - base[s] for s, loss in view.question.losses.items() if s in base})
    common = sorted(set.intersection(*map(set, pairs))) if len(pairs) > 1 else []
    if not common:
        return None
    return results.paired([results.mean([p[seed] for p in pairs]) for seed in common])


def overall_sentence(views, unit):
    """The answer in one sentence, and the count of settings by verdict."""
    told = [view for view in views if view.question is not None and view.question.test is not None]
    if not any(view.has_final for view in views):
        return "This grid chooses learning rates. It has no fresh seeds and compares no arms.", ""
    if not told:
        if all(len(view.everyone) == 1 for view in views):
            return "No setting has a second arm, so there is nothing to compare.", ""
        if any(view.question is not None and view.base is not None for view in views):
            return "No answer: no setting allows a test, for the reasons below.", ""
        return "No answer yet: no setting has runs of both arms on fresh seeds.", ""
    arm, base = told[0].question.title, told[0].base_title
    if len(told) == 1:
        where = f"{told[0].title}: " if len(views) > 1 else ""
        return where + setting_sentence(told[0], unit)[2], ""
    kinds = [verdict(v.question.test, v.question.p)[0] for v in told]
    if {"better", "worse"} <= set(kinds):  # a mean would hide it
        places = {kind: "; ".join(f"{v.title}: {signed(v.question.test['mean'])}" for v, k in zip(told, kinds) if k == kind)
                  for kind in kinds}
        rest = f"; not told apart in {kinds.count('open')} ({places['open']})" if "open" in places else ""
        return (f"It depends: {arm} is better than {base} in {kinds.count('better')} of {len(told)} settings "
                f"({places['better']}), worse in {kinds.count('worse')} ({places['worse']}){rest}. "
                f"Differences in {unit}.",
                f"Better and worse mean p < {DECIDED} after correction for the arms of the setting.")
    tally = (f"By setting, {arm} is better than {base} in {kinds.count('better')}, worse in "
             f"{kinds.count('worse')} and not told apart in {kinds.count('open')} of {len(told)} "
             f"(p < {DECIDED} after correction for the arms of the setting).")
    test = overall_test(told)
    if test is None:
        return tally, "The settings have no seed in common, so there is no mean over them."
    text = finding(arm, base, test, test["p"], 1, unit, "common seed")
    return f"On average over {len(told)} settings, {text}", tally


def caveats(views):
    """What a reader should know before he believes the numbers."""
    rows = [row for view in views for row in view.rows]
    out = []
    left = sum(view.left for view in views)
    undecided = [f"{a.title} ({v.title})" for v in views for a in v.everyone if a.best is None]
    if left or undecided:
        text = f"The comparison is unfinished: {plural(left, 'run')} known to be left"
        out.append(text + (f"; no rate chosen yet for {'; '.join(undecided)}." if undecided else "."))
    for column, what in (("version", "versions of the program"), ("cpu", "machines"),
                         ("gemm", "libraries of matrix products"), ("threads", "numbers of threads")):
        values = sorted({str(row[column]) for row in rows})
        if len(values) > 1:
            out.append(f"The runs are of {len(values)} {what}: {'; '.join(values)}.")
    if any("dirty" in row["version"] for row in rows):
        out.append("Some runs are of a program with uncommitted changes (\u201cdirty\u201d).")
    bad = [row for row in rows if row["diverged"]]
    if bad:
        final = sum(1 for row in bad if row["stage"] == "final")
        out.append(f"{plural(len(bad), 'run')} of {len(rows)} diverged, {final} of them on fresh seeds. None is "
                   "left out: a rate with a diverged run is not chosen, and an arm with one on fresh seeds has no "
                   "test.")
    few = sorted({a.title for v in views for a in v.arms if len(a.losses) < FEW_SEEDS})
    if few:
        out.append(f"Fewer than {FEW_SEEDS} fresh seeds in some setting: {'; '.join(few)}.")
    loaded = sum(1 for view in views for row in view.rows if row["flags"] in loaded_runs(view))
    if loaded:
        out.append(f"{plural(loaded, 'run')} of {len(rows)} shared the processor with other work; losses do not "
                   "depend on that, times do.")
    return out


# ---- times


def loaded_runs(view):
    """The flags of the runs with less processor time than the setting's other runs."""
    loads = {row["flags"]: row["cpu_seconds"] / row["seconds"] / row["threads"]
             for row in view.rows if row["seconds"] >= SHORT_RUN}
    if not loads:
        return set()
    usual = sorted(loads.values())[int(0.9 * (len(loads) - 1))]
    return {flags for flags, load in loads.items() if load < LOADED * usual}


def clocks_of(view):
    """[(arm, median ms of a step, share of loaded runs)], the fastest first."""
    loaded, out = loaded_runs(view), []
    for arm in view.arms:
        times = sorted(row["ms"] for row in arm.final if math.isfinite(row["ms"]))
        if times:
            share = sum(1 for row in arm.final if row["flags"] in loaded) / len(arm.final)
            out.append((arm, times[len(times) // 2], share))
    return sorted(out, key=lambda c: c[1])


# ---- HTML


STYLE = """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 FONT;font-variant-numeric:tabular-nums}
main{max-width:1120px;margin:0 auto;padding:28px 12px 64px}
h1{font-size:clamp(1.35rem,1rem + 1.6vw,2rem);line-height:1.2;margin:0 0 .7rem;text-wrap:balance}
h2{font-size:1.3rem;line-height:1.25;margin:3.2rem 0 .5rem;padding-top:1rem;border-top:1px solid var(--grid)}
h3{font-size:1rem;margin:1.8rem 0 .5rem}
p{margin:.5rem 0;max-width:46rem}
.answer{font-size:clamp(1.08rem,1rem + .5vw,1.3rem);line-height:1.45;font-weight:500;max-width:52rem}
.note,figcaption,.small{color:var(--muted);font-size:.9rem}
.verdicts{list-style:none;margin:1.2rem 0;padding:0;border-top:1px solid var(--grid)}
.verdicts li{padding:.75rem 0;border-bottom:1px solid var(--grid);display:grid;gap:.15rem 1.2rem}
.verdicts b{font-weight:600}
.verdicts p{margin:.15rem 0}
.chip{display:inline-block;border:1px solid var(--axis);border-radius:99px;padding:0 .6rem;font-size:.82rem;
 line-height:1.5rem;white-space:nowrap}
.chip.better,.chip.worse{background:var(--ink);color:var(--paper);border-color:var(--ink);font-weight:600}
@media(min-width:760px){.verdicts li{grid-template-columns:15rem 1fr}}
figure{margin:0;break-inside:avoid}
figure svg{display:block;width:100%;height:auto;overflow:visible}
.panels{display:grid;gap:1.6rem 1.6rem;grid-template-columns:repeat(auto-fill,minmax(min(100%,320px),1fr));
 margin:1rem 0;align-items:start}
.panels figure{max-width:440px}
.pair{display:grid;gap:.5rem 2rem;align-items:start}
.pair>div{min-width:0}
.pair>div>figure{max-width:440px}
.settings{display:grid;gap:0 2rem;align-items:start;
 grid-template-columns:repeat(auto-fill,minmax(min(100%,480px),1fr))}
.settings .whole{grid-column:1/-1}
.settings>div{min-width:0}
.halves{display:grid;gap:.5rem 2rem;align-items:start}
@media(min-width:900px){.pair{grid-template-columns:400px 1fr}.halves{grid-template-columns:1fr 1fr}}
.minis{display:grid;gap:1rem .5rem;grid-template-columns:repeat(auto-fill,minmax(158px,1fr));margin:.6rem 0;
 align-items:end}
.minis figure{max-width:230px}
.minis figcaption{color:var(--ink);font-size:.8rem;line-height:1.25;margin-bottom:.2rem}
figcaption.head{color:var(--ink);font-weight:600;font-size:.95rem;margin-bottom:.2rem}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:.15rem 1rem;margin:.4rem 0;padding:0;font-size:.85rem}
a{color:inherit;text-underline-offset:.2em}
.swatch{display:inline-block;width:30px;height:10px;margin-right:.4rem;vertical-align:middle}
.box{overflow-x:auto;margin:.6rem 0;border:1px solid var(--grid);border-radius:6px;max-width:100%}
.box:focus-visible{outline:2px solid var(--ink)}
.tall{max-height:70vh;overflow-y:auto}
table{border-collapse:collapse;font-size:.85rem;width:100%}
th,td{padding:.35rem .5rem;text-align:right;white-space:nowrap;border-bottom:1px solid var(--grid)}
th:first-child,td:first-child,td.text,th.text{text-align:left}
.plain thead th{white-space:normal}
thead th{background:var(--card);position:sticky;top:0;font-weight:600;vertical-align:bottom}
tbody tr:last-child>*{border-bottom:0}
tr.asked>*{font-weight:600}
tbody th{font-weight:inherit}
th button{all:unset;cursor:pointer;font:inherit}
th button:focus-visible{outline:2px solid var(--ink)}
th button::after{content:" \\2195";color:var(--muted)}
th[aria-sort=ascending] button::after{content:" \\2191";color:var(--ink)}
th[aria-sort=descending] button::after{content:" \\2193";color:var(--ink)}
pre{margin:0;padding:.7rem .8rem;font:.8rem/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;white-space:pre}
pre.wrap{white-space:pre-wrap;overflow-wrap:anywhere}
code{font:.9em ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;overflow-wrap:anywhere}
details{margin:.8rem 0}
summary{cursor:pointer;font-weight:600;padding:.3rem 0}
dl{display:grid;gap:.2rem 1rem;font-size:.9rem;margin:.6rem 0}
dt{color:var(--muted)}
dd{margin:0 0 .5rem;overflow-wrap:anywhere}
@media(min-width:760px){dl{grid-template-columns:14rem 1fr}dd{margin:0}}
@media print{
 @page{margin:14mm}
 body{font-size:11pt;print-color-adjust:exact;-webkit-print-color-adjust:exact}
 main{padding:0;max-width:none}
 h2{margin-top:1.6rem}
 h2,h3,figcaption,section>.note,.legend{break-after:avoid}
 p,.setting,.settings>div{break-inside:avoid}
 .panels,.halves{grid-template-columns:1fr 1fr}
 .pair{grid-template-columns:2fr 3fr}
 .minis{grid-template-columns:repeat(5,1fr)}
 .pair .minis,.halves .minis,.settings .minis{grid-template-columns:repeat(3,1fr)}
 .settings{grid-template-columns:1fr 1fr}
 .settings .whole .minis{grid-template-columns:repeat(6,1fr)}
 .pair,.legend,.minis figcaption,.note{font-size:8pt}
 dl{grid-template-columns:12rem 1fr}
 .verdicts li,tr{break-inside:avoid}
 nav{display:none}
 .box,.tall{overflow:visible;max-height:none;border:0}
 table{font-size:7pt}th,td{padding:.15rem .25rem;white-space:normal}
 th button::after{content:""!important}
}
"""

# Sorts a table by a column: numbers by value, all else by text; what has no number comes last.
SCRIPT = """
document.querySelectorAll('table.sortable').forEach(function (table) {
  table.querySelectorAll('thead th').forEach(function (head, column) {
    head.querySelector('button').addEventListener('click', function () {
      var down = head.getAttribute('aria-sort') === 'ascending';
      table.querySelectorAll('thead th').forEach(function (h) { h.removeAttribute('aria-sort'); });
      head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
      var rows = Array.from(table.tBodies[0].rows).map(function (row) {
        var text = row.cells[column].dataset.value || row.cells[column].textContent;
        return { row: row, text: text, number: Number(text.replace('\\u2212', '-')) };
      });
      rows.sort(function (a, b) {
        var x = isNaN(a.number), y = isNaN(b.number), order;
        if (x !== y) return x ? 1 : -1;
        order = x ? a.text.localeCompare(b.text) : a.number - b.number;
        return down ? -order : order;
      });
      rows.forEach(function (r) { table.tBodies[0].appendChild(r.row); });
    });
  });
});
"""


def variables():
    """The roles of colours as CSS variables, light, and dark where the reader's machine is."""
    from svg import FONT
    cards = {"card": ("#f6f7f9", "#212225")}
    light, dark = (";".join(f"--{name}:{pair[i]}" for name, pair in (ROLES | cards).items()) for i in (0, 1))
    return (f":root{{color-scheme:light dark;{light}}}\n@media screen and (prefers-color-scheme:dark)"
            f"{{:root{{{dark}}}}}" + STYLE.replace("FONT", FONT))


def swatch(arm):
    canvas = Canvas(30, 10)
    canvas.line([(0, 5), (30, 5)], arm.colour, 2, arm.dash)
    canvas.mark(15, 5, arm.marker, arm.colour, 3.4)
    body = "".join(canvas.element(item, lambda c: f"var(--{c})" if c in ROLES else c) for item in canvas.items)
    return f'<svg class="swatch" viewBox="0 0 30 10" aria-hidden="true">{body}</svg>'


def legend(arms):
    items = "".join(f"<li>{swatch(arm)}{escape(arm.title)}</li>" for arm in arms)
    return f'<ul class="legend">{items}</ul>'


def figure(svg, caption="", head=""):
    above = f'<figcaption class="head">{escape(head)}</figcaption>' if head else ""
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption and not head else ""
    return f"<figure>{above}{svg}{below}</figure>"


def mini(arm, svg, own=False, extra=""):
    extra += " (own scale)" if own else ""
    return f"<figure><figcaption>{swatch(arm)}{escape(arm.title + extra)}</figcaption>{svg}</figure>"


def scroll_box(content, label, tall=False):
    """A box that scrolls by itself, by keyboard too."""
    kind = "box tall" if tall else "box"
    return f'<div class="{kind}" role="region" tabindex="0" aria-label="{escape(label)}">{content}</div>'


def table(head, rows, label, classes="", texts=(), sortable=False, tall=False):
    """A table from texts; rows are (class of the row, cells). A cell is a text or (text, sort value)."""
    def cell(i, value):
        text, value = value if isinstance(value, tuple) else (value, None)
        kind = ' class="text"' if i in texts else ""
        data = f' data-value="{escape(value)}"' if value is not None else ""
        if i == 0:
            return f'<th scope="row"{kind}{data}>{text}</th>'
        return f"<td{kind}{data}>{text}</td>"

    def title(i, text):
        kind = ' class="text"' if i in texts else ""
        inner = f'<button type="button">{escape(text)}</button>' if sortable else escape(text)
        return f'<th scope="col"{kind}>{inner}</th>'

    out = [f'<table class="{"sortable" if sortable else classes}">'] if sortable or classes else ["<table>"]
    out.append("<thead><tr>" + "".join(title(i, text) for i, text in enumerate(head)) + "</tr></thead><tbody>")
    for kind, cells in rows:
        mark = f' class="{kind}"' if kind else ""
        out.append(f"<tr{mark}>" + "".join(cell(i, value) for i, value in enumerate(cells)) + "</tr>")
    out.append("</tbody></table>")
    return scroll_box("\n".join(out), label, tall)


def number(value, digits=4):
    return "\u2013" if value is None or math.isnan(value) else "\u221e" if math.isinf(value) else \
        f"{value:.{digits}f}".replace("-", MINUS)


def section(title, *parts):
    body = "\n".join(part for part in parts if part)
    return f'<section id="{anchor(title)}">\n<h2>{escape(title)}</h2>\n{body}\n</section>' if body else ""


def anchor(title):
    return title.lower().replace(" ", "-")


def contents(sections):
    """Links to the sections, from their first lines."""
    titles = [part.split("<h2>")[1].split("</h2>")[0] for part in sections]
    links = "".join(f'<li><a href="#{anchor(title)}">{title}</a></li>' for title in titles)
    return f'<nav aria-label="Contents"><ul class="legend">{links}</ul></nav>'


# ---- sections of the report


def answer_section(grid, views, unit):
    answer, tally = overall_sentence(views, unit)
    items = []
    for view in views:
        kind, word, text = setting_sentence(view, unit)
        others = others_sentence(view)
        items.append(f'<li><div><b>{escape(view.title)}</b><br><span class="chip {kind}">{escape(word)}</span></div>'
                     f"<div><p>{escape(text)}</p>" +
                     (f'<p class="note">{escape(others)}</p>' if others else "") + "</div></li>")
    return (f"<header>\n<h1>{escape(grid.get('title', grid['name']))}</h1>\n"
            f'<p class="answer">{escape(answer)}</p>\n' + (f"<p>{escape(tally)}</p>\n" if tally else "") +
            "</header>\n" + f'<ul class="verdicts">{"".join(items)}</ul>')


def forest_section(views, limit, unit):
    views = [view for view in views if view.base is not None and view.tests]
    panels = "".join(figure(charts.forest(view, limit, unit), head=view.title) for view in views)
    if not panels:
        return ""
    return section("Differences", '<p class="note">Mean difference of the final validation loss over pairs of equal '
                   f"seed, with 95 % intervals; all panels have one scale, and an arrow points to what lies beyond. "
                   f"Full marker: decided (p &lt; {DECIDED} after correction for the arms of the setting); hollow: "
                   f"not decided.</p>", f'<div class="panels">{panels}</div>')


def main_arms(view):
    """The baseline, the question's arm, and those with the most seeds."""
    ranked = sorted((a for a in view.arms if a.final),
                    key=lambda a: (not a.is_base, not a.is_question, -len(a.final)))
    return ranked[:CURVES]


def curves_section(views):
    parts = []
    for view in views:
        arms = main_arms(view)
        svg = charts.loss_chart(view, arms) if arms else None
        if svg is None:
            continue
        curves = charts.difference_curves(view, [a for a in view.arms if not a.is_base])
        beside = (f'<div><p class="note">Difference from {escape(view.base_title)}, paired by seed</p>'
                  f'<div class="minis">{"".join(mini(*chart) for chart in curves)}</div></div>'
                  if curves else "")
        parts.append(f'<div class="setting"><h3>{escape(view.title)}</h3><div class="pair"><div>{legend(arms)}'
                     f"{figure(svg)}</div>{beside}</div></div>")
    if not parts:
        return ""
    return section("Loss curves", '<p class="note">Lines: mean training loss of the steps before, with the standard '
                   "deviation over seeds as a band. Markers: validation loss. In the small panels the band and the "
                   "bars are 95 % intervals of the mean difference; below the line is better.</p>", *parts)


def rates_section(views):
    parts = []
    for view in views:
        made = charts.rate_charts(view, [a for a in view.everyone if a.tune])
        if made:
            body = "".join(mini(arm, svg, own, "" if arm.best is not None else " (open)") for arm, svg, own in made)
            kind = "" if len(made) <= FEW_ARMS else ' class="whole"'
            parts.append(f'<div{kind}><h3>{escape(view.title)}</h3><div class="minis">{body}</div></div>')
    if not parts:
        return ""
    parts = ['<div class="settings">', *parts, "</div>"]
    return section("Final loss by learning rate", '<p class="note">Large markers: seeds that chose the rate, with '
                   "their mean as a line. Faint markers beside them: fresh seeds at the chosen rate. A triangle at "
                   "the top: a loss above the panel. A cross: diverged.</p>", *parts)


class Measured:
    """An arm of the measures: its name, title and look, and its runs in the order of seeds."""

    def __init__(self, title, look, runs):
        self.title, self.runs = title, runs
        self.colour, self.dash, self.marker = look


def measured_arms(grid, measures):
    """[(title of a setting, [Measured])] in the grid's order, then what the grid does not have."""
    titles = {arm["name"]: arm["title"] for arm in grid["arm"]}
    settings = {s["name"]: s["title"] for s in grid["setting"]}
    groups = {}
    for run in measures["runs"]:
        groups.setdefault(run["setting"], {}).setdefault(run["arm"], []).append(run)
    order = list(settings)
    looks = style.looks(list(titles) + [name for arms in groups.values() for name in arms])
    out = []
    for setting in sorted(groups, key=lambda s: (order.index(s) if s in order else len(order), s or "")):
        arms = groups[setting]
        names = sorted(arms, key=lambda a: (list(titles).index(a) if a in titles else len(titles), a))
        out.append((settings.get(setting, setting or "Other runs"),
                    [Measured(titles.get(n, n), looks[n], sorted(arms[n], key=lambda r: r["seed"]))
                     for n in names]))
    return out


CIRCUIT_TITLES = {"QK": "QK: W_Q W_K\u1d40", "OV": "OV: W_O W_V"}


def composed_section(groups):
    parts = []
    for title, arms in groups:
        panels, shown = [], []
        for circuit, name in CIRCUIT_TITLES.items():
            series = [(arm, run["composed"][circuit]) for arm in arms
                      for run in arm.runs[:1] if run.get("composed", {}).get(circuit)]
            if series:
                panels.append(figure(charts.composed_chart(name, series), head=name))
                shown += [arm for arm, _ in series if arm not in shown]
        if panels:
            parts.append(f'<h3>{escape(title)}</h3>{legend(shown)}<div class="panels">{"".join(panels)}</div>')
    if not parts:
        return ""
    return section("Composed steps", '<p class="note">How far a step moves a head\u2019s composed map: spectral norm '
                   "of its change over the learning rate. Line: the largest over heads and layers; area: down to the "
                   "median. First measured seed of each arm.</p>", *parts)


def all_heads(run, circuit):
    return [head for layer in run["spectra"][circuit] for head in layer]


def middle(values):
    """The median; infinite where more than half of the values are null."""
    values = sorted(math.inf if v is None else v for v in values)
    return values[len(values) // 2]


def spectra_section(groups):
    parts = []
    for title, arms in groups:
        arms = [arm for arm in arms if any("spectra" in run for run in arm.runs)]
        if not arms:
            continue
        rows, halves = [], []
        for circuit, name in CIRCUIT_TITLES.items():
            first = {arm: next(all_heads(r, circuit) for r in arm.runs if "spectra" in r) for arm in arms}
            limits = charts.spectrum_limits(list(first.values()))
            body = "".join(mini(arm, charts.spectrum_chart(f"{title}, {arm.title}: spectra of {name}", arm, heads,
                                                           limits)) for arm, heads in first.items())
            halves.append(f'<div><p class="note">{escape(name)}</p><div class="minis">{body}</div></div>')
            for arm in arms:
                heads = [h for run in arm.runs if "spectra" in run for h in all_heads(run, circuit)]
                rows.append(("", [escape(arm.title), circuit, str(sum("spectra" in r for r in arm.runs)),
                                  str(len(heads)), f"{middle([h['singular'][0] for h in heads]):.3g}",
                                  f"{middle([h['stable_rank'] for h in heads]):.3g}",
                                  f"{middle([h['condition'] for h in heads]):.3g}"]))
        parts.append(f'<h3>{escape(title)}</h3><div class="halves">{"".join(halves)}</div>')
        parts.append(table(["arm", "circuit", "runs", "heads", "spectral norm", "stable rank", "condition"], rows,
                           f"Spectra, {title}"))
    if not parts:
        return ""
    return section("Spectra of the composed maps", '<p class="note">Singular values of each head\u2019s composed map '
                   "after the last step (thin lines: heads of all layers of the first measured seed; thick: their "
                   "median). The table has medians over the heads of all measured runs.</p>", *parts)


def clock_section(views):
    panels = []
    for view in views:
        clocks = clocks_of(view)
        if clocks:
            panels.append(figure(charts.clock_chart(view, clocks, view.base), head=view.title))
    if not panels:
        return ""
    return section("Wall clock", '<p class="note">Median time of a step on fresh seeds, and its ratio to the '
                   "baseline\u2019s. \u25b2: the share of runs that had less processor time than others, because the "
                   "machine was loaded.</p>", f'<div class="panels">{"".join(panels)}</div>')


def arms_section(views, unit):
    parts = []
    head = ["arm", "rate", "seeds", "loss", "deviation", "difference", "\u00b1 (95 %)", "p", "p, corrected",
            "pairs needed", "diverged", "ms a step", "verdict"]
    for view in views:
        clocks = {arm: ms for arm, ms, _ in clocks_of(view)}
        rows = []
        for arm in view.arms:
            test = arm.test
            tested = ["\u2013"] * 5 if test is None else [
                signed(test["mean"]), number(test["half"]), compare.brief(test["p"], ".2g"), compare.brief(arm.p, ".2g"),
                f"{math.ceil(test['needed']):,}" if test["needed"] <= MANY_PAIRS else
                f"> {MANY_PAIRS:,}" if not math.isnan(test["needed"]) else "\u2013"]
            word = "baseline" if arm.is_base else verdict(test, arm.p)[1]
            rows.append(("asked" if arm.is_question else "", [
                escape(arm.title), f"{arm.best:g}", str(len(arm.losses)), number(arm.mean),
                number(results.deviation(list(arm.losses.values()))) if math.isfinite(arm.mean) else "\u2013",
                *map(escape, tested), str(arm.diverged),
                number(clocks.get(arm), 1), escape(word)]))
        for arm in view.open:
            rows.append(("", [escape(arm.title), f"{arm.best:g}" if arm.best else "open", "0"] + ["\u2013"] * 9 +
                         ["unfinished"]))
        parts.append(f"<h3>{escape(view.title)}</h3>" + table(head, rows, f"Arms, {view.title}", "plain"))
    return section("All arms", f'<p class="note">Losses in {unit}. An arm\u2019s mean loss is over its own seeds; the '
                   "difference is over pairs and compares arms with different numbers of seeds. Pairs needed: for a "
                   "true difference of the measured size, at p &lt; 0.01 and power 0.9, one arm alone.</p>", *parts)


RUN_COLUMNS = ("setting", "arm", "rate", "stage", "seed", "final_val", "best_val", "best_step", "train_tail",
               "diverged", "steps", "tokens", "parameters", "ms", "seconds", "cpu_seconds", "threads", "cpu",
               "version", "gemm", "train_data", "val_data", "date", "flags")


def runs_section(rows, results_name):
    def cell(name, row):
        value = row[name]
        if isinstance(value, float):
            return number(value, 4 if name in ("final_val", "best_val", "train_tail") else 2) \
                if name != "rate" else (f"{value:g}" if math.isfinite(value) else "\u2013")
        return escape(value)

    texts = [i for i, name in enumerate(RUN_COLUMNS) if rows and isinstance(rows[0][name], str)]
    body = [("", [cell(name, row) for name in RUN_COLUMNS]) for row in rows]
    meaning = "".join(f"<dt>{name}</dt><dd>{escape(results.COLUMNS[name])}</dd>" for name in RUN_COLUMNS)
    return section("All runs", f"<details><summary>{plural(len(rows), 'run')}, one row each</summary>"
                   f'<p class="note">Curves are in {escape(results_name)}. A click on a title sorts.</p>' +
                   table(RUN_COLUMNS, body, "All runs", texts=texts, sortable=True, tall=True) +
                   f"</details><details><summary>What the columns mean</summary><dl>{meaning}</dl></details>")


def spread(rows, column):
    """The values of a column, with how many runs have each where they differ."""
    counts = {}
    for row in rows:
        value = f"{row[column]:,}" if isinstance(row[column], int) else str(row[column])
        counts[value] = counts.get(value, 0) + 1
    if len(counts) == 1:
        return next(iter(counts))
    return "; ".join(f"{value} ({plural(n, 'run')})" for value, n in sorted(counts.items()))


def conditions_section(grid, grid_path, views, rows, command):
    facts = [("Runs", f"{len(rows):,}"), ("Version", spread(rows, "version")), ("Machine", spread(rows, "cpu")),
             ("Matrix products", spread(rows, "gemm")), ("Threads of a run", spread(rows, "threads")),
             ("Training data, checksum", spread(rows, "train_data")),
             ("Validation data, checksum", spread(rows, "val_data")),
             ("Parameters", spread(rows, "parameters")), ("Steps", spread(rows, "steps")),
             ("Training tokens", spread(rows, "tokens")),
             ("Days", " to ".join(sorted({min(r["date"] for r in rows), max(r["date"] for r in rows)}))),
             ("Processor time", f"{sum(r['cpu_seconds'] for r in rows) / 3600:.2f} hours")]
    listed = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts)
    runs = []
    for view in views:
        for arm in view.arms:
            first = min(arm.final, key=lambda row: row["seed"])
            runs.append(f"# {view.title}: {arm.title}\n{grid['program']} {first['flags']}")
    with open(grid_path, encoding="utf-8") as f:
        text = f.read()
    return section("How it was made", scroll_box(f'<pre>scripts/compare.py {escape(shlex.quote(grid_path))}\n'
                                                 f"{escape(command)}</pre>", "Commands"),
                   f"<dl>{listed}</dl>",
                   "<details><summary>The command of a run, for each arm</summary>" +
                   scroll_box(f"<pre>{escape(chr(10).join(runs))}</pre>", "Commands of runs", True) + "</details>",
                   "<details><summary>The grid file</summary>" +
                   scroll_box(f"<pre>{escape(text)}</pre>", "Grid file", True) + "</details>")


def caveats_section(views):
    items = "".join(f"<li>{escape(text)}</li>" for text in caveats(views))
    how = ("Every arm of a setting gets equal steps and data. Its rate is chosen on seeds that are not used again, "
           "with neighbours of the best rate tried on both sides. Runs of equal seed pair up (initial weights and "
           "data order). Tests are paired t-tests, two-sided, corrected by Holm\u2019s method for the arms of a "
           "setting.")
    return section("Before you believe it", f"<p>{how}</p>", f"<ul>{items}</ul>" if items else "")


def page(grid, grid_path, known, question, measures, results_name, command):
    """The whole HTML file."""
    views = read_views(grid, known, question)
    if not views:
        compare.fail(f"{results_name} has no run with the flags of this grid (and --set)")
    rows = [row for view in views for row in view.rows]
    unit = unit_of(rows)
    groups = measured_arms(grid, measures) if measures else []
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    sections = [part for part in [
        forest_section(views, charts.difference_limit(views), unit), curves_section(views), rates_section(views),
        composed_section(groups), spectra_section(groups), clock_section(views), arms_section(views, unit),
        caveats_section(views), runs_section(rows, results_name),
        conditions_section(grid, grid_path, views, rows, command)] if part]
    body = "\n".join([answer_section(grid, views, unit), contents(sections), *sections])
    return (f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">\n'
            f"<title>{escape(grid.get('title', grid['name']))}</title>\n<style>{variables()}</style>\n</head>\n"
            f"<body>\n<main>\n{body}\n</main>\n<script>{SCRIPT}</script>\n</body>\n</html>\n")


def write_picture(path, grid, views, unit):
    views = [view for view in views if view.base is not None and view.tests]
    if not views:
        compare.fail("there is no difference to draw yet")
    note = ("Mean differences \u00b1 half of the 95 % interval (number of pairs of equal seed). Full marker: decided, "
            f"p < {DECIDED} after correction for the arms of the setting. Hollow marker: not decided. An arrow points "
            "to what lies beyond the panel.")
    answer = " ".join(overall_sentence(views, unit))
    canvas = charts.picture(views, charts.difference_limit(views), unit, grid.get("title", grid["name"]), answer,
                            note)
    if path.endswith(".svg"):
        text = canvas.svg(grid.get("title", grid["name"]), answer, standalone=True)
        with open(path, "w", encoding="utf-8") as f:
            f.write(text + "\n")
    elif path.endswith(".png"):
        try:
            canvas.write_png(path)
        except ImportError:
            compare.fail("a PNG needs matplotlib (pip install matplotlib); an .svg does not")
    else:
        compare.fail(f"--picture ends in .png or .svg, not {path}")


def is_size(value):
    return compare.is_number(value) and abs(value) < results.GREATEST


def is_head(head):
    """Whether a value is the record of a head, as scripts/measure.py writes it."""
    singular, condition = head["singular"], head["condition"]
    return compare.list_of(is_size)(singular) and len(singular) > 0 and is_size(head["stable_rank"]) and \
        (condition is None or is_size(condition))


def is_point(point):
    return compare.list_of(is_size)(point) and len(point) == 3


def is_record(run):
    """Whether a value is the record of a run, as scripts/measure.py writes it."""
    try:
        circuits = [all_heads(run, circuit) for circuit in CIRCUIT_TITLES] if "spectra" in run else []
        points = [point for curve in run.get("composed", {}).values() for point in curve]
        names = [run["run"], run["arm"], "" if run["setting"] is None else run["setting"]]
        return all(map(compare.is_text, names)) and compare.is_count(run["seed"]) and all(map(is_point, points)) \
            and all(heads and all(map(is_head, heads)) for heads in circuits)
    except (AttributeError, KeyError, TypeError):
        return False


def read_measures(args):
    if args.runs:
        try:
            import measure
        except ImportError:
            compare.fail("--runs needs NumPy (python3 -m pip install numpy); --measures does not")
        try:
            return measure.measure_all(args.runs)
        except ValueError as problem:
            compare.fail(str(problem))
    if not args.measures:
        return None
    try:
        with open(args.measures, encoding="utf-8") as f:
            measures = json.load(f)
    except (OSError, ValueError, RecursionError) as problem:
        compare.fail(f"cannot read the measures {args.measures}: {problem}")
    if not isinstance(measures, dict) or measures.get("format") != 1 or \
            not compare.list_of(is_record)(measures.get("runs")):
        compare.fail(f"{args.measures} is not a file of scripts/measure.py")
    return measures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", help="grid file")
    parser.add_argument("--results", help="CSV of the results (default: beside the grid, GRID.csv)")
    parser.add_argument("--measures", help="JSON file of scripts/measure.py")
    parser.add_argument("--runs", nargs="+", metavar="RUN", help="run folders to measure instead")
    parser.add_argument("--arm", help="the arm that the question is about")
    compare.add_narrowing(parser)
    parser.add_argument("-o", "--output", help="HTML file (default: beside the results, RESULTS.html)")
    parser.add_argument("--picture", metavar="FILE", help="write the picture of differences only: .png or .svg")
    args = parser.parse_args()
    grid = compare.read_grid(args.grid)
    compare.narrow(grid, args)
    question = question_of(grid, args.arm)
    args.results = args.results or os.path.splitext(args.grid)[0] + ".csv"
    if not os.path.exists(args.results):
        compare.fail(f"there are no results in {args.results}; scripts/compare.py {args.grid} makes them")
    known = compare.known_rows(args)
    if args.picture:
        views = read_views(grid, known, question)
        write_picture(args.picture, grid, views, unit_of([row for view in views for row in view.rows]))
        return
    output = args.output or os.path.splitext(args.results)[0] + ".html"
    command = "scripts/report.py " + shlex.join(sys.argv[1:])
    text = page(grid, args.grid, known, question, read_measures(args), os.path.basename(args.results), command)
    with open(output, "w", encoding="utf-8") as f:
        f.write(text)
    print(f"{output}: {len(text) / 1e6:.1f} MB")


if __name__ == "__main__":
    try:
        main()
    except OSError as problem:
        compare.fail(str(problem))
