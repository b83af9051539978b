"""What studies measure of runs, beside what a report does; kept in the run folders like that."""

from indm.workbench.evaluation import records
from indm.workbench.evaluation.records import Measurement, is_diffusion
from research.flow_analysis.analysis import flow_of_run
from research.sampling_error.errors import errors_of_run
from research.sampling_error.transport import transport_of_run

SAMPLING_ERROR = {
    "transport": Measurement(transport_of_run, lambda model: is_diffusion(model) and model.flow.has_log_det),
    "errors": Measurement(errors_of_run, is_diffusion, version=2),
}
FLOW = {"flow": Measurement(flow_of_run, lambda model: is_diffusion(model) and model.flow.has_log_det)}
MEASUREMENTS = records.MEASUREMENTS | SAMPLING_ERROR | FLOW
