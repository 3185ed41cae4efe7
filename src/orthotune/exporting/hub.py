"""A run's adapter as a repository of the Hub: the folder, and its upload."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils._validators import validate_repo_id

from orthotune.errors import InputError
from orthotune.exporting.card import base_on_hub, model_card
from orthotune.methods import get_method
from orthotune.training.files import new_folder, write_json
from orthotune.training.run import FinishedRun


def write_hub_folder(
    run: FinishedRun,
    folder: Path,
    *,
    license: str | None = None,
    base_model: str | None = None,
    repo: str = "REPOSITORY",
) -> None:
    """Write what a repository of the run holds: the adapter, ``classes.json`` and the card ``README.md``.

    No path of this machine is in it. InputError for a run without an adapter. See :func:`model_card`.
    """
    if not get_method(run.config.method).is_adapter:
        raise InputError(
            f"the run was made with method {run.config.method!r}, which has no adapter: publish the folder that "
            "orthotune merge writes"
        )
    with new_folder(folder) as temporary:
        shutil.copy(run.folder.trained / "adapter_model.safetensors", temporary)
        shutil.copy(run.folder.classes, temporary)
        config = json.loads((run.folder.trained / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = base_model or base_on_hub(run)
        write_json(temporary / "adapter_config.json", config)
        model_card(run, license=license, base_model=base_model, repo=repo).save(temporary / "README.md")


def push(
    run: FinishedRun,
    repo: str,
    *,
    private: bool = False,
    license: str | None = None,
    base_model: str | None = None,
) -> str:
    """Upload the run's adapter and card to the Hub's repository ``repo``, made if need be; return its address.

    The token is the one that ``hf auth login`` saved, or that of the environment variable HF_TOKEN.
    Raises InputError for a name that the Hub does not allow, and where the Hub refuses or cannot be reached.
    """
    try:
        validate_repo_id(repo)
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent, "upload")
            write_hub_folder(run, folder, license=license, base_model=base_model, repo=repo)
            api = HfApi()
            url = api.create_repo(repo, private=private, exist_ok=True)
            api.upload_folder(repo_id=url.repo_id, folder_path=folder, commit_message="Adapter and model card")
    except InputError:
        raise
    except HFValidationError as error:
        raise InputError(f"--repo {repo!r} is no name of a repository on the Hub: {error}") from error
    except Exception as error:  # the client raises its own errors, its HTTP library's and the system's
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{repo!r} cannot be uploaded: {reason}; log in with: hf auth login") from error
    return str(url)
