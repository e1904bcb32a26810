"""Write evidence.md and evidence.svg from the experiments and the results of their runs: `table.py [DOCS [RESULTS]]`.

An interval of a difference of accuracies is a paired bootstrap: seeds and test images are resampled, the same for both
arms. Distances have no test images; their interval is Student's t over seeds.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
from scipy.stats import t as student

HERE = Path(__file__).parent
CONFIRMING = ("10", "11", "12", "13", "14")
SEARCHING = ("0", "1", "2")
COLORS = {"confirmed": "#1a7f37", "refuted": "#b3261e"}
RESAMPLES = 10_000  # in blocks of 500
LOWER = ("corrected", "value")
INTRODUCTION = """\
# Evidence

<!-- written by recipes/evidence/table.py; do not edit -->

What the papers claim, repeated at a size that fits one computer. Each claim is one file in `recipes/evidence/claims`,
with its arms and its rule, which were written before the runs. A setting is chosen on seeds 0 to 2 and confirmed on
seeds 10 to 14; a seed covers the whole chain of encoder, generator, samples and further encoders. All arms have the
same number of steps and images a step. Distances are measured in the features of a judge that was trained with labels
on other images, and are corrected for the number of images.

A difference is positive if it has the claimed direction. Its 95 % interval is a paired bootstrap over seeds and test
images, or for distances, precision and recall Student's t over seeds. *Confirmed*: the interval of the claim's first
difference is above zero. *Refuted*: it is below zero. *Not visible*: it includes zero. Measures: `probe@5` is a linear
probe with five labels a class, `knn5@5` a vote of the five nearest neighbors on them, `probe` a linear probe on all
labels; few-label measures average ten draws of the labeled images.

![differences of few-label accuracies with 95 % intervals](evidence.svg)

| claim | setting | difference | 95 % interval | seeds | verdict | CPU minutes |
|---|---|---|---|---|---|---|
"""
Runs = dict[tuple[str, str, str], dict]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A comparison of two arms: the mean difference, its interval, and by seed; positive if the claim holds."""

    name: str
    measure: str
    mean: float
    low: float
    high: float
    by_seed: list[float]

    @property
    def verdict(self) -> str:
        """What the interval says; of fewer seeds than planned, only so far."""
        if len(self.by_seed) < 2:
            return "one seed only"
        found = "confirmed" if self.low > 0 else "refuted" if self.high < 0 else "not visible"
        return found if len(self.by_seed) >= len(CONFIRMING) else f"{found} so far"


def main() -> None:
    """Write the page and its plot."""
    docs = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE.parent.parent / "docs"
    runs = read_runs(Path(sys.argv[2]) if len(sys.argv) > 2 else HERE / "results")
    claims = [read_claim(path) for path in sorted((HERE / "claims").glob("*.mk"))]
    docs.mkdir(exist_ok=True)
    (docs / "evidence.md").write_text("\n".join(page(claims, runs)) + "\n")
    (docs / "evidence.svg").write_text(plot(claims, runs))


def read_runs(folder: Path) -> Runs:
    """Return the results by (setting, seed, arm); raw pixels have no seed."""
    found = [json.loads(path.read_text()) for path in sorted(folder.rglob("*.json"))]
    return {(one["setting"], "" if one["arm"] == "raw" else one["seed"], one["arm"]): one for one in found}


def read_claim(path: Path) -> dict[str, str]:
    """Return the variables of an experiment."""
    pairs = re.findall(r"^([A-Z]+) :?=\s*(.*?)\s*$", path.read_text(), flags=re.MULTILINE)
    return {"NAME": path.stem, "SETTING": "digits", **dict(pairs)}


def compare(text: str, setting: str, seeds: Iterable[str], runs: Runs, *, against: str = "") -> Difference | None:
    """Return the difference that `ARM>ARM:MEASURE` or `ARM<ARM:MEASURE` names, over the seeds that have both arms.

    against: another setting, whose difference is subtracted.
    """
    first, sign, second, measure = re.fullmatch(r"(.+)([<>])(.+):(.+)", text).groups()
    settings = (setting, against) if against else (setting,)
    by_seed = [
        [scored(runs, one, seed, first, measure) - scored(runs, one, seed, second, measure) for one in settings]
        for seed in seeds
        if all(measure in scores_of(runs, one, seed, arm) for one in settings for arm in (first, second))
    ]
    if not by_seed:
        return None
    found = np.stack([one[0] - one[1] if against else one[0] for one in by_seed]) * (1 if sign == ">" else -1)
    low, high = student_interval(found[:, 0]) if found.shape[1] == 1 else bootstrap(found)
    name = f"{first} {sign} {second}" + (f", {setting} more than {against}" if against else "")
    means = found.mean(1)
    return Difference(name=name, measure=measure, mean=means.mean(), low=low, high=high, by_seed=means.tolist())


