/** Level of the voice: drawn as bars, told to the stage's light, and readable as a meter. */

const FLOOR_DBFS = -60;
const NUM_BARS = 5;
const TOLD_EVERY_MS = 500;
const FALL_PER_S = 2.2;

/**
 * @param {Float32Array} samples In [-1, 1].
 * @returns {number} Level in [0, 1]: 0 at -60 dBFS and below, 1 at full scale.
 */
export function levelOf(samples) {
  let sum = 0;
  for (const sample of samples) sum += sample * sample;
  const dbfs = 10 * Math.log10(sum / Math.max(1, samples.length) + 1e-12);
  return Math.min(1, Math.max(0, 1 - dbfs / FLOOR_DBFS));
}

export class Meter {
  /**
   * @param {HTMLElement} element Gets role "meter" values and the bars.
   * @param {(level: number) => void} onLevel Called per drawn frame with the smoothed level.
   */
  constructor(element, onLevel) {
    this.element = element;
    this.onLevel = onLevel;
    this.samples = new Float32Array(1024);
    this.level = 0;
    this.toldMs = 0;
    this.lastMs = 0;
    /** @type {AnalyserNode|null} */
    this.analyser = null;
    /** @type {number|undefined} */
    this.request = undefined;
    this.bars = Array.from({ length: NUM_BARS }, () => element.appendChild(document.createElement("i")));
  }

  /** @param {AnalyserNode|null} analyser Null: nothing to listen to, the bars lie down. */
  listen(analyser) {
    this.analyser = analyser;
    if (this.request !== undefined) cancelAnimationFrame(this.request);
    this.request = undefined;
    if (analyser) this.#loop(performance.now());
    else this.#show(0, 0);
  }

  /** @param {number} nowMs */
  #loop(nowMs) {
    if (!this.analyser) return;
    this.analyser.getFloatTimeDomainData(this.samples);
    const fall = (FALL_PER_S * Math.min(100, nowMs - this.lastMs)) / 1000;
    this.lastMs = nowMs;
    this.#show(Math.max(levelOf(this.samples), this.level - fall), nowMs);
    this.request = requestAnimationFrame((ms) => this.#loop(ms));
  }

  /** @param {number} level @param {number} nowMs */
  #show(level, nowMs) {
    this.level = level;
    this.onLevel(level);
    this.bars.forEach((bar, index) => {
      const middle = Math.abs(index - (NUM_BARS - 1) / 2) / NUM_BARS;
      const height = Math.min(1, Math.max(0.12, level * 1.35 - middle * level));
      bar.style.transform = `scaleY(${height.toFixed(3)})`;
    });
    if (nowMs - this.toldMs > TOLD_EVERY_MS || nowMs === 0) {
      this.toldMs = nowMs;
      this.element.setAttribute("aria-valuenow", String(Math.round(level * 100)));
    }
  }
}
