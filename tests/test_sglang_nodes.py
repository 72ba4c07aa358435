"""Runs whose samples come from another node. One node learns, or two do; each node is a process."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from shared_hosts import LENGTHS, ended, left, process, start

from atgrpo_jax.engines.sglang.processes import free_port
from atgrpo_jax.engines.sglang.sglang import SGLangConfig
from atgrpo_jax.models.config import Architecture
from atgrpo_jax.models.hf import hf
from atgrpo_jax.run import gin_config
from atgrpo_jax.tokens.tokens import TinyTokenizer

SERVER = Path(__file__).with_name("drawing_server.py")
DOCS = Path(__file__).parents[1] / "docs" / "sglang.md"
MODEL = Architecture(layers=2, width=32, mlp_width=64, heads=2, kv_heads=1, head_size=16)  # smoke.gin's


@pytest.fixture(scope="module")
def serving(tmp_path_factory):
    """The address of a server on another node."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = TinyTokenizer()
    about = hf.description(MODEL, tokenizer.vocab_size, tokenizer.stop_ids)
    (folder / "config.json").write_text(json.dumps(about))
    port = free_port()
    with subprocess.Popen(
        [sys.executable, SERVER, str(port), folder],
        env=os.environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as server:  # fmt: skip
        assert server.stdout.readline() == "ready\n"
        yield f"http://127.0.0.1:{port}"
        server.stdin.close()


def arguments(folder, url):
    lines = f"""
from atgrpo_jax.engines.sglang import sglang
experiment.Experiment.engine = @sglang.SGLangConfig()
experiment.Experiment.steps = 2
sglang.SGLangConfig.urls = ("{url}",)
sglang.SGLangConfig.folder = "{folder}/shared"
mesh.MeshConfig.fsdp = 2
objectives.LossConfig.minibatches = 1
evaluation.EvaluationConfig.instances = 1
evaluation.EvaluationConfig.validation_instances = 1
experiment.Experiment.warm_start = None
"""
    (folder / "nodes.gin").write_text(lines)
    return [
        "--gin_file=smoke.gin", f"--gin_file={LENGTHS}", "--gin_file=nodes.gin", f"--run_dir={folder}/run"
    ]  # fmt: skip


@pytest.fixture(scope="module")
def one(tmp_path_factory, serving):
    """What a run of one learning node leaves."""
    folder = tmp_path_factory.mktemp("one")
    codes = ended([process(folder / "output.txt", *arguments(folder, serving))], 300)
    assert codes == [0], (folder / "output.txt").read_text()
    return folder


def test_the_lines_of_the_docs_are_a_config(tmp_path):
    lines, one_node = re.findall(r"```\n(from .*?)```", DOCS.read_text(), re.DOTALL)
    model = 'MODEL = "/shared/Qwen3-8B"\n'  # for the paper's files, which need that folder
    assert model in lines
    (tmp_path / "nodes.gin").write_text(lines.replace(model, ""))
    engine = gin_config.load(["smoke.gin", str(tmp_path / "nodes.gin")], []).engine
    assert engine == SGLangConfig(urls=("http://10.0.0.2:30000",), folder="/shared/weights")
    (tmp_path / "node.gin").write_text(one_node)
    x = gin_config.load(["smoke.gin", str(tmp_path / "node.gin")], [])
    assert x.engine == SGLangConfig(urls=("http://127.0.0.1:30000",)) and x.mesh.devices == 4


@pytest.mark.slow
def test_one_node_learns_and_another_serves(one):
    records = [json.loads(line) for line in (one / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(records) == 3
    for record in records:
        assert record["policy/shared/gate_gap"] < 1e-4 and record["perf/push_s"] > 0
    assert records[1]["policy/shared/logprob_gap"] < 1e-4 and records[1]["groups/signal"] > 0.5
    assert records[2]["policy/shared/gate_margin"] > 6  # the weights of a push are not those before it
    assert not list((one / "shared").iterdir())


@pytest.mark.slow
def test_two_nodes_learn_and_another_serves(one, serving, tmp_path):
    """Their parameters are split over both. They leave what one node with two devices leaves."""
    started = start(2, tmp_path, *arguments(tmp_path, serving))
    codes = ended(started, 300)
    assert codes == [0, 0], [(tmp_path / f"host_{i}.txt").read_text()[-2000:] for i in range(2)]
    records, episodes = left(tmp_path)
    assert (records, episodes) == left(one)
    assert not list((tmp_path / "shared").iterdir())
