"""The sums over every overlap, against loops over every shift."""

from __future__ import annotations

import numpy as np
import pytest

from photoflux.correlation import overlaps


@pytest.mark.parametrize(("a_shape", "b_shape"), [((5, 7), (4, 3)), ((6, 6), (6, 6)), ((3, 8), (9, 2))])
def test_every_shift_equals_sums_over_the_overlap(a_shape: tuple[int, int], b_shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=a_shape), rng.normal(size=b_shape)
    found = overlaps(a, b)
    for dy in range(1 - b_shape[0], a_shape[0]):
        for dx in range(1 - b_shape[1], a_shape[1]):
            rows = slice(max(dy, 0), min(a_shape[0], dy + b_shape[0]))
            columns = slice(max(dx, 0), min(a_shape[1], dx + b_shape[1]))
            mine = a[rows, columns]
            theirs = b[rows.start - dy : rows.stop - dy, columns.start - dx : columns.stop - dx]
            sums = [(mine * theirs).sum(), (mine**2).sum(), (theirs**2).sum(), mine.size]
            place = dy + b_shape[0] - 1, dx + b_shape[1] - 1
            assert [values[place] for values in found] == pytest.approx(sums, abs=1e-12)


def test_many_are_compared_with_many_as_each_with_each() -> None:
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=(3, 6, 6)), rng.normal(size=(2, 6, 6))
    found = overlaps(a[:, None], b[None])
    assert found.product.shape[:2] == (3, 2)
    for i, j in np.ndindex(3, 2):
        alone = overlaps(a[i], b[j])
        assert found.product[i, j] == pytest.approx(alone.product, abs=1e-12)
        assert found.square_a[i, 0] == pytest.approx(alone.square_a, abs=1e-12)
        assert found.square_b[0, j] == pytest.approx(alone.square_b, abs=1e-12)
