"""Check files, folders and image sets for damage.

Everything that a path records about its own content is checked: the hashes in files that corecli wrote, the hashes in
SHA256SUMS, the checksums in PNG, zip, npz and torch files, the headers, and the number of images. Images without a hash
are decoded. Files of other tools are checked as far as they have checksums. A path is read piece by piece, so that its
size does not matter.

A path is an image set of any format, with the parts of a mixture; a feature table, an encoder, a generator, latents
or other tensors; a file of captions, statistics or one image; the folder of a run, FILE.d; a folder in the layout of
diffusers or transformers; or any other folder, whose files are checked one by one.

Files record the fingerprints of the files that they were made from, their parents. A parent that is found at the
recorded path, from the working directory or from the folder of the file, must have the recorded fingerprint. With
--parents every parent must be there, and is checked as completely as a path on the command line.

The verb prints a line for each path: the path, "ok" and what was checked, or "differs" or "missing" and the reason. The
exit code is 65 if any path differs, and 66 if one is missing.
"""

from __future__ import annotations

from dataclasses import dataclass

from corecli.base.config import Common, Preset, option

SUMMARY = "check files, folders and image sets for damage"
PLACE = 10
EXAMPLES = (
    ("An encoder and the feature table that was made with it", "f.safetensors z.safetensors"),
    ("A mixture with all its parts, and everything they were made from", "mix.json --parents"),
    ("The folder of a run, as one JSON object", "g.safetensors.d --json"),
)
PRESETS: dict[str, Preset] = {}


@dataclass(frozen=True, kw_only=True)
class Config(Common):
    """Options of `corecli verify`."""

    paths: tuple[str, ...] = option(help="files, folders or image sets to check", metavar="PATH", positional=True)
    parents: bool = option(
        False, help="require every file that a path was made from, and check it completely", role="runtime"
    )
