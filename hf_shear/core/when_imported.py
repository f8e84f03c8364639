"""Work that follows the import of another library's module, whenever that comes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from types import ModuleType


def when_imported(name: str, work: Callable[[ModuleType], object]) -> None:
    """Call ``work`` with a module: now, if it is imported already, else right after its import.

    Args:
        name: of the module, with those of its packages.
        work: must import nothing that needs a module which may be half imported then.
    """
    if name in sys.modules:
        work(sys.modules[name])
    else:
        sys.meta_path.insert(0, _Follower(name, work))


class _Follower(MetaPathFinder):
    """Finds one module as the other finders do, and adds work to its loading."""

    def __init__(self, name: str, work: Callable[[ModuleType], object]):
        self._name, self._work = name, work

    def find_spec(self, fullname, path=None, target=None):
        if fullname != self._name:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None:
                break
        else:
            return None
        if spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_work(module: ModuleType) -> None:
                load(module)
                if self in sys.meta_path:
                    sys.meta_path.remove(self)
                self._work(module)

            spec.loader.exec_module = load_and_work
        return spec
