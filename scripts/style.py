"""Colours, dashes and markers of arms, equal in every picture of this project.

An arm is a name, such as cm or muon-head. colour(name) and dash(name) are functions of the name
alone, so neither the order of arguments nor the choice of arms changes a picture's colours.
looks(names) gives the arms of one picture looks that differ from each other: of two names without
an entry whose colours are equal, the second in the alphabet takes the next free colour. Only the
standard library is needed.
"""

import zlib

# Every colour has a contrast of at least 3 to white and to the dark background #161616 (WCAG 2.1,
# 1.4.11), so that pictures are legible on both. Rules of one family have neighbouring hues.
COLOURS = {
    "muon": "#0072b2",          # blue
    "muon-group": "#2b93d9",
    "muon-head": "#008f69",     # green
    "normuon": "#6270e0",
    "muonh": "#4a7f9e",
    "cm": "#d55e00",            # vermilion
    "cm-iso": "#b8740f",
    "cm-match": "#9a5cd0",      # violet
    "cm-qk": "#2c9aa0",
    "cm-ov": "#a08a00",
    "cm-released": "#c2604f",
    "cm2": "#e0218a",           # magenta
    "circuit": "#c2609a",
    "adamw": "#777777",         # grey
    "lion": "#96705a",
    "aurora": "#4f8a5b",
    "quack": "#6b9420",
}
# Lengths of strokes and gaps in widths of the line; () is a solid line. They go to Matplotlib as
# linestyle=(0, dash) and to SVG, times the width, as stroke-dasharray. Gaps are wide enough to show
# the line below where two lines coincide.
DASHES = [(), (5, 3), (1.2, 1.8), (7, 2.5, 1.2, 2.5), (2.6, 2.2), (7, 2, 1.2, 2, 1.2, 2), (10, 4),
          (3, 2, 1.2, 2)]
# Matplotlib's names of filled markers.
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*"]
# Colours of names without an entry above. Their hues are spread over the circle.
OTHERS = ["#c44e52", "#4878cf", "#5f9e2f", "#b36bd4", "#b5791f", "#1f97a8", "#d1579a", "#7d7d2f",
          "#7a68d8", "#2d9c68", "#a8664a", "#607d94"]
# Greys of reference curves, which are no arms of the picture.
GREYS = ["#666666", "#7c7c7c", "#949494"]
# The order in which arms get dashes and markers. Neighbours differ in both.
ORDER = {name: place for place, name in enumerate(
    ["muon", "cm", "muon-head", "muon-group", "cm-iso", "cm-match", "adamw", "circuit", "cm2",
     "cm-qk", "cm-ov", "cm-released", "normuon", "aurora", "lion", "quack", "muonh"])}


def arm_of(name):
    """The arm with an entry that a name stands for, or the name. scripts/compare.py names its runs
    setting.arm.rate.seed."""
    if name in COLOURS:
        return name
    return next((part for part in name.split(".") if part in COLOURS), name)


def number_of(name):
    """A number that depends on the name alone, on every machine."""
    return zlib.crc32(name.encode())


def colour(name):
    arm = arm_of(name)
    return COLOURS.get(arm) or OTHERS[number_of(arm) % len(OTHERS)]


def place(name):
    arm = arm_of(name)
    return ORDER[arm] if arm in ORDER else number_of(arm) // len(OTHERS)


def dash(name):
    return DASHES[place(name) % len(DASHES)]


def marker(name):
    return MARKERS[place(name) % len(MARKERS)]


def free(table, first, used):
    """The entry of a table that is used least, the first such from `first` on."""
    at = table.index(first)
    return min(table[at:] + table[:at], key=used.count)


def looks(names):
    """{name: (colour, dash, marker)} of one picture. Dashes and markers differ from name to name as
    far as there are enough of them, and so do the colours of names without an entry. Names with an
    entry choose first and the others in alphabetical order, so the order of `names` has no
    influence."""
    chosen, colours, dashes, markers = {}, [], [], []
    for name in sorted(set(names), key=lambda n: (ORDER.get(n, len(ORDER)), n)):
        own = colour(name)
        colours.append(free(OTHERS, own, colours) if own in OTHERS else own)
        dashes.append(free(DASHES, dash(name), dashes))
        markers.append(free(MARKERS, marker(name), markers))
        chosen[name] = (colours[-1], dashes[-1], markers[-1])
    return chosen
