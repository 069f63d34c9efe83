"""Ridge regression from sums. Oracle: scikit-learn's Ridge."""

import pytest
import torch
from sklearn.linear_model import Ridge

from s2f.ridge import Moments

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(3000, 6, generator=GENERATOR) * torch.tensor([1, 2, 3, 0.1, 5, 1]) + 2
Y = X @ torch.randn(6, 3, generator=GENERATOR) + torch.randn(3000, 3, generator=GENERATOR) + 7


def moments(size: int) -> Moments:
    found = Moments()
    for x, y in zip(X.split(size), Y.split(size), strict=True):
        found.add(x, y)
    return found


@pytest.mark.parametrize("ridge", [1e-6, 0.1, 1.0])
@pytest.mark.parametrize("size", [7, 700, 3000])
def test_it_is_ridge_regression_on_scaled_features_whatever_the_batches(
    ridge: float, size: int
) -> None:
    weight, bias = moments(size).solve(ridge)
    scale = X.double().std(0, correction=0)
    oracle = Ridge(alpha=ridge * len(X)).fit((X / scale).numpy(), Y.numpy())
    expected = torch.from_numpy(oracle.predict((X / scale).numpy())).float()
    torch.testing.assert_close(X @ weight + bias, expected, atol=1e-3, rtol=1e-3)


def test_the_deviation_covers_what_is_predicted() -> None:
    found = moments(500)
    weight, _ = found.solve(0.1)
    predicted = X @ weight
    expected = predicted.std(0, correction=0) + predicted.mean(0).abs()
    torch.testing.assert_close(found.deviation(weight), expected, rtol=1e-3, atol=1e-3)


def test_a_feature_that_never_changes_does_no_harm() -> None:
    found = Moments()
    found.add(torch.cat([X, torch.zeros(3000, 1)], 1), Y)
    assert all(part.isfinite().all() for part in found.solve(0.1))
