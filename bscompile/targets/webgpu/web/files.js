/** The files of an exported model, over HTTP or from a disk, each compared with the manifest. */
import { BscompileError, check } from "./errors.js";

const FORMAT = "bscompile artifact";
const FORMAT_VERSION = 1;

/**
 * How to read the files below a folder.
 *
 * @param {URL|string|function(string): Promise<ArrayBuffer>} source A folder's URL (http:, https:,
 *     and in Node file:), a path relative to the page, or a function that reads a file by its name.
 * @returns {function(string): Promise<ArrayBuffer>}
 */
export function reader(source) {
  if (typeof source === "function") return source;
  const text = String(source);
  const base = new URL(text.endsWith("/") ? text : `${text}/`, globalThis.location?.href);
  return base.protocol === "file:" ? (name) => readFile(base, name) : (name) => fetchFile(base, name);
}

/**
 * The manifest, checked as far as this loader depends on it.
 *
 * @returns {Promise<object>} As docs/artifact.md describes it.
 */
export async function readManifest(read) {
  const manifest = parseJson("manifest.json", await read("manifest.json"));
  check(manifest?.format === FORMAT, `manifest.json: not a ${FORMAT}`);
  check(
    manifest.format_version === FORMAT_VERSION,
    `manifest.json: format version ${manifest.format_version}, this loader reads ${FORMAT_VERSION}; ` +
      "export the model again",
  );
  check(
    manifest.loader === "webgpu",
    `manifest.json: made for the loader ${JSON.stringify(manifest.loader)}, not for webgpu; ` +
      "build the model with --target webgpu",
  );
  return manifest;
}

/** A file that the manifest lists: its size and sha256 must be those of the build. */
export async function readMember(read, manifest, name) {
  const expected = manifest.members?.[name];
  check(expected, `manifest.json: the member ${name} is missing`);
  const bytes = await read(name);
  check(
    bytes.byteLength === expected.size,
    `${name}: ${bytes.byteLength} bytes, the manifest says ${expected.size}; copy the folder again`,
  );
  check(
    (await sha256(bytes)) === expected.sha256,
    `${name}: its content was changed after the build, the sha256 differs; export the model again`,
  );
  return bytes;
}

/** JSON from bytes. */
export function parseJson(name, bytes) {
  try {
    return JSON.parse(new TextDecoder().decode(bytes));
  } catch (error) {
    throw new BscompileError(`${name}: not valid JSON, ${error.message}`);
  }
}

async function sha256(bytes) {
  // Node 18 has no global crypto; a page that is not secure has none either.
  const { subtle } = globalThis.crypto ?? (globalThis.process ? (await import("node:crypto")).webcrypto : {});
  check(subtle, "this page cannot hash files: open it over https or from localhost, as WebGPU needs too");
  const digest = new Uint8Array(await subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function fetchFile(base, name) {
  const response = await fetch(new URL(name, base)).catch((error) => {
    throw new BscompileError(`${name}: cannot be fetched, ${error.message}`);
  });
  check(response.ok, `${name}: cannot be fetched, the server says ${response.status}`);
  return response.arrayBuffer();
}

async function readFile(base, name) {
  const { readFile: read } = await import("node:fs/promises");
  const buffer = await read(new URL(name, base)).catch((error) => {
    throw new BscompileError(`${name}: cannot be read, ${error.code ?? error.message}`);
  });
  return buffer.buffer.slice(buffer.byteOffset, buffer.byteOffset + buffer.byteLength);
}
