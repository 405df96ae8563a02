"""A server with TensorFlow Serving's two interfaces, on its own service definitions and plain TensorFlow.

    python tests/deploy/serving_server.py VERSION_FOLDER

It serves the SavedModel as the model `hm3` until its standard input ends, on ports that the system gives, and prints them
with the packages it has loaded: {"grpc", "rest", "packages"}. What it answers is what TensorFlow Serving documents and its
source does (api_rest.md, json_tensor.cc), its laxness included: unknown inputs of the column format pass.
"""

import base64
import concurrent.futures
import http.server
import json
import pathlib
import re
import sys
import threading

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf import json_format
from tensorflow.core.framework.types_pb2 import DataType
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel
from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2, prediction_service_pb2_grpc

PATH = re.compile(r"/v1/models/(?P<model>[^/:]+)(?:/versions/(?P<version>\d+))?(?P<verb>:predict|/metadata|)")
KINDS = {"DT_INT64": (int,), "DT_FLOAT": (int, float)}


class BadRequest(Exception):
    """The request is not one that the model can answer."""


class NotFound(Exception):
    """There is no such model or version."""


class Model:
    """A SavedModel's signatures by name."""

    def __init__(self, folder: pathlib.Path) -> None:
        (graph,) = SavedModel.FromString((folder / "saved_model.pb").read_bytes()).meta_graphs
        self.version = folder.name
        self.signatures = graph.signature_def
        self._loaded = tf.saved_model.load(str(folder))

    def check_name(self, name: str, version: str) -> None:
        if name != "hm3" or version not in ("", self.version):
            raise NotFound(f"Servable not found for request: Specific({name}, {version or 'latest'})")

    def inputs(self, signature: str) -> dict[str, str]:
        """Returns {input: name of its type}."""
        if signature not in self.signatures:
            raise BadRequest(f'Serving signature key "{signature}" not found.')
        return {name: DataType.Name(info.dtype) for name, info in self.signatures[signature].inputs.items()}

    def run(self, signature: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        types = self.inputs(signature)
        if inputs.keys() != types.keys():
            extra, missing = sorted(inputs.keys() - types.keys()), sorted(types.keys() - inputs.keys())
            raise BadRequest(f"input size does not match signature: extra {extra}, missing {missing}")
        try:
            tensors = {name: tf.constant(values) for name, values in inputs.items()}
            return {k: v.numpy() for k, v in self._loaded.signatures[signature](**tensors).items()}
        except (tf.errors.OpError, TypeError, ValueError) as error:
            raise BadRequest(str(error)) from error

    def metadata(self) -> get_model_metadata_pb2.GetModelMetadataResponse:
        answer = get_model_metadata_pb2.GetModelMetadataResponse()
        answer.model_spec.name, answer.model_spec.version.value = "hm3", int(self.version)
        found = get_model_metadata_pb2.SignatureDefMap(signature_def=dict(self.signatures))
        answer.metadata["signature_def"].Pack(found)
        return answer


class Service(prediction_service_pb2_grpc.PredictionServiceServicer):
    """The gRPC interface."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def _answer(self, spec, context, compute):
        try:
            self._model.check_name(spec.name, str(spec.version.value or ""))
            return compute()
        except NotFound as error:
            context.abort(grpc.StatusCode.NOT_FOUND, str(error))
        except BadRequest as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))

    def Predict(self, request, context):
        def compute():
            inputs = {name: tf.make_ndarray(proto) for name, proto in request.inputs.items()}
            outputs = self._model.run(request.model_spec.signature_name or "serving_default", inputs)
            protos = {name: tf.make_tensor_proto(values) for name, values in outputs.items()}
            return predict_pb2.PredictResponse(model_spec=request.model_spec, outputs=protos)

        return self._answer(request.model_spec, context, compute)

    def GetModelMetadata(self, request, context):
        return self._answer(request.model_spec, context, self._model.metadata)


def to_array(values, dtype: str) -> np.ndarray:
    """Returns the tensor of nested JSON lists; numbers have to be of the input's type, text is text or base64."""

    def leaf(value):
        if dtype == "DT_STRING" and isinstance(value, str):
            return value.encode()
        if dtype == "DT_STRING" and isinstance(value, dict) and set(value) == {"b64"}:
            return base64.b64decode(value["b64"], validate=True)
        if type(value) in KINDS.get(dtype, ()):
            return value
        raise BadRequest(f"JSON Value: {json.dumps(value)} is not of expected type: {dtype}")

    def convert(value):
        return [convert(item) for item in value] if isinstance(value, list) else leaf(value)

    try:
        return np.array(convert(values), tf.as_dtype(DataType.Value(dtype)).as_numpy_dtype)
    except (ValueError, OverflowError) as error:  # lists of unequal lengths, numbers out of range
        raise BadRequest(str(error)) from error


def by_column(instances: list, types: dict[str, str]) -> dict[str, list]:
    """Returns the columns of rows; a signature of one input takes its values without the name."""
    if len(types) == 1:
        (name,) = types
        instances = [row if isinstance(row, dict) and name in row else {name: row} for row in instances]
    for row in instances:
        if not isinstance(row, dict) or row.keys() != types.keys():
            raise BadRequest(f"expected the named inputs {sorted(types)} in each instance, got {json.dumps(row)}")
    return {name: [row[name] for row in instances] for name in types}


def predict(model: Model, body: dict) -> dict:
    """Returns the answer to a request of either format."""
    signature = body.get("signature_name", "serving_default")
    types = model.inputs(signature)
    if ("instances" in body) == ("inputs" in body):
        raise BadRequest("expected one of 'instances' and 'inputs'")
    columns = by_column(body["instances"], types) if "instances" in body else body["inputs"]
    if not isinstance(columns, dict):
        columns = dict.fromkeys(types, columns)
    for name in types:
        if name not in columns:
            raise BadRequest(f"Missing named input: {name} in 'inputs' object.")
    outputs = model.run(signature, {name: to_array(columns[name], dtype) for name, dtype in types.items()})
    lists = {name: in_decimals(values) for name, values in outputs.items()}
    if "inputs" in body:
        return {"outputs": lists if len(lists) > 1 else next(iter(lists.values()))}
    rows = [dict(zip(lists, row)) if len(lists) > 1 else row[0] for row in zip(*lists.values())]
    return {"predictions": rows}


def in_decimals(values: np.ndarray) -> list[float]:
    """Returns float32 as the shortest decimals that give it back."""
    return [float(str(value)) for value in values]


def rest_handler(model: Model) -> type[http.server.BaseHTTPRequestHandler]:
    """Returns the REST interface of a model."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def _answer(self, body: bytes | None) -> dict:
            match = PATH.fullmatch(self.path)
            if not match or (match["verb"] == ":predict") != (body is not None):
                raise BadRequest(f"Malformed request: {self.command} {self.path}")
            model.check_name(match["model"], match["version"] or "")
            if match["verb"] == "/metadata":
                return metadata_json(model)
            if match["verb"] == "":
                status = {"error_code": "OK", "error_message": ""}
                return {"model_version_status": [{"version": model.version, "state": "AVAILABLE", "status": status}]}
            try:
                request = json.loads(body)
            except ValueError as error:
                raise BadRequest(f"JSON Parse error: {error}") from error
            return predict(model, request)

        def _send(self, body: bytes | None) -> None:
            try:
                status, answer = 200, self._answer(body)
            except NotFound as error:
                status, answer = 404, {"error": str(error)}
            except BadRequest as error:
                status, answer = 400, {"error": str(error)}
            text = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def do_GET(self) -> None:
            self._send(None)

        def do_POST(self) -> None:
            self._send(self.rfile.read(int(self.headers["Content-Length"])))

        def log_message(self, *_) -> None:
            pass

    return Handler


def metadata_json(model: Model) -> dict:
    answer = json_format.MessageToDict(model.metadata(), preserving_proto_field_name=True)
    found = answer["metadata"]["signature_def"]
    return {"model_spec": answer["model_spec"], "metadata": {"signature_def": found}}


def main(folder: str) -> None:
    """Serves until standard input ends, so that no server outlives the process that started it."""
    model = Model(pathlib.Path(folder))
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(2))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Service(model), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), rest_handler(model))
    threading.Thread(target=web.serve_forever, daemon=True).start()
    packages = sorted({name.partition(".")[0] for name in sys.modules})
    print(json.dumps({"grpc": port, "rest": web.server_address[1], "packages": packages}), flush=True)
    sys.stdin.read()
    server.stop(None).wait()


if __name__ == "__main__":
    main(sys.argv[1])
