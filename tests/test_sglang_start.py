"""What an SGLang engine refuses when it starts: settings, and servers that are not what a run needs."""

import dataclasses
import json

import pytest
import shared_sglang
from fakes import SMALL
from scripted_server import RAW, ScriptedServer
from shared_sglang import STOP, ask, request

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.types import Sampling
from atgrpo_jax.engines.sglang import fleet
from atgrpo_jax.engines.sglang.sglang import SGLangConfig
from atgrpo_jax.models.hf import hf

# Fixtures
folder = shared_sglang.folder
server = shared_sglang.server
make = shared_sglang.make


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"urls": ("localhost:30000",)}, "must look like http://host:30000"),
        ({"urls": ("http://127.0.0.1:99999",)}, "must look like http://host:30000"),
        ({"urls": ("http://[::1",)}, "must look like http://host:30000"),
        ({"urls": ("http:// x",)}, "must look like http://host:30000"),
        ({"urls": {"a": ()}}, "a policy without a server"),
        ({"urls": ("http://gpu-7:30000",)}, "servers on other hosts read weights from a folder"),
        ({"router": "http://127.0.0.1:1"}, "needs the urls of the servers behind it"),
        ({"groups": 0}, "at least 1"),
        ({"deadline_s": 0.0}, "must be positive"),
        ({"api_key_file": "a", "api_key_variable": "b"}, "in a file or in a variable"),
    ],
)
def test_the_config_refuses(wrong, says):
    with pytest.raises(ValueError, match=says):
        SGLangConfig(**wrong)


@pytest.mark.parametrize("fault", [*RAW, "endless", "gzip", "307"])
@pytest.mark.parametrize("path", ["/model_info", "/server_info", "/update_weights_from_disk"])
def test_other_answers_that_nobody_can_use_stop_the_run_in_words(server, make, path, fault):
    server.spoilt = {path: fault}
    with pytest.raises(RunError) as stopped:
        make(server)
    assert "\n" not in str(stopped.value) and len(str(stopped.value)) < 800


@pytest.mark.parametrize(
    "change",
    [
        {"max_req_input_len": "256"}, {"max_req_input_len": True}, {"skip_tokenizer_init": None},
        {"enable_lora": 1}, {"enable_deterministic_inference": "no"}, {"weight_version": 5},
        {"model_path": None}, {"tokenizer_path": ["x"]},
    ],
    ids=str,
)  # fmt: skip
def test_what_servers_say_about_themselves_has_its_types(server, make, change):
    for path in ("/server_info", "/model_info"):
        said = server.paths[path](None)
        server.paths[path] = lambda body, said=said: said | change
    with pytest.raises(RunError, match=f"answered {next(iter(change))} = .* does not answer as sglang 0.5"):
        make(server)


def test_a_server_of_another_model_context_or_kind_is_refused_before_anything(folder, make):
    with ScriptedServer(folder, context=4) as short:
        with pytest.raises(RunError, match="has room for 4 tokens, and answers alone may be 4"):
            make(short)
        short.paths["/server_info"] = lambda body: {}
        with pytest.raises(RunError, match="does not answer as sglang 0.5 does"):
            make(short)
    says = r"nobody here knows whether the weights .* fit .*; start it on a folder"
    with ScriptedServer(folder / "nowhere") as far, pytest.raises(RunError, match=says):
        make(far)
    other = hf.description(dataclasses.replace(SMALL, mlp_width=50), 64, (STOP,))
    (folder / "config.json").write_text(json.dumps(other))
    with ScriptedServer(folder) as wide:
        with pytest.raises(RunError, match="mlp_width = 50; shared has 48"):
            make(wide)
        assert not wide.bodies("/update_weights_from_disk")


def test_where_nobody_listens_is_told_at_once_and_a_silent_server_waited_for(folder, make, monkeypatch):
    says = "no server of shared: http://127.0.0.1:1/model_info: nobody listens there; start it first, or"
    with pytest.raises(RunError, match=says):
        make(urls=("http://127.0.0.1:1",), start_timeout_s=600.0)
    monkeypatch.setattr(fleet, "ASK_S", 0.1)
    with ScriptedServer(folder) as silent:
        silent.hang()
        try:
            with pytest.raises(RunError, match="no server of shared for 0.3 s: .*model_info: no answer in"):
                make(silent, start_timeout_s=0.3)
        finally:
            silent.go_on()


def test_a_server_that_ends_samples_elsewhere_or_decodes_them_otherwise_is_refused(folder, server, make):
    (folder / "generation_config.json").write_text('{"eos_token_id": [3, 11]}')
    with pytest.raises(RunError, match=r"also end samples with \[11\]; ours end with \[3\]: make"):
        make(server)
    (folder / "generation_config.json").unlink()
    server.info["skip_tokenizer_init"] = False
    texts = [str([i]) for i in range(64)]
    texts[3] = "<an end>"  # which we never show
    server.paths["/detokenize"] = lambda body: {"text": [texts[i] for (i,) in body["tokens"]]}
    ask(make(server), request(sampling=Sampling(1.0, 4, stop=("x",))))
    texts[9] = "[8]"
    with pytest.raises(RunError, match=r"has another tokenizer: token 9 is '\[8\]' there and '\[9\]' here"):
        make(server)
