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
    (lambda: MLPEncoder(50, 2), ValueError, "event_shape as a tuple .* got 50"),
    (lambda: MLPEncoder((8.0, 8.0), 2), ValueError, "tuple of positive integers"),
    (lambda: MLPDecoder(2, (0, 3)), ValueError, r"got \(0, 3\)"),
    (lambda: MLPEncoder((1, 8, 8), (2,)), TypeError, "dim as a whole number"),
    (lambda: MLPEncoder((1, 8, 8), 2, hidden=256), ValueError, "hidden as a tuple"),
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
