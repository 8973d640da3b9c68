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

from ..data import Split
from ..data.batches import Views
from ..data.tensors import value_tensor
from ..embedding import Embedding
from ..entropies import KernelDensity
from ..limits import TSimCLR
from ..nn import ConvEncoder, MLPEncoder, Projector
from ..posterior import embed
from ..priors import TSNE
from ..train import History, fit
from .neighbourhood import Neighbourhood

__all__ = ["NeighbourMap"]

DIM, WIDTH = 128, 512  # of the encoder that is made by default, and of the layer behind
WIDE, HEAD = 0.4, 0.05  # the shares of the epochs before the last stage
WARM_UP = 0.1  # the share of the steps of a stage


class NeighbourMap(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    r"""A network that puts items on a map, where neighbours and views lie together.

    The objective is contrastive, with the heavy-tailed kernel of t-SNE, for
    :math:`z = f(x)` in the plane,

    .. math:: E_{(x, x') \sim P} \log q(z, z') - \log \sum q, \qquad
        q(z, z') = \Big(1 + \frac{\lVert z - z' \rVert^2}{\nu \tau}\Big)^{-(\nu + 1)/2}

    where P pairs views of an item with one another, and with views of its neighbours
    (see `Neighbourhood`). The sum goes over all pairs of a batch, which is t-SNE's and
    `limits.TSimCLR`; or, with ``joint=False``, over those of each view, on average,
    which is InfoNCE with that kernel. Both are estimates of the entropy of z:
    `entropies.Collision` and `entropies.KernelDensity`. In two dimensions ν = 1 is the
    kernel of t-SNE itself.

    A plane leaves no way round for what has to pass, so dimensions are taken away in
    stages: first the network is trained towards `annealing` dimensions, then a fresh
    last layer to the map, alone, then all of it. In each the learning rate rises over a
    tenth of the steps, and falls as half a cosine.

    Rows of features are compared as they are: standardise them first.

    Arguments:
        n_components: The dimension of the map.
        neighbours: How many neighbours of an item count as views of it; 0 leaves P to
            augmentation alone.
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
        batch_size: Items of a batch; all others in it are negatives.
        learning_rate: That of Adam, at its highest.
        compile: Whether steps are compiled, see `fit`.
        random_state: A whole number makes fits reproducible; None follows
            ``torch.manual_seed``.
        progress: Whether to show progress bars.
        device: As in `fit`.

    Attributes:
        objective_: What was fitted, for `save`, `embed` and all else that takes one.
        history_: The history of each stage, by its name: wide, head, map.
        neighbourhood_: Who is near whom; None without neighbours.
        event_shape_: The shape of one item.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(100, 5))
        >>> NeighbourMap(neighbours=5, epochs=3, random_state=0).fit_transform(x).shape
        (100, 2)

    Raises:
        TypeError: If X holds no real numbers.
        ValueError: If an argument is out of its range, X is not finite, all its items
            are the same, or there are too few of them.
    """

    def __init__(
        self,
        n_components: int = 2,
        *,
        neighbours: int = 10,
        views: Views | None = None,
        encoder: nn.Module | None = None,
        annealing: int | None = 128,
        dof: float = 1.0,
        temperature: float = 1.0,
        joint: bool = True,
        epochs: int = 60,
        batch_size: int = 500,
        learning_rate: float = 2e-3,
        compile: bool | Literal["auto"] | None = "auto",
        random_state: int | np.random.RandomState | None = None,
        progress: bool = False,
        device: str | torch.device = "auto",
    ) -> None:
        self.n_components, self.neighbours, self.views = n_components, neighbours, views
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
        with _seeded(self.random_state):
            self._train(x)
        return self

    def transform(self, X: Any) -> Float[Array, "n k"]:
        """The places of items, of those fitted or of new ones, which is cheap.

        Raises:
            ValueError: If items have not the shape of those fitted, or are not finite.
        """
        check_is_fitted(self)
        return embed(self.objective_, self._checked(X), layer="projector")

    @property
    def _n_features_out(self) -> int:
        return self.objective_.projector.out

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []  # that of the network
        return tags

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "objective_")

    def _train(self, x: Shaped[Tensor, "n *event"]) -> None:
        """Go through the stages."""
        sampler, data = self.views, x
        self.neighbourhood_ = None
        if self.neighbours:
            self.neighbourhood_ = Neighbourhood(x, self.neighbours, self.views)
            sampler, data = self.neighbourhood_, self.neighbourhood_.numbers
        steps = max(1, len(x) // self.batch_size)

        def stage(objective: nn.Module, epochs: int) -> History:
            return fit(
                objective,
                data,
                views=sampler,
                epochs=epochs,
                batch_size=self.batch_size,
                learning_rate=self.learning_rate,
                scheduler=partial(_warm_up_and_cosine, total=epochs * steps),
                compile=self.compile,
                device=self.device,
                progress=self.progress,
            )

        encoder = self._fresh_encoder()
        projector = partial(Projector, embed(encoder, x[:2]).shape[1], WIDTH)
        like = next(encoder.parameters(), torch.zeros(()))
        history, last = {}, self._objective(encoder, projector(self.n_components), like)
        if self.annealing is not None:
            wide, head = round(WIDE * self.epochs), max(1, round(HEAD * self.epochs))
            first = self._objective(encoder, projector(self.annealing), like)
            history["wide"] = stage(first, wide)
            inner = first.projector.net[:-1].state_dict()
            last.projector.net[:-1].load_state_dict(inner)
            with _alone(last, last.projector.net[-1]):
                history["head"] = stage(last, head)
        done = sum(len(part) for part in history.values())
        history["map"] = stage(last, self.epochs - done)
        self.objective_, self.history_ = last, history

    def _objective(
        self, encoder: nn.Module, projector: Projector, like: Tensor
    ) -> Embedding:
        projector = projector.to(like)
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
        """Raise a ValueError for what is out of its range, before any work is done."""
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
            if not isinstance(value, Real) or not 0 < value < math.inf:
                raise ValueError(
                    f"expected {name} to be a positive finite number, got {value!r}"
                )
        if not self.neighbours and self.views is None:
            raise ValueError(
                "expected neighbours or views, which say what belongs together, got "
                "neighbours=0 and views=None; give one of them"
            )


def _warm_up_and_cosine(optimizer: Optimizer, total: int) -> LambdaLR:
    """The learning rate up to its highest in a straight line, and down by a cosine."""
    rise = max(1, round(WARM_UP * total))

    def factor(step: int) -> float:
        share = max(0, step - rise) / max(1, total - rise)
        return min((step + 1) / rise, (1 + math.cos(math.pi * min(share, 1))) / 2)

    return LambdaLR(optimizer, factor)


@contextmanager
def _alone(objective: nn.Module, part: nn.Module) -> Iterator[None]:
    """Freeze all but a part, for a while."""
    thawed = [p for p in objective.parameters() if p.requires_grad]
    objective.requires_grad_(False)
    part.requires_grad_(True)
    yield
    for parameter in thawed:
        parameter.requires_grad_(True)


@contextmanager
def _seeded(random_state: int | np.random.RandomState | None) -> Iterator[None]:
    """Draw from a seed for a while, and go on as before; None changes nothing."""
    if random_state is None:
        yield
        return
    seed = check_random_state(random_state).randint(2**31 - 1)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
