"""The Alembic configuration of this library's migrations, for applications that run them from Python."""

from pathlib import Path

from alembic.config import Config

_PACKAGE = Path(__file__).parents[1]


def alembic_config(url: str | None = None) -> Config:
    """Return the Alembic configuration for this library's migrations.

    Pass it to `alembic.command.upgrade(config, "head")`. It works for an installed wheel and for a checkout, and reads
    no `alembic.ini`. To migrate inside your own transaction, set `config.attributes["connection"]` to its (synchronous)
    `Connection`.

    Args:
        url: The database, as `postgresql://…`. Without it, `DATABASE_URL` is read when a command runs.
    """
    in_wheel = _PACKAGE / "_migrations"  # pyproject.toml puts them there. In a checkout they are beside the package.
    location = in_wheel if in_wheel.is_dir() else _PACKAGE.parent / "alembic"
    config = Config()
    config.set_main_option("script_location", str(location).replace("%", "%%"))
    config.attributes["url"] = url
    return config
