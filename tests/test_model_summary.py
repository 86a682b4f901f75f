"""The notes' own algorithm, torchvision's published figures, torch's MemTracker and its profiler say what the figures must be."""

import copy
import json
import os
import random
import subprocess
import sys
import warnings
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from measuring import peak_of_step
from torch import nn
from torch.nn import functional as F

from visus.devices import computing
from visus.errors import UsageError
from visus.model_summary import largest_batch, summary
from visus.models.build import build_model
from visus.models.hollow import build_outline, fake_mode, hollow_copy
from visus.models.names import every_model
from visus.summaries.memory import LiveBytes, largest_fitting, predict_peak, tensors_in
from visus.summaries.rows import Figures, flat, tree
from visus.summaries.tracing import trace

GOLDEN = Path(__file__).parent / "golden"
OLD_TORCH = torch.__version__.startswith("2.10.")
"""Of which `docs/summary.md` says what it does not count and does not see."""
WITH_AVX512 = pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX512", reason="oneDNN takes other space on this processor"
)


def as_in_the_notes(model, input_size, batch_size=-1):
    """The algorithm of the notes (torchsummary), on the CPU."""
    if isinstance(input_size, tuple):
        input_size = [input_size]
    rows, hooks = OrderedDict(), []

    def hook(module, inputs, output):
        kind = str(module.__class__).split(".")[-1].split("'")[0]
        row = rows[f"{kind}-{len(rows) + 1}"] = {"params": 0}
        if isinstance(output, list | tuple):
            row["shape"] = [[-1, *list(each.size())[1:]] for each in output]
        else:
            row["shape"] = list(output.size())
            row["shape"][0] = batch_size
        if hasattr(module, "weight") and hasattr(module.weight, "size"):
            row["params"] += torch.prod(torch.LongTensor(list(module.weight.size())))
            row["trainable"] = module.weight.requires_grad
        if hasattr(module, "bias") and hasattr(module.bias, "size"):
            row["params"] += torch.prod(torch.LongTensor(list(module.bias.size())))

    def register(module):
        if not isinstance(module, nn.Sequential | nn.ModuleList) and module is not model:
            hooks.append(module.register_forward_hook(hook))

    model.apply(register)
    model(*[torch.rand(2, *size) for size in input_size])
    for each in hooks:
        each.remove()
    text = "----------------------------------------------------------------\n"
    text += "{:>20}  {:>25} {:>15}\n".format("Layer (type)", "Output Shape", "Param #")
    text += "================================================================\n"
    total = output = trainable = 0
    for name, row in rows.items():
        total += row["params"]
        output += np.prod(row["shape"])
        if row.get("trainable"):
            trainable += row["params"]
        text += "{:>20}  {:>25} {:>15}\n".format(name, str(row["shape"]), "{:,}".format(row["params"]))
    input_mb = abs(np.prod(input_size) * batch_size * 4.0 / (1024**2.0))
    output_mb = abs(2.0 * output * 4.0 / (1024**2.0))
    params_mb = abs(total.numpy() * 4.0 / (1024**2.0))
    text += "================================================================\n"
    text += f"Total params: {total:,}\nTrainable params: {trainable:,}\nNon-trainable params: {total - trainable:,}\n"
    text += "----------------------------------------------------------------\n"
    text += f"Input size (MB): {input_mb:0.2f}\n"
    text += f"Forward/backward pass size (MB): {output_mb:0.2f}\n"
    text += f"Params size (MB): {params_mb:0.2f}\n"
    text += "Estimated Total Size (MB): %0.2f\n" % (params_mb + output_mb + input_mb)
    text += "----------------------------------------------------------------\n"
    return text


def count(model):
    return sum(each.numel() for each in model.parameters())


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, left, right):
        return self.left(left) + self.right(right)


class Pair(nn.Module):
    def forward(self, x):
        return x, 2 * x


