"""Covariates: who gets them, the density at them, every way they travel, refusals."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch
from helpers.checks import assert_mean, refusals, seeded
from scipy import stats
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.data import DataLoader

import probssl as ps
from probssl import limits
from probssl.covariates import checked_covariates, of_views
from probssl.data.batches import Items, Target
from probssl.nn import each_view
from probssl.train import batches as train_batches
from probssl.train.batches import source

GENES, N = 6, 40


class Sized(nn.Module):
    """log μ = W z + b + log size, for rows of z and of the size."""

    def __init__(self, dim: int = 1, genes: int = GENES) -> None:
        super().__init__()
        self.net = nn.Linear(dim, genes)

    def forward(self, z: Tensor, covariates: dict[str, Tensor]) -> Tensor:
        share = covariates.get("share", torch.ones(()))
        return self.net(z) + (covariates["size"] * share).log()


class Corrected(nn.Module):
    """An encoder of counts and of their batch, a whole number."""

    def __init__(self, dim: int = 1, genes: int = GENES) -> None:
        super().__init__()
        self.net, self.shift = nn.Linear(genes, dim), nn.Embedding(3, dim)
        self.dim = dim

    def forward(self, x: Tensor, covariates: dict[str, Tensor]) -> Tensor:
        return self.net(x.log1p()) + self.shift(covariates["batch"])


class Offset(ps.likelihoods.Poisson):
    """The size enters by the likelihood, with the axes (*batch, view)."""

    def forward(self, output: Tensor, covariates: dict[str, Tensor]) -> object:
        return super().forward(output + covariates["size"].log())


@pytest.fixture
def data() -> ps.data.Split:
    size = 1.0 + torch.arange(N) % 5
    x = torch.poisson(3 * size.unsqueeze(1).expand(N, GENES))
    return ps.data.Split(
        x, covariates={"size": size.unsqueeze(1), "batch": torch.arange(N) % 3}
    )


def joint_of(encoder=None, decoder=None, likelihood=None, **options) -> ps.Joint:
    return ps.Joint(
        ps.priors.Gaussian(1, scale=0.5),
        likelihood or ps.likelihoods.NegativeBinomial(0.3),
        encoder or Corrected(),
        decoder or Sized(),
        **options,
    )


def fitted(joint: ps.Joint, data: object, **options: object) -> ps.limits.SimVAE:
    objective = ps.limits.SimVAE(joint)
    settings = {"epochs": 1, "batch_size": 20, "progress": False} | options
    ps.fit(objective, data, **settings)
    return objective


def parts_of(joint: ps.Joint) -> list[Tensor]:
    return [p.detach().clone() for p in joint.parameters()]


# Who gets them


def test_the_parts_that_take_covariates_are_known_by_their_signature():
    plain = ps.nn.MLPEncoder((GENES,), 1), ps.nn.MLPDecoder(1, (GENES,))
    assert joint_of(*plain).conditional == ()
    assert joint_of(plain[0], Sized()).conditional == ("decoder",)
    assert joint_of(Corrected(), plain[1]).conditional == ("guide",)
    own = joint_of(*plain, Offset())
    assert own.conditional == ("likelihood",)
    assert joint_of(likelihood=Offset()).conditional == (
        "guide",
        "decoder",
        "likelihood",
    )


GUIDES = [
    ps.guides.DiagonalGaussian,
    ps.guides.FullGaussian,
    ps.guides.Coupled,
    ps.guides.CoupledLikelihoods,
    ps.guides.Flow,
    ps.guides.Point,
]


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.__name__)
@pytest.mark.parametrize("masked", [False, True])
def test_every_guide_gives_the_encoder_a_row_for_each_row_of_x(guide, masked, float64):
    if guide is ps.guides.Flow:
        pytest.importorskip("zuko")
    if masked and guide is ps.guides.Point:
        return
    joint = joint_of(guide=guide).double()
    x = torch.randint(9, (5, 2, GENES)).double()
    k = torch.randint(3, (5, 2, 1))
    present = torch.tensor([[True, i > 2] for i in range(5)]) if masked else None

    class Squeezed(Corrected):
        def forward(self, x: Tensor, covariates: dict[str, Tensor]) -> Tensor:
            assert covariates["batch"].shape == (len(x), 1)
            return super().forward(x, {"batch": covariates["batch"].squeeze(1)})

    joint.posterior.encoder.__class__ = Squeezed
    with torch.no_grad():
        q = seeded(joint.encode, ps.Batch(x, present=present, covariates={"batch": k}))
        z = seeded(q.sample)
        for v in range(2):
            rows = torch.arange(5)[present[:, v]] if masked else torch.arange(5)
            shift = joint.encoder.shift(k[:, v, 0])
            expected = joint.encoder.net(x[:, v].log1p()) + shift
            known = {"batch": k[:, v : v + 1]}
            one = joint.encode(ps.Batch(x[:, v : v + 1], covariates=known))
            if guide is ps.guides.DiagonalGaussian:
                assert_close(one.mean[:, 0], expected)
                assert_close(q.mean[rows, v], expected[rows])
        assert z.shape == (5, 2, 1) and z.isfinite().all()


def test_batch_norm_of_present_views_sees_their_covariates_alone(float64):
    """Absent views, which the network never sees, change neither output nor moments."""

    class Normed(Corrected):
        def __init__(self) -> None:
            super().__init__()
            self.norm = ps.nn.BatchNorm1d(1)

        def forward(self, x: Tensor, covariates: dict[str, Tensor]) -> Tensor:
            shift = covariates["time"]
            return self.norm(self.net(x.log1p()) + shift)

    encoder = Normed().train()
    x, time = torch.randint(9, (5, 2, GENES)).double(), torch.randn(5, 2, 1)
    present = torch.tensor([[True, i > 1] for i in range(5)])
    found = each_view(encoder, x, present, {"time": time})
    rows = encoder.net(x[present].log1p()) + time[present]
    normed = (rows - rows.mean(0)) / (rows.var(0, correction=0) + 1e-5).sqrt()
    assert_close(found[present], normed)


def test_a_guide_of_ones_own_gets_them_if_it_takes_them(data):
    class Own(ps.guides.DiagonalGaussian):
        def each(self, x, present=None, covariates=None):
            q = super().each(x, present)
            shift = of_views(covariates, x.shape[:2])["size"].log()
            return dist.Normal(q.mean + shift, 0.3).to_event(1)

    class Forgets(ps.guides.DiagonalGaussian):
        def each(self, x, present=None):
            return super().each(x, present)

    plain = ps.nn.MLPEncoder((GENES,), 1, hidden=(4,))
    joint = joint_of(plain, guide=Own)
    assert joint.conditional[0] == "guide"
    fitted(joint, data)
    z = ps.embed(joint, data)
    shift = data.covariates["size"].log()
    with torch.no_grad():
        assert_close(torch.from_numpy(z), joint.encoder(data.images) + shift)
    with pytest.raises(TypeError, match=r"each\(x, present, covariates\) of Forgets"):
        fitted(joint_of(guide=Forgets), data)


# The density at them


@pytest.mark.parametrize("by", ["decoder", "likelihood"])
@pytest.mark.parametrize("axes", ["item", "view"])
def test_p_of_x_given_z_is_scipys_at_the_size_of_each_view(by, axes, float64):
    size = 0.5 + torch.rand(4, 3 if axes == "view" else 1, 1)
    known = {"size": size if axes == "view" else size.squeeze(1)}
    x, z = torch.randint(9, (4, 3, GENES)).double(), torch.randn(7, 4, 3, 1)
    net = nn.Linear(1, GENES)
    decoder = Sized() if by == "decoder" else net
    likelihood = ps.likelihoods.NegativeBinomial(0.3)
    joint = joint_of(
        decoder=decoder, likelihood=likelihood if by == "decoder" else Offset()
    )
    with torch.no_grad():
        found = joint.decode(z, known).log_prob(x)
        weight = decoder.net if by == "decoder" else net
        mean = (weight(z) + size.log()).exp().numpy()
    if by == "decoder":
        r = 1 / 0.3
        expected = stats.nbinom.logpmf(x.numpy(), r, r / (r + mean)).sum(-1)
    else:
        expected = stats.poisson.logpmf(x.numpy(), mean).sum(-1)
    assert_close(found, torch.from_numpy(expected), rtol=1e-10, atol=1e-10)


def test_the_evidence_is_the_integral_at_the_size_of_each_item(float64):
    joint = joint_of(ps.nn.MLPEncoder((GENES,), 1, hidden=(4,))).double()
    x = torch.randint(9, (5, GENES)).double()
    size = torch.tensor([0.5, 1.0, 2.0, 3.0, 1.5]).unsqueeze(1)
    found = ps.evidence(
        joint, ps.data.Split(x, covariates={"size": size}), particles=5_000
    )
    z = torch.linspace(-12, 12, 4_001)
    scale = joint.prior(1).variance.squeeze().sqrt()
    p = dist.Normal(0.0, scale).log_prob(z)
    with torch.no_grad():
        at = joint.decoder.net(z.unsqueeze(1)).unsqueeze(1) + size.log()
        given = joint.likelihood(at).log_prob(x).sum(-1)
    exact = (given + p.unsqueeze(1)).logsumexp(0) + math.log(24 / 4_000)
    error = 5 / np.sqrt(found.ess)
    assert (np.abs(found.log_evidence - exact.numpy()) < error).all()
    assert error.max() < 0.2
    other = ps.data.Split(x, covariates={"size": 2 * size})
    away = ps.evidence(joint, other, particles=2000).log_evidence
    assert (np.abs(away - exact.numpy()) > error).all()


def test_covariates_of_each_draw_are_those_of_its_item(float64):
    known = {"a": torch.arange(3.0), "b": torch.randn(3, 2), "c": torch.randn(3, 4, 5)}
    found = of_views(known, (7, 3, 4))
    shapes = {name: tuple(x.shape) for name, x in found.items()}
    assert shapes == {"a": (7, 3, 4), "b": (7, 3, 4, 2), "c": (7, 3, 4, 5)}
    assert torch.equal(found["a"][2, :, 1], known["a"])
    assert torch.equal(found["c"][6], known["c"])


# How they travel


def test_fit_is_the_same_by_any_way_to_give_them(data, tmp_path):
    x, known = data.images, data.covariates
    kept = np.memmap(tmp_path / "x", np.float32, "w+", shape=tuple(x.shape))
    kept[:] = x.numpy()
    start = joint_of()
    state = {k: v.clone() for k, v in start.state_dict().items()}
    arrays = {name: c.numpy() for name, c in known.items()}
    series = {"size": arrays["size"], "batch": pd.Series(arrays["batch"])}
    ways = [
        (data, {}),
        (x, {"covariates": known}),
        (x.numpy(), {"covariates": arrays}),
        (kept, {"covariates": series}),  # streamed
        (ps.data.Split(kept, covariates=known), {}),
        (ps.data.groups(x.unsqueeze(1), covariates=known), {}),
    ]
    found = []
    for given, options in ways:
        start.load_state_dict(state)
        torch.manual_seed(0)
        fitted(start, given, epochs=2, **options)
        found.append(parts_of(start))
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            assert_close(one, two, rtol=1e-6, atol=1e-6)


def batches(data: ps.data.Split, size: int = 16) -> DataLoader:
    rows = [data.rows([i]) for i in range(len(data))]

    def collate(parts: list[ps.data.Split]) -> ps.Batch:
        names = parts[0].covariates
        known = {k: torch.cat([p.covariates[k] for p in parts]) for k in names}
        x = torch.cat([p.images for p in parts])
        return ps.Batch(x.unsqueeze(1), covariates=known)

    own = torch.Generator()  # the loader draws no global numbers
    return DataLoader(rows, size, collate_fn=collate, generator=own)


def test_measures_take_them_from_a_split_and_from_a_loader(data):
    objective = fitted(joint_of(), data)
    loader = batches(data)
    fitted(joint_of(), loader, batch_size=None)
    measures = [
        lambda d: ps.embed(objective, d),
        lambda d: ps.embed(objective, d, return_std=True)[1],
        lambda d: ps.reconstruct(objective, d),
        lambda d: seeded(ps.evidence, objective, d, batch_size=16).log_evidence,
        lambda d: seeded(ps.posterior_y, objective, d, draws=5, batch_size=16).mean,
    ]
    for measure in measures:
        assert_close(measure(data), measure(loader), rtol=1e-5, atol=1e-5)
    mixed = ps.Joint(
        ps.priors.Mixture(1, 3),
        ps.likelihoods.Poisson(),
        Corrected(),
        Sized(),
    )
    share = ps.classify(mixed, data)
    assert_close(share.sum(1), np.ones(N, np.float32))
    one, two = (
        ps.reconstruct(
            objective, data._replace(covariates=data.covariates | {"size": s})
        )
        for s in (torch.ones(N, 1), 3 * torch.ones(N, 1))
    )
    assert_close(3 * one, two, rtol=1e-4, atol=1e-4)


def test_samples_have_the_size_that_is_asked_for(data):
    objective = fitted(joint_of(), data)
    one, two = (
        seeded(ps.sample, objective, 7, covariates={"size": s * np.ones((7, 1))})
        for s in (1, 4)
    )
    assert one.shape == (7, 2, GENES)
    assert_close(4 * one, two, rtol=1e-4, atol=1e-4)
    size = 10.0 ** np.arange(7).reshape(7, 1)  # in parts of three items
    parts = ps.sample(objective, 7, covariates={"size": size}, batch_size=3)
    assert (np.diff(parts.mean((1, 2))) > 0).all()


def test_absent_views_are_completed_at_their_covariates(data):
    x = data.images.unsqueeze(1).repeat(1, 2, 1)
    present = torch.arange(2 * N).view(N, 2) % 3 > 0
    present[:, 0] |= ~present.any(1)
    size = torch.ones(N, 2, 1)
    size[:, 1] = 5
    k = data.covariates["batch"]
    groups = ps.data.groups(x, present=present, covariates={"size": size, "batch": k})
    objective = fitted(joint_of(), groups)
    found = ps.complete(objective, groups)
    batch = ps.Batch(x, present=present, covariates=groups.covariates)
    assert_close(ps.complete(objective, batch), found)
    doubled = {"size": 2 * size, "batch": k}
    assert_close(ps.complete(objective, batch._replace(covariates=doubled)), 2 * found)
    assert ps.complete(objective, groups, draws=3).shape == (3, N, 2, GENES)


def test_to_arviz_has_them_as_constant_data(data):
    objective = fitted(joint_of(), data)
    view = data.covariates["size"].view(N, 1, 1)
    named = data._replace(
        labels=data.covariates["batch"],
        covariates=data.covariates | {"time": view},
    )
    idata = ps.to_arviz(objective, named, draws=30, items=[3, 7], particles=10)
    known = idata.constant_data
    assert known["size"].dims == ("item", "size_dim") and "label" in known
    assert known["batch"].values.tolist() == [0, 1]
    assert known["time"].dims == ("item", "view", "time_dim")
    assert_close(known["size"].values, data.covariates["size"][[3, 7]].numpy())
    assert idata.posterior_predictive["x"].shape == (1, 30, 2, 1, GENES)
    groups = idata.groups() if callable(idata.groups) else idata.groups
    assert not any("prior_predictive" in name for name in groups)


def test_modalities_have_the_covariates_of_their_own_views(float64):
    a, b = torch.randint(9, (N, 1, 4)).double(), torch.randint(9, (N, 1, 3)).double()
    size = torch.rand(N, 2, 1) + 0.5
    joint = ps.Joint(
        ps.priors.Gaussian(1),
        (ps.likelihoods.Poisson(), ps.likelihoods.Poisson()),
        ps.nn.PerModality([nn.Linear(4, 1), nn.Linear(3, 1)]),
        ps.nn.PerModality([Sized(1, 4), Sized(1, 3)]),
    ).double()
    groups = ps.data.Groups((a, b), covariates={"size": size})
    objective = fitted(joint, groups)
    z = torch.randn(N, 2, 1)
    found = joint.decode(z.split(1, 1), {"size": size})
    for v, p in enumerate(found):
        net = joint.decoder.parts[v].net
        assert_close(p.mean, (net(z[:, v : v + 1])).exp() * size[:, v : v + 1])
    assert ps.embed(objective, groups).shape == (N, 1)
    assert ps.novelty(objective, groups, particles=3).evidence is not None


def test_views_may_return_covariates_of_their_own(data):
    objective = ps.limits.SimVAE(joint_of())
    seen = []
    handle = objective.joint.decoder.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["covariates"]), with_kwargs=True
    )
    views = ps.views.Augment(ps.views.Thinning((0.2, 0.8)), shares=True)
    ps.fit(objective, data, views=views, epochs=1, batch_size=20, progress=False)
    handle.remove()
    assert all(set(known) == {"size", "batch", "share"} for known in seen)
    share = seen[-1]["share"]
    assert share.shape[1:] == (1,) and 0.2 <= share.min() < share.max() <= 0.8

    def sized(x: Tensor) -> ps.Batch:
        v = torch.binomial(x, torch.full_like(x, 0.5)).unsqueeze(1)
        return ps.Batch(v, covariates={"size": v.sum(-1, keepdim=True).clamp(min=1)})

    batch = Items(data, None, sized).batch(torch.arange(5))
    assert torch.equal(batch.covariates["size"], batch.views.sum(-1, True).clamp(min=1))
    assert torch.equal(batch.covariates["batch"], data.covariates["batch"][:5])
    ps.fit(objective, data, views=sized, epochs=1, batch_size=20, progress=False)


def test_rows_and_digests_and_summaries_have_them(data):
    few = data.rows([4, 2])
    assert few.covariates["batch"].tolist() == [1, 2]
    mask = torch.arange(N) < 3
    assert few.take(1).covariates["size"].shape == (1, 1)
    assert data.rows(mask).covariates["batch"].tolist() == [0, 1, 2]
    assert "covariates size, batch" in repr(data)
    bare = data._replace(covariates=None)
    sets = [
        ps.data.Dataset(d, d, None, "x").fingerprint
        for d in (data, bare, data._replace(covariates={"size": torch.ones(N)}))
    ]
    assert len(set(sets)) == 3


def test_runs_are_resumed_saved_and_validated_with_them(data, tmp_path):
    objective = ps.limits.SimVAE(joint_of())
    options = {"batch_size": 20, "progress": False, "valid": data}
    ps.fit(objective, data, epochs=1, checkpoint=tmp_path / "a", **options)
    other = data._replace(
        covariates=data.covariates | {"size": 2 * data.covariates["size"]}
    )
    with pytest.warns(UserWarning, match="covariates"):
        ps.fit(
            objective,
            other,
            epochs=2,
            checkpoint=tmp_path / "a",
            resume=True,
            **options,
        )
    ps.save(objective, tmp_path / "b")
    again = ps.load(tmp_path / "b", into=ps.limits.SimVAE(joint_of()))
    assert_close(ps.embed(again, data), ps.embed(objective, data))
    with pytest.raises(ValueError, match="covariates for .*Corrected.*got none"):
        fitted(joint_of(), data, valid=data.images)


def test_a_compiled_fit_reads_the_covariates_of_each_batch(data, traced):
    start = joint_of()
    state = {k: v.clone() for k, v in start.state_dict().items()}
    found = []
    for compiled in (True, False):
        start.load_state_dict(state)
        torch.manual_seed(0)
        fitted(start, data, epochs=2, compile=compiled)
        found.append(parts_of(start))
    assert traced
    for one, two in zip(*found, strict=True):
        assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_the_divergence_of_crvae_is_that_of_posteriors_at_the_covariates(float64):
    joint = ps.Joint(
        ps.priors.Independent(1), ps.likelihoods.Poisson(), Corrected(), Sized()
    )
    objective = ps.limits.CRVAE(joint).double()
    x, k = torch.randint(9, (5, 2, GENES)).double(), torch.arange(5) % 3
    batch = ps.Batch(x, covariates={"batch": k, "size": torch.ones(5, 1)})
    with torch.no_grad():
        q = joint.encode(batch)
        one, two = (dist.Normal(q.mean[:, v], q.stddev[:, v]) for v in (0, 1))
        kl = torch.distributions.kl_divergence
        expected = (kl(one, two) + kl(two, one)).mean() / 2
        assert_close(objective.divergence(batch), expected)


@pytest.mark.parametrize("streamed", [False, True])
def test_processes_share_rows_with_their_covariates(streamed, data, monkeypatch):
    like = Target(torch.device("cpu"), torch.float32)
    rank = iter([0, 1])
    seen = []
    monkeypatch.setattr(train_batches, "world_size", lambda: 2)
    for r in rank:
        monkeypatch.setattr(train_batches, "rank", lambda r=r: r)
        order = torch.Generator().manual_seed(3)
        known = source(data, None, 8, order, like, streamed=streamed)
        seen.append([known.batch(load) for load in known.epoch()])
    for one, other in zip(*seen, strict=True):
        rows = torch.cat([one.index, other.index])
        assert len(rows.unique()) == 8
        for batch in (one, other):
            for name, c in data.covariates.items():
                assert torch.equal(batch.covariates[name], c[batch.index])


def test_the_laws_of_objectives_hold_with_covariates(data):
    objective = ps.limits.SimVAE(joint_of())
    few = data.rows(slice(6))
    views = few.images.unsqueeze(1).repeat(1, 2, 1)
    ps.testing.check_objective(
        objective, ps.Batch(views, covariates=few.covariates), repeats=5
    )


def test_covariates_have_the_dtype_of_the_objective_and_numbers_stay_whole(data):
    joint = joint_of().double()
    fitted(joint, data._replace(images=data.images.double()))
    wide = data._replace(
        covariates=data.covariates | {"size": data.covariates["size"].double()}
    )
    batch = Items(wide, torch.zeros(())).batch(torch.arange(3))
    kinds = {name: x.dtype for name, x in batch.covariates.items()}
    assert kinds == {"size": torch.float32, "batch": torch.int64}
    known = checked_covariates({"b": np.array([True, False]), "k": [1, 2]}, 2)
    assert {x.dtype for x in known.values()} == {torch.int64}
    assert checked_covariates({"k": np.uint8([200, 3])}, 2)["k"].tolist() == [200, 3]


def test_samples_of_offsets_have_the_mean_of_their_size(float64):
    joint = joint_of(nn.Linear(GENES, 1), likelihood=ps.likelihoods.Poisson()).double()
    size = torch.tensor([[1.0], [8.0]])
    with torch.no_grad():
        p = joint.decode(torch.zeros(2, 1, 1), {"size": size})
        mean = joint.decoder.net.bias.exp() * size
        assert_mean(p.sample((4000,))[:, :, 0], mean)


# Refusals

X = torch.randint(9, (N, GENES)).float()
SIZE = torch.ones(N, 1)


def given(known: object, x: object = X, **parts: object) -> object:
    return fitted(joint_of(**parts), x, covariates=known)


class Conditional(ps.priors.Gaussian):
    def forward(self, views, *, present=None, covariates=None, **drawn):
        return super().forward(views, present=present, **drawn)


class Deaf(nn.Module):
    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x, prior, present=None):
        return prior()


def plain_joint(prior: object = None, guide: object = None) -> ps.Joint:
    return ps.Joint(
        prior or ps.priors.Gaussian(1),
        ps.likelihoods.Poisson(),
        Corrected(),
        ps.nn.MLPDecoder(1, (GENES,)),
        guide=guide or ps.guides.DiagonalGaussian,
    )


K = torch.arange(N) % 3
BARE = (nn.Linear(GENES, 1), ps.nn.MLPDecoder(1, (GENES,)))
test_what_does_not_fit_is_refused = refusals(
    (lambda: given(None), ValueError, "covariates for .*Corrected.*got none"),
    (lambda: given({"size": SIZE}), ValueError, "covariate 'batch'.*got 'size'"),
    (lambda: given({"batch": K}), ValueError, "covariate 'size'.*got 'batch'"),
    (lambda: given({"size": SIZE[1:], "batch": K}), ValueError, r"40 items.*\(39, 1\)"),
    (lambda: given({"size": SIZE / 0, "batch": K}), ValueError, "finite numbers in"),
    (lambda: given({"size": 1.0, "batch": K}), ValueError, r"got shape \(\)"),
    (lambda: given({"size": ["a"] * N, "batch": K}), TypeError, "real numbers in"),
    (lambda: given(SIZE), TypeError, "dictionary"),
    (lambda: given({1: SIZE}), TypeError, "dictionary of names"),
    (lambda: given(pd.DataFrame({"size": [1]})), TypeError, "dict"),
    (
        lambda: given({"size": SIZE.view(N, 1, 1).repeat(1, 2, 1), "batch": K}),
        ValueError,
        "of 40 items|of 20 items with 1 views",
    ),
    (
        lambda: fitted(joint_of(*BARE), X, covariates={"size": SIZE}),
        ValueError,
        "no|without",
    ),
    (
        lambda: fitted(
            joint_of(), ps.data.Split(X, covariates={"size": SIZE}), covariates={}
        ),
        ValueError,
        "covariates once",
    ),
    (
        lambda: fitted(
            joint_of(), DataLoader(X, 10), batch_size=None, covariates={"size": SIZE}
        ),
        ValueError,
        "no covariates for a DataLoader",
    ),
    (lambda: ps.data.Split(X, covariates={"a": SIZE[:3]}), ValueError, "40 items"),
    (
        lambda: (
            ps.data.groups([X, X], covariates={"a": torch.ones(N, 3, 1)})
            and None
            or fitted(
                joint_of(*BARE),
                ps.data.groups([X, X], covariates={"a": torch.ones(N, 3, 1)}),
            )
        ),
        ValueError,
        "of 2 views",
    ),
    (lambda: plain_joint(Conditional(1)), TypeError, "prior without covariates"),
    (lambda: plain_joint(guide=Deaf), TypeError, "guide that passes covariates"),
    (lambda: ps.limits.SimCLR(Corrected()), TypeError, "only encoder, decoder"),
    (
        lambda: ps.limits.CLIP(ps.nn.PerModality([Corrected(), Corrected()])),
        TypeError,
        "only encoder, decoder",
    ),
    (lambda: ps.embed(Corrected(), X), TypeError, "encoder of x alone"),
    (lambda: ps.embed(joint_of(), X), ValueError, "got none"),
    (lambda: ps.reconstruct(joint_of(), X), ValueError, "got none"),
    (lambda: ps.evidence(joint_of(), X), ValueError, "got none"),
    (lambda: ps.to_arviz(joint_of(), X), ValueError, "got none"),
    (lambda: ps.sample(joint_of(), 3), ValueError, "got none"),
    (
        lambda: ps.sample(joint_of(), 3, covariates={"size": SIZE}),
        ValueError,
        "each of 3 items",
    ),
    (
        lambda: ps.sample(joint_of(*BARE), 3, covariates={"size": SIZE[:3]}),
        ValueError,
        "which does not; leave",
    ),
    (
        lambda: ps.traverse(joint_of(BARE[0]), X[:3], [0]),
        ValueError,
        "got none|without covariates",
    ),
    (
        lambda: ps.compare(
            {"a": ps.limits.SimVAE(joint_of())},
            ps.data.arrays(torch.cat([X, X]), K.repeat(2).numpy()),
            views=ps.views.Augment(ps.views.Thinning()),
        ),
        ValueError,
        "without covariates for ps.compare",
    ),
    (
        lambda: ps.testing.check_likelihood(Offset(), event_shape=(3,)),
        TypeError,
        "decoder's output alone",
    ),
    (
        lambda: ps.calibration.simulate(joint_of(), 5),
        ValueError,
        "joint without covariates for a simulation",
    ),
)


class Takes(nn.Module):
    """A network that has a use for covariates."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.net = nn.Linear(before, after)

    def forward(self, x: Tensor, covariates: Any = None) -> Tensor:
        return self.net(x)


