import random

import pytest

from atgrpo_jax.tokens import SPECIALS, WORDS, TinyTokenizer

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