class Grey(nn.Module):
    """Lists as output, parts that are frozen in part, a part without bias."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.pair = Pair()
        self.heads = nn.ModuleList([nn.Linear(4, 3), nn.Linear(4, 3)])
        self.heads[0].weight.requires_grad_(False)
        self.heads[1].bias.requires_grad_(False)
        self.stem[0].weight.requires_grad_(False)

    def forward(self, x):
        first, second = self.pair(self.stem(x).mean(dim=(2, 3)))
        return self.heads[0](first) + self.heads[1](second)


def test_classic_is_the_table_of_the_notes_byte_for_byte():
    found = summary("vgg11", (3, 32, 32), style="classic")
    assert str(found) == (GOLDEN / "summary_vgg11_classic.txt").read_text(encoding="utf-8")
    assert [each["type"] for each in found.layers][::28] == ["Conv2d", "Linear"]
    assert len(found.layers) == 29
    assert found.total_params == found.trainable_params == 132_863_336
    sizes = found.input_mb, found.forward_backward_mb, found.params_mb, found.total_mb
    assert [round(each, 2) for each in sizes] == [0.01, 2.94, 506.83, 509.78]


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (lambda: build_model("resnet18"), (3, 64, 64)),
        (lambda: build_model("mobilenet_v3_small", 7), (3, 64, 64)),
        (lambda: build_model("squeezenet1_1", 5), (3, 64, 64)),
        (lambda: build_model("small", 10, in_channels=1), (1, 28, 28)),
        (lambda: build_model("timm/mobilenetv3_small_050", 7), (3, 64, 64)),
        (Grey, (1, 9, 9)),
        (TwoInputs, [(6,), (6,)]),
        (lambda: nn.DataParallel(nn.Sequential(nn.Linear(6, 4), nn.ReLU())), (6,)),
    ],
)
def test_classic_equals_the_algorithm_of_the_notes(make, size):
    model = make()
    expected = as_in_the_notes(copy.deepcopy(model), size)
    assert str(summary(model, size, style="classic")) == expected


@pytest.mark.parametrize(
    ("make", "size"),
    [(lambda: build_model("resnet18"), (3, 64, 64)), (Grey, (1, 9, 9)), (TwoInputs, [(6,), (6,)])],
)
def test_classic_equals_it_for_a_batch_too(make, size):
    model = make()
    expected = as_in_the_notes(copy.deepcopy(model), size, 16)
    assert str(summary(model, size, batch_size=16, style="classic")) == expected


def test_classic_follows_the_mode_of_the_model():
    model = build_model("googlenet").eval()
    expected = as_in_the_notes(copy.deepcopy(model), (3, 96, 96))
    found = summary(model, (3, 96, 96), style="classic")
    assert len(expected.splitlines()) == len(str(found).splitlines())
    # The notes leave the heads that are not called out of the totals.
    assert f"Total params: {count(model):,}" in str(found)
    assert found.remarks == [
        f"{count(model.aux1) + count(model.aux2):,} parameters are in the totals and were not used: aux1, aux2"
    ]


def test_rich_table_as_kept():
    found = str(summary(Net(), (3, 8, 8), optimizer="sgd"))
    assert found == (GOLDEN / "summary_rich.txt").read_text(encoding="utf-8")
    assert max(map(len, found.splitlines())) <= 100
    assert "\x1b" not in found


class Net(nn.Module):
    """One of everything: blocks, a parameter of its own, tied and shared parts, a part that never runs, one that is frozen."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 4, 1, 1))
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())
        self.block = Residual()
        self.shared = nn.Linear(4, 4)
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.shared.weight
        self.spare = nn.Linear(100, 100)
        self.head = nn.Linear(4, 5).requires_grad_(False)

    def forward(self, x):
        x = self.block(self.stem(x) + self.token).mean(dim=(2, 3))
        return self.head(self.tied(self.shared(self.shared(x))))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return x + self.conv(x)


def test_parameters_are_counted_once_wherever_they_are():
    model = Net()
    found = summary(model, (3, 8, 8))
    assert found.total_params == count(model)
    assert found.trainable_params == count(model) - 25
    rows = [(each["name"], each["params"], each["trainable"]) for each in found.layers]
    assert rows == [
        ("stem.0", 112, True),
        ("stem.1", 0, False),
        ("block.conv", 148, True),
        ("block", 0, False),
        ("shared", 20, True),
        ("shared", 0, False),
        ("tied", 4, True),
        ("head", 25, False),
        ("", 4, True),
    ]
    assert found.remarks == ["10,100 parameters are in the totals and were not used: spare"]
    assert f"Total params: {count(model):,}\nTrainable params: {count(model) - 25:,}" in str(
        summary(model, (3, 8, 8), style="classic")
    )


def test_parameters_that_a_module_uses_for_another_are_its_own():
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True))
    attention = next(each for each in summary(model, (5, 8)).layers if each["type"] == "MultiheadAttention")
    # The projection after the attention is a module that is never called.
    assert attention["params"] == count(model[0].self_attn) == 4 * 8 * 8 + 4 * 8
    assert attention["output_shape"] == [[-1, 5, 8]]


def test_shapes_say_what_grows_with_the_batch():
    class SequenceFirst(nn.Module):
        def forward(self, x):
            return x.transpose(0, 1)

    model = nn.Sequential(SequenceFirst(), nn.Flatten(0, 1))
    shapes = [each["output_shape"] for each in summary(model, (5, 8)).layers]
    assert shapes == [[5, -1, 8], [-1, 8]]
    for batch_size in (1, 4):
        shapes = [each["output_shape"] for each in summary(model, (5, 8), batch_size=batch_size).layers]
        assert shapes == [[5, batch_size, 8], [5 * batch_size, 8]]


Logits = namedtuple("Logits", "main aux")


@dataclass
class Output:
    logits: torch.Tensor
    hidden: tuple[torch.Tensor, ...]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x, y: (x, y),
        lambda x, y: [x, [y]],
        lambda x, y: {"x": x, "y": {"z": y}},
        Logits,
        lambda x, y: Output(x, (y, None)),
    ],
)
def test_outputs_of_any_make(wrap):
    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(6, 3)

        def forward(self, x):
            return wrap(self.linear(x), x.mean(dim=1, keepdim=True))

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Inner()

        def forward(self, x):
            return self.inner(x)

    found = summary(Outer(), (6,), batch_size=2, optimizer="adamw")
    assert [each["output_shape"] for each in found.layers] == [[2, 3], [[2, 3], [2, 1]]]
    assert found.peak_training_mb is not None
    assert found.remarks == []


