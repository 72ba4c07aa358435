"""The small store that all hosts of a run share: keys and bytes, kept by host 0.

It is that of JAX's coordination service. JAX offers no public name for it; tests/test_hosts_joining.py
uses those that are named here.
"""

from typing import Any, Protocol

import jax
from jax._src import distributed

from atgrpo_jax.common.errors import Unreachable, one_line


class Store(Protocol):
    """Keys are paths such as "meetings/7/0". They name folders, too."""

    def put(self, key: str, value: bytes) -> None:
        """Writes a value; an older one is replaced."""
        ...

    def wait(self, key: str, seconds: float) -> bytes | None:
        """Returns a value as soon as it is there, or None after so many seconds."""
        ...

    def under(self, folder: str) -> dict[str, bytes]:
        """Returns all that is in a folder, by the rest of the key."""
        ...

    def remove(self, folder: str) -> None: ...

    def count(self, key: str) -> int:
        """Returns how often this was called with ``key`` before, by any host."""
        ...


class JaxStore:
    """The store of the service that ``jax.distributed.initialize`` started."""

    def __init__(self):
        self._client: Any = distributed.global_state.client

    def put(self, key: str, value: bytes) -> None:
        self._ask("key_value_set_bytes", key, value, allow_overwrite=True)

    def wait(self, key: str, seconds: float) -> bytes | None:
        try:
            return self._client.blocking_key_value_get_bytes(key, max(int(seconds * 1000), 1))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" in str(error):
                return None
            raise _unreachable(error) from error

    def under(self, folder: str) -> dict[str, bytes]:
        pairs = self._ask("key_value_dir_get_bytes", f"{folder}/")
        return {key.removeprefix(f"{folder}/"): value for key, value in pairs}

    def remove(self, folder: str) -> None:
        self._ask("key_value_delete", f"{folder}/")

    def count(self, key: str) -> int:
        return self._ask("key_value_increment", key, 1) - 1

    def _ask(self, call: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return getattr(self._client, call)(*args, **kwargs)
        except jax.errors.JaxRuntimeError as error:
            raise _unreachable(error) from error


def _unreachable(error: Exception) -> Unreachable:
    return Unreachable(f"host 0 does not answer ({one_line(error)}); start all hosts again")
