"""Statistics against NumPy over all rows at once, and rates by hand arithmetic."""

import json
import math

import numpy as np
import pytest

from data_pipeline.schema import VARIABLE, Column, Hashing, Level, Schema
from data_pipeline.statistics import (
    SplitStatistics,
    StatisticsBuilder,
    from_json,
    no_statistics,
    numeric_moments,
    to_json,
)
from hm3_tf import methods
from hm3_tf.behavior_graph import Behavior, BehaviorGraph
from hm3_tf.errors import ConfigError, DataError

HASHING = Hashing(10)
LABEL = Column("click", "int64", "behavior")
CLICK = (Level("click", ("click",), gate=True),)
LEVEL_NAMES = ("click", "d_mi", "d_ma", "purchase")
# click, d_mi, d_ma, purchase: 100 impressions, 40 clicks
PATTERNS = {"0000": 60, "1000": 20, "1100": 8, "1110": 4, "1111": 2, "1011": 3, "1001": 1, "1010": 2}
HM3_LOG = SplitStatistics(LEVEL_NAMES, PATTERNS, {}, {})


def build(column, batches):
    """Returns the figures of a column that came in batches."""
    builder = StatisticsBuilder(Schema((column, LABEL), CLICK))
    for values in batches:
        builder.add_rows({column.name: values}, {"click": np.zeros(1, bool)})
    return builder.result().columns[column.name]


@pytest.fixture(scope="module")
def measured():
    """Values [1000, 3] with missing ones, the second element far from zero; and their figures from uneven batches."""
    rng = np.random.default_rng(0)
    values = rng.normal([0, 1e6, -3], [1, 0.5, 20], [1_000, 3])
    values[rng.random(values.shape) < 0.2] = np.nan
    batches = np.split(values, [0, 1, 2, 3, 500, 500, 990])
    return values, build(Column("v", "float", shape=(3,)), batches)


@pytest.mark.parametrize(
    "figure, oracle", [("mean", np.nanmean), ("std", np.nanstd), ("min", np.nanmin), ("max", np.nanmax)]
)
def test_moments_over_uneven_batches_are_those_of_all_rows_at_once(measured, figure, oracle):
    values, figures = measured
    np.testing.assert_allclose(figures[figure], oracle(values, axis=0), rtol=1e-9)


def test_builders_of_parts_of_a_log_merge_to_that_of_all_rows():
    columns = (
        *(Column("price", "float"), Column("id", "int64", hashing=HASHING), Column("brand", "string", hashing=HASHING)),
        *(Column(name, "int64", "behavior") for name in ("click", "cart", "wish")),
    )
    schema = Schema(columns, (Level("click", ("click",), gate=True), Level("d_ma", ("cart", "wish"))))
    rng = np.random.default_rng(0)
    values = {
        "price": np.where(rng.random(90) < 0.2, np.nan, rng.normal(50, 3, 90)),
        "id": rng.integers(0, 60, 90),
        "brand": np.array([b"b%d" % i for i in rng.integers(0, 9, 90)], object),
        **{name: rng.integers(0, 2, 90) for name in ("click", "cart", "wish")},
    }
    labels = {"click": values["click"] > 0, "d_ma": (values["click"] > 0) & ((values["cart"] | values["wish"]) > 0)}

    def build_rows(*parts):
        builder = StatisticsBuilder(schema)
        for rows in parts:
            builder.add_rows(*({name: array[rows] for name, array in each.items()} for each in (values, labels)))
            builder.add_violations({"d_ma without click": (values["cart"] > values["click"])[rows]})
        return builder

    first, second, third = slice(0, 40), slice(40, 40), slice(40, 90)
    merged = build_rows(first)
    merged.merge(build_rows(second))
    merged.merge(build_rows(third))
    found, expected = merged.result(), build_rows(first, second, third).result()
    assert found == expected
    assert found.columns["id"]["cardinality"] == len(set(values["id"]))
    assert found.columns["price"]["mean"] == [pytest.approx(np.nanmean(values["price"]))]


