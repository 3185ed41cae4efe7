"""Our configurations in the form of PEFT's lists of cases."""

from __future__ import annotations

from typing import Any

from orthotune import AOFTConfig, GOFTConfig, RLRRConfig

Case = tuple[str, str, type, dict[str, Any]]

CLASSES = [AOFTConfig, GOFTConfig, RLRRConfig]

# AOFT's r is at most the smallest width of PEFT's little models, which is 2
METHODS: dict[str, tuple[type, dict[str, Any]]] = {
    "GOFT": (GOFTConfig, {}),
    "qGOFT": (GOFTConfig, {"quasi": True}),
    "RLRR": (RLRRConfig, {}),
    "AOFT": (AOFTConfig, {"r": 2}),
}
OPTIONS: dict[str, tuple[type, dict[str, Any]]] = {
    "GOFT output scale": (GOFTConfig, {"scale": "output"}),
    "GOFT input scale": (GOFTConfig, {"scale": "input"}),
    "GOFT two trees": (GOFTConfig, {"num_trees": 2}),
    "qGOFT input scale two trees": (GOFTConfig, {"quasi": True, "scale": "input", "num_trees": 2}),
    "RLRR r=2": (RLRRConfig, {"r": 2}),
    "RLRR left": (RLRRConfig, {"right": False}),
    "RLRR right": (RLRRConfig, {"left": False}),
    "RLRR no residual": (RLRRConfig, {"residual": False}),
    "RLRR no base": (RLRRConfig, {"multiply_base": False}),
    "RLRR no shift": (RLRRConfig, {"shift": False}),
    "AOFT r=1": (AOFTConfig, {"r": 1}),
    "AOFT fixed scale": (AOFTConfig, {"r": 2, "learn_scale": False}),
}

TARGETS: list[tuple[str, dict[str, Any]]] = [
    ("MLP", {"target_modules": "lin0"}),
    ("MLP", {"target_modules": ["lin0"]}),
    ("MLP", {"target_modules": ["lin1"]}),
    ("MLP", {"target_modules": ["lin0", "lin1"]}),
    ("MLP", {"target_modules": ["lin0"], "modules_to_save": ["lin1"]}),
    ("MLP2", {"target_modules": ["lin0", "lin1"]}),
    ("EmbConv1D", {"target_modules": ["conv1d"]}),
    ("EmbConv1D", {"target_modules": ["conv1d"], "modules_to_save": ["lin0"]}),
    ("Conv2d", {"target_modules": ["conv2d"]}),
    ("Conv2d", {"target_modules": ["conv2d", "lin0"]}),
    ("Conv2d", {"target_modules": ["conv2d"], "modules_to_save": ["lin0"]}),
    ("Conv2d2", {"target_modules": ["conv2d", "lin0"]}),
    ("Conv2d1x1", {"target_modules": ["conv2d"]}),
]
NORM_TARGETS = [
    ("MLP_LayerNorm", {"target_modules": ["layernorm0", "layernorm1"]}),
    ("MLP_LayerNorm", {"target_modules": ["layernorm0", "lin0", "lin1"]}),
]
OPTION_TARGETS = [
    ("MLP", {"target_modules": ["lin0", "lin1"]}),
    ("EmbConv1D", {"target_modules": ["conv1d"]}),
    ("Conv2d", {"target_modules": ["conv2d", "lin0"]}),
]


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


def _fits(case: Case) -> bool:
    """Whether the layers are wide enough: a rotation needs two coordinates, a rank r needs r."""
    _, model, config_cls, options = case
    widths = {"EmbConv1D": (5, 1), "Conv2d1x1": (1, 10)}.get(model)
    if widths is None:
        return True
    if config_cls is GOFTConfig:
        return widths[0] >= 2
    return min(widths) >= options.get("r", 1)


CUSTOM_CASES: list[Case] = [
    *(case for case in (*_grid(METHODS, TARGETS), *_grid(OPTIONS, OPTION_TARGETS)) if _fits(case)),
    *_grid({"RLRR": METHODS["RLRR"]}, NORM_TARGETS),
]

SEVERAL_ADAPTERS: list[tuple[str, str, type, dict[str, Any], dict[str, Any]]] = [
    (
        f"{method} {how}",
        config_cls.__name__.removesuffix("Config").lower(),
        config_cls,
        {**options, "target_modules": ["lin0"], "init_weights": False},
        {**options, "target_modules": [second], "init_weights": False},
    )
    for method, (config_cls, options) in {**METHODS, **OPTIONS}.items()
    for how, second in (("Same", "lin0"), ("Different", "lin1"))
]


def transformer_cases(**fields: Any) -> list[tuple[type, dict[str, Any]]]:
    """Return cases for the models of transformers, with the default targets of each model."""
    return [(config_cls, {**options, "target_modules": None, **fields}) for config_cls, options in METHODS.values()]
