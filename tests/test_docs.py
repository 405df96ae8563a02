"""The README and the docs: their commands parse, their code runs, what they name exists."""

import doctest
import importlib
import json
import os
import pathlib
import re
import shlex

import pytest

from data_pipeline import schema as schemas
from hm3_tf.cli import VERBS, _split
from hm3_tf.verbs.verb import parse

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
CONFIGS = sorted((ROOT / "configs").glob("*.py"))


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


DOCTESTS = (
    *("hm3_tf.behavior_graph", "hm3_tf.probability", "hm3_tf.metrics", "data_pipeline.sources.named_behaviors"),
    *("hm3_tf.experiment.measures", "hm3_tf.experiment.results", "data_pipeline.event_join"),
)


@pytest.mark.parametrize("name", DOCTESTS)
def test_the_code_of_the_docstrings_runs(name):
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted and not found.failed


def test_every_module_with_code_in_its_docstrings_is_tested():
    paths = [path for package in ("hm3_tf", "data_pipeline") for path in (ROOT / package).rglob("*.py")]
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths if ">>> " in path.read_text()}
    assert names == set(DOCTESTS)


def commands(text: str) -> list[list[str]]:
    joined = text.replace("\\\n", " ")
    return [shlex.split(line.split(" #")[0]) for line in joined.splitlines() if re.match(r"\s*hm3 \w+ --", line)]


COMMANDS = {page: [words for block in blocks(page.read_text(), "bash") for words in commands(block)] for page in PAGES}


@pytest.mark.parametrize("words", [words for found in COMMANDS.values() for words in found], ids=" ".join)
def test_the_commands_of_the_pages_are_understood(words):
    own, command = _split(words[1], words[2:])
    assert parse(words[1], VERBS[words[1]], own)
    assert not command or parse(command[0], VERBS[command[0]], command[1:])


def test_the_readme_shows_every_verb():
    assert {words[1] for words in COMMANDS[PAGES[0]]} | {"simulate"} == set(VERBS)


def test_the_makefile_uses_flags_that_exist():
    makefile = (ROOT / "Makefile").read_text().replace("$(HM3)", "hm3").replace("\t", "")
    found = commands(makefile)
    assert found
    for words in found:
        assert parse(words[1], VERBS[words[1]], words[2:])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_a_config_opens_with_a_command_that_is_understood(path):
    found = commands(path.read_text())
    assert found and any(f"--config=configs/{path.name}" in word for words in found for word in words)
    for words in found:
        assert parse(words[1], VERBS[words[1]], words[2:])


@pytest.mark.parametrize("block", blocks(PAGES[0].read_text(), "python"), ids=["build_model", "own_funnel"])
def test_the_python_of_the_readme_runs(block, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo-out").mkdir()
    os.symlink(data.path, tmp_path / "demo-out" / "data")
    exec(compile(block, "README.md", "exec"), {})


def test_the_schema_of_the_docs_is_a_schema():
    (text,) = blocks((ROOT / "docs" / "data_format.md").read_text(), "json")
    schema = schemas.from_json(text)
    assert json.loads(text)["levels"][2]["values"] == list(schema.levels[2].values)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_exist(page):
    text = page.read_text()
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
    named = re.findall(r"`((?:hm3_tf|data_pipeline|tests|configs|deploy|benchmarks|docs)/[\w./]+)`", text)
    for link in links:
        assert (page.parent / link).exists(), link
    for name in named:
        assert (ROOT / name).exists(), name


def test_the_tests_that_the_paper_map_names_exist():
    sources = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for name in re.findall(r"`(test_\w+)`", (ROOT / "docs" / "paper_map.md").read_text()):
        assert f"def {name}(" in sources, name


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "benchmarks" / "results.md"], ids=lambda page: str(page.relative_to(ROOT))
)
def test_no_figure_is_left_to_be_filled_in(page):
    assert not re.search(r"@[A-Z]+@", page.read_text())
