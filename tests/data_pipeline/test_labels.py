"""Labels from raw columns, against loops over rows and over all outcomes of a chain."""

import itertools
import re

import numpy as np
import pytest
import tensorflow as tf

from data_pipeline.labels import (
    check_policy,
    edge_rows,
    find_level,
    merge,
    nest,
    raw_flags,
    reachable,
    split,
)
from data_pipeline.schema import Column, Level, Schema
from hm3_tf import methods
from hm3_tf.behavior_graph import Behavior, BehaviorGraph
from hm3_tf.errors import ConfigError
from tests import reference

NAMES = ("click", "cart", "order", "pay")
ALL_OUTCOMES = np.array(list(itertools.product((False, True), repeat=4)))
MISSING = -(2**63)


def gated_levels(gates):
    return tuple(Level(name, (name,), gate=gate) for name, gate in zip(NAMES, gates))


def all_flags():
    return {name: ALL_OUTCOMES[:, i] for i, name in enumerate(NAMES)}


def test_a_level_happened_where_one_of_its_columns_is_positive():
    columns = {"cart": np.array([0, 1, 0, 7, -1]), "wish": np.array([0, 0, 2, 1, 0])}
    flags = raw_flags((Level("d_ma", ("cart", "wish")),), columns)
    np.testing.assert_array_equal(flags["d_ma"], [False, True, True, True, False])


def test_a_coded_label_column_gives_a_level_by_its_values():
    levels = (Level("click", ("label",), values=(1, 2, 3, 4, 5)), Level("purchase", ("label",), values=(4, 5)))
    flags = raw_flags(levels, {"label": np.array([0, 1, 2, 3, 4, 5, 6, -1, MISSING])})
    np.testing.assert_array_equal(flags["click"], [False, True, True, True, True, True, False, False, False])
    np.testing.assert_array_equal(flags["purchase"], [False, False, False, False, True, True, False, False, False])


def test_coded_values_may_be_of_several_columns_and_of_zero():
    levels = (Level("purchase", ("first", "second"), values=(0, 4)),)
    flags = raw_flags(levels, {"first": np.array([0, 1, 4, 1]), "second": np.array([1, 1, 1, 4])})
    np.testing.assert_array_equal(flags["purchase"], [True, False, True, True])


@pytest.mark.parametrize("missing, dtype", [(MISSING, np.int64), (np.nan, np.float32)])
def test_a_missing_label_reads_as_did_not_happen(missing, dtype):
    flags = raw_flags((Level("click", ("click",)),), {"click": np.array([missing, 1], dtype)})
    np.testing.assert_array_equal(flags["click"], [False, True])


@pytest.mark.parametrize("gates", list(itertools.product((False, True), repeat=4)))
def test_nested_labels_are_the_flags_behind_all_gates_before(gates):
    levels = gated_levels(gates)
    labels, violations = nest(levels, all_flags())
    assert list(labels) == list(NAMES)
    for row, outcome in enumerate(ALL_OUTCOMES):
        for i, name in enumerate(NAMES):
            open_ = all(outcome[j] for j in range(i) if gates[j])
            assert labels[name][row] == (outcome[i] and open_), (outcome, name)
            before = [j for j in range(i) if gates[j]]
            if before:
                broken = violations[f"{name} without {NAMES[before[-1]]}"][row]
                assert broken == (outcome[i] and not open_), (outcome, name)


def test_every_level_after_a_gate_and_no_other_can_break_the_hierarchy():
    _, violations = nest(gated_levels((False, True, False, True)), all_flags())
    assert list(violations) == ["order without cart", "pay without cart"]


def test_labels_of_a_chain_without_gates_are_the_flags():
    labels, violations = nest(gated_levels((False,) * 4), all_flags())
    assert not violations
    for name in NAMES:
        np.testing.assert_array_equal(labels[name], all_flags()[name])


def test_tensors_give_the_labels_that_arrays_give():
    levels = gated_levels((True, False, True, False))
    columns = {name: flags.astype(np.int64) for name, flags in all_flags().items()}
    labels, violations = nest(levels, raw_flags(levels, columns))
    tensors = {name: tf.constant(values) for name, values in columns.items()}
    tensor_labels, tensor_violations = nest(levels, raw_flags(levels, tensors))
    assert list(tensor_labels) == list(labels) and list(tensor_violations) == list(violations)
    for ours, theirs in ((labels, tensor_labels), (violations, tensor_violations)):
        for name in ours:
            np.testing.assert_array_equal(theirs[name].numpy(), ours[name])


def test_a_merged_level_happened_where_one_of_its_parts_did():
    labels = {"d_mi": np.array([True, True, False, False]), "d_ma": np.array([True, False, True, False])}
    merged = merge(labels, {"d_action": ("d_mi", "d_ma")})
    np.testing.assert_array_equal(merged["d_action"], [True, True, True, False])
    assert set(merged) == {"d_mi", "d_ma", "d_action"}
    assert set(labels) == {"d_mi", "d_ma"}


def test_a_merged_level_of_an_unknown_part_is_refused_with_a_hint():
    message = "level 'd_action': expected the level 'd_mu' in the log; did you mean 'd_mi'?"
    with pytest.raises(ConfigError, match=re.escape(message)):
        merge({"d_mi": np.array([True])}, {"d_action": ("d_mu",)})


