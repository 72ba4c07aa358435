"""How weights and adapters reach SGLang servers, and the folder in which they are published."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import pytest
import shared_sglang
from safetensors.numpy import save_file
from scripted_server import ScriptedServer
from shared_sglang import ADAPTERS, PARAMS, ask, request

from atgrpo_jax.common.errors import RunError
from atgrpo_jax.engines.sglang import fleet
from atgrpo_jax.engines.sglang.published import Published
from atgrpo_jax.models.hf import hf
from atgrpo_jax.models.transformer import PolicyWeights

# Fixtures
folder = shared_sglang.folder
server = shared_sglang.server
make = shared_sglang.make


def test_weights_are_published_whole_and_the_last_ones_go(server, make, tmp_path):
    engine = make(server)
    (body,) = server.bodies("/update_weights_from_disk")
    assert body["flush_cache"] is True and body["weight_version"] == engine.fleets["shared"].state
    first = Path(body["model_path"])
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), PARAMS)
    for ours, theirs in zip(
        jax.tree.leaves(PARAMS), jax.tree.leaves(hf.load(str(first), shapes)), strict=True
    ):
        assert (ours == theirs).all()
    engine.push_weights("shared", PolicyWeights(PARAMS), 8)
    second = Path(server.bodies("/update_weights_from_disk")[1]["model_path"])
    assert second.is_dir() and not first.exists() and first.parent == second.parent
    assert engine.version("shared") == 8 and ask(engine, request())[0][0].version == 8
    assert engine.usage.push_bytes > 2 * sum(x.nbytes for x in jax.tree.leaves(PARAMS))
    engine.close()
    assert not first.parent.exists()


def test_a_server_that_a_run_before_has_pushed_to_serves_the_next(server, make):
    make(server).close()
    assert not Path(server.pushed).exists()
    assert len(ask(make(server), request())[0]) == 3


def test_an_update_that_a_server_does_not_take_is_an_error(server, make):
    refuse = {"success": False, "message": "no such file"}
    server.paths["/update_weights_from_disk"] = lambda body: refuse
    with pytest.raises(RunError, match="the weights of shared did not reach a server: .*no such file"):
        make(server)
    server.paths["/update_weights_from_disk"] = lambda body: {"success": True}
    with pytest.raises(RunError, match="names its weights default after an update"):
        make(server)


def test_adapters_have_a_new_name_for_every_version(folder, make):
    with ScriptedServer(folder, lora=True) as server:
        engine = make(server, weights=ADAPTERS, initial_names={"a": "base", "b": "base"})
        assert len(server.bodies("/update_weights_from_disk")) == 1 and len(server.adapters) == 2
        before = dict(server.adapters)
        ask(engine, request(policy="b"))
        (name,) = {body["lora_path"] for body in server.bodies("/generate")}
        assert "b-7-" in name and name in before
        engine.push_weights("b", ADAPTERS["b"], 8)
        assert len(server.adapters) == 2 and name not in server.adapters
        assert not Path(before[name]).exists()
        assert len(server.bodies("/update_weights_from_disk")) == 1  # the base stays
        server.restart()
        ask(engine, request(policy="b"))
        assert len(server.adapters) == 2 and len(server.bodies("/update_weights_from_disk")) == 2
    with ScriptedServer(folder) as bare, pytest.raises(RunError, match="takes no adapters; start it with"):
        make(bare, weights=ADAPTERS, initial_names={"a": "base", "b": "base"})


def test_an_answer_that_is_lost_does_not_end_the_run(folder, make, monkeypatch):
    """The server has done what it was asked for, and says so when it is asked again."""
    monkeypatch.setattr(fleet, "REST_S", 0.1)
    with ScriptedServer(folder, lora=True) as server:
        engine = make(
            server, weights=ADAPTERS, initial_names={"a": "base", "b": "base"}, start_timeout_s=20.0
        )
        for path in ("/load_lora_adapter", "/unload_lora_adapter", "/update_weights_from_disk"):
            server.lost = [path]
            engine.push_weights("b", PolicyWeights(dict(PARAMS), ADAPTERS["b"].adapter), 8)
            assert not server.lost and len(server.adapters) == 2


def test_weights_are_for_this_user_or_for_whom_a_folder_is_for(tmp_path):
    tmp_path.chmod(0o750)
    given, own = Published(str(tmp_path)), Published()
    assert given.root.stat().st_mode & 0o777 == 0o750 and own.root.stat().st_mode & 0o777 == 0o700
    given.close()
    own.close()


def test_what_a_killed_run_left_is_removed_and_room_is_asked_for_first(tmp_path):
    code = (
        "import os, sys; from atgrpo_jax.engines.sglang.published import Published;"
        "kept = Published(sys.argv[1]); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)])
    (left,) = tmp_path.iterdir()
    assert killed.returncode == -signal.SIGKILL
    own, here = Published(str(tmp_path)), socket.gethostname()
    elsewhere = tmp_path / left.name.replace(here, f"{here}-17")  # on a shared folder, whatever its lock says
    shutil.copytree(own.root, elsewhere)
    other = Published(str(tmp_path))
    assert not left.exists() and own.root.is_dir() and elsewhere.is_dir() and other.root != own.root
    with pytest.raises(RunError, match=r"GB left, and weights on their way to servers take 1000000.0 GB"):
        own.check_room(1e15)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot make a folder for weights in"):
        Published(str(tmp_path / "file" / "below"))


def test_weights_that_cannot_be_written_stop_the_run_in_a_line(tmp_path):
    """As on a full disk, which safetensors tells in an exception of its own."""
    published = Published(str(tmp_path))
    for write in (
        lambda folder: os.mkdir(f"{folder}/no/such"),
        lambda folder: save_file({}, f"{folder}/no/x"),
    ):
        with pytest.raises(
            RunError, match="cannot write weights for the servers to .*: .*No such file"
        ) as full:
            published.write("weights", write)
        assert "\n" not in str(full.value)
    published.close()
