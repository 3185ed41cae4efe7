"""The registry's methods in the form of PEFT's lists of cases, where they are put on single layers."""

from __future__ import annotations

import dataclasses
from typing import Any

from orthotune.errors import InputError
from orthotune.tuners._registration import tuner_of
from orthotune.tuners.hosts import Conv2dHost, LinearHost, NormHost
from tuners import cases as tuner_cases

Case = tuple[str, str, type, dict[str, Any]]


def _narrow(case: tuple[type, dict[str, Any]]) -> tuple[type, dict[str, Any]]:
    """Return the case with ranks for PEFT's little models, whose widths go down to 2."""
    config_cls, options = case
    return config_cls, {key: min(value, 2) if type(value) is int else value for key, value in options.items()}


def _distinct() -> dict[str, tuple[type, dict[str, Any]]]:
    """Return the methods on layers and their options, without those that narrowing has made the same."""
    cases: dict[str, tuple[type, dict[str, Any]]] = {}
    for name in sorted(tuner_cases.LINEAR, key=lambda name: name.count("=")):
        if name.count("=") > 1:  # in combination they are tested in tests/tuners
            break
        case = _narrow(tuner_cases.CONFIGS[name])
        if all(
            config_cls is not case[0] or config_cls(**options) != config_cls(**case[1])
            for config_cls, options in cases.values()
        ):
            cases[name] = case
    return cases


CASES = _distinct()
METHODS = {name: case for name, case in CASES.items() if name in tuner_cases.OWN}
OPTIONS = {name: case for name, case in CASES.items() if name not in METHODS}
#: The first method of each class.
FIRST: dict[type, dict[str, Any]] = dict(reversed(METHODS.values()))
#: For tests that make configurations themselves: each has the options of its first method as defaults.
CLASSES = [
    dataclasses.make_dataclass(
        config_cls.__name__,
        [(name, type(value), dataclasses.field(default=value)) for name, value in options.items()],
        bases=(config_cls,),
    )
    for config_cls, options in FIRST.items()
]
#: The real classes, those too whose tuners adapt modules that PEFT's little models do not have.
ALL_CLASSES = list(dict.fromkeys(config_cls for config_cls, _ in tuner_cases.CONFIGS.values()))

TARGETS: list[tuple[str, dict[str, Any]]] = [
    ("MLP", {"target_modules": "lin0"}),
    ("MLP", {"target_modules": ["lin0", "lin1"]}),
    ("MLP2", {"target_modules": ["lin0"], "modules_to_save": ["lin1"]}),
    ("EmbConv1D", {"target_modules": ["conv1d"], "modules_to_save": ["lin0"]}),
    ("Conv2d", {"target_modules": ["conv2d"], "modules_to_save": ["lin0"]}),
    ("Conv2d2", {"target_modules": ["conv2d", "lin0"]}),
    ("Conv2d1x1", {"target_modules": ["conv2d"]}),
    ("MLP_LayerNorm", {"target_modules": ["layernorm0", "lin0", "lin1"]}),
]
OPTION_TARGETS = [("MLP", {"target_modules": ["lin0", "lin1"]}), ("Conv2d", {"target_modules": ["conv2d"]})]


def _name(method: str, model: str, options: dict[str, Any]) -> str:
    targets = options["target_modules"]
    parts = [method, model, targets if isinstance(targets, str) else "[" + ",".join(targets) + "]"]
    parts += [f"{key}={options[key]}" for key in options if key != "target_modules"]
    return " ".join(parts)


def _grid(methods: dict[str, tuple[type, dict[str, Any]]], targets: list[tuple[str, dict[str, Any]]]) -> list[Case]:
    return [
        (_name(method, model, where), model, config_cls, {**options, **where})
        for method, (config_cls, options) in methods.items()
        for model, where in targets
    ]


# input and output width of each model's first target, and the kind of its layers
WIDTHS = {"EmbConv1D": (5, 1), "Conv2d1x1": (1, 10)}
HOSTS = {"Conv2d": Conv2dHost, "Conv2d2": Conv2dHost, "Conv2d1x1": Conv2dHost, "MLP_LayerNorm": NormHost}


def _fits(case: Case) -> bool:
    """Whether the method adapts layers of this kind and width: a rotation needs two coordinates, a rank r needs r."""
    _, model, config_cls, options = case
    layer_cls = tuner_of(config_cls).layer_classes.get(HOSTS.get(model, LinearHost))
    if layer_cls is None:
        return False
    try:
        layer_cls.check(config_cls(**options), model, *WIDTHS.get(model, (2, 2)))
    except InputError:
        return False
    return True


CUSTOM_CASES: list[Case] = [case for case in (*_grid(METHODS, TARGETS), *_grid(OPTIONS, OPTION_TARGETS)) if _fits(case)]

SEVERAL_ADAPTERS: list[tuple[str, str, type, dict[str, Any], dict[str, Any]]] = [
    (
        f"{method} {how}",
        config_cls.__name__.removesuffix("Config").lower(),
        config_cls,
        {**options, "target_modules": ["lin0"], "init_weights": False},
        {**options, "target_modules": [second], "init_weights": False},
    )
    for method, (config_cls, options) in CASES.items()
    for how, second in (("Same", "lin0"), ("Different", "lin1"))
]


def transformer_cases(**fields: Any) -> list[tuple[type, dict[str, Any]]]:
    """Return a case of each class for the models of transformers, with the default targets of each model."""
    return [(config_cls, {**options, "target_modules": None, **fields}) for config_cls, options in FIRST.items()]
