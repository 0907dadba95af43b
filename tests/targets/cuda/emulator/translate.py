"""Generated CUDA source -> C++ for the emulator: inline assembly becomes calls, kernels a table."""

from __future__ import annotations

import re

_ASM = re.compile(r"\b(?:asm|__asm__)\s*(?:volatile|__volatile__)?\s*\(")
_KERNEL = re.compile(
    r'extern "C" __global__ void (?:__launch_bounds__\([^)]*\) )?(\w+)\(([^)]*)\)\s*\{'
)


class UnknownInstructionError(Exception):
    """The emulator has no meaning for an instruction: teach it, or do not generate it."""


def translate(source: str) -> str:
    """C++ that defines ``emulated_<kernel>`` for every kernel of the source.

    Raises:
        UnknownInstructionError: inline assembly that the emulator does not know.
    """
    text = _replace_assembly(source)
    text = re.sub(r"#include <(cuda|mma|cooperative_groups|math_constants)\w*\.h>", "", text)
    text = re.sub(
        r"extern __shared__ (?:__align__\(\d+\) )?(.+?) (\w+)\[\];",
        r"\1* \2 = (\1*)emu::shared_memory();",
        text,
    )
    text = re.sub(r"__shared__ alignas\((\d+)\)", r"alignas(\1) static", text)
    kernels = _KERNEL.findall(text)
    return '#include "hopper.h"\n' + text + "".join(_entry(*one) for one in kernels)


def _entry(name: str, parameters: str) -> str:
    arguments, copies = [], []
    for place, parameter in enumerate(p for p in parameters.split(",") if p.strip()):
        kind = re.sub(r"__restrict__|__grid_constant__|\bconst\b", "", parameter)
        kind = re.sub(r"\w+\s*$", "", kind.strip())
        arguments.append(f"*({kind}*)a[{place}]")
        copies.append(f"new auto(*({kind}*)a[{place}])")
    return (
        f"\nstatic void call_{name}(void** a) {{ {name}({', '.join(arguments)}); }}\n"
        f'extern "C" int emulated_{name}(void** a, const unsigned* g, const unsigned* b, '
        "size_t s, size_t c) {\n"
        f"  return emu::launch(call_{name}, a, "
        "{g[0], g[1], g[2]}, {b[0], b[1], b[2]}, s, c);\n}\n"
        f'extern "C" void** copied_{name}(void** a) {{\n'
        f"  return new void*[]{{{', '.join(copies) or 'nullptr'}}};\n}}\n"
    )


def _replace_assembly(source: str) -> str:
    done, at = [], 0
    while found := _ASM.search(source, at):
        end = _closing(source, found.end() - 1)
        done += [source[at : found.start()], _call(source[found.end() : end])]
        at = re.compile(r"\s*;?").match(source, end + 1).end()  # type: ignore[union-attr]
    return "".join(done) + source[at:]


def _call(body: str) -> str:
    parts = _split(body, ":")
    text = "".join(re.findall(r'"((?:[^"\\]|\\.)*)"', parts[0])).replace("\\n", " ")
    outputs = _operands(parts[1]) if len(parts) > 1 else []
    inputs = _operands(parts[2]) if len(parts) > 2 else []
    return instruction(text.replace("\\t", " "), outputs, inputs)


def instruction(text: str, outputs: list[str], inputs: list[str]) -> str:
    """The C++ statement that means one assembly text with its operands."""
    taken = ", ".join(inputs)
    if "ldmatrix.sync.aligned.m8n8.x4" in text:
        to = ", ".join(f"(uint32_t*)&({o})" for o in outputs)
        return f"emu::ldmatrix_x4({inputs[0]}, {'true' if '.trans' in text else 'false'}, {to});"
    if "mma.sync.aligned.m16n8k16.row.col.f32" in text:
        to = ", ".join(f"&({o})" for o in outputs)
        return f"emu::mma_m16n8k16({'true' if '.bf16.' in text else 'false'}, {to}, {taken});"
    if re.search(r"mma\.sync\.aligned\.m16n8k8\.row\.col\.f32\.tf32\.tf32\.f32", text):
        return f"emu::mma_m16n8k8({', '.join(f'&({o})' for o in outputs)}, {taken});"
    if found := re.search(r"mma\.sync\.aligned\.m16n8k32\.row\.col\.s32\.([us])8\.s8\.s32", text):
        to = ", ".join(f"&({o})" for o in outputs)
        return f"emu::mma_m16n8k32({'true' if found[1] == 's' else 'false'}, {to}, {taken});"
    if found := re.search(r"dp4a\.([us])32\.([us])32", text):
        signs = ", ".join("true" if sign == "s" else "false" for sign in found.groups())
        return f"{outputs[0]} = emu::dp4a({signs}, {taken});"
    if re.search(r"cp\.async\.c[ag]\.shared\.global", text):
        size = re.search(r"\[%\d+\](?:\.\w+)?,\s*\[%\d+\](?:\.\w+)?,\s*(%\d+|\d+)", text)
        given = [inputs[0], f"(const void*)({inputs[1]})"]
        if size and size[1].isdigit():
            given.append(size[1])
            given += inputs[2:]
        else:
            given += inputs[2:]
        return f"emu::copy_async({', '.join(given)});"
    if "cp.async.commit_group" in text:
        return "emu::copy_commit();"
    if found := re.search(r"cp\.async\.wait_group (\d+)", text):
        return f"emu::copy_wait({found[1]});"
    if "cp.async.wait_all" in text:
        return "emu::copy_wait(0);"
    if found := re.search(r"cvt\.rn\.(bf16|f16)x2\.f32", text):
        flag = "true" if found[1] == "bf16" else "false"
        return f"{outputs[0]} = emu::pack({flag}, {taken});"
    return _of_hopper(text, outputs, inputs)


