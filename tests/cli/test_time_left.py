"""The estimate of the time that is left: silent at first, corrected by every phase."""

import pytest

from bscompile.cli.time_left import BUILD_SHARES, TimeLeft, spelled

SHARES = {"read": 30, "work": 50, "write": 20}


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def watch(clock):
    return TimeLeft(SHARES, clock)


def test_nothing_is_said_before_anything_is_known(watch, clock):
    watch.start("looking at target cpu")
    clock.now += 50
    assert watch.left() is None
    watch.start("read")
    clock.now += 50
    assert watch.left() is None
    watch.start("pass 2/3: work")
    assert watch.left() == pytest.approx(50 / 30 * 70)


def test_it_counts_down_within_a_phase(watch, clock):
    watch.start("read")
    clock.now += 30
    watch.start("work")
    assert [watch.left(), _later(watch, clock, 10)] == [pytest.approx(70), pytest.approx(60)]


def test_a_phase_that_takes_longer_corrects_the_rest(watch, clock):
    watch.start("read")
    clock.now += 30
    watch.start("work")
    assert _later(watch, clock, 130) == pytest.approx(160 / 80 * 20)
    watch.start("write")
    assert watch.left() == pytest.approx(40)


def test_it_never_goes_below_nothing(watch, clock):
    watch.start("read")
    clock.now += 30
    watch.start("write")
    assert _later(watch, clock, 1000) == pytest.approx(0)


def test_another_round_begins_anew(watch, clock):
    """Tuning reads the model as well, and then takes as long as it likes."""
    watch.start("read")
    clock.now += 1000
    watch.start("read")
    clock.now += 3
    watch.start("work")
    assert watch.left() == pytest.approx(7)


def test_a_quick_command_says_nothing(watch, clock):
    watch.start("read")
    clock.now += 0.3
    watch.start("work")
    assert watch.left() is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, ""), (0.4, "nearly done"), (7.2, "about 7 s left"), (43, "about 45 s left"),
     (150, "about 2 min left")],
)  # fmt: skip
def test_it_is_spelled_without_false_precision(seconds, text):
    assert spelled(seconds) == text


def test_every_phase_that_counts_exists():
    """Names of passes and of phases change; the shares must follow."""
    import inspect

    from bscompile import compiler
    from bscompile.cli import build
    from bscompile.passes import pipeline

    said = inspect.getsource(compiler) + inspect.getsource(build)
    for phase in BUILD_SHARES:
        assert hasattr(pipeline, phase) or f'"{phase}"' in said, phase


def _later(watch, clock, seconds):
    clock.now += seconds
    return watch.left()
