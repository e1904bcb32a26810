"""Every kind of file that corecli reads: how a small one is made, and the command lines that open it.

The folder of a kind is the working directory of its lines; `$S` in a line is the folder of shared inputs, which are
never damaged: images `four.safetensors`, encoders `f.safetensors` and `vit.safetensors`, and a feature table `z`.
"""

from __future__ import annotations

import csv
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from PIL import Image

from corecli.base import registry
from corecli.cli.app import run_line
from corecli.data.beside import load_arrays, save_arrays
from corecli.data.imageset import suffix_of, writable_formats, write_set
from corecli.data.rows import make_rows

SHOW = "show {} --out o.png -q"
COPY = "inflate --real {} --materialize o.safetensors -q"
MADE_FROM = "extract --data $S/four.safetensors --encoder {} --out o.safetensors -q"
SMALL_GENERATOR = "train-gen --data $S/four.safetensors --batch-size 2 --steps 1 -q"


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    make: writes it into its folder, given the folder of shared inputs. lines: command lines, each of which opens it.
    files: patterns of the files that are mutated. hashed: damage is found, or changes nothing. call: a function to call
    in place of a line, for readers that no verb has. code: how the lines end with undamaged files. weight: its
    share of the cases, low where a line computes for long.
    """

    make: Callable[[Path, Path], None]
    lines: tuple[str, ...]
    files: tuple[str, ...] = ("*",)
    hashed: bool = False
    call: Callable[[Path], Any] | None = None
    environment: dict[str, str] = field(default_factory=dict)
    code: int = 0
    weight: float = 1.0


def line(words: str, shared: Path) -> None:
    """Run a command line that must succeed."""
    code = run_line(words.replace("$S", str(shared)).split())
    assert code == 0, f"{words}: exit code {code}"


def write_shared(shared: Path) -> None:
    """Write the inputs that the lines of several kinds share."""
    from corecli.nets.encoder import build_encoder, save_encoder

    write_images(shared / "four.safetensors", "packed")
    for name, backbone in (("f", "resnet10-tiny"), ("vit", "vit-micro/4")):
        encoder = build_encoder(backbone, image_size=8, projector_hidden=4, projector_dim=8)
        save_encoder(shared / f"{name}.safetensors", encoder, class_names=[], parents={})
    line("extract --data $S/four.safetensors --encoder $S/f.safetensors --out $S/z.safetensors -q", shared)
    text = "".join(json.dumps({"id": key, "caption": f"a digit {key}"}) + "\n" for key in KEYS)
    (shared / "captions.jsonl").write_text(text)


FD = "fid --metrics fd --samples $S/four.safetensors --extractor $S/f.safetensors -q"
KEYS = ("a/0", "a/1", "b/2", "b/3")


def pixels(num: int = 4, side: int = 8) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (num, 3, side, side), dtype=np.uint8))


def write_images(path: Path, format: str) -> None:
    rows = make_rows(KEYS, labels=[0, 0, 1, 1], groups=["a", "a", "b", "b"], variants=[0, 1, 0, 1])
    write_set(path, rows, [pixels()], class_names=("a", "b"), header={"identity": {"a": 1}}, format=format)


# Image sets


def _format(name: str) -> Kind:
    path = f"s{suffix_of(name)}"
    files = ("s/*", "s/*/*") if not suffix_of(name) else ("s*",)
    return Kind(lambda folder, shared: write_images(folder / path, name), (SHOW.format(path), COPY.format(path)), files)


def _jpegs(folder: Path, shared: Path) -> None:
    for key, image in zip(KEYS, pixels().permute(0, 2, 3, 1).numpy(), strict=True):
        (folder / "s" / key).parent.mkdir(parents=True, exist_ok=True)
        for suffix in ("jpg",) if key < "b" else ("webp",) if key == "b/2" else ("gif",):
            Image.fromarray(image).save(folder / "s" / f"{key}.{suffix}")


def _sharded(format: str) -> Callable[[Path, Path], None]:
    def make(folder: Path, shared: Path) -> None:
        write_images(folder / f"in{suffix_of(format)}", format)
        line(
            f"{SMALL_GENERATOR} --arch adm {small('adm')} --out {folder}/g.pt",
            shared,
        )
        line(f"sample --ckpt {folder}/g.pt --num 4 --steps 1 --shards 2 --format {format} --out {folder}/s -q", shared)
        for path in (folder / "g.pt", folder / f"in{suffix_of(format)}"):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
        shutil.rmtree(folder / "g.pt.d", ignore_errors=True)

    return make


def _unfinished_shards(folder: Path, shared: Path) -> None:
    from corecli.data.formats import shards

    line(
        f"{SMALL_GENERATOR} --arch adm {small('adm')} --out {folder}/g.pt",
        shared,
    )
    with mock.patch.object(shards.ShardFolder, "finish", side_effect=KeyboardInterrupt):
        run_line(f"sample --ckpt {folder}/g.pt --num 4 --steps 1 --shards 2 --out {folder}/s -q".split())
    shutil.rmtree(folder / "g.pt.d", ignore_errors=True)
    shutil.move(folder / "g.pt", shared / "sharded.pt")


def _mixture(folder: Path, shared: Path) -> None:
    write_images(folder / "r.safetensors", "packed")
    write_images(folder / "y.npz", "npz")
    write_images(folder / "m.tar", "tar")
    content = {
        "kind": "mixture", "format": 1, "order": "union", "guard": False, "missing": "self", "round": 1,
        "parts": [{"set": "r.safetensors", "repeat": 1, "origin": "real", "seed": 0, "fraction": 1.0},
                  {"set": "y.npz", "repeat": 2.5, "origin": "synthetic", "first": 2, "prefix": "p"}],
    }  # fmt: skip
    (folder / "m.json").write_text(json.dumps(content))


def _captioned(folder: Path, shared: Path) -> None:
    for number in range(2):
        write_images(folder / f"{number}", "directory")
    with open(folder / "c.csv", "w", newline="") as file:
        csv.writer(file).writerows([f"{key}.png", f"a digit, {key}"] for key in KEYS)


def _mnist(folder: Path, shared: Path) -> None:
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    generator = np.random.default_rng(2)
    for part in ("train", "t10k"):
        images, labels = generator.integers(0, 256, (4, 28, 28), dtype=np.uint8), np.arange(4, dtype=np.uint8) % 3
        shape = b"".join(n.to_bytes(4, "big") for n in images.shape)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + shape + images.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + shape[:4] + labels.tobytes())


SEGMENT = (
    "probe --mode segment --encoder $S/vit.safetensors --train images --test images --train-masks masks "
    "--test-masks masks --num-classes 2 --steps 2 --warmup-steps 1 --crop-px 8 --stride-px 8 --batch-size 2 "
    "--train-batch 2 -q"
)


def _masks(folder: Path, shared: Path) -> None:
    for number, image in enumerate(pixels().permute(0, 2, 3, 1).numpy()):
        mask = (image[..., 0] > 128).astype(np.uint8)
        for name, values in (("images", image), ("masks", mask)):
            (folder / name).mkdir(exist_ok=True)
            picture = Image.fromarray(values)
            if name == "masks" and number % 2:
                picture = Image.fromarray(values, mode="P")
                picture.putpalette([0, 0, 0, 255, 255, 255])
            picture.save(folder / name / f"{number}.png")


# Checkpoints


def small(family: str) -> str:
    """Return the options of a family's smallest network on images of 8 px."""
    found = registry.constants("generators", family)
    chosen = {k: v for k, v in found["TINY"].items() if k in found["Options"]}
    chosen |= {"patch": 2} if "patch" in chosen else {}
    values = {k: ",".join(map(str, v)) if isinstance(v, tuple) else v for k, v in chosen.items()}
    return " ".join(f"--set {k}={v}" for k, v in values.items())


