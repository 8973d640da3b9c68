"""`compare`: fitted objectives measured on the same data and views."""

import itertools
import logging
import os
import uuid
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm

from .. import recipes
from .._arguments import describe
from .._compared import look, uncompared
from ..arguments import folder, typed, whole
from ..bars import shown
from ..data import Dataset, Split
from ..data.memory import as_float
from ..estimates import Estimate, estimate
from ..evaluation import FewLabel
from ..evaluation.collapse import active_units, effective_rank_values
from ..evaluation.probes import scores_and_draws
from ..limits import PrincipalComponents
from ..posterior.representation import embedded, own_z
from ..runtime.digests import digest
from ..runtime.fingerprints import fingerprint
from ..runtime.unregistered import unregistered
from .checks import (
    apart,
    check,
    check_conditional,
    check_data,
    check_finite,
    check_names,
    check_supports,
)
from .decoding import (
    STEPS,
    Decoded,
    Form,
    check_support_of,
    decoded,
    late_rise,
    likelihood_for,
    named,
)
from .implied import Implied, Measure, curve, evidence_of, implied_joint
from .kept import Kept, kept_rows
from .sampling import Sampler, sampled, seeded
from .table import FROZEN, Comparison, Row
from .terms import FAILED, attempted, own_terms, representation_terms

__all__ = ["compare"]

PAIRED = 2_000  # test items at most for measures of all pairs
RAW, UNTRAINED = "raw pixels", "untrained encoder"
ITSELF = "z is the item itself"
MOST_EVIDENCE = 200  # test items at most for the evidence of frozen encoders
OWN = "reconstruction", "entropy", "alignment", "elbo"
SCORES = ["linear_probe", "few_label_probe", "few_label_gain", "knn"]
SCORES += ["cluster_accuracy", "nmi", "ari"]

logger = logging.getLogger(__name__)


class Embedded(NamedTuple):
    """Representations of the items, each alone, and of their views."""

    train: Float[np.ndarray, "n dim"]
    test: Float[np.ndarray, "m dim"]
    views: Float[Tensor, "k view dim"]
    device: torch.device


@typed
def compare(
    objectives: Mapping[str, nn.Module],
    data: Dataset,
    *,
    views: Sampler | None = None,
    baselines: bool = True,
    seconds: Mapping[str, float] | None = None,
    max_train: int | None = None,
    evidence: int = 0,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: bool = True,
) -> Comparison:
    """Compare fitted objectives: every term in nats, and scores of representations.

    Terms are measured, not read off a loss: with unit weights, on two views of each
    test item, the same for all objectives. Every encoder is measured under every prior
    and with every estimator of H[z], on at most 2,000 items. Scores (linear, few-label
    and k-NN probe, clustering, effective rank) are those of each item alone, by the
    mean of q(z|x) or the encoder's output; probes are fitted to the training split. Of
    joints the active units are counted too (`evaluation.active_units`).

    Reconstruction and ELBO are left out, with the reason, where likelihoods have
    different measures of the data, or pseudo-likelihoods stand beside densities.
    The decoder that is fitted afterwards to every z has the likelihood of the first
    joint, where all joints have one measure; for images on a grid, and otherwise, that
    of `recipes.likelihood`. A note names it.

    With `evidence` each frozen encoder also gets the rest of one joint, the same for
    all of them, fitted to views of the training items (`compare.implied_joint`). Then
    every row, contrastive ones included, has an ELBO and a refined estimate of
    log p(x_1, …, x_V) of at most 200 test items, in nats per item. They do not change
    under an invertible affine map of the encoder's output.

    Objectives that share trainable parameters are warned of. A measure that cannot be
    taken, as where a probe does not converge, is left out with the reason.

    Arguments:
        objectives: Fitted objectives by name. An objective of your own needs
            ``represent(x, layer)``; a plain encoder is called.
        data: The data set, with labels.
        views: The sampler of the views; by default `recipes.views`.
        baselines: Whether to add rows for raw pixels, PCA and an untrained encoder.
        seconds: Training times by name, to be listed.
        max_train: The largest number of training items that probes are fitted to.
        evidence: How many steps fit the joint of each frozen encoder, for its ELBO and
            evidence; 1,000 are enough for the digits. 0 leaves both out.
        seed: The seed of views, noise, probes and decoders.
        checkpoint: A folder for ``measured.json``, in which each row is kept as soon as
            it is measured.
        resume: Take the rows that are kept there, where objective, data, views and
            settings are the same, and measure the others. Those of objectives with
            functions or classes that no module names, such as a lambda, or with parts
            that cannot be compared (see `load`), are measured anew.

    Raises:
        BlockingIOError: If another process or thread measures in the same folder.
        FileExistsError: If the folder has rows, but `resume` is False.
        TypeError: If an objective is a bare `Joint`.
        ValueError: If labels are missing, there are fewer than 20 test items, fewer
            than 5 training items of a class or no pairs of views, views are off the
            support of a joint's likelihood, or with `evidence` off that of the
            decoders, representations are not finite, or encoders take several
            modalities.
    """
    check(objectives)
    whole("evidence", evidence, least=0, hint="0 leaves it out")
    check_data(data, max_train, seed)
    if unknown := set(seconds or ()) - set(objectives):
        raise ValueError(
            f"expected seconds of the objectives {', '.join(objectives)}, got some of "
            f"{', '.join(map(repr, sorted(unknown)))}; use the same names"
        )
    where = None if checkpoint is None else folder("checkpoint", checkpoint)
    with kept_rows(where, resume) as kept:
        options = _Options(data, views, seed, max_train, evidence, kept, progress)
        rows = _measured(objectives, baselines, options)
    for name, spent in (seconds or {}).items():
        rows[name]["seconds"] = spent
    return Comparison(data.name, seed, rows)


