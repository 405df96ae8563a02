"""A connection to Ray: to a cluster that is there, or to one of this machine alone that lasts as long as the connection."""

import contextlib
import importlib
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator
from typing import Any

from hm3_tf.errors import Hm3Error

_LOCAL = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # what binds all of Ray's processes to 127.0.0.1, on Linux too
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
}
_ANSWER_S = 10.0


@contextlib.contextmanager
def connected(address: str | None, cpus: int) -> Iterator[Any]:
    """Yields Ray, connected within the block. A connection that the process has is used, and left as it is.

    Args:
      address: Of the cluster: "host:port", or "auto" on a machine of it; None for a Ray of this machine, which is bound to
        127.0.0.1, has no dashboard, and of which nothing is left after the block.
      cpus: What such a Ray takes the machine's cores to be: the number of tasks at a time.

    Yields:
      The module ray, which must not be imported before: a Ray of this machine is told by the environment where to listen.

    Raises:
      Hm3Error: Ray is not installed, or there is no cluster at the address.
    """
    with contextlib.ExitStack() as stack:
        options: dict[str, Any] = {"address": address, "logging_level": "WARNING", "log_to_driver": False}
        if address is None:
            for name, value in {**_LOCAL, "RAY_AUTH_TOKEN": secrets.token_hex(32)}.items():
                os.environ.setdefault(name, value)  # for good: a process reads them once
            folder = tempfile.mkdtemp(prefix="hm3-ray-")
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            options |= {"address": "local", "include_dashboard": False, "num_cpus": cpus, "_temp_dir": folder}
        ray = _import_ray()
        if not ray.is_initialized():
            stack.callback(ray.shutdown)
            try:
                _require_answer(address or "")
                ray.init(**options)
            except (OSError, RuntimeError, ValueError) as error:
                raise Hm3Error(
                    f"--ray_address: expected Ray at {address or 'this machine'}, got: {error}; see what ray status says there"
                ) from error
        yield ray


def _require_answer(address: str) -> None:
    """Checks that somebody listens at "host:port", for which Ray would wait for minutes.

    Raises:
      OSError: Nobody does.
    """
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "//" not in host:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_S):
            pass


def _import_ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ModuleNotFoundError as error:
        raise Hm3Error(
            f"--engine=ray: expected the packages of the extra 'ray', but {error.name} is not installed; "
            "pip install 'hm3-tf[ray]'"
        ) from error
