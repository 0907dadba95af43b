"""Help, usage errors, the error boundary, signals, what is imported."""

from __future__ import annotations

import importlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import click
import pytest

from bscompile.cli import app as app_module
from bscompile.cli.app import COMMANDS
from bscompile.errors import ArtifactError, BscompileError

DOCS = Path(__file__).parents[2] / "docs"
HEAVY = ("tvm", "tvm_ffi", "torch", "onnx", "onnx_ir", "onnxruntime", "numpy", "rich", "networkx")


def imported_by(*arguments):
    code = """
        import sys
        from bscompile.cli import main
        code = main(sys.argv[2:])
        print("loaded:", *[name for name in sys.argv[1].split(",") if name in sys.modules])
        sys.exit(code)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), ",".join(HEAVY), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.splitlines()[-1].split()[1:]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        [],
        ["bild"],
        ["build"],
        *([name, "--help"] for name in COMMANDS),
        ["build", "model.onnx", "--target", "cdua"],
        ["verify", "a.bsc", "b.onnx", "--dim", "n"],
    ],
    ids=" ".join,
)
def test_help_and_usage_errors_import_nothing_heavy(arguments):
    assert imported_by(*arguments) == []


def test_targets_imports_neither_tvm_nor_torch():
    assert not {"tvm", "torch", "onnxruntime"} & set(imported_by("targets"))


def test_every_command_has_its_file_and_help(call):
    code, out, err = call("--help")
    assert (code, err) == (0, "")
    for name, summary in COMMANDS.items():
        assert name in out
        assert summary in out
        code, detail, _ = call(name, "--help")
        assert code == 0
        assert " ".join(summary.split()[:2]) in " ".join(detail.split())


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["bild"], 2, "no command 'bild'; known: bench, build, .* Did you mean 'build'?"),
        (["build"], 2, "Missing argument 'MODEL' .see bscompile build --help."),
        (["build", "m.onnx", "--thread", "2"], 2, "No such option.*--threads"),
        (["build", "m.onnx", "--threads", "0"], 2, "0 is not in the range"),
        (["build", "m.onnx", "--target", "cdua"], 5, "unknown target 'cdua' .known: cpu"),
        (["run", "none.bsc"], 6, "none.bsc: cannot be read, no such file"),
        (["bench", "none.bsc"], 6, "none.bsc: cannot be read, no such file"),
        (["verify", "a.bsc", "b.onnx", "--dim", "n=x"], 2, "--dim n=x: NAME=LENGTH is wanted"),
        (["verify", "a.bsc", "b.onnx", "--samples", "0"], 2, "0 is not in the range"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_a_code(call, arguments, code, message):
    got, out, err = call(*arguments)
    assert got == code
    assert out == ""
    assert err.count("\n") == 1
    assert re.search(message, err), err
    assert "Traceback" not in err


def test_no_arguments_show_the_help_and_fail(call):
    code, _, err = call()
    assert code == 2
    assert "Usage: bscompile" in err


def failing(monkeypatch, error):
    def fail():
        raise error

    command = click.Command("targets", callback=fail)
    monkeypatch.setattr(app_module.LazyGroup, "get_command", lambda *_: command)


def test_a_bug_keeps_its_traceback(call, monkeypatch):
    failing(monkeypatch, ZeroDivisionError("oops"))
    code, out, err = call("targets")
    assert (code, out) == (70, "")
    assert "Traceback" in err
    assert "ZeroDivisionError: oops" in err
    assert err.endswith("this is a bug in bscompile; please report it with the lines above\n")


def test_an_interrupt_is_one_line(call, monkeypatch):
    failing(monkeypatch, KeyboardInterrupt())
    code, _, err = call("targets")
    assert code == 130
    assert err == "bscompile: interrupted; no file was left half written\n"


@pytest.mark.parametrize("kind", BscompileError.__subclasses__())
def test_errors_of_ours_give_their_code(call, monkeypatch, kind):
    failing(monkeypatch, kind("place: wanted, got", hint="next step"))
    code, _, err = call("targets")
    assert code == kind.exit_code
    assert err == "bscompile: place: wanted, got (next step)\n"


def test_control_characters_of_a_hostile_name_do_not_reach_the_terminal(call, monkeypatch):
    failing(monkeypatch, ArtifactError("a\x1b[31m\nb"))
    assert call("targets")[2] == "bscompile: a\\x1b[31m\\x0ab\n"


@pytest.mark.parametrize("name", ["build", "run", "verify", "bench", "inspect", "targets"])
def test_every_option_is_documented(name):
    page = (DOCS / f"{name}.md").read_text()
    command = importlib.import_module(f"bscompile.cli.{name}").command
    everywhere = {"--quiet", "--verbose"}
    options = {flag for option in command.params for flag in option.opts if flag.startswith("--")}
    assert not {flag for flag in options - everywhere if f"`{flag}" not in page}


def test_exit_codes_are_documented():
    text = (DOCS / "exit_codes.md").read_text()
    for kind in BscompileError.__subclasses__():
        assert f"| {kind.exit_code} |" in text
    for code in (0, 2, 70, 130, 141, 143):
        assert f"| {code} |" in text


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_writing_leaves_nothing_half_written(tmp_path, number, code):
    script = """
        import sys, time
        from pathlib import Path
        import click
        from bscompile.cli import app, main
        from bscompile.files import atomic_file

        def slow():
            with atomic_file(sys.argv[1]) as file:
                file.write(b"half")
                file.flush()
                print("ready", flush=True)
                time.sleep(60)

        command = click.Command("targets", callback=slow)
        app.LazyGroup.get_command = lambda *_: command
        sys.exit(main(["targets"]))
    """
    goal = tmp_path / "m.bsc"
    goal.write_bytes(b"old")
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), str(goal)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    assert len(os.listdir(tmp_path)) == 2
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert "Traceback" not in err
    assert os.listdir(tmp_path) == ["m.bsc"]
    assert goal.read_bytes() == b"old"


def test_a_closed_pipe_is_no_traceback(artifact):
    process = subprocess.Popen(
        [sys.executable, "-m", "bscompile", "inspect", str(artifact), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) == 141
    assert err == b""


def test_json_and_talk_keep_to_their_streams(call, artifact):
    code, out, err = call("inspect", artifact, "--json")
    assert code == 0
    assert json.loads(out)["layers"] == []
    assert err == ""


def test_no_colour_without_a_terminal(call, artifact):
    _, out, err = call("bench", artifact, "--seconds", "0.01")
    assert "\x1b" not in out + err


def on_a_terminal(*arguments, **environment):
    """What the command line writes to a terminal."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "bscompile", *map(str, arguments)],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env={**os.environ, "TERM": "xterm-256color", **environment},
    )
    os.close(follower)
    text = b""
    while True:
        try:
            piece = os.read(leader, 4096)
        except OSError:  # how Linux says that the other side is gone
            break
        if not piece:
            break
        text += piece
    os.close(leader)
    assert process.wait(timeout=60) == 0, text
    return text.decode()


def test_a_terminal_sees_the_phase_and_how_long_it_takes(artifact):
    text = on_a_terminal("bench", artifact, "--seconds", "0.5")
    assert re.search(r"measuring.*0:00:0", text)
    assert "samples/s" in text
    quiet = on_a_terminal("bench", artifact, "--seconds", "0.01", "-q")
    assert "measuring" not in quiet


def test_no_color_is_honoured_on_a_terminal(artifact):
    colour = re.compile(r"\x1b\[[0-9;]*3[0-9][;m]")
    assert colour.search(on_a_terminal("bench", artifact, "--seconds", "0.3"))
    plain = on_a_terminal("bench", artifact, "--seconds", "0.3", NO_COLOR="1")
    assert not colour.search(plain)


def test_the_signal_handler_is_given_back(call):
    before = signal.getsignal(signal.SIGTERM)
    call("--version")
    assert signal.getsignal(signal.SIGTERM) == before
