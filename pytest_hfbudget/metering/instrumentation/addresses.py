"""Points huggingface_hub of this process at other base URLs: a proxy, a rehearsal."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import ModuleType

from pytest_hfbudget.metering.instrumentation.patching import PostImport
from pytest_hfbudget.settings import ENDPOINTS_API, ROUTER, Settings


@dataclass(frozen=True)
class Addresses:
    """Base URLs that differ from the public ones; None leaves one as it is.

    Attributes:
        emulator: the one that all of them lead to, in a rehearsal.
    """

    router: str | None = None
    endpoints_api: str | None = None
    hub: str | None = None
    emulator: str | None = None

    @classmethod
    def of(cls, settings: Settings) -> Addresses:
        """What huggingface_hub has to be told of a run's addresses."""
        api, router = settings.endpoints_api, settings.router
        return cls(
            router=router if router != ROUTER else None,
            endpoints_api=api if api != ENDPOINTS_API else None,
            hub=settings.hub,
            emulator=settings.emulator,
        )

    def constants(self) -> dict[str, str]:
        """The constants of huggingface_hub that hold them; none of these is an env variable."""
        values = {
            "INFERENCE_PROXY_TEMPLATE": f"{self.router}/{{provider}}" if self.router else None,
            "INFERENCE_ENDPOINTS_ENDPOINT": self.endpoints_api,
            "ENDPOINT": self.hub,
        }
        return {name: value for name, value in values.items() if value}


@dataclass
class Redirect:
    """Sets those constants when huggingface_hub is imported, and restores them."""

    addresses: Addresses
    _before: dict[str, str] = field(default_factory=dict)
    _module: ModuleType | None = None
    _watch: PostImport | None = None

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
