"""NeighbourMap: parametric t-SNE, a map for pictures, as a scikit-learn transformer.

A network learns the map with a contrastive objective, as in t-SimCNE: positive pairs
are augmented views of an item and of its nearest neighbours, the kernel is heavy-tailed
as in t-SNE, and new items are mapped by the network.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, Self

import numpy as np
import torch
from jaxtyping import Float, Shaped
from numpy import ndarray as Array
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
)
from sklearn.utils import Tags, check_array, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from .arguments import check_types, positive, typed, whole
from .arrays import rows_for_sklearn, span, tensor
from .data import Split
from .data.batches import Views, viewed
from .data.memory import check_items, value_tensor
from .entropies import KernelDensity
from .evaluation.neighbours import nearest
from .limits import TSimCLR
from .limits._base import Embedding
from .nn import ConvEncoder, MLPEncoder, Projector
from .posterior import embed
from .priors import TSNE
from .runtime.copies import copied
from .runtime.randomness import restored_randomness
from .terms import Batch
from .train import History, fit

__all__ = ["NeighbourMap", "Neighbourhood"]

BASE = 256  # of the digits of row numbers
ENCODER_DIM, HIDDEN_WIDTH = 128, 512  # of the default encoder, of the projector
WIDE_SHARE, HEAD_SHARE = 0.4, 0.05  # of the epochs, for the first two stages
WARM_UP_SHARE = 0.1  # of the steps of a stage


class Neighbourhood(nn.Module):
    r"""A sampler of views of items and of a neighbour each, for `fit` on row numbers.

    .. math:: p(x' \mid i) = \sum_j P_{j \mid i} \, p_{\text{view}}(x' \mid x_j),
        \qquad P_{j \mid i} = \tfrac1k [j \in N(i)]

    N(i) are the k nearest neighbours of item i by Euclidean distance; each call draws
    one of them. Item and neighbour have as many views each as `views` makes, or appear
    themselves: then unordered pairs of views have probability :math:`(P_{j \mid i} +
    P_{i \mid j}) / 2n`, as in t-SNE, with k equal weights in place of a Gaussian whose
    width follows a perplexity.

    A call takes row numbers of shape (batch, digit), see `numbers`, and returns a batch
    whose `clean` are the items. Neighbours are found in float64.

    Arguments:
        items: The items (n, \*event); bytes are divided by 255.
        neighbours: The number k of neighbours.
        views: A sampler of augmented views (batch, \*event) -> (batch, view, \*event).
        features: Numbers (n, \*shape) for the distances, such as representations;
            None uses the items themselves.

    Raises:
        TypeError: If neighbours is not a whole number.
        ValueError: If neighbours is not from 1 to n - 1, there are not as many
            features as items, or views may be absent, as in a `Batch` with `present`.
    """

    items: Tensor
    near: Tensor

    @typed
    def __init__(
        self,
        items: Shaped[Tensor, "n *event"],
        neighbours: int = 10,
        views: Views | None = None,
        features: Float[Tensor, "n *shape"] | None = None,
    ) -> None:
        super().__init__()
        items = tensor(items, "items", finite=True)
        check_items(items.shape, "items")
        features = items if features is None else tensor(features, "features", True)
        check_items(features.shape, "features")
        if len(features) != len(items):
            raise ValueError(
                f"expected features of {len(items)} items, got {len(features)}; embed "
                "the same items"
            )
        hint = "an item is no neighbour of itself: lower it, or give more items"
        self.neighbours = whole("neighbours", neighbours, 1, len(items) - 1, hint)
        self.views = views
        if views is not None:  # before the search
            one = items[:1] / 255 if items.dtype == torch.uint8 else items[:1]
            with restored_randomness():
                _all_present(one, views)
        rows = features.flatten(1).to("cpu", torch.float64).numpy()
        _, near = nearest(rows, rows, self.neighbours, itself=False)
        self.register_buffer("items", items)
        self.register_buffer("near", torch.from_numpy(near).to(items.device))

    @property
    def numbers(self) -> Float[Tensor, "n digit"]:
        """Row numbers 0, 1, … as digits to base 256: the data to give to `fit`.

        The least comes first. Digits are exact in bfloat16 too.
        """
        rows = torch.arange(len(self.items))
        digits = [rows]
        while digits[-1].max() >= BASE:
            rows = digits.pop()
            digits += [rows % BASE, rows // BASE]
        return torch.stack(digits, 1).to(torch.float32)

    def forward(self, numbers: Float[Tensor, "batch digit"]) -> Batch:
        numbers = tensor(numbers, "numbers")
        check_items(numbers.shape, "numbers")
        digits = enumerate(numbers.long().unbind(1))
        item = torch.stack([digit * BASE**i for i, digit in digits]).sum(0)
        if item.device.type == "cpu":  # elsewhere that would synchronise
            low, high = map(int, span(item))
            if low < 0 or high >= len(self.items):
                raise ValueError(
                    f"expected row numbers from 0 to {len(self.items) - 1}, got {low} "
                    f"to {high}; give rows of Neighbourhood.numbers"
                )
        drawn = torch.randint(self.neighbours, item.shape, device=item.device)
        neighbour = self.near[item].gather(1, drawn[:, None])[:, 0]
        both = self.items[torch.stack((item, neighbour), 1)].to(numbers.dtype)
        both = both / 255 if self.items.dtype == torch.uint8 else both
        views = _all_present(both.flatten(0, 1), self.views)
        return Batch(views.unflatten(0, (len(item), 2)).flatten(1, 2), both[:, 0])


class NeighbourMap(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    r"""Parametric t-SNE: a network maps items so that neighbours and views lie close.

    The objective is contrastive. With z the position of a view on the map, and q the
    heavy-tailed Student-t kernel of two positions,

    .. math:: E_{(i, j) \sim P} \log q_{ij} - \log \sum_{k \ne l} q_{kl}, \qquad
        q_{ij} = \Big(1 + \frac{\lVert z_i - z_j \rVert^2}{\nu \tau}\Big)
        ^{-(\nu + 1) / 2}

    where P pairs views of an item with one another, and with views of its neighbours
    (`Neighbourhood`). Up to a constant this is minus the Kullback-Leibler divergence of
    P from the normalised kernel Q: the objective of t-SNE, estimated on batches, and
    that of `limits.TSimCLR`. With ``joint=False`` each view has its own normaliser,
    :math:`E_k \log \sum_{l \ne k} q_{kl}`: InfoNCE with this kernel. The normalisers
    are estimates of the entropy of z, `entropies.Collision` and
    `entropies.KernelDensity`. In two dimensions ν = 1 is the kernel of t-SNE.

    In a plane, points cannot pass around others, so the dimension is reduced in stages:
    the network is trained with `annealing` output dimensions, then a new last layer to
    the map alone, then the whole network. In each stage the learning rate warms up
    over a tenth of the steps and decays as half a cosine.

    Distances between rows depend on their units: standardise features first. Training
    needs a few thousand steps: raise `epochs` for few items.

    Arguments:
        n_components: The dimension of the map.
        neighbours: The number of nearest neighbours whose views are positives; 0 leaves
            positives to augmentation alone.
        refine: Whether neighbours are searched again after the first stage, by the
            representations of the encoder.
        views: A sampler of augmented views (batch, \*event) -> (batch, view, \*event),
            such as `views.Augment`; one view is enough with neighbours. None uses the
            items themselves.
        encoder: A module (n, \*event) -> (n, dim), of which a copy is trained. None
            builds `nn.ConvEncoder` for images of at least 8 by 8 pixels, else
            `nn.MLPEncoder`. A projector with one hidden layer follows it.
        annealing: The output dimension of the first stage; None skips the first two
            stages.
        dof: The degrees of freedom ν of the kernel.
        temperature: :math:`\tau`, the square of the map's unit of length.
        joint: Whether all pairs share one normaliser.
        epochs: The epochs of all stages: two fifths go to the first, a twentieth to the
            second.
        batch_size: The number of items in a batch; views of others are negatives.
        learning_rate: The highest learning rate of Adam.
        compile: Whether steps are compiled, as in `fit`.
        random_state: A seed, which makes fits reproducible; None draws from torch's
            global generator.
        progress: Whether to show progress bars.
        device: As in `fit`.

    Attributes:
        objective_: The fitted objective, for `save` and `embed`.
        history_: The history of each stage by name: wide, head, map.
        neighbours_: The row numbers (n, neighbours) of the final neighbours; None
            without neighbours.
        event_shape_: The shape of one item.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(100, 5))
        >>> m = NeighbourMap(neighbours=5, epochs=3, random_state=0, progress=False)
        >>> m.fit_transform(x).shape
        (100, 2)

    Raises:
        TypeError: If the encoder is not a module, or a number not of its type.
        ValueError: If an argument is out of its range, X is not finite, all of its
            items are equal, or there are too few of them.

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
        """Train the network on X, (n, \\*event) or a `Split`; y is ignored."""
        self._check_settings()
        x = self._checked(X, reset=True)
        if bool((x == x[:1]).all()):
            raise ValueError(
                f"expected items that differ, got {len(x)} times the same; a map shows "
                "how items differ"
            )
        with _seeded(self.random_state):
            self._train(x)
        return self

    def transform(self, X: Any) -> Float[Array, "n k"]:
        """Map items, fitted or new, by one forward pass.

        Raises:
            ValueError: If items do not have the shape of the fitted ones, or are not
                finite.
        """
        check_is_fitted(self)
        return embed(self.objective_, self._checked(X), layer="projector")

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []  # the dtype of the network
        return tags

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "objective_")

    def _train(self, x: Shaped[Tensor, "n *event"]) -> None:
        """Train all stages."""
        encoder = self._fresh_encoder()
        like = next(encoder.parameters(), torch.zeros(()))
        projector = partial(Projector, embed(encoder, x[:2]).shape[1], HIDDEN_WIDTH)
        narrow = projector(self.n_components).to(like)
        objective, history = self._objective(encoder, narrow), {}
        near = self._neighbourhood(x)
        if self.annealing is not None:
            wide = projector(self.annealing).to(like)
            share = round(WIDE_SHARE * self.epochs)
            history["wide"] = self._stage(
                self._objective(encoder, wide), x, near, share
            )
            if self.refine:
                near = self._neighbourhood(x, torch.from_numpy(embed(encoder, x)))
            inner, head = narrow.net[:-1], narrow.net[-1]
            inner.load_state_dict(wide.net[:-1].state_dict())
            share = max(1, round(HEAD_SHARE * self.epochs))
            with _frozen_but(objective, head):
                history["head"] = self._stage(objective, x, near, share)
        rest = self.epochs - sum(len(part) for part in history.values())
        history["map"] = self._stage(objective, x, near, rest, last=True)
        self.objective_, self.history_ = objective, history
        self.neighbours_ = None if near is None else near.near.cpu().numpy()
        self._n_features_out = self.n_components

    def _stage(
        self,
        objective: Embedding,
        x: Shaped[Tensor, "n *event"],
        near: Neighbourhood | None,
        epochs: int,
        last: bool = False,
    ) -> History:
        steps = epochs * max(1, len(x) // int(self.batch_size))
        history = fit(
            objective,
            x if near is None else near.numbers,
            views=self.views if near is None else near,
            epochs=epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            scheduler=partial(_warm_up_and_cosine, steps=steps),
            compile=self.compile,
            device=self.device,
            progress=self.progress,
        )
        if history.interrupted and not last:  # there is no map yet
            raise KeyboardInterrupt
        return history

    def _neighbourhood(
        self, x: Shaped[Tensor, "n *event"], features: Tensor | None = None
    ) -> Neighbourhood | None:
        """The nearest neighbours by features, or by the items themselves."""
        if not self.neighbours:
            return None
        return Neighbourhood(x, self.neighbours, self.views, features)

    def _objective(self, encoder: nn.Module, projector: Projector) -> Embedding:
        if self.joint:
            options = {"dof": self.dof, "temperature": self.temperature}
            return TSimCLR(encoder, projector, **options)
        prior = TSNE(None, math.sqrt(self.temperature), self.dof)
        return Embedding(
            encoder, prior, KernelDensity(), projector=projector, plug_in=True
        )

    def _fresh_encoder(self) -> nn.Module:
        if self.encoder is not None:
            return copied(self.encoder)
        shape = self.event_shape_
        if len(shape) == 3 and min(shape[1:]) >= 8:
            return ConvEncoder(shape, ENCODER_DIM)
        return MLPEncoder(shape, ENCODER_DIM)

    def _checked(self, X: Any, reset: bool = False) -> Shaped[Tensor, "n *event"]:
        """X as a finite tensor of items, of the shape of the fitted ones."""
        said, X = isinstance(X, Split), X.images if isinstance(X, Split) else X
        X = rows_for_sklearn(X)
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
                f"expected items of shape {known}, like the fitted ones, got {shape}; "
                f"reshape X to (n, {', '.join(map(str, known))})"
            )
        # Checks the number and the names of the features of rows.
        validate_data(self, X, reset=reset, skip_check_array=True)
        self.event_shape_ = known
        found = value_tensor(found, "X", said)
        return found / 255 if found.dtype == torch.uint8 else found

    def _check_settings(self) -> None:
        """Raise an error for a setting out of its range, before any work is done."""
        check_types(NeighbourMap.__init__, self, **self.get_params(deep=False))
        whole("n_components", self.n_components)
        whole("neighbours", self.neighbours, 0)
        whole("batch_size", self.batch_size, 2)
        if self.annealing is not None:
            whole("annealing", self.annealing)
        stages = 1 if self.annealing is None else 3
        whole("epochs", self.epochs, stages, hint="each stage needs one")
        for name in ("dof", "temperature", "learning_rate"):
            positive(name, getattr(self, name))
        if not isinstance(self.random_state, np.random.RandomState | None):
            whole("random_state", self.random_state, 0, 2**32 - 1)
        if not self.neighbours and self.views is None:
            raise ValueError(
                "expected neighbours or views, which make positive pairs, got "
                "neighbours=0 and views=None; give one of them"
            )


