"""Simulated impression logs whose true probabilities are known.

On public logs the standard error of an AUC exceeds the gaps between methods, so methods are compared on these logs. In
world `graph_true` the graph of HM3 (Figure 1(b)) holds exactly. Randomness is keyed by (seed, chunk), so a log does not
depend on how, in what order, or by how many processes its chunks are drawn.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping

import numpy as np
from numpy import ndarray

from data_pipeline.schema import VARIABLE, Column, Hashing, Level, Schema
from hm3_tf.errors import ConfigError, did_you_mean

CHUNK_ROWS, POSITIONS, CANDIDATES = 65_536, 8, 16
CHUNK_SLATES = CHUNK_ROWS // POSITIONS
DAYS, MISSING_BRAND, CODE_BUCKETS = 7, 0.02, 4_096
HISTORY, LIKED, MET = 10, 20, 64
# How often a behavior is seen where its level happened; cart : wish = 10 : 3.5, so both are seen in 8 %.
MICRO_MIX = {"picture": 0.60, "qa": 0.10, "chat": 0.08, "comments": 0.40, "cart_button": 0.30}
MACRO_MIX = {"cart": 0.80, "wish": 0.28}
# {attribute: (values, share of the traits' variance that it explains)}; the rest belongs to the id alone.
USER_ATTRIBUTES = {"city": (30, 0.15), "age": (7, 0.15), "gender": (2, 0.10), "power": (5, 0.15)}
ITEM_ATTRIBUTES = {"category": (24, 0.35), "brand": (120, 0.15), "shop": (200, 0.10)}
# Traits: a main effect for each of the utilities click, micro, macro, purchase, then two latent factors for each.
UTILITIES, TRAITS = 4, 12
ITEM_SHARE, USER_SHARE, PRODUCT_SHARE = 0.40, 0.25, 0.35
CORRELATIONS = ((1.0, 0.3, 0.3, 0.3), (0.3, 1.0, 0.7, 0.7), (0.3, 0.7, 1.0, 0.8), (0.3, 0.7, 0.8, 1.0))
EDGES, EDGE_UTILITY = ("y1", "y2", "y3", "y5", "y4", "y6"), (0, 1, 2, 2, 3, 3)
PROBABILITIES = ("pctr", "pcvr", "pctcvr", "d_mi", "d_ma", *EDGES[1:])
CALIBRATION_CHUNKS = 6
LOG, POPULATION, CALIBRATION = range(3)


@dataclasses.dataclass(frozen=True)
class Profile:
    """Target rates in the order of the edges; those after `click` are among clicked rows (HM3, Table 2; ESM2)."""

    click: float
    d_mi: float = 0.247
    d_ma_given_d_mi: float = 0.197
    d_ma_given_no_d_mi: float = 0.108
    purchase_given_d_ma: float = 0.236
    purchase_given_no_d_ma: float = 0.004


@dataclasses.dataclass(frozen=True)
class World:
    """How behaviors come about.

    Attributes:
      scales: Standard deviation of each utility: click, micro, macro, purchase.
      correlations: Of the observed parts of the utilities, [4][4] in that order.
      observed_r2: Share of a utility's variance that the features determine, in [0, 1]; the rest is noise of the row.
      position_effect: Taken off the click logit, times log(1 + position).
      price_sensitivity: Taken off the purchase logit of a mean user, times the standardized log price.

    Raises:
      ConfigError: `correlations` is no positive definite correlation matrix.
    """

    scales: tuple[float, ...] = (0.8, 1.1, 1.1, 1.7)
    correlations: tuple[tuple[float, ...], ...] = CORRELATIONS
    observed_r2: float = 0.8
    position_effect: float = 0.5
    price_sensitivity: float = 0.3

    def __post_init__(self) -> None:
        matrix = np.array(self.correlations)
        valid = matrix.shape == (UTILITIES, UTILITIES) and (matrix == matrix.T).all() and (np.diag(matrix) == 1).all()
        if not valid or np.linalg.eigvalsh(matrix)[0] <= 0:
            raise ConfigError(f"world: expected a positive definite 4 x 4 correlation matrix, got {self.correlations}")


PROFILES: Mapping[str, Profile] = {"paper": Profile(click=0.0298), "dense": Profile(click=0.10)}
WORLDS: Mapping[str, World] = {"graph_true": World()}


@dataclasses.dataclass(frozen=True)
class SimulatedLog:
    """A log of impressions in slates of 8 positions.

    Attributes:
      world: Name of a world, or a world.
      profile: Name of a profile, or a profile.
      rows: Number of impressions. A longer log of the same seed starts with the same rows, but for `day`.
      seed: Keys the users and items as well as the rows.
      users: Number of users, at least 100.
      items: Number of items, at least 100.

    Raises:
      ConfigError: A name is unknown or a number is too small.
    """

    world: str | World = "graph_true"
    profile: str | Profile = "dense"
    rows: int = 200_000
    seed: int = 0
    users: int = 2_000
    items: int = 2_000

    def __post_init__(self) -> None:
        for kind, name, known in (("world", self.world, WORLDS), ("profile", self.profile, PROFILES)):
            if isinstance(name, str) and name not in known:
                raise ConfigError(f"simulation: expected a known {kind}, got {name!r}; {did_you_mean(name, known)}")
        for name, least in (("rows", 1), ("seed", 0), ("users", 100), ("items", 100)):
            if getattr(self, name) < least:
                raise ConfigError(f"simulation: expected {name} of at least {least}, got {getattr(self, name)}")

    @functools.cached_property
    def schema(self) -> Schema:
        """The columns and levels; ids get ten times as many buckets as there are of them."""
        items, codes = Hashing(10 * self.items, table="item_id"), Hashing(CODE_BUCKETS)
        behaviors = ("click", *MICRO_MIX, *MACRO_MIX, "purchase")
        columns = (
            *(Column(name, "int64", "ignored") for name in ("day", "slate")),
            Column("position", "int64", hashing=codes),
            Column("user_id", "int64", "group", hashing=Hashing(10 * self.users)),
            Column("item_id", "int64", hashing=items),
            *(Column(name, "string", hashing=codes) for name in (*USER_ATTRIBUTES, *ITEM_ATTRIBUTES)),
            Column("price", "float"),
            Column("history", "int64", "feature", VARIABLE, HISTORY, items),
            *(Column(name, "int64", "behavior") for name in behaviors),
            Column("gmv", "float", "ignored"),
            *(Column(f"truth_{name}", "float", "truth") for name in PROBABILITIES),
            *(Column(f"truth_do_{name}", "int64", "truth") for name in ("d_mi", "d_ma", "purchase")),
        )
        levels = (("click",), tuple(MICRO_MIX), tuple(MACRO_MIX), ("purchase",))
        names = ("click", "d_mi", "d_ma", "purchase")
        return Schema(columns, tuple(Level(n, any_of, gate=n == "click") for n, any_of in zip(names, levels)))

    @functools.cached_property
    def intercepts(self) -> ndarray:
        """Intercepts of the edges' logits, float64 [6], solved on impressions that are not in the log."""
        draws = (_rng(self.seed, index, CALIBRATION) for index in range(CALIBRATION_CHUNKS))
        utilities = np.concatenate([self._population.impressions(rng, self._world)[2] for rng in draws], axis=1)
        return _calibrate(utilities, PROFILES.get(self.profile, self.profile))

    @functools.cached_property
    def _population(self) -> "_Population":
        return _Population(_rng(self.seed, 0, POPULATION), self.users, self.items)

    @property
    def _world(self) -> World:
        return WORLDS.get(self.world, self.world)

    def batches(self) -> Iterator[dict[str, ndarray | tuple[ndarray, ndarray]]]:
        """Yields chunks of 65,536 rows and the rest, in order.

        Yields:
          {column of the schema: [rows], int64, float32 or str; "" is missing}; `history` is (ids int64 [total],
          lengths int64 [rows]). Labels are 0 or 1, and so are `truth_do_*`: the outcomes had the row been clicked.
        """
        return map(self._chunk, range(-(-self.rows // CHUNK_ROWS)))

    def _chunk(self, index: int) -> dict[str, ndarray | tuple[ndarray, ndarray]]:
        rng = _rng(self.seed, index)
        users, items, utilities = self._population.impressions(rng, self._world)
        columns = self._population.features(rng, users, items)
        columns |= _behaviors(rng, _sigmoid(utilities + self.intercepts[:, None]))
        columns["gmv"] = columns["price"] * columns["purchase"].astype(np.float32)
        row = np.arange(index * CHUNK_ROWS, (index + 1) * CHUNK_ROWS)
        columns |= {"day": row * DAYS // self.rows, "slate": row // POSITIONS, "position": row % POSITIONS}
        return {column.name: _head(columns[column.name], self.rows - row[0]) for column in self.schema.columns}


def auc(labels: ndarray, scores: ndarray) -> float:
    """Returns P(a positive of the 0/1 `labels` [rows] outranks a negative), a tie counting 1/2; NaN without pairs."""
    _, group, sizes = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(sizes) - (sizes - 1) / 2)[group]
    hits = int(np.count_nonzero(labels))
    pairs = hits * (len(ranks) - hits)
    return float((ranks[labels > 0].sum() - hits * (hits + 1) / 2) / pairs) if pairs else float("nan")


def bayes_aucs(columns: Mapping[str, ndarray]) -> dict[str, float]:
    """Returns the AUC of the true probabilities: {"pctr", "pcvr" (on clicked rows), "pctcvr"}.

    No model exceeds them but by chance. They know the noise of the row, so models stay below where `observed_r2` < 1.

    Args:
      columns: Labels `click`, `purchase` and `truth_pctr`, `truth_pcvr`, `truth_pctcvr` of a log, [rows] each.
    """
    clicked = columns["click"] > 0
    pctr, pctcvr = auc(columns["click"], columns["truth_pctr"]), auc(columns["purchase"], columns["truth_pctcvr"])
    return {"pctr": pctr, "pcvr": auc(columns["purchase"][clicked], columns["truth_pcvr"][clicked]), "pctcvr": pctcvr}


class _Entities:
    """Users or items by falling popularity, Zipf of 1.05 with ranks from 21 on."""

    def __init__(self, rng: np.random.Generator, salt: int, count: int, attributes: dict[str, tuple[int, float]]):
        index = np.arange(count) + (salt << 40)
        # An odd factor permutes the residues of 2**59. Runs of eight consecutive ids, above 2**53: a reader that takes
        # them through floats merges a run, and is caught.
        self.ids = ((index >> 3) * 0x1E3779B97F4A7C15 & (1 << 59) - 1) * 8 + index % 8 + (1 << 53) + 1
        shares = (np.arange(count) + 21.0) ** -1.05
        self.cdf = np.cumsum(shares / shares.sum())
        self.codes = {name: rng.integers(values, size=count) for name, (values, _) in attributes.items()}
        own = 1 - sum(share for _, share in attributes.values())
        traits = np.sqrt(own) * rng.standard_normal((count, TRAITS))
        for name, (values, share) in attributes.items():
            traits += np.sqrt(share) * rng.standard_normal((values, TRAITS))[self.codes[name]]
        # Standardized as they are met, so that two genders or few users cannot change the scale of a utility.
        traits -= np.average(traits, axis=0, weights=shares)
        self.traits = traits / np.sqrt(np.average(traits**2, axis=0, weights=shares))

    def draw(self, uniforms: ndarray) -> ndarray:
        return np.searchsorted(self.cdf[:-1], uniforms, side="right")

    def columns(self, name: str, index: ndarray) -> dict[str, ndarray]:
        result = {name: self.ids[index]}
        for attribute, codes in self.codes.items():
            result[attribute] = np.array([f"{attribute}_{i}" for i in range(codes.max() + 1)])[codes[index]]
        return result


class _Population:
    """The users, the items, what each user liked before the log, and an old model that fills the slates."""

    def __init__(self, rng: np.random.Generator, users: int, items: int):
        self.users, self.items = _Entities(rng, 0, users, USER_ATTRIBUTES), _Entities(rng, 1, items, ITEM_ATTRIBUTES)
        self.log_price, self.old_error = rng.standard_normal((2, items))
        met = self.items.draw(rng.random((users, MET)))
        factors = range(UTILITIES, TRAITS)
        agreement = sum(self.users.traits[:, [k]] * self.items.traits[met, k] for k in factors)
        self.liked = self.items.ids[np.take_along_axis(met, np.argsort(-agreement, axis=1)[:, :LIKED], axis=1)]

    def affinity(self, users: ndarray, items: ndarray) -> ndarray:
        """Returns the four independent standardized tastes of users for items, [slates, items, 4]."""
        user, item = self.users.traits[users][:, None], self.items.traits[items]
        products = (user * item)[..., UTILITIES:]
        product = (products[..., :UTILITIES] + products[..., UTILITIES:]) * np.sqrt(PRODUCT_SHARE / 2)
        return np.sqrt(ITEM_SHARE) * item[..., :UTILITIES] + np.sqrt(USER_SHARE) * user[..., :UTILITIES] + product

    def slates(self, rng: np.random.Generator) -> tuple[ndarray, ndarray, ndarray]:
        """Returns users [slates], items shown [slates, positions] and their affinity [slates, positions, 4]."""
        users = self.users.draw(rng.random(CHUNK_SLATES))
        # One candidate from each sixteenth of the distribution: the shares stay Zipf's, and repeats are neighbors.
        candidates = self.items.draw((np.arange(CANDIDATES) + rng.random((CHUNK_SLATES, CANDIDATES))) / CANDIDATES)
        affinity = self.affinity(users, candidates)
        # Gumbel's trick: the best of score + noise are drawn from the softmax of the old model, without replacement.
        score = affinity[..., 0] + self.old_error[candidates] + rng.gumbel(size=candidates.shape)
        score[:, 1:][candidates[:, 1:] == candidates[:, :-1]] = -np.inf
        shown = np.argsort(-score, axis=1)[:, :POSITIONS]
        return users, np.take_along_axis(candidates, shown, 1), np.take_along_axis(affinity, shown[..., None], 1)

    def impressions(self, rng: np.random.Generator, world: World) -> tuple[ndarray, ndarray, ndarray]:
        """Returns users [slates], items [slates, positions] and the utilities behind the edges [6, rows]."""
        users, items, affinity = self.slates(rng)
        observed = affinity @ np.linalg.cholesky(np.array(world.correlations)).T
        noise = rng.standard_normal(observed.shape)
        utilities = (np.sqrt(world.observed_r2) * observed + np.sqrt(1 - world.observed_r2) * noise) * world.scales
        utilities[..., 0] -= world.position_effect * np.log1p(np.arange(POSITIONS))
        aversion = 1.5 - 0.25 * self.users.codes["power"][users]  # the five levels of power give 1.5 ... 0.5
        utilities[..., 3] -= world.price_sensitivity * aversion[:, None] * self.log_price[items]
        return users, items, utilities.reshape(CHUNK_ROWS, UTILITIES).T[list(EDGE_UTILITY)]

    def features(self, rng: np.random.Generator, users: ndarray, items: ndarray) -> dict:
        """Returns ids, attributes, price [rows] and history of users [slates] and items [slates, positions]."""
        result = self.users.columns("user_id", np.repeat(users, POSITIONS))
        result |= self.items.columns("item_id", items.ravel())
        result["brand"][rng.random(CHUNK_ROWS) < MISSING_BRAND] = ""
        result["price"] = np.exp(3.5 + 0.8 * self.log_price[items.ravel()]).astype(np.float32)
        return result | {"history": _history(rng, self.liked[users])}


def _history(rng: np.random.Generator, liked: ndarray) -> tuple[ndarray, ndarray]:
    """Returns 0 to 10 of the liked ids [slates, 20], alike in all rows of a slate: ids [total], lengths [rows]."""
    lengths = np.repeat(rng.integers(HISTORY + 1, size=CHUNK_SLATES), POSITIONS)
    starts = rng.integers(LIKED - HISTORY + 1, size=(CHUNK_SLATES, 1))
    window = np.repeat(np.take_along_axis(liked, starts + np.arange(HISTORY), axis=1), POSITIONS, axis=0)
    return window[np.arange(HISTORY) < lengths[:, None]], lengths


def _head(value: ndarray | tuple[ndarray, ndarray], rows: int) -> ndarray | tuple[ndarray, ndarray]:
    if isinstance(value, tuple):
        return value[0][: value[1][:rows].sum()], value[1][:rows]
    return value[:rows]


def _rng(seed: int, index: int, stream: int = LOG) -> np.random.Generator:
    # The stream stands last: numpy pads a key with zeros, so the log's key is (seed, index).
    return np.random.default_rng([seed, index, stream])


def _sigmoid(logits: ndarray) -> ndarray:
    return 1 / (1 + np.exp(-logits))


def _reach(edges: ndarray) -> tuple[ndarray, ...]:
    """Returns the probability of arriving at each edge, [rows] each, of the edges' own [6, rows] (HM3, Eq. 1-3)."""
    y1, y2, y3, y5, _, _ = edges
    d_ma = y2 * y3 + (1 - y2) * y5
    return np.ones_like(y1), y1, y1 * y2, y1 * (1 - y2), y1 * d_ma, y1 * (1 - d_ma)


def _calibrate(utilities: ndarray, profile: Profile) -> ndarray:
    """Returns the intercepts [6] with which utilities [6, rows] give the rates of `profile`."""
    intercepts, edges = np.zeros(len(EDGES)), np.zeros_like(utilities)
    for edge, rate in enumerate(dataclasses.astuple(profile)):
        intercepts[edge] = _bisect(utilities[edge], _reach(edges)[edge], rate)
        edges[edge] = _sigmoid(utilities[edge] + intercepts[edge])
    return intercepts


def _bisect(utilities: ndarray, weights: ndarray, rate: float) -> float:
    low, high = -30.0, 30.0
    for _ in range(40):
        middle = (low + high) / 2
        above = weights @ _sigmoid(utilities + middle) > rate * weights.sum()
        low, high = (low, middle) if above else (middle, high)
    return (low + high) / 2


def _behaviors(rng: np.random.Generator, edges: ndarray) -> dict[str, ndarray]:
    """Returns labels and truths [rows] of the edges' probabilities [6, rows]; pctcvr is HM3's Eq. 4."""
    _, pctr, d_mi, _, d_ma, no_d_ma = _reach(edges)
    pctcvr = d_ma * edges[4] + no_d_ma * edges[5]
    truths = zip(PROBABILITIES, (pctr, pctcvr / pctr, pctcvr, d_mi, d_ma, *edges[1:]))
    y1, y2, y3, y5, y4, y6 = edges
    uniforms = rng.random((4, edges.shape[1]))
    click, micro = uniforms[0] < y1, uniforms[1] < y2
    macro = uniforms[2] < np.where(micro, y3, y5)
    buy = uniforms[3] < np.where(macro, y4, y6)
    labels = {"click": click, "purchase": buy & click}
    labels |= {"truth_do_d_mi": micro, "truth_do_d_ma": macro, "truth_do_purchase": buy}
    result = {name: happened.astype(np.int64) for name, happened in labels.items()}
    result |= {f"truth_{name}": values.astype(np.float32) for name, values in truths}
    return result | _members(rng, micro & click, MICRO_MIX) | _members(rng, macro & click, MACRO_MIX)


def _members(rng: np.random.Generator, happened: ndarray, mix: dict[str, float]) -> dict[str, ndarray]:
    """Returns {behavior: int64 [rows]}, at least one 1 where the level `happened`, bool [rows].

    Co-occurring behaviors and a level that is any of them are the same as a level and then the behaviors given the level.
    The level comes first, so that its probability is known; it is the frailty that its behaviors share.
    """
    sets, cdf = _sets(tuple(mix.values()))
    seen = np.zeros((len(mix), len(happened)), np.int64)
    seen[:, happened] = sets[:, np.searchsorted(cdf[:-1], rng.random(np.count_nonzero(happened)), side="right")]
    return dict(zip(mix, seen))


@functools.cache
def _sets(given: tuple[float, ...]) -> tuple[ndarray, ndarray]:
    """Returns the nonempty sets of n behaviors [n, sets] and their cumulative probabilities [sets].

    They are those of independent behaviors given that one happened; `given` that, the behaviors have these rates.
    """
    happened = 0.5
    for _ in range(1_000):  # to the fixed point P(one happened) = 1 - product(1 - rates)
        rates = np.array(given) * happened
        happened = 1 - np.prod(1 - rates)
    sets = np.array(list(itertools.product((0, 1), repeat=len(given)))[1:])
    odds = np.prod(np.where(sets, rates, 1 - rates), axis=1)
    return sets.T, np.cumsum(odds / odds.sum())
