"""Steps that are played while the one before is learned: by whom, checked how, and gone on from exactly."""

import dataclasses
import os
import shutil
import signal
import threading
from itertools import chain

import jax
import numpy as np
import pytest
from fakes import CharTokenizer, Longest, of_policy
from shared_trainer import Paid, experiment, honest
from test_partner_runs import Saved

from atgrpo_jax.arrays.mesh import MeshConfig
from atgrpo_jax.common.errors import ConfigError, RunError, Stopped
from atgrpo_jax.common.finite import NotFinite
from atgrpo_jax.common.hosts import Alone
from atgrpo_jax.common.types import Sample, seed_of
from atgrpo_jax.credit.groups import CreditConfig
from atgrpo_jax.engines.local.local import LocalEngineConfig
from atgrpo_jax.engines.protocol import EngineConfig
from atgrpo_jax.planning import hosts as planned
from atgrpo_jax.planning.footprint import memory
from atgrpo_jax.planning.workload import Workload
from atgrpo_jax.replaying.again import Again
from atgrpo_jax.replaying.differing import findings, first_that_differs
from atgrpo_jax.replaying.teams import Teams
from atgrpo_jax.rollout.curriculum import CurriculumConfig
from atgrpo_jax.rollout.rollout import RolloutConfig
from atgrpo_jax.rollout.team import Team
from atgrpo_jax.run.checkpoint import Checkpoints
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.run.loop import one_step, train
from atgrpo_jax.run.nodes import Node
from atgrpo_jax.run.playing import picking
from atgrpo_jax.run.stages import Stages
from atgrpo_jax.run.team_learner import TeamLearner
from atgrpo_jax.tasks.workflow import Workflow
from atgrpo_jax.tools.budgeting.watching import watched
from atgrpo_jax.update.objectives import LossConfig

STEPS = 4


def says(engine, request):
    """Two digits that depend on the sample's address and on the version of the weights."""
    version = engine.versions[request.policy]
    samples = []
    for address in request.addresses:
        number = seed_of(address.group.path(), version, address.k)
        ids = CharTokenizer().answer_ids(f"{number % 9}{number // 9 % 8}")
        samples.append(Sample(ids, (-1.0,) * len(ids), "stop", version))
    return samples


def lagged(answer=says, turns=1, **changes):
    settings = {"steps": STEPS, "checkpoint_every": 2, "keep_checkpoints": 9, "max_logprob_gap": 10.0}
    x = experiment(answer, **settings | {"max_lag": 1} | changes)
    return dataclasses.replace(x, task=Paid(Workflow(("a", "b"), turns=turns)))


def stepped(x, path, killed=None):
    """Goes on to the last step. Returns the stages and the team.

    What a kill after step 3 would leave is copied to ``killed``: all steps, and the checkpoint of step 2.
    """
    with Stages(x, RunFolder(path)) as stages:
        team = stages.begin()
        while stages.done < STEPS:
            team, _ = one_step(stages, team, stages.done + 1)
            if stages.done == 3 and killed is not None:
                shutil.copytree(path, killed)
        return stages, jax.device_get(team)


def left(path):
    """What a run has left, without what depends on the machine."""
    folder = RunFolder(path)
    records = [{k: v for k, v in r.items() if not k.startswith("perf/")} for r in folder.read_metrics()]
    return records, {file.name: file.read_bytes() for file in sorted(folder.episodes.iterdir())}


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one._replace(ahead=None), other._replace(ahead=None))
    assert one.ahead.episodes == other.ahead.episodes


def versions(path, step):
    episodes = RunFolder(path).read_episodes(step)
    return {group["version"] for episode in episodes for group in episode["groups"]}


CURRICULUM = RolloutConfig(
    instances=2,
    candidates=3,
    max_tokens=4,
    least_signal=9,
    most_rounds=3,
    curriculum=CurriculumConfig(12, "success", floor=0.1, decay=0.25),
)


