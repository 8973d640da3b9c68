"""The comparison measures alike: with unit weights, and never off a loss."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import probssl as ps
from probssl import recipes
from probssl.compare import gaussian_terms, own_terms, sampled


@pytest.fixture(scope="module")
def digits() -> ps.data.Dataset:
    digits = ps.data.digits()
    train, test = digits.train.take(300), digits.test.take(150)
    return digits._replace(train=train, test=test)


def test_log_det_terms_of_gaussian_views_bound_their_mutual_information(float64):
    prior, n = ps.priors.Gaussian(4, 0.5), 100_000
    z = prior(2).rsample((n,))
    terms = gaussian_terms(z)
    # E log N(z'; z, 2 s²) + H[z] in closed form, with Var(z) = 1 + s².
    exact = 2 * (math.log(1.25) - math.log(2 * 0.25))
    assert_close(terms["log_det"], exact, rtol=0, atol=0.02)
    assert terms["log_det"] < float(prior.mutual_information())


def test_log_det_does_not_move_when_z_is_rescaled_or_rotated(float64):
    z = torch.randn(200, 1, 5) + 0.3 * torch.randn(200, 2, 5)
    rotation = torch.linalg.qr(torch.randn(5, 5)).Q
    once, moved = gaussian_terms(z), gaussian_terms(7 * z @ rotation + 3)
    assert_close(moved["log_det"], once["log_det"])
    assert abs(moved["gaussian_alignment"] - once["gaussian_alignment"]) > 1


def test_log_det_is_left_out_where_the_covariance_is_singular():
    assert gaussian_terms(torch.zeros(50, 2, 3)) == {}
    flat = torch.randn(50, 2, 1).expand(-1, -1, 3).double()
    assert gaussian_terms(flat) == {}


def test_terms_of_a_bound_carry_unit_weights(digits):
    vae = recipes.objective("vae", digits)
    heavy = ps.limits.VAE(vae.joint, beta=50.0)
    views = sampled(recipes.views(digits), digits.test, seed=0)
    values = []
    for objective in (vae, heavy):
        torch.manual_seed(0)
        values.append(own_terms(objective, views))
    assert values[0] == values[1]
    assert values[0]["elbo"] == pytest.approx(sum(list(values[0].values())[:3]))


def test_flat_content_has_no_evidence_to_list(digits):
    joint = recipes.joint(digits, ps.priors.Gaussian(10, 0.2, math.inf))
    views = sampled(recipes.views(digits), digits.test, seed=0)
    assert own_terms(ps.limits.SimVAE(joint), views) == {}


def test_table_has_a_row_for_each_method_and_baseline(digits, tmp_path):
    methods = {name: recipes.objective(name, digits) for name in ("VAE", "SimCLR")}
    found = ps.compare(methods, digits, seconds={"VAE": 3.0}, progress=False)
    rows = ["VAE", "SimCLR", "raw pixels", "PCA-10", "untrained encoder"]
    assert list(found.table.index) == rows
    assert found.table["seconds"]["VAE"] == 3
    assert math.isnan(found.table["elbo"]["SimCLR"])
    found.to_json(tmp_path / "comparison.json")
    again = ps.Comparison.from_json(tmp_path / "comparison.json")
    assert again.methods == found.methods and str(again) == str(found)


def test_comparison_leaves_the_random_state_and_the_objectives_alone(digits):
    objective = recipes.objective("vicreg", digits).train()
    before = {k: v.clone() for k, v in objective.state_dict().items()}
    state = torch.get_rng_state()
    ps.compare({"VICReg": objective}, digits, baselines=False, progress=False)
    assert_close(torch.get_rng_state(), state)
    assert objective.training
    for key, value in objective.state_dict().items():
        assert_close(value, before[key], rtol=0, atol=0)


def test_evidences_under_different_measures_are_refused(digits):
    grey = recipes.objective("vae", digits)
    dense = recipes.objective("vae", digits._replace(levels=255))
    with pytest.raises(ValueError, match="one measure"):
        ps.compare({"grey": grey, "dense": dense}, digits)


def test_missing_labels_and_methods_are_refused(digits):
    unlabelled = digits._replace(train=digits.train._replace(labels=None))
    with pytest.raises(ValueError, match="labels"):
        ps.compare({"SimCLR": recipes.objective("simclr", digits)}, unlabelled)
    with pytest.raises(ValueError, match="at least one objective"):
        ps.compare({}, digits)


def test_any_encoder_can_be_compared(digits):
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    found = ps.compare({"linear": encoder}, digits, baselines=False, progress=False)
    assert found.table["linear_probe"]["linear"] > 0.3


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (7,)])
def test_recipes_fit_the_shape_of_the_data(shape):
    images = torch.rand(40, *shape)
    data = ps.data.arrays(images, torch.arange(40) % 2)
    for name in recipes.METHODS:
        objective = recipes.objective(name, data, dim=4)
        views = recipes.views(data)(data.train.images)
        assert sum(objective(ps.Batch(views))).isfinite()
