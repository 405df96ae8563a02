"""Scores requests with a SavedModel by TensorFlow alone; a program of its own, which imports nothing of hm3-tf.

    python hm3_tf/plain_scoring.py FOLDER REQUESTS ANSWERS

REQUESTS is a pickled list of (signature, {input: array}); ANSWERS becomes one of {output: array}.
"""

import pickle
import sys

import tensorflow as tf


def main(folder: str, requests: str, answers: str) -> None:
    """Answers the requests of a file."""
    signatures = tf.saved_model.load(folder).signatures
    with open(requests, "rb") as file:
        asked = pickle.load(file)
    outputs = [
        signatures[name](**{column: tf.constant(values) for column, values in inputs.items()}) for name, inputs in asked
    ]
    ours = {"hm3_tf", "data_pipeline"}.intersection(name.partition(".")[0] for name in sys.modules)
    if ours:
        raise SystemExit(f"expected TensorFlow alone, but {ours} is imported")
    with open(answers, "wb") as file:
        pickle.dump([{name: value.numpy() for name, value in output.items()} for output in outputs], file)


if __name__ == "__main__":
    main(*sys.argv[1:])
