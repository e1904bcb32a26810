#!/usr/bin/env bash
# SynCLR: concepts -> captions -> images -> an encoder trained without real images -> its linear probe on real images.
# Usage: bash recipes/synclr.sh, for the smallest size, on digits, without downloaded weights; or
#   CONCEPTS="in1k.txt" CAPTION_FLAGS="--backend server --model llama --backgrounds bg.json" NUM=1000000 \
#   GENERATOR=diffusers:stable-diffusion SAMPLE_FLAGS="--guidance 2.5 --image-size 256 --shards 1000" \
#   TRAIN=imagenet/train TEST=imagenet/val SSL_FLAGS="--preset synclr-paper" BATCH=8192 NPROC=8 OUT=synclr bash recipes/synclr.sh
# The table compares definitions of a positive pair at equal image presentations (SynCLR, Table 5): images of one caption
# (SynCLR), views of one image (SimCLR), images of one concept (supervised). Finished steps are skipped: run it again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
command -v corecli >/dev/null || source recipes/setup.sh digits,timm

OUT=${OUT:-synclr-out}
NPROC=${NPROC:-1}
TRAIN=${TRAIN:-digits:8:train}           # labeled real images for the probe, and for the generator trained here
TEST=${TEST:-digits:8:test}
CONCEPTS=${CONCEPTS:-digits}             # concept lists, each FILE[:WEIGHT[:KIND]]
NUM=${NUM:-600}                          # number of captions
CAPTION_FLAGS=${CAPTION_FLAGS:-}         # more options of captions, e.g. of a language model
GENERATOR=${GENERATOR:-}                 # text-to-image pipeline or generator (default: one trained on TRAIN)
GEN_FLAGS=${GEN_FLAGS:---preset tiny --no-flip --steps 1500}
PER_ROW=${PER_ROW:-4}                    # images per caption
SAMPLE_FLAGS=${SAMPLE_FLAGS:---guidance 2 --steps 20 --batch-size 256}
# Digits of 8 px need milder crops than published ones, and no patch loss: they have only 16 patches.
SSL_FLAGS=${SSL_FLAGS:---preset synclr-micro --backbone vit-micro/2 --lr 5e-3 --set ibot=0 --views 1g --augment crop \
  --augment-set crop=0.8,1 --augment-set flip=0 --steps 800}
BATCH=${BATCH:-256}                      # images per step; half as many for SimCLR, which uses two views of each
ROWS=${ROWS:-synclr simclr supervised untrained}
PROBE_FLAGS=${PROBE_FLAGS:-}
source recipes/steps.sh
mkdir -p "$OUT"

captions=$OUT/captions.jsonl synthetic=$OUT/synthetic
lists=(); for list in $CONCEPTS; do lists+=(--concepts "$list"); done
verb captions "${lists[@]}" --num "$NUM" $CAPTION_FLAGS --out "$captions"
if [[ -z $GENERATOR ]]; then
  GENERATOR=$OUT/generator.safetensors
  verb train-gen --nproc "$NPROC" --data "$TRAIN" --captions "$captions" $GEN_FLAGS --out "$GENERATOR"
fi
verb sample --nproc "$NPROC" --ckpt "$GENERATOR" --captions "$captions" --per-row "$PER_ROW" $SAMPLE_FLAGS --out "$synthetic"
verb show "$synthetic" --captions "$captions" --out "$OUT/sheet.png"

for row in $ROWS; do
  encoder=$OUT/$row.safetensors
  case $row in
    synclr) alike=(--set label-by=group --images-per-group "$PER_ROW" --batch-size "$BATCH") ;;
    simclr) alike=(--set label-by=image --images-per-group 1 --batch-size $((BATCH / 2)) --views 2g) ;;
    supervised) alike=(--set label-by=class --images-per-group 1 --batch-size "$BATCH") ;;
    untrained) alike=(--images-per-group "$PER_ROW" --batch-size "$BATCH" --lr 0 --steps 1 --warmup 0) ;;
    *) echo "unknown row $row" >&2; exit 2 ;;
  esac
  verb train-ssl --nproc "$NPROC" --data "$synthetic" $SSL_FLAGS "${alike[@]}" --out "$encoder"
  measure "$OUT/$row.json" probe --encoder "$encoder" --train "$TRAIN" --test "$TEST" $PROBE_FLAGS
done

python - "$OUT" "$ROWS" <<'PY'
import json
import sys
from pathlib import Path

out, rows = Path(sys.argv[1]), sys.argv[2].split()
print(f"{'alike are':12}{'top1':>8}{'knn':>8}")
for row in rows:
    found = json.loads((out / f"{row}.json").read_text())
    print(f"{row:12}{found['top1']:8.4f}{found.get('knn_top1', float('nan')):8.4f}")
PY
