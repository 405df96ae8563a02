"""AITM with the embedding, towers, learning rate and calibrator weight of its authors.

hm3 train --config=configs/aitm.py --data_dir=D --workdir=W
"""

from hm3_tf.config import Config, ModelConfig, TrainingConfig


def get_config() -> Config:
    """Returns the config."""
    return Config(
        model=ModelConfig(method="aitm", tower_units=(128, 64, 32), embedding_dim=5),
        training=TrainingConfig(learning_rate=0.001),
    )
