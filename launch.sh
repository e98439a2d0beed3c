#!/bin/sh
# usage: ./launch.sh [VERB] [...]            ./launch.sh VERB --help tells more
#
# train        ./launch.sh configs/cifar10.yaml train.epochs=5
#              The same command again resumes. The word train may be left out.
# predict      ./launch.sh predict runs/cifar10 image.jpg folder/
# evaluate     ./launch.sh evaluate runs/cifar10
# export       ./launch.sh export runs/cifar10 --format onnx
# report       ./launch.sh report runs/cifar10 runs/other
# compare      ./launch.sh compare runs/rates: options against results, over seeds
# tensorboard  ./launch.sh tensorboard runs/cifar10 runs/other
# drill        ./launch.sh drill configs/cifar10.yaml drill.steps=60
# doctor       ./launch.sh doctor: is this machine fit to train?
# sweep        ./launch.sh sweep optim.lr=0.05,0.1 seed=0..4 sweep.name=rates
# slurm        ./launch.sh slurm configs/cifar10.yaml slurm.partition=gpu
#              ./launch.sh slurm status, ./launch.sh slurm stop runs/cifar10
# follow       ./launch.sh follow runs/cifar10: what it says, to its end
# why          ./launch.sh why runs/cifar10: why it ended, or does not move
# profile      ./launch.sh profile runs/cifar10: what its updates spend time on
# prune        ./launch.sh prune runs/cifar10: which checkpoints can go
# sync         ./launch.sh sync runs/cifar10: to W&B or MLflow what is not there
# data         ./launch.sh data prepare configs/cifar10.yaml; verify, list, prune
# setup        [dev | report | export | timm | wandb | mlflow | benchmarks | gpu]
# help         this page
#
# Without a YAML file: configs/quickstart.yaml. What a verb needs goes into .venv.
# NPROC=4            ranks; else one per GPU, 2 on a CPU, and 1 of evaluate
# RESTARTS=3         train starts again after up to 3 failures in a row (else 0)
# PYTHON=python3.12, SYSTEM_TORCH=1: for a new .venv, with that Python's torch
# Exit code: 0 done, 2 bad input, 85 stopped and resumable, else failed.
# Tab completion: source completion.bash. Read on: README.md, docs/
set -eu

setup_extras="dev report export timm wandb mlflow benchmarks gpu"
verbs="train predict evaluate export report compare tensorboard drill doctor sweep slurm follow why profile prune sync data setup help"

# what is closed would be given to the next file that is opened
for stream in 0 1 2; do
    if ! [ -e "/proc/self/fd/$stream" ]; then eval "exec $stream<>/dev/null"; fi
done
unset PYTHONHOME # of another Python, with which that of .venv would not start
unset PYTHONSAFEPATH # networks of one's own may lie in this folder
here=$(dirname -- "$(readlink -f -- "$0")")
venv=$here/.venv
case $0 in # printed hints begin with it
*/*) export SENET_COMMAND="$0" ;;
*) export SENET_COMMAND="./$0" ;;
esac

refuse() {
    printf '%s\n' "launch.sh: $1" >&2
    exit 2
}

# Whether the word $1 is among those that follow.
is_one_of() {
    word=$1
    shift
    for each in "$@"; do if [ "$each" = "$word" ]; then return; fi; done
    return 1
}

# The head of this file.
help() { sed -n '2,/^set/s/^# \{0,1\}//p' "$here/launch.sh"; }

# Whether .venv is where it was made, and holds what was installed for the Python that is there now.
is_whole() {
    head -n 2 "$venv/bin/pip" 2>/dev/null | grep -qF "$venv/bin/python" &&
        "$venv/bin/python" -I -c 'import importlib.util as i; assert i.find_spec("torch")' 2>/dev/null
}

# Whether .venv holds what pyproject.toml now says of the extra $1, or of no extra.
is_up_to_date() {
    case $1 in
    export | gpu | mlflow | report | timm | wandb) cat "$venv/.installed-$1" "$venv/.installed-dev" ;; # dev holds them
    *) cat "$venv/.installed${1:+-$1}" ;;
    esac 2>/dev/null | grep -qxF "$version" && is_whole
}

# Why .venv is not up to date for the extra $1.
what_is_missing() {
    if is_whole; then
        echo "$venv lacks what ${1:-this version} needs"
    elif [ -e "$venv" ] && ! [ -x "$venv/bin/python" ]; then
        echo "$venv/bin/python cannot be run by you"
    else
        echo "$venv is not set up"
    fi
}

# Make .venv once, and again only when pyproject.toml has changed. $1: an extra of pyproject.toml, or nothing.
setup() {
    version=$(cksum <"$here/pyproject.toml")
    choose_torch
    if is_up_to_date "$1"; then return; fi
    if ! [ -w "$here" ]; then refuse "$(what_is_missing "$1"), and $here cannot be written; copy it to a folder of your own"; fi
    exec 9>"$here/.venv.lock"
    if command -v flock >/dev/null && ! flock -n 9; then # two first starts at once
        echo "launch.sh: waiting for another start that installs into $venv" >&2
        flock 9 || true
    fi
    if ! is_up_to_date "$1"; then
        choose_python
        case $(if is_whole; then echo "$1"; fi)/$site_torch in
        ?*/*) echo "launch.sh: installing what $1 needs into $venv (once)" >&2 ;;
        /?*) printf '%s\n' "launch.sh: installing into $venv (once), beside the site's $(printf '%s' "$site_torch" | head -n 1)" >&2 ;;
        *) echo "launch.sh: installing into $venv (once; torch is large)" >&2 ;;
        esac
        make_venv
        shorten_pythonpath
        # pip refuses to install for the user into a virtual environment
        PIP_USER=0 "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
            ${site_torch:+--constraint "$venv/.site-torch"} --editable "$here${1:+[$1]}" >&2 || pip_failed $?
        echo "$version" | tee "$venv/.installed${1:+-$1}" >"$venv/.installed"
    fi
    exec 9>&-
}

