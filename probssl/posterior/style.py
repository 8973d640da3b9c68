"""Content and style of images: traversals, swaps, interpolations, views of a content.

References:
    Causality, chapter 7 (Pearl, 2009), for the swap: y is set, the residual is kept
    https://doi.org/10.1017/CBO9780511803161
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Shaped
from pyro.distributions import (
    Categorical,
    Cauchy,
    Gumbel,
    Laplace,
    Normal,
    TorchDistribution,
)
from torch import Tensor, nn
from torch.distributions import Independent
from torch.nn.functional import normalize, one_hot

from ..arguments import having, typed, whole
from ..arrays import Array, finite, plain, tensor, whole_numbers
from ..data.batches import Loadable
from ..distributions import PowerSpherical, VonMisesFisher
from ..distributions.mixture import SharedComponent
from ..distributions.supports import has_density_of, in_words, space_of, support_of
from ..joint import Joint, mean_of
from ..priors import Mixture, Prior, TwoTier
from .contents import COMPONENT, draw_content
from .items import DECODED_AT_ONCE, evaluating
from .joints import (
    check_guides,
    check_no_covariates,
    check_proper,
    check_spread,
    check_unconditional,
    checked,
    decoded,
    decodes_given,
    joint_of,
    mean_views,
)
from .representation import Images

__all__ = ["Decoded", "generate", "interpolate", "swap", "traverse"]

LOCATION_SCALE = (Normal, Laplace, Cauchy, Gumbel)
ROUNDING = 1e-6  # of unit vectors in float32


class Decoded(NamedTuple):
    """Chosen z and the mean of p(x|z) there, as NumPy arrays.

    Arguments:
        x: The axes of z without the last, then those of one image; for several
            modalities a tuple of these.
        z: The representations, the last axis their dimensions.
    """

    x: Images
    z: Float[np.ndarray, "*axes dim"]


@typed
def traverse(
    objective: nn.Module,
    data: Loadable,
    dims: Sequence[int] | None = None,
    *,
    values: Sequence[float] | Array | None = None,
    batch_size: int = 64,
) -> Decoded:
    r"""Latent traversal: one dimension of z takes other values, the others stay.

    .. math:: z(d, t) = m + (t - m_d) \, e_d, \qquad m = E_q[z \mid x]

    On a sphere the others are scaled to keep the length: :math:`z_d = t`, and
    :math:`z_{\ne d} = \sqrt{1 - t^2} \, m_{\ne d} / \lVert m_{\ne d} \rVert`, on the
    great circle through m and :math:`e_d`. Random hyper-parameters have the median of
    their guide. The axes of z are (item, dimension, value, dim), with an axis of views
    before the last where items have several.

    Arguments:
        data: A `Split`, `Groups`, a tensor or array (n, \*event), or a tuple of these,
            one per modality; or a DataLoader that does not shuffle.
        dims: The dimensions of z; by default all.
        values: The values t. By default seven from -2 to 2, which is meant for a z of
            about unit variance; on a sphere from -0.9 to 0.9.

    Raises:
        ValueError: Without a joint distribution, for a dimension that z lacks, for z on
            a simplex, for values off the support of z, or a p(x|z) without mean.
    """
    joint = joint_of(objective, "a traversal")
    prior, many = joint.prior, joint.prior.known_dim()
    dims = range(many) if dims is None else dims
    rows = [whole("dims", d, 0, many - 1, "numbers of dimensions of z") for d in dims]
    on_sphere = _space(prior, "a traversal") == "a sphere"
    if values is None:
        values = np.linspace(-0.9, 0.9, 7) if on_sphere else np.linspace(-2, 2, 7)
    values = finite(values, "values")
    if values.ndim != 1 or not values.size or not rows:
        raise ValueError(
            "expected at least one dimension, and values (n,) that it takes, got "
            f"{len(rows)} dimensions and values of shape {values.shape}; leave dims "
            "out for all of them"
        )
    if on_sphere and np.abs(values).max() > 1:
        raise ValueError(
            "expected values from -1 to 1 for coordinates on a sphere, got up to "
            f"{np.abs(values).max():g}; leave values out"
        )
    with evaluating(objective) as like:
        z, widths = _means(joint, data, like, batch_size, "traverse")
        axis = one_hot(torch.tensor(rows, device=z.device), many).to(z.dtype)
        axis = axis[:, None, None]  # dimension, value, view, dim
        t = torch.as_tensor(values, dtype=z.dtype, device=z.device)[:, None, None]
        rest = z[:, None, None] * (1 - axis)
        if on_sphere:
            if bool((rest.norm(dim=-1) < ROUNDING).any()):
                raise ValueError(
                    "expected z with other coordinates than the one that moves, got "
                    f"one on the axis of a dimension among {rows}; leave it out of dims"
                )
            rest = normalize(rest, dim=-1) * (1 - t.square()).sqrt()
        moved = rest + t * axis
        _check_support(prior, moved)
        return _decoded(joint, moved, widths)


@typed
def swap(
    objective: nn.Module,
    a: Loadable,
    b: Loadable,
    *,
    draws: int | None = None,
    batch_size: int = 64,
) -> Decoded:
    r"""Swap contents: the y of each item of a, with the style of each item of b.

    The style is the residual of z given y. With p(z|y) of location m(y) and scale s(y),

    .. math:: z = m(y_a) + \frac{s(y_a)}{s(y_b)} \, (z_b - m(y_b)),
        \qquad y_a \sim p(y \mid x_a), \quad y_b \sim p(y \mid z_b)

    - `priors.Gaussian`, `TwoTier`: z = y_a + z_b - y_b.
    - `priors.ContentStyle`: the same in the content dimensions; the style dimensions,
      which y does not change, are those of b.
    - `priors.Mixture`, where y is a component: its mean and scale.
    - `priors.Spherical`: z_b, turned by the rotation that takes y_b to y_a in their
      plane. The angle between z and y is kept.
    - `priors.Custom`: where p(z|y) is normal, Laplace, Cauchy or Gumbel in each
      dimension, or a sphere's with one concentration.

    If x_a and x_b are independent draws of the model and q is its posterior, drawn z
    have the distribution of the prior, and y_a is their content: log p(z|y) keeps its
    value, but for the scales. Means are shrunk towards the prior's; on a sphere the
    direction of a single view is its own content, which leaves no residual. Random
    hyper-parameters have the median of their guide, of all z and y alike.

    The axes of z are (a, b, dim), with an axis of views of b before the last where
    items have several, and one of draws in front; y_a is given all views of a.

    Arguments:
        a: The items whose content is kept, as the data of `traverse`.
        b: The items whose style is kept.
        draws: The number of draws of z and y. None takes z at the mean of q(z|x) and y
            at the mean of p(y|z): its direction on a sphere, the most probable value
            of a discrete y.

    Raises:
        ValueError: Without a joint distribution or a p(z|y) with such a residual, for a
            flat p(y), or opposite contents on a sphere; without draws, for items of one
            view on a sphere.
    """
    joint = joint_of(objective, "a swap")
    draws = None if draws is None else whole("draws", draws)
    check_proper(joint, "a swap")
    _check_given(joint.prior, "a swap")
    if joint.content is None:
        having("prior", joint.prior, "posterior_y", "one with a method posterior_y")
    if draws is not None:
        check_spread(joint, "draws of a swap")
    axes = _axes_of_y(joint.prior)
    with evaluating(objective) as like:
        z_a, _ = _latents(joint, a, like, draws, batch_size, "contents")
        z_b, widths = _latents(joint, b, like, draws, batch_size, "styles")
        drawn, on_sphere = draws is not None, joint.prior.space == "a sphere"
        own_direction = on_sphere and _states(joint.prior) is None
        if not drawn and own_direction and z_b.shape[-2] == 1:
            raise ValueError(
                "expected draws for a swap on a sphere, got none, and items of one "
                "view, whose direction is that of their content and leaves no style; "
                "give draws=100, or several views of each item of b"
            )
        y_a, y_b = _content(joint, z_a, drawn), _content(joint, z_b, drawn)
        y_a = y_a.unsqueeze(-1 - axes).unsqueeze(-1 - axes)  # a, b, view, *event
        y_b = y_b.unsqueeze(-1 - axes).unsqueeze(-3 - axes)
        p_a, p_b = _given(joint.prior, y_a), _given(joint.prior, y_b)
        return _decoded(joint, _moved(z_b.unsqueeze(-4), p_b, p_a), widths)


@typed
def interpolate(
    objective: nn.Module,
    a: Loadable,
    b: Loadable,
    steps: int = 8,
    *,
    batch_size: int = 64,
) -> Decoded:
    r"""Interpolate between the z of pairs of items: a line, on a sphere a great circle.

    .. math:: z(t) = (1 - t) \, z_a + t \, z_b, \qquad
        z(t) = \frac{\sin((1 - t) \theta) \, z_a + \sin(t \theta) \, z_b}{\sin \theta}
        \quad (\cos \theta = z_a^\top z_b)

    at equal steps of t from 0 to 1, both ends included. Random hyper-parameters have
    the median of their guide. The axes of z are (item, step, dim), with an axis of
    views before the last where items have several.

    Arguments:
        a: The items at t = 0, as the data of `traverse`.
        b: As many items, at t = 1.
        steps: The number of steps, at least 2.

    Raises:
        ValueError: Without a joint distribution, for other numbers of items or views in
            a and b, or opposite ends on a sphere, between which no circle is shortest.

    References:
        Animating rotation with quaternion curves (Shoemake, 1985)
        https://doi.org/10.1145/325165.325242
    """
    steps = whole("steps", steps, 2)
    joint = joint_of(objective, "an interpolation")
    on_sphere = _space(joint.prior, None) == "a sphere"
    with evaluating(objective) as like:
        z_a, widths = _means(joint, a, like, batch_size, "interpolate")
        z_b, _ = _means(joint, b, like, batch_size, "interpolate")
        if z_a.shape != z_b.shape:
            raise ValueError(
                "expected as many items and views in a as in b, got z of shapes "
                f"{tuple(z_a.shape)} and {tuple(z_b.shape)} (item, view, dim); take "
                "the same number of each"
            )
        z_a, z_b = z_a.unsqueeze(1), z_b.unsqueeze(1)
        t = torch.linspace(0, 1, steps, dtype=z_a.dtype, device=z_a.device)
        path = _great_circle if on_sphere else torch.lerp
        return _decoded(joint, path(z_a, z_b, t[:, None, None]), widths)


@typed
def generate(
    objective: nn.Module,
    y: Shaped[Array, "item *dim"],
    *,
    views: int = 1,
    mean: bool = True,
) -> Decoded:
    r"""Generate views of given contents: draws of p(x_1..V | y).

    .. math:: z_v \sim p(z_v \mid y), \qquad x_v \sim p(x_v \mid z_v)

    The axes of z are (item, view, dim). The views of an item are independent given y.
    Random hyper-parameters have the median of their guide.

    Arguments:
        y: The content of each item, (item, \*event), such as the `mean` or a draw of
            `posterior_y`: a value of y; of a mixture the number of a component.
        views: The number of views of each item; of each modality if there are several.
        mean: Whether x is the mean of p(x|z) at the drawn z, or a draw of p(x|z).

    Raises:
        TypeError: If components are not given as whole numbers.
        ValueError: Without a joint distribution or a prior with p(z|y), or if y is
            outside the support of p(y).
    """
    joint = joint_of(objective, "views of a content")
    views = whole("views", views)
    _check_given(joint.prior, "views of a content")
    widths = (views,) * len(joint.sites)
    with evaluating(objective) as like:
        y = _checked_content(joint.prior, y, like)
        y = y.unsqueeze(-1 - _axes_of_y(joint.prior))
        p = _given(joint.prior, y)
        z = p.expand(torch.Size((len(y), sum(widths)))).sample()
        return _decoded(joint, z, widths, mean, viewed=True)


def _means(
    joint: Joint, data: Loadable, like: Tensor | None, size: int, title: str
) -> tuple[Float[Tensor, "item view dim"], tuple[int, ...]]:
    """The means of q(z|x) on the support of z, and the views of each modality."""
    return _latents(joint, data, like, None, size, title)


def _latents(
    joint: Joint,
    data: Loadable,
    like: Tensor | None,
    draws: int | None,
    size: int,
    title: str,
) -> tuple[Tensor, tuple[int, ...]]:
    """z of all items, at the means of q(z|x) or drawn: (*draw, item, view, dim)."""
    found: list[Tensor] = []
    widths: tuple[int, ...] = ()
    for batch in checked(joint, data, like, None, size, title):
        if batch.present is not None and not bool(batch.present.all()):
            raise ValueError(
                "expected all views to be present, got some that are absent; take the "
                "rows that have all, or impute them first: ps.complete"
            )
        batch = batch._replace(content=None, present=None)
        q = joint.encode(batch)
        if draws is None:
            found.append(joint.prior.centre(mean_of(q)))
        else:
            check_guides(joint, batch, "draws of a swap")
            found.append(q.sample((draws,)))
        widths = tuple(batch.widths) if joint.several else (batch.shape[1],)
    return torch.cat(found, -3), widths


def _content(joint: Joint, z: Tensor, drawn: bool) -> Tensor:
    """y of each item given its views, drawn or the mean, (*draw, item, *event)."""
    prior = joint.prior
    if joint.content is not None:
        p: Any = joint.content(z)
        return p.sample() if drawn else _centre(prior, p.mean)
    p = prior.posterior_y(z)  # type: ignore[operator]
    if drawn:
        found = draw_content(prior, z, {})
        return found["y"] if "y" in found else found[COMPONENT]
    if isinstance(p, Categorical):
        return p.logits.argmax(-1)
    states = _states(prior)
    if states is not None:
        return states[prior.responsibilities(z).probs.argmax(-1)]
    return _centre(prior, p.mean)


def _centre(prior: Prior, mean: Tensor) -> Tensor:
    """The mean of a p(y|z), on a sphere its direction."""
    on_sphere = space_of(support_of(prior.content())) == "a sphere"
    return normalize(mean, dim=-1) if on_sphere else mean


def _states(prior: Prior) -> Tensor | None:
    """All values of a discrete y; None of a continuous one."""
    try:
        states: Tensor = prior.states()  # type: ignore[operator]
        return states
    except (AttributeError, ValueError):  # another prior; a continuous y
        return None


def _axes_of_y(prior: Prior) -> int:
    """The number of axes of one y."""
    return 0 if isinstance(prior, Mixture) else len(prior.content().event_shape)


def _given(prior: Prior, y: Tensor) -> TorchDistribution:
    """p(z|y), for a `Mixture` that of the component y."""
    if type(prior).given is not Prior.given:
        return prior.given(y)
    views = prior(1)
    if type(views) is not SharedComponent:
        raise ValueError(
            f"expected {type(prior).__name__} with p(z|k), since its views are no "
            f"{SharedComponent.__name__}, got {type(views).__name__}; give it a method "
            "given(k)"
        )
    loc, scale = torch.broadcast_tensors(views.loc, views.scale)
    return Normal(loc[y], scale[y], validate_args=False).to_event(1)


def _check_given(prior: Prior, what: str) -> None:
    """Raise a ValueError for a prior without p(z|y)."""
    if type(prior).given is Prior.given and not isinstance(prior, Mixture):
        raise ValueError(
            f"expected a prior with p(z|y) for {what}, got {type(prior).__name__}, "
            "whose views have no content, or are dependent given it; take "
            "priors.Gaussian, ContentStyle, Spherical, Mixture or TwoTier"
        )


def _checked_content(prior: Prior, y: Any, like: Tensor | None) -> Tensor:
    """Contents from outside, on the support of p(y)."""
    if isinstance(prior, Mixture):
        count, hint = len(prior.logits), "give the number of a component for each item"
        k = whole_numbers(y, "y", hint)
        if k.ndim != 1 or not len(k) or not 0 <= int(k.min()) <= int(k.max()) < count:
            raise ValueError(
                f"expected y as numbers (item,) from 0 to {count - 1}, got shape "
                f"{tuple(k.shape)}{f' up to {int(k.max())}' if k.numel() else ''}; "
                f"{hint}"
            )
        return k
    y, p = tensor(y, "y", finite=True), prior.content()
    support, states = support_of(p), _states(prior)
    if states is not None:
        y = y.to(states.device)
    elif like is not None:
        y = y.to(like)
    if y.shape[1:] != p.event_shape:
        drawn = "objective.joint.prior.content(component=torch.tensor([…])).sample()"
        more = (
            f", and {drawn} draws it of classes" if isinstance(prior, TwoTier) else ""
        )
        raise ValueError(
            f"expected y of shape ({', '.join(map(str, ('item', *p.event_shape)))}), "
            f"got {tuple(y.shape)}; ps.posterior_y(…).mean has it{more}"
        )
    if states is not None:
        same = (y.unsqueeze(1) == states).reshape(len(y), len(states), -1).all(-1)
        if not bool(same.any(1).all()):
            raise ValueError(
                f"expected values that p(y) has, such as {states[:5].tolist()}, got "
                f"also {y[~same.any(1)][0].tolist()}; give draws of ps.posterior_y"
            )
        return states[same.long().argmax(1)]
    if not bool(support.check(y).all()):
        raise ValueError(
            f"expected y on the support of p(y), {space_of(support)}, got some that "
            "are off it; on a sphere y / norm(y), a mean lies inside"
        )
    return y


def _moved(z: Tensor, old: TorchDistribution, new: TorchDistribution) -> Tensor:
    """z of a p(z | y_b), with the same residual under p(z | y_a)."""
    one, two = old, new
    while all(has_density_of(p, Independent) for p in (one, two)):
        one, two = one.base_dist, two.base_dist
    # Of these classes themselves: a subclass may have another density.
    if type(one) is type(two) and type(one) in LOCATION_SCALE:
        return two.loc + two.scale / one.scale * (z - one.loc)
    if type(one) is type(two) and type(one) in (VonMisesFisher, PowerSpherical):
        kappa = torch.cat([p.concentration.flatten() for p in (one, two)])
        if bool((kappa == kappa[0]).all()):
            return _turned(z, one.loc, two.loc)
    raise ValueError(
        "expected a p(z|y) with a residual: normal, Laplace, Cauchy or Gumbel in each "
        "dimension, or on a sphere of one concentration, got "
        f"{type(one).__name__}; take a prior of such a p(z|y), or ps.interpolate"
    )


def _turned(z: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """z turned by the rotation that takes one unit vector to another in their plane.

    It is the reflection at the line of the old one, then at the line half way.
    """
    half = _half_way(old, new, "a swap: draw again, or take others")
    z = 2 * (z * old).sum(-1, keepdim=True) * old - z
    return normalize(2 * (z * half).sum(-1, keepdim=True) * half - z, dim=-1)


def _great_circle(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """The points of the shortest great circle at the shares t of its length."""
    _half_way(a, b, "an interpolation: take other items")
    chords = ((b + sign * a).norm(dim=-1, keepdim=True) for sign in (-1, 1))
    angle = 2 * torch.atan2(*chords)
    aside = normalize(b - (a * b).sum(-1, keepdim=True) * a, dim=-1)
    return (t * angle).cos() * a + (t * angle).sin() * aside


def _half_way(a: Tensor, b: Tensor, what: str) -> Tensor:
    """The direction half way between unit vectors; a ValueError for opposite ones."""
    both = a + b
    length = both.norm(dim=-1, keepdim=True)
    if bool((length < ROUNDING).any()):
        raise ValueError(
            "expected unit vectors that are not opposite, got two whose sum has length "
            f"{float(length.min()):.1g}, between which no direction is shortest, for "
            f"{what}"
        )
    return both / length


def _check_support(prior: Prior, z: Float[Tensor, "*axes view dim"]) -> None:
    """Raise a ValueError for values that the prior gives no density."""
    support = support_of(prior(z.shape[-2]))
    if prior.space != "a sphere" and not bool(support.check(z).all()):
        raise ValueError(
            f"expected values on the support of z, {in_words(support)}, got from "
            f"{float(z.min()):.3g} to {float(z.max()):.3g}; give values=… there"
        )


def _space(prior: Prior, what: str | None) -> str:
    """The space of z; a ValueError for a simplex, where `what` is not known on it."""
    if what is not None and prior.space == "a simplex":
        raise ValueError(
            f"expected z as vectors or on a sphere for {what}, got a simplex, where "
            "no coordinate moves alone; take ps.interpolate"
        )
    return prior.space


def _decoded(
    joint: Joint,
    z: Float[Tensor, "*axes view dim"],
    widths: Sequence[int],
    mean: bool = True,
    viewed: bool = False,
) -> Decoded:
    """z with the mean of p(x|z), or draws; the axis of a single view is dropped."""
    if decodes_given(joint):
        check_unconditional(joint, "views of other z")
    lead, flat, parts = z.shape[:-2], z.flatten(0, -3), []
    for p in decoded(joint, flat[:1], widths):
        check_no_covariates(p)
    for some in flat.split(max(1, DECODED_AT_ONCE // z.shape[-2])):
        if mean:
            parts.append(mean_views(joint, some, widths))
        else:
            parts.append([plain(p.sample()) for p in decoded(joint, some, widths)])
    whole_parts = [np.concatenate(part) for part in zip(*parts, strict=True)]
    images = [part.reshape(*lead, *part.shape[1:]) for part in whole_parts]
    axis = len(lead)  # of the views
    if z.shape[-2] == 1 and not viewed:
        return Decoded(images[0].squeeze(axis), plain(z).squeeze(axis))
    return Decoded(tuple(images) if joint.several else images[0], plain(z))
