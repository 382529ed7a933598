"""Registries: what ships, what other packages bring, and what a script adds, by name."""

from __future__ import annotations

import doctest
import os
import subprocess
import sys
import warnings
from importlib.metadata import Distribution, EntryPoint
from types import ModuleType

import pytest

import sounding.registry
from sounding.registry import Registry


@pytest.fixture
def units(monkeypatch) -> Registry[float]:
    """Of a package that ships "second", where another package brings "minute" and faults."""
    registry: Registry[float] = Registry("unit", home="shipped_units", group="test.units")
    home = ModuleType("shipped_units")
    monkeypatch.setitem(sys.modules, "shipped_units", home)
    registry.add("second", 1.0)
    registry.add_later("radian", "math:pi")
    other = ModuleType("other_units")
    other.minute = 60.0
    monkeypatch.setitem(sys.modules, "other_units", other)

    def found(group: str) -> list[EntryPoint]:
        assert group == "test.units"
        made = [
            EntryPoint("minute", "other_units:minute", group),
            EntryPoint("broken", "other_units:lost", group),
            EntryPoint("second", "other_units:minute", group),
        ]
        return [entry._for(_Package()) for entry in made]

    monkeypatch.setattr(sounding.registry, "entry_points", found)
    return registry


class _Package(Distribution):
    name = "other-units"

    def read_text(self, filename):
        return None

    def locate_file(self, path):
        return path


def test_the_examples_of_the_registry_run():
    assert doctest.testmod(sounding.registry).failed == 0


def test_what_ships_what_is_imported_later_and_what_others_bring_are_found_by_name(units):
    with pytest.warns(UserWarning, match="is left out"):
        assert list(units) == ["second", "radian", "minute"]
    assert units["second"] == 1.0
    assert units["radian"] == pytest.approx(3.14159, abs=1e-4)
    assert units["minute"] == 60.0


@pytest.mark.parametrize("ask", [dict, list, lambda units: units.get("broken")])
def test_a_broken_entry_point_is_one_warning_that_names_it_and_its_package(units, ask):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        ask(units)
        assert "broken" not in units
        assert units["minute"] == 60.0
    assert [str(one.message).split(":")[0] for one in told] == [
        "the unit 'second' of the package other-units (other_units",
        "the unit 'broken' of the package other-units (other_units",
    ]
    assert "has no attribute 'lost'" in str(told[1].message)


def test_a_package_that_is_installed_brings_a_task_by_its_entry_point(tmp_path):
    """By the metadata of a real package, in a process that has not looked anything up yet."""
    (tmp_path / "graded.py").write_text(
        "import sounding\nclass Grades(sounding.Task):\n    metric = 'distance'\n"
    )
    about = tmp_path / "graded-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: graded\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "[sounding.tasks]\ngrades = graded:Grades\nlost = graded:Lost\n"
    )
    asked = (
        "from sounding.registry import TASKS; from sounding.runs.config import TrainConfig;"
        "print(TASKS[TrainConfig(task='grades').task].metric)"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    told = subprocess.run(
        [sys.executable, "-c", asked], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert told.stdout == "distance\n"
    assert told.stderr.count("UserWarning") == 1
    assert "the task 'lost' of the package graded (graded:Lost) is left out" in told.stderr


def test_an_unknown_name_lists_the_known_ones_and_the_nearest(units):
    with (
        pytest.warns(UserWarning, match="is left out"),
        pytest.raises(ValueError, match=r"unknown unit 'minut', did you mean 'minute'\? Known: s"),
    ):
        units["minut"]
    assert units.get("minut") is None


def test_a_taken_name_is_an_error_that_names_both(units):
    with pytest.raises(ValueError, match=r"a unit 'second' already, 1\.0.*name for 2\.0"):
        units.add("second", 2.0)
    with pytest.warns(UserWarning, match="'second' of the package"):
        assert units["second"] == 1.0


def test_a_package_that_ships_and_is_broken_is_no_warning(monkeypatch):
    registry: Registry[float] = Registry("unit", home="sounding.registry", group="test.none")
    registry.add_later("lost", "math:lost")
    with pytest.raises(AttributeError, match="lost"):
        registry["lost"]
