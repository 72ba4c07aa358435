"""One SGLang server as we talk to it: JSON over HTTP, and what its answers mean. See docs/sglang.md."""

import asyncio
import contextlib
import errno
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.types import Sample, Sampling
from atgrpo_jax.engines.sglang.processes import ServerProcess
from atgrpo_jax.engines.sglang.replies import Unusable, get, parse, read
from atgrpo_jax.engines.sglang.secrets import plain, shown

ASK_S = 5.0  # for what a healthy server says at once
HERE = ("127.0.0.1", "localhost", "::1")
# Bytes of an answer that says no samples (/server_info repeats all arguments and what each rank holds), of an
# error, and of what a token adds: its id, its logprob, which some servers tell twice, and its text.
_ANSWER, _ERROR, _TOKEN = 4 << 20, 1 << 14, 256
# What a server or something before it answers that has no room or no time now.
_LATER = (408, 429, 502, 503, 504)


class ServerError(Exception):
    """The server did not answer, or with something else than what was asked for. Another try may help."""


class Unreachable(ServerError):
    """Nobody answered, or only to say so: the server is dead, or starting, or behind a broken line."""


class NobodyListens(Unreachable):
    """This host says that nobody listens at the address, which is its own."""


class Stale(ServerError):
    """The server answered from other weights than it was given last."""


class Refused(Exception):
    """The server says that the request is wrong. It would say so again."""


