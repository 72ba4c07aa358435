"""Makes a team of model folders, which is played and not trained: one folder for all roles, or for each.

A folder may hold a PEFT adapter. Then it speaks with the base that it names, or with one that is given.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from atgrpo_jax.common.buckets import is_url
from atgrpo_jax.common.copies import absolute, local_folder
from atgrpo_jax.common.errors import ConfigError, RunError
from atgrpo_jax.common.progress import say
from atgrpo_jax.models.hf import adapters, hf
from atgrpo_jax.models.lora import LoraConfig
from atgrpo_jax.models.transformer import PolicyWeights
from atgrpo_jax.rollout.team import BASE
from atgrpo_jax.run.experiment import Experiment
from atgrpo_jax.run.starts import ALL, by_name
from atgrpo_jax.run.team_learner import TeamLearner
from atgrpo_jax.tokens import tiny_file
from atgrpo_jax.tokens.same_ids import check_same_ids
from atgrpo_jax.tokens.tokens import FolderTokenizer, TinyTokenizer, Tokenizer

# The folder of each role that has no partner.
Cast = Mapping[str, str]


def cast(given: Experiment, flag: str, text: str) -> Cast:
    """Reads "FOLDER" or "NAME=FOLDER,NAME=FOLDER", where a name is a role or a policy of ``given``.

    Raises ConfigError unless each role gets one folder.
    """
    drawn = given.team.drawn(given.task.workflow.roles)
    named = by_name(flag, text)
    if ALL in named:
        return dict.fromkeys(drawn, named[ALL])
    found: dict[str, str] = {}
    for name, folder in named.items():
        roles = [name] if name in drawn else [role for role in drawn if given.team.policy(role) == name]
        if not roles:
            known = ", ".join(dict.fromkeys((*drawn, *given.policies)))
            raise ConfigError(f"{flag}: there is no role or policy {name}; there are {known}")
        if twice := [role for role in roles if role in found]:
            raise ConfigError(f"{flag}: {twice[0]} is named twice")
        found |= dict.fromkeys(roles, folder)
    if lacking := [role for role in drawn if role not in found]:
        raise ConfigError(f"{flag} names no folder for {', '.join(lacking)}; write ROLE=FOLDER for each role")
    return found


def bases(casts: Sequence[Cast], given: str | None) -> dict[str, str]:
    """Returns the base of each folder that holds an adapter.

    It is the one that the adapter names, if that is there; a name that begins with a dot is seen from
    the adapter's folder, another one from the working directory. Else it is the ``given`` one.

    Raises ConfigError if a base is lacking, or one is given that no adapter lacks.
    """
    named: dict[str, str] = {}
    for folder in dict.fromkeys(folder for one in casts for folder in one.values()):
        if adapters.is_adapter(folder):
            base = adapters.read_about(folder).base
            named[folder] = _beside(folder, base) if base.startswith(".") else base
    lacking = {folder: base for folder, base in named.items() if not (base and hf.has_weights(_here(base)))}
    if given is None and lacking:
        folder, base = next(iter(lacking.items()))
        raise ConfigError(
            f"{folder} holds an adapter, and its base, {base or 'which it does not name'}, is not here; name "
            "the model folder that it was trained on: --base=FOLDER"
        )
    if given is not None and not lacking:
        there = ", ".join(sorted(set(named.values()))) or "no folder holds an adapter"
        raise ConfigError(f"--base={given} is not needed ({there}); leave it out")
    return named | dict.fromkeys(lacking, given or "")


def played(given: Experiment, casts: Sequence[Cast], under: Mapping[str, str]) -> Experiment:
    """Returns the experiment in which all of ``casts`` can be played, and that is set to the first one.

    Roles share a policy if they have the same folder in each cast. A policy that is an adapter in one
    cast is one in all. What ``given`` says of its team's weights does not count; the rest does, as
    settings of roles and how the tokenizer asks.

    Args:
      under: the base of each folder that holds an adapter; see ``bases``.

    Raises ConfigError or RunError if the folders do not go together.
    """
    policies: dict[tuple[str, ...], str] = {}
    names = {role: policies.setdefault(tuple(one[role] for one in casts), role) for role in casts[0]}
    alone = len(policies) == 1
    adapted = {name for folders, name in policies.items() if any(folder in under for folder in folders)}
    lora = _same_kind(casts, under)
    models: dict[str, str] = {}  # the model folder of each initial name
    for folders, name in policies.items():
        own = BASE if name in adapted else "shared" if alone else name
        models.setdefault(own, under.get(folders[0], folders[0]))
    sharing = {r: f"lora:{n}" if n in adapted else f"full:{n}" for r, n in names.items()}
    first = next(iter(policies))[0]
    used = dict.fromkeys(folder for one in casts for folder in one.values())
    try:
        experiment = dataclasses.replace(
            given,
            model={name: hf.architecture(folder) for name, folder in models.items()},
            tokenizer=_tokenizer(given.tokenizer, [_asked(folder, under) for folder in used]),
            team=dataclasses.replace(
                given.team,
                sharing=("lora:shared" if adapted else "shared") if alone else sharing,
                frozen=(),
                rates={},
                alternate=0,
            ),
            mesh=dataclasses.replace(given.mesh, policies=1),
            pretrained=models,
            lora=lora or given.lora,
            warm_start=None,
        )
    except ValueError as error:
        raise ConfigError(f"the folder {first}: {error}") from error
    for folder in used:
        check_same_ids(experiment.tokenizer, folder)
    for one in casts:
        found: dict[str, str] = {}
        for role, folder in one.items():
            initial = experiment.initial_name(experiment.team.policy(role))
            model = under.get(folder, folder)
            hf.check_same_model(experiment.architecture(initial), model)
            if initial == BASE and _here(found.setdefault(BASE, model)) != _here(model):
                raise ConfigError(
                    f"adapters of one team are on one base, not on {found[BASE]} and {model}; export --merge "
                    "makes models of them, which may differ"
                )
    return experiment


def team_weights(
    policies: TeamLearner, experiment: Experiment, one: Cast, under: Mapping[str, str]
) -> dict[str, PolicyWeights]:
    """Reads the weights of a cast that ``experiment`` was made of.

    A line says so if a base has other numbers than its adapter was trained on. Raises RunError if a folder
    does not hold what the team needs.
    """
    folders = {experiment.team.policy(role): folder for role, folder in one.items()}
    found: dict[str, PolicyWeights] = {}
    base: Any = None  # the same arrays for all adapters, so that they are drawn together
    digest = ""
    for name, folder in sorted(folders.items()):
        if name not in policies.adapted:
            found[name] = PolicyWeights(policies.load(folder, name))
            continue
        model = under.get(folder, folder)
        base = policies.load(model, BASE) if base is None else base
        found[name] = PolicyWeights(base, _adapter(policies, name, folder, under), experiment.lora.scale)
        trained_on = adapters.read_about(folder).base_digest if folder in under else ""
        digest = digest or (adapters.digest_of(base) if trained_on else "")
        if trained_on not in ("", digest):
            say(
                f"{model} has other numbers than {folder} was trained on: it was rounded (export "
                "--dtype=float32 keeps all) or is another model, so this may not be the team that was trained"
            )
    return found


def _adapter(policies: TeamLearner, name: str, folder: str, under: Mapping[str, str]) -> Any:
    """Returns the adapter in a folder, or for a whole model, which is then the base, one of zeros."""
    shapes = policies.shapes[name].params
    if folder in under:
        return adapters.load_adapter(folder, shapes, policies.models[name].family)
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype, device=s.sharding), shapes)


def _same_kind(casts: Sequence[Cast], under: Mapping[str, str]) -> LoraConfig | None:
    """Returns rank and alpha of all adapters; None if there are none. Raises ConfigError if they differ."""
    kinds: dict[LoraConfig, str] = {}
    for folder in dict.fromkeys(folder for one in casts for folder in one.values() if folder in under):
        kinds.setdefault(adapters.read_about(folder).config, folder)
    if len(kinds) > 1:
        told = " and ".join(f"{f} of rank {k.rank}, alpha {k.alpha:g}" for k, f in kinds.items())
        raise ConfigError(
            f"adapters that are scored together are of one kind, not {told}; export --merge makes models of "
            "them"
        )
    return next(iter(kinds), None)


def _beside(folder: str, name: str) -> str:
    """Returns what a relative name says, seen from a folder, which may be in a bucket."""
    scheme, _, path = absolute(folder).rpartition("//")
    return (f"{scheme}//" if scheme else "") + os.path.normpath(f"{path}/{name}")


def _here(folder: str) -> str:
    """Returns where a folder is on this disk; one in a bucket as it is."""
    return folder if is_url(folder) else str(local_folder(folder).resolve())


def _asked(folder: str, under: Mapping[str, str]) -> str:
    """Returns the folder whose tokenizer counts: an adapter may have none beside it, and takes its base's."""
    there = any((local_folder(folder) / name).is_file() for name in ("tokenizer.json", tiny_file.NAME))
    return folder if there else under.get(folder, folder)


def _tokenizer(own: Tokenizer, folders: Sequence[str]) -> Tokenizer:
    """Returns the tokenizer of the first folder, which asks as ``own`` does if that is of a folder, too.

    If the folder has none, ``own`` speaks for it, unless that is of another folder. Raises RunError if
    some folders hold a tiny tokenizer and others another one, or none.
    """
    first, *others = folders
    found = tiny_file.read(local_folder(first))
    for folder in others:
        if tiny_file.read(local_folder(folder)) != found:
            raise RunError(f"{folder} has another tokenizer than {first}; a team shares one tokenizer")
    if found is not None:
        return found
    if isinstance(own, FolderTokenizer):
        return dataclasses.replace(own, folder=first)
    if (local_folder(first) / "tokenizer.json").is_file() or isinstance(own, TinyTokenizer):
        return FolderTokenizer(first)
    say(f"{first} has no tokenizer; that of the gin files speaks for it")
    return own
