"""Language models of transformers with the head of a task, as the base model of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from orthotune.errors import InputError
from orthotune.models.build import Classifier
from orthotune.models.weights import check_finite, load_backbone, read_state_dict
from orthotune.targets.kinds import head_names, in_modules

Head = Literal["classes", "span", "tokens"]
_AUTO = {
    "classes": "AutoModelForSequenceClassification",
    "span": "AutoModelForQuestionAnswering",
    "tokens": "AutoModelForCausalLM",
}
#: what tokenizers without a limit say instead
_NO_LIMIT = 1_000_000
#: tokens of a text where nothing is said
_LENGTH = 128


@dataclasses.dataclass(frozen=True)
class TextPreprocessing:
    """How texts become tokens: cut after ``max_length``; ``stride`` tokens shared by windows of a long context."""

    max_length: int
    stride: int | None = None


@dataclasses.dataclass
class TextModel(Classifier):
    """A language model; ``preprocessing`` is a TextPreprocessing, ``processor`` the tokenizer, ``auto`` its class."""

    auto: str = ""

    def logits(self, module: nn.Module, images: Any) -> Tensor:
        """Logits of ``module`` for a batch of tokens (a dict of (N, L) tensors).

        (N, classes); of answers the starts and ends (N, L, 2); of a causal model (N, L, vocabulary).
        """
        found = module(**images)
        if hasattr(found, "start_logits"):
            return torch.stack([found.start_logits, found.end_logits], -1)
        return found.logits

    def tokens(self, texts: list[tuple[str, ...]]) -> Any:
        """A padded batch of texts, or of pairs of texts, cut after :attr:`length`."""
        sides = (list(side) for side in zip(*texts, strict=True))
        return self.processor(*sides, truncation=True, max_length=self.length, padding=True, return_tensors="pt")

    def random_inputs(self, count: int, seed: int = 0) -> Any:
        """``count`` texts of random tokens."""
        config: Any = self.module.config
        shape = (count, min(16, self.length))
        tokens = torch.randint(config.vocab_size, shape, generator=torch.Generator().manual_seed(seed))
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}

    @property
    def length(self) -> int:
        """The most tokens of a text: those of the preprocessing, where it was decided."""
        assert isinstance(self.preprocessing, TextPreprocessing)
        return self.preprocessing.max_length or self.max_length(None, _LENGTH)

    @property
    def longest(self) -> int | None:
        """The most tokens that model and tokenizer take; None if neither says."""
        config: Any = self.module.config
        limits = [getattr(config, "max_position_embeddings", None), self.processor.model_max_length]
        return min((n for n in limits if n and 0 < n < _NO_LIMIT), default=None)

    def max_length(self, wanted: int | None, default: int) -> int:
        """``wanted`` tokens, or ``default`` as far as the model takes it; InputError if it does not take ``wanted``."""
        longest = self.longest
        if wanted is not None and longest is not None and wanted > longest:
            raise InputError(f"--max-length is {wanted}, but {self.name} takes at most {longest} tokens")
        return wanted or min(default, longest or default)


def build_text_model(
    name: str,
    head: Head,
    classes: list[str],
    *,
    weights: str | None = None,
    random_weights: bool = False,
    model_args: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> TextModel:
    """The model ``name`` (hub id or folder) with a new head for ``classes`` ([]: one number) or for spans.

    What a head has of its own is new and random by ``seed``; a pooler that the file has is kept, and is trained with
    the head, because a model that was pre-trained with another pooling has not trained it. A causal model keeps its
    output layer, which is not trained. A tokenizer without a padding token pads with its end of text. InputError for a
    model that cannot be loaded, weights that do not fit or are not finite, and a tokenizer without either token.
    """
    if weights is not None and random_weights:
        raise InputError("--weights and --random-weights exclude each other: give one of them")
    import transformers

    auto: Any = getattr(transformers, _AUTO[head])
    args = dict(model_args or {})
    if head == "classes":
        args |= {"num_labels": max(1, len(classes))}
        if classes:
            args |= {"id2label": dict(enumerate(classes)), "label2id": {c: i for i, c in enumerate(classes)}}
        else:
            args |= {"problem_type": "regression"}
    torch.manual_seed(seed)
    missing: set[str] = set()
    try:
        with quiet_transformers():
            config = transformers.AutoConfig.from_pretrained(name, **args)
            tokenizer = transformers.AutoTokenizer.from_pretrained(name)
            if weights is None and not random_weights:
                module, info = auto.from_pretrained(name, config=config, dtype=torch.float32, output_loading_info=True)
                missing = set(info["missing_keys"])
            else:
                module = auto.from_config(config, dtype=torch.float32)
    except (OSError, ValueError, RuntimeError, ImportError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(f"model {name!r} cannot be loaded by transformers as {_AUTO[head]}: {reason}") from error
    _pad(tokenizer, module, name)
    heads = () if head == "tokens" else _heads(module)
    model = TextModel(module, name, "transformers", heads, TextPreprocessing(0), processor=tokenizer, auto=_AUTO[head])  # type: ignore[arg-type]
    if weights is not None:
        load_backbone(module, _named_as(module, read_state_dict(weights)), heads, str(weights), name)
    lost = sorted(key for key in missing if not in_modules(key, heads))
    if lost:
        raise InputError(
            f"model {name!r} has no weights for {len(lost)} tensors outside the head ({', '.join(lost[:3])}): it is "
            f"not one for {_AUTO[head]}"
        )
    check_finite(module.state_dict(), name)
    module.eval()
    return model


def _heads(module: nn.Module) -> tuple[str, ...]:
    """The modules with parameters outside the backbone, and a pooler inside it."""
    names = {*head_names(module), *(n for n, _ in module.named_modules() if n.rpartition(".")[2] == "pooler")}
    filled = {n for n in names if next(module.get_submodule(n).parameters(), None) is not None}
    return tuple(sorted(n for n in filled if not any(n.startswith(f"{other}.") for other in filled)))


def _named_as(module: Any, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a bare backbone under the names they have below the head."""
    prefix = module.base_model_prefix
    if prefix and not any(name.startswith(f"{prefix}.") for name in state):
        return {f"{prefix}.{name}": tensor for name, tensor in state.items()}
    return state


def _pad(tokenizer: Any, module: Any, name: str) -> None:
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise InputError(f"the tokenizer of {name!r} has neither a padding token nor an end of text to pad with")
        tokenizer.pad_token = tokenizer.eos_token
    if module.config.pad_token_id is None:
        module.config.pad_token_id = tokenizer.pad_token_id


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Inside, no bars of transformers, and no note that a head is new: it always is."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
