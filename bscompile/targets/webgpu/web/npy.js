/** Arrays from numpy's .npy files. */
import { check } from "./errors.js";
import { DTYPES, count } from "./tensors.js";

const KINDS = {
  f2: "float16", f4: "float32", f8: "float64", b1: "bool",
  i1: "int8", i2: "int16", i4: "int32", i8: "int64",
  u1: "uint8", u2: "uint16", u4: "uint32", u8: "uint64",
};

/**
 * Read one array.
 *
 * @param {string} name For messages.
 * @param {ArrayBuffer} buffer The file.
 * @returns {{dtype: string, shape: number[], data: TypedArray}} float16 as bits.
 */
export function readNpy(name, buffer) {
  const bytes = new Uint8Array(buffer);
  const magic = String.fromCharCode(...bytes.subarray(1, 6));
  check(bytes[0] === 0x93 && magic === "NUMPY", `${name}: not a .npy file`);
  const view = new DataView(buffer);
  const [start, length] = bytes[6] === 1 ? [10, view.getUint16(8, true)] : [12, view.getUint32(8, true)];
  const header = new TextDecoder().decode(bytes.subarray(start, start + length));
  const descr = /'descr':\s*'([<>|=])(\w\d)'/.exec(header);
  const shape = /'shape':\s*\(([\d,\s]*)\)/.exec(header);
  const dtype = descr && KINDS[descr[2]];
  check(dtype && shape, `${name}: only plain numbers can be read, its header is ${header.trim()}`);
  check(descr[1] !== ">", `${name}: big-endian numbers cannot be read; save them little-endian`);
  check(
    !/'fortran_order':\s*True/.test(header),
    `${name}: stored by columns; write it with numpy.save(FILE, numpy.ascontiguousarray(x))`,
  );
  const lengths = shape[1].split(",").filter((part) => part.trim()).map(Number);
  const from = start + length;
  const size = count(lengths) * DTYPES[dtype].bytes;
  check(from + size <= buffer.byteLength, `${name}: the file ends too early`);
  return { dtype, shape: lengths, data: new DTYPES[dtype].array(buffer.slice(from, from + size)) };
}
