"""Finding, reading, overriding and checking recipes."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import pydantic
import yaml
from pydantic import ConfigDict, TypeAdapter

from rayrec.artifacts import Json
from rayrec.errors import RecipeError
from rayrec.models.objective import Objective
from rayrec.models.registry import MODELS, model_class
from rayrec.recipe import ModelChoice, Recipe, Training
from rayrec.yaml_files import is_file, parse_yaml, read_text

PACKAGED = files("rayrec") / "recipes"
DEFAULT_MODEL = "sasrec"
UNKNOWN_KEY = {"extra_forbidden", "unexpected_keyword_argument"}
MISSING_KEY = {"missing", "missing_argument"}


def packaged_recipes() -> dict[str, str]:
    """The recipes that come with rayrec: name to the first line of its comment."""
    found = {}
    for file in sorted(PACKAGED.iterdir(), key=lambda f: f.name):
        if file.name.endswith(".yaml"):
            first = file.read_text(encoding="utf-8").splitlines()[0]
            found[file.name.removesuffix(".yaml")] = first.lstrip("# ")
    return found


def load_recipe(reference: str, overrides: Sequence[str] = (), simulated: bool = False) -> Recipe:
    """A validated recipe.

    Args:
        reference: A YAML file, or the name of a packaged recipe.
        overrides: ``section.key=value`` each; the value is read as YAML.
        simulated: Replace the recipe's data with simulated logs; marks the recipe and its name as such.

    Raises:
        RecipeError: The file, an override, a key or a value is wrong.
    """
    raw, folder = _read(reference)
    if simulated:
        raw = _with_simulated_data(raw)
    for override in overrides:
        _set(raw, override)
    return parse_recipe(raw, where=reference, folder=folder)


def parse_recipe(raw: Mapping[str, Any], where: str = "recipe", folder: Path | None = None) -> Recipe:
    """Validate a recipe given as plain values; relative paths of data are taken from ``folder``.

    Raises:
        RecipeError: Every wrong key and value, one a line.
    """
    body = dict(raw)
    messages: list[str] = []
    choice = _parse_model(body.pop("model", None), messages)
    try:
        recipe = Recipe.model_validate({**body, "model": choice})
    except pydantic.ValidationError as error:
        messages += described(error, Recipe.model_json_schema())
    if messages:
        raise RecipeError(f"recipe {where}:\n  " + "\n  ".join(messages))
    return recipe if folder is None else _resolved(recipe, folder)


def json_schema() -> Json:
    """JSON Schema of a recipe, for editors."""
    schema = Recipe.model_json_schema()
    choices = []
    for name in MODELS:
        config = TypeAdapter(_strict(model_class(name).Config)).json_schema()
        config["properties"] = {"name": {"const": name}, **_described_by(model_class(name).Config, config)}
        choices.append({**config, "required": ["name"]})
    schema["properties"]["model"] = {"anyOf": choices, "description": "The model and its architecture."}
    schema["required"] = ["name", "data"]
    for settings in (Training, Objective):
        definition = schema["$defs"][settings.__name__]
        definition["properties"] = _described_by(settings, definition)
    return schema


def _described_by(config_class: type, schema: Json) -> Json:
    """The properties of a dataclass, with what its docstring and its bases' say of each attribute."""
    properties: Json = dict(schema.get("properties", {}))
    for ancestor in reversed(config_class.__mro__):
        listed = (inspect.cleandoc(ancestor.__doc__ or "")).partition("Attributes:\n")[2]
        for name, text in re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", listed, re.MULTILINE):
            if name in properties:
                properties[name] = {**properties[name], "description": " ".join(text.replace("``", "`").split())}
    return properties


def to_yaml(recipe: Recipe) -> str:
    """The complete recipe, every default written out."""
    raw = recipe.model_dump(mode="json", by_alias=True, exclude_none=True)
    # What is switched off by null, though it is on by default, has to be said.
    defaults = dataclasses.asdict(model_class(recipe.model.name).Config())
    off = {key: None for key, value in recipe.sections("model")["model"].items() if value is None}
    raw["model"] |= {key: value for key, value in off.items() if defaults[key] is not None}
    return yaml.safe_dump(raw, sort_keys=False)


