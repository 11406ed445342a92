/**
 * Unicode as the `tokenizers` library has it, from `unicode.bin`: lower case, composition, classes
 * of regular expressions and grapheme clusters. A platform's own are of another version.
 * @module
 */

import { CheckFailed } from "./errors.js";

const HANGUL = { syllable: 0xac00, l: 0x1100, v: 0x1161, t: 0x11a7, ls: 19, vs: 21, ts: 28 };
const LAST = 0x10ffff;
const LETTER = 1 << 6, DIGIT = 1 << 7, SPACE = 1 << 8, WHITE = 1 << 9;
const CONTROL = 1, EXTEND = 2, SPACING = 3, JOINER = 4, PREPEND = 5, PICTOGRAPH = 11;
const CONSONANT = 1, LINKER = 2;
/** Hangul classes that a class is joined by: L, V, T, LV, LVT are 6 to 10. */
const JOINED_BY = new Map([[6, [6, 7, 9, 10]], [7, [7, 8]], [8, [8]], [9, [7, 8]], [10, [8]]]);

/**
 * Code points and, of each, the place in the prompt that it comes from, counted in code points.
 * @typedef {{points: number[], places: number[]}} Text
 */

/**
 * The code points of a string, each in its own place.
 * @param {string} text
 * @returns {Text}
 */
export function textOf(text) {
  const points = Array.from(text, (c) => /** @type {number} */ (c.codePointAt(0)));
  return { points, places: points.map((_, i) => i) };
}

/**
 * The string of code points.
 * @param {readonly number[]} points
 */
export function stringOf(points) {
  let text = "";
  for (let i = 0; i < points.length; i += 4096) {
    text += String.fromCodePoint(...points.slice(i, i + 4096));
  }
  return text;
}

/** The tables of `unicode.bin`. */
export class Unicode {
  /** @param {Uint8Array} content of the file; throws CheckFailed when it is not one */
  constructor(content) {
    const numbers = numbersOf(content);
    const next = () => /** @type {number} */ (numbers.next().value);
    /** @type {Uint16Array} */
    this._values = new Uint16Array(LAST + 1);
    for (let runs = next(), at = 0; runs > 0; runs--) {
      const length = next();
      this._values.fill(next(), at, at + length);
      at += length;
    }
    /** @type {Map<number, number>} */
    this._ranks = new Map();
    for (let runs = next(), at = 0; runs > 0; runs--) {
      at += next();
      const end = at + next(), rank = next();
      for (; at < end; at++) this._ranks.set(at, rank);
    }
    const points = () => Array.from({ length: next() }, next);
    /** @type {Map<number, number[]>} */
    this._lower = new Map();
    for (let count = next(), at = 0; count > 0; count--) {
      at += next();
      this._lower.set(at, points());
    }
    /** @type {Map<number, number[]>} */
    this._parts = new Map();
    /** @type {Map<number, number>} by first * 2^21 + second */
    this._composed = new Map();
    for (let count = next(), at = 0; count > 0; count--) {
      at += next();
      const composes = next(), parts = points();
      this._parts.set(at, parts);
      if (composes) this._composed.set(parts[0] * 2 ** 21 + parts[1], at);
    }
    if (!numbers.next().done || this._composed.size === 0) {
      throw new CheckFailed("unicode.bin: damaged; copy the bundle again");
    }
  }

  /** @param {number} point a letter, `\p{L}` */
  isLetter(point) {
    return (this._values[point] & LETTER) !== 0;
  }

  /** @param {number} point a digit, `\p{N}` */
  isDigit(point) {
    return (this._values[point] & DIGIT) !== 0;
  }

  /** @param {number} point `\s` of a regular expression */
  isSpace(point) {
    return (this._values[point] & SPACE) !== 0;
  }

  /** @param {number} point white space, where text is split or stripped */
  isWhite(point) {
    return (this._values[point] & WHITE) !== 0;
  }

  /**
   * Lower case by code point, with the full mapping.
   * @param {Text} text
   * @returns {Text}
   */
  lower(text) {
    return mapped(text, (point) => this._lower.get(point));
  }

  /**
   * Canonical decomposition.
   * @param {Text} text
   * @returns {Text}
   */
  decompose(text) {
    const { points, places } = mapped(text, (point) => this._whole(point));
    const rank = (/** @type {number} */ i) => this._ranks.get(points[i]) ?? 0;
    for (let start = 0, end = 0; end <= points.length; end++) {
      if (end < points.length && rank(end) > 0) continue;
      if (end - start > 1) {
        const order = Array.from({ length: end - start }, (_, i) => start + i);
        order.sort((a, b) => rank(a) - rank(b));
        const sorted = order.map((i) => [points[i], places[i]]);
        sorted.forEach(([point, place], i) => {
          points[start + i] = point;
          places[start + i] = place;
        });
      }
      start = end + 1;
    }
    return { points, places };
  }

