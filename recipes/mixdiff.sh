#!/usr/bin/env bash
# MixDiff: one view of a pair is real, the other one synthetic; compared with training on real or synthetic images only.
# Usage: DATA=train TEST=test GENERATOR=diffusers:sd-image-variations GUIDANCE="2 3 6 8 12" SIZE=256 bash recipes/mixdiff.sh
# Without GENERATOR, a generator is trained here on features of DATA and sampled unguided. Finished steps are skipped.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/steps.sh"

DATA=${DATA:?set it to the image set to train on}
TEST=${TEST:?set it to a labeled image set to test on}
OUT=${OUT:-mixdiff-out}
NPROC=${NPROC:-1}
GENERATOR=${GENERATOR:-}                 # diffusers:FOLDER or diffusers:ID of an image-variation pipeline
METHODS=${METHODS:-simclr barlow-twins dino}
PRESET=${PRESET:--mixdiff}               # presets METHOD$PRESET, or one preset for all if it begins with a letter
GLOBALS=${GLOBALS:-2g}                   # views for training on one kind of images, except for dino
SIZE=${SIZE:-}                           # size in px to sample and read images at (default: unchanged)
SSL_FLAGS=${SSL_FLAGS:-}                 # more options of every train-ssl
FIRST=${FIRST:---preset simclr-cifar}    # options of the encoder that conditions the generator
GEN_PRESET=${GEN_PRESET:-adm-cifar}
GEN_FLAGS=${GEN_FLAGS:-}
SAMPLE_FLAGS=${SAMPLE_FLAGS:-}           # options of sample (default with GENERATOR: as in the paper)
PROBE_FLAGS=${PROBE_FLAGS:-}

mkdir -p "$OUT"
size=(${SIZE:+--image-size "$SIZE"})

if [[ -n $GENERATOR ]]; then
  GUIDANCE=${GUIDANCE:-8}                # main runs of MixDiff; its ablation uses 2, 3, 6, 8 and 12
  SAMPLE_FLAGS=${SAMPLE_FLAGS:---steps 50}
  source=(--ckpt "$GENERATOR" --images "$DATA")
else
  GUIDANCE=${GUIDANCE:-1}                # higher values need GEN_FLAGS="--condition-dropout 0.1"
  train_r2g $FIRST
  source=(--ckpt "$OUT/g.safetensors" --features "$OUT/z0.safetensors")
fi

learn() {  # learn NAME METHOD OPTIONS...: train an encoder and score it
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
