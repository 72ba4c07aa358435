"""Holds one sglang-jax Engine in this process.

No file of the package but this one and starting.py touches sglang-jax.

sglang-jax has no public way to take new weights, and its Engine is made to own the process. So these
two files rely on private parts of one release, ``release.RELEASE``; docs/sglang.md lists them.
sglang-jax is imported only when ``Session`` needs it.
"""

import asyncio
import threading
import time
import uuid
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import jax

from atgrpo_jax.arrays.tree_paths import path_text
from atgrpo_jax.common.errors import RunError
from atgrpo_jax.engines.sglang_jax.samples import NONE, Answer, read
from atgrpo_jax.engines.sglang_jax.starting import abandoned, start_engine
from atgrpo_jax.models.family import Family
from atgrpo_jax.models.transformer import Transformer

PATIENCE = 5.0  # seconds that requests cancelled just before may take to end
IDLE = 0.002  # seconds between two looks for requests when there are none


def their_name(family: Family, path: str) -> str:
    """Returns sglang-jax's name of our parameter at ``path``, for example "layer_3/q/kernel"."""
    module, kind = family.tensor_name(path).rsplit(".", 1)
    if module.endswith("norm"):
        kind = "scale"
    elif module.endswith(("embed_tokens", "lm_head")):
        kind = "embedding"
    return f"{module}.{kind}"


def check_same(policy: str, ours: Mapping[str, Sequence[int]], theirs: Mapping[str, Sequence[int]]) -> None:
    """Raises RunError if a parameter is on one side only, or its shapes differ; names the first."""
    for name in sorted({*ours, *theirs}):
        mine, other = (tuple(side[name]) if name in side else None for side in (ours, theirs))
        if mine != other:
            had = [f"has {name} {shape}" if shape else f"lacks {name}" for shape in (mine, other)]
            raise RunError(f"policy {policy}: what is pushed {had[0]}, sglang-jax's model {had[1]}")


class Session:
    """Holds a policy's Engine, which draws in its own threads, with the last ``swap``'s weights."""

    def __init__(
        self, policy: str, model: Transformer, stop_ids: Sequence[int], devices: Sequence[int], config: Any
    ):
        """
        Args:
          devices: indices of ``jax.devices()``.
          config: SGLangJaxConfig.

        Raises RunError if the Engine does not start, or has less room than ``config`` asks for.
        """
        self._policy = policy
        self._family = model.family
        self._closed = False
        self._thread: threading.Thread | None = None  # the scheduler's, which calls _pace
        self._engine = start_engine(policy, model, stop_ids, devices, config)
        self._manager = self._engine.tokenizer_manager
        self._loop = self._engine.loop
        self._scheduler = self._engine.scheduler_info["scheduler"]
        self._receive = self._scheduler.recv_requests
        self._scheduler.recv_requests = self._pace
        self._runner = self._scheduler.tp_worker.worker.model_runner
        self._shapes = self._take_weights()
        room = self._engine.scheduler_info["max_total_num_tokens"]
        if room < config.max_total_tokens:
            self.close()
            raise RunError(
                f"policy {policy}: SGLangJaxConfig.max_total_tokens = {config.max_total_tokens}: there is "
                f"memory for {room}; fewer, or more of SGLangJaxConfig.memory"
            )

    def submit(self, work: Coroutine) -> Future:
        """Starts ``work`` on the Engine's loop. May be called from any thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def generate(self, prompt: list[int], parameters: dict[str, Any], late: float | None) -> Answer:
        """Draws one sample; returns ``NONE`` if it is not complete at ``late`` (time.monotonic).

        Runs on the Engine's loop. Raises RunError if sglang-jax refuses the request.
        """
        from sgl_jax.srt.managers.io_struct import GenerateReqInput

        name = uuid.uuid4().hex
        request = GenerateReqInput(
            rid=name, input_ids=prompt, sampling_params=parameters, return_logprob=True
        )
        answers = self._manager.generate_request(request, None)
        left = None if late is None else late - time.monotonic()
        try:
            return read((await asyncio.wait_for(anext(answers), left))["meta_info"])
        except TimeoutError:
            return NONE
        except ValueError as error:
            raise RunError(f"sglang-jax refuses a request: {error}") from error
        finally:
            self._manager.abort_request(name)  # if it is not complete
            await self._gone(name)
            await answers.aclose()

    async def _gone(self, name: str) -> None:
        """Waits until a request has ended, and removes it.

        Else the manager would keep a request for ever if it was aborted before it began.
        """
        requests = self._manager.rid_to_state
        while name in requests and not requests[name].finished:
            await asyncio.sleep(IDLE)
        requests.pop(name, None)

    def swap(self, params: Any) -> None:
        """Makes later samples come from ``params``, and empties the cache of prompts.

        Raises RunError if ``params`` do not fit, or while samples are being drawn. Then nothing has
        changed.
        """
        pairs = jax.tree_util.tree_leaves_with_path(params)
        ours = {}
        for path, leaf in pairs:
            name = path_text(path)
            # sglang-jax keeps the head as [V, D], like the embedding.
            ours[their_name(self._family, name)] = leaf.T if name == "head" else leaf
        shapes = {name: struct.shape for name, struct in self._shapes.items()}
        check_same(self._policy, {name: leaf.shape for name, leaf in ours.items()}, shapes)
        self._forget()
        leaves = self._runner.model_state_leaves
        # One by one, so that each old array is freed at once.
        for place, (name, struct) in enumerate(self._shapes.items()):
            leaves[place] = jax.device_put(ours[name].astype(struct.dtype), struct.sharding)
        self._runner.model_state_leaves = list(leaves)

    def _forget(self) -> None:
        """Empties the cache of prompts, which the Engine does only while nothing is drawn.

        Raises RunError if samples are still being drawn after ``PATIENCE`` seconds.
        """
        until = time.monotonic() + PATIENCE
        while not self.submit(self._manager.flush_cache()).result(timeout=60).success:
            if time.monotonic() > until:
                raise RunError(f"policy {self._policy}: weights were pushed while samples are being drawn")
            time.sleep(IDLE)

    def close(self) -> None:
        self._closed = True
        until = time.monotonic() + PATIENCE
        while (working := self._thread is None or self._thread.is_alive()) and time.monotonic() < until:
            time.sleep(IDLE)
        self.submit(self._leave()).result(timeout=10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        while self._loop.is_running():
            time.sleep(IDLE)
        self._loop.close()
        self._engine.send_to_rpc.context.destroy(linger=0)
        context = self._scheduler.recv_from_tokenizer.context
        if working:
            abandoned.add(context)
        else:
            context.destroy(linger=0)

    async def _leave(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        self._manager.send_to_scheduler.context.destroy(linger=0)

    def _pace(self) -> list:
        """Returns new requests to the scheduler's thread, which calls this again and again.

        Sleeps while there are none, because the thread has no pause and would take a whole core.
        """
        self._thread = threading.current_thread()
        if self._closed:
            raise SystemExit
        if not self._manager.rid_to_state:
            time.sleep(IDLE)
        return self._receive()

    def _take_weights(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns names, shapes and shardings of the model's arrays, in their order.

        Deletes the arrays: they are dummies, and would live as long as the model.
        """
        from flax import nnx

        state = nnx.split(self._runner.model)[1]
        paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(state)[0]]
        shapes = {}
        for path, leaf in zip(paths, self._runner.model_state_leaves, strict=True):
            # A path has keys of dictionaries, indices of lists, and last the attribute "value".
            name = ".".join(str(part.key if hasattr(part, "key") else part.idx) for part in path[:-1])
            shapes[name] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
            leaf.delete()
        return shapes
