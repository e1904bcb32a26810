#!/usr/bin/env bash
# GenSSL: with probability p, a view is a crop of a generated variant of the image instead of the image. p = 0 is the
# method without generated images.
# Usage: DATA=train TEST=test GENERATOR=diffusers:sd2-1-unclip-small METHODS="simclr byol" SIZE=256 bash recipes/genssl.sh
# Without GENERATOR, a generator is trained here on features of DATA. Finished steps are skipped.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/steps.sh"

DATA=${DATA:?set it to the image set to train on}
TEST=${TEST:?set it to a labeled image set to test on}
OUT=${OUT:-genssl-out}
NPROC=${NPROC:-1}
GENERATOR=${GENERATOR:-}                 # diffusers:FOLDER or diffusers:ID of an image-variation pipeline
VARIANTS=${VARIANTS:-10}                 # per image
PROBABILITIES=${PROBABILITIES:-0 0.5 1}  # p; the paper uses 1 for one of two views
VIEWS=${VIEWS:-real:1g,mixed:1g}         # or mixed:1g,mixed:1g
METHODS=${METHODS:-simclr moco byol simsiam barlow-twins}
PRESET=${PRESET:--genssl}                # presets METHOD$PRESET (Tables 6 and 7), or one preset for all methods
SIZE=${SIZE:-}                           # size in px to sample and read images at (default: unchanged)
SSL_FLAGS=${SSL_FLAGS:-}                 # more options of every train-ssl
FIRST=${FIRST:---preset simclr-cifar}    # options of the encoder that conditions the generator
GEN_PRESET=${GEN_PRESET:-adm-cifar}
GEN_FLAGS=${GEN_FLAGS:-}
SAMPLE_FLAGS=${SAMPLE_FLAGS:-}           # options of sample (default with GENERATOR: as in the paper)
PROBE_FLAGS=${PROBE_FLAGS:-}             # e.g. "--preset genssl", the paper's linear evaluation on ImageNet

mkdir -p "$OUT"
size=(${SIZE:+--image-size "$SIZE"})

if [[ -n $GENERATOR ]]; then
  # The released settings: 10 DDIM steps from pure noise, for a network that predicts v, such as unCLIP.
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
