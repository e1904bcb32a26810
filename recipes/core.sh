#!/usr/bin/env bash
# CORE: an encoder and a generator improve each other for ROUNDS rounds (R2G, then G2R).
# Usage: DATA=train TEST=test OUT=core-out ROUNDS=2 bash recipes/core.sh
# Every step is a command line that you could type. Finished steps are skipped: run the same line again after any stop.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/steps.sh"

DATA=${DATA:?set it to the image set to train on}
TEST=${TEST:?set it to a labeled image set to test on}
REFERENCE=${REFERENCE:-$DATA}            # image set that samples are compared with
OUT=${OUT:-core-out}
ROUNDS=${ROUNDS:-2}
NPROC=${NPROC:-1}
SSL_PRESET=${SSL_PRESET:-simclr-cifar}   # CORE Table 9
G2R_PRESET=${G2R_PRESET:-core-cifar}     # the same with the weak augmentation of Table 12
GEN_PRESET=${GEN_PRESET:-adm-cifar}      # CORE Table 10
SSL_FLAGS=${SSL_FLAGS:-}                 # more options of every train-ssl, e.g. "--steps 2000"
G2R_FLAGS=${G2R_FLAGS:-}                 # more options of the train-ssl on mixtures, e.g. "--augment weak"
GEN_FLAGS=${GEN_FLAGS:-}                 # more options of every train-gen
SAMPLE_FLAGS=${SAMPLE_FLAGS:-}           # more options of every sample
PROBE_FLAGS=${PROBE_FLAGS:-}             # more options of every probe
JUDGE=${JUDGE:-}                         # encoder for measuring (default: one trained here, outside the loop)
JUDGE_FLAGS=${JUDGE_FLAGS:-$SSL_FLAGS}   # more options of the judge's training
PER_ROW=${PER_ROW:-2}                    # samples per real image; CORE samples CIFAR-10 twice
REPEAT=${REPEAT:-2}                      # N, how often an epoch shows real images (CORE Table 12)
PSL=${PSL:-}                             # steps of pseudo-supervised learning before each G2R, e.g. 10000 (default: none)
SYNTHETIC=${SYNTHETIC:-replace}          # replace: samples of the latest round; accumulate: of all rounds

mkdir -p "$OUT"
need_judge "$DATA"
verb train-ssl --preset "$SSL_PRESET" --nproc "$NPROC" --data "$DATA" $SSL_FLAGS --out "$OUT/f0.safetensors"
measure "$OUT/probe0.json" probe --encoder "$OUT/f0.safetensors" --train "$DATA" --test "$TEST" $PROBE_FLAGS

sets=()
for ((round = 1; round <= ROUNDS; round++)); do
  before=$((round - 1))
  z=$OUT/z$before.safetensors g=$OUT/g$round.safetensors samples=$OUT/samples$round mix=$OUT/mix$round.json
  verb extract --nproc "$NPROC" --data "$DATA" --encoder "$OUT/f$before.safetensors" --out "$z"
  verb train-gen --preset "$GEN_PRESET" --nproc "$NPROC" --data "$DATA" --features "$z" $GEN_FLAGS --out "$g"
  verb sample --nproc "$NPROC" --ckpt "$g" --features "$z" --per-row "$PER_ROW" --seed "$round" $SAMPLE_FLAGS --out "$samples"
  measure "$OUT/fd$round.json" fid --reference "$REFERENCE" --samples "$samples" --extractor "$JUDGE" --metrics fd,precision-recall,copies

  if [[ $SYNTHETIC == replace ]]; then sets=(); fi
  sets+=(--synthetic "$samples")
  verb inflate --real "$DATA" "${sets[@]}" --repeat "$REPEAT" --out "$mix"
  learn=()
  if [[ -n $PSL ]]; then  # PSL first, within the same total number of steps
    total=$(corecli train-ssl --dry-run --json --preset "$G2R_PRESET" --data "$mix" $SSL_FLAGS $G2R_FLAGS --out x |
      python -c 'import json, sys; print(json.load(sys.stdin)["total_steps"])')
    learn=(--features "$z" --stage "psl:$PSL" --stage "simclr:$((total - PSL))")
  fi
  verb train-ssl --preset "$G2R_PRESET" --nproc "$NPROC" --data "$mix" $SSL_FLAGS $G2R_FLAGS "${learn[@]}" --out "$OUT/f$round.safetensors"
  measure "$OUT/probe$round.json" probe --encoder "$OUT/f$round.safetensors" --train "$DATA" --test "$TEST" $PROBE_FLAGS
  verb show "$samples" --real "$DATA" --out "$OUT/sheet$round.png"
done

python - "$OUT" "$ROUNDS" <<'PY'
import json
import sys
from pathlib import Path

out, rounds = Path(sys.argv[1]), int(sys.argv[2])
read = lambda name: json.loads((out / name).read_text())
print(f"{'round':>5}{'fd':>12}{'top1':>10}")
for number in range(rounds + 1):
    fd = f"{read(f'fd{number}.json')['value']:12.3f}" if number else f"{'-':>12}"
    print(f"{number:5}{fd}{read(f'probe{number}.json')['top1']:10.4f}")
PY
