r"""Lower bounds on the evidence :math:`\log p(x_1, \dots, x_V)`: ELBO and IWAE.

They read traces of a Pyro model and guide and never synchronise with the host, so that
they can be traced and compiled. Sites inside a plate are averaged over items; global
sites, outside all plates, are divided by the number of items in the data set:

.. math:: \frac{1}{B} \sum_{i=1}^B \text{local}_i + \frac{1}{N} \text{global}
"""

import math
from typing import Any, NamedTuple, cast

import pyro
from jaxtyping import Float
from pyro import poutine
from pyro.distributions import Independent
from pyro.distributions.util import scale_and_mask
from pyro.poutine import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from .arguments import whole
from .consistency import site_error
from .hyper import known_population
from .joint import Joint, knows_component
from .likelihoods.base import shape_error
from .runtime.precision import in_float32
from .runtime.threads import LOCK
from .terms import Batch, Terms

__all__ = ["ELBO", "IWAE", "LogWeights", "local_log_prob", "log_weights"]
__all__ += ["weighted_shares"]


class _Bound(NamedTuple):
    particles: int


class ELBO(_Bound):
    r"""ELBO: the evidence lower bound, per item, in nats.

    .. math:: \sum_v E_q[\log p(x_v \mid z_v)] + H[q] + E_q[\log p(z_1, \dots, z_V)]

    Called with a joint and a batch, it returns these three as `Terms`. With a
    `label_weight` the penalty is that weight times `LogWeights.label`, the mean over
    all items, which is no part of the bound.

    Arguments:
        particles: The number of samples of q over which expectations are averaged.
    """

    def __new__(cls, particles: int = 1) -> "ELBO":
        return super().__new__(cls, whole("particles", particles))

    def __call__(
        self, joint: Joint, batch: Batch, label_weight: Tensor | None = None
    ) -> Terms:
        labelled = label_weight is not None
        *terms, label = log_weights(joint, batch, self.particles, labelled)
        bound = Terms(*(term.mean() for term in terms))
        return _with_labels(bound, label, label_weight)


class IWAE(_Bound):
    r"""IWAE: the importance-weighted bound with K samples of q, per item, in nats.

    .. math:: E \log \frac1K \sum_k w_k = E \Big[ \sum_k \tilde w_k \log w_k
        + H[\tilde w] - \log K \Big], \qquad w = \frac{p(x, z)}{q(z \mid x)}, \quad
        \tilde w_k = \frac{w_k}{\sum w}

    The identity on the right gives its `Terms`: each term is averaged with the
    normalised weights, and their entropy less log K is added to the entropy. The bound
    grows with K and converges to the evidence. `label_weight` is that of `ELBO`.

    Random hyper-parameters h are drawn once for all samples of all items, outside the
    logarithm, so that the bound is one of all N items together:

    .. math:: E_{q(h)} \Big[ \sum_i \log \frac1K \sum_k
        \frac{p(x_i, z_{ik} \mid h)}{q(z_{ik} \mid x_i, h)} \Big]
        - \mathrm{KL}(q(h) \,\|\, p(h)) \;\le\; \log p(x_1, \dots, x_N)

    Arguments:
        particles: The number K of samples.

    References:
        Importance Weighted Autoencoders (Burda et al., 2016)
        https://arxiv.org/abs/1509.00519
    """

    def __new__(cls, particles: int = 10) -> "IWAE":
        return super().__new__(cls, whole("particles", particles))

    def __call__(
        self, joint: Joint, batch: Batch, label_weight: Tensor | None = None
    ) -> Terms:
        labelled = label_weight is not None
        terms = log_weights(joint, batch, self.particles, labelled, one_hyper=True)
        log_share = terms.local().log_softmax(0)
        share = log_share.exp()

        def averaged(term: Tensor) -> Tensor:
            return (share * term.where(share != 0, 0.0)).sum(0)  # not 0 · (−∞)

        gain = -averaged(log_share) - math.log(self.particles)
        bound = Terms(
            averaged(terms.reconstruction).mean(),
            (averaged(terms.entropy) + gain).mean(),
            averaged(terms.alignment).mean(),
            terms.hyper.mean(),
        )
        return _with_labels(bound, terms.label, label_weight)


