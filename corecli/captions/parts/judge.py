"""Turn a raw answer into a caption, or into the reason why it is not one."""

from __future__ import annotations

import re
from dataclasses import dataclass

from corecli.captions.parts.backend import Answer

FAULTS = ("empty", "truncated", "short", "long", "missing", "duplicate")
_LIST_MARK = re.compile(r"^(?:[-*\u2022]|\(?\d{1,3}[.)])\s+|^(?:caption|answer|output)\s*:\s*|^=>\s*", re.IGNORECASE)
_QUOTES = ('"', "'", "`", "\u201c", "\u201d", "\u2018", "\u2019")
_WORD = re.compile(r"\w+")
_IRREGULAR = {"men": "man", "women": "woman", "children": "child", "people": "person", "mice": "mouse"}
_IRREGULAR |= {"geese": "goose", "feet": "foot", "teeth": "tooth", "oxen": "ox", "dice": "die", "cacti": "cactus"}


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A caption, whether it mentions its concept, and its fault: one of FAULTS, or None."""

    caption: str
    has_concept: bool
    fault: str | None


def judge(answer: Answer, concept: str, *, min_words: int, max_words: int) -> Judged:
    """Judge an answer on its own; duplicates are found elsewhere."""
    caption = clean(answer.raw)
    has_concept = mentions(caption, concept)
    count = len(caption.split())
    faults = {
        "empty": not caption,
        "truncated": answer.finish_reason == "length" and clean(answer.raw.split("\n")[-1]) == caption,
        "short": count < min_words,
        "long": count > max_words,
        "missing": not has_concept,
    }
    fault = next((name for name, is_so in faults.items() if is_so), None)
    return Judged(caption=caption, has_concept=has_concept, fault=fault)


def clean(raw: str) -> str:
    """Return the first line with content, without list marks, quotes, control characters and repeated spaces."""
    lines = [" ".join("".join(c if c.isprintable() else " " for c in line).split()) for line in raw.splitlines()]
    lines = [line for line in lines if line]
    said = next((line for line in lines if not line.endswith(":")), "")  # not "Here is a caption:"
    before = None
    while said != before:
        before, said = said, _unquoted(_LIST_MARK.sub("", said)).strip()
    return said


def normalized(text: str) -> str:
    """Return the words of a text in lower case, without punctuation; duplicates have the same words."""
    return " ".join(_WORD.findall(text.casefold().replace("_", " ")))


def mentions(caption: str, concept: str) -> bool:
    """Whether a caption mentions a concept or one of its `/` alternatives, in any case, number and hyphenation."""
    said = [_forms(word) for word in normalized(caption).split()]
    return any(_holds(said, normalized(name).split()) for name in concept.split("/"))


def _holds(said: list[set[str]], name: list[str]) -> bool:
    wanted = [_forms(word) for word in name]
    if not wanted:
        return False
    apart = any(all(a & b for a, b in zip(said[i:], wanted, strict=False)) for i in range(len(said) - len(wanted) + 1))
    joined = "".join(name)  # "tea pot" may be written "teapot", and "teapot" "tea pot"
    together = (_joined(said[i : i + n]) for n in (1, 2, 3) for i in range(len(said) - n + 1))
    return apart or any(joined in forms for forms in together)


def _joined(words: list[set[str]]) -> set[str]:
    """Return the ways to write neighboring words as one word, with every form of the last."""
    head = "".join(max(forms, key=len) for forms in words[:-1])
    return {head + last for last in words[-1]}


def _forms(word: str) -> set[str]:
    """Return a word and the words it may be a plural of."""
    found = {word, _IRREGULAR.get(word, word)}
    if len(word) > 3 and word.endswith("s") and not word.endswith("ss"):
        found.add(word[:-1])
        if word.endswith("es"):
            found.add(word[:-2])
        if word.endswith("ies"):
            found.add(word[:-3] + "y")
        if word.endswith("ves"):
            found |= {word[:-3] + "f", word[:-3] + "fe"}
    return found


def _unquoted(text: str) -> str:
    """Return a text without the quotes around it; an apostrophe inside stays."""
    if len(text) > 1 and text[0] in _QUOTES and text[-1] in _QUOTES:
        return text[1:-1]
    return text[1:] if text[:1] in _QUOTES[:1] and text.count(text[0]) == 1 else text
