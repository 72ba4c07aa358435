"""What a server answers: read with a limit, and taken as JSON of the expected form or not at all."""

import json
from typing import Any

import aiohttp

from atgrpo_jax.engines.sglang.secrets import plain, shown

_MISSING = object()


class Unusable(ValueError):
    """An answer that is too long, no JSON, or of another form. Says which, without saying whose."""


async def read(answer: aiohttp.ClientResponse, most: int) -> tuple[bytes, bool]:
    """Up to ``most`` bytes of its body, and whether there were more. Time is limited by the request's own."""
    found = bytearray()
    async for part in answer.content.iter_any():
        found += part
        if len(found) > most:
            answer.close()  # whoever never ends is not listened to any longer
            return bytes(found[:most]), True
    return bytes(found), False


def parse(raw: bytes) -> Any:
    """The JSON in it; None if it is empty.

    Raises Unusable, and nothing else, for all that is none: also for NaN and infinities, names given twice,
    numbers of thousands of digits, and what is nested too deep.
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
    """``answer[name]``, which is exactly of one of these types: true is no number. Raises Unusable."""
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
