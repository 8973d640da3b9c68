"""MoPoE and MVTCAE of MultiVae on the five modalities of models/poly_mnist.py.

    pip install multivae
    python benchmarks/multimodal.py

Data, judges, networks, epochs, batches and learning rate are those of the script in
models/; the objectives and their weights are MultiVae's defaults. There is one z for
all modalities, as wide as the content and the styles of SimVAE together, and the scale
of p(x|z) is fixed at what SimVAE learns. log p is each model's own importance sampling.
Writes benchmarks/results/multimodal.json.

References:
    MultiVae (Senellart et al., 2025)
    https://doi.org/10.21105/joss.07996
    Generalized Multimodal ELBO (Sutter et al., 2021), for MoPoE
    https://arxiv.org/abs/2105.02470
    Multi-View Representation Learning via Total Correlation Objective (Hwang et al.,
    2021), for MVTCAE
"""

import sys
import time
from importlib import import_module
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import torch
from measure import options, report
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from tqdm import tqdm

import probssl as ps

sys.path.append(str(Path(__file__).parent.parent / "models"))
experiment = import_module("poly_mnist")

MODELS, DIM, SCALE = ("MoPoE", "MVTCAE"), 68, 0.17
RESULTS = Path(__file__).parent / "results" / "multimodal.json"


def named(x: Tensor) -> dict[str, Tensor]:
    """The modalities of items (n, view, *event), by names."""
    return {f"m{v}": part for v, part in enumerate(x.unbind(1))}


def build(name: str, shape: tuple[int, ...], many: int) -> Any:
    """A model of MultiVae with the networks of SimVAE."""
    models = import_module("multivae.models")
    bases = import_module("multivae.models.base")
    networks = import_module("pythae.models.nn.base_architectures")

    class Encoder(networks.BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.net = ps.nn.MLPEncoder(shape, DIM, experiment.HIDDEN)
            self.spread = nn.Linear(experiment.HIDDEN[-1], DIM)
            self.latent_dim = DIM

        def forward(self, x: Tensor) -> Any:
            f = self.net.features(x)
            output = {"embedding": self.net.head(f), "log_covariance": self.spread(f)}
            return bases.ModelOutput(output)

    class Decoder(networks.BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.net = ps.nn.MLPDecoder(DIM, shape, experiment.HIDDEN)

        def forward(self, z: Tensor) -> Any:
            x = self.net(z.reshape(-1, DIM)).reshape(*z.shape[:-1], *shape)
            return bases.ModelOutput(reconstruction=x)

    keys = [f"m{v}" for v in range(many)]
    config = getattr(models, f"{name}Config")(
        n_modalities=many,
        latent_dim=DIM,
        input_dims=dict.fromkeys(keys, shape),
        decoders_dist=dict.fromkeys(keys, "normal"),
        decoder_dist_params={key: {"scale": SCALE} for key in keys},
    )
    parts = {key: Encoder() for key in keys}, {key: Decoder() for key in keys}
    return getattr(models, name)(config, *parts)


def fitted(name: str, train: ps.data.Groups, epochs: int) -> Any:
    dataset = import_module("multivae.data.datasets.base").MultimodalBaseDataset
    x = torch.as_tensor(train.views)
    model = build(name, tuple(x.shape[2:]), x.shape[1]).train()
    batch = experiment.BATCH
    optimizer = torch.optim.Adam(model.parameters(), experiment.LEARNING_RATE)
    schedule = CosineAnnealingLR(optimizer, epochs * (len(x) // batch))
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(batch):
            if len(rows) < batch:
                continue
            loss = model(dataset(named(x[rows]))).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


@torch.no_grad()
def measured(
    model: Any, found: dict[str, ps.data.Groups], nets: list[nn.Module]
) -> dict[str, float]:
    """The figures of the script in models/, but for the probe of z."""
    dataset = import_module("multivae.data.datasets.base").MultimodalBaseDataset

    def stacked(output: Any) -> Tensor:
        return torch.stack([output[key] for key in sorted(output)], 1)

    def generate(x: Tensor, seen: Tensor) -> Tensor:
        given = [f"m{v}" for v in range(len(seen)) if seen[v]]
        return stacked(model.predict(dataset(named(x)), cond_mod=given))

    figures = {}
    for name, label in (("validation", "validation: log p"), ("test", "log p")):
        items = dataset(named(torch.as_tensor(found[name].views)))
        nll = model.compute_joint_nll(items, experiment.PARTICLES)
        figures[label] = -float(nll) / len(found[name])
    figures |= experiment.coherence(generate, found["test"], nets)
    drawn = stacked(model.decode(model.generate_from_prior(len(found["test"]))))
    return figures | {"agreement": experiment.agreement(drawn, nets)}


def main(
    seeds: int = experiment.SEEDS,
    epochs: int = experiment.EPOCHS,
    items: int = experiment.ITEMS,
    data: ps.data.Dataset | None = None,
    results: Path = RESULTS,
) -> list[dict[str, Any]]:
    """Return the figures of every model and seed."""
    if data is None:
        data = ps.data.load("mnist", binary=False)
    found = experiment.parts(data, items)
    nets, rows = experiment.judges(found["train"]), []
    for name, seed in tqdm(list(product(MODELS, range(seeds))), unit="fit"):
        began = time.process_time()
        torch.manual_seed(seed)
        model = fitted(name, found["train"], epochs)
        rows.append({"method": name, "seed": seed, "epochs": epochs})
        rows[-1] |= measured(model, found, nets)
        rows[-1]["CPU seconds"] = round(time.process_time() - began)
    known = {"items": items, "multivae": version("multivae")}
    report("benchmarks/multimodal.py", results, rows, **known)
    return rows


if __name__ == "__main__":
    parser = options(__doc__, device=False)
    parser.add_argument("--seeds", type=int, default=experiment.SEEDS)
    arguments = parser.parse_args()
    main(arguments.seeds, results=arguments.out / RESULTS.name)
