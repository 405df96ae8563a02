"""ESCM2-IPW with the learning rate, embedding, loss weights and clip of PaddleRec; the towers are those of the other methods.

hm3 train --config=configs/escm2_ipw.py --data_dir=D --workdir=W
"""

from hm3_tf.config import Config, ModelConfig, TrainingConfig


def get_config() -> Config:
    """Returns the config."""
    return Config(model=ModelConfig(method="escm2_ipw", embedding_dim=12), training=TrainingConfig(learning_rate=0.001))
