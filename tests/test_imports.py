"""Who may import whom, read from the sources; and what importing does and refuses."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hm3_tf.methods import METHODS

ROOT = Path(__file__).parents[1]
LEVELS = (
    ("hm3_tf", "hm3_tf.errors"),
    ("hm3_tf.behavior_graph", "hm3_tf.features", "hm3_tf.checks", "hm3_tf.preemption", "hm3_tf.ray_session"),
    ("hm3_tf.plain_scoring",),
    ("hm3_tf.methods", "hm3_tf.config", "hm3_tf.probability", "hm3_tf.progress", "hm3_tf.prefetch", "data_pipeline"),
    ("hm3_tf.layers", "hm3_tf.losses", "hm3_tf.metrics", "hm3_tf.exchange", "hm3_tf.optimizers"),
    ("hm3_tf.intervals", "hm3_tf.group_auc", "hm3_tf.tally", "hm3_tf.keras_metrics", "hm3_tf.calibration"),
    ("hm3_tf.curves",),
    ("hm3_tf.compare", "hm3_tf.slices", "hm3_tf.tables"),
    (
        "hm3_tf.network",
        "hm3_tf.debiased",
        "hm3_tf.transfer",
        "hm3_tf.gmcm",
        "hm3_tf.auxiliary",
        "hm3_tf.designs",
        "hm3_tf.model",
        "hm3_tf.one_user",
        "hm3_tf.compact_tables",
    ),
    ("hm3_tf.cluster", "hm3_tf.distribute", "hm3_tf.parameter_server"),
    ("hm3_tf.board", "hm3_tf.warm_start", "hm3_tf.workdir", "hm3_tf.metrics_log", "hm3_tf.checkpoints"),
    (
        *("hm3_tf.train", "hm3_tf.evaluate", "hm3_tf.predict", "hm3_tf.predict_ray", "hm3_tf.serving", "hm3_tf.export"),
        *("hm3_tf.versions", "hm3_tf.signatures", "hm3_tf.skew", "hm3_tf.warm_up", "hm3_tf.export_gate"),
    ),
    (
        *("hm3_tf.report", "hm3_tf.report.gather", "hm3_tf.report.svg", "hm3_tf.report.plots", "hm3_tf.report.page"),
        *("hm3_tf.report.validation", "hm3_tf.report.templates"),
    ),
    ("hm3_tf.experiment", "hm3_tf.experiment.measures", "hm3_tf.experiment.results", "hm3_tf.experiment.tables"),
    ("hm3_tf.experiment.plots",),
    ("hm3_tf.experiment.document", "hm3_tf.experiment.plan", "hm3_tf.experiment.cell", "hm3_tf.experiment.runner"),
    ("hm3_tf.launch", "hm3_tf.launch_ray"),
    (
        *("hm3_tf.config_files", "hm3_tf.cli", "hm3_tf.verbs", "hm3_tf.verbs.verb", "hm3_tf.verbs.shared"),
        *("hm3_tf.verbs.simulate", "hm3_tf.verbs.join", "hm3_tf.verbs.convert", "hm3_tf.verbs.validate"),
        *("hm3_tf.verbs.train", "hm3_tf.verbs.evaluate", "hm3_tf.verbs.predict", "hm3_tf.verbs.export"),
        *("hm3_tf.verbs.experiment", "hm3_tf.verbs.launch", "hm3_tf.verbs.report"),
    ),
    ("hm3_tf.__main__", "hm3_tf.launched"),
)
"""Modules from low to high; one may import its own level, without cycles, and those below. `data_pipeline` is whole."""

OF_THE_PIPELINE = {
    "hm3_tf",  # its version
    *("hm3_tf.errors", "hm3_tf.checks", "hm3_tf.behavior_graph", "hm3_tf.features"),
    *("hm3_tf.progress", "hm3_tf.ray_session"),
}
LAZY = {("hm3_tf", "hm3_tf.model"), ("hm3_tf", "hm3_tf.methods")}  # on first use of hm3_tf.build_model, hm3_tf.methods
PLAIN = ("hm3_tf", "hm3_tf.errors", "hm3_tf.behavior_graph", "hm3_tf.features", "hm3_tf.checks")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(p): p for package in ("hm3_tf", "data_pipeline") for p in (ROOT / package).rglob("*.py")}
TREES = {name: ast.parse(path.read_text()) for name, path in FILES.items()}


def imports_of(tree: ast.AST) -> set[str]:
    """Returns all modules that a source imports, at its top or anywhere within."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            below = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in FILES else node.module for name in below}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            found |= {argument.value for argument in node.args if isinstance(argument, ast.Constant)}
    return found


