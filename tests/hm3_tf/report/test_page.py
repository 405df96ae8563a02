"""The page: its tables hold the figures of evaluation, and it needs nothing but itself."""

import dataclasses
import re
from xml.etree import ElementTree

import pytest

from hm3_tf.errors import Hm3Error
from hm3_tf.report import page as pages
from hm3_tf.report.page import render, write_report
from hm3_tf.tables import named_targets

FIGURES = {
    "AUC": "auc",
    "GAUC": "gauc",
    "PR-AUC": "pr_auc",
    "log loss": "log_loss",
    "NE": "normalized_entropy",
    "PCOC": "pcoc",
    "ECE": "ece",
    "Bayes AUC": "bayes_auc",
    "rows": "rows",
    "positives": "positives",
}


def tables(page: str) -> dict[str, list[dict[str, ElementTree.Element]]]:
    """Returns {title: rows of {column: cell}} of a page."""
    found = {}
    for region in ElementTree.fromstring(page).iterfind(".//div[@role='region']"):
        columns = ["".join(head.itertext()) for head in region.iterfind(".//thead/tr/th")]
        rows = [dict(zip(columns, row)) for row in region.iterfind(".//tbody/tr")]
        found[region.get("aria-label")] = rows
    return found


def text(cell: ElementTree.Element) -> str:
    return "".join(cell.itertext()).strip()


def check_figures(row, figures, digits=None):
    """Checks a row's numbers in full, and the ends of its intervals as they are shown."""
    for column, name in FIGURES.items():
        if column not in row:
            continue
        number = row[column].find(".//data")
        if figures.get(name) is None:
            assert text(row[column]) == "–", column
            continue
        assert float(number.get("value")) == figures[name], column
        interval = figures.get(f"{name}_interval")
        if interval:
            ends = [float(end) for end in row[column].find("small").text.split(" … ")]
            assert ends == pytest.approx(interval, abs=6e-4 if name == "pcoc" else 6e-5), column


def test_the_headline_holds_the_figures_of_evaluation(page, report):
    rows = tables(page)["Figures of each target"]
    named = {(text(row["target"]), text(row["run"])): row for row in rows}
    expected = {(target, run.name): figures for run in report.runs for target, figures in run.targets.items()}
    assert set(named) == set(expected) and len(rows) == 8
    for key, figures in expected.items():
        check_figures(named[key], figures)
    assert {"AUC", "GAUC", "PR-AUC", "PCOC", "ECE", "Bayes AUC"} <= set(rows[0])


def test_the_differences_are_those_of_evaluation_and_marked_where_told_apart(page, report):
    differences = report.runs[1].differences
    rows = tables(page)["hm3 less esmm"]
    assert [text(row["target"]) for row in rows] == list(differences)
    marks = 0
    for row, figures in zip(rows, differences.values()):
        check_figures(row, figures)
        for column, name in FIGURES.items():
            if interval := figures.get(f"{name}_interval"):
                told_apart = interval[0] > 0 or interval[1] < 0
                assert ("*" in text(row[column])) == told_apart == (row[column].find("strong") is not None), column
                marks += told_apart
    assert marks, "two methods after two epochs differ in something"


def test_the_slices_are_those_of_evaluation(page, report):
    for target in ("pctr", "pcvr", "pctcvr"):
        rows = tables(page)[f"{target} by position"]
        for row in rows:
            run = next(run for run in report.runs if run.name == text(row["run"]))
            slices = run.evaluation.metrics["slices"]["position"]
            check_figures(row, named_targets(slices[text(row["position"])])[target])
        assert len(rows) == 2 * len(slices)


def test_too_few_rows_are_told(page, report):
    rows = tables(page)["pcvr by position"]
    few = [row for row in rows if float(row["positives"].find("data").get("value")) < 30]
    assert few and all("too few rows" in text(row["PCOC"]) for row in few if text(row["PCOC"]) != "–")


