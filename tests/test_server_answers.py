"""Answers of all forms, made by a generator: they are what was asked for, or an error that is ours."""

import json
import math

import pytest
from fuzz import fuzz, places
from hypothesis import given
from hypothesis import strategies as st

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.common.types import Sample, Sampling
from atgrpo_jax.engines.sglang import replies, secrets, servers

ASKED, STOPS, SIZE = Sampling(1.0, 3, stop=("x",)), frozenset({3}), 10
NUMBERS = st.one_of(
    st.integers(), st.floats(), st.sampled_from([10**400, -(10**400), True, 3, 3.0, -1, 0, 1e-3, 2**63])
)
VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), NUMBERS, st.text(max_size=9), st.sampled_from(["stop", "w", "\ud800"])
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=9,
)  # fmt: skip


def right():
    return {
        "meta_info": {
            "finish_reason": {"type": "length", "length": 3},
            "weight_version": "w",
            "output_token_logprobs": [[-0.5, 4, None], [-1, 9, None], [0.0, 0, "t"]],
            "completion_tokens": 3,
            "cached_tokens": 2,
            "weight_versions": [{"version": "w", "start": 0, "end": 3}],
        }
    }


def check(answer):
    """It is a sample that may be learned from, or refused in a line."""
    try:
        sample = servers.read_sample(answer, ASKED, STOPS, SIZE, "w", 7)
        known = servers.cached_tokens(answer, 2)
    except (servers.ServerError, RunError) as error:
        assert str(error).isprintable() and len(str(error)) < 700
        return None
    assert type(known) is int and 0 <= known <= 2 and 1 <= len(sample.tokens) == len(sample.logprobs) <= 3
    assert all(type(token) is int and 0 <= token < SIZE for token in sample.tokens)
    assert all(type(p) is float and math.isfinite(p) and p <= 1e-3 for p in sample.logprobs)
    assert sample.finish in ("stop", "length")
    return sample


@fuzz(60)
@given(st.data())
def test_an_answer_with_one_thing_changed(data):
    assert check(right()) == Sample((4, 9, 0), (-0.5, -1.0, 0.0), "length", 7)
    answer = {"": right()}
    container, key = data.draw(st.sampled_from(list(places(answer))))
    if isinstance(container, dict) and key and data.draw(st.booleans()):
        del container[key]
    else:
        container[key] = data.draw(VALUES)
    check(answer[""])


@fuzz(60)
@given(VALUES)
def test_any_json_is_read_as_itself_or_refused(value):
    """As others write it: with NaN and infinities, which are no JSON."""
    text = json.dumps(value)
    try:
        assert json.dumps(replies.parse(text.encode())) == text
    except replies.Unusable as error:
        assert "NaN" in text or ("Infinity" in text and str(error).isprintable())
    check(value)


@fuzz(60)
@given(
    st.binary(max_size=60), st.integers(0, 200), st.sampled_from([b"[", b'{"a":', b"1", b'"\\ud800', b"\x00"])
)
def test_any_bytes_are_json_or_refused(tail, cut, head):
    whole = json.dumps(right()).encode()
    for raw in (tail, head * 3000 + tail, whole[:cut] + tail + whole[cut:]):
        try:
            json.dumps(replies.parse(raw))
        except replies.Unusable as error:
            assert str(error).isprintable() and len(str(error)) < 500


@fuzz(60)
@given(VALUES, st.sampled_from([401, 403, 404, 400, 307, 500, 503, 999]))
def test_errors_of_all_forms_are_a_line_without_the_key(value, status):
    key = "k3y+/="
    with secrets.kept(key):
        for text in (
            json.dumps(value),
            json.dumps({"error": {"message": [value, key]}}),
            f"\x1b\n{key}" * 99,
        ):
            failure = servers.failure("http://h/p", status, {"Location": key}, text)
            assert key not in str(failure) and str(failure).isprintable() and len(str(failure)) < 700


@pytest.mark.parametrize(
    "text",
    [
        "[" * 10**5, "1" * 5000, '{"a": 1, "a": 1}', "NaN", "[-Infinity]", "\ufeff{}", "{} {}", "nul", "'a'",
        "\ud800",
    ],
    ids=lambda text: text[:12].encode("ascii", "replace").decode(),
)  # fmt: skip
def test_what_is_no_json(text):
    with pytest.raises(replies.Unusable):
        replies.parse(text.encode(errors="surrogatepass"))


def test_an_empty_answer_is_none():
    assert replies.parse(b" \n") is None and replies.parse(b"[1e400]") == [math.inf]
