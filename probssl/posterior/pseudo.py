"""Draws of the random hyper-parameters of an objective without a joint."""

import torch

from ..limits._base import Embedding
from .containers import Variable, provenance
from .items import array

__all__ = ["pseudo_posterior"]

Groups = dict[str, dict[str, Variable]]


@torch.no_grad()
def pseudo_posterior(
    objective: Embedding, draws: int
) -> tuple[Groups, dict[str, list[str]], dict[str, str]]:
    """Draws of hyper-parameters from their guides and priors: groups, coords, attrs."""
    groups: Groups = {"posterior": {}, "prior": {}}
    log_p, log_q = torch.zeros(draws), torch.zeros(draws)
    for h in objective.prior.random():
        q = h.posterior()
        drawn, before = q.sample((draws,)), h.value.sample((draws,))
        axes = ("chain", "draw") + ("dim",) * (drawn.ndim - 1)
        groups["posterior"][h.name] = axes, array(drawn)[None]
        groups["prior"][h.name] = axes, array(before)[None]
        log_p = log_p + h.value.log_prob(drawn).cpu()
        log_q = log_q + q.log_prob(drawn).cpu()
    groups["sample_stats"] = {
        name: (("chain", "draw"), array(value)[None])
        for name, value in (("log_p_hyper", log_p), ("log_q_hyper", log_q))
    }
    attrs = provenance() | {
        "posterior": "pseudo-posterior: the objective as the log-likelihood of an "
        "item, conditional on the encoder",
    }
    return groups, {}, attrs
