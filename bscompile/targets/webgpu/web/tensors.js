/** Typed arrays: what each dtype is in JavaScript, half precision, and weights.safetensors. */
import { check } from "./errors.js";
import { parseJson } from "./files.js";

/** dtype by numpy's name -> bytes of an element, typed array that holds it as stored. */
export const DTYPES = {
  float32: { bytes: 4, array: Float32Array },
  int32: { bytes: 4, array: Int32Array },
  uint32: { bytes: 4, array: Uint32Array },
  float16: { bytes: 2, array: Uint16Array }, // its bits: not every engine has Float16Array
  float64: { bytes: 8, array: Float64Array },
  int8: { bytes: 1, array: Int8Array },
  uint8: { bytes: 1, array: Uint8Array },
  int16: { bytes: 2, array: Int16Array },
  uint16: { bytes: 2, array: Uint16Array },
  int64: { bytes: 8, array: BigInt64Array },
  uint64: { bytes: 8, array: BigUint64Array },
  bool: { bytes: 1, array: Uint8Array },
};

const SAFETENSORS = {
  F16: "float16", F32: "float32", F64: "float64", BOOL: "bool",
  I8: "int8", I16: "int16", I32: "int32", I64: "int64",
  U8: "uint8", U16: "uint16", U32: "uint32", U64: "uint64",
};

/** Number of elements of a shape. */
export const count = (shape) => shape.reduce((product, length) => product * length, 1);

/**
 * The tensors of a safetensors file; nothing is copied where alignment allows it.
 *
 * @param {string} name For messages.
 * @param {ArrayBuffer} buffer The file.
 * @returns {Map<string, {dtype: string, shape: number[], data: TypedArray}>}
 */
export function readSafetensors(name, buffer) {
  check(buffer.byteLength >= 8, `${name}: too short for a header`);
  const length = Number(new DataView(buffer).getBigUint64(0, true));
  check(length <= buffer.byteLength - 8, `${name}: a header of ${length} bytes does not fit the file`);
  const header = parseJson(name, buffer.slice(8, 8 + length));
  const tensors = new Map();
  for (const [key, { dtype, shape, data_offsets: span }] of Object.entries(header)) {
    if (key === "__metadata__") continue;
    const kind = SAFETENSORS[dtype];
    check(kind, `${name}: ${key} has the unknown dtype ${dtype}`);
    const [begin, end] = span.map((offset) => 8 + length + offset);
    const fits = begin <= end && end <= buffer.byteLength;
    check(fits && end - begin === count(shape) * DTYPES[kind].bytes, `${name}: ${key} does not fit`);
    const aligned = begin % DTYPES[kind].bytes === 0;
    const data = aligned
      ? new DTYPES[kind].array(buffer, begin, count(shape))
      : new DTYPES[kind].array(buffer.slice(begin, end));
    tensors.set(key, { dtype: kind, shape, data });
  }
  return tensors;
}

/**
 * The same numbers in another dtype.
 *
 * @param {TypedArray|number[]} data float16 as bits.
 * @param {string} from
 * @param {string} to
 * @returns {TypedArray}
 */
export function convert(data, from, to) {
  const Wanted = DTYPES[to].array;
  if (from === to) return data instanceof Wanted ? data : Wanted.from(data);
  if (from === "float16") return convert(halvesToFloats(data), "float32", to);
  if (to === "float16") return floatsToHalves(convert(data, from, "float32"));
  const big = to === "int64" || to === "uint64";
  return Wanted.from(data, big ? (value) => BigInt(Number(value)) : Number);
}

/** Bits of float16 -> Float32Array. */
export function halvesToFloats(bits) {
  return Float32Array.from(bits, (half) => {
    const sign = half & 0x8000 ? -1 : 1;
    const exponent = (half >> 10) & 0x1f;
    const fraction = half & 0x3ff;
    if (exponent === 31) return fraction ? NaN : sign * Infinity;
    if (exponent === 0) return sign * fraction * 2 ** -24;
    return sign * (1024 + fraction) * 2 ** (exponent - 25);
  });
}

/** Float32Array -> bits of float16, rounded to the nearest, ties to even. */
export function floatsToHalves(floats) {
  const word = new Float32Array(1);
  const bits = new Uint32Array(word.buffer);
  return Uint16Array.from(floats, (value) => {
    word[0] = value;
    const sign = (bits[0] >>> 16) & 0x8000;
    const size = Math.abs(word[0]);
    if (Number.isNaN(size)) return 0x7e00;
    if (size >= 65520) return sign | 0x7c00; // halfway to the next power of two and beyond
    const exponent = Math.max((bits[0] >>> 23) & 0xff, 113) - 127; // 2^-14 is the least normal one
    const units = roundToEven(size * 2 ** (10 - exponent)); // exact: a power of two
    return sign | (units + ((exponent + 14) << 10)); // 1024 units carry into the exponent
  });
}

function roundToEven(value) {
  const below = Math.floor(value);
  const rest = value - below;
  return below + (rest > 0.5 || (rest === 0.5 && below % 2) ? 1 : 0);
}
