"""One worker of a run: trains as `hm3 train` does, then writes this process's own weights and metrics.

python -m tests.distributed.worker METHOD DATA_DIR WORKDIR STRATEGY WEIGHTS.npz
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


def main(method: str, data_dir: str, workdir: str, strategy: str, output: str) -> None:
    """Trains and writes the weights."""
    if strategy == "mirrored":  # as on a machine of two GPUs
        two = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], two)
        train.make_strategy = lambda config: tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    features = ("position", "user_id", "item_id", "brand", "price", "history")
    config = Config(
        model=ModelConfig(method, tower_units=(8, 4), dropout=0.0, embedding_dim=4, features=features),
        training=TrainingConfig(
            global_batch_size=512, epochs=2, learning_rate=0.001, log_every_steps=1, checkpoint_every_steps=4
        ),
        distribution=DistributionConfig(strategy),
    )
    trainer = train.open_trainer(config, data_dir, workdir)
    figures = trainer.train()
    weights = {str(i): weight for i, weight in enumerate(trainer.model.network.get_weights())}
    # Evaluated by the strategy, and again by this process alone.
    reader = evaluation_reader(open_workdir(workdir), DataFolder.open(data_dir).split("validation"))
    alone = Evaluator(trainer.model, config, reader)()
    pathlib.Path(output).with_suffix(".json").write_text(json.dumps([figures, alone]))
    np.savez(output, validation_auc=figures["pctr"]["auc"], **weights)


if __name__ == "__main__":
    main(*sys.argv[1:])
