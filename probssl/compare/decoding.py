"""How well the items can be drawn again from a frozen representation."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim.lr_scheduler import LinearLR

from .. import recipes
from ..data import Dataset, Split
from ..train.prepare import prepared_optimizer
from ..train.run import EarlyStopping

__all__ = ["as_float", "decoded"]

FITTED = 10_000  # training items at most
BATCH, LEARNING_RATE, PATIENCE, STEPS = 128, 5e-3, 10, 800


def decoded(
    data: Dataset,
    train: Float[Tensor, "n dim"],
    test: Float[Tensor, "m dim"],
    device: torch.device,
) -> Float[Tensor, " m"]:
    r"""log p(x|z) of each test item, in nats, by a decoder fitted to frozen z.

    .. math:: E \log p(x \mid z) \le -H[x \mid z] = I(x; z) - H[x]

    H[x] is the same for all encoders, so this bounds, up to a constant, the mutual
    information of items and representations from below. The decoder and the likelihood
    are those of `recipes`; z is standardised by the training items, a fifth of
    which is held out and ends the fit where it is best. Randomness follows
    ``torch.manual_seed``.

    Arguments:
        train: z of the training items, each seen alone.
        test: z of the test items.
        device: Where to fit.
    """
    mean, scale = train.mean(0), train.std(0)
    varies = scale > 1e-6 * train.abs().amax(0)  # the rest is rounding
    scale = torch.where(varies, scale, torch.inf)
    own = torch.get_default_dtype()  # that of the decoder
    train, test = (((z - mean) / scale).to(own) for z in (train, test))
    rows = torch.randperm(len(train))[:FITTED]
    x, z = as_float(Split(data.train.images[rows])).to(own), train[rows]
    fifth = max(1, len(rows) // 5)
    model = _Decoder(data, train.shape[1]).to(device)
    _fit(model, (x[fifth:], z[fifth:]), (x[:fifth], z[:fifth]), device)
    return model.log_prob(as_float(data.test).to(own), test, device)


def as_float(split: Split) -> Tensor:
    """The items as floating point; bytes become k/255."""
    images = split.images
    return images if images.is_floating_point() else images.float() / 255


class _Decoder(nn.Module):
    """p(x|z), of the kind that a joint for these data has."""

    def __init__(self, data: Dataset, dim: int) -> None:
        super().__init__()
        self.decoder, self.likelihood = (
            recipes.decoder(data, dim),
            recipes.likelihood(data),
        )

    def forward(
        self, x: Float[Tensor, "n *event"], z: Float[Tensor, "n dim"]
    ) -> Float[Tensor, " n"]:
        return self.likelihood(self.decoder(z)).log_prob(x).flatten(1).sum(1)

    @torch.no_grad()
    def log_prob(self, x: Tensor, z: Tensor, device: torch.device) -> Tensor:
        self.eval()
        each = [
            self(*(part.to(device) for part in pair)).cpu() for pair in _parts(x, z)
        ]
        return torch.cat(each).double()


def _parts(x: Tensor, z: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(x.split(1024), z.split(1024), strict=True)


def _fit(
    model: _Decoder,
    train: tuple[Tensor, Tensor],
    valid: tuple[Tensor, Tensor],
    device: torch.device,
) -> None:
    optimizer = prepared_optimizer(None, model, LEARNING_RATE)
    fall = LinearLR(optimizer, 1.0, 1e-3, STEPS)
    stopping = EarlyStopping("log_prob", PATIENCE)
    x, z = (part.to(device) for part in train)
    step = epoch = 0
    while step < STEPS and not stopping.gives_up(epoch):
        epoch += 1
        for rows in torch.randperm(len(x)).to(device).split(BATCH):
            optimizer.zero_grad()
            (-model.train()(x[rows], z[rows]).mean()).backward()
            optimizer.step()
            fall.step()
            step += 1
        value = float(model.log_prob(*valid, device).mean())
        stopping.improves({"log_prob": value, "epoch": epoch}, model)
    stopping.restore(model)
