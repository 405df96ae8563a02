"""A SavedModel that serves the true probabilities of a simulated log, made in a moment."""

import tensorflow as tf

TRUTH = {"pctr": "truth_pctr", "pcvr": "truth_pcvr_given_click", "pctcvr": "truth_pctcvr"}


class TruthModule(tf.Module):
    """Serves `factor` times the truth from its columns; `rank` takes the user's column once.

    Args:
      factor: What the probabilities are multiplied by.
    """

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = tf.Variable(factor)

        def predict(columns: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            p = {name: tf.minimum(self.factor * columns[column], 1.0) for name, column in TRUTH.items()}
            return {**p, "p_d_mi": p["pctcvr"], "p_d_ma": p["pctcvr"]}

        columns = {name: tf.TensorSpec([None], tf.float32, name=name) for name in TRUTH.values()}

        @tf.function(input_signature=[columns])
        def serve(columns: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            return predict(columns)

        @tf.function(input_signature=[{**columns, "user_id": tf.TensorSpec([1], tf.int64, name="user_id")}])
        def rank(columns: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            return {**predict(columns), "user": columns["user_id"]}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
        def serve_examples(examples: tf.Tensor) -> dict[str, tf.Tensor]:
            specs = {name: tf.io.FixedLenFeature([], tf.float32) for name in columns}
            return predict(tf.io.parse_example(examples, specs))

        self.signatures_to_save = {"serving_default": serve, "serving_examples": serve_examples, "rank": rank}


def save_truth(folder: str, factor: float = 1.0) -> str:
    """Writes the SavedModel and returns its folder."""
    module = TruthModule(factor)
    tf.saved_model.save(module, folder, signatures=module.signatures_to_save)
    return folder
