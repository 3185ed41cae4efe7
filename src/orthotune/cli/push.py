"""``orthotune push``."""

from __future__ import annotations

from orthotune.cli.parser import Parser


def run(arguments: list[str]) -> int:
    """Upload the run."""
    parser = Parser(
        "orthotune push",
        "Upload a run's adapter to the Hugging Face Hub, with a model card.\n\n"
        "  orthotune push --run runs/x --repo NAME/MODEL --license apache-2.0\n\n"
        "orthotune export --to hub writes the same folder here, to look at.",
    )
    parser.option(parser, "--run", str, None, "run folder", required=True)
    parser.option(parser, "--repo", str, None, "repository on the Hub, made if need be", required=True)
    parser.option(parser, "--private", bool, False, "make it a private one")
    parser.option(parser, "--license", str | None, None, "the Hub's identifier of a licence, such as apache-2.0")
    parser.option(parser, "--base-model", str | None, None, "the base model's id on the Hub, if not that of the run")
    parser.option(parser, "--weights", str | None, None, "the base weights, if they have moved since the run")
    options = parser.read(arguments)
    from orthotune.exporting.hub import push
    from orthotune.training.run import open_run

    url = push(
        open_run(options.run, weights=options.weights),
        options.repo,
        private=options.private,
        license=options.license,
        base_model=options.base_model,
    )
    print(f"uploaded to {url}")
    return 0
