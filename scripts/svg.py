"""A small canvas for charts: drawn once, written as SVG for a page or for a file, or as PNG.

Colours are #rrggbb or the names of ROLES. In a page a role is a CSS variable, so that the page decides on
light or dark; in a file it is the light colour. Only write_png needs matplotlib.
"""

import html
import math

# Role: colour in light and in dark. Texts have a contrast of at least 4.5 to paper (WCAG 2.1, 1.4.3).
ROLES = {
    "ink": ("#1b1d21", "#e9e7e3"),
    "muted": ("#5a616c", "#a9adb5"),
    "grid": ("#e2e5ea", "#34363b"),
    "axis": ("#9aa1ac", "#6d727b"),
    "paper": ("#ffffff", "#161616"),
}
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'Liberation Sans', sans-serif"
LETTER = 0.56  # mean width of a letter over the size of the font, somewhat wide, to keep texts apart


def polygon(corners, turn=0.0, inner=None):
    """A regular polygon of radius 1, or a star if there is an inner radius."""
    count = corners * (2 if inner else 1)
    radius = [1.0, inner] if inner else [1.0, 1.0]
    return [(radius[i % 2] * math.sin(turn + 2 * math.pi * i / count),
             -radius[i % 2] * math.cos(turn + 2 * math.pi * i / count)) for i in range(count)]


def cross(turn):
    """A plus with thick arms."""
    a, b = 0.36, 1.0
    points = [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a), (a, b), (-a, b), (-a, a), (-b, a), (-b, -a),
              (-a, -a)]
    c, s = math.cos(turn), math.sin(turn)
    return [(c * x - s * y, s * x + c * y) for x, y in points]


# Matplotlib's names of markers, as style.py uses them. "o" is a circle.
SHAPES = {
    "s": polygon(4, math.pi / 4), "D": polygon(4), "^": polygon(3), "v": polygon(3, math.pi),
    "<": polygon(3, -math.pi / 2), ">": polygon(3, math.pi / 2), "p": polygon(5), "h": polygon(6),
    "*": polygon(5, 0.0, 0.45), "P": cross(0), "X": cross(math.pi / 4),
}
# Sizes that make areas look equal.
SIZES = {"s": 1.15, "D": 1.15, "^": 1.3, "v": 1.3, "<": 1.3, ">": 1.3, "p": 1.1, "h": 1.05, "*": 1.45, "P": 1.1,
         "X": 1.1}


def escape(text):
    return html.escape(str(text), quote=True)


