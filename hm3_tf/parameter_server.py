"""Training with tables that are split over servers, by workers that each take steps at their own pace.

One process, the chief, has the steps of an epoch taken by whichever worker is free; the servers hold the weights and apply the
updates as they come. What is exact about it and what is not stands in docs/adr/0036-parameter-server.md.
"""

import collections
import logging
import os
from collections.abc import Callable, Iterator

import tensorflow as tf
import tf_keras as keras

from hm3_tf.cluster import Cluster, await_end_of_chief, await_workers, read_cluster
from hm3_tf.config import DistributionConfig
from hm3_tf.errors import Hm3Error
from hm3_tf.preemption import Termination

_LOGGER = logging.getLogger(__name__)
_NAME = "parameter_server"
_LEAST_ROWS = 4096  # of a part of a table; no other weights have as many rows
_UNDER_WAY = 2  # stretches of steps a worker: one that it takes, and the next


def serves_chief(config: DistributionConfig) -> bool:
    """Returns whether this process is a worker or server that the chief tells what to do.

    Raises:
      Hm3Error: The strategy is `parameter_server`, and TF_CONFIG is unusable.
    """
    return config.strategy == _NAME and read_cluster(_NAME).index > 0


def serve_chief(config: DistributionConfig) -> None:
    """Does as the chief says until that has ended.

    A SIGTERM is left to the chief, which needs all others to write its checkpoint.

    Args:
      config: Says how long to wait for the chief.

    Raises:
      Hm3Error: TF_CONFIG is unusable, or this process's port is taken.
      LostWorkerError: The chief did not come.
    """
    cluster = _joined(config)
    job, index = cluster.task
    with Termination().watched():
        try:
            server = tf.distribute.Server(tf.train.ClusterSpec(cluster.jobs), job, index, protocol="grpc")
        except tf.errors.OpError as error:
            raise Hm3Error(
                f"TF_CONFIG: expected a free port for {cluster.name} ({cluster.address}), but TensorFlow cannot serve there: "
                f"{error.message}; stop what uses it, or name another port in all processes"
            ) from error
        await_end_of_chief(cluster)
        del server  # which served until here
    _LOGGER.info("%s: the chief has ended", cluster.name)


def _joined(config: DistributionConfig) -> Cluster:
    """Returns the cluster, once those that this process needs are there."""
    cluster = read_cluster(_NAME)
    await_workers(cluster, config.start_seconds)
    os.environ["GRPC_FAIL_FAST"] = "use_caller"  # a lost process is an error at once, instead of a wait
    return cluster


def connect(config: DistributionConfig) -> tf.distribute.ParameterServerStrategy:
    """Returns the strategy of the chief, once all others are there.

    Args:
      config: Says how long to wait for the others.

    Raises:
      Hm3Error: TF_CONFIG is unusable, this process's port is taken, or a worker has several GPUs.
      LostWorkerError: Another process did not come.
    """
    cluster = _joined(config)
    job, index = cluster.task
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec(cluster.jobs), task_type=job, task_id=index, rpc_layer="grpc"
    )
    strategy = tf.distribute.ParameterServerStrategy(resolver, variable_partitioner=_partitioner(cluster))
    if strategy.num_replicas_in_sync > 1:
        raise Hm3Error(
            f"distribution.strategy={_NAME}: expected at most one GPU a worker, got {strategy.num_replicas_in_sync}; start a "
            "worker for each, with its own CUDA_VISIBLE_DEVICES"
        )
    return strategy


def servers_without(path: str, text: str) -> list[int]:
    """Returns the servers, by their numbers, that do not read `text` from a file; called in the chief."""
    found = []
    for index in range(read_cluster(_NAME).servers):
        try:
            with tf.device(f"/job:ps/task:{index}"):
                seen = tf.io.read_file(path).numpy().decode()
        except tf.errors.OpError:
            seen = ""
        found += [] if seen == text else [index]
    return found


def _partitioner(cluster: Cluster) -> Callable[..., list[int]]:
    """Returns what splits large tables by rows, a part a server; all other weights stay whole."""

    def partition(shape: tf.TensorShape, dtype: tf.DType, axis: int = 0) -> list[int]:
        parts = [1] * len(shape)
        parts[0] = max(1, min(cluster.servers, shape[0] // _LEAST_ROWS))
        return parts

    return partition


class Scheduler:
    """Has steps taken by workers. A worker that is lost costs nothing but time: another one takes its stretch of steps anew.

    Args:
      model: The compiled model, built in the strategy's scope.
      strategy: The strategy.
    """

    def __init__(self, model: keras.Model, strategy: tf.distribute.ParameterServerStrategy) -> None:
        self._coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
        self._most_under_way = _UNDER_WAY * len(read_cluster(_NAME).jobs["worker"])

        @tf.function
        @tf.autograph.experimental.do_not_convert
        def step(batch: tuple) -> None:
            strategy.run(model.train_step, args=(batch,))

        self._step = step
        held: collections.Counter[str] = collections.Counter()
        for variable in model.network.weights:
            held[f"server {tf.DeviceSpec.from_string(variable.device).task}"] += variable.shape.num_elements()
        _LOGGER.info("weights: %s", ", ".join(f"{count:,} on {server}" for server, count in sorted(held.items())))

    def stretch_of(self, batches: Callable[[tf.Tensor, tf.Tensor], tf.data.Dataset]) -> Callable[..., tf.Tensor]:
        """Returns what a worker runs: it takes steps one after the other and returns their number.

        Args:
          batches: Of (first step, number of steps), int64 scalars: reads the batches of an epoch, on the worker.
        """

        @tf.function(input_signature=[tf.TensorSpec([], tf.int64)] * 2)
        @tf.autograph.experimental.do_not_convert
        def take_stretch(first: tf.Tensor, steps: tf.Tensor) -> tf.Tensor:
            iterator = iter(batches(first, steps))

            def body(taken: tf.Tensor) -> tf.Tensor:
                self._step(next(iterator))
                return taken + 1

            (taken,) = tf.while_loop(lambda taken: taken < steps, body, [tf.constant(0, tf.int64)])
            return taken

        return take_stretch

    def take(
        self, take_stretch: Callable[..., tf.Tensor], first: int, end: int, length: int, paused: Callable[[], bool]
    ) -> Iterator[int]:
        """Yields the number of steps of each stretch that is done, in the order of the epoch; at the end none is under way.

        Args:
          take_stretch: Of `stretch_of`.
          first: First step of the epoch to take.
          end: The one after the last.
          length: Steps of a stretch; stretches start at its multiples.
          paused: Asked before each stretch; where it is True none is begun.

        Raises:
          tf.errors.OpError: A server is lost, or a step failed.
        """
        under_way: collections.deque = collections.deque()
        while True:
            if first < end and len(under_way) < self._most_under_way and not paused():
                steps = min(end, (first // length + 1) * length) - first
                arguments = tf.constant(first, tf.int64), tf.constant(steps, tf.int64)
                under_way.append(self._coordinator.schedule(take_stretch, args=arguments))
                first += steps
            elif under_way:
                yield int(under_way.popleft().fetch())
            else:
                return
