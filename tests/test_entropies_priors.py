"""Any prior with any estimator of H[z], any number of views, in float32 and float64."""

import copy
import math
from collections.abc import Callable

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import probssl as ps
from probssl import entropies, priors
from probssl.entropies import Entropy
from probssl.priors import Prior

DIM, ITEMS = 3, 9


def laplace(y: Tensor) -> dist.TorchDistribution:
    return dist.Laplace(y, 0.5).to_event(1)


PRIORS: dict[str, Callable[[int], Prior]] = {
    "Gaussian": lambda d: priors.Gaussian(d, 0.4),
    "flat Gaussian": lambda d: priors.Gaussian(None, 0.4, math.inf),
    "a scale for each": lambda d: priors.Gaussian(d, [0.3, 0.5, 0.9][:d]),
    "random scale": lambda d: priors.Gaussian(d, dist.LogNormal(-1.0, 0.5)),
    "independent": lambda d: priors.Independent(d),
    "independent, any dim": lambda d: priors.Independent(None),
    "content and style": lambda d: (
        priors.ContentStyle(d, 0, [0.3, 0.5, 0.9][:d])
        if d < 3
        else priors.ContentStyle(d - 1, 1, ps.learned(0.4))
    ),
    "spherical": lambda d: priors.Spherical(d, 5.0),
    "learned spherical": lambda d: priors.Spherical(None, ps.learned(30.0)),
    "student": lambda d: priors.StudentT(d, 0.4, 3.0),
    "flat student": lambda d: priors.StudentT(None, 0.4, 3.0, math.inf),
    "t-SNE": lambda d: priors.TSNE(None, 0.7, 5.0),
    "mixture": lambda d: priors.Mixture(d, 4, 0.5),
    "two tiers": lambda d: priors.TwoTier(d, 4, 0.3, 0.5),
    "own scales": lambda d: priors.TwoTier(
        d, priors.Components(d, 4, own_scales=True), 0.3, 0.5
    ),
    "custom": lambda d: priors.Custom(laplace, d),
}

ENTROPIES: dict[str, Callable[[int], Entropy]] = {
    "log-determinant": lambda d: entropies.LogDeterminant(),
    "variance, covariance": lambda d: entropies.VarianceCovariance(),
    "kernel": lambda d: entropies.KernelDensity(),
    "decoupled kernel": lambda d: entropies.KernelDensity(same_item=False),
    "other views": lambda d: entropies.KernelDensity(same_view=False),
    "queued kernel": lambda d: entropies.QueuedKernelDensity(12, d),
    "nearest": lambda d: entropies.NearestNeighbour(),
    "collision": lambda d: entropies.Collision(),
    "clusters": lambda d: entropies.Clusters(5, d),
    "equipartition": lambda d: entropies.Equipartition(5, d),
    "plug-in": lambda d: entropies.PlugIn(
        nn.Linear(d, d), entropies.LogDeterminant(), stop_gradient=False
    ),
}


def parts(prior: str, entropy: str, dim: int) -> tuple[Prior, Entropy]:
    torch.manual_seed(0)
    return PRIORS[prior](dim), ENTROPIES[entropy](dim)


def representations(prior: Prior, views: int, dim: int) -> Tensor:
    generator = torch.Generator().manual_seed(views)
    z = torch.randn(ITEMS, 1, dim, generator=generator)
    z = z + 0.3 * torch.randn(ITEMS, views, dim, generator=generator)
    return prior.on_support(z)


def gradients(value: Tensor, z: Tensor, *modules: nn.Module) -> list[Tensor]:
    leaves = [z, *(p for m in modules for p in m.parameters())]
    found = torch.autograd.grad(value, leaves, allow_unused=True)
    return [g for g in found if g is not None]


def agree(value: Callable[..., Tensor], z: Tensor, *modules: nn.Module) -> None:
    """The value and its gradients in float32 are those in float64, and finite."""
    both = []
    for dtype in (torch.float, torch.double):
        own = [copy.deepcopy(module).to(dtype) for module in modules]
        points = z.detach().to(dtype).requires_grad_()
        found = value(points, *own)
        assert found.dtype == dtype and bool(found.isfinite().all())
        slopes = gradients(found.sum(), points, *own) if found.requires_grad else []
        both.append([found.detach(), *slopes])
    for a, b in zip(*both, strict=True):
        assert_close(
            a.double(), b, rtol=1e-4, atol=2e-4 * max(1.0, float(b.abs().max()))
        )


def refused(prior: str, entropy: str, views: int) -> str | None:
    """What is said of the parts that have no value together, or None."""
    plugs = entropy not in ("log-determinant", "variance, covariance", "nearest")
    if plugs and prior == "mixture" and entropy != "plug-in":
        return "plug_in"
    gaussian = entropy in ("log-determinant", "variance, covariance", "plug-in")
    if "spherical" in prior and gaussian:
        return "by area on a sphere; use KernelDensity"
    return "number of neighbours" if views == 1 and entropy == "other views" else None


