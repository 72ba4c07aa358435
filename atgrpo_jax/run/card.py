"""Writes what an exported folder is: README.md, a model card.

It names no path of this machine: of a folder only its own name is told.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from atgrpo_jax.common.files import read_json_lines
from atgrpo_jax.common.progress import counted
from atgrpo_jax.run.experiment import Experiment
from atgrpo_jax.run.found import FoundRun
from atgrpo_jax.tokens import tiny_file
from atgrpo_jax.tokens.tokens import FolderTokenizer, TinyTokenizer
from atgrpo_jax.version import __version__

_HEAD = """---
library_name: {library}
tags:
- atgrpo_jax
- reinforcement-learning
- multi-agent
---

# {name}
"""
_WHOLE = """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}")
"""
_ADAPTER = """from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained("{base}")
model = PeftModel.from_pretrained(base, "{name}")
"""


def card(run: FoundRun, step: int, name: str, dtype: str, origin: str, base: str) -> str:
    """Returns the text of a card.

    Args:
      name: that of the policy; another one is the base of the team's adapters. The folder has it, too.
      origin: the name of the model folder that it started from; "" if there is none.
      base: the name of the folder that an adapter is on; "" if it is no adapter.
    """
    x = run.experiment
    loading = (_ADAPTER if base else _WHOLE).format(name=name, base=base)
    if isinstance(x.tokenizer, FolderTokenizer):
        loading += f'tokenizer = AutoTokenizer.from_pretrained("{name}")\n'
    parts = (
        _HEAD.format(name=name, library="peft" if base else "transformers"),
        f"{_what(x, name, base)}, stored as {dtype}, of a team of LLM agents. The team was trained with "
        f"AT-GRPO by atgrpo_jax {__version__}. {_roles(x)} {_origin(x, origin)}\n",
        "## Training\n",
        _table(("setting", "value"), _settings(x, step)),
        "## Scores\n",
        "They are of the whole team, with 95 % intervals. Step 0 is before training.\n",
        _table(("split", "step", "success", "interval", "how"), _scores(run, step)),
        "## Use\n",
        f"In the folder that holds `{name}`:\n",
        f"```python\n{loading}```\n",
        _prompts(x),
    )
    return "\n".join(parts)


def _what(x: Experiment, name: str, base: str) -> str:
    if name not in x.policies:
        return "The base of the adapters, which stayed as it is,"
    roles = [role for role in x.team.drawn(x.task.workflow.roles) if x.team.policy(role) == name]
    kind = "The whole model"
    if x.initial_name(name) != name:
        kind = f"The LoRA adapter on `{base}`" if base else "The LoRA adapter, merged into its base,"
    return f"{kind} that speaks for {', '.join(roles)}"


def _roles(x: Experiment) -> str:
    told = (f"{role} by {x.team.policy(role) or 'a partner'}" for role in x.task.workflow.roles)
    return f"Its roles and their policies: {', '.join(told)}."


def _origin(x: Experiment, origin: str) -> str:
    if x.origin is not None:
        return "It started from policies of another run."
    warm = "" if x.warm_start is None else f", with a warm start of {counted(x.warm_start.steps, 'step')}"
    return f"It started from {f'`{origin}`' if origin else 'random parameters'}{warm}."


def _settings(x: Experiment, step: int) -> Iterator[tuple[Any, ...]]:
    """Yields names and values. No value is a text that a person wrote, so none is a path or a secret."""
    yield "task", type(x.task).__name__
    yield "steps", f"{step} of {x.steps}"
    yield "instances in a step", x.rollout.instances
    for role, own in x.by_role.items():
        sampling = own.sampling
        yield (
            f"samples of {role}",
            f"{own.candidates} a prompt, temperature {sampling.temperature:g}, "
            f"at most {counted(sampling.max_tokens, 'token')}",
        )
    yield "learning rate", f"{x.optimizer.learning_rate:g}"
    yield "weight of the team's reward", f"{x.team.alpha:g}"
    if any(x.initial_name(policy) != policy for policy in x.policies):
        yield "adapters", f"rank {x.lora.rank}, alpha {x.lora.alpha:g}"
    yield "parameters in training", x.compute.param_dtype
    yield "seed", x.seed


def _scores(run: FoundRun, step: int) -> Iterator[tuple[Any, ...]]:
    """Yields the scores of a step and of step 0, as the run and ``evaluate`` recorded them."""
    records = run.folder.read_metrics()
    for number in sorted({0, step}):
        for split in ("validation", "test"):
            if number < len(records) and f"{split}/success" in records[number]:
                found = {key: records[number][f"{split}/{key}"] for key in ("success", "low", "high")}
                yield _row(split, number, found, "in training")
    for record in read_json_lines(run.folder.evaluations):
        if record["step"] in (0, step):
            changed = sorted({param.partition("=")[0].strip() for param in record.get("gin_param") or ()})
            how = [counted(record["instances"], "instance")]
            how += [f"temperature {record['temperature']:g}"] if "temperature" in record else []
            how += [f"with another {', '.join(changed)}"] if changed else []
            yield _row(record["split"], record["step"], record, ", ".join(how))


def _row(split: str, step: int, found: Mapping[str, Any], how: str) -> tuple[Any, ...]:
    return split, step, f"{found['success']:.1%}", f"{found['low']:.1%} to {found['high']:.1%}", how


def _table(heads: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> str:
    found = list(rows)
    if not found:
        return "None is recorded.\n"
    lines = (f"| {' | '.join(map(str, line))} |" for line in (heads, ("---",) * len(heads), *found))
    return "\n".join(lines) + "\n"


def _prompts(x: Experiment) -> str:
    own = x.tokenizer
    if isinstance(own, TinyTokenizer):
        return f"Its tokenizer is in `{tiny_file.NAME}`, which only atgrpo_jax reads: give it ids.\n"
    if not isinstance(own, FolderTokenizer):
        return f"Its tokenizer is {type(own).__name__} of atgrpo_jax, which is in no folder: give it ids.\n"
    thinks = {None: "as the template does by itself", False: "without thinking", True: "with thinking"}
    values = ", ".join(f"`{name}`" for name in sorted(own.template_values))
    more = f", with values for {values}" if values else ""
    return f"It was asked by the chat template in this folder, {thinks[own.thinking]}{more}.\n"
