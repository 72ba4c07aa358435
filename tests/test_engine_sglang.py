"""The SGLang engine against a scripted server; ``test_sglang_live.py`` has the real one."""

import asyncio
import contextlib
import dataclasses
import html
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path
from urllib.parse import quote, quote_plus

import jax
import pytest
from aiohttp import web
from fakes import SMALL, small_model
from safetensors.numpy import save_file
from scripted_server import RAW, ScriptedServer

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.types import Address, GroupKey, Sampling
from atgrpo_jax.engines.protocol import Request, Served
from atgrpo_jax.engines.sglang import draws, fleet, processes, secrets, servers
from atgrpo_jax.engines.sglang.background import Background
from atgrpo_jax.engines.sglang.processes import ServerProcess
from atgrpo_jax.engines.sglang.published import Published
from atgrpo_jax.engines.sglang.servers import sampling_params
from atgrpo_jax.engines.sglang.sglang import SGLangConfig
from atgrpo_jax.models.hf import hf
from atgrpo_jax.models.lora import LoraConfig, init_adapter
from atgrpo_jax.models.transformer import PolicyWeights, init_params

MODEL, STOP = small_model(), 3
ABOUT = hf.description(SMALL, 64, (STOP,))
PARAMS = init_params(MODEL, jax.random.key(0))
ADAPTERS = {n: PolicyWeights(PARAMS, init_adapter(PARAMS, jax.random.key(i), 2)) for i, n in enumerate("ab")}
FOUR = Sampling(1.0, 4)


