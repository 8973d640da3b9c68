r"""Bounds on the evidence :math:`\log p(x_1, \dots, x_V)`, term by term.

They read the traces of a Pyro model and guide and never synchronise with the host, so
they can be traced and compiled. Sites inside a plate are averaged over items; global
sites, outside all plates, are divided by the number of items in the data set:

.. math:: \frac{1}{B} \sum_{i=1}^B \text{local}_i + \frac{1}{N} \text{global}
"""

import math
from typing import NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine import Trace
from torch import Tensor

from .joint import Joint
from .terms import Batch, Terms

__all__ = ["ELBO", "IWAE", "log_weights"]


class ELBO(NamedTuple):
    r"""The evidence lower bound, per item, in nats.

    .. math:: \sum_v E_q[\log p(x_v \mid z_v)] + H[q] + E_q[\log p(z_1, \dots, z_V)]

    Called with a joint and a batch it returns these three as `Terms`.

    Arguments:
        particles: The number of samples of q that the expectations are averaged over.
    """

    particles: int = 1

    def __call__(self, joint: Joint, batch: Batch) -> Terms:
        terms = log_weights(joint, batch, self.particles)
        return Terms(*(_mean(term) for term in terms))


class IWAE(NamedTuple):
    r"""The importance-weighted bound with K samples of q, per item, in nats.

    .. math:: E \log \frac1K \sum_k w_k = E \Big[ \sum_k \tilde w_k \log w_k
        + H[\tilde w] - \log K \Big], \qquad w = \frac{p(x, z)}{q(z \mid x)}, \quad
        \tilde w_k = \frac{w_k}{\sum w}

    The identity on the right gives its `Terms`: each term is averaged with the
    normalised weights, and what the weights gain over q is added to the entropy. The
    bound grows with K, to the evidence.

    Arguments:
        particles: The number K of samples.

    References:
        Importance Weighted Autoencoders (Burda et al., 2016)
        https://arxiv.org/abs/1509.00519
    """

    particles: int = 10

    def __call__(self, joint: Joint, batch: Batch) -> Terms:
        terms = log_weights(joint, batch, self.particles)
        log_weight = sum(terms[:3]).log_softmax(0)
        weight = log_weight.exp()
        reconstruction, entropy, alignment = (weight * t for t in terms[:3])
        gain = -(weight * log_weight).sum(0) - math.log(self.particles)
        return Terms(
            reconstruction.sum(0).mean(),
            entropy.sum(0).mean() + gain.mean(),
            alignment.sum(0).mean(),
            _mean(terms.hyper),
        )


def log_weights(joint: Joint, batch: Batch, particles: int = 1) -> Terms:
    r"""The summands of :math:`\log p(x, z) - \log q(z \mid x)` for each sample and item.

    Each has shape (particles, batch), in nats; the hyper term (particles, 1), weighted
    by 1 / population.

    Raises:
        ValueError: If there are random hyper-parameters and no population.
    """
    guide, model = _traces(joint, batch, particles)
    reconstruction = entropy = alignment = hyper = 0.0
    for name, site in _sites(guide):
        if _is_local(site):
            entropy = entropy - _log_prob(site)
        else:
            hyper = hyper - _log_prob(site)
    for name, site in _sites(model):
        if site["is_observed"]:
            reconstruction = reconstruction + _log_prob(site)
        elif _is_local(site):
            alignment = alignment + _log_prob(site)
        else:
            hyper = hyper + _log_prob(site)
    shape = (particles, batch.shape[0])
    local = (t.expand(shape) for t in (reconstruction, entropy, alignment))
    if not isinstance(hyper, Tensor):
        return Terms(*local)
    if joint.population is None:
        raise ValueError(
            "expected joint.population, the number of items by which the random "
            "hyper-parameters are weighted, got None; train with ps.fit, or set "
            "joint.population = torch.tensor(len(data))"
        )
    return Terms(*local, hyper=hyper / joint.population)


def _traces(joint: Joint, batch: Batch, particles: int) -> tuple[Trace, Trace]:
    with pyro.plate("particles", particles, dim=-2):
        guide = poutine.trace(joint.guide).get_trace(batch)
        replayed = poutine.replay(joint.model, trace=guide)
        return guide, poutine.trace(replayed).get_trace(batch)


def _sites(trace: Trace) -> list[tuple[str, dict]]:
    return [
        (name, site)
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not poutine.util.site_is_subsample(site)
    ]


def _is_local(site: dict) -> bool:
    return any(frame.name != "particles" for frame in site["cond_indep_stack"])


def _log_prob(site: dict) -> Tensor:
    # Not Trace.compute_log_prob: it asks the host for NaNs where validation is on.
    log_prob = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    return scale_and_mask(log_prob, site["scale"], site["mask"])


def _mean(term: Tensor | float) -> Tensor | float:
    return term.mean() if isinstance(term, Tensor) else term
