"""Makes one record for each step, and writes it as a line of metrics.jsonl.

Metrics that start with "perf/" depend on the machine (seconds, rates, compiles). All others are the
same in every run with the same config and seed.
"""

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from atgrpo_jax.common.files import append_json_line
from atgrpo_jax.common.finite import UNTOUCHED, check_finite
from atgrpo_jax.common.metric_names import of_role, together
from atgrpo_jax.common.types import Episode
from atgrpo_jax.credit.groups import Credited
from atgrpo_jax.credit.ledger import ledger
from atgrpo_jax.run.experiment import Experiment
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.update.batch import token_weights


def write_record(folder: RunFolder, step: int, values: Mapping[str, float]) -> dict[str, float]:
    """Appends the record of a step to metrics.jsonl, and returns it.

    Raises first if a value is not finite, or if one is called "step".
    """
    check_finite(values, f"step {step}, metrics", UNTOUCHED)
    record = together({"step": step}, {name: float(value) for name, value in sorted(values.items())})
    append_json_line(folder.metrics, record, folder.check_ours)
    return record


def training_metrics(
    experiment: Experiment, step: int, episodes: Sequence[Episode], credited: Sequence[Credited]
) -> dict[str, float]:
    """Returns what a step's episodes were, and the ledger of its groups."""
    loss = experiment.loss
    workflow = experiment.task.workflow
    weigh = functools.partial(token_weights, aggregate=loss.aggregate, constant=experiment.rollout.max_tokens)
    updated = experiment.team.updated(step, workflow.roles)
    found = ledger(episodes, credited, weigh=weigh, updated=updated, turns=workflow.turns)
    return together(episode_metrics(episodes), found)


def episode_metrics(episodes: Sequence[Episode]) -> dict[str, float]:
    """Returns success, turns, ends and counts, and for each role the mean reward and tokens.

    Means of a role are over all its candidates, executed or not. Those of rewards leave out
    candidates that have none; those of the task's own numbers, candidates that were not given them.
    Partners count in neither the candidates nor the tokens of a rollout.
    """
    metrics = {
        "rollout/success": float(np.mean([e.solved for e in episodes])),
        "rollout/turns": float(np.mean([e.turns for e in episodes])),
    }
    ends = Counter(e.end for e in episodes)
    metrics |= {f"end/{end}": n / len(episodes) for end, n in sorted(ends.items())}
    groups = [group for e in episodes for group in e.groups]
    candidates = [c for g in groups for c in g.candidates]
    drawn = [c for g in groups if not g.by_partner for c in g.candidates]
    metrics["rollout/candidates"] = float(len(drawn))
    metrics["rollout/tokens"] = float(sum(len(c.sample.tokens) for c in drawn))
    of_partners = {g.origin.key.role for g in groups if g.by_partner}
    for role in sorted({g.origin.key.role for g in groups}):
        own = [c for c in candidates if c.origin.key.role == role]
        scored = [c.reward for c in own if c.reward is not None]
        values = {}
        if role not in of_partners:  # theirs are counted by their servers
            values["tokens"] = _mean([len(c.sample.tokens) for c in own])
        if scored:
            values["team"] = _mean([r.team if r.at_once is None else r.at_once for r in scored])
            values["local"] = _mean([r.local for r in scored])
        names = sorted({part for r in scored for part in r.parts})
        parts = {}
        for part in names:
            parts[part] = _mean([r.parts.get(part, 0.0) for r in scored])
        given = sorted({name for c in own for name in c.metrics})
        of_task = {name: _mean([c.metrics[name] for c in own if name in c.metrics]) for name in given}
        metrics |= of_role(role, values, parts, of_task)
    return metrics


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def headline(step: int, record: Mapping[str, float]) -> dict[str, str]:
    """Returns what the terminal shows of a step.

    That is the success of its rollout and of its validation, if it has one, the share of groups that
    have a signal, and the tokens that were drawn for each second of the whole step.
    """
    shown = {"rollout success": f"{record['rollout/success']:.1%}"}
    if "validation/success" in record:
        shown["validation"] = f"{record['validation/success']:.1%} (step {step})"
    shown["signal"] = f"{record['groups/signal']:.0%}"
    shown["tokens/s"] = f"{record['rollout/tokens'] / record['perf/step_s']:,.0f}"
    return shown


class CompileCounter:
    """Counts the XLA compilations of this process; after the first steps there should be none."""

    def __init__(self):
        self.count = 0
        self.seconds = 0.0  # that they took
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **_kwargs: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            self.count += 1
            self.seconds += duration_secs
