"""Figures as text."""

import numpy as np

from hm3_tf.tables import metrics_table
from hm3_tf.tally import Tally
from tests.hm3_tf.test_compare import LEVELS, predicted, rows


def table(**options) -> list[str]:
    tally = Tally(LEVELS, grouped=True, **options)
    tally.update(predicted(*rows(np.random.default_rng(0))))
    return metrics_table({"split": "test", **tally.result()}).split("\n")


def test_each_target_has_a_line_of_its_figures():
    title, heads, *lines = table()
    assert title == "test: 3,000 rows"
    columns = ["rows", "positives", "AUC", "95 %", "GAUC", "uGAUC", "PR-AUC", "log loss", "NE", "PCOC", "ECE"]
    assert heads.replace("95 %", "95_%").replace("log loss", "log_loss").split() == [
        name.replace(" ", "_") for name in columns
    ]
    assert [line.split()[0] for line in lines] == ["pctr", "pcvr", "pctcvr", "P(d_ma)"]


def test_gauc_of_a_sample_says_of_how_many_groups():
    assert not any("sample" in line for line in table())
    share = float(table(rows_kept=1_000)[-1].split(" of the groups")[0].split()[-1].rstrip("%"))
    assert 0 < share < 50
