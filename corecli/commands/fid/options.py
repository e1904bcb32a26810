"""Measure the distance between two image sets, or between two feature spaces.

The Frechet distance is computed in float64 in the feature space of --extractor, which runs in float32. With the weights
of the FID Inception network it is called fid; in any other encoder's space it is called fd[NAME] and compares only with
itself. Sound only when that encoder was trained on real images alone, is frozen over all rounds, and is not the one
that conditions the generator.

Either side may be an image set or a feature table; the reference also a statistics file (.npz with mu and sigma, such
as ADM's reference batches, whose images serve the metrics that need more than statistics). Images go through the
network once for all metrics; with --cache DIR their features are kept under the hash of every pixel, of the network and
of the preprocessing, so that features of other images are never used.

Output is one line a score, NAME, VALUE and where there is one the 95 % interval, LOW and HIGH, separated by tabs; then
the numbers of images and the feature space. A metric that the inputs cannot give is refused where it was named, and
left out with a note under --metrics all.

fd, or fid: the distance, and _corrected for the number of images by the ten-fold jackknife, with its interval. The
bootstrap is not used: resamples with repeated images are farther from the reference than fresh ones. The corrected
distance of two sets that are hardly apart may be negative.

sfid: the same in the first 7 channels of Inception's mixed_6/conv at all 17 x 17 places, as ADM's evaluator.

is: the Inception score, mean and standard deviation over --splits, from logits without bias, shuffled as torch-fidelity
does. ADM's evaluator does not shuffle and cuts every 5000 images.

kid: the unbiased kernel distance over all pairs of images, with a jackknife interval. kid-subsets: its mean and
standard deviation over 100 subsets of 1000 (or of the smaller set), drawn as torch-fidelity draws them.

precision-recall: with closed balls to the 3rd neighbor; density-coverage: with open balls to the 5th.

fd-infinity: the end of a line through the distances of 15 numbers of samples, from a tenth to all, over 1/N.

copies: mean distance of samples to their nearest real image, of real images to each other, their copy_ratio (well below
1: the generator copies), and shares of samples: copy_fraction (at or below the 1 % quantile among real images),
memorised (thrice as near to one real image as to any other), authenticity (farther from the nearest real image than
that is from its own).

vendi: the effective number of different images, of samples and reference, also of features less their mean. diversity:
the mean cosine distance of two images of a class. per-class: the distance of each class, in --json, and their mean.

cka and opd compare two encoders on the same images, given as two feature tables that are joined by key: 1 minus the
linear CKA, beside its debiased form, and the orthogonal Procrustes distance. Both are 0 for spaces that differ by
rotation, shift and scale alone. Few images make them too small: independent Gaussians of 512 and 256 dimensions are at
cka 0.42, 0.74, 0.92 and opd 0.39, 1.09, 1.53 for 256, 1000 and 4000 images, so compare them at equal num_images;
cka_debiased is near 1 each time. Their intervals are of --bootstrap resamples with repeated images, which are nearer to
each other than fresh ones, so that an interval may lie below its value.

Beside other tools, on the same weights: torch-fidelity resizes and normalizes as --resize tf1, pytorch-fid as --resize
torch, clean-fid as --resize clean; the same images differ by per cents between these. With no more images than features
their matrix root of a singular covariance is off by about 1e-4 of the distance, which is exact here; with more images
all agree to 1e-6. torch-fidelity sums its kernel in float32: kid differs by up to 1e-7 absolutely, all of a distance
near 0. Its precision and recall are of VGG16 unless it is told otherwise. ADM's evaluator measures neighbors in
float16, which moves precision and recall by thousandths.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from corecli.base.config import Preset, option
from corecli.commands.fid.scores import METRICS
from corecli.commands.fid.spaces import NUM_RESAMPLES, SCORES
from corecli.commands.parts.inputs import ReadsImages

if TYPE_CHECKING:
    pass

SUMMARY = "measure the distance between two image sets"
PLACE = 7
EXAMPLES = (
    (
        "FID and IS against CIFAR-10",
        "--reference torchvision:CIFAR10:train --samples syn --extractor pt_inception-2015-12-05-6726825d.pth",
    ),
    (
        "Everything against ADM's reference batch, with the features kept for next time",
        "--reference VIRTUAL_imagenet256_labeled.npz --samples syn --extractor inception.pth --metrics all --cache DIR",
    ),
    ("In the space of an encoder", "--reference DIR --samples syn --extractor judge.safetensors --json"),
    ("How alike two encoders see one set", "--reference z1.safetensors --samples z2.safetensors --metrics cka,opd"),
    ("Keep the reference for later", "--reference DIR --extractor judge.safetensors --save-stats real.npz"),
)
PRESETS: dict[str, Preset] = {}
EVERY = "all"


@dataclass(frozen=True, kw_only=True)
class Config(ReadsImages):
    """Options of `corecli fid`."""

    reference: str = option(help="real images, their features or their statistics", role="input", metavar="SET|FILE")
    samples: tuple[str, ...] = option(
        (), help="images to judge, or their features; repeatable, one result each", role="input", metavar="SET|FILE"
    )
    metrics: tuple[str, ...] = option(
        (),
        choices=(EVERY, *METRICS, *SCORES),
        help="what to measure, repeatable or with commas; if not given fd, and is and copies where they can be",
    )
    extractor: str | None = option(
        None,
        help="network to measure with: FID Inception weights, an encoder, timm:NAME",
        role="input",
        metavar="FILE|NAME",
    )
    layer: Literal["backbone", "projector"] = option("backbone", help="features of an encoder")
    resize: Literal["tf1", "torch", "clean", "none"] = option(
        "tf1",
        help="how Inception's input is resized: as TensorFlow and ADM, pytorch-fid, clean-fid, or not at all",
    )
    save_stats: Path | None = option(None, help="write the reference's statistics", role="output", metavar="FILE.npz")
    cache: Path | None = option(
        None, help="keep features of images here, and use those kept", role="runtime", metavar="DIR"
    )
    splits: int = option(10, help="parts of the samples whose Inception scores are averaged", minimum=1)
    bootstrap: int | None = option(
        None, help=f"resamples behind the intervals of cka and opd, {NUM_RESAMPLES} if not given; 0: none", minimum=0
    )
    batch_size: int = option(128, help="images per forward pass", role="runtime", minimum=1)