def test_missing_numbers_are_counted_and_left_out(measured):
    values, figures = measured
    assert figures["missing"] == np.isnan(values).sum()
    assert figures["count"] == np.isfinite(values).sum()


def test_a_number_a_row_has_moments_of_one_element():
    figures = build(Column("x", "float"), [np.float32([1, 2]), np.float32([np.nan, 6])])
    assert figures == {
        "count": 3,
        "missing": 1,
        "mean": [3.0],
        "std": [pytest.approx(math.sqrt(14 / 3))],  # ((1-3)^2 + (2-3)^2 + (6-3)^2) / 3
        "min": [1.0],
        "max": [6.0],
    }


def test_flattened_vectors_have_moments_of_each_element():
    figures = build(Column("v", "float", shape=(2,)), [np.float32([1, 10, 3, 30])])
    assert figures["mean"] == [2, 20]
    assert figures["std"] == [1, 10]


def test_a_column_without_values_has_finite_figures():
    figures = build(Column("x", "float"), [np.float32([np.nan, np.nan])])
    assert figures == {"count": 0, "missing": 2, "mean": [0.0], "std": [0.0], "min": [0.0], "max": [0.0]}


def test_a_constant_has_deviation_zero():
    figures = build(Column("x", "float"), [np.full(7, 0.1, np.float32), np.full(5, 0.1, np.float32)])
    assert figures["std"] == [0.0]


@pytest.mark.parametrize("distinct", [0, 1, 100, 30_000])
@pytest.mark.parametrize("kind", ["int64", "string"])
def test_the_number_of_distinct_values_is_right_within_two_percent(distinct, kind):
    values = np.random.default_rng(distinct).integers(0, distinct, 3 * distinct) if distinct else np.empty(0, np.int64)
    values = np.concatenate([values, np.arange(distinct)]) + 2**60
    batches = np.array_split(values, 4)
    if kind == "string":
        batches = [np.array([str(v).encode() for v in batch.tolist()], object) for batch in batches if len(batch)]
    figures = build(Column("c", kind, hashing=HASHING), batches)
    assert figures["cardinality"] == pytest.approx(distinct, rel=0.02)
    assert (figures["count"], figures["missing"]) == (4 * distinct, 0)


@pytest.mark.parametrize(
    "kind, values", [("int64", np.array([5, -(2**63), 5, 7])), ("string", np.array([b"a", b"", b"a", b"b"], object))]
)
def test_missing_categories_are_counted_and_are_no_value(kind, values):
    figures = build(Column("c", kind, hashing=HASHING), [values])
    assert figures == {"count": 3, "missing": 1, "cardinality": 2}


def test_inputs_groups_and_weights_are_counted_and_nothing_else():
    columns = (
        Column("user", "int64", "group"),
        Column("tags", "int64", shape=VARIABLE, max_length=2, hashing=HASHING),
        Column("price", "float"),
        Column("weight", "float", "weight"),
        Column("truth_pctr", "float", "truth"),
        Column("note", "string", "ignored"),
        LABEL,
    )
    builder = StatisticsBuilder(Schema(columns, CLICK))
    assert set(builder.result().columns) == {"user", "tags", "price", "weight"}


def test_labels_are_counted_by_pattern_and_violations_by_kind():
    schema = Schema((LABEL,), (Level("click", ("click",), gate=True), Level("buy", ("click",))))
    builder = StatisticsBuilder(schema)
    for click, buy, broken in (([1, 1, 0], [0, 1, 0], [0, 0, 1]), ([0, 1], [0, 1], [1, 0])):
        builder.add_rows({}, {"click": np.array(click, bool), "buy": np.array(buy, bool)})
        builder.add_violations({"buy without click": np.array(broken, bool)})
    result = builder.result()
    assert result.label_patterns == {"00": 2, "10": 1, "11": 2}
    assert result.violations == {"buy without click": 2}
    assert result.rows == 5
    assert result.rates() == {"click": 3 / 5, "buy": 2 / 5}


