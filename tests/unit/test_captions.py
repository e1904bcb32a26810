"""Tests of assignments (probabilities, lists, examples) and of the judgment of answers."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from corecli.base.errors import CannotCreateError, DataError, MissingInputError, UsageError
from corecli.captions.grammar import Grammar
from corecli.captions.parts import concepts, work
from corecli.captions.parts.assignments import RELATIONS, TEMPLATES, Assignments
from corecli.captions.parts.backend import Answer
from corecli.captions.parts.judge import clean, judge, mentions, normalized
from corecli.captions.parts.prompts import read_examples
from corecli.data.captions import read_captions
from corecli.data.imageset import open_set
from corecli.data.rows import SYNTHETIC

TREE = ("everyday:0.91", "places:0.088", "textures:0.002")
SYNCLR = (0.44, 0.45, 0.11)


def assignments_of(specs: tuple[str, ...] = TREE, templates: tuple[float, ...] = SYNCLR, seed: int = 0) -> Assignments:
    return Assignments(
        seed=seed,
        concepts=concepts.read_concepts(specs).concepts,
        templates=templates,
        backgrounds=concepts.read_backgrounds("everyday"),
        examples=read_examples(None),
    )


def fits(counts: Counter[str], chances: dict[str, float]) -> bool:
    """Whether counts may have come from the chances, by the chi-square test at one in a thousand."""
    total = sum(counts.values())
    assert counts.keys() <= chances.keys()
    expected = [chances[name] * total for name in chances]
    return stats.chisquare([counts[name] for name in chances], expected).pvalue > 1e-3


def test_assignments_have_the_given_probabilities() -> None:
    """SynCLR's tree: sources .91, .088, .002; of objects .44, .45, .11; everything else uniform."""
    assigned = assignments_of()
    assignment = [assigned.caption(index) for index in range(20_000)]
    assert fits(Counter(p.concept.source for p in assignment), {"everyday": 0.91, "places": 0.088, "textures": 0.002})
    objects = [p for p in assignment if p.concept.kind == "object"]
    assert fits(Counter(p.template for p in objects), dict(zip(TEMPLATES, SYNCLR, strict=True)))
    assert {p.template for p in assignment if p.concept.kind != "object"} == {"c"}
    names = {concept.name for concept in concepts.read_concepts(["everyday"]).concepts}
    assert fits(Counter(p.concept.name for p in objects), dict.fromkeys(names, 1 / len(names)))
    seconds = Counter(p.second for p in objects if p.template == "c+relation")
    assert fits(seconds, dict.fromkeys(RELATIONS, 0.1))
    pool = [example.id for example in read_examples(None)["background"]]
    used = [p.examples for p in objects if p.template == "c+background"]
    assert all(len({example.id for example in three}) == 3 for three in used)
    assert fits(Counter(three[0].id for three in used), dict.fromkeys(pool, 1 / len(pool)))
    assert fits(Counter(three[2].id for three in used), dict.fromkeys(pool, 1 / len(pool)))
    backgrounds = concepts.read_backgrounds("everyday")
    assert all(p.second in backgrounds[p.concept.hypernym] for p in objects if p.template == "c+background")


def test_a_caption_is_a_function_of_seed_and_index() -> None:
    assigned, another = assignments_of(), assignments_of(seed=1)
    whole = [assigned.caption(index) for index in range(50)]
    assert [assignments_of().caption(index) for index in (49, 7)] == [whole[49], whole[7]]
    assert [another.caption(index) for index in range(50)] != whole
    seeds = {assigned.seed_of(index, attempt) for index in range(500) for attempt in range(4)}
    assert len(seeds) == 2000
    assert max(seeds) < 2**31


