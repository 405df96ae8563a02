"""What an experiment is: runs on logs over seeds."""

import dataclasses
import runpy
import sys
from collections.abc import Mapping, Sequence

from data_pipeline.records import BLOCK_ROWS
from data_pipeline.simulate import POSITIONS, SimulatedLog
from hm3_tf.config import Config, TrainingConfig, checked
from hm3_tf.errors import ConfigError, UsageError, did_you_mean
from hm3_tf.experiment.plots import Lines
from hm3_tf.experiment.tables import Steps, Table


@dataclasses.dataclass(frozen=True)
class Log:
    """A log of a plan.

    Attributes:
      source: A simulated log, whose seed is replaced by each of the plan's and whose rows are those of training; or a data
        folder, of which a seed changes the training only.
      volumes: {name: rows of training, whole blocks of 1,024, after which a run is measured}, ascending to all of them; empty
        for all at once. Tables know the log of a volume as `<log> <volume>`.
      runs: Names of the runs on it; empty for all of the plan.

    Raises:
      ConfigError: A volume is wrong.
    """

    source: SimulatedLog | str
    volumes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    runs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        sizes = list(self.volumes.values())
        rows = self.source.rows if isinstance(self.source, SimulatedLog) else None
        if sizes and (sizes != sorted(set(sizes)) or sizes[-1] != rows or any(size % BLOCK_ROWS for size in sizes)):
            raise ConfigError(
                f"plan: expected volumes of multiples of {BLOCK_ROWS:,} rows that ascend to the {rows} rows of a simulated "
                f"log, got {dict(self.volumes)}"
            )
        if rows is not None and rows % POSITIONS:
            raise ConfigError(f"plan: expected rows of whole slates of {POSITIONS}, got {rows}")

    def as_far_as(self, volume: str) -> "Log":
        """Returns the log up to a volume; "" is all of it."""
        if not volume or not isinstance(self.source, SimulatedLog):
            return self
        names = list(self.volumes)
        volumes = {name: self.volumes[name] for name in names[: names.index(volume) + 1]}
        return dataclasses.replace(self, source=dataclasses.replace(self.source, rows=volumes[volume]), volumes=volumes)

    def check_config(self, config: Config) -> None:
        """Checks that a run with a config can be measured on the log.

        Raises:
          ConfigError: It cannot.
        """
        batch = config.training.global_batch_size
        if self.volumes and (config.training.epochs > 1 or any(size % batch for size in self.volumes.values())):
            raise ConfigError(
                "plan: expected configs of one epoch and of a batch that divides the volumes of a log, got "
                f"epochs={config.training.epochs} and global_batch_size={batch} for {dict(self.volumes)}"
            )
        if isinstance(self.source, SimulatedLog) and config.data.nesting == "drop":
            raise ConfigError(
                "plan: expected data.nesting of coerce on a simulated log, whose slates stay whole, got drop"
            )

    def names(self, log: str) -> list[str]:
        """Returns what tables call a log of this name: one name a volume."""
        return [f"{log} {volume}" for volume in self.volumes] or [log]


def whole(source: SimulatedLog | str) -> dict[str, int]:
    """Returns the one volume, without a name, of a log that is measured in the end only: {"": rows}."""
    return {"": source.rows if isinstance(source, SimulatedLog) else sys.maxsize}


