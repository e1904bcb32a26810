"""Write prompts for a language model: an instruction, three worked examples, and the words of a new caption.

Our own examples are in lists/examples.csv: for objects, places and textures alone, and for objects with a background
or a relation.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from corecli.base.documents import read_text
from corecli.base.errors import DataError
from corecli.captions.parts.concepts import LISTS, tidy

NUM_EXAMPLES = 3
INSTRUCTIONS = {
    "object": "Write a caption of one sentence for a photo that shows the given object.",
    "place": "Write a caption of one sentence for a photo of the given place.",
    "texture": "Write a caption of one sentence for a photo in which the given texture is plain to see.",
    "background": "Write a caption of one sentence for a photo that shows the given object in the given surroundings.",
    "relation": "Write a caption of one sentence for a photo that shows the given object and, in the given relation "
    "to it, something else.",
    "surroundings": "List ten places or surroundings in which a photo of the given object would be natural, on one "
    "line, separated by commas.",
}
_SURROUNDINGS = (
    ("otter", "river bank, zoo pool, kelp bed, rocky shore, fish market, wetland, estuary, icy lake, jetty, aquarium"),
    ("typewriter", "desk, attic, antique shop, library, newspaper office, museum, train table, cabin, cellar, stage"),
    ("hot dog", "street cart, stadium, picnic table, diner, fairground, beach bar, park bench, grill, car, kitchen"),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """An instruction, worked examples as (words, answer), and the words of the new caption."""

    instruction: str
    examples: tuple[tuple[str, str], ...]
    words: str

    def text(self) -> str:
        """Return the prompt for a model that continues a text."""
        shown = "".join(f"{words} => {answer}\n\n" for words, answer in self.examples)
        return f"{self.instruction}\n\n{shown}{self.words} =>"

    def messages(self) -> list[dict[str, str]]:
        """Return the prompt for a chat model, with the examples as earlier turns."""
        instruction = f"{self.instruction} Answer with that one line and nothing else."
        turns = [{"role": "system", "content": instruction}]
        for words, answer in self.examples:
            turns += [{"role": "user", "content": words}, {"role": "assistant", "content": answer}]
        return [*turns, {"role": "user", "content": self.words}]

    def digest(self) -> str:
        """Return a short hash of the prompt."""
        return hashlib.sha256(self.text().encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Example:
    """A worked example: a caption and the words it was written for."""

    id: str
    words: str
    caption: str


def read_examples(path: Path | None) -> Mapping[str, Sequence[Example]]:
    """Read examples by pool (object, place, texture, background, relation); without a file, our own.

    A file is CSV with the columns pool, concept, second (the background or relation) and caption. An id is the pool and
    the number within it. Errors: MissingInputError; DataError naming the line, or a pool with fewer than three.
    """
    path = path or LISTS / "examples.csv"
    try:
        return _pools(path, read_text(path))
    except csv.Error as error:
        raise DataError(f"not a readable CSV file: {error}", where=path) from error


def _pools(path: Path, text: str) -> Mapping[str, Sequence[Example]]:
    pools: dict[str, list[Example]] = {}
    reader = csv.DictReader(io.StringIO(text, newline=""))
    if not {"pool", "concept", "caption"} <= set(reader.fieldnames or ()):
        raise DataError("the columns pool, concept, second and caption are missing", where=path)
    for row in reader:
        pool, words, caption = ((row.get(name) or "").strip() for name in ("pool", "concept", "caption"))
        if pool not in INSTRUCTIONS or not words or not caption:
            raise DataError(
                f"line {reader.line_num} is not an example", where=path, hint="write pool,concept,second,caption"
            )
        shown = ", ".join(tidy(word) for word in (words, row.get("second") or "") if word.strip())
        own = pools.setdefault(pool, [])
        own.append(Example(id=f"{pool}-{len(own):02d}", words=shown, caption=caption))
    for pool, own in pools.items():
        if len(own) < NUM_EXAMPLES:
            raise DataError(f"the pool {pool} has {len(own)} examples and needs {NUM_EXAMPLES}", where=path)
    return pools


def ask_surroundings(concept: str) -> Prompt:
    """Return the prompt for a list of backgrounds of a concept."""
    return Prompt(instruction=INSTRUCTIONS["surroundings"], examples=_SURROUNDINGS, words=concept)
