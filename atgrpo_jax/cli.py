"""What all entry points share: how they start, and how they fail."""

import errno
import sys
from collections.abc import Callable

from absl import app, flags, logging

from atgrpo_jax.errors import Stopped, UserError


def run(main: Callable[[list[str]], None]) -> None:
    """Entry point: errors a person can act on become one line and exit code 2.

    A stop by signal exits with 128 + its number, as shells report it.
    """

    def guarded(argv: list[str]) -> None:
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # Orbax tells every step of a save otherwise
        try:
            main(argv)
        except Stopped as stopped:
            print("stopped; the same command goes on from here", file=sys.stderr)
            sys.exit(128 + stopped.signum)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
                raise
            print(f"error: cannot write {error.filename}: {error.strerror}", file=sys.stderr)
            sys.exit(2)

    app.run(guarded)
