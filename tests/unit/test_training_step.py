"""The training step of `train-ssl` stays readable in one place."""

from __future__ import annotations

import ast
import inspect
import textwrap

from corecli.commands.train_ssl import command

ORDER = ("draw(", "method.loss(", ".backward()", "average_gradients(", "clip_grad_norm_(", "optimizer.step()")
ORDER += ("method.after_step(", "probe.learn(", "run.log(")


def test_one_loop_of_at_most_30_lines_shows_the_whole_step() -> None:
    source = textwrap.dedent(inspect.getsource(command._train))
    (loop,) = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.For) and "rows" in ast.dump(node))
    body = source.splitlines()[loop.body[0].lineno - 1 : loop.end_lineno]
    assert len(body) <= 30
    places = ["\n".join(body).index(part) for part in ORDER]
    assert places == sorted(places)
