"""Plays the training episodes of a step, and says what that took."""

import time

from atgrpo_jax.common.types import Episode
from atgrpo_jax.engines.protocol import Engine, Usage
from atgrpo_jax.rollout.player import Player
from atgrpo_jax.rollout.rollout import play_all, train_indices


class Rollouts:
    """Plays fresh training instances with a team, whose samples come from an engine.

    Args:
      player: plays one episode.
      engine: the one that ``player`` draws from; its usage goes into the metrics.
      instances: instances of each step.
      episodes: episodes of each instance.
    """

    def __init__(self, player: Player, engine: Engine, instances: int, episodes: int):
        self._player = player
        self._engine = engine
        self._instances = instances
        self._episodes = episodes

    def play(self, step: int) -> tuple[list[Episode], dict[str, float]]:
        """Plays the instances of step ``step``. Returns their episodes, and metrics."""
        began = time.monotonic()
        before = self._engine.usage
        own_before_s = self._player.clock.seconds
        indices = train_indices(step, self._instances)
        episodes = play_all(self._player, step, "train", indices, self._episodes)
        seconds = time.monotonic() - began
        used = self._engine.usage - before
        metrics = {
            "perf/rollout_s": seconds,
            "perf/rollout_tokens_per_s": used.tokens / seconds,
            "perf/rollout_environment_s": self._player.clock.seconds - own_before_s,
            "perf/rollout_known_prompt": used.known_tokens / max(used.prompt_tokens, 1),
        }
        return episodes, metrics | _on_our_devices(used, seconds)


def _on_our_devices(used: Usage, seconds: float) -> dict[str, float]:
    """Returns the metrics of an engine that draws in this process; none for others."""
    if not used.slot_steps:
        return {}
    return {
        "perf/rollout_idle_s": seconds - used.seconds,  # the devices waited
        "perf/rollout_prefill_s": used.prefill_s,
        "perf/rollout_decode_s": used.decode_s,
        "perf/rollout_occupancy": used.tokens / used.slot_steps,
    }
