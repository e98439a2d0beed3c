"""What batch.sh does before and after the check in front of a start, which ``slurm.check_rank`` does on each rank.

    python -m slurm.check port                                  a port for it
    python -m slurm.check judge CODE NODES JOB COUNTS EXCLUDED  what follows, as shell assignments

CODE is the exit code of srun, NODES the names of the job's nodes, JOB what scontrol shows of it, COUNTS what ``sinfo
--format=%F`` shows of its partition, EXCLUDED the nodes that it must not get. The doctor's findings are in
``$SENET_RUN_DIR/slurm``. If the job must not start on these nodes, the outcome says why, and ``unfit`` is set.
"""

from __future__ import annotations

import shlex
import sys

from senet.command import printable
from senet.rundir.files import patiently, read_json, write_json
from senet.rundir.lease import WARNINGS_VARIABLE
from slurm import batch, nodes
from slurm.ports import free_port
from slurm.starts import Launch, explain

_CHECK_S = 15  # of the doctor; as long at the most for ranks that are late
_LIMIT_S = 90  # with the start of Python on all nodes, from a network file system that is slow
_LATE = (124, 137)  # exit codes of timeout, after SIGTERM and SIGKILL


def check_ranks(python: str, config: str) -> str:
    """A function of the batch script: the doctor on all ranks. Its step keeps no node from the training's, and ends.

    Args:
        python: the command.
        config: the YAML file of the resolved options, as the shell has it.
    """
    step = "srun --overlap --distribution=block --kill-on-bad-exit=0 --wait=10 --time=2 --export=ALL"
    words = f"{config} --max-seconds {_CHECK_S}"
    return f'check_ranks() {{ timeout --kill-after=5 {_LIMIT_S} {step} {python} -m slurm.check_rank {words} "$@"; }}'


def judge(code: int, names: list[str], job: str, counts: str, before: list[str]) -> dict[str, str]:
    """Say in the log what was found, keep the names of unfit nodes, and write the outcome of a start that must not be.

    Returns:
        Variables of the batch script; ``unfit`` only if the job must not start.
    """
    launch = Launch.from_environment()
    run_dir, job_id, start = where = launch.run_dir, launch.job_id, launch.start
    if batch.is_preempted(job):
        reason = "preempted before the ranks were launched"
        write_json(launch.outcome_file, {"state": "stopped", "reason": reason, "kind": "preempted"})
        return {"unfit": "yes"}
    file = nodes.check_file(*where)
    report = read_json(file)
    if not report.get("complete"):
        why = "it was not done in time" if code in _LATE else f"exit code {code}"
        _say(f"the check before the start did not come to its end ({why}; see {file.with_suffix('.log')})")
    findings = report.get("findings", [])
    for each in findings:
        _say(nodes.line(each))
    history = nodes.history_of(run_dir)
    left_out = {each for each in before if each not in {old.node for old in history}}  # by the user
    verdict = nodes.judge(
        report,
        names,
        history,
        job=job_id,
        # no answer: one may be excluded
        available=nodes.usable(counts) - len(left_out) if nodes.usable(counts) else len(names) + len(history) + 1,
        requeues_left=launch.max_requeues - start,
    )
    if verdict.refusal:
        reason = f"not started: {verdict.refusal}"
        write_json(launch.outcome_file, {"state": "refused", "reason": reason, "kind": "nodes are unfit"})
        if verdict.common:
            nodes.forget_job(run_dir, job_id)
        return {"unfit": "yes"}
    if verdict.exclude:
        reason = f"starts again without what the check found: {nodes.describe(verdict.exclude)}"
        nodes.avoid(run_dir, verdict.exclude)
        write_json(launch.outcome_file, {"state": "stopped", "reason": reason, "kind": "node excluded"})
        explain(*where, "stopped", reason, "node excluded")
        left_out |= {each.node for each in (*history, *verdict.exclude)}
        return {"unfit": "yes", "excluded": ",".join(sorted(left_out))}
    return {WARNINGS_VARIABLE: "\n".join(map(nodes.line, findings))}


def _say(what: str) -> None:
    print(f"slurm: {printable(what)}", file=sys.stderr)


def main(argv: list[str]) -> int:
    if argv[0] == "port":
        print(free_port())
    else:
        code, names, job, counts, before = argv[1:]
        for name, value in judge(int(code), names.split(), job, counts, before.split()).items():
            print(f"export {name}={shlex.quote(value)}")
    return 0


if __name__ == "__main__":
    sys.exit(patiently(lambda: main(sys.argv[1:])))
