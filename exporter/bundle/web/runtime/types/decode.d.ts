export function text(pattern?: RegExp, most?: number): Decode<string>;
export function whole(least: number, most?: number): Decode<number>;
export function number(above?: number, most?: number): Decode<number>;
/** @type {Decode<boolean>} */
export const truth: Decode<boolean>;
export function one<T extends string | number>(...known: T[]): Decode<T>;
export function list<T>(item: Decode<T>, least?: number, most?: number): Decode<readonly T[]>;
export function table<T>(item: Decode<T>): Decode<ReadonlyMap<string, T>>;
export function orNull<T>(inner: Decode<T>): Decode<T | null>;
export function optional<T>(inner: Decode<T>, fallback: unknown): Decode<T>;
export function record(fields: Record<string, Decode<any>>): Decode<any>;
/**
 * Gives the value of a field, or throws a RangeError that names it.
 */
export type Decode<T> = (value: unknown, where: string) => T;
