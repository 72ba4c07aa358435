"""Ours and the peers' on one work item, one after the other, and a table.

    python benchmarks/peers/run.py --environments=FOLDER [--item=tiny|long|vocab] [--data=2]
    python benchmarks/peers/run.py --environments=FOLDER --rollout [--item=skewed]

FOLDER holds the environments that setup.sh makes. The peers load the model, in the item's dtype, and prompts
of the item's length, from a folder that this script writes; its tokenizer has a word for each id, so that
texts are as long as their ids. Takes minutes; nothing else should run meanwhile.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import tokenizers
import transformers

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from items import ITEMS, Item  # noqa: E402

from atgrpo_jax.models.families.table import transformer  # noqa: E402
from atgrpo_jax.models.hf import hf  # noqa: E402
from atgrpo_jax.models.transformer import init_params  # noqa: E402

TRAINERS = {"trl": "trl", "tunix": "tunix"}  # script: environment
SAMPLERS = {"vllm": "vllm", "transformers": "trl", "tunix": "tunix", "llamacpp": "llamacpp"}
OPTIONAL = {"llamacpp"}  # environments that setup.sh makes if told to; passed over where missing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--environments", type=Path, required=True)
    parser.add_argument("--item", choices=ITEMS, default="tiny")
    parser.add_argument("--rollout", action="store_true", help="sampling alone, against samplers")
    parser.add_argument("--peers", help="some of them, with commas between")
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--data", type=int, default=1, help="devices of ours; a CPU is as many as asked for")
    parser.add_argument("--rows", type=int, help="groups of a micro-batch of ours")
    parser.add_argument("--micro", type=int, default=0, help="prompts of a peer's (micro-)batch; 0: all")
    args = parser.parse_args()
    counts = [f"--warmup={args.warmup}", f"--steps={args.steps}"]
    rows = [] if args.rows is None else [f"--rows={args.rows}"]
    ours = [f"--item={args.item}", f"--data={args.data}", *rows, *counts]
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        export(ITEMS[args.item], Path(folder))
        for script in ("rollout.py",) if args.rollout else ("update.py", "step.py"):
            lines += run("atgrpo_jax", [sys.executable, str(HERE.parent / script), *ours])
        peers, kind = (SAMPLERS, "rollout") if args.rollout else (TRAINERS, "grpo")
        there = [p for p, e in peers.items() if e not in OPTIONAL or (args.environments / e).exists()]
        for peer in args.peers.split(",") if args.peers else there:
            python = str(args.environments / peers[peer] / "bin" / "python")
            script = str(HERE / f"{peer}_{kind}.py")
            lines += run(peer, [python, script, folder, f"--micro={args.micro}", *counts])
    print(table(lines))


def export(item: Item, folder: Path) -> None:
    """The item as a model folder with a tokenizer, and item.json."""
    m = item.model
    source = folder / "source"
    source.mkdir()
    more = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
    config = hf.description(m, m.vocab_size, (1,), item.compute.param_dtype) | more
    (source / "config.json").write_text(json.dumps(config))
    words = {"<pad>": 0, "<end>": 1} | {f"w{i}": i for i in range(2, m.vocab_size)}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<pad>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<end>")
    fast.save_pretrained(source)
    params = init_params(transformer(m, m.vocab_size, item.compute), jax.random.key(0))
    hf.save(str(folder), params, str(source), item.compute.dtype)
    fields = dataclasses.asdict(item) | {"model": dataclasses.asdict(m) | {"dtype": item.compute.dtype}}
    prompts = [ids for seed in range(4) for ids in item.prompt_ids(seed)]
    texts = [" ".join(f"w{max(i, 2)}" for i in ids) for ids in prompts]
    more = {"texts": texts, "stop_ids": item.stop_ids}
    (folder / "item.json").write_text(json.dumps(fields | more))


def run(name: str, command: list[str]) -> list[dict]:
    """The JSON lines of a script that have a phase. Raises CalledProcessError if it fails."""
    print(f"{name}: {' '.join(command)}", file=sys.stderr, flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"benchmark"')]
    for line in found:
        print(json.dumps(line), flush=True)
    return [{"who": name} | line for line in found if "phase" in line]


def table(lines: list[dict]) -> str:
    """Markdown. What ratios are to is our first line of a phase: for the update that of ``update.py``."""
    rows = ["| | phase | tokens/s | s | first s | ours against it |", "|---|---|---|---|---|---|"]
    own: dict[str, float] = {}
    for line in lines:
        who, phase, rate = line["who"], line["phase"], line["tokens_per_s"]
        if who == "atgrpo_jax":
            own.setdefault(phase, rate)
        ratio = f"{own[phase] / rate:.2f}"
        rows.append(f"| {who} | {phase} | {rate:,.0f} | {line['seconds']} | {line['first_s']} | {ratio} |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
