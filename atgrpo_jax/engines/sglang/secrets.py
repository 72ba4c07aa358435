"""API keys: read from where a config says, and kept out of every word that is shown.

While a key is ``kept``, whatever is made with ``plain`` or ``shown`` hides it. Servers write what they like
into errors, the key that they were sent included, so all words of theirs pass through here.
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

_LONGEST = 4096  # bytes of a key, and more than any has
_kept: list[str] = []  # a key is here once for each who keeps it


class _Brief(reprlib.Repr):
    """Writes what ``repr`` does, but of a bounded depth and length, whatever it is given."""

    def __init__(self):
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 4, 120, 60
        self.maxdict, self.maxlist, self.maxlong = 12, 6, 40

    def repr_str(self, x: str, level: int) -> str:
        return super().repr_str(hide(x), level)  # before it is cut: half a key would not be found


_brief = _Brief()


def api_key(file: str, variable: str) -> str:
    """The key in ``file``, or in the environment variable; "" if neither is named.

    Raises RunError, in words without the key, for one that is not there or cannot be sent.
    """
    if not (file or variable):
        return ""
    where = f"SGLangConfig.api_key_file {file}" if file else f"SGLangConfig.api_key_variable {variable}"
    try:
        key = (_read(file) if file else os.environ.get(variable, "")).strip()
    except OSError as error:
        raise RunError(f"{where}: {error.strerror}") from None
    except (ValueError, RuntimeError):  # a NUL in the name, no UTF-8 in the file, an unknown ~user
        raise RunError(f"{where}: it does not name a file, or a variable, of plain text") from None
    if not key:
        raise RunError(f"no API key in {file or variable}")
    if len(key) > _LONGEST or not (key.isascii() and key.isprintable()) or " " in key:
        raise RunError(f"{where}: a key is one line of printable ASCII characters without spaces")
    return key


def _read(file: str) -> str:
    # A pipe would be waited for, and be empty when the run is resumed.
    opened = os.open(Path(file).expanduser(), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(opened, "rb") as found:
        if not stat.S_ISREG(os.fstat(opened).st_mode):
            raise OSError(0, "not a regular file")
        return found.read(_LONGEST + 2).decode()


@contextlib.contextmanager
def kept(key: str) -> Iterator[None]:
    """Inside, no words that are made here show the key."""
    if not key:
        yield
        return
    _kept.append(key)
    try:
        yield
    finally:
        _kept.remove(key)


def hide(text: str) -> str:
    """The text with stars for the keys that are kept, also where they are quoted as in an address, JSON or
    HTML. As long as before, so that what follows a cut stays behind it."""
    keys = tuple(sorted(set(_kept)))
    return _forms(keys).sub(lambda key: "*" * len(key[0]), text) if keys else text


def plain(text: str, most: int = 300) -> str:
    """One line of ``text`` that is safe to print: its begin, without keys and control characters."""
    line = " ".join(hide(text)[: 4 * most].split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)[:most]


def shown(value: Any) -> str:
    """What a JSON value looks like, in a line."""
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