class _Options(NamedTuple):
    """What all rows have in common."""

    data: Dataset
    views: Sampler | None
    seed: int
    max_train: int | None
    evidence: int
    kept: Kept
    progress: bool


def _measured(
    objectives: Mapping[str, nn.Module], baselines: bool, options: _Options
) -> dict[str, Row]:
    """The rows by name: those that are kept, and the others measured."""
    data, views, seed, max_train, evidence, kept, progress = options
    check_conditional(objectives)
    sampler = recipes.views(data) if views is None else views
    several = apart(objectives)
    others, pca = _baselines(objectives, data, seed) if baselines else ({}, None)
    pair = sampled(sampler, data.test, seed)
    check_supports(objectives, pair)
    few = np.random.default_rng(seed).permutation(len(pair))[:PAIRED]
    subjects: dict[str, object] = {**objectives, **others}
    form = likelihood_for(objectives, data)
    forms = {
        name: None if name == RAW and name in others else form for name in subjects
    }
    if evidence:
        check_support_of(form, pair)
    digests = {name: "" for name in subjects}
    if kept.path is not None:
        from .. import __version__

        common = digest(__version__, data.fingerprint, pair, seed, max_train, several)
        common = digest(common, evidence) if evidence else common
        digests = {k: _digest(s, forms[k], common) for k, s in subjects.items()}
    known = {name: kept.get(name, digests[name]) for name in subjects}
    bar = tqdm(total=2 * len(subjects), desc="embed", **shown(progress))
    embedded = {}
    for name, subject in subjects.items():  # all of them before any is measured
        bar.set_postfix_str(name)
        if known[name] is None:
            embedded[name] = _embedded(name, subject, data, pair[np.sort(few)])
        bar.update()
    rows: dict[str, Row] = {}
    few_labels: dict[str, FewLabel | None] = {}
    bar.set_description("measure")
    for name, subject in subjects.items():
        bar.set_postfix_str(name)
        if (found := known[name]) is None:
            own, reasons = _own(subject, pair, several, embedded[name], seed)
            z = embedded.pop(name)
            other = bool(own) and own_z(cast(nn.Module, subject), data.test)
            found = _row(own, z, data, seed, max_train, forms[name], other)
            found[0]["left_out"] |= reasons
            if evidence:
                few_views, device = pair[np.sort(few[:MOST_EVIDENCE])], z.device
                task = _Task(name, subject, forms[name], sampler, few_views, device)
                _add_implied(found[0], task, options, bar)
            _warn_of_failures(name, found[0])
            kept.add(name, digests[name], *found)
        rows[name], few_labels[name] = found
        bar.update()
    bar.close()
    if pca is not None:
        _add_gains(rows, few_labels, pca)
    return rows


