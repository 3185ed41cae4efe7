"""Reading texts: GLUE's tasks and tables of one's own, SQuAD, instructions, MMLU and Vicuna's questions."""

from orthotune.texts.data import TextData, read

__all__ = ["TextData", "read"]
