/** Wires the page: the only module that knows all the others. */

import { getInfo } from "./api.js";
import { Connection } from "./connection.js";
import { detailRows, showRows } from "./details.js";
import { isActive, isOpen } from "./machine.js";
import { Meter } from "./meter.js";
import { LedgerPanel } from "./panel.js";
import { Portraits } from "./portraits.js";
import { Prompt } from "./prompt.js";
import { Stage } from "./stage.js";
import { problemOf, statusOf, words } from "./words.js";

const POLL_MS = 3_000;
const IDLE_POLL_MS = 10_000;
const TICK_MS = 250;
const STATS_MS = 1_000;
const NOTICE_MS = 6_000;
const UPDATE_MS = 150;

const byId = (/** @type {string} */ id) => /** @type {any} */ (document.getElementById(id));

/** @type {any} The server's last answer to "GET /api/info"; null while it does not answer. */
let info = null;
/** @type {{title: string, text: string}|null} Something that went wrong without ending the conversation. */
let passing = null;
let hasPortraits = false;

const stage = new Stage(byId("stage"));
const panel = new LedgerPanel(byId("ledger"));
const meter = new Meter(byId("meter"), (level) => stage.setLight(level));
const connection = new Connection({
  request: offerRequest,
  iceServers: () => info?.ice_servers ?? [],
  change: render,
  controllable: catchUp,
  stream: (stream) => stage.showStream(stream),
  message: receive,
  voice: (voice) => meter.listen(voice?.analyser ?? null),
  notice: (code) => pass({ title: words.problems.switch_failed.title, text: words.problems[code].text }),
});
const portraits = new Portraits(
  { row: byId("faces"), dialog: byId("upload-dialog"), upload: byId("upload"), adjust: byId("adjust") },
  (portrait) => {
    stage.showPortrait(portrait);
    connection.send({ type: "set_portrait", portrait: portrait.id });
  },
);

const prompt = new Prompt(byId("prompt"), (text) => connection.send({ type: "update", params: { prompt: text } }));

/** An engine that is told in words what to do has no other controls. */
const params = () =>
  prompt.isTaken
    ? { prompt: prompt.applied }
    : { liveliness: Number(byId("liveliness").value), look_at_camera: Number(byId("look").value) };

async function offerRequest() {
  await portraits.refresh();
  panel.clear();
  prompt.apply();
  return { portrait: portraits.chosenId ?? undefined, params: params() };
}

/** Tells the server what was changed while there was no channel to tell it. @param {any} offered @param {string|null} shown */
function catchUp(offered, shown) {
  const { chosenId } = portraits;
  if (chosenId && chosenId !== shown) connection.send({ type: "set_portrait", portrait: chosenId });
  if (JSON.stringify(params()) !== JSON.stringify(offered.params)) connection.send({ type: "update", params: params() });
}

/** @param {any} message Of the control channel. */
function receive(message) {
  if (message.type === "ledger") panel.addWindow(message);
  if (message.type === "stats") {
    const wasSlow = panel.isSlow;
    panel.setStats(message);
    if (panel.isSlow !== wasSlow) render();
  }
  // A picture that made room for others on the server is sent again, because it was chosen after all.
  if (message.type === "error" && message.code === "not_found" && message.id) portraits.refresh().catch(() => {});
  else if (message.type === "error") pass({ title: words.problems.unknown.title, text: `${message.message}.` });
}

/** Shows a problem on the stage for some seconds. @param {{title: string, text: string}} problem */
function pass(problem) {
  passing = problem;
  render();
  setTimeout(() => {
    if (passing !== problem) return;
    passing = null;
    render();
  }, NOTICE_MS);
}

function render() {
  const { state } = connection;
  const now = { info, isMuted: connection.isMuted, isSlow: panel.isSlow, nowMs: performance.now() };
  const status = statusOf(state, now);
  byId("status").dataset.tone = status.tone;
  byId("stage").dataset.phase = state.phase;
  byId("stage").classList.toggle("is-open", isOpen(state));
  prompt.setOpen(isOpen(state));
  setText("status-title", status.title);
  announce(status);
  renderNotice(state, status);
  renderDock(state, status);
}

/** @param {string} id @param {string} text */
function setText(id, text) {
  const element = byId(id);
  if (element.textContent !== text) element.textContent = text;
}

/** For screen readers: every change of state once, countdowns not at all. @param {import("./words.js").Status} status */
function announce(status) {
  const text = `${status.title}. ${status.hint.replace(/ ?Trying again.*$/, "")}`.trim();
  setText("announce", passing ? `${passing.title}. ${passing.text}` : text);
}

