"""Prints a Markdown table of how the package is built, for one checkout or several.

    python benchmarks/structure.py
    python benchmarks/structure.py --root=before --root=after

- A room is a folder on the top level of the package, or a loose file there. An arrow goes from a room to
  another that it imports. An import is up if it is against RANKS of tests/test_layers.py, which
  names files or folders; where there are none, only arrows that close a circle are counted.
- A docstring is clipped if its first word is in CLIPPED, or if its first sentence has no word that may be a
  verb: one of VERBS, or one that ends in a single "s". Plurals pass as verbs: the second count is too low.
- A tuple assignment gives as many values as names: ``a, b = x, y``.
- Words with several meanings: OTHERS and TWICE list the identifiers that use a word for something else.
"""

import argparse
import ast
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

PACKAGE = "atgrpo_jax"
WIDTH = 100
CLIPPED = {
    "of", "with", "by", "to", "those", "as", "in", "for", "at", "from", "whose", "what", "where", "whether",
    "how", "when", "which", "who",
}  # fmt: skip

# Words with several meanings: identifiers that use them for something else than the word's first meaning.
# "class NAME", "def NAME" and "module NAME" are definitions; "parameter NAME" and "field NAME" (of a class or
# an object) are what they say, with ": TYPE" those of that type; "name NAME" is anything else assigned to.
OTHERS = {
    "turn": ("class Turns", "parameter turns: Turns"),
    "step": ("class Step",),
    "run": ("class Run", "def run"),
    "weights": ("class Weights",),
    "start": ("def start", "field start: float", "field start: Any"),
    "fused": ("module fused", "module fused_paged", "def fuse"),
    "tile": ("class Tiles", "parameter tiles: Tiles"),
    "row": ("class Rows", "class _Rows", "parameter rows: Rows"),
    "chunk": ("class Chunk", "parameter chunk: Chunk"),
    "place": ("field place", "field places"),
    "base": ("module base",),
    "x": ("parameter x: Experiment", "field _x"),
    "z": ("parameter z: Sizes", "name z"),
    "names that say nothing": (
        "module ahead", "module packaged", "module saved_run", "def of", "def _kept", "def _made",
        "def _left", "def _told", "def held", "name FREE", "name NAMED", "name RARELY", "name OTHERS_Z",
    ),
}  # fmt: skip
# Names that are defined in several files, for another thing in each.
TWICE = (
    "class Drawn", "class State", "class Sizes", "class Problem", "class Worker", "def difference",
    "def read", "def write", "def key", "def render",
)  # fmt: skip

VERBS = {
    "is", "are", "was", "were", "be", "has", "have", "had", "does", "do", "can", "may", "must", "will",
    "would",
}  # fmt: skip

Files = dict[str, tuple[str, ast.Module]]  # path below the package -> text and tree
Rows = list[tuple[str, str]]  # a name and a figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--root", action="append", help="a checkout, for a column (default: this one)")
    roots = parser.parse_args().root or [str(Path(__file__).resolve().parents[1])]
    tables = [table(Path(root)) for root in roots]
    names = list(dict.fromkeys(name for rows in tables for name, _ in rows))
    titles = [Path(root).resolve().name for root in roots]
    print("| | " + " | ".join(titles) + " |\n|---|" + "---|" * len(roots))
    for name in names:
        cells = [dict(rows).get(name, "0") for rows in tables]
        print(f"| {name} | " + " | ".join(cells) + " |")


def table(root: Path) -> Rows:
    files = read_package(root)
    return [
        *of_files(files), *of_functions(files), *of_arrows(files, root), *of_words(files),
        *of_lines(files), *of_pages(root),
    ]  # fmt: skip


def read_package(root: Path) -> Files:
    folder = root / PACKAGE
    if not folder.is_dir():
        raise SystemExit(f"there is no {folder}")
    texts = {str(path.relative_to(folder)): path.read_text("utf-8") for path in sorted(folder.rglob("*.py"))}
    return {path: (text, ast.parse(text)) for path, text in texts.items()}


def nodes(files: Files) -> Iterator[ast.AST]:
    for _, tree in files.values():
        yield from ast.walk(tree)


def of_files(files: Files) -> Rows:
    named = {path for path in files if not path.endswith("__init__.py")}
    lengths = [text.count("\n") for path, (text, _) in files.items() if path in named]
    return [
        ("folders", str(len({parent for path in files for parent in Path(path).parents} - {Path(".")}))),
        ("loose files on the top level", str(sum("/" not in path for path in named))),
        ("files, without `__init__`", str(len(named))),
        ("lines", str(sum(text.count("\n") for text, _ in files.values()))),
        ("file length med/p90/max", shares(lengths, 0.5, 0.9, 1.0)),
    ]


