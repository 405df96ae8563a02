"""Batches of impressions from TFRecord shards, the same for any number of workers.

An epoch is planned before it is read. Its blocks are permuted by (seed, epoch) and laid end to end; the row stream is cut
into lanes of equal length, and every global batch takes the same number of rows from each lane. A worker reads the
lanes that are its own, a window of steps at a time, each window decoded and shuffled by itself. So

* every impression is read exactly once an epoch, whatever the numbers of files, workers and rows;
* all workers have the same number of steps (the last batch is filled with rows of weight 0), so none waits at the end;
* the global batch of a step does not depend on the number of workers, as long as that divides the lanes;
* training resumes at any step without reading what came before it.
"""

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf

from data_pipeline import labels as label_rules
from data_pipeline.hashing import MISSING_INT64, network_inputs
from data_pipeline.index import SplitIndex
from data_pipeline.records import PARSERS
from data_pipeline.sampling import NegativeSampling
from data_pipeline.schema import Column, Level, Schema
from hm3_tf.errors import ConfigError
from hm3_tf.features import Feature

_LANES = 8
WINDOW_ROWS = 65_536
_ORDERED_WINDOW_ROWS = 16_384  # nothing is shuffled: small windows, so that the first batch is soon there


def lane_count(global_batch_size: int, workers: int) -> int:
    """Returns the number of lanes: the largest multiple of `workers` up to 8 that divides the global batch.

    Args:
      global_batch_size: Rows of a step over all workers.
      workers: Number of workers.

    Returns:
      The number of lanes, at least `workers`.

    Raises:
      ConfigError: The global batch cannot be shared out equally.
    """
    if global_batch_size % workers:
        raise ConfigError(
            f"training.global_batch_size: expected a multiple of the {workers} workers, got {global_batch_size}"
        )
    multiples = range(workers, max(_LANES, workers) + 1, workers)
    return max(lanes for lanes in multiples if global_batch_size % lanes == 0)


@dataclasses.dataclass(frozen=True)
class EpochPlan:
    """Which rows each step of an epoch reads on one worker.

    Attributes:
      blocks: int64 [blocks, 4] of the split's index, in the order of this epoch.
      rows: int64 [blocks], rows of each that the epoch reads.
      steps: Steps of the epoch, the same on all workers.
      lanes: Indices of the worker's lanes.
      lane_rows: Rows that a step takes from a lane.
      window_steps: Steps of a window.
      first, last: int64 [windows, lanes], the blocks that a window reads for a lane, as a range.
      skip, size: int64 [windows, lanes], the rows of these that are the window's, as offset and count.
    """

    blocks: np.ndarray
    rows: np.ndarray
    steps: int
    lanes: np.ndarray
    lane_rows: int
    window_steps: int
    first: np.ndarray
    last: np.ndarray
    skip: np.ndarray
    size: np.ndarray