@pytest.mark.parametrize("views", [1, 2, 3, 4])
@pytest.mark.parametrize("entropy", ENTROPIES)
@pytest.mark.parametrize("prior", PRIORS)
def test_any_prior_takes_any_entropy(prior, entropy, views):
    made = parts(prior, entropy, DIM)
    z = representations(made[0], views, DIM)
    if message := refused(prior, entropy, views):
        with pytest.raises((TypeError, ValueError), match=message):
            made[1](z, made[0])
        return
    agree(lambda z, prior, entropy: entropy(z, prior), z, *made)
    if views > 1 and entropy != "queued kernel" and prior != "mixture":
        try:
            made[1].joint(z, made[0])
        except TypeError as error:
            assert "joint entropy" in str(error)
            return
        agree(lambda z, prior, entropy: entropy.joint(z, prior), z, *made)


@pytest.mark.parametrize("dim", [1, DIM])
@pytest.mark.parametrize("views", [1, 2, 4])
@pytest.mark.parametrize("prior", PRIORS)
def test_any_prior_takes_any_views(prior, views, dim):
    """And absent ones; the kernel and pmi broadcast."""
    made = None if "spherical" in prior and dim == 1 else PRIORS[prior](dim)
    if made is None or not made.proper and views == 1:
        return
    z = representations(made, views, dim)
    agree(lambda z, prior: prior.log_prob(z), z, made)
    present = torch.rand(ITEMS, views) < 0.7
    present[:, 0] = True
    agree(lambda z, prior: prior.log_prob(z, present), z, made)
    for name in ("log_kernel", *["pmi"] * (made.proper and "spherical" not in prior)):
        a, b = z[:4].transpose(0, 1), z[4:, 0]  # (views, 4, dim) and (5, dim)
        found = getattr(made, name)(a, b)
        assert found.shape == (views, 4, ITEMS - 4)
        each = torch.stack([getattr(made, name)(part, b) for part in a])
        assert_close(found, each, rtol=1e-4, atol=1e-5)
        swapped = getattr(made, name)(b, a)
        assert swapped.shape == (views, ITEMS - 4, 4)
        agree(lambda b, p, a=a, name=name: getattr(p, name)(a.to(b), b), b, made)


FAR = {
    "Gaussian": lambda s: priors.Gaussian(16, 0.1, 0.1 * s),
    "flat Gaussian": lambda s: priors.Gaussian(None, 0.1, math.inf),
    "content and style": lambda s: priors.ContentStyle(12, 4, 0.1),
    "student": lambda s: priors.StudentT(16, 0.1, 5.0, 0.1 * s),
    "flat student": lambda s: priors.StudentT(None, 0.1, 5.0, math.inf),
    "t-SNE": lambda s: priors.TSNE(None, 0.1, 20.0),
    "two tiers": lambda s: priors.TwoTier(
        16, priors.Components(16, 5, spread=0.1 * s), 0.1, 0.1 * s
    ),
}


@pytest.mark.parametrize("apart", [0.3, 1e-3])
@pytest.mark.parametrize("offset", [0.0, 1e3])
@pytest.mark.parametrize("spread", [1.0, 10.0, 100.0, 1_000.0])
@pytest.mark.parametrize("prior", FAR)
def test_values_do_not_cancel_where_views_nearly_agree(prior, spread, offset, apart):
    """Items spread and moved by so many kernel widths, views this near each other."""
    torch.manual_seed(1)
    made = FAR[prior](spread)
    z = offset + spread * torch.randn(30, 1, 16) + apart * torch.randn(30, 2, 16)
    values: dict[str, Callable[[Tensor, Prior], Tensor]] = {
        "density": lambda z, p: p.log_prob(z),
        "kernel": lambda z, p: p.log_kernel(z[:, 0], z[:, 1]).diagonal(),
        "plug-in": lambda z, p: p.log_kernel(z[:, 0], z[:, 1], True).diagonal(),
        "kernel density": lambda z, p: entropies.KernelDensity()(z, p),
        "collision": lambda z, p: entropies.Collision()(z, p),
        "nearest": lambda z, p: entropies.NearestNeighbour()(z, p),
    }
    for name, value in values.items():
        both = []
        for dtype in (torch.float, torch.double):
            own, points = copy.deepcopy(made).to(dtype), (0.1 * z).to(dtype)
            points = points.requires_grad_()
            found = value(points, own)
            both.append((found.detach().double(), *gradients(found.sum(), points)))
        (a, slope), (b, exact) = both
        # float32 holds seven digits of a large log-density; and of the centre of a
        # kernel, 1e3 widths away, as many: 1e-4 widths, times the distance to it
        assert_close(
            a, b, rtol=3e-7, atol=5e-3, msg=lambda m, name=name: f"{name}: {m}"
        )
        scale = max(float(exact.abs().max()), 10.0)  # one over the width
        assert_close(slope.double(), exact, rtol=0, atol=2e-3 * scale)
