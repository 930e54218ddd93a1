"""Which types a state can have, and which of them a given state has."""

import inspect
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, TypeGuard, Union, cast, get_args, get_origin

from pydantic import BaseModel, TypeAdapter
from pydantic_core import SchemaSerializer, core_schema, to_json
from typing_extensions import TypeAliasType, is_typeddict

_ALLOWED = (
    "a Pydantic model, a dataclass, a TypedDict, dict[str, ...], a union of them, "
    "or a mapping from process types to such types"
)
# The backport in typing_extensions may be another class than the one that the `type` statement makes.
_ALIASES: tuple[Any, ...] = (TypeAliasType, getattr(typing, "TypeAliasType", TypeAliasType))


def _unwrapped(declared: Any) -> tuple[Any, tuple[Any, ...]]:  # noqa: ANN401 - there is no type of all types
    """Return what is within aliases and `Annotated`, and its metadata."""
    metadata: tuple[Any, ...] = ()
    while True:
        if isinstance(declared, _ALIASES):
            declared = declared.__value__
        elif get_origin(declared) is Annotated:
            metadata = (*declared.__metadata__, *metadata)
            declared = declared.__origin__
        else:
            return declared, metadata


def _is_union(declared: object) -> bool:
    return get_origin(declared) in (Union, UnionType)


def _members(declared: object, *, through_metadata: bool) -> list[Any]:
    inner, metadata = _unwrapped(declared)
    if _is_union(inner) and (through_metadata or not metadata):
        return [each for arg in get_args(inner) for each in _members(arg, through_metadata=through_metadata)]
    return [inner if through_metadata else declared]


def _member_class(member: Any) -> Any:  # noqa: ANN401 - it may be none
    return NoneType if member is None else get_origin(member) or member


def has_fields(candidate: object) -> TypeGuard[type]:
    """Whether it is a class of models or a dataclass."""
    return inspect.isclass(candidate) and (issubclass(candidate, BaseModel) or is_dataclass(candidate))


def _check(members: Sequence[Any], what: str) -> None:
    classes = [_member_class(each) for each in members]
    if all(each is NoneType for each in classes):
        raise TypeError(f"{what} must be {_ALLOWED}, not None")
    for each in classes:
        if each is BaseModel or not (each in (dict, NoneType) or has_fields(each) or is_typeddict(each)):
            # Not its repr: an instance of a model quotes a state.
            given = f"the class {each.__name__}" if inspect.isclass(each) else f"a value of type {type(each).__name__}"
            raise TypeError(f"{what} must be {_ALLOWED}, not {given}")
        if inspect.isabstract(each):
            raise TypeError(f"{what}: {each.__name__} is abstract; declare the classes that states have")


def _count_fields(member: object) -> float:
    def count(each: Any) -> float:  # noqa: ANN401 - see _member_class
        of_class = _member_class(each)
        if of_class is dict:
            return float("inf")
        if of_class is NoneType:
            return 0
        if is_typeddict(of_class):
            return len(of_class.__required_keys__ | of_class.__optional_keys__)
        return len(of_class.model_fields if issubclass(of_class, BaseModel) else fields(of_class))

    return max(map(count, _members(member, through_metadata=True)))


