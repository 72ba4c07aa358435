"""Starts an sglang-jax Engine in this process, and keeps the process as it was. See session.py.

Axis letters: R rows of sglang-jax's batch, V vocabulary.
"""

import asyncio
import atexit
import contextlib
import gc
import json
import logging
import os
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.rounding import round_up
from atgrpo_jax.models.hf import hf
from atgrpo_jax.models.transformer import Transformer

SPARE = 8  # tokens of a context that sglang-jax keeps for itself
# ZeroMQ contexts that a thread may still wait in, for as long as this process lives: those of Engines that
# did not start. If another thread closed such a socket, ZeroMQ would abort the process; if a context were
# garbage-collected, it would block.
abandoned: set[Any] = set()


def start_engine(
    policy: str, model: Transformer, stop_ids: Sequence[int], devices: Sequence[int], config: Any
) -> Any:
    """Returns a policy's Engine, on dummy weights.

    Args:
      devices: indices of ``jax.devices()``.
      config: SGLangJaxConfig.

    Raises RunError if it does not start.
    """
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
            return _engine(_arguments(str(folder), model, devices, config))
        except (Exception, SystemExit) as error:  # it may exit, as if it had its own process
            abandoned.update(_contexts() - before)
            raise RunError(
                f"policy {policy}: sglang-jax did not start: {error!r}; above is what it logged"
            ) from error


def _contexts() -> set[Any]:
    """Returns the ZeroMQ contexts that are open in this process."""
    from zmq.sugar.context import Context

    return {found for found in gc.get_objects() if isinstance(found, Context) and not found.closed}


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


def _engine(arguments: Mapping[str, Any]) -> Any:
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