/** @param {import("./machine.js").State} state @param {import("./words.js").Status} status */
function renderNotice(state, status) {
  const isFailed = state.phase === "failed";
  const shown = passing ?? (isFailed ? problemOf(state) : { title: status.title, text: status.hint });
  const isShown = Boolean(passing) || !["idle", "live", "resting"].includes(state.phase);
  byId("notice").hidden = !isShown;
  byId("notice").classList.toggle("is-working", !passing && !isFailed);
  if (!isShown) return;
  setText("notice-title", shown.title);
  setText("notice-text", shown.text);
}

/** @param {import("./machine.js").State} state @param {import("./words.js").Status} status */
function renderDock(state, status) {
  const isCalling = isActive(state) && !isOpen(state);
  const label = state.phase === "failed" ? words.tryAgain : isOpen(state) ? words.stop : isCalling ? words.cancel : words.start;
  setText("main", label);
  byId("main").classList.toggle("is-quiet", isActive(state));
  setText("hint", ["idle", "live", "resting"].includes(state.phase) ? status.hint : "");
  byId("other").hidden = isCalling;
  const isSample = state.source === "sample" && isActive(state);
  setText("other", isSample ? words.useMicrophone : state.phase === "idle" ? words.useSampleFirst : words.useSample);
  byId("mute").hidden = state.source !== "microphone";
  setToggle("mute", connection.isMuted, connection.isMuted ? words.unmute : words.mute);
  setToggle("sound", stage.isSilent, stage.isSilent ? words.sound : words.silence);
}

/** @param {string} id @param {boolean} isPressed @param {string} label */
function setToggle(id, isPressed, label) {
  const button = byId(id);
  button.setAttribute("aria-pressed", String(isPressed));
  button.setAttribute("aria-label", label);
  button.title = label;
}

function bindControls() {
  byId("main").addEventListener("click", () => {
    const { state } = connection;
    passing = null;
    if (isActive(state)) connection.stop();
    else connection.start(state.phase === "failed" ? state.source : "microphone");
  });
  byId("other").addEventListener("click", () => {
    const { state } = connection;
    passing = null;
    if (!isActive(state)) connection.start("sample");
    else connection.switchSource(state.source === "sample" ? "microphone" : "sample");
  });
  byId("mute").addEventListener("click", () => {
    connection.setMuted(!connection.isMuted);
    render();
  });
  byId("sound").addEventListener("click", () => stage.setSilent(!stage.isSilent));
  byId("interrupt").addEventListener("click", () => connection.send({ type: "interrupt" }));
  byId("volume").value = String(stage.video.volume);
  byId("volume").addEventListener("input", () => stage.setVolume(Number(byId("volume").value)));
  stage.onSound = render;
  /** @type {ReturnType<typeof setTimeout>|undefined} */
  let updateTimer;
  for (const id of ["liveliness", "look"]) {
    byId(id).addEventListener("input", () => {
      clearTimeout(updateTimer);
      updateTimer = setTimeout(() => connection.send({ type: "update", params: params() }), UPDATE_MS);
    });
  }
}

/** Asks the server how it is, more often while it is not ready; an open conversation tells by itself. */
async function poll() {
  const { phase } = connection.state;
  if (["idle", "failed", "waiting"].includes(phase) && !document.hidden) {
    try {
      info = await getInfo();
      showEngine();
      if (!hasPortraits && phase !== "waiting") await portraits.refresh();
      hasPortraits ||= phase !== "waiting";
    } catch {
      info = null;
    }
    render();
  }
  const isCalm = info?.engine.state === "ready" && hasPortraits;
  setTimeout(poll, isCalm ? IDLE_POLL_MS : POLL_MS);
}

/** What follows from the engine that the server runs. */
function showEngine() {
  const { engine } = info;
  panel.setLimits(info);
  stage.setShape(engine.width_px, engine.height_px);
  prompt.show(engine);
  document.body.classList.toggle("takes-prompt", prompt.isTaken);
  byId("upload-note").hidden = engine.name !== "embedded";
  // The first note is for everyone; the others say what was measured on this machine.
  const [note = "", ...measured] = engine.notes ?? [];
  byId("engine-note").hidden = note === "";
  setText("engine-note", sentence(note));
  setText("engine-measured", measured.map(sentence).join(" "));
}

/** @param {string} text */
const sentence = (text) => `${text.charAt(0).toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`;

async function showDetails() {
  if (!byId("details").open) return;
  const report = await connection.getStats();
  if (report) showRows(byId("detail-rows"), detailRows(report, connection.playoutDelayMs));
}

bindControls();
render();
poll();
setInterval(() => connection.state.phase === "waiting" && render(), TICK_MS);
setInterval(showDetails, STATS_MS);
document.addEventListener("visibilitychange", () => !document.hidden && render());
