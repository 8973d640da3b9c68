import copy
import math

import pytest
import torch
from helpers.checks import refusals
from torch import nn
from torch.testing import assert_close

import probssl as ps
from probssl.nn import (
    ConvDecoder,
    ConvEncoder,
    Decoder,
    Encoder,
    MLPDecoder,
    MLPEncoder,
    PerModality,
    Projector,
    ResNet18Decoder,
    ResNet18Encoder,
    each_view,
)

IMAGES = [(1, 8, 8), (3, 9, 14), (1, 28, 28), (3, 32, 32), (2, 64, 64), (1, 40, 23)]
ARRAYS = [(), (1,), (50,), (3, 4), (2, 3, 4, 5)]
ENCODERS = [MLPEncoder, ConvEncoder, ResNet18Encoder]
DECODERS = [MLPDecoder, ConvDecoder, ResNet18Decoder]


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("event_shape", IMAGES, ids=str)
@pytest.mark.parametrize("net", ENCODERS)
def test_encoder_maps_images_of_any_size_to_its_dimension(net, event_shape):
    encoder, x = net(event_shape, 5), torch.rand(3, *event_shape)
    assert isinstance(encoder, Encoder)
    assert encoder.trunk(x).shape == (3, encoder.width)
    assert encoder(x).shape == (3, encoder.dim) == (3, 5)


@pytest.mark.parametrize("event_shape", IMAGES, ids=str)
@pytest.mark.parametrize("net", DECODERS)
def test_decoder_meets_images_of_any_size_exactly(net, event_shape):
    decoder = net(5, event_shape)
    assert isinstance(decoder, Decoder)
    assert decoder(torch.randn(3, 5)).shape == (3, *event_shape)


@pytest.mark.parametrize("hidden", [(), (7,), (7, 6, 5)], ids=str)
@pytest.mark.parametrize("event_shape", ARRAYS, ids=str)
def test_mlp_takes_events_of_any_shape(event_shape, hidden):
    encoder, decoder = (
        MLPEncoder(event_shape, 2, hidden),
        MLPDecoder(2, event_shape, hidden),
    )
    x = torch.randn(4, *event_shape)
    assert decoder(encoder(x)).shape == x.shape
    assert encoder(x[:0]).shape == (0, 2)  # no item is a batch, too


def test_encoder_is_the_head_of_its_trunk():
    trunk = nn.Linear(3, 6)
    encoder, x = Encoder(trunk, 6, 2), torch.randn(4, 3)
    assert encoder.trunk is trunk
    assert_close(encoder.features(x), trunk(x))
    assert_close(encoder(x), trunk(x) @ encoder.head.weight.mT + encoder.head.bias)


def test_without_hidden_layers_encoder_and_decoder_are_affine():
    encoder, decoder = MLPEncoder((2, 3), 4, ()).double(), MLPDecoder(4, (2, 3), ())
    x, y = torch.randn(2, 5, 2, 3, dtype=torch.float64)
    assert_close(encoder(x + y) - encoder(y), encoder(x) - encoder(0 * x))
    z, w = torch.randn(2, 5, 4, dtype=torch.float64)
    decoder = decoder.double()
    assert_close(decoder(z + w) - decoder(w), decoder(z) - decoder(0 * z))


def test_decoder_wraps_any_net_with_as_many_outputs():
    decoder = Decoder(nn.Linear(3, 12), 3, (2, 6))
    z = torch.randn(5, 3)
    assert_close(decoder(z).flatten(1), decoder.net(z))


