"""Plots as SVG for a page: they scale with it, are read aloud, and are told apart without color."""

import dataclasses
import io
import re
import warnings
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
WIDTH, HEIGHT = 4.4, 3.3  # inches of 72 units; a phone shows about as many pixels
_LEGEND_LINE = 0.17  # inches
_STYLE: Any = {  # matplotlib types each key by itself
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,  # a dollar is a dollar
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.grid": True,
    "grid.color": "#e2e2e2",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 3.2,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.5,
}
_RUNS = (  # colors of Okabe and Ito, which the color-blind tell apart; dashes and markers for paper
    ("#0072B2", "-", "o"),
    ("#D55E00", (0, (5, 1.5)), "s"),
    ("#007A5A", (0, (1, 1.2)), "^"),
    ("#000000", (0, (6, 1.5, 1, 1.5)), "D"),
    ("#A4478A", (0, (9, 2)), "v"),
    ("#8A6D00", (0, (3, 1, 1, 1, 1, 1)), "X"),
)


@dataclasses.dataclass(frozen=True)
class Plot:
    """A plot of the page.

    Attributes:
      key: Its id in the page.
      title: What it shows, in some words.
      caption: What to look for.
      words: The numbers of it as text, for those who do not see it.
      svg: An svg element.
    """

    key: str
    title: str
    caption: str
    words: str
    svg: str


def run_style(i: int) -> dict[str, Any]:
    """Returns the color, dashes and marker of the i-th run, arguments of `Axes.plot`; they come again after the sixth."""
    color, dashes, marker = _RUNS[i % len(_RUNS)]
    return {"color": color, "linestyle": dashes, "marker": marker}


def draw(key: str, title: str, caption: str, words: str, paint: Callable[[Axes], None], height: float = HEIGHT) -> Plot:
    """Returns a plot.

    Args:
      key: Its id in the page.
      title: What it shows, in some words.
      caption: What to look for.
      words: The numbers of it as text.
      paint: Draws on the axes; what it labels gets a legend below.
      height: In inches, and more where the legend has several lines; the width is 4.4.
    """
    title, words = printable(title), printable(words)
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": key}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the page's fonts draw the text, not Matplotlib's
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = figure.subplots()
        axes.set_title(printable(title, 52))
        paint(axes)
        handles, labels = axes.get_legend_handles_labels()
        if handles:
            columns = 2 if max(map(len, labels)) < 22 else 1
            labels = [printable(label, 46) for label in labels]
            figure.legend(handles, labels, loc="outside lower center", ncols=columns)
            figure.set_figheight(height + _LEGEND_LINE * (-(-len(labels) // columns) - 1))
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return Plot(key, title, caption, words, _inline(text.getvalue(), key, title, words))


def _inline(text: str, key: str, title: str, words: str) -> str:
    """Returns an svg document as an element of a page: named, described, as wide as its place, with ids of its own."""
    root = ElementTree.fromstring(text)
    for name in ("metadata", "defs"):
        for child in root.findall(f"{{{_SVG}}}{name}"):
            if name == "metadata" or child.find(f"{{{_SVG}}}style") is not None:
                root.remove(child)
    used = set(re.findall(r'(?:href="#|url\(#)([\w.-]+)', text))
    for element in root.iter():
        old = element.attrib.pop("id", None)
        if old in used:
            element.set("id", f"{key}-{old}")
        for attribute, value in element.attrib.items():
            element.set(attribute, _rounded(re.sub(r"(^#|url\(#)", rf"\g<1>{key}-", value) if "#" in value else value))
    described = ElementTree.Element(f"{{{_SVG}}}desc")
    described.text = words
    named = ElementTree.Element(f"{{{_SVG}}}title")
    named.text = title
    root[:0] = [named, described]
    for attribute in ("width", "height"):
        del root.attrib[attribute]
    root.attrib.update({"class": "plot", "role": "img", "aria-label": f"{title}. {words}"})
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    return ElementTree.tostring(root, encoding="unicode")


def printable(text: str, most: int | None = None) -> str:
    """Returns a text without what XML cannot hold, its middle left out where it has more than `most` characters."""
    shown = "".join(character if character.isprintable() else "\ufffd" for character in text)
    if most is None or len(shown) <= most:
        return shown
    return f"{shown[: most // 2]}…{shown[-(most - most // 2 - 1) :]}"


def _rounded(value: str) -> str:
    return re.sub(r"(\d\.\d\d)\d+", r"\1", value)


def percent(rate: float) -> str:
    """Returns a rate in percent with three digits."""
    return f"{100 * rate:.3g} %"


def log_percent_axis(axes: Axes, which: str, low: float, high: float) -> None:
    """Makes an axis of rates, "x" or "y", logarithmic between two ends, with a handful of ticks in percent."""
    axes.set(**{f"{which}scale": "log", f"{which}lim": (low, high)})
    subs = (1.0, 2.0, 5.0) if high / low < 60 else (1.0, 3.0) if high / low < 2_000 else (1.0,)
    axis = getattr(axes, f"{which}axis")
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda rate, _: percent(rate)))