def _read(reference: str) -> tuple[dict[str, Any], Path | None]:
    path = Path(reference)
    if is_file(path, f"recipe {reference[:200]}"):
        return _parsed(read_text(path, f"recipe {reference[:200]}"), reference), path.absolute().parent
    if path.suffix in {".yaml", ".yml"}:
        raise RecipeError(f"recipe {reference}: there is no such file. Packaged recipes: {_known()}.")
    if reference not in packaged_recipes():
        nearest = difflib.get_close_matches(reference, packaged_recipes(), n=1, cutoff=0.0)
        raise RecipeError(
            f"recipe {reference}: no file and no packaged recipe has that name. "
            f"Did you mean '{nearest[0]}'? Packaged recipes: {_known()}. "
            "`rayrec init FILE` writes one for your own data."
        )
    return _parsed((PACKAGED / f"{reference}.yaml").read_text(encoding="utf-8"), reference), None


def _known() -> str:
    return ", ".join(packaged_recipes())


def _parsed(text: str, where: str) -> dict[str, Any]:
    raw = parse_yaml(text, f"recipe {where}: this")
    if not isinstance(raw, dict):
        raise RecipeError(f"recipe {where}: expected sections such as `name:` and `data:`, found {type(raw).__name__}.")
    return raw


def _with_simulated_data(raw: dict[str, Any]) -> dict[str, Any]:
    simulated = _parsed((PACKAGED / "simulated.yaml").read_text(encoding="utf-8"), "simulated")
    if raw.get("simulated"):
        return raw
    data = raw.get("data")
    kept = {key: data[key] for key in ("view", "split", "clean") if key in data} if isinstance(data, dict) else {}
    named = {"name": f"{raw['name']}-simulated"} if raw.get("name") else {}
    return {**raw, **named, "simulated": True, "data": {**simulated["data"], **kept}}


def _set(raw: dict[str, Any], override: str) -> None:
    """Apply one ``section.key=value`` in place."""
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise RecipeError(f"--set {override}: write it as section.key=value, such as training.epochs=5.")
    value = parse_yaml(text, f"--set {override[:200]}: the value")
    *parents, last = path.split(".")
    model = raw.get("model") or {}
    if path == "model.name" and isinstance(model, dict) and model.get("name", DEFAULT_MODEL) != value:
        # The settings of one architecture mean nothing to another.
        raw["model"] = {}
    node: Any = raw
    for key in parents:
        node = _child(node, key, override)
    _assign(node, last, value, override)


def _child(node: Any, key: str, override: str) -> Any:
    if isinstance(node, list):
        child = node[_index(node, key, override)]
    else:
        if node.get(key) is None:
            node[key] = {}
        child = node[key]
    if not isinstance(child, dict | list):
        raise RecipeError(f"--set {override}: '{key}' is a value ({child}), it has no keys of its own.")
    return child


def _assign(node: Any, key: str, value: Any, override: str) -> None:
    if isinstance(node, list):
        node[_index(node, key, override)] = value
    else:
        node[key] = value


def _index(node: list[Any], key: str, override: str) -> int:
    if not key.isdecimal() or int(key) >= len(node):
        raise RecipeError(f"--set {override}: '{key}' must be a position in a list of {len(node)}, counted from 0.")
    return int(key)


def _resolved(recipe: Recipe, folder: Path) -> Recipe:
    """Relative paths of data made absolute, from the recipe's folder."""

    def absolute(source: Any) -> Any:
        return source and source.model_copy(update={"path": _absolute(source.path, folder)})

    data = recipe.data
    sources = tuple(absolute(source) for source in data.sources)
    update = {"sources": sources, "items": absolute(data.items), "users": absolute(data.users)}
    return recipe.model_copy(update={"data": data.model_copy(update=update)})


def _absolute(path: str, folder: Path) -> str:
    """A path from a recipe's folder on; URIs, and what a variable begins, stay as they are."""
    if relative := re.fullmatch(r"(sqlite[+\w]*:///)(?![/$])(.+)", path):
        return relative[1] + quote(str(folder / unquote(relative[2])))
    if "://" in path or path.startswith("${") or Path(path).is_absolute():
        return path
    return str(folder / path)


def _parse_model(section: Any, messages: list[str]) -> ModelChoice | None:
    """The `model` section; problems are added to ``messages``."""
    section = {} if section is None else section
    if not isinstance(section, dict):
        messages.append(f"model = {section!r}: expected keys such as `name: {DEFAULT_MODEL}`.")
        return None
    settings = {"name": DEFAULT_MODEL, **section}
    name = settings.pop("name")
    try:
        config_class = model_class(name).Config
        config = TypeAdapter(_strict(config_class)).validate_python(settings)
    except RecipeError as error:
        messages.append(str(error))
        return None
    except pydantic.ValidationError as error:
        messages.extend(described(error, TypeAdapter(_strict(config_class)).json_schema(), prefix=("model",)))
        return None
    return ModelChoice(name, config_class(**dataclasses.asdict(config)))