class Declared:
    """A declared type, and what it is made of.

    Args:
        declared: The type.
        what: What to call it in an error.

    Raises:
        TypeError: It is no type that a state can have.
    """

    def __init__(self, declared: object, what: str) -> None:
        self._declared = declared
        members = _members(declared, through_metadata=True)
        _check(members, what)
        self.name = " | ".join(map(_name, members))
        # A TypedDict makes dictionaries.
        self._classes = {dict if is_typeddict(each) else each for each in map(_member_class, members)}

    def adapters(self) -> list[TypeAdapter[Any]]:
        """Return what reads the type: all of these must read the same.

        There are two for a union whose members Pydantic tells apart by trying them. It takes the one that has most of
        the fields that are there, and the first of several. In a union of `Order` and of `ExpressOrder`, which has a
        field more, the smaller has to come first, or an order that lacks an optional field becomes an express order. So
        the declared order does not count. Members that have equally many fields are tried in both orders.
        """
        inner, metadata = _unwrapped(self._declared)
        adapter = _adapter(_make_union([inner], metadata))
        members = _members(inner, through_metadata=False)
        union = _union_in(adapter.core_schema)
        if len(members) == 1 or union is None:
            return [adapter]
        ordered = members if union.get("mode") == "left_to_right" else sorted(members, key=_count_fields)
        last_first: dict[float, list[Any]] = {}
        for each in ordered:
            last_first.setdefault(_count_fields(each), []).append(each)
        other = [last_first[_count_fields(each)].pop() for each in ordered]
        orders = [ordered] if other == ordered else [ordered, other]
        return [_adapter(_make_union(each, metadata)) for each in orders]

    def refusal(self, of_class: type) -> str | None:
        """Say why a state of this class is refused; `None` if it is not."""
        if of_class in self._classes:
            return None
        name = of_class.__name__
        if has_fields(of_class):
            return f"is {name}, which is not declared; declare state_type={self.name} | {name}"
        article = "an" if name[0] in "aeiouAEIOU" else "a"
        return f"is {'None' if of_class is NoneType else f'{article} {name}'}, not {self.name}"


def _name(member: Any) -> str:  # noqa: ANN401 - see _member_class
    if _member_class(member) is NoneType:
        return "None"
    return member.__name__ if get_origin(member) is None else str(member)


def _adapter(declared: Any) -> TypeAdapter[Any]:  # noqa: ANN401 - see _unwrapped
    adapter = TypeAdapter[Any](declared)
    # A name that cannot be resolved is an error now, not with the first process.
    adapter.rebuild(raise_errors=True)
    return adapter


def _make_union(members: Iterable[Any], metadata: tuple[Any, ...]) -> object:
    union: Any = Union
    annotated: Any = Annotated
    # The marker is there because typing gives what it made before for an equal union, and takes those in another order
    # for equal.
    return annotated[(union[tuple(members)], *metadata, object())]


def _union_in(schema: Any) -> Any:  # noqa: ANN401 - schemas are dictionaries of many types
    """Return the schema of the union whose members are tried; `None` for one with a discriminator."""
    while schema["type"] != "union" and "schema" in schema:
        schema = schema["schema"]
    return schema if schema["type"] == "union" else None


def writer(adapter: TypeAdapter[Any]) -> Callable[..., bytes]:
    """Return what writes JSON, with the elements of sets in the order of their texts.

    The order of a set depends on PYTHONHASHSEED: without this, two workers would write the same state differently.
    """
    schema = adapter.core_schema
    if not _has_sets(schema):
        return adapter.dump_json
    # Without "pre-built": Pydantic would take the serialiser that each nested model has already, which does not sort.
    return SchemaSerializer(_with_sorted_sets(schema), _use_prebuilt=False).to_json


def _has_sets(schema: Any) -> bool:  # noqa: ANN401 - schemas are dictionaries of many types
    if type(schema) in (list, tuple):
        return any(map(_has_sets, schema))
    if not isinstance(schema, dict):
        return False
    keys = cast("dict[str, Any]", schema)
    return keys.get("type") in _SETS or any(map(_has_sets, keys.values()))


def _with_sorted_sets(schema: Any) -> Any:  # noqa: ANN401 - schemas are dictionaries of many types
    if type(schema) in (list, tuple):
        return type(schema)(map(_with_sorted_sets, schema))
    if isinstance(schema, dict):
        made = {key: _with_sorted_sets(value) for key, value in cast("dict[str, Any]", schema).items()}
        if made.get("type") in _SETS and "serialization" not in made:
            made["serialization"] = core_schema.wrap_serializer_function_ser_schema(_sorted, when_used="json")
        return made
    return schema


_SETS = ("set", "frozenset")


def _sorted(elements: object, write: Callable[[object], list[Any]]) -> list[Any]:
    return sorted(write(elements), key=to_json)
