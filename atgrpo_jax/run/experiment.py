"""Holds everything that defines a run in one frozen value."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from atgrpo_jax.arrays.mesh import MeshConfig
from atgrpo_jax.common.checks import check_types, require
from atgrpo_jax.common.copies import absolute
from atgrpo_jax.common.hosts import ALONE, Hosts, check_alike
from atgrpo_jax.common.literals import shortened
from atgrpo_jax.common.progress import say
from atgrpo_jax.common.types import Sampling, hash_bytes
from atgrpo_jax.credit.groups import CreditConfig
from atgrpo_jax.engines.local.local import LocalEngineConfig
from atgrpo_jax.engines.protocol import EngineConfig
from atgrpo_jax.models.config import Architecture, Compute
from atgrpo_jax.models.families.table import family_of
from atgrpo_jax.models.lora import LoraConfig
from atgrpo_jax.rollout.evaluation import EvaluationConfig
from atgrpo_jax.rollout.rollout import RolloutConfig
from atgrpo_jax.rollout.team import BASE, Team
from atgrpo_jax.run.agreement import check_credit, check_lag, check_siblings, check_vocabulary
from atgrpo_jax.run.kept_files import differences, represented
from atgrpo_jax.run.role_settings import RoleSettings, role_settings
from atgrpo_jax.sandbox.pool import SandboxConfig
from atgrpo_jax.sandbox.protocol import Runner
from atgrpo_jax.tasks.protocol import Demonstrating, Task, ToolTask, missing
from atgrpo_jax.tokens.tokens import FolderTokenizer, TinyTokenizer, Tokenizer
from atgrpo_jax.tracking.trackers import Trackers
from atgrpo_jax.update.batch import BatchConfig
from atgrpo_jax.update.objectives import LossConfig
from atgrpo_jax.update.optimizer import OptimizerConfig
from atgrpo_jax.update.warm_start import WarmStartConfig

# Fields that may change when a run goes on: they do not affect the steps that are done.
CHANGEABLE = ("steps", "tokens", "checkpoint_every", "keep_checkpoints", "keep_every", "keep_best",
              "trackers")  # fmt: skip
SHOWN = 3  # of the fields in which two experiments differ


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The whole config of a run.

    Policies start from random parameters of ``model``, or from the ``pretrained`` Hugging Face
    folders. Then they get the ``warm_start``, if there is one. Those of a fork start from another run.

    ``model`` and ``pretrained`` are either one value for all policies, or a mapping with one for
    each policy. Adapters have none of their own: the mapping names "base", which they are all on.
    The models of a team may differ, but they share one ``tokenizer``.
    """

    task: Task | ToolTask  # what is played
    team: Team = Team()
    tokenizer: Tokenizer = TinyTokenizer()
    model: Architecture | Mapping[str, Architecture] = Architecture()
    compute: Compute = Compute()  # how all models are computed
    pretrained: str | Mapping[str, str] | None = None
    lora: LoraConfig = LoraConfig()  # for policies that are adapters
    mesh: MeshConfig = MeshConfig()
    engine: EngineConfig = LocalEngineConfig()
    sandbox: SandboxConfig = SandboxConfig()  # for tasks whose roles write programs
    rollout: RolloutConfig = RolloutConfig()
    credit: CreditConfig = CreditConfig()
    batch: BatchConfig = BatchConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    warm_start: WarmStartConfig | None = WarmStartConfig()
    evaluation: EvaluationConfig = EvaluationConfig()  # on instances that training does not see
    steps: int = 100  # of training
    seed: int = 0  # of parameters and samples; tasks have seeds of their own
    checkpoint_every: int = 10  # steps
    keep_checkpoints: int = 2  # how many of the newest are kept; step 0 is kept as well
    # Fields without repr are no part of the identity that older runs have, too.
    tokens: int = dataclasses.field(default=0, repr=False)  # drawn in training, and it ends; 0 is off
    keep_every: int = dataclasses.field(default=0, repr=False)  # steps; each such one is kept; 0 is off
    keep_best: bool = dataclasses.field(default=False, repr=False)  # by validation; the earliest of equals
    origin: str | None = dataclasses.field(default=None, repr=False)  # of a fork: see origin.py
    # 1: a step is played with the weights before its last update, while that is made (docs/overlap.md).
    max_lag: Literal[0, 1] = dataclasses.field(default=0, repr=False)
    max_logprob_gap: float = 1e-3  # largest |learner - sampler| logprob that is allowed
    gate: bool = True  # after every push, check the engine's weights; see engines/gate.py
    trackers: Trackers = dataclasses.field(default=Trackers(), repr=False)  # who else shows the records

    def __post_init__(self):
        lacks = missing(self.task)
        if lacks:
            raise ValueError(f"Experiment.task: {type(self.task).__name__} has no {', '.join(lacks)}")
        check_types(self)
        if self.warm_start is not None and not isinstance(self.task, Demonstrating):
            raise ValueError(
                f"Experiment.task: {type(self.task).__name__} has no demonstration, and a warm start needs "
                "it; write one, or experiment.Experiment.warm_start = None"
            )
        object.__setattr__(self, "pretrained", _absolute(self.pretrained))
        for name in ("steps", "checkpoint_every", "keep_checkpoints"):
            require(self, name, getattr(self, name) >= 1, "must be at least 1")
        for name in ("tokens", "keep_every"):
            require(self, name, getattr(self, name) >= 0, "must not be negative")
        scored = not self.keep_best or self.evaluation.every > 0
        require(self, "keep_best", scored, "nothing is scored on the way with EvaluationConfig.every = 0")
        require(self, "seed", self.seed >= 0, "must not be negative; every number is a seed of its own")
        require(self, "max_logprob_gap", self.max_logprob_gap > 0, "must be positive")
        check_credit(self)
        shown = not isinstance(self.tokenizer, FolderTokenizer) or self.tokenizer.shows_messages
        require(self, "tokenizer", shown, "its chat template does not show what a message says")
        self.team.policies(self.task.workflow.roles)
        for role in self.task.workflow.roles:
            self.of_role(role)  # checks what the team says of the role
        check_siblings(self)
        for name in ("model", "pretrained"):
            given = getattr(self, name)
            exact = not isinstance(given, Mapping) or set(given) == set(self.initial_names)
            require(self, name, exact, f"must name exactly {', '.join(self.initial_names)}")
        for name in self.initial_names:
            family_of(self.architecture(name))
            check_vocabulary(self, name)
        sides = self.mesh.policies
        policies = self.policies
        rule = f"meshes for {sides} policies, but there are only: {', '.join(policies)}"
        require(self, "mesh", sides <= len(policies), rule)
        rule = f"adapters are on one {BASE}, on one mesh, so policies must be 1"
        require(self, "mesh", sides == 1 or BASE not in self.initial_names, rule)
        require(
            self,
            "batch",
            self.batch.rows % self.mesh.rows == 0,
            f"BatchConfig.rows must be a multiple of mesh {self.mesh.rows_text}",
        )
        self.engine.check(self.mesh)
        check_lag(self)

    @property
    def policies(self) -> tuple[str, ...]:
        return self.team.policies(self.task.workflow.roles)

    def of_role(self, role: str) -> RoleSettings:
        """Returns how a role draws and learns."""
        return role_settings(self.team, self.rollout, self.loss, role)

    @property
    def by_role(self) -> dict[str, RoleSettings]:
        """Returns how each role draws and learns that has no partner."""
        return {role: self.of_role(role) for role in self.team.drawn(self.task.workflow.roles)}

    @property
    def alphas(self) -> dict[str, float]:
        """Returns the weight of the team part in each role's mixed reward."""
        return {role: self.team.alpha_of(role) for role in self.task.workflow.roles}

    def evaluated(self, temperature: float | None = None) -> dict[str, Sampling]:
        """Returns how each role draws in an evaluation; see ``EvaluationConfig.sampling``."""
        by_role = self.by_role.items()
        return {role: self.evaluation.sampling(own.sampling, temperature) for role, own in by_role}

    @property
    def longest_answer(self) -> int:
        """Returns the most tokens of an answer of any role."""
        return max(settings.sampling.max_tokens for settings in self.by_role.values())

    @property
    def most_candidates(self) -> int:
        """Returns the largest group that is drawn at once."""
        if not self.rollout.tree:
            return 1
        return max(settings.candidates for settings in self.by_role.values())

    @property
    def losses(self) -> tuple[LossConfig, ...]:
        """Returns the different losses of the roles; batches know them by their number."""
        return tuple(dict.fromkeys(settings.loss for settings in self.by_role.values()))

    @property
    def refers(self) -> bool:
        """Returns whether a loss compares with the starting policies."""
        return any(loss.kl for loss in self.losses)

    @property
    def initial_names(self) -> tuple[str, ...]:
        """Returns the names of the different starting weights; all adapters share one, "base"."""
        roles = self.task.workflow.roles
        return self.team.starting(roles).policies(roles)

    def initial_name(self, policy: str) -> str:
        """Returns the name in ``initial_names`` of the weights that a policy starts from."""
        adapter = policy in self.policies and self.team.kind(policy, self.task.workflow.roles) == "lora"
        return BASE if adapter else policy

    def architecture(self, initial: str) -> Architecture:
        """Returns the architecture of one of ``initial_names``.

        If it sets a vocabulary, that may be larger than the tokenizer's (padded). Of a folder's tokenizer,
        placeholders that nothing makes may be beyond it (``FolderTokenizer.least_rows``).
        """
        return self.model[initial] if isinstance(self.model, Mapping) else self.model

    def folder(self, initial: str) -> str | None:
        """Returns the model folder of one of ``initial_names``; None if it begins at random."""
        return self.pretrained[initial] if isinstance(self.pretrained, Mapping) else self.pretrained

    @contextlib.contextmanager
    def running(self, hosts: Hosts = ALONE) -> Iterator[Runner | None]:
        """Opens the sandbox that runs the roles' programs; gives None if the roles write none.

        Raises RunError if this machine cannot keep programs apart as the sandbox's config asks, or if
        one of the ``hosts`` has another level than this one.
        """
        if not isinstance(self.task, ToolTask) or not self.task.tools:
            yield None
            return
        packages = dict.fromkeys((*self.sandbox.packages, *self.task.packages))
        sandbox = dataclasses.replace(self.sandbox, packages=tuple(packages)).build(self.task.warm_up)
        with contextlib.closing(sandbox):
            say(sandbox.about())
            check_alike(hosts, "the sandbox", lambda: {"the sandbox level": sandbox.level})
            yield sandbox

    def begun(self, recorded: "Experiment | None" = None) -> "Experiment":
        """Returns the experiment with a fixed date, so that nothing depends on the day.

        Chat templates may write a date. It is that of the ``recorded`` run, if this one goes on
        with it, and otherwise today's. A fork goes on as one, also if it is not said again.
        """
        begun = self
        if recorded is not None and recorded.origin is not None and self.origin is None:
            begun = dataclasses.replace(begun, origin=recorded.origin, warm_start=None)
        if not isinstance(begun.tokenizer, FolderTokenizer):
            return begun
        like = recorded.tokenizer if recorded else None
        return dataclasses.replace(begun, tokenizer=begun.tokenizer.dated(like))

    def identity(self) -> str:
        """Returns a digest; experiments with the same one leave the same bytes, step by step.

        Files count by their contents, wherever they are.
        """
        started = "" if self.origin is None else f" from {self.origin}"
        lag = f" max_lag = {self.max_lag}" if self.max_lag else ""
        return hash_bytes(represented(without_changeable(self), self) + started + lag).hex()


