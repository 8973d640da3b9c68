"""Reconstruction from a frozen representation: a decoder fitted afterwards."""

import itertools
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Adam
from torch.optim.lr_scheduler import OneCycleLR

from .. import recipes
from ..data import Dataset, Split
from ..data.memory import as_float
from ..train.run import EarlyStopping

__all__ = ["decoded"]

MAX_FITTED = 10_000  # training items
BATCH, STEPS, EPOCHS_WITHOUT_GAIN = 128, 300, 10
LEARNING_RATE, BETAS, WARM_UP = 1.5e-2, (0.9, 0.95), 0.1  # of Adam, "one cycle"


def decoded(
    data: Dataset,
    train: Float[Tensor, "n dim"],
    test: Float[Tensor, "m dim"],
    device: torch.device,
) -> Float[Tensor, " m"]:
    r"""log p(x|z) of each test item, in nats, by a decoder fitted to frozen z.

    .. math:: E \log p(x \mid z) \le -H[x \mid z] = I(x; z) - H[x]

    H[x] is the same for all encoders, so this is, up to a constant, a lower bound on
    the mutual information of items and representations. Decoder and likelihood are
    those of `recipes`; z is standardised by the training items. A fifth of them is held
    out for early stopping. Adam takes 300 steps at most, with a one-cycle learning
    rate. Randomness follows ``torch.manual_seed``.

    Arguments:
        train: z of the training items, each seen alone.
        test: z of the test items.
        device: Where to fit.
    """
    mean, scale = train.mean(0), train.std(0)
    varies = scale > 1e-6 * train.abs().amax(0)  # else it is constant up to rounding
    scale = scale.masked_fill(~varies, torch.inf)
    dtype = torch.get_default_dtype()  # that of the decoder
    train, test = (((z - mean) / scale).to(dtype) for z in (train, test))
    rows = torch.randperm(len(train))[:MAX_FITTED]
    x, z = as_float(Split(data.train.images[rows])).to(dtype), train[rows]
    fifth = max(1, len(rows) // 5)
    model = _Decoder(data, train.shape[1]).to(device)
    _fit(model, (x[fifth:], z[fifth:]), (x[:fifth], z[:fifth]), device)
    return model.log_prob(as_float(data.test).to(dtype), test, device)


class _Decoder(nn.Module):
    """p(x|z), with the decoder and likelihood of a joint for these data."""

    def __init__(self, data: Dataset, dim: int) -> None:
        super().__init__()
        self.decoder = recipes.decoder(data, dim)
        self.likelihood = recipes.likelihood(data)

    def forward(
        self, x: Float[Tensor, "n *event"], z: Float[Tensor, "n dim"]
    ) -> Float[Tensor, " n"]:
        return self.likelihood(self.decoder(z)).log_prob(x).flatten(1).sum(1)

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
) -> None:
    optimizer = Adam(model.parameters(), betas=BETAS, fused=True)
    shape: dict[str, Any] = {"anneal_strategy": "linear", "pct_start": WARM_UP}
    shape |= {"cycle_momentum": False, "final_div_factor": 100}
    schedule = OneCycleLR(optimizer, LEARNING_RATE, STEPS, **shape)
    stopping = EarlyStopping("log_prob", EPOCHS_WITHOUT_GAIN)
    x, z = (part.to(device) for part in train)
    step = epoch = 0
    while step < STEPS and not stopping.gives_up(epoch):
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
        stopping.improves({"log_prob": value, "epoch": epoch}, model)
    stopping.restore(model)
