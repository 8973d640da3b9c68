"""Reconstruction from a frozen representation: a decoder fitted afterwards."""

import itertools
from collections.abc import Mapping, Sequence
from textwrap import shorten
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Adam
from torch.optim.lr_scheduler import OneCycleLR

from .. import recipes
from ..data import Dataset, Split
from ..data.memory import as_float
from ..joint import Joint, given_z
from ..likelihoods import Likelihood
from ..likelihoods.base import check_support
from ..nn import MLPDecoder
from ..nn.base import called
from ..nn.network import nets_of
from ..runtime.copies import copied
from ..train.prepare import parameter_groups
from ..train.run import EarlyStopping

__all__ = ["Decoded", "Form", "check_support_of", "decoded", "decoder_for"]
__all__ += ["late_rise", "likelihood_for", "named"]

MAX_FITTED = 10_000  # training items
BATCH, STEPS = 128, 300
LEARNING_RATE, BETAS, WARM_UP = 1.5e-2, (0.9, 0.95), 0.1  # of Adam, "one cycle"


class Form(NamedTuple):
    """p(x|z), and the shape of its parameters for one item, which a decoder returns."""

    likelihood: Likelihood
    shape: tuple[int, ...]


class Decoded(NamedTuple):
    """What a decoder, fitted afterwards, makes of a representation.

    Arguments:
        values: log p(x|z) of each test item, in nats.
        rise: That of held-out items in the last quarter of the fit, in nats per
            element of x.
    """

    values: Float[Tensor, " m"]
    rise: float


def likelihood_for(objectives: Mapping[str, nn.Module], data: Dataset) -> Form:
    """The likelihood of the decoders, the same for all rows.

    That of the first joint, with its spread as fitted, where all joints have densities
    under one measure and the items are on its support. Images on a grid of grey levels,
    and images under the measure of `recipes.likelihood`, keep that one.
    """
    usual, x = recipes.likelihood(data), as_float(data.test)
    usually = Form(usual, usual.output_shape(x.shape[1:]))
    joints = (getattr(each, "joint", None) for each in objectives.values())
    found = [
        (likelihood, net, j.prior.known_dim())
        for j in joints
        if isinstance(j, Joint)
        for likelihood, net in zip(j.likelihoods, nets_of(j.decoder), strict=True)
    ]
    measures = {each.measure for each, *_ in found}
    image = x.ndim == 4 and measures == {usual.measure}
    if len(measures) != 1 or data.levels is not None or image:
        return usually
    if any(each.pseudo for each, *_ in found):
        return usually
    dtype = torch.get_default_dtype()
    likelihood, net, dim = found[0]
    likelihood = copied(likelihood).to("cpu", dtype)
    net = copied(net).to("cpu", dtype)
    try:
        with torch.no_grad():
            output = called(net.eval(), torch.zeros(1, dim, dtype=dtype))
        p = given_z(likelihood, output, output.shape[:1])
        for split in (data.train, data.test):
            likelihood.check(as_float(split))
            check_support(likelihood, p, as_float(split), None)
    except ValueError:
        return usually
    return Form(likelihood, tuple(output.shape[1:]))


def decoder_for(data: Dataset, dim: int, form: Form) -> nn.Module:
    """The decoder of `recipes`; an MLP where an element has several parameters."""
    alike = form.shape == tuple(data.train.images.shape[1:])
    return recipes.decoder(data, dim) if alike else MLPDecoder(dim, form.shape)


def check_support_of(form: Form, views: Float[Tensor, "n view *event"]) -> None:
    """Raise a ValueError for views that the likelihood of the decoders cannot give."""
    try:
        form.likelihood.check(views)
    except ValueError as error:
        raise ValueError(
            f"{error}; these are the views of compare, under {named(form.likelihood)}, "
            "the likelihood of all decoders: give views that stay on its support, as "
            "recipes.views(data) do, or evidence=0"
        ) from error


def named(likelihood: nn.Module) -> str:
    """The class of a likelihood with its arguments, where they are short."""
    return shorten(f"{type(likelihood).__name__}({likelihood.extra_repr()})", 60)


