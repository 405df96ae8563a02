"""What a report says: the runs on one split, how they learned, and what they were asked."""

import dataclasses
import json
import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from data_pipeline import storage
from data_pipeline.index import SplitIndex
from hm3_tf import __version__
from hm3_tf.board import settings
from hm3_tf.errors import ConfigError
from hm3_tf.evaluate import Evaluation, evaluate_runs
from hm3_tf.metrics_log import read_metrics
from hm3_tf.tables import named_targets
from hm3_tf.workdir import RUN_FILE, Workdir


@dataclasses.dataclass(frozen=True)
class ReportedRun:
    """A run of a report.

    Attributes:
      name: What tells it from the others: the last part of its path, or all of it.
      path: Its workdir.
      evaluation: Its figures and histograms on the split.
      history: Lines of its `metrics.jsonl`, empty where there is none.
      settings: {field of the config: value}.
      versions: {package: version} that it was trained with.
    """

    name: str
    path: str
    evaluation: Evaluation
    history: list[dict[str, Any]]
    settings: dict[str, Any]
    versions: dict[str, str]

    @property
    def targets(self) -> dict[str, Mapping[str, Any]]:
        """Figures of pctr, pcvr, pctcvr and of the levels between."""
        return named_targets(self.evaluation.metrics)

    @property
    def differences(self) -> dict[str, Mapping[str, Any]]:
        """The first run's figures less this one's, of the same targets as far as both have them; none of the first run."""
        less = self.evaluation.first_less_this
        return named_targets(less) if less else {}

    @property
    def counts(self) -> dict[str, np.ndarray]:
        """Histograms under the same names: int [2, bins]."""
        click, *between, purchase, conversion = self.evaluation.counts
        names = list(self.evaluation.metrics["levels"])[1:-1]
        levels = {f"P({name})": counts for name, counts in zip(names, between)}
        return {"pctr": click, "pcvr": conversion, "pctcvr": purchase, **levels}


@dataclasses.dataclass(frozen=True)
class Report:
    """What a report says.

    Attributes:
      split: Name of the split.
      data_dir: The data folder.
      rows: Rows of the split.
      runs: The runs; the first is compared with the others.
      versions: {package: version} that the figures were computed with.
    """

    split: str
    data_dir: str
    rows: int
    runs: tuple[ReportedRun, ...]
    versions: dict[str, str]


def check_runs(runs: Sequence[Workdir], same_log: bool) -> None:
    """Checks that runs can share a report.

    Args:
      runs: The runs.
      same_log: Whether they must have been trained on one log, as none is named to evaluate them on.

    Raises:
      ConfigError: One is named twice, or they must be of one log and are not.
    """
    first, seen = runs[0], set()
    for run in runs:
        path = run.path if storage.is_remote(run.path) else os.path.realpath(run.path)
        if path in seen:
            raise ConfigError(f"--workdir: expected each run once, got {run.path} again; name others, or leave it out")
        seen.add(path)
        if same_log and _log_of(run) != _log_of(first):
            raise ConfigError(
                f"--workdir: expected runs trained on one log, but {run.path} was trained on {run.data_dir} and {first.path} "
                f"on {first.data_dir}; name the log to evaluate on with --data_dir"
            )


def _log_of(run: Workdir) -> tuple:
    """Returns what tells one log from another; statistics that came from an earlier run say nothing of this one's."""
    return run.schema, run.train, run.data_dir if run.warm_start else None


def gather(runs: Sequence[Workdir], index: SplitIndex, split: str, slices: Sequence[str]) -> Report:
    """Evaluates runs on a split, in one pass over it each, and reads how they learned.

    Args:
      runs: The runs, of those that `check_runs` lets through.
      index: The split.
      split: Its name.
      slices: Columns of the log, each value of which gets the figures of its rows.

    Raises:
      Hm3Error: A run has no checkpoint, or a column has too many values.
      ConfigError: A column cannot be sliced by, or the runs have other labels, groups, clicks or conversions.
      DataError: The split or a file of a run cannot be read.
    """
    evaluations = evaluate_runs(runs, index, split, [slices] * len(runs))
    names = _short_names([run.path for run in runs])
    reported = tuple(_reported(*parts) for parts in zip(names, runs, evaluations))
    metrics = evaluations[0].metrics
    versions = {
        "hm3_tf": __version__,
        "tensorflow": tf.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
    return Report(split, metrics["data_dir"], metrics["rows"], reported, versions)


def _reported(name: str, run: Workdir, evaluation: Evaluation) -> ReportedRun:
    written = json.loads(storage.read_text(run.file(RUN_FILE), "name the --workdir of an hm3 train run"))
    return ReportedRun(name, run.path, evaluation, read_metrics(run), settings(run.config), written.get("versions", {}))


def _short_names(paths: Sequence[str]) -> list[str]:
    names = [os.path.basename(path.rstrip("/")) or path for path in paths]
    return names if len(set(names)) == len(names) else list(paths)
