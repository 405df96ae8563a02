"""HM3 on a simulated log, small enough for a laptop: what `make demo` trains.

hm3 train --config=configs/demo.py --data_dir=demo-out/data --workdir=demo-out/run

About a minute on two cores. Figures to expect stand in the README.
"""

from hm3_tf.config import Config, ModelConfig, TrainingConfig


def get_config(method: str = "hm3") -> Config:
    """Returns the config of a method of the paper."""
    return Config(
        model=ModelConfig(method=method, tower_units=(64, 32), dropout=0.0, embedding_dim=8),
        training=TrainingConfig(
            global_batch_size=1024, epochs=1, learning_rate=0.002, edge_loss_weight=1.0, log_every_steps=50
        ),
    )
