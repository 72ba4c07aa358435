"""Writes what a probe found as one page of Markdown, to be read at a glance."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from atgrpo_jax.common.progress import duration
from atgrpo_jax.tools.probing.clock import rate
from atgrpo_jax.tools.probing.parts import Result


def record(results: Sequence[Result]) -> str:
    """Returns everything as JSON."""
    parts = [
        {
            "part": result.part,
            "ok": result.found is not None,
            "seconds": result.seconds,
            "line": _line(result),
            "found": None if result.found is None else dict(result.found.values),
            "trace": result.trace,
        }
        for result in results
    ]
    return json.dumps({"ok": _failed(results) == [], "parts": parts}, indent=1) + "\n"


def page(results: Sequence[Result]) -> str:
    """Returns the page: whether all is well, the machine, what each part found, and the speeds."""
    return "\n".join(_lines(results)) + "\n"


def _lines(results: Sequence[Result]) -> Iterator[str]:
    failed = _failed(results)
    yield "# Probe of atgrpo_jax"
    yield ""
    if failed:
        yield f"**{len(failed)} of {len(results)} parts failed: {', '.join(failed)}.**"
    else:
        yield f"All {len(results)} parts are as they should be."
    yield from _busy(results)
    yield ""
    yield "| part | | what was found | time |"
    yield "|---|---|---|---|"
    for result in results:
        yield f"| {result.part} | {_verdict(result)} | {_cell(_line(result))} | {_time(result.seconds)} |"
    speeds = [result for result in results if result.value("phases")]
    if speeds:
        yield ""
        yield from _speeds(speeds)
    yield ""
    yield from _versions(results)
    for result in results:
        if result.trace:
            yield from ("", f"Where *{result.part}* failed:", "", "```", result.trace.strip(), "```")


def _busy(results: Sequence[Result]) -> Iterator[str]:
    """Yields a line if other work took half of the cores or more."""
    for result in results:
        load = result.value("load")
        cores = result.value("cores")
        if load is not None and load >= cores / 2:
            yield f"Other work was going on (load {load} on {cores} cores), so rates and times are worse."


def _failed(results: Sequence[Result]) -> list[str]:
    return [result.part for result in results if result.found is None]


def _verdict(result: Result) -> str:
    if result.found is None:
        return "**failed**"
    return "skipped" if result.found.skipped else "ok"


def _line(result: Result) -> str:
    return result.fault or "" if result.found is None else result.found.line


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else duration(seconds)


def _speeds(results: Sequence[Result]) -> Iterator[str]:
    yield "| on one device | tokens/s | each takes | rate | of the products' rate | the first took |"
    yield "|---|---|---|---|---|---|"
    for result in results:
        for name, phase in result.value("phases").items():
            yield _speed(f"{result.part.removeprefix('model ')}, {name}", phase)
    yield ""
    for result in results:
        yield (
            f"- {result.part.removeprefix('model ')}: {result.value('parameters') / 1e6:,.1f} million "
            f"parameters, {result.value('dtype')}, {result.value('groups')}"
        )
    yield ""
    yield "Tokens of an update count each answer with its prompt, TFLOP count each prompt once."


def _speed(name: str, phase: Mapping[str, Any]) -> str:
    share = "" if phase["share"] is None else f"{phase['share']:.2f}"
    tokens = f"{phase['tokens_per_s']:,.0f}"
    if "decode_tokens_per_s" in phase:
        tokens += f" ({phase['decode_tokens_per_s']:,.0f} in decoding alone)"
    cells = (
        name,
        tokens,
        f"{phase['seconds']:.3g} s",
        rate(phase["tflops"]),
        share,
        f"{_time(phase['first_s'])}, compiling {_time(phase['compile_s'])}",
    )
    return f"| {' | '.join(cells)} |"


def _versions(results: Sequence[Result]) -> Iterator[str]:
    host = next((result for result in results if result.value("packages")), None)
    if host is None:
        return
    commit = f" (commit {host.value('commit')})" if host.value("commit") else ""
    versions = [f"{name} {version}" for name, version in host.value("packages").items()]
    ours = f"atgrpo_jax {host.value('atgrpo_jax')}{commit}, Python {host.value('python')}"
    yield ", ".join([ours, *versions])
    for name, value in host.value("environment").items():
        yield f"\n`{name}={value}`"
