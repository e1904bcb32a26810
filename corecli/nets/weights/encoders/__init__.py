"""Encoders of other tools, recognized by the content of their checkpoints, one file per family of networks.

The names tell the network and where in the file it is, the shapes its size. Projectors, predictors, classifiers and
decoders are dropped knowingly; any other name that is left over is an error, since a silently ignored weight is a wrong
encoder.
"""

from __future__ import annotations

from corecli.base.errors import DataError
from corecli.nets.weights.encoders import resnet, vit
from corecli.nets.weights.encoders.names import Foreign, Tensors, choose

_FAMILIES = (resnet, vit)


def recognize(tensors: Tensors, *, where: object) -> Foreign:
    """Find the one ResNet or ViT in the flattened `tensors` of a file.

    Errors: DataError when there is none, several, or one with names that are neither a backbone's nor a head's.
    """
    families = {prefix: family for family in _FAMILIES for prefix in family.prefixes(tensors)}
    if not families:
        hint = "for another timm model write timm:NAME:FILE"
        raise DataError("no ResNet or ViT backbone found among its weights", where=where, hint=hint)
    prefix = choose(list(families), tensors, where=where)
    return families[prefix].read(tensors, prefix, where=where)
