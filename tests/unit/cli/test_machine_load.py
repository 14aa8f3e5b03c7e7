"""The share that others had of the machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from rusteeze.cli.machine_load import MachineLoad, warning


def test_another_process_is_seen_and_our_own_work_is_not() -> None:
    hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        time.sleep(0.3)
        load = MachineLoad()
        time.sleep(0.7)
        foreign = load.foreign()
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()
    assert 0.5 < foreign <= 1
    own = MachineLoad(busy=load.busy, own=load.own - 1e6)
    assert own.foreign() == 0


def test_only_a_busy_machine_is_worth_a_word() -> None:
    assert warning(0.02) == ""
    assert "37 %" in warning(0.37)
