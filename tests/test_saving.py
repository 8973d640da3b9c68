"""Objectives survive a round trip through a folder; what is not ours is refused."""

import json
import math

import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.testing import assert_close

import probssl as ps
from probssl import recipes
from probssl.terms import Batch


def joint(prior: ps.priors.Prior, **options: object) -> ps.Joint:
    return ps.Joint(
        prior,
        ps.likelihoods.Gaussian(ps.learned(0.4), floor=0.1),
        ps.nn.MLPEncoder((5,), 3, hidden=(8,)),
        ps.nn.MLPDecoder(3, (5,), hidden=(8,)),
        **options,
    )


def value(objective: nn.Module, batch: Batch) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.stack([torch.as_tensor(term) for term in objective.eval()(batch)])


OBJECTIVES = {
    "simvae": lambda: ps.limits.SimVAE(
        joint(ps.priors.Gaussian(3, ps.learned(0.4)), guide=ps.guides.Coupled),
        ps.bounds.IWAE(3),
    ),
    "vae": lambda: ps.limits.VAE(joint(ps.priors.Independent(3)), beta=2.5),
    "flat": lambda: ps.limits.SimVAE(joint(ps.priors.Gaussian(3, 0.4, math.inf))),
    "simclr": lambda: ps.limits.SimCLR(
        ps.nn.MLPEncoder((5,), 3), temperature=ps.learned(0.3)
    ),
    "vicreg": lambda: ps.limits.VICReg(
        ps.nn.MLPEncoder((5,), 3), ps.nn.Projector(3, 8, 6), covariance=2.0
    ),
    "identity": lambda: ps.limits.LogDet(nn.Identity(), scale=0.3),
    "free": lambda: ps.limits.Embedding(
        nn.Identity(), ps.priors.Gaussian(5), ps.entropies.LogDeterminant(0.1)
    ),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objective_has_the_same_value_after_a_round_trip(name, tmp_path):
    objective, batch = OBJECTIVES[name](), Batch(torch.randn(7, 2, 5))
    for parameter in objective.parameters():
        nn.init.normal_(parameter, std=0.3)
    before = value(objective, batch)
    ps.save(objective, tmp_path / "run", data="toy")
    loaded = ps.load(tmp_path / "run")
    assert type(loaded) is type(objective) and not loaded.training
    assert_close(value(loaded, batch), before, rtol=0, atol=0)
    assert [k for k, _ in loaded.named_parameters()] == [
        k for k, _ in objective.named_parameters()
    ]


@pytest.mark.parametrize("name", recipes.METHODS)
def test_every_recipe_is_described_without_a_foreign_part(name, tmp_path):
    objective = recipes.objective(name, ps.data.digits())
    ps.save(objective, tmp_path)
    assert "foreign" not in (tmp_path / "probssl.json").read_text()
    ps.load(tmp_path)


def test_double_precision_is_kept_to_the_last_bit(float64, tmp_path):
    objective, batch = OBJECTIVES["simvae"](), Batch(torch.randn(7, 2, 5))
    before = value(objective, batch)
    ps.save(objective, tmp_path)
    torch.set_default_dtype(torch.float32)
    assert_close(value(ps.load(tmp_path), batch), before, rtol=0, atol=0)


def test_samples_come_in_the_precision_that_was_saved(tmp_path):
    ps.save(OBJECTIVES["vae"]().double(), tmp_path)
    prior = ps.load(tmp_path).joint.prior(2)
    assert prior.rsample().dtype == torch.float64


def test_random_hyper_parameter_and_population_come_back(tmp_path):
    objective = ps.limits.SimVAE(
        joint(ps.priors.Gaussian(3, dist.LogNormal(-1.0, 0.5)))
    )
    objective.joint.population = torch.tensor(100.0)
    ps.save(objective, tmp_path)
    loaded, batch = ps.load(tmp_path), Batch(torch.randn(7, 2, 5))
    assert loaded.joint.population == 100
    assert_close(value(loaded, batch), value(objective, batch), rtol=0, atol=0)


def test_own_parts_load_into_an_objective_built_again(tmp_path):
    objective = ps.limits.SimCLR(nn.Sequential(nn.Linear(5, 3), nn.Tanh()))
    ps.save(objective, tmp_path)
    with pytest.raises(ValueError, match="into=objective"):
        ps.load(tmp_path)
    again = ps.limits.SimCLR(nn.Sequential(nn.Linear(5, 3), nn.Tanh()))
    assert ps.load(tmp_path, into=again) is again
    assert_close(again.encoder[0].weight, objective.encoder[0].weight)


def test_a_name_in_a_file_never_causes_an_import(tmp_path):
    ps.save(OBJECTIVES["identity"](), tmp_path)
    text = (tmp_path / "probssl.json").read_text()
    for name in ("os.system", "limits.torch", "antigravity.geohash"):
        (tmp_path / "probssl.json").write_text(text.replace("limits.LogDet", name))
        with pytest.raises(ValueError, match="only parts of probssl"):
            ps.load(tmp_path)


def test_only_distributions_of_pyro_are_built(tmp_path):
    objective = ps.limits.SimVAE(
        joint(ps.priors.Gaussian(3, dist.LogNormal(-1.0, 0.5)))
    )
    ps.save(objective, tmp_path)
    text = (tmp_path / "probssl.json").read_text()
    (tmp_path / "probssl.json").write_text(text.replace("LogNormal", "__builtins__"))
    with pytest.raises(ValueError, match="distribution of Pyro"):
        ps.load(tmp_path)


def test_folders_that_are_no_run_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"probssl\.json"):
        ps.load(tmp_path)
    ps.save(OBJECTIVES["identity"](), tmp_path)
    content = json.loads((tmp_path / "probssl.json").read_text())
    (tmp_path / "probssl.json").write_text("{}")
    with pytest.raises(ValueError, match="as ps.save writes it"):
        ps.load(tmp_path)
    (tmp_path / "probssl.json").write_text(json.dumps(content | {"format": 99}))
    with pytest.raises(ValueError, match="newer probssl"):
        ps.load(tmp_path)


def test_numbers_that_do_not_fit_are_refused(tmp_path):
    ps.save(ps.limits.SimCLR(nn.Linear(5, 3)), tmp_path)
    with pytest.raises(ValueError, match="arguments it was saved with"):
        ps.load(tmp_path, into=ps.limits.SimCLR(nn.Linear(5, 4)))
