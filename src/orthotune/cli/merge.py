"""``orthotune merge``."""

from __future__ import annotations

from orthotune.cli.parser import Parser


def run(arguments: list[str]) -> int:
    """Write the plain model of a run."""
    parser = Parser(
        "orthotune merge",
        "Merge a run's adapter into the weights and write the plain model.\n\n"
        "The folder loads without orthotune: timm.create_model('local-dir:OUT', pretrained=True) for a timm model,\n"
        "AutoModelForImageClassification.from_pretrained('OUT') for a transformers model.",
    )
    parser.option(parser, "--run", str, None, "run folder", required=True)
    parser.option(parser, "--out", str, None, "folder to create", required=True)
    parser.option(parser, "--weights", str | None, None, "the base weights, if they have moved since the run")
    parser.option(parser, "--overwrite", bool, False, "replace the merged model in --out")
    options = parser.read(arguments)
    from orthotune.training import merge

    report = merge(options.run, options.out, weights=options.weights, overwrite=options.overwrite)
    print(
        f"merged and adapted logits differ by {report.max_difference:.1e} of the largest (allowed {report.tolerance:g})"
    )
    print(f"written to {report.out}")
    return 0
