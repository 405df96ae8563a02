"""AUX, ESMM with heads for micro and macro behaviors: the control that tells more labels from the graph.

hm3 train --config=configs/aux_control.py --data_dir=D --workdir=W
"""

from hm3_tf.config import Config, ModelConfig


def get_config() -> Config:
    """Returns the config."""
    return Config(model=ModelConfig(method="aux"))
