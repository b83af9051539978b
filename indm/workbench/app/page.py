"""The page of ``indm app``, made with Gradio.

One request is computed at a time. Nothing is fetched from elsewhere. The only files that are served
are the uploads and pictures of the page, which are in a folder of their own until the program ends.
"""

import contextlib
import functools
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import gradio as gr
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from indm.checks import one_line
from indm.sampling.base import SAMPLER, SAMPLERS
from indm.workbench.app import requests
from indm.workbench.app.requests import WAYS, Ends, Side, Source
from indm.workbench.data.images import IMAGE_SUFFIXES

LOCAL = ("127.0.0.1", "localhost", "::1")
# bytes of a file; requests; seconds of an upload
LARGEST_UPLOAD, MOST_WAITING, KEPT_SECONDS = 10 * 2**20, 4, 3600
AROUND = 2**20  # bytes of a request apart from its file
THEME = gr.themes.Base(
    primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
)
PAGE_STYLE = """
img { image-rendering: pixelated; } .picture .image-container { padding-top: 2rem; }
#likelihood :is(th, td) { white-space: nowrap; padding: 0.5em; }
"""


class Guard:
    """Refuses requests from pages of other sites, and requests larger than one image."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_post = scope["type"] == "http" and scope["method"] == "POST"
        headers = Headers(scope=scope) if is_post else Headers()
        origin = headers.get("origin")
        other_site = origin is not None and origin.partition("://")[2] != headers.get("host")
        length = headers.get("content-length", "") if headers else "0"
        answer = self.app
        if other_site or headers.get("sec-fetch-site") == "cross-site":
            answer = PlainTextResponse("Origin must be that of this page", 403)
        elif not length.isdecimal() or int(length) > LARGEST_UPLOAD + AROUND:
            answer = PlainTextResponse("a request must hold one image at most", 413)
        await answer(scope, receive, send)


class Builder:
    """Makes the tabs of a page."""

    def __init__(self, seconds: float):
        self.seconds = seconds

    def on(self, listen: Callable, compute: Callable, inputs: Sequence[Any], outputs: Any) -> None:
        """Compute something at an event, one at a time on the whole page."""

        @functools.wraps(compute)
        def handler(*values: Any) -> Any:
            try:
                with requests.at_most(self.seconds):
                    return compute(*values)
            except (ValueError, OSError, RuntimeError) as error:
                raise gr.Error(one_line(error), print_exception=False) from error

        listen(
            handler,
            list(inputs),
            outputs,
            concurrency_id="model",
            concurrency_limit=1,
            api_visibility="private",
        )

    def source(self, side: Side) -> list[Any]:
        """The fields of an uploaded file and of the number of a test image, with a preview."""
        with gr.Column(min_width=200):
            file = gr.File(label="Image", file_types=sorted(IMAGE_SUFFIXES), height=150)
            count = len(side.test or ())
            have, label = count > 0, "or the test image of number"
            limits: Any = {"minimum": 0, "maximum": max(0, count - 1)}
            index = gr.Number(0 if have else None, label=label, precision=0, visible=have, **limits)
            start = requests.preview(side, Source(None, 0)) if have else None
            shown = image_field("Image, as the model sees it", height=180, value=start)
        for field in (file, index):
            self.on(field.change, lambda *chosen: seen_image(side, *chosen), [file, index], shown)
        return [file, index]

    def samples(self, side: Side) -> None:
        with gr.Row():
            with gr.Column(scale=1, min_width=260):
                n = gr.Slider(1, 64, 16, step=1, label="Number")
                info = "“ode” takes as many as its error needs."
                steps = gr.Slider(1, 200, 25, step=1, label="Steps", info=info)
                sampler = gr.Dropdown(list(SAMPLERS), value=SAMPLER, label="Sampler")
                seed = seed_field()
                temperature = gr.Slider(0.1, 1.5, 1.0, step=0.05, label="Temperature",
                                        info="Factor on the latent; 1 samples the model.")  # fmt: skip
                c = condition_field(side)
                guidance = gr.Slider(1, 5, side.guidance, step=0.1, label="Guidance",
                                     visible=side.knows_marginal)  # fmt: skip
                button = gr.Button("Sample", variant="primary")
            with gr.Column(scale=2, min_width=300):
                grid = image_field("Samples")
        self.on(button.click, functools.partial(requests.samples, side),
                [n, steps, sampler, seed, temperature, c, guidance], grid)  # fmt: skip

    def likelihood(self, side: Side) -> None:
        with gr.Row():
            with gr.Column(scale=1, min_width=260):
                chosen = self.source(side)
                draws = gr.Slider(2, 32, 8, step=1, label="Draws")
                seed, c = seed_field(), condition_field(side)
                button = gr.Button("Likelihood", variant="primary")
            with gr.Column(scale=2, min_width=300):
                table = gr.Markdown(
                    "Bits/dim of the image, with an error bar.", elem_id="likelihood"
                )
        self.on(button.click, lambda file, index, *more: requests.likelihood(side, Source(file, index), *more),
                [*chosen, draws, seed, c], table)  # fmt: skip

    def translation(self, ends: Ends) -> None:
        a, b = ends.sides
        with gr.Row():
            with gr.Column(scale=1, min_width=260):
                way = gr.Radio(
                    list(WAYS), value=WAYS[0], label="Direction", visible=not ends.within_one
                )
                chosen = self.source(a)
                classes = [
                    condition_field(side, f"Condition of {name}")
                    for side, name in ((a, "A"), (b, "B"))
                ]
                if b.labels:
                    classes[1].value = b.labels[-1]
                strength = gr.Slider(
                    0.05, 1, 1, step=0.05, label="Strength", info="Less keeps more of the source."
                )
                steps = gr.Slider(10, 240, 120, step=1, label="Steps")
                guidance = gr.Slider(1, 8, 1, step=0.5, label="Guidance", visible=ends.guides,
                                     info="More leads farther away from A, at a loss of detail.")  # fmt: skip
                button = gr.Button("Translate", variant="primary")
            with gr.Column(scale=2, min_width=300):
                pair, strip = image_field("Source and result"), image_field("The way")

        def compute(file: Any, index: Any, way: str, c_a: str, c_b: str, *more: Any) -> tuple:
            return ends.translate(Source(file, index), way, (c_a, c_b), *more)

        inputs = [*chosen, way, *classes, strength, steps, guidance]
        self.on(button.click, compute, inputs, [pair, strip])


def seen_image(side: Side, file: str | None, index: float | None) -> requests.Picture | None:
    """The image as the model sees it; None if none is chosen."""
    return None if file is None and index is None else requests.preview(side, Source(file, index))


def image_field(label: str, **options: Any) -> gr.Image:
    options |= {"format": "png", "interactive": False, "buttons": ["download", "fullscreen"]}
    return gr.Image(label=label, elem_classes=["picture"], **options)


def seed_field() -> gr.Number:
    return gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**31 - 1)


def condition_field(side: Side, label: str = "Condition") -> gr.Dropdown:
    """Classes to choose from; hidden for a model without them."""
    choices = [("none: p(x)", "")] * side.knows_marginal + [(name, name) for name in side.labels]
    return gr.Dropdown(
        choices, value=next(iter(side.labels), None), label=label, visible=bool(side.labels)
    )


def build_page(sides: Sequence[Side], seconds: float) -> gr.Blocks:
    """The page of one or two models."""
    make = Builder(seconds)
    side = sides[0]
    ends = requests.ends_of(sides)
    title = f"indm: {' and '.join(side.name for side in sides)}"
    with gr.Blocks(
        title=title, analytics_enabled=False, delete_cache=(KEPT_SECONDS, KEPT_SECONDS)
    ) as page:
        gr.Markdown(f"# {title}\n{' '.join(f'`{side.run}`' for side in sides)}")
        for name, tab in {"Sample": make.samples, "Likelihood": make.likelihood}.items():
            with gr.Tab(name):
                tab(side)
        if ends is not None:
            with gr.Tab("Translation"):
                make.translation(ends)
    return page.queue(max_size=MOST_WAITING, api_open=False)


@contextlib.contextmanager
def serving(sides: Sequence[Side], host: str, port: int | None, seconds: float) -> Iterator[str]:
    """Serve the page; gives its address."""
    with tempfile.TemporaryDirectory(prefix="indm-app-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        page = build_page(sides, seconds)
        guards = [Middleware(Guard)]
        # refuses pages of other sites, also if their name points to this machine
        if host in LOCAL:
            guards.append(Middleware(TrustedHostMiddleware, allowed_hosts=[*LOCAL, "[::1]"]))
        off = ("share", "ssr_mode", "run_history", "enable_monitoring", "pwa")
        options: Any = {"prevent_thread_lock": True, "quiet": True} | dict.fromkeys(off, False)
        options |= {"footer_links": [], "theme": THEME, "css": PAGE_STYLE}
        options |= {"server_name": host, "server_port": port, "max_file_size": LARGEST_UPLOAD}
        _, address, _ = page.launch(app_kwargs={"middleware": guards}, **options)
        try:
            yield address
        finally:
            page.close(verbose=False)
