"""Sampling from pipelines of diffusers, killed in the middle: the same line makes what is missing, to the byte."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from killing import Start, Work, left_alone, same, survives
from lines import Line, contents, wait_for

pytest.importorskip("transformers")

import pipelines

from corecli.engine import run

KINDS = ["text_to_image", "image_variation"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pipelines")
    pipelines.save_text_to_image(root / "text_to_image")
    pipelines.save_image_variation(root / "image_variation")
    (root / "captions.txt").write_text("\n\n".join(f"picture number {i}" for i in range(355)))
    return root


def work_of(kind: str, folder: Path) -> Work:
    """355 captions, or images, in shards of 256."""
    given = ("--captions", folder / "captions.txt") if kind == "text_to_image" else ("--images", "digits:8:test")
    line = ["sample", "--ckpt", f"diffusers:{folder / kind}", *given, "--steps", 1, "--guidance", 1]
    return Work([*line, "--batch-size", 32, "--device", "cpu", "--format", "packed"], target="out")


@pytest.mark.parametrize("kind", ["text_to_image", pytest.param("image_variation", marks=pytest.mark.slow)])
def test_a_killed_pipeline_ends_as_if_left_alone(kind: str, folder: Path, start: Start, tmp_path: Path) -> None:
    work = work_of(kind, folder)
    survives(kind, work, start, left_alone(work, start, tmp_path / "alone"), tmp_path, kills=1, seed=6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_killed_in_the_middle_make_what_one_makes(
    kind: str, folder: Path, start: Start, tmp_path: Path
) -> None:
    work = work_of(kind, folder)
    alone = left_alone(work, start, tmp_path / "alone")
    (tmp_path / "killed").mkdir()
    argv = [*work.line(tmp_path / "killed"), "--nproc", 2]

    def shards() -> dict[Path, int]:
        work_folder = run.folder_of(tmp_path / "killed" / work.target)
        return {path: path.stat().st_ino for path in work_folder.glob("shard-*")}

    line = Line(argv, folder=tmp_path / "streams")
    wait_for(shards, line)
    line.signal(signal.SIGKILL)
    assert line.end().code == -signal.SIGKILL
    kept = shards()
    line = Line(argv, folder=tmp_path / "streams")
    wait_for(lambda: len(shards()) > len(kept), line)
    assert kept.items() <= shards().items()  # not made again
    assert line.end().code == 0
    same(contents(tmp_path / "killed"), alone.contents)
