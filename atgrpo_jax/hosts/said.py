"""What a host says when it comes to a meeting, or when it leaves the run. What follows from all of it."""

import json
from collections.abc import Sequence
from typing import Literal, NamedTuple

from atgrpo_jax.common.errors import RunError, Stopped

State = Literal["here", "stopped", "failed"]


class Said(NamedTuple):
    """Holds what one host says. ``payload`` is None if it is too long for the store."""

    name: str  # of the meeting; "" if the host has left the run
    state: State
    text: str = ""  # what failed
    code: int = 0  # the signal if it was stopped, the exit code if it failed
    compared: str = ""  # the digest of what all hosts must have alike
    of: int | None = None  # the host that failed, if it is not the one that says it
    programs: int = 0  # that this host has issued on its own devices, if that counts
    size: int = 0  # of the payload, bytes
    payload: bytes | None = b""

    def to_bytes(self) -> bytes:
        head = self._replace(payload=None), self.payload is not None
        return json.dumps(head).encode() + b"\n" + (self.payload or b"")

    @classmethod
    def from_bytes(cls, data: bytes) -> "Said":
        head, _, payload = data.partition(b"\n")
        fields, whole = json.loads(head)
        return cls(*fields)._replace(payload=payload if whole else None)


class OtherFailed(RunError):
    """Raised on every host because one of them failed. The line names it."""

    def __init__(self, index: int, said: Said):
        self.index = index if said.of is None else said.of
        super().__init__(f"host {self.index}: {said.text}")
        self.text = said.text
        self.exit_code = said.code


def verdict(found: Sequence[Said]) -> None:
    """Returns if all hosts came to one meeting, and had the same there. ``found`` is by host.

    Raises OtherFailed for the first host that failed or did not come, else RunError for the first one
    that differs from host 0, else Stopped if one was stopped.
    """
    for index, said in enumerate(found):
        if said.state == "failed":
            raise OtherFailed(index, said)
    stopped = [said.code for said in found if said.state == "stopped"]
    first = found[0]
    for index, said in enumerate(found):
        if said.name != first.name and not stopped:
            raise RunError(f"host {index} is at {said.name!r} when host 0 is at {first.name!r}")
        if said.compared != first.compared and not stopped:
            raise RunError(
                f"host {index} has other numbers than host 0 before {first.name!r}; nothing of this step "
                "is kept"
            )
    if stopped:
        raise Stopped(stopped[0])


def packed(found: Sequence[Said]) -> bytes:
    """Returns what all hosts said as one message; ``unpacked`` reads it."""
    parts = [said.to_bytes() for said in found]
    return json.dumps([len(part) for part in parts]).encode() + b"\n" + b"".join(parts)


def unpacked(data: bytes) -> list[Said]:
    head, _, rest = data.partition(b"\n")
    found = []
    for size in json.loads(head):
        found.append(Said.from_bytes(rest[:size]))
        rest = rest[size:]
    return found
