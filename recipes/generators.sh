#!/usr/bin/env bash
# Compare generator families without a condition, with labels and with features, at equal steps. Prints a table of the
# Fréchet distance, precision and recall in the features of one judge, and draws a contact sheet of each.
# Usage: DATA=train OUT=generators-out FAMILIES="adm icgan" STEPS=1000 bash recipes/generators.sh
# Without FEATURES and JUDGE, two encoders are trained here. Finished steps are skipped: run the same line again after any stop.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/steps.sh"

DATA=${DATA:?set it to a labeled image set to train on}
OUT=${OUT:-generators-out}
NPROC=${NPROC:-1}
FAMILIES=${FAMILIES:-adm dit ldm icgan}
CONDITIONS=${CONDITIONS:-none labels features}
STEPS=${STEPS:-1000}
NUM=${NUM:-1000}                         # samples per generator
FEATURES=${FEATURES:-}                   # feature table of DATA to condition on
JUDGE=${JUDGE:-}                         # another encoder for measuring
SSL_PRESET=${SSL_PRESET:-simclr-cifar}   # of the encoders trained here
SSL_FLAGS=${SSL_FLAGS:-}
PRESET=${PRESET:-tiny}                   # preset of train-gen: PRESET for adm, PRESET-FAMILY for others
GEN_FLAGS=${GEN_FLAGS:-}                 # more options of every train-gen, also for the autoencoder
DIFFUSION_FLAGS=${DIFFUSION_FLAGS:-}     # more options of sample, except for icgan, e.g. "--steps 20"

mkdir -p "$OUT"
preset() { if [[ $1 == adm ]]; then echo "--preset $PRESET"; else echo "--preset $PRESET-$1"; fi; }
encoder() { verb train-ssl --preset "$SSL_PRESET" --seed "$1" --nproc "$NPROC" --data "$DATA" $SSL_FLAGS --out "$2"; }

if [[ -z $JUDGE ]]; then
  JUDGE=$OUT/judge.safetensors
  encoder 1000 "$JUDGE"
fi
if [[ -z $FEATURES ]]; then
  FEATURES=$OUT/z.safetensors
  encoder 0 "$OUT/f.safetensors"
  verb extract --nproc "$NPROC" --data "$DATA" --encoder "$OUT/f.safetensors" --out "$FEATURES"
fi

for family in $FAMILIES; do
  latents=()
  if [[ $family == ldm ]]; then
    verb train-gen $(preset autoencoder) --nproc "$NPROC" --data "$DATA" --steps "$STEPS" $GEN_FLAGS --out "$OUT/autoencoder.safetensors"
    latents=(--first-stage "$OUT/autoencoder.safetensors")
  fi
  for condition in $CONDITIONS; do
    run=$OUT/$family-$condition with=(--condition "$condition") rows=() flags=$DIFFUSION_FLAGS
    if [[ $condition == features ]]; then with+=(--features "$FEATURES") rows=(--features "$FEATURES" --order shuffle); fi
    if [[ $family == icgan ]]; then flags=; fi
    verb train-gen $(preset "$family") --nproc "$NPROC" --data "$DATA" --steps "$STEPS" "${latents[@]}" "${with[@]}" $GEN_FLAGS --out "$run.safetensors"
    verb sample --nproc "$NPROC" --ckpt "$run.safetensors" "${rows[@]}" --num "$NUM" $flags --out "$run"
    measure "$run.json" fid --reference "$DATA" --samples "$run" --extractor "$JUDGE" --metrics fd,precision-recall
    verb show "$run" --out "$run.png"
  done
done

python - "$OUT" "$FAMILIES" "$CONDITIONS" <<'PY'
import json
import sys
from pathlib import Path

out, families, conditions = Path(sys.argv[1]), sys.argv[2].split(), sys.argv[3].split()
print(f"{'fd precision recall':20}" + "".join(f"{condition:>24}" for condition in conditions))
for family in families:
    row = f"{family:20}"
    for condition in conditions:
        found = json.loads((out / f"{family}-{condition}.json").read_text())
        row += f"{found['value']:>10.3f}{found['precision']:>7.3f}{found['recall']:>7.3f}"
    print(row)
PY
