import pytest
import torch
from torch import nn

from corecli.base.errors import DataError
from corecli.engine.ema import EMA


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))


@pytest.mark.parametrize("decay", [0.3, 0.999])
def test_average_matches_a_float64_loop(decay: float) -> None:
    torch.manual_seed(0)
    source = model()
    ema = EMA(source, decay=decay)
    averaged = [name for name in source.state_dict() if name != "1.num_batches_tracked"]
    expected = {name: source.state_dict()[name].double() for name in averaged}
    for n in range(50):
        for p in source.parameters():
            p.data.add_(torch.randn_like(p))
        source(torch.randn(16, 4) + n)
        ema.update(source)
        d = min(decay, (1 + n) / (10 + n))
        expected = {name: d * expected[name] + (1 - d) * source.state_dict()[name].double() for name in averaged}
    for name in averaged:
        torch.testing.assert_close(ema.module.state_dict()[name].double(), expected[name], rtol=1e-5, atol=1e-5)


def test_other_buffers_are_copied_and_the_source_is_left_alone() -> None:
    source = model()
    ema = EMA(source, decay=0.9)
    source(torch.randn(16, 4) + 5)
    before = {k: v.clone() for k, v in source.state_dict().items()}
    ema.update(source)
    assert ema.module[1].num_batches_tracked == 1  # type: ignore[index]
    assert all(torch.equal(before[k], v) for k, v in source.state_dict().items())
    assert not ema.module.training and not any(p.requires_grad for p in ema.module.parameters())


def test_frozen_weights_stay_as_they_are() -> None:
    source = model()
    source[1].requires_grad_(False)  # type: ignore[index]
    ema = EMA(source, decay=0.5)
    before = {name: p.clone() for name, p in ema.module.named_parameters()}
    for p in source.parameters():
        p.data.add_(1)
    ema.update(source)
    moved = {name for name, p in ema.module.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"0.weight", "0.bias"}
    assert moved <= ema.averaged().keys()
    assert "1.weight" not in ema.averaged()


def test_state_resumes_bit_for_bit() -> None:
    torch.manual_seed(0)
    source = model()
    whole, first = EMA(source, decay=0.99), EMA(source, decay=0.99)
    for _ in range(3):
        source[0].weight.data.add_(1)  # type: ignore[index]
        whole.update(source)
        first.update(source)
    resumed = EMA(model(), decay=0.99)
    resumed.restore({k: v.clone() for k, v in first.state().items()})
    source[0].weight.data.add_(1)  # type: ignore[index]
    whole.update(source)
    resumed.update(source)
    assert resumed.num_updates == 4
    for a, b in zip(whole.state().values(), resumed.state().values(), strict=True):
        assert torch.equal(a, b)


def test_other_modules_are_refused() -> None:
    ema = EMA(model(), decay=0.9)
    with pytest.raises(AssertionError, match="tensors differ"):
        ema.update(nn.Linear(4, 3))
    state = {k: v for k, v in ema.state().items() if "0.weight" not in k}
    with pytest.raises(DataError, match="do not fit"):
        ema.restore(state)
