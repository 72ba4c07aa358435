"""Reads API keys, and hides them in all text that is shown.

Inside ``kept(key)``, texts made by ``hide``, ``plain`` and ``shown`` have stars in place of the
key. Servers may write anything into their errors, even the key that they were sent, so all texts
from servers pass through here.
"""

import contextlib
import functools
import html
import json
import os
import re
import reprlib
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

from atgrpo_jax.common.errors import RunError

_LONGEST = 4096  # bytes of a key at most; real keys are shorter
_kept: list[str] = []  # the keys to hide; a key is here once for each ``kept`` that is open


class _Brief(reprlib.Repr):
    """Works as ``repr``, but with a bounded depth and length, and hides keys."""

    def __init__(self):
        super().__init__()
        self.maxlevel = 4
        self.maxstring = 120
        self.maxother = 60
        self.maxdict = 12
        self.maxlist = 6
        self.maxlong = 40

    def repr_str(self, x: str, level: int) -> str:
        return super().repr_str(hide(x), level)  # before it is cut: half a key is not found


_brief = _Brief()


def api_key(file: str, variable: str, config: str = "SGLangConfig") -> str:
    """Returns the key in ``file`` or in the environment variable; "" if neither is named.

    ``config`` is what the fields ``api_key_file`` and ``api_key_variable`` are of. Raises RunError,
    without the key in it, if there is no key or it cannot be sent.
    """
    if not (file or variable):
        return ""
    where = f"{config}.api_key_file {file}" if file else f"{config}.api_key_variable {variable}"
    try:
        key = (_read(file) if file else os.environ.get(variable, "")).strip()
    except OSError as error:
        raise RunError(f"{where}: {error.strerror}") from None
    except (ValueError, RuntimeError):  # a NUL in the name, a file that is not UTF-8, unknown ~user
        raise RunError(f"{where}: it does not name a file, or a variable, of plain text") from None
    if not key:
        raise RunError(f"{where}: no API key in {file or variable}")
    if len(key) > _LONGEST or not (key.isascii() and key.isprintable()) or " " in key:
        raise RunError(f"{where}: a key is one line of printable ASCII characters without spaces")
    return key


def _read(file: str) -> str:
    # A pipe is refused: it may block, and would be empty when the run is resumed.
    opened = os.open(Path(file).expanduser(), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(opened, "rb") as found:
        if not stat.S_ISREG(os.fstat(opened).st_mode):
            raise OSError(0, "not a regular file")
        return found.read(_LONGEST + 2).decode()


@contextlib.contextmanager
def kept(key: str) -> Iterator[None]:
    """Hides the key, inside the context, in all texts that this module makes."""
    if not key:
        yield
        return
    _kept.append(key)
    try:
        yield
    finally:
        _kept.remove(key)


def hide(text: str) -> str:
    """Replaces every kept key in the text by stars, also if it is quoted for a URL, JSON or HTML.

    The text keeps its length, so that a later cut removes the same part of it.
    """
    keys = tuple(sorted(set(_kept)))
    return _forms(keys).sub(lambda key: "*" * len(key[0]), text) if keys else text


def plain(text: str, most: int = 300) -> str:
    """Returns the beginning of ``text`` as one line that is safe to print.

    It has at most ``most`` characters, and neither keys nor control characters.
    """
    line = " ".join(hide(text)[: 4 * most].split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)[:most]


def shown(value: Any) -> str:
    """Writes a JSON value as one short line that is safe to print."""
    return plain(_brief.repr(value))


@functools.lru_cache
def _forms(keys: tuple[str, ...]) -> re.Pattern[str]:
    forms = {
        form
        for key in keys
        for form in (
            key, quote(key, safe=""), quote(key), quote_plus(key), html.escape(key), json.dumps(key)[1:-1],
        )
    }  # fmt: skip
    longest_first = sorted(forms, key=lambda form: (-len(form), form))
    return re.compile("|".join(map(re.escape, longest_first)), re.IGNORECASE)