def _generator(family: str, *, suffix: str = ".safetensors", more: str = "") -> Callable[[Path, Path], None]:
    def make(folder: Path, shared: Path) -> None:
        stage = ""
        if registry.constants("generators", family).get("FIRST_STAGE") == "required":
            line(f"{SMALL_GENERATOR} --arch autoencoder {small('autoencoder')} --out {folder}/a.safetensors", shared)
            stage = f"--first-stage {folder}/a.safetensors"
        line(f"{SMALL_GENERATOR} --arch {family} {small(family)} {stage} {more} --out {folder}/g{suffix}", shared)
        for path in (folder / "a.safetensors.d", folder / "a.safetensors"):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        if "power" not in more:
            shutil.rmtree(folder / f"g{suffix}.d", ignore_errors=True)

    return make


def _family(family: str) -> Kind:
    found = registry.constants("generators", family)
    steps = "" if found.get("ONE_PASS") else "--steps 1"
    lines = (f"sample --ckpt g.safetensors --num 2 {steps} --out o.npz -q",)
    if family == "autoencoder":
        lines = (f"{SMALL_GENERATOR} --arch dit {small('dit')} --first-stage g.safetensors --out o.pt",)
    return Kind(_generator(family), lines, ("g.safetensors",), hashed=True)


def _exported(folder: Path, shared: Path) -> None:
    line(f"{SMALL_GENERATOR} --arch adm {small('adm')} --out {folder}/x.pt --export-diffusers {folder}/g", shared)
    shutil.rmtree(folder / "x.pt.d")
    (folder / "x.pt").unlink()


