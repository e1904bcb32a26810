"""Pipelines of diffusers with tiny random weights, made on the spot: 16 px images, some 300 KB each on disk."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch

TOKENS = 20  # the longest prompt, its two marks included
SIZE_PX = 16
_WIDTH = 16


def save_text_to_image(folder: Path) -> None:
    """A StableDiffusionPipeline."""
    from diffusers import StableDiffusionPipeline

    _seeded()
    parts: dict[str, Any] = {"vae": _vae(), "unet": _unet(), "scheduler": _scheduler(), "safety_checker": None}
    parts |= {"text_encoder": _text_encoder(), "tokenizer": _tokenizer(), "feature_extractor": None}
    StableDiffusionPipeline(**parts, requires_safety_checker=False).save_pretrained(folder)


def save_image_variation(folder: Path) -> None:
    """A StableDiffusionImageVariationPipeline."""
    from diffusers import StableDiffusionImageVariationPipeline

    _seeded()
    parts: dict[str, Any] = {"vae": _vae(), "unet": _unet(), "scheduler": _scheduler(), "safety_checker": None}
    parts |= {"image_encoder": _image_encoder(), "feature_extractor": _image_processor()}
    StableDiffusionImageVariationPipeline(**parts, requires_safety_checker=False).save_pretrained(folder)


def save_unclip_images(folder: Path) -> None:
    """A StableUnCLIPImg2ImgPipeline."""
    from diffusers import StableUnCLIPImg2ImgPipeline

    _seeded()
    parts: dict[str, Any] = {"feature_extractor": _image_processor(), "image_encoder": _image_encoder()}
    StableUnCLIPImg2ImgPipeline(**parts, **_unclip_parts()).save_pretrained(folder)


def save_unclip_text(folder: Path) -> None:
    """A StableUnCLIPPipeline, with its prior."""
    from diffusers import PriorTransformer, StableUnCLIPPipeline, UnCLIPScheduler
    from transformers import CLIPTextModelWithProjection

    _seeded()
    prior = PriorTransformer(
        num_attention_heads=2, attention_head_dim=8, num_layers=1, embedding_dim=_WIDTH, num_embeddings=TOKENS
    )
    parts: dict[str, Any] = {
        "prior_tokenizer": _tokenizer(),
        "prior_text_encoder": CLIPTextModelWithProjection(_text_config()),
        "prior": prior,
        "prior_scheduler": UnCLIPScheduler(
            variance_type="fixed_small_log", prediction_type="sample", num_train_timesteps=1000, clip_sample=True
        ),
    }
    StableUnCLIPPipeline(**parts, **_unclip_parts()).save_pretrained(folder)


def save_versatile_variation(folder: Path) -> None:
    """A VersatileDiffusionImageVariationPipeline."""
    from diffusers import VersatileDiffusionImageVariationPipeline

    _seeded()
    parts: dict[str, Any] = {"image_feature_extractor": _image_processor(), "image_encoder": _image_encoder()}
    parts |= {"image_unet": _unet(), "vae": _vae(), "scheduler": _scheduler()}
    VersatileDiffusionImageVariationPipeline(**parts).save_pretrained(folder)


def write_clip_text(folder: Path) -> None:
    """CLIP's text encoder with its tokenizer, as transformers has them."""
    _seeded()
    _text_encoder().save_pretrained(folder)
    _tokenizer().save_pretrained(folder)


def write_autoencoder(folder: Path) -> None:
    """The autoencoder of a latent diffusion model, as diffusers has it."""
    _seeded()
    _vae().save_pretrained(folder)


def save_unconditional(folder: Path) -> None:
    """A DDPMPipeline, which is given nothing."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    _seeded()
    unet = UNet2DModel(
        sample_size=SIZE_PX,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    DDPMPipeline(unet=unet, scheduler=DDPMScheduler()).save_pretrained(folder)


def _seeded() -> None:
    torch.manual_seed(0)


def _unet(**more: Any) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=SIZE_PX // 2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=_WIDTH,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **more,
    )


def _unclip_parts() -> dict[str, Any]:
    from diffusers import DDPMScheduler
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer

    return {
        "image_normalizer": StableUnCLIPImageNormalizer(embedding_dim=_WIDTH),
        "image_noising_scheduler": DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        "tokenizer": _tokenizer(),
        "text_encoder": _text_encoder(),
        "unet": _unet(class_embed_type="projection", projection_class_embeddings_input_dim=2 * _WIDTH),
        "scheduler": _scheduler(),
        "vae": _vae(),
    }


def _vae() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(4, 4),
        norm_num_groups=2,
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
    )


def _scheduler() -> Any:
    from diffusers import DDIMScheduler

    betas: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    return DDIMScheduler(**betas, clip_sample=False, set_alpha_to_one=False, steps_offset=1)


def _image_encoder() -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    sizes: dict[str, Any] = {"hidden_size": _WIDTH, "intermediate_size": _WIDTH, "projection_dim": _WIDTH}
    sizes |= {"num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    return CLIPVisionModelWithProjection(CLIPVisionConfig(**sizes))


def _image_processor() -> Any:
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


def _text_config() -> Any:
    from transformers import CLIPTextConfig

    sizes: dict[str, Any] = {"hidden_size": _WIDTH, "intermediate_size": _WIDTH, "projection_dim": _WIDTH}
    sizes |= {"num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": TOKENS}
    return CLIPTextConfig(vocab_size=514, bos_token_id=512, eos_token_id=513, pad_token_id=513, **sizes)


def _text_encoder() -> Any:
    from transformers import CLIPTextModel

    return CLIPTextModel(_text_config())


def _tokenizer() -> Any:
    """CLIP's tokenizer with a vocabulary of single bytes, within a word and at its end, and no merges."""
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        vocabulary, merges = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        vocabulary.write_text(json.dumps({word: i for i, word in enumerate(words)}))
        merges.write_text("#version: 0.2\n")
        return CLIPTokenizer.from_pretrained(folder, model_max_length=TOKENS)
