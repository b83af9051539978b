from .base import Data as Data
from .base import InMemory as InMemory
from .base import as_data as as_data
from .base import stack as stack
from .batches import loader as loader
from .image_files import ImageFiles as ImageFiles
from .registry import load_data as load_data
