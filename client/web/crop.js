/** The upload dialog: choose a picture, then place the frame. */

import { ApiError, postPortrait, putCrop } from "./api.js";
import { SMALLEST_ZOOM, fitCrop, largestWidth, moveCrop, zoomCrop, zoomOf } from "./crop-geometry.js";
import { words } from "./words.js";

const MAX_BYTES = 20e6;
const TYPES = ["image/jpeg", "image/png", "image/webp"];
const KEY_STEP = 0.02;

/** @typedef {import("./api.js").Upload} Upload @typedef {{file: File, upload: Upload}} Chosen */

export class UploadDialog {
  /**
   * @param {HTMLDialogElement} dialog
   * @param {(chosen: Chosen) => void} onChosen A portrait is ready, or its crop changed.
   */
  constructor(dialog, onChosen) {
    this.dialog = dialog;
    this.onChosen = onChosen;
    this.find = (/** @type {string} */ selector) => /** @type {any} */ (dialog.querySelector(selector));
    this.image = this.find("#crop-image");
    this.frame = this.find("#crop-frame");
    this.zoom = this.find("#crop-zoom");
    /** @type {Chosen|null} */
    this.chosen = null;
    /** The file that is on its way; an answer about another one comes too late. @type {File|null} */
    this.sending = null;
    /** @type {string|null} */
    this.url = null;
    this.aspect = 1;
    /** @type {import("./api.js").Crop|null} */
    this.crop = null;
    /** @type {Map<number, PointerEvent>} */
    this.pointers = new Map();
    this.#bindChoosing();
    this.#bindCropping();
    dialog.addEventListener("close", () => this.#release());
  }

  /** Opens at the first step, or at once with a file (dropped on the page). @param {File} [file] */
  open(file) {
    this.#step("choose");
    this.#say("");
    if (!this.dialog.open) this.dialog.showModal();
    if (file) this.#send(file);
  }

  /** Opens at the second step for a portrait uploaded before. @param {Chosen} chosen */
  adjust(chosen) {
    if (!this.dialog.open) this.dialog.showModal();
    this.#showCrop(chosen, words.upload.adjust);
  }

  /** @param {"choose"|"crop"} step */
  #step(step) {
    this.dialog.dataset.step = step;
  }