@dataclasses.dataclass(frozen=True)
class Plan:
    """Every run of the plan, on every log, with every seed.

    Attributes:
      logs: {name: log}.
      runs: {name: configs it may have}; one of several is chosen on `tuning_log`, with the same budget for each run.
      seeds: Number of seeds: 0, 1, ... each draws the log (users, items and rows) and the weights anew.
      test_rows: Rows of the test split of a simulated log.
      tuning_log: Log that configs are chosen on, by AUC of CVR plus AUC of CTR (in expectation over labels where the truth is
        known): with other seeds than those that are reported, or on the validation split of a data folder.
      tuning_volume: Name of the volume of it up to which they are: by the mean over the volumes so far; "" for all.
      tuning_seeds: Number of seeds to choose by.
      tables: {name: table}.
      plots: {name: plot}, whose names are other ones.

    Raises:
      ConfigError: A name is unknown, a config is wrong or a number is too small.
    """

    logs: Mapping[str, Log]
    runs: Mapping[str, Sequence[Config]]
    seeds: int
    test_rows: int = 300_000
    tuning_log: str = ""
    tuning_volume: str = ""
    tuning_seeds: int = 2
    tables: Mapping[str, Table | Steps] = dataclasses.field(default_factory=dict)
    plots: Mapping[str, Lines] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, least in (("seeds", 1), ("test_rows", 1), ("tuning_seeds", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"plan: expected {name} of at least {least}, got {getattr(self, name)}")
        for name, configs in self.runs.items():
            if not configs:
                raise ConfigError(f"plan: expected a config for run {name!r}, got none")
            for config in configs:
                _check_config(config)
        for name, log in self.logs.items():
            self._require_known(log.runs, self.runs, "run")
            for run in self.runs_on(name):
                for config in self.runs[run]:
                    log.check_config(config)
        if self.test_rows % POSITIONS:
            raise ConfigError(f"plan: expected test_rows of whole slates of {POSITIONS}, got {self.test_rows}")
        if self.is_tuned:
            self._require_known([self.tuning_log], self.logs, "tuning_log")
            if self.tuning_volume:
                self._require_known([self.tuning_volume], self.logs[self.tuning_log].volumes, "tuning_volume")
        names = dict.fromkeys(name for log, settings in self.logs.items() for name in settings.names(log))
        for part in (*self.tables.values(), *self.plots.values()):
            self._require_known(part.runs, self.runs, "run of a table or plot")
            self._require_known(tuple(part.logs), names, "log of a table or plot")

    @staticmethod
    def _require_known(names: Sequence[str], known: Mapping[str, object], what: str) -> None:
        for name in names:
            if name not in known:
                raise ConfigError(f"plan: expected a known {what}, got {name!r}; {did_you_mean(name, known)}")

    @property
    def is_tuned(self) -> bool:
        """Whether a run has several configs."""
        return any(len(configs) > 1 for configs in self.runs.values())

    def for_parts(self, parts: Sequence[str]) -> "Plan":
        """Returns the plan with the logs that some of its tables and plots show, and the one that configs are chosen on."""
        shown = {log for part in parts for log in {**self.tables, **self.plots}[part].logs}
        kept = {name: log for name, log in self.logs.items() if shown & set(log.names(name)) or name == self.tuning_log}
        return dataclasses.replace(
            self,
            logs=kept,
            tables={name: self.tables[name] for name in parts if name in self.tables},
            plots={name: self.plots[name] for name in parts if name in self.plots},
        )

    def runs_on(self, log: str) -> tuple[str, ...]:
        """Returns the names of the runs on a log."""
        return self.logs[log].runs or tuple(self.runs)


def _check_config(config: Config) -> None:
    """Checks a config, and that it asks for nothing that an experiment does not do."""
    checked(config)
    plain = TrainingConfig()
    asked = {
        "data.negative_keep_rate": config.data.negative_keep_rate != 1,
        "data.on_error": config.data.on_error != "fail",
        **{
            f"training.{name}": getattr(config.training, name) != getattr(plain, name)
            for name in ("calibrate", "max_steps", "early_stopping_epochs")
        },
    }
    for name, differs in asked.items():
        if differs:
            raise ConfigError(
                f"plan: expected {name} as it is by default, since an experiment trains on all rows to the end"
            )


def load_plan(text: str) -> Plan:
    """Returns the plan of a file.

    Args:
      text: `file.py` or `file.py:argument`.

    Returns:
      What the file's `get_plan()` or `get_plan(argument)` returns.

    Raises:
      UsageError: There is no such file, or it does not return a plan.
    """
    path, *argument = text.split(":", 1)
    try:
        plan = runpy.run_path(path)["get_plan"](*argument)
    except (OSError, KeyError, TypeError, SyntaxError, NameError, ImportError) as error:
        raise UsageError(
            f"--plan={text}: expected a Python file whose get_plan({'argument' if argument else ''}) returns a "
            f"hm3_tf.experiment.plan.Plan, got {type(error).__name__}: {error}"
        ) from error
    if not isinstance(plan, Plan):
        raise UsageError(
            f"--plan={text}: expected get_plan to return a hm3_tf.experiment.plan.Plan, got {type(plan).__name__}"
        )
    return plan
