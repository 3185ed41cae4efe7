"""Results to make tables and reports of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reporting.results import layer, write_run


@pytest.fixture(scope="session")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods on three tasks with two seeds, a grid of two settings, a failed run, and an analysis."""
    root = tmp_path_factory.mktemp("sweep")
    for name, base in (("goft", 0.5), ("rlrr", 0.6)):
        for i, task in enumerate(("cifar100", "dtd", "eurosat")):
            for lr in (1e-3, 1e-2):
                for wd in (0.0, 0.1):
                    settings = {"lr": lr, "weight_decay": wd}
                    write_run(root, name, task, 0, base + 10 * lr - wd, phase="search", settings=settings)
            for seed in (0, 1):
                defect = [1e-6, 2e-6, 3e-6] if name == "goft" else None
                settings = {"lr": 1e-2, "weight_decay": 0.0}
                score = base + 0.1 * i + 0.02 * seed
                write_run(root, name, task, seed, score, settings=settings, parameters=2000, defect=defect)
    write_run(root, "rlrr", "dtd", 2, None, status="failed", error=EVIL)
    (root / "inspected").mkdir()
    layers = [layer(f"blocks.{b}.{kind}", b, kind) for b in (0, 1) for kind in ("attn.proj", "mlp.fc1")]
    (root / "inspected" / "analysis.json").write_text(json.dumps({"format_version": 1, "layers": layers, "cka": None}))
    return root


EVIL = "RuntimeError: </script><script>window.evil = 1</script><img src=x onerror='window.evil = 1'>"
