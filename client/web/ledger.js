/** The last windows and figures of the session, in bounded memory; `chart.js` draws them. */

export const MAX_WINDOWS = 60;

/** The stages in the order in which a window passes them; `pace` is time that it waits on purpose. */
export const STAGES = ["wait", "features", "steps", "decode", "copy", "pace"];

/**
 * @typedef {object} Part
 * @property {string} stage One of STAGES.
 * @property {number} step Index of the denoising step, 0 for other stages.
 * @property {number} ms
 *
 * @typedef {object} WindowRow
 * @property {number} window
 * @property {number} latencyMs
 * @property {number} leadMs
 * @property {Part[]} parts
 * @property {string|null} missed The stage that broke the budget.
 */

/**
 * @param {any} message A `ledger` message.
 * @returns {WindowRow}
 */
export function toRow(message) {
  const parts = STAGES.flatMap((stage) =>
    [message.stages_ms[stage] ?? 0].flat().map((ms, step) => ({ stage, step, ms: Math.max(0, ms) })),
  );
  return {
    window: message.window,
    latencyMs: message.latency_ms,
    leadMs: message.lead_ms,
    parts,
    missed: message.missed,
  };
}

export class Ledger {
  /** @type {WindowRow[]} Oldest first. */
  rows = [];

  clear() {
    this.rows = [];
  }

  /** @param {any} message A `ledger` message. */
  add(message) {
    this.rows.push(toRow(message));
    if (this.rows.length > MAX_WINDOWS) this.rows.shift();
  }

  /** @returns {WindowRow|undefined} */
  get last() {
    return this.rows.at(-1);
  }
}

/**
 * Upper end of the time axis: room above the budget, more only when a window needs it.
 * @param {WindowRow[]} rows
 * @param {number} budgetMs
 * @returns {number} Milliseconds, a multiple of 200.
 */
export function axisMs(rows, budgetMs) {
  const highest = rows.reduce((most, row) => Math.max(most, row.latencyMs), budgetMs * 1.2);
  return Math.min(4 * budgetMs, Math.ceil(highest / 200) * 200);
}
