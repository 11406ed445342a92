/**
 * Prompts to ids, as the `tokenizers` library makes them of a `tokenizer.json`. The parts that the
 * file names are interpreted; a part that is not known here is refused, for it would give other ids.
 * @module
 */

import { CheckFailed, InputError } from "./errors.js";
import { stringOf, textOf } from "./unicode.js";

/** @import { Text, Unicode } from "./unicode.js" */
/** @import { TokenizerEntry } from "./manifest.js" */

const MOST_CHARACTERS = 100_000; // of a prompt, of which encoders read 77 to 512 tokens
const UNKNOWN_PENALTY = 10; // how far below the least likely piece an unknown one is
const SMALL_CLUSTER_BYTES = 6; // smaller ones are looked up as a whole
const CONTRACTIONS = ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d"];

/** @typedef {Record<string, any>} Json an object of a JSON file, not believed yet */
/** @typedef {(text: Text) => Text} Normalize */
/** @typedef {(texts: Text[]) => Text[]} Split */
/** @typedef {{id: number, place: number}} Token an id, and the place where its text begins */
/** @typedef {(text: Text) => Token[]} Model */
/** @typedef {(points: readonly number[], at: number) => number} Match the end of a match, or -1 */
/** @typedef {{id: number, points: number[], left: boolean, right: boolean}} Added */

/**
 * What is in a `tokenizer.json`: encodes text.
 *
 * Throws CheckFailed for a file that is none, or names a part that is not known.
 */
export class Tokenizer {
  /**
   * @param {string} text of the file
   * @param {Unicode} unicode
   * @param {string} where the file's name, for errors
   */
  constructor(text, unicode, where = "tokenizer.json") {
    const parts = new Parts(unicode, where);
    const file = parts.parsed(text);
    this._unicode = unicode;
    this._normalize = parts.normalizer(file.normalizer);
    this._split = parts.preTokenizer(file.pre_tokenizer);
    const { model, idOf, largest } = parts.model(file.model);
    this._model = model;
    const added = parts.added(file.added_tokens ?? [], idOf);
    this._raw = added.filter(({ normalized }) => !normalized);
    this._normalized = added
      .filter(({ normalized }) => normalized)
      .map((a) => ({ ...a, points: this._normalize(textOf(stringOf(a.points))).points }));
    const around = parts.postProcessor(file.post_processor);
    this._before = around.before;
    this._behind = around.behind;
    const ids = [...added.map(({ id }) => id), ...this._before, ...this._behind];
    /** The largest id that any prompt can get. */
    this.largestId = ids.reduce((a, b) => Math.max(a, b), largest);
  }

  /**
   * A prompt's tokens, with the special ones around them.
   * @param {string} prompt
   * @returns {Token[]}
   */
  encode(prompt) {
    const special = (/** @type {number} */ id) => ({ id, place: 0 });
    const found = this._before.map(special);
    for (const piece of cut(textOf(prompt), this._raw, this._unicode)) {
      if (typeof piece.added === "number") found.push({ id: piece.added, place: piece.place });
      else found.push(...this._encodeRest(piece.text));
    }
    return [...found, ...this._behind.map(special)];
  }

  /**
   * @param {Text} raw
   * @returns {Token[]}
   */
  _encodeRest(raw) {
    return cut(this._normalize(raw), this._normalized, this._unicode).flatMap((piece) => {
      if (typeof piece.added === "number") return [{ id: piece.added, place: piece.place }];
      const texts = this._split([piece.text]).filter(({ points }) => points.length > 0);
      return texts.flatMap((text) => this._model(text));
    });
  }
}

/**
 * A function from a prompt to ids (1, tokens) for the text encoder `name`.
 *
 * A longer prompt loses its tail, and the closing token stays: `remark` is told what is not read. It
 * throws InputError for a prompt that is no text.
 * @param {Tokenizer} tokenizer
 * @param {TokenizerEntry} entry
 * @param {string} name
 * @param {(remark: string) => void} [remark]
 * @returns {(prompt: string) => Int32Array}
 */
