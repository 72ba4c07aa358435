#!/usr/bin/env python3
"""Trains on Cloud TPUs: makes the machines, keeps a run alive through preemptions, and takes them away.

It needs gcloud and nothing else: any Python >= 3.9, no installation. docs/tpu.md is the guide, and
``python launch/tpu.py --help`` lists the commands. The code is in launch/tpu/.
"""

import sys

from tpu.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