def plan_epoch(
    blocks: np.ndarray,
    global_batch_size: int,
    *,
    shuffle_seed: tuple[int, int] | None,
    worker: int = 0,
    workers: int = 1,
    window_rows: int = WINDOW_ROWS,
    sampling: NegativeSampling | None = None,
) -> EpochPlan:
    """Returns the plan of one epoch for one worker.

    Args:
      blocks: int64 [blocks, 4] of a split's index.
      global_batch_size: Rows of a step over all workers.
      shuffle_seed: (seed, epoch) for the order of the blocks, or None to read the split in its own order (each worker
        a contiguous share).
      worker: Index of this worker.
      workers: Number of workers.
      window_rows: Rows over all workers that are decoded and shuffled together, about.
      sampling: The rows that the epoch reads, or None for all.

    Returns:
      The plan.

    Raises:
      ConfigError: The global batch cannot be shared out equally.
    """
    lanes = lane_count(global_batch_size, workers)
    order = np.arange(len(blocks))
    if shuffle_seed is None:
        lanes = workers
    else:
        order = np.random.default_rng(shuffle_seed).permutation(len(blocks))
    rows = sampling.kept_rows(blocks, order) if sampling else blocks[order, 3]
    blocks, ends = blocks[order], np.cumsum(rows)
    bounds = np.arange(lanes + 1) * int(ends[-1]) // lanes
    lane_rows = global_batch_size // lanes
    steps = -(-int(np.diff(bounds).max()) // lane_rows)
    mine = np.arange(worker * lanes // workers, (worker + 1) * lanes // workers)
    window_steps = max(1, int(window_rows * ends[-1] / blocks[:, 3].sum()) // global_batch_size)

    offsets = np.arange(0, steps, window_steps)[:, np.newaxis] * lane_rows
    start = np.minimum(bounds[mine] + offsets, bounds[mine + 1])
    stop = np.minimum(start + window_steps * lane_rows, bounds[mine + 1])
    first = np.minimum(np.searchsorted(ends, start, side="right"), len(blocks) - 1)
    last = np.maximum(np.searchsorted(ends, stop, side="left") + 1, first + 1)  # never no block: a row fills the batch
    skip = start - (ends - rows)[first]
    return EpochPlan(blocks, rows, steps, mine, lane_rows, window_steps, first, last, skip, stop - start)


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads a split as batches of (inputs, labels, weights).

    Attributes:
      index: The split's shards and blocks.
      schema: Its columns.
      features: The network's features.
      merged_levels: Levels that are the union of levels of the log: {level: levels it merges}.
      labels: Whether labels are read; without them the second element of a batch is empty.
      nesting: Policy for labels that break the hierarchy: `coerce`, `drop` (weight 0) or `error`.
      sample_weights: Whether the column of role `weight` scales the weights.
      carry: Columns passed through as they are, as a fourth element.
      sampling: The rows that an epoch of training reads, or None for all.
      split_levels: Levels whose behaviors are labels too, see `labels.split`.

    Raises:
      ConfigError: The policy, a carried column, a level to split or a part of a merged level is unknown.
    """

    index: SplitIndex
    schema: Schema
    features: Sequence[Feature]
    merged_levels: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    labels: bool = True
    nesting: str = "coerce"
    sample_weights: bool = True
    carry: tuple[str, ...] = ()
    sampling: NegativeSampling | None = None
    split_levels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        label_rules.check_policy(self.nesting, "data.nesting")
        label_rules.merge({level.name: False for level in self.levels}, self.merged_levels)
        for name in self.carry:
            self.schema.column(name, "carried column")
        for name in self.split_levels:
            label_rules.find_level(self.schema, name)

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns that are read from the records."""
        names = {feature.name for feature in self.features} | set(self.carry)
        names |= {name for level in self.levels for name in level.any_of}
        weights = self.schema.with_role("weight") if self.sample_weights else ()
        return tuple(column for column in self.schema.columns if column.name in names or column in weights)

    @property
    def levels(self) -> tuple[Level, ...]:
        """The levels of the log whose labels are read."""
        return self.schema.levels if self.labels else ()

    def steps(self, global_batch_size: int, workers: int = 1) -> int:
        """Returns the number of training steps of an epoch, the same on every worker and in every epoch."""
        return plan_epoch(
            self.index.blocks, global_batch_size, shuffle_seed=(0, 0), workers=workers, sampling=self.sampling
        ).steps

    def window_steps(self, global_batch_size: int, window_rows: int = WINDOW_ROWS) -> int:
        """Returns the number of training steps whose rows one worker decodes and shuffles together."""
        blocks, sampling = self.index.blocks, self.sampling
        plan = plan_epoch(blocks, global_batch_size, shuffle_seed=(0, 0), window_rows=window_rows, sampling=sampling)
        return plan.window_steps

    def training_dataset(
        self,
        global_batch_size: int,
        *,
        seed: int,
        epoch: int,
        start_step: int | tf.Tensor = 0,
        steps: int | tf.Tensor | None = None,
        input_context: tf.distribute.InputContext | None = None,
        window_rows: int = WINDOW_ROWS,
    ) -> tf.data.Dataset:
        """Returns the shuffled batches of one epoch for one worker.

        The order depends on `seed` and `epoch` only. All batches have the same static shape.

        Args:
          global_batch_size: Rows of a step over all workers.
          seed: Seed of the shuffle.
          epoch: Number of the epoch.
          start_step: Steps of the epoch that were taken before; their rows are not read.
          steps: Steps to read from there; default all that are left.
          input_context: Says which of how many workers this is.
          window_rows: Rows over all workers that are decoded and shuffled together, about.

        Returns:
          A finite dataset of `({feature: [batch] or [batch, length]}, {level: float32 [batch]}, float32 [batch])`, with
          batch = global_batch_size / replicas: an element for each replica of the worker in turn, as
          `distribute_datasets_from_function` takes them.

        Raises:
          ConfigError: The global batch cannot be shared out equally.
        """
        context = input_context or tf.distribute.InputContext()
        lane_count(global_batch_size, context.num_input_pipelines)
        if global_batch_size % context.num_replicas_in_sync:
            raise ConfigError(
                f"training.global_batch_size: expected a multiple of the {context.num_replicas_in_sync} replicas, got "
                f"{global_batch_size}"
            )
        replicas = context.num_replicas_in_sync // context.num_input_pipelines
        return self._dataset(global_batch_size, (seed, epoch), start_step, steps, context, window_rows, replicas)

    def ordered_dataset(
        self, global_batch_size: int, *, input_context: tf.distribute.InputContext | None = None
    ) -> tf.data.Dataset:
        """Returns the split in its own order, for evaluation and prediction; each worker has a contiguous share.

        Args:
          global_batch_size: Rows of a batch over all workers; the last one is filled with rows of weight 0.
          input_context: Says which of how many workers this is.

        Returns:
          A finite dataset of elements as in `training_dataset`, with `{carried column: [batch]}` as a fourth where
          columns are carried.
        """
        return self._dataset(
            global_batch_size, None, 0, None, input_context or tf.distribute.InputContext(), _ORDERED_WINDOW_ROWS, 1
        )

    def _dataset(
        self,
        global_batch_size: int,
        seed: tuple[int, int] | None,
        start_step: int | tf.Tensor,
        steps: int | tf.Tensor | None,
        context: tf.distribute.InputContext,
        window_rows: int,
        replicas: int,
    ) -> tf.data.Dataset:
        plan = plan_epoch(
            self.index.blocks,
            global_batch_size,
            shuffle_seed=seed,
            worker=context.input_pipeline_id,
            workers=context.num_input_pipelines,
            window_rows=window_rows,
            sampling=self.sampling if seed else None,
        )
        steps = plan.steps - start_step if steps is None else steps
        first_window, skipped = start_step // plan.window_steps, start_step % plan.window_steps
        windows = tf.data.Dataset.range(first_window, -(-(start_step + steps) // plan.window_steps))
        if isinstance(start_step, int) and not 0 <= start_step <= plan.steps:
            raise ConfigError(f"expected a start within the {plan.steps} steps of the epoch, got step {start_step}")
        read_window = tf.autograph.experimental.do_not_convert(_WindowReader(self, plan, seed, replicas))
        read_window = functools.partial(read_window, *_tables(self.index, plan))
        batches = windows.map(read_window, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).unbatch()
        count = steps * replicas
        known_length = (
            batches.skip(skipped * replicas).take(count).apply(tf.data.experimental.assert_cardinality(count))
        )
        return known_length.prefetch(tf.data.AUTOTUNE)


class PartReader:
    """Reads parts of a split one after another, each in its own order.

    What TensorFlow traces is theirs together, and no dataset is made for a part: both take most of a second, in which a small
    shard is predicted.

    Args:
      reader: Reader of the split.
      batch_rows: Rows of a batch; the last one of a part is filled with rows of weight 0.
    """

    def __init__(self, reader: Reader, batch_rows: int) -> None:
        self._batch_rows = batch_rows
        read_window = _WindowReader(reader, self._plan(reader.index), None, 1)
        self._read_window = tf.function(read_window, input_signature=_TABLES, autograph=False)

    def __call__(self, index: SplitIndex) -> Iterator[tuple]:
        """Yields the elements of `Reader.ordered_dataset` for a part of at least one row; in memory is a window of them.

        Raises:
          tf.errors.OpError: A record is corrupt, or does not hold what the schema says.
        """
        plan = self._plan(index)
        tables = _tables(index, plan)
        for step in range(0, plan.steps, plan.window_steps):
            batches = self._window(tables, step // plan.window_steps)
            yield from batches[: plan.steps - step]

    def _window(self, tables: Sequence[tf.Tensor], window: int) -> list[tuple]:
        with tf.device("CPU"):  # as within a dataset
            columns = self._read_window(*tables, tf.constant(window, tf.int64))
            batches = zip(*map(tf.unstack, tf.nest.flatten(columns)))
            return [tf.nest.pack_sequence_as(columns, batch) for batch in batches]

    def _plan(self, index: SplitIndex) -> EpochPlan:
        return plan_epoch(index.blocks, self._batch_rows, shuffle_seed=None, window_rows=_ORDERED_WINDOW_ROWS)


def _present_weight(column: Column, values: tf.Tensor) -> tf.Tensor:
    """Returns sample weights float32 [...], 1 where one is missing; fails when run if one is negative."""
    missing = tf.math.is_nan(values) if values.dtype.is_floating else tf.equal(values, MISSING_INT64)
    weights = tf.where(missing, 1.0, tf.cast(values, tf.float32))
    message = f"column {column.name!r} holds a weight below 0"
    with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(weights >= 0), [message])]):
        return tf.identity(weights)


def read_blocks(files: tf.Tensor, blocks: tf.Tensor) -> tf.data.Dataset:
    """Returns the records of blocks, one after the other.

    Args:
      files: Paths of the shards, string [shards].
      blocks: int64 [blocks, 4] of a split's index.

    Returns:
      A dataset of string scalars.
    """

    def read_block(file: tf.Tensor, offset: tf.Tensor, records: tf.Tensor) -> tf.data.Dataset:
        variant = tf.raw_ops.TFRecordDatasetV2(
            filenames=file[tf.newaxis], compression_type="", buffer_size=65536, byte_offsets=offset[tf.newaxis]
        )
        return tf.data.experimental.from_variant(variant, tf.TensorSpec([], tf.string)).take(records)

    places = (tf.gather(files, blocks[:, 0]), blocks[:, 1], blocks[:, 2])
    return tf.data.Dataset.from_tensor_slices(places).flat_map(read_block)


@tf.function(input_signature=[tf.TensorSpec([None], tf.string), tf.TensorSpec([None, 4], tf.int64)], autograph=False)
def read_records(files: tf.Tensor, blocks: tf.Tensor) -> tf.Tensor:
    """Returns the records of blocks as `read_blocks` does, string [records]: at once, without a dataset made for them.

    Raises:
      tf.errors.OpError: One is corrupt.
    """
    return read_blocks(files, blocks).batch(tf.reduce_sum(blocks[:, 2])).get_single_element()


def _if_present(inputs: dict[str, tf.Tensor], present: tf.Tensor) -> dict[str, tf.Tensor]:
    """Returns the inputs, with zeros (ids: missing) where a batch is filled up, so that no worker touches other embeddings."""

    def zeroed(values: tf.Tensor) -> tf.Tensor:
        shape = tf.concat([tf.shape(present), tf.ones([len(values.shape) - 2], tf.int32)], axis=0)
        return values * tf.cast(tf.reshape(present, shape), values.dtype)

    return {name: zeroed(values) for name, values in inputs.items()}


_TABLES = (
    tf.TensorSpec([None], tf.string, name="files"),
    tf.TensorSpec([None, 4], tf.int64, name="blocks"),
    tf.TensorSpec([None], tf.int64, name="block_rows"),
    tf.TensorSpec([4, None, None], tf.int64, name="ranges"),
    tf.TensorSpec([], tf.int64, name="window"),
)


def _tables(index: SplitIndex, plan: EpochPlan) -> list[tf.Tensor]:
    """Returns what a `_WindowReader` finds the rows of the plan's windows by."""
    ranges = np.stack([plan.first, plan.last, plan.skip, plan.size])
    return [tf.constant(table) for table in (index.files, plan.blocks, plan.rows, ranges)]


class _WindowReader:
    """Reads, decodes, shuffles and hashes one window of a plan, as [window steps * replicas, batch, ...] tensors.

    Of the plan it keeps only lanes and sizes, which all ordered plans for one batch share; the rest are the tables.
    """

    def __init__(self, reader: Reader, plan: EpochPlan, seed: tuple[int, int] | None, replicas: int) -> None:
        self._reader, self._plan, self._seed, self._replicas = reader, plan, seed, replicas

    def __call__(
        self, files: tf.Tensor, blocks: tf.Tensor, block_rows: tf.Tensor, ranges: tf.Tensor, window: tf.Tensor
    ) -> tuple:
        first, last, skip, size = tf.unstack(ranges[:, window])
        block_ids = tf.ragged.range(first, last)
        blocks, kept = (tf.gather(table, block_ids.flat_values) for table in (blocks, block_rows))
        lane_rows = tf.reduce_sum(tf.RaggedTensor.from_row_splits(kept, block_ids.row_splits), axis=1)
        base = tf.cumsum(lane_rows, exclusive=True) + skip
        rows, present = self._row_order(window, base, size)

        decode = PARSERS[self._reader.index.record_format]
        records = read_blocks(files, blocks).batch(tf.reduce_sum(blocks[:, 2])).get_single_element()
        columns = decode(records, self._reader.columns)
        if self._reader.sampling and self._seed:
            chosen = self._reader.sampling.choose(blocks, kept, self._reader.levels, columns, self._seed)
            columns = {name: tf.gather(values, chosen) for name, values in columns.items()}
        inputs, labels, weights, *carried = self._to_rows(columns)
        taken = tf.nest.map_structure(lambda values: tf.gather(values, rows), (inputs, labels, weights, *carried))
        return _if_present(taken[0], present), taken[1], taken[2] * present, *taken[3:]

    def _row_order(self, window: tf.Tensor, base: tf.Tensor, size: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns which decoded row stands at each place of the window's batches, and 1 where it is one of its own, else 0."""
        plan = self._plan
        rows, present = [], []
        for position, lane in enumerate(plan.lanes):
            order = tf.range(size[position])
            if self._seed is not None:
                lane_seed = np.random.SeedSequence((*self._seed, lane)).generate_state(1, np.uint32)[0]
                order = tf.random.experimental.stateless_shuffle(order, tf.stack([np.int64(lane_seed), window]))
            padding = [[0, plan.window_steps * plan.lane_rows - size[position]]]
            rows.append(tf.pad(tf.cast(base[position] + order, tf.int32), padding))
            present.append(tf.pad(tf.ones_like(order, tf.float32), padding))
        shape = [len(plan.lanes), plan.window_steps, plan.lane_rows]
        return self._interleave(rows, shape), self._interleave(present, shape)

    def _interleave(self, lanes: list[tf.Tensor], shape: list[int]) -> tf.Tensor:
        """Lays the lanes [window steps * lane rows] beside each other: [window steps * replicas, batch]."""
        beside = tf.transpose(tf.reshape(tf.stack(lanes), shape), [1, 0, 2])
        return tf.reshape(beside, [shape[1] * self._replicas, shape[0] * shape[2] // self._replicas])

    def _to_rows(self, columns: dict[str, tf.Tensor]) -> tuple:
        """Returns (inputs, labels, weights) of decoded rows, and what is carried: hashed ids are half of what they were."""
        reader = self._reader
        labels, violations = label_rules.nest(reader.levels, label_rules.raw_flags(reader.levels, columns))
        weights = tf.ones(tf.shape(next(iter(columns.values())))[:1])
        if reader.nesting != "coerce" and violations:
            broken = tf.reduce_any(tf.stack(list(violations.values())), axis=0)
            if reader.nesting == "error":
                message = f"data.nesting is 'error', but a row has one of: {', '.join(violations)}"
                with tf.control_dependencies([tf.debugging.assert_equal(tf.reduce_any(broken), False, message)]):
                    weights = tf.identity(weights)
            weights *= tf.cast(~broken, tf.float32)
        for column in reader.schema.with_role("weight") if reader.sample_weights else ():
            weights *= _present_weight(column, columns[column.name])
        inputs = network_inputs(columns, reader.features)
        levels = {name: tf.cast(v, tf.float32) for name, v in label_rules.merge(labels, reader.merged_levels).items()}
        for name in reader.split_levels:
            behaviors = label_rules.split(label_rules.find_level(reader.schema, name), columns, labels[name])
            levels |= {behavior: tf.cast(v, tf.float32) for behavior, v in behaviors.items()}
        carried = ({name: columns[name] for name in reader.carry},) if reader.carry else ()
        return (inputs, levels, weights, *carried)


_FAULTS = (
    r"column '[^']*' of dtype \w+ does not have its values[^\n;\]]*|column '[^']*' holds a weight below 0"
    r"|data\.nesting is 'error', but[^\n;]*|Key: [^\n;]*|Could not parse example[^\n;]*"
)


def read_fault(error: tf.errors.InvalidArgumentError) -> str | None:
    """Returns what is wrong with a record, of the error with which it could not be read; None where it is another error."""
    fault = re.search(_FAULTS, error.message.replace("\\'", "'"))
    return fault.group(0) if fault else None
