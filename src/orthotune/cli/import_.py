"""``orthotune import``; the module's name is not that of the command, which Python reserves."""

from __future__ import annotations

from typing import Literal

from orthotune.cli.parser import Parser, add_base_options


def run(arguments: list[str]) -> int:
    """Write the adapter folder."""
    parser = Parser(
        "orthotune import",
        "Make a PEFT adapter of a checkpoint of the RLRR authors' code (its vision transformers).\n\n"
        "  orthotune import --from rlrr 91.50.pth --model vit_base_patch16_224.orig_in21k --out adapter/",
    )
    parser.add_argument("file", metavar="FILE", help="the .pth file")
    parser.option(parser, "--from", Literal["rlrr"], None, "whose code wrote it", required=True)
    parser.option(parser, "--out", str, None, "folder to create", required=True)
    add_base_options(parser, required=True)
    options = parser.read(arguments)
    from orthotune.exporting.rlrr_checkpoint import import_rlrr

    model = import_rlrr(
        options.file,
        options.model,
        options.out,
        weights=options.weights,
        image_size=options.image_size,
        model_args=options.model_args,
    )
    print(f"{sum(t.numel() for t in model.trained_tensors().values()):,} parameters, the head included")
    print(f"written to {options.out}")
    return 0
