/** Every text that the page shows beside index.html, in one place. */

/** @typedef {import("./machine.js").State} State */

/**
 * @typedef {object} Status
 * @property {"quiet"|"busy"|"live"|"alert"} tone
 * @property {string} title A few words.
 * @property {string} hint One sentence, or "".
 *
 * @typedef {object} Pace
 * @property {number} paceMs Compute time of a window.
 * @property {number} windowMs What it may take.
 * @property {number} steps Denoising steps of the last window.
 * @property {number} numSteps Those that the engine takes when it has the time.
 */

export const words = {
  start: "Start speaking",
  stop: "Stop",
  cancel: "Cancel",
  tryAgain: "Try again",
  useSample: "Use the sample voice",
  useSampleFirst: "No microphone? Use the sample voice",
  useMicrophone: "Use my microphone",
  mute: "Mute the microphone",
  unmute: "Unmute the microphone",
  silence: "Mute the avatar",
  sound: "Unmute the avatar",
  uploadName: "Yours",
  still: (/** @type {string} */ name) => `${name}, not speaking yet`,

  ledger: {
    budget: "budget",
    stages: {
      wait: "queue",
      features: "listen",
      steps: "denoise",
      decode: "decode",
      copy: "copy",
      pace: "buffer",
    },
    summary: (/** @type {any} */ stats, /** @type {number} */ budgetMs) =>
      `Window latency: median ${Math.round(stats.latency_ms.p50)} milliseconds, 99th percentile ` +
      `${Math.round(stats.latency_ms.p99)}, budget ${budgetMs}.`,
    /** What is wrong with the pace, or "". */
    verdict: (/** @type {Pace} */ { paceMs, windowMs, steps, numSteps }) => {
      if (paceMs > windowMs) {
        const takes = `a window of ${windowMs} ms takes ${Math.round(paceMs).toLocaleString("en")} ms to compute`;
        return `Slower than live: ${takes}, so steps and windows are left out.`;
      }
      return steps < numSteps ? `To keep the pace, the engine takes ${steps} of its ${numSteps} steps.` : "";
    },
    /** Windows over budget by stage, and those that were never made. */
    missed: (/** @type {Record<string, number>} */ misses, /** @type {number} */ skipped) =>
      Object.entries({ ...misses, skipped })
        .filter(([, count]) => count > 0)
        .map(([stage, count]) => `${count} ${words.ledger.stages[/** @type {"wait"} */ (stage)] ?? "left out"}`)
        .join(", ") || "none",
  },

  prompt: {
    note: "A sentence or two: who speaks, in which mood, in what light.",
    read: "The engine reads the prompt and the portrait first; that may take a while.",
    sent: "Sent. The engine takes some seconds to read it, and goes on as before meanwhile.",
  },

  upload: {
    tooLarge: (/** @type {number} */ bytes) =>
      `This file has ${(bytes / 1e6).toFixed(1)} MB; a portrait may have at most 20 MB.`,
    wrongType: (/** @type {string} */ type) =>
      `This file is ${type ? `of type ${type}` : "of an unknown type"}; a portrait must be a JPEG, PNG or WebP picture.`,
    sending: "Looking for the face …",
    saving: "Cutting the picture …",
    refused: (/** @type {string} */ message) => `The server cannot use this picture: ${message}.`,
    full: "The server has no room for another picture: all that it keeps are being shown. Try again in a while.",
    busy: "The server is busy with other pictures. Try again in a moment.",
    notReady: "The engine is still starting. Try again in a moment.",
    unreachable: "The server did not answer. Is it still running?",
    noFace: "No face was found by itself. Move and zoom the frame: eyes a little above the middle, chin and shoulders inside.",
    adjust: "Move and zoom the frame: eyes a little above the middle, chin and shoulders inside.",
  },

  problems: /** @type {Record<string, {title: string, text: string}>} */ ({
    microphone_refused: {
      title: "The microphone is blocked",
      text: "Allow it beside the address bar (the lock or microphone sign), then try again. Or let the sample voice speak.",
    },
    microphone_missing: {
      title: "No microphone found",
      text: "Plug one in and try again. Or let the sample voice speak.",
    },
    microphone_in_use: {
      title: "The microphone is taken",
      text: "Another program seems to hold it. Close that one and try again, or let the sample voice speak.",
    },
    microphone_lost: {
      title: "The microphone went away",
      text: "It was unplugged, or its permission was withdrawn. Bring it back and try again.",
    },
    microphone_unsupported: {
      title: "This browser gives no microphone",
      text: "A current Chrome, Edge, Firefox or Safari does. The sample voice works here as well.",
    },
    microphone_unknown: {
      title: "The microphone did not start",
      text: "Try again, or let the sample voice speak.",
    },
    insecure_context: {
      title: "No microphone on this address",
      text: insecureText(globalThis.location?.hostname ?? "server", globalThis.location?.port || "80"),
    },
    sample_missing: {
      title: "The sample voice did not load",
      text: "The server did not deliver it, or the browser cannot play it. Your microphone will do.",
    },
    sample_unheard: {
      title: "This browser plays no sound",
      text: "So the sample voice cannot speak. Plug in headphones or a loudspeaker and try again, or use your microphone.",
    },
    upload_limit_reached: {
      title: "The server has no room for your picture",
      text: "All that it keeps are being shown. Choose one of its own faces, or try again in a while.",
    },
    not_found: {
      title: "This portrait is gone",
      text: "Choose another one and start again.",
    },
    bad_sdp: {
      title: "The server did not understand the browser",
      text: "The two could not agree on sound and video.",
    },
    unknown: {
      title: "The server refused",
      text: "It gave this reason:",
    },
    switch_failed: {
      title: "The voice stays as it was",
      text: "The other one could not be opened.",
    },
  }),
};

