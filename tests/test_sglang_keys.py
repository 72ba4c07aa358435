"""API keys and passwords of servers: where they come from, and that nobody is shown them."""

import html
import json
import os
import re
import traceback
from urllib.parse import quote, quote_plus

import pytest
import shared_sglang
from scripted_server import ScriptedServer
from shared_sglang import ask, request

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.engines.sglang import secrets
from atgrpo_jax.engines.sglang.sglang import SGLangConfig

# Fixtures
folder = shared_sglang.folder
server = shared_sglang.server
make = shared_sglang.make


def test_a_key_is_read_from_a_file_or_a_variable_and_written_nowhere(
    folder, make, tmp_path, monkeypatch, capsys
):
    secret = "s3cret"
    (tmp_path / "key").write_text(secret + "\n")
    monkeypatch.setenv("SERVER_KEY", secret)
    with ScriptedServer(folder, key=secret) as server:
        for given in ({"api_key_file": str(tmp_path / "key")}, {"api_key_variable": "SERVER_KEY"}):
            engine = make(server, **given)
            server.faults = ["500"]
            assert len(ask(engine, request())[0]) == 3
            assert secret not in repr(vars(engine))
        with pytest.raises(RunError, match="wants an API key: SGLangConfig.api_key_file or"):
            make(server)
        with pytest.raises(RunError, match="nothing: No such file"):
            make(server, api_key_file="nothing")
        with pytest.raises(RunError, match="no API key in NO_SUCH"):
            make(server, api_key_variable="NO_SUCH")
    said = capsys.readouterr()
    assert "status 500" in said.err and secret not in said.err + said.out


def test_a_server_that_repeats_the_key_has_it_hidden(folder, make, monkeypatch, capsys):
    key = 's3cret/"<key>+'
    monkeypatch.setenv("SERVER_KEY", key)
    with ScriptedServer(folder, key=key) as server:
        engine = make(server, api_key_variable="SERVER_KEY")
        for fault in ("echo", "echo in JSON", "echo in a sample"):
            server.faults = [fault] * 9
            with pytest.raises(RunError) as stopped:
                ask(engine, request())
            words = "".join(traceback.format_exception(stopped.value)) + capsys.readouterr().err
            assert "****" in str(stopped.value) and "\x1b" not in words
            assert not re.search("s3cret", words)
    engine.close()
    assert secrets.hide(key) == key


@pytest.mark.parametrize(
    "text, says",
    [
        (b"one\ntwo\n", "a key is one line of printable ASCII"), (b"a\0b", "a key is one line"),
        (b"\xff\xfe\n", "plain text"), (b"", "no API key in"), ("clé".encode(), "a key is one line"),
        (b"two words", "a key is one line"), (b"x" * 9000, "a key is one line"),
        (None, "No such file"), ("pipe", "not a regular file"), ("folder", "directory"),
    ],
)  # fmt: skip
def test_key_files_that_cannot_be_are_told_without_what_is_in_them(tmp_path, text, says):
    path = tmp_path / "key"
    if text == "pipe":
        os.mkfifo(path)
    elif text == "folder":
        path.mkdir()
    elif text is not None:
        path.write_bytes(text)
    with pytest.raises(RunError, match=says) as refused:
        secrets.api_key(str(path), "")
    words = "".join(traceback.format_exception(refused.value))
    assert "\n" not in str(refused.value) and not any(part in words for part in ("two", "xff", "xxxx", "b'a"))


def test_keys_are_found_in_all_their_forms():
    key = "p+q/r s&<\"'"
    with secrets.kept(key), secrets.kept("other"):
        quoted = quote(key), quote(key, safe="").lower(), quote_plus(key)
        for form in (key, *quoted, json.dumps(key), html.escape(key)):
            assert set(secrets.hide(form)) <= set('*"'), form
        assert secrets.shown(["x" * 50 + "other" + "y" * 99]) == secrets.shown(
            ["x" * 50 + "*****" + "y" * 99]
        )
        assert secrets.plain("Other\n\x1b[31m\u202e tail") == "***** \\x1b[31m\\u202e tail"
    assert secrets.hide(key) == key


@pytest.mark.parametrize(
    "given",
    [
        {"urls": ("http://me:hunter2@127.0.0.1:1",)}, {"urls": "http://me:hunter2@127.0.0.1:1"},
        {"urls": {"a": ("me:hunter2@127.0.0.1",)}}, {"urls": ("http://127.0.0.1:1?key=hunter2",)},
        {"urls": ("http://127.0.0.1:1",), "router": "http://:hunter2@127.0.0.1"},
        {"urls": (["http://me:hunter2@127.0.0.1:1"],)},
    ],
)  # fmt: skip
def test_passwords_in_addresses_are_refused_and_not_shown(given):
    with pytest.raises(ValueError, match="a user, password or query in it; give http://host:port") as refused:
        SGLangConfig(**given)
    assert "hunter2" not in str(refused.value) and refused.value.__cause__ is None
