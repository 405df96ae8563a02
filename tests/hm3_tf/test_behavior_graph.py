"""Chains of behaviors: the names of their towers, their checks, and what importing them costs."""

import dataclasses
import pathlib
import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hm3_tf.behavior_graph import IMPRESSION, Behavior, BehaviorGraph, Transition
from hm3_tf.errors import ConfigError, Hm3Error, did_you_mean
from tests import reference

CLICK, D_MI, D_MA, PURCHASE = Behavior("click", gate=True), Behavior("d_mi"), Behavior("d_ma"), Behavior("purchase")
ROOT = pathlib.Path(__file__).parents[2]
HM3 = BehaviorGraph((CLICK, D_MI, D_MA, PURCHASE))


def test_the_edges_of_hm3_are_y1_y2_y3_y5_y4_y6_of_the_paper():
    assert HM3.edges == (
        "click",  # y1
        "d_mi_given_click",  # y2
        "d_ma_given_d_mi",  # y3
        "d_ma_given_no_d_mi",  # y5
        "purchase_given_d_ma",  # y4
        "purchase_given_no_d_ma",  # y6
    )


def test_a_funnel_of_gates_has_one_edge_a_level():
    graph = BehaviorGraph((Behavior("click", gate=True), Behavior("apply", gate=True), Behavior("approve")))
    assert graph.edges == ("click", "apply_given_click", "approve_given_apply")


def test_a_gate_after_a_level_without_one_has_two_edges_and_the_level_after_it_one():
    graph = BehaviorGraph((Behavior("view"), CLICK, PURCHASE))
    assert graph.edges == ("view", "click_given_view", "click_given_no_view", "purchase_given_click")


def test_the_first_edge_of_a_graph_that_starts_at_a_level_is_conditioned_on_it():
    assert BehaviorGraph((PURCHASE,), root="click").edges == ("purchase_given_click",)


def test_transitions_tell_which_level_follows_a_gate_and_the_root_is_none():
    assert HM3.transitions == (
        Transition("click", ("click",), follows_gate=False),
        Transition("d_mi", ("d_mi_given_click",), follows_gate=True),
        Transition("d_ma", ("d_ma_given_d_mi", "d_ma_given_no_d_mi"), follows_gate=False),
        Transition("purchase", ("purchase_given_d_ma", "purchase_given_no_d_ma"), follows_gate=False),
    )


@settings(deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=6), st.sampled_from([IMPRESSION, "click"]))
def test_the_edges_are_those_that_some_path_takes_each_once(gates, root):
    chain = tuple(zip("abcdef", gates))
    graph = BehaviorGraph(tuple(Behavior(name, gate) for name, gate in chain), root)
    assert len(graph.edges) == len(set(graph.edges))
    assert set(graph.edges) == reference.edge_names(chain, root)
    assert graph.edges == tuple(edge for transition in graph.transitions for edge in transition.edges)


def test_levels_keep_their_order_and_know_their_position():
    assert HM3.levels == ("click", "d_mi", "d_ma", "purchase")
    assert [HM3.index(level) for level in HM3.levels] == [0, 1, 2, 3]


def test_the_root_is_the_impression_by_default_and_a_behavior_no_gate():
    assert BehaviorGraph((CLICK,)).root == IMPRESSION == "impression"
    assert not Behavior("cart").gate


def test_an_unknown_level_is_named_with_the_closest_one():
    with pytest.raises(ConfigError, match=re.escape("expected a level of the graph, got 'd_mia'; did you mean 'd_mi'")):
        HM3.index("d_mia")


def test_an_unknown_level_close_to_none_is_answered_with_all_of_them():
    with pytest.raises(ConfigError, match="got 'zzz'; known: click, d_ma, d_mi, purchase$"):
        HM3.index("zzz")


@pytest.mark.parametrize("name", ["", "add to cart", "2nd", "a-b", "no_click", "a/b"])
def test_a_behavior_name_that_is_no_identifier_or_reserved_is_rejected(name):
    message = f"expected a behavior name that is an identifier and does not start with 'no_', got {name!r}"
    with pytest.raises(ConfigError, match=re.escape(message)):
        Behavior(name)


@pytest.mark.parametrize("name", ["click", "d_mi", "notify", "_x", "x2"])
def test_an_identifier_is_a_behavior_name(name):
    assert Behavior(name).name == name


def test_a_graph_without_behaviors_is_rejected():
    with pytest.raises(ConfigError, match="expected a behavior graph with at least one behavior, got none"):
        BehaviorGraph(())


def test_a_behavior_that_stands_twice_is_rejected_by_name():
    with pytest.raises(ConfigError, match=re.escape("differ from each other and the root, got twice: ['d_ma']")):
        BehaviorGraph((CLICK, D_MA, D_MA))


@pytest.mark.parametrize("root", ["impression", "click"])
def test_a_behavior_with_the_name_of_the_root_is_rejected(root):
    with pytest.raises(ConfigError, match=re.escape(f"got twice: ['{root}']")):
        BehaviorGraph((Behavior(root),), root)


@pytest.mark.parametrize("value, field", [(HM3, "root"), (CLICK, "gate"), (HM3.transitions[0], "level")])
def test_graphs_are_frozen(value, field):
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, field, "x")


def test_a_graph_of_a_list_is_the_graph_of_its_tuple_and_hashable():
    behaviors = [CLICK, PURCHASE]
    graph = BehaviorGraph(behaviors)
    behaviors.append(D_MA)
    assert graph == BehaviorGraph((CLICK, PURCHASE))
    assert hash(graph) == hash(BehaviorGraph((CLICK, PURCHASE)))


def test_config_errors_are_expected_failures_and_value_errors():
    assert issubclass(ConfigError, Hm3Error) and issubclass(ConfigError, ValueError)


def test_hints_name_the_one_close_name_or_all_known_names_in_order_or_none():
    assert did_you_mean("purchas", ["click", "purchase"]) == "did you mean 'purchase'?"
    assert did_you_mean("zzz", ["b", "a"]) == "known: a, b"
    assert did_you_mean("zzz", []) == "known: none"


@pytest.mark.parametrize("module", ["hm3_tf.behavior_graph", "hm3_tf.methods", "hm3_tf.features"])
def test_importing_it_loads_the_standard_library_only(module):
    code = f"""
import sys
before = set(sys.modules)
import {module}
loaded = {{name.partition('.')[0] for name in set(sys.modules) - before}}
print(sorted(loaded - sys.stdlib_module_names), [m for m in ('tensorflow', 'numpy') if m in sys.modules])
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['hm3_tf'] []"
