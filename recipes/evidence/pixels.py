"""Write the pixels of an image set as a feature table: `pixels.py SET OUT`. An encoder has to beat them."""

import sys
from pathlib import Path

from corecli.data.features import FeatureTable, save_features
from corecli.data.imageset import open_set

spec, out = sys.argv[1:]
images = open_set(spec)
pixels = images.read(images.slots).flatten(1).float() / 255
header = {
    "encoder": None,
    "layer": "pixels",
    "space": "pixels",
    "source": images.fingerprint,
    "class_names": images.class_names,
}
rows = images.rows
save_features(
    Path(out), FeatureTable(features=pixels, keys=rows.keys, groups=rows.groups, labels=rows.labels, header=header)
)
