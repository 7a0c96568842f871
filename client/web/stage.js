/** The stage: the still portrait, the live picture over it, its sound, and its light. */

import { words } from "./words.js";

const VOLUME_KEY = "visavis.volume";

export class Stage {
  /** @param {HTMLElement} root */
  constructor(root) {
    this.root = root;
    const find = (/** @type {string} */ selector) => /** @type {any} */ (root.querySelector(selector));
    /** @type {HTMLVideoElement} */
    this.video = find("#video");
    /** @type {HTMLImageElement} */
    this.still = find("#still");
    this.ambient = find("#ambient");
    /** @type {HTMLButtonElement} */
    this.tap = find("#tap");
    this.tap.addEventListener("click", () => this.setSilent(false));
    this.video.volume = recallVolume();
    this.onSound = () => {};
  }

  /** Whether the avatar's sound is off. */
  get isSilent() {
    return this.video.muted;
  }

  /** Takes the shape of the engine's frame, once that is known. @param {number|null} widthPx @param {number|null} heightPx */
  setShape(widthPx, heightPx) {
    if (!widthPx || !heightPx) return;
    document.documentElement.style.setProperty("--aspect", String(widthPx / heightPx));
    document.body.classList.toggle("is-wide", widthPx > heightPx);
  }

  /** @param {import("./api.js").Portrait} portrait */
  showPortrait(portrait) {
    if (this.still.getAttribute("src") === portrait.url) return;
    this.still.src = portrait.url;
    this.still.alt = words.still(portrait.name);
    this.ambient.src = portrait.url;
  }

  /** @param {MediaStream|null} stream Null: back to the still portrait. */
  async showStream(stream) {
    if (this.video.srcObject === stream) return;
    this.root.classList.remove("has-picture");
    this.tap.hidden = true;
    this.video.srcObject = stream;
    if (!stream) return;
    this.#afterFirstFrame(stream, () => this.root.classList.add("has-picture"));
    try {
      await this.video.play();
    } catch (error) {
      if (!(error instanceof DOMException) || error.name !== "NotAllowedError") return;
      // The browser wants a tap before it plays sound: show the picture, ask for the tap.
      this.video.muted = true;
      this.tap.hidden = false;
      this.onSound();
      await this.video.play().catch(() => {});
    }
  }

  /** @param {MediaStream} stream @param {() => void} action */
  #afterFirstFrame(stream, action) {
    const { video } = this;
    const ready = () => video.srcObject === stream && action();
    if ("requestVideoFrameCallback" in video) video.requestVideoFrameCallback(ready);
    else /** @type {HTMLVideoElement} */ (video).addEventListener("timeupdate", ready, { once: true });
  }

  /** @param {boolean} isSilent */
  setSilent(isSilent) {
    this.video.muted = isSilent;
    this.tap.hidden = true;
    if (!isSilent && this.video.srcObject) this.video.play().catch(() => {});
    this.onSound();
  }

  /** @param {number} volume In [0, 1]. */
  setVolume(volume) {
    this.video.volume = volume;
    if (this.video.muted && volume > 0) this.setSilent(false);
    try {
      localStorage.setItem(VOLUME_KEY, String(volume));
    } catch {
      // Storage is switched off in this browser: the volume lasts as long as the page.
    }
  }

  /** @param {number} level Of the voice, in [0, 1]: the light around the portrait follows it. */
  setLight(level) {
    this.root.style.setProperty("--voice", level.toFixed(3));
  }
}

/** @returns {number} */
function recallVolume() {
  try {
    const volume = Number(localStorage.getItem(VOLUME_KEY) ?? 1);
    return volume >= 0 && volume <= 1 ? volume : 1;
  } catch {
    return 1;
  }
}
