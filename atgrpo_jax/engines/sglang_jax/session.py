"""Holds one sglang-jax Engine in this process. No other file of the package touches sglang-jax.

sglang-jax has no public way to take new weights, and its Engine is made to own the process. So this
file relies on private parts of one release, ``RELEASE``; docs/sglang.md lists them. sglang-jax is
imported only when ``Session`` needs it.

Axis letters: R rows of sglang-jax's batch, V vocabulary.
"""

import asyncio
import atexit
import contextlib
import gc
import json
import logging
import math
import os
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from atgrpo_jax.arrays.tree_paths import path_text
from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.rounding import round_up
from atgrpo_jax.models.family import Family
from atgrpo_jax.models.hf import hf
from atgrpo_jax.models.transformer import Transformer

RELEASE = "0.1.0rc0"
INSTALL = 'pip install "atgrpo_jax[sglang-tpu]"'
SPARE = 8  # tokens of a context that sglang-jax keeps for itself
PATIENCE = 5.0  # seconds that requests cancelled just before may take to end
IDLE = 0.002  # seconds between two looks for requests when there are none


def check_installed() -> None:
    """Raises RunError, which says what to do, unless the release ``RELEASE`` is installed."""
    if sys.version_info < (3, 12):
        here = ".".join(map(str, sys.version_info[:2]))
        raise RunError(
            f"SGLangJaxConfig needs Python >= 3.12 for sglang-jax, and this is {here}; there: {INSTALL}"
        )
    try:
        found = metadata.version("sglang-jax")
    except metadata.PackageNotFoundError:
        raise RunError(f"SGLangJaxConfig needs sglang-jax (and Python >= 3.12): {INSTALL}") from None
    if found != RELEASE:
        raise RunError(f"SGLangJaxConfig knows sglang-jax {RELEASE}, and {found} is installed: {INSTALL}")


class Answer(NamedTuple):
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: Literal["stop", "length", "error"]
    known_tokens: int  # tokens of the prompt whose keys and values were already cached


NONE = Answer((), (), "error", 0)


