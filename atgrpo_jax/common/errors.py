"""Defines errors that a person can act on.

Entry points print them as one line and exit with a code above 0.
"""


def one_line(error: BaseException) -> str:
    """Returns an error's text as one line of at most 200 characters; "" if it has none."""
    return " ".join(str(error).split())[:200]


class UserError(Exception):
    """An error whose message says what is wrong, where, and what to do.

    A process that ends with it has the exit code ``exit_code``. 2 is for people: the same command
    would fail again.
    """

    exit_code = 2


class ConfigError(UserError):
    """Raised if the configuration cannot be used."""


class RunError(UserError):
    """Raised if a run cannot start, go on, or be read."""


class Unreachable(RunError):
    """Raised if something outside this machine does not answer. The same command may work later."""

    exit_code = 1


class PromptTooLong(RunError):
    """Raised if an engine has no room for a prompt and its answer."""


class Stopped(KeyboardInterrupt):
    """Raised after SIGTERM or Ctrl-C. ``note`` tells a person where the work stands.

    It is a KeyboardInterrupt, so that code that handles errors does not catch it.
    """

    def __init__(self, signum: int, note: str = "stopped"):
        super().__init__(signum)
        self.signum = signum
        self.note = note