# Whose torch .venv uses, once made: $system_torch is 1 for the site's, 0 for its own.
choose_torch() {
    if grep -q '^include-system-site-packages = true' "$venv/pyvenv.cfg" 2>/dev/null; then made=1; else made=0; fi
    system_torch=${SYSTEM_TORCH:-$made}
    case $system_torch in
    0 | 1) ;;
    *) refuse "SYSTEM_TORCH=$system_torch: use 1 for the site's torch, 0 for one of .venv's own" ;;
    esac
    if [ "$system_torch" != $made ] && is_whole; then
        if [ $made = 1 ]; then whose="uses the site's torch"; else whose="has a torch of its own"; fi
        refuse "SYSTEM_TORCH=$system_torch, but $venv $whose; remove it first: rm -r '$venv'"
    fi
}

# Which Python, in $python, and the site's torch, if it is to be used, in $site_torch.
choose_python() {
    python=${PYTHON:-python3}
    if is_whole; then
        python=$venv/bin/python
    elif ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        refuse "'$python' is not Python 3.11 or newer; install it, or name one: PYTHON=python3.12 ./launch.sh"
    fi
    site_torch=
    if [ "$system_torch" = 1 ]; then
        site_torch=$(PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}" "$python" -P -m senet.site_torch) || exit
    fi
}

# Make .venv unless it is whole, and note the site's torch in it, which pip must keep.
make_venv() {
    if ! is_whole; then "$python" -m venv --clear ${site_torch:+--system-site-packages} "$venv"; fi
    if [ -n "$site_torch" ]; then
        printf '%s\n' "$site_torch" >"$venv/.site-torch"
        # the folders too: a Python that is itself of a virtual environment, or PYTHONPATH, has others
        packages=$("$venv/bin/python" -I -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
        sed -n 's/^# //p' "$venv/.site-torch" >"$packages/site-torch.pth"
    fi
}

# Exit as pip did. If torch was to be installed: a line on the first folder that has less space than one for CUDA takes.
pip_failed() {
    if is_whole; then exit "$1"; fi
    for folder in "7 $venv" "4 ${TMPDIR:-/tmp}"; do
        # nothing where df knows no such folder; LC_ALL: a decimal point
        free=$(df -Pk "${folder#* }" 2>/dev/null | LC_ALL=C awk 'NR == 2 { printf "%.1f", $4 / 1048576 }')
        if [ -n "$free" ] && [ "${free%.*}" -lt "${folder%% *}" ]; then
            printf '%s\n' "launch.sh: ${folder#* } has $free GB free; torch for CUDA takes about ${folder%% *} GB there: docs/install.md" >&2
            break
        fi
    done
    exit "$1"
}

# Take the folders of the site's torch off PYTHONPATH: .venv sees them after its own packages, which may be newer.
shorten_pythonpath() {
    if [ -n "${PYTHONPATH:-}" ] && [ -e "$venv/.site-torch" ]; then
        PYTHONPATH=$(printf '%s' "$PYTHONPATH" | tr : '\n' | sed 's:/*$::' |
            grep -vxF "$(sed -n 's/^# //p' "$venv/.site-torch")" | paste -sd : -)
        export PYTHONPATH
    fi
}

# Replace this shell by a module of this checkout, whatever lies in the folder one stands in. $1: the extra it needs.
run() {
    if [ -z "$wants_help" ]; then setup "$1"; fi
    shift
    shorten_pythonpath
    export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"
    exec "$venv/bin/python" -P -m "$@"
}

# Refuse a word that is no verb, naming what it may have been meant to be.
refuse_word() {
    near=$("${PYTHON:-python3}" -c 'import difflib, sys; print(*difflib.get_close_matches(*sys.argv[1:2], sys.argv[2:], 1))' \
        "$1" $verbs $(cd "$here/configs" && ls) 2>/dev/null) || true
    case $near in *.yaml) near=configs/$near ;; esac
    refuse "'$1' is neither a verb nor a YAML file nor key=value; ${near:+did you mean '$near'? }./launch.sh help shows the verbs"
}

