# shellcheck shell=bash
# Sourced by the batch script of a job. What is done before and after srun, with SLURM's commands; batch.py decides.
#
# Needs SENET_RUN_DIR, SENET_MAX_REQUEUES and the other variables of batch.py, and a function run_python. The working
# directory is that of the code.

# Of a task of an array 123_4, in all of SLURM's commands: its SLURM_JOB_ID may be that of the whole array.
export SENET_JOB=${SLURM_ARRAY_TASK_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
SENET_JOB=${SENET_JOB:-$SLURM_JOB_ID}
# The log of a cell of a sweep lies in its own run directory, where that of any run does.
if [ -n "${cells:-}" ]; then exec >>"$SENET_RUN_DIR/slurm/${SENET_JOB}_0_log.out" 2>&1; fi
# Each launch of the ranks has its own store prefix, outcome and crash file: none reads those of another.
name_launch() {
    log_before=$(log_size)
    export SENET_LAUNCH=$1
    SENET_BEGAN="$(date +%s.%N) $(cut -d ' ' -f 1 /proc/uptime) $(cat /proc/sys/kernel/random/boot_id)"
    export SENET_BEGAN # as senet.rundir.phases has it
    export SENET_START=$SENET_JOB.${SLURM_RESTART_COUNT:-0}.$SENET_LAUNCH
    export SENET_STATUS_FILE=$SENET_RUN_DIR/slurm/$SENET_START.status.json
    export SENET_CRASH_FILE=$SENET_RUN_DIR/slurm/$SENET_START.crash
}

# Bytes in the log, to which starts and launches append; empty where stderr is no file, or cannot be read.
log_size() { if [ -f /dev/stderr ]; then wc -c </dev/stderr || true; fi; }

# Put SLURM's view of the job into $job; empty if it does not answer for about eight minutes. If SLURM has started the job
# again (this host was cut off and comes back), end: the newer start may be running, with the same job and step numbers.
look() {
    local pause_s
    for pause_s in 1 5 15 30 60 120 240 0; do
        if job=$(SLURM_TIME_FORMAT=%s scontrol show job --oneliner "$SENET_JOB"); then break; fi # times as numbers
        sleep "$pause_s"
    done
    case " $job " in
    "  " | *" Restarts=${SLURM_RESTART_COUNT:-0} "*) ;;
    *)
        echo "slurm: start $SENET_START has been replaced by a newer one, and ends" >&2
        exit 1
        ;;
    esac
}

# The name under which SLURM itself reaches the node of rank 0; each rank resolves it.
choose_master() {
    local first
    first=$(scontrol show hostnames "$nodes" | head -n 1) # needs no controller
    MASTER_ADDR=$(scontrol show node --oneliner "$first" | grep -o ' NodeAddr=[^ ]*' | cut -d = -f 2)
    export MASTER_ADDR=${MASTER_ADDR:-$first}
}

name_launch 0
look # also waits for a controller that does not answer
nodes=$SLURM_JOB_NODELIST # of this launch
idle_steps=0 idle_made=0  # step numbers to skip, and skipped, in this start
choose_master
# since 22.05 srun no longer takes this over from sbatch by itself
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK; fi

# Print the output of batch.py. Repeat for about four minutes if Python itself cannot be read: its file system may not
# answer.
decision() {
    local said code pause_s
    for pause_s in 5 15 30 60 120 0; do
        said=$(run_python -m slurm.batch "$@")
        code=$?
        if [ "$code" -lt 126 ] && { [ -n "$said" ] || [ "$1" = begin ]; }; then break; fi
        # not found and never ran before: a wrong slurm.python, not a file system that does not answer
        if [ "$code" -eq 127 ] && [ -z "${python_ran:-}" ]; then break; fi
        echo "slurm: job $SENET_JOB: Python ended with exit code $code, and did not say what to do at the $1" >&2
        sleep "$pause_s"
    done
    echo "$said"
    return "$code"
}

