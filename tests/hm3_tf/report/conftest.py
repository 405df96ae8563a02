"""Two runs of one log, trained for real, and the report of them."""

import pytest

from hm3_tf.report.gather import gather
from hm3_tf.report.page import render
from hm3_tf.train import train_and_evaluate
from hm3_tf.workdir import open_workdir
from tests.conftest import tiny_config

SLICES = ("position",)


@pytest.fixture(scope="session")
def runs(data, tmp_path_factory):
    """Runs of HM3 and ESMM, which has no levels between click and purchase."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hm3_tf.train.check_export", lambda run: None)
        for method in ("hm3", "esmm"):
            config = tiny_config(method, epochs=2, log_every_steps=2)
            train_and_evaluate(config, data.path, str(folder / method))
    return [open_workdir(str(folder / method)) for method in ("hm3", "esmm")]


@pytest.fixture(scope="session")
def report(runs, data):
    """What is said of both."""
    return gather(runs, data.split("test"), "test", SLICES)


@pytest.fixture(scope="session")
def page(report):
    """The page of it."""
    return render(report)
