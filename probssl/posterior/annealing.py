r"""Annealed importance sampling (AIS): from a proposal to the posterior in small steps.

Where no single proposal is near the posterior, its draws are moved there: by
Hamiltonian Monte Carlo through densities between r, q(z|x) or the refined proposal, and
the joint density,

.. math:: \log f_t(u) = (1 - \beta_t) \log r(u) + \beta_t \log p(x, u), \qquad
    0 = \beta_0 < \dots < \beta_K = 1.

.. math:: \log w = \sum_{t=1}^K (\beta_t - \beta_{t-1})
    \big( \log p(x, u_{t-1}) - \log r(u_{t-1}) \big), \qquad E \, w = p(x)

Each item has step sizes of its own, found for each t by other draws beforehand: the
steps of an estimate depend on none of its own draws, so that w stays unbiased however
badly they are chosen. K = 1 is importance sampling. Where z over- or underflows, the
densities count as 0, and a trajectory that ends there is rejected.

References:
    Annealed Importance Sampling (Neal, 2001)
    https://arxiv.org/abs/physics/9803008
    On the Quantitative Analysis of Decoder-Based Generative Models (Wu et al., 2017)
    https://arxiv.org/abs/1611.04273
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from ..runtime.validation import unvalidated
from .coordinates import Latents, Values, Vectors
from .items import BAR_DELAY, chunks
from .refinement import Refined, frozen

__all__ = ["Annealed"]

LEAPFROG = 5  # steps of a trajectory
PILOTS = 32  # draws that find the step sizes
ACCEPTED, GAIN, FIRST = 0.8, 0.5, 0.5  # share wanted, rate of change, first step size
ENDS = 4.0  # of the sigmoid whose values are the temperatures

Density = Callable[[Vectors], Values]
Steps = Float[Tensor, "temperature item"]


class Annealed:
    r"""Annealed importance sampling of the items of a batch.

    Arguments:
        latents: The items, with their latent variables.
        temperatures: The number K of steps from the proposal to the posterior.
        refined: The proposal r; None means q(z|x).
    """

    def __init__(
        self, latents: Latents, temperatures: int, refined: Refined | None = None
    ) -> None:
        self.latents, self.refined = latents, refined
        share = torch.linspace(-ENDS, ENDS, temperatures + 1, dtype=torch.float64)
        share = share.sigmoid()
        share = (share - share[0]) / (share[-1] - share[0])
        self.temperatures = share.tolist()
        if refined is None:
            self.tril = torch.diag_embed(latents.spread)
        else:
            self.tril = refined.tril
        self.steps: Steps | None = None
        if temperatures > 1:
            _, self.steps = self._run(PILOTS)

    def log_weights(self, draws: int) -> Float[Tensor, "draw item"]:
        """The log-weights of new draws."""
        parts = chunks(draws, self.latents.batch)
        runs = (self._run(n, self.steps) for n in parts)
        return torch.cat([log_weight for log_weight, _ in runs])

    def _run(self, draws: int, steps: Steps | None = None) -> tuple[Values, Steps]:
        """Log-weights, and the step sizes: those given, or those that were found."""
        hypers = self.latents.hypers(draws)
        if self.refined is None:
            u, log_r = self.latents.guide(draws, hypers)
        else:
            u, log_r = self.refined.proposal(draws, hypers)

        def both(u: Vectors) -> tuple[Values, Values]:
            known = self._representable(u)
            with unvalidated():  # elsewhere the densities are 0, whatever z is
                safe = u.where(known.unsqueeze(-1), 0.0)
                log_q, log_p = log_r(safe), self.latents.log_joint(safe, hypers)
            known = known & (log_q < math.inf) & (log_p < math.inf)  # and no NaN
            return log_q.where(known, -math.inf), log_p.where(known, -math.inf)

        log_weight = u.new_zeros(u.shape[:2])
        size = u.new_full(u.shape[1:2], FIRST)
        found = []
        pairs = list(zip(self.temperatures, self.temperatures[1:], strict=False))
        title = "annealing" if steps is not None else "step sizes of annealing"
        bar = tqdm(pairs, title, delay=BAR_DELAY, leave=False, unit="temperature")
        log_q, log_p = both(u)
        for t, (before, after) in enumerate(bar):
            ratio = (log_p - log_q).where(log_p > -math.inf, -math.inf)
            log_weight = log_weight + (after - before) * ratio
            if t == len(pairs) - 1:
                break
            here = size if steps is None else steps[t]
            u, log_q, log_p, accepted = self._move(u, log_q, log_p, both, after, here)
            found.append(here)
            size = size * (GAIN * (accepted - ACCEPTED)).exp()
        return log_weight, torch.stack(found) if found else u.new_empty(0)

    def _representable(self, u: Vectors) -> Bool[Tensor, "draw item"]:
        """Where z neither overflows nor underflows to an end of its support."""
        found = u.isfinite().all(-1)
        for name, value in self.latents._values(u)[0].items():
            back = self.latents.maps[name].inv(value)
            found = found & value.flatten(2).isfinite().all(-1)
            found = found & back.flatten(2).isfinite().all(-1)
        return found

    def _move(
        self,
        u: Vectors,
        log_q: Values,
        log_p: Values,
        both: Callable[[Vectors], tuple[Values, Values]],
        temperature: float,
        size: Float[Tensor, " item"],
    ) -> tuple[Vectors, Values, Values, Float[Tensor, " item"]]:
        """One trajectory, accepted or not, and the acceptance rate of each item.

        u = m + L v with the spread L of the proposal; momenta belong to v.
        """

        def gradient(u: Vectors) -> tuple[Vectors, Values, Values]:
            with frozen(self.latents.joint), torch.enable_grad():
                leaf = u.detach().requires_grad_()
                log_q, log_p = both(leaf)
                height = (1 - temperature) * log_q + temperature * log_p
                (slant,) = torch.autograd.grad(height.sum(), leaf)
            slant = (self.tril.mT @ slant.unsqueeze(-1)).squeeze(-1)
            return slant, log_q.detach(), log_p.detach()

        stride = (size * (0.8 + 0.4 * torch.rand(u.shape[:2]).to(u))).unsqueeze(-1)
        momentum = torch.randn(u.shape).to(u)
        begin = (1 - temperature) * log_q + temperature * log_p
        begin = begin - momentum.square().sum(-1) / 2
        place, (push, *_) = u, gradient(u)
        for _ in range(LEAPFROG):
            momentum = momentum + stride / 2 * push
            place = place + (self.tril @ (stride * momentum).unsqueeze(-1)).squeeze(-1)
            push, new_q, new_p = gradient(place)
            momentum = momentum + stride / 2 * push
        end = (1 - temperature) * new_q + temperature * new_p
        end = end - momentum.square().sum(-1) / 2
        chance = (end - begin).nan_to_num(nan=-math.inf, posinf=0.0).clamp(max=0).exp()
        taken = torch.rand(chance.shape).to(chance) < chance
        u = place.where(taken.unsqueeze(-1), u)
        return u, new_q.where(taken, log_q), new_p.where(taken, log_p), chance.mean(0)
