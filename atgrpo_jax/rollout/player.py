"""Plays one episode of a team: the sampling tree. What draws the samples is given."""

import asyncio
import copy
import dataclasses
import functools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol, cast

from atgrpo_jax.common.clock import Clock
from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.finite import check_logprobs
from atgrpo_jax.common.types import (
    Board,
    Candidate,
    Episode,
    Group,
    GroupKey,
    Origin,
    Outcome,
    Ran,
    Sample,
    Sampling,
    of_role,
    seed_of,
)
from atgrpo_jax.credit.branching import earned, goes_on
from atgrpo_jax.credit.selection import Select, choose
from atgrpo_jax.partners.answers import Partners
from atgrpo_jax.rollout.crossings import Crossing, Drawn, EpisodeKey
from atgrpo_jax.rollout.team import Team
from atgrpo_jax.sandbox.protocol import Program, ProgramResult, Runner
from atgrpo_jax.tasks.calls import KEPT, board_of, calling, kind, place, scored
from atgrpo_jax.tasks.course import Course
from atgrpo_jax.tasks.prompts import shortened
from atgrpo_jax.tasks.protocol import Task, ToolTask, Transition, digest
from atgrpo_jax.tokens.tokens import Tokenizer

# Draws the samples of one group: (state, key, prompt ids, policy, whether any role has spoken in
# this episode) -> K samples.
Propose = Callable[[Any, GroupKey, tuple[int, ...], str, bool], Awaitable[Sequence[Sample]]]


class Afterwards(Protocol):
    """Gives the candidates of an episode other rewards when it is over."""

    counts: dict[str, int]  # of what that took

    async def credited(
        self,
        player: "Player",
        episode_key: EpisodeKey,
        episode: Episode,
        crossings: Sequence[Crossing | None],
    ) -> Episode:
        """Returns the episode. ``crossings`` are those of its groups, in order; None if nobody acted."""
        ...