def _strict(config_class: type) -> Any:
    """The config as a pydantic dataclass that refuses unknown keys."""
    return pydantic.dataclasses.dataclass(config_class, frozen=True, config=ConfigDict(extra="forbid"))


def described(
    error: pydantic.ValidationError, schema: Json, prefix: tuple[str, ...] = (), whole: str = "recipe"
) -> list[str]:
    """What pydantic found: one line a key that is wrong, with the nearest valid one; ``whole`` is what has no key."""
    by_key: dict[tuple[str | int, ...], list[Any]] = {}
    for problem in _innermost(error.errors()):
        by_key.setdefault(_location(problem, schema), []).append(problem)
    named = {location: ".".join(map(str, (*prefix, *location))) or whole for location in by_key}
    return [_describe(named[location], location, problems, schema) for location, problems in by_key.items()]


def _innermost(problems: Sequence[Any]) -> list[Any]:
    """The problems without those that only follow from one inside them."""
    locations = [problem["loc"] for problem in problems]

    def outer(loc: tuple[str | int, ...]) -> bool:
        return any(len(other) > len(loc) and other[: len(loc)] == loc for other in locations)

    return [problem for problem in problems if not outer(problem["loc"])]


def _location(problem: Any, schema: Json) -> tuple[str | int, ...]:
    """The keys to where the problem is, without the names of types that pydantic puts behind them."""
    parts = problem["loc"]
    named = problem["type"] in UNKNOWN_KEY | MISSING_KEY | {"invalid_key"}
    last = len(parts) - 1 if named else len(parts)
    return tuple(part for n, part in enumerate(parts) if n == last or _is_key(_node_at(schema, parts[:n]), part))


def _describe(key: str, location: tuple[str | int, ...], problems: Sequence[Any], schema: Json) -> str:
    """One line: the key, the value, what is wrong, the nearest valid one."""
    problem = problems[0]
    if problem["type"] in UNKNOWN_KEY:
        valid = _node_at(schema, problem["loc"][:-1]).get("properties", {})
        return f"{key}: unknown key.{nearest(str(location[-1]), valid)}"
    if problem["type"] in MISSING_KEY:
        return f"{key}: required, but missing."
    if problem["type"] == "union_tag_not_found":
        return f"{key}.kind: required, but missing."
    if problem["type"] == "union_tag_invalid":
        valid, tag = problem["ctx"]["expected_tags"], problem["ctx"]["tag"]
        return f"{key}.kind = {tag!r}: Input should be one of {valid}.{nearest(tag, valid.split(chr(39))[1::2])}"
    reason = "; or: ".join(dict.fromkeys(p["msg"].removeprefix("Value error, ") for p in problems))
    if not isinstance(problem["input"], str | int | float | bool | None):
        return f"{key}: {reason}."
    expected = problem.get("ctx", {}).get("expected", "")
    return f"{key} = {problem['input']!r}: {reason}.{nearest(str(problem['input']), expected.split(chr(39))[1::2])}"


def nearest(text: str, valid: Iterable[str]) -> str:
    """A sentence that asks whether the nearest of what is valid was meant, with a space before; empty without any."""
    matches = difflib.get_close_matches(text, list(valid), n=1, cutoff=0.0)
    return f" Did you mean '{matches[0]}'?" if matches else ""


def _node_at(schema: Json, location: Sequence[str | int]) -> Json:
    """The JSON Schema of what stands at ``location``, as pydantic gives it: with the kind behind a key that has one."""
    node = schema
    for part in location:
        node = _dereferenced(schema, node)
        mapping = node.get("discriminator", {}).get("mapping", {})
        if isinstance(part, int):
            node = node.get("items", {})
        elif part in mapping:
            node = {"$ref": mapping[part]}
        else:
            node = node.get("properties", {}).get(part) or node.get("additionalProperties") or {}
    return _dereferenced(schema, node)


def _is_key(node: Json, part: str | int) -> bool:
    """Whether ``part`` stands in the recipe, rather than being the name of a type or a kind."""
    return isinstance(part, int) or part in node.get("properties", {}) or bool(node.get("additionalProperties"))


def _dereferenced(schema: Json, node: Json) -> Json:
    """Follow ``$ref``, and the branch of an optional section that has keys."""
    for branch in node.get("anyOf") or node.get("allOf") or []:
        if "$ref" in branch:
            node = branch
    while "$ref" in node:
        node = schema["$defs"][node["$ref"].rsplit("/", 1)[1]]
    return node