def decoded(
    data: Dataset,
    train: Float[Tensor, "n dim"],
    test: Float[Tensor, "m dim"],
    device: torch.device,
    form: Form | None = None,
) -> Decoded:
    r"""log p(x|z) of each test item, in nats, by a decoder fitted to frozen z.

    .. math:: E \log p(x \mid z) \le -H[x \mid z] = I(x; z) - H[x]

    H[x] is the same for all encoders, so this is, up to a constant, a lower bound on
    the mutual information of items and representations. The decoder is that of
    `recipes`; z is standardised by the training items. Adam takes 300 steps with a
    one-cycle learning rate, whose first epochs may lower log p(x|z); the best epoch
    counts, by a fifth of the items, held out. Randomness follows ``torch.manual_seed``.

    Arguments:
        train: z of the training items, each seen alone.
        test: z of the test items.
        device: Where to fit.
        form: p(x|z), of which a copy is fitted; by default `recipes.likelihood`.
    """
    mean, scale = train.mean(0), train.std(0)
    varies = scale > 1e-6 * train.abs().amax(0)  # else it is constant up to rounding
    scale = scale.masked_fill(~varies, torch.inf)
    dtype = torch.get_default_dtype()  # that of the decoder
    train, test = (((z - mean) / scale).to(dtype) for z in (train, test))
    rows = torch.randperm(len(train))[:MAX_FITTED]
    x, z = as_float(Split(data.train.images[rows])).to(dtype), train[rows]
    fifth = max(1, len(rows) // 5)
    form = likelihood_for({}, data) if form is None else form
    model = _Decoder(data, train.shape[1], form).to(device, dtype)
    rise = _fit(model, (x[fifth:], z[fifth:]), (x[:fifth], z[:fifth]), device)
    values = model.log_prob(as_float(data.test).to(dtype), test, device)
    return Decoded(values, rise / x[0].numel())


class _Decoder(nn.Module):
    """p(x|z), with the decoder of a joint for these data."""

    def __init__(self, data: Dataset, dim: int, form: Form) -> None:
        super().__init__()
        self.likelihood = copied(form.likelihood)
        self.decoder = decoder_for(data, dim, form)

    def forward(
        self, x: Float[Tensor, "n *event"], z: Float[Tensor, "n dim"]
    ) -> Float[Tensor, " n"]:
        return given_z(self.likelihood, self.decoder(z), z.shape[:1]).log_prob(x)

    @torch.no_grad()
    def log_prob(self, x: Tensor, z: Tensor, device: torch.device) -> Tensor:
        self.eval()
        pairs = zip(x.split(1024), z.split(1024), strict=True)
        each = [self(x.to(device), z.to(device)).cpu() for x, z in pairs]
        return torch.cat(each).double()


def _fit(
    model: _Decoder,
    train: tuple[Tensor, Tensor],
    valid: tuple[Tensor, Tensor],
    device: torch.device,
) -> float:
    """Fit; return the rise of the held-out value in the last quarter of all steps."""
    # A spread, which starts at any scale of x, must be there before the network has
    # learned few items by heart: it has a larger rate (`learning_rate_factor`).
    groups = parameter_groups(model, LEARNING_RATE)
    optimizer = Adam(groups, betas=BETAS, fused=True)
    shape: dict[str, Any] = {"anneal_strategy": "linear", "pct_start": WARM_UP}
    shape |= {"cycle_momentum": False, "final_div_factor": 100}
    rates = [group["lr"] for group in groups]
    schedule = OneCycleLR(optimizer, rates, STEPS, **shape)
    stopping = EarlyStopping("log_prob", patience=STEPS)  # it keeps the best epoch
    x, z = (part.to(device) for part in train)
    step = epoch = 0
    values = []
    while step < STEPS:
        epoch += 1
        model.train()
        order = torch.randperm(len(x)).to(device)
        batches = zip(x[order].split(BATCH), z[order].split(BATCH), strict=True)
        for batch in itertools.islice(batches, STEPS - step):
            optimizer.zero_grad()
            (-model(*batch).mean()).backward()
            optimizer.step()
            schedule.step()
            step += 1
        value = float(model.log_prob(*valid, device).mean())
        values.append(value)
        stopping.improves({"log_prob": value, "epoch": epoch}, model)
    stopping.restore(model)
    return late_rise(values)


def late_rise(values: Sequence[float]) -> float:
    """By how much the best value of the last quarter exceeds all earlier ones."""
    late = max(values[3 * len(values) // 4 :])
    early = max(values[: 3 * len(values) // 4], default=late)
    return max(0.0, float(late - early))
