"""docs/metrics.md has a row for each metric that a run can write, and no other rows.

``PYTHONPATH=. python tests/test_metrics_page.py`` writes its tables anew.
"""

import ast
import dataclasses
import functools
import re
import typing
from pathlib import Path

import numpy as np
import pytest
from chat_server import MODEL, ChatServer
from fakes import Longest, group
from shared_trainer import experiment, fixed

import atgrpo_jax
from atgrpo_jax.common.types import Episode, Outcome, Reward
from atgrpo_jax.credit.groups import CreditConfig, credit
from atgrpo_jax.engines.local.local import LocalEngineConfig
from atgrpo_jax.engines.protocol import Usage
from atgrpo_jax.partners.partners import Partner
from atgrpo_jax.rollout.curriculum import CurriculumConfig
from atgrpo_jax.rollout.evaluation import EvaluationConfig, Score
from atgrpo_jax.rollout.rollouts import _metrics, _of_continuations
from atgrpo_jax.rollout.team import Team
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.run.loop import one_step
from atgrpo_jax.run.report import PANELS
from atgrpo_jax.run.stages import Stages
from atgrpo_jax.tasks.workflow import Workflow
from atgrpo_jax.update.batch import BatchConfig
from atgrpo_jax.update.objectives import LossConfig
from atgrpo_jax.viewing.meanings import LEVELS, meaning_of, rows, sentences, tables

PACKAGE = Path(atgrpo_jax.__file__).parent
PAGE = PACKAGE.parent / "docs" / "metrics.md"


def page():
    """The page as it should be: its own first paragraphs, then the tables."""
    return PAGE.read_text().partition("\n## ")[0] + "\n" + tables()


def test_the_page_ends_with_the_tables():
    assert PAGE.read_text() == page(), "PYTHONPATH=. python tests/test_metrics_page.py writes it anew"


def filled(which, level):
    """A name that a level in capitals stands for."""
    return LEVELS.get(level[0], ("x.y", "z"))[which]


def test_every_line_of_the_tables_is_a_row_of_its_own_with_one_sentence():
    lines = [line for line in tables().splitlines() if line.startswith("| `")]
    assert len(rows()) == len(lines) > 60
    for row in rows():
        for which in (0, -1):
            name = re.sub("[A-Z]+", functools.partial(filled, which), row.name)
            assert meaning_of(name) == row, name  # and not another one
        assert re.fullmatch(r"[A-Z][^.]*(\.\w+[^.]*)*\.", row.says), row
    assert meaning_of("role/a/part/x%2Fy").name == "role/NAME/part/PART"
    assert meaning_of("train/success") is None and meaning_of("policy/a/b/loss") is None
    assert sentences(["end/ended", "mine"]) == {
        "end/ended": "The share of episodes that the task ended without success."
    }


@dataclasses.dataclass(frozen=True)
class Measured(Longest):
    """Roles a and b are trained, c has a partner. The task has a number of its own."""

    workflow: Workflow = Workflow(order=("a", "b", "c"), turns=2)

    def act(self, state, role, text):
        """What a text earns is as good as drawn by lot, so that the groups of a random policy have signal."""
        step = super().act(state, role, text)
        return dataclasses.replace(
            step, reward=Reward.of(0.0, lot=sum(map(ord, text)) % 7), metrics={"own": 1.0}
        )


def of_a_run(path):
    """Steps with all a run can have in this process: adapters, a partner, a KL term, a lag, correction."""
    with ChatServer() as server:
        x = dataclasses.replace(
            experiment(),
            task=Measured(),
            team=Team({"a": "lora:x", "b": "lora:x"}, partners={"c": Partner(server.url, MODEL)}),
            engine=LocalEngineConfig(slots=8),
            gate=True,
            loss=LossConfig(minibatches=1, kl=0.1, correction=2.0),
            batch=BatchConfig(row_tokens=32, rows=4),
            evaluation=EvaluationConfig(instances=2, validation_instances=2, every=1, influence_every=1),
            rollout=dataclasses.replace(
                experiment().rollout, least_signal=1, first_candidates=2, curriculum=CurriculumConfig(8)
            ),
            steps=2,
            max_lag=1,
        )
        with Stages(x, RunFolder(path)) as stages:
            team, _ = one_step(stages, stages.begin(), 1)
            one_step(stages, team, 2)
    return {name for record in RunFolder(path).read_metrics() for name in record}


