"""The methods as constants: each is its behavior graph and the name of its design, nothing else.

Those of the paper's Table 3 but GMCM are chains; the others have designs of their own (`designs.py`). A funnel of one's own is
a `Method` with another graph; no code below this file asks for a method's name.
"""

import dataclasses
from collections.abc import Collection, Mapping
from types import MappingProxyType

from hm3_tf.behavior_graph import IMPRESSION, Behavior, BehaviorGraph
from hm3_tf.errors import ConfigError, did_you_mean


@dataclasses.dataclass(frozen=True)
class Method:
    """A method: the chains it models and the labels it merges.

    Attributes:
      name: What `model.method` of a config calls it.
      citation: Where it was published.
      graphs: Its chains. One chain is trained as one network; several are trained as separate networks that share
        nothing, each on the rows of its own root, which is a level of the chain before it.
      merged_levels: Levels that are the union of levels of the data: {level: levels that it merges}.
      split_levels: Levels of the data whose behaviors are labels of their own, named as `d_mi.picture`.
      auxiliary_levels: Levels of the data that are learned beside the chain, given its click.
      design: How its towers are laid out and what it adds to the losses of its levels: a name in `designs.DESIGNS`.
      loss_weights: {loss: weight where the config sets none}. A loss that is no level is one that the design adds.

    Raises:
      ConfigError: The first chain does not start at the impression, or a later one not at the end of the one before; or
        there are fewer than two levels, or one stands twice.
    """

    name: str
    citation: str
    graphs: tuple[BehaviorGraph, ...]
    merged_levels: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict, hash=False)
    split_levels: tuple[str, ...] = ()
    auxiliary_levels: tuple[str, ...] = ()
    design: str = "chain"
    loss_weights: Mapping[str, float] = dataclasses.field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        roots = [graph.root for graph in self.graphs]
        expected = [IMPRESSION, *(graph.levels[-1] for graph in self.graphs[:-1])]
        if roots != expected:
            raise ConfigError(f"method {self.name!r}: expected graphs with the roots {expected}, got {roots}")
        if len(set(self.levels)) < len(self.levels):
            raise ConfigError(f"method {self.name!r}: expected levels that differ, got {self.levels}")
        if len(self.levels) < 2:
            raise ConfigError(
                f"method {self.name!r}: expected at least two levels (a click and a conversion), got {self.levels}"
            )

    @property
    def graph(self) -> BehaviorGraph:
        """The chain of a method that has one.

        Raises:
          ConfigError: The method trains several networks (BASE).
        """
        if len(self.graphs) > 1:
            raise ConfigError(f"method {self.name!r} has {len(self.graphs)} graphs: see its `graphs`")
        return self.graphs[0]

    @property
    def click_graph(self) -> BehaviorGraph:
        """The chain that starts at the impression (BASE: impression to click)."""
        return self.graphs[0]

    @property
    def purchase_graph(self) -> BehaviorGraph:
        """The chain that ends at the conversion (BASE: click to purchase)."""
        return self.graphs[-1]

    @property
    def levels(self) -> tuple[str, ...]:
        """All levels in order; the first is the click, the last the conversion."""
        return tuple(level for graph in self.graphs for level in graph.levels)

    @property
    def log_levels(self) -> tuple[str, ...]:
        """Levels that a log must have: those of the chains, or what they merge, and those that are split or auxiliary."""
        modelled = [part for level in self.levels for part in self.merged_levels.get(level, (level,))]
        return tuple(dict.fromkeys((*modelled, *self.split_levels, *self.auxiliary_levels)))

    @property
    def heads(self) -> tuple[BehaviorGraph, ...]:
        """The chain from the click to each auxiliary level."""
        click = self.graphs[0].behaviors[0]
        return tuple(BehaviorGraph((click, Behavior(level))) for level in self.auxiliary_levels)

    @property
    def losses(self) -> tuple[str, ...]:
        """Names of all its losses: its levels, then those that its design adds."""
        return tuple(dict.fromkeys((*self.levels, *self.loss_weights)))


_CLICK = Behavior("click", gate=True)
_D_MI = Behavior("d_mi")
_D_MA = Behavior("d_ma")
_D_ACTION = Behavior("d_action")
_PURCHASE = Behavior("purchase")

