"""DCMT with the settings of ESCM2 (configs/escm2_ipw.py) and the weight 0.001 of its paper for the counterfactual regularizer.

hm3 train --config=configs/dcmt.py --data_dir=D --workdir=W
"""

from hm3_tf.config import Config, ModelConfig, TrainingConfig


def get_config() -> Config:
    """Returns the config."""
    return Config(model=ModelConfig(method="dcmt", embedding_dim=12), training=TrainingConfig(learning_rate=0.001))
