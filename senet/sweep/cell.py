"""``launch.sh train`` for one cell; it also saves and ends when the sweep that started it is gone, however it ended."""

from senet.distributed.preemption import StopFlag

if __name__ == "__main__":
    stop = StopFlag.install()
    stop.hold()  # the ranks are told, and waited for

import os
import signal
import sys

from senet.command import leave
from senet.distributed.preemption import signal_when_ends

SWEEP_VARIABLE = "SENET_SWEEP"  # the sweep's process id

if __name__ == "__main__":
    signal_when_ends(int(os.environ[SWEEP_VARIABLE]), signal.SIGTERM)
    from senet.launch import main

    leave(main(["train", *sys.argv[1:]], stop))