def test_config_and_versions_are_there_and_what_differs_is_marked(page, report):
    config = {text(row["field"]): row for row in tables(page)["Config"]}
    assert set(config) - {"model.method ≠"} == set(report.runs[0].settings) - {"model.method"}
    assert (text(config["model.method ≠"]["hm3"]), text(config["model.method ≠"]["esmm"])) == ("hm3", "esmm")
    assert text(config["training.learning_rate"]["esmm"]) == "0.01"
    versions = {text(row["package"]): row for row in tables(page)["Versions"]}
    assert text(versions["tensorflow"]["trained: hm3"]) == report.runs[0].versions["tensorflow"]
    assert text(versions["python"]["evaluated"]) == report.versions["python"]


def test_a_run_alone_has_no_differences_and_no_names(report):
    page = render(dataclasses.replace(report, runs=report.runs[:1]))
    assert 'id="differences"' not in page and "≠" not in page
    assert "run" not in tables(page)["Figures of each target"][0]


def test_every_section_is_there_and_reached_from_the_top(page):
    root = ElementTree.fromstring(page)
    links = [link.get("href") for link in root.iterfind(".//nav/a")]
    ids = [section.get("id") for section in root.iterfind(".//section")]
    assert links == [f"#{name}" for name in ids]
    assert ids == [
        *("figures", "differences", "funnel", "roc", "precision", "reliability", "scores"),
        *("slices-0", "learning", "config"),
    ]


def test_the_page_needs_nothing_but_itself(page):
    without_names = re.sub(r'xmlns(:\w+)?="[^"]*"', "", page)
    assert "http:" not in without_names and "https:" not in without_names and "<script" not in page
    assert "url(" not in re.sub(r"url\(#[\w.-]+\)", "", page) and "@import" not in page
    root = ElementTree.fromstring(page)
    assert [link.get("href") for link in root.iterfind(".//link")] == ["data:,"]
    assert not [part for part in root.iter() if part.get("src")]


def test_no_id_stands_twice(page):
    ids = [part.get("id") for part in ElementTree.fromstring(page).iter() if part.get("id")]
    assert len(ids) == len(set(ids)) > 50


def test_every_plot_has_a_caption_and_words_with_numbers(page):
    figures = ElementTree.fromstring(page).findall(".//figure")
    assert len(figures) == 2 + 2 + 3 + 3 + 3 + 8 + 3 + 4
    for figure in figures:
        plot = figure[0]
        assert plot.get("role") == "img" and re.search(r"\d", plot.get("aria-label")), figure.get("id")
        assert len(text(figure.find("figcaption"))) > 20


def test_what_a_log_holds_is_text_and_not_markup(report):
    first = report.runs[0]
    slices = {"<b>&": {"<script>alert(1)</script>": first.evaluation.metrics["slices"]["position"]["0"]}}
    metrics = {**first.evaluation.metrics, "slices": slices}
    hostile = dataclasses.replace(
        first, name="<img src=x>", evaluation=dataclasses.replace(first.evaluation, metrics=metrics)
    )
    page = render(dataclasses.replace(report, runs=(hostile,)))
    assert "<script" not in page and "<img" not in page
    assert text(tables(page)["pctr by <b>&"][0]["<b>&"]) == "<script>alert(1)</script>"


def test_the_same_report_is_the_same_page(report, page):
    assert render(report) == page


def test_the_report_appears_only_when_complete(runs, data, tmp_path, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("out of luck")

    output = tmp_path / "report.html"
    output.write_text("that of before")
    monkeypatch.setattr(pages, "gather", fail)
    with pytest.raises(RuntimeError, match="out of luck"):
        write_report(runs, data.split("test"), "test", (), str(output))
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"] and output.read_text() == "that of before"


def test_a_file_that_cannot_be_written_is_refused_before_the_work(runs, data, tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "gather", lambda *arguments: pytest.fail("worked before it looked"))
    (tmp_path / "file").write_text("")
    for output, message in (("file/report.html", "expected a place that can be written"), (".", "got a folder")):
        with pytest.raises(Hm3Error, match=message):
            write_report(runs, data.split("test"), "test", (), str(tmp_path / output))
