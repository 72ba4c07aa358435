"""Imports point one way: a file imports only from ranks below its own."""

import ast
from pathlib import Path

import atgrpo_jax

PACKAGE = Path(atgrpo_jax.__file__).parent
RANKS = [
    {
        "answers.parts", "answers.spelling",
        "errors", "checks", "engines.background", "engines.leash", "sandbox.base", "sandbox.kernel",
        "sandbox.packages", "sandbox.program", "tasks.code_outputs", "version",
    },
    {
        "types", "files", "progress", "finite", "metric_names", "stopping", "tasks.texts",
        "chat", "jsonfile", "models.config",
        "engines.published", "engines.secrets", "sandbox.files", "sandbox.start", "sandbox.worker",
        "answers.names",
    },
    {"engines.answers", "engines.processes"},
    {
        "answers.numbers", "answers.sets", "answers.tokens", "answers.units",
        "advantages", "cli", "downloads", "loss", "mesh", "finite_arrays", "team", "tokenizer_folder",
        "data", "trees", "tasks.base", "tasks.grid", "tasks.prompts", "sandbox.pool",
        "engines.base", "engines.pages", "engines.patterns",
        "engines.servers", "models.attention",
        "models.folder", "models.fused", "models.hf_config", "models.paged",
        "models.sampling",
    },
    {
        "answers.grammar", "tokens",
        "tasks.games", "models.fused_paged", "models.transformer", "models.hf", "groups",
        "selection", "task_calls", "tasks.hostile", "updates", "tasks.code_rows",
    },
    {
        "answers.reading",
        "tasks.code_problems", "tasks.math_problems", "tasks.plan_path", "tasks.sokoban_rooms",
        "tasks.sudoku", "batch", "models.lora", "models.head",
        "packaged", "read_back", "rollout", "run_folder", "engines.decoding", "engines.fleet", "code_sources",
    },
    {
        "answers.equality",
        "tasks.code", "tasks.math", "tasks.sokoban", "models.packed", "engines.lanes", "engines.draws",
        "engines.sglang_jax_session",
        "weight_sync", "checkpoint", "evaluation", "metrics",
    },
    {"learner", "engines.local", "engines.sglang", "engines.sglang_jax", "tasks.contract"},
    {"warm_start"},
    {"experiment"},
    {"policies"},
    {"config", "report", "trainer", "footprint", "ahead"},
    {"loop", "saved_run", "truths"},
    {"train", "evaluate", "export", "plan", "prepare", "tasks.check"},
]  # fmt: skip
NO_JAX = {
    "answers.equality", "answers.grammar", "answers.names", "answers.numbers", "answers.parts",
    "answers.reading", "answers.sets", "answers.spelling", "answers.tokens", "answers.units",
    "errors", "checks", "chat", "files", "jsonfile", "types", "advantages", "selection", "stopping", "team",
    "tokens", "tokenizer_folder", "groups", "finite", "metric_names", "task_calls", "code_sources",
    "rollout", "data", "tasks.base", "tasks.code", "tasks.code_outputs", "tasks.code_problems",
    "tasks.code_rows", "tasks.games", "tasks.grid",
    "tasks.math", "tasks.math_problems", "downloads",
    "tasks.plan_path", "tasks.prompts", "tasks.sokoban",
    "tasks.sokoban_rooms", "tasks.sudoku", "tasks.texts", "engines.background",
    "engines.answers", "engines.base", "engines.leash", "engines.processes", "engines.published",
    "engines.secrets", "engines.servers",
    "engines.pages", "batch", "evaluation",
    "progress", "sandbox.base", "sandbox.files", "sandbox.kernel", "sandbox.packages",
    "sandbox.pool", "sandbox.program", "sandbox.start", "sandbox.worker", "version",
}  # fmt: skip
NUMERICS = {"advantages", "loss", "models.attention", "models.fused", "models.paged", "models.sampling"}


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        if not name.endswith("__init__"):
            yield name, ast.parse(path.read_text())


def imported(tree):
    """Full names of all imported modules; ours without the package's name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if module.split(".")[0] == "atgrpo_jax":
                inner = module.removeprefix("atgrpo_jax").lstrip(".")
                known = set().union(*RANKS)
                for alias in node.names:
                    full = f"{inner}.{alias.name}".lstrip(".")
                    yield f"atgrpo_jax:{full if full in known else inner}"
            else:
                yield module


def test_every_module_has_a_rank():
    assert {name for name, _ in modules()} == set().union(*RANKS)


def test_imports_point_to_lower_ranks():
    rank = {name: number for number, names in enumerate(RANKS) for name in names}
    for name, tree in modules():
        for target in imported(tree):
            if target.startswith("atgrpo_jax:"):
                ours = target.removeprefix("atgrpo_jax:")
                assert rank[ours] < rank[name], f"{name} imports {ours}"


def test_host_side_files_need_no_jax():
    """Their own imports, and, through ``loss``, nothing but what they name here."""
    for name, tree in modules():
        roots = {target.split(".")[0] for target in imported(tree)}
        if name in NO_JAX:
            assert not roots & {"jax", "flax", "optax", "orbax"}, name


def test_gin_is_imported_in_one_place():
    users = [name for name, tree in modules() if "gin" in {t.split(".")[0] for t in imported(tree)}]
    assert users == ["config"]


def test_numerics_know_no_config():
    for name, tree in modules():
        if name in NUMERICS:
            ours = [t for t in imported(tree) if t.startswith("atgrpo_jax:")]
            assert ours == [], name


def test_size_budgets():
    """Files stay under 400 lines, functions under 80; the training loop fits on a page."""
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text()
        assert text.count("\n") <= 400, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lines = (node.end_lineno or 0) - node.lineno + 1
                assert lines <= (40 if path.name == "loop.py" else 80), f"{path}: {node.name}"
