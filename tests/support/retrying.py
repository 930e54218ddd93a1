"""What a worker does about an error after which the transaction can be run again."""

from sqlalchemy.exc import DBAPIError

from commandbus_process import ProcessRepositoryError


def assert_can_be_run_again(error: Exception) -> None:
    """Go on after such an error, and fail on any other.

    Under SERIALIZABLE the worker's own COMMIT can be what fails. That is not the library's call, so it is SQLAlchemy's
    error.
    """
    if isinstance(error, ProcessRepositoryError):
        assert error.retryable
    else:
        assert isinstance(error, DBAPIError)
        assert getattr(error.orig, "sqlstate", None) == "40001"