def test_a_run_that_was_killed_or_stopped_goes_on_to_the_same_bytes(tmp_path):
    """Of two policies, with rounds, a curriculum, and what comes of candidates.

    A kill after step 3 leaves step 2, and step 3 was played before that was saved. The signal comes while
    step 4 is played and step 3 is learned: both end, and step 3 is saved.
    """
    credit = CreditConfig("group", "mean", counterfactual=1.0)
    settings = {"team": Team("full"), "rollout": CURRICULUM, "credit": credit, "turns": 2}
    _, whole = stepped(lagged(**settings), tmp_path / "whole", tmp_path / "killed")

    def interrupted(engine, request):
        if request.addresses[0].group.step == 4 and len(RunFolder(tmp_path / "stopped").read_metrics()) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return says(engine, request)

    with pytest.raises(Stopped) as stopped:
        train(
            lagged(interrupted, checkpoint_every=9, **settings),
            RunFolder(tmp_path / "stopped"),
            may_exit=False,
        )
    assert stopped.value.note.startswith("stopped after step 3, which is saved")

    for name in ("killed", "stopped"):
        _, again = stepped(lagged(**settings), tmp_path / name)
        same(whole, again)
        assert left(tmp_path / "whole") == left(tmp_path / name)
    folder = RunFolder(tmp_path / "whole")
    lessons = Checkpoints(folder.checkpoints, lagged(**settings).identity(), read_only=True).lessons(2)
    told, untold = ([*chain(*picking(lagged(**settings))(3, own).rounds)] for own in (lessons, {}))
    instances = [episode["instance"] for episode in folder.read_episodes(3)]
    assert instances == told[: len(instances)] != untold[: len(instances)]  # what step 2 taught is known

    records, _ = left(tmp_path / "whole")
    assert [versions(tmp_path / "whole", step) for step in range(1, STEPS + 1)] == [{0}, {0}, {1}, {2}]
    assert [r.get("rollout/lag") for r in records] == [None, None, 1, 1, 1]
    gaps = [[f"policy/a/{name}" in r for r in records] for name in ("logprob_gap", "lag_gap")]
    assert gaps == [[False] + [True] * 4, [False] * 2 + [True] * 3]


@pytest.mark.thorough
@pytest.mark.long
def test_an_engine_on_a_device_of_its_own_draws_the_same_again(tmp_path):
    """Of adapters, with a memory of credit. Replays, too: without a lag, with it, of a test."""
    x = dataclasses.replace(
        lagged(team=Team("lora"), credit=CreditConfig("running", "mean"), max_logprob_gap=1e-3),
        task=Longest(Workflow(("a", "b"), turns=1)),
        engine=LocalEngineConfig(slots=8, mesh=MeshConfig(), first_device=1),
        gate=True,
    )
    _, whole = stepped(x, tmp_path / "whole", tmp_path / "killed")
    _, again = stepped(x, tmp_path / "killed")
    same(whole, again)
    assert left(tmp_path / "whole") == left(tmp_path / "killed")
    with Again(Saved(x, tmp_path / "killed")) as replays:
        for node in (Node(1, "train", 1), Node(3, "train", 4), Node(4, "test", 0)):
            found = replays.play(node)
            assert first_that_differs(findings(node, found.recorded, found.episode, x.tokenizer)) is None


class Noted(Alone):
    """Notes the meetings whose work a stop may end at the cost of a step."""

    def __init__(self):
        super().__init__()
        self.noted = []

    def meet(self, name, work, stops=False):
        self.noted += [name] * stops
        return super().meet(name, work, stops)


def test_both_run_at_the_same_time_and_nothing_is_pushed_or_stopped_meanwhile(tmp_path):
    """The second step is answered only once the first update has begun, which ends after the answers."""
    begun, answered = threading.Event(), threading.Event()
    held = set()

    def answer(engine, request):
        group = request.addresses[0].group
        if (group.step, group.split) == (2, "train"):
            assert begun.wait(60)
            held.add(engine.versions["shared"])
            answered.set()
        return says(engine, request)

    hosts = Noted()
    with Stages(lagged(answer), RunFolder(tmp_path), hosts) as stages:
        team = stages.begin()
        update = stages.learner.update

        def noticed(*given):
            begun.set()
            assert answered.wait(60)
            return update(*given)

        stages.learner.update = noticed
        before = jax.tree.leaves(team.policies["shared"].params)
        team, record = one_step(stages, team, 1)
        assert held == {0} and stages.engine.versions == {"shared": 1}
        assert not any(leaf.is_deleted() for leaf in before)  # the engine may draw from them
        assert 0 < record["perf/overlap_s"] <= min(record["perf/step_s"], record["perf/update_s"])
        assert (team.version, team.lag) == (1, 1)
        stages.checkpoint(2, team)
    assert hosts.noted == ["train rollout of step 1", "begin of the update of step 1"]
    kept = tmp_path / "checkpoints"
    own = Checkpoints(kept, lagged().identity(), read_only=True)
    assert own.ahead(2) == team.ahead
    # What other settings drew is drawn anew.
    assert Checkpoints(kept, "other", read_only=True, earlier=[lagged().identity()]).ahead(2) is None


