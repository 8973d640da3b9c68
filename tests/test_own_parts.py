"""Own priors, likelihoods and encoders: each verb on each part, by plain numbers."""

import math
import re
from functools import cache

import numpy as np
import pytest
import torch
from helpers.own_parts import DIM, ENCODERS, ITEMS, LIKELIHOODS, PRIORS, model, names
from torch.testing import assert_close

import probssl as ps

EACH = list(names())
each = pytest.mark.parametrize("name", EACH)
# Long traces; the rules that integrate y out of them are those of others too.
LONG = [
    f"prior: {name}"
    for name in (
        "bimodal",
        "random scale",
        "scale mixture",
        "Student-t content",
        "Cauchy content",
    )
]


def marked(names):
    """The names, of which long traces are slow."""
    slow = pytest.mark.slow
    return [pytest.param(n, marks=slow) if n in LONG else n for n in names]


@cache
def fitted(name, compile=False):
    torch.manual_seed(0)
    own = model(name)
    history = ps.fit(
        own.objective,
        ps.data.groups(own.views),
        epochs=2,
        batch_size=12,
        progress=False,
        compile=compile,
    )
    return own, history


@pytest.mark.parametrize("name", PRIORS)
def test_density_of_an_own_prior_is_its_mean_over_draws_of_y(name):
    own = PRIORS[name]
    prior = ps.priors.Custom(own.conditional(), dim=DIM, y_prior=own.y_prior())
    with torch.no_grad():
        y = prior.content().sample((200_000,))
        z = prior.given(y[:5]).sample((2,)).movedim(0, 1)  # (item, view, dim)
        each = sum(prior.given(y).log_prob(v.unsqueeze(1)) for v in z.unbind(1))
        weights = each.exp()
        mean = weights.mean(1)
        error = weights.std(1) / mean / math.sqrt(len(y))
        found = prior.log_prob(z)
    assert ((found - mean.log()).abs() < 5 * error + 0.05).all(), found


@pytest.mark.parametrize("name", [n for n, own in PRIORS.items() if own.refused])
def test_a_prior_off_the_space_of_the_guide_is_refused_in_words(name):
    with pytest.raises(ValueError, match=f"guide.*{PRIORS[name].refused}"):
        model(f"prior: {name}")


@each
def test_fit_moves_parameters_and_reports_nats(name):
    torch.manual_seed(0)
    before = {k: v.clone() for k, v in model(name).objective.state_dict().items()}
    own, history = fitted(name)
    assert np.isfinite(history["value"]).all()
    after = own.objective.state_dict()
    moved = [k for k, v in before.items() if not torch.equal(v, after[k])]
    assert moved


@pytest.mark.parametrize("name", marked(EACH))
def test_traced_steps_are_those_of_eager_ones(name, traced, caplog):
    """Or the log says at once why there are none."""
    eager, compiled = fitted(name)[1], fitted.__wrapped__(name, compile=True)[1]
    np.testing.assert_allclose(compiled["value"], eager["value"], rtol=1e-4)
    assert traced or "would take minutes" in caplog.text


@pytest.mark.slow  # a quarter of a minute for each
@each
def test_compiled_steps_are_those_of_eager_ones(name, caplog):
    """Or they are eager ones, and the log says why."""
    eager, compiled = fitted(name)[1], fitted.__wrapped__(name, compile=True)[1]
    np.testing.assert_allclose(compiled["value"], eager["value"], rtol=1e-3)
    if "is not compiled" in caplog.text:
        assert re.search("would take minutes|dropout of attention", caplog.text)


@each
def test_saved_and_loaded_it_has_the_same_value(name, tmp_path):
    own, _ = fitted(name)
    folder = ps.save(own.objective, tmp_path / "run")
    torch.manual_seed(5)
    again = ps.load(folder, into=model(name).objective)

    def value(objective):
        torch.manual_seed(3)
        with torch.no_grad():
            return float(sum(objective(ps.Batch(own.views))))

    assert_close(value(again.eval()), value(own.objective.eval()))


