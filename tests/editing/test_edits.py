"""Weight edits, hook edits and a hand-zeroed copy are one and the same; everything comes back."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedModel

import oracle
import tiny
from babelscope import Anatomy, NeuronSet, ablate
from babelscope.errors import ConfigError, ProvenanceError, UnsupportedModelError
from editing.cases import EVERY, TOLERANCE, assert_intact, built, logits, snapshot, some, zeroed_by_hand


@pytest.fixture(params=EVERY)
def model(request: pytest.FixtureRequest) -> Iterator[PreTrainedModel]:
    with built(request.param) as model:
        yield model


@pytest.fixture
def llama() -> PreTrainedModel:
    return tiny.tiny_model("llama", torch.float64)


# -- zero ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
def test_both_ways_of_zeroing_agree_with_zeroing_by_hand(model: PreTrainedModel, side: str) -> None:
    anatomy = Anatomy(model, check=False)
    neurons = some(anatomy)
    ids, mask = tiny.ragged_batch(model, side)
    before, how = snapshot(model), implementations(model)
    intact = logits(model, ids, mask)
    with zeroed_by_hand(model, neurons):
        expected = logits(model, ids, mask)
    with ablate(model, neurons) as by_weights:
        found = logits(model, ids, mask)
    assert not by_weights.fired
    assert set(by_weights.on_weights) == {(slot, layer) for slot, layer, _ in neurons}
    with ablate(model, rows=[neurons]) as by_hooks:
        hooked = logits(model, ids, mask)
    assert not by_hooks.on_weights
    assert by_hooks.fired == dict.fromkeys(by_weights.on_weights, 1)
    assert (expected - intact).abs().max() > 1e-3
    assert (found - expected).abs().max() <= TOLERANCE
    assert (hooked - expected).abs().max() <= TOLERANCE
    assert_intact(model, before)
    assert implementations(model) == how
    assert torch.equal(logits(model, ids, mask), intact)


@pytest.mark.parametrize("slot", oracle.SLOTS)
def test_one_slot_at_a_time(model: PreTrainedModel, slot: str) -> None:
    neurons = some(Anatomy(model, check=False), (slot,))
    ids, mask = tiny.ragged_batch(model)
    with zeroed_by_hand(model, neurons):
        expected = logits(model, ids, mask)
    with ablate(model, neurons):
        assert (logits(model, ids, mask) - expected).abs().max() <= TOLERANCE
    with ablate(model, neurons, op="clamp", value=0.0):
        assert (logits(model, ids, mask) - expected).abs().max() <= TOLERANCE


def test_the_set_of_a_row_leaves_the_other_rows_alone(model: PreTrainedModel) -> None:
    anatomy = Anatomy(model, check=False)
    one, two = some(anatomy), some(anatomy, shift=1)
    ids, mask = tiny.ragged_batch(model)
    with torch.no_grad(), ablate(model, rows=[one, None, two]):
        found = model(input_ids=ids, attention_mask=mask).logits
    for row, neurons in enumerate([one, None, two]):
        with contextlib.ExitStack() as stack:
            if neurons is not None:
                stack.enter_context(zeroed_by_hand(model, neurons))
            expected = logits(model, ids, mask)
        real = mask.bool()
        whole = torch.zeros_like(found)
        whole[real] = expected
        assert (found[row][real[row]] - whole[row][real[row]]).abs().max() <= TOLERANCE


# -- restoring -------------------------------------------------------------------------------------------------------


def implementations(model: PreTrainedModel) -> tuple:
    return model.config._attn_implementation, getattr(model.config, "_experts_implementation", None)


def break_off(
    model: PreTrainedModel, inputs: tuple[Tensor, Tensor], error: type[BaseException], intact: Tensor
) -> None:
    assert not torch.equal(logits(model, *inputs), intact)
    raise error


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_everything_comes_back_after_an_exception(model: PreTrainedModel, error: type[BaseException]) -> None:
    neurons, before, how = some(Anatomy(model, check=False)), snapshot(model), implementations(model)
    inputs = tiny.ragged_batch(model)
    intact = logits(model, *inputs)
    for way in ({}, {"op": "scale", "factor": -3.7}, {"op": "clamp", "value": 1.0}):
        with pytest.raises(error), ablate(model, neurons, **way):
            break_off(model, inputs, error, intact)
        assert_intact(model, before)
        assert implementations(model) == how
    assert torch.equal(logits(model, *inputs), intact)


@pytest.mark.parametrize("name", ["llama", "qwen3_moe"])
def test_an_exception_in_nested_contexts(name: str) -> None:
    """Weights under hooks under weights; each comes back whichever of them the exception reaches first."""
    with built(name) as model:
        anatomy = Anatomy(model, check=False)
        one, two, three = (some(anatomy, shift=shift) for shift in (0, 1, 2))
        two, three, before, how = two - one, three - one - two, snapshot(model), implementations(model)
        inputs = tiny.ragged_batch(model)
        with ablate(model, one):
            within, expected = snapshot(model), logits(model, *inputs)
            with pytest.raises(RuntimeError), ablate(model, rows=[two]), ablate(model, three, op="scale", factor=2.0):
                break_off(model, inputs, RuntimeError, expected)
            assert_intact(model, within)
            assert torch.equal(logits(model, *inputs), expected)
        assert_intact(model, before)
        assert implementations(model) == how


def test_an_interrupt_while_editing_or_restoring_restores(llama: PreTrainedModel, monkeypatch) -> None:
    from babelscope.editing import weights

    neurons, before = some(Anatomy(llama, check=False)), snapshot(llama)
    real = weights._put_back
    calls = []

    def interrupted(saved: list) -> None:
        calls.append(len(saved))
        if len(calls) == 3:
            data, index, value = saved.pop()
            data[index] = value
            raise KeyboardInterrupt
        real(saved)

    monkeypatch.setattr(weights, "_put_back", interrupted)
    with pytest.raises(KeyboardInterrupt), ablate(llama, neurons):
        pass
    assert_intact(llama, before)

    count = iter(range(100))

    def broken(*args: object) -> Tensor:
        if next(count) == 4:
            raise KeyboardInterrupt
        return torch.full_like(args[0], 0)

    monkeypatch.setattr(weights.torch, "zeros_like", broken)
    with pytest.raises(KeyboardInterrupt), ablate(llama, neurons):
        raise AssertionError("not reached")
    monkeypatch.undo()
    assert_intact(llama, before)


def test_nested_contexts_restore_in_order(llama: PreTrainedModel) -> None:
    anatomy = Anatomy(llama, check=False)
    neurons, other, before = some(anatomy), some(anatomy, shift=1), snapshot(llama)
    ids, mask = tiny.ragged_batch(llama)
    with ablate(llama, neurons | other):
        both = logits(llama, ids, mask)
    with ablate(llama, neurons):
        within = snapshot(llama)
        with ablate(llama, other):
            assert torch.equal(logits(llama, ids, mask), both)
            with ablate(llama, neurons | other, op="scale", factor=5):
                assert torch.equal(logits(llama, ids, mask), both)  # 5 x 0
        assert all(torch.equal(value, within[name]) for name, value in snapshot(llama).items())
        with ablate(llama, rows=[other]):
            assert (logits(llama, ids, mask) - both).abs().max() <= TOLERANCE
    assert_intact(llama, before)


def test_under_bfloat16(llama: PreTrainedModel) -> None:
    llama = llama.bfloat16()
    neurons, before = some(Anatomy(llama, check=False)), snapshot(llama)
    ids, mask = tiny.ragged_batch(llama)
    with zeroed_by_hand(llama, neurons):
        expected = logits(llama, ids, mask)
    with ablate(llama, neurons):
        assert torch.equal(logits(llama, ids, mask), expected)
    with ablate(llama, rows=[neurons]):
        assert torch.equal(logits(llama, ids, mask), expected)
    for way in ({"op": "scale", "factor": 0.3}, {"op": "clamp", "value": 0.3}):
        with ablate(llama, neurons, **way):
            assert logits(llama, ids, mask).dtype == torch.bfloat16
    assert_intact(llama, before)


def test_gradients_flow_through_a_hook_edit(llama: PreTrainedModel) -> None:
    anatomy = Anatomy(llama, check=False)
    neurons = NeuronSet.from_indices(anatomy, {"ffn": {0: [3]}})
    ids, mask = tiny.ragged_batch(llama)
    with ablate(llama, neurons, op="clamp", value=0.5):
        llama(input_ids=ids, attention_mask=mask).logits.square().mean().backward()
    gate = llama.model.layers[0].mlp.gate_proj.weight.grad
    assert gate[3].abs().max() == 0
    assert gate[4].abs().max() > 0


# -- counters --------------------------------------------------------------------------------------------------------


def test_the_counter_counts_forward_passes(llama: PreTrainedModel) -> None:
    neurons = NeuronSet.from_indices(Anatomy(llama, check=False), {"q": {1: [0]}, "ffn": {0: [1, 2]}})
    ids, mask = tiny.ragged_batch(llama)
    with ablate(llama, neurons, op="clamp", value=1.0) as edits:
        assert len(edits) == 3
        assert edits.fired == {("q", 1): 0, ("ffn", 0): 0}
        for _ in range(3):
            logits(llama, ids, mask)
    assert edits.fired == {("q", 1): 3, ("ffn", 0): 3}


def test_an_edit_that_never_fired_is_an_error(llama: PreTrainedModel) -> None:
    neurons = some(Anatomy(llama, check=False))
    before = snapshot(llama)
    ids, mask = tiny.ragged_batch(llama)
    with pytest.raises(ConfigError, match="no forward pass"), ablate(llama, rows=[neurons]):
        pass
    with pytest.raises(ConfigError, match="when='generation'"), ablate(llama, neurons, when="generation"):
        logits(llama, ids, mask)
    with pytest.raises(ConfigError, match=r"positions=\[40\]"), ablate(llama, neurons, positions=[40]):
        logits(llama, ids, mask)
    with ablate(llama, neurons):  # weights are edited in any case
        pass
    with pytest.raises(RuntimeError, match="the body's own"), ablate(llama, rows=[neurons]):
        raise RuntimeError("the body's own")
    assert_intact(llama, before)


def test_a_kernel_that_skips_hooks_is_noticed(llama: PreTrainedModel, monkeypatch) -> None:
    mlp = llama.model.layers[1].mlp

    def fused(states: Tensor) -> Tensor:
        units = mlp.act_fn(states @ mlp.gate_proj.weight.T) * (states @ mlp.up_proj.weight.T)
        return units @ mlp.down_proj.weight.T

    monkeypatch.setattr(mlp, "forward", fused)
    ids, mask = tiny.ragged_batch(llama)
    neurons = some(Anatomy(llama, check=False))
    with (
        pytest.raises(UnsupportedModelError, match="layer 1, slot ffn, though 1 forward") as caught,
        ablate(llama, rows=[neurons]),
    ):
        logits(llama, ids, mask)
    assert "layer 0" not in str(caught.value)


# -- refusals --------------------------------------------------------------------------------------------------------


def refused(match: str, **arguments: object) -> Callable[[PreTrainedModel, NeuronSet], None]:
    def case(model: PreTrainedModel, neurons: NeuronSet) -> None:
        with pytest.raises(ConfigError, match=match), ablate(model, **{"neurons": neurons, **arguments}):
            raise AssertionError("not reached")

    return case


@pytest.mark.parametrize(
    "case",
    [
        refused("needs factor", op="scale"),
        refused("needs value", op="clamp"),
        refused("needs reference", op="mean"),
        refused("wanted op among zero, scale, clamp, mean, median, resample", op="erase"),
        refused("takes no argument, found factor", factor=2.0),
        refused("takes factor, found value", op="scale", factor=2.0, value=1.0),
        refused("finite number as factor", op="scale", factor=float("nan")),
        refused("finite number as value", op="clamp", value="1"),
        refused("found neither", neurons=None),
        refused("found both", rows=[None]),
        refused("rows lists 2 sets without", neurons=None, rows=[None, None]),
        refused("rows lists 0 sets without", neurons=None, rows=[]),
        refused("found dict", neurons={"ffn": {0: [1]}}),
        refused("wanted when among", when="later"),
        refused("wanted positions", positions=[-1]),
        refused("wanted positions", positions=[]),
        refused("wanted positions", positions=[0.5]),
        refused("wanted positions", positions=3),
        refused("Atlas or the Statistics", op="mean", reference=[1, 2]),
    ],
)
def test_arguments_that_are_refused(llama: PreTrainedModel, case: Callable) -> None:
    before = snapshot(llama)
    case(llama, some(Anatomy(llama, check=False)))
    assert_intact(llama, before)


def test_one_set_as_rows_is_refused(llama: PreTrainedModel) -> None:
    with pytest.raises(ConfigError, match="found one NeuronSet"), ablate(llama, rows=some(Anatomy(llama, check=False))):
        pass


def test_an_empty_set_is_refused(llama: PreTrainedModel) -> None:
    neurons = some(Anatomy(llama, check=False))
    with pytest.raises(ConfigError, match="the set is empty"), ablate(llama, neurons - neurons):
        pass


def test_a_set_of_another_model_is_refused(llama: PreTrainedModel) -> None:
    other = tiny.tiny_model("llama", torch.float64)
    with torch.no_grad():
        other.model.layers[0].mlp.up_proj.weight.mul_(2)
    foreign, before = some(Anatomy(other, check=False)), snapshot(llama)
    for arguments in ({"neurons": foreign}, {"rows": [None, foreign]}):
        with pytest.raises(ProvenanceError, match="force=True"), ablate(llama, **arguments):
            pass
    with ablate(llama, foreign, force=True):
        pass
    wide = some(Anatomy(tiny.tiny_model("qwen2", torch.float64), check=False))
    with pytest.raises(ProvenanceError, match="other widths"), ablate(llama, wide, force=True):
        pass
    assert_intact(llama, before)


def test_an_index_out_of_range_is_refused(llama: PreTrainedModel) -> None:
    neurons = NeuronSet.from_indices(Anatomy(llama, check=False), {"k": {1: [3]}})
    for unit in (16, -1):
        units = (neurons.indices["k"][0], torch.tensor([unit]))
        wrong = NeuronSet(neurons.widths, {**neurons.indices, "k": units}, neurons.scores, neurons.provenance)
        with pytest.raises(ConfigError, match=r"slot k, layer 1: units are 0..15"), ablate(llama, wrong):
            pass


def test_a_slot_that_the_anatomy_lacks_is_refused(llama: PreTrainedModel) -> None:
    part = Anatomy(llama, slots=("q", "ffn"), check=False)
    with pytest.raises(ConfigError, match="slot k, v, o, but the anatomy was built for q, ffn"):
        ablate(part, some(Anatomy(llama, check=False))).__enter__()


def test_conflicting_edits_are_refused(llama: PreTrainedModel) -> None:
    anatomy = Anatomy(llama, check=False)
    neurons, other, before = some(anatomy), some(anatomy, shift=1), snapshot(llama)
    ids, mask = tiny.ragged_batch(llama)
    clamp = {"op": "clamp", "value": 1.0}
    for outer, inner in (
        (clamp, {"op": "clamp", "value": 2.0}),
        (clamp, {}),
        ({}, clamp),
        ({"when": "prompt"}, {"op": "scale", "factor": 2.0}),
    ):
        with ablate(llama, neurons, **outer):
            with pytest.raises(ConfigError, match="an open edit"), ablate(llama, neurons, **inner):
                raise AssertionError("not reached")
            logits(llama, ids, mask)
        assert_intact(llama, before)
    with ablate(llama, neurons, **clamp), ablate(llama, neurons, **clamp), ablate(llama, other - neurons):
        logits(llama, ids, mask)
    assert_intact(llama, before)


def test_compiled_models_are_refused(llama: PreTrainedModel) -> None:
    neurons = some(Anatomy(llama, check=False))
    with pytest.raises(UnsupportedModelError, match=r"torch\.compile"), ablate(torch.compile(llama), neurons):
        pass
    llama.model.layers[1].compile()
    with pytest.raises(UnsupportedModelError, match=r"model\.layers\.1 is compiled"), ablate(llama, rows=[neurons]):
        pass


def test_a_compiled_graph_sees_edited_weights(llama: PreTrainedModel) -> None:
    neurons = some(Anatomy(llama, check=False))
    ids, mask = tiny.ragged_batch(llama)
    with zeroed_by_hand(llama, neurons):
        expected = logits(llama, ids, mask)
    llama.model.layers[1].compile(backend="eager")
    intact = logits(llama, ids, mask)
    with ablate(llama, neurons):
        assert (logits(llama, ids, mask) - expected).abs().max() <= TOLERANCE
    assert torch.equal(logits(llama, ids, mask), intact)
    assert (expected - intact).abs().max() > 1e-3


def test_tensor_parallelism_is_refused(llama: PreTrainedModel, monkeypatch) -> None:
    anatomy = Anatomy(llama, check=False)
    monkeypatch.setattr(llama, "_tp_size", 2, raising=False)
    with pytest.raises(UnsupportedModelError, match="device_map instead of tp_plan"), ablate(anatomy, some(anatomy)):
        pass


# -- where weights can't be edited -----------------------------------------------------------------------------------


class EightBit(nn.Module):
    """A linear layer whose weight is kept as int8 rows with a scale."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.weight = nn.Parameter((linear.weight.detach() / scale).round().to(torch.int8), requires_grad=False)
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, states: Tensor) -> Tensor:
        return nn.functional.linear(states, self.weight.to(self.scale.dtype) * self.scale, self.bias)


