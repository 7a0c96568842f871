/**
 * One attempt at a session: a peer connection and its control channel.
 *
 * Ends for good at the first loss; trying again is a new Peer. Everything it learns is told through `handlers`.
 */

import { ApiError, deleteSession, postOffer } from "./api.js";

const GATHERING_LIMIT_MS = 2_000;
const CONNECTING_LIMIT_MS = 20_000;
const DISCONNECTED_LIMIT_MS = 4_000;
const CONTROL_RETRY_MS = 400;
/**
 * How long sound and picture wait for late packets. Sound spends some 40 ms more on its way to the loudspeaker than a
 * frame to the screen, and Chromium corrects a smaller difference than that not at all, so the picture waits for it.
 */
const JITTER_TARGET_MS = { audio: 60, video: 100 };
/** Close code of the server for a session that does not exist (any more). */
const SESSION_IS_GONE = 4004;

/**
 * @typedef {object} PeerHandlers
 * @property {(answer: {session: string, playout_delay_ms: number}) => void} answered
 * @property {(error: ApiError) => void} refused
 * @property {() => void} lost
 * @property {(stream: MediaStream) => void} stream
 * @property {(portrait: string|null) => void} controllable The control channel is open, and this portrait is shown.
 * @property {(message: any) => void} message A message of the control channel.
 */

export class Peer {
  /**
   * @param {MediaStreamTrack} track The voice.
   * @param {RTCIceServer[]} iceServers
   * @param {PeerHandlers} handlers
   */
  constructor(track, iceServers, handlers) {
    this.handlers = handlers;
    this.isClosed = false;
    this.offering = new AbortController();
    /** @type {string|null} */
    this.session = null;
    /** @type {WebSocket|null} */
    this.socket = null;
    /** @type {Set<ReturnType<typeof setTimeout>>} */
    this.timers = new Set();
    this.connection = new RTCPeerConnection({ iceServers });
    this.sender = this.connection.addTransceiver(track, { direction: "sendrecv" }).sender;
    this.connection.addTransceiver("video", { direction: "recvonly" });
    this.connection.addEventListener("track", (event) => this.#receive(event));
    this.connection.addEventListener("connectionstatechange", () => this.#watch());
  }

  /**
   * Offers the session. Never throws: the outcome goes to the handlers.
   * @param {object} request Portrait, seed and params, as in "POST /offer".
   */
  async open(request) {
    try {
      await this.connection.setLocalDescription(await this.connection.createOffer());
      await this.#gathered();
      if (this.isClosed) return;
      const local = /** @type {RTCSessionDescription} */ (this.connection.localDescription);
      const answer = await postOffer({ sdp: local.sdp, type: local.type, ...request }, this.offering.signal);
      if (this.isClosed) return deleteSession(answer.session);
      this.session = answer.session;
      this.control = answer.control;
      this.handlers.answered(answer);
      await this.connection.setRemoteDescription({ type: "answer", sdp: answer.sdp });
      this.#after(CONNECTING_LIMIT_MS, () => this.connection.connectionState !== "connected" && this.#lose());
      this.#openControl(true);
    } catch (error) {
      if (this.isClosed) return;
      if (error instanceof ApiError) this.handlers.refused(error);
      else this.#lose();
    }
  }

  /** @param {MediaStreamTrack} track */
  replaceTrack(track) {
    return this.sender.replaceTrack(track);
  }

  /** @param {object} message @returns {boolean} Whether it could be sent. */
  send(message) {
    if (this.socket?.readyState !== WebSocket.OPEN) return false;
    this.socket.send(JSON.stringify(message));
    return true;
  }

  getStats() {
    return this.connection.getStats();
  }

  /** Frees everything and ends the session on the server; a second call does nothing. */
  close() {
    if (this.isClosed) return;
    this.isClosed = true;
    this.timers.forEach(clearTimeout);
    this.offering.abort();
    this.socket?.close();
    this.connection.close();
    if (this.session) deleteSession(this.session);
  }

  /** @param {number} delayMs @param {() => void} action */
  #after(delayMs, action) {
    const timer = setTimeout(() => {
      this.timers.delete(timer);
      if (!this.isClosed) action();
    }, delayMs);
    this.timers.add(timer);
    return timer;
  }

  #lose() {
    if (!this.isClosed) this.handlers.lost();
  }

  /** Resolves when all candidates are in the offer, or when waiting for more would only delay the start. */
  #gathered() {
    if (this.connection.iceGatheringState === "complete") return Promise.resolve();
    return /** @type {Promise<void>} */ (
      new Promise((resolve) => {
        this.#after(GATHERING_LIMIT_MS, resolve);
        this.connection.addEventListener("icegatheringstatechange", () => {
          if (this.connection.iceGatheringState === "complete") resolve();
        });
      })
    );
  }

  /** @param {RTCTrackEvent} event */
  #receive(event) {
    if ("jitterBufferTarget" in event.receiver) {
      event.receiver.jitterBufferTarget = JITTER_TARGET_MS[/** @type {"audio"|"video"} */ (event.track.kind)];
    }
    if (event.streams[0]) this.handlers.stream(event.streams[0]);
  }

  #watch() {
    const { connectionState } = this.connection;
    if (connectionState === "failed" || connectionState === "closed") this.#lose();
    if (connectionState === "disconnected") {
      this.#after(DISCONNECTED_LIMIT_MS, () => this.connection.connectionState !== "connected" && this.#lose());
    }
  }

  /**
   * A control channel that closes by itself is the quickest sign of a stopped server: one new try, then the session is lost.
   * @param {boolean} mayRetry
   */
  #openControl(mayRetry) {
    const url = new URL(/** @type {string} */ (this.control), location.href);
    url.protocol = location.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(url);
    let retry = mayRetry;
    let isGreeted = false;
    this.socket = socket;
    socket.addEventListener("message", (event) => {
      if (this.isClosed) return;
      const message = JSON.parse(event.data);
      retry ||= message.type === "state";
      this.handlers.message(message);
      if (message.type !== "state" || isGreeted) return;
      isGreeted = true;
      this.handlers.controllable(message.portrait);
    });
    socket.addEventListener("close", (event) => {
      if (this.isClosed) return;
      if (retry && event.code !== SESSION_IS_GONE) this.#after(CONTROL_RETRY_MS, () => this.#openControl(false));
      else this.#lose();
    });
  }
}