class Server:
    """``state`` names the weights it is known to hold, None if that is not known (any longer).

    ``down`` says until when (time.monotonic) it is not asked again, and why; "" if nothing speaks against it.
    """

    def __init__(self, url: str, session: aiohttp.ClientSession, process: ServerProcess | None = None):
        self.url = url.rstrip("/")
        self.process = process
        self.state: str | None = None
        self.known = False  # it has been found to serve our model
        self.adapters: set[str] = set()  # names that it has loaded
        self.down: tuple[float, str] = 0.0, ""
        self.late = 0  # how often, since its last group, it has drawn none in its time
        self.mending: asyncio.Task[None] | None = None  # what brings it back
        self._session = session

    async def get(self, path: str, seconds: float) -> Any:
        return await self._ask("GET", path, None, seconds, _ANSWER)

    async def post(self, path: str, body: dict[str, Any], seconds: float, tokens: int = 0) -> Any:
        """The answer, as JSON; None if it is empty. Raises ServerError or Refused.

        Args:
          tokens: how many it may tell of.
        """
        return await self._ask("POST", path, body, seconds, _ANSWER + tokens * _TOKEN)

    async def answers(self, path: str, seconds: float) -> bool:
        """Whether it says anything there. What it says may be that it knows no such path."""
        try:
            await self.get(path, seconds)
        except Unreachable:
            return False
        except (ServerError, Refused):
            pass
        return True

    async def weights(self) -> str:
        """The name of those that it says it holds. Raises ServerError if it does not say."""
        try:
            return get(await self.get("/model_info", ASK_S), "weight_version", str)
        except Refused as error:
            raise ServerError(str(error)) from error
        except Unusable as error:
            raise ServerError(f"{self.url}/model_info names no weights: it {error}") from error

    async def abort(self, names: Sequence[str]) -> None:
        """Stops the requests of these names, if the server is there."""
        with contextlib.suppress(ServerError, Refused, RunError):
            for name in names:
                await self.post("/abort_request", {"rid": name}, ASK_S)

    async def _ask(self, method: str, path: str, body: Any, seconds: float, most: int) -> Any:
        place = self.url + path
        try:
            limit = aiohttp.ClientTimeout(total=seconds)
            async with self._session.request(
                method, place, json=body, timeout=limit, allow_redirects=False
            ) as answer:
                status, headers = answer.status, answer.headers
                raw, more = await read(answer, most if status == 200 else _ERROR)
        except TimeoutError:
            raise Unreachable(f"{place}: no answer in {seconds:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            # Not from it: its words may hold what we sent.
            raise _unreachable(place, error) from None
        if status != 200:
            raise _failure(place, status, headers, raw.decode(errors="replace"))
        if more:
            raise ServerError(f"{place}: answered more than {most} bytes, and none that is right does")
        if headers.get("Content-Encoding", "identity").lower() != "identity":
            raise ServerError(f"{place}: answered in {shown(headers['Content-Encoding'])}, unasked")
        try:
            return parse(raw)
        except Unusable as error:
            raise ServerError(f"{place}: {error}") from None


def _unreachable(place: str, error: Exception) -> Unreachable:
    refused = isinstance(error, aiohttp.ClientConnectorError) and error.os_error.errno == errno.ECONNREFUSED
    if refused and urlsplit(place).hostname in HERE:
        return NobodyListens(f"{place}: nobody listens there")
    return Unreachable(f"{place}: {plain(str(error)) or type(error).__name__}")


def _failure(place: str, status: int, headers: Mapping[str, str], text: str) -> Exception:
    """What an answer with another status than 200 comes to."""
    if status in (401, 403):
        return RunError(
            f"{place}: status {status}; the server wants an API key: "
            "SGLangConfig.api_key_file or api_key_variable"
        )
    if 300 <= status < 400:
        where = shown(headers.get("Location", ""))
        return ServerError(f"{place}: status {status} sends us to {where}; only addresses of urls are asked")
    if 400 <= status < 500 and status not in _LATER:
        return Refused(f"{place}: {_message(text)}")
    kind = Unreachable if status in _LATER else ServerError
    return kind(f"{place}: status {status}: {_message(text)}")


def _message(text: str) -> str:
    """The words of an error in one of the forms that servers give it."""
    try:
        found = parse(text.encode(errors="replace"))
    except Unusable:
        return plain(text)
    if isinstance(found, dict):
        inner = found.get("error", found)
        found = inner.get("message", inner) if isinstance(inner, dict) else inner
    return plain(found, 500) if isinstance(found, str) else shown(found)


def sampling_params(sampling: Sampling, stop_ids: Sequence[int]) -> dict[str, Any]:
    """All settings by name, so that no default of the server's counts.

    Raises RunError for those under which a server reports other logprobs than the training distribution's.
    """
    for name, given in (
        ("banned", sampling.banned),
        ("min_tokens", sampling.min_tokens),
        ("pattern", sampling.pattern),
    ):
        if given:
            raise RunError(
                f"Sampling.{name} = {given!r}: SGLang's logprobs would be those of the restricted "
                "distribution; the in-process engine has both"
            )
    return {
        "temperature": sampling.temperature,
        "max_new_tokens": sampling.max_tokens,
        "min_new_tokens": 0,
        "top_k": sampling.top_k or -1,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
        "repetition_penalty": 1.0,
        "stop": list(sampling.stop),
        "stop_token_ids": list(stop_ids),
        "skip_special_tokens": False,
        "no_stop_trim": True,
        "n": 1,
    }


def read_sample(
    answer: Any, sampling: Sampling, stop_ids: Collection[int], vocab_size: int, state: str, version: int
) -> Sample:
    """What one answer of /generate says. Ids and logprobs are the last ``completion_tokens`` entries of
    output_token_logprobs: some servers repeat earlier ones before them.

    Raises Stale if other weights than ``state`` drew it, ServerError if it is not what was asked for, and
    RunError if a token ended it that does not end ours: drawn again until none does, samples would come from
    another distribution.
    """
    try:
        about = get(answer, "meta_info", dict)
        count, reason = get(about, "completion_tokens", int), get(about, "finish_reason", dict)
        finish, matched = get(reason, "type", str), reason.get("matched")
        spans = get(about, "weight_versions", list, type(None), default=None) or []
        versions = {get(about, "weight_version", str), *(get(span, "version", str) for span in spans)}
        entries = get(about, "output_token_logprobs", list)
    except Unusable as error:
        raise ServerError(f"a sample: the server {error}") from None
    if versions != {state}:
        raise Stale(f"samples come from weights {shown(sorted(versions))}, expected {state}")
    if finish == "abort":
        raise ServerError(f"the server aborted a sample: {shown(reason.get('message'))}")
    tokens, logprobs = _drawn(entries, count, sampling.max_tokens, vocab_size)
    by_id, by_text = type(matched) is int and matched == tokens[-1], type(matched) is str
    if finish == "length" and count == sampling.max_tokens:
        return Sample(tokens, logprobs, "length", version)
    if finish == "stop" and ((by_id and matched in stop_ids) or (by_text and matched in sampling.stop)):
        return Sample(tokens, logprobs, "stop", version)
    if finish == "stop" and by_id:
        raise RunError(
            f"a server ended a sample with token {matched}, and ours end with {sorted(stop_ids)} only; "
            "start it on a folder whose config.json, generation_config.json and tokenizer name no other"
        )
    raise ServerError(
        f"finish {shown(finish)} (matched {shown(matched)}) after {count} tokens, which is no stop of ours"
    )


def cached_tokens(answer: Any, prompt: int) -> int:
    """How many of ``prompt`` tokens a server had computed before. Raises ServerError if it does not say."""
    try:
        known = get(get(answer, "meta_info", dict), "cached_tokens", int)
    except Unusable as error:
        raise ServerError(f"a prompt: the server {error}") from None
    if not 0 <= known <= prompt:
        raise ServerError(f"cached_tokens = {shown(known)} of {prompt}")
    return known


def _drawn(
    entries: Sequence[Any], count: int, most: int, vocab_size: int
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """The last ``count`` entries as ids and logprobs. Raises ServerError for what cannot be."""
    if not 1 <= count <= most:
        raise ServerError(f"{shown(count)} tokens, where 1 to {most} were asked for")
    if len(entries) < count:
        raise ServerError(f"{len(entries)} logprobs for {count} tokens")
    last = entries[-count:]
    if not all(type(entry) is list and len(entry) >= 2 for entry in last):
        raise ServerError(f"a logprob and an id are no such pair: {shown(last)}")
    # Exactly these types: true is no id, and a number of 400 digits is no float.
    if not all(type(entry[1]) is int and 0 <= entry[1] < vocab_size for entry in last):
        raise ServerError(f"a token id outside the vocabulary of {vocab_size}: {shown(last)}")
    lowest = -sys.float_info.max
    if not all(type(entry[0]) in (float, int) and lowest <= entry[0] <= 1e-3 for entry in last):
        raise ServerError(f"a logprob that is not finite, or above 0: {shown(last)}")
    return tuple(entry[1] for entry in last), tuple(float(entry[0]) for entry in last)