def test_images_of_another_size_than_the_library_has():
    found = summary("vit_tiny_patch16_224", (3, 64, 64), num_classes=5)
    assert found.total_params == count(build_model("vit_tiny_patch16_224", 5, img_size=64))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_compiled_models_and_parts():
    plain = Net()
    compiled = Net()
    compiled.block = torch.compile(compiled.block)
    inside = Net()
    inside.block.compile()
    expected = summary(plain, (3, 8, 8), optimizer="sgd")
    for model in (torch.compile(Net()), inside, compiled):
        found = summary(model, (3, 8, 8), optimizer="sgd")
        assert (found.total_params, found.flops, found.peak_training_mb) == (
            expected.total_params,
            expected.flops,
            expected.peak_training_mb,
        )
        assert sum(each["params"] for each in found.layers) == expected.total_params - 10_100


def test_distributed_data_parallel(tmp_path):
    torch.distributed.init_process_group("gloo", f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(Net(), find_unused_parameters=True)
        found = summary(model, (3, 8, 8), optimizer="sgd")
        parted = summary(nn.Sequential(model), (3, 8, 8), optimizer="sgd")
    finally:
        torch.distributed.destroy_process_group()
    assert found.total_params == parted.total_params == count(Net())
    assert found.layers[0]["name"] == "stem.0"


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_a_scripted_model_is_refused_in_a_sentence():
    with pytest.raises(UsageError, match=r"made by torch\.jit\.script; give the module"):
        summary(torch.jit.script(nn.Linear(2, 3)), (2,))


def test_a_quantised_model_is_run_with_numbers():
    quantise = torch.ao.quantization.quantize_dynamic
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = quantise(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Conv1d(4, 2, 1)), {nn.Linear})
        found = summary(nn.Sequential(model[0], model[1]), (6,))
    assert [each["output_shape"] for each in found.layers] == [[-1, 4], [-1, 4]]
    assert "cannot be run without numbers" in found.remarks[0]
    assert any("28 numbers in quantised layers" in each for each in found.remarks)


class Blocks(nn.Module):
    """Two blocks alike, and one that is not."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(
            Residual(), Residual(), nn.Sequential(nn.Conv2d(4, 8, 3), nn.MaxPool2d(2))
        )

    def forward(self, x):
        return self.blocks(x)


def lines_of(**options):
    return [each.strip() for each in str(summary(Blocks(), (4, 8, 8), **options)).splitlines()]


def test_repeated_blocks_are_told_once_unless_asked():
    shown = [" ".join(each.split()) for each in lines_of()]
    assert "blocks.0 to 1 (x 2) Residual [-1, 4, 8, 8] < 0.01" in shown
    assert sum("Conv2d" in each for each in shown) == 2
    assert sum("Conv2d" in each for each in lines_of(collapse=False)) == 3


def test_deeper_layers_are_added_to_the_one_that_they_are_in():
    for depth in (0, 1, 2, 3):
        rows = tree(traced(Blocks(), (4, 8, 8)), depth=depth)
        whole = sum((row.all() * row.times for row in rows), Figures())
        assert whole.params == whole.trained == count(Blocks())
        assert max(level for level, _ in flat(rows)) <= depth
    (blocks,) = tree(traced(Blocks(), (4, 8, 8)), depth=1)
    assert (blocks.name, blocks.own.params) == ("blocks", count(Blocks()))


def traced(model, size):
    with fake_mode():
        hollow = hollow_copy(model)
        return trace(hollow, ([torch.rand(2, *size)], {})).calls


def test_columns_and_order():
    shown = lines_of(sort="params", columns=["input", "kernel", "depth", "params"])
    assert shown[0].split() == ["Layer", "Input", "shape", "Kernel", "Depth", "Parameters"]
    assert shown[2].split() == ["blocks.2.0", "[-1,", "4,", "8,", "8]", "3", "x", "3", "3", "296"]
    assert shown[3].split()[0] == "blocks.0.conv"
    assert summary(Blocks(), (4, 8, 8), sort="flops", depth=1).layers == summary(Blocks(), (4, 8, 8)).layers


def test_activations_are_what_the_backward_pass_keeps():
    model = nn.Sequential(nn.Linear(6, 4), nn.Sigmoid(), nn.Flatten())
    found = summary(model, (6,), batch_size=256, optimizer="sgd")
    # The output of the first layer is not needed again, that of the second is; the third makes a view of it.
    assert [each["activation_mb"] * 2**20 for each in found.layers] == [0, 4 * 4 * 256, 0]
    found = summary("mobilenet_v3_small", (3, 64, 64), num_classes=10, batch_size=32)
    # At the peak the backward pass has begun, and let the first of them go.
    kept = sum(each["activation_mb"] for each in found.layers)
    assert 0.98 * kept < found.peak_training["activations"] <= kept


def test_the_parts_of_the_peak():
    found = summary("vgg11", (3, 64, 64), num_classes=10, batch_size=2, optimizer="adamw")
    parts = found.peak_training
    assert sum(parts.values()) == pytest.approx(found.peak_training_mb)
    assert parts["parameters"] == pytest.approx(found.params_mb)
    assert parts["optimizer"] == pytest.approx(2 * found.params_mb, rel=1e-3)
    assert parts["inputs"] == found.input_mb
    assert 0 < parts["gradients"] <= found.params_mb
    assert (
        found.params_mb < found.peak_inference_mb < found.params_mb + parts["activations"] + parts["inputs"]
    )


@pytest.mark.parametrize("style", ["markdown", "html"])
def test_names_are_escaped(style):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleDict({"<b>|*x*": nn.Linear(4, 3)})

        def forward(self, x):
            return self.parts["<b>|*x*"](x)

    shown = str(summary(Odd(), (4,), style=style))
    assert "parts.<b>" not in shown
    assert ("parts.\\<b\\>\\|\\*x\\*" if style == "markdown" else "parts.&lt;b&gt;|*x*") in shown


def test_html_is_one_tree_with_the_figures_of_all_that_is_inside():
    shown = str(summary(Blocks(), (4, 8, 8), style="html"))
    assert shown.count("<details") == shown.count("</details>") == 2
    assert f"Parameters {count(Blocks()):,}" in shown.split("</summary>")[0]
    assert "(x 2)</b> <i>Residual, [-1, 4, 8, 8], Parameters 148" in shown


def test_markdown_is_a_table():
    head, rule, *rows = str(summary(Blocks(), (4, 8, 8), style="markdown")).split("\n\n")[0].splitlines()
    assert {each.replace("\\|", "").count("|") for each in (head, rule, *rows)} == {8}


def test_inputs_by_keyword():
    found = summary(TwoInputs(), {"right": (6,), "left": (6,)})
    assert found.total_params == 56
    assert found.input_mb == 2 * 6 * 4 / 2**20


class Words(nn.Module):
    """Takes indices, and a factor for each sequence."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(50, 8)
        self.lstm = nn.LSTM(8, 6, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, indices, scale=None):
        outputs, _ = self.lstm(self.words(indices))
        return self.head(outputs.mean(1)) * (1.0 if scale is None else scale.view(-1, 1))


