"""Who belongs together: views of items, and of the items nearest to them."""

import torch
from jaxtyping import Float, Int, Shaped
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn

from ..data.batches import Views, viewed
from ..terms import Batch

__all__ = ["Neighbourhood"]


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
