"""Write colored digits whose captions say more than their classes: `colors.py OUT`.

train.safetensors and test.safetensors have labels of digit and color, 10 x 4 classes. train.jsonl has the caption of
each training image ("a red three"), and captions.jsonl all 40 captions, whose class is the digit alone.
"""

import json
import sys
from pathlib import Path

import numpy as np

from corecli.data.imageset import open_set, write_set
from corecli.data.rows import make_rows

COLORS = {"red": (255, 60, 60), "green": (60, 220, 60), "blue": (90, 110, 255), "white": (255, 255, 255)}
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
NAMES = tuple(f"{color} {word}" for word in WORDS for color in COLORS)


def main() -> None:
    """Color both halves of the digits and write their captions."""
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    for split, name in (("half", "train"), ("half-test", "test")):
        digits = open_set(f"digits:8:{split}")
        colors = np.random.default_rng(len(digits.rows)).integers(len(COLORS), size=len(digits.rows))
        labels = digits.rows.labels * len(COLORS) + colors
        tints = np.array(list(COLORS.values()))[colors][:, :, None, None]
        images = (digits.read(digits.slots).numpy() * tints // 255).astype(np.uint8)
        if name == "train":
            write_lines(
                out / "train.jsonl",
                [(key, NAMES[label], "") for key, label in zip(digits.rows.keys, labels, strict=True)],
            )
        rows = make_rows(digits.rows.keys, labels=labels)
        write_set(out / f"{name}.safetensors", rows, [images], class_names=NAMES, header={})
    every = [(name.replace(" ", "-"), name, name.split()[1]) for name in NAMES]
    write_lines(out / "captions.jsonl", every)


def write_lines(path: Path, captions: list[tuple[str, str, str]]) -> None:
    """Write (id, caption, class or "") as JSON lines."""
    lines = [{"id": key, "caption": f"a {text}"} | ({"class": label} if label else {}) for key, text, label in captions]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    main()
