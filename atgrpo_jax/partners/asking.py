"""Gives the answers of partners: those that are recorded, and else those of their servers."""

import asyncio
import contextlib
import dataclasses
import itertools
import json
import random
import time
from collections.abc import Mapping, Sequence

import aiohttp

from atgrpo_jax.common.errors import PromptTooLong, RunError, Unreachable
from atgrpo_jax.common.progress import counted, say
from atgrpo_jax.common.types import GroupKey, Message, Sample, hash_bytes
from atgrpo_jax.engines.sglang.background import Background
from atgrpo_jax.engines.sglang.secrets import api_key, kept, plain
from atgrpo_jax.partners.answers import Answer, Cost, Records
from atgrpo_jax.partners.chat import ChatServer, Failed, TooLong
from atgrpo_jax.partners.partners import Partner
from atgrpo_jax.tokens.tokens import whole

_CHECK_S = 10.0  # seconds for the list of models
_LEAST_S = 0.1  # seconds for a request; aiohttp takes 0 for no limit
_QUIET_S = 30.0  # seconds between two lines on the failures of one partner


class Asking:
    """Asks the partners of a run.

    ``costs`` is what each role's partner has answered so far, in this process.
    """

    def __init__(self, partners: Mapping[str, Partner], records: Records, seed: int):
        """Asks every server for its models.

        Raises RunError if a key is missing, or if a server cannot be asked, or does not have the
        model. A server of which answers are recorded may be gone; that is only said.
        """
        self.costs: Mapping[str, Cost] = dict.fromkeys(partners, Cost())
        self._records = records
        self._seed = seed
        with contextlib.ExitStack() as opening:
            headers = {}
            for role, partner in partners.items():
                key = api_key(partner.api_key_file, partner.api_key_variable, "partners.Partner")
                opening.enter_context(kept(key))
                headers[role] = {"Authorization": f"Bearer {key}"} if key else {}
            self._loop = Background("partners")
            opening.callback(self._loop.close)
            session = self._loop.wait(_session())
            opening.callback(lambda: self._loop.wait(session.close()))
            self._adding: set[asyncio.Future[None]] = set()
            opening.callback(lambda: self._loop.wait(self._added()))
            self._asked = {
                role: _Asked(role, ChatServer(partner, f"role {role}: ", session, headers[role]), records)
                for role, partner in partners.items()
            }
            for role, asked in self._asked.items():
                say(f"role {role} is a partner, {partners[role]}; it is not trained")
                self._loop.wait(asked.check())
            self._opened = opening.pop_all()

    def close(self) -> None:
        """Returns when all that was answered is recorded. Raises OSError or RunError if it cannot be."""
        self._opened.close()

    async def ask(self, messages: Sequence[Message], key: GroupKey, spoken: bool) -> tuple[Sample, str]:
        """Returns what the partner of ``key.role`` answers: a sample without tokens, and its text.

        If the prompt is too long for the model because of what roles have said, none is drawn, as with
        an engine. If no role has spoken yet, raises PromptTooLong.

        Raises RunError if no answer can be had: all that was answered is recorded.
        """
        work = asyncio.run_coroutine_threadsafe(self._ask(messages, key, spoken), self._loop.loop)
        answer = await asyncio.wrap_future(work)
        return answer.sample, answer.text

    async def _ask(self, messages: Sequence[Message], key: GroupKey, spoken: bool) -> Answer:
        asked = self._asked[key.role]
        sent = [{name: whole(text) for name, text in message.items()} for message in messages]
        at = f"{self._seed}/{key.path()}"
        prompt = asked.digest(sent)
        known = self._records.find(at, prompt)
        seconds = 0.0
        if known is None:
            answer, seconds = await asked.answer(sent, key.path(), spoken)
            await self._record(key, at, prompt, answer)
        else:
            answer = known
        cost = Cost.of(answer, known is None, seconds)
        self.costs = {**self.costs, key.role: self.costs[key.role] + cost}
        return answer

    async def _record(self, key: GroupKey, at: str, prompt: str, answer: Answer) -> None:
        """Records an answer. It was paid for, so it is recorded even if nobody waits for it any more."""
        adding = asyncio.ensure_future(
            asyncio.to_thread(self._records.add, key.role, key.step, at, prompt, answer)
        )
        self._adding.add(adding)
        adding.add_done_callback(self._adding.discard)
        await asyncio.shield(adding)

    async def _added(self) -> None:
        """Returns when every answer that came is recorded."""
        await asyncio.gather(*self._adding)