@pytest.mark.parametrize("way", [{}, {"op": "scale", "factor": 2.5}])
def test_quantised_layers_fall_back_to_hooks(way: dict, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny.tiny_model("llama_biases", torch.float64)
    dense = tiny.tiny_model("llama_biases", torch.float64)
    with torch.no_grad():
        for mine, twin in zip(model.model.layers, dense.model.layers, strict=True):
            for block, other in ((mine.self_attn, twin.self_attn), (mine.mlp, twin.mlp)):
                for name, linear in list(block.named_children()):
                    if isinstance(linear, nn.Linear):
                        setattr(block, name, EightBit(linear))
                        getattr(other, name).weight.copy_(
                            getattr(block, name).weight.double() * getattr(block, name).scale
                        )
    neurons = some(Anatomy(model, check=False))
    ids, mask = tiny.ragged_batch(model)
    with ablate(dense, some(Anatomy(dense, check=False)), **way):
        expected = logits(dense, ids, mask)
    with caplog.at_level(logging.WARNING, "babelscope"), ablate(model, neurons, **way) as edits:
        found = logits(model, ids, mask)
    assert (found - expected).abs().max() <= TOLERANCE
    assert not edits.on_weights
    assert [each.getMessage() for each in caplog.records] == [
        "the weights are quantised in 10 of 10 edited places (slots of layers), so activations are edited there by "
        "hooks, at a cost per token"
    ]


def test_offloaded_layers_fall_back_to_hooks(llama: PreTrainedModel, monkeypatch) -> None:
    """As accelerate: the weight is on meta between calls."""
    neurons = some(Anatomy(llama, check=False))
    ids, mask = tiny.ragged_batch(llama)
    with zeroed_by_hand(llama, neurons):
        expected = logits(llama, ids, mask)
    down = llama.model.layers[0].mlp.down_proj
    held = down.weight.detach()
    monkeypatch.setattr(down, "forward", lambda states: nn.functional.linear(states, held))
    down.weight = nn.Parameter(held.to("meta"))
    with ablate(llama, neurons, force=True) as edits:
        found = logits(llama, ids, mask)
    assert edits.fired == {("ffn", 0): 1}
    assert (found - expected).abs().max() <= TOLERANCE


def test_layers_that_accelerate_keeps_on_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The real thing: device_map, weights read in for each call, by rows and in generation too."""
    pytest.importorskip("accelerate")
    plain = tiny.tiny_model("llama").eval()
    plain.save_pretrained(tmp_path / "model")
    places = {name: "cpu" for name in ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head")}
    model = LlamaForCausalLM.from_pretrained(
        tmp_path / "model",
        device_map={**places, "model.layers.0": "cpu", "model.layers.1": "disk"},
        offload_folder=tmp_path / "offload",
    )
    neurons = some(Anatomy(plain, check=False))
    ids, mask = tiny.ragged_batch(plain, "left")
    settings = {"input_ids": ids, "attention_mask": mask, "max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    with zeroed_by_hand(plain, neurons):
        expected, tokens = logits(plain, ids, mask), plain.generate(**settings)
    for arguments in ({"neurons": neurons}, {"rows": [neurons] * 3}):
        with ablate(model, force=True, **arguments) as edits:
            assert (logits(model, ids, mask) - expected).abs().max() <= 1e-5
            assert torch.equal(model.generate(**settings), tokens)
        assert {layer for _, layer in edits.on_weights} == ({0} if "neurons" in arguments else set())
    assert "the weights are offloaded in 5 of 10 edited places" in caplog.text
    assert (logits(model, ids, mask) - logits(plain, ids, mask)).abs().max() <= 1e-5


def test_experts_that_are_offloaded() -> None:
    model = tiny.tiny_model("mixtral", torch.float64)
    neurons = some(Anatomy(model, check=False), ("ffn",))
    experts = model.model.layers[0].mlp.experts
    experts.down_proj = nn.Parameter(experts.down_proj.detach().to("meta"))
    with (
        pytest.raises(UnsupportedModelError, match="slot ffn: the experts' weights are quantised or offloaded"),
        ablate(model, neurons, op="clamp", value=1.0, force=True),
    ):
        pass


def test_experts_that_are_switched_inside_the_context() -> None:
    model = tiny.tiny_model("mixtral", torch.float64)
    neurons, before, how = some(Anatomy(model, check=False), ("ffn",)), snapshot(model), implementations(model)
    inputs = tiny.ragged_batch(model)

    def switch_and_run() -> None:
        model.config._experts_implementation_internal = "eager"
        logits(model, *inputs)

    with (
        pytest.raises(UnsupportedModelError, match="the experts run by 'eager' now, which would skip the edit"),
        ablate(model, neurons, op="clamp", value=1.0),
    ):
        switch_and_run()
    assert_intact(model, before)
    assert implementations(model) == how


def test_under_an_adapter_the_whole_unit_goes(llama: PreTrainedModel) -> None:
    """As peft's LoRA: a module that holds the base layer, shows its weight and adds to its output."""

    class Lora(nn.Module):
        def __init__(self, base: nn.Linear) -> None:
            super().__init__()
            self.base_layer = base
            self.in_features, self.out_features = base.in_features, base.out_features

        @property
        def weight(self) -> nn.Parameter:
            return self.base_layer.weight

        bias = None

        def forward(self, states: Tensor) -> Tensor:
            return self.base_layer(states) + states.sum(-1, keepdim=True)

    attention = llama.model.layers[0].self_attn
    attention.v_proj = Lora(attention.v_proj)
    neurons = NeuronSet.from_indices(Anatomy(llama, check=False), {"v": {0: [3]}})
    seen = []
    ids, mask = tiny.ragged_batch(llama)
    with ablate(llama, neurons) as edits:
        attention.v_proj.register_forward_hook(lambda module, args, output: seen.append(output))
        logits(llama, ids, mask)
    assert edits.fired == {("v", 0): 1}
    assert seen[0][..., 3].abs().max() == 0
    assert seen[0][..., 4].abs().max() > 0
