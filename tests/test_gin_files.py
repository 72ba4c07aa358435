"""Every shipped gin file builds, says what it is, and has no macro or scope that nothing refers to."""

import pytest
from reference import SIZES, make, make_tokenizer

from atgrpo_jax.config import GIN_FOLDER, load, render

FILES = sorted(GIN_FOLDER.glob("*.gin"))


def test_there_are_some():
    assert {"plan.gin", "plan_10x10.gin", "smoke.gin"} <= {path.name for path in FILES}
    assert not (GIN_FOLDER / "__init__.py").exists()  # it would hide the gin library


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    make(folder, "Qwen3", SIZES | {"vocab_size": 300, "num_key_value_heads": 2})
    make_tokenizer(folder)
    return folder


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_it_builds(path, tmp_path, model_folder):
    # Unused macros, scopes and parts are errors of load.
    bindings = [f"MODEL = '{model_folder}'"] if "%MODEL" in path.read_text() else []
    experiment = load(path.name, bindings)
    copy = tmp_path / "copy.gin"
    copy.write_text(render(experiment))
    assert load(str(copy)) == experiment


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_its_header_says_what_it_is_and_how_to_run_it(path):
    header = path.read_text().split("\nfrom ")[0].split("\ninclude")[0]
    assert all(line.startswith("#") or not line for line in header.splitlines())
    assert f"--gin_file={path.name}" in header
    assert "CPU" in header  # on what, and how long
