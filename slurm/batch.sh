# shellcheck shell=bash
# Sourced by the batch script of a job. What happens around srun, with SLURM's own commands; the decisions are in batch.py.
#
# Before: SENET_RUN_DIR, SENET_MAX_REQUEUES, and a function run_python. The working directory is that of the code.

export SENET_START=$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}
export SENET_STATUS_FILE=$SENET_RUN_DIR/slurm/$SENET_START.status.json

# SLURM's view of the job, into $job; empty where it does not answer for some eight minutes. A start that was cut off with
# its host and comes back ends here: the younger one, which may run by then, has the same numbers of job and step.
look() {
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
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_ADDR=$(scontrol show node --oneliner "$MASTER_ADDR" | grep -o ' NodeAddr=[^ ]*' | cut -d = -f 2)
export MASTER_ADDR
# since 22.05 srun no longer takes this over from sbatch by itself
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK; fi

# In front of submitit's call of srun: a port for this start. Again, three times in all, if somebody took it in between,
# or if not even rank 0 began: a node that has just come back may refuse the launch.
srun() {
    local assignments
    for pause_s in 5 15 0; do
        assignments=$(run_python -m slurm.batch begin) || return
        eval "$assignments"
        command srun "$@"
        if [ -e "$SENET_STATUS_FILE" ] && ! grep -q '"state": "port_taken"' "$SENET_STATUS_FILE"; then return; fi
        sleep "$pause_s"
        look
    done
}

# After srun, whose exit code says nothing: end, or go back to the queue once.
finish() {
    local verdict code
    look
    verdict=$(run_python -m slurm.batch end "$job")
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
