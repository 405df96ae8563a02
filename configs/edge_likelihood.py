"""A chain with the full-path likelihood beside the paper's losses, otherwise with the paper's settings.

hm3 train --config=configs/edge_likelihood.py:hm3 --data_dir=D --workdir=W
"""

from hm3_tf.config import Config, ModelConfig, TrainingConfig


def get_config(method: str = "hm3") -> Config:
    """Returns the config of a method."""
    return Config(model=ModelConfig(method=method), training=TrainingConfig(edge_loss_weight=1.0))
