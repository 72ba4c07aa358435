"""Gives the team after any step of a run: from the nearest checkpoint, trained forward."""

from collections.abc import Callable

from atgrpo_jax.arrays.trees import Damaged
from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.progress import Progress, say
from atgrpo_jax.credit.groups import Credited, remembered
from atgrpo_jax.rollout.curriculum import learned
from atgrpo_jax.rollout.rollouts import Played
from atgrpo_jax.run.playing import updating
from atgrpo_jax.run.recorded import credited_of, episode_of
from atgrpo_jax.run.saved import SavedRun
from atgrpo_jax.run.team_state import TeamState, Watch


class Teams:
    """The teams of a run, one after the other.

    Between checkpoints it learns from the recorded groups, as the run did, and draws nothing. So the team
    is the run's to the last bit, on the same machine and mesh. A team is valid until the next one is
    asked for: updates free its arrays.
    """

    def __init__(self, saved: SavedRun, before_update: Callable[[], None] = lambda: None):
        """
        Args:
          before_update: called when the arrays of the last team are about to be freed.
        """
        self._saved = saved
        self._before_update = before_update
        self._team: TeamState | None = None
        self._step = -1

    def after(self, step: int) -> TeamState:
        """Returns the team after ``step``.

        Raises RunError if there is no checkpoint at or before it, if the episodes of a step between are
        not kept, or if they do not follow from the checkpoint.
        """
        near = [found for found in self._saved.steps() if found <= step]
        if self._team is None or not max(near, default=0) <= self._step <= step:
            self._restore(near, step)
        with Progress("training forward", step, "step", self._step, compiles=True) as progress:
            while self._step < step:
                self.learn()
                progress.advance()
        assert self._team is not None
        return self._team

    def that_drew(self, step: int, version: int) -> TeamState:
        """Returns the team of this ``version`` that drew the groups of ``step``, or else the one before it.

        With ``Experiment.max_lag`` it may be the one before that. Raises as ``after`` does.
        """
        if step > 1 and self._saved.at(step).experiment.max_lag:
            team = self.after(step - 2)
            if team.version == version:
                return team
        return self.after(step - 1)

    def learn(self, watch: Watch | None = None) -> tuple[TeamState, list[Credited]]:
        """Makes the next step's update. Returns the team after it, and the step's groups."""
        assert self._team is not None
        step = self._step + 1
        folder = self._saved.folder
        saved = self._saved.at(step)
        if saved.experiment.refers and not saved.learner.reference:
            saved.learner.refer_to(saved.checkpoints, 0)
        sampling = {role: own.sampling for role, own in saved.experiment.by_role.items()}
        try:
            records = list(folder.read_episodes(step))
        except FileNotFoundError as error:
            raise RunError(f"{folder.episodes_of(step)} is missing; the step cannot be made again") from error
        credited = [item for record in records for item in credited_of(record, sampling)]
        episodes = [episode_of(record, sampling) for record in records]
        memory = remembered(
            episodes,
            alpha=saved.experiment.alphas,
            rule=saved.experiment.credit,
            memory=self._team.memory,
        )
        curriculum = saved.experiment.rollout.curriculum
        updates = updating(saved.experiment)
        lessons = learned(curriculum, self._team.lessons, episodes, credited, updates)
        versions = [group.origin.version for episode in episodes for group in episode.groups]
        lags = saved.experiment.max_lag and max(versions) < self._team.version
        ahead = Played(episodes, {}) if lags else None
        before = self._team._replace(memory=memory, lessons=lessons, ahead=ahead)
        self._before_update()
        try:
            team, _ = saved.learner.update(before, credited, step, watch)
        except RunError as error:
            raise RunError(
                f"the episodes of step {step} do not follow from the team after step {self._step}, so a "
                f"checkpoint or a file of episodes is not the run's: {error}"
            ) from error
        self._team = team
        self._step = step
        return team, credited

    def _restore(self, near: list[int], step: int) -> None:
        for found in reversed(near):
            try:
                self._team = self._saved.team(found)
            except RunError as error:
                if not isinstance(error.__cause__, Damaged) or found == near[0]:
                    raise
                say(f"{error.__cause__}; an earlier one is taken")
                continue
            self._step = found
            return
        raise RunError(f"{self._saved.folder.path} has no checkpoint at or before step {step}")
