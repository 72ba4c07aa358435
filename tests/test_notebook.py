"""docs/quickstart.ipynb runs from top to bottom, and a notebook survives what people do in one."""

import json
import math
import os
import re
import subprocess
import sys
import time
import venv
from pathlib import Path

import nbclient
import nbformat
import pytest
from jupyter_client.manager import start_new_kernel

ROOT = Path(__file__).parents[1]
FILE = ROOT / "docs" / "quickstart.ipynb"
NOTEBOOK = nbformat.read(FILE, as_version=4)
CODE = [cell for cell in NOTEBOOK.cells if cell.cell_type == "code"]


def kernel_environment(folder):
    """As a person has it, with a home of its own."""
    own = {name: value for name, value in os.environ.items() if name != "JAX_DISABLE_MOST_OPTIMIZATIONS"}
    return own | {"HOME": str(folder), "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}


def test_it_is_kept_without_outputs():
    """They would be large (an episode's page, curves), say nothing that a run does not, and grow old."""
    nbformat.validate(NOTEBOOK)
    assert all(cell.outputs == [] and cell.execution_count is None for cell in CODE)
    assert NOTEBOOK.metadata.kernelspec.name == "python3"
    assert FILE.stat().st_size < 20_000


# The first cell


@pytest.fixture
def bare(tmp_path):
    """A Python without packages, whose pip writes down what it is asked for."""
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    (packages,) = (tmp_path / "venv").glob("lib/python3*/site-packages")
    (packages / "pip.py").write_text("import json, sys\njson.dump(sys.argv[1:], open('asked', 'w'))\n")
    (tmp_path / "work").mkdir()

    def run(source=None, **more):
        """What pip was asked for, if it was, and what Python printed."""
        text = CODE[0].source if source is None else CODE[0].source.replace('".."', repr(source))
        own = {"PATH": os.environ["PATH"]} | more
        done = subprocess.run(
            [tmp_path / "venv" / "bin" / "python", "-c", text],
            cwd=tmp_path / "work", env=own, capture_output=True, text=True,
        )  # fmt: skip
        asked = tmp_path / "work" / "asked"
        return json.loads(asked.read_text()) if asked.exists() else None, done.stderr

    return run


def test_it_installs_the_checkout_that_it_lies_in(bare, tmp_path):
    (tmp_path / "setup.py").touch()
    asked, error = bare()
    assert error == "" and asked[:2] == ["install", "--quiet"]
    assert re.fullmatch(rf"atgrpo_jax(\[tpu\]|\[gpu\])? @ {tmp_path.as_uri()}", asked[2]) and not asked[3:]


@pytest.mark.parametrize("source", ["git+https://a.b/c", "../atgrpo_jax-1.tar.gz"])
def test_it_installs_from_elsewhere(bare, tmp_path, source):
    (tmp_path / "atgrpo_jax-1.tar.gz").touch()
    asked, error = bare(source)
    place = source if source.startswith("git") else (tmp_path / "atgrpo_jax-1.tar.gz").as_uri()
    assert error == "" and asked[2].endswith(f" @ {place}")


def test_it_says_that_there_is_nothing_to_install(bare, tmp_path):
    asked, error = bare()
    assert asked is None and f"no checkout is in {tmp_path}: set SOURCE to where the package is" in error


def test_it_installs_nothing_if_the_package_is_there(bare):
    assert bare(PYTHONPATH=str(ROOT)) == (None, "")


# The whole


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The folder that the notebook ran in, and the notebook with its outputs."""
    folder = tmp_path_factory.mktemp("notebook")
    notebook = nbformat.read(FILE, as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}})
    client.execute(env=kernel_environment(folder))
    return folder, notebook


def outputs(notebook, beginning):
    """What the cells show that have a line which begins so: text that is printed, and the last value."""
    for cell in notebook.cells:
        if cell.cell_type == "code" and re.search(rf"^{re.escape(beginning)}", cell.source, re.MULTILINE):
            printed = "".join(one.text for one in cell.outputs if one.get("name") == "stdout")
            values = [one.data for one in cell.outputs if one.output_type == "execute_result"]
            yield printed, values[0] if values else {}


@pytest.mark.slow
@pytest.mark.long
def test_it_shows_numbers_and_curves(ran):
    _, notebook = ran
    tables = [printed for printed, _ in outputs(notebook, "show(")]
    assert [len(table.splitlines()) for table in tables] == [1 + 11, 1 + 7]
    for table in tables:
        head, first, *rows = table.splitlines()
        assert head.split() == ["step", "success", "signal", "validation"] and len(first.split()) == 2
        numbers = [float(word) for row in rows for word in row.split()[1:]]
        assert all(math.isfinite(number) and 0 <= number <= 1 for number in numbers)
        assert len(numbers) >= 2 * len(rows)
    ((_, curves),) = outputs(notebook, "Image(")
    assert len(curves["image/png"]) > 10_000
    ((_, summary),) = outputs(notebook, "summary = at.train_team(smoke")
    assert "'steps': 20" in summary["text/plain"]


@pytest.mark.slow
def test_it_draws_episodes(ran):
    _, notebook = ran
    drawn = [value for _, value in outputs(notebook, "at.tree(")]
    assert len(drawn) == 2
    for value, said in zip(drawn, ("scout", "reader: "), strict=True):
        html = value["text/html"]
        assert html.startswith('<iframe srcdoc="&lt;!doctype html&gt;') and html.endswith("</iframe>")
        assert said in value["text/plain"]


@pytest.mark.slow
def test_the_task_of_a_cell_is_checked_and_learnt(ran):
    _, notebook = ran
    ((printed, _),) = outputs(notebook, "problems = ")
    assert printed == "EvenOrOdd keeps the contract\n"
    ((printed, _),) = outputs(notebook, "summary = at.train_team(mine")
    before, after = map(int, re.findall(r"(\d+)% ", printed))
    assert after >= before + 15, printed


@pytest.mark.slow
def test_the_task_of_a_cell_is_in_the_runs_config_and_read_by_commands(ran):
    folder, _ = ran
    run = folder / "runs" / "even_or_odd"
    (kept,) = (run / "code").glob("kept_*.py")
    assert "class EvenOrOdd" in kept.read_text() and "class State" in kept.read_text()
    assert f"import {kept.stem}" in (run / "config.gin").read_text()
    command = [sys.executable, "-m", "atgrpo_jax.report", f"--run_dir={run}", "--text=1/train/0"]
    done = subprocess.run(
        command, cwd=folder, env=kernel_environment(folder), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "reader" in done.stdout and "judge" in done.stdout


# A kernel

TINY = """
import dataclasses
import atgrpo_jax as at
tiny = at.Experiment(
    task=at.PlanPath(size=3, workflow=at.Workflow(("scout", "mover"), turns=1)),
    model=at.Architecture(layers=1, width=16, mlp_width=16, heads=1, kv_heads=1, head_size=16),
    engine=at.LocalEngineConfig(slots=8), rollout=at.RolloutConfig(instances=2, candidates=2, max_tokens=4),
    batch=at.BatchConfig(row_tokens=64, rows=2), warm_start=None,
    evaluation=at.EvaluationConfig(instances=2, validation_instances=2), steps=10**6, checkpoint_every=10**6,
)
"""


@pytest.mark.slow
def test_a_cell_can_be_stopped_and_its_run_goes_on(tmp_path):
    """Stopped as it begins, and as it trains: the kernel lives, with its variables."""
    manager, client = start_new_kernel(cwd=str(tmp_path), env=kernel_environment(tmp_path))

    def run(text, until=None, after_s=0.0):
        """Runs a cell, and interrupts it after it has printed ``until``. Its error, and what it printed."""
        asked = client.execute(text)
        seen, error, interrupted = "", None, False
        while True:
            message = client.get_iopub_msg(timeout=300)
            if message["parent_header"].get("msg_id") != asked:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "stream":
                seen += content["text"]
            elif kind == "error":
                error = content["ename"]
            elif kind == "status" and content["execution_state"] == "idle":
                return error, seen
            if until is not None and until in seen and not interrupted:
                time.sleep(after_s)
                manager.interrupt_kernel()
                interrupted = True

    try:
        assert run(TINY + "kept = 7; print('x')") == (None, "x\n")
        error, seen = run("print('now', flush=True)\nat.train_team(tiny, 'long')", until="now", after_s=3.0)
        assert error in ("Stopped", "KeyboardInterrupt"), seen
        error, seen = run("at.train_team(tiny, 'long')", until="train 1/")
        assert error == "Stopped" and "train 1/" in seen, seen
        error, seen = run("at.train_team(tiny, 'long')", until="train ")
        assert error == "Stopped" and "going on after step" in seen, seen
        assert run("print(kept)") == (None, "7\n")
        assert manager.is_alive()
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
