"""Changes to an exported graph that leave its function as it is and let a runtime use its fast kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

ELEMENTWISE = ("Relu", "LeakyRelu", "QuantizeLinear", "Clip", "DequantizeLinear")


def simplify(model: Any, runtime: str = "onnxruntime") -> None:
    """All that help a runtime, in place.

    Args:
        model: ONNX, as the exporter wrote it.
        runtime: a key of `REWRITES`.
    """
    for rewrite in REWRITES[runtime]:
        rewrite(model)
    del model.graph.value_info[:]  # types that no longer hold; runtimes infer them


class Wiring:
    """The producer and the consumers of each tensor of the current graph, and the values of stored tensors.

    Attributes:
        made_by: name of a tensor -> the node that makes it.
        readers: name of a tensor -> the nodes that read it.
        values: name of a stored tensor -> its values.
    """

    def __init__(self, graph: Any) -> None:
        import onnx

        self.made_by = {name: node for node in graph.node for name in node.output}
        self.readers: dict[str, list[Any]] = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}

    def above(self, node: Any) -> Iterator[Any]:
        """The chain of elementwise nodes that makes the first input of `node`, upwards, and the node that it starts at.

        It ends where something else reads a value between.
        """
        while True:
            maker = self.made_by.get(node.input[0])
            if maker is None or len(self.readers[node.input[0]]) > 1:
                return
            yield maker
            if maker.op_type not in ELEMENTWISE:
                return
            node = maker


def fuse_relu(model: Any) -> None:
    """Fold a ReLU into the quantizers that alone read it, as the lower limit of their codes.

    Rounding keeps order, so both give the same. A runtime then sees a convolution between integers, and unsigned codes
    from 0, of which products of pairs fit 16 bits.
    """
    graph, wiring = model.graph, Wiring(model.graph)

    def store(name: str, number: int) -> str:
        return _store(graph, name, np.array(number, np.uint8))

    for quantize in [node for node in graph.node if node.op_type == "QuantizeLinear"]:
        relu = wiring.made_by.get(quantize.input[0])
        if relu is None or relu.op_type != "Relu" or len(wiring.readers[relu.output[0]]) > 1:
            continue
        (clip,) = wiring.readers[quantize.output[0]]
        (dequantize,) = wiring.readers[clip.output[0]]
        while dequantize.op_type == "DepthToSpace":
            (dequantize,) = wiring.readers[dequantize.output[0]]
        zero, high = int(wiring.values[quantize.input[2]]), int(wiring.values[clip.input[2]])
        quantize.input[0] = relu.input[0]
        quantize.input[2] = dequantize.input[2] = store(f"{quantize.name}_zero", 0)
        clip.input[1] = store(f"{quantize.name}_low", 0)
        clip.input[2] = store(f"{quantize.name}_high", high - zero)
        graph.node.remove(relu)


def own_weights(model: Any) -> None:
    """Give each use of a weight its own integers and zero points.

    onnxruntime turns int8 weights into uint8 one use at a time, and fails on a tensor that it has turned already:
    weights that CARN-M uses several times, zeros that the exporter stored once.
    """
    import onnx

    graph = model.graph
    values = {tensor.name: tensor for tensor in graph.initializer}
    stored = [node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in values]
    weights = {node.output[0]: node for node in stored}
    for reader in [node for node in graph.node if node.op_type == "Conv" and node.input[1] in weights]:
        own = onnx.NodeProto()
        own.CopyFrom(weights[reader.input[1]])
        own.name = own.output[0] = reader.input[1] = f"{reader.name}_weight"
        for place, part in ((0, "codes"), (2, "zeros")):
            tensor = onnx.TensorProto()
            tensor.CopyFrom(values[own.input[place]])
            tensor.name = own.input[place] = f"{own.name}_{part}"
            graph.initializer.append(tensor)
        graph.node.insert(list(graph.node).index(reader), own)
    used = {name for node in graph.node for name in node.input}
    for node in [node for node in stored if node.output[0] not in used]:
        graph.node.remove(node)
    _drop_unused(graph)


def quantize_before_shuffle(model: Any) -> None:
    """Round before the values of a `DepthToSpace` are moved, not after: it is the same, and bytes are moved.

    A convolution in front of it is then one between integers.
    """
    wiring = Wiring(model.graph)
    for shuffle in [node for node in model.graph.node if node.op_type == "DepthToSpace"]:
        quantize, clip, dequantize = chain = _quantizer_after(shuffle, wiring)
        if dequantize is None:
            continue
        source, shuffled, codes = shuffle.input[0], shuffle.output[0], clip.output[0]
        quantize.input[0], shuffle.input[0], dequantize.input[0] = source, codes, shuffled
        place = list(model.graph.node).index(shuffle)
        model.graph.node.remove(shuffle)
        for node in chain:
            model.graph.node.remove(node)
        for node in reversed((quantize, clip, shuffle, dequantize)):
            model.graph.node.insert(place, node)


def _quantizer_after(node: Any, wiring: Wiring) -> tuple[Any, Any, Any]:
    """`QuantizeLinear`, `Clip` and `DequantizeLinear` that alone read what `node` makes, or three times None."""
    found = []
    for kind in ("QuantizeLinear", "Clip", "DequantizeLinear"):
        following = wiring.readers.get(node.output[0], [])
        if len(following) != 1 or following[0].op_type != kind:
            return None, None, None
        (node,) = following
        found.append(node)
    return found[0], found[1], found[2]


def shuffle_channels_last(model: Any) -> None:
    """Write each `DepthToSpace` between two convolutions as a move of whole rows of channels.

    The channels of the convolution before it are stored in another order, so that with channels last those of one SR
    pixel lie side by side. The kernel for `DepthToSpace` moves one value at a time.
    """
    graph, wiring = model.graph, Wiring(model.graph)
    for shuffle in [node for node in graph.node if node.op_type == "DepthToSpace"]:
        conv = ([None, *wiring.above(shuffle)])[-1]
        if conv is None or conv.op_type != "Conv" or not _feeds_conv(shuffle, wiring):
            continue
        factor = next(attribute.i for attribute in shuffle.attribute if attribute.name == "blocksize")
        if _attribute(conv, "group", 1) == 1 and _reorder_outputs(graph, conv, factor**2, wiring):
            _replace_shuffle(graph, shuffle, factor)
    _drop_unused(graph)


def _feeds_conv(node: Any, wiring: Wiring) -> bool:
    following = wiring.readers.get(node.output[0], [])
    while len(following) == 1 and following[0].op_type in ELEMENTWISE:
        following = wiring.readers.get(following[0].output[0], [])
    return bool(following) and all(reader.op_type == "Conv" for reader in following)


def _attribute(node: Any, name: str, default: Any) -> Any:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), default)


def _reorder_outputs(graph: Any, conv: Any, parts: int, wiring: Wiring) -> bool:
    """Let output channel c * parts + p of a convolution be p * C + c. False where its weight is not stored as such."""
    weight = wiring.made_by.get(conv.input[1])
    stored = [(conv, 1)] if weight is None else [(weight, 0), (weight, 1), (weight, 2)]
    stored += [(conv, 2)] if len(conv.input) > 2 else []
    if any(node.input[place] not in wiring.values for node, place in stored):
        return False
    for node, place in stored:
        values = wiring.values[node.input[place]]
        order = np.arange(len(values)).reshape(-1, parts).T.ravel()
        node.input[place] = _store(graph, f"{conv.name}_{place}_{node.op_type}_by_place", values[order])
    return True


def _replace_shuffle(graph: Any, shuffle: Any, factor: int) -> None:
    """(B, factor^2 C, H, W), its channels by place, to (B, C, factor H, factor W)."""
    from onnx import helper

    name = shuffle.name or shuffle.output[0]
    by_place = _store(graph, f"{name}_by_place", np.array([0, 0, 0, factor, -1]))
    factors = _store(graph, f"{name}_factors", np.array([1, factor, factor]))
    channels = _store(graph, f"{name}_channels", np.array([-1]))

    def node(kind: str, inputs: list[str], output: str, **attributes: Any) -> Any:
        return helper.make_node(kind, inputs, [output], f"{name}_{output.rpartition('_')[2]}", **attributes)

    last, rows, moved, sizes, larger, shape, joined = (
        f"{name}_{part}" for part in ("last", "rows", "moved", "sizes", "larger", "shape", "joined")
    )
    made = [
        node("Transpose", [shuffle.input[0]], last, perm=[0, 2, 3, 1]),
        node("Reshape", [last, by_place], rows),  # (B, H, W, factor, factor C)
        node("Transpose", [rows], moved, perm=[0, 1, 3, 2, 4]),
        node("Shape", [last], sizes, start=0, end=3),
        node("Mul", [sizes, factors], larger),
        node("Concat", [larger, channels], shape, axis=0),
        node("Reshape", [moved, shape], joined),  # (B, factor H, factor W, C)
        node("Transpose", [joined], shuffle.output[0], perm=[0, 3, 1, 2]),
    ]
    place = list(graph.node).index(shuffle)
    graph.node.remove(shuffle)
    for each in reversed(made):
        graph.node.insert(place, each)


def _store(graph: Any, name: str, values: Any) -> str:
    import onnx

    graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(values, order="C"), name))
    return name


def _drop_unused(graph: Any) -> None:
    used = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)


def _drop_unread(graph: Any) -> None:
    """Remove each `DequantizeLinear` that nothing reads, and what it alone read."""
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    for node in [node for node in graph.node if node.op_type == "DequantizeLinear" and node.output[0] not in used]:
        graph.node.remove(node)
    _drop_unused(graph)


def drop_idle_clips(model: Any) -> None:
    """Remove limits of 0 and 255, which every byte satisfies."""
    graph, wiring = model.graph, Wiring(model.graph)
    for clip in [node for node in graph.node if node.op_type == "Clip"]:
        limits = [wiring.values[name] for name in clip.input[1:] if name in wiring.values]
        if [(str(limit.dtype), int(limit)) for limit in limits] != [("uint8", 0), ("uint8", 255)]:
            continue
        for reader in wiring.readers[clip.output[0]]:
            reader.input[0] = clip.input[0]
        graph.node.remove(clip)
    _drop_unused(graph)


def clip_before_rounding(model: Any) -> None:
    """Put limits of codes in front of the rounding, as limits of the values.

    Rounding keeps order, so both give the same. OpenVINO fuses a limit in FP32 into the convolution before it. It does
    not recognize a quantized feature map whose codes are limited.
    """
    from onnx import helper

    graph, wiring = model.graph, Wiring(model.graph)
    for clip in [node for node in graph.node if node.op_type == "Clip"]:
        quantize = wiring.made_by.get(clip.input[0])
        if quantize is None or quantize.op_type != "QuantizeLinear":
            continue
        step, zero = (wiring.values[name] for name in quantize.input[1:3])
        codes = [int(wiring.values[name]) - int(zero) for name in clip.input[1:3]]
        limits = [
            _store(graph, f"{quantize.name}_{end}", np.array(step * code, np.float32))
            for end, code in zip(("lowest", "highest"), codes, strict=True)
        ]
        clipped = f"{quantize.name}_clipped"
        limit = helper.make_node("Clip", [quantize.input[0], *limits], [clipped], clipped)
        graph.node.insert(list(graph.node).index(quantize), limit)
        quantize.input[0] = clipped
        for reader in wiring.readers[clip.output[0]]:
            reader.input[0] = clip.input[0]
        graph.node.remove(clip)
    _drop_unused(graph)


def sum_integers(model: Any) -> None:
    """Let a convolution between integers whose output is not quantized give 32-bit sums, scaled after it.

    A runtime would turn its inputs back into FP32: it has an integer kernel only where what follows is quantized too.
    Such are EDSR's head and tail with `outer_bits`, and convolutions in front of a residual addition or a leaky ReLU.
    """
    from onnx import helper

    graph, wiring = model.graph, Wiring(model.graph)
    for conv in [node for node in graph.node if node.op_type == "Conv" and not _is_quantized(node, wiring)]:
        makers = [wiring.made_by.get(name) for name in conv.input[:2]]
        dequantized = [node for node in makers if node is not None and node.op_type == "DequantizeLinear"]
        if len(dequantized) < 2:
            continue
        x, weight = dequantized
        codes, steps = (wiring.values[weight.input[place]] for place in (0, 1))
        scale = wiring.values[x.input[1]] * steps.reshape(1, -1, 1, 1)
        # unsigned, with 128 for 0: products of two unsigned bytes never overflow, on no CPU
        unsigned = _store(graph, f"{conv.name}_unsigned", (codes.astype(np.int16) + 128).astype(np.uint8))
        names = [unsigned, _store(graph, f"{conv.name}_zero", np.array(128, np.uint8))]
        parts = [f"{conv.name}_{part}" for part in ("sums", "float", "scaled")]
        made = [
            helper.make_node("ConvInteger", [x.input[0], names[0], x.input[2], names[1]], parts[:1], parts[0]),
            helper.make_node("Cast", parts[:1], parts[1:2], parts[1], to=1),
            helper.make_node("Mul", [parts[1], _store(graph, f"{conv.name}_scale", scale)], parts[2:], parts[2]),
        ]
        made[0].attribute.extend(conv.attribute)
        if len(conv.input) > 2:
            bias = _store(graph, f"{conv.name}_bias", wiring.values[conv.input[2]].reshape(1, -1, 1, 1))
            made.append(helper.make_node("Add", [parts[2], bias], [conv.output[0]], f"{conv.name}_biased"))
        else:
            made[-1].output[0] = conv.output[0]
        place = list(graph.node).index(conv)
        graph.node.remove(conv)
        for node in reversed(made):
            graph.node.insert(place, node)
    _drop_unread(graph)


def _is_quantized(node: Any, wiring: Wiring) -> bool:
    """Whether quantizers read the output of a convolution, and nothing else does."""
    following = wiring.readers.get(node.output[0], [])
    return bool(following) and all(reader.op_type == "QuantizeLinear" for reader in following)


def keep_float_weights(model: Any) -> None:
    """Give each layer that reads a quantized feature map with FP32 weights a `DequantizeLinear` with steps by channel.

    All its steps are equal, so it is the same. onnxruntime rounds the weights of such a layer to int8 if there is one
    step for the whole map, a convolution or a linear layer reads it, and a quantizer follows.
    """
    from onnx import helper

    graph, wiring = model.graph, Wiring(model.graph)
    for layer in [node for node in graph.node if node.op_type in CHANNELS]:
        dequantize = wiring.made_by.get(layer.input[0])
        if dequantize is None or dequantize.op_type != "DequantizeLinear" or layer.input[1] not in wiring.values:
            continue
        channels, axis = CHANNELS[layer.op_type](layer, wiring.values[layer.input[1]].shape)
        name = f"{layer.name}_input"
        steps, zeros = (
            _store(graph, f"{name}_{part}", np.full(channels, wiring.values[stored]))
            for part, stored in zip(("steps", "zeros"), dequantize.input[1:3], strict=True)
        )
        own = helper.make_node("DequantizeLinear", [dequantize.input[0], steps, zeros], [name], name, axis=axis)
        layer.input[0] = name
        graph.node.insert(list(graph.node).index(layer), own)
    _drop_unread(graph)


# operator of a layer -> the channels of its input and their axis, from the node and the shape of its weight
CHANNELS: dict[str, Callable[[Any, tuple[int, ...]], tuple[int, int]]] = {
    "Conv": lambda node, shape: (shape[1] * _attribute(node, "group", 1), 1),
    "ConvTranspose": lambda node, shape: (shape[0], 1),
    "Gemm": lambda node, shape: (shape[1 if _attribute(node, "transB", 0) else 0], 1),
    "MatMul": lambda node, shape: (shape[-2:][0], -1),  # of one or more matrices, or a vector
}


# OpenVINO fuses ReLU, additions and PixelShuffle on its own
REWRITES: dict[str, tuple[Callable[[Any], None], ...]] = {
    "onnxruntime": (
        quantize_before_shuffle,
        fuse_relu,
        own_weights,
        shuffle_channels_last,
        sum_integers,
        drop_idle_clips,
        keep_float_weights,
    ),
    # onnxruntime reads this file too
    "openvino": (own_weights, drop_idle_clips, clip_before_rounding, keep_float_weights),
}
