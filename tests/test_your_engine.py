"""docs/your-engine.md: its engine is a whole one."""

import re
import sys
import types
from pathlib import Path

import jax
import pytest
from shared_local import MODEL, STOP, draw, many, params  # noqa: F401  (params: a fixture)

from atgrpo_jax.arrays.mesh import MeshConfig
from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.types import receipts
from atgrpo_jax.engines.gate import Gate, push
from atgrpo_jax.engines.protocol import EngineConfig, Served
from atgrpo_jax.models.lora import LoraConfig
from atgrpo_jax.models.transformer import PolicyWeights
from atgrpo_jax.run.gin_config import load

TEXT = (Path(__file__).parents[1] / "docs" / "your-engine.md").read_text()


@pytest.fixture(scope="module")
def plain():
    """The module that the page shows."""
    (source,) = re.findall(r"^```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
    module = sys.modules["plain"] = types.ModuleType("plain")
    exec(source, module.__dict__)
    yield module
    del sys.modules["plain"]


def served():
    return Served(
        models={"shared": MODEL},
        meshes={"shared": MeshConfig().build()},
        sources={},
        stop_ids=(STOP,),
        decode=str,
        initial_names={"shared": "shared"},
        lora=LoraConfig(),
        longest_answer=8,
        candidates=3,
    )


@pytest.mark.thorough
def test_it_passes_the_gate_and_the_audits_receipts(plain, params):  # noqa: F811
    engine = plain.PlainConfig().build(served())
    weights = {"shared": PolicyWeights(params)}
    push(engine, weights, 3)
    metrics = Gate({"shared": MODEL}, (STOP,), 1.0, 1e-3, 0).check(engine, weights, 3, False)
    assert metrics["policy/shared/gate_gap"] < 1e-4
    (request,) = many(1)
    samples = draw(engine, request)[0]
    asked = receipts(request.policy, request.prompt_ids, request.sampling, request.addresses)
    assert [sample.receipt for sample in samples] == asked
    assert samples == draw(engine, request)[0]  # an address has its own randomness
    engine.release()
    with pytest.raises(RunError, match="no weights were pushed"):
        draw(engine, request)


def test_its_gin_file_puts_it_in_the_place_of_the_shipped_one(plain, tmp_path):
    (gin,) = re.findall(r"^```\n(import plain.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
    (tmp_path / "plain_engine.gin").write_text(gin)
    assert load(str(tmp_path / "plain_engine.gin")).engine == plain.PlainConfig(most_tokens=128)


def test_what_a_config_need_not_say_has_defaults(plain):
    config = plain.PlainConfig()
    assert isinstance(config, EngineConfig) and config.longest_prompt(8) == 248
    assert config.devices_needed(MeshConfig(data=4)) == 4 and config.same_samples() is config
    assert config.check(MeshConfig()) is None and config.at_once is None
    with pytest.raises(NotImplementedError, match="EngineConfig has no method build"):
        EngineConfig().build(served())
    assert jax.tree.leaves(config.bytes_on_device(None)) == []
