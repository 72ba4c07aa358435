"""Opens the partners of a run, if it has any."""

import contextlib
from collections.abc import Callable, Iterator, Mapping

from atgrpo_jax.common.errors import ConfigError
from atgrpo_jax.common.files import Place
from atgrpo_jax.common.hosts import ALONE, Hosts
from atgrpo_jax.partners.answers import Kind, Partners, Records
from atgrpo_jax.partners.partners import Partner


@contextlib.contextmanager
def opened(
    partners: Mapping[str, Partner],
    folder: Place | None,
    kind: Kind,
    seed: int,
    hosts: Hosts = ALONE,
    check_ours: Callable[[], None] = lambda: None,
) -> Iterator[Partners | None]:
    """Asks all servers whether they are there, and gives what answers; None if there are no partners.

    Args:
      partners: of roles.
      folder: where answers are recorded; None records none.
      kind: see ``Records``.
      seed: of the run.
      hosts: those that play.
      check_ours: see ``Records``.

    Raises RunError if a partner cannot be asked, and ConfigError if there are several hosts.
    """
    if not partners:
        yield None
        return
    if hosts.count > 1:
        raise ConfigError(
            f"Team.partners ({', '.join(partners)}): what partners answer is recorded by one host, and this "
            f"run has {hosts.count}; start it with one process (docs/partners.md)"
        )
    # Imported here because aiohttp takes a moment, and most runs have no partners.
    from atgrpo_jax.partners.asking import Asking

    with contextlib.closing(Asking(partners, Records(folder, kind, check_ours), seed)) as asking:
        yield asking
