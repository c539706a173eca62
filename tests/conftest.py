"""What every test shares."""

import lzma
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path

# Before torch and its thread pools are there, and for every process that a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # no pool that imports torch
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test asks the network

import pytest
from filelock import FileLock

from tdbook.corpus import tokenizer_files, writer
from tdbook.runs import parameters, running

ROOT = Path(__file__).parents[1]
A4 = 673  # pixels between its margins
LONG = ("fake_gpu", "upstream_book", "bad_input", "sweeps", "runs", "worker", "export")
READERS = ("test_book.py", "test_lab.py", "test_share.py")  # of the smoke book
FIRST = (*(f"test_{name}.py" for name in LONG), *READERS)


def pytest_configure(config: pytest.Config) -> None:
    """What a script starts with & is deaf to Ctrl-C, and so are its tests and all they start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    config.option.loadscopereorder = False  # xdist would begin with the files of most tests


@pytest.fixture(autouse=True)
def signals_as_a_process_starts_with_them() -> Iterator[None]:
    """A run or `make book` that a test before began in this process leaves its own handlers."""
    for number in (signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)
    yield
    signal.alarm(0)  # or it would end this process later


def pytest_collection_modifyitems(items: list) -> None:
    """The longest files first, or two processes would wait for one of them at the end; then what
    reads the smoke book, which was made beside these."""
    place = {name: i for i, name in enumerate(FIRST)}
    items.sort(key=lambda item: place.get(item.path.name, len(FIRST)))


def missing(what: str) -> None:
    """A failure under CI, a skip elsewhere."""
    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(what)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared data."""
    folder = Path(os.environ.get("SHARED") or ROOT.parent / "shared")
    if not (folder / "data" / "telugu").is_dir():
        missing(f"no data/telugu in {folder}: set SHARED to the folder that holds it")
    return folder


@pytest.fixture(scope="session")
def lines(shared) -> list[str]:
    """A thousand lines of real Telugu: as many of each file, spread evenly."""
    sample, paths = [], sorted((shared / "data" / "telugu").glob("*.xz"))
    for path in paths:
        with lzma.open(path, "rt", encoding="utf8") as f:
            # the largest file is read no further
            texts = list(islice((line.rstrip("\n") for line in f if line.strip()), 20_000))
        sample += texts[:: len(texts) // (1000 // len(paths))][: 1000 // len(paths)]
    assert len(sample) == 1000
    return sample


@pytest.fixture(scope="session")
def making(tmp_path_factory) -> Callable:
    """Makes the smoke book, once for all of pytest's processes; waits where another does."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder

    def make() -> Path:
        with FileLock(folder / "smoke.lock"):
            if not (folder / "smoke.made").exists():
                command = [sys.executable, "-m", "tests.smoke_book", folder / "smoke"]
                done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
                assert done.returncode == 0, done.stdout + done.stderr
                (folder / "smoke.made").touch()
        return folder / "smoke"

    return make


@pytest.fixture(scope="session", autouse=True)
def begun(request, making) -> None:
    """The book is begun beside the first tests, so that those that read it need not wait."""
    if os.environ.get("PYTEST_XDIST_WORKER", "gw0") == "gw0":
        if sum(item.path.name in READERS for item in request.session.items) > 9:
            threading.Thread(target=making, daemon=True).start()


@pytest.fixture(scope="session")
def out(making) -> Path:
    """Run folder of the smoke book; only to be read."""
    return making()


@pytest.fixture(scope="session")
def browser() -> Iterator:
    if not (chromium := shutil.which("chromium")):
        missing("no chromium on this machine: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    flags = """--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync
     --disable-background-networking --disable-component-update --disable-dev-shm-usage"""
    with sync_playwright() as playwright:
        chrome = playwright.chromium.launch(executable_path=chromium, args=flags.split())
        yield chrome
        chrome.close()


@pytest.fixture(scope="session")
def faults(browser) -> Callable:
    """Opens a page without a network and lists what is wrong with it on a screen, a phone and, if
    asked for, paper: requests, console messages, text outside its box, what axe finds serious."""
    from axe_playwright_python.sync_playwright import Axe

    page, outside = browser.new_context(offline=True).new_page(), ROOT / "tests/outside.js"
    events: list[str] = []
    page.on("console", lambda message: events.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: events.append(f"error: {error}"))
    page.on("request", lambda request: events.append(f"request: {request.url}"))

    def look(path: Path, axe: bool = True, paper: bool = False) -> list[str]:
        events.clear()
        page.goto(path.as_uri())
        lines = []
        for media, width in [("print", A4)] * paper + [("screen", 1280), ("screen", 390)]:
            page.emulate_media(media=media)
            page.set_viewport_size({"width": width, "height": 800})
            found = page.evaluate(outside.read_text("utf8"))
            lines += [f"{media} {width}: {line}" for line in found]
        options = {"resultTypes": ["violations"]}
        for one in Axe().run(page, options=options).response["violations"] if axe else ():
            if one["impact"] in ("serious", "critical"):
                lines.append(f"axe: {one['id']}: {one['nodes'][0]['html'][:200]}")
        ours = ("request: file:", "request: data:")
        return [line for line in events if not line.startswith(ours)] + lines

    return look


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    """A small tokenizer, trained here on text of the writer."""
    lines = [line for document in writer.write(60_000, 3) for line in document.lines]
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    return tokenizer_files.train(lines, 700, path)


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A repository with three small notebooks, and this process and its children in it."""
    from tests import small_book

    small_book.repository(tmp_path)
    monkeypatch.setattr(parameters, "ROOT", tmp_path)
    monkeypatch.setattr(running, "_latest", None)
    monkeypatch.setenv("TDLIB_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def shell() -> Iterator[Callable]:
    """Runs a cell in an IPython of its own, which is also this process's shell."""
    from IPython.core.interactiveshell import InteractiveShell

    from tests.smoke_book import new_shell

    yield partial(new_shell().run_cell, store_history=True)
    InteractiveShell.clear_instance()
