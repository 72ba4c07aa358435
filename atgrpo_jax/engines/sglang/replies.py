"""Reads what servers answer, up to a limit, and accepts only JSON of the expected form."""

import json
from typing import Any

import aiohttp

from atgrpo_jax.engines.sglang.secrets import plain, shown

_MISSING = object()


class Unusable(ValueError):
    """Says that an answer is no JSON, or has another form. The message does not name the server."""


async def read(answer: aiohttp.ClientResponse, most: int) -> tuple[bytes, bool]:
    """Returns up to ``most`` bytes of the body, and whether there were more.

    Has no time limit of its own: the request's timeout holds here too.
    """
    found = bytearray()
    async for part in answer.content.iter_any():
        found += part
        if len(found) > most:
            answer.close()  # the rest is not read: it may never end
            return bytes(found[:most]), True
    return bytes(found), False


def parse(raw: bytes) -> Any:
    """Returns the value of a JSON text; None if the text is empty.

    Raises Unusable, and no other error, for all that is not JSON. That includes NaN and infinities,
    names given twice in one object, numbers of thousands of digits, and values nested too deep.
    """
    try:
        text = raw.decode()
        if not text.strip():
            return None
        return json.loads(text, parse_constant=_refuse, object_pairs_hook=_object)
    except Unusable:
        raise
    except RecursionError:
        raise Unusable("answered no JSON: it is nested too deep") from None
    except ValueError:
        begin = plain(raw[:4096].decode(errors="replace"), 100)
        raise Unusable(f"answered no JSON: {begin}") from None


def get(answer: Any, name: str, *kinds: type, default: Any = _MISSING) -> Any:
    """Returns ``answer[name]``, or ``default`` if the name is missing.

    Raises Unusable unless the value's type is exactly one of ``kinds`` (so true is not a number).
    """
    if not isinstance(answer, dict):
        raise Unusable(f"answered {shown(answer)} for an object with {name!r}")
    value = answer.get(name, default)
    if value is _MISSING:
        raise Unusable(f"answered without {name!r}: {shown(answer)}")
    if type(value) not in kinds:
        raise Unusable(f"answered {name} = {shown(value)}")
    return value


def _refuse(name: str) -> Any:
    raise Unusable(f"answered no JSON: {name}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise Unusable("answered an object with one name twice")
    return found
