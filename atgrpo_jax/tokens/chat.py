"""Chat templates of model folders: Jinja in a sandbox, with what ``transformers`` gives a template.

A template is somebody's program. It sees no clock and no chance, so it gives the same text every time. Each
shape of conversation is rendered first in a process of its own (``python -m atgrpo_jax.tokens.chat``), which
may use little time and memory, so a template that never ends or grows stops there and not in the run.
"""

import dataclasses
import datetime
import functools
import json
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from atgrpo_jax.common.errors import RunError

_SECONDS = 5  # of the CPU, for all renderings of a trial
_MEMORY = 2**29  # bytes
_LONGEST = 2**20  # characters that a template may make of short messages
_STARTS = 300  # seconds that a process may take to come up and end on a busy machine


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """A template and what it is told beside messages.

    Args:
      source: Jinja.
      tokens: names and texts of special tokens, e.g. ("eos_token", "</s>").
      date: what ``strftime_now`` of a template takes for now, at midnight; YYYY-MM-DD.
      name: where it is from, for errors.
    """

    source: str
    tokens: tuple[tuple[str, str], ...]
    date: str
    name: str

    @property
    def dated(self) -> bool:
        """Whether it may write the date."""
        return "strftime_now" in self.source

    def render(self, messages: Sequence[Mapping[str, str]], opened: bool = True) -> str:
        """Text of a conversation, up to where the assistant begins to speak if ``opened``.

        Raises RunError if the template fails, refuses the conversation, or leaves one of several messages
        out; for every new order of roles also if it takes too much time or memory.
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
    """What a template makes of ``marks(roles)`` in a process of its own, a role whose words it does not show,
    and what is wrong; "" where there is nothing to tell."""
    task = json.dumps([dataclasses.asdict(template), roles, opened])
    command = [sys.executable, "-m", "atgrpo_jax.tokens.chat", str(_SECONDS)]
    try:
        done = subprocess.run(command, input=task.encode(), capture_output=True, timeout=_STARTS)
    except subprocess.TimeoutExpired:
        return "", "", "it does not end"
    if done.returncode:
        return "", "", f"it takes more than {_SECONDS} s or {_MEMORY >> 20} MiB, or ends the process"
    text, unseen, failed = json.loads(done.stdout)
    return text, unseen, failed


def marks(roles: Sequence[str]) -> list[dict[str, str]]:
    """Messages whose contents can be found again."""
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
    return _compiled(template.source).render(
        **dict(template.tokens),
        messages=[dict(message) for message in messages],
        tools=None,
        documents=None,
        add_generation_prompt=opened,
        enable_thinking=False,  # templates that know no thinking ignore it
        strftime_now=now.strftime,
    )


@functools.lru_cache(maxsize=16)
def _compiled(source: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _refuse, "dict": lambda *args, **named: dict(*args, **named)}
    del environment.globals["lipsum"], environment.filters["random"]  # chance
    return environment.from_string(source)


class _Generation(jinja2.ext.Extension):
    """{% generation %} ... {% endgeneration %}, around what an assistant said: nothing but its body."""

    tags = {"generation"}  # noqa: RUF012  (as its base class has it)

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Any) -> str:
        return caller()


def _to_json(value: Any, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    """Writes JSON without the escapes for HTML of Jinja's own filter."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _refuse(message: Any) -> None:
    raise jinja2.TemplateError(str(message))


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def main() -> None:
    """The process of ``trial``."""
    seconds = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    about, roles, opened = json.load(sys.stdin)
    tokens = tuple((name, text) for name, text in about.pop("tokens"))
    result = _try(ChatTemplate(tokens=tokens, **about), roles, opened)
    sys.stdout.write(json.dumps(result))


if __name__ == "__main__":
    main()