SEQUENCE = torch.arange(16)


def test_a_tensor_in_the_place_of_a_size_is_an_item():
    before = SEQUENCE.clone()
    found = summary(Words(), SEQUENCE, batch_size=4, optimizer="sgd")
    assert torch.equal(SEQUENCE, before)
    assert found.layers[0]["output_shape"] == [4, 16, 8]
    assert found.input_mb == found.peak_training["inputs"] == 4 * 16 * 8 / 2**20
    assert found.total_params == count(Words())
    assert found.flops == 2 * 4 * (16 * 4 * 6 * (8 + 6) + 6 * 3)
    assert [each["output_shape"] for each in summary(Words(), SEQUENCE).layers] == [
        [-1, 16, 8],
        [[-1, 16, 6], [1, -1, 6], [1, -1, 6]],
        [-1, 3],
    ]
    assert "Embedding" in str(summary(Words(), SEQUENCE, style="classic", batch_size=2))


@pytest.mark.parametrize(
    "inputs", [[SEQUENCE, torch.tensor(0.5)], [SEQUENCE, (1,)], {"scale": (1,), "indices": SEQUENCE}]
)
def test_tensors_and_sizes_side_by_side(inputs):
    found = summary(Words(), inputs, batch_size=3)
    assert found.layers[-1]["output_shape"] == [3, 3]
    assert found.input_mb == 3 * (16 * 8 + 4) / 2**20


def test_the_peak_with_indices_is_within_5_percent_of_the_measured():
    model = nn.Sequential(nn.Embedding(2000, 64), nn.Flatten(), nn.Linear(16 * 64, 300))
    measured = peak_of_step(model, SEQUENCE.repeat(128, 1), "sgd")
    found = summary(model, SEQUENCE, batch_size=128, optimizer="sgd")
    assert found.peak_training_mb == pytest.approx(measured / 2**20, rel=0.05)
    mb = int(found.peak_training_mb + 1)
    assert largest_batch(model, SEQUENCE, mb * 2**20) >= 128


def test_values_of_a_given_item_reach_a_model_that_needs_some():
    class Asking(Words):
        def forward(self, indices):
            assert indices.max().item() == 15
            return super().forward(indices)

    assert summary(Asking(), SEQUENCE).remarks[0].count("two inputs, and one, were sent") == 1


def test_blocks_alike_are_told_once_whatever_their_numbers_come_after():
    text = str(summary("vit_b_16", (3, 64, 64)))
    assert text.count("EncoderBlock") == 1
    assert "0 to 11" in " ".join(text.split())


def test_a_model_by_name_is_built_for_the_size_of_an_image_that_is_given():
    assert summary("vit_b_16", torch.rand(3, 64, 64)).layers == summary("vit_b_16", (3, 64, 64)).layers
    for given in (torch.tensor(1.0), torch.rand(3, 64, 64).to_sparse()):
        with pytest.raises(UsageError, match=r"expected an image|expected a tensor"):
            summary("resnet18", given)


@pytest.mark.skipif(OLD_TORCH, reason="an embedding of no numbers takes any type")
def test_what_takes_indices_says_what_to_give():
    with pytest.raises(
        UsageError, match=r"words \(Embedding\) was given \[2, 16\].*give a tensor of one item"
    ):
        summary(Words(), (16,))


def test_dataparallel_is_looked_through():
    found = summary(nn.DataParallel(Net()), (3, 8, 8))
    assert found.total_params == count(Net())
    assert found.layers[0]["name"] == "module.stem.0"


