"""The contrastive normaliser in blocks and as one dense matrix: time and memory.

Value and gradient of the kernel density over all representations of a batch of two
views, 128 dimensions, float32. Times are medians over interleaved repeats in one run,
given as ratios to the dense form; memory is the peak beyond the inputs. Writes
benchmarks/results/normaliser.json.

Takes about five minutes on two CPU cores, most of it for 16,384 items, where the dense
form is left out: one matrix of kernels alone has 4.3 GB. On a GPU, and on a CPU with
--large, which takes some ten minutes more, there are 65,536 items as well.
"""

import math
from functools import partial
from pathlib import Path

import torch
from measure import device_of, interleaved, options, peak_memory, report, table
from torch import Tensor
from torch.nn.functional import normalize

import probssl as ps
from probssl.entropies._log_sums import log_sums

ITEMS, DIM, REPEATS = (1_024, 2_048, 4_096), 128, 5
MANY, LARGE = 16_384, 65_536
RESULTS = Path(__file__).parent / "results" / "normaliser.json"
# The most kernels in memory at once; None chooses by the device.
FORMS: dict[str, int | None] = {"dense": 2**62, "blocks": None}
PRIORS = {
    "von Mises-Fisher": lambda: ps.priors.Spherical(None, 2.0),
    "Gaussian": lambda: ps.priors.Gaussian(None, 0.5),
    "Student-t": lambda: ps.priors.TSNE(None, 1.0),
}


def inputs(items: int, device: torch.device) -> Tensor:
    """Unit vectors of two views for each item, flattened."""
    return normalize(torch.randn(2 * items, DIM, device=device), dim=-1)


def step(prior: ps.priors.Prior, z: Tensor, most: int | None) -> None:
    """The value of the kernel density and its gradient."""
    numbers = torch.arange(len(z), device=z.device)
    sums = log_sums(prior, z, z, lambda columns: numbers[:, None] != columns, most)
    torch.autograd.grad(math.log(len(z) - 1) - sums.mean(), z)


def seconds(
    items: int, repeats: int, device: torch.device
) -> dict[str, dict[str, float]]:
    """Median seconds of both forms for every prior, and their ratio."""
    z, found = inputs(items, device).requires_grad_(), {}
    for name, make in PRIORS.items():
        prior = make().to(device)
        forms = {form: partial(step, prior, z, most) for form, most in FORMS.items()}
        timed = interleaved(forms, repeats, device=device)
        found[name] = {form: round(t.median, 3) for form, t in timed.items()}
        found[name]["ratio"] = round(timed["blocks"].ratio(timed["dense"]), 2)
    return found


def megabytes(form: str, items: int, device: torch.device) -> float:
    """The peak memory of a step, beyond its inputs."""
    prior = PRIORS["von Mises-Fisher"]().to(device)
    few, z = (inputs(n, device).requires_grad_() for n in (32, items))
    step(prior, few, FORMS[form])  # warm-up
    return round(peak_memory(partial(step, prior, z, FORMS[form]), device))


def main(
    items: tuple[int, ...] = ITEMS,
    many: tuple[int, ...] = (MANY,),
    repeats: int = REPEATS,
    device: str = "auto",
    results: Path = RESULTS,
) -> dict[str, dict]:
    """Return seconds for each number of items, and megabytes.

    Arguments:
        many: Further numbers of items, for the form in blocks only.
    """
    place = device_of(device)
    torch.manual_seed(0)
    memory = {f"blocks, {n}": megabytes("blocks", n, place) for n in many}
    memory |= {
        f"{form}, {items[-1]}": megabytes(form, items[-1], place) for form in FORMS
    }
    figures: dict[str, dict] = {
        "seconds": {str(n): seconds(n, repeats, place) for n in items},
        "megabytes": memory,
    }
    sizes = {"views, dim": [2, DIM], "repeats": repeats}
    report("benchmarks/normaliser.py", results, figures, device=place, **sizes)
    for n, by_prior in figures["seconds"].items():
        table(by_prior, f"{n} items, s")
    table({name: {"MB": size} for name, size in memory.items()}, "items")
    return figures


if __name__ == "__main__":
    parser = options(__doc__)
    parser.add_argument("--large", action="store_true")
    arguments = parser.parse_args()
    large = arguments.large or device_of(arguments.device).type == "cuda"
    many, path = (MANY, LARGE) if large else (MANY,), arguments.out / RESULTS.name
    main(many=many, device=arguments.device, results=path)