class _Asked:
    """The partner of one role, and what holds for all that it is asked."""

    def __init__(self, role: str, server: ChatServer, records: Records):
        self._role = role
        self._server = server
        self._partner = server.partner
        before = records.of(role)
        self._answers = len(before)  # of the whole run, and those on their way
        self._tokens = sum(answer.tokens for answer in before)
        self._recorded = len(before)
        self._model = next((answer.model for answer in before if answer.model), "")
        self._room = asyncio.Semaphore(self._partner.at_once)
        self._not_before = 0.0  # time.monotonic, until when the server asks to be left alone
        self._quiet_until = 0.0

    async def check(self) -> None:
        try:
            await self._server.check(_CHECK_S)
        except (Failed, RunError) as error:
            if not self._recorded:
                if isinstance(error, RunError):
                    raise
                raise Unreachable(f"{error}; start the server, or set partners.Partner.url") from None
            say(f"{error}; going on with what is recorded, {counted(self._recorded, 'answer')}")

    def digest(self, messages: Sequence[Message]) -> str:
        """Returns a digest of all that an answer depends on, but for the server."""
        asked = (self._partner.model, messages, self._partner.temperature, self._partner.max_tokens)
        return hash_bytes(json.dumps(asked, sort_keys=True)).hex()

    async def answer(self, messages: Sequence[Message], place: str, spoken: bool) -> tuple[Answer, float]:
        """Returns an answer of the server, and the seconds that it took."""
        async with self._room:
            self._check_budget()
            self._answers += 1
            began = time.monotonic()
            try:
                answer = await self._tried(messages, place)
            except TooLong as error:
                if not spoken:
                    raise PromptTooLong(f"{error} (at {place})") from None
                say(f"{error} (at {place}); the episode ends there")
                return Answer("", "error", ""), time.monotonic() - began
            seconds = time.monotonic() - began
        self._tokens += answer.tokens
        self._model = self._model or answer.model
        if answer.model != self._model:
            raise RunError(
                f"role {self._role}: {self._partner.url} answered as {plain(answer.model)!r}, and before as "
                f"{plain(self._model)!r}; one run needs one model: serve the first one again"
            )
        if answer.finish == "error":
            self._tell(f"role {self._role}: the server's filter holds back an answer; the episode ends there")
        return dataclasses.replace(answer, text=whole(answer.text)), seconds

    async def _tried(self, messages: Sequence[Message], place: str) -> Answer:
        """Asks until there is an answer. Raises Unreachable after the last try, or past the deadline."""
        await asyncio.sleep(self._not_before - time.monotonic())
        end = time.monotonic() + self._partner.deadline_s
        failures = 0
        for attempt in itertools.count():
            try:
                left = max(end - time.monotonic(), _LEAST_S)
                return await self._server.answer(messages, left)
            except Failed as failure:
                failures += failure.wait_s is None
                pause = failure.wait_s or 0.5 * 2 ** min(attempt, 5) * (0.5 + random.random())
                again = time.monotonic() + pause
                if failure.wait_s:
                    self._not_before = max(self._not_before, again)
                if failures >= self._partner.tries or again > end:
                    raise self._given_up(failure, failures, place) from None
                self._tell(f"{failure}; it is asked again")
                await asyncio.sleep(again - time.monotonic())
        raise AssertionError

    def _given_up(self, failure: Failed, failures: int, place: str) -> RunError:
        limit = f"partners.Partner.tries = {self._partner.tries}"
        do = "start the server again"
        if failures < self._partner.tries:
            limit = f"partners.Partner.deadline_s = {self._partner.deadline_s:g}"
            do = "raise that, or lower partners.Partner.at_once"
        return Unreachable(
            f"{failure} (at {place}; given up by {limit}); {do}, and the same command goes on: all answers "
            "so far are recorded"
        )

    def _check_budget(self) -> None:
        """Raises RunError if the budget is used up."""
        for name, used in (("most_answers", self._answers), ("most_tokens", self._tokens)):
            most = getattr(self._partner, name)
            if most and used >= most:
                raise RunError(
                    f"role {self._role}: the budget of its partner is used up, partners.Partner.{name} = "
                    f"{most}; with a higher one the same command goes on"
                )

    def _tell(self, line: str) -> None:
        """Says that something went wrong, unless such a line was said a moment ago."""
        now = time.monotonic()
        if now >= self._quiet_until:
            self._quiet_until = now + _QUIET_S
            say(line)


async def _session() -> aiohttp.ClientSession:
    """Opens a session for all requests.

    It asks for answers that are not compressed, and unpacks none, so that limits of size hold.
    """
    return aiohttp.ClientSession(
        headers={"Accept-Encoding": "identity"},
        connector=aiohttp.TCPConnector(limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
    )