/** @param {string} host @param {string} port */
function insecureText(host, port) {
  return (
    "Browsers give it to https:// and to this very machine only. A tunnel makes this machine of it: " +
    `ssh -L ${port}:localhost:${port} ${host}, then open http://localhost:${port}. The sample voice works right away.`
  );
}

/**
 * What stands in the header: the state of the conversation, or of the server while there is none.
 * @param {State} state
 * @param {{info: any, isMuted: boolean, isSlow: boolean, nowMs: number}} now `info` is null while the server is not
 *     reachable; `isSlow`: a window takes longer than it may.
 * @returns {Status}
 */
export function statusOf(state, { info, isMuted, isSlow, nowMs }) {
  switch (state.phase) {
    case "idle":
      return idleStatus(info, isSlow);
    case "asking":
      return state.source === "microphone"
        ? { tone: "busy", title: "Waiting for the microphone", hint: "Your browser asks for it once." }
        : { tone: "busy", title: "Fetching the sample voice", hint: "" };
    case "offering":
    case "connecting":
      return state.again
        ? { tone: "busy", title: "Reconnecting", hint: "The conversation goes on as soon as the server answers." }
        : { tone: "busy", title: "Connecting", hint: info?.engine.accepts_prompt ? words.prompt.read : "" };
    case "warming":
      return { tone: "busy", title: "Waking up the face", hint: "Connected; the first frames are on their way." };
    case "live":
      return isSlow ? SLOW : liveStatus(state, isMuted);
    case "resting":
      if (state.engine && state.engine !== "ready") {
        return { tone: "alert", title: "The engine restarts", hint: "The face rests meanwhile. Nothing to do." };
      }
      return isSlow
        ? SLOW
        : { tone: "alert", title: "The engine is late", hint: "The server's machine is busy; the face rests meanwhile." };
    case "waiting":
      return waitingStatus(state, info, nowMs);
    default:
      return { tone: "alert", title: problemOf(state).title, hint: problemOf(state).text };
  }
}

/** The same while live and resting: such an engine goes back and forth between the two. @type {Status} */
const SLOW = {
  tone: "alert",
  title: "Slower than live",
  hint: "The face takes longer to make than the words to say: it leaves some out.",
};

/** @param {any} info @param {boolean} isSlow @returns {Status} */
function idleStatus(info, isSlow) {
  if (!info) return { tone: "alert", title: "Server not reachable", hint: "This page keeps trying." };
  if (info.engine.state === "starting") return { tone: "busy", title: "The engine is starting", hint: "" };
  if (info.engine.state === "restarting") return { tone: "busy", title: "The engine is restarting", hint: "" };
  if (info.engine.state === "failed") {
    return { tone: "alert", title: "The engine does not start", hint: "The server's log says why." };
  }
  if (info.sessions.active >= info.sessions.max) {
    return { tone: "busy", title: info.sessions.max === 1 ? "Somebody is speaking" : "All places are taken", hint: "" };
  }
  return isSlow
    ? { tone: "alert", title: "Ready, but slower than live", hint: "This machine cannot keep up with a voice: the face will skip words." }
    : { tone: "quiet", title: "Ready", hint: "" };
}

/** @param {State} state @param {boolean} isMuted @returns {Status} */
function liveStatus(state, isMuted) {
  if (isMuted) return { tone: "live", title: "Live, microphone muted", hint: "The face rests while you are silent." };
  return state.source === "microphone"
    ? { tone: "live", title: "Live", hint: "Best with headphones." }
    : { tone: "live", title: "Live, sample voice", hint: "You hear it back from the avatar." };
}

/** @param {State} state @param {any} info @param {number} nowMs @returns {Status} */
function waitingStatus(state, info, nowMs) {
  const seconds = Math.max(0, Math.ceil(((state.retryAtMs ?? nowMs) - nowMs) / 1000));
  const soon = seconds > 0 ? `Trying again in ${seconds} s.` : "Trying again now.";
  switch (state.reason) {
    case "busy":
      return { tone: "busy", title: "Every place is taken", hint: `You are let in as soon as one is free. ${soon}` };
    case "engine":
      if (info?.engine.state === "failed") return { ...idleStatus(info, false), hint: `The server's log says why. ${soon}` };
      return { tone: "busy", title: "The engine is getting ready", hint: soon };
    case "lost":
      return { tone: "alert", title: "Connection lost", hint: `It comes back by itself. ${soon}` };
    default:
      return { tone: "alert", title: "Server not reachable", hint: soon };
  }
}

/** @param {State} state @returns {{title: string, text: string}} */
export function problemOf(state) {
  const code = state.problem?.code ?? "unknown";
  const known = words.problems[code];
  if (known) return known;
  return { ...words.problems.unknown, text: `${words.problems.unknown.text} ${state.problem?.detail || code}.` };
}
