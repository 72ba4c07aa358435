"""Defines the in-process JAX engine: continuous batching over paged caches.

Requests share a lane if the same programs can draw them, whatever their instance, turn or role.
Policies that are adapters on the same parameters share lanes, too. The lane of a request depends
only on the request and the team, and so do its tokens, bit for bit. lanes.py is the host's side of
a lane, decoding.py the devices' side. Axis letters: T pattern states, V vocabulary.
"""

import asyncio
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from atgrpo_jax.arrays.mesh import copied
from atgrpo_jax.arrays.spread import here, parts_here
from atgrpo_jax.common.errors import PromptTooLong, RunError
from atgrpo_jax.common.types import Sample
from atgrpo_jax.engines.local.lane_arrays import Sizes
from atgrpo_jax.engines.local.lanes import Lane
from atgrpo_jax.engines.local.patterns import automaton
from atgrpo_jax.engines.local.settings import Company, Settings, lane_sizes
from atgrpo_jax.engines.local.tickets import Ticket, answer, cut
from atgrpo_jax.engines.protocol import Request, Usage, check_prompt_ids, check_pushed
from atgrpo_jax.models.lora import stack
from atgrpo_jax.models.transformer import PolicyWeights, Transformer, join_layers

# Turns of the event loop that callers get to ask again while slots are empty. A team that speaks in
# parallel needs ten: its answers pass two gathers and the tasks in them. More cost nothing.
TURNS = 16


class Shape(NamedTuple):
    """Holds what the requests of one lane have in common."""

    policies: tuple[str, ...]
    sizes: Sizes
    pattern: str


