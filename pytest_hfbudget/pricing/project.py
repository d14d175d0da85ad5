"""What a project itself says of prices: pyproject.toml, a file beside it, two variables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from pytest_hfbudget.errors import ConfigError
from pytest_hfbudget.pricing.book import PriceBook, PriceHook, price_from_environment
from pytest_hfbudget.pricing.catalogue import Catalogue
from pytest_hfbudget.pricing.table import PriceTable
from pytest_hfbudget.pricing.tomlfile import TomlFile
from pytest_hfbudget.pricing.unpriced import Unpriced
from pytest_hfbudget.settings import Settings

TABLE = ("tool", "hfbudget", "prices")


def project_book(
    settings: Settings,
    environ: Mapping[str, str],
    *,
    root: Path,
    here: Path,
    load_catalogue: Callable[[], Catalogue],
    hook: PriceHook | None = None,
    leased: dict[str, str] | None = None,
) -> PriceBook:
    """Everything that is known about prices where ``root`` has the pyproject.toml.

    Raises:
        ConfigError: a table, a variable or ``--hf-unpriced`` that makes no sense.
    """
    try:
        environment = price_from_environment(environ)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return PriceBook(
        table=project_table(settings.prices, root=root, here=here),
        load_catalogue=load_catalogue,
        environment=environment,
        unpriced=Unpriced.parse(settings.unpriced),
        hook=hook,
        leased={} if leased is None else leased,
    )


def project_table(file: Path | None, *, root: Path, here: Path) -> PriceTable:
    """The rows of pyproject.toml, under those of a file that is looked for ``here``, then there.

    Raises:
        ConfigError: one of them can't be used.
    """
    project, table = root / "pyproject.toml", PriceTable()
    # Whatever else is wrong with a pyproject.toml without our tables is not for us to say.
    if project.is_file() and b"hfbudget" in project.read_bytes():
        table = PriceTable.load(project, *TABLE, source="pyproject.toml")
        _refuse_other_keys(TomlFile.read(project))
    if file is None:
        return table
    path = next((path for path in (here / file, root / file) if path.exists()), here / file)
    return PriceTable.load(path, source=str(file)).over(table)


def _refuse_other_keys(file: TomlFile) -> None:
    *above, prices = TABLE
    for key in file.below(*above):
        if key != prices:
            raise ConfigError(
                f"pyproject.toml: unknown key {key!r} in [{'.'.join(above)}], which holds "
                f"{prices} alone{file.line((*above, key))}. Budgets are settings of pytest, such "
                "as hf_session_budget in [tool.pytest.ini_options]."
            )
