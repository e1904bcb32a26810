# Sourced by the recipes: how they run verbs, keep and print what is measured, and train what several of them need.
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
preset_of() {  # preset_of METHOD: METHOD$PRESET, or one preset for all methods where PRESET begins with a letter
  if [[ $PRESET == -* ]]; then echo "--preset $1$PRESET"; else echo "--preset $PRESET --method $1"; fi
}
train_r2g() {  # train_r2g OPTIONS...: an encoder trained with them, f0, and a generator on its features z0, g
  local size=(${SIZE:+--image-size "$SIZE"})
  verb train-ssl "$@" --nproc "$NPROC" --data "$DATA" "${size[@]}" $SSL_FLAGS --out "$OUT/f0.safetensors"
  verb extract --nproc "$NPROC" --data "$DATA" "${size[@]}" --encoder "$OUT/f0.safetensors" --out "$OUT/z0.safetensors"
  verb train-gen --preset "$GEN_PRESET" --nproc "$NPROC" --data "$DATA" "${size[@]}" --features "$OUT/z0.safetensors" $GEN_FLAGS --out "$OUT/g.safetensors"
}
top1_table() {  # top1_table "METHODS" "COLUMNS" [LABEL MARK]: top1 of OUT/METHOD-[MARK]COLUMN.json below [LABEL]COLUMN
  python - "$OUT" "$1" "$2" "${3:-}" "${4:-}" <<'PY'
import json
import sys
from pathlib import Path

out, methods, columns, (label, mark) = Path(sys.argv[1]), sys.argv[2].split(), sys.argv[3].split(), sys.argv[4:]
read = lambda method, column: json.loads((out / f"{method}-{mark}{column}.json").read_text())["top1"]
print(f"{'probe top1':14}" + "".join(f"{label + column:>12}" for column in columns))
for method in methods:
    print(f"{method:14}" + "".join(f"{read(method, column):12.4f}" for column in columns))
PY
}
