"""Statistics files of corecli and other tools, and damaged ones."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest

from corecli.base.errors import CannotCreateError, DataError, MissingInputError
from corecli.data.statistics import Statistics, check_same_space, holds_statistics, read_statistics, write_statistics


def statistics(dim: int = 4, **fields) -> Statistics:
    rng = np.random.default_rng(dim)
    return Statistics(mean=rng.normal(size=dim), covariance=np.cov(rng.normal(size=(dim, 50))), **fields)


def assert_equal(a: Statistics, b: Statistics) -> None:
    for field in dataclasses.fields(Statistics):
        np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name), err_msg=field.name)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"space": "inception/pool/tf1", "fingerprint": "ab" * 32, "num_images": 50_000},
        {"spatial_mean": np.arange(3.0), "spatial_covariance": np.eye(3)},
    ],
    ids=["bare", "labeled", "spatial"],
)
def test_round_trip(fields, tmp_path):
    path = tmp_path / "reference.npz"
    write_statistics(path, statistics(**fields))
    assert holds_statistics(path)
    assert_equal(read_statistics(path), statistics(**fields))


def test_equal_content_gives_equal_bytes(tmp_path):
    for name in ("a.npz", "b.npz"):
        write_statistics(tmp_path / name, statistics(space="s"))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_other_tools_read_ours(tmp_path):
    """pytorch-fid and EDM take mu and sigma; ADM's evaluator also mu_s, sigma_s and arr_0."""
    images = np.zeros((2, 8, 8, 3), np.uint8)
    fields = {"spatial_mean": np.ones(3), "spatial_covariance": np.eye(3), "num_images": 2}
    write_statistics(tmp_path / "adm.npz", statistics(**fields), images=images)
    with np.load(tmp_path / "adm.npz") as found:
        assert found["mu"].shape == (4,)
        assert found["sigma"].shape == (4, 4)
        assert found["mu_s"].shape == (3,)
        assert found["sigma_s"].shape == (3, 3)
        assert found["arr_0"].dtype == np.uint8


def test_pytorch_fid_reads_ours(tmp_path):
    fid_score = pytest.importorskip("pytorch_fid.fid_score")
    write_statistics(tmp_path / "s.npz", statistics(space="x"))
    mu, sigma = fid_score.compute_statistics_of_path(str(tmp_path / "s.npz"), None, 1, 2048, "cpu")
    np.testing.assert_array_equal(mu, statistics().mean)
    np.testing.assert_array_equal(sigma, statistics().covariance)


def test_files_of_other_tools_are_read_in_float64(tmp_path):
    own = statistics()
    np.savez(tmp_path / "f32.npz", mu=own.mean.astype(np.float32), sigma=own.covariance.astype(np.float32))
    found = read_statistics(tmp_path / "f32.npz")
    assert found.covariance.dtype == np.float64
    np.testing.assert_allclose(found.covariance, own.covariance, rtol=1e-5)
    assert (found.space, found.fingerprint, found.num_images) == (None, None, None)


def test_statistics_are_recognized_by_content(tmp_path):
    np.savez(tmp_path / "images.npz", arr_0=np.zeros((1, 2, 2, 3), np.uint8))
    (tmp_path / "text.npz").write_text("no")
    assert not holds_statistics(tmp_path / "images.npz")
    assert not holds_statistics(tmp_path / "text.npz")
    assert not holds_statistics(tmp_path / "none.npz")
    with pytest.raises(DataError, match="mu and sigma are missing"):
        read_statistics(tmp_path / "images.npz")


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"mu": np.zeros(3), "sigma": np.eye(4)}, "do not match"),
        ({"mu": np.zeros((3, 1)), "sigma": np.eye(3)}, "do not match"),
        ({"mu": np.full(3, np.nan), "sigma": np.eye(3)}, "NaN"),
        ({"mu": np.zeros(3), "sigma": np.triu(np.ones((3, 3)))}, "not symmetric"),
        ({"mu": np.array([None] * 3), "sigma": np.eye(3)}, "an array of objects"),
    ],
    ids=["sizes", "shape", "nan", "asymmetric", "objects"],
)
def test_invalid_statistics_are_refused(arrays, words, tmp_path):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(DataError, match=words):
        read_statistics(tmp_path / "bad.npz")


def test_missing_pickled_and_truncated_files_are_refused(tmp_path):
    with pytest.raises(MissingInputError):
        read_statistics(tmp_path / "none.npz")
    (tmp_path / "edm2.pkl").write_bytes(pickle.dumps({"fid": {"mu": 0}}))
    with pytest.raises(DataError, match="pickles are not loaded"):
        read_statistics(tmp_path / "edm2.pkl")
    write_statistics(tmp_path / "whole.npz", statistics())
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:-100])
    with pytest.raises(DataError):
        read_statistics(tmp_path / "cut.npz")


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotCreateError, match=r"reference\.npz"):
        write_statistics(Path(tmp_path / "file" / "reference.npz"), statistics())


def test_statistics_of_other_spaces_are_refused():
    own = statistics(space="inception/pool/tf1", fingerprint="a" * 64)
    check_same_space(own, own)
    check_same_space(own, statistics())  # nothing recorded, nothing to check but the dimension
    with pytest.raises(DataError, match=r"ref\.npz: statistics with 4 and 5 dimensions cannot be compared"):
        check_same_space(own, statistics(5), where="ref.npz")
    with pytest.raises(DataError, match="inception/pool/tf1 and inception/pool/torch cannot be compared"):
        check_same_space(own, dataclasses.replace(own, space="inception/pool/torch"))
    with pytest.raises(DataError, match="networks aaaaaaaaaaaa and bbbbbbbbbbbb cannot be compared"):
        check_same_space(own, dataclasses.replace(own, fingerprint="b" * 64))
