"""Scores impressions with an exported model: needs TensorFlow, nothing of hm3-tf.

    python deploy/predict_saved_model.py export/1 user_id=9007199254741003 category=c7 price=19.9 -- user_id=12 history=3,5

Each impression is a list of column=value; `--` starts the next one, and a column that is not named is missing. Values of
a column that holds several stand between commas.
"""

import itertools
import json
import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf


def feature(name: str, dtype: str, values: list[str]) -> tf.train.Feature:
    """Returns the feature of one column from its values as text."""
    try:
        if dtype == "int64":
            return tf.train.Feature(int64_list=tf.train.Int64List(value=[int(value) for value in values]))
        if dtype == "float":
            return tf.train.Feature(float_list=tf.train.FloatList(value=[float(value) for value in values]))
    except ValueError as error:
        raise SystemExit(f"column {name!r}: expected {dtype}, got {','.join(values)!r}: {error}") from error
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value.encode() for value in values]))


def example(columns: dict[str, dict], pairs: list[str]) -> bytes:
    """Returns one impression, given as ["column=value", ...], as a serialized tf.train.Example."""
    features = {}
    for pair in pairs:
        name, _, text = pair.partition("=")
        if name not in columns:
            raise SystemExit(f"expected a column of the model, got {name!r}; known: {', '.join(columns)}")
        values = text.split(",") if columns[name].get("shape") else [text]
        features[name] = feature(name, columns[name]["dtype"], values)
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def main(folder: str, *arguments: str) -> None:
    """Prints the probabilities of the impressions."""
    assets = pathlib.Path(folder) / "assets.extra"
    if not (assets / "metadata.json").exists():
        raise SystemExit(f"expected an exported version, such as export/1, got {folder!r}, which has no metadata.json")
    inputs = json.loads((assets / "metadata.json").read_text())["signatures"]["serving_default"]["inputs"]
    schema = json.loads((assets / "schema.json").read_text())
    columns = {column["name"]: column for column in schema["columns"] if column["name"] in inputs}
    groups = [list(group) for is_end, group in itertools.groupby(arguments, "--".__eq__) if not is_end]
    model = tf.saved_model.load(folder)
    outputs = model.signatures["serving_examples"](examples=tf.constant([example(columns, group) for group in groups]))
    for row, pairs in enumerate(groups):
        print(" ".join(pairs))
        for name in sorted(outputs):
            print(f"  {name:<8} {outputs[name][row].numpy():.6f}")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
