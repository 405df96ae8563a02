"""What a run is: typed sections that `--config.section.field=value` sets, then checked and frozen."""

import copy
import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from data_pipeline.bad_records import MAX_BAD_RECORDS, ON_ERROR
from data_pipeline.labels import NESTING_POLICIES
from hm3_tf.behavior_graph import Behavior, BehaviorGraph
from hm3_tf.checks import check_type
from hm3_tf.errors import ConfigError, did_you_mean
from hm3_tf.methods import Method, get_method

OPTIMIZERS = ("lazy_adam", "adam")
PRECISIONS = ("float32", "bfloat16")
SCHEDULES = ("epochs", "by_day")
STRATEGIES = ("one_device", "mirrored", "multi_worker", "parameter_server")
TARGETS = ("pctr", "pcvr", "pctcvr")
BEST_FIGURES = {"auc": 1, "log_loss": -1}  # that can choose the best checkpoint; whether more of it is better


class LossWeights(dict[str, float]):
    """Weights of the losses; one that is not named has the method's weight, which is 1 for most.

    Says that it has every loss, so that a flag can set any: `--config.training.loss_weights.purchase=3`. Iterating gives those
    that were set.
    """

    def __missing__(self, level: str) -> float:
        """Returns 1.0, the weight of a level that was not set."""
        return 1.0

    def __contains__(self, level: object) -> bool:
        """Returns True."""
        return True


class TableSizes(dict[str, int]):
    """A number a table.

    Says that it has every table, so that a flag can set any: `--config.model.hash_buckets.user_id=1000`.
    """

    def __missing__(self, table: str) -> int:
        """Returns 0, for a table that was not set."""
        return 0

    def __contains__(self, table: object) -> bool:
        """Returns True."""
        return True


class _Section:
    """Makes a dataclass immutable once it is checked: flags set fields in place, nothing after them may."""

    _frozen = False

    def __setattr__(self, name: str, value: Any) -> None:
        if self._frozen:
            raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r} of a checked config")
        object.__setattr__(self, name, value)


@dataclasses.dataclass
class ModelConfig(_Section):
    """The network.

    Attributes:
      method: base, esmm, esm2, esm2_mi, hm3, hm3_r, gmcm, escm2_ipw, escm2_dr, dcmt, aitm, hm3_ipw, aux; with `graph` any name.
      graph: A behavior graph of one's own instead of the method's.
      tower_units: Widths of a tower's ReLU layers (ESM2: 512-256-128-32).
      dropout: Share of units dropped in training (ESM2: 0.5).
      embedding_dim: Width of embeddings.
      embedding_dims: {table: width} where it differs.
      hash_buckets: {table: rows} where they differ from the schema's.
      features: Columns to use; empty for all inputs of the schema.
      cross_layers: Number of cross layers (DCN-v2, Wang et al., WWW 2021) between the inputs and the towers.
    """

    method: str = "hm3"
    graph: BehaviorGraph | None = None
    tower_units: tuple[int, ...] = (512, 256, 128, 32)
    dropout: float = 0.5
    embedding_dim: int = 16
    embedding_dims: dict[str, int] = dataclasses.field(default_factory=TableSizes)
    hash_buckets: dict[str, int] = dataclasses.field(default_factory=TableSizes)
    features: tuple[str, ...] = ()
    cross_layers: int = 0


@dataclasses.dataclass
class DataConfig(_Section):
    """The reading of the log.

    Attributes:
      nesting: Policy for labels that break the hierarchy: coerce, drop or error.
      shuffle_rows: Rows over all workers that are shuffled together; blocks are shuffled over the whole split.
      negative_keep_rate: Share of the unclicked impressions that an epoch of training reads, other ones each epoch.
        Predictions and figures are those of the whole log.
      on_error: What a corrupt record does: fail, or skip: each is checked before the first step, and bad ones are left out.
      max_bad_records: With skip: bad records of a split after which it is an error all the same.
    """

    nesting: str = "coerce"
    shuffle_rows: int = 65_536
    negative_keep_rate: float = 1.0
    on_error: str = "fail"
    max_bad_records: int = MAX_BAD_RECORDS

    @property
    def most_bad_records(self) -> int | None:
        """Bad records of a split that are skipped; None where the first one is an error."""
        return self.max_bad_records if self.on_error == "skip" else None


