"""PEFT's tests on models of transformers: decoders, encoders, encoder-decoders, classifiers, a ResNet.

The models are small random ones made here, under the names that PEFT's tests take from the Hub; the targets are the
default ones of each model. Left out: tests that are not parametrised over methods but name one, and those of prompt
learning, of batches that mix adapters and of weighted combinations, which skip every method that does not have them.
From ``test_low_level_api.py`` comes the test that injects an adapter as a state dict describes it.
"""

from __future__ import annotations

from typing import Any

import transformers

from orthotune.tuners._registration import tuner_of
from orthotune.tuners.hosts import Conv2dHost
from peft_suite import cases, source
from peft_suite.local_models import saved
from peft_suite.retarget import retarget

decoder = source.load("test_decoder_models")
encoder_decoder = source.load("test_encoder_decoder_models")
feature_extraction = source.load("test_feature_extraction_models")
sequence_classifier = source.load("test_seq_classifier")
low_level = source.load("test_low_level_api")
vision = source.load("test_vision_models")

LEFT_OUT = {
    **dict.fromkeys(
        (
            "test_prompt_learning_forward_with_inputs_embeds",
            "test_prompt_learning_with_gradient_checkpointing",
            "test_prompt_tuning_sample_vocab_prepare_for_training",
            "test_prompt_tuning_text_prepare_for_training",
            "test_set_requires_grad_prompt_learning_raises",
            "test_training_prompt_learning_tasks",
        ),
        "prompt learning",
    ),
    **dict.fromkeys(
        ("test_mixed_adapter_batches", "test_generate_with_mixed_adapter_batches"),
        "written for LoRA and RoAd alone; tests/tuners has ours",
    ),
    "test_weighted_combination_of_adapters": "weighted combinations",
}


def ours(**fields: Any) -> dict[str, list[Any]]:
    """Return our cases for a task."""
    return {"config_cls, config_kwargs": cases.transformer_cases(**fields)}


TestDecoderModels = retarget(
    decoder.TestDecoderModels,
    ours(task_type="CAUSAL_LM"),
    saved(decoder.PEFT_DECODER_MODELS_TO_TEST),
    leave_out=LEFT_OUT,
)
TestEncoderDecoderModels = retarget(
    encoder_decoder.TestEncoderDecoderModels,
    ours(task_type="SEQ_2_SEQ_LM"),
    saved(encoder_decoder.PEFT_ENCODER_DECODER_MODELS_TO_TEST),
    leave_out=LEFT_OUT,
)
TestFeatureExtractionModels = retarget(
    feature_extraction.TestPeftFeatureExtractionModel,
    ours(task_type="FEATURE_EXTRACTION"),
    saved(feature_extraction.PEFT_FEATURE_EXTRACTION_MODELS_TO_TEST),
    leave_out={**LEFT_OUT, "test_passing_input_embeds_works": "prompt learning"},
)
TestSequenceClassificationModels = retarget(
    sequence_classifier.TestSequenceClassificationModels,
    ours(task_type="SEQ_CLS"),
    saved(sequence_classifier.PEFT_SEQ_CLS_MODELS_TO_TEST),
    leave_out=LEFT_OUT,
)
TestInjectAdapterFromStateDict = retarget(
    low_level.TestInjectAdapterFromStateDict,
    {
        "config": [config_cls(**options) for config_cls, options in cases.FIRST.items()],
        "model_cls_and_id": list(
            zip(
                (
                    transformers.AutoModelForCausalLM,
                    transformers.AutoModel,
                    transformers.AutoModelForSeq2SeqLM,
                    transformers.AutoModelForSequenceClassification,
                ),
                saved(
                    (
                        "tiny-random-LlamaForCausalLM",
                        "tiny-random-BertModel",
                        "tiny-random-BartForConditionalGeneration",
                        "tiny-random-RobertaForSequenceClassification",
                    )
                ),
                strict=True,
            )
        ),
    },
)


class TestResnet(
    retarget(  # type: ignore[misc]
        vision.TestResnet,
        {
            "config": [
                config_cls(**options, target_modules=["convolution"], modules_to_save=["classifier", "normalization"])
                for config_cls, options in cases.METHODS.values()
                if Conv2dHost in tuner_of(config_cls).layer_classes
            ]
        },
    )
):
    """Convolutions, with the batch norms trained whole."""

    (model_id,) = saved([vision.TestResnet.model_id])
