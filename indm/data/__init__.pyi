from .base import Data as Data
from .base import InMemory as InMemory
from .base import loader as loader
from .base import stack as stack
from .image_files import ImageFiles as ImageFiles
from .registry import load_data as load_data