def of_servers(path):
    """A push to an engine that says what the push took, as one with servers does."""
    x = experiment(fixed)
    with Stages(x, RunFolder(path)) as stages:
        engine = x.engine.built[-1]

        def push(policy, weights, version):
            engine.usage += Usage(push_s=1.0, push_bytes=1)
            engine.versions[policy] = version

        engine.push_weights = push
        stages.begin()
    return set(RunFolder(path).read_metrics()[0])


def of_hosts():
    """What the rollout of two hosts took."""
    return set(_metrics([{"used": {}, "environment_s": 1.0, "waited_s": 1.0}] * 2, 1.0))


def of_kinds():
    """Every way in which an episode or a candidate can end, and what an evaluation says of failures."""
    ends = typing.get_args(typing.get_type_hints(Episode)["end"])
    lost = Episode("test", 0, 0, (), False, 1, "engine_error")
    scores = {f"test/{name}" for name in Score(np.zeros((1, 1), bool), 1.0, [lost]).record()}
    return scores | {f"end/{end}" for end in ends} | {f"outcome/{outcome.value}" for outcome in Outcome}


def of_rules():
    """What a rule of credit with a memory writes, and one that plays on."""
    episode = Episode("train", 0, 0, (group(1.0, 2.0),), False, 1, "ended")
    remembered = set(credit([episode], alpha=1.0, rule=CreditConfig("running", "mean"))[1])
    counts = {"groups": 1, "misled": 0, "tokens": 3}
    return remembered | set(_of_continuations([{"afterwards": counts}], [episode]))


@pytest.mark.thorough
def test_what_runs_write_is_on_the_page_and_nothing_else_is(tmp_path):
    written = of_a_run(tmp_path / "run") | of_servers(tmp_path / "servers") | of_hosts() | of_kinds()
    written |= of_rules()
    found = {name: meaning_of(name) for name in written}
    unknown = sorted(name for name, row in found.items() if row is None)
    assert not unknown, f"no row in viewing/meanings.txt: {unknown}"
    stale = sorted({row.name for row in rows()} - {row.name for row in found.values()})
    assert not stale, f"no run writes these rows of viewing/meanings.txt: {stale}"


def test_names_in_the_source_are_on_the_page():
    """Those that are written out: "perf/step_s". It is quick, and knows what no run of a test writes."""
    own = re.compile(r"(?:rollout|groups|perf|outcome|end|validation|test|credit|counterfactual)/[a-z_]+")
    found = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and own.fullmatch(node.value):
                found[node.value] = path.name
    assert len(found) > 20
    assert {name: file for name, file in found.items() if meaning_of(name) is None} == {}


def test_what_is_drawn_is_on_the_page():
    """The panels of curves.png, and those of report.html that name a metric or all of a kind."""
    drawn = [pattern.replace("*", "x") for _, patterns in PANELS for pattern in patterns]
    script = (PACKAGE / "viewing" / "curves.js").read_text()
    drawn += re.findall(r'"([a-z]+/[a-z_]+)"', script)
    kinds = re.findall(r"/\^(\w+)\\/\(\[\^/\]\+\)\\/([\w.*]+)\$/", script)
    drawn += [f"{kind}/x/{name}" for kind, name in kinds]
    assert len(kinds) > 8 and len(drawn) > 30
    assert [name for name in drawn if meaning_of(name) is None] == []


if __name__ == "__main__":
    PAGE.write_text(page())
