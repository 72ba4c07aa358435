"""SGLang servers of a run on several hosts: host 0 gives them weights, and all hosts draw from them."""

import threading
from pathlib import Path

import jax
import pytest
import shared_sglang
from fakes import small_model
from scripted_server import ScriptedServer
from shared_hosts import Party
from shared_sglang import ADAPTERS, PARAMS, ask, groups_of, request

from atgrpo_jax.common.errors import ConfigError, RunError
from atgrpo_jax.engines.sglang import fleet, pushes
from atgrpo_jax.models.transformer import PolicyWeights, init_params

# Fixtures
folder = shared_sglang.folder
server = shared_sglang.server
make = shared_sglang.make

OTHERS = PolicyWeights(init_params(small_model(), jax.random.key(1)))


@pytest.fixture
def party():
    made = Party(2)
    yield made
    made.close()


@pytest.fixture
def engines(make, party):
    """Builds an engine on each host, and pushes the first weights."""

    def build(*servers, **settings):
        made = party(lambda hosts: make(*servers, hosts=hosts, **settings))
        for error in made:
            if isinstance(error, BaseException):
                raise error
        return made

    return build


@pytest.fixture
def push(party):
    def run(both, *args):
        assert party(lambda hosts: both[hosts.index].push_weights(*args)) == [None, None]

    return run


def updates(server):
    return server.bodies("/update_weights_from_disk")


def test_host_0_gives_the_weights_and_all_hosts_draw_from_them(server, engines, push, tmp_path):
    both = engines(server)
    (first,) = updates(server)
    push(both, "shared", OTHERS, 8)
    assert len(updates(server)) == 2 and not Path(first["model_path"]).exists()
    assert len(list((tmp_path / "weights").iterdir())) == 1  # host 0's, with the newest weights
    drawn = [ask(engine, request(instance=i))[0] for i, engine in enumerate(both)]
    assert {sample.version for group in drawn for sample in group} == {8}
    assert len(groups_of(server)) == 2 and len(updates(server)) == 2
    assert both[0].usage.push_bytes == both[1].usage.push_bytes > 0
    assert both[0].version("shared") == both[1].version("shared") == 8
    both[1].close()
    assert Path(server.pushed).is_dir()
    both[0].close()
    assert not Path(server.pushed).parent.exists()


def test_names_of_adapters_are_told(folder, engines, push):
    with ScriptedServer(folder, lora=True) as server:
        both = engines(server, weights=ADAPTERS, initial_names={"a": "base", "b": "base"})
        push(both, "b", ADAPTERS["b"], 8)
        told = [len(server.bodies(f"/{what}_lora_adapter")) for what in ("load", "unload")]
        assert told == [3, 1] and len(updates(server)) == 1 and len(server.adapters) == 2
        for engine in both:
            ask(engine, request(policy="b"))
        assert {body["lora_path"] for body in server.bodies("/generate")} < set(server.adapters)
        assert told == [len(server.bodies(f"/{what}_lora_adapter")) for what in ("load", "unload")]


def test_a_server_that_lost_its_weights_gets_them_from_the_host_that_draws(server, engines, party):
    """Other hosts may draw from it meanwhile: what it draws is not cut off."""
    both = engines(server)
    server.restart()
    (group,) = ask(both[1], request())
    assert [sample.version for sample in group] == [7] * 3 and both[1].retries == 1
    assert updates(server)[1] == updates(server)[0] and updates(server)[0]["abort_all_requests"] is False
    ask(both[0], request())
    assert len(updates(server)) == 2 and both[0].retries == 0
    server.restart()
    drawn = party(lambda hosts: ask(both[hosts.index], request(instance=hosts.index))[0])  # both at once
    assert [sample.version for group in drawn for sample in group] == [7] * 6
    assert len(updates(server)) <= 4 and [engine.retries <= 2 for engine in both] == [True, True]


def test_what_host_0_did_not_reach_gets_the_weights_later(folder, engines, push, monkeypatch):
    monkeypatch.setattr(fleet, "REST_S", 0.0)
    with ScriptedServer(folder) as near, ScriptedServer(folder) as far:
        both = engines(near, far)
        far.spoilt = {"/update_weights_from_disk": "503"}
        push(both, "shared", OTHERS, 8)
        assert near.version != far.version
        far.spoilt = {}
        ask(both[1], *(request(instance=i) for i in range(8)))  # some of them prefer each server
        assert near.version == far.version and both[1].retries == 0
        assert groups_of(near) and groups_of(far)


def test_if_host_0_cannot_write_the_others_end_and_no_leaf_is_left(server, engines, party, monkeypatch):
    both = engines(server)
    taken = [[], []]  # shapes of leaves, by host
    here = threading.local()
    whole = pushes.whole_leaves

    def counted(tree):
        for leaf in whole(tree):
            taken[here.index].append(leaf.shape)
            yield leaf

    def full(*args, whole):
        next(whole)
        raise OSError(28, "No space left on device")

    def work(hosts):
        here.index = hosts.index
        try:
            both[hosts.index].push_weights("shared", OTHERS, 8)
        except RunError as error:
            raise hosts.leave(error) from None

    monkeypatch.setattr(pushes, "whole_leaves", counted)
    monkeypatch.setattr(pushes.hf, "save", full)
    own, other = party(work)
    assert isinstance(own, RunError) and str(own).startswith("cannot write weights for the servers")
    assert isinstance(other, RunError) and str(other) == f"host 0: {own}"
    assert taken[0] == taken[1] == [leaf.shape for leaf in jax.tree.leaves(PARAMS)]


def test_hosts_divide_what_the_servers_draw_at_the_same_time(server, engines):
    _, engine = engines(server, groups=4)
    ask(engine, *(request(instance=i) for i in range(9)))
    assert server.most == 2


def test_several_hosts_start_no_servers(make, party):
    with pytest.raises(ConfigError, match="urls is empty: for a run on several hosts start servers yourself"):
        make(hosts=party.hosts[0])
