/**
 * What this module throws: one line that says what is wrong and what to do.
 * @module
 */

/** Anything that is known to go wrong. */
export class FourstepError extends Error {
  /** @param {string} message one line */
  constructor(message) {
    super(message);
    this.name = new.target.name;
  }
}

/** What was asked for cannot be done, and nothing is damaged. */
export class InputError extends FourstepError {
  /**
   * @param {string} message one line
   * @param {string} [field] the request's field that is at fault
   */
  constructor(message, field = "") {
    super(field ? `${field}: ${message}` : message);
    this.field = field;
  }
}

/** A package is damaged, or a graph gives no numbers. */
export class CheckFailed extends FourstepError {}