def _warn_of_failures(name: str, row: Row) -> None:
    """Log why measures of a method failed, a line for each reason."""
    failed: dict[str, list[str]] = {}
    for measure, reason in row["left_out"].items():
        if reason.startswith(FAILED):
            failed.setdefault(reason, []).append(measure)
    for reason, measures in failed.items():
        logger.warning("%s of %s left out: %s", ", ".join(measures), name, reason)


def _own(
    subject: object, pair: Tensor, several: str, z: Embedded, seed: int
) -> tuple[dict[str, Estimate], dict[str, str]]:
    """The terms of a joint's bound, and the reasons of those that are left out."""
    reasons: dict[str, str] = {}
    with seeded(seed, z.device):
        found = attempted(lambda: own_terms(subject, pair), reasons, *OWN) or {}
    if found and several:
        for term in ("reconstruction", "elbo"):
            del found[term]
            reasons[term] = several
    return found, reasons


def _row(
    own: dict[str, Estimate],
    z: Embedded,
    data: Dataset,
    seed: int,
    max_train: int | None,
    form: Form | None,
    own_represent: bool = False,
) -> tuple[Row, FewLabel | None]:
    y_train, y_test = data.train.labels, data.test.labels
    assert y_train is not None and y_test is not None
    terms, matrix, left_out = representation_terms(z.views)
    scored = attempted(
        lambda: scores_and_draws(z.train, y_train, z.test, y_test, seed, max_train),
        left_out,
        *SCORES,
    )
    probes, few = scored or ({}, None)
    rank = attempted(
        lambda: estimate(effective_rank_values(z.test)), left_out, "effective_rank"
    )
    matrix |= {} if rank is None else {"effective_rank": rank}
    if own and own_represent:
        left_out["active_units"] = "represent(x) is not the mean of q(z|x)"
    elif own:
        units = attempted(lambda: active_units(z.test), left_out, "active_units")
        probes |= {} if units is None else {"active_units": units}
    decoder: dict[str, Any] = {}
    if form is None:
        left_out["decoded"] = ITSELF
    else:
        name, fit = named(form.likelihood), partial(_decoded, z, data, seed, form)
        values, rise = attempted(fit, left_out, "decoded") or (None, 0.0)
        if values is not None and bool(values.isfinite().all()):
            matrix["decoded"] = estimate(values)
            decoder = {"decoder": {"likelihood": name, "rise": rise}}
        elif values is not None:
            left_out["decoded"] = f"log p(x|z) of {name} is not finite"
    if "log_det" in matrix:
        terms["log_det"] = matrix["log_det"]
    found = own | terms | matrix
    errors = {name: entry.standard_error for name, entry in found.items()}
    if scored:
        errors["few_label_probe"] = probes["few_label_probe_se"]
        for name in ("linear_probe", "knn"):
            right = probes[name]
            errors[name] = float(np.sqrt(right * (1 - right) / len(z.test)))
    row = {
        "terms": {name: entry.value for name, entry in (own | terms).items()},
        "scores": probes,
        "matrix": {name: entry.value for name, entry in matrix.items()},
        "errors": errors,
        "left_out": left_out,
        **decoder,
    }
    return row, few


def _decoded(z: Embedded, data: Dataset, seed: int, form: Form) -> Decoded:
    with seeded(seed, z.device):
        train, test = (torch.from_numpy(x).double() for x in (z.train, z.test))
        return decoded(data, train, test, z.device, form)


class _Task(NamedTuple):
    """A subject whose joint is fitted, and the views of which it has an evidence."""

    name: str
    subject: object
    form: Form | None
    sampler: Sampler
    views: Float[Tensor, "k view *event"]
    device: torch.device


