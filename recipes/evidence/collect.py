"""Collect what was measured of one arm in one file: `collect.py --out OUT --setting NAME --steps N SCORES.json...`.

The file has the scores, for each test image the number of draws that classified it correctly, and the CPU seconds of
the files that were made for this arm.
"""

import argparse
import csv
import json
from pathlib import Path

DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"  # counts of up to 35 draws
DISTANCE = (
    "value",
    "corrected",
    "corrected_interval",
    "precision",
    "recall",
    "copy_ratio",
    "copy_fraction",
    "authenticity",
)


def main() -> None:
    """Read the scores of an arm, and write them to one file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--setting", required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("scores", type=Path, nargs="+")
    args = parser.parse_args()
    scores, right, draws = {}, {}, {}
    for path in args.scores:
        found = json.loads(path.read_text())
        name = path.stem.rpartition(".")[2]
        if name == "fd":
            scores = {key: found[key] for key in DISTANCE if key in found}
            continue
        shots = name.removeprefix("probe")
        for kind, counts, num in counted(path.with_suffix(".csv")):
            measure = f"{kind}@{shots}" if shots else kind
            scores[measure] = sum(counts) / (num * len(counts))
            right[measure], draws[measure] = "".join(DIGITS[count] for count in counts), num
    arm = args.scores[0].name.partition(".probe")[0].partition(".fd")[0]
    record = {
        "setting": args.setting,
        "seed": args.scores[0].parent.name,
        "arm": arm,
        "steps": args.steps,
        "scores": {name: round(value, 5) if isinstance(value, float) else value for name, value in scores.items()},
        "cpu_seconds": round(cpu_seconds(args.scores[0].parent, arm), 1),
        "draws": draws,
        "right": right,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record, indent=1) + "\n")


def counted(path: Path) -> list[tuple[str, list[int], int]]:
    """Return, for each kind of classifier, the number of correct draws of each image, and the number of draws."""
    rows = list(csv.DictReader(path.open()))
    columns: dict[str, list[str]] = {}
    for column in list(rows[0])[2:]:
        kind = column.partition("_")[0] if "_" in column else column.rstrip("0123456789")
        columns.setdefault(kind, []).append(column)
    return [
        (kind, [sum(row[one] == row["class"] for one in of_kind) for row in rows], len(of_kind))
        for kind, of_kind in columns.items()
    ]


def cpu_seconds(folder: Path, arm: str) -> float:
    """Return the user and system seconds that the files of an arm took; those of samples have a record of their own."""
    source = arm.removesuffix(".samples")
    if source == arm:
        paths = [folder / f"{arm}.safetensors.cpu", *folder.glob(f"{arm}.probe*.cpu")]
    else:
        paths = [folder / f"{source}.{part}.cpu" for part in ("z.safetensors", "g.safetensors", "samples.safetensors")]
        paths.append(folder / f"{arm}.fd.json.cpu")
    return sum(sum(map(float, path.read_text().split())) for path in paths if path.exists())


if __name__ == "__main__":
    main()
