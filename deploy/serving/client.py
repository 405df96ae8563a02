"""Asks TensorFlow Serving for probabilities: {column: [a value a row]} in, {output: [a number a row]} out.

To be copied; values are those of the log:
    Rest("127.0.0.1:8501").predict({"user_id": [7, 7], "item_id": [12, 15]})["pctcvr"]
    Grpc("127.0.0.1:8500").predict({"user_id": [7], "item_id": [12, 15]}, "rank")["pctcvr"]
"""

import base64
import json
import urllib.request

import grpc  # these four are for Grpc alone: pip install tensorflow-serving-api
import tensorflow as tf
from tensorflow.core.framework.types_pb2 import DataType
from tensorflow_serving.apis import get_model_metadata_pb2, predict_pb2, prediction_service_pb2_grpc

TYPES = {"DT_INT64": (int,), "DT_FLOAT": (int, float), "DT_STRING": (str, bytes)}


class Rest:
    """A model over REST. It asks for the columns once: a version with others needs a new client."""

    def __init__(self, address: str, model: str = "hm3") -> None:
        self.address, self.model = address, model
        self.signatures = self._signatures()  # {signature: {column: type}}

    def predict(self, columns: dict[str, list], signature: str = "serving_default") -> dict[str, list[float]]:
        """Returns the outputs; raises ValueError for a bad request, ConnectionError where no server answers."""
        if (types := self.signatures.get(signature)) is None:
            raise ValueError(f"expected a signature of {sorted(self.signatures)}, got {signature!r}")
        if types.keys() != columns.keys():
            raise ValueError(f"{signature!r}: missing {[*types.keys() - columns]}, unknown {[*columns.keys() - types]}")
        for name, values in columns.items():
            if wrong := [value for value in self._leaves(values) if type(value) not in TYPES[types[name]]]:
                raise ValueError(f"column {name!r}: expected {types[name]}, got {wrong[0]!r}")
        return self._predict(columns, signature, types)

    def _leaves(self, values):
        return [leaf for value in values for leaf in self._leaves(value)] if isinstance(values, list) else [values]

    def _signatures(self):
        found = self._ask("/metadata")["metadata"]["signature_def"]["signature_def"].items()
        return {name: {k: v["dtype"] for k, v in one["inputs"].items()} for name, one in found if one.get("inputs")}

    def _predict(self, columns, signature, types):
        return self._ask(":predict", {"signature_name": signature, "inputs": columns})["outputs"]

    def _ask(self, path, body=None):
        data = body and json.dumps(body, default=lambda value: {"b64": base64.b64encode(value).decode()}).encode()
        try:
            return json.load(urllib.request.urlopen(f"http://{self.address}/v1/models/{self.model}{path}", data, 10))
        except urllib.error.HTTPError as error:
            raise ValueError(f"{self.address}: {error.code}: {error.read().decode()}") from error
        except Exception as error:
            raise ConnectionError(f"{self.address}: expected an answer of TensorFlow Serving, got {error}") from error


class Grpc(Rest):
    """The same over gRPC."""

    def _signatures(self):
        self._service = prediction_service_pb2_grpc.PredictionServiceStub(grpc.insecure_channel(self.address))
        request = {"model_spec": {"name": self.model}, "metadata_field": ["signature_def"]}
        answer = self._ask("GetModelMetadata", get_model_metadata_pb2.GetModelMetadataRequest(**request))
        found = get_model_metadata_pb2.SignatureDefMap.FromString(answer.metadata["signature_def"].value).signature_def
        return {n: {k: DataType.Name(v.dtype) for k, v in one.inputs.items()} for n, one in found.items() if one.inputs}

    def _predict(self, columns, signature, types):
        inputs = {name: tf.make_tensor_proto(values, DataType.Value(types[name])) for name, values in columns.items()}
        spec = {"name": self.model, "signature_name": signature}
        outputs = self._ask("Predict", predict_pb2.PredictRequest(model_spec=spec, inputs=inputs)).outputs
        return {name: tf.make_ndarray(tensor).tolist() for name, tensor in outputs.items()}

    def _ask(self, method, request):
        try:
            return getattr(self._service, method)(request, timeout=10)
        except grpc.RpcError as error:
            down = error.code().name in ("UNAVAILABLE", "DEADLINE_EXCEEDED")
            raise (ConnectionError if down else ValueError)(f"{self.address}: {error.details()}") from error
