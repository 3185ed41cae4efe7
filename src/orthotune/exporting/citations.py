"""The papers to cite for each method of the table, as BibTeX."""

from __future__ import annotations

_GOFT = """@inproceedings{ma2024goft,
  title     = {Parameter Efficient Quasi-Orthogonal Fine-Tuning via Givens Rotation},
  author    = {Ma, Xinyu and others},
  booktitle = {International Conference on Machine Learning (ICML)},
  year      = {2024},
  eprint    = {2404.04316},
  archivePrefix = {arXiv}
}"""

CITATIONS: dict[str, str] = {
    "goft": _GOFT,
    "qgoft": _GOFT,
    "rlrr": """@inproceedings{dong2024rlrr,
  title     = {Low-Rank Rescaled Vision Transformer Fine-Tuning: A Residual Design Approach},
  author    = {Dong, Wei and others},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2024},
  eprint    = {2403.19067},
  archivePrefix = {arXiv}
}""",
    "aoft": """@inproceedings{yang2025aoft,
  title     = {Efficient Adaptation of Pre-trained Vision Transformer underpinned by Approximately Orthogonal
               Fine-Tuning Strategy},
  author    = {Yang, Yiting and others},
  booktitle = {IEEE/CVF International Conference on Computer Vision (ICCV)},
  year      = {2025},
  eprint    = {2507.13260},
  archivePrefix = {arXiv}
}""",
}
