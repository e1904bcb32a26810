#!/usr/bin/env bash
# cifar-16.sh TAR OUT: CIFAR-10's training images (a tar of train/CLASS/NNNN.jpg) at 16 px, split by number within a
# class: 4,500 to train on and 500 to test on. Writes OUT/train.safetensors and OUT/test.safetensors.
set -euo pipefail
out=$2
[[ -s $out/test.safetensors ]] && exit
mkdir -p "$out"
for part in train test; do
  [[ $part == train ]] && kept=0000:4499 || kept=4500:4999
  python3 - "$1" "$out/$part" "$kept" <<'PY'
import sys
import tarfile
from pathlib import Path

tar, out, (first, last) = sys.argv[1], Path(sys.argv[2]), sys.argv[3].split(":")
with tarfile.open(tar) as images:
    for member in images:
        path = Path(member.name)
        if member.isfile() and first <= path.stem <= last:
            target = out / path.parent.name / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(images.extractfile(member).read())
PY
  corecli inflate --real "$out/$part" --image-size 16 --out "$out/$part.json" --materialize "$out/$part.safetensors" >&2
  rm -r "${out:?}/$part" "$out/$part.json"
done
