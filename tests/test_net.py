"""A prototxt as a net: layers of all formats, states and their rules, typed messages."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caffe_fold import caffe_pb2
from caffe_fold.errors import InputError, PrototxtError
from caffe_fold.nets.net import Layer, Net, State, read_net, selected
from caffe_fold.nets.prototxt import parse


def net_of(text: str | bytes) -> Net:
    return read_net(parse(text if isinstance(text, bytes) else text.encode(), "net.prototxt"))


def layer_of(body: str, kind: str = "layer") -> Layer:
    (layer,) = net_of(f"{kind} {{ {body} }}").layers
    return layer


# ---- Layers ----


def test_a_layer_with_all_that_every_layer_has() -> None:
    layer = layer_of(
        """
        name: "conv" "1" type: 'Convolution' bottom: "data" top: "a" top: 'b'
        param { name: "w" lr_mult: 1 } param { lr_mult: 2 } param: < name: 'b' >
        phase: TEST loss_weight: 0 convolution_param { name: "not this" }
        """
    )
    assert (layer.index, layer.version, layer.name, layer.type) == (0, 2, "conv1", "Convolution")
    assert (layer.bottoms, layer.tops) == (("data",), ("a", "b"))
    assert layer.params == ("w", "", "b")
    assert not layer.permissive
    assert not layer.has_loss_weight
    assert layer.phase == "TEST"


def test_a_layer_that_says_nothing() -> None:
    layer = layer_of("")
    assert (layer.name, layer.type, layer.bottoms, layer.tops) == ("", "", (), ())
    assert (layer.params, layer.phase, layer.has_loss_weight) == ((), None, False)


def test_bottoms_and_tops_in_lists() -> None:
    layer = layer_of('bottom: ["a", "b"] top: ["c"]')
    assert (layer.bottoms, layer.tops) == (("a", "b"), ("c",))


def test_layers_in_a_list() -> None:
    net = net_of('layer: [{ name: "a" }, < name: "b" >] layer { name: "c" }')
    assert [layer.name for layer in net.layers] == ["a", "b", "c"]
    assert [layer.index for layer in net.layers] == [0, 1, 2]


def test_a_name_in_another_encoding_is_kept() -> None:
    (layer,) = net_of(b'layer { name: "conv\xb5" }').layers
    assert layer.name == "conv\udcb5"


@pytest.mark.parametrize(
    ("weight", "counts"),
    [
        ("0", False),
        ("0.0f", False),
        ("-0", False),
        ("1", True),
        ("- 2", True),
        ("1e-9", True),
        ("inf", True),
        ("[0, 0]", False),
        ("[0, 1]", True),
    ],
)
def test_a_loss_weight_other_than_zero(weight: str, counts: bool) -> None:
    assert layer_of(f"loss_weight: {weight}").has_loss_weight is counts


@pytest.mark.parametrize(
    ("text", "permissive"),
    [
        ("param { share_mode: PERMISSIVE }", True),
        ("param { share_mode: 1 }", True),
        ("param { share_mode: STRICT }", False),
        ("blob_share_mode: PERMISSIVE", True),
    ],
)
def test_the_share_mode(text: str, permissive: bool) -> None:
    assert layer_of(text).permissive is permissive


@pytest.mark.parametrize(
    ("value", "phase"), [("TRAIN", "TRAIN"), ("TEST", "TEST"), ("0", "TRAIN"), ("1", "TEST")]
)
def test_a_layers_own_phase(value: str, phase: str) -> None:
    assert layer_of(f"phase: {value}").phase == phase


# ---- Old formats ----

# V1LayerParameter.LayerType and UpgradeV1LayerType, whole (BVLC, upgrade_proto.cpp).
V1_TYPES = """
NONE= ABSVAL=AbsVal ACCURACY=Accuracy ARGMAX=ArgMax BNLL=BNLL CONCAT=Concat
CONTRASTIVE_LOSS=ContrastiveLoss CONVOLUTION=Convolution DATA=Data DECONVOLUTION=Deconvolution
DROPOUT=Dropout DUMMY_DATA=DummyData EUCLIDEAN_LOSS=EuclideanLoss ELTWISE=Eltwise EXP=Exp
FLATTEN=Flatten HDF5_DATA=HDF5Data HDF5_OUTPUT=HDF5Output HINGE_LOSS=HingeLoss IM2COL=Im2col
IMAGE_DATA=ImageData INFOGAIN_LOSS=InfogainLoss INNER_PRODUCT=InnerProduct LRN=LRN
MEMORY_DATA=MemoryData MULTINOMIAL_LOGISTIC_LOSS=MultinomialLogisticLoss MVN=MVN POOLING=Pooling
POWER=Power RELU=ReLU SIGMOID=Sigmoid SIGMOID_CROSS_ENTROPY_LOSS=SigmoidCrossEntropyLoss
SILENCE=Silence SLICE=Slice SOFTMAX=Softmax SOFTMAX_LOSS=SoftmaxWithLoss SPLIT=Split TANH=TanH
THRESHOLD=Threshold WINDOW_DATA=WindowData
""".split()


@pytest.mark.parametrize("pair", V1_TYPES[1:])
def test_v1_types_are_those_that_caffe_makes_of_them(pair: str) -> None:
    old, new = pair.split("=")
    layer = layer_of(f'name: "x" type: {old} bottom: "a" top: "b" param: "w"', "layers")
    assert (layer.version, layer.type) == (1, new)
    assert (layer.name, layer.bottoms, layer.tops) == ("x", ("a",), ("b",))
    assert layer.params == ("w",)


def test_a_v0_layer_has_its_name_inside_and_its_blobs_outside() -> None:
    layer = layer_of('layer { name: "x" type: "conv" } bottom: "a" top: "b"', "layers")
    assert (layer.version, layer.name, layer.type) == (0, "x", "conv")
    assert (layer.bottoms, layer.tops) == (("a",), ("b",))


def test_two_formats_in_one_file_are_refused() -> None:
    with pytest.raises(PrototxtError, match=r"net\.prototxt:2:1: .*both 'layer' and 'layers'"):
        net_of("layer { }\nlayers { }")


# ---- Inputs ----


@pytest.mark.parametrize(
    ("text", "inputs"),
    [
        ('input: "data"', (("data", None),)),
        (
            'input: "data" input_dim: 1 input_dim: 3 input_dim: 8 input_dim: 9',
            (("data", (1, 3, 8, 9)),),
        ),
        ('input: "data" input_dim: [1, 3, 8, 9]', (("data", (1, 3, 8, 9)),)),
        (
            'input: "a" input: "b" input_shape { dim: 1 dim: 2 } input_shape: { dim: [3] }',
            (("a", (1, 2)), ("b", (3,))),
        ),
        ('input: ["a", "b"] input_shape { dim: 5 }', (("a", (5,)), ("b", None))),
        ('input: "a" input_dim: 1 input_dim: 3', (("a", None),)),
        ('input: "a" input_dim: [010, 0x10, 1, 1]', (("a", (8, 16, 1, 1)),)),
    ],
)
def test_net_level_inputs(
    text: str, inputs: tuple[tuple[str, tuple[int, ...] | None], ...]
) -> None:
    assert net_of(f"{text} layer {{ }}").inputs == inputs


# ---- States and rules ----


def names(net: Net, state: State) -> list[str]:
    return [layer.name for layer in selected(net, state)]


def is_in(rules: str, state: State) -> bool:
    return names(net_of(f'layer {{ name: "x" {rules} }}'), state) == ["x"]


TEST = State()


@pytest.mark.parametrize(
    ("rules", "state", "kept"),
    [
        ("", TEST, True),
        ("include { }", TEST, True),
        ("exclude { }", TEST, False),
        ("include { phase: TEST }", TEST, True),
        ("include { phase: TRAIN }", TEST, False),
        ("include { phase: 1 }", TEST, True),
        ("exclude { phase: TEST }", TEST, False),
        ("exclude { phase: TRAIN }", TEST, True),
        ("include: { phase: TRAIN } include: < phase: TEST >", TEST, True),
        ("exclude { phase: TRAIN } exclude { phase: TEST }", TEST, False),
        ("include: [{ phase: TRAIN }, { phase: TEST }]", TEST, True),
        ("include { min_level: 1 }", TEST, False),
        ("include { min_level: 1 }", State(level=1), True),
        ("include { min_level: 0 }", State(level=-1), False),
        ("include { max_level: 1 }", State(level=1), True),
        ("include { max_level: 1 }", State(level=2), False),
        ("include { min_level: -1 max_level: 1 }", TEST, True),
        ('include { stage: "a" }', TEST, False),
        ('include { stage: "a" }', State(stages=frozenset("a")), True),
        ('include { stage: "a" stage: "b" }', State(stages=frozenset("a")), False),
        ('include { stage: "a" stage: "b" }', State(stages=frozenset("abc")), True),
        ('include { stage: "a" } include { stage: "b" }', State(stages=frozenset("b")), True),
        ('include { not_stage: "a" }', TEST, True),
        ('include { not_stage: "a" }', State(stages=frozenset("a")), False),
        ('include { stage: "a" not_stage: "b" }', State(stages=frozenset("ab")), False),
        ('exclude { stage: "a" }', State(stages=frozenset("a")), False),
        ('exclude { not_stage: "a" }', TEST, False),
        ('include { phase: TEST stage: "a" }', TEST, False),
    ],
)
def test_a_rule_is_met_as_caffe_meets_it(rules: str, state: State, kept: bool) -> None:
    assert is_in(rules, state) is kept


def meets(rule: caffe_pb2.NetStateRule, state: State) -> bool:
    """``Net::StateMeetsRule``, said once more."""
    if rule.HasField("phase") and (rule.phase == caffe_pb2.TEST) != (state.phase == "TEST"):
        return False
    if rule.HasField("min_level") and state.level < rule.min_level:
        return False
    if rule.HasField("max_level") and state.level > rule.max_level:
        return False
    if any(stage not in state.stages for stage in rule.stage):
        return False
    return not any(stage in state.stages for stage in rule.not_stage)


LEVELS = st.none() | st.integers(-2, 2)
STAGES = st.lists(st.sampled_from("abc"), max_size=2)
RULES = st.builds(
    caffe_pb2.NetStateRule,
    phase=st.none() | st.sampled_from([0, 1]),
    min_level=LEVELS,
    max_level=LEVELS,
    stage=STAGES,
    not_stage=STAGES,
)
STATES = st.builds(
    State, st.sampled_from(["TEST", "TRAIN"]), st.integers(-2, 2), STAGES.map(frozenset)
)


@given(st.sampled_from(["include", "exclude"]), st.lists(RULES, min_size=1, max_size=3), STATES)
@settings(deadline=None)
def test_any_include_rule_suffices_and_any_exclude_rule_drops(
    kind: str, rules: list[caffe_pb2.NetStateRule], state: State
) -> None:
    text = " ".join(f"{kind} {{ {rule} }}" for rule in rules)
    any_met = any(meets(rule, state) for rule in rules)
    assert is_in(text, state) is (any_met if kind == "include" else not any_met)


def test_both_kinds_of_rules_in_one_layer_are_fatal() -> None:
    net = net_of('\nlayer { name: "x" include { } exclude { } }')
    with pytest.raises(PrototxtError, match=r"net\.prototxt:2:1: layer 'x' has both"):
        selected(net, TEST)


@pytest.mark.parametrize("phase", ["VALIDATION", "2", "inner_product_param"])
@pytest.mark.parametrize("kind", ["include", "exclude"])
def test_a_phase_that_caffe_lacks_is_refused_in_a_rule(kind: str, phase: str) -> None:
    """Left out, it would make a rule that is met in every state."""
    net = net_of(f"layer {{\n {kind} {{ phase: {phase} }} }}")
    with pytest.raises(PrototxtError, match=rf"net\.prototxt:2:19: found '{phase}'; 'phase' is"):
        selected(net, TEST)


def test_an_unknown_field_in_a_rule_is_no_error() -> None:
    assert is_in('include { phase: TEST os: "linux" { } }'.replace(" { }", ""), TEST)


def test_the_nets_own_state() -> None:
    net = net_of('state { phase: TRAIN level: 2 stage: "a" stage: "b" } layer { }')
    assert net.state == State("TEST", 2, frozenset("ab"))


def test_twins_may_share_a_name() -> None:
    net = net_of('layer { name: "x" include { phase: TRAIN } } layer { name: "x" }')
    assert [layer.index for layer in selected(net, TEST)] == [1]


# ---- Typed messages ----


def test_defaults_and_enums_are_caffes() -> None:
    net = net_of("layer { convolution_param { num_output: 4 engine: CUDNN } }")
    found = net.parsed(net.layers[0], "convolution_param", caffe_pb2.ConvolutionParameter)
    assert (found.message.num_output, found.message.bias_term, found.message.group) == (4, True, 1)
    assert found.message.engine == caffe_pb2.ConvolutionParameter.CUDNN
    assert (found.message.axis, found.unknown) == (1, ())


def test_a_message_that_is_not_there_has_its_defaults() -> None:
    net = net_of("layer { }")
    found = net.parsed(net.layers[0], "batch_norm_param", caffe_pb2.BatchNormParameter)
    assert found.message.eps == pytest.approx(1e-5)
    assert found.fields == ()


def test_unknown_fields_and_enum_values_are_named_and_passed_over() -> None:
    net = net_of(
        """layer { convolution_param {
          num_output: 4 relu: true quant { scale: [1, 2] inner < > }
          engine: MKLDNN weight_filler { type: 'msra' odd: 'x' variance_norm: 7 }
          relu: false
        } }"""
    )
    found = net.parsed(net.layers[0], "convolution_param", caffe_pb2.ConvolutionParameter)
    assert found.message.num_output == 4
    assert found.message.weight_filler.type == "msra"
    assert not found.message.HasField("engine")
    assert found.unknown == (
        "relu",
        "quant",
        "engine: MKLDNN",
        "weight_filler.odd",
        "weight_filler.variance_norm: 7",
    )
    assert [net.document.value(f) for f in found.unknown_fields("relu")] == ["true", "false"]


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("layer {\n  batch_norm_param { eps: 'x' } }", "2:27", "in 'batch_norm_param'"),
        ("layer {\n  batch_norm_param {\n eps: 1\n eps: 2\n} }", "4:7", "eps"),
        ("layer { batch_norm_param { use_global_stats: 2 } }", "1:46", "batch_norm_param"),
        ("layer { batch_norm_param: 1 }", "1:27", "takes a message in braces"),
        ("layer { name: 'x' batch_norm_param { } batch_norm_param { } }", "1:40", "given twice"),
        ("layer { batch_norm_param { eps { } } }", "1:32", "batch_norm_param"),
        (
            "layer { batch_norm_param { odd { } # c\n odd: 1\n\n eps:\n 'x' } }",
            "5:2",
            "batch_norm_param",
        ),
    ],
)
def test_a_wrong_value_is_located(text: str, place: str, message: str) -> None:
    net = net_of(text)
    with pytest.raises(PrototxtError) as caught:
        net.parsed(net.layers[0], "batch_norm_param", caffe_pb2.BatchNormParameter)
    assert str(caught.value).startswith(f"net.prototxt:{place}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("layer: 1", "1:8", "'layer' takes a message in braces"),
        ("layer { name: 'a' name: 'b' }", "1:19", "'name' is given twice"),
        ("layer { type: 'a' type: 'b' }", "1:19", "'type' is given twice"),
        ("layer { bottom: data }", "1:17", "'bottom' takes a string in quotes"),
        ("layer { top { } }", "1:13", "'top' takes a string in quotes"),
        ("layer { type: Convolution }", "1:15", "'type' takes a string in quotes"),
        ("layer { loss_weight: x }", "1:22", "'loss_weight' takes a number"),
        ("layer { loss_weight { } }", "1:21", "'loss_weight' takes a number"),
        ("layer { phase: PLAY }", "1:16", "found 'PLAY'; 'phase' is TRAIN or TEST"),
        ("layer { param { name: 1 } }", "1:23", "'name' takes a string in quotes"),
        ("layer { }\nstate { level: 'x' }", "2:16", "in 'state'"),
        ("layer { } input: data", "1:18", "'input' takes a string in quotes"),
        ("layer { } input_shape { dim: x }", "1:30", "in 'input_shape'"),
    ],
)
def test_a_malformed_field_that_every_layer_has_is_located(
    text: str, place: str, message: str
) -> None:
    with pytest.raises(PrototxtError) as caught:
        net_of(text)
    assert str(caught.value).startswith(f"net.prototxt:{place}: ")
    assert message in str(caught.value)


@pytest.mark.parametrize("value", ["x", "1.5", "'1'", "{ }", "09", "2147483648", "9" * 5000])
def test_an_input_dim_that_is_no_number_is_located(value: str) -> None:
    with pytest.raises(PrototxtError) as caught:
        net_of(f"layer {{ }}\ninput_dim: 1\ninput_dim: {value}")
    assert str(caught.value).startswith("net.prototxt:3:12: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("layer { param: 'w' }", "'param' takes a message in braces"),
        ("layers { param { name: 'w' } }", "'param' takes a string in quotes"),
        ("layers { type { type: BN } }", "'type' takes a word"),
    ],
)
def test_a_field_of_the_wrong_kind_is_refused(text: str, message: str) -> None:
    with pytest.raises(PrototxtError, match=message):
        net_of(text)


def test_a_layer_before_v1_has_no_params() -> None:
    assert layer_of("layer { param { name: 'w' } param: 'x' }", "layers").params == ()


def test_an_enums_number_of_thousands_of_digits_is_an_unknown_one() -> None:
    net = net_of(f"layer {{ convolution_param {{ engine: {'9' * 5000} }} }}")
    parsed = net.parsed(net.layers[0], "convolution_param", caffe_pb2.ConvolutionParameter)
    assert len(parsed.unknown) == 1


def test_a_rule_with_a_wrong_value_is_located() -> None:
    net = net_of("layer {\n include { min_level: x } }")
    with pytest.raises(PrototxtError, match=r"net\.prototxt:2:23: in 'include'"):
        selected(net, TEST)


# ---- Texts of other kinds ----


def test_a_solver_is_named_with_the_net_that_it_trains() -> None:
    with pytest.raises(InputError, match=r"net\.prototxt: this is a solver prototxt.*: 'a\.prot"):
        net_of("base_lr: 0.1 net: 'a.prototxt'")


def test_a_solver_with_the_net_inside_says_where_it_is() -> None:
    with pytest.raises(InputError, match=r"net\.prototxt:2: .* solver .*'net_param'; give what"):
        net_of("base_lr: 0.1\nnet_param { layer { } }")


@pytest.mark.parametrize(
    ("text", "found"), [("", "no field at all"), ("item { id: 1 } b: 2", r"found b, item")]
)
def test_a_text_without_layers_is_no_net(text: str, found: str) -> None:
    with pytest.raises(InputError, match=f"not a net: it has no 'layer' field .*{found}"):
        net_of(text)


def test_the_message_on_a_text_of_another_kind_is_one_short_line() -> None:
    for text in (f"{'x' * 1_000_000}: 1", "[\na]: 1", "base_lr: 1 net: 'a'\n'b'"):
        with pytest.raises(InputError) as caught:
            net_of(text)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 300


def test_a_layer_for_a_message_is_named_with_its_line() -> None:
    net = net_of(b'\n\nlayer { name: "conv\xb5\\n" }')
    assert net.where(net.layers[0]) == "layer 'conv\\xb5\\n' (line 3)"
