#!/usr/bin/env bash
# Compare all ways to mix real and synthetic images for all methods, at equal image presentations, in one table.
# Usage: DATA=train TEST=test OUT=mixing-out METHODS="simclr byol" bash recipes/mixing.sh
# Synthetic images are made here (an encoder, a generator on its features, VARIANTS samples per real image) unless
# SYNTHETIC names a set with the groups of DATA. Finished steps are skipped: run the same line again after any stop.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/steps.sh"

DATA=${DATA:?set it to the image set to train on}
TEST=${TEST:?set it to a labeled image set to test on}
OUT=${OUT:-mixing-out}
NPROC=${NPROC:-1}
METHODS=${METHODS:-simclr moco mocov3 byol simsiam barlow-twins dino}
POLICIES=${POLICIES:-real synthetic union sequential g2r mixdiff genssl}
SYNTHETIC=${SYNTHETIC:-}
VARIANTS=${VARIANTS:-2}                  # samples per real image, among which GenSSL chooses
PRESET=${PRESET:--cifar}                 # presets METHOD$PRESET, or one preset for all if it begins with a letter
SSL_FLAGS=${SSL_FLAGS:-}                 # more options of every train-ssl, e.g. "--steps 2000"
GEN_PRESET=${GEN_PRESET:-adm-cifar}
GEN_FLAGS=${GEN_FLAGS:-}
SAMPLE_FLAGS=${SAMPLE_FLAGS:-}

mkdir -p "$OUT"

if [[ -z $SYNTHETIC ]]; then
  SYNTHETIC=$OUT/synthetic
  SIZE="" train_r2g $(preset_of simclr)
  verb sample --nproc "$NPROC" --ckpt "$OUT/g.safetensors" --features "$OUT/z0.safetensors" --per-row "$VARIANTS" $SAMPLE_FLAGS --out "$SYNTHETIC"
fi
verb inflate --real "$DATA" --synthetic "$SYNTHETIC" --out "$OUT/union.json"
verb inflate --real "$DATA" --synthetic "$SYNTHETIC" --order sequential --out "$OUT/sequential.json"
verb inflate --real "$DATA" --synthetic "$SYNTHETIC" --repeat 2 --out "$OUT/g2r.json"

policy() {  # policy NAME METHOD: print the options of train-ssl
  case $1 in
    real) echo "--data $DATA" ;;
    synthetic) echo "--data $SYNTHETIC" ;;
    union) echo "--data $OUT/union.json" ;;             # MixDiff's "Mixing"
    sequential) echo "--data $OUT/sequential.json" ;;   # real first, then synthetic
    g2r) echo "--data $OUT/g2r.json --augment weak" ;;  # CORE: N = 2, Table 12
    mixdiff) if [[ $2 == dino ]]; then echo "--data $OUT/union.json --views real:1g6l,synthetic:1g2l"
      else echo "--data $OUT/union.json --views real:1g,synthetic:1g"; fi ;;
    genssl) echo "--data $OUT/union.json --views mixed:1g,mixed:1g --synthetic-probability 0.5" ;;
    *) echo "unknown policy $1" >&2; return 1 ;;
  esac
}

for method in $METHODS; do
  for name in $POLICIES; do
    options=$(policy "$name" "$method")
    encoder=$OUT/$method-$name.safetensors scores=$OUT/$method-$name.json
    verb train-ssl $(preset_of "$method") --nproc "$NPROC" $options $SSL_FLAGS --out "$encoder"
    measure "$scores" probe --encoder "$encoder" --train "$DATA" --test "$TEST"
  done
done

top1_table "$METHODS" "$POLICIES"