  /** @param {string} text @param {boolean} [isBusy] */
  #say(text, isBusy = false) {
    this.find("#upload-say").textContent = text;
    this.dialog.toggleAttribute("data-busy", isBusy);
  }

  #bindChoosing() {
    const input = this.find("#upload-file");
    const drop = this.find("#upload-drop");
    input.addEventListener("change", () => {
      if (input.files[0]) this.#send(input.files[0]);
      input.value = "";
    });
    this.find("#upload-choose").addEventListener("click", () => input.click());
    drop.addEventListener("dragover", (/** @type {DragEvent} */ event) => event.preventDefault());
    drop.addEventListener("drop", (/** @type {DragEvent} */ event) => {
      event.preventDefault();
      event.stopPropagation();
      const file = event.dataTransfer?.files[0];
      if (file) this.#send(file);
    });
    for (const button of this.dialog.querySelectorAll("[data-close]")) {
      button.addEventListener("click", () => this.dialog.close());
    }
  }

  /** @param {File} file */
  async #send(file) {
    if (file.size > MAX_BYTES) return this.#say(words.upload.tooLarge(file.size));
    if (!TYPES.includes(file.type)) return this.#say(words.upload.wrongType(file.type));
    this.#say(words.upload.sending, true);
    this.sending = file;
    try {
      const chosen = { file, upload: await postPortrait(file) };
      if (this.sending !== file) return undefined;
      if (!chosen.upload.face_found) return this.#showCrop(chosen, words.upload.noFace);
      this.onChosen(chosen);
      return this.dialog.close();
    } catch (error) {
      return this.sending === file ? this.#say(uploadProblem(error)) : undefined;
    }
  }

  /** @param {Chosen} chosen @param {string} text */
  #showCrop(chosen, text) {
    this.#release();
    this.chosen = chosen;
    this.url = URL.createObjectURL(chosen.file);
    this.image.src = this.url;
    this.aspect = chosen.upload.crop.width_px / chosen.upload.crop.height_px;
    this.find("#crop-text").textContent = text;
    this.#say("");
    this.#step("crop");
    const { width_px, height_px } = chosen.upload.image;
    this.find("#crop-area").style.aspectRatio = `${width_px} / ${height_px}`;
    this.find("#crop-area").style.setProperty("--ratio", String(width_px / height_px));
    this.#place(chosen.upload.crop);
    this.frame.focus();
  }

  #release() {
    this.sending = null;
    if (this.url) URL.revokeObjectURL(this.url);
    this.url = null;
    this.chosen = null;
    this.crop = null;
    this.pointers.clear();
    this.image.removeAttribute("src");
  }

  /** @param {import("./api.js").Crop} crop */
  #place(crop) {
    const { image } = /** @type {Chosen} */ (this.chosen).upload;
    this.crop = fitCrop(crop, image, this.aspect);
    const percent = (/** @type {number} */ part, /** @type {number} */ whole) => `${((100 * part) / whole).toFixed(3)}%`;
    this.frame.style.left = percent(this.crop.x_px, image.width_px);
    this.frame.style.top = percent(this.crop.y_px, image.height_px);
    this.frame.style.width = percent(this.crop.width_px, image.width_px);
    this.frame.style.height = percent(this.crop.height_px, image.height_px);
    this.zoom.value = String(zoomOf(this.crop, image, this.aspect));
  }

  /** Pixels of the image per pixel of the screen. */
  get #scale() {
    return /** @type {Chosen} */ (this.chosen).upload.image.width_px / this.find("#crop-area").clientWidth;
  }

  /** @param {number} factor Larger than 1: the frame grows. */
  #zoomBy(factor) {
    if (!this.chosen || !this.crop) return;
    this.#place(zoomCrop(this.crop, this.crop.width_px * factor, this.chosen.upload.image, this.aspect));
  }

  /** @param {number} dx_px @param {number} dy_px */
  #moveBy(dx_px, dy_px) {
    if (!this.chosen || !this.crop) return;
    this.#place(moveCrop(this.crop, dx_px, dy_px, this.chosen.upload.image, this.aspect));
  }

  #bindCropping() {
    const area = this.find("#crop-area");
    this.zoom.max = String(1 / SMALLEST_ZOOM);
    this.zoom.addEventListener("input", () => {
      if (!this.chosen || !this.crop) return;
      const { image } = this.chosen.upload;
      this.#place(zoomCrop(this.crop, largestWidth(image, this.aspect) / Number(this.zoom.value), image, this.aspect));
    });
    area.addEventListener(
      "wheel",
      (/** @type {WheelEvent} */ event) => {
        event.preventDefault();
        this.#zoomBy(Math.exp(event.deltaY * 0.001));
      },
      { passive: false },
    );
    area.addEventListener("pointerdown", (/** @type {PointerEvent} */ event) => {
      event.preventDefault();
      area.setPointerCapture(event.pointerId);
      this.pointers.set(event.pointerId, event);
      this.frame.focus();
    });
    area.addEventListener("pointermove", (/** @type {PointerEvent} */ event) => this.#drag(event));
    for (const type of ["pointerup", "pointercancel"]) {
      area.addEventListener(type, (/** @type {PointerEvent} */ event) => this.pointers.delete(event.pointerId));
    }
    this.frame.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => this.#key(event));
    this.find("#crop-use").addEventListener("click", () => this.#use());
  }

  /** One pointer moves the frame, two zoom it. @param {PointerEvent} event */
  #drag(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before) return;
    const others = [...this.pointers.values()].filter((pointer) => pointer.pointerId !== event.pointerId);
    this.pointers.set(event.pointerId, event);
    if (others.length === 0) {
      this.#moveBy((event.clientX - before.clientX) * this.#scale, (event.clientY - before.clientY) * this.#scale);
    } else {
      const distance = (/** @type {PointerEvent} */ to) =>
        Math.hypot(to.clientX - others[0].clientX, to.clientY - others[0].clientY);
      this.#zoomBy(distance(event) / Math.max(1, distance(before)));
    }
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    if (!this.crop) return;
    const step = this.crop.width_px * KEY_STEP * (event.shiftKey ? 5 : 1);
    /** @type {Record<string, () => void>} */
    const actions = {
      ArrowLeft: () => this.#moveBy(-step, 0),
      ArrowRight: () => this.#moveBy(step, 0),
      ArrowUp: () => this.#moveBy(0, -step),
      ArrowDown: () => this.#moveBy(0, step),
      "+": () => this.#zoomBy(0.95),
      "-": () => this.#zoomBy(1.05),
    };
    if (!actions[event.key]) return;
    event.preventDefault();
    actions[event.key]();
  }

  async #use() {
    const { chosen, crop } = this;
    if (!chosen || !crop) return;
    this.#say(words.upload.saving, true);
    try {
      const upload = await putCrop(chosen.upload.id, crop);
      this.onChosen({ file: chosen.file, upload });
      this.dialog.close();
    } catch (error) {
      this.#say(uploadProblem(error));
    }
  }
}

/** @param {unknown} error @returns {string} */
export function uploadProblem(error) {
  if (error instanceof ApiError && error.code === "upload_limit_reached") return words.upload.full;
  if (error instanceof ApiError && error.code === "answer_timeout") return words.upload.busy;
  if (error instanceof ApiError && error.status === 503) return words.upload.notReady;
  if (error instanceof ApiError && error.status > 0) return words.upload.refused(error.message);
  return words.upload.unreachable;
}
