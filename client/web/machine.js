/**
 * The life of one conversation as a pure function: `advance(state, event, nowMs)` gives the next state and what to do.
 *
 * No timers, sockets or devices here; `connection.js` carries out the effects and reports back as events. Each attempt to
 * reach the server has a generation: events of an earlier one are ignored, so a late answer cannot revive a closed peer.
 */

/**
 * @typedef {"idle"|"asking"|"offering"|"connecting"|"warming"|"live"|"resting"|"waiting"|"failed"} Phase
 * idle: nothing open. asking: the microphone (or the sample) is being opened. offering: the offer is on its way.
 * connecting: answered, no media yet. warming: connected, first frames not yet out. live: the avatar speaks.
 * resting: the avatar idles because the engine is late or restarting. waiting: the next attempt is due at `retryAtMs`.
 * failed: `problem` needs a decision of the user.
 *
 * @typedef {"busy"|"engine"|"lost"|"unreachable"} WaitReason
 *
 * @typedef {object} Problem
 * @property {string} code What went wrong, a key of `words.problems`.
 * @property {string} [detail] The server's or the browser's own sentence.
 *
 * @typedef {object} State
 * @property {Phase} phase
 * @property {"microphone"|"sample"} source Where the voice comes from.
 * @property {number} generation Number of attempts so far in this page.
 * @property {number} failures Attempts in a row that did not reach `live`.
 * @property {boolean} again Whether this conversation was live before (so: a reconnection).
 * @property {WaitReason|null} reason Why it waits; also kept during the attempt that follows.
 * @property {number|null} retryAtMs
 * @property {Problem|null} problem
 * @property {string|null} engine State of the engine as the server last told it.
 *
 * @typedef {{type: "open_source"|"open_peer"|"close_peer"|"close_source"|"arm_retry"}} Effect
 * @typedef {{type: string, [key: string]: any}} Event
 */

/** Why a server that says when to come again is waited for, by its code. @type {Record<string, WaitReason>} */
const WAIT_REASONS = { session_limit_reached: "busy", answer_timeout: "unreachable" };
export const FIRST_BACKOFF_MS = 500;
export const LONGEST_BACKOFF_MS = 10_000;

/** @returns {State} */
export function initialState() {
  return {
    phase: "idle",
    source: "microphone",
    generation: 0,
    failures: 0,
    again: false,
    reason: null,
    retryAtMs: null,
    problem: null,
    engine: null,
  };
}

/**
 * Time until the next attempt.
 * @param {number} failures Failures in a row before this one.
 * @param {number} random In [0, 1): spreads clients that lost the same server.
 * @returns {number} Milliseconds.
 */
export function backoffMs(failures, random) {
  const base = Math.min(LONGEST_BACKOFF_MS, FIRST_BACKOFF_MS * 2 ** Math.min(failures, 20));
  return Math.round(base * (0.8 + 0.4 * random));
}

/** @param {State} state */
export const isOpen = (state) => ["connecting", "warming", "live", "resting"].includes(state.phase);

/** @param {State} state */
export const isActive = (state) => !["idle", "failed"].includes(state.phase);

/**
 * @param {State} state
 * @param {Event} event
 * @param {number} nowMs Any monotonic clock.
 * @returns {{state: State, effects: Effect[]}}
 */
export function advance(state, event, nowMs) {
  if ("generation" in event && event.generation !== state.generation) return { state, effects: [] };
  const handler = HANDLERS[event.type];
  if (!handler) throw new Error(`unknown event ${event.type}`);
  return handler(state, event, nowMs) ?? { state, effects: [] };
}

/**
 * @param {State} state
 * @param {Partial<State>} change
 * @param {Effect["type"][]} effects
 */
const next = (state, change, ...effects) => ({
  state: { ...state, ...change },
  effects: effects.map((type) => ({ type })),
});

/** @param {State} state @param {Problem} problem */
const fail = (state, problem) =>
  next(state, { phase: "failed", problem, reason: null, retryAtMs: null }, "close_peer", "close_source");

/** @param {State} state @param {WaitReason} reason @param {number} delayMs @param {number} nowMs */
const wait = (state, reason, delayMs, nowMs) =>
  next(
    state,
    { phase: "waiting", reason, retryAtMs: nowMs + delayMs, failures: state.failures + 1 },
    "close_peer",
    "arm_retry",
  );

/** @param {State} state */
const attempt = (state) =>
  next(state, { phase: "offering", generation: state.generation + 1, retryAtMs: null, engine: null }, "open_peer");

/** @type {Record<string, (state: State, event: Event, nowMs: number) => {state: State, effects: Effect[]} | undefined>} */
const HANDLERS = {
  start(state, event) {
    if (isActive(state)) return undefined;
    const fresh = { phase: "asking", source: event.source, failures: 0, again: false, reason: null, problem: null };
    return next(state, /** @type {Partial<State>} */ (fresh), "open_source");
  },

  stop(state) {
    if (state.phase === "idle") return undefined;
    const { generation, source } = state;
    return next({ ...initialState(), generation, source }, {}, "close_peer", "close_source");
  },

  source_ready(state) {
    return state.phase === "asking" ? attempt(state) : undefined;
  },

  source_failed(state, event) {
    return state.phase === "asking" ? fail(state, event.problem) : undefined;
  },

  source_lost(state, event) {
    return isActive(state) ? fail(state, event.problem) : undefined;
  },

  source_switched(state, event) {
    return next(state, { source: event.source });
  },

  answered(state) {
    return state.phase === "offering" ? next(state, { phase: "connecting" }) : undefined;
  },

  refused(state, event, nowMs) {
    if (state.phase !== "offering") return undefined;
    // Of the server's own troubles, this one waits for the user to choose another portrait.
    if (event.status < 500 || event.code === "upload_limit_reached") {
      return fail(state, { code: event.code, detail: event.detail });
    }
    if (event.status === 503) {
      const reason = WAIT_REASONS[event.code] ?? "engine";
      return wait(state, reason, (event.retryAfterS ?? 5) * 1000, nowMs);
    }
    return wait(state, "unreachable", backoffMs(state.failures, event.random), nowMs);
  },

  unreachable(state, event, nowMs) {
    if (state.phase !== "offering") return undefined;
    const reason = state.again ? "lost" : "unreachable";
    return wait(state, reason, backoffMs(state.failures, event.random), nowMs);
  },

  lost(state, event, nowMs) {
    if (state.phase === "offering") return HANDLERS.unreachable(state, event, nowMs);
    if (!isOpen(state)) return undefined;
    return wait(state, "lost", backoffMs(state.failures, event.random), nowMs);
  },

  server(state, event, nowMs) {
    if (!isOpen(state)) return undefined;
    if (event.state === "closed") return HANDLERS.lost(state, event, nowMs);
    const isLive = event.state === "live";
    return next(state, {
      phase: event.state,
      engine: event.engine,
      again: state.again || isLive,
      failures: isLive ? 0 : state.failures,
      reason: isLive ? null : state.reason,
    });
  },

  retry_due(state) {
    return state.phase === "waiting" ? attempt(state) : undefined;
  },

  online(state) {
    return state.phase === "waiting" && state.reason !== "busy" ? attempt(state) : undefined;
  },
};