export function promptEncoder(tokenizer, entry, name, remark = () => {}) {
  return (prompt) => {
    checkPrompt(prompt);
    const tokens = tokenizer.encode(prompt);
    let ids = tokens.map(({ id }) => id);
    if (ids.length > entry.tokens) {
      const lost = Array.from(prompt).slice(tokens[entry.tokens - 1].place).join("");
      remark(`${name} reads ${entry.tokens} tokens; not read: ${JSON.stringify(lost)}`);
      ids = [...ids.slice(0, entry.tokens - 1), ids[ids.length - 1]];
    }
    const padded = new Int32Array(entry.tokens).fill(entry.padId);
    padded.set(ids);
    return padded;
  };
}

/**
 * Throw InputError for a prompt that is no text, or longer than any encoder could read.
 * @param {unknown} prompt
 * @param {string} [name] what it is called in the error
 */
export function checkPrompt(prompt, name = "prompt") {
  if (typeof prompt !== "string") throw new InputError(`is no text but of type ${typeof prompt}`, name);
  let characters = 0;
  for (const c of prompt) {
    const point = /** @type {number} */ (c.codePointAt(0));
    if (point >= 0xd800 && point < 0xe000) throw new InputError("holds half a character", name);
    characters++;
  }
  if (characters > MOST_CHARACTERS) {
    throw new InputError(`a ${name} of ${characters} characters: at most ${MOST_CHARACTERS}`);
  }
}

/** Makes functions of the parts that a `tokenizer.json` names. */
class Parts {
  /**
   * @param {Unicode} unicode
   * @param {string} where
   */
  constructor(unicode, where) {
    this._unicode = unicode;
    this._where = where;
  }

  /**
   * @param {string} text
   * @returns {Json}
   */
  parsed(text) {
    try {
      const file = JSON.parse(text);
      if (file !== null && typeof file === "object") return file;
    } catch (error) {
      throw this._none(/** @type {Error} */ (error).message);
    }
    throw this._none("no object");
  }

  /**
   * @param {Json | null | undefined} part
   * @returns {Normalize}
   */
  normalizer(part) {
    const unicode = this._unicode;
    if (!part) return (text) => text;
    if (part.type === "NFC") return (text) => unicode.compose(text);
    if (part.type === "NFD") return (text) => unicode.decompose(text);
    if (part.type === "Lowercase") return (text) => unicode.lower(text);
    if (part.type === "Precompiled") return precompiled(part.precompiled_charsmap, unicode);
    if (part.type === "Strip") {
      return (text) => stripped(text, part.strip_left, part.strip_right, unicode);
    }
    if (part.type === "Replace") {
      const match = this._pattern(part.pattern), content = textOf(String(part.content)).points;
      return (text) => replaced(text, match, content);
    }
    if (part.type === "Sequence" && Array.isArray(part.normalizers)) {
      const all = part.normalizers.map((inner) => this.normalizer(inner));
      return (text) => all.reduce((found, normalize) => normalize(found), text);
    }
    throw this._unknown("normalizer", part.type);
  }

  /**
   * @param {Json | null | undefined} part
   * @returns {Split}
   */
  preTokenizer(part) {
    const unicode = this._unicode;
    if (!part) return (texts) => texts;
    if (part.type === "WhitespaceSplit") {
      /** @type {Match} */
      const white = (points, at) => (unicode.isWhite(points[at]) ? at + 1 : -1);
      return (texts) => texts.flatMap((text) => split(text, white).filter((p) => !p.matches).map((p) => p.text));
    }
    if (part.type === "Metaspace") return metaspace(part);
    if (part.type === "ByteLevel") return byteLevel(part, unicode);
    if (part.type === "Split") return this._splitting(part);
    if (part.type === "Sequence" && Array.isArray(part.pretokenizers)) {
      const all = part.pretokenizers.map((inner) => this.preTokenizer(inner));
      return (texts) => all.reduce((found, each) => each(found), texts);
    }
    throw this._unknown("pre_tokenizer", part.type);
  }

  /**
   * @param {Json} part
   * @returns {Split}
   */
  _splitting(part) {
    const match = this._pattern(part.pattern), invert = Boolean(part.invert);
    if (part.behavior !== "Removed" && part.behavior !== "Isolated") {
      throw this._unknown("behavior of Split", part.behavior);
    }
    const isolated = part.behavior === "Isolated";
    return (texts) =>
      texts.flatMap((text) =>
        split(text, match).filter((p) => isolated || p.matches === invert).map((p) => p.text));
  }