def test_weights_in_files_and_of_files(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("source,concept,weight,kind\nzoo,red_panda,3,\nzoo,ibis,1,object\n,Oslo,0,place\n")
    (tmp_path / "b.txt").write_text("# places\nOslo\n\n  Bergen \n")
    found = concepts.read_concepts([f"{tmp_path}/a.csv:3", f"{tmp_path}/b.txt:1:place"])
    found_shares = {(c.name, c.source, c.kind): c.share for c in found.concepts}
    assert found_shares == {
        ("red panda", "zoo", "object"): pytest.approx(3 / 4 * 3 / 4),
        ("ibis", "zoo", "object"): pytest.approx(3 / 4 / 4),
        ("Oslo", "a", "place"): 0,
        ("Oslo", "b", "place"): 1 / 8,
        ("Bergen", "b", "place"): 1 / 8,
    }
    assert found.notes == ()


def test_duplicates_are_named_and_merged(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("crane\nmaillot\nCrane\nhen\ncrane\n")
    found = concepts.read_concepts([str(tmp_path / "a.txt")])
    assert {c.name: c.share for c in found.concepts} == {"crane": 0.6, "maillot": 0.2, "hen": 0.2}
    assert "merged 2 concepts that are listed more than once: Crane, crane" in found.notes[0]


def test_backgrounds_by_concept_hypernym_source_or_for_all(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("concept,hypernym\ntiger,cat\nlion,cat\nferry,\n")
    file = tmp_path / "bg.json"
    file.write_text(json.dumps({"tiger": ["jungle"], "cat": ["sofa", "sofa"], "a": ["harbour"]}))
    known = concepts.read_backgrounds(str(file))
    assigned = Assignments(
        seed=0,
        concepts=concepts.read_concepts([str(tmp_path / "a.csv")]).concepts,
        templates=(0, 1, 0),
        backgrounds=known,
        examples=read_examples(None),
    )
    pairs = {(p.concept.name, p.second) for p in map(assigned.caption, range(60))}
    assert pairs == {("tiger", "jungle"), ("lion", "sofa"), ("ferry", "harbour")}
    assert "kitchen" in concepts.read_backgrounds("places")


def test_our_examples_are_whole() -> None:
    """Each caption holds its words, each pool suffices, and every relation is shown."""
    with open(concepts.LISTS / "examples.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        assert mentions(row["caption"], row["concept"]), row
        assert mentions(row["caption"], row["second"] or row["concept"]), row
        answer = Answer(raw=row["caption"], finish_reason="stop")
        assert judge(answer, row["concept"], min_words=6, max_words=35).fault is None, row
    assert {row["second"] for row in rows if row["pool"] == "relation"} == set(RELATIONS)
    assert len({row["caption"] for row in rows}) == len(rows) == sum(map(len, read_examples(None).values()))


def test_a_prompt_holds_three_examples_and_the_words() -> None:
    assignment = next(p for p in map(assignments_of().caption, range(99)) if p.template == "c+relation")
    lines = assignment.prompt.text().split("\n\n")
    assert len(lines) == 5
    assert lines[1] == f"{assignment.examples[0].words} => {assignment.examples[0].caption}"
    assert lines[4] == f"{assignment.concept.name}, {assignment.second} =>"
    roles = [turn["role"] for turn in assignment.prompt.messages()]
    assert roles == ["system", *["user", "assistant"] * 3, "user"]


def test_every_grammatical_caption_holds_its_words() -> None:
    assigned, grammar = assignments_of(), Grammar("sentence")
    for index in range(2000):
        assignment = assigned.caption(index)
        caption = grammar.caption(assignment, assigned.seed_of(index, 0))
        assert mentions(caption, assignment.concept.name), caption
        assert not assignment.second or mentions(caption, assignment.second), caption
        assert caption[0].isupper() and caption.endswith(".") and clean(caption) == caption


@pytest.mark.parametrize(
    ("raw", "caption"),
    [
        (" A dog runs.\n\ncat => A cat.", "A dog runs."),
        ("\n\n A dog\truns. ", "A dog runs."),
        ('"A dog runs."', "A dog runs."),
        ("\u201cA dog runs.\u201d", "A dog runs."),
        ("1. A dog runs.", "A dog runs."),
        ("- 'A dog runs.'", "A dog runs."),
        ("=> Caption: A dog runs.", "A dog runs."),
        ("Here is a caption:\n\nA dog runs.", "A dog runs."),
        ("The dog's bowl", "The dog's bowl"),
        ("3 dogs run.", "3 dogs run."),
        ("A dog\x1b[31m runs.\x00", "A dog [31m runs."),
        ("  \n ", ""),
        ("Sure:", ""),
    ],
)
def test_answers_are_cleaned(raw: str, caption: str) -> None:
    assert clean(raw) == caption


@pytest.mark.parametrize(
    ("caption", "concept", "is_there"),
    [
        ("Two Tigers run.", "tiger", True),
        ("A T-shirt dries.", "t shirt", True),
        ("A t shirt dries.", "T-shirt", True),
        ("A tea pot steams.", "teapot", True),
        ("Teapots steam.", "tea pot", True),
        ("Some buses wait.", "bus", True),
        ("Ripe strawberries.", "strawberry", True),
        ("Wolves and knives.", "wolf", True),
        ("Wolves and knives.", "knife", True),
        ("Three women dance.", "woman", True),
        ("A soda bottle.", "pop bottle/soda bottle", True),
        ("A catalogue lies open.", "cat", False),
        ("A fire in an engine.", "fire engine", False),
        ("Nothing.", "tiger", False),
        ("Snow on the leopard.", "snow leopard", False),
    ],
)
def test_concepts_are_found_whatever_their_form(caption: str, concept: str, is_there: bool) -> None:
    assert mentions(caption, concept) is is_there


@pytest.mark.parametrize(
    ("raw", "reason", "fault"),
    [
        ("A dog runs far.", "stop", None),
        ("", "stop", "empty"),
        ("A dog runs", "length", "truncated"),
        ("A dog runs far.\nA cat", "length", None),
        ("A dog.", "stop", "short"),
        ("A dog runs far and further on and on.", "stop", "long"),
        ("A cat runs far.", "stop", "missing"),
    ],
)
def test_faults(raw: str, reason: str, fault: str | None) -> None:
    assert judge(Answer(raw=raw, finish_reason=reason), "dog", min_words=3, max_words=8).fault == fault


def test_duplicates_are_equal_in_their_words() -> None:
    assert normalized("A T-shirt, RED!") == normalized("a t shirt red")
    assert normalized("A red dog") != normalized("A dog red")


# Work that is kept


def test_an_answer_cut_by_a_kill_is_requested_again(tmp_path: Path) -> None:
    answers = work.Answers(tmp_path)
    for index in range(3):
        answers.add((index, 0), Answer(raw=f"caption \u2028 {index}", finish_reason="stop"))
    with pytest.raises(CannotCreateError, match="another process is working"):
        work.Answers(tmp_path)
    answers.close()
    file = tmp_path / "answers.jsonl"
    file.write_bytes(file.read_bytes()[:-5])
    again = work.Answers(tmp_path)
    assert [(index, 0) in again for index in range(3)] == [True, True, False]
    again.add((2, 0), Answer(raw="new", finish_reason="stop"))
    again.add((0, 0), Answer(raw="another", finish_reason="stop"))
    again.close()
    last = work.Answers(tmp_path)
    assert [last[index, 0].raw for index in range(3)] == ["caption \u2028 0", "caption \u2028 1", "new"]
    last.close()


# Files with mistakes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n# nothing\n", "the file has no concepts"),
        ("concept,weight\ndog,0\n", "no concept has a weight above 0"),
        ("concept,weight\ndog,much\n", "line 2: 'much' is not a weight"),
        ("concept,weight\ndog,-1\n", "line 2: '-1' is not a weight"),
        ("concept,kind\ndog,beast\n", "line 2: unknown kind 'beast'"),
        ("concept,kind\ncat,object\n,object\n", "line 3 has no concept"),
        ("concept,kind\ncat\n", "line 2 has 1 columns, the first line 2"),
        ("concept,wieght\ncat,1\n", "unknown column 'wieght'"),
        (b"\xff\xfe\x00", "not a text file in UTF-8"),
    ],
)
def test_lists_with_mistakes(tmp_path: Path, text: str | bytes, message: str) -> None:
    (tmp_path / "c.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=message) as caught:
        concepts.read_concepts([str(tmp_path / "c.txt")])
    assert caught.value.where == tmp_path / "c.txt"


def test_concepts_without_backgrounds_are_named(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("".join(f"thing {i}\n" for i in range(9)))
    with pytest.raises(DataError, match=r"9 concepts have no backgrounds: thing 0, .*thing 4, \.\.\. \(add"):
        str(assignments_of((str(tmp_path / "c.txt"),)))
    assignments_of((str(tmp_path / "c.txt"),), templates=(1, 0, 0))
    for text in ("[]", '{"a": []}', '{"a": "forest"}', '{"a": [""]}'):
        (tmp_path / "b.json").write_text(text)
        with pytest.raises(DataError, match="backgrounds"):
            concepts.read_backgrounds(str(tmp_path / "b.json"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pool,concept\n", "the columns pool, concept, second and caption are missing"),
        ("pool,concept,caption\nobject,dog,\n", "line 2 is not an example"),
        ("pool,concept,caption\nthing,dog,A dog.\n", "line 2 is not an example"),
        ("pool,concept,caption\nobject,dog,A dog.\nobject,cat,A cat.\n", "the pool object has 2 examples and needs 3"),
    ],
)
def test_examples_with_mistakes(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "e.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_examples(tmp_path / "e.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"id": "a", "caption": "A dog."}\n{"id": "b", "cap\n', "line 2 is not JSON"),
        ('{"id": "a", "caption": "A dog."}\n\n{"id": "b"}\n', "line 3 has no caption"),
        ('{"id": "a", "caption": " "}\n', "line 1 has no caption"),
        ('id": "a", "caption": "A dog."}\n{"id": "b", "caption": "A cat."}\n', "line 1 is not JSON"),
        ('{"id": "a", "caption": "A dog."}\nA cat.\n', "line 2 is not JSON"),
        ('{"id": [1], "caption": "A dog."}\n', "the id of line 1"),
        ("\n", "the file has no captions"),
    ],
)
def test_captions_with_bad_lines(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        read_captions(tmp_path / "c.jsonl")


def test_captions_with_line_separators_inside(tmp_path: Path) -> None:
    text = json.dumps({"id": 1, "caption": "a dog\u2028in the snow\x85"}, ensure_ascii=False)
    (tmp_path / "c.jsonl").write_text(f"{text}\n\n")
    assert read_captions(tmp_path / "c.jsonl").texts == ["a dog\u2028in the snow\x85"]


def test_images_and_captions_in_the_layout_of_stablerep(tmp_path: Path) -> None:
    """A CSV of paths and captions, and a folder for the k-th image of each."""
    file, paths = tmp_path / "captions.csv", ("000/01.png", "000/00.png")
    file.write_text('000/01.png,"a dog, wet"\n000/00.png,a cat\n')
    for k in range(3):
        (tmp_path / str(k) / "000").mkdir(parents=True)
        for i, path in enumerate(paths):
            Image.new("RGB", (4, 4), (10 * k + i, 0, 0)).save(tmp_path / str(k) / path)
    spec = f"captioned:{file}:{tmp_path}/0:{tmp_path}/1:{tmp_path}/2"
    images, captions = open_set(spec), read_captions(file)
    assert captions.texts == ["a dog, wet", "a cat"]
    assert images.rows.keys == [f"{name}@{k}" for name in captions.ids for k in range(3)]
    assert images.rows.groups == [name for name in captions.ids for _ in range(3)]
    assert set(images.rows.origins) == {SYNTHETIC}
    assert images.read(np.arange(6))[:, 0, 0, 0].tolist() == [0, 10, 20, 1, 11, 21]
    (tmp_path / "2" / paths[0]).unlink()
    with pytest.raises(MissingInputError):
        open_set(spec).read(np.arange(6))
    for wrong in ("captioned:", f"captioned:{file}", f"captioned:{file}:"):
        with pytest.raises(UsageError, match="malformed name of a captioned set"):
            open_set(wrong)
    with pytest.raises(MissingInputError, match="no such folder"):
        open_set(f"captioned:{file}:{tmp_path}/9")


@pytest.mark.parametrize("text", ["a.png,a dog\nb.txt,a cat\n", "a.png,a dog\nb.png\n", "a.png,a dog\nb.png, \n"])
def test_listed_images_with_mistakes(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.csv").write_text(f"path,caption\n{text}")
    with pytest.raises(DataError, match="line 3 is not an image path with a caption"):
        read_captions(tmp_path / "c.csv")


def test_captions_give_the_class_of_their_images(tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text("concept,class\ntabby,cat\nbeagle,dog\nmop,\n")
    found = concepts.read_concepts([str(tmp_path / "own.csv")]).concepts
    assert [concept.label for concept in found] == ["cat", "dog", "mop"]
    lines = ('{"id": "a", "caption": "x", "class": "dog"}', '{"id": "b", "caption": "y"}')
    (tmp_path / "c.jsonl").write_text("\n".join((*lines, '{"id": "c", "caption": "z", "class": "cat"}')))
    rows, names = read_captions(tmp_path / "c.jsonl").rows(tmp_path)
    assert (rows.labels.tolist(), names) == ([1, -1, 0], ("cat", "dog"))