@pytest.fixture
def folder(tmp_path):
    """What a server was started on."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(ABOUT))
    return tmp_path / "model"


@pytest.fixture
def server(folder):
    with ScriptedServer(folder) as server:
        yield server


@pytest.fixture
def make(tmp_path):
    """Builds engines, and closes them."""
    made = []

    def build(*servers, weights=None, initial_names=None, **settings):
        initial_names = initial_names or {"shared": "shared"}
        defaults = {
            "urls": tuple(s.url for s in servers),
            "folder": str(tmp_path / "weights"),
            "start_timeout_s": 0.5,
            "deadline_s": 20.0,
        }
        served = Served(
            models=dict.fromkeys(initial_names, MODEL),
            meshes={},
            sources=dict.fromkeys(initial_names, ABOUT),
            stop_ids=(STOP,),
            decode=str,
            initial_names=initial_names,
            lora=LoraConfig(rank=2),
            longest_answer=4,
            candidates=3,
        )
        engine = SGLangConfig(**defaults | settings).build(served)
        made.append(engine)
        for policy, own in (weights or {"shared": PolicyWeights(PARAMS)}).items():
            engine.push_weights(policy, own, 7)
        return engine

    yield build
    for engine in made:
        engine.close()


def request(instance=0, k=3, policy="shared", prompt=(5, 6, 7), sampling=FOUR, turn=0):
    key = GroupKey(1, "train", instance, 0, turn, "a")
    return Request(policy, prompt, tuple(Address(0, key, i) for i in range(k)), sampling)


def groups_of(server):
    """The bodies of all requests for groups."""
    return [body for body in server.bodies("/generate") if isinstance(body["input_ids"][0], list)]


def ask(engine, *requests):
    async def everything():
        return await asyncio.gather(*(engine.sample(r) for r in requests))

    return asyncio.run(everything())


def test_a_group_is_one_request_after_its_prompt(server, make):
    engine = make(server)
    (samples,) = ask(engine, request())
    prompt, group = server.bodies("/generate")
    assert prompt["input_ids"] == [5, 6, 7] and prompt["sampling_params"]["max_new_tokens"] == 0
    assert group["input_ids"] == [[5, 6, 7]] * 3 and group["return_logprob"]
    assert [s.tokens for s in samples] == [
        tuple(server._one([5, 6, 7], {}, f"{group['rid']}_{k}", 4)["output_ids"]) for k in range(3)
    ]
    assert all(s.version == 7 and s.finish == "length" for s in samples)
    assert samples[0].logprobs == pytest.approx((-0.5, -0.6, -0.7, -0.8))
    assert engine.usage.tokens == 12 and engine.usage.prompt_tokens == 3 and engine.usage.known_tokens == 2
    assert group["sampling_params"] == sampling_params(FOUR, (STOP,))  # no seeds: not honoured here


def test_every_setting_is_sent_so_that_no_default_of_the_servers_counts():
    sent = sampling_params(Sampling(0.7, 9, top_k=5, top_p=0.9, min_p=0.1, stop=("x",)), (3, 4))
    assert sent["temperature"] == 0.7 and sent["max_new_tokens"] == 9 and sent["top_k"] == 5
    assert sent["top_p"] == 0.9 and sent["min_p"] == 0.1 and sent["stop"] == ["x"]
    assert sent["stop_token_ids"] == [3, 4] and sent["repetition_penalty"] == 1.0
    assert sent["skip_special_tokens"] is False and sent["no_stop_trim"] is True
    assert sampling_params(Sampling(), ())["top_k"] == -1


@pytest.mark.parametrize(
    "change", [{"banned": (1,)}, {"min_tokens": 2}, {"pattern": "a+"}], ids=lambda change: next(iter(change))
)
def test_settings_under_which_logprobs_would_be_others_are_refused(change):
    with pytest.raises(RunError, match=rf"Sampling.{next(iter(change))} = .* the in-process engine has both"):
        sampling_params(Sampling(1.0, 4, **change), ())


def test_seeds_are_sent_where_they_are_honoured(server, make, monkeypatch):
    about = server._server_info(None) | {"enable_deterministic_inference": True}
    monkeypatch.setattr(server, "_server_info", lambda body: about)
    ask(make(server), request(), request())
    seeds = [[p["sampling_seed"] for p in b["sampling_params"]] for b in groups_of(server)]
    assert len(set(seeds[0])) == 3 and seeds[0] == seeds[1]


TRIED_AGAIN = (
    "408", "429", "500", "503", "closed", "cut", "no json", "one missing", "no logprobs", "a logprob less",
    "too many", "no count", "wrong id", "nan", "stopped early", "aborted", "another version", "two versions",
    "restarted", *RAW, "endless", "gzip", "307", "true for an id", "id 3.0", "logprob of 400 digits",
)  # fmt: skip


@pytest.mark.parametrize("fault", TRIED_AGAIN)
def test_a_group_that_came_back_wrong_is_drawn_again_whole(server, make, fault, capsys):
    engine = make(server)
    server.faults = [fault]
    (samples,) = ask(engine, request())
    assert len(samples) == 3 and all(len(s.tokens) == 4 and s.version == 7 for s in samples)
    assert engine.retries == 1 and "is drawn again" in capsys.readouterr().err
    assert server.version == engine._fleets["shared"].state  # a server that lost its weights has them again
    updates = len(server.bodies("/update_weights_from_disk"))
    assert updates == (2 if fault == "restarted" else 1)


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
def test_what_servers_say_about_themselves_has_its_types(server, make, monkeypatch, change):
    for name in ("_server_info", "_model_info"):
        said = getattr(server, name)(None)
        monkeypatch.setattr(server, name, lambda body, said=said: said | change)
    with pytest.raises(RunError, match=f"answered {next(iter(change))} = .* does not answer as sglang 0.5"):
        make(server)


def test_requests_go_to_no_other_address_than_that_of_the_config(folder, make):
    """A redirect would take the prompts with it, and the key where the hosts are the same."""
    with ScriptedServer(folder) as other, ScriptedServer(folder) as server:
        engine = make(server, attempts=2)
        server.elsewhere, server.faults = other.url, ["307"] * 9
        with pytest.raises(RunError, match=f"status 307 sends us to '{other.url}/generate'; only addresses"):
            ask(engine, request())
        assert not other.asked


def test_entries_that_a_server_repeats_are_left_out(server, make):
    engine = make(server)
    server.faults = ["repeated"]
    (samples,) = ask(engine, request())
    assert samples[0].logprobs == pytest.approx((-0.5, -0.6, -0.7, -0.8)) and engine.retries == 0


def test_nonsense_again_and_again_stops_the_run(server, make):
    engine = make(server, attempts=2)
    server.faults = ["wrong id"] * 5
    with pytest.raises(RunError, match=r"no sample at 1/train/0/0/0/a after 2 tries; .* outside the voc"):
        ask(engine, request())


def test_a_server_that_ends_samples_where_we_do_not_stops_the_run(server, make):
    """Drawn again until none ends so, samples would come from another distribution."""
    engine = make(server)
    server.faults = ["another end"]
    with pytest.raises(RunError, match=r"ended a sample with token \d+, and ours end with \[3\] only"):
        ask(engine, request())
    assert engine.retries == 0


def test_a_slow_server_gives_errors_at_the_deadline_and_is_told_to_stop(server, make):
    engine = make(server, deadline_s=0.5)
    server.faults = ["slow"]
    began = time.monotonic()
    (samples,) = ask(engine, request())
    assert time.monotonic() - began < 5
    assert [s.finish for s in samples] == ["error"] * 3 and samples[0].version == 7
    name = server.bodies("/generate")[1]["rid"]
    drawing = {f"{name}_{k}" for k in range(3)}
    _wait(lambda: {body["rid"] for body in server.bodies("/abort_request")} >= drawing)


def test_what_is_being_drawn_at_the_end_is_stopped(server, make):
    engine = make(server)
    server.faults = ["slow"]
    work = asyncio.run_coroutine_threadsafe(engine._sample(request()), engine._loop.loop)
    _wait(lambda: server.drawing == 1)
    engine.close()
    assert work.cancelled() and len(server.bodies("/abort_request")) == 4


def test_a_server_that_is_not_ready_by_the_deadline_ends_the_run(server, make, monkeypatch):
    engine = make(server, deadline_s=0.5)
    engine._fleets["shared"].servers[0].state = None
    monkeypatch.setattr(server, "_model_info", lambda body: time.sleep(1.0))
    with pytest.raises(RunError, match=r"no sample at .*: http.* was not ready to draw within .*deadline"):
        ask(engine, request())


def test_who_is_cancelled_behind_a_router_has_every_server_stop(folder, make):
    with ScriptedServer(folder) as one, ScriptedServer(folder) as other, ScriptedServer(folder) as router:
        engine = make(one, other, router=router.url, deadline_s=0.5)
        router.version, router.faults = engine._fleets["shared"].state, ["slow"]
        ask(engine, request())
        _wait(lambda: all(len(server.bodies("/abort_request")) == 4 for server in (one, other)))


def test_who_is_cancelled_has_the_server_stop(server, make):
    engine = make(server)
    server.faults = ["slow"]

    async def give_up():
        task = asyncio.ensure_future(engine.sample(request()))
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(give_up())
    _wait(lambda: len(server.bodies("/abort_request")) == 4)


def test_a_server_that_is_gone_ends_the_run_within_the_deadline(folder, make):
    with ScriptedServer(folder) as server:
        engine = make(server, deadline_s=1.0)
    began = time.monotonic()
    with pytest.raises(RunError, match=r"no sample at .* tries; the last: .*model_info"):
        ask(engine, request())
    assert time.monotonic() - began < 10


def test_another_server_draws_for_one_that_is_gone(folder, make):
    with ScriptedServer(folder) as one:
        with ScriptedServer(folder) as other:
            engine = make(one, other)
        groups = ask(engine, *(request(i) for i in range(8)))
        assert all(s.finish == "length" for samples in groups for s in samples)
        assert len(one.bodies("/generate")) == 16 and engine.retries > 0


def test_a_fleet_goes_on_without_a_server_until_it_answers_again(folder, make, capsys, monkeypatch):
    monkeypatch.setattr(fleet, "_REST_S", 0.1)
    with ScriptedServer(folder) as one:
        with ScriptedServer(folder) as other:
            engine = make(one, other)
        for version in (8, 9):
            engine.push_weights("shared", PolicyWeights(PARAMS), version)
        said = capsys.readouterr().err
        assert said.count("shared goes on without this server") == 1 and other.url in said
        ask(engine, *(request(i) for i in range(8)))
        with ScriptedServer(folder, port=other.port) as again:
            time.sleep(0.1)
            assert len(ask(engine, *(request(i) for i in range(8)))) == 8
            assert again.version == one.version and groups_of(again)
    with pytest.raises(RunError, match="the weights of shared did not reach a server: "):
        engine.push_weights("shared", PolicyWeights(PARAMS), 10)


@pytest.mark.parametrize("behind_router", [False, True])
def test_many_groups_do_not_wait_one_after_another_for_a_silent_server(
    folder, make, monkeypatch, behind_router
):
    for module in (fleet, servers):
        monkeypatch.setattr(module, "ASK_S", 0.3)
    with ScriptedServer(folder) as one, ScriptedServer(folder) as silent, ScriptedServer(folder) as router:
        routed = {"router": router.url} if behind_router else {}
        engine = make(one, silent, deadline_s=2.0, **routed)
        router.version = engine._fleets["shared"].state
        silent.hang()
        try:
            for server in engine._fleets["shared"].servers:
                server.state = None
            assert len(ask(engine, *(request(i) for i in range(24)))) == 24
        finally:
            silent.go_on()


@pytest.fixture
def impatient(monkeypatch):
    for module in (draws, fleet, servers):
        monkeypatch.setattr(module, "ASK_S", 0.3)
    monkeypatch.setattr(fleet, "_REST_S", 60.0)


def on(fleet, server, count):
    """Instances whose groups go to that server first."""
    keys = (request(instance).addresses[0].group for instance in range(1000))
    first = (key.instance for key in keys if fleet.choose(key, 0).url == server.url)
    return [next(first) for _ in range(count)]


def test_another_server_draws_for_one_that_hangs(folder, make, impatient, capsys):
    with ScriptedServer(folder) as one, ScriptedServer(folder) as silent:
        engine = make(one, silent, deadline_s=4.0)
        instances = on(engine._fleets["shared"], silent, 6)
        silent.hang()
        try:
            for part in (instances[:3], instances[3:]):
                groups = ask(engine, *map(request, part))
                assert all(s.finish == "length" for samples in groups for s in samples)
        finally:
            silent.go_on()
        assert len(groups_of(silent)) <= 3  # those after the first ones are not sent to it at all
    assert capsys.readouterr().err.count("shared goes on without this server") == 1


def test_a_server_that_draws_nothing_is_left_out_until_it_is_healthy(folder, make, impatient, monkeypatch):
    """It answers everything else at once."""
    with ScriptedServer(folder) as one, ScriptedServer(folder) as slow:
        engine = make(one, slow, deadline_s=4.0)
        team = engine._fleets["shared"]
        (server,) = (server for server in team.servers if server.url == slow.url)
        first, second, third = on(team, slow, 3)
        slow.faults, slow.sick = ["slow"] * 9, True
        assert ask(engine, request(first))[0][0].finish == "length" and server.late == 1
        ask(engine, request(second))
        assert len(groups_of(slow)) == 1 and not server.late - 1
        server.down = 0.0, server.down[1]  # its rest is over
        ask(engine, request(second))
        assert len(groups_of(slow)) == 1 and "draws nothing" in server.down[1]
        slow.faults, slow.sick, server.down = [], False, (0.0, server.down[1])
        ask(engine, request(third))
        assert len(groups_of(slow)) == 2 and not server.late and not server.down[1]


def test_a_server_that_is_late_again_and_again_rests_longer(folder, make):
    with ScriptedServer(folder) as one, ScriptedServer(folder) as other:
        team = make(one, other)._fleets["shared"]
        rests = []
        for _ in range(8):
            team.servers[0].down = 0.0, ""
            team.late(team.servers[0])
            rests.append(round(team.servers[0].down[0] - time.monotonic()))
        assert rests == [5, 10, 20, 40, 80, 160, 300, 300] and team.servers[0].state is None


@pytest.mark.parametrize("count", [1, 2])
def test_a_fleet_that_hangs_ends_the_run_in_words(folder, make, impatient, count):
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(ScriptedServer(folder)) for _ in range(count)]
        engine = make(*silent, deadline_s=1.5)
        for server in silent:
            server.hang()
            stack.callback(server.go_on)
        says = r"no sample at 1/train/0/0/0/a within .*deadline_s = 1.5 s; .*: no answer any more, it hangs"
        with pytest.raises(RunError, match=says):
            ask(engine, request())


@pytest.mark.parametrize("answer", [{}, web.Response(status=404)], ids=["without weights", "not found"])
def test_a_server_that_names_no_weights_is_asked_again(server, make, monkeypatch, answer):
    engine = make(server)
    server.faults, answers = ["400"], [answer]
    known = server._model_info
    monkeypatch.setattr(server, "_model_info", lambda body: answers.pop() if answers else known(body))
    ask(engine, request())
    assert engine.retries == 1


def test_a_server_that_comes_back_without_its_weights_gets_them_again(folder, make):
    with ScriptedServer(folder) as server:
        engine = make(server)
    with ScriptedServer(folder, port=server.port) as again:
        ask(engine, request())
        assert again.version == engine._fleets["shared"].state
        assert len(again.bodies("/update_weights_from_disk")) == 1


def test_groups_of_an_instance_go_to_one_server_and_instances_to_all(folder, make):
    with ScriptedServer(folder) as one, ScriptedServer(folder) as other:
        engine = make(one, other)
        for turn in range(3):
            ask(engine, *(request(i, prompt=(i + 10, turn), turn=turn) for i in range(8)))
        seen = [{body["input_ids"][0][0] for body in groups_of(s)} for s in (one, other)]
        assert all(seen) and not seen[0] & seen[1]


def test_not_more_groups_than_asked_for_are_with_a_server(server, make):
    engine = make(server, groups=3)
    ask(engine, *(request(i) for i in range(12)))
    assert 1 < server.most <= 3


def test_weights_are_published_whole_and_the_last_ones_go(server, make, tmp_path):
    engine = make(server)
    (body,) = server.bodies("/update_weights_from_disk")
    assert body["flush_cache"] is True and body["weight_version"] == engine._fleets["shared"].state
    first = Path(body["model_path"])
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), PARAMS)
    for ours, theirs in zip(
        jax.tree.leaves(PARAMS), jax.tree.leaves(hf.load(str(first), shapes)), strict=True
    ):
        assert (ours == theirs).all()
    engine.push_weights("shared", PolicyWeights(PARAMS), 8)
    second = Path(server.bodies("/update_weights_from_disk")[1]["model_path"])
    assert second.is_dir() and not first.exists() and first.parent == second.parent
    assert engine.version("shared") == 8 and ask(engine, request())[0][0].version == 8
    assert engine.usage.push_bytes > 2 * sum(x.nbytes for x in jax.tree.leaves(PARAMS))
    engine.close()
    assert not first.parent.exists()


def test_a_server_that_a_run_before_has_pushed_to_serves_the_next(server, make):
    make(server).close()
    assert not Path(server.pushed).exists()
    assert len(ask(make(server), request())[0]) == 3


def test_an_update_that_a_server_does_not_take_is_an_error(server, make, monkeypatch):
    refuse = {"success": False, "message": "no such file"}
    monkeypatch.setattr(server, "_update_weights_from_disk", lambda body: refuse)
    with pytest.raises(RunError, match="the weights of shared did not reach a server: .*no such file"):
        make(server)
    monkeypatch.setattr(server, "_update_weights_from_disk", lambda body: {"success": True})
    with pytest.raises(RunError, match="names its weights default after an update"):
        make(server)


def test_adapters_have_a_new_name_for_every_version(folder, make):
    with ScriptedServer(folder, lora=True) as server:
        engine = make(server, weights=ADAPTERS, initial_names={"a": "base", "b": "base"})
        assert len(server.bodies("/update_weights_from_disk")) == 1 and len(server.adapters) == 2
        before = dict(server.adapters)
        ask(engine, request(policy="b"))
        (name,) = {body["lora_path"] for body in server.bodies("/generate")}
        assert "b-7-" in name and name in before
        engine.push_weights("b", ADAPTERS["b"], 8)
        assert len(server.adapters) == 2 and name not in server.adapters
        assert not Path(before[name]).exists()
        assert len(server.bodies("/update_weights_from_disk")) == 1  # the base stays
        server.restart()
        ask(engine, request(policy="b"))
        assert len(server.adapters) == 2 and len(server.bodies("/update_weights_from_disk")) == 2
    with ScriptedServer(folder) as bare, pytest.raises(RunError, match="takes no adapters; start it with"):
        make(bare, weights=ADAPTERS, initial_names={"a": "base", "b": "base"})


def test_an_answer_that_is_lost_does_not_end_the_run(folder, make, monkeypatch):
    """The server has done what it was asked for, and says so when it is asked again."""
    monkeypatch.setattr(fleet, "_REST_S", 0.1)
    with ScriptedServer(folder, lora=True) as server:
        engine = make(
            server, weights=ADAPTERS, initial_names={"a": "base", "b": "base"}, start_timeout_s=20.0
        )
        for path in ("/load_lora_adapter", "/unload_lora_adapter", "/update_weights_from_disk"):
            server.lost = [path]
            engine.push_weights("b", PolicyWeights(dict(PARAMS), ADAPTERS["b"].adapter), 8)
            assert not server.lost and len(server.adapters) == 2


def test_models_of_a_team_have_servers_of_their_own(folder, make):
    initial_names, weights = {"a": "a", "b": "b"}, {"a": PolicyWeights(PARAMS), "b": PolicyWeights(PARAMS)}
    with ScriptedServer(folder) as one, ScriptedServer(folder) as other:
        engine = make(weights=weights, initial_names=initial_names, urls={"a": (one.url,), "b": (other.url,)})
        ask(engine, request(policy="a"), request(policy="a", instance=1), request(policy="b"))
        assert len(one.bodies("/generate")) == 4 and len(other.bodies("/generate")) == 2
        with pytest.raises(RunError, match="name the servers of each of the models a, b"):
            make(one, other, weights=weights, initial_names=initial_names)
        with pytest.raises(RunError, match="urls names a, c; the models are a, b"):
            make(weights=weights, initial_names=initial_names, urls={"a": (one.url,), "c": (other.url,)})


def test_a_router_draws_and_the_servers_behind_it_take_the_weights(folder, make):
    with ScriptedServer(folder) as server, ScriptedServer(folder) as router:
        engine = make(server, router=router.url)
        router.version = engine._fleets["shared"].state
        ask(engine, request())
        assert len(router.bodies("/generate")) == 2 and not router.bodies("/update_weights_from_disk")
        assert not server.bodies("/generate") and len(server.bodies("/update_weights_from_disk")) == 1


def test_a_router_that_is_not_there_is_missed_before_anything(server, make):
    with pytest.raises(RunError, match=r"no server of shared: http://127.0.0.1:1/readiness: nobody"):
        make(server, router="http://127.0.0.1:1")
    with pytest.raises(RunError, match="does not answer as sglang or sglang-router does"):
        make(server, router=f"{server.url}/generate")


def test_requests_are_what_a_router_understands(folder, make, monkeypatch):
    """One name and one setting for all samples of a request, whatever the servers honour."""
    with ScriptedServer(folder) as server, ScriptedServer(folder) as router:
        about = server._server_info(None) | {"enable_deterministic_inference": True}
        monkeypatch.setattr(server, "_server_info", lambda body: about)
        engine = make(server, router=router.url)
        router.version = engine._fleets["shared"].state
        ask(engine, request())
        for body in router.bodies("/generate"):
            assert isinstance(body["rid"], str) and isinstance(body["sampling_params"], dict)


def test_all_servers_behind_a_router_get_their_weights_again(folder, make):
    """It does not say which of them answered with others. One that is down is left out."""
    with ScriptedServer(folder) as one, ScriptedServer(folder) as other, ScriptedServer(folder) as router:
        with ScriptedServer(folder) as down:
            engine = make(one, other, down, router=router.url)
        router.version = engine._fleets["shared"].state
        router.faults = ["another version"]
        one.restart()
        other.restart()
        (samples,) = ask(engine, request())
        assert len(samples) == 3 and engine.retries == 1
        assert [len(s.bodies("/update_weights_from_disk")) for s in (one, other, down)] == [2, 2, 1]


def test_a_server_of_another_model_context_or_kind_is_refused_before_anything(folder, make, monkeypatch):
    with ScriptedServer(folder, context=4) as short:
        with pytest.raises(RunError, match="has room for 4 tokens, and answers alone may be 4"):
            make(short)
        monkeypatch.setattr(short, "_server_info", lambda body: {})
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


def test_a_server_that_ends_samples_elsewhere_or_decodes_them_otherwise_is_refused(
    folder, server, make, monkeypatch
):
    (folder / "generation_config.json").write_text('{"eos_token_id": [3, 11]}')
    with pytest.raises(RunError, match=r"also end samples with \[11\]; ours end with \[3\]: make"):
        make(server)
    (folder / "generation_config.json").unlink()
    about = server._server_info(None) | {"skip_tokenizer_init": False}
    monkeypatch.setattr(server, "_server_info", lambda body: about)
    texts = [str([i]) for i in range(64)]
    monkeypatch.setattr(server, "_detokenize", lambda body: {"text": texts}, raising=False)
    ask(make(server), request(sampling=Sampling(1.0, 4, stop=("x",))))
    texts[9] = "[8]"
    with pytest.raises(RunError, match=r"has another tokenizer: token 9 is '\[8\]' there and '\[9\]' here"):
        make(server)


def test_requests_that_would_end_a_server_are_not_sent(server, make):
    engine = make(server)
    for wrong, says in (
        (request(prompt=(5, 64)), "token id 64 at 1/train/0/0/0/a: the vocabulary has 64"),
        (request(prompt=(-1,)), "token id -1"),
        (request(prompt=()), "token id -1"),
        (request(prompt=(5,) * 252), r"a prompt of 252 tokens .* and 4 to draw: .* have room for 256"),
        (request(sampling=Sampling(1.0, 4, stop=("x",))), "were started with --skip-tokenizer-init"),
        (request(policy="b"), "no weights were pushed for policy 'b'"),
    ):
        with pytest.raises(RunError, match=says):
            ask(engine, wrong)
    assert not server.bodies("/generate")


def test_what_a_server_refuses_is_not_asked_again(server, make, monkeypatch):
    engine = make(server)

    async def refuse(request, body):
        return web.json_response({"error": {"message": "temperature must be"}}, status=400)

    monkeypatch.setattr(server, "_generate", refuse)
    with pytest.raises(RunError, match="temperature must be .*at 1/train/0"):
        ask(engine, request())
    assert len(server.bodies("/generate")) == 1


def test_a_key_is_read_from_a_file_or_a_variable_and_written_nowhere(
    folder, make, tmp_path, monkeypatch, capsys
):
    secret = "s3cret"
    (tmp_path / "key").write_text(secret + "\n")
    monkeypatch.setenv("SERVER_KEY", secret)
    with ScriptedServer(folder, key=secret) as server:
        for given in ({"api_key_file": str(tmp_path / "key")}, {"api_key_variable": "SERVER_KEY"}):
            engine = make(server, **given)
            server.faults = ["500"]
            assert len(ask(engine, request())[0]) == 3
            assert secret not in repr(engine._config)
        with pytest.raises(RunError, match="wants an API key: SGLangConfig.api_key_file or"):
            make(server)
        with pytest.raises(RunError, match="nothing: No such file"):
            make(server, api_key_file="nothing")
        with pytest.raises(RunError, match="no API key in NO_SUCH"):
            make(server, api_key_variable="NO_SUCH")
    said = capsys.readouterr()
    assert "status 500" in said.err and secret not in said.err + said.out


def test_a_server_that_repeats_the_key_has_it_hidden(folder, make, monkeypatch, capsys):
    key = 's3cret/"<key>+'
    monkeypatch.setenv("SERVER_KEY", key)
    with ScriptedServer(folder, key=key) as server:
        engine = make(server, api_key_variable="SERVER_KEY")
        for fault in ("echo", "echo in JSON", "echo in a sample"):
            server.faults = [fault] * 9
            with pytest.raises(RunError) as stopped:
                ask(engine, request())
            words = "".join(traceback.format_exception(stopped.value)) + capsys.readouterr().err
            assert "****" in str(stopped.value) and "\x1b" not in words
            assert not re.search("s3cret", words)
    engine.close()
    assert not secrets._kept


@pytest.mark.parametrize(
    "text, says",
    [
        (b"one\ntwo\n", "a key is one line of printable ASCII"), (b"a\0b", "a key is one line"),
        (b"\xff\xfe\n", "plain text"), (b"", "no API key in"), ("clé".encode(), "a key is one line"),
        (b"two words", "a key is one line"), (b"x" * 9000, "a key is one line"),
        (None, "No such file"), ("pipe", "not a regular file"), ("folder", "directory"),
    ],
)  # fmt: skip
def test_key_files_that_cannot_be_are_told_without_what_is_in_them(tmp_path, text, says):
    path = tmp_path / "key"
    if text == "pipe":
        os.mkfifo(path)
    elif text == "folder":
        path.mkdir()
    elif text is not None:
        path.write_bytes(text)
    with pytest.raises(RunError, match=says) as refused:
        secrets.api_key(str(path), "")
    words = "".join(traceback.format_exception(refused.value))
    assert "\n" not in str(refused.value) and not any(part in words for part in ("two", "xff", "xxxx", "b'a"))


def test_keys_are_found_in_all_their_forms():
    key = "p+q/r s&<\"'"
    with secrets.kept(key), secrets.kept("other"):
        quoted = quote(key), quote(key, safe="").lower(), quote_plus(key)
        for form in (key, *quoted, json.dumps(key), html.escape(key)):
            assert set(secrets.hide(form)) <= set('*"'), form
        assert secrets.shown(["x" * 50 + "other" + "y" * 99]) == secrets.shown(
            ["x" * 50 + "*****" + "y" * 99]
        )
        assert secrets.plain("Other\n\x1b[31m\u202e tail") == "***** \\x1b[31m\\u202e tail"
    assert secrets.hide(key) == key


@pytest.mark.parametrize(
    "given",
    [
        {"urls": ("http://me:hunter2@127.0.0.1:1",)}, {"urls": "http://me:hunter2@127.0.0.1:1"},
        {"urls": {"a": ("me:hunter2@127.0.0.1",)}}, {"urls": ("http://127.0.0.1:1?key=hunter2",)},
        {"urls": ("http://127.0.0.1:1",), "router": "http://:hunter2@127.0.0.1"},
        {"urls": (["http://me:hunter2@127.0.0.1:1"],)},
    ],
)  # fmt: skip
def test_passwords_in_addresses_are_refused_and_not_shown(given):
    with pytest.raises(ValueError, match="a user, password or query in it; give http://host:port") as refused:
        SGLangConfig(**given)
    assert "hunter2" not in str(refused.value) and refused.value.__cause__ is None


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


def test_a_command_that_cannot_start_a_server_is_refused_at_once(make):
    with pytest.raises(RunError, match="'nosuch --flag': there is no such program"):
        make(command="nosuch --flag")
    with pytest.raises(RunError, match="No closing quotation"):
        make(command="sh -c 'x")
    with pytest.raises(RunError, match="has --api-key: everybody reads it"):
        make(command="python -m sglang.launch_server --api-key=s3cret")
    with pytest.raises(RunError, match=r"launch/nosuch.sh is no file in /"):
        make(command="bash launch/nosuch.sh")
    with pytest.raises(RunError, match=r'no sglang to start .* with: pip install "atgrpo_jax\[sglang\]"'):
        make()


def test_a_server_that_ends_while_it_starts_shows_its_last_words(make):
    with pytest.raises(RunError, match=r"ended while it started; exit code 3; the end .*\n.*out of memory"):
        make(command="sh -c 'echo out of memory; exit 3'", start_timeout_s=20.0)


def test_a_server_of_ours_ends_with_all_it_started(tmp_path):
    process = ServerProcess(["sh", "-c", "sleep 60 & echo $!; sleep 60"], tmp_path / "log")
    _wait(lambda: (tmp_path / "log").read_text().strip())
    child = int((tmp_path / "log").read_text())
    assert process.alive and _there(child)
    process.stop()
    assert not process.alive and not _there(child)


def test_a_server_of_ours_ends_when_we_are_killed(tmp_path):
    code = (
        "import sys, time; from pathlib import Path\n"
        "from atgrpo_jax.engines.sglang.processes import ServerProcess\n"
        "ServerProcess(['sh', '-c', 'echo $$; sleep 60'], Path(sys.argv[1])); time.sleep(60)"
    )
    log = tmp_path / "log"
    run = subprocess.Popen([sys.executable, "-c", code, str(log)])
    _wait(lambda: log.exists() and log.read_text().strip())
    server = int(log.read_text())
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    _wait(lambda: not _there(server))


def test_a_server_of_ours_ends_when_its_leash_is_killed(tmp_path):
    """With all that it started, before anybody asks."""
    process = ServerProcess(["sh", "-c", "sleep 60 & echo $! $$; sleep 60"], tmp_path / "log")
    _wait(lambda: (tmp_path / "log").read_text().strip())
    started = [int(pid) for pid in (tmp_path / "log").read_text().split()]
    os.kill(process.pid, signal.SIGKILL)
    _wait(lambda: not any(map(_there, started)))
    process.stop()


def test_the_end_of_a_long_log_is_shown(tmp_path):
    process = ServerProcess(["sh", "-c", "exit 3"], tmp_path / "log")
    _wait(lambda: not process.alive)
    (tmp_path / "log").write_bytes(b"\xff\n" * 50_000 + b"a\x1b[2J" + b"b" * 9000 + b"\nout of memory\n")
    lines = process.last_words().splitlines()
    assert len(lines) == 1 + processes.LAST_WORDS and lines[-1].strip() == "out of memory"
    assert max(map(len, lines[1:])) < 400 and "\x1b" not in lines[-2]


def test_weights_are_for_this_user_or_for_whom_a_folder_is_for(tmp_path):
    tmp_path.chmod(0o750)
    given, own = Published(str(tmp_path)), Published()
    assert given.root.stat().st_mode & 0o777 == 0o750 and own.root.stat().st_mode & 0o777 == 0o700
    given.close()
    own.close()


def test_what_a_killed_run_left_is_removed_and_room_is_asked_for_first(tmp_path):
    code = (
        "import os, sys; from atgrpo_jax.engines.sglang.published import Published;"
        "kept = Published(sys.argv[1]); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)])
    (left,) = tmp_path.iterdir()
    assert killed.returncode == -signal.SIGKILL
    own, here = Published(str(tmp_path)), socket.gethostname()
    elsewhere = tmp_path / left.name.replace(here, f"{here}-17")  # on a shared folder, whatever its lock says
    shutil.copytree(own.root, elsewhere)
    other = Published(str(tmp_path))
    assert not left.exists() and own.root.is_dir() and elsewhere.is_dir() and other.root != own.root
    with pytest.raises(RunError, match=r"GB left, and weights on their way to servers take 1000000.0 GB"):
        own.check_room(1e15)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot make a folder for weights in"):
        Published(str(tmp_path / "file" / "below"))


def test_weights_that_cannot_be_written_stop_the_run_in_a_line(tmp_path):
    """As on a full disk, which safetensors tells in an exception of its own."""
    published = Published(str(tmp_path))
    for write in (
        lambda folder: os.mkdir(f"{folder}/no/such"),
        lambda folder: save_file({}, f"{folder}/no/x"),
    ):
        with pytest.raises(
            RunError, match="cannot write weights for the servers to .*: .*No such file"
        ) as full:
            published.write("weights", write)
        assert "\n" not in str(full.value)
    published.close()


def test_what_an_interrupted_caller_waited_for_is_cancelled(caplog):
    background, ends = Background(), []

    async def endless():
        try:
            await asyncio.sleep(60)
        finally:
            ends.append(True)

    signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(KeyboardInterrupt):
            background.wait(endless())
    finally:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
    background.close()
    assert ends and not caplog.records


@pytest.mark.parametrize("command", ["", "sh -c 'sleep 600'"], ids=["theirs", "ours"])
def test_who_waits_for_a_server_hears_a_stop(folder, make, command):
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    with ScriptedServer(folder) as silent:
        silent.hang()
        try:
            signal.setitimer(signal.ITIMER_REAL, 1.0)
            with pytest.raises(KeyboardInterrupt):
                make(
                    *() if command else (silent,),
                    start_timeout_s=600.0,
                    **({"command": command} if command else {}),
                )
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            silent.go_on()


def _wait(what, seconds=10):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.05)


def _there(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")")[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
