# Sourced by the recipes: functions that run verbs, store and print results, and train shared models.
# shellcheck shell=bash
verb() { echo "+ corecli $*" >&2; corecli "$@" >&2; }
measure() {  # measure FILE VERB...: store the JSON result of a verb in FILE
  [[ -s $1 ]] && return
  echo "+ corecli ${*:2}" >&2
  corecli "${@:2}" --json >"$1.tmp" && mv "$1.tmp" "$1"
}
need_judge() {  # need_judge SET: unless JUDGE names an encoder, train one on SET with another seed
  [[ -n $JUDGE ]] && return
  JUDGE=$OUT/judge.safetensors  # it conditions no generator; its distance is called fd[judge], not FID
  verb train-ssl --preset "$SSL_PRESET" --seed 1000 --nproc "$NPROC" --data "$1" $JUDGE_FLAGS --out "$JUDGE"
}
num_real() {  # num_real OPTIONS...: print the number of real images in a mixture
  corecli inflate "$@" --json --quiet | python -c 'import json, sys; print(json.load(sys.stdin)["real"])'
}
preset_of() {  # preset_of METHOD: METHOD$PRESET, or one preset for all methods if PRESET begins with a letter
  if [[ $PRESET == -* ]]; then echo "--preset $1$PRESET"; else echo "--preset $PRESET --method $1"; fi
}
train_r2g() {  # train_r2g OPTIONS...: train an encoder f0, extract its features z0, and train a generator g on them
  local size=(${SIZE:+--image-size "$SIZE"})
  verb train-ssl "$@" --nproc "$NPROC" --data "$DATA" "${size[@]}" $SSL_FLAGS --out "$OUT/f0.safetensors"
  verb extract --nproc "$NPROC" --data "$DATA" "${size[@]}" --encoder "$OUT/f0.safetensors" --out "$OUT/z0.safetensors"
  verb train-gen --preset "$GEN_PRESET" --nproc "$NPROC" --data "$DATA" "${size[@]}" --features "$OUT/z0.safetensors" $GEN_FLAGS --out "$OUT/g.safetensors"
}
top1_table() {  # top1_table "METHODS" "COLUMNS" [LABEL MARK]: print top1 of OUT/METHOD-[MARK]COLUMN.json under [LABEL]COLUMN
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
