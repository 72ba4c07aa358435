"""Errors that a person can act on. Entry points print them as one line and exit with a code above 0."""


class UserError(Exception):
    """Says what is wrong, where, and what to do."""


class ConfigError(UserError):
    """The configuration cannot be used."""


class RunError(UserError):
    """A run cannot start, go on, or be read."""


class PromptTooLong(RunError):
    """An engine has no room for a prompt and its answer."""


class Stopped(KeyboardInterrupt):
    """SIGTERM or Ctrl-C. A KeyboardInterrupt, so that nothing that handles errors swallows it.

    ``note`` tells a person where the work stands.
    """

    def __init__(self, signum: int, note: str = "stopped"):
        super().__init__(signum)
        self.signum = signum
        self.note = note
