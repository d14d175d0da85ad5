"""How the plugin wraps the clients that reach Hugging Face, in one module for each library.

This module has what they share: it wraps attributes of a library, and sets base URLs, once the
library is imported.
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from pytest_hfbudget.settings import ENDPOINTS_API, ROUTER, Settings

if TYPE_CHECKING:
    from pytest_hfbudget.metering.paid_hosts import PaidHosts

logger = logging.getLogger("pytest_hfbudget")

# The place of the flags among the arguments of ``getaddrinfo`` that follow host and port.
FLAGS = 3


# Plain classes, here and in `hub`: every run of pytest imports this, and a dataclass is slower.
class Patches:
    """Replaces attributes, now or once their module is imported, and puts them back."""

    def __init__(self) -> None:
        self._originals: list[tuple[Any, str, Any]] = []
        self._watch: PostImport | None = None

    def __bool__(self) -> bool:
        """Whether anything is replaced."""
        return bool(self._originals)

    @property
    def watching(self) -> bool:
        """Whether it waits for modules to be imported."""
        return self._watch is not None

    def watch(self, callbacks: dict[str, ImportCallback]) -> None:
        """Call each callback with the module of this name: now, or as soon as it is imported."""
        self._watch = PostImport(callbacks)
        self._watch.install()

    def replace(self, owner: Any, name: str, wrapper: Any) -> None:
        """Set an attribute to a wrapper, which ``functools.wraps`` has made of its value."""
        self._originals.append((owner, name, wrapper.__wrapped__))
        setattr(owner, name, wrapper)

    def restore(self) -> None:
        """Stop waiting for imports, and put back all that was not wrapped again since."""
        if self._watch is not None:
            self._watch.uninstall()
            self._watch = None
        while self._originals:
            owner, name, original = self._originals.pop()
            installed = vars(owner).get(name)
            if getattr(installed, "__wrapped__", None) is original:
                setattr(owner, name, original)
            elif installed is not original:  # else another library has put it back itself
                logger.warning("hfbudget left %s as it is: it was wrapped again", name)


def genuine(module: ModuleType, name: str) -> type | None:
    """The class of a library by its name, also while a stand-in has replaced it in its module."""
    library = module.__name__.partition(".")[0]

    def is_it(cls: object) -> bool:
        # Libraries set `__module__` to a shorter name than that of the module.
        return (
            isinstance(cls, type)
            and cls.__qualname__ == name
            and cls.__module__.partition(".")[0] == library
        )

    if is_it(found := getattr(module, name, None)):
        return found
    classes = list(object.__subclasses__())
    while classes:
        if is_it(cls := classes.pop()):
            return cls
        classes += type.__subclasses__(cls)
    return None


ImportCallback = Callable[[ModuleType], None]


class PostImport(MetaPathFinder):
    """Calls callbacks after their modules were imported; at once for those that are imported."""

    def __init__(self, callbacks: dict[str, ImportCallback]) -> None:
        self._callbacks = callbacks
        self._searching: set[str] = set()

    def install(self) -> None:
        """Call the callbacks of modules that are imported, and watch for the others."""
        sys.meta_path.insert(0, self)
        for name, callback in self._callbacks.items():
            module = sys.modules.get(name)
            spec = getattr(module, "__spec__", None)
            if module is None:
                continue
            if not getattr(spec, "_initializing", False):
                callback(module)
            elif type(spec) is ModuleSpec:
                # Its import is under way. Its loader can't be replaced any more, but the import
                # will set `_initializing` of its spec at the end.
                spec.__class__ = ModuleUnderWay
                spec.callbacks = [callback]  # type: ignore[attr-defined]
            elif isinstance(spec, ModuleUnderWay):
                spec.callbacks.append(callback)

    def uninstall(self) -> None:
        """Stop watching."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find a watched module the ordinary way, and load it with a loader that calls back."""
        if fullname not in self._callbacks or fullname in self._searching:
            return None
        self._searching.add(fullname)
        try:
            spec = find_spec(fullname)
        finally:
            self._searching.discard(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _CallingLoader(spec.loader, self._callbacks[fullname])
        return spec


class ModuleUnderWay(ModuleSpec):
    """The spec of a module whose import had begun before it was watched."""

    callbacks: list[ImportCallback]

    @property
    def _initializing(self) -> bool:
        return bool(self.__dict__.get("_initializing"))

    @_initializing.setter
    def _initializing(self, under_way: bool) -> None:
        self.__dict__["_initializing"] = under_way
        if not under_way:
            callbacks, self.callbacks = self.callbacks, []
            self.__class__ = ModuleSpec  # type: ignore[assignment]
            module = sys.modules.get(self.name)  # it is gone where its import has failed
            for callback in callbacks if module is not None else ():
                callback(module)  # type: ignore[arg-type]


class _CallingLoader(Loader):
    """A loader that has the real one load the module, and then calls the callback."""

    def __init__(self, loader: Loader, callback: ImportCallback) -> None:
        self._loader, self._callback = loader, callback

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # The module has to have its own loader: resources and `inspect` ask for it.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._callback(module)

    def __getattr__(self, name: str) -> object:
        return getattr(self._loader, name)


def watch_names(
    module: ModuleType, patches: Patches, looked_up: Callable[[object, object], None]
) -> None:
    """Wrap the functions of ``socket`` that look up the host of a new connection.

    Args:
        looked_up: called with host and port before the lookup; raises to prevent the connection.
    """
    patches.replace(module, "getaddrinfo", _looks_up(module, looked_up))
    for method in ("connect", "connect_ex"):  # written in C, they look a name up by themselves
        original = getattr(module.socket, method)
        patches.replace(module.socket, method, _connects(original, looked_up))


def _looks_up(module: ModuleType, looked_up: Callable[[object, object], None]) -> Any:
    """Wrap ``socket.getaddrinfo``, which nearly all code calls before it opens a connection."""
    original = module.getaddrinfo

    @functools.wraps(original)
    def getaddrinfo(host: Any, port: Any, *args: Any, **options: Any) -> Any:
        __tracebackhide__ = True
        flags = options.get("flags", args[FLAGS] if len(args) > FLAGS else 0)
        if not flags & module.AI_PASSIVE:  # else a server looks up its own address
            looked_up(host, port)
        return original(host, port, *args, **options)

    return getaddrinfo


def _connects(original: Any, looked_up: Callable[[object, object], None]) -> Any:
    """Wrap a socket's method that connects. Only the name of a host is looked up, not an IP."""

    @functools.wraps(original)
    def connect(self: Any, address: Any) -> Any:
        __tracebackhide__ = True
        host, port = address[:2] if isinstance(address, tuple) and address[1:] else (None, None)
        if isinstance(host, str) and ":" not in host and not host.replace(".", "").isdigit():
            looked_up(host, port)
        return original(self, address)

    return connect


class Addresses(NamedTuple):
    """The base URLs of a run that differ from the public ones; None for one that does not.

    Attributes:
        emulator: the base URL of the emulator, in a rehearsal.
        paid_hosts: hosts whose calls are paid, beside those of the public services.
    """

    router: str | None = None
    endpoints_api: str | None = None
    hub: str | None = None
    emulator: str | None = None
    paid_hosts: tuple[str, ...] = ()

    @classmethod
    def of(cls, settings: Settings) -> Addresses:
        """The addresses in the settings of a run."""
        api, router = settings.endpoints_api, settings.router
        return cls(
            router=router if router != ROUTER else None,
            endpoints_api=api if api != ENDPOINTS_API else None,
            hub=settings.hub,
            emulator=settings.emulator,
            paid_hosts=settings.paid_hosts,
        )

    def paid_hosts_with(self, router: str) -> PaidHosts:
        """The hosts at which something is paid in this run."""
        from pytest_hfbudget.metering.paid_hosts import PaidHosts  # a run without HTTP needs none

        rehearsed = (f"{self.emulator}/endpoint",) if self.emulator else ()
        starting = [base for base in (self.hub, self.endpoints_api) if base]
        return PaidHosts((router, *self.paid_hosts, *rehearsed), starting)

    def constants(self) -> dict[str, str]:
        """The constants of huggingface_hub that hold them; none of these is an env variable."""
        values = {
            "INFERENCE_PROXY_TEMPLATE": f"{self.router}/{{provider}}" if self.router else None,
            "INFERENCE_ENDPOINTS_ENDPOINT": self.endpoints_api,
            "ENDPOINT": self.hub,
        }
        return {name: value for name, value in values.items() if value}


class Redirect:
    """Sets `Addresses.constants` when huggingface_hub is imported, and restores them."""

    def __init__(self, addresses: Addresses) -> None:
        self.addresses = addresses
        self._before: dict[str, str] = {}
        self._module: ModuleType | None = None
        self._watch: PostImport | None = None

    def install(self) -> None:
        """Set the constants now, or as soon as they are imported."""
        if self.addresses.constants():
            self._watch = PostImport({"huggingface_hub.constants": self._set})
            self._watch.install()

    def uninstall(self) -> None:
        """Put the constants back."""
        if self._watch is not None:
            self._watch.uninstall()
        for name, value in self._before.items():
            setattr(self._module, name, value)
        self._before.clear()

    def _set(self, module: ModuleType) -> None:
        self._module = module
        for name, value in self.addresses.constants().items():
            self._before[name] = getattr(module, name)
            setattr(module, name, value)
