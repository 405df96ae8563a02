"""The ordered chain of behavior levels that an impression passes, and the towers it needs.

Standard library only. The chain is the whole description of a method of the HM3 family: every edge of the chain is one
conditional probability, predicted by one tower (HM3, Figure 1(b) and Section 2.2).
"""

import dataclasses

from hm3_tf.errors import ConfigError, did_you_mean

IMPRESSION = "impression"


@dataclasses.dataclass(frozen=True)
class Behavior:
    """One level of the chain, which happens or does not.

    Attributes:
      name: Name of the level and of its label, an identifier such as `click`.
      gate: Whether no later level can happen unless this one did.

    Raises:
      ConfigError: `name` is no identifier, or starts with the reserved `no_`.
    """

    name: str
    gate: bool = False

    def __post_init__(self) -> None:
        if not self.name.isidentifier() or self.name.startswith("no_"):
            raise ConfigError(
                f"expected a behavior name that is an identifier and does not start with 'no_', got {self.name!r}"
            )


@dataclasses.dataclass(frozen=True)
class Transition:
    """How one level depends on the level before it.

    Attributes:
      level: Name of the level.
      edges: Names of its towers: (given the level before,) or (given the level before, given not the level before).
      follows_gate: Whether the level before is a gate. The root is not one: it has always happened.
    """

    level: str
    edges: tuple[str, ...]
    follows_gate: bool


@dataclasses.dataclass(frozen=True)
class BehaviorGraph:
    """A chain of behaviors over the sample space of a root event.

    A level is conditioned on whether the level before it happened (two edges), unless that level is a gate (one edge).

    >>> BehaviorGraph((Behavior("click", gate=True), Behavior("cart"), Behavior("purchase"))).edges
    ('click', 'cart_given_click', 'purchase_given_cart', 'purchase_given_no_cart')

    Attributes:
      behaviors: The levels in order.
      root: The event that every row of the sample space has passed: `impression`, or a level for a model that is
        trained on the rows of that level alone.

    Raises:
      ConfigError: There is no behavior, or a name stands twice.
    """

    behaviors: tuple[Behavior, ...]
    root: str = IMPRESSION

    def __post_init__(self) -> None:
        object.__setattr__(self, "behaviors", tuple(self.behaviors))
        names = (self.root, *self.levels)
        if len(names) == 1:
            raise ConfigError("expected a behavior graph with at least one behavior, got none")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(f"expected behavior names that differ from each other and the root, got twice: {twice}")

    @property
    def levels(self) -> tuple[str, ...]:
        """Names of the levels, in order."""
        return tuple(behavior.name for behavior in self.behaviors)

    @property
    def transitions(self) -> tuple[Transition, ...]:
        """How each level depends on the one before it, in order."""
        first = self.behaviors[0].name
        result = [Transition(first, (first if self.root == IMPRESSION else f"{first}_given_{self.root}",), False)]
        for before, behavior in zip(self.behaviors, self.behaviors[1:]):
            given = f"{behavior.name}_given_{before.name}"
            otherwise = () if before.gate else (f"{behavior.name}_given_no_{before.name}",)
            result.append(Transition(behavior.name, (given, *otherwise), before.gate))
        return tuple(result)

    @property
    def edges(self) -> tuple[str, ...]:
        """Names of the towers, level by level; for HM3 y1, y2, y3, y5, y4, y6 of the paper."""
        return tuple(edge for transition in self.transitions for edge in transition.edges)

    def index(self, level: str) -> int:
        """Returns the position of a level.

        Args:
          level: Name of a level.

        Returns:
          Its index in `levels`.

        Raises:
          ConfigError: The graph has no such level.
        """
        if level not in self.levels:
            raise ConfigError(f"expected a level of the graph, got {level!r}; {did_you_mean(level, self.levels)}")
        return self.levels.index(level)
