"""Make the pictures of the documentation: docs/map.png and docs/pooled.png.

``python docs/picture.py`` runs README's twenty lines as they are, which write the map,
and draws sketched divergences of two views whose means differ.
"""

import os
import re
import tempfile
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from probssl.entropies import EppsPulley, SlicedWasserstein, Statistic
from probssl.plots.style import BLUE, ORANGE, blank, clean

ROOT = Path(__file__).parent.parent
POINTS = 2_000  # quantiles of each view


def apart(statistic: Statistic, distances: Tensor) -> Tensor:
    """Divergences from N(0, 1) of two views, each by itself and as one sample.

    The views are N(δ, 1 − δ²) and N(−δ, 1 − δ²), of which the mixture has mean 0 and
    variance 1, by their quantiles.

    Arguments:
        distances: Values of δ, from 0 to 1.

    Returns:
        For each δ the mean over the views, and the divergence of the mixture.
    """
    places = (torch.arange(POINTS).to(distances) + 0.5) / POINTS
    normal = torch.special.ndtri(places)
    line, found = torch.ones(1, 1).to(distances), []
    for delta in distances:
        spread = (1 - delta.square()).sqrt() * normal
        views = torch.stack([delta + spread, spread - delta]).unsqueeze(-1)
        each = statistic(views, line).mean()
        found.append(torch.stack([each, statistic(views.reshape(1, -1, 1), line)[0]]))
    return torch.stack(found)


def pooled() -> Figure:
    """The two divergences over δ, of both statistics and of KL for each view."""
    figure, distances = blank(5.2, 3.2), torch.linspace(0, 0.95, 60)
    axes = figure.subplots()
    clean(axes)
    for statistic, colour in ((EppsPulley(), BLUE), (SlicedWasserstein(), ORANGE)):
        each, mixture = apart(statistic, distances).unbind(1)
        name = type(statistic).__name__
        axes.plot(distances, each, color=colour, label=f"{name}, per view")
        axes.plot(distances, mixture, "--", color=colour, label=f"{name}, pooled")
    kl = -(1 - distances.square()).log() / 2
    axes.plot(distances, kl, ":", color="#888888", label="KL, per view")
    axes.set(xlabel="mean of a view, ± δ", ylabel="divergence, nats", ylim=(0, 1))
    axes.legend(frameon=False, fontsize=8)
    return figure


if __name__ == "__main__":
    pooled().savefig(ROOT / "docs" / "pooled.png", dpi=120)
    readme = (ROOT / "README.md").read_text()
    code = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)[0]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        exec(compile(code, "README.md", "exec"), {})
        (ROOT / "docs" / "map.png").write_bytes(Path("map.png").read_bytes())
        os.chdir(ROOT)
