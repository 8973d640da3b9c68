"""Objectives as limits of the one distribution, one file for each method.

Each file states the reference, the choices of p(y), p(z|y) and of what keeps z
informative, the limit that is taken, its status, and what it drops.
"""

from ..embedding import Embedding
from .logdet import LogDet
from .simclr import SimCLR
from .simvae import SimVAE
from .vae import VAE
from .vicreg import VICReg

__all__ = ["VAE", "Embedding", "LogDet", "SimCLR", "SimVAE", "VICReg"]
