"""Start-up hook that shows our tasks to lm-eval; standard library only, for every process runs it.

``prh_eval_plugin.pth`` (``.start`` from Python 3.15, PEP 829) calls `install` when the interpreter
starts. That adds a finder which waits for ``lm_eval.tasks``; once that module has run, its
``TaskManager`` scans our task folder too, between the built-in tasks and the user's own
``--include_path``. That folder has a task for every reference file; it is made when a task manager
is. Whatever goes wrong here is one warning on stderr, and lm-eval goes on.
"""

import os
import sys

# Neither typing nor __future__ is imported: each costs more than the hook itself.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from pathlib import Path
    from types import ModuleType
    from typing import Any

HOST = "lm_eval.tasks"
SWITCH = "PRH_EVAL_PLUGIN"

_warned = False


def install() -> None:
    """Register our tasks with lm-eval, unless ``PRH_EVAL_PLUGIN`` is 0, off, false or no."""
    if os.environ.get(SWITCH, "").strip().lower() not in ("0", "off", "false", "no"):
        register()


def register() -> None:
    """Register our tasks with lm-eval, now or once it is imported; a second call does nothing."""
    if HOST in sys.modules:
        _patch(sys.modules[HOST])
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder:
    """Lets the other finders find `HOST`, and has it patched after its execution.

    It stays on ``sys.meta_path``: removal makes another thread that walks the list skip a finder,
    and whoever only looks for the module, without importing it, would use the hook up.
    """

    def find_spec(
        self, name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        if name != HOST:
            return None
        for finder in sys.meta_path:
            if finder is not self and hasattr(finder, "find_spec"):
                spec = finder.find_spec(name, path, target)
                if spec is not None:
                    _patch_after_execution(spec)
                    return spec
        return None


def _patch_after_execution(spec: "ModuleSpec") -> None:
    # The loader stays what it is, for others look at its type and call its other methods.
    loader: Any = spec.loader
    try:
        execute = loader.exec_module

        def exec_module(module: "ModuleType") -> None:
            execute(module)
            if module.__name__ == HOST:
                _patch(module)

        loader.exec_module = exec_module
    except Exception as error:
        _warn(error)


def _patch(module: "ModuleType") -> None:
    """Make ``module.TaskManager`` scan our task folder as well."""
    try:
        import functools
        import inspect

        manager = module.TaskManager
        original = manager.__init__
        if hasattr(original, "prh_eval_folder"):
            return
        folder = _task_folder()
        signature = inspect.signature(original)
        if "include_path" not in signature.parameters:
            raise TypeError("lm_eval.tasks.TaskManager takes no include_path")

        @functools.cache
        def host_finds_it() -> bool:
            # Whether lm-eval discovers installed task packages itself (our entry point), asked of
            # its public interface: what does it see without its own tasks and without a path?
            probe = object.__new__(manager)
            original(probe, include_defaults=False)
            found = (entry.yaml_path for entry in probe.task_index.values())
            return any(_contains(folder, path) for path in found if path is not None)

        @functools.wraps(original)
        def __init__(self: "Any", *args: "Any", **kwargs: "Any") -> None:
            failure = None
            try:
                bound = signature.bind(self, *args, **kwargs)
                own = bound.arguments.get("include_path")
                paths = _as_list(own)
                ours = None
                if bound.arguments.get("include_defaults", True):
                    shown = any(_contains(path, folder) for path in paths) or host_finds_it()
                    ours = _what_is_missing(folder, paths, shown)
                if ours is not None:
                    # Later paths win in lm-eval, so the user's own come after ours.
                    bound.arguments["include_path"] = [ours, *paths]
                    original(*bound.args, **bound.kwargs)
                    self.include_path = own
                    return
            except Exception as error:
                failure = error
            original(self, *args, **kwargs)  # raises by itself where the fault is not ours
            if failure is not None:
                _warn(failure)

        __init__.prh_eval_folder = folder  # type: ignore[attr-defined]
        manager.__init__ = __init__
    except Exception as error:
        _warn(error)


def _task_folder() -> "Path":
    from prh_eval.resources import folder

    tasks = folder("tasks").resolve()
    if not any(tasks.glob("**/*.yaml")):
        raise FileNotFoundError(f"no task YAML in {tasks}")
    return tasks


def _what_is_missing(static: "Path", paths: "list[Any]", shown: bool) -> "Path | None":
    """The folder that shows what neither lm-eval's own discovery nor the user's paths do.

    ``static`` is the folder of the tasks that come with the package, ``shown`` whether it is seen.
    """
    try:
        from prh_eval.references.tasks import GENERATED, tasks_folder

        everything = tasks_folder()
    except Exception as error:
        _warn(error, "tasks of reference files")
        return None if shown else static
    if any(_contains(path, everything) for path in paths):
        return None
    return everything / GENERATED if shown else everything


def _as_list(include_path: "Any") -> "list[Any]":
    if not include_path:
        return []
    return list(include_path) if isinstance(include_path, (list, tuple)) else [include_path]


def _contains(folder: "Any", path: "Any") -> bool:
    from pathlib import Path

    return Path(path).resolve().is_relative_to(Path(folder).resolve())


def _warn(error: Exception, what: str = "tasks") -> None:
    global _warned
    if _warned:
        return
    _warned = True
    try:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        print(
            f"prh-eval: warning: {what} not registered with lm-eval ({reason}); "
            f'use --include_path "$(prh-eval tasks-path)", or silence this with {SWITCH}=0',
            file=sys.stderr,
        )
    except Exception:
        pass  # no stderr to warn on