def of_functions(files: Files) -> Rows:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    lengths = [(node.end_lineno or 0) - node.lineno + 1 for node in nodes(files) if isinstance(node, kinds)]
    return [
        ("functions", str(len(lengths))),
        ("function length med/p90/p99/max", shares(lengths, 0.5, 0.9, 0.99, 1.0)),
    ]


def shares(values: Sequence[int], *parts: float) -> str:
    """Quantiles of the values; "none" if there are no values."""
    ordered = sorted(values)
    if not ordered:
        return "none"
    return "/".join(
        str(round(statistics.median(ordered)))
        if part == 0.5
        else str(ordered[int(part * (len(ordered) - 1))])
        for part in parts
    )


def of_arrows(files: Files, root: Path) -> Rows:
    imports = [(path, target) for path in files for target in imported(path, files)]
    arrows = {(room(path), room(target)) for path, target in imports if room(path) != room(target)}
    ranks = ranks_of(root)
    if ranks:
        up = {
            (path, target)
            for path, target in imports
            if {path, target} <= ranks.keys() and is_up(ranks[path], ranks[target])
        }
        missing = sum(not path.endswith("__init__.py") and path not in ranks for path in files)
        against = [
            ("imports up against tests/test_layers.py", str(len(up))),
            ("files without a rank", str(missing)),
        ]
    else:
        against = []
    return [
        ("rooms", str(len({room(path) for path in files if path != "__init__.py"}))),
        ("imports between files", str(len(set(imports)))),
        ("arrows between rooms", str(len(arrows))),
        *against,
        ("arrows between rooms that close a circle", str(len(circling(arrows)))),
    ]


def is_up(own: tuple[int, str], other: tuple[int, str]) -> bool:
    """Whether an import goes to a higher rank, or to another name of the same one."""
    return other[0] > own[0] or (other[0] == own[0] and other[1] != own[1])


def room(path: str) -> str:
    return path.split("/")[0]


