"""Runs of a team with a partner: what is trained, what is counted, and that they go on without its server.

The partner is role b of ``shared_trainer.Paid``, whose text says what it is paid: its local part, then the
team part. It answers another text whenever the same prompt is asked again.
"""

import collections
import dataclasses
import shutil
import types

import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from chat_server import MODEL, ChatServer, completion, refusal
from fakes import CharTokenizer, Sum
from shared_trainer import MODEL as TINY
from shared_trainer import TEXTS, TOKENIZER, experiment, fixed, honest

from atgrpo_jax import evaluate
from atgrpo_jax.arrays.mesh import MeshConfig
from atgrpo_jax.common.errors import ConfigError, Unreachable
from atgrpo_jax.common.hosts import Alone
from atgrpo_jax.common.types import Sampling
from atgrpo_jax.credit.groups import CreditConfig
from atgrpo_jax.models.families.table import transformer
from atgrpo_jax.models.hf import hf
from atgrpo_jax.models.transformer import init_params
from atgrpo_jax.partners.partners import Partner
from atgrpo_jax.replaying.again import Again, Change
from atgrpo_jax.replaying.differing import findings, first_that_differs
from atgrpo_jax.rollout.evaluation import EvaluationConfig
from atgrpo_jax.rollout.player import Player
from atgrpo_jax.rollout.rollout import RolloutConfig, play_all
from atgrpo_jax.rollout.team import Team
from atgrpo_jax.run import gin_config
from atgrpo_jax.run.checkpoint import Checkpoints
from atgrpo_jax.run.experiment import experiment_difference
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.run.loop import one_step
from atgrpo_jax.run.nodes import Node
from atgrpo_jax.run.stages import Stages
from atgrpo_jax.run.team_learner import TeamLearner
from atgrpo_jax.update.batch import BatchConfig
from atgrpo_jax.update.warm_start import demonstrated, demonstrations

ANSWERS = 16  # five for the scores of step 0, four for step 1, seven for step 2 with the last scores
NOWHERE = types.SimpleNamespace(url="http://127.0.0.1:1/v1")  # nobody listens there


class Forgetful(ChatServer):
    """Says something else each time that it is asked the same, and dies after ``lives`` answers."""

    def __init__(self, lives=10_000):
        super().__init__()
        self.seen = collections.Counter()
        self.lives = lives

    def answer_to(self, messages):
        if self.lives == 0:
            return refusal(500, "out of memory")
        self.lives -= 1
        prompt = messages[0]["content"]
        self.seen[prompt] += 1
        number = sum(map(ord, prompt)) + 7 * self.seen[prompt]
        return f"{number % 8 + 1}{number % 3}"

    def __enter__(self):
        self.says = self.answer_to
        return super().__enter__()


@pytest.fixture
def server():
    with Forgetful() as server:
        yield server


def with_partner(server, partner=None, answer=None, **changes):
    made = Partner(server.url, MODEL, tries=1, **partner or {})
    settings = {
        "team": Team(partners={"b": made}),
        "evaluation": EvaluationConfig(instances=3, validation_instances=2, every=1),
        "steps": 2,
        "checkpoint_every": 1,
    }
    return experiment(answer or honest(), **settings | changes)


def left(path):
    """What must be the same: metrics but for perf/, episodes, the names of checkpoints."""
    folder = RunFolder(path)
    metrics = [{k: v for k, v in r.items() if not k.startswith("perf/")} for r in folder.read_metrics()]
    return metrics, {p.name: p.read_bytes() for p in folder.episodes.iterdir()}


