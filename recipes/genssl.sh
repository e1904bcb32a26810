#!/usr/bin/env bash
# GenSSL: with probability p a view starts from one of an image's generated variants, else from the image; p = 0 is
# the method without them.
# Usage: DATA=train TEST=test GENERATOR=diffusers:sd2-1-unclip-small METHODS="simclr byol" SIZE=256 bash recipes/genssl.sh
# Without GENERATOR the variants are of a generator trained here on features of DATA. What is done is left alone.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/steps.sh"

DATA=${DATA:?the image set to learn from}
TEST=${TEST:?a labeled image set to score on}
OUT=${OUT:-genssl-out}
NPROC=${NPROC:-1}
GENERATOR=${GENERATOR:-}                 # diffusers:FOLDER or diffusers:ID of a pipeline that varies images
VARIANTS=${VARIANTS:-10}                 # of every image
PROBABILITIES=${PROBABILITIES:-0 0.5 1}  # p; the paper's results are of 1 on one of two views
VIEWS=${VIEWS:-real:1g,mixed:1g}         # or mixed:1g,mixed:1g
METHODS=${METHODS:-simclr moco byol simsiam barlow-twins}
PRESET=${PRESET:--genssl}                # presets METHOD$PRESET (Tables 6 and 7), or one preset for all
SIZE=${SIZE:-}                           # px of what is sampled and read; empty: as they are
SSL_FLAGS=${SSL_FLAGS:-}                 # more options of every train-ssl
FIRST=${FIRST:---preset simclr-cifar}    # options of the encoder whose features condition the generator
GEN_PRESET=${GEN_PRESET:-adm-cifar}
GEN_FLAGS=${GEN_FLAGS:-}
SAMPLE_FLAGS=${SAMPLE_FLAGS:-}           # of sample; with GENERATOR the paper's unless given
PROBE_FLAGS=${PROBE_FLAGS:-}             # e.g. "--preset genssl", its linear evaluation on ImageNet

mkdir -p "$OUT"
size=(${SIZE:+--image-size "$SIZE"})

if [[ -n $GENERATOR ]]; then
  # Its released settings: 10 steps of DDIM from pure noise, which takes a network that predicts v, as unCLIP's does.
  SAMPLE_FLAGS=${SAMPLE_FLAGS:---sampler ddim --steps 10 --set timestep_spacing=trailing --set rescale_betas_zero_snr=true}
  source=(--ckpt "$GENERATOR" --images "$DATA")
else
  train_r2g $FIRST
  source=(--ckpt "$OUT/g.safetensors" --features "$OUT/z0.safetensors")
fi
verb sample --nproc "$NPROC" "${source[@]}" --per-row "$VARIANTS" "${size[@]}" $SAMPLE_FLAGS --out "$OUT/synthetic"
verb inflate --real "$DATA" --synthetic "$OUT/synthetic" --out "$OUT/union.json"

for method in $METHODS; do
  for p in $PROBABILITIES; do
    encoder=$OUT/$method-p$p.safetensors scores=$OUT/$method-p$p.json
    verb train-ssl $(preset_of "$method") --nproc "$NPROC" --data "$OUT/union.json" --views "$VIEWS" \
      --synthetic-probability "$p" "${size[@]}" $SSL_FLAGS --out "$encoder"
    measure "$scores" probe --encoder "$encoder" --train "$DATA" --test "$TEST" "${size[@]}" $PROBE_FLAGS
  done
done

top1_table "$METHODS" "$PROBABILITIES" "p = " p
