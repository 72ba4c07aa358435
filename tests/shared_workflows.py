"""The tasks of docs/workflows.md, and engines that answer as the tasks demonstrate."""

import random
import re
import sys
import types
from pathlib import Path

from fakes import AnsweringEngine, CharTokenizer

from atgrpo_jax.common.types import Sample

PAGE = (Path(__file__).parents[1] / "docs" / "workflows.md").read_text()


def blocks(tag):
    found = re.findall(r"^```(\w*)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    return [text for name, text in found if name == tag]


def _module():
    made = sys.modules["talk"] = types.ModuleType("talk")
    (code,) = blocks("python")
    exec(code, made.__dict__)
    return made


talk = _module()


def demonstrating(task):
    """An engine whose samples depend on their address alone, and are what ``task`` demonstrates to start with."""

    def answer(engine, request):
        samples = []
        for address in request.addresses:
            key = address.group
            state = task.initial(task.instance(key.split, key.instance))
            rng = random.Random(str(address))
            tokens = CharTokenizer().answer_ids(task.demonstration(state, key.speaker, rng))
            samples.append(Sample(tokens, (-1.0,) * len(tokens), "stop", 0))
        return samples

    return AnsweringEngine(answer)
