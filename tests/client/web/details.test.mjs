import assert from "node:assert/strict";
import { test } from "node:test";

import { detailRows } from "../../../client/web/details.js";

const report = (...entries) => new Map(entries.map((entry) => [entry.id, entry]));
const valueOf = (rows, label) => rows.find((row) => row.label === label).value;

const FULL = report(
  { id: "T", type: "transport", selectedCandidatePairId: "P2" },
  { id: "P1", type: "candidate-pair", nominated: true, state: "succeeded", currentRoundTripTime: 9 },
  { id: "P2", type: "candidate-pair", currentRoundTripTime: 0.04, localCandidateId: "L" },
  { id: "L", type: "local-candidate", candidateType: "host", protocol: "udp" },
  { id: "C", type: "codec", mimeType: "video/VP8" },
  {
    id: "V", type: "inbound-rtp", kind: "video", codecId: "C", frameWidth: 256, frameHeight: 384, framesPerSecond: 25,
    framesDropped: 3, freezeCount: 1, packetsLost: 2, jitterBufferDelay: 6, jitterBufferEmittedCount: 100,
  },
  { id: "A", type: "inbound-rtp", kind: "audio", packetsLost: 0, concealedSamples: 48, totalSamplesReceived: 4800 },
);

test("The delay to the screen is the server's, the way there and back, and the buffer.", () => {
  assert.equal(valueOf(detailRows(FULL, 720), "Microphone to screen"), "about 0.82 s");
});

test("The selected pair counts, not another one that succeeded.", () => {
  assert.equal(valueOf(detailRows(FULL, 720), "Round trip"), "40 ms");
  assert.equal(valueOf(detailRows(FULL, 720), "Path"), "host, udp");
});

test("Picture and loss are shown as counted.", () => {
  const rows = detailRows(FULL, 720);
  assert.equal(valueOf(rows, "Picture"), "256 × 384, 25 fps");
  assert.equal(valueOf(rows, "Packets lost"), "2 picture, 0 sound");
  assert.equal(valueOf(rows, "Sound concealed"), "1.0 %");
});

test("A browser that reports nothing gives dashes, not failures.", () => {
  for (const row of detailRows(report(), 0)) assert.match(row.value, /–/, row.label);
});
