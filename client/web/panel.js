/** The ledger's panel: chart, legend with the figures of one window, and the figures of the session. */

import { Chart } from "./chart.js";
import { Ledger, STAGES } from "./ledger.js";
import { words } from "./words.js";

const ANNOUNCED_EVERY = 10;

export class LedgerPanel {
  /** @param {HTMLElement} root */
  constructor(root) {
    this.root = root;
    this.find = (/** @type {string} */ selector) => /** @type {HTMLElement} */ (root.querySelector(selector));
    this.ledger = new Ledger();
    this.budgetMs = 800;
    this.windowMs = 480;
    this.numStats = 0;
    /** As the engine measured itself at its start. */
    this.warmMs = 0;
    this.numSteps = 0;
    /** @type {number|null} As measured in this session. */
    this.paceMs = null;
    /** @type {import("./ledger.js").WindowRow|null} */
    this.pointed = null;
    this.canvas = /** @type {HTMLCanvasElement} */ (this.find("#chart"));
    this.chart = new Chart(this.canvas, (row) => {
      this.pointed = row;
      this.#showWindow();
    });
    this.values = this.#createLegend();
    this.clear();
  }

  /** Whether a window takes longer to compute than it may. */
  get isSlow() {
    return (this.paceMs ?? this.warmMs) > this.windowMs;
  }

  /** @param {{budget_ms: number, window_ms: number, engine: any}} info */
  setLimits(info) {
    this.warmMs = info.engine.warm_window_ms ?? 0;
    this.numSteps = info.engine.num_steps ?? 0;
    this.budgetMs = info.budget_ms;
    this.windowMs = info.window_ms;
    this.find("#limit-budget").textContent = `/ ${this.budgetMs} ms`;
    this.find("#limit-pace").textContent = `/ ${this.windowMs}`;
    this.#showVerdict();
    this.chart.show(this.ledger.rows, this.budgetMs);
  }

  clear() {
    this.ledger.clear();
    this.pointed = null;
    this.root.classList.remove("has-windows");
    for (const figure of this.root.querySelectorAll("[data-figure]")) figure.textContent = "–";
    this.root.removeAttribute("data-late");
    this.paceMs = null;
    this.#showVerdict();
    this.#showWindow();
    this.chart.show(this.ledger.rows, this.budgetMs);
  }

  /** @param {any} message A `ledger` message. */
  addWindow(message) {
    this.ledger.add(message);
    this.root.classList.add("has-windows");
    this.chart.show(this.ledger.rows, this.budgetMs);
    this.#figure("lead", `${Math.round(message.lead_ms)}`);
    this.#showVerdict();
    this.#showWindow();
  }

  /** @param {any} stats A `stats` message. */
  setStats(stats) {
    if (!stats.windows) return;
    for (const name of ["p50", "p95", "p99"]) this.#figure(name, String(Math.round(stats.latency_ms[name])));
    this.paceMs = stats.pace_ms.p50;
    this.#figure("pace", String(Math.round(stats.pace_ms.p50)));
    this.#showVerdict();
    this.#figure("underruns", String(stats.underruns));
    this.#figure("misses", words.ledger.missed(stats.misses, stats.skipped_windows));
    this.root.toggleAttribute("data-late", stats.latency_ms.p99 > this.budgetMs);
    if (this.numStats++ % ANNOUNCED_EVERY === 0) {
      this.canvas.setAttribute("aria-label", words.ledger.summary(stats, this.budgetMs));
    }
  }

  #showVerdict() {
    const steps = this.ledger.last?.parts.filter((part) => part.stage === "steps").length ?? this.numSteps;
    const { windowMs, numSteps } = this;
    const text = words.ledger.verdict({ paceMs: this.paceMs ?? this.warmMs, windowMs, steps, numSteps });
    const verdict = this.find("#verdict");
    verdict.hidden = text === "";
    if (verdict.textContent !== text) verdict.textContent = text;
    this.root.toggleAttribute("data-slow", this.isSlow);
  }

  /** @param {string} name @param {string} text */
  #figure(name, text) {
    this.find(`[data-figure="${name}"]`).textContent = text;
  }

  #createLegend() {
    const legend = this.find("#legend");
    return new Map(
      STAGES.map((stage) => {
        const entry = document.createElement("div");
        entry.dataset.stage = stage;
        const term = document.createElement("dt");
        term.textContent = words.ledger.stages[/** @type {"wait"} */ (stage)];
        const value = document.createElement("dd");
        entry.append(term, value);
        legend.append(entry);
        return [stage, value];
      }),
    );
  }

  #showWindow() {
    const row = this.pointed ?? this.ledger.last;
    for (const [stage, element] of this.values) {
      const sumMs = row?.parts.reduce((sum, part) => sum + (part.stage === stage ? part.ms : 0), 0);
      element.textContent = sumMs === undefined ? "–" : String(Math.round(sumMs));
    }
  }
}
