#!/usr/bin/env bash
# Self-consuming loops (CORE, Sections 4.5 and C.5): each generation of models is trained on samples of the previous one.
# Usage: DATA=train TEST=test MODE="fully-synthetic replace" CORE="no yes" OUT=loop-out bash recipes/self-consuming.sh
# In each generation, an encoder and a generator are trained on the same images. With CORE=yes, the encoder is trained by
# G2R and the generator is conditioned on its features; with CORE=no, they are independent. The files of a generation are
# in OUT/MODE-CORE/GENERATION/. Finished steps are skipped: run the same line again after any stop.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/steps.sh"

DATA=${DATA:?set it to the image set to train on}
TEST=${TEST:?set it to a labeled image set to test on}
OUT=${OUT:-loop-out}
# Training images from the second generation on, one or several of
#   fully-synthetic  the samples of the previous generation
#   replace          the real images and those samples (CORE's loop)
#   accumulate       the real images and the samples of all previous generations
#   fresh            unseen real images, a share of 1/ROUNDS, and the samples of the previous generation
MODE=${MODE:-replace}
CORE=${CORE:-no yes}                     # without and with co-evolution, or one of them
ROUNDS=${ROUNDS:-5}                      # number of generations
NUM=${NUM:-}                             # samples per generation (default: the number of real images of the first)
NPROC=${NPROC:-1}
SSL_PRESET=${SSL_PRESET:-simclr-cifar}   # CORE Table 9
G2R_PRESET=${G2R_PRESET:-core-cifar}     # the same with the weak augmentation of Table 12
GEN_PRESET=${GEN_PRESET:-adm-cifar}      # CORE Table 10
SSL_FLAGS=${SSL_FLAGS:-}                 # more options of every train-ssl, e.g. "--steps 2000"
G2R_FLAGS=${G2R_FLAGS:-}                 # more options of the train-ssl on mixtures, e.g. "--augment weak"
GEN_FLAGS=${GEN_FLAGS:-}                 # more options of every train-gen, e.g. "--condition labels" with CORE=no
SAMPLE_FLAGS=${SAMPLE_FLAGS:-}           # more options of every sample
PROBE_FLAGS=${PROBE_FLAGS:-}             # more options of every probe
JUDGE=${JUDGE:-}                         # encoder for measuring (default: one trained here, outside the loop)
JUDGE_FLAGS=${JUDGE_FLAGS:-$SSL_FLAGS}   # more options of the judge's training
REPEAT=${REPEAT:-2}                      # N, how often an epoch of G2R shows real images (CORE Table 12)

generation() {  # generation FOLDER NUMBER CORE, with real=(...) and synthetic=(...): models, samples and scores
  local at=$1 seed=$2 learn=$1/data.json preset=$SSL_PRESET flags=$SSL_FLAGS num_real condition=() rows=()
  local parts=("${real[@]}" "${synthetic[@]}" --round "$2")
  mkdir -p "$at"
  verb inflate "${parts[@]}" --out "$at/data.json"
  num_real=$(num_real "${parts[@]}" --out "$at/data.json")
  if [[ $2 == 1 ]]; then num=${NUM:-$num_real}; fi
  if [[ $3 == yes && -n ${synthetic[*]} ]]; then
    learn=$at/g2r.json preset=$G2R_PRESET flags="$SSL_FLAGS $G2R_FLAGS"
    verb inflate "${parts[@]}" --repeat "$REPEAT" --out "$learn"
  fi
  verb train-ssl --preset "$preset" --seed "$seed" --nproc "$NPROC" --data "$learn" $flags --out "$at/f.safetensors"
  if [[ $3 == yes ]]; then
    condition=(--features "$at/z.safetensors") rows=(--order shuffle)
    if ((num_real)); then rows+=(--rows ":$num_real"); fi  # sample from real images, which come first
    verb extract --nproc "$NPROC" --data "$at/data.json" --encoder "$at/f.safetensors" --out "$at/z.safetensors"
  fi
  verb train-gen --preset "$GEN_PRESET" --seed "$seed" --nproc "$NPROC" --data "$at/data.json" "${condition[@]}" $GEN_FLAGS --out "$at/g.safetensors"
  verb sample --seed "$seed" --nproc "$NPROC" --ckpt "$at/g.safetensors" "${condition[@]}" "${rows[@]}" --num "$num" $SAMPLE_FLAGS --out "$at/samples"
  measure "$at/fd.json" fid --reference "$DATA" --samples "$at/samples" --extractor "$JUDGE" --metrics fd,precision-recall,copies
  measure "$at/probe.json" probe --encoder "$at/f.safetensors" --train "$DATA" --test "$TEST" $PROBE_FLAGS
  verb show "$at/samples" --out "$at/sheet.png"
}

mkdir -p "$OUT"
need_judge "$DATA"
folders=()
for mode in $MODE; do
  for core in $CORE; do
    synthetic=()
    for ((round = 1; round <= ROUNDS; round++)); do
      case $mode-$round in
        fresh-*) real=(--real "$DATA" --share "$round/$ROUNDS") ;;
        fully-synthetic-1 | replace-* | accumulate-*) real=(--real "$DATA") ;;
        fully-synthetic-*) real=() ;;
        *) echo "unknown MODE $mode" >&2; exit 2 ;;
      esac
      folder=$OUT/$mode-$core/$round
      if [[ $round == 1 && $mode != fresh ]]; then folder=$OUT/first-$core; fi  # shared by all loops
      generation "$folder" "$round" "$core"
      folders+=("$mode $core $round $folder")
      if [[ $mode != accumulate ]]; then synthetic=(); fi
      synthetic+=(--synthetic "$folder/samples")
    done
  done
done

python - "${folders[@]}" <<'PY'
import json
import sys
from pathlib import Path

print(f"{'loop':16}{'core':>5}{'generation':>11}{'fd':>10}{'precision':>11}{'recall':>8}{'copy_ratio':>12}{'top1':>8}")
for line in sys.argv[1:]:
    loop, core, generation, folder = line.split(maxsplit=3)
    fd, probe = (json.loads((Path(folder) / f"{name}.json").read_text()) for name in ("fd", "probe"))
    # The distance is corrected for the sample size. A copy ratio well below 1 indicates copies of real images.
    quality = f"{fd['corrected']:10.2f}{fd['precision']:11.3f}{fd['recall']:8.3f}{fd['copy_ratio']:12.2f}"
    print(f"{loop:16}{core:>5}{generation:>11}{quality}{probe['top1']:8.4f}")
PY
