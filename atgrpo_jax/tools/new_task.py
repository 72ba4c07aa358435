"""Writes a task of your own to begin with: a small game for two roles that can be trained at once.

    python -m atgrpo_jax.tools.new_task my_game

It writes my_game.py, my_game.gin, test_my_game.py and my_game_prompts/ in this directory. Files
that are there are never overwritten. docs/your-task.md says what a task is.
"""

import importlib.util
import keyword
import string
from pathlib import Path

from atgrpo_jax.common.cli import run_main, typed
from atgrpo_jax.common.errors import ConfigError
from atgrpo_jax.run.gin_names import known_modules

_SCAFFOLD = Path(__file__).parent / "scaffold"
# From a file of the scaffold to the file that is written.
_FILES = {
    "task.txt": "$name.py",
    "gin.txt": "$name.gin",
    "test.txt": "test_$name.py",
    "sorter.txt": "${name}_prompts/sorter.txt",
    "picker.txt": "${name}_prompts/picker.txt",
}


def write(name: str, folder: Path) -> list[str]:
    """Writes the files of a task of that name, and returns their names.

    Raises ConfigError, before anything is written, if the name cannot be used or a file is there.
    """
    _check_word(name)
    values = {"name": name, "Class": f"{''.join(map(str.capitalize, name.split('_')))}Task"}
    made = {
        string.Template(to).substitute(values): string.Template(
            (_SCAFFOLD / source).read_text(encoding="utf-8")
        ).substitute(values)
        for source, to in _FILES.items()
    }
    there = [file for file in made if (folder / file).exists()]
    if there:
        raise ConfigError(f"{there[0]} is here already; nothing was written. Give another name")
    _check_free(name)
    for file, text in made.items():
        (folder / file).parent.mkdir(exist_ok=True)
        with open(folder / file, "x", encoding="utf-8") as new:  # and never an old one
            new.write(text)
    return list(made)


def _check_word(name: str) -> None:
    """Raises ConfigError for what cannot be the name of a module."""
    if not (name.isidentifier() and name.isascii() and name[0] != "_") or keyword.iskeyword(name):
        rule = "a module's name has letters, digits and _, and begins with a letter, e.g. my_game"
        raise ConfigError(f"{name!r} is no name of a Python module; {rule}")


def _check_free(name: str) -> None:
    """Raises ConfigError for a name that something else has: one of the two would not be found."""
    if name in known_modules():
        raise ConfigError(f"{name} means {known_modules()[name]} in gin files; give another name")
    for module in (name, f"test_{name}"):
        found = importlib.util.find_spec(module)
        if found is not None:
            where = found.origin or next(iter(found.submodule_search_locations or ()), "Python")
            raise ConfigError(f"there is a module {module} already ({where}); give another name")


def main(argv: list[str]) -> None:
    if len(argv) != 2:
        raise ConfigError(f"one name is needed, e.g. {typed('atgrpo_jax.tools.new_task')} my_game")
    name = argv[1]
    print(f"Written: {', '.join(write(name, Path.cwd()))}")
    print(
        "Next:\n"
        f"  {typed('atgrpo_jax.tools.check_task')} --gin_file={name}.gin    # does it keep the contract?\n"
        f"  {typed('atgrpo_jax.train')} --gin_file={name}.gin               # a minute or two\n"
        f"  {typed('pytest')} test_{name}.py                                # pip install pytest\n"
        f"Then change {name}.py to your own game, and do the same again."
    )


if __name__ == "__main__":
    run_main(main)
