"""One engine with one model, driven line by line: what runs inside a peer's own environment.

Run by benchmarks.peers.engines as: python serve.py ENGINE MODEL INPUTS.npz THREADS. Needs numpy
and the engine, nothing of bscompile unless that is the engine. Each line on stdin is a turn
(«WARM SECONDS»): calls for WARM seconds that do not count, then calls for SECONDS that do; the
answer is one line of JSON with their times. «check PATH» saves the first output.
"""

from __future__ import annotations

import json
import os
import sys
import time

import numpy as np


def onnxruntime(path, inputs, threads):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, inputs)[0]


def deepsparse(path, inputs, threads):
    os.environ["NM_DISABLE_ANALYTICS"] = "True"
    import deepsparse

    arrays = list(inputs.values())
    engine = deepsparse.compile_model(path, batch_size=arrays[0].shape[0], num_cores=threads)
    return lambda: engine.run(arrays)[0]


def openvino(path, inputs, threads, precision="f32"):
    import openvino

    options = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
    }
    compiled = openvino.Core().compile_model(path, "CPU", options)
    request, arrays = compiled.create_infer_request(), list(inputs.values())
    output = compiled.output(0)
    return lambda: request.infer(arrays, share_inputs=True)[output]


def openvino_bf16(path, inputs, threads):
    return openvino(path, inputs, threads, "bf16")


def torch_ffn(path, inputs, threads, arrange=lambda w: w):
    """MatMul, Relu, MatMul with the weights of an .npz beside the model: x -> relu(x A^T) B^T."""
    import torch

    torch.set_num_threads(threads)
    weights = np.load(path.removesuffix(".onnx") + ".npz")
    first, second = (arrange(torch.from_numpy(weights[name])) for name in ("first", "second"))
    x = torch.from_numpy(inputs["x"])
    linear = torch.nn.functional.linear

    def run():
        with torch.no_grad():
            return linear(torch.relu(linear(x, first)), second).numpy()

    return run


def torch_bsr(path, inputs, threads):
    side = int(np.load(path.removesuffix(".onnx") + ".npz")["side"])
    return torch_ffn(path, inputs, threads, lambda w: w.to_sparse_bsr((side, side)))


def bscompile(path, inputs, threads):
    from bscompile import load

    model = load(path, threads=threads)
    return lambda: next(iter(model.run(inputs).values()))


ENGINES = {
    "onnxruntime": onnxruntime,
    "deepsparse": deepsparse,
    "openvino": openvino,
    "openvino-bf16": openvino_bf16,
    "torch": torch_ffn,
    "torch-bsr": torch_bsr,
    "bscompile": bscompile,
}


def turn(call, warm, seconds):
    begun = time.perf_counter()
    call()
    while time.perf_counter() - begun < warm:
        call()
    times = []
    while len(times) < 2 or sum(times) < seconds:
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return times


def main():
    engine, path, arrays, threads = sys.argv[1:]
    # What engines print themselves must not get between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    inputs = dict(np.load(arrays))
    try:
        call = ENGINES[engine](path, inputs, int(threads))
        call()
    except Exception as error:  # told to whoever asked; each engine has errors of its own
        answers.write(json.dumps({"refused": str(error).strip().splitlines()[0][:200]}) + "\n")
        answers.flush()
        return
    answers.write(json.dumps({"ready": True}) + "\n")
    answers.flush()
    for line in sys.stdin:
        command, _, rest = line.strip().partition(" ")
        if command == "check":
            np.save(rest, call())
            answer = {}
        else:
            answer = {"times": turn(call, float(command), float(rest))}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
