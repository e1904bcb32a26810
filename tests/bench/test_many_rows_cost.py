"""What it costs a new process to use sets of 10^4 to 10^7 images: seconds and private memory of each step."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from corecli.data.imageset import write_set
from corecli.data.rows import make_rows
from corecli.data.strings import PackedStrings, concatenated

pytestmark = pytest.mark.bench
SIZES = (10**4, 10**5, 10**6, 10**7)
CHUNK = 1 << 18
SCRIPT = """
import json, sys, time
from pathlib import Path
import numpy as np
import corecli.data.formats.packed, corecli.data.latents
from corecli.data.imageset import open_set
from corecli.data.members import Members, anchors, parse_views
from corecli.data.order import Order
from corecli.data.sets import LargeSets

def private_mb():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) / 1024

def order(slots, segments, **options):
    return Order(slots, segments=segments, batch_size=256, seed=0, total_steps=30, **options)

def opened():
    return open_set(sys.argv[1])

def batches():
    return [data.read_array(order(data.slots, data.segments).batch(step)) for step in range(10)]

def pairs():
    entries = parse_views("real:1g,synthetic:1g")
    epoch, members = order(*anchors(data.rows, data.slots, data.segments, entries)), Members(data.rows, entries, seed=0)
    return [data.read_array(members.of(epoch.batch(step), (0, 0)).ravel()) for step in range(10)]

def sets_of_two():
    epoch = order(data.slots, data.segments, sets=LargeSets(rows=data.rows, size=2))
    return [data.read_array(epoch.batch(step)) for step in range(10)]

found, data = {}, None
for step in (opened, batches, pairs, sets_of_two):
    start, before = time.perf_counter(), private_mb()
    made = step()
    data = made if data is None else data
    found[step.__name__] = [time.perf_counter() - start, private_mb() - before]
print(json.dumps(found))
"""


def numbered(numbers: np.ndarray, suffix: str) -> PackedStrings:
    """The keys `000000007` + suffix of some numbers."""
    text = np.empty((len(numbers), 9 + len(suffix)), dtype=np.uint8)
    for place in range(9):
        text[:, place] = ord("0") + numbers // 10 ** (8 - place) % 10
    text[:, 9:] = np.frombuffer(suffix.encode(), dtype=np.uint8)
    offsets = np.arange(len(numbers) + 1) * text.shape[1]
    return PackedStrings(text.ravel(), offsets[:-1], offsets[1:])


def write_packed(path: Path, num: int) -> None:
    """A packed set of images of 2 x 2 pixels, four synthetic variants to each real one."""
    keys = concatenated([numbered(np.arange(num // 5), suffix) for suffix in ("", "@0", "@1", "@2", "@3")])
    rows = make_rows(keys, labels=np.arange(num) % 10, is_ours=True)
    sizes = (min(CHUNK, num - start) for start in range(0, num, CHUNK))
    chunks = (np.zeros((size, 3, 2, 2), dtype=np.uint8) for size in sizes)
    write_set(path, rows, chunks, class_names=tuple("0123456789"), header={})


def test_many_rows_cost_a_process_little(tmp_path: Path) -> None:
    """Opening takes the same time and memory for any number of rows; the sets of two are computed once and stored."""
    found = {}
    for num in SIZES:
        path = tmp_path / f"{num}.safetensors"
        write_packed(path, num)
        for _ in range(2):  # the second process finds what the first one has stored
            ran = subprocess.run([sys.executable, "-c", SCRIPT, path], capture_output=True, text=True, check=True)
            found[num] = json.loads(ran.stdout)
        costs = "  ".join(f"{name} {seconds:.3f} s {mb:.1f} MB" for name, (seconds, mb) in found[num].items())
        print(f"{num:>9}  {costs}")
    few, many = found[SIZES[0]], found[SIZES[-1]]
    assert many["opened"][0] < 5 * few["opened"][0] + 0.1
    assert many["opened"][1] < 5 and many["batches"][1] < 20
    assert many["pairs"][1] < 50 and many["sets_of_two"][1] < 100
