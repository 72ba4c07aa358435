import json

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
