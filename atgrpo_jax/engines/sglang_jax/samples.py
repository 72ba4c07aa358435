"""Turns settings of samples into sglang-jax's form, and its answers into samples."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.types import Address, Sample, Sampling
from atgrpo_jax.engines.protocol import stopped_length
from atgrpo_jax.engines.sglang_jax.release import RELEASE


def check_sampling(sampling: Sampling) -> None:
    """Raises RunError for settings that sglang-jax cannot follow exactly.

    It ignores some. With others it reports other logprobs than the learner computes, or no logprobs
    of the restricted distribution that it draws from.
    """
    for name in ("banned", "pattern", "min_tokens", "top_k", "top_p", "min_p"):
        if getattr(sampling, name) != getattr(Sampling(), name):
            raise RunError(
                f"Sampling.{name} = {getattr(sampling, name)!r}: SGLangJaxConfig draws from the whole "
                "distribution only; LocalEngineConfig knows the other settings"
            )


def parameters(sampling: Sampling, address: Address, stop_ids: Sequence[int]) -> dict[str, Any]:
    """Returns one sample's settings in sglang-jax's form. The seed is an int32."""
    word = address.key_words()[0]
    return {
        "temperature": sampling.temperature,
        "max_new_tokens": sampling.max_tokens,
        "stop_token_ids": list(stop_ids),
        "sampling_seed": word - 2**32 if word >= 2**31 else word,
        "skip_special_tokens": False,
        "no_stop_trim": True,
    }


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


def sample_of(answer: Answer, version: int, receipt: str = "") -> Sample:
    if answer.finish == "error":
        return Sample((), (), "error", version)
    return Sample(answer.tokens, answer.logprobs, answer.finish, version, receipt=receipt)


def cut(sample: Sample, stops: Sequence[str], decode: Callable[[Sequence[int]], str]) -> Sample:
    """Cuts a sample after the first token by which its text holds a stop string, if it holds one.

    The result is the same as if drawing had stopped there; only time is lost. sglang-jax cannot
    stop there itself, because it has no tokenizer here.
    """
    length = stopped_length(sample.tokens, stops, decode)
    if length is None:
        return sample
    return dataclasses.replace(
        sample, tokens=sample.tokens[:length], logprobs=sample.logprobs[:length], finish="stop"
    )
