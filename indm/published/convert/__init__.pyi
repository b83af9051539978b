from .flow import flow_from_state as flow_from_state
from .run import convert as convert
