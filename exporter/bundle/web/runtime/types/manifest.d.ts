/**
 * The manifest of what is in `manifest.json`, checked against what is in `manifest.sha256`; throws
 * CheckFailed that names the field and what is wrong.
 * @param {Uint8Array} content
 * @param {Uint8Array} digest
 * @param {string} where the package's name, for errors
 * @returns {Promise<Manifest>}
 */
export function parseManifest(content: Uint8Array, digest: Uint8Array, where: string): Promise<Manifest>;
/**
 * Throw CheckFailed where bytes are not those of an entry.
 * @param {Uint8Array} content
 * @param {FileEntry} entry
 * @param {string} where the package's name
 */
export function checkFile(content: Uint8Array, entry: FileEntry, where: string): Promise<void>;
/**
 * SHA-256 in hexadecimal digits.
 * @param {Uint8Array} content
 */
export function sha256(content: Uint8Array): Promise<string>;
/**
 * Shape of the latent: (1, channels, height, width).
 * @param {PictureEntry} entry
 * @returns {[number, number, number, number]}
 */
export function latentShape({ latentChannels, heightPx, widthPx, latentScalePx }: PictureEntry): [number, number, number, number];
/**
 * The stage that gives the loop what it needs to go on, and its port.
 * @param {readonly Stage[]} stages
 * @param {Result} result
 * @returns {{stage: Stage, port: string} | undefined}
 */
export function giving(stages: readonly Stage[], result: Result): {
    stage: Stage;
    port: string;
} | undefined;
export const MANIFEST: "manifest.json";
export const DIGEST: "manifest.sha256";
export type FileEntry = {
    path: string;
    bytes: number;
    sha256: string;
};
export type Port = {
    name: string;
    shape: readonly number[];
    dtype: "float32" | "int32";
};
export type Tolerance = {
    graphRelative: number;
    imagePsnrDb: number;
};
export type GraphEntry = {
    name: string;
    /**
     * the file that an engine opens
     */
    entry: string;
    inputs: readonly Port[];
    outputs: readonly Port[];
    files: readonly FileEntry[];
    tolerance: Tolerance;
    session: ReadonlyMap<string, string>;
};
/**
 * what stands in for the graph of its name; its files by path
 */
export type SizedGraph = Omit<GraphEntry, "files"> & {
    files: readonly string[];
};
/**
 * a further size, by what differs from the first
 */
export type SizeEntry = {
    widthPx: number;
    heightPx: number;
    graphs: readonly SizedGraph[];
    pictures: readonly Golden[];
    predictedPeakBytes: number | null;
};
export type SourceKind = "tokens" | "output" | "negative output" | "latent" | "image";
export type Source = {
    kind: SourceKind;
    name: string;
    port: string;
    rowOfStep: boolean;
};
export type Result = "velocity" | "start" | "image" | "preview";
export type Stage = {
    graph: string;
    parts: readonly string[];
    runs: "once per prompt" | "each step" | "twice each step" | "once" | "for previews";
    inputs: ReadonlyMap<string, Source>;
    results: ReadonlyMap<string, Result>;
    imageToImageOnly: boolean;
    negativeInputs: ReadonlyMap<string, Source>;
};
export type Guidance = {
    scale: number;
    negativePrompt: string | null;
};
export type Schedule = {
    mode: "euler" | "renoise";
    sigmas: readonly number[];
    guidance: Guidance | null;
};
export type PixelsEntry = {
    toLevelsScale: number;
    toLevelsOffset: number;
    levels: number;
    fromLevelsScale: number;
    fromLevelsOffset: number;
};
export type PreviewEntry = {
    factors: readonly (readonly number[])[];
    bias: readonly number[];
};
export type PictureEntry = {
    widthPx: number;
    heightPx: number;
    latentChannels: number;
    latentScalePx: number;
    pixels: PixelsEntry;
    preview: PreviewEntry | null;
    previewGraph: string;
};
export type TokenizerEntry = {
    path: string;
    tokens: number;
    padId: number;
    closingId: number | null;
    vocabularySize: number;
};
export type Golden = {
    prompt: string;
    seed: number;
    image: string;
    unquantized: string;
    tensors: string;
    like: string;
    same: ReadonlyMap<string, string>;
};
export type Manifest = {
    formatVersion: string;
    name: string;
    backend: string;
    scheme: string;
    origin: {
        licence: string;
    };
    schedule: Schedule;
    picture: PictureEntry;
    text: {
        t5: boolean;
        tokenizers: ReadonlyMap<string, TokenizerEntry>;
    };
    stages: readonly Stage[];
    graphs: readonly GraphEntry[];
    golden: {
        pictures: readonly Golden[];
        tokens: string;
        noise: string;
    };
    files: readonly FileEntry[];
    device: {
        predictedPeakBytes: number | null;
    };
    sizes: readonly SizeEntry[];
};
