"""Write and read generators in the folder layout of diffusers.

diffusers loads the parts `unet/`, `scheduler/` and `vae/` or `vqvae/` with `from_pretrained`. The file
`corecli.safetensors` holds the rest: the header, the conditioning and the scale of latents, so that a folder is read
back as the same generator. `SHA256SUMS` has the hashes of all files, which every load checks. An unconditional
generator of pixels also has a `model_index.json`; it runs as a DDIMPipeline, or as a DDPMPipeline if the variance is
learned.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from corecli.base import checkpoint, registry
from corecli.base.checkpoint import Header, Tensors
from corecli.base.claim import put_directory, remove_leftovers, temporary_path
from corecli.base.errors import UsageError, about
from corecli.base.files import missing, sha256_file, storage_errors, write_json
from corecli.base.sums import write_sums
from corecli.diffusion import objectives, schedules
from corecli.diffusion.noise import noise_tables
from corecli.generators.parts.generator import build_saved
from corecli.nets.autoencoder import VQ, FirstStage, diffusers_class
from corecli.nets.weights.pipelines import OWN, OWN_KIND, check_export, is_own, refuse_others

_UNET, _STAGE = "network.unet.", "first_stage.autoencoder."
_WEIGHTS = "diffusion_pytorch_model.safetensors"


def write_folder(folder: Path, tensors: Tensors, header: Header) -> None:
    """Write the generator of a loaded checkpoint. The folder of another generator is replaced; its own is kept.

    Errors: UsageError for a family or an objective that diffusers does not support; CannotCreateError if the folder
    holds something else; StorageError.
    """
    generator = build_saved(header, tensors)
    objective = getattr(generator.config, "objective", "")
    if not hasattr(getattr(generator, "network", None), "diffusers_config") or not _prediction_type(objective):
        raise UsageError(f"diffusers has no classes for {header['arch']} {objective}".rstrip())
    with storage_errors(folder):
        refuse_others(folder)
        if is_own(folder) and _header(folder) == header:
            return
        temporary = temporary_path(folder)
        remove_leftovers(folder.parent, [folder.name])
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            _write_parts(temporary, generator)
            rest = {n: t for n, t in tensors.items() if not n.startswith((_UNET, _STAGE))}
            checkpoint.save(temporary / OWN, rest, kind=OWN_KIND, generator=header)
            files = sorted(path for path in temporary.rglob("*") if path.is_file())
            write_sums(temporary, {path.relative_to(temporary).as_posix(): sha256_file(path) for path in files})
            refuse_others(folder)  # another program may have filled it meanwhile
            put_directory(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def read_folder(folder: Path) -> tuple[Tensors, Header]:
    """Return the tensors and the header of a written folder; weights changed with diffusers get a new fingerprint.

    Errors: MissingInputError; DataError, also for a file that differs from its hash in `SHA256SUMS`.
    """
    if not is_own(folder):
        raise missing(folder / OWN)
    check_export(folder)
    rest, own = checkpoint.load(folder / OWN, kind=OWN_KIND)
    tensors = {**rest, **_prefixed(folder / "unet", _UNET)}
    for part in ("vae", "vqvae"):
        if (folder / part).is_dir():
            tensors |= _prefixed(folder / part, _STAGE)
    header = {**own["generator"], "fingerprint": checkpoint.fingerprint(tensors)}
    with about(folder):
        build_saved(header, tensors)
    return tensors, header


def _write_parts(folder: Path, generator: Any) -> None:
    unet, scheduler, stage = unet_of(generator), scheduler_of(generator), generator.first_stage
    unet.save_pretrained(folder / "unet")
    scheduler.save_pretrained(folder / "scheduler")
    if stage is not None:
        autoencoder_of(stage).save_pretrained(folder / ("vqvae" if stage.spec["kind"] == VQ else "vae"))
    elif generator.config.condition == "none":
        index = {
            "_class_name": "DDPMPipeline" if generator.config.learn_sigma else "DDIMPipeline",
            "unet": ["diffusers", type(unet).__name__],
            "scheduler": ["diffusers", type(scheduler).__name__],
        }
        write_json(folder / "model_index.json", index)


def unet_of(generator: Any) -> Any:
    """Return the U-Net of diffusers with the weights of a generator."""
    from diffusers.models.unets.unet_2d import UNet2DModel
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    config = generator.network.diffusers_config
    unet = (UNet2DConditionModel if "cross_attention_dim" in config else UNet2DModel)(**config)
    unet.load_state_dict(generator.network.unet.state_dict())
    return unet


def autoencoder_of(stage: FirstStage) -> Any:
    """Return the autoencoder of diffusers with the weights of a first stage.

    Its config records the scale of latents if it can: one factor, or for an AutoencoderKL the means and standard
    deviations of the channels.
    """
    autoencoder = diffusers_class(stage.spec["kind"])(**stage.spec["config"])
    autoencoder.load_state_dict(stage.autoencoder.state_dict())
    shift, scale = stage.shift.flatten().tolist(), stage.scale.flatten().tolist()
    if not any(shift) and len(set(scale)) == 1:
        autoencoder.register_to_config(scaling_factor=scale[0])
    elif "latents_mean" in autoencoder.config:
        stds = [1 / s for s in scale]
        autoencoder.register_to_config(scaling_factor=1.0, latents_mean=shift, latents_std=stds)
    return autoencoder


def scheduler_of(generator: Any) -> Any:
    """Return the scheduler of diffusers for a generator: DDIM as published, or DDPM if the variance is learned."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    config = generator.config
    shared: dict[str, Any] = {
        "num_train_timesteps": config.diffusion_steps,
        **_betas(config.schedule, config.diffusion_steps),
        "prediction_type": _prediction_type(config.objective),
        "clip_sample": generator.first_stage is None,
    }
    if config.learn_sigma:
        return DDPMScheduler(**shared, variance_type="learned_range", timestep_spacing="linspace")
    return DDIMScheduler(**shared, timestep_spacing="leading", steps_offset=0, set_alpha_to_one=True)


def _betas(schedule: str, num_timesteps: int) -> dict[str, Any]:
    """Return the settings of a scheduler with a schedule's betas: those of its file, or all of its betas."""
    settings = getattr(schedules.load(schedule), "DIFFUSERS", None)
    if settings is None:
        return {"trained_betas": noise_tables(schedule, num_timesteps).betas.tolist()}
    scale = 1000 / num_timesteps
    scaled = {name: scale * settings[name] for name in ("beta_start", "beta_end")}
    return {"beta_schedule": settings["beta_schedule"], **scaled}


def _prediction_type(objective: str) -> str | None:
    """Return the name of an objective in diffusers, None if it has none."""
    return registry.constants(objectives.FOLDER, objective).get("DIFFUSERS") if objective else None


def _prefixed(folder: Path, prefix: str) -> Tensors:
    return {f"{prefix}{name}": tensor for name, tensor in checkpoint.load_tensors(folder / _WEIGHTS).items()}


def _header(folder: Path) -> Header:
    return checkpoint.require_header(folder / OWN, kind=OWN_KIND)["generator"]
