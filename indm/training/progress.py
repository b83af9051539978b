"""How far a run is, for whoever watches it: a bar on a terminal, else a line every few seconds."""

import sys
import time
from collections.abc import Callable

from tqdm.auto import tqdm

BAR = "{percentage:3.0f}% {bar:20} {elapsed}<{remaining}{postfix}"
BAR_INTERVAL, LINE_INTERVAL = 2.0, 5.0  # seconds between two texts of the bar, and between two lines


class Progress:
    """Shows the share of a run that is done, with a text about it; nothing where it is ``disabled``.

    Args:
        share: of the run that is done at the start, in [0, 1].
        text: what to say now. It is asked for only when it is shown, as making it may wait for the device.
        disabled: show nothing.
    """

    def __init__(self, share: float, text: Callable[[], str], disabled: bool = False):
        self.text, self.first, self.share = text, share, share
        self.started = self.shown = time.monotonic()
        on_terminal = sys.stderr is not None and sys.stderr.isatty()
        self.bar = tqdm(total=1.0, initial=share, bar_format=BAR, disable=disabled or not on_terminal)
        self.lines = not disabled and not on_terminal
        self.every = BAR_INTERVAL if on_terminal else LINE_INTERVAL

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def update(self, share: float) -> None:
        """Note how far the run is; show it if the last text is old, after the first step, and at the end."""
        fresh, self.share = self.share == self.first, min(share, 1.0)
        if self.bar.disable and not self.lines:
            return
        self.bar.update(self.share - self.bar.n)
        now = time.monotonic()
        if fresh or self.share == 1 or now - self.shown >= self.every:
            self.shown = now
            self._show(now)

    def _show(self, now: float) -> None:
        if not self.lines:
            self.bar.set_postfix_str(" " + self.text())
            return
        done = self.share - self.first
        left = tqdm.format_interval((1 - self.share) / done * (now - self.started)) if done > 0 else "?"
        print(f"{self.share:4.0%} {self.text()}, {left} left", file=sys.stderr, flush=True)
