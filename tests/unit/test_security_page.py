"""The page corecli-security(7) has the limits of the code, and the other pages name it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from corecli.base import archives, blocks, claim, config, documents, layout
from corecli.captions import server
from corecli.commands.parts import inputs
from corecli.data import decode, pixels
from corecli.data.formats import mixture
from corecli.data.formats.parts import joining, tar_index
from corecli.engine import launch

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "man/corecli-security.7").read_text()
LIMITS = {
    "JSON and TOML": f"{documents.MAX_BYTES >> 30} GiB for a document, "
    f"{config._MAX_FILE_BYTES >> 20} MiB for a file of options; {documents.MAX_DEPTH} levels of nesting; "
    f"integers of {documents._MAX_INTEGER.bit_length() - 1} bits; finite numbers",
    "Headers of tensor files": f"{layout.MAX_HEADER_BYTES // 10**6} MB",
    "zip, npz and torch files": f"members of {archives._MAX_EXPANSION} times the size of the file in total, or of "
    f"{archives._ALWAYS_BYTES >> 20} MiB",
    "Images": f"{decode.MAX_PIXELS:,} pixels",
    "Skipped images": f"{pixels.MAX_BAD_FRACTION:.0%} of a set",
    "Labels and captions in tar files": f"{tar_index._MAX_SIDECAR_BYTES >> 20} MiB each",
    "Mixtures": f"{mixture._MAX_DEPTH} levels, {mixture._MAX_MIXTURES} mixtures within one another, "
    f"{joining._MAX_SLOTS:,} images in an epoch",
    "Processes": f"{launch._MOST_PER_CORE} for each core; {inputs._MOST_WORKERS} data loading workers",
    "Responses of a caption server": f"{server._LARGEST_BYTES >> 20} MiB; at most "
    f"{server._LONGEST_WAIT_SEC:.0f} seconds between two tries",
    "Waiting for another job": f"{claim.WAIT_SEC:.0f} seconds",
}


def test_every_limit_is_that_of_the_code() -> None:
    section = PAGE.partition(".SH LIMITS\n")[2].partition("\n.SH ")[0]
    listed = dict(re.findall(r"\.TP\n(.*)\n(.*)", section))
    assert listed == LIMITS


def test_the_size_of_a_block_is_that_of_the_code() -> None:
    assert f"{blocks._BLOCK_BYTES >> 10} KiB block" in PAGE


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "man/corecli.1", "man/corecli-sample.1"]
)
def test_other_pages_name_it(page: str) -> None:
    assert re.search(r"corecli\\?-security", (ROOT / page).read_text())
