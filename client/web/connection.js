/** Runs the machine of `machine.js`: opens voices and peers, arms timers, and tells the page what changed. */

import { advance, initialState, isActive, isOpen } from "./machine.js";
import { Peer } from "./peer.js";
import { VoiceError, openVoice } from "./voice.js";

/**
 * @typedef {import("./machine.js").State} State
 *
 * @typedef {object} ConnectionHandlers
 * @property {() => Promise<object>} request Portrait and params for the next offer; may upload a portrait again.
 * @property {() => RTCIceServer[]} iceServers
 * @property {(state: State) => void} change
 * @property {(request: any, portrait: string|null) => void} controllable The control channel is open; `request` is what
 *     was offered, `portrait` is shown.
 * @property {(stream: MediaStream|null) => void} stream
 * @property {(message: any) => void} message Ledger, stats, error and done messages, and state for what else it says.
 * @property {(voice: import("./voice.js").Voice|null) => void} voice
 * @property {(code: string) => void} notice Something failed that does not end the conversation.
 */

export class Connection {
  /** @param {ConnectionHandlers} handlers */
  constructor(handlers) {
    this.handlers = handlers;
    this.state = initialState();
    /** @type {Peer|null} */
    this.peer = null;
    /** @type {import("./voice.js").Voice|null} */
    this.voice = null;
    this.isMuted = false;
    this.playoutDelayMs = 0;
    this.lastRequestId = 0;
    /** @type {ReturnType<typeof setTimeout>|undefined} */
    this.retryTimer = undefined;
    window.addEventListener("online", () => this.#dispatch({ type: "online" }));
    window.addEventListener("pagehide", () => this.peer?.close());
    window.addEventListener("pageshow", (event) => event.persisted && this.#losePeer());
  }

  /** @param {"microphone"|"sample"} source */
  start(source) {
    this.#dispatch({ type: "start", source });
  }

  stop() {
    this.#dispatch({ type: "stop" });
  }

  /** Changes the voice without a new session. @param {"microphone"|"sample"} source */
  async switchSource(source) {
    if (!isActive(this.state) || source === this.state.source) return;
    const before = this.voice;
    try {
      const voice = await openVoice(source, (error) => this.#loseVoice(error));
      if (this.voice !== before || !before) return voice.close();
      this.#setVoice(voice);
      this.#dispatch({ type: "source_switched", source });
      await this.peer?.replaceTrack(voice.track);
    } catch (error) {
      this.handlers.notice(error instanceof VoiceError ? error.code : "microphone_unknown");
    }
  }

  /** @param {boolean} isMuted */
  setMuted(isMuted) {
    this.isMuted = isMuted;
    if (this.voice) this.voice.track.enabled = !isMuted;
  }

  /** @param {{type: string, [key: string]: unknown}} message Gets an id. @returns {boolean} Whether it was sent. */
  send(message) {
    return isOpen(this.state) && Boolean(this.peer?.send({ ...message, id: ++this.lastRequestId }));
  }

  /** @returns {Promise<RTCStatsReport|null>} */
  async getStats() {
    return isOpen(this.state) && this.peer ? this.peer.getStats() : null;
  }

  /** @param {import("./machine.js").Event} event */
  #dispatch(event) {
    const before = this.state;
    const { state, effects } = advance(before, event, performance.now());
    this.state = state;
    if (state !== before) this.handlers.change(state);
    for (const effect of effects) this.#effects[effect.type]();
  }

  #effects = {
    open_source: () => this.#openSource(),
    close_source: () => this.#setVoice(null),
    open_peer: () => this.#openPeer(),
    close_peer: () => this.#closePeer(),
    arm_retry: () => {
      const delayMs = Math.max(0, (this.state.retryAtMs ?? 0) - performance.now());
      this.retryTimer = setTimeout(() => this.#dispatch({ type: "retry_due" }), delayMs);
    },
  };

  async #openSource() {
    const { source } = this.state;
    // The user may have stopped, and even asked for the other voice, while the browser was asking about this one.
    const isWanted = () => this.state.phase === "asking" && this.state.source === source;
    try {
      const voice = await openVoice(source, (error) => this.#loseVoice(error));
      if (!isWanted()) return voice.close();
      this.#setVoice(voice);
      this.#dispatch({ type: "source_ready" });
    } catch (error) {
      if (!isWanted()) return undefined;
      const known = error instanceof VoiceError ? error : new VoiceError("microphone_unknown", String(error));
      this.#dispatch({ type: "source_failed", problem: { code: known.code, detail: known.message } });
    }
  }

  /** @param {VoiceError} error */
  #loseVoice(error) {
    this.#dispatch({ type: "source_lost", problem: { code: error.code, detail: "" } });
  }

  /** @param {import("./voice.js").Voice|null} voice */
  #setVoice(voice) {
    this.voice?.close();
    this.voice = voice;
    if (voice) voice.track.enabled = !this.isMuted;
    this.handlers.voice(voice);
  }

  async #openPeer() {
    clearTimeout(this.retryTimer);
    const { generation } = this.state;
    /** @param {import("./machine.js").Event} event */
    const tell = (event) => this.#dispatch({ ...event, generation, random: Math.random() });
    const refuse = (/** @type {import("./api.js").ApiError} */ error) => {
      if (error.status === 0) return tell({ type: "unreachable" });
      const { status, code, message, retryAfterS } = error;
      return tell({ type: "refused", status, code, detail: message, retryAfterS });
    };
    let request;
    try {
      request = await this.handlers.request();
    } catch (error) {
      return refuse(/** @type {import("./api.js").ApiError} */ (error));
    }
    if (generation !== this.state.generation || !this.voice) return undefined;
    this.peer = new Peer(this.voice.track, this.handlers.iceServers(), {
      answered: (answer) => {
        this.playoutDelayMs = answer.playout_delay_ms;
        tell({ type: "answered" });
      },
      refused: refuse,
      lost: () => tell({ type: "lost" }),
      stream: (stream) => this.handlers.stream(stream),
      controllable: (portrait) => this.handlers.controllable(request, portrait),
      message: (message) => {
        if (message.type === "state") {
          this.playoutDelayMs = message.playout_delay_ms;
          tell({ type: "server", state: message.state, engine: message.engine });
        }
        this.handlers.message(message);
      },
    });
    return this.peer.open(request);
  }

  #closePeer() {
    clearTimeout(this.retryTimer);
    this.peer?.close();
    this.peer = null;
    this.handlers.stream(null);
  }

  /** The page comes back from the browser's cache: its connections did not survive. */
  #losePeer() {
    this.#dispatch({ type: "lost", random: Math.random() });
  }
}