def run(x, path):
    """Goes on to the last step, as ``train`` does, but for the summary. Returns the parameters."""
    with Stages(x, RunFolder(path)) as stages:
        team = stages.begin()
        for step in range(stages.done + 1, x.steps + 1):
            team, _ = one_step(stages, team, step)
        return jax.device_get(team.policies["shared"].params)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that nothing disturbed."""
    path = tmp_path_factory.mktemp("whole")
    with Forgetful() as server:
        run(with_partner(server), path)
        assert len(server.prompts) == ANSWERS
    return path


def test_a_partner_is_played_and_never_trained(server, tmp_path, capsys):
    x = with_partner(server)
    with Stages(x, RunFolder(tmp_path)) as stages:
        team = stages.begin()
        episodes, played = stages.rollouts.play(1)
        _, credited, signal = stages.credit(team, episodes)
        record = stages.record(1, team, episodes, credited, played, signal)
        asked = x.engine.built[-1].requests
    assert stages.learner.names == ("shared",) and {r.policy for r in asked} == {"shared"}
    assert {r.addresses[0].group.role for r in asked} == {"a"}
    for of_a, of_b in zip(credited[::2], credited[1::2], strict=True):
        # Mixed rewards 3, 3 and 6 of a's texts: the partner's are in no baseline.
        assert of_a.advantages_K.tolist() == [-1.0, -1.0, 2.0] and of_a.mask_K.all()
        (answer,) = of_b.group.candidates
        assert of_b.group.by_partner and of_b.group.chosen == 0 and not of_b.mask_K.any()
        assert answer.sample.tokens == () and answer.origin.sampling.max_tokens == 1024
        assert answer.reward.parts == {"digit": float(answer.text[0])}
        # It was shown what a's best candidate led to.
        executed = of_a.group.candidates[of_a.group.chosen].text
        shown = f"b{answer.origin.key.instance}{executed}"
        assert [{"role": "user", "content": shown}] in server.prompts
        assert TOKENIZER.decode(answer.origin.prompt_ids) == shown and executed == TEXTS[2]
    texts = [item.group.candidates[0].text for item in credited[1::2]]
    counted = {name: record[f"groups/{name}"] for name in ("total", "signal", "zero_variance", "too_small")}
    assert counted == {"total": 2.0, "signal": 1.0, "zero_variance": 0.0, "too_small": 0.0}
    outcomes = {name: share for name, share in record.items() if name.startswith("outcome/")}
    assert outcomes == {"outcome/ok": 4 / 6, "outcome/truncated": 2 / 6}  # of a's candidates
    assert (record["rollout/candidates"], record["rollout/tokens"]) == (6.0, 2 * 8.0)
    assert record["role/b/team"] == np.mean([float(text[1]) for text in texts])
    names = "answers", "prompt_tokens", "answer_tokens", "truncated", "empty", "refused"
    assert [record[f"role/b/{name}"] for name in names] == [2.0, 22.0, 6.0, 0.0, 0.0, 0.0]
    assert "role/b/tokens" not in record and record["role/a/tokens"] == pytest.approx(8 / 3)
    assert record["perf/partner_asked"] == 2.0 and record["perf/partner_s"] > 0
    assert (record["validation/partner_answers"], record["validation/partner_tokens"]) == (2.0, 28.0)
    assert f"role b is a partner, {MODEL} at {server.url}; it is not trained" in capsys.readouterr().err
    groups = [group for line in RunFolder(tmp_path).read_episodes(1) for group in line["groups"]]
    assert [group["policy"] for group in groups] == ["shared", ""] * 2
    assert [group["candidates"][0]["text"] for group in groups[1::2]] == texts


def test_a_truncated_answer_is_carried_out_unless_that_is_excluded(server, tmp_path):
    for exclude, end in (((), "turn_limit"), (("truncated",), "engine_error")):
        server.says = lambda messages: completion("11", "length")
        rollout = RolloutConfig(
            instances=2, candidates=3, max_tokens=4, exclude=(*exclude, "engine_error"), select="first"
        )
        x = with_partner(server, answer=fixed, rollout=rollout)
        with Stages(x, RunFolder(tmp_path / end)) as stages:
            episodes, metrics = stages.rollouts.play(1)
        assert {episode.end for episode in episodes} == {end}
        assert {e.groups[1].candidates[0].outcome.value for e in episodes} == {"truncated"}
        assert metrics["role/b/truncated"] == 1.0


def test_returns_hold_the_team_part_of_what_a_partner_did(server, tmp_path):
    """Texts 30, 12 and 51 of a, then 92, 90 and 91 of the partner: 3 + 2, 3 + 0 and 6 + 1."""
    server.says = lambda messages: {"30": "92", "12": "90", "51": "91"}[messages[0]["content"][-2:]]
    rollout = RolloutConfig(instances=1, candidates=3, max_tokens=4, mode="trajectories")
    x = with_partner(server, rollout=rollout, credit=CreditConfig("instance", "mean"))
    with Stages(x, RunFolder(tmp_path)) as stages:
        team = stages.begin()
        _, credited, _ = stages.credit(team, stages.rollouts.play(1)[0])
    assert [c.advantages_K.tolist() for c in credited] == [[0.0], [0.0], [-2.0], [0.0], [2.0], [0.0]]
    assert [c.mask_K.tolist() for c in credited] == [[True], [False]] * 3


@pytest.mark.parametrize(("lives", "at"), [(6, "1/train/[01]"), (12, "2/validation/[01]")])
def test_a_run_whose_server_died_goes_on_to_the_same_bytes(whole, tmp_path, lives, at):
    """It dies in a rollout, after one of two answers, or in the scores of a step whose update is done."""
    with Forgetful(lives) as server:
        x = with_partner(server, {"at_once": 1})
        with pytest.raises(
            Unreachable, match=f"status 500: out of memory .at {at}.*; start the server again"
        ):
            run(x, tmp_path)
    with pytest.raises(Unreachable, match=f"Cannot connect.* .at {at}"):
        run(x, tmp_path)  # as far as the records go
    assert len(server.prompts) == lives + 1
    with Forgetful() as another:
        another.seen = server.seen
        run(with_partner(another), tmp_path)  # at another address
        assert len(another.prompts) == ANSWERS - lives
    assert left(tmp_path) == left(whole)


def test_a_whole_run_is_made_again_from_its_records_alone(whole, tmp_path, capsys):
    (tmp_path / "again").mkdir()
    shutil.copytree(whole / "partners", tmp_path / "again" / "partners")
    folder = RunFolder(tmp_path / "again")
    assert not folder.exists()
    x = with_partner(NOWHERE)
    params = run(x, folder.path)
    assert left(folder.path) == left(whole)
    jax.tree.map(np.testing.assert_array_equal, params, run(x, whole))
    assert "/models: Cannot connect" in (said := capsys.readouterr().err)
    assert f"going on with what is recorded, {ANSWERS} answers" in said


@pytest.fixture
def evaluating():
    """Scores the newest step of a run as the command does, with these flags; returns what is printed."""
    flags.FLAGS.mark_as_parsed()

    def scored(x, path, capsys, **given):
        with Stages(x, RunFolder(path)) as stages:
            team = stages.begin()
            contender = "step 2", 2, stages.learner.weights(team)
        with flagsaver.flagsaver(split="validation", instances=2, **given):
            ((score, _),) = evaluate.scores(x, stages.learner, iter([contender]), RunFolder(path).partners)
        return score, capsys.readouterr().out

    yield scored
    flags.FLAGS.unparse_flags()


def test_evaluate_uses_the_runs_answers_and_records_its_own(whole, tmp_path, evaluating, capsys):
    shutil.copytree(whole, tmp_path / "run")
    score, said = evaluating(with_partner(NOWHERE), tmp_path / "run", capsys)
    assert score.success == RunFolder(whole).read_metrics()[2]["validation/success"]
    nothing = "0 of them asked for now (0.0 s in all) and the others recorded before"
    assert f"partner of role b: 2 answers, {nothing}; 22 tokens of prompts, 6 of answers" in said
    with Forgetful() as server:
        _, said = evaluating(with_partner(server), tmp_path / "run", capsys, episodes=2)
        assert "partner of role b: 4 answers, 2 of them asked for now" in said and len(server.prompts) == 2
    _, said = evaluating(with_partner(NOWHERE), tmp_path / "run", capsys, episodes=2)
    assert f"4 answers, {nothing}" in said
    names = sorted(path.name for path in (tmp_path / "run" / "partners").iterdir())
    assert names == ["evaluated_000002.jsonl", *(f"step_00000{step}.jsonl" for step in range(3))]


class Saved:
    """What ``Again`` needs of a saved run, without a config.gin: no gin file can name a scripted engine."""

    def __init__(self, x, path):
        self.experiment, self.folder = x, RunFolder(path)
        self.learner = TeamLearner(x)
        self._checkpoints = Checkpoints(self.folder.checkpoints, x.identity(), read_only=True)
        self.steps = self._checkpoints.steps

    def at(self, step):
        return self

    def team(self, step):
        return self.learner.restore(self._checkpoints, step)


def test_a_replay_asks_no_partner_again_and_changes_nothing_that_it_said(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    x = with_partner(NOWHERE)
    with Again(Saved(x, tmp_path / "run")) as again:
        found = again.play(Node(2, "train", 2))
        assert (
            first_that_differs(findings(Node(2, "train", 2), found.recorded, found.episode, TOKENIZER))
            is None
        )
        greedy = again.play(Node(2, "train", 2), Change(temperature=0.5)).episode.groups
        assert [group.origin.sampling.temperature for group in greedy] == [0.5, 1.0]
        with pytest.raises(ConfigError, match=r"2/train/2/0/0/1/b: a partner speaks there"):
            again.play(Node(2, "train", 2, 0, 0, 1, "b"), Change(says="9"))


class Two(Alone):
    count = 2


def test_a_frozen_policy_stays_what_its_folder_holds(tmp_path):
    """A partner that is a model folder: drawn here, never trained; the other policy learns."""
    model = transformer(TINY, TOKENIZER.vocab_size)
    held = {}
    for number, name in enumerate("ab"):
        held[name] = init_params(model, jax.random.key(number))
        about = hf.description(TINY, TOKENIZER.vocab_size, TOKENIZER.stop_ids)
        hf.save(str(tmp_path / name), held[name], about)
    x = experiment(
        honest(),
        team=Team("full", frozen=("b",)),
        pretrained={name: str(tmp_path / name) for name in "ab"},
        steps=1,
    )
    with Stages(x, RunFolder(tmp_path / "run")) as stages:
        team, record = one_step(stages, stages.begin(), 1)
        after = jax.device_get({name: state.params for name, state in team.policies.items()})
    jax.tree.map(np.testing.assert_array_equal, after["b"], jax.device_get(held["b"]))
    assert not np.array_equal(after["a"]["embedding"], held["a"]["embedding"])
    assert "policy/b/loss" not in record and record["policy/a/updates"] == 1.0


def test_several_hosts_are_refused_in_a_line(server, tmp_path):
    x = dataclasses.replace(with_partner(server), mesh=MeshConfig(data=8), batch=BatchConfig(rows=8))
    with pytest.raises(ConfigError, match=r"Team.partners \(b\): .* by one host, and this run has 2"):
        Stages(x, RunFolder(tmp_path), Two())
    assert not server.asked and not x.engine.built


def test_a_server_that_is_gone_is_found_before_anything_is_built(server, tmp_path):
    x = with_partner(server)
    server.__exit__()
    with pytest.raises(Unreachable, match="role b: http.*/v1/models: Cannot connect"):
        Stages(x, RunFolder(tmp_path))
    assert not x.engine.built


def test_nobody_clones_a_partner():
    x = experiment(honest(), team=Team("full", partners={"b": Partner("http://a/v1", MODEL)}))
    assert x.policies == ("a",) and x.initial_names == ("a",)
    start = x.team.starting(("a", "b"))
    assert start.policies(("a", "b")) == ("a",) and start.policy("b") == ""
    task, tokenizer = Sum(), CharTokenizer()
    propose = demonstrations(task, tokenizer, 2, 0)
    played = play_all(Player(task, start, tokenizer, propose, Sampling(), 0), 1, "train", range(3))
    assert {g.origin.key.role for e in played for g in e.groups} == {"a", "b"}
    assert set(demonstrated(played)) == {"a"}


def test_settings_of_a_role_are_not_for_a_partner():
    team = Team(partners={"b": Partner("http://a/v1", MODEL)}, roles={"b": {"temperature": 0.5}})
    with pytest.raises(ValueError, match="Team.roles = .*: b has a partner, which is asked as partners.P"):
        experiment(honest(), team=team)


def test_config_keeps_a_partner_and_may_change_what_changes_no_answer(tmp_path):
    file = tmp_path / "team.gin"
    file.write_text(
        'include "smoke.gin"\n'
        'team.Team.partners = {"scout": @scout/partners.Partner()}\n'
        'scout/partners.Partner.url = "http://10.0.0.2:30000/v1/"\n'
        'scout/partners.Partner.model = "m"\n'
        'scout/partners.Partner.api_key_variable = "KEY"\n'
    )
    x = gin_config.load(str(file))
    assert x.team.partners == {"scout": Partner("http://10.0.0.2:30000/v1", "m", api_key_variable="KEY")}
    written = tmp_path / "config.gin"
    written.write_text(gin_config.render(x))
    assert gin_config.load(str(written)) == x

    def changed(**fields):
        partner = dataclasses.replace(x.team.partners["scout"], **fields)
        return dataclasses.replace(x, team=dataclasses.replace(x.team, partners={"scout": partner}))

    same = changed(url="http://b/v1", api_key_variable="", tries=9, most_answers=7, at_once=1, deadline_s=1.0)
    assert experiment_difference(x, same) is None and x.identity() == same.identity()
    for fields in ({"model": "n"}, {"temperature": 0.5}, {"max_tokens": 3}):
        assert "Team.partners" in (experiment_difference(x, changed(**fields)) or "")
