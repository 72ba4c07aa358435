"""Defines what training changes, what it starts from, and who looks on."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from atgrpo_jax.rollout.curriculum import NO_LESSONS, Lessons
from atgrpo_jax.rollout.rollouts import Played
from atgrpo_jax.update.learner import Learner, PolicyState, UpdateInputs


class TeamState(NamedTuple):
    """All that training changes, and what that stands on. Stages pass it on; checkpoints hold it."""

    policies: Mapping[str, PolicyState]
    base: Any = None  # frozen parameters that adapters are on; None in a team without adapters
    version: int = 0  # of the weights: how many updates the team has had; the engine is told it
    memory: Mapping[str, float] = {}  # of the rule of credit; see ``CreditConfig.remembered``
    lessons: Lessons = NO_LESSONS  # what instances taught; of the curriculum
    ahead: Played | None = None  # of the next step, played before the last update; ``Experiment.max_lag``

    @property
    def lag(self) -> int:
        """Returns how many versions older the weights are that drew the step's samples."""
        return int(self.ahead is not None)


class Given(NamedTuple):
    """Parameters that policies start from: by initial name, and adapters by policy."""

    params: Mapping[str, Any]
    adapters: Mapping[str, Any]


NOTHING = Given({}, {})


class Watch(Protocol):
    """Looks at each minibatch of an update, just before its optimizer step."""

    def __call__(self, policy: str, learner: Learner, state: PolicyState, inputs: UpdateInputs) -> None: ...
