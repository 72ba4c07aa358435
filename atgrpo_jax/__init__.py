"""AT-GRPO for teams of LLM agents, in JAX.

One training step, in the names of the folders and modules:

    tasks -> rollout (tokens, engines, sandbox) -> credit -> update (batch, loss, learner)
          -> engines (push, gate) -> run (metrics, checkpoint) -> next step

Words, each with one meaning:

    instance     a problem of a task, named by its split and number
    episode      one play of an instance, from its first turn to its end
    success      the share of episodes that end solved; in training of the best of K, in evaluations of one
    turn         one round of an episode: the stages of the workflow, one after the other
    stage        those who speak at the same time, in the same state
    role         who speaks: a name, a prompt, a part of the reward
    seat         one of several who speak for one role, with its policy and its prompt
    policy       parameters that speak for one role or several
    team         all roles, and which policy speaks for which
    sample       the tokens that an engine drew once, with their log-probabilities
    candidate    a sample with its text, reward and outcome; one of K from the same prompt and state
    group        the K candidates of one who speaks, once, in an episode
    signal       what a group has whose rewards are not all equal; the others teach nothing
    executed     the group's candidate whose state the episode goes on from
    reward       alpha * team + local: what all roles share, and what one role earned
    advantage    a candidate's reward relative to its group
    address      where a sample belongs (seed, step, instance, episode, turn, ..., k); it fixes the noise
    minibatch    the groups of one optimizer step
    row          T tokens: prompts, each once, and after each the answers to it; groups are packed in rows
    micro-batch  B rows that are computed at once; a minibatch is A of them
    engine       who draws samples, with weights that were pushed to it
    push         gives an engine new weights of a policy; they have a version
    gate         the check that an engine holds the weights that were pushed
    warm start   supervised steps on demonstrations, before training
    architecture what a model is, as its config.json says; how it is computed is apart from that
    window       how many tokens a layer sees, itself included

Axis suffixes on array names. A file with letters of its own lists them at its top:

    G groups    K candidates    A micro-batches    B rows    T tokens in a row    P prompt tokens
    V vocabulary    D model width    F MLP width    L layers
    N query heads    M key/value heads    H head size
"""

import importlib
from typing import TYPE_CHECKING, Any

from atgrpo_jax.version import __version__ as __version__

if TYPE_CHECKING:
    from atgrpo_jax.arrays.mesh import MeshConfig as MeshConfig
    from atgrpo_jax.common.types import Outcome as Outcome
    from atgrpo_jax.common.types import Reward as Reward
    from atgrpo_jax.credit.groups import CreditConfig as CreditConfig
    from atgrpo_jax.engines.local.local import LocalEngineConfig as LocalEngineConfig
    from atgrpo_jax.engines.protocol import EngineConfig as EngineConfig
    from atgrpo_jax.engines.sglang.sglang import SGLangConfig as SGLangConfig
    from atgrpo_jax.models.config import Architecture as Architecture
    from atgrpo_jax.models.config import Compute as Compute
    from atgrpo_jax.models.lora import LoraConfig as LoraConfig
    from atgrpo_jax.partners.partners import Partner as Partner
    from atgrpo_jax.rollout.curriculum import CurriculumConfig as CurriculumConfig
    from atgrpo_jax.rollout.evaluation import EvaluationConfig as EvaluationConfig
    from atgrpo_jax.rollout.rollout import RolloutConfig as RolloutConfig
    from atgrpo_jax.rollout.team import Team as Team
    from atgrpo_jax.run.experiment import Experiment as Experiment
    from atgrpo_jax.run.python import load_experiment as load_experiment
    from atgrpo_jax.run.python import train_team as train_team
    from atgrpo_jax.sandbox.pool import SandboxConfig as SandboxConfig
    from atgrpo_jax.tasks.breadth.breadth import Breadth as Breadth
    from atgrpo_jax.tasks.code.code import Code as Code
    from atgrpo_jax.tasks.environments.reasoning import ReasoningGym as ReasoningGym
    from atgrpo_jax.tasks.environments.stepwise import StepWise as StepWise
    from atgrpo_jax.tasks.games.plan_path import PlanPath as PlanPath
    from atgrpo_jax.tasks.games.sokoban import Sokoban as Sokoban
    from atgrpo_jax.tasks.games.split_sight import SplitSight as SplitSight
    from atgrpo_jax.tasks.games.sudoku import Sudoku as Sudoku
    from atgrpo_jax.tasks.math.math import Math as Math
    from atgrpo_jax.tasks.protocol import Transition as Transition
    from atgrpo_jax.tasks.search.search import Search as Search
    from atgrpo_jax.tasks.splits import in_split as in_split
    from atgrpo_jax.tasks.workflow import Workflow as Workflow
    from atgrpo_jax.tokens.tokens import FolderTokenizer as FolderTokenizer
    from atgrpo_jax.tokens.tokens import TinyTokenizer as TinyTokenizer
    from atgrpo_jax.tools.check_task import check_experiment as check_experiment
    from atgrpo_jax.tracking.mlflow import MLflow as MLflow
    from atgrpo_jax.tracking.trackers import Trackers as Trackers
    from atgrpo_jax.tracking.trackio import Trackio as Trackio
    from atgrpo_jax.tracking.wandb import Wandb as Wandb
    from atgrpo_jax.update.batch import BatchConfig as BatchConfig
    from atgrpo_jax.update.objectives import GSPOLossConfig as GSPOLossConfig
    from atgrpo_jax.update.objectives import LossConfig as LossConfig
    from atgrpo_jax.update.objectives import Objective as Objective
    from atgrpo_jax.update.optimizer import OptimizerConfig as OptimizerConfig
    from atgrpo_jax.update.warm_start import WarmStartConfig as WarmStartConfig
    from atgrpo_jax.viewing.page import tree as tree