@contextmanager
def _keeping_states() -> Iterator[None]:
    """Let a finished run keep its saved states, as one does that was killed."""
    from corecli.engine import run

    with mock.patch.object(run, "_clear"):
        yield


TRAIN_STATE = (
    "train-ssl --data $S/four.safetensors --preset tiny --batch-size 2 --steps 3 --save-sec 0 --log-every 1 "
    "--projector-dim 4 -q --out f.safetensors"
)
GENERATOR_STATE = (
    "train-gen --data $S/four.safetensors --batch-size 2 --steps 3 --save-sec 0 --log-every 1 --preview-every 0 -q "
    f"--arch adm {small('adm')} --out g.safetensors"
)
LATENT = (
    "train-gen --data $S/four.safetensors --batch-size 2 --steps 2 --save-sec 0 --preview-every 0 -q "
    f"--arch dit {small('dit')} --first-stage $S/stage.safetensors --out g.safetensors"
)
EXTRACT = "extract --data $S/four.safetensors --encoder $S/f.safetensors --out z.safetensors -q"


def _killed(words: str) -> Callable[[Path, Path], None]:
    """Write the run folder of a line that was killed before its target was in place."""

    def make(folder: Path, shared: Path) -> None:
        out = words.rsplit(" ", 1)[1]
        with _keeping_states():
            line(words.removesuffix(out) + str(folder / out), shared)
        (folder / out).unlink()

    return make


def _latents(folder: Path, shared: Path) -> None:
    line(f"{SMALL_GENERATOR} --arch autoencoder {small('autoencoder')} --out $S/stage.safetensors", shared)
    _killed(LATENT)(folder, shared)


def _extract_shards(folder: Path, shared: Path) -> None:
    from corecli.engine import shards

    with mock.patch.object(shards, "remove_folder"):
        line(EXTRACT.replace("--out ", f"--out {folder}/"), shared)
    (folder / "z.safetensors").unlink()


def _target(folder: Path, shared: Path) -> None:
    line(EXTRACT.replace("--out ", f"--out {folder}/"), shared)


EXPORT = f"{SMALL_GENERATOR} --arch adm {small('adm')} --out x.pt --export-diffusers g"


def _arrays(folder: Path, shared: Path) -> None:
    """Write the columns that are stored beside a large set."""
    save_arrays(folder / "x.safetensors", "1", {"order": np.arange(500), "first": np.zeros(3, dtype=np.uint8)})


def _read_arrays(folder: Path) -> None:
    for array in (load_arrays(folder / "x.safetensors", "1") or {}).values():
        assert array[:] is not None


def _picture(folder: Path, shared: Path) -> None:
    line(f"show $S/four.safetensors --out {folder}/p.png -q", shared)


def _target_folder(folder: Path, shared: Path) -> None:
    line(EXPORT.replace(" x.pt", f" {folder}/x.pt").replace(" g", f" {folder}/g"), shared)


def _target_set(format: str) -> Kind:
    words = f"inflate --real $S/four.safetensors --materialize t{suffix_of(format)} -q"
    files = ("t*",) if suffix_of(format) else ("t/*", "t/*/*")
    return Kind(lambda f, s: line(words.replace("--materialize ", f"--materialize {f}/"), s), (words,), files)


def _features(folder: Path, shared: Path) -> None:
    shutil.copy(shared / "z.safetensors", folder / "z.safetensors")


def _features_pt(folder: Path, shared: Path) -> None:
    line(EXTRACT.replace("--out z.safetensors", f"--out {folder}/z.pt"), shared)


def _encoder(folder: Path, shared: Path, name: str = "f") -> None:
    shutil.copy(shared / f"{name}.safetensors", folder / "f.safetensors")


def _encoder_pt(folder: Path, shared: Path) -> None:
    from corecli.nets.encoder import build_encoder, save_encoder

    encoder = build_encoder("resnet10-tiny", image_size=8, projector_dim=None)
    save_encoder(folder / "f.pt", encoder, class_names=[], parents={})


def _bare(folder: Path, shared: Path) -> None:
    line(f"extract --encoder $S/f.safetensors --export {folder}/f.safetensors -q", shared)


def _statistics(folder: Path, shared: Path) -> None:
    line(
        f"{FD} --reference $S/four.safetensors --save-stats {folder}/s.npz",
        shared,
    )


