"""Whole models: loaded quantised by transformers, prepared for training, trained, saved, loaded."""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import nn

import orthotune
from orthotune import InputError
from quantised.kinds import KINDS, KernelLinear, config, need, quantised
from quantised.test_reference import adapted

METHODS = ["goft", "qgoft", "rlrr", "aoft"]
TARGETS = ["q_proj", "v_proj", "down_proj"]
IDS = torch.arange(12).view(2, 6)
pytestmark = [
    pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning"),  # inside PEFT
    pytest.mark.filterwarnings("ignore:Already found a .peft_config. attribute:UserWarning"),
    pytest.mark.filterwarnings("ignore:You are trying to modify a model with PEFT for a second time:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*quantises its weight again:UserWarning"),
    pytest.mark.filterwarnings("ignore:RLRR. .* have no bias:UserWarning"),
]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("llama")
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    options = transformers.LlamaConfig(vocab_size=64, max_position_embeddings=32, **sizes)
    transformers.LlamaForCausalLM(options).save_pretrained(folder)
    return folder


def load(folder: Path, bits: str) -> Any:
    need("torchao" if bits == "torchao" else "bitsandbytes")
    if bits == "torchao":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torchao.quantization import Int8WeightOnlyConfig
        quantisation: Any = transformers.TorchAoConfig(Int8WeightOnlyConfig())
    elif bits == "8":
        quantisation = transformers.BitsAndBytesConfig(load_in_8bit=True)
    else:
        quantisation = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        )
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=quantisation, device_map="cpu", dtype=torch.float32
    )


@pytest.mark.parametrize("bits", ["8", "4", "torchao"])
@pytest.mark.parametrize("name", METHODS)
def test_a_quantised_language_model_trains_saves_loads_and_merges(
    name: str, bits: str, llama: Path, tmp_path: Path
) -> None:
    base = peft.prepare_model_for_kbit_training(
        load(llama, bits), gradient_checkpointing_kwargs={"use_reentrant": False}
    )
    model = peft.get_peft_model(base, config(name, target_modules=TARGETS, task_type="CAUSAL_LM"))
    base.eval()
    with torch.no_grad():
        start = model(IDS).logits
        with model.disable_adapter():
            assert torch.allclose(model(IDS).logits, start, atol=1e-5 if bits != "8" else 0.2 * start.abs().max())

    model.train()
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=2e-2)
    losses = []
    for _ in range(8):
        loss = model(IDS, labels=IDS).loss
        optimiser.zero_grad()
        loss.backward()
        assert all(p.grad is not None for n, p in model.named_parameters() if p.requires_grad)
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.005

    model.eval()
    with torch.no_grad():
        trained = model(IDS).logits
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(
        peft.prepare_model_for_kbit_training(load(llama, bits), use_gradient_checkpointing=False), tmp_path
    ).eval()
    with torch.no_grad():
        assert torch.allclose(again(IDS).logits, trained, atol=1e-5)
        plain = again.merge_and_unload(safe_merge=True)
        merged = plain.eval()(IDS).logits
    assert not any(isinstance(m, orthotune.tuners.layer.AdapterLayer) for m in plain.modules())
    # rounded again in 3 layers of each block: 8 bits are near, 4 bits a good way off
    assert (merged - trained).norm() <= {"8": 0.1, "4": 0.6, "torchao": 0.05}[bits] * trained.norm()


@pytest.mark.parametrize("name", METHODS)
def test_training_goes_on_after_an_evaluation_in_4_bits(name: str, llama: Path) -> None:
    """The library repacks weights in evaluation on some CPUs, into a form through which no gradient passes."""
    base = load(llama, "4").eval()
    with torch.no_grad():
        base(IDS)  # and also before there is an adapter
    model = peft.get_peft_model(base, config(name, target_modules=TARGETS, init_weights=False, task_type="CAUSAL_LM"))
    layer = model.base_model.model.model.layers[1].mlp.down_proj
    x = torch.randn(3, 128, requires_grad=True)
    layer.train()(x).square().sum().backward()
    want, x.grad = x.grad.clone(), None
    with torch.no_grad():
        layer.eval()(x.detach())
    layer.train()(x).square().sum().backward()
    assert torch.equal(x.grad, want)
    assert want.abs().sum() > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", METHODS)
def test_saved_copied_and_pickled(name: str, kind: str, tmp_path: Path) -> None:
    base, _, _ = quantised(kind)
    model = adapted(copy.deepcopy(base), name).train()
    x = torch.randn(2, 3, base.in_features if hasattr(base, "in_features") else base.infeatures)
    want = model(x)
    assert torch.equal(copy.deepcopy(model)(x), want)
    model.save_pretrained(tmp_path)
    assert torch.equal(peft.PeftModel.from_pretrained(nn.Sequential(base), tmp_path).train()(x), want)
    assert pickle.loads(pickle.dumps(model.peft_config["default"])) == model.peft_config["default"]