IMPORTS = {name: imports_of(tree) for name, tree in TREES.items()}
OURS = {name: {other for other in imports if other in FILES} for name, imports in IMPORTS.items()}


def level_of(name: str) -> int:
    package = "data_pipeline" if name.split(".")[0] == "data_pipeline" else name
    return next((i for i, level in enumerate(LEVELS) if package in level), -1)


@pytest.mark.parametrize("name", FILES)
def test_every_module_has_its_place_among_the_levels(name):
    assert level_of(name) >= 0, f"place {name} in LEVELS"


def test_the_levels_name_no_module_that_is_not_there():
    assert {name for level in LEVELS for name in level} <= set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_imports_go_to_the_same_level_or_below(name):
    above = {other for other in OURS[name] if level_of(other) > level_of(name) and (name, other) not in LAZY}
    assert not above, f"{name} imports {above}"


def test_imports_within_a_level_have_no_cycle():
    waiting = {name: {o for o in others if (name, o) not in LAZY} - {name} for name, others in OURS.items()}
    while free := {name for name, others in waiting.items() if not others & set(waiting)}:
        waiting = {name: others for name, others in waiting.items() if name not in free}
    assert not waiting, f"a cycle among {sorted(waiting)}"


@pytest.mark.parametrize("name", PLAIN)
def test_the_lowest_modules_need_the_standard_library_and_each_other_only(name):
    foreign = {module for module in IMPORTS[name] if module.split(".")[0] not in sys.stdlib_module_names}
    assert {module for module in foreign if (name, module) not in LAZY} <= {"hm3_tf.errors"}


@pytest.mark.parametrize("name", [name for name in FILES if level_of(name) == level_of("data_pipeline")])
def test_the_pipeline_knows_of_the_models_nothing_but_their_vocabulary(name):
    if name.startswith("data_pipeline"):
        assert {other for other in OURS[name] if other.startswith("hm3_tf")} <= OF_THE_PIPELINE


