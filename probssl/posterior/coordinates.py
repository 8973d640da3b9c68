r"""The latent variables of an item as one vector u of R^n, for inference item by item.

Gradient steps, normals and Hamiltonian dynamics live in R^n. z and an explicit content
y are brought there: vectors as they are, spheres by the stereographic projection from
the antipode of q's mean direction, other supports by torch's bijection from R^n. The
log-densities of u have the log-determinant of that map, so that integrals stay.
"""

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any

import pyro
import torch
from jaxtyping import Float
from pyro import poutine
from torch import Size, Tensor
from torch.distributions import Transform
from torch.nn.functional import normalize

from ..bounds import local_log_prob
from ..distributions.sphere import SphericalUniform, Stereographic
from ..distributions.supports import from_real, is_sphere, narrower, support_of
from ..guides.views import Completed
from ..joint import Joint, sampled
from ..special import log_area
from ..terms import Batch

__all__ = ["Latents", "Proposal", "Values", "Vectors"]

START = 64  # draws of q, from which its location and spread are taken

Vectors = Float[Tensor, "draw item number"]
Values = Float[Tensor, "draw item"]
Proposal = tuple[Vectors, Callable[[Vectors], Values]]  # draws, and its log-density


class Latents:
    r"""The latent variables of the items of a batch, in coordinates u of R^n.

    Arguments:
        joint: The model, in evaluation mode.
        batch: The items.

    Attributes:
        loc: The mean of q(u|x), estimated by 64 draws, (item, number).
        spread: Its standard deviations, likewise.
    """

    def __init__(self, joint: Joint, batch: Batch) -> None:
        self.joint, self.batch = joint, batch
        with pyro.plate("particles", START, dim=-2):
            nodes: Any = poutine.trace(joint.guide).get_trace(batch).nodes
        densities = {"z": joint.prior(batch.shape[1])}
        if joint.content is not None:
            densities["y"] = joint.prior.content()
        self.maps: dict[str, Transform] = {}
        self.shapes: dict[str, Size] = {}
        self.poles: list[Tensor] = []  # of spheres
        for name, p in densities.items():
            value = nodes[name]["value"]
            if is_sphere(support_of(p)):
                self.poles.append(normalize(value.mean(0), dim=-1))
                self.maps[name] = Stereographic(self.poles[-1])
            else:
                self.maps[name] = from_real(p)
            self.shapes[name] = self.maps[name].inv(value).shape[2:]
        start = self._coordinates({n: nodes[n]["value"] for n in self.maps})
        self.loc, self.spread = start.mean(0), start.std(0)

    @property
    def round(self) -> bool:
        """Whether all variables are on spheres."""
        return len(self.poles) == len(self.maps)

    @cached_property
    def narrow(self) -> bool:
        """Whether q lacks some of the support of the prior."""
        q = self.joint.encode(self.batch)
        own = q.each if isinstance(q, Completed) else q  # of the present views
        return narrower(own, self.joint.prior(self.batch.shape[1])) is not None

    def hypers(self, draws: int) -> dict[str, Tensor]:
        """Draws of the random hyper-parameters from their guide, (draw, 1, …)."""
        with pyro.plate("particles", draws, dim=-2):
            return {h.name: h.sample_guide() for h in self.joint.prior.random()}

    def log_joint(self, u: Vectors, hypers: dict[str, Tensor] | None = None) -> Values:
        """log p(x, u | h), for h from its guide unless given."""
        hypers = self.hypers(len(u)) if hypers is None else hypers
        values, log_det = self._values(u)
        with pyro.plate("particles", len(u), dim=-2):
            model = poutine.condition(self.joint.model, hypers | values)
            log_p = local_log_prob(poutine.trace(model).get_trace(self.batch))
        return log_p + log_det

    def guide(self, draws: int, hypers: dict[str, Tensor]) -> Proposal:
        """Draws of q(u | x, h), and its log-density; the encoder runs once.

        Where that is NaN, out of the range of numbers, it is 0.
        """
        joint, content = self.joint, self.joint.content
        q = joint.encode(self.batch, **hypers)
        z = sampled(q, draws)
        drawn = {"z": z} | ({} if content is None else {"y": content(z).sample()})

        def log_prob(u: Vectors) -> Values:
            values, log_det = self._values(u)
            try:
                log_q = q.log_prob(values["z"]) + log_det
            except (KeyError, NotImplementedError) as error:
                raise ValueError(
                    "expected a guide with a density at any z, got "
                    f"{type(joint.posterior).__name__}, which has one at its own draws "
                    "only, as a flow without an inverse; take evidence(…) as it is, "
                    "without refine=… and anneal=…, or another guide"
                ) from error
            if content is not None:
                log_q = log_q + content(values["z"]).log_prob(values["y"])
            return log_q.where(~log_q.isnan(), -math.inf)

        return self._coordinates(drawn), log_prob

    def uniform(self, draws: int) -> Vectors:
        """Uniform draws, where all variables are on spheres."""
        drawn = {}
        for name, pole in zip(self.maps, self.poles, strict=True):
            batch, dim = pole.shape[:-1], pole.shape[-1]
            uniform = SphericalUniform(dim, batch, dtype=pole.dtype, device=pole.device)
            drawn[name] = uniform.sample((draws,))
        return self._coordinates(drawn)

    def log_uniform(self, u: Vectors) -> Values:
        """The log-density of `uniform`."""
        area = sum(p[0, ..., 0].numel() * log_area(p.shape[-1]) for p in self.poles)
        return self._values(u)[1] - area

    def _coordinates(self, drawn: dict[str, Tensor]) -> Vectors:
        parts = [self.maps[name].inv(value).flatten(2) for name, value in drawn.items()]
        return torch.cat(parts, -1)

    def _values(self, u: Vectors) -> tuple[dict[str, Tensor], Values]:
        """z and y at u, and the log-determinant of the map."""
        sizes = [shape.numel() for shape in self.shapes.values()]
        values, total = {}, u.new_zeros(u.shape[:2])
        for (name, shape), part in zip(
            self.shapes.items(), u.split(sizes, -1), strict=True
        ):
            part = part.unflatten(-1, shape)
            values[name] = self.maps[name](part)
            log_det = self.maps[name].log_abs_det_jacobian(part, values[name])
            total = total + log_det.reshape(*total.shape, -1).sum(-1)
        return values, total
