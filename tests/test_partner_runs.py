"""Runs of a team with a partner: what is trained, what is counted, and that they go on without its server.

The partner is role b of ``shared_trainer.Paid``, whose text says what it is paid: its local part, then the
team part. It answers another text whenever the same prompt is asked again.
"""

import collections
import dataclasses
import shutil

import jax
import numpy as np
import pytest
from chat_server import MODEL, ChatServer, completion, refusal
from fakes import quickly_compiled  # noqa: F401
from shared_trainer import TEXTS, TOKENIZER, Paid, experiment, honest

from atgrpo_jax import evaluate as evaluate_command
from atgrpo_jax.common.errors import ConfigError, RunError, Unreachable
from atgrpo_jax.common.hosts import Alone
from atgrpo_jax.credit.groups import CreditConfig
from atgrpo_jax.partners.partners import Partner
from atgrpo_jax.rollout.evaluation import EvaluationConfig
from atgrpo_jax.rollout.rollout import RolloutConfig
from atgrpo_jax.rollout.team import Team
from atgrpo_jax.run import gin_config
from atgrpo_jax.run.experiment import experiment_difference
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.run.loop import train
from atgrpo_jax.run.saved import claim
from atgrpo_jax.run.stages import Stages
from atgrpo_jax.update.warm_start import demonstrated, demonstrations


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


def with_partner(server, partner=None, **changes):
    made = Partner(server.url, MODEL, tries=1, **partner or {})
    settings = {
        "team": Team(partners={"b": made}),
        "evaluation": EvaluationConfig(instances=3, validation_instances=2, every=1),
        "steps": 2,
        "checkpoint_every": 1,
    }
    return experiment(honest(), **settings | changes)


def left(path):
    """What must be the same: metrics but for perf/, episodes, the names of checkpoints."""
    folder = RunFolder(path)
    metrics = [{k: v for k, v in r.items() if not k.startswith("perf/")} for r in folder.read_metrics()]
    return metrics, {p.name: p.read_bytes() for p in folder.episodes.iterdir()}


def params(path, x):
    with Stages(x, RunFolder(path)) as stages:
        return jax.device_get(stages.begin().policies["shared"].params)


def test_a_partner_is_played_and_never_trained(server, tmp_path, capsys):
    x = with_partner(server)
    with Stages(x, RunFolder(tmp_path)) as stages:
        team = stages.begin()
        episodes, played = stages.rollouts.play(1)
        credited, signal = stages.credit(team, episodes)
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
    assert record["outcome/ok"] == pytest.approx(2 / 3) and record["outcome/truncated"] == pytest.approx(1 / 3)
    assert (record["rollout/candidates"], record["rollout/tokens"]) == (6.0, 2 * 8.0)
    assert record["role/b/team"] == np.mean([float(text[1]) for text in texts])
    names = "answers", "prompt_tokens", "answer_tokens", "truncated", "empty", "refused"
    assert [record[f"role/b/{name}"] for name in names] == [2.0, 22.0, 6.0, 0.0, 0.0, 0.0]
    assert "role/b/tokens" not in record and record["role/a/tokens"] == pytest.approx(8 / 3)
    assert record["perf/partner_asked"] == 2.0 and record["perf/partner_s"] > 0
    assert (record["validation/partner_answers"], record["validation/partner_tokens"]) == (2.0, 28.0)
    assert f"role b is a partner, {MODEL} at {server.url}; it is not trained" in capsys.readouterr().err
    lines = list(RunFolder(tmp_path).read_episodes(1))
    assert [line["policy"] for line in lines] == ["shared", ""] * 2
    assert [line["candidates"][0]["text"] for line in lines[1::2]] == texts


def test_a_truncated_answer_is_carried_out_unless_that_is_excluded(server, tmp_path):
    for exclude, end in (((), "turn_limit"), (("truncated",), "engine_error")):
        server.says = lambda messages: completion("11", "length")
        rollout = RolloutConfig(
            instances=2, candidates=3, max_tokens=4, exclude=(*exclude, "engine_error"), select="first"
        )
        with Stages(with_partner(server, rollout=rollout), RunFolder(tmp_path / end)) as stages:
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
        credited, _ = stages.credit(team, stages.rollouts.play(1)[0])
    assert [c.advantages_K.tolist() for c in credited] == [[0.0], [0.0], [-2.0], [0.0], [2.0], [0.0]]
    assert [c.mask_K.tolist() for c in credited] == [[True], [False]] * 3


