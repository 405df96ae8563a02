"""The paper's methods are the chains of its Table 3, and a method of one's own is checked."""

import dataclasses
import re

import pytest

from hm3_tf import methods
from hm3_tf.behavior_graph import Behavior, BehaviorGraph
from hm3_tf.designs import DESIGNS
from hm3_tf.errors import ConfigError
from hm3_tf.methods import BASE, CHAINS, ESM2_MI, ESMM, HM3, METHODS, Method, get_method
from tests import reference

CLICK, APPLY, PURCHASE = Behavior("click", gate=True), Behavior("apply", gate=True), Behavior("purchase")


def as_tuples(method):
    return tuple((graph.root, tuple((b.name, b.gate) for b in graph.behaviors)) for graph in method.graphs)


def test_the_methods_are_those_of_table_3():
    assert list(CHAINS) == ["base", "esmm", "esm2", "esm2_mi", "hm3", "hm3_r"]
    assert list(METHODS) == [*CHAINS, "gmcm", "escm2_ipw", "escm2_dr", "dcmt", "aitm", "hm3_ipw", "aux"]
    assert [METHODS[name].name for name in METHODS] == list(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_names_a_design_and_the_chains_have_none_of_their_own(name):
    assert METHODS[name].design in DESIGNS
    assert (METHODS[name].design == "chain") == (name in CHAINS)


def test_every_method_has_a_title_of_its_own():
    assert set(methods.TITLES) == set(METHODS)
    assert len(set(methods.TITLES.values())) == len(METHODS)


def test_the_losses_of_a_method_are_its_levels_and_those_that_its_design_adds():
    assert HM3.losses == HM3.levels
    assert METHODS["hm3_ipw"].losses == (*HM3.levels, "cvr")
    assert METHODS["escm2_dr"].losses == ("click", "purchase", "cvr", "imputation")


@pytest.mark.parametrize("name", CHAINS)
def test_every_chain_is_that_of_its_paper(name):
    assert as_tuples(METHODS[name]) == reference.PAPER_CHAINS[name]


@pytest.mark.parametrize(
    "name, towers", [("base", 2), ("esmm", 2), ("esm2", 4), ("esm2_mi", 4), ("hm3", 6), ("hm3_r", 6)]
)
def test_every_method_has_the_towers_that_its_paper_counts(name, towers):
    assert sum(len(graph.edges) for graph in METHODS[name].graphs) == towers


@pytest.mark.parametrize("name", METHODS)
def test_every_method_goes_from_click_to_purchase_and_cites_its_source(name):
    method = METHODS[name]
    assert method.levels[0] == "click" and method.levels[-1] == "purchase"
    assert method.click_graph.levels[0] == "click" and method.purchase_graph.levels[-1] == "purchase"
    assert re.search(r"et al\., (SIGIR|KDD|ICDE) 20\d\d", method.citation) or name == "aux"  # a control of ours


def test_the_levels_of_a_method_are_those_of_its_graphs_in_order():
    assert HM3.levels == ("click", "d_mi", "d_ma", "purchase")
    assert BASE.levels == ("click", "purchase")


def test_a_method_of_one_network_has_one_graph_for_click_and_purchase():
    assert HM3.graph is HM3.graphs[0] is HM3.click_graph is HM3.purchase_graph


def test_base_trains_its_purchase_network_on_clicks():
    assert BASE.click_graph.root == "impression" and BASE.click_graph.edges == ("click",)
    assert BASE.purchase_graph.root == "click" and BASE.purchase_graph.edges == ("purchase_given_click",)


def test_base_has_no_single_graph():
    with pytest.raises(ConfigError, match="method 'base' has 2 graphs: see its `graphs`"):
        BASE.graph  # noqa: B018


def test_only_esm2_mi_merges_levels():
    assert dict(ESM2_MI.merged_levels) == {"d_action": ("d_mi", "d_ma")}
    assert not any(method.merged_levels for method in METHODS.values() if method is not ESM2_MI)


def test_get_method_finds_every_method():
    assert [get_method(name) for name in METHODS] == list(METHODS.values())


def test_an_unknown_method_is_named_with_the_closest_one():
    with pytest.raises(ConfigError, match=re.escape("model.method: expected a method, got 'esmn'; did you mean 'esm")):
        get_method("esmn")


def test_an_unknown_method_close_to_none_is_answered_with_all_of_them():
    with pytest.raises(
        ConfigError,
        match="got 'xyz'; known: aitm, aux, base, dcmt, escm2_dr, escm2_ipw, esm2, esm2_mi, esmm, gmcm, hm3, hm3_ipw, hm3_r$",
    ):
        get_method("xyz")


def test_a_funnel_of_ones_own_is_a_method():
    funnel = Method("loan", "ours", (BehaviorGraph((CLICK, APPLY, Behavior("approve"))),))
    assert funnel.levels == ("click", "apply", "approve")
    assert funnel.graph.edges == ("click", "apply_given_click", "approve_given_apply")
    assert not funnel.merged_levels


def test_three_networks_follow_each_other():
    graphs = (BehaviorGraph((CLICK,)), BehaviorGraph((APPLY,), "click"), BehaviorGraph((PURCHASE,), "apply"))
    assert Method("mine", "ours", graphs).levels == ("click", "apply", "purchase")


@pytest.mark.parametrize(
    "graphs, expected, got",
    [
        ((), ["impression"], []),
        ((BehaviorGraph((PURCHASE,), "click"),), ["impression"], ["click"]),
        (
            (BehaviorGraph((CLICK,)), BehaviorGraph((PURCHASE,), "apply")),
            ["impression", "click"],
            ["impression", "apply"],
        ),
        (
            (BehaviorGraph((CLICK, APPLY)), BehaviorGraph((PURCHASE,), "click")),
            ["impression", "apply"],
            ["impression", "click"],
        ),
    ],
    ids=["no graph", "first not at the impression", "unknown root", "root not the end of the one before"],
)
def test_graphs_that_do_not_follow_each_other_are_rejected(graphs, expected, got):
    message = f"method 'mine': expected graphs with the roots {expected}, got {got}"
    with pytest.raises(ConfigError, match=re.escape(message)):
        Method("mine", "ours", graphs)


def test_a_method_without_a_conversion_is_rejected():
    message = "method 'mine': expected at least two levels (a click and a conversion), got ('click',)"
    with pytest.raises(ConfigError, match=re.escape(message)):
        Method("mine", "ours", (BehaviorGraph((CLICK,)),))


def test_methods_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        HM3.name = "mine"
    with pytest.raises(TypeError):
        METHODS["mine"] = ESMM


def test_the_constants_are_the_registry():
    constants = {value.name: value for value in vars(methods).values() if isinstance(value, Method)}
    assert constants == dict(METHODS)