def test_logprobs_are_compared_with_the_weights_that_drew_and_replays_have_them(tmp_path):
    """The policy moves by far more than the limit between drawing and learning; the engine is exact."""
    x = lagged(honest(), max_logprob_gap=1e-3, checkpoint_every=3, loss=LossConfig(minibatches=1))
    stages, whole = stepped(x, tmp_path)
    records = stages.folder.read_metrics()
    assert all(of_policy(r, "shared", "logprob_gap") < 1e-5 for r in records[1:])
    assert all(of_policy(r, "shared", "lag_gap") > 0.01 for r in records[2:])
    np.testing.assert_allclose(of_policy(records[1], "shared", "ratio"), 1.0, rtol=1e-5)
    assert abs(of_policy(records[2], "shared", "ratio") - 1) > 1e-3  # to the weights that drew

    teams = Teams(Saved(x, tmp_path))
    assert [teams.that_drew(step, max(step - 2, 0)).version for step in (1, 2, 3)] == [0, 0, 1]
    assert teams.that_drew(3, 2).version == 2  # the first step after a change of settings has no lag
    found = jax.device_get(teams.after(STEPS).policies)
    jax.tree.map(np.testing.assert_array_equal, found, whole.policies)


@pytest.mark.parametrize("correction", [None, 2.0])
def test_what_is_wrong_with_a_step_that_is_played_ahead_is_found_before_the_one_that_is_learned_counts(
    correction, tmp_path
):
    wrong = None  # what the engine does in step 2

    def answer(engine, request):
        samples = honest(0.1 if wrong == "off" else 0.0)(engine, request)
        if request.addresses[0].group.step == 2 and wrong == "broken":
            raise RunError("no engine any more")
        if request.addresses[0].group.step == 2 and wrong == "newer":
            samples = [dataclasses.replace(sample, version=1) for sample in samples]
        return samples

    def update(team, *_):
        return team._replace(version=team.version + 1), {"perf/update_s": 1.0}

    def failing(*_):
        raise NotFinite("step 1", "the loss is nan", "lower it")

    loss = LossConfig(minibatches=1, correction=correction)
    with Stages(lagged(answer, max_logprob_gap=1e-3, loss=loss), RunFolder(tmp_path)) as stages:
        team = stages.begin()
        first = stages.rollouts.play(1)
        _, credited, _ = stages.credit(team, first.episodes)
        stages.learner.update = update
        assert of_policy(stages.learn(team, credited, 1)[0].ahead.metrics, "shared", "logprob_gap") < 1e-5
        wrong = "off"
        if correction:  # it is corrected by importance weights when it is learned
            after, _ = stages.learn(team, credited, 1)
            assert of_policy(after.ahead.metrics, "shared", "logprob_gap") == pytest.approx(0.1, abs=1e-4)
            return
        with pytest.raises(RunError, match="shared: sampler and learner logprobs .* differ by 0.1"):
            stages.learn(team, credited, 1)
        wrong = "newer"
        with pytest.raises(RunError, match="was drawn by version 1 of policy shared, .* is of version 0"):
            stages.learn(team, credited, 1)
        wrong = "broken"
        with pytest.raises(RunError, match="no engine any more"):
            stages.learn(team, credited, 1)
        stages.learner.update = failing
        with pytest.raises(NotFinite, match="the loss is nan") as raised:
            stages.learn(team, credited, 1)
        assert "no engine any more" in str(raised.value.__context__)


def test_refuses(tmp_path):
    two = MeshConfig(data=2)
    beside = LocalEngineConfig(mesh=two, first_device=2)
    for engine in (LocalEngineConfig(), LocalEngineConfig(mesh=MeshConfig(), first_device=1)):
        with pytest.raises(ValueError, match="share several devices; .*first_device = 2"):
            engine.check_ahead(two)
    beside.check_ahead(two)
    LocalEngineConfig(mesh=MeshConfig(), first_device=1).check_ahead(MeshConfig())
    with pytest.raises(ValueError, match="EngineConfig does not say that it can draw during an update"):
        EngineConfig().check_ahead(MeshConfig())
    hosts = Alone()
    hosts.count = 2
    x = lagged()
    with pytest.raises(ConfigError, match="max_lag = 1 is for one host, and there are 2"):
        Stages(x, RunFolder(tmp_path), hosts)
    with pytest.raises(ConfigError, match="max_lag = 1 is for one host, and there are 2"):
        planned.check(dataclasses.replace(x, mesh=two, engine=beside), 2)
    with pytest.raises(ConfigError, match="max_lag: the parts of steps that overlap are not told apart"):
        watched(x, tmp_path / "budget", 1)
    assert not x.engine.built
    plain = dataclasses.replace(x, max_lag=0)
    assert "lag" not in repr(plain) and x.identity() != plain.identity()


def test_a_plan_counts_the_parameters_that_draw_during_an_update():
    x = lagged(team=Team("lora"))
    workload = Workload(4, 9.0, 9, 4, 3, 4, 21)
    lines, others = (
        memory(own, TeamLearner(own), workload) for own in (x, dataclasses.replace(x, max_lag=0))
    )
    more = {name: size for name, size in lines.items() if name not in others}
    assert more == {f"parameters that draw meanwhile, {role}": lines[f"parameters, {role}"] for role in "ab"}
