"""Trained teams that are scored again: what may change, and whose policies are exchanged."""

import dataclasses

import pytest

from atgrpo_jax.arrays.mesh import MeshConfig
from atgrpo_jax.common.errors import ConfigError
from atgrpo_jax.models.transformer import PolicyWeights
from atgrpo_jax.run.gin_config import load
from atgrpo_jax.run.rescoring import check_rescored, check_swap, swapped

BOTH = ("scout", "mover")


def test_two_roles_exchange_their_policies_and_the_others_keep_theirs():
    x = load(["plan.gin", "teams/roles.gin"])
    weights = {name: PolicyWeights(name) for name in ("scout", "mover", "third")}
    check_swap(x, BOTH)
    found = swapped(x, BOTH, weights)
    assert {name: own.params for name, own in found.items()} == {
        "scout": "mover", "mover": "scout", "third": "third",
    }  # fmt: skip
    assert swapped(x, BOTH, found) == weights


def test_what_cannot_be_exchanged_is_said():
    alone, roles, adapters = (load(["plan.gin", f"teams/{name}.gin"]) for name in ("shared", "roles", "lora"))
    check_swap(adapters, BOTH)
    large = dataclasses.replace(roles.model, layers=roles.model.layers + 1)
    unlike = dataclasses.replace(roles, model={"scout": roles.model, "mover": large})
    mixed = dataclasses.replace(
        roles, team=dataclasses.replace(roles.team, sharing={"scout": "lora:scout", "mover": "full:mover"})
    )
    apart = dataclasses.replace(roles, mesh=MeshConfig(policies=2))
    for x, named, line in (
        (alone, BOTH, "scout and mover share the policy shared"),
        (roles, ("scout", "scout"), "name two roles of scout, mover, not scout and scout"),
        (roles, ("scout", "judge"), "not scout and judge"),
        (unlike, BOTH, "have models that are not alike"),
        (mixed, BOTH, "one has an adapter"),
        (apart, BOTH, "give one mesh for all"),
    ):
        with pytest.raises(ConfigError, match=line):
            check_swap(x, named)


def test_a_trained_team_may_get_another_task_and_no_other_loss():
    trained = load("smoke.gin")
    check_rescored(trained, load("smoke.gin", ["evaluation.EvaluationConfig.instances = 3"]))
    check_rescored(trained, load("smoke.gin", ["plan_path.PlanPath.size = 5"]))
    for other, line in (
        ("objectives.LossConfig.epochs = 3", "not .*epochs"),
        ("workflow.Workflow.order = ('mover',)", "not its roles to mover"),
    ):
        with pytest.raises(ConfigError, match=f"may change the task and the evaluation of a run, {line}"):
            check_rescored(trained, load("smoke.gin", [other]))
