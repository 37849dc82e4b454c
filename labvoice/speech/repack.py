"""Converts weights from packages into the files that the models load.

:mod:`labvoice.speech.weights` runs `python -m labvoice.speech.repack` once per weight, in a
separate process.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

_MAX_IR_VERSION = 10
_KOKORO_PARTS = 4


def moonshine_base(source: Path, target: Path) -> None:
    """Rebuilds the base recogniser with weights that stay 8-bit while it runs.

    The `.ort` files dequantise every weight matrix again at each token. Back in ONNX form the
    dequantised constants can be folded and quantised dynamically, which multiplies in 8 bits.
    """
    import onnx
    import onnxruntime as ort
    from onnxruntime.quantization import QuantType, quantize_dynamic

    for model, types in (
        ("encoder_model", ["MatMul"]),
        ("decoder_model_merged", ["MatMul", "Gather"]),
    ):
        with tempfile.TemporaryDirectory() as scratch:
            plain, folded = f"{scratch}/plain.onnx", f"{scratch}/folded.onnx"
            onnx.save(_OrtFile(source / f"{model}.ort").to_onnx(), plain)
            options = ort.SessionOptions()
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
            options.optimized_model_filepath = folded
            options.log_severity_level = 3
            ort.InferenceSession(plain, options, providers=["CPUExecutionProvider"])
            quantize_dynamic(
                folded,
                target / f"{model}.onnx",
                weight_type=QuantType.QInt8,
                per_channel=True,
                op_types_to_quantize=types,
                extra_options={"EnableSubgraph": True, "MatMulConstBOnly": True},
            )
    shutil.copy(source / "tokenizer.bin", target)


def piper_joe(source: Path, target: Path) -> None:
    """Splits the voice into a frontend, which sees the whole text, and a streamable decoder."""
    from streaming_vits import graph

    config = json.loads((source / "voice.onnx.json").read_bytes())
    split = graph.split(
        source / "voice.onnx", target, sample_rate=config["audio"]["sample_rate"], verbose=False
    )
    (target / split.frontend).rename(target / "frontend.onnx")
    (target / split.decoder).rename(target / "decoder.onnx")
    (target / "voice.split.json").unlink()
    voice = {
        "sample_rate": split.sample_rate,
        "hop": split.hop,
        "scales": [config["inference"][key] for key in ("noise_scale", "length_scale", "noise_w")],
        "phoneme_ids": {sign: ids[0] for sign, ids in config["phoneme_id_map"].items()},
    }
    (target / "voice.json").write_text(json.dumps(voice), encoding="utf-8")


def kokoro(source: Path, target: Path) -> None:
    """Joins the model's parts."""
    with (target / "kokoro.onnx").open("wb") as joined:
        for number in range(1, _KOKORO_PARTS + 1):
            joined.write((source / f"part{number}.bin").read_bytes())
    for name in ("vocab.json", "voices_ja.npz"):
        shutil.copy(source / name, target)


