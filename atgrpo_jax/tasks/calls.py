"""Guards calls of a task's own code: which exceptions may leave it, and what it must return."""

import contextlib
import dataclasses
import numbers
import signal
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from atgrpo_jax.common.errors import ConfigError, RunError, Stopped, UserError
from atgrpo_jax.common.types import Board, GroupKey, Reward
from atgrpo_jax.tasks.prompts import shortened
from atgrpo_jax.tasks.protocol import Drawn, Transition

# Rewards and metrics must be smaller than this in size. Training computes in float32, which ends at
# 3.4e38, so differences and sums of rewards fit.
LARGEST = 1e30
KEPT = 2000  # characters of a text for people that are written down
MOST_CELLS, MOST_LETTERS = 64, 32  # of a side of a board, of a cell


def place(key: GroupKey) -> str:
    """Returns the place in a run, in words."""
    return (
        f"step {key.step}, {key.split} instance {key.instance}, episode {key.episode}, "
        f"turn {key.turn}, role {key.speaker}"
    )


@contextlib.contextmanager
def calling(task: Any, method: str, where: str) -> Iterator[None]:
    """Guards a call of ``task.method``. An ordinary exception passes, with the line that raised it.

    Raises RunError if the task raises SystemExit, KeyboardInterrupt or CancelledError: these would
    end the process as if all were well, or look like a stop by a signal. Those of real signals
    pass.
    """
    try:
        yield
    except Exception:
        raise
    except BaseException as error:
        if isinstance(error, Stopped) or _from_a_signal(error):
            raise
        raise RunError(
            f"{where}: {kind(task)}.{method} raised {type(error).__name__}({_shown(error)}); a task must not "
            "end the run. Raise an ordinary exception, or score the text as invalid"
        ) from error


def _from_a_signal(error: BaseException) -> bool:
    """Returns whether a signal handler raised ``error``: then its innermost line is the handler's.

    Python's own handler of Ctrl-C leaves no line. If it is set, every KeyboardInterrupt counts as
    its own.
    """
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    if isinstance(error, KeyboardInterrupt) and signal.default_int_handler in handlers:
        return True
    line = error.__traceback__
    while line is not None and line.tb_next is not None:
        line = line.tb_next
    plain = [getattr(handler, "func", handler) for handler in handlers]  # asyncio's is a functools.partial
    return line is not None and line.tb_frame.f_code in [getattr(h, "__code__", None) for h in plain]


def kind(task: Any) -> str:
    return type(task).__name__


def check_split(task: Any, split: str) -> None:
    """Raises ConfigError, with the task's own message, if a split has no first instance."""
    with calling(task, "instance", f"split {split}"):
        try:
            task.instance(split, 0)
        except UserError:
            raise
        except Exception as error:
            said = f"{type(error).__name__}: {_shown(error)}"
            raise ConfigError(f"{kind(task)} has no instance to use for {split}: {said}") from error


def scored(step: Any, task: Any, key: GroupKey, alpha: float) -> Transition:
    """Returns the step that ``act`` gave, with rewards and metrics that are plain numbers.

    Raises RunError that names the field unless it is a Transition whose rewards are finite, also when
    they are mixed by ``alpha``, and so are its metrics.
    """
    where = f"{place(key)}: {kind(task)}.act gave"
    if not isinstance(step, Transition):
        raise RunError(f"{where} {_described(step)}, expected a tasks.protocol.Transition")
    if not isinstance(step.note, str):
        raise RunError(f"{where} Transition.note = {_described(step.note)}, expected a text")
    reward = step.reward
    if not isinstance(reward, Reward):
        raise RunError(f"{where} Transition.reward = {_described(reward)}, expected a common.types.Reward")
    if not isinstance(reward.parts, Mapping):
        raise RunError(f"{where} Reward.parts = {_described(reward.parts)}, expected a mapping")
    parts = {part: _number(value, where, f"Reward.parts[{part!r}]") for part, value in reward.parts.items()}
    plain = Reward(
        _number(reward.team, where, "Reward.team"), _number(reward.local, where, "Reward.local"), parts
    )
    _number(plain.mixed(alpha), where, f"Reward.mixed with alpha = {alpha:g},")
    if not isinstance(step.metrics, Mapping) or not all(isinstance(name, str) for name in step.metrics):
        rule = "expected a mapping from names to numbers"
        raise RunError(f"{where} Transition.metrics = {_described(step.metrics)}, {rule}")
    own = {
        name: _number(value, where, f"Transition.metrics[{name!r}]") for name, value in step.metrics.items()
    }
    given = reward.team, reward.local, *reward.parts.values(), *step.metrics.values()
    if all(type(value) in (int, float) for value in given):
        return step
    return dataclasses.replace(step, reward=plain, metrics=own)


def board_of(task: Any, state: Any, where: str) -> Board | None:
    """Returns what the task draws of a state, cut to a size; None if it draws nothing.

    Raises RunError if it is neither a text nor rows of texts.
    """
    if not isinstance(task, Drawn):
        return None
    with calling(task, "drawn", where):
        found = task.drawn(state)
    if found is None or isinstance(found, str):
        return found and shortened(found, KEPT)
    rows = [row[:MOST_CELLS] for row in found[:MOST_CELLS]] if _is_list(found, _is_list) else None
    if rows is None or not all(isinstance(cell, str) for row in rows for cell in row):
        rule = 'expected None, a text, or rows of texts such as [["wall", "given 3"]]'
        raise RunError(f"{where}: {kind(task)}.drawn gave {_described(found)}, {rule}")
    return tuple(tuple(cell[:MOST_LETTERS] for cell in row) for row in rows)


def _is_list(value: Any, of: Callable[[Any], bool] = lambda _: True) -> bool:
    return isinstance(value, list | tuple) and all(map(of, value))


def _number(value: Any, where: str, field: str) -> float:
    """Returns a number as Python's float; NumPy's numbers and booleans are numbers, too. Raises
    RunError for anything else, and for a number that is not below ``LARGEST`` in size."""
    number = None
    if isinstance(value, numbers.Real):
        try:
            number = float(value)
        except (OverflowError, ValueError):
            number = float("inf")  # an integer that is too large for a float
    if number is None or not abs(number) < LARGEST:
        rule = f"expected a finite number below {LARGEST:g} in size"
        raise RunError(f"{where} {field} = {_described(value)}; {rule}")
    return number


def _described(value: Any) -> str:
    return f"{_shown(value)} ({type(value).__name__})"


def _shown(value: Any) -> str:
    """Returns a value as text on one line, cut after 80 characters."""
    try:
        text = " ".join((str if isinstance(value, BaseException) else repr)(value).split())
    except Exception as error:  # a number of 5,000 digits has no text, and other people's repr may raise
        return f"what cannot be shown, {type(error).__name__}"
    return text if len(text) <= 80 else f"{text[:80]}..."
