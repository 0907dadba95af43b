/** A mistake that the caller can mend; its message says the place, what was wanted and what was found. */
export class BscompileError extends Error {
  constructor(message) {
    super(message);
    this.name = "BscompileError";
  }
}

/** Throw a BscompileError unless the condition holds. */
export function check(condition, message) {
  if (!condition) throw new BscompileError(message);
}
