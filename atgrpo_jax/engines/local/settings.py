"""Sets the sizes of the in-process engine, and derives those of a lane from them."""

import dataclasses
import math
from typing import Any, NamedTuple

from jax.sharding import Mesh

from atgrpo_jax.arrays.mesh import ROWS, platform_of
from atgrpo_jax.common.checks import check_types, require
from atgrpo_jax.common.rounding import power_of_two, round_up
from atgrpo_jax.engines.local import paged_kernel
from atgrpo_jax.engines.local.lane_arrays import Sizes
from atgrpo_jax.engines.protocol import Request
from atgrpo_jax.models.config import Compute
from atgrpo_jax.models.transformer import Transformer


@dataclasses.dataclass(frozen=True)
class Settings:
    """Sets sizes and limits of the in-process engine."""

    slots: int = 64  # samples that are drawn at the same time, split as rows are
    max_prompt: int = 1024  # most tokens of a prompt
    prompt_cache: int = 16384  # prompt tokens that are kept for reuse, on each of data x fsdp x expert
    # Answer tokens that are stored, on each of data x fsdp x expert. If the room runs out, the samples
    # that began last begin again later. 0 means room for all that the slots can draw.
    answer_cache: int = 0
    # Tokens of a prompt page, which are stored, shared and evicted together. On a GPU best a power
    # of two, at least 16: attention is one kernel then.
    page: int = 64
    prefill: int = 64  # prompt tokens that are computed at once, on each of data x fsdp x expert
    chunk: int = 16  # most tokens of a sample before the host looks which samples have ended
    # Megabytes. Models without adapters up to this size are kept a second time, with their layers
    # joined for decoding, unless a mesh splits them.
    joined_mb: float = 100.0
    # Seconds. When a request has waited longer, its incomplete samples are errors. 0: no limit.
    deadline_s: float = 0.0

    def __post_init__(self):
        check_types(self)
        for name in ("slots", "max_prompt", "prompt_cache", "page", "prefill", "chunk"):
            require(self, name, getattr(self, name) >= 1, "must be at least 1")
        require(self, "answer_cache", self.answer_cache >= 0, "must not be negative")
        require(self, "joined_mb", self.joined_mb >= 0, "must not be negative")
        require(self, "deadline_s", self.deadline_s >= 0, "must not be negative")
        longest = round_up(self.max_prompt, self.page)
        rule = (
            f"must hold a prompt of max_prompt = {self.max_prompt} tokens in pages of {self.page}: {longest}"
        )
        require(self, "prompt_cache", self.prompt_cache >= longest, rule)


class Company(NamedTuple):
    """Holds policies that are drawn together: they have the same parameters.

    Each has an adapter (stacked in the order of ``policies``), or there is one policy and none.
    """

    policies: tuple[str, ...]
    model: Transformer
    params: Any
    adapters: Any


def lane_sizes(
    config: Settings,
    company: Company,
    request: Request,
    mesh: Mesh | None,
    default_shape: tuple[int, int] | None = None,
) -> Sizes:
    """Returns the sizes of the lane that a request belongs to, without its pattern."""
    shards = 1 if mesh is None else math.prod(mesh.shape[axis] for axis in ROWS)
    sampling = request.sampling
    slots = config.slots // shards
    tokens, samples = default_shape or (1, len(request.addresses))
    fused = _wants_kernel(company.model.compute, mesh)
    least = paged_kernel.LEAST if fused else 1
    most = power_of_two(max(sampling.max_tokens, tokens, least))
    answer_page = min(most, max(power_of_two(config.page) // 2, most // 16, least))  # divides ``most``
    longest_answer = most // answer_page
    fused = fused and paged_kernel.supports(company.model.architecture.head_size, config.page, answer_page)
    banks = 1 if fused else min(longest_answer, 8)
    all_pages = slots * longest_answer
    wanted = -(-config.answer_cache // answer_page) or all_pages
    answer_pages = round_up(min(max(wanted, longest_answer), all_pages), banks)
    siblings = min(power_of_two(samples), 8)
    return Sizes(
        shards=shards,
        slots=slots,
        page=config.page,
        prompt_pages=config.prompt_cache // config.page,
        longest_prompt=-(-config.max_prompt // config.page),
        fill=max(config.prefill // config.page, 1),
        siblings=siblings,
        blocks=-(-slots * siblings // 64),
        answer_page=answer_page,
        answer_pages=answer_pages,
        longest_answer=longest_answer,
        banks=banks,
        bans=power_of_two(len(sampling.banned)),
        adapters=0 if company.adapters is None else len(company.policies),
        pattern_states=0,
        chunk=config.chunk,
        fused=fused,
    )


def _wants_kernel(compute: Compute, mesh: Mesh | None) -> bool:
    """Returns whether attention should be one kernel: on GPUs and, for tests, on CPUs."""
    platform = platform_of(mesh)
    return platform != "tpu" and compute.wants_kernel(platform)
