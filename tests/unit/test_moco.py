"""MoCo's queues."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from methods import DIM, NUM, make_batch, make_method, take_step

from corecli.base.errors import UsageError
from corecli.ssl.moco import Queue
from corecli.ssl.parts.losses import info_nce_queue
from corecli.ssl.parts.method import embed


@pytest.mark.parametrize("size", [1, 7, 12])
def test_the_queue_drops_the_oldest_keys_first_and_wraps_around(size: int) -> None:
    queue, generator = Queue(size, 3), torch.Generator().manual_seed(0)
    line = [row.clone() for row in queue.rows]
    for num in (3, 3, 3, 5, 4, 30, 2, size, 1):
        keys = torch.randn(num, 3, generator=generator)
        queue.push(5 * keys)
        line = [*line, *F.normalize(keys, dim=1)][-size:]
        in_order = torch.cat((queue.rows[queue.oldest :], queue.rows[: queue.oldest]))
        torch.testing.assert_close(in_order, torch.stack(line))


def test_new_keys_replace_the_oldest() -> None:
    queue = Queue(5, 2)
    first = queue.rows.clone()
    queue.push(torch.tensor([[2.0, 0.0], [0.0, -3.0]]))
    assert torch.equal(queue.rows, torch.cat((torch.tensor([[1.0, 0.0], [0.0, -1.0]]), first[2:])))
    assert queue.oldest == 2
    assert set(queue.state_dict()) == {"rows", "oldest"}


def test_each_view_is_contrasted_with_the_queue_of_the_other_view() -> None:
    method, batch = make_method("moco", queue_size=20), make_batch()
    other = copy.deepcopy(method)
    _, q = embed(other.encoder, batch.views)
    k = other.teach(batch.views)
    rows = [queue.rows.clone() for queue in method.queues]
    assert not torch.allclose(rows[0], rows[1])
    expected = sum(info_nce_queue(q[v], k[1 - v], rows[v], temperature=0.2) for v in (0, 1)) / 2
    torch.testing.assert_close(method.loss(batch), expected)
    assert all(torch.equal(queue.rows, old) for queue, old in zip(method.queues, rows, strict=True))
    method.after_step(0, 100)
    for v in (0, 1):
        torch.testing.assert_close(method.queues[v].rows[:NUM], F.normalize(k[1 - v], dim=1))
        assert torch.equal(method.queues[v].rows[NUM:], rows[v][NUM:])


def test_the_asymmetric_form_uses_view_0_as_the_only_query() -> None:
    method, batch = make_method("moco", queue_size=20, symmetric=False), make_batch()
    other = copy.deepcopy(method)
    (q,), (k,) = embed(other.encoder, batch.views[:1])[1], other.teach(batch.views[1:])
    (queue,) = method.queues
    torch.testing.assert_close(method.loss(batch), info_nce_queue(q, k, queue.rows.clone(), temperature=0.2))
    method.after_step(0, 100)
    torch.testing.assert_close(queue.rows[:NUM], F.normalize(k, dim=1))


def test_keys_come_from_the_teacher_before_its_update() -> None:
    method, batch = make_method("moco", queue_size=20, momentum_start=0.5), make_batch()
    expected = F.normalize(copy.deepcopy(method).teach(batch.views), dim=-1)
    take_step(method, batch, lr=1.0)
    torch.testing.assert_close(method.queues[0].rows[:NUM], expected[1])
    assert not torch.allclose(F.normalize(method.teach(batch.views), dim=-1)[1], expected[1], atol=1e-3)


def test_queues_depend_on_the_seed_and_have_the_projection_dimension() -> None:
    one, two = make_method("moco", queue_size=20), make_method("moco", queue_size=20)
    assert torch.equal(one.queues[1].rows, two.queues[1].rows)
    assert one.queues[0].rows.shape == (20, DIM)


@pytest.mark.parametrize(("option", "value"), [("queue_size", 0), ("temperature", 0.0)])
def test_invalid_options_are_errors(option: str, value: float) -> None:
    with pytest.raises(UsageError):
        make_method("moco", **{option: value})
