"""What earlier versions wrote still loads, with the values that it had then.

The folders in `saved/` are small objectives, one of each kind, as `save` of 0.1.0 wrote
them after one pass in training mode, and `coupled-mixture` as format 2 was; their terms
and representations are in `values.json`.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.catalogue import DIM, ITEMS, batch, decoder, encoder
from torch import nn
from torch.testing import assert_close

import probssl as ps
from probssl.guides import CoupledLikelihoods

SAVED = Path(__file__).parent / "saved"
VALUES = json.loads((SAVED / "values.json").read_text())


@pytest.mark.parametrize("name", VALUES)
def test_an_older_folder_has_the_values_it_had(name):
    objective, known = ps.load(SAVED / name), VALUES[name]
    x = torch.linspace(0, 1, 192).view(3, 1, 8, 8)
    if name != "resnet":
        x = batch(1).clean
        torch.manual_seed(2)
        terms = torch.stack([torch.as_tensor(t).detach() for t in objective(batch(1))])
        assert_close(terms, torch.tensor(known["terms"]), rtol=1e-4, atol=1e-4)
    z = torch.as_tensor(objective.represent(x))
    assert_close(z.detach(), torch.tensor(known["z"]), rtol=1e-4, atol=1e-5)


def test_a_checkpoint_of_version_0_1_0_is_resumed(tmp_path):
    shutil.copytree(SAVED / "checkpoint", tmp_path / "run")
    objective = ps.limits.BYOL(encoder(), momentum=0.9)
    options = {"epochs": 3, "batch_size": ITEMS // 2, "progress": False}
    options |= {"checkpoint": tmp_path / "run", "resume": True}
    history = ps.fit(objective, ps.data.Groups(batch(1).views), **options)
    rows = json.loads((SAVED / "checkpoint" / "history.json").read_text())
    assert len(history) == 3 and history.rows[:2] == rows[:2]


def simvae(guide: type[nn.Module], net: nn.Module | None = None) -> ps.limits.SimVAE:
    """As `coupled` in the folder of this name."""
    parts = ps.priors.Gaussian(DIM, ps.learned(0.4)), ps.likelihoods.Gaussian(0.5)
    networks = net or encoder(), decoder()
    return ps.limits.SimVAE(ps.Joint(*parts, *networks, guide=guide))


@pytest.mark.parametrize("name", ["coupled", "coupled-mixture"])
def test_what_was_called_coupled_keeps_its_meaning_under_another_name(name, tmp_path):
    old, x = ps.load(SAVED / name), batch(1).clean
    assert type(old.joint.posterior) is CoupledLikelihoods
    again = ps.load(ps.save(old, tmp_path / name))
    assert_close(again.represent(x), old.represent(x))


def test_older_weights_are_refused_where_they_would_mean_something_else(tmp_path):
    folder, x = SAVED / "coupled", batch(1).clean
    old, new = ps.load(folder), simvae(ps.guides.Coupled)
    with pytest.raises(
        ValueError, match=r"expected guides\.CoupledLikelihoods in into"
    ):
        ps.load(folder, into=new)
    with pytest.raises(RuntimeError, match="Missing key"):
        new.load_state_dict(old.state_dict())
    into = ps.load(folder, into=simvae(CoupledLikelihoods))
    assert_close(into.represent(x), old.represent(x))

    options = {"batch_size": ITEMS, "progress": False, "checkpoint": tmp_path}
    data = ps.data.Groups(batch(1).views)
    ps.fit(simvae(CoupledLikelihoods), data, epochs=1, **options)
    with pytest.raises(ValueError, match="the objective in"):
        ps.fit(new, data, epochs=2, resume=True, **options)


class Own(nn.Linear):
    """An encoder of a user's."""

    dim = DIM


def test_an_older_guide_beside_a_foreign_network_loads_into_what_it_is(tmp_path):
    old = simvae(CoupledLikelihoods, Own(6, DIM))
    path = ps.save(old, tmp_path) / "probssl.json"
    description = json.loads(path.read_text()) | {"format": 2}
    del description["digest"], description["weights"]  # which it did not write
    text = json.dumps(description)
    path.write_text(text.replace("CoupledLikelihoods", "Coupled"))
    again = ps.load(tmp_path, into=simvae(CoupledLikelihoods, Own(6, DIM)))
    x = batch(1).clean
    assert_close(again.represent(x), old.eval().represent(x))
    with pytest.raises(
        ValueError, match=r"expected guides\.CoupledLikelihoods in into"
    ):
        ps.load(tmp_path, into=simvae(ps.guides.Coupled, Own(6, DIM)))
