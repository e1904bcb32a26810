"""Writes sentences from a small grammar, or the bare words of SynCLR's ablations; needs no model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from corecli.base.rng import derive
from corecli.captions.parts.assignments import Assignment
from corecli.captions.parts.backend import Answer, Request, Settings

NEEDS_MODEL = False
USES = ("form",)

_SHOTS = ("a photo of", "a close-up of", "a wide shot of", "a sharp picture of", "a candid photo of", "a view of")
_LOOKS = ("old", "small", "large", "colourful", "weathered", "bright", "dusty", "elegant", "plain", "shiny", "curious",
          "lonely", "wet", "striking", "ordinary")  # fmt: skip
_LIGHTS = ("in soft morning light", "at sunset", "under a cloudy sky", "on a rainy day", "at night", "at noon",
           "in warm evening light", "in thin fog", "after the rain", "in winter", "in early spring",
           "seen from below", "seen from above", "with long shadows", "with a blurred background")  # fmt: skip
_THINGS = ("a stone wall", "a wooden fence", "a red bicycle", "a pile of books", "a glass door", "a tall tree",
           "a blue car", "a row of chairs", "a street lamp", "an empty bench", "a brick house", "a white curtain",
           "a heap of leaves", "a flight of steps", "a metal gate", "a striped carpet")  # fmt: skip
_PLACES = ("near {}", "by {}", "with {} in the background")
_ORDERS = ("{shot} {thing} {light}", "{shot} {thing}, {light}", "{thing} {light}", "{light}, {shot} {thing}")


def open_backend(settings: Settings) -> Grammar:
    """Return the grammar. Forms: sentence; words (concept, background); hypernym (concept, hypernym, background)."""
    return Grammar(settings.form)


class Grammar:
    """A backend whose captions are a function of the assignment and the seed of the attempt."""

    def __init__(self, form: str) -> None:
        self._form = form

    def answers(self, requests: Iterator[Request]) -> Iterator[tuple[Request, Answer]]:
        """Answer the requests in their order."""
        for request in requests:
            assert request.assignment is not None
            yield request, Answer(raw=self.caption(request.assignment, request.seed), finish_reason="stop")

    def caption(self, assignment: Assignment, seed: int) -> str:
        """Return one caption."""
        concept = assignment.concept
        if self._form == "sentence":
            return _sentence(assignment, seed)
        hypernym = concept.hypernym if self._form == "hypernym" else ""
        return ", ".join(word for word in (concept.name, hypernym, assignment.second) if word)


def _sentence(assignment: Assignment, seed: int) -> str:
    def pick(what: str, words: Sequence[str]) -> str:
        return words[derive(seed, "grammar", what) % len(words)]

    name = assignment.concept.name.split("/")[0].strip()
    is_texture = assignment.concept.kind == "texture"
    thing = _article(f"{name} surface" if is_texture else f"{pick('look', _LOOKS)} {name}")
    if assignment.template == "c+relation":
        thing = f"{thing} {assignment.second} {pick('thing', _THINGS)}"
    elif assignment.template == "c+background":
        thing = f"{thing} {pick('place', _PLACES).format(_article(assignment.second))}"
    text = pick("order", _ORDERS).format(shot=pick("shot", _SHOTS), thing=thing, light=pick("light", _LIGHTS))
    return f"{text[0].upper()}{text[1:]}."


def _article(noun: str) -> str:
    is_vowel = noun[:1].lower() in tuple("aeiou") and not noun.lower().startswith(("uni", "use", "eu", "one"))
    return f"{'an' if is_vowel else 'a'} {noun}"
