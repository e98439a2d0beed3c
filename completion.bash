# Tab completion of launch.sh for bash: source this file, or have ~/.bashrc do it.

_launch_here=$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")

# key= or key=value of each option. Python is asked once, and again when the options have changed.
_launch_options() {
    local kept=$_launch_here/.venv/.completions words
    if [[ $kept -nt $_launch_here/senet/config/options.py ]]; then
        cat "$kept"
    elif words=$(PYTHONPATH=$_launch_here "$_launch_here/.venv/bin/python" -P -m senet.config --completions 2>/dev/null); then
        printf '%s\n' "$words" | tee "$kept" 2>/dev/null
    fi
}

# The same, as far as is asked for by now: group. before the dot, group.name= before the value.
_launch_options_for() {
    case $1 in
    *=*) _launch_options ;;
    *.*) _launch_options | sed 's/=.*/=/' ;;
    *) _launch_options | sed 's/=.*/=/; s/\..*/./' ;;
    esac | sort -u
}

_launch_files_for() { # YAML files from here on, and the recipes, which are found from any folder
    compgen -G "$1*.y*ml"
    (cd "$_launch_here" && compgen -G "configs/*.yaml"; compgen -G "configs/slurm/*.yaml")
}

_launch_runs_for() { # run directories from here on, and those in runs/
    local each
    for each in "$1"*/metrics.jsonl "${1%/}"/metrics.jsonl runs/*/metrics.jsonl; do
        if [[ -e $each ]]; then printf '%s\n' "${each%/metrics.jsonl}"; fi
    done
}

_launch_sweeps() { # the names of those in runs/
    compgen -G "runs/*/sweep.json" | sed 's:^runs/::; s:/sweep.json$::'
}

_launch_list() { # the words of a list in launch.sh
    sed -n "s/^$1=\"\(.*\)\"\$/\1/p" "$_launch_here/launch.sh"
}

_launch() {
    local line=${COMP_LINE:0:COMP_POINT} typed=() words verbs verb cur each rest
    cur=${line##*[[:blank:]]}
    read -ra typed <<<"${line%"$cur"}"
    verbs=$(_launch_list verbs)
    verb=${typed[1]-}
    if [[ " $verbs " != *" $verb "* ]]; then verb=train; fi
    words=$(
        case $verb:${typed[${#typed[@]} - 1]} in
        train:*--help | slurm:*--help) _launch_options | sed -n 's/\..*//p' && echo all ;;
        slurm:status | slurm:stop) _launch_runs_for "$cur"; _launch_sweeps ;;
        slurm:clear) _launch_runs_for "$cur" ;;
        sweep:status | sweep:stop) _launch_sweeps ;;
        data:data) printf '%s\n' prepare verify list prune ;;
        data:* | train:* | drill:* | doctor:* | sweep:* | slurm:*) _launch_options_for "$cur" && _launch_files_for "$cur" ;;
        setup:*) printf '%s\n' $(_launch_list setup_extras) ;;
        help:help) printf '%s\n' $verbs ;;
        help:*) ;;
        predict:"$verb" | evaluate:"$verb" | export:"$verb" | report:* | tensorboard:* | profile:*) _launch_runs_for "$cur" ;;
        compare:* | follow:* | why:* | prune:* | sync:*) _launch_runs_for "$cur"; _launch_sweeps ;;
        esac
        if [[ $cur == -* ]]; then echo --help; fi
        if [[ $verb:$cur == doctor:-* ]]; then printf '%s\n' --json --out --max-seconds; fi
        if [[ $verb:$cur == compare:-* ]]; then printf '%s\n' --against --csv --json --page --score; fi
        if [[ $verb:$cur == prune:-* ]]; then printf '%s\n' --delete --unfinished; fi
        if [[ $verb:${typed[2]-}:$cur == data:list:-* ]]; then echo --json; fi
        if [[ $verb:${typed[2]-}:$cur == data:prune:-* ]]; then echo --delete; fi
        if [[ $verb:$cur == sync:-* ]]; then echo --to; fi
        if ((${#typed[@]} == 1)); then printf '%s\n' ${verbs}; fi
        if [[ " ${typed[*]} " == *" drill "* ]]; then printf '%s\n' drill.steps= drill.ranks=; fi
        if [[ $verb == sweep ]]; then printf '%s\n' sweep.name= sweep.parallel= sweep.random= sweep.seed=; fi
        if [[ $verb:${#typed[@]} == sweep:2 ]]; then printf '%s\n' status stop; fi
        if [[ $verb:${#typed[@]} == slurm:2 ]]; then printf '%s\n' status stop clear doctor drill sweep --dry-run; fi
    )
    COMPREPLY=()
    while read -r each; do
        # bash replaces only what follows the last = or :; where nothing does, it offers the names of files
        rest=${each#"${cur%"${cur##*[=:]}"}"}
        if [[ $each == "$cur"* && $rest ]]; then COMPREPLY+=("$rest"); fi
    done < <(sort -u <<<"$words")
    if [[ ${COMPREPLY[0]-} == *[=.] ]]; then compopt -o nospace 2>/dev/null; fi
}

complete -o default -F _launch launch.sh
