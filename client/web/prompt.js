/** The text prompt of engines that take one: what is written, and what of it the server was told. */

import { words } from "./words.js";

const SENT_MS = 8_000;

export class Prompt {
  /**
   * @param {HTMLElement} root
   * @param {(text: string) => boolean} send Tells the server during a conversation; returns whether it could.
   */
  constructor(root, send) {
    this.root = root;
    this.send = send;
    const find = (/** @type {string} */ selector) => /** @type {any} */ (root.querySelector(selector));
    /** @type {HTMLTextAreaElement} */
    this.field = find("#prompt-text");
    /** @type {HTMLButtonElement} */
    this.button = find("#prompt-apply");
    this.note = find("#prompt-note");
    this.note.textContent = words.prompt.note;
    this.isOpen = false;
    /** What the server does without a prompt. */
    this.own = "";
    /** What the conversation was told last. */
    this.applied = "";
    this.field.addEventListener("input", () => this.#render());
    this.field.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.isComposing) return;
      event.preventDefault();
      this.#tell();
    });
    this.button.addEventListener("click", () => this.#tell());
  }

  /** Whether the engine takes a prompt. */
  get isTaken() {
    return !this.root.hidden;
  }

  get #text() {
    return this.field.value.replace(/\s+/g, " ").trim() || this.own;
  }

  /** @param {{accepts_prompt: boolean|null, prompt: string|null}} engine As in "GET /api/info". */
  show(engine) {
    this.root.hidden = !engine.accepts_prompt;
    if (this.isTaken && this.own === "") this.field.value ||= engine.prompt ?? "";
    this.own = engine.prompt ?? "";
  }

  /** A conversation begins with what is written. */
  apply() {
    this.applied = this.#text;
    this.#render();
  }

  /** @param {boolean} isOpen Whether there is a conversation that could be told. */
  setOpen(isOpen) {
    this.isOpen = isOpen;
    this.#render();
  }

  #tell() {
    if (!this.isOpen || this.#text === this.applied || !this.send(this.#text)) return;
    this.apply();
    this.note.textContent = words.prompt.sent;
    setTimeout(() => (this.note.textContent = words.prompt.note), SENT_MS);
  }

  #render() {
    this.button.hidden = !this.isOpen || this.#text === this.applied;
  }
}
