"""Ridge regression from sums. Oracle: scikit-learn's Ridge."""

import pytest
import torch
from sklearn.linear_model import Ridge
from torch import nn

from s2f.losses import MARGIN, RIDGES, RidgeSums, solve_last_layers

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(3000, 6, generator=GENERATOR) * torch.tensor([1, 2, 3, 0.1, 5, 1]) + 2
Y = X @ torch.randn(6, 3, generator=GENERATOR) + torch.randn(3000, 3, generator=GENERATOR) + 7


def summed(size):
    found = RidgeSums()
    for x, y in zip(X.split(size), Y.split(size), strict=True):
        found.add(x, y)
    return found


@pytest.mark.parametrize("ridge", [1e-6, 0.1, 1.0])
@pytest.mark.parametrize("size", [7, 700, 3000])
def test_it_is_ridge_regression_whatever_the_batches(ridge, size):
    weight, bias = summed(size).solve(ridge)
    scale = X.double().std(0, correction=0)
    oracle = Ridge(alpha=ridge * len(X)).fit((X / scale).numpy(), Y.numpy())
    expected = torch.from_numpy(oracle.predict((X / scale).numpy())).float()
    torch.testing.assert_close(X @ weight + bias, expected, atol=1e-3, rtol=1e-3)
    # a feature that never changes does no harm
    found = RidgeSums()
    found.add(torch.cat([X, torch.zeros(3000, 1)], 1), Y)
    assert all(part.isfinite().all() for part in found.solve(ridge))


def layers(hidden):
    """Two last layers with a ReLU between, 6 to 3, solved with the first half of the data kept."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, hidden), nn.ReLU(), nn.Linear(hidden, 3))
    solve_last_layers(summed(500), X[:500], Y[:500], network[0], network[2])
    return network.requires_grad_(False)


def one_layer():
    torch.manual_seed(0)
    network = nn.Linear(6, 3)
    solve_last_layers(summed(500), X[:500], Y[:500], None, network)
    return network.requires_grad_(False)


def best():
    """Predictions of the ridge that does best on the first 500."""
    solved = [summed(500).solve(ridge) for ridge in RIDGES]
    errors = [float((X[:500] @ w + b - Y[:500]).square().mean()) for w, b in solved]
    weight, bias = solved[errors.index(min(errors))]
    return X @ weight + bias


@pytest.mark.parametrize("hidden", [2, 3])
def test_the_shift_keeps_all_that_is_seen_clear_of_the_relu_and_is_whole(hidden):
    network = layers(hidden)
    between = network[0](X)
    assert (between > 0).all() and (between.mean(0) / between.std(0) > MARGIN - 1).all()
    assert torch.equal(network[0].bias, network[0].bias.round())


@pytest.mark.parametrize("hidden", [1, 2])
def test_few_values_between_are_the_ways_in_which_predictions_vary_most(hidden):
    torch.testing.assert_close(layers(3)(X), best(), atol=1e-3, rtol=1e-4)  # all of them
    torch.testing.assert_close(one_layer()(X), best(), atol=1e-3, rtol=1e-4)
    predicted, found = best().double(), layers(hidden)(X).double()
    mean = predicted.mean(0)
    _, _, v = torch.linalg.svd(predicted - mean, full_matrices=False)
    expected = mean + (predicted - mean) @ v[:hidden].T @ v[:hidden]
    torch.testing.assert_close(found, expected, atol=1e-2, rtol=1e-3)
