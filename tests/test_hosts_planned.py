"""A step over several hosts, as ``plan`` says it: the simulated rollout, the stages, what is refused."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from fakes import Sum

from atgrpo_jax.arrays.mesh import MeshConfig
from atgrpo_jax.common.errors import ConfigError
from atgrpo_jax.common.hosts import ALONE
from atgrpo_jax.engines.local.local import LocalEngineConfig
from atgrpo_jax.engines.protocol import EngineConfig
from atgrpo_jax.planning import hosts, times
from atgrpo_jax.planning.devices import DEVICES
from atgrpo_jax.planning.estimate import COLLECTIVE_S, HostWork, Setup, estimate, setup_of, speed_of
from atgrpo_jax.planning.events import Asked, Skew, Speed, rollout
from atgrpo_jax.planning.workload import Workload
from atgrpo_jax.rollout.team import Team
from atgrpo_jax.run.gin_config import load
from atgrpo_jax.tasks.workflow import Workflow
from atgrpo_jax.update.batch import BatchConfig

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def asked(*instances):
    """Instances with one episode each, given as lists of draws, which are lists of lengths."""
    longest = max(map(len, instances))
    samples = len(instances[0][0])
    tokens = np.ones((len(instances), 1, longest, samples), int)
    for number, draws in enumerate(instances):
        tokens[number, 0, : len(draws)] = draws
    return Asked(tokens, np.array([[len(draws)] for draws in instances]))


def seconds(one, speed, count=1, at_once=8, handed_out=True):
    return rollout(one, speed, count, at_once, handed_out).seconds


@pytest.mark.parametrize(
    ("one", "speed", "expected"),
    [
        # Each draw waits for the longest sample of the one before.
        (asked([[3, 5], [2, 1]]), Speed(slots=4, chunk=16, step_s=1), 5 + 2),
        # Four samples share two slots.
        (asked([[3, 3, 3, 3]]), Speed(slots=2, chunk=16, step_s=1), 6),
        # A chunk is over when a quarter of eight has ended, and when it is full.
        (asked([[1, 2, 3, 3, 9, 9, 9, 9]]), Speed(slots=8, chunk=4, step_s=0, chunk_s=1), 4),
        # What samples, prompts and the host take.
        (asked([[2, 2], [2, 2]]), Speed(4, 16, step_s=1, sample_s=10, prompt_s=100), 4 + 2 * 4 * 10 + 200),
        (asked([[2, 2], [2, 2]]), Speed(4, 16, step_s=1, chunk_s=10, live_s=100, turn_s=1000), 2424),
        # While all slots are in use, what the host does for others is hidden.
        (asked(*[[[2, 2]]] * 2), Speed(2, 16, step_s=1, turn_s=1), 2 + (2 + 0)),
        (asked(*[[[2, 2]]] * 2), Speed(2, 16, step_s=1, turn_s=1, take_s=5), 5 + 5 + 2 + 2),
    ],
)  # fmt: skip
def test_a_lane_by_hand(one, speed, expected):
    assert seconds(one, speed) == [expected]


def test_hosts_that_are_free_take_the_next_instance():
    """Of four instances of 9, 1, 9 and 1 tokens: fixed shares give all that is long to one host."""
    one = asked([[9]], [[1]], [[9]], [[1]])
    speed = Speed(slots=1, chunk=16, step_s=1)
    assert seconds(one, speed, count=2, at_once=1, handed_out=False) == [18, 2]
    played = rollout(one, speed, hosts=2, at_once=1)
    assert played.seconds == [10, 10] and played.instances == [2, 2] and played.tokens == [10, 10]
    assert played.spread == 1


def test_a_host_plays_so_many_at_once_and_some_may_get_none():
    one = asked(*[[[4]]] * 4)
    speed = Speed(slots=8, chunk=16, step_s=1)
    assert seconds(one, speed, count=2, at_once=2) == [4, 4]
    assert seconds(one, speed, count=2, at_once=1) == [8, 8]
    assert seconds(one, speed, count=8, at_once=1) == [4] * 4 + [0] * 4


def test_episodes_of_an_instance_are_played_side_by_side():
    one = Asked(np.array([[[[2], [2]], [[3], [9]]]]), np.array([[2, 1]]))
    assert seconds(one, Speed(slots=2, chunk=16, step_s=1)) == [4]


def test_lengths_have_the_mean_and_the_limit():
    one = Skew(mean=100, sigma=0.5, ends=0.5).asked(400, 1, turns=4, draws=2, samples=4, most=300, seed=0)
    assert one.tokens_IEGK.mean() == pytest.approx(100, rel=0.02)
    assert one.tokens_IEGK.max() == 300 and one.tokens_IEGK.min() >= 1
    assert set(one.draws_IE.ravel()) == {2, 4, 6, 8}
    assert np.mean(one.draws_IE == 2) == pytest.approx(0.5, abs=0.06)
    equal = Skew(mean=7, sigma=0).asked(2, 1, turns=4, draws=1, samples=2, most=300, seed=0)
    assert (equal.tokens_IEGK == 7).all() and (equal.draws_IE == 4).all()


@pytest.mark.parametrize("slots", [128, 24])
def test_the_lane_is_the_real_one(slots, monkeypatch):
    """The real player and engine, on a device that takes no time, make the chunks that are simulated."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import hosts_check

    case = hosts_check.Case("", instances=24, slots=slots, step_s=0.0)
    came = hosts_check.played_step(ALONE, case, seed=0)
    said = rollout(case.asked(0), case.speed(1, {"chunk_s": 1.0}), 1, case.at_once(1))
    assert came["draws"] == case.asked(0).draws_IE.sum()
    assert came["chunks"] == pytest.approx(said.slowest_s, rel=0 if slots == 128 else 0.03)