@pytest.mark.parametrize("kind", KINDS)
def test_each_sample_of_a_batch_names_its_adapter(kind: str) -> None:
    base, _, _ = quantised(kind)
    model = adapted(base, "goft").eval()
    model.add_adapter("other", config("goft", target_modules=["0"], init_weights=False))
    x = torch.randn(3, 2, 192)
    names = ["default", "__base__", "other"]
    got = model(x, adapter_names=names)
    with model.disable_adapter():
        assert torch.allclose(got[1:2], model(x[1:2]), atol=1e-6)
    for row, name in ((0, "default"), (2, "other")):
        model.set_adapter(name)
        assert torch.allclose(got[row : row + 1], model(x[row : row + 1]), atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_over_a_lora_on_a_quantised_layer(name: str) -> None:
    need("bitsandbytes")
    base, weight, bias = quantised("bnb-nf4")
    lora = peft.LoraConfig(target_modules=["0"], r=2, init_lora_weights=False)
    under = peft.get_peft_model(nn.Sequential(base), lora).base_model.model
    x = torch.randn(2, 3, 192)
    with torch.no_grad():
        delta = under[0].get_delta_weight("default").double()
    plain = nn.Linear(192, 40).double()
    plain.load_state_dict({"weight": weight + delta, "bias": bias})
    over = peft.get_peft_model(under, config(name, target_modules=["0"], init_weights=False))
    reference = peft.get_peft_model(nn.Sequential(plain), config(name, target_modules=["0"])).double()
    values = {n: p for n, p in over.base_model.model[0].named_parameters() if n.startswith(over.base_model.prefix)}
    for parameter_name, parameter in reference.base_model.model[0].named_parameters():
        if parameter_name in values:
            parameter.data.copy_(values[parameter_name])
    assert torch.allclose(over.train()(x).double(), reference(x.double()), atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_a_kernel_without_a_backward_pass_is_named(name: str) -> None:
    model = adapted(nn.Sequential(KernelLinear(nn.Linear(64, 32)))[0], name)
    x = torch.randn(2, 64, requires_grad=True)
    with pytest.raises(InputError, match="layer '0', a KernelLinear, gives no gradient for its input"):
        model(x)
    with torch.no_grad():
        assert model(x).shape == (2, 32)


def test_torchao_with_quantised_activations_is_named() -> None:
    need("torchao")
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    base = nn.Sequential(nn.Linear(64, 32))
    quantize_(base, Int8DynamicActivationInt8WeightConfig())
    model = peft.get_peft_model(base, config("goft", target_modules=["0"]))
    with pytest.raises(InputError, match="torchao: a weight-only configuration"):
        model(torch.randn(2, 64))
    with torch.no_grad():
        model.merge_and_unload()


def test_a_part_of_a_quantised_fused_projection_is_refused() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = quantised("bnb-nf4", sizes=(64, 192))[0]

    with pytest.raises(InputError, match=r"a part \(q, k, v\) of 'qkv', whose quantised weight cannot be cut"):
        peft.get_peft_model(Attention(), config("goft", target_modules=["q"]))


def test_a_quantised_convolution_and_an_unknown_quantiser_are_refused() -> None:
    class EetqLinear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(64, 32, dtype=torch.int8), requires_grad=False)

    conv = nn.Conv2d(3, 4, 3)
    conv.weight = nn.Parameter(conv.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(InputError, match=r"layer '0' is a Conv2d with a quantised weight .*float8_e4m3fn"):
        peft.get_peft_model(nn.Sequential(conv), config("goft", target_modules=["0"]))
    with pytest.raises(InputError, match="layer '0' is a EetqLinear"):
        peft.get_peft_model(nn.Sequential(EetqLinear()), config("goft", target_modules=["0"]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torchao's Int4WeightOnlyConfig needs a GPU")
@pytest.mark.parametrize("name", METHODS)
def test_torchao_int4_on_a_gpu(name: str) -> None:
    need("torchao")
    from torchao.quantization import Int4WeightOnlyConfig, quantize_

    base = nn.Sequential(nn.Linear(128, 64)).to("cuda", torch.bfloat16)
    quantize_(base, Int4WeightOnlyConfig(group_size=32, int4_packing_format="tile_packed_to_4d"))
    eye = torch.eye(128, device="cuda", dtype=torch.bfloat16)
    weight = (base(eye) - base[0].bias).T.double()
    model = adapted(base[0], name)
    plain = nn.Linear(128, 64, device="cuda").double()
    plain.load_state_dict({"weight": weight, "bias": base[0].bias.double()})
    dense = peft.get_peft_model(nn.Sequential(plain), config(name, target_modules=["0"])).double()
    dense.load_state_dict({k: v for k, v in model.state_dict().items() if "base_layer" not in k}, strict=False)
    x = torch.randn(5, 128, device="cuda", dtype=torch.bfloat16)
    with torch.no_grad():
        assert torch.allclose(model(x).double(), dense(x.double()), rtol=3e-2, atol=3e-2)
    with pytest.raises(InputError, match="cannot be merged"):
        model.merge_adapter()
