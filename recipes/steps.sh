# Sourced by the recipes: how they run verbs, keep what is measured and train a judge.
# shellcheck shell=bash
verb() { echo "+ corecli $*" >&2; corecli "$@" >&2; }
measure() {  # measure FILE VERB...: keep the JSON result of a measuring verb
  [[ -s $1 ]] && return
  echo "+ corecli ${*:2}" >&2
  corecli "${@:2}" --json >"$1.tmp" && mv "$1.tmp" "$1"
}
need_judge() {  # need_judge SET: unless JUDGE names an encoder, learn one from real images alone, with another seed
  [[ -n $JUDGE ]] && return
  JUDGE=$OUT/judge.safetensors  # it conditions nothing, and its distance is fd[judge], never FID
  verb train-ssl --preset "$SSL_PRESET" --seed 1000 --nproc "$NPROC" --data "$1" $JUDGE_FLAGS --out "$JUDGE"
}
num_real() {  # num_real OPTIONS...: how many real images a mixture of these options shows
  corecli inflate "$@" --json --quiet | python -c 'import json, sys; print(json.load(sys.stdin)["real"])'
}
