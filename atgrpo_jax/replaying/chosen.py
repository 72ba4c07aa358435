"""Takes groups of a run at random, to draw them again."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.run.folder import RunFolder
from atgrpo_jax.run.nodes import Node, speaker


def at_random(folder: RunFolder, files: Sequence[tuple[int, str]], count: int, seed: int) -> list[Node]:
    """Returns so many groups that policies drew, each from a file of episodes that is taken at random.

    ``files`` are the steps and splits of the files. Raises RunError if no policy drew anything in them.
    """
    if not count:
        return []
    if not files:
        raise RunError(f"{folder.path} keeps no episodes yet")
    chance = random.Random(seed)
    return [_group_of(folder, files, file, chance) for file in sorted(chance.choices(files, k=count))]


def _group_of(
    folder: RunFolder, files: Sequence[tuple[int, str]], file: tuple[int, str], chance: random.Random
) -> Node:
    """Returns a group of a file, or of another one if partners alone speak in it."""
    others = [other for other in files if other != file]
    while not (spoken := [e for e in folder.read_episodes(*file) if _drawn(e)]):
        if not others:
            raise RunError(f"{folder.path}: in all episodes that it keeps partners alone speak")
        file = others.pop(chance.randrange(len(others)))
    episode = chance.choice(spoken)
    group = chance.choice(_drawn(episode))
    place = episode["instance"], episode["episode"], group["turn"], group["stage"], speaker(group)
    step, split = file
    return Node(step, split, *place)


def _drawn(episode: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [group for group in episode["groups"] if group["policy"]]