@pytest.mark.parametrize("how", ["parametrized", "weight norm", "spectral norm"])
def test_parametrized_layers(how):
    ways = {
        "parametrized": nn.utils.parametrizations.weight_norm,
        "weight norm": nn.utils.weight_norm,
        "spectral norm": nn.utils.spectral_norm,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.Sequential(ways[how](nn.Linear(6, 4)), nn.ReLU())
    found = summary(model, (6,))
    assert found.total_params == count(model) == sum(each["params"] for each in found.layers)


def test_json_has_the_keys_of_the_contract():
    document = json.loads(json.dumps(summary("small", num_classes=10).to_json()))
    assert set(document) == {
        "layers", "total_params", "trainable_params", "input_mb", "forward_backward_mb", "params_mb",
        "total_mb", "flops", "peak_training_mb", "peak_training", "peak_inference_mb", "remarks",
    }  # fmt: skip
    first = document["layers"][0]
    assert {"name", "type", "output_shape", "params", "trainable"} <= set(first)
    assert (first["depth"], first["input_shape"], first["kernel"]) == (3, [-1, 3, 32, 32], [3, 3])


def state_of(model):
    tensors = {name: each.clone() for name, each in model.state_dict().items()}
    modes = [each.training for each in model.modules()]
    trained = [each.requires_grad for each in model.parameters()]
    gradients = [None if each.grad is None else each.grad.clone() for each in model.parameters()]
    hooks = [
        len(getattr(each, name))
        for each in model.modules()
        for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    ]
    random_state = (torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate())
    settings = torch.backends.mha.get_fastpath_enabled(), torch.is_grad_enabled()
    return tensors, (modes, trained, hooks, random_state, settings), gradients


def same(first, second):
    tensors = [(first[0][name], second[0][name]) for name in first[0]]
    gradients = [pair for pair in zip(first[2], second[2], strict=True) if pair != (None, None)]
    return first[1] == second[1] and all(torch.equal(a, b) for a, b in tensors + gradients)


class AsksForValues(nn.Module):
    """Cannot be run on shapes alone; keeps count of its calls."""

    def __init__(self, limit=1e9):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.norm = nn.BatchNorm1d(3)
        self.drop = nn.Dropout(0.5)
        self.limit = limit
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        if x.sum().item() > self.limit:
            raise ValueError("too bright")
        random.random()
        np.random.rand()
        return self.drop(self.norm(self.linear(x)))


@pytest.mark.parametrize(
    ("model", "size", "fails"),
    [
        (build_model("mobilenet_v3_small", 5), (3, 64, 64), False),
        (build_model("mobilenet_v3_small", 5), (4, 64, 64), True),
        (AsksForValues(), (4,), False),
        (AsksForValues(limit=0), (4,), True),
        (AsksForValues(), (5,), True),
    ],
)
def test_the_model_is_left_as_it_was_found(model, size, fails):
    parameters = list(model.parameters())
    model.train()
    for each in list(model.modules())[1::3]:
        each.training = False
    parameters[0].grad = torch.ones_like(parameters[0])
    parameters[1].requires_grad_(False)
    before = state_of(model)
    if fails:
        with pytest.raises(UsageError):
            summary(model, size, optimizer="sgd")
    else:
        summary(model, size, optimizer="sgd", amp="bf16", batch_size=3)
    assert same(before, state_of(model))
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))


def test_a_model_that_needs_values_is_given_some_and_that_is_said():
    found = summary(AsksForValues(), (4,), batch_size=8)
    assert [each["output_shape"] for each in found.layers[:1]] == [[8, 3]]
    assert found.flops == 8 * 2 * 4 * 3
    assert found.peak_training_mb is None
    assert "cannot be run without numbers" in found.remarks[0]
    assert "not known" in str(found)


def test_a_model_that_cannot_be_copied_is_run_itself():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    model.lock = __import__("threading").Lock()
    assert "cannot be run without numbers" in summary(model, (4,)).remarks[0]


def test_a_loop_over_the_images_of_a_batch():
    class EachByItself(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x):
            return torch.stack([self.linear(each) for each in x])

    found = summary(EachByItself(), (4,))
    assert len(found.layers) == 1
    assert found.remarks == ["which layers run depends on the size of the batch"]


def test_a_squeeze_does_not_take_the_batch_away():
    class Squeeze(nn.Module):
        def forward(self, x):
            return x.squeeze()

    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), Squeeze(), nn.Linear(3, 5))
    assert [each["output_shape"] for each in summary(model, (3, 8, 8)).layers][1:] == [[-1, 3], [-1, 5]]


def test_one_image_in_training_where_batch_norm_refuses_it():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.BatchNorm1d(8))
    peaks = [summary(model, (3, 2, 2), batch_size=n).peak_training_mb for n in (1, 2, 3)]
    assert peaks[0] == pytest.approx(2 * peaks[1] - peaks[2])
    assert summary(model, (3, 2, 2)).flops == 2 * 12 * 8


