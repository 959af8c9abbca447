"""The file of a KVzap surrogate: what is written comes back, and nothing else is taken for one."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from dspark_compiler.errors import InputError
from dspark_compiler.models.surrogate import Affine, Surrogate, read_surrogate, stored, write_surrogate

K, HIDDEN, G, LAYERS = 6, 4, 2, 3


def affine(outputs: int, inputs: int) -> Affine:
    return Affine(torch.randn(outputs, inputs), torch.randn(outputs))


def surrogate(hidden: int = HIDDEN) -> Surrogate:
    torch.manual_seed(1)
    sizes = [(hidden, K), (G, hidden)] if hidden else [(G, K)]
    layers = tuple(tuple(affine(*size) for size in sizes) for _ in range(LAYERS))
    return Surrogate("tiny", K, G, layers, {"seed": 7}, (0.5, 0.25, 0.0), (0.1, -0.5, 0.0))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_surrogate(tmp_path / "s.safetensors", surrogate())
    return tmp_path / "s.safetensors"


@pytest.mark.parametrize("hidden", [HIDDEN, 0])
def test_what_is_written_comes_back(tmp_path: Path, hidden: int) -> None:
    written = surrogate(hidden)
    write_surrogate(tmp_path / "s.safetensors", written)
    assert [file.name for file in tmp_path.iterdir()] == ["s.safetensors"]
    found = read_surrogate(tmp_path / "s.safetensors")
    assert (found.model, found.hidden_size, found.kv_heads, found.training) == ("tiny", K, G, {"seed": 7})
    assert (found.correlation, found.r2) == (written.correlation, written.r2)
    for got, want in zip(found.layers, written.layers, strict=True):
        for a, b in zip(got, want, strict=True):
            assert torch.equal(a.weight, stored(b.weight))
            assert torch.equal(a.bias, b.bias)


def test_names_and_types_in_the_file(path: Path) -> None:
    tensors = load_file(path)
    names = {f"layers.{i}.{n}.{p}" for i in range(LAYERS) for n in ("up", "down") for p in ("weight", "bias")}
    assert tensors.keys() == names
    assert {(name[-4:], tensor.dtype) for name, tensor in tensors.items()} == {
        ("ight", torch.float16),
        ("bias", torch.float32),
    }
    assert tensors["layers.1.up.weight"].shape == (HIDDEN, K)
    assert tensors["layers.1.down.weight"].shape == (G, HIDDEN)


def test_scores_are_linear_gelu_linear() -> None:
    found = surrogate()
    up, down = found.layers[1]
    x = torch.randn(5, K)
    inner = x @ up.weight.T + up.bias
    cubic = (2 / torch.pi) ** 0.5 * (inner + 0.044715 * inner**3)
    inner = 0.5 * inner * (1 + torch.tanh(cubic))
    torch.testing.assert_close(found.score(1, x), inner @ down.weight.T + down.bias)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((K, LAYERS + 1, G), r"s\.st: was trained for tiny \(layers: 3\), the model has 4; train one"),
        ((8, LAYERS, G), r"hidden size: 6\), the model has 8"),
        ((K, LAYERS, 1), r"key/value heads: 2\), the model has 1"),
    ],
)
def test_a_model_of_other_sizes(sizes: tuple[int, int, int], message: str) -> None:
    surrogate().check_fits("s.st", K, LAYERS, G)
    with pytest.raises(InputError, match=message):
        surrogate().check_fits("s.st", *sizes)


Edit = Callable[[dict[str, Tensor], dict[str, str]], object]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t, m: m.update(format="dspark-kvzap-2"), "not a KVzap surrogate of format dspark-kvzap-1"),
        (lambda t, m: m.clear(), "not a KVzap surrogate"),
        (lambda t, m: m.update(kv_heads="two"), "damaged metadata .kv_heads is 'two'"),
        (lambda t, m: m.update(num_layers="0"), "damaged metadata .num_layers is '0'"),
        (lambda t, m: m.update(training="{"), "damaged metadata .training"),
        (lambda t, m: m.update(training="[]"), "damaged metadata .training"),
        (lambda t, m: m.update(correlation="[1, 2]"), "damaged metadata .correlation holds no number for each layer"),
        (lambda t, m: m.update(r2='["a", "b", "c"]'), "damaged metadata .r2 holds no number"),
        (lambda t, m: m.update(num_layers="4"), r"tensor layers\.3\.up\.weight is missing"),
        (lambda t, m: m.update(num_layers="2"), r"tensor layers\.2\.\S+ belongs to no layer"),
        (lambda t, m: m.update(hidden_size="5"), r"layers\.0\.up has shapes \(4, 6\) and \(4,\), not \(4, 5\)"),
        (lambda t, m: t.pop("layers.1.down.bias"), r"tensor layers\.1\.down\.bias is missing"),
        (lambda t, m: t.update({"layers.1.up.bias": torch.ones(3)}), r"layers\.1\.up has shapes"),
        (lambda t, m: t.update({"layers.1.up.bias": torch.ones(4, 1)}), r"layers\.1\.up\.bias is not 1-dimensional"),
        (lambda t, m: t["layers.0.up.weight"].fill_(torch.inf), r"layers\.0\.up\.weight is not .* finite"),
    ],
)
def test_a_file_that_is_none(path: Path, edit: Edit, message: str) -> None:
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
    edit(tensors, metadata)
    save_file(tensors, path, metadata)
    with pytest.raises(InputError, match=message) as caught:
        read_surrogate(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_cut_short(path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_surrogate(path.with_name("other.safetensors"))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match="not a readable safetensors file"):
        read_surrogate(path)


def test_the_shipped_weights_are_what_their_readme_says() -> None:
    folder = Path(__file__).parents[2] / "models"
    found = read_surrogate(folder / "kvzap-smollm2-135m.safetensors")
    found.check_fits("", hidden_size=576, num_layers=30, kv_heads=3)
    means = [sum(values) / len(values) for values in (found.correlation, found.r2)]
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert f"| mean | {means[0]:.3f} | {means[1]:.3f} |" in readme
    for option in ("documents", "length", "steps", "seed"):
        assert f"--{option} {found.training[option]} " in readme
    assert all(f"--data {name} " in readme for name in found.training["data"])
