"""guided-diffusion's U-Net and its checkpoints, written from its paper and its files' names."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

GROUPS, HEAD, CHANNELS, MULT, BLOCKS, ATTENDS, CLASSES = 32, 32, 32, (1, 2, 2), 2, (False, True, True), 5
Tensors = dict[str, torch.Tensor]


def reference(w: Tensors, x, t, y=None, *, new_order: bool = False) -> torch.Tensor:
    """Its forward in float64: BigGAN up and down blocks, scale and shift by the time embedding, 1-d attention."""
    w = {name: tensor.double() for name, tensor in w.items()}
    half = CHANNELS // 2
    angles = t.double()[:, None] * torch.exp(-math.log(10_000) * torch.arange(half).double() / half)
    waves = torch.cat([angles.cos(), angles.sin()], dim=1)
    emb = linear(w, "time_embed.2", F.silu(linear(w, "time_embed.0", waves)))
    emb = emb if y is None else emb + w["label_emb.weight"][y]

    def block(h: torch.Tensor, name: str, *, up: bool = False, down: bool = False) -> torch.Tensor:
        for i in range(3):
            if f"{name}.{i}.in_layers.0.weight" in w:
                resample = double if up and (i > 0) else halve if down else None
                h = residual(w, f"{name}.{i}", h, emb, resample)
            elif f"{name}.{i}.qkv.weight" in w:
                h = attention(w, f"{name}.{i}", h, new_order=new_order)
        return h

    h = conv(w, "input_blocks.0.0", x.double())
    kept = [h]
    for i in range(1, len(MULT) * (BLOCKS + 1)):
        h = block(h, f"input_blocks.{i}", down=i % (BLOCKS + 1) == 0)
        kept.append(h)
    h = block(h, "middle_block")
    for i in range(len(MULT) * (BLOCKS + 1)):
        h = block(torch.cat([h, kept.pop()], dim=1), f"output_blocks.{i}", up=True)
    return conv(w, "out.2", F.silu(norm(w, "out.0", h)))


def residual(w: Tensors, name: str, x, emb, resample) -> torch.Tensor:
    h = F.silu(norm(w, f"{name}.in_layers.0", x))
    if resample is not None:
        h, x = resample(h), resample(x)
    h = conv(w, f"{name}.in_layers.2", h)
    scale, shift = linear(w, f"{name}.emb_layers.1", F.silu(emb))[:, :, None, None].chunk(2, dim=1)
    h = norm(w, f"{name}.out_layers.0", h) * (1 + scale) + shift
    h = conv(w, f"{name}.out_layers.3", F.silu(h))
    return h + (conv(w, f"{name}.skip_connection", x) if f"{name}.skip_connection.weight" in w else x)


def attention(w: Tensors, name: str, x, *, new_order: bool) -> torch.Tensor:
    batch, channels, height, width = x.shape
    flat = norm(w, f"{name}.norm", x).reshape(batch, channels, -1)
    qkv = torch.einsum("oc,bct->bot", w[f"{name}.qkv.weight"][..., 0], flat) + w[f"{name}.qkv.bias"][:, None]
    outs = []
    for head in range(channels // HEAD):
        if new_order:
            q, k, v = (qkv[:, part * channels + head * HEAD :][:, :HEAD] for part in range(3))
        else:
            q, k, v = (qkv[:, (3 * head + part) * HEAD :][:, :HEAD] for part in range(3))
        outs.append(torch.einsum("bts,bcs->bct", torch.softmax(q.mT @ k / math.sqrt(HEAD), dim=-1), v))
    out = torch.einsum("oc,bct->bot", w[f"{name}.proj_out.weight"][..., 0], torch.cat(outs, dim=1))
    return x + (out + w[f"{name}.proj_out.bias"][:, None]).reshape(batch, channels, height, width)


def linear(w: Tensors, name: str, x) -> torch.Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def conv(w: Tensors, name: str, x) -> torch.Tensor:
    kernel = w[f"{name}.weight"]
    return F.conv2d(x, kernel, w[f"{name}.bias"], padding=kernel.shape[-1] // 2)


def norm(w: Tensors, name: str, x) -> torch.Tensor:
    grouped = x.reshape(len(x), GROUPS, -1)
    centered = grouped - grouped.mean(-1, keepdim=True)
    x = (centered / torch.sqrt((centered**2).mean(-1, keepdim=True) + 1e-5)).reshape(x.shape)
    return x * w[f"{name}.weight"][:, None, None] + w[f"{name}.bias"][:, None, None]


def halve(x) -> torch.Tensor:
    return (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4


def double(x) -> torch.Tensor:
    return x.repeat_interleave(2, -1).repeat_interleave(2, -2)


def random_checkpoint(*, classes: int = CLASSES, out_channels: int = 6, mult: tuple[int, ...] = MULT) -> Tensors:
    """Weights under guided-diffusion's names and in its shapes, none of them zero."""
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(name: str, *shape: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, (shape[0],)

    def res(name: str, into: int, out: int) -> None:
        layer(f"{name}.in_layers.0", into), layer(f"{name}.in_layers.2", out, into, 3, 3)
        layer(f"{name}.emb_layers.1", 2 * out, 4 * CHANNELS)
        layer(f"{name}.out_layers.0", out), layer(f"{name}.out_layers.3", out, out, 3, 3)
        if into != out:
            layer(f"{name}.skip_connection", out, into, 1, 1)

    def attend(name: str, width: int) -> None:
        layer(f"{name}.norm", width), layer(f"{name}.qkv", 3 * width, width, 1)
        layer(f"{name}.proj_out", width, width, 1)

    layer("time_embed.0", 4 * CHANNELS, CHANNELS), layer("time_embed.2", 4 * CHANNELS, 4 * CHANNELS)
    if classes:
        shapes["label_emb.weight"] = (classes, 4 * CHANNELS)
    layer("input_blocks.0.0", CHANNELS, 3, 3, 3)
    width, widths, i = CHANNELS, [CHANNELS], 1
    attends = (*ATTENDS, *[True] * (len(mult) - len(ATTENDS)))
    for level, m in enumerate(mult):
        for _ in range(BLOCKS):
            res(f"input_blocks.{i}.0", width, width := m * CHANNELS)
            if attends[level]:
                attend(f"input_blocks.{i}.1", width)
            widths.append(width)
            i += 1
        if level < len(mult) - 1:
            res(f"input_blocks.{i}.0", width, width)
            widths.append(width)
            i += 1
    res("middle_block.0", width, width), attend("middle_block.1", width), res("middle_block.2", width, width)
    i = 0
    for level, m in reversed(list(enumerate(mult))):
        for r in range(BLOCKS + 1):
            into, width = width + widths.pop(), m * CHANNELS
            res(f"output_blocks.{i}.0", into, width)
            if attends[level]:
                attend(f"output_blocks.{i}.1", width)
            if level and r == BLOCKS:
                res(f"output_blocks.{i}.{1 + attends[level]}", width, width)
            i += 1
    layer("out.0", width), layer("out.2", out_channels, width, 3, 3)
    generator = torch.Generator().manual_seed(0)
    scaled = {n: 1 / math.sqrt(math.prod(s[1:])) if len(s) > 1 else 0.3 for n, s in shapes.items()}
    weights = {n: scaled[n] * torch.randn(s, generator=generator) for n, s in shapes.items()}
    return {n: t + (n.endswith("weight") and t.ndim == 1) for n, t in weights.items()}
