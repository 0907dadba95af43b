"""Graph passes: a dense ONNX model in, a model of ``ai.bscompile`` ops out.

One pass per file; ``pipeline.py`` holds their order as data. See docs/writing_a_pass.md.
"""
