"""What every test of the bulk methods may ask for."""

from tests.support.bulk_failures import known

__all__ = ["known"]
