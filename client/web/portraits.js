/** The row of portraits: which are there, which is chosen, and the pictures that this browser brought. */

import { getPortraits, postPortrait, putCrop } from "./api.js";
import { UploadDialog } from "./crop.js";
import { words } from "./words.js";

const CHOICE_KEY = "visavis.portrait";

/** @typedef {import("./api.js").Portrait} Portrait @typedef {import("./crop.js").Chosen} Chosen */

export class Portraits {
  /**
   * @param {{row: HTMLElement, dialog: HTMLDialogElement, upload: HTMLElement, adjust: HTMLElement}} elements
   * @param {(portrait: Portrait) => void} onChoose The user chose, or the picture of the choice changed.
   */
  constructor(elements, onChoose) {
    this.elements = elements;
    this.onChoose = onChoose;
    /** @type {Portrait[]} */
    this.list = [];
    /** Uploads of this page by id, oldest first: the file is kept to send it again to a restarted server. @type {Map<string, Chosen>} */
    this.own = new Map();
    /** @type {string|null} */
    this.chosenId = recall();
    this.dialog = new UploadDialog(elements.dialog, (chosen) => this.#accept(chosen));
    elements.upload.addEventListener("click", () => this.dialog.open());
    elements.adjust.addEventListener("click", () => {
      const chosen = this.own.get(this.chosenId ?? "");
      if (chosen) this.dialog.adjust(chosen);
    });
    this.#bindDropping();
  }

  /** @returns {Portrait|undefined} */
  get chosen() {
    return this.list.find((portrait) => portrait.id === this.chosenId);
  }

  /**
   * Brings the list up to date with the server. An upload that a restarted server forgot is sent again if it is chosen.
   * @throws {import("./api.js").ApiError}
   */
  async refresh() {
    const served = await getPortraits([...this.own.keys()]);
    const known = new Set(served.map((portrait) => portrait.id));
    for (const [id, chosen] of [...this.own]) {
      if (known.has(id)) continue;
      if (id === this.chosenId) await this.#sendAgain(id, chosen);
      else this.own.delete(id);
    }
    this.#compose(served);
    if (!this.chosen) this.chosenId = this.list[0]?.id ?? null;
    this.#render();
    if (this.chosen) this.onChoose(this.chosen);
  }

  /** @param {string} id @param {Chosen} chosen */
  async #sendAgain(id, chosen) {
    const { crop } = chosen.upload;
    const fresh = await postPortrait(chosen.file);
    this.own.delete(id);
    this.own.set(fresh.id, { file: chosen.file, upload: await putCrop(fresh.id, crop) });
    this.chosenId = fresh.id;
  }

  /** @param {Chosen} chosen */
  #accept(chosen) {
    this.own.set(chosen.upload.id, chosen);
    this.#compose(this.list);
    this.#render();
    this.#choose(chosen.upload.id);
    // The server keeps few pictures of each visitor: this one may have taken the place of another.
    getPortraits([...this.own.keys()]).then((served) => this.#forget(served), () => {});
  }

  /** Drops the uploads that the server has no more, but the chosen one. @param {Portrait[]} served */
  #forget(served) {
    const known = new Set(served.map((portrait) => portrait.id));
    for (const id of this.own.keys()) if (!known.has(id) && id !== this.chosenId) this.own.delete(id);
    this.#compose(served);
    this.#render();
  }

  /** The server's own portraits, then this visitor's. @param {Portrait[]} served */
  #compose(served) {
    const defaults = served.filter((portrait) => portrait.kind === "default");
    this.list = [...defaults, ...[...this.own.values()].map(({ upload }) => ({ ...upload, name: words.uploadName }))];
  }

  /** @param {string} id */
  #choose(id) {
    this.chosenId = id;
    remember(id);
    for (const input of this.elements.row.querySelectorAll("input")) input.checked = input.value === id;
    this.elements.adjust.hidden = !this.own.has(id);
    if (this.chosen) this.onChoose(this.chosen);
  }

  #render() {
    const { row, upload, adjust } = this.elements;
    const focused = row.contains(document.activeElement) && document.activeElement instanceof HTMLInputElement;
    for (const tile of row.querySelectorAll(".tile:not(.tile-upload)")) tile.remove();
    for (const portrait of this.list) row.insertBefore(this.#tile(portrait), upload);
    adjust.hidden = !this.own.has(this.chosenId ?? "");
    if (focused) /** @type {HTMLElement|null} */ (row.querySelector("input:checked"))?.focus();
  }

  /** @param {Portrait} portrait */
  #tile(portrait) {
    const tile = document.createElement("label");
    tile.className = "tile";
    const input = document.createElement("input");
    input.type = "radio";
    input.name = "portrait";
    input.value = portrait.id;
    input.checked = portrait.id === this.chosenId;
    input.addEventListener("change", () => this.#choose(portrait.id));
    const image = document.createElement("img");
    image.src = portrait.url;
    image.alt = "";
    image.draggable = false;
    const name = document.createElement("span");
    name.textContent = portrait.name;
    tile.append(input, image, name);
    return tile;
  }

  #bindDropping() {
    const body = document.body;
    const hasFiles = (/** @type {DragEvent} */ event) => event.dataTransfer?.types.includes("Files");
    body.addEventListener("dragover", (event) => {
      if (!hasFiles(event)) return;
      event.preventDefault();
      body.classList.add("dropping");
    });
    body.addEventListener("dragleave", (event) => {
      if (!event.relatedTarget) body.classList.remove("dropping");
    });
    body.addEventListener("drop", (event) => {
      body.classList.remove("dropping");
      const file = event.dataTransfer?.files[0];
      if (!file) return;
      event.preventDefault();
      this.dialog.open(file);
    });
  }
}

/** @returns {string|null} */
function recall() {
  try {
    return localStorage.getItem(CHOICE_KEY);
  } catch {
    return null; // Storage is switched off in this browser: the choice lasts as long as the page.
  }
}

/** @param {string} id */
function remember(id) {
  try {
    localStorage.setItem(CHOICE_KEY, id);
  } catch {
    // As above.
  }
}