def test_rates_are_shares_of_the_impressions():
    # d_mi: 8 + 4 + 2; d_ma: 4 + 2 + 3 + 2; purchase: 2 + 3 + 1
    assert HM3_LOG.rows == 100
    assert HM3_LOG.rates() == {"click": 0.40, "d_mi": 0.14, "d_ma": 0.11, "purchase": 0.06}


def test_edge_rates_of_hm3_are_shares_of_the_rows_that_reach_the_edge_smoothed_by_one_row():
    assert HM3_LOG.edge_rates(methods.HM3.graph) == {
        "click": pytest.approx(40.5 / 101),
        "d_mi_given_click": pytest.approx(14.5 / 41),
        "d_ma_given_d_mi": pytest.approx(6.5 / 15),  # 1110, 1111 of the 14
        "d_ma_given_no_d_mi": pytest.approx(5.5 / 27),  # 1011, 1010 of the 26
        "purchase_given_d_ma": pytest.approx(5.5 / 12),  # 1111, 1011 of the 11
        "purchase_given_no_d_ma": pytest.approx(1.5 / 30),  # 1001 of the 29
    }


def test_edge_rates_of_a_chain_that_skips_levels_and_of_one_with_another_root():
    assert HM3_LOG.edge_rates(methods.ESMM.graph)["purchase_given_click"] == pytest.approx(6.5 / 41)
    assert HM3_LOG.edge_rates(methods.BASE.purchase_graph) == {"purchase_given_click": pytest.approx(6.5 / 41)}


def test_edge_rates_of_merged_levels():
    rates = HM3_LOG.edge_rates(methods.ESM2_MI.graph, methods.ESM2_MI.merged_levels)
    # d_mi or d_ma: 8 + 4 + 2 + 3 + 2 = 19 of 40 clicks; 5 of the 19 buy, 1 of the 21 others
    assert rates["d_action_given_click"] == pytest.approx(19.5 / 41)
    assert rates["purchase_given_d_action"] == pytest.approx(5.5 / 20)
    assert rates["purchase_given_no_d_action"] == pytest.approx(1.5 / 22)


def test_an_edge_that_no_row_reaches_has_rate_one_half():
    nothing = SplitStatistics(LEVEL_NAMES, {"0000": 7}, {}, {})
    rates = nothing.edge_rates(methods.HM3.graph)
    assert rates["click"] == pytest.approx(0.5 / 8)
    assert rates["purchase_given_d_ma"] == 0.5


def test_edge_rates_of_a_level_that_the_log_does_not_have_are_refused():
    graph = BehaviorGraph((Behavior("click", gate=True), Behavior("purchases")))
    with pytest.raises(ConfigError, match="got 'purchases'; did you mean 'purchase'"):
        HM3_LOG.edge_rates(graph)


def test_a_log_without_rows_standardizes_by_nothing_and_rates_everything_one_half():
    schema = Schema((Column("v", "float", shape=(2,)), Column("u", "int64", hashing=HASHING), LABEL), CLICK)
    empty = no_statistics(schema)
    assert empty.rows == 0
    assert numeric_moments(schema.column("v"), empty) == ((0.0, 0.0), (1.0, 1.0))
    assert empty.edge_rates(BehaviorGraph((Behavior("click"),))) == {"click": 0.5}
    assert empty.as_dict()["levels"] == {}


def test_statistics_come_back_from_their_json(measured):
    split = SplitStatistics(LEVEL_NAMES, PATTERNS, {"d_ma without click": 3}, {"v": measured[1]})
    text = to_json({"train": split, "test": HM3_LOG})
    assert from_json(text, LEVEL_NAMES, "statistics.json") == {"train": split, "test": HM3_LOG}


