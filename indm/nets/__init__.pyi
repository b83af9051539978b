from .mixture import MixtureMLP as MixtureMLP
from .mlp import MLP as MLP
from .unet import UNet as UNet
from .zero import Zero as Zero