@each
def test_terms_are_plain_sums(name):
    """log p(x|z) of each item and view is the sum over its elements."""
    own, _ = fitted(name)
    joint = own.objective.joint
    z = torch.randn(ITEMS, 2, DIM)
    with torch.no_grad():
        found = joint.decode(z).log_prob(own.views)
        output = joint.decoder(z.flatten(0, 1)).unflatten(0, (ITEMS, 2))
        elements = joint.likelihood(output).log_prob(own.views)
    assert found.shape == (ITEMS, 2)
    assert_close(found, elements.reshape(ITEMS, 2, -1).sum(-1))


@each
def test_evidence_is_above_the_bound_and_finite(name):
    own, _ = fitted(name)
    found = ps.evidence(own.objective, ps.data.groups(own.views), particles=50)
    assert np.isfinite(found.log_evidence).all()
    with torch.no_grad():
        bounds = [float(sum(own.objective(ps.Batch(own.views)))) for _ in range(10)]
    error = 5 * np.std(bounds) / math.sqrt(len(bounds))
    assert np.mean(found.log_evidence) > np.mean(bounds) - error


@each
def test_its_posterior_opens_in_arviz(name):
    own, _ = fitted(name)
    idata = ps.to_arviz(own.objective, ps.data.groups(own.views), draws=7, items=3)
    z = idata.posterior["z"]
    assert z.sizes["draw"] * z.sizes["chain"] == 7 and np.isfinite(z.values).all()


ACCEPTED = [name for name, own in ENCODERS.items() if not own.refused]


@pytest.mark.parametrize("name", ACCEPTED)
def test_embed_is_the_output_of_an_own_encoder(name):
    own = ENCODERS[name]
    x = torch.randn(ITEMS, 2, *own.event)
    simclr, simvae = ps.limits.SimCLR(own.module()), model(f"encoder: {name}").objective
    for objective, encoder in (
        (simclr, simclr.encoder),
        (simvae, simvae.joint.posterior.factors.encoder),
    ):
        ps.fit(objective, ps.data.groups(x), epochs=1, progress=False)
        with torch.no_grad():
            expected = encoder.eval()(x[:, 0])
        assert_close(torch.as_tensor(ps.embed(objective, x[:, 0])), expected)


@pytest.mark.parametrize("name", sorted(set(ENCODERS) - set(ACCEPTED)))
@pytest.mark.parametrize("world", ["SimCLR", "SimVAE"])
def test_what_is_no_encoder_is_refused_in_words(name, world):
    own = ENCODERS[name]
    x = ps.data.groups(torch.randn(ITEMS, 2, *own.event))
    with pytest.raises((TypeError, ValueError), match=f"expected.*{own.refused}"):
        ps.fit(
            ps.limits.SimCLR(own.module())
            if world == "SimCLR"
            else model(f"encoder: {name}").objective,
            x,
            epochs=1,
            progress=False,
        )


@pytest.mark.filterwarnings("ignore:.*undecided")  # where importance sampling refuses
@pytest.mark.slow  # of an importance-sampled prior they take minutes
@pytest.mark.parametrize("name", PRIORS)
def test_laws_of_an_own_prior(name):
    own = PRIORS[name]
    ps.testing.check_prior(
        ps.priors.Custom(own.conditional(), dim=DIM, y_prior=own.y_prior())
    )


@pytest.mark.filterwarnings("ignore:Own|ZINB")  # Pyro validates arguments by default
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_laws_of_an_own_likelihood(name):
    own = LIKELIHOODS[name]
    try:
        ps.testing.check_likelihood(own.module(), torch.randn(3, *own.output))
    except ps.testing.LawError as error:
        assert error.laws == (own.breaks,)
    else:
        assert not own.breaks


@pytest.mark.slow
@each
def test_compare_has_a_row_for_it(name):
    own, _ = fitted(name)
    x = own.views.flatten(0, 1).repeat(8, *[1] * (own.views.ndim - 2))
    labels = torch.arange(len(x)) % 2
    data = ps.data.arrays(x.numpy(), labels)
    views = ps.views.Augment(torch.nn.Identity(), clamp=False)
    table = ps.compare({"own": own.objective}, data, views=views, progress=False)
    assert "own" in str(table)
