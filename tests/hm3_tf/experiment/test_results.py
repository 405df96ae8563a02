import csv
import dataclasses

import numpy as np
import pytest
from scipy import stats

from hm3_tf.errors import DataError
from hm3_tf.experiment.document import write_blocks
from hm3_tf.experiment.plots import Lines
from hm3_tf.experiment.results import Results, estimate, write_csv
from hm3_tf.experiment.tables import Steps, Table

AUCS = {"base": [0.80, 0.82, 0.81], "hm3": [0.81, 0.84, 0.82]}
MEASURED = {(run, "log S", seed): {"auc": value} for run, values in AUCS.items() for seed, value in enumerate(values)}


@pytest.fixture
def results():
    return Results({**MEASURED, ("hm3", "log M", 0): {"auc": 0.9, "slope": 1.0}})


def test_the_interval_is_that_of_students_t():
    values = np.random.default_rng(0).normal(size=20)
    found = estimate(values)
    low, high = stats.t.interval(0.95, 19, values.mean(), stats.sem(values))
    assert (found.mean, found.low, found.high) == pytest.approx((values.mean(), low, high))


def test_intervals_of_normal_samples_hold_the_mean_in_95_percent_of_them():
    draws = np.random.default_rng(1).normal(1.0, 3.0, (2_000, 5))
    found = [estimate(values) for values in draws]
    assert np.mean([e.low < 1.0 < e.high for e in found]) == pytest.approx(0.95, abs=0.015)


def test_one_seed_has_no_interval(results):
    found = results.estimate("hm3", "log M", "auc")
    assert found.mean == 0.9 and np.isnan([found.low, found.high]).all() and not found.leaves_out_zero


def test_differences_are_paired_by_seed(results):
    found = results.difference("hm3", "base", "log S", "auc")
    expected = estimate([0.01, 0.02, 0.01])
    assert (found.mean, found.low) == pytest.approx((expected.mean, expected.low))
    relative = results.difference("hm3", "base", "log S", "auc", relative=True)
    assert relative.mean == pytest.approx(np.mean([0.01 / 0.80, 0.02 / 0.82, 0.01 / 0.81]))


def test_what_was_not_measured_is_none(results):
    assert results.estimate("base", "log M", "auc") is None
    assert results.difference("hm3", "base", "log M", "auc") is None
    assert results.estimate("base", "log S", "slope") is None


def test_the_csv_has_a_line_a_value(results, tmp_path):
    write_csv(results, str(tmp_path / "results.csv"))
    lines = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert len(lines) == 8
    assert {"run": "hm3", "log": "log S", "seed": "1", "measure": "auc", "value": "0.84"} in lines


def test_a_table_has_means_and_differences_and_marks_those_that_leave_out_zero(results):
    table = Table("CVR.", ["base", "hm3"], ["log S"], {"auc": "AUC"}, "base", 3, published={"hm3": "0.85"})
    text = table.markdown(results)
    half = stats.t.ppf(0.975, 2) * np.std([0.01, 0.02, 0.01], ddof=1) / 3**0.5
    low, high = (f"{np.mean([0.01, 0.02, 0.01]) + side * half:+.3f}" for side in (-1, 1))
    assert "Mean over 3 seeds; differences from base, paired by seed" in text
    assert text.splitlines()[2:] == [
        "| run | AUC, log S | the paper |",
        "|---|---|---|",
        "| base | 0.810 |  |",
        f"| hm3 | 0.823 (+0.013 [{low}, {high}]) | 0.85 |",
    ]
    told_apart = Results({key: {"auc": value["auc"] + (key[0] == "hm3")} for key, value in MEASURED.items()})
    assert "(**+1.013 [" in table.markdown(told_apart)


def test_steps_are_the_differences_of_pairs(results):
    steps = Steps("Order.", [("hm3", "base")], ["log S", "log M"], {"auc": "AUC"}, {"hm3": "+0.008"})
    difference = results.difference("hm3", "base", "log S", "auc")
    cell = f"{difference.mean:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]"
    assert steps.runs == ("hm3", "base")
    assert steps.markdown(results).splitlines() == [
        "**Order.** Mean over 0 to 3 seeds, paired by seed, with 95 % intervals.",
        "",
        "| difference | AUC, log S | AUC, log M | the paper |",
        "|---|---|---|---|",
        f"| hm3 less base | {cell} |  | +0.008 |",
    ]


def test_lines_are_means_or_paired_differences(results):
    lines = Lines("AUC", ["base", "hm3"], {"log S": "S", "log M": "M"}, "auc", "AUC")
    base, hm3 = (results.estimate(run, "log S", "auc") for run in ("base", "hm3"))
    assert lines.plot("k", results).words == (
        f"Means and 95 % intervals. base: S 0.8100 ({base.low:.4f} to {base.high:.4f}); "
        f"hm3: S {hm3.mean:.4f} ({hm3.low:.4f} to {hm3.high:.4f}), M 0.9000 (nan to nan)."
    )
    less = dataclasses.replace(lines, runs=["hm3"], baseline="base").plot("k", results)
    assert less.words.startswith("Means and 95 % intervals. hm3: S 0.0133 (")


def test_blocks_of_a_document_are_replaced_and_nothing_else(tmp_path):
    path = tmp_path / "doc.md"
    path.write_text("before\n<!-- t -->\nold\nlines\n<!-- /t -->\nafter\n<!-- u -->\n<!-- /u -->\n")
    write_blocks(str(path), {"t": "new \\1\n", "u": "too\n"})
    assert path.read_text() == "before\n<!-- t -->\nnew \\1\n<!-- /t -->\nafter\n<!-- u -->\ntoo\n<!-- /u -->\n"


def test_a_document_without_the_block_is_left_as_it_is(tmp_path):
    path = tmp_path / "doc.md"
    path.write_text("<!-- t -->\n<!-- /t -->\n")
    with pytest.raises(
        DataError, match=r"expected one block between <!-- v --> and <!-- /v -->, found 0; write the two"
    ):
        write_blocks(str(path), {"t": "new", "v": "x"})
    assert path.read_text() == "<!-- t -->\n<!-- /t -->\n"
