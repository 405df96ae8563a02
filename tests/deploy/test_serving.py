"""deploy/serving/: the files are what the server reads, and the client asks it over real connections."""

import importlib.util
import json
import pathlib
import re
import subprocess
import sys
import urllib.error
import urllib.request

import numpy as np
import pytest
import tensorflow as tf
import yaml
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format, wrappers_pb2
from tensorflow_serving.config import model_server_config_pb2

from data_pipeline.sources.simulated import SimulatedSource
from hm3_tf.export import export_run
from tests.conftest import FEATURES, LOG
from tests.deploy.test_manifests import kept_by

SERVING = pathlib.Path(__file__).parents[2] / "deploy" / "serving"
SERVER = pathlib.Path(__file__).parent / "serving_server.py"
COMPOSE = yaml.safe_load((SERVING / "compose.yaml").read_text())["services"]["serving"]
SERVICE, DEPLOYMENT = yaml.safe_load_all((SERVING / "kubernetes.yaml").read_text())
(CONTAINER,) = DEPLOYMENT["spec"]["template"]["spec"]["containers"]
ARGUMENTS = {"compose": COMPOSE["command"], "kubernetes": CONTAINER["args"]}

# tensorflow-serving-api has no module for these two: their fields as in session_bundle_config.proto, monitoring_config.proto.
PROTOS = """
name: "configs.proto" package: "tensorflow.serving" syntax: "proto3" dependency: "google/protobuf/wrappers.proto"
message_type {
  name: "BatchingParameters"
  field { name: "max_batch_size" number: 1 type: TYPE_MESSAGE type_name: ".google.protobuf.Int64Value" }
  field { name: "batch_timeout_micros" number: 2 type: TYPE_MESSAGE type_name: ".google.protobuf.Int64Value" }
  field { name: "max_enqueued_batches" number: 3 type: TYPE_MESSAGE type_name: ".google.protobuf.Int64Value" }
  field { name: "num_batch_threads" number: 4 type: TYPE_MESSAGE type_name: ".google.protobuf.Int64Value" }
  field { name: "thread_pool_name" number: 5 type: TYPE_MESSAGE type_name: ".google.protobuf.StringValue" }
  field { name: "allowed_batch_sizes" number: 6 type: TYPE_INT64 label: LABEL_REPEATED }
  field { name: "pad_variable_length_inputs" number: 7 type: TYPE_BOOL }
}
message_type {
  name: "PrometheusConfig"
  field { name: "enable" number: 1 type: TYPE_BOOL }
  field { name: "path" number: 2 type: TYPE_STRING }
}
message_type {
  name: "MonitoringConfig"
  field { name: "prometheus_config" number: 1 type: TYPE_MESSAGE type_name: ".tensorflow.serving.PrometheusConfig" }
}
"""


def parsed(name: str, message):
    """Returns a message read from a file of deploy/serving; an unknown field or a value of another type is an error."""
    return text_format.Parse((SERVING / name).read_text(), message)


def message(name: str):
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(text_format.Parse(PROTOS, descriptor_pb2.FileDescriptorProto()).SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"tensorflow.serving.{name}"))()


def test_the_models_are_a_config_of_the_server():
    (model,) = parsed("models.config", model_server_config_pb2.ModelServerConfig()).model_config_list.config
    assert (model.name, model.model_platform) == ("hm3", "tensorflow")
    assert model.model_version_policy.latest.num_versions == 1
    mounts = [volume.rsplit(":", 2)[1] for volume in COMPOSE["volumes"]]
    assert model.base_path in mounts
    assert model.base_path in [mount["mountPath"] for mount in CONTAINER["volumeMounts"]]


def test_the_rollback_that_the_models_config_shows_is_one():
    text = (SERVING / "models.config").read_text().replace("model_version_policy { latest { num_versions: 1 } }", "")
    text = text.replace("# model_version_policy", "model_version_policy")
    config = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
    assert config.model_config_list.config[0].model_version_policy.specific.versions == [41]


def test_the_batching_parameters_are_those_of_the_server():
    batching = parsed("batching.config", message("BatchingParameters"))
    assert not batching.pad_variable_length_inputs, "it would fill lists with values of the log"
    assert batching.max_batch_size.value > 0 and batching.num_batch_threads.value > 0


def test_the_metrics_are_where_prometheus_is_told_to_look():
    prometheus = parsed("monitoring.config", message("MonitoringConfig")).prometheus_config
    annotations = DEPLOYMENT["spec"]["template"]["metadata"]["annotations"]
    assert prometheus.enable and prometheus.path == annotations["prometheus.io/path"]


@pytest.mark.parametrize("name", ["BatchingParameters", "MonitoringConfig"])
def test_an_unknown_field_of_a_config_would_be_found(name):
    with pytest.raises(text_format.ParseError, match="no field named"):
        text_format.Parse("batch_size { value: 3 }", message(name))


