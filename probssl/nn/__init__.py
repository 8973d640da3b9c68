r"""Encoders, decoders and projectors: plain networks without a distribution.

An encoder is any module (n, \*event) -> (n, dim), a decoder any module
(n, dim) -> (n, \*event); those here are only the common ones. Leading axes such as
(batch, view) are flattened by the caller. Weights start as torch's defaults.
"""

from .base import Decoder, Encoder, dense
from .conv import ConvDecoder, ConvEncoder
from .mlp import MLPDecoder, MLPEncoder, Projector
from .modalities import PerModality, each_view
from .network import Network, dim_of
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