_HOPPER = {
    r"mbarrier\.init\.": "barrier_init({})",
    r"mbarrier\.arrive\.expect_tx\.": "barrier_expect({})",
    r"mbarrier\.arrive\.": "barrier_arrive({})",
    r"cp\.async\.bulk\.tensor\.2d\.shared::cluster\.global": "load_tile({})",
    r"cp\.async\.bulk\.shared::cluster\.global": "load_bytes({})",
    r"barrier\.cluster\.arrive\.release; barrier\.cluster\.wait": "cluster_barrier()",
    r"bar\.sync %0, (?P<count>\d+)": "barrier({}, {count})",
    r"setmaxnreg\.(?:inc|dec)\.sync\.aligned\.u32 (?P<count>\d+)": "set_registers({count})",
    r"wgmma\.commit_group": "wgmma_commit()",
    r"wgmma\.wait_group\.sync\.aligned (?P<count>\d+)": "wgmma_wait({count})",
}
_RESULTS = {
    r"mbarrier\.try_wait\.parity": "barrier_wait({})",
    r"mapa\.shared::cluster": "map_rank({})",
    r"mov\.u32 %0, %+cluster_ctarank": "current->block->rank",
}
_NOTHING = r"fence\.mbarrier_init|wgmma\.fence|prefetch\.tensormap"


def _of_hopper(text: str, outputs: list[str], inputs: list[str]) -> str:
    """As ``instruction``, for what is emulated in hopper.h."""
    taken = ", ".join(f"({one})" for one in inputs)
    found = re.search(
        r"wgmma\.mma_async\.sync\.aligned\.m64n(\d+)k16\.f32\.(bf16|f16)\..*, p, 1, 1, 0, 0;", text
    )
    if found:
        to = ", ".join(f"&({one})" for one in outputs)
        flag = "true" if found[2] == "bf16" else "false"
        return f"{{ float* sums[] = {{{to}}}; emu::wgmma({found[1]}, {flag}, sums, {taken}); }}"
    if text.startswith("cp.async.bulk.tensor"):
        taken = taken.replace(f"({inputs[1]})", f"(const void*)({inputs[1]})", 1)
    if text.startswith("ld.shared::cluster.v4.f32"):
        return f"emu::load_vector({taken}, {', '.join(f'&({one})' for one in outputs)});"
    for pattern, meaning in _RESULTS.items():
        if re.search(pattern, text):
            return f"{outputs[0]} = emu::{meaning.format(taken)};"
    for pattern, meaning in _HOPPER.items():
        if found := re.search(pattern, text):
            return f"emu::{meaning.format(taken, **found.groupdict())};"
    if re.search(_NOTHING, text):
        return ";"
    raise UnknownInstructionError(text)


def _operands(part: str) -> list[str]:
    """The expressions of ``"constraint"(expression), ...``."""
    return [
        item[item.index("(") + 1 : item.rindex(")")]
        for item in _split(part, ",")
        if re.match(r'\s*"[^"]*"\s*\(', item)
    ]


def _closing(text: str, opening: int) -> int:
    """Where the bracket that opens at ``opening`` closes."""
    depth = 0
    for at, char in _outside_strings(text, opening):
        depth += (char in "([{") - (char in ")]}")
        if depth == 0:
            return at
    raise ValueError("a bracket is not closed")


def _split(text: str, separator: str) -> list[str]:
    """Cut at separators that are in no bracket and no string."""
    cuts, depth = [-1], 0
    for at, char in _outside_strings(text, 0):
        depth += (char in "([{") - (char in ")]}")
        if char == separator and depth == 0:
            cuts.append(at)
    ends = [*cuts[1:], len(text)]
    return [text[start + 1 : end] for start, end in zip(cuts, ends, strict=True)]


def _outside_strings(text: str, start: int):
    inside, at = False, start
    while at < len(text):
        char = text[at]
        if inside and char == "\\":
            at += 1
        elif char == '"':
            inside = not inside
        elif not inside:
            yield at, char
        at += 1
