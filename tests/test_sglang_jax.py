"""What of the sglang-jax engine runs everywhere, also without sglang-jax."""

import dataclasses
import sys
from importlib import metadata
from types import SimpleNamespace

import numpy as np
import pytest
from fakes import CharTokenizer, small_model
from shared_sglang_jax import MODEL, SIZES, STOP, request

from atgrpo_jax.arrays.mesh import MeshConfig
from atgrpo_jax.common.errors import ConfigError, RunError
from atgrpo_jax.common.types import Sample, Sampling
from atgrpo_jax.engines.sglang_jax import release, sglang_jax
from atgrpo_jax.engines.sglang_jax.release import check_installed
from atgrpo_jax.engines.sglang_jax.samples import check_sampling, cut, parameters, read
from atgrpo_jax.engines.sglang_jax.session import check_same, their_name
from atgrpo_jax.engines.sglang_jax.sglang_jax import SGLangJaxConfig, check_model
from atgrpo_jax.models.families.table import transformer
from atgrpo_jax.run import gin_config
from atgrpo_jax.run.experiment import Experiment


@pytest.mark.parametrize(
    "wrong",
    [
        {"context_length": 0},
        {"context_length": 70000},
        {"max_running_requests": 0},
        {"memory": 1.0},
        {"tensor": 0},
        {"devices": (0, 1)},
        {"tensor": 2, "devices": (1, 1)},
        {"prefill": 8, "page": 16},
        {"deadline_s": -1.0},
        {"batches": (0,)},
        {"page": "1"},
    ],
)
def test_config_refuses(wrong):
    with pytest.raises(ValueError, match=r"SGLangJaxConfig\."):
        SGLangJaxConfig(**wrong)


def test_an_experiment_takes_it_and_a_run_folder_gives_it_back(tmp_path):
    x = gin_config.load("smoke_sglang_jax.gin")
    assert isinstance(x.engine, SGLangJaxConfig)
    path = tmp_path / "copy.gin"
    path.write_text(gin_config.render(x))
    assert gin_config.load(str(path)) == x
    with pytest.raises(ValueError, match=r"Experiment.engine = 3"):
        dataclasses.replace(Experiment(task=x.task), engine=3)


def test_where_it_is_not_installed_an_error_says_what_to_do(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 11, 7))
    with pytest.raises(RunError, match=r'Python >= 3.12 .* this is 3.11; there: pip install "atgrpo_jax\['):
        check_installed()
    monkeypatch.setattr(sys, "version_info", (3, 12, 1))

    def found(version):
        def answer(_):
            if version is None:
                raise metadata.PackageNotFoundError
            return version

        monkeypatch.setattr(release.metadata, "version", answer)

    found(None)
    with pytest.raises(RunError, match=r'needs sglang-jax .* pip install "atgrpo_jax\[sglang-tpu\]"'):
        SIZES.build(None)
    found("0.0.2")
    with pytest.raises(RunError, match=r"knows sglang-jax 0.1.0rc0, and 0.0.2 is installed"):
        check_installed()


def test_several_hosts_are_refused(monkeypatch):
    monkeypatch.setattr(sglang_jax, "check_installed", lambda: None)
    with pytest.raises(ConfigError, match="its Engines are for a run on one host"):
        SIZES.build(SimpleNamespace(hosts=SimpleNamespace(count=2)))


def test_models_and_devices_it_cannot_serve_are_refused_before_it_starts():
    mesh = MeshConfig().build()
    check_model("a", MODEL, SIZES, mesh)
    gemma = transformer(dataclasses.replace(MODEL.architecture, family="gemma3_text"), 96)
    with pytest.raises(RunError, match=r"policy a: Architecture.family = 'gemma3_text': .* are tried"):
        check_model("a", gemma, SGLangJaxConfig(), MeshConfig().build())
    with pytest.raises(RunError, match=r"policy a: Architecture.head_size = 8: .* multiple of 128"):
        check_model("a", small_model(), SIZES, mesh)
    with pytest.raises(RunError, match=r"SGLangJaxConfig.tensor = 2 must divide Architecture.kv_heads = 1"):
        check_model("a", MODEL, dataclasses.replace(SIZES, tensor=2), mesh)
    with pytest.raises(RunError, match=r"devices = \(8,\): there are 8 devices, 1 in the policy's mesh"):
        check_model("a", MODEL, dataclasses.replace(SIZES, devices=(8,)), mesh)


