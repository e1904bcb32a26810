"""The network of CORE's Table 10 in training and sampling: the engine beside a bare loop, float32 beside bfloat16."""

import statistics
import time
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F

from corecli.engine.precision import autocast
from corecli.generators import adm
from corecli.generators.parts.learning import Learner, TrainOptions

BATCH, ROUNDS = 8, 5
CPU = torch.device("cpu")
HAS_BF16 = torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.ops.mkldnn._is_mkldnn_bf16_supported()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def table10(*, image_size: int = 32) -> adm.Config:
    return adm.Config(image_size=image_size, learn_sigma=True)


def images() -> torch.Tensor:
    return torch.randint(0, 256, (BATCH, 3, 32, 32), dtype=torch.uint8)


def training(precision: str) -> Callable[[int], None]:
    generator, options = adm.build(table10()).train(), TrainOptions(precision=precision)
    learner, x = Learner(generator, options), images()

    def step(n: int) -> None:  # as in `commands/train_gen/command.py`
        with autocast(precision, CPU):
            loss = generator.loss(x, None, generator.draw(0, n, batch=BATCH))
        learner.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(generator.parameters(), options.clip, foreach=True)
        learner.optimizer.step()
        learner.ema.update(generator)

    return step


def bare_training() -> Callable[[int], None]:
    """What one would write by hand around the same network, with the same hybrid loss' simple part and average."""
    unet = adm.build(table10()).network.unet.train()
    weights = list(unet.parameters())
    average = [w.detach().clone() for w in weights]
    optimizer = torch.optim.AdamW(weights, lr=1e-4, weight_decay=0.0, fused=True)
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)
    x = images()

    def step(n: int) -> None:
        x0 = x.float() / 127.5 - 1
        t, noise = torch.randint(1000, (BATCH,)), torch.randn_like(x0)
        a = alpha_bar[t][:, None, None, None]
        eps, _ = unet(a.sqrt() * x0 + (1 - a).sqrt() * noise, t).chunk(2, dim=1)
        loss = F.mse_loss(eps, noise)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0, foreach=True)
        optimizer.step()
        torch._foreach_lerp_(average, [w.detach() for w in weights], 0.001)

    return step


def sampling(precision: str) -> Callable[[int], None]:
    generator = adm.build(table10()).eval()

    def make(n: int) -> None:
        with autocast(precision, CPU):
            generator.generate(list(range(BATCH)), steps=1)

    return make


def bare_sampling() -> Callable[[int], None]:
    unet = adm.build(table10()).network.unet.eval()

    @torch.no_grad()
    def make(n: int) -> None:
        unet(torch.randn(BATCH, 3, 32, 32), torch.full((BATCH,), 999))

    return make


def medians(peers: dict[str, Callable[[int], None]]) -> dict[str, float]:
    """CPU seconds of a call of each, taken in turn."""
    times: dict[str, list[float]] = {name: [] for name in peers}
    for n in range(ROUNDS + 1):
        for name, call in peers.items():
            start = time.process_time()
            call(n)
            times[name].append(time.process_time() - start)
    return {name: statistics.median(found[1:]) for name, found in times.items()}


def told(what: str, found: dict[str, float]) -> None:
    print(f"\n{what}: " + ", ".join(f"{name} {BATCH / t:.2f} images/s" for name, t in found.items()))
    print(f"ours/bare {found['fp32'] / found['bare']:.3f} of the time, bf16 {found['fp32'] / found['bf16']:.2f}x fp32")


@pytest.mark.bench
@pytest.mark.parametrize("what", ["training", "sampling"])
def test_the_engine_costs_nothing_and_bf16_pays(what: str) -> None:
    ours, bare = (training, bare_training) if what == "training" else (sampling, bare_sampling)
    found = medians({"fp32": ours("fp32"), "bare": bare(), "bf16": ours("bf16")})
    told(what, found)
    assert found["fp32"] <= 1.03 * found["bare"]
    if HAS_BF16:
        assert found["fp32"] >= 1.6 * found["bf16"]
