"""Read encoders of other tools, which are recognized by the content of their checkpoints; one file for each family.

Names identify the network and its prefix in the file, and shapes its size. Projectors, predictors, classifiers and
decoders are dropped. Any other unknown name is an error, because ignoring a weight would give a wrong encoder.
"""

from __future__ import annotations

from corecli.base.errors import DataError
from corecli.nets.weights.encoders import resnet, vit
from corecli.nets.weights.encoders.names import Foreign, Tensors, choose

_FAMILIES = (resnet, vit)


def recognize(tensors: Tensors, *, where: object) -> Foreign:
    """Return the ResNet or ViT in the flattened `tensors` of a file.

    Errors: DataError if there is none, or several that differ, or if a weight belongs to neither backbone nor head.
    """
    families = {prefix: family for family in _FAMILIES for prefix in family.prefixes(tensors)}
    if not families:
        hint = "for another timm model write timm:NAME:FILE"
        raise DataError("no ResNet or ViT backbone found among its weights", where=where, hint=hint)
    prefix = choose(list(families), tensors, where=where)
    return families[prefix].read(tensors, prefix, where=where)
