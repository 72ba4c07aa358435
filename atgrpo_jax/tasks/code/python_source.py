"""Reads fields of rows that are Python: programs, tests, names of functions. Looks into them."""

import ast
import keyword
import warnings
from collections.abc import Mapping
from typing import Any

from atgrpo_jax.tasks.code.fields import characters, list_of, shown, text_of

_BROKEN = (SyntaxError, ValueError, RecursionError, MemoryError)


def parsed(name: str, source: str) -> ast.Module:
    """Returns the syntax tree of a program. Raises ValueError if it is not Python."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings about the source's style
        try:
            tree = ast.parse(source)
            compile(tree, name, "exec", dont_inherit=True)
            return tree
        except _BROKEN as error:
            words = f"{error.msg} (line {error.lineno})" if isinstance(error, SyntaxError) else str(error)
            raise ValueError(f"{name} is no Python: {words or type(error).__name__}") from error


def source_of(row: Mapping[str, Any], name: str, default: str | None = None) -> str:
    text = text_of(row, name, default)
    parsed(name, text)
    return text


def statements_of(row: Mapping[str, Any], name: str, optional: bool = False) -> list[tuple[str, ast.Module]]:
    """Returns a field's tests as (text, syntax tree). Raises ValueError for one without a
    statement."""
    if row.get(name) is None and optional:
        return []
    found = []
    for number, value in enumerate(list_of(row, name)):
        place = f"{name}[{number}]"
        statement = characters(place, value).strip()
        found.append((statement, parsed(place, statement)))
        if not found[-1][1].body:
            raise ValueError(f"{place} is empty")
    return found


def identifier(row: Mapping[str, Any]) -> str:
    name = text_of(row, "entry_point")
    if not name.isidentifier() or keyword.iskeyword(name):
        raise ValueError(f"entry_point = {shown(name)} is no name of a function")
    return name


def expression(row: Mapping[str, Any]) -> str:
    """Returns the entry point, an expression that can be called: a name, an attribute, or an
    attribute of a call's result, such as ``Solution().add``."""
    text = text_of(row, "entry_point").strip()
    body = parsed("entry_point", text).body
    node: ast.AST | None = body[0].value if len(body) == 1 and isinstance(body[0], ast.Expr) else None
    while isinstance(node, (ast.Attribute, ast.Call)):
        node = node.value if isinstance(node, ast.Attribute) else node.func
    if not isinstance(node, ast.Name):
        raise ValueError(f"entry_point = {shown(text)} is nothing that can be called")
    return text


def names_in(tree: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def defined_in(source: str) -> set[str]:
    """Returns the names that a program defines anywhere."""
    found = set()
    for node in ast.walk(parsed("setup", source)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {(item.asname or item.name).split(".")[0] for item in node.names}
    return found


def functions_in(source: str) -> set[str]:
    """Returns the names of the functions at the top level of a program."""
    return {node.name for node in parsed("solution", source).body if isinstance(node, ast.FunctionDef)}


def called_in(tree: ast.AST) -> set[str]:
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return {function.id for function in calls if isinstance(function, ast.Name)}
