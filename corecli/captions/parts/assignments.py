"""Assign to every caption its concept, template, background or relation, worked examples and seed.

All of them are functions of (seed, index), so the captions do not depend on shards, on interruptions or on how many
requests are in flight.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from corecli.base.errors import DataError
from corecli.base.rng import derive
from corecli.captions.parts.concepts import Concept
from corecli.captions.parts.prompts import INSTRUCTIONS, NUM_EXAMPLES, Example, Prompt

TEMPLATES = ("c", "c+background", "c+relation")
RELATIONS = ("in", "on", "next to", "behind", "in front of", "over", "under", "above", "below", "besides")
SEED_BITS = 31  # every server accepts these


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """What caption `index` is about; `second` is its background or relation, "" for template c."""

    index: int
    concept: Concept
    template: str
    second: str
    examples: tuple[Example, ...]

    @property
    def prompt(self) -> Prompt:
        """The prompt for a language model."""
        pool = _pool(self.template, self.concept.kind)
        words = ", ".join(word for word in (self.concept.name, self.second) if word)
        shown = tuple((example.words, example.caption) for example in self.examples)
        return Prompt(instruction=INSTRUCTIONS[pool], examples=shown, words=words)


class Assignments:
    """The assignment of every caption.

    `templates` are the probabilities of c, c+background and c+relation for objects (SynCLR: .44, .45, .11). Errors:
    DataError naming the concepts without backgrounds, or the pool with too few examples.
    """

    def __init__(
        self,
        *,
        seed: int,
        concepts: Sequence[Concept],
        templates: Sequence[float],
        backgrounds: Mapping[str, Sequence[str]] | Sequence[str],
        examples: Mapping[str, Sequence[Example]],
    ) -> None:
        self.seed = seed
        self._concepts = [concept for concept in concepts if concept.share > 0]
        self._cumulative = list(itertools.accumulate(concept.share for concept in self._concepts))
        self._templates = list(itertools.accumulate(templates))
        self._backgrounds, self._examples = backgrounds, examples
        self._refuse_gaps(templates)

    def caption(self, index: int) -> Assignment:
        """Return the assignment of one caption."""
        concept = self._concepts[self._choose(self._cumulative, index, "concept")]
        template, second = TEMPLATES[0], ""
        if concept.kind == "object":
            template = TEMPLATES[self._choose(self._templates, index, "template")]
        if template == "c+relation":
            second = RELATIONS[self._number(len(RELATIONS), index, "relation")]
        elif template == "c+background":
            known = backgrounds_of(concept, self._backgrounds)
            second = known[self._number(len(known), index, "background")]
        pool = list(self._examples[_pool(template, concept.kind)])
        chosen = [pool.pop(self._number(len(pool), index, "example", k)) for k in range(NUM_EXAMPLES)]
        return Assignment(index=index, concept=concept, template=template, second=second, examples=tuple(chosen))

    def seed_of(self, index: int, attempt: int) -> int:
        """Return the seed of an attempt at a caption, 31 bits."""
        return derive(self.seed, "caption", index, attempt) % 2**SEED_BITS

    def _choose(self, cumulative: Sequence[float], *what: str | int) -> int:
        place = bisect.bisect_right(cumulative, self._uniform(*what) * cumulative[-1])
        return min(place, len(cumulative) - 1)

    def _number(self, count: int, *what: str | int) -> int:
        return int(self._uniform(*what) * count)

    def _uniform(self, *what: str | int) -> float:
        """Return a number in [0, 1) whose 52 bits come from a hash, so that it is the same on every machine."""
        return (derive(self.seed, "plan", *what) >> 11) / 2**52

    def _refuse_gaps(self, templates: Sequence[float]) -> None:
        objects = [concept for concept in self._concepts if concept.kind == "object"]
        used = {c.kind for c in self._concepts if c.kind != "object"}
        if objects:
            used |= {_pool(name, "object") for name, chance in zip(TEMPLATES, templates, strict=True) if chance > 0}
        if "background" in used:
            missing = without_backgrounds(objects, self._backgrounds)
            if missing:
                shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
                hint = "add them to the file of --backgrounds, or use --ask-backgrounds or --templates 1,0,0"
                raise DataError(f"{len(missing)} concepts have no backgrounds: {shown}", hint=hint)
        for pool in sorted(used):
            if len(self._examples.get(pool, ())) < NUM_EXAMPLES:
                hint = f"every pool in use needs {NUM_EXAMPLES} or more"
                raise DataError(f"too few examples of the pool {pool}", where="--examples", hint=hint)


def backgrounds_of(concept: Concept, known: Mapping[str, Sequence[str]] | Sequence[str]) -> Sequence[str]:
    """Return the backgrounds listed for a concept, else for its hypernym, else for its source, else ()."""
    if not isinstance(known, Mapping):
        return known
    names = (concept.name, concept.hypernym, concept.source)
    return next((known[name] for name in names if name in known), ())


def without_backgrounds(concepts: Iterable[Concept], known: Mapping[str, Sequence[str]] | Sequence[str]) -> list[str]:
    """Return the names of the concepts without backgrounds."""
    return [concept.name for concept in concepts if not backgrounds_of(concept, known)]


def _pool(template: str, kind: str) -> str:
    """Return the pool of examples for a template."""
    return kind if template == "c" else template.removeprefix("c+")
