r"""Encoders, decoders and projection heads: networks without a distribution.

An encoder is any module (n, \*event) -> (n, dim), which is called and never taken
apart: its output is what SimCLR compares and the location of q(z|x) in a `Joint`. A
decoder is any module (n, dim) -> (n, \*event). Objectives flatten leading axes such as
(batch, view). Weights are initialised by torch's defaults.
"""

from .base import Decoder, Encoder, dense
from .conv import ConvDecoder, ConvEncoder
from .mlp import MLPDecoder, MLPEncoder, Projector
from .network import Network, PerModality, dim_of, each_view
from .normalisation import BatchNorm1d, BatchNorm2d
from .resnet import ResNet18Decoder, ResNet18Encoder

__all__ = [
    "BatchNorm1d",
    "BatchNorm2d",
    "ConvDecoder",
    "ConvEncoder",
    "Decoder",
    "Encoder",
    "MLPDecoder",
    "MLPEncoder",
    "Network",
    "PerModality",
    "Projector",
    "ResNet18Decoder",
    "ResNet18Encoder",
    "dense",
    "dim_of",
    "each_view",
]