# Replaces srun in submitit's script. Its words are kept, for launches after a failure.
srun() {
    local word
    words=() on=()
    for word in "$@"; do
        case $word in *%t_log.out) word=$SENET_RUN_DIR/slurm/${SENET_JOB}_%t_log.out ;; esac
        words+=("$word")
    done
    check_nodes || return
    launch
}

# Run srun on a port of its own. At most three tries, if another process took the port, or if not even rank 0 started: a
# node that has just come back may refuse the launch.
launch() {
    local assignments pause_s
    for pause_s in 5 15 0; do
        assignments=$(decision begin) || return
        python_ran=yes
        eval "$assignments"
        # SLURM counts a job's steps from 0 at each start, and would take a message about a step of an older start that
        # comes back as one about this start's: so skip the numbers that older starts have used
        for ((; idle_made < idle_steps; idle_made++)); do command srun --nodes=1 --ntasks=1 /bin/true; done
        if preempted; then return; fi # before there are ranks nobody would hear of it
        log_before=$(log_size)
        await_srun
        if [ -e "$SENET_STATUS_FILE" ] && ! grep -q '"state": "port_taken"' "$SENET_STATUS_FILE"; then return; fi
        if [ -n "$(lost_hosts)" ]; then return; fi
        sleep "$pause_s"
        look
    done
}

# Whether SLURM is taking the nodes for another job.
preempted() { SLURM_TIME_FORMAT=%s scontrol show job --oneliner "$SENET_JOB" | grep -q ' PreemptTime=[0-9]'; }

# Run srun, which would wait for a lost host until SLURM gives it up (SlurmdTimeout, five minutes as a rule). If the
# training has failed or not even begun, and at three looks in a row a host does not answer, end srun and its step: the
# sooner another launch. A preemption that was announced while srun began is told to the ranks again.
await_srun() {
    local pid timer pause_s=5 losses=0 step
    command srun "${on[@]}" "${words[@]}" &
    pid=$!
    while kill -0 "$pid" 2>/dev/null; do
        sleep "$pause_s" &
        timer=$!
        wait -n "$pid" "$timer"
        if kill "$timer" 2>/dev/null; then
            wait "$timer"
            continue
        fi
        if [ "$pause_s" = 5 ] && preempted; then scancel --signal=USR2 "$SENET_JOB"; fi
        pause_s=10
        if [ -e "$SENET_STATUS_FILE" ] && ! has_failed; then continue; fi
        if [ -n "$(lost_hosts)" ]; then losses=$((losses + 1)); else losses=0; fi
        if [ "$losses" -ge 3 ]; then
            kill -KILL "$pid"
            for step in $(squeue --noheader --steps --jobs="$SENET_JOB" --format=%i | grep -E '\.[0-9]+$'); do
                scancel "$step" # on the hosts that answer it would go on
            done
        fi
    done
    wait "$pid"
}

# What srun has said in the log, since it was called last, of the first task that it heard had failed: SLURM may have
# ended rank 0 before it could tell. What follows after the end of the step or of a node names its victims. The line may
# stand behind one that rank 0 did not end. Only the last 16 MiB are read.
first_ended() {
    local size tells='srun: error: \S+: tasks? [0-9].*|srun: Job step aborted|\*\*\* STEP \S+ ON|srun: error: Node failure on'
    size=$(log_size)
    if [ -z "$log_before" ] || [ -z "$size" ]; then return; fi
    if ((size - log_before > 1 << 24)); then log_before=$((size - (1 << 24))); fi
    tail -c "+$((log_before + 1))" /dev/stderr | grep -a -o -m 1 -E "$tells" | head -n 1
}

# Whether a rank has told of a failure; see senet.rundir.mirror.
has_failed() { grep -q '"state": "failed"' "$SENET_STATUS_FILE" "${SENET_STATUS_FILE%.json}.end.json" 2>/dev/null; }

# Hosts of this launch that SLURM does not reach, or has taken from the job.
lost_hosts() {
    local kept
    scontrol show node --oneliner "$nodes" | grep -E ' State=([^ ]*\*|([^ ]*\+)?(DOWN|NOT_RESPONDING)([+ ]|$))' |
        grep -o '^NodeName=[^ ]*' | cut -d = -f 2
    kept=$(echo "$job" | grep -o ' NodeList=[^ ]*' | cut -d = -f 2)
    if [ -n "$kept" ]; then
        scontrol show hostnames "$nodes" | grep -vxF -e "$(scontrol show hostnames "$kept")"
    fi
}