def test_the_json_of_a_split_has_its_rows_and_the_rate_of_each_level():
    split = json.loads(to_json({"test": HM3_LOG}))["test"]
    assert split["rows"] == 100
    assert split["levels"] == {"click": 0.40, "d_mi": 0.14, "d_ma": 0.11, "purchase": 0.06}


@pytest.mark.parametrize("text", ["{", "[1]", "3", '{"train": 1}', '{"train": {"label_patterns": {}}}', ""])
def test_a_file_that_holds_no_statistics_is_refused(text):
    with pytest.raises(
        DataError, match="^d/statistics.json: expected the statistics of each split, got .*convert the log again"
    ):
        from_json(text, LEVEL_NAMES, "d/statistics.json")


def test_statistics_of_other_levels_are_refused():
    with pytest.raises(DataError, match=r"^s.json: expected label patterns of 2 levels \('click', 'purchase'\)"):
        from_json(to_json({"train": HM3_LOG}), ("click", "purchase"), "s.json")


@pytest.mark.parametrize("columns", [{}, {"price": {"count": 1, "cardinality": 1}}])
def test_a_numeric_column_that_was_not_measured_is_named(columns):
    statistics = SplitStatistics(("click",), {"1": 1}, {}, columns)
    with pytest.raises(DataError, match="expected the mean and deviation of column 'price', found none"):
        numeric_moments(Column("price", "float"), statistics)


MICRO = Schema(
    tuple(Column(name, "int64", "behavior") for name in ("click", "picture", "chat", "buy")),
    (*CLICK, Level("d_mi", ("picture", "chat")), Level("buy", ("buy",))),
)


def micro_statistics():
    """Three rows clicked, of which one has both behaviors and one a picture only; the fourth has both without a click."""
    builder = StatisticsBuilder(MICRO)
    columns = {"picture": np.array([1, 1, 0, 1]), "chat": np.array([1, 0, 0, 1])}
    labels = {
        "click": np.array([True, True, True, False]),
        "d_mi": np.array([True, True, False, False]),
        "buy": np.array([True, False, False, False]),
    }
    for rows in (slice(0, 1), slice(1, 4)):
        builder.add_rows({k: v[rows] for k, v in columns.items()}, {k: v[rows] for k, v in labels.items()})
    return builder.result()


def test_behaviors_that_happen_together_are_counted_behind_the_gates():
    result = micro_statistics().co_occurrences(MICRO, "d_mi")
    assert result.names == ("d_mi.picture", "d_mi.chat")
    assert result.counts.tolist() == [[2, 1], [1, 1]]
    assert result.rows == 3
    assert result.rates() == {"d_mi.picture": 2.5 / 4, "d_mi.chat": 1.5 / 4}


def test_a_level_of_one_behavior_has_its_own_rows():
    result = micro_statistics().co_occurrences(MICRO, "buy")
    assert (result.names, result.counts.tolist(), result.rows) == (("buy.buy",), [[1]], 3)


def test_counts_of_behaviors_survive_json():
    statistics = micro_statistics()
    again = from_json(to_json({"train": statistics}), ("click", "d_mi", "buy"), "statistics.json")["train"]
    assert again.co_occurrences(MICRO, "d_mi").counts.tolist() == [[2, 1], [1, 1]]


def test_no_rows_have_no_behaviors_together():
    result = no_statistics(MICRO).co_occurrences(MICRO, "d_mi")
    assert (result.counts.tolist(), result.rates()["d_mi.chat"]) == ([[0, 0], [0, 0]], 0.5)


def test_a_conversion_that_did_not_count_behaviors_together_is_refused_with_the_remedy():
    before = SplitStatistics(("click", "d_mi", "buy"), {"111": 1}, {}, {})
    with pytest.raises(
        DataError, match="behaviors of level 'd_mi' happened together, found none; convert the log again"
    ):
        before.co_occurrences(MICRO, "d_mi")
