/** Where the voice comes from: the microphone, or the shipped sample played as if it were one. */

import { getSample } from "./api.js";

/** Silence between two rounds of the sample, so that the resting face can be seen too. */
const SAMPLE_PAUSE_S = 2.5;
/** How long the sound of the page may take to run: a wireless device wakes slowly, and without any Firefox never runs it. */
const RUNNING_LIMIT_MS = 8_000;

/**
 * @typedef {object} Voice
 * @property {"microphone"|"sample"} kind
 * @property {MediaStreamTrack} track Goes to the server.
 * @property {AnalyserNode|null} analyser Listens to it; never audible here. Null: the browser cannot listen to this one.
 * @property {() => void} close
 */

/** The browser refused or lost the voice; `code` is a key of `words.problems`. */
export class VoiceError extends Error {
  /** @param {string} code @param {string} [detail] */
  constructor(code, detail = "") {
    super(detail || code);
    this.name = "VoiceError";
    this.code = code;
  }
}

/** @type {AudioContext|null} */
let context = null;

/** The one audio context of the page; must first be called from a click. */
function audioContext() {
  context ??= new (window.AudioContext ?? /** @type {any} */ (window).webkitAudioContext)();
  if (context.state !== "running") context.resume().catch(() => {});
  return context;
}

/** @param {AudioContext} audio */
function createAnalyser(audio) {
  const analyser = audio.createAnalyser();
  analyser.fftSize = 1024;
  analyser.smoothingTimeConstant = 0;
  return analyser;
}

/**
 * @param {"microphone"|"sample"} kind
 * @param {(error: VoiceError) => void} onLost Called once when the voice ends by itself (unplugged, revoked).
 * @returns {Promise<Voice>}
 * @throws {VoiceError}
 */
export function openVoice(kind, onLost) {
  const audio = audioContext();
  return kind === "microphone" ? openMicrophone(audio, onLost) : openSample(audio);
}

/** @param {AudioContext} audio @param {(error: VoiceError) => void} onLost @returns {Promise<Voice>} */
async function openMicrophone(audio, onLost) {
  if (!navigator.mediaDevices?.getUserMedia) {
    throw new VoiceError(window.isSecureContext ? "microphone_unsupported" : "insecure_context");
  }
  setAudioSession("play-and-record");
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({
      audio: { echoCancellation: true, noiseSuppression: true, autoGainControl: true, channelCount: 1 },
    });
  } catch (error) {
    setAudioSession("auto");
    throw new VoiceError(microphoneProblem(error), error instanceof Error ? error.message : "");
  }
  const [track] = stream.getAudioTracks();
  const source = createSource(audio, stream);
  const analyser = source && createAnalyser(audio);
  if (source && analyser) source.connect(analyser);
  const ended = () => onLost(new VoiceError("microphone_lost"));
  track.addEventListener("ended", ended);
  return {
    kind: "microphone",
    track,
    analyser,
    close() {
      track.removeEventListener("ended", ended);
      source?.disconnect();
      track.stop();
      setAudioSession("auto");
    },
  };
}

/**
 * @param {AudioContext} audio @param {MediaStream} stream
 * @returns {MediaStreamAudioSourceNode|null} Null: a microphone of another rate than the loudspeaker's, in some browsers.
 */
function createSource(audio, stream) {
  try {
    return audio.createMediaStreamSource(stream);
  } catch {
    return null;
  }
}

/** @param {AudioContext} audio @throws {VoiceError} It does not run. */
async function running(audio) {
  const limit = AbortSignal.timeout(RUNNING_LIMIT_MS);
  await new Promise((resolve) => {
    const look = () => audio.state === "running" && resolve(undefined);
    audio.addEventListener("statechange", look, { signal: limit });
    limit.addEventListener("abort", resolve);
    look();
  });
  if (audio.state !== "running") throw new VoiceError("sample_unheard");
}

/** Safari on phones: keeps the loudspeaker loud while the microphone is open. @param {"play-and-record"|"auto"} type */
function setAudioSession(type) {
  const session = /** @type {any} */ (navigator).audioSession;
  if (session) session.type = type;
}

/**
 * @param {unknown} error What getUserMedia rejected with.
 * @returns {string} A key of `words.problems`.
 */
export function microphoneProblem(error) {
  switch (/** @type {{name?: string}} */ (error)?.name) {
    case "NotAllowedError":
    case "SecurityError":
    case "PermissionDeniedError":
      return "microphone_refused";
    case "NotFoundError":
    case "DevicesNotFoundError":
    case "OverconstrainedError":
      return "microphone_missing";
    case "NotReadableError":
    case "TrackStartError":
    case "AbortError":
      return "microphone_in_use";
    default:
      return "microphone_unknown";
  }
}

/** @param {AudioContext} audio @returns {Promise<Voice>} */
async function openSample(audio) {
  await running(audio);
  let speech;
  try {
    speech = await audio.decodeAudioData(await getSample());
  } catch (error) {
    throw new VoiceError("sample_missing", error instanceof Error ? error.message : "");
  }
  const round = audio.createBuffer(1, speech.length + Math.round(SAMPLE_PAUSE_S * speech.sampleRate), speech.sampleRate);
  round.copyToChannel(speech.getChannelData(0), 0);
  const source = audio.createBufferSource();
  source.buffer = round;
  source.loop = true;
  const analyser = createAnalyser(audio);
  const output = audio.createMediaStreamDestination();
  source.connect(analyser);
  source.connect(output);
  source.start();
  const [track] = output.stream.getAudioTracks();
  return {
    kind: "sample",
    track,
    analyser,
    close() {
      source.stop();
      source.disconnect();
      track.stop();
    },
  };
}
