"""Parametric maps: neighbours as views, dimensions taken away in stages."""

import math
import pickle

import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError
from sklearn.utils.estimator_checks import check_estimator
from torch import nn
from torch.testing import assert_close

import probssl as ps
from probssl import maps
from probssl.maps import Neighbourhood, NeighbourMap
from probssl.terms import Batch

SHORT = {"neighbours": 3, "epochs": 3, "batch_size": 32, "annealing": 8}
SHORT |= {"progress": False}


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(40, 1, 8, 8)


@pytest.fixture
def rows() -> np.ndarray:
    """Three lumps."""
    return (torch.randn(60, 5) + 8 * torch.eye(5)[torch.arange(60) % 3]).numpy()


def short(**changes: object) -> NeighbourMap:
    return NeighbourMap(**{**SHORT, "random_state": 0, **changes})


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("dim", [1, 3])
@pytest.mark.parametrize("annealing", [None, 8])
def test_a_map_has_n_components_dimensions(images, dim, annealing, joint):
    model = short(n_components=dim, annealing=annealing, joint=joint, epochs=3)
    assert model.fit_transform(images).shape == (40, dim)
    assert model.transform(images[:7]).shape == (7, dim)
    names = [f"neighbourmap{i}" for i in range(dim)]
    assert list(model.get_feature_names_out()) == names


def test_items_may_be_rows_images_bytes_or_a_split(rows, images):
    assert short().fit_transform(rows).shape == (60, 2)
    assert short().fit_transform(torch.as_tensor(rows)).shape == (60, 2)
    data = (255 * images).to(torch.uint8)
    split = ps.data.Split(data, torch.zeros(40).long())
    z = [short().fit_transform(x) for x in (split, (data / 255).numpy(), data / 255)]
    assert np.array_equal(z[1], z[2])
    assert_close(*map(torch.tensor, z[:2]), atol=1e-3, rtol=1e-3)


def test_a_fit_is_reproducible_and_leaves_the_global_generator_alone(rows):
    before = torch.random.get_rng_state()
    one, two, other = (short(random_state=s).fit_transform(rows) for s in (0, 0, 1))
    assert np.array_equal(one, two) and not np.allclose(one, other)
    assert torch.equal(before, torch.random.get_rng_state())


def test_without_a_random_state_it_follows_that_of_torch(rows):
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(short(random_state=None).fit_transform(rows))
    assert np.array_equal(found[0], found[1]) and not np.allclose(found[0], found[2])


def test_the_map_of_the_fitted_items_is_that_of_their_transform(rows):
    model = short()
    z = model.fit_transform(rows)
    assert np.array_equal(z, model.transform(rows))
    assert_close(z[:9], model.transform(rows[:9]), atol=1e-5, rtol=1e-5)


def test_neighbours_are_the_nearest_other_items_and_are_drawn_alike():
    x = torch.tensor([[0.0], [1.0], [3.0], [7.0], [7.0]])
    sampler = Neighbourhood(x, 2)
    near = [{1, 2}, {0, 2}, {1, 0}, {4, 2}, {3, 2}]
    assert [set(row.tolist()) for row in sampler.near] == near
    drawn = sampler(torch.zeros(4_000, 1))
    assert drawn.shape == (4_000, 2) and not drawn.views[:, 0].any()
    share = (drawn.views[:, 1] == 1).float().mean()
    assert abs(share - 0.5) < 5 * 0.5 / math.sqrt(4_000)
    assert ((drawn.views[:, 1] == 1) | (drawn.views[:, 1] == 3)).all()
    assert sampler.numbers.flatten().tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("views", [1, 3])
def test_item_and_neighbour_have_as_many_views_each(views):
    x = torch.arange(6.0)[:, None].repeat(1, 4)
    shifted = ps.views.Augment(ps.views.Noise(1e-3), views=views)
    batch = Neighbourhood(x, 1, shifted)(torch.tensor([[5.0], [0.0]]))
    assert batch.views.shape == (2, 2 * views, 4)
    assert_close(batch.clean, x[[5, 0]])
    expected = torch.tensor([[5.0] * views + [4] * views, [0.0] * views + [1] * views])
    assert_close(batch.views.mean(-1), expected, atol=0.01, rtol=0)


def test_bytes_are_shown_as_fractions():
    x = torch.tensor([[0], [51], [255]], dtype=torch.uint8)
    batch = Neighbourhood(x, 1)(torch.tensor([[2.0]]))
    assert_close(batch.views.flatten(), torch.tensor([1.0, 0.2]))


