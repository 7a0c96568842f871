/** The server's HTTP side; the contract is client/PROTOCOL.md. */

const LIMIT_MS = 15_000;
/** A picture of 20 MB takes its time on the way up: the server gives it 30 s, and 30 s before that to the ones in front. */
const UPLOAD_LIMIT_MS = 75_000;
/** An engine that takes a prompt reads it, and the portrait, before it answers; the server gives it 180 s. */
const PROMPT_LIMIT_MS = 190_000;

/** An answer that was not a success: `code` and `message` are the server's, `status` 0 means that none came. */
export class ApiError extends Error {
  /**
   * @param {number} status
   * @param {string} code
   * @param {string} message
   * @param {number|null} retryAfterS
   */
  constructor(status, code, message, retryAfterS = null) {
    super(message);
    this.name = "ApiError";
    this.status = status;
    this.code = code;
    this.retryAfterS = retryAfterS;
  }
}

/**
 * @param {string} path
 * @param {RequestInit} [options]
 * @param {number} [limitMs] Until the answer has to begin.
 * @returns {Promise<Response>} A successful response.
 * @throws {ApiError}
 */
async function request(path, options = {}, limitMs = LIMIT_MS) {
  const abort = new AbortController();
  options.signal?.addEventListener("abort", () => abort.abort());
  const timer = setTimeout(() => abort.abort(), limitMs);
  try {
    const response = await fetch(path, { ...options, signal: abort.signal });
    if (!response.ok) throw await readError(response);
    return response;
  } catch (error) {
    if (error instanceof ApiError) throw error;
    throw new ApiError(0, "unreachable", error instanceof Error ? error.message : String(error));
  } finally {
    clearTimeout(timer);
  }
}

/** @param {Response} response */
async function readError(response) {
  const retryAfterS = Number(response.headers.get("Retry-After")) || null;
  try {
    const { error } = await response.json();
    return new ApiError(response.status, error.code, error.message, error.retry_after_s ?? retryAfterS);
  } catch {
    return new ApiError(response.status, "unknown", `status ${response.status}`, retryAfterS);
  }
}

/** @param {string} method @param {unknown} body */
const json = (method, body) => ({
  method,
  headers: { "Content-Type": "application/json" },
  body: JSON.stringify(body),
});

/** @returns {Promise<any>} See "GET /api/info". */
export const getInfo = async () => (await request("/api/info", { cache: "no-store" })).json();

/**
 * @typedef {object} Portrait
 * @property {string} id
 * @property {string} name
 * @property {"default"|"upload"} kind
 * @property {string} url
 *
 * @typedef {object} Crop
 * @property {number} x_px
 * @property {number} y_px
 * @property {number} width_px
 * @property {number} height_px
 *
 * @typedef {Portrait & {image: {width_px: number, height_px: number}, crop: Crop, face_found: boolean}} Upload
 */

/** @param {string[]} uploads Ids of uploads that are wanted too. @returns {Promise<Portrait[]>} Those that the server has. */
export async function getPortraits(uploads) {
  const query = new URLSearchParams(uploads.map((id) => ["upload", id]));
  return (await (await request(`/api/portraits?${query}`, { cache: "no-store" })).json()).portraits;
}

/** @param {Blob} file @returns {Promise<Upload>} */
export async function postPortrait(file) {
  const options = { method: "POST", headers: { "Content-Type": file.type }, body: file };
  return (await request("/api/portraits", options, UPLOAD_LIMIT_MS)).json();
}

/** @param {string} id @param {Crop} crop @returns {Promise<Upload>} */
export const putCrop = async (id, crop) =>
  (await request(`/api/portraits/${encodeURIComponent(id)}/crop`, json("PUT", crop))).json();

/** @returns {Promise<ArrayBuffer>} */
export const getSample = async () => (await request("/api/sample.wav")).arrayBuffer();

/**
 * @param {{params?: {prompt?: string}, [key: string]: unknown}} offer
 * @param {AbortSignal} signal Hangs up: the server then opens no session.
 * @returns {Promise<{sdp: string, type: "answer", session: string, control: string, playout_delay_ms: number}>}
 */
export async function postOffer(offer, signal) {
  const limitMs = offer.params?.prompt ? PROMPT_LIMIT_MS : LIMIT_MS;
  return (await request("/offer", { ...json("POST", offer), signal }, limitMs)).json();
}

/** Ends a session; also works while the page is being closed. @param {string} session */
export function deleteSession(session) {
  // A session that is gone already is as good as ended, and the server ends it by itself when the media stops.
  fetch(`/sessions/${encodeURIComponent(session)}`, { method: "DELETE", keepalive: true }).catch(() => {});
}
