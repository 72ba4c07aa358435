"""Makes one server take weights and adapters from folders."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.engines.sglang.secrets import plain, shown
from atgrpo_jax.engines.sglang.servers import Refused, Server, ServerError


async def give(
    server: Server,
    state: str,
    folder: Path | None,
    wanted: Mapping[str, Path],
    seconds: float,
    abort: bool,
) -> None:
    """Gives a server the weights and adapters that it lacks, and removes old adapters.

    Raises RunError if it refuses, and ServerError if it does not do it.

    Args:
      state: name of the weights.
      folder: where the server reads the weights.
      wanted: from an adapter's name on the servers to its folder.
      seconds: that the server may take for each.
      abort: whether what it draws is cut off; else it ends that first.
    """
    if server.state != state:
        server.state = None
        body = {
            "model_path": str(folder),
            "weight_version": state,
            "flush_cache": True,
            "abort_all_requests": abort,
        }
        await _tell(server, "/update_weights_from_disk", body, seconds)
        held = await server.weights()
        if held != state:
            raise ServerError(f"{server.url} names its weights {plain(held)} after an update")
        server.state = state
    for name in wanted.keys() - server.adapters:
        body = {"lora_name": name, "lora_path": str(wanted[name])}
        await _tell(server, "/load_lora_adapter", body, seconds, "already loaded")
        server.adapters.add(name)
    for name in server.adapters - wanted.keys():
        await _tell(server, "/unload_lora_adapter", {"lora_name": name}, seconds, "does not exist")
        server.adapters.discard(name)


async def _tell(server: Server, path: str, body: dict[str, Any], seconds: float, done: str = "") -> None:
    """Tells the server to do something.

    Raises RunError if it refuses, unless the words ``done`` are in its refusal: then it did so
    before, and its answer was lost.
    """
    try:
        answer = await server.post(path, body, seconds)
    except Refused as error:
        if done and done in str(error):
            return
        raise RunError(f"{error} (asked for {body})") from error
    if not (isinstance(answer, dict) and answer.get("success") is True):
        raise ServerError(f"{server.url}{path}: {shown(answer)}")