def short(value):
    """A coordinate with at most two decimals."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if value else "0"


def text_width(text, size):
    return LETTER * size * len(text)


def cut_segment(a, b, low, high):
    """The part of a segment whose y is within [low, high], or None."""
    (x1, y1), (x2, y2) = a, b
    if max(y1, y2) < low or min(y1, y2) > high:
        return None

    def at(y):
        return (x1 + (x2 - x1) * (y - y1) / (y2 - y1), y)

    start = a if low <= y1 <= high else at(low if y1 < low else high)
    end = b if low <= y2 <= high else at(low if y2 < low else high)
    return start, end


def cut(points, low, high):
    """A line as pieces, each with its y within [low, high]."""
    pieces = []
    for a, b in zip(points, points[1:]):
        part = cut_segment(a, b, low, high)
        if part is None:
            continue
        if pieces and pieces[-1][-1] == part[0]:
            pieces[-1].append(part[1])
        else:
            pieces.append(list(part))
    return pieces


class Canvas:
    """A list of shapes in pixels, y downwards."""

    def __init__(self, width, height):
        self.width, self.height, self.items = width, height, []

    def line(self, points, colour="ink", width=1.0, dash=(), opacity=1.0):
        """`dash` is in widths of the line, as in style.py."""
        self.items.append(("line", points, colour, width, dash, opacity))

    def area(self, points, colour, opacity=1.0, edge=None, width=0.0, tip=None):
        self.items.append(("area", points, colour, opacity, edge, width, tip))

    def circle(self, x, y, radius, fill, edge=None, width=0.0, opacity=1.0, tip=None):
        self.items.append(("circle", x, y, radius, fill, edge, width, opacity, tip))

    def text(self, x, y, text, size=11, colour="ink", anchor="start", bold=False):
        """`y` is the baseline; anchor is start, middle or end."""
        self.items.append(("text", x, y, str(text), size, colour, anchor, bold))

    def rectangle(self, x, y, width, height, colour, opacity=1.0, tip=None):
        self.area([(x, y), (x + width, y), (x + width, y + height), (x, y + height)], colour, opacity, tip=tip)

    def mark(self, x, y, shape, colour, size=4.0, hollow=False, opacity=1.0, tip=None):
        """A marker of style.py; a hollow one has an edge in its colour and the paper's inside."""
        fill, edge, width = ("paper", colour, 1.6) if hollow else (colour, "paper", 0.8)
        if shape == "o":
            self.circle(x, y, size, fill, edge, width, opacity, tip)
            return
        radius = size * SIZES[shape]
        self.area([(x + radius * dx, y + radius * dy) for dx, dy in SHAPES[shape]], fill, opacity, edge, width,
                  tip)

    # ---- SVG

    def svg(self, title, description="", standalone=False):
        """An SVG element, or a whole file. `title` and `description` are its texts for readers who cannot see
        it."""
        def paint(colour):
            if colour is None:
                return "none"
            if colour in ROLES:
                return ROLES[colour][0] if standalone else f"var(--{colour})"
            return colour

        size = f' width="{short(self.width)}" height="{short(self.height)}"' if standalone else ""
        name = f' xmlns="http://www.w3.org/2000/svg"' if standalone else ""
        out = [f'<svg{name} viewBox="0 0 {short(self.width)} {short(self.height)}"{size} role="img" '
               f'font-family="{FONT}" aria-label="{escape(title)}">']
        out.append(f"<desc>{escape(description or title)}</desc>")
        if standalone:
            out.append(f"<title>{escape(title)}</title>")
            out.append(f'<rect width="100%" height="100%" fill="{ROLES["paper"][0]}"/>')
        out += [self.element(item, paint) for item in self.items]
        out.append("</svg>")
        return "\n".join(out)

    def element(self, item, paint):
        kind = item[0]
        if kind == "line":
            _, points, colour, width, dash, opacity = item
            strokes = f' stroke-dasharray="{" ".join(short(d * width) for d in dash)}"' if dash else ""
            return (f'<polyline points="{pairs(points)}" fill="none" stroke="{paint(colour)}" '
                    f'stroke-width="{short(width)}" stroke-linejoin="round"{strokes}{faint(opacity)}/>')
        if kind == "area":
            _, points, colour, opacity, edge, width, tip = item
            return tipped("polygon", f'points="{pairs(points)}" fill="{paint(colour)}"{stroke(paint, edge, width)}'
                          f'{faint(opacity)}', tip)
        if kind == "circle":
            _, x, y, radius, fill, edge, width, opacity, tip = item
            return tipped("circle", f'cx="{short(x)}" cy="{short(y)}" r="{short(radius)}" fill="{paint(fill)}"'
                          f'{stroke(paint, edge, width)}{faint(opacity)}', tip)
        _, x, y, text, size, colour, anchor, bold = item
        place = "" if anchor == "start" else f' text-anchor="{anchor}"'
        weight = ' font-weight="600"' if bold else ""
        return (f'<text x="{short(x)}" y="{short(y)}" font-size="{short(size)}" fill="{paint(colour)}"'
                f'{place}{weight}>{escape(text)}</text>')

    # ---- PNG

    def write_png(self, path, scale=2):
        """Draws the canvas by matplotlib."""
        import matplotlib
        matplotlib.use("Agg")
        from matplotlib import patches, pyplot

        def paint(colour):
            return "none" if colour is None else ROLES[colour][0] if colour in ROLES else colour

        dpi = 100 * scale
        point = 72 / 100  # of a pixel
        figure = pyplot.figure(figsize=(self.width / 100, self.height / 100), dpi=dpi)
        axes = figure.add_axes([0, 0, 1, 1])
        axes.set(xlim=(0, self.width), ylim=(self.height, 0))
        axes.axis("off")
        for order, item in enumerate(self.items):
            kind = item[0]
            if kind == "line":
                _, points, colour, width, dash, opacity = item
                axes.plot(*zip(*points), color=paint(colour), linewidth=width * point, alpha=opacity,
                          linestyle=(0, dash) if dash else "-", zorder=order, solid_capstyle="butt")
            elif kind == "area":
                _, points, colour, opacity, edge, width, _ = item
                axes.add_patch(patches.Polygon(points, closed=True, facecolor=paint(colour), alpha=opacity,
                                               edgecolor=paint(edge), linewidth=width * point, zorder=order))
            elif kind == "circle":
                _, x, y, radius, fill, edge, width, opacity, _ = item
                axes.add_patch(patches.Circle((x, y), radius, facecolor=paint(fill), edgecolor=paint(edge),
                                              linewidth=width * point, alpha=opacity, zorder=order))
            else:
                _, x, y, text, size, colour, anchor, bold = item
                axes.text(x, y, text.replace("$", r"\$"), fontsize=size * point * 0.96, color=paint(colour),
                          ha={"start": "left", "middle": "center", "end": "right"}[anchor], va="baseline",
                          weight="bold" if bold else "normal", zorder=order)
        figure.savefig(path, dpi=dpi, facecolor=ROLES["paper"][0], metadata={"Software": None})
        pyplot.close(figure)


