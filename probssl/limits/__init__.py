"""Self-supervised methods as limits of one distribution, one file for each method.

Each file states the reference; the choices of p(y), of p(z|y) and of the term that
keeps z informative; the limit; its status; and what it drops. The status is *identity*
(the published loss, exactly), *surrogate* (an approximation of stated order),
*heuristic* (an update rule that is the gradient of no scalar), or *exact bound*. Each
class declares its `place` on the axes of the choices, and `table` has all of them.
"""

from ._base import Embedding, JointEmbedding
from ._pair_affinity import LearnedAffinity, PrincipalComponents, PriorAffinity
from ._table import Table, table
from .alignment_uniformity import AlignmentUniformity
from .barlow import BarlowTwins
from .byol import BYOL
from .categorical_matching import CategoricalMatching
from .clip import CLIP
from .crvae import CRVAE
from .dclw import DCLW
from .deep_clustering import DeepClustering
from .denoising import DenoisingAutoencoder
from .dino import DINO
from .dsa import DSA
from .frossl import FroSSL
from .instance import InstanceDiscrimination
from .lejepa import LeJEPA
from .logdet import LogDet
from .masked import MaskedAutoencoder
from .mmcr import MMCR
from .moco import MoCo
from .neighbour_embedding import SNE, TSNE, NeighbourEmbedding, SymmetricSNE
from .nnclr import NNCLR
from .pid import PID
from .rpm import RPM
from .siglip import SigLIP
from .simclr import SimCLR
from .simsiam import SimSiam
from .simvae import SimVAE
from .swav import SwAV
from .tico import TiCo
from .tsimclr import TSimCLR
from .vae import VAE
from .vicreg import VICReg
from .visreg import VISReg
from .wmse import WMSE

__all__ = ["CLIP", "InstanceDiscrimination", "MoCo", "SimCLR", "TSimCLR"]
__all__ += ["DCLW", "NNCLR", "SigLIP"]
__all__ += ["SNE", "TSNE", "NeighbourEmbedding", "SymmetricSNE"]
__all__ += ["BarlowTwins", "LogDet", "VICReg", "WMSE"]
__all__ += ["MMCR", "AlignmentUniformity", "FroSSL", "TiCo"]
__all__ += ["LeJEPA", "VISReg"]
__all__ += ["BYOL", "DINO", "DeepClustering", "SimSiam", "SwAV"]
__all__ += ["RPM", "CategoricalMatching"]
__all__ += ["CRVAE", "VAE", "DenoisingAutoencoder", "MaskedAutoencoder", "SimVAE"]
__all__ += ["DSA", "PID", "Embedding", "JointEmbedding"]
__all__ += ["LearnedAffinity", "PrincipalComponents", "PriorAffinity"]
__all__ += ["Table", "table"]