  /**
   * @param {Json | null | undefined} part
   * @returns {{model: Model, idOf: Map<string, number>, largest: number}}
   */
  model(part) {
    if (part?.type === "BPE" && part.vocab && Array.isArray(part.merges)) return this._bpe(part);
    if (part?.type === "Unigram" && Array.isArray(part.vocab)) return this._unigram(part);
    throw this._unknown("model", part?.type);
  }

  /** @param {Json} part */
  _bpe(part) {
    this._refuse(part, ["dropout", "continuing_subword_prefix", "fuse_unk", "byte_fallback", "ignore_merges"]);
    /** @type {Map<string, number>} */
    const idOf = new Map(Object.entries(part.vocab));
    const merges = new Map();
    for (const merge of part.merges) {
      const [a, b] = Array.isArray(merge) ? merge : String(merge).split(" ");
      const ids = [idOf.get(a), idOf.get(b), idOf.get(a + b)];
      if (ids.includes(undefined)) throw this._none(`merges '${a}' and '${b}', which are not tokens`);
      const [first, second, id] = /** @type {number[]} */ (ids);
      merges.set(first * 2 ** 24 + second, { rank: merges.size, id });
    }
    const unknown = part.unk_token == null ? undefined : idOf.get(part.unk_token);
    const suffix = String(part.end_of_word_suffix ?? "");
    /** @type {Model} */
    const model = (text) => merged(lettersOf(text, suffix, idOf, unknown), merges);
    return { model, idOf, largest: largestOf(idOf.values()) };
  }

  /** @param {Json} part */
  _unigram(part) {
    this._refuse(part, ["byte_fallback"]);
    /** @type {Map<string, number>} */
    const idOf = new Map();
    /** @type {number[]} */
    const scores = [];
    for (const [piece, score] of part.vocab) {
      idOf.set(piece, scores.length);
      scores.push(score);
    }
    const model = unigram(idOf, scores, part.unk_id);
    return { model, idOf, largest: scores.length - 1 };
  }

  /**
   * @param {Json[]} entries
   * @param {Map<string, number>} idOf
   * @returns {(Added & {normalized: boolean})[]}
   */
  added(entries, idOf) {
    return entries.map((entry) => {
      if (entry.single_word) throw this._unknown("added token", `${entry.content} (single_word)`);
      const points = textOf(String(entry.content)).points;
      const id = idOf.get(entry.content) ?? entry.id;
      const { normalized = false, lstrip: left = false, rstrip: right = false } = entry;
      return { id, points, left, right, normalized };
    });
  }

  /**
   * @param {Json | null | undefined} part
   * @returns {{before: number[], behind: number[]}}
   */
  postProcessor(part) {
    if (!part || part.type === "ByteLevel") return { before: [], behind: [] };
    if (part.type === "RobertaProcessing" || part.type === "BertProcessing") {
      return { before: [part.cls[1]], behind: [part.sep[1]] };
    }
    if (part.type !== "TemplateProcessing" || !Array.isArray(part.single)) {
      throw this._unknown("post_processor", part.type);
    }
    const place = part.single.findIndex((/** @type {Json} */ item) => item.Sequence);
    const ids = (/** @type {Json[]} */ items) =>
      items.flatMap((item) => part.special_tokens[item.SpecialToken.id].ids);
    return { before: ids(part.single.slice(0, place)), behind: ids(part.single.slice(place + 1)) };
  }

  /**
   * A pattern of the small dialect that such files use: alternatives, each a literal, or a class of
   * `\p{L}`, `\p{N}`, `\s` or one character that is repeated or not.
   * @param {Json} pattern
   * @returns {Match}
   */
  _pattern(pattern) {
    if (typeof pattern?.String === "string") return literal(textOf(pattern.String).points);
    const source = String(pattern?.Regex);
    const all = alternatives(source).map((alternative) => {
      const plain = /^(?:[^\\[\](){}*+?.^$|]|\\[^\p{L}\p{N}])+$/u;
      if (plain.test(alternative)) {
        return literal(textOf(alternative.replace(/\\(.)/gsu, "$1")).points);
      }
      const parts = /^(\[\^?(?:\\p\{[LN]\}|\\s)+\]|\\p\{[LN]\}|\\s| )(\+|\{2,\}|)$/u.exec(alternative);
      if (!parts) throw this._unknown("pattern", source);
      return this._repeated(parts[1], { "": [1, 1], "+": [1, Infinity], "{2,}": [2, Infinity] }[parts[2]] ?? []);
    });
    return (points, at) => {
      for (const match of all) {
        const end = match(points, at);
        if (end > at) return end;
      }
      return -1;
    };
  }