CACHE = f"{FD} --reference $S/four.safetensors --cache c"


def _cache(folder: Path, shared: Path) -> None:
    line(CACHE.replace("--cache c", f"--cache {folder}/c"), shared)


# Weights of other tools


def _torch_file(content: Callable[[], Any], name: str = "x.pth", **options: Any) -> Callable[[Path, Path], None]:
    return lambda folder, shared: torch.save(content(), folder / name, **options)


def _resnet(prefix: str = "") -> dict[str, torch.Tensor]:
    from corecli.nets.encoder import build_encoder

    encoder = build_encoder("resnet10-tiny", image_size=8, projector_dim=None)
    return {f"{prefix}{name}": tensor for name, tensor in encoder.backbone.state_dict().items()}


def _moco() -> dict[str, Any]:
    state = {**_resnet("module.encoder_q."), **_resnet("module.encoder_k.")}
    state |= {"module.encoder_q.fc.weight": torch.zeros(4, 512), "module.queue": torch.zeros(4, 8)}
    return {"epoch": 3, "arch": "resnet18", "state_dict": state, "optimizer": {"state": {0: {"m": torch.zeros(3)}}}}


def _lightning() -> dict[str, Any]:
    names = {"conv1": "0", "bn1": "1", "layer1": "2", "layer2": "3", "layer3": "4", "layer4": "5"}
    state = {".".join((names[n.split(".")[0]], *n.split(".")[1:])): t for n, t in _resnet().items()}
    return {"state_dict": {f"backbone.{n}": t for n, t in state.items()}, "hyper_parameters": {"lr": 0.1}}


def _timm_vit(*, width: int = 64, depth: int = 4, patch: int = 8) -> dict[str, torch.Tensor]:
    import timm

    with torch.device("meta"):
        net: Any = timm.models.VisionTransformer(
            img_size=2 * patch, patch_size=patch, embed_dim=width, depth=depth, num_heads=width // 32, num_classes=0
        )
    return _of_one_number(net.state_dict())


def _torchvision_vit() -> dict[str, torch.Tensor]:
    from torchvision.models import VisionTransformer

    sizes: Any = {"image_size": 16, "patch_size": 8, "num_layers": 4, "num_heads": 2, "hidden_dim": 64, "mlp_dim": 256}
    with torch.device("meta"):
        net = VisionTransformer(num_classes=4, **sizes)
    return _of_one_number(net.state_dict())


