"""gcloud as a process: FAKE_CLOUD is the folder, and FAKE_VM is set if a VM calls it."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fake_cloud.cloud import FakeCloud
from fake_cloud.commands import Refused


def main() -> int:
    words = sys.argv[1:]
    stdin = sys.stdin.buffer.read() if "-" in words else b""
    try:
        sys.stdout.buffer.write(
            FakeCloud(Path(os.environ["FAKE_CLOUD"])).gcloud(words, stdin, "FAKE_VM" in os.environ)
        )
    except Refused as refused:
        print(refused.text, file=sys.stderr)
        return refused.code
    return 0


if __name__ == "__main__":
    sys.exit(main())