  /**
   * Canonical composition.
   * @param {Text} text
   * @returns {Text}
   */
  compose(text) {
    const from = this.decompose(text);
    /** @type {Text} */
    const found = { points: [], places: [] };
    let starter = -1, last = 0;
    from.points.forEach((point, i) => {
      const rank = this._ranks.get(point) ?? 0;
      const open = last < rank || (last === 0 && starter === found.points.length - 1);
      const whole = starter >= 0 && open ? this._pair(found.points[starter], point) : undefined;
      if (whole !== undefined) {
        found.points[starter] = whole;
        return;
      }
      if (rank === 0) starter = found.points.length;
      last = rank;
      found.points.push(point);
      found.places.push(from.places[i]);
    });
    return found;
  }

  /**
   * Where each extended grapheme cluster begins, and the end.
   * @param {readonly number[]} points
   * @returns {number[]}
   */
  clusters(points) {
    const starts = [0];
    for (let i = 1; i < points.length; i++) {
      if (!this._joins(points, starts[starts.length - 1], i)) starts.push(i);
    }
    if (points.length > 0) starts.push(points.length);
    return starts;
  }

  /** @param {number} point */
  _kind(point) {
    return this._values[point] & 15;
  }

  /** @param {number} point */
  _conjunct(point) {
    return (this._values[point] >> 4) & 3;
  }

  /**
   * @param {number} point
   * @returns {number[] | undefined}
   */
  _whole(point) {
    const { syllable, l, v, t, ls, vs, ts } = HANGUL;
    const place = point - syllable;
    if (place >= 0 && place < ls * vs * ts) {
      const parts = [l + Math.floor(place / (vs * ts)), v + Math.floor((place % (vs * ts)) / ts)];
      return place % ts === 0 ? parts : [...parts, t + (place % ts)];
    }
    return this._parts.get(point)?.flatMap((part) => this._whole(part) ?? [part]);
  }

  /**
   * @param {number} first
   * @param {number} second
   * @returns {number | undefined}
   */
  _pair(first, second) {
    const { syllable, l, v, t, ls, vs, ts } = HANGUL;
    if (first >= l && first < l + ls && second >= v && second < v + vs) {
      return syllable + ((first - l) * vs + second - v) * ts;
    }
    const place = first - syllable;
    if (place >= 0 && place < ls * vs * ts && place % ts === 0 && second > t && second < t + ts) {
      return first + second - t;
    }
    return this._composed.get(first * 2 ** 21 + second);
  }

  /**
   * Whether no cluster ends before `at` of one that began at `start`.
   * @param {readonly number[]} points
   * @param {number} start
   * @param {number} at
   */
  _joins(points, start, at) {
    const before = this._kind(points[at - 1]), after = this._kind(points[at]);
    if (before === CONTROL || after === CONTROL) {
      return points[at - 1] === 0x0d && points[at] === 0x0a;
    }
    if (after === EXTEND || after === SPACING || after === JOINER || before === PREPEND) return true;
    if (JOINED_BY.get(before)?.includes(after)) return true;
    if (this._conjunct(points[at]) === CONSONANT) return this._isLinked(points, start, at);
    if (before !== JOINER || after !== PICTOGRAPH) return false;
    let base = at - 2;
    while (base >= start && this._kind(points[base]) === EXTEND) base--;
    return base >= start && this._kind(points[base]) === PICTOGRAPH;
  }

  /**
   * Whether a consonant, a linker and what extends them lie before `at`.
   * @param {readonly number[]} points
   * @param {number} start
   * @param {number} at
   */
  _isLinked(points, start, at) {
    let linked = false, base = at - 1;
    for (; base >= start && this._conjunct(points[base]) > CONSONANT; base--) {
      linked ||= this._conjunct(points[base]) === LINKER;
    }
    return linked && base >= start && this._conjunct(points[base]) === CONSONANT;
  }
}

/**
 * Each code point replaced by what a function gives for it, if it gives something.
 * @param {Text} text
 * @param {(point: number) => number[] | undefined} replacement
 * @returns {Text}
 */
function mapped(text, replacement) {
  /** @type {Text} */
  const found = { points: [], places: [] };
  text.points.forEach((point, i) => {
    for (const to of replacement(point) ?? [point]) {
      found.points.push(to);
      found.places.push(text.places[i]);
    }
  });
  return found;
}

/**
 * The numbers behind the file's head.
 * @param {Uint8Array} content
 * @returns {Generator<number, undefined>}
 */
function* numbersOf(content) {
  let value = 0, scale = 1;
  for (let i = content.indexOf(0) + 1; i < content.length; i++) {
    value += (content[i] & 0x7f) * scale;
    scale *= 128;
    if (content[i] < 0x80) {
      yield value;
      value = 0;
      scale = 1;
    }
  }
  return undefined;
}
