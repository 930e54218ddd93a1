"""Triggers that a host may have on the tables: they refuse a row, or keep it from being written without an error."""


def trigger(on: str, body: str = "RETURN NULL;", *, name: str = "host") -> str:
    """The script that makes a trigger and its function of the same name.

    Args:
        on: When it fires and for what, such as `BEFORE INSERT ON commandbus.process`, with a condition if it has one.
        body: What it does; by default, the row is not written and nobody is told.
    """
    kind = "CONSTRAINT TRIGGER" if on.startswith("AFTER") else "TRIGGER"
    when, condition, predicate = on.partition(" WHEN ")
    deferred = " DEFERRABLE INITIALLY DEFERRED" if on.startswith("AFTER") else ""
    return f"""
        CREATE FUNCTION public.{name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} END $$;
        CREATE {kind} {name} {when}{deferred} FOR EACH ROW{condition}{predicate} EXECUTE FUNCTION public.{name}()
    """
