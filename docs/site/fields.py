"""Fits this package's docstrings to Sphinx: fields of classes are listed, and columns stay columns.

A field is listed as the code has it, with the comment that is beside or above it.
"""

import ast
import dataclasses
import enum
import inspect
import io
import re
import textwrap
import tokenize


def written(cls):
    """Returns the fields that a class defines, by name: as the code has them, and their comments."""
    source = textwrap.dedent(inspect.getsource(cls))
    comments = {}  # by line: the text, and whether nothing else is on the line
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and not token.string.startswith("# fmt:"):
            comments[token.start[0]] = token.string.removeprefix("# "), token.line.lstrip().startswith("#")
    found = {}
    for node in ast.parse(source).body[0].body:
        if isinstance(node, (ast.AnnAssign, ast.Assign)):
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            first = node.lineno
            while comments.get(first - 1, ("", False))[1]:
                first -= 1
            lines = [comments[line][0] for line in range(first, node.end_lineno + 1) if line in comments]
            found[ast.unparse(target)] = ast.unparse(node), " ".join(lines)
    return found


def names_of(value):
    """Returns the names of the fields of a dataclass, an enumeration or a named tuple; else none."""
    if not isinstance(value, type):
        return []
    if dataclasses.is_dataclass(value):
        return [field.name for field in dataclasses.fields(value) if field.init]
    if issubclass(value, enum.Enum):
        return list(value.__members__)
    return list(getattr(value, "_fields", ()))


def listed(cls):
    """Returns lines of reStructuredText that list the fields of a class, inherited ones too."""
    found = {}
    for base in reversed(cls.__mro__):
        if names_of(base):
            found |= written(base)
    lines = [""]
    for name in names_of(cls):
        code, said = found[name]
        lines += [f"* ``{code}``", *([f"  -- {escaped(said)}"] if said else [])]
    return [*lines, ""]


def escaped(text):
    """Returns a text in which only what stands in double backticks has a meaning for Sphinx."""
    parts = text.split("``")
    parts[::2] = [re.sub(r"([\\*|`_])", r"\\\1", part) for part in parts[::2]]
    return "``".join(parts)


def with_columns(lines):
    """Returns lines of a docstring in which paragraphs that are laid out in columns are blocks."""
    paragraphs = [paragraph.split("\n") for paragraph in "\n".join(lines).split("\n\n")]
    for paragraph in paragraphs:
        if any(re.search(r"\S {2,}\S", line) for line in paragraph):
            paragraph[:] = [".. code-block:: none", "", *(f"   {line}" for line in paragraph)]
    return "\n\n".join("\n".join(paragraph) for paragraph in paragraphs).split("\n")


def change_signature(app, what, name, value, options, signature, returned):
    # A list of fields says the same, and can be read. Nobody calls a protocol.
    shown = not names_of(value) and not getattr(value, "_is_protocol", False)
    return (signature, returned) if shown else ("", None)


def change_docstring(app, what, name, value, options, lines):
    lines[:] = with_columns(lines)
    if names_of(value):
        lines += listed(value)


def setup(app):
    app.connect("autodoc-process-signature", change_signature)
    app.connect("autodoc-process-docstring", change_docstring)
    return {"parallel_read_safe": True}
