"""Makes rows of what was watched, which sum to the step, and writes them as a table."""

import dataclasses
import functools
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from atgrpo_jax.common.progress import counted
from atgrpo_jax.models.families.table import family_of
from atgrpo_jax.tools.budgeting.inside import Part, divided
from atgrpo_jax.tools.budgeting.watching import Run, Watched
from atgrpo_jax.tools.probing.clock import least_seconds, rate

How = Literal["measured", "derived", "left over"]
SIDE = {"cpu": 1024}  # of the squares whose product is a limit
SIDE_ELSEWHERE = 8192
BYTES = 2**27  # that are read and written to measure the memory
PYTHON = "Python"
UPDATE = ("attention", "products", "head", "optimizer")


class Limits(NamedTuple):
    """Holds what this machine can do, measured in the same process."""

    flops: float  # a second, in products of squares
    bandwidth: float  # bytes a second, of memory


@dataclasses.dataclass(frozen=True)
class Row:
    part: str
    seconds: float
    how: How
    bound: str = ""
    limit: float | None = None  # the share of the limit that is reached


def limits(dtype: str) -> Limits:
    side = SIDE.get(jax.default_backend(), SIDE_ELSEWHERE)
    square = jnp.ones((side, side), dtype)
    product_s = least_seconds(functools.partial(jax.jit(jnp.matmul), square, square))
    numbers = jnp.ones(BYTES // 4, jnp.float32)
    add = jax.jit(lambda x: x + 1, donate_argnums=0)

    def added() -> jax.Array:
        nonlocal numbers
        numbers = add(numbers)  # in the same memory: a new one costs a CPU more than to write it
        return numbers

    return Limits(2 * side**3 / product_s, 2 * BYTES / least_seconds(added))


def rows(run: Run, limits: Limits) -> list[Row]:
    """Returns the rows of the mean step; they sum to it."""
    steps = run.steps
    parts = {name: _mean(step.parts.get(name, 0.0) for step in steps) for name in _names(steps)}
    part: Mapping[str, float] = defaultdict(float, parts)
    found = [
        *_rollout(run, limits, part["rollout"]),
        Row("credit: audit and advantages", part["credit"], "measured", PYTHON),
        Row("packing", part["packing"], "measured", PYTHON),
        *_update(run, limits, part["on devices"]),
        Row("update: to the devices and back", part["update"] - part["packing"] - part["on devices"],
            "measured", "copies, checks"),
        Row("push", part["push"], "measured", "copies"),
        Row("gate", part["sync"] - part["push"], "measured", "small programs"),
        Row("writing", part["writing"], "measured", "disk, Python"),
        Row("compiling", _mean(step.compiling["all"] for step in steps), "measured", "XLA"),
    ]  # fmt: skip
    whole = _mean(step.seconds for step in steps)
    return [*found, Row("other", whole - sum(row.seconds for row in found), "left over")]


def lines(name: str, run: Run, limits: Limits, found: Sequence[Row]) -> Iterator[str]:
    """Yields the table, and what its words mean."""
    first, steps = run.first, run.steps
    whole = sum(row.seconds for row in found)
    yield (
        f"a step of {name}: {whole:.3f} s, the mean of {counted(len(steps), 'step')} after the first, which "
        f"took {first.seconds:.1f} s with {first.compiling['all']:.1f} s of compiling or loading"
    )
    yield (
        f"limits, measured now: {rate(limits.flops / 1e12)} in {run.experiment.compute.dtype} products of "
        f"squares, {limits.bandwidth / 1e9:.1f} GB/s of memory"
    )
    width = max(len(row.part) for row in found)
    bounds = max(len(row.bound) for row in found)
    yield f"{'':{width}}  {'seconds':>8}  {'share':>6}  {'how':9}  {'bound':{bounds}}  of the limit"
    for row in found:
        limit = "" if row.limit is None else f"{row.limit:.0%}"
        yield (
            f"{row.part:{width}}  {row.seconds:8.3f}  {row.seconds / whole:6.1%}  {row.how:9}  "
            f"{row.bound:{bounds}}  {limit}"
        ).rstrip()
    yield f"{'the step':{width}}  {whole:8.3f}  {1:6.1%}"
    compiled = [f"step {number}" for number, one in enumerate(steps, start=2) if one.compiling["all"] > 0]
    if compiled:
        yield f"{', '.join(compiled)} compiled, too: more steps would say less of it"


def _rollout(run: Run, limits: Limits, seconds: float) -> list[Row]:
    """Returns the rows of the rollout. An engine elsewhere does not tell what it does."""
    steps = run.steps
    used = [step.used for step in steps]
    environment = _mean(step.record["perf/rollout_environment_s"] for step in steps)
    slot_steps = _mean(one.slot_steps for one in used)
    if not slot_steps:
        own = min(environment, seconds)
        return [
            Row("environment", own, "measured", PYTHON),
            Row("rollout: drawing elsewhere, and waiting", seconds - own, "measured", "the servers"),
        ]
    compiled = _mean(step.compiling.get("rollout", 0.0) for step in steps)
    prefill = _mean(one.prefill_s for one in used)
    decode = _mean(one.decode_s for one in used) - compiled  # which is compiled when it is first called
    waiting = seconds - prefill - decode
    exposed = min(environment, max(waiting, 0.0))
    drew = _mean(one.tokens for one in used) / slot_steps
    prompts = _mean(one.prompt_tokens - one.known_tokens for one in used)
    blocks, head, read = _numbers(run)
    chunks = slot_steps / (run.experiment.engine.at_once or 1)  # of one token for each slot
    computing = Part(decode, 2 * (blocks + head) * slot_steps, read * chunks)
    bound, limit = _bound(computing, limits)
    return [
        Row("prefill", prefill, "measured", *_bound(Part(prefill, 2 * blocks * prompts), limits)),
        Row("decode: slots that draw", decode * drew, "derived", bound, limit),
        Row("decode: idle slots", decode * (1 - drew), "derived", "empty, or had ended"),
        Row("environment, devices idle", exposed, "derived", PYTHON),
        Row("rollout: the host", waiting - exposed, "measured", PYTHON),
    ]  # fmt: skip


def _numbers(run: Run) -> tuple[float, float, float]:
    """Returns, as means over policies, the parameters of blocks and of the head that a token is multiplied
    with, and the bytes of all of them.
    """
    experiment = run.experiment
    found = []
    for policy in experiment.policies:
        c = experiment.architecture(experiment.initial_name(policy))
        vocab = c.vocab_size or experiment.tokenizer.vocab_size
        every = c.layers * family_of(c).block_kernels(c) + vocab * c.width
        itemsize = jnp.dtype(experiment.compute.dtype).itemsize
        found.append((c.layers * family_of(c).block_multiplied(c), vocab * c.width, itemsize * every))
    blocks, head, read = (statistics.fmean(values) for values in zip(*found, strict=True))
    return blocks, head, read


def _update(run: Run, limits: Limits, seconds: float) -> list[Row]:
    """Returns the rows of what the devices do in the updates: the shares that parts have when one update of
    each policy is divided. One whose optimizer state is in host memory is left whole.
    """
    last = () if run.experiment.optimizer.offload else run.steps[-1].updates
    counts = Counter(policy for policy, _, _ in last)
    totals: dict[str, Part] = defaultdict(lambda: Part(0.0))
    for policy, learner, inputs in {one[0]: one for one in reversed(last)}.values():
        for name, part in divided(run, policy, learner, inputs).items():
            so_far = totals[name]
            totals[name] = Part(*(a + counts[policy] * b for a, b in zip(so_far, part, strict=True)))
    found = []
    for name in UPDATE if last else ():
        part = totals[name]
        own = seconds * part.seconds / totals["whole"].seconds
        found.append(Row(f"update: {name}", own, "derived", *_bound(part, limits)))
    rest = seconds - sum(row.seconds for row in found)
    return [*found, Row("update: the rest", rest, "left over", "element-wise, norms")]


def _bound(part: Part, limits: Limits) -> tuple[str, float | None]:
    """Returns which limit would take a part longest, and the share of it that is reached."""
    computing, moving = part.flop / limits.flops, part.bytes / limits.bandwidth
    bound = "arithmetic" if computing >= moving else "memory"
    return bound, max(computing, moving) / part.seconds if part.seconds > 0 else None


def _names(steps: Sequence[Watched]) -> set[str]:
    return {name for step in steps for name in step.parts}


def _mean(values) -> float:
    return statistics.fmean(values)
