"""Asks one server, by the part of the OpenAI API that all such servers have."""

import datetime
import email.utils
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import aiohttp

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.types import Message
from atgrpo_jax.engines.sglang.replies import Unusable, get, parse, read
from atgrpo_jax.engines.sglang.secrets import plain, shown
from atgrpo_jax.partners.answers import Answer
from atgrpo_jax.partners.partners import Partner

# Largest sizes in bytes: of a list of models, of an error, of an answer without tokens, and of what
# each token adds to it (some servers send more than its text).
_MODELS = 4 << 20
_ERROR = 1 << 14
_ANSWER = 1 << 16
_TOKEN = 512
_LATER = (408, 429, 503)  # the server has no room or no time now
_ENDS: dict[Any, Any] = {"stop": "stop", "length": "length", "content_filter": "error"}


class Failed(Exception):
    """Says that a server did not answer, or answered something wrong. Another try may help.

    ``wait_s`` is for how long the server asks to be left alone; None if it does not.
    """

    def __init__(self, says: str, wait_s: float | None = None):
        super().__init__(says)
        self.wait_s = wait_s


class TooLong(Exception):
    """Says that a prompt and its answer are longer than the model's context."""


class ChatServer:
    """Sends a partner's requests.

    Args:
      where: begins every error, e.g. "role critic: ".
      headers: of all requests; they hold the key.
    """

    def __init__(
        self, partner: Partner, where: str, session: aiohttp.ClientSession, headers: Mapping[str, str]
    ):
        self.partner = partner
        self.where = where
        self._session = session
        self._headers = headers

    async def check(self, seconds: float) -> None:
        """Raises RunError unless the server lists the partner's model. Raises Failed."""
        place = f"{self.partner.url}/models"
        found = await self._ask("GET", "/models", None, seconds, _MODELS)
        try:
            names = [get(model, "id", str) for model in get(found, "data", list)]
        except Unusable as error:
            raise Failed(f"{self.where}{place}: {error}") from None
        if self.partner.model not in names:
            raise RunError(
                f"{self.where}{place} lists {shown(names)}, and no {self.partner.model!r}; "
                "set partners.Partner.model or url"
            )

    def body(self, messages: Sequence[Message]) -> dict[str, Any]:
        """Returns what is sent to have a prompt answered."""
        return {
            "model": self.partner.model,
            "messages": list(messages),
            "temperature": self.partner.temperature,
            self.partner.limit_name: self.partner.max_tokens,
        }

    async def answer(self, messages: Sequence[Message], seconds: float) -> Answer:
        """Returns an answer. Raises Failed, TooLong, or RunError if another try would not help."""
        most = _ANSWER + self.partner.max_tokens * _TOKEN
        found = await self._ask("POST", "/chat/completions", self.body(messages), seconds, most)
        try:
            return _answer(found)
        except Unusable as error:
            raise Failed(f"{self.where}{self.partner.url}/chat/completions: {error}") from None

    async def _ask(self, method: str, path: str, body: Any, seconds: float, most: int) -> Any:
        place = f"{self.where}{self.partner.url}{path}"
        try:
            async with self._session.request(
                method,
                self.partner.url + path,
                json=body,
                headers=self._headers,
                timeout=aiohttp.ClientTimeout(total=seconds),
                allow_redirects=False,
            ) as answer:
                status = answer.status
                headers = answer.headers
                raw, more = await read(answer, most if status == 200 else _ERROR)
        except TimeoutError:
            raise Failed(f"{place}: no answer in {seconds:.1f} s") from None
        except (aiohttp.ClientError, OSError) as error:
            # The cause is left out, because its text may hold what we sent.
            raise Failed(f"{place}: {plain(str(error)) or type(error).__name__}") from None
        if status != 200:
            self._refuse(place, status, headers, raw)
        if more:
            raise Failed(f"{place}: answered more than {most} bytes, and none that is right does")
        if headers.get("Content-Encoding", "identity").lower() != "identity":
            raise Failed(f"{place}: answered in {shown(headers['Content-Encoding'])}, unasked")
        try:
            return parse(raw)
        except Unusable as error:
            raise Failed(f"{place}: {error}") from None

    def _refuse(self, place: str, status: int, headers: Mapping[str, str], raw: bytes) -> NoReturn:
        """Raises the error for an answer whose status is not 200."""
        says, code = _error(raw)
        line = f"{place}: status {status}: {says}"
        if status in (401, 403):
            key = self.partner.api_key_file or self.partner.api_key_variable
            do = f"it does not take the key in {key}" if key else "it wants a key"
            raise RunError(f"{line}; {do}: partners.Partner.api_key_file or api_key_variable")
        if 300 <= status < 400:
            where = shown(headers.get("Location", ""))
            raise RunError(f"{place}: status {status} sends us to {where}; give that as partners.Partner.url")
        if status == 404:
            raise RunError(
                f"{line}; partners.Partner.url comes before /chat/completions, often it ends in /v1"
            )
        if code == "insufficient_quota":  # with status 429, though patience does not help
            raise RunError(f"{line}; the same command goes on when the account may ask again")
        if status in _LATER or status >= 500:
            raise Failed(line, _patience(headers.get("Retry-After"), 0.0 if status == 429 else None))
        if code == "context_length_exceeded" or "context length" in says.lower():
            raise TooLong(line)
        raise RunError(f"{line}; the server calls the request wrong")


def _answer(found: Any) -> Answer:
    """Reads an answer. Raises Unusable for what no correct server sends."""
    choices = get(found, "choices", list)
    if len(choices) != 1:
        raise Unusable(f"answered {len(choices)} choices, and one was asked for")
    message = get(choices[0], "message", dict)
    ended = get(choices[0], "finish_reason", str, type(None), default=None)
    if ended not in _ENDS:
        raise Unusable(f"ended an answer for the reason {shown(ended)}")
    usage = get(found, "usage", dict)
    tokens = [get(usage, name, int) for name in ("prompt_tokens", "completion_tokens")]
    if min(tokens) < 0:
        raise Unusable(f"counted {shown(tokens)} tokens")
    text = get(message, "content", str, type(None), default=None) or ""
    if ended == "content_filter":  # the server holds back some of it, or all
        text = ""
    return Answer(text, _ENDS[ended], get(found, "model", str), *tokens)


def _error(raw: bytes) -> tuple[str, Any]:
    """Returns the message and the code of an error, in whichever form the server gives it."""
    text = raw.decode(errors="replace")
    try:
        found = parse(text.encode())
    except Unusable:
        return plain(text), None
    inner = found.get("error", found) if isinstance(found, dict) else found
    if not isinstance(inner, dict):
        return plain(inner) if isinstance(inner, str) else shown(inner), None
    says = inner.get("message", inner)
    return plain(says) if isinstance(says, str) else shown(says), inner.get("code")


def _patience(header: str | None, default: float | None) -> float | None:
    """Returns the seconds that a header Retry-After asks for, as a number or as a date."""
    if header is None:
        return default
    try:
        if header.strip().isdecimal():
            return min(float(header), 1e9)
        until = email.utils.parsedate_to_datetime(header)
        now = datetime.datetime.now(until.tzinfo)
        return max((until - now).total_seconds(), 0.0)
    except (ValueError, OverflowError):
        return default