@pytest.mark.parametrize(("model", "manifest"), [("V1Service", SERVICE), ("V1Deployment", DEPLOYMENT)])
def test_the_manifest_fits_the_models_of_the_official_client(model, manifest):
    assert kept_by(model, manifest) == manifest


def test_the_service_and_the_probes_find_the_server():
    pod = DEPLOYMENT["spec"]["template"]
    assert SERVICE["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert DEPLOYMENT["spec"]["selector"]["matchLabels"] == pod["metadata"]["labels"]
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    assert ports == {port["name"]: port["port"] for port in SERVICE["spec"]["ports"]} == {"grpc": 8500, "rest": 8501}
    for probe in ("startupProbe", "readinessProbe"):
        assert CONTAINER[probe]["httpGet"] == {"path": "/v1/models/hm3/metadata", "port": "rest"}
    assert {mount["name"] for mount in CONTAINER["volumeMounts"]} == {v["name"] for v in pod["spec"]["volumes"]}


def test_both_run_one_pinned_image_with_the_files_of_this_folder():
    assert COMPOSE["image"] == CONTAINER["image"]
    assert re.fullmatch(r"tensorflow/serving:\d+\.\d+\.\d+", COMPOSE["image"])
    for arguments in ARGUMENTS.values():
        flags = dict(argument.removeprefix("--").split("=") for argument in arguments)
        assert flags["model_config_file"] == "/config/models.config"
        for value in flags.values():
            assert not value.startswith("/config/") or (SERVING / pathlib.Path(value).name).exists()


def test_compose_knows_the_keys():
    known = {
        "image",
        "command",
        "ports",
        "volumes",
        "healthcheck",
        "restart",
    }  # of the Compose specification's services
    assert set(COMPOSE) == known
    assert set(COMPOSE["healthcheck"]) <= {"test", "interval", "timeout", "start_period", "retries"}
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port) for port in COMPOSE["ports"]), "the server has no passwords"


USER = {column.name for column in SimulatedSource(LOG).schema.columns if column.entity == "user"}


@pytest.fixture(scope="module")
def version(trained_run, tmp_path_factory):
    """Folder of a version of the trained run."""
    folder = tmp_path_factory.mktemp("models")
    pathlib.Path(export_run(trained_run, str(folder))).rename(folder / "7")
    return folder / "7"


