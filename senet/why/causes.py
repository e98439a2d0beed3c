"""The causes, each with its remedy, and the words by which those that others raise are known. Pure."""

from __future__ import annotations

import errno
import os
import re

from senet.command import BUS_ERROR
from senet.rundir.restarts import SILENT

SAME = "the same command goes on from the newest checkpoint"
_LOWER = "a lower optim.lr with resume.allow_changes=true; the checkpoint is from before that step"
_WITHOUT_CHECKPOINT = {
    SAME: "the same command begins anew: there is no checkpoint yet",
    _LOWER: "a lower optim.lr: it begins anew, since there is no checkpoint yet",
}
CAUSES = {
    # nothing is wrong
    "finished": "nothing is left to do; to train on, more train.epochs with resume.allow_changes=true",
    "running": "nothing",
    "starting": "nothing",
    # it waits
    "in the queue": "wait, or ask for less: fewer nodes, a shorter slurm.time, another slurm.partition",
    "held": "what SLURM names has to be mended or released (scontrol release JOB); else it never starts",
    "preempted": "nothing: it starts again by itself",
    "time limit": "nothing: it starts again by itself; a longer slurm.time has fewer starts",
    "requeued": "nothing: it starts again by itself",
    "node excluded": "nothing: it starts again without that node; once that is repaired: slurm clear RUN",
    "waits for a lock": "end the process that is named, or wait until it is done",
    "waits for a rank": "look at that host; after the limit that is named the run ends by itself",
    "does not move": "look at the hosts; after distributed.step_timeout_s the run ends by itself and names the rank",
    "suspended": "SLURM's administrators have suspended it; scontrol resume JOB",
    # a person or SLURM has ended it
    "stopped": SAME,
    "cancelled": "submit it again: " + SAME,
    "killed": SAME,
    "time limit was hit": "submit it again; a larger slurm.signal_lead_s leaves more time for the last save",
    # the training could not go on
    "out of memory of the host": "more memory (slurm.mem), fewer ranks per host, data.resident=false",
    "out of memory of a GPU": "a smaller train.global_batch_size; train.accumulate=2 for the same batch in two parts",
    "loss is not finite": _LOWER,
    "ranks differ": "have that hardware checked, or leave the host out; then " + SAME,
    "disk is full": "free some space; then " + SAME,
    "file system": "it does not answer, or may not be read or written: mend that; then " + SAME,
    "node lost": "nothing if it is requeued; else " + SAME,
    "rank was killed": "if it was not you, look at the memory of that host; then " + SAME,
    "rank hangs": "look at the stacks in its log, and at that host; then " + SAME,
    "connection lost": "look at the logs of the other ranks, and at the network between the hosts; then " + SAME,
    "crash on a GPU": "is a label or an index too large? CUDA_LAUNCH_BLOCKING=1 names the line; then " + SAME,
    "GPU failed": "look at nvidia-smi on that host; ./launch.sh doctor tries its GPUs",
    "start does not get on": "look at the rank that is named; a slow file system: a larger distributed.start_timeout_s",
    "port is taken": "start again: another port is chosen; by hand set another MASTER_PORT",
    "refused": "what the line says",
    "bug, twice": "mend that line; then " + SAME,
    "crash": "mend that line; then " + SAME,
    "nodes are unfit": "repair what is named, or slurm.check=false; slurm clear RUN forgets excluded nodes",
    "requeues are used up": "submit it again; a checkpoint more often (checkpoint.every_steps), or more time per start",
    "restarts are used up": "what failed stands in restarts.jsonl; mend it, then " + SAME,
    "taken over": "nothing: the run goes on in the start that took it over",
    "failed": "look at the words above and at the logs; then " + SAME,
    "unknown": "look at the logs; " + SAME,
}
"""Name -> what to do."""


def remedy(cause: str, *, has_checkpoint: bool) -> str:
    text = CAUSES[cause]
    for words, instead in () if has_checkpoint else _WITHOUT_CHECKPOINT.items():
        text = text.replace(words, instead)
    return text


def _any(*codes: int) -> str:
    return "|".join(re.escape(os.strerror(code)) for code in codes)


_WORDS = {
    "out of memory of a GPU": r"CUDA out of memory|OutOfMemoryError|CUBLAS_STATUS_ALLOC_FAILED|CUDA error: out of mem",
    "out of memory of the host": r"oom_kill|Out Of Memory|can't allocate memory|\bMemoryError\b|" + _any(errno.ENOMEM),
    "disk is full": _any(errno.ENOSPC, errno.EDQUOT),
    "rank was killed": r"ended by SIG(KILL|TERM)",
    "file system": re.escape(BUS_ERROR)
    + "|"
    + _any(errno.ESTALE, errno.ENOTCONN, errno.EIO, errno.ETIMEDOUT)
    # what may not be read or written, unless a line of the user's own code has tried it
    + rf"|({_any(errno.EROFS, errno.EACCES)})(?!.*, at (?!data/|rundir/)\S+:\d+ )",
    "connection lost": r"ncclRemoteError",
    "crash on a GPU": r"device-side assert|illegal memory access|CUDA error: invalid (configuration )?argument",
    "GPU failed": r"CUDA error|CUDNN_STATUS|ncclUnhandledCudaError|ncclSystemError",
    "crash": r", at \S+:\d+ \S+|\w+(Error|Exception): ",
}
"""Name -> how it is known, the first that fits: of what others say, torch, NCCL, CUDA, the operating system."""

_OLDER = {
    "is not finite on ": "loss is not finite",
    "is not that of the other ranks": "ranks differ",
    f"{SILENT}: its process has ended": "rank was killed",
    SILENT: "rank hangs",
    "no answer from ": "node lost",
    " is used up; submit again": "requeues are used up",
}
"""Of what the project itself finds, where its kind is not written: in a log, and in older run directories."""

_BEFORE = re.compile(
    r"^(failed twice (before the first update|at step \d+)|(slurm\.max_restarts|RESTARTS)=\d+ is used up): "
)


def inner(reason: str) -> str:
    """A reason without what a launcher has put before it."""
    return _BEFORE.sub("", reason)


def name_of(reason: str, kind: str = "") -> str:
    """The cause of a failure: its kind, if it has one, else by its words; "failed" where they are not known."""
    known = inner(reason)
    found = kind or next((name for words, name in _OLDER.items() if words in known), "")
    found = found or next((name for name, words in _WORDS.items() if re.search(words, known)), "failed")
    if reason.startswith("failed twice") and found in ("crash", "failed"):
        return "bug, twice"
    if known != reason and found == "failed":
        return "restarts are used up"
    return found
