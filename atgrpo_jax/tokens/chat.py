"""Renders chat templates of model folders with sandboxed Jinja, as ``transformers`` does.

A template is a program that somebody else wrote. It sees no clock and no random numbers, so it
gives the same text every time. Each order of roles is rendered first in a process of its own
(``python -m atgrpo_jax.tokens.chat``) with limits on time and memory. So a template that never
ends, or whose text grows without end, is stopped there and not in the run.
"""

import dataclasses
import datetime
import functools
import json
import re
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from atgrpo_jax.common.errors import RunError, one_line

SECONDS = 5  # CPU seconds for a trial
_MEMORY = 2**29  # bytes for a trial
_LONGEST = 2**20  # most characters that a template may make of short messages
THINKS_NOT = '{"enable_thinking": false}'  # templates without a thinking mode ignore it
# What other settings say, so that no further value may.
GIVEN = ("messages", "tools", "documents", "add_generation_prompt", "strftime_now", "enable_thinking")
_STARTS = 300  # most seconds in which a trial's process starts and ends on a busy machine


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """A chat template, with the values that it gets beside the messages.

    Args:
      source: the template's text, in Jinja.
      tokens: names and texts of special tokens, e.g. ("eos_token", "</s>").
      date: the day that ``strftime_now`` in a template uses, at midnight; YYYY-MM-DD.
      name: the template's origin, for errors.
      values: further values by their names, as a JSON object; ``THINKS_NOT`` by default.
    """

    source: str
    tokens: tuple[tuple[str, str], ...]
    date: str
    name: str
    values: str = THINKS_NOT

    @property
    def dated(self) -> bool:
        """Returns whether the template may write the date."""
        return "strftime_now" in self.source

    def uses(self, name: str) -> bool:
        """Returns whether the template may read the value of that name."""
        return re.search(rf"\b{re.escape(name)}\b", self.source) is not None

    def render(self, messages: Sequence[Mapping[str, str]], opened: bool = True) -> str:
        """Returns the text of a conversation. If ``opened``, the assistant's turn has begun in it.

        Raises RunError if the template fails, refuses the conversation, or leaves out one of
        several messages. For every new order of roles it also raises if the trial takes too much
        time or memory.
        """
        roles = tuple(message["role"] for message in messages)
        _, unseen, failed = trial(self, roles, opened)
        if unseen and len(roles) > 1:
            failed = f"it does not show what {unseen} says"
        if failed:
            raise RunError(f"{self.name} fails on messages of {', '.join(roles)}: {failed}")
        try:
            return _rendered(self, messages, opened)
        except Exception as error:  # a template's own program may raise anything
            raise RunError(f"{self.name} fails on messages of {', '.join(roles)}: {_line(error)}") from error


@functools.lru_cache(maxsize=256)
def trial(template: ChatTemplate, roles: tuple[str, ...], opened: bool) -> tuple[str, str, str]:
    """Renders ``marks(roles)`` in a process of its own.

    Returns the text, a role whose words the text does not show, and an error. Each is "" if there
    is none.
    """
    task = json.dumps([dataclasses.asdict(template), roles, opened])
    command = [sys.executable, "-m", "atgrpo_jax.tokens.chat", str(SECONDS)]
    try:
        done = subprocess.run(command, input=task.encode(), capture_output=True, timeout=_STARTS)
    except subprocess.TimeoutExpired:
        return "", "", "it does not end"
    if done.returncode:
        return "", "", f"it takes more than {SECONDS} s or {_MEMORY >> 20} MiB, or ends the process"
    text, unseen, failed = json.loads(done.stdout)
    return text, unseen, failed


def marks(roles: Sequence[str]) -> list[dict[str, str]]:
    """Returns messages, one for each role, whose contents can be found again in a text."""
    return [{"role": role, "content": f"mark{place}of{len(roles)}"} for place, role in enumerate(roles)]


def _try(template: ChatTemplate, roles: Sequence[str], opened: bool) -> tuple[str, str, str]:
    messages = marks(roles)
    try:
        text = _rendered(template, messages, opened)
    except MemoryError:
        return "", "", "it takes too much memory"
    except Exception as error:
        return "", "", _line(error)
    if len(text) > _LONGEST:
        return "", "", f"it makes {len(text)} characters of them"
    if " at 0x" in text:
        return text, "", "it prints an object of Python, which has another text in every process"
    unseen = [message["role"] for message in messages if message["content"] not in text]
    return text, unseen[0] if unseen else "", ""


def _rendered(template: ChatTemplate, messages: Sequence[Mapping[str, str]], opened: bool) -> str:
    now = datetime.datetime.fromisoformat(template.date)
    values = dict(template.tokens) | json.loads(template.values)
    return _compiled(template.source).render(
        **values,
        messages=[dict(message) for message in messages],
        tools=None,
        documents=None,
        add_generation_prompt=opened,
        strftime_now=now.strftime,
    )


@functools.lru_cache(maxsize=16)
def _compiled(source: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _refuse, "dict": lambda *args, **named: dict(*args, **named)}
    del environment.globals["lipsum"], environment.filters["random"]  # they use random numbers
    return environment.from_string(source)


class _Generation(jinja2.ext.Extension):
    """A Jinja extension for {% generation %} ... {% endgeneration %}, which renders as its body.

    Templates put it around an assistant's words.
    """

    tags = {"generation"}  # noqa: RUF012  (the base class declares it like this)

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Any) -> str:
        return caller()


def _to_json(value: Any, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    """Returns JSON without the HTML escapes of Jinja's own filter."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _refuse(message: Any) -> None:
    raise jinja2.TemplateError(str(message))


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {one_line(error)}"


def main() -> None:
    """Runs as the process of ``trial``: reads a task from stdin, writes the result to stdout."""
    seconds = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    about, roles, opened = json.load(sys.stdin)
    tokens = tuple((name, text) for name, text in about.pop("tokens"))
    result = _try(ChatTemplate(tokens=tokens, **about), roles, opened)
    sys.stdout.write(json.dumps(result))


if __name__ == "__main__":
    main()