def scores_of(runs: Runs, setting: str, seed: str, arm: str) -> dict:
    """Return the scores of an arm; none if it has not run."""
    return runs.get((setting, seed, arm), {"scores": {}})["scores"]


def scored(runs: Runs, setting: str, seed: str, arm: str, measure: str) -> np.ndarray:
    """Return the share of correct draws of each test image, [images]; or the score of an image set, [1]."""
    run = runs[setting, seed, arm]
    if measure not in run["right"]:
        return np.array([run["scores"][measure]])
    return np.array([int(digit, 36) for digit in run["right"][measure]]) / run["draws"][measure]


def bootstrap(differences: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of the mean of differences [seeds, images], both resampled."""
    rng = np.random.default_rng(0)
    num_seeds, num_images = differences.shape
    means = np.empty(RESAMPLES)
    for at in range(0, RESAMPLES, 500):
        of_seeds = rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=500)
        of_images = rng.multinomial(num_images, np.full(num_images, 1 / num_images), size=500)
        means[at : at + 500] = ((of_seeds @ differences) * of_images).sum(1) / (num_seeds * num_images)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def student_interval(values: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of a mean over seeds."""
    if len(values) < 2:
        return float("-inf"), float("inf")
    margin = student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean() - margin), float(values.mean() + margin)


def page(claims: list[dict[str, str]], runs: Runs) -> list[str]:
    """Return the lines of docs/evidence.md."""
    lines = INTRODUCTION.splitlines()
    for claim in claims:
        if not any(one for setting in settings_of(claim, runs) for one in deciding(claim, setting, runs)):
            lines.append(
                f"| [{claim['NAME']}](#{claim['NAME']}) | {claim['SETTING']} | | | | no confirming runs yet | |"
            )
        for setting in settings_of(claim, runs):
            for found in filter(None, deciding(claim, setting, runs)):
                row = [f"[{claim['NAME']}](#{claim['NAME']})", setting, *described(found), found.verdict]
                lines.append(f"| {' | '.join([*row, f'{minutes(claim, setting, CONFIRMING, runs):.0f}'])} |")
    for claim in claims:
        lines += section(claim, runs)
    return lines


def deciding(claim: dict[str, str], setting: str, runs: Runs) -> list[Difference | None]:
    """Return the first difference of a claim, and how much it exceeds that of the setting AGAINST, if there is one."""
    first = claim["COMPARE"].split()[0]
    others = ["", claim["AGAINST"]] if "AGAINST" in claim else [""]
    return [compare(first, setting, CONFIRMING, runs, against=other) for other in others]


def settings_of(claim: dict[str, str], runs: Runs) -> list[str]:
    """Return the settings of a claim that have confirming runs: its own one, and the same at other scales."""
    own = claim["SETTING"]
    names = {own} | ({setting for setting, _, _ in runs} if own == "digits" else set())
    return sorted(name for name in names if name in (own, "cifar-16") and any(run[0] == name for run in runs))


def described(found: Difference) -> list[str]:
    """Return the cells of a difference: its arms and mean, its interval, and the seeds that agree."""
    digits = 1 if found.measure in LOWER else 4
    agree = sum(value > 0 for value in found.by_seed)
    return [
        f"{found.name}: {found.mean:+.{digits}f} ({found.measure})",
        f"{found.low:+.{digits}f} to {found.high:+.{digits}f}",
        f"{agree} of {len(found.by_seed)}",
    ]


