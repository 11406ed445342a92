/**
 * JSON to frozen records, with errors that name the field. Keys that a record does not know are left
 * out, at every level; those that are absent get their defaults.
 * @module
 */

/**
 * Gives the value of a field, or throws a RangeError that names it.
 * @template T
 * @typedef {(value: unknown, where: string) => T} Decode
 */

/** What a field has that is not there. */
const ABSENT = Symbol("absent");

/**
 * @param {string} where
 * @param {string} expected
 * @param {unknown} value
 */
function wrong(where, expected, value) {
  const shown = value === ABSENT ? "nothing" : (JSON.stringify(value) ?? "nothing").slice(0, 60);
  return new RangeError(`${where}: ${expected} is expected, not ${shown}`);
}

/**
 * @param {RegExp} [pattern]
 * @param {number} [most] characters
 * @returns {Decode<string>}
 */
export const text = (pattern = /^/, most = Infinity) => (value, where) => {
  if (typeof value !== "string" || !pattern.test(value) || value.length > most) {
    throw wrong(where, "a text of another form", value);
  }
  return value;
};

/**
 * @param {number} least
 * @param {number} [most]
 * @returns {Decode<number>}
 */
export const whole = (least, most = Number.MAX_SAFE_INTEGER) => (value, where) => {
  if (!Number.isSafeInteger(value) || Number(value) < least || Number(value) > most) {
    throw wrong(where, `a whole number from ${least} to ${most}`, value);
  }
  return Number(value);
};

/**
 * @param {number} [above]
 * @param {number} [most]
 * @returns {Decode<number>}
 */
export const number = (above = -Infinity, most = Infinity) => (value, where) => {
  if (typeof value !== "number" || !Number.isFinite(value) || value <= above || value > most) {
    throw wrong(where, "a number in its range", value);
  }
  return value;
};

/** @type {Decode<boolean>} */
export const truth = (value, where) => {
  if (typeof value !== "boolean") throw wrong(where, "true or false", value);
  return value;
};

/**
 * @template {string | number} T
 * @param {...T} known
 * @returns {Decode<T>}
 */
export const one = (...known) => (value, where) => {
  const found = known.find((each) => each === value);
  if (found === undefined) throw wrong(where, `one of ${known.join(", ")}`, value);
  return found;
};

/**
 * @template T
 * @param {Decode<T>} item
 * @param {number} [least] items
 * @param {number} [most] items
 * @returns {Decode<readonly T[]>}
 */
export const list = (item, least = 0, most = Infinity) => (value, where) => {
  if (!Array.isArray(value) || value.length < least || value.length > most) {
    throw wrong(where, most === Infinity ? "a list" : `a list of ${least} to ${most}`, value);
  }
  return Object.freeze(value.map((each, i) => item(each, `${where}[${i}]`)));
};

/**
 * @template T
 * @param {Decode<T>} item
 * @returns {Decode<ReadonlyMap<string, T>>}
 */
export const table = (item) => (value, where) =>
  new Map(entriesOf(value, where).map(([key, each]) => [key, item(each, `${where}.${key}`)]));

/**
 * @template T
 * @param {Decode<T>} inner
 * @returns {Decode<T | null>}
 */
export const orNull = (inner) => (value, where) => (value === null ? null : inner(value, where));

/**
 * A field that may be absent.
 * @template T
 * @param {Decode<T>} inner
 * @param {unknown} fallback the JSON value that stands for it
 * @returns {Decode<T>}
 */
export const optional = (inner, fallback) => (value, where) =>
  inner(value === ABSENT ? fallback : value, where);

/**
 * A record; its fields are named as in the file, and found in camelCase.
 * @param {Record<string, Decode<any>>} fields
 * @returns {Decode<any>}
 */
export const record = (fields) => (value, where) => {
  const given = new Map(entriesOf(value, where));
  const found = Object.entries(fields).map(([key, decode]) => {
    const name = key.replace(/_([a-z0-9])/g, (_, c) => c.toUpperCase());
    return [name, decode(given.has(key) ? given.get(key) : ABSENT, where ? `${where}.${key}` : key)];
  });
  return Object.freeze(Object.fromEntries(found));
};

/**
 * @param {unknown} value
 * @param {string} where
 * @returns {[string, unknown][]}
 */
function entriesOf(value, where) {
  if (value === null || typeof value !== "object" || Array.isArray(value)) {
    throw wrong(where || "the file", "an object", value);
  }
  return Object.entries(value);
}
