"""Run the same lines of every verb in two checkouts and compare what they write, byte by byte.

    python tests/compare_checkouts.py OLD NEW [VERB ...]

OLD and NEW are checkouts of this repository, such as `git worktree add /tmp/old v0.1.0` and `.`; both run in the Python
environment that is active. Every line runs on one thread with relative paths, in a folder of its own per checkout.
Compared are stdout, the exit code and every file written, run folders included; times in logs are left out. The exit
status is 1 when anything differs. It takes about four minutes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

SSL = "train-ssl --preset tiny --steps 4 --batch-size 32 --log-every 2 --projector-dim 16 --save-sec 0"
GEN = "train-gen --steps 4 --batch-size 16 --data digits:8:test --log-every 2 --preview-every 2 --save-sec 0"
ADM = f"{GEN} --preset tiny --set channel_mult=1,2 --set head_channels=16"
LINES = (
    f"{SSL} --data digits:8:test --out f.safetensors",
    f"{SSL} --data digits:8:test --out dino.safetensors --method dino --set prototypes=32",
    f"{SSL} --data digits:8:test --out byol.pt --stage moco:2 --stage byol:2",
    f"{SSL} --data digits:8:test --out vit.safetensors --method synclr --backbone vit-micro/2 --set prototypes=16"
    " --accumulate 2",
    "extract --data digits:8:test --encoder f.safetensors --out z.safetensors",
    "extract --data digits:8:test --encoder f.safetensors --layer projector --out p.safetensors",
    f"{ADM} --features z.safetensors --out g.pt",
    f"{ADM} --condition labels --objective flow --out flow.pt",
    f"{GEN} --preset tiny-dit --out dit.pt",
    f"{GEN} --preset tiny-icgan --features z.safetensors --out icgan.pt",
    *(
        f"sample --ckpt g.pt --features z.safetensors --rows ::60 --steps 4 --sampler {sampler} --out syn-{sampler}"
        for sampler in ("ddim", "ddpm", "dpmpp", "unipc")
    ),
    "sample --ckpt flow.pt --num 8 --steps 4 --guidance 2 --out flow.safetensors",
    "sample --ckpt flow.pt --num 8 --steps 4 --sampler heun --out heun.tar",
    "sample --ckpt dit.pt --num 8 --steps 4 --sampler euler --out euler.npz",
    "sample --ckpt icgan.pt --features z.safetensors --rows ::60 --out gan.safetensors",
    "sample --ckpt g.pt --features z.safetensors --rows ::30 --steps 2 --shards 3 --out sharded",
    "inflate --real digits:8:test --synthetic syn-ddim --repeat 2 --missing drop --out mix.json",
    "inflate --real digits:8:test --materialize packed.safetensors",
    "inflate --real packed.safetensors --materialize folder",
    f"{SSL} --batch-size 8 --data mix.json --views real:1g,synthetic:1g --out pairs.safetensors",
    f"{SSL} --batch-size 8 --data mix.json --views real:1g,mixed:1g --method supcon --out mixed.safetensors",
    "probe --encoder f.safetensors --train digits:8:test --test digits:8:train --seeds 1 --json",
    "probe --encoder f.safetensors --train digits:8:test --test digits:8:train --mode logistic --shots 5 --json",
    "probe --encoder f.safetensors --train digits:8:test --test digits:8:train --mode sgd --epochs 2 --json",
    "probe --encoder f.safetensors --train digits:8:test --test digits:8:train --mode finetune --epochs 1"
    " --warmup-epochs 0 --train-batch 64 --mixup 0.8 --cutmix 1 --rand-augment 9 --erasing 0.25 --json",
    "fid --reference digits:8:test --samples packed.safetensors --extractor f.safetensors --metrics all --json",
    "fid --reference z.safetensors --samples p.safetensors --metrics cka,opd --json",
    "captions --concepts digits --num 40 --out captions.jsonl",
    f"{ADM} --no-flip --captions captions.jsonl --out t.pt",
    "sample --ckpt t.pt --captions captions.jsonl --rows ::10 --steps 2 --out captioned.safetensors",
    "show packed.safetensors --out sheet.png",
    "show packed.safetensors --features z.safetensors --rows 4 --out near.png",
    "show f.safetensors.d --out curves.png",
)
TIMES = re.compile(r'"(seconds|created|time|data_wait)": [^,}]*')


def run(line: str, checkout: Path, folder: Path) -> dict[str, str]:
    """What a line left: its exit code, stdout, and the hash of every file in the folder."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "CORECLI_DEVICE": "cpu"}
    argv = [sys.executable, "-m", "corecli", *line.split(), "--quiet"]
    ran = subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True)
    found = {"exit code": f"{ran.returncode} {ran.stderr if ran.returncode else ''}", "stdout": ran.stdout}
    return found | {str(path.relative_to(folder)): digest(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def digest(path: Path) -> str:
    """The hash of a file, of a log without its times."""
    content = path.read_bytes()
    if path.suffix in (".json", ".jsonl"):
        content = TIMES.sub("", content.decode()).encode()
    return hashlib.sha256(content).hexdigest()


def main(old: str, new: str, *verbs: str) -> int:
    """Print each line with what differs, and return 1 when anything does."""
    checkouts = [Path(old).resolve(), Path(new).resolve()]
    root = Path(os.environ.get("TMPDIR", "/tmp")) / f"compare-{os.getpid()}"
    folders = [root / name / "run" for name in ("old", "new")]
    for folder in folders:
        folder.mkdir(parents=True)
    differing = 0
    for line in LINES:
        left, right = (run(line, checkout, folder) for checkout, folder in zip(checkouts, folders, strict=True))
        names = sorted(left.keys() | right.keys())
        different = [name for name in names if left.get(name) != right.get(name)]
        if verbs and line.split()[0] not in verbs:
            continue
        differing += bool(different or left["exit code"].strip() != "0")
        print(json.dumps({"line": line, "files": len(names) - 2, "differs": different}), flush=True)
        for name in [name for name in different if name in ("exit code", "stdout")] or ["exit code"] * (
            left["exit code"].strip() != "0"
        ):
            print(f"  {name}: {left[name]!r}\n  {' ' * len(name)}  {right[name]!r}")
    print(f"{len(LINES)} lines, {differing} differ")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
