#!/usr/bin/env bash
# On 901 real digits an encoder improves a generator (R2G), and samples of that generator improve the encoder (pairs of
# MixDiff). Both are compared at equal training cost with independent baselines: an unconditional generator, and
# self-supervised learning on real images only.
# Usage: bash recipes/quickstart.sh       (results in $OUT, default quickstart-out/; docs/evidence.md has more seeds)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source recipes/setup.sh digits,timm

OUT=${OUT:-quickstart-out}
TRAIN=digits:8:half
TEST=digits:8:half-test
SEED=${SEED:-0}
JUDGE_STEPS=${JUDGE_STEPS:-600}
SSL_STEPS=${SSL_STEPS:-600}
GEN_STEPS=${GEN_STEPS:-800}
SAMPLE_STEPS=${SAMPLE_STEPS:-20}
SECONDS=0
mkdir -p "$OUT"

verb() { echo "+ corecli $*" >&2; corecli "$@" >&2; }
measure() { echo "+ corecli ${*:2}" >&2; corecli "${@:2}" --json >"$OUT/$1.json"; }
ssl="train-ssl --preset tiny-digits --seed $SEED"
gen="train-gen --preset tiny --no-flip --seed $SEED"
sample="sample --steps $SAMPLE_STEPS --batch-size 256 --seed $SEED"

# The judge measures distances and takes no part. It is trained with labels, on the images that the others do not see.
verb train-ssl --preset tiny-digits --method supervised --seed 1000 --data $TEST --steps "$JUDGE_STEPS" --out "$OUT/judge.safetensors"

# Baselines: an encoder trained on real images, and an unconditional generator.
verb $ssl --data $TRAIN --steps "$SSL_STEPS" --out "$OUT/f0.safetensors"
verb $gen --data $TRAIN --steps "$GEN_STEPS" --out "$OUT/g0.safetensors"
verb $sample --ckpt "$OUT/g0.safetensors" --num 1802 --out "$OUT/unconditional"

# R2G: a generator conditioned on the features of the encoder makes two variants of each image.
verb extract --data $TRAIN --encoder "$OUT/f0.safetensors" --out "$OUT/z0.safetensors"
verb $gen --data $TRAIN --features "$OUT/z0.safetensors" --steps "$GEN_STEPS" --out "$OUT/g1.safetensors"
verb $sample --ckpt "$OUT/g1.safetensors" --features "$OUT/z0.safetensors" --per-row 2 --out "$OUT/r2g"

# Pairs: the two views of an image are the real one and one of its variants, for the same steps as the baseline.
verb inflate --real $TRAIN --synthetic "$OUT/r2g" --out "$OUT/mix.json"
verb $ssl --data "$OUT/mix.json" --views real:1g,synthetic:1g --steps "$SSL_STEPS" --out "$OUT/f1.safetensors"

# Accuracy of linear probes with five labels a class, a mean of ten draws of the labeled images.
few="--train $TRAIN --val $TRAIN --test $TEST --shots 5 --seeds 10"
measure fd-unconditional fid --reference $TRAIN --samples "$OUT/unconditional" --extractor "$OUT/judge.safetensors"
measure fd-r2g fid --reference $TRAIN --samples "$OUT/r2g" --extractor "$OUT/judge.safetensors"
measure probe-baseline probe --encoder "$OUT/f0.safetensors" $few
measure probe-pairs probe --encoder "$OUT/f1.safetensors" $few

# A sheet as in Figure 7 of CORE: each column has a real digit and samples made from its features.
verb $sample --ckpt "$OUT/g1.safetensors" --features "$OUT/z0.safetensors" --rows ::90 --per-row 5 --out "$OUT/columns"
verb show "$OUT/columns" --real $TRAIN --columns 10 --rows 6 --out "$OUT/sheet.png"

python - "$OUT" "$SECONDS" <<'PY'
import json
import sys
from pathlib import Path

out, seconds = Path(sys.argv[1]), int(sys.argv[2])
read = lambda name: json.loads((out / f"{name}.json").read_text())
unconditional, r2g = read("fd-unconditional"), read("fd-r2g")
results = {
    # With 1,802 images in 256 dimensions, a part of the uncorrected distance is bias.
    "unconditional": {"fd": unconditional["corrected"], "fd_uncorrected": unconditional["value"]},
    "r2g": {"fd": r2g["corrected"], "fd_uncorrected": r2g["value"]},
    "baseline": {"top1": read("probe-baseline")["top1"]},
    "pairs": {"top1": read("probe-pairs")["top1"]},
    "seconds": seconds,
}
(out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
print(f"{'':32}{'independent':>14}{'together':>10}")
print(f"{'distance of samples (lower)':32}{results['unconditional']['fd']:14.2f}{results['r2g']['fd']:10.2f}")
print(f"{'accuracy, five labels (higher)':32}{results['baseline']['top1']:14.4f}{results['pairs']['top1']:10.4f}")
print(f"{seconds} seconds; {out}/sheet.png, {out}/results.json")
PY
