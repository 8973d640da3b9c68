"""Parametric t-SNE as an estimator of scikit-learn."""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from numbers import Integral, Real
from typing import Any, Literal, Self

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from numpy import ndarray as Array
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
)
from sklearn.neighbors import NearestNeighbors
from sklearn.utils import Tags, check_array, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from .data import Split
from .data.batches import Views, viewed
from .data.tensors import value_tensor
from .entropies import KernelDensity
from .limits import TSimCLR
from .limits._base import Embedding
from .nn import ConvEncoder, MLPEncoder, Projector
from .posterior import embed
from .priors import TSNE
from .terms import Batch
from .train import History, fit

__all__ = ["NeighbourMap", "Neighbourhood", "alone", "seeded", "warm_up_and_cosine"]


DIM, WIDTH = 128, 512  # of the encoder that is made by default, and of the layer behind
WIDE, HEAD = 0.4, 0.05  # the shares of the epochs before the last stage


class Neighbourhood(nn.Module):
    r"""Views of items and of their neighbours, for `fit` on the numbers of the items.

    .. math:: p(x' \mid i) = \sum_j P_{j \mid i} \, p_{\text{view}}(x' \mid x_j),
        \qquad P_{j \mid i} = \tfrac1k [j \in N(i)]

    N(i) are the k items nearest to the i-th, by Euclidean distance; one of them is
    drawn anew each time. Item and neighbour have as many views each as `views` makes,
    or are shown as they are: then pairs of views, without order, have probability
    :math:`(P_{j \mid i} + P_{i \mid j}) / 2n`, as in t-SNE, but that k equal weights
    stand in the place of a Gaussian whose width follows a perplexity.

    Called with the numbers of items, of shape (batch, 1), see `numbers`, it gives a
    batch whose `clean` are the items.

    Arguments:
        items: The items (n, \*event); bytes stand for k/255.
        neighbours: The number k.
        views: A sampler (batch, \*event) -> (batch, view, \*event).
        features: Numbers (n, \*shape) that distances are of, such as representations;
            None means the items themselves.

    Raises:
        ValueError: If neighbours is less than 1 or there are not more items, or if
            there are not as many features as items.
    """

    items: Tensor
    near: Tensor

    def __init__(
        self,
        items: Shaped[Tensor, "n *event"],
        neighbours: int = 10,
        views: Views | None = None,
        features: Float[Tensor, "n *shape"] | None = None,
    ) -> None:
        super().__init__()
        features = items if features is None else features
        if len(features) != len(items):
            raise ValueError(
                f"expected features of {len(items)} items, got {len(features)}; embed "
                "the same items"
            )
        if not 1 <= neighbours < len(items):
            raise ValueError(
                f"expected neighbours from 1 to {len(items) - 1}, one less than the "
                f"items, got {neighbours}; lower it, or give more items"
            )
        self.neighbours, self.views = neighbours, views
        dtype = torch.promote_types(features.dtype, torch.float32)
        rows = features.flatten(1).to("cpu", dtype).numpy()
        search = NearestNeighbors(n_neighbors=neighbours).fit(rows)
        near = search.kneighbors(return_distance=False)
        self.register_buffer("items", items)
        self.register_buffer("near", torch.from_numpy(near).to(items.device))

    @property
    def numbers(self) -> Float[Tensor, "n 1"]:
        """What `fit` takes for the data: 0, 1, …, as floating point."""
        # Exact for the 16 million items that float32 can count.
        return torch.arange(len(self.items), dtype=torch.float32)[:, None]

    def forward(self, numbers: Float[Tensor, "batch 1"]) -> Batch:
        item = numbers[:, 0].long()
        drawn = torch.randint(self.neighbours, item.shape, device=item.device)
        neighbour = self.near[item].gather(1, drawn[:, None])[:, 0]
        both = self._values(torch.stack((item, neighbour), 1), numbers.dtype)
        views = viewed(both.flatten(0, 1), self.views).stacked
        return Batch(views.unflatten(0, (len(item), 2)).flatten(1, 2), both[:, 0])

    def _values(self, rows: Int[Tensor, "*rows"], dtype: torch.dtype) -> Tensor:
        values = self.items[rows].to(dtype)
        return values / 255 if self.items.dtype == torch.uint8 else values