class LocalEngine:
    """Draws samples in this process. Not thread-safe: all calls must come from one event loop."""

    def __init__(
        self,
        models: Transformer | Mapping[str, Transformer],
        stop_ids: Sequence[int],
        config: Settings,
        meshes: Mesh | Mapping[str, Mesh] | None = None,
        decode: Callable[[Sequence[int]], str] | None = None,
        default_shape: tuple[int, int] | None = None,
        copies: bool = False,
        part: bool = False,
    ):
        """Makes an engine without weights.

        Args:
          models: one model for all policies, or a mapping from policy to model.
          meshes: the mesh of all policies' weights, or a mapping from policy to mesh. Slots are
            split as rows are, into parts whose number divides ``config.slots``. One device if not
            given.
          decode: returns the text of token ids, for requests with stop strings or a pattern.
          default_shape: tokens and samples of most requests. Programs are compiled for these sizes
            and also draw smaller requests. If not given, they are compiled for each request's own
            sizes.
          copies: whether pushed weights are copied to ``meshes``; else they must be there already,
            and the arrays are shared with the caller.
          part: whether the meshes span several hosts, and this engine draws on this host's part.
        """
        self._copies = copies
        self._part = part
        self._placed: dict[str, tuple[Any, Any]] = {}  # by policy: parameters as pushed, and as drawn with
        self._spanning = meshes
        self._meshes = _parts(meshes) if part else meshes
        self._models = models
        self._stop_ids = np.asarray(stop_ids, np.int32)
        self._config = config
        self._decode = decode
        self._default_shape = default_shape
        self._weights: dict[str, tuple[PolicyWeights, int]] = {}
        self._companies: dict[str, Company] = {}
        self._lanes: dict[Shape, Lane] = {}
        self._patterns: dict[tuple[str, int], np.ndarray] = {}  # by pattern and vocabulary size
        self._running: dict[Lane, asyncio.Task] = {}
        # A thread for each mesh: meshes draw at the same time, and the lanes of one take turns.
        sides = set(self._meshes.values()) if isinstance(self._meshes, Mapping) else {self._meshes}
        self._threads = {mesh: ThreadPoolExecutor(1, "engine") for mesh in sides}
        self.usage = Usage()

    def push_weights(self, policy: str, weights: PolicyWeights, version: int) -> None:
        """Takes new weights, forgets all stored prompts and restarts all samples in progress."""
        if self._copies or self._part:
            weights = self._place(policy, weights)
        self._weights[policy] = (weights, version)
        self._companies.clear()
        self._lanes.clear()

    def _place(self, policy: str, weights: PolicyWeights) -> PolicyWeights:
        """Returns the weights on our mesh. Adapters with the same parameters share one copy of them."""
        spanning = self._spanning[policy] if isinstance(self._spanning, Mapping) else self._spanning
        mesh = self._mesh(policy)
        assert mesh is not None and spanning is not None
        axes = self._model(policy).family.axes

        def place(tree: Any) -> Any:
            tree = copied(tree, spanning, axes) if self._copies else tree
            return parts_here(tree, mesh) if self._part else tree

        known = (placed for pushed, placed in self._placed.values() if pushed is weights.params)
        params = next(known, None)
        if params is None:
            params = place(weights.params)
        self._placed[policy] = weights.params, params
        adapter = None if weights.adapter is None else place(weights.adapter)
        return weights._replace(params=params, adapter=adapter)

    def release(self) -> None:
        if self._copies:
            return
        if self._running:
            raise RunError("an update would free weights that the engine is drawing from")
        self._weights.clear()
        self._placed.clear()
        self._companies.clear()
        self._lanes.clear()

    def version(self, policy: str) -> int:
        return self._weights[policy][1]

    def close(self) -> None:
        for thread in self._threads.values():
            thread.shutdown()

    @property
    def idle(self) -> bool:
        """Returns whether nothing is drawn, and no lane holds anything of a request."""
        return not self._running and not any(lane.busy for lane in self._lanes.values())

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Returns the shapes of the lanes that there are."""
        return tuple(self._lanes)

    def parameters(self, policy: str) -> Any:
        """Returns what a policy is drawn with: the parameters that were pushed, or a copy arranged anew."""
        return self._company(policy).params

    def lowered(self) -> list[Any]:
        """Returns the program that draws, of each lane, as JAX lowers it, for inspection."""
        programs = []
        for shape, lane in self._lanes.items():
            company = self._company(shape.policies[0])
            programs.append(lane.lowered(company.params, company.adapters))
        return programs

    async def sample(self, request: Request) -> Sequence[Sample]:
        self._check(request)
        ticket = Ticket(request, asyncio.get_running_loop().create_future(), time.monotonic())
        self._ask(ticket)
        return await ticket.future

    def _check(self, request: Request) -> None:
        check_pushed(request, self._weights)
        place = request.addresses[0].group.path()
        length = len(request.prompt_ids)
        if not 1 <= length <= self._config.max_prompt:
            kind = PromptTooLong if length else RunError
            raise kind(
                f"a prompt of {length} tokens at {place}: must be 1 to LocalEngineConfig.max_prompt = "
                f"{self._config.max_prompt}"
            )
        size = self._model(request.policy).vocab_size
        if any(token >= size for token in request.sampling.banned):
            raise RunError(f"Sampling.banned = {request.sampling.banned}: the vocabulary has {size} ids")
        check_prompt_ids(request, size)
        if (request.sampling.stop or request.sampling.pattern) and self._decode is None:
            raise RunError("Sampling.stop and Sampling.pattern: this engine was given no decoder")

    def _model(self, policy: str) -> Transformer:
        return self._models[policy] if isinstance(self._models, Mapping) else self._models

    def _mesh(self, policy: str) -> Mesh | None:
        return self._meshes[policy] if isinstance(self._meshes, Mapping) else self._meshes

    def _company(self, policy: str) -> Company:
        if policy not in self._companies:
            params, adapter, _ = self._weights[policy][0]
            members = [policy]
            model = self._model(policy)
            if adapter is not None:
                pushed = {name: weights for name, (weights, _) in sorted(self._weights.items())}
                members = [n for n, w in pushed.items() if w.params is params and w.adapter is not None]
                adapter = stack([pushed[name].adapter for name in members])
            elif self._fits_twice(policy, params):
                model = model.clone(joined=True)
                params = _join_layers(params, model.family.joined)
            self._companies |= dict.fromkeys(members, Company(tuple(members), model, params, adapter))
        return self._companies[policy]

    def _fits_twice(self, policy: str, params: Any) -> bool:
        mesh = self._mesh(policy)
        whole = mesh is None or mesh.size == mesh.shape["data"]
        return whole and sum(leaf.nbytes for leaf in jax.tree.leaves(params)) <= self._config.joined_mb * 1e6

    def _ask(self, ticket: Ticket) -> None:
        """Puts a ticket into its lane. An idle lane starts after all ready callers have asked."""
        policy = ticket.request.policy
        company = self._company(policy)
        ticket.enter(company.policies.index(policy), self._weights[policy][0].scale)
        mesh = self._mesh(policy)
        pattern = ticket.request.sampling.pattern
        pattern_TV = self._pattern(pattern, self._model(policy).vocab_size)
        sizes = lane_sizes(self._config, company, ticket.request, mesh, self._default_shape)._replace(
            pattern_states=len(pattern_TV)
        )
        shape = Shape(company.policies, sizes, pattern)
        if shape not in self._lanes:
            for other, lane in list(self._lanes.items()):
                if other.policies == shape.policies and not lane.tickets:
                    del self._lanes[other]  # frees its memory
            self._lanes[shape] = Lane(company.model, sizes, mesh, self._stop_ids, pattern_TV)
        lane = self._lanes[shape]
        lane.add(ticket)
        if lane not in self._running:
            self._running[lane] = asyncio.create_task(self._run(lane, company))

    def _pattern(self, pattern: str, vocab_size: int) -> np.ndarray:
        if not pattern:
            return np.zeros((0, vocab_size), np.int32)
        key = pattern, vocab_size
        if key not in self._patterns:
            assert self._decode is not None
            self._patterns[key] = automaton(pattern, self._decode, vocab_size, self._stop_ids.tolist())
        return self._patterns[key]

    async def _run(self, lane: Lane, company: Company) -> None:
        try:
            while lane.tickets:
                self._sort_out(lane)
                lane.admit()
                for _ in range(TURNS):  # callers that were just answered may ask again
                    if lane.hungry:
                        await asyncio.sleep(0)
                        if lane.asked:
                            lane.admit()
                if not lane.tickets:
                    break
                loop = asyncio.get_running_loop()
                thread = self._threads[self._mesh(company.policies[0])]
                drawn, used = await loop.run_in_executor(thread, lane.draw, company.params, company.adapters)
                self.usage += used
                if lane not in self._lanes.values():  # weights were pushed meanwhile
                    for ticket in lane.tickets:
                        self._ask(ticket)
                    return
                complete, used = lane.collect(drawn, functools.partial(cut, decode=self._decode))
                self.usage += used
                for ticket in complete:
                    answer(ticket, self.version(ticket.request.policy))
        except BaseException as error:  # else callers would wait for ever
            for ticket in lane.tickets:
                if isinstance(error, Exception) and not ticket.future.done():
                    ticket.future.set_exception(error)
                ticket.future.cancel()
            self._lanes = {shape: other for shape, other in self._lanes.items() if other is not lane}
            if not isinstance(error, Exception):
                raise
        finally:
            del self._running[lane]

    def _sort_out(self, lane: Lane) -> None:
        """Drops tickets that nobody waits for, and answers those that have waited too long."""
        late = time.monotonic() - self._config.deadline_s if self._config.deadline_s else -float("inf")
        for ticket in lane.tickets:
            if not ticket.future.done() and ticket.asked < late:
                answer(ticket, self.version(ticket.request.policy))
            if ticket.future.done():
                lane.drop(ticket)


def _parts(meshes: Mesh | Mapping[str, Mesh] | None) -> Mesh | Mapping[str, Mesh] | None:
    if isinstance(meshes, Mapping):
        return {policy: here(mesh) for policy, mesh in meshes.items()}
    return None if meshes is None else here(meshes)


_join_layers = jax.jit(join_layers, static_argnums=1)
