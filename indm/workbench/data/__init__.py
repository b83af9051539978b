"""Data sets, by name or made of any data."""

from indm.workbench.data.base import Data as Data
from indm.workbench.data.base import as_data as as_data
from indm.workbench.data.base import load_data as load_data
from indm.workbench.data.base import stack as stack
from indm.workbench.data.examples import InMemory as InMemory
from indm.workbench.data.examples import loader as loader
from indm.workbench.data.images import ImageFiles as ImageFiles