def _absolute(folders: str | Mapping[str, str] | None) -> str | dict[str, str] | None:
    """Makes paths absolute: a run may be read in another directory than it was started in."""
    if isinstance(folders, Mapping):
        return {name: absolute(folder) for name, folder in folders.items()}
    return None if folders is None else absolute(folders)


def experiment_difference(ours: Experiment, theirs: Experiment) -> str | None:
    """Returns a line on the first ``SHOWN`` fields in which two experiments differ, and how many more
    do; None if they agree.

    Fields that may change when a run goes on are not compared.
    """
    found = [_told(*one) for one in experiment_changes(ours, theirs)]
    more = [f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
    return "; ".join(found[:SHOWN] + more) or None


def experiment_changes(ours: Experiment, theirs: Experiment) -> Iterator[tuple[str, Any, Any]]:
    """Yields name, our value and theirs of all fields that ``experiment_difference`` looks at."""
    return differences("Experiment", without_changeable(ours), without_changeable(theirs))


def without_changeable(experiment: Experiment) -> Experiment:
    defaults: dict[str, Any] = {
        f.name: f.default for f in dataclasses.fields(Experiment) if f.name in CHANGEABLE
    }
    warm_start = experiment.warm_start
    if warm_start is not None:
        warm_start = dataclasses.replace(warm_start, cache_dir="")
    engine = experiment.engine.same_samples()
    sandbox = dataclasses.replace(experiment.sandbox, level=SandboxConfig.level, workers=0)
    partners = {role: partner.same_answers() for role, partner in experiment.team.partners.items()}
    team = dataclasses.replace(experiment.team, partners=partners)
    return dataclasses.replace(
        experiment, **defaults, team=team, warm_start=warm_start, engine=engine, sandbox=sandbox
    )


def first_difference(name: str, ours: Any, theirs: Any) -> str | None:
    """Returns a line on the first field in which two values differ; None if they are equal.

    ``name`` is what to call the values if they are not dataclasses.
    """
    return next((_told(*found) for found in differences(name, ours, theirs)), None)


def _told(field: str, ours: Any, theirs: Any) -> str:
    own, other = shortened(ours, theirs)
    return f"{field} = {other} there, {own} given"