@pytest.fixture(scope="module")
def server(version):
    """A server of the version in a process of its own: what it printed."""
    command = [sys.executable, "-I", str(SERVER), str(version)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield json.loads(process.stdout.readline())  # leaving closes its input, which ends it


@pytest.fixture(scope="module")
def client():
    """The module that users copy."""
    spec = importlib.util.spec_from_file_location("client", SERVING / "client.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", params=["Rest", "Grpc"])
def asked(request, client, server):
    return getattr(client, request.param)(f"127.0.0.1:{server[request.param.lower()]}")


@pytest.fixture(scope="module")
def signatures(version):
    return tf.saved_model.load(str(version)).signatures


def columns_of_the_log(rows: int = 5) -> dict[str, list]:
    """Returns rows of the log as a user has them: plain lists, with ids that a float64 does not hold."""
    raw = next(LOG.batches())
    columns = {name: raw[name][:rows].tolist() for name in FEATURES if name != "history"}
    columns["brand"] = [str(value, "utf-8") if isinstance(value, bytes) else value for value in columns["brand"]]
    columns["history"] = np.resize(raw["item_id"], (rows, 3)).tolist()
    columns["user_id"] = [2**53 + 1 + row for row in range(rows)]
    return columns


def direct(signatures, signature: str, columns: dict[str, list]) -> dict[str, np.ndarray]:
    """Returns the outputs of the SavedModel itself."""
    specs = signatures[signature].structured_input_signature[1]
    tensors = {name: tf.constant(values, specs[name].dtype) for name, values in columns.items()}
    return {name: tensor.numpy() for name, tensor in signatures[signature](**tensors).items()}


def assert_equal(answer: dict[str, list], expected: dict[str, np.ndarray]) -> None:
    assert answer.keys() == expected.keys() > {"pctr", "pcvr", "pctcvr"}
    for name, values in expected.items():
        np.testing.assert_allclose(answer[name], values, rtol=1e-6)


def one_user(columns: dict[str, list]) -> dict[str, list]:
    return {name: values[:1] if name in USER else values for name, values in columns.items()}


def test_the_server_has_nothing_of_the_package(server):
    assert "tensorflow" in server["packages"]
    assert not {"hm3_tf", "data_pipeline"} & set(server["packages"])


def test_rows_are_answered_as_by_the_model(asked, signatures):
    columns = columns_of_the_log()
    assert_equal(asked.predict(columns), direct(signatures, "serving_default", columns))


def test_the_items_of_one_user_are_answered_as_by_the_model(asked, signatures):
    columns = one_user(columns_of_the_log())
    answer = asked.predict(columns, "rank")
    assert len(answer["pcvr"]) == 5
    assert_equal(answer, direct(signatures, "rank", columns))


def test_serialized_examples_are_sent_as_bytes(asked, signatures):
    feature = tf.train.Feature(int64_list=tf.train.Int64List(value=[2**53 + 1]))
    example = tf.train.Example(features=tf.train.Features(feature={"user_id": feature})).SerializeToString()
    assert not example.isascii(), "no text, which JSON could hold"
    answer = asked.predict({"examples": [example, b""]}, "serving_examples")
    assert_equal(answer, direct(signatures, "serving_examples", {"examples": [example, b""]}))


def test_ids_above_two_to_the_53_are_told_apart(asked):
    columns = {name: values[:1] * 8 for name, values in columns_of_the_log().items()}
    ids = [2**53 + row for row in range(8)]
    assert len(set(map(float, ids))) < 8, "a float64 merges them"
    assert len(set(asked.predict({**columns, "user_id": ids})["pctr"])) == 8


def test_missing_values_are_sent(asked, signatures):
    columns = columns_of_the_log(rows=2)
    columns |= {"price": [float("nan"), 3], "brand": ["", "läden & söhne"], "user_id": [-(2**63), 1]}
    assert_equal(asked.predict(columns), direct(signatures, "serving_default", columns))


BAD = {
    "another column": ({"colour": ["red"]}, "serving_default", r"missing \[\], unknown \['colour'\]"),
    "another signature": ({}, "rnk", r"of \['rank', 'serving_default', 'serving_examples'\], got 'rnk'"),
    "text for an id": ({"user_id": ["u7"]}, "serving_default", "column 'user_id': expected DT_INT64, got 'u7'"),
    "a number for text": ({"brand": [3]}, "serving_default", "column 'brand': expected DT_STRING, got 3"),
    "a fraction for an id": (
        {"history": [[3, 1.5]]},
        "serving_default",
        "column 'history': expected DT_INT64, got 1.5",
    ),
    "a missing value": ({"price": [None]}, "serving_default", "column 'price': expected DT_FLOAT, got None"),
}


@pytest.mark.parametrize(("wrong", "signature", "message"), BAD.values(), ids=BAD)
def test_a_bad_request_is_named_before_it_is_sent(asked, wrong, signature, message):
    with pytest.raises(ValueError, match=message):
        asked.predict({**columns_of_the_log(rows=1), **wrong}, signature)


def test_a_column_that_is_left_out_is_named(asked):
    columns = columns_of_the_log()
    del columns["price"]
    with pytest.raises(ValueError, match=r"missing \['price'\], unknown \[\]"):
        asked.predict(columns)


def test_what_the_server_refuses_is_passed_on(asked):
    columns = columns_of_the_log()
    with pytest.raises(ValueError, match=r"127.0.0.1:\d+: .*"):
        asked.predict({**columns, "price": [1.0, 2.0]})


@pytest.mark.parametrize("kind", ["Rest", "Grpc"])
def test_another_model_is_not_found(client, server, kind):
    with pytest.raises(ValueError, match="Servable not found"):
        getattr(client, kind)(f"127.0.0.1:{server[kind.lower()]}", model="hm4")


@pytest.mark.parametrize("kind", ["Rest", "Grpc"])
def test_a_server_that_is_down_is_a_connection_error(client, kind):
    with pytest.raises(ConnectionError, match="127.0.0.1:1: "):
        getattr(client, kind)("127.0.0.1:1")


def test_the_port_of_grpc_is_no_port_of_rest(client, server):
    with pytest.raises(ConnectionError, match="expected an answer of TensorFlow Serving"):
        client.Rest(f"127.0.0.1:{server['grpc']}")


def post(server: dict, body: dict) -> dict:
    url = f"http://127.0.0.1:{server['rest']}/v1/models/hm3:predict"
    with urllib.request.urlopen(url, json.dumps(body).encode(), timeout=10) as response:
        return json.load(response)


def test_the_row_format_gives_what_the_column_format_gives(server, signatures):
    columns = columns_of_the_log()
    rows = [dict(zip(columns, values)) for values in zip(*columns.values())]
    predictions = post(server, {"instances": rows})["predictions"]
    answer = {name: [row[name] for row in predictions] for name in predictions[0]}
    assert_equal(answer, direct(signatures, "serving_default", columns))


@pytest.mark.parametrize("body", [{}, {"instances": [{"user_id": 3}]}, {"signature_name": "rnk", "inputs": {}}])
def test_a_bad_body_is_status_400_with_the_reason_in_json(server, body):
    with pytest.raises(urllib.error.HTTPError) as raised:
        post(server, body)
    assert raised.value.code == 400
    assert json.load(raised.value)["error"]


def test_the_client_is_short_enough_to_be_copied():
    assert len((SERVING / "client.py").read_text().splitlines()) < 80
