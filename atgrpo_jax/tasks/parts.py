"""Computes parts of a role's reward that several tasks pay."""

from atgrpo_jax.sandbox.protocol import ProgramResult

Parts = tuple[tuple[str, float], ...]  # (name, value) of each part


def program_parts(run: ProgramResult, builds: float, runs: float) -> Parts:
    """Returns ``builds`` if a program is Python, and ``runs`` if it ended well; else 0 for each."""
    return ("builds", builds * run.built), ("runs", runs * (run.end == "ok"))


def changes(now: Parts, before: Parts) -> dict[str, float]:
    """Returns each part of ``now`` less what ``before`` paid for it."""
    paid = dict(before)
    return {name: value - paid.get(name, 0.0) for name, value in now}
