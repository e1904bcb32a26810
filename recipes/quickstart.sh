#!/usr/bin/env bash
# One round of CORE on 1,797 real digits, compared at equal training cost with two independent baselines:
# an unconditional generator, and self-supervised learning on real images only.
# Usage: bash recipes/quickstart.sh       (results in $OUT, default quickstart-out/)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source recipes/setup.sh digits,timm

OUT=${OUT:-quickstart-out}
TRAIN=digits:8:train
TEST=digits:8:test
JUDGE_STEPS=${JUDGE_STEPS:-300}
SSL_STEPS=${SSL_STEPS:-400}
GEN_STEPS=${GEN_STEPS:-1200}
SAMPLE_STEPS=${SAMPLE_STEPS:-25}
SECONDS=0
mkdir -p "$OUT"

verb() { echo "+ corecli $*" >&2; corecli "$@" >&2; }
measure() { echo "+ corecli ${*:2}" >&2; corecli "${@:2}" --json >"$OUT/$1.json"; }

# The judge measures distances and takes no part in the loop. It is trained with labels and another seed.
verb train-ssl --preset tiny --method supervised --seed 7 --data $TRAIN --steps "$JUDGE_STEPS" --out "$OUT/judge.safetensors"

# Baselines: an encoder trained on real images, and an unconditional generator.
verb train-ssl --preset tiny --data $TRAIN --steps "$SSL_STEPS" --out "$OUT/f0.safetensors"
verb train-gen --preset tiny --no-flip --data $TRAIN --steps "$GEN_STEPS" --out "$OUT/g0.safetensors"
verb sample --ckpt "$OUT/g0.safetensors" --num 1442 --steps "$SAMPLE_STEPS" --out "$OUT/unconditional"

# R2G: a generator conditioned on the features of the encoder.
verb extract --data $TRAIN --encoder "$OUT/f0.safetensors" --out "$OUT/z0.safetensors"
verb train-gen --preset tiny --no-flip --data $TRAIN --features "$OUT/z0.safetensors" --steps "$GEN_STEPS" --out "$OUT/g1.safetensors"
verb sample --ckpt "$OUT/g1.safetensors" --features "$OUT/z0.safetensors" --per-row 1 --steps "$SAMPLE_STEPS" --out "$OUT/r2g"

# G2R: real images twice and samples once, weakly augmented, for the same steps as the baseline.
verb inflate --real $TRAIN --synthetic "$OUT/r2g" --repeat 2 --out "$OUT/mix.json"
verb train-ssl --preset tiny --augment weak --data "$OUT/mix.json" --steps "$SSL_STEPS" --out "$OUT/f1.safetensors"

measure fd-unconditional fid --reference $TRAIN --samples "$OUT/unconditional" --extractor "$OUT/judge.safetensors"
measure fd-r2g fid --reference $TRAIN --samples "$OUT/r2g" --extractor "$OUT/judge.safetensors"
measure probe-baseline probe --encoder "$OUT/f0.safetensors" --train $TRAIN --test $TEST
measure probe-g2r probe --encoder "$OUT/f1.safetensors" --train $TRAIN --test $TEST

# A sheet as in Figure 7 of CORE: each column has a real digit and samples made from its features.
verb sample --ckpt "$OUT/g1.safetensors" --features "$OUT/z0.safetensors" --rows ::144 --per-row 5 --steps "$SAMPLE_STEPS" --out "$OUT/columns"
verb show "$OUT/columns" --real $TRAIN --columns 10 --rows 6 --out "$OUT/sheet.png"

python - "$OUT" "$SECONDS" <<'PY'
import json
import sys
from pathlib import Path

out, seconds = Path(sys.argv[1]), int(sys.argv[2])
read = lambda name: json.loads((out / f"{name}.json").read_text())
unconditional, r2g = read("fd-unconditional"), read("fd-r2g")
results = {
    # With 1,442 images in 256 dimensions, half of the uncorrected distance is bias.
    "unconditional": {"fd": unconditional["corrected"], "fd_uncorrected": unconditional["value"]},
    "r2g": {"fd": r2g["corrected"], "fd_uncorrected": r2g["value"]},
    "baseline": {"top1": read("probe-baseline")["top1"]},
    "g2r": {"top1": read("probe-g2r")["top1"]},
    "seconds": seconds,
}
(out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
print(f"{'':24}{'independent':>14}{'CORE':>10}")
print(f"{'distance (lower)':24}{results['unconditional']['fd']:14.2f}{results['r2g']['fd']:10.2f}")
print(f"{'probe accuracy (higher)':24}{results['baseline']['top1']:14.4f}{results['g2r']['top1']:10.4f}")
print(f"{seconds} seconds; {out}/sheet.png, {out}/results.json")
PY