@dataclasses.dataclass
class TrainingConfig(_Section):
    """The optimization.

    Attributes:
      global_batch_size: Rows of a step over all replicas; under parameter_server a step is one worker's.
      schedule: epochs (passes over the whole training split), or by_day: one pass, day after day by the dates in the names of
        the shards, each day evaluated before it is trained on.
      epochs: Passes over the training split; by_day takes 1.
      max_steps: Steps after which training ends, or 0 for all of the epochs.
      learning_rate: Step size of Adam (HM3: 0.0005).
      optimizer: lazy_adam (touches only the batch's rows of a table) or adam (Keras').
      precision: float32, or bfloat16 for the towers' matrix products.
      reset_embeddings: Whether each epoch starts with new embeddings, so that ids do not overfit in the second (MEDA, Liu
        et al., arXiv 2305.19531). The rest of the network goes on learning.
      seed: Seeds the weights, the shuffle and the dropout.
      loss_weights: {level, or loss that the method adds: weight}; the method's own where not set.
      propensity_clip: Largest inverse propensity in the methods that weigh clicked rows by it (ESCM2: 15).
      edge_loss_weight: Weight of the full-path likelihood; 0 is the paper.
      log_every_steps: Steps between lines of metrics.jsonl.
      checkpoint_every_steps: Steps between checkpoints, besides one at each epoch's end.
      checkpoint_every_minutes: Minutes between them, or 0 for steps alone.
      keep_checkpoints: Latest checkpoints that are kept.
      best_metric: Figure of the validation split that chooses the best checkpoint: `pctcvr.auc`, `pcvr.log_loss`, ...
      early_stopping_epochs: Epochs without a better one after which training ends, or 0 for never.
      calibrate: Whether the best weights come with a map of each target's odds that is fitted on the validation split;
        figures of validation are those before it.
    """

    global_batch_size: int = 4096
    schedule: str = "epochs"
    epochs: int = 2
    max_steps: int = 0
    learning_rate: float = 5e-4
    optimizer: str = "lazy_adam"
    precision: str = "float32"
    reset_embeddings: bool = False
    seed: int = 0
    loss_weights: dict[str, float] = dataclasses.field(default_factory=LossWeights)
    propensity_clip: float = 15.0
    edge_loss_weight: float = 0.0
    log_every_steps: int = 100
    checkpoint_every_steps: int = 1000
    checkpoint_every_minutes: float = 0.0
    keep_checkpoints: int = 3
    best_metric: str = "pctcvr.auc"
    early_stopping_epochs: int = 0
    calibrate: bool = False


@dataclasses.dataclass
class DistributionConfig(_Section):
    """Where the replicas are.

    Attributes:
      strategy: one_device, mirrored (all GPUs of this machine), multi_worker (of the cluster in TF_CONFIG, or of the Slurm
        step) or parameter_server (of the cluster in TF_CONFIG; tables are split over its servers, and workers do not wait
        for each other).
      start_seconds: Time that a worker waits for the others to start.
    """

    strategy: str = "one_device"
    start_seconds: float = 600.0


@dataclasses.dataclass
class Config(_Section):
    """All of a run's settings."""

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)
    distribution: DistributionConfig = dataclasses.field(default_factory=DistributionConfig)

    @property
    def method(self) -> Method:
        """The method: the paper's, or one of the config's own graph.

        Raises:
          ConfigError: There is no such method, or the graph does not make one.
        """
        if self.model.graph is None:
            return get_method(self.model.method)
        return Method(self.model.method, "own graph", (self.model.graph,))


