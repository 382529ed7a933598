"""What is asked of a model: one class, several tags, a text by CTC, a text by a decoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import UsageError
from ..registry import TASKS

if TYPE_CHECKING:
    from .base import Task

AUTO = "auto"  # the first task that fits the data: texts by CTC
RECOGNITION = {"ctc": AUTO, "decoder": "decoder"}  # what settings of before had in its place

# places, so that the names are known without torch
TASKS.add_later("class", f"{__name__}.one_class:OneClass")
TASKS.add_later("tags", f"{__name__}.tags:Tags")
TASKS.add_later("ctc", f"{__name__}.ctc:CTC")
TASKS.add_later("decoder", f"{__name__}.decoder:Decoder")


def register_task(name: str, task: type[Task]) -> None:
    """Add a task, which `TrainConfig.task` then names.

    Args:
        task: a subclass of `sounding.Task`.

    Raises:
        ValueError: a name that is taken, or a class with a `decode` of its own that does not say
            whether the runtime has the same.
        TypeError: no such class.
    """
    from .base import Task

    if not (isinstance(task, type) and issubclass(task, Task)):
        raise TypeError(f"a task is a subclass of sounding.Task; got {task!r}")
    if not issubclass(_where(task, "runtime"), _where(task, "decode")):
        raise UsageError(
            f"{task.__name__} has a decode of its own: say in `runtime` which of the runtime's "
            "ways gives the same on a device, or None"
        )
    TASKS.add(name, task)


def find_task(name: str, data: str) -> type[Task]:
    """Return the class of a task.

    Args:
        name: a registered one, or "auto" for the first that fits the data.
        data: what the folder holds, as `AudioFolder.task`.

    Raises:
        ValueError: an unknown name, or a task that does not fit the data.
    """
    fitting = [one for one, task in TASKS.items() if task.data == data]
    if name == AUTO and fitting:
        name = fitting[0]
    if name == AUTO or TASKS[name].data != data:
        wants = "" if name == AUTO else f", and task {name!r} takes {TASKS[name].data!r}"
        raise UsageError(
            f"the data are of the kind {data!r}{wants}: the task for them is "
            f"{' or '.join(fitting) or 'not registered'}"
        )
    task: type[Task] = TASKS[name]
    return task


def metric_title(metric: str) -> str:
    """Return the name of a metric as people read it, from its name in files."""
    titles = (task.titles.get(metric) for task in TASKS.values())
    return next((title for title in titles if title), metric)


def _where(task: type[Task], member: str) -> type:
    """Return the class that says what a member is."""
    return next(kind for kind in task.__mro__ if member in vars(kind))