@pytest.mark.parametrize("event_shape", [(1, 8, 8), (3, 9, 10)], ids=str)
@pytest.mark.parametrize("nets", list(zip(ENCODERS, DECODERS, strict=True)))
def test_gradients_reach_every_parameter_in_double_precision(nets, event_shape):
    # With a 1 x 1 map batch norm needs items that differ: ten of them.
    x = torch.rand(10, *event_shape, dtype=torch.float64)
    encoder, decoder = (
        nets[0](event_shape, 3).double(),
        nets[1](3, event_shape).double(),
    )
    output = decoder(encoder(x))
    assert output.dtype == torch.float64
    (output * torch.randn_like(output)).sum().backward()
    for net in (encoder, decoder):
        for name, parameter in net.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_gradients_reach_every_parameter_of_a_projector(layers):
    projector = Projector(10, width=12, out=4, layers=layers).double()
    z = torch.randn(16, 10, dtype=torch.float64)
    (projector(z) * torch.randn(16, 4, dtype=torch.float64)).sum().backward()
    linear = [m for m in projector.modules() if isinstance(m, nn.Linear)]
    assert len(linear) == layers and all(m.bias is None for m in linear)
    for name, parameter in projector.named_parameters():
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("net", ENCODERS)
def test_evaluation_takes_images_one_by_one_or_together(net):
    net = net((1, 28, 28), 5).double()
    x = torch.rand(4, 1, 28, 28, dtype=torch.float64)
    net(x)  # moves the statistics of batch norm
    net.eval()
    before = copy.deepcopy(net.state_dict())
    z = net(x)
    assert_close(torch.cat([net(image[None]) for image in x]), z)
    assert_close(net(x.flip(0)).flip(0), z)
    assert_close(dict(net.state_dict()), dict(before), rtol=0, atol=0)


def test_conv_encoder_is_the_same_in_training_and_evaluation():
    encoder, x = ConvEncoder((1, 8, 8), 5), torch.rand(4, 1, 8, 8)
    assert_close(encoder.train()(x), encoder.eval()(x), rtol=0, atol=0)


