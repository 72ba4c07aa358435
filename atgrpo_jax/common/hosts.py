"""Says how the processes of one run meet. There is one on each host; most runs have one host.

Between two meetings every host does the same, or something that only it knows of. No host looks at
its number to decide what all of them compute together.
"""

import contextlib
import json
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.files import Place, is_file, remove_file, write_atomically
from atgrpo_jax.common.stopping import Stopping


class Hosts(Protocol):
    """The hosts of a run, as one of them sees them."""

    index: int  # of this host
    count: int
    waited_s: float  # seconds for which this host has waited for others so far

    def meet(self, name: str, work: Callable[[], bytes | None], stops: bool = False) -> list[bytes]:
        """Runs ``work`` here, waits for the others, and returns what all hosts' work gave, in order.

        None counts as no bytes.

        A stop by a signal, of any host, ends the work early on all hosts if ``stops``, or if no
        complete step would be lost. Then all hosts raise Stopped. If the work of one host fails, it
        raises that error, and all others raise RunError with its number.
        """
        ...

    def told(self, name: str, work: Callable[[], bytes | None]) -> bytes:
        """Runs ``work`` on host 0 alone. Returns what it gave, on all hosts.

        Stops and errors are as in ``meet``. What the work writes must be whole at any moment, as after
        kill -9.
        """
        ...

    def compare(self, what: str, digest: Callable[[], bytes]) -> None:
        """Notes that all hosts must have the same digest here. The next meeting fails if they do not."""
        ...

    def counter(self) -> Callable[[], int]:
        """Returns a function that gives 0, 1, 2, ... Each number is given to one host only.

        It is for the work of a meeting, in which every host makes one counter at most.
        """
        ...

    def even_out(self, issued: Callable[[], int]) -> None:
        """Takes the number of programs that this host has issued on its own devices, in meetings.

        With --lockstep, a host that has issued fewer than others issues idle ones at the end of a
        meeting.
        """
        ...

    def heed(self, stopping: Stopping, unsaved: Callable[[], bool]) -> None:
        """Takes stops from ``stopping``. ``unsaved`` says whether complete steps would be lost now."""
        ...


class Alone:
    """The only host of a run. Every meeting is over when its work is done."""

    index = 0
    count = 1
    waited_s = 0.0

    def __init__(self):
        self._interruptible: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext
        self._unsaved: Callable[[], bool] = lambda: False

    def meet(self, name: str, work: Callable[[], bytes | None], stops: bool = False) -> list[bytes]:
        with self._interruptible() if stops or not self._unsaved() else contextlib.nullcontext():
            return [work() or b""]

    def told(self, name: str, work: Callable[[], bytes | None]) -> bytes:
        return work() or b""

    def compare(self, what: str, digest: Callable[[], bytes]) -> None:
        pass

    def counter(self) -> Callable[[], int]:
        numbers = iter(range(2**62))
        return lambda: next(numbers)

    def even_out(self, issued: Callable[[], int]) -> None:
        pass

    def heed(self, stopping: Stopping, unsaved: Callable[[], bool]) -> None:
        stopping.unsaved = unsaved
        self._unsaved = unsaved
        self._interruptible = stopping.interruptible


ALONE = Alone()  # for work that no signal stops


def told_json(hosts: Hosts, name: str, work: Callable[[], Any]) -> Any:
    """Runs ``work`` on host 0 alone. Returns what it gave on all hosts, as JSON keeps it."""
    return json.loads(hosts.told(name, lambda: json.dumps(work()).encode()))


def not_seeing(hosts: Hosts, folder: Place) -> list[int]:
    """Returns the numbers of the hosts for which ``folder`` is another one than for host 0.

    Host 0 writes a file there, and the others look for it.
    """
    if hosts.count == 1:
        return []
    name = f".seen-by-all-{uuid.uuid4().hex[:12]}"
    file = folder / hosts.told("word", lambda: _written(folder, name)).decode()
    seen = hosts.meet("word read", lambda: b"seen" * is_file(file))
    hosts.told("word gone", lambda: remove_file(file))
    return [index for index, word in enumerate(seen) if not word]


def _written(folder: Place, name: str) -> bytes:
    write_atomically(folder / name, b"")
    return name.encode()


def check_alike(hosts: Hosts, name: str, facts: Callable[[], Mapping[str, Any]]) -> None:
    """Raises RunError if ``facts`` of some host are not those of host 0; the line says which."""
    first, *others = (json.loads(told) for told in hosts.meet(name, lambda: json.dumps(facts()).encode()))
    for index, found in enumerate(others, start=1):
        for fact in first | found:
            own = found.get(fact, "of no kind")
            expected = first.get(fact, "of no kind")
            if own != expected:
                raise RunError(f"host {index} has {fact} {own}, host 0 has {expected}; they must be the same")
