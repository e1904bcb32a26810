"""A first stage whose weights are set by hand, so that tests know its latents."""

from typing import Any

import torch

from corecli.nets.autoencoder import Spec, diffusers_class

HALVING: Spec = {
    "kind": "AutoencoderTiny",
    "config": {
        "encoder_block_out_channels": [8, 8],
        "decoder_block_out_channels": [8, 8],
        "num_encoder_blocks": [0, 0],
        "num_decoder_blocks": [0, 0],
    },
    "measured": True,
}


def set_by_hand(first_stage: Any) -> None:
    """Latents of `HALVING`: the means of 2 x 2 pixels, in [0, 0.1], and their gray; decoding repeats the pixels."""
    encoder, decoder = first_stage.autoencoder.encoder.layers, first_stage.autoencoder.decoder.layers
    for parameter in first_stage.parameters():
        parameter.data.zero_()
    colors = torch.arange(3)
    encoder[0].weight.data[colors, colors, 1, 1] = 1
    encoder[1].weight.data[colors, colors, 1:, 1:] = 0.25  # of stride 2
    encoder[2].weight.data[colors, colors, 1, 1] = 0.1  # where the bound of a decoder's input hardly bends it
    encoder[2].weight.data[3, :3, 1, 1] = 0.1 / 3
    decoder[0].weight.data[colors, colors, 1, 1] = 1  # latents are positive, so the ReLU after it does nothing
    decoder[3].weight.data[colors, colors, 1, 1] = 1
    decoder[4].weight.data[colors, colors, 1, 1] = 10


def smooth(images: torch.Tensor) -> torch.Tensor:
    """Uint8 images that `HALVING` reconstructs: every 2 x 2 pixels alike."""
    return images[..., ::2, ::2].repeat_interleave(2, -1).repeat_interleave(2, -2)


def diffusers_model(spec: Any) -> Any:
    """The autoencoder of diffusers that a spec names, with random weights."""
    return diffusers_class(spec["kind"])(**spec["config"])