def test_resnet18_has_11_million_parameters():
    # stem, stages of 64 to 512 channels, counted by hand with their batch norms
    stem = 27 * 64 + 128
    stages = [4 * (9 * 64**2 + 128)]
    for c in (128, 256, 512):
        shortcut = c // 2 * c + 2 * c
        stages += [9 * c // 2 * c + 3 * 9 * c**2 + 4 * 2 * c + shortcut]
    encoder = ResNet18Encoder((3, 32, 32), 10)
    assert parameters(encoder.trunk) == stem + sum(stages) == 11_168_832
    assert parameters(encoder) == 11_173_962


def test_without_residuals_only_the_shortcuts_of_resnet18_remain():
    encoder, x = ResNet18Encoder((3, 16, 16), 4).double(), torch.rand(2, 3, 16, 16)
    blocks = [m for m in encoder.modules() if hasattr(m, "shortcut")]
    for block in blocks:
        nn.init.zeros_(block.residual[-1].weight)  # of the last batch norm
    encoder, h = encoder.eval(), x.double()
    maps = encoder.trunk[:4](h)  # check of the shape, convolution, batch norm, ReLU
    for block in (b for b in blocks if not isinstance(b.shortcut, nn.Identity)):
        maps = block.shortcut(maps).relu()
    assert len(blocks) == 8 and maps.shape == (2, 512, 2, 2)
    assert_close(encoder(h), encoder.head(maps.mean((2, 3))))


def test_mlp_parameters_count_as_the_paper_of_simvae_has_them():
    encoder = MLPEncoder((1, 28, 28), 10, hidden=(2000, 500, 500))
    widths = (784, 2000, 500, 500, 10)
    pairs = zip(widths, widths[1:], strict=False)
    assert parameters(encoder) == sum((a + 1) * b for a, b in pairs)


@pytest.mark.parametrize(
    ("net", "arguments"),
    [
        (MLPEncoder, {"event_shape": (3, 4), "dim": 2, "hidden": (5, 6)}),
        (ConvEncoder, {"event_shape": (1, 9, 8), "dim": 2, "channels": (4, 8)}),
        (ResNet18Encoder, {"event_shape": (1, 8, 8), "dim": 2}),
        (MLPDecoder, {"dim": 2, "event_shape": (3, 4), "hidden": (5, 6)}),
        (ConvDecoder, {"dim": 2, "event_shape": (1, 9, 8), "channels": (4, 8)}),
        (ResNet18Decoder, {"dim": 2, "event_shape": (1, 8, 8)}),
        (Projector, {"dim": 3, "width": 4, "out": 5, "layers": 3}),
    ],
)
def test_net_comes_back_from_a_folder(net, arguments, tmp_path):
    original = net(**arguments)
    shape = arguments["event_shape"] if isinstance(original, Encoder) else None
    x = torch.randn(6, *(shape or (original.dim,)))
    original(x)
    expected = original.eval()(x)
    for again in (ps.load(ps.save(original, tmp_path)), copy.deepcopy(original)):
        assert_close(again(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize("net", ENCODERS)
@pytest.mark.parametrize("shape", [(1, 8, 9), (4, 2, 1, 8, 8), (4, 8, 8), (4, 64)])
def test_encoder_refuses_another_event_shape(net, shape):
    with pytest.raises(ValueError, match=r"expected \(n, 1, 8, 8\), got \(.*flatten"):
        net((1, 8, 8), 2)(torch.rand(shape))


test_sizes_that_do_not_fit_are_refused = refusals(
    (lambda: MLPEncoder(50, 2), TypeError, "event_shape as a sequence.* got 50"),
    (lambda: MLPEncoder((8.0, 8.0), 2), TypeError, "each a whole number"),
    (lambda: MLPDecoder(2, (0, 3)), ValueError, r"got \(0, 3\)"),
    (lambda: MLPEncoder((1, 8, 8), (2,)), TypeError, "dim as a whole number"),
    (lambda: MLPEncoder((1, 8, 8), 2, hidden=256), TypeError, "hidden as a seq"),
    (lambda: Projector(10, layers=0), ValueError, "layers as a whole number of at"),
    (lambda: MLPEncoder((), 2)(torch.tensor(1.0)), ValueError, r"\(n\), got \(\)"),
    (lambda: MLPDecoder(3, (2,))(torch.ones(5, 2, 3)), ValueError, r"got \(5, 2, 3\)"),
    (lambda: Projector(3)(torch.ones(5, 2, 3)), ValueError, r"\(n, 3\), got \(5, 2, 3"),
)


@pytest.mark.parametrize("event_shape", [(1, 7, 8), (1, 8, 7), (8, 8), (50,)], ids=str)
@pytest.mark.parametrize("net", [*ENCODERS[1:], *DECODERS[1:]])
def test_conv_nets_refuse_what_is_no_image_or_too_small(net, event_shape):
    arguments = {"event_shape": event_shape, "dim": 2}
    with pytest.raises(ValueError, match=r"at least 8 x 8 pixels.*fully connected"):
        net(**arguments)


def test_fewer_channels_allow_smaller_images():
    encoder, decoder = (
        ConvEncoder((1, 5, 4), 2, (6, 8)),
        ConvDecoder(2, (1, 5, 4), (6,)),
    )
    assert encoder.width == 8 * math.ceil(5 / 4) * math.ceil(4 / 4)
    assert decoder(torch.randn(3, 2)).shape == (3, 1, 5, 4)


def test_every_view_is_encoded_in_its_place():
    encoder, x = MLPEncoder((4,), 3), torch.randn(5, 2, 4)
    z = each_view(encoder, x)
    assert z.shape == (5, 2, 3)
    assert_close(z[:, 1], encoder(x[:, 1]))


def test_modalities_have_networks_of_their_own_in_order():
    left, right = MLPEncoder((4,), 3), MLPEncoder((2, 2), 3)
    x = (torch.randn(5, 1, 4), torch.randn(5, 2, 2, 2))
    z = each_view(PerModality([left, right]), x)
    assert z.shape == (5, 3, 3)
    assert_close(z[:, 0], left(x[0][:, 0]))
    assert_close(z[:, 2], right(x[1][:, 1]))


def test_one_network_encodes_views_of_several_sizes():
    encoder = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4, 3))
    x = (torch.randn(5, 2, 1, 8, 8), torch.randn(5, 3, 1, 4, 4))
    z = each_view(encoder, x)
    assert z.shape == (5, 5, 3)
    assert_close(z[:, 4], encoder(x[1][:, 2]))


def test_modalities_are_saved_and_built_again(tmp_path):
    encoder = PerModality([MLPEncoder((4,), 3), MLPEncoder((2, 2), 3)])
    objective = ps.limits.LogDet(encoder)
    ps.save(objective, tmp_path)
    x = (torch.randn(5, 1, 4), torch.randn(5, 1, 2, 2))
    again = ps.load(tmp_path)
    assert_close(sum(again(ps.Batch(x))), sum(objective(ps.Batch(x))))


def two() -> PerModality:
    return PerModality([MLPEncoder((4,), 3), MLPEncoder((4,), 3)])


test_modalities_that_do_not_match_are_refused = refusals(
    (lambda: PerModality([]), ValueError, "a network for each modality"),
    (
        lambda: PerModality([MLPEncoder((4,), 3), MLPEncoder((4,), 2)]),
        ValueError,
        r"the dimensions \[2, 3\]",
    ),
    (lambda: each_view(two(), torch.randn(5, 1, 4)), ValueError, "got one tensor"),
    (lambda: each_view(two(), (torch.randn(5, 1, 4),)), ValueError, "2 parts, one for"),
)


def test_a_view_for_each_modality_may_come_as_one_tensor():
    parts = PerModality([MLPEncoder((3,), 2) for _ in range(2)])
    x = torch.randn(5, 2, 3)
    apart = each_view(parts, x.split(1, 1))
    assert_close(each_view(parts, x), apart)
    assert_close(apart[:, 1], parts.parts[1](x[:, 1]))


class Returning(nn.Module):
    """A network of a user, whose output is made of what a linear layer returns."""

    def __init__(self, make, inputs: int = 6, outputs: int = 4) -> None:
        super().__init__()
        self.linear, self.make = nn.Linear(inputs, outputs), make

    def forward(self, x: torch.Tensor) -> object:
        return self.make(self.linear(x))


class Masked(Returning):
    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> object:
        return self.linear(x) * mask


class Output(dict):
    """As of transformers: a dictionary with attributes."""

    __getattr__ = dict.__getitem__


OUTPUTS = {
    "a dict": (lambda z: {"z": z}, TypeError, "got dict with z; wrap it"),
    "a tuple": (lambda z: (z, z), TypeError, r"got tuple; wrap it"),
    "a model output": (
        *(lambda z: Output(pooler_output=z), TypeError),
        "got Output with pooler_output; wrap it",
    ),
    "None": (lambda z: None, TypeError, "got NoneType"),
    "numbers": (lambda z: z[:, 0], ValueError, r"got shape \(\d+,\)"),
    "one number": (lambda z: z.mean(), ValueError, r"got shape \(\)"),
    "few items": (lambda z: z[:3], ValueError, r"got shape \(3, \d\)"),
    "items along axis 1": (lambda z: z.mT, ValueError, "which lie along axis 0"),
    "whole numbers": (lambda z: z.long(), ValueError, "torch.int64; return a row of f"),
    "complex": (lambda z: z + 1j, ValueError, "torch.complex64; return a row of f"),
}
NEVER = {
    "two inputs": (lambda: Masked(None), TypeError, r"got forward\(x, mask\); wrap it"),
    "lazy": (lambda: nn.LazyLinear(4), ValueError, "got LazyLinear with a lazy one"),
    "a function": (lambda: len, TypeError, "got <built-in .*; wrap it in a torch.nn.M"),
    "a class": (lambda: nn.Linear, TypeError, "got <class .*; build an object of"),
    "None": (lambda: None, TypeError, "as a torch.nn.Module, got None"),
}


def joint_of(encoder: nn.Module, decoder: nn.Module) -> ps.limits.SimVAE:
    prior, likelihood = ps.priors.Gaussian(4), ps.likelihoods.Gaussian(0.1)
    return ps.limits.SimVAE(ps.Joint(prior, likelihood, encoder, decoder))


PLACES = {
    "a joint's encoder": lambda net: joint_of(net(6, 4), MLPDecoder(4, (6,))),
    "a joint's decoder": lambda net: joint_of(MLPEncoder((6,), 4), net(4, 6)),
    "a wrapped trunk": lambda net: ps.limits.SimCLR(Encoder(net(6, 4), 4, 2)),
    "a wrapped net": lambda net: joint_of(
        MLPEncoder((6,), 4), Decoder(net(4, 6), 4, (6,))
    ),
    "an encoder": lambda net: ps.limits.SimCLR(net(6, 4)),
    "a projector": lambda net: ps.limits.VICReg(MLPEncoder((6,), 4), net(4, 4)),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("output", OUTPUTS)
def test_networks_that_return_no_row_for_each_item_are_refused(place, output):
    make, error, message = OUTPUTS[output]
    objective = PLACES[place](lambda *sizes: Returning(make, *sizes))
    if (place, output) == ("a joint's decoder", "numbers"):
        # Right for items that are numbers.
        message = "p.x.z. of the shape of the views, got "
    with pytest.raises(error, match=f"expected .*{message}"):
        objective(ps.Batch(torch.rand(8, 2, 6)))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", NEVER)
def test_networks_that_cannot_be_called_are_refused_when_built(place, name):
    if (place, name) == ("a projector", "None"):
        return  # there need not be one
    make, error, message = NEVER[name]
    with pytest.raises(error, match=message):
        PLACES[place](lambda *sizes: make())


@pytest.mark.parametrize("output", OUTPUTS)
def test_bare_encoders_that_return_no_row_for_each_item_are_not_embedded(output):
    make, error, message = OUTPUTS[output]
    with pytest.raises(error, match=message):
        ps.embed(Returning(make), torch.rand(8, 6))


class Block(nn.Module):
    """A residual block as torchvision has it."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1, self.relu = nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2, self.downsample = nn.BatchNorm2d(outputs), None
        if stride != 1 or inputs != outputs:
            one = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(one, nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    """A residual network as torchvision has it: no `dim`, no `features`."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 7, 2, 3, bias=False)
        self.bn1, self.relu = nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.layer1, self.layer2 = Block(4, 4, 1), Block(4, 8, 2)
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(8, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer2(self.layer1(self.relu(self.bn1(self.conv1(x)))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


OF_RESNETS = {
    "SimCLR": lambda net: ps.limits.SimCLR(net),
    "VICReg": lambda net: ps.limits.VICReg(net, Projector(5)),
    "BYOL": lambda net: ps.limits.BYOL(net, Projector(5)),
    "SimVAE": lambda net: ps.limits.SimVAE(
        ps.Joint(
            *(ps.priors.Gaussian(5), ps.likelihoods.Binomial(16), net),
            MLPDecoder(5, (1, 8, 8)),
        )
    ),
}


@pytest.mark.parametrize("name", OF_RESNETS)
def test_a_resnet_as_torchvision_has_it_is_an_encoder_as_it_is(name, tmp_path):
    digits = ps.data.digits()
    images = digits.train.images[:64]
    objective = OF_RESNETS[name](ResNet(5))
    ps.fit(objective, images, views=ps.views.digits(), epochs=1, progress=False)
    z = ps.embed(objective, images)
    assert z.shape == (64, 5)
    ps.save(objective, tmp_path)
    again = ps.load(tmp_path, into=OF_RESNETS[name](ResNet(5)))
    assert_close(ps.embed(again, images), z)


IN_PLACE = {
    "dropout": lambda: nn.Sequential(nn.Dropout(inplace=True), nn.Linear(6, 4)),
    "activation": lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 4)),
}


@pytest.mark.parametrize("kind", IN_PLACE)
@pytest.mark.parametrize(
    "make",
    [
        ps.limits.SimCLR,
        ps.limits.BYOL,
        lambda net: ps.limits.SimVAE(
            ps.Joint(
                ps.priors.Gaussian(4, 0.3),
                ps.likelihoods.Gaussian(0.5),
                net,
                MLPDecoder(4, (6,)),
            )
        ),
    ],
    ids=["SimCLR", "BYOL", "SimVAE"],
)
def test_a_network_that_changes_its_input_is_refused(make, kind):
    objective = make(IN_PLACE[kind]())
    with pytest.raises(ValueError, match="leave its input as it is"):
        objective(ps.Batch(torch.randn(5, 2, 6)))
    if kind == "activation":  # there is no dropout in evaluation mode
        with pytest.raises(ValueError, match="leave its input as it is"):
            ps.embed(objective, torch.randn(5, 6))


def test_a_network_may_change_what_it_made_itself():
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 4))
    assert ps.embed(ps.limits.SimCLR(net), torch.randn(5, 6)).shape == (5, 4)