  /**
   * @param {string} set
   * @param {number[]} times least and most
   * @returns {Match}
   */
  _repeated(set, [least, most]) {
    const unicode = this._unicode, negative = set.startsWith("[^");
    const has = (/** @type {number} */ point) =>
      (set.includes("\\p{L}") && unicode.isLetter(point)) ||
      (set.includes("\\p{N}") && unicode.isDigit(point)) ||
      (set.includes("\\s") && unicode.isSpace(point)) ||
      (set === " " && point === 0x20);
    return (points, at) => {
      let end = at;
      while (end < points.length && end - at < most && has(points[end]) !== negative) end++;
      return end - at >= least ? end : -1;
    };
  }

  /**
   * @param {Json} part
   * @param {string[]} fields
   */
  _refuse(part, fields) {
    const field = fields.find((name) => part[name]);
    if (field) throw this._unknown(`${part.type} with`, field);
  }

  /**
   * @param {string} what
   * @param {unknown} name
   */
  _unknown(what, name) {
    return new CheckFailed(`${this._where}: ${what} '${String(name)}' is not known; update fourstep`);
  }

  /** @param {string} reason */
  _none(reason) {
    return new CheckFailed(`${this._where}: not a tokenizer: ${reason}`);
  }
}

/** @param {Iterable<number>} ids */
function largestOf(ids) {
  let largest = 0;
  for (const id of ids) largest = Math.max(largest, id);
  return largest;
}

/**
 * A pattern's alternatives, taken apart at each `|` that is not escaped or in a class.
 * @param {string} source
 * @returns {string[]}
 */
function alternatives(source) {
  const found = [""];
  let inClass = false;
  for (let i = 0; i < source.length; i++) {
    const c = source[i];
    if (c === "|" && !inClass) {
      found.push("");
      continue;
    }
    if (c === "[" || c === "]") inClass = c === "[";
    found[found.length - 1] += c;
    if (c === "\\" && i + 1 < source.length) found[found.length - 1] += source[++i];
  }
  return found;
}

/**
 * @param {readonly number[]} expected
 * @returns {Match}
 */
function literal(expected) {
  return (points, at) => {
    for (let i = 0; i < expected.length; i++) if (points[at + i] !== expected[i]) return -1;
    return at + expected.length;
  };
}

/**
 * @param {Text} text
 * @param {number} start
 * @param {number} [end]
 * @returns {Text}
 */
function sliced({ points, places }, start, end) {
  return { points: points.slice(start, end), places: places.slice(start, end) };
}

/**
 * A text in pieces: what a pattern matches, and what lies between.
 * @param {Text} text
 * @param {Match} match
 * @returns {{text: Text, matches: boolean}[]}
 */
function split(text, match) {
  const found = [];
  let start = 0;
  for (let at = 0; at < text.points.length; ) {
    const end = match(text.points, at);
    if (end <= at) {
      at++;
      continue;
    }
    if (start < at) found.push({ text: sliced(text, start, at), matches: false });
    found.push({ text: sliced(text, at, end), matches: true });
    start = at = end;
  }
  if (start < text.points.length) found.push({ text: sliced(text, start), matches: false });
  return found;
}

/**
 * @param {Text} text
 * @param {Match} match
 * @param {readonly number[]} content
 * @returns {Text}
 */
function replaced(text, match, content) {
  const pieces = split(text, match).map((piece) =>
    piece.matches ? { points: [...content], places: content.map(() => piece.text.places[0]) } : piece.text);
  return joined(pieces);
}

/**
 * @param {readonly Text[]} texts
 * @returns {Text}
 */
function joined(texts) {
  return { points: texts.flatMap((t) => t.points), places: texts.flatMap((t) => t.places) };
}

/**
 * @param {Text} text
 * @param {boolean} left
 * @param {boolean} right
 * @param {Unicode} unicode
 */
function stripped(text, left, right, unicode) {
  let start = 0, end = text.points.length;
  while (left && start < end && unicode.isWhite(text.points[start])) start++;
  while (right && end > start && unicode.isWhite(text.points[end - 1])) end--;
  return sliced(text, start, end);
}