# Add each of these folders that has files of TensorBoard to $runs, under its path as it was typed.
add_runs() {
    for each in "$@"; do
        case $each in *[,:]*) refuse "tensorboard: $each has a comma or a colon in its path, which TensorBoard cuts it at; link to it by another name" ;; esac
        if [ -d "$each/tensorboard" ]; then runs=$runs,${each#/}:$each/tensorboard; fi
    done
}

# TensorBoard on these runs, or on those in these folders; from the first option on, its own arguments.
tensorboard() {
    runs=
    while [ $# -gt 0 ]; do
        run=${1%/}
        case $run in -*) break ;; esac
        before=$runs
        add_runs "$run"
        if [ "$runs" = "$before" ]; then add_runs "$run"/*; fi
        if [ "$runs" = "$before" ]; then refuse "tensorboard: $run/tensorboard: no such folder; name run directories, trained with log.to=[tensorboard], or a folder of them"; fi
        shift
    done
    if [ -z "$runs" ]; then refuse "tensorboard takes one run directory or more: ./launch.sh tensorboard runs/cifar10"; fi
    run "" tensorboard.main --logdir_spec="${runs#,}" "$@"
}

case ${1:-} in
'' | *[=./]*) verb=train ;;
-h | --help) if [ $# -eq 1 ]; then verb=help; else verb=train; fi ;;
-*) verb=train ;;
*)
    if ! is_one_of "$1" $verbs; then refuse_word "$1"; fi
    verb=$1
    shift
    if [ "$verb" = help ] && [ $# -eq 1 ] && is_one_of "$1" $verbs; then # help train
        verb=$1
        set -- --help
    fi
    ;;
esac

wants_help=
if is_one_of --help "$@" || is_one_of -h "$@"; then
    wants_help=yes
    case $verb in setup | tensorboard) verb=help ;; esac
    if [ $verb != help ] && ! is_whole; then # nothing is installed to be told about options
        help
        echo "launch.sh: more help needs .venv: ./launch.sh setup"
        exit
    fi
fi

case $verb in
help)
    if [ -z "$wants_help" ] && [ $# -gt 0 ]; then refuse "help takes one verb, or nothing: ./launch.sh help train"; fi
    help
    ;;
setup)
    if [ $# -gt 1 ]; then refuse "setup takes one extra at a time, found: $*"; fi
    if [ $# -eq 1 ] && ! is_one_of "$1" $setup_extras; then refuse "setup $1: no such extra; there is: $setup_extras"; fi
    setup "${1:-}"
    ;;
train) run "" senet.launch train "$@" ;;
predict) case " $* " in *.safetensors\ * | *.onnx\ *) run export senet.predict "$@" ;; *) run "" senet.predict "$@" ;; esac ;;
evaluate) if [ "${NPROC:-1}" = 1 ] || [ -n "$wants_help" ]; then run "" senet.evaluate "$@"; else run "" senet.launch evaluate "$@"; fi ;;
doctor) if [ -n "$wants_help" ]; then run "" senet.doctor "$@"; else run "" senet.launch doctor "$@"; fi ;;
profile | prune | sync) run "" senet.$verb "$@" ;;
export | report) run $verb senet.$verb "$@" ;;
compare) case " $* " in *\ --page*) run report senet.compare "$@" ;; *) run "" senet.compare "$@" ;; esac ;;
tensorboard) tensorboard "$@" ;;
data | drill | sweep) run "" senet.$verb "$@" ;;
follow | why) run "" slurm.$verb "$@" ;;
slurm)
    if [ -z "$wants_help" ]; then setup ""; fi
    shorten_pythonpath
    exec "$venv/bin/python" "$here/slurm/submit.py" --quickstart "$@"
    ;;
*) refuse_word "$verb" ;;
esac
