"""Makes the warm start that an experiment asks for."""

from collections.abc import Callable, Mapping
from typing import Any

from jax.sharding import Mesh

from atgrpo_jax.arrays.finite_trees import check_tree
from atgrpo_jax.common.hosts import Hosts
from atgrpo_jax.common.types import hash_bytes
from atgrpo_jax.models.transformer import Transformer
from atgrpo_jax.run import kept_files
from atgrpo_jax.run.experiment import Experiment
from atgrpo_jax.run.kept_modules import modules_of
from atgrpo_jax.sandbox.protocol import Runner
from atgrpo_jax.update.warm_start import warm_start


def warmed(
    experiment: Experiment,
    fresh: Mapping[str, Callable[[], Any]],
    models: Mapping[str, Transformer],
    meshes: Mapping[str, Mesh],
    runner: Runner | None,
    hosts: Hosts,
) -> dict[str, Any]:
    """Returns the parameters of each of ``Experiment.initial_names`` after its warm start.

    Raises as ``warm_start`` does, and NotFinite if what is cached holds numbers that are not finite.
    """
    assert experiment.warm_start is not None
    params = warm_start(
        experiment.warm_start,
        experiment.optimizer,
        fresh,
        models=models,
        meshes={name: meshes[name] for name in fresh},
        task=experiment.task,
        team=experiment.team.starting(experiment.task.workflow.roles),
        tokenizer=experiment.tokenizer,
        batch=experiment.batch,
        seed=experiment.seed,
        source=_source(experiment),
        runner=runner,
        hosts=hosts,
    )
    for name, own in params.items():
        where = f"policy {name}, as the warm start left it"
        check_tree(own, where, f"delete what is cached in {experiment.warm_start.cache_dir}")
    return params


def _source(experiment: Experiment) -> str:
    """Returns a text that is another one if the task, what it reads, its modules or the first weights are."""
    parts = [kept_files.represented(part, experiment) for part in (experiment.task, experiment.pretrained)]
    modules = {name: hash_bytes(file.read_text()).hex() for name, file in modules_of(experiment).items()}
    return " ".join([*parts, repr(modules), kept_files.weights_digest(experiment)])
