#!/usr/bin/env bash
# MixDiff: one view of every pair real, the other its synthetic twin; beside training on real or synthetic images alone.
# Usage: DATA=train TEST=test GENERATOR=diffusers:sd-image-variations GUIDANCE="2 3 6 8 12" SIZE=256 bash recipes/mixdiff.sh
# Without GENERATOR the twins are of a generator trained here on features of DATA, unguided. What is done is left alone.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/steps.sh"

DATA=${DATA:?the image set to learn from}
TEST=${TEST:?a labeled image set to score on}
OUT=${OUT:-mixdiff-out}
NPROC=${NPROC:-1}
GENERATOR=${GENERATOR:-}                 # diffusers:FOLDER or diffusers:ID of a pipeline that varies images
METHODS=${METHODS:-simclr barlow-twins dino}
PRESET=${PRESET:--mixdiff}               # presets METHOD$PRESET, or one preset for all where it begins with a letter
GLOBALS=${GLOBALS:-2g}                   # the views of training on one kind of images, for all methods but dino
SIZE=${SIZE:-}                           # px of what is sampled and read; empty: as they are
SSL_FLAGS=${SSL_FLAGS:-}                 # more options of every train-ssl
FIRST=${FIRST:---preset simclr-cifar}    # options of the encoder whose features condition the generator
GEN_PRESET=${GEN_PRESET:-adm-cifar}
GEN_FLAGS=${GEN_FLAGS:-}
SAMPLE_FLAGS=${SAMPLE_FLAGS:-}           # of sample; with GENERATOR the paper's unless given
PROBE_FLAGS=${PROBE_FLAGS:-}

mkdir -p "$OUT"
size=(${SIZE:+--image-size "$SIZE"})

if [[ -n $GENERATOR ]]; then
  GUIDANCE=${GUIDANCE:-8}                # MixDiff's main runs; its ablation has 2, 3, 6, 8 and 12
  SAMPLE_FLAGS=${SAMPLE_FLAGS:---steps 50}
  source=(--ckpt "$GENERATOR" --images "$DATA")
else
  GUIDANCE=${GUIDANCE:-1}                # more needs GEN_FLAGS="--condition-dropout 0.1"
  train_r2g $FIRST
  source=(--ckpt "$OUT/g.safetensors" --features "$OUT/z0.safetensors")
fi

learn() {  # learn NAME METHOD OPTIONS...: an encoder and its score
  local encoder=$OUT/$1.safetensors scores=$OUT/$1.json
  verb train-ssl $(preset_of "$2") --nproc "$NPROC" "${@:3}" "${size[@]}" $SSL_FLAGS --out "$encoder"
  measure "$scores" probe --encoder "$encoder" --train "$DATA" --test "$TEST" "${size[@]}" $PROBE_FLAGS
}

for g in $GUIDANCE; do
  verb sample --nproc "$NPROC" "${source[@]}" --guidance "$g" "${size[@]}" $SAMPLE_FLAGS --out "$OUT/synthetic-g$g"
  verb inflate --real "$DATA" --synthetic "$OUT/synthetic-g$g" --out "$OUT/union-g$g.json"
done
for method in $METHODS; do
  one=$GLOBALS pair=real:1g,synthetic:1g
  if [[ $method == dino ]]; then one=2g8l pair=real:1g6l,synthetic:1g2l; fi
  learn "$method-real" "$method" --data "$DATA" --views "$one"
  for g in $GUIDANCE; do
    learn "$method-synthetic-g$g" "$method" --data "$OUT/synthetic-g$g" --views "$one"
    learn "$method-mixdiff-g$g" "$method" --data "$OUT/union-g$g.json" --views "$pair"
  done
done

python - "$OUT" "$METHODS" "$GUIDANCE" <<'PY'
import json
import sys
from pathlib import Path

out, methods, guidances = Path(sys.argv[1]), sys.argv[2].split(), sys.argv[3].split()
read = lambda name: json.loads((out / f"{name}.json").read_text())["top1"]
print(f"{'probe top1':14}{'guidance':>10}{'real':>12}{'synthetic':>12}{'mixdiff':>12}")
for method in methods:
    for g in guidances:
        scores = [read(f"{method}-real"), read(f"{method}-synthetic-g{g}"), read(f"{method}-mixdiff-g{g}")]
        print(f"{method:14}{g:>10}" + "".join(f"{score:12.4f}" for score in scores))
PY