/**
 * A text in pieces: tokens that were added to a vocabulary, the longest first, and what is between.
 * @param {Text} text
 * @param {readonly Added[]} added
 * @param {Unicode} unicode
 * @returns {({added: number, place: number} | {added: undefined, text: Text})[]}
 */
function cut(text, added, unicode) {
  const { points, places } = text;
  const found = [];
  let start = 0;
  const longest = [...added].sort((a, b) => b.points.length - a.points.length);
  const matches = longest.map((a) => literal(a.points));
  const isFirst = new Set(added.map((a) => a.points[0]));
  for (let at = 0; at < points.length; at++) {
    if (!isFirst.has(points[at])) continue;
    const which = matches.findIndex((match) => match(points, at) > at);
    if (which < 0) continue;
    const token = longest[which];
    let begin = at, end = at + token.points.length;
    while (token.left && begin > start && unicode.isWhite(points[begin - 1])) begin--;
    while (token.right && end < points.length && unicode.isWhite(points[end])) end++;
    if (start < begin) found.push({ added: undefined, text: sliced(text, start, begin) });
    found.push({ added: token.id, place: places[at] });
    start = end;
    at = end - 1;
  }
  if (start < points.length) found.push({ added: undefined, text: sliced(text, start) });
  return found;
}

/**
 * SentencePiece's map of characters, a double array of tries over UTF-8.
 *
 * A grapheme cluster of fewer than 6 bytes becomes what its shortest prefix in the map becomes, as a
 * whole; of any other cluster each character does.
 * @param {unknown} base64
 * @param {Unicode} unicode
 * @returns {Normalize}
 */