def methods_of_the_paper_in(tree: ast.AST) -> list[str]:
    """Returns what in a source asks for a method by its name, or names one of the constants."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Compare, ast.MatchValue, ast.Subscript)):
            texts = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
            found += [ast.unparse(node)] if texts & set(METHODS) else []
        elif isinstance(node, (ast.Name, ast.Attribute)):
            word = node.id if isinstance(node, ast.Name) else node.attr
            found += [ast.unparse(node)] if word in {name.upper() for name in METHODS} else []
        elif isinstance(node, ast.ImportFrom):
            found += [alias.name for alias in node.names if alias.name in {name.upper() for name in METHODS}]
    return found


@pytest.mark.parametrize("name", [name for name in FILES if name != "hm3_tf.methods"])
def test_no_code_outside_of_methods_asks_which_method_it_is(name):
    assert not methods_of_the_paper_in(TREES[name])


@pytest.mark.parametrize("text", ["if method.name == 'hm3': pass", "x = m.BASE", "match m:\n case 'esmm': pass"])
def test_code_that_asks_which_method_it_is_would_be_found(text):
    assert methods_of_the_paper_in(ast.parse(text))


CHAIN_FILES = ("behavior_graph", "probability", "layers", "losses", "network")


@pytest.mark.parametrize("name", CHAIN_FILES)
def test_the_files_of_the_chain_know_no_other_design(name):
    others = {f"hm3_tf.{module}" for module in ("gmcm", "debiased", "transfer", "designs")}
    assert not OURS[f"hm3_tf.{name}"] & others
    assert not [
        word
        for word in ("gmcm", "propensity", "imputation", "calibrator")
        if word in FILES[f"hm3_tf.{name}"].read_text().lower()
    ]


def mentions(tree: ast.AST, text: str) -> bool:
    return any(isinstance(node, ast.Constant) and node.value == text for node in ast.walk(tree))


@pytest.mark.parametrize("variable", ["TF_CONFIG", "SLURM_JOB_ID"])
def test_the_cluster_is_read_in_one_place(variable):
    assert [name for name, tree in TREES.items() if mentions(tree, variable)] == ["hm3_tf.cluster"]


def test_flags_are_read_in_one_place():
    readers = {name for name, imports in IMPORTS.items() if {"absl", "ml_collections"} & imports}
    assert {name for name in readers if not name.startswith("hm3_tf.verbs.")} == {"hm3_tf.config_files"}


def start_python(code: str, **environment: str) -> subprocess.Popen:
    """Starts Python on `code`, with the environment's Keras setting replaced by `environment`."""
    kept = {name: value for name, value in os.environ.items() if name != "TF_USE_LEGACY_KERAS"}
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**kept, "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("name", ["hm3_tf", "hm3_tf.cli", "hm3_tf.config", "hm3_tf.methods"])
def test_tensorflow_is_not_imported_by(name):
    process = start_python(f"import sys, {name}; print([m for m in sys.modules if 'tensorflow' in m or 'keras' in m])")
    output, errors = process.communicate(timeout=60)
    assert output == "[]\n", errors


STARTS = {
    "keras 3 is in use": "import tensorflow as tf; tf.keras.Model; import hm3_tf",
    "tensorflow is imported": (
        "import tensorflow as tf; import hm3_tf; assert tf.keras.Model.__module__.startswith('tf_keras')"
    ),
}


@pytest.fixture(scope="module")
def starts():
    """{case: (exit status, standard error)}, run beside each other: each takes seconds to import TensorFlow."""
    processes = {name: start_python(code) for name, code in STARTS.items()}
    return {name: (process.communicate(timeout=300)[1], process.returncode) for name, process in processes.items()}


REMEDY = "import hm3_tf before anything uses tf.keras, or set TF_USE_LEGACY_KERAS=1 in the environment"


def test_keras_3_that_is_already_in_use_is_refused_with_the_remedy(starts):
    errors, status = starts["keras 3 is in use"]
    assert status == 1
    assert (
        f"ImportError: hm3_tf needs Keras 2 (tf_keras), but tf.keras is already Keras 3 in this process; {REMEDY}"
        in errors
    )


def test_keras_2_is_taken_where_tensorflow_is_imported_before(starts):
    errors, status = starts["tensorflow is imported"]
    assert status == 0, errors


def test_an_environment_that_asks_for_keras_3_is_refused_with_the_remedy():
    process = start_python("import hm3_tf", TF_USE_LEGACY_KERAS="0")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"ImportError: hm3_tf needs Keras 2 (tf_keras), but TF_USE_LEGACY_KERAS='0'; {REMEDY}" in errors


@pytest.mark.parametrize("value", ["1", "True", "true"])
def test_an_environment_that_asks_for_keras_2_is_left_as_it_is(value):
    process = start_python("import os, hm3_tf; print(os.environ['TF_USE_LEGACY_KERAS'])", TF_USE_LEGACY_KERAS=value)
    output, errors = process.communicate(timeout=60)
    assert output == f"{value}\n", errors
