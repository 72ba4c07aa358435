import json
import random

import pytest
from reference import make_tokenizer

from atgrpo_jax.errors import RunError
from atgrpo_jax.tokens import SPECIALS, WORDS, FolderTokenizer, TinyTokenizer, check_same_ids

TOKENIZER = TinyTokenizer(words=("go", "goal", " at"))
END, USER, ASSISTANT = 260, 262, 263  # 256 bytes, 3 words, then the specials in their order


def test_the_chat_template_by_hand():
    ids = TOKENIZER.prompt_ids([{"role": "user", "content": "goal at go!"}])
    assert ids == (USER, 257, 258, ord(" "), 256, ord("!"), END, ASSISTANT)
    assert TOKENIZER.answer_ids("go") == (256, END)
    assert TOKENIZER.stop_ids == (END,)
    assert TOKENIZER.vocab_size == 256 + 3 + len(SPECIALS)


@pytest.mark.parametrize("tokenizer", [TOKENIZER, TinyTokenizer()])
def test_every_text_round_trips(tokenizer):
    rng = random.Random(0)
    pieces = [*WORDS, *SPECIALS, "é", "漢", "\n", " ", "[URDL]", "🙂", "go", "al"]
    for _ in range(200):
        text = "".join(rng.choices(pieces, k=8))
        ids = tokenizer.answer_ids(text)
        assert tokenizer.decode(ids) == text
        assert max(ids[:-1]) < 256 + len(tokenizer.words)  # no text makes a special id


def test_decoding_leaves_specials_out_and_survives_broken_bytes():
    assert TOKENIZER.decode((USER, 256, END)) == "go"
    assert TOKENIZER.decode((0xC3,)) == "\ufffd"


def test_the_digest_follows_the_words():
    assert TinyTokenizer().digest() == TinyTokenizer().digest()
    assert TinyTokenizer().digest() != TOKENIZER.digest()


@pytest.mark.parametrize("words", [("a", "a"), ("",)])
def test_refuses(words):
    with pytest.raises(ValueError, match=r"TinyTokenizer\.words"):
        TinyTokenizer(words)


def test_a_folder_whose_tokenizer_gives_other_ids_is_refused(tmp_path):
    for name in ("ours", "same", "other"):
        make_tokenizer(tmp_path / name)
    path = tmp_path / "other" / "tokenizer.json"
    about = json.loads(path.read_text())
    vocab = about["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    path.write_text(json.dumps(about))
    ours = FolderTokenizer(str(tmp_path / "ours"))
    for fine in ("ours", "same", "no tokenizer there"):
        check_same_ids(ours, str(tmp_path / fine))
    check_same_ids(TOKENIZER, str(tmp_path / "other"))
    with pytest.raises(RunError, match="other/tokenizer.json gives other ids than .*ours/tokenizer.json"):
        check_same_ids(ours, str(tmp_path / "other"))
