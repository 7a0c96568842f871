/** What the browser itself measures about the connection, as rows of a list. */

/** @typedef {{label: string, value: string}} Row */

/**
 * @param {RTCStatsReport} report
 * @param {number} playoutDelayMs What the server waits before a sample and its frame leave it.
 * @returns {Row[]}
 */
export function detailRows(report, playoutDelayMs) {
  const entries = [...report.values()];
  const inbound = (/** @type {string} */ kind) => entries.find((e) => e.type === "inbound-rtp" && e.kind === kind) ?? {};
  const video = inbound("video");
  const audio = inbound("audio");
  const pair = selectedPair(entries);
  const jitterMs = bufferMs(video);
  const rttMs = pair.currentRoundTripTime === undefined ? null : pair.currentRoundTripTime * 1000;
  const totalMs = playoutDelayMs + (rttMs ?? 0) + (jitterMs ?? 0);
  return [
    ["Microphone to screen", playoutDelayMs ? `about ${(totalMs / 1000).toFixed(2)} s` : "–"],
    ["of it on the server", ms(playoutDelayMs || null)],
    ["Round trip", ms(rttMs)],
    ["Jitter buffer, picture", ms(jitterMs)],
    ["Jitter buffer, sound", ms(bufferMs(audio))],
    ["Picture", video.frameWidth ? `${video.frameWidth} × ${video.frameHeight}, ${video.framesPerSecond ?? 0} fps` : "–"],
    ["Codecs", [codecOf(report, video), codecOf(report, audio)].filter(Boolean).join(", ") || "–"],
    ["Frames dropped", count(video.framesDropped)],
    ["Freezes", count(video.freezeCount)],
    ["Packets lost", `${count(video.packetsLost)} picture, ${count(audio.packetsLost)} sound`],
    ["Sound concealed", concealed(audio)],
    ["Path", pathOf(report, pair)],
  ].map(([label, value]) => ({ label, value }));
}

/** @param {any[]} entries */
function selectedPair(entries) {
  const transport = entries.find((entry) => entry.type === "transport" && entry.selectedCandidatePairId);
  const pairs = entries.filter((entry) => entry.type === "candidate-pair");
  return (
    pairs.find((pair) => pair.id === transport?.selectedCandidatePairId) ??
    pairs.find((pair) => pair.selected || (pair.nominated && pair.state === "succeeded")) ??
    {}
  );
}

/** Mean time that media spends in the buffer, over the session. @param {any} inbound @returns {number|null} */
function bufferMs(inbound) {
  if (!inbound.jitterBufferEmittedCount) return null;
  return (1000 * inbound.jitterBufferDelay) / inbound.jitterBufferEmittedCount;
}

/** @param {RTCStatsReport} report @param {any} inbound */
const codecOf = (report, inbound) => /** @type {any} */ (report).get(inbound.codecId)?.mimeType?.split("/")[1] ?? "";

/** @param {RTCStatsReport} report @param {any} pair */
function pathOf(report, pair) {
  const local = /** @type {any} */ (report).get(pair.localCandidateId);
  return local ? [local.candidateType, local.protocol].filter(Boolean).join(", ") : "–";
}

/** @param {any} audio */
function concealed(audio) {
  if (!audio.totalSamplesReceived) return "–";
  return `${((100 * (audio.concealedSamples ?? 0)) / audio.totalSamplesReceived).toFixed(1)} %`;
}

/** @param {number|null} value */
const ms = (value) => (value === null ? "–" : `${Math.round(value)} ms`);

/** @param {number|undefined} value */
const count = (value) => (value === undefined ? "–" : String(value));

/**
 * Shows the rows and keeps the elements of rows that are there already.
 * @param {HTMLElement} list A `dl`.
 * @param {Row[]} rows
 */
export function showRows(list, rows) {
  while (list.children.length > rows.length) list.lastElementChild?.remove();
  rows.forEach(({ label, value }, index) => {
    const row = list.children[index] ?? list.appendChild(document.createElement("div"));
    if (!row.firstElementChild) row.append(document.createElement("dt"), document.createElement("dd"));
    const [term, description] = row.children;
    if (term.textContent !== label) term.textContent = label;
    if (description.textContent !== value) description.textContent = value;
  });
}