@pytest.mark.parametrize(
    ("model", "size", "words"),
    [
        (build_model("small", 3), (1, 8, 8), ["features.0.0 (Conv2d)", "[2, 1, 8, 8]", "3 channels"]),
        (nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), (3, 3), ["1 (Linear)", "[2, 9]"]),
        ("vit_b_16", (3, 63, 64), ["the model (VisionTransformer)", "[2, 3, 63, 64]", "of 48 x 48 and 64 x 64 work"]),
        ("densenet121", (3, 16, 100), ["features.transition3.pool (AvgPool2d)", "images of 32 x 112 work"]),
        ("vit_b_16", (3, 60, 60), ["60 x 60", "images of 48 x 48 and 64 x 64 work"]),
        ("densenet121", (3, 16, 16), ["features.transition3.pool (AvgPool2d)", "images of 32 x 32 work"]),
        (nn.Sequential(nn.Conv2d(3, 2, 16, 16), nn.Flatten(), nn.Linear(8, 2)), (3, 50, 50), ["2 (Linear)", "of 32 x 32 work"]),
        (nn.Sequential(nn.Conv2d(3, 2, 16, 16), nn.Flatten(), nn.Linear(12, 2)), (3, 50, 70), ["2 (Linear)", "of 32 x 48 work"]),
        (TwoInputs(), (6,), ["the model (TwoInputs)", "right"]),
    ],
)  # fmt: skip
def test_an_input_that_does_not_fit_names_the_layer(model, size, words, caplog):
    with pytest.raises(UsageError) as caught:
        summary(model, size)
    message = str(caught.value)
    assert all(each in message for each in words), message
    assert "\n" not in message
    assert caplog.text == ""


@pytest.mark.parametrize(
    "arguments",
    [
        {"input_size": (3, 0, 8)},
        {"input_size": ()},
        {"input_size": "3,8,8"},
        {"input_size": 3},
        {"input_size": (3, 8, 8), "batch_size": 0},
        {"input_size": (3, 8, 8), "amp": "int8"},
        {"input_size": (3, 8, 8), "style": "plain"},
        {"input_size": (3, 8, 8), "optimizer": "sdg"},
        {"input_size": (3, 8, 8), "columns": ["colour"]},
        {"input_size": (3, 8, 8), "depth": -1},
        {"input_size": (3, 8, 8), "sort": "name"},
        {},
    ],
)
def test_wrong_arguments(arguments):
    with pytest.raises(UsageError):
        summary(nn.Conv2d(3, 4, 3), **arguments)


def test_an_unknown_name_has_the_nearest_named():
    with pytest.raises(UsageError) as caught:
        summary("resnet81")
    assert "resnet18" in str(caught.value)
    assert str(caught.value).count("resnet") >= 5


def test_lazy_layers_are_told_what_they_will_be_and_stay_lazy():
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(3))
    found = summary(model, (3, 8, 8), optimizer="sgd")
    assert [each["params"] for each in found.layers] == [4 * 27 + 4, 8, 0, 3 * 144 + 3]
    assert [type(each).__name__ for each in model] == [
        "LazyConv2d",
        "LazyBatchNorm2d",
        "Flatten",
        "LazyLinear",
    ]
    assert all(map(nn.parameter.is_lazy, model.parameters()))
    model(torch.rand(2, 3, 8, 8))
    known = summary(model, (3, 8, 8), optimizer="sgd")
    assert (known.total_params, known.flops, known.peak_training) == (
        found.total_params,
        found.flops,
        found.peak_training,
    )


def test_a_lazy_model_that_needs_values():
    with pytest.raises(UsageError, match="lazy"):
        summary(nn.Sequential(nn.LazyLinear(4), AsksForValues()), (5,))


def test_a_name_is_built_for_the_channels_of_its_input():
    assert summary("resnet18", (1, 28, 28), num_classes=10).layers[0]["params"] == 64 * 49
    assert summary("small", in_channels=1, num_classes=10).input_mb == 32 * 32 * 4 / 2**20


SAMPLE = [
    "regnet_y_400mf",
    "vit_b_16",
    "swin_t",
    "inception_v3",
    "vit_tiny_patch16_224",
    "tf_efficientnet_lite0",
    "mixer_s32_224",
    "maxvit_tiny_tf_224",
    "vit_small_resnet26d_224",
]


def total_by_outline(name):
    """Summed over the parameters of a model built apart."""
    return count(build_outline(name, 7))


@pytest.mark.parametrize("name", SAMPLE)
def test_a_sample_of_all_names(name):
    check_name(name)


def test_building_by_name_draws_no_random_numbers():
    before = state_of(nn.Identity())
    summary("regnet_x_400mf", (3, 32, 32))
    assert same(before, state_of(nn.Identity()))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(every_model()) - set(SAMPLE)))
def test_every_name(name):
    check_name(name)


def check_name(name):
    found = summary(name, num_classes=7, optimizer="sgd")
    assert found.total_params == total_by_outline(name)
    unused = sum(int(each.split()[0].replace(",", "")) for each in found.remarks if "not used" in each)
    assert sum(each["params"] for each in found.layers) == found.total_params - unused
    assert found.peak_training_mb > (4 * found.total_params - 1) / 2**20
    assert found.flops > 0