def section(claim: dict[str, str], runs: Runs) -> list[str]:
    """Return the lines of a claim: its rule, its differences, the scores of its arms, and the settings searched."""
    lines = [
        "",
        f"## {claim['NAME']}",
        "",
        f"{claim['CLAIM']}.",
        "",
        f"- Paper: {claim['PAPER']}",
        f"- Rule: {claim['RULE']}",
    ]
    lines += [f"- Run: `bash recipes/evidence.sh {claim['NAME']}`"]
    for setting in settings_of(claim, runs):
        found = [compare(text, setting, CONFIRMING, runs) for text in claim["COMPARE"].split()]
        if any(found):
            lines += [
                "",
                f"Confirming runs, setting `{setting}`:",
                "",
                "| difference | 95 % interval | seeds |",
                "|---|---|---|",
            ]
            lines += [f"| {' | '.join(described(one))} |" for one in found if one]
            lines += scores(claim, setting, CONFIRMING, runs)
    searched = sorted({name for name, seed, _ in runs if seed in SEARCHING and name.startswith(claim["SETTING"])})
    found = [(setting, compare(claim["COMPARE"].split()[0], setting, SEARCHING, runs)) for setting in searched]
    if any(one for _, one in found):
        lines += [
            "",
            "Settings tried, seeds 0 to 2:",
            "",
            "| setting | difference | 95 % interval | seeds |",
            "|---|---|---|---|",
        ]
        lines += [f"| {setting} | {' | '.join(described(one))} |" for setting, one in found if one]
    return lines


def scores(claim: dict[str, str], setting: str, seeds: Iterable[str], runs: Runs) -> list[str]:
    """Return a table of the mean scores of all arms, and of raw pixels."""
    arms = {
        arm: [runs[setting, seed, arm] for seed in seeds if (setting, seed, arm) in runs]
        for arm in claim["ARMS"].split()
    }
    if (setting, "", "raw") in runs and not all(arm.endswith(".samples") for arm in arms):
        arms["raw"] = [runs[setting, "", "raw"]]
    lines = []
    for kind in ("images", "encoders"):
        chosen = {arm: found for arm, found in arms.items() if found and arm.endswith(".samples") == (kind == "images")}
        names = dict.fromkeys(name for found in chosen.values() for name in found[0]["scores"])
        names = [name for name in names if name != "corrected_interval"]
        if chosen:
            lines += ["", f"| {kind} | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
            lines += [f"| {arm} | {' | '.join(mean(found, name) for name in names)} |" for arm, found in chosen.items()]
    return lines


def mean(found: list[dict], name: str) -> str:
    """Return the mean of a score over seeds as text."""
    values = [one["scores"][name] for one in found if one["scores"].get(name) is not None]
    return f"{np.mean(values):.{2 if name in LOWER else 4}f}" if values else ""


def minutes(claim: dict[str, str], setting: str, seeds: Iterable[str], runs: Runs) -> float:
    """Return the CPU minutes of the arms of a claim; arms of several claims count in each."""
    arms = claim["ARMS"].split()
    return (
        sum(runs[setting, seed, arm]["cpu_seconds"] for seed in seeds for arm in arms if (setting, seed, arm) in runs)
        / 60
    )


def plot(claims: list[dict[str, str]], runs: Runs) -> str:
    """Return a plot of all differences of few-label accuracies with their intervals, in percentage points."""
    rows = [
        (f"{claim['NAME']}, {setting}: {found.name} ({found.measure})", found)
        for claim in claims
        for setting in settings_of(claim, runs)
        for text in claim["COMPARE"].split()
        if (found := compare(text, setting, CONFIRMING, runs)) and "@" in found.measure and len(found.by_seed) > 1
    ]
    scale = max([abs(bound) for _, one in rows for bound in (one.low, one.high)], default=0.01)
    height, zero = 20 * len(rows) + 40, 540
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="720" height="{height}" font-family="sans-serif"',
        ' font-size="11">',
        f'<rect width="720" height="{height}" fill="white"/>',
        f'<line x1="{zero}" y1="5" x2="{zero}" y2="{height - 25}" stroke="#888"/>',
    ]
    parts += [
        text_at(zero + 150 * part, height - 8, f"{100 * part * scale:+.1f} points" if part else "0", "middle")
        for part in (-1, 0, 1)
    ]
    for number, (label, one) in enumerate(rows):
        y, color = 18 + 20 * number, COLORS.get(one.verdict.split()[0], "#555")
        low, middle, high = (zero + 150 * value / scale for value in (one.low, one.mean, one.high))
        parts += [
            text_at(370, y + 4, label, "end"),
            f'<line x1="{low:.1f}" y1="{y}" x2="{high:.1f}" y2="{y}" stroke="{color}"/>',
            f'<circle cx="{middle:.1f}" cy="{y}" r="4" fill="{color}"/>',
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def text_at(x: float, y: float, text: str, anchor: str) -> str:
    """Return a text element of SVG."""
    return f'<text x="{x:.0f}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'


if __name__ == "__main__":
    main()
