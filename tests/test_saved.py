"""What version 0.1.0 wrote still loads, with the values that it had then.

The folders in `saved/` are small objectives, one of each kind, as `save` of 0.1.0 wrote
them after one pass in training mode; `values.json` has their terms and representations.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.catalogue import ITEMS, batch, encoder
from torch.testing import assert_close

import probssl as ps

SAVED = Path(__file__).parent / "saved"
VALUES = json.loads((SAVED / "values.json").read_text())


@pytest.mark.parametrize("name", VALUES)
def test_a_folder_of_version_0_1_0_has_the_values_it_had(name):
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
