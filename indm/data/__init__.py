"""Data sets, all by name in :mod:`indm.data.registry`."""

from indm.data.base import Data as Data
from indm.data.base import as_data as as_data
from indm.data.base import stack as stack
from indm.data.batches import loader as loader
from indm.data.image_files import ImageFiles as ImageFiles
from indm.data.raw import InMemory as InMemory
from indm.data.registry import load_data as load_data