GATE_IN_THE_MIDDLE = (("seen", False), ("click", True), ("cart", False), ("pay", True), ("keep", False))
CHAINS = {
    **{name: (root, chain) for name, parts in reference.PAPER_CHAINS.items() for root, chain in parts[-1:]},
    "base's click": reference.PAPER_CHAINS["base"][0],
    "a gate in the middle": ("impression", GATE_IN_THE_MIDDLE),
    "no gate": ("impression", (("a", False), ("b", False), ("c", False))),
    "gates only": ("impression", (("a", True), ("b", True), ("c", True))),
    "a gate in the middle, of clicked rows": ("open", GATE_IN_THE_MIDDLE),
}


@pytest.mark.parametrize("name", CHAINS)
def test_rows_reach_and_take_the_edges_of_their_path(name):
    root, chain = CHAINS[name]
    graph = BehaviorGraph(tuple(Behavior(*behavior) for behavior in chain), root=root)
    rooted = root != "impression"
    paths = [  # (whether the root happened, outcomes, edges taken) of every row that keeps the hierarchy
        (root_happened, outcomes, dict(edges) if root_happened else {})
        for root_happened in ((1, 0) if rooted else (1,))
        for outcomes in itertools.product((0, 1), repeat=len(chain))
        if (edges := reference.path_edges(chain, outcomes, root)) is not None and (root_happened or not any(outcomes))
    ]
    labels = {level: np.array([path[1][i] == 1 for path in paths]) for i, (level, _) in enumerate(chain)}
    if rooted:
        labels[root] = np.array([path[0] == 1 for path in paths])
    rows = edge_rows(graph, labels)
    assert set(rows) == reference.edge_names(chain, root)
    for edge, (reached, happened) in rows.items():
        for row, (_, _, taken) in enumerate(paths):
            assert reached[row] == (edge in taken), (edge, paths[row])
            if reached[row]:
                assert happened[row] == taken[edge], (edge, paths[row])


def test_edge_rows_of_hm3_by_hand():
    # rows:                    none   click  +mi    +ma    +both  +all   buys at once
    labels = {
        "click": np.array([False, True, True, True, True, True, True]),
        "d_mi": np.array([False, False, True, False, True, True, False]),
        "d_ma": np.array([False, False, False, True, True, True, False]),
        "purchase": np.array([False, False, False, False, False, True, True]),
    }
    rows = edge_rows(methods.HM3.graph, labels)
    reached = {edge: np.flatnonzero(sides[0]).tolist() for edge, sides in rows.items()}
    taken = {edge: np.flatnonzero(sides[0] & sides[1]).tolist() for edge, sides in rows.items()}
    assert reached == {
        "click": [0, 1, 2, 3, 4, 5, 6],
        "d_mi_given_click": [1, 2, 3, 4, 5, 6],
        "d_ma_given_d_mi": [2, 4, 5],
        "d_ma_given_no_d_mi": [1, 3, 6],
        "purchase_given_d_ma": [3, 4, 5],
        "purchase_given_no_d_ma": [1, 2, 6],
    }
    assert taken == {
        "click": [1, 2, 3, 4, 5, 6],
        "d_mi_given_click": [2, 4, 5],
        "d_ma_given_d_mi": [4, 5],
        "d_ma_given_no_d_mi": [3],
        "purchase_given_d_ma": [5],
        "purchase_given_no_d_ma": [6],
    }


@pytest.mark.parametrize("graph", [methods.ESMM.graph, methods.BASE.purchase_graph])
def test_a_level_that_the_log_does_not_have_is_named_with_a_hint(graph):
    labels = {"clicks": np.array([True]), "purchase": np.array([True])}
    with pytest.raises(ConfigError, match="expected levels of the log, got 'click'; did you mean 'clicks'"):
        edge_rows(graph, labels)


@pytest.mark.parametrize("policy", ["coerce", "drop", "error"])
def test_the_three_policies_are_known(policy):
    check_policy(policy, "--nesting")


def test_an_unknown_policy_is_refused_with_a_hint():
    with pytest.raises(ConfigError, match=r"--nesting: expected a nesting policy of .*'coerse'; did you mean 'coerce'"):
        check_policy("coerse", "--nesting")


SPLIT = (Level("click", ("clicked",), gate=True), Level("d_mi", ("picture", "chat")), Level("buy", ("bought",)))


def test_the_behaviors_of_a_level_are_its_columns_behind_the_gates():
    columns = {"picture": np.array([1, 0, 5, 0]), "chat": np.array([0, 1, 1, 0])}
    label = np.array([True, True, False, False])  # the third row was not clicked
    result = split(SPLIT[1], columns, label)
    assert {name: flags.tolist() for name, flags in result.items()} == {
        "d_mi.picture": [True, False, False, False],
        "d_mi.chat": [False, True, False, False],
    }


def test_a_coded_behavior_happened_at_any_of_its_values():
    level = Level("apply", ("status",), values=(1, 2))
    result = split(level, {"status": np.array([0, 1, 2, 3])}, np.ones(4, bool))
    assert result["apply.status"].tolist() == [False, True, True, False]


def test_a_level_can_happen_where_the_gates_before_it_did():
    labels = {"click": np.array([True, False]), "d_mi": np.array([False, False]), "buy": np.array([True, False])}
    assert reachable(SPLIT, labels, "buy").tolist() == [True, False]
    assert reachable(SPLIT, labels, "click").tolist() == [True, True]


def test_a_level_that_the_log_lacks_is_refused_with_a_hint():
    schema = Schema(tuple(Column(n, "int64", "behavior") for n in ("clicked", "picture", "chat", "bought")), SPLIT)
    assert find_level(schema, "buy") is SPLIT[2]
    with pytest.raises(ConfigError, match="expected levels of the log, got 'd_ma'; did you mean 'd_mi'"):
        find_level(schema, "d_ma")
