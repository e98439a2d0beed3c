"""``defaults <- YAML files <- key=value``, and back into flat form and YAML. The only module that knows OmegaConf."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from senet import REPOSITORY
from senet.config.checks import check_ranges, check_together
from senet.config.hints import near_option, what_was_meant
from senet.config.images import kept_as, refuse_ignored_files, stored_as
from senet.config.options import Config, DataConfig, entry_of, flat_values, groups, options, those, types
from senet.config.reading import Quoted, as_path, as_type, as_yaml, parse, plain, shown, unquoted
from senet.config.renamed import with_new_names
from senet.config.shares import check_split
from senet.errors import ConfigError, did_you_mean
from senet.verbs import DEFAULT_RECIPE, typed


def load_config(argv: Sequence[str], world_size: int = 1) -> Config:
    """Merge defaults, the YAML files and the ``key=value`` pairs of ``argv``, each later one over the earlier.

    Without a YAML file, ``configs/cifar10.yaml`` is the first.

    Raises:
        ConfigError: an unknown key, a wrong type, a value out of range, a file missing or malformed, options that
            contradict each other, or a global batch that ``world_size`` ranks cannot share.
    """
    files, overrides = sort_arguments(argv)
    if not files:
        files = [str(_default_recipe())]
    sources = [(f"{shown(name)}: ", _read_yaml(name)) for name in files]
    config = _merge([*sources, *(("", _read_override(pair)) for pair in overrides)])
    if not config.run_dir:
        config = dataclasses.replace(config, run_dir=f"runs/{Path(files[0]).stem}")
    check_ranges(config)
    check_together(config)
    refuse_ignored_files(config.data)
    check_split(config, world_size)
    return config


def _default_recipe() -> Path:
    path = REPOSITORY / DEFAULT_RECIPE
    if not path.exists():  # the package was installed without its checkout
        raise ConfigError(
            f"no YAML file is named, and {DEFAULT_RECIPE} is not in {REPOSITORY}; name a file, or install from a "
            f"checkout: pip install -e ."
        )
    return path


def sort_arguments(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """YAML files, and ``key=value`` pairs. The path of a file may hold a ``=``: /data/exp=3/a.yaml."""
    files, overrides = [], []
    for argument in (each.strip() for each in argv):  # a script with Windows line ends adds one to the last argument
        key, equals, _ = argument.partition("=")
        is_yaml = argument.endswith((".yaml", ".yml"))
        is_file = is_yaml and not _find_option(key.strip())[0] and ("/" in key or Path(argument).is_file())
        if equals and not is_file:
            overrides.append(argument)
        elif is_yaml:
            files.append(argument)
        else:
            hint = what_was_meant(argument, overrides) or "--help all lists the options"
            raise ConfigError(f"argument {argument!r} is neither key=value nor a YAML file; {hint}")
    return files, overrides


def _merge(sources: Sequence[tuple[str, dict[str, Any]]]) -> Config:
    """The defaults, and over them each source's values; keys and types are checked, ranges are not.

    Args:
        sources: what was written, and where, for messages: "file: ", or "" for the command line.
    """
    written: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for origin, content in sources:
        here = set()
        for key, value in with_new_names(origin, list(_flatten(origin, content))):
            name, entry = _find_option(key)
            if not name:
                raise ConfigError(f"{origin}unknown option {key!r}; {near_option(key) or '--help all lists them'}")
            if key in here:
                raise ConfigError(f"{origin}{key} is given twice; leave one out")
            here.add(key)
            value = {entry: value} if entry else value
            earlier = written.get(name)
            written[name] = earlier | value if isinstance(earlier, dict) and isinstance(value, dict) else value
            origins[name] = origin
    values: dict[str, dict[str, Any]] = {}
    paths = {name for name, spec in options() if spec.metadata.get("path")}
    for name, value in _interpolate(written, origins).items():
        group, _, last = name.rpartition(".")
        try:
            typed = as_type(value, types()[name])
            values.setdefault(group, {})[last] = as_path(typed) if name in paths else typed
        except ValueError as error:
            raise ConfigError(f"{origins[name]}{name}={shown(value)} {error}") from None
    parts = {group: cls(**values.get(group, {})) for cls, group in groups() if group}
    return Config(**values.get("", {}), **parts)


def _flatten(origin: str, content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """``train: {epochs: 5}`` and ``train.epochs: 5`` alike."""
    known = {group for _, group in groups() if group}
    for name, value in content.items():
        if name not in known:
            yield name, value
        elif isinstance(value, dict):
            yield from ((f"{name}.{key}", inner) for key, inner in value.items())
        elif value or not origin:  # in a file a group is empty when all its lines are comments
            some = next(key for key, _ in options() if key.startswith(f"{name}."))
            raise ConfigError(f"{origin}{name}={shown(value)}: {name} is a group; set its options, e.g. {some}")


def _find_option(key: str) -> tuple[str, str]:
    """The option, and the entry where it is a mapping (slurm.environment.NAME); ("", "") where there is none."""
    if key in dict(options()):
        return key, ""
    name, entry = entry_of(key)
    return (name, entry) if entry and get_origin(types().get(name)) is dict else ("", "")


def _interpolate(written: Mapping[str, Any], origins: Mapping[str, str]) -> dict[str, Any]:
    """``${group.option}`` and ``${oc.env:VARIABLE}`` replaced."""
    values, tree = dict(written), dict[str, Any]()
    marked = [name for name, value in written.items() if "${" in str(value)]
    for name, spec in options() if marked else ():
        group, _, last = name.rpartition(".")
        default = {} if spec.default is dataclasses.MISSING else spec.default
        (tree.setdefault(group, {}) if group else tree)[last] = plain(written.get(name, default))
    name = ""
    try:
        for name in marked:
            OmegaConf.create([plain(written[name])])  # well formed?
        whole = OmegaConf.create(tree)
        for name in marked:
            found = OmegaConf.select(whole, name)
            found = OmegaConf.to_container(found, resolve=True) if OmegaConf.is_config(found) else found
            values[name] = Quoted(found) if isinstance(found, str) else found
    except (OmegaConfBaseException, ValueError, RecursionError) as error:
        reason = str(error).partition("\n")[0].rpartition("resolving interpolation: ")[2][:80]
        raise ConfigError(
            f"{origins[name]}{name}={shown(written[name])}: {reason}; write ${{group.option}}, "
            f"${{oc.env:VARIABLE}} or ${{oc.env:VARIABLE,default}}"
        ) from None
    return values


def named_path(text: str) -> Path:
    """A path that a person typed; ConfigError where ``~name`` is nobody."""
    try:
        return Path(as_path(text))
    except ValueError as error:
        raise ConfigError(f"{text} {error}") from None


def restore_data(saved: Mapping[str, Any], overrides: Sequence[str] = ()) -> DataConfig:
    """The group ``data`` of a flat configuration from a file, with ``data.key=value`` pairs over it.

    What is saved may be anybody's: it is taken as it stands, not as YAML, and nothing in it is interpolated. What it
    does not know (it is older) has its default, and data.store=pixels, which was all there was; what is not known
    here (it is younger) is left out.

    Raises:
        ConfigError: a wrong type, a value out of range, or no files for data.source.
    """
    values: dict[str, Any] = {}
    saved, hints = {"data.store": "pixels", **saved}, get_type_hints(DataConfig)
    for spec in dataclasses.fields(DataConfig):
        default = {} if spec.default is dataclasses.MISSING else spec.default
        value = saved.get(f"data.{spec.name}", default)
        value = tuple(value) if isinstance(value, list) else value
        fits = type(value) is type(default)
        if fits and isinstance(value, tuple):
            fits = len(value) == 3 and all(type(each) in (int, float) for each in value)
        if not fits or (get_origin(hints[spec.name]) is Literal and value not in get_args(hints[spec.name])):
            raise ConfigError(f"data.{spec.name}={value!r} is no value of it; see {typed('train')} --help data")
        values[spec.name] = value
    given = _merge([("", _read_override(pair)) for pair in overrides])
    for name in (pair.partition("=")[0].strip().split(".")[1] for pair in overrides):
        value = getattr(given.data, name)
        values[name] = values[name] | value if isinstance(value, dict) else value
    data = DataConfig(**values)
    check_ranges(Config(data=data))
    check_together(Config(data=data))
    return data


def to_flat(config: Config) -> dict[str, Any]:
    """``{"optim.lr": 0.1, ...}`` in the order of the option manual; tuples become lists, as in JSON.

    Without the group ``slurm``: no part of the training, and its environment may hold what not everybody should read.
    """
    return {key: value for key, value in flat_values(config).items() if not key.startswith("slurm.")}


def to_yaml(config: Config) -> str:
    """The resolved configuration as a YAML file that ``load_config`` reads back."""
    return as_yaml(plain(dataclasses.asdict(config), escaped=True))


def changed_options(saved: Mapping[str, Any], config: Config) -> list[tuple[str, Any, Any]]:
    """``(key, saved value, value now)`` of the options that change numbers and differ.

    An option that ``saved`` does not know (it is younger) counts as saved with its default. Of ``data.store`` what it
    stands for is compared.
    """
    now = to_flat(config) | {"data.store": stored_as(config.data)}
    before = to_flat(Config()) | {**saved, "data.store": kept_as(saved)}
    return [(key, before[key], now[key]) for key in now if key not in those("free") and before[key] != now[key]]


def _read_yaml(name: str) -> dict[str, Any]:
    path = named_path(name)
    try:
        content = parse(path.read_bytes())
    except FileNotFoundError:
        near = sorted(str(p) for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        raise ConfigError(f"{shown(name)}: no such file; {did_you_mean(str(path), near) or 'check the path'}") from None
    except OSError as error:
        raise ConfigError(f"{shown(name)}: not a readable YAML file: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{shown(name)}: not a readable YAML file: {error}") from None
    if content and not isinstance(content, dict):
        kind = "list" if isinstance(content, list) else "text"
        raise ConfigError(f"{shown(name)}: expected a mapping such as 'train: {{epochs: 5}}', found a {kind}")
    return content or {}


def _read_override(pair: str) -> dict[str, Any]:
    """The value of an option that is a list, a mapping or of any type is YAML; any other is the text itself."""
    key, _, text = (part.strip() for part in pair.partition("="))
    is_group = key in {group for _, group in groups() if group}
    name, entry = _find_option(key)
    hint = get_args(types()[name])[1] if entry else types().get(key)
    if not is_group and get_origin(hint) not in (tuple, dict, UnionType):
        return {key: unquoted(text)}
    try:
        return {key: parse(text)}
    except ValueError as error:
        raise ConfigError(f"{key}={shown(text)} cannot be read: {error}") from None
