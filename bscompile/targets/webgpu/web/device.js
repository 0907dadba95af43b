/** A WebGPU device with the limits and features that a program needs. */
import { BscompileError, check } from "./errors.js";

/** What a device has that is asked for nothing; more is only given to who asks. */
const DEFAULT_LIMITS = {
  maxStorageBufferBindingSize: 128 << 20,
  maxBufferSize: 256 << 20,
  maxStorageBuffersPerShaderStage: 8,
  maxComputeWorkgroupStorageSize: 16384,
  maxComputeInvocationsPerWorkgroup: 256,
  maxComputeWorkgroupSizeX: 256,
  maxComputeWorkgroupSizeY: 256,
  maxComputeWorkgroupSizeZ: 64,
};

/** Feature of an artifact -> what WebGPU calls it. */
const FEATURES = { float16: "shader-f16" };

const USAGE = { MAP_READ: 1, COPY_SRC: 4, COPY_DST: 8, UNIFORM: 64, STORAGE: 128 };

/**
 * Open a device, or say what stands in the way.
 *
 * @param {object} program As readProgram gives it.
 * @param {string[]} features The manifest's: what the code cannot run without.
 * @param {{gpu?: GPU, adapterOptions?: object}} options
 * @returns {Promise<{adapter: GPUAdapter, device: GPUDevice}>}
 */
export async function openDevice(program, features, { gpu, adapterOptions } = {}) {
  const webgpu = gpu ?? globalThis.navigator?.gpu;
  check(webgpu, whyNoWebgpu());
  const adapter = await webgpu.requestAdapter(adapterOptions ?? { powerPreference: "high-performance" });
  check(adapter, "WebGPU is there but offers no adapter: the browser does not trust this GPU or its driver");
  const requiredFeatures = features.map((feature) => FEATURES[feature] ?? feature);
  for (const feature of requiredFeatures) {
    check(adapter.features.has(feature), `this GPU lacks the WebGPU feature ${feature}, which the model needs`);
  }
  const requiredLimits = neededLimits(program);
  for (const [name, wanted] of Object.entries(requiredLimits)) {
    check(adapter.limits[name] >= wanted, `the model needs ${name} = ${wanted}, this GPU has ${adapter.limits[name]}`);
  }
  const device = await adapter.requestDevice({ requiredFeatures, requiredLimits });
  return { adapter, device };
}

/** A buffer that shaders read and write; its size is a multiple of 4 and never 0. */
export function storageBuffer(device, bytes) {
  return device.createBuffer({
    size: Math.max(16, Math.ceil(bytes / 4) * 4),
    usage: USAGE.STORAGE | USAGE.COPY_SRC | USAGE.COPY_DST,
  });
}

/** A buffer that results are copied to and read from. */
export function readbackBuffer(device, bytes) {
  return device.createBuffer({ size: Math.max(4, bytes), usage: USAGE.MAP_READ | USAGE.COPY_DST });
}

/** A uniform holding one unsigned number. */
export function uniformBuffer(device, value) {
  const buffer = device.createBuffer({ size: 16, usage: USAGE.UNIFORM | USAGE.COPY_DST });
  device.queue.writeBuffer(buffer, 0, new Uint32Array([value, 0, 0, 0]));
  return buffer;
}

/** Write an array of whole elements, padded to the 4 bytes that WebGPU writes at least. */
export function writeArray(device, buffer, array) {
  const bytes = new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
  if (bytes.length % 4 === 0) {
    device.queue.writeBuffer(buffer, 0, bytes);
  } else {
    const padded = new Uint8Array(Math.ceil(bytes.length / 4) * 4);
    padded.set(bytes);
    device.queue.writeBuffer(buffer, 0, padded);
  }
}

/** Run a function and turn what the device finds wrong in it into an error. */
export async function guarded(device, place, action) {
  for (const filter of ["internal", "out-of-memory", "validation"]) device.pushErrorScope(filter);
  let result, thrown;
  try {
    result = await action();
  } catch (error) {
    thrown = error;
  }
  const errors = [];
  for (let scope = 0; scope < 3; scope++) errors.push(await device.popErrorScope());
  const found = errors.find((error) => error);
  if (found) throw new BscompileError(`${place}: ${found.message.trim().split("\n")[0]}`);
  if (thrown) throw thrown;
  return result;
}

function whyNoWebgpu() {
  if (globalThis.isSecureContext === false) {
    return "WebGPU needs a secure page: open it over https or from localhost";
  }
  if (globalThis.navigator?.userAgent && globalThis.document) {
    return "this browser has no WebGPU: use a current Chrome, Edge, Safari or Firefox, or enable it in the settings";
  }
  return "no WebGPU here: pass options.gpu, in Node for example create([]) of the package webgpu";
}

/** The limits that a program needs beyond those that every WebGPU device has. */
function neededLimits({ storages, launches }) {
  const all = [...launches.values()].flat();
  const most = (numbers) => numbers.reduce((a, b) => Math.max(a, b), 0);
  const largest = 4 * Math.ceil(most(storages.map((storage) => storage.bytes)) / 4);
  const wanted = {
    maxStorageBufferBindingSize: largest,
    maxBufferSize: largest,
    maxStorageBuffersPerShaderStage: most(all.map((launch) => launch.arguments.length)),
    maxComputeWorkgroupStorageSize: most(all.map((launch) => launch.shared_bytes)),
    maxComputeInvocationsPerWorkgroup: most(all.map(({ block: [x, y, z] }) => x * y * z)),
    maxComputeWorkgroupSizeX: most(all.map(({ block }) => block[0])),
    maxComputeWorkgroupSizeY: most(all.map(({ block }) => block[1])),
    maxComputeWorkgroupSizeZ: most(all.map(({ block }) => block[2])),
  };
  return Object.fromEntries(Object.entries(wanted).filter(([name, value]) => value > DEFAULT_LIMITS[name]));
}