def experiment(**changes):
    x = dataclasses.replace(load("smoke.gin"), warm_start=None, batch=BatchConfig(128, 8))
    engine = LocalEngineConfig(slots=32, mesh=MeshConfig(data=8))
    return dataclasses.replace(x, **({"mesh": MeshConfig(fsdp=8), "engine": engine} | changes))


WORKLOAD = Workload(
    groups=32, prompt=20, longest_prompt=24, new=8, candidates=4, longest_answer=8, longest_group=56
)
FLAT = Skew(mean=5, sigma=0)
V5E = DEVICES["v5e"]
NO_WORK = HostWork(
    **dict.fromkeys((f.name for f in dataclasses.fields(HostWork)), 0.0) | {"gather_rate": 1.0}
)


def setup(count=2, **changes):
    x = experiment(**changes)
    return setup_of(x, x.engine.drawing(x.mesh), WORKLOAD, FLAT, count)


def test_what_is_in_flight():
    one = setup()
    assert (one.devices, one.players, one.shards, one.slots) == (4, 4, 4, 32)
    assert one.at_once == 4 and one.in_flight == 16  # of 8 instances, 4 samples each
    assert dataclasses.replace(setup(count=1), slots=8).at_once == 8
    few = LocalEngineConfig(slots=16, mesh=MeshConfig(data=2, fsdp=2, tensor=2))
    one = setup(engine=few)
    assert (one.players, one.shards, one.at_once, one.in_flight) == (1, 2, 2, 8)
    dealt = LocalEngineConfig(slots=16, mesh=MeshConfig(data=2, expert=4))
    one = setup(engine=dealt)
    assert (one.players, one.shards, one.gathering) == (1, 4, 1)  # no expert's matrix is gathered
    one = setup(task=Sum(Workflow((("a", "b"),), turns=2)))
    assert (one.turns, one.draws, one.groups) == (2, 1, 2)
    assert one.at_once == 4 and one.in_flight == 16  # of the 32 samples that are asked for


def test_the_stages_by_hand():
    """8 instances x 4 draws x 4 answers of 5 tokens, each after a prompt of 20: 32 groups of 40 tokens."""
    one = setup()
    near = dataclasses.replace(V5E, link=1e30)
    found = estimate(one, near, 0.5, FLAT, work=NO_WORK)
    assert found.tokens == 32 * 4 * 5
    # Three groups of 40 fit into a row of 128. Two minibatches of 16 groups fill 6 of their 8 rows each.
    assert found.filled == 32 * 40 / (2 * 8 * 128)
    computing = 32 * one.group_flop / (8 * V5E.flops * 0.5)
    assert found.stages["update"] == pytest.approx(computing / found.filled)
    # Four draws of 5 tokens, one after the other, of 16 samples at the same time; prompts aside.
    speed = dataclasses.replace(speed_of(one, near, 0.5, FLAT, NO_WORK), prompt_s=0.0)
    prompts = 16 * speed_of(one, near, 0.5, FLAT, NO_WORK).prompt_s
    assert found.stages["rollout"] == pytest.approx(20 * (speed.step_s + 16 * speed.sample_s) + prompts)
    assert found.longest_s == pytest.approx(20 * (speed.step_s + 4 * speed.sample_s))
    found = estimate(one, V5E, 0.5, FLAT, work=NO_WORK)
    half = one.numbers * 4 * (1 - 1 / 2)  # the other host's part, float32, one device a player
    assert found.stages["push"] == pytest.approx(half / (V5E.link * 0.5))
    pairs = dataclasses.replace(one, players=2, shards=2)  # of two devices each
    push_s = estimate(pairs, V5E, 0.5, FLAT, work=NO_WORK).stages["push"]
    assert push_s == pytest.approx(half / 2 / (V5E.link * 0.5))
    work = dataclasses.replace(NO_WORK, record_token_s=1.0, group_s=1.0, meeting_s=1.0)
    other = estimate(one, V5E, 0.5, FLAT, work=work).stages
    assert (other["record"], other["pack"], other["meetings"]) == (640, 32, 8)
    alone = estimate(hosts.alone(one), V5E, 0.5, FLAT, work=work).stages
    assert alone["gather"] == alone["meetings"] == alone["push"] == 0