function precompiled(base64, unicode) {
  const bytes = Uint8Array.from(atob(String(base64)), (c) => c.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  const trieBytes = view.getUint32(0, true);
  const units = Uint32Array.from({ length: trieBytes / 4 }, (_, i) => view.getUint32(4 + 4 * i, true));
  const strings = bytes.subarray(4 + trieBytes);
  const utf8 = new TextEncoder(), text8 = new TextDecoder("utf-8", { ignoreBOM: true });
  const offset = (/** @type {number} */ unit) => (unit >>> 10) << ((unit & 0x200) >>> 6);

  /** @param {Uint8Array} key */
  const lookUp = (key) => {
    let place = offset(units[0]);
    for (const byte of key) {
      place ^= byte;
      const unit = units[place];
      if (byte === 0 || unit === undefined || (unit & 0x800000ff) >>> 0 !== byte) return undefined;
      place ^= offset(unit);
      if (unit & 0x100) {
        const start = units[place] & 0x7fffffff;
        return textOf(text8.decode(strings.subarray(start, strings.indexOf(0, start)))).points;
      }
    }
    return undefined;
  };
  return (text) => {
    const starts = unicode.clusters(text.points);
    /** @type {Text[]} */
    const found = [];
    const add = (/** @type {number} */ start, /** @type {number} */ end, /** @type {boolean} */ always) => {
      const key = utf8.encode(stringOf(text.points.slice(start, end)));
      const to = always || key.length < SMALL_CLUSTER_BYTES ? lookUp(key) : undefined;
      if (to) found.push({ points: to, places: to.map(() => text.places[start]) });
      return to !== undefined;
    };
    for (let i = 0; i + 1 < starts.length; i++) {
      if (add(starts[i], starts[i + 1], false)) continue;
      for (let at = starts[i]; at < starts[i + 1]; at++) {
        if (!add(at, at + 1, true)) found.push(sliced(text, at, at + 1));
      }
    }
    return joined(found);
  };
}

/**
 * @param {Json} part
 * @returns {Split}
 */
function metaspace(part) {
  const mark = /** @type {number} */ (String(part.replacement).codePointAt(0));
  const scheme = part.prepend_scheme ?? (part.add_prefix_space === false ? "never" : "always");
  return (texts) =>
    texts.flatMap((text) => {
      let { points, places } = text;
      points = points.map((point) => (point === 0x20 ? mark : point));
      const prepends = scheme === "always" || (scheme === "first" && places[0] === 0);
      if (prepends && points[0] !== mark) {
        points = [mark, ...points];
        places = [places[0], ...places];
      }
      if (part.split === false) return [{ points, places }];
      const starts = points.flatMap((point, i) => (point === mark || i === 0 ? [i] : []));
      return starts.map((start, i) => sliced({ points, places }, start, starts[i + 1]));
    });
}

/**
 * GPT-2's bytes: text is split by its pattern, and each byte becomes a character of its own.
 * @param {Json} part
 * @param {Unicode} unicode
 * @returns {Split}
 */
function byteLevel(part, unicode) {
  const utf8 = new TextEncoder();
  const shown = (/** @type {number} */ b) => (b > 32 && b < 127) || (b > 160 && b < 173) || b > 173;
  let hidden = 256;
  const pointOf = Array.from({ length: 256 }, (_, byte) => (shown(byte) ? byte : hidden++));
  const words = gptWords(unicode);
  return (texts) =>
    texts.flatMap((text) => {
      const prefixed = part.add_prefix_space && text.points[0] !== 0x20;
      const whole = prefixed ? { points: [0x20, ...text.points], places: [text.places[0], ...text.places] } : text;
      const pieces = part.use_regex === false ? [whole] : split(whole, words).map((piece) => piece.text);
      return pieces.map(({ points, places }) => {
        /** @type {Text} */
        const found = { points: [], places: [] };
        points.forEach((point, i) => {
          for (const byte of utf8.encode(String.fromCodePoint(point))) {
            found.points.push(pointOf[byte]);
            found.places.push(places[i]);
          }
        });
        return found;
      });
    });
}

/**
 * `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
 * @param {Unicode} unicode
 * @returns {Match}
 */
function gptWords(unicode) {
  const contractions = CONTRACTIONS.map((text) => literal(textOf(text).points));
  const isSpace = (/** @type {number} */ p) => unicode.isSpace(p);
  const runs = [
    (/** @type {number} */ p) => unicode.isLetter(p),
    (/** @type {number} */ p) => unicode.isDigit(p),
    (/** @type {number} */ p) => !unicode.isLetter(p) && !unicode.isDigit(p) && !unicode.isSpace(p),
  ];
  return (points, at) => {
    const contraction = contractions.find((match) => match(points, at) > at);
    if (contraction) return contraction(points, at);
    for (const has of runs) {
      let end = points[at] === 0x20 && at + 1 < points.length && has(points[at + 1]) ? at + 1 : at;
      while (end < points.length && has(points[end])) end++;
      if (end > at) return end;
    }
    let end = at;
    while (end < points.length && isSpace(points[end])) end++;
    return end < points.length && end - at > 1 ? end - 1 : end;
  };
}

/**
 * The ids of a word's letters, before any merge.
 * @param {Text} text
 * @param {string} suffix of a word's last letter
 * @param {Map<string, number>} idOf
 * @param {number | undefined} unknown
 * @returns {Token[]}
 */
function lettersOf({ points, places }, suffix, idOf, unknown) {
  return points.flatMap((point, i) => {
    const letter = String.fromCodePoint(point) + (i + 1 === points.length ? suffix : "");
    const id = idOf.get(letter) ?? unknown;
    return id === undefined ? [] : [{ id, place: places[i] }];
  });
}

/**
 * A word whose pairs are merged, the lowest rank first and of equal ones the leftmost.
 * @param {Token[]} tokens
 * @param {Map<number, {rank: number, id: number}>} merges
 * @returns {Token[]}
 */
function merged(tokens, merges) {
  const next = tokens.map((_, i) => (i + 1 < tokens.length ? i + 1 : -1));
  const previous = tokens.map((_, i) => i - 1);
  /** @type {(Token | null)[]} */
  const left = tokens.map((token) => ({ ...token }));
  const queue = new Queue();
  const offer = (/** @type {number} */ at) => {
    const a = at < 0 ? null : left[at], b = a && next[at] >= 0 ? left[next[at]] : null;
    const merge = a && b ? merges.get(a.id * 2 ** 24 + b.id) : undefined;
    if (a && b && merge) queue.add({ ...merge, at, first: a.id, second: b.id });
  };
  for (let at = 0; at < tokens.length; at++) offer(at);
  for (let merge = queue.take(); merge; merge = queue.take()) {
    const { at, id, first, second } = merge;
    const a = left[at], behind = next[at];
    if (!a || a.id !== first || behind < 0 || left[behind]?.id !== second) continue;
    a.id = id;
    left[behind] = null;
    next[at] = next[behind];
    if (next[at] >= 0) previous[next[at]] = at;
    offer(previous[at]);
    offer(at);
  }
  return left.filter((token) => token !== null);
}

/** @typedef {{rank: number, id: number, at: number, first: number, second: number}} Merge */

/** Merges, the lowest rank and then the leftmost first: a binary heap. */
class Queue {
  constructor() {
    /** @type {Merge[]} */
    this._heap = [];
  }

  /** @param {Merge} merge */
  add(merge) {
    const heap = this._heap;
    let at = heap.push(merge) - 1;
    while (at > 0 && isBefore(heap[at], heap[(at - 1) >> 1])) at = this._swap(at, (at - 1) >> 1);
  }

  /** @returns {Merge | undefined} */
  take() {
    const heap = this._heap, first = heap[0], last = heap.pop();
    if (!last || heap.length === 0) return first;
    heap[0] = last;
    for (let at = 0; ; ) {
      const children = [2 * at + 1, 2 * at + 2].filter((i) => i < heap.length);
      const least = children.reduce((a, b) => (isBefore(heap[b], heap[a]) ? b : a), at);
      if (least === at) return first;
      at = this._swap(at, least);
    }
  }

  /**
   * @param {number} a
   * @param {number} b
   */
  _swap(a, b) {
    [this._heap[a], this._heap[b]] = [this._heap[b], this._heap[a]];
    return b;
  }
}

/**
 * @param {Merge} a
 * @param {Merge} b
 */
function isBefore(a, b) {
  return a.rank < b.rank || (a.rank === b.rank && a.at < b.at);
}

/**
 * The likeliest pieces of a word (Kudo 2018); unknown ones that touch are one.
 * @param {Map<string, number>} idOf
 * @param {readonly number[]} scores
 * @param {number | null | undefined} unknown
 * @returns {Model}
 */
function unigram(idOf, scores, unknown) {
  const least = scores.reduce((a, b) => Math.min(a, b), Infinity) - UNKNOWN_PENALTY;
  let longest = 1;
  for (const piece of idOf.keys()) longest = Math.max(longest, piece.length);
  return ({ points, places }) => {
    const letters = points.map((point) => String.fromCodePoint(point));
    /** @type {({score: number, start: number, id: number} | undefined)[]} */
    const best = new Array(letters.length + 1);
    const offer = (/** @type {number} */ start, /** @type {number} */ end, /** @type {number} */ id, /** @type {number} */ own) => {
      const score = own + (start === 0 ? 0 : best[start]?.score ?? 0);
      const known = best[end];
      if (!known || score > known.score) best[end] = { score, start, id };
    };
    for (let start = 0; start < letters.length; start++) {
      let piece = "", hasSingle = false;
      for (let end = start + 1; end <= letters.length; end++) {
        piece += letters[end - 1];
        if (piece.length > longest) break;
        const id = idOf.get(piece);
        if (id === undefined) continue;
        offer(start, end, id, scores[id]);
        hasSingle ||= end === start + 1;
      }
      if (hasSingle) continue;
      if (unknown == null) throw new InputError("the prompt has characters that the tokenizer does not know", "prompt");
      offer(start, start + 1, unknown, least);
    }
    return walkedBack(best, letters, places, idOf, unknown);
  };
}

/**
 * @param {readonly ({start: number, id: number} | undefined)[]} best
 * @param {readonly string[]} letters
 * @param {readonly number[]} places
 * @param {Map<string, number>} idOf
 * @param {number | null | undefined} unknown
 * @returns {Token[]}
 */
function walkedBack(best, letters, places, idOf, unknown) {
  /** @type {Token[]} */
  const found = [];
  let unknownEnd = -1;
  for (let end = letters.length; end > 0; ) {
    const { start, id } = /** @type {{start: number, id: number}} */ (best[end]);
    if (id === unknown) {
      if (unknownEnd < 0) unknownEnd = end;
      const goesOn = start > 0 && best[start]?.id === unknown;
      if (!goesOn) {
        const whole = letters.slice(start, unknownEnd).join("");
        found.push({ id: idOf.get(whole) ?? unknown, place: places[start] });
        unknownEnd = -1;
      }
    } else found.push({ id, place: places[start] });
    end = start;
  }
  return found.reverse();
}