# The doctor on all ranks, by the function check_ranks of a job with slurm.check.
run_check() {
    local names file=$SENET_RUN_DIR/slurm/$SENET_JOB.${SLURM_RESTART_COUNT:-0}.check
    names=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
    MASTER_PORT=$(run_python -m slurm.check port) SENET_HOSTS=${names//$'\n'/,} \
        check_ranks --out "$file.json" >"$file.log" 2>&1
}

# Check the nodes, and let Python judge. Fails if the job must not start on them; finish reads why. A check that fails
# itself, or is late, stops nothing.
check_nodes() {
    local code before
    if ! declare -F check_ranks >/dev/null; then return; fi
    run_check
    code=$?
    look
    before=$(echo "$job" | grep -o ' ExcNodeList=[^( ]*' | cut -d = -f 2)
    eval "$(run_python -m slurm.check judge "$code" "$(scontrol show hostnames "$SLURM_JOB_NODELIST")" "$job" \
        "$(sinfo --noheader --partition="$SLURM_JOB_PARTITION" --format=%F)" "${before:+$(scontrol show hostnames "$before")}")"
    if [ -n "${excluded:-}" ]; then trap 'told_to_end=yes' TERM; fi # for exclude_nodes
    [ -z "${unfit:-}" ]
}

# Keep the job off the nodes that check_nodes has named. SLURM changes the list of a job that waits only, which it does
# once it is requeued; then it also tells this script and its children to end.
exclude_nodes() {
    local pause_s
    if [ -z "${excluded:-}" ]; then return; fi
    for pause_s in 1 5 15 60 0; do # SIGKILL comes after the site's KillWait
        if (trap '' TERM && exec scontrol update JobId="$SENET_JOB" ExcNodeList="$excluded"); then break; fi
        echo "slurm: job $SENET_JOB may start on $excluded again" >&2
        sleep "$pause_s"
    done
    if [ -n "${told_to_end:-}" ]; then exit 1; fi
}

# After srun, whose exit code does not tell the outcome: launch the ranks again, end the job, or requeue it once.
finish() {
    local verdict code pause_s
    while true; do
        look
        verdict=$(decision end "$job" "$(lost_hosts)" "$(scontrol show hostnames "$nodes")" "$(first_ended)")
        code=$?
        case $verdict in
        relaunch*)
            # shellcheck disable=SC2086
            relaunch ${verdict#relaunch}
            ;;
        *) break ;;
        esac
    done
    case $verdict in
    requeue)
        for pause_s in 0 5 15 60; do
            sleep "$pause_s"
            look
            if (trap '' TERM && exec scontrol requeue "$SENET_JOB"); then # its answer is needed
                exclude_nodes
                exec sleep infinity # until SLURM ends it: to return would end the job. No child, which could outlive it
            fi
        done
        run_python -m slurm.batch tell "scontrol requeue failed; submit again to go on"
        echo "slurm: scontrol requeue $SENET_JOB failed; submit again to go on" >&2
        exit 1
        ;;
    cancel)
        look
        scancel "$SENET_JOB"
        exec sleep infinity
        ;;
    esac
    exit "$code"
}

# Launch the ranks again; on these hosts, if some are named. Those of a step that waits for a lost host still count as
# taken: hence --overlap.
relaunch() {
    name_launch $((SENET_LAUNCH + 1))
    echo "slurm: job $SENET_JOB launches its ranks again ($SENET_START)${1:+ on $*}" >&2
    if [ $# -gt 0 ]; then
        nodes=$(IFS=, && echo "$*")
        on=(--overlap "--nodes=$#" "--ntasks=$(($# * SLURM_NTASKS_PER_NODE))" "--nodelist=$nodes")
        unset SLURM_GPUS # of all hosts, from sbatch --gpus; without it a step has all GPUs of its hosts
        choose_master
    fi
    launch
}
