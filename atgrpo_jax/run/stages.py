"""Opens what a run needs, and holds the stages of a step. Each stage takes and returns values."""

import contextlib
import time
from collections.abc import Sequence

from atgrpo_jax.arrays.finite_trees import check_tree
from atgrpo_jax.common.finite import UNTOUCHED, check_finite
from atgrpo_jax.common.hosts import ALONE, Hosts, told_json
from atgrpo_jax.common.metric_names import together
from atgrpo_jax.common.progress import say
from atgrpo_jax.common.types import Episode
from atgrpo_jax.credit.branching import corrected
from atgrpo_jax.credit.groups import Credited, audit, credit
from atgrpo_jax.engines import gate
from atgrpo_jax.engines.gate import Gate
from atgrpo_jax.partners.opening import opened
from atgrpo_jax.rollout.curriculum import learned
from atgrpo_jax.run import changes, last_step, origin
from atgrpo_jax.run.agreement import check_one_host, check_precision
from atgrpo_jax.run.alike import check_machines
from atgrpo_jax.run.checkpoint import Checkpoints
from atgrpo_jax.run.ending import Ending
from atgrpo_jax.run.environment import record_environment
from atgrpo_jax.run.episodes import written
from atgrpo_jax.run.experiment import Experiment
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.run.keeping import Keeping
from atgrpo_jax.run.metrics import CompileCounter, training_metrics, write_record
from atgrpo_jax.run.overlap import Overlap
from atgrpo_jax.run.playing import picking, rollouts_of, updating
from atgrpo_jax.run.report import draw_curves
from atgrpo_jax.run.scoring import Scoring
from atgrpo_jax.run.shapes import earlier
from atgrpo_jax.run.team_learner import TeamLearner
from atgrpo_jax.run.team_state import NOTHING, TeamState
from atgrpo_jax.run.tracking import tracked
from atgrpo_jax.tasks.calls import check_split
from atgrpo_jax.tasks.splits import SPLITS


