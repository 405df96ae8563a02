"""The worlds of the simulator: how a click, micro and macro behaviors and a purchase come about, and at which rates.

Given a click, a world is a chain: a first level, a second one that the first tells something about, and the purchase, which
the second tells something about. In `graph_true` the chain is HM3's (Figure 1(b)): micro, macro, purchase. Chains answer with
tables [2, 2, rows] over (d_mi, d_ma), so that what follows from a world does not depend on the order its chain has.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from numpy import ndarray

from hm3_tf.errors import ConfigError

CLICK, MICRO, MACRO, PURCHASE = range(4)
INTENT_NODES, INTENT_WEIGHTS = np.polynomial.hermite_e.hermegauss(7)
INTENT_WEIGHTS = INTENT_WEIGHTS / INTENT_WEIGHTS.sum()
_CORRELATED = ((1.0, 0.3, 0.3, 0.3), (0.3, 1.0, 0.7, 0.7), (0.3, 0.7, 1.0, 0.8), (0.3, 0.7, 0.8, 1.0))


@dataclasses.dataclass(frozen=True)
class Profile:
    """Target rates; those after `click` are among clicked rows (HM3, Table 2; ESM2)."""

    click: float
    d_mi: float = 0.247
    d_ma_given_d_mi: float = 0.197
    d_ma_given_no_d_mi: float = 0.108
    purchase_given_d_ma: float = 0.236
    purchase_given_no_d_ma: float = 0.004

    @property
    def d_ma(self) -> float:
        """Rate of a macro behavior among clicked rows."""
        return self.d_mi * self.d_ma_given_d_mi + (1 - self.d_mi) * self.d_ma_given_no_d_mi

    @property
    def purchase(self) -> float:
        """Rate of a purchase among clicked rows."""
        return self.d_ma * self.purchase_given_d_ma + (1 - self.d_ma) * self.purchase_given_no_d_ma

    @property
    def micro_first(self) -> tuple[float, ...]:
        """Targets of the chain micro, macro, purchase, in the order of `Chain`."""
        return dataclasses.astuple(self)[1:]

    @property
    def macro_first(self) -> tuple[float, ...]:
        """Targets of the chain macro, micro, purchase of the same rates of each level.

        A purchase is as rare without a micro behavior as it is without a macro one where micro comes first.
        """
        given_d_ma = self.d_mi * self.d_ma_given_d_mi / self.d_ma
        given_no_d_ma = self.d_mi * (1 - self.d_ma_given_d_mi) / (1 - self.d_ma)
        rare = self.purchase_given_no_d_ma
        return self.d_ma, given_d_ma, given_no_d_ma, (self.purchase - (1 - self.d_mi) * rare) / self.d_mi, rare


@dataclasses.dataclass(frozen=True)
class World:
    """How behaviors come about.

    Attributes:
      scales: Standard deviation of each utility: click, micro, macro, purchase.
      correlations: Of the observed parts of the utilities, [4][4] in that order, positive definite.
      observed_r2: Share of a utility's variance that the features determine, in [0, 1]; the rest is noise of the row.
      position_effect: Taken off the click logit, times log(1 + position).
      price_sensitivity: Taken off the purchase logit of a mean user, times the standardized log price.
      rates: {field of Profile: rate in this world}.
      macro_first: Share of the impressions in which macro comes before micro, which nothing shows.
      direct_odds: Factors on the odds of a purchase where the first level happened, given that the second one did and did not.
      intent: What the intent of a session (standard normal, one for a slate, never observed) adds to each utility.
      stray: Share of the labels of micro, macro and purchase that stand on rows without a click, in [0, 1).

    Raises:
      ConfigError: A share is out of range, or the correlations are none.
    """

    scales: tuple[float, ...] = (0.8, 1.1, 1.1, 1.7)
    correlations: tuple[tuple[float, ...], ...] = _CORRELATED
    observed_r2: float = 0.9
    position_effect: float = 0.5
    price_sensitivity: float = 0.3
    rates: Mapping[str, float] = dataclasses.field(default_factory=dict)
    macro_first: float = 0.0
    direct_odds: tuple[float, float] = (1.0, 1.0)
    intent: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
    stray: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        for name in ("observed_r2", "macro_first"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"simulation: expected {name} in [0, 1], got {getattr(self, name)}")
        if not all(0 <= share < 1 for share in self.stray):
            raise ConfigError(f"simulation: expected stray in [0, 1), got {self.stray}")
        if np.linalg.eigvalsh(self.correlations)[0] <= 0:
            raise ConfigError(f"simulation: expected a positive definite matrix, got correlations {self.correlations}")

    @property
    def intents(self) -> tuple[ndarray, ndarray]:
        """Values of the intent and their weights, by which its mean is taken (Gauss and Hermite); one where it does nothing."""
        return (INTENT_NODES, INTENT_WEIGHTS) if any(self.intent) else (np.zeros(1), np.ones(1))


def correlations(
    click_micro: float,
    click_macro: float,
    click_purchase: float,
    micro_macro: float,
    micro_purchase: float,
    macro_purchase: float,
) -> tuple[tuple[float, ...], ...]:
    """Returns the matrix [4][4] of correlations of click, micro, macro and purchase."""
    upper = np.zeros((4, 4))
    upper[np.triu_indices(4, 1)] = (
        click_micro,
        click_macro,
        click_purchase,
        micro_macro,
        micro_purchase,
        macro_purchase,
    )
    return tuple(map(tuple, (upper + upper.T + np.eye(4)).tolist()))


def _selection(click_purchase: float) -> World:
    """Returns a world whose click shares what it has in common with micro and macro through the purchase alone."""
    return World(correlations=correlations(0.7 * click_purchase, 0.8 * click_purchase, click_purchase, 0.7, 0.7, 0.8))


PROFILES: Mapping[str, Profile] = MappingProxyType({"paper": Profile(click=0.0298), "dense": Profile(click=0.10)})
WORLDS: Mapping[str, World] = MappingProxyType(
    {
        "graph_true": World(),
        "graph_true_weak": World(correlations=correlations(0.3, 0.3, -0.3, 0.5, 0.4, 0.5)),
        "graph_true_opposed": World(correlations=correlations(0.0, 0.0, -0.3, 0.7, 0.7, 0.8)),
        "micro_direct": World(direct_odds=(2.9, 4.0)),
        "reversed": World(macro_first=1.0),
        "mixed_order": World(macro_first=0.27),
        "latent_intent": World(intent=(0.8, 0.8, 0.8, 1.0)),
        "null_micro": World(
            scales=(0.8, 0.0, 1.1, 1.7), rates=dict.fromkeys(("d_ma_given_d_mi", "d_ma_given_no_d_mi"), 0.13)
        ),
        "non_nested": World(
            stray=(0.05, 0.10, 0.18), rates={"purchase_given_d_ma": 0.2300, "purchase_given_no_d_ma": 0.00491}
        ),
        **{f"selection{rho:+.2f}": _selection(rho) for rho in (-0.5, -0.25, 0.0, 0.25, 0.5)},
        "position_none": World(position_effect=0.0),
        "position_strong": World(position_effect=1.0),
    }
)


def sigmoid(logits: ndarray) -> ndarray:
    """Returns 1 / (1 + exp(-logits))."""
    return 1 / (1 + np.exp(-logits))


@dataclasses.dataclass(frozen=True)
class Chain:
    """What follows a click, in one order of micro and macro.

    Attributes:
      order: Utilities of the first level, of the second and of the purchase.
      shifts: Log of the world's `direct_odds`, or () where they are 1.
      intercepts: float [5], of the first level, the second given it and given not, and the purchase given the second and given
        not.
    """

    order: tuple[int, int, int]
    shifts: tuple[float, ...]
    intercepts: ndarray

    def levels(self, utilities: ndarray) -> ndarray:
        """Returns P(first, second | click): float [2, 2, rows] of utilities [4, rows]."""
        first, second, _ = (utilities[k] for k in self.order)
        p_first = sigmoid(first + self.intercepts[0])
        given = sigmoid(second + self.intercepts[[2, 1], np.newaxis])  # without the first, with it
        return np.stack([1 - p_first, p_first])[:, np.newaxis] * np.stack([1 - given, given], axis=1)

    def purchase(self, utilities: ndarray) -> ndarray:
        """Returns P(purchase | first, second, click): float [1 or 2, 2, rows]; one where the first adds nothing."""
        logits = utilities[self.order[2]] + self.intercepts[[4, 3], np.newaxis]  # without the second, with it
        if not self.shifts:
            return sigmoid(logits)[np.newaxis]
        return sigmoid(np.stack([logits, logits + np.array(self.shifts[::-1], logits.dtype)[:, np.newaxis]]))


@dataclasses.dataclass(frozen=True)
class Behavior:
    """The probabilities of impressions, given all that is drawn for them but the behaviors themselves.

    Attributes:
      click: float [rows].
      levels: float [2, 2, rows], P(d_mi, d_ma | click).
      purchase: float [2, 2, rows] (or 1 in place of a 2), P(purchase | d_mi, d_ma, click).
    """

    click: ndarray
    levels: ndarray
    purchase: ndarray


@dataclasses.dataclass(frozen=True)
class Law:
    """A world with its intercepts.

    Attributes:
      world: The world.
      click_intercept: Of the click's logit.
      chains: (share of the impressions, chain) of each order.
      stray_rates: float [3], chance that a label of micro, macro or purchase is left on an unclicked row where it would have
        happened.
    """

    world: World
    click_intercept: float
    chains: tuple[tuple[float, Chain], ...]
    stray_rates: ndarray

    def behavior(self, utilities: ndarray) -> Behavior:
        """Returns the probabilities of impressions with these utilities [4, rows]."""
        tables = [(share, *self._by_level(chain, utilities)) for share, chain in self.chains]
        click = sigmoid(utilities[CLICK] + self.click_intercept)
        if len(tables) == 1:
            return Behavior(click, *tables[0][1:])
        levels = np.stack([share * table for share, table, _ in tables]).sum(axis=0)
        bought = np.stack([share * table * purchase for share, table, purchase in tables]).sum(axis=0)
        return Behavior(click, levels, bought / levels)

    @staticmethod
    def _by_level(chain: Chain, utilities: ndarray) -> tuple[ndarray, ndarray]:
        """Returns the tables of a chain with micro along the first axis and macro along the second."""
        levels, purchase = chain.levels(utilities), chain.purchase(utilities)
        if chain.order[0] == MICRO:
            return levels, purchase
        return levels.swapaxes(0, 1), purchase.swapaxes(0, 1)


def solve(world: World, profile: Profile, utilities: ndarray) -> Law:
    """Returns the world with the intercepts that give its rates.

    Args:
      world: The world.
      profile: The rates, but for those that the world sets.
      utilities: float [4, rows], of many impressions of the world.

    Returns:
      The law.
    """
    profile = dataclasses.replace(profile, **world.rates)
    click_intercept = _intercept(utilities[CLICK], np.ones_like(utilities[CLICK]), profile.click)
    clicks = sigmoid(utilities[CLICK] + click_intercept)
    shifts = () if world.direct_odds == (1, 1) else tuple(np.log(world.direct_odds).tolist())
    orders = (
        (1 - world.macro_first, (MICRO, MACRO, PURCHASE), profile.micro_first),
        (world.macro_first, (MACRO, MICRO, PURCHASE), profile.macro_first),
    )
    chains = tuple(
        (share, _solve_chain(order, shifts, rates, clicks, utilities)) for share, order, rates in orders if share
    )
    law = Law(world, click_intercept, chains, np.zeros(3))
    return dataclasses.replace(law, stray_rates=_stray_rates(law, utilities)) if any(world.stray) else law


def _solve_chain(order: tuple, shifts: tuple, rates: tuple, clicks: ndarray, utilities: ndarray) -> Chain:
    """Returns the chain whose edges have `rates` among clicked rows, those of the purchase in the mean over the first level."""
    first, second, purchase = (utilities[k] for k in order)
    intercepts = np.zeros(5, utilities.dtype)
    intercepts[0] = _intercept(first, clicks, rates[0])
    p_first = sigmoid(first + intercepts[0])
    intercepts[1] = _intercept(second, clicks * p_first, rates[1])
    intercepts[2] = _intercept(second, clicks * (1 - p_first), rates[2])
    levels = clicks * Chain(order, shifts, intercepts).levels(utilities)
    for edge, happened in ((3, 1), (4, 0)):
        shift = shifts[1 - happened] if shifts else 0.0
        logits = np.stack([purchase, purchase + utilities.dtype.type(shift)])
        intercepts[edge] = _intercept(logits.ravel(), levels[:, happened].ravel(), rates[edge])
    return Chain(order, shifts, intercepts)


def _intercept(logits: ndarray, weights: ndarray, rate: float) -> float:
    """Returns the intercept with which the weighted mean probability is `rate`, by bisection."""
    intercept, target = logits.dtype.type(0), rate * float(weights.sum(dtype=np.float64))
    for step in 16 * 0.5 ** np.arange(20):  # a grid of 6e-5: another machine mostly finds the same numbers
        too_low = float(weights @ sigmoid(logits + intercept)) < target
        intercept += logits.dtype.type(step if too_low else -step)
    return float(intercept)


def outcome_chances(levels: ndarray, purchase: ndarray) -> ndarray:
    """Returns P(d_mi), P(d_ma) and P(purchase) of tables over (d_mi, d_ma): float [3, rows].

    Args:
      levels: float [2, 2, rows].
      purchase: float [2, 2, rows] (or 1 in place of a 2), given the levels.
    """
    return np.stack([levels[1].sum(axis=0), levels[:, 1].sum(axis=0), (levels * purchase).sum(axis=(0, 1))])


def _stray_rates(law: Law, utilities: ndarray) -> ndarray:
    behavior = law.behavior(utilities)
    chances = outcome_chances(behavior.levels, behavior.purchase)
    shares = np.array(law.world.stray)
    return shares / (1 - shares) * (chances @ behavior.click) / (chances @ (1 - behavior.click))