# Billions of multiply-adds, from the same source as `_ops`: torchvision's table of weights.
@pytest.mark.parametrize(
    "weights",
    [
        torchvision.models.ResNet18_Weights.IMAGENET1K_V1,
        torchvision.models.VGG11_Weights.IMAGENET1K_V1,
        torchvision.models.MobileNet_V3_Small_Weights.IMAGENET1K_V1,
        torchvision.models.RegNet_Y_400MF_Weights.IMAGENET1K_V1,
        torchvision.models.EfficientNet_B0_Weights.IMAGENET1K_V1,
        torchvision.models.GoogLeNet_Weights.IMAGENET1K_V1,
        torchvision.models.ConvNeXt_Tiny_Weights.IMAGENET1K_V1,
        pytest.param(
            torchvision.models.ViT_B_16_Weights.IMAGENET1K_V1,
            marks=pytest.mark.skipif(OLD_TORCH, reason="attention counts nothing"),
        ),
    ],
    ids=str,
)
def test_flops_are_twice_the_multiply_adds_that_torchvision_publishes(weights):
    name = type(weights).__name__.removesuffix("_Weights").lower()
    found = summary({"convnext_tiny": "convnext_tiny"}.get(name, name))
    assert found.flops / 2e9 == pytest.approx(weights.meta["_ops"], rel=0.02)
    assert found.total_params == weights.meta["num_params"] + (
        count(build_outline("googlenet")) - 6_624_904 if name == "googlenet" else 0
    )


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize(
    "options",
    [{}, {"bias": False}, {"batch_first": True}, {"bidirectional": True, "num_layers": 2}],
    ids=str,
)
def test_flops_of_recurrent_layers_are_those_of_their_cells(layer, options):
    """torch counts the products of a cell; a layer has one for each matrix, called for each item of a sequence."""
    from torch.utils.flop_counter import FlopCounterMode

    model, cells = layer(5, 7, **options), {nn.LSTM: nn.LSTMCell, nn.GRU: nn.GRUCell, nn.RNN: nn.RNNCell}
    expected = 0
    for each in (model._parameters[name] for name in model._parameters if name.startswith("weight_ih")):
        cell = cells[layer](each.shape[1], 7)
        with FlopCounterMode(display=False) as counter:
            cell(torch.rand(3, each.shape[1]))
        expected += 4 * counter.get_total_flops()
    assert summary(model, (4, 5), batch_size=3).flops == expected
    assert summary(model, (4, 5)).flops == expected / 3


def test_flops_of_an_lstm_with_projections():
    model = nn.LSTM(5, 7, proj_size=3)
    # Gates from input and output, and the projection.
    assert summary(model, (4, 5), batch_size=3).flops == 2 * 3 * 4 * (4 * 7 * (5 + 3) + 3 * 7)


def test_flops_of_a_recurrent_layer_as_cudnn_has_it():
    from visus.summaries.tracing import _recurrent_formulas

    model, sequence = nn.LSTM(5, 7, num_layers=2), torch.rand(4, 3, 5)
    count = _recurrent_formulas()[torch.ops.aten._cudnn_rnn]
    whole, on_cpu = count(sequence, list(model.parameters()), 4, None), summary(model, (3, 5), batch_size=4)
    assert whole == on_cpu.flops == 2 * 4 * 3 * 4 * 7 * (5 + 7 + 7 + 7)


def test_flops_equal_those_of_torchs_counter():
    from torch.utils.flop_counter import FlopCounterMode

    model = build_model("vit_tiny_patch16_224", 7)
    with FlopCounterMode(display=False) as counter:
        model(torch.rand(2, 3, 224, 224))
    found = summary(model, (3, 224, 224), batch_size=2)
    assert found.flops == counter.get_total_flops() == sum(each["flops"] for each in found.layers)


@pytest.mark.parametrize(
    ("name", "images", "side", "optimizer"),
    [
        ("resnet18", 4, 128, "sgd"),
        ("mobilenet_v3_small", 8, 128, "adamw"),
        ("vit_tiny_patch16_224", 4, 224, "sgd"),
    ],
)
def test_the_peak_of_a_training_step_is_within_5_percent_of_the_measured(name, images, side, optimizer):
    model = build_model(name, 10)
    measured = peak_of_step(model, torch.rand(images, 3, side, side), optimizer)
    found = summary(model, (3, side, side), batch_size=images, optimizer=optimizer)
    assert found.peak_training_mb == pytest.approx(measured / 2**20, rel=0.05)


@WITH_AVX512
@pytest.mark.parametrize(
    "layers",
    [
        (nn.Conv2d(3, 256, 1), nn.Conv2d(256, 256, 7, padding=3, groups=256)),
        (nn.Conv2d(3, 256, 32, stride=32),),
        (nn.Conv2d(3, 256, 1), nn.Conv2d(256, 256, 3, padding=1, groups=256)),
    ],
    ids=["depthwise 7 x 7", "patches of 32 x 32", "depthwise 3 x 3"],
)
def test_the_work_space_of_convolutions_is_part_of_the_peak(layers):
    model = nn.Sequential(*copy.deepcopy(layers), nn.Conv2d(256, 4, 1), nn.Flatten())
    model.to(memory_format=torch.channels_last)
    images = torch.rand(2, 3, 32, 32).to(memory_format=torch.channels_last)
    found = summary(model, (3, 32, 32), batch_size=2, optimizer="sgd")
    assert found.peak_training_mb == pytest.approx(peak_of_step(model, images, "sgd") / 2**20, rel=0.05)