def test_neighbours_may_be_those_of_features():
    x = torch.arange(4.0)[:, None]
    sampler = Neighbourhood(x, 1, features=torch.tensor([0.0, 5.0, 1.0, 5.5])[:, None])
    assert sampler.near.flatten().tolist() == [2, 3, 0, 1]
    with pytest.raises(ValueError, match="features of 4 items, got 3"):
        Neighbourhood(x, 1, features=x[:3])


def test_neighbours_are_refined_by_the_representations_of_the_encoder(
    rows, monkeypatch
):
    seen: list[torch.Tensor] = []
    embed = maps.embed

    def spied(*arguments):
        seen.append(torch.from_numpy(embed(*arguments)))
        return seen[-1].numpy()

    monkeypatch.setattr(maps, "embed", spied)
    near = torch.from_numpy(short().fit(rows).neighbours_)
    (learned,) = (z for z in seen if len(z) == len(rows))
    distance = torch.cdist(learned, learned).fill_diagonal_(math.inf)
    expected = distance.topk(3, largest=False).indices
    assert torch.equal(near.sort().values, expected.sort().values)
    x = torch.as_tensor(rows)
    first = short(refine=False).fit(rows).neighbours_
    assert np.array_equal(first, Neighbourhood(x, 3).near)


@pytest.mark.parametrize("joint", [True, False])
def test_the_value_is_that_of_t_sne_for_pairs_of_neighbours(joint):
    """Against P and Q written as matrices, and a kernel of one degree of freedom."""
    encoder = nn.Linear(3, 4)
    model = short(encoder=encoder, joint=joint, temperature=2.0).fit(torch.randn(9, 3))
    views = torch.randn(6, 2, 3)
    z = model.objective_.represent(views.flatten(0, 1), "projector")
    weight = 1 / (1 + (z[:, None] - z).square().sum(-1) / 2)
    weight = weight - torch.eye(12)
    mate = torch.arange(12) ^ 1
    q = weight / (weight.sum() if joint else weight.sum(1, keepdim=True))
    expected = q[torch.arange(12), mate].log().mean()
    expected = expected + math.log(12 * 11 if joint else 11)
    assert_close(sum(model.objective_(Batch(views))), expected, rtol=1e-4, atol=1e-4)


def test_a_fresh_head_is_trained_alone_before_all_else(images, monkeypatch):
    seen: list[dict[str, torch.Tensor]] = []
    train = maps.fit

    def spied(objective, *args, **kwargs):
        before = {k: p.clone() for k, p in objective.named_parameters()}
        history = train(objective, *args, **kwargs)
        after = dict(objective.named_parameters())
        seen.append({"before": before, "after": {k: after[k].clone() for k in after}})
        return history

    monkeypatch.setattr(maps, "fit", spied)
    model = short(epochs=6).fit(images)
    wide, head, whole = seen
    last = "projector.net.3.weight"
    assert wide["after"][last].shape[0] == 8 and head["before"][last].shape[0] == 2
    for name, value in wide["after"].items():
        if name != last:  # what was learned is kept
            assert torch.equal(head["before"][name], value), name
            assert torch.equal(head["after"][name], value), name
            assert not torch.equal(whole["after"][name], value), name
    assert not torch.equal(head["before"][last], head["after"][last])
    lengths = {stage: len(history) for stage, history in model.history_.items()}
    assert lengths == {"wide": 2, "head": 1, "map": 3}


def test_a_copy_of_the_encoder_is_trained_and_frozen_parameters_stay(rows):
    encoder = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 4))
    encoder[0].requires_grad_(False)
    before = [p.clone() for p in encoder.parameters()]
    model = short(encoder=encoder).fit(rows)
    assert all(map(torch.equal, encoder.parameters(), before))
    trained = model.objective_.encoder
    assert model.encoder is encoder and trained is not encoder
    assert torch.equal(trained[0].weight, encoder[0].weight)
    assert not torch.equal(trained[1].weight, encoder[1].weight)
    assert [p.requires_grad for p in trained.parameters()] == [False] * 2 + [True] * 2


def test_an_encoder_in_double_precision_makes_a_map_in_it(rows):
    assert short(encoder=nn.Linear(5, 6).double()).fit_transform(rows).dtype == "f8"


def test_positive_pairs_may_come_from_views_alone(images):
    model = short(neighbours=0, views=ps.views.Augment()).fit(images)
    assert model.neighbours_ is None
    assert model.transform(images).shape == (40, 2)


def test_lumps_are_kept_apart_and_new_items_join_them(rows):
    labels = np.arange(60) % 3
    model = short(epochs=30).fit(rows[:45])
    z, new = model.transform(rows[:45]), model.transform(rows[45:])
    assert ps.evaluation.knn(z, labels[:45], new, labels[45:]) == 1


