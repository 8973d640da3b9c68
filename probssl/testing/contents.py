"""Laws of what is behind the views of a prior: content, kernel, hyper-parameters."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .cases import PriorCase
from .densities import integral
from .laws import differs, refusal, seeded
from .modules import SEED
from .references import LogDensity, around

__all__ = ["bayes", "drawn_hyper_parameters", "kernel", "plug_in"]


def kernel(case: PriorCase) -> Iterator[str]:
    """It is log p(a, b) − log p(a), and integrates to one in b."""
    yield from _kernel_is_conditional(case, "")
    look = "it is normalised in b, its second argument, for each a"
    yield from _kernel_integrates(case, False, look)


def plug_in(case: PriorCase) -> Iterator[str]:
    """With the content plugged in too; it is then `given`."""
    a, b = case.typical(3, 2)[:, 0], case.typical(4, 2)[:, 0]
    found = refusal(case.prior.log_kernel, a, b, plug_in=True)
    if found is None:
        return
    look = "log_kernel(a, b, plug_in=True) is log p(z=b | y=a), with its constant"
    yield from _kernel_integrates(case, True, look)
    y = a.unsqueeze(1).expand(-1, len(b), -1)
    given = refusal(case.prior.given, y)
    gap = differs(found, given.log_prob(b)) if given is not None else None
    if gap:
        yield f"{gap} in log_kernel(a, b, plug_in=True) against given(a).log_prob(b)"


def bayes(case: PriorCase) -> Iterator[str]:
    """p(y) ∏ p(z_v|y) / p(y|z) is p(z), whatever y."""
    prior: Any = case.prior
    z = case.typical(4, 3)
    if not hasattr(prior, "posterior_y"):
        return
    seeded(SEED)  # an estimated evidence is then that of log_prob
    posterior = prior.posterior_y(z)
    content = refusal(prior.content)
    if not posterior.event_shape or (content is None and prior.proper):
        return
    y = posterior.sample((5,)).detach()
    given = refusal(prior.given, y.unsqueeze(-2).expand(*y.shape[:2], *z.shape[1:]))
    if given is None:
        return
    value = given.log_prob(z).sum(-1) - posterior.log_prob(y)
    value = value + content.log_prob(y) if content is not None else value
    expected = case.log_prob(z).expand_as(value)
    if content is None:  # a flat p(y) has a constant that is its own affair
        expected = expected + (value - expected).mean()
    gap = differs(value, expected, 1e-6, 1e-5)
    if gap:
        yield (
            f"{gap} in log p(y) + Σ log p(z_v|y) − log p(y|z) against log_prob(z); "
            "look at content, given and posterior_y"
        )


def drawn_hyper_parameters(case: PriorCase) -> Iterator[str]:
    """Drawn values become the batch shape, and `at` gives the same."""
    hypers = list(case.prior.random())
    if not hypers:
        return
    drawn = {h.name: h.value.sample((3, 1)) for h in hypers}
    views, z = case.prior(case.views, **drawn), case.typical(5, case.views)
    if views.batch_shape != (3, 1):
        yield (
            f"expected batch shape (3, 1) from drawn values of that shape, got "
            f"{tuple(views.batch_shape)}; unsqueeze values over view and dim"
        )
        return
    shape = (3, 1, case.views, case.dim)
    if case.prior.proper and tuple(views.sample().shape) != shape:
        yield f"expected samples of shape {shape}, got {tuple(views.sample().shape)}"
    seeded(SEED)
    together = views.log_prob(z)
    for k in range(3):
        values = {name: value[k, 0] for name, value in drawn.items()}
        with case.prior.at(**values):
            alone = case.log_prob(z)
            yield from _kernel_is_conditional(case, " at drawn values")
        gap = None if case.estimated() else differs(together[k], alone)
        if gap:
            yield f"{gap} in prior(views, **drawn) against `with prior.at(**drawn)`"


def _kernel_is_conditional(case: PriorCase, where: str) -> Iterator[str]:
    if case.estimated():  # then both are estimates, from draws of their own
        return
    prior = case.prior
    a, b = case.typical(3, 2)[:, 0], case.typical(4, 2)[:, 1]
    found = prior.log_kernel(a, b)
    if tuple(found.shape) != (3, 4):
        yield f"expected shape (3, 4) of log_kernel(a, b), got {tuple(found.shape)}"
        return
    pairs = torch.stack(torch.broadcast_tensors(a.unsqueeze(1), b), -2)
    expected = prior.log_prob(pairs)
    if prior.proper:
        expected = expected - prior.log_prob(a.unsqueeze(1)).unsqueeze(1)
    else:  # a flat p(y) has a constant that is its own affair
        expected = expected + (found - expected).mean()
    gap = differs(found, expected, 1e-5, 1e-5)
    if gap:
        yield f"{gap} in log_kernel(a, b) against log p(a, b) − log p(a){where}"


def _kernel_integrates(case: PriorCase, plug_in: bool, look: str) -> Iterator[str]:
    a = case.typical(1, 2)[:, :1]

    def log_density(z: Tensor) -> Tensor:
        b = z.squeeze(2).transpose(0, 1)
        return case.prior.log_kernel(a, b, plug_in).squeeze(1).mT.detach()

    density: LogDensity = log_density
    constraint = case.prior(1 if case.prior.proper else 2).support
    references = around(density, a, constraint, case.draws)
    what = "log_kernel(a, b, plug_in=True)" if plug_in else "log_kernel(a, b)"
    yield from integral(density, references, case.draws, f"{what} in b", look)