class LogWeights(NamedTuple):
    r"""Summands of :math:`\log p(x, z) - \log q(z \mid x)`, in nats.

    Each has shape (particles, batch); that of the hyper-parameters, weighted by
    1 / population, shape (particles, 1). Where a component k of the prior is observed,
    the alignment includes :math:`\log p(k)`. With an explicit y the alignment is
    :math:`\log p(y, z_1, \dots, z_V) - \log q(y \mid z_1, \dots, z_V)`, whose mean is
    at most :math:`\log p(z_1, \dots, z_V)`.

    `label` is no summand: :math:`\log p(k \mid z_1, \dots, z_V)` of observed
    components k, at samples of a q(z|x) that does not know k; 0 where k is unknown.
    Under the guide `Coupled`, whose q(z|x, k) knows it, it is :math:`\log q(k \mid
    x)`.
    """

    reconstruction: Tensor
    entropy: Tensor
    alignment: Tensor
    hyper: Tensor
    label: Tensor

    def local(self) -> Tensor:
        """The log-weight of each sample and item, without the hyper-parameters."""
        return self.reconstruction + self.entropy + self.alignment


@in_float32
def log_weights(
    joint: Joint,
    batch: Batch,
    particles: int = 1,
    labelled: bool = False,
    *,
    one_hyper: bool = False,
) -> LogWeights:
    """Sample z from the guide of a joint; return the log importance weights by term.

    Arguments:
        labelled: Whether to compute `label`, of a batch with contents; otherwise it
            is 0.
        one_hyper: Whether all samples share one draw of the random hyper-parameters, as
            under a logarithm of their mean; by default each has its own.

    Raises:
        ValueError: If there are random hyper-parameters and no population, if p(x|z)
            has another shape than the views, or a guide another one than p(z) or p(y);
            if a guide that is trained has no samples with a gradient.
    """
    weights, guide = _sampled(joint, batch, particles, one_hyper)
    if labelled:
        label = weights.label + _label(joint, batch, guide)
        weights = weights._replace(label=label)
    return weights


@in_float32
def weighted_shares(
    joint: Joint, batch: Batch, particles: int
) -> tuple[Tensor, Float[Tensor, "particle item component"]]:
    r"""Log importance weights, and :math:`\log p(k \mid z_1..V)`, of samples."""
    weights, guide = _sampled(joint, batch, particles)
    return weights.local(), _log_shares(joint, batch, guide)


def _sampled(
    joint: Joint, batch: Batch, particles: int, one_hyper: bool = False
) -> tuple[LogWeights, Trace]:
    """The log-weights of samples of the guide, whose label is 0, and its trace."""
    draw = joint.guide
    if one_hyper and (hypers := list(joint.prior.random())):
        with LOCK:  # Pyro has one stack of handlers for all threads
            once = poutine.trace(lambda: [h.sample_guide() for h in hypers]).get_trace()
        draw = poutine.replay(draw, trace=once)
    with LOCK, pyro.plate("particles", particles, dim=-2):
        guide = poutine.trace(draw).get_trace(batch)
        replayed = poutine.replay(joint.model, trace=guide)
        model = poutine.trace(replayed).get_trace(batch)
    sites, nodes = joint.sites, cast(dict[str, Any], model.nodes)
    for name in sites:
        density, x = nodes[name]["fn"], nodes[name]["value"]
        if density.event_shape != x.shape[1:]:
            raise shape_error(name, density, x)
    (p, p_global), (q, q_global) = _log_probs(model), _log_probs(guide)
    guided = cast(dict[str, Any], guide.nodes)
    for name, log_q in reversed(q.items()):  # z is given y under p
        own, fitted = nodes[name]["fn"], guided[name]["fn"]
        trained = fitted.has_rsample or not log_q.requires_grad
        if own.event_shape != fitted.event_shape or not trained:
            raise site_error(name, own, fitted)
    one = batch.views[0] if isinstance(batch.views, tuple) else batch.views
    zeros = one.new_zeros(particles, len(one))
    hyper = sum(p_global, start=zeros[:, :1]) - sum(q_global, start=zeros[:, :1])
    if p_global:
        hyper = hyper / known_population(joint.population)
    observed = [p.pop(name) for name in sites]
    encoded = q.pop("z")
    weights = LogWeights(
        reconstruction=sum(observed, start=zeros),
        entropy=-(zeros + encoded),
        alignment=sum(p.values(), start=zeros) - sum(q.values(), start=zeros),
        hyper=hyper,
        label=zeros,
    )
    return weights, guide


