"""Logistic regression on cached features by L-BFGS, over a sweep of C with warm starts.

For every C, from strong to weak regularization, C * sum(loss) + |weight|^2 / 2 is minimized on standardized features,
as in scikit-learn; the bias is not regularized. The tolerance is tight, because a loose one changes the accuracy by
points. The C that is best on the held-out rows is fitted again on all rows. The 45 values are those of DINOv2 and
SynCLR (appendix B.5).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from corecli.metrics.parts.average_precision import mean_average_precision
from corecli.metrics.parts.classes import check_labeled, index_classes
from corecli.metrics.parts.fitting import Classifier, Scaling, Split, holdout
from corecli.metrics.parts.scores import predict, summarize

DIRECTION = {"logistic_top1": "higher"}

_MOST_DOUBLES = 1 << 27  # features with at most this many values are fitted in float64, larger ones in float32
_ROWS_PER_BLOCK = 1 << 16  # bounds the memory of logits


@dataclass(frozen=True, kw_only=True)
class LogisticOptions:
    """Values of C, and the tolerance: the largest entry of the mean loss's gradient at an optimum."""

    costs: tuple[float, ...] = tuple(sorted(10 ** (6 - 11 * i / 44) for i in range(45)))  # 1 / logspace(-6, 5, 45)
    max_steps: int = 1000
    tolerance: float = 1e-6
    holdout: float = 0.1  # share of each class in train on which C is chosen


def compute(
    *, train_features: Tensor, train_labels: Tensor, test_features: Tensor, test_labels: Tensor
) -> dict[str, float]:
    """Return `logistic_top1` with the default options. Errors: DataError."""
    check_labeled(train_features, train_labels, where="train")
    check_labeled(test_features, test_labels, where="test")
    classes, train_index, test_index = index_classes(train_labels, test_labels)
    classifier, _ = fit_logistic(train_features, train_index, holdout(train_index, LogisticOptions().holdout, 0))
    found = predict(classifier.logits, test_features, test_index)
    return {"logistic_top1": summarize([found], test_index, num_classes=len(classes)).top1}


def fit_logistic(
    features: Tensor, targets: Tensor, split: Split, options: LogisticOptions | None = None
) -> tuple[Classifier, float]:
    """Choose C on `split.held` and fit on `split.final`; return (classifier, C).

    features: [N, D], on the device to compute on. targets: int64 [N] with one class for each row, for which C is chosen
    by accuracy; or int [N, num_classes] with any number of classes (1 yes, 0 no, -1 ignored), for which there is a
    binary classifier for each class, and one C for all is chosen by mean average precision. The loss breaks ties.
    """
    options = options or LogisticOptions()
    scaling = Scaling.of(features, split.fitted)
    fitted = _Rows.of(features, targets, split.fitted, scaling)
    held = _Rows.of(features, targets, split.held, scaling)
    start, best = fitted.zeros(), (-math.inf, -math.inf)
    chosen, cost = start, options.costs[0]
    for value in options.costs:
        start = _minimize(fitted, value, start, options)
        judged = held.quality(start) if len(options.costs) > 1 else (0.0, 0.0)
        if judged > best:
            best, chosen, cost = judged, start, value
    scaling = Scaling.of(features, split.final)
    weight, bias = _minimize(_Rows.of(features, targets, split.final, scaling), cost, chosen, options)
    return Classifier(scaling=scaling, weight=weight.float(), bias=bias.float()), cost


Parameters = tuple[Tensor, Tensor]


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """Scaled features [N, D] and their targets, with one class or several classes for each row."""

    x: Tensor
    targets: Tensor
    num_classes: int

    @staticmethod
    def of(features: Tensor, targets: Tensor, rows: Tensor, scaling: Scaling) -> _Rows:
        targets = targets.to(features.device)
        dtype = torch.float64 if features.numel() <= _MOST_DOUBLES else torch.float32
        rows = rows.to(features.device)
        num_classes = targets.shape[1] if targets.ndim == 2 else int(targets.max()) + 1
        return _Rows(x=scaling(features[rows]).to(dtype), targets=targets[rows], num_classes=num_classes)

    def zeros(self) -> Parameters:
        return self.x.new_zeros(self.x.shape[1], self.num_classes), self.x.new_zeros(self.num_classes)

    def losses(self, weight: Tensor, bias: Tensor) -> Iterator[Tensor]:
        """Yield the sum of the losses of each block of rows."""
        for x, targets in zip(self.x.split(_ROWS_PER_BLOCK), self.targets.split(_ROWS_PER_BLOCK), strict=True):
            logits = torch.addmm(bias, x, weight)
            if targets.ndim == 1:
                yield F.cross_entropy(logits, targets, reduction="sum")
            else:
                yes, counted = (targets > 0).to(x.dtype), (targets >= 0).to(x.dtype)
                yield F.binary_cross_entropy_with_logits(logits, yes, counted, reduction="sum")

    def quality(self, parameters: Parameters) -> tuple[float, float]:
        """Return (accuracy or mean average precision, minus the loss) on these rows."""
        weight, bias = parameters
        logits = torch.addmm(bias, self.x, weight)
        loss = float(sum(part for part in self.losses(weight, bias)))
        if self.targets.ndim == 2:
            return mean_average_precision(logits, self.targets), -loss
        return float((logits.argmax(1) == self.targets).double().mean()), -loss


class _LBFGS(torch.optim.LBFGS):
    """L-BFGS without the wrappers of torch that import its compiler, a second of start-up."""

    add_param_group = inspect.unwrap(torch.optim.LBFGS.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.LBFGS.zero_grad)


def _minimize(rows: _Rows, cost: float, start: Parameters, options: LogisticOptions) -> Parameters:
    """Return the weight [D, C] and bias [C] that minimize the regularized loss, starting from `start`."""
    weight, bias = (part.clone().requires_grad_() for part in start)
    num = len(rows.x)
    optimizer = _LBFGS(
        [weight, bias],
        max_iter=options.max_steps,
        max_eval=2 * options.max_steps,
        tolerance_grad=options.tolerance,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        total = weight.square().sum() / (2 * cost * num)
        total.backward()
        total = total.detach()
        for part in rows.losses(weight, bias):
            (part / num).backward()
            total = total + part.detach() / num
        return total

    optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    return weight.detach(), bias.detach()
