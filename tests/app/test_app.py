"""The page of a run: what its requests compute, what they refuse, and that a browser can use it."""

import importlib.util
import io
import json
import logging
import math
import os
import queue
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
from browsers import NARROW, keep, overflow
from PIL import Image
from solvers import solve_roughly

import indm
from indm.app import requests
from indm.app.requests import WAYS, Side, Source, at_most, open_sides, translation_of
from indm.cli import app
from indm.cli.main import main
from indm.config import recipes
from indm.data.registry import load_data
from indm.evaluation import sheets
from indm.model import build_model
from indm.report.figures import slerp
from indm.sampling import default_sampler
from indm.scaling import Scaling
from indm.translation import bridge

NET = {"name": "mlp", "width": 16, "depth": 1, "fourier": 0}
LABELS = [str(number) for number in range(10)]


def save(folder, seed=None, condition=None):
    """A run on digits: latents N(0, I) and their exact score, or weights at random of that seed."""
    tables = {"flow": {"name": "identity"}, "sde": {"name": "vp"}, "net": {"name": "zero"} if seed is None else NET}
    tables |= {"condition": condition | {"drop": 0.1}} if condition else {}
    torch.manual_seed(seed or 0)
    model = build_model(tables, (1, 8, 8), Scaling.images(17)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.04 * torch.randn_like(parameter)
    folder.mkdir(parents=True)
    model.save(folder)
    (folder / "recipe.toml").write_text(recipes.to_toml(recipes.resolve(tables | {"data": {"name": "digits"}})))
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Runs, and an image that is no test image."""
    home = tmp_path_factory.mktemp("app")
    save(home / "exact")
    save(home / "classes", 0, {"name": "classes", "labels": LABELS})
    save(home / "numbers", 0, {"name": "vector", "size": 2})
    save(home / "pair" / "a", 1)
    save(home / "pair" / "b", 2)
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(home / "mine.png")
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


@pytest.fixture
def rough(monkeypatch):
    solve_roughly(monkeypatch)


# ── Requests ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_samples_are_those_of_the_library(home):
    side = Side.opened(home / "classes")
    grid = requests.samples(side, 4, 5, "heun", 3, 0.5, "7", 2.0)
    generator = torch.Generator().manual_seed(3)
    options = {"c": "7", "guidance": 2.0, "sampler": "heun", "steps": 5, "temperature": 0.5, "generator": generator}
    x = indm.sample(side.model, 4, **options)
    assert np.array_equal(grid, sheets.grid(side.model.scaling.to_data(x), 17))
    assert not np.array_equal(grid, requests.samples(side, 4, 5, "heun", 3, 0.5, "", 1.0))  # p(x)


def test_numbers_are_a_condition(home):
    side = Side.opened(home / "numbers")
    grid = requests.samples(side, 4, 5, "heun", 3, 1.0, "[0.5, -2]", 1.0)
    options = {"c": [0.5, -2.0], "sampler": "heun", "steps": 5, "generator": torch.Generator().manual_seed(3)}
    assert np.array_equal(grid, sheets.grid(side.model.scaling.to_data(indm.sample(side.model, 4, **options)), 17))
    for wrong in ("cat", "[1,", '["cat", "dog"]', "0.5", "[0.5]"):
        with pytest.raises(ValueError, match="must be numbers"):
            requests.samples(side, 4, 5, "heun", 3, 1.0, wrong, 1.0)


def test_a_likelihood_is_that_of_the_image_with_its_conventions(home):
    """For N(0, I) and its exact score both numbers are −log₂ of the density, averaged over the noise."""
    side = Side.opened(home / "exact")
    text = requests.likelihood(side, Source(str(home / "mine.png")), 16, 0, "")
    rows = {
        name: [float(n) for n in numbers.split("|")[:2]] for name, numbers in re.findall(r"\*\*(.+)\*\* \|(.+)", text)
    }
    raw = side.read(Source(str(home / "mine.png")))[0].double()
    edges = (torch.stack([raw, raw + 1]) * 2 / 17 - 1) / math.sqrt(2)  # of each grey level
    second = (edges**3)[1] - (edges**3)[0]  # mean of x² over a level, from its third powers
    energy = (second / (edges[1] - edges[0]) / 3 * 2).mean()
    expected = (0.5 * math.log(2 * math.pi) + 0.5 * energy.item() - math.log(2 / 17)) / math.log(2)
    assert list(rows) == ["NELBO", "NLL (ODE)"]
    for mean, error in rows.values():
        assert 0 < error < 0.2 and abs(mean - expected) < 4 * error + 0.01
    assert "Dequantization: uniform" in text and "resized from 16×16" in text and "16 draws" in text
    assert "uniform noise needs 4.09" in text and "Held-out" not in text


def test_a_likelihood_repeats_itself_for_its_seed(home):
    side = Side.opened(home / "exact")
    texts = [requests.likelihood(side, Source(None, 3), 2, seed, "") for seed in (4, 4, 5)]
    assert texts[0] == texts[1] != texts[2]


def test_held_out_images_of_an_evaluated_run_are_named(home, monkeypatch):
    row = {"bits_per_dim": 1.5, "bits_per_dim_standard_error": 0.25}
    monkeypatch.setattr(requests, "read_evaluation", lambda run: {"nelbo": {"with_reconstruction": row}})
    text = requests.likelihood(Side.opened(home / "exact"), Source(None, 0), 2, 0, "")
    assert "Held-out images of this run: NELBO 1.500 ± 0.250 bits/dim." in text and "test image 0" in text


def test_an_interpolation_goes_from_one_image_to_the_other(home, panels):
    side = Side.opened(home / "exact")
    requests.interpolation(side, [Source(None, 0), Source(None, 1)], 3, "")
    ((panel,),) = panels
    raw = torch.stack([side.test[0], side.test[1]])
    x = side.model.scaling.centre(raw)
    middle = side.model.scaling.to_data(slerp(x[:1], x[1:], 0.5))
    assert torch.equal(panel.images[[0, 2]], raw) and list(panel.tops) == ["x", "50%", "x′"]
    assert (panel.images[1].int() - middle[0].int()).abs().max() <= 1


def as_file(image, path):
    """An image of 17 grey levels as a file in colour, with bytes in the middle of each level; not test image 0."""
    grey = ((image[0] + 0.5) * 256 / 17).byte().numpy()
    Image.fromarray(np.dstack([grey] * 3)).save(path)
    return Source(str(path), 0)


@pytest.mark.usefixtures("rough")
def test_uploads_are_interpolated_as_the_images_that_they_show(home, panels, tmp_path):
    side = Side.opened(home / "classes")
    known = [Source(None, 7), Source(None, 4)]
    files = [as_file(side.test[source.number], tmp_path / f"{source.number}.png") for source in known]
    for sources in (known, files, [files[0], known[1]], files[::-1]):
        requests.interpolation(side, sources, 3, "3")
    strips = [panel.images for ((panel,),) in zip(panels, strict=True)]
    assert torch.equal(strips[0][[0, -1]], torch.stack([side.test[7], side.test[4]]))
    assert torch.equal(strips[1], strips[0]) and torch.equal(strips[2], strips[0])
    assert torch.equal(strips[3][[0, -1]], strips[0][[-1, 0]])


@pytest.mark.usefixtures("rough")
def test_the_condition_of_an_interpolation_changes_its_middle_alone(home, panels):
    side = Side.opened(home / "classes")
    for c in ("3", "8"):
        requests.interpolation(side, [Source(None, 0), Source(None, 1)], 3, c)
    of_3, of_8 = (panel.images for ((panel,),) in zip(panels, strict=True))
    assert torch.equal(of_3[[0, 2]], of_8[[0, 2]]) and not torch.equal(of_3[1], of_8[1])


def test_a_model_that_draws_codes_has_no_interpolation(home):
    flow = {"name": "conditional-residual", "blocks": [1], "width": 4, "code_dim": 2, "encoder_planes": [4]}
    tables = {"flow": flow, "sde": {"name": "vp"}, "net": NET}
    side = replace(Side.opened(home / "exact"), model=build_model(tables, (1, 8, 8), Scaling.images(17)))
    with pytest.raises(ValueError, match="draws a code in every call"):
        requests.interpolation(side, [Source(None, 0), Source(None, 1)], 3, "")


@pytest.mark.parametrize("way", WAYS)
def test_a_translation_is_that_of_the_library(home, panels, way):
    a, b = (indm.INDM.load(home / "pair" / name) for name in "ab")
    translation = translation_of(open_sides([home / "pair"]))
    translation(Source(None, 2), way, ("", ""), 0.5, 20)
    (pair,), (up, down) = panels
    first, last = (a, b) if way == WAYS[0] else (b, a)
    raw = translation.sides[0].test[2][None]
    result = last.scaling.to_data(indm.translate(first, last, first.scaling.centre(raw), strength=0.5, steps=20))
    assert torch.equal(pair.images, torch.cat([raw, result]))
    assert torch.equal(up.images[0], raw[0]) and len(up.images) == len(down.images) == requests.FRAMES
    assert (down.images[-1].int() - result[0].int()).abs().max() <= 2  # solved in parts, which is less exact
    assert up.tops == ["t = 1e-05", "0.13", "0.25", "0.38", "0.5"]  # it turns at half strength
    assert [word.removeprefix("t = ") for word in down.tops] == ["0.5", "0.38", "0.25", "0.13", "1e-05"]


@pytest.mark.parametrize("way", WAYS)
def test_an_upload_is_translated_as_the_image_that_it_shows(home, panels, tmp_path, way):
    translation = translation_of(open_sides([home / "pair"]))
    file = as_file(translation.sides[0].test[2], tmp_path / "2.png")
    for source in (Source(None, 2), file):
        translation(source, way, ("", ""), 1.0, 20)
    known, uploaded = panels[:2], panels[2:]
    for ours, theirs in zip(uploaded, known, strict=True):
        assert all(torch.equal(one.images, other.images) for one, other in zip(ours, theirs, strict=True))
    image, result = uploaded[0][0].images
    assert torch.equal(image, translation.sides[0].test[2]) and not torch.equal(image, result)


def test_one_model_translates_between_its_classes(home, panels):
    side = Side.opened(home / "classes")
    translation_of([side])(Source(None, 0), WAYS[0], ("3", "8"), 1.0, 20)
    raw, model = side.test[0][None], side.model
    x = model.scaling.centre(raw)
    result = indm.translate(model, model, x, c=("3", "8"), steps=20)
    assert torch.equal(panels[0][0].images[1:], model.scaling.to_data(result))
    panels.clear()
    translation_of([side])(Source(None, 0), WAYS[0], ("3", "8"), 1.0, 20, 4.0)
    guided = indm.translate(model, model, x, c=("3", "8"), steps=20, guidance=4.0)
    assert torch.equal(panels[0][0].images[1:], model.scaling.to_data(guided)) and not torch.equal(guided, result)
    assert translation_of([Side.opened(home / "exact")]) is None
    assert translation_of([side]).guides and not translation_of(open_sides([home / "pair"])).guides


@pytest.mark.parametrize(("way", "direction"), zip(WAYS, ("forward", "backward"), strict=True))
def test_a_bridge_goes_both_ways_from_the_images_of_that_end(panels, way, direction):
    """With the noise of grey levels, and with that with which it has learned its ends."""
    run = Path(__file__).parents[1] / "fixtures" / "runs" / "bridge"  # from threes to eights
    model, raw = indm.INDM.load(run), load_data(name="digits", label=3 if way == WAYS[0] else 8).test[0][None]
    for noise, strength in (((0.0, 0.0), 0.5), ((0.1, 0.3), 1.0)):
        translation = replace(translation_of([Side.opened(run)]), noise=noise)
        translation(Source(None, 0), way, ("", ""), strength, 10)
        route = bridge(model, direction, strength=strength, steps=10, noise=noise)
        result = model.scaling.to_data(route.translate(raw).x)
        assert translation.is_bridge and torch.equal(panels[0][0].images, torch.cat([raw, result]))
        panels.clear()


def test_only_images_of_a_decent_size_are_read(home, tmp_path, monkeypatch):
    side = Side.opened(home / "exact")
    (tmp_path / "text.png").write_text("not at all")
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")  # whose decoder is a program
    for name in ("text.png", "a.png"):
        with pytest.raises(ValueError, match=name) as refused:
            side.read(Source(str(tmp_path / name)))
        assert str(tmp_path) not in str(refused.value)  # it is where uploads are kept
    monkeypatch.setattr(requests, "MOST_PIXELS", 255)
    with pytest.raises(ValueError, match="at most 255 pixels, got 16×16"):
        side.read(Source(str(home / "mine.png")))
    with pytest.raises(ValueError, match=r"0 to \d+, got 100000"):
        side.read(Source(None, 1e5))


def test_without_its_data_a_run_takes_uploads_alone(home, tmp_path):
    run = save(tmp_path / "run")
    text = (run / "recipe.toml").read_text()
    (run / "recipe.toml").write_text(text.replace('name = "digits"', 'name = "folder"\npath = "/gone"\nsize = 8'))
    side = Side.opened(run)
    assert side.test is None and side.read(Source(str(home / "mine.png")))[0].shape == (1, 8, 8)
    with pytest.raises(ValueError, match=r"upload an image first; there are no test images: .*gone"):
        side.read(Source(None, 0))


def test_a_request_that_takes_too_long_is_stopped(home):
    side = Side.opened(home / "pair" / "a")
    with pytest.raises(TimeoutError, match="stopped after 0 seconds"), at_most(0):
        requests.samples(side, 1, 5, "heun", 0, 1.0, "", 1.0)
    requests.samples(side, 1, 5, "heun", 0, 1.0, "", 1.0)  # the limit has ended with its request


def test_a_model_is_called_by_its_folder(home, monkeypatch):
    assert [side.name for side in open_sides([home / "pair"])] == ["pair/a", "pair/b"]
    monkeypatch.chdir(home / "exact")
    assert Side.opened(Path()).name == "exact"


def test_models_of_anything_but_images_are_refused(tmp_path):
    run = tmp_path / "run"
    recipe = {"data": {"name": "eight-gaussians"}, "flow": {"name": "identity"}, "sde": {"name": "vp"}, "net": NET}
    build_model({name: recipe[name] for name in ("flow", "sde", "net")}, (2,)).save(run)
    (run / "recipe.toml").write_text(recipes.to_toml(recipes.resolve(recipe)))
    with pytest.raises(ValueError, match=r"needs a model of images in grey levels, .* has events of shape \(2,\)"):
        open_sides([run])
    with pytest.raises(ValueError, match="takes one run or two, got 3"):
        open_sides([run] * 3)


# ── The command ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_without_gradio_one_line_says_how_to_get_it(capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["app", "runs/digits"]) == 2
    assert capsys.readouterr().err == "indm: error: indm app needs the library Gradio: pip install 'indm[app]'\n"


@pytest.fixture
def sigterm():
    """A signal that fails the test where the command leaves it as it was."""
    before = signal.signal(signal.SIGTERM, lambda *_: pytest.fail("ended without a clean-up"))
    yield signal.SIGTERM
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_the_command_serves_until_a_signal_and_takes_uploads_away(home, capsys, monkeypatch, sigterm, name):
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

    monkeypatch.setattr(app, "threading", SimpleNamespace(Event=lambda: SimpleNamespace(wait=interrupted)))
    assert main(["app", str(home / "exact")]) == 0 and not seen[1].exists()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", seen[0]))


# ── The server ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def address(home):
    """That of the page of a model of classes. Its process reaches nobody else."""
    pytest.importorskip("gradio")
    from indm.app import page

    reached, connect = [], socket.socket.connect

    def noting(self, address):
        reached.append(address)
        return connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", noting)
        patch.setattr(page, "LARGEST_UPLOAD", 100 * 2**10)
        with page.serving([Side.opened(home / "classes")], "127.0.0.1", None, 60) as address:
            yield address
        assert {host for host, *_ in (a for a in reached if isinstance(a, tuple))} <= {"127.0.0.1"}


@pytest.fixture
def serving(monkeypatch):
    """Serves other models beside those of ``address``, whose folder of uploads comes back at the end."""
    pytest.importorskip("gradio")
    from indm.app.page import serving

    monkeypatch.setenv("GRADIO_TEMP_DIR", os.environ.get("GRADIO_TEMP_DIR", ""))
    return serving


@pytest.fixture(scope="module")
def httpx():
    return pytest.importorskip("httpx", reason="comes with Gradio")


def ask(httpx, address, index, data):
    """What the server makes of a request like one of the page: whether it was done, and its output."""
    body = {"data": data, "fn_index": index, "session_hash": "me"}
    with httpx.Client(base_url=f"{address}gradio_api/", timeout=30) as client:
        client.post("queue/join", json=body).raise_for_status()
        with client.stream("GET", "queue/data", params={"session_hash": "me"}) as stream:
            events = (json.loads(line.removeprefix("data: ")) for line in stream.iter_lines() if line)
            last = next(event for event in events if event["msg"] in ("process_completed", "unexpected_error"))
    return last["success"], last["output"]


def test_no_file_of_the_machine_is_served(home, address, httpx):
    checkpoint = home / "classes" / "model.safetensors"
    for path in ("/etc/passwd", checkpoint, "../../etc/passwd", "pyproject.toml", home / "mine.png"):
        for route in ("file=", "file/", "static/", "assets/", "custom_component/"):
            for base in (address, f"{address}gradio_api/"):
                reply = httpx.get(f"{base}{route}{path}")
                assert reply.status_code in (403, 404), (route, path)


def test_a_request_names_no_file_of_the_machine(home, address, httpx):
    """Only what was uploaded is read, whatever the page is told to send."""
    with open(home / "mine.png", "rb") as file:
        (uploaded,) = httpx.post(f"{address}gradio_api/upload", files={"files": file}).json()
    config = httpx.get(f"{address}config").json()
    (index,) = [d["id"] for d in config["dependencies"] if len(d["inputs"]) == 5]  # of the likelihood
    done = {}
    for path in (uploaded, str(home / "mine.png"), "/etc/passwd"):
        file = {"path": path, "orig_name": "mine.png", "meta": {"_type": "gradio.FileData"}}
        done[path], _ = ask(httpx, address, index, [file, 0, 2, 0, "1"])
    assert list(done.values()) == [True, False, False]
    assert httpx.post(f"{address}gradio_api/run/predict", json={"data": [], "fn_index": index}).status_code >= 400


def test_a_page_of_somebody_else_reaches_nothing(address, httpx):
    """Its name may be made to point to this machine; the browser would then take both for one site."""
    assert httpx.get(address).status_code == httpx.get(address.replace("127.0.0.1", "localhost")).status_code == 200
    for path in ("", "config", "gradio_api/info"):
        assert httpx.get(f"{address}{path}", headers={"host": "elsewhere.example:7860"}).status_code == 400


def test_numbers_out_of_range_and_large_uploads_are_refused(address, httpx):
    config = httpx.get(f"{address}config").json()
    (index,) = [d["id"] for d in config["dependencies"] if len(d["inputs"]) == 7][:1]  # of the samples
    good = [1, 1, "heun", 0, 1.0, "1", 1]
    assert ask(httpx, address, index, good)[0]
    for place, value in ((0, 1000), (1, 10**6), (2, "os:system"), (3, -1), (4, 0), (5, "cat"), (6, 99)):
        assert not ask(httpx, address, index, [*good[:place], value, *good[place + 1 :]])[0], place
    reply = httpx.post(f"{address}gradio_api/upload", files={"files": ("a.png", b"0" * 200_000)})
    assert reply.status_code == 413


def upload_of(size):
    return {"files": ("a.png", b"0" * size)}


def test_a_page_of_somebody_else_sends_nothing(address, httpx):
    """A browser lets any site send files and texts here, and says which one it is."""
    from indm.app import guard

    page, kept = address.rstrip("/"), Path(os.environ["GRADIO_TEMP_DIR"])
    before = guard.bytes_below(kept)
    for origin in ("http://elsewhere.example", "null", "http://127.0.0.1:1", f"{page}.elsewhere.example"):
        headers = {"origin": origin}
        sent = [httpx.post(f"{address}gradio_api/upload", files=upload_of(10), headers=headers)]
        text = json.dumps({"data": [], "fn_index": 0, "session_hash": "me"})
        sent += [httpx.post(f"{address}gradio_api/queue/join", content=text, headers=headers)]
        assert [reply.status_code for reply in sent] == [403, 403]
    assert guard.bytes_below(kept) == before
    assert httpx.post(f"{address}gradio_api/upload", files=upload_of(10), headers={"origin": page}).status_code == 200


def test_uploads_have_a_limit_in_all(address, httpx, monkeypatch):
    from indm.app import guard

    kept, upload = Path(os.environ["GRADIO_TEMP_DIR"]), f"{address}gradio_api/upload"
    monkeypatch.setattr(guard, "MOST_UPLOADED", guard.bytes_below(kept) + 100_000)
    said = [httpx.post(upload, files=upload_of(size)) for size in (40_000, 60_000, 1_000)]
    assert [reply.status_code for reply in said] == [200, 413, 200]
    assert said[1].text == f"no more than {guard.MOST_UPLOADED:,} bytes are kept; uploads go after an hour"
    for i in range(20):  # an empty file takes a block, too
        last = httpx.post(upload, files={"files": (f"{i}.png", str(i).encode())})
    assert last.status_code == 413
    monkeypatch.undo()
    assert httpx.post(upload, content=iter([b"0"] * 3)).status_code == 411  # of an unknown length
    assert httpx.post(f"{address}gradio_api/component_server", files=upload_of(10)).status_code == 403
    assert httpx.post(upload, files=[("files", upload_of(90_000)["files"])] * 20).status_code == 413


def test_an_error_is_one_short_line(address, httpx, capsys, caplog):
    config, log = httpx.get(f"{address}config").json(), logging.getLogger("uvicorn.error")
    (index,) = [d["id"] for d in config["dependencies"] if len(d["inputs"]) == 7][:1]
    log.addHandler(caplog.handler)
    try:
        capsys.readouterr()
        done, output = ask(httpx, address, index, ["x" * 100_000])
        assert not done and len(output["error"]) < 250
        assert httpx.post(f"{address}gradio_api/upload", files={"files": (None, "no file")}).status_code == 500
    finally:
        log.removeHandler(caplog.handler)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all(line.startswith("indm: error: ") and len(line) < 250 for line in lines)
    assert "needed: 7, got: 1" in lines[0] and "POST /gradio_api/upload: TypeError: " in lines[1] and not caplog.records
    reply = httpx.post(f"{address}gradio_api/queue/join", json={"data": "x" * 2_000_000})
    assert (reply.status_code, reply.text) == (413, "a request must be at most 1,000,000 bytes")


# ── The browser ─────────────────────────────────────────────────────────────────────────────────────────────────────


def eventually(attempt, seconds=60):
    """Repeat an attempt until it holds: the page takes a moment from what it shows to what it sends."""
    end = time.monotonic() + seconds
    while True:
        try:
            return attempt()
        except AssertionError:
            if time.monotonic() > end:
                raise
            time.sleep(1)


def is_set(field, value):
    """Wait until the page knows the value of a field."""
    from playwright.sync_api import expect

    expect(field).to_have_value(str(value), timeout=20_000)


def slide(page, **values):
    """Set sliders of the tab that is open."""
    for name, value in values.items():
        page.get_by_label(f"number input for {name.capitalize()}").filter(visible=True).fill(str(value))
        is_set(page.get_by_label(f"range slider for {name.capitalize()}").filter(visible=True), value)


def choose(page, name, value):
    """Choose an entry of a list of the tab that is open; what is typed and not chosen goes when the field is left."""
    from playwright.sync_api import expect

    field = page.get_by_label(name, exact=True).filter(visible=True)

    def attempt():
        field.fill(value)
        field.press("Enter")
        field.blur()
        page.wait_for_timeout(300)
        expect(field).to_have_value(value, timeout=1000)

    eventually(attempt)


def block(page, label):
    """The part of the tab that is open with this label."""
    labels = page.get_by_test_id("block-label").filter(has_text=re.compile(rf"^\s*{re.escape(label)}\s*$"))
    return page.locator(".block").filter(has=labels).filter(visible=True)


def upload(page, file, label="Image"):
    """Give a file to a field of the tab that is open, and wait until its table names the file."""
    from playwright.sync_api import expect

    place = block(page, label)

    def attempt():
        field = place.locator("input[type=file]")
        if field.count():  # it goes where there is a file
            field.set_input_files(file)
        expect(place.get_by_role("cell", name=file.name).first).to_be_visible(timeout=10_000)

    eventually(attempt)


def number(page, value, place=0):
    """Choose a test image by its number: the first of the tab that is open, or the one after it."""
    page.get_by_label("or the test image of number").filter(visible=True).nth(place).fill(str(value))


def shown(page, label):
    """The picture of this label in the tab that is open; None where there is none."""
    picture = block(page, label).locator("img")
    if not picture.count():
        return None
    return np.asarray(Image.open(io.BytesIO(page.request.get(picture.get_attribute("src")).body())).convert("RGB"))


def shows(page, label, picture, seconds=60):
    """Wait for this very picture."""
    end = time.monotonic() + seconds
    while not np.array_equal(shown(page, label), picture):
        assert time.monotonic() < end, f"{label} shows another picture"
        page.wait_for_timeout(200)


def makes(page, button, pictures):
    """Press a button until these pictures, by their labels, are there."""

    def attempt():
        page.get_by_role("button", name=button, exact=True).click()
        for label, picture in pictures.items():
            shows(page, label, picture, 10)

    eventually(attempt)


@pytest.fixture
def likelihoods(monkeypatch):
    """What the likelihood was asked, and its text, one after another."""
    made, compute = queue.Queue(), requests.likelihood

    def request(side, *asked):
        text = compute(side, *asked)
        made.put((asked, text))
        return text

    monkeypatch.setattr(requests, "likelihood", request)
    return made


def open_tab(page, name):
    """Open a tab; on a phone some are behind a button."""
    tab, more = page.get_by_role("tab", name=name), page.locator(".overflow-menu > button")
    tab.or_(more).filter(visible=True).first.wait_for()
    if not tab.is_visible():
        more.click()
        tab = page.get_by_role("button", name=name)
    tab.click()


def sees(label="Image"):
    return f"{label}, as the model sees it"


def test_a_browser_samples(home, address, visit):
    """As in the tests below, what is shown is what the request of all values that were set makes."""
    side = Side.opened(home / "classes")
    page = visit(address)
    page.get_by_role("heading", name="indm: classes", exact=True).wait_for()
    page.get_by_text(str(side.run), exact=True).wait_for()
    assert page.title() == "indm: classes"
    slide(page, number=4, steps=3, temperature=0.9, guidance=1.5)
    page.get_by_label("Seed").filter(visible=True).fill("5")
    choose(page, "Sampler", "heun")
    choose(page, "Condition", "7")
    makes(page, "Sample", {"Samples": requests.samples(side, 4, 3, "heun", 5, 0.9, "7", 1.5)})
    keep(page, "app-sample")


def test_a_browser_gives_numbers_as_a_condition(home, visit, serving):
    side = Side.opened(home / "numbers")
    with serving([side], "127.0.0.1", None, 60) as address:
        page = visit(address)
        slide(page, number=4, steps=3)
        field = page.get_by_label("Condition").filter(visible=True)
        field.fill("[0.5, -2]")
        picture = requests.samples(side, 4, 3, default_sampler(side.model), 0, 1.0, "[0.5, -2]", 1.0)
        makes(page, "Sample", {"Samples": picture})
        field.fill("cat")
        page.get_by_role("button", name="Sample", exact=True).click()
        page.get_by_text("the condition must be numbers such as [0.5, 1.2], got cat", exact=True).wait_for()


def test_a_browser_measures_likelihoods(home, address, visit, likelihoods):
    side = Side.opened(home / "classes")
    page = visit(address)
    open_tab(page, "Likelihood")
    slide(page, draws=2)
    page.get_by_label("Seed").filter(visible=True).fill("4")
    choose(page, "Condition", "3")

    def measured(chosen):
        def asked_as_chosen():
            page.get_by_role("button", name="Likelihood", exact=True).click()
            (source, *asked), text = likelihoods.get(timeout=20)
            assert chosen(source) and asked == [2, 4, "3"]
            return text

        found = re.findall(r"\| ([\d.]+)", eventually(asked_as_chosen))
        assert len(found) == 5  # two means, their errors, and that of the solver
        for value in found:
            page.get_by_role("cell", name=value, exact=True).first.wait_for()

    number(page, 3)
    shows(page, sees(), requests.preview(side, Source(None, 3)))
    measured(lambda source: source == Source(None, 3))
    page.get_by_text("The image given 3: test image 3, 1×8×8.").wait_for()

    upload(page, home / "mine.png")
    shows(page, sees(), requests.preview(side, Source(str(home / "mine.png"))))
    measured(lambda source: source.file is not None and source.file.endswith("mine.png"))
    page.get_by_text("The image given 3: resized from 16×16").wait_for()
    keep(page, "app-likelihood")


@pytest.mark.usefixtures("rough")
def test_a_browser_interpolates(home, address, visit):
    side, mine = Side.opened(home / "classes"), Source(str(home / "mine.png"))
    page = visit(address)
    open_tab(page, "Interpolation")
    slide(page, pictures=3)
    choose(page, "Condition", "7")
    chosen = [Source(None, 4), Source(None, 6)]
    for place, (label, source) in enumerate(zip(("From", "To"), chosen, strict=True)):
        number(page, source.number, place)
        shows(page, sees(label), requests.preview(side, source))
    makes(page, "Interpolate", {"From one to the other": requests.interpolation(side, chosen, 3, "7")})
    for label, sources in (("To", [chosen[0], mine]), ("From", [mine, mine])):
        upload(page, home / "mine.png", label)
        shows(page, sees(label), requests.preview(side, mine))
        makes(page, "Interpolate", {"From one to the other": requests.interpolation(side, sources, 3, "7")})
        if label == "To":
            keep(page, "app-interpolation")


def test_a_browser_translates(home, address, visit, tmp_path):
    side, mine = Side.opened(home / "classes"), Source(str(home / "mine.png"))
    translation = translation_of([side])
    page = visit(address)
    open_tab(page, "Translation")
    slide(page, strength=0.5, steps=12, guidance=4)
    choose(page, "Condition of A", "3")
    choose(page, "Condition of B", "7")

    def translates(source):
        shows(page, sees(), requests.preview(side, source))
        pair, way = translation(source, WAYS[0], ("3", "7"), 0.5, 12, 4)
        makes(page, "Translate", {"Source and result": pair, "The way": way})

    number(page, 5)
    translates(Source(None, 5))
    upload(page, home / "mine.png")
    translates(mine)
    keep(page, "app-translation")
    block(page, "Image").get_by_label("Clear").click()
    translates(Source(None, 5))

    (tmp_path / "broken.png").write_bytes(b"no image")
    upload(page, tmp_path / "broken.png")
    page.get_by_text("cannot identify image file 'broken.png'", exact=True).wait_for()
    page.wait_for_timeout(1000)  # until it has appeared in full
    keep(page, "app-broken-file", whole=False)


@pytest.mark.long
def test_a_phone_shows_two_models_in_the_dark(home, visit, serving):
    sides = open_sides([home / "pair"])
    with serving(sides, "127.0.0.1", None, 60) as address:
        page = visit(address, viewport=NARROW, color_scheme="dark")
        for name in ("Sample", "Likelihood", "Interpolation", "Translation"):
            open_tab(page, name)
            page.get_by_role("button", name=name.replace("ation", "ate"), exact=True).wait_for()
            assert overflow(page) == 0
            keep(page, f"app-{name.lower()}-dark")
        page.get_by_label("B to A").click()
        slide(page, steps=10)
        pair, way = translation_of(sides)(Source(None, 0), WAYS[1], ("", ""), 1.0, 10)
        makes(page, "Translate", {"Source and result": pair, "The way": way})
        assert overflow(page) == 0
        keep(page, "app-translated-dark")
        red, green, blue = map(
            int, re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))[:3]
        )
        assert max(red, green, blue) < 64