@dataclasses.dataclass(frozen=True)
class Player:
    """Plays episodes.

    ``propose`` draws the samples: from an engine (``engine_propose``), or from demonstrations. If
    there is ``further``, it draws the others of a group in which two rewards of these differ.
    """

    task: Task | ToolTask
    team: Team
    tokenizer: Tokenizer
    propose: Propose
    sampling: Sampling | Mapping[str, Sampling]  # of all roles, or of each
    seed: int
    runner: Runner | None = None  # runs the programs that roles write
    select: Select = "mixed"
    exclude: tuple[str, ...] = (Outcome.ENGINE_ERROR.value,)
    clock: Clock = dataclasses.field(default_factory=Clock)  # time in the task and the tokenizer
    partners: Partners | None = None  # answer for the team's partners; None if ``propose`` does
    forced: Mapping[GroupKey, int] = dataclasses.field(default_factory=dict)  # executed whatever they earn
    further: Propose | None = None  # draws the candidates after those of ``propose``
    most_turns: int | None = None  # of an episode, if it may not have all of the workflow's
    afterwards: Afterwards | None = None

    async def play(self, step: int, split: str, index: int, episode: int = 0) -> Episode:
        """Plays one episode of the team on ``task.instance(split, index)``."""
        episode_key = EpisodeKey(step, split, index, episode)
        problem, state = self._start(step, split, index)
        course = Course(self.task, state, self.most_turns)
        groups, crossings = await self.go_on(episode_key, course)
        end = course.end or "engine_error"
        board = self._board(course.state, str(episode_key))
        made = Episode(
            split, index, episode, tuple(groups), end == "solved", course.turns, end, problem, board
        )
        if self.afterwards is None:
            return made
        return await self.afterwards.credited(self, episode_key, made, crossings)

    async def go_on(
        self, episode_key: EpisodeKey, course: Course, drawn: Sequence[Sequence[Drawn]] = ()
    ) -> tuple[list[Group], list[Crossing | None]]:
        """Plays an episode from where ``course`` is, and leads that to the end.

        If no candidate of a group can be executed, the course has no end, and nobody acts any more. Those who
        spoke at the same time are scored where it stands, and their groups are the last ones.

        ``drawn`` is by those who act before anybody else speaks; then no ``further`` ones are drawn. Returns
        the groups that were played, and the crossing of each; None if nobody acted.
        """
        groups: list[Group] = []
        crossings: list[Crossing | None] = []
        draws, board, acts = list(drawn), None, True
        shown, spoken = course.state, course.acted
        while True:
            for number, own in enumerate(draws):
                group, steps = await self._group(course.state, own, shown, spoken)
                acts = acts and group.chosen is not None
                groups.append(dataclasses.replace(group, board=board, chosen=group.chosen if acts else None))
                if not acts:
                    crossings.append(None)
                    continue
                crossings.append(Crossing(copy.copy(course), steps, draws[number + 1 :]))
                taken = None if group.chosen is None else steps[group.chosen]
                assert taken is not None
                course.take(taken)
            speakers = self._next(course, str(episode_key)) if acts else ()
            if not speakers:
                return groups, crossings
            keys = []
            for speaker in speakers:
                role, seat = self.task.workflow.seat(speaker)
                keys.append(GroupKey(*episode_key, course.turn, role, seat, course.stage))
            board = self._board(course.state, f"{episode_key}, turn {course.turn}")
            shown, spoken = course.state, course.acted
            draws = await asyncio.gather(*(self._draw(shown, key, spoken) for key in keys))

    def _next(self, course: Course, where: str) -> Sequence[str]:
        with self.clock, calling(self.task, "speaks", f"{where}, turn {course.turn}"):
            return course.next()

    def _board(self, state: Any, where: str) -> Board | None:
        with self.clock:
            return board_of(self.task, state, where)

    def _start(self, step: int, split: str, index: int) -> tuple[str, Any]:
        """Returns the name of an instance, and its first state.

        Raises RunError if there is no such instance.
        """
        where = f"step {step}, {split} instance {index}"
        with calling(self.task, "instance", where):
            try:
                instance = self.task.instance(split, index)
            except IndexError as error:
                rule = 'there is none; "train" must go on for ever, e.g. by index % count'
                raise RunError(f"{where}: {kind(self.task)}.instance raised {error!r}: {rule}") from error
        with calling(self.task, "initial", where):
            return str(getattr(instance, "id", "") or digest(instance)), self.task.initial(instance)

    async def _draw(self, state: Any, key: GroupKey, spoken: bool) -> list[Drawn]:
        """Draws samples of the prompt that ``key.role`` sees in ``state``, each with its origin.

        A partner gives one. It has no tokens, because they are not ours.

        Raises NotFinite for a sample whose logprobs are not finite.
        """
        with self.clock, calling(self.task, "prompt", place(key)):
            messages = self.task.prompt(state, key.speaker)
            state_digest = digest(state)
        with self.clock:
            prompt_ids = self.tokenizer.prompt_ids(messages)
        partner = self.team.partners.get(key.role)
        if partner is not None and self.partners is not None:
            sample, text = await self.partners.ask(messages, key, spoken)
            return [(Origin(key, prompt_ids, state_digest, "", -1, partner.sampling), sample, text)]
        policy = self.team.policy(key.role)
        samples = await self.propose(state, key, prompt_ids, policy, spoken)
        version = next((s.version for s in samples if s.drawn), -1)
        origin = Origin(key, prompt_ids, state_digest, policy, version, of_role(self.sampling, key.role))
        return self._drawn(origin, samples, 0)

    def _drawn(self, origin: Origin, samples: Sequence[Sample], first: int) -> list[Drawn]:
        """Returns samples, the candidates from number ``first`` on, with their origins and texts.

        The version of ``origin`` is that of samples that failed. Raises NotFinite for a sample whose
        logprobs are not finite.
        """
        found = []
        for k, sample in enumerate(samples, first):
            check_logprobs(sample, f"{place(origin.key)}, candidate {k} of policy {origin.policy}")
            version = sample.version if sample.drawn else origin.version
            with self.clock:
                text = self.tokenizer.decode(sample.tokens)
            found.append((dataclasses.replace(origin, version=version), sample, text))
        return found

    async def _group(
        self, state: Any, drawn: Sequence[Drawn], shown: Any, spoken: bool
    ) -> tuple[Group, list[Transition | None]]:
        """Scores what is ``drawn``, draws the others if that ``goes_on``, and selects one to execute.

        All are scored from ``state``. ``shown`` is the state that their prompt shows.
        """
        origin = drawn[0][0]
        key = origin.key
        alpha = self.team.alpha_of(key.role)
        candidates, steps = await self._score(state, drawn)
        further = self.further if origin.policy and drawn[0][1].finish != "too_long" else None
        if further is not None and goes_on(earned(candidates, alpha)):
            samples = await further(shown, key, origin.prompt_ids, origin.policy, spoken)
            if samples:
                others, led_to = await self._score(state, self._drawn(origin, samples, len(drawn)))
                candidates += others
                steps += led_to
        with self.clock:
            seed = seed_of("select", self.seed, key.path())
            rewards = [candidate.reward for candidate in candidates]
            chosen = choose(rewards, self.select, alpha, seed, len(drawn))
            chosen = self.forced.get(key, chosen)
        return Group(tuple(candidates), chosen), steps

    async def _score(
        self, state: Any, drawn: Sequence[Drawn]
    ) -> tuple[list[Candidate], list[Transition | None]]:
        """Scores every candidate from the same ``state``.

        Raises RunError if scoring has changed ``state``: the other candidates need it unchanged.
        """
        key = drawn[0][0].key
        before = digest(state)
        given = [text for _, sample, text in drawn if sample.drawn]
        runs = await asyncio.gather(*(self._run(state, key, text) for text in given))
        left = iter(runs)
        candidates: list[Candidate] = []
        steps: list[Transition | None] = []
        with self.clock:
            for origin, sample, text in drawn:
                step = None
                outcome = Outcome.ENGINE_ERROR
                ran: Sequence[ProgramResult] = ()
                if sample.drawn:
                    ran = next(left)
                    step, outcome = self._act(state, key, text, sample, ran)
                counts = step is not None and outcome.value not in self.exclude
                reward = step.reward if step is not None and counts else None
                note = "" if step is None else shortened(step.note, KEPT)
                metrics = {} if step is None else step.metrics
                candidates.append(Candidate(origin, sample, text, outcome, reward, note, _kept(ran), metrics))
                steps.append(step)
            if digest(state) != before:
                raise RunError(
                    f"{place(key)}: act or programs of {type(self.task).__name__} changed the state they "
                    "were given, or its repr is another each time; they must return a new one"
                )
        return candidates, steps

    async def _run(self, state: Any, key: GroupKey, text: str) -> Sequence[ProgramResult]:
        """Runs the programs that a text asks for, round by round, and returns all their results.

        Programs of one round run at the same time. The task may choose a round's programs by the
        results of earlier rounds.
        """
        if self._tool_task is None or key.speaker not in self._tool_task.tools:
            return ()
        assert self.runner is not None, "a task whose roles write programs needs somewhere to run them"
        runs: list[ProgramResult] = []
        while programs := self._programs(state, key, text, runs):
            runs += await asyncio.gather(*map(self.runner.run, programs))
        return runs

    def _programs(
        self, state: Any, key: GroupKey, text: str, runs: Sequence[ProgramResult]
    ) -> Sequence[Program]:
        assert self._tool_task is not None
        with self.clock, calling(self.task, "programs", place(key)):
            return self._tool_task.programs(state, key.speaker, text, runs)

    @functools.cached_property
    def _tool_task(self) -> ToolTask | None:
        """Returns the task if its roles write programs. Kept: to ask takes as long as to score a text."""
        return self.task if isinstance(self.task, ToolTask) else None

    def _act(
        self, state: Any, key: GroupKey, text: str, sample: Sample, runs: Sequence[ProgramResult]
    ) -> tuple[Transition, Outcome]:
        with calling(self.task, "act", place(key)):
            if self._tool_task is not None:
                step = self._tool_task.act(state, key.speaker, text, runs)
            else:
                step = cast(Task, self.task).act(state, key.speaker, text)
        step = scored(step, self.task, key, self.team.alpha_of(key.role))
        if any(run.end == "crash" for run in runs):
            return step, Outcome.TOOL_CRASH
        return step, Outcome.TRUNCATED if sample.finish == "length" else step.outcome


def _kept(runs: Sequence[ProgramResult]) -> tuple[Ran, ...]:
    return tuple(Ran(run.end, shortened(run.stdout, KEPT), shortened(run.stderr, KEPT)) for run in runs)
