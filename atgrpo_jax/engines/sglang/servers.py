"""Talks to one SGLang server, in JSON over HTTP, and reads its answers. See docs/sglang.md."""

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

ASK_S = 5.0  # seconds for questions that a healthy server answers at once
HERE = ("127.0.0.1", "localhost", "::1")
# Largest sizes in bytes: of an answer without samples (/server_info repeats all arguments and what
# each rank holds), of an error, and of what each token adds to an answer: its id, its logprob
# (which some servers send twice) and its text.
_ANSWER = 4 << 20
_ERROR = 1 << 14
_TOKEN = 256
# Status codes of a server, or of something before it, that has no room or no time now.
_LATER = (408, 429, 502, 503, 504)


class ServerError(Exception):
    """Says that a server did not answer, or answered something wrong. Another try may help."""


class Unreachable(ServerError):
    """Says that a server cannot be reached: it is dead, busy or starting, or a line is broken."""


class NobodyListens(Unreachable):
    """Says that nobody listens at an address on this host."""


class Stale(ServerError):
    """Says that a server answered from other weights than it was given last."""


class Refused(Exception):
    """Says that a server calls the request wrong. Another try would not help."""


class Server:
    """Sends requests to the server at one URL, and holds what is known of it.

    ``state`` names the weights that the server holds; None if that is not known.
    ``down`` says until when (time.monotonic) it is not asked, and why; "" if the server is up.
    """

    def __init__(self, url: str, session: aiohttp.ClientSession, process: ServerProcess | None = None):
        self.url = url.rstrip("/")
        self.process = process
        self.state: str | None = None
        self.known = False  # it was seen to serve our model
        self.adapters: set[str] = set()  # names of the adapters that it has loaded
        self.down: tuple[float, str] = 0.0, ""
        self.late = 0  # times that it was late, since the last group that it drew
        self.mending: asyncio.Task[None] | None = None  # the task that gives it what it must hold
        self._session = session

    async def get(self, path: str, seconds: float) -> Any:
        return await self._ask("GET", path, None, seconds, _ANSWER)

    async def post(self, path: str, body: dict[str, Any], seconds: float, tokens: int = 0) -> Any:
        """Returns the answer's JSON value; None if the answer is empty.

        Args:
          tokens: how many tokens the answer may hold; they raise the limit of its size.

        Raises ServerError or Refused, and RunError if the server wants an API key.
        """
        return await self._ask("POST", path, body, seconds, _ANSWER + tokens * _TOKEN)

    async def answers(self, path: str, seconds: float) -> bool:
        """Returns whether the server answers there, even if only that it knows no such path."""
        try:
            await self.get(path, seconds)
        except Unreachable:
            return False
        except (ServerError, Refused):
            pass
        return True

    async def weights(self) -> str:
        """Returns the name of the weights that the server says it holds.

        Raises ServerError if it does not say.
        """
        try:
            return get(await self.get("/model_info", ASK_S), "weight_version", str)
        except Refused as error:
            raise ServerError(str(error)) from error
        except Unusable as error:
            raise ServerError(f"{self.url}/model_info names no weights: it {error}") from error

    async def abort(self, names: Sequence[str]) -> None:
        """Stops the requests with these names. Ignores errors."""
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
                status = answer.status
                headers = answer.headers
                raw, more = await read(answer, most if status == 200 else _ERROR)
        except TimeoutError:
            raise Unreachable(f"{place}: no answer in {seconds:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            # The cause is left out, because its text may hold what we sent.
            raise _unreachable(place, error) from None
        if status != 200:
            raise failure(place, status, headers, raw.decode(errors="replace"))
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


def failure(place: str, status: int, headers: Mapping[str, str], text: str) -> Exception:
    """Returns the error for an answer whose status is not 200."""
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
    """Returns the message of an error, in whichever form the server gives it."""
    try:
        found = parse(text.encode(errors="replace"))
    except Unusable:
        return plain(text)
    if isinstance(found, dict):
        inner = found.get("error", found)
        found = inner.get("message", inner) if isinstance(inner, dict) else inner
    return plain(found, 500) if isinstance(found, str) else shown(found)


def sampling_params(sampling: Sampling, stop_ids: Sequence[int]) -> dict[str, Any]:
    """Returns all settings by name, so that no default of the server matters.

    Raises RunError for settings under which a server would not report the logprobs of the training
    distribution.
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
    """Reads the sample in one answer of /generate.

    Its ids and logprobs are the last ``completion_tokens`` entries of output_token_logprobs. Some
    servers repeat earlier entries before these.

    Raises Stale if other weights than ``state`` drew it, and ServerError if it is not what was
    asked for. Raises RunError if it ended with a token that does not end our samples: to draw again
    until another token ends it would change the distribution.
    """
    try:
        about = get(answer, "meta_info", dict)
        count = get(about, "completion_tokens", int)
        reason = get(about, "finish_reason", dict)
        finish = get(reason, "type", str)
        matched = reason.get("matched")
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
    by_id = type(matched) is int and matched == tokens[-1]
    by_text = type(matched) is str
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
    """Returns how many of the ``prompt`` tokens of a prompt a server had in its cache.

    Raises ServerError if it does not say.
    """
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
    """Returns the ids and logprobs in the last ``count`` entries.

    Raises ServerError for values that no correct server sends.
    """
    if not 1 <= count <= most:
        raise ServerError(f"{shown(count)} tokens, where 1 to {most} were asked for")
    if len(entries) < count:
        raise ServerError(f"{len(entries)} logprobs for {count} tokens")
    last = entries[-count:]
    if not all(type(entry) is list and len(entry) >= 2 for entry in last):
        raise ServerError(f"a logprob and an id are no such pair: {shown(last)}")
    # Only these types: true is not an id, and a number of 400 digits does not fit a float.
    if not all(type(entry[1]) is int and 0 <= entry[1] < vocab_size for entry in last):
        raise ServerError(f"a token id outside the vocabulary of {vocab_size}: {shown(last)}")
    lowest = -sys.float_info.max
    if not all(type(entry[0]) in (float, int) and lowest <= entry[0] <= 1e-3 for entry in last):
        raise ServerError(f"a logprob that is not finite, or above 0: {shown(last)}")
    return tuple(entry[1] for entry in last), tuple(float(entry[0]) for entry in last)
