#!/usr/bin/env bash
# Few real images (CORE, Sections 4.6 and C.5): CORE on a share of a set, beside an encoder and a generator that are
# trained on that share independently. Samples are compared with the whole set.
# Usage: DATA=train TEST=test SHARES="0.1 0.2" OUT=scarce-out bash recipes/data-scarce.sh
# Each OUT/SHARE/ is an OUT of core.sh, whose other variables apply here too. Finished steps are skipped.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/steps.sh"

DATA=${DATA:?set it to the image set to take shares of}
TEST=${TEST:?set it to a labeled image set to test on}
OUT=${OUT:-scarce-out}
SHARES=${SHARES:-0.1 0.2}                # of each class: a tenth in Section 4.6; 1,000 of 5,000 CIFAR-10 images in C.5
NPROC=${NPROC:-1}
SSL_PRESET=${SSL_PRESET:-simclr-cifar}
GEN_PRESET=${GEN_PRESET:-adm-cifar}
SSL_FLAGS=${SSL_FLAGS:-}
GEN_FLAGS=${GEN_FLAGS:-}
SAMPLE_FLAGS=${SAMPLE_FLAGS:-}
JUDGE=${JUDGE:-}                         # encoder for measuring (default: one trained here on the whole set)
JUDGE_FLAGS=${JUDGE_FLAGS:-$SSL_FLAGS}
ROUNDS=${ROUNDS:-1}
PER_ROW=${PER_ROW:-10}                   # samples per real image: 100K from 10K
REPEAT=${REPEAT:-10}                     # N, how often an epoch of G2R shows real images (C.5)
export TEST NPROC SSL_PRESET GEN_PRESET SSL_FLAGS GEN_FLAGS SAMPLE_FLAGS ROUNDS PER_ROW REPEAT

mkdir -p "$OUT"
need_judge "$DATA"
for share in $SHARES; do
  at=$OUT/$share few=$OUT/$share/data.json
  mkdir -p "$at"
  verb inflate --real "$DATA" --fraction "$share" --out "$few"
  num=$(num_real --real "$DATA" --fraction "$share" --out "$few")
  verb train-gen --preset "$GEN_PRESET" --nproc "$NPROC" --data "$few" $GEN_FLAGS --out "$at/g0.safetensors"
  verb sample --nproc "$NPROC" --ckpt "$at/g0.safetensors" --num $((num * PER_ROW)) $SAMPLE_FLAGS --out "$at/samples0"
  measure "$at/fd0.json" fid --reference "$DATA" --samples "$at/samples0" --extractor "$JUDGE" --metrics fd,precision-recall,copies
  verb show "$at/samples0" --out "$at/sheet0.png"
  env DATA="$few" REFERENCE="$DATA" OUT="$at" JUDGE="$JUDGE" bash "$(dirname "${BASH_SOURCE[0]}")/core.sh" >&2
done

python - "$OUT" "$SHARES" "$ROUNDS" <<'PY'
import json
import sys
from pathlib import Path

out, shares, rounds = Path(sys.argv[1]), sys.argv[2].split(), int(sys.argv[3])
read = lambda share, name: json.loads((out / share / f"{name}.json").read_text())
print(f"{'share':8}{'round':>6}{'fd':>10}{'precision':>11}{'recall':>8}{'copy_ratio':>12}{'top1':>8}   (round 0: the baseline)")
for share in shares:
    for number in range(rounds + 1):
        fd = read(share, f"fd{number}")
        quality = f"{fd['corrected']:10.2f}{fd['precision']:11.3f}{fd['recall']:8.3f}{fd['copy_ratio']:12.2f}"
        print(f"{share:8}{number:6}{quality}{read(share, f'probe{number}')['top1']:8.4f}")
PY
