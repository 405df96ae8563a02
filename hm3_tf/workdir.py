"""A run's directory: what it was asked, what it read, and its checkpoints."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator

import tensorflow as tf

from data_pipeline import schema as schemas
from data_pipeline import statistics as stats
from data_pipeline import storage
from data_pipeline.folder import SCHEMA_FILE, STATISTICS_FILE, DataFolder
from hm3_tf import __version__
from hm3_tf import config as configs
from hm3_tf.config import Config
from hm3_tf.errors import ConfigError, DataError, Hm3Error
from hm3_tf.model import ConversionModel, build_model
from hm3_tf.warm_start import WarmStart, check_same_network

CONFIG_FILE = "config.json"
RUN_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"
END_FILE = "ended.json"  # the step after which training last ended well
_MAY_CHANGE = {  # fields that say how long and how closely watched a run is, not what it computes
    "training": (
        *("epochs", "max_steps", "early_stopping_epochs"),
        *("log_every_steps", "checkpoint_every_steps", "checkpoint_every_minutes", "keep_checkpoints"),
    ),
    "data": ("on_error", "max_bad_records"),  # a log of which something is skipped is another log
    "distribution": ("strategy", "start_seconds"),
}


@dataclasses.dataclass(frozen=True)
class Workdir:
    """A run's directory.

    Attributes:
      path: The directory.
      config: The run's config.
      schema: Schema of the log it trains on.
      train: Statistics that its network is built from: those of the earlier run if there is one; else of the training split,
        or of the first day alone where each day is evaluated before it is trained on.
      data_dir: The data folder it trains on, as an absolute path.
      warm_start: The earlier run whose model it started from, or None.
    """

    path: str
    config: Config
    schema: schemas.Schema
    train: stats.SplitStatistics
    data_dir: str
    warm_start: WarmStart | None = None

    def file(self, *names: str) -> str:
        """Returns the path of something in the directory."""
        return storage.join(self.path, *names)

    def open_data(self) -> DataFolder:
        """Returns the log it trains on; bad records are treated as its config says."""
        return DataFolder.open(self.data_dir, self.config.data.most_bad_records)

    def write(self) -> None:
        """Writes what makes the directory that of this run; the config last, as it claims the directory.

        Raises:
          Hm3Error: The directory cannot be written.
        """
        versions = {"hm3_tf": __version__, "tensorflow": tf.__version__}
        storage.write_text(self.file(SCHEMA_FILE), schemas.to_json(self.schema))
        storage.write_text(self.file(STATISTICS_FILE), stats.to_json({"train": self.train}))
        origin = {"warm_start": dataclasses.asdict(self.warm_start)} if self.warm_start else {}
        about = {"data_dir": self.data_dir, **origin, "versions": versions}
        storage.write_text(self.file(RUN_FILE), json.dumps(about, indent=1))
        storage.write_text(self.file(CONFIG_FILE), configs.to_json(self.config))

    def build_model(self) -> ConversionModel:
        """Returns the run's model, with new weights."""
        return build_model(self.config, self.schema, self.train)

    def latest_step(self) -> int:
        """Returns the steps after which the run's latest checkpoint was written.

        Raises:
          Hm3Error: The run has no checkpoint.
        """
        return checkpoint_step(self._checkpoint(self.file("checkpoints")))

    def checkpoint(self, weights: str = "best") -> str:
        """Returns the path of a checkpoint.

        Args:
          weights: `best`: best on validation, the latest as long as there was none; `latest`; or `final`: the latest of a
            run whose training has ended.

        Raises:
          Hm3Error: The run has no checkpoint, or `final` is asked for and its training has not ended.
          ConfigError: Others than the best are asked for where these alone are calibrated.
        """
        best = self.file("checkpoints", "best")
        if weights == "best":
            latest = () if self.config.training.calibrate else (self.file("checkpoints"),)
            return self._checkpoint(best, *latest)
        if self.config.training.calibrate:
            raise ConfigError(
                f"{self.path}: expected the best weights, as training.calibrate fits the calibration of these alone, got "
                f"{weights!r}"
            )
        found = self._checkpoint(self.file("checkpoints"))
        if weights == "final" and checkpoint_step(found) != self._end_step():
            raise Hm3Error(
                f"{self.path}: expected a run whose training has ended, found one that is at step {checkpoint_step(found)} of "
                "it; run hm3 train on this workdir until it ends, or take the best or the latest weights"
            )
        return found

    def _end_step(self) -> int | None:
        """Returns the steps after which training last ended well, None where it never did."""
        path = self.file(END_FILE)
        return json.loads(storage.read_text(path, ""))["step"] if tf.io.gfile.exists(path) else None

    def write_end(self, step: int) -> None:
        """Writes that training ended well after `step` steps.

        Raises:
          Hm3Error: The directory cannot be written.
        """
        storage.write_text(self.file(END_FILE), json.dumps({"step": step}))

    def _checkpoint(self, *folders: str) -> str:
        """Returns the path of the latest checkpoint in the first of the folders that has one."""
        found = [latest for latest in map(tf.train.latest_checkpoint, folders) if latest]
        if not found:
            raise Hm3Error(f"{self.path}: expected a checkpoint, found none; run hm3 train on this workdir first")
        return found[0]

    def trained_model(self, checkpoint: str | None = None) -> ConversionModel:
        """Returns the run's model with trained weights.

        Args:
          checkpoint: One of `checkpoint`; default that of the best weights.

        Raises:
          Hm3Error: The run has no checkpoint, or that one is gone.
        """
        checkpoint, model = checkpoint or self.checkpoint(), self.build_model()
        with reading_checkpoint(checkpoint):
            restored = tf.train.Checkpoint(network=model.network).restore(checkpoint)
        restored.assert_existing_objects_matched().expect_partial()
        return model


