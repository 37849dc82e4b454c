"""The pytest plugin: scenario files are collected, and what is wrong with them is told."""

from __future__ import annotations

from importlib.metadata import entry_points

import pytest

from labvoice.scenarios import pytest_plugin

pytest_plugins = ["pytester"]

GREETS = """\
name: greets
steps:
  - expect: {greeting: within 2 s}
  - hang up
"""


@pytest.fixture
def folder(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A folder of a user's, where pytest runs as a program of its own, with no other plugin."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makeini("[pytest]\naddopts = -p labvoice\n")
    return pytester


def test_pytest_finds_the_plugin_by_itself() -> None:
    """The package names it as an entry point."""
    (found,) = entry_points(group="pytest11", name="labvoice")

    assert found.load() is pytest_plugin


def test_scenario_files_are_collected_as_tests(folder: pytest.Pytester) -> None:
    """Each `*.scenario.yaml` is a test by its scenario's name, and has the marker `scenario`."""
    folder.path.joinpath("a.scenario.yaml").write_text(GREETS)
    folder.path.joinpath("other.yaml").write_text(GREETS)
    folder.makepyfile("def test_plain(): pass")

    every = folder.runpytest_subprocess("--collect-only", "-q", "--strict-markers")
    chosen = folder.runpytest_subprocess("--collect-only", "-q", "-m", "scenario")

    assert every.outlines[0] == "a.scenario.yaml::greets"
    assert "other.yaml" not in every.stdout.str()
    assert chosen.outlines[0] == "a.scenario.yaml::greets"
    assert "1 deselected" in chosen.stdout.str()


def test_an_unknown_key_is_named_with_file_and_line(folder: pytest.Pytester) -> None:
    """A file that cannot be meant is an error of the collection, without a traceback."""
    folder.path.joinpath("a.scenario.yaml").write_text(GREETS + "expects: {}\n")

    result = folder.runpytest_subprocess()

    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["a.scenario.yaml:5: there is no key 'expects'", "hint: *"])
    assert "Traceback" not in result.stdout.str()
    assert "labvoice/scenarios" not in result.stdout.str()


def test_a_file_that_is_not_there_fails_the_test_before_anything_starts(
    folder: pytest.Pytester,
) -> None:
    """An agent that cannot be meant is told in words, in the terminal and in JUnit's XML."""
    folder.path.joinpath("a.scenario.yaml").write_text("agent: missing.py\n" + GREETS)

    result = folder.runpytest_subprocess("--junit-xml", "junit.xml")

    result.assert_outcomes(failed=1)
    assert "a.scenario.yaml:1: agent: there is no file missing.py" in result.stdout.str()
    assert "Traceback" not in result.stdout.str()
    assert "missing.py" in folder.path.joinpath("junit.xml").read_text()


@pytest.mark.parametrize(
    "options", [("-n", "2", "-o", "asyncio_mode=auto"), ("-o", "asyncio_mode=strict")]
)
def test_it_works_beside_xdist_and_asyncio(
    folder: pytest.Pytester, options: tuple[str, ...]
) -> None:
    """Scenarios are played and async tests awaited, in processes of their own too."""
    folder.makeini(
        "[pytest]\naddopts = -p labvoice -p xdist -p asyncio\n"
        "asyncio_default_fixture_loop_scope = function\n"
    )
    folder.path.joinpath("a.scenario.yaml").write_text("agent: missing.py\n" + GREETS)
    folder.makepyfile(
        """
        import asyncio

        import pytest

        @pytest.mark.asyncio
        async def test_awaited(labvoice_call):
            await asyncio.sleep(0)
        """
    )

    result = folder.runpytest_subprocess(*options, "--junit-xml", "junit.xml")

    result.assert_outcomes(passed=1, failed=1)
    assert "missing.py" in folder.path.joinpath("junit.xml").read_text()
    assert "Traceback" not in result.stdout.str()


def test_a_number_of_calls_that_makes_no_sense_is_refused(folder: pytest.Pytester) -> None:
    """`--labvoice-repeat 0` is wrong use."""
    result = folder.runpytest_subprocess("--labvoice-repeat", "0")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--labvoice-repeat: a scenario needs at least one call*"])


def test_pytest_without_scenarios_imports_nothing_slow(folder: pytest.Pytester) -> None:
    """Users of pytest who call no agent do not wait for LiveKit, pandas or pydantic."""
    folder.makepyfile(
        """
        import sys

        def test_imports(request):
            assert request.config.pluginmanager.has_plugin("labvoice")
            slow = {"livekit", "pandas", "numpy", "pydantic", "yaml", "labvoice.errors"}
            assert sorted(slow & set(sys.modules)) == []
        """
    )

    folder.runpytest_subprocess().assert_outcomes(passed=1)