def read(meta: Mapping[str, Any]) -> Answer:
    """Reads an answer from its ``meta_info``.

    After 50 tokens the list of logprobs repeats entries, and ``output_ids`` lacks some; but the
    end of the list is right. Raises RunError if ``meta_info`` is not what the release sends, or
    has a logprob that is not finite.
    """
    try:
        finish = meta["finish_reason"]["type"]
        if finish not in ("stop", "length"):
            return NONE
        count = meta["completion_tokens"]
        entries = meta["output_token_logprobs"][-count:]
        if len(entries) != count:
            raise RunError(f"sglang-jax told {len(entries)} logprobs of {count} tokens")
        tokens = tuple(int(token) for _, token, _ in entries)
        logprobs = tuple(float(logprob) for logprob, _, _ in entries)
        known = int(meta["cached_tokens"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise RunError(f"sglang-jax {RELEASE} told what it does not otherwise: {error!r}") from error
    if not all(map(math.isfinite, logprobs)):
        raise RunError("sglang-jax told a logprob that is not finite: its weights or the learner's are not")
    return Answer(tokens, logprobs, finish, known)


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
        self._ended = threading.Event()
        with contextlib.ExitStack() as stack:
            folder = Path(config.folder).expanduser() / policy if config.folder else None
            folder = folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            try:
                _describe(folder, model, stop_ids, config.context_length + SPARE)
            except OSError as error:
                raise RunError(f"SGLangJaxConfig.folder {folder}: {error.strerror}") from error
            stack.enter_context(_process_kept())
            before = _contexts()
            try:
                self._engine = _start(_arguments(str(folder), model, devices, config))
            except (Exception, SystemExit) as error:  # it may exit, as if it had its own process
                for context in _contexts() - before:  # left open, they block when garbage-collected
                    context.destroy(linger=0)
                raise RunError(
                    f"policy {policy}: sglang-jax did not start: {error!r}; above is what it logged"
                ) from error
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
        self._ended.wait(timeout=2)  # never set if the scheduler's thread has failed
        self.submit(self._leave()).result(timeout=10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        while self._loop.is_running():
            time.sleep(IDLE)
        self._loop.close()
        for socket in (self._scheduler.recv_from_tokenizer, self._engine.send_to_rpc):
            socket.context.destroy(linger=0)

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
        if self._closed:
            self._ended.set()
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


def _contexts() -> set[Any]:
    """Returns the ZeroMQ contexts that are open in this process."""
    import zmq

    return {found for found in gc.get_objects() if isinstance(found, zmq.Context) and not found.closed}


def _describe(folder: Path, model: Transformer, stop_ids: Sequence[int], context: int) -> None:
    """Writes the config.json that an Engine needs beside its weights."""
    raw = hf.description(model.architecture, model.vocab_size, stop_ids, model.compute.param_dtype)
    raw["max_position_embeddings"] = max(context, raw["max_position_embeddings"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(raw, indent=2) + "\n")


def _arguments(folder: str, model: Transformer, devices: Sequence[int], config: Any) -> dict[str, Any]:
    platform = jax.devices()[devices[0]].platform
    return {
        "model_path": folder,
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "device": platform,
        "attention_backend": "fa" if platform == "tpu" else "native",
        "dtype": model.compute.dtype,
        "tp_size": config.tensor,
        "device_indexes": list(devices),
        "context_length": config.context_length + SPARE,
        "max_running_requests": config.max_running_requests,
        "max_total_tokens": round_up(config.max_total_tokens + SPARE, config.page),
        "page_size": config.page,
        "max_prefill_tokens": config.prefill,
        "chunked_prefill_size": config.prefill // config.page * config.page,
        "mem_fraction_static": config.memory,
        "precompile_bs_paddings": list(config.batches) or None,
        "disable_precompile": not config.precompile,
        "enable_deterministic_sampling": True,
        "enable_single_process": True,
        "enable_engine_loop_run_forever_daemon": True,
        # If schedules overlap, the next batch's places in the cache are written over those of a
        # batch that still computes. On a CPU, JAX may use the host's memory itself as that batch's
        # array; then it draws from a wrong context.
        "disable_overlap_schedule": platform == "cpu",
        "grammar_backend": "none",
        "log_level": "error",
    }


def _start(arguments: Mapping[str, Any]) -> Any:
    from sgl_jax.srt.entrypoints import engine as engine_module
    from sgl_jax.srt.layers import sampler

    sampler.multinomial_with_seed = draw_seeded
    # It would kill this process and its children if a thread fails, and reap children of others.
    engine_module._set_envs_and_config = lambda server_args: None
    engine = engine_module.Engine(**arguments)
    atexit.unregister(engine.shutdown)  # it kills all children of this process
    return engine


def draw_seeded(operands: tuple) -> jax.Array:
    """Draws one token for each of R rows, in place of sglang-jax's own function.

    The noise of that function is so regular that tokens come far too often or too seldom: a fifth
    of the probability is in the wrong place.

    Args:
      operands: logits or probabilities [R, V], seeds [R], positions [R], a key that is not used,
        and whether the first are probabilities.

    Returns tokens [R, 1]. A token depends only on its row's seed, position and distribution.
    """
    inputs_RV, seeds_R, positions_R, _, use_probs = operands
    logits_RV = jnp.log(inputs_RV) if use_probs else inputs_RV

    def one(logits_V, seed, position):
        key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), position)
        return jax.random.categorical(key, logits_V)

    return jax.vmap(one)(logits_RV, seeds_R, positions_R)[:, None]


@contextlib.contextmanager
def _process_kept() -> Iterator[None]:
    """Restores what sglang-jax changes in the process when it is imported and started."""
    logging.getLogger("sgl_jax").setLevel(logging.ERROR)
    root = logging.getLogger()
    loops = asyncio.get_event_loop_policy()
    handlers = root.handlers[:]
    level = root.level
    platforms = os.environ.pop("JAX_PLATFORMS", None)
    register = threading._register_atexit  # type: ignore[attr-defined]
    try:
        yield
    finally:
        asyncio.set_event_loop_policy(loops)
        root.handlers[:] = handlers
        root.setLevel(level)
        threading._register_atexit = register  # type: ignore[attr-defined]
        if platforms is not None:
            os.environ["JAX_PLATFORMS"] = platforms