def pairs(points):
    return " ".join(f"{short(x)},{short(y)}" for x, y in points)


def faint(opacity):
    return f' opacity="{short(opacity)}"' if opacity < 1 else ""


def stroke(paint, edge, width):
    return f' stroke="{paint(edge)}" stroke-width="{short(width)}"' if edge else ""


def tipped(tag, attributes, tip):
    return f"<{tag} {attributes}><title>{escape(tip)}</title></{tag}>" if tip else f"<{tag} {attributes}/>"


# ---- axes


def ticks(low, high, count):
    """About `count` round numbers within [low, high]."""
    if not high > low:
        return [low]
    raw = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def log_ticks(low, high, count=4):
    """Round numbers of a logarithmic axis within [low, high]."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for marks in ((1, 2, 5), (1, 3), (1,)):
        found = [m * 10.0 ** d for d in decades for m in marks if low * 0.999 <= m * 10.0 ** d <= high * 1.001]
        if len(found) <= count:
            break
    every = max(1, math.ceil(len(found) / count))
    return found[::every] if len(found) >= 2 else [low, high]


def labels(values):
    """Numbers with as many digits as tell them apart, and no more."""
    for digits in range(7):
        texts = [f"{v:.{digits}f}" for v in values]
        if len(set(texts)) == len(texts) and all(abs(float(t) - v) <= 1e-3 * abs(v) + 1e-12
                                                 for t, v in zip(texts, values)):
            break
    return [t.replace("-", "\u2212") for t in texts]


def log_label(value):
    """A number of a logarithmic axis, short."""
    if 1e-4 <= value < 1e5:
        return f"{value:.6f}".rstrip("0").rstrip(".") if value < 1 else f"{value:g}"
    digits, power = f"{value:.1e}".split("e")
    return f"{digits.removesuffix('.0')}e{int(power)}".replace("-", "\u2212")


class Axes:
    """A rectangle of a canvas with scales. Limits are (low, high); logarithmic where asked."""

    def __init__(self, canvas, box, x_limits, y_limits, x_log=False, y_log=False):
        self.canvas, self.box = canvas, box  # left, top, right, bottom
        self.x_limits, self.y_limits, self.x_log, self.y_log = x_limits, y_limits, x_log, y_log

    def x(self, value):
        return self.box[0] + (self.box[2] - self.box[0]) * fraction(value, self.x_limits, self.x_log)

    def y(self, value):
        return self.box[3] - (self.box[3] - self.box[1]) * fraction(value, self.y_limits, self.y_log)

    def x_axis(self, values, texts, title="", size=10, grid=False):
        left, top, right, bottom = self.box
        self.canvas.line([(left, bottom), (right, bottom)], "axis", 1)
        for value, text in zip(values, texts):
            x = self.x(value)
            self.canvas.line([(x, top if grid else bottom), (x, bottom + 3)], "grid" if grid else "axis", 1)
            half = text_width(text, size) / 2
            self.canvas.text(min(max(x, half), self.canvas.width - half), bottom + size + 4, text, size, "muted",
                             "middle")
        if title:
            self.canvas.text((left + right) / 2, bottom + 2 * size + 7, title, size, "muted", "middle")

    def y_axis(self, values, texts, size=10):
        for value, text in zip(values, texts):
            y = self.y(value)
            self.canvas.line([(self.box[0], y), (self.box[2], y)], "grid", 1)
            self.canvas.text(self.box[0] - 4, y + size * 0.35, text, size, "muted", "end")

    def line(self, points, colour, width=1.6, dash=(), opacity=1.0):
        """A line, cut where it leaves the box."""
        for piece in cut([(self.x(x), self.y(y)) for x, y in points], self.box[1], self.box[3]):
            self.canvas.line(piece, colour, width, dash, opacity)

    def band(self, x, low, high, colour, opacity=0.16):
        """An area between two lines, held within the box."""
        def held(y):
            return min(max(self.y(y), self.box[1]), self.box[3])
        points = [(self.x(a), held(b)) for a, b in zip(x, low)]
        points += [(self.x(a), held(b)) for a, b in zip(reversed(x), reversed(high))]
        if len(points) > 2:
            self.canvas.area(points, colour, opacity)


def fraction(value, limits, logarithmic):
    low, high = limits
    if logarithmic:
        value, low, high = math.log(value), math.log(low), math.log(high)
    return (value - low) / (high - low) if high > low else 0.5