@WITH_AVX512
@pytest.mark.parametrize("threads", [1, 8, 64])
@pytest.mark.parametrize("kernel", [16, 32])
def test_the_work_space_of_large_kernels_follows_the_threads_up_to_a_limit(kernel, threads):
    with computing(threads=threads, deterministic=True):
        model = nn.Sequential(nn.Conv2d(3, 768, kernel, kernel), nn.Flatten(), nn.Linear(4 * 768, 10))
        side = 2 * kernel
        found = summary(model, (3, side, side), batch_size=4, optimizer="sgd")
        measured = peak_of_step(model, torch.rand(4, 3, side, side), "sgd")
    # At most 1 GiB: 64 threads would take 2.3.
    assert found.peak_training_mb == pytest.approx(measured / 2**20, rel=0.08)


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_the_peak_equals_that_of_torchs_tracker(amp):
    from torch.distributed._tools.mem_tracker import MemTracker

    from visus.amp import autocast

    with fake_mode():
        model = hollow_copy(build_outline("mobilenet_v3_small", 10))
        images, targets = torch.empty(8, 3, 64, 64), torch.empty(8, dtype=torch.int64)
        ours = predict_peak(model, lambda _: ([images], {}), 8, amp=amp).total
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tracker = MemTracker()
            tracker.track_external(model, images)
            with tracker:
                with autocast(amp, images.device):
                    logits = model(images)
                F.cross_entropy(logits.float(), targets).backward()
        theirs = sum(each["Total"] for each in tracker.get_tracker_snapshot("peak").values())
    # The targets are none of the tensors that they were told of.
    assert ours == pytest.approx(theirs, rel=0.001)


def test_amp_and_optimizers_change_the_peak_as_they_should():
    def peak(**options):
        return summary("resnet18", (3, 64, 64), num_classes=10, batch_size=32, **options).peak_training_mb

    params_mb = summary("resnet18", (3, 64, 64), num_classes=10).params_mb
    plain = peak()
    assert peak(optimizer="sgd") - plain == pytest.approx(params_mb, rel=1e-3)
    assert peak(optimizer="adamw") - plain == pytest.approx(2 * params_mb, rel=1e-3)
    assert peak(amp="bf16") < plain
    assert peak(amp="fp16") == peak(amp="bf16")


def test_an_optimizer_that_asks_for_values():
    found = summary("small", optimizer="novograd")
    assert found.peak_training_mb is None
    assert "novograd" in found.remarks[0]


def test_a_frozen_model_needs_no_memory_for_gradients():
    model = build_model("small", 10)
    trained = summary(model, (3, 32, 32), batch_size=64, optimizer="sgd").peak_training_mb
    model.requires_grad_(False)
    frozen = summary(model, (3, 32, 32), batch_size=64, optimizer="sgd")
    assert frozen.trainable_params == 0
    assert frozen.peak_training_mb < trained / 2


def test_live_bytes_counts_storages_once():
    counter = LiveBytes()
    with counter:
        x = torch.zeros(1000)
        y = x.view(10, 100)[2:]
        del x
        assert counter.now == 4000
        z = y + 1
        assert counter.now == 4000 + 3200
        del y
        assert counter.now == 3200
    assert counter.peak == 7200
    del z
    assert counter.now == 0


@pytest.mark.parametrize("memory", [0, 99, 100, 109, 110, 555, 10**4, 10**6])
def test_largest_fitting_is_right_for_lines_that_break(memory):
    def peak(n):
        return max(90 + 10 * n, 30 * n, 100 * n - 9000)

    expected = max((n for n in range(1, 1001) if peak(n) <= memory), default=0)
    assert largest_fitting(peak, memory, 1000) == expected


def test_largest_batch():
    mb = 600
    largest = largest_batch("resnet18", (3, 64, 64), mb * 2**20, num_classes=10)
    options = {"num_classes": 10, "optimizer": "sgd"}
    peaks = [
        summary("resnet18", (3, 64, 64), batch_size=n, **options).peak_training_mb
        for n in (largest, largest + 1)
    ]
    assert peaks[0] <= mb < peaks[1]
    with pytest.raises(UsageError, match=r"one image needs 1.. MiB"):
        largest_batch("resnet18", (3, 64, 64), 100 * 2**20)
    with pytest.raises(UsageError, match="Linear"):
        largest_batch(nn.Sequential(nn.Linear(4, 2)), (3,), 2**20)
    with pytest.raises(UsageError, match="cannot be run without numbers"):
        largest_batch(AsksForValues(), (4,), 2**20)


def test_nothing_is_allocated():
    """2.5 GB of weights, and 25 GB for a training step; the child process may have a tenth of the first."""
    code = (
        "import resource, torch\n"
        "from visus.model_summary import summary\n"
        "summary('small', optimizer='sgd')\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "found = summary('vit_h_14', optimizer='sgd', batch_size=32)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, found.params_mb, found.peak_training_mb)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True
    )
    grown_kib, params_mb, peak_mb = map(float, done.stdout.split())
    assert params_mb > 2400
    assert peak_mb > 20_000
    assert grown_kib / 1024 < params_mb / 10


def test_a_model_in_memory_is_not_doubled():
    linear = nn.Linear(4096, 4096)
    storages = []

    class Spy(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            storages.extend(
                each.nbytes
                for each in tensors_in(result)
                if type(each) is torch.Tensor and each.device.type != "meta"
            )
            return result

    with Spy():
        summary(linear, (4096,), optimizer="sgd")
    assert sum(storages) < 2**20
