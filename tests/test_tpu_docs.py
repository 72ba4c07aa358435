"""docs/tpu.md, to the letter: its commands run against the fake cloud and print what the page says."""

import re
import subprocess
import sys

import pytest
from shared_tpu import ROOT, Desk

PAGE = (ROOT / "docs" / "tpu.md").read_text()
# A block of commands, and what the page says that they print.
STEPS = re.findall(r"```bash\n(.*?)```\n(?:\n```text\n(.*?)```\n)?", PAGE, re.DOTALL)


def plain(text: str) -> list[str]:
    """Returns lines without what differs from run to run: times and digests."""
    return re.sub(r"\b[0-9a-f]{16}\b", "DIGEST", re.sub(r"\d\d:\d\d:\d\d", "TIME", text)).splitlines()


@pytest.mark.slow
def test_its_commands_print_what_it_says(tmp_path):
    """Lines of the page come in this order; others may come between them."""
    desk = Desk(tmp_path)
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    python.chmod(0o755)
    del desk.environment["ATGRPO_BUCKET"]
    # The machines are taken away while they prepare themselves.
    desk.cloud.plan("WAITING_FOR_RESOURCES PROVISIONING ACTIVE ACTIVE SUSPENDED", "ACTIVE")
    script = "set -e\n" + "".join(f"echo '@@@@'\n{commands}" for commands, _ in STEPS)
    environment = desk.environment | {
        "PATH": f"{tmp_path}/bin:{desk.environment['PATH']}",
        "ATGRPO_EVERY": "0.3",
    }
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=desk.checkout,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
    )
    desk.end()
    assert done.returncode == 0, done.stdout + done.stderr
    outputs = done.stdout.split("@@@@\n")[1:]
    for (commands, said), output in zip(STEPS, outputs, strict=True):
        left = iter(plain(output))
        for line in plain(said):
            assert any(found.startswith(line) for found in left), (
                f"{commands}\ndoes not print: {line}\n{output}"
            )
    assert (desk.checkout / "curves.png").exists()


def test_it_names_every_command_and_type():
    from tpu.flags import COMMANDS

    for command in COMMANDS:
        assert f"`{command}" in PAGE, command
    for name in re.findall(r"`(launch/[\w./]+|tests/[\w./]+)`", PAGE):
        assert (ROOT / name).exists(), name
