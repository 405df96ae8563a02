"""Simulated impression logs whose true probabilities are known.

On public logs an AUC's standard error exceeds the gaps between methods, so methods are compared on these. In the world
`graph_true` HM3's graph (Figure 1(b)) holds exactly. Randomness is keyed by (seed, chunk), whatever was drawn before.
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator

import numpy as np
from numpy import ndarray

from data_pipeline.schema import VARIABLE, Column, Hashing, Level, Schema
from data_pipeline.worlds import CLICK, PROFILES, PURCHASE, WORLDS, Law, Profile, World, solve
from hm3_tf.errors import ConfigError, did_you_mean

CHUNK_ROWS, POSITIONS, CANDIDATES = 65_536, 8, 16
CHUNK_SLATES = CHUNK_ROWS // POSITIONS
DAYS, HISTORY, LIKED, MET = 7, 10, 20, 64
MISSING_BRAND, CODE_BUCKETS, CALIBRATION_CHUNKS = 0.02, 4_096, 12
# How often a behavior is seen where its level happened; cart : wish = 10 : 3.5, so both are seen in 8 %.
MICRO_MIX = {"picture": 0.60, "qa": 0.10, "chat": 0.08, "comments": 0.40, "cart_button": 0.30}
MACRO_MIX = {"cart": 0.80, "wish": 0.28}
# Roots of any = 1 - product(1 - any * mix): independent behaviors of rates any * mix have the mix, given any of them.
MICRO_ANY, MACRO_ANY = 0.7268740077, 5 / 14
LEVELS = {"click": ("click",), "d_mi": tuple(MICRO_MIX), "d_ma": tuple(MACRO_MIX), "purchase": ("purchase",)}
# {attribute: (values, share of the traits' variance that it explains)}; the rest belongs to the id alone.
USER_ATTRIBUTES = {"city": (30, 0.15), "age": (7, 0.15), "gender": (2, 0.10), "power": (5, 0.15)}
ITEM_ATTRIBUTES = {"category": (24, 0.35), "brand": (120, 0.15), "shop": (200, 0.10)}
# Traits: a main effect for each of the utilities click, micro, macro, purchase, then two latent factors for each.
UTILITIES, TRAITS, ITEM_SHARE, USER_SHARE, PRODUCT_SHARE = 4, 12, 0.45, 0.30, 0.25
EDGES = ("y2", "y3", "y5", "y4", "y6")  # of HM3 after the click, in the order of Figure 1(b)
PROBABILITIES = ("pctr", "pcvr", "pcvr_given_click", "pctcvr", "d_mi", "d_ma", *EDGES)
LOG, POPULATION, CALIBRATION = range(3)  # last in the key of a generator; as numpy pads with zeros, LOG can be left out


@dataclasses.dataclass(frozen=True)
class SimulatedLog:
    """A log of impressions in slates of 8 positions.

    Attributes:
      world: A world or its name.
      profile: A profile or its name.
      rows: Number of impressions. A longer log of the same seed starts with the same rows, but for `day`.
      seed: Keys the users and items as well as the rows.
      users, items: How many there are, at least 100 each.

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

    @property
    def world_settings(self) -> World:
        """The world."""
        return WORLDS[self.world] if isinstance(self.world, str) else self.world

    @property
    def profile_settings(self) -> Profile:
        """The profile."""
        return PROFILES[self.profile] if isinstance(self.profile, str) else self.profile

    @functools.cached_property
    def schema(self) -> Schema:
        """The columns and levels; ids get ten times as many buckets as there are of them."""
        items, codes = Hashing(10 * self.items, table="item_id"), Hashing(CODE_BUCKETS)
        columns = (
            *(Column(name, "int64", "ignored") for name in ("day", "slate")),
            Column("position", "int64", hashing=codes),
            Column("user_id", "int64", "group", hashing=Hashing(10 * self.users), entity="user"),
            Column("item_id", "int64", hashing=items),
            *(Column(name, "string", hashing=codes, entity="user") for name in USER_ATTRIBUTES),
            *(Column(name, "string", hashing=codes) for name in ITEM_ATTRIBUTES),
            Column("price", "float"),
            Column("history", "int64", "feature", VARIABLE, HISTORY, items, "user"),
            *(Column(name, "int64", "behavior") for names in LEVELS.values() for name in names),
            Column("gmv", "float", "ignored"),
            *(Column(f"truth_{name}", "float", "truth") for name in PROBABILITIES),
            *(Column(f"truth_do_{name}", "int64", "truth") for name in ("d_mi", "d_ma", "purchase")),
        )
        return Schema(columns, tuple(Level(name, any_of, gate=name == "click") for name, any_of in LEVELS.items()))

    @functools.cached_property
    def law(self) -> Law:
        """The world with its intercepts, which are solved on impressions that are not in the log."""
        draws = [self._impressions(index, CALIBRATION).utilities for index in range(CALIBRATION_CHUNKS)]
        return solve(self.world_settings, self.profile_settings, np.concatenate(draws, 1, dtype=np.float32))

    @functools.cached_property
    def _population(self) -> "_Population":
        return _Population(np.random.default_rng([self.seed, 0, POPULATION]), self.users, self.items)

    def _impressions(self, index: int, stream: int) -> "_Impressions":
        rng = np.random.default_rng([self.seed, index, stream])
        sharing = 1 if stream == CALIBRATION else POSITIONS  # of more intents the mean is closer to its expectation
        return self._population.impressions(rng, self.world_settings, sharing)

    @property
    def chunks(self) -> int:
        """Number of chunks of 65,536 rows, and one for the rest."""
        return -(-self.rows // CHUNK_ROWS)

    def batches(self, chunks: Iterable[int] | None = None) -> Iterator[dict[str, ndarray | tuple[ndarray, ndarray]]]:
        """Yields chunks of rows.

        Args:
          chunks: Their numbers from 0; None for all, in order. Each is drawn by itself.

        Yields:
          {column of the schema: int64, float32 or bytes [rows]}; b"" is missing. `history` is (ids int64 [total],
          lengths int64 [rows]). `truth_do_*` are the outcomes had the row been clicked, 0 or 1 like the labels.
        """
        return map(self._chunk, range(self.chunks) if chunks is None else chunks)

    def _chunk(self, index: int) -> dict[str, ndarray | tuple[ndarray, ndarray]]:
        shown = self._impressions(index, LOG)
        columns = self._population.features(shown)
        columns |= _labels(shown.rng, self.law, shown.utilities)
        columns |= true_probabilities(self.law, shown.utilities, shown.intent)
        columns["gmv"] = columns["price"] * columns["purchase"].astype(np.float32)
        row = np.arange(index * CHUNK_ROWS, (index + 1) * CHUNK_ROWS)
        columns |= {"day": row * DAYS // self.rows, "slate": row // POSITIONS, "position": row % POSITIONS}
        return {column.name: _head(columns[column.name], self.rows - row[0]) for column in self.schema.columns}


class _Entities:
    """Users or items by falling popularity: Zipf of 1.05, its ranks shifted by 20."""

    def __init__(self, rng: np.random.Generator, salt: int, count: int, attributes: dict[str, tuple[int, float]]):
        # An odd factor permutes the residues of 2**59, so ids differ. They stand in runs of eight consecutive ones,
        # above 2**53, so that a reader which takes them through floats merges a run and is caught.
        run, place = np.divmod(np.arange(count) + (salt << 40), 8)
        self.ids = (run * 0x1E3779B97F4A7C15 % 2**59) * 8 + place + 2**53 + 1
        shares = (np.arange(count) + 21.0) ** -1.05
        self.cdf = np.cumsum(shares / shares.sum())
        self.codes = {name: rng.integers(values, size=count) for name, (values, _) in attributes.items()}
        traits = np.sqrt(1 - sum(share for _, share in attributes.values())) * rng.standard_normal((count, TRAITS))
        for name, (values, share) in attributes.items():
            traits += np.sqrt(share) * rng.standard_normal((values, TRAITS))[self.codes[name]]
        # Standardized as they are met, so that two genders or few users cannot change the scale of a utility.
        traits -= np.average(traits, axis=0, weights=shares)
        self.traits = (traits / np.sqrt(np.average(traits**2, axis=0, weights=shares))).astype(np.float32)

    def draw(self, uniforms: ndarray) -> ndarray:
        return np.searchsorted(self.cdf[:-1], uniforms, side="right")

    def texts(self, index: ndarray) -> dict[str, ndarray]:
        names = {
            name: [f"{name}_{code}".encode() for code in range(codes.max() + 1)] for name, codes in self.codes.items()
        }
        return {name: np.array(names[name])[codes[index]] for name, codes in self.codes.items()}


class _Population:
    """The users, the items, what each user liked before the log (so it tells no label), and the old model's errors."""

    def __init__(self, rng: np.random.Generator, users: int, items: int):
        self.users, self.items = _Entities(rng, 0, users, USER_ATTRIBUTES), _Entities(rng, 1, items, ITEM_ATTRIBUTES)
        self.log_price, self.old_error = rng.standard_normal((2, items))
        met = self.items.draw(rng.random((users, MET)))
        agreement = sum(self.users.traits[:, [k]] * self.items.traits[met, k] for k in range(UTILITIES, TRAITS))
        self.liked = self.items.ids[np.take_along_axis(met, np.argsort(-agreement, axis=1)[:, :LIKED], axis=1)]

    def _affinity(self, users: ndarray, items: ndarray) -> ndarray:
        """Returns four independent standardized tastes of users [slates] for items [slates, n], [slates, n, 4]."""
        user, item = self.users.traits[users][:, None], self.items.traits[items]
        main = ITEM_SHARE**0.5 * item[..., :UTILITIES] + USER_SHARE**0.5 * user[..., :UTILITIES]
        _, first, second = np.split(user * item, TRAITS // UTILITIES, axis=-1)
        return main + (PRODUCT_SHARE / 2) ** 0.5 * (first + second)

    def _slates(self, rng: np.random.Generator) -> tuple[ndarray, ndarray, ndarray]:
        """Returns users [slates], items shown [slates, positions] and their affinity [slates, positions, 4]."""
        users = self.users.draw(rng.random(CHUNK_SLATES))
        # One candidate from each sixteenth of the distribution: the shares stay Zipf's, and repeats are neighbors.
        candidates = self.items.draw((np.arange(CANDIDATES) + rng.random((CHUNK_SLATES, CANDIDATES))) / CANDIDATES)
        affinity = self._affinity(users, candidates)
        # Gumbel's trick: the best of score + noise are drawn from the softmax of the old model, without replacement.
        score = affinity[..., 0] + self.old_error[candidates] + rng.gumbel(size=candidates.shape)
        score[:, 1:][candidates[:, 1:] == candidates[:, :-1]] = -np.inf
        shown = np.argsort(-score, axis=1)[:, :POSITIONS]
        return users, np.take_along_axis(candidates, shown, 1), np.take_along_axis(affinity, shown[..., None], 1)

    def impressions(self, rng: np.random.Generator, world: World, sharing: int) -> "_Impressions":
        """Returns a chunk of impressions, drawn with `rng`, so many of which share an intent."""
        users, items, affinity = self._slates(rng)
        observed = affinity @ np.linalg.cholesky(np.array(world.correlations)).T
        noise = np.sqrt(1 - world.observed_r2) * rng.standard_normal(observed.shape)
        utilities = (np.sqrt(world.observed_r2) * observed + noise) * world.scales
        utilities[..., CLICK] -= world.position_effect * np.log1p(np.arange(POSITIONS))
        aversion = 1.5 - 0.25 * self.users.codes["power"][users]  # the five levels of power give 1.5 ... 0.5
        utilities[..., PURCHASE] -= world.price_sensitivity * aversion[:, None] * self.log_price[items]
        intent = np.zeros(1)
        if any(world.intent):
            intent = np.repeat(rng.standard_normal(CHUNK_ROWS // sharing), sharing)
        utilities = utilities.reshape(CHUNK_ROWS, UTILITIES).T + np.outer(world.intent, intent)
        return _Impressions(rng, np.repeat(users, POSITIONS), items.ravel(), utilities, intent)

    def features(self, shown: "_Impressions") -> dict:
        """Returns ids, attributes, price and history [rows]."""
        rng, users, items = shown.rng, shown.users, shown.items
        result = {"user_id": self.users.ids[users], "item_id": self.items.ids[items]}
        result |= self.users.texts(users) | self.items.texts(items)
        result["brand"][rng.random(CHUNK_ROWS) < MISSING_BRAND] = b""
        result["price"] = np.exp(3.5 + 0.8 * self.log_price[items]).astype(np.float32)
        starts = np.repeat(rng.integers(LIKED - HISTORY + 1, size=CHUNK_SLATES), POSITIONS)
        lengths = np.repeat(rng.integers(HISTORY + 1, size=CHUNK_SLATES), POSITIONS)
        liked = self.liked[users[:, None], starts[:, None] + np.arange(HISTORY)]
        return result | {"history": (liked[np.arange(HISTORY) < lengths[:, None]], lengths)}


@dataclasses.dataclass(frozen=True)
class _Impressions:
    """A chunk of impressions and what is drawn for them, [rows] each.

    Attributes:
      rng: The generator, for what is yet to be drawn.
      users, items: Their places in the population.
      utilities: float [4, rows], the intent included.
      intent: Of the session; [1] zero in a world without.
    """

    rng: np.random.Generator
    users: ndarray
    items: ndarray
    utilities: ndarray
    intent: ndarray


def _head(value: ndarray | tuple[ndarray, ndarray], rows: int) -> ndarray | tuple[ndarray, ndarray]:
    return (value[0][: value[1][:rows].sum()], value[1][:rows]) if isinstance(value, tuple) else value[:rows]


def true_probabilities(law: Law, utilities: ndarray, intent: ndarray) -> dict[str, ndarray]:
    """Returns the truth columns: probabilities given the features and the row's noise.

    What an unobserved intent adds is averaged over it: for `pcvr` as if every impression were clicked; for `pcvr_given_click`
    and the edges among the clicked ones, of whom more have a high intent.

    Args:
      law: The law of the world.
      utilities: float [4, rows], the intent included.
      intent: float [rows] (or [1], zero), which is taken off the utilities.

    Returns:
      {`truth_` and a name of `PROBABILITIES`: float32 [rows]}.
    """
    nodes, weights = law.world.intents
    loadings = np.array(law.world.intent)[:, np.newaxis]
    rows = utilities.shape[1]
    pctr, pcvr = np.zeros(rows), np.zeros(rows)
    reached, bought = np.zeros((2, 2, rows)), np.zeros((2, 2, rows))
    for node, weight in zip(nodes, weights):
        behavior = law.behavior(utilities + loadings * (node - intent))
        levels = behavior.levels * (weight * behavior.click)
        pctr += weight * behavior.click
        pcvr += weight * (behavior.levels * behavior.purchase).sum(axis=(0, 1))
        reached += levels  # P(click, d_mi, d_ma) [2, 2, rows]
        bought += levels * behavior.purchase  # P(click, d_mi, d_ma, purchase)
    pctcvr = bought.sum(axis=(0, 1))
    no_d_mi, d_mi = reached.sum(axis=1)
    no_d_ma, d_ma = reached.sum(axis=0)
    levels = (d_mi, d_ma, d_mi / pctr, reached[1, 1] / d_mi, reached[0, 1] / no_d_mi)
    purchases = bought.sum(axis=0) / (no_d_ma, d_ma)
    values = (pctr, pcvr, pctcvr / pctr, pctcvr, *levels, purchases[1], purchases[0])
    return {f"truth_{name}": value.astype(np.float32) for name, value in zip(PROBABILITIES, values, strict=True)}


def _labels(rng: np.random.Generator, law: Law, utilities: ndarray) -> dict[str, ndarray]:
    """Returns labels {name: int64 [rows]}, and what they had been of a clicked row, `truth_do_...`."""
    behavior = law.behavior(utilities)
    uniforms = rng.random((4, utilities.shape[1]))
    click = uniforms[0] < behavior.click
    no_d_mi, with_d_mi = behavior.levels.sum(axis=1)
    d_mi = uniforms[1] < with_d_mi
    d_ma = uniforms[2] < np.where(d_mi, behavior.levels[1, 1] / with_d_mi, behavior.levels[0, 1] / no_d_mi)
    purchases = np.broadcast_to(behavior.purchase, behavior.levels.shape)
    purchase = uniforms[3] < np.where(
        d_mi, np.where(d_ma, purchases[1, 1], purchases[1, 0]), np.where(d_ma, purchases[0, 1], purchases[0, 0])
    )
    outcomes = {"d_mi": d_mi, "d_ma": d_ma, "purchase": purchase}
    seen = {name: happened & click for name, happened in outcomes.items()}
    if any(law.world.stray):
        strays = rng.random((3, len(click))) < law.stray_rates[:, np.newaxis]
        seen = {name: outcomes[name] & (click | stray) for name, stray in zip(outcomes, strays)}
    result = {"click": click, "purchase": seen["purchase"]} | {f"truth_do_{k}": v for k, v in outcomes.items()}
    result = {name: happened.astype(np.int64) for name, happened in result.items()}
    return (
        result | _members(rng, seen["d_mi"], MICRO_MIX, MICRO_ANY) | _members(rng, seen["d_ma"], MACRO_MIX, MACRO_ANY)
    )


def _members(rng: np.random.Generator, happened: ndarray, mix: dict[str, float], any_of: float) -> dict[str, ndarray]:
    """Returns {behavior: int64 [rows]}, at least one 1 where the level `happened`, bool [rows], and none elsewhere.

    Any law of co-occurring behaviors and of a level that is any of them is a law of the level and one of the behaviors
    given the level. Drawn in this order the level's probability is known; it is the frailty that its behaviors share.
    """
    rates = any_of * np.array(list(mix.values()))
    sets = np.arange(1, 2 ** len(mix))[:, None] >> np.arange(len(mix)) & 1
    odds = np.prod(np.where(sets, rates, 1 - rates), axis=1)
    seen = np.zeros((len(mix), len(happened)), np.int64)
    seen[:, happened] = sets[rng.choice(len(sets), np.count_nonzero(happened), p=odds / odds.sum())].T
    return dict(zip(mix, seen))