BASE = Method(
    "base",
    "HM3 (Wen et al., SIGIR 2021), Section 3.1.2: separate CTR and CVR networks",
    (BehaviorGraph((_CLICK,)), BehaviorGraph((_PURCHASE,), root="click")),
)
ESMM = Method("esmm", "Ma et al., SIGIR 2018", (BehaviorGraph((_CLICK, _PURCHASE)),))
ESM2 = Method("esm2", "Wen et al., SIGIR 2020", (BehaviorGraph((_CLICK, _D_MA, _PURCHASE)),))
ESM2_MI = Method(
    "esm2_mi",
    "HM3 (Wen et al., SIGIR 2021), Section 3.1.2",
    (BehaviorGraph((_CLICK, _D_ACTION, _PURCHASE)),),
    {"d_action": ("d_mi", "d_ma")},
)
HM3 = Method(
    "hm3", "Wen et al., SIGIR 2021, Eq. 1-4 and Figure 1(b)", (BehaviorGraph((_CLICK, _D_MI, _D_MA, _PURCHASE)),)
)
HM3_R = Method(
    "hm3_r",
    "HM3 (Wen et al., SIGIR 2021), Section 3.1.2: HM3 with macro before micro",
    (BehaviorGraph((_CLICK, _D_MA, _D_MI, _PURCHASE)),),
)

GMCM = Method(
    "gmcm",
    "Bao et al., SIGIR 2020: a re-implementation from the abstract",
    ESMM.graphs,
    split_levels=("d_mi",),
    design="micro_graph",
    loss_weights={"micro": 1.0},
)
ESCM2_IPW = Method(
    "escm2_ipw",
    "Wang et al., SIGIR 2022",
    ESMM.graphs,
    design="inverse_propensity",
    loss_weights={"purchase": 0.5, "cvr": 0.5},
)
ESCM2_DR = Method(
    "escm2_dr",
    "Wang et al., SIGIR 2022",
    ESMM.graphs,
    design="doubly_robust",
    loss_weights={"purchase": 0.5, "cvr": 0.5, "imputation": 0.5},
)
DCMT = Method(
    "dcmt",
    "Zhu et al., ICDE 2023",
    ESMM.graphs,
    design="counterfactual",
    loss_weights={"cvr": 1.0, "counterfactual": 1e-3},
)
AITM = Method("aitm", "Xi et al., KDD 2021", ESMM.graphs, design="transfer", loss_weights={"calibrator": 0.6})
HM3_IPW = Method(
    "hm3_ipw",
    "HM3 (Wen et al., SIGIR 2021) with the inverse propensity loss of ESCM2 (Wang et al., SIGIR 2022); a cross of ours",
    HM3.graphs,
    design="inverse_propensity",
    loss_weights={"cvr": 1.0},
)
AUX = Method(
    "aux",
    "a control of ours: ESMM with heads for the other levels",
    ESMM.graphs,
    auxiliary_levels=("d_mi", "d_ma"),
    design="auxiliary_heads",
    loss_weights={"d_mi": 1.0, "d_ma": 1.0},
)

TITLES: Mapping[str, str] = MappingProxyType(
    {
        **{"base": "BASE", "esmm": "ESMM", "esm2": "ESM2", "gmcm": "GMCM", "esm2_mi": "ESM2+Mi", "hm3_r": "HM3-R"},
        **{
            "hm3": "HM3",
            "aux": "AUX",
            "escm2_ipw": "ESCM2-IPW",
            "escm2_dr": "ESCM2-DR",
            "dcmt": "DCMT",
            "aitm": "AITM",
        },
        "hm3_ipw": "HM3+IPW",
    }
)
"""What tables call each method: those of the paper in its order, then others."""

CHAINS: Mapping[str, Method] = MappingProxyType(
    {method.name: method for method in (BASE, ESMM, ESM2, ESM2_MI, HM3, HM3_R)}
)
"""Methods that are their behavior graph alone."""

METHODS: Mapping[str, Method] = MappingProxyType(
    {**CHAINS, **{method.name: method for method in (GMCM, ESCM2_IPW, ESCM2_DR, DCMT, AITM, HM3_IPW, AUX)}}
)


def fitting_methods(levels: Collection[str]) -> tuple[str, ...]:
    """Returns the names of the methods that fit a log with these levels, in the order of `METHODS`."""
    return tuple(name for name, method in METHODS.items() if set(method.log_levels) <= set(levels))


def get_method(name: str) -> Method:
    """Returns the method with that name.

    Args:
      name: One of `METHODS`.

    Returns:
      The method.

    Raises:
      ConfigError: No method has that name.
    """
    if name not in METHODS:
        raise ConfigError(f"model.method: expected a method, got {name!r}; {did_you_mean(name, METHODS)}")
    return METHODS[name]