def test_a_run_goes_on_without_the_server_for_what_it_has_recorded(server, tmp_path, capsys):
    """Stopped in an update, when all of the step is recorded; then the server is gone."""
    x = with_partner(server)
    train(x, RunFolder(tmp_path / "whole"))
    with Forgetful() as other:
        ours = with_partner(other)
        with Stages(ours, RunFolder(tmp_path / "stopped")) as stages:
            stages.begin()
            stages.rollouts.play(1)
    with Stages(ours, RunFolder(tmp_path / "stopped")) as stages:
        team = stages.begin()
        episodes, played = stages.rollouts.play(1)
        assert played["perf/partner_asked"] == 0.0 and played["role/b/answers"] == 2.0
        team, learned = stages.learner.update(team, stages.credit(team, episodes)[0], 1)
        stages.sync(team)
        with pytest.raises(Unreachable, match="role b: .*; start the server again, and the same command"):
            stages.rollouts.play(2)
    assert "going on with the 7 answers that are recorded" in capsys.readouterr().err
    ours = with_partner(server)  # at another address
    train(ours, RunFolder(tmp_path / "stopped"))
    assert len(left(tmp_path / "stopped")[0]) == 3


@pytest.mark.parametrize("lives", [1, 6, 8, 11])
def test_a_run_whose_server_died_goes_on_to_the_same_bytes(tmp_path, lives):
    """It has 18 answers: five for step 0, then two for each step and two for its validation, and the test."""
    with Forgetful() as server:
        x = with_partner(server)
        train(x, RunFolder(tmp_path / "whole"))
        assert len(server.prompts) == 16
    with Forgetful(lives) as server:
        x = with_partner(server)
        with pytest.raises(Unreachable, match="status 500: out of memory .at .*; start the server again"):
            train(x, RunFolder(tmp_path / "died"))
        before = len(RunFolder(tmp_path / "died").read_metrics())
        server.lives = 16 - lives
        server.seen_before = dict(server.seen)
        train(x, RunFolder(tmp_path / "died"))
    assert before < 3 and left(tmp_path / "died") == left(tmp_path / "whole")


def test_a_whole_run_is_made_again_from_its_records_alone(server, tmp_path):
    x = with_partner(server)
    train(x, RunFolder(tmp_path / "first"))
    server.__exit__()
    (tmp_path / "again").mkdir()
    shutil.copytree(tmp_path / "first" / "partners", tmp_path / "again" / "partners")
    folder = RunFolder(tmp_path / "again")
    assert not folder.exists()
    train(x, folder)
    assert left(tmp_path / "again") == left(tmp_path / "first")
    first, again = (params(tmp_path / name, x) for name in ("first", "again"))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    server.__enter__()


class Two(Alone):
    count = 2


def test_several_hosts_are_refused_in_a_line(server, tmp_path):
    with pytest.raises(ConfigError, match=r"Team.partners \(b\): .* recorded by one host, and this run has 2"):
        Stages(with_partner(server), RunFolder(tmp_path), Two())
    assert not server.asked


def test_a_server_that_is_gone_is_found_before_anything_is_built(server, tmp_path):
    x = with_partner(server)
    server.__exit__()
    with pytest.raises(Unreachable, match="role b: http.*/v1/models: Cannot connect"):
        Stages(x, RunFolder(tmp_path))
    assert not x.engine.built
    server.__enter__()


def test_nobody_clones_a_partner():
    x = experiment(honest(), team=Team("full", partners={"b": Partner("http://a/v1", MODEL)}))
    assert x.policies == ("a",) and x.initial_names == ("a",)
    start = x.team.starting(("a", "b"))
    assert start.policies(("a", "b")) == ("a",) and start.policy("b") == ""


def test_config_keeps_a_partner_and_may_change_what_changes_no_answer(tmp_path):
    file = tmp_path / "team.gin"
    file.write_text(
        "from atgrpo_jax.partners import partners\n"
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