WARM_UP = 0.1  # the share of the steps


def warm_up_and_cosine(optimizer: Optimizer, steps: int) -> LambdaLR:
    """The learning rate up to its highest in a straight line, and down by a cosine."""
    rise = max(1, round(WARM_UP * steps))

    def factor(step: int) -> float:
        share = max(0, step - rise) / max(1, steps - rise)
        return min((step + 1) / rise, (1 + math.cos(math.pi * min(share, 1))) / 2)

    return LambdaLR(optimizer, factor)


@contextmanager
def alone(objective: nn.Module, part: nn.Module) -> Iterator[None]:
    """Freeze all but a part, for a while."""
    thawed = [p for p in objective.parameters() if p.requires_grad]
    objective.requires_grad_(False)
    part.requires_grad_(True)
    yield
    for parameter in thawed:
        parameter.requires_grad_(True)


@contextmanager
def seeded(random_state: int | np.random.RandomState | None) -> Iterator[None]:
    """Draw from a seed for a while, and go on as before; None changes nothing."""
    if random_state is None:
        yield
        return
    seed = check_random_state(random_state).randint(2**31 - 1)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


class NeighbourMap(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    r"""A network that puts items on a map, where neighbours and views lie together.

    The objective is contrastive. With z the place of a view, and q the heavy-tailed
    kernel of t-SNE between two places,

    .. math:: E_{(i, j) \sim P} \log q_{ij} - \log \sum_{k \ne l} q_{kl}, \qquad
        q_{ij} = \Big(1 + \frac{\lVert z_i - z_j \rVert^2}{\nu \tau}\Big)
        ^{-(\nu + 1) / 2}

    where P pairs views of an item with one another, and with views of its neighbours
    (see `Neighbourhood`). That is minus the divergence of Q, the normalised kernel,
    from P, up to a constant: t-SNE's, estimated on batches, and `limits.TSimCLR`.
    With ``joint=False`` each view has a normaliser of its own, :math:`E_k \log
    \sum_{l \ne k} q_{kl}`, which makes it InfoNCE with that kernel. Both are estimates
    of the entropy of z: `entropies.Collision` and `entropies.KernelDensity`. In two
    dimensions ν = 1 is the kernel of t-SNE itself.

    In a plane there is no way around what lies between, so dimensions are taken away in
    stages: first the network is trained towards `annealing` dimensions, then a fresh
    last layer to the map, alone, then all of it. In each the learning rate rises over a
    tenth of the steps, and falls as half a cosine.

    Rows of features are compared as they are: standardise them first. A few thousand
    steps are needed: of few items make many epochs.

    Arguments:
        n_components: The dimension of the map.
        neighbours: How many neighbours of an item count as views of it; 0 leaves P to
            augmentation alone.
        refine: Whether neighbours are looked for again after the first stage, where
            the encoder has put items, as it has learned more than distances of pixels.
        views: A sampler (batch, \*event) -> (batch, view, \*event), such as
            `views.Augment`; one view is enough where there are neighbours. None shows
            items as they are.
        encoder: A module (n, \*event) -> (n, dim), of which a copy is trained. None
            makes `nn.ConvEncoder` for images of at least 8 by 8 pixels, and
            `nn.MLPEncoder` for all else. A projector with one hidden layer follows it.
        annealing: The dimension of the first stage; None has only the last.
        dof: The degrees of freedom ν of the kernel.
        temperature: :math:`\tau`, the square of the map's unit of length.
        joint: Whether one normaliser holds for all pairs.
        epochs: Those of all stages: two fifths go to the first, a twentieth to the
            second.
        batch_size: Items of a batch, with their views and those of a neighbour; all
            others in it are negatives.
        learning_rate: That of Adam, at its highest.
        compile: Whether steps are compiled, see `fit`.
        random_state: A whole number makes fits reproducible; None follows
            ``torch.manual_seed``.
        progress: Whether to show progress bars.
        device: As in `fit`.

    Attributes:
        objective_: What was fitted, for `save`, `embed` and all else that takes one.
        history_: The history of each stage, by its name: wide, head, map.
        neighbours_: Who was near whom in the end, (n, neighbours) numbers of rows; None
            without neighbours.
        event_shape_: The shape of one item.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(100, 5))
        >>> m = NeighbourMap(neighbours=5, epochs=3, random_state=0, progress=False)
        >>> m.fit_transform(x).shape
        (100, 2)

    Raises:
        TypeError: If the encoder is no module.
        ValueError: If an argument is out of its range, X holds anything but finite
            numbers, all its items are the same, or there are too few of them.

    References:
        Visualizing Data using t-SNE (van der Maaten and Hinton, 2008)
        https://jmlr.org/papers/v9/vandermaaten08a.html
        Your Contrastive Learning Is Secretly Doing Stochastic Neighbor Embedding
        (Hu et al., 2023)
        https://arxiv.org/abs/2205.14814
        Unsupervised visualization of image datasets using contrastive learning
        (Böhm et al., 2023), for the stages
        https://arxiv.org/abs/2210.09879
        With a Little Help from My Friends: Nearest-Neighbor Contrastive Learning of
        Visual Representations (Dwibedi et al., 2021), for neighbours as views
        https://arxiv.org/abs/2104.14548
    """

    event_shape_: tuple[int, ...]

    def __init__(
        self,
        n_components: int = 2,
        *,
        neighbours: int = 10,
        refine: bool = True,
        views: Views | None = None,
        encoder: nn.Module | None = None,
        annealing: int | None = 128,
        dof: float = 1.0,
        temperature: float = 1.0,
        joint: bool = True,
        epochs: int = 60,
        batch_size: int = 250,
        learning_rate: float = 4e-3,
        compile: bool | Literal["auto"] | None = "auto",
        random_state: int | np.random.RandomState | None = None,
        progress: bool = True,
        device: str | torch.device = "auto",
    ) -> None:
        self.n_components, self.neighbours = n_components, neighbours
        self.refine, self.views = refine, views
        self.encoder, self.annealing = encoder, annealing
        self.dof, self.temperature, self.joint = dof, temperature, joint
        self.epochs, self.batch_size = epochs, batch_size
        self.learning_rate, self.compile = learning_rate, compile
        self.random_state, self.progress, self.device = random_state, progress, device

    def fit(self, X: Any, y: object = None) -> Self:
        """Train the network on X, (n, \\*event) or a `Split`; y is not used."""
        self._check_settings()
        x = self._checked(X, reset=True)
        if bool((x == x[:1]).all()):
            raise ValueError(
                f"expected items that differ, got {len(x)} times the same; a map shows "
                "what distinguishes items: give it those that are to be told apart"
            )
        with seeded(self.random_state):
            self._train(x)
        return self

    def transform(self, X: Any) -> Float[Array, "n k"]:
        """The places of items, of those fitted or of new ones, which is cheap.

        Raises:
            ValueError: If items have not the shape of those fitted, or are not finite.
        """
        check_is_fitted(self)
        return embed(self.objective_, self._checked(X), layer="projector")

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []  # that of the network
        return tags

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "objective_")

    def _train(self, x: Shaped[Tensor, "n *event"]) -> None:
        """Go through the stages."""
        encoder = self._fresh_encoder()
        like = next(encoder.parameters(), torch.zeros(()))
        projector = partial(Projector, embed(encoder, x[:2]).shape[1], WIDTH)
        narrow = projector(self.n_components).to(like)
        objective, history = self._objective(encoder, narrow), {}
        near = self._neighbourhood(x)
        if self.annealing is not None:
            wide = projector(self.annealing).to(like)
            share = round(WIDE * self.epochs)
            history["wide"] = self._stage(
                self._objective(encoder, wide), x, near, share
            )
            if self.refine:
                near = self._neighbourhood(x, torch.from_numpy(embed(encoder, x)))
            inner, head = narrow.net[:-1], narrow.net[-1]
            inner.load_state_dict(wide.net[:-1].state_dict())
            share = max(1, round(HEAD * self.epochs))
            with alone(objective, head):
                history["head"] = self._stage(objective, x, near, share)
        rest = self.epochs - sum(len(part) for part in history.values())
        history["map"] = self._stage(objective, x, near, rest)
        self.objective_, self.history_ = objective, history
        self.neighbours_ = None if near is None else near.near.cpu().numpy()
        self._n_features_out = self.n_components

    def _stage(
        self,
        objective: Embedding,
        x: Shaped[Tensor, "n *event"],
        near: Neighbourhood | None,
        epochs: int,
    ) -> History:
        steps = epochs * max(1, len(x) // self.batch_size)
        return fit(
            objective,
            x if near is None else near.numbers,
            views=self.views if near is None else near,
            epochs=epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            scheduler=partial(warm_up_and_cosine, steps=steps),
            compile=self.compile,
            device=self.device,
            progress=self.progress,
        )

    def _neighbourhood(
        self, x: Shaped[Tensor, "n *event"], features: Tensor | None = None
    ) -> Neighbourhood | None:
        """Who is near whom, by features or by the items as they are."""
        if not self.neighbours:
            return None
        return Neighbourhood(x, self.neighbours, self.views, features)

    def _objective(self, encoder: nn.Module, projector: Projector) -> Embedding:
        if self.joint:
            return TSimCLR(
                encoder, projector, dof=self.dof, temperature=self.temperature
            )
        prior = TSNE(None, math.sqrt(self.temperature), self.dof)
        return Embedding(
            encoder, prior, KernelDensity(), projector=projector, plug_in=True
        )

    def _fresh_encoder(self) -> nn.Module:
        if self.encoder is not None:
            return copy.deepcopy(self.encoder)
        shape = self.event_shape_
        if len(shape) == 3 and min(shape[1:]) >= 8:
            return ConvEncoder(shape, DIM)
        return MLPEncoder(shape, DIM)

    def _checked(self, X: Any, reset: bool = False) -> Shaped[Tensor, "n *event"]:
        """X as a finite tensor of items, of the shape of those fitted."""
        X = X.images if isinstance(X, Split) else X
        X = X.detach().cpu().numpy() if isinstance(X, Tensor) else X
        found = check_array(
            X,
            input_name="X",
            estimator=self,
            allow_nd=True,
            ensure_min_samples=2 if reset else 1,
        )
        shape = found.shape[1:]
        known = shape if reset else self.event_shape_
        if shape != known and max(len(shape), len(known)) > 1:
            raise ValueError(
                f"expected items of shape {known}, as those fitted, got {shape}; "
                f"reshape X to (n, {', '.join(map(str, known))})"
            )
        # Compares the number and the names of the features of rows.
        validate_data(self, X, reset=reset, skip_check_array=True)
        self.event_shape_ = known
        return value_tensor(found, "X")

    def _check_settings(self) -> None:
        """Raise an error for what is out of its range, before any work is done."""
        least = {"n_components": 1, "neighbours": 0, "epochs": 1, "batch_size": 2}
        if self.annealing is not None:
            least |= {"annealing": 1, "epochs": 3}
        for name, low in least.items():
            value = getattr(self, name)
            if not isinstance(value, Integral) or value < low:
                raise ValueError(
                    f"expected {name} to be a whole number of at least {low}, got "
                    f"{value!r}"
                )
        for name in ("dof", "temperature", "learning_rate"):
            value = getattr(self, name)
            if not isinstance(value, Real) or not 0 < float(value) < math.inf:
                raise ValueError(
                    f"expected {name} to be a positive finite number, got {value!r}"
                )
        if not isinstance(self.encoder, nn.Module | None):
            raise TypeError(
                "expected encoder to be a module such as ps.nn.ConvEncoder((1, 28, 28),"
                f" 128), or None, got {self.encoder!r}; build it first"
            )
        if not self.neighbours and self.views is None:
            raise ValueError(
                "expected neighbours or views, which say what belongs together, got "
                "neighbours=0 and views=None; give one of them"
            )