def test_an_update_that_computes_takes_what_times_says():
    x = experiment()
    policies = type("Policies", (), {"meshes": {"shared": x.mesh}, "shapes": {"shared": ()}})
    full = dataclasses.replace(WORKLOAD, new=5)
    said = times.seconds(x, policies, full, V5E, 0.5)["update"][1]
    fast = dataclasses.replace(V5E, link=1e30)
    found = estimate(setup(), fast, 0.5, FLAT)
    assert found.stages["update"] * found.filled == pytest.approx(said)


def test_larger_players_take_shorter_steps_and_more_instances_wait_less():
    one = dataclasses.replace(setup(), instances=32, slots=128, numbers=1e9)
    skew = Skew(mean=5, sigma=1.0)

    def played(setup):
        return estimate(setup, V5E, 0.5, skew, work=NO_WORK)

    found = played(one)
    assert one.layers == 2 and COLLECTIVE_S == 1e-5  # 40 microseconds a step of a larger player
    large = played(dataclasses.replace(one, players=2, shards=2))
    assert large.stages["rollout"] < 0.7 * found.stages["rollout"]
    many = played(dataclasses.replace(one, instances=128, slots=512))
    assert many.tokens / many.played.slowest_s > 2 * found.tokens / found.played.slowest_s
    assert many.played.spread < found.played.spread


@pytest.mark.parametrize(
    ("changes", "count", "says"),
    [
        ({}, 3, r"--hosts=3: mesh data = 1, fsdp = 8, tensor = 1 has 8 devices"),
        ({"team": Team("full"), "mesh": MeshConfig(fsdp=4, policies=2)}, 2, r"MeshConfig.policies = 1"),
        (
            {"mesh": MeshConfig(data=1, tensor=8), "engine": LocalEngineConfig()},
            2,
            r"tensor must divide the 4",
        ),
        ({"engine": LocalEngineConfig()}, 2, r"do not lie within one of 2 hosts. Each host draws"),
        ({"engine": LocalEngineConfig(mesh=MeshConfig(data=2, fsdp=4))}, 4, r"more data and less fsdp"),
        (
            {"engine": LocalEngineConfig(mesh=MeshConfig(data=2, expert=4))},
            4,
            r"fsdp x expert x tensor do not lie",
        ),
        ({"engine": LocalEngineConfig(mesh=MeshConfig(data=4))}, 2, r"it must have all devices"),
    ],
)
def test_what_a_run_would_refuse(changes, count, says):
    if "tensor = 8" in str(changes.get("mesh")):
        changes = changes | {"batch": BatchConfig(128, 1)}
    with pytest.raises(ConfigError, match=says):
        hosts.check(experiment(**changes), count)
    hosts.check(experiment(), 2)


def test_the_report_names_what_waits_and_what_helps():
    x = experiment()
    lines = hosts.report(x, WORKLOAD, Skew(5, 0.8), V5E, 0.4, 2)
    assert lines[0] == "over 2 hosts with 4 devices each, if answers have 5 tokens in the mean (sigma 0.8):"
    assert lines[1] == "  samples in flight: 16 a host, 4 a player, in 16 slots a host"
    assert re.fullmatch(r"  rows of the update: [56]\d% full", lines[2])
    assert any("host 0 writes the episodes" in line for line in lines)
    assert any("times the tokens a second of one host" in line for line in lines)
    elsewhere = dataclasses.replace(x, engine=EngineConfig())
    assert hosts.report(elsewhere, WORKLOAD, FLAT, V5E, 0.4, 2) == [
        "over 2 hosts with 4 devices each: samples are drawn elsewhere, so nothing is said of the rollout"
    ]


def test_at_most_three_changes_are_named_and_only_those_that_gain():
    gains = {"a": 1.06, "b": 1.5, "c": 1.04, "d": 1.2, "e": 1.3}
    assert hosts.helpful(gains) == ["b", "e", "d"]
    assert hosts.helpful({"a": 1.06, "c": 1.04}) == ["a"]
    names = [name for name, _ in hosts.others(setup())]
    assert len(set(names)) == len(names) and "RolloutConfig.candidates = 8" in names
    for _, other in hosts.others(setup()):
        assert isinstance(other, Setup) and other != setup()
