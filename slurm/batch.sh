# shellcheck shell=bash
# Sourced by the batch script of a job. What happens around srun, with SLURM's own commands; the decisions are in batch.py.
#
# Before: SENET_RUN_DIR, SENET_MAX_REQUEUES, and a function run_python. The working directory is that of the code.

export SENET_START=$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}
export SENET_STATUS_FILE=$SENET_RUN_DIR/slurm/$SENET_START.status.json
export SENET_CRASH_FILE=$SENET_RUN_DIR/slurm/$SENET_START.crash

# SLURM's view of the job, into $job; empty where it does not answer for some eight minutes. A start that was cut off with
# its host and comes back ends here: the younger one, which may run by then, has the same numbers of job and step.
look() {
    local pause_s
    for pause_s in 1 5 15 30 60 120 240 0; do
        if job=$(scontrol show job --oneliner "$SLURM_JOB_ID"); then break; fi
        sleep "$pause_s"
    done
    case " $job " in
    "  " | *" Restarts=${SLURM_RESTART_COUNT:-0} "*) ;;
    *)
        echo "slurm: start $SENET_START has been replaced by a younger one, and ends" >&2
        exit 1
        ;;
    esac
}

look # also waits for a controller that is away
# the name under which SLURM itself reaches the node of rank 0; each rank resolves it
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1) # asks nobody
MASTER_ADDR=$(scontrol show node --oneliner "$first" | grep -o ' NodeAddr=[^ ]*' | cut -d = -f 2)
export MASTER_ADDR=${MASTER_ADDR:-$first}
# since 22.05 srun no longer takes this over from sbatch by itself
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK; fi

# What batch.py says. Again, for some four minutes, where not even Python can be read: its file system does not answer.
decision() {
    local said code pause_s
    for pause_s in 5 15 30 60 120 0; do
        said=$(run_python -m slurm.batch "$@")
        code=$?
        if [ "$code" -lt 126 ] && { [ -n "$said" ] || [ "$1" = begin ]; }; then break; fi
        # never there: a wrong slurm.python, not a file system that is away
        if [ "$code" -eq 127 ] && [ -z "${python_ran:-}" ]; then break; fi
        echo "slurm: job $SLURM_JOB_ID: Python ended with exit code $code, and did not say what to do at the $1" >&2
        sleep "$pause_s"
    done
    echo "$said"
    return "$code"
}

# In front of submitit's call of srun: a port for this start. Again, three times in all, if somebody took it in between,
# or if not even rank 0 began: a node that has just come back may refuse the launch.
srun() {
    local assignments pause_s idle_steps=0 made=0
    for pause_s in 5 15 0; do
        assignments=$(decision begin) || return
        python_ran=yes
        eval "$assignments"
        # SLURM counts a job's steps from 0 again at each start, and takes what an older start that comes back says of its
        # step for the younger's: so let that have a number of its own
        for ((; made < idle_steps; made++)); do command srun --nodes=1 --ntasks=1 /bin/true; done
        await_srun "$@"
        if [ -e "$SENET_STATUS_FILE" ] && ! grep -q '"state": "port_taken"' "$SENET_STATUS_FILE"; then return; fi
        sleep "$pause_s"
        look
    done
}

# srun, which waits for a host that is lost until SLURM gives it up (SlurmdTimeout, five minutes as a rule). Where the
# training has failed and a host does not answer, it is not waited for: a job that is requeued by then starts sooner.
await_srun() {
    local pid timer seen=0
    command srun "$@" &
    pid=$!
    while kill -0 "$pid" 2>/dev/null; do
        sleep 10 &
        timer=$!
        wait -n # for the first of the two
        if kill "$timer" 2>/dev/null; then continue; fi
        if grep -q '"state": "failed"' "$SENET_STATUS_FILE" 2>/dev/null; then seen=$((seen + 1)); fi
        if [ "$seen" -ge 3 ] && [ -n "$(lost_hosts)" ]; then kill -KILL "$pid"; fi
    done
    wait "$pid"
}

# Hosts of this job that SLURM does not reach.
lost_hosts() {
    scontrol show node --oneliner "$SLURM_JOB_NODELIST" | grep -E ' State=[^ ]*(\*|NOT_RESPONDING|DOWN)' |
        grep -o '^NodeName=[^ ]*' | cut -d = -f 2
}

# After srun, whose exit code says nothing: end, or go back to the queue once.
finish() {
    local verdict code pause_s
    look
    verdict=$(decision end "$job" "$(lost_hosts)")
    code=$?
    case $verdict in
    requeue)
        for pause_s in 0 5 15 60; do
            sleep "$pause_s"
            look
            if scontrol requeue "$SLURM_JOB_ID"; then
                sleep 600 # until SLURM ends this script, since whatever it returns would end the job
                exit 1
            fi
        done
        echo "slurm: scontrol requeue $SLURM_JOB_ID failed; submit again to go on" >&2
        exit 1
        ;;
    cancel)
        look
        scancel "$SLURM_JOB_ID"
        sleep 600
        exit 1
        ;;
    esac
    exit "$code"
}
