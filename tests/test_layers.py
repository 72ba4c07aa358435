"""Imports point one way: a room imports only from rooms above it."""

import ast
import re
from pathlib import Path

import atgrpo_jax

PACKAGE = Path(atgrpo_jax.__file__).parent
# A room (a folder) imports from the rooms of the lines above it, and from itself.
RANKS = [
    {"common", "answers"},
    {"sandbox", "arrays", "tokens", "credit", "hosts"},
    {"tasks", "models"},
    {"tasks.games", "tasks.breadth", "tasks.environments", "models.families"},
    {"models.hf"},
    {"tasks.math", "tasks.code", "tasks.search", "engines"},
    {"engines.local", "engines.sglang", "engines.sglang_jax"},
    {"partners"},
    {"rollout"},
    {"update", "tracking"},
    {"run"},
    {"planning", "replaying", "viewing"},
    {"studying"},
    {"tools.probing"},
    {"tools.budgeting"},
    {"tools"},
    {""},  # train, evaluate, export, plan, report: the commands
]
NO_JAX = {
    "common",
    "answers",
    "sandbox",
    "tokens",
    "credit",
    "tasks",
    "tasks.games",
    "tasks.breadth",
    "tasks.environments",
    "tasks.math",
    "tasks.code",
    "tasks.search",
    "partners",
    "rollout",
    "tracking",
}
NUMERICS = {
    "credit.advantages", "update.loss", "models.attention", "models.attention_kernel", "models.kernel_launch",
    "engines.local.paged_attention", "engines.local.sampling", "engines.verdict",
}  # fmt: skip


def modules():
    """Each file's dotted name below the package, its room, and its syntax tree."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield ".".join(parts), ".".join(parts[:-1]), ast.parse(path.read_text())


FILES = {name.removesuffix(".__init__") for name, _, _ in modules()}


def imported(tree):
    """Full names of all imported modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            for alias in node.names:
                inner = f"{module}.{alias.name}".removeprefix("atgrpo_jax.")
                yield f"{module}.{alias.name}" if inner in FILES else module


def ours(tree):
    """Names below the package of those of our own modules that are imported."""
    for name in imported(tree):
        if name == "atgrpo_jax" or name.startswith("atgrpo_jax."):
            yield name.removeprefix("atgrpo_jax").lstrip(".")


def files_by_room():
    found = {}
    for name, room, tree in modules():
        found.setdefault(room, []).append((name, tree))
    return found


def test_every_room_has_a_rank():
    assert set(files_by_room()) == set().union(*RANKS)


def test_imports_point_to_rooms_above():
    rank = {room: number for number, rooms in enumerate(RANKS) for room in rooms}
    for name, room, tree in modules():
        for target in ours(tree):
            if target in ("", "version"):  # the package itself imports nothing
                continue
            there = target if target in rank else target.rpartition(".")[0]
            assert there == room or rank[there] < rank[room], f"{name} imports {target}"


def test_files_of_a_room_are_no_circle():
    for room, files in files_by_room().items():
        names = {name for name, _ in files}
        left = {name: {target for target in ours(tree) if target in names} for name, tree in files}
        while ready := {name for name, needs in left.items() if not needs & left.keys()}:
            left = {name: needs for name, needs in left.items() if name not in ready}
        assert not left, f"{room}: {sorted(left)}"


def test_host_side_rooms_need_no_jax():
    """Direct imports only."""
    for name, room, tree in modules():
        roots = {target.split(".")[0] for target in imported(tree)}
        if room in NO_JAX:
            assert not roots & {"jax", "flax", "optax", "orbax"}, name


def test_processes_of_jax_are_named_in_one_room():
    """All others meet through ``Hosts``, and so work on one host and on several."""
    others = "machine.py", "layout.py"  # the probe prints it; which devices are near one another
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.parent.name != "hosts" and path.name not in others:
            assert not re.search("process_index|process_count|multihost", path.read_text()), path


def test_gin_is_imported_in_one_place():
    users = [name for name, _, tree in modules() if "gin" in {t.split(".")[0] for t in imported(tree)}]
    assert users == ["run.gin_config"]


def test_numerics_know_no_config():
    """They import nothing of the package but one another."""
    files = {name: tree for name, _, tree in modules()}
    for name in NUMERICS:
        assert set(ours(files[name])) <= NUMERICS, name


def test_axis_letters_are_in_a_key():
    """Letters of suffixes, as in tokens_BT: in the package's key, or in the docstring of their file."""
    key = set(re.findall(r"\b[A-Z]\b", atgrpo_jax.__doc__.partition("Axis suffixes")[2]))
    assert {"B", "T", "V"} <= key
    for name, _, tree in modules():
        listed = key | set(re.findall(r"\b[A-Z]\b", ast.get_docstring(tree) or ""))
        for node in ast.walk(tree):
            word = getattr(node, "id", None) or getattr(node, "attr", None) or getattr(node, "arg", None)
            suffix = re.fullmatch(r"_?[a-z][a-z0-9_]*_((?:[A-Z0-9][a-z]?)+)", word or "")
            letters = set(re.findall("[A-Z]", suffix[1])) if suffix else set()
            assert letters <= listed, f"{name}: {word}"


def test_size_budgets():
    """Files stay under 300 lines, functions under 80; the training loop fits on a page."""
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text()
        assert text.count("\n") <= 300, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = (node.end_lineno or 0) - node.lineno + 1
                assert lines <= (40 if path.name == "loop.py" else 80), f"{path}: {node.name}"