def _with_labels(bound: Terms, label: Tensor, weight: Tensor | None) -> Terms:
    return (
        bound
        if weight is None
        else bound._replace(penalty=weight.to(label) * label.mean())
    )


def _label(joint: Joint, batch: Batch, guide: Trace) -> Tensor:
    """log p(k|z_1..V) of observed components; 0 where they are unknown."""
    assert batch.content is not None
    nodes = cast(dict[str, Any], guide.nodes)
    q = nodes["z"]["fn"]
    if knows_component(q, joint.prior):
        with joint.prior.at(**_drawn(joint, guide)):
            share = joint.prior.component().logits + q.log_evidences
            log_share = share.log_softmax(-1)
    else:
        log_share = _log_shares(joint, batch, guide)
    k = batch.content.expand(log_share.shape[:-1]).unsqueeze(-1)
    return log_share.gather(-1, k.clamp(min=0)).where(k >= 0, 0.0).squeeze(-1)


def _log_shares(joint: Joint, batch: Batch, guide: Trace) -> Tensor:
    """log p(k|z_1..V) at the samples of a guide, (\\*batch, component)."""
    nodes = cast(dict[str, Any], guide.nodes)
    with joint.prior.at(**_drawn(joint, guide)):
        share = joint.prior.responsibilities(nodes["z"]["value"], batch.present)
        return cast(Tensor, share.logits)


def _drawn(joint: Joint, guide: Trace) -> dict[str, Tensor]:
    """The samples of random hyper-parameters."""
    nodes = cast(dict[str, Any], guide.nodes)
    return {h.name: nodes[h.name]["value"] for h in joint.prior.random()}


def local_log_prob(trace: Trace) -> Float[Tensor, "*particles item"]:
    """The log-density of the sites of each item."""
    first, *others = _log_probs(trace)[0].values()
    return sum(others, start=first)


def _log_probs(trace: Trace) -> tuple[dict[str, Tensor], list[Tensor]]:
    """The log-densities of the sites inside the plate of items, and of global sites."""
    local, shared = {}, []
    nodes: dict[str, Any] = trace.nodes
    for name, site in nodes.items():
        if site["type"] != "sample" or site_is_subsample(site):
            continue
        # Not Trace.compute_log_prob, which synchronises to look for NaN if validating.
        try:
            log_prob = site["fn"].log_prob(
                site["value"], *site["args"], **site["kwargs"]
            )
        except ValueError:
            if not site["is_observed"]:
                raise
            raise _off_support(name, site["fn"]) from None
        log_prob = scale_and_mask(log_prob, site["scale"], site["mask"])
        if {frame.name for frame in site["cond_indep_stack"]} - {"particles"}:
            local[name] = log_prob
        else:
            shared.append(log_prob)
    return local, shared


def _off_support(name: str, p: Any) -> ValueError:
    """The error for data that the distribution of some draw of z refuses."""
    while isinstance(p, Independent):
        p = p.base_dist
    kind = type(p).__name__
    return ValueError(
        f"expected the data of the site {name!r} on the support of its {kind} for "
        "every draw of z, got a z for which they are off it; if the support moves with "
        f"z, let the likelihood return {kind}(…, validate_args=False), and -inf as "
        "log p(x|z) there"
    )