# What is offered to Python programs, and where it is defined. A name is imported when it is used:
# JAX takes seconds, and commands answer --help without it.
_HOMES = {
    "common.types": ("Outcome", "Reward"),
    "arrays.mesh": ("MeshConfig",),
    "credit.groups": ("CreditConfig",),
    "engines.local.local": ("LocalEngineConfig",),
    "engines.protocol": ("EngineConfig",),
    "engines.sglang.sglang": ("SGLangConfig",),
    "models.config": ("Architecture", "Compute"),
    "models.lora": ("LoraConfig",),
    "partners.partners": ("Partner",),
    "rollout.curriculum": ("CurriculumConfig",),
    "rollout.evaluation": ("EvaluationConfig",),
    "rollout.rollout": ("RolloutConfig",),
    "rollout.team": ("Team",),
    "run.experiment": ("Experiment",),
    "run.python": ("load_experiment", "train_team"),
    "sandbox.pool": ("SandboxConfig",),
    "tasks.breadth.breadth": ("Breadth",),
    "tasks.code.code": ("Code",),
    "tasks.environments.reasoning": ("ReasoningGym",),
    "tasks.environments.stepwise": ("StepWise",),
    "tasks.games.plan_path": ("PlanPath",),
    "tasks.games.sokoban": ("Sokoban",),
    "tasks.games.split_sight": ("SplitSight",),
    "tasks.games.sudoku": ("Sudoku",),
    "tasks.math.math": ("Math",),
    "tasks.protocol": ("Transition",),
    "tasks.search.search": ("Search",),
    "tasks.splits": ("in_split",),
    "tasks.workflow": ("Workflow",),
    "tokens.tokens": ("FolderTokenizer", "TinyTokenizer"),
    "tools.check_task": ("check_experiment",),
    "tracking.mlflow": ("MLflow",),
    "tracking.trackers": ("Trackers",),
    "tracking.trackio": ("Trackio",),
    "tracking.wandb": ("Wandb",),
    "update.batch": ("BatchConfig",),
    "update.objectives": ("GSPOLossConfig", "LossConfig", "Objective"),
    "update.optimizer": ("OptimizerConfig",),
    "update.warm_start": ("WarmStartConfig",),
    "viewing.page": ("tree",),
}
__all__ = ["__version__", *sorted(name for names in _HOMES.values() for name in names)]


if not TYPE_CHECKING:  # which then finds names that are not there

    def __getattr__(name: str) -> Any:
        for home, names in _HOMES.items():
            if name in names:
                return getattr(importlib.import_module(f"atgrpo_jax.{home}"), name)
        raise AttributeError(f"module 'atgrpo_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
