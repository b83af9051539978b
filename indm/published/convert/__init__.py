"""Released checkpoints of the paper's code, as run folders."""

from indm.published.convert.flow import flow_from_state as flow_from_state
from indm.published.convert.run import convert as convert
