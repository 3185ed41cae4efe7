"""FacT: one tensor for the updates of all layers, factorised (Jie and Deng, AAAI 2023, arXiv 2212.03145)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from orthotune.errors import InputError
from orthotune.tuners._registration import peft_type, register
from orthotune.tuners.config import AdapterConfig
from orthotune.tuners.hosts import LinearHost
from orthotune.tuners.layer import AdapterLayer
from orthotune.tuners.model import AdapterModel


@dataclass
class FacTConfig(AdapterConfig):
    """Configuration of FacT: W* = W + s U S_l V^T, U and V (d, r) shared by all layers.

    A layer is cut into square blocks d x d, d = min(D, n), each with an S of its own: ``fact_core`` (blocks, r, r) with
    ``decomposition="tt"`` (tensor train). With ``"tk"`` (Tucker) S = sum_t p_t C_t, C = ``fact_tensor`` (r, r, r)
    shared by all layers and ``fact_core`` (blocks, r) = p. ``fact_v`` is zero at the start. A layer that cannot be cut
    into squares is one block. There is one U for every number of rows of a block and one V for every number of columns.
    Raises InputError, a ValueError, for a value out of range.
    """

    decomposition: Literal["tt", "tk"] = field(default="tt", metadata={"help": "Tensor train or Tucker."})
    r: int = field(default=16, metadata={"help": "Rank; the paper's tables use up to 16 (tt) and 32 (tk)."})
    scale: float = field(default=1.0, metadata={"help": "The factor s; the paper tunes it in {0.01, 0.1, 1, 10, 100}."})
    init_weights: bool = field(default=True, metadata={"help": "True: start as a no-op. False: a random start."})

    def __post_init__(self) -> None:
        self.peft_type = peft_type("FACT")
        super().__post_init__()
        self.check_choice("decomposition", ("tt", "tk"))
        self.check_positive("r")
        self.check_choice("init_weights", (True, False))
        if isinstance(self.scale, bool) or not (isinstance(self.scale, int | float) and math.isfinite(self.scale)):
            raise InputError(f"scale={self.scale!r} is out of range: it is a finite number")


class FacTLinear(LinearHost):
    """A share of a factorised tensor, added to a linear layer's weight."""

    method = "fact"
    adapter_layer_names: tuple[str, ...] = ("fact_u", "fact_v", "fact_tensor", "fact_core")

    @classmethod
    def check(cls, config: FacTConfig, module_name: str, in_features: int, out_features: int) -> None:
        config.check_rank(module_name, in_features, out_features)

    @property
    def block_shape(self) -> tuple[int, int]:
        """Inputs and outputs of one block: a square if the layer can be cut into squares, else the layer."""
        small, large = sorted((self.in_features, self.out_features))
        return (self.in_features, self.out_features) if large % small else (small, small)

    def create_parameters(self, adapter_name: str, config: FacTConfig) -> None:
        rows, columns = self.block_shape
        blocks, rank = self.in_features * self.out_features // (rows * columns), config.r

        def xavier(*shape: int) -> Tensor:
            return nn.init.xavier_uniform_(torch.empty(shape))

        def v() -> Tensor:
            return torch.zeros(columns, rank) if config.init_weights else xavier(columns, rank)

        self.share("fact_u", adapter_name, rows, lambda: xavier(rows, rank))
        self.share("fact_v", adapter_name, columns, v)
        if config.decomposition == "tk":
            self.share("fact_tensor", adapter_name, None, lambda: xavier(rank, rank, rank))
        shape = (blocks, rank, rank) if config.decomposition == "tt" else (blocks, rank)
        self.fact_core[adapter_name] = nn.Parameter(xavier(*shape))

    def factors(self, adapter: str, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return U (d, r), the blocks' s S (blocks, r, r) and V (d, r)."""
        config = self.adapter_options[adapter]
        core = self.parameter("fact_core", adapter, dtype)
        if config.decomposition == "tk":
            core = torch.einsum("bt,ijt->bij", core, self.parameter("fact_tensor", adapter, dtype))
        u, v = self.parameter("fact_u", adapter, dtype), self.parameter("fact_v", adapter, dtype)
        return u, config.scale * core, v

    def adapt_matrix(self, matrix: Tensor, adapter: str) -> Tensor:
        u, core, v = self.factors(adapter, matrix.dtype)
        blocks = v @ core.mT @ u.T  # (blocks, d, d) in torch's layout
        wide = self.out_features >= self.in_features
        return matrix + (blocks.flatten(0, 1) if wide else blocks.transpose(0, 1).flatten(1))

    def low_rank_change(self, adapter: str) -> tuple[Tensor, Tensor]:
        u, core, v = self.factors(adapter, torch.float64)
        if self.out_features >= self.in_features:
            return u.T, (v @ core.mT).flatten(0, 1)
        return (core.mT @ u.T).transpose(0, 1).flatten(1), v

    def adapted_forward(self, x: Tensor, adapters: list[str], *args: Any, **kwargs: Any) -> Tensor:
        y = self.base_layer(x, *args, **kwargs)
        for adapter in adapters:
            u, core, v = self.factors(adapter)
            z = x.to(u.dtype)
            if self.out_features >= self.in_features:
                change = ((z @ u @ core.movedim(0, 1).flatten(1)).unflatten(-1, core.shape[:2]) @ v.T).flatten(-2)
            else:
                change = (z.unflatten(-1, (len(core), -1)) @ u).flatten(-2) @ core.flatten(0, 1) @ v.T
            y = y + change.to(y.dtype)
        return y


class FacTModel(AdapterModel):
    """Puts FacT adapters on a model."""

    prefix: str = "fact_"
    tuner_layer_cls = FacTLinear
    layer_classes: ClassVar[dict[type[AdapterLayer], type[AdapterLayer]]] = {LinearHost: FacTLinear}


register("fact", FacTConfig, FacTModel)
