import json
import subprocess
import sys

import pytest
from reference import VARIANTS, make, make_tokenizer

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.tools.read_back import check_read_back


@pytest.fixture
def folder(tmp_path):
    make(tmp_path, *VARIANTS["llama"])
    return tmp_path


def test_a_folder_as_transformers_reads_it(folder):
    assert check_read_back(folder) is None
    make_tokenizer(folder)
    assert check_read_back(folder) is None


def test_other_ids_are_said(folder):
    """transformers 5 rebuilds how Qwen2Tokenizer splits a text, whatever tokenizer.json says."""
    make_tokenizer(folder)
    path = folder / "tokenizer.json"
    lower_case = json.loads(path.read_text()) | {"normalizer": {"type": "Lowercase"}}
    path.write_text(json.dumps(lower_case))
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "Qwen2Tokenizer"}))
    note = check_read_back(folder)
    assert note.startswith("note: transformers") and "gives other ids for 'Hello, world!'" in note


def test_what_it_cannot_read_is_an_error(folder):
    (folder / "config.json").write_text('{"model_type": "nothing"}')
    with pytest.raises(RunError, match=r"^transformers \d.* cannot read .*"):
        check_read_back(folder)


# Python without PyTorch, as it is after pip install .
WITHOUT = """
import importlib.util, logging, sys
from pathlib import Path
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *of: None if name.partition(".")[0] == "torch" else find(name, *of)
from atgrpo_jax.tools.read_back import check_read_back
assert check_read_back(Path(sys.argv[1])) is None
assert not sys.modules["transformers"].utils.is_torch_available()
logging.getLogger("transformers").warning("something else")
"""


def test_only_the_advice_to_install_pytorch_is_silent(folder):
    done = subprocess.run([sys.executable, "-c", WITHOUT, folder], capture_output=True, text=True, check=True)
    assert done.stderr == "[transformers] something else\n" and done.stdout == ""
