"""Where WebGPU runs on this machine: by wgpu, in Node with Dawn, in headless Chromium.

What is missing is a reason to skip, with the name of what to install.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest

from bscompile.devices import webgpu as webgpu_device
from bscompile.errors import TargetError

_SCRIPT = Path(__file__).with_name("run_model.mjs")
_PACKAGES = Path(sys.prefix) / "node"
#: Chromium's own software driver: the browser trusts it, and Dawn finds all it wants there.
_SOFTWARE_DRIVER = Path("/usr/lib/chromium/vk_swiftshader_icd.json")
_PATIENCE_SECONDS = 90
_ATTEMPTS = 3

#: Put into the page as it is served: hands on what the page tells scripts, or acts on it first.
_LISTENER = """<script>
const steps = [%s];
for (const what of ["answered", "failed"])
  document.addEventListener(`bscompile:${what}`, ({detail}) => {
    const step = what === "answered" && steps.shift();
    if (step) step();
    else fetch("/told", {
      method: "POST",
      body: JSON.stringify({what, ...detail, text: document.body.innerText}),
    });
  });
function choose(file, at) {
  const input = document.querySelectorAll("input[type=file]")[at];
  const transfer = new DataTransfer();
  transfer.items.add(file);
  input.files = transfer.files;
  input.dispatchEvent(new Event("change"));
}
</script>"""


def missing_adapter():
    """Why WebGPU code cannot be run here by wgpu; empty when it can."""
    try:
        webgpu_device.find()
    except TargetError as error:
        return str(error)
    return ""


def need_wgpu():
    """Skip where wgpu-py has no device."""
    if reason := missing_adapter():
        pytest.skip(reason)


def need_node():
    """Skip where Node or its WebGPU package is missing."""
    if not shutil.which("node"):
        pytest.skip("node is not installed: apt-get install nodejs")
    if not (_PACKAGES / "node_modules" / "webgpu").is_dir():
        pytest.skip(f"no WebGPU for Node: npm install --prefix {_PACKAGES} webgpu")
    if not _SOFTWARE_DRIVER.is_file():
        pytest.skip("no Vulkan driver that Dawn takes: apt-get install chromium")


def _answer_of_node(folder, inputs):
    """What the script says. On a busy machine the software driver aborts Node or hangs in it now
    and then; that says nothing of us, so it is tried again. An answer, right or wrong, is final.
    """
    endings = []
    while len(endings) < _ATTEMPTS:
        try:
            done = subprocess.run(
                ["node", str(_SCRIPT), str(folder), str(_PACKAGES)],
                input=inputs,
                capture_output=True,
                timeout=_PATIENCE_SECONDS,
                env={**os.environ, "VK_ICD_FILENAMES": str(_SOFTWARE_DRIVER)},
            )
        except subprocess.TimeoutExpired:
            endings.append("hung")
            continue
        if done.stdout:  # it then stops itself by SIGKILL
            return json.loads(done.stdout)
        assert done.returncode < 0, f"ended with {done.returncode}: {done.stderr.decode()}"
        endings.append(signal.Signals(-done.returncode).name)
    pytest.skip(f"the WebGPU driver for Node ended by itself each time: {', '.join(endings)}")


def run_in_node(folder, inputs):
    """The outputs of an exported folder, or the text of its error."""
    need_node()
    numbers = {name: array.reshape(-1).tolist() for name, array in inputs.items()}
    result = _answer_of_node(folder, json.dumps(numbers).encode())
    if "error" in result:
        return str(result["error"])
    return {
        name: np.array(one["data"], one["dtype"]).reshape(one["shape"])
        for name, one in result.items()
    }


def need_chromium():
    """The browser; skips where there is none."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("chromium is not installed: apt-get install chromium")
    return browser


def open_in_chromium(folder, *steps):
    """What the page of an exported folder tells: {what: answered or failed, ...}.

    Each step is a JavaScript function that is called instead when the page has answered, and
    makes it answer again.
    """
    browser = need_chromium()
    with (
        _served(folder, _LISTENER % ", ".join(steps)) as (address, told),
        tempfile.TemporaryDirectory() as profile,
    ):
        process = subprocess.Popen(
            [
                browser,
                *("--headless=new", "--no-sandbox", "--disable-gpu-sandbox", "--no-first-run"),
                *("--disable-background-networking", "--disable-component-update"),
                *("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"),
                f"--user-data-dir={profile}",
                address,
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            process_group=0,
        )
        try:
            assert told.ready.wait(_PATIENCE_SECONDS), "the page said nothing"
        finally:
            os.killpg(process.pid, 9)
            process.wait()
    return told.what


class _Told:
    def __init__(self):
        self.ready, self.what = threading.Event(), None


@contextlib.contextmanager
def _served(folder, script):
    told = _Told()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(folder))

        def do_GET(self):
            if self.path != "/":
                super().do_GET()
                return
            page = Path(folder, "index.html").read_text().replace("</head>", f"{script}</head>")
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(page.encode())

        def do_POST(self):
            said = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            told.what = told.what or said  # the first word counts
            self.send_response(204)
            self.end_headers()
            told.ready.set()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", told
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
