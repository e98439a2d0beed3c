#!/usr/bin/env bash
# Train under torchrun on this machine; the same command again resumes.
#
#   ./launch.sh [key=value ...]                        the quickstart (digits)
#   ./launch.sh configs/cifar10.yaml train.epochs=5    YAML files and key=value pairs, as for train_ddp.py
#   NPROC=4 ./launch.sh ...                            ranks; default: one per GPU, or 2 on a CPU
#   ./launch.sh --help                                 all options
#   ./launch.sh setup [dev | report | export]          only make .venv; with what tests, reports or exports need besides
#   ./launch.sh slurm [...]                            as python slurm/submit.py [...]: submit a job, status, stop
#
# Exit code: 0 finished, 2 bad input, 85 stopped by a signal and resumable, else failed.
# PYTHON=python3.12 chooses the interpreter of a new .venv.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
venv=$here/.venv

# Make .venv once, and again only when pyproject.toml has changed. $1: an extra of pyproject.toml, or nothing.
setup() {
    local stamp=$venv/.installed${1:+-$1} version
    version=$(cksum <"$here/pyproject.toml")
    if [ "$(cat "$stamp" 2>/dev/null)" = "$version" ]; then return; fi
    local python=${PYTHON:-python3}
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        echo "launch.sh: '$python' is not Python 3.11 or newer; install it, or name one: PYTHON=python3.12 ./launch.sh" >&2
        exit 2
    fi
    exec 9>"$here/.venv.lock"
    if command -v flock >/dev/null; then flock 9; fi # two first starts at once: the second waits
    if [ "$(cat "$stamp" 2>/dev/null)" = "$version" ]; then
        exec 9>&- # or torchrun would inherit the lock
        return
    fi
    echo "launch.sh: installing into $venv (once; torch is large)" >&2
    if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then "$python" -m venv --clear "$venv"; fi
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable "$here${1:+[$1]}" >&2
    echo "$version" | tee "$stamp" >"$venv/.installed"
    exec 9>&-
}

default_ranks() {
    local gpus
    if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
        gpus=$(awk -F, '{ print NF }' <<<"$CUDA_VISIBLE_DEVICES")
    else
        gpus=$(nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU ' || true)
    fi
    if [ "${gpus:-0}" -gt 0 ]; then echo "$gpus"; else echo 2; fi
}

# Hand the first signal to torchrun; a second would make it leave its workers in the middle of their save.
forward() {
    if [ -z "$signalled" ]; then
        signalled=$1
        if [ -n "$child" ]; then kill -s "$1" "$child" 2>/dev/null || true; fi
    fi
}

if [ "${1:-}" = setup ]; then
    setup "${2:-}"
    exit
fi
setup ""
if [ "${1:-}" = slurm ]; then
    shift
    exec "$venv/bin/python" "$here/slurm/submit.py" "$@"
fi
if ! [[ " $* " =~ \.ya?ml\  ]]; then set -- "$here/configs/quickstart.yaml" "$@"; fi
ranks=${NPROC:-$(default_ranks)}
if ! [[ $ranks =~ ^[1-9][0-9]*$ ]]; then
    echo "launch.sh: NPROC=$ranks is not a number of ranks; use 1 or more" >&2
    exit 2
fi
for argument in "$@"; do
    case $argument in -h | --help) exec "$venv/bin/python" -m senet.config --help ;; esac
done
WORLD_SIZE=$ranks "$venv/bin/python" -m senet.config "$@" >/dev/null

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # the trainer sets train.threads_per_rank itself
# Fewer page faults: freed activations stay with the process (GNU malloc)
export MALLOC_MMAP_THRESHOLD_=${MALLOC_MMAP_THRESHOLD_:-1073741824}
export MALLOC_TRIM_THRESHOLD_=${MALLOC_TRIM_THRESHOLD_:-4294967296}
SENET_STATUS_FILE=$(mktemp)
export SENET_STATUS_FILE
trap 'rm -f "$SENET_STATUS_FILE"' EXIT

signalled=
child=
for name in TERM INT HUP QUIT USR2; do
    # shellcheck disable=SC2064 # the name now, not when the signal comes
    trap "forward $name" "$name"
done
set -m # a process group of its own: Ctrl-C reaches this script alone
"$venv/bin/torchrun" --standalone --nproc_per_node="$ranks" \
    --signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR2 "$here/train_ddp.py" "$@" &
child=$!
set +m
if [ -n "$signalled" ]; then kill -s "$signalled" "$child" 2>/dev/null || true; fi
while kill -0 "$child" 2>/dev/null; do wait "$child" || true; done

# torchrun says 1 for whatever a rank said; the truth is what the trainer wrote
state=$(sed -n 's/^ *"state": "\([a-z]*\)".*/\1/p' "$SENET_STATUS_FILE")
case $state in
finished) exit 0 ;;
refused) exit 2 ;;
stopped) exit 85 ;;
*)
    if [ -n "$signalled" ] && [ -z "$state" ]; then exit 85; fi # before the ranks had begun: nothing is lost
    echo "launch.sh: the run failed (its last state: ${state:-none})" >&2
    exit 1
    ;;
esac
