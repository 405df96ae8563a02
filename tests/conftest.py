"""What the tests share: one small simulated log, converted once, and one run trained on it."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from data_pipeline.convert import convert
from data_pipeline.folder import DataFolder
from data_pipeline.read import Reader
from data_pipeline.simulate import SimulatedLog
from data_pipeline.sources.simulated import SimulatedSource, day_split
from hm3_tf.config import Config, ModelConfig, TrainingConfig
from hm3_tf.model import model_features
from hm3_tf.workdir import Workdir, claim_workdir

# Two devices, of which all but the tests of replicas use the first. It has to be said before TensorFlow starts.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)

LOG = SimulatedLog(rows=6_000, users=300, items=300)
FEATURES = ("position", "user_id", "item_id", "brand", "price", "history")
BUCKETS = {"position": 16, "user_id": 2_000, "item_id": 2_000, "brand": 200}


def tiny_config(method: str = "hm3", **training) -> Config:
    """Returns a config of few columns, small tables and narrow towers without dropout."""
    model = ModelConfig(
        method, tower_units=(8, 4), dropout=0.0, embedding_dim=4, hash_buckets=dict(BUCKETS), features=FEATURES
    )
    defaults = {"global_batch_size": 512, "learning_rate": 0.01}
    return Config(model=model, training=TrainingConfig(**{**defaults, **training}))


def read_split(config: Config, data: DataFolder, split: str, carry: tuple[str, ...] = ()) -> tuple[dict, ...]:
    """Returns (features, labels), and the carried columns, of a split in its order, without filling rows."""
    statistics = data.statistics()["train"]
    features = model_features(config, data.schema, statistics)
    reader = Reader(
        data.split(split),
        data.schema,
        features,
        config.method.merged_levels,
        carry=carry,
        split_levels=config.method.split_levels,
    )
    features, labels, weights, *carried = zip(*reader.ordered_dataset(8192))
    real = np.concatenate(weights) > 0
    return tuple(
        {name: np.concatenate([batch[name] for batch in batches])[real] for name in batches[0]}
        for batches in (features, labels, *carried)
    )


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """The log as a data folder: 4,286 rows of train, 857 each of validation and test."""
    path = str(tmp_path_factory.mktemp("log") / "data")
    convert(SimulatedSource(LOG), path, day_split())
    return DataFolder.open(path)


def written_run(path: str, config: Config, data: DataFolder) -> Workdir:
    """Returns a run whose files are in its directory, as training writes them when it starts."""
    run = claim_workdir(path, config, data)
    run.write()
    return run


def save_best(run, model) -> None:
    """Writes a model's weights where training puts the best ones."""
    checkpoint = tf.train.Checkpoint(network=model.network)
    tf.train.CheckpointManager(checkpoint, run.file("checkpoints", "best"), 1).save(1)


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory, data):
    """An HM3 run with trained weights; not to be written into."""
    config = tiny_config()
    run = written_run(str(tmp_path_factory.mktemp("run")), config, data)
    keras.utils.set_random_seed(0)
    model = run.build_model()
    features, labels = read_split(config, data, "train")
    model.fit(features, labels, batch_size=512, epochs=2, verbose=0)
    save_best(run, model)
    return run
