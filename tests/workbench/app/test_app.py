"""The page of a run: what its requests compute, what they refuse, and that a browser can use it."""

import asyncio
import io
import json
import math
import os
import re
import signal
import socket
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from browsers import keep, visiting
from PIL import Image
from solvers import solve_roughly

import indm
from indm.model import build_model
from indm.scaling import Scaling
from indm.translation import bridge
from indm.workbench.app import requests
from indm.workbench.app.requests import WAYS, Side, Source, at_most, ends_of, open_sides
from indm.workbench.cli import runs as commands
from indm.workbench.cli.main import main
from indm.workbench.data.base import load_data
from indm.workbench.figures import sheets
from indm.workbench.recipes import recipe as recipes

NET = {"name": "mlp", "width": 16, "depth": 1, "fourier": 0}
LABELS = [str(number) for number in range(10)]


def save(folder, seed=None, condition=None):
    """A run on digits: latents N(0, I) and their exact score, or weights at random of that seed."""
    tables = {
        "flow": {"name": "identity"},
        "sde": {"name": "vp"},
        "net": {"name": "zero"} if seed is None else NET,
    }
    tables |= {"condition": condition | {"drop": 0.1}} if condition else {}
    more = {"data": {"name": "digits"}} | ({"sample": {"guidance": 2.0}} if condition else {})
    torch.manual_seed(seed or 0)
    model = build_model(tables, (1, 8, 8), Scaling.images(17)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.04 * torch.randn_like(parameter)
    folder.mkdir(parents=True)
    model.save(folder)
    (folder / "recipe.toml").write_text(recipes.to_toml(recipes.resolve(tables | more)))
    return folder


@pytest.fixture(autouse=True, scope="module")
def closed_loops():
    """Close the event loops that Gradio makes for its locks; it never runs them, and leaves them
    open.
    """
    loops, make = [], asyncio.new_event_loop

    def noting():
        loops.append(make())
        return loops[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio, "new_event_loop", noting)
        yield
    asyncio.set_event_loop(None)
    for loop in loops:
        loop.close()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Runs, and an image that is no test image."""
    home = tmp_path_factory.mktemp("app")
    save(home / "exact")
    save(home / "classes", 0, {"name": "classes", "labels": LABELS})
    save(home / "pair" / "a", 1)
    save(home / "pair" / "b", 2)
    grey = (15 * load_data("digits").train[0][0]).numpy().repeat(2, 0).repeat(2, 1)
    Image.fromarray(np.dstack([grey] * 3)).save(home / "mine.png")
    return home


@pytest.fixture
def panels(monkeypatch):
    """What is drawn, as the panels of each sheet."""
    drawn = []

    def sheet(panels, *_):
        drawn.append(panels)
        return np.zeros((1, 1, 3), np.uint8)

    monkeypatch.setattr(sheets, "sheet", sheet)
    return drawn


@pytest.fixture(scope="module")
def classes(home):
    return Side.opened(home / "classes")


@pytest.fixture(scope="module")
def exact(home):
    return Side.opened(home / "exact")


# ── Requests ──────────────────────────────────────────────────────────────────────────────────────


def test_samples_are_those_of_the_library(classes):
    def grid(c, temperature=1.0, guidance=1.0):
        return requests.samples(classes, 4, 5, "heun", 3, temperature, c, guidance)

    model, more = classes.model, {"temperature": 0.5, "guidance": 2.0}
    x = indm.sample(
        model, 4, c="7", sampler="heun", steps=5, generator=torch.Generator().manual_seed(3), **more
    )
    assert np.array_equal(grid("7", **more), sheets.grid(model.scaling.to_data(x), 17))
    assert not np.array_equal(grid("7", **more), grid(""))  # p(x)


def test_a_likelihood_is_that_of_the_image(home, exact):
    """For N(0, I) and its exact score both numbers are −log₂ of the density, averaged over the
    noise.
    """
    side = exact
    text = requests.likelihood(side, Source(str(home / "mine.png")), 16, 0, "")
    rows = {
        name: [float(n) for n in numbers.split("|")[:2]]
        for name, numbers in re.findall(r"\*\*(.+)\*\* \|(.+)", text)
    }
    raw = side.read(Source(str(home / "mine.png")))[0].double()
    edges = (torch.stack([raw, raw + 1]) * 2 / 17 - 1) / math.sqrt(2)  # of each grey level
    second = (edges**3)[1] - (edges**3)[0]  # mean of x² over a level, from its third powers
    energy = (second / (edges[1] - edges[0]) / 3 * 2).mean()
    expected = (0.5 * math.log(2 * math.pi) + 0.5 * energy.item() - math.log(2 / 17)) / math.log(2)
    assert list(rows) == ["NELBO", "NLL (ODE)"]
    for mean, error in rows.values():
        assert 0 < error < 0.2 and abs(mean - expected) < 4 * error + 0.01
    assert "resized from 16×16" in text and "16 draws" in text


def as_file(image, path):
    """An image of 17 grey levels as a file in colour, with bytes in the middle of each level; not
    test image 0.
    """
    grey = ((image[0] + 0.5) * 256 / 17).byte().numpy()
    Image.fromarray(np.dstack([grey] * 3)).save(path)
    return Source(str(path), 0)


@pytest.mark.parametrize("way", WAYS)
def test_a_translation_is_that_of_the_library(home, panels, tmp_path, way):
    a, b = (indm.INDM.load(home / "pair" / name) for name in "ab")
    ends = ends_of(open_sides([home / "pair"]))
    ends.translate(Source(None, 2), way, ("", ""), 0.5, 20)
    ends.translate(as_file(ends.sides[0].test[2], tmp_path / "2.png"), way, ("", ""), 0.5, 20)
    # an upload is the image that it shows
    for ours, theirs in zip(panels[2:], panels[:2], strict=True):
        assert all(
            torch.equal(one.images, other.images) for one, other in zip(ours, theirs, strict=True)
        )
    (pair,), (up, down) = panels[:2]
    first, last = (a, b) if way == WAYS[0] else (b, a)
    raw = ends.sides[0].test[2][None]
    result = last.scaling.to_data(
        indm.translate(first, last, first.scaling.centre(raw), strength=0.5, steps=20)
    )
    assert torch.equal(pair.images, torch.cat([raw, result]))
    assert (
        torch.equal(up.images[0], raw[0]) and len(up.images) == len(down.images) == requests.FRAMES
    )
    # solved in parts, which is less exact
    assert (down.images[-1].int() - result[0].int()).abs().max() <= 2
    assert up.tops == ["t = 1e-05", "0.00055", "0.014", "0.13", "0.5"]  # it turns at half strength
    assert [word.removeprefix("t = ") for word in down.tops] == [
        "0.5",
        "0.13",
        "0.014",
        "0.00055",
        "1e-05",
    ]


def test_one_model_translates_between_its_classes(home, classes, exact, panels):
    side = classes
    ends_of([side]).translate(Source(None, 0), WAYS[0], ("3", "8"), 1.0, 20)
    raw, model = side.test[0][None], side.model
    x = model.scaling.centre(raw)
    result = indm.translate(model, model, x, c=("3", "8"), steps=20)
    assert torch.equal(panels[0][0].images[1:], model.scaling.to_data(result))
    panels.clear()
    ends_of([side]).translate(Source(None, 0), WAYS[0], ("3", "8"), 1.0, 20, 4.0)
    guided = indm.translate(model, model, x, c=("3", "8"), steps=20, guidance=4.0)
    assert torch.equal(panels[0][0].images[1:], model.scaling.to_data(guided)) and not torch.equal(
        guided, result
    )
    assert ends_of([exact]) is None
    assert ends_of([side]).guides and not ends_of(open_sides([home / "pair"])).guides


@pytest.mark.parametrize(("way", "direction"), [*zip(WAYS, ("forward", "backward"), strict=True)])
def test_a_bridge_goes_both_ways_from_the_images_of_that_end(panels, way, direction):
    """With the noise of grey levels, and with that with which it has learned its ends."""
    run = Path(__file__).parents[1] / "fixtures" / "runs" / "bridge"  # from threes to eights
    model, raw = (
        indm.INDM.load(run),
        load_data(name="digits", label=3 if way == WAYS[0] else 8).test[0][None],
    )
    for noise, strength in (((0.0, 0.0), 0.5), ((0.1, 0.3), 1.0)):
        ends = ends_of([Side.opened(run)])
        ends = replace(ends, runs=replace(ends.runs, noise=noise))
        ends.translate(Source(None, 0), way, ("", ""), strength, 10)
        route = bridge(model, direction, strength=strength, steps=10, noise=noise)
        result = model.scaling.to_data(route.translate(raw).x)
        assert len(ends.runs.models) == 1 and torch.equal(
            panels[0][0].images, torch.cat([raw, result])
        )
        panels.clear()


def test_only_images_are_read(exact, tmp_path):
    side = exact
    (tmp_path / "text.png").write_text("not at all")
    # whose decoder is a program
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    for name in ("text.png", "a.png"):
        with pytest.raises(ValueError, match=name) as refused:
            side.read(Source(str(tmp_path / name)))
        assert str(tmp_path) not in str(refused.value)  # it is where uploads are kept


def test_a_request_that_takes_too_long_is_stopped(home):
    side = Side.opened(home / "pair" / "a")
    with pytest.raises(TimeoutError, match="stopped after 0 seconds"), at_most(0):
        requests.samples(side, 1, 5, "heun", 0, 1.0, "", 1.0)
    requests.samples(side, 1, 5, "heun", 0, 1.0, "", 1.0)  # the limit has ended with its request


def test_models_of_anything_but_images_are_refused(tmp_path):
    run = tmp_path / "run"
    recipe = {
        "data": {"name": "eight-gaussians"},
        "flow": {"name": "identity"},
        "sde": {"name": "vp"},
        "net": NET,
    }
    build_model({name: recipe[name] for name in ("flow", "sde", "net")}, (2,)).save(run)
    (run / "recipe.toml").write_text(recipes.to_toml(recipes.resolve(recipe)))
    with pytest.raises(
        ValueError, match=r"needs a model of images in grey levels, .* has events of shape \(2,\)"
    ):
        open_sides([run])
    with pytest.raises(ValueError, match="takes one run or two, got 3"):
        open_sides([run] * 3)


# ── The command ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def sigterm():
    """A signal that fails the test where the command leaves it as it was."""
    before = signal.signal(signal.SIGTERM, lambda *_: pytest.fail("ended without a clean-up"))
    yield signal.SIGTERM
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("name", ["SIGINT", pytest.param("SIGTERM", marks=pytest.mark.long)])
def test_the_command_serves_until_a_signal_and_takes_uploads_away(
    home, capsys, monkeypatch, sigterm, name
):
    pytest.importorskip("gradio")
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")  # so that it is put back
    seen = []

    def interrupted():
        (address,) = re.findall(r"http://127.0.0.1:(\d+)/", capsys.readouterr().out)
        with socket.create_connection(("127.0.0.1", int(address))):
            seen.extend((int(address), Path(os.environ["GRADIO_TEMP_DIR"])))
        (seen[1] / "upload.png").write_bytes(b"")
        os.kill(os.getpid(), getattr(signal, name))
        time.sleep(1)

    monkeypatch.setattr(
        commands, "threading", SimpleNamespace(Event=lambda: SimpleNamespace(wait=interrupted))
    )
    assert main(["app", str(home / "exact")]) == 0 and not seen[1].exists()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", seen[0]))


# ── The server ────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def address(classes):
    """That of the page of a model of classes. Its process reaches nobody else."""
    pytest.importorskip("gradio")
    from indm.workbench.app import page

    reached, connect = [], socket.socket.connect

    def noting(self, address):
        reached.append(address)
        return connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", noting)
        patch.setattr(page, "LARGEST_UPLOAD", 100 * 2**10)
        solve_roughly(patch)
        with page.serving([classes], "127.0.0.1", None, 60) as address:
            yield address
        assert {host for host, *_ in (a for a in reached if isinstance(a, tuple))} <= {"127.0.0.1"}


@pytest.fixture(scope="module")
def httpx():
    return pytest.importorskip("httpx", reason="comes with Gradio")


@pytest.fixture(scope="module")
def ask(httpx, address):
    """What the server makes of a request like one of the page, by its number of values: whether it
    was done, output.
    """
    dependencies = httpx.get(f"{address}config").json()["dependencies"]

    def request(data, values):
        index = next(d["id"] for d in dependencies if len(d["inputs"]) == values)
        body = {"data": data, "fn_index": index, "session_hash": "me"}
        with httpx.Client(base_url=f"{address}gradio_api/", timeout=30) as client:
            client.post("queue/join", json=body).raise_for_status()
            with client.stream("GET", "queue/data", params={"session_hash": "me"}) as stream:
                events = (
                    json.loads(line.removeprefix("data: ")) for line in stream.iter_lines() if line
                )
                last = next(
                    event
                    for event in events
                    if event["msg"] in ("process_completed", "unexpected_error")
                )
        return last["success"], last["output"]

    return request


SAMPLES, LIKELIHOOD = 7, 5  # values of these requests


def test_no_file_of_the_machine_is_served(home, address, httpx):
    checkpoint = home / "classes" / "model.safetensors"
    for path in (
        "/etc/passwd",
        checkpoint,
        "../../etc/passwd",
        "pyproject.toml",
        home / "mine.png",
    ):
        for route in ("file=", "file/", "static/", "assets/", "custom_component/"):
            for base in (address, f"{address}gradio_api/"):
                reply = httpx.get(f"{base}{route}{path}")
                assert reply.status_code in (403, 404), (route, path)


def test_a_request_names_no_file_of_the_machine(home, address, httpx, ask):
    """Only what was uploaded is read, whatever the page is told to send."""
    with open(home / "mine.png", "rb") as file:
        (uploaded,) = httpx.post(f"{address}gradio_api/upload", files={"files": file}).json()
    done = []
    for path in (uploaded, str(home / "mine.png"), "/etc/passwd"):
        file = {"path": path, "orig_name": "mine.png", "meta": {"_type": "gradio.FileData"}}
        done.append(ask([file, 0, 2, 0, "1"], LIKELIHOOD)[0])
    assert done == [True, False, False]
    assert (
        httpx.post(f"{address}gradio_api/run/predict", json={"data": [], "fn_index": 0}).status_code
        >= 400
    )


def test_a_page_of_somebody_else_reaches_nothing(address, httpx):
    """Its name may be made to point to this machine; the browser would then take both for one site."""
    assert (
        httpx.get(address).status_code
        == httpx.get(address.replace("127.0.0.1", "localhost")).status_code
        == 200
    )
    for path in ("", "config", "gradio_api/info"):
        assert (
            httpx.get(f"{address}{path}", headers={"host": "elsewhere.example:7860"}).status_code
            == 400
        )


def upload_of(size):
    return {"files": ("a.png", b"0" * size)}


def test_a_request_has_a_limit(address, httpx):
    """Of all its files together, also of texts for the queue, and of a body that does not say its
    length.
    """
    files = [("files", (f"{i}.png", bytes(30_000), "image/png")) for i in range(40)]
    join, large = f"{address}gradio_api/queue/join", {"data": ["x" * 1_200_000], "fn_index": 0}
    assert httpx.post(f"{address}gradio_api/upload", files=files).status_code == 413
    assert httpx.post(join, json=large).status_code == 413
    assert httpx.post(join, content=iter([b"{", b"}"])).status_code == 413


@pytest.mark.parametrize(
    "headers",
    [{"origin": origin} for origin in ("http://elsewhere.example", "null", "http://127.0.0.1:1")]
    + [{"sec-fetch-site": "cross-site"}],
)
def test_a_page_of_somebody_else_sends_nothing(address, httpx, headers):
    """A browser lets any site send files and texts here, and says which one it is."""
    kept = Path(os.environ["GRADIO_TEMP_DIR"])
    before = sorted(kept.rglob("*"))
    upload = httpx.post(f"{address}gradio_api/upload", files=upload_of(10), headers=headers)
    join = httpx.post(
        f"{address}gradio_api/queue/join", json={"data": [], "fn_index": 0}, headers=headers
    )
    assert upload.status_code == join.status_code == 403 and sorted(kept.rglob("*")) == before
    own = {"origin": address.rstrip("/"), "sec-fetch-site": "same-origin"}
    assert (
        httpx.post(f"{address}gradio_api/upload", files=upload_of(10), headers=own).status_code
        == 200
    )


# ── The browser ───────────────────────────────────────────────────────────────────────────────────


def eventually(attempt, seconds=60):
    """Repeat an attempt until it holds: the page takes a moment from what it shows to what it
    sends.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            return attempt()
        except AssertionError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


class Tab:
    """The tab of that name of a page, opened; on a phone some are behind a button."""

    def __init__(self, page, name):
        self.page = page
        tab, more = page.get_by_role("tab", name=name), page.locator(".overflow-menu > button")
        tab.or_(more).filter(visible=True).first.wait_for()
        if not tab.is_visible():
            more.click()
            tab = page.get_by_role("button", name=name)
        tab.click()

    def field(self, label, exact=False):
        return self.page.get_by_label(label, exact=exact).filter(visible=True)

    def press(self, name):
        self.page.get_by_role("button", name=name, exact=True).click()

    def slide(self, **values):
        """Set sliders, and wait until the page knows their values."""
        from playwright.sync_api import expect

        for name, value in values.items():
            self.field(f"number input for {name.capitalize()}").fill(str(value))
            expect(self.field(f"range slider for {name.capitalize()}")).to_have_value(
                str(value), timeout=20_000
            )

    def choose(self, name, value):
        """Choose an entry of a list; what is typed and not chosen goes when the field is left."""
        from playwright.sync_api import expect

        field = self.field(name, exact=True)

        def attempt():
            field.fill(value)
            field.press("Enter")
            field.blur()
            self.page.wait_for_timeout(300)
            expect(field).to_have_value(value, timeout=1000)

        eventually(attempt)

    def block(self, label):
        labels = self.page.get_by_test_id("block-label").filter(
            has_text=re.compile(rf"^\s*{re.escape(label)}\s*$")
        )
        return self.page.locator(".block").filter(has=labels).filter(visible=True)

    def shows(self, label, picture, seconds=60):
        """Wait for this very picture."""

        def attempt():
            image = self.block(label).locator("img")
            assert image.count(), f"{label} shows no picture"
            content = self.page.request.get(image.get_attribute("src")).body()
            assert np.array_equal(
                np.asarray(Image.open(io.BytesIO(content)).convert("RGB")), picture
            ), label

        eventually(attempt, seconds)

    def makes(self, button, pictures):
        """Press a button until these pictures, by their labels, are there."""

        def attempt():
            self.press(button)
            for label, picture in pictures.items():
                self.shows(label, picture, 10)

        eventually(attempt)


@pytest.fixture(scope="module")
def page(browser, address):
    with visiting(browser) as visit:
        yield visit(address)


def test_a_browser_samples(classes, page):
    """The page shows what the request of all values that were set makes."""
    page.get_by_role("heading", name="indm: classes", exact=True).wait_for()
    page.get_by_text(str(classes.run), exact=True).wait_for()
    assert page.title() == "indm: classes"
    tab = Tab(page, "Sample")
    assert float(tab.field("range slider for Guidance").input_value()) == 2, "that of the recipe"
    tab.slide(number=4, steps=3, temperature=0.9, guidance=1.5)
    tab.field("Seed").fill("5")
    tab.choose("Sampler", "heun")
    tab.choose("Condition", "7")
    tab.makes("Sample", {"Samples": requests.samples(classes, 4, 3, "heun", 5, 0.9, "7", 1.5)})
    keep(page, "app-sample")
