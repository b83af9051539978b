"""``indm app``."""

import importlib.util
import signal
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from indm.cli.common import DONE, Computes
from indm.config.options import default


@dataclass
class App(Computes):
    """Try a run in the browser: samples, likelihoods, interpolation, translation.

    "indm app RUN RUN_B" also translates between two models; "indm app PAIR" does, too, and of one model of classes it
    is between those. Ctrl-C ends it. It needs 'indm[app]', and no network. Images of up to 10 MB and 25 megapixels are
    read as "indm translate" reads them, one request is computed at a time, and no file of this machine is served.
    Uploads are kept for an hour, 500 MB of them at most, and go when it ends.
    """

    run_folders: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUN [RUN]", help_behavior_hint="(required)")]
    """One or two run folders of models of images, or models of the hub by their names there, user/name."""
    host: str = "127.0.0.1"
    """The address to listen at; with 0.0.0.0 everybody who reaches this machine may use it."""
    port: Annotated[int | None, arg(metavar="PORT"), default("the first free from 7860")] = None
    """The port to listen at."""
    seconds: float = 120.0
    """The longest that a request may take."""

    def run(self) -> int:
        if importlib.util.find_spec("gradio") is None:
            raise ValueError("indm app needs the library Gradio: pip install 'indm[app]'")
        from indm.app import requests
        from indm.runs.folder import run_folder

        sides = requests.open_sides([run_folder(folder) for folder in self.run_folders])
        from indm.app.page import LOCAL, serving

        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: uploads are taken away
        with serving(sides, self.host, self.port, self.seconds) as address:
            print(f"{address} (Ctrl-C ends it)", flush=True)
            if self.host not in LOCAL:
                print(f"indm: warning: everybody who reaches {self.host} may use this", file=sys.stderr)
            with suppress(KeyboardInterrupt):
                threading.Event().wait()
        return DONE
