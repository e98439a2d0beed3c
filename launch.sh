#!/bin/sh
# Train under torchrun on this machine; the same command again resumes.
#
#   ./launch.sh [key=value ...]                        the quickstart (digits)
#   ./launch.sh configs/cifar10.yaml train.epochs=5    YAML files and key=value pairs, as for train_ddp.py
#   NPROC=4 ./launch.sh ...                            ranks; default: one per GPU, or 2 on a CPU, that can share the batch
#   ./launch.sh --help                                 all options
#   ./launch.sh setup [dev | report | export]          only make .venv; with what tests, reports or exports need besides
#   ./launch.sh slurm [...]                            as python slurm/submit.py [...]: submit a job, status, stop
#
# Exit code: 0 finished, 2 bad input, 85 stopped by a signal and resumable, else failed.
# PYTHON=python3.12 chooses the interpreter of a new .venv.
set -eu

# what is closed would be given to the next file that is opened
for stream in 0 1 2; do
    if ! [ -e "/proc/self/fd/$stream" ]; then eval "exec $stream<>/dev/null"; fi
done
unset PYTHONHOME # of another Python, with which that of .venv would not start
unset PYTHONSAFEPATH # networks of one's own may lie in this folder
here=$(dirname -- "$(readlink -f -- "$0")")
venv=$here/.venv

refuse() {
    echo "launch.sh: $1" >&2
    exit 2
}

# Whether .venv is where it was made, and holds what was installed for the Python that is there now.
is_whole() {
    head -n 2 "$venv/bin/torchrun" 2>/dev/null | grep -qF "$venv/bin/python" &&
        "$venv/bin/python" -I -c 'import importlib.util as i; assert i.find_spec("torch")' 2>/dev/null
}

is_up_to_date() { [ "$(cat "$stamp" 2>/dev/null)" = "$version" ] && is_whole; }

# Make .venv once, and again only when pyproject.toml has changed. $1: an extra of pyproject.toml, or nothing.
setup() {
    stamp=$venv/.installed${1:+-$1}
    version=$(cksum <"$here/pyproject.toml")
    if is_up_to_date; then return; fi
    if ! [ -w "$here" ]; then refuse "$venv is not set up, and $here cannot be written; copy it to a folder of your own"; fi
    exec 9>"$here/.venv.lock"
    if command -v flock >/dev/null && ! flock -n 9; then # two first starts at once
        echo "launch.sh: waiting for another start that installs into $venv" >&2
        flock 9 || true
    fi
    if ! is_up_to_date; then
        echo "launch.sh: installing into $venv (once; torch is large)" >&2
        if ! is_whole; then make_venv; fi
        # pip refuses to install for the user into a virtual environment
        PIP_USER=0 "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable "$here${1:+[$1]}" >&2
        echo "$version" | tee "$stamp" >"$venv/.installed"
    fi
    exec 9>&-
}

make_venv() {
    python=${PYTHON:-python3}
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        refuse "'$python' is not Python 3.11 or newer; install it, or name one: PYTHON=python3.12 ./launch.sh"
    fi
    "$python" -m venv --clear "$venv"
}

case ${1:-} in
setup)
    case ${2:-} in
    '' | dev | report | export | benchmarks) setup "${2:-}" ;;
    *) refuse "setup $2: there is dev, report, export and benchmarks" ;;
    esac
    ;;
slurm)
    setup ""
    shift
    exec "$venv/bin/python" "$here/slurm/submit.py" "$@"
    ;;
*)
    setup ""
    exec "$venv/bin/python" -P -m senet.launch "$@"
    ;;
esac