def checkpoint_step(checkpoint: str) -> int:
    """Returns the steps after which a checkpoint was written, which end its name."""
    return int(checkpoint.rsplit("-", 1)[-1])


@contextlib.contextmanager
def reading_checkpoint(checkpoint: str) -> Iterator[None]:
    """Explains within the block that a checkpoint is gone.

    Raises:
      Hm3Error: It is.
    """
    try:
        yield
    except tf.errors.NotFoundError as error:
        raise Hm3Error(
            f"{checkpoint}: expected the checkpoint that was there at the start, found none: the run is being trained; "
            "wait for its end"
        ) from error


def open_workdir(path: str) -> Workdir:
    """Returns the directory of a run.

    Args:
      path: Its path.

    Returns:
      The directory.

    Raises:
      DataError: It is not the directory of a run.
    """
    storage.open_file_system(path)
    remedy = "name the --workdir of an hm3 train run"
    texts = {
        name: storage.read_text(storage.join(path, name), remedy)
        for name in (CONFIG_FILE, SCHEMA_FILE, STATISTICS_FILE, RUN_FILE)
    }
    schema = schemas.from_json(texts[SCHEMA_FILE], storage.join(path, SCHEMA_FILE))
    levels = [level.name for level in schema.levels]
    splits = stats.from_json(texts[STATISTICS_FILE], levels, storage.join(path, STATISTICS_FILE))
    config = configs.from_json(texts[CONFIG_FILE], storage.join(path, CONFIG_FILE))
    try:
        about = json.loads(texts[RUN_FILE])
        warm_start = WarmStart(**about["warm_start"]) if "warm_start" in about else None
        return Workdir(path, config, schema, splits["train"], about["data_dir"], warm_start)
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: expected the files of a run, got {error!r} in {RUN_FILE}; {remedy}") from error


def claim_workdir(path: str, config: Config, data: DataFolder, warm_start: WarmStart | None = None) -> Workdir:
    """Returns the directory of a run that starts or resumes; nothing is written before `Workdir.write`.

    Args:
      path: Its path; made if need be.
      config: The run's config.
      data: The log it trains on.
      warm_start: The earlier run from whose latest model it starts, or None.

    Returns:
      The directory.

    Raises:
      Hm3Error: The directory holds a run of another config, another log or another start, or the earlier run has no
        checkpoint.
      ConfigError: The model is not that of the earlier run.
    """
    storage.open_file_system(path)
    data_dir = storage.absolute(data.path)
    if warm_start:
        warm_start = dataclasses.replace(warm_start, workdir=storage.absolute(warm_start.workdir))
    if tf.io.gfile.exists(storage.join(path, CONFIG_FILE)):
        before = open_workdir(path)
        _refuse_other_run(before, config, data)
        _refuse_other_start(before, warm_start)
        return dataclasses.replace(before, config=config, schema=data.schema, data_dir=data_dir)
    if not warm_start:
        return Workdir(path, config, data.schema, _first_statistics(config, data), data_dir)
    earlier = open_workdir(warm_start.workdir)
    check_same_network(config, data.schema, earlier.config, earlier.schema, earlier.path)
    warm_start = dataclasses.replace(warm_start, step=earlier.latest_step())
    return Workdir(path, config, data.schema, earlier.train, data_dir, warm_start)


def _first_statistics(config: Config, data: DataFolder) -> stats.SplitStatistics:
    if config.training.schedule == "by_day":
        return data.count(next(iter(data.split("train").by_day().values())))
    return data.statistics()["train"]


def _refuse_other_start(before: Workdir, warm_start: WarmStart | None) -> None:
    old, new = (start and (start.workdir, start.optimizer) for start in (before.warm_start, warm_start))
    if new != old:
        raise Hm3Error(
            f"{before.path}: expected the --warm_start_from and --warm_start_optimizer of the run it holds ({old}), got {new}; "
            "use another --workdir, or remove this one to start anew"
        )


def _refuse_other_run(before: Workdir, config: Config, data: DataFolder) -> None:
    remedy = "use another --workdir, or remove this one to start anew"
    old, new = (json.loads(configs.to_json(c)) for c in (before.config, config))
    for section, fields in new.items():
        for name, value in fields.items():
            if value != old[section][name] and name not in _MAY_CHANGE.get(section, ()):
                raise Hm3Error(
                    f"{before.path}: expected the config of the run it holds ({section}.{name}={old[section][name]!r}), got "
                    f"{value!r}; {remedy}"
                )
    if data.schema.without_entities() != before.schema.without_entities():
        raise Hm3Error(
            f"{before.path}: expected the schema of the run it holds (trained on {before.data_dir}), but that of "
            f"{data.path} differs; {remedy}"
        )
