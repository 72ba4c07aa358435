"""Largest differences to ``transformers`` in float32, as a Markdown table. Needs the "test" extra.

    python benchmarks/parity.py [FOLDER ...]

Small random models of every architecture and variant (those of the tests) on random tokens, then the folders
given on the first tokens of the README: random tokens drive a real model to where float32 itself is off
(docs/log.md).
"""

import argparse
import sys
import tempfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import torch
import transformers

from atgrpo_jax.tokens.tokens import FolderTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from reference import VARIANTS, forward, make, ours

README = Path(__file__).resolve().parent.parent / "README.md"
TOKENS = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="*", type=Path)
    args = parser.parse_args()
    print("| model | parameters | tokens | std of logits | max abs difference of logits | same argmax |")
    print("|---|---|---|---|---|---|")
    for name, (kind, options) in VARIANTS.items():
        with tempfile.TemporaryDirectory() as folder:
            theirs = make(Path(folder), kind, options)
            row(
                f"{name}, random", Path(folder), theirs, np.random.default_rng(0).integers(0, 96, (2, TOKENS))
            )
    for folder in args.folders:
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        tokenizer = FolderTokenizer(str(folder))
        tokens = np.array(tokenizer.answer_ids(README.read_text()))
        row(folder.name, folder, theirs, tokens[: 2 * TOKENS].reshape(2, TOKENS))


def row(name: str, folder: Path, theirs, tokens: np.ndarray) -> None:
    model, params = ours(folder)
    scores = np.asarray(forward(model, params, jnp.asarray(tokens))[2])
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits.numpy()
    same = (scores.argmax(-1) == expected.argmax(-1)).mean()
    print(
        f"| {name} | {model.family.parameters(model.architecture):,} | {tokens.size} | {expected.std():.2f} "
        f"| {np.abs(scores - expected).max():.1e} | {same:.1%} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