class TakesToo(ps.likelihoods.Poisson):
    def forward(self, output: Tensor, covariates: Any = None) -> object:
        return super().forward(output)


COUNTS, SMALL = ps.likelihoods.Poisson(), 4


def nets() -> tuple[nn.Module, nn.Module]:
    return ps.nn.MLPEncoder((SMALL,), 2), ps.nn.MLPDecoder(2, (SMALL,))


test_parts_that_would_get_no_covariates_are_refused = refusals(
    *(
        (make, TypeError, f"expected {name} to take one input")
        for kind in (limits.DenoisingAutoencoder, limits.MaskedAutoencoder)
        for name, make in {
            "encoder": lambda k=kind: k(Takes(SMALL, 2), nets()[1], COUNTS),
            "decoder": lambda k=kind: k(nets()[0], Takes(2, SMALL), COUNTS),
            "likelihood": lambda k=kind: k(*nets(), TakesToo()),
        }.items()
    ),
    (
        lambda: limits.DenoisingAutoencoder(*nets(), COUNTS, noise=Takes(SMALL, SMALL)),
        TypeError,
        "expected noise to take one input",
    ),
    (lambda: limits.BYOL(nets()[0], predictor=Takes(2, 2)), TypeError, "predictor to"),
    (lambda: limits.SimCLR(nets()[0], Takes(2, 2)), TypeError, "projector to"),
    (lambda: ps.entropies.PlugIn(Takes(2, 2)), TypeError, "predictor to take one"),
    (lambda: ps.priors.Predictive(2, Takes(2, 2)), TypeError, "predictor to take one"),
)
