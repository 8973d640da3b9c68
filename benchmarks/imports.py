"""The time of the import, and of the first step of a fit.

`import probssl` is compared with `import torch, pyro`, its dependencies, start of
Python included. The first step on scikit-learn's digits, from the call of `fit`, not
compiled, to the first terms, is compared with a hand-written step, from the creation of
its optimiser: the first optimiser of a process makes torch load its compiler. Each run
is a new process; runs are interleaved. Writes medians and ratios to
benchmarks/results/imports.json.

Takes three minutes on two CPU cores.
"""

import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from measure import Timing, compared, interleaved, options, report, table

BLOCKS, ITEMS = 7, 128
FIRST = "--first"  # step of the name that follows, in a process of its own
RESULTS = Path(__file__).parent / "results" / "imports.json"
IMPORTS = {"torch and pyro": "import torch, pyro", "probssl": "import probssl"}


def by_hand() -> float:
    """Seconds of the first step of a hand-written loop."""
    import torch
    from handwritten import SimVAE

    model, x = SimVAE(64, (256, 256), 10, 0.15), torch.ones(ITEMS, 2, 64)
    began = perf_counter()
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    loss = model(x)
    loss.backward()
    optimizer.step()
    loss.item()
    return perf_counter() - began


def by_fit() -> float:
    """Seconds from the call of `fit` to the end of its first step."""
    import probssl as ps

    data, views = ps.data.digits(), ps.views.digits()
    joint = ps.Joint(
        ps.priors.Gaussian(10, 0.15),
        ps.likelihoods.Binomial(16),
        ps.nn.MLPEncoder((1, 8, 8), 10),
        ps.nn.MLPDecoder(10, (1, 8, 8)),
    )
    objective, ended = ps.limits.SimVAE(joint), []

    def end(count: int, terms: ps.Terms) -> bool:
        sum(terms).item()
        ended.append(perf_counter())
        return True

    options: dict[str, Any] = {"batch_size": ITEMS, "compile": None, "progress": False}
    began = perf_counter()
    ps.fit(objective, data.train, views=views, on_step=end, **options)
    return ended[0] - began


STEPS = {"by hand": by_hand, "fit": by_fit}


def in_fresh_process(name: str) -> float:
    """Seconds of this first step in a new process."""
    command = [sys.executable, __file__, FIRST, name]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(run.stdout)


def main(
    imports: Mapping[str, str] = IMPORTS,
    first: Callable[[str], float] = in_fresh_process,
    blocks: int = BLOCKS,
    results: Path = RESULTS,
) -> dict[str, dict[str, Any]]:
    """Return milliseconds of imports and first steps, and ratios to the first of each.

    Arguments:
        imports: Statements by name.
        first: A function of a name in `STEPS` that returns its seconds.
    """
    command = [sys.executable, "-c"]
    subjects = {
        f"import of {name}": partial(subprocess.run, [*command, code], check=True)
        for name, code in imports.items()
    }
    imported = interleaved(subjects, blocks)
    each = zip(*([first(name) for name in STEPS] for _ in range(blocks)), strict=True)
    names = [f"first step, {name}" for name in STEPS]
    stepped = dict(zip(names, map(Timing, each), strict=True))
    figures = compared(imported) | compared(stepped)
    report("benchmarks/imports.py", results, figures, blocks=blocks)
    table(figures)
    return figures


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] == FIRST:
        print(STEPS[sys.argv[2]]())
    else:
        main(results=options(__doc__, device=False).parse_args().out / RESULTS.name)