class _OrtFile:
    """Reads ONNX Runtime's flatbuffer format with the accessors in its wheel."""

    def __init__(self, path: Path) -> None:
        # The generated accessors import each other under the name that this import registers.
        import onnxruntime.tools.ort_format_model  # noqa: F401
        from onnxruntime.tools.ort_format_model.ort_flatbuffers_py.fbs import (
            AttributeType,
            InferenceSession,
            TensorTypeAndShape,
        )

        self._types = AttributeType.AttributeType
        self._shape_class = TensorTypeAndShape.TensorTypeAndShape
        root = InferenceSession.InferenceSession.GetRootAs(bytearray(path.read_bytes()), 0)
        self._model = root.Model()

    def to_onnx(self) -> Any:
        """Returns the model as an `onnx.ModelProto`."""
        from onnx import helper

        model = self._model
        opsets = [
            helper.make_opsetid(_text(opset.Domain()), opset.Version())
            for opset in _each(model.OpsetImport, model.OpsetImportLength())
        ]
        made = helper.make_model(self._graph(model.Graph(), "model"), opset_imports=opsets)
        made.ir_version = min(_MAX_IR_VERSION, model.IrVersion() or _MAX_IR_VERSION)
        return made

    def _graph(self, graph: Any, name: str) -> Any:
        from onnx import helper

        values = {_text(v.Name()): v for v in _each(graph.NodeArgs, graph.NodeArgsLength())}
        constants = [
            self._tensor(tensor) for tensor in _each(graph.Initializers, graph.InitializersLength())
        ]
        constant_names = {tensor.name for tensor in constants}
        inputs = [_text(name) for name in _each(graph.Inputs, graph.InputsLength())]
        outputs = [_text(name) for name in _each(graph.Outputs, graph.OutputsLength())]
        return helper.make_graph(
            self._ordered_nodes(graph),
            name,
            [self._value(values[i]) for i in inputs if i not in constant_names],
            [self._value(values[o]) for o in outputs],
            constants,
        )

    def _ordered_nodes(self, graph: Any) -> list[Any]:
        """Returns the nodes in topological order: ONNX requires it, ORT does not."""
        nodes, reads = [], []
        for stored in _each(graph.Nodes, graph.NodesLength()):
            node = self._node(stored)
            nodes.append(node)
            implicit = _each(stored.ImplicitInputs, stored.ImplicitInputsLength())
            reads.append([*node.input, *map(_text, implicit)])
        maker = {out: index for index, node in enumerate(nodes) for out in node.output if out}
        needs = {
            index: [maker[name] for name in names if name in maker]
            for index, names in enumerate(reads)
        }
        return [nodes[index] for index in TopologicalSorter(needs).static_order()]

    def _node(self, stored: Any) -> Any:
        from onnx import NodeProto

        node = NodeProto(
            name=_text(stored.Name()),
            op_type=_text(stored.OpType()),
            domain=_text(stored.Domain()),
        )
        node.input.extend(map(_text, _each(stored.Inputs, stored.InputsLength())))
        node.output.extend(map(_text, _each(stored.Outputs, stored.OutputsLength())))
        node.attribute.extend(
            self._attribute(a) for a in _each(stored.Attributes, stored.AttributesLength())
        )
        return node

    def _attribute(self, stored: Any) -> Any:
        from onnx import AttributeProto

        kind, types = stored.Type(), self._types
        made = AttributeProto(name=_text(stored.Name()), type=kind)
        if kind == types.FLOAT:
            made.f = stored.F()
        elif kind == types.INT:
            made.i = stored.I()
        elif kind == types.STRING:
            made.s = stored.S() or b""
        elif kind == types.TENSOR:
            made.t.CopyFrom(self._tensor(stored.T()))
        elif kind == types.GRAPH:
            made.g.CopyFrom(self._graph(stored.G(), made.name))
        elif kind == types.FLOATS:
            made.floats.extend(_each(stored.Floats, stored.FloatsLength()))
        elif kind == types.INTS:
            made.ints.extend(_each(stored.Ints, stored.IntsLength()))
        elif kind == types.STRINGS:
            made.strings.extend(_each(stored.Strings, stored.StringsLength()))
        else:
            raise ValueError(f"attribute {made.name} has the unknown type {kind}")
        return made

    def _tensor(self, stored: Any) -> Any:
        from onnx import TensorProto

        made = TensorProto(name=_text(stored.Name()), data_type=stored.DataType())
        made.dims.extend(_each(stored.Dims, stored.DimsLength()))
        if stored.StringDataLength():
            made.string_data.extend(_each(stored.StringData, stored.StringDataLength()))
        else:
            made.raw_data = stored.RawDataAsNumpy().tobytes() if stored.RawDataLength() else b""
        return made

    def _value(self, stored: Any) -> Any:
        from onnx import helper

        kind = stored.Type()
        if kind is None:
            return helper.make_empty_tensor_value_info(_text(stored.Name()))
        table = kind.Value()
        typed = self._shape_class()
        typed.Init(table.Bytes, table.Pos)
        shape = typed.Shape()
        sizes: list[int | str | None] | None = None
        if shape is not None:
            sizes = [self._size(d.Value()) for d in _each(shape.Dim, shape.DimLength())]
        return helper.make_tensor_value_info(_text(stored.Name()), typed.ElemType(), sizes)

    @staticmethod
    def _size(value: Any) -> int | str | None:
        """Returns a dimension: a number, a variable's name, or unknown."""
        number, named = 1, 2  # DimensionValueType in onnxruntime's ort.fbs
        if value is not None and value.DimType() == number:
            return int(value.DimValue())
        if value is not None and value.DimType() == named:
            return _text(value.DimParam())
        return None


def _text(raw: bytes | None) -> str:
    return raw.decode() if raw is not None else ""


def _each(get: Callable[[int], Any], length: int) -> Iterable[Any]:
    return (get(index) for index in range(length))


_REPACKS: dict[str, Callable[[Path, Path], None]] = {
    "moonshine-base": moonshine_base,
    "piper-joe": piper_joe,
    "kokoro": kokoro,
}

if __name__ == "__main__":
    _REPACKS[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
