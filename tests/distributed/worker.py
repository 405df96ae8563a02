"""One worker of a run of each of several methods: trains as `hm3 train` does, then writes its own weights and figures.

python -m tests.distributed.worker METHODS DATA_DIR STRATEGY FOLDER NAME

Runs are FOLDER/METHOD-STRATEGY..., what this process ends with is FOLDER/METHOD-NAME.npz and .json.
"""

import json
import pathlib
import sys

import numpy as np
import tensorflow as tf

from data_pipeline.folder import DataFolder
from hm3_tf import train
from hm3_tf.config import Config, DistributionConfig, ModelConfig, TrainingConfig
from hm3_tf.evaluate import Evaluator, evaluation_reader
from hm3_tf.workdir import open_workdir

FEATURES = ("position", "user_id", "item_id", "brand", "price", "history")


def config_of(method: str, strategy: str) -> Config:
    """Returns the config of a run: 3 epochs of 17 steps on the log of the tests."""
    return Config(
        model=ModelConfig(method, tower_units=(8, 4), dropout=0.0, embedding_dim=4, features=FEATURES),
        training=TrainingConfig(
            global_batch_size=256, epochs=3, learning_rate=0.001, log_every_steps=1, checkpoint_every_steps=7
        ),
        distribution=DistributionConfig(strategy, start_seconds=120),
    )


def main(methods: str, data_dir: str, strategy: str, folder: str, name: str) -> None:
    """Trains, and writes what this process ends with."""
    if strategy == "mirrored":  # as on a machine of two GPUs
        two = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], two)
        made = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    else:
        made = train.make_strategy(DistributionConfig(strategy, start_seconds=120))
    train.make_strategy = lambda config: made  # one cluster for all methods
    train.check_export = lambda run: None  # has tests of its own, and takes seconds
    for method in methods.split(","):
        workdir = str(pathlib.Path(folder, f"{method}-{name.partition('.')[0]}"))
        config = config_of(method, strategy)
        trainer = train.open_trainer(config, data_dir, workdir)
        figures = trainer.train()
        weights = {str(i): weight for i, weight in enumerate(trainer.model.network.get_weights())}
        if name.startswith("two"):  # evaluated by the strategy, and again by this process alone
            reader = evaluation_reader(open_workdir(workdir), DataFolder.open(data_dir).split("validation"))
            alone = Evaluator(trainer.model, config, reader)()
            pathlib.Path(folder, f"{method}-{name}.json").write_text(json.dumps([figures, alone]))
        np.savez(pathlib.Path(folder, f"{method}-{name}.npz"), **weights)


if __name__ == "__main__":
    main(*sys.argv[1:])