def _of_one_number(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return weights of these shapes that are small in a file, because each stores one number."""
    return {name: torch.full((), 0.01, dtype=t.dtype).expand(t.shape) for name, t in state.items()}


def _dino() -> dict[str, Any]:
    state = _timm_vit()
    return {
        "student": {f"module.backbone.{n}": t for n, t in state.items()},
        "teacher": {f"backbone.{n}": t for n, t in state.items()},
        "args": None,
    }


def _dinov2() -> dict[str, Any]:
    state = _timm_vit(width=384, depth=12, patch=14)
    more = {"mask_token": (1, 384), "register_tokens": (1, 4, 384)}
    more |= {f"blocks.{i}.ls{k}.gamma": (384,) for i in range(12) for k in (1, 2)}
    return {**state, **_of_one_number({name: torch.empty(shape) for name, shape in more.items()})}


def _timm_file() -> dict[str, Any]:
    import timm

    net: Any = timm.create_model("test_vit", pretrained=False)
    return {"model": {f"module.{name}": t for name, t in net.state_dict().items()}}


def _inception() -> dict[str, torch.Tensor]:
    from corecli.nets.inception import FidInception

    with torch.device("meta"):
        state = FidInception().state_dict()
    return _of_one_number(state)


def _adm() -> dict[str, torch.Tensor]:
    from guided_diffusion import random_checkpoint

    return random_checkpoint()


def _dit() -> dict[str, Any]:
    from corecli.nets.dit import SIZES, DiT

    net = DiT(image_size=8, in_channels=3, out_channels=6, patch=2, size=SIZES["tiny"])
    width = next(net.parameters()).shape[0]
    return {
        "ema": {
            **net.state_dict(),
            "pos_embed": net.positions[None],
            "y_embedder.embedding_table.weight": torch.randn(6, width),
        },
        "args": {},
    }


def _read_foreign(folder: Path) -> None:
    from corecli.generators.parts.foreign import ImportOptions, is_foreign, read_foreign

    path = folder if (folder / "transformer").is_dir() else folder / "x.pth"
    is_foreign(path)
    read_foreign(path, ImportOptions(image_size=8, head_channels=32))


def _dit_folder(folder: Path, shared: Path) -> None:
    from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
    from first_stages import HALVING, diffusers_model

    from corecli.nets.dit import SIZES

    size: Any = SIZES["tiny"]
    theirs: Any = DiTTransformer2DModel(
        num_attention_heads=size.heads, attention_head_dim=size.width // size.heads, in_channels=4, out_channels=8,
        num_layers=size.depth, sample_size=4, patch_size=2, num_embeds_ada_norm=5,
    )  # fmt: skip
    first, *later = theirs.transformer_blocks
    for block in later:
        block.norm1.emb.load_state_dict(first.norm1.emb.state_dict())
    theirs.save_pretrained(folder / "transformer")
    diffusers_model(HALVING).save_pretrained(folder / "vae")


# Models of transformers and diffusers


def _pipeline(name: str) -> Callable[[Path, Path], None]:
    def make(folder: Path, shared: Path) -> None:
        import pipelines

        getattr(pipelines, name)(folder / "p")

    return make


def _text_encoder(name: str) -> Callable[[Path, Path], None]:
    def make(folder: Path, shared: Path) -> None:
        import text_encoders

        text_encoders.WRITERS[name](folder / "t")

    return make


def _vae(folder: Path, shared: Path) -> None:
    import pipelines

    pipelines.write_autoencoder(folder / "v")


def _llama(folder: Path, shared: Path) -> None:
    import language_models

    language_models.write_llama(folder / "l")


# Text


def _text(**files: str) -> Callable[[Path, Path], None]:
    def make(folder: Path, shared: Path) -> None:
        for name, text in files.items():
            (folder / name.replace("__", ".")).write_text(text)

    return make


OPTIONS = {"columns": 4, "rows": 2, "quiet": True, "seed": 3, "preset": None, "image-size": 8}
CONFIG_TOML = '# options\ncolumns = 4\nrows = 2\nquiet = true\nseed = 3\nimage-size = 8\nprecision = "fp32"\n'
TRAINING_TOML = """
steps = "1"
batch-size = 2
lr = 0.1
method = "byol"
augment = ["synclr"]
set = ["momentum_end=1"]
views = "2g"
"""
CAPTIONS_JSON = "".join(json.dumps({"id": k, "caption": f"a digit {k}", "class": k[0]}) + "\n" for k in KEYS)
CAPTIONS_CSV = "".join(f'{key}.png,"a digit, {key}"\n' for key in KEYS)
EXAMPLES = "pool,concept,second,caption\n" + "".join(
    f"{pool},dog {i},grass {i},a dog number {i} on grass\n"
    for pool in ("object", "place", "texture", "background", "relation")
    for i in range(3)
)
GRAMMAR = "captions --backend grammar --num 4 --out o.jsonl -q"
BATCH = "captions --backend batch --model m --num 3 --write-requests r.jsonl --out o.jsonl -q"


def _captions(folder: Path, shared: Path) -> None:
    rows = make_rows(KEYS, groups=KEYS)
    write_set(folder / "s.npz", rows, [pixels()], class_names=(), header={})
    (folder / "c.jsonl").write_text(CAPTIONS_JSON)


def _batch(folder: Path, shared: Path) -> None:
    """Write the answers to the requests of a batch."""
    words = BATCH.replace("o.jsonl", f"{folder}/o.jsonl").replace("r.jsonl", f"{folder}/r.jsonl")
    run_line(words.split())
    requests = [json.loads(text) for text in (folder / "r.jsonl").read_text().splitlines()]
    with open(folder / "b.jsonl", "w") as file:
        for request in requests:
            choice = {"text": " a fine caption of a thing, in a place.", "finish_reason": "stop", "index": 0}
            response = {"status_code": 200, "body": {"choices": [choice]}}
            file.write(json.dumps({"custom_id": request["custom_id"], "response": response, "error": None}) + "\n")
    shutil.rmtree(folder / "o.jsonl.d")
    (folder / "r.jsonl").unlink()


def _captions_work(folder: Path, shared: Path) -> None:
    _batch(folder, shared)
    words = BATCH.replace("o.jsonl", f"{folder}/o.jsonl").replace("r.jsonl", f"{folder}/r.jsonl")
    with mock.patch("corecli.captions.parts.work.publish", side_effect=KeyboardInterrupt):
        run_line(f"{words} --ingest {folder}/b.jsonl".split())


def _captions_report(folder: Path, shared: Path) -> None:
    line(GRAMMAR.replace("o.jsonl", f"{folder}/o.jsonl"), shared)


PROBE = "probe --mode logistic --train $S/z.safetensors --test $S/z.safetensors -q"

KINDS: dict[str, Kind] = {
    **{f"format-{name}": _format(name) for name in writable_formats()},
    "format-directory-encoded": Kind(_jpegs, (SHOW.format("s"), COPY.format("s")), ("s/*/*",)),
    "format-shards": Kind(_sharded("tar"), (SHOW.format("s"), COPY.format("s")), ("s/*", "s/.*")),
    "format-shards-packed": Kind(_sharded("packed"), (SHOW.format("s"), COPY.format("s")), ("s/*", "s/.*")),
    "format-shards-unfinished": Kind(
        _unfinished_shards, ("sample --ckpt $S/sharded.pt --num 4 --steps 1 --shards 2 --out s -q",), ("s/*", "s/.*")
    ),
    "format-mixture": Kind(
        _mixture,
        (
            SHOW.format("m.json"),
            COPY.format("m.json"),
            "train-ssl --data m.json --dry-run --batch-size 2 --steps 1 --out o.pt",
        ),
        ("m.json",),
        weight=2,
    ),
    "format-captioned": Kind(
        _captioned, (SHOW.format("captioned:c.csv:0:1"), COPY.format("captioned:c.csv:0:1")), ("c.csv",)
    ),
    "format-torchvision": Kind(
        _mnist, (SHOW.format("torchvision:MNIST:test"),), ("MNIST/raw/t10k*",), environment={"TORCHVISION_DATA": "."}
    ),
    "masks": Kind(
        _masks,
        (SEGMENT,),
        ("masks/*",),
    ),
    "encoder": Kind(_encoder, (MADE_FROM.format("f.safetensors"),), hashed=True),
    "encoder-vit": Kind(
        lambda f, s: _encoder(f, s, "vit"),
        (MADE_FROM.format("f.safetensors"), "show $S/four.safetensors --encoder f.safetensors --out o.png -q"),
        hashed=True,
    ),
    "encoder-torch": Kind(_encoder_pt, (MADE_FROM.format("f.pt"),), hashed=True),
    "encoder-bare": Kind(_bare, (MADE_FROM.format("f.safetensors"),), hashed=True),
    "encoder-init": Kind(
        _encoder,
        ("train-ssl --data $S/four.safetensors --batch-size 2 --steps 1 --init f.safetensors -q --out o.pt",),
        hashed=True,
        weight=0.3,
    ),
    **{f"generator-{name}": _family(name) for name in registry.choices("generators")},
    "generator-torch": Kind(
        _generator("adm", suffix=".pt"),
        ("sample --ckpt g.pt --num 2 --steps 1 --out o.npz -q",),
        ("g.pt",),
        hashed=True,
    ),
    "generator-features": Kind(
        _generator("adm", more="--features $S/z.safetensors"),
        ("sample --ckpt g.safetensors --features $S/z.safetensors --steps 1 --out o.npz -q",),
        ("g.safetensors",),
        hashed=True,
    ),
    "generator-labels": Kind(
        _generator("adm", more="--condition labels"),
        ("sample --ckpt g.safetensors --steps 1 --out o.npz -q",),
        ("g.safetensors",),
        hashed=True,
    ),
    "generator-captions": Kind(
        _generator("adm", more="--captions $S/captions.jsonl"),
        ("sample --ckpt g.safetensors --captions $S/captions.jsonl --steps 1 --out o.npz -q",),
        ("g.safetensors",),
        hashed=True,
    ),
    "generator-folder": Kind(_exported, ("sample --ckpt g --num 2 --steps 1 --out o.npz -q",), ("g/*", "g/*/*")),
    "ema": Kind(
        _generator("adm", more="--ema power --ema-snapshots 2"),
        ("sample --ckpt g.safetensors --num 2 --ema-length 0.1 --steps 1 --out o.npz -q",),
        ("g.safetensors.d/averages/*",),
        hashed=True,
    ),
    "features": Kind(
        _features,
        (
            "show $S/four.safetensors --features z.safetensors --out o.png -q",
            "show z.safetensors --out o.png -q",
            "probe --mode logistic --train z.safetensors --test z.safetensors -q",
            "fid --metrics fd --reference z.safetensors --samples $S/z.safetensors -q",
            f"{SMALL_GENERATOR} --features z.safetensors --dry-run --out o.pt",
        ),
        hashed=True,
        weight=2,
    ),
    "features-torch": Kind(_features_pt, ("show z.pt --out o.png -q",), ("z.pt",), hashed=True),
    **{f"target-{name}": _target_set(name) for name in writable_formats()},
    "arrays-beside": Kind(_arrays, (), call=_read_arrays),
    "picture": Kind(_picture, ("verify p.png -q",)),
    "target-folder": Kind(_target_folder, (EXPORT,), ("g/*", "g/*/*")),
    "target": Kind(_target, (EXTRACT,)),
    "state": Kind(_killed(TRAIN_STATE), (TRAIN_STATE,), ("f.safetensors.d/*",), hashed=True),
    "state-generator": Kind(
        _killed(GENERATOR_STATE), (GENERATOR_STATE,), ("g.safetensors.d/*",), hashed=True, weight=0.5
    ),
    "log": Kind(_killed(TRAIN_STATE), ("show f.safetensors.d --out o.png -q",), ("f.safetensors.d/log.jsonl",)),
    "latents": Kind(_latents, (LATENT,), ("g.safetensors.d/*",)),
    "shards-of-rows": Kind(_extract_shards, (EXTRACT,), ("z.safetensors.d/*",), hashed=True),
    "statistics": Kind(_statistics, (f"{FD} --reference s.npz",), ("s.npz",)),
    "cache": Kind(_cache, (CACHE,), ("c/*",), hashed=True),
    "foreign-resnet": Kind(_torch_file(_resnet), (MADE_FROM.format("x.pth"),), weight=0.5),
    "foreign-legacy": Kind(
        _torch_file(_resnet, _use_new_zipfile_serialization=False), (MADE_FROM.format("x.pth"),), weight=0.7
    ),
    "foreign-moco": Kind(_torch_file(_moco), (MADE_FROM.format("x.pth"),), weight=0.3),
    "foreign-lightning": Kind(_torch_file(_lightning, "x.ckpt"), (MADE_FROM.format("x.ckpt"),), weight=0.3),
    "foreign-vit": Kind(_torch_file(_timm_vit), (MADE_FROM.format("x.pth"),), weight=0.5),
    "foreign-vit-torchvision": Kind(_torch_file(_torchvision_vit), (MADE_FROM.format("x.pth"),), weight=0.3),
    "foreign-dino": Kind(_torch_file(_dino), (MADE_FROM.format("x.pth"),), weight=0.3),
    "foreign-dinov2": Kind(_torch_file(_dinov2), (MADE_FROM.format("x.pth"),), weight=0.1),
    "foreign-timm": Kind(_torch_file(_timm_file), (MADE_FROM.format("timm:test_vit:x.pth"),), weight=0.3),
    "foreign-inception": Kind(
        _torch_file(_inception),
        ("fid --metrics fid --reference $S/four.safetensors --samples $S/four.safetensors --extractor x.pth -q",),
        weight=0.2,
    ),
    "foreign-adm": Kind(_torch_file(_adm), (), call=_read_foreign, weight=0.3),
    "foreign-dit": Kind(_torch_file(_dit), (), call=_read_foreign, weight=0.5),
    "foreign-dit-folder": Kind(_dit_folder, (), ("*/*",), call=_read_foreign, weight=0.5),
    "pipeline": Kind(
        _pipeline("save_unconditional"),
        ("sample --ckpt diffusers:p --num 1 --steps 1 --out o.npz -q",),
        ("p/*", "p/*/*"),
    ),
    "pipeline-text": Kind(
        _pipeline("save_text_to_image"),
        ("sample --ckpt diffusers:p --captions $S/captions.jsonl --num 1 --steps 1 --out o.npz -q",),
        ("p/*", "p/*/*"),
    ),
    "pipeline-images": Kind(
        _pipeline("save_image_variation"),
        ("sample --ckpt diffusers:p --images $S/four.safetensors --num 1 --steps 1 --out o.npz -q",),
        ("p/*", "p/*/*"),
        weight=0.5,
    ),
    "text-encoder-clip": Kind(
        _text_encoder("clip"),
        (f"{SMALL_GENERATOR} --arch adm {small('adm')} --captions $S/captions.jsonl --text-encoder t --out o.pt",),
        ("t/*",),
    ),
    "text-encoder-t5": Kind(
        _text_encoder("t5"),
        (f"{SMALL_GENERATOR} --arch adm {small('adm')} --captions $S/captions.jsonl --text-encoder t --out o.pt",),
        ("t/*",),
        weight=0.5,
    ),
    "first-stage": Kind(_vae, (f"{SMALL_GENERATOR} --arch dit {small('dit')} --first-stage v --out o.pt",), ("v/*",)),
    "language-model": Kind(
        _llama,
        ("captions --backend transformers --model l --num 1 --max-tokens 2 --out o.jsonl -q",),
        ("l/*",),
        code=65,
    ),
    "config-json": Kind(_text(c__json=json.dumps(OPTIONS)), ("show $S/four.safetensors --out o.png --config c.json",)),
    "config-toml": Kind(_text(c__toml=CONFIG_TOML), ("show $S/four.safetensors --out o.png --config c.toml",)),
    "config-training": Kind(
        _text(c__toml=TRAINING_TOML),
        ("train-ssl --data $S/four.safetensors --config c.toml --dry-run --out o.pt",),
    ),
    "captions-json": Kind(
        _captions,
        ("show s.npz --captions c.jsonl --out o.png -q", f"{SMALL_GENERATOR} --captions c.jsonl --dry-run --out o.pt"),
        ("c.jsonl",),
    ),
    "captions-text": Kind(
        _text(c__txt="a dog\na cat\n\na hen in the snow\n"),
        ("sample --ckpt $S/captioned.pt --captions c.txt --steps 1 --out o.npz -q",),
    ),
    "captions-csv": Kind(
        _text(c__csv=CAPTIONS_CSV), ("sample --ckpt $S/captioned.pt --captions c.csv --steps 1 --out o.npz -q",)
    ),
    "class-lists": Kind(
        _text(l__tsv="a/0\tdog;cat\na/1\tcat\then\nb/2\tdog\nb/3\then;cat\n"), (f"{PROBE} --labels l.tsv --dry-run",)
    ),
    "concepts-text": Kind(
        _text(c__txt="dog\ncat\nred fox\n# no\n"), (f"{GRAMMAR} --concepts c.txt --templates 1,0,1",)
    ),
    "concepts-csv": Kind(
        _text(c__csv="concept,hypernym,kind,weight\ndog,animal,object,1\nbeach,,place,2.5\nwool,,texture,1\n"),
        (f"{GRAMMAR} --concepts c.csv --templates 1,0,1",),
    ),
    "backgrounds": Kind(
        _text(
            b__json='{"dog": ["grass", "beach"], "cat": ["sofa"], "red fox": ["forest", "snow"]}',
            c__txt="dog\ncat\nred fox\n",
        ),
        (f"{GRAMMAR} --concepts c.txt --backgrounds b.json",),
        ("b.json",),
    ),
    "examples": Kind(_text(e__csv=EXAMPLES), (f"{GRAMMAR} --examples e.csv",)),
    "batch-answers": Kind(_batch, (f"{BATCH} --ingest b.jsonl",), ("b.jsonl",)),
    "captions-work": Kind(_captions_work, (f"{BATCH} --ingest b.jsonl",), ("o.jsonl.d/*",)),
    "captions-report": Kind(_captions_report, (GRAMMAR,), ("o.jsonl", "o.jsonl.d/*"), hashed=True),
}


SETS = {
    **{f"format-{n}": f"s{suffix_of(n)}" for n in writable_formats()},
    "format-shards": "s",
    "generator-folder": "g",
}
CHECKED = {
    "encoder": "f.safetensors",
    "encoder-torch": "f.pt",
    "features": "z.safetensors",
    "generator-adm": "g.safetensors",
}
CHECKED |= {
    **SETS,
    "captions-json": "c.jsonl",
    "captions-report": "o.jsonl",
    "state": "f.safetensors.d",
}
for _name, _path in CHECKED.items():
    KINDS[_name] = replace(KINDS[_name], lines=(*KINDS[_name].lines, f"verify {_path} -q"))

SLOW = {"latents", "state", "log", "masks", "pipeline", "pipeline-text", "format-shards-unfinished", "cache"}
for _name, _kind in list(KINDS.items()):
    if _name in SLOW or _name.startswith(("generator-", "text-encoder", "first-stage", "language-model")):
        KINDS[_name] = replace(_kind, weight=0.4 * _kind.weight)
    if _name.startswith(("format-", "config-", "concepts-", "class-lists", "examples", "backgrounds", "batch")):
        KINDS[_name] = replace(_kind, weight=1.5 * _kind.weight)


def write_all(root: Path, names: list[str]) -> None:
    """Write the shared inputs and one folder for each kind."""
    shared = root / "shared"
    shared.mkdir(parents=True)
    write_shared(shared)
    if any(name.startswith("captions-") for name in names):
        line(f"{SMALL_GENERATOR} --arch adm {small('adm')} --captions $S/captions.jsonl --out $S/captioned.pt", shared)
    for name in names:
        (root / name).mkdir()
        KINDS[name].make(root / name, shared)
