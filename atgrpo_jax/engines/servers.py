"""One SGLang server as we talk to it: JSON over HTTP, and what its answers mean. See docs/sglang.md."""

import asyncio
import contextlib
import json
import math
import operator
from collections.abc import Collection, Sequence
from typing import Any

import aiohttp

from atgrpo_jax.engines.processes import ServerProcess
from atgrpo_jax.errors import RunError
from atgrpo_jax.types import Sample, Sampling

ASK_S = 5.0  # for what a healthy server says at once
# What a server or something before it answers that has no room or no time now.
_LATER = (408, 429, 502, 503, 504)


class ServerError(Exception):
    """The server did not answer, or with something else than what was asked for. Another try may help."""


class Unreachable(ServerError):
    """Nobody answered, or only to say so: the server is dead, or starting, or behind a broken line."""


class Stale(ServerError):
    """The server answered from other weights than it was given last."""


class Refused(Exception):
    """The server says that the request is wrong. It would say so again."""


class Server:
    """``state`` names the weights it is known to hold, None if that is not known (any longer).

    ``down`` says until when (time.monotonic) it is not asked again, and why.
    """

    def __init__(self, url: str, session: aiohttp.ClientSession, process: ServerProcess | None = None):
        self.url = url.rstrip("/")
        self.process = process
        self.state: str | None = None
        self.known = False  # it has been found to serve our model
        self.adapters: set[str] = set()  # names that it has loaded
        self.down: tuple[float, str] = 0.0, ""
        self.healing = asyncio.Lock()
        self._session = session

    async def get(self, path: str, seconds: float) -> Any:
        return await self._ask("GET", path, None, seconds)

    async def post(self, path: str, body: dict[str, Any], seconds: float) -> Any:
        """The answer, as JSON; None if it is empty. Raises ServerError or Refused."""
        return await self._ask("POST", path, body, seconds)

    async def weights(self) -> Any:
        """The name of those that it says it holds. Raises ServerError if it does not say."""
        try:
            info = await self.get("/model_info", ASK_S)
        except Refused as error:
            raise ServerError(str(error)) from error
        if not isinstance(info, dict) or "weight_version" not in info:
            raise ServerError(f"{self.url}/model_info names no weights: {str(info)[:200]}")
        return info["weight_version"]

    async def abort(self, names: Sequence[str]) -> None:
        """Stops the requests of these names, if the server is there."""
        with contextlib.suppress(ServerError, Refused):
            for name in names:
                await self.post("/abort_request", {"rid": name}, ASK_S)

    async def _ask(self, method: str, path: str, body: Any, seconds: float) -> Any:
        try:
            limit = aiohttp.ClientTimeout(total=seconds)
            async with self._session.request(method, self.url + path, json=body, timeout=limit) as answer:
                text = await answer.text(errors="replace")
                status = answer.status
        except TimeoutError as error:
            raise Unreachable(f"{self.url}{path}: no answer in {seconds:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise Unreachable(f"{self.url}{path}: {error or type(error).__name__}") from error
        if status in (401, 403):
            raise RunError(
                f"{self.url}{path}: status {status}; the server wants an API key: "
                "SGLangConfig.api_key_file or api_key_variable"
            )
        if 400 <= status < 500 and status not in _LATER:
            raise Refused(f"{self.url}{path}: {_message(text)}")
        if status != 200:
            kind = Unreachable if status in _LATER else ServerError
            raise kind(f"{self.url}{path}: status {status}: {_message(text)}")
        try:
            return json.loads(text) if text.strip() else None
        except json.JSONDecodeError as error:
            raise ServerError(f"{self.url}{path}: answered no JSON: {text[:100]!r}") from error


def _message(text: str) -> str:
    """The words of an error in one of the forms that servers give it."""
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        return text.strip()[:300]
    if isinstance(found, dict):
        inner = found.get("error", found)
        found = inner.get("message", inner) if isinstance(inner, dict) else inner
    return str(found)[:500]


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
        about = answer["meta_info"]
        count, finish = operator.index(about["completion_tokens"]), about["finish_reason"]["type"]
        entries = about["output_token_logprobs"][-count:] if count else []
        matched = about["finish_reason"].get("matched")
        tokens = tuple(entry[1] for entry in entries)
        logprobs = tuple(float(entry[0]) for entry in entries)
        spans = [span["version"] for span in about.get("weight_versions") or []]
        versions = {about["weight_version"], *spans}
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise ServerError(f"an answer without {error}: {str(answer)[:200]}") from error
    if versions != {state}:
        raise Stale(f"samples come from weights {sorted(map(str, versions))}, expected {state}")
    if finish == "abort":
        raise ServerError(f"the server aborted a sample: {about['finish_reason'].get('message')}")
    wrong = _wrong(tokens, logprobs, count, finish, matched, sampling, stop_ids, vocab_size)
    if wrong and finish == "stop" and tokens[-1:] == (matched,) and matched not in stop_ids:
        raise RunError(
            f"a server ended a sample with token {matched}, and ours end with {sorted(stop_ids)} only; "
            "start it on a folder whose config.json, generation_config.json and tokenizer name no other"
        )
    if wrong:
        raise ServerError(f"{wrong}: {str(answer)[:200]}")
    return Sample(tokens, logprobs, finish, version)


def cached_tokens(answer: Any) -> int:
    """How many of the prompt's tokens a server had computed before. Raises ServerError if it does not say."""
    try:
        return int(answer["meta_info"]["cached_tokens"])
    except (KeyError, TypeError, ValueError) as error:
        raise ServerError(f"an answer without {error}: {str(answer)[:200]}") from error


def _wrong(tokens, logprobs, count, finish, matched, sampling, stop_ids, vocab_size) -> str | None:
    """The first thing about a sample that cannot be."""
    if not 1 <= count <= sampling.max_tokens:
        return f"{count} tokens, where 1 to {sampling.max_tokens} were asked for"
    if len(tokens) != count:
        return f"{len(tokens)} logprobs for {count} tokens"
    if not all(isinstance(token, int) and 0 <= token < vocab_size for token in tokens):
        return f"a token id outside the vocabulary of {vocab_size}"
    if not all(math.isfinite(value) and value <= 1e-3 for value in logprobs):
        return "a logprob that is not finite, or above 0"
    if finish == "length" and count == sampling.max_tokens:
        return None
    if finish == "stop" and (matched in sampling.stop or (tokens[-1] == matched and matched in stop_ids)):
        return None
    return f"finish {finish!r} (matched {matched!r}) after {count} tokens, which is no stop of ours"