class Stages:
    """Holds what a run has open. Use it with ``with``, which closes all of it.

    No stage keeps a TeamState: ``begin`` makes one, ``learner.update`` another. Only that of the
    last complete step is kept, so that a stop can save it. ``done`` is the number of that step.
    """

    def __init__(self, experiment: Experiment, folder: RunFolder, hosts: Hosts = ALONE):
        for split in SPLITS:
            check_split(experiment.task, split)  # a bad split is found before any time is spent
        pick = picking(experiment)
        self.experiment = experiment
        self.folder = folder
        self.hosts = hosts
        self.done = 0
        self.ending = Ending(experiment.steps, experiment.tokens)
        self._complete: TeamState | None = None  # after step ``done``
        self._saved: int | None = None  # step of the newest checkpoint; None before the first
        self._compiles = CompileCounter()
        check_one_host(experiment, hosts.count)
        check_precision(experiment)
        self.learner = TeamLearner(experiment, hosts)
        check_machines(hosts, experiment)
        self._keeping = Keeping(folder, experiment)
        self._checkpoints = Checkpoints(
            folder.checkpoints,
            experiment.identity(),
            experiment.keep_checkpoints,
            hosts=hosts,
            earlier=(*earlier(folder), *changes.identities(folder)),
            stays=self._keeping.staying,
        )
        with contextlib.ExitStack() as opening:  # closes what is open if the next one fails
            self.tracking = opening.enter_context(tracked(experiment, folder, hosts))
            partners = experiment.team.partners
            self._partners = opening.enter_context(
                opened(partners, folder.partners, "step", experiment.seed, hosts, folder.check_ours)
            )
            self._runner = opening.enter_context(experiment.running(hosts))
            self.engine = opening.enter_context(contextlib.closing(self.learner.engine()))
            hosts.even_out(lambda: self.engine.usage.programs)
            self.rollouts = rollouts_of(experiment, pick, self.engine, self._runner, self._partners, hosts)
            self._overlap = Overlap(experiment, self.learner, self.rollouts, self.credit)
            self._scoring = Scoring(experiment, folder, self.engine, self._runner, self._partners, hosts)
            self._gate = Gate(
                self.learner.models,
                experiment.tokenizer.stop_ids,
                experiment.rollout.temperature,
                experiment.max_logprob_gap,
                experiment.seed,
                hosts,
            )
            self._opened = opening.pop_all()

    def __enter__(self) -> "Stages":
        return self

    def __exit__(self, *exc) -> None:
        self._opened.close()

    def begin(self) -> TeamState:
        """Restores the newest checkpoint. If there is none, makes, scores and saves step 0.

        Returns the team after step ``done``.
        """
        learner = self.learner
        place = self.experiment, self.folder, self._checkpoints
        newest = told_json(self.hosts, "newest checkpoint", lambda: last_step.newest(*place))
        restored = None if newest is None else learner.restore(self._checkpoints, newest)
        self.hosts.told("run folder", lambda: self._take_up(newest))
        if restored is None:
            forked = self.experiment.origin is not None
            given = origin.load(self.folder, self.experiment, learner, self.hosts) if forked else NOTHING
            team = learner.initial(self._runner, given)
            self.folder.check_ours()
            score = self._scoring.score
            proof = self.sync(team)
            validation = score(0, "validation") if self._validates(0) else {}
            record = together(proof, validation, score(0, "test"))
            self._write(0, record)
            self.checkpoint(0, team)
        else:
            team = restored
            self.done = self._saved = newest
            team = team._replace(ahead=self._checkpoints.ahead(newest))
            self._count_again()
            self.sync(team)
        if self.experiment.refers:
            learner.refer_to(self._checkpoints, 0)
        self._complete = team
        return team

    def _count_again(self) -> None:
        """Counts the tokens of the steps that are done."""
        if tokens := self.experiment.tokens:
            records = told_json(self.hosts, "records", self.folder.read_metrics)
            self.ending = Ending(self.experiment.steps, tokens, records)

    def _take_up(self, newest: int | None) -> None:
        """Prepares the run folder to go on after step ``newest``, or to begin. Only host 0 does this."""
        latest = -1 if newest is None else newest
        self.folder.rewind(latest)
        changes.rewind(self.folder, latest)
        record_environment(self.folder, latest, self.hosts.count)
        self.tracking.begin(latest + 1)
        self._keeping.note(self._checkpoints.steps())
        if newest is not None:
            say(f"going on after step {newest} of {self.folder.path}")

    def credit(
        self, team: TeamState, episodes: Sequence[Episode]
    ) -> tuple[TeamState, list[Credited], dict[str, float]]:
        """Audits the groups, which ``team`` drew, or with a lag the one before its last update.

        Returns the team with its new memory and lessons, the groups with their advantages, and metrics.
        """
        for episode in episodes:
            for group in episode.groups:
                audit(group, team.version - team.lag, self.experiment.seed)
        run = self.experiment
        credited, metrics, memory = credit(episodes, alpha=run.alphas, rule=run.credit, memory=team.memory)
        first = {role: own.first_candidates for role, own in run.by_role.items()}
        credited, drawn = corrected(credited, first, run.alphas)
        lessons = learned(run.rollout.curriculum, team.lessons, episodes, credited, updating(run))
        return team._replace(memory=memory, lessons=lessons), credited, metrics | drawn

    def learn(
        self, team: TeamState, credited: Sequence[Credited], step: int
    ) -> tuple[TeamState, dict[str, float]]:
        """Updates the team with the groups of ``step``. Returns it, and metrics.

        With ``Experiment.max_lag`` the next step is played meanwhile, and is in the team as ``ahead``.
        """
        if self.experiment.max_lag:
            self.hosts.meet(f"begin of the update of step {step}", lambda: None, stops=True)
            return self._overlap.learn(team, credited, step)
        self.engine.release()  # the update frees the team's old arrays
        return self.learner.update(team, credited, step)

    def sync(self, team: TeamState) -> dict[str, float]:
        """Pushes the team's weights to the engine; the gate checks that it samples from them.

        Returns metrics. Raises NotFinite before the push if the weights compute numbers that are
        not finite. This is looked at even if ``Experiment.gate`` is false. Raises RunError if the
        gate's check fails.
        """
        began = time.monotonic()
        before = self.engine.usage
        weights = self.learner.weights(team)
        learned = self._gate.learned(weights, team.version)
        gate.push(self.engine, weights, team.version)
        metrics: dict[str, float] = {}
        if self.experiment.gate:
            corrected = self.experiment.loss.correction is not None
            metrics |= self._gate.check(self.engine, weights, team.version, corrected, learned)
        metrics["perf/sync_s"] = time.monotonic() - began
        used = self.engine.usage - before
        if used.push_bytes:
            metrics["perf/push_s"] = used.push_s
            metrics["perf/push_mb_per_s"] = used.push_bytes / 1e6 / used.push_s
        return metrics

    def record(
        self,
        step: int,
        team: TeamState,
        episodes: Sequence[Episode],
        credited: Sequence[Credited],
        *metrics: dict[str, float],
    ) -> dict[str, float]:
        """Scores the team if that is due, and writes the step's episodes and metrics.

        Returns the metrics. Raises NotFinite, before it writes, if one of them is not finite. The
        step is complete when this returns.
        """
        played = together(*metrics, training_metrics(self.experiment, step, episodes, credited))
        self.ending.count(step, played)
        last = step == self.ending.last
        scores: dict[str, float] = {}
        if self._validates(step):
            scores |= self._scoring.score(step, "validation", last)
        if last:
            scores |= self._scoring.score(step, "test")
        compiles = {"perf/compiles": float(self._compiles.count)}
        record = together(played, scores, compiles)
        check_finite(record, f"step {step}, metrics", UNTOUCHED)
        self._write(step, record, episodes, credited)
        self.done = step
        self._complete = team
        return record

    def _write(
        self,
        step: int,
        record: dict[str, float],
        episodes: Sequence[Episode] = (),
        credited: Sequence[Credited] = (),
    ) -> None:
        """Writes a step's episodes, if it has any, and its metrics. Host 0 does it for all."""

        def write() -> bytes:
            if episodes:
                own = self.experiment
                content = written(step, episodes, credited, own.tokenizer, own.alphas)
                self.folder.write_episodes(step, content)
            self.tracking.send(write_record(self.folder, step, record))
            if "validation/success" in record and 0 < step < self.ending.last:  # the end draws its own
                draw_curves(self.folder)
            return b""

        self.hosts.told(f"record of step {step}", write)

    def checkpoint(self, step: int, team: TeamState) -> None:
        """Saves the team after step ``step`` if a checkpoint is due, or if it is the best so far."""
        experiment = self.experiment
        due = step % experiment.checkpoint_every == 0 or step == self.ending.last
        due = due or bool(experiment.keep_every and step % experiment.keep_every == 0)
        if due or (experiment.keep_best and self._validates(step) and self._is_best(step)):
            self._save(step, team)

    def _is_best(self, step: int) -> bool:
        """Returns, on all hosts, whether no checkpoint has as high a validation success as ``step``."""
        steps = self._checkpoints.steps
        return told_json(self.hosts, "best so far", lambda: self._keeping.is_best(step, steps()))

    def _validates(self, step: int) -> bool:
        """Returns whether a step is followed by an evaluation on the validation split."""
        return self.experiment.evaluation.validates(step, self.ending.last)

    def checkpoint_now(self) -> None:
        """Saves the last complete step if it is not saved yet. (``begin`` saves step 0 itself.)"""
        if self.unsaved():
            assert self._complete is not None
            self._save(self.done, self._complete)
        if self.done and self.hosts.index == 0:
            draw_curves(self.folder)

    def unsaved(self) -> bool:
        """Returns whether complete steps would be lost if the process ended now."""
        return self.done > (self._saved or 0)

    def where(self) -> str:
        """Returns a line that says what is on disk if the run ends now."""
        if self._saved is None:
            return "stopped before the first checkpoint; the same command begins again"
        return f"stopped after step {self._saved}, which is saved; the same command goes on from there"

    def _save(self, step: int, team: TeamState) -> None:
        """Writes a checkpoint. Raises NotFinite first, so that no bad state replaces a good one."""
        for name, state in team.policies.items():
            check_tree(state, f"step {step}, policy {name}", UNTOUCHED)
        self.folder.check_ours()
        self._checkpoints.save(
            step, team.policies, team.base, team.version, team.memory, team.lessons, team.ahead
        )
        self._saved = step
        self.tracking.note()
        if self.experiment.keep_best and self.hosts.index == 0:
            self._keeping.note(self._checkpoints.steps())
