"""SGLang servers that are gone, hang, lose their weights or lie behind a router."""

import contextlib
import time

import pytest
import shared_sglang
from aiohttp import web
from scripted_server import ScriptedServer
from shared_sglang import PARAMS, ask, groups_of, request

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.engines.sglang import draws, fleet, servers
from atgrpo_jax.models.transformer import PolicyWeights

# Fixtures
folder = shared_sglang.folder
server = shared_sglang.server
make = shared_sglang.make


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
    monkeypatch.setattr(fleet, "REST_S", 0.1)
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
        router.version = engine.fleets["shared"].state
        silent.hang()
        try:
            for server in engine.fleets["shared"].servers:
                server.state = None
            assert len(ask(engine, *(request(i) for i in range(24)))) == 24
        finally:
            silent.go_on()


@pytest.fixture
def impatient(monkeypatch):
    for module in (draws, fleet, servers):
        monkeypatch.setattr(module, "ASK_S", 0.3)
    monkeypatch.setattr(fleet, "REST_S", 60.0)


def test_behind_a_router_only_the_first_group_waits_for_a_silent_server(folder, make, impatient, capsys):
    """A group that the router had drawn says nothing of a server that does not hold its weights."""
    with ScriptedServer(folder) as one, ScriptedServer(folder) as silent, ScriptedServer(folder) as router:
        engine = make(one, silent, router=router.url, deadline_s=4.0)
        team = engine.fleets["shared"]
        router.version = team.state
        servers = {server.url: server for server in team.servers}
        for server in team.servers:
            server.state = None
        servers[one.url].down = 0.0, "it was silent"
        silent.hang()
        try:
            for instance in range(3):
                assert ask(engine, request(instance))[0][0].finish == "length"
                assert servers[silent.url].down[1] and servers[one.url].down == (0.0, "")
        finally:
            silent.go_on()
    assert capsys.readouterr().err.count("shared goes on without this server") == 1


def on(fleet, server, count):
    """Instances whose groups go to that server first."""
    keys = (request(instance).addresses[0].group for instance in range(1000))
    first = (key.instance for key in keys if fleet.choose(key, 0).url == server.url)
    return [next(first) for _ in range(count)]


def test_another_server_draws_for_one_that_hangs(folder, make, impatient, capsys):
    with ScriptedServer(folder) as one, ScriptedServer(folder) as silent:
        engine = make(one, silent, deadline_s=4.0)
        instances = on(engine.fleets["shared"], silent, 6)
        silent.hang()
        try:
            for part in (instances[:3], instances[3:]):
                groups = ask(engine, *map(request, part))
                assert all(s.finish == "length" for samples in groups for s in samples)
        finally:
            silent.go_on()
        assert len(groups_of(silent)) <= 3  # those after the first ones are not sent to it at all
    assert capsys.readouterr().err.count("shared goes on without this server") == 1


def test_a_server_that_draws_nothing_is_left_out_until_it_is_healthy(folder, make, impatient):
    """It answers everything else at once."""
    with ScriptedServer(folder) as one, ScriptedServer(folder) as slow:
        engine = make(one, slow, deadline_s=4.0)
        team = engine.fleets["shared"]
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
        team = make(one, other).fleets["shared"]
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
        says = r"no sample at 1/train/0/0/0/0/a within .*deadline_s = 1.5 s; .*: no answer any more, it hangs"
        with pytest.raises(RunError, match=says):
            ask(engine, request())


@pytest.mark.parametrize("answer", [{}, web.Response(status=404)], ids=["without weights", "not found"])
def test_a_server_that_names_no_weights_is_asked_again(server, make, answer):
    engine = make(server)
    server.faults, answers = ["400"], [answer]
    known = server.paths["/model_info"]
    server.paths["/model_info"] = lambda body: answers.pop() if answers else known(body)
    ask(engine, request())
    assert engine.retries == 1


def test_a_server_that_comes_back_without_its_weights_gets_them_again(folder, make):
    with ScriptedServer(folder) as server:
        engine = make(server)
    with ScriptedServer(folder, port=server.port) as again:
        ask(engine, request())
        assert again.version == engine.fleets["shared"].state
        assert len(again.bodies("/update_weights_from_disk")) == 1


def test_groups_of_an_instance_go_to_one_server_and_instances_to_all(folder, make):
    with ScriptedServer(folder) as one, ScriptedServer(folder) as other:
        engine = make(one, other)
        for turn in range(3):
            ask(engine, *(request(i, prompt=(i + 10, turn), turn=turn) for i in range(8)))
        seen = [{body["input_ids"][0][0] for body in groups_of(s)} for s in (one, other)]
        assert all(seen) and not seen[0] & seen[1]


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
        router.version = engine.fleets["shared"].state
        ask(engine, request())
        assert len(router.bodies("/generate")) == 2 and not router.bodies("/update_weights_from_disk")
        assert not server.bodies("/generate") and len(server.bodies("/update_weights_from_disk")) == 1


def test_a_router_that_is_not_there_is_missed_before_anything(server, make):
    with pytest.raises(RunError, match=r"no server of shared: http://127.0.0.1:1/readiness: nobody"):
        make(server, router="http://127.0.0.1:1")
    with pytest.raises(RunError, match="does not answer as sglang or sglang-router does"):
        make(server, router=f"{server.url}/generate")


def test_requests_are_what_a_router_understands(folder, make):
    """One name and one setting for all samples of a request, whatever the servers honour."""
    with ScriptedServer(folder) as server, ScriptedServer(folder) as router:
        server.info["enable_deterministic_inference"] = True
        engine = make(server, router=router.url)
        router.version = engine.fleets["shared"].state
        ask(engine, request())
        for body in router.bodies("/generate"):
            assert isinstance(body["rid"], str) and isinstance(body["sampling_params"], dict)


def test_all_servers_behind_a_router_get_their_weights_again(folder, make):
    """It does not say which of them answered with others. One that is down is left out."""
    with ScriptedServer(folder) as one, ScriptedServer(folder) as other, ScriptedServer(folder) as router:
        with ScriptedServer(folder) as down:
            engine = make(one, other, down, router=router.url)
        router.version = engine.fleets["shared"].state
        router.faults = ["another version"]
        one.restart()
        other.restart()
        (samples,) = ask(engine, request())
        assert len(samples) == 3 and engine.retries == 1
        assert [len(s.bodies("/update_weights_from_disk")) for s in (one, other, down)] == [2, 2, 1]
