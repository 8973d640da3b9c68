r"""Mixtures of diagonal normals whose samples carry the exact gradient.

References:
    Pathwise Derivatives Beyond the Reparameterization Trick (Jankowiak and Obermeyer,
    2018)
    https://arxiv.org/abs/1806.01851
    Implicit Reparameterization Gradients (Figurnov et al., 2018)
    https://arxiv.org/abs/1805.08498
"""

import math

import torch
from jaxtyping import Float
from pyro.distributions import Categorical, TorchDistribution, constraints
from torch import Size, Tensor

__all__ = ["NormalMixture"]

Shape = Size | list[int] | tuple[int, ...]


class NormalMixture(TorchDistribution):
    r"""A mixture of diagonal normals, reparameterised.

    .. math:: q(z) = \sum_k \pi_k \prod_i N(z_i \mid m_{ki}, s_{ki}^2)

    A sample moves with the parameters :math:`\theta` along a field :math:`v = dz /
    d\theta` that carries the density with it, :math:`\partial_\theta q + \nabla \cdot
    (q v) = 0`; then :math:`\nabla_\theta E[f(z)] = E[v^\top \nabla f(z)]`, without
    bias. With the shares :math:`\rho_k = q(k \mid z)` and :math:`\epsilon_k = (z - m_k)
    / s_k` the field of means and scales is

    .. math:: dz = \sum_k \rho_k (dm_k + \epsilon_k \, ds_k).

    For the weights the conditional distribution functions stay what they are. With
    :math:`w_{ki} \propto \pi_k \prod_{j<i} N(z_j \mid m_{kj}, s_{kj}^2)` they and their
    derivatives are

    .. math:: F_i(z_i \mid z_{<i}) = \sum_k w_{ki} \Phi(\epsilon_{ki}), \qquad
        \frac{\partial F_i}{\partial \log \pi_k} = w_{ki} (\Phi(\epsilon_{ki}) - F_i),
        \qquad J_{ij} = \frac{\partial F_i}{\partial z_j}, \qquad
        J \, dz = -\frac{\partial F}{\partial \log \pi} \, d \log \pi,

    where J is triangular. Where components lie far apart the weight that moves from one
    to another crosses a gap in which samples are rare: the gradient of the weights then
    has a large variance. Only first derivatives are exact.

    Arguments:
        logits: The log-weights :math:`\log \pi`, up to a constant, with shape
            (\*batch, component).
        loc: The means m, with shape (\*batch, component, dim).
        scale: The standard deviations s, broadcastable to it.
    """

    arg_constraints = {
        "logits": constraints.real_vector,
        "loc": constraints.independent(constraints.real, 2),
        "scale": constraints.independent(constraints.positive, 2),
    }
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        logits: Float[Tensor, "*batch component"],
        loc: Float[Tensor, "*batch component dim"],
        scale: Tensor,
        *,
        validate_args: bool | None = None,
    ) -> None:
        shape = torch.broadcast_shapes(
            logits.unsqueeze(-1).shape, loc.shape, scale.shape
        )
        self.logits = logits.expand(shape[:-1])
        self.loc, self.scale = loc.expand(shape), scale.expand(shape)
        super().__init__(shape[:-2], shape[-1:], validate_args=validate_args)

    def expand(
        self, batch_shape: Shape, _instance: "NormalMixture | None" = None
    ) -> "NormalMixture":
        new = self._get_checked_instance(NormalMixture, _instance)
        shape = Size(batch_shape) + self.loc.shape[-2:]
        new.logits = self.logits.expand(shape[:-1])
        new.loc, new.scale = self.loc.expand(shape), self.scale.expand(shape)
        super(NormalMixture, new).__init__(
            Size(batch_shape), self.event_shape, validate_args=False
        )
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Float[Tensor, "*batch dim"]:
        return (self._weights() * self.loc).sum(-2)

    @property
    def variance(self) -> Float[Tensor, "*batch dim"]:
        apart = (self.loc - self.mean.unsqueeze(-2)).square()
        return (self._weights() * (self.scale.square() + apart)).sum(-2)

    def log_prob(self, value: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch"]:
        if self._validate_args:
            self._validate_sample(value)
        constant = self.event_shape[0] * math.log(2 * math.pi) / 2
        each = self.logits.log_softmax(-1) + self._log_densities(value).sum(-1)
        return each.logsumexp(-1) - constant

    def component(self, value: Float[Tensor, "*batch dim"]) -> Categorical:
        """The posterior of the component given a value: the shares."""
        logits = self.logits + self._log_densities(value).sum(-1)
        return Categorical(logits=logits, validate_args=False)

    def rsample(self, sample_shape: Shape = ()) -> Float[Tensor, "*batch dim"]:
        with torch.no_grad():
            z = self._draw(Size(sample_shape)).unsqueeze(-2)
            noise = (z - self.loc) / self.scale
            log_density = self._log_densities(z.squeeze(-2))
            share = (self.logits + log_density.sum(-1)).softmax(-1).unsqueeze(-1)
        # By value z itself, whatever the component.
        z = (share * (self.loc + self.scale * noise)).sum(-2)
        if self.logits.shape[-1] == 1:
            return z
        with torch.no_grad():
            slope = self._slope_of_weights(noise, log_density)
        # A component without weight has none to move: -inf less itself is NaN.
        moved = (self.logits - self.logits.detach()).nan_to_num().unsqueeze(-1)
        return z + (slope @ moved).squeeze(-1)

    def _weights(self) -> Float[Tensor, "*batch component 1"]:
        return self.logits.softmax(-1).unsqueeze(-1)

    def _log_densities(self, value: Tensor) -> Float[Tensor, "*batch component dim"]:
        """Of each dimension in each component, up to the constant of a normal."""
        noise = (value.unsqueeze(-2) - self.loc) / self.scale
        return -0.5 * noise.square() - self.scale.log()

    def _draw(self, sample_shape: Size) -> Float[Tensor, "*batch dim"]:
        """Samples without a gradient."""
        logits = self.logits.expand(sample_shape + self.logits.shape)
        # The least of exponential times; Categorical would ask the host.
        k = (logits - torch.empty_like(logits).exponential_().log()).argmax(-1)
        k = k[..., None, None]
        shape = sample_shape + self.loc.shape
        loc, scale = (
            part.expand(shape).take_along_dim(k, -2).squeeze(-2)
            for part in (self.loc, self.scale)
        )
        return loc + scale * torch.randn_like(loc)

    def _slope_of_weights(
        self, noise: Tensor, log_density: Tensor
    ) -> Float[Tensor, "*batch dim component"]:
        r""":math:`-J^{-1} \, \partial F / \partial \log \pi`, each row of both divided
        by the conditional density, J's diagonal."""
        sums = log_density[..., :-1].cumsum(-1)
        before = torch.cat([torch.zeros_like(log_density[..., :1]), sums], -1)
        log_weight = (self.logits.unsqueeze(-1) + before).log_softmax(-2)
        log_conditional = (log_weight + log_density).logsumexp(-2, keepdim=True)
        # Of the two tails the smaller, which has the more digits.
        below, above = _normal_cdf(noise), _normal_cdf(-noise)
        weight = log_weight.exp()
        total = (weight * below).sum(-2, keepdim=True)
        rest = (weight * above).sum(-2, keepdim=True)
        apart = torch.where(total < 0.5, below - total, rest - above)
        conditional = log_conditional - math.log(2 * math.pi) / 2
        change = ((log_weight - conditional).exp() * apart).mT
        jacobian = (change @ (-noise / self.scale)).tril(-1)
        return -torch.linalg.solve_triangular(
            jacobian, change, upper=False, unitriangular=True
        )


def _normal_cdf(noise: Tensor) -> Tensor:
    return torch.special.erfc(-noise / math.sqrt(2)) / 2
