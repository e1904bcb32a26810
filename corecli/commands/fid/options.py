"""Measure the distance between two image sets, or between two feature spaces.

The Frechet distance is computed in float64 from the features of the network --extractor, which runs in float32. With
the weights of the FID Inception network the distance is called fid. With any other encoder it is called fd[NAME] and
can be compared only with distances from the same encoder. For a sound comparison, train that encoder on real images
only, use the same one in all rounds, and do not use the encoder that conditions the generator.

The samples and the reference are image sets or feature tables. The reference can also be a statistics file: an .npz
with mu and sigma, such as the reference batches of ADM. The images in such a batch are used for metrics that need more
than statistics.

All images go through the network once for all metrics. With --cache DIR their features are stored. A stored file is
used again only if every pixel, the network and the preprocessing are the same.

The output has one line per score: NAME, VALUE and, if there is one, the 95% interval LOW and HIGH, separated by tabs.
The numbers of images and the feature space follow. A metric that cannot be computed from the inputs is an error if
--metrics names it, and is skipped with a note if it is part of --metrics all.

fd and fid report the distance. A second score, with the suffix _corrected, is the distance without the bias due to the
number of images; it has an interval. Correction and interval come from the ten-fold jackknife. A corrected distance can
be negative if two sets hardly differ. The interval is not from a bootstrap, because resamples with repeated images are
farther from the reference than new images.

The spatial distance, sfid, is the Frechet distance of the first 7 channels of Inception's mixed_6/conv at all 17 x 17
places, as in ADM's evaluator. It reacts to the spatial structure of images.

The Inception score, is, says how varied and how unambiguous the samples look to the Inception classifier. is and is_std
are its mean and standard deviation over --splits parts of the shuffled samples, from logits without bias, as in
torch-fidelity. ADM's evaluator does not shuffle and scores every 5000 images.

The kernel distance, kid, compares all pairs of images. It has no bias due to the number of images, and a jackknife
interval. kid-subsets is the mean and standard deviation of the same distance over 100 subsets of 1000 images (or of the
size of the smaller set), drawn as in torch-fidelity.

precision is the share of samples inside the support of the real images, recall the share of real images inside the
support of the samples. The support is a union of closed balls, each up to the 3rd nearest neighbor. density and
coverage answer the same two questions with open balls up to the 5th neighbor of real images, which makes them less
sensitive to outliers: density is the mean number of balls that contain a sample, relative to 5; coverage is the share
of balls that contain a sample.

fd-infinity extrapolates the distance to infinitely many samples, by a line in 1/N through 15 numbers of samples.

copies detects memorized training images. nearest_real is the mean distance of samples to their nearest real image,
real_nearest_real the mean distance of real images to their nearest other one, and copy_ratio their quotient; a value
well below 1 means that the generator copies. Three shares of samples follow: copy_fraction, at or below the 1%
quantile of the distances among real images; memorised, three times as near to one real image as to any other;
authenticity, farther from the nearest real image than that image is from its own nearest one.

vendi is the effective number of different images, for samples and reference; the centered score subtracts the mean of
the features first. diversity is the mean cosine distance of two images of a class. per-class is the mean of the Frechet
distances of the classes, which --json lists.

cka and opd compare two encoders. --reference and --samples are their feature tables of the same images, which are
joined by key. cka is 1 minus the linear CKA, cka_debiased is its debiased form, and opd is the orthogonal Procrustes
distance. All are 0 for spaces that differ only by rotation, shift and scale. cka and opd are too small for few images:
for independent Gaussians of 512 and 256 dimensions and 256, 1000 and 4000 images, cka is 0.42, 0.74 and 0.92, and opd
is 0.39, 1.09 and 1.53. Compare them at equal numbers of images. cka_debiased is near 1 in all three cases. The
intervals come from --bootstrap resamples of the images. Resamples repeat images, which makes their distances smaller,
so an interval can lie below its value.

Other tools give the same numbers from the same weights if the preprocessing agrees. torch-fidelity resizes and
normalizes as --resize tf1, pytorch-fid as --resize torch and clean-fid as --resize clean; these differ from each other
by several percent. If there are no more images than features, the covariance is singular and their matrix square root
is off by about 1e-4 of the distance, while the distance here is exact. With more images all agree to 1e-6.
torch-fidelity sums the kernel in float32, so that kid differs by up to 1e-7. Its precision and recall use VGG16 by
default. ADM's evaluator computes neighbors in float16, which changes precision and recall by thousandths.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from corecli.base.config import Preset, option
from corecli.commands.parts.inputs import ReadsImages
from corecli.metrics.parts.metric import default_metrics, metrics

SUMMARY = "measure the distance between two image sets"
PLACE = 7
EXAMPLES = (
    (
        "Compute FID and the Inception score against CIFAR-10",
        "--reference torchvision:CIFAR10:train --samples syn --extractor pt_inception-2015-12-05-6726825d.pth",
    ),
    (
        "Compute all metrics against ADM's reference batch and cache the features",
        "--reference VIRTUAL_imagenet256_labeled.npz --samples syn --extractor inception.pth --metrics all --cache DIR",
    ),
    (
        "Measure in the feature space of an encoder",
        "--reference DIR --samples syn --extractor judge.safetensors --json",
    ),
    (
        "Compare two encoders on the same images",
        "--reference z1.safetensors --samples z2.safetensors --metrics cka,opd",
    ),
    ("Save the statistics of the reference", "--reference DIR --extractor judge.safetensors --save-stats real.npz"),
)
PRESETS: dict[str, Preset] = {}
ALL = "all"
NUM_RESAMPLES = 100


_DEFAULT = ", ".join(metric.name for metric in default_metrics())
_BOOTSTRAPPED = " and ".join(name for name, metric in metrics().items() if metric.reads("similarities"))


def _choices() -> tuple[str, ...]:
    return (ALL, *metrics())


@dataclass(frozen=True, kw_only=True)
class Config(ReadsImages):
    """Options of `corecli fid`."""

    reference: str = option(
        help="real images, their feature table or their statistics", role="input", metavar="SET|FILE"
    )
    samples: tuple[str, ...] = option(
        (),
        help="images to evaluate, or their feature table; repeat for several sets",
        role="input",
        metavar="SET|FILE",
    )
    metrics: tuple[str, ...] = option(
        (),
        choices=_choices,
        help=f"metrics, comma-separated or repeated (default: {_DEFAULT}, if available)",
    )
    extractor: str | None = option(
        None,
        help="network that computes the features: FID Inception weights, an encoder or timm:NAME",
        role="input",
        metavar="FILE|NAME",
    )
    layer: Literal["backbone", "projector"] = option("backbone", help="layer of the encoder that gives the features")
    resize: Literal["tf1", "torch", "clean", "none"] = option(
        "tf1",
        help="resize for Inception as in TensorFlow 1 and ADM, pytorch-fid or clean-fid; or none",
    )
    save_stats: Path | None = option(
        None, help="write the statistics of the reference to this file", role="output", metavar="FILE.npz"
    )
    cache: Path | None = option(
        None, help="directory that stores features of images for later runs", role="runtime", metavar="DIR"
    )
    splits: int = option(10, help="number of parts of the samples for the Inception score", minimum=1)
    bootstrap: int | None = option(
        None,
        help=f"resamples for the intervals of {_BOOTSTRAPPED}; 0 is no intervals (default: {NUM_RESAMPLES})",
        minimum=0,
    )
    batch_size: int = option(128, help="images per forward pass", role="runtime", minimum=1)


def tables() -> dict[str, tuple[tuple[str, str], ...]]:
    """Return the table of metrics in the man page."""
    return {"METRICS": tuple((name, f"{metric.title}.") for name, metric in metrics().items())}
