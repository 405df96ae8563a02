"""A model over a split, and its figures."""

import copy
import dataclasses
import functools
import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from data_pipeline.folder import check_records, explained_read_errors, found_columns
from data_pipeline.hashing import fingerprint
from data_pipeline.index import SplitIndex
from data_pipeline.read import Reader
from data_pipeline.schema import Schema
from hm3_tf.behavior_graph import IMPRESSION
from hm3_tf.compare import Comparison
from hm3_tf.config import Config
from hm3_tf.distribute import add_up, gather, input_context
from hm3_tf.errors import ConfigError
from hm3_tf.metrics import TargetCounts
from hm3_tf.model import ConversionModel, model_features
from hm3_tf.prefetch import prefetch
from hm3_tf.progress import Progress
from hm3_tf.slices import Slices, check_columns
from hm3_tf.tally import SLICE_RESOLUTION, SLICE_ROWS_KEPT, Rows, Tally
from hm3_tf.workdir import Workdir

BATCH_ROWS = 2048  # the activations of all towers stay in a processor's cache
_CHUNK_BATCHES = 32  # that are counted together
_TRUTH = {"pctr": "truth_pctr", "pcvr": "truth_pcvr_given_click", "pctcvr": "truth_pctcvr"}


def split_reader(run: Workdir, index: SplitIndex, *, labels: bool = True, **options: Any) -> Reader:
    """Returns the reader of a split for a run's model.

    Args:
      run: The run.
      index: The split.
      labels: Whether labels are read.
      **options: Others of `Reader`.

    Raises:
      ConfigError: An option is wrong.
      DataError: The split's records do not hold what the schema says of the columns to read.
    """
    features = model_features(run.config, run.schema, run.train)
    method = run.config.method
    merged, split = (method.merged_levels, method.split_levels) if labels else ({}, ())
    reader = Reader(index, run.schema, features, merged, labels=labels, split_levels=split, **options)
    check_records(reader)
    return reader


def group_column(schema: Schema) -> str | None:
    """Returns the column that GAUC and intervals group rows by: the first of role `group`."""
    return next((column.name for column in schema.with_role("group")), None)


def evaluation_reader(run: Workdir, index: SplitIndex, carry: Sequence[str] = (), nesting: str | None = None) -> Reader:
    """Returns the reader that an `Evaluator` takes.

    Without sample weights, as figures are per row; with the truth if the split has it, as that of a simulated log.

    Args:
      run: The run.
      index: The split.
      carry: Columns to carry beside those that evaluation needs.
      nesting: Policy for labels that break the hierarchy; default the run's.
    """
    known = {column.name for column in run.schema.with_role("truth")}.intersection(found_columns(index))
    truth = tuple(_TRUTH.values()) if known.issuperset(_TRUTH.values()) else ()
    group = group_column(run.schema)
    columns = dict.fromkeys([*([group] if group else []), *truth, *carry])
    nesting = nesting or run.config.data.nesting
    return split_reader(run, index, nesting=nesting, sample_weights=False, carry=tuple(columns))


def _target_pairs(predictions: dict[str, Any], levels: Sequence[str]) -> tf.Tensor:
    """Returns the log pairs of all levels over impressions, then of the conversion given a click: [batch, levels + 1, 2]."""
    log_probs = predictions["log_probs"]
    pairs = [log_probs[IMPRESSION][level] for level in levels]
    return tf.stack([*pairs, log_probs[levels[0]][levels[-1]]], axis=1)


