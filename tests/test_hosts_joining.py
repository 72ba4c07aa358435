"""Processes that join and meet through JAX's own service; the flags that say who they are."""

import json
import os
import socket
import subprocess
import sys

import pytest
from shared_hosts import HERE, free_port

from atgrpo_jax.arrays.mesh import MeshConfig
from atgrpo_jax.arrays.spread import check_hosts
from atgrpo_jax.common.errors import ConfigError, RunError
from atgrpo_jax.hosts.joining import HostPlace, _check_free, place_of
from atgrpo_jax.hosts.start import settings
from atgrpo_jax.run.alike import model_digest


def test_two_processes_meet():
    """This also holds the private names of JAX that hosts/store.py uses."""
    address = f"localhost:{free_port()}"
    started = [
        subprocess.Popen(
            [sys.executable, HERE / "joined.py", "2", str(index), address],
            env=os.environ, stdout=subprocess.PIPE, text=True,
        )
        for index in range(2)
    ]  # fmt: skip
    seen = []
    for one in started:
        out, _ = one.communicate(timeout=120)
        assert one.returncode == 0
        seen.append(json.loads(out.splitlines()[-1]))
    assert sorted(seen[0].pop("numbers") + seen[1].pop("numbers")) == list(range(10))
    assert seen[0] == seen[1]
    assert all(same for name, same in seen[0].items() if name.startswith("bytes"))
    assert seen[0]["told"] == {"host": 0} and seen[0]["none yet"]
    assert seen[0]["words"] == {"0": "two", "1": "two"} and seen[0]["left"] == []
    assert seen[0]["rounds"] == ["ok"] * 5  # of the probe, by real programs


def test_who_reads_late_that_host_0_leaves_is_not_aborted():
    """JAX ends a process with SIGABRT as soon as host 0 is gone, so host 0 must be the last one."""
    address = f"localhost:{free_port()}"
    started = [
        subprocess.Popen([sys.executable, HERE / "leaving.py", str(index), address], stderr=subprocess.PIPE)
        for index in range(2)
    ]
    said = [one.communicate(timeout=120)[1] for one in started]
    assert [one.returncode for one in started] == [143, 143], said


def test_flags_say_which_host_this_is():
    assert place_of(None, None, None) is None
    assert place_of("4", 3, "10.0.0.2:8476") == HostPlace(4, 3, "10.0.0.2:8476")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ((None, 1, None), "--host and --coordinator need --hosts"),
        ((None, None, "a:1"), "--host and --coordinator need --hosts"),
        (("auto", 0, None), "--hosts=auto finds --host and --coordinator itself"),
        (("auto", None, None), "--hosts=auto: this is no Cloud TPU, GKE or SLURM"),
        (("two", 0, "a:1"), "--hosts=two: expected a number or auto"),
        (("0", 0, "a:1"), "--hosts=0: expected a number or auto"),
        (("2", None, "a:1"), "--hosts=2 needs --host=NUMBER and --coordinator=ADDRESS:PORT"),
        (("2", 0, None), "--hosts=2 needs --host=NUMBER and --coordinator=ADDRESS:PORT"),
        (("2", 2, "a:1"), "--host=2: with --hosts=2 they are 0 to 1"),
        (("2", 0, "a"), "--coordinator=a: expected ADDRESS:PORT"),
    ],
)
def test_flags_that_do_not_belong_together_are_one_line(given, says):
    with pytest.raises(ConfigError, match=says):
        place_of(*given)


def test_slurm_is_found(monkeypatch):
    """One task on each node, as srun tells it."""
    told = {"JOB_ID": "7", "STEP_NODELIST": "gpu[03-04]", "NTASKS": "2", "PROCID": "1", "LOCALID": "0"}
    for name, value in told.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    found = place_of("auto", None, None)
    assert found[:2] == (2, 1) and found.coordinator.startswith("gpu03:")


def test_a_port_that_is_taken_is_named():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(RunError, match=f"--coordinator: port {port} cannot be used here"):
            _check_free(port)


@pytest.mark.parametrize(
    ("mesh", "says"),
    [
        (MeshConfig(data=2, policies=2), "all policies are on one mesh.*set MeshConfig.policies = 1"),
        (MeshConfig(data=2), "has 2 devices, and the 2 hosts have 4; it must have all"),
        (MeshConfig(tensor=4), "tensor must divide the 2 devices of a host; use fsdp for more"),
    ],
)
def test_meshes_that_hosts_cannot_share_are_one_line(mesh, says):
    with pytest.raises(ConfigError, match=says):
        check_hosts(mesh, 4, 2)
    check_hosts(MeshConfig(data=2, tensor=2), 4, 2)


def test_settings_of_a_config_have_names():
    config = "import a\n\na.B.c = 1\na.B.long = \\\n    ('x',\n     'y')\n"
    assert settings(config) == {
        "a config that begins with": "import a",
        "a.B.c": "1",
        "a.B.long": "\\('x','y')",
    }


def test_another_model_in_a_folder_has_another_digest(tmp_path):
    def digest(config, weights):
        (tmp_path / "config.json").write_text(config)
        (tmp_path / "model.safetensors").write_bytes(weights)
        return model_digest(tmp_path)

    first = digest("{}", b"12")
    assert digest("{}", b"12") == first
    assert len({first, digest("[]", b"12"), digest("{}", b"123")}) == 3