@pytest.mark.parametrize(
    "rule",
    [{"banned": (1,)}, {"pattern": "a"}, {"min_tokens": 1}, {"top_k": 5}, {"top_p": 0.9}, {"min_p": 0.1}],
)
def test_settings_it_would_not_keep_are_refused(rule):
    check_sampling(Sampling(temperature=0.5, stop=("x",)))
    with pytest.raises(RunError, match=f"Sampling.{next(iter(rule))} = "):
        check_sampling(Sampling(**rule))


def test_seeds_are_int32_and_differ():
    asked = [parameters(Sampling(), address, (STOP,)) for address in request([1], k=100).addresses]
    seeds = [one["sampling_seed"] for one in asked]
    assert len(set(seeds)) == 100 and min(seeds) < 0
    assert all(-(2**31) <= seed < 2**31 for seed in seeds)


def test_names_are_sglang_jaxs():
    family = MODEL.family
    assert their_name(family, "layer_1/q/kernel") == "model.layers.1.self_attn.q_proj.weight"
    assert their_name(family, "layer_0/k/bias") == "model.layers.0.self_attn.k_proj.bias"
    assert their_name(family, "layer_0/k_norm/scale") == "model.layers.0.self_attn.k_norm.scale"
    assert their_name(family, "layer_0/mlp_norm/scale") == "model.layers.0.post_attention_layernorm.scale"
    assert their_name(family, "norm/scale") == "model.norm.scale"
    assert (their_name(family, "embedding"), their_name(family, "head")) == (
        "model.embed_tokens.embedding",
        "lm_head.embedding",
    )


@pytest.mark.parametrize(
    ("ours", "theirs", "says"),
    [
        ({"x": (1, 2)}, {"x": (2, 1)}, r"what is pushed has x \(1, 2\), sglang-jax's model has x \(2, 1\)"),
        ({"x": (1,)}, {"x": (1,), "y": (2,)}, r"pushed lacks y, sglang-jax's model has y \(2,\)"),
        ({"b": (1,), "a": (1,)}, {}, r"pushed has a \(1,\), sglang-jax's model lacks a"),
    ],
)
def test_the_first_difference_is_named(ours, theirs, says):
    check_same("p", theirs, theirs)
    with pytest.raises(RunError, match=f"policy p: .*{says}"):
        check_same("p", ours, theirs)


def test_an_answer_is_the_end_of_the_repeating_list():
    """As 0.1.0rc0 answered: after 50 tokens the list begins again."""
    entries = [[-0.1 * i, i, None] for i in range(51)]
    meta = {
        "finish_reason": {"type": "stop", "matched": 50},
        "completion_tokens": 51,
        "cached_tokens": 4,
        "output_token_logprobs": entries[:50] + entries,
    }
    answer = read(meta)
    assert answer.tokens == tuple(range(51)) and answer.known_tokens == 4
    np.testing.assert_allclose(answer.logprobs, -0.1 * np.arange(51))
    assert read(meta | {"finish_reason": {"type": "abort", "message": "Aborted"}}).finish == "error"
    with pytest.raises(RunError, match="told 3 logprobs of 51 tokens"):
        read(meta | {"output_token_logprobs": entries[:3]})


def test_a_stop_string_ends_a_sample_at_the_token_that_completes_it():
    decode = CharTokenizer().decode
    sample = Sample(tuple(map(ord, "abcabc")), (-1.0,) * 6, "length", 1)
    shorter = cut(sample, ("zz", "ca"), decode)
    assert (decode(shorter.tokens), shorter.logprobs, shorter.finish) == ("abca", (-1.0,) * 4, "stop")
    assert cut(sample, ("zz",), decode) == sample == cut(sample, (), decode)