class Evaluator:
    """Evaluates a model on a split, again and again; workers share the rows and each has the figures of all.

    Args:
      model: The model.
      config: Its config.
      reader: Reader of the split from `evaluation_reader`.
      strategy: The run's strategy.

    Attributes:
      levels: Levels of the model's method.
      counts: Histograms of the last evaluation, of the levels and then of the conversion given a click: int64 [2, bins].
    """

    def __init__(
        self,
        model: ConversionModel,
        config: Config,
        reader: Reader,
        strategy: tf.distribute.Strategy | None = None,
    ) -> None:
        self.levels = levels = config.method.levels
        self.counts: list[np.ndarray] = []
        self._reader = reader
        self._strategy = strategy or tf.distribute.get_strategy()
        group = group_column(reader.schema)
        self._group = group if group in reader.carry else None

        @tf.function(reduce_retracing=True)
        @tf.autograph.experimental.do_not_convert
        def predict(features: dict[str, tf.Tensor], groups: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            pairs = _target_pairs(model.network(features, training=False), levels)
            return pairs, fingerprint(groups, salt="groups")

        self._predict = predict

    def on(self, index: SplitIndex) -> "Evaluator":
        """Returns an evaluator of other rows of the same log; it shares the compiled model."""
        other = copy.copy(self)
        other._reader = dataclasses.replace(self._reader, index=index)
        other.__dict__.pop("_dataset", None)
        return other

    def __call__(self) -> dict[str, Any]:
        """Returns the figures of `metrics.json` less its split: `rows`, `pctr`, `pcvr`, `pctcvr`, `levels`.

        On a simulated log each of the three targets has `bayes_auc` too, the AUC of the true probabilities.

        Raises:
          DataError: A shard is corrupt, or its records do not hold what the schema says.
        """
        tally, truth = self.new_tally(), self.new_truth()
        first, end = self._own_rows
        with Progress("validate", end - first) as progress:
            for rows in self.rows():
                tally.update(rows)
                truth.update(rows)
                progress.advance(len(rows))
        self._share(tally, truth)
        self.counts = [target.counts for target in tally.counts]
        return truth.added_to(tally.result())

    def new_tally(self, **options: Any) -> Tally:
        """Returns an empty tally of the model's targets; `options` are those of `Tally`."""
        return Tally(self.levels, self._group is not None, **options)

    def new_truth(self) -> "TruthCounts":
        """Returns empty counts of the true probabilities, where the log has them."""
        return TruthCounts(name for name, column in _TRUTH.items() if column in self._reader.carry)

    def rows(self) -> Iterator[Rows]:
        """Yields this worker's rows in the order of the log, many at a time.

        Raises:
          DataError: A shard is corrupt, or its records do not hold what the schema says.
        """
        with explained_read_errors(self._reader.index):
            batches = (self._predicted(i, *batch) for i, batch in enumerate(self._dataset))
            yield from prefetch(
                _joined(parts) for parts in iter(lambda: [*itertools.islice(batches, _CHUNK_BATCHES)], [])
            )

    def _predicted(self, i: int, features: dict, levels: dict, weights: tf.Tensor, carried: dict | None = None) -> Rows:
        carried = carried or {}
        labels = np.stack([levels[level].numpy() > 0 for level in self.levels], axis=1)
        positions = self._own_rows[0] + i * len(labels) + tf.range(len(labels), dtype=tf.int64)
        pairs, groups = self._predict(features, carried[self._group] if self._group else positions)
        columns = {name: values.numpy() for name, values in carried.items()}
        return Rows(labels, pairs.numpy(), groups.numpy(), columns)[weights.numpy() > 0]

    def _share(self, tally: Tally, truth: "TruthCounts") -> None:
        """Adds up the counts of all workers, on each of them."""
        for array in (*tally.arrays, *truth.arrays):
            array[...] = add_up(self._strategy, array)
        if tally.grouped:
            tally.grouped.gather(functools.partial(gather, self._strategy))

    @property
    def _own_rows(self) -> tuple[int, int]:
        """The first of this worker's rows, and the one after the last."""
        context, total = input_context(self._strategy), self._reader.index.rows
        first, end = ((context.input_pipeline_id + i) * total // context.num_input_pipelines for i in range(2))
        return first, end

    @functools.cached_property
    def _dataset(self) -> tf.data.Dataset:
        context = input_context(self._strategy)
        return self._reader.ordered_dataset(BATCH_ROWS * context.num_input_pipelines, input_context=context)


def _joined(parts: Sequence[Rows]) -> Rows:
    carried = {name: np.concatenate([part.carried[name] for part in parts]) for name in parts[0].carried}
    labels, pairs, groups = (np.concatenate(arrays) for arrays in zip(*((p.labels, p.pairs, p.groups) for p in parts)))
    return Rows(labels, pairs, groups, carried)


class TruthCounts:
    """Counts of the true probabilities of a simulated log: the best AUCs that a model can have on it.

    Args:
      targets: Those of pctr, pcvr, pctcvr whose truth the log has.
    """

    def __init__(self, targets: Iterator[str]) -> None:
        self._targets = {name: TargetCounts() for name in targets}

    @property
    def arrays(self) -> list[np.ndarray]:
        """The counts that add up, to be changed in place."""
        return [target.counts for target in self._targets.values()]

    def update(self, rows: Rows) -> None:
        """Adds rows."""
        for name, target in self._targets.items():
            _, labels, _ = rows.target({"pctr": 0, "pcvr": rows.labels.shape[1]}.get(name, rows.labels.shape[1] - 1))
            p = rows.carried[_TRUTH[name]].astype(np.float64)
            p = p[rows.labels[:, 0]] if name == "pcvr" else p
            target.update(labels, np.log(np.stack([p, 1 - p], axis=1)))

    def added_to(self, metrics: dict[str, Any]) -> dict[str, Any]:
        """Returns the figures with `bayes_auc` beside those of the targets."""
        best = {name: {"bayes_auc": target.result()["auc"]} for name, target in self._targets.items()}
        return {name: {**figures, **best[name]} if name in best else figures for name, figures in metrics.items()}


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A run over a split.

    Attributes:
      metrics: The figures, see `Evaluator`, after `split` and `data_dir`; `slices` {column: {value: figures}} where asked for.
      counts: Histograms of the levels and then of the conversion given a click: int64 [2, bins] each.
      first_less_this: The first run's figures less this one's, see `Comparison`; None for the first run.
    """

    metrics: dict[str, Any]
    counts: list[np.ndarray]
    first_less_this: dict[str, Any] | None


class _RunCounts:
    """What is counted of one run's rows, from a reader of `evaluation_reader`."""

    def __init__(self, run: Workdir, reader: Reader, slices: Sequence[str]) -> None:
        self.evaluator = evaluator = Evaluator(run.trained_model(), run.config, reader)
        self.tally = evaluator.new_tally()
        self.sliced = Slices(
            slices, lambda: evaluator.new_tally(resolution=SLICE_RESOLUTION, rows_kept=SLICE_ROWS_KEPT)
        )

    def update(self, rows: Rows) -> None:
        self.tally.update(rows)
        self.sliced.update(rows)


def _check_comparable(runs: Sequence[Workdir]) -> None:
    """Checks that runs mean the same by their labels and group rows alike.

    Raises:
      ConfigError: They do not.
    """
    first = runs[0]
    for run in runs[1:]:
        if run.schema.levels != first.schema.levels:
            raise ConfigError(
                f"comparison: expected runs of one log, but the levels of {run.path} (trained on {run.data_dir}) are made of "
                f"other labels than those of {first.path} ({first.data_dir}); evaluate them one by one"
            )
        groups = [group_column(each.schema) for each in (run, first)]
        if groups[0] != groups[1]:
            raise ConfigError(
                f"comparison: expected runs whose rows are grouped by one column, but the group column of {run.path} is "
                f"{groups[0]} and that of {first.path} {groups[1]}; evaluate them one by one"
            )


def evaluate_runs(
    runs: Sequence[Workdir], index: SplitIndex, split: str, slices: Sequence[Sequence[str]]
) -> list[Evaluation]:
    """Evaluates trained runs on the same rows of a split, in one pass over it each, side by side.

    Args:
      runs: The runs; the first is compared with each of the others, and its policy for broken labels is that of all.
      index: The split.
      split: Its name.
      slices: For each run, columns of the log each value of which gets the figures of its rows.

    Raises:
    Returns:
      The evaluation of each run.

    Raises:
      Hm3Error: A run has no checkpoint, or a column has too many values.
      ConfigError: A column cannot be sliced by, or the runs have other labels, groups, clicks or conversions.
      DataError: The split cannot be read, or a method's labels leave out rows that another's keep.
    """
    _check_comparable(runs)
    columns = tuple(dict.fromkeys(itertools.chain(*slices)))
    check_columns(runs[0].schema, columns)
    first_reader = evaluation_reader(runs[0], index, carry=columns)
    readers = [first_reader, *(evaluation_reader(run, index, nesting=first_reader.nesting) for run in runs[1:])]
    counted = [_RunCounts(*parts) for parts in zip(runs, readers, slices)]
    truth = counted[0].evaluator.new_truth()
    levels = [counts.evaluator.levels for counts in counted]
    comparisons = [Comparison(levels[0], others) for others in levels[1:]]
    with Progress(f"evaluate {split}", index.rows) as progress:
        for first, *others in zip(*(counts.evaluator.rows() for counts in counted), strict=True):
            rows = [
                first,
                *(dataclasses.replace(other, groups=first.groups, carried=first.carried) for other in others),
            ]
            truth.update(first)
            for counts, predicted in zip(counted, rows):
                counts.update(predicted)
            for comparison, other in zip(comparisons, rows[1:]):
                comparison.update(first, other)
            progress.advance(len(first))
    estimates = [counts.tally.estimates() for counts in counted]
    differences = [comparison.result(estimates[0], second) for comparison, second in zip(comparisons, estimates[1:])]
    where = {"split": split, "data_dir": index.folder.rsplit("/", 1)[0]}
    result = []
    for counts, figures, difference in zip(counted, estimates, [None, *differences]):
        metrics = {**where, **truth.added_to(counts.tally.result(figures))}
        if counts.sliced.columns:
            metrics["slices"] = counts.sliced.result()
        result.append(Evaluation(metrics, [target.counts for target in counts.tally.counts], difference))
    return result


def evaluate_run(
    run: Workdir, index: SplitIndex, split: str, compare: Workdir | None = None, slices: Sequence[str] = ()
) -> dict[str, Any]:
    """Returns `metrics.json` of a trained run on a split.

    Args:
      run: The run.
      index: The split.
      split: Its name.
      compare: Another run, to be compared with on the same rows.
      slices: Columns of the log, each value of which gets the figures of its rows.

    Returns:
      The figures, see `Evaluation`, and `compare` (`workdir` and the differences, see `Comparison`) where asked for.

    Raises:
      Hm3Error: A run has no checkpoint, or a column has too many values.
      ConfigError: A column cannot be sliced by, or the runs have other labels, groups, clicks or conversions.
      DataError: The split cannot be read, or one method's labels leave out rows that the other's keep.
    """
    if compare is None:
        return evaluate_runs([run], index, split, [slices])[0].metrics
    first, second = evaluate_runs([run, compare], index, split, [slices, ()])
    return {**first.metrics, "compare": {"workdir": compare.path, **(second.first_less_this or {})}}


def to_json(metrics: dict[str, Any]) -> str:
    """Returns the text of `metrics.json`."""
    return json.dumps(metrics, indent=1)