def imported(path: str, files: Files) -> set[str]:
    """Files of the package that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(files[path][1]):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE:
            folder = (node.module or "").removeprefix(PACKAGE).lstrip(".").replace(".", "/")
            for alias in node.names:
                inner = f"{folder}/{alias.name}.py".lstrip("/")
                found.add(inner if inner in files else f"{folder}.py")
    return {target for target in found if target in files and target != path}


def ranks_of(root: Path) -> dict[str, tuple[int, str]]:
    """Rank and name in RANKS of each file, from tests/test_layers.py: lists of names, lowest first."""
    layers = root / "tests" / "test_layers.py"
    if not layers.is_file():
        return {}
    for node in ast.parse(layers.read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "RANKS":
            return expanded(ast.literal_eval(node.value), root / PACKAGE)
    return {}


def expanded(ranks: Sequence[Iterable[str]], package: Path) -> dict[str, tuple[int, str]]:
    """A name is a file's (``engines.local``) or a folder's, for all files in it that have no longer name."""
    numbered = [(name.replace(".", "/"), number) for number, names in enumerate(ranks) for name in names]
    found = {}
    for name, number in sorted(numbered, key=lambda pair: (package / f"{pair[0]}.py").is_file()):
        file = package / f"{name}.py"
        for path in [file] if file.is_file() else (package / name).rglob("*.py"):
            key = str(path.relative_to(package))
            if file.is_file() or key not in found or len(found[key][1]) < len(name):
                found[key] = (number, name)
    return found


def circling(arrows: set[tuple[str, str]]) -> set[tuple[str, str]]:
    onward = defaultdict(set)
    for origin, target in arrows:
        onward[origin].add(target)
    return {(origin, target) for origin, target in arrows if origin in reached(target, onward)}


def reached(first: str, onward: dict[str, set[str]]) -> set[str]:
    seen, waiting = {first}, [first]
    while waiting:
        for target in onward[waiting.pop()] - seen:
            seen.add(target)
            waiting.append(target)
    return seen


def of_words(files: Files) -> Rows:
    counts = Counter(
        identifier for path, (_, tree) in files.items() for identifier in identifiers(path, tree)
    )
    words = [word for word, names in OTHERS.items() if any(counts[name] for name in names)]
    uses = [f"{name} x{counts[name]}" for word in words for name in OTHERS[word] if counts[name]]
    total = sum(counts[name] for word in words for name in OTHERS[word])
    twice = [f"{name} x{counts[name]}" for name in TWICE if counts[name] > 1]
    return [
        ("words with several meanings", f"{len(words)} of {len(OTHERS)}: {', '.join(words) or 'none'}"),
        ("uses of identifiers for another meaning", f"{total}: {', '.join(uses) or 'none'}"),
        (
            "names for another thing in each file",
            f"{len(twice)} of {len(TWICE)}: {', '.join(twice) or 'none'}",
        ),
    ]


def identifiers(path: str, tree: ast.Module) -> Iterator[str]:
    """Names as OTHERS and TWICE spell them, each as often as it is there."""
    yield f"module {Path(path).stem}"
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            yield f"class {node.name}"
            yield from fields(node)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield f"def {node.name}"
            yield from parameters(node)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield f"field {node.attr}"
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield f"name {node.id}"


def fields(node: ast.ClassDef) -> Iterator[str]:
    for line in node.body:
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
            yield f"field {line.target.id}"
            yield f"field {line.target.id}: {last_word(line.annotation)}"


def parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
        yield f"parameter {argument.arg}"
        if argument.annotation is not None:
            yield f"parameter {argument.arg}: {last_word(argument.annotation)}"


def last_word(annotation: ast.expr) -> str:
    return ast.unparse(annotation).strip("'\"").rpartition(".")[2]


def of_lines(files: Files) -> Rows:
    lines = [line for text, _ in files.values() for line in text.splitlines()]
    assigned = sum(isinstance(node, ast.Assign) and is_tuple_assignment(node) for node in nodes(files))
    docstrings = list(docstrings_of(files))
    prepositions = [text for text in docstrings if first_word(text) in CLIPPED]
    verbless = [text for text in docstrings if first_word(text) not in CLIPPED and not has_verb(text)]
    return [
        ("docstrings", str(len(docstrings))),
        ("clipped docstrings: first word", str(len(prepositions))),
        ("clipped docstrings: no verb", str(len(verbless))),
        ("tuple assignments per 1,000 lines", f"{1000 * assigned / len(lines):.1f} ({assigned})"),
        ("comprehensions inside a comprehension", str(nested(files))),
        (f"lines over {WIDTH} columns, package", str(sum(len(line) > WIDTH for line in lines))),
    ]


def is_tuple_assignment(node: ast.Assign) -> bool:
    return isinstance(node.value, ast.Tuple) and any(
        isinstance(target, ast.Tuple) and len(target.elts) > 1 for target in node.targets
    )


def nested(files: Files) -> int:
    """Comprehensions that stand inside another one, however deep."""
    kinds = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
    inner = set()
    for node in nodes(files):
        if isinstance(node, kinds):
            inner |= {id(below) for below in ast.walk(node) if isinstance(below, kinds) and below is not node}
    return len(inner)


def docstrings_of(files: Files) -> Iterator[str]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in nodes(files):
        if isinstance(node, kinds) and (text := ast.get_docstring(node)):
            yield text


def first_word(text: str) -> str:
    return re.split(r"[^A-Za-z]", text, maxsplit=1)[0].lower()


def has_verb(text: str) -> bool:
    """Whether a sentence may have one: a word of VERBS, or one that ends as a verb's third person does."""
    sentence = re.split(r"[.:;]", text, maxsplit=1)[0]
    words = re.findall(r"[a-z]+", sentence.lower())
    return any(word in VERBS or re.fullmatch(r"\w{2,}[^s]s", word) for word in words)


def of_pages(root: Path) -> Rows:
    rows = []
    for path in (root / "README.md", root / "BUILD.md", *sorted((root / "docs").glob("*.md"))):
        if not path.is_file():
            continue
        lines = path.read_text("utf-8").splitlines()
        cells = [line for line in lines if line.lstrip().startswith("|")]
        prose = [line for line in lines if not line.lstrip().startswith("|")]
        rows.append((f"{path.relative_to(root)}: prose, longest line; over {WIDTH}", widths(prose)))
        if cells:
            rows.append((f"{path.relative_to(root)}: tables, longest line; over {WIDTH}", widths(cells)))
    return rows


def widths(lines: Sequence[str]) -> str:
    return f"{max(map(len, lines), default=0)}; {sum(len(line) > WIDTH for line in lines)}"


if __name__ == "__main__":
    main()
