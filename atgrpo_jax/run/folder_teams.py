"""Makes a team of model folders, which is played and not trained: one folder for all roles, or for each."""

import dataclasses
from collections.abc import Mapping, Sequence

from atgrpo_jax.common.copies import local_folder
from atgrpo_jax.common.errors import ConfigError, RunError
from atgrpo_jax.common.progress import say
from atgrpo_jax.models.hf import hf
from atgrpo_jax.run.experiment import Experiment
from atgrpo_jax.run.starts import ALL, by_name
from atgrpo_jax.tokens import tiny_file
from atgrpo_jax.tokens.tokens import FolderTokenizer, TinyTokenizer, Tokenizer, check_same_ids

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


def played(given: Experiment, casts: Sequence[Cast]) -> Experiment:
    """Returns the experiment in which all of ``casts`` can be played, and that is set to the first one.

    Roles share a policy if they have the same folder in each cast. What ``given`` says of its team's
    weights does not count; the rest does, as settings of roles and how the tokenizer asks.

    Raises ConfigError or RunError if the folders do not go together.
    """
    policies: dict[tuple[str, ...], str] = {}
    names = {role: policies.setdefault(tuple(one[role] for one in casts), role) for role in casts[0]}
    alone = len(policies) == 1
    folders = {"shared" if alone else name: folders[0] for folders, name in policies.items()}
    first = next(iter(folders.values()))
    used = dict.fromkeys(folder for one in casts for folder in one.values())
    models = {name: hf.architecture(folder) for name, folder in folders.items()}
    sharing = "shared" if alone else {role: f"full:{name}" for role, name in names.items()}
    try:
        experiment = dataclasses.replace(
            given,
            model=models,
            tokenizer=_tokenizer(given.tokenizer, sorted(used)),
            team=dataclasses.replace(given.team, sharing=sharing, frozen=(), rates={}, alternate=0),
            mesh=dataclasses.replace(given.mesh, policies=1),
            pretrained=folders,
            warm_start=None,
        )
    except ValueError as error:
        raise ConfigError(f"the folder {first}: {error}") from error
    for folder in used:
        check_same_ids(experiment.tokenizer, folder)
    for one in casts[1:]:
        for role, folder in one.items():
            hf.check_same_model(experiment.architecture(experiment.team.policy(role)), folder)
    return experiment


def _tokenizer(own: Tokenizer, folders: Sequence[str]) -> Tokenizer:
    """Returns the tokenizer of the first folder, which asks as ``own`` does if that is of a folder, too.

    If the folder has none, ``own`` speaks for it, unless that is of another folder.
    """
    tiny = {folder: tiny_file.read(local_folder(folder)) for folder in folders}
    first = folders[0]
    if found := tiny[first]:
        for folder, other in tiny.items():
            if other != found:
                raise RunError(f"{folder} has another tokenizer than {first}; a team shares one tokenizer")
        return found
    if isinstance(own, FolderTokenizer):
        return dataclasses.replace(own, folder=first)
    if (local_folder(first) / "tokenizer.json").is_file() or isinstance(own, TinyTokenizer):
        return FolderTokenizer(first)
    say(f"{first} has no tokenizer; that of the gin files speaks for it")
    return own
