/** Draws the ledger: one bar per window, its stages stacked, against the budget line. */

import { MAX_WINDOWS, axisMs } from "./ledger.js";
import { words } from "./words.js";

const MARGIN = { left: 34, right: 2, top: 8, bottom: 4 };

/** @typedef {import("./ledger.js").WindowRow} WindowRow */

export class Chart {
  /**
   * @param {HTMLCanvasElement} canvas
   * @param {(row: WindowRow|null) => void} onPoint The window under the pointer, or null.
   */
  constructor(canvas, onPoint) {
    this.canvas = canvas;
    this.context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
    /** @type {WindowRow[]} */
    this.rows = [];
    this.budgetMs = 800;
    /** @type {number|null} */
    this.pointed = null;
    this.isQueued = false;
    const point = (/** @type {number|null} */ slot) => {
      if (slot === this.pointed) return;
      this.pointed = slot;
      onPoint(this.#rowAt(slot));
      this.#queue();
    };
    canvas.addEventListener("pointermove", (event) => point(this.#slotAt(event.offsetX)));
    canvas.addEventListener("pointerleave", () => point(null));
    new ResizeObserver(() => this.#queue()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener?.("change", () => this.#queue());
  }

  /** @param {WindowRow[]} rows @param {number} budgetMs */
  show(rows, budgetMs) {
    this.rows = rows;
    this.budgetMs = budgetMs;
    this.#queue();
  }

  #queue() {
    if (this.isQueued) return;
    this.isQueued = true;
    requestAnimationFrame(() => {
      this.isQueued = false;
      this.#draw();
    });
  }

  get #slotWidth() {
    return (this.canvas.clientWidth - MARGIN.left - MARGIN.right) / MAX_WINDOWS;
  }

  /** @param {number} x @returns {number|null} */
  #slotAt(x) {
    const slot = Math.floor((x - MARGIN.left) / this.#slotWidth);
    return slot >= 0 && slot < MAX_WINDOWS ? slot : null;
  }

  /** Newest at the right edge. @param {number|null} slot */
  #rowAt(slot) {
    return slot === null ? null : (this.rows[slot - (MAX_WINDOWS - this.rows.length)] ?? null);
  }

  #draw() {
    const { canvas, context } = this;
    const width = canvas.clientWidth;
    const height = canvas.clientHeight;
    if (!width || !height) return;
    const scale = window.devicePixelRatio || 1;
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    context.setTransform(scale, 0, 0, scale, 0, 0);
    const style = getComputedStyle(canvas);
    const color = (/** @type {string} */ name) => style.getPropertyValue(`--${name}`).trim();
    const topMs = axisMs(this.rows, this.budgetMs);
    const yOf = (/** @type {number} */ ms) =>
      height - MARGIN.bottom - (Math.min(ms, topMs) / topMs) * (height - MARGIN.top - MARGIN.bottom);
    this.#drawGrid(width, yOf, color);
    const first = MAX_WINDOWS - this.rows.length;
    this.rows.forEach((row, index) => this.#drawBar(row, first + index, yOf, color));
    this.#drawBudget(width, yOf, color);
  }

  /** @param {number} width @param {(ms: number) => number} yOf @param {(name: string) => string} color */
  #drawGrid(width, yOf, color) {
    const { context } = this;
    context.font = `11px ${getComputedStyle(this.canvas).fontFamily}`;
    context.textAlign = "right";
    context.textBaseline = "middle";
    // Without bars the words for a newcomer stand where the middle line would be.
    for (const ms of this.rows.length ? [0, this.budgetMs / 2] : [0]) {
      const y = Math.round(yOf(ms)) - 0.5;
      context.fillStyle = color("line");
      context.fillRect(MARGIN.left, y, width - MARGIN.left - MARGIN.right, 1);
      context.fillStyle = color("muted");
      context.fillText(String(ms), MARGIN.left - 8, Math.min(y, yOf(0) - 5));
    }
  }

  /** @param {WindowRow} row @param {number} slot @param {(ms: number) => number} yOf @param {(name: string) => string} color */
  #drawBar(row, slot, yOf, color) {
    const { context } = this;
    const gap = this.#slotWidth > 5 ? 2 : 1;
    const x = MARGIN.left + slot * this.#slotWidth;
    let sumMs = 0;
    context.globalAlpha = this.pointed === null || this.pointed === slot ? 1 : 0.45;
    for (const part of row.parts) {
      if (part.ms <= 0) continue;
      const bottom = yOf(sumMs);
      sumMs += part.ms;
      const top = yOf(sumMs);
      context.fillStyle = color(part.stage === "steps" ? `stage-steps-${part.step % 2}` : `stage-${part.stage}`);
      context.fillRect(x, top, this.#slotWidth - gap, Math.max(0.5, bottom - top));
    }
    if (row.missed) {
      context.fillStyle = color("alert");
      context.fillRect(x, yOf(sumMs) - 4, this.#slotWidth - gap, 3);
    }
    context.globalAlpha = 1;
  }

  /** @param {number} width @param {(ms: number) => number} yOf @param {(name: string) => string} color */
  #drawBudget(width, yOf, color) {
    const { context } = this;
    const y = Math.round(yOf(this.budgetMs)) - 0.5;
    context.strokeStyle = color("text");
    context.lineWidth = 1;
    context.setLineDash([4, 4]);
    context.beginPath();
    context.moveTo(MARGIN.left, y);
    context.lineTo(width - MARGIN.right, y);
    context.stroke();
    context.setLineDash([]);
    context.fillStyle = color("text");
    context.fillText(String(this.budgetMs), MARGIN.left - 8, y);
    context.textAlign = "left";
    context.textBaseline = "bottom";
    context.fillText(words.ledger.budget, MARGIN.left + 4, y - 3);
    context.textBaseline = "middle";
  }
}