def _all_present(
    x: Float[Tensor, "n *event"], views: Views | None
) -> Float[Tensor, "n view *event"]:
    """Views of items, none of which may be absent."""
    drawn = viewed(x, views)
    if drawn.present is not None:
        raise ValueError(
            "expected all views to be present for Neighbourhood, got a mask; drop the "
            "incomplete items, or draw other views in place of absent ones"
        )
    return drawn.stacked


def _warm_up_and_cosine(optimizer: Optimizer, steps: int) -> LambdaLR:
    """A linear warm-up of the learning rate, then half a cosine to zero."""
    rise = max(1, round(WARM_UP_SHARE * steps))

    def factor(step: int) -> float:
        share = max(0, step - rise) / max(1, steps - rise)
        return min((step + 1) / rise, (1 + math.cos(math.pi * min(share, 1))) / 2)

    return LambdaLR(optimizer, factor)


@contextmanager
def _frozen_but(objective: nn.Module, part: nn.Module) -> Iterator[None]:
    """Freeze all parameters but those of a part, within the context."""
    trained = [p for p in objective.parameters() if p.requires_grad]
    objective.requires_grad_(False)
    part.requires_grad_(True)
    yield
    for parameter in trained:
        parameter.requires_grad_(True)


@contextmanager
def _seeded(random_state: int | np.random.RandomState | None) -> Iterator[None]:
    """Seed torch within the context; None leaves the generator alone."""
    if random_state is None:
        yield
        return
    seed = check_random_state(random_state).randint(2**31 - 1)
    with restored_randomness(None):
        torch.manual_seed(seed)
        yield
