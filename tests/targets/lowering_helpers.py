"""Models as ONNX text, through lowering and code generation, against onnxruntime."""

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime

from bscompile import targets
from bscompile.targets.lowering import lower
from tests.tolerance import assert_close


def model(text, opset=20):
    """A checked model from ONNX text without its header."""
    header = f'<ir_version: 10, opset_import: ["": {opset}]>\n'
    proto = onnx.parser.parse_model(header + text)
    onnx.checker.check_model(proto)
    return proto


def context(threads=2):
    return targets.resolve("cpu", threads)


class Compiled:
    """A model compiled for this machine, called with numpy arrays by input name."""

    def __init__(self, proto, where=None):
        import tvm
        from tvm import relax

        from bscompile.targets.cpu.build import compile_module

        self.where = where or context()
        graph = proto if isinstance(proto, ir.Model) else ir.from_proto(proto)
        self.lowered = lower(graph, self.where)
        self.executable = compile_module(self.lowered.module, self.where)
        self.vm = relax.VirtualMachine(self.executable, tvm.cpu())
        self.tensor = tvm.runtime.tensor
        self.params = [self.tensor(array) for _, array in self.lowered.params]

    def __call__(self, feeds):
        arguments = [self.tensor(np.ascontiguousarray(feeds[s.name])) for s in self.lowered.inputs]
        result = self.vm["main"](*arguments, *self.params)
        results = [result] if hasattr(result, "numpy") else list(result)
        return [r.numpy() for r in results]


def assert_equal_to_onnxruntime(proto, *feeds, k=64, compiled=None):
    """Compile once, compare every output for each set of inputs."""
    compiled = compiled or Compiled(proto)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    for one in feeds:
        for spec, got, want in zip(
            compiled.lowered.outputs, compiled(one), session.run(None, one), strict=True
        ):
            assert got.dtype == want.dtype, spec
            if want.dtype.kind == "f":
                assert_close(got, want, want.dtype, k, what=spec.name)
            else:
                np.testing.assert_array_equal(got, want)
    return compiled