def checked(config: Config) -> Config:
    """Returns a frozen copy of a config.

    Args:
      config: The config as flags left it.

    Returns:
      The copy; assigning to a field of it raises.

    Raises:
      ConfigError: A value is out of range or of another type; the field is named.
    """
    config = copy.deepcopy(config)
    for name, section in _sections(config):
        for field in dataclasses.fields(section):
            check_type(f"{name}.{field.name}", getattr(section, field.name), field.type)
    levels = config.method.levels
    model, training = config.model, config.training
    positive = (
        *(("model.tower_units", width) for width in model.tower_units),
        ("model.embedding_dim", model.embedding_dim),
        ("data.shuffle_rows", config.data.shuffle_rows),
        *((f"training.{name}", getattr(training, name)) for name in _POSITIVE),
    )
    for name, value in positive:
        _require(value > 0, name, "a number above 0", value)
    for name in ("max_steps", "edge_loss_weight", "early_stopping_epochs", "seed", "checkpoint_every_minutes"):
        _require(getattr(training, name) >= 0, f"training.{name}", "a number of at least 0", getattr(training, name))
    _require(
        config.distribution.start_seconds > 0,
        "distribution.start_seconds",
        "a number above 0",
        config.distribution.start_seconds,
    )
    clip = training.propensity_clip
    _require(1 <= clip < math.inf, "training.propensity_clip", "a finite number of at least 1", clip)
    _require(training.seed < 2**32, "training.seed", "a number below 2**32", training.seed)
    _require(0 <= model.dropout < 1, "model.dropout", "a share in [0, 1)", model.dropout)
    _require(model.cross_layers >= 0, "model.cross_layers", "a number of at least 0", model.cross_layers)
    keep_rate = config.data.negative_keep_rate
    _require(0 < keep_rate <= 1, "data.negative_keep_rate", "a share in (0, 1]", keep_rate)
    click = config.method.graphs[0].behaviors[0]
    if keep_rate < 1 and not click.gate:
        raise ConfigError(
            f"data.negative_keep_rate: expected 1 where the first level {click.name!r} is no gate, got {keep_rate}: what "
            "happens without it would be read too seldom; give the behavior gate=True, or keep all rows"
        )
    _require_one_of(config.data.nesting, NESTING_POLICIES, "data.nesting")
    _require_one_of(config.data.on_error, ON_ERROR, "data.on_error")
    most = config.data.max_bad_records
    _require(most >= 0, "data.max_bad_records", "a number of at least 0", most)
    _require_one_of(training.optimizer, OPTIMIZERS, "training.optimizer")
    _require_one_of(training.schedule, SCHEDULES, "training.schedule")
    for name, value in _ONE_PASS.items() if training.schedule == "by_day" else ():
        expected = f"{value} with training.schedule=by_day, which reads each day once"
        _require(getattr(training, name) == value, f"training.{name}", expected, getattr(training, name))
    _require_one_of(training.precision, PRECISIONS, "training.precision")
    _require_one_of(config.distribution.strategy, STRATEGIES, "distribution.strategy")
    for level, weight in training.loss_weights.items():
        _require_one_of(level, config.method.losses, "training.loss_weights")
        _require(0 <= weight < math.inf, "training.loss_weights", f"a weight of at least 0 for {level!r}", weight)
    figures = tuple(f"{target}.{figure}" for target in (*TARGETS, *levels) for figure in BEST_FIGURES)
    _require_one_of(training.best_metric, figures, "training.best_metric")
    for part in (config, *(section for _, section in _sections(config))):
        object.__setattr__(part, "_frozen", True)
    return config


_POSITIVE = (
    *("global_batch_size", "epochs", "learning_rate", "log_every_steps", "checkpoint_every_steps", "keep_checkpoints"),
)
_ONE_PASS = {"epochs": 1, "early_stopping_epochs": 0, "reset_embeddings": False}


def _sections(config: Config) -> list[tuple[str, Any]]:
    return [(field.name, getattr(config, field.name)) for field in dataclasses.fields(config)]


def _require(condition: bool, name: str, expected: str, value: Any) -> None:
    if not condition:
        raise ConfigError(f"{name}: expected {expected}, got {value!r}")


def _require_one_of(value: str, known: tuple[str, ...], name: str) -> None:
    _require(value in known, name, f"one of {known} ({did_you_mean(value, known)})", value)


def to_json(config: Config) -> str:
    """Returns `config.json` of a config."""
    return json.dumps(dataclasses.asdict(config), indent=1)


def from_json(text: str, path: str = "config.json") -> Config:
    """Returns the checked config of a `config.json`.

    Args:
      text: The file's text.
      path: Its path, for errors.

    Returns:
      The frozen config.

    Raises:
      ConfigError: The text is not JSON, or holds a field or value that no config has.
    """
    try:
        data = json.loads(text)
        config = Config()
        for name, values in data.items():
            section = getattr(config, _known(name, dict(_sections(config)), path))
            for field, value in values.items():
                setattr(section, _known(field, vars(section), f"{path}: {name}"), _from_plain(field, value))
    except (json.JSONDecodeError, AttributeError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: expected the JSON of a config, got {error!r}") from error
    return checked(config)


def _known(name: str, known: Mapping[str, Any], where: str) -> str:
    if name not in known:
        raise ConfigError(f"{where}: unknown field {name!r}; {did_you_mean(name, known)}")
    return name


def _from_plain(field: str, value: Any) -> Any:
    if field == "graph" and value is not None:
        return BehaviorGraph(tuple(Behavior(**behavior) for behavior in value["behaviors"]), value["root"])
    if field == "loss_weights":
        return LossWeights(value)
    if field in ("embedding_dims", "hash_buckets"):
        return TableSizes(value)
    return tuple(value) if isinstance(value, list) else value