def test_it_is_an_estimator_of_scikit_learn():
    # What is skipped are arrays of other libraries, unless SCIPY_ARRAY_API is set.
    model = short(neighbours=1, annealing=None, epochs=1)
    results = check_estimator(model, on_skip=None)
    assert {each["status"] for each in results} <= {"passed", "skipped"}


def test_the_objective_can_be_saved_and_the_map_pickled(images, tmp_path):
    model = short().fit(images)
    z = model.transform(images)
    loaded = ps.load(ps.save(model.objective_, tmp_path / "map"))
    assert np.array_equal(ps.embed(loaded, images, layer="projector"), z)
    assert np.array_equal(pickle.loads(pickle.dumps(model)).transform(images), z)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"n_components": 0}, "n_components as a whole number of at least 1"),
        ({"n_components": 1.5}, "n_components as a whole number"),
        ({"neighbours": -1}, "neighbours as a whole number of at least 0"),
        ({"neighbours": 40}, "neighbours as a whole number from 1 to 39"),
        ({"neighbours": 0}, "expected neighbours or views"),
        ({"epochs": 2}, "epochs as a whole number of at least 3"),
        ({"annealing": 0}, "annealing as a whole number of at least 1"),
        ({"batch_size": 1}, "batch_size as a whole number of at least 2"),
        ({"dof": 0.0}, "dof as a positive finite number"),
        ({"temperature": math.inf}, "temperature as a positive finite number"),
        ({"learning_rate": -1.0}, "learning_rate as a positive finite number"),
        ({"encoder": nn.Linear}, "encoder as a torch.nn.Module"),
    ],
)
def test_bad_settings_are_named(images, change, words):
    with pytest.raises((TypeError, ValueError), match=words):
        short(**change).fit(images)


def test_bad_items_are_named(images):
    broken = images.clone()
    broken[3, 0, 1, 1] = math.nan
    for x, words in (
        (broken, "NaN"),
        (images[:1], "minimum of 2"),
        (torch.ones(9, 1, 8, 8), "items that differ, got 9 times the same"),
    ):
        with pytest.raises(ValueError, match=words):
            short().fit(x)
    with pytest.raises(NotFittedError):
        short().transform(images)
    model = short().fit(images)
    with pytest.raises(ValueError, match=r"shape \(1, 8, 8\), like the fitted"):
        model.transform(images[..., :7])
    with pytest.raises(ValueError, match="NaN"):
        model.transform(broken)
    with pytest.raises(ValueError, match="at least 2 views, got 40 with 1|32 with 1"):
        short(neighbours=0, views=ps.views.Augment(views=1)).fit(images)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_row_numbers_are_exact_in_every_dtype(dtype):
    """A float of 16 bits has no numbers between 2,048 and 2,050, or 256 and 258."""
    items = torch.arange(70_000.0)[:, None]
    sampler = Neighbourhood.__new__(Neighbourhood)
    nn.Module.__init__(sampler)
    sampler.items, sampler.neighbours, sampler.views = items, 1, None
    sampler.near = torch.arange(70_000)[:, None]
    assert sampler.numbers.shape == (70_000, 3)
    rows = sampler.numbers.to(dtype).long()
    assert torch.equal(rows @ torch.tensor([1, 256, 65_536]), torch.arange(70_000))
    drawn = sampler(sampler.numbers[66_000:].to(dtype))
    assert torch.equal(drawn.clean, items[66_000:].to(dtype))


def test_neighbours_are_found_far_from_zero():
    x = torch.randn(300, 2, dtype=torch.float64)
    x = (x * 2**20).round() / 2**20  # so that a sum with 2^30 is exact
    near = Neighbourhood(x, 3).near
    assert torch.equal(Neighbourhood(x + 2**30, 3).near, near)


def test_views_that_may_be_absent_are_refused_before_the_search(rows, monkeypatch):
    def half(x):
        present = torch.tensor([True, False]).expand(len(x), 2)
        return Batch(torch.stack([x, x], 1), present=present)

    x = torch.as_tensor(rows)
    late = Neighbourhood(x, 3)
    late.views = half
    with pytest.raises(ValueError, match="all views to be present .* got a mask"):
        late(late.numbers[:4])
    monkeypatch.setattr(maps, "nearest", None)
    for use in (lambda: Neighbourhood(x, 3, half), lambda: short(views=half).fit(x)):
        with pytest.raises(ValueError, match="all views to be present .* got a mask"):
            use()


def test_the_look_at_the_views_leaves_the_generator_alone(rows):
    before = torch.random.get_rng_state()
    Neighbourhood(torch.as_tensor(rows), 3, lambda x: torch.randn_like(x)[:, None])
    assert torch.equal(torch.random.get_rng_state(), before)
