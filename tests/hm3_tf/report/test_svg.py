"""Plots as elements of a page."""

from xml.etree import ElementTree

import numpy as np
import pytest

from hm3_tf.report.svg import draw, log_percent_axis, percent, printable, run_style

SVG = "{http://www.w3.org/2000/svg}"


def drawn(key="loss", paint=None):
    def line(axes):
        axes.plot([0.001, 0.1, 1], [1.123456, 2, 3], label="a & b", clip_on=True, **run_style(0))
        log_percent_axis(axes, "x", 1e-4, 1)

    return draw(key, "Loss of <a>", "Lower is better.", "It falls to 3.", paint or line)


def element(plot):
    return ElementTree.fromstring(plot.svg)


def test_a_plot_says_in_words_what_it_shows():
    root = element(drawn())
    assert root.get("role") == "img" and root.get("aria-label") == "Loss of <a>. It falls to 3."
    assert [child.tag for child in root[:2]] == [f"{SVG}title", f"{SVG}desc"]
    assert root[1].text == "It falls to 3."


def test_a_plot_is_as_wide_as_its_place():
    root = element(drawn())
    assert "width" not in root.attrib and "height" not in root.attrib
    assert [float(number) for number in root.get("viewBox").split()][2:] == pytest.approx([316.8, 237.6])


def test_a_legend_of_many_runs_takes_nothing_from_the_plot():
    def lines(axes):
        for i in range(7):
            axes.plot([0, 1], [0, i], label=f"a rather long name of a run, {i}")

    assert float(element(drawn(paint=lines)).get("viewBox").split()[3]) > float(
        element(drawn()).get("viewBox").split()[3]
    )


def test_ids_are_a_plots_own_and_what_is_used_is_there():
    for key in ("first", "second"):
        root = element(drawn(key))
        ids = [part.get("id") for part in root.iter() if part.get("id")]
        assert ids and all(name.startswith(f"{key}-") for name in ids) and len(ids) == len(set(ids))
        used = {value[1:] for part in root.iter() for value in part.attrib.values() if value.startswith("#")}
        used |= {part.get("clip-path")[5:-1] for part in root.iter() if part.get("clip-path")}
        used = {name for name in used if not all(c in "0123456789abcdefABCDEF" for c in name)}
        assert used == set(ids)


def test_text_stays_text_and_nothing_is_styled_for_the_whole_page():
    root = element(drawn())
    texts = [part.text for part in root.iter(f"{SVG}text")]
    assert {"Loss of <a>", "a & b", "0.1 %", "100 %"} <= set(texts)
    assert not list(root.iter(f"{SVG}style")) and not list(root.iter(f"{SVG}metadata"))


def test_the_same_plot_is_drawn_the_same():
    assert drawn() == drawn()


def test_runs_differ_without_color():
    styles = [run_style(i) for i in range(6)]
    assert len({style["marker"] for style in styles}) == len({str(style["linestyle"]) for style in styles}) == 6


def test_an_empty_plot_is_a_plot():
    assert element(drawn(paint=lambda axes: None)).get("role") == "img"


@pytest.mark.parametrize("low, high, most", [(0.1, 0.6, 6), (1e-3, 1, 8), (1e-7, 1, 9)])
def test_a_logarithmic_axis_has_a_handful_of_ticks(low, high, most):
    def paint(axes):
        axes.plot([0, 1], [low, high])
        log_percent_axis(axes, "y", low, high)
        axes.set_xticks([])

    ticks = [part.text for part in element(drawn(paint=paint)).iter(f"{SVG}text") if part.text.endswith(" %")]
    assert 2 <= len(ticks) <= most, ticks


@pytest.mark.parametrize("rate, text", [(0.5, "50 %"), (0.001234, "0.123 %"), (1, "100 %"), (1e-6, "0.0001 %")])
def test_rates_are_percent_of_three_digits(rate, text):
    assert percent(np.float64(rate)) == text


@pytest.mark.parametrize("name", ["$5-$10", "a$b^$", "\x01\x00", "日本", "x" * 300, "a\nb", "]]>", "\\alpha"])
def test_names_of_any_text_are_drawn(name, recwarn):
    def paint(axes):
        axes.plot([0, 1], [0, 1], label=name)
        axes.set_yticks([0], [printable(name, 18)])

    root = element(draw("any", f"Title, {name}", "Caption.", f"{name} is 1.", paint))
    texts = [part.text or "" for part in root.iter(f"{SVG}text")]
    assert printable(name, 46) in texts and max(map(len, texts)) <= 52
    assert root.get("aria-label").endswith(f"{printable(name)} is 1.") and not recwarn.list


def test_a_long_text_keeps_its_ends():
    assert printable("abcdefghij", 10) == "abcdefghij"
    assert printable("abcdefghijk", 10) == "abcde…hijk"