def _add_implied(row: Row, task: _Task, options: _Options, bar: "tqdm[Any]") -> None:
    """Add ELBO and evidence of the joint that a frozen encoder implies."""
    name, subject, form, sampler, views, device = task
    if form is None or not isinstance(subject, nn.Module):
        row["left_out"] |= dict.fromkeys(FROZEN, ITSELF)
        return

    def found() -> tuple[Implied, Measure]:
        with seeded(options.seed, device):
            implied = implied_joint(
                subject,
                options.data,
                views=sampler,
                steps=options.evidence,
                form=form,
                on_epoch=lambda i, n: bar.set_postfix_str(f"{name}, epoch {i} of {n}"),
                device=device,
            )
            bar.set_postfix_str(f"{name}, evidence")
            return implied, evidence_of(implied.joint, views)

    both = attempted(found, row["left_out"], *FROZEN)
    if both is None:
        return
    (joint, history), (elbo, evidence) = both
    values = elbo.numpy(), evidence.log_evidence
    if not all(np.isfinite(each).all() for each in values):
        row["left_out"] |= dict.fromkeys(FROZEN, "some items have no finite density")
        return
    for column, each in zip(FROZEN, map(estimate, values), strict=True):
        row["matrix"][column], row["errors"][column] = each.value, each.standard_error
    row["implied"] = {
        "likelihood": named(form.likelihood),
        "dim": joint.prior.known_dim(),
        "steps": options.evidence,
        "items": len(views),
        "unreliable": evidence.unreliable,
        "rise": late_rise(history["valid_value"].tolist()) / views[0].numel(),
    }
    row["curve"] = curve(history)


def _add_gains(
    rows: dict[str, Row], few_labels: dict[str, FewLabel | None], pca: str
) -> None:
    """Add the gain of the few-label probe over PCA, paired by the labels drawn."""
    base = few_labels[pca]
    for name, few in few_labels.items():
        if few is None or base is None:
            reason = rows[name if few is None else pca]["left_out"]["few_label_gain"]
            rows[name]["left_out"]["few_label_gain"] = reason
            continue
        gain = estimate(np.subtract(few.draws, base.draws))
        rows[name]["scores"]["few_label_gain"] = gain.value
        rows[name]["errors"]["few_label_gain"] = gain.standard_error


def _digest(subject: object, form: Form | None, common: str) -> str:
    """What the row of a subject depends on, besides what all have in common."""
    parts: list[Any] = [common]
    if isinstance(subject, nn.Module):
        words = look(subject)
        unnamed = any("<lambda>" in x or "<locals>" in x for x in words.values())
        arguments = describe(subject)
        unnamed |= any(x in str(arguments) for x in ("<lambda>", "<locals>"))
        if unnamed or uncompared(words) or unregistered(subject):
            logger.debug("%s is measured anew: no words say all of it", type(subject))
            return uuid.uuid4().hex
        parts += [type(subject).__qualname__, str(subject), subject.state_dict()]
        parts += [words, arguments, fingerprint(subject)]
    if form is not None:
        likelihood = form.likelihood
        parts += [str(likelihood), likelihood.state_dict(), form.shape, STEPS]
    return digest(*parts)


def _embedded(name: str, subject: object, data: Dataset, pair: Tensor) -> Embedded:
    train, test = (_represent(subject, split) for split in (data.train, data.test))
    each = [_represent(subject, Split(view)) for view in pair.unbind(1)]
    check_finite(name, subject, (train, test), each, pair)
    tensors = [torch.from_numpy(np.asarray(z)) for z in each]
    device = torch.device("cpu")
    if isinstance(subject, nn.Module):
        numbers = itertools.chain(subject.parameters(), subject.buffers())
        device = next((number.device for number in numbers), device)
    return Embedded(train, test, torch.stack(tensors, 1).flatten(2), device)


def _represent(subject: object, split: Split) -> np.ndarray:
    if isinstance(subject, nn.Module):
        return embedded(subject, split)[0]  # `check_finite` says what is at fault
    return subject(as_float(split).flatten(1).numpy())  # type: ignore[operator]


def _baselines(
    objectives: Mapping[str, nn.Module], data: Dataset, seed: int
) -> tuple[dict[str, object], str]:
    """Raw pixels, PCA to the dimension of the first objective, an untrained encoder.

    With the name of PCA among them.
    """
    first = next(iter(objectives.values()))
    dim = embedded(first, Split(data.test.images[:2]))[0].shape[1]
    train = as_float(data.train)
    components = min(dim, *train.flatten(1).shape)
    name = f"PCA-{components}"
    check_names(objectives, [RAW, name, UNTRAINED])
    pca = PrincipalComponents.of(train, components, seed)
    with seeded(seed, torch.device("cpu")):
        untrained = recipes.encoder(data, dim)
    return {RAW: lambda x: x, name: pca, UNTRAINED: untrained}, name
